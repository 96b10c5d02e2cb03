"""Run a model in ONNX Runtime and collect the maps of its layers."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

import numpy as np
from numpy.typing import NDArray

from onnxfeat.errors import LayerError, MissingPackageError, ModelError, PictureError, ProviderError, quote
from onnxfeat.files import sha256_of
from onnxfeat.images import Picture, default_preprocessing, is_preprocessed, load_samples, names_of
from onnxfeat.metadata import Document, read_document
from onnxfeat.records import (
    FeatureMap,
    Features,
    Layer,
    ModelInput,
    Preprocessing,
    Provider,
    ProviderChoice,
)
from onnxfeat.selection import select

if TYPE_CHECKING:
    import onnx
    import onnxruntime

_log = logging.getLogger("onnxfeat")

_CUDA, _CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
_FATAL_ONLY = 4  # ONNX Runtime's log severity; its errors reach us as exceptions, or are told in our own words


class FeatureExtractor:
    """A model that is ready to give the maps of chosen layers, for any number of pictures.

    The graph is cut behind the last chosen layer, so that early layers cost little. A file that `expose` wrote runs
    as it is, without the onnx package.

    Args:
        model: Path of an ONNX file, its bytes, or a parsed model (which is not changed).
        layers: Selection (see `onnxfeat.selection`); None takes all conv and pool layers with a picture, of a
            file that `expose` wrote all that it exposes.
        provider: `cpu`; `cuda`, an error if it can't run; or `auto`, CUDA if it runs, else CPU with a logged warning.
        preprocessing: How pictures become the model's input; None takes what the model's metadata say, else resizing
            to the input, RGB, 1/255. A mapping such as `{"scale": 1.0}` changes single fields of that.

    Attributes:
        layers: The chosen layers in order of execution.
        input: The model's input.
        provider: Which execution provider was asked for and which one runs.
        preprocessing: How pictures are prepared.
        preprocessing_source: Who said so: `caller`, `model` or `default`, and which fields the caller changed.
        sha256: SHA-256 of the model.

    Raises:
        ModelError: The model can't be read or run.
        LayerError: The selection names nothing in the model.
        ProviderError: The provider is unknown or can't run.
        MissingPackageError: ONNX Runtime is not installed.

    Example:
        >>> extractor = FeatureExtractor("models/shapes_small.onnx", layers="conv_1", provider="cpu")
        >>> features = extractor("models/pictures/chelsea.png")
        >>> features["conv_1"].shape
        (1, 16, 64, 64)
    """

    def __init__(
        self,
        model: str | Path | bytes | onnx.ModelProto,
        *,
        layers: str | Sequence[str] | None = None,
        provider: Provider = "auto",
        preprocessing: Preprocessing | Mapping[str, Any] | None = None,
    ) -> None:
        if provider not in get_args(Provider):
            raise ProviderError(f"provider {provider!r} is unknown: choose {quote(get_args(Provider))}")
        self.model_name = Path(model).name if isinstance(model, str | Path) else "<memory>"
        document = read_document(Path(model)) if isinstance(model, str | Path) else Document()
        content: Path | bytes
        if isinstance(model, str | Path) and document.exposed is not None:
            exposed = document.exposed.layers
            self.layers = exposed if layers is None else select(exposed, layers)
            self.input = document.exposed.input
            self.sha256 = sha256_of(Path(model))
            content = Path(model)
        else:
            document, content = self._cut(model, layers)
        _refuse_unknown_layouts(self.layers)
        self.preprocessing, self.preprocessing_source = choose_preprocessing(preprocessing, document, self.input)
        self._session, self.provider = open_session(content, provider, self.model_name)
        if document.exposed is not None:
            document.exposed.refuse_lost((x.name for x in self._session.get_outputs()), self.model_name)

    def _cut(
        self, model: str | Path | bytes | onnx.ModelProto, layers: str | Sequence[str] | None
    ) -> tuple[Document, bytes]:
        from onnxfeat.exposure import exposed_model, picture_input
        from onnxfeat.graph import read_graph
        from onnxfeat.inventory import choose_layers

        graph = read_graph(model)
        self.layers = choose_layers(graph, layers)
        cut = exposed_model(graph, self.layers)
        self.input = picture_input(graph, [value.name for value in cut.graph.input])
        self.sha256 = graph.sha256
        return graph.document, cut.SerializeToString()

    def __call__(self, pictures: Picture | Sequence[Picture]) -> Features:
        """Return the maps of the chosen layers for one picture or many.

        Args:
            pictures: One or many of: path of a picture or `.npy` file, PIL image, `uint8` array (rows, columns,
                channels), or preprocessed array of rank 4 in the input's layout.

        Raises:
            PictureError: A picture can't be read or does not fit the model, or the maps of the pictures differ in size.
            ModelError: The model fails while it runs.
        """
        start = time.perf_counter()
        several = isinstance(pictures, Sequence) and not isinstance(pictures, str)
        batch = list(cast(Sequence[Picture], pictures)) if several else [cast(Picture, pictures)]
        if not batch:
            raise PictureError("no picture was passed: pass one or more")
        runs: list[list[NDArray[Any]]] = []
        names: list[str] = []
        preprocessed: list[bool] = []
        for picture, name in zip(batch, names_of(batch), strict=True):
            samples = load_samples(picture, self.input, self.preprocessing)
            names += [name] if len(samples) == 1 else [f"{name}[{i}]" for i in range(len(samples))]
            preprocessed += [is_preprocessed(picture)] * len(samples)
            # One at a time: the maps of a picture then never depend on its company, and many models allow no batch.
            runs += [self._run(sample[None]) for sample in samples]
        maps = {}
        for position, layer in enumerate(self.layers):
            arrays = [_channels_first(run[position], layer) for run in runs]
            if len({array.shape for array in arrays}) > 1:
                raise PictureError(
                    f"the pictures differ in size, and so do their maps of {layer.name!r}: pass them one by one, or "
                    f"set the size in the preprocessing"
                )
            maps[layer.name] = FeatureMap(layer=layer, array=arrays[0] if len(arrays) == 1 else np.concatenate(arrays))
        return Features(
            maps=maps,
            pictures=tuple(names),
            preprocessed=tuple(preprocessed),
            model=self.model_name,
            sha256=self.sha256,
            provider=self.provider,
            preprocessing=self.preprocessing,
            preprocessing_source=self.preprocessing_source,
            seconds=time.perf_counter() - start,
        )

    def _run(self, sample: NDArray[Any]) -> list[NDArray[Any]]:
        """Return the value of each layer for one sample; a fixed batch is filled with copies of it."""
        fixed = self.input.axis("N") or 1
        feed = {self.input.name: np.repeat(sample, fixed, axis=self.input.layout.index("N"))}
        values = list(dict.fromkeys(layer.value for layer in self.layers))
        try:
            results = dict(zip(values, self._session.run(values, feed), strict=True))
        except Exception as error:  # ONNX Runtime's exceptions share no base class but this one
            shape = " x ".join(str(side) for side in sample.shape)
            hint = ""
            if self.input.axis("H") is None or self.input.axis("W") is None:
                hint = "; the model leaves the picture's size open: try another, such as multiples of 32"
            raise ModelError(
                f"ONNX Runtime could not run {self.model_name} on an input of {shape}: {_first_line(error)}{hint}"
            ) from error
        return [results[layer.value] for layer in self.layers]


def _refuse_unknown_layouts(layers: Sequence[Layer]) -> None:
    unknown = [layer for layer in layers if layer.layout is None]
    if unknown:
        names = ", ".join(f"!{layer.name}" for layer in unknown[:5])
        raise LayerError(
            f"the graph does not tell the axes of {len(unknown)} of the {len(layers)} chosen layers, such as "
            f"{unknown[0].name!r} ({unknown[0].op_type}): take them away with {names!r}"
        )


def _channels_first(array: NDArray[Any], layer: Layer) -> NDArray[np.float32]:
    """Return the first sample of a layer's value as float32, shape (1, C, *spatial)."""
    layout = layer.layout or ""
    if array.ndim != len(layout):
        raise ModelError(
            f"layer {layer.name!r} gave an array of shape {array.shape}, its layout is {layout}: the model contradicts "
            f"itself; export it again"
        )
    batch = layout.index("N")
    first = np.take(array, [0], axis=batch) if array.shape[batch] > 1 else array
    spatial = sorted(set(layout) - set("NC"), key="DHW".find)
    ordered = first.transpose([layout.index(axis) for axis in ("N", "C", *spatial)])
    return np.ascontiguousarray(ordered, dtype=np.float32)


def choose_preprocessing(
    asked: Preprocessing | Mapping[str, Any] | None, document: Document, target: ModelInput
) -> tuple[Preprocessing, str]:
    """Return how pictures are prepared, and who said so: the caller, else the model, else the default."""
    if isinstance(asked, Preprocessing):
        return asked, "caller"
    if document.preprocessing is not None:
        base, source = document.preprocessing, "model"
    else:
        base, source = default_preprocessing(target), "default"
    return (base.changed(asked), f"{source}, {' and '.join(asked)} from the caller") if asked else (base, source)


def open_session(
    content: Path | bytes, provider: Provider, model_name: str
) -> tuple[onnxruntime.InferenceSession, ProviderChoice]:
    """Open a session; what counts is the provider that it has, never the one that was asked for."""
    runtime = _import_runtime()
    available = runtime.get_available_providers()
    wanted = [_CUDA, _CPU] if provider != "cpu" and _CUDA in available else [_CPU]
    options = runtime.SessionOptions()
    options.log_severity_level = _FATAL_ONLY
    try:
        with _quiet(runtime):
            session = runtime.InferenceSession(
                os.fspath(content) if isinstance(content, Path) else content, options, providers=wanted
            )
    except Exception as error:  # ONNX Runtime's exceptions share no base class but this one
        raise ModelError(
            f"ONNX Runtime {runtime.__version__} can't load {model_name}: {_first_line(error)}; check that the file is "
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


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
