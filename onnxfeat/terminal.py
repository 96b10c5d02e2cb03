"""Talk to the person or program at the terminal: data on stdout, talk and progress on stderr, errors as sentences."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TextIO

import typer

from onnxfeat.drawing.captions import remarks
from onnxfeat.errors import OnnxfeatError, OutputError
from onnxfeat.findings import Check, Conversion, Replay
from onnxfeat.records import Layer
from onnxfeat.verdicts import few, printable

_WIDEST = 200  # characters of a column


def summary(record: dict[str, Any]) -> Iterator[str]:
    """Yield what a person should know about a run: provider, preprocessing, and what the pictures can't show."""
    yield from _conditions(record)
    pictures = record.get("pictures", [])  # an animation has frames, and each layer once
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
    yield from _not_finite((layer["layer"], layer["not_finite_values"]) for layer in layers)
    shares = {layer["layer"]: layer["saturated"] for layer in layers if layer.get("saturated")}
    if shares:
        worst = max(shares, key=lambda name: shares[name])
        yield f"saturated: {len(shares)} layers, {worst} most, {shares[worst]:.2%} of its values"
    remarked = grouped((remark, layer["layer"]) for layer in layers for remark in remarks(layer))
    for remark, names in remarked.items():
        yield f"{remark}: {few(names)}"
    yield from _left_out("not drawn", record)
    grids = list(dict.fromkeys(layer["layer"] for layer in layers if layer["arrangement"] == "grid"))
    if grids and record["style"]["arrange"] is None:
        yield f"too wide for one row, drawn as grids: {few(grids)}"


def report_summary(record: dict[str, Any]) -> Iterator[str]:
    """Yield what a person should know about a report: provider, preprocessing, and what the page can't show."""
    yield from _conditions(record)
    layers, pictures = record["layers"], record["pictures"]
    yield (
        f"layers shown: {len(layers)}{f' of {len(pictures):,} pictures' if len(pictures) > 1 else ''}, channels: "
        f"{sum(layer['channels'] for layer in layers):,}, of them 0 everywhere: "
        f"{sum(layer['dead_channels'] for layer in layers):,}; the page has {record['bytes']:,} bytes"
    )
    yield from _not_finite((layer["layer"], layer["nan_values"] + layer["infinite_values"]) for layer in layers)
    coarse = grouped(
        (f"{layer['cells_per_pixel']} cells along each axis", layer["layer"])
        for layer in layers
        if layer["cells_per_pixel"] > 1
    )
    for block, names in coarse.items():
        yield f"shown coarser, each pixel the mean of {block}: {few(names)}"
    yield from _left_out("not shown", record)


def _conditions(record: dict[str, Any]) -> Iterator[str]:
    """Yield which provider ran, and how the pictures were prepared."""
    provider, preprocessing = record["provider"], record["preprocessing"]
    note = f" ({provider['note']})" if provider["note"] else ""
    yield f"ran on {provider['got'].removesuffix('ExecutionProvider')}{note}"
    size = "x".join(str(side) for side in preprocessing["size"] or ()) or "the input's size"
    pictures = record.get("pictures", [])
    ready = [picture["picture"] for picture in pictures if picture["preprocessed"]]
    if ready:
        yield f"taken as preprocessed already: {few(ready)}"
    if len(ready) < len(pictures) or "frames" in record:
        yield (
            f"preprocessing (from {preprocessing['source']}): {preprocessing['color']}, {size} "
            f"{_resize(preprocessing)}, times {preprocessing['scale']:.6g}, minus "
            f"{_listed(preprocessing['mean'])}, divided by {_listed(preprocessing['std'])}"
        )


def _not_finite(counts: Iterable[tuple[str, int]]) -> Iterator[str]:
    """Yield how many values are no finite numbers, of layers with their counts."""
    broken = [(name, count) for name, count in counts if count]
    if broken:
        total = sum(count for _, count in broken)
        yield f"{total:,} values are NaN or infinite, in {few([name for name, _ in broken])}"


def _left_out(what: str, record: dict[str, Any]) -> Iterator[str]:
    for reason, names in grouped((reason, name) for name, reason in record["left_out"].items()).items():
        yield f"{what}: {few(names)}: {reason}"


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


def _print_columns(rows: Sequence[Sequence[str]]) -> None:
    rows = [[_cell(text) for text in row] for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print_line("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _cell(text: str) -> str:
    """Return text that fits into a column; JSON has it whole."""
    shown = printable(text)
    return shown if len(shown) <= _WIDEST else f"{shown[: _WIDEST - 3]}..."


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
        print(printable(text), file=sys.stderr, flush=True)  # noqa: T201  # stderr is talk
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
