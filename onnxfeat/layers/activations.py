"""Recognize activation functions by what they compute, in whatever operators an exporter wrote them.

SiLU comes as `x * Sigmoid(x)`, GELU in a dozen forms of up to ten nodes, PRelu of Keras as `Relu(x) - a * Relu(-x)`.
A table of forms would never be complete, so the nodes between a value and the place where all that is made of it cell
by cell meets again are computed on sample numbers, and the outcome is compared with the functions that have a name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx

from onnxfeat.graph.reading import Graph, operator
from onnxfeat.layers.formulas import (
    FORMULAS,
    SELU_ALPHA,
    SELU_GAMMA,
    Samples,
    compute,
    constant_numbers,
    elu,
    float_attribute,
    gelu,
    hard_sigmoid,
    sigmoid,
    softplus,
)

ACTIVATIONS = frozenset(
    "Celu Clip Elu Gelu HardSigmoid HardSwish LeakyRelu Mish PRelu Relu Selu Sigmoid Softplus Softsign Swish Tanh "
    "ThresholdedRelu BiasGelu FastGelu QuickGelu QLinearLeakyRelu QLinearSigmoid".split()
)
"""Operators that are an activation by themselves."""

# Operators of one function under several names; an operator that is not listed names its function itself.
_FUNCTION = {
    "Gelu": "GELU",
    "BiasGelu": "GELU",
    "FastGelu": "GELU",
    "QuickGelu": "QuickGELU",
    "QLinearLeakyRelu": "LeakyRelu",
    "QLinearSigmoid": "Sigmoid",
}
_TO_AND_FRO = frozenset(("QuantizeLinear", "DequantizeLinear"))
# No activation reads its input more often, or takes more nodes: GELU by Tanh with x * x * x reads x five times and
# takes nine.
_MOST_USES = 8
_MOST_NODES = 24
# On the way to 1 / (1 + exp(-x)) three functions without a name are met.
_MOST_NAMELESS = 4
# The samples lie along an axis in front of all that constants have.
_MOST_AXES = 8
_X = np.concatenate([np.linspace(-10, 10, 81), [-50.0, -20.0, 20.0, 50.0, -100.0, 100.0]])
_SAMPLES = _X.reshape(-1, *[1] * _MOST_AXES)
# Forms of one function differ by 5e-4 (GELU by Erf and by Tanh), constants in float16 by 5e-4 of their value.
_TOLERANCE = 2e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Uses:
    """What a graph does with a value.

    Attributes:
        names: The value and its quantized and dequantized copies, which stand for the same numbers.
        nodes: The nodes that read the numbers under any of these names, in order.
    """

    names: frozenset[str]
    nodes: list[onnx.NodeProto]


@dataclass(frozen=True, slots=True, kw_only=True)
class Activation:
    """An activation function in a graph.

    Attributes:
        name: What it is called: the ONNX operator where there is one, else such as `SiLU`, `GELU`.
        value: The value behind it.
        inner: Outputs of the nodes that it is made of, the last one (`value`) apart.
    """

    name: str
    value: str
    inner: tuple[str, ...]


def uses_of(graph: Graph, value: str) -> Uses:
    """Return the nodes that read the numbers of a value, also through QuantizeLinear and DequantizeLinear.

    Nodes that look at its shape or type alone are left out.
    """
    names, nodes, seen = [value], [], set()
    for name in names:  # grows while it is read
        for node in graph.consumers.get(name, ()):
            op_type = operator(node)
            if op_type in ("Shape", "Size") or not node.output or not node.output[0] or id(node) in seen:
                continue
            if op_type == "CastLike" and node.input[0] != name:
                continue
            seen.add(id(node))
            if op_type in _TO_AND_FRO and node.input[0] == name:
                names.append(node.output[0])
            else:
                nodes.append(node)
    return Uses(names=frozenset(names), nodes=nodes)


def is_fixed(graph: Graph, value: str) -> bool:
    """Return whether a value is the same for every picture, its type apart (CastLike of a constant)."""
    if graph.is_constant(value):
        return True
    node = graph.producers.get(value)
    return node is not None and operator(node) == "CastLike" and any(graph.is_constant(x) for x in node.input[:1])


def activation_at(graph: Graph, value: str) -> Activation | None:
    """Find the activation that is computed from a value, or None.

    Nodes are taken in as long as they work cell by cell and read nothing but the value and constants. Wherever all
    paths have met in one value the function so far is looked at; the longest one that has a name wins, so that
    `Clip(x + 3, 0, 6) / 6` is a HardSigmoid.
    """
    region = _Region(graph, value)
    found: Activation | None = None
    nameless = 0
    while nameless <= _MOST_NAMELESS and region.grow():
        if not region.is_closed():
            continue
        name = region.function()
        if name is None and region.is_lost:
            break
        nameless += name is None
        if name is not None and (found is None or found.name != name):
            *inner, last = (node.output[0] for node in region.nodes)
            found = Activation(name=name, value=last, inner=tuple(inner))
    return found


class _Region:
    """The nodes taken in so far, and the numbers that they make of the samples."""

    def __init__(self, graph: Graph, value: str) -> None:
        self.graph = graph
        self.nodes: list[onnx.NodeProto] = []
        self.known: set[str] = set()
        self.samples: dict[str, Samples] = {}
        self.waiting: list[onnx.NodeProto] = []
        self.ends: set[str] = set()
        self.last = Uses(names=frozenset(), nodes=[])
        self.is_lost = False
        """Whether a node can't be computed, so that nothing behind it can."""
        self._enter(value, _SAMPLES)
        if len(self.waiting) > _MOST_USES:
            self.waiting = []

    def _enter(self, value: str, samples: Samples | None) -> None:
        self.last = uses_of(self.graph, value)
        self.known |= self.last.names
        self.samples.update(dict.fromkeys(self.last.names, samples) if samples is not None else {})
        waiting = {id(node) for node in self.waiting}
        self.waiting += [node for node in self.last.nodes if id(node) not in waiting]
        if not self.last.nodes:
            self.ends.add(value)

    def grow(self) -> bool:
        """Take in the next node; return whether there was one."""
        if len(self.nodes) >= _MOST_NODES or len(self.waiting) > _MOST_USES:
            return False
        for node in self.waiting:
            if operator(node) in FORMULAS and all(
                name in self.known or is_fixed(self.graph, name) for name in node.input if name
            ):
                self.waiting.remove(node)
                self.nodes.append(node)
                self._enter(node.output[0], self._compute(node))
                return True
        return False

    def is_closed(self) -> bool:
        """Return whether all that was made of the value has met in the output of the last node."""
        read = {name for node in self.waiting for name in node.input if name in self.known}
        return read <= self.last.names and self.ends <= self.last.names

    def function(self) -> str | None:
        """Return the name of the function from the value to the output of the last node, or None."""
        node = self.nodes[-1]
        op_type = operator(node)
        if len(self.nodes) == 1 and op_type in ACTIVATIONS:
            # ONNX Runtime writes SiLU as a QuickGelu of alpha 1.
            factor = float_attribute(node, "alpha", 1.702 if op_type == "QuickGelu" else 1.0)
            is_silu = op_type in ("Swish", "QuickGelu") and factor == 1
            return "SiLU" if is_silu else _FUNCTION.get(op_type, op_type)
        samples = self.samples.get(node.output[0])
        return None if samples is None else _name_of(samples)

    def _compute(self, node: onnx.NodeProto) -> Samples | None:
        inputs = [self._numbers(name) if name else None for name in node.input]
        result = compute(node, inputs)
        self.is_lost = self.is_lost or result is None
        return result

    def _numbers(self, name: str) -> Samples | None:
        if name in self.known:
            return self.samples.get(name)
        array = constant_numbers(self.graph, name)
        if array is None or array.ndim > _MOST_AXES:
            return None
        for axis, length in enumerate(array.shape):
            if length > 4:  # a few channels will do, and a map of slopes would take long
                array = array.take(np.linspace(0, length - 1, 4).astype(int), axis=axis)
        return array


# Functions without a parameter, by name.
_FUNCTIONS: dict[str, list[Samples]] = {
    "Relu": [np.maximum(_X, 0)],
    "Sigmoid": [sigmoid(_X)],
    "Tanh": [np.tanh(_X)],
    "Softplus": [softplus(_X)],
    "Softsign": [_X / (1 + np.abs(_X))],
    "Mish": [_X * np.tanh(softplus(_X))],
    "SiLU": [_X * sigmoid(_X)],
    "GELU": [gelu(_X)],
    "QuickGELU": [_X * sigmoid(1.702 * _X)],
    "Selu": [SELU_GAMMA * elu(_X, SELU_ALPHA)],
    # The slope is 1/6 in PyTorch and Keras 3, 0.2 in ONNX's default, Keras 2 and Paddle.
    "HardSigmoid": [hard_sigmoid(_X, 1 / 6, 0.5), hard_sigmoid(_X, 0.2, 0.5)],
    "HardSwish": [_X * hard_sigmoid(_X, 1 / 6, 0.5), _X * hard_sigmoid(_X, 0.2, 0.5)],
}


_NAMES: list[str] = [name for name, forms in _FUNCTIONS.items() for _ in forms]
_FORMS = np.stack([form for forms in _FUNCTIONS.values() for form in forms])


@np.errstate(all="ignore")  # samples of what is no function known here may be infinite
def _name_of(samples: Samples) -> str | None:
    """Return the name of the function that gives these samples, or None."""
    y = np.broadcast_to(samples, np.broadcast_shapes(samples.shape, _SAMPLES.shape)).reshape(len(_X), -1)
    if not y.size:  # slopes for no channel at all
        return None
    # All at once, on the first channel; then the one that fits, on all.
    fits = np.all(np.abs(_FORMS - y[:, 0]) <= _TOLERANCE * np.maximum(1, np.abs(_FORMS)), axis=1)
    for index in np.flatnonzero(fits)[:1]:
        if _equal(y, _FORMS[index]):
            return _NAMES[int(index)]
    return _rectifier(y) or _with_parameter(y)


def _equal(y: Samples, form: Samples) -> bool:
    form = form if form.ndim == 2 else form[:, None]
    return bool(np.all(np.abs(y - form) <= _TOLERANCE * np.maximum(1, np.abs(form))))  # never where y is NaN


def _rectifier(y: Samples) -> str | None:
    """Return `LeakyRelu` or `PRelu` for x above 0 and slopes times x below, one for all channels or one for each."""
    x = _X[:, None]
    slopes = y[-2] / _X[-2]
    if not _equal(y, np.where(x >= 0, x, x * slopes)) or np.all(np.abs(np.abs(slopes) - 1) < _TOLERANCE):
        return None
    return "LeakyRelu" if np.ptp(slopes) == 0 and 0 < slopes[0] < 1 else "PRelu"


def _with_parameter(y: Samples) -> str | None:
    """Return the name of a function of one or two parameters that are the same for all channels, or None."""
    low, high = float(y[-2, 0]), float(y[-1, 0])
    # Bounds near the ends of the samples would be a scaling by about 1.
    if low < high and (low > 0.99 * _X[-2] or high < 0.99 * _X[-1]) and _equal(y, np.clip(_X, low, high)):
        return "Clip"
    if low < 0:
        if _equal(y, elu(_X, -low)):
            return "Elu"
        if _equal(y, -low * elu(_X / -low, 1.0)):
            return "Celu"
    one = int(np.argmin(np.abs(_X - 1)))
    ratio = float(y[one, 0])  # sigmoid(beta) for x * sigmoid(beta * x)
    # Above 0.55 the factor beta is above 0.2. With a beta near 0 the function is x / 2, a scaling.
    return "Swish" if 0.55 < ratio < 1 and _equal(y, _X * sigmoid(_X * math.log(ratio / (1 - ratio)))) else None
