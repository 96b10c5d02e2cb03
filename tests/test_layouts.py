from __future__ import annotations

import itertools

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxfeat.graph.layouts import layouts_of
from onnxfeat.graph.reading import read_graph


def layouts(nodes: str, inputs: str = "float[1,4,4,4] x", *, kernel: tuple[int, ...] = (4, 4, 3, 3)) -> dict[str, str]:
    """Return the layouts in a graph of these nodes; the picture has C = H = W, so that sizes tell nothing."""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]> g ({inputs}) => (float y) {{ {nodes} }}')
    model.graph.output[0].type.tensor_type.ClearField("shape")
    for name, array in {
        "w": np.ones(kernel, np.float32),
        "k": np.ones((4, 1, 1), np.float32),
        "last": np.array([1, 2]),
    }.items():
        if any(name in node.input for node in model.graph.node):
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return layouts_of(read_graph(model))


def test_a_conv_has_its_channels_first() -> None:
    assert layouts("y = Conv(x, w)") == {"x": "NCHW", "y": "NCHW"}


def test_transposes_are_followed_forward_and_backward() -> None:
    found = layouts("t = Transpose<perm = [0, 3, 1, 2]>(x) c = Conv(t, w) y = Transpose<perm = [0, 2, 3, 1]>(c)")
    assert found == {"x": "NHWC", "t": "NCHW", "c": "NCHW", "y": "NHWC"}


def test_an_input_used_in_both_layouts_through_transposes_has_one() -> None:
    found = layouts(
        "t = Transpose<perm = [0, 3, 1, 2]>(x) c = Conv(t, w) d = Transpose<perm = [0, 2, 3, 1]>(c) "
        "y = Concat<axis = 3>(x, d)"
    )
    assert found["x"] == found["y"] == found["d"] == "NHWC"


@pytest.mark.parametrize(
    "nodes",
    [
        "y = Relu(x)",
        "a = Reshape(x, last) y = Conv(a, w)",
        "a = Flatten(x) y = Relu(a)",
        "y = Transpose<perm = [0, 3, 1, 2]>(x)",
        "t = Transpose(x) y = Conv(t, w)",  # without perm: the batch ends up last
    ],
)
def test_the_layout_is_not_guessed_where_no_conv_tells_it(nodes: str) -> None:
    assert "x" not in layouts(nodes)


def test_cell_by_cell_operators_keep_the_layout_both_ways() -> None:
    found = layouts("a = Cast<to = 1>(x) b = Mul(a, k) c = Conv(b, w) d = Sigmoid(c) y = Mul(c, d)")
    assert found == dict.fromkeys(["x", "a", "b", "c", "d", "y"], "NCHW")


def test_constants_have_no_layout() -> None:
    assert "k" not in layouts("c = Conv(x, w) y = Add(c, k)")


def test_a_broadcast_operand_of_lower_rank_has_other_axes() -> None:
    found = layouts("c = Conv(x, w) y = Add(c, v)", "float[1,4,4,4] x, float[4] v")
    assert found == {"x": "NCHW", "c": "NCHW", "y": "NCHW"}


def test_a_result_of_higher_rank_has_other_axes() -> None:
    found = layouts("b = Conv(v, w) y = Add(b, x)", "float[1,4,4,4] x, float[1,4,4] v", kernel=(4, 4, 1))
    assert found == {"v": "NCW", "b": "NCW"}


@pytest.mark.parametrize(
    ("side", "layout"), [("[1,4,4]", "NCW"), ("[1,4,4,4]", "NCHW"), ("[1,4,4,4,4]", "NCDHW"), ("", "NCHW")]
)
def test_the_layout_has_an_axis_for_each_spatial_one(side: str, layout: str) -> None:
    kernel = (4, 4) + (1,) * max(1, layout.count("W") + layout.count("H") + layout.count("D"))
    assert layouts("y = Conv(x, w)", f"float{side} x", kernel=kernel)["y"] == layout


def test_a_pool_without_known_rank_is_taken_for_a_picture() -> None:
    assert layouts("y = MaxPool<kernel_shape = [2, 2]>(x)", "float x")["y"] == "NCHW"


@pytest.mark.parametrize(
    ("shape", "kernel", "order", "layout"),
    [
        ("1,5,4,1", (2, 1, 1, 1), "1, 1, 5, 4", "NHWC"),  # a gray picture
        ("1,1,1,4", (4, 4, 1, 1), "1, 4, 1, 1", "NHWC"),  # a map of 1 x 1
        ("1,2,2,4", (4, 4, 1, 1), "1, 4, 2, 2", None),  # tears the channels apart
        ("1,20", (2, 1, 1, 1), "1, 1, 5, 4", None),
    ],
)
def test_a_reshape_that_only_moves_the_channels_is_a_transpose(
    shape: str, kernel: tuple[int, ...], order: str, layout: str | None
) -> None:
    nodes = f"s = Constant<value = int64[4] {{{order}}}>() r = Reshape(x, s) y = Conv(r, w)"
    assert layouts(nodes, f"float[{shape}] x", kernel=kernel).get("x") == layout


@pytest.mark.parametrize(
    ("nodes", "layout"),
    [
        ("y = ReduceMean<keepdims = 0>(t, last)", "NC"),
        ("y = ReduceMean<keepdims = 1>(t, last)", "NHWC"),
        ("y = ReduceMax(t)", "NHWC"),
        ("y = ReduceMean<keepdims = 0>(t)", None),  # all axes go
        ("y = ReduceMean<keepdims = 0>(c, last)", None),  # the channels go
    ],
)
def test_a_mean_leaves_the_axes_that_it_does_not_take(nodes: str, layout: str | None) -> None:
    assert layouts(f"c = Conv(x, w) t = Transpose<perm = [0, 2, 3, 1]>(c) {nodes}").get("y") == layout


@settings(max_examples=24)
@given(order=st.sampled_from(list(itertools.permutations([1, 2, 3]))))
def test_a_transpose_and_its_inverse_cancel_out(order: tuple[int, ...]) -> None:
    perm = [0, *order]
    back = np.argsort(perm).tolist()
    found = layouts(f"c = Conv(x, w) t = Transpose<perm = {perm}>(c) y = Transpose<perm = {back}>(t)")
    assert found["y"] == "NCHW"
    assert found["t"] == "".join("NCHW"[axis] for axis in perm)
