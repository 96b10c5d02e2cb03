"""Talk to the person or program at the terminal: data on stdout, talk and progress on stderr, errors as sentences."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TextIO

import typer

from onnxfeat.drawing.captions import remarks
from onnxfeat.errors import OnnxfeatError, OutputError
from onnxfeat.findings import Check, Conversion, Replay
from onnxfeat.records import Layer

_WIDEST = 200  # characters of a column
_MOST_ACCEPTED = 0.05  # of a range; a copy that is further off is told so, and nobody is told to accept it


def summary(record: dict[str, Any]) -> Iterator[str]:
    """Yield what a person should know about a run: provider, preprocessing, and what the pictures can't show."""
    provider, preprocessing = record["provider"], record["preprocessing"]
    note = f" ({provider['note']})" if provider["note"] else ""
    yield f"ran on {provider['got'].removesuffix('ExecutionProvider')}{note}"
    size = "x".join(str(side) for side in preprocessing["size"] or ()) or "the input's size"
    pictures = record.get("pictures", [])  # an animation has frames, and each layer once
    ready = [picture["picture"] for picture in pictures if picture["preprocessed"]]
    if ready:
        yield f"taken as preprocessed already: {few(ready)}"
    if len(ready) < len(pictures) or "frames" in record:
        yield (
            f"preprocessing (from {preprocessing['source']}): {preprocessing['color']}, {size} "
            f"{_resize(preprocessing)}, times {preprocessing['scale']:.6g}, minus "
            f"{_listed(preprocessing['mean'])}, divided by {_listed(preprocessing['std'])}"
        )
    layers = record["layers"] if "frames" in record else [layer for picture in pictures for layer in picture["layers"]]
    channels = sum(layer.get("reduced_channels", layer.get("numbers", layer["channels"])) for layer in layers)
    constant = sum(len(layer["constant_channels"]) for layer in layers)
    dead = sum(len(layer["dead_channels"]) for layer in layers)
    frames = f" in {len(record['frames']):,} frames" if "frames" in record else ""
    if len(pictures) > 1:
        frames = f" of {len(pictures):,} pictures"
    yield (
        f"layers drawn: {len(layers)}{frames}, channels: {channels:,}, of them constant (flat): {constant:,}, "
        f"0 everywhere: {dead:,}"
    )
    broken = [layer for layer in layers if layer["not_finite_values"]]
    if broken:
        count = sum(layer["not_finite_values"] for layer in broken)
        yield f"{count:,} values are NaN or infinite, in {', '.join(sorted({layer['layer'] for layer in broken}))}"
    shares = {layer["layer"]: layer["saturated"] for layer in layers if layer.get("saturated")}
    if shares:
        worst = max(shares, key=lambda name: shares[name])
        yield f"saturated: {len(shares)} layers, {worst} most, {shares[worst]:.2%} of its values"
    remarked = grouped((remark, layer["layer"]) for layer in layers for remark in remarks(layer))
    for remark, names in remarked.items():
        yield f"{remark}: {few(names)}"
    for reason, names in grouped((reason, name) for name, reason in record["left_out"].items()).items():
        yield f"not drawn: {few(names)}: {reason}"
    grids = list(dict.fromkeys(layer["layer"] for layer in layers if layer["arrangement"] == "grid"))
    if grids and record["style"]["arrange"] is None:
        yield f"too wide for one row, drawn as grids: {few(grids)}"


def outcome(conversion: Conversion) -> Iterator[str]:
    """Yield what a person should know about a conversion."""
    for note in conversion.notes:
        yield f"note: {note}"
    if conversion.absent:
        yield f"note: the ONNX graph has no value for {len(conversion.absent)} of the layers:"
        for reason, names in grouped((layer.reason, layer.name) for layer in conversion.absent).items():
            yield f"  {reason}: {few(names)}"
    vague = [layer.name for layer in conversion.layer_map if layer.status == "ambiguous"]
    if vague:
        yield f"note: comparing proves little of {len(vague)} layers (--json says why): {few(vague)}"
    alone = [layer for layer in conversion.layers if layer.local is not None]
    if alone:
        most = max(alone, key=lambda layer: layer.local or 0.0)
        yield (
            f"{len(alone)} layers inherit rounding, and were compared on their own inputs too: largest error "
            f"{most.local:.1e}, in {most.name}"
        )
    worst = conversion.worst
    yield (
        f"{len(conversion.layers)} layers and outputs compared with {conversion.computed_by}, "
        f"{conversion.seconds:.0f} s in all: largest error {worst.error:.1e} of the range, in {worst.name} "
        f"(its own rounding noise: {worst.noise:.1e})"
    )


def few(names: Sequence[str]) -> str:
    """Return names as a list that fits a line: past five, their number."""
    unique = [_printable(name) for name in dict.fromkeys(names)]
    more = f" and {len(unique) - 5} more" if len(unique) > 5 else ""
    return ", ".join(unique[:5]) + more


def _resize(preprocessing: dict[str, Any]) -> str:
    """Return how pictures are resized, with what differs from a plain resize by Pillow."""
    words = [preprocessing["interpolation"]]
    if preprocessing["resampling"] != "pillow":
        words.append(f"by {preprocessing['resampling'].title()}'s resampling")
    if preprocessing["aspect"] in ("pad", "letterbox"):
        words.append(f"({preprocessing['aspect']} with {preprocessing['fill']:g})")
    elif preprocessing["aspect"] != "stretch":
        words.append(f"({preprocessing['aspect']})")
    return " ".join(words)


def grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Return the second parts of pairs by the first, in the order in which they came."""
    found: dict[str, list[str]] = {}
    for key, value in pairs:
        found.setdefault(key, []).append(value)
    return found


def _listed(numbers: list[float]) -> str:
    return ",".join(f"{number:g}" for number in numbers)


def print_table(layers: Sequence[Layer], positions: Sequence[str]) -> None:
    """Print one line a layer; columns are aligned, missing facts are a dash."""
    head: tuple[str, ...] = (
        "#",
        "name",
        "kind",
        "operator",
        "activation",
        "channels",
        "size",
        "stride",
        "sees",
        "source",
        "note",
    )
    numbers = {name: number for number, name in enumerate(positions)}
    rows = [_row(layer, numbers) for layer in layers]
    if all(row[-1] == "-" for row in rows):
        head, rows = head[:-1], [row[:-1] for row in rows]
    _print_columns([head, *rows])


def print_check(found: Check) -> None:
    """Print one line for each output and layer: how far it moves."""
    rows: list[tuple[str, ...]] = [("what", "name", "largest change", "of the range", "own noise")]
    for what, changes in (("output", found.outputs), ("layer", found.layers)):
        for change in changes:
            largest = "none" if change.equal else f"{change.largest:.2g}"
            relative = "-" if change.equal else f"{change.relative:.1e}"
            noise = "-" if change.noise is None else f"{change.noise:.1e}"
            rows.append((what, change.name, largest, relative, noise))
    if len(rows) > 1:
        _print_columns(rows)
    if found.reference is not None:
        if len(rows) > 1:
            print_line("")
        _print_replay(found.reference)


def _print_replay(found: Replay) -> None:
    """Print one line for each layer and output of the reference: how far it is from what the framework gave."""
    rows: list[tuple[str, ...]] = [("what", "name", "status", "deviation", "allowed", "where", "note")]
    for what, values in (("layer", found.layers), ("output", found.outputs)):
        for value in values:
            deviation = "-" if value.deviation is None else f"{value.deviation:.1e}"
            where, note = value.value or "-", value.note or "-"
            rows.append((what, value.name, value.status, deviation, f"{value.allowed:.1e}", where, note))
    _print_columns(rows if any(row[-1] != "-" for row in rows[1:]) else [row[:-1] for row in rows])


def verdict(found: Check) -> Iterator[str]:
    """Yield what a check found, for people."""
    if found.not_watched:
        yield f"no layer was watched: {found.not_watched}"
    else:
        yield from _verdict_on_watching(found)
    if found.reference is None:
        yield "the file carries no reference values: nothing was compared with the framework that it came from"
    else:
        yield from _verdict_on_replay(found.reference)


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
            f"{worst.deviation:.1e} of the range, in {_printable(worst.name)}"
        )
    if found.names("lost"):
        yield f"lost, with no value left that is theirs: {few(found.names('lost'))}"
    if found.names("found"):
        yield f"found by value, as their names are gone or mean other values: {few(found.names('found'))}"
    if first is not None:
        kind = "layer" if first in found.layers else "output"
        reason = f" ({first.note})" if first.note else ""
        yield (
            f"the first {kind} that is off is {_printable(first.name)}: by {first.deviation:.1e} of its range, where "
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
        use = f", first used by layer {_printable(found.first_use)}" if found.first_use else unused
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
        name = _printable(worst.name)
        yield f"watching moves the model's outputs by {worst.relative:.1e} of their range at most ({name}): {kind}"
    far = max(found.layers, key=lambda change: (not change.is_rounding(found.limit), change.relative), default=None)
    if far is not None and all(change.equal for change in found.layers):
        yield f"layers as they are drawn ({len(found.layers)}) are equal to the bit to those of the whole graph"
    elif far is not None:
        kind = "rounding" if far.is_rounding(found.limit) else "more than rounding"
        yield (
            f"{len(found.layers)} layers as they are drawn against the whole graph: the largest change is "
            f"{far.relative:.1e} of the range, in {_printable(far.name)}: {kind}"
        )
    for name, why in found.left_out.items():
        yield f"not compared: {_printable(name)}, {why}"


def _print_columns(rows: Sequence[Sequence[str]]) -> None:
    rows = [[_cell(text) for text in row] for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print_line("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _cell(text: str) -> str:
    """Return text that fits into a column; JSON has it whole."""
    shown = _printable(text)
    return shown if len(shown) <= _WIDEST else f"{shown[: _WIDEST - 3]}..."


def _printable(text: str) -> str:
    """Return text that can't move the cursor or change the terminal: other characters than letters are escaped."""
    return "".join(x if x.isprintable() else x.encode("unicode_escape").decode() for x in text)


def _row(layer: Layer, numbers: Mapping[str, int]) -> tuple[str, ...]:
    return (
        str(numbers.get(layer.name, "-")),
        layer.name,
        "vector" if layer.is_vector else layer.kind,
        layer.op_type,
        layer.activation or "-",
        str(layer.channels or "-"),
        _sides(layer.spatial),
        _sides(layer.reduction),
        "all" if layer.reduction and layer.receptive_field is None else _sides(layer.receptive_field),
        layer.source or "-",
        layer.unseen or layer.note or "-",
    )


def _sides(sides: Sequence[object] | None) -> str:
    return "x".join(f"{side:g}" if isinstance(side, float) else str(side or "?") for side in sides or ()) or "-"


def print_line(text: str) -> None:
    """Print on stdout, which is for data.

    Raises:
        BrokenPipeError: The reader has gone.
        OutputError: The disk is full, for instance.
    """
    encoding = sys.stdout.encoding
    shown = text.encode(encoding, "backslashreplace").decode(encoding)  # what a pipe or console may not know
    try:
        print(shown, flush=True)  # noqa: T201  # stdout is data
    except BrokenPipeError:
        raise
    except OSError as error:
        _drop(sys.stdout)
        raise OutputError(
            f"stdout can't be written: {error.strerror}; free some space or choose another place"
        ) from error


def print_json(document: dict[str, Any]) -> None:
    """Print one JSON document on stdout; what a terminal could take for a command is escaped, as JSON does."""
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
    print_line("".join(x if x.isprintable() or x == "\n" else json.dumps(x)[1:-1] for x in text))


def say(quiet: bool, text: str) -> None:
    """Print on stderr, which is for talk, unless told to be quiet."""
    if quiet or sys.stderr is None:  # None where the caller closed it
        return
    try:
        print(_printable(text), file=sys.stderr, flush=True)  # noqa: T201  # stderr is talk
    except OSError:  # talk that nobody can hear is no reason to fail
        _drop(sys.stderr)


def _drop(stream: TextIO) -> None:
    """Send what a stream still holds nowhere, so that Python does not fail on it when it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _on_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


@contextlib.contextmanager
def errors_told(debug: bool) -> Iterator[None]:
    """Turn errors into one sentence on stderr and exit code 1."""
    try:
        yield
    except BrokenPipeError:  # the reader of stdout, such as `head`, has seen enough
        _drop(sys.stdout)
        raise typer.Exit(0) from None
    except (typer.Exit, typer.BadParameter):  # the first is a RuntimeError
        raise
    except OnnxfeatError as error:
        if debug:
            raise
        say(False, f"onnxfeat: {error}")
        raise typer.Exit(1) from error
    except MemoryError as error:
        if debug:
            raise
        say(False, "onnxfeat: the memory is not enough for this: pass a smaller picture or --size, or fewer layers")
        raise typer.Exit(1) from error
    except Exception as error:
        if debug:
            raise
        say(
            False,
            f"onnxfeat: unexpected {type(error).__name__}: {error}; this is a fault of onnxfeat: please report it with "
            f"what --debug prints",
        )
        raise typer.Exit(1) from error


@contextlib.contextmanager
def progress(quiet: bool, title: str, total: int | None) -> Iterator[Callable[[], None]]:
    """Show a progress bar on a terminal, of so many steps if that is known; give the function that moves it by one."""
    if quiet or not _on_terminal():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda: bar.advance(task)


@contextlib.contextmanager
def stages(quiet: bool) -> Iterator[Callable[[str], None]]:
    """Show the stage that runs on a terminal; give the function that names the next one."""
    if quiet or not _on_terminal():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task("starting", total=None)
        yield lambda stage: shown.update(task, description=stage)
