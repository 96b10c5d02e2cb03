"""Infer element type and shape of the values of a graph, without its weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import onnx
import onnx.numpy_helper
import onnx.shape_inference

from onnxfeat.graph.flattening import Branch, Inner, subgraphs
from onnxfeat.graph.weights import read_tensor
from onnxfeat.records import Axis

Types = dict[str, tuple[int, tuple[Axis, ...] | None]]
"""Value name to element type (a number of `TensorProto.DataType`, 0 if unknown) and shape (None if unknown)."""

# Shapes that shape inference must know the values of (targets of Reshape, sizes of Resize) are short; weights are not.
_SMALL = 1024


def known_types(
    model: onnx.ModelProto, main: Sequence[onnx.NodeProto], places: Mapping[str, Inner], folder: Path | None
) -> Types:
    """Return element type and shape of every value that shape inference can tell, else as the file declares them.

    What the graph implies comes before what the file declares: exporters have declared shapes that lie.
    """
    types = infer_types(model, main, places, folder)
    declared = (*model.graph.value_info, *model.graph.output)
    if any(types.get(x.name, (0, None))[1] is None and x.type.tensor_type.HasField("shape") for x in declared):
        # Behind an operator that inference does not know, what is declared leads on.
        for name, (element_type, shape) in infer_types(model, main, places, folder, declared=declared).items():
            known = types.get(name, (0, None))
            types[name] = (known[0] or element_type, shape if known[1] is None else known[1])
    return types


def infer_types(
    model: onnx.ModelProto,
    main: Sequence[onnx.NodeProto],
    places: Mapping[str, Inner],
    folder: Path | None,
    *,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    declared: Sequence[onnx.ValueInfoProto] = (),
) -> Types:
    """Run shape inference.

    It serializes the model, so it gets a copy whose weights are left out: ResNet50 takes 120 ms instead of 600.
    """
    bare = onnx.ModelProto()
    bare.ir_version = max(model.ir_version, 4)
    bare.opset_import.extend(model.opset_import)
    bare.functions.extend(model.functions)
    graph = model.graph
    bare.graph.name = graph.name
    bare.graph.node.extend(main)
    for value in graph.input:
        bare.graph.input.append(_with_shape(value, (shapes or {}).get(value.name)))
    bare.graph.output.extend(onnx.ValueInfoProto(name=value.name) for value in graph.output)
    bare.graph.value_info.extend(declared)
    for node in bare.graph.node:
        _as_known_operator(node)
    if not declared:
        _forget_declared(bare.graph.node)
    listed = {value.name for value in graph.input}
    for tensor in graph.initializer:
        if math.prod(tensor.dims) <= _SMALL:
            bare.graph.initializer.append(_in_memory(tensor, folder))
        elif tensor.name not in listed:
            bare.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    # Without strict mode inference stops at what it does not know and keeps the rest; the errors that are left mean
    # that the declared shapes contradict the graph, which only the runtime can judge: then the declared ones are used.
    try:
        inferred = onnx.shape_inference.infer_shapes(bare, data_prop=True).graph
    except (onnx.shape_inference.InferenceError, ValueError):
        inferred = bare.graph
    types: Types = {}
    _collect(inferred, {}, (), _renamed(places), types)
    return types


def _collect(
    graph: onnx.GraphProto,
    names: Mapping[str, str],
    path: tuple[Branch, ...],
    renamed: Mapping[tuple[Branch, ...], Mapping[str, str]],
    types: Types,
) -> None:
    """Gather types from a graph and from the branches of its If nodes, under the names of the view."""
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor_type = value.type.tensor_type
        if tensor_type.elem_type:
            shape = tuple(_axis(axis) for axis in tensor_type.shape.dim) if tensor_type.HasField("shape") else None
            types[names.get(value.name, value.name)] = (tensor_type.elem_type, shape)
    if not renamed:
        return
    for node in graph.node:
        for attribute in node.attribute:
            branch = (*path, (node.output[0] if node.output else "", attribute.name))
            if branch in renamed:
                _collect(attribute.g, renamed[branch], branch, renamed, types)


# Operators of com.microsoft that give what one of ONNX gives, quantized or with an activation inside; and which of
# their inputs that one reads. onnx's inference does not know them, and stops there.
_LIKE: dict[str, tuple[str, tuple[int, ...]]] = {
    "BiasGelu": ("Add", (0, 1)),
    "FastGelu": ("Identity", (0,)),
    "FusedConv": ("Conv", (0, 1)),
    "Gelu": ("Identity", (0,)),
    "QGemm": ("Gemm", (0, 3)),
    "QLinearAdd": ("Add", (0, 3)),
    "QLinearAveragePool": ("AveragePool", (0,)),
    "QLinearGlobalAveragePool": ("GlobalAveragePool", (0,)),
    "QLinearLeakyRelu": ("Identity", (0,)),
    "QLinearMul": ("Mul", (0, 3)),
    "QLinearSigmoid": ("Identity", (0,)),
    "QLinearSoftmax": ("Identity", (0,)),
    "QLinearWhere": ("Where", (0, 1, 4)),
    "QuickGelu": ("Identity", (0,)),
}
_ATTRIBUTES = frozenset(
    "auto_pad axis ceil_mode count_include_pad dilations group kernel_shape pads strides transA transB".split()
)


def _as_known_operator(node: onnx.NodeProto) -> None:
    """Put an operator in place of one of com.microsoft that gives a value of the same type and shape."""
    if node.domain != "com.microsoft" or any(x.name == "channels_last" and x.i for x in node.attribute):
        return
    if node.op_type == "QLinearConcat":  # scale and zero point of the result, then three inputs for each part
        op_type, positions = "Concat", tuple(range(2, len(node.input), 3))
    elif node.op_type in _LIKE:
        op_type, positions = _LIKE[node.op_type]
    else:
        return
    if not positions or len(node.input) <= max(positions):
        return
    inputs = [node.input[position] for position in positions]
    attributes = [x for x in node.attribute if x.name in _ATTRIBUTES and op_type not in ("Identity", "Where")]
    del node.attribute[:], node.input[:]
    node.op_type, node.domain = op_type, ""
    node.input.extend(inputs)
    node.attribute.extend(attributes)


def _forget_declared(nodes: Iterable[onnx.NodeProto]) -> None:
    """Take away what the graphs inside nodes declare about the values that they compute."""
    for node in nodes:
        for graph in subgraphs(node):
            del graph.value_info[:]
            for output in graph.output:
                output.ClearField("type")
            _forget_declared(graph.node)


def _with_shape(value: onnx.ValueInfoProto, shape: tuple[int, ...] | None) -> onnx.ValueInfoProto:
    """Return a declaration with another shape, the same for None; lengths below 0 are taken as unknown."""
    element_type = value.type.tensor_type.elem_type
    if shape is not None and element_type:
        return onnx.helper.make_tensor_value_info(value.name, element_type, shape)
    if any(axis.dim_value < 0 for axis in value.type.tensor_type.shape.dim):
        axes = [_axis(axis) for axis in value.type.tensor_type.shape.dim]
        return onnx.helper.make_tensor_value_info(value.name, element_type, axes)
    return value


def _in_memory(tensor: onnx.TensorProto, folder: Path | None) -> onnx.TensorProto:
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return tensor
    loaded = onnx.numpy_helper.from_array(read_tensor(tensor, folder), tensor.name)
    loaded.data_type = tensor.data_type
    return loaded


def _renamed(inner: Mapping[str, Inner]) -> dict[tuple[Branch, ...], dict[str, str]]:
    renamed: dict[tuple[Branch, ...], dict[str, str]] = {}
    for name, place in inner.items():
        renamed.setdefault(place.path, {})[place.name] = name
    return renamed


def _axis(axis: onnx.TensorShapeProto.Dimension) -> Axis:
    if axis.HasField("dim_value"):
        return axis.dim_value if axis.dim_value >= 0 else None  # some exporters write -1 for "any"
    name = axis.dim_param
    # Shape inference and tf2onnx make up names such as `unk__12` for what they don't know.
    return name if name and isinstance(name, str) and not name.startswith("unk__") else None
