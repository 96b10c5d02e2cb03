"""Convert the architectures of keras.applications, prove every layer, and write the table models/applications.md.

    python tools/applications.py                        # all of them: about an hour on two cores, 16 GB of memory
    python tools/applications.py ResNet50 Xception      # some; the rows of the others stay
    python tools/applications.py ResNet50 --json        # one, as JSON on stdout, without touching the table

Weights are random and seeded, those of BatchNormalization too (fresh statistics would hide a fold). Each runs in a
process of its own. `of plain` is against `tf2onnx.convert.from_function` on the same model: processor time of the
conversion without the comparison, and that of a run of the file (on one thread; the median of 20, each in turn with
the plain file); `-` where that conversion fails or gives a file that does not run.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

TABLE = Path(__file__).parent.parent / "models" / "applications.md"
COLUMNS = (
    "model, layers, exact, absent, ambiguous, largest error, its own noise, where, on own inputs, seconds, of plain, "
    "run of plain"
).split(", ")
INTRODUCTION = """# Every architecture of keras.applications

Converted by `python tools/applications.py` with {tools}; random weights, default input size. `error` and `noise` are
relative to the layer's range; a layer passes with an error of at most 1e-5, or twice its own rounding noise, which is
how far Keras is from itself when each layer's output moves by up to 4 units in the last place. Deep networks with
random weights amplify rounding without end: layers with an error above 1e-5 were compared on the very inputs that they
had in Keras too; `on own inputs` is the largest error of these. Where noise fills the range, twice of it is no measure:
such layers are `ambiguous`, and right on their own inputs. `absent` layers are
those whose padding became part of the convolution behind them, or that pass the input on; the ONNX file says so of
each. `seconds` are those of the conversion, the comparison included; `of plain` is the time without the comparison, and
`run of plain` the run time of the file, each relative to plain tf2onnx (`-`: that fails, or gives a file that does not
run).
"""


def names() -> list[str]:
    """Return the names of all architectures."""
    import keras

    return [
        name for name in dir(keras.applications) if name[0].isupper() and callable(getattr(keras.applications, name))
    ]


def build(name: str, side: int | None) -> Any:
    """Return a model with seeded weights; its input is of the default size, or of `side` pixels."""
    import keras

    keras.utils.set_random_seed(1)
    options = {} if side is None else {"input_shape": (side, side, 3)}
    model = getattr(keras.applications, name)(weights=None, **options)
    random = np.random.default_rng(3)
    for layer in model._flatten_layers(include_self=False):
        if isinstance(layer, keras.layers.BatchNormalization):
            for weight in layer.weights:
                near_one = weight.name in ("gamma", "moving_variance")
                weight.assign(
                    random.uniform(0.5, 1.5, weight.shape) if near_one else random.normal(0, 0.1, weight.shape)
                )
    return model


def convert(name: str, side: int | None, with_plain: bool) -> dict[str, Any]:
    """Convert one architecture; return what the table says of it."""
    from onnxfeat import convert_keras

    model = build(name, side)
    stages: list[tuple[float, str]] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.onnx"
        found = convert_keras(model, path, progress=lambda stage: stages.append((time.process_time(), stage)))
        stages.append((time.process_time(), "end"))
        proving = ("computing", "comparing", "loading and running")
        without_proof = sum(b[0] - a[0] for a, b in itertools.pairwise(stages) if not a[1].startswith(proving))
        statuses = [layer.status for layer in found.layer_map]
        row = {
            "model": name,
            "layers": len(statuses),
            **{status: statuses.count(status) for status in ("exact", "absent", "ambiguous")},
            "error": found.worst.error,
            "noise": found.worst.noise,
            "where": found.worst.name,
            "local": max((layer.local for layer in found.layers if layer.local is not None), default=None),
            "over": [layer.name for layer in found.layers if layer.error > max(1e-5, 2 * layer.noise)],
            "vague": [layer.name for layer in found.layer_map if layer.status == "ambiguous"],
            "seconds": found.seconds,
            "absent_for": sorted({layer.reason for layer in found.absent}),
        }
        ratios = against_plain(model, path, without_proof) if with_plain else (None, None)
        row["of_plain"], row["run_of_plain"] = ratios
    return row


def against_plain(model: Any, path: Path, ours: float) -> tuple[float | None, float | None]:
    """Return the time of the conversion and of a run, relative to plain tf2onnx; None where there is nothing to run."""
    import onnxruntime
    import tensorflow as tf
    import tf2onnx

    signature = [tf.TensorSpec(x.shape, x.dtype, name=f"x{i}") for i, x in enumerate(model.inputs)]
    function = tf.function(lambda x: model(x, training=False), input_signature=signature, autograph=False)
    start = time.process_time()
    try:
        plain, _ = tf2onnx.convert.from_function(function, input_signature=signature, opset=17)
        seconds = time.process_time() - start
        one_thread = onnxruntime.SessionOptions()
        one_thread.intra_op_num_threads = 1
        options = {"sess_options": one_thread, "providers": ["CPUExecutionProvider"]}
        a = onnxruntime.InferenceSession(plain.SerializeToString(), **options)
    except Exception as error:  # whatever tf2onnx or ONNX Runtime meets: that is what the dash in the table means
        print(f"plain tf2onnx: {str(error).splitlines()[0][:200]}", file=sys.stderr)
        return None, None
    if len(a.get_inputs()) != 1:
        return None, None
    b = onnxruntime.InferenceSession(path, **options)
    x = np.random.default_rng(0).random([1, *(side or 224 for side in model.inputs[0].shape[1:])], np.float32)
    feeds = [{session.get_inputs()[0].name: x} for session in (a, b)]
    ratios = []
    for _ in range(20):
        moments = [time.process_time()]
        for session, feed in zip((a, b), feeds, strict=True):
            session.run(None, feed)
            moments.append(time.process_time())
        ratios.append((moments[2] - moments[1]) / (moments[1] - moments[0]))
    return ours / seconds, statistics.median(ratios)


def line(row: dict[str, Any]) -> str:
    """Return one row of the table."""
    ratios = ["-" if row[key] is None else f"{row[key]:.2f}" for key in ("of_plain", "run_of_plain")]
    facts = [str(row[key]) for key in ("model", "layers", "exact", "absent", "ambiguous")]
    alone = "-" if row["local"] is None else f"{row['local']:.1e}"
    figures = [f"{row['error']:.1e}", f"{row['noise']:.1e}", f"`{row['where']}`", alone, f"{row['seconds']:.0f}"]
    return f"| {' | '.join([*facts, *figures, *ratios])} |"


def main() -> int:
    """Run what the command line asks for; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--json", action="store_true", help="convert one in this process; print JSON")
    parser.add_argument("--side", type=int, help="side of the input in pixels")
    parser.add_argument("--no-plain", action="store_true", help="do not compare with plain tf2onnx")
    asked = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if asked.json:
        print(json.dumps(convert(asked.names[0], asked.side, not asked.no_plain)))
        return 0
    rows = {}
    if TABLE.exists():
        lines = re.finditer(r"^\| ([A-Z]\w+) \|.*$", TABLE.read_text("utf-8"), re.MULTILINE)
        rows = {found[1]: found[0] for found in lines}
    failed = 0
    for name in asked.names or names():
        command = [sys.executable, __file__, name, "--json", *(["--no-plain"] if asked.no_plain else [])]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  # this very script
        if done.returncode < 0 and "--no-plain" not in command:  # plain tf2onnx took more memory than there is
            done = subprocess.run([*command, "--no-plain"], capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode:
            failed += 1
            print(f"{name}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
            continue
        rows[name] = line(json.loads(done.stdout.splitlines()[-1]))
        print(rows[name], flush=True)
        write(rows)
    return 1 if failed else 0


def write(rows: dict[str, str]) -> None:
    """Write the table with these rows, sorted by name."""
    import importlib.metadata

    packages = ("keras", "tf2onnx", "onnx", "onnxruntime")
    tools = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in packages)
    head, ruler = f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"
    body = "\n".join([INTRODUCTION.format(tools=tools), head, ruler, *(rows[name] for name in sorted(rows))])
    TABLE.write_text(f"{body}\n", "utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
