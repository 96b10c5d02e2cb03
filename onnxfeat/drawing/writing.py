"""Write drawings as picture files, maps as arrays, and the facts of a run as JSON text."""

from __future__ import annotations

import json
import re
import sys
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL.PngImagePlugin import PngInfo

from onnxfeat import __version__
from onnxfeat.drawing.legends import scale_note
from onnxfeat.drawing.painting import Drawing
from onnxfeat.drawing.styles import Style
from onnxfeat.errors import PictureError
from onnxfeat.records import Features

SCHEMA_VERSION = 1
"""Version of what `run.json` holds."""
PictureFormat = Literal["png", "webp", "svg", "pdf"]
"""Formats of pictures: `svg` and `pdf` are drawn by matplotlib, with text as text."""
ArrayFormat = Literal["npy", "npz"]
"""`npy` is a file for each layer, `npz` one for each picture with an array for each layer."""

# Level 1 of zlib: a belt of noise shrinks nearly as much as at level 6, in a third of the time. Where no cell is
# enlarged only runs of equal pixels are looked for: that halves the time again, at the same size. Where cells are, it
# would double the size.
_COMPRESSION = 1
_MOST_WEBP = 16_383  # pixels of a side (https://developers.google.com/speed/webp/faq)
_SCREEN_DPI = 96
_LONGEST_TITLE = 1000  # characters
_LONGEST_ENTRY = 10_000  # characters of a name in a ZIP file, which has room for 65,535 bytes


def write_picture(drawing: Drawing, path: Path, *, title: str, description: str, density: int = 1) -> None:
    """Write a drawing as a PNG or lossless WebP file, as its name ends.

    Args:
        drawing: The picture.
        path: The file, which is made.
        title: What a PNG file bears as its title.
        description: What it bears as its description.
        density: Pixels for each pixel of a usual screen; 2 is noted as 192 dpi.

    Raises:
        PictureError: WebP can't hold a picture of that size.
    """
    image = drawing.image()
    if path.suffix == ".webp":
        if max(image.size) > _MOST_WEBP:
            raise PictureError(
                f"a picture of {image.width} x {image.height} pixels is too large for WebP, which holds "
                f"{_MOST_WEBP:,} a side: choose png, or draw fewer channels"
            )
        image.convert("RGB").save(path, format="WEBP", lossless=True, quality=0, method=0)
        return
    notes = PngInfo()
    notes.add_itxt("Title", printable(title))
    notes.add_itxt("Description", description)
    notes.add_itxt("Software", "onnxfeat")
    dpi = {} if density == 1 else {"dpi": (density * _SCREEN_DPI, density * _SCREEN_DPI)}
    is_fine = drawing.facts["arrangement"] in ("belt", "grid", "channel", "slices") and "zoom" not in drawing.facts
    strategy = zlib.Z_RLE if is_fine else zlib.Z_DEFAULT_STRATEGY
    image.save(path, format="PNG", compress_level=_COMPRESSION, compress_type=strategy, pnginfo=notes, **dpi)


def printable(name: str) -> str:
    """Return a name without what a PNG text may not hold; run.json has it whole."""
    cut = name if len(name) <= _LONGEST_TITLE else f"{name[: _LONGEST_TITLE - 1]}\u2026"
    return re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", "\ufffd", cut)


def append_array(path: Path, name: str, array: NDArray[Any]) -> None:
    r"""Append an array to a `.npz` file, which is made if missing: `numpy.savez` wants all of them at once.

    Args:
        path: The file.
        name: What the array is called in it; control characters become their escapes there, as ZIP ends a name at 0.
        array: Its values.
    """
    with zipfile.ZipFile(path, "a", zipfile.ZIP_STORED) as file:
        # A fixed date: the same maps give the same bytes.
        entry = zipfile.ZipInfo(f"{_zip_name(name)}.npy", date_time=(1980, 1, 1, 0, 0, 0))
        with file.open(entry, "w", force_zip64=True) as place:
            np.lib.format.write_array(place, np.ascontiguousarray(array), allow_pickle=False)


def _zip_name(name: str) -> str:
    escaped = re.sub(r"[\x00-\x1f\x7f]", lambda found: f"\\x{ord(found[0]):02x}", name[:_LONGEST_ENTRY])
    return escaped.encode(errors="backslashreplace").decode()  # lone surrogates are no UTF-8


def run_record(run: Features, style: Style, format_: str) -> dict[str, Any]:
    """Return what `run.json` says of a run as a whole: model, provider, preprocessing, style and versions."""
    return {
        "schema_version": SCHEMA_VERSION,
        "model": {"file": run.model, "sha256": run.sha256},
        "provider": run.provider.to_json(),
        "preprocessing": {**run.preprocessing.to_json(), "source": run.preprocessing_source},
        "normalization": scale_note(style),
        "colormap": None if style.reduce == "pca" else style.colors,
        "style": style.to_json(),
        "format": format_,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Return the versions of the packages that a run uses: those that have been loaded."""
    names: tuple[str, ...] = ("onnxruntime", "onnx", "matplotlib", "av")
    others = {name: str(sys.modules[name].__version__) for name in names if name in sys.modules}
    return {"onnxfeat": __version__, "numpy": np.__version__, "pillow": PIL.__version__, **others}


def run_text(record: Mapping[str, Any]) -> bytes:
    """Return what `run.json` holds, as text: a line for each fact, and for each layer of a picture.

    Not one for each number: the writer of indented JSON takes longer for 28,672 channels than drawing them.
    """
    lines = []
    for key, value in record.items():
        if key == "pictures":
            pictures = ",\n".join(_picture_text(picture) for picture in value)
            lines.append(f'"pictures": [\n{pictures}\n]')
        else:
            lines.append(f"{_json(key)}: {_json(value)}")
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    # Bytes of a file name that are no UTF-8 are lone surrogates in Python, escapes such as \udcff in JSON.
    return text.encode(errors="backslashreplace")


def _picture_text(picture: Mapping[str, Any]) -> str:
    lines = [f"  {_json(key)}: {_json(value)}" for key, value in picture.items() if key != "layers"]
    layers = ",\n".join(f"   {_json(layer)}" for layer in picture["layers"])
    lines.append(f'  "layers": [\n{layers}\n  ]' if layers else '  "layers": []')
    return " {\n" + ",\n".join(lines) + "\n }"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
