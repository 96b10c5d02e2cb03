"""Resize pictures to the pixel as Pillow and as Keras do, with or without keeping their aspect ratio."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from onnxfeat.framing import Box, Size, crop_box, letterbox, pad_margins
from onnxfeat.picture_files import refuse_bomb
from onnxfeat.preprocessing import Interpolation, Preprocessing
from onnxfeat.resampling import cubic_taps, linear_taps, nearest_pixels


def resized(image: Image.Image, size: Size, preprocessing: Preprocessing) -> NDArray[Any]:
    """Return a picture's values 0..255 at another size, as `resampling`, `interpolation`, `aspect` and `fill` say.

    Args:
        image: Picture of mode `L` or `RGB`; never changed.
        size: Height and width wanted.
        preprocessing: How to resize.

    Returns:
        Array of shape (height, width, channels): `uint8` where all values are levels, as from Pillow, else float32.

    Raises:
        PictureError: Padded to the aspect ratio, the picture would be larger than a picture file may be.

    Example:
        >>> column = Image.fromarray(np.array([[0], [100]], dtype=np.uint8))
        >>> resized(column, (4, 1), Preprocessing(color="gray", resampling="keras")).ravel().tolist()
        [0.0, 25.0, 75.0, 100.0]
    """
    given = (image.height, image.width)
    resize = _by_pillow if preprocessing.resampling == "pillow" else _by_keras
    if given == size:
        return _values(image)
    if preprocessing.aspect == "crop":
        return resize(image, size, preprocessing.interpolation, crop_box(given, size, preprocessing.resampling))
    if preprocessing.aspect == "pad":
        top, left = pad_margins(given, size)
        padded = (given[0] + 2 * top, given[1] + 2 * left)
        problem = f"{given[0]} x {given[1]} padded to the aspect ratio is too large to be resized safely"
        refuse_bomb(padded, problem, "set aspect to 'letterbox', which resizes before it pads, or to 'crop'")
        framed = _framed(_values(image), padded, (top, left), preprocessing.fill)
        return resize(framed, size, preprocessing.interpolation, (0, 0, *padded))
    if preprocessing.aspect == "letterbox":
        top, left, height, width = letterbox(given, size)
        inner = resize(image, (height, width), preprocessing.interpolation, (0, 0, *given))
        return _framed(inner, size, (top, left), preprocessing.fill)
    return resize(image, size, preprocessing.interpolation, (0, 0, *given))


def _values(picture: Image.Image | NDArray[Any]) -> NDArray[Any]:
    """Return a picture's values, shape (height, width, channels)."""
    values = np.asarray(picture)
    return values[..., None] if values.ndim == 2 else values


def _framed(values: NDArray[Any], size: Size, corner: Size, fill: float) -> NDArray[Any]:
    """Return the values in a larger array, from `corner` (row, column) on, and `fill` around them."""
    dtype = values.dtype if fill.is_integer() else np.float32
    framed = np.full((*size, values.shape[2]), fill, dtype=dtype)
    (top, left), (height, width) = corner, values.shape[:2]
    framed[top : top + height, left : left + width] = values
    return framed


def _by_pillow(
    picture: Image.Image | NDArray[np.uint8], size: Size, interpolation: Interpolation, box: Box
) -> NDArray[np.uint8]:
    """Resize a part of a picture as `PIL.Image.resize` does, whose filters also see what lies around the part."""
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(picture[..., 0] if picture.shape[2] == 1 else picture)
    top, left, height, width = box
    edges = (left, top, left + width, top + height)
    return _values(picture.resize(size[::-1], Image.Resampling[interpolation.upper()], box=edges))


def _by_keras(picture: Image.Image | NDArray[Any], size: Size, interpolation: Interpolation, box: Box) -> NDArray[Any]:
    """Resize a part of a picture as `tf.image.resize` does without antialiasing; nearest neighbors keep their type."""
    top, left, height, width = box
    pixels = _values(picture)[top : top + height, left : left + width]
    if interpolation == "nearest":
        rows, columns = (nearest_pixels(*sides) for sides in zip((height, width), size, strict=True))
        found: NDArray[Any] = pixels[rows[:, None], columns]
        return found
    taps = linear_taps if interpolation == "bilinear" else cubic_taps
    (rows, down), (columns, across) = (taps(*sides) for sides in zip((height, width), size, strict=True))
    values = np.zeros((*size, pixels.shape[2]), dtype=np.float32)
    # Only the pixels that are used are made float32: a large picture is mostly skipped, as there is no antialiasing.
    for row, y in zip(rows, down, strict=True):
        line = np.zeros_like(values)
        for column, x in zip(columns, across, strict=True):
            line += pixels[row[:, None], column] * x[:, None]
        values += line * y[:, None, None]
    return values
