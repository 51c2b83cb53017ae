"""For tools that ask for a setup.py; what it would say stands in pyproject.toml."""

from setuptools import setup

setup()
