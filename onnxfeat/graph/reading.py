"""Read an ONNX model and index its graph: who makes which value, who uses it, of what type and shape it is."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
from numpy.typing import NDArray

from onnxfeat.errors import ModelError, OutputError
from onnxfeat.graph.flattening import Inner, inline_functions, names_used, ordered, subgraphs, view_of
from onnxfeat.graph.inference import Types, infer_types, known_types
from onnxfeat.graph.model_files import relocated
from onnxfeat.graph.parsing import parse_bytes, parse_file
from onnxfeat.graph.weights import homes_of, read_tensor, refuse_unsafe
from onnxfeat.metadata import KEY, Document, read_document
from onnxfeat.records import Axis

CELL_BY_CELL = frozenset(
    "Abs Add BiasGelu Cast CastLike Ceil Celu Clip Concat DequantizeLinear Div Dropout DynamicQuantizeLinear Elu "
    "Equal Erf Exp FastGelu Floor Gelu Greater HardSigmoid HardSwish Identity LeakyRelu Less Log Max Mean Min Mish Mul "
    "Neg Not PRelu Pad Pow QLinearAdd QLinearConcat QLinearLeakyRelu QLinearMul QLinearSigmoid QLinearWhere "
    "QuantizeLinear QuickGelu Reciprocal Relu Round Selu Shrink Sigmoid Sign Slice Softplus Softsign Sqrt Sub Sum "
    "Swish Tanh ThresholdedRelu Where".split()
)
"""Operators each of whose output cells depends on the cells at one place of their inputs, with the axes in place."""


_RANDOM = ("Random", "Bernoulli", "Multinomial")


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """A parsed model with the indexes that every stage needs.

    Attributes:
        model: The model as onnx parsed it, with the functions that hold layers inlined; nobody changes it. Weights in
            other files are not loaded.
        origin: The file it came from, for messages; `<memory>` where there is none.
        file: The file whose folder holds the weights that the model keeps in other files; None for a model from
            memory. It is the file that was read, or the one behind it where that is a link.
        sha256: SHA-256 of the file's bytes.
        document: What onnxfeat stored in it.
        main: Nodes of the main graph in order of execution.
        nodes: These and the nodes in the branches of If, under names of their own (see `onnxfeat.graph.flattening`).
        inner: Value name to its place inside a branch, for the latter.
        hidden: Sentences about layers that can't be seen, and why.
        producers: Value name to the node that computes it.
        consumers: Value name to the nodes that use it, in order.
        initializers: Value name to constant tensor: initializers and the outputs of Constant nodes.
        fixed: Values that nodes compute from constants alone.
        inputs: Graph inputs that are not initializers, by name.
        outputs: Names of the graph's outputs.
        types: Value name to element type (a number of `TensorProto.DataType`) and shape, where known.
    """

    model: onnx.ModelProto
    origin: str
    file: Path | None
    sha256: str
    document: Document
    main: list[onnx.NodeProto]
    nodes: list[onnx.NodeProto]
    inner: dict[str, Inner]
    hidden: tuple[str, ...]
    producers: dict[str, onnx.NodeProto]
    consumers: dict[str, list[onnx.NodeProto]]
    initializers: dict[str, onnx.TensorProto]
    fixed: frozenset[str]
    inputs: dict[str, onnx.ValueInfoProto]
    outputs: frozenset[str]
    types: Types

    @property
    def folder(self) -> Path | None:
        """The folder that locations of weights in other files are relative to."""
        return None if self.file is None else self.file.parent

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
        return value in self.initializers or value in self.fixed

    def constant(self, value: str) -> NDArray[np.generic] | None:
        """Return the numbers of a constant, or None if the value is computed."""
        tensor = self.initializers.get(value)
        return None if tensor is None else read_tensor(tensor, self.folder, origin=self.origin)


def read_graph(model: str | Path | bytes | onnx.ModelProto) -> Graph:
    """Read a model and index it.

    Args:
        model: Path of an ONNX file, its bytes, or a parsed model (which is not changed).

    Raises:
        ModelError: The file is missing, not ONNX, truncated, or has no nodes.
    """
    document, origin = None, "<memory>"
    if isinstance(model, str | Path):
        origin = str(model)
        document = read_document(Path(model))
        proto, digest = parse_file(Path(model))
    elif isinstance(model, bytes):
        proto, digest = parse_bytes(model, origin), hashlib.sha256(model).hexdigest()
    elif isinstance(model, onnx.ModelProto):
        proto, digest = model, hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
    else:
        raise ModelError(
            f"{type(model).__name__} is no model: pass the path of an ONNX file, its bytes or a ModelProto"
        )
    if not proto.graph.node:
        raise ModelError(
            f"{origin} has no nodes, so there are no layers to see: pass a model that was exported to ONNX"
        )
    _refuse_unreadable_names(proto, origin)
    file = Path(model) if isinstance(model, str | Path) else None
    folder, home, _ = homes_of(file)
    refuse_unsafe(proto, folder, origin, home=home)
    if file is not None and file.is_symlink():
        proto, file = _behind_link(proto, file)
    if document is None:
        text = next((entry.value for entry in proto.metadata_props if entry.key == KEY), None)
        document = Document() if text is None else Document.from_text(text, origin)
    return _index(inline_functions(proto, origin), origin, file, digest, document)


def bound_types(graph: Graph, shapes: Mapping[str, tuple[int, ...]]) -> Types:
    """Return element type and shape of every value when the inputs have these shapes.

    Args:
        graph: The model.
        shapes: Input name to shape; inputs that are not named keep the shape that the model declares.
    """
    return infer_types(graph.model, graph.main, graph.inner, graph.folder, shapes=shapes)


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


def type_name(element_type: int) -> str | None:
    """Return ONNX's word for an element type, such as `float` for 1; None for one that this onnx does not know.

    Example:
        >>> type_name(1)
        'float'
    """
    names = {number: name.lower() for name, number in onnx.TensorProto.DataType.items()}
    return names.get(element_type)


def _behind_link(model: onnx.ModelProto, link: Path) -> tuple[onnx.ModelProto, Path]:
    """Return a model as it is to be read from the file behind a link, where its weights in other files are too.

    The download cache of Hugging Face keeps models so: model and weights are links into a folder of blobs. Where the
    weights are beside the link, that is the place to read from.
    """
    file = Path(os.path.realpath(link))
    try:
        return relocated(model, link, file.parent), file
    except OutputError:
        return model, link


def _refuse_unreadable_names(model: onnx.ModelProto, origin: str) -> None:
    """Raise a `ModelError` if a name is not text: the parser leaves bytes where a string is not UTF-8."""
    names = [model.producer_name, model.producer_version, model.domain, model.doc_string]
    names += [name for entry in model.metadata_props for name in (entry.key, entry.value)]
    nodes = [*model.graph.node]
    graphs = [model.graph]
    for function in model.functions:
        names += [function.name, function.domain, function.overload, *function.input, *function.output]
        names += function.attribute
        nodes += function.node
    while graphs or nodes:  # without recursion, as graphs nest to any depth
        if graphs:
            graph = graphs.pop()
            names += [graph.name, graph.doc_string]
            names += [x.name for x in (*graph.input, *graph.output, *graph.value_info, *graph.initializer)]
            nodes += graph.node
            continue
        node = nodes.pop()
        names += [node.name, node.op_type, node.domain, node.overload, *node.input, *node.output]
        names += [name for x in node.attribute for name in (x.name, x.ref_attr_name)]
        names += [name for entry in node.metadata_props for name in (entry.key, entry.value)]
        graphs += subgraphs(node)
    if not all(isinstance(name, str) for name in names):
        raise ModelError(f"{origin} is damaged, it has names that are not text: fetch or export it again")


def _index(model: onnx.ModelProto, origin: str, file: Path | None, digest: str, document: Document) -> Graph:
    graph = model.graph
    main = ordered(graph.node, origin)
    view = view_of(graph, main, origin)
    producers: dict[str, onnx.NodeProto] = {}
    consumers: dict[str, list[onnx.NodeProto]] = {}
    initializers = {tensor.name: tensor for tensor in graph.initializer} | view.initializers
    fixed: set[str] = set()
    for node in view.nodes:
        producers.update((name, node) for name in node.output if name)
        for name in dict.fromkeys(names_used(node) if node.output else ()):
            consumers.setdefault(name, []).append(node)
        if node.op_type == "Constant" and node.output:
            tensor = _constant_tensor(node)
            if tensor is not None:
                initializers[node.output[0]] = tensor
        elif _is_fixed(node, initializers, fixed):
            fixed.update(node.output)
    # Files before IR version 4 list their weights as inputs too.
    inputs = {value.name: value for value in graph.input if value.name not in initializers}
    return Graph(
        model=model,
        origin=origin,
        file=file,
        sha256=digest,
        document=document,
        main=main,
        nodes=view.nodes,
        inner=view.inner,
        hidden=tuple(view.hidden),
        producers=producers,
        consumers=consumers,
        initializers=initializers,
        fixed=frozenset(fixed),
        inputs=inputs,
        outputs=frozenset(output.name for output in graph.output),
        types=known_types(model, main, view.inner, None if file is None else file.parent),
    )


def _is_fixed(node: onnx.NodeProto, initializers: Mapping[str, onnx.TensorProto], fixed: set[str]) -> bool:
    """Return whether a node reads constants alone, and gives the same for them each time."""
    used = list(names_used(node))
    known = all(name in initializers or name in fixed for name in used)
    return bool(used) and known and not node.op_type.startswith(_RANDOM)


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
