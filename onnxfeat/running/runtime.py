"""Talk to ONNX Runtime: open sessions on the provider that was asked for, and feed them."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onnxfeat.errors import MissingPackageError, ModelError, ProviderError, quote
from onnxfeat.picture_files import load_array
from onnxfeat.records import ModelInput, Provider, ProviderChoice

if TYPE_CHECKING:
    import onnxruntime

_log = logging.getLogger("onnxfeat")

_CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
_BFLOAT16 = 16  # number of the type in TensorProto.DataType
_RUNTIME_TYPES: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(double)": np.dtype(np.float64),
    "tensor(bool)": np.dtype(np.bool_),
    **{f"tensor({name})": np.dtype(name) for name in "int8 int16 int32 int64 uint8 uint16 uint32 uint64".split()},
}
_WEIGHTS_APART = {"file_name": "weights", "min_size_in_bytes": "1024"}
_FATAL_ONLY = 4  # ONNX Runtime's log severity; its errors reach us as exceptions, or are told in our own words


def open_session(
    content: Path | bytes,
    provider: Provider,
    model_name: str,
    folder: Path | None = None,
    *,
    optimized: bool = True,
    save_to: Path | None = None,
    reuse: bool = True,
) -> tuple[onnxruntime.InferenceSession, ProviderChoice]:
    """Open a session; what counts is the provider that it has, never the one that was asked for.

    Args:
        content: Path or bytes of the model.
        provider: The execution provider.
        model_name: Name of the model, for messages.
        folder: Where a model that comes as bytes has the weights that it keeps in other files.
        optimized: Whether ONNX Runtime may fuse and fold nodes; False runs the graph as it is written.
        save_to: Where to save the graph as it was optimized, its weights in a file beside it.
        reuse: Whether memory is kept for the next run, which makes that faster; ONNX Runtime takes up to twice as much.
    """
    runtime = _import_runtime()
    available = runtime.get_available_providers()
    wanted = [_CUDA, CPU] if provider != "cpu" and _CUDA in available else [CPU]
    options = runtime.SessionOptions()
    options.log_severity_level = _FATAL_ONLY
    if folder is not None and isinstance(content, bytes):
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder.resolve()))
    options.enable_cpu_mem_arena = reuse
    if save_to is not None:
        options.optimized_model_filepath = os.fspath(save_to)
        for option, value in _WEIGHTS_APART.items():
            options.add_session_config_entry(f"session.optimized_model_external_initializers_{option}", value)
    if not optimized:
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        with _quiet(runtime):
            session = runtime.InferenceSession(
                os.fspath(content) if isinstance(content, Path) else content, options, providers=wanted
            )
    except Exception as error:  # ONNX Runtime's exceptions share no base class but this one
        raise ModelError(
            f"ONNX Runtime {runtime.__version__} can't load {model_name}: {first_line(error)}; check that the file is "
            f"complete and that this version knows its operators"
        ) from error
    got = session.get_providers()[0]
    if got == _CUDA or provider == "cpu":
        return session, ProviderChoice(asked=provider, got=got)
    if _CUDA in available:
        reason = (
            "this ONNX Runtime is built for CUDA but could not start it: no NVIDIA GPU, or its driver, CUDA or cuDNN "
            "libraries are missing or of another version (see `nvidia-smi`)"
        )
    else:
        reason = (
            f"this ONNX Runtime {runtime.__version__} is built without CUDA: in an environment of its own, "
            f'pip install "onnxfeat[gpu]"'
        )
    if provider == "cuda":
        raise ProviderError(f"provider 'cuda' is not to be had, only {got}: {reason}; or choose 'cpu' or 'auto'")
    if _CUDA in available:  # with a CPU build, CPU is what the user installed: a fact for the record, not a warning
        _log.warning("running on CPU instead of CUDA: %s", reason)
    return session, ProviderChoice(asked=provider, got=got, note=reason)


def _import_runtime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingPackageError(
            f'running a model needs ONNX Runtime ({error}): pip install "onnxfeat[cpu]", or "onnxfeat[gpu]" for CUDA'
        ) from error
    return onnxruntime


@contextlib.contextmanager
def _quiet(runtime: Any) -> Iterator[None]:
    """Keep ONNX Runtime's own log silent while a provider is tried; its outcome is reported by us.

    The log goes to stderr, and where CUDA fails to start, a message to stdout, which is for data.
    """
    runtime.set_default_logger_severity(_FATAL_ONLY)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        runtime.set_default_logger_severity(2)  # its default: warnings; it can't be asked what it was


def run(session: Any, names: Sequence[str], feed: Mapping[str, Any]) -> list[Any]:
    """Return outputs of a session by name; Ctrl-C ends the run, also of a model that would never end.

    ONNX Runtime does not come back to Python while it runs, so it runs in a thread of its own, and is told to stop
    between two nodes.

    Raises:
        Exception: Whatever ONNX Runtime raises; its exceptions share no base class but this one.
    """
    options = _import_runtime().RunOptions()
    with ThreadPoolExecutor(max_workers=1) as thread:
        result = thread.submit(session.run, list(names), dict(feed), options)
        try:
            return list(result.result())
        except BaseException:
            options.terminate = True
            raise


def first_line(error: Exception) -> str:
    """Return what an exception of ONNX Runtime says, without the lines that only its developers need."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def extra_inputs(
    session: Any, picture: str, given: Mapping[str, Any], model_name: str, known: Iterable[str] = ()
) -> dict[str, Any]:
    """Return what to feed to the inputs that do not take the picture.

    Args:
        session: The session.
        picture: Name of the input that takes the picture.
        given: Input name to number, array, or path of a `.npy` file.
        model_name: Name of the model, for messages.
        known: Names of inputs that the whole model has, of which the session's cut form may need fewer.

    Raises:
        ModelError: Inputs are missing, or what was given does not fit.
    """
    wanted = {x.name: x for x in session.get_inputs() if x.name != picture}
    others = (set(wanted) | set(known)) - {picture}
    for name in given:
        if name not in others:
            listed = quote(sorted(others)) or "none beside the picture's"
            raise ModelError(f"{model_name} takes no value for an input {name!r}: it has {listed}")
    missing = [x for x in wanted.values() if x.name not in given]
    if missing:
        shapes = [f"({', '.join(str(side or '?') for side in x.shape)})" if x.shape else "number" for x in missing]
        pairs = zip(missing, shapes, strict=True)
        listed = ", ".join(f"{x.name!r} {_RUNTIME_TYPES.get(x.type, x.type)} {shape}" for x, shape in pairs)
        raise ModelError(
            f"{model_name} wants {len(missing)} inputs beside the picture: {listed}; give each a value, "
            f"--input {missing[0].name}=NUMBER or --input {missing[0].name}=FILE.npy (in Python `inputs=`)"
        )
    return {name: _constant_input(given[name], wanted[name]) for name in wanted}


def _constant_input(value: Any, wanted: Any) -> NDArray[Any]:
    """Return a given value as the array that an input wants; a single number fills it."""
    dtype = _RUNTIME_TYPES.get(wanted.type)
    if dtype is None:
        raise ModelError(f"the input {wanted.name!r} is of {wanted.type}, for which no value can be given")
    array = load_array(value) if isinstance(value, str | Path) else np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise ModelError(f"the value of input {wanted.name!r} is of type {array.dtype}: give numbers")
    sides = [side if isinstance(side, int) and side > 0 else None for side in wanted.shape]
    if array.ndim == 0:
        array = np.broadcast_to(array, [side or 1 for side in sides])
    if len(sides) != array.ndim or any(
        side not in (None, length) for side, length in zip(sides, array.shape, strict=False)
    ):
        raise ModelError(
            f"the value of input {wanted.name!r} has shape {array.shape}, the model wants {wanted.shape}: give another"
        )
    if not np.can_cast(array.dtype, dtype, casting="same_kind"):
        raise ModelError(
            f"the value of input {wanted.name!r} has type {array.dtype}, the model wants {wanted.type}: convert it"
        )
    return np.ascontiguousarray(array, dtype)


def filled(sample: NDArray[Any], target: ModelInput) -> NDArray[Any]:
    """Return one sample as often as a fixed batch wants it; what is no single sample stays as it is."""
    fixed = target.axis("N") or 1
    if fixed > 1 and target.layout is not None and len(sample) == 1:
        return np.repeat(sample, fixed, axis=target.layout.index("N"))
    return sample


def fed(sample: NDArray[Any], target: ModelInput) -> Any:
    """Return a sample as ONNX Runtime takes it; bfloat16, which NumPy lacks, as the upper half of float32."""
    if target.dtype != "bfloat16":
        return sample
    import onnxruntime

    bits = np.ascontiguousarray(sample, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16  # to nearest, ties to even
    return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(rounded.astype(np.uint16), _BFLOAT16)
