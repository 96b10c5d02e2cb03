"""Tell which cells one cell looks at along one axis: what convs, pools, resizes and slices are to rows or columns.

Each step becomes *taps*: for each cell behind it the positions of the cells before it, and how much each of them
counts. ONNX's own definitions say where they are (https://onnx.ai/onnx/operators/), with the rounding of ONNX Runtime.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxfeat.errors import PictureError
from onnxfeat.registration import AxisStep, Coordinates, Nearest, Pad, Repeat, Resize, Slice, Spread, Window

MOST_CELLS = 1 << 15
"""Cells along an axis; a model that makes more of a picture is damaged."""
_MOST_TAPS = 1 << 25  # of all cells


@dataclass(frozen=True, slots=True, eq=False)
class Taps:
    """What the cells behind a step look at.

    Attributes:
        cells: Positions of cells before the step, shape (taps, cells behind it); -1 for padding.
        weights: How much each of them counts, above 0, float32 of the same shape.
    """

    cells: NDArray[np.int64]
    weights: NDArray[np.float32]


def taps_of(step: AxisStep | None, length: int, like: int) -> Taps:
    """Return what each cell behind a step looks at.

    Args:
        step: The step.
        length: Number of cells before it.
        like: Number of cells of the map whose size a Resize takes over.

    Raises:
        PictureError: Nothing is left, or there are more than `MOST_CELLS`.

    Example:
        >>> taps_of(Window(3, stride=2, before=1), 5, 5).cells.T.tolist()
        [[-1, 0, 1], [1, 2, 3]]
    """
    if isinstance(step, Window):
        cells = _window(step, length)
    elif isinstance(step, Spread):
        cells = _spread(step, length)
    elif isinstance(step, Pad):
        cells = _pad(step, length)[None]
    elif isinstance(step, Slice):
        cells = np.arange(length)[slice(step.start, step.stop, step.step)][None]
    elif isinstance(step, Repeat):
        cells = np.arange(_checked(length * step.factor))[None] // step.factor
    elif isinstance(step, Resize):
        return _resize(step, length, like)
    else:
        raise PictureError(f"{step!r} is no step along an axis: expose the model again")
    _checked(cells.shape[1])
    return Taps(cells, np.ones(cells.shape, np.float32))


def _checked(cells: int) -> int:
    if not 0 < cells <= MOST_CELLS:
        raise PictureError(
            f"a step of the model makes {cells:,} cells of this picture, 1 to {MOST_CELLS:,} are wanted: pass a size "
            f"that the model is made for, or export it again"
        )
    return cells


def _points(first: int, last: int, cells: int) -> NDArray[np.int64]:
    """Return the points of a kernel from the first to the last that matters, a row each; at least one."""
    count = max(last - first, 0) + 1
    if count * cells > _MOST_TAPS:
        raise PictureError(
            f"a step of the model has a kernel that covers {count:,} of its cells for each of {cells:,}, which is no "
            f"receptive field to be drawn: export the model again"
        )
    return np.arange(first, first + count)[:, None]


def _inside(cells: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    return np.where((cells >= 0) & (cells < length), cells, -1)


def _window(step: Window, length: int) -> NDArray[np.int64]:
    reach = (step.kernel - 1) * step.dilation + 1
    before, count = step.before, 0
    if step.same:
        count = -(-length // step.stride)
        padding = max((count - 1) * step.stride + reach - length, 0)
        before = padding // 2 if step.same == "upper" else padding - padding // 2
    else:
        room = max(length + step.before + step.after - reach, 0)  # ONNX Runtime takes one that does not fit
        count = (-(-room // step.stride) if step.ceil else room // step.stride) + 1
        # The last window has to start in the picture or in the padding before it.
        if step.ceil and (count - 1) * step.stride >= length + step.before:
            count -= 1
    starts = np.arange(_checked(count)) * step.stride - before
    # Only the points of the kernel that meet the map for some cell: the others are padding for all of them.
    first = max(-(int(starts[-1]) // step.dilation), 0)
    last = min((length - 1 - int(starts[0])) // step.dilation, step.kernel - 1)
    return _inside(starts + _points(first, last, count) * step.dilation, length)


def _spread(step: Spread, length: int) -> NDArray[np.int64]:
    reach = (step.kernel - 1) * step.dilation + 1
    whole = step.stride * (length - 1) + step.extra + reach
    count, before = whole - step.before - step.after, step.before
    if step.same or step.length:
        # ONNX Runtime adds nothing behind where a kernel smaller than its stride leaves a rest.
        count = step.length or min(length * step.stride, whole)
        cut = max(whole - count, 0)
        before = cut // 2 if step.same == "upper" else cut - cut // 2
    places = np.arange(_checked(count)) + before
    # Cell i of the map reaches the places i * stride + k * dilation.
    last = min(step.kernel - 1, int(places[-1]) // step.dilation)
    offsets = places - _points(0, last, count) * step.dilation
    return np.where(offsets % step.stride == 0, _inside(offsets // step.stride, length), -1)


def _pad(step: Pad, length: int) -> NDArray[np.int64]:
    places = np.arange(_checked(length + step.before + step.after)) - step.before
    if step.mode == "constant":
        return _inside(places, length)
    if step.mode == "edge":
        return places.clip(0, length - 1)
    if step.mode == "wrap":
        return places % length
    period = max(2 * (length - 1), 1)  # reflect: the cell at the edge is not repeated
    return length - 1 - np.abs(places % period - (length - 1)) if length > 1 else places * 0


def _resize(step: Resize, length: int, like: int) -> Taps:
    if step.length:
        count, scale = step.length, step.length / length
    elif like != length:
        count = round(step.scale * like)
        scale = count / length
    else:
        count, scale = int(np.floor(np.float32(length) * np.float32(step.scale))), step.scale
    places = _places(step.coordinates, length, _checked(count), scale)
    if step.mode == "nearest":
        cells = _nearest(step.nearest, places, scale)[None].clip(0, length - 1)
        return Taps(cells, np.ones(cells.shape, np.float32))
    before = np.floor(places).astype(np.int64)
    share = places - before
    if step.mode == "linear":
        offsets = np.array([0, 1])[:, None]
        weights = np.stack([1 - share, share])
    else:
        offsets = np.array([-1, 0, 1, 2])[:, None]
        weights = np.abs(_keys(np.abs(offsets - share)))
    cells = (before + offsets).clip(0, length - 1)
    return Taps(np.where(weights > 0, cells, -1), weights.astype(np.float32))


def _places(coordinates: Coordinates, length: int, count: int, scale: float) -> NDArray[np.float32]:
    """Return where the cells of the result lie among those before, in float32 as ONNX Runtime computes it."""
    cells = np.arange(count, dtype=np.float32)
    factor, half = np.float32(scale), np.float32(0.5)
    if coordinates == "asymmetric":
        return np.asarray(cells / factor)
    if coordinates == "align_corners":
        return np.asarray(cells * np.float32(length - 1) / np.float32(max(count - 1, 1)))
    if coordinates == "tf_half_pixel_for_nn":
        return np.asarray((cells + half) / factor)
    if coordinates == "pytorch_half_pixel" and count == 1:
        return np.zeros(1, np.float32)
    return np.asarray((cells + half) / factor - half)


def _nearest(rule: Nearest, places: NDArray[np.float32], scale: float) -> NDArray[np.int64]:
    if rule == "simple":
        rule = "ceil" if scale < 1 else "floor"
    if rule == "floor":
        return np.asarray(np.floor(places).astype(np.int64))
    if rule == "ceil":
        return np.asarray(np.ceil(places).astype(np.int64))
    # Only what lies exactly between two cells is rounded one way or the other.
    half = np.float32(0.5)
    # ONNX Runtime rounds up also what float32's error has brought just below the middle.
    near = np.float32(1e-6)
    rounded = np.ceil(places - half) if rule == "round_prefer_floor" else np.floor(places + half + near)
    return np.asarray(rounded.astype(np.int64))


def _keys(distances: NDArray[Any]) -> NDArray[Any]:
    """Return the weights of Keys's cubic filter with a = -0.75, the default of Resize."""
    near = (1.25 * distances - 2.25) * distances**2 + 1
    far = ((-0.75 * distances + 3.75) * distances - 6) * distances + 3
    return np.asarray(np.where(distances <= 1, near, far))
