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
    return _standardize(_array(maps))[1]


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
    """Return what `normalize` and `statistics` give, in one pass."""
    array = _array(maps)
    levels, found = _standardize(array)
    levels *= np.float32(LEVELS_PER_DEVIATION)
    levels += np.float32(MEAN_LEVEL)
    np.clip(levels, 0, 255, out=levels)
    if found.not_finite.any():
        with np.errstate(over="ignore"):
            flat = array.reshape(levels.shape).astype(np.float32)
        levels[np.isnan(flat) | (flat == -np.inf)] = 0
        levels[flat == np.inf] = 255
    return levels.astype(np.uint8).reshape(array.shape), found


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
    channels, height, width = levels.shape
    columns = min(columns or grid_columns(channels, height, width), channels)
    rows = math.ceil(channels / columns)
    cells = np.zeros((rows * columns, height + gap, width + gap), dtype=np.uint8)
    cells[:channels, :height, :width] = levels
    in_rows = cells.reshape(rows, columns, height + gap, width + gap).transpose(0, 2, 1, 3)
    tiled = in_rows.reshape(rows * (height + gap), columns * (width + gap))
    return np.ascontiguousarray(tiled[: tiled.shape[0] - gap, : tiled.shape[1] - gap])


def grid_columns(channels: int, height: int, width: int, aspect: float = 1.5) -> int:
    """Return how many columns make a grid of about `aspect` times as wide as high.

    Example:
        >>> grid_columns(2048, 7, 7)
        55
    """
    return min(channels, max(1, round(math.sqrt(channels * height / width * aspect))))


def fits_belt(maps: Maps, max_width: int = MAX_BELT) -> bool:
    """Return whether the belt of a feature map is at most `max_width` pixels wide."""
    array = _array(maps)
    return bool(array.shape[1] * array.shape[3] <= max_width)


def drawable(feature_map: FeatureMap) -> FeatureMap:
    """Return a feature map that has rows and columns.

    A layer of one number a channel (global pooling, dense) becomes one map of one row, a cell for each channel: a
    channel of a single cell has no contrast of its own, beside the others it has.

    Raises:
        PictureError: The map has one or three spatial axes and so is no picture.
    """
    shape = feature_map.shape
    if math.prod(shape[2:]) == 1:
        return FeatureMap(layer=feature_map.layer, array=feature_map.array.reshape(shape[0], 1, 1, shape[1]))
    if len(shape) != 4:
        raise PictureError(
            f"layer {feature_map.name!r} has shape {shape}: pictures are drawn of maps with two spatial axes; "
            f"take its numbers from `array`"
        )
    return feature_map


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


def _levels(maps: Maps, index: int) -> NDArray[np.uint8]:
    """Return the gray levels of one picture, shape (C, H, W)."""
    array = _array(maps)
    if array.ndim != 4:
        raise PictureError(f"maps of shape {array.shape} can't be tiled: pass (N, C, H, W)")
    if not -len(array) <= index < len(array):
        raise PictureError(f"picture {index} is outside the batch of {len(array)}: pass 0 to {len(array) - 1}")
    index %= len(array)
    one = array[index : index + 1]
    levels: NDArray[np.uint8] = (one if one.dtype == np.uint8 else normalize(one))[0]
    return levels


def _standardize(array: NDArray[Any]) -> tuple[NDArray[np.float32], ChannelStatistics]:
    """Return `(x - mean) / standard deviation`, shape (N, C, cells), and the statistics; 0 where that has no value."""
    # float32 before statistics: the sum of squares of float16 overflows. Halved, which is exact: 3e38 less -3e38 is
    # beyond float32, and beyond it the values of a float64 array count as infinite.
    with np.errstate(over="ignore"):
        values = np.multiply(array.reshape(*array.shape[:2], -1), 0.5, dtype=np.float32)
    lowest, highest = values.min(axis=2), values.max(axis=2)
    with np.errstate(invalid="ignore"):
        mean = values.mean(axis=2, dtype=np.float64)
    finite = np.isfinite(lowest) & np.isfinite(highest)  # NaN and infinities show in the extremes
    count = np.full(mean.shape, values.shape[2])
    for n, c in zip(*np.nonzero(~finite), strict=True):
        good = values[n, c][np.isfinite(values[n, c])]
        count[n, c] = good.size
        extremes = (good.min(), good.max(), good.mean(dtype=np.float64)) if good.size else (0, 0, 0)
        lowest[n, c], highest[n, c], mean[n, c] = extremes
    # In two steps: the mean of 1000 and 1000.0001 lies between two float32 numbers.
    nearest = mean.astype(np.float32)
    values -= nearest[..., None]
    values -= (mean - nearest).astype(np.float32)[..., None]
    if not finite.all():
        values[~np.isfinite(values)] = 0
    # Summed in float64: the squares of 1e-25 or 1e25 are beyond float32.
    deviation = np.sqrt(np.einsum("ncx,ncx->nc", values, values, dtype=np.float64) / np.maximum(count, 1))
    largest = np.maximum(np.abs(lowest), np.abs(highest)).astype(np.float64)
    flat = highest.astype(np.float64) - lowest <= np.maximum(_ROUNDING * largest, _SMALLEST)
    values /= np.where(flat, np.inf, deviation).astype(np.float32)[..., None]
    return values, ChannelStatistics(
        mean=(2 * mean).astype(np.float32),
        deviation=(2 * deviation).astype(np.float32),
        constant=flat & (count > 0),  # nothing but NaN is no constant
        not_finite=(values.shape[2] - count).astype(np.int64),
    )
