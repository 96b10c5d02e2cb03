"""Measure the channels of feature maps: mean, deviation, extremes, and what of them can't be drawn.

NumPy in, NumPy out, in blocks that stay in the cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxfeat.errors import PictureError
from onnxfeat.records import FeatureMap

Maps = FeatureMap | NDArray[Any]
"""A feature map; or an array (N, C, *spatial): `uint8` is taken as normalized already where pictures are tiled."""

# Values that are worked on at a time, 1 MB of float32: they stay in the cache of one core from pass to pass.
_BLOCK = 2**18

# A channel counts as constant when its values differ by no more than rounding: float32 resolves 1.2e-7 of a value.
ROUNDING = 4 * float(np.finfo(np.float32).eps)
# Below its smallest normal number float32 loses its digits, and most kernels set such values to 0.
SMALLEST = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelStatistics:
    """What is known of each channel; every array has shape (N, C), NaN and infinite values take no part.

    Attributes:
        mean: Mean, in the map's own units.
        deviation: Population standard deviation.
        lowest: Least value; 0 where none is finite.
        highest: Greatest value; 0 where none is finite.
        constant: Whether the channel has no contrast, its values differing by rounding at most.
        nan: Number of values that are NaN.
        infinite: Number of values that are infinite.
    """

    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]
    lowest: NDArray[np.float32]
    highest: NDArray[np.float32]
    constant: NDArray[np.bool_]
    nan: NDArray[np.int64]
    infinite: NDArray[np.int64]

    @property
    def dead(self) -> NDArray[np.bool_]:
        """Whether each channel is 0 everywhere, as that of a ReLU that never fires."""
        silent: NDArray[np.bool_] = self.constant & (self.lowest == 0) & (self.highest == 0) & (self.not_finite == 0)
        return silent

    @property
    def not_finite(self) -> NDArray[np.int64]:
        """Number of values that are NaN or infinite."""
        return self.nan + self.infinite


def statistics(maps: Maps) -> ChannelStatistics:
    """Return mean, deviation and extremes of each channel, and what of it can't be drawn.

    Args:
        maps: Feature map, or float array (N, C, *spatial).

    Example:
        >>> found = statistics(np.array([[[[1.0, 3.0]], [[5.0, 5.0]]]]))
        >>> found.mean.tolist(), found.deviation.tolist(), found.constant.tolist()
        ([[2.0, 5.0]], [[1.0, 0.0]], [[False, True]])
    """
    array = array_of(maps)
    shape = array.shape[:2]
    found = ChannelStatistics(
        mean=np.empty(shape),
        deviation=np.empty(shape),
        lowest=np.empty(shape, np.float32),
        highest=np.empty(shape, np.float32),
        constant=np.empty(shape, np.bool_),
        nan=np.empty(shape, np.int64),
        infinite=np.empty(shape, np.int64),
    )
    for at, rows in blocks(array):
        _measure(rows, found, at)
    return found


class BatchStatistics:
    """What is known of each channel in all pictures together, found while they pass.

    Attributes:
        cells: Number of values of a channel that were added.

    Example:
        >>> tracker = BatchStatistics()
        >>> tracker.add(np.array([[[1.0, 3.0]]]))
        >>> tracker.add(np.array([[[5.0, 7.0]]]))
        >>> tracker.whole().mean.tolist(), tracker.cells
        ([[4.0]], 4)
    """

    def __init__(self) -> None:
        self.cells = 0
        self._found: ChannelStatistics | None = None

    def add(self, array: NDArray[Any], known: ChannelStatistics | None = None) -> None:
        """Take the maps (N, C, *spatial) of more pictures into account; `known` is what `statistics` gave for them."""
        cells = math.prod(array.shape[2:])
        found, more = pooled(known or statistics(array), cells, axis=0), len(array) * cells
        if self._found is not None:
            names = ChannelStatistics.__slots__
            both = {name: np.concatenate([getattr(self._found, name), getattr(found, name)]) for name in names}
            found = pooled(ChannelStatistics(**both), np.array([[self.cells], [more]]), axis=0)
        self._found, self.cells = found, self.cells + more

    def whole(self) -> ChannelStatistics:
        """Return the statistics of all that was added, arrays of shape (1, C).

        Raises:
            PictureError: Nothing was added.
        """
        if self._found is None:
            raise PictureError("there is no picture to measure: pass one or more")
        return self._found


def array_of(maps: Maps) -> NDArray[Any]:
    """Return the values of maps, shape (N, C, *spatial).

    Raises:
        PictureError: They are no real numbers, or there are none.
    """
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


def not_finite(array: NDArray[Any]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return where values are NaN, and where they are infinite (as float32), each in the shape of the array."""
    values = halved(array)
    nan = np.isnan(values)
    return nan, np.isinf(values)


def blocks(array: NDArray[Any]) -> Iterator[tuple[tuple[int, slice], NDArray[Any]]]:
    """Yield the maps in blocks of whole channels: the place of each, and its values as (channels, cells)."""
    cells = math.prod(array.shape[2:])
    step = max(1, _BLOCK // cells)
    for picture in range(len(array)):
        for start in range(0, array.shape[1], step):
            at = picture, slice(start, start + step)
            yield at, array[at].reshape(-1, cells)


def parts(rows: NDArray[Any]) -> list[slice]:
    """Return the parts of channels that are larger than a block each."""
    return [slice(start, start + _BLOCK) for start in range(0, rows.shape[1], _BLOCK)]


def _measure(rows: NDArray[Any], found: ChannelStatistics, at: tuple[int, slice]) -> None:
    """Write the statistics of the channels `rows`, shape (channels, cells)."""
    lowest, highest, total, count, nan = _extremes_and_sums(rows)
    mean = total / np.maximum(count, 1)
    squares = np.zeros(len(rows))
    for part in parts(rows):
        centered = centered_by(rows[:, part], mean)
        centered[~np.isfinite(centered)] = 0
        # Summed in float64: the squares of 1e-25 or 1e25 are beyond float32.
        squares += np.einsum("cx,cx->c", centered, centered, dtype=np.float64)
    largest = np.maximum(np.abs(lowest), np.abs(highest)).astype(np.float64)
    flat = highest.astype(np.float64) - lowest <= np.maximum(ROUNDING * largest, SMALLEST)
    found.mean[at] = 2 * mean
    found.deviation[at] = 2 * np.sqrt(squares / np.maximum(count, 1))
    found.lowest[at] = 2 * lowest
    found.highest[at] = 2 * highest
    found.constant[at] = flat & (count > 0)  # nothing but NaN is no constant
    found.nan[at] = nan
    found.infinite[at] = rows.shape[1] - count - nan


def halved(values: NDArray[Any]) -> NDArray[np.float32]:
    """Return half of each value as float32, which is exact but for the smallest.

    float32, as the sum of squares of float16 overflows; halved, as 3e38 less -3e38 is beyond float32. Beyond it the
    values of a float64 array count as infinite.
    """
    with np.errstate(over="ignore"):
        found: NDArray[np.float32] = np.multiply(values, 0.5, dtype=np.float32)
    return found


def _extremes_and_sums(
    rows: NDArray[Any],
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Return lowest, highest, sum and number of the finite values of each row, halved, and the number of NaN."""
    lowest = np.full(len(rows), np.inf, np.float32)
    highest = -lowest
    total, count, nan = np.zeros(len(rows)), np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64)
    for part in parts(rows):
        values = halved(rows[:, part])
        low, high = values.min(axis=1), values.max(axis=1)
        with np.errstate(invalid="ignore"):
            sums = values.sum(axis=1, dtype=np.float64)
        counts = np.full(len(rows), values.shape[1])
        for row in np.nonzero(~(np.isfinite(low) & np.isfinite(high)))[0]:  # NaN and infinities show in the extremes
            good = values[row][np.isfinite(values[row])]
            low[row], high[row] = good.min(initial=np.inf), good.max(initial=-np.inf)
            sums[row], counts[row] = good.sum(dtype=np.float64), good.size
            nan[row] += np.isnan(values[row]).sum()
        lowest, highest = np.minimum(lowest, low), np.maximum(highest, high)
        total, count = total + sums, count + counts
    return np.where(count > 0, lowest, 0), np.where(count > 0, highest, 0), total, count, nan


def centered_by(values: NDArray[Any], middle: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the halved values less the (halved) middle of their row."""
    centered = halved(values)
    # In two steps: the mean of 1000 and 1000.0001 lies between two float32 numbers.
    nearest = middle.astype(np.float32)
    rest = (middle - nearest).astype(np.float32)
    centered -= nearest[:, None]
    if rest.any():
        centered -= rest[:, None]
    return centered


def pooled(found: ChannelStatistics, cells: int | NDArray[np.int64], axis: int) -> ChannelStatistics:
    """Return the statistics of groups taken together, from those of each group and its number of values.

    The variance of the whole is the mean of the variances plus the variance of the means (Chan, Golub and LeVeque,
    "Updating formulae and a pairwise algorithm for computing sample variances", 1979).
    """
    counts = cells - found.not_finite
    some = np.maximum(counts.sum(axis=axis, keepdims=True), 1)
    share = counts / some
    mean = (found.mean * share).sum(axis=axis, keepdims=True)
    squares = found.deviation**2 + (found.mean - mean) ** 2
    deviation = np.sqrt((squares * share).sum(axis=axis, keepdims=True))
    is_there = counts > 0
    lowest = np.where(is_there, found.lowest, np.inf).min(axis=axis, keepdims=True)
    highest = np.where(is_there, found.highest, -np.inf).max(axis=axis, keepdims=True)
    any_there = is_there.any(axis=axis, keepdims=True)
    lowest, highest = np.where(any_there, lowest, 0), np.where(any_there, highest, 0)
    largest = np.maximum(np.abs(lowest), np.abs(highest)).astype(np.float64)
    flat = highest.astype(np.float64) - lowest <= np.maximum(ROUNDING * largest, SMALLEST)
    return ChannelStatistics(
        mean=mean,
        deviation=deviation,
        lowest=lowest.astype(np.float32),
        highest=highest.astype(np.float32),
        constant=flat & any_there,
        nan=found.nan.sum(axis=axis, keepdims=True),
        infinite=found.infinite.sum(axis=axis, keepdims=True),
    )
