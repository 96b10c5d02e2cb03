"""List the layers of a model: what can be seen, under which name.

Layers come from the best source there is: the list that `expose` left in the file; the layer map of a conversion from
Keras; else the graph itself, where each conv or pool node is a layer together with the bias, normalization and
activation that follow it.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import onnx

from onnxfeat.geometry import Sight, sights_of
from onnxfeat.graph import Graph, numbered, operator, read_graph, reduced_axes, type_name
from onnxfeat.layouts import layouts_of
from onnxfeat.metadata import MappedLayer
from onnxfeat.records import Kind, Layer
from onnxfeat.selection import select

_CONVS = frozenset("Conv ConvTranspose".split())
_POOLS = frozenset("MaxPool AveragePool LpPool GlobalAveragePool GlobalMaxPool GlobalLpPool".split())
_NORMS = frozenset(
    "BatchNormalization InstanceNormalization GroupNormalization LayerNormalization LRN RMSNormalization".split()
)
_ACTIVATIONS = frozenset(
    "Celu Clip Elu Gelu HardSigmoid HardSwish LeakyRelu Mish PRelu Relu Selu Sigmoid Softmax Softplus Softsign Swish "
    "Tanh ThresholdedRelu".split()
)
_AFFINE = frozenset("Add Sub Mul Div".split())
# What follows a conv as part of it: normalization that is its own node, and nodes that pass values on.
_CONV_NORMS = frozenset("BatchNormalization InstanceNormalization GroupNormalization".split())
_STEPS = frozenset("Identity Cast Dropout Transpose".split()) | _CONV_NORMS
# Activations that exporters spell out in several nodes: the operators that each needs, and those that it may have.
_SCALING = frozenset(("Mul", "Div"))
_COMPOUNDS = (
    ("GELU", {"Erf", "Add", "Mul"}, _SCALING),
    ("GELU", {"Pow", "Tanh", "Add", "Mul"}, _SCALING),
    ("Mish", {"Softplus", "Tanh", "Mul"}, frozenset[str]()),
    ("SiLU", {"Sigmoid", "Mul"}, frozenset[str]()),
    ("HardSwish", {"HardSigmoid", "Mul"}, frozenset[str]()),
    ("HardSwish", {"Add", "Clip", "Mul"}, _SCALING),
)
# What such activations are made of.
_PIECES = _ACTIVATIONS | frozenset("Add Sub Mul Div Pow Erf Exp Log Neg Max Min Identity Cast".split())


def list_layers(
    model: str | Path | bytes | onnx.ModelProto | Graph, layers: str | Sequence[str] | None = None
) -> tuple[Layer, ...]:
    """Return the layers of a model in order of execution.

    Args:
        model: Path of an ONNX file, its bytes, or a parsed model.
        layers: Selection (see `onnxfeat.selection`); None lists all conv and pool layers, also those whose map is
            1 x 1, and of an exposed file all that it exposes; `kind:any` lists everything.

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


def _mapped_layers(graph: Graph, layer_map: Iterable[MappedLayer]) -> tuple[Layer, ...]:
    sights = sights_of(graph)
    layers = []
    for mapped in layer_map:
        if mapped.value is None or mapped.value not in graph.producers:
            continue
        node, raw, activation = graph.producers[mapped.value], mapped.value, None
        if mapped.kind in ("conv", "pool"):
            node = _source(graph, mapped.value) or node
            chain = _chain(graph, node.output[0])
            if chain[1] == mapped.value:  # else the activation behind it is a Keras layer of its own
                raw, _, activation = chain
        layers.append(
            Layer(
                name=mapped.name,
                kind=mapped.kind,
                op_type=node.op_type,
                value=mapped.value,
                raw_value=raw,
                activation=activation,
                layout=mapped.layout,
                source=mapped.keras_class,
                node=node.name,
                **_facts(graph, mapped.value, sights),
            )
        )
    return tuple(layers)


def _found_layers(graph: Graph) -> tuple[Layer, ...]:
    sights, layouts = sights_of(graph), layouts_of(graph)
    counts: Counter[str] = Counter()
    taken: set[str] = set()
    layers = []
    for node in graph.nodes:
        if not node.output or node.op_type == "Constant":
            continue
        kind = _kind(graph, node, layouts)
        raw, value, activation = node.output[0], node.output[0], None
        if kind == "conv":
            raw, value, activation = _chain(graph, node.output[0])
        source = _module_path(node)
        layers.append(
            Layer(
                name=numbered(_cleaned(source or node.name, kind) or f"{kind}_{counts[kind]}", taken),
                kind=kind,
                op_type=node.op_type,
                value=value,
                raw_value=raw,
                activation=activation,
                layout=layouts.get(value),
                source=source,
                node=node.name,
                **_facts(graph, value, sights),
            )
        )
        counts[kind] += 1
    return tuple(layers)


def _facts(graph: Graph, value: str, sights: dict[str, Sight]) -> dict[str, Any]:
    element_type = graph.types.get(value, (0, None))[0]
    sight = sights.get(value)
    return {
        "shape": graph.shape(value),
        "dtype": type_name(element_type) if element_type else None,
        "reduction": None if sight is None else sight.jump,
        "receptive_field": None if sight is None else sight.field,
    }


def _kind(graph: Graph, node: onnx.NodeProto, layouts: dict[str, str]) -> Kind:
    op_type = operator(node)
    if op_type in _CONVS:
        return "conv"
    if op_type in _POOLS or _is_global_mean(graph, node, layouts.get(node.input[0]) if node.input else None):
        return "pool"
    if op_type in _NORMS:
        return "norm"
    return "activation" if op_type in _ACTIVATIONS else "other"


def _is_global_mean(graph: Graph, node: onnx.NodeProto, layout: str | None) -> bool:
    """Return whether a node averages exactly the spatial axes: a global average pooling by another name."""
    if node.op_type != "ReduceMean" or layout is None:
        return False
    axes = reduced_axes(graph, node)
    spatial = {position for position, letter in enumerate(layout) if letter not in "NC"}
    return axes is not None and {axis % len(layout) for axis in axes} == spatial


def _chain(graph: Graph, value: str) -> tuple[str, str, str | None]:
    """Follow a conv's output through what belongs to it; return raw value, final value and activation.

    The walk goes on while one node uses the value, and that node adds or multiplies a constant (bias, folded
    normalization), normalizes, or only passes on. It ends with the activation, or before anything else: where several
    nodes use the value, a block begins (residual addition, concatenation) that is not part of the conv.
    """
    belongs = current = value
    while True:
        consumers = graph.consumers.get(current, [])
        if len(consumers) > 1:
            compound = _compound(graph, current)
            return (current, *compound) if compound else (belongs, belongs, None)
        if not consumers or not consumers[0].output:
            return belongs, belongs, None
        node = consumers[0]
        if node.op_type in _ACTIVATIONS and node.input[0] == current and node.op_type != "Softmax":
            return current, node.output[0], node.op_type
        others = [x for x in node.input if x != current]
        if node.op_type in _AFFINE and others and all(graph.is_constant(x) for x in others):
            belongs = current = node.output[0]
        elif node.op_type in _STEPS and node.input[0] == current:
            current = node.output[0]
            belongs = current if node.op_type in _CONV_NORMS else belongs
        else:
            return belongs, belongs, None


def _compound(graph: Graph, start: str) -> tuple[str, str] | None:
    """Find the activation that several nodes make of one value; return its output and name, or None.

    SiLU is `x * Sigmoid(x)`, hard swish `x * Clip(x + 3, 0, 6) / 6`, GELU `x * (1 + Erf(x / sqrt 2)) / 2`: in each, all
    paths from x run through cell-by-cell nodes that read x and constants alone, and meet in one value.
    """
    inside, ops, open_values = {start}, set(), {start}
    for _ in range(16):  # GELU by tanh, the longest, takes 8 nodes
        ready = [
            node
            for value in sorted(open_values)
            for node in graph.consumers.get(value, [])
            if node.op_type in _PIECES
            and node.output[0] not in inside
            and all(name in inside or graph.is_constant(name) for name in node.input if name)
        ]
        if not ready:
            return None
        inside.add(ready[0].output[0])
        ops.add(ready[0].op_type)
        open_values = {
            value
            for value in inside
            if any(x not in inside for node in graph.consumers.get(value, []) for x in node.output) or value == start
        }
        if all(x in inside for node in graph.consumers[start] for x in node.output):
            ends = [value for value in inside - {start} if not _feeds_only(graph, value, inside)]
            if len(ends) == 1:
                name = _compound_name(ops)
                return None if name is None else (_with_factor(graph, ends[0], name), name)
    return None


def _with_factor(graph: Graph, value: str, name: str) -> str:
    """Return the value behind the factor that ends GELU (1/2) and hard swish (1/6), or `value` if it came before."""
    consumers = graph.consumers.get(value, [])
    factor = {"GELU": 1 / 2, "HardSwish": 1 / 6}.get(name)
    if factor is None or len(consumers) != 1 or operator(consumers[0]) not in ("Mul", "Div"):
        return value
    node = consumers[0]
    constant = next((graph.constant(x) for x in node.input if x != value), None)
    if constant is None or constant.size != 1:
        return value
    number = float(constant.ravel()[0])
    expected = factor if node.op_type == "Mul" else 1 / factor
    # Within the rounding of float16, in which exporters write 1/6 as 0.16663.
    return node.output[0] if abs(number - expected) <= 1e-3 * expected else value


def _feeds_only(graph: Graph, value: str, inside: set[str]) -> bool:
    consumers = graph.consumers.get(value, [])
    return bool(consumers) and all(output in inside for node in consumers for output in node.output)


def _compound_name(ops: set[str]) -> str | None:
    for name, needed, allowed in _COMPOUNDS:
        if needed <= ops <= needed | allowed | {"Identity", "Cast"}:
            return name
    return None


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
        if node.op_type in _CONVS | _POOLS:
            found[name] = node
        elif node.op_type in _PIECES | _STEPS | {"Squeeze"}:
            todo += [x for x in node.input if not graph.is_constant(x)]
    return next(iter(found.values())) if len(found) == 1 else None


def _module_path(node: onnx.NodeProto) -> str | None:
    """Return the module path that PyTorch's dynamo exporter leaves in a node's metadata, such as `layer1.0.conv1`."""
    for entry in node.metadata_props:
        if entry.key == "pkg.torch.onnx.name_scopes":
            try:
                scopes = ast.literal_eval(entry.value)
            except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
                return None  # other exporters may use the key for something else; then the node's name serves
            paths = [str(scope) for scope in scopes if scope] if isinstance(scopes, list) else []
            # The last scope is the node's own name, the one before it the module that it belongs to.
            return paths[-2] if len(paths) > 1 else None
    return None


def _cleaned(name: str, kind: str) -> str:
    """Return a name without what no file name may hold: `/features/0/Conv` becomes `features.0.Conv`.

    A number gets the kind in front, as the selection `12` means a position.
    """
    cleaned = re.sub(r"[^\w.\-]+", ".", name).strip(".")[:120]
    return f"{kind}_{cleaned}" if re.fullmatch(r"-?\d+", cleaned) else cleaned
