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
Aspect = Literal["stretch", "crop", "pad", "letterbox"]
Resampling = Literal["pillow", "keras"]
Preset = Literal["keras", "torch", "caffe", "tf", "raw"]

CHANNELS = {"rgb": 3, "bgr": 3, "gray": 1}
KERAS_INTERPOLATIONS: tuple[Interpolation, ...] = ("nearest", "bilinear", "bicubic")
"""The filters that `resampling="keras"` knows."""

# The means and deviations of ImageNet's red, green and blue, as in keras.applications.imagenet_utils.
_PRESETS: dict[str, dict[str, Any]] = {
    "keras": {"scale": 1 / 255, "mean": (0.0,), "std": (1.0,), "color": "rgb", "interpolation": "nearest"},
    "torch": {"scale": 1 / 255, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "color": "rgb"},
    "caffe": {"scale": 1.0, "mean": (123.68, 116.779, 103.939), "std": (1.0,), "color": "bgr"},
    "tf": {"scale": 1 / 127.5, "mean": (1.0,), "std": (1.0,), "color": "rgb"},
    "raw": {"scale": 1.0, "mean": (0.0,), "std": (1.0,), "color": "rgb"},
}


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
        aspect: What to do to a picture of another aspect ratio than the size: `stretch` it; `crop` its middle; `pad` it
            on both sides and then resize; or `letterbox` it, resize and then pad. `crop` is `keep_aspect_ratio` of
            Keras's `load_img` and `crop_to_aspect_ratio` of its `Resizing` and `image_dataset_from_directory`; the
            `pad_to_aspect_ratio` of these is `pad` for `Resizing` and `letterbox` for `image_dataset_from_directory`.
        resampling: Whose resize it is: `pillow`, as `load_img` does it, rounds to levels and smooths when it shrinks;
            `keras`, as `Resizing`, `image_dataset_from_directory` and `tf.image.resize` do it, does neither, and
            knows `nearest`, `bilinear` and `bicubic`.
        fill: Level 0..255 of what is padded, before scaling; Keras has 0.

    Raises:
        PictureError: A value is out of range or not one of the choices, or two of them do not go together.

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
    aspect: Aspect = "stretch"
    resampling: Resampling = "pillow"
    fill: float = 0.0

    def __post_init__(self) -> None:
        """Take plain numbers and lists as tuples; refuse what could only fail later, or give nonsense."""
        try:
            for name in ("mean", "std"):
                given = getattr(self, name)
                numbers = tuple(float(x) for x in given) if isinstance(given, list | tuple) else (float(given),)
                object.__setattr__(self, name, numbers)
            for name in ("scale", "fill"):
                object.__setattr__(self, name, float(getattr(self, name)))
            if self.size is not None:
                size = (self.size, self.size) if isinstance(self.size, int) else tuple(int(x) for x in self.size)
                object.__setattr__(self, "size", size)
        except (TypeError, ValueError, OverflowError) as error:
            raise PictureError(
                f"size, scale, mean, std and fill of the preprocessing must be numbers ({error}): pass others"
            ) from error
        for name, choices in (
            ("color", get_args(ColorOrder)),
            ("interpolation", get_args(Interpolation)),
            ("aspect", get_args(Aspect)),
            ("resampling", get_args(Resampling)),
        ):
            if getattr(self, name) not in choices:
                raise PictureError(f"{name} {getattr(self, name)!r} is unknown: choose {quote(choices)}")
        self._refuse_numbers()
        self._refuse_resize()

    def _refuse_numbers(self) -> None:
        """Raise a `PictureError` for numbers that can't be used."""
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

    def _refuse_resize(self) -> None:
        """Raise a `PictureError` for choices on the resize that do not go together."""
        if not 0 <= self.fill <= 255:
            raise PictureError(f"fill {self.fill:g} is not a level: pass a number from 0 to 255")
        if self.resampling == "pillow" and not self.fill.is_integer():
            raise PictureError(
                f"fill {self.fill:g} is between two levels, and Pillow resizes whole ones: pass a whole number, or "
                f"resampling 'keras'"
            )
        if self.resampling == "keras" and self.interpolation not in KERAS_INTERPOLATIONS:
            raise PictureError(
                f"interpolation {self.interpolation!r} is Pillow's alone: choose {quote(KERAS_INTERPOLATIONS)}, or "
                f"resampling 'pillow'"
            )

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


def preset(name: str, color: ColorOrder | None = None) -> dict[str, Any]:
    """Return the fields that a preset stands for: scale, mean, std and color; `keras` also sets the interpolation.

    `torch`, `caffe` and `tf` are the modes of `keras.applications.imagenet_utils.preprocess_input`, to float32's
    rounding; `keras` is `load_img` and 1/255; `raw` is the levels 0..255 as they are.

    Args:
        name: The preset.
        color: Order of the channels, which mean and std follow; None is the preset's own: `bgr` for `caffe`, else
            `rgb`.

    Raises:
        PictureError: There is no such preset.

    Example:
        >>> preset("caffe")["mean"], preset("caffe", "rgb")["mean"]
        ((103.939, 116.779, 123.68), (123.68, 116.779, 103.939))
    """
    if name not in get_args(Preset):
        raise PictureError(f"preset {name!r} is unknown: choose {quote(get_args(Preset))}")
    fields = dict(_PRESETS[name])
    fields["color"] = color or fields["color"]
    if fields["color"] == "bgr":
        fields.update(mean=fields["mean"][::-1], std=fields["std"][::-1])
    return fields


def adjusted(
    base: Preprocessing,
    asked: Preprocessing | Preset | Mapping[str, Any] | None,
    *,
    channels: int | None = None,
    integers: bool = False,
) -> Preprocessing:
    """Return what the caller asks for, on top of what the model's metadata or the defaults say.

    A `Preprocessing` takes the place of `base`. A preset takes that of its scale, mean, std and color (`keras` also of
    its interpolation); size and resize stay. Single fields take their own place, and go before those of a preset that
    is among them as `preset`.

    Args:
        base: What holds where the caller says nothing.
        asked: A `Preprocessing`; a preset's name; or a mapping such as `{"preset": "torch", "size": (224, 224)}`.
        channels: How many channels the model takes; None where it leaves that open.
        integers: Whether the model takes integers.

    Raises:
        PictureError: A name is unknown, a value is out of range, or the preset does not fit the model.

    Example:
        >>> found = adjusted(Preprocessing(), {"preset": "tf", "interpolation": "bicubic"})
        >>> found.mean, found.interpolation
        ((1.0,), 'bicubic')
    """
    if isinstance(asked, Preprocessing):
        return asked
    fields: dict[str, Any] = {"preset": asked} if isinstance(asked, str) else dict(asked or {})
    name = fields.pop("preset", None)
    if name is None:
        return base.changed(fields)
    gray = channels == 1 or (channels is None and base.color == "gray")
    own = preset(name, fields.get("color", "gray" if gray else None))
    fields = {**own, **fields}
    if integers and name != "raw":
        raise PictureError(
            f"preset {name!r} gives numbers between the integers that the model takes: choose 'raw', or set scale, "
            f"mean and std alone"
        )
    if fields["color"] == "gray" and any(len(own[x]) > 1 and fields[x] is own[x] for x in ("mean", "std")):
        raise PictureError(
            f"preset {name!r} has numbers for red, green and blue, the model takes gray pictures: choose 'keras', "
            f"'tf' or 'raw', or set mean and std to one number each"
        )
    return base.changed(fields)
