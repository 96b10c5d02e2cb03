"""Convert TensorFlow graphs to ONNX with tf2onnx, many inner tensors watched.

tf2onnx walks the graph once for each output, so that 770 of them cost minutes: here a single node takes all watched
tensors as its inputs, and is the only output more. Its optimizer that moves Transposes is left out, as it is quadratic
in what is watched: `onnxfeat.converter.transposes` does that work in one walk. And its optimizers run on the graph
itself, where tf2onnx copies the graph, weights and all, before each of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
from numpy.typing import NDArray

from onnxfeat.converter.messages import reason_of
from onnxfeat.converter.repairs import repair
from onnxfeat.errors import ConversionError, quote

SINK = "onnxfeat_watched"
"""Name of the node whose inputs are the watched tensors."""

_LARGE = 1 << 20  # bytes

_NOT_USED = ("optimize_transpose", "remove_identity")


def frozen(concrete: Any) -> Any:
    """Return a concrete function as a GraphDef in which variables and captured values are constants.

    Raises:
        ConversionError: TensorFlow can't freeze it.
    """
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2
    from tf2onnx import tf_loader

    try:
        function = convert_variables_to_constants_v2(concrete, lower_control_flow=False, aggressive_inlining=True)
    except Exception as error:  # whatever its passes meet
        raise ConversionError(f"TensorFlow can't freeze the model: {reason_of(error)}") from error
    graph_def = tf_loader.fix_freezing_errors_part2(function.graph.as_graph_def(add_shapes=True))
    # What a function captured that is no variable, such as the mean of a Normalization layer, would become an input
    # that the user has to feed. Names tell which is which: two of them may have the same shape.
    captured = {
        inner.op.name: outer
        for inner, outer in zip(concrete.graph.internal_captures, concrete.captured_inputs, strict=True)
        if inner.dtype not in (tf.resource, tf.variant) and hasattr(outer, "numpy")
    }
    for node in graph_def.node:
        if node.op == "Placeholder" and node.name in captured:
            constant = tf.make_tensor_proto(captured[node.name].numpy())
            node.op = "Const"
            node.ClearField("attr")
            node.attr["dtype"].type = constant.dtype
            node.attr["value"].tensor.CopyFrom(constant)
    return graph_def


def onnx_of(
    graph_def: Any,
    inputs: Mapping[str, str],
    outputs: Sequence[str],
    watched: Sequence[str],
    opset: int,
    layer_of: Mapping[str, str] | None = None,
) -> onnx.ModelProto:
    """Convert a frozen GraphDef; it is changed.

    Args:
        graph_def: The TensorFlow graph.
        inputs: Name of each input's tensor, such as `x:0`, to the name that it gets in ONNX, in order.
        outputs: Names of the tensors that are the model's outputs.
        watched: Names of further tensors that are wanted.
        opset: ONNX operator set version.
        layer_of: Operation of the graph to the name of the layer that it is part of, for messages.

    Returns:
        The ONNX model. Its outputs are `outputs` in order and, where tensors are watched, that of the node `SINK`,
        whose inputs are the watched values in order.

    Raises:
        ConversionError: tf2onnx can't convert the graph, or leaves an operator or an input that ONNX does not know.
    """
    import tensorflow as tf
    import tf2onnx
    from tf2onnx import tf_loader

    refuse_opset(opset)
    large = _without_large_constants(graph_def)
    tensors = [*inputs, *(f"{name}:0" for name in large)]
    if watched:
        types = _types(graph_def, watched)
        sink = graph_def.node.add(name=SINK, op="IdentityN", input=list(watched))
        sink.attr["T"].list.type.extend(types)
    ends = [*outputs, *([f"{SINK}:0"] if watched else [])]
    try:
        with tf.device("/cpu:0"):
            with tf.Graph().as_default():  # else TensorFlow refuses to export what it optimizes
                light = tf_loader.tf_optimize(tensors, ends, graph_def)
            with tf.Graph().as_default() as graph:
                tf.import_graph_def(light, name="")
                model = optimized(
                    lambda: tf2onnx.tfonnx.process_tf_graph(
                        graph,
                        continue_on_error=True,
                        opset=opset,
                        input_names=tensors,
                        output_names=ends,
                        tensors_to_rename=dict(inputs),
                        custom_op_handlers=_HANDLERS,
                    )
                )
    except Exception as error:  # tf2onnx raises whatever its handlers meet
        raise ConversionError(f"tf2onnx {tf2onnx.__version__} can't convert the model: {reason_of(error)}") from error
    refuse_unknown(model, layer_of or {})
    for value in [value for value in model.graph.input if value.name.removesuffix(":0") in large]:
        model.graph.initializer.append(onnx.numpy_helper.from_array(large[value.name.removesuffix(":0")], value.name))
        model.graph.input.remove(value)
    refuse_phantoms(model, list(inputs.values()))
    repair(model)
    if len(model.graph.output) != len(ends):
        raise ConversionError("tf2onnx returned another number of outputs than it was given: report it with the model")
    return model


def _without_large_constants(graph_def: Any) -> dict[str, NDArray[Any]]:
    """Take large constants out of a GraphDef, in which placeholders stay; return name to value.

    tf2onnx and its optimizers copy every constant again and again: of VGG16 (528 MB) that made 20 GB.
    """
    import tensorflow as tf

    taken = {}
    for node in graph_def.node:
        if node.op != "Const" or node.attr["value"].tensor.ByteSize() < _LARGE:
            continue
        taken[node.name] = tf.make_ndarray(node.attr["value"].tensor)
        dtype, shape = node.attr["dtype"].type, tf.TensorShape(taken[node.name].shape).as_proto()
        node.op = "Placeholder"
        node.ClearField("attr")
        node.attr["dtype"].type = dtype
        node.attr["shape"].shape.CopyFrom(shape)
    return taken


def refuse_opset(opset: int) -> None:
    """Raise a `ConversionError` for an operator set version that tf2onnx can't write."""
    import tf2onnx

    low, high = 13, max(tf2onnx.constants.OPSET_TO_IR_VERSION)
    if not low <= opset <= high:
        raise ConversionError(
            f"opset {opset} can't be written by tf2onnx {tf2onnx.__version__}: choose {low} to {high}"
        )


def optimized(make_graph: Any) -> onnx.ModelProto:
    """Return the ONNX model of a tf2onnx graph after tf2onnx's optimizers, but those of Transpose and Identity.

    Args:
        make_graph: Makes the graph; called again where an optimizer failed and left it half changed.
    """
    from tf2onnx import optimizer

    chosen = {name: kind for name, kind in optimizer._get_optimizers().items() if name not in _NOT_USED}
    try:
        graph = optimizer.optimize_graph(make_graph(), catch_errors=False, optimizers=chosen)
    except Exception:  # now on copies, without the one that fails, as tf2onnx does; it logs which
        graph = optimizer.optimize_graph(make_graph(), catch_errors=True, optimizers=chosen)
    model: onnx.ModelProto = graph.make_model("converted by onnxfeat")
    return model


def refuse_unknown(model: onnx.ModelProto, layer_of: Mapping[str, str]) -> None:
    """Raise a `ConversionError` for operators that ONNX does not have: tf2onnx writes what it can't convert through."""
    import tf2onnx

    unknown = [node for node in model.graph.node if not onnx.defs.has(node.op_type, node.domain) and node.name != SINK]
    if unknown:
        first = unknown[0]
        layer = layer_of.get(first.name)
        place = f"in layer {layer!r}" if layer else f"at {first.name!r}"
        raise ConversionError(
            f"tf2onnx {tf2onnx.__version__} can't convert the model: ONNX has no operator for TensorFlow's "
            f"{quote(sorted({node.op_type for node in unknown}))} (first {place}); replace the layer that uses it"
        )


def refuse_phantoms(model: onnx.ModelProto, inputs: Sequence[str]) -> None:
    """Raise a `ConversionError` for an input that the model does not have; it would have to be fed by the user."""
    for value in model.graph.input:
        if value.name not in inputs:
            raise ConversionError(
                f"the conversion made an input {value.name!r} that the model does not have: report it with the model"
            )


def _types(graph_def: Any, tensors: Sequence[str]) -> list[int]:
    import tensorflow as tf

    with tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name="")
        return [graph.get_tensor_by_name(name).dtype.as_datatype_enum for name in tensors]


def _convert_identities(graph: Any, node: Any, *_: Any) -> None:
    """Take IdentityN nodes away, as tf2onnx does, but the one whose inputs are watched; called by tf2onnx."""
    if node.name != SINK:
        graph.remove_node(node.name)
        for source, result in zip(node.input, node.output, strict=True):
            graph.replace_all_inputs(result, source)


def _convert_erfc(graph: Any, node: Any, *_: Any) -> None:
    """Write Erfc, which Keras's GELU is made of and ONNX lacks, as 1 - Erf; called by tf2onnx."""
    _write_difference(graph, node, "Erf", one_first=True)


def _convert_expm1(graph: Any, node: Any, *_: Any) -> None:
    """Write Expm1, which Keras's CELU is made of and ONNX lacks, as Exp - 1; called by tf2onnx."""
    _write_difference(graph, node, "Exp", one_first=False)


def _write_difference(graph: Any, node: Any, op_type: str, *, one_first: bool) -> None:
    source, result = node.input[0], node.output[0]
    dtype, shape = graph.get_dtype(result), graph.get_shape(result)
    graph.remove_node(node.name)
    one = graph.make_const(f"{node.name}/one", np.ones((), onnx.helper.tensor_dtype_to_np_dtype(dtype)))
    value = graph.make_node(op_type, [source], dtypes=[dtype], shapes=[shape])
    parts = [one.output[0], value.output[0]]
    graph.make_node("Sub", parts if one_first else parts[::-1], outputs=[result], dtypes=[dtype], shapes=[shape])


_HANDLERS: dict[str, tuple[Any, list[Any]]] = {
    "Erfc": (_convert_erfc, []),
    "Expm1": (_convert_expm1, []),
    "IdentityN": (_convert_identities, []),
}
