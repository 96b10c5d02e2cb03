"""Turn pictures into a model's input: decode, resize, scale, and lay out the axes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from onnxfeat.errors import PictureError, quote
from onnxfeat.picture_files import Picture, as_image, content_of, converted, load_array, refuse_bomb, size_of_file
from onnxfeat.preprocessing import CHANNELS, Preprocessing, Preset, adjusted
from onnxfeat.records import ModelInput
from onnxfeat.running.resizing import resized


def name_of(picture: Picture, number: int) -> str:
    """Return a name for a picture: the file's name, else `picture_1`, `picture_2`."""
    return Path(picture).name if isinstance(picture, str | Path) else f"picture_{number}"


def load_samples(
    picture: Picture, target: ModelInput, preprocessing: Preprocessing, max_bytes: int | None = None
) -> NDArray[Any]:
    """Return the model's input for one picture.

    An array or `.npy` file of rank 4 counts as preprocessed already and is taken as it is; one of rank 3 (rows,
    columns, channels) or 2 (rows, columns) with `uint8` values is a picture. A model that takes no pictures (audio,
    volumes) takes arrays alone, which count as preprocessed; the batch axis may be left out.

    Args:
        picture: Path, PIL image or array; never changed.
        target: The model's input.
        preprocessing: What to do to the picture.
        max_bytes: Largest size of the result; None means any.

    Returns:
        Array in the input's layout and element type; its batch axis has length 1, or for a preprocessed array whatever
        that has.

    Raises:
        PictureError: The picture can't be read, does not fit the input, or is larger than `max_bytes` as input.
    """
    path = Path(picture) if isinstance(picture, str | Path) else None
    name = "the array" if path is None else str(path)
    if path is not None and path.suffix.lower() != ".npy" and not target.is_picture:
        raise PictureError(
            f"{path} can't be taken: the input {target.name!r} wants {target.dtype} {target.described}, which is no "
            f"picture; pass a .npy array of that shape"
        )
    content = content_of(picture)
    if isinstance(content, np.ndarray) and _is_input(content, target):
        refuse_large(content.shape, target, name, max_bytes)
        return _preprocessed(content, target, name)
    if path is not None and isinstance(content, np.ndarray):
        refuse_bomb(content.shape[:2], f"{name} is too large to be taken as a picture safely", "pass a smaller picture")
    image = content if isinstance(content, Image.Image) else as_image(np.asarray(content), name)
    height, width = _size(image, target, preprocessing)
    shape = (target.axis("N") or 1, height, width, CHANNELS[preprocessing.color])
    refuse_large(shape, target, f"{name} at {height} x {width}", max_bytes)
    channels = target.axis("C")
    if channels is not None and channels != CHANNELS[preprocessing.color]:
        fitting = [color for color, count in CHANNELS.items() if count == channels]
        advice = f"set color to {quote(fitting)}" if fitting else "no picture has as many"
        raise PictureError(
            f"{name} becomes {CHANNELS[preprocessing.color]} channels ({preprocessing.color}), the input "
            f"{target.name!r} wants {channels}: {advice}, or pass a preprocessed array of shape {target.described}"
        )
    values = _values(image, target, preprocessing, name)
    layout = target.layout or "NHWC"
    if "N" not in layout:
        return np.ascontiguousarray(values.transpose(["HWC".index(axis) for axis in layout]))
    return np.ascontiguousarray(values[None].transpose(["NHWC".index(axis) for axis in layout]))


def is_preprocessed(picture: Picture, target: ModelInput) -> bool:
    """Return whether `load_samples` takes a picture as preprocessed.

    Raises:
        PictureError: The `.npy` file can't be read.
    """
    if not target.is_picture:
        return True
    if isinstance(picture, str | Path):
        path = Path(picture)
        return path.suffix.lower() == ".npy" and _is_input(load_array(path), target)
    return isinstance(picture, np.ndarray) and _is_input(picture, target)


def _is_input(array: NDArray[Any], target: ModelInput) -> bool:
    """Return whether an array is the model's input itself by its axes; one of `uint8` with three is a picture."""
    if not target.is_picture or array.ndim == 4:
        return True
    return array.ndim == len(target.shape) == 3 and array.dtype != np.uint8


def shape_of(
    picture: Picture, target: ModelInput, preprocessing: Preprocessing, max_bytes: int | None = None
) -> tuple[int, ...]:
    """Return the shape that `load_samples` gives one sample of a picture, without decoding the picture.

    Raises:
        PictureError: The picture can't be read, or a batch of it is larger than `max_bytes` as input.
    """
    shape = _shape_of(picture, target, preprocessing)
    name = str(picture) if isinstance(picture, str | Path) else "the array"
    refuse_large((target.axis("N") or 1, *shape), target, f"{name} at {' x '.join(map(str, shape))}", max_bytes)
    return shape


def _shape_of(picture: Picture, target: ModelInput, preprocessing: Preprocessing) -> tuple[int, ...]:
    if target.is_picture and not is_preprocessed(picture, target):
        fixed = target.axis("H") is not None and target.axis("W") is not None
        if fixed or preprocessing.size:
            height, width = preprocessing.size or (target.axis("H") or 0, target.axis("W") or 0)
        elif isinstance(picture, str | Path) and Path(picture).suffix.lower() != ".npy":
            height, width = size_of_file(Path(picture))
        else:
            content = content_of(picture)
            if not isinstance(content, Image.Image) and np.ndim(content) not in (2, 3):
                as_image(np.asarray(content), "the array")  # raises the error that says what is wanted
            width, height = content.size if isinstance(content, Image.Image) else np.shape(content)[1::-1]
        sides = {"N": 1, "C": target.axis("C") or CHANNELS[preprocessing.color], "H": height, "W": width}
        return tuple(sides[letter] for letter in target.layout or "")
    if isinstance(picture, str | Path) and Path(picture).suffix.lower() != ".npy":
        return ()  # a picture for a model that takes none: told when it is loaded
    shape = np.shape(cast(NDArray[Any], content_of(picture)))
    shape = (1, *shape) if len(shape) == len(target.shape) - 1 else shape
    if len(shape) != len(target.shape):
        return ()  # it does not fit: told when it is loaded
    letters = target.layout or "?" * len(shape)
    return tuple(1 if letter == "N" else side for letter, side in zip(letters, shape, strict=True))


def input_type(target: ModelInput) -> np.dtype[Any]:
    """Return NumPy's type of a model's input; float32 for the types that NumPy does not know, such as bfloat16.

    Raises:
        PictureError: The input takes no numbers.
    """
    if target.dtype.startswith("bfloat"):
        return np.dtype(np.float32)
    try:
        dtype = np.dtype(target.dtype)
    except TypeError:
        dtype = np.dtype(object)
    if dtype.kind not in "fiub":
        raise PictureError(
            f"the input {target.name!r} takes values of type {target.dtype}, not the numbers of a picture or array: "
            f"use a model that takes numbers"
        )
    return dtype


def default_preprocessing(target: ModelInput) -> Preprocessing:
    """Return what is assumed where neither the caller nor the model says: resize to the input, RGB or gray, 1/255.

    An input of integers takes the levels 0..255 as they are: scaled, all of them would become 0 or 1. So does one
    whose values the model scales itself: scaled twice, they would all be about 0.
    """
    scale = 1.0 if input_type(target).kind in "iu" or target.scaling else 1 / 255
    return Preprocessing(color="gray" if target.axis("C") == 1 else "rgb", scale=scale)


def choose_preprocessing(
    asked: Preprocessing | Preset | Mapping[str, Any] | None, stored: Preprocessing | None, target: ModelInput
) -> tuple[Preprocessing, str]:
    """Return how pictures are prepared, and who said so: the caller, else the model, else the default.

    Args:
        asked: What the caller wants; see `onnxfeat.preprocessing.adjusted` for what comes first.
        stored: What the model's metadata say.
        target: The model's input.

    Raises:
        PictureError: What the caller wants can't be, or does not fit the input.
    """
    if isinstance(asked, Preprocessing):
        return asked, "caller"
    if stored is not None:
        base, source = stored, "model"
    else:
        base = default_preprocessing(target)
        source = f"default; {target.scaling}" if target.scaling else "default"
    if not asked:
        return base, source
    fields = {"preset": asked} if isinstance(asked, str) else asked
    names = [f"preset {value}" if name == "preset" else name for name, value in fields.items()]
    integers = input_type(target).kind in "iu"
    chosen = adjusted(base, asked, channels=target.axis("C"), integers=integers)
    return chosen, f"{source}, {' and '.join(names)} from the caller"


def refuse_large(shape: Sequence[int], target: ModelInput, name: str, max_bytes: int | None) -> None:
    """Raise a `PictureError` if an input of this shape takes more than `max_bytes`; None means any size."""
    size = math.prod(shape) * input_type(target).itemsize
    if max_bytes is not None and size > max_bytes:
        raise PictureError(
            f"{name} takes {size:,} bytes as the model's input, more than the {max_bytes:,} of max_bytes: pass a "
            f"smaller size or picture, or raise max_bytes"
        )


def _size(image: Image.Image, target: ModelInput, preprocessing: Preprocessing) -> tuple[int, int]:
    return preprocessing.size or (target.axis("H") or image.height, target.axis("W") or image.width)


def _values(image: Image.Image, target: ModelInput, preprocessing: Preprocessing, name: str) -> NDArray[Any]:
    """Return the preprocessed picture, shape (H, W, C), in the element type of the input."""
    # The order of Keras's load_img: first the colors, then the size.
    image = converted(image, "L" if preprocessing.color == "gray" else "RGB", name)
    height, width = _size(image, target, preprocessing)
    for letter, side in (("H", height), ("W", width)):
        if target.axis(letter) not in (None, side):
            raise PictureError(
                f"size {height} x {width} does not fit the input {target.name!r}, which wants {target.described}: "
                f"leave the size out, or pass that one"
            )
    pixels = resized(image, (height, width), preprocessing)
    if preprocessing.color == "bgr":
        pixels = pixels[..., ::-1]
    scale = _looked_up if pixels.dtype == np.uint8 else _scaled
    return scale(pixels, preprocessing, input_type(target))


def _looked_up(pixels: NDArray[np.uint8], preprocessing: Preprocessing, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return scaled levels: a table of 256 is faster than arithmetic on each pixel."""
    levels = np.broadcast_to(np.arange(256)[:, None, None], (256, 1, pixels.shape[2]))
    table = _scaled(levels, preprocessing, dtype)[:, 0]
    values = np.empty(pixels.shape, dtype=dtype)
    for channel in range(pixels.shape[2]):
        values[..., channel] = table[:, channel][pixels[..., channel]]
    return values


def _scaled(pixels: NDArray[Any], preprocessing: Preprocessing, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return `(pixels * scale - mean) / std`, for integers rounded and clipped; shape (H, W, C) as before.

    In float64 and rounded once: 1/255 then gives the very float32 that dividing by 255 gives.
    """
    values = np.empty(pixels.shape, dtype=dtype)
    mean, std = (np.broadcast_to(x, pixels.shape[2:]) for x in (preprocessing.mean, preprocessing.std))
    for channel in range(pixels.shape[2]):  # one at a time, as float64 takes eight times the memory of levels
        exact = (pixels[..., channel].astype(np.float64) * preprocessing.scale - mean[channel]) / std[channel]
        if dtype.kind in "iu":
            exact = exact.round().clip(np.iinfo(dtype).min, np.iinfo(dtype).max)
        values[..., channel] = exact
    return values


def _preprocessed(array: NDArray[Any], target: ModelInput, name: str) -> NDArray[Any]:
    if target.is_batched and array.ndim == len(target.shape) - 1 and target.axis("N") in (None, 1):
        array = array[None]
    letters = target.letters
    fits = array.ndim == len(target.shape) and all(
        letter == "N" or not isinstance(wanted, int) or wanted < 1 or wanted == side
        for letter, wanted, side in zip(letters, target.shape, array.shape, strict=True)
    )
    if not fits or 0 in array.shape:
        raise PictureError(
            f"{name} has shape {array.shape}, the input {target.name!r} wants {target.described}: reshape or "
            f"transpose it"
        )
    dtype = input_type(target)
    if not np.can_cast(array.dtype, dtype, casting="same_kind"):
        raise PictureError(f"{name} has type {array.dtype}, the input {target.name!r} wants {target.dtype}: convert it")
    with np.errstate(over="ignore"):  # what is too large for the type becomes infinite, and is told as such
        return np.ascontiguousarray(array, dtype=dtype)
