"""The teacher of a distillation: which checkpoint, and at which steps."""


from palette_ms.checkpoint import Checkpoint
from palette_ms.diffusion.schedule import make_gamma_schedule, place_steps
from palette_ms.errors import UserError


def open_teacher(config):
    """The teacher that a config with a `distillation` section names.

    Returns: (`Checkpoint`, its steps: 2 K of the test schedule, ascending, and their noise levels γ, float64).

    Raises:
        UserError: no such checkpoint, of another network or process than the student's, or distilled to another number
            of steps than twice the student's.
    """
    wanted = 2 * config.distillation.steps
    checkpoint = Checkpoint(config.distillation.teacher)
    theirs, ours = checkpoint.config, config

    def agree(key, their_value, our_value):
        if their_value != our_value:
            raise UserError(f"distillation.teacher: {checkpoint.path} has another {key} than this config: copy the "
                            "teacher's")

    agree("model section", theirs.model, ours.model)
    for name in ("process", "prediction", "from_source", "noise_input", "test_schedule", "clip", "time_input"):
        agree(f"diffusion.{name}", getattr(theirs.diffusion, name), getattr(ours.diffusion, name))
    # How often a task is trained, and on which colours, is the student's own matter.
    agree("tasks (their names, order and options)", *([(task.name, task.test_schedule, task.options())
                                                       for task in side.tasks] for side in (theirs, ours)))
    gammas = make_gamma_schedule(**vars(config.diffusion.test_schedule))
    steps = theirs.diffusion.distilled
    if steps is None:
        steps = tuple(place_steps(gammas, wanted, config.distillation.spacing).tolist())
    elif len(steps) != wanted:
        half = len(steps) // 2
        raise UserError(f"distillation.teacher: {checkpoint.path} was distilled to {len(steps)} steps; "
                        + ("they cannot be halved" if len(steps) % 2 else f"distillation.steps must be {half}"))
    return checkpoint, steps, gammas[list(steps)]
