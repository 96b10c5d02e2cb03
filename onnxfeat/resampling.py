"""Tell which pixels of a picture each pixel of a resized one is made of, along rows or columns, in Pillow and in Keras.

Both resize rows and columns one after the other, so that one axis tells all. What is returned are *taps*: positions
and weights, both of shape (taps, pixels of the resized picture). A tap that weighs nothing is not looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from onnxfeat.preprocessing import Interpolation

Taps = tuple[NDArray[np.int64], NDArray[np.float64]]

_STEPS = 1024  # between two pixels; TensorFlow rounds to them where it looks up bicubic weights
_PILLOW_BITS = 22  # Pillow rounds weights to multiples of 2 ** -22 (PRECISION_BITS in Resample.c)


def pillow_taps(interpolation: Interpolation, length: int, wanted: int, start: int, extent: int) -> Taps:
    """Return what `PIL.Image.resize` makes `wanted` pixels of: filters that are wider where it shrinks.

    As `precompute_coeffs` in Pillow's Resample.c, and `ImagingScaleAffine` in Geometry.c for nearest neighbors.

    Args:
        interpolation: The filter.
        length: Pixels of the picture.
        wanted: Pixels of the result.
        start: First pixel of the part that is resized; filters also see those beside it.
        extent: Pixels of that part.

    Example:
        >>> pixels, weights = pillow_taps("bilinear", 4, 2, 0, 4)
        >>> [set(x[w > 0].tolist()) for x, w in zip(pixels.T, weights.T)]
        [{0, 1, 2}, {1, 2, 3}]
    """
    scale = extent / wanted
    if interpolation == "nearest":
        # Pillow adds one step after the other, whose rounding decides where two pixels are equally near.
        places = np.add.accumulate(np.concatenate([[start + scale * 0.5], np.full(wanted - 1, scale)]))
        pixels = np.floor(places).astype(np.int64)[None]
        return pixels.clip(0, length - 1), ((pixels >= 0) & (pixels < length)).astype(np.float64)
    radius, filter_ = _FILTERS[interpolation]
    wide = max(scale, 1.0)
    centers = start + (np.arange(wanted) + 0.5) * scale
    first = np.trunc(centers - radius * wide + 0.5).astype(np.int64).clip(0)
    stop = np.trunc(centers + radius * wide + 0.5).astype(np.int64).clip(None, length)
    pixels = first + np.arange(int((stop - first).max()))[:, None]
    weights = np.where(pixels < stop, filter_((pixels - centers + 0.5) / wide), 0.0)
    weights /= weights.sum(axis=0)
    weights[np.abs(weights) < 0.5 / (1 << _PILLOW_BITS)] = 0
    return pixels.clip(0, length - 1), weights


def keras_taps(interpolation: Interpolation, length: int, wanted: int) -> Taps:
    """Return what `tf.image.resize` makes `wanted` pixels of a picture of `length` of, without antialiasing.

    Args:
        interpolation: `nearest`, `bilinear` or `bicubic`.
        length: Pixels of the picture.
        wanted: Pixels of the result.

    Example:
        >>> keras_taps("bilinear", 6, 3)[0].tolist()
        [[0, 2, 4], [1, 3, 5]]
    """
    if interpolation == "nearest":
        return nearest_pixels(length, wanted)[None], np.ones((1, wanted))
    pixels, weights = linear_taps(length, wanted) if interpolation == "bilinear" else cubic_taps(length, wanted)
    return pixels, weights.astype(np.float64)


def nearest_pixels(length: int, wanted: int) -> NDArray[np.int64]:
    """Return the pixel that each of `wanted` pixels is a copy of, in Keras."""
    return np.minimum(np.floor(_positions(length, wanted)).astype(np.int64), length - 1)


def linear_taps(length: int, wanted: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return two pixels and their weights for each of `wanted` pixels, in Keras."""
    place = _positions(length, wanted) - np.float32(0.5)
    before = np.floor(place)
    share = place - before
    pixels = np.stack([before, before + 1]).astype(np.int64).clip(0, length - 1)
    return pixels, np.stack([1 - share, share])


def cubic_taps(length: int, wanted: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return four pixels and their weights for each of `wanted` pixels, in Keras.

    Keys's cubic with a = -0.5; pixels outside the picture weigh nothing, and the others as much more
    (`GetWeightsAndIndices` in TensorFlow's resize_bicubic_op.cc).
    """
    place = _positions(length, wanted) - np.float32(0.5)
    before = np.floor(place)
    step = np.rint((place - before) * np.float32(_STEPS))
    pixels = before.astype(np.int64) + np.arange(-1, 3)[:, None]
    distances = np.stack([_STEPS + step, step, _STEPS - step, 2 * _STEPS - step]) / np.float32(_STEPS)
    near = (np.float32(1.5) * distances - np.float32(2.5)) * distances**2 + 1
    far = ((np.float32(-0.5) * distances + np.float32(2.5)) * distances - 4) * distances + 2
    weights = np.where(distances <= 1, near, far) * ((pixels >= 0) & (pixels < length))
    return pixels.clip(0, length - 1), (weights / weights.sum(axis=0)).astype(np.float32)


def _positions(length: int, wanted: int) -> NDArray[np.float32]:
    """Return where the centers of `wanted` pixels lie among `length`, the first of which has its center at 0.5.

    TensorFlow computes in float32 (`HalfPixelScaler` in image_resizer_state.h), and so does this to round alike.
    """
    step = np.float32(length) / np.float32(wanted)
    return (np.arange(wanted, dtype=np.float32) + np.float32(0.5)) * step


_Filter = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def _box(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return ((x > -0.5) & (x <= 0.5)).astype(np.float64)


def _bilinear(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.maximum(1 - np.abs(x), 0))


def _hamming(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(np.abs(x) < 1, np.sinc(x) * (0.54 + 0.46 * np.cos(math.pi * x)), 0)


def _bicubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return Keys's cubic with a = -0.5."""
    x = np.abs(x)
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def _lanczos(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where((x >= -3) & (x < 3), np.sinc(x) * np.sinc(x / 3), 0)


_FILTERS: dict[Interpolation, tuple[float, _Filter]] = {
    "box": (0.5, _box),
    "bilinear": (1.0, _bilinear),
    "hamming": (1.0, _hamming),
    "bicubic": (2.0, _bicubic),
    "lanczos": (3.0, _lanczos),
}
