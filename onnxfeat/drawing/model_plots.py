"""Draw all layers of a model in one matplotlib figure, a cell or a row for each."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from onnxfeat.drawing.legends import ends_of, number
from onnxfeat.drawing.norms import set_limits
from onnxfeat.drawing.panels import Cells, Panel, cut, panel_of, values_of
from onnxfeat.drawing.scales import Scale
from onnxfeat.drawing.styles import Style
from onnxfeat.drawing.subjects import why_not_drawable
from onnxfeat.errors import PictureError
from onnxfeat.records import FeatureMap, Features

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, Normalize
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

# Inches.
_WIDTH, _MARGIN, _GAP = 20.0, 0.25, 0.25
_HEAD, _FOOT = 0.6, 0.75  # for the model's name, and for the legend
_TITLE = 0.7  # above each cell: a line of 10 points, and two of 8
_BAR_WIDTH, _BAR_HEIGHT, _TICK = 3.0, 0.12, 0.4  # of the color bar, and what its labels need beside it
_POINTS = 72.0  # in an inch
_LETTER = 0.62  # width of a letter for its height: more than the mean of DejaVu Sans

_MOST_CELLS, _MOST_ROW = 64, 20  # channels of a layer in a cell, in a row: so many are still to be seen
_FEWEST_COLUMNS = 3
_ROWS_PER_COLUMN = 4  # that a figure has at most, before it gets another column
_LEFT_OUT_TOLD = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """Where the cells are, in inches.

    Attributes:
        columns: How many are in a row.
        rows: How many rows.
        width: Of a cell.
        height: Of a cell, without its title.
    """

    columns: int
    rows: int
    width: float
    height: float

    @property
    def total(self) -> float:
        """Height of the figure."""
        return _HEAD + self.rows * (_TITLE + self.height + _GAP) + _FOOT

    def place(self, number_: int) -> tuple[float, float, float, float]:
        """Return left, bottom, width and height of a cell as parts of the figure."""
        row, column = divmod(number_, self.columns)
        left = _MARGIN + column * (self.width + _GAP)
        top = _HEAD + row * (_TITLE + self.height + _GAP) + _TITLE
        return left / _WIDTH, 1 - (top + self.height) / self.total, self.width / _WIDTH, self.height / self.total

    def letters(self, points: float) -> int:
        """Return how many letters of that size fit a line above a cell."""
        return max(8, int(self.width * _POINTS / (points * _LETTER)))


def draw_model(
    features: Features,
    index: int,
    style: Style,
    cmap: str | Colormap | None = None,
    norm: Normalize | None = None,
) -> Figure:
    """Draw all layers in a new figure that pyplot makes, 20 inches wide: a cell for each, in order of execution.

    A cell has the layer's name, what is shown of it, and its scale. It shows 64 channels at most, a row (with
    `style.arrange="belt"`) 20, unless `style.top` says otherwise. Layers that can't be drawn are named at the end.

    Args:
        features: Maps of the layers.
        index: Which picture of the batch.
        style: How.
        cmap: A matplotlib colormap or the name of one; None is that of the style.
        norm: One matplotlib norm for the values of all layers; limits that it does not have become those of all.

    Raises:
        PictureError: No layer can be drawn, or a choice is wrong.

    Example:
        >>> from onnxfeat import FeatureExtractor
        >>> extractor = FeatureExtractor("models/shapes_reference_layers.onnx", provider="cpu")
        >>> figure = draw_model(extractor("models/pictures/chelsea.png"), 0, Style())
        >>> [ax.get_title(loc="left") for ax in figure.axes][:2]
        ['conv2d', 'max_pooling2d']
        >>> import matplotlib.pyplot
        >>> matplotlib.pyplot.close(figure)
    """
    from matplotlib import pyplot

    as_rows = style.arrange == "belt"
    panels = {}
    left_out = dict(features.left_out)
    for name, feature_map in features.items():
        reason = why_not_drawable(feature_map)
        if reason:
            left_out[name] = reason
        else:
            panels[name] = panel_of(feature_map, index, _cell_style(feature_map, style), cmap, norm)
    if not panels:
        raise PictureError(f"there is no layer to draw{_listed(left_out)}: choose other layers")
    set_limits(norm, values_of(list(panels.values())))
    layout = _layout(len(panels), as_rows)
    figure = pyplot.figure(figsize=(_WIDTH, layout.total))
    images = [
        _draw(panel, figure.add_axes(layout.place(at)), layout, style) for at, panel in enumerate(panels.values())
    ]
    if style.frame:
        _head(figure, features, index, layout)
        _foot(figure, list(panels.values()), images, left_out, layout, style)
    return figure


def _cell_style(feature_map: FeatureMap, style: Style) -> Style:
    """Return the style for one layer: with as many channels as are still to be seen."""
    arrange = style.arrange if style.arrange in ("belt", "channel") else "grid"
    most = _MOST_ROW if arrange == "belt" else _MOST_CELLS
    top = style.top
    # A channel is the one of the style; what is one already, or becomes one, is not limited.
    is_one = arrange == "channel" or style.reduce is not None
    if top is None and not is_one and style.channels is None and feature_map.channels > most:
        top = most
    return replace(style, arrange=arrange, top=top, aspect=1.0 if style.aspect == Style().aspect else style.aspect)


def _layout(count: int, as_rows: bool) -> _Layout:
    if as_rows:
        return _Layout(columns=1, rows=count, width=_WIDTH - 2 * _MARGIN, height=_WIDTH / _MOST_ROW)
    columns = max(_FEWEST_COLUMNS, math.ceil(math.sqrt(count / _ROWS_PER_COLUMN)))
    width = (_WIDTH - 2 * _MARGIN + _GAP) / columns - _GAP
    return _Layout(columns=columns, rows=math.ceil(count / columns), width=width, height=width)


def _draw(panel: Panel, ax: Axes, layout: _Layout, style: Style) -> AxesImage | None:
    """Draw a layer in its cell; return the image that a colorbar is for."""
    ax.grid(False)
    image = panel.draw(ax)
    if isinstance(panel, Cells) and panel.facts["arrangement"] != "strip":
        ax.set_aspect("equal", anchor="NW")
    ax.set_xticks([])
    ax.set_yticks([])
    if isinstance(panel, Cells):
        for spine in ax.spines.values():
            spine.set_visible(False)
    if style.frame:
        words = list(panel.words)
        if not panel.mark(ax) and panel.listed:
            words.append(panel.listed)
        if image is not None and panel.in_units and panel.ends:
            low, high = image.get_clim()
            words.append(f"{number(low or 0)} to {number(high or 0)}")
        _title(ax, panel.name, ", ".join(words), layout)
    return image


def _title(ax: Axes, name: str, words: str, layout: _Layout) -> None:
    """Write the layer's name above its cell, and what is shown of it in two lines at most."""
    small = textwrap.wrap(words, layout.letters(8))
    if len(small) > 2:
        small = [small[0], f"{small[1][: layout.letters(8) - 1]}\u2026"]
    ax.set_title(cut(name, layout.letters(10)), loc="left", fontsize=10, pad=27, parse_math=False)
    ax.annotate(
        "\n".join(small),
        (0, 1),
        xytext=(0, 25),
        xycoords="axes fraction",
        textcoords="offset points",
        fontsize=8,
        va="top",
        parse_math=False,
    )


def _head(figure: Figure, features: Features, index: int, layout: _Layout) -> None:
    """Write above all cells of which model and picture they are."""
    picture = f", {features.pictures[index]}" if features.pictures else ""
    text = cut(f"{features.model}{picture}", 150)
    place = (_MARGIN / _WIDTH, 1 - _MARGIN / layout.total)
    figure.text(*place, text, fontsize=14, va="top", parse_math=False)


def _foot(
    figure: Figure,
    panels: Sequence[Panel],
    images: Sequence[AxesImage | None],
    left_out: Mapping[str, str],
    layout: _Layout,
    style: Style,
) -> None:
    """Draw below all cells what the colors stand for, and name the layers that are not there."""
    notes = list(dict.fromkeys(panel.note for panel in panels if panel.note))
    text = f"Colors: {notes[0]}. " if notes else ""
    text += f"Not drawn{_listed(left_out)}." if left_out else ""
    left = _MARGIN + _TICK
    found = [image for image in images if image is not None]
    if found:
        place = (left / _WIDTH, 0.5 / layout.total, _BAR_WIDTH / _WIDTH, _BAR_HEIGHT / layout.total)
        _bar(figure.add_axes(place), found[0], panels, style)
        left += _BAR_WIDTH + 2 * _TICK
    letters = int((_WIDTH - left) * _POINTS / (8 * _LETTER))
    lines = "\n".join(textwrap.wrap(text, letters)[:3])
    figure.text(left / _WIDTH, 0.62 / layout.total, lines, fontsize=8, va="top", parse_math=False)


def _bar(ax: Axes, image: AxesImage, panels: Sequence[Panel], style: Style) -> None:
    """Draw the colors from end to end, with values where these are the same in all cells, else in words."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    is_shared = not any(panel.ends for panel in panels)  # there is one norm, the caller's
    colors = image if is_shared else ScalarMappable(Normalize(0, 1), image.cmap)
    bar = ax.figure.colorbar(colors, cax=ax, orientation="horizontal")
    ax.tick_params(labelsize=8)
    if not is_shared:
        nothing = np.zeros((1, 1))
        words = Scale(method=style.normalize, over="channel", middle=nothing, reach=nothing)
        bar.set_ticks([0, 0.5, 1], labels=list(ends_of(words)))


def _listed(left_out: Mapping[str, str]) -> str:
    """Return layers and why they can't be drawn, the first few."""
    some = "; ".join(f"{name!r}: {reason}" for name, reason in list(left_out.items())[:_LEFT_OUT_TOLD])
    more = f"; and {len(left_out) - _LEFT_OUT_TOLD} more" if len(left_out) > _LEFT_OUT_TOLD else ""
    return f" ({some}{more})" if left_out else ""
