"""What the averaged weights make of fixed pictures and noise, while a model is trained."""

import numpy as np

from palette_ms.data.forms import Photo
from palette_ms.errors import UserError
from palette_ms.evaluation.metrics import LOWER_IS_BETTER, METRICS
from palette_ms.evaluation.networks import NETWORK_METRICS, SMALLEST, Networks, OfSet
from palette_ms.seeds import generator

LEVELS = (0.99, 0.9, 0.7, 0.5, 0.3, 0.1, 0.01)  # γ, at which the loss is measured


class Validation:
    """Measures a model, always on the same pictures, damage and noise.

    Args:
        config: `Config`.
        batches: `palette_ms.data.loader.TrainingBatches` of the pictures.
        together: how many are restored at once.
        restore: function of a list of so many `Sample`s and their noise (N, C, H, W) → what a short chain makes of
            them, float32 (N, C, H, W).
        loss: function of samples, noise and γ → the loss there, or None: it is not measured.

    Raises:
        UserError: a metric that there is not, that is not about single pictures with their originals, or whose weights
            are missing.
    """

    def __init__(self, config, batches, together, restore, loss=None):
        self.wanted, self.batches, self.together = config.validation, batches, together
        self.restore, self.loss = restore, loss
        self.num_tasks = len(config.tasks)
        self.is_photo = isinstance(batches.forms[1], Photo)
        metrics = self.wanted.metrics
        self.seen = [name for name in metrics if name in NETWORK_METRICS]
        known = ", ".join(METRICS)
        for name in metrics:
            metric = NETWORK_METRICS.get(name)
            if name not in METRICS and (metric is None or getattr(metric, "needs", "original") != "original"
                                        or isinstance(metric, OfSet) and not metric.compares):
                raise UserError(f"validation.metrics: {name!r} is none to validate by: {known}, or those by "
                                "networks about single pictures or FID")
        if self.seen and not self.is_photo:
            raise UserError(f"validation.metrics: {self.seen[0]} is for photos")
        if self.seen and config.data.image_size < SMALLEST:
            raise UserError(f"validation.metrics: {self.seen[0]} needs pictures of {SMALLEST} pixels a side or more, "
                            f"and data.image_size is {config.data.image_size}")
        self.views = {}
        if self.seen:
            from palette_ms.evaluation.views import VIEWS

            self.views = {name: VIEWS[name](self.wanted.weights)
                          for name in {NETWORK_METRICS[metric].view: 0 for metric in self.seen}}

    def is_better(self, value, best):
        """Whether a value of the first metric is better than the best so far, or None."""
        sign = -1 if self.wanted.metrics[0] in LOWER_IS_BETTER else 1
        return best is None or sign * value > sign * best

    def measure(self):
        """dict of name → value: the loss at each noise level, and each metric's mean over the pictures."""
        groups = -(-self.wanted.pictures // self.together)
        networks = Networks(self.seen, self.views, groups * self.together, 1) if self.seen else None
        columns = [name for name in self.wanted.metrics if name in METRICS]
        values, losses = {name: [] for name in self.wanted.metrics}, {level: [] for level in LEVELS}
        for group in range(groups):
            numbers = range(group * self.together, (group + 1) * self.together)
            # A picture's task follows from its place, which the compiled chain knows.
            samples = [self.batches.sample(number, i % self.num_tasks) for i, number in enumerate(numbers)]
            noise = generator(0, "validation", group).standard_normal(
                (len(samples), *samples[0].y_0.shape), np.float32)
            if self.loss:
                for level in LEVELS:
                    losses[level].append(self.loss(samples, noise, level))
            originals, made = ([self._shown(y) for y in several]
                               for several in ([sample.y_0 for sample in samples], self.restore(samples, noise)))
            for sample, original, result in zip(samples, originals, made):
                where = sample.mask[0] > 0 if (sample.mask < 1).any() else None
                for name in columns:
                    values[name].append(_value(METRICS[name], result, original, where, 255 if self.is_photo else 2))
            if networks:
                for row in networks.add(list(numbers), originals, [[result] for result in made]):
                    for name, value in zip(networks.of_pictures, row):
                        values[name].append(value)
        found = {f"loss_at_{level:g}": float(np.mean(several)) for level, several in losses.items() if several}
        found.update({name: float(np.nanmean(several)) for name, several in values.items() if several})
        if networks:
            found.update({name: value for name, (value, _) in networks.of_all(self.seen).items()})
        return found

    def _shown(self, y):
        """(H, W, C): of photos uint8, else floats in [−1, 1]."""
        return self.batches.forms[1].from_float(y) if self.is_photo else np.clip(y, -1, 1).transpose(1, 2, 0)


def _value(metric, made, original, where, span):
    """A metric's value; NaN where a picture has none, as SSIM of a hole at the edge."""
    try:
        return metric(made, original, where, span)
    except UserError:
        return np.nan
