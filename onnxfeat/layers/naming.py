"""Give nodes the names that their layers have in the framework, as far as its exporter left a trace of them.

PyTorch's dynamo exporter leaves the module path in the metadata of each node; its older exporter in the node's name, in
a shape of its own (`/layer1/layer1.0/conv1/Conv`); both leave it in the names of weights (`layer1.0.conv1.weight`),
which alone tell it where a BatchNormalization was folded in. Paddle and TensorFlow leave it in names of weights and
values. All else gets the node's own name.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import onnx

from onnxfeat.graph.reading import Graph, operator

_PATHS = "pkg.torch.onnx.name_scopes"
_CLASSES = "pkg.torch.onnx.class_hierarchy"

# Operators that have weights, and where among their inputs.
_WEIGHT = {
    "Conv": 1,
    "ConvTranspose": 1,
    "ConvInteger": 1,
    "DeformConv": 1,
    "FusedConv": 1,
    "NhwcConv": 1,
    "NhwcFusedConv": 1,
    "QLinearConv": 3,
    "BatchNormalization": 1,
    "Gemm": 1,
    "PRelu": 1,
}
# What may stand between a weight and the node that uses it.
_CARRIERS = frozenset("Identity Cast Transpose Reshape Unsqueeze QuantizeLinear DequantizeLinear".split())
_OF_TORCH = re.compile(r"(.+)\.weight(?:_quantized)?")
_OF_PADDLE = re.compile(r"(.+)\.(?:w|tmp)_\d+")
_CONV_OF_TENSORFLOW = (
    r"(?:Conv[123]D\w*|DepthwiseConv2dNative\w*|convolution\w*|depthwise(?:_\d+)?|separable_conv2d(?:_\d+)?"
    r"|conv[123]d_transpose(?:_\d+)?)"
)
_OF_TENSORFLOW = re.compile(rf"([^;]+)/{_CONV_OF_TENSORFLOW}(?:/[^;]*)?")
_OPERATOR_OF_TENSORFLOW = re.compile(rf"{_CONV_OF_TENSORFLOW}|BiasAdd|(?:Max|Avg)Pool\w*|Mean|Max")
_CALLED_AGAIN = re.compile(r"(.+)_\d+")
# What tools append to a node's name, and put before an operator's, when they replace the node.
_APPENDED = re.compile(r"(?:_(?:quant|nchwc|nhwc|token|\d+))*$")
_PREPENDED = re.compile(r"QLinear|Nhwc|Fused|Integer$")
_LONGEST = 120
# No framework's module path is longer; looking into the parts of endless names would take long.
_LONGEST_PATH = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What an exporter says about the name of a node.

    Attributes:
        name: The name, not yet safe or unique; empty where there is none.
        source: Path of the module in the framework; None where unknown.
    """

    name: str = ""
    source: str | None = None


@dataclass(slots=True, kw_only=True)
class _Scope:
    """The module call that a node belongs to: its path, a mark of the one call, and the function in it."""

    path: str
    call: str
    function: str


def given_names(graph: Graph, nodes: Sequence[onnx.NodeProto], main: Sequence[bool]) -> list[Given]:
    """Return what the exporter says about the name of each node.

    Args:
        graph: The model.
        nodes: Nodes of it, in order of execution.
        main: For each node whether it is a conv or pool: it bears the name of its module, other nodes of the same
            module a longer one.
    """
    weights = [_weight(graph, node) for node in nodes]
    scopes = _scopes(graph, nodes, weights)
    paths = {scope.path for scope in scopes if scope is not None}
    parents = {path[:end] for path in paths for end in _dots(path)} | {""}
    taken = {scope.path for scope, is_main in zip(scopes, main, strict=True) if scope is not None and is_main}
    last = {(scope.path, scope.call): index for index, scope in enumerate(scopes) if scope is not None}
    given = []
    for index, (node, scope, weight) in enumerate(zip(nodes, scopes, weights, strict=True)):
        if scope is None:
            given.append(_without_scope(node, weight, is_main=main[index]))
        elif scope.path in parents:  # a function that the module calls beside its children
            name = f"{scope.path}.{scope.function}".strip(".")
            part = "" if last[scope.path, scope.call] == index or main[index] else f".{node.op_type}"
            given.append(Given(name=name + part, source=scope.path or None))
        else:
            is_result = main[index] or (scope.path not in taken and last[scope.path, scope.call] == index)
            name = scope.path if is_result else f"{scope.path}.{node.op_type}"
            given.append(Given(name=name, source=scope.path))
    return given


def unique_names(given: Sequence[Given], kinds: Sequence[str], first: Sequence[bool]) -> list[str]:
    """Return a name for each node that no other has, and that is safe as a file name.

    Args:
        given: What the exporter says.
        kinds: What each node does, for those that have no name: `conv_0`, `conv_1`.
        first: Which nodes choose before the others, so that a helper of a conv never takes its name.

    Example:
        >>> unique_names([Given(name="a/b"), Given(name="a/b"), Given()], ["conv", "conv", "pool"], [False, True, True])
        ['a.b#2', 'a.b', 'pool_0']
    """
    counts: dict[str, int] = {}
    bases = []
    for one, kind in zip(given, kinds, strict=True):
        bases.append(cleaned(one.name, kind) or f"{kind}_{counts.get(kind, 0)}")
        counts[kind] = counts.get(kind, 0) + 1
    used: dict[str, int] = {}
    names = [""] * len(bases)
    for index in sorted(range(len(bases)), key=lambda index: (not first[index], index)):
        base = bases[index]
        used[base] = used.get(base, 0) + 1
        names[index] = base if used[base] == 1 else f"{base}#{used[base]}"
    return names


def cleaned(name: str, kind: str) -> str:
    """Return a name without what no file name may hold: `/features/0/Conv` becomes `features.0.Conv`.

    A number gets the kind in front, as the selection `12` means a position.
    """
    safe = re.sub(r"[^\w.\-]+", ".", name).strip(".")[:_LONGEST]
    return f"{kind}_{safe}" if re.fullmatch(r"-?\d+", safe) else safe


def _without_scope(node: onnx.NodeProto, weight: str, *, is_main: bool) -> Given:
    """Return what names of weights, values and nodes tell where no module path is noted."""
    owner = _OF_TORCH.fullmatch(weight) or _OF_PADDLE.fullmatch(weight)
    owner = owner or (_OF_PADDLE.fullmatch(node.output[0]) if node.output else None)
    if owner:
        return Given(name=owner[1], source=owner[1])
    scoped = _OF_TENSORFLOW.fullmatch(weight) if is_main else None
    name = scoped[1] if scoped else _fused_part(node.name)
    while name.startswith("StatefulPartitionedCall/"):
        name = name.partition("/")[2]
    head, _, tail = name.rpartition("/")
    is_operator = is_main and not scoped and head and _OPERATOR_OF_TENSORFLOW.fullmatch(tail)
    return Given(name=head if is_operator else name)


def _fused_part(name: str) -> str:
    """Return the conv's part of a name that TensorFlow Lite joined of those of all operators fused into one.

    Such a name mentions convs of other layers that share constants too; the bias is added in the conv's own scope.
    """
    parts = [part for part in name.split(";") if part]
    owners = {part.removesuffix("/BiasAdd") for part in parts if part.endswith("/BiasAdd")}
    own = [part for part in parts if _OF_TENSORFLOW.fullmatch(part) and part.rpartition("/")[0] in owners]
    if own:
        return own[0]
    return next((part for part in parts if _OF_TENSORFLOW.fullmatch(part)), parts[0] if parts else "")


def _weight(graph: Graph, node: onnx.NodeProto) -> str:
    """Return the name of the constant that a node has its weight from, or nothing."""
    position = _WEIGHT.get(operator(node))
    if position is None or len(node.input) <= position:
        return ""
    name = node.input[position]
    for _ in range(6):
        maker = graph.producers.get(name)
        if maker is None or operator(maker) not in _CARRIERS or not maker.input:
            break
        name = maker.input[0]
    return name if graph.is_constant(name) else ""


def _dots(path: str) -> Iterable[int]:
    return (match.start() for match in re.finditer(r"\.", path))


def _scopes(graph: Graph, nodes: Sequence[onnx.NodeProto], weights: Sequence[str]) -> list[_Scope | None]:
    """Return the module call of each node; None where nothing tells it."""
    scopes = [_noted_scope(node) or _scope_in_name(node) for node in nodes]
    owners = [owner and owner[1] for owner in map(_OF_TORCH.fullmatch, weights)]
    _undo_calls(graph, nodes, scopes, weights)
    _complete_paths(scopes, owners)
    for node, scope, owner in zip(nodes, scopes, owners, strict=True):
        # A conv that a BatchNormalization was folded into bears the scope of that one.
        if scope is not None and owner and "Conv" in node.op_type and not _is_noted_conv(node):
            scope.path = owner
    return scopes


def _noted_scope(node: onnx.NodeProto) -> _Scope | None:
    """Return the scope that PyTorch's dynamo exporter leaves in a node's metadata.

    That is a list such as `['', 'layer1', 'layer1.0', 'layer1.0.conv1', 'conv2d_3']`: modules from the root inwards,
    and the function called in the last one.
    """
    noted = [str(scope) for scope in _noted(node, _PATHS)]
    if len(noted) < 2 or noted[0] or len(noted[-2]) > _LONGEST_PATH:
        return None
    return _Scope(path=noted[-2], call=noted[-1], function=noted[-1])


def _is_noted_conv(node: onnx.NodeProto) -> bool:
    classes = _noted(node, _CLASSES)
    return bool(classes) and "conv" in str(classes[-1])


def _noted(node: onnx.NodeProto, key: str) -> list[object]:
    for entry in node.metadata_props:
        if entry.key == key:
            try:
                noted = ast.literal_eval(entry.value)
            except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
                return []  # other exporters may use the key for something else; then the node's name serves
            return noted if isinstance(noted, list) else []
    return []


def _scope_in_name(node: onnx.NodeProto) -> _Scope | None:
    """Return the scope that PyTorch's older exporter makes the node's name of, such as `/layer1/layer1.0/conv1/Conv`.

    The children of a Sequential repeat their parent's name (`layer1.0`), others don't (`conv1`).
    """
    name = node.name.removeprefix("fused ")  # as ONNX Runtime calls a conv with its activation
    if not name.startswith("/") or len(name) > _LONGEST_PATH:
        return None
    *segments, function = name[1:].split("/")
    if _APPENDED.sub("", function) != _PREPENDED.sub("", node.op_type) or not all(segments):
        return None
    parent, path, before = "", "", ""
    for segment in segments:
        head = segment.rpartition(".")[0]
        if not head or head not in (before, _first_call(before)):
            parent = path
        path = f"{parent}.{segment}" if parent else segment
        before = segment
    return _Scope(path=path, call=name.rpartition("/")[0], function=function)


def _first_call(name: str) -> str:
    match = _CALLED_AGAIN.fullmatch(name)
    return match[1] if match else name


def _undo_calls(
    graph: Graph, nodes: Sequence[onnx.NodeProto], scopes: Sequence[_Scope | None], weights: Sequence[str]
) -> None:
    """Give the second call of a module, which the older exporter calls `pool_1`, the path of the first.

    A module may really be called so: then it has weights under that name, or does something else than `pool`.
    """
    modules = {name[:end] for name in graph.initializers if len(name) < _LONGEST_PATH for end in _dots(name)}
    work: dict[tuple[str, str], object] = {}
    for node, scope, weight in zip(nodes, scopes, weights, strict=True):
        if scope is None or not scope.call.startswith("/"):
            continue  # the dynamo exporter names the module itself
        does = (weight, sorted(entry.SerializeToString() for entry in node.attribute))
        first = ".".join(_first_calls(scope.path.split("."), modules))
        if first != scope.path and work.get((first, node.op_type)) == does:
            scope.path = first
        work.setdefault((scope.path, node.op_type), does)


def _first_calls(pieces: list[str], modules: set[str]) -> Iterable[str]:
    path = ""
    for piece in pieces:
        known = f"{path}.{piece}".strip(".") in modules
        piece = piece if known else _first_call(piece)
        path = f"{path}.{piece}".strip(".")
        yield piece


def _complete_paths(scopes: Sequence[_Scope | None], owners: Sequence[str | None]) -> None:
    """Put in the names of ModuleDicts, which only the names of weights tell: they are never called themselves."""
    longer: dict[str, str] = {}
    for scope, owner in zip(scopes, owners, strict=True):
        if scope is None or not owner:
            continue
        short, full = scope.path.split("."), owner.split(".")
        while short and full and short[-1] == full[-1]:
            longer.setdefault(".".join(short), ".".join(full))
            short.pop()
            full.pop()
    for scope, owner in zip(scopes, owners, strict=True):
        if scope is not None and not owner:
            pieces = scope.path.split(".")
            for count in range(len(pieces), 0, -1):
                prefix = ".".join(pieces[:count])
                if prefix in longer:
                    scope.path = ".".join([longer[prefix], *pieces[count:]])
                    break
