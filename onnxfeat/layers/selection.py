"""Choose layers by the selection language that Python, the command line and files share.

Terms are joined by commas; a leading `!` takes away; a selection that begins with a `!` term starts from the
default, all others from nothing.

    conv2d*         glob on the layer's name or its framework path
    op:MaxPool      ONNX operator
    kind:conv       what the layer does: conv, pool, activation, norm, other; kind:vector for maps of 1 x 1;
                    kind:any for all
    re:^block_[12]  regular expression found anywhere in the name or the framework path
    3  0:10  -1     positions in the list of all conv and pool layers, as Python counts
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from typing import get_args

from onnxfeat.errors import LayerError, nearest, quote
from onnxfeat.records import Kind, Layer

DEFAULT = "kind:conv,kind:pool,!kind:vector"
"""What is exposed, extracted and drawn unless told otherwise: every conv and pool layer that has a picture."""

_KINDS = (*get_args(Kind), "vector", "any")
_POSITION = re.compile(r"-?\d{1,18}")
_RANGE = re.compile(r"(-?\d{1,18})?:(-?\d{1,18})?")


def select(layers: Sequence[Layer], selection: str | Sequence[str] | None = None) -> tuple[Layer, ...]:
    """Return the layers that a selection names, in their own order.

    Args:
        layers: All layers of the model, in order of execution.
        selection: The selection, or a list of terms; None is the default, every conv and pool layer with a picture.

    Raises:
        LayerError: A term names nothing, is malformed, or nothing is left in the end.

    Example:
        >>> conv = Layer(name="conv2d", kind="conv", op_type="Conv", value="a", raw_value="a")
        >>> pool = Layer(name="pool", kind="pool", op_type="MaxPool", value="b", raw_value="b")
        >>> [layer.name for layer in select([conv, pool], "conv*")]
        ['conv2d']
        >>> [layer.name for layer in select([conv, pool], "!op:MaxPool")]
        ['conv2d']
    """
    if selection is None:
        return _default(layers)
    if not isinstance(selection, str | Sequence):
        raise LayerError(
            f"the selection {selection!r} is neither text nor a list: pass for instance 'conv*' or ['0', '1']"
        )
    terms = selection.split(",") if isinstance(selection, str) else [str(term) for term in selection]
    terms = [term.strip() for term in terms]
    if not terms or not all(terms):
        raise LayerError(
            f"the selection {selection!r} has an empty term: name layers, for instance 'conv*,!op:MaxPool'"
        )
    chosen = set() if not terms[0].startswith("!") else {layer.name for layer in _default(layers)}
    for term in terms:
        names = {layer.name for layer in _matching(layers, term.removeprefix("!"))}
        chosen = chosen - names if term.startswith("!") else chosen | names
    if not chosen:
        raise LayerError(f"the selection {selection!r} leaves none of the {len(layers)} layers: take fewer away")
    return tuple(layer for layer in layers if layer.name in chosen)


def _default(layers: Sequence[Layer]) -> tuple[Layer, ...]:
    chosen = tuple(layer for layer in layers if layer.kind in ("conv", "pool") and not layer.is_vector)
    if not chosen:
        raise LayerError(
            f"none of the model's {len(layers)} layers is a conv or pool layer with a picture: choose others, "
            f"`onnxfeat layers MODEL --layers kind:any` lists them"
        )
    return chosen


def _matching(layers: Sequence[Layer], term: str) -> Sequence[Layer]:
    prefix, _, rest = term.partition(":")
    if prefix == "kind":
        if rest not in _KINDS:
            raise LayerError(f"kind {rest!r} is unknown: choose {quote(_KINDS)}")
        found = [x for x in layers if rest in ("any", x.kind) or (rest == "vector" and x.is_vector)]
        if found or rest in ("vector", "any"):
            return found  # `!kind:vector` on a model without such layers is no mistake
    elif prefix == "op":
        found = [x for x in layers if x.op_type == rest]
    elif prefix == "re":
        try:
            pattern = re.compile(rest)
        except (re.error, RecursionError, OverflowError) as error:
            raise LayerError(f"{rest!r} is not a regular expression ({error}): mend it, or use a glob") from error
        found = [x for x in layers if pattern.search(x.name) or (x.source and pattern.search(x.source))]
    elif _POSITION.fullmatch(term) or _RANGE.fullmatch(term):
        return _at_positions(layers, term)
    else:
        found = [x for x in layers if x.name == term or fnmatch.fnmatchcase(x.name, term)]
        found = found or [x for x in layers if x.source and fnmatch.fnmatchcase(x.source, term)]
    if not found:
        names = [layer.name for layer in layers] if prefix not in ("op", "kind") else [x.op_type for x in layers]
        near = nearest(rest if prefix in ("op", "re", "kind") else term, sorted(set(names)))
        hint = f"; the nearest are {quote(near)}" if near else ""
        raise LayerError(
            f"no layer matches {term!r}{hint}: the model has {len(layers)} layers, "
            f"`onnxfeat layers MODEL --layers kind:any` lists them"
        )
    return found


def _at_positions(layers: Sequence[Layer], term: str) -> Sequence[Layer]:
    listed = [layer for layer in layers if layer.kind in ("conv", "pool")]
    if _POSITION.fullmatch(term):
        index = int(term)
        found = listed[index:][:1] if -len(listed) <= index < len(listed) else []
    else:
        start, stop = (int(bound) if bound else None for bound in term.split(":"))
        found = listed[start:stop]
    if not found:
        raise LayerError(
            f"position {term} is outside the list of {len(listed)} conv and pool layers: `onnxfeat layers MODEL` "
            f"numbers them from 0"
        )
    return found
