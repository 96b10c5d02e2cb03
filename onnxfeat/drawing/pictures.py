"""Tile the gray levels of channels: belts, grids, and back again.

NumPy in, NumPy out; colors come when a picture is painted or shown.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxfeat.drawing.channel_statistics import Maps, array_of
from onnxfeat.drawing.scales import normalize
from onnxfeat.errors import PictureError


def belt(maps: Maps, index: int = 0) -> NDArray[np.uint8]:
    """Tile the channels of one picture side by side into one row.

    Args:
        maps: Feature map, or array (N, C, H, W).
        index: Which picture of the batch.

    Returns:
        `uint8` array (H, C * W).

    Example:
        >>> belt(np.array([[[[1, 2], [3, 4]], [[5, 6], [7, 8]]]], dtype=np.uint8)).tolist()
        [[1, 2, 5, 6], [3, 4, 7, 8]]
    """
    levels = _levels(maps, index)
    channels, height, width = levels.shape
    return np.ascontiguousarray(levels.transpose(1, 0, 2).reshape(height, channels * width))


def grid(maps: Maps, index: int = 0, *, columns: int | None = None, gap: int = 1) -> NDArray[np.uint8]:
    """Tile the channels of one picture in rows and columns, the first channel at the top left.

    Args:
        maps: Feature map, or array (N, C, H, W).
        index: Which picture of the batch.
        columns: Channels in a row; None gives a picture of about 3 : 2.
        gap: Pixels of level 0 between channels; the cells after the last channel have level 0 too.

    Returns:
        `uint8` array (rows * H + (rows - 1) * gap, columns * W + (columns - 1) * gap).

    Example:
        >>> grid(np.full((1, 3, 1, 1), 7, dtype=np.uint8), columns=2).tolist()
        [[7, 0, 7], [0, 0, 0], [7, 0, 0]]
    """
    if gap < 0 or (columns is not None and columns < 1):
        raise PictureError(f"columns {columns} and gap {gap} make no grid: columns must be 1 or more, gap 0 or more")
    levels = _levels(maps, index)
    return tile(levels, min(columns or grid_columns(*levels.shape), len(levels)), gap)


def tile(cells: NDArray[np.uint8], columns: int, gap: int) -> NDArray[np.uint8]:
    """Put cells of shape (K, H, W) in rows of `columns`, with `gap` pixels of level 0 between them.

    Example:
        >>> tile(np.full((3, 1, 1), 7, dtype=np.uint8), 2, 0).tolist()
        [[7, 7], [7, 0]]
    """
    count, height, width = cells.shape
    rows = math.ceil(count / columns)
    padded = np.zeros((rows, height + gap, columns * (width + gap) - gap), dtype=np.uint8)
    for column in range(columns):  # a loop over the columns: a transposed whole would be one more copy of all
        left, column_of_cells = column * (width + gap), cells[column::columns]
        padded[: len(column_of_cells), :height, left : left + width] = column_of_cells
    tiled = padded.reshape(rows * (height + gap), -1)
    return tiled[: len(tiled) - gap]  # whole rows: still contiguous


def untile(tiled: NDArray[np.uint8], count: int, *, columns: int | None = None, gap: int = 0) -> NDArray[np.uint8]:
    """Take a belt or grid apart: the inverse of `tile`, `belt` and `grid`.

    Args:
        tiled: Belt or grid, (rows, columns), without a frame.
        count: How many channels are in it.
        columns: Channels in a row; None is all of them, a belt.
        gap: Pixels between them.

    Returns:
        `uint8` array (count, H, W).

    Raises:
        PictureError: So many channels do not make a picture of that size.

    Example:
        >>> levels = np.arange(12, dtype=np.uint8).reshape(1, 3, 2, 2)
        >>> untile(grid(levels, columns=2, gap=1), 3, columns=2, gap=1).tolist()
        [[[0, 1], [2, 3]], [[4, 5], [6, 7]], [[8, 9], [10, 11]]]
    """
    if count < 1 or gap < 0 or (columns is not None and columns < 1):
        raise PictureError(f"{count} channels, {columns} in a row, gap {gap} make no grid: pass those it was made with")
    columns = count if columns is None else columns
    rows = math.ceil(count / columns)
    height, more = divmod(tiled.shape[0] + gap, rows)
    width, wider = divmod(tiled.shape[1] + gap, columns)
    if more or wider or min(height, width) <= gap:
        raise PictureError(
            f"a picture of {tiled.shape[1]} x {tiled.shape[0]} pixels does not hold {count} channels, {columns} in a "
            f"row with {gap} pixels between them: pass the numbers that it was made with, run.json has them"
        )
    padded = np.pad(tiled, ((0, gap), (0, gap)))
    cells = padded.reshape(rows, height, columns, width).swapaxes(1, 2).reshape(-1, height, width)
    return cells[:count, : height - gap, : width - gap].copy()


def grid_columns(channels: int, height: int, width: int, aspect: float = 1.5) -> int:
    """Return how many columns make a grid of about `aspect` times as wide as high.

    Example:
        >>> grid_columns(2048, 7, 7), grid_columns(16, 7, 7)
        (54, 4)
    """
    about = min(channels, max(1, round(math.sqrt(channels * height / width * aspect))))
    return math.ceil(channels / math.ceil(channels / about))  # as many rows, the last as full as can be


def picture_of(maps: Maps, index: int) -> NDArray[Any]:
    """Return the maps of one picture of the batch, shape (1, C, *spatial).

    Raises:
        PictureError: There is no such picture, or no map at all.
    """
    array = array_of(maps)
    if not -len(array) <= index < len(array):
        raise PictureError(f"picture {index} is outside the batch of {len(array)}: pass 0 to {len(array) - 1}")
    index %= len(array)
    return array[index : index + 1]


def _levels(maps: Maps, index: int) -> NDArray[np.uint8]:
    """Return the gray levels of one picture, shape (C, H, W)."""
    array = array_of(maps)
    if array.ndim != 4:
        raise PictureError(
            f"maps of shape {array.shape} can't be tiled: pass (N, C, H, W); `save_pictures` and `plot` draw feature "
            f"maps of one and three spatial axes too"
        )
    one = picture_of(array, index)
    levels: NDArray[np.uint8] = (one if one.dtype == np.uint8 else normalize(one))[0]
    return levels
