"""Lay out the page around a picture: title, what it shows, and the legend of its colors.

A page is an `uint8` array of positions in the palette that `colormaps.frame_table` gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxfeat.drawing.colormaps import INK, PAPER, STEPS
from onnxfeat.drawing.legends import STROKE, Legend
from onnxfeat.drawing.lettering import line, line_height, shortened, text_width, wrapped

MARGIN = 12
"""Pixels around everything, at density 1."""
_TITLE, _TEXT, _SMALL = 17, 12, 12  # sizes of letters in pixels
_LEAST_WIDTH = 380
_BAR, _BAR_HEIGHT = 220, 10
_MUTED = 0.72  # part of the ink that text takes which is no title
_SWATCH = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What stands around a picture.

    Attributes:
        title: First line, cut in its middle where it does not fit.
        subtitle: Lines below it.
        legend: What explains the colors; None for none.
        density: Pixels for each pixel of a usual screen.
    """

    title: str
    subtitle: str
    legend: Legend | None
    density: int = 1

    def around(self, height: int, width: int) -> tuple[NDArray[np.uint8], int, int]:
        """Return the page for a picture of that size, without it, and the row and column where its corner belongs."""
        d, margin = self.density, MARGIN * self.density
        inner = max(width, _LEAST_WIDTH * d)
        above = Block.of([(self.title, _TITLE * d, 1.0)], inner)
        above = above.below(Block.paragraph(self.subtitle, _TEXT * d, inner, _MUTED))
        under = self._legend(inner)
        top = margin + above.height + 6 * d
        under_top = top + height + 8 * d
        page = np.full((under_top + under.height + margin, inner + 2 * margin), PAPER, np.uint8)
        above.draw(page, margin, margin)
        under.draw(page, under_top, margin)
        return page, top, margin

    def _legend(self, width: int) -> Block:
        if self.legend is None:
            return Block(height=0, parts=())
        d = self.density
        marks = _marks(self.legend.marks, width, d)
        if not self.legend.ends:
            return Block.paragraph(self.legend.note, _SMALL * d, width, _MUTED).below(marks)
        bar = scale_bar(self.legend.ends, d)
        beside = width - (_BAR + 16) * d
        if text_width(self.legend.note, _SMALL * d) <= beside:
            note = Block.of([(self.legend.note, _SMALL * d, _MUTED)], beside).moved(-d, (_BAR + 16) * d)
            return Block(height=bar.height, parts=(*bar.parts, *note.parts)).below(marks)
        return bar.below(Block.paragraph(self.legend.note, _SMALL * d, width, _MUTED)).below(marks)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Block:
    """Something to be drawn on a page.

    Attributes:
        height: Its rows.
        parts: Row, column and positions in the palette, `uint8` (rows, columns), of each thing in it.
    """

    height: int
    parts: tuple[tuple[int, int, NDArray[np.uint8]], ...]

    @classmethod
    def of(cls, lines: Sequence[tuple[str, int, float]], width: int) -> Block:
        """Return lines of text below each other: text, size of its letters in pixels, and how dark it is, 0 to 1."""
        parts, top = [], 0
        for text, size, darkness in lines:
            parts.append((top, 0, inked(line(shortened(text, size, width), size), darkness)))
            top += line_height(size)
        return cls(height=top, parts=tuple(parts))

    @classmethod
    def paragraph(cls, text: str, size: int, width: int, darkness: float) -> Block:
        """Return a text that is broken into lines of that width."""
        return cls.of([(part, size, darkness) for part in wrapped(text, size, width)], width)

    def moved(self, down: int, right: int) -> Block:
        """Return the same at another place."""
        parts = tuple((top + down, left + right, ink) for top, left, ink in self.parts)
        return Block(height=self.height + down, parts=parts)

    def below(self, other: Block) -> Block:
        """Return both, the other below this one."""
        return Block(height=self.height + other.height, parts=(*self.parts, *other.moved(self.height, 0).parts))

    def draw(self, page: NDArray[np.uint8], top: int, left: int) -> None:
        """Draw it on a page, with its corner at that row and column; what is beyond the page is cut off."""
        for down, right, ink in self.parts:
            row, column = max(0, top + down), left + right
            place = page[row : row + ink.shape[0], column : column + ink.shape[1]]
            place[...] = ink[: place.shape[0], : place.shape[1]]


def inked(ink: NDArray[np.uint8], darkness: float = 1.0) -> NDArray[np.uint8]:
    """Return how much ink is on each pixel, 0 to 255, as positions in the palette, from paper to ink."""
    shades = np.round(np.linspace(0, darkness * (INK - PAPER), 256)).astype(np.uint8) + np.uint8(PAPER)
    colors: NDArray[np.uint8] = shades[ink]
    return colors


def scale_bar(ends: Sequence[str], density: int) -> Block:
    """Return the colors from end to end, and below them what the ends and the middle stand for."""
    width, height, size = _BAR * density, _BAR_HEIGHT * density, _SMALL * density
    colors = bar_colors(width)
    parts = [(0, 0, np.broadcast_to(colors, (height, width)))]
    for text, place in zip(ends, (0.0, 0.5, 1.0), strict=True):
        ink = line(text, size)
        left = round(place * (width - ink.shape[1])) if text else 0
        parts.append((height + density, left, inked(ink, _MUTED)))
    return Block(height=height + density + line_height(size), parts=tuple(parts))


def bar_colors(width: int) -> NDArray[np.uint8]:
    """Return the colors of a scale of that width, (width,): the first at one end, the last at the other."""
    colors: NDArray[np.uint8] = np.round(np.linspace(0, STEPS - 1, width)).astype(np.uint8)
    return colors


def _marks(marks: Sequence[tuple[int, str]], width: int, density: int) -> Block:
    """Return what the other colors stand for, side by side as far as they fit."""
    size, swatch, gap = _SMALL * density, _SWATCH * density, 5 * density
    parts: list[tuple[int, int, NDArray[np.uint8]]] = []
    top = left = 0
    for color, words in marks:
        taken = swatch + gap + text_width(words, size)
        if left and left + taken > width:
            top, left = top + line_height(size), 0
        square = np.full((swatch, swatch), STEPS // 2 if color == STROKE else color, np.uint8)
        if color == STROKE:
            stroke(square[None], density)
        parts += [(top + 2 * density, left, square), (top, left + swatch + gap, inked(line(words, size), _MUTED))]
        left += taken + 3 * gap
    return Block(height=top + line_height(size) + 2 * density if marks else 0, parts=tuple(parts))


def stroke(cells: NDArray[np.uint8], density: int) -> None:
    """Draw a stroke from corner to corner of each of the cells (K, H, W): dark and light, to be seen on any color."""
    height, width = cells.shape[1:]
    rows, columns = np.mgrid[:height, :width]
    along = rows * (width - 1) + columns * (height - 1) - (height - 1) * (width - 1)  # 0 from lower left to upper right
    away = along / max(1, np.hypot(height - 1, width - 1))  # pixels from that line
    cells[:, np.abs(away) <= 1.5 * density] = PAPER
    cells[:, np.abs(away) <= 0.5 * density] = INK
