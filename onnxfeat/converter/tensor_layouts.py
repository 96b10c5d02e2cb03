"""Tell the order of the axes of tensors in a TensorFlow graph, as its operators define it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnxfeat.graph.layouts import CHANNELS_FIRST, CHANNELS_LAST

# Operators whose output has the axes of their inputs, in the same order.
_KEEPING = frozenset(
    "Abs Add AddN AddV2 BatchToSpaceND Cast CheckNumerics ClipByValue ConcatV2 Cos CropAndResize Div DivNoNan Elu Erf "
    "Erfc Exp Expm1 FakeQuantWithMinMaxVars Floor Greater GreaterEqual Identity LeakyRelu Less Log Log1p LogSoftmax "
    "Maximum Minimum MirrorPad Mul Neg Pad PadV2 Pow RealDiv Reciprocal Relu Relu6 Reverse ReverseV2 Round Rsqrt "
    "SelectV2 Selu Sigmoid Sign Sin Slice Softmax Softplus Softsign SpaceToBatchND Sqrt Square SquaredDifference "
    "StopGradient StridedSlice Sub Tanh Tile".split()
)
_REDUCING = frozenset("Mean Max Min Sum Prod".split())
_RESIZING = frozenset("ResizeArea ResizeBicubic ResizeBilinear ResizeNearestNeighbor ScaleAndTranslate".split())


def layouts_of(graph: Any) -> dict[str, str]:
    """Return tensor name to layout (such as `NHWC`) for each tensor of a `tf.Graph` whose operator tells."""
    layouts: dict[str, str] = {}
    for operator in graph.get_operations():  # an imported graph has its operators in order of execution
        for tensor in operator.outputs:
            layout = _layout(tensor, layouts)
            if layout is not None and tensor.shape.rank == len(layout):
                layouts[tensor.name] = layout
    return layouts


def channels_axis_is_first(operator: Any) -> bool | None:
    """Whether an operator has the channels behind the batch axis; None for one that is not made for maps."""
    if "data_format" not in operator.node_def.attr:
        return None
    return bool(operator.get_attr("data_format").decode().startswith("NC"))


def constant(tensor: Any) -> list[int] | None:
    """Return the numbers of a constant tensor in one row; None for another tensor."""
    import tensorflow as tf

    if tensor.op.type != "Const":
        return None
    return [int(number) for number in tf.make_ndarray(tensor.op.get_attr("value")).reshape(-1)]


def _layout(tensor: Any, known: Mapping[str, str]) -> str | None:
    operator, rank = tensor.op, tensor.shape.rank
    first = channels_axis_is_first(operator)
    if first is not None and (operator.type == "BiasAdd" or rank in (4, 5)):
        return (CHANNELS_FIRST if first else CHANNELS_LAST).get(rank)
    if operator.type in _RESIZING:
        return "NHWC"
    if operator.type in _KEEPING:
        return next((known[x.name] for x in operator.inputs if x.name in known and x.shape.rank == rank), None)
    before = known.get(operator.inputs[0].name) if len(operator.inputs) else None
    if before is None:
        return None
    if operator.type == "Transpose":
        axes = constant(operator.inputs[1])
        return None if axes is None else "".join(before[axis] for axis in axes)
    if operator.type == "Squeeze":
        return _without(before, operator.get_attr("squeeze_dims"))
    if operator.type in _REDUCING:
        axes = constant(operator.inputs[1])
        return None if axes is None else before if operator.get_attr("keep_dims") else _without(before, axes)
    return None


def _without(layout: str, axes: list[int]) -> str:
    gone = {axis % len(layout) for axis in axes}
    left = "".join(letter for axis, letter in enumerate(layout) if axis not in gone)
    return left.replace("H", "W") if len(left) == 3 else left  # the one axis of a map in a row is W
