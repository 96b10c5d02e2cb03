"""Take the README's picture of a report: the shipped network and photograph, in the system's Chromium.

    python tools/screenshot.py                     # writes models/maps/report.png
    python tools/screenshot.py --output FILE.png

Needs what the browser tests need (see CONTRIBUTING.md). Fonts differ from machine to machine, so the picture does too.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from browser import Report, launched, opened

ROOT = Path(__file__).parent.parent
# As the README's reader calls it, with paths that name no machine: they stand in the picture.
COMMAND = ["report", "models/shapes_reference_layers.onnx", "models/pictures/chelsea.png", "--provider", "cpu", "-o"]
SIZE = {"width": 1440, "height": 900}
MOST_BYTES = 300_000


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the picture.

    Raises:
        SystemExit: It is larger than a README bears.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "models/maps/report.png")
    output: Path = parser.parse_args(arguments).output
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        subprocess.run([sys.executable, "-m", "onnxfeat", *COMMAND, str(page)], cwd=ROOT, check=True)  # noqa: S603
        file = compressed(photographed(page))
    if len(file) > MOST_BYTES:
        raise SystemExit(f"the picture has {len(file):,} bytes, at most {MOST_BYTES:,} are wanted: make SIZE smaller")
    output.write_bytes(file)
    print(f"{output}: {len(file):,} bytes")


def photographed(path: Path) -> bytes:
    """Return a PNG picture of the second layer, with the pointer on a cell and its receptive field on the cat."""
    with launched() as browser, opened(browser, path.as_uri() + "#conv2d_1/3", viewport=SIZE) as page:
        Report(page).hover_cell(25, 26)
        return page.screenshot()


def compressed(file: bytes) -> bytes:
    """Return a PNG picture in 256 colors, without dithering: letters stay sharp."""
    with Image.open(io.BytesIO(file)) as image:
        few = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    packed = io.BytesIO()
    few.save(packed, "PNG", optimize=True)
    return packed.getvalue()


if __name__ == "__main__":
    main()
