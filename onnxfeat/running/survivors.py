"""Find layers by their values, where another tool has rewritten the graph and their names are gone."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import NDArray

from onnxfeat.graph.inference import Types
from onnxfeat.graph.quantization import quantizations_of
from onnxfeat.graph.reading import Graph, type_name
from onnxfeat.references import LayerReference, summarize

_REAL = frozenset(("float", "float16", "double", "bfloat16", None))
_MOST_AXES = 4  # whose orders are all tried: 24; a map of more axes is tried as it is and with its channels moved


@dataclass(frozen=True, slots=True, kw_only=True)
class Survivor:
    """The value of a rewritten graph that a layer became.

    Attributes:
        value: Name of the value; of several that fit equally well, such as copies, the first in order of execution.
        deviation: How far it is from the reference (see `LayerReference.deviation`).
        others: How many more values fit as well; of a layer that is the same everywhere, they may mean anything.
    """

    value: str
    deviation: float
    others: int = 0


def candidates(graph: Graph, types: Types, wanted: Iterable[LayerReference]) -> dict[str, int]:
    """Return the values that a layer can have become, in order of execution, with their bytes as float32.

    Those are the real or quantized ones that have the axes of a wanted layer in some order, and those whose shape
    nothing tells; the latter count as the largest wanted layer.

    Args:
        graph: The rewritten model.
        types: Types of its values when it runs on the inputs of the reference.
        wanted: The layers that are looked for.
    """
    lengths = {tuple(sorted(layer.shape)) for layer in wanted}
    largest = max((math.prod(shape) for shape in lengths), default=0)
    quantized = quantizations_of(graph)
    found = {}
    for node in graph.nodes:
        for value in node.output:
            element_type, shape = types.get(value, (0, None))
            kind = type_name(element_type) if element_type else None
            if not value or graph.is_constant(value) or (kind not in _REAL and value not in quantized):
                continue
            sides = [side for side in shape or () if isinstance(side, int)]
            if shape is None or len(sides) < len(shape):
                found[value] = largest * 4
            elif tuple(sorted(sides)) in lengths:
                found[value] = math.prod(sides) * 4
    return found


def find_survivors(
    wanted: Mapping[int, tuple[LayerReference, float]], passes: Iterable[Mapping[str, NDArray[Any]]]
) -> dict[int, Survivor]:
    """Return the value that is nearest to each layer's reference, of the layers that have one near enough.

    Args:
        wanted: Number of a layer to its reference and the largest deviation that passes.
        passes: Values by name, in order of execution.

    Example:
        >>> import numpy as np
        >>> values = np.arange(8.0).reshape(1, 2, 2, 2)
        >>> reference = summarize("conv2d", values, "NHWC")
        >>> find_survivors({0: (reference, 1e-5)}, [{"y": values.transpose(0, 3, 1, 2)}])
        {0: Survivor(value='y', deviation=0.0, others=0)}
    """
    found: dict[int, Survivor] = {}
    fitting: Counter[int] = Counter()
    for values in passes:
        for value, array in values.items():
            for number, deviation in _fits(array, wanted):
                fitting[number] += 1
                if number not in found or deviation < found[number].deviation:
                    found[number] = Survivor(value=value, deviation=deviation)
    return {number: replace(survivor, others=fitting[number] - 1) for number, survivor in found.items()}


def _fits(array: NDArray[Any], wanted: Mapping[int, tuple[LayerReference, float]]) -> Iterator[tuple[int, float]]:
    """Yield the layers that an array can be, its axes in any order, and how far it is from each."""
    if array.dtype.kind not in "fiub":
        return
    whole = None
    for number, (reference, allowed) in wanted.items():
        if sorted(array.shape) != sorted(reference.shape):
            continue
        # What does not depend on the order of the axes comes first, worked out once.
        whole = whole or summarize("", array, None)
        pairs = [(getattr(whole, figure), getattr(reference, figure)) for figure in ("mean", "std", "min", "max")]
        limit = allowed * reference.extent
        if whole.not_finite != reference.not_finite or any(not abs(one - two) <= limit for one, two in pairs):
            continue
        deviation = min(
            (
                reference.deviation(summarize("", array.transpose(order), reference.layout))
                for order in _orders(array.shape, reference.shape)
            ),
            default=math.inf,
        )
        if deviation <= allowed:
            yield number, deviation


def _orders(shape: Sequence[int], wanted: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Yield the orders of axes that give a shape."""
    rank = len(shape)
    if rank <= _MOST_AXES:
        orders: Iterable[tuple[int, ...]] = itertools.permutations(range(rank))
    else:
        axes = tuple(range(rank))
        orders = (axes, (0, *axes[2:], 1), (0, rank - 1, *axes[1:-1]))
    for order in orders:
        if [shape[axis] for axis in order] == list(wanted):
            yield order
