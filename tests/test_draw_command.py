from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from test_cli import Run, files_below, run
from test_writing import saved_array

from onnxfeat import FeatureExtractor, draw_command, normalize, save_pictures
from onnxfeat.drawing.styles import Style

__all__ = ["run"]  # the fixture

LAYERS = ["conv2d", "max_pooling2d", "conv2d_1", "max_pooling2d_1", "conv2d_2", "max_pooling2d_2"]


@pytest.fixture
def model(models: Path) -> Path:
    return models / "shapes_reference_layers.onnx"


@pytest.fixture
def photos(models: Path, tmp_path: Path) -> Path:
    """Three pictures and a note in a folder, whose names sort as people count."""
    folder = tmp_path / "photos"
    folder.mkdir()
    with Image.open(models / "pictures/chelsea.png") as image:
        image.resize((64, 48)).save(folder / "cat_10.png")
        image.resize((64, 48)).rotate(90).save(folder / "cat_9.png")
        image.resize((64, 48)).rotate(180).save(folder / "cat_9b.png")
    (folder / "notes.txt").write_text("no picture")
    return folder


def record_of(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    return record


def pixels(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image)


def test_a_folder_is_drawn_picture_by_picture_as_people_count(
    run: Run, model: Path, photos: Path, tmp_path: Path
) -> None:
    code, out, _ = run("draw", model, photos, "-o", tmp_path / "maps", "--layers", "0:2")
    assert code == 0
    record = record_of(tmp_path / "maps")
    assert [picture["folder"] for picture in record["pictures"]] == ["cat_9", "cat_9b", "cat_10"]
    assert len(out.splitlines()) == 6
    assert all(Path(line).exists() for line in out.splitlines())


def test_a_pattern_is_drawn_like_the_files_that_it_matches(run: Run, model: Path, photos: Path, tmp_path: Path) -> None:
    assert run("draw", model, photos / "cat_9*.png", "-o", tmp_path / "a", "--layers", "0")[0] == 0
    assert (
        run("draw", model, photos / "cat_9.png", photos / "cat_9b.png", "-o", tmp_path / "b", "--layers", "0")[0] == 0
    )
    one, other = (set(files_below(tmp_path / folder)) for folder in "ab")
    assert one == other == {"cat_9/01-conv2d.png", "cat_9b/01-conv2d.png", "run.json"}
    for name in one - {"run.json"}:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize("name", ["empty", "*.gif"])
def test_nothing_to_draw_is_one_sentence(run: Run, model: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    code, out, err = run("draw", model, tmp_path / name, "-o", tmp_path / "maps")
    assert (code, out) == (1, "")
    assert ("there is no picture in the folder" in err) or ("matches as a pattern" in err)
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "maps").exists()


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        ([], {}),
        (["--normalize", "percentile", "--percentiles", "2,98"], {"normalize": "percentile", "percentiles": [2, 98]}),
        (["--scale-over", "layer", "--normalize", "symmetric"], {"scale_over": "layer", "normalize": "symmetric"}),
        (["--arrange", "grid", "--zoom", "2"], {"arrange": "grid", "zoom": 2}),
        (["--order", "variance", "--top", "3", "--dead", "omit"], {"order": "variance", "top": 3, "dead": "omit"}),
        (["--channels", "1,4:6,1"], {"channels": [1, 4, 5]}),
        (["--reduce", "max", "--colormap", "magma"], {"reduce": "max", "colormap": "magma"}),
        (["--bare", "--max-belt", "99"], {"frame": False, "max_belt": 99}),
        (["--hidpi"], {"hidpi": True}),
    ],
)
def test_every_option_is_a_choice_of_the_style_and_is_told(
    run: Run, model: Path, photos: Path, tmp_path: Path, options: list[str], changed: dict[str, Any]
) -> None:
    code, _, err = run("draw", model, photos / "cat_9.png", "-o", tmp_path / "maps", "--layers", "0,1", *options)
    assert (code, "Traceback" in err) == (0, False)
    assert record_of(tmp_path / "maps")["style"] == {**json.loads(json.dumps(Style().to_json())), **changed}


def test_a_scale_over_the_batch_is_told_alike_for_all_pictures(
    run: Run, model: Path, photos: Path, tmp_path: Path
) -> None:
    options = ("--layers", "0", "--normalize", "minmax", "--bare")
    assert run("draw", model, photos, "-o", tmp_path / "maps", "--scale-over", "batch", *options)[0] == 0
    record = record_of(tmp_path / "maps")
    scales = [picture["layers"][0]["scale"] for picture in record["pictures"]]
    assert scales[0] == scales[1] == scales[2]
    features = FeatureExtractor(model, layers="0", provider="cpu")([photos / f"cat_{n}.png" for n in ("9", "9b", "10")])
    levels = normalize(features["conv2d"], "minmax", scale_over="batch")
    for picture, expected in zip(record["pictures"], levels, strict=True):
        drawn = pixels(tmp_path / "maps" / picture["folder"] / "01-conv2d.png")
        # Pictures that are computed one by one differ in the last digits from a batch of three.
        assert np.abs(drawn.astype(int) - np.concatenate(list(expected), axis=1)).max() <= 1


def test_one_sheet_holds_all_layers_of_all_pictures(run: Run, model: Path, photos: Path, tmp_path: Path) -> None:
    code, out, _ = run("draw", model, photos, "-o", tmp_path / "maps", "--arrange", "sheet")
    assert (code, out) == (0, f"{tmp_path / 'maps' / 'sheet.png'}\n")
    assert files_below(tmp_path / "maps") == {"sheet.png", "run.json"}
    record = record_of(tmp_path / "maps")
    assert [[layer["layer"] for layer in picture["layers"]] for picture in record["pictures"]] == [LAYERS] * 3
    three = pixels(tmp_path / "maps/sheet.png").shape[0]
    assert run("draw", model, photos / "cat_9.png", "-o", tmp_path / "one", "--arrange", "sheet")[0] == 0
    assert three > 2 * pixels(tmp_path / "one/sheet.png").shape[0]


@pytest.mark.parametrize("format_", ["png", "webp", "svg", "pdf"])
def test_each_format_gives_files_of_its_kind(run: Run, model: Path, photos: Path, tmp_path: Path, format_: str) -> None:
    command = ("draw", model, photos / "cat_9.png", "-o", tmp_path / "maps", "--layers", "0:2", "--format", format_)
    code, out, _ = run(*command)
    assert code == 0
    assert files_below(tmp_path / "maps") == {f"01-conv2d.{format_}", f"02-max_pooling2d.{format_}", "run.json"}
    begins = {"png": b"\x89PNG", "webp": b"RIFF", "svg": b"<?xml", "pdf": b"%PDF"}[format_]
    assert all(Path(line).read_bytes().startswith(begins) for line in out.splitlines())


@pytest.mark.parametrize("format_", ["npy", "npz"])
def test_saved_arrays_are_the_values_that_python_gives(
    run: Run, model: Path, photos: Path, tmp_path: Path, format_: str
) -> None:
    command = ("draw", model, photos / "cat_9.png", "-o", tmp_path / "maps", "--save-arrays", format_)
    code, out, _ = run(*command)
    assert code == 0
    features = FeatureExtractor(model, provider="cpu")(photos / "cat_9.png")
    files = [layer["array"] for layer in record_of(tmp_path / "maps")["pictures"][0]["layers"]]
    assert {str(tmp_path / "maps" / file) for file in files} <= set(out.splitlines())
    for file, (name, feature_map) in zip(files, features.items(), strict=True):
        np.testing.assert_array_equal(saved_array(tmp_path / "maps" / file, name), feature_map.array)


def test_run_json_tells_enough_to_draw_the_same_again(run: Run, model: Path, photos: Path, tmp_path: Path) -> None:
    options = ["--normalize", "log", "--scale-over", "batch", "--order", "magnitude", "--top", "5", "--layers", "1,0"]
    assert run("draw", model, photos, "-o", tmp_path / "a", *options)[0] == 0
    told = record_of(tmp_path / "a")
    layers = ",".join(layer["layer"] for layer in told["pictures"][0]["layers"])
    files = [picture["file"] for picture in told["pictures"]]
    extractor = FeatureExtractor(model, layers=layers, provider="cpu")
    save_pictures(extractor.stream(files), tmp_path / "b", format=told["format"], **told["style"])
    names = files_below(tmp_path / "a")
    assert names == files_below(tmp_path / "b")
    for name in names - {"run.json"}:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--reduce", "mean", "--top", "3"], "makes one picture of all channels, so 'top' has no effect"),
        (["--overlay", "--order", "variance"], "lays one picture of a layer over the photograph, so 'order' has no"),
        (["--arrange", "row"], "'row' is not one of"),
        (["--zoom", "0"], "zoom is 0, and a whole number is wanted"),
        (["--channels", "3:x"], "'3:x' is neither a number nor a range such as 8:16"),
    ],
)
def test_options_that_contradict_each_other_are_wrong_usage(
    run: Run, model: Path, photos: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    code, out, err = run("draw", model, photos, "-o", tmp_path / "maps", *options)
    assert (code, out) == (2, "")
    assert message in " ".join(err.replace("│", " ").split())
    assert not (tmp_path / "maps").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--channels", "99"], "channel 99 was asked for, the layer has"),
        (["--format", "svg", "--arrange", "sheet"], "svg is for single layers, and not for a sheet"),
    ],
)
def test_what_can_not_be_drawn_is_one_sentence_and_leaves_nothing(
    run: Run, model: Path, photos: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    code, out, err = run("draw", model, photos / "cat_9.png", "-o", tmp_path / "maps", *options)
    assert (code, out) == (1, "")
    assert message in err
    assert not (tmp_path / "maps").exists()


@pytest.mark.parametrize("options", [[], ["--scale-over", "batch"], ["--arrange", "sheet"], ["--max-bytes", "600KB"]])
def test_the_bar_ends_where_the_work_does(
    run: Run, model: Path, photos: Path, tmp_path: Path, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    totals, steps = [], []

    @contextlib.contextmanager
    def counting(_quiet: bool, _title: str, total: int | None) -> Any:
        totals.append(total)
        yield lambda: steps.append(1)

    monkeypatch.setattr(draw_command, "progress", counting)
    assert run("draw", model, photos, "-o", tmp_path / "maps", *options)[0] == 0
    assert totals == [len(steps)]


def test_an_overlay_is_told_and_drawn_over_the_photograph(run: Run, models: Path, photos: Path, tmp_path: Path) -> None:
    command = ("draw", models / "shapes_small.onnx", photos / "cat_9.png", "-o", tmp_path / "maps", "--layers", "0,1")
    assert run(*command, "--overlay")[0] == 0
    assert record_of(tmp_path / "maps")["style"]["overlay"] is True
    assert files_below(tmp_path / "maps") == {"01-conv_1.png", "02-pool_1.png", "run.json"}


def test_of_a_gif_that_is_not_animated_the_first_frame_is_drawn_and_that_is_said(
    run: Run, model: Path, tmp_path: Path
) -> None:
    shades = [Image.new("RGB", (40, 40), (level, 0, 0)) for level in (0, 120, 250)]
    moving, still = tmp_path / "moving.gif", tmp_path / "still.gif"
    shades[0].save(moving, save_all=True, append_images=shades[1:])
    shades[1].save(still)
    code, _, err = run("draw", model, moving, still, "-o", tmp_path / "maps", "--layers", "0")
    assert code == 0
    assert "of several frames the first is drawn, --animate draws all: moving.gif\n" in err
    code, _, err = run("draw", model, still, "-o", tmp_path / "one", "--layers", "0")
    assert "frames" not in err


def test_a_video_without_animate_says_what_to_add(run: Run, model: Path, tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"any")
    code, _, err = run("draw", model, tmp_path / "clip.mp4", "-o", tmp_path / "maps")
    assert code == 1
    assert "clip.mp4 is a video: add --animate to draw its frames" in err


def test_what_an_animation_was_made_of_is_told(run: Run, model: Path, tmp_path: Path) -> None:
    moving = tmp_path / "moving.gif"
    shades = [Image.new("RGB", (40, 40), (level, 0, 0)) for level in (0, 120, 250)]
    shades[0].save(moving, save_all=True, append_images=shades[1:])
    assert run("draw", model, moving, "-o", tmp_path / "maps", "--layers", "0", "--animate")[0] == 0
    record = json.loads((tmp_path / "maps" / "run.json").read_text())
    assert record["sources"] == [{"file": str(moving), "sha256": hashlib.sha256(moving.read_bytes()).hexdigest()}]
    assert record["folder"] == str(Path.cwd())
    assert len(record["frames"]) == 3
