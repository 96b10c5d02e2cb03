"""Paint one layer as a finished picture: channels, numbered and marked, with title, scale and counts around them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onnxfeat.drawing.arrangements import Arrangement, arrange
from onnxfeat.drawing.channel_facts import channel_facts, saturation_facts
from onnxfeat.drawing.channel_statistics import ChannelStatistics, statistics
from onnxfeat.drawing.color_pictures import ColorPicture, components_of, overlay_of
from onnxfeat.drawing.colormaps import INFINITE, NAN, STEPS, color_table, frame_table
from onnxfeat.drawing.legends import legend_of, number, words_of
from onnxfeat.drawing.lettering import columns_of, digit_width, numbers, text_width
from onnxfeat.drawing.pages import Page, inked, stroke
from onnxfeat.drawing.pictures import picture_of
from onnxfeat.drawing.reductions import reduced
from onnxfeat.drawing.scales import LEVELS
from onnxfeat.drawing.sharing import ALONE, Shared
from onnxfeat.drawing.styles import Style
from onnxfeat.drawing.subjects import subject_of
from onnxfeat.drawing.tilings import enlarged
from onnxfeat.picture_files import Picture
from onnxfeat.records import FeatureMap

if TYPE_CHECKING:
    from PIL import Image

_NUMBER, _LEAST_NUMBERED = 10, 20  # pixels: size of a channel's number, and the least cell that bears one
_LEAST_SCALED = 96  # pixels: the least cell that bears its own scale
_MOST_SLICES = 1024  # whose channel and slice are written one by one
_LEAST_STROKE = 3  # pixels: the least cell that is struck through
_MUTED = 0.72  # part of the ink that numbers take


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Drawing:
    """A finished picture.

    Attributes:
        pixels: `uint8` (rows, columns): positions in `palette`; or (rows, columns, 3): red, green, blue.
        palette: 256 colors as 768 bytes, or None.
        facts: What it shows, as JSON data.
    """

    pixels: NDArray[np.uint8]
    palette: bytes | None
    facts: Mapping[str, Any]

    def image(self) -> Image.Image:
        """Return it as a PIL image, of mode `P` or `RGB`."""
        from PIL import Image

        if self.palette is None:
            return Image.fromarray(self.pixels)
        rows, columns = self.pixels.shape
        pixels = np.ascontiguousarray(self.pixels)
        image = Image.frombuffer("P", (columns, rows), pixels, "raw", "P", 0, 1)  # shares its memory, copies nothing
        image.putpalette(self.palette)
        return image


def paint(
    feature_map: FeatureMap,
    index: int = 0,
    *,
    style: Style | None = None,
    shared: Shared = ALONE,
) -> Drawing:
    """Paint the channels of one layer for one picture of the batch, or what `style.reduce` makes of them.

    With `style.frame` the picture has a title, the number of each channel where it fits, the scale, and marks: what is
    NaN or infinite has a color of its own, channels without contrast a stroke through them. Else its pixel values are
    the gray levels that `arrange` gives, and its palette is the colormap.

    Args:
        feature_map: Maps of the layer, (N, C, *spatial).
        index: Which picture of the batch.
        style: How; None is `Style()`.
        shared: Scale, order or principal components that other pictures have too; what of it is None is found as the
            style says, the components of all of the batch.

    Raises:
        PictureError: The map can't be drawn, or `index` is outside the batch.

    Example:
        >>> from onnxfeat.records import Layer
        >>> layer = Layer(name="conv2d", kind="conv", op_type="Conv", value="y", raw_value="y")
        >>> maps = FeatureMap(layer=layer, array=np.random.default_rng(0).normal(size=(1, 8, 20, 30)).astype("f4"))
        >>> paint(maps, style=Style(frame=False)).pixels.shape
        (20, 240)
        >>> paint(maps).image().mode
        'P'
    """
    style = style or Style()
    if style.reduce == "pca":
        return _colored(components_of(feature_map, index, style, shared), style)
    counted = counted_of(feature_map, index, style, shared)
    feature_map, style, title, more = as_drawn(feature_map, style)
    found = arrange(feature_map, index, style=style, shared=shared, steps=STEPS if style.frame else LEVELS)
    facts = {**found.facts, **more, **channel_facts(found, counted), **saturation_facts(feature_map)}
    if not style.frame:
        return Drawing(pixels=found.levels, palette=color_table(style.colors).tobytes(), facts=facts)
    page = Page(
        title=title,
        subtitle=", ".join(words_of(feature_map.layer, found, style)),
        legend=legend_of(found, style, counted),
        density=style.density,
    )
    body = body_of(found, style)
    pixels, top, left = page.around(body.height, body.width)
    body.draw(pixels, top, left)
    return Drawing(pixels=pixels, palette=frame_table(style.colors).tobytes(), facts=facts)


def as_drawn(feature_map: FeatureMap, style: Style) -> tuple[FeatureMap, Style, str, dict[str, int]]:
    """Return the map that `style.reduce` makes of a layer, how it is drawn, its title, and what its facts add."""
    if style.reduce is None:
        return feature_map, style, feature_map.name, {}
    title = f"{feature_map.name}: {style.reduce} of {feature_map.channels:,} channels"
    facts = {"reduced_channels": feature_map.channels}
    return reduced(feature_map, style.reduce), replace(style, arrange="channel"), title, facts


def counted_of(feature_map: FeatureMap, index: int, style: Style, shared: Shared) -> ChannelStatistics | None:
    """Return what is known of a layer's own channels where these are reduced to one; None where they are drawn."""
    if style.reduce is None:
        return None
    return shared.counted or statistics(picture_of(subject_of(feature_map).array, index))


def paint_overlay(
    feature_map: FeatureMap, photograph: Picture, index: int = 0, *, style: Style, shared: Shared = ALONE
) -> Drawing:
    """Paint one layer over the photograph that it was made from; see `color_pictures.overlay_of`.

    Raises:
        PictureError: The layer can't be laid over a picture, or the photograph can't be read.
    """
    return _colored(overlay_of(feature_map, photograph, index, style, shared), style)


def _colored(picture: ColorPicture, style: Style) -> Drawing:
    """Paint a picture that has colors of its own, with the page around it."""
    if not style.frame:
        return Drawing(pixels=picture.colors, palette=None, facts=picture.facts)
    colors = picture.colors
    page = Page(title=picture.title, subtitle=picture.subtitle, legend=picture.legend, density=style.density)
    around, top, left = page.around(*colors.shape[:2])
    pixels = frame_table(picture.colormap)[around]
    pixels[top : top + colors.shape[0], left : left + colors.shape[1]] = colors
    return Drawing(pixels=pixels, palette=None, facts=picture.facts)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Body:
    """The channels of a picture with a frame, before they are drawn.

    Attributes:
        cells: Positions in the palette, (K, rows, columns).
        columns: How many of them are in a row.
        zoom: Pixels for each of their pixels, down and across.
        gap: Pixels between them.
        labels: Ink of the text above each of them, (K, height, width), or None.
        beside: Ink of the text to the left of each, (K, height, width), or None.
        flat: Which of them have no contrast, (K,).
        density: Pixels for each pixel of a usual screen.
    """

    cells: NDArray[np.uint8]
    columns: int
    zoom: tuple[int, int]
    gap: int
    labels: NDArray[np.uint8] | None
    beside: NDArray[np.uint8] | None
    flat: NDArray[np.bool_]
    density: int

    @property
    def rows(self) -> int:
        """How many rows of cells there are."""
        return math.ceil(len(self.cells) / self.columns)

    @property
    def head(self) -> int:
        """Pixels above each cell for its label."""
        return 0 if self.labels is None else self.labels.shape[1]

    @property
    def side(self) -> int:
        """Pixels to the left of all cells for their numbers."""
        return 0 if self.beside is None else self.beside.shape[2] + 4 * self.density

    @property
    def cell(self) -> tuple[int, int]:
        """Rows and columns of a cell in pixels."""
        return self.cells.shape[1] * self.zoom[0], self.cells.shape[2] * self.zoom[1]

    @property
    def height(self) -> int:
        """Rows of the whole in pixels."""
        return self.rows * (self.head + self.cell[0] + self.gap) - self.gap

    @property
    def width(self) -> int:
        """Columns of the whole in pixels."""
        return self.side + self.columns * (self.cell[1] + self.gap) - self.gap

    def draw(self, page: NDArray[np.uint8], top: int, left: int) -> None:
        """Draw it on a page, with its corner at that row and column; there must be room for one gap more."""
        (height, width), step = self.cell, (self.head + self.cell[0] + self.gap, self.cell[1] + self.gap)
        left += self.side
        area = page[top : top + self.rows * step[0], left : left + self.columns * step[1]]
        # A view with an axis for the rows of cells, one for their columns, and two inside each.
        spots = area.reshape(self.rows, step[0], self.columns, step[1]).transpose(0, 2, 1, 3)
        shown = spots[:, :, self.head : self.head + height, :width]
        by_zoom = shown.reshape(*shown.shape[:2], self.cells.shape[1], self.zoom[0], self.cells.shape[2], self.zoom[1])
        _fill(by_zoom, self.cells[:, :, None, :, None])
        if self.labels is not None:
            ink = self.labels[:, :, :width]
            _fill(spots[:, :, : self.head, : ink.shape[2]], inked(ink, _MUTED))
        if self.beside is not None:
            for row, ink in enumerate(inked(self.beside, _MUTED)):
                place = page[top + row * step[0] + (height - ink.shape[0]) // 2 :, left - self.side :]
                place[: ink.shape[0], : ink.shape[1]] = ink
        if self.flat.any() and min(height, width) >= _LEAST_STROKE * self.density:
            at = np.nonzero(self.flat)[0]
            marked = enlarged(self.cells[at], self.zoom).copy()
            stroke(marked, self.density)
            shown[at // self.columns, at % self.columns] = marked


def body_of(found: Arrangement, style: Style) -> Body:
    """Return the channels of a layer as they are put on a page; `found` has `STEPS` levels."""
    d, is_strip = style.density, found.facts["arrangement"] == "strip"
    cells = found.cells
    for mask, color in ((found.nan, NAN), (found.infinite, INFINITE)):
        if mask is not None:
            cells = np.where(mask, np.uint8(color), cells)
    height, width = cells.shape[1] * found.zoom[0], cells.shape[2] * found.zoom[1]
    labels = beside = None
    if is_strip:
        beside = numbers(found.channels, _NUMBER * d) if height >= _NUMBER * d else None
    elif min(height, width) >= _LEAST_NUMBERED * d:
        labels = _labels(found, width, d)
    return Body(
        cells=cells,
        columns=found.columns,
        zoom=found.zoom,
        gap=0 if is_strip else (2 if min(height, width) >= _LEAST_NUMBERED * d else 1) * d,
        labels=labels,
        beside=beside,
        flat=found.statistics.constant[0, found.channels],
        density=d,
    )


def _labels(found: Arrangement, width: int, density: int) -> NDArray[np.uint8] | None:
    """Return ink for the text above each cell: its channel's number, its own scale where that fits; None where not."""
    size = _NUMBER * density
    if found.facts.get("numbers"):
        return None
    if found.scale.over == "channel" and width >= _LEAST_SCALED * density and found.facts["arrangement"] != "slices":
        scale = found.scale.of_channels(found.channels)
        ends = zip(found.channels.tolist(), scale.low[0], scale.high[0], strict=True)
        texts = [
            f"{channel}" if none else f"{channel}   {number(low, high - low)} to {number(high, high - low)}"
            for (channel, low, high), none in zip(ends, found.empty, strict=True)  # without a value there is no scale
        ]
        if max(text_width(text, size) for text in texts) <= width:
            return columns_of(texts, size, width)
    if found.facts["arrangement"] == "slices" and len(found.channels) <= _MOST_SLICES:
        slices = np.tile(found.facts["slices"], len(found.channels) // len(found.facts["slices"]))
        texts = [f"{channel} / {slice_}" for channel, slice_ in zip(found.channels.tolist(), slices, strict=True)]
        if max(text_width(text, size) for text in texts) <= width:
            return columns_of(texts, size, width)
    if len(str(int(found.channels.max()))) * digit_width(size) > width:
        return None
    return numbers(found.channels, size)


def _fill(spots: NDArray[np.uint8], values: NDArray[np.uint8]) -> None:
    """Write values (K, ...) to the first K of the spots (rows, columns, ...), row after row."""
    columns, count = spots.shape[1], len(values)
    whole = count // columns
    spots[:whole] = values[: whole * columns].reshape(whole, columns, *values.shape[1:])
    if whole * columns < count:
        spots[whole, : count - whole * columns] = values[whole * columns :]
