"""Make the pictures of photographs that a page shows."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from onnxfeat.picture_files import Picture, as_image, content_of, converted, digest_of, size_of_file
from onnxfeat.records import Features
from onnxfeat.report.contents import Photograph

_LONGEST = 960  # pixels of a side: twice what it has on the page, for fine screens
_LOSSLESS = 1 << 16  # pixels up to which there is no loss: small pictures show it
_QUALITY = 85


def portrait_of(run: Features, index: int) -> Photograph:
    """Return one of the pictures of a run, as a page shows it.

    Raises:
        PictureError: It can't be read any more.
    """
    passed = run.photographs[index] if run.photographs else None
    file = str(passed) if isinstance(passed, str | Path) else None
    sha256 = None if file is None else digest_of(Path(file))
    size, picture = (None, b"") if passed is None else _picture(passed, run.pictures[index])
    return Photograph(name=run.pictures[index], file=file, sha256=sha256, size=size, picture=picture)


def _picture(photograph: Picture, name: str) -> tuple[tuple[int, int], bytes]:
    """Return rows and columns of a photograph, and a PNG or JPEG file of it, not larger than a page needs."""
    content = content_of(photograph, _LONGEST)
    image = converted(as_image(content, name) if isinstance(content, np.ndarray) else content, "RGB", name)
    height, width = image.height, image.width
    if isinstance(photograph, str | Path) and isinstance(content, Image.Image):
        height, width = size_of_file(Path(photograph))  # it may have been decoded smaller
    # What Pillow's `thumbnail` does, but for changing the image, which may be the caller's.
    factor = _LONGEST / max(height, width)
    if factor < 1:
        small = max(round(width * factor), 1), max(round(height * factor), 1)
        image = image.resize(small, Image.Resampling.LANCZOS, reducing_gap=2.0)
    file = io.BytesIO()
    if height * width <= _LOSSLESS:
        image.save(file, format="PNG")
    else:
        image.save(file, format="JPEG", quality=_QUALITY)
    return (height, width), file.getvalue()
