"""Open pictures safely, whatever the file holds: paths, PIL images and arrays as levels."""

from __future__ import annotations

import contextlib
import math
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from onnxfeat.errors import OnnxfeatError, PictureError
from onnxfeat.files import sha256_of

Picture = str | Path | Image.Image | NDArray[Any]
"""A picture: path of a file that Pillow reads or of a `.npy` array, PIL image, or array."""

_WANTED = "PNG, JPEG, WebP or .npy file"
_16_BIT = ("I;16", "I;16L", "I;16B", "I;16N")


def content_of(picture: Picture, longest: int | None = None) -> Image.Image | NDArray[Any]:
    """Return a picture decoded where it is a file, else as it is.

    Args:
        picture: The picture.
        longest: Pixels of the longer side that are enough: a JPEG file is decoded at a half, a quarter or an eighth of
            its size where that is no less, which takes a fraction of the time; None is its own size.

    Raises:
        PictureError: The file can't be read.
    """
    if not isinstance(picture, str | Path):
        return picture
    path = Path(picture)
    return load_array(path) if path.suffix.lower() == ".npy" else _opened(path, longest)


def load_array(source: str | Path | NDArray[Any]) -> NDArray[Any]:
    """Return the array in a `.npy` file, mapped and read-only; an array is returned as it is.

    Raises:
        PictureError: The file can't be read.
    """
    if isinstance(source, np.ndarray):
        return source
    path = Path(source)
    try:
        _refuse_other(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # the size that a header promises overflows: it is refused
            # Mapped, not read: nothing is allocated for a header that promises more than the file holds.
            return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except FileNotFoundError:
        raise PictureError(f"there is no file {path}: check the path of the array") from None
    except PictureError:
        raise
    except Exception as error:  # a damaged header gives anything from TokenError to MemoryError
        raise PictureError(f"{path} can't be read as an array ({error}): write it with numpy.save") from error


def size_of_file(path: Path) -> tuple[int, int]:
    """Return height and width of a picture file, which its header tells."""
    with readable_file(path), Image.open(path) as image:
        return image.height, image.width


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a picture file as 64 hexadecimal digits.

    Raises:
        PictureError: The file can't be read.
    """
    with readable_file(path):
        return sha256_of(path)


def _opened(path: Path, longest: int | None) -> Image.Image:
    with readable_file(path), Image.open(path) as image:
        if longest is not None and longest < max(image.size):
            # What Pillow makes is no smaller than this along either axis.
            width, height = (max(side * longest // max(image.size), 1) for side in image.size)
            image.draft(None, (width, height))
        image.load()
        return image


@contextlib.contextmanager
def readable_file(path: Path, wanted: str = _WANTED) -> Iterator[None]:
    """Turn what goes wrong while a picture file is read into one sentence.

    Args:
        path: The file.
        wanted: Which files could be read, for the advice.

    Raises:
        PictureError: The file is missing, no picture, damaged, or larger than Pillow decodes safely.
    """
    try:
        _refuse_other(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tags that are damaged; what matters is whether the pixels can be had
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except FileNotFoundError:
        raise PictureError(f"there is no file {path}: check the path of the picture") from None
    except PermissionError:
        raise PictureError(f"{path} is not for you to read: change its permissions, or pass another one") from None
    except OnnxfeatError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PictureError(f"{path} is too large to be decoded safely ({error}): pass a smaller picture") from error
    except UnidentifiedImageError as error:
        raise PictureError(f"{path} is not a picture that Pillow reads: pass a {wanted}") from error
    except Exception as error:  # on damaged files the decoders raise whatever they stumble over
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise PictureError(f"{path} can't be read ({reason}): pass an undamaged {wanted}") from error


def _refuse_other(path: Path) -> None:
    if path.is_dir():
        raise PictureError(f"{path} is a folder, a picture is wanted: name the files in it")
    if path.exists() and not path.is_file():  # it would be waited for without end
        raise PictureError(f"{path} is a device or pipe, a picture is wanted: write it to a file first")


def as_image(array: NDArray[Any], name: str) -> Image.Image:
    """Return an array of levels as an image.

    Args:
        array: `uint8` of shape (rows, columns) or (rows, columns, channels).
        name: What to call it in messages.

    Raises:
        PictureError: It is no picture.
    """
    if array.dtype != np.uint8 or array.ndim not in (2, 3):
        raise PictureError(
            f"{name} has shape {array.shape} and type {array.dtype}: a picture is uint8 of shape (rows, columns, "
            f"channels), a preprocessed input has four axes; pass array[None] for one that lacks the batch axis"
        )
    if array.ndim == 3 and array.shape[2] not in (1, 3, 4):
        raise PictureError(
            f"{name} has {array.shape[2]} channels on its last axis, a picture has 1, 3 or 4: reorder its axes"
        )
    return Image.fromarray(array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array)


def converted(image: Image.Image, mode: Literal["L", "RGB"], name: str) -> Image.Image:
    """Return an image with gray or red, green and blue levels; of 16 bits the upper eight, and no transparency.

    Args:
        image: The image; never changed.
        mode: Pillow's name of what is wanted.
        name: What to call it in messages.

    Raises:
        PictureError: Its range is unknown, it is damaged, or it has no pixel.
    """
    if image.mode in _16_BIT:
        # Pillow would clip 16 bits at 255 and turn the picture white; the upper byte is the picture.
        image = Image.fromarray((np.asarray(image, dtype=np.uint16) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise PictureError(f"{name} has 32-bit pixels, whose range is unknown: save it with 8 or 16 bits a channel")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # Pillow's advice on transparency, which is dropped here
            image = image.convert(mode)
    except (OSError, ValueError) as error:  # a PIL image may be of a rare mode, or decoded only now
        raise PictureError(f"{name} can't be converted to mode {mode} ({error}): pass an RGB picture") from error
    if 0 in image.size:
        raise PictureError(f"{name} is {image.width} x {image.height} and so has no pixel: pass a picture")
    return image


def refuse_bomb(sides: Sequence[int], problem: str, advice: str) -> None:
    """Raise a `PictureError` for a picture of more pixels than Pillow takes of a picture file."""
    pixels, most = math.prod(sides), Image.MAX_IMAGE_PIXELS or sys.maxsize
    if pixels > most:
        raise PictureError(f"{problem} ({pixels:,} pixels, at most {most:,}): {advice}")
