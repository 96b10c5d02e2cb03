"""Make the graph that is kept out of the one that tf2onnx gave: without what was added to watch the layers.

Nothing is looked up by name. The model was converted with the output of every layer as an input of one more node, in
order; that node comes off again here, and the i-th of its inputs is the i-th layer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import onnx
import onnx.numpy_helper

from onnxfeat.converter.sources import Call, InputSpec, Source
from onnxfeat.converter.tensorflow_graphs import SINK
from onnxfeat.converter.transposes import View, without_transposes
from onnxfeat.graph.flattening import names_used, subgraphs
from onnxfeat.graph.reading import read_graph
from onnxfeat.metadata import MappedLayer
from onnxfeat.running.exposure import with_outputs


def without_watchers(
    watched: onnx.ModelProto, source: Source, output_names: Sequence[str]
) -> tuple[onnx.ModelProto, list[MappedLayer]]:
    """Return the model as it is kept, and where each layer's output is in it.

    Args:
        watched: What `source.to_onnx` gave.
        source: The model it was made of.
        output_names: What its outputs will be called.
    """
    bare = onnx.ModelProto()
    bare.CopyFrom(watched)
    sinks = [node for node in bare.graph.node if node.name == SINK]
    values = list(sinks[0].input) if sinks else []
    for sink in sinks:
        bare.graph.node.remove(sink)
    del bare.graph.output[len(source.output_names) :]
    # Where the framework does not tell the layout, it could not be told how the axes were turned.
    plain = {value for value, call in zip(values, source.calls, strict=True) if call.layout is None}
    turned, views = without_transposes(bare, values, plain)
    _fold_biases(turned.graph, {view.value for view in views})
    renamed = _name_outputs(turned.graph, output_names)
    converted = with_outputs(read_graph(turned), output_names, cut=True)  # without what nothing uses now
    del converted.graph.input[:]  # an input that nothing uses is an input all the same
    converted.graph.input.extend(watched.graph.input)
    _state_shapes(converted.graph, source.inputs)
    numbered = _renumber(converted.graph)
    kept = {name for node in converted.graph.node for name in node.output}
    layer_map = []
    for call, view in zip(source.calls, views, strict=True):
        value = view.value
        for old, new in renamed:  # one after the other, as one may take the name that another had
            value = new if value == old else value
        value = numbered.get(value, value)
        layer_map.append(
            MappedLayer(
                name=call.name,
                keras_class=call.layer_class,
                kind=call.kind,
                value=value if value in kept else None,
                layout=_layout_before(call, view),
                reason="" if value in kept else _why_absent(turned, view, call),
            )
        )
    return converted, layer_map


def _state_shapes(graph: onnx.GraphProto, inputs: Sequence[InputSpec]) -> None:
    """Give the inputs the lengths that the source states, and open axes names instead of tf2onnx's `unk__`."""
    for value, spec in zip(graph.input, inputs, strict=True):
        letters = ("N", "H", "W", "C") if len(spec.shape) == 4 else ("N", *(f"axis_{i}" for i in range(1, 9)))
        for axis, side, letter in zip(value.type.tensor_type.shape.dim, spec.shape, letters, strict=False):
            if side is None:
                axis.dim_param = letter
            else:
                axis.dim_value = side


def _why_absent(model: onnx.ModelProto, view: View, call: Call) -> str:
    """Return why the graph that is kept has no value that is a layer's output."""
    value = view.value
    if value in {x.name for x in model.graph.input}:
        turned = "" if view.order is None else ", its axes in another order"
        return f"it passes an input of the model on{turned}"
    if value in {x.name for x in model.graph.initializer}:
        return "it gives a constant"
    if "Padding" in call.layer_class or call.layer_class == "Pad":
        return "its padding became part of the layer behind it"
    return "no output of the model needs it as a value of its own"


def _layout_before(call: Call, view: View) -> str | None:
    """Return the layout of a value of which what the framework gives is a view."""
    if view.order is None or call.layout is None:
        return call.layout
    layout = [""] * len(view.order)
    for axis, source in enumerate(view.order):
        layout[source] = call.layout[axis]
    return "".join(layout)


def _fold_biases(graph: onnx.GraphProto, watched: set[str]) -> None:
    """Make the constant that is added to what a convolution alone gives its bias, unless the sum before is watched."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    fixed = watched | _captured(graph) | {output.name for output in graph.output}
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    for node in graph.node:
        adds = users.get(node.output[0], []) if node.op_type in ("Conv", "ConvTranspose") else []
        if len(node.input) != 2 or len(adds) != 1 or adds[0].op_type != "Add" or node.output[0] in fixed:
            continue
        others = [constants.get(name) for name in adds[0].input if name != node.output[0]]
        if len(others) != 1 or others[0] is None or len(others[0].dims) < 2 or node.input[1] not in constants:
            continue
        array = onnx.numpy_helper.to_array(others[0])
        weights, group = constants[node.input[1]].dims, _group(node)
        channels = weights[0] if node.op_type == "Conv" else weights[1] * group
        if array.shape[1] != channels or array.size != channels or array.ndim != len(weights):
            continue
        bias = f"{others[0].name}/bias"
        if bias not in constants:
            constants[bias] = onnx.numpy_helper.from_array(np.ascontiguousarray(array.ravel()), bias)
            graph.initializer.append(constants[bias])
        node.input.append(bias)
        node.output[0] = adds[0].output[0]
        graph.node.remove(adds[0])


def _group(node: onnx.NodeProto) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == "group"), 1)


def _captured(graph: onnx.GraphProto) -> set[str]:
    """Return the values that graphs inside a node use, such as the loops of recurrent layers."""
    return {name for node in graph.node if any(subgraphs(node)) for name in names_used(node)}


def _renumber(graph: onnx.GraphProto) -> dict[str, str]:
    """Give the names that tf2onnx numbers new numbers in the order of the nodes; return old name to new.

    tf2onnx goes through sets, so that its numbers and the order of its constants change from run to run; the same model
    is to give the same bytes.
    """
    # These keep their names, and the letter n keeps the others apart from them.
    fixed = _captured(graph) | {value.name for value in (*graph.input, *graph.output)}
    used = dict.fromkeys(name for node in graph.node for name in (*names_used(node), *node.output))
    numbered: dict[str, str] = {}
    for name in used:
        found = re.fullmatch(r"(.*__|Identity_)\d+(:\d+)?", name)
        if found and name not in fixed:
            numbered[name] = f"{found[1]}n{len(numbered)}{found[2] or ''}"
    for position, node in enumerate(graph.node):
        node.name = re.sub(r"__\d+$", f"__n{position}", node.name)
        node.input[:] = [numbered.get(name, name) for name in node.input]
        node.output[:] = [numbered.get(name, name) for name in node.output]
    for value in (*graph.value_info, *graph.initializer):
        value.name = numbered.get(value.name, value.name)
    order = {numbered.get(name, name): position for position, name in enumerate(used)}
    graph.initializer.sort(key=lambda tensor: order[tensor.name])
    return numbered


def _name_outputs(graph: onnx.GraphProto, names: Sequence[str]) -> list[tuple[str, str]]:
    """Name a graph's outputs; return old names and new ones, in the order in which they were given."""
    producers = {name: node for node in graph.node for name in node.output}
    fixed = _captured(graph) | {output.name for output in graph.output}
    done: list[tuple[str, str]] = []

    def rename(old: str, new: str) -> None:
        if old != new:
            _rename(graph, old, new)
            producers[new] = producers.pop(old)
            done.append((old, new))

    for position, new in enumerate(names):
        source = graph.output[position].name
        # Where a layer's output is the model's too, one of the two is a copy.
        while producers[source].op_type == "Identity":
            before = producers[source].input[0]
            if before not in producers or before in fixed or before in names[:position]:
                break
            done.append((source, before))
            source = before
        if new in producers and new != source:  # an inner value has the name, or an output that comes later
            rename(new, f"{new}/inner")
        rename(source, new)
        graph.output[position].name = new
    return done


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]
    for output in graph.output:
        output.name = new if output.name == old else output.name
