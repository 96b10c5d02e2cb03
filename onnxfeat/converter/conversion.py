"""Convert a model of another framework to ONNX, prove it layer by layer, and write all that is known into the file."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import onnx

from onnxfeat.converter.cleaning import without_watchers
from onnxfeat.converter.half_weights import with_half_weights
from onnxfeat.converter.keras_files import SUFFIXES, import_keras, load_keras_file
from onnxfeat.converter.keras_models import KerasModel
from onnxfeat.converter.other_backends import convert_elsewhere, other_backend
from onnxfeat.converter.preparation import input_layout, notes_on, preprocessing_of, scaling_of
from onnxfeat.converter.saved_models import load_saved_model
from onnxfeat.converter.sources import Source
from onnxfeat.converter.tflite_models import load_tflite
from onnxfeat.converter.verification import (
    bicubic_layers,
    expected_of,
    is_undecided,
    is_within_noise,
    layer_references,
    measure,
    output_references,
    refuse_disagreement,
    run_file,
    with_more_noise,
)
from onnxfeat.errors import ConversionError, OutputError
from onnxfeat.files import refuse_existing, sha256_of, whole_file
from onnxfeat.findings import Conversion, LayerAgreement
from onnxfeat.graph.reading import read_graph
from onnxfeat.graph.weights import digests_of
from onnxfeat.metadata import Document, MappedLayer, Origin
from onnxfeat.preprocessing import Preprocessing, Preset
from onnxfeat.records import DEFAULT_OPSET, ModelInput
from onnxfeat.references import KEY, LayerReference, Reference
from onnxfeat.running.exposure import picture_input, store

_PACKAGES = ("onnxfeat", "keras", "tensorflow", "tensorflow-cpu", "tf2onnx", "onnx", "onnxruntime")


def convert_keras(
    model: Any,
    path: str | Path,
    *,
    preprocessing: Preprocessing | Preset | Mapping[str, Any] | None = None,
    labels: Sequence[str] = (),
    opset: int = DEFAULT_OPSET,
    weights: Literal["float32", "float16"] = "float32",
    batch: int | None = None,
    input_shapes: Any = None,
    output_names: Sequence[str] = (),
    signature: str | None = None,
    custom_objects: str | Path | None = None,
    unsafe: bool = False,
    overwrite: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Conversion:
    """Convert a Keras model, a SavedModel or a TFLite file to an ONNX file that knows its layers, and prove it.

    The file carries, in its metadata, which ONNX value is the output of which layer, how pictures are prepared, and
    what the framework computed for each layer on one seeded input. Before it is written, that input runs through the
    framework and through ONNX Runtime, and every layer is compared.

    Args:
        model: Path of a `.keras`, legacy `.h5` or `.tflite` file or of a SavedModel folder, or a live Keras model.
        path: Where to write.
        preprocessing: How pictures become the model's input; None is Keras's own way (`load_img`, which resizes with
            nearest neighbor, then 1/255, or 0..255 for a model that scales its input itself). A preset's name such as
            `caffe`, or a mapping such as `{"scale": 1.0}` that changes single fields.
        labels: Names of the classes, in order, to be kept in the file.
        opset: ONNX operator set version of the file.
        weights: `float16` halves the file: the weights are rounded, and the results with them; how far is told.
        batch: Length of the batch axis; 0 takes any; None leaves what the model says.
        input_shapes: Shape of each input, batch first, for a live or loaded model that does not know them (see
            `onnxfeat.converter.keras_models.KerasModel`).
        output_names: What the outputs are called, in order; none leaves the model's own names.
        signature: Which signature of a SavedModel; None is `serving_default` or the only one.
        custom_objects: A Python file or the name of an importable module with the layers that a file needs beside
            Keras's own; it is run.
        unsafe: Whether code in a model file may run (Lambda layers).
        overwrite: Whether an existing file may be replaced.
        progress: Called with the name of each stage as it begins.

    Raises:
        ConversionError: The model can't be loaded or converted, or a layer differs from the framework by more than 1e-5
            of its range and by more than twice its own rounding noise there; then no file is written.
        PictureError: The preprocessing has a value out of range.
        OutputError: `path` exists or can't be written.
        MissingPackageError: TensorFlow, tf2onnx or ONNX Runtime is not installed.

    Example:
        >>> import tempfile
        >>> target = tempfile.mkdtemp() + "/small.onnx"
        >>> conversion = convert_keras("models/shapes_small.keras", target)
        >>> conversion.worst.error < 1e-5
        True
    """
    start = time.perf_counter()
    tell = progress or (lambda _: None)
    target = Path(path)
    refuse_existing(target, overwrite)
    if isinstance(model, str | Path) and target.resolve() == Path(model).resolve():
        raise OutputError(f"{target} is the model itself, which would be lost: choose another name for the ONNX file")
    _refuse_options(weights, batch)
    backend = other_backend()
    if backend is not None:
        tell(f"converting in a process of its own, as Keras runs on {backend} here")
        options = {
            "preprocessing": preprocessing,
            "labels": tuple(labels),
            "opset": opset,
            "weights": weights,
            "batch": batch,
            "input_shapes": input_shapes,
            "signature": signature,
            "output_names": tuple(output_names),
            "custom_objects": custom_objects,
            "unsafe": unsafe,
            "overwrite": overwrite,
        }
        conversion, sentence = convert_elsewhere(model, backend, target, options)
        return dataclasses.replace(conversion, notes=(*conversion.notes, sentence))
    tell("starting TensorFlow")
    import_keras()
    tell("loading the model and tracing its layers")
    source = load_source(
        model,
        signature=signature,
        custom_objects=custom_objects,
        unsafe=unsafe,
        input_shapes=input_shapes,
        batch=batch,
    )
    preprocessing_of(source, preprocessing, None)  # what does not fit is told before minutes of work
    names = _chosen_names(source, output_names)
    tell("converting to ONNX")
    watched = source.to_onnx(opset)
    tell("mapping the layers")
    converted, layer_map = without_watchers(watched, source, names)
    del watched
    scaling = scaling_of(converted, source)
    spec = preprocessing_of(source, preprocessing, scaling)
    tell(f"computing every layer in {source.computed_by.split()[0]}, and its rounding noise")
    expected = expected_of(source, spec)
    tell("comparing every layer")
    agreements = measure(converted, source, layer_map, names, expected)
    if is_undecided(agreements):
        tell("computing more of the rounding noise")
        expected = with_more_noise(source, expected)
        agreements = measure(converted, source, layer_map, names, expected)
    refuse_disagreement(agreements, source.computed_by, bicubic_layers(converted, layer_map))
    notes = [*source.notes, *notes_on(source, spec, preprocessing, scaling)]
    proven = agreements
    if weights == "float16":
        converted = with_half_weights(converted)
        agreements = measure(converted, source, layer_map, names, expected)
        worst = max(agreements, key=lambda found: found.error)
        notes.append(
            f"the weights are rounded to float16: that moves layers by {worst.error:.1e} of their range at most "
            f"({worst.name})"
        )
    measured = _with_errors(layer_map, agreements)
    layers = layer_references(source, measured, expected)
    measured = _told_ambiguous(measured, layers, proven)
    document = Document(
        layer_map=measured,
        preprocessing=spec,
        input=None if spec is None else _picture_input(converted, source),
        labels=tuple(labels),
        origin=_origin_of(model, source, weights),
    )
    reference = Reference(
        computed_by=source.computed_by,
        inputs=expected.recipes,
        layers=layers,
        outputs=output_references(names, expected, agreements),
        weights=digests_of(converted),
    )
    store(converted, document)
    entry = converted.metadata_props.add()
    entry.key, entry.value = KEY, reference.to_text()
    tell("writing the file")
    with whole_file(target, overwrite=overwrite) as temporary:
        temporary.write_bytes(converted.SerializeToString(deterministic=True))
        tell("loading and running the file")
        run_file(temporary, expected)
    return Conversion(
        path=target,
        layers=tuple(agreements),
        layer_map=measured,
        preprocessing=spec,
        opset=opset,
        notes=tuple(notes),
        seconds=time.perf_counter() - start,
        computed_by=source.computed_by,
    )


def load_source(
    model: Any,
    *,
    signature: str | None = None,
    custom_objects: str | Path | None = None,
    unsafe: bool = False,
    input_shapes: Any = None,
    batch: int | None = None,
) -> Source:
    """Return what is to be converted, by the form that it has.

    Raises:
        ConversionError: It is missing, damaged, of another form, or holds code.
    """
    if signature is not None and not (isinstance(model, str | Path) and Path(model).is_dir()):
        raise ConversionError(
            f"signature {signature!r} was asked for, which SavedModel folders alone have: leave it out"
        )
    if not isinstance(model, str | Path):
        return KerasModel(model, input_shapes=input_shapes, batch=batch)
    path = Path(model)
    path = path.parent if path.name == "saved_model.pb" else path
    suffix = path.suffix.lower()
    if suffix in SUFFIXES and not path.is_dir():
        loaded = load_keras_file(path, custom_objects=custom_objects, unsafe=unsafe)
        return KerasModel(loaded, input_shapes=input_shapes, batch=batch)
    if input_shapes is not None:
        raise ConversionError(f"{path} says itself what its inputs are: leave the input shapes out")
    if path.is_dir():
        return _with_batch(load_saved_model(path, signature=signature, unsafe=unsafe), batch)
    if suffix == ".tflite":
        return _with_batch(load_tflite(path), batch)
    if not path.exists():
        raise ConversionError(f"there is no file {path}: check the path of the model")
    raise ConversionError(
        f"{path} is no .keras, .h5, .hdf5 or .tflite file and no SavedModel folder: save the model with "
        f"model.save('model.keras')"
    )


def _with_batch(source: Source, batch: int | None) -> Source:
    """State the length of the batch axis of a model that leaves it open.

    Raises:
        ConversionError: The model fixes it, and so computes with that number.
    """
    if batch is None:
        return source
    for spec in source.inputs:
        if not spec.shape or spec.shape[0] not in (None, batch):
            raise ConversionError(
                f"input {spec.name!r} of {source.name} has a batch axis of length {(spec.shape or ('none',))[0]} for "
                f"good: leave the batch out, or convert the model that it was made from"
            )
    if batch:
        source.inputs = tuple(dataclasses.replace(spec, shape=(batch, *spec.shape[1:])) for spec in source.inputs)
    return source


def _refuse_options(weights: str, batch: int | None) -> None:
    if weights not in ("float32", "float16"):
        raise ConversionError(f"weights {weights!r} are unknown: choose 'float32' or 'float16'")
    if batch is not None and batch < 0:
        raise ConversionError(f"a batch of {batch} can't be: pass 1 or more, or 0 for any length")


def _chosen_names(source: Source, asked: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the outputs."""
    names = tuple(asked) or source.output_names
    if len(names) != len(source.output_names):
        raise ConversionError(
            f"{len(names)} names for {len(source.output_names)} outputs ({', '.join(source.output_names)}): give one "
            f"for each, in order"
        )
    taken = {spec.name for spec in source.inputs}
    bad = [name for name in names if not name or name in taken or names.count(name) > 1]
    if bad:
        raise ConversionError(f"output name {bad[0]!r} is empty, twice there, or an input's: give each one of its own")
    return names


def _with_errors(layer_map: Sequence[MappedLayer], agreements: Sequence[Any]) -> tuple[MappedLayer, ...]:
    by_name = {agreement.name: agreement for agreement in agreements}
    return tuple(
        mapped
        if mapped.value is None
        else dataclasses.replace(mapped, error=by_name[mapped.name].error, noise=by_name[mapped.name].noise)
        for mapped in layer_map
    )


def _told_ambiguous(
    layer_map: tuple[MappedLayer, ...], layers: Sequence[LayerReference], agreements: Sequence[LayerAgreement]
) -> tuple[MappedLayer, ...]:
    """Say of layers that are the same everywhere, or noise everywhere, that comparing them proves little."""
    flat = {layer.name for layer in layers if layer.is_constant and math.prod(layer.shape) > 1}
    reason = "its output is the same everywhere on the reference input, so that the comparison proves little"
    reasons = dict.fromkeys(flat, reason)
    for found in agreements:
        if not is_within_noise(found) and found.local is not None:
            reasons[found.name] = (
                f"rounding moves it by {found.noise:.1e} of its range in the framework itself, so that only the "
                f"comparison on its own inputs tells: off by {found.local:.1e}"
            )
    return tuple(
        dataclasses.replace(mapped, reason=reasons[mapped.name]) if mapped.name in reasons else mapped
        for mapped in layer_map
    )


def _picture_input(model: onnx.ModelProto, source: Source) -> ModelInput:
    """Return the input of a converted model; its layout is the framework's, which the graph need not tell."""
    return dataclasses.replace(picture_input(read_graph(model)), layout=input_layout(source))


def _origin_of(model: Any, source: Source, weights: str) -> Origin:
    path = Path(model) if isinstance(model, str | Path) else None
    tools = {}
    for package in _PACKAGES:
        try:
            tools[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue  # one of the two TensorFlows is never there
    return Origin(
        file=None if path is None else path.name,
        sha256=None if path is None else _sha256(path),
        framework=source.computed_by,
        weights=weights,
        tools=tools,
    )


def _sha256(path: Path) -> str:
    """Return the SHA-256 of a file; of a folder, that of the names and digests of all its files in order."""
    if not path.is_dir():
        return sha256_of(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    lines = (f"{file.relative_to(path).as_posix()} {sha256_of(file)}\n" for file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()
