"""Find, check and read the weights that a model keeps in other files (ONNX's external data).

A tensor with external data names a file by its `location`, relative to the model's folder, and the bytes in it by
`offset` and `length`. Models come from strangers: nothing here opens a file before its location was found to be safe.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
import stat
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import onnx.numpy_helper
from google.protobuf.message import Message  # type: ignore[import-untyped]
from numpy.typing import NDArray

from onnxfeat.errors import ModelError

# Bits of one element as a file holds it (onnx.proto, `TensorProto.raw_data`): types below a byte are packed.
_BITS = {
    **dict.fromkeys(("COMPLEX128",), 128),
    **dict.fromkeys(("DOUBLE", "INT64", "UINT64", "COMPLEX64"), 64),
    **dict.fromkeys(("FLOAT", "INT32", "UINT32"), 32),
    **dict.fromkeys(("FLOAT16", "BFLOAT16", "INT16", "UINT16"), 16),
    **dict.fromkeys(("INT8", "UINT8", "BOOL", "FLOAT8E4M3FN", "FLOAT8E4M3FNUZ"), 8),
    **dict.fromkeys(("FLOAT8E5M2", "FLOAT8E5M2FNUZ", "FLOAT8E8M0"), 8),
    **dict.fromkeys(("FLOAT6E2M3", "FLOAT6E3M2"), 6),
    **dict.fromkeys(("INT4", "UINT4", "FLOAT4E2M1"), 4),
    **dict.fromkeys(("INT2", "UINT2"), 2),
}

# The fields through which tensors are reached, by the message that has them.
_INSIDE: dict[str, frozenset[str]] = {
    "ModelProto": frozenset({"graph", "functions", "training_info"}),
    "TrainingInfoProto": frozenset({"initialization", "algorithm"}),
    "GraphProto": frozenset({"initializer", "sparse_initializer", "node"}),
    "FunctionProto": frozenset({"attribute_proto", "node"}),
    "NodeProto": frozenset({"attribute"}),
    "AttributeProto": frozenset({"t", "tensors", "sparse_tensor", "sparse_tensors", "g", "graphs"}),
    "SparseTensorProto": frozenset({"values", "indices"}),
}

# What ONNX Runtime accepts of an entry; it refuses a model with others (such as onnx's `basepath`).
KEYS = ("location", "offset", "length", "checksum")

_LARGEST = 2**63 - 1  # bytes; what a file offset can say
_BLOCK = 4 << 20  # bytes that are read at once

_TRUST = "export it again with its weights beside it, or fetch it from a source that you trust"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the numbers of a tensor are: `length` bytes from `offset` on, in a file that was found to be safe."""

    file: Path
    location: str = field(compare=False)
    offset: int
    length: int


def external_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield every tensor of a model whose numbers are in another file.

    They are looked for in initializers (also sparse ones), in the attributes of nodes, in the graphs inside nodes at
    any depth, in functions and in the training information. They are the model's own tensors, no copies.

    Example:
        >>> list(external_tensors(onnx.load("models/shapes_small.onnx")))
        []
    """
    return (tensor for tensor in all_tensors(model) if is_external(tensor))


def refuse_unsafe(model: onnx.ModelProto, folder: Path | None, origin: str, *, home: Path | None = None) -> None:
    """Raise an error unless every external tensor of a model can be read from a file in or below the model's folder.

    Nothing is opened or read, so the time does not depend on the size of the weights. Symbolic links that stay inside
    the folder are fine; hard links can't be told from files.

    Args:
        model: The model, its weights not loaded.
        folder: The folder of the model's file; None for a model without a file.
        origin: What messages call the model.
        home: A second folder that links may lead to: that of the file behind the link, where the model's own path is
            a link. The download cache of Hugging Face keeps models so, and ONNX Runtime allows the same.

    Raises:
        ModelError: A location is empty, absolute, a path of Windows, has control characters, leaves the folder by
            `..` or by a link, or is no readable regular file; offset and length are not numbers, lie outside the file
            or don't fit the tensor's type and shape; or there are external tensors and `folder` is None.

    Example:
        >>> refuse_unsafe(onnx.load("models/shapes_small.onnx"), None, "shapes_small.onnx")
    """
    for _ in places_of(model, folder, home, origin):
        pass


def read_tensor(
    tensor: onnx.TensorProto, folder: Path | None, *, home: Path | None = None, origin: str = "the model"
) -> NDArray[Any]:
    """Return the numbers of one tensor, wherever it keeps them; of a file, only its own bytes are read.

    Args:
        tensor: A tensor with or without external data.
        folder: The folder of the model's file; not needed for a tensor that holds its own numbers.
        home: See `refuse_unsafe`.
        origin: What messages call the model.

    Returns:
        The numbers in the tensor's shape. NumPy has no types such as bfloat16 and int4; onnx gives those of ml_dtypes.

    Raises:
        ModelError: As `refuse_unsafe`; or the numbers don't fit the tensor's type and shape.

    Example:
        >>> read_tensor(onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [2], [1.0, 2.0]), None).tolist()
        [1.0, 2.0]
    """
    name = tensor.name
    if is_external(tensor):
        place = _place(tensor, folder, home, origin, {})
        tensor = onnx.TensorProto(dims=tensor.dims, data_type=tensor.data_type, raw_data=b"".join(blocks_of(place)))
    try:
        return onnx.numpy_helper.to_array(tensor)
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"the tensor {_shown(name)} in {origin} is damaged ({error}): fetch or export the model again"
        ) from error


def digests_of(
    model: onnx.ModelProto, folder: Path | None = None, *, home: Path | None = None, origin: str = "the model"
) -> dict[str, str]:
    """Return name to element type and digest of each constant array of a model's main graph.

    Those are the initializers and what Constant nodes hold as tensors; strings have no digest. It does not matter how
    an array is kept: as raw bytes, as numbers, or in another file.

    Args:
        model: The model.
        folder: The folder of the model's file; None for a model that holds its own weights.
        home: See `refuse_unsafe`.
        origin: What messages call the model.

    Returns:
        Such as `float:0123456789abcdef`: ONNX's word for the type, and the first 16 hexadecimal digits of the SHA-256
        of the little-endian bytes.

    Raises:
        ModelError: As `read_tensor`.

    Example:
        >>> digests_of(onnx.load("models/shapes_small.onnx"))["const_fold_opt__n0"]
        'float:fc9c4fa30435a9f2'
    """
    held = [
        (node.output[0], entry.t)
        for node in model.graph.node
        if node.op_type == "Constant" and node.output
        for entry in node.attribute
        if entry.type == onnx.AttributeProto.TENSOR
    ]
    digests = {}
    for name, tensor in (*((tensor.name, tensor) for tensor in model.graph.initializer), *held):
        if tensor.data_type != onnx.TensorProto.STRING:
            array = read_tensor(tensor, folder, home=home, origin=origin)
            little = array.astype(array.dtype.newbyteorder("<"), copy=False)
            digest = hashlib.sha256(little.tobytes()).hexdigest()[:16]
            digests[name] = f"{onnx.TensorProto.DataType.Name(tensor.data_type).lower()}:{digest}"
    return digests


def is_external(tensor: onnx.TensorProto) -> bool:
    """Return whether a tensor keeps its numbers in another file."""
    return tensor.data_location == onnx.TensorProto.EXTERNAL


def all_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield all tensors of a model, always in the same order; without recursion, as graphs nest to any depth."""
    waiting: list[Message] = [model]
    while waiting:
        message = waiting.pop()
        if isinstance(message, onnx.TensorProto):
            yield message
            continue
        fields = _INSIDE[message.DESCRIPTOR.name]
        for descriptor, content in message.ListFields():
            if descriptor.name in fields:
                waiting.extend([content] if isinstance(content, Message) else reversed(content))


def homes_of(source: Path | None) -> tuple[Path | None, Path | None, str]:
    """Return the folder of a model's file, the folder where the file really is, and what to call the model."""
    if source is None:
        return None, None, "<memory>"
    return source.parent, Path(os.path.realpath(source)).parent, str(source)


def places_of(
    model: onnx.ModelProto, folder: Path | None, home: Path | None, origin: str
) -> Iterator[tuple[onnx.TensorProto, Place]]:
    """Yield the external tensors of a model and where their numbers are; refuse as `refuse_unsafe` does."""
    files: dict[str, tuple[Path, int]] = {}  # one file holds thousands of tensors; the disk is asked once
    for tensor in external_tensors(model):
        yield tensor, _place(tensor, folder, home, origin, files)


def _place(
    tensor: onnx.TensorProto, folder: Path | None, home: Path | None, origin: str, files: dict[str, tuple[Path, int]]
) -> Place:
    """Return where a tensor's numbers are, or refuse; `files` keeps path and size of the files found by location."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    subject = f"{origin} keeps the tensor {_shown(tensor.name)} in the file {_shown(location)}"
    if folder is None:
        raise ModelError(f"{subject}, and a model from memory does not say where that is: pass the path of the model")
    keys = [entry.key for entry in tensor.external_data]
    if any(keys.count(key) > 1 for key in KEYS):  # readers differ in which one counts
        raise ModelError(f"{subject}, and says so in two ways: export the model again")
    if location not in files:
        files[location] = _find(location, folder, home, subject)
    file, size = files[location]
    needed = _bytes_needed(tensor, subject)
    offset = _number(entries.get("offset", "0"), "offset", subject)
    length = _number(entries.get("length", str(needed)), "length", subject)
    if length != needed:
        raise ModelError(
            f"{subject} with {length} bytes, its type and shape need {needed}: fetch or export the model again"
        )
    if offset + length > size:
        raise ModelError(
            f"{subject}, bytes {offset} to {offset + length}, and the file has {size}: fetch the file again"
        )
    return Place(file=file, location=location, offset=offset, length=length)


def _find(location: str, folder: Path, home: Path | None, subject: str) -> tuple[Path, int]:
    """Return the real path of a data file and its size in bytes, or refuse."""
    fault = fault_of(location)
    if fault is not None:
        raise ModelError(f"{subject}, which is {fault}; a model may read files in or below its own folder: {_TRUST}")
    file = Path(os.path.realpath(folder / location))
    # Behind a link, `..` is another folder for the system than for those who shorten the path first.
    if file != Path(os.path.realpath(folder / posixpath.normpath(location))):
        raise ModelError(f"{subject}, which has '..' behind a link, so that readers differ in what it names: {_TRUST}")
    if not any(file.is_relative_to(os.path.realpath(allowed)) for allowed in (folder, home) if allowed is not None):
        raise ModelError(f"{subject}, which is a link that leads out of the folder of the model: {_TRUST}")
    try:
        status = file.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise ModelError(f"{subject}, which is not in {folder}: put it there, beside the model") from None
    except OSError as error:
        raise ModelError(f"{subject}, which can't be read ({error.strerror}): put it beside the model") from error
    if not stat.S_ISREG(status.st_mode):
        raise ModelError(f"{subject}, which is a folder, device or pipe and no regular file: {_TRUST}")
    if not os.access(file, os.R_OK):
        raise ModelError(f"{subject}, which is not for you to read: change its permissions")
    return file, status.st_size


def fault_of(location: str) -> str | None:
    """Return what makes a location unsafe whatever the disk holds, or None; the rules are the same on all systems."""
    if not isinstance(location, str):  # the parser leaves bytes where a string is not UTF-8
        return "not text"
    if not location:
        return "no name"
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in location):
        return "a name with control characters"
    if location.startswith("/"):
        return "an absolute path"
    if "\\" in location or re.match("[A-Za-z]:", location):
        return "a path as only Windows knows it"
    if "_ORT_MEM_ADDR_" in location:  # ONNX Runtime takes the offset of such a tensor for a pointer
        return "an address in memory"
    if posixpath.normpath(location).split("/")[0] == "..":
        return "outside"
    return None


def _bytes_needed(tensor: onnx.TensorProto, subject: str) -> int:
    bits, elements = bits_of(tensor), elements_of(tensor)
    if not bits:
        raise ModelError(f"{subject}, where its type {tensor.data_type} can't be kept: {_TRUST}")
    if elements < 0 or elements > _LARGEST:
        raise ModelError(f"{subject} with a shape that no file can hold: fetch or export the model again")
    return (elements * bits + 7) // 8


def bits_of(tensor: onnx.TensorProto) -> int:
    """Return the bits of one element; 0 for strings and for types that this onnx does not know."""
    known = tensor.data_type in onnx.TensorProto.DataType.values()
    return _BITS.get(onnx.TensorProto.DataType.Name(tensor.data_type), 0) if known else 0


def elements_of(tensor: onnx.TensorProto) -> int:
    """Return how many numbers a tensor's shape declares: -1 if an axis is negative; more than 2^63 are not counted."""
    if min(tensor.dims, default=0) < 0:
        return -1
    elements = int(0 not in tensor.dims)
    for length in tensor.dims:
        elements *= length
        if elements > _LARGEST:  # here, as the product of a million axes would take minutes
            break
    return elements


def _number(text: str, key: str, subject: str) -> int:
    # Stricter than int(), which takes signs, blanks, underscores and the digits of all scripts.
    if not isinstance(text, str) or not re.fullmatch("[0-9]{1,19}", text):
        raise ModelError(f"{subject} with the {key} {_shown(text)}, which is no count of bytes: export the model again")
    return int(text)


def _shown(name: str) -> str:
    text = str(name)
    return repr(text if len(text) <= 80 else f"{text[:77]}...")


def blocks_of(place: Place) -> Iterator[bytes]:
    """Yield the bytes of a place, some MB at a time."""
    try:
        with place.file.open("rb") as file:
            file.seek(place.offset)
            left = place.length
            while left:
                block = file.read(min(left, _BLOCK))
                if not block:
                    raise ModelError(f"{place.file} was cut off while it was read: fetch it again")
                left -= len(block)
                yield block
    except OSError as error:
        raise ModelError(f"the weights in {place.file} can't be read ({error.strerror}): fetch them again") from error
