"""Write the maps of a sequence of pictures as one animation of each layer, and all about them as `run.json`."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from onnxfeat.drawing.encoders import Encoder, Format, check_format, encoder
from onnxfeat.drawing.file_names import RUN_FILE, layer_files
from onnxfeat.drawing.painting import paint
from onnxfeat.drawing.sharing import LayerTracker, Shared, refuse_iterator
from onnxfeat.drawing.sheets import paint_sheet, row_of
from onnxfeat.drawing.styles import Style, styled
from onnxfeat.drawing.subjects import why_not_drawable
from onnxfeat.drawing.writing import run_record, run_text
from onnxfeat.errors import PictureError
from onnxfeat.files import refuse_existing_in, whole_folder
from onnxfeat.records import FeatureMap, Features

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from onnxfeat.drawing.styles import StyleChoices

_REASONS = 5  # that an error tells at most
MAX_DURATION = 600_000
"""Most ms that a frame is shown; GIF counts up to 655,350."""

_DURATION = 100.0  # ms that a frame is shown where nobody says


@runtime_checkable
class Timed(Protocol):
    """Runs that know how long each picture is shown, in ms, by its position, once they have passed."""

    durations: Mapping[int, float]


def save_animation(
    runs: Features | Iterable[Features],
    folder: str | Path,
    *,
    format: Format = "gif",
    style: Style | None = None,
    duration: float | None = None,
    loop: bool = True,
    overwrite: bool = False,
    progress: Callable[[str], None] | None = None,
    facts: Mapping[str, Any] | None = None,
    **choices: Unpack[StyleChoices],
) -> dict[str, Any]:
    """Draw every layer as an animation, a frame for each picture, and write `run.json`; return what that holds.

    The files are named `NN-<layer>.gif` (or the other format). A layer has one scale for all frames, whatever
    `style.scale_over` says, so that they compare; its channels keep their places, in an order that is found from all
    frames, and marked as constant is what is so in all of them. Only one run is in memory at a time, and nothing of
    those before it: the runs pass twice, once to find scale and order, once to be drawn. All files are written, or
    none. Layers of which there is no map are listed as `left_out` with the reason.

    Args:
        runs: What gives the maps of one picture after the other anew each time it is iterated, as
            `FeatureExtractor.stream` does; or the maps of one run of several pictures.
        folder: Where to write; made if missing.
        format: `gif` and `webp` have the very pixels, `mp4` (extra `video`) is smaller; see `encoders.encoder`.
        style: How a map becomes a picture; None is `Style()`.
        duration: How long each frame is shown, in ms; None takes what the runs know from their file, else 100.
        loop: Whether viewers begin again after the last frame.
        overwrite: Whether existing files of these names may be replaced.
        progress: Called with a layer's name after each of its maps was measured, and again after it was drawn.
        facts: More entries for `run.json`, as JSON data.
        **choices: Fields of `Style` that are to be otherwise, such as `order="variance"`.

    Raises:
        PictureError: There is nothing to draw, a choice is unknown or not for animations, the maps of a layer differ in
            size, or a format can't hold the frames.
        MissingPackageError: The format is `mp4`, and PyAV is not installed.
        OutputError: A file exists or can't be written.

    Example:
        >>> import tempfile
        >>> from onnxfeat import FeatureExtractor
        >>> extractor = FeatureExtractor("models/shapes_small.onnx", layers="pool_1", provider="cpu")
        >>> stream = extractor.stream(["models/pictures/chelsea.png", "models/pictures/circle.png"])
        >>> run = save_animation(stream, tempfile.mkdtemp(), duration=500)
        >>> run["layers"][0]["file"], run["frames"][1]
        ('01-pool_1.gif', {'picture': 'circle.png', 'duration': 500.0})
    """
    check_format(format)
    style = _for_animations(styled(style, choices))
    runs = [runs] if isinstance(runs, Features) else runs
    refuse_iterator(runs, "an animation needs them twice")
    if duration is not None and not 0 < duration <= MAX_DURATION:
        raise PictureError(
            f"duration is {duration}, ms for each frame: pass a number above 0 and up to {MAX_DURATION:,}, such as 100"
        )
    with whole_folder(Path(folder), overwrite=overwrite) as scratch:
        refuse_existing_in(Path(folder), Path(RUN_FILE), overwrite)  # before the work, which may take minutes
        survey, record, files = _Survey(style), dict[str, Any](), dict[str, str]()
        for run in runs:
            record = record or run_record(run, style, format)
            files |= {name: file for name, (_, file) in layer_files(run, format).items()}
            survey.add(run, progress)
            del run  # its maps, before those of the next part are computed
        films = survey.films()
        known = runs.durations if isinstance(runs, Timed) else {}
        durations = [float(duration or known.get(index, _DURATION)) for index in range(len(survey.pictures))]
        if style.arrange == "sheet":
            files = dict.fromkeys(files, f"sheet.{format}")
            _write_sheet(runs, survey, films, style, scratch / f"sheet.{format}", durations, loop, progress)
        else:
            _write_layers(
                runs, films, style, {name: scratch / files[name] for name in films}, durations, loop, progress
            )
        record |= {
            "loop": loop,
            "frames": [{"picture": name, "duration": ms} for name, ms in zip(survey.pictures, durations, strict=True)],
            "layers": [
                {"layer": name, "file": files[name], "frames": film.frames, **film.facts}
                for name, film in films.items()
            ],
            "left_out": survey.left_out,
            **(facts or {}),
        }
        (scratch / RUN_FILE).write_bytes(run_text(record))
    return record


class _Survey:
    """What a first pass over all runs finds: the layers that can be drawn, and what their frames share.

    Attributes:
        layers: Names of all layers, in their order in the run.
        pictures: Names of all pictures.
        left_out: Name of each layer that can't be drawn, and why.
        is_whole: Whether each run held all layers of its pictures that can be drawn.
    """

    def __init__(self, style: Style) -> None:
        self._style = style
        self._trackers: dict[str, LayerTracker] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._frames: Counter[str] = Counter()
        self._parts: set[frozenset[str]] = set()
        self.layers: tuple[str, ...] = ()
        self.pictures: list[str] = []
        self.left_out: dict[str, str] = {}

    def add(self, run: Features, progress: Callable[[str], None] | None = None) -> None:
        """Take a run or a part of one into account.

        Args:
            run: The maps.
            progress: Called with a layer's name after it was seen.

        Raises:
            PictureError: The maps of a layer differ in size from those before.
        """
        self.layers = tuple(dict.fromkeys((*self.layers, *run.layers, *run)))
        self.left_out |= run.left_out
        for name, feature_map in run.items():
            reason = why_not_drawable(feature_map)
            if reason:
                self.left_out[name] = reason
            else:
                self._refuse_other_shape(feature_map, run.pictures[0])
                self._trackers.setdefault(name, LayerTracker(self._style, frames=True)).add(feature_map)
                self._frames[name] += len(feature_map.array)
            if progress is not None:
                progress(name)
        self._parts.add(frozenset(run))
        if max(self._frames.values(), default=0) > len(self.pictures):  # else they were here in an earlier pass
            self.pictures += run.pictures

    @property
    def is_whole(self) -> bool:
        """Whether each run held all layers of its pictures."""
        return len(self._parts) == 1

    def _refuse_other_shape(self, feature_map: FeatureMap, picture: str) -> None:
        shape = feature_map.shape[1:]
        before = self._shapes.setdefault(feature_map.name, shape)
        if shape != before:
            raise PictureError(
                f"the map of {feature_map.name!r} has shape {shape} for {picture}, {before} for those before, and "
                f"frames share a size: pass pictures of one size, or set the size in the preprocessing"
            )

    def films(self) -> dict[str, _Film]:
        """Return the layers that can be drawn, by name, in their order in the run.

        Raises:
            PictureError: There is none.
        """
        drawn = [name for name in self.layers if name in self._trackers and name not in self.left_out]
        if not drawn:
            reasons = "; ".join(f"{name!r}: {reason}" for name, reason in list(self.left_out.items())[:_REASONS])
            raise PictureError(f"there is no map to draw{f' ({reasons})' if reasons else ''}: choose other layers")
        return {name: _Film(frames=self._frames[name], shared=self._trackers[name].shared()) for name in drawn}


@dataclass(slots=True, kw_only=True, eq=False)
class _Film:
    """A layer that is drawn frame by frame.

    Attributes:
        frames: Number of frames.
        shared: Scale and order of the channels, or their principal components, and what is known of all frames.
        facts: What the first frame shows, as JSON data, once there is one.
    """

    frames: int
    shared: Shared
    facts: Mapping[str, Any] = field(default_factory=dict)


def _for_animations(style: Style) -> Style:
    """Return the style with one scale for all frames."""
    if style.overlay:
        raise PictureError("an overlay on the photograph can't be animated: leave it out, or draw single pictures")
    return replace(style, scale_over="batch")


def _write_layers(
    runs: Iterable[Features],
    films: Mapping[str, _Film],
    style: Style,
    paths: Mapping[str, Path],
    durations: Sequence[float],
    loop: bool,
    progress: Callable[[str], None] | None,
) -> None:
    """Draw all frames, a file for each layer, which is open from its first frame to its last."""
    done = dict.fromkeys(films, 0)
    files: dict[str, tuple[contextlib.ExitStack, Encoder]] = {}
    with contextlib.ExitStack() as all_files:
        for run in runs:
            for name in (name for name in run if name in films):
                if name not in files:
                    closing = all_files.enter_context(contextlib.ExitStack())
                    files[name] = closing, closing.enter_context(encoder(paths[name], loop=loop))
                for index in range(len(run[name].array)):
                    drawing = paint(run[name], index, style=style, shared=films[name].shared)
                    films[name].facts = films[name].facts or drawing.facts
                    files[name][1].add(drawing.image(), durations[done[name]])
                    done[name] += 1
                if done[name] == films[name].frames:
                    files.pop(name)[0].close()
                if progress is not None:
                    progress(name)
            del run


def _write_sheet(
    runs: Iterable[Features],
    survey: _Survey,
    films: Mapping[str, _Film],
    style: Style,
    path: Path,
    durations: Sequence[float],
    loop: bool,
    progress: Callable[[str], None] | None,
) -> None:
    """Draw all frames, all layers on one sheet."""
    if not survey.is_whole:
        raise PictureError(
            "the maps of a picture come in parts, as they do not fit max_bytes at once, and a sheet shows them "
            "together: raise max_bytes, choose fewer layers, or arrange as belt or grid"
        )
    done = 0
    with encoder(path, loop=loop) as file:
        for run in runs:
            for index in range(len(run.pictures)):
                rows = [row_of(run[name], index, style, film.shared) for name, film in films.items()]
                for film, row in zip(films.values(), rows, strict=True):
                    film.facts = film.facts or row.facts
                file.add(paint_sheet(rows, style, title=run.model).image(), durations[done])
                done += 1
            for name in films:
                if progress is not None:
                    progress(name)
            del run
