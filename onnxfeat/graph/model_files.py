"""Write a model with the weights that it keeps in other files: refer to them, or carry what it needs."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import onnx
from google.protobuf.message import EncodeError, Message  # type: ignore[import-untyped]

from onnxfeat.errors import OutputError, quote
from onnxfeat.files import refuse_existing, whole_file
from onnxfeat.graph.weights import (
    KEYS,
    Place,
    all_tensors,
    bits_of,
    blocks_of,
    elements_of,
    external_tensors,
    fault_of,
    homes_of,
    is_external,
    places_of,
)
from onnxfeat.records import Weights

_PROTOBUF_LIMIT = 2**31 - 2**26  # bytes; a message ends at 2 GB, of which 64 MB are left to names and nodes
_EMBED_BELOW = 64 << 20  # bytes; carried weights up to this go into the model itself: one file is easier to move
_STAY_BELOW = 1024  # bytes; shapes and scalars stay in the model, where shape inference can read them
_PAGE = 4096  # bytes; onnx.proto wants offsets that can be mapped
_LARGE, _LARGE_PAGE = 1 << 20, 64 << 10  # bytes; what Windows can map starts at multiples of 64 KB


@dataclass(frozen=True, slots=True, kw_only=True)
class _Piece:
    """What goes to `offset` of a data file: the bytes of another file, or those that a tensor of the model holds."""

    offset: int
    length: int
    content: Place | onnx.TensorProto


def relocated(model: onnx.ModelProto, source: Path, folder: Path) -> onnx.ModelProto:
    """Return a copy of a model that refers to the same data from another folder.

    Args:
        model: A model whose locations are relative to the folder of `source`.
        source: The file that it was read from.
        folder: The folder that the locations of the copy shall be relative to.

    Raises:
        ModelError: As `refuse_unsafe`.
        OutputError: Weights are not in or below `folder`, which is all that ONNX Runtime reads.

    Example:
        >>> model = onnx.load("models/shapes_small.onnx")
        >>> relocated(model, Path("models/shapes_small.onnx"), Path("tests")) == model
        True
    """
    places = [place for _, place in places_of(model, *homes_of(source))]
    locations = _locations(places, source, folder)
    _refuse_unreachable(places, locations, folder)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor, location in zip(external_tensors(copy), locations, strict=True):
        _refer(tensor, location or "")
    return copy


def embed_own(model: onnx.ModelProto, source: Path | None) -> None:
    """Put the weights that lie in the model's own file back into the model, which is changed.

    Args:
        model: A model whose locations are relative to the folder of `source`.
        source: The file that it was read from (see `onnxfeat.graph.parsing`); None for a model without a file.
    """
    if source is None:
        return
    own = Path(os.path.realpath(source))
    for tensor, place in places_of(model, *homes_of(source)):
        if place.file == own:
            _embed(tensor, place)


def write_model(
    model: onnx.ModelProto,
    path: Path,
    *,
    source: Path | None = None,
    weights: Weights = "auto",
    overwrite: bool = False,
) -> tuple[Path, ...]:
    """Write a model that may have external data, whole or not at all. The same model gives the same bytes.

    Args:
        model: The model, for example a part of the one in `source`. It is not changed.
        path: Where the model is to be; its folder must exist.
        source: The file that the model was read from; None for a model without external data.
        weights: `refer` writes a model that reads the files that `source` reads. ONNX Runtime allows that only for
            files in or below the folder of `path`. `carry` copies the weights that the model needs: into the model
            if they are less than 64 MB in all, else into one file beside it, `<name of path>.data`. `auto` refers
            where that is possible, else carries. What the model itself holds stays there, unless it is more than the
            2 GB that a model file can hold.
        overwrite: Whether existing files may be replaced.

    Returns:
        The files written: the model, and the data file if there is one.

    Raises:
        ModelError: As `refuse_unsafe`.
        OutputError: A file exists already or can't be written, or `refer` is not possible.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     written = write_model(onnx.load("models/shapes_small.onnx"), Path(folder, "copy.onnx"))
        >>> [path.name for path in written]
        ['copy.onnx']
    """
    if weights not in get_args(Weights):
        raise OutputError(f"weights {weights!r} is unknown: choose {quote(get_args(Weights))}")
    refuse_existing(path, overwrite)
    path = Path(os.path.realpath(path))  # as `whole_file` does; what is beside the link does not count
    places = [place for _, place in places_of(model, *homes_of(source))]
    locations: list[str | None] = [None] * len(places)
    if source is not None and weights != "carry":
        locations = _locations(places, source, path.parent)
    if weights == "refer":
        _refuse_unreachable(places, locations, path.parent)
    if None in locations:
        locations = [None] * len(places)  # all or none: a model in three places is easily torn apart
    written, pieces = _arranged(model, places, locations, _data_file(path).name)
    _refuse_own_weights(path, pieces, places, source)
    try:
        content = written.SerializeToString(deterministic=True)
    except (EncodeError, ValueError) as error:
        raise OutputError(
            f"{path} can't be written: even without its raw data the model is larger than the 2 GB that an ONNX file "
            f"holds; choose fewer layers"
        ) from error
    if pieces:
        return _write_both(path, content, pieces, overwrite)
    with whole_file(path, overwrite=overwrite) as temporary:
        temporary.write_bytes(content)
    return (path,)


def _locations(places: list[Place], source: Path, folder: Path) -> list[str | None]:
    """Return the locations that name the data from `folder`; None for those that ONNX Runtime won't read from there."""
    folder = Path(os.path.realpath(folder))
    same = Path(os.path.realpath(source.parent)) == folder
    locations: list[str | None] = []
    for place in places:
        inside = place.file.is_relative_to(folder)
        location = place.location if same or not inside else place.file.relative_to(folder).as_posix()
        locations.append(location if inside and fault_of(location) is None else None)
    return locations


def _refuse_unreachable(places: list[Place], locations: list[str | None], folder: Path) -> None:
    for place, location in zip(places, locations, strict=True):
        if location is None:
            raise OutputError(
                f"the weights in {place.file} can't be read by a model in {folder}, as ONNX Runtime refuses paths that "
                f"leave the folder of the model: write the model to {place.file.parent}, or carry the weights"
            )


def _arranged(
    model: onnx.ModelProto, places: list[Place], locations: list[str | None], data_name: str
) -> tuple[onnx.ModelProto, list[_Piece]]:
    """Return the model as it is to be written, and what goes into its data file.

    Args:
        model: The model; it is returned itself where nothing is to be changed.
        places: Where the numbers of its external tensors are.
        locations: What each of these is to refer to; None for those to be carried.
        data_name: Name of the data file.
    """
    carried = sum(place.length for place, location in zip(places, locations, strict=True) if location is None)
    embedded = _embedded_bytes(model)
    embed = carried < _EMBED_BELOW and embedded + carried <= _PROTOBUF_LIMIT
    spill = embedded > _PROTOBUF_LIMIT
    if not places and not spill:
        return model, []
    copy = _copy(model, spill)
    pieces: dict[object, _Piece] = {}  # tensors that share their bytes go on sharing them
    rest = iter(zip(places, locations, strict=True))
    for old, new in zip(all_tensors(model), all_tensors(copy), strict=True):
        content: Place | onnx.TensorProto
        if is_external(old):
            place, location = next(rest)
            if location is not None:
                _refer(new, location)
                continue
            if embed or place.length < _STAY_BELOW:
                _embed(new, place)
                continue
            content, length = place, place.length
        elif spill and _is_spilled(old):
            content, length = old, len(old.raw_data)
        else:
            continue
        key = content if isinstance(content, Place) else id(content)
        if key not in pieces:
            pieces[key] = _Piece(offset=_next_offset(pieces, length), length=length, content=content)
        _set_entries(new, {"location": data_name, "offset": str(pieces[key].offset), "length": str(length)})
    return copy, list(pieces.values())


def _next_offset(pieces: dict[object, _Piece], length: int) -> int:
    page = _LARGE_PAGE if length >= _LARGE else _PAGE
    end = next((piece.offset + piece.length for piece in reversed(pieces.values())), 0)
    return -(-end // page) * page


def _embedded_bytes(model: onnx.ModelProto) -> int:
    """Return how many bytes of weights the model itself holds, by what is cheap to ask."""
    held = [tensor for tensor in all_tensors(model) if not is_external(tensor)]
    # The shapes tell without touching the bytes. They may lie, so a large sum is verified: reading raw_data copies it.
    if sum(max(elements_of(tensor), 0) * bits_of(tensor) // 8 for tensor in held) <= _PROTOBUF_LIMIT:
        return 0
    return sum(len(tensor.raw_data) for tensor in held)


def _is_spilled(tensor: onnx.TensorProto) -> bool:
    return tensor.HasField("raw_data") and len(tensor.raw_data) >= _STAY_BELOW


def _copy(model: onnx.ModelProto, spill: bool) -> onnx.ModelProto:
    """Return a copy of a model; if `spill`, without the bytes that initializers hold: they would be gigabytes."""
    copy = onnx.ModelProto()
    if not spill:
        copy.CopyFrom(model)
        return copy
    _copy_fields(model, copy, leave="graph")
    _copy_fields(model.graph, copy.graph, leave="initializer")
    for tensor in model.graph.initializer:
        _copy_fields(tensor, copy.graph.initializer.add(), leave="raw_data" if _is_spilled(tensor) else "")
    return copy


def _copy_fields(source: Message, target: Message, *, leave: str) -> None:
    for descriptor, content in source.ListFields():
        if descriptor.name == leave:
            continue
        if isinstance(content, Message):
            getattr(target, descriptor.name).CopyFrom(content)
        elif isinstance(content, int | float | str | bytes):
            setattr(target, descriptor.name, content)
        else:
            getattr(target, descriptor.name).extend(content)


def _refer(tensor: onnx.TensorProto, location: str) -> None:
    entries = {entry.key: entry.value for entry in tensor.external_data if entry.key in KEYS}
    _set_entries(tensor, {**entries, "location": location})


def _set_entries(tensor: onnx.TensorProto, entries: dict[str, str]) -> None:
    tensor.ClearField("raw_data")
    tensor.ClearField("external_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)


def _embed(tensor: onnx.TensorProto, place: Place) -> None:
    tensor.ClearField("external_data")
    tensor.ClearField("data_location")
    tensor.raw_data = b"".join(blocks_of(place))


def _data_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.data")


def _refuse_own_weights(path: Path, pieces: list[_Piece], places: list[Place], source: Path | None) -> None:
    """Raise an `OutputError` if writing would destroy weights that other models or this one read."""
    read = {place.file for place in places}
    if path in read:
        raise OutputError(f"{path} holds weights that the model needs: choose another name")
    if not pieces:
        return
    data = _data_file(path)
    if fault_of(data.name) is not None:
        raise OutputError(f"the weights can't be put beside {path}, as {data.name!r} is {fault_of(data.name)}: rename")
    if data.is_symlink():
        raise OutputError(f"{data} is a link, and the weights are to be written there: choose another name")
    if data in read and (source is None or Path(os.path.realpath(source)) != path):
        raise OutputError(f"{data} holds the weights of {source}, and would be replaced: choose another name")


def _write_both(path: Path, content: bytes, pieces: list[_Piece], overwrite: bool) -> tuple[Path, ...]:
    """Write a model and its data file, or neither. The data come first: at no time is there a model without them."""
    data = _data_file(path)
    refuse_existing(data, overwrite)
    moved = False
    try:
        with tempfile.TemporaryDirectory(prefix=".onnxfeat-", dir=path.parent) as scratch:
            kept = Path(scratch) / data.name
            if data.exists():
                _keep(data, kept)
            try:
                with whole_file(path, overwrite=overwrite) as temporary:
                    temporary.write_bytes(content)
                    with whole_file(data, overwrite=overwrite) as temporary_data:
                        _fill(temporary_data, pieces)
                    moved = True
            except BaseException:
                if moved:
                    data.unlink()
                    if kept.exists():
                        kept.replace(data)
                raise
    except OSError as error:
        raise OutputError(f"{path} can't be written: {error.strerror}; choose another place") from error
    return path, data


def _keep(file: Path, kept: Path) -> None:
    try:
        os.link(file, kept)
    except OSError:  # file systems without hard links refuse in many ways
        shutil.copyfile(file, kept)


def _fill(path: Path, pieces: list[_Piece]) -> None:
    with path.open("wb") as file:
        for piece in pieces:
            file.seek(piece.offset)
            blocks = blocks_of(piece.content) if isinstance(piece.content, Place) else [piece.content.raw_data]
            file.writelines(blocks)
