"""Load Keras models from files: `.keras` archives and legacy HDF5 files, without running code that they hold."""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import os
import re
import sys
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from onnxfeat.converter.messages import reason_of, unreadable_told, without_greetings
from onnxfeat.errors import ConversionError, MissingPackageError, quote

SUFFIXES = (".keras", ".h5", ".hdf5")

_OF_KERAS_2 = frozenset({"TFOpLambda", "SlicingOpLambda", "ClassMethod", "InstanceMethod", "InstanceProperty"})
"""Layers by which Keras 2 kept calls of TensorFlow functions in a model."""


def import_keras() -> Any:
    """Import Keras with TensorFlow behind it, quietly.

    Raises:
        MissingPackageError: TensorFlow or Keras is not installed.
        ConversionError: Keras is imported already, on another backend.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # else TensorFlow greets on stderr
    if "keras" not in sys.modules:
        # A file means the same on every backend; what the user set is for programs that train.
        os.environ["KERAS_BACKEND"] = "tensorflow"
    # All that the work needs, now and not after minutes of it.
    for package, name in (("tensorflow", "TensorFlow"), ("keras", "Keras"), ("tf2onnx", "tf2onnx")):
        try:
            with without_greetings():
                importlib.import_module(package)
        except ImportError as error:
            raise MissingPackageError(f'converting needs {name} ({error}): pip install "onnxfeat[keras]"') from error
    if importlib.util.find_spec("onnxruntime") is None:
        raise MissingPackageError('converting needs ONNX Runtime to compare the result: pip install "onnxfeat[keras]"')
    import keras

    if keras.backend.backend() != "tensorflow":
        raise ConversionError(
            f"Keras runs on {keras.backend.backend()} in this process, converting needs TensorFlow: save the model "
            f"with model.save('model.keras') and convert the file, `onnxfeat convert model.keras -o model.onnx`, or "
            f"set KERAS_BACKEND=tensorflow before Keras is imported"
        )
    for name in ("tensorflow", "tf2onnx", "absl"):  # what they would say of errors, ours say better
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return keras


def load_keras_file(path: Path, *, custom_objects: str | Path | None = None, unsafe: bool = False) -> Any:
    """Load a `.keras` or legacy `.h5` file; code in the file is not run.

    Args:
        path: The file.
        custom_objects: A Python file or the name of an importable module that defines the file's own layers and
            functions; it is run.
        unsafe: Whether code in the file (Lambda layers) may run.

    Raises:
        ConversionError: The file is missing or not a Keras model, holds code, or needs custom layers.
    """
    _refuse_other(path)
    keras = import_keras()
    config = _config_of(path)
    if not unsafe:
        _refuse_code(path, config)
    own = {"DepthwiseConv2D": _depthwise_of_keras_2(keras)} if path.suffix.lower() != ".keras" else {}
    own.update({} if custom_objects is None else _objects_in(keras, custom_objects))
    try:
        with warnings.catch_warnings(), keras.saving.custom_object_scope(own):
            warnings.simplefilter("ignore")  # Keras warns of optimizer states, which nobody needs here
            return keras.saving.load_model(path, compile=False, safe_mode=not unsafe)
    except Exception as error:  # Keras raises whatever its deserializers meet
        raise ConversionError(_way_out(keras, path, config, error)) from error


def _depthwise_of_keras_2(keras: Any) -> Any:
    """Return a class that takes what Keras 2 wrote of depthwise convolutions: with a number of groups, which is 1."""

    class DepthwiseConv2D(keras.layers.DepthwiseConv2D):  # type: ignore[misc]
        def __init__(self, *args: Any, groups: int = 1, **options: Any) -> None:  # noqa: ARG002  # Keras 3 refuses it
            super().__init__(*args, **options)

    return DepthwiseConv2D


def _refuse_other(path: Path) -> None:
    with unreadable_told(path), path.open("rb") as file:
        start = file.read(8)
    # A .keras file is a zip archive, an .h5 file begins with the signature of HDF5.
    if not start.startswith(b"PK\x03\x04" if path.suffix.lower() == ".keras" else b"\x89HDF\r\n\x1a\n"):
        raise ConversionError(f"{path} is not what its name says, or empty: save the model again")


def _config_of(path: Path) -> dict[str, Any]:
    """Return the configuration in a Keras file; an empty one if there is none, as in a file of weights."""
    try:
        if path.suffix.lower() == ".keras":
            with zipfile.ZipFile(path) as archive:
                text = archive.read("config.json")
        else:
            import h5py

            with h5py.File(path) as file:
                text = file.attrs.get("model_config", b"{}")
        config = json.loads(text)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, RuntimeError) as error:
        raise ConversionError(
            f"{path} is damaged, its configuration can't be read ({error}): save the model again"
        ) from error
    return config if isinstance(config, dict) else {}


def _refuse_code(path: Path, config: dict[str, Any]) -> None:
    """Raise a `ConversionError` if a configuration holds code: Keras itself may run it from legacy files."""
    for part in _parts(config):
        name, held = part.get("class_name"), part.get("config")
        if name in ("Lambda", "__lambda__", "function_type_lambda"):
            inner = held if isinstance(held, dict) else {}
            what = f"Lambda layer {inner.get('name') or part.get('name') or name!r}" if name == "Lambda" else "a lambda"
        elif (name == "function" and held == "<lambda>") or _is_bytecode(part):
            what = "a lambda"
        else:
            continue
        raise ConversionError(
            f"{path} holds code that would run when it is loaded ({what}), so it was not loaded: if you trust whoever "
            f"made it, allow that with --unsafe (unsafe=True in Python), or replace it by a layer or a named function, "
            f"given with --custom-objects"
        )


def _is_bytecode(part: dict[str, Any]) -> bool:
    """Return whether a part of a legacy configuration is a Python function, marshaled: code, defaults and closure."""
    value = part.get("value", part.get("config"))
    return isinstance(value, list) and len(value) == 3 and isinstance(value[0], str) and value[0].startswith("4w")


def _parts(value: Any) -> Iterator[dict[str, Any]]:
    """Yield all mappings inside of JSON data."""
    todo = [value]
    while todo:
        item = todo.pop()
        if isinstance(item, dict):
            yield item
            todo += reversed(list(item.values()))
        elif isinstance(item, list):
            todo += reversed(item)


def _objects_in(keras: Any, source: str | Path) -> dict[str, Any]:
    """Run a module; return its classes and functions by name."""
    path = Path(source)
    try:
        if path.suffix == ".py":
            spec = importlib.util.spec_from_file_location(path.stem, path)
            if spec is None or spec.loader is None or not path.is_file():
                raise ConversionError(f"there is no Python file {path}: check the path of the custom objects")
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module  # as an import does; decorators look there
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(str(source))
    except ConversionError:
        raise
    except Exception as error:  # whatever the user's code raises
        raise ConversionError(
            f"the custom objects in {source} can't be imported ({type(error).__name__}: {reason_of(error)}): pass a "
            f"Python file or the name of an installed module"
        ) from error
    found = {name: thing for name, thing in vars(module).items() if callable(thing) and not name.startswith("_")}
    registered = keras.saving.get_custom_objects()
    return {**found, **{name.rpartition(">")[2]: thing for name, thing in registered.items()}}


def _way_out(keras: Any, path: Path, config: dict[str, Any], error: Exception) -> str:
    """Return what to tell of a file that Keras can't load."""
    text, start = str(error), f"Keras {keras.__version__} can't load {path}"
    if not config:
        return (
            f"{path} holds weights alone, without the model they belong to: build the model in Python, "
            f"model.load_weights({path.name!r}), and save it whole with model.save('model.keras')"
        )
    if "safe_mode" in text or "unsafe" in text:
        return (
            f"{path} holds code that would run when it is loaded ({reason_of(error)}), so it was not loaded: if you "
            f"trust whoever made it, allow that with --unsafe (unsafe=True in Python)"
        )
    if "<lambda>" in text or "__lambda__" in text:
        return (
            f"{start}: Keras can't make a lambda of it again: replace it by a named function, save the model again, "
            f"and give the function with --custom-objects functions.py"
        )
    homes = (keras, keras.layers, keras.models, keras.initializers, keras.regularizers, keras.constraints)
    known = {name for home in homes for name in dir(home)} | {"Functional", "Model"}
    classes = [
        part["class_name"]
        for part in _parts(config)
        if isinstance(part.get("class_name"), str) and isinstance(part.get("config"), dict)
    ]
    lost = [name for name in dict.fromkeys(classes) if name in _OF_KERAS_2]
    told = re.findall(r"(?:locate|Unknown) (?:class|function|layer|object):? '([^'\n]+)'", text)
    named = [name.rpartition(">")[2] for name in [*classes, *told] if f"'{name}'" in text]
    unknown = [name for name in dict.fromkeys(named) if name not in known and not name.startswith(("__", "keras."))]
    if lost:
        return f"{start}{_keras_version(path)}: Keras 3 has no {quote(lost)}; {_keras_2(path)}"
    if unknown or "Could not locate" in text or "Unknown layer" in text or "custom_objects" in text:
        names = ", ".join(unknown) or reason_of(error)
        return (
            f"{start}: it has layers of its own ({names}): name the Python file or module that defines them, "
            f"--custom-objects layers.py, or pass a live model to convert_keras"
        )
    if path.suffix.lower() != ".keras" or "character `/`" in text or "cannot contain" in text:
        version = _keras_version(path)
        return f"{start}{version}: {reason_of(error)}; {_keras_2(path)}"
    return f"{start}: {reason_of(error)}; check that it is complete, or pass a live model to convert_keras"


def _keras_2(path: Path) -> str:
    return (
        f"Keras 2 would load it: pip install tf_keras, then "
        f"tf_keras.models.load_model({path.name!r}, compile=False).export('model'), and convert that SavedModel folder"
    )


def _keras_version(path: Path) -> str:
    """Return which Keras wrote a legacy file, as part of a sentence."""
    import h5py

    if path.suffix.lower() == ".keras":
        return ""
    with h5py.File(path) as file:
        version = file.attrs.get("keras_version", "")
    version = version.decode() if isinstance(version, bytes) else version
    return f" (written by Keras {version})" if version else ""
