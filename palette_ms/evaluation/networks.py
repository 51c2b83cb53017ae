"""Metrics that look at pictures through published networks: what each needs of what a network says, in NumPy.

A metric of `NETWORK_METRICS` names the view that it takes of pictures, one of `palette_ms.evaluation.views.VIEWS`, and
is about a picture and its samples (`OfPicture`) or about all pictures together (`OfSet`). All are of RGB of 8 bits, and
of whole pictures.
"""

from itertools import combinations
from typing import Callable, NamedTuple

import numpy as np

from palette_ms.errors import UserError
from palette_ms.evaluation.frechet import frechet_distance, inception_score, statistics
from palette_ms.seeds import generator

SMALLEST = 32  # pixels a side, of pictures that all of the networks take
_DIMS = (64, 192, 768, 2048)  # of Inception's features, which come one after the other


def features(said, dim=2048):
    """Of what Inception says of pictures (…, 3072), the features of a dimension, (…, dim)."""
    end = sum(_DIMS[:_DIMS.index(dim) + 1])
    return np.asarray(said)[..., end - dim:end]


class OfPicture(NamedTuple):
    """A metric of a picture and its samples.

    Attributes:
        view: one of `VIEWS`.
        measure: function of what the view says of the original (None: there is none) and of each sample, and of the
            picture's class (None: not known) → the mean over the samples.
        needs: "original", "samples", two or more, or "label".
    """

    view: str
    measure: Callable
    needs: str


class OfSet(NamedTuple):
    """A metric of all pictures.

    Attributes:
        view: one of `VIEWS`.
        dim: of Inception's features that it is about.
        compares: whether it is about originals, or statistics of some, too.
    """

    view: str
    dim: int = 2048
    compares: bool = True


def _lpips_distance(original, samples, label):
    return np.mean([_squared(original, sample) for sample in samples])


def _lpips_diversity(original, samples, label):
    return np.mean([_squared(a, b) for a, b in combinations(samples, 2)])


def _squared(a, b):
    return np.square(np.subtract(a, b, dtype=np.float32)).sum(dtype=np.float64)


def _perceptual_distance(original, samples, label):
    return np.mean([np.sqrt(_squared(features(original), features(sample))) for sample in samples])


def _accuracy(original, samples, label):
    return np.mean([np.argmax(sample) == label for sample in samples])


NETWORK_METRICS = {
    "fid": OfSet("inception"),
    "fid_64": OfSet("inception", 64),
    "fid_192": OfSet("inception", 192),
    "fid_768": OfSet("inception", 768),
    "clean_fid": OfSet("clean"),
    "inception_score": OfSet("inception", compares=False),
    "perceptual_distance": OfPicture("inception", _perceptual_distance, "original"),
    "accuracy": OfPicture("resnet50", _accuracy, "label"),
    "lpips_alex": OfPicture("alex", _lpips_distance, "original"),
    "lpips_vgg": OfPicture("vgg", _lpips_distance, "original"),
    "lpips_alex_diversity": OfPicture("alex", _lpips_diversity, "samples"),
    "lpips_vgg_diversity": OfPicture("vgg", _lpips_diversity, "samples"),
}


def read_labels(path):
    """dict of a picture's name → class, from a file with lines of both, as ImageNet's lists have them.

    Raises:
        UserError: it cannot be read, or a line is not of this form.
    """
    labels = {}
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    for line in filter(str.strip, lines):
        name, label = line.rsplit(None, 1) if len(line.split()) > 1 else ("", "")
        if not name or not label.isdecimal() or int(label) > 999:
            raise UserError(f"{path}: {line[:80]!r} is not a picture's name and the number of its class, from 0 to 999")
        labels[name.strip()] = int(label)
    return labels


class Networks:
    """The metrics by networks of some pictures.

    Args:
        metrics: names in `NETWORK_METRICS`.
        views: dict of views by name.
        pictures, samples: how many pictures there are, and samples of each.
        labels: list of each picture's class, or None.
        reference: (mean, covariance) that FID is measured against, or None: the originals.

    Raises:
        UserError: a metric needs more than there is; statistics of another dimension.
    """

    def __init__(self, metrics, views, pictures, samples, labels=None, reference=None):
        self.chosen = {name: NETWORK_METRICS[name] for name in metrics}
        self.views, self.labels, self.reference = views, labels, reference
        # In an order that is the same on all ranks, which add up one after the other; that of a set is not.
        needed = dict.fromkeys((one.view, one.dim) for one in self.chosen.values() if isinstance(one, OfSet))
        self.of_pictures = [name for name, metric in self.chosen.items() if isinstance(metric, OfPicture)]
        # The original's features and those of its samples; float32, as ranks exchange them.
        self.kept = {(view, dim): np.zeros((pictures, 1 + samples, dim), np.float32) for view, dim in needed}
        for name, metric in self.chosen.items():
            needs = getattr(metric, "needs", None)
            if needs == "label" and labels is None:
                raise UserError(f"{name} needs the pictures' classes: --labels FILE, with lines NAME CLASS")
            if needs == "samples" and samples < 2:
                raise UserError(f"{name} needs two samples or more of each picture, and there is one")
            if reference is not None and getattr(metric, "compares", False) and len(reference[0]) != metric.dim:
                raise UserError(f"{name} is about {metric.dim} features, and the statistics about {len(reference[0])}")

    def add(self, numbers, originals, samples):
        """Look at some pictures.

        Args:
            numbers: of the pictures, a list.
            originals: list of uint8 (H, W, 3), or None.
            samples: list of lists of them.

        Returns: list of the values of `of_pictures` for each picture.
        """
        counts = [(original is not None) + len(several) for original, several in zip(originals, samples)]
        pictures = [picture for original, several in zip(originals, samples) for picture in (original, *several)
                    if picture is not None]
        said = {}
        for name in {metric.view: None for metric in self.chosen.values()}:
            parts = np.split(np.arange(len(pictures)), np.cumsum(counts)[:-1])
            answers = self.views[name](pictures)
            said[name] = [([None] if original is None else []) + [answers[i] for i in part]
                          for original, part in zip(originals, parts)]
        for (view, dim), kept in self.kept.items():
            for number, (original, *several) in zip(numbers, said[view]):
                kept[number, 1:] = features(several, dim)
                if original is not None:
                    kept[number, 0] = features(original, dim)
        return [[self.chosen[name].measure(said[self.chosen[name].view][place][0],
                                           said[self.chosen[name].view][place][1:],
                                           None if self.labels is None else self.labels[number])
                 for name in self.of_pictures] for place, number in enumerate(numbers)]

    def restored(self, view="inception", dim=2048):
        """The features of all samples, (N · samples, dim)."""
        return self.kept[view, dim][:, 1:].reshape(-1, dim)

    def of_all(self, metrics):
        """dict of metric → (value, standard deviation or None) of those metrics that are of all pictures together."""
        made = {}
        for name in metrics:
            metric = self.chosen.get(name)
            if not isinstance(metric, OfSet):
                continue
            rows = self.restored(metric.view, metric.dim)
            if metric.compares:
                reference = self.reference
                if reference is None:
                    reference = statistics(self.kept[metric.view, metric.dim][:, 0])
                made[name] = frechet_distance(*reference, *statistics(rows)), None
            else:
                # In random order, since the parts of the score are to be alike; without bias, as in its authors' code.
                rows = rows[generator(0, "inception score").permutation(len(rows))]
                made[name] = inception_score(rows @ self.views[metric.view].tensors["fc.weight"].T)
        return made
