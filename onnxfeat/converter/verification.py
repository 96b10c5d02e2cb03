"""Compare a converted model with Keras, layer by layer, on one seeded input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxfeat.converter.keras_models import TracedModel, reason_of, run_in_keras
from onnxfeat.errors import ConversionError, ModelError
from onnxfeat.findings import LayerAgreement
from onnxfeat.graph.reading import read_graph
from onnxfeat.metadata import MappedLayer
from onnxfeat.preprocessing import Preprocessing
from onnxfeat.running.exposure import with_outputs
from onnxfeat.running.runtime import open_session

TOLERANCE = 1e-4
"""Largest error relative to a layer's range that passes without looking at the layer's own noise."""

_SEED = 2024
_FREE_SIDE = 96  # pixels, for inputs without a fixed size
_NOISE_RUNS = 3


def compare(
    model: onnx.ModelProto, traced: TracedModel, layer_map: Sequence[MappedLayer], preprocessing: Preprocessing | None
) -> list[LayerAgreement]:
    """Run one seeded input through Keras and ONNX Runtime; return how far apart each mapped layer is, then each output.

    The input is a picture of random values 0..255, preprocessed as pictures will be. `noise` is how far Keras is from
    itself when what each layer gives moves by a few units in the last place: no other order of summation can be asked
    to be closer.

    Raises:
        ConversionError: Keras can't run the model, or ONNX Runtime can't load or run it.
    """
    feeds = [_seeded(spec, np.random.default_rng(_SEED), preprocessing) for spec in traced.signature]
    expected = run_in_keras(traced, feeds)
    noise = np.zeros(len(expected))
    for run in range(_NOISE_RUNS):
        disturbed = run_in_keras(traced, feeds, disturbed_by=_SEED + run)
        noise = np.fmax(noise, [_distance(b, a) for a, b in zip(expected, disturbed, strict=True)])

    wanted = [*traced.output_names, *(layer.value for layer in layer_map if layer.value is not None)]
    exposed = with_outputs(read_graph(model), wanted, cut=False).SerializeToString()
    try:
        session, _ = open_session(exposed, "cpu", "the converted model")
    except ModelError as error:
        raise ConversionError(f"the conversion gave a model that does not load: {error}") from error
    inputs = [value.name for value in session.get_inputs()]
    try:
        results = session.run(wanted, dict(zip(inputs, feeds, strict=True)))
    except Exception as error:  # ONNX Runtime's exceptions share no base class but this one
        raise ConversionError(f"the conversion gave a model that ONNX Runtime can't run: {reason_of(error)}") from error
    actual = dict(zip(wanted, results, strict=True))

    agreements = []
    count = len(traced.output_names)
    for position, (call, mapped) in enumerate(zip(traced.calls, layer_map, strict=True), start=count):
        if mapped.value is not None:
            value = _in_order(actual[mapped.value], mapped.layout, call.layout)
            distance = _distance(value, expected[position])
            agreements.append(LayerAgreement(name=mapped.name, error=distance, noise=float(noise[position])))
    for position, name in enumerate(traced.output_names):
        distance = _distance(actual[name], expected[position])
        agreements.append(LayerAgreement(name=f"output {name!r}", error=distance, noise=float(noise[position])))
    return agreements


def refuse_disagreement(agreements: Sequence[LayerAgreement]) -> None:
    """Raise a `ConversionError` that names the first layer that is off by more than tolerance and noise."""
    off = [x for x in agreements if not x.error <= max(TOLERANCE, x.noise)]  # NaN is off
    if off:
        first = off[0]
        raise ConversionError(
            f"{len(off)} of {len(agreements)} layers differ from Keras, first {first.name!r}: off by {first.error:.1e} "
            f"of its range, where {TOLERANCE:.0e} is allowed and Keras's own rounding noise is {first.noise:.1e}; no "
            f"file was written. This is a fault in the conversion: please report it with the model"
        )


def _seeded(spec: Any, random: np.random.Generator, preprocessing: Preprocessing | None) -> NDArray[Any]:
    shape = [side or (_FREE_SIDE if axis else 1) for axis, side in enumerate(spec.shape)]
    dtype = np.dtype(spec.dtype.as_numpy_dtype)
    if dtype.kind in "iub" and preprocessing is None:  # indices of an embedding, for instance
        return random.integers(0, 2, shape).astype(dtype)
    pixels = random.integers(0, 256, shape).astype(np.float64)
    if preprocessing is not None:
        pixels = (pixels * preprocessing.scale - np.mean(preprocessing.mean)) / np.mean(preprocessing.std)
    else:
        pixels /= 255
    return pixels.astype(dtype)


def _in_order(value: NDArray[Any], layout: str | None, wanted: str | None) -> NDArray[Any]:
    if layout is None or wanted is None or layout == wanted:
        return value
    return value.transpose([layout.index(axis) for axis in wanted])


def _distance(value: NDArray[Any], reference: NDArray[Any]) -> float:
    """Return the largest absolute difference relative to the range of the reference.

    NaN and infinities must be the same at the same places: else the result is NaN, as for different shapes.
    """
    if value.shape != reference.shape:
        return float("nan")
    if reference.dtype.kind != "f":
        return float(not np.array_equal(value, reference))
    value, reference = value.astype(np.float64), reference.astype(np.float64)
    finite = np.isfinite(reference)
    if not np.array_equal(value[~finite], reference[~finite], equal_nan=True) or not np.isfinite(value[finite]).all():
        return float("nan")
    if not finite.any():
        return 0.0
    value, reference = value[finite], reference[finite]
    extent = float(reference.max() - reference.min()) or float(np.abs(reference).max()) or 1.0
    return float(np.abs(value - reference).max() / extent)
