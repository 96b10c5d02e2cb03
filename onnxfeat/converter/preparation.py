"""Decide how pictures become the input of a converted model, and what it is tried on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx

from onnxfeat.converter.sources import InputSpec, Source
from onnxfeat.errors import ConversionError, quote
from onnxfeat.graph.reading import read_graph
from onnxfeat.graph.scaling import own_scaling
from onnxfeat.preprocessing import CHANNELS, Preprocessing, Preset, adjusted
from onnxfeat.recipes import InputRecipe

FREE_SIDES = (96, 224, 32, 128, 256, 64, 299, 512)
"""Lengths that open axes are tried with, one after the other."""

_MOST_OF_SCALED = 8.0  # pictures that are scaled, or standardized, reach no further; others reach 255

_SEED = 2024


def input_layout(source: Source) -> str:
    """Return the layout of the picture that a model takes: that of its first layer with a picture."""
    return next((call.layout for call in source.calls if call.layout and len(call.layout) == 4), "NHWC")


def preprocessing_of(
    source: Source, asked: Preprocessing | Preset | Mapping[str, Any] | None, scaling: str | None
) -> Preprocessing | None:
    """Return what to store in the file; None if the model does not take one picture.

    Where the caller does not say, it is Keras's own way, `load_img` (nearest) and 1/255; a model that scales its input
    by itself gets the levels 0..255 as they are.

    Args:
        source: The model.
        asked: What the caller says.
        scaling: How the model scales its input itself (see `scaling_of`).

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
        color="gray" if sides["C"] == 1 else "rgb",
        interpolation="nearest",  # the default of keras.utils.load_img
        **_range_of(taken, raw=integers or scaling is not None),
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


def _range_of(taken: InputSpec, *, raw: bool) -> dict[str, Any]:
    """Return scale and mean for the range that an input was made for: 0..255, -1..1 where integers tell, else 0..1."""
    # Scaled, all levels of a picture of integers would become 0 or 1.
    low, high = taken.real_range or (0.0, 255.0 if raw else 1.0)
    if high > _MOST_OF_SCALED:
        return {"scale": 1.0}
    return {"scale": 1 / 127.5, "mean": (1.0,)} if low < -0.5 else {"scale": 1 / 255}


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


def scaling_of(model: onnx.ModelProto, source: Source) -> str | None:
    """Return how a converted model scales its input itself, or None where it does not."""
    if len(source.inputs) != 1:
        return None
    found = own_scaling(read_graph(model), source.inputs[0].name)
    layer = next((call.name for call in source.calls if call.layer_class in ("Rescaling", "Normalization")), None)
    return f"the model scales its input itself (layer {layer!r})" if found and layer else found


def notes_on(
    source: Source, preprocessing: Preprocessing | None, asked: object, scaling: str | None
) -> tuple[str, ...]:
    """Return the sentences on the preprocessing that the user should read."""
    if preprocessing is None:
        return ("the model does not take one picture, so no preprocessing is stored: feed it preprocessed arrays",)
    notes = []
    real = source.inputs[0].real_range
    if scaling and preprocessing.scale == 1:
        notes.append(f"{scaling}, so pictures are not scaled before")
    elif scaling:
        notes.append(
            f"{scaling}, and pictures are scaled by {preprocessing.scale:.6g} before: if it was trained on values "
            f"0..255, convert again with --preprocess raw"
        )
    elif not asked and real is not None:
        notes.append(
            f"the file does not say how its pictures were prepared; its quantized input spans {real[0]:.3g} to "
            f"{real[1]:.3g}, and so {_named(source.inputs[0])} is stored: convert again with "
            f"--preprocess if it was trained otherwise"
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


def _named(taken: InputSpec) -> str:
    fields = _range_of(taken, raw=False)
    return {1.0: "0..255", 1 / 255: "0..1"}.get(fields["scale"], "-1..1")


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
