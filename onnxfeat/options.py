"""Say what the commands take: their arguments and options, and how the texts of these are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from onnxfeat.preprocessing import ColorOrder, Interpolation

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


def changed_fields(
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
