"""Decide how pictures become the input of a converted model, and what it is tried on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from onnxfeat.converter.sources import InputSpec, Source
from onnxfeat.errors import ConversionError, quote
from onnxfeat.preprocessing import CHANNELS, Preprocessing, Preset, adjusted
from onnxfeat.recipes import InputRecipe

FREE_SIDES = (96, 224, 32, 128, 256, 64, 299, 512)
"""Lengths that open axes are tried with, one after the other."""

_SEED = 2024


def input_layout(source: Source) -> str:
    """Return the layout of the picture that a model takes: that of its first layer with a picture."""
    return next((call.layout for call in source.calls if call.layout and len(call.layout) == 4), "NHWC")


def preprocessing_of(source: Source, asked: Preprocessing | Preset | Mapping[str, Any] | None) -> Preprocessing | None:
    """Return what to store in the file; None if the model does not take one picture.

    Where the caller does not say, it is Keras's own way, `load_img` (nearest) and 1/255; a model that scales its input
    by itself gets the levels 0..255 as they are.

    Raises:
        ConversionError: What the caller asks for does not fit the model.
    """
    shapes = [list(spec.shape) for spec in source.inputs]
    if len(shapes) != 1 or len(shapes[0]) != 4:
        if asked:
            raise ConversionError("the model does not take one picture, so it has no preprocessing: leave that out")
        return None
    sides = dict(zip(input_layout(source), shapes[0], strict=True))
    colors = [color for color, count in CHANNELS.items() if sides["C"] in (None, count)]
    if not colors:
        if asked:
            raise ConversionError(
                f"the model takes {sides['C']} channels, which no picture has, so it has no preprocessing: "
                f"leave that out"
            )
        return None
    height, width = sides["H"], sides["W"]
    size = None if height is None or width is None else (height, width)
    taken = source.inputs[0]
    integers = taken.dtype.kind in "iu" and taken.scale is None
    own = Preprocessing(
        size=size,
        # Scaled, all levels of a picture of integers would become 0 or 1.
        scale=1.0 if integers or scaling_layer(source) else 1 / 255,
        color="gray" if sides["C"] == 1 else "rgb",
        interpolation="nearest",  # the default of keras.utils.load_img
    )
    spec = quantized(adjusted(own, asked, channels=sides["C"], integers=integers), taken)
    if spec.color not in colors:
        raise ConversionError(
            f"color {spec.color!r} does not fit the model's {sides['C']} channels: set {quote(colors)}"
        )
    if size is not None and spec.size not in (None, size):
        raise ConversionError(
            f"size {spec.size} does not fit the model's input of {sides['H']} x {sides['W']} pixels: leave the size out"
        )
    return spec


def quantized(spec: Preprocessing, taken: InputSpec) -> Preprocessing:
    """Return what gives the integers that stand for the real numbers that a preprocessing gives.

    Example:
        >>> to_int8 = InputSpec(name="x", shape=(1, 8, 8, 3), dtype=np.dtype("int8"), scale=1 / 255, zero_point=-128)
        >>> found = quantized(Preprocessing(scale=1 / 255), to_int8)
        >>> [round((level * found.scale - found.mean[0]) / found.std[0]) for level in (0, 255)]
        [-128, 127]
    """
    if taken.scale is None:
        return spec
    deviations = spec.std * (len(spec.mean) if len(spec.std) == 1 else 1)
    means = spec.mean * (len(deviations) if len(spec.mean) == 1 else 1)
    return spec.changed(
        {
            "mean": tuple(m - taken.zero_point * taken.scale * d for m, d in zip(means, deviations, strict=True)),
            "std": tuple(d * taken.scale for d in deviations),
        }
    )


def scaling_layer(source: Source) -> str | None:
    """Return the layer by which a model scales its input itself: before the first layer with weights, or None."""
    for call in source.calls:
        if call.layer_class in ("Rescaling", "Normalization"):
            return call.name
        if call.kind == "conv" or call.layer_class in ("Dense", "EinsumDense", "MultiHeadAttention", "LSTM", "GRU"):
            return None
    return None


def notes_on(source: Source, preprocessing: Preprocessing | None, asked: object) -> tuple[str, ...]:
    """Return the sentences on the preprocessing that the user should read."""
    if preprocessing is None:
        return ("the model does not take one picture, so no preprocessing is stored: feed it preprocessed arrays",)
    notes = []
    layer = scaling_layer(source)
    if layer and preprocessing.scale == 1:
        notes.append(f"the model scales its input itself (layer {layer!r}), so pictures are not scaled before")
    elif layer:
        notes.append(
            f"the model scales its input itself (layer {layer!r}), and pictures are scaled by "
            f"{preprocessing.scale:.6g} before: if it was trained on values 0..255, convert again with --preprocess raw"
        )
    elif not asked and preprocessing.scale != 1:
        notes.append(
            "the file does not say how its pictures were prepared, so Keras's default is stored (nearest, 1/255): "
            "convert again with --preprocess if it was trained otherwise"
        )
    resizing = next((call.name for call in source.calls if call.layer_class == "Resizing"), None)
    if resizing:
        notes.append(f"the model resizes its input itself (layer {resizing!r})")
    return tuple(notes)


def recipes_of(source: Source, preprocessing: Preprocessing | None, free_side: int) -> tuple[InputRecipe, ...]:
    """Return what a model is tried on: levels 0..255 as pictures are prepared, else -1..1; integers 0 and 1.

    Args:
        source: The model.
        preprocessing: How pictures are prepared; None where the model takes none.
        free_side: Length of open axes but the batch's, which is 1.
    """
    return tuple(_recipe(spec, preprocessing, free_side) for spec in source.inputs)


def _recipe(spec: InputSpec, preprocessing: Preprocessing | None, free_side: int) -> InputRecipe:
    shape = [side or (free_side if axis else 1) for axis, side in enumerate(spec.shape)]
    # Integers may be the indices of an embedding, whatever its size; real numbers reach both sides of a PReLU.
    low, high = (0.0 if spec.dtype.kind in "iu" else -1.0), 1.0
    if preprocessing is not None:
        mean, std = np.array(preprocessing.mean), np.array(preprocessing.std)
        ends = np.stack([(0 - mean) / std, (255 * preprocessing.scale - mean) / std])
        low, high = float(ends.min()), float(ends.max())
        if spec.dtype.kind in "iu":
            limits = np.iinfo(spec.dtype)
            low, high = max(np.floor(low), limits.min), min(np.ceil(high), limits.max)
    elif spec.scale is not None:
        low, high = float(np.iinfo(spec.dtype).min), float(np.iinfo(spec.dtype).max)
    dtype = "float32" if spec.dtype.name == "bfloat16" else spec.dtype.name
    return InputRecipe(
        name=spec.name, shape=tuple(shape), dtype=dtype, low=float(low), high=float(high), seed=_SEED
    ).sealed()
