"""Run every layer of a converted model on what the framework gave to it, so that no layer inherits an error.

In a deep network, and in a quantized one even more so, the least difference grows from layer to layer: far behind, a
large error says nothing. Cut at every layer, the same ONNX model shows what each one does itself.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
from numpy.typing import NDArray

from onnxfeat.converter.messages import reason_of
from onnxfeat.errors import ConversionError, ModelError
from onnxfeat.graph.flattening import names_used
from onnxfeat.running.runtime import open_session


def run_locally(
    model: onnx.ModelProto,
    watched: Sequence[str],
    feeds: Mapping[str, NDArray[Any]],
    references: Sequence[NDArray[Any]],
    *,
    chosen: Collection[int] | None = None,
    change: Callable[[NDArray[Any]], NDArray[Any]] | None = None,
    steps: bool = False,
) -> list[NDArray[Any]]:
    """Return what each watched value is when all other watched values are the references.

    ONNX Runtime runs the graph as it is written: its integer kernels saturate on some processors.

    Args:
        model: An ONNX model; not changed.
        watched: Values of it. One that a DequantizeLinear gives is cut before that, so that integers go on.
        feeds: The model's inputs by name.
        references: What the framework gave for each watched value, in real units.
        chosen: Positions of the watched values that are wanted; None means all. What they do not need is not run.
        change: What is done to each reference before it is fed; None feeds it as it is.
        steps: Whether quantized values are given as they are. Else an integer that is the reference's or the next to it
            is given as the reference's: a sum in the middle of two steps is rounded either way, and such a step is far
            more than the rounding noise of floating values.

    Raises:
        ConversionError: ONNX Runtime can't load or run the model.

    Example:
        >>> graph = onnx.parser.parse_graph("g (float[2] x) => (float[2] y, float[2] z) { y = Relu(x) z = Neg(y) }")
        >>> x, y, z = (np.array(v, np.float32) for v in ([-1, 2], [5, 5], [7, 7]))
        >>> [v.tolist() for v in run_locally(onnx.helper.make_model(graph), ["y", "z"], {"x": x}, [y, z])]
        [[0.0, 2.0], [-5.0, -5.0]]
    """
    cut = onnx.ModelProto()
    cut.CopyFrom(model)
    graph = cut.graph
    makers = {name: node for node in graph.node for name in node.output}
    weights = {tensor.name: tensor for tensor in graph.initializer}
    places = [_Place(name, makers, weights) for name in watched]
    numbers = range(len(places)) if chosen is None else chosen
    del graph.output[:], graph.value_info[:]  # shapes that were recorded may be of another batch
    sources: dict[str, int] = {}
    for number, place in enumerate(places):
        if place.value in makers and place.fed not in sources:
            sources[place.fed] = number
            kind = onnx.helper.np_dtype_to_tensor_dtype(place.stored_type(references[number]))
            graph.input.append(onnx.helper.make_tensor_value_info(place.fed, kind, references[number].shape))
            if any(places[wanted].value == place.value for wanted in numbers):
                graph.output.append(onnx.helper.make_tensor_value_info(place.value, kind, None))
    fed = {place.value: place.fed for place in places if place.fed in sources}
    for node in graph.node:
        node.input[:] = [fed.get(name, name) for name in node.input]
    _prune(graph)
    found = {}
    if graph.output:
        given = dict(feeds)
        for name in [value.name for value in graph.input if value.name in sources]:
            number = sources[name]
            reference = references[number] if change is None else change(references[number])
            given[name] = places[number].stored(reference)
        found = _run(cut, {value.name: given[value.name] for value in graph.input})
    return [
        places[number].real(found[places[number].value], None if steps else references[number])
        if places[number].value in found
        else references[number]
        for number in numbers
    ]


def _prune(graph: onnx.GraphProto) -> None:
    """Take away what no output needs."""
    needed = {output.name for output in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(names_used(node))
    for field, items in (
        (graph.node, kept[::-1]),
        (graph.input, [value for value in graph.input if value.name in needed]),
        (graph.initializer, [tensor for tensor in graph.initializer if tensor.name in needed]),
    ):
        copies = [type(item).FromString(item.SerializeToString()) for item in items]
        del field[:]
        field.extend(copies)


class _Place:
    """Where a watched value is cut, and what its integers stand for.

    Attributes:
        value: The value of the graph that is replaced.
        fed: The name of the input that replaces it.
    """

    def __init__(self, name: str, makers: Mapping[str, Any], weights: Mapping[str, onnx.TensorProto]) -> None:
        self._scale: NDArray[Any] | None = None
        self._zero = np.zeros((), np.int8)
        while (node := makers.get(name)) is not None and node.op_type == "Identity":
            name = node.input[0]
        if node is not None and node.op_type == "DequantizeLinear" and set(node.input[1:]) <= set(weights):
            self._scale = onnx.numpy_helper.to_array(weights[node.input[1]])
            self._zero = onnx.numpy_helper.to_array(weights[node.input[2]])
            name = node.input[0]
        self.value, self.fed = name, f"{name}/reference"

    def stored(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return real values as the graph holds them."""
        if self._scale is None:
            return values
        numbers: NDArray[Any] = np.rint(values.astype(np.float64) / self._scale) + self._zero
        return numbers.astype(self._zero.dtype, copy=False)

    def stored_type(self, values: NDArray[Any]) -> np.dtype[Any]:
        """Return the element type in which the graph holds real values."""
        return values.dtype if self._scale is None else self._zero.dtype

    def real(self, values: NDArray[Any], near: NDArray[Any] | None) -> NDArray[Any]:
        """Return values of the graph in real units; quantized ones as those near, where they are a step off at most."""
        if self._scale is None:
            return values
        numbers = values.astype(np.int64)
        real: NDArray[Any] = ((numbers - self._zero.astype(np.int64)) * self._scale).astype(np.float32)
        if near is None or near.shape != real.shape:
            return real
        return np.where(np.abs(numbers - self.stored(near).astype(np.int64)) <= 1, near, real)


def _run(model: onnx.ModelProto, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    names = [output.name for output in model.graph.output]
    try:
        session, _ = open_session(model.SerializeToString(), "cpu", "the converted model", optimized=False)
    except ModelError as error:
        raise ConversionError(f"the conversion gave a model that does not load: {error}") from error
    try:
        return dict(zip(names, session.run(names, dict(feeds)), strict=True))
    except Exception as error:  # ONNX Runtime's exceptions share no base class but this one
        raise ConversionError(f"the conversion gave a model that ONNX Runtime can't run: {reason_of(error)}") from error
