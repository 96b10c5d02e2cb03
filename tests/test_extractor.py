from __future__ import annotations

import logging
import math
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from PIL import Image

from onnxfeat import FeatureExtractor, Preprocessing, expose
from onnxfeat.errors import LayerError, MissingPackageError, ModelError, PictureError, ProviderError
from onnxfeat.metadata import KEY, Document
from onnxfeat.records import ModelInput

Array = NDArray[np.float32]
RNG = np.random.default_rng(0)
PICTURE = RNG.normal(size=(1, 3, 9, 7)).astype(np.float32)
PER_CHANNEL = RNG.uniform(0.5, 1.5, (4, 1, 1)).astype(np.float32)


def network(
    nodes: str,
    constants: Mapping[str, Any] | None = None,
    *,
    inputs: str = "float[N,3,9,7] x",
    opset: int = 20,
) -> onnx.ModelProto:
    """Return a model of these nodes; `w` is a 3 x 3 kernel from 3 to 4 channels."""
    model = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : {opset}, "custom" : 1]> g ({inputs}) => (float y) {{ {nodes} }}'
    )
    model.graph.output[0].type.tensor_type.ClearField("shape")
    weights = np.random.default_rng(1).normal(size=(4, 3, 3, 3)).astype(np.float32)
    for name, value in {"w": weights, **(constants or {})}.items():
        if any(name in node.input for node in model.graph.node):
            array = np.asarray(value, dtype=None if isinstance(value, np.ndarray) else np.float32)
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return model


def values_of(model: onnx.ModelProto, picture: NDArray[Any] = PICTURE) -> dict[str, Array]:
    """Return every value of the unmodified model, by onnx's own evaluator."""
    return dict(ReferenceEvaluator(model).run(None, {"x": picture}, intermediate=True))


def extract(model: onnx.ModelProto, layers: str = "0", picture: NDArray[Any] = PICTURE) -> Array:
    (feature_map,) = FeatureExtractor(model, layers=layers, provider="cpu")(picture).values()
    return feature_map.array


def close(actual: Array, expected: NDArray[Any]) -> None:
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, rtol=2e-4, atol=2e-4)


BN = {name: RNG.uniform(0.5, 1.5, 4).astype(np.float32) for name in ("s", "b", "m", "v")}


@pytest.mark.parametrize(
    ("nodes", "constants", "value"),
    [
        ("y = Conv(x, w)", {}, "y"),
        ("c = Conv(x, w) r = Relu(c) y = Neg(r)", {}, "r"),
        ("c = Conv(x, w) d = BatchNormalization(c, s, b, m, v) r = Relu(d) y = Neg(r)", BN, "r"),
        ("c = Conv(x, w) d = BatchNormalization(c, s, b, m, v) y = Flatten(d)", BN, "d"),
        ("c = Conv(x, w) d = Add(c, k) r = Relu(d) y = Neg(r)", {"k": PER_CHANNEL}, "r"),
        ("c = Conv(x, w) d = Mul(c, k) y = Flatten(d)", {"k": PER_CHANNEL}, "d"),
        ("c = Conv(x, w) p = PRelu(c, k) y = Neg(p)", {"k": PER_CHANNEL}, "p"),
        ("c = Conv(x, w) a = Clip(c, z, six) y = Neg(a)", {"z": 0.0, "six": 6.0}, "a"),
        ("c = Conv(x, w) d = HardSwish(c) y = Neg(d)", {}, "d"),
        ("c = Conv(x, w) d = Mish(c) y = Neg(d)", {}, "d"),
        ("c = Conv(x, w) d = Gelu(c) y = Neg(d)", {}, "d"),
        ("c = Conv<dilations = [2, 2]>(x, w) y = Neg(c)", {}, "c"),
        (
            "c = Conv<group = 3>(x, g) y = Relu(c)",
            {"g": np.random.default_rng(3).normal(size=(6, 1, 3, 3)).astype(np.float32)},
            "y",
        ),
        (
            "c = ConvTranspose<strides = [2, 2]>(x, t) y = Relu(c)",
            {"t": np.random.default_rng(3).normal(size=(3, 2, 3, 3)).astype(np.float32)},
            "y",
        ),
        ("p = MaxPool<kernel_shape = [2, 2], strides = [2, 1]>(x) y = Relu(p)", {}, "p"),
        ("p = AveragePool<kernel_shape = [3, 2]>(x) y = Relu(p)", {}, "p"),
        ("p = LpPool<kernel_shape = [2, 2]>(x) y = Relu(p)", {}, "p"),
    ],
)
def test_a_map_is_what_the_unmodified_model_computes(nodes: str, constants: dict[str, Any], value: str) -> None:
    model = network(nodes, constants)
    close(extract(model), values_of(model)[value])


def gelu(x: Array) -> NDArray[Any]:
    erf = np.vectorize(math.erf)(x.astype(np.float64) / math.sqrt(2))
    return np.asarray(x * 0.5 * (1 + erf))


def gelu_tanh(x: Array) -> NDArray[Any]:
    return np.asarray(0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))))


def silu(x: Array) -> NDArray[Any]:
    return np.asarray(x / (1 + np.exp(-x.astype(np.float64))))


def hard_swish(x: Array) -> NDArray[Any]:
    return np.asarray(x * np.clip(x + 3, 0, 6) / 6)


def mish(x: Array) -> NDArray[Any]:
    return np.asarray(x * np.tanh(np.log1p(np.exp(x.astype(np.float64)))))


NUMBERS = {
    "zero": 0.0,
    "half": 0.5,
    "one": 1.0,
    "two": 2.0,
    "three": 3.0,
    "six": 6.0,
    "sixth": 1 / 6,
    "root2": 2**0.5,
    "unroot2": 0.5**0.5,
    "cubic": 0.044715,
    "bend": (2 / np.pi) ** 0.5,
}


@pytest.mark.parametrize("before", ["c = Conv(x, w)", "k0 = Conv(x, w) c = BatchNormalization(k0, s, b, m, v)"])
@pytest.mark.parametrize("after", ["y = Neg(a)", "y = Add(a, k)", "n = Neg(a) y = Add(n, a)"])
@pytest.mark.parametrize(
    ("nodes", "name", "function"),
    [
        ("s1 = Sigmoid(c) a = Mul(c, s1)", "SiLU", silu),
        ("s1 = HardSigmoid<alpha = 0.16666667, beta = 0.5>(c) a = Mul(s1, c)", "HardSwish", hard_swish),
        ("d = Add(c, three) e = Clip(d, zero, six) f = Mul(c, e) a = Div(f, six)", "HardSwish", hard_swish),
        ("d = Add(c, three) e = Clip(d, zero, six) f = Mul(c, e) a = Mul(f, sixth)", "HardSwish", hard_swish),
        ("d = Add(c, three) e = Clip(d, zero, six) f = Div(e, six) a = Mul(c, f)", "HardSwish", hard_swish),
        ("d = Div(c, root2) e = Erf(d) f = Add(e, one) g = Mul(c, f) a = Mul(g, half)", "GELU", gelu),
        ("d = Div(c, root2) e = Erf(d) f = Add(one, e) g = Mul(c, f) a = Mul(half, g)", "GELU", gelu),
        ("d = Mul(c, unroot2) e = Erf(d) f = Add(e, one) g = Mul(c, f) a = Div(g, two)", "GELU", gelu),
        ("h = Mul(c, half) d = Div(c, root2) e = Erf(d) f = Add(e, one) a = Mul(h, f)", "GELU", gelu),
        ("d = Div(c, root2) e = Erf(d) f = Add(e, one) h = Mul(f, half) a = Mul(c, h)", "GELU", gelu),
        (
            "p = Pow(c, three) q = Mul(p, cubic) r = Add(c, q) t = Mul(r, bend) u = Tanh(t) f = Add(u, one) "
            "g = Mul(c, f) a = Mul(g, half)",
            "GELU",
            gelu_tanh,
        ),
        ("p = Softplus(c) t = Tanh(p) a = Mul(c, t)", "Mish", mish),
    ],
)
def test_an_activation_spelled_out_in_several_nodes_is_taken_whole(
    nodes: str, name: str, function: Callable[[Array], NDArray[Any]], before: str, after: str
) -> None:
    constants = {**NUMBERS, **BN, "k": PER_CHANNEL}
    model = network(f"{before} {nodes} {after}", constants)
    extractor = FeatureExtractor(model, layers="0", provider="cpu")
    assert extractor.layers[0].activation == name
    (feature_map,) = extractor(PICTURE).values()
    close(feature_map.array, function(values_of(model)["c"]))


@pytest.mark.parametrize(
    "nodes",
    [
        "s1 = Sigmoid(c) t = Tanh(c) a = Add(s1, t)",  # no activation that has a name
        "e = Erf(c) f = Conv(e, w4) a = Mul(c, f)",  # a gate that looks around
        "s1 = Sigmoid(c) r = Relu(c) u = Mul(c, s1) a = Mul(u, r)",  # SiLU in parts, but another function
        "s1 = Sigmoid(c) a = Mul(c, s1) t = Tanh(c) v = Neg(t)",  # two results
        "q = Identity(c) r = Identity(c) a = Flatten(q) v = Flatten(r)",
    ],
)
def test_where_several_nodes_make_no_known_activation_the_map_ends_before(nodes: str) -> None:
    w4 = np.random.default_rng(2).normal(size=(4, 4, 1, 1)).astype(np.float32)
    model = network(f"c = Conv(x, w) {nodes} y = Neg(a)", {"w4": w4})
    close(extract(model), values_of(model)["c"])


def test_a_factor_that_does_not_end_the_activation_is_left_out() -> None:
    nodes = "d = Div(c, root2) e = Erf(d) f = Add(e, one) h = Mul(f, half) a = Mul(c, h) {} y = Neg(z)"
    for last in ("z = Mul(a, k)", "z = Mul(a, three)", "z = Mul(a, a)", "z = Div(a, half)"):
        model = network("c = Conv(x, w) " + nodes.format(last), {**NUMBERS, "k": PER_CHANNEL})
        close(extract(model), gelu(values_of(model)["c"]))


def test_a_residual_addition_is_a_block_and_not_part_of_the_conv() -> None:
    w = np.random.default_rng(2).normal(size=(3, 3, 3, 3)).astype(np.float32)
    model = network("c = Conv<pads = [1, 1, 1, 1]>(x, w3) s = Add(c, x) y = Relu(s)", {"w3": w})
    close(extract(model), values_of(model)["c"])


@pytest.mark.parametrize("axes", ["attribute", "input"])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_a_mean_over_the_picture_is_a_pool_of_vectors(axes: str, keepdims: int) -> None:
    if axes == "attribute":
        model = network(f"c = Conv(x, w) y = ReduceMean<axes = [2, 3], keepdims = {keepdims}>(c)", opset=13)
    else:
        model = network(f"c = Conv(x, w) y = ReduceMean<keepdims = {keepdims}>(c, ax)", {"ax": np.array([2, 3])})
    assert [layer.op_type for layer in FeatureExtractor(model, provider="cpu").layers] == ["Conv"]
    found = extract(model, "kind:vector")
    close(found, values_of(model)["y"])
    assert found.shape == ((1, 4, 1, 1) if keepdims else (1, 4))


def test_global_pooling_gives_one_number_a_channel() -> None:
    model = network("c = Conv(x, w) y = GlobalAveragePool(c)")
    close(extract(model, "1"), values_of(model)["y"])


def test_channels_come_first_whatever_the_layout_of_the_graph() -> None:
    model = network(
        "t = Transpose<perm = [0, 3, 1, 2]>(x) c = Conv(t, w) d = Transpose<perm = [0, 2, 3, 1]>(c) y = Relu(d)",
        inputs="float[N,9,7,3] x",
    )
    picture = PICTURE.transpose(0, 2, 3, 1)
    expected = values_of(model, picture)["y"]
    assert expected.shape == (1, 7, 5, 4)
    close(extract(model, picture=picture), expected.transpose(0, 3, 1, 2))


def test_channels_are_told_from_sides_where_all_are_equal() -> None:
    w = np.random.default_rng(2).normal(size=(3, 3, 1, 1)).astype(np.float32)
    model = network(
        "t = Transpose<perm = [0, 3, 1, 2]>(x) c = Conv(t, w3) y = Transpose<perm = [0, 2, 3, 1]>(c)",
        {"w3": w},
        inputs="float[1,3,3,3] x",
    )
    picture = np.random.default_rng(4).normal(size=(1, 3, 3, 3)).astype(np.float32)
    values = values_of(model, picture)
    close(extract(model, "op:Conv", picture), values["c"])
    close(extract(model, "op:Transpose,!0,!other_0", picture), values["y"].transpose(0, 3, 1, 2))


def test_rows_come_before_columns_whatever_the_graph_does() -> None:
    model = network("c = Conv(x, w) t = Transpose<perm = [0, 3, 2, 1]>(c) y = Relu(t)")
    close(extract(model), np.maximum(values_of(model)["c"], 0))


def test_maps_of_other_types_come_as_float32() -> None:
    nodes = "h = Cast<to = 10>(x) p = MaxPool<kernel_shape = [2, 2]>(h) y = Cast<to = 1>(p)"
    model = network(nodes)
    np.testing.assert_array_equal(extract(model), values_of(model)["p"].astype(np.float32))


STACK = "c = Conv(x, w) r = Relu(c) p = MaxPool<kernel_shape = [2, 2]>(r) y = Conv(p, w4)"
W4 = {"w4": np.random.default_rng(5).normal(size=(2, 4, 2, 2)).astype(np.float32)}


def stack(inputs: str = "float[N,3,9,7] x") -> onnx.ModelProto:
    return network(STACK, W4, inputs=inputs)


@pytest.mark.parametrize("cut", [True, False])
def test_an_exposed_file_gives_the_same_maps_bit_for_bit(cut: bool, tmp_path: Path) -> None:
    onnx.save(stack(), tmp_path / "m.onnx")
    expose(tmp_path / "m.onnx", tmp_path / "e.onnx", cut=cut)
    first = FeatureExtractor(tmp_path / "m.onnx", provider="cpu")(PICTURE)
    for again in (
        FeatureExtractor(tmp_path / "e.onnx", provider="cpu")(PICTURE),
        FeatureExtractor(str(tmp_path / "e.onnx"), provider="cpu")(PICTURE),
        FeatureExtractor((tmp_path / "e.onnx").read_bytes(), provider="cpu")(PICTURE),
    ):
        assert list(again) == list(first)
        for name in first:
            np.testing.assert_array_equal(again[name].array, first[name].array)


def run_python(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return result.stdout


def test_drawing_from_an_exposed_file_needs_neither_onnx_nor_protobuf(tmp_path: Path) -> None:
    expose(stack(), tmp_path / "e.onnx")
    np.save(tmp_path / "picture.npy", PICTURE)
    printed = run_python(
        f"import sys; from onnxfeat import FeatureExtractor\n"
        f"f = FeatureExtractor({str(tmp_path / 'e.onnx')!r})({str(tmp_path / 'picture.npy')!r})\n"
        f"print([f[name].shape for name in f], [m for m in ('onnx', 'google.protobuf') if m in sys.modules])"
    )
    assert printed.strip() == "[(1, 4, 7, 5), (1, 4, 6, 4), (1, 2, 5, 3)] []"


def test_only_what_the_layers_need_is_run() -> None:
    model = network("c = Conv(x, w) r = Relu(c) y = custom.Unknown(r)")
    close(extract(model), values_of(network("c = Conv(x, w) y = Relu(c)"))["y"])


def test_layers_come_in_the_order_of_the_graph_and_by_name() -> None:
    features = FeatureExtractor(stack(), layers="conv_1,pool_0,conv_0", provider="cpu")(PICTURE)
    assert list(features) == ["conv_0", "pool_0", "conv_1"]
    close(features["pool_0"].array, values_of(stack())["p"])


def test_a_value_that_two_layers_share_is_given_to_both() -> None:
    features = FeatureExtractor(stack(), layers="conv_0,activation_0", provider="cpu")(PICTURE)
    np.testing.assert_array_equal(features["conv_0"].array, features["activation_0"].array)


def test_the_facts_of_the_run_are_told(tmp_path: Path) -> None:
    onnx.save(stack(), tmp_path / "m.onnx")
    extractor = FeatureExtractor(tmp_path / "m.onnx", provider="cpu")
    features = extractor(PICTURE)
    assert (features.model, features.sha256) == ("m.onnx", extractor.sha256)
    assert (features.provider.asked, features.provider.got) == ("cpu", "CPUExecutionProvider")
    assert (features.preprocessing_source, features.pictures) == ("default", ("picture_1",))
    assert features.seconds > 0
    assert FeatureExtractor(stack(), provider="cpu")(PICTURE).model == "<memory>"


def test_many_pictures_make_one_batch_in_their_order() -> None:
    others = RNG.normal(size=(3, 3, 9, 7)).astype(np.float32)
    extractor = FeatureExtractor(stack(), provider="cpu")
    together = extractor([PICTURE, others])
    assert together.pictures == ("picture_1", "picture_2[0]", "picture_2[1]", "picture_2[2]")
    for name in together:
        single = np.concatenate([extractor(picture[None])[name].array for picture in (PICTURE[0], *others)])
        np.testing.assert_array_equal(together[name].array, single)
    assert list(extractor((PICTURE,))) == list(extractor(PICTURE))


def test_a_model_of_a_fixed_batch_takes_any_number_of_pictures() -> None:
    pictures = RNG.normal(size=(3, 3, 9, 7)).astype(np.float32)
    fixed = extract(stack("float[4,3,9,7] x"), picture=pictures)
    assert fixed.shape == (3, 4, 7, 5)
    close(fixed, values_of(stack(), pictures)["r"])


def test_pictures_of_different_size_do_not_make_one_batch() -> None:
    extractor = FeatureExtractor(stack("float[N,3,H,W] x"), provider="cpu")
    with pytest.raises(PictureError, match=r"the pictures differ in size, and so do their maps of 'conv_0': pass them"):
        extractor([PICTURE, np.zeros((1, 3, 12, 12), np.float32)])
    assert extractor(np.zeros((1, 3, 12, 12), np.float32))["conv_0"].shape == (1, 4, 10, 10)


def test_no_picture_is_an_error() -> None:
    with pytest.raises(PictureError, match="no picture was passed: pass one or more"):
        FeatureExtractor(stack(), provider="cpu")([])


def test_a_picture_is_prepared_as_is_said(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "cat.png")
    ready = (pixels.astype(np.float64) / 255).astype(np.float32).transpose(2, 0, 1)[None]
    extractor = FeatureExtractor(stack(), provider="cpu")
    for picture in (tmp_path / "cat.png", str(tmp_path / "cat.png"), pixels, Image.fromarray(pixels)):
        np.testing.assert_array_equal(extractor(picture)["conv_0"].array, extractor(ready)["conv_0"].array)
    assert extractor([tmp_path / "cat.png", pixels]).pictures == ("cat.png", "picture_2")


@pytest.mark.parametrize(
    ("stored", "asked", "scale", "source"),
    [
        (None, None, 1 / 255, "default"),
        (None, {"scale": 2.0}, 2.0, "default, scale from the caller"),
        (None, {"scale": 2.0, "color": "bgr"}, 2.0, "default, scale and color from the caller"),
        (None, {}, 1 / 255, "default"),
        (Preprocessing(scale=3.0), None, 3.0, "model"),
        (Preprocessing(scale=3.0), {"color": "bgr"}, 3.0, "model, color from the caller"),
        (Preprocessing(scale=3.0), Preprocessing(scale=4.0), 4.0, "caller"),
    ],
)
def test_the_preprocessing_says_who_chose_it(
    stored: Preprocessing | None, asked: Preprocessing | dict[str, Any] | None, scale: float, source: str
) -> None:
    model = stack()
    onnx.helper.set_model_props(model, {KEY: Document(preprocessing=stored).to_text()})
    extractor = FeatureExtractor(model, provider="cpu", preprocessing=asked)
    assert (extractor.preprocessing.scale, extractor.preprocessing_source) == (scale, source)


def test_a_layer_whose_axes_are_unknown_is_refused_with_the_way_out() -> None:
    model = network("t = Transpose<perm = [0, 2, 3, 1]>(x) f = Flatten(t) y = Relu(f) c = Conv(z, w)", {"z": PICTURE})
    model.graph.node.append(onnx.helper.make_node("Reshape", ["y", "one"], ["last"]))
    with pytest.raises(
        LayerError,
        match=r"none of the 3 chosen layers can be extracted, 'other_1' for instance: the graph does not tell the axes "
        r"of what Flatten gives; choose others",
    ):
        FeatureExtractor(model, layers="op:Flatten,op:Relu,op:Reshape", provider="cpu")


def test_a_model_of_two_inputs_runs_as_far_as_the_picture_goes() -> None:
    model = network("c = Conv(x, w) y = Mul(c, z)", inputs="float[N,3,9,7] x, float[1,2] z")
    close(extract(model), values_of(network("y = Conv(x, w)"))["y"])


def test_a_layer_that_needs_a_second_input_is_refused() -> None:
    model = network("m = Mul(x, z) y = Conv(m, w)", inputs="float[N,3,9,7] x, float[1] z")
    with pytest.raises(
        ModelError,
        match=r"<memory> wants 1 inputs beside the picture: 'z' float32 \(1\); give each a value, "
        r"--input z=NUMBER or --input z=FILE.npy",
    ):
        FeatureExtractor(model, provider="cpu")


def test_a_run_that_fails_is_a_model_error() -> None:
    model = network(
        "r = Reshape(x, shape) y = Conv(r, w)", {"shape": np.array([1, 3, 5, 5])}, inputs="float[N,3,H,W] x"
    )
    with pytest.raises(
        ModelError,
        match=r"ONNX Runtime could not run <memory> on an input of 1 x 3 x 9 x 7: .*Reshape.*multiples of 32",
    ):
        FeatureExtractor(model, provider="cpu")(PICTURE)


def test_a_run_that_fails_at_a_fixed_size_gives_no_advice_on_sizes() -> None:
    extractor = FeatureExtractor(network("r = Relu(x) y = Conv(r, w)"), provider="cpu")
    extractor.input = ModelInput(name="z", shape=("N", 3, 9, 7), layout="NCHW", dtype="float32")
    with pytest.raises(ModelError, match=r"could not run <memory> on an input of 1 x 3 x 9 x 7: [^;]*$"):
        extractor(PICTURE)


def test_a_model_that_does_not_load_is_a_model_error() -> None:
    with pytest.raises(
        ModelError, match=r"ONNX Runtime [\d.]+ can't load <memory>: .*custom.*; check that the file is"
    ):
        FeatureExtractor(network("t = custom.Unknown(x) y = Conv(t, w)"), provider="cpu")


def test_a_model_that_does_not_load_prints_nothing_itself(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ModelError, match="can't load"):
        FeatureExtractor(network("t = custom.Unknown(x) y = Conv(t, w)"), provider="cpu")
    assert capfd.readouterr() == ("", "")


def test_a_map_that_contradicts_its_layout_is_no_map(tmp_path: Path) -> None:
    expose(network("y = Conv(x, w)"), tmp_path / "e.onnx")
    model = onnx.load(tmp_path / "e.onnx")
    (entry,) = model.metadata_props
    entry.value = entry.value.replace('"layout":"NCHW","dtype":"float","', '"layout":"NCDHW","dtype":"float","')
    onnx.save(model, tmp_path / "e.onnx")
    with pytest.raises(
        LayerError,
        match=r"none of the chosen layers gives a map, 'conv_0' for instance gave an array of shape \(1, 4, 7, 5\), "
        r"where the graph promises the axes NCDHW",
    ):
        FeatureExtractor(tmp_path / "e.onnx", provider="cpu")(PICTURE)


def test_an_exposed_file_whose_output_was_renamed_says_so(tmp_path: Path) -> None:
    expose(network("y = Conv(x, w)"), tmp_path / "e.onnx")
    model = onnx.load(tmp_path / "e.onnx")
    model.graph.output[0].name = model.graph.node[0].output[0] = "renamed"
    onnx.save(model, tmp_path / "e.onnx")
    with pytest.raises(ModelError, match=r"e\.onnx says that it exposes 'y', but has no such output: another tool"):
        FeatureExtractor(tmp_path / "e.onnx", provider="cpu")


def test_an_unknown_provider_is_refused_before_the_model_is_read() -> None:
    with pytest.raises(ProviderError, match=r"provider 'gpu' is unknown: choose 'auto', 'cpu' or 'cuda'"):
        FeatureExtractor("no such file", provider="gpu")  # type: ignore[arg-type]


def pretend(monkeypatch: pytest.MonkeyPatch, available: Sequence[str], got: Sequence[str]) -> list[list[str]]:
    """Let ONNX Runtime claim to have providers, and give sessions others; return what sessions were asked for."""
    asked: list[list[str]] = []
    real = onnxruntime.InferenceSession

    def session(content: Any, options: Any, providers: list[str]) -> Any:
        asked.append(providers)
        sys.stdout.write(
            "*************** EP Error ***************"
        )  # as ONNX Runtime does when a provider fails to start
        made = real(content, options, providers=["CPUExecutionProvider"])
        monkeypatch.setattr(made, "get_providers", lambda: list(got))
        return made

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(available))
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    return asked


CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


def test_cuda_that_is_listed_but_does_not_start_is_an_error_that_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = pretend(monkeypatch, [CUDA, CPU], [CPU])
    with pytest.raises(
        ProviderError,
        match=r"provider 'cuda' is not to be had, only CPUExecutionProvider: this ONNX Runtime is built for CUDA but "
        r"could not start it: .*nvidia-smi.*; or choose 'cpu' or 'auto'",
    ):
        FeatureExtractor(stack(), provider="cuda")
    assert asked == [[CUDA, CPU]]


def test_cuda_without_a_build_for_it_is_an_error_that_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = pretend(monkeypatch, [CPU], [CPU])
    with pytest.raises(ProviderError, match=r'is built without CUDA: .*pip install "onnxfeat\[gpu\]"; or choose'):
        FeatureExtractor(stack(), provider="cuda")
    assert asked == [[CPU]]


def test_auto_falls_back_to_cpu_with_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = pretend(monkeypatch, [CUDA, CPU], [CPU])
    with caplog.at_level(logging.DEBUG, logger="onnxfeat"):
        extractor = FeatureExtractor(stack(), provider="auto")
        features = extractor([PICTURE, PICTURE])
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith("running on CPU instead of CUDA: this ONNX Runtime is built for CUDA but")
    assert (features.provider.asked, features.provider.got) == ("auto", CPU)
    assert features.provider.note in record.getMessage()
    assert asked == [[CUDA, CPU]]
    assert capfd.readouterr().out == ""


def test_auto_on_a_build_for_cpu_is_a_note_and_no_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pretend(monkeypatch, [CPU], [CPU])
    extractor = FeatureExtractor(stack(), provider="auto")
    assert "built without CUDA" in extractor.provider.note
    assert caplog.records == []


@pytest.mark.parametrize("provider", ["auto", "cuda"])
def test_cuda_that_runs_is_used_without_a_word(
    provider: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pretend(monkeypatch, [CUDA, CPU], [CUDA, CPU])
    extractor = FeatureExtractor(stack(), provider=provider)
    assert (extractor.provider.asked, extractor.provider.got, extractor.provider.note) == (provider, CUDA, "")
    assert caplog.records == []


def test_cpu_is_never_anything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = pretend(monkeypatch, [CUDA, CPU], [CPU])
    assert FeatureExtractor(stack(), provider="cpu").provider.note == ""
    assert asked == [[CPU]]


def test_without_onnx_runtime_the_extra_to_install_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(
        MissingPackageError, match=r'running a model needs ONNX Runtime .*pip install "onnxfeat\[cpu\]"'
    ):
        FeatureExtractor(stack(), provider="cpu")


def test_an_exception_without_words_is_told_by_its_class(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError

    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    with pytest.raises(ModelError, match="can't load <memory>: RuntimeError; check"):
        FeatureExtractor(stack(), provider="cpu")


def test_pictures_and_models_of_the_caller_are_not_changed() -> None:
    model, picture = stack(), PICTURE.copy()
    before = model.SerializeToString(deterministic=True)
    features = FeatureExtractor(model, provider="cpu")(picture)
    np.testing.assert_array_equal(picture, PICTURE)
    assert picture.flags.writeable
    assert model.SerializeToString(deterministic=True) == before
    assert not features["conv_0"].array.flags.writeable


def test_the_same_picture_gives_the_same_bits_again() -> None:
    extractor = FeatureExtractor(stack(), provider="cpu")
    first, second = extractor(PICTURE), extractor(PICTURE)
    assert all((first[name].array == second[name].array).all() for name in first)


def test_the_shipped_models_agree_with_the_evaluator_of_onnx(models: Path) -> None:
    path = models / "shapes_small.onnx"
    extractor = FeatureExtractor(path, provider="cpu")
    target = extractor.input
    picture = np.random.default_rng(0).uniform(0, 1, [axis if isinstance(axis, int) else 1 for axis in target.shape])
    picture = picture.astype(np.float32)
    features = extractor(picture)
    found = ReferenceEvaluator(onnx.load(path)).run(None, {target.name: picture}, intermediate=True)
    for layer in extractor.layers:
        expected = found[layer.value]  # type: ignore[call-overload]
        if layer.layout == "NHWC":
            expected = expected.transpose(0, 3, 1, 2)
        close(features[layer.name].array, expected)


@pytest.mark.gpu
def test_cuda_gives_the_maps_of_the_cpu(models: Path) -> None:
    path, picture = models / "shapes_small.onnx", models / "pictures/chelsea.png"
    on_gpu = FeatureExtractor(path, provider="cuda")(picture)
    on_cpu = FeatureExtractor(path, provider="cpu")(picture)
    assert on_gpu.provider.got == "CUDAExecutionProvider"
    for name, expected in on_cpu.items():
        spread = float(np.ptp(expected.array))
        # CUDA convolves in TF32 by default: 10 bits of mantissa.
        np.testing.assert_allclose(on_gpu[name].array, expected.array, atol=5e-3 * spread)
