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
        return None if tensor is None else onnx.numpy_helper.to_array(tensor)


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
    proto = model if isinstance(model, onnx.ModelProto) else _parse(content, origin)
    if not proto.graph.node:
        raise ModelError(
            f"{origin} has no nodes, so there are no layers to see: pass a model that was exported to ONNX"
        )
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


def attribute(node: onnx.NodeProto, name: str) -> object:
    """Return the value of a node's attribute, or None where it is not set."""
    for entry in node.attribute:
        if entry.name == name:
            return onnx.helper.get_attribute_value(entry)
    return None


def numbers(node: onnx.NodeProto, name: str) -> list[int] | None:
    """Return a node's attribute that is a list of whole numbers, or None where it is not set."""
    value = attribute(node, name)
    return [int(x) for x in value] if isinstance(value, list | tuple) else None


def type_name(element_type: int) -> str:
    """Return ONNX's word for an element type, such as `float` for 1.

    Example:
        >>> type_name(1)
        'float'
    """
    return str(onnx.TensorProto.DataType.Name(element_type)).lower()


def _parse(content: bytes, origin: str) -> onnx.ModelProto:
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError as error:
        raise ModelError(f"{origin} is damaged and can't be parsed as ONNX: fetch or export it again") from error
    return model


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
        for name in dict.fromkeys(names_used(node)):
            consumers.setdefault(name, []).append(node)
        if node.op_type == "Constant" and node.output:
            tensor = attribute(node, "value")
            if isinstance(tensor, onnx.TensorProto):
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
    except onnx.shape_inference.InferenceError:
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
    return axis.dim_param or None
