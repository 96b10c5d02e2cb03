"""Name the files of layers and the folders of pictures: safe and told apart on every file system."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from onnxfeat.records import Features

RUN_FILE = "run.json"
"""Name of the file that tells all about a run."""

_LONGEST = 120  # bytes of a name of a layer or picture in a file name; file systems end at 255
# Windows takes these for devices, whatever follows a dot (https://learn.microsoft.com/windows/win32/fileio/naming-a-file).
_DEVICES = {
    "con",
    "prn",
    "aux",
    "nul",
    *(f"{port}{digit}" for port in ("com", "lpt") for digit in "0123456789\u00b9\u00b2\u00b3"),
}


def layer_files(run: Features, suffix: str) -> dict[str, tuple[int, str]]:
    """Return layer name to its number in the run and `NN-<layer>.<suffix>`, safe on every file system.

    File systems end a name at 255 bytes; letters of any script stay, what Windows or a shell could stumble over goes.
    """
    layers = list(dict.fromkeys((*run.layers, *run)))
    digits = max(2, len(str(len(layers))))
    return {
        layer: (number, f"{number:0{digits}}-{safe_name(layer)}.{suffix}")
        for number, layer in enumerate(layers, start=1)
        if layer in run.maps
    }


def safe_name(name: str) -> str:
    """Return a name as it may stand in a file name.

    Example:
        >>> safe_name("block/conv 1")
        'block_conv_1'
    """
    cleaned = re.sub(r"[^\w.#\-]+", "_", name).strip(".") or "layer"
    return cleaned.encode()[:_LONGEST].decode(errors="ignore")


def folder_names(pictures: Sequence[str]) -> list[str]:
    """Return a name for the folder of each picture.

    Example:
        >>> folder_names(["a/cat.jpg", "b/cat.png", "nul.png"])
        ['cat', 'cat_2', '_nul']
    """
    taken, last = {RUN_FILE}, Counter[str]()
    folders = []
    for picture in pictures:
        stem = safe_name(Path(picture).stem)
        if stem.partition(".")[0].lower() in _DEVICES or stem.startswith("-"):  # or it reads as an option
            stem = f"_{stem}"
        folder, key = stem, stem.lower()
        while folder.lower() in taken:
            last[key] += 1
            folder = f"{stem}_{last[key] + 1}"
        taken.add(folder.lower())
        folders.append(folder)
    return folders
