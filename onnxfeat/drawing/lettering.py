"""Set text in small letters: titles, scales, and numbers for thousands of channels at once.

The font is the one that comes with Pillow (Aileron, CC0); it has no other letters than those of ASCII that can be
relied on, so others are written as their escapes.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

_DIGITS = "0123456789"
_CONTROLS = re.compile(r"[\x00-\x1f\x7f]")


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def line_height(size: int) -> int:
    """Return the height in pixels of a line of text of that size."""
    return size + size // 3


@functools.lru_cache(maxsize=1024)
def text_width(text: str, size: int) -> int:
    """Return the width of a text in pixels."""
    return int(np.ceil(_font(size).getlength(plain(text))))


@functools.lru_cache(maxsize=1024)
def line(text: str, size: int) -> NDArray[np.uint8]:
    """Return one line of text as how much ink is on each pixel, `uint8` of shape (`line_height(size)`, width).

    Example:
        >>> line("conv2d", 12).shape[0]
        16
    """
    image = Image.new("L", (max(1, text_width(text, size)), line_height(size)))
    ImageDraw.Draw(image).text((0, 0), plain(text), font=_font(size), fill=255)
    ink = np.asarray(image)
    ink.flags.writeable = False  # it is cached
    return ink


def plain(text: str) -> str:
    r"""Return a text in letters that the font has, others as their escapes.

    Example:
        >>> plain("größe\n")
        'gr\\xf6\\xdfe\\x0a'
    """
    printed = _CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", text)  # a line break would begin another line
    return printed.encode("ascii", errors="backslashreplace").decode()


def shortened(text: str, size: int, width: int) -> str:
    """Return a text that fits a width in pixels, its middle replaced by dots where it did not."""
    if text_width(text, size) <= width:
        return text
    keep = max(2, len(text) * (width - text_width("...", size)) // text_width(text, size))
    while keep > 2 and text_width(f"{text[: (keep + 1) // 2]}...{text[-(keep // 2) :]}", size) > width:
        keep -= 1
    return f"{text[: (keep + 1) // 2]}...{text[-(keep // 2) :]}"


def wrapped(text: str, size: int, width: int) -> list[str]:
    """Return a text in lines that fit a width in pixels, broken between words.

    Example:
        >>> wrapped("64 channels of 112 x 112", 12, 80)
        ['64 channels', 'of 112 x 112']
    """
    lines: list[str] = []
    for word in text.split():
        if lines and text_width(f"{lines[-1]} {word}", size) <= width:
            lines[-1] = f"{lines[-1]} {word}"
        else:
            lines.append(shortened(word, size, width))
    return lines


def digit_width(size: int) -> int:
    """Return the pixels from one digit to the next."""
    return text_width("0", size)


def numbers(values: NDArray[np.intp], size: int) -> NDArray[np.uint8]:
    """Return whole numbers as text, all at once, aligned to the left: `uint8` (K, `line_height(size)`, width).

    Drawing thousands of numbers one by one takes longer than the pictures that they number.

    Example:
        >>> numbers(np.array([7, 1024]), 9).shape[0]
        2
    """
    count = len(str(int(values.max(initial=0))))
    atlas = np.zeros((11, line_height(size), digit_width(size)), np.uint8)
    for digit, letter in enumerate(_DIGITS):
        glyph = line(letter, size)
        atlas[digit, :, : glyph.shape[1]] = glyph[:, : atlas.shape[2]]
    places = np.full((len(values), count), 10)  # the 11th glyph is empty
    rest, lengths = values.copy(), np.maximum(np.char.str_len(values.astype(str)), 1)
    for place in range(count):
        at = lengths - 1 - place
        some = at >= 0
        places[some, at[some]] = rest[some] % 10
        rest //= 10
    ink: NDArray[np.uint8] = atlas[places].transpose(0, 2, 1, 3).reshape(len(values), atlas.shape[1], -1)
    return ink


def columns_of(texts: Sequence[str], size: int, width: int) -> NDArray[np.uint8]:
    """Return some short texts, each cut at a width in pixels: `uint8` (K, `line_height(size)`, width)."""
    found = np.zeros((len(texts), line_height(size), width), np.uint8)
    for row, text in zip(found, texts, strict=True):
        ink = line(text, size)[:, :width]
        row[:, : ink.shape[1]] = ink
    return found
