"""Paint one layer as a finished picture: channels, numbered and marked, with title, scale and counts around them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onnxfeat.drawing.arrangements import Arrangement, arrange, remarks
from onnxfeat.drawing.channel_statistics import not_finite, statistics
from onnxfeat.drawing.colormaps import INFINITE, INFINITE_COLOR, NAN, NAN_COLOR, STEPS, color_table, frame_table
from onnxfeat.drawing.legends import Legend, legend_of, marks_of, number, operator_of, shape_words, words_of
from onnxfeat.drawing.lettering import columns_of, digit_width, numbers, text_width
from onnxfeat.drawing.overlays import lay_over
from onnxfeat.drawing.pages import Page, inked, stroke
from onnxfeat.drawing.pictures import picture_of, tile
from onnxfeat.drawing.reductions import PcaBasis, pca_basis, reduced, rgb
from onnxfeat.drawing.scales import LEVELS
from onnxfeat.drawing.sharing import ALONE, Shared
from onnxfeat.drawing.styles import Style
from onnxfeat.drawing.subjects import subject_facts, subject_of
from onnxfeat.drawing.tilings import enlarged, tiling_of
from onnxfeat.picture_files import Picture
from onnxfeat.records import FeatureMap

if TYPE_CHECKING:
    from PIL import Image

_NUMBER, _LEAST_NUMBERED = 10, 20  # pixels: size of a channel's number, and the least cell that bears one
_LARGE = 512  # pixels: what a photograph is enlarged to
_LEAST_SCALED = 96  # pixels: the least cell that bears its own scale
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
        return _components(feature_map, index, style, shared.basis)
    feature_map, style, title, more = as_drawn(feature_map, style)
    found = arrange(feature_map, index, style=style, shared=shared, steps=STEPS if style.frame else LEVELS)
    facts = {**found.facts, **more, **channel_facts(found)}
    if feature_map.saturated is not None:
        facts["saturated"] = round(feature_map.saturated, 6)
    if not style.frame:
        return Drawing(pixels=found.levels, palette=color_table(style.colors).tobytes(), facts=facts)
    page = Page(
        title=title,
        subtitle=", ".join(words_of(feature_map.layer, found, style)),
        legend=legend_of(found, style),
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


def paint_colors(colors: NDArray[np.uint8], page: Page, style: Style, facts: Mapping[str, Any]) -> Drawing:
    """Paint a picture that has colors of its own, `uint8` (rows, columns, 3), with the page around it."""
    if not style.frame:
        return Drawing(pixels=colors, palette=None, facts=facts)
    around, top, left = page.around(*colors.shape[:2])
    pixels = frame_table(style.colors)[around]
    pixels[top : top + colors.shape[0], left : left + colors.shape[1]] = colors
    return Drawing(pixels=pixels, palette=None, facts=facts)


def paint_overlay(
    feature_map: FeatureMap, photograph: Picture, index: int = 0, *, style: Style, shared: Shared = ALONE
) -> Drawing:
    """Paint one layer over the photograph that it was made from, as `overlays.overlay` does.

    What is laid over it is the channel that the style names, else what `style.reduce` makes of all, their mean unless
    it says otherwise.

    Args:
        feature_map: Maps of the layer, (N, C, rows, columns).
        photograph: The picture, as path, PIL image or array.
        index: Which picture of the batch it is.
        style: How.
        shared: Principal components that other pictures have too.

    Raises:
        PictureError: The layer can't be laid over a picture, or the photograph can't be read.
    """
    channel = None if style.channels is None else style.channels[0] % feature_map.channels
    reduce = style.reduce or "mean"
    laid = lay_over(
        feature_map,
        photograph,
        index,
        channel=channel,
        reduce=reduce,
        colormap=style.colormap,
        basis=shared.basis,
    )
    signed = laid.heat.signed
    what = f"channel {channel}" if channel is not None else f"{reduce} of {feature_map.channels:,} channels"
    notes = [f"{what}; lit is what cells see that are not 0, brightest where they look most"]
    if laid.heat.gated:
        notes.append("by a gate each cell also sees the whole picture")
    if laid.heat.bounded:
        notes.append("cells see a little less than is lit")
    if laid.basis is not None:
        notes.append(components_note(laid.basis))
    ends = tuple(number(x) for x in (-laid.most if signed else 0, 0 if signed else laid.most / 2, laid.most))
    statistics_ = statistics(feature_map.array[index : index + 1])
    counts = {"nan": int(statistics_.nan.sum()), "infinite": int(statistics_.infinite.sum())}
    page = Page(
        title=feature_map.name,
        subtitle=", ".join([operator_of(feature_map.layer), shape_words(_map_facts(feature_map))]),
        legend=Legend(
            ends=ends if laid.basis is None else (), note="; ".join(notes), marks=marks_of(**counts, constant=0, dead=0)
        ),
        density=style.density,
    )
    facts = {
        **_map_facts(feature_map),
        "arrangement": "overlay",
        "shown": what,
        "scale": {"low": [-laid.most if signed else 0.0], "high": [laid.most]},
        "gated": laid.heat.gated,
        "constant_channels": np.nonzero(statistics_.constant[0])[0].tolist(),
        "dead_channels": np.nonzero(statistics_.dead[0])[0].tolist(),
        "nan_values": counts["nan"],
        "infinite_values": counts["infinite"],
        "not_finite_values": sum(counts.values()),
    }
    if style.colormap is None and signed:
        style = replace(style, colormap="coolwarm")
    zoom = (style.zoom or max(1, _LARGE // max(laid.pixels.shape[:2]))) * style.density if style.frame else 1
    colors = laid.pixels.repeat(zoom, axis=0).repeat(zoom, axis=1) if zoom > 1 else laid.pixels
    return paint_colors(colors, page, style, facts)


def _map_facts(feature_map: FeatureMap) -> dict[str, int]:
    return dict(zip(("channels", "height", "width"), feature_map.shape[1:], strict=True))


def components_note(basis: PcaBasis) -> str:
    """Return in words what the colors of principal components stand for."""
    shares = ", ".join(f"{share:.0%}" for share in basis.explained)
    return (
        f"red, green, blue: the first three components, {shares} of the variance; mid-gray is the mean, full color "
        f"2 standard deviations"
    )


def _components(feature_map: FeatureMap, index: int, style: Style, basis: PcaBasis | None) -> Drawing:
    """Paint the first three principal components of a layer as red, green and blue."""
    subject = subject_of(feature_map)
    one = picture_of(subject.array, index)
    basis = basis or pca_basis([subject.array])
    plan = tiling_of(one.shape[2:], 1, replace(style, arrange="channel"))
    nan, infinite = not_finite(one[0])
    shown = []
    for plane, *special in zip(rgb(one, basis)[0], NAN_COLOR, INFINITE_COLOR, strict=True):
        for mask, color in zip((infinite.any(axis=0), nan.any(axis=0)), reversed(special), strict=True):
            plane = np.where(mask, np.uint8(color), plane)
        # Turned over and back again, as the pixels between cells are level 0 and are to be white.
        shown.append(~tile(enlarged(~plan.cells(plane[None]), plan.zoom), plan.columns, plan.gap))
    facts = {**subject_facts(subject), **plan.facts, "arrangement": "pca", "explained": rounded(basis.explained)}
    facts.update(nan_values=int(nan.sum()), infinite_values=int(infinite.sum()))
    facts.update(not_finite_values=int(nan.sum() + infinite.sum()), constant_channels=[], dead_channels=[])
    page = Page(
        title=f"{feature_map.name}: principal components of {feature_map.channels:,} channels",
        subtitle=", ".join([operator_of(feature_map.layer), shape_words(facts), *remarks(facts)]),
        legend=Legend(
            ends=(),
            note=components_note(basis),
        ),
        density=style.density,
    )
    return paint_colors(np.stack(shown, axis=-1), page, style, facts)


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


def channel_facts(found: Arrangement) -> dict[str, Any]:
    """Return what `run.json` says of the channels: which have no contrast, and what turns levels into values."""
    statistics, scale = found.statistics, found.scale
    in_order = np.array_equal(found.order.channels, np.arange(found.order.total))
    chosen = {} if in_order else {"channel_order": found.order.channels.tolist()}
    return {
        **chosen,
        "constant_channels": np.nonzero(statistics.constant[0])[0].tolist(),
        "dead_channels": np.nonzero(statistics.dead[0])[0].tolist(),
        "nan_values": int(statistics.nan.sum()),
        "infinite_values": int(statistics.infinite.sum()),
        "not_finite_values": int(statistics.not_finite.sum()),
        "mean": rounded(statistics.mean[0]),
        "deviation": rounded(statistics.deviation[0]),
        "scale": {"low": rounded(scale.low[0]), "high": rounded(scale.high[0])},
    }


def rounded(numbers_: NDArray[np.floating[Any]]) -> list[float]:
    """Return numbers with six significant digits.

    Example:
        >>> rounded(np.array([0.0, 1234.56789, -1e-30]))
        [0.0, 1234.57, -1e-30]
    """
    values = np.asarray(numbers_, np.float64)
    size = np.floor(np.log10(np.abs(values), where=values != 0, out=np.zeros(values.shape)))
    exponent = np.clip(5 - size, -300, 300)
    # A whole number divided by a power of ten is the float with few digits; multiplied by 1e-5 it is not.
    whole = np.round(values * 10.0**exponent)
    found: list[float] = np.where(exponent >= 0, whole / 10.0**exponent, whole * 10.0**-exponent).tolist()
    return found


def _labels(found: Arrangement, width: int, density: int) -> NDArray[np.uint8] | None:
    """Return ink for the text above each cell: its channel's number, its own scale where that fits; None where not."""
    size = _NUMBER * density
    if found.scale.over == "channel" and width >= _LEAST_SCALED * density and found.facts["arrangement"] != "slices":
        scale = found.scale.of_channels(found.channels)
        ends = zip(found.channels.tolist(), scale.low[0], scale.high[0], strict=True)
        texts = [f"{channel}   {number(low)} to {number(high)}" for channel, low, high in ends]
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
