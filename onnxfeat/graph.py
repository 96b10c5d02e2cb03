"""Read an ONNX model and index its graph: who makes which value, who uses it, of what type and shape it is."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.shape_inference
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray

from onnxfeat.errors import ModelError
from onnxfeat.metadata import KEY, Document, read_document
from onnxfeat.records import Axis

CELL_BY_CELL = frozenset(
    "Abs Add Cast Ceil Celu Clip Concat Div Dropout Elu Erf Exp Floor Gelu HardSigmoid HardSwish Identity LeakyRelu "
    "Log Max Mean Min Mish Mul Neg PRelu Pad Pow Reciprocal Relu Round Selu Sigmoid Sign Slice Softplus Softsign Sqrt "
    "Sub Sum Swish Tanh ThresholdedRelu".split()
)
"""Operators each of whose output cells depends on the cells at one place of their inputs, with the axes in place."""

# Shapes that shape inference must know the values of (targets of Reshape, sizes of Resize) are short; weights are not.
_SMALL = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """A parsed model with the indexes that every stage needs.

    Attributes:
        model: The model as onnx parsed it; nobody changes it.
        origin: The file it came from, for messages; `<memory>` where there is none.
        sha256: SHA-256 of the file's bytes.
        document: What onnxfeat stored in it.
        producers: Value name to the node that computes it.
        consumers: Value name to the nodes of the main graph that use it, in order.
        initializers: Value name to constant tensor: initializers and the outputs of Constant nodes.
        inputs: Graph inputs that are not initializers, by name.
        types: Value name to element type (a number of `TensorProto.DataType`) and shape, where known.
    """

    model: onnx.ModelProto
    origin: str
    sha256: str
    document: Document
    producers: dict[str, onnx.NodeProto]
    consumers: dict[str, list[onnx.NodeProto]]
    initializers: dict[str, onnx.TensorProto]
    inputs: dict[str, onnx.ValueInfoProto]
    types: dict[str, tuple[int, tuple[Axis, ...] | None]]

    @property
    def nodes(self) -> list[onnx.NodeProto]:
        """Nodes of the main graph in order of execution."""
        return list(self.model.graph.node)

    def shape(self, value: str) -> tuple[Axis, ...] | None:
        """Return the shape of a value, or None where it is unknown."""
        if value in self.initializers:
            return tuple(self.initializers[value].dims)
        return self.types.get(value, (0, None))[1]

    def rank(self, value: str) -> int | None:
        """Return the number of axes of a value, or None where it is unknown."""
        shape = self.shape(value)
        return None if shape is None else len(shape)

    def is_constant(self, value: str) -> bool:
        """Return whether a value is part of the model, the same for every picture."""
        return value in self.initializers

    def constant(self, value: str) -> NDArray[np.generic] | None:
        """Return the numbers of a constant, or None if the value is computed."""
        tensor = self.initializers.get(value)
        try:
            return None if tensor is None else onnx.numpy_helper.to_array(tensor)
        except (ValueError, KeyError, TypeError) as error:
            raise ModelError(
                f"the constant {value!r} in {self.origin} is damaged ({error}): fetch or export the model again"
            ) from error


def read_graph(model: str | Path | bytes | onnx.ModelProto) -> Graph:
    """Read a model and index it.

    Args:
        model: Path of an ONNX file, its bytes, or a parsed model (which is not changed).

    Raises:
        ModelError: The file is missing, not ONNX, truncated, or has no nodes.
    """
    if isinstance(model, str | Path):
        path = Path(model)
        document = read_document(path)
        content, origin = path.read_bytes(), str(path)
    else:
        document = None
        content, origin = model if isinstance(model, bytes) else b"", "<memory>"
    if not isinstance(model, str | Path | bytes | onnx.ModelProto):
        raise ModelError(
            f"{type(model).__name__} is no model: pass the path of an ONNX file, its bytes or a ModelProto"
        )
    proto = model if isinstance(model, onnx.ModelProto) else _parse(content, origin)
    if not proto.graph.node:
        raise ModelError(
            f"{origin} has no nodes, so there are no layers to see: pass a model that was exported to ONNX"
        )
    _refuse_unreadable_names(proto, origin)
    if not isinstance(model, onnx.ModelProto):
        digest = hashlib.sha256(content).hexdigest()
    else:
        digest = hashlib.sha256(proto.SerializeToString(deterministic=True)).hexdigest()
    if isinstance(model, str | Path):
        _load_external_data(proto, Path(model))
    if document is None:
        text = next((entry.value for entry in proto.metadata_props if entry.key == KEY), None)
        document = Document() if text is None else Document.from_text(text, origin)
    return _index(proto, origin, digest, document)


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the graphs inside a node: the branches of If, the bodies of Loop and Scan."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == onnx.AttributeProto.GRAPHS:
            yield from attribute.graphs


def names_used(node: onnx.NodeProto) -> Iterator[str]:
    """Yield the values that a node reads: its inputs, and all that the graphs inside it mention.

    A graph inside a node may capture values of the graph around it. Names that are local to the inner graph are
    yielded too; they do no harm, as ONNX forbids an inner value to bear the name of an outer one.
    """
    yield from (name for name in node.input if name)
    for graph in subgraphs(node):
        yield from (output.name for output in graph.output)
        for inner in graph.node:
            yield from names_used(inner)


def numbers(node: onnx.NodeProto, name: str) -> list[int] | None:
    """Return a node's attribute that is a list of whole numbers, or None where it is not set."""
    for entry in node.attribute:
        if entry.name == name and entry.type == onnx.AttributeProto.INTS:
            return list(entry.ints)
    return None


def number(node: onnx.NodeProto, name: str, default: int) -> int:
    """Return a node's attribute that is a whole number, or `default` where it is not set."""
    return next((int(entry.i) for entry in node.attribute if entry.name == name), default)


def operator(node: onnx.NodeProto) -> str:
    """Return a node's operator; with its domain in front where that is not one whose operators we know.

    A `Conv` of the domain `com.microsoft.nchwc` gives blocks of channels under the shape of an ordinary one.
    """
    known = node.domain in ("", "ai.onnx", "com.microsoft")
    return node.op_type if known else f"{node.domain}::{node.op_type}"


def reduced_axes(graph: Graph, node: onnx.NodeProto) -> list[int] | None:
    """Return the axes that a Reduce operator takes away, or None where the graph does not tell."""
    axes = numbers(node, "axes")
    if axes is None and len(node.input) > 1:  # an input since opset 13 (ReduceSum) or 18 (the others)
        constant = graph.constant(node.input[1])
        axes = None if constant is None else [int(axis) for axis in constant.ravel()]
    return axes


def axis_order(graph: Graph, node: onnx.NodeProto) -> list[int] | None:
    """Return the order that a node puts the axes of its input in, or None if it does something else.

    That is a Transpose; or a Reshape that moves the channels past the rows and columns where either have length 1, as
    tf2onnx writes the Transpose of a gray picture and of a map of 1 x 1.
    """
    if node.op_type == "Transpose":
        order = numbers(node, "perm")
        return order if order is not None and sorted(order) == list(range(len(order))) else None
    if node.op_type != "Reshape":
        return None
    before, after = graph.shape(node.input[0]), graph.shape(node.output[0])
    if before is None or after is None or len(before) != 4 or len(after) != 4:
        return None
    for order, channels, sides in (([0, 2, 3, 1], before[1], before[2:]), ([0, 3, 1, 2], before[3], before[1:3])):
        if (channels == 1 or sides == (1, 1)) and [before[axis] for axis in order[1:]] == list(after[1:]):
            return order
    return None


def numbered(name: str, taken: set[str]) -> str:
    """Return a name, or `name#2`, `name#3` where it is taken, and add what is returned to `taken`.

    Example:
        >>> taken = {"conv"}
        >>> numbered("conv", taken), numbered("conv", taken)
        ('conv#2', 'conv#3')
    """
    unique, number = name, 2
    while unique in taken:
        unique, number = f"{name}#{number}", number + 1
    taken.add(unique)
    return unique


def type_name(element_type: int) -> str | None:
    """Return ONNX's word for an element type, such as `float` for 1; None for one that this onnx does not know.

    Example:
        >>> type_name(1)
        'float'
    """
    names = {number: name.lower() for name, number in onnx.TensorProto.DataType.items()}
    return names.get(element_type)


def _parse(content: bytes, origin: str) -> onnx.ModelProto:
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError as error:
        raise ModelError(f"{origin} is damaged and can't be parsed as ONNX: fetch or export it again") from error
    return model


def _refuse_unreadable_names(model: onnx.ModelProto, origin: str) -> None:
    graph = model.graph
    names = [model.producer_name, model.producer_version, model.domain, model.doc_string, graph.name, graph.doc_string]
    names += [value.name for value in (*graph.input, *graph.output, *graph.initializer)]
    for node in graph.node:
        names += [node.name, node.op_type, node.domain, *node.input, *node.output]
    # The parser leaves bytes where a string is not UTF-8.
    if not all(isinstance(name, str) for name in names):
        raise ModelError(f"{origin} is damaged, it has names that are not text: fetch or export it again")


def _load_external_data(model: onnx.ModelProto, path: Path) -> None:
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise ModelError(
            f"the weights that {path} keeps in other files can't be read ({error}): put them beside it"
        ) from error


def _index(model: onnx.ModelProto, origin: str, digest: str, document: Document) -> Graph:
    graph = model.graph
    producers: dict[str, onnx.NodeProto] = {}
    consumers: dict[str, list[onnx.NodeProto]] = {}
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        producers.update((name, node) for name in node.output if name)
        for name in dict.fromkeys(names_used(node) if node.output else ()):
            consumers.setdefault(name, []).append(node)
        if node.op_type == "Constant" and node.output:
            tensor = _constant_tensor(node)
            if tensor is not None:
                initializers[node.output[0]] = tensor
    return Graph(
        model=model,
        origin=origin,
        sha256=digest,
        document=document,
        producers=producers,
        consumers=consumers,
        initializers=initializers,
        # Files before IR version 4 list their weights as inputs too.
        inputs={value.name: value for value in graph.input if value.name not in initializers},
        types=_types(model),
    )


def _constant_tensor(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """Return what a Constant node holds: a tensor, or numbers of which one is made; None for strings and others."""
    for entry in node.attribute:
        if entry.type == onnx.AttributeProto.TENSOR:
            tensor: onnx.TensorProto = entry.t
            return tensor
        if entry.type in (onnx.AttributeProto.FLOAT, onnx.AttributeProto.FLOATS):
            floats = entry.f if entry.type == onnx.AttributeProto.FLOAT else entry.floats
            return onnx.numpy_helper.from_array(np.asarray(floats, dtype=np.float32))
        if entry.type in (onnx.AttributeProto.INT, onnx.AttributeProto.INTS):
            ints = entry.i if entry.type == onnx.AttributeProto.INT else entry.ints
            return onnx.numpy_helper.from_array(np.asarray(ints, dtype=np.int64))
    return None


def _types(model: onnx.ModelProto) -> dict[str, tuple[int, tuple[Axis, ...] | None]]:
    """Return element type and shape of every value that shape inference can tell.

    Inference serializes the model, so it gets a copy whose weights are left out: ResNet50 takes 120 ms instead of 600.
    """
    bare = onnx.ModelProto()
    bare.ir_version = max(model.ir_version, 4)
    bare.opset_import.extend(model.opset_import)
    bare.functions.extend(model.functions)
    graph = model.graph
    bare.graph.name = graph.name
    bare.graph.node.extend(graph.node)
    bare.graph.input.extend(graph.input)
    bare.graph.output.extend(graph.output)
    bare.graph.value_info.extend(graph.value_info)
    listed = {value.name for value in graph.input}
    for tensor in graph.initializer:
        if np.prod(tensor.dims, dtype=np.int64) <= _SMALL:
            bare.graph.initializer.append(tensor)
        elif tensor.name not in listed:
            bare.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    # Without strict mode inference stops at what it does not know and keeps the rest; the errors that are left mean
    # that the declared shapes contradict the graph, which only the runtime can judge: then the declared ones are used.
    try:
        inferred = onnx.shape_inference.infer_shapes(bare, data_prop=True).graph
    except (onnx.shape_inference.InferenceError, ValueError):
        inferred = bare.graph
    types: dict[str, tuple[int, tuple[Axis, ...] | None]] = {}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        tensor_type = value.type.tensor_type
        if tensor_type.elem_type:
            shape = tuple(_axis(axis) for axis in tensor_type.shape.dim) if tensor_type.HasField("shape") else None
            types[value.name] = (tensor_type.elem_type, shape)
    return types


def _axis(axis: onnx.TensorShapeProto.Dimension) -> Axis:
    if axis.HasField("dim_value"):
        return axis.dim_value if axis.dim_value >= 0 else None  # some exporters write -1 for "any"
    name = axis.dim_param
    # Shape inference and tf2onnx make up names such as `unk__12` for what they don't know.
    return name if name and isinstance(name, str) and not name.startswith("unk__") else None
