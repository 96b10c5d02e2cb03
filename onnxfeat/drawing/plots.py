"""Draw feature maps as matplotlib figures: a layer, a channel, or all layers of a model."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any, overload

from onnxfeat.drawing.model_plots import draw_model
from onnxfeat.drawing.panels import Panel, panel_of, range_words, set_limits
from onnxfeat.drawing.styles import Style, StyleChoices, styled
from onnxfeat.errors import PictureError, quote
from onnxfeat.records import FeatureMap, Features

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, Normalize
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage
    from typing_extensions import Unpack


_WIDTH = 20.0  # inches, of the figure in F. Chollet, "Deep Learning with Python", section 5.4.1
_LEAST_HEIGHT = 0.02  # inches: two pixels at 100 dpi; matplotlib can't save a figure of less than one
_MOST_HEIGHT = 40.0  # inches: slices of many channels and few slices are much higher than wide
_LEAST_STRIP_HEIGHT = 5.0  # inches
_CHANNEL_SIDE, _LEAST_CHANNEL_WIDTH = 8.0, 5.0  # inches: longer side of a figure of one channel; its title needs 5
_LEAST_BARRED = 2.0  # inches: a lower figure has no room for a colorbar
_BAR = 0.2  # inches: width of a colorbar
_TITLE_LETTER, _NOTE_LETTER = 0.11, 0.075  # inches: widths of letters at 12 points and at the 8.3 of `x-small`


@overload
def plot(
    what: FeatureMap,
    *,
    index: int = 0,
    ax: Axes | None = None,
    cmap: str | Colormap | None = None,
    norm: Normalize | None = None,
    channel: int | None = None,
    style: Style | None = None,
    **choices: Unpack[StyleChoices],
) -> Figure: ...


@overload
def plot(
    what: Features,
    *,
    index: int = 0,
    cmap: str | Colormap | None = None,
    norm: Normalize | None = None,
    channel: int | None = None,
    style: Style | None = None,
    **choices: Unpack[StyleChoices],
) -> Figure: ...


def plot(
    what: FeatureMap | Features,
    *,
    index: int = 0,
    ax: Axes | None = None,
    cmap: str | Colormap | None = None,
    norm: Normalize | None = None,
    channel: int | None = None,
    style: Style | None = None,
    **choices: Unpack[StyleChoices],
) -> Figure:
    """Draw a layer, one of its channels, or all layers of a model; return the figure.

    - A layer: its channels side by side, titled with its name. A new figure is 20 inches wide and 20/k high for k
      channels, at least 0.02. A layer whose belt were wider than `max_belt` pixels is drawn as a grid, and the title
      says so. Maps with one spatial axis are lines, each in units of its own standard deviation, if there are 16 at
      most and they have `max_belt` cells at most, else a heat strip; volumes and tokens as `arrangements.arrange` says.
    - A layer and `channel`: that one, large.
    - Features: a cell for each layer with the first of its channels; with `arrange="belt"` a row for each.

    Where each channel has a scale of its own, the image holds the gray levels of `normalize`, 0..255 from end to end of
    the colormap. Where there is one scale for all that is drawn (`scale_over` is not `channel`, a single channel, a
    reduction, a `norm`), it holds the values themselves, so that `figure.colorbar(ax.images[0])` shows them in the
    map's own units. New figures have a colorbar then, or a line of text. Over the image, NaN is drawn in magenta and
    infinite values in cyan. No pixel is blurred; where several share a dot of the figure, they are averaged.

    Args:
        what: Maps of a layer, or of a whole model.
        index: Which picture of the batch.
        ax: Axes to draw a layer in; None makes a figure with pyplot, to be shown with `pyplot.show()` and closed by the
            caller.
        cmap: A matplotlib colormap or the name of one; None is that of the style.
        norm: A matplotlib norm for the values in the map's own units, such as `LogNorm()`. As in `imshow`, limits that
            it does not have become those of the values.
        channel: Index of the channel to draw alone.
        style: How to draw, see `Style`.
        choices: Single fields of the style.

    Returns:
        The figure that holds all of it, that of `ax` if there is one.

    Raises:
        PictureError: The map is empty or has more than three spatial axes, `index` is outside the batch, a colormap or
            choice is unknown or contradicts another, or `ax` was removed from its figure.

    Example:
        >>> from onnxfeat import FeatureExtractor
        >>> extractor = FeatureExtractor("models/shapes_reference_layers.onnx", provider="cpu")
        >>> features = extractor("models/pictures/chelsea.png")
        >>> figure = plot(features["conv2d"])
        >>> figure.get_size_inches().tolist()
        [20.0, 2.5]
        >>> figure = plot(features["conv2d"], channel=7, normalize="minmax")
        >>> figure.axes[0].images[0].get_clim()[0]
        0.0
        >>> import matplotlib.pyplot
        >>> matplotlib.pyplot.close("all")
    """
    style = _style_of(style, choices, channel=channel, cmap=cmap, norm=norm)
    if isinstance(what, Features):
        if ax is not None:
            raise PictureError("a whole model has a figure of its own: leave ax out, or pass one layer with it")
        return draw_model(what, index, style, cmap, norm)
    if not isinstance(what, FeatureMap):
        raise PictureError(
            f"{type(what).__name__} is no feature map: pass one of a layer, as features['conv2d'], or all features"
        )
    panel = panel_of(what, index, style, cmap, norm)
    figure = None if ax is None else ax.get_figure(root=True)
    if ax is not None and figure is None:
        raise PictureError("the axes belong to no figure any more: pass axes that were not removed")
    set_limits(norm, [panel])
    if ax is None or figure is None:
        return _figure_of(panel, style)
    _draw(panel, ax, style)
    return figure


def _style_of(
    style: Style | None,
    choices: StyleChoices,
    *,
    channel: int | None,
    cmap: str | Colormap | None,
    norm: Normalize | None,
) -> Style:
    """Return the style with all choices; refuse those that contradict each other."""
    changed = styled(style, choices)
    if cmap is not None and "colormap" in choices:
        raise PictureError("cmap and colormap are two words for one thing: pass one of them")
    scaled = [name for name in ("normalize", "scale_over", "percentiles") if name in choices]
    if norm is not None and scaled:
        raise PictureError(f"norm says what the colors stand for, and so does {quote(scaled)}: pass one of them")
    if changed.overlay:
        raise PictureError("matplotlib figures have no photograph to lay a map over: leave overlay out")
    if channel is None:
        return changed
    if changed.channels is not None or changed.top is not None or changed.reduce is not None:
        raise PictureError("channel draws one channel: leave channels, top and reduce out, or leave channel out")
    try:
        only = operator.index(channel)
    except TypeError:
        raise PictureError(f"channel is {channel!r}, and the index of one is wanted: pass a whole number") from None
    return styled(changed, {"channels": (only,), "arrange": "channel"})


def _figure_of(panel: Panel, style: Style) -> Figure:
    """Return a new figure of one layer, with its scale where it does not disturb."""
    from matplotlib import pyplot

    figure = pyplot.figure(figsize=_size(panel))
    ax = figure.add_subplot()
    image = _draw(panel, ax, style)
    if not style.frame:
        return figure
    box = ax.get_position()
    width, height = box.width * figure.get_figwidth(), box.height * figure.get_figheight()
    note = range_words(panel, image)
    if image is not None and panel.in_units and figure.get_figheight() >= _LEAST_BARRED:
        figure.colorbar(image, ax=ax, fraction=_BAR / width, pad=_BAR / width, aspect=height / _BAR)
        note = panel.note
    settings: Any = {"fontsize": "x-small", "loc": "right", "parse_math": False}
    if len(panel.title) * _TITLE_LETTER / 2 + len(note) * _NOTE_LETTER < width / 2:
        ax.set_title(note, **settings)
    else:
        ax.set_xlabel(note, **settings)
    return figure


def _draw(panel: Panel, ax: Axes, style: Style) -> AxesImage | None:
    """Draw a layer in axes; return the image that a colorbar is for."""
    ax.grid(False)
    image = panel.draw(ax)
    if style.frame:
        ax.set_title(panel.title, parse_math=False)  # a layer's name may hold a dollar sign
    else:
        ax.set_axis_off()
    return image


def _size(panel: Panel) -> tuple[float, float]:
    """Return width and height of a new figure in inches."""
    rows, columns = panel.shape
    kind = panel.facts["arrangement"]
    if kind == "channel":
        inches = _CHANNEL_SIDE / max(rows, columns)
        return max(columns * inches, _LEAST_CHANNEL_WIDTH), max(rows * inches, _LEAST_BARRED)
    height = _WIDTH / panel.drawn if kind == "belt" else _WIDTH * rows / columns
    least = _LEAST_STRIP_HEIGHT if kind == "strip" else _LEAST_HEIGHT
    return _WIDTH, float(min(max(height, least), _MOST_HEIGHT))
