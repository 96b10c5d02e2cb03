"""Put the Transposes of a converted graph out of the way, and know where each watched value is then.

TensorFlow keeps channels last and ONNX's convolutions have them first, so tf2onnx puts a Transpose before and behind
each. One walk through the graph, in order of execution, takes them away: a Transpose is not written but remembered
(`View`), and what follows is computed on its source, with axes and constants turned, as long as the operator allows;
where one doesn't, the Transpose is written there, once. Two that undo each other vanish.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.reference
from numpy.typing import NDArray

from onnxfeat.graph.flattening import names_used, subgraphs

Order = tuple[int, ...]

# Operators that compute each value from that at the same place of their first input alone.
_CELL_BY_CELL = frozenset(
    "Abs Acos Acosh Asin Asinh Atan Atanh Cast Ceil Celu Clip Cos Cosh Elu Erf Exp Floor Gelu HardSigmoid HardSwish "
    "IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign "
    "Sqrt Tan Tanh ThresholdedRelu".split()
)
_BROADCASTING = frozenset(
    "Add And Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mod Mul Or PRelu Pow Sub Sum Where "
    "Xor".split()
)
_REDUCING = frozenset(
    "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum "
    "ReduceSumSquare Squeeze".split()
)
# What tf2onnx does to weights in front of the operator that takes them.
_OF_WEIGHTS = frozenset("Cast Reshape Squeeze Unsqueeze".split())
_ALONG_AXIS = frozenset("Hardmax LogSoftmax Softmax Split".split())


@dataclass(frozen=True, slots=True)
class View:
    """A value of the original graph as a view of one of the new graph.

    Attributes:
        value: The value of the new graph.
        order: Axis i of the original is axis `order[i]` of `value`; None where the two are the same.
    """

    value: str
    order: Order | None = None


def without_transposes(
    model: onnx.ModelProto, watched: Iterable[str], plain: Iterable[str] = ()
) -> tuple[onnx.ModelProto, list[View]]:
    """Return the model without avoidable Transposes and Identities, and where the watched values are in it.

    Args:
        model: A model whose nodes are in order of execution; not changed.
        watched: Values of it.
        plain: Values that must keep the order of their axes.

    Example:
        >>> graph = onnx.parser.parse_graph(
        ...     "g (float[1,2,2,3] x) => (float[1,2,2,3] y)"
        ...     "{ a = Transpose <perm = [0, 3, 1, 2]> (x) b = Relu(a) y = Transpose <perm = [0, 2, 3, 1]> (b) }"
        ... )
        >>> smaller, [view] = without_transposes(onnx.helper.make_model(graph), ["b"])
        >>> [node.op_type for node in smaller.graph.node], view
        (['Relu', 'Identity'], View(value='b', order=(0, 3, 1, 2)))
    """
    walk = _Walk(model, frozenset(plain))
    for node in model.graph.node:
        walk.take(node)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:], result.graph.value_info[:]
    result.graph.node.extend(walk.nodes)
    result.graph.initializer.extend(walk.constants)
    # What was said of the shape of a value that is turned now would be wrong.
    turned = {view.value for view in walk.views.values()}
    result.graph.value_info.extend(value for value in model.graph.value_info if value.name not in turned)
    return result, [walk.views.get(name, View(name)) for name in watched]


class _Walk:
    """The state of one walk through a graph."""

    def __init__(self, model: onnx.ModelProto, plain: frozenset[str]) -> None:
        self.plain = plain
        self.initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self.ranks = {
            value.name: len(value.type.tensor_type.shape.dim)
            for value in (*model.graph.input, *model.graph.value_info, *model.graph.output)
            if value.type.tensor_type.HasField("shape")
        }
        self.ranks.update({name: len(tensor.dims) for name, tensor in self.initializers.items()})
        # Graphs inside a node read values by name, and so do those who run the model.
        self.kept = {name for node in model.graph.node if any(subgraphs(node)) for name in names_used(node)}
        self.kept.update(output.name for output in model.graph.output)
        self.views: dict[str, View] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.made: dict[tuple[str, Order], str] = {}
        self.opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
        self.taken = {name for node in model.graph.node for name in (*node.input, *node.output)}

    def take(self, node: onnx.NodeProto) -> None:
        """Write a node, or remember what it stands for."""
        views = [self.views.get(name, View(name)) for name in node.input]
        if node.op_type in _OF_WEIGHTS and all(view.value in self.initializers for view in views):
            self._compute(node)
        elif self.plain.intersection(node.output) and node.op_type != "Identity":
            self.write(node, [self.settled(name) for name in node.input])
        elif node.op_type in ("Identity", "Transpose") and self._knows_order_of(node):
            order = _order_of(node, self.ranks.get(node.input[0], 0))
            self.views[node.output[0]] = _through(views[0], order)
        elif not (any(view.order for view in views) and self._push(node, views)):
            self.write(node, [self.settled(name) for name in node.input])
        for name in node.output:
            view = self.views.get(name)
            if name in self.kept and view is not None:
                kind = "Transpose" if view.order else "Identity"
                written = onnx.helper.make_node(kind, [view.value], [name], name=name)
                if view.order:
                    written.attribute.append(onnx.helper.make_attribute("perm", view.order))
                self.nodes.append(written)

    def _knows_order_of(self, node: onnx.NodeProto) -> bool:
        return node.op_type == "Identity" or bool(node.attribute) or node.input[0] in self.ranks

    def _compute(self, node: onnx.NodeProto) -> None:
        """Make a constant of what a node makes of constants."""
        inputs = [self.initializers[self.settled(name)] for name in node.input]
        opset = [onnx.helper.make_opsetid("", self.opset)]
        values = [
            onnx.helper.make_tensor_value_info(name, tensor.data_type, tensor.dims)
            for name, tensor in zip(node.input, inputs, strict=True)
        ]
        graph = onnx.helper.make_graph([node], "constant", values, [onnx.ValueInfoProto(name=node.output[0])])
        run = onnx.reference.ReferenceEvaluator(onnx.helper.make_model(graph, opset_imports=opset))
        feeds = {name: onnx.numpy_helper.to_array(tensor) for name, tensor in zip(node.input, inputs, strict=True)}
        results: Any = run.run(None, feeds)
        self.taken.discard(node.output[0])
        self.constant(results[0], node.output[0])

    def _push(self, node: onnx.NodeProto, views: list[View]) -> bool:
        rule = _rule(node)
        return rule is not None and rule(self, node, views)

    def settled(self, name: str) -> str:
        """Return a value of the new graph that is the same as one of the original."""
        view = self.views.get(name, View(name))
        return view.value if view.order is None else self._turned(view.value, view.order)

    def in_order(self, name: str, order: Order) -> str:
        """Return a value of the new graph of which a value of the original is the view of that order."""
        view = self.views.get(name, View(name))
        inverse = _inverse(order)
        return self._turned(view.value, inverse if view.order is None else tuple(view.order[axis] for axis in inverse))

    def constant(self, array: NDArray[Any], name: str) -> str:
        """Add a constant to the new graph; return its name."""
        name = self._fresh(name)
        tensor = onnx.numpy_helper.from_array(np.asarray(array, order="C"), name)
        self.constants.append(tensor)
        self.initializers[name] = tensor
        self.ranks[name] = array.ndim
        return name

    def numbers(self, name: str) -> list[int] | None:
        """Return the integers of a constant, or None."""
        tensor = self.initializers.get(name)
        return None if tensor is None else [int(x) for x in onnx.numpy_helper.to_array(tensor).ravel()]

    def push(self, node: onnx.NodeProto, inputs: Sequence[str], order: Order) -> bool:
        """Write a node that reads other inputs; its outputs are views, in that order, of what it gives then."""
        copy = self.write(node, inputs)
        if order == tuple(range(len(order))):
            return True
        for position, result in enumerate(node.output):
            if result in self.kept:
                copy.output[position] = self._fresh(f"{result}/turned")
            if result:
                self.views[result] = View(copy.output[position], order)
        return True

    def write(self, node: onnx.NodeProto, inputs: Sequence[str]) -> onnx.NodeProto:
        """Write a copy of a node that reads other inputs."""
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = inputs
        self.nodes.append(copy)
        return copy

    def _turned(self, value: str, order: Order) -> str:
        """Return the Transpose of a value of the new graph."""
        if order == tuple(range(len(order))):
            return value
        if (value, order) not in self.made:
            tensor = self.initializers.get(value)
            if tensor is not None:
                made = self.constant(onnx.numpy_helper.to_array(tensor).transpose(order), f"{value}/turned")
            else:
                made = self._fresh(f"{value}/turned")
                self.nodes.append(onnx.helper.make_node("Transpose", [value], [made], name=made, perm=order))
            self.made[value, order] = made
        return self.made[value, order]

    def _fresh(self, name: str) -> str:
        number = 0
        unique = name
        while unique in self.taken:
            number += 1
            unique = f"{name}_{number}"
        self.taken.add(unique)
        return unique


Rule = Callable[[_Walk, onnx.NodeProto, list[View]], bool]


def _order_of(node: onnx.NodeProto, rank: int) -> Order | None:
    """Return the order of a Transpose, None of an Identity."""
    if node.op_type == "Identity":
        return None
    perm = next((tuple(attribute.ints) for attribute in node.attribute if attribute.name == "perm"), ())
    return perm or tuple(reversed(range(rank)))


def _through(view: View, order: Order | None) -> View:
    """Return a view turned once more."""
    if order is None:
        return view
    whole = order if view.order is None else tuple(view.order[axis] for axis in order)
    return View(view.value, None if whole == tuple(range(len(whole))) else whole)


def _inverse(order: Order) -> Order:
    return tuple(int(axis) for axis in np.argsort(order))


def _rule(node: onnx.NodeProto) -> Rule | None:
    """Return how an operator is computed on the source of its input instead; None if it can't be."""
    if node.domain not in ("", "ai.onnx"):
        return None
    for operators, rule in _RULES:
        if node.op_type in operators:
            return rule
    return None


def _cell_by_cell(walk: _Walk, node: onnx.NodeProto, views: list[View]) -> bool:
    first, *others = views
    if first.order is None or any(view.order is not None for view in others):
        return False
    return walk.push(node, [first.value, *(view.value for view in others)], first.order)


def _broadcasting(walk: _Walk, node: onnx.NodeProto, views: list[View]) -> bool:
    order = next(view.order for view in views if view.order is not None)
    inputs = []
    for name, view in zip(node.input, views, strict=True):
        rank = len(view.order) if view.order is not None else walk.ranks.get(view.value)
        if rank == 0:
            inputs.append(view.value)
        elif rank == len(order):
            inputs.append(walk.in_order(name, order))
        elif view.value in walk.initializers and rank is not None and rank < len(order):
            array = onnx.numpy_helper.to_array(walk.initializers[view.value])
            array = array.reshape((1,) * (len(order) - rank) + array.shape).transpose(_inverse(order))
            key = (view.value, order)
            if key not in walk.made:
                walk.made[key] = walk.constant(array, f"{view.value}/turned")
            inputs.append(walk.made[key])
        else:
            return False
    return walk.push(node, inputs, order)


def _concat(walk: _Walk, node: onnx.NodeProto, views: list[View]) -> bool:
    order = next(view.order for view in views if view.order)
    ranks = {len(view.order) if view.order else walk.ranks.get(view.value) for view in views}
    if ranks != {len(order)}:
        return False
    turned = _with_axis(node, order)
    return walk.push(turned, [walk.in_order(name, order) for name in node.input], order)


def _along_axis(walk: _Walk, node: onnx.NodeProto, views: list[View]) -> bool:
    order = views[0].order
    if order is None or any(view.order for view in views[1:]) or not _axis_attribute(node):
        return False
    return walk.push(_with_axis(node, order), [view.value for view in views], order)


def _axis_attribute(node: onnx.NodeProto) -> onnx.AttributeProto | None:
    return next((attribute for attribute in node.attribute if attribute.name == "axis"), None)


def _with_axis(node: onnx.NodeProto, order: Order) -> onnx.NodeProto:
    """Return a copy of a node whose attribute `axis` is that of the view's source."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    attribute = _axis_attribute(copy)
    if attribute is not None:
        attribute.i = order[attribute.i % len(order)]
    return copy


def _reduce(walk: _Walk, node: onnx.NodeProto, views: list[View]) -> bool:
    order = views[0].order
    given = _axes_of(walk, node, 1)
    if order is None or given is None:
        return False
    axes = {order[axis % len(order)] for axis in given}
    keep = node.op_type != "Squeeze" and next((x.i for x in node.attribute if x.name == "keepdims"), 1)
    copy, inputs = _with_axes(walk, node, [views[0].value], sorted(axes), 1)
    return walk.push(copy, inputs, order if keep else _rest(order, axes))


def _unsqueeze(walk: _Walk, node: onnx.NodeProto, views: list[View]) -> bool:
    order = views[0].order
    given = _axes_of(walk, node, 1)
    if order is None or given is None:
        return False
    rank = len(order) + len(given)
    new = {axis % rank for axis in given}
    places = [axis for axis in range(rank) if axis not in new]  # of the source's axes, and of the view's
    old = iter(order)
    return walk.push(
        node,
        [views[0].value, *node.input[1:]],
        tuple(axis if axis in new else places[next(old)] for axis in range(rank)),
    )


def _rest(order: Order, gone: set[int]) -> Order:
    """Return the order of a view after axes of its source are gone."""
    places = [axis for axis in range(len(order)) if axis not in gone]
    return tuple(places.index(axis) for axis in order if axis not in gone)


def _axes_of(walk: _Walk, node: onnx.NodeProto, position: int) -> list[int] | None:
    """Return the axes that a node is given as an attribute or as a constant input."""
    for attribute in node.attribute:
        if attribute.name == "axes":
            return list(attribute.ints)
    return walk.numbers(node.input[position]) if len(node.input) > position else None


def _with_axes(
    walk: _Walk, node: onnx.NodeProto, inputs: list[str], axes: Sequence[int], position: int
) -> tuple[onnx.NodeProto, list[str]]:
    """Return a copy of a node with other axes, and its inputs."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    for attribute in copy.attribute:
        if attribute.name == "axes":
            attribute.ints[:] = axes
            return copy, inputs
    inputs += [""] * (position - len(inputs))
    return copy, [*inputs, walk.constant(np.array(axes, np.int64), f"{node.output[0]}/axes")]


def _pad(walk: _Walk, node: onnx.NodeProto, views: list[View]) -> bool:
    order = views[0].order
    pads = walk.numbers(node.input[1])
    if order is None or pads is None or len(node.input) > 3 or len(pads) != 2 * len(order):
        return False
    turned = np.array(pads, np.int64).reshape(2, -1)[:, _inverse(order)]
    name = walk.constant(turned.ravel(), f"{node.output[0]}/pads")
    return walk.push(node, [views[0].value, name, *node.input[2:]], order)


def _slice(walk: _Walk, node: onnx.NodeProto, views: list[View]) -> bool:
    order = views[0].order
    if order is None or any(view.order for view in views[1:]):
        return False
    axes = walk.numbers(node.input[3]) if len(node.input) > 3 and node.input[3] else None
    if axes is None:
        starts = walk.numbers(node.input[1])
        if starts is None or (len(node.input) > 3 and node.input[3]):
            return False
        axes = list(range(len(starts)))
    name = walk.constant(np.array([order[axis % len(order)] for axis in axes], np.int64), f"{node.output[0]}/axes")
    return walk.push(node, [views[0].value, *node.input[1:3], name, *node.input[4:]], order)


def _resize(walk: _Walk, node: onnx.NodeProto, views: list[View]) -> bool:
    order = views[0].order
    if order is None or any(attribute.name == "axes" for attribute in node.attribute):
        return False
    inputs = [views[0].value]
    for name in node.input[1:]:
        tensor = walk.initializers.get(name)
        if name and tensor is None:
            return False
        array = onnx.numpy_helper.to_array(tensor) if tensor is not None else np.zeros(0)
        if array.size:
            array = array.reshape(-1, len(order))[:, _inverse(order)].ravel()
            name = walk.constant(array, f"{node.output[0]}/{'scales' if array.dtype.kind == 'f' else 'sizes'}")
        inputs.append(name)
    return walk.push(node, inputs, order)


def _shape(walk: _Walk, node: onnx.NodeProto, views: list[View]) -> bool:
    """Turn the few numbers of a shape instead of the tensor."""
    order = views[0].order
    if order is None or node.attribute:
        return False
    name = f"{node.output[0]}/turned"
    copy = walk.write(node, [views[0].value])
    copy.output[0] = name
    places = walk.constant(np.array(order, np.int64), f"{node.output[0]}/order")
    walk.nodes.append(onnx.helper.make_node("Gather", [name, places], [node.output[0]], name=node.output[0]))
    return True


def _quantize(walk: _Walk, node: onnx.NodeProto, views: list[View]) -> bool:
    if walk.ranks.get(node.input[1]) == 0:
        return _cell_by_cell(walk, node, views)
    return _along_axis(walk, node, views)


_RULES: tuple[tuple[frozenset[str], Rule], ...] = (
    (_CELL_BY_CELL, _cell_by_cell),
    (_BROADCASTING, _broadcasting),
    (_REDUCING, _reduce),
    (_ALONG_AXIS, _along_axis),
    (frozenset({"Concat"}), _concat),
    (frozenset({"Pad"}), _pad),
    (frozenset({"Slice"}), _slice),
    (frozenset({"Resize"}), _resize),
    (frozenset({"Unsqueeze"}), _unsqueeze),
    (frozenset({"Shape"}), _shape),
    (frozenset({"QuantizeLinear", "DequantizeLinear"}), _quantize),
)
