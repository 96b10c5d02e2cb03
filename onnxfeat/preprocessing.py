"""Say how a picture becomes the model's input."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from onnxfeat.errors import PictureError, quote
from onnxfeat.serialization import fields_from_json, fields_to_json

ColorOrder = Literal["rgb", "bgr", "gray"]
Interpolation = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]

CHANNELS = {"rgb": 3, "bgr": 3, "gray": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """How a picture becomes the model's input: `(resized picture * scale - mean) / std`, in the input's layout.

    Attributes:
        size: Height and width in pixels to resize to; None takes the model's input size, or where that is symbolic,
            the picture's own.
        scale: Factor on the values 0..255; 1/255 gives 0..1.
        mean: Number for each channel to subtract after scaling, or one for all.
        std: Number for each channel to divide by then, or one for all; none of them 0.
        color: Order of the channels: `rgb`, `bgr` or `gray`.
        interpolation: Filter of the resize, by Pillow's names.

    Raises:
        PictureError: A value is out of range or not one of the choices.

    Example:
        >>> Preprocessing(scale=1.0, color="bgr", mean=(103.939, 116.779, 123.68)).color
        'bgr'
    """

    size: tuple[int, int] | None = None
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    color: ColorOrder = "rgb"
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        """Take plain numbers and lists as tuples; refuse what could only fail later, or give nonsense."""
        try:
            for name in ("mean", "std"):
                given = getattr(self, name)
                numbers = tuple(float(x) for x in given) if isinstance(given, list | tuple) else (float(given),)
                object.__setattr__(self, name, numbers)
            object.__setattr__(self, "scale", float(self.scale))
            if self.size is not None:
                size = (self.size, self.size) if isinstance(self.size, int) else tuple(int(x) for x in self.size)
                object.__setattr__(self, "size", size)
        except (TypeError, ValueError, OverflowError) as error:
            raise PictureError(
                f"size, scale, mean and std of the preprocessing must be numbers ({error}): pass others"
            ) from error
        for name, value, choices in (
            ("color", self.color, get_args(ColorOrder)),
            ("interpolation", self.interpolation, get_args(Interpolation)),
        ):
            if value not in choices:
                raise PictureError(f"{name} {value!r} is unknown: choose {quote(choices)}")
        if self.size is not None and (len(self.size) != 2 or min(self.size) < 1):
            raise PictureError(f"size {self.size} is not a height and a width in pixels: pass for instance (224, 224)")
        for name, numbers in (("mean", self.mean), ("std", self.std)):
            if len(numbers) not in (1, CHANNELS[self.color]):
                raise PictureError(
                    f"{name} has {len(numbers)} numbers, {self.color} pictures have {CHANNELS[self.color]} channels: "
                    f"pass one number, or one for each channel"
                )
        numbers = (self.scale, *self.mean, *self.std)
        if not np.isfinite(numbers).all() or self.scale == 0 or 0 in self.std:
            raise PictureError("scale, mean and std must be finite, and neither scale nor std may be 0: pass others")

    def changed(self, fields: Mapping[str, Any]) -> Preprocessing:
        """Return a copy with some fields changed.

        Raises:
            PictureError: A name is not that of a field, or its value is out of range.

        Example:
            >>> Preprocessing().changed({"scale": 1.0}).scale
            1.0
        """
        known = [field.name for field in dataclasses.fields(self)]
        unknown = [name for name in fields if name not in known]
        if unknown:
            raise PictureError(f"preprocessing has no field {unknown[0]!r}: choose {quote(known)}")
        return dataclasses.replace(self, **fields)

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON data."""
        return fields_to_json(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Preprocessing:
        """Return the record that `to_json` wrote; keys that are not fields are left out."""
        return cls(**fields_from_json(cls, data))
