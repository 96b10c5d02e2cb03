"""Write a report from a shell: what `onnxfeat report` does."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onnxfeat.command_steps import planned, proven, still_pictures
from onnxfeat.drawing_options import Colormap, DeadOnes, Normalize, Ordered, Over, Percentiles, Top, style_of
from onnxfeat.errors import OnnxfeatError, OutputError
from onnxfeat.files import refuse_existing
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
from onnxfeat.terminal import errors_told, print_json, print_line, progress, report_summary, say
from onnxfeat.verdicts import verdict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from onnxfeat.findings import Check

_OF_VIDEO = "see its frames with `onnxfeat draw --animate`"
_OF_FRAMES = "of several frames the first is shown, `onnxfeat draw --animate` draws all"
_MOST_MAPS = "1GiB"


def report(
    model: Model,
    images: Images,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FILE.html", help="The page.", readable=False, show_default=False),
    ],
    layers: Layers = None,
    provider: Runner = "auto",
    inputs: Inputs = None,
    max_bytes: MaxBytes = _MOST_MAPS,
    page_size: Annotated[
        str,
        typer.Option(
            metavar="SIZE",
            help="Bytes that the page may take for each picture; of larger maps it shows means of blocks of cells.",
        ),
    ] = "48MB",
    check_too: Annotated[
        bool, typer.Option("--check/--no-check", help="Prove on the first picture that watching changes nothing.")
    ] = True,
    normalize: Normalize = None,
    scale_over: Over = None,
    percentiles: Percentiles = None,
    colormap: Colormap = None,
    order: Ordered = None,
    top: Top = None,
    dead: DeadOnes = None,
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
    """Write one HTML file in which every layer's channels can be explored, for one picture or many.

    It needs no network and no server, and keeps the values themselves, to 252 levels a channel. Colors, channels and
    order say what it shows at first; the page can change them. Exit code 1 when the check finds that watching changes
    the model; the page is written all the same, and says so.
    """
    with errors_told(debug):
        logging.getLogger("onnxfeat").setLevel(logging.ERROR)  # the provider is told below, once
        from onnxfeat.running.extractor import FeatureExtractor
        from onnxfeat.running.folders import picture_paths
        from onnxfeat.running.planning import budget_of

        style = style_of(
            bare=False,
            channels=None,
            percentiles=percentiles,
            normalize=normalize,
            scale_over=scale_over,
            colormap=colormap,
            order=order,
            top=top,
            dead=dead,
        )
        refuse_existing(output, overwrite)  # before the work, which may take minutes
        most = budget_of(page_size)
        pictures = still_pictures(picture_paths(images), quiet=quiet, of_video=_OF_VIDEO, of_frames=_OF_FRAMES)
        _refuse_to_replace(output, (model, *pictures))
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
        plan = planned(extractor, pictures, quiet=quiet)
        found = _checked(model, pictures[0], quiet=quiet, settings=settings) if check_too else None
        unchecked = f"could not be checked: {found}" if isinstance(found, OnnxfeatError) else None
        check = None if isinstance(found, OnnxfeatError) else found
        from onnxfeat.report.pages import write_report

        with progress(quiet, "drawing", len(pictures) * sum(map(len, plan.passes))) as advance:
            record = write_report(
                extractor.stream(pictures),
                output,
                style=style,
                check=check,
                max_bytes=most,
                overwrite=overwrite,
                progress=lambda _: advance(),
                facts=_facts(model, pictures, settings, unchecked),
            )
        for line in (*extractor.hidden, *report_summary(record), *filter(None, [unchecked])):
            say(quiet, line)
        for line in () if check is None else verdict(check):
            say(quiet, line)
        if as_json:
            print_json(record)
        else:
            print_line(str(output))
        if check is not None and not check.passed:
            raise typer.Exit(1)


def _refuse_to_replace(output: Path, sources: Sequence[Path]) -> None:
    """Raise an `OutputError` if the page would take the place of what it is made from."""
    for path in sources:
        if output.exists() and path.exists() and output.samefile(path):
            raise OutputError(f"{output} is what the page is made from: give the page a name of its own")


def _checked(model: Path, picture: Path, *, quiet: bool, settings: Mapping[str, Any]) -> Check | OnnxfeatError:
    """Return what the check finds, or why it could not be made: the maps can be shown all the same."""
    try:
        return proven(model, picture, quiet=quiet, settings=settings)
    except OnnxfeatError as error:
        return error


def _facts(model: Path, pictures: Sequence[Path], settings: Mapping[str, Any], unchecked: str | None) -> dict[str, Any]:
    """Return what only the command line knows, for the lines that repeat a layer (see `report.repetition`)."""
    inputs = {
        name: str(value) if isinstance(value, Path) else value for name, value in (settings["inputs"] or {}).items()
    }
    return {
        "model_path": str(model),
        "pictures": [str(path) for path in pictures],
        **({"inputs": inputs} if inputs else {}),
        **({"max_bytes": settings["max_bytes"]} if settings["max_bytes"] != _MOST_MAPS else {}),
        **({"unchecked": unchecked} if unchecked else {}),
    }
