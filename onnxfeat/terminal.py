"""Talk to the person or program at the terminal: data on stdout, talk and progress on stderr, errors as sentences."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TextIO

import typer

from onnxfeat.drawing.arrangements import remarks
from onnxfeat.errors import OnnxfeatError, OutputError
from onnxfeat.findings import Check
from onnxfeat.records import Layer

_WIDEST = 200  # characters of a column


def summary(record: dict[str, Any]) -> Iterator[str]:
    """Yield what a person should know about a run: provider, preprocessing, and what the pictures can't show."""
    provider, preprocessing = record["provider"], record["preprocessing"]
    note = f" ({provider['note']})" if provider["note"] else ""
    yield f"ran on {provider['got'].removesuffix('ExecutionProvider')}{note}"
    size = "x".join(str(side) for side in preprocessing["size"] or ()) or "the input's size"
    ready = [picture["picture"] for picture in record["pictures"] if picture["preprocessed"]]
    if ready:
        yield f"taken as preprocessed already: {', '.join(ready)}"
    if len(ready) < len(record["pictures"]):
        yield (
            f"preprocessing (from {preprocessing['source']}): {preprocessing['color']}, {size} "
            f"{preprocessing['interpolation']}, times {preprocessing['scale']:.6g}, minus "
            f"{_listed(preprocessing['mean'])}, divided by {_listed(preprocessing['std'])}"
        )
    layers = [layer for picture in record["pictures"] for layer in picture["layers"]]
    channels = sum(layer["channels"] for layer in layers)
    constant = sum(len(layer["constant_channels"]) for layer in layers)
    yield f"layers drawn: {len(layers)}, channels: {channels:,}, of them constant (flat): {constant:,}"
    broken = [layer for layer in layers if layer["not_finite_values"]]
    if broken:
        count = sum(layer["not_finite_values"] for layer in broken)
        yield f"{count:,} values are NaN or infinite, in {', '.join(sorted({layer['layer'] for layer in broken}))}"
    shares = {layer["layer"]: layer["saturated"] for layer in layers if layer.get("saturated")}
    if shares:
        worst = max(shares, key=lambda name: shares[name])
        yield f"saturated: {len(shares)} layers, {worst} most, {shares[worst]:.2%} of its values"
    remarked: dict[str, list[str]] = {}
    for layer in layers:
        for remark in remarks(layer):
            remarked.setdefault(remark, []).append(layer["layer"])
    for remark, names in remarked.items():
        yield f"{remark}: {_few(names)}"
    left_out: dict[str, list[str]] = {}
    for name, reason in record["left_out"].items():
        left_out.setdefault(reason, []).append(name)
    for reason, names in left_out.items():
        yield f"not drawn: {_few(names)}: {reason}"
    grids = list(dict.fromkeys(layer["layer"] for layer in layers if layer["arrangement"] == "grid"))
    if grids:
        yield f"too wide for one row, drawn as grids: {_few(grids)}"


def _few(names: Sequence[str]) -> str:
    """Return names as a list that fits a line: past five, their number."""
    unique = [_printable(name) for name in dict.fromkeys(names)]
    more = f" and {len(unique) - 5} more" if len(unique) > 5 else ""
    return ", ".join(unique[:5]) + more


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
    _print_columns(rows)


def verdict(found: Check) -> Iterator[str]:
    """Yield what a check found, for people."""
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
def progress(quiet: bool, title: str, total: int) -> Iterator[Callable[[], None]]:
    """Show a progress bar on a terminal; give the function that moves it on by one."""
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

    with Console(stderr=True).status("starting") as status:
        yield status.update
