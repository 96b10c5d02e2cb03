"""Turn what a model gives for a layer into a feature map: float32, real units, channels first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxfeat.errors import LayerError
from onnxfeat.records import FeatureMap, Layer


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


def map_of(array: NDArray[Any], layer: Layer, *, all_samples: bool = False) -> FeatureMap:
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
    return FeatureMap(layer=layer, array=np.ascontiguousarray(ordered, dtype=np.float32), saturated=saturated)


def sample_of(maps: Mapping[str, FeatureMap], index: int) -> dict[str, FeatureMap]:
    """Return the maps of one sample; those of layers that give fewer samples belong to the first ones."""
    return {name: replace(x, array=x.array[index : index + 1]) for name, x in maps.items() if index < len(x.array)}
