"""Say what `onnxfeat draw` takes of how maps become pictures, and how the texts of these options are read."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from onnxfeat.drawing.colormaps import color_table
from onnxfeat.drawing.styles import Arrange, Dead, Normalization, Order, Reduction, ScaleOver, Style, styled
from onnxfeat.errors import PictureError

FileFormat = Literal["png", "webp", "svg", "pdf", "gif", "mp4"]

_MOST_CHANNELS = 1 << 20  # of a range: what is more is a slip of the keys, and would fill the memory

_LOOK, _CHANNELS, _FILES, _MOTION = "Colors", "Channels", "Files", "Motion"

Normalize = Annotated[
    Normalization | None,
    typer.Option(
        help="What the colors stand for: mean and deviation (zscore, the default), least to greatest value (minmax), "
        "the same without outliers (percentile), 0 in the middle (symmetric), small values spread (log).",
        rich_help_panel=_LOOK,
        show_default=False,
    ),
]
Over = Annotated[
    ScaleOver | None,
    typer.Option(
        "--scale-over",
        help="What shares a scale: each channel of each picture (the default), each layer of each picture, or a layer "
        "in all pictures, so that they compare.",
        rich_help_panel=_LOOK,
        show_default=False,
    ),
]
Percentiles = Annotated[
    str | None,
    typer.Option(
        metavar="LOW,HIGH", help="Ends of percentile; default 1,99.", rich_help_panel=_LOOK, show_default=False
    ),
]
Colormap = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="viridis, magma, cividis, gray, coolwarm, or any of matplotlib's; default: viridis, for symmetric "
        "coolwarm.",
        rich_help_panel=_LOOK,
        show_default=False,
    ),
]
Arranged = Annotated[
    Arrange | None,
    typer.Option(
        "--arrange",
        help="All channels in a row (belt), in rows and columns (grid), one large (channel), or all layers on one "
        "picture (sheet); default: a belt, a grid where that were wider than 4096 pixels.",
        rich_help_panel=_CHANNELS,
        show_default=False,
    ),
]
Ordered = Annotated[
    Order | None,
    typer.Option(
        "--order",
        help="As the layer has them (index), by mean absolute value (magnitude), by variance, or so that neighbors "
        "look alike (similarity).",
        rich_help_panel=_CHANNELS,
        show_default=False,
    ),
]
Top = Annotated[
    int | None,
    typer.Option(metavar="NUMBER", help="Only the first of that order.", rich_help_panel=_CHANNELS, show_default=False),
]
Channels = Annotated[
    str | None,
    typer.Option(
        metavar="LIST", help="Only these, such as 7 or 0,3,8:16.", rich_help_panel=_CHANNELS, show_default=False
    ),
]
DeadOnes = Annotated[
    Dead | None,
    typer.Option(
        "--dead",
        help="Channels that are 0 everywhere or constant: keep their place, come last, or omit. Counted always.",
        rich_help_panel=_CHANNELS,
        show_default=False,
    ),
]
Reduce = Annotated[
    Reduction | None,
    typer.Option(
        help="One picture of all channels: their mean, max, l2 norm, or principal components as colors (pca).",
        rich_help_panel=_CHANNELS,
        show_default=False,
    ),
]
Overlay = Annotated[
    bool,
    typer.Option(
        "--overlay",
        help="Draw each layer over the photograph, where its cells look: the mean of its channels, or what --reduce or "
        "a single --channels says.",
        rich_help_panel=_CHANNELS,
    ),
]
Zoom = Annotated[
    int | None,
    typer.Option(
        metavar="PIXELS",
        help="Pixels for a cell; default: what fills a screen's width.",
        rich_help_panel=_FILES,
        show_default=False,
    ),
]
HiDpi = Annotated[bool, typer.Option("--hidpi", help="Twice the pixels for everything.", rich_help_panel=_FILES)]
Bare = Annotated[
    bool,
    typer.Option(
        "--bare", help="No title, numbers and scale: the pixel values are the gray levels.", rich_help_panel=_FILES
    ),
]
MaxBelt = Annotated[
    int | None,
    typer.Option(metavar="PIXELS", help="Largest width of a belt.", rich_help_panel=_FILES, show_default=False),
]
Format = Annotated[
    FileFormat | None,
    typer.Option(
        "--format",
        help="png (the default), webp (lossless), svg, pdf; gif (the default there), webp or mp4 with --animate.",
        rich_help_panel=_FILES,
        show_default=False,
    ),
]
SaveArrays = Annotated[
    Literal["npy", "npz"] | None,
    typer.Option(
        help="Also write the values, float32 (1, channels, rows, columns): npy a file for each layer, npz one for each "
        "picture.",
        rich_help_panel=_FILES,
        show_default=False,
    ),
]
Animate = Annotated[
    bool,
    typer.Option(
        "--animate",
        help="Make one animation for each layer: the pictures in their order, and the frames of GIF, WebP and video "
        "files, are its frames, with one scale for all.",
        rich_help_panel=_MOTION,
    ),
]
Duration = Annotated[
    float | None,
    typer.Option(
        metavar="MS", help="How long a frame is shown; default: as in the file, else 100.", rich_help_panel=_MOTION
    ),
]
Every = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="NUMBER",
        help="Take one of so many frames of a file.",
        rich_help_panel=_MOTION,
        show_default=False,
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="NUMBER",
        help="Take so many frames of a file at most.",
        rich_help_panel=_MOTION,
        show_default=False,
    ),
]


def style_of(*, bare: bool, channels: str | None, percentiles: str | None, **choices: Any) -> Style:
    """Return the style that the options ask for; what can't be read is wrong usage."""
    fields = {name: value for name, value in choices.items() if value is not None}
    if channels is not None:
        fields["channels"] = _channels(channels)
    if percentiles is not None and choices.get("normalize") != "percentile":
        raise typer.BadParameter("they are the ends of --normalize percentile", param_hint="--percentiles")
    if percentiles is not None:
        fields["percentiles"] = _percentiles(percentiles)
    try:
        style = styled(Style(frame=not bare), fields)  # type: ignore[arg-type]  # checked by `styled`
        color_table(style.colors)
    except PictureError as error:
        raise typer.BadParameter(str(error)) from error
    return style


def _channels(text: str) -> tuple[int, ...]:
    found: list[int] = []
    for part in text.split(","):
        first, colon, last = part.partition(":")
        try:
            chosen = range(int(first), int(last)) if colon else range(int(part), int(part) + 1)
        except ValueError:
            raise typer.BadParameter(
                f"{part!r} is neither a number nor a range such as 8:16", param_hint="--channels"
            ) from None
        if not 0 < len(chosen) <= _MOST_CHANNELS:
            why = "names no channel" if not chosen else f"names {len(chosen):,} channels, more than a layer has"
            raise typer.BadParameter(f"{part!r} {why}", param_hint="--channels")
        found += chosen
    return tuple(dict.fromkeys(found))


def _percentiles(text: str) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not two numbers such as 1,99", param_hint="--percentiles") from None
    return low, high
