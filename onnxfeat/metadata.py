"""Read and write the one JSON document that onnxfeat keeps in an ONNX file.

The document is the value of the key `onnxfeat` in the model's `metadata_props`:

    {
      "schema_version": 1,
      "layer_map":     [{"name", "class", "kind", "value", "layout", "status", "reason", "error", "noise"}, ...],
      "preprocessing": {"size", "scale", "mean", "std", "color", "interpolation", "aspect", "resampling", "fill"},
      "input":         {"name", "shape", "layout", "dtype", "scaling"},
      "labels":        ["cat", "dog", ...],
      "origin":        {"file", "sha256", "framework", "weights", "tools": {"tf2onnx": "1.17.0", ...}},
      "exposed":       {"source_sha256", "input": as above, "layers": [...], "skeleton": {"steps", "places"}}
    }

`layer_map`, `preprocessing` and `input` (the one that takes the picture) are written by the conversion from Keras,
`exposed` by `expose`; each may be missing, and so may `aspect`, `resampling`, `fill`, `scaling` and `skeleton`, which
older versions do not write. `skeleton` says which pixels the layers see (see `onnxfeat.registration`).
`status` of a mapped layer is `exact`; `absent` where the graph has no value for it (then `value` is null and `reason`
says why); or `ambiguous` where there is a value, but what it was compared on proves nothing (`reason` says why).
`origin` says what the file was converted from (of a folder, `sha256` is that of the lines `name sha256` of its files)
and with what; `weights` is `float32`, or `float16` where they were rounded. What the framework computed for each layer
is kept under a key of its own (see `onnxfeat.references`).

Reference values, which `check` replays, have a key of their own: `onnxfeat.references` documents their format.

Reading needs neither the onnx package nor protobuf: it walks the top level of the file's wire format
(https://protobuf.dev/programming-guides/encoding/) and skips the graph, so it takes microseconds whatever the weights.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, get_args

from onnxfeat.errors import ModelError, PictureError
from onnxfeat.preprocessing import Preprocessing
from onnxfeat.records import Kind, Layer, ModelInput
from onnxfeat.registration import Skeleton
from onnxfeat.serialization import fields_from_json, fields_to_json

KEY = "onnxfeat"
SCHEMA_VERSION = 1

# Field numbers of ModelProto and StringStringEntryProto in onnx.proto.
_IR_VERSION, _GRAPH, _METADATA_PROPS = 1, 7, 14
_ENTRY_KEY, _ENTRY_VALUE = 1, 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

# What reading a document that is none may raise.
_DAMAGED = (ValueError, ArithmeticError, KeyError, TypeError, AttributeError, RecursionError, PictureError)


@dataclass(frozen=True, slots=True, kw_only=True)
class MappedLayer:
    """Where one Keras layer is in the ONNX graph.

    Attributes:
        name: Keras's name of the layer; its path, such as `block_1/conv`, inside a nested model; with `#1`, `#2` where
            the layer is called more than once.
        keras_class: Its class, such as `Conv2D`.
        kind: What it does.
        value: The ONNX value that is its output; None where the graph has none.
        layout: Order of the axes of that value, such as `NCHW`; None where Keras does not tell.
        reason: Why the graph has no value for it, or why the comparison proves nothing; else empty.
        error: Largest difference to Keras relative to the layer's range, as measured when the file was made.
        noise: The same figure of Keras against itself with each layer's output moved by rounding.
    """

    name: str
    keras_class: str
    kind: Kind
    value: str | None
    layout: str | None
    error: float | None = None
    noise: float | None = None
    reason: str = ""

    @property
    def status(self) -> str:
        """`exact`, `absent` or `ambiguous` (see the module)."""
        if self.value is None:
            return "absent"
        return "ambiguous" if self.reason else "exact"

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON data."""
        return {
            "name": self.name,
            "class": self.keras_class,
            "kind": self.kind,
            "value": self.value,
            "layout": self.layout,
            "status": self.status,
            "reason": self.reason,
            "error": self.error,
            "noise": self.noise,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> MappedLayer:
        """Return the record that `to_json` wrote."""
        return cls(
            name=data["name"],
            keras_class=data["class"],
            kind=data["kind"],
            value=data["value"],
            layout=data["layout"],
            error=data.get("error"),
            noise=data.get("noise"),
            reason=data.get("reason", ""),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What a file was converted from, and with what.

    Attributes:
        file: Name of the file or folder; None for a live model.
        sha256: Its SHA-256 (see the module for a folder's).
        framework: What computed the reference values, and its version.
        weights: `float32`, or `float16` where they were rounded to that.
        tools: Package to version.
    """

    file: str | None
    sha256: str | None
    framework: str
    weights: str
    tools: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON data."""
        return fields_to_json(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposed:
    """What a file that `expose` wrote says about its outputs.

    Attributes:
        source_sha256: SHA-256 of the file that it was made from.
        input: The input that takes the picture; None where it takes more to tell.
        layers: The exposed layers; the value of each is an output of the file.
        skeleton: What leads from the picture to them, with a place for each; without places in files of older versions.
    """

    source_sha256: str
    input: ModelInput | None
    layers: tuple[Layer, ...]
    skeleton: Skeleton = field(default_factory=Skeleton)

    def refuse_unclear(self, origin: str) -> None:
        """Raise a `ModelError` if there are no layers, or two of one name."""
        if len({layer.name for layer in self.layers}) < max(len(self.layers), 1):
            problem = "two layers of one name" if self.layers else "no layer"
            raise ModelError(
                f"the onnxfeat metadata in {origin} list {problem}: another tool changed the file; expose the original "
                f"again"
            )

    def refuse_lost(self, outputs: Iterable[str], origin: str) -> None:
        """Raise a `ModelError` if a layer's value is not among the file's outputs any more; and as `refuse_unclear`."""
        self.refuse_unclear(origin)
        lost = {layer.value for layer in self.layers}.difference(outputs)
        if lost:
            raise ModelError(
                f"{origin} says that it exposes {min(lost)!r}, but has no such output: another tool changed the file; "
                f"expose the original again"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """All that onnxfeat knows about a model beyond its graph."""

    layer_map: tuple[MappedLayer, ...] = ()
    preprocessing: Preprocessing | None = None
    input: ModelInput | None = None
    exposed: Exposed | None = None
    labels: tuple[str, ...] = ()
    origin: Origin | None = None

    def to_text(self) -> str:
        """Return the document as JSON text; equal documents give equal text."""
        data: dict[str, Any] = {"schema_version": SCHEMA_VERSION}
        if self.layer_map:
            data["layer_map"] = [layer.to_json() for layer in self.layer_map]
        if self.preprocessing is not None:
            data["preprocessing"] = self.preprocessing.to_json()
        if self.input is not None:
            data["input"] = self.input.to_json()
        if self.labels:
            data["labels"] = list(self.labels)
        if self.origin is not None:
            data["origin"] = self.origin.to_json()
        if self.exposed is not None:
            data["exposed"] = {
                "source_sha256": self.exposed.source_sha256,
                "input": None if self.exposed.input is None else self.exposed.input.to_json(),
                "layers": [layer.to_json() for layer in self.exposed.layers],
            }
            if self.exposed.skeleton.places:
                data["exposed"]["skeleton"] = self.exposed.skeleton.to_json()
        return json.dumps(data, ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_text(cls, text: str, origin: str) -> Document:
        """Return the document that `to_text` wrote.

        Args:
            text: The JSON text.
            origin: Name of the file, for messages.

        Raises:
            ModelError: The text is not such a document, or of a newer version.
        """
        try:
            data = json.loads(text)
            version = data["schema_version"]
            if version != SCHEMA_VERSION:
                raise ModelError(
                    f"{origin} carries onnxfeat metadata of version {version!r:.20}, this onnxfeat reads version "
                    f"{SCHEMA_VERSION}: update onnxfeat, or convert the model again"
                )
            exposed_data = data.get("exposed")
            preprocessing, picture_input = data.get("preprocessing"), data.get("input")
            exposed = None
            if exposed_data is not None:
                picture, skeleton = exposed_data["input"], exposed_data.get("skeleton")
                exposed = Exposed(
                    source_sha256=exposed_data["source_sha256"],
                    input=None if picture is None else ModelInput.from_json(picture),
                    layers=tuple(Layer.from_json(layer) for layer in exposed_data["layers"]),
                    skeleton=Skeleton() if skeleton is None else Skeleton.from_json(skeleton),
                )
            document = cls(
                layer_map=tuple(MappedLayer.from_json(layer) for layer in data.get("layer_map", ())),
                preprocessing=None if preprocessing is None else Preprocessing.from_json(preprocessing),
                input=None if picture_input is None else ModelInput.from_json(picture_input),
                exposed=exposed,
                labels=tuple(data.get("labels", ())),
                origin=None if data.get("origin") is None else Origin(**fields_from_json(Origin, data["origin"])),
            )
            _check(document)
        except (
            ValueError,
            ArithmeticError,
            KeyError,
            TypeError,
            AttributeError,
            RecursionError,
            PictureError,
        ) as error:
            raise ModelError(
                f"the onnxfeat metadata in {origin} is damaged ({type(error).__name__}: {error}): convert or expose "
                f"the model again"
            ) from error
        return document


def _check(document: Document) -> None:
    """Raise a `ValueError` unless each field holds what its record says: anybody may have edited the file."""
    exposed, inputs = document.exposed, [document.input]
    if exposed is not None:
        _check_texts(exposed, "source_sha256")
        inputs.append(exposed.input)
        if len(exposed.skeleton.places) not in (0, len(exposed.layers)):
            raise ValueError(f"{len(exposed.skeleton.places)} places of {len(exposed.layers)} layers")
    for mapped in document.layer_map:
        _check_texts(mapped, "name", "keras_class", "reason", maybe=("value",))
        _check_axes(mapped.kind, mapped.layout, None)
    if not all(isinstance(label, str) for label in document.labels):
        raise ValueError(f"labels {document.labels!r:.80}")
    if document.origin is not None:
        _check_texts(document.origin, "framework", "weights", maybe=("file", "sha256"))
        if not all(isinstance(text, str) for pair in document.origin.tools.items() for text in pair):
            raise ValueError(f"tools {document.origin.tools!r:.80}")
    for layer in exposed.layers if exposed else ():
        _check_texts(layer, *_LAYER_TEXTS, maybe=("activation", "dtype", "source"))
        _check_axes(layer.kind, layer.layout, layer.shape)
        _check_numbers(layer)
    for target in inputs:
        if target is not None:
            _check_texts(target, "name", "dtype", maybe=("scaling",))
            _check_axes("other", None if target.layout in _WITHOUT_BATCH else target.layout, target.shape)
            if target.layout is not None and len(target.layout) != len(target.shape):
                raise ValueError(f"layout {target.layout!r} of shape {target.shape!r:.80}")
    document.to_text().encode()  # raises where a name has what no text may: half of a surrogate pair


_LAYER_TEXTS = ("name", "op_type", "value", "raw_value", "node", "note", "unseen")


def _check_texts(record: object, *names: str, maybe: Iterable[str] = ()) -> None:
    for name in (*names, *maybe):
        text = getattr(record, name)
        if not isinstance(text, str) and not (text is None and name in maybe):
            raise ValueError(f"{name} {text!r:.80}")


def _check_axes(kind: Any, layout: Any, shape: Any) -> None:
    if kind not in get_args(Kind):
        raise ValueError(f"kind {kind!r:.80}")
    if layout is not None and not (isinstance(layout, str) and re.fullmatch(_LAYOUT, layout)):
        raise ValueError(f"layout {layout!r:.80}")
    if shape is not None and not (isinstance(shape, tuple) and all(isinstance(x, int | str | None) for x in shape)):
        raise ValueError(f"shape {shape!r:.80}")


def _check_numbers(layer: Layer) -> None:
    for name in ("reduction", "receptive_field"):
        numbers = getattr(layer, name)
        if numbers is not None and not _are_numbers(numbers):
            raise ValueError(f"{name} {numbers!r:.80}")
    found = layer.quantization
    if found is None:
        return
    lengths = {1} if found.axis is None else {len(found.scale)}
    if not _are_numbers(found.scale) or not all(isinstance(x, int) for x in found.zero_point):
        raise ValueError(f"quantization {found!r:.80}")
    if {len(found.scale), len(found.zero_point)} != lengths or (found.axis or 0) not in range(len(layer.layout or "")):
        raise ValueError(f"quantization {found!r:.80}")


def _are_numbers(numbers: Any) -> bool:
    return isinstance(numbers, tuple) and all(isinstance(x, int | float) and math.isfinite(x) for x in numbers)


# Each axis once, N and C among them.
_LAYOUT = r"(?=.*N)(?=.*C)(?!.*(.).*\1)[NCDHWT]+"
_WITHOUT_BATCH = ("CHW", "HWC")  # of an input


def read_document(path: Path) -> Document:
    """Return the document in an ONNX file, an empty one if there is none, without reading the graph.

    Raises:
        ModelError: The file is missing, a folder, unreadable, truncated, or not ONNX.
    """
    try:
        if path.is_dir():
            raise ModelError(f"{path} is a folder, an ONNX file is wanted: name the .onnx file in it")
        if path.exists() and not path.is_file():  # a pipe would be waited for without end
            raise ModelError(f"{path} is a device or pipe, an ONNX file is wanted: write the model to a file first")
        if path.suffix.lower() in (".keras", ".h5", ".hdf5") and path.exists():
            raise ModelError(
                f"{path} is a Keras file, an ONNX file is wanted: convert it first, "
                f"`onnxfeat convert {path} -o model.onnx`"
            )
        with path.open("rb") as file:
            return _read_document(file, os.fstat(file.fileno()).st_size, str(path))
    except FileNotFoundError:
        raise ModelError(f"there is no file {path}: check the path of the model") from None
    except OSError as error:
        raise ModelError(f"{path} can't be read: {error.strerror}; check that it is a file you may read") from error


def _read_document(file: BinaryIO, size: int, origin: str) -> Document:
    seen: set[int] = set()
    text = None
    try:
        for field, payload in _fields(file, size, wanted=_METADATA_PROPS):
            seen.add(field)
            if payload is not None:
                entry = dict(_entry_fields(payload))
                if text is None and entry.get(_ENTRY_KEY) == KEY.encode():
                    text = entry.get(_ENTRY_VALUE, b"").decode()
    except EOFError as error:
        if _IR_VERSION in seen:
            raise ModelError(f"{origin} is truncated: it ends in the middle of the model; fetch it again") from error
        raise ModelError(f"{origin} is not an ONNX file: pass a model that was exported to ONNX") from error
    except ValueError as error:
        raise ModelError(f"{origin} is not an ONNX file: pass a model that was exported to ONNX") from error
    if _GRAPH not in seen:
        raise ModelError(f"{origin} is not an ONNX file, it has no graph: pass a model that was exported to ONNX")
    return Document() if text is None else Document.from_text(text, origin)


def _fields(file: BinaryIO, size: int, wanted: int) -> Iterator[tuple[int, bytes | None]]:
    """Yield the field numbers of one protobuf message, with the payload where it is the wanted field."""
    while file.tell() < size:
        tag = _varint(file)
        field, wire_type = tag >> 3, tag & 7
        if field == 0:
            raise ValueError("field number 0")
        payload = None
        if wire_type == _VARINT:
            _varint(file)
        elif wire_type in (_FIXED64, _FIXED32):
            file.seek(8 if wire_type == _FIXED64 else 4, os.SEEK_CUR)
        elif wire_type == _BYTES:
            length = _varint(file)
            if file.tell() + length > size:
                raise EOFError("a field is longer than the file")
            if field == wanted:
                payload = file.read(length)
            else:
                file.seek(length, os.SEEK_CUR)
        else:
            raise ValueError(f"wire type {wire_type}")
        if file.tell() > size:
            raise EOFError("a number is longer than the file")
        yield field, payload


def _entry_fields(payload: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the fields of a StringStringEntryProto: key and value, both bytes."""
    file = io.BytesIO(payload)
    while file.tell() < len(payload):
        tag = _varint(file)
        if tag & 7 != _BYTES:
            raise ValueError("a metadata entry is not a string")
        length = _varint(file)
        if file.tell() + length > len(payload):
            raise ValueError("a string is longer than its metadata entry")
        yield tag >> 3, file.read(length)


def _varint(file: BinaryIO) -> int:
    """Read one base-128 number, least significant group first."""
    number = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            raise EOFError("the file ends in a number")
        number |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return number
    raise ValueError("a number of more than ten bytes")
