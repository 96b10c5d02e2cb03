"""Follow the output of a conv or pool node through all that belongs to it: bias, normalization, activation, quantizing.

The walk goes on while one node uses the value, and that node adds or multiplies constants (bias, folded normalization),
normalizes, or only passes on. It ends with the activation, or before anything else: where several nodes use the value,
or another branch is added or joined, a block begins that is not part of the conv.

Two things are written otherwise than one would think. A quantizer takes a Relu away where the integers start at 0
anyway: a normalization behind such integers is behind the Relu, and is none of the conv's. And tf2onnx writes a Keras
Conv2DTranspose of open sides as a ConvTranspose and a Slice that crops its map: the crop is the conv's.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from onnxfeat.graph.quantization import boundary
from onnxfeat.graph.reading import Graph, axis_order, numbers, operator, type_name
from onnxfeat.layers.activations import Activation, activation_at, is_fixed, uses_of

BLOCKED_DOMAIN = "com.microsoft.nchwc"
"""Domain of ONNX Runtime's operators on channels in blocks of 8 or 16, as fits the processor."""

CONVS = frozenset(
    "Conv ConvTranspose ConvInteger DeformConv QLinearConv FusedConv NhwcConv NhwcFusedConv "
    "ConvTransposeWithDynamicPads".split()
)
"""Convolutions, of ONNX and of com.microsoft."""

# MaxRoiPool and RoiAlign are none: the first axis of their output counts regions, not pictures.
POOLS = frozenset(
    "MaxPool AveragePool LpPool GlobalAveragePool GlobalMaxPool GlobalLpPool NhwcMaxPool MaxpoolWithMask "
    "QLinearAveragePool QLinearGlobalAveragePool".split()
)
"""Poolings, of ONNX and of com.microsoft."""

# Operators that hold their activation inside, which the attribute `activation` names.
_FUSED = frozenset("FusedConv NhwcFusedConv".split())
_AFFINE = frozenset("Add Sub Mul Div".split())
_NORMS = frozenset("BatchNormalization InstanceNormalization GroupNormalization".split())
_PASSING = frozenset("Identity Cast Dropout Transpose".split())
_CROPPING = frozenset(("Slice", "Pad"))
_MOST_STEPS = 32
LOWEST = {"uint8": 0, "uint16": 0, "int8": -(2**7), "int16": -(2**15)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """What belongs to a conv or pool node.

    Attributes:
        raw: The value before the activation.
        value: The value after it; equals `raw` where there is none.
        activation: What lies between them, or None.
        inside: Name of an activation that the node itself or the one operator behind it holds, or None.
        stop: The node that the walk stopped before; None where an activation, a graph output, or integers that may hold
            a Relu ended it.
        branches: How many nodes use `value` where the walk stopped.
    """

    raw: str
    value: str
    activation: Activation | None = None
    inside: str | None = None
    stop: onnx.NodeProto | None = None
    branches: int = 0


def chain_of(graph: Graph, node: onnx.NodeProto) -> Chain:
    """Return what belongs to a conv node.

    Args:
        graph: The model.
        node: A conv node with at least one output.
    """
    value = node.output[0]
    inside = activation_inside(node)
    if inside is not None:
        return Chain(raw=value, value=value, inside=inside)
    current = belongs = _in_real_numbers(graph, value) if operator(node) == "ConvInteger" else value
    walked = [node]
    # Integers that start at 0: the Relu before them may have been taken away.
    rectified = value if operator(node) == "QLinearConv" and _starts_at_zero(graph, node, 7) else None
    for _ in range(_MOST_STEPS):
        uses = uses_of(graph, current)
        alone = uses.nodes[0] if len(uses.nodes) == 1 else None
        if alone is not None and operator(alone) in ("BiasGelu", "FastGelu") and len(alone.input) > 1:
            return Chain(raw=alone.output[0], value=alone.output[0], inside="GELU")
        if alone is None or not (operator(alone) in _PASSING or _is_bias(graph, alone, uses.names)):
            activation = activation_at(graph, current)
            if activation is not None:
                return Chain(raw=current, value=activation.value, activation=activation)
        following = None if alone is None else _step(graph, alone, uses.names, current, walked)
        if alone is None or following is None:
            return Chain(raw=belongs, value=belongs, stop=alone, branches=len(uses.nodes))
        rectified = rectified or _rectified(graph, alone, uses.names, current)
        current, is_work = following
        if rectified is not None and is_work:
            if operator(alone) not in _CROPPING:
                return Chain(raw=rectified, value=rectified)
            rectified = current
        belongs = current if is_work else belongs
        walked.append(alone)
    return Chain(raw=belongs, value=belongs)


def activation_inside(node: onnx.NodeProto) -> str | None:
    """Return the activation that a fused conv holds inside, such as `Relu`, or None."""
    if operator(node) not in _FUSED and node.domain != BLOCKED_DOMAIN:
        return None
    for entry in node.attribute:
        if entry.name == "activation" and entry.type == onnx.AttributeProto.STRING:
            return entry.s.decode("utf-8", "replace") or None
    return None


def tapped(graph: Graph, value: str) -> str:
    """Return where a value is to be watched: behind the QuantizeLinear that all uses of it go through, if there is one.

    Watching the float value there would keep the runtime from fusing the operators to one integer kernel, and so
    change the network that runs.
    """
    return boundary(graph, value) or value


def _is_bias(graph: Graph, node: onnx.NodeProto, names: frozenset[str]) -> bool:
    """Return whether a node adds or multiplies numbers of its own for each channel, which no activation begins with."""
    sizes = [graph.shape(name) for name in node.input if name not in names]
    return operator(node) in _AFFINE and any(size is not None and any(side != 1 for side in size) for size in sizes)


def _step(
    graph: Graph, node: onnx.NodeProto, names: frozenset[str], current: str, walked: list[onnx.NodeProto]
) -> tuple[str, bool] | None:
    """Return the value behind a node that belongs to the conv, and whether the node does more than pass on; or None."""
    op_type = operator(node)
    output = node.output[0]
    others = [name for name in node.input if name not in names]
    if op_type in _AFFINE and others and all(is_fixed(graph, name) for name in others):
        return None if op_type == "Div" and node.input[1] in names else (output, True)  # 1 / x is no scaling
    if not node.input or node.input[0] not in names:
        return None
    if op_type in _NORMS or (op_type in _CROPPING and _is_crop(graph, node, walked)):
        return output, True
    if op_type in _PASSING:
        return output, False
    behind = _group_norm(graph, node, current) if op_type == "Reshape" else None
    return None if behind is None else (behind, True)


def _rectified(graph: Graph, node: onnx.NodeProto, names: frozenset[str], current: str) -> str | None:
    """Return the integers that start at 0 between a value and the node that reads it, or None where there are none."""
    value = next((name for name in node.input if name in names), current)
    found = None
    for _ in names:  # from one of them back to the first
        maker = graph.producers.get(value)
        if value == current or maker is None or not maker.input:
            break
        if operator(maker) == "QuantizeLinear" and _starts_at_zero(graph, maker, 2):
            found = value
        value = maker.input[0]
    return found


def _starts_at_zero(graph: Graph, node: onnx.NodeProto, position: int) -> bool:
    """Return whether the lowest integer that a node gives stands for 0; its zero point is the input at `position`."""
    name = node.input[position] if len(node.input) > position else ""
    if not name:  # then it is 0
        return LOWEST.get(type_name(graph.types.get(node.output[0], (0, None))[0]) or "uint8") == 0
    zero_point = graph.constant(name)
    if zero_point is None or zero_point.size != 1:
        return False
    return zero_point.dtype.name in LOWEST and zero_point.item() == LOWEST[zero_point.dtype.name]


def _is_crop(graph: Graph, node: onnx.NodeProto, walked: list[onnx.NodeProto]) -> bool:
    """Return whether a node cuts the map of a ConvTranspose to the size it should have, and leaves the rest as it is.

    That is a Slice of spatial axes. ConvTranspose may also give a row and a column too few where the stride is above 1:
    then tf2onnx lets a Pad follow whose widths are computed. Widths that are constant are a padding of its own.
    """
    if operator(walked[0]) != "ConvTranspose":
        return False
    if operator(node) == "Pad":
        return operator(walked[-1]) == "Slice" and len(node.input) > 1 and not graph.is_constant(node.input[1])
    axes = _cut_axes(graph, node)
    rank = graph.rank(walked[0].input[1]) if len(walked[0].input) > 1 else None  # weights have as many axes as the map
    if axes is None or rank is None or any(not -rank <= axis < rank for axis in axes):
        return False
    axes = [axis % rank for axis in axes]
    for step in reversed(walked):
        if operator(step) == "Transpose":
            order = axis_order(graph, step) or list(reversed(range(rank)))
            if len(order) != rank:
                return False
            axes = [order[axis] for axis in axes]
    return min(axes, default=0) >= 2


def _cut_axes(graph: Graph, node: onnx.NodeProto) -> list[int] | None:
    """Return the axes that a Slice cuts without leaving out any between; None where the graph doesn't tell."""
    if len(node.input) < 2:  # until opset 9
        return numbers(node, "axes")
    axes = graph.constant(node.input[3]) if len(node.input) > 3 else None
    steps = graph.constant(node.input[4]) if len(node.input) > 4 and node.input[4] else None
    is_strided = len(node.input) > 4 and bool(node.input[4]) and (steps is None or bool((steps != 1).any()))
    return None if axes is None or is_strided else [int(axis) for axis in axes.ravel()]


def _group_norm(graph: Graph, node: onnx.NodeProto, before: str) -> str | None:
    """Return the value behind Reshape, InstanceNormalization, Reshape back: PyTorch's GroupNorm before opset 18."""
    chain = [node]
    for op_type in ("InstanceNormalization", "Reshape"):
        users = uses_of(graph, chain[-1].output[0]).nodes
        if len(users) != 1 or operator(users[0]) != op_type:
            return None
        chain.append(users[0])
    last = chain[-1]
    maker = graph.producers.get(last.input[1]) if len(last.input) > 1 else None
    same = graph.shape(before) is not None and graph.shape(before) == graph.shape(last.output[0])
    to_shape_of = maker is not None and operator(maker) == "Shape" and maker.input[0] == before
    return str(last.output[0]) if same or to_shape_of else None


def _in_real_numbers(graph: Graph, value: str) -> str:
    """Return the real numbers that the integers of a ConvInteger stand for: behind its Cast and Mul by the scale."""
    current = value
    for op_type in ("Cast", "Mul"):
        users = uses_of(graph, current).nodes
        if len(users) != 1 or operator(users[0]) != op_type:
            return value
        if not all(_is_scale(graph, name) for name in users[0].input if name != current):
            return value
        current = users[0].output[0]
    return current


def _is_scale(graph: Graph, value: str, depth: int = 3) -> bool:
    """Return whether a value is the scale that DynamicQuantizeLinear found, times constants."""
    node = graph.producers.get(value)
    if is_fixed(graph, value):
        return True
    if node is None or not depth:
        return False
    if operator(node) == "DynamicQuantizeLinear":
        return len(node.output) > 1 and node.output[1] == value
    return operator(node) == "Mul" and all(_is_scale(graph, name, depth - 1) for name in node.input)
