"""Bring the layers that hide into view: calls of local functions become their nodes, branches of If are looked into.

Where functions hold conv or pool layers, calls are replaced by the functions' nodes, as ONNX Runtime does too when it
loads a model; where none does, functions stay functions. onnx's own inliner is not used: it forgets the default
values of a function's attributes (onnx 1.23), and on functions that call each other in turn it may never end.

The branches of an If stay where they are, as only the run decides which of them is taken. They are read through copies
of their nodes, whose values bear the branch's name in front (`If_0/then_branch/value`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import onnx

from onnxfeat.errors import ModelError

Branch = tuple[str, str]
"""A graph inside an If: the If's first output, and `then_branch` or `else_branch`."""

# A model of more nodes than this is no network that somebody trained; the largest known have some ten thousand.
_MOST_NODES = 500_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    """Where a value inside the branches of If nodes is.

    Attributes:
        path: The branches that lead to it, outermost first.
        name: Its name there.
    """

    path: tuple[Branch, ...]
    name: str


@dataclass(slots=True)
class View:
    """All nodes that can be looked at, as if the branches of If were part of the main graph.

    Attributes:
        nodes: Nodes in order of execution; those of a branch come before their If, which reads what they give.
        initializers: Constants of the branches, by their name in the view.
        inner: Value name in the view to the place of a value inside a branch.
        hidden: Sentences about layers that can't be seen, and why.
    """

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: dict[str, onnx.TensorProto] = field(default_factory=dict)
    inner: dict[str, Inner] = field(default_factory=dict)
    hidden: list[str] = field(default_factory=list)


def is_layer(node: onnx.NodeProto) -> bool:
    """Return whether a node is a conv or pool of any domain, by its operator's name."""
    return "Conv" in node.op_type or "Pool" in node.op_type


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the graphs inside a node: the branches of If, the bodies of Loop and Scan."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == onnx.AttributeProto.GRAPHS:
            yield from attribute.graphs


def names_used(node: onnx.NodeProto) -> Iterator[str]:
    """Yield the values that a node reads: its inputs, and all that the graphs inside it mention.

    A graph inside a node may capture values of the graph around it. Names that are local to the inner graph are
    yielded too; they do no harm, as ONNX forbids an inner value to bear the name of an outer one.
    """
    yield from (name for name in node.input if name)
    for graph in subgraphs(node):
        yield from (output.name for output in graph.output)
        for inner in graph.node:
            yield from names_used(inner)


def numbered(name: str, taken: dict[str, int]) -> str:
    """Return a name, or `name#2`, `name#3` where it is taken, and note what is returned.

    Args:
        name: The name.
        taken: Each name that is taken, to the largest number that it was given.

    Example:
        >>> taken = {"conv": 1}
        >>> numbered("conv", taken), numbered("conv", taken)
        ('conv#2', 'conv#3')
    """
    unique = name
    while unique in taken:  # begins behind the last number, or very many nodes of one name would take hours
        taken[name] += 1
        unique = f"{name}#{taken[name]}"
    taken[unique] = 1
    return unique


def ordered(nodes: Iterable[onnx.NodeProto], origin: str) -> list[onnx.NodeProto]:
    """Return the nodes of one graph in an order of execution: their own if it is one.

    Raises:
        ModelError: Nodes wait for each other in a circle, or two give a value of the same name.
    """
    nodes = list(nodes)
    maker: dict[str, int] = {}
    for index, node in enumerate(nodes):
        for name in node.output:
            if name and maker.setdefault(name, index) != index:
                raise ModelError(f"two nodes of {origin} give the value {name!r}, so it has no one meaning: {_AGAIN}")
    waits = [{maker[name] for name in names_used(node) if name in maker} for node in nodes]
    if all(max(before, default=-1) < index for index, before in enumerate(waits)):
        return nodes
    done: list[onnx.NodeProto] = []
    users: dict[int, list[int]] = {}
    for index, before in enumerate(waits):
        for other in before:
            users.setdefault(other, []).append(index)
    left = [len(before) for before in waits]
    ready = [index for index in range(len(nodes) - 1, -1, -1) if not left[index]]
    while ready:
        index = ready.pop()
        done.append(nodes[index])
        for user in reversed(users.get(index, [])):
            left[user] -= 1
            if not left[user]:
                ready.append(user)
    if len(done) < len(nodes):
        stuck = next(node for node, count in zip(nodes, left, strict=True) if count)
        name = stuck.name or next(iter(stuck.output), stuck.op_type)
        raise ModelError(f"the nodes of {origin} wait for each other in a circle, at {name!r}: {_AGAIN}")
    return done


def inline_functions(model: onnx.ModelProto, origin: str) -> onnx.ModelProto:
    """Return the model with the calls of functions replaced by their nodes, if some of them hold layers.

    With those the others go too: their activation may be a function of its own. A function in another version of the
    operators stays one, and so do all where none holds a layer; then the model itself is returned. It is never changed.

    Raises:
        ModelError: Functions call themselves, or make more nodes than any network has.
    """
    functions = {(f.domain, f.name, f.overload): f for f in model.functions}
    with_layers, sizes = _with_layers(functions, origin)
    calls = [_key(node) for node in _all_nodes(model.graph.node) if _key(node) in functions]
    if not with_layers.intersection(calls):
        return model
    if sum(sizes[key] for key in calls) > _MOST_NODES:
        raise ModelError(
            f"the functions of {origin} stand for more than {_MOST_NODES:,} nodes: no network is as large; {_AGAIN}"
        )
    opsets = {x.domain: x.version for x in model.opset_import}
    inlined: set[_Key] = set()
    for key in sorted(functions, key=lambda key: (key not in with_layers, key)):
        other = [x for x in functions[key].opset_import if opsets.get(x.domain, x.version) != x.version]
        if not other:
            opsets.update((x.domain, x.version) for x in functions[key].opset_import)
            inlined.add(key)
        elif key in with_layers:
            raise ModelError(
                f"the function {key[1]!r} in {origin} is written in version {other[0].version} of the operators of "
                f"{other[0].domain or 'ai.onnx'!r}, the model in {opsets[other[0].domain]}: export it in one version"
            )
    flat = onnx.ModelProto()
    flat.CopyFrom(model)
    taken = _names_in(model.graph, model.graph.node)
    call = _Inliner({key: functions[key] for key in inlined}, taken)
    call.replace_calls(flat.graph)
    used = _reachable(flat.graph.node, functions)
    del flat.functions[:]
    flat.functions.extend(functions[key] for key in functions if key in used)
    present = {x.domain for x in flat.opset_import}
    flat.opset_import.extend(
        onnx.OperatorSetIdProto(domain=d, version=v) for d, v in opsets.items() if d not in present
    )
    return flat


def view_of(graph: onnx.GraphProto, nodes: list[onnx.NodeProto], origin: str) -> View:
    """Return all nodes of a graph and of the branches of its If nodes.

    Args:
        graph: The main graph.
        nodes: Its nodes in order of execution.
        origin: Name of the file, for messages.
    """
    view = View()
    taken = _names_in(graph, nodes)
    _look_into(view, nodes, {}, (), "", taken, origin)
    return view


_AGAIN = "the file is damaged or was made by a faulty tool; export the model again"

_Key = tuple[str, str, str]


def _key(node: onnx.NodeProto) -> _Key:
    return node.domain, node.op_type, node.overload


def _names_in(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> dict[str, int]:
    """Return the values of a graph as `numbered` wants them."""
    taken = dict.fromkeys((name for node in nodes for name in node.output), 1)
    taken.update((x.name, 1) for x in (*graph.input, *graph.initializer))
    return taken


def _all_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for inner in subgraphs(node):
            yield from _all_nodes(inner.node)


def _reachable(nodes: Iterable[onnx.NodeProto], functions: Mapping[_Key, onnx.FunctionProto]) -> set[_Key]:
    found: set[_Key] = set()
    todo = [_key(node) for node in _all_nodes(nodes)]
    while todo:
        key = todo.pop()
        if key in functions and key not in found:
            found.add(key)
            todo += [_key(node) for node in _all_nodes(functions[key].node)]
    return found


def _with_layers(functions: Mapping[_Key, onnx.FunctionProto], origin: str) -> tuple[set[_Key], dict[_Key, int]]:
    """Return the functions that hold layers, directly or through others, and of how many nodes each function is.

    Those that never end are refused.
    """
    sizes: dict[_Key, int] = {}
    holds: set[_Key] = set()
    on_the_way: set[_Key] = set()
    for start in functions:
        todo = [start]
        while todo:  # depth first, without Python's own stack: functions may be nested deeper than that is
            key = todo[-1]
            if key in sizes:
                todo.pop()
                continue
            nodes = list(_all_nodes(functions[key].node))
            calls = [_key(node) for node in nodes if _key(node) in functions]
            missing = [other for other in calls if other not in sizes]
            if missing:
                on_the_way.add(key)
                if any(other in on_the_way for other in missing):
                    raise ModelError(f"the function {key[1]!r} in {origin} calls itself, so it never ends: {_AGAIN}")
                todo += missing
                continue
            sizes[key] = len(nodes) + sum(sizes[other] for other in calls)
            if sizes[key] > _MOST_NODES:
                raise ModelError(
                    f"the function {key[1]!r} in {origin} stands for more than {_MOST_NODES:,} nodes: no network is as "
                    f"large; {_AGAIN}"
                )
            if any(map(is_layer, nodes)) or holds.intersection(calls):
                holds.add(key)
            on_the_way.discard(key)
            todo.pop()
    return holds, sizes


class _Inliner:
    """Replaces calls of functions by their nodes, with names that nothing else bears."""

    def __init__(self, functions: Mapping[_Key, onnx.FunctionProto], taken: dict[str, int]) -> None:
        self._functions = functions
        self._taken = taken
        self._counts: dict[str, int] = {}

    def replace_calls(self, graph: onnx.GraphProto) -> None:
        """Replace the calls in a graph and in the graphs inside its nodes."""
        nodes: list[onnx.NodeProto] = []
        for node in graph.node:
            nodes += self._expanded(node)
        del graph.node[:]
        graph.node.extend(nodes)
        for node in graph.node:
            for inner in subgraphs(node):
                self.replace_calls(inner)

    def _expanded(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        function = self._functions.get(_key(node))
        if function is None:
            return [node]
        prefix = node.name or f"{node.op_type}_{self._count(node.op_type)}"
        values = dict(zip(function.input, node.input, strict=False))
        # An input or output that the call leaves out is the empty name.
        values.update((name, "") for name in list(function.input)[len(node.input) :])
        values.update((formal, actual) for formal, actual in zip(function.output, node.output, strict=False) if actual)
        given = {x.name: x for x in (*function.attribute_proto, *node.attribute)}
        expanded: list[onnx.NodeProto] = []
        for inner in function.node:
            for name in inner.output:
                if name and name not in values:
                    values[name] = numbered(f"{prefix}/{name}", self._taken)
            copy = onnx.NodeProto()
            copy.CopyFrom(inner)
            copy.name = f"{prefix}/{inner.name or inner.op_type}"
            _rename(copy, values)
            _fill_attributes(copy, given)
            expanded += self._expanded(copy)
        return expanded

    def _count(self, op_type: str) -> int:
        self._counts[op_type] = self._counts.get(op_type, -1) + 1
        return self._counts[op_type]


def _rename(node: onnx.NodeProto, values: Mapping[str, str]) -> None:
    """Give a node's inputs and outputs, and what the graphs inside it capture, other names."""
    for names in (node.input, node.output):
        names[:] = [values.get(name, name) for name in names]
    for graph in subgraphs(node):
        local = {name for inner in graph.node for name in inner.output}
        local.update(x.name for x in (*graph.input, *graph.initializer))
        captured = {old: new for old, new in values.items() if old not in local}
        for inner in graph.node:
            _rename(inner, captured)
        for output in graph.output:
            output.name = captured.get(output.name, output.name)


def _fill_attributes(node: onnx.NodeProto, given: Mapping[str, onnx.AttributeProto]) -> None:
    """Put a call's attributes where the function's nodes refer to them; one that nobody gave is left out."""
    attributes = []
    for attribute in node.attribute:
        if attribute.ref_attr_name:
            if attribute.ref_attr_name not in given:
                continue
            filled = onnx.AttributeProto()
            filled.CopyFrom(given[attribute.ref_attr_name])
            filled.name = attribute.name
            attributes.append(filled)
        else:
            attributes.append(attribute)
    del node.attribute[:]
    node.attribute.extend(attributes)
    for graph in subgraphs(node):
        for inner in graph.node:
            _fill_attributes(inner, given)


def _look_into(
    view: View,
    nodes: Iterable[onnx.NodeProto],
    names: Mapping[str, str],
    path: tuple[Branch, ...],
    prefix: str,
    taken: dict[str, int],
    origin: str,
) -> None:
    """Append nodes to the view, with their names there; those of If branches first."""
    number = -1
    for node in nodes:
        shown = node
        if path:
            shown = onnx.NodeProto(name=f"{prefix}{node.name or node.op_type}", op_type=node.op_type)
            shown.domain, shown.overload = node.domain, node.overload
            shown.metadata_props.extend(node.metadata_props)
            shown.attribute.extend(x for x in node.attribute if not (x.HasField("g") or x.graphs))
            shown.input.extend(names.get(name, name) for name in node.input)
            shown.output.extend(names.get(name, name) for name in node.output)
        if node.op_type == "If" and node.domain in ("", "ai.onnx") and node.output:
            number += 1
            results = []
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH:
                    branch = (*path, (node.output[0], attribute.name))
                    inside = f"{prefix}{node.name or f'If_{number}'}/{attribute.name}/"
                    results += _look_into_branch(view, attribute.g, branch, names, inside, taken, origin)
            shown = onnx.NodeProto(name=shown.name, op_type="If", output=shown.output, input=[*shown.input, *results])
        elif any(map(is_layer, (x for inner in subgraphs(node) for x in _all_nodes(inner.node)))):
            count = sum(is_layer(x) for inner in subgraphs(node) for x in _all_nodes(inner.node))
            view.hidden.append(
                f"{count} conv and pool layers in the body of {node.op_type} {prefix + node.name!r}: it runs again and "
                f"again, each time with other maps, so there is no one map to show"
            )
        view.nodes.append(shown)


def _look_into_branch(
    view: View,
    graph: onnx.GraphProto,
    path: tuple[Branch, ...],
    outer: Mapping[str, str],
    prefix: str,
    taken: dict[str, int],
    origin: str,
) -> list[str]:
    """Add one branch to the view; return the names there of what it gives."""
    names = dict(outer)
    local = [name for node in graph.node for name in node.output if name]
    local += [tensor.name for tensor in graph.initializer]
    for name in local:
        unique = numbered(f"{prefix}{name}", taken)
        names[name] = unique
        view.inner[unique] = Inner(path=path, name=name)
    view.initializers.update((names[tensor.name], tensor) for tensor in graph.initializer)
    _look_into(view, ordered(graph.node, origin), names, path, prefix, taken, origin)
    return [names.get(output.name, output.name) for output in graph.output]
