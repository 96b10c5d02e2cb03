"""Arrange the channels of one layer as one picture, whatever the axes of its maps: belt, grid, strip or slices."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxfeat.drawing.channel_statistics import ChannelStatistics, not_finite, statistics
from onnxfeat.drawing.ordering import ChannelOrder, ordered_channels
from onnxfeat.drawing.pictures import picture_of, tile
from onnxfeat.drawing.scales import LEVELS, Scale, scale_of
from onnxfeat.drawing.sharing import ALONE, Shared
from onnxfeat.drawing.styles import Style
from onnxfeat.drawing.subjects import subject_facts, subject_of
from onnxfeat.drawing.tilings import enlarged, tiling_of
from onnxfeat.records import FeatureMap

BARE = Style(frame=False)
"""Nothing but levels."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Arrangement:
    """The channels of one layer for one picture, as gray levels with rows and columns.

    Attributes:
        cells: Levels, `uint8` (K, rows, columns): the channels in their order, of a volume slice after slice.
        channels: Channel of each of them, (K,).
        columns: How many of them are in a row.
        gap: Pixels between them where there is no frame.
        zoom: Pixels for a cell, down and across.
        nan: Where values are NaN, in the shape of `cells`; None where none is.
        infinite: The same for infinite values.
        order: Which channels are drawn, and what became of the others.
        statistics: What is known of all channels, shape (1, C): in this picture, or in all that share it.
        scale: What the levels stand for.
        facts: How the channels lie in the picture, and what of the map is not in it, as JSON data:
            `channels`, (`depth`,) `height`, `width` of the map, `arrangement`, and as they apply `columns`, `gap`,
            `row_height`, `column_width`, `zoom`, `slices`, `tokens_left_out`, `channels_drawn`, `cells_per_pixel`.
    """

    cells: NDArray[np.uint8]
    channels: NDArray[np.intp]
    columns: int
    gap: int
    zoom: tuple[int, int]
    nan: NDArray[np.bool_] | None
    infinite: NDArray[np.bool_] | None
    order: ChannelOrder
    statistics: ChannelStatistics
    scale: Scale
    facts: Mapping[str, Any]

    @property
    def empty(self) -> NDArray[np.bool_]:
        """Whether each of the `channels` has no finite value, (K,)."""
        sides = [self.facts[side] for side in ("depth", "height", "width") if side in self.facts]
        without: NDArray[np.bool_] = self.statistics.not_finite[0, self.channels] >= math.prod(sides)
        return without

    @property
    def levels(self) -> NDArray[np.uint8]:
        """The picture without a frame: `uint8` (rows, columns), level 0 between channels."""
        return tile(enlarged(self.cells, self.zoom), self.columns, self.gap)


def arrange(
    feature_map: FeatureMap,
    index: int = 0,
    *,
    style: Style = BARE,
    shared: Shared = ALONE,
    steps: int = LEVELS,
) -> Arrangement:
    """Return the channels of one layer for one picture of the batch, in order, as levels.

    - Two spatial axes: all channels in one row, a *belt*, or if that were wider than `style.max_belt`, a *grid*.
    - Tokens: a square number of them is a map of two spatial axes. Up to 8 that come before it (class token,
      registers) are left out.
    - One spatial axis: a heat *strip*, one row a channel; where it is longer than `style.max_belt`, a pixel is the mean
      level of several cells.
    - Three spatial axes: *slices*, one row a channel, one column a slice along the depth. At most 16 slices, fewer
      where they would not fit in `style.max_belt`; several channels in a row where they would not fit below each other.
    - One number a channel (global pooling, dense): one row, a cell for each channel, since a channel of a single cell
      has no contrast of its own.

    Of a map that would give a picture of more than `MAX_SIDE` or `MAX_PIXELS`, the first channels that fit are drawn.

    Args:
        feature_map: Maps of the layer, (N, C, *spatial).
        index: Which picture of the batch.
        style: Normalization, order and arrangement; with `frame`, cells are enlarged to fill a screen's width.
        shared: Scale and order that other pictures have too; what of it is None is found as the style says.
        steps: How many levels there are, 2 to 256.

    Raises:
        PictureError: The map is empty or has more than three spatial axes, or `index` is outside the batch.

    Example:
        >>> from onnxfeat.records import Layer
        >>> layer = Layer(name="conv1d", kind="conv", op_type="Conv", value="y", raw_value="y", layout="NCW")
        >>> found = arrange(FeatureMap(layer=layer, array=np.zeros((1, 64, 100), np.float32)))
        >>> found.levels.shape
        (128, 100)
        >>> dict(found.facts)
        {'channels': 64, 'height': 1, 'width': 100, 'arrangement': 'strip', 'row_height': 2, 'column_width': 1}
    """
    subject = subject_of(feature_map)
    one = picture_of(subject.array, index)
    found = shared.known or statistics(one)
    order, scale = shared.order, shared.scale
    if order is None:
        order = ordered_channels(
            one, order=style.order, top=style.most, dead=style.dead, channels=style.channels, known=found
        )
    if scale is None:
        is_batch = style.scale_over == "batch"
        scale = scale_of(
            subject.array if is_batch else one,
            style.normalize,
            scale_over=style.scale_over,
            percentiles=style.percentiles,
            known=None if is_batch else found,
        )
    plan = tiling_of(one.shape[2:], len(order.channels), style)
    drawn = order.channels[: plan.drawn]
    shown = one if np.array_equal(drawn, np.arange(one.shape[1])) else one[:, drawn]
    levels = scale.of_channels(drawn).levels(shown, steps)[0]
    masks: list[NDArray[np.bool_] | None] = [None, None]
    if found.not_finite[0, drawn].any():
        masks = [plan.cells_with(mask) if mask.any() else None for mask in not_finite(shown[0])]
    facts = {**subject_facts(subject), **plan.facts}
    if len(drawn) < len(order.channels):
        facts["channels_drawn"] = len(drawn)
    return Arrangement(
        cells=plan.cells(levels),
        channels=np.repeat(drawn, len(plan.slices)),
        columns=plan.columns,
        gap=plan.gap,
        zoom=plan.zoom,
        nan=masks[0],
        infinite=masks[1],
        order=order,
        statistics=found,
        scale=scale,
        facts=facts,
    )
