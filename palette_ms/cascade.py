"""A cascade: a model that makes small pictures, from a text, of a class or of neither, and others that enlarge them
(Ho et al. 2022, arXiv 2106.15282; Imagen: Saharia et al. 2022, arXiv 2205.11487)."""

import dataclasses
from os import PathLike
from typing import Any, Callable, List, Mapping, Optional, Sequence, Union

from palette_ms.diffusion.samplers import Sampling
from palette_ms.errors import UserError
from palette_ms.pipeline import Palette, Result, check_counts
from palette_ms.runtime import sampling_precision, setup
from palette_ms.seeds import generator

OPTIONS = {field.name for field in dataclasses.fields(Sampling)} - {"text", "strength", "start"}


class Cascade:
    """Models one after the other. `Cascade.load` makes one from files.

    Args:
        stages: `Palette`s: the first makes pictures from nothing, the others are for super_resolution alone.
        encoder: `palette_ms.text.encoder.TextEncoder`, needed where a stage takes a text; None: none.

    Attributes:
        sizes: side of the pictures after each stage.
        scales: factor of each stage after the first.

    Raises:
        UserError: stages that do not fit each other; the message names their sizes.

    Examples:
        >>> from palette_ms.config import load_config
        >>> from palette_ms.unet import UNet
        >>> tiny = ["model.base_channels=8", "model.norm_groups=4", "model.num_head_channels=8"]
        >>> config = load_config("prior", [*tiny, "data.image_size=16"])
        >>> cascade = Cascade([Palette(UNet(config.model), config)])
        >>> cascade.sizes, cascade.takes_text
        ([16], False)
        >>> cascade.generate(options=[{"sampler": "ddim", "steps": 1}])[0].size
        (16, 16)
    """

    def __init__(self, stages: Sequence[Palette], encoder: Any = None) -> None:
        self.stages = list(stages)
        if not self.stages:
            raise UserError("a cascade needs at least one model")
        self.encoder = encoder
        base, *further = self.stages
        if not base.makes_pictures:
            raise UserError(f"{_name(base, 0)} restores pictures ({', '.join(base.tasks)}): a cascade begins with a "
                            "model that makes some from nothing")
        self.sizes, self.scales = [base.config.data.image_size], []
        for k, (before, stage) in enumerate(zip(self.stages, further), 1):
            if stage.makes_pictures or stage.tasks != ("super_resolution",):
                raise UserError(f"{_name(stage, k)} is for {', '.join(stage.tasks)}: after its first model a cascade "
                                "has models for super_resolution alone")
            channels, made = stage.config.data.channels.source, before.config.data.channels.target
            if channels != made or stage.forms[0].kind != before.forms[1].kind:
                raise UserError(f"{_name(stage, k)} takes pictures of {channels} channels, and what comes before makes "
                                f"others, of {made}")
            self.scales.append(_scale(stage, k, self.sizes[-1]))
            self.sizes.append(self.sizes[-1] * self.scales[-1])
        self._check_encoder()

    @classmethod
    def load(cls, paths: Sequence[Union[str, "PathLike[str]"]],
             encoder: Union[str, "PathLike[str]", None] = None, device: str = "auto", runtime: str = "auto",
             precision: str = "auto", jit_level: Optional[str] = None) -> "Cascade":
        """Load checkpoints.

        Args:
            paths: of the stages' files, in order.
            encoder: folder of the T5 whose texts they were trained with; needed where one takes a text.
            device, runtime, precision, jit_level: see `Palette.load`.

        Raises:
            UserError: as of `Palette.load` and of the class; a folder that is no T5, or one that no stage takes.

        Examples:
            >>> Cascade.load(["base.safetensors", "photo"])
            Traceback (most recent call last):
            palette_ms.errors.UserError: no such checkpoint: base.safetensors
        """
        if isinstance(paths, (str, PathLike)):
            raise UserError(f"a cascade's models are a list of paths, not {paths!r}")
        cascade = cls([Palette.load(path, device, runtime, precision, jit_level) for path in paths])
        if encoder is not None:
            if not cascade.takes_text:
                raise UserError("an encoder is for models that take a text, and none of these does")
            if any(stage.chains.network for stage in cascade.stages):
                setup("CPU", quiet=True)
            import mindspore as ms

            from palette_ms.text.encoder import TextEncoder

            cascade.encoder = TextEncoder(encoder, getattr(ms, sampling_precision("auto")))
            cascade._check_encoder()
        return cascade

    def _check_encoder(self):
        """Raises UserError: a stage was trained with the texts of another encoder."""
        for k, stage in enumerate(self.stages):
            known = stage.config.data.text_encoder
            if self.encoder is not None and stage.config.model.text_channels and known != self.encoder.fingerprint:
                raise UserError(f"{_name(stage, k)} was trained with the texts of the encoder {known}, and this one is "
                                f"{self.encoder.fingerprint}: these are weights of another T5")

    def check_prompt(self, prompt: Optional[str]) -> None:
        """Raises UserError: pictures cannot be made of that text, or (None) without one."""
        if prompt is None:
            return
        if not isinstance(prompt, str):
            raise UserError(f"the prompt must be a text, not {prompt!r}")
        if not prompt.strip():
            raise UserError("the prompt is empty: say what is to be seen")
        if any("\ud800" <= letter <= "\udfff" for letter in prompt):  # what arguments have in place of other bytes
            raise UserError(f"the prompt {prompt!r} is no text in UTF-8")
        if not self.takes_text:
            raise UserError("none of these models takes a text: leave the prompt out")
        if self.encoder is None:
            raise UserError("these models take a text: name the folder of the T5 that they were trained with (its "
                            "config.json, weights and tokenizer) as the encoder")

    @property
    def takes_text(self) -> bool:
        """Whether any stage takes one."""
        return any(stage.config.model.text_channels is not None for stage in self.stages)

    def generate(self, prompt: Optional[str] = None, num_samples: int = 1, seed: int = 0, label: Optional[int] = None,
                 options: Sequence[Mapping[str, Any]] = (), score: Union[str, Callable] = "denoising",
                 progress: Any = None, first_sample: int = 0) -> List[Result]:
        """Pictures.

        Args:
            prompt: the text; None: none, of models that take one, too.
            num_samples, first_sample: see `Palette.restore`.
            seed: decides all noise, of each stage another.
            label: the class for all stages that are told one; None: each sample draws one, the same for all stages.
            options: for each stage by name what `palette_ms.diffusion.samplers.Sampling` has, such as sampler, steps,
                guidance and dynamic_threshold. `source_noise` of a stage after the first may be several levels: each is
                made, and the best kept. Missing: by default.
            score: by which it is the best: "denoising", the stage's own error in taking noise away from a picture
                again, or a function of a list of pictures → a number for each, the higher the better, such as one that
                asks CLIP how well they fit the prompt.
            progress: see `Palette.restore`; a bar for each call of a stage.

        Returns: list of `num_samples` results of the last stage's size.

        Raises:
            UserError: an empty prompt, one that no stage takes, an encoder that is missing or another than a stage was
                trained with; what `Palette.generate` and `Palette.restore` raise.

        Examples:
            >>> from palette_ms.config import load_config
            >>> from palette_ms.unet import UNet
            >>> tiny = ["model.base_channels=8", "model.norm_groups=4", "model.num_head_channels=8"]
            >>> config = load_config("prior", [*tiny, "data.image_size=16"])
            >>> Cascade([Palette(UNet(config.model), config)]).generate("a red circle")
            Traceback (most recent call last):
            palette_ms.errors.UserError: none of these models takes a text: leave the prompt out
        """
        check_counts(num_samples, seed, first_sample)
        chosen = self._chosen(options)
        self.check_prompt(prompt)
        told = self._told(prompt)
        chosen = self._resolved(chosen, told, score)
        base, *further = self.stages
        numbers = range(first_sample, first_sample + num_samples)
        labels = self._labels(label, numbers, seed)
        if base.config.model.num_classes is not None:
            told[0]["label"] = label
        made = base.generate(num_samples, seed=seed, progress=progress, first_sample=first_sample, **chosen[0],
                             **told[0])
        for k, stage in enumerate(further, 1):
            for place, number in enumerate(numbers):
                if stage.config.tasks[0].has_classes:
                    told[k]["label"] = labels[place]
                made[place] = self._enlarged(k, made[place], chosen[k], score, progress, first_sample=number,
                                             seed=int(generator(seed, "stage", k).integers(2**31)), **told[k])
        return made

    def _enlarged(self, k, picture, chosen, score, progress, **how):
        """What stage k makes of a picture: of several levels of noise in it, the best."""
        stage, levels = self.stages[k], _levels(chosen)
        how = {**how, **chosen, "scale": self.scales[k - 1], "progress": progress}
        how.pop("source_noise", None)
        if len(levels) == 1:
            return stage.restore(picture, source_noise=levels[0], **how)[0]
        made = [stage.restore(picture, source_noise=level, best=1, score=score, details=True, **how)
                for level in levels]
        return max(made, key=lambda one: one.scores[0]).samples[0]

    def _chosen(self, options):
        """The options of each stage."""
        if len(options) not in (0, len(self.stages)):
            raise UserError(f"there are options for {len(options)} stages, and {len(self.stages)} stages")
        for chosen in options:
            if not isinstance(chosen, Mapping):
                raise UserError(f"the options of a stage are values by their names, not {chosen!r}")
            unknown = sorted(chosen.keys() - OPTIONS)
            if unknown:
                raise UserError(f"a stage takes no {unknown[0]}: there are {', '.join(sorted(OPTIONS))}")
        if options and "source_noise" in options[0]:
            raise UserError("source_noise is for stages after the first, whose source it is added to")
        if any(not _levels(chosen) for chosen in options):
            raise UserError("source_noise must be a level, or one or several to choose from")
        return [dict(chosen) for chosen in options] or [{} for _ in self.stages]

    def _resolved(self, options, told, score):
        """The options with the sampler and steps that each stage takes by default, the same for all samples. Raises
        UserError: what is asked of a stage, of the last one too, is not for it."""
        resolved = []
        for stage, chosen, text in zip(self.stages, options, told):
            task, levels = stage.config.tasks[0], _levels(chosen)
            for level in levels:
                sampling = stage.sampling(task, **{**chosen, "source_noise": level}, **text)
                stage.chains.check(task, sampling)
            if len(levels) > 1:
                stage.quality({"best": 1, "score": score}, 1)
            resolved.append({**chosen, **{name: getattr(sampling, name) for name in ("sampler", "steps", "flips")}})
        return resolved

    def _told(self, prompt):
        """The text of each stage, as an argument by its name, or nothing; told once for stages of one limit."""
        models = [stage.config.model for stage in self.stages]
        limits = {model.text_length for model in models if model.text_channels is not None and prompt is not None}
        texts = {limit: self.encoder([prompt], limit)[0] for limit in limits}
        return [{"text": texts[model.text_length]} if model.text_channels is not None and texts else {}
                for model in models]

    def _labels(self, label, numbers, seed):
        """The class of each sample, as the stages that know classes agree on it, or None."""
        known = [stage for stage in self.stages if stage.config.tasks[0].has_classes
                 or (stage.makes_pictures and stage.config.model.num_classes is not None)]
        if len({stage.config.model.num_classes for stage in known}) > 1:
            raise UserError("these models know other classes: "
                            + ", ".join(str(stage.config.model.num_classes) for stage in known))
        if label is not None and not known:
            raise UserError("none of these models knows classes: leave the class out")
        return known[0]._labels(label, numbers, seed) if known else None


def _levels(chosen):
    """The levels of source noise among a stage's options, a list."""
    levels = chosen.get("source_noise")
    return list(levels) if isinstance(levels, (list, tuple)) else [0.0 if levels is None else levels]


def _name(stage, k):
    """What errors call a stage."""
    return str(stage.path) if stage.path else f"stage {k + 1}"


def _scale(stage, k, side):
    """The factor by which a stage enlarges pictures of that side. Raises UserError: none leads to its own size."""
    data, scales = stage.config.data, stage.config.tasks[0].scales
    for scale in scales:
        # Trained on crops, it makes larger pictures than it saw.
        if side * scale == data.image_size or (data.min_scale < 1 and side * scale > data.image_size
                                               and side * scale % stage.chains.multiple == 0):
            return scale
    raise UserError(f"{_name(stage, k)} was trained to enlarge {' or '.join(str(scale) for scale in scales)} times, "
                    f"to {data.image_size}×{data.image_size}; what comes before it makes {side}×{side}, which becomes "
                    f"{' or '.join(f'{side * scale}×{side * scale}' for scale in scales)}")
