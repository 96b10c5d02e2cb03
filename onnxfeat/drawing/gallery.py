"""Write the maps of each layer as one picture file, and all that is needed to read and repeat them as `run.json`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from onnxfeat.drawing.captions import description
from onnxfeat.drawing.colormaps import color_table
from onnxfeat.drawing.file_names import RUN_FILE, folder_names, layer_files
from onnxfeat.drawing.legends import scale_note
from onnxfeat.drawing.overlays import why_not_laid
from onnxfeat.drawing.painting import paint, paint_overlay
from onnxfeat.drawing.picture_numbers import PictureNumber, PictureNumbers
from onnxfeat.drawing.sharing import ALONE, Shared, refuse_iterator, shared_by_layer
from onnxfeat.drawing.sheets import Row, paint_sheet, refuse_large, row_of
from onnxfeat.drawing.styles import Style, styled
from onnxfeat.drawing.subjects import why_not_drawable
from onnxfeat.drawing.threads import in_threads
from onnxfeat.drawing.writing import ArrayFormat, PictureFormat, append_array, run_record, run_text, write_picture
from onnxfeat.errors import PictureError, quote
from onnxfeat.files import refuse_existing_in, whole_folder
from onnxfeat.picture_files import digest_of
from onnxfeat.records import FeatureMap, Features

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from onnxfeat.drawing.styles import StyleChoices

_REASONS = 5  # that an error tells at most
_ARRAYS = "maps.npz"


@dataclass(slots=True, kw_only=True)
class _Picture:
    """What has been drawn of one picture.

    Attributes:
        position: How many were before it.
        name: Its name.
        preprocessed: Whether it was taken as it is.
        file: Path and SHA-256 of its file, where it came from one.
        folder: Where its files are until all names are known.
        layers: Layer name to number of its file and entry in run.json.
    """

    position: int
    name: str
    preprocessed: bool
    file: Mapping[str, str]
    folder: Path
    layers: dict[str, tuple[int, dict[str, Any]]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        layers = [entry for _, entry in sorted(self.layers.values(), key=lambda numbered: numbered[0])]
        return {"picture": self.name, **self.file, "preprocessed": self.preprocessed, "layers": layers}


_Pictures = dict[PictureNumber, _Picture]
"""Number of a picture to what has been drawn of it."""


def save_pictures(
    features: Features | Iterable[Features],
    folder: str | Path,
    *,
    style: Style | None = None,
    format: PictureFormat = "png",  # the word of `--format`
    save_arrays: ArrayFormat | None = None,
    overwrite: bool = False,
    progress: Callable[[str], None] | None = None,
    facts: Mapping[str, Any] | None = None,
    **choices: Unpack[StyleChoices],
) -> dict[str, Any]:
    """Draw every layer as a picture file and write `run.json`; return what that holds.

    Each file is named `NN-<layer>.png`, NN being the layer's position in the run, and shows the channels of one layer
    side by side (a belt), or in rows and columns (a grid) if the belt were wider than `max_belt`; maps with one or
    three spatial axes and tokens as `arrangements.arrange` says. With `arrange="sheet"` there is one file `sheet.png`
    for all layers and pictures; else with several pictures a folder for each. All files are written, or none. Layers of
    which there is no map, or an empty one, are listed as `left_out` with the reason.

    PNG files are palette pictures. With `frame=False` their pixel values are the gray levels that `belt` gives, and
    their palette is the colormap.

    Args:
        features: The maps of one run; or an iterable of runs, or of parts of them as `FeatureExtractor.stream` gives,
            in any order. They are drawn one after the other as they come, so that only one is in memory. With
            `scale_over="batch"` and `reduce="pca"` they pass twice, so that all pictures share scale and components.
        folder: Where to write; made if missing.
        style: How; None is `Style()`.
        format: `png`, `webp` (lossless), `svg` or `pdf`.
        save_arrays: Also write the values, float32 of shape (1, C, *spatial): `npy` for a file for each layer, `npz`
            for one file `maps.npz` for each picture; None for none.
        overwrite: Whether existing files of these names may be replaced.
        progress: Called with a file's name after it was written, and with a layer's after its values were seen.
        facts: More entries for `run.json`, as JSON data.
        **choices: Fields of `Style` that are to be otherwise, such as `normalize="minmax"`.

    Raises:
        PictureError: There is nothing to draw, or a choice is unknown.
        OutputError: A file exists or can't be written.

    Example:
        >>> import tempfile
        >>> from onnxfeat import FeatureExtractor
        >>> extractor = FeatureExtractor("models/shapes_reference_layers.onnx", provider="cpu")
        >>> run = save_pictures(extractor("models/pictures/chelsea.png"), tempfile.mkdtemp(), order="variance", top=4)
        >>> run["pictures"][0]["layers"][0]["file"]
        '01-conv2d.png'
    """
    style = styled(style, choices)
    color_table(style.colors)  # an unknown one is refused before the work
    _check_formats(style, format, save_arrays)
    runs = [features] if isinstance(features, Features) else features
    shared: Mapping[str, Shared] = {}
    record: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    pictures: _Pictures = {}
    numbers = PictureNumbers()
    with whole_folder(Path(folder), overwrite=overwrite) as scratch:
        refuse_existing_in(Path(folder), Path(RUN_FILE), overwrite)  # before the work, which may take minutes
        if not style.in_one_pass:
            refuse_iterator(runs, "what pictures share is found before the first is drawn")
            shared = shared_by_layer(runs, style, progress)
        artist = _Artist(style=style, format=format, save_arrays=save_arrays, shared=shared, progress=progress)
        for run in runs:
            record = record or run_record(run, style, format) | {"arrays": save_arrays}
            left_out |= run.left_out
            left_out |= artist.draw(run, _pictures_of(run, numbers.of(run), pictures, scratch))
            del run  # its maps, before those of the next part are computed
        ordered = [pictures[position] for position in sorted(pictures)]
        _refuse_nothing(ordered, left_out)
        record.update(facts or {})
        record["left_out"] = left_out
        record["pictures"] = _arrange_files(scratch, ordered)
        if style.arrange == "sheet":
            record["sheet"] = artist.write_sheet(scratch, ordered, record)
        (scratch / RUN_FILE).write_bytes(run_text(record))
    return record


def _check_formats(style: Style, picture: str, array: str | None) -> None:
    for name, value, known in (
        ("format", picture, get_args(PictureFormat)),
        ("save_arrays", array, (None, *get_args(ArrayFormat))),
    ):
        if value not in known:
            raise PictureError(f"{name} {value!r} is unknown: choose {quote([x for x in known if x])}")
    if style.arrange == "sheet" and picture in ("svg", "pdf"):
        raise PictureError(f"{picture} is for single layers, and not for a sheet: choose png or webp")


def _pictures_of(run: Features, numbers: Sequence[PictureNumber], pictures: _Pictures, scratch: Path) -> list[_Picture]:
    """Return what was drawn of the pictures of a run or of a part of one; make an entry for those that are new."""
    for index, number in enumerate(numbers):
        if number in pictures:
            continue
        photograph = run.photographs[index] if run.photographs else None
        file = {}
        if isinstance(photograph, str | Path):
            file = {"file": str(photograph), "sha256": digest_of(Path(photograph))}
        pictures[number] = _Picture(
            position=len(pictures),
            name=run.pictures[index],
            preprocessed=run.preprocessed[index],
            file=file,
            # The space keeps the folder apart from any final name.
            folder=scratch / f"picture {len(pictures)}",
        )
    return [pictures[number] for number in numbers]


@dataclass(slots=True, kw_only=True)
class _Artist:
    """Draws layer after layer in one style.

    Attributes:
        style: How.
        format: Format of the pictures.
        save_arrays: Format of the values; None for none.
        shared: Layer name to what its pictures share.
        progress: Called with the name of each file.
        rows: Number and name of the layer, and position of the picture, to a row of the sheet.
        height: Pixels of all rows.
    """

    style: Style
    format: PictureFormat
    save_arrays: ArrayFormat | None
    shared: Mapping[str, Shared]
    progress: Callable[[str], None] | None
    rows: dict[tuple[int, str, int], Row] = field(default_factory=dict)
    height: int = 0

    def draw(self, run: Features, pictures: Sequence[_Picture]) -> dict[str, str]:
        """Write the pictures of a run or a part of one; return the layers that can't be drawn, with the reason."""
        why_not = why_not_laid if self.style.overlay else why_not_drawable
        reasons = {name: why_not(feature_map) for name, feature_map in run.items()}
        left_out = {name: reason for name, reason in reasons.items() if reason}
        files = layer_files(run, self.format)
        drawn = [name for name in run if name not in left_out]
        works = []
        for index, picture in enumerate(pictures):
            if drawn:
                picture.folder.mkdir(exist_ok=True)
            works += [(picture, index, name) for name in drawn]

        def work(place: tuple[_Picture, int, str]) -> tuple[_Picture, int, str, Row | dict[str, Any]]:
            picture, index, name = place
            return *place, self._draw(run, name, index, picture.folder / files[name][1])

        # matplotlib is not made for threads.
        threads = 1 if self.format in ("svg", "pdf") else None
        for picture, index, name, made in in_threads(work, works, threads):
            number, file = files[name]
            if isinstance(made, Row):
                self.rows[number, name, picture.position] = made
                self.height += made.pixels.shape[0]
                refuse_large(len(self.rows), self.height)  # not after all the work
                entry = {"layer": name, **made.facts}
            else:
                entry = {"layer": name, "file": file, **made}
            if self.save_arrays is not None:
                entry["array"] = self._save_array(run[name], index, picture, file)
            picture.layers[name] = (number, entry)
            if self.progress is not None:
                self.progress(file)
        return left_out

    def write_sheet(self, folder: Path, pictures: Sequence[_Picture], record: Mapping[str, Any]) -> str:
        """Write all rows as one picture; return its name."""
        name = f"sheet.{self.format}"
        names = ", ".join(picture.name for picture in pictures)
        title = record["model"]["file"]
        rows = [self.rows[at] for at in sorted(self.rows)]
        if len(pictures) == 1:  # its name is in the title
            rows = [replace(row, picture="") for row in rows]
        drawing = paint_sheet(rows, self.style, title=title, subtitle=names)
        write_picture(
            drawing, folder / name, title=title, description=scale_note(self.style), density=self.style.density
        )
        return name

    def _draw(self, run: Features, name: str, index: int, path: Path) -> Row | dict[str, Any]:
        """Draw one layer for one picture; return what run.json says of it, or its row of the sheet."""
        feature_map, shared, style = run[name], self.shared.get(name, ALONE), self.style
        if style.arrange == "sheet":
            return row_of(feature_map, index, style, shared, picture=run.pictures[index])
        photograph = _photograph_of(run, index) if style.overlay else None
        if self.format in ("svg", "pdf"):
            from onnxfeat.drawing.vector_pages import save_figure  # late: matplotlib takes longer than drawing

            return save_figure(feature_map, index, path, style=style, shared=shared, photograph=photograph)
        if photograph is not None:
            drawing = paint_overlay(feature_map, photograph, index, style=style, shared=shared)
        else:
            drawing = paint(feature_map, index, style=style, shared=shared)
        words = f"{description(drawing.facts)}; {scale_note(style)}"
        write_picture(drawing, path, title=name, description=words, density=style.density)
        return dict(drawing.facts)

    def _save_array(self, feature_map: FeatureMap, index: int, picture: _Picture, file: str) -> str:
        """Write the values of one layer for one picture; return the name of the file."""
        values = feature_map.array[index : index + 1]
        if self.save_arrays == "npz":
            append_array(picture.folder / _ARRAYS, feature_map.name, values)
            return _ARRAYS
        path = (picture.folder / file).with_suffix(".npy")
        np.save(path, values, allow_pickle=False)
        return path.name


def _photograph_of(run: Features, index: int) -> Any:
    photograph = run.photographs[index] if run.photographs else None
    if photograph is None:
        raise PictureError(
            f"{run.pictures[index]} was taken as preprocessed, so there is no photograph to draw over: pass a picture"
        )
    return photograph


def _refuse_nothing(pictures: Sequence[_Picture], left_out: Mapping[str, str]) -> None:
    """Raise a `PictureError` if nothing was drawn, or nothing of a picture and nobody said why."""
    drawn = [bool(picture.layers) for picture in pictures]
    if any(drawn) and (all(drawn) or left_out):
        return
    if left_out:
        reasons = "; ".join(f"{name!r}: {reason}" for name, reason in list(left_out.items())[:_REASONS])
        more = f"; and {len(left_out) - _REASONS} more" if len(left_out) > _REASONS else ""
        raise PictureError(f"none of the {len(left_out)} layers can be drawn ({reasons}{more}): choose other layers")
    raise PictureError("there is no map to draw: pass the features of one or more pictures and layers")


def _arrange_files(scratch: Path, pictures: Sequence[_Picture]) -> list[dict[str, Any]]:
    """Give the folders their final names, the files of a single picture go to the top; return run.json's entries."""
    entries = [picture.to_json() for picture in pictures]
    if len(pictures) == 1:
        for file in pictures[0].folder.iterdir():
            file.rename(scratch / file.name)
        pictures[0].folder.rmdir()
        return entries
    folders = folder_names([picture.name for picture in pictures])
    for picture, entry, folder in zip(pictures, entries, folders, strict=True):
        if any(picture.folder.iterdir()) if picture.layers else False:  # else there is nothing to move
            picture.folder.rename(scratch / folder)
            entry["folder"] = folder
        for layer in entry["layers"]:
            layer.update({key: f"{folder}/{layer[key]}" for key in ("file", "array") if key in layer})
    return entries
