"""Follow how a graph computes lengths: what it makes of constants and of the lengths of its values.

Models for pictures of any size compute where to slice and how far to resize: `Resize(x, sizes=2 * Shape(x)[2:])`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import onnx

from onnxfeat.graph.reading import Graph, number, numbers, operator

_MOST_ENTRIES = 64  # a list of lengths is short
_MOST_NODES = 32  # from a length to where it is used
_PASSING = frozenset("Cast CastLike Identity Floor Reshape Squeeze Unsqueeze Flatten".split())


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


def entries_of(graph: Graph, name: str, depth: int = _MOST_NODES) -> list[Entry] | None:
    """Return the numbers of a short list that a graph computes; None where it is beyond us.

    Args:
        graph: The model.
        name: Name of the list.
        depth: How many nodes to follow.
    """
    if name in graph.initializers:
        dims = graph.initializers[name].dims
        if len(dims) > 1 or any(side > _MOST_ENTRIES for side in dims):
            return None
        constant = graph.constant(name)
        return None if constant is None or constant.dtype.kind not in "fiu" else [float(x) for x in constant.ravel()]
    node = graph.producers.get(name)
    if node is None or not depth or not node.input or node.output[0] != name:
        return None
    if operator(node) == "Shape":
        return _shape(graph, node)
    lists = [entries_of(graph, x, depth - 1) for x in node.input[: 1 if operator(node) in _PASSING else None]]
    inputs = [entries for entries in lists if entries is not None]
    if len(inputs) < len(lists):
        return None
    if operator(node) in _PASSING:
        return inputs[0]
    made = _MADE_BY.get(operator(node))
    found = None if made is None else made(node, inputs)
    return None if found is None or len(found) > _MOST_ENTRIES else found


def _shape(graph: Graph, node: onnx.NodeProto) -> list[Entry] | None:
    shape = graph.shape(node.input[0])
    if shape is None:
        return None
    entries: list[Entry] = [
        float(side) if isinstance(side, int) else Length(node.input[0], axis) for axis, side in enumerate(shape)
    ]
    return entries[number(node, "start", 0) : number(node, "end", len(entries))]


def _concat(node: onnx.NodeProto, inputs: Sequence[list[Entry]]) -> list[Entry] | None:
    del node
    return [entry for entries in inputs for entry in entries]


def _gather(node: onnx.NodeProto, inputs: Sequence[list[Entry]]) -> list[Entry] | None:
    entries, positions = inputs[0], _whole(inputs[1])
    fits = positions is not None and all(-len(entries) <= x < len(entries) for x in positions)
    return [entries[x] for x in positions] if positions is not None and fits and not number(node, "axis", 0) else None


def _slice(node: onnx.NodeProto, inputs: Sequence[list[Entry]]) -> list[Entry] | None:
    if len(inputs) == 1:
        starts, ends, steps = numbers(node, "starts"), numbers(node, "ends"), [1]
    else:
        starts, ends = _whole(inputs[1]), _whole(inputs[2]) if len(inputs) > 2 else None
        steps = _whole(inputs[4]) or [] if len(inputs) > 4 else [1]
    if not starts or not ends or not steps or 0 in steps:
        return None
    return inputs[0][starts[0] : ends[0] : steps[0]]


def _whole(entries: Sequence[Entry]) -> list[int] | None:
    """Return entries as whole numbers; None where one of them is none."""
    found = [int(x) for x in entries if isinstance(x, float) and x.is_integer()]
    return found if len(found) == len(entries) else None


def _by_entry(compute: Callable[[Entry, Entry], Entry]) -> Callable[..., list[Entry] | None]:
    def apply(node: onnx.NodeProto, inputs: Sequence[list[Entry]]) -> list[Entry] | None:
        del node
        if len(inputs) != 2 or len({len(entries) for entries in inputs} - {1}) > 1:
            return None
        length = max(len(entries) for entries in inputs)
        left, right = (entries * (length if len(entries) == 1 else 1) for entries in inputs)
        return [compute(a, b) for a, b in zip(left, right, strict=True)]

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


_MADE_BY: dict[str, Callable[[onnx.NodeProto, Sequence[list[Entry]]], list[Entry] | None]] = {
    "Concat": _concat,
    "Gather": _gather,
    "Slice": _slice,
    "Mul": _by_entry(_times),
    "Div": _by_entry(_over),
    "Add": _by_entry(_plus),
    "Sub": _by_entry(_minus),
}
