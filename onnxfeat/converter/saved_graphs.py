"""Freeze the graph of a SavedModel: one flat graph of constants, from its inputs to the outputs of one signature."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxfeat.converter.messages import reason_of
from onnxfeat.errors import ConversionError

_VARIABLES = frozenset({"VarHandleOp", "Variable", "VariableV2"})
_RANDOM = ("Random", "Multinomial", "TruncatedNormal", "StatefulUniform", "StatefulStandardNormal", "Rng")
_OUTPUT = "onnxfeat_output"


def frozen_graph(folder: Path, tags: list[str], inputs: list[str], outputs: list[str]) -> tuple[Any, dict[str, str]]:
    """Return the part of the graph that leads to the outputs, functions inlined and variables as constants.

    With it, the names of the operators that were variables, to the names of these.

    Args:
        folder: The SavedModel.
        tags: Those of the graph in it.
        inputs: Names of the input tensors.
        outputs: Names of the output tensors.

    Raises:
        ConversionError: TensorFlow can't load it, or it has no fixed values: it changes its variables, draws random
            numbers, or looks into tables.
    """
    import tensorflow as tf

    v1 = tf.compat.v1
    try:
        with tf.Graph().as_default() as graph, tf.device("/cpu:0"), v1.Session(graph=graph) as session:
            v1.saved_model.load(session, tags, str(folder), clear_devices=True)
            _fill_originals(graph, session)
            needed = v1.graph_util.extract_sub_graph(graph.as_graph_def(), [name.split(":")[0] for name in outputs])
            missing = {name.split(":")[0] for name in inputs} - {node.name for node in needed.node}
            for name in sorted(missing):  # an input that nothing reads is an input all the same
                needed.node.append(graph.get_operation_by_name(name).node_def)
            flat = _inlined(needed, [*inputs, *outputs])
            _refuse_state(folder, flat)
            variables = {
                node.name: node.attr["shared_name"].s.decode() or node.name
                for node in flat.node
                if node.op in _VARIABLES
            }
            ends = [name.split(":")[0] for name in (*inputs, *outputs)]
            frozen = v1.graph_util.convert_variables_to_constants(session, flat, ends)
    except ConversionError:
        raise
    except Exception as error:  # whatever its loader meets
        raise ConversionError(
            f"TensorFlow {tf.__version__} can't load {folder}: {reason_in_session(error)}; check that the folder is "
            f"whole, with its `variables` folder, and needs no operators of another package"
        ) from error
    # What only waits for another operator, such as an assertion, or was traced and is not used, is no part of it.
    for node in frozen.node:
        node.input[:] = [name for name in node.input if not name.startswith("^")]
    return v1.graph_util.extract_sub_graph(frozen, ends), variables


def _fill_originals(graph: Any, session: Any) -> None:
    """Give variables the values of their copies, where only the copies were loaded.

    So it is where `tf.saved_model.save` met layers of Keras 3: their variables are written as copies of those that the
    functions read. Loading by objects, as TensorFlow 2 does, knows that they are the same.
    """
    import tensorflow as tf

    copies = {}
    for operator in graph.get_operations():
        if operator.type == "AssignVariableOp" and operator.inputs[1].op.type == "ReadVariableOp":
            copy, original = operator.inputs[0], operator.inputs[1].op.inputs[0]
            if {copy.op.type, original.op.type} == {"VarHandleOp"}:
                copies[original.op.name] = (original, copy, operator.inputs[1].dtype)
    known = session.run([tf.raw_ops.VarIsInitializedOp(resource=original) for original, _, _ in copies.values()])
    filled = [
        tf.raw_ops.AssignVariableOp(resource=original, value=tf.raw_ops.ReadVariableOp(resource=copy, dtype=dtype))
        for (original, copy, dtype), is_known in zip(copies.values(), known, strict=True)
        if not is_known
    ]
    session.run(filled)


def _inlined(graph_def: Any, kept: Sequence[str]) -> Any:
    """Return a graph with the functions that it calls written out; loops and branches stay."""
    import tensorflow as tf
    from tensorflow.core.protobuf import config_pb2, meta_graph_pb2, rewriter_config_pb2
    from tensorflow.python.grappler import tf_optimizer

    for function in graph_def.library.function:
        for attribute in ("api_implements", "_noinline", "_XlaMustCompile"):  # these keep it from being inlined
            function.attr.pop(attribute, None)
    for node in _all_nodes(graph_def):
        node.attr.pop("_XlaMustCompile", None)
        node.attr.pop("_noinline", None)
        node.attr.pop("_output_shapes", None)  # those of loops need not hold here
        if "_lower_using_switch_merge" in node.attr:
            node.attr["_lower_using_switch_merge"].b = False
    config = config_pb2.ConfigProto()
    options = config.graph_options.rewrite_options
    options.min_graph_nodes = -1  # small graphs too
    options.optimizers.append("function")
    options.function_optimization = rewriter_config_pb2.RewriterConfig.AGGRESSIVE
    meta_graph = tf.compat.v1.train.export_meta_graph(graph_def=graph_def, graph=tf.Graph())
    fetched = meta_graph_pb2.CollectionDef()
    fetched.node_list.value.extend(kept)
    meta_graph.collection_def["train_op"].CopyFrom(fetched)
    return tf_optimizer.OptimizeGraph(config, meta_graph)


def _all_nodes(graph_def: Any) -> Iterator[Any]:
    yield from graph_def.node
    for function in graph_def.library.function:
        yield from function.node_def


def written_order(graph_def: Any) -> dict[str, int]:
    """Return the name that each operator has once functions are inlined, to its place in the program as written."""
    functions = {function.signature.name: function for function in graph_def.library.function}

    def walk(nodes: Any, prefix: str, callers: tuple[str, ...]) -> Iterator[str]:
        for node in nodes:
            name = prefix + node.name
            called = node.attr["f"].func.name if "f" in node.attr else node.op
            if called in functions and called not in callers and node.op.endswith(("PartitionedCall", called)):
                yield from walk(functions[called].node_def, f"{name}/", (*callers, called))
            yield name

    return {name: place for place, name in enumerate(walk(graph_def.node, "", ()))}


def _place(places: Mapping[str, int], tensor: str) -> tuple[int, int]:
    name, _, number = tensor.partition(":")
    return places[name], int(number or 0)


def with_own_outputs(graph_def: Any, outputs: Mapping[str, Any]) -> dict[str, str]:
    """Give each output an operator of its own, straight behind what computes it; return name to tensor.

    Inlining leaves an IdentityN for all outputs, and two outputs may be the same tensor.

    Args:
        graph_def: The graph; it is changed.
        outputs: Name to `TensorInfo` of each output.
    """
    nodes = {node.name: node for node in graph_def.node}
    own = {}
    for number, (name, info) in enumerate(outputs.items()):
        source, position = _parts(info.name)
        while nodes[source].op in ("Identity", "IdentityN"):
            source, position = _parts(nodes[source].input[position])
        added = graph_def.node.add(name=f"{_OUTPUT}_{number}", op="Identity", input=[f"{source}:{position}"])
        added.attr["T"].type = info.dtype
        own[name] = f"{added.name}:0"
    return own


def in_float32(graph_def: Any) -> Any | None:
    """Return a frozen graph that computes in float32 where this one does in bfloat16; None if it does not.

    A constant keeps its value, as float32 holds every bfloat16.
    """
    import tensorflow as tf

    wide, narrow = tf.float32.as_datatype_enum, tf.bfloat16.as_datatype_enum

    def change(message: Any) -> int:
        """Change the types in a message, whatever is in it; return how many."""
        if message.DESCRIPTOR.name == "TensorProto" and message.dtype == narrow:
            message.CopyFrom(tf.make_tensor_proto(tf.make_ndarray(message).astype("float32")))
            return 1
        count = 0
        for field, value in message.ListFields():
            if field.type == field.TYPE_ENUM and field.enum_type.name == "DataType":
                values = list(value) if field.is_repeated else [value]
                if narrow in values:
                    count += 1
                    changed = [wide if found == narrow else found for found in values]
                    if field.is_repeated:
                        value[:] = changed
                    else:
                        setattr(message, field.name, changed[0])
            elif field.type == field.TYPE_MESSAGE:
                is_map = field.message_type.GetOptions().map_entry
                inner = value.values() if is_map else value if field.is_repeated else [value]
                count += sum(change(part) for part in inner if hasattr(part, "ListFields"))
        return count

    changed = type(graph_def)()
    changed.CopyFrom(graph_def)
    return changed if change(changed) else None


def _parts(tensor: str) -> tuple[str, int]:
    operator, _, position = tensor.partition(":")
    return operator, int(position or 0)


def reason_in_session(error: Exception) -> str:
    """Return what went wrong while TensorFlow ran a graph."""
    where = ("Graph execution error:", "Detected at node", "Node: ")
    lines = [line for line in str(error).splitlines() if not line.strip().startswith(where)]
    return reason_of(ConversionError("\n".join(lines)))


def _refuse_state(folder: Path, graph_def: Any) -> None:
    """Raise a `ConversionError` for a model whose outputs follow from more than inputs and weights."""
    for node in _all_nodes(graph_def):
        why = None
        if node.op.startswith(("Assign", "ResourceScatter", "ResourceApply")):
            why = "changes a variable while it runs, so that no two runs are the same"
        elif any(part in node.op for part in _RANDOM):
            why = "draws random numbers, so that no two runs are the same"
        elif node.op.startswith("LookupTable"):
            why = "looks values up in a table, which an ONNX file can't hold"
        if why is not None:
            raise ConversionError(
                f"{folder} can't be converted: its operator {node.op} ({node.name!r}) {why}; save the model without "
                f"it, or with a signature that does not need it, or convert the Keras file that it was exported from, "
                f"where layers for training rest"
            )
