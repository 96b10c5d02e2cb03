"""Tell where the pixels of a photograph lie on the model's input that was made from it, and into which they go."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxfeat.framing import crop_box, letterbox, pad_margins
from onnxfeat.picture_files import Picture, as_image, content_of, converted, refuse_bomb
from onnxfeat.registration import Registration
from onnxfeat.resampling import keras_taps, pillow_taps

_BAND = 256  # rows that are taken out of Pillow's image at a time, which has four bytes for a pixel


def levels_of(photograph: Picture) -> NDArray[np.uint8]:
    """Return a photograph's red, green and blue levels, shape (rows, columns, 3), in an array of their own.

    Raises:
        PictureError: It can't be read.
    """
    name = str(photograph) if isinstance(photograph, str | Path) else "the photograph"
    content = content_of(photograph)
    if isinstance(content, np.ndarray):
        refuse_bomb(content.shape[:2], f"{name} is too large to be taken as a picture safely", "pass a smaller picture")
        content = as_image(np.asarray(content), name)
    image = converted(content, "RGB", name)
    levels = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, _BAND):
        bottom = min(top + _BAND, image.height)
        levels[top:bottom] = np.asarray(image.crop((0, top, image.width, bottom)))
    return levels


@dataclass(frozen=True, slots=True, eq=False)
class Line:
    """How the pixels of a photograph lie on the model's input along one axis.

    Attributes:
        nearest: Pixel of the input at the middle of each pixel of the photograph.
        groups: Group of each pixel of the photograph: those side by side that go into the same pixels of the input.
        goes: Whether the pixels of a group go into one of the input, shape (groups, pixels of the input); None where
            the photograph is the input.
    """

    nearest: NDArray[np.int64]
    groups: NDArray[np.int64]
    goes: NDArray[np.bool_] | None


def lines_of(photograph: tuple[int, int], registration: Registration) -> tuple[Line, Line]:
    """Return how rows and columns of a photograph lie on the input, as it was resized (see `running.resizing`).

    A pixel of the photograph goes into those of the input whose resize looks at it. A resize that skips pixels (nearest
    neighbors, and Keras's, which does not smooth) leaves them without any: they go with the pixel of the input that
    they lie on.

    Args:
        photograph: Rows and columns of the photograph.
        registration: Of the map.

    Example:
        >>> rows, columns = lines_of((6, 2), Registration(steps=(), step=0, size=(2, 2), interpolation="bilinear"))
        >>> rows.goes[rows.groups].astype(int).tolist()
        [[1, 0], [1, 0], [1, 1], [1, 1], [0, 1], [0, 1]]
    """
    if photograph == registration.size:
        rows, columns = (Line(np.arange(side), np.arange(side), None) for side in photograph)
        return rows, columns
    rows, columns = (_line(fit, registration) for fit in _fits(photograph, registration))
    return rows, columns


def on_photograph(mask: NDArray[np.bool_], rows: Line, columns: Line) -> NDArray[np.bool_]:
    """Return whether pixels of a photograph go into pixels of the input in a mask, shape (groups of rows, of columns).

    Args:
        mask: Of the input's shape (rows, columns).
        rows: The rows of the photograph.
        columns: Its columns.
    """
    if rows.goes is None or columns.goes is None:
        return mask
    numbers = rows.goes.astype(np.float32) @ mask.astype(np.float32) @ columns.goes.T.astype(np.float32)
    return np.asarray(numbers > 0)


@dataclass(frozen=True, slots=True)
class _Fit:
    """How a photograph was fitted to the input along one axis: a part of it, or more than it, filled some pixels.

    Attributes:
        pixels: Pixels of the photograph.
        cells: Pixels of the input.
        start: First pixel of the photograph that was resized; below 0 where it was padded before.
        extent: Number of pixels that were resized.
        first: First pixel of the input that was filled.
        filled: Number of these.
    """

    pixels: int
    cells: int
    start: int
    extent: int
    first: int
    filled: int


def _fits(photograph: tuple[int, int], registration: Registration) -> tuple[_Fit, _Fit]:
    size, aspect = registration.size, registration.aspect
    starts, extents, firsts, filled = (0, 0), photograph, (0, 0), size
    if aspect == "crop":
        *corner, height, width = crop_box(photograph, size, registration.resampling)
        starts, extents = (corner[0], corner[1]), (height, width)
    elif aspect == "pad":
        top, left = pad_margins(photograph, size)
        starts, extents = (-top, -left), (photograph[0] + 2 * top, photograph[1] + 2 * left)
    elif aspect == "letterbox":
        *corner, height, width = letterbox(photograph, size)
        firsts, filled = (corner[0], corner[1]), (height, width)
    rows, columns = (_Fit(photograph[x], size[x], starts[x], extents[x], firsts[x], filled[x]) for x in (0, 1))
    return rows, columns


def _line(fit: _Fit, registration: Registration) -> Line:
    pixels, weights = _taps(fit, registration)
    filled = np.broadcast_to(fit.first + np.arange(fit.filled), pixels.shape)
    looked = (weights != 0) & (pixels >= 0) & (pixels < fit.pixels)
    goes = np.zeros((fit.pixels, fit.cells), np.bool_)
    goes[pixels[looked], filled[looked]] = True
    middles = (np.arange(fit.pixels) + 0.5 - fit.start) * (fit.filled / fit.extent)
    nearest = fit.first + np.floor(middles).clip(0, fit.filled - 1).astype(np.int64)
    skipped = np.flatnonzero(~goes.any(axis=1) & (middles >= 0) & (middles < fit.filled))
    goes[skipped, nearest[skipped]] = True
    is_new = np.concatenate([[True], (goes[1:] != goes[:-1]).any(axis=1)])
    return Line(nearest, np.cumsum(is_new) - 1, goes[is_new])


def _taps(fit: _Fit, registration: Registration) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Return the pixels of the photograph, and their weights, that each filled pixel of the input is made of."""
    interpolation = registration.interpolation
    if registration.resampling == "keras":
        pixels, weights = keras_taps(interpolation, fit.extent, fit.filled)
        return pixels + fit.start, weights
    padding = max(-fit.start, 0)
    length = fit.pixels + 2 * padding
    pixels, weights = pillow_taps(interpolation, length, fit.filled, fit.start + padding, fit.extent)
    return pixels - padding, weights
