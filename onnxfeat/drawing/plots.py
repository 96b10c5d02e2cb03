"""Draw feature maps as matplotlib figures: a layer, a channel, or all layers of a model."""

from __future__ import annotations

import operator
import textwrap
from functools import partial
from typing import TYPE_CHECKING, Any, overload

from onnxfeat.drawing.model_plots import draw_model
from onnxfeat.drawing.norms import norm_of, set_limits
from onnxfeat.drawing.panels import Panel, cut, panel_of, range_words, values_of
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
_ROW_HEIGHT = 1.2  # inches: of a row of numbers
_LEAST_HEIGHT = 0.02  # inches: two pixels at 100 dpi; matplotlib can't save a figure of less than one
_MOST_HEIGHT = 40.0  # inches: slices of many channels and few slices are much higher than wide
_LEAST_STRIP_HEIGHT = 5.0  # inches
_CHANNEL_SIDE, _LEAST_CHANNEL_WIDTH = 8.0, 5.0  # inches: longer side of a figure of one channel; its title needs 5
_LEAST_BARRED = 2.0  # inches: a lower figure has no room for a colorbar
_BAR = 0.2  # inches: width of a colorbar
_NOTE_LETTER = 0.075  # inches: width of a letter at the 8.3 points of `x-small`
_TITLE_LINE = 0.2  # inches: a line of a title of 12 points, and a part of what is below it
_FEWEST_LETTERS = 8  # that a name is cut to
_MOST_LINES = 3  # of a title that is too wide for one: as many as the margin above usual subplots holds


@overload
def plot(
    what: FeatureMap,
    *,
    index: int = 0,
    ax: Axes | None = None,
    cmap: str | Colormap | None = None,
    norm: str | Normalize | None = None,
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
    norm: str | Normalize | None = None,
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
    norm: str | Normalize | None = None,
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
    infinite values in cyan. No pixel is blurred; where several share a dot of the figure, they are averaged. With the
    style's `frame`, constant channels are struck through, white lines part those of a belt, and each bears its number
    where that fits: artists of their own. Where numbers don't fit, the title lists channels that are not in the
    layer's order.

    In notebooks with inline figures, what shows the figure takes it from pyplot, which would show it once more.

    Args:
        what: Maps of a layer, or of a whole model.
        index: Which picture of the batch.
        ax: Axes to draw a layer in; None makes a figure with pyplot, to be shown with `pyplot.show()` and closed by the
            caller.
        cmap: A matplotlib colormap or the name of one; None is that of the style.
        norm: A matplotlib norm for the values in the map's own units, such as `LogNorm()`, or as in `imshow` the name
            of a scale: `log`. Limits that it does not have become those of the values.
        channel: Index of the channel to draw alone.
        style: How to draw, see `Style`.
        choices: Single fields of the style.

    Returns:
        The figure that holds all of it, that of `ax` if there is one.

    Raises:
        PictureError: The map is empty or has more than three spatial axes, `index` is outside the batch, a colormap,
            norm or choice is unknown or contradicts another, or `ax` is no axes or was removed from its figure.

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
    style, norm = _style_of(style, choices, channel=channel, cmap=cmap, norm=norm), norm_of(norm)
    if isinstance(what, Features):
        if ax is not None:
            raise PictureError("a whole model has a figure of its own: leave ax out, or pass one layer with it")
        return _shown_once(draw_model(what, index, style, cmap, norm))
    if not isinstance(what, FeatureMap):
        raise PictureError(
            f"{type(what).__name__} is no feature map: pass one of a layer, as features['conv2d'], or all features"
        )
    figure = None if ax is None else _figure_with(ax)
    panel = panel_of(what, index, style, cmap, norm)
    set_limits(norm, values_of([panel]))
    if ax is None or figure is None:
        return _shown_once(_figure_of(panel, style))
    _draw(panel, ax, style)
    if style.frame:
        _label(panel, ax, ax.bbox.width, _MOST_LINES)
    return _shown_once(figure)


def _figure_with(ax: Any) -> Figure:
    """Return the figure that holds axes."""
    from matplotlib.axes import Axes

    if not isinstance(ax, Axes):
        raise PictureError(
            f"ax is of type {type(ax).__name__}, one axes is wanted: of what `pyplot.subplots(1, 3)` gives, pass "
            f"`axes[0]`, `axes[1]` and `axes[2]` one by one"
        )
    figure = ax.get_figure(root=True)
    if figure is None:
        raise PictureError("the axes belong to no figure any more: pass axes that were not removed")
    return figure


def _style_of(
    style: Style | None,
    choices: StyleChoices,
    *,
    channel: int | None,
    cmap: str | Colormap | None,
    norm: str | Normalize | None,
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
    if image is not None and panel.in_units and figure.get_figheight() >= _LEAST_BARRED:
        box = ax.get_position()
        width, height = box.width * figure.get_figwidth(), box.height * figure.get_figheight()
        figure.colorbar(image, ax=ax, fraction=_BAR / width, pad=_BAR / width, aspect=height / _BAR)
        note = panel.note
    else:
        note = range_words(panel, image)
    _label_alone(panel, ax, note)
    return figure


def _label_alone(panel: Panel, ax: Axes, note: str) -> None:
    """Mark the channels of axes that are the only ones of their figure, and write title and note around them."""
    box, page = ax.get_position(), ax.figure.bbox
    middle = (box.x0 + box.x1) / 2
    lines = int((1 - box.y1) * page.height / (_TITLE_LINE * ax.figure.dpi))
    _label(panel, ax, 2 * min(middle, 1 - middle) * page.width, min(_MOST_LINES, max(1, lines)))
    settings: Any = {"fontsize": "x-small", "loc": "right", "parse_math": False}
    if ax.title.get_window_extent().width / 2 + len(note) * _NOTE_LETTER * ax.figure.dpi < ax.bbox.width / 2:
        ax.set_title(note, **settings)
    else:
        ax.set_xlabel(note, **settings)


def _draw(panel: Panel, ax: Axes, style: Style) -> AxesImage | None:
    """Draw a layer in axes; return the image that a colorbar is for."""
    ax.grid(False)
    image = panel.draw(ax)
    if not style.frame:
        ax.set_axis_off()
    return image


def _label(panel: Panel, ax: Axes, width: float, most_lines: int) -> None:
    """Mark the channels in axes, and write the title: in one line of that many pixels, or in smaller ones."""
    details = ", ".join(panel.details if panel.mark(ax) or not panel.listed else (*panel.details, panel.listed))
    whole = f"{panel.name} ({details})" if details else panel.name
    title = ax.set_title(whole, parse_math=False)  # a layer's name may hold a dollar sign
    if title.get_window_extent().width <= width:
        return
    if most_lines > 1:
        title.set_fontsize("medium")
    letters = int(len(whole) * width / title.get_window_extent().width)
    for fewer in range(letters, _FEWEST_LETTERS - 1, -1):  # wide letters may have come together
        title.set_text(cut(whole, fewer) if most_lines == 1 else _wrapped(panel.name, details, fewer, most_lines))
        if title.get_window_extent().width <= width:
            return


def _wrapped(name: str, details: str, letters: int, most_lines: int) -> str:
    """Return a name and what is said of it in lines of so many letters; what takes more lines is cut off."""
    lines = [cut(name, letters), *textwrap.wrap(details, letters)]
    if len(lines) > most_lines:
        lines = [*lines[: most_lines - 1], f"{lines[most_lines - 1][: letters - 1]}\u2026"]
    return "\n".join(lines)


def _shown_once(figure: Figure) -> Figure:
    """Keep inline notebooks from showing a figure twice: as the value of a cell, and as an open figure of pyplot."""
    from matplotlib import get_backend

    if "inline" in (get_backend(auto_select=False) or ""):
        # IPython asks for this before it makes the pictures that its settings want, whoever wants it shown.
        vars(figure)["_repr_mimebundle_"] = partial(_leave_pyplot, figure)
    return figure


def _leave_pyplot(figure: Figure, **_: Any) -> dict[str, Any]:
    """Take a figure from pyplot, and add nothing to what IPython shows of it."""
    from matplotlib import pyplot

    pyplot.close(figure)
    return {}


def _size(panel: Panel) -> tuple[float, float]:
    """Return width and height of a new figure in inches."""
    rows, columns = panel.shape
    kind = panel.facts["arrangement"]
    if kind == "channel":
        inches = _CHANNEL_SIDE / max(rows, columns)
        return max(columns * inches, _LEAST_CHANNEL_WIDTH), max(rows * inches, _LEAST_BARRED)
    height = _WIDTH / panel.drawn if kind == "belt" else _WIDTH * rows / columns
    if panel.facts.get("numbers"):
        height = _ROW_HEIGHT
    least = _LEAST_STRIP_HEIGHT if kind == "strip" else _LEAST_HEIGHT
    return _WIDTH, float(min(max(height, least), _MOST_HEIGHT))
