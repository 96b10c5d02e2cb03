from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnxruntime import quantization as ort_quantization

from onnxfeat import FeatureExtractor, expose, list_layers
from onnxfeat.graph.quantization import boundary, quantizations_of
from onnxfeat.graph.reading import read_graph
from onnxfeat.records import Quantization

Array = NDArray[Any]

# All scales are powers of two and all numbers small and whole, so that nothing is rounded on the way.
RNG = np.random.default_rng(0)
PICTURE = RNG.integers(-4, 5, (1, 3, 8, 8)).astype(np.float32)
EYE = np.eye(3).reshape(3, 3, 1, 1)
CONSTANTS: dict[str, Any] = {
    "w": RNG.integers(-2, 3, (3, 3, 3, 3)).astype(np.float32),
    "b": np.array([1, -2, 3], np.float32),
    "one": np.float32(1),
    "two": np.float32(2),
    "half": np.float32(0.5),
    "tiny": np.float32(2**-8),
    "inf": np.float32(np.inf),
    "per_channel": np.array([0.5, 1, 2], np.float32),
    "blocks": np.ones((1, 3, 8, 2), np.float32),
    "u8": np.uint8(128),
    "u8_low": np.uint8(0),
    "s8": np.int8(-3),
    "s8_low": np.int8(-128),
    "s8_high": np.int8(127),
    "u16": np.uint16(2**15),
    "s16": np.int16(-7),
    "s32": np.int32(0),
    "u8_channels": np.array([3, 128, 255], np.uint8),
    "s8_channels": np.array([-128, 0, 127], np.int8),
    "w8": RNG.integers(-2, 3, (3, 3, 3, 3)).astype(np.int8),
    "eye8": EYE.astype(np.int8),
    "s8_zero": np.int8(0),
    "b32": np.array([1, -2, 3], np.int32),
    "bias": np.array([1, -2, 3], np.float32).reshape(1, 3, 1, 1),
    "w_scale": np.float32(0.25),
    "axes": np.array([2, 3]),
}


def network(nodes: str, outputs: str = "y") -> onnx.ModelProto:
    """Return a model of these nodes on a picture `x` of 3 x 8 x 8, with the constants that they name."""
    declared = ", ".join(f"float {name}" for name in outputs.split())
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>\n'
        f" g (float[1,3,8,8] x) => ({declared}) {{ {nodes} }}"
    )
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    used = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in CONSTANTS.items() if name in used
    )
    return model


def pair(value: str, name: str, scale: str = "one", zero_point: str = "u8", axis: str = "") -> str:
    """Return QuantizeLinear of `value` to `name`, and DequantizeLinear of that to `named`."""
    inputs = ", ".join(part for part in (scale, zero_point) if part)
    return f"{name} = QuantizeLinear{axis}({value}, {inputs}) {name}d = DequantizeLinear{axis}({name}, {inputs}) "


def reference(model: onnx.ModelProto, value: str) -> Array:
    """Return a value of an unmodified model, by onnx's own evaluator."""
    found = dict(ReferenceEvaluator(model).run(None, {"x": PICTURE}, intermediate=True))
    return np.asarray(found[value])


def real(integers: Array, scale: Any, zero_point: Any, axis: int | None = None) -> Array:
    """Return what integers stand for, in NumPy alone."""
    shape = [1] * integers.ndim
    if axis is not None:
        shape[axis] = -1
    return (integers.astype(np.float64) - np.asarray(zero_point, np.float64).reshape(shape)) * np.asarray(
        scale, np.float64
    ).reshape(shape)


def map_of_value(model: onnx.ModelProto, value: str, layers: str = "kind:any") -> Any:
    """Return the feature map of the first layer that is watched at a value."""
    extractor = FeatureExtractor(model, layers=layers, provider="cpu")
    features = extractor(PICTURE)
    return next(feature_map for feature_map in features.values() if feature_map.layer.value == value)


# Which integers stand for what.


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        (pair("x", "q", "half", "u8") + "y = Neg(qd)", Quantization(scale=(0.5,), zero_point=(128,))),
        (pair("x", "q", "half", "s8") + "y = Neg(qd)", Quantization(scale=(0.5,), zero_point=(-3,))),
        (pair("x", "q", "half", "u16") + "y = Neg(qd)", Quantization(scale=(0.5,), zero_point=(2**15,))),
        (pair("x", "q", "half", "s16") + "y = Neg(qd)", Quantization(scale=(0.5,), zero_point=(-7,))),
        (pair("x", "q", "half", "") + "y = Neg(qd)", Quantization(scale=(0.5,), zero_point=(0,))),
        (
            "s = Constant<value_float = 0.25>() " + pair("x", "q", "s", "u8") + "y = Neg(qd)",
            Quantization(scale=(0.25,), zero_point=(128,)),
        ),
        (
            "s = Constant<value_float = 0.25>() t = Identity(s) " + pair("x", "q", "t", "u8") + "y = Neg(qd)",
            None,  # computed, as far as this looks
        ),
        (
            pair("x", "q", "per_channel", "s8_channels", "<axis = 1>") + "y = Neg(qd)",
            Quantization(scale=(0.5, 1, 2), zero_point=(-128, 0, 127), axis=1),
        ),
        (
            pair("x", "q", "per_channel", "u8_channels", "<axis = -3>") + "y = Neg(qd)",
            Quantization(scale=(0.5, 1, 2), zero_point=(3, 128, 255), axis=1),
        ),
        (
            pair("x", "q", "per_channel", "u8_channels") + "y = Neg(qd)",  # axis is 1 unless told otherwise
            Quantization(scale=(0.5, 1, 2), zero_point=(3, 128, 255), axis=1),
        ),
        (pair("x", "q", "inf", "u8") + "y = Neg(qd)", None),
        (
            "q = QuantizeLinear<axis = 3, block_size = 4>(x, blocks) y = DequantizeLinear<axis = 3, block_size = 4>"
            "(q, blocks)",
            None,
        ),
        ("m = ReduceMax<keepdims = 0>(x) q = QuantizeLinear(x, m, u8) y = DequantizeLinear(q, m, u8)", None),
    ],
)
def test_a_quantize_linear_says_what_its_integers_stand_for(nodes: str, expected: Quantization | None) -> None:
    assert quantizations_of(read_graph(network(nodes))).get("q") == expected


@pytest.mark.parametrize(
    "moving",
    [
        "m = MaxPool<kernel_shape = [2, 2]>(q)",
        "m = Transpose<perm = [0, 2, 3, 1]>(q)",
        "m = Flatten(q)",
        "m = Squeeze(q)",
        "m = Identity(q)",
        "a = Identity(q) m = Transpose(a)",
    ],
)
def test_integers_that_are_only_moved_mean_what_they_meant_before(moving: str) -> None:
    found = quantizations_of(read_graph(network(f"{pair('x', 'q', 'half', 's8')} {moving} y = Cast<to = 1>(m)")))
    assert found["m"] == Quantization(scale=(0.5,), zero_point=(-3,))


def test_integers_per_channel_keep_their_meaning_only_where_the_axis_stays() -> None:
    nodes = pair("x", "q", "per_channel", "u8_channels", "<axis = 1>")
    more = "m = MaxPool<kernel_shape = [2, 2]>(q) t = Transpose<perm = [0, 2, 3, 1]>(q) y = Cast<to = 1>(t)"
    found = quantizations_of(read_graph(network(nodes + more)))
    assert found["m"] == found["q"]
    assert "t" not in found


@pytest.mark.parametrize(
    "node",
    [
        "v = com.microsoft.QLinearReduceMean<axes = [2, 3]>(q, one, u8, half, s8)",
        "v = com.microsoft.QLinearSoftmax<opset = 13>(q, one, u8, half, s8)",
        "v = com.microsoft.QLinearWhere(q, q, one, u8, q, one, u8, half, s8)",
        "v = com.microsoft.QGemm(q, one, u8, q, one, u8, b32, half, s8)",
        "v = com.microsoft.QGemm(q, one, u8, q, one, u8, , half, s8)",
        "v = QLinearMatMul(q, one, u8, q, one, u8, half, s8)",
        "v = com.microsoft.QuantizeLinear(x, half, s8)",
    ],
)
def test_each_integer_operator_has_its_scale_where_its_definition_says(node: str) -> None:
    found = quantizations_of(read_graph(network(f"{pair('x', 'q')} {node} y = Cast<to = 1>(v)")))
    assert found["v"] == Quantization(scale=(0.5,), zero_point=(-3,))


def test_a_gemm_that_gives_real_numbers_has_no_quantization() -> None:
    model = network(f"{pair('x', 'q')} v = com.microsoft.QGemm(q, one, u8, q, one, u8) y = Neg(v)")
    assert "v" not in quantizations_of(read_graph(model))


def test_an_operator_of_a_foreign_domain_is_not_taken_for_a_known_one() -> None:
    model = network("y = Neg(x)")
    model.opset_import.add(domain="foreign", version=1)
    model.graph.node.append(onnx.helper.make_node("QuantizeLinear", ["x", "one", "u8"], ["q"], domain="foreign"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(1, np.float32), "one"))
    assert quantizations_of(read_graph(model)) == {}


# Where a value may be watched.


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        (f"c = Conv(x, w) {pair('c', 'q')} y = Neg(qd)", "q"),
        (f"c = Conv(x, w) {pair('c', 'q')} e = DequantizeLinear(q, one, u8) y = Add(qd, e)", "q"),
        (f"c = Conv(x, w) {pair('c', 'q')} y = Add(qd, c)", None),
        (f"c = Conv(x, w) {pair('c', 'q')} {pair('c', 'r', 'half')} y = Add(qd, rd)", None),
        ("c = Conv(x, w) q = QuantizeLinear(one, c) y = Cast<to = 1>(q)", None),  # it is the scale there
        ("c = Conv(x, w) y = Neg(c)", None),
        ("y = Conv(x, w) c = Identity(y)", None),
    ],
)
def test_a_value_is_watched_behind_the_one_quantize_linear_that_uses_it(nodes: str, expected: str | None) -> None:
    assert boundary(read_graph(network(nodes)), "c") == expected


def test_an_output_of_the_model_is_watched_where_it_is() -> None:
    graph = read_graph(network(f"c = Conv(x, w) {pair('c', 'q')} y = Neg(qd)", "y c"))
    assert boundary(graph, "c") is None


# Real units, end to end.


def qdq(scale: str, zero_point: str, axis: str = "") -> str:
    """Return the nodes of a QDQ network: the values of its conv and pool are `q1` and `q2`."""
    last = "s8_zero" if zero_point.startswith("s8") else "u8"
    return (
        f"wd = DequantizeLinear(w8, one, s8_zero) {pair('x', 'q0', 'one', last)} "
        f"c = Conv<pads = [1, 1, 1, 1]>(q0d, wd, b) r = Relu(c) "
        f"{pair('r', 'q1', scale, zero_point, axis)} p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(q1d) "
        f"{pair('p', 'q2', scale, zero_point, axis)} y = Neg(q2d)"
    )


@pytest.mark.parametrize("scale", ["one", "half"])
@pytest.mark.parametrize("zero_point", ["u8", "u8_low", "s8", "s8_low", "s8_high", "u16", "s16"])
def test_maps_of_a_qdq_network_are_in_real_units(scale: str, zero_point: str) -> None:
    model = network(qdq(scale, zero_point))
    for value in ("q1", "q2"):
        integers = reference(model, value)
        feature_map = map_of_value(model, value, "kind:conv,kind:pool")
        expected = real(integers, CONSTANTS[scale], CONSTANTS[zero_point])
        np.testing.assert_array_equal(feature_map.array, expected)
        np.testing.assert_array_equal(feature_map.array, reference(model, f"{value}d"))
        assert feature_map.layer.dtype == str(integers.dtype)


@pytest.mark.parametrize("axis", ["<axis = 1>", "<axis = -3>"])
@pytest.mark.parametrize("zero_point", ["u8_channels", "s8_channels"])
def test_maps_quantized_per_channel_are_in_real_units(axis: str, zero_point: str) -> None:
    model = network(qdq("per_channel", zero_point, axis))
    for value in ("q1", "q2"):
        integers = reference(model, value)
        feature_map = map_of_value(model, value, "kind:conv,kind:pool")
        expected = real(integers, CONSTANTS["per_channel"], CONSTANTS[zero_point], 1)
        np.testing.assert_array_equal(feature_map.array, expected)
        assert feature_map.saturated == pytest.approx(share_at_an_end(integers, CONSTANTS[zero_point], 1))


def test_a_map_whose_zero_point_is_left_out_is_in_real_units() -> None:
    model = network(f"c = Conv(x, w) {pair('c', 'q', 'tiny', '')} y = Neg(qd)")
    feature_map = map_of_value(model, "q", "kind:conv")
    integers = reference(model, "q")
    np.testing.assert_array_equal(feature_map.array, integers.astype(np.float32) / 256)
    assert feature_map.saturated == pytest.approx(np.mean(integers == 255))
    assert 0 < feature_map.saturated < np.mean((integers == 255) | (integers == 0))


def test_several_dequantizers_behind_one_quantizer_are_one_boundary() -> None:
    nodes = f"{pair('x', 'q0')} c = Conv(q0d, w) {pair('c', 'q')} e = DequantizeLinear(q, one, u8) y = Add(qd, e)"
    model = network(nodes)
    feature_map = map_of_value(model, "q", "kind:conv")
    np.testing.assert_array_equal(feature_map.array, reference(model, "qd"))


def test_maps_channels_last_are_quantized_along_their_own_axis() -> None:
    behind = pair("t", "q", "per_channel", "s8_channels", "<axis = 3>")
    model = network(f"c = Conv(x, w) t = Transpose<perm = [0, 2, 3, 1]>(c) {behind} y = Neg(qd)")
    feature_map = map_of_value(model, "q")
    assert feature_map.layer.layout == "NHWC"
    np.testing.assert_array_equal(feature_map.array, reference(model, "qd").transpose(0, 3, 1, 2))


# Which share is saturated.


def share_at_an_end(integers: Array, zero_point: Any, axis: int | None = None) -> float:
    """Return the share of integers at an end of their type that does not stand for 0, counted one by one."""
    ends = {"uint8": (0, 255), "int8": (-128, 127), "uint16": (0, 2**16 - 1), "int16": (-(2**15), 2**15 - 1)}
    points = np.asarray(zero_point).ravel().tolist()
    count = 0
    for place in np.ndindex(integers.shape):
        integer, point = int(integers[place]), points[0 if axis is None else place[axis]]
        count += int(integer in ends[str(integers.dtype)] and integer != point)
    return count / integers.size


@pytest.mark.parametrize(
    ("integers", "zero_point", "expected"),
    [
        (np.array([[[[0, 1, 128, 255]]]], np.uint8), 128, 0.5),
        (np.array([[[[0, 1, 128, 255]]]], np.uint8), 0, 0.25),
        (np.array([[[[0, 1, 128, 255]]]], np.uint8), 255, 0.25),
        (np.array([[[[-128, -127, 126, 127]]]], np.int8), 0, 0.5),
        (np.array([[[[-128, -127, 126, 127]]]], np.int8), -128, 0.25),
        (np.array([[[[0, 255, 2**16 - 1, 9]]]], np.uint16), 0, 0.25),
        (np.array([[[[-(2**15), -128, 127, 2**15 - 1]]]], np.int16), 3, 0.5),
        (np.zeros((1, 0, 2, 2), np.uint8), 3, 0.0),
    ],
)
def test_the_ends_of_the_integers_are_saturated_but_for_an_end_that_stands_for_zero(
    integers: Array, zero_point: int, expected: float
) -> None:
    assert Quantization(scale=(1.0,), zero_point=(zero_point,)).saturated(integers) == expected


@pytest.mark.parametrize("scale", ["one", "half", "tiny"])
def test_a_map_tells_which_share_of_it_is_saturated(scale: str) -> None:
    model = network(qdq(scale, "u8_low"))
    integers = reference(model, "q1")
    feature_map = map_of_value(model, "q1", "kind:conv")
    assert feature_map.saturated == pytest.approx(np.mean(integers == 255))
    assert (feature_map.saturated > 0) == (scale == "tiny")


integer_types: st.SearchStrategy[Any] = st.sampled_from([np.uint8, np.int8, np.uint16, np.int16])


@st.composite
def quantized(draw: st.DrawFn) -> tuple[Array, list[int], list[float], int | None]:
    """Draw integers, zero points, scales and the axis that they belong to."""
    dtype = draw(integer_types)
    integers = draw(arrays.arrays(dtype, arrays.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=4)))
    axis = draw(st.none() | st.integers(0, integers.ndim - 1))
    length = 1 if axis is None else integers.shape[axis]
    limits: Any = np.iinfo(dtype)
    points = draw(
        st.lists(st.integers(int(limits.min), int(limits.max)) | st.just(0), min_size=length, max_size=length)
        if limits.min < 0
        else st.lists(st.integers(0, int(limits.max)), min_size=length, max_size=length)
    )
    scales = draw(st.lists(st.floats(2**-10, 2**10, width=32), min_size=length, max_size=length))
    return integers, points, scales, axis


@given(quantized())
def test_scale_and_zero_point_go_along_their_axis_as_in_numpy(
    case: tuple[Array, list[int], list[float], int | None],
) -> None:
    integers, points, scales, axis = case
    quantization = Quantization(scale=tuple(scales), zero_point=tuple(points), axis=axis)
    found = quantization.dequantize(integers)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, real(integers, scales, points, axis), rtol=1e-6)
    assert quantization.saturated(integers) == pytest.approx(share_at_an_end(integers, points, axis))


@given(
    arrays.arrays(np.float32, (2, 3), elements=st.floats(-100, 100, width=32)),
    st.floats(2**-8, 2**8, width=32),
    st.integers(-128, 127),
)
def test_a_real_value_comes_back_from_its_integer_to_within_half_a_step(
    values: Array, scale: float, zero_point: int
) -> None:
    wide = np.rint(values.astype(np.float64) / scale) + zero_point
    integers = np.clip(wide, -128, 127).astype(np.int8)
    found = Quantization(scale=(scale,), zero_point=(zero_point,)).dequantize(integers)
    inside = wide == integers
    error = np.abs(found[inside] - values[inside].astype(np.float64))
    assert (error <= scale / 2 + 1e-5 * np.abs(values[inside])).all()


# Networks of integer operators.

CONV = "q = QuantizeLinear(x, one, u8) c = QLinearConv(q, one, u8, eye8, one, s8_zero, one, u8) "


def in_steps(values: Array, scale: float, zero_point: int, least: int = 0, most: int = 255) -> Array:
    """Return the real numbers that are left of others once they are quantized."""
    return np.asarray((np.clip(np.rint(values / scale) + zero_point, least, most) - zero_point) * scale)


def pooled(values: Array) -> Array:
    """Return the means of squares of 2 x 2, side by side."""
    count, channels, rows, columns = values.shape
    return np.asarray(values.reshape(count, channels, rows // 2, 2, columns // 2, 2).mean(axis=(3, 5)))


INTEGER_OPERATORS: dict[str, tuple[str, Callable[[Array], Array], float, int]] = {
    "QLinearAdd": ("v = com.microsoft.QLinearAdd(c, one, u8, q, one, u8, half, u8)", lambda x: x + x, 0.5, 128),
    "QLinearMul": ("v = com.microsoft.QLinearMul(c, one, u8, q, one, u8, half, u8)", lambda x: x * x, 0.5, 128),
    "QLinearLeakyRelu": (
        "v = com.microsoft.QLinearLeakyRelu<alpha = 0.5>(c, one, u8, half, u8)",
        lambda x: np.where(x < 0, x / 2, x),
        0.5,
        128,
    ),
    "QLinearConcat": (
        "v = com.microsoft.QLinearConcat<axis = 1>(half, u8, c, one, u8, q, one, u8)",
        lambda x: np.concatenate([x, x], axis=1),
        0.5,
        128,
    ),
    "QLinearSigmoid": (
        "v = com.microsoft.QLinearSigmoid(c, one, u8, w_scale, u8_low)",
        lambda x: 1 / (1 + np.exp(-x)),
        0.25,
        0,
    ),
    "QLinearAveragePool": (
        "v = com.microsoft.QLinearAveragePool<kernel_shape = [2, 2], strides = [2, 2]>(c, one, u8, w_scale, u8)",
        pooled,
        0.25,
        128,
    ),
    "QLinearAveragePool, channels last": (
        "l = Transpose<perm = [0, 2, 3, 1]>(c) v = com.microsoft.QLinearAveragePool<kernel_shape = [2, 2], "
        "strides = [2, 2], channels_last = 1>(l, one, u8, w_scale, u8)",
        pooled,
        0.25,
        128,
    ),
    "QLinearGlobalAveragePool": (
        "v = com.microsoft.QLinearGlobalAveragePool(c, one, u8, w_scale, u8)",
        lambda x: x.mean(axis=(2, 3), keepdims=True),
        0.25,
        128,
    ),
    "QLinearGlobalAveragePool, channels last": (
        "l = Transpose<perm = [0, 2, 3, 1]>(c) "
        "v = com.microsoft.QLinearGlobalAveragePool<channels_last = 1>(l, one, u8, w_scale, u8)",
        lambda x: x.mean(axis=(2, 3), keepdims=True),
        0.25,
        128,
    ),
    "MaxPool": (
        "v = MaxPool<kernel_shape = [8, 8]>(c)",
        lambda x: x.max(axis=(2, 3), keepdims=True),
        1,
        128,
    ),
}


@pytest.mark.parametrize("case", INTEGER_OPERATORS)
def test_integer_operators_give_real_units(case: str) -> None:
    nodes, function, scale, zero_point = INTEGER_OPERATORS[case]
    model = network(f"{CONV} {nodes} y = Cast<to = 1>(v)")
    feature_map = map_of_value(model, "v")
    assert feature_map.layer.quantization == Quantization(scale=(scale,), zero_point=(zero_point,))
    expected = in_steps(function(PICTURE.astype(np.float64)), scale, zero_point)
    # A mean may lie between two steps, and a table of sigmoids be rounded to either.
    np.testing.assert_allclose(feature_map.array, expected, atol=0 if "AveragePool" not in case else scale)
    if "Pool" not in case:
        return
    assert feature_map.layer.kind == "pool"


@pytest.mark.parametrize("zero_point", ["u8", "u8_low", "s8"])
def test_a_qlinear_conv_gives_real_units(zero_point: str) -> None:
    model = network(
        f"q = QuantizeLinear(x, one, {zero_point}) "
        f"c = QLinearConv(q, one, {zero_point}, w8, w_scale, s8_zero, w_scale, {zero_point}, b32) "
        f"p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(c) y = DequantizeLinear(p, w_scale, {zero_point})"
    )
    for value in ("c", "p"):
        integers = reference(model, value)
        feature_map = map_of_value(model, value, "0:9")
        np.testing.assert_array_equal(feature_map.array, real(integers, 0.25, CONSTANTS[zero_point]))
        assert feature_map.saturated == pytest.approx(share_at_an_end(integers, CONSTANTS[zero_point]))


def test_a_dynamically_quantized_conv_is_watched_as_real_numbers_behind_its_bias() -> None:
    model = network(
        "q, s, z = DynamicQuantizeLinear(x) i = ConvInteger<pads = [1, 1, 1, 1]>(q, w8, z, s8_zero) "
        "f = Cast<to = 1>(i) t = Mul(s, w_scale) m = Mul(f, t) a = Add(m, bias) r = Relu(a) "
        "p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(r) y = Neg(p)"
    )
    features = FeatureExtractor(model, provider="cpu")(PICTURE)
    conv, pool = features.values()
    assert (conv.layer.value, conv.layer.raw_value, conv.layer.activation) == ("r", "a", "Relu")
    np.testing.assert_allclose(conv.array, reference(model, "r"), atol=1e-5)
    np.testing.assert_allclose(pool.array, reference(model, "p"), atol=1e-5)
    assert conv.saturated is None
    # Against the float network: x has 255 steps over 8, w8 is exact.
    weights = CONSTANTS["w8"].astype(np.float64) / 4
    padded = np.pad(PICTURE.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    exact = np.einsum("nchwij,ocij->nohw", windows, weights) + CONSTANTS["bias"]
    assert np.abs(conv.array - np.maximum(exact, 0)).max() <= 8 / 255 / 2 * np.abs(weights).sum(axis=(1, 2, 3)).max()


# Networks that ONNX Runtime's own tools quantized.

FLOAT_NET = """
s1 = Conv<pads = [1, 1, 1, 1]>(x, w1, b1)
s2 = Relu(s1)
s3 = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(s2)
a1 = Conv<pads = [1, 1, 1, 1]>(s3, w2)
a2 = Relu(a1)
a3 = Conv<pads = [1, 1, 1, 1]>(a2, w3, b3)
a4 = Add(a3, s3)
a5 = Relu(a4)
h1 = Conv(a5, w4, b4)
h2 = HardSwish(h1)
g1 = Conv(a5, w5)
g2 = Sigmoid(g1)
g3 = Mul(g1, g2)
j = Concat<axis = 1>(h2, g3)
k1 = AveragePool<kernel_shape = [2, 2], strides = [2, 2]>(j)
k2 = Conv(k1, w6)
k3 = LeakyRelu<alpha = 0.1>(k2)
k4 = GlobalAveragePool(k3)
k5 = Flatten(k4)
y = Gemm(k5, w7)
"""
FLOAT_SHAPES = {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (8, 8, 3, 3), "w3": (8, 8, 3, 3), "b3": (8,), "w4": (8, 8, 1, 1)}
FLOAT_SHAPES |= {"b4": (8,), "w5": (8, 8, 1, 1), "w6": (8, 16, 1, 1), "w7": (8, 5)}
PICTURES = [np.random.default_rng(seed).uniform(-1, 1, (1, 3, 16, 16)).astype(np.float32) for seed in range(8)]


class Calibration(ort_quantization.CalibrationDataReader):  # type: ignore[misc]
    """Gives the pictures that scales are chosen by, each once."""

    def __init__(self) -> None:
        self._rest: Iterator[Array] = iter(PICTURES)

    def get_next(self) -> dict[str, Array] | None:
        picture = next(self._rest, None)
        return None if picture is None else {"x": picture}


@pytest.fixture(scope="module")
def float_net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 14]>\n g (float[1,3,16,16] x) => (float[1,5] y) {{ {FLOAT_NET} }}'
    )
    random = np.random.default_rng(5)
    for name, shape in FLOAT_SHAPES.items():
        fan = math.prod(shape[1:]) if len(shape) == 4 else 1
        values = random.normal(size=shape) * (2 / fan) ** 0.5 if len(shape) == 4 else random.normal(size=shape) / 3
        model.graph.initializer.append(onnx.numpy_helper.from_array(values.astype(np.float32), name))
    path = tmp_path_factory.mktemp("quantized") / "float.onnx"
    onnx.save(model, path)
    return path


def quantized_net(float_net: Path, kind: str) -> Path:
    """Return the path of a quantized copy of the network, made by ONNX Runtime's tools."""
    path = float_net.with_name(f"{kind.replace(' ', '_')}.onnx")
    if path.exists():
        return path
    form, *words = kind.split()
    types = {"u8": ort_quantization.QuantType.QUInt8, "s8": ort_quantization.QuantType.QInt8}
    weights = types["s8"] if "s8" in words or "channel" in words or form == "QDQ" else types["u8"]
    if form == "dynamic":
        ort_quantization.quantize_dynamic(float_net, path, weight_type=types[words[0]])
        return path
    ort_quantization.quantize_static(
        float_net,
        path,
        Calibration(),
        quant_format=ort_quantization.QuantFormat[form],
        activation_type=types[words[0]],
        weight_type=weights,
        per_channel="channel" in words,
        extra_options={"DedicatedQDQPair": "dedicated" in words, "ActivationSymmetric": "symmetric" in words},
    )
    return path


STATIC = [
    "QDQ u8",
    "QDQ s8",
    "QDQ u8 channel",
    "QDQ s8 channel",
    "QDQ s8 channel symmetric",
    "QDQ u8 dedicated",
    "QDQ s8 dedicated",
    "QOperator u8",
    "QOperator u8 channel",
    "QOperator s8",
]


def run_in_runtime(path: Path, picture: Array, *names: str) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return list(session.run(list(names) or [x.name for x in session.get_outputs()], {"x": picture}))


@pytest.mark.parametrize("layers", [None, "kind:conv,kind:pool"])
@pytest.mark.parametrize("kind", [*STATIC, "dynamic u8", "dynamic s8"])
def test_watching_a_quantized_network_leaves_its_outputs_equal_to_the_bit(
    kind: str, layers: str | None, float_net: Path, tmp_path: Path
) -> None:
    path = quantized_net(float_net, kind)
    exposed = expose(path, tmp_path / "exposed.onnx", layers=layers, cut=False)
    assert len(exposed) >= 8
    for picture in PICTURES:
        before = run_in_runtime(path, picture)
        after = run_in_runtime(tmp_path / "exposed.onnx", picture)
        assert [x.tobytes() for x in after[: len(before)]] == [x.tobytes() for x in before]


@pytest.mark.parametrize("kind", STATIC)
def test_maps_of_a_quantized_network_are_within_few_steps_of_those_of_the_float_network(
    kind: str, float_net: Path
) -> None:
    path = quantized_net(float_net, kind)
    features = FeatureExtractor(path, layers="kind:conv,kind:pool", provider="cpu")(PICTURES[0])
    float_model = onnx.load(float_net)
    names = [name for node in float_model.graph.node for name in node.output]
    float_model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name != "y")
    watched = float_net.with_name("watched.onnx")
    onnx.save(float_model, watched)
    expected = dict(zip(names, run_in_runtime(watched, PICTURES[0], *names), strict=True))
    compared = 0
    for feature_map in features.values():
        name = feature_map.layer.value.split("_")[0]
        if feature_map.layer.op_type == "QLinearConv":  # its Relu is inside
            name = {"s1": "s2", "a1": "a2"}.get(name, name)
        range_ = np.ptp(expected[name])
        error = np.abs(feature_map.array - expected[name]).max()
        steps = feature_map.layer.quantization.scale[0] if feature_map.layer.quantization else range_ / 255
        assert error <= max(8 * steps, 0.05 * range_), (feature_map.layer.name, error / steps)
        compared += 1
    assert compared >= 7


@pytest.mark.parametrize("kind", STATIC)
def test_every_conv_of_a_quantized_network_knows_what_its_integers_stand_for(kind: str, float_net: Path) -> None:
    path = quantized_net(float_net, kind)
    for layer in list_layers(path, "kind:conv"):
        assert layer.quantization is not None, layer
        assert layer.dtype in ("uint8" if " u8" in kind else "int8", None)  # operators of com.microsoft tell no type


# On x86 ONNX Runtime has kernels for uint8 alone, and turns int8 to that first: watched or not.

S8_CONVS = (
    f"{pair('x', 'q0', 'one', 's8')} wd = DequantizeLinear(w8, w_scale, s8_zero) "
    f"c1 = Conv(q0d, wd) {pair('c1', 'q1', 'half', 's8')} c2 = Conv<pads = [1, 1, 1, 1]>(q1d, wd) "
)
S8_NETS = {
    "more nodes follow": S8_CONVS + pair("c2", "q2", "two", "s8") + "y = Neg(q2d)",
    "the last one is an output": S8_CONVS + "q2 = QuantizeLinear(c2, two, s8) y = DequantizeLinear(q2, two, s8)",
}


def kernels(model: Path, tmp_path: Path) -> list[str]:
    """Return the operators that ONNX Runtime runs of a model, once it has fused them."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]


@pytest.mark.parametrize("cut", [True, False])
@pytest.mark.parametrize("net", S8_NETS)
def test_watched_int8_values_leave_the_integer_kernels_fused(net: str, cut: bool, tmp_path: Path) -> None:
    model = network(S8_NETS[net])
    onnx.save(model, tmp_path / "model.onnx")
    layers = expose(tmp_path / "model.onnx", tmp_path / "exposed.onnx", cut=cut)
    assert [layer.value for layer in layers] == ["q1", "q2"]
    fused = kernels(tmp_path / "model.onnx", tmp_path).count("QLinearConv")
    assert kernels(tmp_path / "exposed.onnx", tmp_path).count("QLinearConv") == fused == 2
    for file in ("model.onnx", "exposed.onnx"):
        features = FeatureExtractor(tmp_path / file, provider="cpu")(PICTURE)
        for feature_map in features.values():
            scale = CONSTANTS["half" if feature_map.layer.value == "q1" else "two"]
            integers = reference(model, feature_map.layer.value)
            np.testing.assert_array_equal(feature_map.array, real(integers, scale, CONSTANTS["s8"]))
            assert feature_map.saturated == pytest.approx(share_at_an_end(integers, CONSTANTS["s8"]))


@pytest.mark.parametrize(
    "nodes",
    [
        qdq("one", "u8"),  # the runtime has kernels for these
        qdq("one", "s16"),
        qdq("per_channel", "s8_channels", "<axis = 1>"),
        # Two use the value, so that the runtime keeps it int8.
        f"c = Conv(x, w) {pair('c', 'q', 'one', 's8')} e = DequantizeLinear(q, one, s8) y = Add(qd, e)",
        f"c = Conv(x, w) {pair('c', 'q', 'one', 's8')} y = Add(qd, qd)",
        f"c = Conv(x, w) {pair('c', 'q', 'one', 's8')} e = Exp(qd) n = Neg(qd) y = Add(n, e)",
        # The two do not agree, or leave the zero point out.
        "c = Conv(x, w) q = QuantizeLinear(c, one, s8) d = DequantizeLinear(q, one, s8_zero) y = Neg(d)",
        "c = Conv(x, w) q = QuantizeLinear(c, one, s8) d = DequantizeLinear(q, one) y = Neg(d)",
        "c = Conv(x, w) q = QuantizeLinear(c, one, s8) y = Cast<to = 1>(q)",
    ],
)
def test_only_values_that_the_runtime_would_turn_to_uint8_are_turned(nodes: str, tmp_path: Path) -> None:
    model = network(nodes)
    expose(model, tmp_path / "exposed.onnx", layers="op:Conv", cut=False)
    assert list(onnx.load(tmp_path / "exposed.onnx").graph.node) == list(model.graph.node)
