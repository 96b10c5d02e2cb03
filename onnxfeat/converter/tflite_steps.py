"""Prove quantized layers one by one: on the integers that TFLite gives to it, each gives TFLite's integers or the next.

ONNX describes a quantized layer by real numbers (dequantize, compute, quantize), TFLite computes with integers alone,
so that a value in the middle of two steps may become this one or that. Layer by layer these differences grow, in a deep
network until nothing can be said of its end; hence each layer is run on TFLite's own values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxfeat.converter import tflite_files as files
from onnxfeat.converter.local_runs import run_locally
from onnxfeat.converter.tensorflow_graphs import SINK
from onnxfeat.errors import ConversionError

_SLACK = 0.01  # steps, for the rounding of real units to float32


def refuse_wrong_steps(
    converted: onnx.ModelProto,
    model: Any,
    names: Sequence[str],
    watched: Sequence[int],
    feeds: Mapping[str, NDArray[Any]],
    references: Sequence[NDArray[Any]],
) -> None:
    """Raise a `ConversionError` that names the first quantized layer that is off by more than a step.

    Args:
        converted: The ONNX model, with the node `SINK` that reads every layer's output.
        model: The TFLite model.
        names: The layers' names.
        watched: Numbers of their outputs.
        feeds: Inputs by name.
        references: What TFLite gives for each layer on these inputs, in real units.
    """
    graph = files.main_graph(model)
    found = run_locally(*_without_sink(converted), feeds, references, steps=True)
    known = dict(zip(watched, references, strict=True))
    makers = {number: operator for operator in graph.operators for number in files.numbers_of(operator.outputs)}
    for name, number, value, reference in zip(names, watched, found, references, strict=True):
        scales, _ = files.scale_of(graph.tensors[number])
        if not len(scales):
            continue
        operator = makers[number]
        allowed = 1.0
        source = known.get(int(operator.inputs[0]))
        if files.operator_name(model, operator) == "RESIZE_BILINEAR" and source is not None:
            allowed += _resizing_steps(source, reference, float(scales[0]))
        off = _steps(value, reference, float(scales[0]))
        if not off <= allowed + _SLACK:  # NaN is off
            raise ConversionError(
                f"layer {name!r} ({files.operator_name(model, operator)}) differs from TFLite on the same input: off "
                f"by {off:.1f} steps of its quantization, where {allowed:.1f} are allowed; no file was written. This "
                f"is a fault in the conversion: please report it with the file"
            )


def _without_sink(converted: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """Return the model without the node that reads every layer's output, and what that reads."""
    bare = onnx.ModelProto()
    bare.CopyFrom(converted)
    (sink,) = (node for node in bare.graph.node if node.name == SINK)
    bare.graph.node.remove(sink)
    return bare, list(sink.input)


def _steps(value: NDArray[Any], reference: NDArray[Any], step: float) -> float:
    if value.shape != reference.shape:
        return float("nan")
    return float(np.abs(value - reference).max(initial=0)) / step


def _resizing_steps(source: NDArray[Any], result: NDArray[Any], step: float) -> float:
    """Return by how many steps TFLite is off itself: it computes where to sample with 10 bits behind the point."""
    shifts = [np.abs(np.diff(source, axis=axis)).max(initial=0) * result.shape[axis] / 2**11 for axis in (1, 2)]
    return float(sum(shifts)) / step + 1
