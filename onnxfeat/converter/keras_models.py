"""Load Keras models, and record what each of their layers gives while the model runs."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxfeat.errors import ConversionError, MissingPackageError
from onnxfeat.graph.layouts import CHANNELS_FIRST, CHANNELS_LAST
from onnxfeat.records import Kind

_DISTURBANCE = 4  # units in the last place

# Public classes of keras.layers; their subclasses, custom ones too, are of the same kind.
_KINDS: dict[Kind, tuple[str, ...]] = {
    "conv": tuple(
        f"{form}{rank}D{suffix}"
        for rank in (1, 2, 3)
        for form, suffix in (("Conv", ""), ("Conv", "Transpose"), ("DepthwiseConv", ""), ("SeparableConv", ""))
    ),
    "pool": tuple(
        f"{form}Pooling{rank}D"
        for rank in (1, 2, 3)
        for form in ("Max", "Average", "GlobalMax", "GlobalAverage", "AdaptiveMax", "AdaptiveAverage")
    ),
    "activation": ("Activation", "ReLU", "LeakyReLU", "PReLU", "ELU", "Softmax"),
    "norm": ("BatchNormalization", "LayerNormalization", "GroupNormalization", "RMSNormalization", "UnitNormalization"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of one leaf layer while a model runs.

    Attributes:
        name: The layer's name; its path in a nested model; with `#1`, `#2` where the layer is called more than once.
        keras_class: Its class.
        kind: What it does.
        layout: Order of the axes of its output in Keras, such as `NHWC`; None where Keras does not tell.
    """

    name: str
    keras_class: str
    kind: Kind
    layout: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedModel:
    """A Keras model as one TensorFlow function that returns the model's outputs and then every leaf layer's output.

    Attributes:
        model: The Keras model.
        function: The `tf.function`; takes the model's inputs one by one.
        signature: Its input signature, a list of `tf.TensorSpec`.
        concrete: Its concrete function.
        output_names: Names of the model's outputs.
        calls: The leaf layers, in the order of execution; output `len(output_names) + i` is that of call i.
    """

    model: Any
    function: Any
    signature: list[Any]
    concrete: Any
    output_names: tuple[str, ...]
    calls: tuple[Call, ...]


def import_keras() -> Any:
    """Import Keras with TensorFlow behind it, quietly.

    Raises:
        MissingPackageError: TensorFlow or Keras is not installed.
        ConversionError: Keras runs on another backend.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # else TensorFlow greets on stderr
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    # All that the work needs, now and not after minutes of it.
    for package, name in (("tensorflow", "TensorFlow"), ("keras", "Keras"), ("tf2onnx", "tf2onnx")):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise MissingPackageError(f'converting needs {name} ({error}): pip install "onnxfeat[keras]"') from error
    if importlib.util.find_spec("onnxruntime") is None:
        raise MissingPackageError('converting needs ONNX Runtime to compare the result: pip install "onnxfeat[keras]"')
    import keras

    if keras.backend.backend() != "tensorflow":
        raise ConversionError(
            f"Keras runs on {keras.backend.backend()} here, converting needs TensorFlow: set KERAS_BACKEND=tensorflow "
            f"before Keras is imported"
        )
    for name in ("tensorflow", "tf2onnx", "absl"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return keras


def load_model(path: Path) -> Any:
    """Load a `.keras` or legacy `.h5` file; code in the file is not run.

    Raises:
        ConversionError: The file is missing or not a Keras model, or holds code.
    """
    if path.is_dir():
        raise ConversionError(
            f"{path} is a folder, a Keras model file is wanted: save the model as a .keras file first"
        )
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except FileNotFoundError:
        raise ConversionError(f"there is no file {path}: check the path of the model") from None
    except OSError as error:
        raise ConversionError(
            f"{path} can't be read: {error.strerror}; check that it is a file you may read"
        ) from error
    if path.suffix.lower() not in (".keras", ".h5", ".hdf5"):
        raise ConversionError(f"{path} is no .keras, .h5 or .hdf5 file: save the model with model.save('model.keras')")
    # A .keras file is a zip archive, an .h5 file begins with the signature of HDF5.
    if start != (b"PK\x03\x04" if path.suffix.lower() == ".keras" else b"\x89HDF"):
        raise ConversionError(f"{path} is not what its name says, or empty: save the model again")
    keras = import_keras()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Keras warns of optimizer states, which nobody needs here
            return keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras raises whatever its deserializers meet
        if "safe_mode" in str(error) or "unsafe" in str(error):
            raise ConversionError(
                f"{path} holds code that would run when it is loaded (a Lambda layer, for instance): if you trust it, "
                f"load it with Keras yourself and pass the live model to convert_keras"
            ) from error
        raise ConversionError(
            f"Keras {keras.__version__} can't load {path}: {reason_of(error)}; check that it is a complete "
            f"model (not weights alone), and pass a live model to convert_keras for one with custom layers"
        ) from error


def trace(model: Any) -> TracedModel:
    """Trace a model in inference mode, with the output of every leaf layer as an output.

    Raises:
        ConversionError: The object is not a Keras model, has no input shape yet, or can't be traced.
    """
    keras = import_keras()
    import tensorflow as tf

    if not isinstance(model, keras.Model):
        raise ConversionError(f"{type(model).__name__} is not a Keras model: pass a keras.Model or a path")
    inputs = getattr(model, "inputs", None)
    if not inputs:
        raise ConversionError(
            f"model {model.name!r} has no input shape yet: give it a keras.Input, or make a functional model of it"
        )
    signature = [tf.TensorSpec(x.shape, x.dtype, name=x.name) for x in inputs]
    calls: list[Call] = []
    output_names: list[str] = []

    def run(*tensors: Any) -> list[Any]:
        outputs, records = _run(keras, model, tensors)
        output_names[:] = _output_names(model, len(outputs))
        calls[:] = _named_calls(keras, records)
        return [tf.identity(tensor) for tensor in (*outputs, *_tensors(keras, records))]

    function = tf.function(run, autograph=False, jit_compile=False)
    try:
        with _inlined(tf):
            concrete = function.get_concrete_function(*signature)
    except Exception as error:  # whatever a layer raises
        raise ConversionError(
            f"model {model.name!r} can't be traced: {reason_of(error)}; check that it runs in Keras"
        ) from error
    return TracedModel(
        model=model,
        function=function,
        signature=signature,
        concrete=concrete,
        output_names=tuple(output_names),
        calls=tuple(calls),
    )


def reason_of(error: Exception) -> str:
    """Return the first line of another package's error that tells what happened, without colors and marks."""
    text, cause = str(error).partition("Arguments received by")[0], "Exception encountered: "
    lines = [re.sub(r"\x1b\[[\d;]*m|{{.*?}}", "", line).strip() for line in text.splitlines()]
    telling = [line for line in lines if line and not line.startswith("Exception encountered when calling")]
    telling.sort(key=lambda line: not line.startswith(cause))  # Keras puts a whole configuration before it
    return telling[0].removeprefix(cause)[:300] if telling else type(error).__name__


@contextlib.contextmanager
def _inlined(tf: Any) -> Iterator[None]:
    """Trace functions that are called in the block as if their code stood there.

    Keras compiles grouped convolutions as functions of their own (`jit_compile=True`), which tf2onnx can't look into.
    """
    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(before)


def run_in_keras(
    traced: TracedModel, feeds: Sequence[NDArray[Any]], *, disturbed_by: int | None = None
) -> list[NDArray[Any]]:
    """Run a model in Keras, without what was traced; return the model's outputs and every leaf layer's.

    With a seed in `disturbed_by`, rounding noise is added: each floating value that a layer gives moves by up to
    `_DISTURBANCE` units in the last place before the next layer gets it, about what another order of summation does.

    Raises:
        ConversionError: Keras can't run the model on this machine.
    """
    keras = import_keras()
    import tensorflow as tf

    random = np.random.default_rng(disturbed_by)

    def disturb(tensor: Any) -> Any:
        if not tensor.dtype.is_floating:
            return tensor
        array = tensor.numpy()
        steps = random.integers(-_DISTURBANCE, _DISTURBANCE + 1, array.shape)
        with np.errstate(all="ignore"):  # infinities stay what they are
            moved = np.where(np.isfinite(array), array + steps * np.spacing(array), array)
        return tf.constant(moved.astype(array.dtype))

    change = None if disturbed_by is None else disturb
    try:
        outputs, records = _run(keras, traced.model, [tf.constant(feed) for feed in feeds], change)
    except Exception as error:  # convolutions with the channels first, for instance, where there is no GPU
        raise ConversionError(
            f"Keras can't run model {traced.model.name!r} on this machine, and so nothing can be compared: "
            f"{reason_of(error)}"
        ) from error
    return [tensor.numpy() for tensor in (*outputs, *_tensors(keras, records))]


def _run(
    keras: Any,
    model: Any,
    tensors: Sequence[Any],
    change: Callable[[Any], Any] | None = None,
) -> tuple[list[Any], list[tuple[str, Any, Any]]]:
    """Run a model on its inputs, one by one; return its outputs, and path, layer and output of each leaf layer."""
    # A functional model wants its inputs in the structure (list, dict) that it was made with.
    structure = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    records: list[tuple[str, Any, Any]] = []
    with _recording(keras, records, change):
        outputs = model(keras.tree.pack_sequence_as(structure, list(tensors)), training=False)
    return keras.tree.flatten(outputs), records


def _tensors(keras: Any, records: Sequence[tuple[str, Any, Any]]) -> list[Any]:
    """Return the tensor that is each layer's map; of several outputs (a recurrent layer's states), the first."""
    return [keras.tree.flatten(output)[0] for _, _, output in records]


@contextlib.contextmanager
def _recording(keras: Any, records: list[tuple[str, Any, Any]], change: Callable[[Any], Any] | None) -> Iterator[None]:
    """Record path, layer and output of every leaf layer that is called in the block, after `change` if there is one.

    A leaf is a layer that calls no other layer, or calls them in a loop. Keras has no hook for this, so
    `Layer.__call__` is replaced meanwhile.
    """
    loops = (keras.layers.RNN, keras.layers.TimeDistributed)
    original: Callable[..., Any] = keras.layers.Layer.__call__
    running: list[Any] = []
    with_children: list[bool] = []

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        if running and isinstance(running[-1], loops):
            return original(layer, *args, **kwargs)
        if with_children:
            with_children[-1] = True
        running.append(layer)
        with_children.append(False)
        try:
            output = original(layer, *args, **kwargs)
        finally:
            path = "/".join(part.name for part in running[1:])
            running.pop()
            is_leaf = not with_children.pop()
        if is_leaf and running and keras.tree.flatten(output):
            output = output if change is None else keras.tree.map_structure(change, output)
            records.append((path, layer, output))
        return output

    keras.layers.Layer.__call__ = call
    try:
        yield
    finally:
        keras.layers.Layer.__call__ = original


def _named_calls(keras: Any, records: list[tuple[str, Any, Any]]) -> list[Call]:
    totals = Counter(path for path, _, _ in records)
    seen: Counter[str] = Counter()
    formats = [getattr(layer, "data_format", None) for _, layer, _ in records]
    last_format = next((found for found in formats if found), keras.config.image_data_format())
    calls = []
    for path, layer, output in records:
        seen[path] += 1
        last_format = getattr(layer, "data_format", None) or last_format
        layouts = CHANNELS_FIRST if last_format == "channels_first" else CHANNELS_LAST
        calls.append(
            Call(
                name=path if totals[path] == 1 else f"{path}#{seen[path]}",
                keras_class=type(layer).__name__,
                kind=_kind(keras, layer),
                layout=layouts.get(len(keras.tree.flatten(output)[0].shape)),
            )
        )
    return calls


def _kind(keras: Any, layer: Any) -> Kind:
    for kind, names in _KINDS.items():
        classes = tuple(getattr(keras.layers, name) for name in names if hasattr(keras.layers, name))
        if isinstance(layer, classes):
            return kind
    return "other"


def _output_names(model: Any, count: int) -> list[str]:
    layers = [model.layers[-1].name] if count == 1 and model.layers else []
    names = list(getattr(model, "output_names", None) or layers)
    taken = {x.name for x in model.inputs}  # a model may pass an input on
    if len(names) != count or len({*names} - taken) != count:
        names = [f"output_{number}" for number in range(count)] if count > 1 else ["output"]
    return names
