"""Write the maps of each layer as one PNG file, and all that is needed to read and repeat them as `run.json`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from onnxfeat import __version__
from onnxfeat.colormaps import color_table
from onnxfeat.errors import PictureError
from onnxfeat.files import refuse_existing_in, whole_folder
from onnxfeat.pictures import (
    LEVELS_PER_DEVIATION,
    MAX_BELT,
    MEAN_LEVEL,
    ChannelStatistics,
    belt,
    drawable,
    fits_belt,
    grid,
    grid_columns,
    levels_and_statistics,
)
from onnxfeat.records import FeatureMap, Features

SCHEMA_VERSION = 1
SCALE = f"zscore per channel: level {MEAN_LEVEL} = mean, {LEVELS_PER_DEVIATION} levels = 1 standard deviation"

_RUN = "run.json"

# Level 1 of zlib: a belt of noise shrinks nearly as much as at level 6, in a third of the time.
_COMPRESSION = 1


def save_pictures(
    features: Features | Iterable[Features],
    folder: str | Path,
    *,
    colormap: str = "viridis",
    max_belt: int = MAX_BELT,
    overwrite: bool = False,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Draw every layer as a PNG file and write `run.json`; return what that holds.

    Each file is named `NN-<layer>.png` and shows the channels of one layer side by side (a belt), or in rows and
    columns (a grid) if the belt were wider than `max_belt`. The files are palette PNGs: their pixel values are the
    gray levels that `belt` gives, their palette is the colormap. With several pictures there is a folder for each.
    All files are written, or none.

    Args:
        features: The maps of one run; or an iterable of them, drawn one after the other as they come, so that only one
            is in memory.
        folder: Where to write; made if missing.
        colormap: `viridis`, `magma`, `cividis` or `gray`.
        max_belt: Largest width of a belt in pixels.
        overwrite: Whether existing files of these names may be replaced.
        progress: Called with a file's name after it was written.

    Raises:
        PictureError: A map has no two spatial axes, or the colormap is unknown.
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
    pictures: list[dict[str, Any]] = []
    with whole_folder(Path(folder), overwrite=overwrite) as scratch:
        refuse_existing_in(Path(folder), Path(_RUN), overwrite)  # before the work, which may take minutes
        for run in runs:
            record = record or _run_record(run, colormap)
            for index, picture in enumerate(run.pictures):
                pictures.append({"picture": picture, "preprocessed": run.preprocessed[index], "layers": []})
                names = _file_names(list(run))
                for (name, feature_map), file in zip(run.items(), names, strict=True):
                    facts = _draw(feature_map, index, scratch / _unnamed(len(pictures)) / file, palette, max_belt)
                    pictures[-1]["layers"].append({"layer": name, "file": file, **facts})
                    if progress is not None:
                        progress(file)
        if not pictures or not all(picture["layers"] for picture in pictures):
            raise PictureError("there is no map to draw: pass the features of one or more pictures and layers")
        _arrange(scratch, pictures)
        record["pictures"] = pictures
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


def _draw(feature_map: FeatureMap, index: int, path: Path, palette: bytes, max_belt: int) -> dict[str, Any]:
    """Write the picture of one layer; return what run.json says of it."""
    shown = drawable(feature_map)
    one = FeatureMap(layer=shown.layer, array=shown.array[index : index + 1])
    levels, found = levels_and_statistics(one)
    _, channels, height, width = levels.shape
    facts: dict[str, Any] = {"channels": channels, "height": height, "width": width}
    if fits_belt(levels, max_belt):
        tiled = belt(levels)
        facts["arrangement"] = "belt"
    else:
        columns = grid_columns(channels, height, width)
        tiled = grid(levels, columns=columns)
        facts.update(arrangement="grid", columns=columns, gap=1)
    facts.update(_scale_facts(found))
    path.parent.mkdir(exist_ok=True)
    _write_png(tiled, path, palette, feature_map.name, facts)
    return facts


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


def _write_png(tiled: NDArray[np.uint8], path: Path, palette: bytes, layer: str, facts: dict[str, Any]) -> None:
    image = Image.fromarray(tiled)
    image.putpalette(palette)
    notes = PngInfo()
    notes.add_itxt("Title", layer)
    shape = f"{facts['channels']} channels of {facts['height']} x {facts['width']}"
    notes.add_itxt("Description", f"{shape}, {facts['arrangement']}; {SCALE}")
    notes.add_itxt("Software", "onnxfeat")
    image.save(path, format="PNG", compress_level=_COMPRESSION, pnginfo=notes)


def _file_names(layers: list[str]) -> list[str]:
    """Return `NN-<layer>.png` for each layer, safe on every file system.

    File systems end a name at 255 bytes; letters of any script stay, what Windows or a shell could stumble over goes.
    """
    digits = max(2, len(str(len(layers))))
    return [f"{number:0{digits}}-{_safe(layer)}.png" for number, layer in enumerate(layers, start=1)]


def _safe(name: str) -> str:
    cleaned = re.sub(r"[^\w.#\-]+", "_", name).strip(".") or "layer"
    return cleaned.encode()[:120].decode(errors="ignore")


def _unnamed(number: int) -> str:
    """Return the folder of a picture until all names are known; the space keeps it apart from any final name."""
    return f"picture {number}"


def _arrange(scratch: Path, pictures: list[dict[str, Any]]) -> None:
    """Give the folders their final names; the files of a single picture go to the top."""
    if len(pictures) == 1:
        source = scratch / _unnamed(1)
        for file in source.iterdir():
            file.rename(scratch / file.name)
        source.rmdir()
        return
    taken = {_RUN}
    for number, picture in enumerate(pictures, start=1):
        stem = _safe(Path(picture["picture"]).stem)
        candidates = (stem, *(f"{stem}_{i}" for i in range(2, len(pictures) + 2)))
        folder = next(x for x in candidates if x.lower() not in taken)
        taken.add(folder.lower())
        (scratch / _unnamed(number)).rename(scratch / folder)
        for layer in picture["layers"]:
            layer["file"] = f"{folder}/{layer['file']}"
        picture["folder"] = folder
