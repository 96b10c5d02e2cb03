"""Measure a whole layer: mean, share of zeros, and how its values are spread."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxfeat.drawing.channel_statistics import ChannelStatistics, blocks, halved, pooled
from onnxfeat.report.contents import Histogram, LayerStatistics

BINS = 60
_TINY = 1e-30  # of ranges: float32 has no number as great as what they are to be multiplied by


def layer_statistics(
    array: NDArray[np.float32], known: ChannelStatistics, saturated: float | None = None
) -> LayerStatistics:
    """Return what is known of all values of a layer for one photograph.

    Args:
        array: Values, (C, *spatial).
        known: What `statistics` gave for `array[None]`.
        saturated: Share of values at an end of a quantized type.

    Example:
        >>> from onnxfeat.drawing.channel_statistics import statistics
        >>> array = np.array([[[0.0, 1.0, 3.0, 0.0]]], np.float32)
        >>> found = layer_statistics(array, statistics(array[None]))
        >>> found.zeros, found.mean, found.histogram.counts[20], found.histogram.counts[-1]
        (0.5, 1.0, 1, 1)
    """
    whole = pooled(known, math.prod(array.shape[1:]), axis=1)
    zeros = array.size - int(np.count_nonzero(array))
    lowest, highest = float(whole.lowest[0, 0]), float(whole.highest[0, 0])
    return LayerStatistics(
        finite=array.size - int(whole.not_finite[0, 0]),
        mean=float(whole.mean[0, 0]),
        deviation=float(whole.deviation[0, 0]),
        lowest=lowest,
        highest=highest,
        zeros=zeros / array.size,
        nan=int(whole.nan[0, 0]),
        infinite=int(whole.infinite[0, 0]),
        saturated=saturated,
        histogram=_histogram(array, lowest, highest, zeros, finite=not whole.not_finite[0, 0]),
    )


def _histogram(array: NDArray[np.float32], low: float, high: float, zeros: int, *, finite: bool) -> Histogram:
    """Count the finite values other than 0 in equally wide bins."""
    if low == high:
        count = array.size - zeros if finite else int(np.isfinite(array).sum()) - zeros
        return Histogram(counts=(count,) if count else (), low=low, high=high)
    counts = np.zeros(BINS, np.int64)
    for _, rows in blocks(array[None]):
        values = rows if finite else rows[np.isfinite(rows)]
        counts += np.bincount(_bins(values, low, high).ravel(), minlength=BINS)
    if zeros:
        counts[_bins(np.zeros(1, np.float32), low, high)[0]] -= zeros
    return Histogram(counts=tuple(counts.tolist()), low=low, high=high)


def _bins(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """Return the bin of each finite value; a value at the upper end belongs to the last."""
    places: NDArray[Any]
    if high - low < _TINY:
        places = values.astype(np.float64)
        places -= low
        places *= BINS / (high - low)
    else:  # halved, as 3e38 less -3e38 is beyond float32
        places = halved(values)
        places -= np.float32(low / 2)
        places *= np.float32(BINS / (high / 2 - low / 2))
    np.clip(places, 0, BINS - 1, out=places)
    return places.astype(np.uint8)
