"""Find out how the integers of a quantized network stand for real numbers, and where it may be watched.

Quantized files come in three forms (https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html).
QDQ: float operators between QuantizeLinear and DequantizeLinear, which a runtime fuses into integer kernels. QOperator:
integer operators such as QLinearConv. Dynamic: ConvInteger, whose scale is computed for each picture.
"""

from __future__ import annotations

import numpy as np
import onnx

from onnxfeat.graph.reading import Graph, number, operator
from onnxfeat.records import Quantization

# Where an operator that gives quantized values has the scale of its output among its inputs; the zero point follows.
_SCALE_OF_OUTPUT = {
    "QuantizeLinear": 1,
    "QLinearConv": 6,
    "QLinearMatMul": 6,
    "QLinearAdd": 6,
    "QLinearMul": 6,
    "QLinearConcat": 0,
    "QLinearLeakyRelu": 3,
    "QLinearSigmoid": 3,
    "QLinearSoftmax": 3,
    "QLinearAveragePool": 3,
    "QLinearGlobalAveragePool": 3,
    "QLinearReduceMean": 3,
    "QLinearWhere": 7,
    "QGemm": 7,
}
# Operators that only move or choose integers, so that they mean what they meant before.
_MOVING = frozenset(
    "MaxPool NhwcMaxPool Transpose Reshape Flatten Squeeze Unsqueeze Identity Slice Gather Resize Upsample "
    "DepthToSpace SpaceToDepth Tile Expand".split()
)
INTEGERS = frozenset((onnx.TensorProto.UINT8, onnx.TensorProto.INT8, onnx.TensorProto.UINT16, onnx.TensorProto.INT16))


def quantizations_of(graph: Graph) -> dict[str, Quantization]:
    """Return value name to how its integers become real numbers, for all values of which the graph tells it."""
    found: dict[str, Quantization] = {}
    for node in graph.nodes:
        if not node.output or not node.output[0]:
            continue
        op_type = operator(node)
        position = _SCALE_OF_OUTPUT.get(op_type)
        if position is not None:
            quantization = _from_inputs(graph, node, position)
            if quantization is not None:
                found[node.output[0]] = quantization
        elif op_type in _MOVING and node.input and node.input[0] in found:
            before = found[node.input[0]]
            # Per channel, the axis could have moved; activations are hardly ever quantized so.
            if before.axis is None or op_type in ("MaxPool", "Identity"):
                found[node.output[0]] = before
    return found


def boundary(graph: Graph, value: str) -> str | None:
    """Return the output of the QuantizeLinear that all uses of a float value go through, or None.

    Where there are several that do the same, it is the first. Watching that output leaves the operators before it fused
    to one integer kernel: the network that runs is the one that runs unwatched.
    """
    consumers = graph.consumers.get(value, [])
    if not consumers or value in graph.outputs:
        return None
    if any(operator(node) != "QuantizeLinear" or node.input[0] != value for node in consumers):
        return None
    node = consumers[0]
    if any(_parameters(graph, other) != _parameters(graph, node) for other in consumers[1:]):
        return None
    element_type = graph.types.get(node.output[0], (0, None))[0]
    return str(node.output[0]) if element_type in INTEGERS or not element_type else None


def _parameters(graph: Graph, node: onnx.NodeProto) -> list[object]:
    """Return scale and zero point of a QuantizeLinear: their numbers where the model holds them, else their names."""
    numbers = [graph.constant(name) for name in node.input[1:]]
    return [
        name if constant is None else (str(constant.dtype), constant.tolist())
        for name, constant in zip(node.input[1:], numbers, strict=True)
    ]


def _from_inputs(graph: Graph, node: onnx.NodeProto, position: int) -> Quantization | None:
    """Return the quantization that a node's inputs state; None where it is computed or of a kind without integers."""
    if len(node.input) <= position:
        return None
    scale = graph.constant(node.input[position])
    name = node.input[position + 1] if len(node.input) > position + 1 else ""
    zero_point = graph.constant(name) if name else np.zeros(1, np.uint8)
    if scale is None or zero_point is None or zero_point.dtype.kind not in "iu" or scale.ndim > 1:
        return None  # scales of blocks have more axes
    scales = tuple(float(x) for x in scale.ravel().astype(np.float64))
    points = tuple(int(x) for x in zero_point.ravel())
    if not scales or not np.isfinite(scales).all() or len(points) not in (1, len(scales)):
        return None
    if len(scales) == 1:
        return Quantization(scale=scales, zero_point=points[:1])
    axis = number(node, "axis", 1)
    rank = graph.rank(node.output[0])
    if axis < 0 and rank is None:
        return None
    return Quantization(scale=scales, zero_point=points * (len(scales) // len(points)), axis=axis % (rank or axis + 1))
