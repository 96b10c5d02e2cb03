"""Tell which part of a picture goes where when it is fitted to the aspect ratio of a model's input."""

from __future__ import annotations

import numpy as np

from onnxfeat.preprocessing import Resampling

Size = tuple[int, int]
"""Height and width in pixels."""

Box = tuple[int, int, int, int]
"""Part of a picture: its first row and column, its height and width."""


def crop_box(given: Size, size: Size, resampling: Resampling) -> Box:
    """Return the largest box in the middle of a picture that has the aspect ratio of `size`, at least a pixel.

    `pillow` computes in whole numbers, as `keras.utils.load_img` with `keep_aspect_ratio`; `keras` in float32, as
    `keras.layers.Resizing` with `crop_to_aspect_ratio`.

    Example:
        >>> crop_box((300, 451), (64, 64), "pillow")
        (0, 75, 300, 300)
    """
    (height, width), (tall, wide) = given, size
    if resampling == "pillow":
        crop_height, crop_width = width * tall // wide, height * wide // tall
    else:
        crop_height, crop_width = _quotient(width * tall, wide), _quotient(height * wide, tall)
    crop_height, crop_width = max(min(height, crop_height), 1), max(min(width, crop_width), 1)
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def pad_margins(given: Size, size: Size) -> Size:
    """Return how many rows to put above and below a picture, and columns on both sides, for the aspect ratio of `size`.

    As `keras.layers.Resizing` with `pad_to_aspect_ratio`: of an odd number the last row or column is left out.

    Example:
        >>> pad_margins((300, 451), (64, 64))
        (75, 0)
    """
    (height, width), (tall, wide) = given, size
    rows = max(height, _quotient(width * tall, wide)) - height
    columns = max(width, _quotient(height * wide, tall)) - width
    return rows // 2, columns // 2


def letterbox(given: Size, size: Size) -> Box:
    """Return the box of `size` that a picture fills when it is made as large as fits; at least a pixel.

    As `tf.image.resize_with_pad`, in float32, whose rounding may cost a row or column.

    Example:
        >>> letterbox((300, 451), (64, 64))
        (10, 0, 42, 64)
    """
    sides, wanted = np.asarray(given, dtype=np.float32), np.asarray(size, dtype=np.float32)
    exact = sides / (sides / wanted).max()
    height, width = (max(int(side), 1) for side in np.floor(exact))
    top, left = (max(int(margin), 0) for margin in np.floor((wanted - exact) / 2))
    return top, left, height, width


def _quotient(product: int, divisor: int) -> int:
    """Return the whole part of a quotient of float32, as TensorFlow computes it."""
    return int(np.float32(product) / np.float32(divisor))
