"""Write the page of one layer as an SVG or PDF file: text stays text, the maps are one lossless image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onnxfeat.drawing.arrangements import Arrangement, arrange
from onnxfeat.drawing.channel_facts import channel_facts, saturation_facts
from onnxfeat.drawing.color_pictures import ColorPicture, components_of, overlay_of
from onnxfeat.drawing.colormaps import PAPER, STEPS, frame_table
from onnxfeat.drawing.legends import STROKE, Legend, legend_of, number, words_of
from onnxfeat.drawing.lettering import line_height, plain, shortened, text_width, wrapped
from onnxfeat.drawing.pages import stroke
from onnxfeat.drawing.painting import Body, as_drawn, body_of, counted_of
from onnxfeat.drawing.sharing import ALONE, Shared
from onnxfeat.drawing.styles import Style
from onnxfeat.errors import PictureError
from onnxfeat.picture_files import Picture
from onnxfeat.records import FeatureMap

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Points, of which a pixel of the painted page is one.
_MARGIN, _LEAST_WIDTH = 12, 380
_TITLE, _TEXT, _SMALL, _NUMBER = 16, 11, 10, 8
_BAR, _BAR_HEIGHT, _SWATCH = 220, 10, 9
_LEAST_SCALED = 96  # width of a channel that bears its own scale
_WIDER = 1.15  # DejaVu Sans, the font of matplotlib, against the one that `lettering` measures
_INK, _MUTED = "#202124", "#5f6062"
_METADATA: Mapping[str, Mapping[str, str | None]] = {
    "svg": {"Creator": "onnxfeat", "Date": None},  # no clock: the same maps give the same bytes
    "pdf": {"Creator": "onnxfeat", "CreationDate": None},
}
_SETTINGS: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "onnxfeat", "pdf.fonttype": 42}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Label:
    """A short text: its upper left corner on the picture, in points."""

    left: float
    top: float
    text: str


def save_figure(
    feature_map: FeatureMap,
    index: int,
    path: Path,
    style: Style,
    shared: Shared = ALONE,
    photograph: Picture | None = None,
) -> dict[str, Any]:
    """Write one layer for one picture of the batch as an SVG or PDF file, with all that `paint` shows.

    Each cell of a map is a whole number of pixels of the image in the file, so none is blurred, whatever shows it.
    The same maps give the same bytes with the same matplotlib. Its settings are as by default while this runs, in all
    threads; afterwards they are as before.

    Args:
        feature_map: Maps of the layer, (N, C, *spatial).
        index: Which picture of the batch.
        path: The file, which is made; its ending says the format.
        style: How; `hidpi` has no meaning here.
        shared: What the layer has in common in all pictures of a call.
        photograph: The picture that the map was made from, for `style.overlay`.

    Returns:
        What the picture shows, as JSON data.

    Raises:
        PictureError: The map can't be drawn, `index` is outside the batch, or the name ends otherwise.

    Example:
        >>> import tempfile
        >>> from onnxfeat.records import Layer
        >>> layer = Layer(name="conv2d", kind="conv", op_type="Conv", value="y", raw_value="y")
        >>> maps = FeatureMap(layer=layer, array=np.random.default_rng(0).normal(size=(1, 8, 20, 30)).astype("f4"))
        >>> path = Path(tempfile.mkdtemp()) / "conv2d.svg"
        >>> facts = save_figure(maps, 0, path, Style())
        >>> facts["arrangement"], ">conv2d</text>" in path.read_text()
        ('belt', True)
    """
    ending = path.suffix.removeprefix(".").lower()
    if ending not in _METADATA:
        raise PictureError(f"{path.name!r} is no name of a drawing: end it with .svg or .pdf")
    import matplotlib

    style = replace(style, hidpi=False)
    labels: tuple[_Label, ...] = ()
    if style.overlay and photograph is not None:
        content = overlay_of(feature_map, photograph, index, style, shared)
    elif style.reduce == "pca":
        content = components_of(feature_map, index, style, shared)
    else:
        content, labels = _of_channels(feature_map, index, style, shared)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        figure = _page(content, labels, frame_table(content.colormap)) if style.frame else _bare(content)
        metadata = {"Title": _printable(content.title), **_METADATA[ending]}
        figure.savefig(path, format=ending, dpi=72, metadata=metadata)
    return dict(content.facts)


def _of_channels(
    feature_map: FeatureMap, index: int, style: Style, shared: Shared
) -> tuple[ColorPicture, tuple[_Label, ...]]:
    """Return the channels of a layer, and the texts on them."""
    counted = counted_of(feature_map, index, style, shared)
    feature_map, style, title, more = as_drawn(feature_map, style)
    found = arrange(feature_map, index, style=style, shared=shared, steps=STEPS)
    facts = {**found.facts, **more, **channel_facts(found, counted), **saturation_facts(feature_map)}
    body = body_of(found, style)
    picture = ColorPicture(
        title=title,
        subtitle=", ".join(words_of(feature_map.layer, found, style)),
        colors=frame_table(style.colors)[_picture(body)],
        legend=legend_of(found, style, counted),
        colormap=style.colors,
        facts=facts,
    )
    return picture, tuple(_labels(found, body)) if style.frame else ()


def _picture(body: Body) -> NDArray[np.uint8]:
    """Return all channels as positions in the palette, without the texts, for which there is room."""
    blank = replace(
        body,
        labels=None if body.labels is None else np.zeros_like(body.labels),
        beside=None if body.beside is None else np.zeros_like(body.beside),
    )
    page = np.full((body.height + body.gap, body.width + body.gap), PAPER, np.uint8)
    blank.draw(page, 0, 0)
    return page[: body.height, : body.width]


def _labels(found: Arrangement, body: Body) -> list[_Label]:
    """Return the number of each channel where it fits, with its own scale where that fits too."""
    (height, width), middle = body.cell, (body.cell[0] - _NUMBER) / 2
    if body.beside is not None:
        return [
            _Label(left=0, top=row * (height + body.gap) + middle, text=str(channel))
            for row, channel in enumerate(found.channels)
        ]
    if body.labels is None:
        return []
    scale = found.scale.of_channels(found.channels)
    has_own = found.scale.over == "channel" and width >= _LEAST_SCALED and found.facts["arrangement"] != "slices"
    labels = []
    for at, channel in enumerate(found.channels.tolist()):
        row, column = divmod(at, body.columns)
        text = str(channel)
        if has_own:
            longer = f"{channel}   {number(scale.low[0, at])} to {number(scale.high[0, at])}"
            text = longer if text_width(longer, _NUMBER) * _WIDER <= width else text
        top = row * (body.head + height + body.gap)
        labels.append(_Label(left=body.side + column * (width + body.gap), top=top, text=text))
    return labels


def _bare(content: ColorPicture) -> Figure:
    """Return a figure of the picture alone."""
    canvas = _Canvas(*content.colors.shape[:2])
    canvas.image(content.colors, 0, 0)
    return canvas.figure


def _page(content: ColorPicture, labels: Sequence[_Label], palette: NDArray[np.uint8]) -> Figure:
    """Return a figure with title, picture and legend below each other, as on a painted page."""
    rows, columns = content.colors.shape[:2]
    width = max(columns, _LEAST_WIDTH)
    under = [_printable(part) for part in wrapped(content.subtitle, _TEXT, int(width / _WIDER))]
    notes = wrapped(content.legend.note, _SMALL, int(width / _WIDER))
    top = _MARGIN + line_height(_TITLE) + len(under) * line_height(_TEXT) + 6
    bottom = top + rows + 8
    below = (_BAR_HEIGHT + 1 + line_height(_SMALL) if content.legend.ends else 0) + len(notes) * line_height(_SMALL)
    swatches = line_height(_SMALL) * len(content.legend.marks)
    canvas = _Canvas(bottom + below + swatches + _MARGIN, width + 2 * _MARGIN)
    title = shortened(_printable(content.title), _TITLE, int(width / _WIDER))
    canvas.text(title, _MARGIN, _MARGIN, _TITLE, _INK)
    for place, part in enumerate(under):
        canvas.text(part, _MARGIN, _MARGIN + line_height(_TITLE) + place * line_height(_TEXT), _TEXT)
    canvas.image(content.colors, _MARGIN, top)
    for label in labels:
        canvas.text(label.text, _MARGIN + label.left, top + label.top, _NUMBER)
    _draw_legend(canvas, content.legend, notes, palette, bottom)
    return canvas.figure


def _draw_legend(canvas: _Canvas, legend: Legend, notes: Sequence[str], palette: NDArray[np.uint8], top: float) -> None:
    """Draw the colors from end to end, how that was found, and what other colors stand for."""
    if legend.ends:
        bar = palette[np.arange(_BAR) * STEPS // _BAR]
        canvas.image(np.broadcast_to(bar, (_BAR_HEIGHT, *bar.shape)), _MARGIN, top)
        for text, place, side in zip(legend.ends, (0.0, 0.5, 1.0), ("left", "center", "right"), strict=True):
            canvas.text(text, _MARGIN + place * _BAR, top + _BAR_HEIGHT + 1, _SMALL, side=side)
        top += _BAR_HEIGHT + 1 + line_height(_SMALL)
    for note in notes:
        canvas.text(note, _MARGIN, top, _SMALL)
        top += line_height(_SMALL)
    for color, words in legend.marks:
        square = np.full((_SWATCH, _SWATCH), STEPS // 2 if color == STROKE else color, np.uint8)
        if color == STROKE:
            stroke(square[None], 1)
        canvas.image(palette[square], _MARGIN, top + 2)
        canvas.text(words, _MARGIN + _SWATCH + 5, top, _SMALL)
        top += line_height(_SMALL)


class _Canvas:
    """A figure without pyplot, on which places are points from its upper left corner."""

    def __init__(self, height: float, width: float) -> None:
        from matplotlib.figure import Figure

        self.height, self.width = height, width
        self.figure = Figure(figsize=(width / 72, height / 72), dpi=72)

    def text(self, text: str, left: float, top: float, size: int, color: str = _MUTED, side: str = "left") -> None:
        """Write one line."""
        place = (left / self.width, 1 - top / self.height)
        self.figure.text(*place, text, size=size, color=color, ha=side, va="top", parse_math=False)

    def image(self, colors: NDArray[np.uint8], left: float, top: float) -> None:
        """Draw an image (rows, columns, 3), a point for each of its pixels."""
        rows, columns = colors.shape[:2]
        place = (left / self.width, 1 - (top + rows) / self.height, columns / self.width, rows / self.height)
        ax = self.figure.add_axes(place)
        ax.set_axis_off()
        ax.imshow(colors, aspect="auto", interpolation="none")


def _printable(text: str) -> str:
    """Return a text in letters that the font has, without those that neither SVG nor PDF may hold."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in plain(text))
