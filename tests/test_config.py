"""YAML in, typed config out; mistakes are told with file, key and neighbour."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from palette_ms.config import Config, config_from_dict, load_config
from palette_ms.errors import UserError


def write(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    return path


PRESETS = sorted(path.stem for path in (Path(__file__).parents[1] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_loads_and_writes_to_a_folder_of_its_own(repository, name):
    config = load_config(repository / "configs" / f"{name}.yaml")
    assert config.training.output == f"runs/{name}"


@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith(("places2", "imagenet"))])
def test_recipes_of_the_paper_have_its_network_and_process(repository, name):
    paper, recipe = (load_config(repository / "configs" / f"{n}.yaml") for n in ("palette_paper", name))
    assert (recipe.model, recipe.diffusion) == (paper.model, paper.diffusion)
    assert dataclasses.replace(recipe.training, output=paper.training.output) == paper.training


def test_the_papers_preset_is_the_papers(repository):
    config = load_config(repository / "configs" / "palette_paper.yaml")
    training, diffusion = config.training, config.diffusion
    assert training.batch_size * training.accumulation == 1024 and training.steps == 1_000_000
    assert (training.learning_rate, training.warmup_steps, training.ema_decay) == (1e-4, 10_000, 0.9999)
    assert vars(diffusion.train_schedule) == dict(name="linear", num_steps=2000, start=1e-6, end=0.01)
    assert vars(diffusion.test_schedule) == dict(name="linear", num_steps=1000, start=1e-4, end=0.09)
    side = config.data.image_size
    assert [side // factor for factor in config.model.attention_resolutions] == [32, 16, 8]


def test_values_arrive_with_their_types(tmp_path):
    config = load_config(write(tmp_path, """
        model: {channel_mults: [1, 2], num_head_channels: 16}
        training: {learning_rate: 1e-3, steps: 10}
        tasks: [{name: inpainting, masks: [center]}, {name: colorization, weight: 2}]
    """))
    assert config.model.channel_mults == (1, 2) and config.model.num_head_channels == 16
    assert config.training.learning_rate == 1e-3  # YAML 1.1 takes 1e-3 for a text
    assert [task.weight for task in config.tasks] == [1.0, 2.0]


@pytest.mark.parametrize("steps", ["[3]", "[0, 2]", "[4, 3]", "[1, 2, 3]"])
def test_the_profiled_steps_are_two_in_order(tmp_path, steps):
    with pytest.raises(UserError, match=r"training.profile must be \[first, last\]"):
        load_config(write(tmp_path, f"training: {{profile: {steps}}}"))


def test_overrides_replace_values_at_any_depth(tmp_path):
    path = write(tmp_path, "training: {steps: 10}")
    overrides = ["training.steps=7", "diffusion.train_schedule.name=cosine", "model.channel_mults=[1,3]"]
    config = load_config(path, overrides)
    assert (config.training.steps, config.diffusion.train_schedule.name) == (7, "cosine")
    assert config.model.channel_mults == (1, 3)


def test_a_config_survives_json_and_yaml(tmp_path):
    config = load_config(write(tmp_path, "tasks: [{name: colorization}]\ntraining: {init_from: a.safetensors}"))
    assert config_from_dict(json.loads(json.dumps(config.to_dict())), "x") == config
    assert load_config(write(tmp_path, json.dumps(config.to_dict()))) == config  # JSON is YAML
    assert config_from_dict({}, "x") == Config()


def test_the_networks_channels_follow_from_the_datas():
    def channels(text):
        model = config_from_dict(yaml.safe_load(text), "x").model
        return model.in_channels, model.out_channels

    assert channels("{}") == (6, 3)
    assert channels("{tasks: [{name: paired}], data: {channels: {source: 4, target: 2}}}") == (6, 2)
    assert channels("{tasks: [{name: unconditional}], data: {channels: {target: 5}}}") == (5, 5)
    assert channels("{tasks: [{name: unconditional}], diffusion: {variance: learned_range}}") == (3, 6)


def test_one_range_may_stand_alone():
    ranges = {"source": [0, 1e4], "target": [[0, 1], [0, 2], [0, 3]]}
    ranges = config_from_dict({"data": {"ranges": ranges}, "tasks": [{"name": "paired"}]}, "x").data.ranges
    assert ranges.source == ((0, 1e4),) and ranges.target == ((0, 1), (0, 2), (0, 3))


@pytest.mark.parametrize("text, message", [
    ("trainning: {steps: 3}", "unknown key trainning; did you mean training?"),
    ("training: {batchsize: 3}", "unknown key training.batchsize; did you mean batch_size?"),
    ("training: {steps: ten}", "training.steps must be a whole number, not 'ten'"),
    ("training: {steps: 1.5}", "training.steps must be a whole number"),
    ("training: {steps: true}", "training.steps must be a whole number"),
    ("training: {learning_rate: fast}", "training.learning_rate must be a number"),
    ("training: {learning_rate: .nan}", "training.learning_rate must be a number"),
    ("training: {steps: 0}", "training.steps must be above 0"),
    ("training: {recompute: 5}", "training.recompute must be from 0 to 4, the number of levels in model.channel_mults"),
    ("training: {jit_level: O3}", "training.jit_level is 'O3'; it must be one of O0, O1, O2"),
    ("training: {ema_decay: 1.0}", "training.ema_decay must be at least 0 and below 1"),
    ("data: {flip: maybe}", "data.flip must be true or false"),
    ("data: {folder: photos}", "unknown key data.folder; there are path, "),
    ("tasks: [{name: paired, recolor: 0.5}]", r"tasks\[0\].recolor would change the target and not the source"),
    ("data: {path: 3}", "data.path must be a text"),
    ("data: {min_scale: 2}", "data.min_scale must be above 0 and at most 1"),
    ("diffusion: {prediction: epsilon}", "must be one of eps, v, x0; did you mean eps?"),
    ("diffusion: {train_schedule: {end: 2}}", "diffusion.train_schedule needs"),
    ("model: {channel_mults: 4}", "model.channel_mults must be a list"),
    ("model: {channel_mults: [1, two]}", r"model.channel_mults\[1\] must be a number"),
    ("model: 3", "model must be a section"),
    ("tasks: []", "at least one task"),
    ("tasks: [{name: colourisation}]", r"tasks\[0\].name.*did you mean colorization\?"),
    ("tasks: [{name: inpainting, loss_weight: 0}]", r"tasks\[0\].loss_weight must be above 0"),
    ("tasks: [{name: inpainting, recolor: 2}]", r"tasks\[0\].recolor must be at least 0 and at most 1"),
    ("tasks: [{name: inpainting, train_schedule: {end: 2}}]", r"tasks\[0\].train_schedule needs"),
    ("tasks: [{name: inpainting}, {name: unconditional}]", "unconditional must be the only task"),
    ("{tasks: [{name: unconditional}], model: {in_channels: 6}}", "model.in_channels must be 3 for unconditional"),
    ("{tasks: [{name: paired}], data: {channels: {source: 4}}, model: {in_channels: 6}}", "in_channels must be 7 for"),
    ("model: {out_channels: 4}", "model.out_channels must be 3 for inpainting: the picture"),
    ("data: {channels: {source: 0}}", "data.channels.source must be above 0"),
    ("data: {channels: {source: 1}}", "data.channels.source must be 3, as target is, for inpainting"),
    ("data: {ranges: {target: [[0, 1], [0, 1]]}}", "data.ranges.target must be one .* 3 channels, not 2"),
    ("data: {ranges: {target: [1, 0]}}", "data.ranges.target must be of the form .*the smaller first"),
    ("data: {ranges: {target: [1]}}", r"data.ranges.target\[0\] must be a list of 2"),
    ("data: {result: {suffix: .png}}", "data.result is for arrays"),
    ("data: {ranges: {}, result: {suffix: .png, dtype: float32}}", "no .png can hold 3 channels of float32"),
    ("data: {ranges: {}, result: {suffix: .jpg}}", "data.result.suffix is '.jpg'; it must be one of .png, .tif, .npy"),
    ("{tasks: [{name: colorization}], data: {ranges: {}}}", r"tasks\[0\]: colorization needs RGB of 8 bits"),
    ("model: {in_channels: 3}", "model.in_channels must be 6 for inpainting"),
    ("diffusion: {from_source: true}", "diffusion.from_source needs .*prediction: x0"),
    ("diffusion: {process: i2sb}", "diffusion.process needs .*prediction: x0"),
    ("diffusion: {first_call: 0.5}", "diffusion.first_call needs .*prediction: x0 or v"),
    ("diffusion: {first_call: 1}", "diffusion.first_call must be at least 0 and below 1"),
    ("validation: {every: -1}", "validation.every must not be negative"),
    ("validation: {pictures: 0}", "validation.pictures must be above 0"),
    ("validation: {metrics: []}", "validation.metrics needs at least one"),
    ("training: {decay_steps: -1}", "training.decay_steps must not be negative"),
    ("{model: {out_channels: 6}, diffusion: {prediction: x0, from_source: true}}", "as many channels as the picture"),
    ("diffusion: {noise_input: angle, time_input: t}", "noise_input: angle need diffusion.time_input: gamma"),
    ("model: {from_source: true}", "diffusion.from_source needs .*prediction: x0"),
    ("{model: {noise_input: angle}, diffusion: {noise_input: value}}",
     "diffusion.noise_input is 'value', and model.noise_input, its old place, says 'angle': leave the old one out"),
    ("{model: {noise_input: angel}}", "diffusion.noise_input is 'angel'.*did you mean angle?"),
    ("{model: {num_classes: 1}, tasks: [{name: inpainting}, {name: denoising}]}", "num_classes must be at least 2"),
    ("data: {image_size: 100}", "data.image_size 100 must be a multiple of 8"),
    ("- a list", "expected sections"),
    ("a: [", "is not YAML"),
])
def test_mistakes_name_file_key_and_neighbour(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as error:
        load_config(write(tmp_path, text))
    assert "c.yaml" in str(error.value) and "\n" not in str(error.value)


def test_a_config_is_read_without_mindspore():
    code = "import sys, palette_ms.config; sys.exit('mindspore' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1]).returncode == 0


def test_keys_of_the_process_are_taken_from_their_old_place_too(tmp_path):
    text = "model: {base_channels: 32, from_source: true, noise_input: angle}\ndiffusion: {prediction: x0"
    old, both, new = (load_config(write(tmp_path, content)) for content in (
        text + "}", text + ", from_source: true}",
        "model: {base_channels: 32}\ndiffusion: {prediction: x0, from_source: true, noise_input: angle}"))
    assert old == both == new and new.diffusion.from_source and new.diffusion.noise_input == "angle"
    assert not {"from_source", "noise_input"} & new.to_dict()["model"].keys()
    assert load_config(write(tmp_path, "diffusion: {prediction: x0}"), ["model.from_source=true"]).diffusion.from_source


@pytest.mark.parametrize("override", ["steps", "training.steps", "=3", "training..steps=3", "training.steps.x=3",
                                      "training.steps=[", "training.stepz=3"])
def test_bad_overrides_are_told(tmp_path, override):
    with pytest.raises(UserError):
        load_config(write(tmp_path, "training: {steps: 3}"), [override])


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(UserError, match="cannot read config"):
        load_config(tmp_path / "none.yaml")
