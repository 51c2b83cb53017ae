"""Of several samples, the one that is most like the others, to the eye of a published network."""

import numpy as np

from palette_ms.errors import UserError
from palette_ms.evaluation.networks import SMALLEST

LPIPS = ("lpips_alex", "lpips_vgg")


def by_lpips(name, folder=None):
    """A score for `palette_ms.quality.stage.Quality`: minus the mean LPIPS distance (Zhang et al. 2018, arXiv
    1801.03924) of each sample to the others.

    Args:
        name: one of `LPIPS`.
        folder: where its published weights lie, see `palette_ms.evaluation.weights.open_weights`.

    Raises:
        UserError: there are none; from the score, that pictures are smaller than 32 pixels on a side or not RGB.
    """
    from palette_ms.evaluation.views import VIEWS

    view = VIEWS[name.rpartition("_")[2]](folder)

    def score(results):
        pictures = [np.asarray(result) for result in results]
        if pictures[0].ndim != 3 or pictures[0].shape[2] != 3 or min(pictures[0].shape[:2]) < SMALLEST:
            raise UserError(f"{name} compares RGB pictures of {SMALLEST} pixels a side or more")
        seen = np.stack(view(pictures))
        distances = np.square(seen[:, None] - seen[None]).sum(-1)
        return -distances.sum(1) / max(len(seen) - 1, 1)

    return score
