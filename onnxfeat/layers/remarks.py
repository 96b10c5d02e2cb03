"""Say in words what else is to be known of a layer.

These are all remarks that `Layer.note` may hold, joined by `; `. NAME is the name of another layer, shortened at its
front where it is long.

    gate of SiLU of NAME                       a Sigmoid that its own input is multiplied with
    part of GELU of NAME                       another activation that is a part of one spelled out in several nodes
    gate: scales NAME                          its product with another map is what goes on (squeeze-and-excite)
    residual addition                          an Add whose sides are both computed from the picture
    then added to NAME                         a conv without activation of its own: NAME, the addition, is behind it
    then multiplied in NAME
    then concatenated in NAME
    then splits into 2 branches
    activation inside: raw values are not in the file
    after its Relu, if it had one              a quantized conv whose Relu became the lower end of its integers
    average of powers: inside an Lp pool       an AveragePool between two Pow, as PyTorch writes LPPool
    no Q/DQ boundary: watching may change the result
    integers without a known scale             a ConvInteger
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx

from onnxfeat.graph.flattening import names_used
from onnxfeat.graph.reading import Graph, operator
from onnxfeat.layers.activations import ACTIVATIONS, Activation, activation_at, is_fixed, uses_of
from onnxfeat.layers.chains import Chain

AFTER_RELU = "after its Relu, if it had one"
INSIDE_LP_POOL = "average of powers: inside an Lp pool"
INSIDE = "activation inside: raw values are not in the file"
NO_BOUNDARY = "no Q/DQ boundary: watching may change the result"
NO_SCALE = "integers without a known scale"
RESIDUAL = "residual addition"

_GATED = frozenset(("SiLU", "Swish", "QuickGELU", "HardSwish"))
_GATES = frozenset("Sigmoid HardSigmoid QLinearSigmoid".split())
_JOINING = {
    "Add": "then added to",
    "Sum": "then added to",
    "QLinearAdd": "then added to",
    "Mul": "then multiplied in",
    "QLinearMul": "then multiplied in",
    "Concat": "then concatenated in",
    "QLinearConcat": "then concatenated in",
}
_ADDING = frozenset("Add Sum QLinearAdd".split())
# What may stand between a gate and the product.
_PASSING = frozenset("Identity Cast Reshape Unsqueeze Expand Transpose Resize Upsample".split())
_MOST_STEPS = 4
_LONGEST_NAME = 28


def compounds(graph: Graph, chains: Iterable[Chain]) -> dict[str, tuple[Activation, str]]:
    """Return the parts of all activations that are spelled out: value to the activation and what it is computed from.

    Args:
        graph: The model.
        chains: What belongs to the convs; activations elsewhere, as behind a residual addition, are looked for.
    """
    found: dict[str, tuple[Activation, str]] = {}
    for chain in chains:
        if chain.activation is not None:
            found.update(dict.fromkeys(chain.activation.inner, (chain.activation, chain.raw)))
    for node in graph.nodes:
        value = node.output[0] if node.output else ""
        # An activation in several nodes begins where its input is read several times.
        if not value or value in found or graph.is_constant(value) or len(uses_of(graph, value).nodes) < 2:
            continue
        activation = activation_at(graph, value)
        if activation is not None:
            found.update(dict.fromkeys(activation.inner, (activation, value)))
    return found


def is_inside_lp_pool(graph: Graph, node: onnx.NodeProto) -> bool:
    """Return whether a pool averages powers, which is a step of an Lp pool spelled out in several nodes."""
    if operator(node) not in ("AveragePool", "QLinearAveragePool") or not node.input:
        return False
    maker = graph.producers.get(node.input[0])
    while maker is not None and operator(maker) in ("QuantizeLinear", "DequantizeLinear") and maker.input:
        maker = graph.producers.get(maker.input[0])
    return maker is not None and operator(maker) == "Pow"


def of_part(graph: Graph, node: onnx.NodeProto, whole: tuple[Activation, str], names: Mapping[str, str]) -> str:
    """Return the remark on a node inside an activation that is spelled out; nothing where it is not one itself."""
    if operator(node) not in ACTIVATIONS:
        return ""
    activation, source = whole
    word = "gate" if operator(node) in _GATES and activation.name in _GATED else "part"
    return f"{word} of {activation.name} of {_named(graph, source, names)}"


def of_gate(graph: Graph, value: str, names: Mapping[str, str]) -> str:
    """Return the remark on the output of a Sigmoid or HardSigmoid that another map is multiplied with, or nothing."""
    for _ in range(_MOST_STEPS):
        uses = uses_of(graph, value)
        if len(uses.nodes) != 1:
            return ""
        (node,) = uses.nodes
        if operator(node) in ("Mul", "QLinearMul"):
            factors = [name for name in _data_inputs(node) if name not in uses.names]
            scaled = [name for name in factors if not is_fixed(graph, name)]
            return f"gate: scales {_named(graph, scaled[0], names)}" if scaled else ""
        if operator(node) not in _PASSING or node.input[0] not in uses.names:
            return ""
        value = node.output[0]
    return ""


def of_stop(graph: Graph, chain: Chain, names: Mapping[str, str]) -> str:
    """Return the remark on where the walk behind a conv stopped; nothing where an activation or other layer follows."""
    if chain.activation is not None or chain.inside is not None:
        return ""
    if chain.stop is None and chain.branches > 1:
        return f"then splits into {chain.branches} branches"
    words = None if chain.stop is None else _JOINING.get(operator(chain.stop))
    if chain.stop is None or words is None:
        return ""
    return f"{words} {_named(graph, chain.stop.output[0], names)}"


def is_residual(graph: Graph, node: onnx.NodeProto, pictorial: frozenset[str]) -> bool:
    """Return whether a node adds two values that are both computed from the picture."""
    if operator(node) not in _ADDING:
        return False
    return len({name for name in _data_inputs(node) if name in pictorial and not is_fixed(graph, name)}) > 1


def pictorial_values(graph: Graph) -> frozenset[str]:
    """Return the values that depend on what is in the picture; those that depend on its size alone are left out."""
    found = set(graph.inputs)
    for node in graph.nodes:
        if operator(node) not in ("Shape", "Size") and any(name in found for name in names_used(node)):
            found.update(name for name in node.output if name)
    return frozenset(found)


def _data_inputs(node: onnx.NodeProto) -> list[str]:
    """Return the inputs of an Add, Sum or Mul that are numbers, not scales or zero points."""
    inputs = [node.input[0], *node.input[3:4]] if operator(node).startswith("QLinear") else node.input
    return [name for name in inputs if name]


def _named(graph: Graph, value: str, names: Mapping[str, str]) -> str:
    """Return the name of the layer that a value, or what it was quantized from, belongs to."""
    node = graph.producers.get(value)
    while node is not None and operator(node) in ("QuantizeLinear", "DequantizeLinear") and node.input:
        value = node.input[0]
        node = graph.producers.get(value)
    name = names.get(value, value)
    return name if len(name) <= _LONGEST_NAME else "..." + name[3 - _LONGEST_NAME :]
