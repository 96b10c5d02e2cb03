"""Find how many channels a picture holds, in which rows and columns, and how large."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxfeat.drawing.pictures import grid_columns
from onnxfeat.drawing.styles import Style

MAX_SIDE = 65_535
"""Largest width and height of a picture in pixels: many programs count a side in 16 bits."""
MAX_PIXELS = 178_956_970
"""Most pixels of a picture: Pillow refuses to open more (twice its `Image.MAX_IMAGE_PIXELS`)."""
MAX_SLICES = 16
"""Most slices of a volume that are drawn."""

_GAP = 1  # pixels between the channels of a grid
_LEAST_STRIP = 128  # pixels: a strip of fewer channels has thicker rows
_SCREEN = 1600  # pixels: what a picture with a frame is made about as wide as
_LARGE = 512  # pixels: side of a channel that is drawn alone
_MOST_CELL = 256  # pixels: side of a channel past which it is not enlarged
_STRIP_ROW, _STRIP_HEIGHT = 24, 640  # pixels: a row of a strip with a frame at most, and all of them about
_BLOCK = 2**20  # levels that are averaged at a time: their sums take 8 bytes each


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiling:
    """How the channels of a layer are put in one picture.

    Attributes:
        drawn: How many channels.
        slices: Which slices of each; one for maps without depth.
        shrink: How many cells become one pixel, down and across.
        columns: How many cells are in a row.
        gap: Pixels between them where there is no frame.
        zoom: Pixels for a cell, down and across.
        facts: The same in the words of `Arrangement.facts`.
    """

    drawn: int
    slices: tuple[int, ...] = (0,)
    shrink: tuple[int, int]
    columns: int
    gap: int
    zoom: tuple[int, int]
    facts: dict[str, Any]

    def cells(self, levels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return maps (C, *spatial) as (K, rows, columns)."""
        return _shrunk(self._flat(levels), *self.shrink)

    def cells_with(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return the same of a mask: true where any of the cells is."""
        found: NDArray[np.bool_] = self._flat(mask)
        for axis, step in enumerate(self.shrink, start=1):
            found = np.logical_or.reduceat(found, np.arange(0, found.shape[axis], step), axis=axis)
        return found

    def _flat(self, maps: NDArray[Any]) -> NDArray[Any]:
        """Return maps (C, *spatial) as (K, rows, columns), before they shrink."""
        if maps.ndim == 4:
            maps = maps[:, list(self.slices)].reshape(-1, *maps.shape[2:])
        return maps.reshape(len(maps), -1, maps.shape[-1])


def tiling_of(spatial: tuple[int, ...], channels: int, style: Style) -> Tiling:
    """Return how the channels of maps with one to three spatial axes are put in one picture.

    Example:
        >>> tiling_of((7, 7), 2048, Style(frame=False)).columns
        54
    """
    return (_of_strip, _of_maps, _of_volumes)[len(spatial) - 1](spatial, channels, style)


def _of_maps(spatial: tuple[int, ...], channels: int, style: Style) -> Tiling:
    """Plan maps of two spatial axes as belt or grid."""
    height, width = spatial
    cells = _cells_per_pixel(height, width, style)
    rows, columns = math.ceil(height / cells), math.ceil(width / cells)
    belt_fits = channels * columns <= min(style.max_belt, MAX_SIDE) or style.arrange == "belt"
    as_belt = style.arrange in (None, "belt") and belt_fits and _fits(rows, channels * (columns + _GAP), style)
    if as_belt:
        zoom = _zoom(style, rows, columns, channels, 1)
        facts: dict[str, Any] = {"arrangement": "belt"}
        down = zoom
        if height == channels == 1 and style.frame and style.zoom is None:  # a row of numbers, which is to be seen
            zoom = max(1, min(_STRIP_ROW, _SCREEN // columns)) * style.density
            down = _STRIP_ROW * style.density
            facts["row_height"] = down
        return Tiling(
            drawn=channels,
            shrink=(cells, cells),
            columns=channels,
            gap=0,
            zoom=(down, zoom),
            facts={**facts, **_shrinking(cells), **_zooming(zoom)},
        )
    drawn = _most(channels, lambda some: _fits(*_tiled_size(some, rows, columns, aspect=style.aspect), style))
    in_a_row = grid_columns(drawn, rows, columns, style.aspect)
    zoom = _zoom(style, rows, columns, in_a_row, math.ceil(drawn / in_a_row))
    facts = {"arrangement": "channel" if style.arrange == "channel" else "grid", "columns": in_a_row, "gap": _GAP}
    return Tiling(
        drawn=drawn,
        shrink=(cells, cells),
        columns=in_a_row,
        gap=_GAP,
        zoom=(zoom, zoom),
        facts={**facts, **_shrinking(cells), **_zooming(zoom)},
    )


def _of_strip(spatial: tuple[int, ...], channels: int, style: Style) -> Tiling:
    """Plan maps of one spatial axis as one row a channel."""
    length, most = spatial[0], min(style.max_belt, MAX_SIDE)
    cells = math.ceil(length / most)
    shown = math.ceil(length / cells)
    drawn = _most(channels, lambda count: _fits(count, shown, style))
    # Cells large enough to be seen; a whole number of pixels each, so that none is blurred or lost.
    if style.zoom is not None:
        asked = min(style.zoom, MAX_SIDE) * style.density
        zoom = (asked, asked)
    elif style.frame:
        down = min(_STRIP_ROW, _STRIP_HEIGHT // drawn)
        zoom = (max(1, down) * style.density, max(1, _SCREEN * 3 // 4 // shown) * style.density)
    else:
        zoom = (max(1, _LEAST_STRIP // drawn), max(1, min(_LEAST_STRIP, most) // shown))
    while max(zoom) > 1 and not _fits(drawn * zoom[0], shown * zoom[1], style):
        zoom = (max(1, zoom[0] - 1), max(1, zoom[1] - 1))
    facts = {"arrangement": "strip", "row_height": zoom[0], "column_width": zoom[1]}
    return Tiling(drawn=drawn, shrink=(1, cells), columns=1, gap=0, zoom=zoom, facts={**facts, **_shrinking(cells)})


def _of_volumes(spatial: tuple[int, ...], channels: int, style: Style) -> Tiling:
    """Plan maps of three spatial axes as one row a channel and one column a slice."""
    depth, height, width = spatial
    most = min(style.max_belt, MAX_SIDE)
    cells = _cells_per_pixel(height, width, style)
    rows, columns = math.ceil(height / cells), math.ceil(width / cells)
    # Channels in a row, so that the picture is not too high.
    beside = min(channels, math.ceil(channels * (rows + _GAP) / most))
    count = min(depth, MAX_SLICES, max(1, most // (beside * (columns + _GAP))))
    count = _most(count, lambda some: _fits(*_tiled_size(some, rows, columns, some), style))
    slices = tuple((2 * i + 1) * depth // (2 * count) for i in range(count))  # the middle of each of equal parts
    drawn = _most(channels, lambda some: _fits(*_tiled_size(some * count, rows, columns, beside * count), style))
    in_a_row = min(beside * count, drawn * count)
    zoom = _zoom(style, rows, columns, in_a_row, math.ceil(drawn * count / in_a_row))
    facts = {"arrangement": "slices", "slices": list(slices), "columns": min(beside, drawn), "gap": _GAP}
    return Tiling(
        drawn=drawn,
        slices=slices,
        shrink=(cells, cells),
        columns=in_a_row,
        gap=_GAP,
        zoom=(zoom, zoom),
        facts={**facts, **_shrinking(cells), **_zooming(zoom)},
    )


def _zoom(style: Style, rows: int, columns: int, across: int, down: int) -> int:
    """Return the pixels for a cell: what was asked for, or what fills a screen's width, as far as it fits a picture."""
    if style.zoom is not None:
        wanted = style.zoom
    elif not style.frame:
        wanted = 1
    elif style.arrange == "channel" and across == 1:
        wanted = _LARGE // max(rows, columns)
    else:
        wanted = min(_SCREEN // (across * (columns + _GAP)), _MOST_CELL // max(rows, columns))
    wanted = max(1, min(wanted, MAX_SIDE)) * style.density
    while wanted > 1 and not _fits(down * (rows * wanted + _GAP), across * (columns * wanted + _GAP), style):
        wanted -= 1
    return wanted


def _zooming(zoom: int) -> dict[str, int]:
    return {} if zoom == 1 else {"zoom": zoom}


def _shrinking(cells: int) -> dict[str, int]:
    return {} if cells == 1 else {"cells_per_pixel": cells}


def enlarged(cells: NDArray[np.uint8], zoom: tuple[int, int]) -> NDArray[np.uint8]:
    """Return cells (K, H, W) with each value on `zoom` pixels down and across: the nearest neighbor, none blurred.

    Example:
        >>> enlarged(np.array([[[1, 2]]], np.uint8), (1, 2)).tolist()
        [[[1, 1, 2, 2]]]
    """
    if zoom == (1, 1):
        return cells
    count, rows, columns = cells.shape
    wide = np.broadcast_to(cells[:, :, None, :, None], (count, rows, zoom[0], columns, zoom[1]))
    return wide.reshape(count, rows * zoom[0], columns * zoom[1])


def _fits(rows: int, columns: int, style: Style) -> bool:
    share = 2 if style.frame else 1  # titles, numbers and gaps take less than as much again
    return max(rows, columns) <= MAX_SIDE // share and rows * columns <= MAX_PIXELS // share


def _tiled_size(
    count: int, rows: int, columns: int, in_a_row: int | None = None, *, aspect: float = 1.5
) -> tuple[int, int]:
    """Return height and width of `count` cells of rows x columns as a grid."""
    in_a_row = min(in_a_row or grid_columns(count, rows, columns, aspect), count)
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


def _cells_per_pixel(height: int, width: int, style: Style) -> int:
    """Return the factor that makes one channel of height x width fit a picture: 1 for nearly all."""
    cells = 1
    while not _fits(math.ceil(height / cells), math.ceil(width / cells), style):
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
