"""Store the maps of a layer as one palette PNG picture, a byte for each cell, from which a page gets its values back.

A pixel is a level: 0 to 251 for finite values, `low + level / 251 * (high - low)` with the ends of its channel, rounded
to the nearest level, so that it is off by half a step at most; then the gap between channels, and what is not finite.
The palette shows them as they are, in viridis, to who has no script.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from onnxfeat.drawing.channel_statistics import ChannelStatistics, not_finite
from onnxfeat.drawing.colormaps import INFINITE_COLOR, NAN_COLOR, color_table
from onnxfeat.drawing.scales import Scale
from onnxfeat.report.contents import Sprite

FINITE = 252
"""Levels of finite values, from 0 on."""
GAP, MINUS_INFINITE, PLUS_INFINITE, NAN = 252, 253, 254, 255

MOST_CELLS = 1 << 22
"""Pixels of a sprite; of larger maps blocks of cells become one. Every browser's canvas holds 16 million."""
MOST_SIDE = 4096
"""Pixels of a side of a channel."""
_WIDTH = 900  # of the picture without a script: what fits a page
_TILE = 48  # pixels that a channel has there at least, if its cells can be enlarged
_THUMBNAIL = 48  # pixels of a side
_NUMBERS_ACROSS = 64
_TINY = 1e-30  # of ranges: `Scale` works in float32
_NONE, _UP = 0, 2  # filters of PNG
_SAMPLE = 1 << 14  # pixels that tell which filter suits a picture


def sprite_of(array: NDArray[np.float32], known: ChannelStatistics, block: int = 1, *, numbers: bool = False) -> Sprite:
    """Return all channels of a layer for one photograph.

    Args:
        array: Values, (C, *spatial) with one to three spatial axes.
        known: What `statistics` gave for `array[None]`.
        block: Cells along each spatial axis whose mean becomes one pixel.
        numbers: Whether the array is `(1, 1, n)`, a number for each of the layer's channels: they become rows of 64.

    Example:
        >>> from onnxfeat.drawing.channel_statistics import statistics
        >>> array = np.zeros((8, 20, 30), np.float32)
        >>> sprite = sprite_of(array, statistics(array[None]))
        >>> sprite.rows, sprite.columns, sprite.across, sprite.width
        (20, 30, 8, 248)
    """
    levels = levels_of(coarse(array, block), known)
    beside = slices_across(levels.shape[1:]) if levels.ndim == 4 else 1
    slices = levels.shape[1] if levels.ndim == 4 else 1
    levels = _folded(levels) if numbers else _flat(levels, beside)
    channels, rows, columns = levels.shape
    zoom = max(1, _TILE // max(rows, columns))
    across = min(channels, max(1, _WIDTH // (zoom * (columns + 1))))
    down = -(-channels // across)
    tiles = np.full((down * across, rows + 1, columns + 1), GAP, np.uint8)
    tiles[:channels, :rows, :columns] = levels
    picture = tiles.reshape(down, across, rows + 1, columns + 1).swapaxes(1, 2)
    return Sprite(
        png=png_of(picture.reshape(down * (rows + 1), across * (columns + 1))),
        across=across,
        down=down,
        rows=rows,
        columns=columns,
        slices=slices,
        slices_across=beside,
        block=block,
        zoom=zoom,
        numbers=array.shape[-1] if numbers else 0,
    )


def block_for(shape: tuple[int, ...]) -> int:
    """Return the least block that a map of this shape `(C, *spatial)` needs to fit a sprite.

    Example:
        >>> block_for((64, 112, 112)), block_for((64, 1024, 1024))
        (1, 4)
    """
    block = 1
    while True:
        sides = [-(-side // block) for side in shape[1:]]
        tall, wide = (1, *sides)[-2:]
        if len(sides) == 3:
            beside = slices_across(sides)
            tall, wide = tall * -(-sides[0] // beside), wide * beside
        fits = math.prod(sides) * shape[0] <= MOST_CELLS and max(wide, tall) <= MOST_SIDE
        if fits or max(sides) == 1:  # then nothing is left to take together
            return block
        block += 1


def coarse(array: NDArray[np.float32], block: int) -> NDArray[np.float32]:
    """Return the means of blocks of cells, at the far ends of those that are left; NaN and infinite values spread.

    Example:
        >>> coarse(np.array([[[1.0, 3.0, 9.0]]], np.float32), 2).tolist()
        [[[2.0, 9.0]]]
    """
    if block == 1:
        return array
    found: NDArray[np.float64] = array.astype(np.float64)  # sums of values near the largest float32
    for axis in range(1, array.ndim):
        starts = np.arange(0, array.shape[axis], block)
        counts = np.diff([*starts, array.shape[axis]])
        with np.errstate(invalid="ignore"):  # infinite values of both signs are NaN
            found = np.add.reduceat(found, starts, axis=axis)
        found /= counts.reshape([-1 if x == axis else 1 for x in range(array.ndim)])
    return found.astype(np.float32)


def levels_of(array: NDArray[np.float32], known: ChannelStatistics) -> NDArray[np.uint8]:
    """Return the level of each value.

    Args:
        array: Values, (C, *spatial).
        known: Statistics of the channels, shape (1, C), whose extremes are the ends.

    Example:
        >>> from onnxfeat.drawing.channel_statistics import statistics
        >>> array = np.array([[[-1.0, 0.0, 1.0, np.nan]]], np.float32)
        >>> levels_of(array, statistics(array[None])).tolist()
        [[[0, 126, 251, 255]]]
    """
    low, high = known.lowest.astype(np.float64), known.highest.astype(np.float64)
    # `Scale` truncates: with half a step more at both ends that is rounding.
    reach = (high - low) / 2 * (FINITE / (FINITE - 1))
    scale = Scale(method="minmax", over="channel", middle=(low + high) / 2, reach=reach)
    levels: NDArray[np.uint8] = scale.levels(array[None], FINITE)[0]
    for channel in np.nonzero((high > low) & (high - low < _TINY))[1]:
        ends = low[0, channel], high[0, channel]
        values = np.clip(np.nan_to_num(array[channel].astype(np.float64)), *ends)
        levels[channel] = np.round((values - ends[0]) / (ends[1] - ends[0]) * (FINITE - 1))
    for channel in np.nonzero(known.not_finite[0])[0]:
        nan, infinite = not_finite(array[channel])
        levels[channel][infinite] = np.where(array[channel][infinite] > 0, PLUS_INFINITE, MINUS_INFINITE)
        levels[channel][nan] = NAN
    return levels


def _flat(levels: NDArray[np.uint8], across: int = 1) -> NDArray[np.uint8]:
    """Return channels as rows and columns: of one axis as a row, of three axes slices side by side, a gap between."""
    if levels.ndim == 2:
        return levels[:, None]
    if levels.ndim == 3:
        return levels
    channels, depth, rows, columns = levels.shape
    down = -(-depth // across)
    tiles = np.full((channels, down * across, rows + 1, columns + 1), GAP, np.uint8)
    tiles[:, :depth, :rows, :columns] = levels
    picture = tiles.reshape(channels, down, across, rows + 1, columns + 1).swapaxes(2, 3)
    return picture.reshape(channels, down * (rows + 1), across * (columns + 1))[:, :-1, :-1]


def slices_across(sides: Sequence[int]) -> int:
    """Return how many slices of a volume lie side by side, so that width and height are about the same.

    Example:
        >>> slices_across((16, 32, 32))
        4
    """
    depth, rows, columns = sides
    return min(depth, max(1, round(math.sqrt(depth * (rows + 1) / (columns + 1)))))


def _folded(levels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return numbers (1, 1, n) in rows of 64, the end of the last row empty."""
    count = levels.size
    columns = min(count, _NUMBERS_ACROSS)
    found = np.full((1, -(-count // columns), columns), GAP, np.uint8)
    found.reshape(-1)[:count] = levels.ravel()
    return found


def thumbnail_of(array: NDArray[np.float32], known: ChannelStatistics) -> bytes:
    """Return the channel of the greatest variance as a PNG file of at most 48 pixels a side; of a volume its middle.

    Args:
        array: Values, (C, *spatial).
        known: What `statistics` gave for `array[None]`.
    """
    channel = int(np.argmax(known.deviation[0]))
    values = array[channel]
    if values.ndim == 3:
        values = values[len(values) // 2]
    small = coarse(values[None], -(-max(values.shape) // _THUMBNAIL))
    names = ChannelStatistics.__slots__
    of_it = ChannelStatistics(**{name: getattr(known, name)[:, channel : channel + 1] for name in names})
    levels = _flat(levels_of(small, of_it))[0]
    if values.ndim == 1:  # a strip, high enough to be seen
        levels = np.repeat(levels, max(1, levels.shape[1] // 2), axis=0)
    return png_of(levels)


def png_of(levels: NDArray[np.uint8]) -> bytes:
    """Return levels (rows, columns) as a palette PNG file whose rows have the filter Up or None.

    Pillow's writer never filters palette pictures. zlib's run-length strategy takes 0.4 times as long as its usual one
    for maps, of the same size.

    The format: https://www.w3.org/TR/png-3/.
    """
    rows, columns = levels.shape
    packer = zlib.compressobj(1, zlib.DEFLATED, 15, 9, zlib.Z_RLE)
    data = packer.compress(_filtered(levels).data) + packer.flush()
    header = struct.pack(">IIBBBBB", columns, rows, 8, 3, 0, 0, 0)  # 8 bits, palette
    parts = ((b"IHDR", header), (b"PLTE", _PALETTE), (b"tRNS", _OPAQUE), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, content) for name, content in parts)


def _filtered(levels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the rows with the number of their filter in front.

    Neighbors are more alike than the levels as such, and Up makes maps smaller by 5 to 10 %, but those of noise larger
    by as much; a sample of rows tells. Rows of gap pack best as they are.
    """
    filtered = np.empty((len(levels), levels.shape[1] + 1), np.uint8)
    above = filtered[:, 1:]
    above[0] = levels[0]
    np.subtract(levels[1:], levels[:-1], out=above[1:])
    is_gap = levels[:, 0] == GAP
    sample = np.flatnonzero(~is_gap)
    sample = sample[:: 1 + sample.size * levels.shape[1] // _SAMPLE]
    as_it_is = is_gap if _entropy(above[sample]) < _entropy(levels[sample]) else np.ones_like(is_gap)
    filtered[:, 0] = np.where(as_it_is, _NONE, _UP)
    above[as_it_is] = levels[as_it_is]
    return filtered


def _entropy(levels: NDArray[np.uint8]) -> float:
    """Return how many bits a level takes, if each is packed by itself."""
    counts = np.bincount(levels.ravel(), minlength=1)
    shares = counts[counts > 0] / levels.size
    return float(-(shares * np.log2(shares)).sum())


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(content, zlib.crc32(name)))


def _palette() -> bytes:
    colors = color_table("viridis")[np.round(np.linspace(0, 255, FINITE)).astype(int)]
    return bytes(colors.tobytes()) + bytes((0, 0, 0, *INFINITE_COLOR, *INFINITE_COLOR, *NAN_COLOR))


_PALETTE = _palette()
_OPAQUE = b"\xff" * GAP + b"\x00"  # but for the gap
