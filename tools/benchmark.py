"""Measure onnxfeat against what it replaces, whole processes, side by side in one run, as ratios.

    python tools/benchmark.py draw MODEL.keras PICTURE   # the reference pipeline in Keras against `onnxfeat draw`
    python tools/benchmark.py import                     # `import onnxfeat` against `import numpy`

Each pair runs one after the other, A B A B, so that a machine whose speed drifts slows both; the median of the pairwise
ratios is what counts. The model is converted first, which is not measured: it happens once.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ONNXFEAT = [sys.executable, "-m", "onnxfeat"]


def seconds(command: Sequence[str]) -> float:
    """Return how long a command takes, from start to end of its process."""
    start = time.perf_counter()
    quiet = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=quiet)  # noqa: S603
    return time.perf_counter() - start


def pairs(name_a: str, a: Sequence[str], name_b: str, b: Sequence[str], runs: int) -> None:
    """Run two commands in turn; print the median of each and of their ratio."""
    seconds(a), seconds(b)  # the first run of each fills the disk cache
    times = [(seconds(a), seconds(b)) for _ in range(runs)]
    for name, column in ((name_a, 0), (name_b, 1)):
        values = sorted(pair[column] for pair in times)
        print(f"{name:40} median {statistics.median(values):7.3f} s   ({values[0]:.3f} to {values[-1]:.3f})")
    ratios = sorted(pair[0] / pair[1] for pair in times)
    print(
        f"{'ratio, pair by pair':40} median {statistics.median(ratios):7.2f}     ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    )


def draw(model: Path, picture: Path, runs: int) -> None:
    """Compare the reference pipeline in Keras with `onnxfeat draw` on the converted and on the exposed file."""
    with tempfile.TemporaryDirectory() as folder:
        converted, exposed = f"{folder}/model.onnx", f"{folder}/layers.onnx"
        subprocess.run([*ONNXFEAT, "convert", str(model), "-o", converted], check=True)  # noqa: S603
        subprocess.run([*ONNXFEAT, "expose", converted, "-o", exposed], check=True)  # noqa: S603
        keras = [sys.executable, str(Path(__file__).parent / "reference_pipeline.py"), str(model), str(picture), folder]
        for name, path in (("converted", converted), ("exposed", exposed)):
            ours = [*ONNXFEAT, "draw", path, str(picture), "-o", f"{folder}/maps", "--overwrite"]
            pairs("reference pipeline in Keras", keras, f"onnxfeat draw, {name} file", ours, runs)


def start_up(runs: int) -> None:
    """Compare importing onnxfeat with importing NumPy."""
    python = [sys.executable, "-c"]
    pairs("import onnxfeat", [*python, "import onnxfeat"], "import numpy", [*python, "import numpy"], runs)


def main() -> None:
    """Run the benchmark that the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", "--runs", type=int, default=5, help="pairs to run (default 5)")
    commands = parser.add_subparsers(dest="command", required=True)
    for_draw = commands.add_parser("draw", help="the reference pipeline in Keras against onnxfeat draw")
    for_draw.add_argument("model", type=Path, help="a .keras file")
    for_draw.add_argument("picture", type=Path)
    commands.add_parser("import", help="import onnxfeat against import numpy")
    arguments = parser.parse_args()
    if arguments.command == "draw":
        draw(arguments.model, arguments.picture, arguments.runs)
    else:
        start_up(arguments.runs)


if __name__ == "__main__":
    main()
