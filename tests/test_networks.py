"""The metrics by networks, held to pytorch-fid, lpips, torchvision and clean-fid on weights drawn by name."""

import json
import sys
import zlib

import numpy as np
import pytest
from golden import load_arrays, relative_error
from mindspore import Tensor
from PIL import Image

from palette_ms import evaluate, runtime
from palette_ms.errors import UserError
from palette_ms.evaluation import frechet, views
from palette_ms.evaluation.backbones import Lpips
from palette_ms.evaluation.networks import Networks, features, read_labels
from palette_ms.evaluation.report import _groups
from palette_ms.evaluation.weights import PUBLISHED, open_weights
from palette_ms.torch_weights.files import read_tensors, write_pth

GOLDEN = {name: load_arrays(f"{name}.npz") for name in ("fid_inception", "lpips", "metric_networks")}
PICTURES = list(GOLDEN["fid_inception"]["images"].transpose(0, 2, 3, 1))


def drawn(key, shape):
    """The weights that the reference numbers were made with."""
    rng = np.random.default_rng(zlib.crc32(key.encode()))
    if key.startswith("lin"):
        return np.abs(0.1 * rng.standard_normal(shape))
    if key.endswith("running_var") or (len(shape) == 1 and not key.endswith(("running_mean", "bias"))):
        return rng.uniform(0.5, 1.5, shape)
    if key.endswith(("running_mean", "bias")):
        return 0.1 * rng.standard_normal(shape)
    return rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The published files, by their names, with drawn weights."""
    folder = tmp_path_factory.mktemp("weights")
    keys = {"inception": GOLDEN["fid_inception"]["keys"], "resnet50": GOLDEN["metric_networks"]["resnet_keys"]}
    for name, listed in keys.items():
        write_pth(folder / PUBLISHED[name].name, {key: drawn(key, shape) for key, shape in json.loads(str(listed))
                                                  if not key.endswith("num_batches_tracked")})
    for net in ("alex", "vgg"):
        listed = json.loads(str(GOLDEN["lpips"][f"keys_{net}"]))
        # torchvision calls features.N what LPIPS calls net.sliceM.N
        write_pth(folder / PUBLISHED[net].name, {f"features.{key.split('.', 2)[2]}": drawn(key, shape)
                                                 for key, shape in listed if key.startswith("net.")})
        write_pth(folder / PUBLISHED[f"lpips_{net}"].name,
                  {key: drawn(key, shape) for key, shape in listed if key.startswith("lin")})
    runtime.setup("CPU")
    return folder


@pytest.fixture(scope="module")
def inception(folder):
    return views.VIEWS["inception"](folder)


def test_inceptions_features_and_logits_are_pytorch_fids(inception):
    said = inception(PICTURES)
    assert relative_error(features(said), GOLDEN["fid_inception"]["features"]) < 1e-5
    for dim in (64, 192, 768):
        assert relative_error(features(said, dim), GOLDEN["metric_networks"][f"features_{dim}"]) < 1e-5
    weight, bias = (inception.tensors[f"fc.{name}"] for name in ("weight", "bias"))
    assert relative_error(features(said) @ weight.T + bias, GOLDEN["fid_inception"]["logits"]) < 1e-5


def test_clean_fids_resizing_is_its_own():
    made = np.stack([views.clean(picture)[::23, ::23] for picture in PICTURES])
    assert np.abs(made - GOLDEN["metric_networks"]["clean"]).max() < 1e-6
    assert np.abs(made - np.stack([views.bilinear(picture)[::23, ::23] for picture in PICTURES])).max() > 0.1


def test_the_classifiers_logits_are_torchvisions(folder):
    assert relative_error(views.VIEWS["resnet50"](folder)(PICTURES), GOLDEN["metric_networks"]["resnet_logits"]) < 1e-5


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_lpips_is_lpips(folder, net):
    view = views.VIEWS[net](folder)
    a, b = (np.stack(view(list(GOLDEN["lpips"][f"images_{one}"].transpose(0, 2, 3, 1)))) for one in "ab")
    assert np.square(a - b).sum(1) == pytest.approx(GOLDEN["lpips"][f"distance_{net}"], rel=1e-5)


def test_lpips_in_mindspore_is_lpips(folder):
    tensors = [read_tensors(folder / PUBLISHED[name].name) for name in ("alex", "lpips_alex")]
    cell = Lpips("alex", *tensors).set_train(False)
    a, b = (cell(Tensor(GOLDEN["lpips"][f"images_{one}"] / np.float32(127.5) - 1)).asnumpy() for one in "ab")
    assert np.square(a - b).sum(1) == pytest.approx(GOLDEN["lpips"]["distance_alex"], rel=1e-5)


@pytest.mark.parametrize("kind, tolerance", [("frechet", 1e-6), ("singular", 1e-3)])
def test_the_frechet_distance_is_pytorch_fids(kind, tolerance):
    arrays = GOLDEN["fid_inception"]
    made = frechet.frechet_distance(*(part for one in "ab" for part in frechet.statistics(arrays[f"{kind}_{one}"])))
    assert made == pytest.approx(float(arrays["frechet" if kind == "frechet" else "frechet_singular"]), rel=tolerance)


def test_the_frechet_distance_of_few_samples_is_that_of_their_products():
    """Tr (Σ_a Σ_b)^½ is the sum of the singular values of X_a X_bᵀ, X the centred samples over √(n − 1)."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((5, 300)), 1 + rng.standard_normal((7, 300)) * rng.uniform(0.1, 3, 300)
    centred = [(x - x.mean(0)) / np.sqrt(len(x) - 1) for x in (a, b)]
    expected = (np.square(a.mean(0) - b.mean(0)).sum() + sum(np.square(x).sum() for x in centred)
                - 2 * np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum())
    made = frechet.frechet_distance(*frechet.statistics(a), *frechet.statistics(b))
    assert made == pytest.approx(expected, rel=1e-6)
    assert frechet.frechet_distance(*frechet.statistics(a), *frechet.statistics(a)) == pytest.approx(0, abs=1e-9)


def test_the_inception_score_is_the_number_of_classes_that_are_told_apart():
    logits = 100 * np.eye(7)[np.arange(140) % 7]
    assert frechet.inception_score(logits) == (pytest.approx(7), pytest.approx(0, abs=1e-9))
    assert frechet.inception_score(np.zeros((20, 7)))[0] == pytest.approx(1)
    # Two parts of which one knows two classes, and the other one.
    mean, std = frechet.inception_score(100 * np.eye(3)[[0, 1, 2, 2]], 2)
    assert (mean, std) == (pytest.approx(1.5), pytest.approx(0.5))


# The command


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Three originals, and two samples of each."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for place in ("reference", "restored"):
        (folder / place).mkdir()
    for i in range(3):
        picture = np.roll(PICTURES[i % 2], 7 * i, 0)
        Image.fromarray(picture).save(folder / "reference" / f"{i}.png")
        for k in range(2):
            noisy = np.clip(picture + rng.normal(0, 9 + 20 * k, picture.shape), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(folder / "restored" / f"{i}_{k}.png")
    return folder


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["evaluate", *map(str, arguments)])
    evaluate.main()


def test_the_command_measures_by_networks(folder, inception, pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(views.VIEWS, "inception", lambda folder: inception)  # compiled already
    run(monkeypatch, "--reference", pictures / "reference", "--restored", pictures / "restored", "--metrics",
        "fid_64,perceptual_distance,lpips_alex,psnr,lpips_alex_diversity,ssim_between,inception_score", "--weights",
        folder, "--output", tmp_path / "r.json")
    made = json.loads((tmp_path / "r.json").read_text())
    originals, samples = ([np.asarray(Image.open(path)) for path in sorted((pictures / place).iterdir())]
                          for place in ("reference", "restored"))
    said = [np.asarray(inception(several)) for several in (originals, samples)]
    expected = frechet.frechet_distance(*(part for one in said for part in frechet.statistics(features(one, 64))))
    assert made["fid_64"]["mean"] == pytest.approx(expected, rel=1e-4)
    assert made["fid_64"]["samples"] == 6
    distances = np.linalg.norm(features(said[1]) - np.repeat(features(said[0]), 2, 0), axis=1).reshape(3, 2).mean(1)
    assert list(made["perceptual_distance"]["values"].values()) == pytest.approx(list(distances), rel=1e-4)
    vectors = [np.stack(views.VIEWS["alex"](folder)(several)).astype(np.float64) for several in (originals, samples)]
    for name, a, b in (("lpips_alex", np.repeat(vectors[0], 2, 0), vectors[1]),
                       ("lpips_alex_diversity", vectors[1][::2], vectors[1][1::2])):
        assert made[name]["mean"] == pytest.approx(np.square(a - b).sum(1).mean(), rel=1e-4), name
    assert made["run"]["weights"].keys() == {PUBLISHED[name].name for name in ("inception", "alex", "lpips_alex")}
    assert 1 <= made["inception_score"]["mean"] < 6 and 0 < made["ssim_between"]["mean"] < 1
    told = capsys.readouterr()
    assert "of 6 samples" in told.out and "is not the published file" in told.err


def test_statistics_are_saved_and_compared_with(inception, pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(views.VIEWS, "inception", lambda folder: inception)
    saved = tmp_path / "s.npz"
    run(monkeypatch, "--restored", pictures / "reference", "--metrics", "fid_192", "--save-statistics", saved)
    originals = [np.asarray(Image.open(path)) for path in sorted((pictures / "reference").iterdir())]
    said = features(inception(originals), 192)
    with np.load(saved) as held:
        assert held["mu"] == pytest.approx(said.mean(0), rel=1e-6)
        assert np.abs(held["sigma"] - np.cov(said.astype(np.float64), rowvar=False)).max() < 1e-6
    for first in (["--reference", pictures / "reference"], ["--statistics", saved]):
        run(monkeypatch, *first, "--restored", pictures / "restored", "--metrics", "fid_192")
    figures = [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("fid_192")]
    assert len(figures) == 2 and figures[0] == figures[1]
    with pytest.raises(UserError, match="about 64 features, and the statistics about 192"):
        run(monkeypatch, "--statistics", saved, "--restored", pictures / "restored", "--metrics", "fid_64")
    (tmp_path / "no.npz").write_bytes(b"x")
    with pytest.raises(UserError, match="is no .npz with mu and sigma"):
        run(monkeypatch, "--statistics", tmp_path / "no.npz", "--restored", pictures / "restored", "--metrics", "fid")


@pytest.mark.parametrize("name, message", [("photo.npz", "holds no statistics"), ("photo.png", "end in .npz")])
def test_statistics_take_no_other_files_place(pictures, tmp_path, monkeypatch, name, message):
    photo = (pictures / "reference" / "0.png").read_bytes()
    (tmp_path / name).write_bytes(photo)
    with pytest.raises(UserError, match=message):
        run(monkeypatch, "--restored", pictures / "reference", "--metrics", "fid", "--save-statistics", tmp_path / name)
    assert (tmp_path / name).read_bytes() == photo


def test_ranks_add_up_the_features_in_the_same_order():
    names = ["fid_192", "clean_fid", "fid_768", "fid", "fid_64"]  # whose order in a set depends on the process
    kept = [(view[0], dim) for view, dim in Networks(names, {}, 2, 1).kept]
    assert kept == [("i", 192), ("c", 2048), ("i", 768), ("i", 2048), ("i", 64)]


def test_the_classifier_sees_a_picture_in_its_middle():
    # The longer side becomes 512, an even number; 256/49 of 98, rounded, is less.
    picture = np.random.default_rng(0).integers(0, 256, (49, 98, 3), np.uint8)
    picture = np.maximum(picture, picture[:, ::-1])
    seen = views.for_resnet(picture)
    assert np.abs(seen - seen[:, ::-1]).max() < 0.02


def test_large_pictures_are_looked_at_few_at_a_time():
    assert list(_groups(range(10), lambda i: 1)) == [list(range(8)), [8, 9]]
    assert list(_groups(range(5), lambda i: 2**19)) == [[0, 1], [2, 3], [4]]
    assert list(_groups(range(3), lambda i: (10, 2**21, 10)[i])) == [[0], [1], [2]]
    assert not list(_groups([], lambda i: 1))


def test_classes_are_those_of_the_network(tmp_path):
    path = tmp_path / "labels.txt"
    path.write_text("\ufeffa b.png 0\nc.png\t999\n", encoding="utf-8")
    assert read_labels(path) == {"a b.png": 0, "c.png": 999}
    for line in ("a.png 1000", "a.png", "a.png x"):
        path.write_text(line)
        with pytest.raises(UserError, match="the number of its class, from 0 to 999"):
            read_labels(path)


def test_accuracy_is_the_share_of_the_classes_that_are_told(pictures, tmp_path, monkeypatch, capsys):
    class Fixed:
        digests = {}

        def __call__(self, pictures):
            return [np.eye(5)[(i + 1) % 5] for i in range(len(pictures))]  # original, sample, sample, original …

    monkeypatch.setitem(views.VIEWS, "resnet50", lambda folder: Fixed())
    (tmp_path / "labels.txt").write_text("0.png 2\n1.png 4\n2.png 3\n")  # told: 2 3, 0 1, 3 4
    arguments = ["--reference", pictures / "reference", "--restored", pictures / "restored", "--metrics", "accuracy"]
    run(monkeypatch, *arguments, "--labels", tmp_path / "labels.txt", "--output", tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text())["accuracy"]["values"] == {"0": 0.5, "1": 0, "2": 0.5}
    with pytest.raises(UserError, match="needs the pictures' classes"):
        run(monkeypatch, *arguments)
    (tmp_path / "labels.txt").write_text("0.png 2\n")
    with pytest.raises(UserError, match="no class for 2 pictures, such as 1"):
        run(monkeypatch, *arguments, "--labels", tmp_path / "labels.txt")


def test_what_is_missing_is_told_with_its_address(tmp_path):
    with pytest.raises(UserError) as told:
        open_weights(["vgg", "lpips_vgg"], tmp_path)
    assert "https://download.pytorch.org/models/vgg16-397923af.pth (SHA-256 397923af…)" in str(told.value)
    assert "lpips/weights/v0.1/vgg.pth" in str(told.value)
    write_pth(tmp_path / PUBLISHED["resnet50"].name, {"conv1.weight": np.zeros((1, 1))})
    runtime.setup("CPU")
    with pytest.raises(UserError, match="it has no tensor .*: it is of another network"):
        views.VIEWS["resnet50"](tmp_path)


def test_metrics_that_lack_something_are_refused(pictures, monkeypatch):
    restored = ["--restored", pictures / "reference", "--metrics"]
    for arguments, message in (([*restored, "psnr"], "psnr needs the originals: --reference FOLDER$"),
                               ([*restored, "fid"], "or --statistics FILE.npz"),
                               ([*restored, "psnr", "--save-statistics", "x.npz"], "such as --metrics fid"),
                               (["--reference", pictures / "reference", *restored, "ssim_between"], "two samples")):
        with pytest.raises(UserError, match=message):
            run(monkeypatch, *arguments)
