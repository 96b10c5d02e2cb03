"""Count values so finely that their percentiles can be told, in memory that does not grow with their number."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# The upper 16 of a float32's 32 bits: 8 of its significant digits, values that share them differ by 0.8 % at most.
_BINS = 1 << 16


class Histogram:
    """Counts of finite values, in bins as wide as 1/128 of the values in them.

    Example:
        >>> histogram = Histogram()
        >>> histogram.add(np.arange(1001.0))
        >>> round(histogram.percentile(99))
        990
    """

    def __init__(self) -> None:
        self._counts = np.zeros(_BINS, np.int64)

    def add(self, values: NDArray[Any]) -> None:
        """Count more values, of any shape; NaN and infinite ones are left out."""
        with np.errstate(over="ignore"):
            flat = np.asarray(values, np.float32).ravel()
        bins = _ordered_bits(flat[np.isfinite(flat)]) >> np.uint32(16)
        self._counts += np.bincount(bins, minlength=_BINS)

    def percentile(self, percent: float) -> float:
        """Return a percentile, right to 0.8 % of its value; 0 where nothing was counted."""
        total = np.cumsum(self._counts)
        if not total[-1]:
            return 0.0
        rank = percent / 100 * (total[-1] - 1)
        place = int(np.searchsorted(total, rank, side="right"))
        part = (rank - (total[place] - self._counts[place]) + 0.5) / self._counts[place]
        return float(_from_ordered_bits((place << 16) + int(part * 0xFFFF)))


def _ordered_bits(values: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Return the bits of float32 numbers such that their order as integers is that of the numbers (IEEE 754)."""
    bits = values.view(np.uint32)
    ordered: NDArray[np.uint32] = np.where(bits >> np.uint32(31), ~bits, bits | np.uint32(1 << 31))
    return ordered


def _from_ordered_bits(ordered: int) -> np.float32:
    bits = ordered ^ (1 << 31) if ordered >> 31 else ~ordered & 0xFFFFFFFF
    return np.float32(np.uint32(bits).view(np.float32))
