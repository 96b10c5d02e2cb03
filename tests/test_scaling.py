import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

from onnxfeat import FeatureExtractor, Preprocessing, expose
from onnxfeat.cli import main
from onnxfeat.graph.reading import read_graph
from onnxfeat.graph.scaling import own_scaling
from onnxfeat.metadata import KEY, Document, read_document

MEANS = "float[3,1,1] m = {103.939, 116.779, 123.68}"
NORMAL = "float[3] one = {1, 1, 1}, float[3] zero = {0, 0, 0}"


def network(nodes: str, constants: str = "", channels: int = 3, shape: str = "1, 3, 8, 8") -> onnx.ModelProto:
    """Return a model of some nodes, which give `s`, and a Conv of ones."""
    weights = f"float[2, {channels}, 1, 1] w = {{{', '.join(['1'] * 2 * channels)}}}"
    text = f"""<ir_version: 8, opset_import: ["" : 17]> net (float[{shape}] x) => (y)
        <{", ".join(filter(None, (constants, weights)))}> {{ {nodes} y = Conv(s, w) }}"""
    model: onnx.ModelProto = onnx.parser.parse_model(text.replace("=> (y)", '=> (float["a", "b", "c", "d"] y)'))
    for node in model.graph.node:
        node.name = f"n_{node.output[0]}"
    return model


@pytest.mark.parametrize(
    ("nodes", "constants", "words"),
    [
        ("s = Mul(x, c)", "float c = {0.00392157}", "scales its input itself: Mul by 0.00392157 in node 'n_s'"),
        ("s = Mul(c, x)", "float c = {0.00392157}", "scales its input itself: Mul by 0.00392157 in node 'n_s'"),
        ("s = Div(x, c)", "float c = {255}", "scales its input itself: Div by 255 in node 'n_s'"),
        ("a = Cast<to = 1>(x) s = Div(a, c)", "float c = {255}", "Div by 255 in node 'n_s'"),
        (
            "a = Mul(x, c) s = Sub(a, d)",
            "float c = {0.0078431}, float d = {1}",
            "Mul by 0.0078431 in node 'n_a', Sub of 1 in node 'n_s'",
        ),
        (
            "a = Sub(x, c) s = Div(a, d)",
            "float c = {127.5}, float d = {128}",
            "Sub of 127.5 in node 'n_a', Div by 128 in node 'n_s'",
        ),
        (
            "s = Sub(x, m)",
            MEANS,
            "subtracts a mean from its input itself: Sub of 103.939, 116.779, 123.68 in node 'n_s'",
        ),
        ("s = Add(x, c)", "float c = {-127.5}", "subtracts a mean from its input itself: Add of -127.5 in node 'n_s'"),
        ("a = Identity(x) b = Identity(a) s = Div(b, c)", "float c = {255}", "Div by 255 in node 'n_s'"),
        (
            "a = Resize(x, none, sizes) s = Div(a, c)",
            "float[0] none = {}, float[4] sizes = {1, 1, 2, 2}, float c = {255}",
            "Div by 255 in node 'n_s'",
        ),
        (
            "t = Transpose<perm = [0, 2, 3, 1]>(x) a = Div(t, c) s = Transpose<perm = [0, 3, 1, 2]>(a)",
            "float[3] c = {255, 255, 255}",
            "Div by 255 in node 'n_a'",
        ),
        (
            "s = BatchNormalization(x, one, zero, m, v)",
            f"{NORMAL}, float[3] m = {{120, 115, 100}}, float[3] v = {{4900, 4900, 4900}}",
            "scales its input itself: BatchNormalization in node 'n_s'",
        ),
        ("k = Reshape(m, sides) s = Sub(x, k)", f"{MEANS}, int64[4] sides = {{1, 3, 1, 1}}", "Sub of 103.939"),
        ("n = Shape(x) s = Div(x, c)", "float c = {255}", "Div by 255"),
        (
            "a = Mul(x, c) b = Mul(a, d) s = Relu(b)",
            "float c = {0.1}, float d = {0.1}",
            "Mul by 0.1 in node 'n_a', Mul",
        ),
    ],
)
def test_a_model_that_scales_levels_itself_is_known_by_its_first_nodes(nodes: str, constants: str, words: str) -> None:
    found = own_scaling(read_graph(network(nodes, constants)), "x")
    assert found is not None
    assert found.startswith("the model ")
    assert words in found


@pytest.mark.parametrize(
    ("nodes", "constants"),
    [
        ("s = Identity(x)", ""),
        ("a = Relu(x) s = Div(a, c)", "float c = {255}"),
        ("a = Mul(x, c) s = Sub(a, d)", "float c = {2}, float d = {1}"),  # 0..1 to -1..1
        ("a = Sub(x, c) s = Div(a, d)", "float c = {0.485}, float d = {0.229}"),
        # Pictures of 0..1 are made 0..255 first.
        ("a = Mul(x, c) b = Sub(a, m) s = Div(b, d)", f"{MEANS}, float c = {{255}}, float d = {{58}}"),
        ("s = Add(x, c)", "float c = {127.5}"),  # adds, where a mean is subtracted
        ("s = Div(c, x)", "float c = {0.001}"),
        ("s = Sub(c, x)", "float c = {255}"),
        ("s = Mul(x, c)", "float c = {0}"),
        ("s = Mul(x, c)", "float c = {0.03}"),
        # One channel is all but switched off, which is no scaling of the picture.
        ("s = Mul(x, c)", "float[3, 1, 1] c = {1, 1, 0.001}"),
        ("s = Sub(x, c)", "float[3, 1, 1] c = {0, 0, 100}"),
        ("s = Mul(x, x)", ""),
        ("a = Sigmoid(x) s = Mul(x, a)", ""),
        ("a = Div(x, c) b = Relu(x) s = Add(a, b)", "float c = {255}"),
        ("s = BatchNormalization(x, one, zero, zero, one)", NORMAL),
        ("s = BatchNormalization(x, zero, one, one, one)", NORMAL),
        (
            "s = BatchNormalization(x, one, zero, m, v)",
            f"{NORMAL}, float[3] m = {{0.485, 0.456, 0.406}}, float[3] v = {{0.05, 0.05, 0.05}}",
        ),
    ],
)
def test_a_model_of_which_that_is_not_clear_counts_as_one_that_does_not(nodes: str, constants: str) -> None:
    assert own_scaling(read_graph(network(nodes, constants)), "x") is None


def test_numbers_of_many_channels_are_told_by_their_extremes() -> None:
    image = ", ".join(str(100 + number) for number in range(192))
    found = own_scaling(read_graph(network("s = Sub(x, m)", f"float[1, 3, 8, 8] m = {{{image}}}")), "x")
    assert found == "the model subtracts a mean from its input itself: Sub of 100 to 291 in node 'n_s'"


def test_a_node_without_a_name_is_told_by_what_it_gives() -> None:
    model = network("s = Div(x, c)", "float c = {255}")
    model.graph.node[0].name = ""
    found = own_scaling(read_graph(model), "x")
    assert found == "the model scales its input itself: Div by 255 in the node that gives 's'"


def test_such_a_model_is_fed_the_levels_and_so_is_the_file_that_exposes_its_layers(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    model = network("s = Div(x, c)", "float c = {255}")
    expose(model, tmp_path / "exposed.onnx")
    expose(tmp_path / "exposed.onnx", tmp_path / "again.onnx")
    reason = "default; the model scales its input itself: Div by 255 in node 'n_s'"
    for source in (model, tmp_path / "exposed.onnx", tmp_path / "again.onnx"):
        extractor = FeatureExtractor(source, provider="cpu")
        assert (extractor.preprocessing.scale, extractor.preprocessing_source) == (1.0, reason)
        np.testing.assert_allclose(_map(extractor, pixels), _sum(pixels), rtol=1e-6)


def _map(extractor: FeatureExtractor, pixels: Any) -> Any:
    return extractor(pixels)[extractor.layers[0].name].array[0, 0]


def _sum(pixels: Any) -> Any:
    """Return what a Conv of ones gives for a picture of 0..1."""
    return (pixels.astype(np.float32) / 255).sum(axis=2)


def test_what_the_caller_or_the_file_says_goes_before() -> None:
    model = network("s = Div(x, c)", "float c = {255}")
    asked = FeatureExtractor(model, provider="cpu", preprocessing="keras")
    assert asked.preprocessing.scale == 1 / 255
    assert asked.preprocessing_source.endswith("in node 'n_s', preset keras from the caller")
    onnx.helper.set_model_props(model, {KEY: Document(preprocessing=Preprocessing(scale=3.0)).to_text()})
    stored = FeatureExtractor(model, provider="cpu")
    assert (stored.preprocessing.scale, stored.preprocessing_source) == (3.0, "model")


def test_layers_and_draw_tell_what_was_assumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(network("s = Div(x, c)", "float c = {255}"), tmp_path / "m.onnx")
    reason = "default; the model scales its input itself: Div by 255 in node 'n_s'"
    with pytest.raises(SystemExit, match="0"):
        main(["layers", str(tmp_path / "m.onnx"), "--json"])
    document = json.loads(capsys.readouterr().out)
    assert (document["preprocessing"]["source"], document["preprocessing"]["scale"]) == (reason, 1.0)
    picture = Path(__file__).parent.parent / "models" / "pictures" / "circle.png"
    with pytest.raises(SystemExit, match="0"):
        main(["draw", str(tmp_path / "m.onnx"), str(picture), "-o", str(tmp_path / "maps")])
    assert f"preprocessing (from {reason}): rgb, the input's size bilinear, times 1, minus 0" in capsys.readouterr().err


def test_files_that_do_not_say_how_the_input_is_scaled_are_read(tmp_path: Path) -> None:
    model = network("s = Identity(x)")
    exposed = expose(model, tmp_path / "exposed.onnx")
    stored = onnx.load(tmp_path / "exposed.onnx")
    data = json.loads(next(entry.value for entry in stored.metadata_props if entry.key == KEY))
    del data["exposed"]["input"]["scaling"]
    onnx.helper.set_model_props(stored, {KEY: json.dumps(data)})
    onnx.save(stored, tmp_path / "older.onnx")
    document = read_document(tmp_path / "older.onnx")
    assert document.exposed is not None
    assert document.exposed.layers == exposed
    assert document.exposed.input is not None
    assert document.exposed.input.scaling is None


@pytest.mark.keras
@pytest.mark.parametrize("kind", ["rescaling", "minus 1 to 1", "resizing", "efficientnet"])
def test_a_keras_model_that_scales_its_input_is_known_after_a_plain_conversion(kind: str) -> None:
    import keras
    import tensorflow as tf
    import tf2onnx

    layers = {
        "rescaling": [keras.layers.Rescaling(1 / 255)],
        "minus 1 to 1": [keras.layers.Rescaling(1 / 127.5, offset=-1)],
        "resizing": [keras.layers.Resizing(16, 16), keras.layers.Rescaling(1 / 255)],
        "efficientnet": [
            keras.layers.Rescaling(1 / 255),
            keras.layers.Normalization(mean=[0.485, 0.456, 0.406], variance=[0.05, 0.05, 0.05]),
        ],
    }[kind]
    model = keras.Sequential([keras.Input((24, 24, 3)), *layers, keras.layers.Conv2D(4, 3), keras.layers.ReLU()])
    signature = [tf.TensorSpec((None, 24, 24, 3), tf.float32, name="x")]
    converted, _ = tf2onnx.convert.from_function(tf.function(model), input_signature=signature, opset=15)
    found = own_scaling(read_graph(converted), converted.graph.input[0].name)
    assert found is not None
    assert "its input itself" in found
    assert FeatureExtractor(converted, provider="cpu").preprocessing.scale == 1


@pytest.mark.keras
def test_a_keras_model_of_values_from_0_to_1_is_not_taken_for_one_that_scales() -> None:
    import keras
    import tensorflow as tf
    import tf2onnx

    model = keras.Sequential(
        [
            keras.Input((24, 24, 3)),
            keras.layers.Normalization(mean=[0.485, 0.456, 0.406], variance=[0.05, 0.05, 0.05]),
            keras.layers.Conv2D(4, 3),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
        ]
    )
    signature = [tf.TensorSpec((None, 24, 24, 3), tf.float32, name="x")]
    converted, _ = tf2onnx.convert.from_function(tf.function(model), input_signature=signature, opset=15)
    assert own_scaling(read_graph(converted), converted.graph.input[0].name) is None
