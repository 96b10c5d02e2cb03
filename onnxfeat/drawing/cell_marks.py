"""Mark the channels of an image in matplotlib axes: lines between them, strokes through constant ones, their numbers.

All of it are artists of their own; the image stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from onnxfeat.drawing.arrangements import Arrangement

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK, _PAPER = "#202124", "white"
_POINTS = 72.0  # in an inch
# Points.
_LEAST_PARTED, _LEAST_STRUCK = 4.0, 3.0  # shorter side of a channel beside which there is a line, and of one struck
_LEAST_ROW = 7.0  # height of a row that has a tick of its own
_LINE, _STROKE = 0.8, 1.0  # widths of lines at most, and what part of a channel they take:
_LINE_PART, _STROKE_PART = 0.1, 1 / 12
_NUMBER, _LEAST_NUMBER, _PAD = 9.0, 5.0, 2.0  # height of a number at most and at least, and what is around it
_NUMBER_PART = 0.25  # of the height of a channel
_DIGIT = 0.64  # width of a digit of DejaVu Sans for its height
_MOST_NUMBERS = 400


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CellMarks:
    """Where the channels lie in an image, in units of its axes, and what there is to mark.

    Attributes:
        channels: Channel of each cell, (K,): of a volume, its slices are cells.
        flat: Which of them have no contrast, (K,).
        columns: How many cells are in a row.
        height: Of a cell.
        width: Of a cell.
        gap: Between cells.
        arrangement: That of `Arrangement.facts`.
    """

    channels: NDArray[np.intp]
    flat: NDArray[np.bool_]
    columns: int
    height: float
    width: float
    gap: float
    arrangement: str

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """Left, right, bottom and top of the image; a pixel's middle is a whole number, as in `imshow`."""
        rows = -(-len(self.channels) // self.columns)
        right = self.columns * (self.width + self.gap) - self.gap - 0.5
        return -0.5, right, rows * (self.height + self.gap) - self.gap - 0.5, -0.5

    def draw(self, ax: Axes) -> bool:
        """Draw what fits at the present size of the axes; return whether each channel has its number."""
        from matplotlib.collections import LineCollection

        down, across = self._points(ax)
        lines = []
        if self.arrangement == "belt" and across >= _LEAST_PARTED:
            lines.append((self._borders(), _PAPER, min(_LINE, across * _LINE_PART)))
        if self.flat.any() and min(down, across) >= _LEAST_STRUCK:
            strokes, width = self._strokes(), min(_STROKE, min(down, across) * _STROKE_PART)
            lines += [(strokes, _PAPER, 2.6 * width), (strokes, _INK, width)]  # to be seen on any color
        for segments, color, width in lines:
            # Not `plot`, which would change the limits of the axes.
            ax.add_collection(LineCollection(list(segments), colors=color, linewidths=width), autolim=False)
        if self.arrangement == "strip":
            return self._number_rows(ax, down)
        return self._number(ax, down, across)

    def _points(self, ax: Axes) -> tuple[float, float]:
        """Return height and width of a cell in points."""
        ax.apply_aspect()
        left, right, bottom, top = self.extent
        inches = ax.bbox.transformed(ax.figure.dpi_scale_trans.inverted())
        return inches.height * _POINTS * self.height / (bottom - top), inches.width * _POINTS * self.width / (
            right - left
        )

    def _corners(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return left and top of each cell."""
        row, column = np.divmod(np.arange(len(self.channels)), self.columns)
        return column * (self.width + self.gap) - 0.5, row * (self.height + self.gap) - 0.5

    def _borders(self) -> NDArray[np.float64]:
        """Return the lines between the cells of one row, (K - 1, 2, 2): both ends as x and y."""
        left, top = self._corners()
        return np.stack([np.stack([left, top], -1), np.stack([left, top + self.height], -1)], 1)[1:]

    def _strokes(self) -> NDArray[np.float64]:
        """Return lines from the lower left to the upper right of the cells without contrast, (flat, 2, 2)."""
        left, top = (side[self.flat] for side in self._corners())
        ends = np.stack([left, top + self.height], -1), np.stack([left + self.width, top], -1)
        return np.stack(ends, 1)

    def _number(self, ax: Axes, down: float, across: float) -> bool:
        """Write the number of each channel into its upper left corner, if all fit; one alone needs none."""
        from matplotlib.patheffects import withStroke

        is_first = np.append(True, np.diff(self.channels) != 0)  # slice of a volume
        if not 1 < is_first.sum() <= _MOST_NUMBERS:
            return False
        digits = len(str(int(self.channels.max())))
        size = min(_NUMBER, down * _NUMBER_PART, (across - 2 * _PAD) / (digits * _DIGIT))
        if size < _LEAST_NUMBER:
            return False
        outline = [withStroke(linewidth=size / 4, foreground=_INK)]
        pad_x, pad_y = _PAD * self.width / across, _PAD / 2 * self.height / down
        for channel, x, y in zip(self.channels[is_first], *(side[is_first] for side in self._corners()), strict=True):
            ax.text(
                x + pad_x,
                y + pad_y,
                str(channel),
                size=size,
                color=_PAPER,
                va="top",
                clip_on=True,
                path_effects=outline,
            )
        return True

    def _number_rows(self, ax: Axes, down: float) -> bool:
        """Label the rows of a strip with the channels that they are, as many as fit, if the axes have ticks."""
        if len(ax.get_yticks()) == 0:
            return False
        if down >= _LEAST_ROW:
            ax.set_yticks(
                range(len(self.channels)), [str(channel) for channel in self.channels], size=min(_NUMBER, down)
            )
            return True

        def label(value: float, _: float) -> str:
            row = round(value)
            return str(self.channels[row]) if value == row and 0 <= row < len(self.channels) else ""

        ax.yaxis.set_major_formatter(label)
        return False


def cell_marks(found: Arrangement) -> CellMarks:
    """Return where the channels of a layer lie in its image without a frame.

    The axes of a strip count cells and channels, all others pixels.

    Example:
        >>> from onnxfeat.drawing.arrangements import arrange
        >>> from onnxfeat.records import FeatureMap, Layer
        >>> layer = Layer(name="conv2d", kind="conv", op_type="Conv", value="y", raw_value="y")
        >>> cell_marks(arrange(FeatureMap(layer=layer, array=np.zeros((1, 8, 20, 30), np.float32)))).extent
        (-0.5, 239.5, 19.5, -0.5)
    """
    rows, columns = found.cells.shape[1] * found.zoom[0], found.cells.shape[2] * found.zoom[1]
    is_strip = found.facts["arrangement"] == "strip"
    return CellMarks(
        channels=found.channels,
        flat=found.statistics.constant[0, found.channels],
        columns=found.columns,
        height=1 if is_strip else rows,
        width=found.cells.shape[2] * found.facts.get("cells_per_pixel", 1) if is_strip else columns,
        gap=found.gap,
        arrangement=found.facts["arrangement"],
    )
