"""Rewrite an ONNX graph so that inner values become outputs."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper

from onnxfeat import references
from onnxfeat.errors import LayerError, ModelError
from onnxfeat.files import refuse_existing
from onnxfeat.graph.flattening import Inner, names_used, numbered
from onnxfeat.graph.layouts import CHANNELS_FIRST, layouts_of
from onnxfeat.graph.model_files import embed_own, write_model
from onnxfeat.graph.quantization import INTEGERS
from onnxfeat.graph.reading import Graph, operator, read_graph, type_name
from onnxfeat.graph.scaling import own_scaling
from onnxfeat.graph.skeletons import skeleton_of
from onnxfeat.layers.inventory import choose_layers
from onnxfeat.metadata import KEY, Document, Exposed
from onnxfeat.records import Axis, Layer, ModelInput, Weights

_UNKNOWN_TO_NUMPY = frozenset(
    number for name, number in onnx.TensorProto.DataType.items() if name.startswith(("BFLOAT", "FLOAT8", "FLOAT4"))
)
_X86 = ("x86_64", "amd64", "i386", "i686", "x86")


def expose(
    model: str | Path | bytes | onnx.ModelProto,
    path: str | Path,
    *,
    layers: str | Sequence[str] | None = None,
    cut: bool = True,
    inputs: Iterable[str] = (),
    weights: Weights = "auto",
    overwrite: bool = False,
) -> tuple[Layer, ...]:
    """Write an ordinary ONNX file whose outputs are the chosen layers; return those layers.

    The file carries the layers' names, the preprocessing and the input's layout in its metadata: a machine that draws
    from it needs ONNX Runtime, NumPy and Pillow, and neither the onnx package nor the framework.

    Args:
        model: Path of an ONNX file, its bytes, or a parsed model (which is not changed).
        path: Where to write.
        layers: Selection (see `onnxfeat.layers.selection`); None takes all conv and pool layers with a picture.
        cut: Leave out all nodes and weights that the chosen layers do not need, and the model's own outputs.
            False keeps the whole graph and puts the layers behind its outputs.
        inputs: Names of the inputs that do not take the picture, where the graph does not tell them apart; what is
            not said here can be said when the file is run.
        weights: What to do with weights that the model keeps in other files: `refer` to the same data, which needs
            `path` to be in the model's folder or above it; `carry` those that the layers need in a file of their own
            beside `path`; or `auto`, the first where it can be.
        overwrite: Whether an existing file may be replaced.

    Raises:
        ModelError: The model can't be read.
        LayerError: The selection names nothing in the model.
        OutputError: `path` exists or can't be written.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> exposed = expose("models/shapes_small.onnx", f"{folder}/first.onnx", layers="0")
        >>> [layer.name for layer in exposed]
        ['conv_1']
    """
    refuse_existing(Path(path), overwrite)
    graph = read_graph(model)
    chosen = seen(choose_layers(graph, layers), graph)
    rewritten = exposed_model(graph, chosen, cut=cut, given=inputs)
    embed_own(rewritten, graph.file)
    write_model(rewritten, Path(path), source=graph.file, weights=weights, overwrite=overwrite)
    return chosen


def exposed_model(
    graph: Graph, layers: Sequence[Layer], *, cut: bool = True, given: Iterable[str] = ()
) -> onnx.ModelProto:
    """Return a model whose outputs are the values of `layers`, cut to what they need unless told not to.

    Everything but the outputs is as it was: nodes, names, weights, functions, operator sets, metadata. Only nodes
    that bear the name of an earlier one are numbered, as ONNX Runtime refuses a graph with two of one name; calls of
    functions that hold layers are replaced by their nodes; and an If gets one output more for each layer in a branch.
    """
    rewritten = with_outputs(graph, [layer.value for layer in layers], cut=cut)
    given_as = {output.name: output.type.tensor_type.elem_type for output in rewritten.graph.output}
    target = _input_if_told(graph, inputs_of(graph, rewritten), given)
    skeleton = skeleton_of(graph, target, layers)
    layers = [_as_given(replace(layer, value=output_of(graph, layer.value)), given_as) for layer in layers]
    exposed = Exposed(
        # Exposing an exposed file again changes nothing, its origin included.
        source_sha256=graph.document.exposed.source_sha256 if graph.document.exposed else graph.sha256,
        input=target,
        layers=tuple(layers),
        skeleton=skeleton,
    )
    kept = {name for node in rewritten.graph.node for name in node.output}
    layer_map = tuple(mapped for mapped in graph.document.layer_map if mapped.value in kept)
    store(rewritten, replace(graph.document, layer_map=layer_map, exposed=exposed))
    _restrict_reference(rewritten, [mapped.name for mapped in layer_map], graph.origin)
    return rewritten


def _restrict_reference(model: onnx.ModelProto, layers: Sequence[str], origin: str) -> None:
    """Leave of the reference values that a file carries those of what is left of the graph.

    The digests stay those of the conversion: made anew they would vouch for weights that were changed since.
    """
    for entry in model.metadata_props:
        if entry.key == references.KEY:
            arrays = [tensor.name for tensor in model.graph.initializer]
            arrays += [name for node in model.graph.node if node.op_type == "Constant" for name in node.output]
            outputs = [output.name for output in model.graph.output]
            reference = references.Reference.from_text(entry.value, origin)
            entry.value = reference.restricted(layers, outputs, arrays).to_text()


def _as_given(layer: Layer, given_as: Mapping[str, int]) -> Layer:
    """Return a layer with the numbers of its output, where that is unsigned in place of the file's signed integers."""
    if layer.dtype != "int8" or given_as.get(layer.value) != onnx.TensorProto.UINT8 or layer.quantization is None:
        return layer
    higher = tuple(point + 128 for point in layer.quantization.zero_point)
    return replace(layer, dtype="uint8", quantization=replace(layer.quantization, zero_point=higher))


def _input_if_told(graph: Graph, names: Iterable[str], given: Iterable[str]) -> ModelInput | None:
    """Return the input that takes the picture, or None where only whoever runs the model can tell."""
    try:
        return picture_input(graph, names, given)
    except ModelError:
        return None


def seen(layers: Sequence[Layer], graph: Graph) -> tuple[Layer, ...]:
    """Return the layers that can be extracted.

    Raises:
        LayerError: None can; the message says why.
    """
    found = tuple(layer for layer in layers if not layer.unseen)
    if not found:
        raise LayerError(
            f"none of the {len(layers)} chosen layers of {graph.origin} can be seen: {layers[0].name!r} has "
            f"{layers[0].unseen}"
        )
    return found


def inputs_of(graph: Graph, rewritten: onnx.ModelProto) -> list[str]:
    """Return the names of the inputs that a rewritten model still has, weights that are listed as inputs apart."""
    return [value.name for value in rewritten.graph.input if value.name in graph.inputs]


def with_outputs(graph: Graph, values: Iterable[str], *, cut: bool, shapes: bool = False) -> onnx.ModelProto:
    """Return a copy of a model with `values` as outputs: in place of its own if `cut`, else behind them.

    A value of a type that NumPy does not know, such as bfloat16, is given as float32 by the name of `output_of`. With
    `shapes` the outputs are the shapes of the values, by the names of `shape_output`.
    """
    values = list(dict.fromkeys(values))
    rewritten = onnx.ModelProto()
    for field, content in graph.model.ListFields():
        if isinstance(content, int | str):
            setattr(rewritten, field.name, content)
        elif field.name != "graph":
            getattr(rewritten, field.name).extend(content)
    if cut:
        _cut(graph, values, rewritten.graph)
    else:
        rewritten.graph.CopyFrom(graph.model.graph)
        if list(rewritten.graph.node) != graph.main:
            del rewritten.graph.node[:]
            rewritten.graph.node.extend(graph.main)
    _make_node_names_unique(rewritten.graph)
    unsigned = {value for value in values if not shapes and _made_unsigned(graph, rewritten.graph, value)}
    present = {output.name for output in rewritten.graph.output}
    own = {output.name: output for output in graph.model.graph.output}
    makers: dict[str, onnx.NodeProto] = {}
    for value in values:
        if value in graph.inner:
            name = shape_output(value) if shapes else value
            makers = makers or _makers(rewritten.graph.node)
            _lift(makers, graph.inner[value], name, graph.types.get(value, (0, None))[0], shapes)
            element_type = onnx.TensorProto.INT64 if shapes else _lifted_type(graph.types.get(value, (0, None))[0])
            rewritten.graph.output.append(_declared(name, element_type, None))
        elif shapes:
            rewritten.graph.node.append(onnx.helper.make_node("Shape", [value], [shape_output(value)]))
            rewritten.graph.output.append(_declared(shape_output(value), onnx.TensorProto.INT64, None))
        elif output_of(graph, value) != value:
            node = onnx.helper.make_node("Cast", [value], [output_of(graph, value)], to=onnx.TensorProto.FLOAT)
            rewritten.graph.node.append(node)
            shape = graph.types[value][1]
            rewritten.graph.output.append(_declared(output_of(graph, value), onnx.TensorProto.FLOAT, shape))
        elif (
            value in own
            and value not in present
            and value in graph.producers
            and operator(graph.producers[value]) == "If"
        ):
            rewritten.graph.output.append(own[value])  # its branches may give arrays of other shapes
        elif value not in present:
            element_type, shape = graph.types.get(value, (0, None))
            declared = onnx.TensorProto.UINT8 if value in unsigned else element_type
            rewritten.graph.output.append(_declared(value, declared, shape))
    return rewritten


def shape_output(value: str) -> str:
    """Return the name of the output that gives the shape of a value."""
    return f"{value}/shape"


def output_of(graph: Graph, value: str) -> str:
    """Return the name of the output that gives a value: its own, or another where it is cast to float32 first."""
    return f"{value}/float32" if graph.types.get(value, (0, None))[0] in _UNKNOWN_TO_NUMPY else value


def needed(graph: Graph, values: Iterable[str]) -> tuple[list[onnx.NodeProto], set[str]]:
    """Return the nodes of the main graph that the values need, in order, and the names of all that these read."""
    names = {graph.inner[value].path[0][0] if value in graph.inner else value for value in values}
    nodes = []
    for node in reversed(graph.main):
        if names.intersection(node.output):
            nodes.append(node)
            names.update(names_used(node))
    nodes.reverse()
    return nodes, names


def store(model: onnx.ModelProto, document: Document) -> None:
    """Put a document into a model's metadata, in place of the one it has."""
    entries = [entry for entry in model.metadata_props if entry.key == KEY]
    entry = entries[0] if entries else model.metadata_props.add()
    entry.key, entry.value = KEY, document.to_text()


def picture_input(graph: Graph, names: Iterable[str] | None = None, given: Iterable[str] = ()) -> ModelInput:
    """Return the input that takes the picture: the only one, or the only one that can.

    Args:
        graph: The model.
        names: The inputs to look among; None means all.
        given: Inputs that get their values otherwise.

    Raises:
        ModelError: Nothing tells which input takes the picture.
    """
    document = graph.document
    known = document.input if document.exposed is None else document.exposed.input
    if known is not None and known.name in graph.inputs and known.name not in given:
        # A float16 copy may take float16 now, whatever the document says.
        return replace(known, dtype=_dtype_of(graph, known.name))
    layouts = layouts_of(graph)
    wanted = set(graph.inputs if names is None else names) - set(given)
    inputs = [_as_input(graph, name, layouts) for name in graph.inputs if name in wanted]
    pictures = inputs if len(inputs) == 1 else [x for x in inputs if x.is_picture and graph.rank(x.name) == 4]
    if len(pictures) != 1:
        if not inputs:
            raise ModelError(
                f"{graph.origin} has no input left for the picture: leave out the value of the input that takes it, or "
                f"choose layers that see one"
            )
        shapes = [x.described if graph.rank(x.name) is not None else "of unknown shape" for x in inputs]
        listed = ", ".join(f"{x.name!r} {x.dtype} {shape}" for x, shape in zip(inputs, shapes, strict=True))
        raise ModelError(
            f"{graph.origin} wants {len(inputs)} inputs ({listed}), of which {len(pictures)} "
            f"take a picture, and one must: give the others values of their own, --input NAME=NUMBER or "
            f"--input NAME=FILE.npy (in Python `inputs=`)"
        )
    return replace(pictures[0], scaling=own_scaling(graph, pictures[0].name) if pictures[0].is_picture else None)


def _as_input(graph: Graph, name: str, layouts: Mapping[str, str]) -> ModelInput:
    shape = graph.types.get(name, (0, None))[1]
    layout = layouts.get(name)
    if layout is not None and shape is not None and len(layout) != len(shape):
        layout = None  # the graph contradicts itself
    # Where nothing in the graph tells (no conv behind the input), ONNX's own convention for pictures holds; and without
    # a batch axis that of torchvision's detectors.
    if layout is None and (shape is None or len(shape) == 4):
        layout = CHANNELS_FIRST[4]
    elif layout is None and shape is not None and len(shape) == 3 and shape[0] == 3:
        layout = "CHW"
    if shape is None and layout is not None:
        shape = (None,) * len(layout)
    return ModelInput(name=name, shape=shape or (), layout=layout, dtype=_dtype_of(graph, name))


def _dtype_of(graph: Graph, name: str) -> str:
    """Return NumPy's name of an input's type, ONNX's where NumPy has none; `unknown` where it is no tensor."""
    element_type = graph.types.get(name, (onnx.TensorProto.FLOAT, None))[0]
    if element_type in _UNKNOWN_TO_NUMPY:
        return type_name(element_type) or "unknown"
    if element_type in onnx.helper.get_all_tensor_dtypes():
        return str(onnx.helper.tensor_dtype_to_np_dtype(element_type))
    return "unknown"


def _cut(graph: Graph, values: Sequence[str], target: onnx.GraphProto) -> None:
    """Copy into `target` what the values need of the graph, and nothing else."""
    nodes, names = needed(graph, values)
    source = graph.model.graph
    target.name, target.doc_string = source.name, source.doc_string
    target.node.extend(nodes)
    target.input.extend(value for value in source.input if value.name in names)
    target.initializer.extend(tensor for tensor in source.initializer if tensor.name in names)
    target.sparse_initializer.extend(tensor for tensor in source.sparse_initializer if tensor.values.name in names)
    target.quantization_annotation.extend(x for x in source.quantization_annotation if x.tensor_name in names)
    target.metadata_props.extend(source.metadata_props)
    made = {name for node in nodes for name in node.output} - set(values)
    target.value_info.extend(value for value in source.value_info if value.name in made)


def _lifted_type(element_type: int) -> int:
    """Return the type in which a value of a branch is given: its own where it is quantized, else float32."""
    return element_type if element_type in INTEGERS else onnx.TensorProto.FLOAT


def _made_unsigned(graph: Graph, target: onnx.GraphProto, value: str) -> bool:
    """Let a QuantizeLinear that gives int8 to one DequantizeLinear give uint8, both zero points 128 higher.

    On x86 ONNX Runtime does so itself (`QDQS8ToU8Transformer`), as its kernels for uint8 are the better ones, but not
    where the integers are watched; then another kernel would run, and the result move by a step. The numbers that the
    integers stand for are the same.
    """
    quantize, uses = graph.producers.get(value), graph.consumers.get(value, [])
    if platform.machine().lower() not in _X86:
        return False
    if quantize is None or operator(quantize) != "QuantizeLinear" or len(uses) != 1 or value in graph.outputs:
        return False
    if operator(uses[0]) != "DequantizeLinear" or len(quantize.input) != 3 or len(uses[0].input) != 3:
        return False
    real = uses[0].output[0]
    readers = sum(list(node.input).count(real) for node in graph.consumers.get(real, []))
    # A copy for each reader comes first, and leaves two uses of the integers.
    if readers + (real in graph.outputs) != 1:
        return False
    points = [graph.constant(node.input[2]) for node in (quantize, uses[0])]
    zero_points = [x for x in points if x is not None and x.dtype == np.int8 and x.size == 1]
    if len(zero_points) < 2 or zero_points[0].item() != zero_points[1].item():
        return False
    name = f"{value}/uint8_zero_point"
    higher = (zero_points[0].astype(np.int16) + 128).astype(np.uint8)
    target.initializer.append(onnx.numpy_helper.from_array(higher, name))
    for node in target.node:
        if value in node.output or (value in node.input and operator(node) == "DequantizeLinear"):
            node.input[2] = name
            for attribute in node.attribute:
                if attribute.name == "output_dtype" and value in node.output:
                    attribute.i = onnx.TensorProto.UINT8
    for declared in [x for x in target.value_info if x.name == value]:
        target.value_info.remove(declared)
    return True


def _makers(nodes: Iterable[onnx.NodeProto]) -> dict[str, onnx.NodeProto]:
    return {name: node for node in nodes for name in node.output}


def _lift(makers: Mapping[str, onnx.NodeProto], place: Inner, name: str, element_type: int, shape: bool) -> None:
    """Make a value inside a branch, or its shape, an output, called `name`, of the If that gives the first branch.

    The branch that does not hold the value gives an array without elements: it was not taken, or the value was not
    computed. So nothing runs that would not have run.
    """
    (output, branch), *deeper = place.path
    node = makers[output]
    # To one type for both branches: its own where that is sure, else float32.
    given = onnx.TensorProto.INT64 if shape else _lifted_type(element_type)
    for attribute in node.attribute:
        if attribute.type != onnx.AttributeProto.GRAPH:
            continue
        graph, inside = attribute.g, f"{name}/{attribute.name}"
        if attribute.name != branch:
            empty = onnx.helper.make_tensor("", given, [0], [])
            graph.node.append(onnx.helper.make_node("Constant", [], [inside], value=empty))
        elif deeper:
            _lift(_makers(graph.node), Inner(path=tuple(deeper), name=place.name), inside, element_type, shape)
        elif shape:
            graph.node.append(onnx.helper.make_node("Shape", [place.name], [inside]))
        elif given == element_type:
            graph.node.append(onnx.helper.make_node("Identity", [place.name], [inside]))
        else:
            graph.node.append(onnx.helper.make_node("Cast", [place.name], [inside], to=given))
        graph.output.append(_declared(inside, given, None))
    node.output.append(name)


def _make_node_names_unique(graph: onnx.GraphProto) -> None:
    """Number nodes that bear the name of an earlier one: ONNX Runtime refuses such a graph."""
    taken: dict[str, int] = {}
    for node in graph.node:
        if node.name:
            node.name = numbered(node.name, taken)


def _declared(value: str, element_type: int, shape: tuple[Axis, ...] | None) -> onnx.ValueInfoProto:
    """Return the declaration of an output, with type and shape where they are known.

    A name alone is accepted by ONNX Runtime, which fills in the type; a wrong type would be refused.
    """
    if not element_type:
        return onnx.ValueInfoProto(name=value)
    return onnx.helper.make_tensor_value_info(value, element_type, shape)
