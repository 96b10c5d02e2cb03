from __future__ import annotations

import base64
import contextlib
import html
import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image
from test_cli import Run, files_below, run
from test_draw_command import photos
from test_repetition import saved

from onnxfeat import FeatureExtractor, ModelError, Style, check, report_command
from onnxfeat.findings import Change
from onnxfeat.report import pages
from onnxfeat.running import proof
from onnxfeat.verdicts import verdict

__all__ = ["photos", "run"]  # the fixtures


@pytest.fixture
def model(models: Path) -> Path:
    return models / "shapes_small.onnx"


@pytest.fixture
def cat(models: Path) -> Path:
    return models / "pictures/chelsea.png"


def data_of(page: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text_of(page), re.DOTALL)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def test_a_report_is_one_page_with_every_layer(run: Run, model: Path, cat: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    code, out, err = run("report", model, cat, "-o", page)
    assert (code, out) == (0, f"{page}\n")
    assert files_below(tmp_path) == {"report.html"}
    features = FeatureExtractor(model, provider="cpu")(cat)
    assert [layer["name"] for layer in data_of(page)["layers"]] == list(features)
    channels = [channel for feature_map in features.values() for channel in feature_map.array[0]]
    dead = sum(not channel.any() for channel in channels)
    lines = err.splitlines()
    assert lines[0].startswith("ran on CPU")
    assert "preprocessing (from model): rgb" in err
    assert 0 < dead < len(channels)
    shown = f"layers shown: {len(features)}, channels: {len(channels)}, of them 0 everywhere: {dead}"
    assert f"{shown}; the page has {page.stat().st_size:,} bytes\n" in err


def test_the_page_tells_what_the_check_found_and_so_does_stderr(
    run: Run, model: Path, cat: Path, tmp_path: Path
) -> None:
    code, out, err = run("report", model, cat, "-o", tmp_path / "report.html", "--json")
    assert code == 0
    expected = [line for line in proof_lines(model, cat) if "largest" not in line]
    assert len(expected) > 1
    for line in expected:
        assert line in err
        assert line in html.unescape(text_of(tmp_path / "report.html"))
    told = json.loads(out)["check"]
    assert told["passed"] is True
    assert set(expected) <= set(told["verdict"])


def proof_lines(model: Path, picture: Path) -> list[str]:
    return list(verdict(check(model, picture, provider="cpu")))


def test_without_a_check_nothing_is_claimed(run: Run, model: Path, cat: Path, tmp_path: Path) -> None:
    code, out, err = run("report", model, cat, "-o", tmp_path / "report.html", "--no-check", "--json")
    assert code == 0
    assert json.loads(out)["check"] == {"passed": None, "verdict": []}
    assert "equal to the bit" not in err + text_of(tmp_path / "report.html")


def test_a_check_that_fails_is_told_on_the_page_and_by_the_exit_code(
    run: Run, model: Path, cat: Path, tmp_path: Path
) -> None:
    changed = onnx.load(model)
    weight = next(x for x in changed.graph.initializer if "pointwise_3" in x.name)
    values = onnx.numpy_helper.to_array(weight).copy()
    values.flat[0] += 0.5
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(changed, tmp_path / "changed.onnx")
    page = tmp_path / "report.html"
    code, out, err = run("report", tmp_path / "changed.onnx", cat, "-o", page)
    assert (code, out) == (1, f"{page}\n")
    assert "weights changed: 1 of 15 arrays" in err
    assert "weights changed: 1 of 15 arrays" in text_of(page)
    assert "Traceback" not in err


def test_a_check_that_can_not_be_made_does_not_stop_the_report(
    run: Run, model: Path, cat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise ModelError("the untouched model wants <more> memory: give it some")

    monkeypatch.setattr(proof, "check", failing)
    page = tmp_path / "report.html"
    code, out, err = run("report", model, cat, "-o", page, "--json")
    sentence = "could not be checked: the untouched model wants <more> memory: give it some"
    assert code == 0
    assert f"{sentence}\n" in err
    assert sentence in html.unescape(text_of(page))
    assert json.loads(out)["check"] == {"passed": None, "verdict": [sentence]}


def test_the_first_picture_is_what_is_checked(
    run: Run, model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def noting(*arguments: Any, **settings: Any) -> Any:
        asked.append((arguments, settings["preprocessing"], settings["layers"]))
        return check(*arguments, **settings)

    monkeypatch.setattr(proof, "check", noting)
    options = ("--scale", "1/127.5", "--layers", "0,1")
    assert run("report", model, photos, "-o", tmp_path / "report.html", *options)[0] == 0
    assert asked == [((model, photos / "cat_9.png"), {"scale": 1 / 127.5}, "0,1")]


@pytest.mark.parametrize("options", [(), ("--no-check",)])
def test_what_exists_is_left_as_it_is_and_told_before_the_work(
    run: Run, model: Path, cat: Path, tmp_path: Path, options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "report.html"
    page.write_text("mine")
    monkeypatch.setattr(FeatureExtractor, "__init__", None)  # which would fail if it were called
    code, out, err = run("report", model, cat, "-o", page, *options)
    assert (code, out) == (1, "")
    assert "report.html exists already and is left as it is" in err
    assert page.read_text() == "mine"


@pytest.mark.parametrize("which", ["model", "picture"])
def test_a_page_never_takes_the_place_of_what_it_is_made_from(
    run: Run, model: Path, cat: Path, tmp_path: Path, which: str
) -> None:
    own = {"model": tmp_path / "own.onnx", "picture": tmp_path / "own.png"}
    own["model"].write_bytes(model.read_bytes())
    own["picture"].write_bytes(cat.read_bytes())
    before = own[which].read_bytes()
    code, _, err = run("report", own["model"], own["picture"], "-o", own[which], "--overwrite", "--no-check")
    assert code == 1
    assert "is what the page is made from: give the page a name of its own" in err
    assert own[which].read_bytes() == before


def test_what_exists_is_replaced_when_that_is_allowed(run: Run, model: Path, cat: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text("mine")
    assert run("report", model, cat, "-o", page, "--overwrite", "--layers", "0", "-q") == (0, f"{page}\n", "")
    assert text_of(page) != "mine"


@pytest.mark.parametrize(
    ("options", "style"),
    [
        ((), Style()),
        (("--normalize", "percentile", "--percentiles", "2,98"), Style(normalize="percentile", percentiles=(2, 98))),
        (("--normalize", "symmetric", "--scale-over", "batch"), Style(normalize="symmetric", scale_over="batch")),
        (("--colormap", "magma", "--order", "similarity"), Style(colormap="magma", order="similarity")),
        (("--order", "variance", "--top", "5", "--dead", "omit"), Style(order="variance", top=5, dead="omit")),
    ],
)
def test_options_say_what_the_page_shows_at_first(
    run: Run, model: Path, cat: Path, tmp_path: Path, options: tuple[str, ...], style: Style
) -> None:
    command = ("report", model, cat, "-o", tmp_path / "report.html", "--layers", "0,1", "--no-check", "--json")
    code, out, _ = run(*command, *options)
    assert code == 0
    told = json.loads(out)["style"]
    assert told == {name: json.loads(json.dumps(style.to_json()))[name] for name in told}
    assert {"normalize", "scale_over", "colormap", "order", "top", "dead"} <= set(told)
    assert data_of(tmp_path / "report.html")["style"]["colors"] == style.colors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--percentiles", "1,99"), "they are the ends of --normalize percentile"),
        (("--colormap", "viridi"), "viridi"),
        (("--top", "0"), "top is 0, and a whole number is wanted"),
        (("--arrange", "grid"), "No such option"),
    ],
)
def test_what_a_page_can_not_show_is_wrong_usage(
    run: Run, model: Path, cat: Path, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    code, out, err = run("report", model, cat, "-o", tmp_path / "report.html", *options)
    assert (code, out) == (2, "")
    assert message in " ".join(err.replace("│", " ").split())
    assert files_below(tmp_path) == set()


def test_several_pictures_are_on_one_page(run: Run, model: Path, photos: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    code, _, err = run("report", model, photos, "-o", page, "--no-check")
    assert code == 0
    names = [photograph["name"] for photograph in data_of(page)["photographs"]]
    assert names == ["cat_9.png", "cat_9b.png", "cat_10.png"]
    assert "layers shown: 8 of 3 pictures, " in err


@pytest.mark.parametrize("options", [(), ("--scale-over", "batch"), ("--max-bytes", "600KB")])
def test_the_bar_ends_where_the_work_does(
    run: Run, model: Path, photos: Path, tmp_path: Path, options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    totals, steps = [], []

    @contextlib.contextmanager
    def counting(_quiet: bool, _title: str, total: int | None) -> Any:
        totals.append(total)
        yield lambda: steps.append(1)

    monkeypatch.setattr(report_command, "progress", counting)
    assert run("report", model, photos, "-o", tmp_path / "report.html", "--no-check", *options)[0] == 0
    assert totals == [len(steps)]


def test_passes_are_told_and_give_the_same_page(run: Run, model: Path, cat: Path, tmp_path: Path) -> None:
    assert run("report", model, cat, "-o", tmp_path / "a.html", "--no-check")[0] == 0
    code, _, err = run("report", model, cat, "-o", tmp_path / "b.html", "--no-check", "--max-bytes", "600KB")
    assert code == 0
    assert "drawn in 2 passes within 600 KB" in err
    one, other = (data_of(tmp_path / name)["layers"] for name in ("a.html", "b.html"))
    assert [layer["name"] for layer in one] == [layer["name"] for layer in other]
    for here, there in zip(one, other, strict=True):
        low, again = (np.frombuffer(base64.b64decode(layer["views"][0]["low"]), "<f4") for layer in (here, there))
        np.testing.assert_allclose(low, again, atol=1e-4)


def test_a_page_that_would_be_too_large_is_coarser_and_that_is_told(
    run: Run, model: Path, cat: Path, tmp_path: Path
) -> None:
    sizes = []
    for name, size in (("a.html", "48MB"), ("b.html", "60KB")):
        code, out, err = run("report", model, cat, "-o", tmp_path / name, "--no-check", "--page-size", size, "--json")
        assert code == 0
        coarse = {layer["layer"] for layer in json.loads(out)["layers"] if layer["cells_per_pixel"] > 1}
        assert bool(coarse) == (name == "b.html") == ("shown coarser, each pixel the mean of 2 cells along" in err)
        sizes.append((tmp_path / name).stat().st_size)
    assert sizes[1] < sizes[0]


def test_a_page_size_that_is_none_is_refused_before_the_work(
    run: Run, model: Path, cat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FeatureExtractor, "__init__", None)
    code, out, err = run("report", model, cat, "-o", tmp_path / "report.html", "--page-size", "large")
    assert (code, out) == (1, "")
    assert "'large' is no number of bytes" in err


def test_of_a_gif_that_moves_the_first_frame_is_shown_and_that_is_said(run: Run, model: Path, tmp_path: Path) -> None:
    shades = [Image.new("RGB", (40, 40), (level, 0, 0)) for level in (0, 120, 250)]
    shades[0].save(tmp_path / "moving.gif", save_all=True, append_images=shades[1:])
    command = ("report", model, tmp_path / "moving.gif", "-o", tmp_path / "report.html", "--layers", "0", "--no-check")
    code, _, err = run(*command)
    assert code == 0
    assert "of several frames the first is shown, `onnxfeat draw --animate` draws all: moving.gif\n" in err


def test_a_video_says_which_command_shows_it(run: Run, model: Path, tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"any")
    code, _, err = run("report", model, tmp_path / "clip.mp4", "-o", tmp_path / "report.html")
    assert code == 1
    assert "clip.mp4 is a video: see its frames with `onnxfeat draw --animate`, or pass a picture" in err
    assert len(err.splitlines()) == 1


def test_what_is_wrong_with_a_picture_is_one_sentence_and_leaves_nothing(run: Run, model: Path, tmp_path: Path) -> None:
    code, out, err = run("report", model, tmp_path / "none.png", "-o", tmp_path / "report.html")
    assert (code, out) == (1, "")
    assert "there is no file" in err
    assert len(err.splitlines()) == 1
    assert files_below(tmp_path) == set()


def test_the_command_on_the_page_draws_the_very_values_that_the_page_shows(
    run: Run, model: Path, cat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my model.onnx").write_bytes(model.read_bytes())
    options = ("--preprocess", "tf", "--interpolation", "bicubic", "--layers", "conv_4", "--no-check")
    assert run("report", "my model.onnx", cat, "-o", "report.html", *options)[0] == 0
    text = html.unescape(text_of(tmp_path / "report.html"))
    command = next(line for line in re.split(r"[<>\n]", text) if line.startswith("onnxfeat draw 'my model.onnx' "))
    assert run(*shlex.split(command)[1:], "--save-arrays", "npy", "-q")[0] == 0
    array = np.load(tmp_path / "maps/conv_4/01-conv_4.npy")
    view = data_of(tmp_path / "report.html")["layers"][0]["views"][0]
    for name, found in (("low", array.min((0, 2, 3))), ("high", array.max((0, 2, 3)))):
        np.testing.assert_array_equal(np.frombuffer(base64.b64decode(view[name]), "<f4"), found)


def test_a_preprocessed_array_is_told_and_repeated_by_its_path(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("ready.npy", np.random.default_rng(1).random((1, 64, 64, 3), np.float32))
    code, _, err = run("report", model, "ready.npy", "-o", "report.html", "--layers", "0", "--max-bytes", "2GB")
    assert code == 0
    assert "taken as preprocessed already: ready.npy" in err
    assert "preprocessing (from" not in err
    assert re.search(r"onnxfeat draw \S+ ready\.npy .* --max-bytes 2GB", text_of(tmp_path / "report.html"))


def test_values_of_other_inputs_are_repeated(
    run: Run, cat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    graph = (
        "net (float[N, 3, H, W] x, float gain, float[1, 3, 1, 1] shift, float[4, 3, 3, 3] w) => (float[N, 4, A, B] y) "
        "{ a = Mul(x, gain) b = Add(a, shift) y = Conv(b, w) }"
    )
    saved(graph, tmp_path / "several.onnx")
    np.save("shift.npy", np.ones((1, 3, 1, 1), np.float32))
    options = ("--input", "gain=0.5", "--input", "shift=shift.npy", "--size", "20x30")
    code, _, err = run("report", "several.onnx", cat, "-o", "report.html", *options)
    assert (code, "could not be checked" in err) == (0, False)
    text = html.unescape(text_of(tmp_path / "report.html"))
    assert "--input gain=0.5 --input shift=shift.npy --size 20x30 " in text
    assert 'inputs={"gain": 0.5, "shift": "shift.npy"}' in text


def test_the_report_of_the_command_is_that_of_python(run: Run, model: Path, cat: Path, tmp_path: Path) -> None:
    options = ("--no-check", "--provider", "cpu", "--order", "variance")
    assert run("report", model, cat, "-o", tmp_path / "a.html", *options)[0] == 0
    extractor = FeatureExtractor(model, provider="cpu")
    facts = {"model_path": str(model)}
    pages.write_report(extractor.stream(cat), tmp_path / "b.html", order="variance", facts=facts)
    assert text_of(tmp_path / "a.html") == text_of(tmp_path / "b.html")


def test_draw_and_report_prove_with_the_same_words(run: Run, model: Path, cat: Path, tmp_path: Path) -> None:
    told = []
    for words in (("draw", "--check", "-o", tmp_path / "maps"), ("report", "-o", tmp_path / "report.html")):
        code, _, err = run(words[0], model, cat, *words[1:])
        assert code == 0
        told.append(err[err.index("watching moves" if "watching moves" in err else "the model's outputs") :])
    assert told[0] == told[1]


def test_moving_more_than_rounding_fails_whatever_else_is_right(
    run: Run, model: Path, cat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = check(model, cat, provider="cpu")
    moved = replace(found, layers=(Change(name="conv_4", largest=1.0, relative=0.5, equal=False),))
    monkeypatch.setattr(report_command, "proven", lambda *_, **__: moved)
    code, _, err = run("report", model, cat, "-o", tmp_path / "report.html", "--layers", "0")
    assert code == 1
    assert "5.0e-01 of the range, in conv_4: more than rounding" in err
    assert "in conv_4: more than rounding" in text_of(tmp_path / "report.html")
