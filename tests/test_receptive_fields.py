from __future__ import annotations

import json
import re
import tracemalloc
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx.printer
import onnx.shape_inference
import onnxruntime
import pytest
from hypothesis import assume, given, note, reject, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx.helper import make_node
from onnxruntime.capi import onnxruntime_pybind11_state as runtime

from onnxfeat.drawing.axis_steps import taps_of
from onnxfeat.drawing.receptive_fields import MOST_TERMS, ReceptiveFields, each_field, receptive_fields
from onnxfeat.errors import PictureError
from onnxfeat.graph.reading import read_graph
from onnxfeat.graph.skeletons import skeleton_of
from onnxfeat.layers.inventory import all_layers
from onnxfeat.registration import Pad, Registration, Repeat, Resize, Skeleton, Slice, Spread, Step, Window
from onnxfeat.running.exposure import picture_input

REFUSED = (runtime.Fail, runtime.InvalidArgument, runtime.RuntimeException)
CHANNELS = 4  # of every value of the models made here: DepthToSpace with blocks of 2 needs as many
Size = tuple[int, int]


def model_of(nodes: Sequence[onnx.NodeProto], size: tuple[Any, Any], *, opset: int = 18) -> onnx.ModelProto:
    """Return a model of 4 channels whose weights, `w3x5` for instance, are all 1: no influence cancels out."""
    sides = {name: name[1:].split("x") for node in nodes for name in node.input if re.fullmatch(r"w\d+x\d+", name)}
    weights = {name: np.ones((CHANNELS, CHANNELS, *map(int, side)), np.float32) for name, side in sides.items()}
    graph = onnx.helper.make_graph(
        list(nodes),
        "g",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", CHANNELS, *size])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=8)


def parsed(text: str, size: tuple[Any, Any], *, opset: int = 18, channels: int = CHANNELS) -> onnx.ModelProto:
    """Return a model of ONNX text; weights as in `model_of`."""
    height, width = size
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": {opset}]> '
        f"g (float[N,{channels},{height},{width}] x) => (float y) {{ {text} }}"
    )
    made = model_of(list(model.graph.node), size, opset=opset)
    made.graph.input[0].type.tensor_type.shape.dim[1].dim_value = channels
    return made


def seen_by_moving(model: onnx.ModelProto, size: Size, shape: Sequence[int] = (CHANNELS, 0, 0)) -> NDArray[np.bool_]:
    """Return which cells of `y` move with each pixel of a black picture: (rows, columns, cells down, cells across)."""
    height, width = size
    moving = np.eye(height * width, dtype=np.float32).reshape(-1, height, width, 1)
    pictures = np.repeat(moving, CHANNELS, axis=3)
    if shape[0] == CHANNELS:
        pictures = np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (maps,) = session.run(["y"], {"x": pictures})
    moved = (np.asarray(maps) != 0).any(axis=1 if shape[0] == CHANNELS else 3)
    return np.asarray(moved.reshape(height, width, *moved.shape[1:]))


def skeleton(model: onnx.ModelProto) -> Skeleton:
    """Return the skeleton of `y`, as it comes out of a file."""
    graph = read_graph(model)
    layer = next(layer for layer in reversed(all_layers(graph)) if layer.value == "y")
    made = skeleton_of(graph, picture_input(graph), [layer])
    return Skeleton.from_json(json.loads(json.dumps(made.to_json())))


def fields_of(model: onnx.ModelProto, size: Size) -> ReceptiveFields:
    found = skeleton(model)
    (place,) = found.places
    assert place is not None
    return receptive_fields(Registration(steps=found.steps, step=place.step, size=size))


def told(fields: ReceptiveFields) -> NDArray[np.bool_]:
    rows, columns = fields.cells
    cells = [[fields.of_cell(row, column) for column in range(columns)] for row in range(rows)]
    return np.asarray(cells).transpose(2, 3, 0, 1)


def assert_exact(model: onnx.ModelProto, size: Size, shape: Sequence[int] = (CHANNELS, 0, 0)) -> None:
    np.testing.assert_array_equal(told(fields_of(model, size)), seen_by_moving(model, size, shape))


# Stacks of random layers. Each draws its nodes from the name of its input to that of its output.
Layer = Callable[[str, str], list[onnx.NodeProto]]
SIDES = st.tuples(st.integers(1, 3), st.integers(1, 3)).map(list)


@st.composite
def windows(draw: st.DrawFn) -> Layer:
    op_type = draw(st.sampled_from(["Conv", "MaxPool", "AveragePool"]))
    kernel = draw(SIDES)
    given: dict[str, Any] = {"kernel_shape": kernel, "strides": draw(SIDES)}
    rule = draw(st.sampled_from(["NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"]))
    if rule == "NOTSET":
        given["pads"] = [draw(st.integers(0, side - 1)) for side in kernel * 2]  # a pool's is less than its kernel
        if op_type != "Conv":
            given["ceil_mode"] = draw(st.integers(0, 1))
    else:
        given["auto_pad"] = rule
    # A pool with holes might see nothing but padding, which gives the least number there is.
    if op_type == "Conv" or (op_type == "MaxPool" and rule == "VALID"):
        given["dilations"] = draw(SIDES)
    weights = [f"w{kernel[0]}x{kernel[1]}"] if op_type == "Conv" else []
    return lambda x, y: [make_node(op_type, [x, *weights], [y], **given)]


@st.composite
def transposed_convs(draw: st.DrawFn) -> Layer:
    kernel, strides = draw(SIDES), draw(SIDES)
    given: dict[str, Any] = {"strides": strides, "dilations": draw(SIDES)}
    if draw(st.booleans()):
        given["output_padding"] = [draw(st.integers(0, side - 1)) for side in strides]
        given["pads"] = [draw(st.integers(0, side // 2)) for side in kernel * 2]
    else:
        given["auto_pad"] = draw(st.sampled_from(["SAME_UPPER", "SAME_LOWER"]))
    return lambda x, y: [make_node("ConvTranspose", [x, f"w{kernel[0]}x{kernel[1]}"], [y], **given)]


def constant(name: str, numbers: Any, dtype: Any = np.int64) -> onnx.NodeProto:
    return make_node("Constant", [], [name], value=onnx.numpy_helper.from_array(np.asarray(numbers, dtype), name))


@st.composite
def paddings(draw: st.DrawFn) -> Layer:
    sides = [draw(st.integers(-1, 2)) for _ in range(4)]
    mode = draw(st.sampled_from(["constant", "edge"] if min(sides) < 0 else ["constant", "edge", "reflect"]))
    pads = [0, 0, *sides[:2], 0, 0, *sides[2:]]
    return lambda x, y: [constant(f"{y}p", pads), make_node("Pad", [x, f"{y}p"], [y], mode=mode)]


@st.composite
def slices(draw: st.DrawFn) -> Layer:
    starts = [draw(st.integers(-4, 2)), draw(st.integers(0, 1))]
    stops = [draw(st.sampled_from([2**63 - 1, -1])), 2**63 - 1]
    steps = [draw(st.integers(1, 2)), draw(st.integers(1, 2))]

    def nodes(x: str, y: str) -> list[onnx.NodeProto]:
        lists = zip("abcd", (starts, stops, [2, 3], steps), strict=True)
        return [
            *(constant(f"{y}{name}", numbers) for name, numbers in lists),
            make_node("Slice", [x, *(f"{y}{name}" for name in "abcd")], [y]),
        ]

    return nodes


@st.composite
def resizes(draw: st.DrawFn) -> Layer:
    mode = draw(st.sampled_from(["nearest", "linear"]))
    given: dict[str, Any] = {"mode": mode}
    coordinates = ["half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners"]
    given["coordinate_transformation_mode"] = draw(st.sampled_from(coordinates))
    if mode == "nearest":
        given["nearest_mode"] = draw(st.sampled_from(["floor", "ceil", "round_prefer_floor"]))
    if draw(st.booleans()):
        scales = [1, 1, draw(st.sampled_from([0.5, 1, 1.5, 2, 3])), draw(st.sampled_from([1, 1.7, 2]))]
        return lambda x, y: [constant(f"{y}s", scales, np.float32), make_node("Resize", [x, "", f"{y}s"], [y], **given)]
    sides = [draw(st.integers(1, 9)), draw(st.integers(1, 9))]
    return lambda x, y: [
        constant(f"{y}s", sides),
        make_node("Resize", [x, "", "", f"{y}s"], [y], axes=[2, 3], **given),
    ]


@st.composite
def forks(draw: st.DrawFn) -> Layer:
    """Two ways that meet: what they see is no rectangle."""
    dilation, joined = draw(st.integers(1, 2)), draw(st.booleans())

    def nodes(x: str, y: str) -> list[onnx.NodeProto]:
        both = [dilation, dilation]
        down, across = [dilation, 0, dilation, 0], [0, dilation, 0, dilation]
        ways = [
            make_node("Conv", [x, "w3x1"], [f"{y}a"], pads=down, dilations=both),
            make_node("Conv", [x, "w1x3"], [f"{y}b"], pads=across, dilations=both),
        ]
        if not joined:
            return [*ways, make_node("Add", [f"{y}a", f"{y}b"], [y])]
        return [
            *ways,
            make_node("Concat", [f"{y}a", f"{y}b"], [f"{y}c"], axis=1),
            make_node("Split", [f"{y}c"], [f"{y}d", f"{y}e"], axis=1, num_outputs=2),
            make_node("Sum", [f"{y}d", x, f"{y}e"], [y]),
        ]

    return nodes


def to_depth(x: str, y: str) -> list[onnx.NodeProto]:
    parts = [f"{y}{number}" for number in range(4)]
    return [
        constant(f"{y}s", [6, 8]),  # even
        make_node("Resize", [x, "", "", f"{y}s"], [f"{y}r"], axes=[2, 3]),
        make_node("SpaceToDepth", [f"{y}r"], [f"{y}d"], blocksize=2),
        make_node("Split", [f"{y}d"], parts, axis=1, num_outputs=4),
        make_node("Sum", parts, [y]),
    ]


def to_space(x: str, y: str) -> list[onnx.NodeProto]:
    return [make_node("Concat", [x] * 4, [f"{y}c"], axis=1), make_node("DepthToSpace", [f"{y}c"], [y], blocksize=2)]


BLOCKS: st.SearchStrategy[Layer] = st.sampled_from([to_depth, to_space])
LAYERS = st.one_of(windows(), transposed_convs(), paddings(), slices(), resizes(), forks(), BLOCKS)
STACKS = st.lists(st.one_of(windows(), LAYERS), min_size=1, max_size=5)
SIZES = st.tuples(st.integers(6, 12), st.integers(6, 12))


def stacked(layers: Sequence[Layer], size: tuple[Any, Any]) -> onnx.ModelProto:
    nodes = [make_node("Conv", ["x", "w1x1"], ["v0"])]  # tells which axis holds the channels
    for number, layer in enumerate(layers):
        nodes += layer(f"v{number}", f"v{number + 1}")
    return model_of([*nodes, make_node("Identity", [f"v{len(layers)}"], ["y"])], size)


def have_cells(layers: Sequence[Layer], size: Size) -> bool:
    """Return whether every map has a cell: onnx and its runtime abort the process where one without any is sliced."""
    for count in range(1, len(layers) + 1):
        values = onnx.shape_inference.infer_shapes(stacked(layers[:count], size)).graph.value_info
        if any(dim.dim_value < 1 for value in values for dim in list(value.type.tensor_type.shape.dim)[2:]):
            return False
    return True


@settings(max_examples=150, deadline=None)
@given(STACKS, SIZES, st.booleans())
def test_cells_see_exactly_the_pixels_that_move_them(layers: Sequence[Layer], size: Size, is_open: bool) -> None:
    assume(have_cells(layers, size))
    model = stacked(layers, ("H", "W") if is_open else size)
    note(onnx.printer.to_text(model.graph))
    try:
        seen = seen_by_moving(model, size)
    except REFUSED:  # a pool that would be padded by less than 0, for instance
        reject()
    assume(seen.any())  # else a slice may have left nothing
    fields = fields_of(model, size)
    if fields.bounded:
        assert not (seen & ~told(fields)).any()
    else:
        np.testing.assert_array_equal(told(fields), seen)


CONV = "Conv<pads = [1, 1, 1, 1]>"


@pytest.mark.parametrize("size", [(12, 9), (9, 14)])
@pytest.mark.parametrize(
    "text",
    [
        pytest.param(f"a = {CONV}(x, w3x3) b = Relu(a) c = {CONV}(b, w3x3) d = Add(c, x) y = Relu(d)", id="residual"),
        pytest.param(
            f"a = {CONV}(x, w3x3) b = Concat<axis = 1>(x, a) p, q = Split<axis = 1, num_outputs = 2>(b) s = Sum(p, q)"
            "y = MaxPool<kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1>(s)",
            id="dense",
        ),
        pytest.param(
            "a = Slice<starts = [1, 0], ends = [1000, -1], axes = [2, 3]>(x) y = Conv<strides = [2, 2]>(a, w3x3)",
            id="slices of an old operator set",
        ),
        pytest.param(
            'p = AveragePool<kernel_shape = [2, 2], strides = [2, 2], auto_pad = "SAME_UPPER">(x)'
            f'c = {CONV}(p, w3x3) s = Shape(x) r = Resize<mode = "nearest">(c, , , s) d = Sum(r, x)'
            f"y = {CONV}(d, w3x3)",
            id="a resize to the size of a skipped map",
        ),
    ],
)
@pytest.mark.parametrize("is_open", [False, True])
def test_real_blocks_see_what_moves_them(text: str, size: Size, is_open: bool) -> None:
    model = parsed(text, ("H", "W") if is_open else size, opset=9 if "starts" in text else 18)
    assert_exact(model, size)


@pytest.mark.parametrize("scale", [2, 3, 1.5])
def test_a_cubic_resize_sees_up_to_four_cells(scale: float) -> None:
    sizes = f"s = Constant<value_floats = [1., 1., {scale:.1f}, {scale:.1f}]>()"
    assert_exact(parsed(f'{sizes} c = Conv(x, w1x1) y = Resize<mode = "cubic">(c, , s)', (7, 5)), (7, 5))


@pytest.mark.parametrize("op_type", ["MaxPool", "AveragePool"])
def test_a_window_that_would_start_behind_the_picture_does_not_count(op_type: str) -> None:
    pool = f"{op_type}<kernel_shape = [2, 2], strides = [3, 3], pads = [1, 1, 1, 1], ceil_mode = 1>"
    assert_exact(parsed(f"c = Conv(x, w1x1) y = {pool}(c)", (7, 10)), (7, 10))


def test_a_map_whose_rows_are_columns_of_the_picture_has_no_place() -> None:
    text = "c = Conv(x, w3x3) t = Transpose<perm = [0, 1, 3, 2]>(c) y = Conv(t, w3x3)"
    assert skeleton(parsed(text, (12, 9))).places == (None,)


@pytest.mark.parametrize("size", [(8, 6), (7, 12)])
def test_channels_last_makes_no_difference(size: Size) -> None:
    body = (
        "t = Transpose<perm = [0, 3, 1, 2]>(x) c = Conv<strides = [2, 1], pads = [1, 0, 0, 1]>(t, w3x2)"
        "y = Transpose<perm = [0, 2, 3, 1]>(c)"
    )
    model = parsed(body, size)
    dims = model.graph.input[0].type.tensor_type.shape.dim
    for dim, side in zip(list(dims)[1:], (*size, CHANNELS), strict=True):
        dim.dim_value = side
    assert_exact(model, size, (*size, CHANNELS))


def test_rows_repeated_by_tile_and_reshape_are_found() -> None:
    model = parsed(
        "c = Conv(x, w3x3) u = Reshape(c, a) t = Tile(u, b) r = Reshape(t, d) y = Conv(r, w1x1)".replace(
            "c = Conv",
            "a = Constant<value_ints = [0, 4, 6, 1, 4]>() b = Constant<value_ints = [1, 1, 1, 2, 1]>()"
            "d = Constant<value_ints = [0, 4, 12, 4]>() c = Conv",
        ),
        (8, 6),
    )
    assert_exact(model, (8, 6))


def test_a_channel_shuffle_leaves_places_as_they_are() -> None:
    text = (
        "c = Conv<strides = [2, 2]>(x, w3x3) s = Shape(c) n = Constant<value_ints = [0]>()"
        "b = Gather(s, n) o = Constant<value_ints = [2, 2]>() i = Constant<value_ints = [2, 3]>() hw = Gather(s, i)"
        "t = Concat<axis = 0>(b, o, hw) u = Reshape(c, t) v = Transpose<perm = [0, 2, 1, 3, 4]>(u)"
        "r = Reshape(v, s) y = Conv(r, w3x3)"
    )
    assert_exact(parsed(text, ("H", "W")), (11, 13))
    assert_exact(parsed(text, (13, 11)), (13, 11))


def computed_pads(x: str, y: str, pads: Sequence[int], mode: str) -> str:
    """Return a Pad as torch's older exporter writes it: from the last axis on, and turned around by nodes."""
    return (
        f"{y}n = Constant<value_ints = [{8 - len(pads)}]>() {y}p = Constant<value_ints = {list(pads)}>()"
        f"{y}z = ConstantOfShape<value = int64[1] {{0}}>({y}n) {y}c = Concat<axis = 0>({y}p, {y}z)"
        f"{y}two = Constant<value_ints = [-1, 2]>() {y}r = Reshape({y}c, {y}two) {y}o = Constant<value_ints = [0]>()"
        f"{y}m = Constant<value_ints = [-1]>() {y}e = Constant<value_ints = [-9223372036854775807]>()"
        f"{y}s = Slice({y}r, {y}m, {y}e, {y}o, {y}m) {y}t = Transpose<perm = [1, 0]>({y}s)"
        f'{y}f = Reshape({y}t, {y}m) {y}i = Cast<to = 7>({y}f) {y} = Pad<mode = "{mode}">({x}, {y}i)'
    )


@pytest.mark.parametrize("mode", ["reflect", "edge", "constant"])
@pytest.mark.parametrize("is_open", [False, True])
def test_a_padding_that_nodes_compute_is_followed(mode: str, is_open: bool) -> None:
    pads = computed_pads("c", "p", [1, 2, 3, 0], mode)
    text = f"c = Conv(x, w3x3) {pads} y = Conv<strides = [2, 2]>(p, w3x3)"
    assert_exact(parsed(text, ("H", "W") if is_open else (9, 12)), (9, 12))


def test_a_padding_that_the_picture_tells_has_no_place() -> None:
    pads = computed_pads("c", "p", [1, 1, 1, 1], "constant").replace("pi = Cast<to = 7>(pf)", "")
    count = "m = ReduceMax<keepdims = 0>(c) pi = Cast<to = 7>(pq) pq = Mul(pf, k) k = Cast<to = 7>(m)"
    text = f"c = Conv(x, w3x3) {count} {pads} y = Conv(p, w3x3)"
    assert skeleton(parsed(text, (9, 12))).places == (None,)


def shuffled(x: str, y: str, before: str, groups: int = 2) -> str:
    """Return a channel shuffle as torch's older exporter writes it, which asks `before` for each length by itself."""
    zero = f"{y}zero = Constant<value_ints = [0]>()"
    asked = " ".join(
        f"{y}s{axis} = Shape({before}) {y}i{axis} = Constant<value_int = {axis}>() "
        f"{y}g{axis} = Gather<axis = 0>({y}s{axis}, {y}i{axis}) {y}l{axis} = Unsqueeze({y}g{axis}, {y}zero)"
        for axis in range(4)
    )
    return (
        f"{zero} {asked} {y}n = Constant<value_int = {groups}>() {y}d = Div({y}g1, {y}n) {y}q = Cast<to = 7>({y}d)"
        f"{y}lq = Unsqueeze({y}q, {y}zero) {y}ln = Unsqueeze({y}n, {y}zero)"
        f"{y}t = Concat<axis = 0>({y}l0, {y}ln, {y}lq, {y}l2, {y}l3) {y}u = Reshape({x}, {y}t)"
        f"{y}v = Transpose<perm = [0, 2, 1, 3, 4]>({y}u) {y}w = Concat<axis = 0>({y}l0, {y}l1, {y}l2, {y}l3)"
        f"{y} = Reshape({y}v, {y}w)"
    )


@pytest.mark.parametrize("is_open", [False, True])
def test_channel_shuffles_whose_shapes_inference_does_not_know_are_followed(is_open: bool) -> None:
    text = (
        f"c = Conv<strides = [2, 2]>(x, w3x3) {shuffled('c', 'a', 'c')} a1, a2 = Split<axis = 1>(a)"
        f"b = Concat<axis = 1>(a2, a1) d = Conv<pads = [1, 0, 0, 1]>(b, w3x2) {shuffled('d', 'e', 'd')}"
        "y = Conv(e, w3x3)"
    )
    model = parsed(text, ("H", "W") if is_open else (17, 14), opset=13)
    assert read_graph(model).shape("a") is None
    assert_exact(model, (17, 14))


def test_a_reshape_to_lengths_in_another_order_has_no_place() -> None:
    text = shuffled("c", "a", "c").replace(
        "aw = Concat<axis = 0>(al0, al1, al2, al3)", "aw = Concat<axis = 0>(al0, al1, al3, al2)"
    )
    assert skeleton(parsed(f"c = Conv(x, w3x3) {text} y = Conv(a, w3x3)", ("H", "W"))).places == (None,)


def test_fields_of_a_residual_are_joined_and_not_bounded() -> None:
    rows = "a = Conv<pads = [1, 0, 1, 0]>(x, w3x1) b = Conv<pads = [0, 1, 0, 1]>(x, w1x3) y = Add(a, b)"
    fields = fields_of(parsed(rows, (9, 9)), (9, 9))
    assert len(fields.terms) == 2
    cross = np.zeros((9, 9), bool)
    cross[3:6, 4] = cross[4, 3:6] = True
    np.testing.assert_array_equal(fields.of_cell(4, 4), cross)


def test_the_four_corners_of_a_focus_layer_are_one_rectangle() -> None:
    text = "t = Constant<value_ints = [2]>() f = Constant<value_ints = [1000]>() r = Constant<value_ints = [2]>()"
    text += "c = Constant<value_ints = [3]>() zero = Constant<value_ints = [0]>() one = Constant<value_ints = [1]>()"
    for row in ("zero", "one"):
        text += f" {row}r = Slice(x, {row}, f, r, t)"
        text += "".join(f" {row}{column} = Slice({row}r, {column}, f, c, t)" for column in ("zero", "one"))
    text += " s = Sum(zerozero, zeroone, onezero, oneone) y = Conv(s, w3x3)"
    model = parsed(text, ("H", "W"))
    assert len(fields_of(model, (12, 10)).terms) == 1
    assert_exact(model, (12, 10))


def test_more_rectangles_than_are_kept_become_the_one_around_them_and_it_is_told() -> None:
    ways = "".join(
        f"a{i} = Conv<pads = [{i}, {9 - i}, {i}, {9 - i}]>(x, w{2 * i + 1}x{2 * (9 - i) + 1})"
        for i in range(MOST_TERMS + 1)
    )
    names = ", ".join(f"a{i}" for i in range(MOST_TERMS + 1))
    model = parsed(f"{ways} y = Sum({names})", (13, 11))
    fields = fields_of(model, (13, 11))
    assert fields.bounded
    assert len(fields.terms) == 1
    assert not (seen_by_moving(model, (13, 11)) & ~told(fields)).any()


def test_no_edge_of_a_field_vanishes_in_a_deep_network() -> None:
    nodes = "".join(f"v{i + 1} = {CONV}({'x' if not i else f'v{i}'}, w3x3)" for i in range(120)) + "y = Relu(v120)"
    fields = fields_of(parsed(nodes, ("H", "W")), (300, 2))
    (term,) = fields.terms
    assert (term.rows[150] > 0).sum() == 241
    assert term.rows[150].argmax() == 150
    assert np.isfinite(term.rows).all()


def test_a_cell_looks_most_at_the_middle_of_its_field() -> None:
    fields = fields_of(parsed("a = Conv(x, w3x3) y = Conv(a, w3x3)", (9, 9)), (9, 9))
    (term,) = fields.terms
    np.testing.assert_allclose(term.rows[2] / term.rows[2].sum(), np.array([0, 0, 1, 2, 3, 2, 1, 0, 0]) / 9, rtol=1e-6)


GATE = "g = GlobalAveragePool(c) h = Conv(g, w1x1) s = Sigmoid(h)"


@pytest.mark.parametrize(
    "gate",
    [
        f"{GATE} m = Mul(c, s)",
        f'{GATE} z = Shape(c) t = Resize<mode = "nearest">(s, , , z) m = Add(c, t)',
        "m = InstanceNormalization(c, wx, wx)",
        "n = ReduceMean<keepdims = 1>(c, hw) m = Sub(c, n)",
    ],
)
def test_behind_a_gate_the_local_way_counts_and_the_gate_is_told(gate: str) -> None:
    text = "hw = Constant<value_ints = [2, 3]>() wx = Constant<value_floats = [1., 1., 1., 1.]>()"
    found = skeleton(parsed(f"{text} c = Conv(x, w3x3) {gate} y = Conv(m, w3x3)", (12, 12)))
    plain = skeleton(parsed("c = Conv(x, w3x3) y = Conv(c, w3x3)", (12, 12)))
    assert found.steps == plain.steps
    assert [place.gated for place in (*found.places, *plain.places) if place] == [True, False]


@pytest.mark.parametrize(
    "text",
    [
        "c = Conv(x, w3x3) g = GlobalAveragePool(c) y = Conv(g, w1x1)",
        "c = Conv(x, w3x3) f = Flatten(c) k = Constant<value_ints = [0, 4, 10, 10]>() r = Reshape(f, k) y = Relu(r)",
        "c = Conv(x, w3x3) t = Transpose<perm = [0, 1, 3, 2]>(c) m = MatMul(c, t) y = Conv(m, w1x1)",
        "c = Conv(x, w3x3) s = Softmax<axis = 3>(c) y = Conv(s, w1x1)",
        "c = Conv(x, w3x3) d = Concat<axis = 2>(c, c) y = Conv(d, w1x1)",
        "c = Conv(x, w3x3) d = CumSum(c, k) y = Conv(d, w1x1)",
    ],
)
def test_where_places_are_mixed_nothing_is_claimed(text: str) -> None:
    text = text.replace("d = CumSum", "k = Constant<value_int = 2>() d = CumSum")
    assert skeleton(parsed(text, (12, 12))).places == (None,)


def test_a_pool_that_onnx_runtime_pads_otherwise_has_no_place() -> None:
    text = 'c = Conv(x, w1x1) y = MaxPool<kernel_shape = [3, 3], dilations = [2, 2], auto_pad = "SAME_UPPER">(c)'
    assert skeleton(parsed(text, (12, 12))).places == (None,)


def test_equal_steps_are_shared_and_what_no_layer_needs_is_left_out() -> None:
    text = f"a = {CONV}(x, w3x3) b = {CONV}(x, w3x3) z = Conv(x, w5x5) y = Add(a, b)"
    found = skeleton(parsed(text, (12, 12)))
    assert [step.parents for step in found.steps] == [(), (0,)]


def test_a_map_that_no_picture_of_this_size_gives_is_refused() -> None:
    conv = Step((0,), Slice(5, 9), Slice(0, 9))
    with pytest.raises(PictureError, match=r"makes 0 cells of this picture, 1 to 32,768 are wanted: pass a size"):
        receptive_fields(Registration(steps=(Step(), conv), step=1, size=(4, 4)))
    steps = (Step(), Step((0,), Window(2), Window(1)), Step((0, 1)))
    with pytest.raises(PictureError, match=r"maps of 3 and of 4 cells meet"):
        receptive_fields(Registration(steps=steps, step=2, size=(4, 4)))


@pytest.mark.parametrize(
    "step",
    [
        Window(1 << 31, before=1 << 14, after=1 << 31),
        Spread(1 << 14, stride=1 << 14),
        Spread(1 << 31),
        Pad(1 << 31, 0),
        Repeat(1 << 31),
        Resize("linear", "half_pixel", "floor", length=1 << 31),
        Resize("nearest", "asymmetric", "floor", scale=1e30),
    ],
)
def test_steps_that_would_take_all_memory_are_refused(step: Any) -> None:
    registration = Registration(steps=(Step(), Step((0,), step, step)), step=1, size=(8, 8))
    with pytest.raises(PictureError, match="a step of the model"):
        receptive_fields(registration)


def test_ways_that_are_a_rectangle_together_are_one_and_others_are_bounded_in_time() -> None:
    pairs = [(down, across) for down in range(20) for across in range(20)]
    for shifts, bounded in ((pairs, False), ([(down, down * 37 % 100) for down in range(100)], True)):
        ways = [Step((0,), Pad(-down, down), Pad(across, -across)) for down, across in shifts]
        steps = (Step(), *ways, Step(tuple(range(1, len(ways) + 1))))
        fields = receptive_fields(Registration(steps=steps, step=len(ways) + 1, size=(100, 100)))
        assert fields.bounded == bounded
        seen = fields.of_cell(0, 99)
        assert all(seen[down, 99 - across] for down, across in shifts)
        assert bounded or seen.sum() == len(shifts)


@settings(deadline=None, max_examples=60)
@given(
    windows=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(0, 2)), min_size=1, max_size=6),
    chosen=st.sets(st.integers(0, 6), min_size=1),
)
def test_one_sweep_finds_what_the_cells_of_each_map_see(windows: list[tuple[int, int, int]], chosen: set[int]) -> None:
    steps = [Step()]
    seen = [[{cell} for cell in range(40)]]  # pixels of each cell of a map, one after the other by ONNX's definition
    for place, (kernel, stride, padding) in enumerate(windows):
        steps.append(Step((place,), Window(kernel, stride, 1, padding, padding), Window(1)))
        before = seen[-1]
        starts = range(-padding, len(before) + padding - kernel + 1, stride)
        inside = [[at for at in range(start, start + kernel) if 0 <= at < len(before)] for start in starts]
        seen.append([set().union(*(before[at] for at in cells)) for cells in inside])
    chosen &= set(range(len(steps)))
    assume(chosen and all(seen))
    found = list(each_field(steps, (40, 1), chosen))
    assert [step for step, _ in found] == sorted(chosen)
    for step, fields in found:
        assert [set(np.flatnonzero(row).tolist()) for row in fields.terms[0].rows] == seen[step]


def chain(length: int) -> list[Step]:
    window = Window(3, before=1, after=1)
    return [Step(), *(Step((place,), window, window) for place in range(length))]


def test_all_maps_of_a_chain_take_as_many_steps_as_the_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(*given: Any) -> Any:
        calls.append(given)
        return taps_of(*given)

    monkeypatch.setattr("onnxfeat.drawing.receptive_fields.taps_of", counted)
    assert len(list(each_field(chain(300), (8, 8), range(301)))) == 301
    assert len(calls) == 600  # rows and columns


def test_fields_are_not_kept_behind_their_last_use() -> None:
    side = 256
    tracemalloc.start()
    try:
        for _, fields in each_field(chain(100), (side, side), range(101)):
            assert fields.cells == (side, side)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20 * side * side * 4  # two matrices for each of a few maps; of all maps it would be 200


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([[[]], [[1]]], "step 1 with parents"),
        ([[[0]]], "step 0 with parents"),
        ([[[]], [[]]], "step 1 with parents"),
        ([[[]], [[0], "window", [0, 1, 1, 0, 0, "", 0]]], "kernel 0 of a window"),
        ([[[]], [[0], "window", [3, 1, 1, 0, 0, "left", 0]]], "same 'left' of a window"),
        ([[[]], [[0], "window", [3, 1, 1, 0, 1 << 40, "", 0]]], "after 1099511627776 of a window"),
        ([[[]], [[0, 0], "window", [3, 1, 1, 0, 0, "", 0]]], "step 1 with 2 parents"),
        ([[[]], [[0], "slice", [0, 9, 0]]], "step 0 of a slice"),
        ([[[]], [[0], "resize", ["nearest", "asymmetric", "floor", -2.0, 0]]], "scale -2.0 of a resize"),
        ([[[]], [[0], "pad", [1, 1, "mirror"]]], "mode 'mirror' of a pad"),
    ],
)
def test_steps_that_can_not_be_are_refused(steps: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Skeleton.from_json({"steps": steps, "places": []})


def test_a_place_beyond_the_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="place 3 of 1 steps"):
        Skeleton.from_json({"steps": [[[]]], "places": [[3, 0]]})


def test_steps_of_different_axes_and_all_kinds_come_back_from_json() -> None:
    resize = Resize("linear", "half_pixel", "floor", scale=1.5)
    steps = (
        Step(),
        Step((0,), Window(3, ceil=True), Window(2)),
        Step((1,), Repeat(2), Repeat(3)),
        Step((2, 1), resize, resize),
    )
    made = Skeleton(steps=steps, places=())
    assert Skeleton.from_json(json.loads(json.dumps(made.to_json()))) == made
