"""Write the maps of each layer as one PNG file, and all that is needed to read and repeat them as `run.json`."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from onnxfeat import __version__
from onnxfeat.drawing.arrangements import arrange, description, why_not_drawable
from onnxfeat.drawing.colormaps import color_table
from onnxfeat.drawing.pictures import LEVELS_PER_DEVIATION, MAX_BELT, MEAN_LEVEL, ChannelStatistics
from onnxfeat.errors import PictureError
from onnxfeat.files import refuse_existing_in, whole_folder
from onnxfeat.records import FeatureMap, Features

SCHEMA_VERSION = 1
SCALE = f"zscore per channel: level {MEAN_LEVEL} = mean, {LEVELS_PER_DEVIATION} levels = 1 standard deviation"

_RUN = "run.json"

# Level 1 of zlib: a belt of noise shrinks nearly as much as at level 6, in a third of the time.
_COMPRESSION = 1

_LONGEST = 120  # bytes of a name of a layer or picture in a file name; file systems end at 255
_LONGEST_TITLE = 1000  # characters
_REASONS = 5  # that an error tells at most
# Windows takes these for devices, whatever follows a dot (https://learn.microsoft.com/windows/win32/fileio/naming-a-file).
_DEVICES = {
    "con",
    "prn",
    "aux",
    "nul",
    *(f"{port}{digit}" for port in ("com", "lpt") for digit in "0123456789\u00b9\u00b2\u00b3"),
}


@dataclass(slots=True, kw_only=True)
class _Sheet:
    """What has been drawn of one picture.

    Attributes:
        picture: Its name.
        preprocessed: Whether it was taken as it is.
        source: Model and layers of the run.
        folder: Where its files are until all names are known.
        layers: Layer name to number of its file and entry in run.json.
    """

    picture: str
    preprocessed: bool
    source: tuple[str, tuple[str, ...]]
    folder: Path
    layers: dict[str, tuple[int, dict[str, Any]]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        layers = [entry for _, entry in sorted(self.layers.values(), key=lambda numbered: numbered[0])]
        return {"picture": self.picture, "preprocessed": self.preprocessed, "layers": layers}


Sheets = dict[tuple[int, int], _Sheet]
"""Number of the run and position of the picture in it, to what has been drawn of it."""


def save_pictures(
    features: Features | Iterable[Features],
    folder: str | Path,
    *,
    colormap: str = "viridis",
    max_belt: int = MAX_BELT,
    overwrite: bool = False,
    progress: Callable[[str], None] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Draw every layer as a PNG file and write `run.json`; return what that holds.

    Each file is named `NN-<layer>.png`, NN being the layer's position in the run, and shows the channels of one layer
    side by side (a belt), or in rows and columns (a grid) if the belt were wider than `max_belt`; maps with one or
    three spatial axes and tokens as `arrangements.arrange` says. The files are palette PNGs: their pixel values are the
    gray levels that `belt` gives, their palette is the colormap. With several pictures there is a folder for each.
    All files are written, or none. Layers of which there is no map, or an empty one, are listed as `left_out` with the
    reason.

    Args:
        features: The maps of one run; or an iterable of runs, or of parts of them as `FeatureExtractor.stream` gives,
            in any order. They are drawn one after the other as they come, so that only one is in memory.
        folder: Where to write; made if missing.
        colormap: `viridis`, `magma`, `cividis` or `gray`.
        max_belt: Largest width of a belt or strip in pixels.
        overwrite: Whether existing files of these names may be replaced.
        progress: Called with a file's name after it was written.
        facts: More entries for `run.json`, as JSON data.

    Raises:
        PictureError: There is nothing to draw, or the colormap is unknown.
        OutputError: A file exists or can't be written.

    Example:
        >>> import tempfile
        >>> from onnxfeat import FeatureExtractor
        >>> extractor = FeatureExtractor("models/shapes_reference_layers.onnx", provider="cpu")
        >>> run = save_pictures(extractor("models/pictures/chelsea.png"), tempfile.mkdtemp())
        >>> run["pictures"][0]["layers"][0]["file"]
        '01-conv2d.png'
    """
    palette = color_table(colormap).tobytes()
    runs = [features] if isinstance(features, Features) else features
    record: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    sheets: Sheets = {}
    with whole_folder(Path(folder), overwrite=overwrite) as scratch:
        refuse_existing_in(Path(folder), Path(_RUN), overwrite)  # before the work, which may take minutes
        for run in runs:
            record = record or _run_record(run, colormap)
            left_out |= run.left_out
            left_out |= _draw_run(run, _sheets_of(run, sheets, scratch), palette, max_belt, progress)
            del run  # its maps, before those of the next part are computed
        ordered = [sheets[position] for position in sorted(sheets)]
        _refuse_nothing(ordered, left_out)
        record.update(facts or {})
        record["left_out"] = left_out
        record["pictures"] = _arrange_files(scratch, ordered)
        text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False)
        # Bytes of a file name that are no UTF-8 are lone surrogates in Python, escapes such as \udcff in JSON.
        (scratch / _RUN).write_bytes(f"{text}\n".encode(errors="backslashreplace"))
    return record


def _run_record(run: Features, colormap: str) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "model": {"file": run.model, "sha256": run.sha256},
        "provider": run.provider.to_json(),
        "preprocessing": {**run.preprocessing.to_json(), "source": run.preprocessing_source},
        "normalization": SCALE,
        "colormap": colormap,
        "versions": {"onnxfeat": __version__, "numpy": np.__version__, "pillow": PIL.__version__},
    }


def _sheets_of(run: Features, sheets: Sheets, scratch: Path) -> list[_Sheet]:
    """Return the sheets of the pictures of a run or of a part of one; make those that are new.

    A part belongs to the run before it if it is of the same model and layers, and its pictures are new or lack its
    layers.
    """
    source = (run.sha256, run.layers)
    number = 0
    if sheets:
        number, _ = latest = next(reversed(sheets))
        before = [sheets.get((number, run.first + index)) for index in range(len(run.pictures))]
        is_part = bool(run.layers) and sheets[latest].source == source
        for sheet, picture in zip(before, run.pictures, strict=True):
            is_part &= sheet is None or (sheet.picture == picture and not sheet.layers.keys() & run.maps.keys())
        number += not is_part
    for index, (picture, preprocessed) in enumerate(zip(run.pictures, run.preprocessed, strict=True)):
        if (number, run.first + index) not in sheets:
            # The space keeps the folder apart from any final name.
            place = scratch / f"picture {len(sheets)}"
            sheets[number, run.first + index] = _Sheet(
                picture=picture, preprocessed=preprocessed, source=source, folder=place
            )
    return [sheets[number, run.first + index] for index in range(len(run.pictures))]


def _draw_run(
    run: Features,
    sheets: list[_Sheet],
    palette: bytes,
    max_belt: int,
    progress: Callable[[str], None] | None,
) -> dict[str, str]:
    """Write the pictures of a run or a part of one; return the layers that can't be drawn, with the reason."""
    reasons = {name: why_not_drawable(feature_map) for name, feature_map in run.items()}
    left_out = {name: reason for name, reason in reasons.items() if reason}
    files = _file_names(run)
    for index, sheet in enumerate(sheets):
        if len(left_out) < len(run):
            sheet.folder.mkdir(exist_ok=True)
        for name in (name for name in run if name not in left_out):
            number, file = files[name]
            facts = _draw(run[name], index, sheet.folder / file, palette, max_belt)
            sheet.layers[name] = (number, {"layer": name, "file": file, **facts})
            if progress is not None:
                progress(file)
    return left_out


def _draw(feature_map: FeatureMap, index: int, path: Path, palette: bytes, max_belt: int) -> dict[str, Any]:
    """Write the picture of one layer; return what run.json says of it."""
    arrangement = arrange(feature_map, index, max_belt=max_belt)
    facts = {**arrangement.facts, **_scale_facts(arrangement.statistics)}
    if feature_map.saturated is not None:
        facts["saturated"] = round(feature_map.saturated, 6)
    _write_png(arrangement.levels, path, palette, feature_map.name, description(facts))
    return facts


def _refuse_nothing(sheets: list[_Sheet], left_out: Mapping[str, str]) -> None:
    """Raise a `PictureError` if nothing was drawn, or nothing of a picture and nobody said why."""
    drawn = [bool(sheet.layers) for sheet in sheets]
    if any(drawn) and (all(drawn) or left_out):
        return
    if left_out:
        reasons = "; ".join(f"{name!r}: {reason}" for name, reason in list(left_out.items())[:_REASONS])
        more = f"; and {len(left_out) - _REASONS} more" if len(left_out) > _REASONS else ""
        raise PictureError(f"none of the {len(left_out)} layers can be drawn ({reasons}{more}): choose other layers")
    raise PictureError("there is no map to draw: pass the features of one or more pictures and layers")


def _scale_facts(found: ChannelStatistics) -> dict[str, Any]:
    """Return what turns gray levels back into the map's own units."""
    return {
        "constant_channels": [int(c) for c in np.nonzero(found.constant[0])[0]],
        "not_finite_values": int(found.not_finite.sum()),
        "mean": _rounded(found.mean[0]),
        "deviation": _rounded(found.deviation[0]),
    }


def _rounded(numbers: NDArray[np.float32]) -> list[float]:
    return [float(f"{number:.6g}") for number in numbers]


def _write_png(levels: NDArray[np.uint8], path: Path, palette: bytes, layer: str, shown: str) -> None:
    image = Image.fromarray(levels)
    image.putpalette(palette)
    notes = PngInfo()
    notes.add_itxt("Title", _printable(layer))
    notes.add_itxt("Description", f"{shown}; {SCALE}")
    notes.add_itxt("Software", "onnxfeat")
    image.save(path, format="PNG", compress_level=_COMPRESSION, pnginfo=notes)


def _printable(name: str) -> str:
    """Return a name without what a PNG text may not hold; run.json has it whole."""
    cut = name if len(name) <= _LONGEST_TITLE else f"{name[: _LONGEST_TITLE - 1]}\u2026"
    return re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", "\ufffd", cut)


def _file_names(run: Features) -> dict[str, tuple[int, str]]:
    """Return layer name to its number in the run and `NN-<layer>.png`, safe on every file system.

    File systems end a name at 255 bytes; letters of any script stay, what Windows or a shell could stumble over goes.
    """
    layers = list(dict.fromkeys((*run.layers, *run)))
    digits = max(2, len(str(len(layers))))
    return {
        layer: (number, f"{number:0{digits}}-{_safe(layer)}.png")
        for number, layer in enumerate(layers, start=1)
        if layer in run.maps
    }


def _safe(name: str) -> str:
    cleaned = re.sub(r"[^\w.#\-]+", "_", name).strip(".") or "layer"
    return cleaned.encode()[:_LONGEST].decode(errors="ignore")


def _arrange_files(scratch: Path, sheets: list[_Sheet]) -> list[dict[str, Any]]:
    """Give the folders their final names, the files of a single picture go to the top; return run.json's entries."""
    entries = [sheet.to_json() for sheet in sheets]
    if len(sheets) == 1:
        for file in sheets[0].folder.iterdir():
            file.rename(scratch / file.name)
        sheets[0].folder.rmdir()
        return entries
    for sheet, entry, folder in zip(sheets, entries, _folder_names(sheets), strict=True):
        if sheet.layers:  # else there is no folder
            sheet.folder.rename(scratch / folder)
            entry["folder"] = folder
        for layer in entry["layers"]:
            layer["file"] = f"{folder}/{layer['file']}"
    return entries


def _folder_names(sheets: list[_Sheet]) -> list[str]:
    """Return a name for the folder of each picture, safe and told apart on every file system."""
    taken, last = {_RUN}, Counter[str]()
    folders = []
    for sheet in sheets:
        stem = _safe(Path(sheet.picture).stem)
        if stem.partition(".")[0].lower() in _DEVICES or stem.startswith("-"):  # or it reads as an option
            stem = f"_{stem}"
        folder, key = stem, stem.lower()
        while folder.lower() in taken:
            last[key] += 1
            folder = f"{stem}_{last[key] + 1}"
        taken.add(folder.lower())
        folders.append(folder)
    return folders
