"""Draw feature maps as matplotlib figures."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np

from onnxfeat.drawing.arrangements import Arrangement, arrange, remarks
from onnxfeat.drawing.pictures import MAX_BELT
from onnxfeat.errors import PictureError
from onnxfeat.records import FeatureMap

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH = 20.0  # inches, of the figure in F. Chollet, "Deep Learning with Python", section 5.4.1
_LEAST_HEIGHT = 0.02  # inches: two pixels at 100 dpi; matplotlib can't save a figure of less than one
_MOST_HEIGHT = 40.0  # inches: slices of many channels and few slices are much higher than wide
_LEAST_STRIP_HEIGHT = 5.0  # inches
_MAX_LINES = 16  # more lines than that can't be told apart
_LINE_DISTANCE = 4.0  # standard deviations between the zeros of two lines


def plot(
    feature_map: FeatureMap,
    *,
    index: int = 0,
    ax: Axes | None = None,
    cmap: str = "viridis",
    max_belt: int = MAX_BELT,
) -> Figure:
    """Draw the channels of one layer side by side, titled with the layer's name; return the figure.

    A new figure is 20 inches wide and 20/k high for k channels, at least 0.02. A layer whose belt were wider than
    `max_belt` pixels is drawn as a grid, and the title says so. Gray levels are those of `normalize`, 0..255 from end
    to end of the colormap.

    Maps with one spatial axis are drawn as lines, each in units of its own standard deviation, if there are 16 at most
    and they have `max_belt` cells at most, else as a heat strip; volumes and tokens as `arrangements.arrange` says.

    Args:
        feature_map: The maps.
        index: Which picture of the batch.
        ax: Axes to draw in; None makes a figure with pyplot, to be shown with `pyplot.show()` and closed by the caller.
        cmap: Name of a matplotlib colormap.
        max_belt: Largest width of a belt or strip in pixels.

    Raises:
        PictureError: The map is empty or has more than three spatial axes, `index` is outside the batch, the colormap
            is unknown, or `ax` was removed from its figure.

    Example:
        >>> from onnxfeat import FeatureExtractor
        >>> extractor = FeatureExtractor("models/shapes_reference_layers.onnx", provider="cpu")
        >>> features = extractor("models/pictures/chelsea.png")
        >>> figure = plot(features["conv2d"])
        >>> figure.get_size_inches().tolist()
        [20.0, 2.5]
        >>> import matplotlib.pyplot
        >>> matplotlib.pyplot.close(figure)
    """
    import matplotlib

    if not isinstance(feature_map, FeatureMap):
        raise PictureError(
            f"{type(feature_map).__name__} is no feature map: pass one of a layer, as features['conv2d']"
        )
    if cmap not in matplotlib.colormaps:
        raise PictureError(f"matplotlib has no colormap {cmap!r}: `list(matplotlib.colormaps)` names them")
    arrangement = arrange(feature_map, index, max_belt=max_belt)
    if ax is not None and ax.get_figure() is None:
        raise PictureError("the axes belong to no figure any more: pass axes that were not removed")
    if ax is None:
        from matplotlib import pyplot

        figure = pyplot.figure(figsize=(_WIDTH, _height(arrangement)))
        ax = figure.add_subplot()
    ax.set_title(_title(feature_map, arrangement), parse_math=False)  # a layer's name may hold a dollar sign
    ax.grid(False)
    if _as_lines(arrangement):
        _draw_lines(ax, feature_map, index, arrangement, cmap)
    else:
        extent = _extent(arrangement)
        ax.imshow(arrangement.levels, aspect="auto", cmap=cmap, vmin=0, vmax=255, extent=extent)
    return cast("Figure", ax.get_figure(root=True))


def _as_lines(arrangement: Arrangement) -> bool:
    facts = arrangement.facts
    return bool(facts["arrangement"] == "strip" and facts["channels"] <= _MAX_LINES and "cells_per_pixel" not in facts)


def _height(arrangement: Arrangement) -> float:
    """Return the height of a new figure in inches."""
    rows, columns = arrangement.levels.shape
    kind = arrangement.facts["arrangement"]
    height = _WIDTH / arrangement.facts["channels"] if kind == "belt" else _WIDTH * rows / columns
    least = _LEAST_STRIP_HEIGHT if kind == "strip" else _LEAST_HEIGHT
    return float(min(max(height, least), _MOST_HEIGHT))


def _title(feature_map: FeatureMap, arrangement: Arrangement) -> str:
    """Return the layer's name, and how its channels lie where that can't be seen."""
    facts = arrangement.facts
    count = f"{facts['channels']} channel{'' if facts['channels'] == 1 else 's'}"
    words = remarks(facts)
    if _as_lines(arrangement):
        words.insert(0, f"{count}, in units of the standard deviation of each")
    elif facts["arrangement"] == "strip":
        words.insert(0, f"{count}, one a row")
    elif facts["arrangement"] != "belt":
        words.insert(0, f"{count} in rows of {facts['columns']}")
    return f"{feature_map.name} ({', '.join(words)})" if words else feature_map.name


def _extent(arrangement: Arrangement) -> tuple[float, float, float, float] | None:
    """Return the sides of a strip, so that its axes count cells and channels; None where pixels are to be counted."""
    facts = arrangement.facts
    if facts["arrangement"] != "strip":
        return None
    rows, columns = arrangement.levels.shape
    cells = columns * facts.get("cells_per_pixel", 1) / facts["column_width"]
    return -0.5, cells - 0.5, rows / facts["row_height"] - 0.5, -0.5


def _draw_lines(ax: Axes, feature_map: FeatureMap, index: int, arrangement: Arrangement, cmap: str) -> None:
    """Draw each channel of a map with one spatial axis as a line, in units of its own standard deviation."""
    import matplotlib

    found = arrangement.statistics
    values = feature_map.array[index].astype(np.float64)
    values[~np.isfinite(values)] = np.nan  # a gap in the line
    scale = np.where(found.constant[0] | (found.deviation[0] == 0), np.inf, found.deviation[0])
    lines = (values - found.mean[0][:, None]) / scale[:, None]
    count = len(lines)
    for channel, (line, color) in enumerate(
        zip(lines, matplotlib.colormaps[cmap](np.linspace(0, 0.85, count)), strict=True)
    ):
        ax.plot(line - _LINE_DISTANCE * channel, color=color, linewidth=1)
    ax.set_yticks(-_LINE_DISTANCE * np.arange(count), [str(channel) for channel in range(count)])
    ax.margins(x=0)
