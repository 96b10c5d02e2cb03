"""Find the picture files that folders and patterns stand for."""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from onnxfeat.errors import PictureError
from onnxfeat.running.frames import VIDEO_SUFFIXES

_MAGIC = re.compile(r"[*?\[]")


def picture_paths(given: Sequence[str | Path], *, videos: bool = False) -> list[Path]:
    """Return the files that paths, folders and patterns stand for, in the order of these.

    A folder stands for the pictures in it, by the ends of their names, not for those of folders in it; a pattern such
    as `photos/**/*.jpg` for what it matches, where nothing bears that very name. Numbers in names count as numbers:
    `frame_9.png` comes before `frame_10.png`.

    Args:
        given: Paths of files and folders, and patterns.
        videos: Whether videos in folders count as pictures.

    Raises:
        PictureError: A folder holds no picture, or a pattern matches none.

    Example:
        >>> [path.name for path in picture_paths(["models/pictures/c*.png"])]
        ['chelsea.png', 'circle.png']
    """
    found: list[Path] = []
    for path in map(Path, given):
        if path.is_dir():
            inside = [file for file in path.iterdir() if file.is_file() and _is_picture(file, videos)]
            if not inside:
                raise PictureError(f"there is no picture in the folder {path}: name one that holds some, or the files")
            found += sorted(inside, key=_in_numbers)
        elif not path.exists() and _MAGIC.search(str(path)):
            # Not Path.glob: it wants relative patterns.
            matching = [Path(match) for match in glob.glob(str(path), recursive=True)]  # noqa: PTH207
            matching = [match for match in matching if match.is_file()]
            if not matching:
                raise PictureError(
                    f"there is no file {path}, nor one that it matches as a pattern: check it, or name the files"
                )
            found += sorted(matching, key=_in_numbers)
        else:
            found.append(path)  # what is wrong with it is told by who opens it
    return found


def _is_picture(path: Path, videos: bool) -> bool:
    suffix = path.suffix.lower()
    return not path.name.startswith(".") and (
        (suffix in Image.registered_extensions() and suffix not in (".pdf", ".mpg", ".mpeg"))
        or (videos and suffix in VIDEO_SUFFIXES)
    )


def _in_numbers(path: Path) -> list[tuple[int, int, str]]:
    """Return a key by which names sort as people count."""
    parts = re.split(r"(\d+)", str(path))
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts]
