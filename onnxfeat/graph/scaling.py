"""Tell from a graph whether the model scales the values of a picture itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxfeat.graph.reading import Graph, operator

_KEEP_VALUES = frozenset(
    "Cast CastLike Identity Transpose Reshape Squeeze Unsqueeze Resize Upsample Pad Slice Gather".split()
)
"""Operators that give the values of their first input, at other places or of another type."""

# Pictures of 0..1 are not made 50 times smaller; those of 0..255 are, by 1/255 or 1/127.5.
_SMALLEST_FACTOR = 1 / 50
# What is subtracted from pictures of 0..1 is at most 1, and from those of 0..255 about 100.
_LARGEST_MEAN = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """One node that computes `(x - mean) * factor`: the largest factor and the smallest mean of all channels."""

    factor: float
    mean: float
    words: str


def own_scaling(graph: Graph, name: str) -> str | None:
    """Return a sentence on how a model scales the values of an input itself, or None where it does not.

    Looked at are the nodes that each alone use the value before: multiplication, division, addition and subtraction
    with constants, BatchNormalization, and what keeps the values. They scale levels 0..255 if they make them at least
    50 times smaller, or subtract more than 2 from them.

    Args:
        graph: The model.
        name: Name of the input that takes the picture.

    Example:
        >>> from onnxfeat.graph.reading import read_graph
        >>> own_scaling(read_graph("models/shapes_small.onnx"), "image") is None
        True
    """
    factor, words = 1.0, []
    is_centered = False
    for step in _steps(graph, name):
        is_centered = is_centered or step.mean > _LARGEST_MEAN * factor
        factor *= step.factor
        words.append(step.words)
    if factor > _SMALLEST_FACTOR and not is_centered:
        return None
    verb = "scales" if factor <= _SMALLEST_FACTOR else "subtracts a mean from"
    return f"the model {verb} its input itself: {', '.join(words)}"


def _steps(graph: Graph, value: str) -> Iterator[_Step]:
    """Yield what the first nodes compute, up to the first that is none of these."""
    while True:
        users = [x for x in graph.consumers.get(value, ()) if operator(x) not in ("Shape", "Size")]
        joined = _joined(graph, users)
        if joined is not None:
            value = joined
            continue
        if len(users) != 1:
            return
        node = users[0]
        if operator(node) not in _KEEP_VALUES or node.input[0] != value:
            step = _step(graph, node, value)
            if step is None:
                return
            yield step
        value = node.output[0]


def _joined(graph: Graph, users: Sequence[onnx.NodeProto]) -> str | None:
    """Return what puts the parts together again into which all users cut a value, as RGB is made BGR, or None."""
    if len(users) < 2 or any(operator(user) != "Slice" for user in users):
        return None
    behind = [node for user in users for node in graph.consumers.get(user.output[0], ())]
    is_one = len(behind) == len(users) and all(node is behind[0] for node in behind)
    return behind[0].output[0] if is_one and operator(behind[0]) == "Concat" else None


def _step(graph: Graph, node: onnx.NodeProto, value: str) -> _Step | None:
    """Return what a node does to a value; None if that is no subtraction and multiplication by constants."""
    kind, inputs = operator(node), list(node.input)
    if kind == "BatchNormalization":
        return _normalization(graph, node, value)
    if kind not in ("Mul", "Div", "Add", "Sub") or inputs.count(value) != 1 or len(inputs) != 2:
        return None
    if kind in ("Div", "Sub") and inputs[0] != value:
        return None
    constant = _constant(graph, inputs[1 - inputs.index(value)])
    if constant is None:
        return None
    if kind in ("Mul", "Div"):
        sizes = np.abs(constant)
        if not sizes.all():
            return None
        factor = float(sizes.max() if kind == "Mul" else 1 / sizes.min())
        return _Step(factor=factor, mean=0.0, words=f"{kind} by {_listed(constant)} in {_named(node)}")
    mean = float((constant if kind == "Sub" else -constant).min())
    return _Step(factor=1.0, mean=mean, words=f"{kind} of {_listed(constant)} in {_named(node)}")


def _normalization(graph: Graph, node: onnx.NodeProto, value: str) -> _Step | None:
    """Return what a BatchNormalization does: `(x - mean) / sqrt(var + epsilon) * scale + bias`."""
    if len(node.input) != 5 or node.input[0] != value:
        return None
    scale, bias, mean, variance = (_constant(graph, name) for name in node.input[1:])
    if scale is None or bias is None or mean is None or variance is None:
        return None
    if len({x.shape for x in (scale, bias, mean, variance)}) != 1:
        return None
    epsilon = next((x.f for x in node.attribute if x.name == "epsilon"), 1e-5)
    factor = scale / np.sqrt(np.maximum(variance + epsilon, np.finfo(np.float32).tiny))
    if not factor.all():
        return None
    zero = mean - bias / factor  # what becomes 0
    return _Step(factor=float(np.abs(factor).max()), mean=float(zero.min()), words=f"{node.op_type} in {_named(node)}")


def _constant(graph: Graph, name: str) -> NDArray[np.float64] | None:
    """Return the numbers of a constant, also of one that is only reshaped; None for others, and where there is none."""
    while name in graph.fixed:
        node = graph.producers[name]
        if operator(node) not in ("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze"):
            return None
        name = node.input[0]
    found = graph.constant(name)
    if found is None or found.dtype.kind not in "fiu" or not found.size:
        return None
    values = found.astype(np.float64)
    return values if np.isfinite(values).all() else None


def _listed(numbers: NDArray[np.float64]) -> str:
    """Return up to four numbers as text, of more the smallest and the largest."""
    values = np.unique(numbers) if numbers.size > 4 or len(np.unique(numbers)) == 1 else numbers.ravel()
    if len(values) > 4:
        return f"{values[0]:.6g} to {values[-1]:.6g}"
    return ", ".join(f"{value:.6g}" for value in values)


def _named(node: onnx.NodeProto) -> str:
    return f"node {node.name!r:.80}" if node.name else f"the node that gives {node.output[0]!r:.80}"
