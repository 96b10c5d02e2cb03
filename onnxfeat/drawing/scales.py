"""Find what the gray levels of feature maps stand for, and turn values into levels.

NumPy in, NumPy out. Every scale is a middle and a reach, in float64: level `(x - middle) / reach * 128 + 128`, clipped
to 0..255 and truncated, so that each of 256 levels covers an equal part of `middle - reach` to `middle + reach`. (`log`
bends that line.) Colors come when a picture is painted or written.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from onnxfeat.drawing.channel_statistics import (
    ROUNDING,
    SMALLEST,
    BatchStatistics,
    ChannelStatistics,
    Maps,
    array_of,
    blocks,
    centered_by,
    halved,
    parts,
    pooled,
    statistics,
)
from onnxfeat.drawing.histograms import Histogram
from onnxfeat.drawing.styles import Normalization, ScaleOver, check_percentiles
from onnxfeat.errors import PictureError, quote

LEVELS = 256
"""Gray levels of a picture."""
DEVIATIONS = 2.0
"""Standard deviations to either side of the mean that `zscore` shows: 64 levels for one, as in the reference."""
_BEND = 255.0  # mu of the mu-law, the value of ITU-T G.711


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """What levels stand for; `middle` and `reach` have shape (N, C), (N, 1) or (1, 1) as channels and pictures share.

    Attributes:
        method: How it was found.
        over: What shares it.
        middle: Value in the middle of the scale.
        reach: From there to either end; 0 where there is no contrast: all is drawn in the middle.
    """

    method: Normalization
    over: ScaleOver
    middle: NDArray[np.float64]
    reach: NDArray[np.float64]

    @property
    def low(self) -> NDArray[np.float64]:
        """Value at the lower end."""
        return self.middle - self.reach

    @property
    def high(self) -> NDArray[np.float64]:
        """Value at the upper end."""
        return self.middle + self.reach

    def of(self, index: int) -> Scale:
        """Return the scale of one picture of the batch."""
        at = slice(None) if len(self.middle) == 1 else slice(index, index + 1)
        return Scale(method=self.method, over=self.over, middle=self.middle[at], reach=self.reach[at])

    def of_channels(self, channels: NDArray[np.intp]) -> Scale:
        """Return the scale of some channels, in this order."""
        if self.middle.shape[1] == 1:
            return self
        return Scale(method=self.method, over=self.over, middle=self.middle[:, channels], reach=self.reach[:, channels])

    def values_at(self, parts: Any) -> NDArray[np.float64]:
        """Return the values at these parts (0 to 1) of the way from the lower to the upper end, shape (N, C, parts)."""
        parts = np.asarray(parts, np.float64)
        if self.method == "log":
            parts = np.expm1(parts * math.log1p(_BEND)) / _BEND
        found: NDArray[np.float64] = self.low[..., None] + 2 * self.reach[..., None] * parts
        return found

    def levels(self, array: NDArray[Any], steps: int = LEVELS) -> NDArray[np.uint8]:
        """Return the level of each value of maps (N, C, *spatial): 0 to `steps` - 1; see `normalize`."""
        levels = np.empty(array.shape, np.uint8)
        middle = np.broadcast_to(self.middle, array.shape[:2])
        reach = np.broadcast_to(self.reach, array.shape[:2])
        for at, rows in blocks(array):
            _write(rows, middle[at], reach[at], self.method, steps, levels[at].reshape(rows.shape))
        return levels


def normalize(
    maps: Maps,
    method: Normalization = "zscore",
    *,
    scale_over: ScaleOver = "channel",
    percentiles: tuple[float, float] = (1.0, 99.0),
) -> NDArray[np.uint8]:
    """Map values to gray levels.

    - `zscore`: `(x - mean) / deviation * 64 + 128`, clipped to 0..255 and truncated, as in F. Chollet, "Deep Learning
      with Python", section 5.4.1.
    - `minmax`: from the least value to the greatest.
    - `percentile`: from one percentile to another, what is outside clipped; where these are equal, though the values
      are not, from the least value to the greatest. Over a batch they
      are those of `histograms.Histogram`.
    - `symmetric`: from minus the greatest absolute value to plus it: 0 is level 128.
    - `log`: least to greatest value by the mu-law of ITU-T G.711, `log(1 + 255 r) / log(256)` of the part r of the way.

    What has no contrast becomes 128 everywhere. NaN becomes 0, infinities become 0 and 255; they take no part in the
    scale.

    Args:
        maps: Feature map, or float array (N, C, *spatial) in any units.
        method: One of these.
        scale_over: Whether each channel has a scale, each layer of each picture, or all pictures of the batch together.
        percentiles: Both ends for `percentile`, in percent.

    Returns:
        `uint8` array of the same shape.

    Raises:
        PictureError: There are no maps, or a choice is unknown.

    Example:
        >>> normalize(np.array([[[[1.0, 3.0]], [[5.0, 5.0]]]])).tolist()
        [[[[64, 192]], [[128, 128]]]]
        >>> normalize(np.array([[[[0.0, 1.0]], [[2.0, 4.0]]]]), "minmax", scale_over="layer").tolist()
        [[[[0, 64]], [[128, 255]]]]
    """
    array = array_of(maps)
    return scale_of(array, method, scale_over=scale_over, percentiles=percentiles).levels(array)


def scale_of(
    maps: Maps,
    method: Normalization = "zscore",
    *,
    scale_over: ScaleOver = "channel",
    percentiles: tuple[float, float] = (1.0, 99.0),
    known: ChannelStatistics | None = None,
) -> Scale:
    """Return what the levels of `normalize` stand for.

    Args:
        maps: Feature map, or float array (N, C, *spatial).
        method: See `normalize`.
        scale_over: See `normalize`.
        percentiles: See `normalize`.
        known: What `statistics` gave for these maps, if it was called before.

    Example:
        >>> scale = scale_of(np.array([[[[0.0, 1.0]], [[2.0, 4.0]]]]), "minmax", scale_over="layer")
        >>> scale.low.tolist(), scale.high.tolist()
        ([[0.0]], [[4.0]])
    """
    array = array_of(maps)
    for value, choices in ((method, get_args(Normalization)), (scale_over, get_args(ScaleOver))):
        if value not in choices:
            raise PictureError(f"{value!r} is no way to normalize: choose {quote(choices)}")
    check_percentiles(percentiles)
    if scale_over == "batch":
        tracker = BatchScale(method, percentiles)
        tracker.add(array, known)
        return tracker.scale()
    found = known or statistics(array)
    if scale_over == "channel":
        if method == "percentile":
            ends = np.stack([_percentiles(picture, percentiles) for picture in array])
            return _from_ends(method, scale_over, ends[..., 0], ends[..., 1], found.lowest, found.highest)
        return _from_statistics(method, scale_over, found)
    whole = pooled(found, math.prod(array.shape[2:]), axis=1)
    if method == "percentile":
        flat = np.stack([_percentiles(picture.reshape(1, -1), percentiles) for picture in array])
        return _from_ends(method, scale_over, flat[..., 0], flat[..., 1], whole.lowest, whole.highest)
    return _from_statistics(method, scale_over, whole)


class BatchScale:
    """One scale for a layer in all pictures, found while they pass: nothing is kept of them but a few numbers.

    Example:
        >>> tracker = BatchScale("minmax")
        >>> tracker.add(np.zeros((1, 2, 3, 3), np.float32))
        >>> tracker.add(np.full((1, 2, 3, 3), 8, np.float32))
        >>> tracker.scale().high.tolist()
        [[8.0]]
    """

    def __init__(self, method: Normalization, percentiles: tuple[float, float] = (1.0, 99.0)) -> None:
        self._method = method
        self._percentiles = percentiles
        self._statistics = BatchStatistics()
        self._histogram = Histogram() if method == "percentile" else None

    def add(self, array: NDArray[Any], known: ChannelStatistics | None = None) -> None:
        """Take the maps (N, C, *spatial) of more pictures into account; `known` is what `statistics` gave for them."""
        self._statistics.add(array, known)
        if self._histogram is not None:
            for _, rows in blocks(array):
                self._histogram.add(rows)

    def scale(self) -> Scale:
        """Return the scale of all that was added; both arrays have shape (1, 1).

        Raises:
            PictureError: Nothing was added.
        """
        found = pooled(self._statistics.whole(), self._statistics.cells, axis=1)
        if self._histogram is None:
            return _from_statistics(self._method, "batch", found)
        low, high = (np.array([[self._histogram.percentile(part)]]) for part in self._percentiles)
        low, high = np.maximum(low, found.lowest), np.minimum(high, found.highest)
        return _from_ends(self._method, "batch", low, high, found.lowest, found.highest)


def _from_statistics(method: Normalization, over: ScaleOver, found: ChannelStatistics) -> Scale:
    if method == "zscore":
        # A deviation below the least float32 tells no contrast; a constant channel's is rounding.
        reach = np.where(found.constant, 0, DEVIATIONS * found.deviation)
        return Scale(method=method, over=over, middle=found.mean, reach=reach)
    if method == "symmetric":
        largest = np.maximum(np.abs(found.lowest), np.abs(found.highest)).astype(np.float64)
        return Scale(method=method, over=over, middle=np.zeros(largest.shape), reach=largest)
    return _from_ends(method, over, found.lowest, found.highest, found.lowest, found.highest)


def _from_ends(
    method: Normalization,
    over: ScaleOver,
    low: NDArray[Any],
    high: NDArray[Any],
    lowest: NDArray[Any],
    highest: NDArray[Any],
) -> Scale:
    """Return the scale between two values; between the extremes where the two are equal and these are not."""
    low, high = low.astype(np.float64), high.astype(np.float64)
    equal = high - low <= SMALLEST
    low, high = np.where(equal, lowest, low), np.where(equal, highest, high)
    reach = (high - low) / 2
    flat = 2 * reach <= np.maximum(ROUNDING * np.maximum(np.abs(low), np.abs(high)), SMALLEST)
    return Scale(method=method, over=over, middle=(low + high) / 2, reach=np.where(flat, 0, reach))


def _percentiles(rows: NDArray[Any], percentiles: tuple[float, float]) -> NDArray[np.float64]:
    """Return two percentiles of the finite values of each row, shape (rows, 2); `rows` is (C, *spatial)."""
    found = np.zeros((len(rows), 2))
    for (_, at), part in blocks(rows[None]):
        values = halved(part)
        finite = np.isfinite(values).all(axis=1)
        found[at][finite] = np.percentile(values[finite], percentiles, axis=1).T if finite.any() else 0
        for row in np.nonzero(~finite)[0]:
            good = values[row][np.isfinite(values[row])]
            found[at][row] = np.percentile(good, percentiles) if good.size else 0
    return 2 * found


def _write(
    rows: NDArray[Any],
    middle: NDArray[np.float64],
    reach: NDArray[np.float64],
    method: Normalization,
    steps: int,
    levels: NDArray[np.uint8],
) -> None:
    """Write the levels of channels, shape (channels, cells)."""
    # Halved as the values are. What has no contrast is divided by infinity, and lands in the middle.
    divisor = np.where(reach > 0, reach / 2, np.inf).astype(np.float32)[:, None]
    for part in parts(rows):
        centered = centered_by(rows[:, part], middle / 2)
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            centered /= np.maximum(divisor, np.float32(SMALLEST))
            _to_levels(centered, method, steps, flat=np.isinf(divisor))
        is_odd = not np.isfinite(centered).all()
        np.clip(centered, 0, steps - 1, out=centered)
        if is_odd:
            centered[np.isnan(centered)] = 0
            values = halved(rows[:, part])
            centered[np.isnan(values) | (values == -np.inf)] = 0
            centered[values == np.inf] = steps - 1
        np.copyto(levels[:, part], centered, casting="unsafe")  # truncates


def _to_levels(centered: NDArray[np.float32], method: Normalization, steps: int, flat: NDArray[np.bool_]) -> None:
    """Turn values from -1 to 1 into levels from 0 to `steps`, in place."""
    if method == "log":
        centered += 1
        centered *= np.float32(_BEND / 2)
        np.maximum(centered, 0, out=centered)
        np.log1p(centered, out=centered)
        centered *= np.float32(steps / math.log1p(_BEND))
        np.copyto(centered, np.float32(steps / 2), where=flat & np.isfinite(centered))
        return
    centered *= np.float32(steps / 2)
    centered += np.float32(steps / 2)
