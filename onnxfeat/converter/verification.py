"""Compare a converted model with its framework, layer by layer, on one seeded input."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxfeat.converter.local_runs import run_locally
from onnxfeat.converter.messages import reason_of
from onnxfeat.converter.preparation import FREE_SIDES, recipes_of
from onnxfeat.converter.sources import Source, disturbed
from onnxfeat.errors import ConversionError, ModelError
from onnxfeat.findings import LayerAgreement
from onnxfeat.graph.reading import read_graph
from onnxfeat.metadata import MappedLayer
from onnxfeat.preprocessing import Preprocessing
from onnxfeat.recipes import InputRecipe
from onnxfeat.references import LayerReference, summarize
from onnxfeat.running.exposure import with_outputs
from onnxfeat.running.runtime import open_session

TOLERANCE = 1e-5
"""Largest error relative to a layer's range that passes without looking at the layer's own noise."""

NOISE_FACTOR = 2
"""How many times its own noise a layer may be off."""

LOCAL_TOLERANCE = 1e-4
"""Largest error, relative to its range, of a layer on the very inputs that it had in the framework.

What rounding alone does there is in models/applications.md.
"""

_WILD = 0.01  # of the range: noise that deep networks have amplified
_FILLING = 0.1  # of the range: noise that leaves nothing to compare

_SEED = 2024
_NOISE_RUNS = 4
_MORE_NOISE_RUNS = 12
_LOCAL_NOISE_RUNS = 2
_PART = 1 << 29  # bytes of layers that are run on their own inputs at once: those of EfficientNetB7 take 4 GB


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What the framework gives on a seeded input, and how sure that is.

    Attributes:
        recipes: The inputs.
        feeds: What the recipes give, in their order.
        values: The model's outputs and then each call's.
        noise: For each of them, how far it moves relative to its range when what each layer gives moves by a few units
            in the last place: no other order of summation can be asked to be closer.
    """

    recipes: tuple[InputRecipe, ...]
    feeds: tuple[NDArray[Any], ...]
    values: tuple[NDArray[Any], ...]
    noise: tuple[float, ...]

    @property
    def by_name(self) -> dict[str, NDArray[Any]]:
        """The feeds by the names of the inputs."""
        return {recipe.name: feed for recipe, feed in zip(self.recipes, self.feeds, strict=True)}


def expected_of(source: Source, preprocessing: Preprocessing | None) -> Expected:
    """Run a model in its framework.

    Raises:
        ConversionError: It can't be run, whatever the length of its open axes.
    """
    recipes, feeds, values = _first_run(source, preprocessing)
    noise = _noise(source, feeds, values, range(_NOISE_RUNS))
    return Expected(recipes=recipes, feeds=feeds, values=tuple(values), noise=tuple(float(x) for x in noise))


def with_more_noise(source: Source, expected: Expected) -> Expected:
    """Return what was expected with the noise of more runs: where it is as large as the range, it varies widely."""
    more = _noise(source, expected.feeds, expected.values, range(_NOISE_RUNS, _NOISE_RUNS + _MORE_NOISE_RUNS))
    return replace(expected, noise=tuple(float(x) for x in np.fmax(expected.noise, more)))


def _noise(
    source: Source, feeds: Sequence[NDArray[Any]], values: Sequence[NDArray[Any]], runs: Iterable[int]
) -> NDArray[np.float64]:
    noise = np.zeros(len(values))
    for run in runs:
        moved = source.run(feeds, disturbed_by=_SEED + run)
        noise = np.fmax(noise, [distance(b, a) for a, b in zip(values, moved, strict=True)])
        del moved  # before the next run takes as much
    return noise


def _first_run(
    source: Source, preprocessing: Preprocessing | None
) -> tuple[tuple[InputRecipe, ...], tuple[NDArray[Any], ...], list[NDArray[Any]]]:
    """Return recipes for inputs that the model takes, these inputs, and what it gives.

    Open axes are tried with several lengths.
    """
    is_open = any(length is None for spec in source.inputs for length in spec.shape[1:])
    problems = []
    for side in FREE_SIDES if is_open else FREE_SIDES[:1]:
        recipes = recipes_of(source, preprocessing, side)
        feeds = tuple(recipe.values() for recipe in recipes)
        try:
            return recipes, feeds, source.run(feeds)
        except ConversionError as error:
            problems.append(error)
    raise problems[0]


def measure(
    model: onnx.ModelProto,
    source: Source,
    layer_map: Sequence[MappedLayer],
    output_names: Sequence[str],
    expected: Expected,
) -> list[LayerAgreement]:
    """Run a converted model in ONNX Runtime; return how far apart each mapped layer is, then each output.

    Raises:
        ConversionError: ONNX Runtime can't load or run the model, or its inputs are not those of the source.
    """
    wanted = list(dict.fromkeys([*output_names, *(layer.value for layer in layer_map if layer.value is not None)]))
    exposed = with_outputs(read_graph(model), wanted, cut=False).SerializeToString()
    try:
        session, _ = open_session(exposed, "cpu", "the converted model")
    except ModelError as error:
        raise ConversionError(f"the conversion gave a model that does not load: {error}") from error
    inputs = [value.name for value in session.get_inputs()]
    if inputs != [spec.name for spec in source.inputs]:
        raise ConversionError(
            f"the converted model has the inputs {inputs}, and {[spec.name for spec in source.inputs]} are wanted: "
            f"report it with the model"
        )
    feeds = expected.by_name
    try:
        results = session.run(wanted, feeds)
    except Exception as error:  # ONNX Runtime's exceptions share no base class but this one
        raise ConversionError(f"the conversion gave a model that ONNX Runtime can't run: {reason_of(error)}") from error
    actual = dict(zip(wanted, results, strict=True))
    agreements = []
    count = len(source.output_names)
    for position, (call, mapped) in enumerate(zip(source.calls, layer_map, strict=True), start=count):
        if mapped.value is not None:
            value = _in_order(actual[mapped.value], mapped.layout, call.layout)
            agreements.append(_agreement(mapped.name, value, expected, position))
    if any(found.error > TOLERANCE for found in agreements):
        agreements = _with_local_errors(agreements, model, source, layer_map, expected)
    agreements += [
        _agreement(f"output {name!r}", actual[name], expected, position) for position, name in enumerate(output_names)
    ]
    return agreements


def _with_local_errors(
    agreements: Sequence[LayerAgreement],
    model: onnx.ModelProto,
    source: Source,
    layer_map: Sequence[MappedLayer],
    expected: Expected,
) -> list[LayerAgreement]:
    """Add how far each layer is off on the inputs that it had in the framework, to those that are off by much.

    Deep networks amplify rounding: there an error as large as the noise says little, and this says it all.
    """
    count = len(source.output_names)
    mapped = [
        (layer, call, expected.values[position])
        for position, (call, layer) in enumerate(zip(source.calls, layer_map, strict=True), start=count)
        if layer.value is not None
    ]
    values = [str(layer.value) for layer, _, _ in mapped]
    given = [_in_order(value, call.layout, layer.layout) for layer, call, value in mapped]
    feeds = expected.by_name
    result = list(agreements)
    doubtful = [number for number, found in enumerate(agreements) if found.error > TOLERANCE]
    for chosen in _in_parts(doubtful, given):
        alone = run_locally(model, values, feeds, given, chosen=chosen)
        moved = np.zeros(len(chosen))
        for run in range(_LOCAL_NOISE_RUNS):
            random = np.random.default_rng(_SEED + run)
            change = partial(_moved, random=random)
            near = {name: change(feed) for name, feed in feeds.items()}
            again = run_locally(model, values, near, given, chosen=chosen, change=change)
            moved = np.fmax(moved, [distance(change(b), a) for a, b in zip(alone, again, strict=True)])
        for number, value, noise in zip(chosen, alone, moved, strict=True):
            local = distance(value, given[number])
            result[number] = replace(agreements[number], local=local, local_noise=float(noise))
    return result


def _in_parts(numbers: Sequence[int], values: Sequence[NDArray[Any]]) -> list[list[int]]:
    """Return positions in parts whose values take no more than `_PART` bytes, or are alone."""
    parts: list[list[int]] = []
    size = 0
    for number in numbers:
        size += values[number].nbytes
        if not parts or size > _PART:
            parts.append([])
            size = values[number].nbytes
        parts[-1].append(number)
    return parts


def _moved(array: NDArray[Any], random: np.random.Generator) -> NDArray[Any]:
    return disturbed(array, random) if array.dtype.kind == "f" else array


def is_within_noise(found: LayerAgreement) -> bool:
    """Return whether a layer is off by no more than the tolerance, or twice its own noise."""
    return found.error <= max(TOLERANCE, NOISE_FACTOR * found.noise)


def is_undecided(agreements: Sequence[LayerAgreement]) -> bool:
    """Return whether the layers that are off have a noise that few runs tell badly, and are right by themselves."""
    off = [found for found in agreements if is_off(found)]
    wild = [found for found in agreements if found.noise > _WILD and not is_within_noise(found)]
    return bool(wild) and all(found in wild and not is_off(replace(found, noise=found.error)) for found in off)


def is_off(found: LayerAgreement) -> bool:
    """Return whether a layer is off by more than tolerance and noise explain.

    Example:
        >>> is_off(LayerAgreement(name="a", error=1e-3, noise=1e-3, local=1e-7, local_noise=1e-7))
        False
        >>> is_off(LayerAgreement(name="a", error=1e-3, noise=1e-3, local=1e-3, local_noise=1e-7))
        True
    """
    # Where noise fills the range, a multiple of it is no measure; the layer's own inputs are. NaN is off.
    within = is_within_noise(found) or (found.noise > _FILLING and found.local is not None and np.isfinite(found.error))
    alone = found.local is None or found.local <= max(LOCAL_TOLERANCE, NOISE_FACTOR * (found.local_noise or 0.0))
    return not (within and alone)


def run_file(path: Path, expected: Expected) -> None:
    """Load the file that was written and run it once, as its user will.

    Raises:
        ConversionError: ONNX Runtime can't load or run it.
    """
    try:
        session, _ = open_session(path, "cpu", "the converted file")
        session.run(None, expected.by_name)
    except ModelError as error:
        raise ConversionError(f"the conversion gave a file that does not load: {error}") from error
    except Exception as error:  # ONNX Runtime's exceptions share no base class but this one
        raise ConversionError(f"the conversion gave a file that ONNX Runtime can't run: {reason_of(error)}") from error


def _agreement(name: str, value: NDArray[Any], expected: Expected, position: int) -> LayerAgreement:
    return LayerAgreement(name=name, error=distance(value, expected.values[position]), noise=expected.noise[position])


def bicubic_layers(model: onnx.ModelProto, layer_map: Sequence[MappedLayer]) -> frozenset[str]:
    """Return the layers whose value a bicubic Resize gives."""
    makers = {name: node for node in model.graph.node for name in node.output}
    nodes = {layer.name: makers.get(layer.value or "") for layer in layer_map}
    return frozenset(
        name
        for name, node in nodes.items()
        if node is not None and any(x.name == "mode" and x.s == b"cubic" for x in node.attribute)
    )


def refuse_disagreement(
    agreements: Sequence[LayerAgreement], framework: str, cubic: Collection[str] = frozenset()
) -> None:
    """Raise a `ConversionError` that names the first layer that is off (see `is_off`).

    Args:
        agreements: All layers, in order of execution.
        framework: What they were compared with.
        cubic: Layers that resize by bicubic interpolation.
    """
    off = [found for found in agreements if is_off(found)]
    if off:
        first = off[0]
        if first.name in cubic:
            raise ConversionError(
                f"layer {first.name!r} is off by {first.error:.1e} of its range: it resizes by bicubic interpolation, "
                f"whose coefficients {framework} rounds to a table of 1024, and ONNX does not; use bilinear there"
            )
        alone = "" if first.local is None else f"; on the very inputs that it had there, by {first.local:.1e}"
        raise ConversionError(
            f"{len(off)} of {len(agreements)} layers differ from {framework}, first {first.name!r}: off by "
            f"{first.error:.1e} of its range, where {TOLERANCE:.0e} is allowed, or {NOISE_FACTOR} times its own "
            f"rounding noise of {first.noise:.1e}{alone}; no file was written. This is a fault in the conversion: "
            f"please report it with the model"
        )


def layer_references(
    source: Source, layer_map: Sequence[MappedLayer], expected: Expected
) -> tuple[LayerReference, ...]:
    """Return what the framework gave for each mapped layer."""
    count = len(source.output_names)
    return tuple(
        summarize(
            mapped.name, expected.values[position], call.layout, noise=mapped.noise or 0.0, error=mapped.error or 0.0
        )
        for position, (call, mapped) in enumerate(zip(source.calls, layer_map, strict=True), start=count)
        if mapped.value is not None
    )


def output_references(
    output_names: Sequence[str], expected: Expected, agreements: Sequence[LayerAgreement]
) -> tuple[LayerReference, ...]:
    """Return what the framework gave for each output."""
    measured = agreements[len(agreements) - len(output_names) :]
    return tuple(
        summarize(name, expected.values[position], None, noise=found.noise, error=found.error)
        for position, (name, found) in enumerate(zip(output_names, measured, strict=True))
    )


def _in_order(value: NDArray[Any], layout: str | None, wanted: str | None) -> NDArray[Any]:
    if layout is None or wanted is None or layout == wanted:
        return value
    return value.transpose([layout.index(axis) for axis in wanted])


def distance(value: NDArray[Any], reference: NDArray[Any]) -> float:
    """Return the largest absolute difference relative to the range of the reference.

    NaN and infinities must be the same at the same places: else the result is NaN, as for different shapes. Truth
    values and texts must be equal.

    Example:
        >>> distance(np.array([0.0, 1.0]), np.array([0.0, 2.0]))
        0.5
    """
    if value.shape != reference.shape:
        return float("nan")
    if reference.dtype.kind in "bUSO" or value.dtype.kind in "bUSO":
        return float(not np.array_equal(value, reference))
    value, reference = value.astype(np.float64), reference.astype(np.float64)
    finite = np.isfinite(reference)
    if not np.array_equal(value[~finite], reference[~finite], equal_nan=True) or not np.isfinite(value[finite]).all():
        return float("nan")
    if not finite.any():
        return 0.0
    value, reference = value[finite], reference[finite]
    low, high = float(reference.min()), float(reference.max())
    return float(np.abs(value - reference).max() / (high - low or abs(high) or 1.0))
