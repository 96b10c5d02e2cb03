"""Compute operators that work cell by cell on a few numbers, to see what a run of them does."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxfeat.graph.reading import Graph, number, operator

Samples = NDArray[np.float64]

SELU_ALPHA, SELU_GAMMA = 1.67326319, 1.05070102
_LARGEST = 1 << 22  # numbers of a constant that is looked at; slopes and bounds have a few thousand
_FLOATS = frozenset(
    (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE)
)


def compute(node: onnx.NodeProto, inputs: list[Samples | None]) -> Samples | None:
    """Return what a node makes of its inputs; None where they don't suit it, as in a damaged file."""
    if any(array is None and name for array, name in zip(inputs, node.input, strict=True)):
        return None
    try:
        shapes = [np.shape(array) for array in inputs if array is not None]
        if operator(node) not in _RESHAPING and math.prod(np.broadcast_shapes(*shapes)) > _LARGEST:
            return None
        with np.errstate(all="ignore"):
            formula = FORMULAS.get(operator(node)) or _RESHAPING[operator(node)]
            return np.asarray(formula(node, inputs), np.float64)
    except (TypeError, ValueError, IndexError):
        return None


def constant_numbers(graph: Graph, name: str) -> Samples | None:
    """Return the numbers of a constant, computed where nodes make it of others; None where that is beyond us."""
    return _constant_numbers(graph, name, 6, {})


def _constant_numbers(graph: Graph, name: str, depth: int, known: dict[str, Samples | None]) -> Samples | None:
    if name not in known:  # each once: nodes of many inputs that share theirs would be computed millions of times
        known[name] = None
        known[name] = _made_numbers(graph, name, depth, known)
    return known[name]


def _made_numbers(graph: Graph, name: str, depth: int, known: dict[str, Samples | None]) -> Samples | None:
    if math.prod(side for side in graph.shape(name) or () if isinstance(side, int)) > _LARGEST:
        return None
    array = graph.constant(name)
    if array is not None:
        return None if array.dtype.kind in "OSU" else array.astype(np.float64)
    node = graph.producers.get(name)
    if node is None or not depth or not node.input:
        return None
    if operator(node) == "CastLike":
        return _constant_numbers(graph, node.input[0], depth - 1, known)
    inputs = [_constant_numbers(graph, x, depth - 1, known) if x else None for x in node.input]
    formula = operator(node)
    return compute(node, inputs) if formula in FORMULAS or formula in _RESHAPING else None


def float_attribute(node: onnx.NodeProto, name: str, default: float) -> float:
    """Return a node's attribute that is a number, or `default` where it is not set."""
    return next((float(entry.f) for entry in node.attribute if entry.name == name), default)


def _erf(x: Samples) -> Samples:
    return np.asarray(_ERF(x), np.float64)


_ERF = np.frompyfunc(math.erf, 1, 1)


def sigmoid(x: Samples) -> Samples:
    """Return 1 / (1 + exp(-x))."""
    return np.asarray(0.5 + 0.5 * np.tanh(x / 2))


def softplus(x: Samples) -> Samples:
    """Return log(1 + exp(x))."""
    return np.asarray(np.logaddexp(0, x))


def elu(x: Samples, alpha: float) -> Samples:
    """Return x above 0, alpha * (exp(x) - 1) below."""
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def gelu(x: Samples) -> Samples:
    """Return x times the share of a normal distribution below x."""
    return x * (1 + _erf(x / math.sqrt(2))) / 2


def hard_sigmoid(x: Samples, alpha: float, beta: float) -> Samples:
    """Return alpha * x + beta, within 0 and 1."""
    return np.clip(alpha * x + beta, 0, 1)


def _clip(node: onnx.NodeProto, low: Samples | None = None, high: Samples | None = None) -> tuple[Any, Any]:
    """Return the bounds of a Clip: attributes until opset 10, inputs since; infinite where there is none."""
    bounds = float_attribute(node, "min", -math.inf), float_attribute(node, "max", math.inf)
    return bounds[0] if low is None else low, bounds[1] if high is None else high


def _biased(inputs: list[Any]) -> Any:
    return inputs[0] if len(inputs) < 2 or inputs[1] is None else inputs[0] + inputs[1]


def _dequantized(axis: int, x: Samples, scale: Samples, zero_point: Samples | float | None = None) -> Samples:
    return (x - _along(axis, x, zero_point)) * _along(axis, x, scale)


def _quantized(axis: int, x: Samples, scale: Samples, zero_point: Samples | float | None = None) -> Samples:
    return np.asarray(np.rint(x / _along(axis, x, scale)) + _along(axis, x, zero_point))


def _along(axis: int, x: Samples, numbers: Samples | float | None) -> Samples:
    """Return numbers for each index of an axis in a shape that goes with x; of one number, that number."""
    array = np.asarray(0.0 if numbers is None else numbers)
    return array.reshape([-1 if i == axis % x.ndim else 1 for i in range(x.ndim)]) if array.size > 1 else array.ravel()


# What each operator computes (https://onnx.ai/onnx/operators, and ContribOperators.md of ONNX Runtime), of the node
# and its inputs. The quantized ones are computed on the real numbers that their integers stand for.
FORMULAS: dict[str, Callable[[onnx.NodeProto, list[Any]], Any]] = {
    "Abs": lambda _, x: np.abs(x[0]),
    "Add": lambda _, x: x[0] + x[1],
    "And": lambda _, x: (x[0] != 0) & (x[1] != 0),
    "BiasGelu": lambda _, x: gelu(_biased(x)),
    "Cast": lambda n, x: x[0] if number(n, "to", 0) in _FLOATS else np.trunc(x[0]),
    "CastLike": lambda _, x: x[0],
    "Celu": lambda n, x: elu(x[0] / float_attribute(n, "alpha", 1.0), 1.0) * float_attribute(n, "alpha", 1.0),
    "Clip": lambda n, x: np.clip(x[0], *_clip(n, *x[1:3])),
    "Div": lambda _, x: x[0] / x[1],
    "Dropout": lambda _, x: x[0],
    "Elu": lambda n, x: elu(x[0], float_attribute(n, "alpha", 1.0)),
    "Erf": lambda _, x: _erf(x[0]),
    "Exp": lambda _, x: np.exp(x[0]),
    "FastGelu": lambda _, x: gelu(_biased(x)),
    "Gelu": lambda _, x: gelu(x[0]),
    "Greater": lambda _, x: x[0] > x[1],
    "GreaterOrEqual": lambda _, x: x[0] >= x[1],
    "HardSigmoid": lambda n, x: hard_sigmoid(x[0], float_attribute(n, "alpha", 0.2), float_attribute(n, "beta", 0.5)),
    "HardSwish": lambda _, x: x[0] * hard_sigmoid(x[0], 1 / 6, 0.5),
    "Identity": lambda _, x: x[0],
    "LeakyRelu": lambda n, x: np.where(x[0] >= 0, x[0], x[0] * float_attribute(n, "alpha", 0.01)),
    "Less": lambda _, x: x[0] < x[1],
    "LessOrEqual": lambda _, x: x[0] <= x[1],
    "Log": lambda _, x: np.log(x[0]),
    "Max": lambda _, x: functools.reduce(np.maximum, x),
    "Min": lambda _, x: functools.reduce(np.minimum, x),
    "Mish": lambda _, x: x[0] * np.tanh(softplus(x[0])),
    "Mul": lambda _, x: x[0] * x[1],
    "Neg": lambda _, x: -x[0],
    "Not": lambda _, x: x[0] == 0,
    "Or": lambda _, x: (x[0] != 0) | (x[1] != 0),
    "PRelu": lambda _, x: np.where(x[0] >= 0, x[0], x[0] * x[1]),
    "Pow": lambda _, x: x[0] ** x[1],
    "QLinearAdd": lambda _, x: x[0] + x[3],
    "QLinearLeakyRelu": lambda n, x: np.where(x[0] >= 0, x[0], x[0] * float_attribute(n, "alpha", 0.01)),
    "QLinearMul": lambda _, x: x[0] * x[3],
    "QLinearSigmoid": lambda _, x: sigmoid(x[0]),
    "QuickGelu": lambda n, x: x[0] * sigmoid(x[0] * float_attribute(n, "alpha", 1.702)),
    "Reciprocal": lambda _, x: 1 / x[0],
    "Relu": lambda _, x: np.maximum(x[0], 0),
    "Selu": lambda n, x: elu(x[0], float_attribute(n, "alpha", SELU_ALPHA)) * float_attribute(n, "gamma", SELU_GAMMA),
    "Sigmoid": lambda _, x: sigmoid(x[0]),
    "Sign": lambda _, x: np.sign(x[0]),
    "Softplus": lambda _, x: softplus(x[0]),
    "Softsign": lambda _, x: x[0] / (1 + np.abs(x[0])),
    "Sqrt": lambda _, x: np.sqrt(x[0]),
    "Sub": lambda _, x: x[0] - x[1],
    "Sum": lambda _, x: functools.reduce(np.add, x),
    "Swish": lambda n, x: x[0] * sigmoid(x[0] * float_attribute(n, "alpha", 1.0)),
    "Tanh": lambda _, x: np.tanh(x[0]),
    "ThresholdedRelu": lambda n, x: np.where(x[0] > float_attribute(n, "alpha", 1.0), x[0], 0),
    "Where": lambda _, x: np.where(x[0] != 0, x[1], x[2]),
}
# Operators that exporters compute constants with, beside these.
_RESHAPING: dict[str, Callable[[onnx.NodeProto, list[Any]], Any]] = {
    "DequantizeLinear": lambda n, x: _dequantized(number(n, "axis", 1), *x),
    "QuantizeLinear": lambda n, x: _quantized(number(n, "axis", 1), *x),
    "Reshape": lambda _, x: x[0].reshape([int(side) for side in x[1].ravel()]),
    "Unsqueeze": lambda _, x: np.expand_dims(x[0], tuple(int(axis) for axis in x[1].ravel())),
}
