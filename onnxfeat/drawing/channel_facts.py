"""Tell what is known of the channels of a picture as JSON data, for `run.json`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxfeat.drawing.arrangements import Arrangement
from onnxfeat.drawing.channel_statistics import ChannelStatistics
from onnxfeat.records import FeatureMap

_DIGITS = 9  # of values: all that float32 has, as they may lie close together far from 0


def channel_facts(found: Arrangement, counted: ChannelStatistics | None = None) -> dict[str, Any]:
    """Return what `run.json` says of the channels: which have no contrast, and what turns levels into values.

    Args:
        found: What is drawn.
        counted: What is known of the layer's own channels, where these were reduced to one; None counts what is drawn.
    """
    statistics, scale = found.statistics, found.scale
    in_order = np.array_equal(found.order.channels, np.arange(found.order.total))
    chosen = {} if in_order else {"channel_order": found.order.channels.tolist()}
    return {
        **chosen,
        **constancy_facts(statistics if counted is None else counted),
        "mean": rounded(statistics.mean[0], _DIGITS),
        "deviation": rounded(statistics.deviation[0]),
        "scale": {"low": rounded(scale.low[0], _DIGITS), "high": rounded(scale.high[0], _DIGITS)},
    }


def constancy_facts(found: ChannelStatistics) -> dict[str, Any]:
    """Return which channels of one picture have no contrast, and how many values are not finite."""
    return {
        "constant_channels": np.nonzero(found.constant[0])[0].tolist(),
        "dead_channels": np.nonzero(found.dead[0])[0].tolist(),
        "nan_values": int(found.nan.sum()),
        "infinite_values": int(found.infinite.sum()),
        "not_finite_values": int(found.not_finite.sum()),
    }


def saturation_facts(feature_map: FeatureMap) -> dict[str, float]:
    """Return the share of values that were cut off where a layer was quantized; nothing of other layers."""
    return {} if feature_map.saturated is None else {"saturated": round(feature_map.saturated, 6)}


def rounded(numbers_: NDArray[np.floating[Any]], digits: int = 6) -> list[float]:
    """Return numbers with so many significant digits.

    Example:
        >>> rounded(np.array([0.0, 1234.56789, -1e-30]))
        [0.0, 1234.57, -1e-30]
    """
    values = np.asarray(numbers_, np.float64)
    size = np.floor(np.log10(np.abs(values), where=values != 0, out=np.zeros(values.shape)))
    exponent = np.clip(digits - 1 - size, -300, 300)
    # A whole number divided by a power of ten is the float with few digits; multiplied by 1e-5 it is not.
    whole = np.round(values * 10.0**exponent)
    found: list[float] = np.where(exponent >= 0, whole / 10.0**exponent, whole * 10.0**-exponent).tolist()
    return found
