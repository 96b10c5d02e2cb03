"""Tell for each value of a graph which axis holds the channels, by following the graph from its conv and pool nodes.

Layout belongs to a value, not to a model: files made from Keras mix channels-first and channels-last values. It is
never guessed from sizes, which mislead as soon as C = H = W.
"""

from __future__ import annotations

import onnx

from onnxfeat.graph import CELL_BY_CELL, Graph, axis_order, number, operator, reduced_axes

CHANNELS_FIRST = {2: "NC", 3: "NCW", 4: "NCHW", 5: "NCDHW"}
CHANNELS_LAST = {2: "NC", 3: "NWC", 4: "NHWC", 5: "NDHWC"}

# Operators that ONNX defines with the channels on axis 1 of their first input and first output.
_BY_DEFINITION = frozenset(
    "Conv ConvTranspose DeformConv MaxPool AveragePool LpPool GlobalAveragePool GlobalMaxPool GlobalLpPool "
    "BatchNormalization InstanceNormalization GroupNormalization LRN DepthToSpace SpaceToDepth MaxUnpool".split()
)
# Operators whose output has the axes of their inputs, in the same order.
_KEEPING = CELL_BY_CELL | frozenset("And CumSum Resize Upsample Where".split())

_REDUCING = frozenset("ReduceMean ReduceMax ReduceMin ReduceSum ReduceL1 ReduceL2".split())


def layouts_of(graph: Graph) -> dict[str, str]:
    """Return value name to layout (such as `NCHW`, `NHWC`) for each value whose layout follows from the graph."""
    layouts: dict[str, str] = {}
    todo: list[str] = []

    def learn(value: str, layout: str | None) -> None:
        if value and layout and value not in layouts and not graph.is_constant(value):
            layouts[value] = layout
            todo.append(value)

    for node in graph.nodes:
        if operator(node) in _BY_DEFINITION:
            for value in (*node.input[:1], *node.output[:1]):
                learn(value, CHANNELS_FIRST.get(graph.rank(value) or _rank_of_weight(graph, node) or 4))
    while todo:
        value = todo.pop()
        producer = graph.producers.get(value)
        neighbors = graph.consumers.get(value, []) + ([] if producer is None else [producer])
        for node in neighbors:
            if not node.input or not node.output:
                continue
            op_type = operator(node)
            if op_type in _KEEPING:
                for other in (*node.input, *node.output[:1]):
                    # A broadcast operand of lower rank has other axes, so ranks must agree where both are known.
                    if graph.rank(other) in (None, len(layouts[value])):
                        learn(other, layouts[value])
            elif op_type in _REDUCING and value == node.input[0]:
                keepdims, axes = number(node, "keepdims", 1), reduced_axes(graph, node)
                if keepdims:
                    learn(node.output[0], layouts[value])
                elif axes is not None:
                    gone = {axis % len(layouts[value]) for axis in axes}
                    left = [letter for axis, letter in enumerate(layouts[value]) if axis not in gone]
                    learn(node.output[0], "".join(left))
            else:
                order = axis_order(graph, node)
                if order is not None and len(order) == len(layouts[value]):
                    if value == node.input[0]:
                        learn(node.output[0], "".join(layouts[value][axis] for axis in order))
                    else:
                        before = [""] * len(order)
                        for new, old in enumerate(order):
                            before[old] = layouts[value][new]
                        learn(node.input[0], "".join(before))
    return {value: layout for value, layout in layouts.items() if layout.startswith("N") and "C" in layout}


def _rank_of_weight(graph: Graph, node: onnx.NodeProto) -> int | None:
    """Return the rank of a conv's weight, which its data share."""
    rank = graph.rank(node.input[1]) if len(node.input) > 1 else None
    return rank if rank in CHANNELS_FIRST and rank > 2 else None  # other nodes have vectors there, such as scales
