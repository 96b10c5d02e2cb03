from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx.reference
import pytest
from numpy.typing import NDArray

from onnxfeat.graph.reading import read_graph
from onnxfeat.layers.inventory import all_layers
from onnxfeat.records import Layer

Array = NDArray[Any]

RNG = np.random.default_rng(0)
SLOPES = np.array([0.1, 0.2, -0.3, 0.4], np.float32).reshape(4, 1, 1)
CONSTANTS: dict[str, Any] = {
    # Maps from -12 to 12, so that each bend of each function is met.
    "w": RNG.normal(size=(4, 3, 1, 1)) * 3,
    "w8": RNG.integers(-9, 9, (4, 3, 1, 1)).astype(np.int8),
    "bias": RNG.normal(size=(4, 1, 1)),
    "vector": RNG.uniform(0.5, 2, 4),
    "slopes": SLOPES,
    "minus_slopes": -SLOPES,
    "zero": 0.0,
    "half": 0.5,
    "one": 1.0,
    "minus_one": -1.0,
    "two": 2.0,
    "three": 3.0,
    "six": 6.0,
    "sixth": 1 / 6,
    "sixth16": float(np.float16(1 / 6)),
    "tenth": 0.1,
    "root2": math.sqrt(2),
    "unroot2": math.sqrt(0.5),
    "cubic": 0.044715,
    "outer": math.sqrt(2 / math.pi),
    "quick": 1.702,
    "limit": 20.0,
    "scale": 0.25,
    "small": 0.05,
    "zp": np.array(3, np.int8),
    "zp0": np.array(0, np.int8),
    "lowest": np.array(-128, np.int8),
    "shape": np.array([1, 4, 1, 1]),
}
BN = "BatchNormalization({}, vector, vector, vector, vector)"
DOMAINS = '"" : 20, "com.microsoft" : 1, "com.microsoft.nchwc" : 1'


def network(nodes: str, outputs: str = "y") -> onnx.ModelProto:
    """Return a model of these nodes and the constants above that they use."""
    listed = ", ".join(f"float {name}" for name in outputs.split())
    model = onnx.parser.parse_model(
        f"<ir_version: 9, opset_import: [{DOMAINS}]> g (float[N,3,5,5] x) => ({listed}) {{ {nodes} }}"
    )
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    for name, value in CONSTANTS.items():
        if any(name in node.input for node in model.graph.node):
            array = np.asarray(value)
            array = array.astype(np.float32) if array.dtype == np.float64 else array
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return model


def layers_of(model: onnx.ModelProto) -> dict[str, Layer]:
    return {layer.name: layer for layer in all_layers(read_graph(model))}


def values_of(model: onnx.ModelProto, *names: str) -> list[Array]:
    """Return inner values of the unmodified model, computed by onnx's own evaluator."""
    picture = np.random.default_rng(1).normal(size=(2, 3, 5, 5)).astype(np.float32)
    evaluated: Any = onnx.reference.ReferenceEvaluator(model).run(None, {"x": picture}, intermediate=True)
    return [np.asarray(evaluated[name]) for name in names]


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def gelu(x: Array) -> Array:
    return np.asarray(x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2)


def softplus(x: Array) -> Array:
    return np.asarray(np.logaddexp(0, x))


def hard_sigmoid(x: Array) -> Array:
    return np.clip(x / 6 + 0.5, 0, 1)


FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "Relu": lambda x: np.maximum(x, 0),
    "Clip": lambda x: np.clip(x, 0, 6),
    "LeakyRelu": lambda x: np.where(x > 0, x, 0.1 * x),
    "PRelu": lambda x: np.where(x > 0, x, SLOPES * x),
    "SiLU": lambda x: x * sigmoid(x),
    "QuickGELU": lambda x: x * sigmoid(1.702 * x),
    "Swish": lambda x: x * sigmoid(0.5 * x),
    "Sigmoid": sigmoid,
    "Tanh": np.tanh,
    "Softplus": softplus,
    "Softsign": lambda x: x / (1 + abs(x)),
    "Mish": lambda x: x * np.tanh(softplus(x)),
    "HardSigmoid": hard_sigmoid,
    "HardSwish": lambda x: x * hard_sigmoid(x),
    "GELU": gelu,
    "Elu": lambda x: np.where(x > 0, x, np.expm1(x)),
    "Celu": lambda x: np.where(x > 0, x, 2 * np.expm1(x / 2)),
    "Selu": lambda x: 1.0507009873 * np.where(x > 0, x, 1.6732632423 * np.expm1(x)),
    "ThresholdedRelu": lambda x: np.where(x > 1, x, 0),
}

# Each form as exporters write it: from c to a.
FORMS = [
    ("Relu", "a = Relu(c)"),
    ("Relu", "a = Max(c, zero)"),
    ("Clip", "a = Clip(c, zero, six)"),
    ("Clip", "z = Constant<value_float = 0.0>() s = Constant<value_float = 6.0>() a = Clip(c, z, s)"),
    ("Clip", "r = Relu(c) a = Min(r, six)"),
    ("Clip", "r = Max(c, zero) a = Min(six, r)"),
    ("LeakyRelu", "a = LeakyRelu<alpha = 0.1>(c)"),
    ("LeakyRelu", "m = Mul(c, tenth) a = Max(c, m)"),
    ("PRelu", "a = PRelu(c, slopes)"),
    ("PRelu", "r = Relu(c) n = Neg(c) s = Relu(n) m = Mul(minus_slopes, s) a = Add(r, m)"),
    ("PRelu", "r = Relu(c) b = Abs(c) d = Sub(c, b) m = Mul(slopes, d) h = Mul(m, half) a = Add(r, h)"),
    ("SiLU", "s = Sigmoid(c) a = Mul(c, s)"),
    ("SiLU", "s = Sigmoid(c) a = Mul(s, c)"),
    ("SiLU", "n = Neg(c) e = Exp(n) d = Add(e, one) a = Div(c, d)"),
    ("SiLU", "a = com.microsoft.QuickGelu<alpha = 1.0>(c)"),
    ("QuickGELU", "m = Mul(c, quick) s = Sigmoid(m) a = Mul(c, s)"),
    ("QuickGELU", "a = com.microsoft.QuickGelu(c)"),
    ("Swish", "m = Mul(half, c) s = Sigmoid(m) a = Mul(c, s)"),
    ("Sigmoid", "a = Sigmoid(c)"),
    ("Sigmoid", "n = Neg(c) e = Exp(n) d = Add(one, e) a = Reciprocal(d)"),
    ("Tanh", "a = Tanh(c)"),
    ("Softplus", "a = Softplus(c)"),
    ("Softplus", "e = Exp(c) d = Add(e, one) a = Log(d)"),
    ("Softplus", "s = Softplus(c) g = Greater(c, limit) a = Where(g, c, s)"),
    ("Softsign", "b = Abs(c) d = Add(b, one) a = Div(c, d)"),
    ("Mish", "a = Mish(c)"),
    ("Mish", "s = Softplus(c) t = Tanh(s) a = Mul(c, t)"),
    ("Mish", "e = Exp(c) d = Add(e, one) s = Log(d) t = Tanh(s) a = Mul(t, c)"),
    ("HardSigmoid", "a = HardSigmoid<alpha = 0.16666667, beta = 0.5>(c)"),
    ("HardSigmoid", "d = Add(c, three) e = Clip(d, zero, six) a = Div(e, six)"),
    ("HardSigmoid", "d = Add(three, c) r = Relu(d) e = Min(r, six) a = Mul(e, sixth)"),
    ("HardSwish", "a = HardSwish(c)"),
    ("HardSwish", "s = HardSigmoid<alpha = 0.16666667, beta = 0.5>(c) a = Mul(c, s)"),
    ("HardSwish", "d = Add(c, three) e = Clip(d, zero, six) f = Mul(c, e) a = Div(f, six)"),
    ("HardSwish", "d = Add(c, three) e = Clip(d, zero, six) f = Mul(c, e) a = Mul(f, sixth16)"),
    ("HardSwish", "d = Add(c, three) e = Clip(d, zero, six) f = Div(e, six) a = Mul(c, f)"),
    ("HardSwish", "d = Add(c, three) e = Clip(d, zero, six) f = Mul(c, sixth) a = Mul(f, e)"),
    ("GELU", "d = Div(c, root2) e = Erf(d) f = Add(e, one) g = Mul(c, f) a = Mul(g, half)"),
    ("GELU", "d = Mul(c, unroot2) e = Erf(d) f = Add(one, e) h = Mul(half, c) a = Mul(h, f)"),
    ("GELU", "d = Div(c, root2) e = Erf(d) f = Add(e, one) g = Mul(half, f) a = Mul(c, g)"),
    (
        "GELU",
        "p = Pow(c, three) q = Mul(p, cubic) r = Add(c, q) s = Mul(r, outer) t = Tanh(s) u = Add(t, one) "
        "v = Mul(c, u) a = Mul(v, half)",
    ),
    (
        "GELU",
        "p0 = Mul(c, c) p = Mul(c, p0) q = Mul(cubic, p) r = Add(c, q) s = Mul(outer, r) t = Tanh(s) u = Add(one, t) "
        "h = Mul(half, c) a = Mul(h, u)",
    ),
    ("GELU", "a = Gelu(c)"),
    ("Elu", "a = Elu(c)"),
    ("Elu", "l = CastLike(one, c) m = Mul(c, l) a = Elu(m)"),
    ("Celu", "a = Celu<alpha = 2.0>(c)"),
    ("Celu", "m = Mul(c, half) e = Elu(m) a = Mul(e, two)"),
    ("Selu", "a = Selu(c)"),
    ("ThresholdedRelu", "a = ThresholdedRelu(c)"),
]


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_an_activation_is_recognized_in_whatever_form_it_is_written(name: str, form: str) -> None:
    model = network(f"k = Conv(x, w) c = Add(k, bias) {form} y = Conv(a, square)")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((1, 4, 1, 1), np.float32), "square"))
    conv = layers_of(model)["conv_0"]
    assert (conv.activation, conv.raw_value, conv.value, conv.note) == (name, "c", "a", "")
    if "QuickGelu" not in form:  # onnx's evaluator knows no operators of com.microsoft
        raw, value = values_of(model, "c", "a")
        # Forms of GELU differ by 5e-4, a sixth in float16 by 1e-4 of itself.
        np.testing.assert_allclose(value, FUNCTIONS[name](raw), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    "form",
    [
        "s = Sigmoid(c) r = Relu(c) u = Mul(c, s) a = Mul(u, r)",
        "s = Sigmoid(c) a = Sub(c, s)",
        "s = HardSigmoid(c) a = Add(c, s)",
        "a = Abs(c)",
        "a = Div(one, c)",
        "s = Sigmoid(c) m = Mul(s, c) a = Mul(m, c)",
        "d = Div(c, root2) e = Erf(d) f = Add(e, three) g = Mul(c, f) a = Mul(g, half)",
    ],
)
def test_what_computes_another_function_gets_no_name(form: str) -> None:
    conv = layers_of(network(f"c = Conv(x, w) {form} y = GlobalMaxPool(a)"))["conv_0"]
    assert (conv.activation, conv.value) == (None, "c")


def test_the_factor_behind_an_activation_that_is_no_part_of_it_is_left_alone() -> None:
    conv = layers_of(network("c = Conv(x, w) r = Relu(c) m = Mul(r, two) y = GlobalMaxPool(m)"))["conv_0"]
    assert (conv.activation, conv.value) == ("Relu", "r")


def test_the_shape_of_a_value_does_not_use_its_numbers() -> None:
    model = network("c = Conv(x, w) n = Shape(c) a = Relu(c) t = ConstantOfShape(n) y = Add(a, t)")
    assert layers_of(model)["conv_0"].activation == "Relu"


@pytest.mark.parametrize("factor", [0.5, 0.5000001, 0.501, 0.55, 0.9999, 1.0001])
def test_a_factor_is_no_activation_however_near_to_one_half_or_to_one(factor: float) -> None:
    model = network("c = Conv(x, w) d = Mul(c, factor) y = GlobalMaxPool(d)")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(factor, np.float32), "factor"))
    conv = layers_of(model)["conv_0"]
    assert (conv.activation, conv.value) == (None, "d")


def test_a_factor_that_is_dequantized_is_no_swish() -> None:
    model = network("h = DequantizeLinear(full, fraction) c = Conv(x, w) d = Mul(c, h) y = GlobalMaxPool(d)")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(255, np.uint8), "full"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(0.5 / 255, np.float32), "fraction"))
    conv = layers_of(model)["conv_0"]
    assert (conv.activation, conv.value) == (None, "d")


@pytest.mark.parametrize(
    ("nodes", "raw"),
    [
        ("c = Conv(x, w) d = BatchNormalization(c, vector, vector, vector, vector) a = Relu(d)", "d"),
        ("c = Conv(x, w) m = Mul(c, bias) d = Sub(m, bias) a = Relu(d)", "d"),
        ("b = Reshape(vector, shape) c = Conv(x, w) d = Add(c, b) a = Relu(d)", "d"),
        ("b = Reshape(vector, shape) l = CastLike(b, x) c = Conv(x, w) d = Add(c, l) a = Relu(d)", "d"),
        (
            "c = Conv(x, w) g = Constant<value_ints = [0, 2, -1]>() r = Reshape(c, g) "
            "o = Constant<value_floats = [1.0, 1.0]>() i = InstanceNormalization(r, o, o) n = Shape(c) "
            "b = Reshape(i, n) m = Mul(b, bias) d = Add(m, bias) a = Relu(d)",
            "d",
        ),
        ("c = Conv(x, w) g = Constant<value_ints = [0, 2, 2, 5, 5]>() r = Reshape(c, g) a = Relu(r)", None),
    ],
)
def test_bias_and_normalization_belong_to_the_conv(nodes: str, raw: str | None) -> None:
    conv = layers_of(network(f"{nodes} y = Neg(a)"))["conv_0"]
    assert (conv.raw_value, conv.value) == (("c", "c") if raw is None else (raw, "a"))


def cropped(nodes: str, opset: int = 20) -> onnx.ModelProto:
    """Return a model of a ConvTranspose `c` from 3 x 5 x 5 to 4 x 7 x 7 and these nodes behind it."""
    constants = {
        "kernel": RNG.normal(size=(3, 4, 3, 3)).astype(np.float32),
        "ones": np.array([1, 1]),
        "sixes": np.array([6, 6]),
        "spatial": np.array([2, 3]),
        "backward": np.array([-1, -2]),
        "rows_and_columns": np.array([1, 2]),
        "last": np.array([-1, -2]),
        "channels": np.array([1, 3]),
        "twos": np.array([2, 2]),
        "row_behind": np.array([0, 0, 0, 0, 0, 0, 1, 1]),
        "nothing": np.zeros(8, np.int64),
    }
    model = network(f"c = ConvTranspose(x, kernel) {nodes}")
    model.opset_import[0].version = opset
    read = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(array, name) for name, array in constants.items() if name in read
    )
    return model


@pytest.mark.parametrize(
    ("nodes", "raw", "value", "shape"),
    [
        ("s = Slice(c, ones, sixes, spatial) b = Add(s, bias) a = Relu(b)", "b", "a", (2, 4, 5, 5)),
        ("s = Slice(c, ones, sixes, backward) b = Add(s, bias) a = Relu(b)", "b", "a", (2, 4, 5, 5)),
        ("s = Slice(c, ones, sixes, spatial, ones) a = Relu(s)", "s", "a", (2, 4, 5, 5)),
        ("s = Slice(c, ones, sixes, spatial) a = MaxPool<kernel_shape = [2, 2]>(s)", "s", "s", (2, 4, 5, 5)),
        (
            "t = Transpose<perm = [0, 2, 3, 1]>(c) s = Slice(t, ones, sixes, rows_and_columns) b = Add(s, vector) "
            "a = Relu(b)",
            "b",
            "a",
            (2, 5, 5, 4),
        ),
        ("n = Shape<start = 2>(x) e = Add(n, ones) s = Slice(c, ones, e, spatial) a = Relu(s)", "s", "a", (2, 4, 5, 5)),
        (
            "s = Slice(c, ones, sixes, spatial) n = Shape(s) z = Sub(n, n) p = Concat<axis = 0>(z, z) d = Pad(s, p) "
            "b = Add(d, bias) a = Relu(b)",
            "b",
            "a",
            (2, 4, 5, 5),
        ),
    ],
)
def test_the_crop_of_a_transposed_conv_belongs_to_it(nodes: str, raw: str, value: str, shape: tuple[int, ...]) -> None:
    model = cropped(f"{nodes} y = Neg(a)")
    conv = layers_of(model)["conv_0"]
    assert (conv.raw_value, conv.value, conv.note) == (raw, value, "")
    assert values_of(model, value)[0].shape == shape


def test_the_crop_of_old_opsets_states_its_axes_as_an_attribute() -> None:
    for axes, value in (("axes = [2, 3], ", "y"), ("axes = [1, 2], ", "c"), ("", "c")):
        model = cropped(f"s = Slice<{axes}starts = [1, 1], ends = [4, 4]>(c) y = Relu(s)", opset=9)
        assert layers_of(model)["conv_0"].value == value


@pytest.mark.parametrize(
    "nodes",
    [
        "s = Slice(c, ones, sixes, channels) a = Relu(s)",
        "s = Slice(c, ones, sixes) a = Relu(s)",
        "t = Size(x) f = Expand(t, ones) s = Slice(c, ones, sixes, f) a = Relu(s)",
        "s = Slice(c, ones, sixes, spatial, twos) a = Relu(s)",
        "s = Slice(c, ones, sixes, spatial) r = Relu(s) e = Tanh(c) f = Slice(e, ones, sixes, spatial) a = Add(r, f)",
        "p = Pad(c, row_behind) a = Relu(p)",
    ],
)
def test_what_does_more_than_crop_is_not_the_transposed_convs(nodes: str) -> None:
    assert layers_of(cropped(f"{nodes} y = Neg(a)"))["conv_0"].value == "c"


def test_the_axes_of_a_crop_are_those_behind_the_transpose() -> None:
    model = cropped("t = Transpose<perm = [0, 2, 3, 1]>(c) s = Slice(t, ones, sixes, spatial) y = Relu(s)")
    assert layers_of(model)["conv_0"].value == "c"


def test_a_padding_of_its_own_behind_the_crop_is_no_part_of_it() -> None:
    model = cropped("s = Slice(c, ones, sixes, spatial) p = Pad(s, row_behind) y = Relu(p)")
    assert layers_of(model)["conv_0"].value == "s"


def test_the_slice_of_an_ordinary_conv_is_no_part_of_it() -> None:
    model = cropped("d = Conv(x, w) s = Slice(d, ones, sixes, spatial) r = Relu(s) y = Concat<axis = 1>(r, c)")
    assert layers_of(model)["conv_1"].value == "d"


def test_a_crop_between_quantizers_goes_before_a_normalization_behind_a_relu() -> None:
    nodes = f"{pair('c', 'q1', 'lowest')} s = Slice(q1d, ones, sixes, spatial) {pair('s', 'q2', 'lowest')}"
    conv = layers_of(cropped(f"{nodes} y = {BN.format('q2d')}"))["conv_0"]
    assert (conv.value, conv.note) == ("q2", "after its Relu, if it had one")


@pytest.mark.parametrize(
    ("nodes", "name", "note"),
    [
        ("c = Conv(x, w) s = Sigmoid(c) y = Mul(c, s)", "activation_0", "gate of SiLU of conv_0"),
        ("c = Conv(x, w) s = HardSigmoid(c) y = Mul(c, s)", "activation_0", "gate of HardSwish of conv_0"),
        ("c = Conv(x, w) s = Softplus(c) t = Tanh(s) y = Mul(c, t)", "activation_1", "part of Mish of conv_0"),
        (
            "c = Conv(x, w) d = Conv(x, w) e = Add(c, d) s = Sigmoid(e) y = Mul(e, s)",
            "activation_0",
            "gate of SiLU of other_0",
        ),
        ("c = Conv(x, w) g = GlobalAveragePool(c) s = Sigmoid(g) y = Mul(c, s)", "activation_0", "gate: scales conv_0"),
        (
            "r = Relu(x) g = GlobalAveragePool(r) c = Conv(g, w) s = HardSigmoid(c) y = Mul(s, r)",
            "conv_0",
            "gate: scales activation_0",
        ),
        ("c = Conv(x, w) s = Sigmoid(c) y = Mul(s, two)", "conv_0", ""),
        ("c = Conv(x, w) d = Conv(x, w) y = Add(c, d)", "conv_0", "then added to other_0"),
        ("c = Conv(x, w) d = Conv(x, w) y = Add(c, d)", "other_0", "residual addition"),
        ("c = Conv(x, w) d = Conv(x, w) y = Mul(c, d)", "conv_1", "then multiplied in other_0"),
        ("c = Conv(x, w) d = Conv(x, w) y = Concat<axis = 1>(c, d)", "conv_0", "then concatenated in other_0"),
        ("c = Conv(x, w) r = Relu(c) t = Tanh(c) y = Concat<axis = 1>(r, t)", "conv_0", "then splits into 2 branches"),
        ("c = Conv(x, w) d = Add(c, bias) y = Relu(d)", "other_0", ""),
        ("y = Add(x, x)", "other_0", ""),
        ("n = Shape(x) z = Size(x) m = Add(n, z) y = Expand(x, m)", "other_2", ""),
    ],
)
def test_a_note_says_what_the_numbers_are_and_where_the_walk_stopped(nodes: str, name: str, note: str) -> None:
    assert layers_of(network(nodes))[name].note == note


def test_long_names_are_shortened_in_notes() -> None:
    model = network("c = Conv(x, w) d = Conv(x, w) y = Add(c, d)")
    model.graph.node[2].name = "stage." * 30 + "addition"
    note = layers_of(model)["conv_0"].note
    assert note.startswith("then added to ...")
    assert note.endswith("stage.")  # names end after 120 characters
    assert len(note) < 60


def test_a_fused_conv_is_after_its_activation() -> None:
    model = network('c = com.microsoft.FusedConv<activation = "HardSwish">(x, w) y = Relu(c)')
    conv = layers_of(model)["conv_0"]
    assert (conv.op_type, conv.activation, conv.value, conv.raw_value) == ("FusedConv", "HardSwish", "c", "c")
    assert conv.note == "activation inside: raw values are not in the file"


def test_a_fused_conv_without_activation_is_a_conv() -> None:
    conv = layers_of(network("c = com.microsoft.FusedConv(x, w) y = Relu(c)"))["conv_0"]
    assert (conv.activation, conv.value, conv.note) == ("Relu", "y", "")


def test_a_gelu_that_adds_the_bias_itself_hides_the_raw_values() -> None:
    conv = layers_of(network("c = Conv(x, w) y = com.microsoft.BiasGelu(c, bias)"))["conv_0"]
    assert (conv.activation, conv.value, conv.raw_value) == ("GELU", "y", "y")
    assert conv.note == "activation inside: raw values are not in the file"


QX = "q0 = QuantizeLinear(x, small, zp0) d0 = DequantizeLinear(q0, small, zp0) "


def pair(value: str, name: str, zero_point: str = "zp") -> str:
    """Return QuantizeLinear to `name` and DequantizeLinear to `named`."""
    parameters = f"scale, {zero_point}"
    return f"{name} = QuantizeLinear({value}, {parameters}) {name}d = DequantizeLinear({name}, {parameters}) "


@pytest.mark.parametrize(
    ("nodes", "raw", "value", "activation"),
    [
        (f"c = Conv(d0, w) {pair('c', 'q1')} r = Relu(q1d) {pair('r', 'q2')} y = Neg(q2d)", "q1", "q2", "Relu"),
        (f"c = Conv(d0, w) r = Relu(c) {pair('r', 'q2')} y = Neg(q2d)", "c", "q2", "Relu"),
        (f"c = Conv(d0, w) {pair('c', 'q1')} y = Neg(q1d)", "q1", "q1", None),
        (
            f"c = Conv(d0, w) {pair('c', 'q1')} s = Sigmoid(q1d) {pair('s', 'q2')} m = Mul(q1d, q2d) {pair('m', 'q3')} "
            "y = Neg(q3d)",
            "q1",
            "q3",
            "SiLU",
        ),
        (
            f"c = Conv(d0, w) {pair('c', 'q1')} e = DequantizeLinear(q1, scale, zp) s = Sigmoid(e) {pair('s', 'q2')} "
            f"m = Mul(q1d, q2d) {pair('m', 'q3')} y = Neg(q3d)",
            "q1",
            "q3",
            "SiLU",
        ),
    ],
)
def test_the_walk_sees_through_quantizing_and_taps_the_integers(
    nodes: str, raw: str, value: str, activation: str | None
) -> None:
    model = network(QX + nodes)
    conv = layers_of(model)["conv_0"]
    assert (conv.raw_value, conv.value, conv.activation, conv.note) == (raw, value, activation, "")
    assert conv.quantization is not None
    integers, real = values_of(model, value, f"{value}d")
    np.testing.assert_allclose(conv.quantization.dequantize(integers), real, rtol=1e-6)
    assert (conv.layout, conv.dtype) == ("NCHW", "int8")


def test_pools_between_quantizers_are_tapped_at_the_integers() -> None:
    model = network(QX + f"p = MaxPool<kernel_shape = [2, 2]>(d0) {pair('p', 'q1')} y = Neg(q1d)")
    pool = layers_of(model)["pool_0"]
    assert (pool.value, pool.raw_value, pool.quantization is None) == ("q1", "q1", False)


def test_a_relu_may_have_become_the_lower_end_of_the_integers() -> None:
    model = network(QX + f"c = Conv(d0, w) {pair('c', 'q1', 'lowest')} y = Neg(q1d)")
    assert layers_of(model)["conv_0"].note == "after its Relu, if it had one"


@pytest.mark.parametrize(
    ("nodes", "value"),
    [
        (f"c = Conv(d0, w) {pair('c', 'q1', 'lowest')} y = {BN.format('q1d')}", "q1"),
        (f"c = Conv(d0, w) {pair('c', 'q1', 'lowest')} y = Add(q1d, bias)", "q1"),
        (f"c = Conv(d0, w) {pair('c', 'q1', 'lowest')} y = Mul(two, q1d)", "q1"),
        (f"c = Conv(d0, w) b = Sub(c, bias) {pair('b', 'q1', 'lowest')} n = Div(q1d, two) y = Relu(n)", "q1"),
        (f"c = Conv(d0, w) i = Identity(c) {pair('i', 'q1', 'lowest')} y = {BN.format('q1d')}", "q1"),
        (f"c = Conv(d0, w) {pair('c', 'q1', 'lowest')} i = Identity(q1d) y = {BN.format('i')}", "q1"),
        (f"c = Conv(d0, w) {pair('c', 'q1', 'lowest')} {pair('q1d', 'q2')} y = {BN.format('q2d')}", "q1"),
        (f"c = Conv(d0, w) n = Shape(c) {pair('c', 'q1', 'lowest')} m = {BN.format('q1d')} y = Reshape(m, n)", "q1"),
        (
            "c = Conv(d0, w) u = QuantizeLinear(c, scale) ud = DequantizeLinear(u, scale) y = " + BN.format("ud"),
            "u",
        ),
    ],
)
def test_a_normalization_behind_integers_that_start_at_zero_is_not_the_convs(nodes: str, value: str) -> None:
    # What follows a Relu is a layer of its own, and the quantizer takes the Relu away where the integers cut as it did.
    model = network(QX + nodes)
    conv = layers_of(model)["conv_0"]
    assert (conv.value, conv.raw_value, conv.activation) == (value, value, None)
    assert conv.note == "after its Relu, if it had one"
    assert conv.quantization is not None
    before, integers, real = values_of(model, "c", value, f"{value}d")
    assert before.min() < 0 == real.min()
    np.testing.assert_allclose(conv.quantization.dequantize(integers), real, rtol=1e-6)


@pytest.mark.parametrize("zero_point", ["zp", "zp0"])
def test_a_normalization_behind_integers_on_both_sides_of_zero_is_the_convs(zero_point: str) -> None:
    model = network(QX + f"c = Conv(d0, w) {pair('c', 'q1', zero_point)} n = {BN.format('q1d')} y = Tanh(n)")
    conv = layers_of(model)["conv_0"]
    assert (conv.raw_value, conv.value, conv.activation) == ("n", "y", "Tanh")


def test_a_normalization_behind_a_qlinear_conv_that_starts_at_zero_is_not_the_convs() -> None:
    for zero_point, value in (("lowest", "q"), ("zp", "y")):
        model = network(
            f"q0 = QuantizeLinear(x, small, zp0) q = QLinearConv(q0, small, zp0, w8, small, zp0, scale, {zero_point}) "
            f"f = DequantizeLinear(q, scale, {zero_point}) y = {BN.format('f')}"
        )
        assert layers_of(model)["conv_0"].value == value


def test_an_activation_behind_integers_that_start_at_zero_is_the_convs() -> None:
    model = network(
        QX + f"c = Conv(d0, w) {pair('c', 'q1', 'lowest')} r = HardSwish(q1d) {pair('r', 'q2')} y = Neg(q2d)"
    )
    conv = layers_of(model)["conv_0"]
    assert (conv.raw_value, conv.value, conv.activation) == ("q1", "q2", "HardSwish")


def test_a_float_value_among_quantized_ones_is_told() -> None:
    model = network(QX + f"c = Conv(d0, w) r = Relu(c) f = Neg(r) {pair('f', 'q1')} y = Neg(q1d)")
    found = layers_of(model)
    assert found["conv_0"].value == "r"
    assert found["conv_0"].note == "no Q/DQ boundary: watching may change the result"


def test_a_value_that_is_an_output_anyway_changes_nothing() -> None:
    model = network(QX + f"c = Conv(d0, w) {pair('c', 'q1')} y = Neg(q1d)", outputs="c y")
    found = layers_of(model)["conv_0"]
    assert (found.value, found.note) == ("c", "")


def test_a_qlinear_conv_is_in_integers_and_after_its_relu() -> None:
    model = network(
        "q0 = QuantizeLinear(x, small, zp0) "
        "q = QLinearConv(q0, small, zp0, w8, small, zp0, scale, zp) f = DequantizeLinear(q, scale, zp) y = Neg(f)"
    )
    conv = layers_of(model)["conv_0"]
    assert (conv.op_type, conv.value, conv.note) == ("QLinearConv", "q", "after its Relu, if it had one")
    assert conv.quantization is not None
    integers, real = values_of(model, "q", "f")
    np.testing.assert_allclose(conv.quantization.dequantize(integers), real, rtol=1e-6)


def test_the_activation_behind_a_qlinear_conv_is_in_real_numbers() -> None:
    model = network(
        "q0 = QuantizeLinear(x, small, zp0) q = QLinearConv(q0, small, zp0, w8, small, zp0, scale, zp) "
        f"f = DequantizeLinear(q, scale, zp) s = HardSwish(f) {pair('s', 'q2')} y = Neg(q2d)"
    )
    conv = layers_of(model)["conv_0"]
    assert (conv.raw_value, conv.value, conv.activation, conv.note) == ("q", "q2", "HardSwish", "")


def test_silu_in_integer_operators_is_silu() -> None:
    model = network(
        "q0 = QuantizeLinear(x, small, zp0) q = QLinearConv(q0, small, zp0, w8, small, zp0, scale, zp) "
        "s = com.microsoft.QLinearSigmoid(q, scale, zp, small, zp0) "
        "m = com.microsoft.QLinearMul(q, scale, zp, s, small, zp0, scale, zp) y = DequantizeLinear(m, scale, zp)"
    )
    conv = layers_of(model)["conv_0"]
    assert (conv.value, conv.activation) == ("m", "SiLU")


DYNAMIC = "q, s, z = DynamicQuantizeLinear(x) i = ConvInteger(q, w8, z) f = Cast<to = 1>(i) "


@pytest.mark.parametrize(
    ("nodes", "raw", "value"),
    [
        ("t = Mul(s, small) m = Mul(f, t) b = Reshape(vector, shape) c = Add(m, b) y = Relu(c)", "c", "y"),
        ("t = Mul(s, small) m = Mul(f, t) y = Relu(m)", "m", "y"),
        ("t = Mul(s, small) m = Mul(t, f) y = Neg(m)", "m", "m"),
        ("m = Mul(f, s) y = Neg(m)", "m", "m"),
    ],
)
def test_dynamically_quantized_convs_are_seen_in_real_numbers(nodes: str, raw: str, value: str) -> None:
    model = network(DYNAMIC + nodes)
    conv = layers_of(model)["conv_0"]
    assert (conv.op_type, conv.raw_value, conv.value) == ("ConvInteger", raw, value)
    assert values_of(model, value)[0].dtype == np.float32


def test_integers_that_no_scale_follows_are_told() -> None:
    conv = layers_of(network(DYNAMIC + "g = GlobalAveragePool(x) y = Mul(f, g)"))["conv_0"]
    assert (conv.value, conv.note) == ("i", "then multiplied in other_2; integers without a known scale")


def test_damaged_constants_and_attributes_give_no_activation() -> None:
    model = network("c = Conv(x, w) r = Reshape(vector, minus_one) d = Sub(c, c) e = Pow(d, r) y = Mul(c, e)")
    assert layers_of(model)["conv_0"].activation is None


@pytest.mark.parametrize("op_type", ["Add", "Clip", "Mul", "Where", "PRelu", "Pow", "CastLike", "Max"])
def test_nodes_that_lack_their_inputs_are_survived(op_type: str) -> None:
    model = network("c = Conv(x, w) y = Relu(x)")
    model.graph.node.insert(1, onnx.helper.make_node(op_type, ["c"], ["d"]))
    model.graph.node.insert(2, onnx.helper.make_node(op_type, [], ["e"]))
    assert layers_of(model)["conv_0"].op_type == "Conv"
