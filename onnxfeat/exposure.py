"""Rewrite an ONNX graph so that inner values become outputs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import onnx

from onnxfeat.errors import ModelError
from onnxfeat.files import refuse_existing, whole_file
from onnxfeat.graph import Graph, names_used, numbered, read_graph
from onnxfeat.inventory import choose_layers
from onnxfeat.layouts import CHANNELS_FIRST, layouts_of
from onnxfeat.metadata import KEY, Document, Exposed
from onnxfeat.records import Layer, ModelInput


def expose(
    model: str | Path | bytes | onnx.ModelProto,
    path: str | Path,
    *,
    layers: str | Sequence[str] | None = None,
    cut: bool = True,
    overwrite: bool = False,
) -> tuple[Layer, ...]:
    """Write an ordinary ONNX file whose outputs are the chosen layers; return those layers.

    The file carries the layers' names, the preprocessing and the input's layout in its metadata: a machine that draws
    from it needs ONNX Runtime, NumPy and Pillow, and neither the onnx package nor the framework.

    Args:
        model: Path of an ONNX file, its bytes, or a parsed model (which is not changed).
        path: Where to write.
        layers: Selection (see `onnxfeat.selection`); None takes all conv and pool layers with a picture.
        cut: Leave out all nodes and weights that the chosen layers do not need, and the model's own outputs.
            False keeps the whole graph and puts the layers behind its outputs.
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
    chosen = choose_layers(graph, layers)
    rewritten = exposed_model(graph, chosen, cut=cut)
    with whole_file(Path(path), overwrite=overwrite) as temporary:
        temporary.write_bytes(rewritten.SerializeToString(deterministic=True))
    return chosen


def exposed_model(graph: Graph, layers: Sequence[Layer], *, cut: bool = True) -> onnx.ModelProto:
    """Return a model whose outputs are the values of `layers`, cut to what they need unless told not to.

    Everything but the outputs is as it was: nodes, names, weights, functions, operator sets, metadata; only nodes
    that bear the name of an earlier one are numbered, as ONNX Runtime refuses a graph with two of one name.
    """
    rewritten = with_outputs(graph, [layer.value for layer in layers], cut=cut)
    exposed = Exposed(
        # Exposing an exposed file again changes nothing, its origin included.
        source_sha256=graph.document.exposed.source_sha256 if graph.document.exposed else graph.sha256,
        input=picture_input(graph, {value.name for value in rewritten.graph.input}),
        layers=tuple(layers),
    )
    kept = {name for node in rewritten.graph.node for name in node.output}
    layer_map = tuple(mapped for mapped in graph.document.layer_map if mapped.value in kept)
    store(rewritten, replace(graph.document, layer_map=layer_map, exposed=exposed))
    return rewritten


def with_outputs(graph: Graph, values: Iterable[str], *, cut: bool) -> onnx.ModelProto:
    """Return a copy of a model with `values` as outputs: in place of its own if `cut`, else behind them."""
    values = list(dict.fromkeys(values))
    rewritten = onnx.ModelProto()
    if not cut:
        rewritten.CopyFrom(graph.model)
        _make_node_names_unique(rewritten.graph)
        present = {output.name for output in graph.model.graph.output}
        rewritten.graph.output.extend(_typed(graph, value) for value in values if value not in present)
        return rewritten
    for field, content in graph.model.ListFields():
        if isinstance(content, int | str):
            setattr(rewritten, field.name, content)
        elif field.name != "graph":
            getattr(rewritten, field.name).extend(content)
    _cut(graph, values, rewritten.graph)
    _make_node_names_unique(rewritten.graph)
    rewritten.graph.output.extend(_typed(graph, value) for value in values)
    return rewritten


def store(model: onnx.ModelProto, document: Document) -> None:
    """Put a document into a model's metadata, in place of the one it has."""
    entries = [entry for entry in model.metadata_props if entry.key == KEY]
    entry = entries[0] if entries else model.metadata_props.add()
    entry.key, entry.value = KEY, document.to_text()


def picture_input(graph: Graph, names: Iterable[str] | None = None) -> ModelInput:
    """Return the input that takes the picture: the only one of rank 4.

    Args:
        graph: The model.
        names: The inputs to look among; None means all.

    Raises:
        ModelError: The model has other inputs too, or none of rank 4.
    """
    document = graph.document
    known = document.input if document.exposed is None else document.exposed.input
    if known is not None:
        return known
    wanted = set(graph.inputs if names is None else names)
    names = [name for name in graph.inputs if name in wanted]
    shapes = ", ".join(
        f"{name!r} {'of unknown shape' if graph.rank(name) is None else graph.shape(name)}" for name in names
    )
    pictures = [name for name in names if graph.rank(name) in (4, None)]
    if len(names) != 1 or len(pictures) != 1:
        raise ModelError(
            f"{graph.origin} wants {len(names)} inputs ({shapes}), a picture needs exactly one, of rank 4: "
            f"use a model that takes one picture"
        )
    name = pictures[0]
    element_type, shape = graph.types.get(name, (onnx.TensorProto.FLOAT, None))
    # Where nothing in the graph tells (no conv behind the input), ONNX's own convention for pictures holds.
    layout = layouts_of(graph).get(name, CHANNELS_FIRST[4])
    if sorted(layout) != sorted(CHANNELS_FIRST[4]) or element_type not in onnx.helper.get_all_tensor_dtypes():
        raise ModelError(
            f"{graph.origin} uses its input {name!r} as {layout}, a picture is NCHW or NHWC: use a model that takes one"
        )
    return ModelInput(
        name=name,
        shape=shape or (None, None, None, None),
        layout=layout,
        dtype=str(onnx.helper.tensor_dtype_to_np_dtype(element_type)),
    )


def _cut(graph: Graph, values: Iterable[str], target: onnx.GraphProto) -> None:
    """Copy into `target` what the values need of the graph, and nothing else."""
    needed = set(values)
    nodes = []
    for node in reversed(graph.nodes):
        if needed.intersection(node.output):
            nodes.append(node)
            needed.update(names_used(node))
    nodes.reverse()
    source = graph.model.graph
    target.name, target.doc_string = source.name, source.doc_string
    target.node.extend(nodes)
    target.input.extend(value for value in source.input if value.name in needed)
    target.initializer.extend(tensor for tensor in source.initializer if tensor.name in needed)
    target.sparse_initializer.extend(tensor for tensor in source.sparse_initializer if tensor.values.name in needed)
    target.quantization_annotation.extend(x for x in source.quantization_annotation if x.tensor_name in needed)
    target.metadata_props.extend(source.metadata_props)
    made = {name for node in nodes for name in node.output} - set(values)
    target.value_info.extend(value for value in source.value_info if value.name in made)


def _make_node_names_unique(graph: onnx.GraphProto) -> None:
    """Number nodes that bear the name of an earlier one: ONNX Runtime refuses such a graph."""
    taken: set[str] = set()
    for node in graph.node:
        if node.name:
            node.name = numbered(node.name, taken)


def _typed(graph: Graph, value: str) -> onnx.ValueInfoProto:
    """Return the declaration of an output, with type and shape where they are known.

    A name alone is accepted by ONNX Runtime, which fills in the type; a wrong type would be refused.
    """
    element_type, shape = graph.types.get(value, (0, None))
    if not element_type:
        return onnx.ValueInfoProto(name=value)
    return onnx.helper.make_tensor_value_info(value, element_type, shape)
