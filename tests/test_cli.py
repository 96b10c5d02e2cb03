from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from PIL import Image

from onnxfeat import __version__, belt, list_layers
from onnxfeat.cli import app, main
from onnxfeat.metadata import read_document
from onnxfeat.running.extractor import FeatureExtractor


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("TERMINAL_WIDTH", "200")
    return Run(capsys)


class Run:
    """Call the command line in this process; return exit code, stdout and stderr."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exit_info:
            main([str(argument) for argument in arguments])
        captured = self._capsys.readouterr()
        code = exit_info.value.code
        return (code if isinstance(code, int) else 0), captured.out, captured.err


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_version_is_printed_on_stdout(run: Run) -> None:
    assert run("--version") == (0, f"onnxfeat {__version__}\n", "")


def test_the_module_runs_as_a_program() -> None:
    result = subprocess.run([sys.executable, "-m", "onnxfeat", "--version"], capture_output=True, text=True, check=True)
    assert result.stdout == f"onnxfeat {__version__}\n"


def test_every_command_has_help_with_an_example(run: Run) -> None:
    names = [command.name for command in app.registered_commands]
    assert names == [None, "layers", None, None, None, None]  # the others are called as their functions are
    for command in app.registered_commands:
        name = command.name or (command.callback.__name__ if command.callback else "")
        code, out, _ = run(name, "--help")
        assert code == 0
        assert f"Example: onnxfeat {name} " in out


def test_no_command_prints_the_help_and_is_wrong_usage(run: Run) -> None:
    code, out, err = run()
    assert code == 2
    assert "Usage" in out + err


# draw


def test_draw_writes_one_picture_a_layer_and_run_json(run: Run, models: Path, tmp_path: Path) -> None:
    code, out, err = run(
        "draw", models / "shapes_reference_layers.onnx", models / "pictures/chelsea.png", "-o", tmp_path / "maps"
    )
    names = ["conv2d", "max_pooling2d", "conv2d_1", "max_pooling2d_1", "conv2d_2", "max_pooling2d_2"]
    expected = [f"{number:02}-{name}.png" for number, name in enumerate(names, start=1)]
    assert code == 0
    assert out.splitlines() == [str(tmp_path / "maps" / name) for name in expected]
    assert files_below(tmp_path / "maps") == {*expected, "run.json"}
    assert "CPU" in err


def test_drawn_pixels_are_the_gray_levels_of_the_belt(run: Run, models: Path, tmp_path: Path) -> None:
    model, picture = models / "shapes_reference_layers.onnx", models / "pictures/chelsea.png"
    assert run("draw", model, picture, "-o", tmp_path / "maps", "--bare", "-q")[0] == 0
    features = FeatureExtractor(model, provider="cpu")(picture)
    for number, (name, feature_map) in enumerate(features.items(), start=1):
        with Image.open(tmp_path / "maps" / f"{number:02}-{name}.png") as image:
            np.testing.assert_array_equal(np.asarray(image), belt(feature_map))


def test_drawing_from_the_readme_gives_the_pictures_of_the_readme(run: Run, models: Path, tmp_path: Path) -> None:
    model, picture = models / "shapes_reference_layers.onnx", models / "pictures/chelsea.png"
    assert run("draw", model, picture, "-o", tmp_path / "maps")[0] == 0
    shown = sorted(path for path in (models / "maps").iterdir() if path.suffix == ".png")
    shown = [path for path in shown if "overlay" not in path.name and path.name != "report.png"]
    assert len(shown) == 2
    for path in shown:
        with Image.open(path) as committed, Image.open(tmp_path / "maps" / path.name) as drawn:
            assert committed.size == drawn.size
            difference = np.abs(np.asarray(committed.convert("RGB"), int) - np.asarray(drawn.convert("RGB"), int))
        assert (difference > 8).mean() < 0.02  # another Pillow may set letters otherwise


def test_draw_gives_each_of_several_pictures_a_folder(run: Run, models: Path, tmp_path: Path) -> None:
    photograph = models / "pictures/chelsea.png"
    other = tmp_path / "other.jpg"
    Image.new("RGB", (40, 30), "red").save(other)
    code, out, _ = run(
        "draw", models / "shapes_small.onnx", photograph, other, "-o", tmp_path / "maps", "--layers", "0,1"
    )
    assert code == 0
    pictures = {f"{folder}/{name}" for folder in ("chelsea", "other") for name in ("01-conv_1.png", "02-pool_1.png")}
    assert files_below(tmp_path / "maps") == {*pictures, "run.json"}
    assert len(out.splitlines()) == 4


def test_draw_is_silent_on_stderr_when_quiet(run: Run, models: Path, tmp_path: Path) -> None:
    code, _, err = run(
        "draw", models / "shapes_small.onnx", models / "pictures/chelsea.png", "-o", tmp_path / "maps", "--quiet"
    )
    assert (code, err) == (0, "")


def test_draw_prints_the_run_as_json(run: Run, models: Path, tmp_path: Path) -> None:
    code, out, _ = run(
        "draw", models / "shapes_small.onnx", models / "pictures/chelsea.png", "-o", tmp_path / "maps", "--json"
    )
    document = json.loads(out)
    assert code == 0
    assert document["schema_version"] == 1
    assert document["provider"]["got"] == "CPUExecutionProvider"
    assert document == json.loads((tmp_path / "maps" / "run.json").read_text(encoding="utf-8"))


def test_draw_says_which_preprocessing_was_used_and_who_said_so(run: Run, models: Path, tmp_path: Path) -> None:
    _, _, err = run(
        "draw", models / "shapes_small.onnx", models / "pictures/chelsea.png", "-o", tmp_path / "a",
        "--scale", "1/127.5", "--mean", "1",
    )  # fmt: skip
    assert "preprocessing (from model, scale and mean from the caller)" in err
    assert "times 0.00784314, minus 1," in err


def test_draw_says_what_it_assumed_for_a_model_that_carries_nothing(run: Run, models: Path, tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        net (float[N, 3, 16, 16] x, float[4, 3, 3, 3] w) => (float[N, 4, 14, 14] y) { y = Conv(x, w) }"""
    )
    weight = onnx.numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float32), "w")
    model.graph.initializer.append(weight)
    onnx.save(model, tmp_path / "bare.onnx")
    code, _, err = run("draw", tmp_path / "bare.onnx", models / "pictures/chelsea.png", "-o", tmp_path / "maps")
    assert code == 0
    assert "preprocessing (from default): rgb, the input's size bilinear, times 0.00392157" in err


def test_draw_says_that_a_wide_layer_became_a_grid(run: Run, tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        net (float[N, 3, 16, 16] x, float[2048, 3, 3, 3] w) => (float[N, 2048, 14, 14] y) { y = Conv(x, w) }"""
    )
    weight = np.random.default_rng(0).normal(size=(2048, 3, 3, 3)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    onnx.save(model, tmp_path / "wide.onnx")
    Image.effect_noise((16, 16), 60).convert("RGB").save(tmp_path / "noise.png")
    code, out, err = run("draw", tmp_path / "wide.onnx", tmp_path / "noise.png", "-o", tmp_path / "maps")
    assert code == 0
    assert "too wide for one row, drawn as grids: conv_0" in err
    with Image.open(out.strip()) as image:
        assert max(image.size) <= 4096


def test_draw_shows_a_progress_bar_on_a_terminal_only(
    run: Run, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("draw", models / "shapes_small.onnx", models / "pictures/chelsea.png")
    assert "drawing" not in run(*arguments, "-o", tmp_path / "piped")[2]
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TTY_INTERACTIVE", "1")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    code, out, err = run(*arguments, "-o", tmp_path / "terminal")
    assert code == 0
    assert "drawing" in err
    assert "drawing" not in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--scale", "x"], "'x' is not a number"),
        (["--scale", "1,2"], "'1,2' is not a number"),
        (["--mean", "1/0"], "'1/0' is not a number"),
        (["--size", "20x"], "'20x' is not a height and width"),
        (["--size", "0x5"], "'0x5' is not a height and width"),
        (["--size", "1x2x3"], "'1x2x3' is not a height and width"),
        (["--provider", "tpu"], "'tpu' is not one of"),
        (["--colormap", "jetsam"], "colormap 'jetsam' is unknown"),
        (["--normalize", "max"], "'max' is not one of"),
        (["--scale-over", "all"], "'all' is not one of"),
        (["--percentiles", "5", "--normalize", "percentile"], "'5' is not two numbers"),
        (["--percentiles", "1,99"], "they are the ends of --normalize percentile"),
        (
            ["--percentiles", "99,1", "--normalize", "percentile"],
            "percentiles are (99.0, 1.0), two numbers from 0 to 100 in order are wanted",
        ),
        (["--top", "0"], "top is 0, and a whole number is wanted: pass 1 or more"),
        (["--channels", "0:1000000000"], "names 1,000,000,000 channels, more than a layer has"),
        (["--reduce", "pca", "--arrange", "sheet"], "leave out one of them"),
        (["--reduce", "pca", "--animate", "--format", "gif"], "pca has more colors than a GIF"),
        (["--channels", "8:4"], "names no channel"),
        (["--every", "2"], "only animations have frames"),
        (["--limit", "0", "--animate"], "0 is not in the range"),
        (["--duration", "inf", "--animate"], "inf is not a time in ms"),
        (["--overlay", "--animate"], "an overlay does not move"),
        (["--animate", "--scale-over", "layer"], "frames share one scale"),
        (["--channels", "a"], "'a' is neither a number nor a range"),
        (["--format", "gif"], "gif is for animations: add --animate"),
        (["--format", "svg", "--animate"], "svg does not move"),
        (["--duration", "40"], "only animations have frames"),
        (["--save-arrays", "npy", "--animate"], "arrays are saved of single pictures"),
        (["--color", "cmyk"], "'cmyk' is not one of"),
    ],
)
def test_wrong_options_are_wrong_usage(
    run: Run, models: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    code, out, err = run(
        "draw", models / "shapes_small.onnx", models / "pictures/chelsea.png", "-o", tmp_path / "maps", *options
    )
    assert (code, out) == (2, "")
    assert message in err
    assert not (tmp_path / "maps").exists()


def test_one_number_sets_both_sides_of_the_size(run: Run, models: Path, tmp_path: Path) -> None:
    code, out, _ = run(
        "draw",
        models / "shapes_small.onnx",
        models / "pictures/chelsea.png",
        "-o",
        tmp_path / "a",
        "--size",
        "64",
        "--json",
    )
    assert code == 0
    assert json.loads(out)["preprocessing"]["size"] == [64, 64]


# what bad input gets


def bad_models(folder: Path, models: Path) -> dict[str, tuple[Path, str]]:
    (folder / "text.onnx").write_text("hello")
    (folder / "empty.onnx").write_bytes(b"")
    whole = (models / "shapes_small.onnx").read_bytes()
    (folder / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    return {
        "missing": (folder / "missing.onnx", "there is no file"),
        "folder": (folder, "is a folder"),
        "text": (folder / "text.onnx", "is not an ONNX file"),
        "empty": (folder / "empty.onnx", "is not an ONNX file"),
        "picture": (models / "pictures/chelsea.png", "is not an ONNX file"),
        "keras": (models / "shapes_small.keras", "is a Keras file, an ONNX file is wanted: convert it first"),
        "truncated": (folder / "cut.onnx", "is truncated"),
    }


@pytest.mark.parametrize("case", ["missing", "folder", "text", "empty", "picture", "keras", "truncated"])
@pytest.mark.parametrize("command", ["draw", "layers", "expose"])
def test_a_bad_model_is_one_sentence_and_nothing_is_written(
    run: Run, models: Path, tmp_path: Path, case: str, command: str
) -> None:
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    model, message = bad_models(inputs, models)[case]
    arguments = {
        "draw": [models / "pictures/chelsea.png", "-o", tmp_path / "maps"],
        "layers": [],
        "expose": ["-o", tmp_path / "out.onnx"],
    }[command]
    code, out, err = run(command, model, *arguments)
    assert (code, out) == (1, "")
    assert message in err
    assert len(err.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["inputs"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.png", None, "there is no file"),
        ("text.png", b"hello", "is not a picture that Pillow reads"),
        ("five.npy", np.zeros((9, 9, 5), np.uint8), "has 5 channels"),
        ("other.npy", np.zeros((1, 3, 64, 64), np.float32), "wants (N, 64, 64, 3)"),
    ],
)
def test_a_bad_picture_is_one_sentence_and_nothing_is_written(
    run: Run, models: Path, tmp_path: Path, name: str, content: object, message: str
) -> None:
    picture = tmp_path / name
    if isinstance(content, bytes):
        picture.write_bytes(content)
    elif isinstance(content, np.ndarray):
        np.save(picture, content)
    code, out, err = run(
        "draw", models / "shapes_small.onnx", models / "pictures/chelsea.png", picture, "-o", tmp_path / "maps"
    )
    assert (code, out) == (1, "")
    assert message in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "maps").exists()


def test_an_existing_result_is_kept(run: Run, models: Path, tmp_path: Path) -> None:
    arguments = ("draw", models / "shapes_small.onnx", models / "pictures/chelsea.png", "-o", tmp_path / "maps")
    assert run(*arguments)[0] == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "maps").iterdir()}
    code, _, err = run(*arguments, "--colormap", "gray")
    assert code == 1
    assert "exists already and is left as it is" in err
    assert {path.name: path.read_bytes() for path in (tmp_path / "maps").iterdir()} == before
    assert run(*arguments, "--colormap", "gray", "--overwrite")[0] == 0
    assert (tmp_path / "maps" / "01-conv_1.png").read_bytes() != before["01-conv_1.png"]


def test_an_unknown_layer_names_the_nearest(run: Run, models: Path) -> None:
    code, _, err = run("layers", models / "shapes_small.onnx", "--layers", "conv_l")
    assert code == 1
    assert "no layer matches 'conv_l'; the nearest are 'conv_" in err
    assert "the model has 18 layers" in err
    assert "onnxfeat layers MODEL --layers kind:any" in err


def test_a_provider_that_is_not_there_is_an_error_that_says_why(run: Run, models: Path, tmp_path: Path) -> None:
    code, _, err = run(
        "draw",
        models / "shapes_small.onnx",
        models / "pictures/chelsea.png",
        "-o",
        tmp_path / "a",
        "--provider",
        "cuda",
    )
    assert code == 1
    assert "provider 'cuda' is not to be had" in err
    assert not (tmp_path / "a").exists()


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "onnxfeat", "layers", "missing.onnx", "--debug"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert result.returncode == 1
    assert "Traceback" in result.stderr


def test_a_fault_of_ours_is_told_as_such(run: Run, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ValueError("surprise")

    monkeypatch.setattr("onnxfeat.layers.inventory.list_layers", fail)
    code, out, err = run("layers", models / "shapes_small.onnx")
    assert (code, out) == (1, "")
    assert "unexpected ValueError: surprise; this is a fault of onnxfeat" in err
    monkeypatch.undo()


def test_a_reader_that_stops_reading_is_no_error(models: Path) -> None:
    command = f"{sys.executable} -m onnxfeat layers {models / 'shapes_small.onnx'} --json | head -n 1"
    result = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "{\n", "")


def test_without_a_runtime_the_message_names_the_extra(models: Path, tmp_path: Path) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('no onnxruntime here')")
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "onnxfeat",
            "draw",
            models / "shapes_small.onnx",
            models / "pictures/chelsea.png",
            "-o",
            "maps",
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        check=False,
    )
    assert result.returncode == 1
    assert 'pip install "onnxfeat[cpu]", or "onnxfeat[gpu]" for CUDA' in result.stderr


# layers


def test_layers_prints_positions_that_the_selection_understands(run: Run, models: Path) -> None:
    code, out, err = run("layers", models / "shapes_small.onnx", "--layers", "kind:any")
    assert (code, err) == (0, "")
    positions = {words[1]: words[0] for words in map(str.split, out.splitlines()[1:])}
    assert positions["relu_1"] == "-"
    for name, position in positions.items():
        if position != "-":
            assert list_layers(models / "shapes_small.onnx", position)[0].name == name


def test_layers_as_json_tells_input_preprocessing_and_layers(run: Run, models: Path) -> None:
    code, out, _ = run("layers", models / "shapes_small.onnx", "--json")
    document = json.loads(out)
    assert code == 0
    assert document["schema_version"] == 1
    assert document["input"]["layout"] == "NHWC"
    assert document["preprocessing"]["source"] == "model"
    assert document["preprocessing"]["interpolation"] == "nearest"
    assert [layer["name"] for layer in document["layers"]] == [
        x.name for x in list_layers(models / "shapes_small.onnx")
    ]


def test_layers_as_json_tells_why_there_is_no_picture_input(run: Run, tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        net (float[1, 3, 8, 8] a, float[1, 3, 8, 8] b) => (float[1, 3, 4, 4] y)
        { s = Add(a, b)  y = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (s) }"""
    )
    onnx.save(model, tmp_path / "two.onnx")
    code, out, _ = run("layers", tmp_path / "two.onnx", "--json")
    document = json.loads(out)
    assert code == 0
    assert document["input"] is None
    assert "wants 2 inputs" in document["input_problem"]
    assert [layer["op_type"] for layer in document["layers"]] == ["MaxPool"]


# expose


def test_expose_writes_the_chosen_layers(run: Run, models: Path, tmp_path: Path) -> None:
    code, out, err = run("expose", models / "shapes_small.onnx", "-o", tmp_path / "cut.onnx", "--layers", "0:2")
    assert (code, out) == (0, f"{tmp_path / 'cut.onnx'}\n")
    assert "exposed 2 layers" in err
    assert [layer.name for layer in list_layers(tmp_path / "cut.onnx")] == ["conv_1", "pool_1"]
    assert len(onnx.load(tmp_path / "cut.onnx").graph.output) == 2


def test_expose_keeps_the_whole_graph_on_request(run: Run, models: Path, tmp_path: Path) -> None:
    code, out, _ = run(
        "expose", models / "shapes_small.onnx", "-o", tmp_path / "all.onnx", "--layers", "0", "--no-cut", "--json"
    )
    assert code == 0
    assert [layer["name"] for layer in json.loads(out)["layers"]] == ["conv_1"]
    original, whole = onnx.load(models / "shapes_small.onnx"), onnx.load(tmp_path / "all.onnx")
    assert whole.graph.node == original.graph.node
    assert whole.graph.output[0] == original.graph.output[0]


# convert


@pytest.mark.keras
def test_convert_prints_the_file_and_the_largest_error(run: Run, models: Path, tmp_path: Path) -> None:
    code, out, err = run("convert", models / "shapes_small.keras", "-o", tmp_path / "small.onnx")
    assert (code, out) == (0, f"{tmp_path / 'small.onnx'}\n")
    assert re.search(r"compared with Keras .*, \d+ s in all: largest error \d\.\de-\d\d of the range, in \w+", err)
    assert list_layers(tmp_path / "small.onnx") == list_layers(models / "shapes_small.onnx")


@pytest.mark.keras
def test_convert_stores_the_preprocessing_that_options_set(run: Run, models: Path, tmp_path: Path) -> None:
    code, out, _ = run(
        "convert", models / "shapes_small.keras", "-o", tmp_path / "small.onnx",
        "--scale", "1/127.5", "--mean", "1,1,1", "--interpolation", "bilinear", "--json", "-q",
    )  # fmt: skip
    assert code == 0
    stored = json.loads(out)["preprocessing"]
    assert stored == {
        "size": [64, 64],
        "scale": 1 / 127.5,
        "mean": [1.0, 1.0, 1.0],
        "std": [1.0],
        "color": "rgb",
        "interpolation": "bilinear",
        "aspect": "stretch",
        "resampling": "pillow",
        "fill": 0.0,
    }
    assert FeatureExtractor(tmp_path / "small.onnx").preprocessing.to_json() == stored


@pytest.mark.keras
def test_convert_takes_its_options_from_the_command_line(run: Run, models: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("circle\nsquare\ntriangle\n")
    code, out, _ = run(
        "convert", models / "shapes_small.keras", "-o", tmp_path / "small.onnx", "--labels", tmp_path / "labels.txt",
        "--weights", "float16", "--batch", "4", "--output-name", "scores", "--opset", "15", "--json", "-q",
    )  # fmt: skip
    assert code == 0
    assert (json.loads(out)["opset"], json.loads(out)["computed_by"][:5]) == (15, "Keras")
    document = read_document(tmp_path / "small.onnx")
    assert document.labels == ("circle", "square", "triangle")
    assert document.origin is not None
    assert document.origin.weights == "float16"
    graph = onnx.load(tmp_path / "small.onnx").graph
    assert [output.name for output in graph.output] == ["scores"]
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_value == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch", "few"], "'few' is neither a number from 1 on nor dynamic"),
        (["--input-shape", "224by224"], "'224by224' is not a shape such as 224x224x3"),
        (["--input-shape", "8x8", "--input-shape", "9x9"], "several shapes need names"),
        (["--labels", "absent.txt"], "absent.txt can't be read"),
        (["--labels", "empty.txt"], "empty.txt is empty"),
    ],
)
def test_convert_refuses_options_that_can_not_be_read(
    run: Run, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("\n")
    code, out, err = run("convert", models / "shapes_small.keras", "-o", tmp_path / "small.onnx", *options)
    assert (code, out) == (2, "")
    assert message in " ".join(err.replace("│", " ").split())


@pytest.mark.keras
def test_convert_refuses_what_is_no_keras_model(run: Run, models: Path, tmp_path: Path) -> None:
    code, out, err = run("convert", models / "shapes_small.onnx", "-o", tmp_path / "small.onnx")
    assert (code, out) == (1, "")
    assert "is no .keras, .h5, .hdf5 or .tflite file and no SavedModel folder" in err
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(autouse=True)
def _restore_log_level() -> object:
    logger = logging.getLogger("onnxfeat")
    level = logger.level
    yield
    logger.setLevel(level)


# what else can go wrong around a program


@pytest.mark.parametrize(
    ("redirection", "code", "message"),
    [
        (">/dev/full", 1, "stdout can't be written: No space left on device"),
        ("2>/dev/full", 0, ""),
        ("2>&-", 0, ""),
    ],
)
def test_a_stream_that_can_t_be_written_is_told_or_done_without(
    models: Path, tmp_path: Path, redirection: str, code: int, message: str
) -> None:
    arguments = [models / "shapes_small.onnx", models / "pictures/chelsea.png", "-o", tmp_path / "maps"]
    command = " ".join(map(str, [sys.executable, "-m", "onnxfeat", "draw", *arguments, redirection]))
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert result.returncode == code
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert (tmp_path / "maps" / "run.json").exists()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_nothing_half_written_is_left_when_the_process_is_stopped(models: Path, tmp_path: Path, name: str) -> None:
    pictures = [str(models / "pictures/chelsea.png")] * 400
    command = [sys.executable, "-m", "onnxfeat", "draw", str(models / "shapes_small.onnx"), *pictures, "-o", "maps"]
    pipe = subprocess.PIPE

    def listen() -> None:  # who starts the tests in the background may have had signals ignored, as children inherit
        signal.signal(getattr(signal, name), signal.SIG_DFL)

    with subprocess.Popen(command, cwd=tmp_path, preexec_fn=listen, stdout=pipe, stderr=pipe, text=True) as process:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("maps/.onnxfeat-*/*/*.png")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(getattr(signal, name))
        _, err = process.communicate(timeout=60)
    assert process.returncode not in (0, None)
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["layers", "draw"])
def test_an_unreadable_model_is_one_sentence(
    run: Run, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    model = tmp_path / "secret.onnx"
    model.write_bytes((models / "shapes_small.onnx").read_bytes())

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # root may read everything
    monkeypatch.setattr(os, "access", lambda *_: False)
    more = [models / "pictures/chelsea.png", "-o", tmp_path / "maps"] if command == "draw" else []
    code, out, err = run(command, model, *more)
    assert (code, out) == (1, "")
    assert "can't be read: Permission denied" in err


def test_a_pipe_as_a_model_is_refused_and_not_waited_for(run: Run, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.onnx")
    code, _, err = run("layers", tmp_path / "pipe.onnx")
    assert code == 1
    assert "is a device or pipe" in err


def test_preprocessed_arrays_are_told_as_such(run: Run, models: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "ready.npy", np.zeros((1, 64, 64, 3), np.float32))
    arguments = ("draw", models / "shapes_small.onnx", tmp_path / "ready.npy")
    code, out, err = run(*arguments, "-o", tmp_path / "a", "--json")
    assert code == 0
    assert "taken as preprocessed already: ready.npy" in err
    assert "preprocessing (from" not in err
    assert json.loads(out)["pictures"][0]["preprocessed"] is True


def test_values_that_are_not_finite_are_told(run: Run, models: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "broken.npy", np.full((1, 64, 64, 3), np.nan, np.float32))
    _, _, err = run(
        "draw", models / "shapes_small.onnx", tmp_path / "broken.npy", "-o", tmp_path / "a", "--layers", "0"
    )
    assert "65,536 values are NaN or infinite, in conv_1" in err


@pytest.mark.keras
def test_convert_says_what_the_user_should_know(run: Run, tmp_path: Path) -> None:
    import keras

    layers = [
        keras.Input((9, 8, 3)),
        keras.layers.Dropout(0.5, name="drop"),
        keras.layers.Rescaling(1 / 255, name="scaler"),
    ]
    model = keras.Sequential([*layers, keras.layers.Conv2D(2, 3)])
    model.save(tmp_path / "model.keras")
    code, _, err = run("convert", tmp_path / "model.keras", "-o", tmp_path / "model.onnx")
    assert code == 0
    assert "note: the model scales its input itself (layer 'scaler')" in err
    assert "note: the ONNX graph has no value for 1 of the layers:\n  it passes an input of the model on: drop\n" in err


def test_a_run_in_several_passes_says_so(run: Run, models: Path, tmp_path: Path) -> None:
    command = ["draw", models / "shapes_small.onnx", models / "pictures/chelsea.png", "-o", tmp_path / "maps"]
    code, out, err = run(*command, "--max-bytes", "600KB")
    assert code == 0
    assert len(out.splitlines()) == 8
    assert "the maps of a picture take 513 KB: drawn in 2 passes within 600 KB" in err


def test_a_budget_that_is_none_is_told(run: Run, models: Path, tmp_path: Path) -> None:
    command = ["draw", models / "shapes_small.onnx", models / "pictures/chelsea.png", "-o", tmp_path / "maps"]
    code, _, err = run(*command, "--max-bytes", "much")
    assert (code, err) == (
        1,
        "onnxfeat: max_bytes 'much' is no number of bytes: pass for instance 512MB, 2GiB or 1000000\n",
    )


def test_inputs_are_given_by_name(run: Run, tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]> g (float[1,1,4,4] x, float[1] gain) => (float[1,1,4,4] y)
        { m = Mul(x, gain) y = MaxPool<kernel_shape = [1, 1]>(m) }"""
    )
    onnx.save(model, tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4))
    command = ["draw", tmp_path / "m.onnx", tmp_path / "x.npy", "-o", tmp_path / "maps"]
    code, _, err = run(*command)
    assert code == 1
    assert "wants 1 inputs beside the picture: 'gain' float32 (1); give each a value, --input gain=NUMBER" in err
    assert run(*command, "--input", "gain")[0] == 2
    assert run(*command, "--input", "gain=2.5")[0] == 0
    means = json.loads((tmp_path / "maps/run.json").read_text())["pictures"][0]["layers"][0]["mean"]
    assert means == [2.5 * 7.5]
    assert run("check", tmp_path / "m.onnx", tmp_path / "x.npy", "--input", "gain=1")[0] == 0


def test_layers_that_hide_in_loops_are_told(run: Run, tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]> g (float[1,3,8,8] x, float[3,3,1,1] w) => (float[1,3,8,8] y) {
        c = Conv(x, w) n = Constant<value_int = 3>() go = Constant<value = bool {1}>()
        y = Loop(n, go, c) < body = b (int64 i, bool on, float[1,3,8,8] p) => (bool o, float[1,3,8,8] q)
        { o = Identity(on) q = Conv(p, w) } > }"""
    )
    onnx.save(model, tmp_path / "m.onnx")
    code, _, err = run("layers", tmp_path / "m.onnx")
    assert code == 0
    assert "not listed: 1 conv and pool layers in the body of Loop" in err
    _, out, _ = run("layers", tmp_path / "m.onnx", "--json")
    assert "1 conv and pool layers" in json.loads(out)["hidden"][0]
