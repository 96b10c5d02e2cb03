"""Put all layers of one picture or several on one sheet: a row of channels for each, with title and scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxfeat.drawing.arrangements import arrange
from onnxfeat.drawing.captions import remarks, shape_words
from onnxfeat.drawing.channel_facts import channel_facts
from onnxfeat.drawing.colormaps import PAPER, STEPS, frame_table
from onnxfeat.drawing.legends import Legend, counts_of, ends_of, marks_of, operator_of, scale_note
from onnxfeat.drawing.lettering import line_height, text_width
from onnxfeat.drawing.pages import MARGIN, Block, Page, bar_colors
from onnxfeat.drawing.painting import Drawing, as_drawn, body_of, counted_of
from onnxfeat.drawing.sharing import ALONE, Shared
from onnxfeat.drawing.styles import Style
from onnxfeat.drawing.subjects import subject_of
from onnxfeat.drawing.tilings import MAX_PIXELS, MAX_SIDE
from onnxfeat.errors import PictureError
from onnxfeat.records import FeatureMap

_WIDTH = 1600  # pixels, of the rows
_ROW = 112  # pixels: what a channel is enlarged to about
_STRIPS = 24  # channels of a map with one spatial axis
_NAME, _SMALL = 14, 12  # sizes of letters in pixels
_BAR, _BAR_HEIGHT = 96, 8
_MUTED = 0.72


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Row:
    """The channels of one layer for one picture, as many as fit a sheet.

    Attributes:
        layer: The layer's name.
        words: What is shown of it.
        picture: Name of the picture.
        ends: What the lower end, the middle and the upper end of the colors stand for.
        marks: How many values have no color of the scale, and channels no contrast: color and number.
        pixels: Positions in the palette of `colormaps.frame_table`, (rows, columns).
        facts: What it shows, as JSON data.
    """

    layer: str
    words: str
    picture: str
    ends: tuple[str, str, str]
    marks: Mapping[str, int]
    pixels: NDArray[np.uint8]
    facts: Mapping[str, Any]


def row_of(feature_map: FeatureMap, index: int, style: Style, shared: Shared = ALONE, *, picture: str = "") -> Row:
    """Return the first channels of a layer, in the order of the style, for one picture of the batch.

    Raises:
        PictureError: The map can't be drawn, or `index` is outside the batch.
    """
    if style.reduce == "pca":
        raise PictureError("principal components have colors of their own, a sheet has one scale: choose another")
    count, counted = feature_map.channels, counted_of(feature_map, index, style, shared)
    feature_map, _, _, more = as_drawn(feature_map, style)
    fitting, zoom = _fitting(subject_of(feature_map).array.shape[2:], style)
    row_style = replace(style, arrange="belt", zoom=style.zoom or zoom, reduce=None, overlay=False)
    if shared.order is None:
        row_style = replace(row_style, top=min(style.most or fitting, fitting))
    else:
        shared = replace(shared, order=replace(shared.order, channels=shared.order.channels[:fitting]))
    found = arrange(feature_map, index, style=row_style, shared=shared, steps=STEPS)
    body = body_of(found, row_style)
    # One gap more below and to the right, which is cut off again.
    pixels = np.full((body.height + body.gap, body.width + body.gap), PAPER, np.uint8)
    body.draw(pixels, 0, 0)
    shown = len(found.order.channels)
    words = [operator_of(feature_map.layer), shape_words(found.facts), *remarks(found.facts)]
    if style.reduce is not None:
        words[1] = f"{style.reduce} of {words[1].replace('1 channel', f'{count:,} channels', 1)}"
    elif shown < found.order.total:
        words.append(f"{'first ' if style.order == 'index' else ''}{shown} shown")
    ends = ends_of(found.scale.of_channels(found.channels[:1]), alone=shown == 1)
    return Row(
        layer=feature_map.name,
        words=", ".join(words),
        picture=picture,
        ends=("no value is finite", "", "") if found.empty.all() else ends,
        marks=counts_of(counted or found.statistics),
        pixels=pixels[: body.height, : body.width],
        facts={**found.facts, **more, "channels_shown": shown, **channel_facts(found, counted)},
    )


def paint_sheet(rows: Sequence[Row], style: Style, *, title: str, subtitle: str = "") -> Drawing:
    """Paint rows below each other, those of one layer under its title.

    Args:
        rows: What `row_of` gave, the rows of a layer next to each other.
        style: The style that they were made with.
        title: First line of the sheet.
        subtitle: Line below it.

    Raises:
        PictureError: The sheet would be larger than a picture can be.
    """
    density = style.density
    width = max([_WIDTH * density, *(row.pixels.shape[1] for row in rows)])
    blocks = [
        block
        for _, layer in groupby(rows, key=lambda row: row.layer)
        for block in _blocks_of(list(layer), width, density)
    ]
    totals = {name: sum(row.marks[name] for row in rows) for name in ("nan", "infinite", "constant", "dead")}
    page = Page(
        title=title,
        subtitle=subtitle,
        legend=Legend(ends=(), note=scale_note(style), marks=marks_of(**totals)),
        density=density,
    )
    height = sum(block.height for block in blocks)
    refuse_large(len(rows), height, width)
    pixels, top, left = page.around(height, width)
    for block in blocks:
        block.draw(pixels, top, left)
        top += block.height
    facts = {"arrangement": "sheet", "rows": len(rows)}
    return Drawing(pixels=pixels, palette=frame_table(style.colors).tobytes(), facts=facts)


def refuse_large(rows: int, height: int, width: int = _WIDTH) -> None:
    """Raise a `PictureError` if a sheet of so many rows, of these pixels in all, is more than a picture can be."""
    if height > MAX_SIDE - 40 * MARGIN or (height + 40 * MARGIN) * width > MAX_PIXELS:
        raise PictureError(
            f"a sheet of {rows:,} rows or more would have {width:,} x {height:,} pixels, more than a picture can: "
            f"choose fewer layers or pictures, or draw a folder for each picture"
        )


def _fitting(spatial: tuple[int, ...], style: Style) -> tuple[int, int]:
    """Return how many channels fit a row of a sheet, and the zoom that brings them near to a row's height."""
    if len(spatial) == 1:
        return _STRIPS, max(1, min(_WIDTH // spatial[0], _ROW // _STRIPS))
    if len(spatial) == 3:
        return 1, max(1, min(_ROW // max(spatial[1:]), _WIDTH // (16 * spatial[2])))
    height, width = spatial
    zoom = style.zoom or max(1, min(_ROW // height, _WIDTH // width))
    return max(1, (_WIDTH + 2) // (width * zoom + 2)), zoom


def _blocks_of(rows: Sequence[Row], width: int, density: int) -> list[Block]:
    """Return the title of a layer and its rows, each with its scale."""
    first, name, small = rows[0], _NAME * density, _SMALL * density
    beside = text_width(first.layer, name) + 12 * density
    title = Block.of([(first.layer, name, 1.0)], width)
    words = Block.of([(first.words, small, _MUTED)], max(1, width - beside)).moved(3 * density, beside)
    heading = Block(height=title.height + 2 * density, parts=(*title.parts, *words.parts))
    blocks = [heading]
    for row in rows:
        caption = _scale_of(row, width, density)
        blocks.append(caption)
        blocks.append(Block(height=row.pixels.shape[0] + 8 * density, parts=((0, 0, row.pixels),)))
    blocks.append(Block(height=6 * density, parts=()))
    return blocks


def _scale_of(row: Row, width: int, density: int) -> Block:
    """Return the scale of a row in one line, and the name of its picture."""
    small, gap = _SMALL * density, 6 * density
    low, _, high = row.ends
    colors = bar_colors(_BAR * density)
    left = text_width(low, small) + gap
    bar = (3 * density, left, np.broadcast_to(colors, (_BAR_HEIGHT * density, len(colors))))
    right = left + len(colors) + gap
    texts = [Block.of([(low, small, _MUTED)], width), Block.of([(high, small, _MUTED)], width).moved(0, right)]
    if row.picture:
        place = right + text_width(high, small) + 2 * gap
        texts.append(Block.of([(row.picture, small, 1.0)], max(1, width - place)).moved(0, place))
    parts = [bar, *(part for text in texts for part in text.parts)]
    return Block(height=line_height(small) + 2 * density, parts=tuple(parts))
