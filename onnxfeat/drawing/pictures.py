"""Make gray-level pictures of feature maps: normalize the values, then tile the channels.

NumPy in, NumPy out; colors come when a picture is written (`gallery`) or shown (`plots`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxfeat.errors import PictureError
from onnxfeat.records import FeatureMap

Maps = FeatureMap | NDArray[Any]
"""A feature map; or an array (N, C, H, W): `uint8` is taken as normalized already, other types are normalized."""

MEAN_LEVEL = 128
"""Gray level that stands for a channel's mean, and for all of a channel without contrast."""
LEVELS_PER_DEVIATION = 64
"""Gray levels that stand for one standard deviation: 0..255 covers -2 to +1.98 of them."""

MAX_BELT = 4096
"""Width in pixels past which a belt is drawn as a grid: twice the width of a usual screen."""

# Values that are normalized at a time, 4 MB of float32: small enough to stay in cache, and beside the levels of
# a layer drawing takes no more memory than some blocks.
_BLOCK = 2**20

# A channel counts as constant when its values differ by no more than rounding: float32 resolves 1.2e-7 of a value.
_ROUNDING = 4 * float(np.finfo(np.float32).eps)
# Below its smallest normal number float32 loses its digits, and most kernels set such values to 0.
_SMALLEST = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelStatistics:
    """What the gray levels of each channel stand for; every array has shape (N, C).

    Attributes:
        mean: Mean of the finite values, in the map's own units: gray level 128.
        deviation: Population standard deviation of the finite values: 64 gray levels.
        constant: Whether the channel has no contrast, its values differing by rounding at most.
        not_finite: Number of values that are NaN or infinite.
    """

    mean: NDArray[np.float32]
    deviation: NDArray[np.float32]
    constant: NDArray[np.bool_]
    not_finite: NDArray[np.int64]


def statistics(maps: Maps) -> ChannelStatistics:
    """Return what `normalize` bases the gray levels on, channel by channel.

    Args:
        maps: Feature map, or float array (N, C, *spatial).

    Example:
        >>> found = statistics(np.array([[[[1.0, 3.0]], [[5.0, 5.0]]]]))
        >>> found.mean.tolist(), found.deviation.tolist(), found.constant.tolist()
        ([[2.0, 5.0]], [[1.0, 0.0]], [[False, True]])
    """
    return _by_blocks(_array(maps), None)


def normalize(maps: Maps) -> NDArray[np.uint8]:
    """Map values to gray levels, each channel of each picture by itself.

    `(x - mean) / standard deviation * 64 + 128`, clipped to 0..255 and truncated, as in F. Chollet, "Deep Learning with
    Python", section 5.4.1. A channel without contrast becomes 128 everywhere. NaN becomes 0, infinities become 0 and
    255; they take no part in the statistics.

    Args:
        maps: Feature map, or float array (N, C, *spatial) in any units.

    Returns:
        `uint8` array of the same shape.

    Example:
        >>> normalize(np.array([[[[1.0, 3.0]], [[5.0, 5.0]]]])).tolist()
        [[[[64, 192]], [[128, 128]]]]
    """
    return levels_and_statistics(maps)[0]


def levels_and_statistics(maps: Maps) -> tuple[NDArray[np.uint8], ChannelStatistics]:
    """Return what `normalize` and `statistics` give, in one pass that takes little more memory than the levels."""
    array = _array(maps)
    levels = np.empty(array.shape, dtype=np.uint8)
    return levels, _by_blocks(array, levels)


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


def grid_columns(channels: int, height: int, width: int, aspect: float = 1.5) -> int:
    """Return how many columns make a grid of about `aspect` times as wide as high.

    Example:
        >>> grid_columns(2048, 7, 7)
        55
    """
    return min(channels, max(1, round(math.sqrt(channels * height / width * aspect))))


def _array(maps: Maps) -> NDArray[Any]:
    array = maps.array if isinstance(maps, FeatureMap) else np.asarray(maps)
    if array.dtype.kind not in "fiub":
        raise PictureError(
            f"values of type {array.dtype} can't be drawn: pass a FeatureMap or an array of real numbers"
        )
    if array.ndim < 3 or 0 in array.shape:
        raise PictureError(
            f"an array of shape {array.shape} holds no feature maps: pass (N, C, H, W) with at least one of each; "
            f"for a single picture pass array[None]"
        )
    return array


def picture_of(maps: Maps, index: int) -> NDArray[Any]:
    """Return the maps of one picture of the batch, shape (1, C, *spatial).

    Raises:
        PictureError: There is no such picture, or no map at all.
    """
    array = _array(maps)
    if not -len(array) <= index < len(array):
        raise PictureError(f"picture {index} is outside the batch of {len(array)}: pass 0 to {len(array) - 1}")
    index %= len(array)
    return array[index : index + 1]


def _levels(maps: Maps, index: int) -> NDArray[np.uint8]:
    """Return the gray levels of one picture, shape (C, H, W)."""
    array = _array(maps)
    if array.ndim != 4:
        raise PictureError(
            f"maps of shape {array.shape} can't be tiled: pass (N, C, H, W); `save_pictures` and `plot` draw feature "
            f"maps of one and three spatial axes too"
        )
    one = picture_of(array, index)
    levels: NDArray[np.uint8] = (one if one.dtype == np.uint8 else normalize(one))[0]
    return levels


def _by_blocks(array: NDArray[Any], levels: NDArray[np.uint8] | None) -> ChannelStatistics:
    """Return the statistics of maps (N, C, *spatial), and write their gray levels to `levels` of the same shape.

    A block holds some channels, or a part of a single one that is larger than a block.
    """
    pictures, channels, cells = *array.shape[:2], math.prod(array.shape[2:])
    found = ChannelStatistics(
        mean=np.empty((pictures, channels), np.float32),
        deviation=np.empty((pictures, channels), np.float32),
        constant=np.empty((pictures, channels), np.bool_),
        not_finite=np.empty((pictures, channels), np.int64),
    )
    step = max(1, _BLOCK // cells)
    for n in range(pictures):
        for start in range(0, channels, step):
            block = slice(start, start + step)
            rows = array[n, block].reshape(-1, cells)
            _measure(rows, None if levels is None else levels[n, block].reshape(-1, cells), found, (n, block))
    return found


def _measure(
    rows: NDArray[Any], levels: NDArray[np.uint8] | None, found: ChannelStatistics, at: tuple[int, slice]
) -> None:
    """Write statistics and gray levels of the channels `rows`, shape (channels, cells)."""
    parts = [slice(start, start + _BLOCK) for start in range(0, rows.shape[1], _BLOCK)]
    lowest, highest, total, count = _extremes_and_sums(rows, parts)
    mean = total / np.maximum(count, 1)
    squares = np.zeros(len(rows))
    for part in parts:
        centered = _centered(rows[:, part], mean)
        # Summed in float64: the squares of 1e-25 or 1e25 are beyond float32.
        squares += np.einsum("cx,cx->c", centered, centered, dtype=np.float64)
    deviation = np.sqrt(squares / np.maximum(count, 1))
    largest = np.maximum(np.abs(lowest), np.abs(highest)).astype(np.float64)
    flat = highest.astype(np.float64) - lowest <= np.maximum(_ROUNDING * largest, _SMALLEST)
    found.mean[at] = 2 * mean
    found.deviation[at] = 2 * deviation
    found.constant[at] = flat & (count > 0)  # nothing but NaN is no constant
    found.not_finite[at] = rows.shape[1] - count
    if levels is None:
        return
    divisor = np.where(flat, np.inf, deviation).astype(np.float32)[:, None]
    for part in parts:
        if len(parts) > 1:  # else it is there already
            centered = _centered(rows[:, part], mean)
        _write_levels(centered, divisor, levels[:, part])
    if (count < rows.shape[1]).any():
        _write_not_finite(rows, parts, levels)


def _halved(values: NDArray[Any]) -> NDArray[np.float32]:
    # float32 before statistics: the sum of squares of float16 overflows. Halved, which is exact: 3e38 less -3e38 is
    # beyond float32, and beyond it the values of a float64 array count as infinite.
    with np.errstate(over="ignore"):
        halved: NDArray[np.float32] = np.multiply(values, 0.5, dtype=np.float32)
    return halved


def _extremes_and_sums(
    rows: NDArray[Any], parts: list[slice]
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float64], NDArray[np.int64]]:
    """Return lowest, highest, sum and number of the finite values of each row, halved."""
    lowest = np.full(len(rows), np.inf, np.float32)
    highest = -lowest
    total, count = np.zeros(len(rows)), np.zeros(len(rows), np.int64)
    for part in parts:
        values = _halved(rows[:, part])
        low, high = values.min(axis=1), values.max(axis=1)
        with np.errstate(invalid="ignore"):
            sums = values.sum(axis=1, dtype=np.float64)
        counts = np.full(len(rows), values.shape[1])
        for row in np.nonzero(~(np.isfinite(low) & np.isfinite(high)))[0]:  # NaN and infinities show in the extremes
            good = values[row][np.isfinite(values[row])]
            low[row], high[row] = good.min(initial=np.inf), good.max(initial=-np.inf)
            sums[row], counts[row] = good.sum(dtype=np.float64), good.size
        lowest, highest = np.minimum(lowest, low), np.maximum(highest, high)
        total, count = total + sums, count + counts
    return np.where(count > 0, lowest, 0), np.where(count > 0, highest, 0), total, count


def _centered(values: NDArray[Any], mean: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the halved values less the mean of their row; 0 for NaN and infinities."""
    centered = _halved(values)
    # In two steps: the mean of 1000 and 1000.0001 lies between two float32 numbers.
    nearest = mean.astype(np.float32)
    centered -= nearest[:, None]
    centered -= (mean - nearest).astype(np.float32)[:, None]
    not_finite = ~np.isfinite(centered)
    if not_finite.any():
        centered[not_finite] = 0
    return centered


def _write_levels(centered: NDArray[np.float32], deviation: NDArray[np.float32], levels: NDArray[np.uint8]) -> None:
    centered /= deviation
    centered *= np.float32(LEVELS_PER_DEVIATION)
    centered += np.float32(MEAN_LEVEL)
    np.clip(centered, 0, 255, out=centered)
    np.copyto(levels, centered, casting="unsafe")  # truncates


def _write_not_finite(rows: NDArray[Any], parts: list[slice], levels: NDArray[np.uint8]) -> None:
    for part in parts:
        values = _halved(rows[:, part])
        levels[:, part][np.isnan(values) | (values == -np.inf)] = 0
        levels[:, part][values == np.inf] = 255
