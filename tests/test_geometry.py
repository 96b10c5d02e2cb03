from __future__ import annotations

import itertools

import numpy as np
import onnx
import onnx.parser
import pytest
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from onnxfeat import list_layers
from onnxfeat.graph.reading import read_graph
from onnxfeat.layers.inventory import all_layers

SIDE = 32


def network(nodes: str, opset: int = 18, side: str = f"{SIDE},{SIDE}") -> onnx.ModelProto:
    """Return a model of one channel whose weights are all positive, so that no influence cancels out."""
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : {opset}]> g (float[1,1,{side}] x) => (float y) {{ {nodes} }}'
    )
    model.graph.output[0].type.tensor_type.ClearField("shape")
    for name, shape in {"w1": (1, 1, 1, 1), "w3": (1, 1, 3, 3), "w4": (1, 1, 4, 4), "w53": (1, 1, 5, 3)}.items():
        if any(name in node.input for node in model.graph.node):
            model.graph.initializer.append(onnx.numpy_helper.from_array(np.full(shape, 0.1, np.float32), name))
    return model


def run(model: onnx.ModelProto, picture: NDArray[np.float32]) -> NDArray[np.float32]:
    (output,) = ReferenceEvaluator(model).run(None, {"x": picture})
    return np.asarray(output)


def seen(model: onnx.ModelProto, axis: int) -> list[tuple[int, int]]:
    """Return for cells in the middle of the last value the first and last pixel of `axis` that move them."""
    rng = np.random.default_rng(0)
    picture = rng.uniform(1, 2, (1, 1, SIDE, SIDE)).astype(np.float32)
    still = run(model, picture)
    others = np.repeat(picture, SIDE, axis=0)  # one for each pixel of the axis that is moved
    for pixel in range(SIDE):
        np.moveaxis(others[pixel : pixel + 1], axis, 0)[pixel] += 100
    moved = np.moveaxis(np.abs(run(model, others) - still) > 1e-4, axis, 1)
    spans = []
    cells = still.shape[axis]
    for cell in range(cells // 2 - 2, cells // 2 + 2):
        pixels = [pixel for pixel in range(SIDE) if moved[pixel, cell].any()]
        spans.append((pixels[0], pixels[-1]))
    return spans


POOL = "<kernel_shape = [2, 2], strides = [2, 2]>"


@pytest.mark.parametrize(
    "nodes",
    [
        "y = Conv(x, w3)",
        "y = Conv(x, w1)",
        "y = Conv<strides = [2, 2]>(x, w3)",
        "y = Conv<dilations = [2, 3]>(x, w3)",
        "y = Conv<strides = [2, 1]>(x, w53)",
        "y = Conv<pads = [1, 1, 1, 1]>(x, w3)",
        f"y = AveragePool{POOL}(x)",
        f"y = MaxPool{POOL}(x)",
        "y = LpPool<kernel_shape = [3, 2], p = 1>(x)",
        f"a = Conv(x, w3) b = Relu(a) c = AveragePool{POOL}(b) y = Conv(c, w3)",
        f"a = Conv(x, w3) b = AveragePool{POOL}(a) c = Conv(b, w3) d = AveragePool{POOL}(c) y = Conv(d, w3)",
        "a = Conv<pads = [1, 1, 1, 1]>(x, w3) b = Add(a, x) y = Conv(b, w3)",
    ],
)
def test_receptive_field_and_stride_are_what_moving_pixels_shows(nodes: str) -> None:
    model = network(nodes)
    layer = list_layers(model)[-1]
    assert layer.value == "y"
    assert layer.receptive_field is not None
    assert layer.reduction is not None
    for axis in (2, 3):
        spans = seen(model, axis)
        assert {last - first + 1 for first, last in spans} == {layer.receptive_field[axis - 2]}
        assert {b[0] - a[0] for a, b in itertools.pairwise(spans)} == {layer.reduction[axis - 2]}


@pytest.mark.parametrize("weight", ["w3", "w4"])
def test_a_transposed_conv_looks_at_steps_of_half_a_pixel(weight: str) -> None:
    model = network(f"y = ConvTranspose<strides = [2, 2]>(x, {weight})")
    (layer,) = list_layers(model)
    assert layer.reduction == (0.5, 0.5)
    spans = seen(model, 2)
    assert layer.receptive_field == (max(last - first + 1 for first, last in spans),) * 2
    assert spans[2][0] - spans[0][0] == 1  # two cells on, one pixel on


def test_transposes_to_channels_last_change_nothing() -> None:
    (plain,) = list_layers(network("y = Conv<strides = [2, 1]>(x, w53)"))
    model = network("t = Transpose<perm = [0, 3, 1, 2]>(x) y = Conv<strides = [2, 1]>(t, w53)")
    del model.graph.input[:]
    model.graph.input.append(onnx.helper.make_tensor_value_info("x", 1, [1, SIDE, SIDE, 1]))
    (turned,) = list_layers(model)
    assert (turned.receptive_field, turned.reduction) == (plain.receptive_field, plain.reduction)


def test_a_kernel_shape_that_only_the_attribute_tells_is_used() -> None:
    model = network("a = Identity(w3) y = Conv<kernel_shape = [3, 3]>(x, a)")
    assert list_layers(model)[0].receptive_field == (3, 3)


def test_a_kernel_that_nothing_tells_leaves_the_field_unknown() -> None:
    model = network("y = Conv(x, v)")
    model.graph.input.append(onnx.helper.make_tensor_value_info("v", 1, None))
    assert list_layers(model)[0].receptive_field is None
    model.graph.input[1].CopyFrom(onnx.helper.make_tensor_value_info("v", 1, [1, 1, "K", 3]))
    assert list_layers(model)[0].receptive_field is None


def test_behind_global_pooling_and_resizing_nothing_is_claimed() -> None:
    for nodes in ("g = GlobalAveragePool(x) y = Conv(g, w1)", "g = Upsample(x, s) y = Conv(g, w3)"):
        layer = list_layers(network(nodes, opset=9))[-1]
        assert (layer.receptive_field, layer.reduction) == (None, None)


def test_a_gate_from_global_pooling_sees_the_whole_picture() -> None:
    model = network(
        "c = Conv(x, w3) g = GlobalAveragePool(c) h = Conv(g, w1) s = Sigmoid(h) m = Mul(c, s) y = Conv(m, w3)"
    )
    layer = list_layers(model)[-1]
    assert (layer.receptive_field, layer.reduction) == (None, (1.0, 1.0))


def test_where_two_branches_meet_the_wider_one_counts() -> None:
    model = network("a = Conv<pads = [1, 1, 1, 1]>(x, w3) b = Conv(x, w1) y = Add(b, a)")
    assert all_layers(read_graph(model))[-1].receptive_field == (3, 3)


def test_sides_of_different_rank_make_no_field() -> None:
    model = network("y = Conv(x, w3)")
    model.graph.input.append(onnx.helper.make_tensor_value_info("z", 1, [1, 1, SIDE]))
    model.graph.node.append(onnx.helper.make_node("Add", ["x", "z"], ["m"]))
    assert all_layers(read_graph(model))[-1].receptive_field is None
