"""The pages to look at results and to ask people, and the fool rate of what they answered."""

import base64
import io
import json
import os
import sys

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binomtest
from skimage import data

from palette_ms import evaluate, survey
from palette_ms.errors import UserError
from palette_ms.evaluation.survey import fool_rate, independent, wilson

PHOTO = data.astronaut()[::4, ::4]
KINDS = {"source": 30, "restored": 5, "reference": 0}  # how noisy
NAMES = ["a</script>", "b Infinity", "c"]


@pytest.fixture
def folder(tmp_path):
    """Three pictures: c is restored as it was, and is the best."""
    for kind, level in KINDS.items():
        (tmp_path / kind).mkdir()
        for i, name in enumerate(NAMES):
            noise = np.random.default_rng(i).normal(0, 0 if name == "c" else level * (2 - i), PHOTO.shape)
            path = tmp_path / kind / f"{name.replace('/', '∕')}.png"
            Image.fromarray(np.clip(PHOTO + noise, 0, 255).astype(np.uint8)).save(path)
    return tmp_path


def run(module, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["x", *map(str, arguments)])
    module.main()


def held(path):
    """What a page's script reads."""
    begin, end = '<script type="application/json" id="data">', "</script>"
    text = path.read_text(encoding="utf-8")
    assert "http://" not in text and "https://" not in text and text.count("<script") == 2
    return json.loads(text.split(begin)[1].split(end)[0])


def shown(text):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB")).astype(int)


def test_the_report_is_one_file_with_all_pictures_and_their_values(folder, monkeypatch):
    run(evaluate, monkeypatch, "--reference", folder / "reference", "--restored", folder / "restored", "--source",
        folder / "source", "--page", folder / "p.html", "--output", folder / "r.json", "--metrics", "ab_error,psnr")
    report, made = json.loads((folder / "r.json").read_text()), held(folder / "p.html")
    assert made["kinds"] == ["source", "restored", "target"] and made["lower"].count("ab_error") == 1
    assert made["metrics"] == ["ab_error", "psnr"] and [one["name"] for one in made["pictures"]] == sorted(
        report["psnr"]["values"])
    for one in made["pictures"]:
        values = [report[metric]["values"][one["name"]] for metric in made["metrics"]]
        assert one["values"] == [None if value == np.inf else value for value in values]
        for kind, text in zip(KINDS, one["images"]):
            original = np.asarray(Image.open(folder / kind / f"{one['name']}.png")).astype(int)
            # WebP halves the resolution of colours, and so loses most of their noise.
            difference = (shown(text) - original).reshape(16, 8, 16, 8, 3).mean((1, 3))
            assert np.abs(difference).mean() < 4, kind
        grain = [np.abs(np.diff(shown(text), axis=0)).mean() for text in one["images"]]
        assert one["name"] == "c" or grain == sorted(grain, reverse=True)
    assert made["report"]["psnr"] == {"mean": None, "std": None, "pictures": 3}
    assert made["run"]["versions"]["numpy"] == np.__version__


def test_a_name_of_no_encoding_is_shown_all_the_same(folder, monkeypatch):
    for kind in ("reference", "restored"):
        try:
            (folder / kind / "c.png").rename(folder / kind / os.fsdecode(b"x\xff.png"))
        except OSError:
            pytest.skip("the file system takes no such name")
    run(evaluate, monkeypatch, "--reference", folder / "reference", "--restored", folder / "restored", "--page",
        folder / "r.html")
    assert [picture["name"] for picture in held(folder / "r.html")["pictures"]][-1] == "x?"


def test_a_page_takes_the_place_of_such_a_page_alone(folder, monkeypatch):
    arguments = ["--reference", folder / "reference", "--restored", folder / "restored"]
    for _ in range(2):
        run(evaluate, monkeypatch, *arguments, "--page", folder / "p.html")
    with pytest.raises(UserError, match="is there and no palette_ms survey page"):
        run(survey, monkeypatch, *arguments, "--output", folder / "p.html")
    with pytest.raises(UserError, match="must end in .html"):
        run(survey, monkeypatch, *arguments, "--output", folder / "p.png")
    (folder / "source" / "c.png").unlink()
    with pytest.raises(UserError, match="lacks 1 of the 3 pictures: c"):
        run(evaluate, monkeypatch, *arguments, "--page", folder / "new.html", "--source", folder / "source")
    assert not (folder / "new.html").exists()


def test_a_survey_shows_the_pictures_as_they_are(folder, monkeypatch, capsys):
    run(survey, monkeypatch, "--reference", folder / "reference", "--restored", folder / "restored", "--output",
        folder / "s.html", "--seconds", "2", "--pairs", "2", "--seed", "1")
    made = held(folder / "s.html")
    assert made["seconds"] == 2 and len(made["pairs"]) == 2 and "2 pairs" in capsys.readouterr().out
    for pair in made["pairs"]:
        for kind, place in (("reference", "original"), ("restored", "restored")):
            assert (shown(pair[place]) == np.asarray(Image.open(folder / kind / f"{pair['name']}.png"))).all()


def answers(path, person, fooled, of="x"):
    path.write_text(json.dumps({"person": person, "survey": of, "answers": [
        {"name": f"p{i}", "fooled": bool(one)} for i, one in enumerate(fooled)]}))
    return path


def test_the_fool_rate_is_the_share_of_the_answers(tmp_path, monkeypatch, capsys):
    files = [answers(tmp_path / "a.json", "Ada", [1, 0, 1, 0]), answers(tmp_path / "b.json", "Bo", [1, 0, 0, 0])]
    found = fool_rate(files)
    assert found.rate == 3 / 8 and found.answers == 8 and found.people == {"Ada": (0.5, 4), "Bo": (0.25, 4)}
    assert found.pictures == {"p0": 1, "p1": 0, "p2": 0.5, "p3": 0}
    expected = binomtest(3, 8).proportion_ci(0.95, "wilson")  # they differ by less than chance between equals
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-6)
    run(survey, monkeypatch, "--answers", *files)
    assert capsys.readouterr().out.startswith("fool rate 37.5%, 95 % confidence 13.7% to 69.4%: 8 answers, people: 2")


@pytest.mark.parametrize("hits, number", [(0, 10), (3, 7), (50, 50), (211, 600)])
def test_the_interval_is_wilsons(hits, number):
    expected = binomtest(hits, number).proportion_ci(0.95, "wilson")
    assert wilson(hits / number, number) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_people_who_always_say_the_same_count_once():
    # Of M people who always or never are fooled, the variance is that of M − 1 answers.
    assert independent(np.array([1.0, 1, 0, 0]), np.array([10] * 4)) == pytest.approx(3)
    assert independent(np.array([0.5, 0.5, 0.5]), np.array([10, 20, 30])) == 60


def test_answers_that_do_not_belong_together_are_refused(tmp_path):
    first = answers(tmp_path / "a.json", "Ada", [1])
    (tmp_path / "no.json").write_text('{"person": "x"}')
    for other, message in ((answers(tmp_path / "b.json", "Ada", [0]), "Ada comes twice"),
                           (answers(tmp_path / "c.json", "Bo", [0], "y"), "answers another page"),
                           (answers(tmp_path / "d.json", "Bo", []), "holds no answers"),
                           (tmp_path / "no.json", "holds no answers, as the page saves them"),
                           (tmp_path / "nowhere.json", "cannot read")):
        with pytest.raises(UserError, match=message):
            fool_rate([first, other])
