"""Draw from a shell: what `onnxfeat draw` does."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from onnxfeat.command_steps import planned, proven, still_pictures
from onnxfeat.drawing_options import (
    Animate,
    Arranged,
    Bare,
    Channels,
    Colormap,
    DeadOnes,
    Duration,
    Every,
    Format,
    HiDpi,
    Limit,
    MaxBelt,
    Normalize,
    Ordered,
    Over,
    Overlay,
    Percentiles,
    Reduce,
    SaveArrays,
    Top,
    Zoom,
    style_of,
)
from onnxfeat.files import sha256_of
from onnxfeat.options import (
    AsJson,
    Color,
    Debug,
    Fill,
    Images,
    Inputs,
    Layers,
    MaxBytes,
    Mean,
    Model,
    Overwrite,
    Preprocess,
    Quiet,
    Resampler,
    Resize,
    Runner,
    Scale,
    Shape,
    Size,
    Std,
    changed_fields,
    given_inputs,
)
from onnxfeat.terminal import errors_told, print_json, print_line, progress, say, summary
from onnxfeat.verdicts import verdict

if TYPE_CHECKING:
    from onnxfeat.drawing.styles import Style
    from onnxfeat.running.extractor import FeatureExtractor
    from onnxfeat.running.frames import Frames


def draw(
    model: Model,
    images: Images,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FOLDER", help="Where to write.", readable=False, show_default=False),
    ],
    layers: Layers = None,
    provider: Runner = "auto",
    inputs: Inputs = None,
    max_bytes: MaxBytes = "1GiB",
    check_too: Annotated[
        bool, typer.Option("--check", help="Prove on the first picture that watching changes nothing (see check).")
    ] = False,
    normalize: Normalize = None,
    scale_over: Over = None,
    percentiles: Percentiles = None,
    colormap: Colormap = None,
    arrange: Arranged = None,
    order: Ordered = None,
    top: Top = None,
    channels: Channels = None,
    dead: DeadOnes = None,
    reduce: Reduce = None,
    overlay: Overlay = False,
    zoom: Zoom = None,
    hidpi: HiDpi = False,
    bare: Bare = False,
    max_belt: MaxBelt = None,
    format_: Format = None,
    save_arrays: SaveArrays = None,
    animate: Animate = False,
    duration: Duration = None,
    every: Every = None,
    limit: Limit = None,
    preprocess: Preprocess = None,
    size: Size = None,
    scale: Scale = None,
    mean: Mean = None,
    std: Std = None,
    color: Color = None,
    interpolation: Resize = None,
    aspect: Shape = None,
    resampling: Resampler = None,
    fill: Fill = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Draw every layer's channels for one picture or many: one picture file a layer, and run.json.

    Pictures are prepared as the model's metadata say, else resized to the input, RGB, times 1/255 (unless the model's
    first nodes scale them). With several there is a folder for each, or with --arrange sheet one sheet for all.
    """
    with errors_told(debug):
        logging.getLogger("onnxfeat").setLevel(logging.ERROR)  # the provider is told below, once
        from onnxfeat.running.extractor import FeatureExtractor

        style = style_of(
            bare=bare,
            channels=channels,
            percentiles=percentiles,
            normalize=normalize,
            scale_over=scale_over,
            arrange=arrange,
            order=order,
            top=top,
            dead=dead,
            reduce=reduce,
            overlay=overlay,
            colormap=colormap,
            zoom=zoom,
            hidpi=hidpi,
            max_belt=max_belt,
        )
        _refuse_contradictions(animate=animate, format_=format_, save_arrays=save_arrays)
        _refuse_of_motion(animate=animate, duration=duration, every=every, limit=limit, scale_over=scale_over)
        if animate and overlay:
            raise typer.BadParameter("an overlay does not move: leave out --animate", param_hint="--overlay")
        if animate and reduce == "pca" and format_ in (None, "gif"):
            if format_ == "gif":
                raise typer.BadParameter("pca has more colors than a GIF can: webp or mp4", param_hint="--format")
            format_ = "webp"
        pictures = _pictures(images, animate=animate, every=every, limit=limit, quiet=quiet)
        changes = changed_fields(
            preset=preprocess,
            size=size,
            scale=scale,
            mean=mean,
            std=std,
            color=color,
            interpolation=interpolation,
            aspect=aspect,
            resampling=resampling,
            fill=fill,
        )
        settings: dict[str, Any] = {
            "layers": layers,
            "provider": provider,
            "preprocessing": changes,
            "inputs": given_inputs(inputs),
            "max_bytes": max_bytes,
        }
        extractor = FeatureExtractor(model, **settings)
        checked = proven(model, _first(pictures), quiet=quiet, settings=settings) if check_too else None
        plan = planned(extractor, pictures, quiet=quiet)
        facts: dict[str, Any] = {
            "arguments": sys.argv[1:],
            "folder": str(Path.cwd()),
            **({} if checked is None else {"check": checked.to_json()}),
        }
        if animate:  # else each picture has them
            facts["sources"] = [{"file": str(path), "sha256": sha256_of(path)} for path in _paths(pictures)]
        passes = 2 if animate or not style.in_one_pass else 1
        with progress(quiet, "drawing", _steps(plan.passes, pictures, passes)) as advance:
            record = _write(
                extractor,
                pictures,
                output,
                style=style,
                format_=format_,
                save_arrays=save_arrays,
                animate=animate,
                duration=duration,
                overwrite=overwrite,
                progress=lambda _: advance(),
                facts=facts,
            )
        for line in (*extractor.hidden, *summary(record)):
            say(quiet, line)
        if checked is not None:
            for line in verdict(checked):
                say(quiet, line)
        if as_json:
            print_json(record)
        else:
            for file in _files(record):
                print_line(str(output / file))
        if checked is not None and not checked.passed:
            raise typer.Exit(1)


def _refuse_contradictions(*, animate: bool, format_: str | None, save_arrays: str | None) -> None:
    """Refuse options that do not go together, before anything is read."""
    if animate and format_ in ("png", "svg", "pdf"):
        raise typer.BadParameter(f"{format_} does not move: gif, webp or mp4", param_hint="--format")
    if not animate and format_ in ("gif", "mp4"):
        raise typer.BadParameter(f"{format_} is for animations: add --animate", param_hint="--format")
    if animate and save_arrays:
        raise typer.BadParameter("arrays are saved of single pictures: leave out --animate", param_hint="--save-arrays")


def _refuse_of_motion(
    *, animate: bool, duration: float | None, every: int | None, limit: int | None, scale_over: str | None
) -> None:
    """Refuse options of animations where there is none, and others that they can't have."""
    if duration is not None:
        from onnxfeat.drawing.animations import MAX_DURATION

        if not 0 < duration <= MAX_DURATION:
            raise typer.BadParameter(
                f"{duration:g} is not a time in ms, above 0 and up to {MAX_DURATION:,}", param_hint="--duration"
            )
    for name, value in (("--duration", duration), ("--every", every), ("--limit", limit)):
        if value is not None and not animate:
            raise typer.BadParameter("only animations have frames: add --animate", param_hint=name)
    if animate and scale_over not in (None, "batch"):
        raise typer.BadParameter("frames share one scale, so that they compare: batch", param_hint="--scale-over")


def _pictures(
    images: Sequence[Path], *, animate: bool, every: int | None, limit: int | None, quiet: bool
) -> list[Path | Frames]:
    """Return the pictures that the arguments stand for; with `animate`, frames of the files that have some."""
    from onnxfeat.running.folders import picture_paths

    paths = picture_paths(images, videos=animate)
    if not animate:
        of_frames = "of several frames the first is drawn, --animate draws all"
        return list(
            still_pictures(paths, quiet=quiet, of_video="add --animate to draw its frames", of_frames=of_frames)
        )
    from onnxfeat.running.frames import Frames

    return [path if path.suffix.lower() == ".npy" else Frames(path, every=every or 1, limit=limit) for path in paths]


def _paths(pictures: Sequence[Path | Frames]) -> list[Path]:
    return [picture if isinstance(picture, Path) else picture.path for picture in pictures]


def _first(pictures: Sequence[Path | Frames]) -> Any:
    first = pictures[0]
    return first if isinstance(first, Path) else next(iter(first))


def _steps(layers: Sequence[Sequence[str]], pictures: Sequence[Path | Frames], passes: int) -> int | None:
    """Return how many layers will be seen or drawn; None where a file does not tell the number of its frames."""
    counts = [1 if isinstance(picture, Path) else picture.count for picture in pictures]
    return None if None in counts else sum(cast(list[int], counts)) * sum(map(len, layers)) * passes


def _write(
    extractor: FeatureExtractor,
    pictures: Sequence[Path | Frames],
    folder: Path,
    *,
    style: Style,
    format_: str | None,
    save_arrays: Any,
    animate: bool,
    duration: float | None,
    overwrite: bool,
    progress: Callable[[str], None],
    facts: dict[str, Any],
) -> dict[str, Any]:
    """Write pictures or animations; return what run.json holds."""
    runs = extractor.stream(pictures)
    if animate:
        from onnxfeat.drawing.animations import save_animation

        return save_animation(
            runs,
            folder,
            format=cast(Any, format_ or "gif"),
            style=style,
            duration=duration,
            overwrite=overwrite,
            progress=progress,
            facts=facts,
        )
    from onnxfeat.drawing.gallery import save_pictures

    return save_pictures(
        runs,
        folder,
        style=style,
        format=cast(Any, format_ or "png"),
        save_arrays=save_arrays,
        overwrite=overwrite,
        progress=progress,
        facts=facts,
    )


def _files(record: dict[str, Any]) -> list[str]:
    """Return the files of a run, each once."""
    layers = [layer for picture in record.get("pictures", [record]) for layer in picture["layers"]]
    names = [layer[key] for layer in layers for key in ("file", "array") if key in layer]
    return list(dict.fromkeys([*([record["sheet"]] if "sheet" in record else []), *names]))
