"""Find out how large the maps of a picture will be, where the model leaves that open, before any is computed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxfeat.graph.inference import Types
from onnxfeat.graph.reading import Graph, bound_types
from onnxfeat.picture_files import load_array
from onnxfeat.records import Layer, ModelInput
from onnxfeat.running.exposure import shape_output, with_outputs
from onnxfeat.running.images import input_type
from onnxfeat.running.planning import bytes_of
from onnxfeat.running.runtime import extra_inputs, fed, open_session, run


def types_for(
    graph: Graph, target: ModelInput, given: Mapping[str, Any], shapes: Iterable[tuple[int, ...]]
) -> list[Types]:
    """Return the types of all values for each of several shapes of the input.

    Args:
        graph: The model.
        target: Its input.
        given: Values of its other inputs; lengths that nobody says are 1.
        shapes: Shapes of one sample.
    """
    return [bound_types(graph, _bound(graph, target, given, shape)) for shape in sorted(shapes)]


def sizes_for(
    graph: Graph,
    layers: Sequence[Layer],
    target: ModelInput,
    given: Mapping[str, Any],
    shapes: Iterable[tuple[int, ...]],
) -> dict[str, int | None]:
    """Return layer name to bytes of its maps for the largest of several inputs; None where nothing tells.

    Shape inference tells most. What it does not is asked of the model: it runs once on zeros, and gives the shapes of
    those values in place of the values.
    """
    sizes: dict[str, int | None] = {layer.name: 0 for layer in layers}
    for shape, types in zip(sorted(shapes), types_for(graph, target, given, shapes), strict=True):
        found = {layer.value: types.get(layer.value, (0, None))[1] for layer in layers}
        unknown = [value for value, axes in found.items() if axes is None or not all(isinstance(x, int) for x in axes)]
        found.update(_asked(graph, unknown, target, given, shape) if unknown else {})
        for layer in layers:
            size, before = bytes_of(layer, found[layer.value]), sizes[layer.name]
            sizes[layer.name] = None if size is None or before is None else max(size, before)
    return sizes


def _bound(
    graph: Graph, target: ModelInput, given: Mapping[str, Any], shape: tuple[int, ...]
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all inputs: lengths that nobody says are 1."""
    bound = {
        name: tuple(side if isinstance(side, int) and side > 0 else 1 for side in graph.shape(name) or ())
        for name in graph.inputs
        if graph.shape(name) is not None
    }
    for name, value in given.items():
        if isinstance(value, str | Path | np.ndarray) and name in bound:
            bound[name] = np.shape(load_array(value))
    bound[target.name] = _filled(shape, target)
    return bound


def _filled(shape: tuple[int, ...], target: ModelInput) -> tuple[int, ...]:
    """Return the shape of a sample with the model's own batch, where that is fixed."""
    letters = (target.layout or "").ljust(len(shape))
    return tuple((target.axis("N") or 1) if axis == "N" else side for side, axis in zip(shape, letters, strict=True))


def _asked(
    graph: Graph, values: Sequence[str], target: ModelInput, given: Mapping[str, Any], shape: tuple[int, ...]
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of values as the model itself tells them, of those that it tells for zeros."""
    model = with_outputs(graph, values, cut=True, shapes=True).SerializeToString()
    session, _ = open_session(model, "cpu", graph.origin, graph.folder)
    zeros: NDArray[Any] = np.zeros(_filled(shape, target), input_type(target))
    feed = {target.name: fed(zeros, target), **extra_inputs(session, target.name, given, graph.origin, graph.inputs)}
    wanted = {x.name for x in session.get_inputs()}
    names = [shape_output(value) for value in values]
    try:
        found = run(session, names, {name: value for name, value in feed.items() if name in wanted})
    except Exception:  # of any class; zeros may be what the model can't take, and the run will tell more
        return {}
    return {value: tuple(int(side) for side in sides) for value, sides in zip(values, found, strict=True)}
