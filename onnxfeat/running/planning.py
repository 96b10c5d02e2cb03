"""Plan a run: how many bytes the maps take, and which layers share a pass so that they fit a budget."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from onnxfeat.errors import PictureError
from onnxfeat.records import Axis, Layer, ModelInput

DEFAULT_BUDGET = 1 << 30
"""Bytes that maps may take unless told otherwise: 1 GiB."""

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BINARY_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(I?)B?", re.IGNORECASE)

_FLOAT32 = 4  # bytes


def budget_of(size: int | str) -> int:
    """Return a number of bytes.

    Args:
        size: The number itself, or text such as `512MB` (decimal units) or `2GiB` (binary units).

    Raises:
        PictureError: The text is no size, or the number is not above 0.

    Example:
        >>> budget_of("512MB"), budget_of("2GiB")
        (512000000, 2147483648)
    """
    if isinstance(size, str):
        found = _SIZE.fullmatch(size.strip())
        number = 0.0
        if found is not None:
            units = _BINARY_UNITS if found[3] else _UNITS
            number = float(found[1]) * units[found[2].upper()]
    else:
        number = size
    if not 1 <= number < 2**63:
        raise PictureError(f"max_bytes {size!r} is no number of bytes: pass for instance 512MB, 2GiB or 1000000")
    return int(number)


def readable(size: int) -> str:
    """Return a number of bytes for people.

    Example:
        >>> readable(512_000_000), readable(12 * 10**12)
        ('512 MB', '12 TB')
    """
    unit = next((unit for unit in "TGMK" if size >= 0.9995 * _UNITS[unit]), "")
    number = size / _UNITS[unit]
    return f"{number:.0f} {unit}B" if number >= 100 and unit else f"{number:.3g} {unit}B" if unit else f"{size} bytes"


def bytes_of(layer: Layer, shape: Sequence[Axis] | None) -> int | None:
    """Return how many bytes the maps of a layer take, as float32 or while they become that; None where unknown."""
    if shape is None or not all(isinstance(side, int) and side >= 0 for side in shape):
        return None
    width = 8 if layer.dtype in ("double", "int64", "uint64") else _FLOAT32
    return math.prod(side for side in shape if isinstance(side, int)) * width


def declared_sizes(layers: Sequence[Layer], target: ModelInput) -> dict[str, int | None]:
    """Return layer name to bytes of its maps for one picture, as far as the layers' own shapes tell.

    Args:
        layers: The layers.
        target: The model's input; where it leaves more open than its batch, the declared shapes tell nothing.
    """
    return {layer.name: None if target.is_open else bytes_of(layer, _of_one(layer, target)) for layer in layers}


def _of_one(layer: Layer, target: ModelInput) -> tuple[Axis, ...] | None:
    """Return a layer's shape for one picture: the batch axis, where it is open, has the length of the input's."""
    if layer.shape is None or layer.layout is None or len(layer.shape) != len(layer.layout):
        return layer.shape
    batch = target.axis("N") or 1
    pairs = zip(layer.shape, layer.layout, strict=True)
    return tuple(batch if axis == "N" and not isinstance(side, int) else side for side, axis in pairs)


def too_large(layers: Sequence[Layer], sizes: Mapping[str, int | None], budget: int) -> dict[str, str]:
    """Return name and reason of each layer whose maps do not fit a budget even by themselves.

    Args:
        layers: The layers.
        sizes: Layer name to bytes of its maps, None where unknown.
        budget: Bytes that maps may take, with room for putting one in order and drawing it.
    """
    return {
        layer.name: f"its maps take {readable(size)}, and as much again to be drawn, of a budget of "
        f"{readable(budget)}; raise max_bytes, or pass a smaller picture"
        for layer in layers
        if (size := sizes[layer.name]) is not None and 2 * size > budget
    }


def passes(layers: Sequence[Layer], sizes: Mapping[str, int | None], budget: int) -> tuple[tuple[Layer, ...], ...]:
    """Return the layers in groups, in their own order, so that the maps of each fit a budget.

    A group's maps take the sum of their sizes and the largest of them once more, which is the room for putting one in
    order and drawing it. A layer of unknown size gets a group of its own, and so does one that is too large.

    Args:
        layers: The layers.
        sizes: Layer name to bytes of its maps, None where unknown.
        budget: Bytes that a group may take.

    Example:
        >>> a, b = (Layer(name=x, kind="conv", op_type="Conv", value=x, raw_value=x) for x in "ab")
        >>> [len(group) for group in passes([a, b], {"a": 40, "b": 40}, 100)]
        [1, 1]
    """
    groups: list[list[Layer]] = []
    total = largest = 0
    values: set[str] = set()
    for layer in layers:
        size = sizes[layer.name]
        more = 0 if layer.value in values else size or 0  # two layers may share a value; it is counted once
        alone = size is None or not groups or (groups[-1] and sizes[groups[-1][-1].name] is None)
        if alone or total + more + max(largest, more) > budget:
            groups.append([])
            total = largest = 0
            values = set()
            more = size or 0
        groups[-1].append(layer)
        values.add(layer.value)
        total, largest = total + more, max(largest, more)
    return tuple(tuple(group) for group in groups)


def refuse_to_hold(size: int, budget: int, samples: int) -> None:
    """Raise a `PictureError` if maps of this size, in bytes, are more than the budget for what is in memory at once."""
    if size > budget:
        raise PictureError(
            f"the maps for {samples} pictures take {readable(size)} or more, which do not fit the budget of "
            f"{readable(budget)} at once: take them as they come, `for part in extractor.stream(pictures)`, choose "
            f"fewer layers, or raise max_bytes"
        )
