from __future__ import annotations

import ast
import json
import math
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from test_cli import Run as Shell
from test_cli import run as shell

from onnxfeat import FeatureExtractor, Features, Layer, LayerError, Preprocessing, Style
from onnxfeat.layers.selection import select
from onnxfeat.options import given_inputs
from onnxfeat.report.repetition import Run, command_of, python_of, term_of

__all__ = ["shell"]  # the fixture

NAMES = [
    "a,b and c",
    'it\'s "quoted" `id` $HOME \\',
    "conv*[1]?",
    "!conv",
    "3",
    "kind:conv",
    "\u5377\u79ef\u5c42",
    "n" * 200,
    "0:2",
    " -1",
    "re",
    "line\nbreak\x1b[2J,",
]


@pytest.fixture
def photograph(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A picture in the working folder, by its name there."""
    monkeypatch.chdir(tmp_path)
    with Image.open(models / "pictures/chelsea.png") as image:
        image.resize((45, 33)).save("my cat.png")
    return "my cat.png"


@pytest.fixture
def renamed(models: Path, tmp_path: Path) -> str:
    """The shipped model with other names for its layers."""
    model = onnx.load(models / "shapes_small.onnx")
    entry = next(entry for entry in model.metadata_props if entry.key == "onnxfeat")
    document = json.loads(entry.value)
    for layer, name in zip(document["layer_map"], NAMES, strict=False):
        layer["name"] = name
    entry.value = json.dumps(document)
    del model.metadata_props[:]
    model.metadata_props.append(entry)
    onnx.save(model, tmp_path / "named.onnx")
    return "named.onnx"


@pytest.fixture
def open_model(tmp_path: Path) -> str:
    """A model that leaves the size of the picture open, and says nothing of how it is prepared."""
    return saved(
        "net (float[N, 3, H, W] x, float[4, 3, 3, 3] w) => (float[N, 4, A, B] y) { y = Conv(x, w) }",
        tmp_path / "open.onnx",
    )


def saved(graph: str, path: Path) -> str:
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {graph}')
    weight = np.random.default_rng(5).normal(size=(4, 3, 3, 3)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    onnx.save(model, path)
    return path.name


def run_of(features: Features, files: tuple[str | None, ...], **facts: Any) -> Run:
    return Run(
        model=features.model,
        pictures=features.pictures,
        files=files,
        provider=features.provider.asked,
        preprocessing=features.preprocessing,
        preprocessing_source=features.preprocessing_source,
        facts=facts,
    )


def arrays_of_python(code: str, **names: Any) -> list[NDArray[np.float32]]:
    """Run lines, what they leave open filled in; return the map for each picture."""
    known: dict[str, Any] = {}
    for name, value in names.items():
        assert f"{name} = ...  # " in code
        code = code.replace(f"{name} = ...  # ", f"{name} = {name}_  # ")
        known[f"{name}_"] = value
    exec(code, known)  # noqa: S102  # what a page offers to be copied
    return list(known["arrays"]) if "arrays" in known else [known["array"]]


def arrays_of_command(shell: Shell, command: str, layer: str) -> list[NDArray[np.float32]]:
    """Run a command, which must draw that layer alone; return the map for each picture."""
    program, *words = shlex.split(command)
    assert program == "onnxfeat"
    code, out, err = shell(*words, "--save-arrays", "npy", "--json")
    assert code == 0, err
    record = json.loads(out)
    folder = Path(words[words.index("-o") + 1])
    for picture in record["pictures"]:
        assert [drawn["layer"] for drawn in picture["layers"]] == [layer]
    return [np.load(folder / picture["layers"][0]["array"]) for picture in record["pictures"]]


def assert_same_layer(found: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    """Watched alone, a layer's nodes are fused otherwise than with all others: it moves by rounding."""
    assert np.abs(found - expected).max() <= 1e-5 * np.ptp(expected)


def assert_repeated(features: Features, layer: str, run: Run, shell: Shell) -> None:
    expected = features[layer].array
    for found in (arrays_of_python(python_of(layer, run)), arrays_of_command(shell, command_of(layer, run), layer)):
        np.testing.assert_array_equal(np.concatenate(found), expected)


@pytest.mark.parametrize("name", NAMES)
def test_a_layer_of_any_name_is_given_again(name: str, renamed: str, photograph: str, shell: Shell) -> None:
    features = FeatureExtractor(renamed, layers="kind:any", provider="cpu")(photograph)
    run = run_of(features, (photograph,))
    alone = arrays_of_python(python_of(name, run))[0]
    assert_same_layer(alone, features[name].array)
    np.testing.assert_array_equal(arrays_of_command(shell, command_of(name, run), name)[0], alone)


@pytest.mark.parametrize(
    "preprocessing",
    [
        "caffe",
        {"preset": "torch", "size": (20, 30)},
        {"resampling": "keras", "interpolation": "bicubic", "aspect": "letterbox", "fill": 12.5, "size": 24},
        {"aspect": "pad", "fill": 7, "size": (16, 40), "scale": 1e-7, "interpolation": "lanczos"},
        Preprocessing(color="bgr", mean=(1 / 3, 2.0, -3e-7), std=(0.1, 0.2, -0.3), scale=-1 / 127.5, size=(17, 19)),
    ],
)
def test_what_the_caller_changed_of_the_preprocessing_is_given_again(
    preprocessing: Any, open_model: str, photograph: str, shell: Shell
) -> None:
    features = FeatureExtractor(open_model, provider="cpu", preprocessing=preprocessing)(photograph)
    assert_repeated(features, "conv_0", run_of(features, (photograph,)), shell)


def test_what_the_model_or_the_default_say_is_not_repeated(models: Path, open_model: str, photograph: str) -> None:
    for model in (models / "shapes_small.onnx", open_model):
        features = FeatureExtractor(model, layers="0", provider="cpu")(photograph)
        run = run_of(features, (photograph,), model_path=str(model))
        assert "reprocessing" not in python_of(next(iter(features)), run)
        assert "--scale" not in command_of(next(iter(features)), run)


def test_values_of_other_inputs_are_given_again(photograph: str, tmp_path: Path, shell: Shell) -> None:
    graph = (
        "net (float[N, 3, H, W] x, float gain, bool on, int64[1] n, float[1, 3, 1, 1] shift, float[4, 3, 3, 3] w) => "
        "(float[N, 4, A, B] y) { a = Mul(x, gain) b = Add(a, shift) c = Where(on, b, x) d = Cast<to = 1>(n) "
        "e = Add(c, d) y = Conv(e, w) }"
    )
    model = saved(graph, tmp_path / "several.onnx")
    np.save("7.npy", np.array([[[[1]], [[2]], [[3]]]], np.float32))
    Path("7.npy").rename("7")  # a file that reads as a number
    inputs = {"gain": 0.1, "on": True, "n": 3, "shift": "7"}
    features = FeatureExtractor(model, provider="cpu", inputs=inputs)(photograph)
    assert not np.array_equal(
        features["conv_0"].array, FeatureExtractor(model, inputs=inputs | {"on": False})(photograph)["conv_0"].array
    )
    assert_repeated(features, "conv_0", run_of(features, (photograph,), inputs=inputs), shell)


def test_several_pictures_of_several_sizes_are_given_again(open_model: str, photograph: str, shell: Shell) -> None:
    Image.new("RGB", (20, 12), (9, 99, 199)).save("-small.png")
    Image.new("L", (30, 31), 50).save("*[0].png")
    files = (photograph, "-small.png", "*[0].png")
    each = [FeatureExtractor(open_model, provider="cpu")(file) for file in files]
    run = replace(run_of(each[0], (photograph,)), pictures=files, files=files)
    for found in (
        arrays_of_python(python_of("conv_0", run)),
        arrays_of_command(shell, command_of("conv_0", run), "conv_0"),
    ):
        for array, features in zip(found, each, strict=True):
            np.testing.assert_array_equal(array, features["conv_0"].array)


def test_a_preprocessed_file_is_repeated_where_its_path_is_known(
    open_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shell: Shell
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("two.npy", np.random.default_rng(1).random((2, 3, 8, 9), np.float32))
    features = FeatureExtractor(open_model, provider="cpu")("two.npy")
    assert features.pictures == ("two.npy[0]", "two.npy[1]")
    assert_repeated(features, "conv_0", run_of(features, (None, None), pictures=["two.npy"]), shell)


def test_what_came_from_memory_is_left_open_and_told(open_model: str, photograph: str) -> None:
    content = Path(open_model).read_bytes()
    batch = np.random.default_rng(1).random((2, 3, 8, 9), np.float32)
    features = FeatureExtractor(content, provider="cpu")(batch)
    run = run_of(features, (None, None))
    code = python_of("conv_0", run)
    assert 'picture = ...  # the array or image that was passed as "picture_1"\n' in code
    np.testing.assert_array_equal(arrays_of_python(code, model=content, picture=batch)[0], features["conv_0"].array)
    assert command_of("conv_0", run) == ""
    assert command_of("conv_0", replace(run, model=open_model)) == ""
    assert command_of("conv_0", replace(run, files=(photograph, photograph))) == ""


def test_of_several_pictures_those_from_memory_keep_their_place(open_model: str, photograph: str) -> None:
    image = Image.new("RGB", (20, 12))
    features = [FeatureExtractor(open_model)(picture) for picture in (image, photograph)]
    run = replace(run_of(features[1], (photograph,)), pictures=("a\nb", photograph), files=(None, photograph))
    code = python_of("conv_0", run)
    assert '    ...,  # the array or image that was passed as "a\\nb"\n' in code
    assert arrays_of_python(code.replace("    ...,", "    __import__('PIL.Image').Image.new('RGB', (20, 12)),"))[
        0
    ].shape == (1, 4, 10, 18)


@pytest.mark.parametrize("value", [np.float64(0.1), -math.inf, math.nan, 1e-300, -3, True, False], ids=str)
def test_every_number_is_given_to_an_input_as_it_is(value: float) -> None:
    run = plain("cat.png", facts={"inputs": {"gain": value}})
    words = shlex.split(command_of("conv", run))
    (parsed,) = (given_inputs([words[words.index("--input") + 1]]) or {}).values()
    call = next(node for node in ast.walk(ast.parse(python_of("conv", run))) if isinstance(node, ast.Dict))
    for found in (parsed, eval(ast.unparse(call))["gain"]):  # noqa: S307  # what a page offers to be copied
        assert np.array_equal(found, value, equal_nan=True)
        assert isinstance(found, bool) == isinstance(value, bool)


@pytest.mark.parametrize("value", [np.zeros(3), {"=": 1}])
def test_an_input_that_no_option_can_give_leaves_no_command(value: Any) -> None:
    inputs = value if isinstance(value, dict) else {"state": value}
    run = plain("cat.png", facts={"inputs": inputs})
    assert command_of("conv", run) == ""
    assert "inputs={" in python_of("conv", run)


def test_the_memory_that_was_allowed_is_allowed_again() -> None:
    run = plain("cat.png", facts={"max_bytes": "4GiB"})
    assert "--max-bytes 4GiB" in command_of("conv", run)
    assert 'max_bytes="4GiB"' in python_of("conv", run)


def test_the_command_draws_as_the_page_shows_at_first(open_model: str, photograph: str, shell: Shell) -> None:
    features = FeatureExtractor(open_model, provider="cpu")(photograph)
    style = Style(normalize="percentile", percentiles=(2.5, 90), scale_over="layer", order="variance", top=3)
    command = command_of("conv_0", replace(run_of(features, (photograph,)), style=style))
    code, out, err = shell(*shlex.split(command)[1:], "--json")
    assert code == 0, err
    assert json.loads(out)["style"] == json.loads(json.dumps(style.to_json()))


def test_percentiles_without_effect_are_not_in_the_command(open_model: str, photograph: str, shell: Shell) -> None:
    features = FeatureExtractor(open_model, provider="cpu")(photograph)
    style = Style(normalize="minmax", percentiles=(2, 98))
    command = command_of("conv_0", replace(run_of(features, (photograph,)), style=style))
    assert shell(*shlex.split(command)[1:])[0] == 0


def test_two_layers_are_drawn_by_their_commands_one_after_the_other(
    models: Path, photograph: str, shell: Shell
) -> None:
    features = FeatureExtractor(models / "shapes_small.onnx", provider="cpu")(photograph)
    run = run_of(features, (photograph,), model_path=str(models / "shapes_small.onnx"))
    for name in ("conv_1", "pool_1"):
        assert arrays_of_command(shell, command_of(name, run), name)[0].shape == features[name].shape


def test_a_real_shell_and_a_real_python_give_the_layer(renamed: str, photograph: str, tmp_path: Path) -> None:
    file = os.fsdecode(b"caf\xe9 'n\n.png")
    Path(photograph).rename(file)
    name = NAMES[1]
    features = FeatureExtractor(renamed, layers="kind:any", provider="cpu")(file)
    run = run_of(features, (file,))
    command = command_of(name, run).replace("onnxfeat", f"{shlex.quote(sys.executable)} -m onnxfeat", 1)
    subprocess.run(["bash", "-c", f"{command} --save-arrays npy -q"], check=True)
    (saved_array,) = tmp_path.glob("maps/*/*.npy")
    assert_same_layer(np.load(saved_array), features[name].array)
    code = f"{python_of(name, run)}\nimport numpy\nnumpy.save('again.npy', array)"
    subprocess.run([sys.executable, "-c", code], check=True)
    np.testing.assert_array_equal(np.load("again.npy"), np.load(saved_array))


# laws


def plain(*files: str, model: str = "model.onnx", facts: Mapping[str, Any] | None = None) -> Run:
    return Run(
        model=model,
        pictures=files,
        files=files,
        provider="auto",
        preprocessing=Preprocessing(),
        preprocessing_source="default",
        facts=facts or {},
    )


def layer(name: str) -> Layer:
    return Layer(name=name, kind="conv", op_type="Conv", value="v", raw_value="v", layout="NCHW")


letters = st.characters(exclude_characters="\0", exclude_categories=["Cs"])
texts = st.text(letters, min_size=1)
selecting = st.text(st.sampled_from("ab01:,!*?[]-\\ \n.kindopre\u5c42"), min_size=1)


@given(st.lists(st.one_of(texts, selecting), min_size=2, max_size=6, unique=True))
@example(["3", "13", "31"])
@example(["a*", "ba*", "a*b"])
def test_a_term_chooses_its_layer_alone(names: list[str]) -> None:
    layers = [layer(name) for name in names]
    assert term_of(names[0]).isprintable()
    assert select(layers, term_of(names[0])) == (layers[0],)
    assert select(layers, [term_of(names[0])]) == (layers[0],)
    assert select(layers, f"{term_of(names[1])},{term_of(names[0])}") == tuple(layers[:2])


@given(texts, st.lists(texts, min_size=1, max_size=3, unique=True), texts)
def test_the_python_lines_hold_every_text_as_it_is(model: str, files: list[str], name: str) -> None:
    tree = ast.parse(python_of(name, plain(*files, model=model)))
    found = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    assert {*files, name, term_of(name)} <= found
    assert model in found or model == "<memory>"


paths = st.binary(min_size=1).map(lambda path: os.fsdecode(path.replace(b"\0", b"/")))


@settings(max_examples=30, deadline=None)  # each starts a shell
@given(paths, st.lists(paths, min_size=1, max_size=3, unique=True), texts)
def test_a_shell_reads_every_word_as_it_is(model: str, files: list[str], name: str) -> None:
    command = command_of(name, plain(*files, model=model)).removeprefix("onnxfeat")
    result = subprocess.run(["bash", "-c", f"printf '%s\\0'{command}"], check=True, capture_output=True)
    words = [os.fsdecode(word) for word in result.stdout.split(b"\0")[:-1]]
    assert words[0] == "draw"
    for given_, found in zip([model, *files], words[1:], strict=False):
        assert found == (f"./{given_}" if given_.startswith("-") else given_)
    assert words[words.index("--layers", 2 + len(files)) + 1] == term_of(name)


@pytest.mark.parametrize("name", ["a,b and c", "conv*[1]?", "!conv", "3", "kind:conv", "0:2", " -1", "re"])
def test_as_plain_terms_these_names_would_choose_something_else(name: str) -> None:
    layers = [layer(name), layer("conv"), layer("other"), layer("another"), layer("conv_10")]
    try:
        found = select(layers, name)
    except LayerError:
        found = ()
    assert found != (layers[0],)  # else the tests above would prove nothing
