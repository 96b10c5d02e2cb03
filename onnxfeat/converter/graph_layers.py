"""Find the layers of a TensorFlow graph by the scopes in its operators' names.

Keras writes each operator of a layer under the layer's path: `model/block_1/conv/Conv2D`, `model/block_1/conv/BiasAdd`.
A layer is all operators of its scope, and its output is what others read of it. Which scopes are layers is known
surely where the file holds Keras's own list of them (Keras 2), and else from the variables that the operators read,
as these bear their layer's path too (`block_1/conv/kernel`). A scope without variables is a layer if it stands beside
layers, unless several scopes in it hold operators that only layers have. A conv, pool, activation or normalization in
no such scope, as in files that know no scopes, is a layer of its own.

Keras 3 opens a layer's scope twice, to build it and to call it, and TensorFlow numbers what was there: the layers
`conv2d` and `conv2d_1` are `conv2d_1` and `conv2d_1_2`. So there a layer's scope bears a number although nothing stands
in the scope without it, which tells layers from the scopes that TensorFlow's functions open (`moments`, `moments_1`).

A layer's class is known from Keras's list; else it is the one whose default name the layer bears (`conv2d_1`, unless
the user called something else so); else it is the operator that does the work, such as `Conv2D`.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from math import gcd
from typing import Any

from onnxfeat.converter.sources import Call
from onnxfeat.converter.tensor_layouts import channels_axis_is_first, constant, layouts_of
from onnxfeat.graph.layouts import CHANNELS_FIRST, CHANNELS_LAST
from onnxfeat.records import Kind

Scope = tuple[str, ...]

_KINDS: dict[Kind, frozenset[str]] = {
    "conv": frozenset("Conv2D Conv3D DepthwiseConv2dNative Conv2DBackpropInput Conv3DBackpropInputV2 Conv".split()),
    "pool": frozenset("MaxPool MaxPoolV2 MaxPool3D MaxPoolWithArgmax AvgPool AvgPool3D FractionalMaxPool".split()),
    "norm": frozenset("FusedBatchNorm FusedBatchNormV2 FusedBatchNormV3 LRN".split()),
    "activation": frozenset("Relu Relu6 Elu Selu LeakyRelu Sigmoid Tanh Softplus Softsign Softmax LogSoftmax".split()),
}
_PRODUCTS = frozenset("MatMul BatchMatMul BatchMatMulV2 Einsum While StatelessWhile If StatelessIf".split())
_CURVES = _KINDS["activation"] | {"Erf", "Erfc"}  # what activations are made of
_REDUCTIONS = frozenset({"Mean", "Max"})  # over all places of a map: a global pool
_CALLS = re.compile(r"(Stateful|Stateless)?PartitionedCall(_\d+)?")
_NUMBER = re.compile(r"_\d+$")
_NUMBERS = re.compile(r"(_\d+)+$")
_READ = re.compile(r"ReadVariableOp(_\d+)?$")
_LOOP = re.compile(r"TimeDistributed|GRU|.*LSTM.*|.*RNN")  # what they call again and again is no layer of its own


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphLayer:
    """One call of a layer and the tensor that it gives.

    Attributes:
        call: The call.
        tensor: Name of its output in the graph, such as `model/conv2d/Relu:0`.
        operators: Names of its operators.
    """

    call: Call
    tensor: str
    operators: tuple[str, ...]


def find_layers(
    graph: Any,
    inputs: Iterable[str],
    *,
    order: Mapping[str, int],
    variables: Mapping[str, str],
    known: Mapping[Scope, str],
    classes: Mapping[str, str],
    numbered: bool,
) -> list[GraphLayer]:
    """Return the layers of a graph, in the order in which the program was written.

    Args:
        graph: A `tf.Graph` without calls of functions.
        inputs: Names of its input operators.
        order: Name of an operator to its place in the program.
        variables: Name of an operator that gives a variable's value to the variable's name, such as `conv2d/kernel`.
        known: Path of each layer to its Keras class, where the file tells; else empty.
        classes: Name that Keras gives a layer by default, without a number, to the layer's class.
        numbered: Whether Keras 3 wrote the scopes: each bears one number more than its layer.
    """
    return _Search(graph, inputs, order, variables, known, classes, numbered).layers()


def scope_of(name: str) -> Scope:
    """Return the scopes that an operator's name stands in, without the calls of functions that inlining leaves.

    Example:
        >>> scope_of("StatefulPartitionedCall/model/conv2d/BiasAdd")
        ('model', 'conv2d')
    """
    parts = name.split("/")
    if parts[0] == "Func":  # what inlining adds
        return ()
    return tuple(part for part in parts[:-1] if not _CALLS.fullmatch(part))


def _path(name: str) -> Scope:
    return (*scope_of(name), name.rpartition("/")[2])


def aligned(scope: Scope, path: Scope) -> tuple[int, int]:
    """Return where in a scope a path begins and how many of its parts are there, as many as possible.

    A part may bear one number more in the scope.

    Example:
        >>> aligned(("functional_1", "block_1", "conv_1", "convolution"), ("block", "conv"))
        (1, 2)
    """
    best = (0, 0)
    for start in range(len(scope)):
        count = 0
        for there, part in zip(scope[start:], path, strict=False):
            if there != part and _NUMBER.sub("", there) != part:
                break
            count += 1
        if count > best[1]:
            best = (start, count)
    return best


class _Search:
    """What is known of a graph while its layers are searched."""

    def __init__(
        self,
        graph: Any,
        inputs: Iterable[str],
        order: Mapping[str, int],
        variables: Mapping[str, str],
        known: Mapping[Scope, str],
        classes: Mapping[str, str],
        numbered: bool,
    ) -> None:
        self.order, self.variables, self.known, self.numbered = order, variables, known, numbered
        self.classes = classes
        self.similar: dict[Scope, list[Scope]] = defaultdict(list)  # known layers by their path without numbers
        for path in known:
            self.similar[_without_numbers(path)].append(path)
        self.answers: dict[Scope, tuple[Scope | None, Scope]] = {}
        self.layouts = layouts_of(graph)
        self.live = _reached(graph, inputs)
        self.kinds = {operator.name: _kind_of_operator(operator) for operator in self.live}
        self.found: set[Scope] = set()  # scopes that are layers, as the variables tell
        self.renamed: dict[Scope, str] = {}  # a scope to the true name of its last part
        self.aligned: dict[Scope, Counter[str]] = defaultdict(Counter)  # variables by the scope that they name
        self.read: list[tuple[Scope, str]] = []  # each reading of a variable, and the scope that it stands in
        self.reads: dict[Scope, Counter[str]] = defaultdict(Counter)  # how often a layer reads each variable
        self.paths = {path[:end] for path in map(_path, self.kinds) for end in range(1, len(path) + 1)}
        self.inside: dict[Scope, set[Scope]] = defaultdict(set)  # the scopes right inside each one
        for scope in {path[:-1] for path in self.paths if len(path) > 1}:
            self.inside[scope[:-1]].add(scope)
        # Where operators that are a layer's main one stand, or that use a variable.
        self.marks = [scope_of(name) for name, kind in self.kinds.items() if kind is not None]
        self._read_variables(graph.get_operations())
        self.containers = {found[:end] for found in self.found for end in range(len(found))} | {()}
        self._open_shared_scopes()
        self._open_model()

    def layers(self) -> list[GraphLayer]:
        """Return all layers, in order."""
        scopes = {scope_of(operator.name) for operator in self.live} | {scope for scope, _ in self.read}
        layer_of = {scope: self._layer_of(scope) for scope in scopes}
        for scope, name in self.read:
            self.reads[layer_of[scope] or ()][name] += 1
        groups: dict[Scope, list[Any]] = defaultdict(list)
        for operator in self.live:
            layer = layer_of[scope_of(operator.name)]
            if layer:
                groups[layer].append(operator)
        composite = {scope[:end] for scope in groups for end in range(len(scope))}
        leaves = {scope: group for scope, group in groups.items() if scope not in composite}
        inside = {operator.name for group in leaves.values() for operator in group}
        alone = [
            (_path(operator.name), operator)
            for operator in self.live
            if operator.name not in inside and self.kinds[operator.name] is not None
        ]
        root = _common_root(leaves or (path for path, _ in alone if self.numbered))
        entries = [
            (self._name(scope, root), scope, members)
            for scope, group in leaves.items()
            for members in self._calls_of(scope, group)
        ]
        entries += [(self._name(path, root), path, [operator]) for path, operator in alone]
        return self._described(entries)

    def _read_variables(self, operators: Iterable[Any]) -> None:
        """Learn from the operators that read variables which scopes are layers, and what they are called."""
        partly: dict[Scope, dict[Scope, str]] = {}
        for operator in operators:
            scope = scope_of(operator.name)
            for name in dict.fromkeys(map(self._variable, operator.inputs)):
                if name is None:
                    continue
                path = scope_of(name)
                start, count = aligned(scope, path)
                layer = scope[: start + count]
                names = {scope[: start + i + 1]: path[i] for i in range(count)}
                if count == len(path) > 0:
                    self.found.add(layer)
                    self.renamed.update(names)
                elif count:
                    partly[layer] = names
                if _READ.search(operator.name):
                    self.aligned[layer][name] += 1
                    self.read.append((scope, name))
                elif operator.type != "Identity":
                    self.marks.append(scope)
        for layer, names in partly.items():  # a cell inside a recurrent layer; or a weight that two layers use
            if not any(found[: len(layer)] == layer for found in self.found):
                self.found.add(layer)
                self.renamed.update(names)

    def _open_shared_scopes(self) -> None:
        """Take scopes for containers that several layers have their variables in: `m/kernel`, `m/kernel_1`.

        Keras 3 calls the variables of a subclassed model so.
        """
        for scope in sorted(self.found):
            totals = Counter(_NUMBER.sub("", name) for name in self.aligned[scope])
            several = self.numbered or max(totals.values(), default=0) > 1
            if several and self._holds_layers(scope):
                self.found.remove(scope)
                self.containers.update(scope[:end] for end in range(len(scope) + 1))

    def _open_model(self) -> None:
        """Take the scope that all operators stand in for the model's, which is no layer, unless it tells otherwise."""
        tops = {scope[0] for operator in self.live if (scope := scope_of(operator.name))}
        if len(tops) != 1 or (model := (*tops,)) in self.found:
            return
        if (self.numbered and not self._default_class(model)) or any(map(self._default_class, self.inside[model])):
            self.containers.add(model)

    def _variable(self, tensor: Any) -> str | None:
        """Return the variable whose value a tensor is."""
        while tensor.op.type == "Identity":
            tensor = tensor.op.inputs[0]
        return self.variables.get(tensor.op.name)

    def _layer_of(self, scope: Scope) -> Scope | None:
        """Return the scope of the layer that an operator's scope belongs to; None in the model's own scope."""
        if self.known:
            return self._known_layer(scope)[0]
        while True:
            outer = max((scope[:end] for end in range(len(scope) + 1) if scope[:end] in self.containers), key=len)
            if len(outer) == len(scope):
                return None
            inner = [scope[:end] for end in range(len(outer) + 1, len(scope) + 1) if scope[:end] in self.found]
            if inner:
                return inner[-1]
            child = scope[: len(outer) + 1]
            if not self._holds_layers(child):
                return child if not self.numbered or self._is_call(child) else None
            self.containers.add(child)

    def _known_layer(self, scope: Scope) -> tuple[Scope | None, Scope]:
        """Return the scope and the path of the layer of Keras's list that a scope belongs to."""
        if scope in self.answers:
            return self.answers[scope]
        best: tuple[int, bool] = (0, False)
        result: tuple[Scope | None, Scope] = (None, ())
        ends = range(1, len(scope) + 1)
        for start, end in itertools.product((0, 1), ends):  # 1 is behind the model's own scope, if it has one
            part = scope[start:end]
            for path in self.similar.get(_without_numbers(part), ()):
                # The scope conv2d_1 is that of the layer conv2d_1 rather than of another call of conv2d.
                rank = (len(path), part == path)
                if rank > best and aligned(part, path) == (0, len(path)):
                    best, result = rank, (scope[:end], path)
        self.answers[scope] = result
        return result

    def _holds_layers(self, scope: Scope) -> bool:
        """Whether scopes right inside this one are layers, or several hold what only layers hold."""
        depth = len(scope)
        if self.numbered:
            loops = _LOOP.fullmatch(self._default_class(scope) or "")
            return not loops and any(map(self._is_call, self.inside[scope]))
        return len({path[depth] for path in self.marks if len(path) > depth and path[:depth] == scope}) > 1

    def _is_call(self, scope: Scope) -> bool:
        """Whether Keras 3 opened a scope to call a layer."""
        built = (*scope[:-1], _NUMBER.sub("", scope[-1]))
        return built != scope and (built not in self.paths or self._is_call(built))

    def _default_class(self, scope: Scope) -> str | None:
        """Return the Keras class whose layers have this name by default."""
        return self.classes.get(_NUMBERS.sub("", scope[-1]))

    def _calls_of(self, scope: Scope, group: list[Any]) -> list[list[Any]]:
        """Return a layer's operators, those of each of its calls apart.

        Keras 2 opens a shared layer's scope again, and TensorFlow numbers the names that are there already: `Conv2D`,
        `BiasAdd`, `Conv2D_1`, `BiasAdd_1`. Each call reads each variable once.
        """
        group = sorted(group, key=self._place)
        by_name: dict[Scope, list[Any]] = defaultdict(list)
        for operator in group:
            parts = operator.name.split("/")[len(scope) :]
            by_name[tuple(_NUMBER.sub("", part) for part in parts)].append(operator)
        if self.numbered:  # Keras 3 opens a scope of its own for each call
            return [group]
        count = reduce(gcd, [len(same) for same in by_name.values()], 0)
        count = reduce(gcd, self.reads[scope].values(), count)
        calls: list[list[Any]] = [[] for _ in range(count)]
        for same in by_name.values():
            size = len(same) // count
            for position, operator in enumerate(same):
                calls[position // size].append(operator)
        return calls

    def _place(self, operator: Any) -> int:
        return self.order.get(operator.name, -1)

    def _name(self, scope: Scope, root: str | None) -> str:
        path = self._known_layer(scope)
        if path[0] is not None:
            return "/".join((*path[1], *scope[len(path[0]) :]))
        parts = [
            self.renamed.get(scope[: end + 1], _NUMBER.sub("", part) if self.numbered else part)
            for end, part in enumerate(scope)
        ]
        return "/".join(parts[1:] if root == scope[0] and len(parts) > 1 else parts)

    def _described(self, entries: Sequence[tuple[str, Scope, list[Any]]]) -> list[GraphLayer]:
        """Return the layers of these operators, in order, with names of their own."""
        given = [(tensor, *entry) for entry in entries if (tensor := self._output(entry[2])) is not None]
        given.sort(key=lambda entry: self._place(entry[0].op))
        totals = Counter(entry[1] for entry in given)
        seen: Counter[str] = Counter()
        firsts = [_channels_first(entry[3]) for entry in given]
        last = next((first for first in firsts if first is not None), False)
        layers = []
        for (tensor, name, scope, members), first in zip(given, firsts, strict=True):
            seen[name] += 1
            last = last if first is None else first
            rank = tensor.shape.rank
            layout = self.layouts.get(tensor.name) or (CHANNELS_FIRST if last else CHANNELS_LAST).get(rank)
            kind, operator = self._kind(scope, members)
            known = self._class_of(scope, name)
            call = Call(
                name=name if totals[name] == 1 else f"{name}#{seen[name]}",
                layer_class=known or operator or tensor.op.type,
                kind=kind,
                layout=layout,
            )
            operators = tuple(operator.name for operator in members)
            layers.append(GraphLayer(call=call, tensor=tensor.name, operators=operators))
        return layers

    def _class_of(self, scope: Scope, name: str) -> str | None:
        """Return the Keras class of a layer; None if nothing tells it."""
        if not self.known:
            return self.classes.get(_NUMBER.sub("", name.rpartition("/")[2]))
        whole, path = self._known_layer(scope)
        return self.known[path] if whole == scope else None

    def _output(self, members: list[Any]) -> Any:
        """Return the last tensor of a layer that others read, floating if there is one; None if there is none."""
        names = {operator.name for operator in members}
        leaving = [
            tensor
            for operator in members
            for tensor in operator.outputs
            if any(user.name not in names for user in tensor.consumers())
            and (tensor.dtype.is_floating or tensor.dtype.is_integer or tensor.dtype.is_bool)
        ]
        return max(leaving, key=lambda tensor: (tensor.dtype.is_floating, self._place(tensor.op)), default=None)

    def _kind(self, scope: Scope, members: list[Any]) -> tuple[Kind, str | None]:
        """Return what a layer does, and the operator that does it, if there is one."""
        of_kind: dict[Kind, str] = {}
        for operator in members:
            kind = self.kinds[operator.name]
            if kind is not None:
                of_kind.setdefault(kind, operator.type)
        variables = {_NUMBER.sub("", name.rpartition("/")[2]) for name in self.reads[scope]}
        if "conv" in of_kind:
            return "conv", of_kind["conv"]
        if "norm" in of_kind or (variables and variables <= {"gamma", "beta", "moving_mean", "moving_variance"}):
            return "norm", of_kind.get("norm")
        if any(operator.type in _PRODUCTS for operator in members) or variables - {"alpha"}:
            return "other", None
        if "pool" in of_kind:
            return "pool", of_kind["pool"]
        curve = next((operator.type for operator in members if operator.type in _CURVES), None)
        return ("activation", curve) if curve else ("other", None)


def _reached(graph: Any, inputs: Iterable[str]) -> list[Any]:
    """Return the operators that depend on an input, without the inputs themselves."""
    todo = [graph.get_operation_by_name(name) for name in inputs]
    sources, seen = {operator.name for operator in todo}, {operator.name: operator for operator in todo}
    while todo:
        for tensor in todo.pop().outputs:
            for user in tensor.consumers():
                if user.name not in seen:
                    seen[user.name] = user
                    todo.append(user)
    return [operator for name, operator in seen.items() if name not in sources]


def _kind_of_operator(operator: Any) -> Kind | None:
    for kind, types in _KINDS.items():
        if operator.type in types:
            return kind
    return "pool" if _is_global_pool(operator) else None


def _is_global_pool(operator: Any) -> bool:
    """Whether an operator reduces a map over all of its places."""
    if operator.type not in _REDUCTIONS:
        return False
    rank, axes = operator.inputs[0].shape.rank, constant(operator.inputs[1])
    if rank not in (3, 4, 5) or axes is None:
        return False
    reduced = sorted(axis % rank for axis in axes)
    return reduced in (list(range(1, rank - 1)), list(range(2, rank)))


def _channels_first(members: list[Any]) -> bool | None:
    """Whether a layer has the channels behind the batch axis; None if it is neither conv nor pool."""
    made_for_maps = [operator for operator in members if operator.type in _KINDS["conv"] | _KINDS["pool"]]
    told = [first for operator in made_for_maps if (first := channels_axis_is_first(operator)) is not None]
    return told[-1] if told else None


def _without_numbers(scope: Scope) -> Scope:
    return tuple(_NUMBERS.sub("", part) for part in scope)


def _common_root(scopes: Iterable[Scope]) -> str | None:
    """Return the model's own scope: that which all layers are in; None if there is none."""
    first = {scope[0] if len(scope) > 1 else None for scope in scopes}
    return first.pop() if len(first) == 1 else None
