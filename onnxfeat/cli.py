"""Run onnxfeat from a shell: one command for each public function.

stdout is data, stderr is talk and progress. Exit codes: 0 done, 1 a model, picture or provider failed, 2 wrong usage.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from onnxfeat import __version__
from onnxfeat.colormaps import Colormap
from onnxfeat.errors import ModelError, OnnxfeatError, OutputError
from onnxfeat.records import DEFAULT_OPSET, ColorOrder, Interpolation, Layer, Provider

app = typer.Typer(
    help="See what a convolutional network sees, from its ONNX file alone.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# Paths are not checked by typer (`readable`): what is wrong with one is told by whoever opens it, in one sentence.
Model = Annotated[Path, typer.Argument(metavar="MODEL", help="An ONNX file.", readable=False, show_default=False)]
OutFile = Annotated[
    Path,
    typer.Option("--output", "-o", metavar="OUT.onnx", help="The ONNX file.", readable=False, show_default=False),
]
Layers = Annotated[
    str | None,
    typer.Option(
        "--layers",
        metavar="SELECTION",
        help="Comma-separated names, globs, op:MaxPool, kind:conv, re:REGEX, positions (0:10); ! takes away. "
        "Default: every conv and pool layer with a picture (layers also lists those of 1 x 1).",
        show_default=False,
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing on stderr but errors.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]

_PREPROCESSING = "Preprocessing"
Size = Annotated[
    str | None,
    typer.Option(metavar="HxW", help="Resize to this height and width in pixels.", rich_help_panel=_PREPROCESSING),
]
Scale = Annotated[
    str | None,
    typer.Option(metavar="NUMBER", help="Factor on the values 0..255, such as 1/255.", rich_help_panel=_PREPROCESSING),
]
Mean = Annotated[
    str | None,
    typer.Option(metavar="NUMBERS", help="Subtract after scaling: 1 or 3 numbers.", rich_help_panel=_PREPROCESSING),
]
Std = Annotated[
    str | None,
    typer.Option(metavar="NUMBERS", help="Divide by that then: 1 or 3 numbers.", rich_help_panel=_PREPROCESSING),
]
Color = Annotated[
    ColorOrder | None,
    typer.Option("--color", help="Order of the channels.", rich_help_panel=_PREPROCESSING, show_default=False),
]
Resize = Annotated[
    Interpolation | None,
    typer.Option("--interpolation", help="Filter of the resize.", rich_help_panel=_PREPROCESSING, show_default=False),
]


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    if version:
        print(f"onnxfeat {__version__}")  # noqa: T201  # stdout is data
        raise typer.Exit


@app.command(epilog="Example: onnxfeat convert model.keras -o model.onnx")
def convert(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A .keras or .h5 file.", readable=False, show_default=False)
    ],
    output: OutFile,
    opset: Annotated[int, typer.Option(help="ONNX operator set version of the file.")] = DEFAULT_OPSET,
    size: Size = None,
    scale: Scale = None,
    mean: Mean = None,
    std: Std = None,
    color: Color = None,
    interpolation: Resize = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Convert a Keras model to ONNX, with its layer names, and compare every layer with Keras.

    The preprocessing is stored in the file; unless told otherwise it is Keras's own: load_img (nearest) and 1/255.
    """
    with _errors(debug):
        from onnxfeat.converter import convert_keras

        changes = _changes(size=size, scale=scale, mean=mean, std=std, color=color, interpolation=interpolation)
        with _stages(quiet) as tell:
            conversion = convert_keras(
                model, output, preprocessing=changes, opset=opset, overwrite=overwrite, progress=tell
            )
        worst = conversion.worst
        for note in conversion.notes:
            _say(quiet, f"note: {note}")
        if conversion.absent:
            names = ", ".join(conversion.absent)
            _say(quiet, f"note: the ONNX graph has no value for {len(conversion.absent)} of the layers: {names}")
        _say(
            quiet,
            f"{len(conversion.layers)} layers and outputs compared with Keras in {conversion.seconds:.0f} s: largest "
            f"error {worst.error:.1e} of the range, in {worst.name} (its rounding noise in Keras: {worst.noise:.1e})",
        )
        if as_json:
            _print_json({"schema_version": 1, **conversion.to_json()})
        else:
            _print(str(conversion.path))


@app.command("layers", epilog="Example: onnxfeat layers model.onnx --layers 'kind:conv,!*_expand'")
def list_(
    model: Model,
    layers: Layers = None,
    as_json: AsJson = False,
    quiet: Quiet = False,  # noqa: ARG001  # a common option; there is nothing to be quiet about
    debug: Debug = False,
) -> None:
    """List the layers of a model in order of execution: name, operator, shape, what a cell sees."""
    with _errors(debug):
        from onnxfeat.exposure import picture_input
        from onnxfeat.extractor import choose_preprocessing
        from onnxfeat.graph import read_graph
        from onnxfeat.inventory import all_layers, list_layers

        graph = read_graph(model)
        listed = list_layers(graph, layers)
        if not as_json:
            _print_table(listed, [layer.name for layer in all_layers(graph) if layer.kind in ("conv", "pool")])
            return
        document: dict[str, Any] = {"schema_version": 1, "model": {"file": model.name, "sha256": graph.sha256}}
        try:
            target = picture_input(graph)
        except ModelError as error:  # its layers can be listed all the same
            document.update(input=None, input_problem=str(error), preprocessing=None)
        else:
            preprocessing, source = choose_preprocessing(None, graph.document, target)
            document.update(input=target.to_json(), preprocessing={**preprocessing.to_json(), "source": source})
        document["layers"] = [layer.to_json() for layer in listed]
        _print_json(document)


@app.command(epilog="Example: onnxfeat expose model.onnx -o layers.onnx --layers 'conv2d*'")
def expose(
    model: Model,
    output: OutFile,
    layers: Layers = None,
    cut: Annotated[bool, typer.Option("--cut/--no-cut", help="Leave out what the layers do not need.")] = True,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write an ONNX file whose outputs are the chosen layers."""
    with _errors(debug):
        from onnxfeat.exposure import expose as expose_layers

        exposed = expose_layers(model, output, layers=layers, cut=cut, overwrite=overwrite)
        size = output.stat().st_size
        _say(quiet, f"exposed {len(exposed)} layers; {model.stat().st_size:,} bytes became {size:,}")
        if as_json:
            _print_json({"schema_version": 1, "path": str(output), "layers": [layer.to_json() for layer in exposed]})
        else:
            _print(str(output))


@app.command(epilog="Example: onnxfeat draw model.onnx cat.jpg -o maps --layers 'conv2d*'")
def draw(
    model: Model,
    images: Annotated[
        list[Path],
        typer.Argument(metavar="IMAGE...", help="Pictures or .npy arrays.", readable=False, show_default=False),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FOLDER", help="Where to write.", readable=False, show_default=False),
    ],
    layers: Layers = None,
    provider: Annotated[Provider, typer.Option(help="Execution provider; auto is CUDA if it runs, else CPU.")] = "auto",
    colormap: Annotated[Colormap, typer.Option(help="Colors of the pictures.")] = "viridis",
    size: Size = None,
    scale: Scale = None,
    mean: Mean = None,
    std: Std = None,
    color: Color = None,
    interpolation: Resize = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Draw every layer's channels for one picture or many: one PNG file a layer, and run.json.

    Pictures are prepared as the model's metadata say, else resized to the input, RGB, times 1/255.
    """
    with _errors(debug):
        logging.getLogger("onnxfeat").setLevel(logging.ERROR)  # the provider is told below, once
        from onnxfeat.extractor import FeatureExtractor
        from onnxfeat.gallery import save_pictures

        changes = _changes(size=size, scale=scale, mean=mean, std=std, color=color, interpolation=interpolation)
        extractor = FeatureExtractor(model, layers=layers, provider=provider, preprocessing=changes)
        with _progress(quiet, "drawing", len(images) * len(extractor.layers)) as advance:
            runs = (extractor(image) for image in images)
            record = save_pictures(runs, output, colormap=colormap, overwrite=overwrite, progress=lambda _: advance())
        for line in _summary(record):
            _say(quiet, line)
        if as_json:
            _print_json(record)
        else:
            for picture in record["pictures"]:
                for layer in picture["layers"]:
                    _print(str(output / layer["file"]))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line with the process's arguments, or others; exits the process."""
    for name in ("SIGTERM", "SIGHUP"):  # as Ctrl-C does, let the stages clean up behind themselves
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:  # not where `nohup` has it ignored
            signal.signal(number, _stop)
    app(args=None if arguments is None else list(arguments), prog_name="onnxfeat")


def _stop(number: int, _: object) -> None:
    raise SystemExit(128 + number)


def _changes(
    *,
    size: str | None,
    scale: str | None,
    mean: str | None,
    std: str | None,
    color: ColorOrder | None,
    interpolation: Interpolation | None,
) -> dict[str, Any] | None:
    """Return the preprocessing fields that the caller set, or None; what can't be read is wrong usage."""
    fields = {
        "size": None if size is None else _size(size),
        "scale": None if scale is None else _numbers(scale, "--scale", most=1)[0],
        "mean": None if mean is None else _numbers(mean, "--mean", most=3),
        "std": None if std is None else _numbers(std, "--std", most=3),
        "color": color,
        "interpolation": interpolation,
    }
    return {name: value for name, value in fields.items() if value is not None} or None


def _numbers(text: str, option: str, most: int) -> tuple[float, ...]:
    try:
        numbers = tuple(_quotient(part) for part in text.split(","))
    except (ValueError, ZeroDivisionError):
        numbers = ()
    if not 1 <= len(numbers) <= most:
        example = "1/255 or 0.5" if most == 1 else "0.5 or 0.48,0.46,0.41"
        raise typer.BadParameter(f"{text!r} is not a number of the form {example}", param_hint=option)
    return numbers


def _quotient(text: str) -> float:
    """Return the value of `0.5` or `1/255`."""
    numerator, _, denominator = text.partition("/")
    return float(numerator) / float(denominator or 1)


def _size(text: str) -> tuple[int, int]:
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise typer.BadParameter(f"{text!r} is not a height and width such as 224x224 or 224", param_hint="--size")
    return int(sides[0]), int(sides[-1])


def _summary(record: dict[str, Any]) -> Iterator[str]:
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
    grids = list(dict.fromkeys(layer["layer"] for layer in layers if layer["arrangement"] == "grid"))
    if grids:
        yield f"too wide for one row, drawn as grids: {', '.join(grids)}"


def _listed(numbers: list[float]) -> str:
    return ",".join(f"{number:g}" for number in numbers)


def _print_table(layers: Sequence[Layer], positions: Sequence[str]) -> None:
    """Print one line a layer; columns are aligned, missing facts are a dash."""
    head = ("#", "name", "kind", "operator", "activation", "channels", "size", "stride", "sees", "source")
    rows = [head, *(_row(layer, positions) for layer in layers)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        _print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _row(layer: Layer, positions: Sequence[str]) -> tuple[str, ...]:
    return (
        str(positions.index(layer.name)) if layer.name in positions else "-",
        layer.name,
        "vector" if layer.is_vector else layer.kind,
        layer.op_type,
        layer.activation or "-",
        str(layer.channels or "-"),
        _sides(layer.spatial),
        _sides(layer.reduction),
        "all" if layer.reduction and layer.receptive_field is None else _sides(layer.receptive_field),
        layer.source or "-",
    )


def _sides(sides: Sequence[object] | None) -> str:
    return "x".join(f"{side:g}" if isinstance(side, float) else str(side or "?") for side in sides or ()) or "-"


def _print(text: str) -> None:
    try:
        print(text, flush=True)  # noqa: T201  # stdout is data
    except BrokenPipeError:
        raise
    except OSError as error:
        _drop(sys.stdout)
        raise OutputError(
            f"stdout can't be written: {error.strerror}; free some space or choose another place"
        ) from error


def _print_json(document: dict[str, Any]) -> None:
    _print(json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False))


def _say(quiet: bool, text: str) -> None:
    if quiet or sys.stderr is None:  # None where the caller closed it
        return
    try:
        print(text, file=sys.stderr, flush=True)  # noqa: T201  # stderr is talk
    except OSError:  # talk that nobody can hear is no reason to fail
        _drop(sys.stderr)


def _drop(stream: TextIO) -> None:
    """Send what a stream still holds nowhere, so that Python does not fail on it when it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _on_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


@contextlib.contextmanager
def _errors(debug: bool) -> Iterator[None]:
    """Turn errors into one sentence on stderr and exit code 1."""
    try:
        yield
    except BrokenPipeError:  # the reader of stdout, such as `head`, has seen enough
        _drop(sys.stdout)
        raise typer.Exit(0) from None
    except OnnxfeatError as error:
        if debug:
            raise
        _say(False, f"onnxfeat: {error}")
        raise typer.Exit(1) from error
    except (OSError, MemoryError, RuntimeError, ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        if debug:
            raise
        _say(
            False,
            f"onnxfeat: unexpected {type(error).__name__}: {error}; this is a fault of onnxfeat: please report it with "
            f"what --debug prints",
        )
        raise typer.Exit(1) from error


@contextlib.contextmanager
def _progress(quiet: bool, title: str, total: int) -> Iterator[Callable[[], None]]:
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
def _stages(quiet: bool) -> Iterator[Callable[[str], None]]:
    """Show the stage that runs on a terminal; give the function that names the next one."""
    if quiet or not _on_terminal():
        yield lambda _: None
        return
    from rich.console import Console

    with Console(stderr=True).status("starting") as status:
        yield status.update
