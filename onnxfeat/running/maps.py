"""Turn what a model gives for a layer into a feature map: float32, real units, channels first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxfeat.errors import LayerError, PictureError
from onnxfeat.preprocessing import Preprocessing
from onnxfeat.records import FeatureMap, Features, Layer, ModelInput
from onnxfeat.registration import Place, Registration, Step


def that_can_be_extracted(chosen: Sequence[Layer]) -> tuple[tuple[Layer, ...], dict[str, str]]:
    """Return the layers whose maps can be had, and why the others can't.

    Raises:
        LayerError: There is none.
    """
    left_out = {}
    for layer in chosen:
        if layer.unseen:
            left_out[layer.name] = layer.unseen
        elif layer.layout is None:
            left_out[layer.name] = f"the graph does not tell the axes of what {layer.op_type} gives"
    layers = tuple(layer for layer in chosen if layer.name not in left_out)
    if not layers:
        name, why = next(iter(left_out.items()))
        raise LayerError(
            f"none of the {len(chosen)} chosen layers can be extracted, {name!r} for instance: {why}; choose others, "
            f"`onnxfeat layers MODEL --layers kind:any` lists them"
        )
    return layers, left_out


def why_no_map(array: Any, layer: Layer) -> str:
    """Return why what a layer gave is no feature map; empty if it is one."""
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub":
        return "gives no array of numbers"
    if array.shape == (0,) and len(layer.layout or "") > 1:
        return "was not computed for this picture: the branch of If that holds it was not taken"
    if array.ndim != len(layer.layout or ""):
        return f"gave an array of shape {array.shape}, where the graph promises the axes {layer.layout}"
    if 0 in array.shape:
        return f"gave an empty array of shape {array.shape}"
    quantization = layer.quantization
    if quantization is not None and quantization.axis is not None:
        length, numbers = array.shape[quantization.axis], len(quantization.scale)
        if length != numbers:
            return f"gave {length} slices along axis {quantization.axis}, and its quantization has {numbers} scales"
    return ""


def map_of(
    array: NDArray[Any], layer: Layer, *, all_samples: bool = False, registration: Registration | None = None
) -> FeatureMap:
    """Return the first sample, or all, of a layer's value as a feature map: float32, real units, channels first.

    A fixed batch is filled with copies of one sample; where the input is fed whole, all of them were asked for.
    """
    layout = layer.layout or ""
    batch = layout.index("N")
    first = np.take(array, [0], axis=batch) if array.shape[batch] > 1 and not all_samples else array
    saturated = None
    if layer.dtype == "int8" and first.dtype == np.uint8:  # taken 128 higher, see `onnxfeat.running.exposure`
        first = (first ^ 0x80).view(np.int8)
    if layer.quantization is not None and first.dtype.kind in "iu":
        saturated = layer.quantization.saturated(first)
        first = layer.quantization.dequantize(first)
    spatial = sorted(set(layout) - set("NC"), key="DHWT".find)
    ordered = first.transpose([layout.index(axis) for axis in ("N", "C", *spatial)])
    values = np.ascontiguousarray(ordered, dtype=np.float32)
    return FeatureMap(layer=layer, array=values, saturated=saturated, registration=registration)


def registrations_of(
    places: Mapping[str, Place],
    steps: tuple[Step, ...],
    target: ModelInput,
    shape: Sequence[int],
    preprocessing: Preprocessing | None,
) -> dict[str, Registration]:
    """Return for each layer whose cells have a place how they lie on a picture.

    Args:
        places: Layer name to place.
        steps: The steps that these lead to.
        target: The model's input.
        shape: Shape of the input for this picture.
        preprocessing: How the picture was prepared; None where it came prepared.
    """
    if not target.is_picture or target.layout is None:
        return {}
    size = shape[target.layout.index("H")], shape[target.layout.index("W")]
    fitted = preprocessing or Preprocessing(interpolation="nearest")
    return {
        name: Registration(
            steps=steps,
            step=place.step,
            size=size,
            aspect=fitted.aspect,
            resampling=fitted.resampling,
            interpolation=fitted.interpolation,
            gated=place.gated,
        )
        for name, place in places.items()
    }


def sample_of(maps: Mapping[str, FeatureMap], index: int) -> dict[str, FeatureMap]:
    """Return the maps of one sample; those of layers that give fewer samples belong to the first ones."""
    return {name: replace(x, array=x.array[index : index + 1]) for name, x in maps.items() if index < len(x.array)}


def joined(layers: Sequence[Layer], parts: Sequence[Features], seconds: float) -> Features:
    """Return the maps of several pictures as one batch.

    Args:
        layers: The layers of the run.
        parts: The maps of each picture; a layer that is not in all of them is left out.
        seconds: Time of the whole run.

    Raises:
        PictureError: The maps of a layer differ in size.
    """
    maps = {}
    for layer in layers:
        found = [part[layer.name] for part in parts if layer.name in part]
        if len(found) < len(parts):
            continue
        if len({feature_map.shape for feature_map in found}) > 1:
            raise PictureError(
                f"the pictures differ in size, and so do their maps of {layer.name!r}: pass them one by one, or "
                f"set the size in the preprocessing"
            )
        shares = [x.saturated for x in found if x.saturated is not None]
        maps[layer.name] = FeatureMap(
            layer=layer,
            array=found[0].array if len(found) == 1 else np.concatenate([x.array for x in found]),
            saturated=sum(shares) / len(shares) if shares else None,
            # Inputs of different sizes may give maps of one size; then there is no one way that these lie on them.
            registration=found[0].registration if len({x.registration for x in found}) == 1 else None,
        )
    return replace(
        parts[0],
        maps=maps,
        pictures=tuple(name for part in parts for name in part.pictures),
        preprocessed=tuple(x for part in parts for x in part.preprocessed),
        photographs=tuple(x for part in parts for x in part.photographs),
        seconds=seconds,
        left_out={name: why for part in parts for name, why in part.left_out.items()},
    )
