"""Follow how a graph computes lengths: what it makes of constants and of the lengths of its values.

Models for pictures of any size compute where to slice and how far to resize: `Resize(x, sizes=2 * Shape(x)[2:])`.
Torch's older exporter also turns a padding around on the way: `Reshape(Transpose(Reshape(pads, [-1, 2])[::-1]), [-1])`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
import onnx.numpy_helper
from numpy.typing import NDArray

from onnxfeat.graph.reading import Graph, number, numbers, operator

_MOST_ENTRIES = 64  # a list of lengths is short
_MOST_NODES = 32  # from a length to where it is used


@dataclass(frozen=True, slots=True)
class Length:
    """The length of one axis of a value, times a factor, where only a picture tells it.

    Attributes:
        value: Name of the value.
        axis: The axis.
        factor: What it is multiplied with.
    """

    value: str
    axis: int
    factor: float = 1.0


Entry = float | Length | None
"""A number, a length that depends on the picture, or None where it is not known what it is."""

_Entries = NDArray[np.object_]  # of `Entry`, in any shape


def entries_of(
    graph: Graph, name: str, depth: int = _MOST_NODES, *, ranks: Mapping[str, int] | None = None
) -> list[Entry] | None:
    """Return the numbers of a short list that a graph computes; None where it is beyond us.

    Args:
        graph: The model.
        name: Name of the list.
        depth: How many nodes to follow.
        ranks: Number of axes of values whose shape the graph does not tell.
    """
    found = _Computed(graph, ranks or {}).array(name, depth)
    return None if found is None or found.ndim > 1 else found.ravel().tolist()


class _Computed:
    """Small arrays that a graph computes, one `Entry` for each number; each is worked out once."""

    def __init__(self, graph: Graph, ranks: Mapping[str, int]) -> None:
        self._graph, self._ranks = graph, ranks
        self._known: dict[str, _Entries | None] = {}

    def array(self, name: str, depth: int) -> _Entries | None:
        """Return what the nodes before a value make, at most so many of them one after the other."""
        if name not in self._known:
            self._known[name] = self._constant(name) if name in self._graph.initializers else self._made(name, depth)
        return self._known[name]

    def _constant(self, name: str) -> _Entries | None:
        if math.prod(self._graph.initializers[name].dims) > _MOST_ENTRIES:
            return None
        constant = self._graph.constant(name)
        return None if constant is None or constant.dtype.kind not in "fiu" else constant.astype(float).astype(object)

    def _made(self, name: str, depth: int) -> _Entries | None:
        node = self._graph.producers.get(name)
        if node is None or not depth or not node.input or node.output[0] != name:
            return None
        if operator(node) == "Shape":
            return self._shape(node)
        make = _MADE_BY.get(operator(node))
        inputs = [] if make is None else [self.array(x, depth - 1) for x in node.input]
        known = [array for array in inputs if array is not None]
        if make is None or len(known) < len(inputs):
            return None
        try:
            found = make(node, known)
        except (ValueError, IndexError, TypeError, OverflowError):  # they do not fit: no runtime takes them either
            return None
        entries = None if found is None else np.asarray(found, dtype=object)  # of a single one NumPy makes no array
        return None if entries is None or entries.size > _MOST_ENTRIES else entries

    def _shape(self, node: onnx.NodeProto) -> _Entries | None:
        value = node.input[0]
        shape = self._graph.shape(value)
        if shape is None and value in self._ranks:
            shape = (None,) * self._ranks[value]
        if shape is None:
            return None
        entries = [float(side) if isinstance(side, int) else Length(value, axis) for axis, side in enumerate(shape)]
        return np.array(entries, dtype=object)[number(node, "start", 0) : number(node, "end", len(entries))]


def _same(node: onnx.NodeProto, inputs: Sequence[_Entries]) -> _Entries | None:
    del node
    return inputs[0]


def _filled(node: onnx.NodeProto, inputs: Sequence[_Entries]) -> _Entries | None:
    """Return what a ConstantOfShape makes: zeros where it does not say of what."""
    shape = _whole(inputs[0])
    if shape is None or math.prod(shape) > _MOST_ENTRIES:
        return None
    value = next((onnx.numpy_helper.to_array(x.t).item() for x in node.attribute if x.name == "value"), 0)
    return np.full(shape, float(value), dtype=object)


def _concat(node: onnx.NodeProto, inputs: Sequence[_Entries]) -> _Entries | None:
    return np.concatenate(inputs, axis=number(node, "axis", 0))


def _gather(node: onnx.NodeProto, inputs: Sequence[_Entries]) -> _Entries | None:
    if _whole(inputs[1]) is None:
        return None
    return np.take(inputs[0], inputs[1].astype(np.int64), axis=number(node, "axis", 0))


def _slice(node: onnx.NodeProto, inputs: Sequence[_Entries]) -> _Entries | None:
    if len(inputs) == 1:
        lists = [numbers(node, name) for name in ("starts", "ends", "axes")]
    else:
        lists = [_whole(array) for array in inputs[1:]]
        if None in lists:
            return None
    starts, ends, axes, steps = [*lists, None, None][:4]
    if starts is None or ends is None:
        return None
    found = inputs[0]
    for position, (start, end) in enumerate(zip(starts, ends, strict=True)):
        axis = axes[position] if axes else position
        step = steps[position] if steps else 1
        found = np.moveaxis(np.moveaxis(found, axis, 0)[start:end:step], 0, axis)
    return found


def _transpose(node: onnx.NodeProto, inputs: Sequence[_Entries]) -> _Entries | None:
    return inputs[0].transpose(numbers(node, "perm"))


def _reshape(node: onnx.NodeProto, inputs: Sequence[_Entries]) -> _Entries | None:
    shape = _whole(inputs[1]) if len(inputs) > 1 else numbers(node, "shape")
    if shape is None:
        return None
    return inputs[0].reshape([side or inputs[0].shape[axis] for axis, side in enumerate(shape)])


def _squeeze(node: onnx.NodeProto, inputs: Sequence[_Entries]) -> _Entries | None:
    axes = _axes(node, inputs)
    return np.squeeze(inputs[0], axis=None if axes is None else tuple(axes))


def _unsqueeze(node: onnx.NodeProto, inputs: Sequence[_Entries]) -> _Entries | None:
    axes = _axes(node, inputs)
    return None if axes is None else np.expand_dims(inputs[0], axis=tuple(axes))


def _axes(node: onnx.NodeProto, inputs: Sequence[_Entries]) -> list[int] | None:
    return _whole(inputs[1]) if len(inputs) > 1 else numbers(node, "axes")  # an input since opset 13


def _flatten(node: onnx.NodeProto, inputs: Sequence[_Entries]) -> _Entries | None:
    axis = number(node, "axis", 1)
    return inputs[0].reshape(math.prod(inputs[0].shape[:axis]), -1)


def _whole(entries: _Entries) -> list[int] | None:
    """Return entries as whole numbers; None where one of them is none."""
    found = [int(x) for x in entries.ravel() if isinstance(x, float) and x.is_integer()]
    return found if len(found) == entries.size else None


def _by_entry(compute: Callable[[Entry, Entry], Entry]) -> Callable[..., _Entries | None]:
    def apply(node: onnx.NodeProto, inputs: Sequence[_Entries]) -> _Entries | None:
        del node
        return np.asarray(np.frompyfunc(compute, 2, 1)(*inputs), dtype=object) if len(inputs) == 2 else None

    return apply


def _times(a: Entry, b: Entry) -> Entry:
    if isinstance(a, Length) and isinstance(b, float):
        return replace(a, factor=a.factor * b)
    if isinstance(b, Length) and isinstance(a, float):
        return replace(b, factor=b.factor * a)
    return a * b if isinstance(a, float) and isinstance(b, float) else None


def _over(a: Entry, b: Entry) -> Entry:
    if isinstance(b, float):
        return _times(a, 1 / b) if b else None
    if isinstance(a, Length) and isinstance(b, Length) and (a.value, a.axis) == (b.value, b.axis) and b.factor:
        return a.factor / b.factor
    return None


def _plus(a: Entry, b: Entry) -> Entry:
    return a + b if isinstance(a, float) and isinstance(b, float) else None


def _minus(a: Entry, b: Entry) -> Entry:
    return a - b if isinstance(a, float) and isinstance(b, float) else None


_MADE_BY: dict[str, Callable[[onnx.NodeProto, Sequence[_Entries]], _Entries | None]] = {
    **dict.fromkeys(("Cast", "CastLike", "Identity", "Floor"), _same),
    "ConstantOfShape": _filled,
    "Concat": _concat,
    "Gather": _gather,
    "Slice": _slice,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Flatten": _flatten,
    "Mul": _by_entry(_times),
    "Div": _by_entry(_over),
    "Add": _by_entry(_plus),
    "Sub": _by_entry(_minus),
}
