"""Say what a check found, in sentences for people."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from onnxfeat.findings import Check, Replay

_MOST_ACCEPTED = 0.05  # of a range; a copy that is further off is told so, and nobody is told to accept it


def verdict(found: Check) -> Iterator[str]:
    """Yield what a check found, for people.

    Example:
        >>> from onnxfeat import check
        >>> found = check("models/shapes_small.onnx", "models/pictures/chelsea.png", layers="conv_1", provider="cpu")
        >>> [line for line in verdict(found) if "as converted" in line]
        ['the file is as converted: all 15 constant arrays are those of the conversion']
    """
    if found.not_watched:
        yield f"no layer was watched: {found.not_watched}"
    else:
        yield from _verdict_on_watching(found)
    if found.reference is None:
        yield "the file carries no reference values: nothing was compared with the framework that it came from"
    else:
        yield from _verdict_on_replay(found.reference)


def few(names: Sequence[str]) -> str:
    """Return names as a list that fits a line: past five, their number.

    Example:
        >>> few(["a", "b", "a"]), few("abcdefg")
        ('a, b', 'a, b, c, d, e and 2 more')
    """
    unique = [printable(name) for name in dict.fromkeys(names)]
    more = f" and {len(unique) - 5} more" if len(unique) > 5 else ""
    return ", ".join(unique[:5]) + more


def printable(text: str) -> str:
    r"""Return text that can't move the cursor or change the terminal: what can't be printed is escaped.

    Example:
        >>> printable("conv 1\x1b[2J")
        'conv 1\\x1b[2J'
    """
    return "".join(x if x.isprintable() else x.encode("unicode_escape").decode() for x in text)


def _verdict_on_watching(found: Check) -> Iterator[str]:
    worst = max(
        found.outputs,
        key=lambda change: (not change.is_rounding(found.limit), change.relative, not change.equal),
        default=None,
    )
    if found.unchanged:
        yield f"the model's outputs ({len(found.outputs)}) are equal to the bit, watched or not"
    elif worst is not None:
        kind = "rounding" if worst.is_rounding(found.limit) else "more than rounding"
        name = printable(worst.name)
        yield f"watching moves the model's outputs by {worst.relative:.1e} of their range at most ({name}): {kind}"
    far = max(found.layers, key=lambda change: (not change.is_rounding(found.limit), change.relative), default=None)
    if far is not None and all(change.equal for change in found.layers):
        yield f"layers as they are drawn ({len(found.layers)}) are equal to the bit to those of the whole graph"
    elif far is not None:
        kind = "rounding" if far.is_rounding(found.limit) else "more than rounding"
        yield (
            f"{len(found.layers)} layers as they are drawn against the whole graph: the largest change is "
            f"{far.relative:.1e} of the range, in {printable(far.name)}: {kind}"
        )
    for name, why in found.left_out.items():
        yield f"not compared: {printable(name)}, {why}"


def _verdict_on_replay(found: Replay) -> Iterator[str]:
    """Yield whether a file still gives what its framework gave, and what the file is."""
    if found.factor != 1:
        yield (
            f"the reference was replayed on {found.provider.got.removesuffix('ExecutionProvider')}, which may round "
            f"more coarsely than the CPU it is for: {found.tolerance:.0e} of the range passes, and {found.factor:g} "
            f"times a layer's own noise"
        )
    yield from _form_told(found)
    worst, first = found.worst, found.first_off
    if worst is not None:
        yield (
            f"{_counted(len(found.layers) - len(found.names('absent')), 'layer')} and "
            f"{_counted(len(found.outputs), 'output')} against {found.computed_by}: the largest deviation is "
            f"{worst.deviation:.1e} of the range, in {printable(worst.name)}"
        )
    if found.names("lost"):
        yield f"lost, with no value left that is theirs: {few(found.names('lost'))}"
    if found.names("found"):
        yield f"found by value, as their names are gone or mean other values: {few(found.names('found'))}"
    if first is not None:
        kind = "layer" if first in found.layers else "output"
        reason = f" ({first.note})" if first.note else ""
        yield (
            f"the first {kind} that is off is {printable(first.name)}: by {first.deviation:.1e} of its range, where "
            f"{first.allowed:.1e} is allowed{reason}"
        )


def _form_told(found: Replay) -> Iterator[str]:
    """Yield what a file is, against what the converter wrote."""
    worst, off = found.worst, found.first_off is not None
    far = worst.deviation if worst is not None and worst.deviation is not None else 0.0
    accept = f": accept it with --tolerance {_above(far)}" if off and 0 < far < _MOST_ACCEPTED else ""
    others = f"{found.arrays_retyped + found.arrays_gone} of {found.arrays} constant arrays"
    if found.form == "changed weights":
        arrays = f"{len(found.arrays_changed)} of {found.arrays} arrays ({few(found.arrays_changed)})"
        renamed = found.names("lost") or found.names("found")
        unused = "" if renamed else ", which no layer uses"
        use = f", first used by layer {printable(found.first_use)}" if found.first_use else unused
        yield f"weights changed: {arrays}{use}"
    elif found.form in ("float16 copy", "int8 copy"):
        kind = found.form.removesuffix(" copy")
        yield f"a {kind} copy: {others} are of another type or gone{accept}".replace("a int8", "an int8")
    elif found.form == "rewritten":
        yield (
            f"rewritten by another tool: {others} are gone or of another type; {len(found.names('same'))} layers kept "
            f"their names, {len(found.names('found'))} were found by value, {len(found.names('lost'))} are lost"
        )
        if found.arrays_changed:
            yield f"arrays that hold other numbers under their names, as rewriting does: {few(found.arrays_changed)}"
    elif off:
        yield (
            f"all {found.arrays} constant arrays are those of the conversion: the graph's nodes were changed, or this "
            f"ONNX Runtime computes something else"
        )
    else:
        yield f"the file is as converted: all {found.arrays} constant arrays are those of the conversion"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _above(number: float) -> str:
    """Return the least of 1, 2, 5, 10, ... that is larger, as it is typed."""
    power = 10.0 ** math.floor(math.log10(number))
    return next(f"{step * power:.0e}".replace("e-0", "e-") for step in (1, 2, 5, 10) if step * power > number)
