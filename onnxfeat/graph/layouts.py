"""Tell for each value of a graph which axis holds the channels, by following the graph from its conv and pool nodes.

Layout belongs to a value, not to a model: files made from Keras mix channels-first and channels-last values. It is
never guessed from sizes, which mislead as soon as C = H = W.

The letters: N batch, C channels, D H W depth, rows and columns, T the tokens of a transformer, which are the places of
a map in one row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import onnx

from onnxfeat.graph.reading import CELL_BY_CELL, Graph, axis_order, number, numbers, operator, reduced_axes

CHANNELS_FIRST = {2: "NC", 3: "NCW", 4: "NCHW", 5: "NCDHW"}
CHANNELS_LAST = {2: "NC", 3: "NWC", 4: "NHWC", 5: "NDHWC"}

# Operators that ONNX defines with the channels on axis 1 of their first input and first output.
_BY_DEFINITION = frozenset(
    "Conv ConvInteger ConvTranspose DeformConv FusedConv QLinearConv MaxPool AveragePool LpPool GlobalAveragePool "
    "GlobalMaxPool GlobalLpPool QLinearAveragePool QLinearGlobalAveragePool BatchNormalization InstanceNormalization "
    "GroupNormalization LRN DepthToSpace SpaceToDepth MaxUnpool MaxRoiPool RoiAlign".split()
)
# Those of com.microsoft with the channels on the last axis; and those that an attribute decides about.
_CHANNELS_LAST = frozenset("NhwcConv NhwcFusedConv NhwcMaxPool".split())
_EITHER = frozenset("QLinearConv QLinearAveragePool QLinearGlobalAveragePool GroupNorm".split())
# Operators whose output has the axes of their inputs, in the same order.
_KEEPING = CELL_BY_CELL | frozenset(
    "And CumSum GridSample LayerNormalization Or QLinearSoftmax Resize RMSNormalization SimplifiedLayerNormalization "
    "Softmax LogSoftmax Upsample".split()
)
_LAST_AXIS_NORMS = frozenset("LayerNormalization RMSNormalization SimplifiedLayerNormalization".split())
_MATRIX_PRODUCTS = frozenset("MatMul MatMulInteger QLinearMatMul DynamicQuantizeMatMul MatMulIntegerToFloat".split())

_REDUCING = frozenset("ReduceMean ReduceMax ReduceMin ReduceSum ReduceL1 ReduceL2".split())


def layouts_of(graph: Graph) -> dict[str, str]:
    """Return value name to layout (such as `NCHW`, `NHWC`) for each value whose layout follows from the graph."""
    layouts: dict[str, str] = {}
    todo: list[str] = []

    def learn(value: str, layout: str | None) -> None:
        # Weights have axes of other meanings; what nodes make of constants may well be a map.
        if value and layout and value not in layouts and value not in graph.initializers:
            layouts[value] = layout
            todo.append(value)

    for guess in (None, 4):  # where no shape tells the number of axes, and no neighbor does, pictures are assumed
        for node in graph.nodes:
            for value, layout in _defined(graph, node, guess):
                learn(value, layout)
        _spread(graph, layouts, todo, learn)
    # Normalization over the last axis is how channels-last networks are written. It tells last, as 1-D maps and tokens
    # are both (N, places, C) to it.
    for node in graph.nodes:
        if operator(node) in _LAST_AXIS_NORMS and node.input and node.output:
            rank = graph.rank(node.input[0])
            if rank in (3, 4, 5) and number(node, "axis", -1) in (-1, rank - 1):
                learn(node.input[0], "NTC" if rank == 3 else CHANNELS_LAST[rank])
                learn(node.output[0], "NTC" if rank == 3 else CHANNELS_LAST[rank])
                _spread(graph, layouts, todo, learn)
    return {value: layout for value, layout in layouts.items() if layout.startswith("N") and "C" in layout}


def _defined(graph: Graph, node: onnx.NodeProto, guess: int | None) -> Iterator[tuple[str, str | None]]:
    """Yield the values whose layout a node's operator defines; `guess` is the number of axes where nothing tells."""
    op_type = operator(node)
    if not node.input or not node.output:
        return
    rank = graph.rank(node.output[0]) or graph.rank(node.input[0]) or _rank_of_window(graph, node) or guess
    if rank is None:
        return
    if op_type in _CHANNELS_LAST or (op_type in _EITHER and number(node, "channels_last", 0)):
        yield node.input[0], CHANNELS_LAST.get(rank)
        yield node.output[0], CHANNELS_LAST.get(rank)
    elif op_type in _BY_DEFINITION:
        yield node.input[0], CHANNELS_FIRST.get(rank)
        yield node.output[0], CHANNELS_FIRST.get(rank)


def _spread(graph: Graph, layouts: dict[str, str], todo: list[str], learn: Callable[[str, str | None], None]) -> None:
    """Follow each value in `todo` to its neighbors, and so on."""
    done: set[tuple[int, str]] = set()
    while todo:
        value = todo.pop()
        producer = graph.producers.get(value)
        for node in graph.consumers.get(value, []) + ([] if producer is None else [producer]):
            if (
                operator(node) in _KEEPING
            ):  # says the same whichever of its values is asked: a Concat may have thousands
                if (id(node), layouts[value]) in done:
                    continue
                done.add((id(node), layouts[value]))
            if node.input and node.output:
                for other, layout in _through(graph, node, value, layouts[value]):
                    learn(other, layout)


def _through(graph: Graph, node: onnx.NodeProto, value: str, layout: str) -> Iterator[tuple[str, str | None]]:
    """Yield what the layout of one of a node's values says about its others."""
    op_type = operator(node)
    if op_type in _KEEPING:
        for other in (*node.input, *node.output[:1]):
            # A broadcast operand of lower rank has other axes, so ranks must agree where both are known.
            if graph.rank(other) in (None, len(layout)):
                yield other, layout
    elif op_type == "Split":
        for other in (node.input[0], *node.output):
            yield other, layout
    elif op_type in _REDUCING:
        if value == node.input[0]:
            yield node.output[0], _reduced(graph, node, layout)
    elif op_type in _MATRIX_PRODUCTS:
        # Times a matrix of weights from the right: the last axis changes its length, not its meaning.
        if layout.endswith("C") and graph.rank(node.output[0]) in (None, len(layout)) and _has_weights(graph, node):
            yield node.input[0], layout
            yield node.output[0], layout
    elif op_type in ("Squeeze", "Unsqueeze"):
        yield from _through_squeeze(graph, node, value, layout)
    else:
        yield from _through_order(graph, node, value, layout)


def _reduced(graph: Graph, node: onnx.NodeProto, layout: str) -> str | None:
    keepdims, axes = number(node, "keepdims", 1), reduced_axes(graph, node)
    if keepdims:
        return layout
    if axes is None:
        return None
    gone = {axis % len(layout) for axis in axes}
    return "".join(letter for axis, letter in enumerate(layout) if axis not in gone)


def _has_weights(graph: Graph, node: onnx.NodeProto) -> bool:
    """Return whether the second factor of a matrix product is a matrix that the model holds."""
    position = 3 if operator(node) == "QLinearMatMul" else 1
    if len(node.input) <= position:
        return False
    weights = node.input[position]
    return graph.is_constant(weights) and graph.rank(weights) in (2, None)


def _through_squeeze(graph: Graph, node: onnx.NodeProto, value: str, layout: str) -> Iterator[tuple[str, str | None]]:
    """Squeeze takes axes of length 1 away, Unsqueeze puts them in; what is put in is a spatial axis."""
    axes = numbers(node, "axes")
    if axes is None and len(node.input) > 1:  # an input since opset 13
        constant = graph.constant(node.input[1])
        axes = None if constant is None else [int(axis) for axis in constant.ravel()]
    if axes is None:
        return
    short, long = (node.output[0], node.input[0]) if operator(node) == "Squeeze" else (node.input[0], node.output[0])
    if value == long:
        gone = {axis % len(layout) for axis in axes}
        yield short, "".join(letter for axis, letter in enumerate(layout) if axis not in gone)
    elif value == short:
        rank = len(layout) + len(axes)
        places = sorted(axis % rank for axis in axes)
        spare = [letter for letter in "HDW" if letter not in layout]
        if len(places) <= len(spare):
            letters = list(layout)
            for place, letter in zip(places, spare, strict=False):
                letters.insert(place, letter)
            yield long, "".join(letters)


def _through_order(graph: Graph, node: onnx.NodeProto, value: str, layout: str) -> Iterator[tuple[str, str | None]]:
    """Follow a Transpose; and a Reshape that moves the channels, or puts the places of a map into one row."""
    order = axis_order(graph, node)
    if order is not None and len(order) == len(layout):
        if value == node.input[0]:
            yield node.output[0], "".join(layout[axis] for axis in order)
        else:
            before = [""] * len(order)
            for new, old in enumerate(order):
                before[old] = layout[new]
            yield node.input[0], "".join(before)
    elif operator(node) == "Reshape" and value == node.input[0]:
        yield node.output[0], _reshaped(graph, node, layout)


def _reshaped(graph: Graph, node: onnx.NodeProto, layout: str) -> str | None:
    """Return the layout behind a Reshape that joins rows and columns to tokens, or parts them again; else None.

    A Reshape keeps the order of the numbers in memory, so where the channels keep their place and length, what lies
    beside them is the places of the map.
    """
    before, after = graph.shape(node.input[0]), graph.shape(node.output[0])
    if before is None or after is None or len(before) != len(layout) or "C" not in layout or len(after) < 3:
        return None
    channels = before[layout.index("C")]
    places = [side for side, letter in zip(before, layout, strict=True) if letter not in "NC"]
    first = layout.startswith("NC")
    if not first and not layout.endswith("C"):
        return None
    behind = after[1] if first else after[-1]
    if channels is None or behind != channels:
        return None
    spatial = after[2:] if first else after[1:-1]
    lengths = [[side for side in sides if isinstance(side, int)] for sides in (places, spatial)]
    if [len(x) for x in lengths] == [len(places), len(spatial)] and math.prod(lengths[0]) != math.prod(lengths[1]):
        return None
    letters = {1: "T", 2: "HW", 3: "DHW"}.get(len(spatial))
    if letters is None or len(spatial) == len(places):
        return None
    return f"NC{letters}" if first else f"N{letters}C"


def _rank_of_window(graph: Graph, node: onnx.NodeProto) -> int | None:
    """Return the number of axes of a conv's or pool's data as its weight or its kernel tells."""
    kernel = numbers(node, "kernel_shape")
    if kernel:
        return len(kernel) + 2
    position = 3 if operator(node) == "QLinearConv" else 1
    rank = graph.rank(node.input[position]) if len(node.input) > position else None
    return rank if rank in CHANNELS_FIRST and rank > 2 else None  # other nodes have vectors there, such as scales
