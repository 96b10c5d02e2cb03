"""Count values so finely that their percentiles can be told, in memory that does not grow with their number."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_MOST_BINS = 1 << 17  # 1.5 MB


class Histogram:
    """Counts of finite values as float32: of each value, or where there are too many of bins that grow as they must.

    A bin is all values that share their upper bits. Of maps that take 131,072 different values or fewer the percentiles
    are exact; of others they are off by a bin, and all values together fill half as many bins at least.

    Example:
        >>> histogram = Histogram()
        >>> histogram.add(np.arange(1001.0))
        >>> histogram.percentile(99)
        990.0
    """

    def __init__(self) -> None:
        self._shift = 0  # bits that the values in a bin do not share
        self._bins = np.zeros(0, np.uint32)
        self._counts = np.zeros(0, np.int64)

    def add(self, values: NDArray[Any]) -> None:
        """Count more values, of any shape; NaN and infinite ones are left out."""
        with np.errstate(over="ignore"):
            flat = np.asarray(values, np.float32).ravel()
        bins, counts = np.unique(_ordered_bits(flat[np.isfinite(flat)]) >> np.uint32(self._shift), return_counts=True)
        self._merge(np.concatenate([self._bins, bins]), np.concatenate([self._counts, counts]))
        while len(self._bins) > _MOST_BINS:
            self._shift += 1
            self._merge(self._bins >> np.uint32(1), self._counts)

    def _merge(self, bins: NDArray[np.uint32], counts: NDArray[np.int64]) -> None:
        self._bins, places = np.unique(bins, return_inverse=True)
        self._counts = np.zeros(len(self._bins), np.int64)
        np.add.at(self._counts, places, counts)

    def percentile(self, percent: float) -> float:
        """Return a percentile, between two values in proportion, as `numpy.percentile`; 0 where nothing was counted."""
        total = np.cumsum(self._counts)
        if not len(total):
            return 0.0
        rank = percent / 100 * (total[-1] - 1)
        low, high = (self._value(total, number) for number in (int(np.floor(rank)), int(np.ceil(rank))))
        return float(low + (high - low) * (rank - np.floor(rank)))

    def _value(self, total: NDArray[np.int64], number: int) -> float:
        """Return the value that has so many before it, those of a bin taken as spread evenly."""
        place = int(np.searchsorted(total, number, side="right"))
        part = (number - (total[place] - self._counts[place]) + 0.5) / self._counts[place]
        inside = int(part * (1 << self._shift))
        return float(_from_ordered_bits((int(self._bins[place]) << self._shift) + inside))


def _ordered_bits(values: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Return the bits of float32 numbers such that their order as integers is that of the numbers (IEEE 754)."""
    bits = values.view(np.uint32)
    ordered: NDArray[np.uint32] = np.where(bits >> np.uint32(31), ~bits, bits | np.uint32(1 << 31))
    return ordered


def _from_ordered_bits(ordered: int) -> np.float32:
    bits = ordered ^ (1 << 31) if ordered >> 31 else ~ordered & 0xFFFFFFFF
    return np.float32(np.uint32(bits).view(np.float32))
