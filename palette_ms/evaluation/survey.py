"""Two-alternative forced choice: a page that asks which of two pictures is a camera's, and the answers.

The share of pairs in which people took the restored picture for the camera's is the fool rate (Palette, section 4):
one half, where nobody can tell them apart.
"""

import json
from typing import NamedTuple

import numpy as np

from palette_ms.data.results import digest
from palette_ms.errors import UserError
from palette_ms.evaluation.page import encoded, fill
from palette_ms.seeds import generator

_Z = 1.959964  # of the normal distribution: 95 % lie within


def write_survey(path, pairs, seconds, number=None, seed=0):
    """Write the page, whole or not at all.

    Args:
        path: ends in .html.
        pairs: `palette_ms.evaluation.report.Pair`s; of several samples the first is shown.
        seconds: how long a pair is shown.
        number: of pairs, drawn; None: all.
        seed: decides which.

    Returns: how many pairs there are.

    Raises:
        UserError: a picture cannot be read, or the file cannot be written.
    """
    chosen = np.sort(generator(seed, "survey").permutation(len(pairs))[:number])
    shown = [{"name": pairs[i].name, "original": encoded(pairs[i].reference, lossless=True),
              "restored": encoded(pairs[i].samples[0], lossless=True)} for i in chosen]
    fill("survey.html", path, {"survey": digest(seconds, shown)[:16], "seconds": seconds, "pairs": shown})
    return len(shown)


class FoolRate(NamedTuple):
    """What people answered.

    Attributes:
        rate: share of the answers that took the restored picture for the camera's.
        low, high: its interval of 95 % confidence.
        answers: how many.
        people: dict of name → (rate, answers).
        pictures: dict of name → rate.
    """

    rate: float
    low: float
    high: float
    answers: int
    people: dict
    pictures: dict


def fool_rate(files):
    """The `FoolRate` of answers.

    Args:
        files: paths of what the page saved, one a person.

    Raises:
        UserError: a file cannot be read or holds no answers, they are of different pages, or a person comes twice.
    """
    people, pictures, survey = {}, {}, None
    for path in files:
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
            person, of, answers = str(held["person"]), held["survey"], held["answers"]
            fooled = [bool(answer["fooled"]) for answer in answers]
            for answer, one in zip(answers, fooled):
                pictures.setdefault(str(answer["name"]), []).append(one)
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from None
        except (ValueError, TypeError, KeyError, RecursionError):
            raise UserError(f"{path} holds no answers, as the page saves them") from None
        if not fooled:
            raise UserError(f"{path} holds no answers")
        if survey not in (None, of):
            raise UserError(f"{path} answers another page than {files[0]}")
        if person in people:
            raise UserError(f"{person} comes twice; the second time in {path}")
        people[person], survey = fooled, of
    counts = np.array([len(fooled) for fooled in people.values()])
    rates = np.array([np.mean(fooled) for fooled in people.values()])
    total = counts.sum()
    rate = float(counts @ rates / total)
    low, high = wilson(rate, independent(rates, counts))
    return FoolRate(rate, low, high, int(total), dict(zip(people, zip(rates.tolist(), counts.tolist()))),
                    {name: float(np.mean(fooled)) for name, fooled in pictures.items()})


def independent(rates, counts):
    """How many independent answers say as much about the rate as these do, of which one person's are alike.

    From the variance between people, of the rate as a ratio of two sums over them; no more than there are.

    Args:
        rates, counts: of each person's answers, (M,).
    """
    people, total = len(rates), counts.sum()
    rate = counts @ rates / total
    if people < 2:
        return float(total)
    variance = people / (people - 1) * np.sum((counts * (rates - rate)) ** 2) / total**2
    return float(total if variance == 0 else min(total, rate * (1 - rate) / variance))


def wilson(rate, number):
    """The interval of 95 % confidence of a share (Wilson 1927, "Probable inference"): (low, high).

    Args:
        rate: observed.
        number: of independent answers.
    """
    middle = (rate + _Z**2 / (2 * number)) / (1 + _Z**2 / number)
    half = _Z / (1 + _Z**2 / number) * np.sqrt(rate * (1 - rate) / number + _Z**2 / (4 * number**2))
    return float(max(0, middle - half)), float(min(1, middle + half))
