"""What pyproject.toml cannot say: a source distribution of the same bytes wherever and whenever it is built."""

import gzip
import os
import tarfile
from pathlib import Path

from setuptools import setup
from setuptools.command.sdist import sdist


class Sdist(sdist):
    """With SOURCE_DATE_EPOCH set, as wheels honour it already: that time, no owner, and names in order."""

    def make_archive(self, base_name, format, root_dir=None, base_dir=None, owner=None, group=None):
        date = os.environ.get("SOURCE_DATE_EPOCH")
        if date is None or format != "gztar":
            return super().make_archive(base_name, format, root_dir, base_dir, owner, group)

        def plain(entry):
            entry.uid = entry.gid = 0
            entry.uname = entry.gname = ""
            entry.mtime, entry.mode = int(date), 0o755 if entry.mode & 0o100 else 0o644
            return entry

        Path(base_name).parent.mkdir(parents=True, exist_ok=True)
        with open(f"{base_name}.tar.gz", "wb") as file, gzip.GzipFile("", "wb", 9, file, int(date)) as packed, \
                tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for path in sorted(filter(Path.is_file, Path(base_dir).rglob("*"))):
                archive.add(path, filter=plain)
        return f"{base_name}.tar.gz"


setup(cmdclass={"sdist": Sdist})
