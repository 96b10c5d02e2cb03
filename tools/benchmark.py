"""Measure onnxfeat against what it replaces, side by side in one run, as ratios.

    python tools/benchmark.py draw MODEL.onnx [PICTURE]     # save_pictures against matplotlib, keract, the bare floor
    python tools/benchmark.py report MODEL.onnx [PICTURE]   # write_report against save_pictures; bytes
    python tools/benchmark.py pipeline MODEL.keras PICTURE  # the reference pipeline in Keras against `onnxfeat draw`
    python tools/benchmark.py extract MODEL.onnx            # all conv and pool maps against the plain run of the model
    python tools/benchmark.py prefix MODEL.onnx             # one early layer against the plain run of the model
    python tools/benchmark.py import                        # `import onnxfeat` against `import numpy`

`pipeline` and `import` time whole processes, `report` both, the others calls in one process. Each pair runs one after
the other, A B A B, so that a machine whose speed drifts slows both; the median of the pairwise ratios is what counts.
Models are converted and maps extracted first, which is not measured: it happens once.

`draw` takes some minutes, most of them for keract (`pip install --no-deps keract`; it needs TensorFlow), which is left
out where it is not installed.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import io
import itertools
import math
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Unpack

    from onnxfeat import Features
    from onnxfeat.drawing.styles import StyleChoices

ONNXFEAT = [sys.executable, "-m", "onnxfeat"]
PICTURE = Path(__file__).parents[1] / "models" / "pictures" / "chelsea.png"
COMPRESSION = 1  # zlib's level, as `save_pictures` has it
STYLES: dict[str, StyleChoices] = {"onnxfeat": {}, "onnxfeat, bare": {"frame": False}}


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
    *,
    warm: bool = True,
) -> float:
    """Run two commands or calls in turn; print the median of each and of their ratio; return the latter."""
    if warm:
        seconds(a), seconds(b)  # the first run of each fills the caches
    times = [(seconds(a), seconds(b)) for _ in range(runs)]
    for name, column in ((name_a, 0), (name_b, 1)):
        values = sorted(pair[column] for pair in times)
        print(f"{name:40} median {statistics.median(values):7.3f} s   ({values[0]:.3f} to {values[-1]:.3f})")
    ratios = sorted(pair[0] / pair[1] for pair in times)
    median = statistics.median(ratios)
    print(f"{'ratio, pair by pair':40} median {median:7.2f}     ({ratios[0]:.2f} to {ratios[-1]:.2f})", flush=True)
    return median


def target(is_reached: bool, words: str) -> None:
    """Print whether a goal is reached."""
    print(f"{'':40} to reach: {words}: {'reached' if is_reached else 'MISSED'}\n", flush=True)


def pipeline(model: Path, picture: Path, runs: int) -> None:
    """Compare the reference pipeline in Keras with `onnxfeat draw` on the converted and on the exposed file."""
    with tempfile.TemporaryDirectory() as folder:
        converted, exposed = f"{folder}/model.onnx", f"{folder}/layers.onnx"
        subprocess.run([*ONNXFEAT, "convert", str(model), "-o", converted], check=True)  # noqa: S603
        subprocess.run([*ONNXFEAT, "expose", converted, "-o", exposed], check=True)  # noqa: S603
        keras = [sys.executable, str(Path(__file__).parent / "reference_pipeline.py"), str(model), str(picture), folder]
        for name, path in (("converted", converted), ("exposed", exposed)):
            ours = [*ONNXFEAT, "draw", path, str(picture), "-o", f"{folder}/maps", "--overwrite"]
            pairs("reference pipeline in Keras", keras, f"onnxfeat draw, {name} file", ours, runs)


def draw(model: Path, picture: Path, runs: int) -> None:
    """Compare the drawing of all conv and pool layers with matplotlib, keract and the bare floor; tell its memory."""
    from onnxfeat import FeatureExtractor, save_pictures

    features = FeatureExtractor(model, provider="cpu")(picture)
    maps = features.values()
    size = sum(feature_map.array.nbytes for feature_map in maps)
    print(f"{len(maps)} layers, {sum(feature_map.channels for feature_map in maps):,} channels, {size:,} bytes\n")
    with tempfile.TemporaryDirectory() as folder:
        fresh = map(Path(folder).joinpath, map(str, itertools.count()))  # a new folder each time

        def ours(**choices: Unpack[StyleChoices]) -> object:
            return save_pictures(features, next(fresh), **choices)

        ours()
        loop = pairs(
            "loop with matplotlib", lambda: loop_with_matplotlib(features, next(fresh)), "onnxfeat", ours, 2, warm=False
        )
        target(loop >= 20, "20 times faster or more")
        display = keract_display()
        if display is not None:
            pairs("keract", lambda: display(features, next(fresh)), "onnxfeat", ours, 1, warm=False)
            print()
        for name, choices in STYLES.items():
            pictures = next(fresh)
            layers = save_pictures(features, pictures, **choices)["pictures"][0]["layers"]
            drawn = [(*read_pixels(pictures / layer["file"]), strategy_of(layer)) for layer in layers]
            print(f"{name}: {len(drawn)} pictures, {sum(pixels.size for pixels, *_ in drawn):,} pixels")
            work, least = partial(ours, **choices), partial(bare_floor, features, drawn, fresh)
            floor = pairs(name, work, "bare floor", least, runs)
            target(floor <= 1.5, "within 1.5 times the floor")
    for name, choices in STYLES.items():
        peak = peak_of_drawing(features, choices)
        print(f"{f'peak memory of {name}':40} maps and {(peak - 1) * size / 1e6:.1f} MB: {peak:.2f} times the maps")
        target(peak <= 1.5, "within 1.5 times the maps")


def report(model: Path, picture: Path, runs: int) -> None:
    """Compare the page of all conv and pool layers with their PNG files, as calls and as commands; tell its bytes."""
    from onnxfeat import FeatureExtractor, save_pictures, write_report

    features = FeatureExtractor(model, provider="cpu")(picture)
    maps = features.values()
    print(f"{len(maps)} layers, {sum(feature_map.channels for feature_map in maps):,} channels\n")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fresh = map(folder.joinpath, map(str, itertools.count()))
        page = folder / "page.html"
        times = pairs(
            "write_report",
            lambda: write_report(features, page, overwrite=True),
            "save_pictures",
            lambda: save_pictures(features, next(fresh)),
            runs,
        )
        target(times <= 2, "within twice the time of the PNG files")
        size = page.stat().st_size
        print(f"{'bytes of the page':40} {size:,}: {size / sum(x.array.size for x in maps):.2f} for each cell")
        target(size <= 15_000_000, "15 MB")
        ours = [*ONNXFEAT, "report", str(model), str(picture), "-o", str(page), "--overwrite"]
        pictures = [*ONNXFEAT, "draw", str(model), str(picture), "-o", f"{folder}/maps", "--overwrite"]
        pairs("onnxfeat report, with its check", ours, "onnxfeat draw", pictures, runs)
        pairs("onnxfeat report --no-check", [*ours, "--no-check"], "onnxfeat draw", pictures, runs)


def loop_with_matplotlib(features: Features, folder: Path) -> None:
    """Draw each layer as F. Chollet's "Deep Learning with Python", section 5.4.1, does: a loop over the channels."""
    import matplotlib as mpl
    import numpy as np

    mpl.use("Agg")
    from matplotlib import pyplot

    folder.mkdir()
    in_a_row = 16
    for name, feature_map in features.items():
        channels, height, width = feature_map.array.shape[1:]
        grid = np.zeros((height * math.ceil(channels / in_a_row), width * in_a_row))
        for channel in range(channels):
            image = feature_map.array[0, channel].copy()
            image -= image.mean()
            if image.std() > 0:
                image /= image.std()
            image *= 64
            image += 128
            top, left = channel // in_a_row * height, channel % in_a_row * width
            grid[top : top + height, left : left + width] = np.clip(image, 0, 255).astype("uint8")
        figure = pyplot.figure(figsize=(grid.shape[1] / width, grid.shape[0] / width))
        pyplot.title(name)
        pyplot.grid(visible=False)
        pyplot.imshow(grid, aspect="auto", cmap="viridis")
        figure.savefig(folder / f"{name.replace('/', '_')}.png")
        pyplot.close(figure)


def keract_display() -> Callable[[Features, Path], None] | None:
    """Return what draws features with keract, or None and say why not."""
    import matplotlib as mpl
    import numpy as np

    mpl.use("Agg")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        display_activations = importlib.import_module("keract").display_activations
    except ImportError as error:
        print(f"keract is left out ({error}): pip install --no-deps keract\n")
        return None

    def display(features: Features, folder: Path) -> None:
        activations = {name: np.moveaxis(feature_map.array, 1, -1) for name, feature_map in features.items()}
        with contextlib.redirect_stdout(io.StringIO()):
            display_activations(activations, cmap="viridis", save=True, directory=str(folder))

    return display


def read_pixels(path: Path) -> tuple[NDArray[np.uint8], bytes | None]:
    """Return the pixels of a PNG file as they are stored, and its palette."""
    import numpy as np
    from PIL import Image

    with Image.open(path) as image:
        palette = image.getpalette() if image.mode == "P" else None
        return np.asarray(image), None if palette is None else bytes(palette)


def strategy_of(layer: Mapping[str, Any]) -> int:
    """Return the strategy of zlib that a layer is written with: runs alone where no cell is enlarged."""
    return zlib.Z_DEFAULT_STRATEGY if "zoom" in layer else zlib.Z_RLE


def bare_floor(
    features: Features, drawn: Sequence[tuple[NDArray[np.uint8], bytes | None, int]], fresh: Iterator[Path]
) -> None:
    """Do the least that drawing needs: one pass of NumPy over the maps, and Pillow's encoder on the finished pixels."""
    import numpy as np
    from PIL import Image

    folder = next(fresh)
    folder.mkdir()
    for feature_map in features.values():
        values = np.multiply(feature_map.array, np.float32(64))
        values += np.float32(128)
        np.clip(values, 0, 255, out=values)
        values.astype(np.uint8)
    for number, (pixels, palette, strategy) in enumerate(drawn):
        image = Image.fromarray(pixels)
        if palette is not None:
            image.putpalette(palette)
        image.save(folder / f"{number}.png", compress_level=COMPRESSION, compress_type=strategy)


def peak_of_drawing(features: Features, choices: StyleChoices) -> float:
    """Return the most memory of a process while it draws, maps included, as multiple of the maps.

    What the interpreter and the packages take anyway does not count.
    """
    context = multiprocessing.get_context("spawn")  # a process that holds nothing but the maps
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_peak_here, features, choices).result()


def _peak_here(features: Features, choices: StyleChoices) -> float:
    from onnxfeat import save_pictures

    with tempfile.TemporaryDirectory() as folder:
        first = next(iter(features))
        one = dataclasses.replace(features, maps={first: features[first]}, layers=(first,))
        save_pictures(one, f"{folder}/first", **choices)  # loads what is imported on demand
        before = _status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # VmHWM begins anew
        save_pictures(features, f"{folder}/all", **choices)
        added = _status("VmHWM") - before
    size = sum(feature_map.array.nbytes for feature_map in features.values())
    return 1 + added / size


def _status(name: str) -> int:
    """Return a size of this process in bytes, as Linux counts it."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith(f"{name}:"))


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
    for name, words in (
        ("draw", "save_pictures against matplotlib, keract and the bare floor"),
        ("report", "write_report against save_pictures"),
    ):
        for_all = commands.add_parser(name, help=words)
        for_all.add_argument("model", type=Path, help="an ONNX file that takes pictures, such as a ResNet50")
        for_all.add_argument("picture", type=Path, nargs="?", default=PICTURE)
    for_pipeline = commands.add_parser("pipeline", help="the reference pipeline in Keras against onnxfeat draw")
    for_pipeline.add_argument("model", type=Path, help="a .keras file")
    for_pipeline.add_argument("picture", type=Path)
    for name, layers in (("extract", None), ("prefix", "0")):
        for_extract = commands.add_parser(name, help="extraction of layers against the plain run")
        for_extract.add_argument("model", type=Path, help="an ONNX file that takes pictures")
        for_extract.add_argument("--layers", default=layers, help="selection (default: %(default)s)")
    commands.add_parser("import", help="import onnxfeat against import numpy")
    arguments = parser.parse_args()
    if arguments.command in ("draw", "report"):
        {"draw": draw, "report": report}[arguments.command](arguments.model, arguments.picture, arguments.runs)
    elif arguments.command == "pipeline":
        pipeline(arguments.model, arguments.picture, arguments.runs)
    elif arguments.command in ("extract", "prefix"):
        extract(arguments.model, arguments.layers, arguments.runs)
    else:
        start_up(arguments.runs)


if __name__ == "__main__":
    main()
