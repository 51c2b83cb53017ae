"""Pairs: the user's own task, whose sources are pictures too."""


def paired(y_0, rng, source):
    """The source as the data give it, float32 (3, H, W); no mask. Shapes and ranges as in `palette_ms.tasks`."""
    return source, None
