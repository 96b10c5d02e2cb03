"""Parse an ONNX file and leave its weights where they are.

A weight that lies in the model file itself is turned into one that refers to these very bytes of that file, as ONNX
lets a model refer to other files. So reading a model costs time and memory for its graph, not for its weights; ONNX
Runtime maps those that a cut model still needs (ResNet50: a session in 0.3 s in place of 0.9, with 80 MB less).

The file is walked in protobuf's wire format (https://protobuf.dev/programming-guides/encoding/), down to the tensors of
the main graph; field numbers are those of onnx.proto.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from onnxfeat.errors import ModelError
from onnxfeat.files import sha256_of
from onnxfeat.graph.weights import fault_of

_GRAPH, _INITIALIZER, _RAW_DATA, _DATA_LOCATION = 7, 5, 9, 14
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

# Bytes from which a weight is left in the file. What shape inference must read, such as targets of Reshape, is shorter.
_LARGE = 16 << 10


def parse_file(path: Path) -> tuple[onnx.ModelProto, str]:
    """Return a model and the SHA-256 of its file; weights of 16 KB and more refer to their place in the file.

    Raises:
        ModelError: The file is no model.
    """
    digest = sha256_of(path)
    with path.open("rb") as file:
        try:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (ValueError, OSError):  # an empty file, or a file system that can't map
            return parse_bytes(file.read(), str(path)), digest
        with mapped, memoryview(mapped) as content:
            # Where the name can't be a location, or the file is a link, whose folder is not the weights', all is read.
            if fault_of(path.name) is None and not path.is_symlink():
                try:
                    return parse_bytes(b"".join(_model_without_weights(content, path.name)), str(path)), digest
                except ValueError:  # damaged in a way that the parser tells better
                    pass
            return parse_bytes(bytes(content), str(path)), digest


def parse_bytes(content: bytes, origin: str) -> onnx.ModelProto:
    """Return a model.

    Raises:
        ModelError: The bytes are no model.
    """
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError as error:
        raise ModelError(f"{origin} is damaged and can't be parsed as ONNX: fetch or export it again") from error
    return model


def _model_without_weights(content: memoryview, location: str) -> Iterator[bytes | memoryview]:
    for field, start, inside, end in _fields(content, 0, len(content)):
        if field == _GRAPH:
            graph = b"".join(_graph_without_weights(content, inside, end, location))
            yield _message(_GRAPH, graph)
        else:
            yield content[start:end]


def _graph_without_weights(content: memoryview, start: int, end: int, location: str) -> Iterator[bytes | memoryview]:
    for field, before, inside, behind in _fields(content, start, end):
        if field == _INITIALIZER and behind - inside >= _LARGE:
            yield _message(_INITIALIZER, _tensor_without_weights(content, inside, behind, location))
        else:
            yield content[before:behind]


def _tensor_without_weights(content: memoryview, start: int, end: int, location: str) -> bytes:
    fields = list(_fields(content, start, end))
    large = [x for x in fields if x[0] == _RAW_DATA and x[3] - x[2] >= _LARGE]
    if len(large) != 1 or any(field == _DATA_LOCATION for field, *_ in fields):
        return bytes(content[start:end])
    (weights,) = large
    # Messages of one type that follow each other are one message to protobuf.
    place = onnx.TensorProto(data_location=onnx.TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", weights[2]), ("length", weights[3] - weights[2])):
        place.external_data.add(key=key, value=str(value))
    rest = b"".join(bytes(content[before:behind]) for _, before, _, behind in fields if before != weights[1])
    return rest + bytes(place.SerializeToString())


def _message(field: int, content: bytes) -> bytes:
    length, size = bytearray(), len(content)
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    length.append(size)
    return bytes([field << 3 | _BYTES]) + bytes(length) + content


def _fields(content: memoryview, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield number, start, start of the payload, and end of each field of a message.

    Raises:
        ValueError: It is no message.
    """
    position = start
    while position < end:
        tag, inside = _varint(content, position, end)
        field, wire_type = tag >> 3, tag & 7
        if wire_type == _VARINT:
            behind = _varint(content, inside, end)[1]
        elif wire_type == _BYTES:
            length, inside = _varint(content, inside, end)
            behind = inside + length
        elif wire_type in (_FIXED64, _FIXED32):
            behind = inside + (8 if wire_type == _FIXED64 else 4)
        else:
            raise ValueError(f"wire type {wire_type}")
        if behind > end or field == 0:
            raise ValueError("a field ends behind its message")
        yield field, position, inside, behind
        position = behind


def _varint(content: memoryview, position: int, end: int) -> tuple[int, int]:
    """Return a base-128 number, least significant group first, and the position behind it."""
    number = 0
    for shift in range(0, 70, 7):
        if position >= end:
            break
        byte = content[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, position
    raise ValueError("a number does not end")
