"""Find the names of layers in the tensor names of a TFLite file.

TensorFlow's converter names a tensor after all that was fused into its operator, with `;` between. Each part is a name
in TensorFlow: the scopes of model and layers, then the operation, as in `net/block/conv/Relu;net/block/conv/BiasAdd`.
Keras 3 puts a number behind each scope when it exports (`net_1/block_1/conv_1/Relu`), Keras 2 does not. Other tools
give plain names.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# Scopes that operations open inside a layer.
_INSIDE = re.compile(
    r"(batchnorm|separable_conv2d|moments|Tensordot|resize|Repeat|Conv[123]D|BiasAdd|MatMul|conv_transpose|"
    r"conv2d_transpose)(_\d+)?"
)
# Names that tell nothing: what converters write for outputs and constants.
_NAMELESS = re.compile(
    r"(Stateful)?PartitionedCall(_\d+)?(:\d+)?|Identity(_\d+)?(:\d+)?|arith\.constant\d*|tfl\.\w+?\d*|output_\d+|t?\d*"
)
_OUTSIDE = re.compile(r"(Stateful)?PartitionedCall(_\d+)?")  # functions around the model
_NUMBERED = re.compile(r".+_\d+")

# What the operation of a convolution or matrix product is called in TensorFlow and Keras.
_OWN_OPERATIONS = {
    "CONV_2D": r"convolution|Conv[12]D|separable_conv2d|conv[12]d",
    "DEPTHWISE_CONV_2D": r"depthwise|DepthwiseConv2dNative",
    "TRANSPOSE_CONV": r"conv_transpose|conv2d_transpose|Conv2DBackpropInput",
    "CONV_3D": r"convolution|Conv3D",
    "CONV_3D_TRANSPOSE": r"conv_transpose|Conv3DBackpropInputV2",
    "FULLY_CONNECTED": r"MatMul|Tensordot",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """What a file says of one operator.

    Attributes:
        operator: Its name, such as `CONV_2D`.
        tensor: The name of its output.
        constants: The names of its constants.
        source: Position, in the same list, of the operator that gives its input; None if there is none.
    """

    operator: str
    tensor: str
    constants: tuple[str, ...]
    source: int | None


def layer_names(operators: Sequence[Named]) -> list[str]:
    """Return a unique layer name for each operator.

    The last operator of a layer has the layer's name, as its output is the layer's; the others have that of their
    operation behind it. What runs more than once (shared layers) is numbered `#1`, `#2`.

    Example:
        >>> names = ["net/conv/Relu;net/conv/Conv2D", "net/bn/batchnorm/mul_1", "net/bn/batchnorm/add_1"]
        >>> layer_names([Named(operator="MUL", tensor=name, constants=(), source=None) for name in names])
        ['conv', 'bn/mul_1', 'bn']
    """
    parts = _chosen_parts(operators)
    scopes = _layer_scopes([part for part in parts if "/" in part])
    named: list[tuple[str, str]] = []  # scope as the file writes it, operation
    for operator, part in zip(operators, parts, strict=True):
        if part:
            named.append((scopes.get(part, part), part.rpartition("/")[2]))
        elif (
            operator.operator in _FUNCTIONS and operator.source is not None and is_weighted(operators[operator.source])
        ):
            named.append((named[operator.source][0], operator.operator.lower()))
        else:
            named.append(("", operator.operator.lower()))
    clean = _without_model(dict.fromkeys(scope for scope, _ in named if scope), bool(scopes))
    return _unique(
        [
            (clean.get(scope, ""), scope, operation, operator.operator)
            for (scope, operation), operator in zip(named, operators, strict=True)
        ]
    )


_FUNCTIONS = frozenset({"ELU", "GELU", "HARD_SWISH", "LEAKY_RELU", "LOGISTIC", "RELU", "RELU6", "SOFTMAX", "TANH"})


def is_weighted(operator: Named) -> bool:
    """Return whether an operator is that of a layer that may have an activation of its own, such as Conv2D or Dense."""
    return operator.operator in _OWN_OPERATIONS


def _chosen_parts(operators: Sequence[Named]) -> list[str]:
    """Return the part of each operator's names that tells its layer; empty if none does.

    Parts of other layers get in where these share a constant, so that of several the one is taken that the operator's
    weights are named after too.
    """
    chosen = []
    for operator in operators:
        own = _parts(operator.tensor)
        constants = [part for name in operator.constants for part in _parts(name)]
        pattern = _OWN_OPERATIONS.get(operator.operator)
        if pattern is None:
            candidates = own
        else:
            computing = [part for part in (*own, *constants) if _is_operation(part, pattern)]
            both = [part for part in computing if part in own and part in constants]
            others = sorted([*own, *constants], key=lambda part: "/" not in part)
            candidates = [*both, *computing, *others]
        chosen.append(candidates[0] if candidates else "")
    return chosen


def _is_operation(part: str, pattern: str) -> bool:
    return re.search(rf"/({pattern})(_\d+|\d+)?(/\w+)?$", part) is not None


def _parts(name: str) -> list[str]:
    """Return the parts of a tensor's name that tell something."""
    parts = [part.strip() for part in name.split(";")]
    return [part for part in dict.fromkeys(parts) if part and not _NAMELESS.fullmatch(part)]


def _layer_scopes(parts: Sequence[str]) -> dict[str, str]:
    """Return the scope of the layer for each TensorFlow name: without operation and scopes that operations open."""
    split = {part: _outermost_removed(part.split("/"))[:-1] for part in parts}
    layers = {part: scope for part, scope in split.items() if scope}
    model = _model_scope(layers.values())
    # Keras 3 numbers every scope of models and layers, and none of operations.
    of_model = [scope for scope in layers.values() if scope[0] == model]
    is_keras_3 = bool(of_model) and all(_NUMBERED.fullmatch(name) for scope in of_model for name in scope[:2])
    is_keras_3 = is_keras_3 and not any(re.search(r"/(Conv2D|FusedBatchNormV3|MaxPool)(;|$)", part) for part in parts)
    found = {}
    for part, scope in layers.items():
        kept, numbered = scope, is_keras_3 and scope[0] == model
        if numbered:
            length = next((i for i, name in enumerate(scope) if not _NUMBERED.fullmatch(name)), len(scope))
            kept = scope[:length]
        while len(kept) > 2 and _INSIDE.fullmatch(kept[-1]) and (kept[-1][0].isupper() or not numbered):
            kept = kept[:-1]
        found[part] = "/".join(kept) + ("#" if numbered else "")
    return found


def _model_scope(scopes: Iterable[Sequence[str]]) -> str | None:
    """Return the scope that most layers stand in: that of the model. Functions compiled apart stand in none."""
    return next((name for name, _ in Counter(scope[0] for scope in scopes if len(scope) > 1).most_common(1)), None)


def _outermost_removed(names: list[str]) -> list[str]:
    while len(names) > 2 and _OUTSIDE.fullmatch(names[0]):
        names = names[1:]
    return names


def _without_model(scopes: dict[str, None], scoped: bool) -> dict[str, str]:
    """Return each scope's path as a user knows it: without the model's name and Keras 3's numbers."""
    paths = {scope: scope.rstrip("#").split("/") for scope in scopes}
    deep = [path for path in paths.values() if len(path) > 1]
    if scoped and len({path[0] for path in deep}) == 1:
        first = deep[0][0]
        paths = {scope: path[1:] if path[0] == first else path for scope, path in paths.items()}
    return {
        scope: "/".join(re.sub(r"_\d+$", "", name) if scope.endswith("#") else name for name in path)
        for scope, path in paths.items()
    }


def _unique(named: Sequence[tuple[str, str, str, str]]) -> list[str]:
    """Return unique names for (layer, scope, operation, operator)."""
    groups: dict[str, list[int]] = defaultdict(list)
    for position, (layer, _, operation, _) in enumerate(named):
        groups[layer or operation].append(position)
    names = [""] * len(named)
    for layer, members in groups.items():
        calls = _calls(members, named)
        for number, call in enumerate(calls, start=1):
            name = f"{layer}#{number}" if len(calls) > 1 else layer
            for position in call[:-1]:
                names[position] = f"{name}/{named[position][2]}"
            names[call[-1]] = name
    return _numbered(names)


def _calls(members: list[int], named: Sequence[tuple[str, str, str, str]]) -> list[list[int]]:
    """Return the operators of a layer, call by call: each has a scope of its own, or is the same operations again."""
    scopes = list(dict.fromkeys(named[position][1] for position in members))
    if len(scopes) > 1:
        return [[position for position in members if named[position][1] == scope] for scope in scopes]
    same = [(re.sub(r"(_\d+|(?<=\D)\d)$", "", named[position][2]), named[position][3]) for position in members]
    size = next(size for size in range(1, len(same) + 1) if same[:size] * (len(same) // size) == same)
    return [members[start : start + size] for start in range(0, len(members), size)]


def _numbered(names: Sequence[str]) -> list[str]:
    """Return the names with `#2`, `#3` behind those that were there before."""
    seen: Counter[str] = Counter()
    taken = set(names)
    unique = []
    for name in names:
        seen[name] += 1
        new = name
        while seen[name] > 1 and new in taken:
            new = f"{name}#{seen[name]}"
            seen[name] += new in taken
        taken.add(new)
        unique.append(new)
    return unique
