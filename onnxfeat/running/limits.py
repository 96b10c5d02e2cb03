"""Refuse runs that can only fail: values larger than the machine's memory, loops that never end."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import numpy as np
import onnx
import onnx.helper

from onnxfeat.errors import ModelError
from onnxfeat.graph.inference import Types
from onnxfeat.graph.reading import Graph, operator
from onnxfeat.running.exposure import needed
from onnxfeat.running.planning import readable

# Rounds of a Loop that nothing but their number ends: at a microsecond each this is more than a quarter of an hour.
_MOST_ROUNDS = 10**9


def refuse_absurd(graph: Graph, types: Types, values: Sequence[str]) -> None:
    """Raise a `ModelError` if what the values need is larger than the machine's memory, or takes for ever.

    Args:
        graph: The model.
        types: Types of its values, bound to the picture where that is known.
        values: What is to be computed.
    """
    nodes, names = needed(graph, values)
    for node in nodes:
        if operator(node) == "Loop" and _rounds(graph, node) > _MOST_ROUNDS:
            raise ModelError(
                f"{graph.origin} runs the body of Loop {node.name or node.output[0]!r} {_rounds(graph, node):,} times, "
                f"which would never end: choose layers before it, or check that the model is what it should be"
            )
    limit = physical_memory()
    for value in names:
        element_type, shape = types.get(value, (0, None))
        if shape is None or not all(isinstance(side, int) for side in shape):
            continue
        known = element_type in onnx.helper.get_all_tensor_dtypes()
        width = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(element_type)).itemsize if known else 1
        size = math.prod(side for side in shape if isinstance(side, int)) * width
        if size > limit:
            sides = " x ".join(map(str, shape))
            raise ModelError(
                f"{graph.origin} computes {value!r} of {sides}, {readable(size)}, and this machine has "
                f"{readable(limit)} of memory: pass a smaller picture, or check that the model is what it should be"
            )


def _rounds(graph: Graph, loop: onnx.NodeProto) -> int:
    """Return how often a Loop runs where its number of rounds alone decides, else 0."""
    count = graph.constant(loop.input[0]) if loop.input and loop.input[0] else None
    body = next((x.g for x in loop.attribute if x.name == "body"), None)
    if body is None or not body.output or (loop.input and loop.input[0] and count is None):
        return 0
    makers = {name: node for node in body.node for name in node.output}
    goes_on = body.output[0].name
    while goes_on in makers and makers[goes_on].op_type == "Identity":
        goes_on = makers[goes_on].input[0]
    passed_on = len(body.input) > 1 and goes_on == body.input[1].name
    given = any(goes_on == tensor.name for tensor in body.initializer) or goes_on in graph.initializers
    always = passed_on or given or (goes_on in makers and makers[goes_on].op_type == "Constant")
    if not always:
        return 0
    return 2**63 if count is None else int(count.ravel()[0]) if count.size else 0


def physical_memory() -> int:
    """Return the machine's memory in bytes; where the system does not tell, 16 GB."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on Windows
        return 16 * 10**9
