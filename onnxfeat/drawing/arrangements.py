"""Arrange the channels of one layer as one picture, whatever the axes of its maps: belt, grid, strip or slices."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxfeat.drawing.pictures import (
    MAX_BELT,
    ChannelStatistics,
    belt,
    grid_columns,
    levels_and_statistics,
    picture_of,
    tile,
)
from onnxfeat.errors import PictureError
from onnxfeat.records import FeatureMap

MAX_SIDE = 65_535
"""Largest width and height of a picture in pixels: many programs count a side in 16 bits."""
MAX_PIXELS = 178_956_970
"""Most pixels of a picture: Pillow refuses to open more (twice its `Image.MAX_IMAGE_PIXELS`)."""
MAX_SLICES = 16
"""Most slices of a volume that are drawn."""

_GAP = 1  # pixels between the channels of a grid
_LEAST_STRIP = 128  # pixels: a strip of fewer channels has thicker rows
# A class token and registers come before the tokens of the patches: 1 in ViT, 1 + 4 in DINOv2 with registers.
_MAX_EXTRA_TOKENS = 8
_BLOCK = 2**20  # levels that are averaged at a time: their sums take 8 bytes each


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Arrangement:
    """The channels of one layer for one picture, as gray levels with rows and columns.

    Attributes:
        levels: `uint8` array (rows, columns).
        statistics: What the levels of each channel that is drawn stand for, shape (1, channels).
        facts: How the channels lie in `levels`, and what of the map is not in it, as JSON data:
            `channels`, (`depth`,) `height`, `width` of the map, `arrangement`, and as they apply `columns`, `gap`,
            `row_height`, `column_width`, `slices`, `tokens_left_out`, `channels_drawn`, `cells_per_pixel`.
    """

    levels: NDArray[np.uint8]
    statistics: ChannelStatistics
    facts: Mapping[str, Any]


def arrange(feature_map: FeatureMap, index: int = 0, *, max_belt: int = MAX_BELT) -> Arrangement:
    """Return the channels of one layer for one picture of the batch as one picture.

    - Two spatial axes: all channels in one row, a *belt*, or if that were wider than `max_belt`, a *grid*.
    - Tokens: a square number of them is a map of two spatial axes. Up to 8 that come before it (class token,
      registers) are left out.
    - One spatial axis: a heat *strip*, one row a channel; where it is longer than `max_belt`, a pixel is the mean level
      of several cells.
    - Three spatial axes: *slices*, one row a channel, one column a slice along the depth. At most 16 slices, fewer
      where they would not fit in `max_belt`; several channels in a row where they would not fit below each other.
    - One number a channel (global pooling, dense): one row, a cell for each channel, since a channel of a single cell
      has no contrast of its own.

    Of a map that would give a picture of more than `MAX_SIDE` or `MAX_PIXELS`, the first channels that fit are drawn.

    Args:
        feature_map: Maps of the layer, (N, C, *spatial).
        index: Which picture of the batch.
        max_belt: Largest width of a belt or strip in pixels.

    Raises:
        PictureError: The map is empty or has more than three spatial axes, `index` is outside the batch, or `max_belt`
            is less than 1.

    Example:
        >>> from onnxfeat.records import Layer
        >>> layer = Layer(name="conv1d", kind="conv", op_type="Conv", value="y", raw_value="y", layout="NCW")
        >>> found = arrange(FeatureMap(layer=layer, array=np.zeros((1, 64, 100), np.float32)))
        >>> found.levels.shape
        (128, 100)
        >>> dict(found.facts)
        {'channels': 64, 'height': 1, 'width': 100, 'arrangement': 'strip', 'row_height': 2, 'column_width': 1}
    """
    reason = why_not_drawable(feature_map)
    if reason:
        raise PictureError(f"layer {feature_map.name!r} can't be drawn: {reason}; take its numbers from `array`")
    if max_belt < 1:
        raise PictureError(f"max_belt is {max_belt}, a number of pixels: pass 1 or more")
    max_belt = min(max_belt, MAX_SIDE)
    spatial = feature_map.shape[2:]
    if math.prod(spatial) == 1:
        return _maps(picture_of(feature_map.array.reshape(-1, 1, 1, feature_map.channels), index), max_belt)
    array = picture_of(feature_map, index)
    if len(spatial) == 1:
        extra = extra_tokens(spatial[0]) if "T" in (feature_map.layer.layout or "") else None
        if extra is None:
            return _strip(array, max_belt)
        side = math.isqrt(spatial[0])
        squares = array[:, :, extra:].reshape(1, -1, side, side)
        return _maps(squares, max_belt, {"tokens_left_out": extra})
    if len(spatial) == 2:
        return _maps(array, max_belt)
    return _slices(array, max_belt) if spatial[0] > 1 else _maps(array[:, :, 0], max_belt, {"depth": 1})


def why_not_drawable(feature_map: FeatureMap) -> str:
    """Return the reason why a map can't be drawn, or an empty text if it can.

    Example:
        >>> from onnxfeat.records import Layer
        >>> layer = Layer(name="topk", kind="other", op_type="TopK", value="y", raw_value="y")
        >>> why_not_drawable(FeatureMap(layer=layer, array=np.zeros((1, 8, 0), np.float32)))
        'its map of shape (1, 8, 0) is empty'
    """
    shape = feature_map.shape
    if 0 in shape:
        return f"its map of shape {shape} is empty"
    if len(shape) < 2 or (len(shape) > 5 and math.prod(shape[2:]) > 1):
        return f"its map has shape {shape}, and pictures are of (N, C) and one to three spatial axes"
    return ""


def extra_tokens(count: int) -> int | None:
    """Return how many of `count` tokens come before a square number of them, 0 to 8; None if there is no square.

    The fewest that leave a square of at least 2 x 2.

    Example:
        >>> extra_tokens(196), extra_tokens(197), extra_tokens(201), extra_tokens(215)
        (0, 1, 5, None)
    """
    extra = count - math.isqrt(count) ** 2
    return extra if extra <= _MAX_EXTRA_TOKENS and count >= 4 else None


def remarks(facts: Mapping[str, Any]) -> list[str]:
    """Return in words what of a map a picture does not show cell by cell.

    Args:
        facts: Those of an `Arrangement`, or the entry of a layer in `run.json`.

    Example:
        >>> remarks({"channels": 8, "tokens_left_out": 1, "cells_per_pixel": 3, "arrangement": "strip"})
        ['first token left out', 'each pixel is the mean of 3 cells']
    """
    found = []
    if facts.get("channels_drawn"):
        found.append(f"the first {facts['channels_drawn']:,} of {facts['channels']:,} channels")
    if "slices" in facts and len(facts["slices"]) < facts["depth"]:
        found.append(f"{len(facts['slices'])} of {facts['depth']} slices")
    left_out = facts.get("tokens_left_out", 0)
    if left_out:
        found.append("first token left out" if left_out == 1 else f"first {left_out} tokens left out")
    cells = facts.get("cells_per_pixel", 1)
    if cells > 1:
        block = cells if facts["arrangement"] == "strip" else f"{cells} x {cells}"
        found.append(f"each pixel is the mean of {block} cells")
    return found


def description(facts: Mapping[str, Any]) -> str:
    """Return in words what a picture shows: shape, arrangement and remarks.

    Example:
        >>> description({"channels": 3, "height": 4, "width": 5, "arrangement": "belt"})
        '3 channels of 4 x 5, belt'
    """
    sides = " x ".join(str(facts[side]) for side in ("depth", "height", "width") if side in facts)
    return ", ".join([f"{facts['channels']} channels of {sides}", facts["arrangement"], *remarks(facts)])


def _maps(array: NDArray[Any], max_belt: int, more: Mapping[str, Any] | None = None) -> Arrangement:
    """Arrange maps of two spatial axes, shape (1, C, H, W), as belt or grid."""
    _, channels, height, width = array.shape
    cells = _cells_per_pixel(height, width)
    rows, columns = math.ceil(height / cells), math.ceil(width / cells)
    facts = {"channels": channels, **(more or {}), "height": height, "width": width}
    as_belt = channels * columns <= max_belt and _fits(rows, channels * columns)
    drawn = channels if as_belt else _most(channels, lambda some: _fits(*_tiled_size(some, rows, columns)))
    levels, found = levels_and_statistics(array[:, :drawn])
    shrunk = _shrunk(levels[0], cells, cells)
    if as_belt:
        facts["arrangement"] = "belt"
        tiled = belt(shrunk[None])
    else:
        facts.update(arrangement="grid", columns=grid_columns(*shrunk.shape), gap=_GAP)
        tiled = tile(shrunk, facts["columns"], _GAP)
    return Arrangement(levels=tiled, statistics=found, facts={**facts, **_reductions(channels, drawn, cells)})


def _strip(array: NDArray[Any], max_belt: int) -> Arrangement:
    """Arrange maps of one spatial axis, shape (1, C, L), as one row a channel."""
    _, channels, length = array.shape
    cells = math.ceil(length / max_belt)
    drawn = _most(channels, lambda count: _fits(count, math.ceil(length / cells)))
    levels, found = levels_and_statistics(array[:, :drawn])
    strip = _shrunk(levels.reshape(drawn, 1, length), 1, cells)[:, 0]
    facts: dict[str, Any] = {"channels": channels, "height": 1, "width": length, "arrangement": "strip"}
    # Cells large enough to be seen; a whole number of pixels each, so that none is blurred or lost.
    shown = strip.shape[1]
    facts["row_height"] = max(1, _LEAST_STRIP // drawn)
    facts["column_width"] = max(1, min(_LEAST_STRIP, max_belt) // shown)
    if facts["row_height"] > 1 or facts["column_width"] > 1:
        strip = np.repeat(np.repeat(strip, facts["row_height"], axis=0), facts["column_width"], axis=1)
    return Arrangement(levels=strip, statistics=found, facts={**facts, **_reductions(channels, drawn, cells)})


def _slices(array: NDArray[Any], max_belt: int) -> Arrangement:
    """Arrange maps of three spatial axes, shape (1, C, D, H, W), as one row a channel and one column a slice."""
    _, channels, depth, height, width = array.shape
    cells = _cells_per_pixel(height, width)
    rows, columns = math.ceil(height / cells), math.ceil(width / cells)
    # Channels in a row, so that the picture is not too high.
    beside = min(channels, math.ceil(channels * (rows + _GAP) / max_belt))
    count = min(depth, MAX_SLICES, max(1, max_belt // (beside * (columns + _GAP))))
    count = _most(count, lambda some: _fits(*_tiled_size(some, rows, columns, some)))
    slices = [(2 * i + 1) * depth // (2 * count) for i in range(count)]  # the middle of each of `count` equal parts
    in_a_row = beside * count
    drawn = _most(channels, lambda some: _fits(*_tiled_size(some * count, rows, columns, in_a_row)))
    levels, found = levels_and_statistics(array[:, :drawn])
    shown = _shrunk(levels[0][:, slices].reshape(-1, height, width), cells, cells)
    facts = {"channels": channels, "depth": depth, "height": height, "width": width, "arrangement": "slices"}
    facts.update(slices=slices, columns=min(beside, drawn), gap=_GAP)
    return Arrangement(
        levels=tile(shown, min(in_a_row, len(shown)), _GAP),
        statistics=found,
        facts={**facts, **_reductions(channels, drawn, cells)},
    )


def _reductions(channels: int, drawn: int, cells_per_pixel: int) -> dict[str, int]:
    """Return the facts on what had to be left out, where something had."""
    found = {}
    if drawn < channels:
        found["channels_drawn"] = drawn
    if cells_per_pixel > 1:
        found["cells_per_pixel"] = cells_per_pixel
    return found


def _fits(rows: int, columns: int) -> bool:
    return max(rows, columns) <= MAX_SIDE and rows * columns <= MAX_PIXELS


def _tiled_size(count: int, rows: int, columns: int, in_a_row: int | None = None) -> tuple[int, int]:
    """Return height and width of `count` cells of rows x columns as a grid."""
    in_a_row = min(in_a_row or grid_columns(count, rows, columns), count)
    below = math.ceil(count / in_a_row)
    return below * (rows + _GAP) - _GAP, in_a_row * (columns + _GAP) - _GAP


def _most(channels: int, fits: Callable[[int], bool]) -> int:
    """Return how many of the channels fit a picture, at least one."""
    some = channels
    while some > 1 and not fits(some):
        some -= max(1, some // 64)  # steps of 1 alone would take long from a million
    while some < channels and fits(some + 1):
        some += 1
    return some


def _cells_per_pixel(height: int, width: int) -> int:
    """Return the factor that makes one channel of height x width fit a picture: 1 for nearly all."""
    cells = 1
    while not _fits(math.ceil(height / cells), math.ceil(width / cells)):
        cells += 1
    return cells


def _shrunk(levels: NDArray[np.uint8], down: int, across: int) -> NDArray[np.uint8]:
    """Return maps (C, H, W) as (C, H / down, W / across), rounded up: each pixel the mean of its cells."""
    if down == across == 1:
        return levels
    channels, height, width = levels.shape
    whole = width // across
    shrunk = np.empty((channels, math.ceil(height / down), math.ceil(width / across)), dtype=np.uint8)
    step = max(1, _BLOCK // (width * down))
    for start in range(0, channels, step):
        some = slice(start, start + step)
        for row in range(shrunk.shape[1]):
            band = levels[some, row * down : (row + 1) * down]
            inner = band[:, :, : whole * across].reshape(*band.shape[:2], whole, across)
            shrunk[some, row, :whole] = _rounded_mean(inner, (1, 3))
            if whole * across < width:
                shrunk[some, row, whole] = _rounded_mean(band[:, :, whole * across :], (1, 2))
    return shrunk


def _rounded_mean(levels: NDArray[np.uint8], axes: tuple[int, ...]) -> NDArray[np.int64]:
    count = math.prod(levels.shape[axis] for axis in axes)
    rounded: NDArray[np.int64] = (levels.sum(axis=axes, dtype=np.int64) + count // 2) // count
    return rounded
