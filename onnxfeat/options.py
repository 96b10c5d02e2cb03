"""Say what the commands take: their arguments and options, and how the texts of these are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from onnxfeat.preprocessing import Aspect, ColorOrder, Interpolation, Preset, Resampling
from onnxfeat.records import Provider

# Paths are not checked by typer (`readable`): what is wrong with one is told by whoever opens it, in one sentence.
Model = Annotated[Path, typer.Argument(metavar="MODEL", help="An ONNX file.", readable=False, show_default=False)]
Images = Annotated[
    list[Path],
    typer.Argument(
        metavar="IMAGE...",
        help="Pictures, folders of them, patterns, or .npy arrays.",
        readable=False,
        show_default=False,
    ),
]
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
Runner = Annotated[Provider, typer.Option("--provider", help="Execution provider; auto is CUDA if it runs, else CPU.")]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="NAME=VALUE",
        help="Value of an input that does not take the picture: a number or a .npy file. Can be repeated.",
        show_default=False,
    ),
]
MaxBytes = Annotated[
    str, typer.Option(metavar="SIZE", help="Memory for maps, such as 512MB; what needs more runs in several passes.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing on stderr but errors.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]

_RESULT, _SOURCE = "The ONNX file", "The model"
Opset = Annotated[int, typer.Option(help="ONNX operator set version of the file.", rich_help_panel=_RESULT)]
HalfWeights = Annotated[
    Literal["float32", "float16"],
    typer.Option("--weights", help="float16 halves the file and rounds the weights.", rich_help_panel=_RESULT),
]
Batch = Annotated[
    str | None,
    typer.Option(
        metavar="NUMBER|dynamic",
        help="Length of the batch axis; default: what the model says.",
        rich_help_panel=_RESULT,
        show_default=False,
    ),
]
OutputNames = Annotated[
    list[str] | None,
    typer.Option(
        "--output-name",
        metavar="NAME",
        help="What an output is called; once for each, in order.",
        rich_help_panel=_RESULT,
        show_default=False,
    ),
]
Labels = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Text file with the name of a class on each line, to be kept in the ONNX file.",
        rich_help_panel=_RESULT,
        readable=False,
        show_default=False,
    ),
]
InputShapes = Annotated[
    list[str] | None,
    typer.Option(
        "--input-shape",
        metavar="[NAME=]SHAPE",
        help="Shape of an input without the batch, such as 224x224x3 (? for any length), for a model that does not "
        "know it; once for each argument.",
        rich_help_panel=_SOURCE,
        show_default=False,
    ),
]
CustomObjects = Annotated[
    str | None,
    typer.Option(
        metavar="MODULE",
        help="Python file or importable module with the layers that the file needs beside Keras's; it is run.",
        rich_help_panel=_SOURCE,
        show_default=False,
    ),
]
Signature = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Which signature of a SavedModel; default: serving_default, or the only one.",
        rich_help_panel=_SOURCE,
        show_default=False,
    ),
]
Unsafe = Annotated[
    bool,
    typer.Option("--unsafe", help="Let code in the model file run (Lambda layers).", rich_help_panel=_SOURCE),
]

_PREPROCESSING = "Preprocessing"
Preprocess = Annotated[
    Preset | None,
    typer.Option(
        "--preprocess",
        help="Scale, mean, std and color at once: 1/255 (keras, also nearest), a mode of Keras's preprocess_input "
        "(torch, caffe, tf), or 0..255 (raw). Single options go before it.",
        rich_help_panel=_PREPROCESSING,
        show_default=False,
    ),
]
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
Shape = Annotated[
    Aspect | None,
    typer.Option(
        "--aspect",
        help="A picture of another aspect ratio: stretch it, crop its middle, pad and resize it, or resize and pad it.",
        rich_help_panel=_PREPROCESSING,
        show_default=False,
    ),
]
Resampler = Annotated[
    Resampling | None,
    typer.Option(
        "--resampling",
        help="Resize as Pillow and load_img do, or as Keras's Resizing and image_dataset_from_directory.",
        rich_help_panel=_PREPROCESSING,
        show_default=False,
    ),
]
Fill = Annotated[
    str | None,
    typer.Option(metavar="LEVEL", help="Level 0..255 of what is padded.", rich_help_panel=_PREPROCESSING),
]


def changed_fields(
    *,
    preset: Preset | None,
    size: str | None,
    scale: str | None,
    mean: str | None,
    std: str | None,
    color: ColorOrder | None,
    interpolation: Interpolation | None,
    aspect: Aspect | None,
    resampling: Resampling | None,
    fill: str | None,
) -> dict[str, Any] | None:
    """Return the preprocessing fields that the caller set, or None; what can't be read is wrong usage."""
    fields = {
        "preset": preset,
        "size": None if size is None else _size(size),
        "scale": None if scale is None else _numbers(scale, "--scale", most=1)[0],
        "mean": None if mean is None else _numbers(mean, "--mean", most=3),
        "std": None if std is None else _numbers(std, "--std", most=3),
        "color": color,
        "interpolation": interpolation,
        "aspect": aspect,
        "resampling": resampling,
        "fill": None if fill is None else _numbers(fill, "--fill", most=1)[0],
    }
    return {name: value for name, value in fields.items() if value is not None} or None


def given_inputs(texts: list[str] | None) -> dict[str, Any] | None:
    """Return input name to number or path, from `NAME=NUMBER` and `NAME=FILE.npy`."""
    found: dict[str, Any] = {}
    for text in texts or ():
        name, sign, value = text.partition("=")
        if not sign or not name or not value:
            raise typer.BadParameter(f"{text!r} is not of the form NAME=NUMBER or NAME=FILE.npy", param_hint="--input")
        try:
            found[name] = int(value)
        except ValueError:
            try:
                found[name] = float(value)
            except ValueError:
                found[name] = {"true": True, "false": False}.get(value.lower(), Path(value))
    return found or None


def batch_length(text: str | None) -> int | None:
    """Return the length of the batch axis, 0 for any, from `4` or `dynamic`."""
    if text is None or text == "dynamic":
        return None if text is None else 0
    if not text.isdecimal() or not 0 < int(text) < 1 << 31:
        raise typer.BadParameter(f"{text!r} is neither a number from 1 on nor dynamic", param_hint="--batch")
    return int(text)


def given_shapes(texts: list[str] | None) -> Any:
    """Return the shape of the one argument, or argument name to shape; the batch axis is put before, open."""
    found: dict[str, tuple[int | None, ...]] = {}
    for text in texts or ():
        name, _, sides = text.rpartition("=")
        parts = sides.lower().split("x")
        if not all(part == "?" or (part.isdecimal() and 0 < int(part) < 1 << 31) for part in parts):
            raise typer.BadParameter(
                f"{text!r} is not a shape such as 224x224x3, ?x?x3 or image=224x224x3", param_hint="--input-shape"
            )
        found[name] = (None, *(None if part == "?" else int(part) for part in parts))
    if "" in found:
        if len(found) > 1 or len(texts or ()) > 1:
            raise typer.BadParameter("several shapes need names: NAME=SHAPE for each", param_hint="--input-shape")
        return found[""]
    return found or None


def given_labels(path: Path | None) -> tuple[str, ...]:
    """Return the lines of a text file, without empty ones at the end."""
    if path is None:
        return ()
    try:
        labels = tuple(line.strip() for line in path.read_text(encoding="utf-8").rstrip().splitlines())
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise typer.BadParameter(f"{path} can't be read: {reason}", param_hint="--labels") from error
    if not labels:
        raise typer.BadParameter(f"{path} is empty: write the name of one class on each line", param_hint="--labels")
    return labels


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
    if len(sides) > 2 or not all(side.isdecimal() and len(side) < 10 and int(side) > 0 for side in sides):
        raise typer.BadParameter(f"{text!r} is not a height and width such as 224x224 or 224", param_hint="--size")
    return int(sides[0]), int(sides[-1])
