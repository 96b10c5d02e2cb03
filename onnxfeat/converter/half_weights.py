"""Keep weights in half the bytes: as float16, turned back to float32 where the graph reads them."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.numpy_helper

_SMALLEST = 64  # numbers; less is not worth a node


def with_half_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model whose large float32 constants are kept as float16, each behind a Cast that bears its name.

    ONNX Runtime computes these Casts once, when it loads the model. What float16 can't hold (above 65504) stays.

    Example:
        >>> small = with_half_weights(onnx.load("models/shapes_small.onnx"))
        >>> sum(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in small.graph.initializer)
        7
    """
    halved = onnx.ModelProto()
    halved.CopyFrom(model)
    casts = []
    for tensor in halved.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT:
            continue
        array = onnx.numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            half = array.astype(np.float16)
        if array.size < _SMALLEST or not np.isfinite(half).all():
            continue
        name = tensor.name
        tensor.CopyFrom(onnx.numpy_helper.from_array(half, f"{name}/float16"))
        casts.append(
            onnx.helper.make_node("Cast", [f"{name}/float16"], [name], name=f"{name}/cast", to=onnx.TensorProto.FLOAT)
        )
    nodes = [*casts, *halved.graph.node]
    del halved.graph.node[:]
    halved.graph.node.extend(nodes)
    return halved
