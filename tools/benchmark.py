"""Measure onnxfeat against what it replaces, side by side in one run, as ratios.

    python tools/benchmark.py draw MODEL.keras PICTURE   # the reference pipeline in Keras against `onnxfeat draw`
    python tools/benchmark.py extract MODEL.onnx         # all conv and pool maps against the plain run of the model
    python tools/benchmark.py prefix MODEL.onnx          # one early layer against the plain run of the model
    python tools/benchmark.py import                     # `import onnxfeat` against `import numpy`

`draw` and `import` time whole processes, `extract` and `prefix` calls in one process. Each pair runs one after the
other, A B A B, so that a machine whose speed drifts slows both; the median of the pairwise ratios is what counts. The
model is converted first, which is not measured: it happens once.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ONNXFEAT = [sys.executable, "-m", "onnxfeat"]


def seconds(work: Sequence[str] | Callable[[], object]) -> float:
    """Return how long a command takes, from start to end of its process; or a call."""
    quiet = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    start = time.perf_counter()
    if callable(work):
        work()
    else:
        subprocess.run(work, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=quiet)  # noqa: S603
    return time.perf_counter() - start


def pairs(
    name_a: str,
    a: Sequence[str] | Callable[[], object],
    name_b: str,
    b: Sequence[str] | Callable[[], object],
    runs: int,
) -> None:
    """Run two commands or calls in turn; print the median of each and of their ratio."""
    seconds(a), seconds(b)  # the first run of each fills the caches
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


def extract(model: Path, layers: str | None, runs: int) -> None:
    """Compare the extraction of layers with the plain run of the same model, call by call, on noise."""
    import numpy as np
    import onnxruntime

    from onnxfeat import FeatureExtractor

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    plain = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    extractor = FeatureExtractor(model, layers=layers, provider="cpu")
    lengths = {"N": 1, "C": 3}
    sides = zip(extractor.input.shape, extractor.input.layout or "", strict=True)
    shape = [side if isinstance(side, int) and side > 0 else lengths.get(axis, 224) for side, axis in sides]
    sample = np.random.default_rng(0).random(shape).astype(extractor.input.dtype)
    maps = extractor(sample).values()
    feed = {extractor.input.name: sample}
    print(
        f"{len(maps)} layers, {sum(x.channels for x in maps):,} channels, {sum(x.array.nbytes for x in maps):,} bytes"
    )
    del maps
    pairs(
        f"onnxfeat, {layers or 'all conv and pool layers'}",
        lambda: extractor(sample),
        "plain run of the model",
        lambda: plain.run(None, feed),
        runs,
    )


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
    for name, layers in (("extract", None), ("prefix", "0")):
        for_extract = commands.add_parser(name, help="extraction of layers against the plain run")
        for_extract.add_argument("model", type=Path, help="an ONNX file that takes pictures")
        for_extract.add_argument("--layers", default=layers, help="selection (default: %(default)s)")
    commands.add_parser("import", help="import onnxfeat against import numpy")
    arguments = parser.parse_args()
    if arguments.command == "draw":
        draw(arguments.model, arguments.picture, arguments.runs)
    elif arguments.command in ("extract", "prefix"):
        extract(arguments.model, arguments.layers, arguments.runs)
    else:
        start_up(arguments.runs)


if __name__ == "__main__":
    main()
