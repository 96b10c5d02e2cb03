"""List the layers of a model: what can be seen, under which name.

Layers come from the best source there is: the list that `expose` left in the file; the layer map of a conversion from
Keras; else the graph itself, where each conv or pool node is a layer together with the bias, normalization and
activation that follow it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import onnx

from onnxfeat.graph.geometry import sights_of
from onnxfeat.graph.layouts import layouts_of
from onnxfeat.graph.quantization import quantizations_of
from onnxfeat.graph.reading import Graph, operator, read_graph, reduced_axes, type_name
from onnxfeat.layers import remarks
from onnxfeat.layers.activations import ACTIVATIONS, uses_of
from onnxfeat.layers.chains import BLOCKED_DOMAIN, CONVS, LOWEST, POOLS, Chain, chain_of, tapped
from onnxfeat.layers.formulas import constant_numbers
from onnxfeat.layers.naming import given_names, unique_names
from onnxfeat.layers.selection import select
from onnxfeat.metadata import MappedLayer
from onnxfeat.records import Kind, Layer

_NORMS = frozenset(
    "BatchNormalization InstanceNormalization GroupNormalization LayerNormalization LRN RMSNormalization "
    "SimplifiedLayerNormalization SkipLayerNormalization GroupNorm".split()
)
_ACTIVATIONS = ACTIVATIONS | {"Softmax", "QLinearSoftmax"}
# What a Keras layer may do behind its conv or pool.
_WITHIN_A_LAYER = _ACTIVATIONS | frozenset(
    "Add Sub Mul Div Pow Erf Exp Log Neg Max Min Identity Cast Dropout Transpose Squeeze BatchNormalization "
    "InstanceNormalization GroupNormalization QuantizeLinear DequantizeLinear".split()
)
_REDUCING = frozenset("ReduceMean ReduceMax".split())
_BLOCKED = (
    f"channel-blocked data ({BLOCKED_DOMAIN}): ONNX Runtime saved this file optimized for one CPU; use the original, "
    "or save it at level basic or extended"
)


def list_layers(
    model: str | Path | bytes | onnx.ModelProto | Graph, layers: str | Sequence[str] | None = None
) -> tuple[Layer, ...]:
    """Return the layers of a model in order of execution.

    Args:
        model: Path of an ONNX file, its bytes, or a parsed model.
        layers: Selection (see `onnxfeat.layers.selection`); None lists all conv and pool layers, also those whose map
            is 1 x 1, and of an exposed file all that it exposes; `kind:any` lists everything.

    Raises:
        ModelError: The model can't be read.
        LayerError: The selection names nothing in the model.

    Example:
        >>> for layer in list_layers("models/shapes_reference_layers.onnx"):
        ...     print(layer.name, layer.channels, layer.spatial)
        conv2d 8 (148, 148)
        max_pooling2d 8 (74, 74)
        conv2d_1 16 (72, 72)
        max_pooling2d_1 16 (36, 36)
        conv2d_2 32 (34, 34)
        max_pooling2d_2 32 (17, 17)
    """
    graph = model if isinstance(model, Graph) else read_graph(model)
    if graph.document.exposed is not None:
        return choose_layers(graph, layers)
    found = all_layers(graph)
    if layers is None:
        listed = tuple(layer for layer in found if layer.kind in ("conv", "pool"))
        return listed or select(found)  # the latter raises the error that says what there is instead
    return select(found, layers)


def choose_layers(graph: Graph, layers: str | Sequence[str] | None) -> tuple[Layer, ...]:
    """Return the layers that a selection names; None is the default, and in an exposed file all that it exposes."""
    found = all_layers(graph)
    return found if layers is None and graph.document.exposed is not None else select(found, layers)


def all_layers(graph: Graph) -> tuple[Layer, ...]:
    """Return everything that can be selected in a model, in order of execution."""
    document = graph.document
    if document.exposed is not None:
        document.exposed.refuse_lost((output.name for output in graph.model.graph.output), graph.origin)
        return document.exposed.layers
    if document.layer_map:
        return _mapped_layers(graph, document.layer_map)
    return _found_layers(graph)


def lost_layers(graph: Graph) -> tuple[str, ...]:
    """Return the layers of the layer map whose values the graph no longer has: another tool rewrote it.

    Example:
        >>> lost_layers(read_graph("models/shapes_small.onnx"))
        ()
    """
    if graph.document.exposed is not None:  # those are refused, see `all_layers`
        return ()
    held = {*graph.producers, *graph.inputs}
    return tuple(x.name for x in graph.document.layer_map if x.value is not None and x.value not in held)


def _mapped_layers(graph: Graph, layer_map: Iterable[MappedLayer]) -> tuple[Layer, ...]:
    facts = _Facts(graph)
    layers = []
    for mapped in layer_map:
        if mapped.value is None or mapped.value not in graph.producers:
            continue
        node, chain = graph.producers[mapped.value], Chain(raw=mapped.value, value=mapped.value)
        if mapped.kind in ("conv", "pool"):
            node = _source(graph, mapped.value) or node
            found = chain_of(graph, node)
            # Else the activation behind it is a Keras layer of its own.
            chain = found if found.value == mapped.value else chain
        layers.append(
            Layer(
                name=mapped.name,
                kind=mapped.kind,
                op_type=node.op_type,
                source=mapped.keras_class,
                node=node.name,
                **{**facts.of_chain(chain), "layout": mapped.layout},
            )
        )
    return tuple(layers)


def _found_layers(graph: Graph) -> tuple[Layer, ...]:
    facts = _Facts(graph)
    nodes = [node for node in graph.nodes if node.output and node.output[0] and node.op_type != "Constant"]
    kinds = [_kind(graph, node, facts.layouts) for node in nodes]
    main = [kind in ("conv", "pool") for kind in kinds]
    given = given_names(graph, nodes, main)
    names = unique_names(given, kinds, main)
    chains = [
        chain_of(graph, node) if kind == "conv" else Chain(raw=node.output[0], value=node.output[0])
        for node, kind in zip(nodes, kinds, strict=True)
    ]
    notes = _notes(graph, nodes, names, chains)
    return tuple(
        Layer(
            name=name,
            kind=kind,
            op_type=node.op_type,
            source=origin.source,
            node=node.name,
            note=_joined(note, facts.note_on_quantization(node, chain)),
            **facts.of_chain(chain),
        )
        for node, kind, name, origin, chain, note in zip(nodes, kinds, names, given, chains, notes, strict=True)
    )


def _notes(graph: Graph, nodes: Sequence[onnx.NodeProto], names: Sequence[str], chains: Sequence[Chain]) -> list[str]:
    """Return what is to be known of each layer beside its fields (see `onnxfeat.layers.remarks`)."""
    layer_of = {node.output[0]: name for node, name in zip(nodes, names, strict=True)}
    for node, name, chain in zip(nodes, names, chains, strict=True):
        if chain.value != node.output[0]:  # what a conv has behind it is known by the conv's name
            layer_of.update({chain.raw: name, chain.value: name})
    parts = remarks.compounds(graph, chains)
    pictorial = remarks.pictorial_values(graph)
    notes = []
    for node, chain in zip(nodes, chains, strict=True):
        part = parts.get(node.output[0])
        activation = chain.activation.name if chain.activation else operator(node).removeprefix("QLinear")
        if part is not None and chain.activation is None:
            notes.append(remarks.of_part(graph, node, part, layer_of))
        elif remarks.is_inside_lp_pool(graph, node):
            notes.append(remarks.INSIDE_LP_POOL)
        elif chain.inside:
            notes.append(remarks.INSIDE)
        elif activation in ("Sigmoid", "HardSigmoid"):
            notes.append(remarks.of_gate(graph, chain.value, layer_of))
        elif remarks.is_residual(graph, node, pictorial):
            notes.append(remarks.RESIDUAL)
        else:
            notes.append(remarks.of_stop(graph, chain, layer_of))
    return notes


class _Facts:
    """What the graph tells of its values, worked out once for all layers."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.sights = sights_of(graph)
        self.layouts = layouts_of(graph)
        self.quantizations = quantizations_of(graph)
        self.blocked = _blocked_values(graph)
        self.is_quantized = any(
            operator(node) == "QuantizeLinear" and not graph.is_constant(node.input[0])
            for node in graph.nodes
            if node.input
        )

    def of_chain(self, chain: Chain) -> dict[str, Any]:
        """Return the fields of a layer that say where its values are and what they are like."""
        value = tapped(self.graph, chain.value)
        element_type = self.graph.types.get(value, (0, None))[0]
        sight = self.sights.get(value) or self.sights.get(chain.value)
        shape = self.graph.shape(value)
        return {
            "value": value,
            "raw_value": value if chain.raw == chain.value else tapped(self.graph, chain.raw),
            "activation": chain.activation.name if chain.activation else chain.inside,
            "shape": self.graph.shape(chain.value) if shape is None else shape,
            "layout": self.layouts.get(value) or self.layouts.get(chain.value),
            "dtype": type_name(element_type) if element_type else None,
            "reduction": None if sight is None else sight.jump,
            "receptive_field": None if sight is None else sight.field,
            "quantization": self.quantizations.get(value),
            "unseen": _BLOCKED if value in self.blocked else "",
        }

    def note_on_quantization(self, node: onnx.NodeProto, chain: Chain) -> str:
        """Return what is to be known of the integers of a quantized layer, or of a place that has none."""
        graph, op_type, value = self.graph, operator(node), tapped(self.graph, chain.value)
        is_conv = op_type in CONVS and chain.activation is None
        if is_conv and (op_type == "QLinearConv" or self._starts_at_zero(value)):
            return remarks.AFTER_RELU
        if op_type == "ConvInteger" and chain.value == node.output[0]:
            return remarks.NO_SCALE
        users = uses_of(graph, value)
        inside = self.is_quantized and op_type != "DequantizeLinear" and value not in graph.outputs and users.nodes
        if not inside or value in self.quantizations:
            return ""
        makers = [graph.producers.get(name) for name in node.input if not graph.is_constant(name)]
        near = any(maker is not None and operator(maker) == "DequantizeLinear" for maker in makers)
        return remarks.NO_BOUNDARY if near or len(users.names) > 1 else ""

    def _starts_at_zero(self, value: str) -> bool:
        """Return whether the least integer of a quantized value stands for 0, so that a Relu may be part of it."""
        quantization = self.quantizations.get(value)
        element_type = self.graph.types.get(value, (0, None))[0]
        return quantization is not None and set(quantization.zero_point) == {LOWEST.get(type_name(element_type) or "")}


def _joined(*notes: str) -> str:
    return "; ".join(note for note in notes if note)


def _blocked_values(graph: Graph) -> frozenset[str]:
    """Return the values whose channels ONNX Runtime keeps in blocks: from its own operators until a ReorderOutput."""
    blocked: set[str] = set()
    for node in graph.nodes:
        if node.domain == BLOCKED_DOMAIN:
            blocked.update(node.output if node.op_type != "ReorderOutput" else ())
        elif any(name in blocked for name in node.input):
            blocked.update(node.output)
    return frozenset(blocked - {""})


def _kind(graph: Graph, node: onnx.NodeProto, layouts: dict[str, str]) -> Kind:
    op_type = node.op_type if node.domain == BLOCKED_DOMAIN else operator(node)
    if op_type in CONVS:
        return "conv"
    if op_type in POOLS or _is_global_pool(graph, node, layouts.get(node.input[0]) if node.input else None):
        return "pool"
    if op_type in _NORMS:
        return "norm"
    return "activation" if op_type in _ACTIVATIONS else "other"


def _is_global_pool(graph: Graph, node: onnx.NodeProto, layout: str | None) -> bool:
    """Return whether a node pools over exactly the spatial axes: a global pooling by another name.

    The mean that is subtracted from its own input, and the mean of squares, are the statistics of a normalization.
    """
    if operator(node) not in _REDUCING or layout is None or not node.output:
        return False
    axes = _axes(graph, node)
    spatial = {position for position, letter in enumerate(layout) if letter not in "NC"}
    if axes is None or not spatial or {axis % len(layout) for axis in axes} != spatial:
        return False
    maker = graph.producers.get(node.input[0])
    squared = maker is not None and (
        operator(maker) == "Pow" or (operator(maker) == "Mul" and len(set(maker.input)) == 1)
    )
    subtracted = any(
        operator(user) == "Sub" and node.input[0] in user.input for user in graph.consumers.get(node.output[0], ())
    )
    return not squared and not subtracted


def _axes(graph: Graph, node: onnx.NodeProto) -> list[int] | None:
    """Return the axes that a Reduce operator takes away, also where nodes compute them of constants."""
    axes = reduced_axes(graph, node)
    if axes is None and len(node.input) > 1:
        computed = constant_numbers(graph, node.input[1])
        axes = None if computed is None else [int(axis) for axis in computed.ravel()]
    return axes


def _source(graph: Graph, value: str) -> onnx.NodeProto | None:
    """Return the one conv or pool node that cell-by-cell nodes make a Keras layer's value of, or None."""
    found: dict[str, onnx.NodeProto] = {}
    seen, todo = set(), [value]
    while todo:
        name = todo.pop()
        node = graph.producers.get(name)
        if node is None or name in seen:
            continue
        seen.add(name)
        if operator(node) in CONVS | POOLS:
            found[name] = node
        elif operator(node) in _WITHIN_A_LAYER:
            todo += [x for x in node.input if not graph.is_constant(x)]
    return next(iter(found.values())) if len(found) == 1 else None
