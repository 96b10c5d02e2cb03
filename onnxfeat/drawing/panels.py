"""Draw one layer in matplotlib axes: its channels as an image, or as lines.

All that can be refused is refused when a panel is made, before there is a figure.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onnxfeat.drawing.arrangements import Arrangement, arrange
from onnxfeat.drawing.captions import remarks
from onnxfeat.drawing.cell_marks import CellMarks, cell_marks
from onnxfeat.drawing.color_pictures import components_of
from onnxfeat.drawing.colormaps import INFINITE, INFINITE_COLOR, NAN, NAN_COLOR
from onnxfeat.drawing.legends import ends_of, legend_of, number, order_words, scale_note, words_of
from onnxfeat.drawing.norms import norm_name, norm_of_scale
from onnxfeat.drawing.painting import as_drawn
from onnxfeat.drawing.pictures import picture_of, tile
from onnxfeat.drawing.styles import Style
from onnxfeat.drawing.subjects import subject_of
from onnxfeat.drawing.tilings import enlarged, tiling_of
from onnxfeat.errors import PictureError
from onnxfeat.records import FeatureMap

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, Normalize
    from matplotlib.image import AxesImage

_MAX_LINES = 16  # more lines than that can't be told apart
_LINE_DISTANCE = 4.0  # standard deviations between the zeros of two lines
_LARGE = 1e38  # the difference of two values of float32 below that is one, too
_MOST_LISTED = 24  # channels that a title names
_COLOR_WORDS = {NAN: " in magenta", INFINITE: " in cyan"}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Panel(ABC):
    """One layer, ready to be drawn.

    Attributes:
        name: The layer's name, and what was made of its channels.
        details: What can't be seen: how its channels lie, which they are, what of them is odd.
        listed: The channels in their order, `channels 17, 30, 5`; empty where that is the order of the layer.
        words: What is shown of the layer, for where there is room.
        note: What the colors stand for; empty where they stand for nothing.
        ends: What both ends and the middle of the colors stand for; empty where that is not the same for all of them.
        facts: Those of the `Arrangement`.
        drawn: How many channels are drawn.
        shape: Rows and columns of the picture.
    """

    name: str
    details: tuple[str, ...]
    listed: str
    words: tuple[str, ...]
    note: str
    ends: tuple[str, ...]
    facts: Mapping[str, Any]
    drawn: int
    shape: tuple[int, int]

    @abstractmethod
    def draw(self, ax: Axes) -> AxesImage | None:
        """Draw it in axes, without text; return the image that a colorbar is for, or None where there is none."""

    @abstractmethod
    def mark(self, ax: Axes) -> bool:
        """Mark its channels in axes where it was drawn; return whether each has its number now."""

    @property
    def in_units(self) -> bool:
        """Whether the image holds values in the map's own units, and a colorbar says so."""
        return False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cells(Panel):
    """Channels as an image.

    Attributes:
        values: What is drawn: levels, values in the map's own units, or red, green and blue.
        norm: Which part of the colormap values take; None where they are colors.
        cmap: The colormap.
        units: Whether they are in the map's own units.
        marks: Colors of what is NaN or infinite, `uint8` (rows, columns, 4), transparent elsewhere; None where all is
            finite.
        places: Where the channels lie; None where these are no channels.
    """

    values: NDArray[Any]
    norm: Normalize | None
    cmap: Colormap
    units: bool
    marks: NDArray[np.uint8] | None
    places: CellMarks | None

    @property
    def in_units(self) -> bool:
        """Whether the image holds values in the map's own units, and a colorbar says so."""
        return self.units

    def draw(self, ax: Axes) -> AxesImage | None:
        """Draw the image, and over it what is not finite."""
        settings: dict[str, Any] = {
            "aspect": "equal" if self.facts["arrangement"] == "channel" else "auto",
            "interpolation": _interpolation(ax, self.shape),
            "extent": None if self.places is None else self.places.extent,
            "origin": "upper",
        }
        image = ax.imshow(self.values, cmap=self.cmap, norm=self.norm, **settings)
        if self.marks is not None:
            ax.imshow(self.marks, **settings)
        return None if self.norm is None else image

    def mark(self, ax: Axes) -> bool:
        """Draw lines between channels, strokes through those without contrast, and their numbers where these fit."""
        return self.places is not None and self.places.draw(ax)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lines(Panel):
    """Channels with one spatial axis as lines, each in units of its own standard deviation.

    Attributes:
        lines: Their values, NaN where there is a gap, (K, cells).
        channels: Index of each, (K,).
        cmap: The colormap that gives their colors.
    """

    lines: NDArray[np.float64]
    channels: NDArray[np.intp]
    cmap: Colormap

    def draw(self, ax: Axes) -> AxesImage | None:
        """Draw the lines below each other."""
        count = len(self.lines)
        for place, (line, color) in enumerate(zip(self.lines, self.cmap(np.linspace(0, 0.85, count)), strict=True)):
            ax.plot(line - _LINE_DISTANCE * place, color=color, linewidth=1)
        ax.margins(x=0)
        return None

    def mark(self, ax: Axes) -> bool:
        """Write the number of each channel beside its line."""
        ax.set_yticks(-_LINE_DISTANCE * np.arange(len(self.lines)), [str(channel) for channel in self.channels])
        return True


def panel_of(
    feature_map: FeatureMap,
    index: int,
    style: Style,
    cmap: str | Colormap | None = None,
    norm: Normalize | None = None,
) -> Panel:
    """Return what of a layer is drawn for one picture of the batch.

    Args:
        feature_map: Maps of the layer.
        index: Which picture of the batch.
        style: How.
        cmap: Name of a matplotlib colormap, or one; None is `style.colors`.
        norm: What maps the raw values to colors; None does it as the style says.

    Raises:
        PictureError: The map can't be drawn, a choice is unknown, or two of them contradict each other.

    Example:
        >>> from onnxfeat.records import Layer
        >>> layer = Layer(name="conv2d", kind="conv", op_type="Conv", value="y", raw_value="y")
        >>> maps = FeatureMap(layer=layer, array=np.zeros((1, 2, 3, 4), np.float32))
        >>> panel_of(maps, 0, Style()).details
        ('2 constant, 2 of them 0 everywhere',)
    """
    colors = _colormap(style.colors if cmap is None else cmap)
    style = replace(style, frame=False)
    if style.reduce == "pca":
        if cmap is not None or norm is not None:
            raise PictureError("the three components of pca are red, green and blue: leave cmap and norm out")
        return _components(feature_map, index, style, colors)
    feature_map, style, name, _ = as_drawn(feature_map, style)
    found = arrange(feature_map, index, style=style)
    if norm is None and _as_lines(found, style):
        return _lines(feature_map, index, found, style, name, colors)
    return _cells(feature_map, index, found, style, name, colors, norm)


def _cells(
    feature_map: FeatureMap,
    index: int,
    found: Arrangement,
    style: Style,
    name: str,
    cmap: Colormap,
    norm: Normalize | None,
) -> Cells:
    alone = len(set(found.channels.tolist())) == 1
    units = norm is not None or found.scale.over != "channel" or (alone and style.arrange == "channel")
    note = scale_note(style)
    ends: tuple[str, ...] = ends_of(found.scale.of_channels(found.channels[:1]), alone=alone)
    if norm is not None:
        note, ends = f"the values by {norm_name(norm)}", ()
    values: NDArray[Any] = _raw_values(feature_map, index, found, style) if units else _levels(found)
    return Cells(
        name=name,
        details=_details(found, style, as_lines=False),
        listed=_listed(found),
        words=(*words_of(feature_map.layer, found, style), *_counts(found, style)),
        note=note,
        ends=ends,
        facts=found.facts,
        drawn=found.columns if found.facts["arrangement"] == "belt" else len(found.channels),
        shape=(values.shape[0], values.shape[1]),
        values=values,
        norm=norm_of_scale(found.scale.of_channels(found.channels[:1]), units=units) if norm is None else norm,
        cmap=cmap,
        units=units,
        marks=_marks(found),
        places=cell_marks(found),
    )


def _raw_values(feature_map: FeatureMap, index: int, found: Arrangement, style: Style) -> NDArray[Any]:
    """Return values as they lie in the picture, masked where none is finite and between the channels."""
    one = picture_of(subject_of(feature_map).array, index)[0]
    plan = tiling_of(one.shape[1:], len(found.order.channels), style)
    some = one[found.order.channels[: plan.drawn]]
    if max(-found.statistics.lowest.min(), found.statistics.highest.max()) > _LARGE:
        some = some.astype(np.float64)  # matplotlib subtracts one end from the other
    if some.ndim == 4:
        some = some[:, list(plan.slices)].reshape(-1, *some.shape[2:])
    cells = _means(some.reshape(len(some), -1, some.shape[-1]), plan.shrink)
    cells = cells.repeat(plan.zoom[0], axis=1).repeat(plan.zoom[1], axis=2)
    count, height, width = cells.shape
    rows = math.ceil(count / plan.columns)
    spots = np.full((rows * plan.columns, height + plan.gap, width + plan.gap), np.nan, cells.dtype)
    spots[:count, :height, :width] = cells
    sheet = spots.reshape(rows, plan.columns, *spots.shape[1:]).transpose(0, 2, 1, 3)
    whole = sheet.reshape(rows * spots.shape[1], plan.columns * spots.shape[2])
    masked: NDArray[Any] = np.ma.masked_invalid(whole[: len(whole) - plan.gap, : whole.shape[1] - plan.gap], copy=False)
    return masked


def _levels(found: Arrangement) -> NDArray[np.uint8]:
    """Return levels as they lie in the picture, masked between the channels: there is no value."""
    if found.gap == 0:
        return found.levels
    is_cell = tile(enlarged(np.ones_like(found.cells), found.zoom), found.columns, found.gap)
    masked: NDArray[np.uint8] = np.ma.array(found.levels, mask=is_cell == 0)
    return masked


def _means(cells: NDArray[Any], shrink: tuple[int, int]) -> NDArray[Any]:
    """Return the mean of each block of cells (K, H, W)."""
    for axis, step in enumerate(shrink, start=1):
        if step > 1:
            starts = np.arange(0, cells.shape[axis], step)
            counts = np.diff(starts, append=cells.shape[axis]).astype(np.float32)
            sums = np.add.reduceat(cells, starts, axis=axis)
            cells = sums / (counts[:, None] if axis == 1 else counts)
    return cells


def _marks(found: Arrangement) -> NDArray[np.uint8] | None:
    """Return the colors of what is NaN or infinite, over the picture: colormaps have one color for both at most."""
    if found.nan is None and found.infinite is None:
        return None
    colors = np.zeros((*found.levels.shape, 4), np.uint8)
    for mask, color in ((found.nan, NAN_COLOR), (found.infinite, INFINITE_COLOR)):
        if mask is not None:
            picture = tile(enlarged(mask.view(np.uint8), found.zoom), found.columns, found.gap)
            colors[picture > 0] = (*color, 255)
    return colors


def _interpolation(ax: Axes, shape: tuple[int, int]) -> str:
    """Return how an image is fitted to its axes: no pixel is blurred, and none is dropped where several share a dot."""
    return "none" if shape[0] <= ax.bbox.height and shape[1] <= ax.bbox.width else "auto"


def _components(feature_map: FeatureMap, index: int, style: Style, cmap: Colormap) -> Cells:
    """Return the first three principal components as red, green and blue."""
    found = components_of(feature_map, index, style)
    shares = ", ".join(f"{share:.0%}" for share in found.facts["explained"])
    words = (f"{shares} of the variance", *remarks(found.facts))
    return Cells(
        name=found.title,
        details=words,
        listed="",
        words=words,
        note="red, green, blue: the first three components",
        ends=(),
        facts={**found.facts, "arrangement": "channel"},
        drawn=1,
        shape=(found.colors.shape[0], found.colors.shape[1]),
        values=found.colors,
        norm=None,
        cmap=cmap,
        units=False,
        marks=None,
        places=None,
    )


def _as_lines(found: Arrangement, style: Style) -> bool:
    facts, by_deviation = found.facts, style.normalize == "zscore" and style.scale_over == "channel"
    is_whole = facts["arrangement"] == "strip" and "cells_per_pixel" not in facts
    return by_deviation and is_whole and len(found.channels) <= _MAX_LINES


def _lines(feature_map: FeatureMap, index: int, found: Arrangement, style: Style, name: str, cmap: Colormap) -> Lines:
    statistics, at = found.statistics, found.channels
    values = picture_of(subject_of(feature_map).array, index)[0, at].astype(np.float64)
    values[~np.isfinite(values)] = np.nan  # a gap in the line
    deviation = statistics.deviation[0, at]
    reach = np.where(statistics.constant[0, at] | (deviation == 0), np.inf, deviation)
    return Lines(
        name=name,
        details=_details(found, style, as_lines=True),
        listed=_listed(found),
        words=(*words_of(feature_map.layer, found, style), *_counts(found, style, colored=False)),
        note="",
        ends=(),
        facts=found.facts,
        drawn=len(at),
        shape=found.levels.shape,
        lines=(values - statistics.mean[0, at][:, None]) / reach[:, None],
        channels=at,
        cmap=cmap,
    )


def _details(found: Arrangement, style: Style, *, as_lines: bool) -> tuple[str, ...]:
    """Return in words what can't be seen: how the channels lie, which they are, what of them is odd."""
    facts = found.facts
    count = f"{facts['channels']} channel{'' if facts['channels'] == 1 else 's'}"
    words = [*order_words(found.order, style), *remarks(facts), *_counts(found, style, colored=not as_lines)]
    if as_lines:
        words.insert(0, f"{count}, in units of the standard deviation of each")
    elif facts["arrangement"] == "strip":
        words.insert(0, f"{count}, one a row")
    elif facts["arrangement"] != "belt" and len(set(found.channels.tolist())) > 1:
        words.insert(0, f"{count} in rows of {facts['columns']}")
    return tuple(words)


def _listed(found: Arrangement) -> str:
    """Return which channels are drawn, the first of them, if these are not the first ones of the layer in order."""
    channels = list(dict.fromkeys(found.channels.tolist()))  # slices of a volume repeat theirs
    if len(channels) == 1 or channels == list(range(len(channels))):
        return ""
    more = f" and {len(channels) - _MOST_LISTED:,} more" if len(channels) > _MOST_LISTED else ""
    return f"channels {', '.join(str(channel) for channel in channels[:_MOST_LISTED])}{more}"


def _counts(found: Arrangement, style: Style, *, colored: bool = True) -> list[str]:
    """Return in words how many values are NaN or infinite, and how many channels are constant."""
    marks = legend_of(found, style).marks
    return [f"{words}{_COLOR_WORDS.get(color, '') if colored else ''}" for color, words in marks]


def range_words(panel: Panel, image: AxesImage | None) -> str:
    """Return in words what both ends of the colors stand for, and how that was found; empty where there is no scale."""
    if image is not None and not panel.ends:
        low, high = image.get_clim()
        return f"{number(low or 0)} to {number(high or 0)} ({panel.note})"
    return f"{panel.ends[0]} to {panel.ends[-1]} ({panel.note})" if panel.ends else panel.note


def _colormap(cmap: str | Colormap) -> Colormap:
    import matplotlib
    from matplotlib.colors import Colormap

    if isinstance(cmap, Colormap):
        return cmap
    if cmap not in matplotlib.colormaps:
        raise PictureError(f"matplotlib has no colormap {cmap!r}: `list(matplotlib.colormaps)` names them")
    return matplotlib.colormaps[cmap]


def values_of(panels: Sequence[Panel]) -> list[NDArray[Any]]:
    """Return what the images of panels hold; those of lines have none."""
    return [panel.values for panel in panels if isinstance(panel, Cells)]


def cut(text: str, letters: int) -> str:
    """Return a text of that many letters at most, without its middle.

    Example:
        >>> cut("features.0.conv", 7)
        'fea\u2026onv'
    """
    return text if len(text) <= letters else f"{text[: letters // 2]}\u2026{text[-(letters - letters // 2 - 1) :]}"
