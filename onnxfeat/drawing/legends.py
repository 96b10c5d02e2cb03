"""Say in words what a picture shows: its channels and their order, what its colors stand for, what has none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from onnxfeat.drawing.arrangements import Arrangement
from onnxfeat.drawing.captions import remarks, shape_words
from onnxfeat.drawing.channel_statistics import ChannelStatistics
from onnxfeat.drawing.colormaps import INFINITE, NAN
from onnxfeat.drawing.ordering import ChannelOrder
from onnxfeat.drawing.scales import DEVIATIONS, Scale
from onnxfeat.drawing.styles import Style
from onnxfeat.records import Layer

STROKE = -1
"""Stands for the stroke through channels without contrast where a color is wanted."""

_ORDERS = {
    "magnitude": "by mean absolute value, greatest first",
    "variance": "by variance, greatest first",
    "similarity": "by similarity",
}
_SHARES = {"channel": "of each channel", "layer": "of the layer", "batch": "of the layer in all pictures"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Legend:
    """What explains the colors of a picture.

    Attributes:
        ends: What the lower end, the middle and the upper end of the colors stand for; empty where there is no bar.
        note: How that was found, in words.
        marks: Color in the palette, or `STROKE`, and what it stands for.
    """

    ends: tuple[str, ...]
    note: str
    marks: tuple[tuple[int, str], ...] = ()


def legend_of(found: Arrangement, style: Style, counted: ChannelStatistics | None = None) -> Legend:
    """Return what explains the colors of the channels of a layer.

    Args:
        found: What is drawn.
        style: How.
        counted: What is known of the layer's own channels, where these were reduced to one; None counts what is drawn.
    """
    shown = sorted(set(found.channels.tolist()))
    statistics = found.statistics if counted is None else counted
    values = shown if counted is None else slice(None)
    ends: tuple[str, ...] = ends_of(found.scale.of_channels(found.channels[:1]), alone=len(shown) == 1)
    if found.facts.get("numbers") and style.scale_over == "channel":
        style = replace(style, scale_over="layer")  # each channel is one number, which has no scale
    note = scale_note(style)
    if found.empty.all():
        ends, note = (), "no value is finite"
    return Legend(
        ends=ends,
        note=note,
        marks=marks_of(
            nan=int(statistics.nan[0, values].sum()),
            infinite=int(statistics.infinite[0, values].sum()),
            constant=int(statistics.constant.sum()),
            dead=int(statistics.dead.sum()),
        ),
    )


def counts_of(found: ChannelStatistics) -> dict[str, int]:
    """Return how many values are not finite, and how many channels have no contrast, by the words of `marks_of`."""
    counts = {"nan": found.nan, "infinite": found.infinite, "constant": found.constant, "dead": found.dead}
    return {name: int(count.sum()) for name, count in counts.items()}


def marks_of(*, nan: int, infinite: int, constant: int, dead: int) -> tuple[tuple[int, str], ...]:
    """Return what else there is to see, and how often: values without a level, channels without contrast."""
    zero = f", {dead:,} of them 0 everywhere" if dead else ""
    counted = ((NAN, nan, "NaN"), (INFINITE, infinite, "infinite"), (STROKE, constant, f"constant{zero}"))
    return tuple((color, f"{count:,} {words}") for color, count, words in counted if count)


def ends_of(scale: Scale, *, alone: bool = False) -> tuple[str, str, str]:
    """Return the lower end, middle and upper end of a scale: values, or words where each channel has its own.

    Args:
        scale: The scale, of one channel where each has its own.
        alone: Whether that is the only channel of the picture.

    Example:
        >>> import numpy as np
        >>> ends_of(Scale(method="minmax", over="layer", middle=np.array([[1.5]]), reach=np.array([[1.5]])))
        ('0', '1.5', '3')
    """
    if scale.over == "channel" and not alone:
        return {
            "zscore": (f"-{DEVIATIONS:g} deviations", "mean", f"+{DEVIATIONS:g} deviations"),
            "symmetric": ("-greatest", "0", "+greatest"),
        }.get(scale.method, ("lower end", "", "upper end"))
    low, middle, high = scale.values_at([0.0, 0.5, 1.0])[0, 0]
    span = high - low
    least = span / 1000  # a quarter of a color: less is 0
    low, middle, high = (value if abs(value) >= least else 0.0 for value in (low, middle, high))
    return number(low, span), number(middle, span), number(high, span)


def number(value: float, span: float = 0.0) -> str:
    """Return a number in few letters, which tell it apart from others that are a thousandth of `span` away.

    Example:
        >>> number(0.00012345), number(-1234.5), number(1000000.12, 0.5)
        ('0.000123', '-1.23e+03', '1000000.12')
    """
    parts = abs(value) / span if span > 0 else 0
    digits = min(9, 3 + max(0, math.ceil(math.log10(parts)))) if parts > 1 else 3
    return f"{value + 0.0:.{digits}g}"


def scale_note(style: Style) -> str:
    """Return in words how the ends of a scale were found.

    Example:
        >>> scale_note(Style(normalize="minmax", scale_over="layer"))
        'minmax: least to greatest value of the layer'
    """
    if style.reduce == "pca":
        return "pca: the mean is mid-gray, full color 2 standard deviations along a component"
    if style.overlay:
        pictures = "all pictures" if style.scale_over == "batch" else "each picture"
        return f"overlay: from 0, or minus the greatest absolute value, to the greatest of {pictures}"
    shares = _SHARES[style.scale_over]
    low, high = style.percentiles
    return {
        "zscore": f"zscore: mean and standard deviation {shares}",
        "minmax": f"minmax: least to greatest value {shares}",
        "percentile": f"percentile: {low:g} % to {high:g} % of the values {shares}",
        "symmetric": f"symmetric: to the greatest absolute value {shares}, 0 in the middle",
        "log": f"log: least to greatest value {shares}, small ones spread (mu-law)",
    }[style.normalize]


def words_of(layer: Layer, found: Arrangement, style: Style) -> list[str]:
    """Return in words what a picture shows of a layer: operator, shape, order, and what was left out."""
    return [operator_of(layer), shape_words(found.facts), *order_words(found.order, style), *remarks(found.facts)]


def operator_of(layer: Layer) -> str:
    """Return what a layer does: `Conv and Relu`."""
    return layer.op_type if layer.activation is None else f"{layer.op_type} and {layer.activation}"


def order_words(order: ChannelOrder, style: Style) -> Sequence[str]:
    """Return in words which channels are drawn and in which order, where these are not all as the layer has them."""
    words = []
    if order.beyond_top or style.channels is not None:
        one = len(order.channels) == 1
        words.append(f"channel {order.channels[0]}" if one else f"{len(order.channels):,} of them")
    if style.order != "index" and len(order.channels) > 1:
        words.append(_ORDERS[style.order])
    if style.dead == "last" and order.dead + order.constant:
        words.append("constant ones last")
    if style.dead == "omit" and order.dead + order.constant == order.total:
        words.append("all of them constant, so none is left out")
    if order.omitted:
        words.append(f"{order.omitted:,} constant ones left out")
    return words
