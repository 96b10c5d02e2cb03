"""Convert where Keras runs on torch, jax or NumPy: in a process of its own, in which it runs on TensorFlow.

A `.keras` file means the same on every backend, so a live model is saved and takes the way that is proven layer by
layer. What it gives here, on its own backend, is compared with what the ONNX file gives.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from onnxfeat.converter.messages import reason_of
from onnxfeat.converter.verification import distance
from onnxfeat.errors import ConversionError, OnnxfeatError
from onnxfeat.findings import Conversion
from onnxfeat.graph.reading import read_graph
from onnxfeat.recipes import InputRecipe
from onnxfeat.references import KEY, Reference
from onnxfeat.running.runtime import open_session


def other_backend() -> str | None:
    """Return the backend that Keras runs on in this process where that is not TensorFlow, else None."""
    keras = sys.modules.get("keras")
    if keras is None or not hasattr(keras, "backend"):
        return None
    backend: str = keras.backend.backend()
    return None if backend == "tensorflow" else backend


def convert_elsewhere(model: Any, backend: str, path: Path, options: Mapping[str, Any]) -> tuple[Conversion, str]:
    """Convert a model in another process; return the record, and a sentence on its own backend.

    Args:
        model: A live model, or the path of a file.
        backend: What it runs on.
        path: Where to write.
        options: The options of `convert_keras`.

    Raises:
        OnnxfeatError: What the other process raised.
        ConversionError: The model can't be saved, or that process ended otherwise.
    """
    with tempfile.TemporaryDirectory() as folder:
        saved, request, answer = (Path(folder) / name for name in ("model.keras", "request", "answer"))
        is_file = isinstance(model, str | Path)
        try:
            saved = Path(model).absolute() if is_file else _saved(model, saved)
        except OnnxfeatError:
            raise
        except Exception as error:  # whatever a layer's configuration raises
            raise ConversionError(
                f"the model runs on {backend} and can't be saved to be converted with TensorFlow: {reason_of(error)}"
            ) from error
        request.write_bytes(pickle.dumps((saved, path, dict(options))))
        done = subprocess.run(  # noqa: S603  # our own interpreter and module
            [sys.executable, "-m", "onnxfeat.converter", str(request), str(answer)],
            env={**os.environ, "KERAS_BACKEND": "tensorflow"},
            capture_output=True,
            text=True,
            check=False,
        )
        if not answer.exists():
            last = (done.stderr.strip() or "no message").splitlines()[-1]
            raise ConversionError(
                f"the process that converts with TensorFlow ended with code {done.returncode}: {last}"
            )
        result = pickle.loads(answer.read_bytes())  # noqa: S301  # written by our own process into our own folder
    if isinstance(result, OnnxfeatError):
        raise result
    conversion: Conversion = result
    if is_file:
        return conversion, f"Keras runs on {backend} here, so the file was converted in a process with TensorFlow"
    return conversion, _against_own_backend(model, backend, conversion)


def _saved(model: Any, path: Path) -> Path:
    import keras

    if not isinstance(model, keras.Model):
        raise ConversionError(f"{type(model).__name__} is not a Keras model: pass a keras.Model or a path")
    model.save(path)
    return path


def _against_own_backend(model: Any, backend: str, conversion: Conversion) -> str:
    """Return a sentence on how far the file's outputs are from what the model gives on its own backend."""
    import keras

    graph = read_graph(conversion.path)
    entry = next(entry for entry in graph.model.metadata_props if entry.key == KEY)
    recipes = Reference.from_text(entry.value, str(conversion.path)).inputs
    session, _ = open_session(conversion.path, "cpu", conversion.path.name)
    actual = session.run(None, {recipe.name: recipe.values() for recipe in recipes})
    expected = [keras.ops.convert_to_numpy(tensor) for tensor in keras.tree.flatten(_run(model, recipes))]
    worst = max(distance(np.asarray(a), b) for a, b in zip(actual, expected, strict=True))
    return (
        f"Keras runs on {backend} here, so the model was saved and converted with TensorFlow; its outputs on {backend} "
        f"differ from the file's by {worst:.1e} of their range"
    )


def _run(model: Any, recipes: tuple[InputRecipe, ...]) -> Any:
    import keras

    feeds = [recipe.values() for recipe in recipes]
    known = getattr(model, "inputs", None) and not isinstance(model, keras.Sequential)
    given = keras.tree.pack_sequence_as(model.input, feeds) if known else feeds[0] if len(feeds) == 1 else feeds
    return model(given, training=False)
