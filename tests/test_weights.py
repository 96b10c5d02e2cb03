from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import ml_dtypes
import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import onnxruntime
import pytest
from google.protobuf.message import EncodeError  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxfeat import files
from onnxfeat.errors import ModelError, OutputError
from onnxfeat.graph import model_files, weights
from onnxfeat.graph.model_files import relocated, write_model
from onnxfeat.graph.weights import external_tensors, read_tensor, refuse_unsafe

W = np.arange(2048, dtype=np.float32)
V = np.linspace(-1, 1, 2048, dtype=np.float32)


def pointing(name: str, location: str, dims: tuple[int, ...] = (2048,), **entries: object) -> onnx.TensorProto:
    """A float tensor whose numbers are in another file."""
    tensor = onnx.TensorProto(name=name, data_type=onnx.TensorProto.FLOAT, dims=dims)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def network(*tensors: onnx.TensorProto) -> onnx.ModelProto:
    """Return `y = (x + w) * v`."""
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[2048] x) => (float[2048] y) { s = Add(x, w) y = Mul(s, v) }'
    )
    model.graph.initializer.extend(tensors)
    return model


def stored(folder: Path) -> Path:
    """Write a model to a folder, its weights to `w.bin` and `deep/v.bin`."""
    (folder / "deep").mkdir(parents=True)
    (folder / "w.bin").write_bytes(W.tobytes())
    (folder / "deep/v.bin").write_bytes(b"\1" * 12 + V.tobytes() + b"\2" * 5)
    path = folder / "m.onnx"
    v = pointing("v", "deep/v.bin", offset=12, length=V.nbytes)
    path.write_bytes(network(pointing("w", "w.bin"), v).SerializeToString())
    return path


def bare(path: Path) -> onnx.ModelProto:
    return onnx.load(path, load_external_data=False)


def run(path: Path) -> NDArray[Any]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    result: NDArray[Any] = session.run(None, {"x": np.ones(2048, np.float32)})[0]
    return result


def values(path: Path) -> dict[str, list[float]]:
    return {t.name: onnx.numpy_helper.to_array(t).tolist() for t in onnx.load(path).graph.initializer}


def names_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def check_is_the_network(path: Path) -> None:
    np.testing.assert_array_equal(run(path), (1 + W) * V)
    assert values(path) == {"w": W.tolist(), "v": V.tolist()}


# Finding


def test_external_tensors_are_found_wherever_onnx_allows_tensors() -> None:
    model = network(pointing("w", "f"), onnx.numpy_helper.from_array(V, "v"))
    sparse = model.graph.sparse_initializer.add()
    sparse.values.CopyFrom(pointing("sparse values", "f"))
    sparse.indices.CopyFrom(pointing("sparse indices", "f"))
    node = model.graph.node[0]
    node.attribute.add(name="a", type=onnx.AttributeProto.TENSOR).t.CopyFrom(pointing("t", "f"))
    node.attribute.add(name="b", type=onnx.AttributeProto.TENSORS).tensors.append(pointing("tensors", "f"))
    node.attribute.add(name="c").sparse_tensor.values.CopyFrom(pointing("sparse_tensor", "f"))
    node.attribute.add(name="d").sparse_tensors.add().indices.CopyFrom(pointing("sparse_tensors", "f"))
    node.attribute.add(name="e").g.initializer.append(pointing("g", "f"))
    branch = node.attribute.add(name="f").graphs.add()
    branch.node.add().attribute.add().graphs.add().initializer.append(pointing("graphs in graphs", "f"))
    function = model.functions.add()
    function.node.add().attribute.add().t.CopyFrom(pointing("in a function", "f"))
    function.attribute_proto.add().t.CopyFrom(pointing("default of a function", "f"))
    training = model.training_info.add()
    training.initialization.initializer.append(pointing("initialization", "f"))
    training.algorithm.initializer.append(pointing("algorithm", "f"))
    found = [tensor.name for tensor in external_tensors(model)]
    assert sorted(found) == sorted(
        "w,sparse values,sparse indices,t,tensors,sparse_tensor,sparse_tensors,g,graphs in graphs,in a function,"
        "default of a function,initialization,algorithm".split(",")
    )


def test_graphs_may_nest_deeper_than_python_recurses() -> None:
    model = onnx.ModelProto()
    graph = model.graph
    for _ in range(3 * sys.getrecursionlimit()):
        graph = graph.node.add().attribute.add().g
    graph.initializer.append(pointing("deep", "f"))
    assert [tensor.name for tensor in external_tensors(model)] == ["deep"]


def test_the_tensors_found_are_the_models_own() -> None:
    model = network(pointing("w", "f"))
    next(external_tensors(model)).name = "renamed"
    assert model.graph.initializer[0].name == "renamed"


# Refusing


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("", r"''.* no name;"),
        ("/etc/hostname", r"'/etc/hostname'.* an absolute path;"),
        ("../secret.bin", r"'\.\./secret\.bin'.* outside;"),
        ("deep/../../secret.bin", r"outside;"),
        ("../model/w.bin", r"outside;"),  # comes back, but not if the folder is renamed
        ("w.bin\0", r"'w\.bin\\x00'.* control characters;"),
        ("w\n.bin", r"control characters;"),
        ("w\x85.bin", r"control characters;"),
        ("deep\\v.bin", r"a path as only Windows knows it;"),
        ("C:w.bin", r"a path as only Windows knows it;"),
        ("c:/w.bin", r"a path as only Windows knows it;"),
        ("\\\\host\\share", r"a path as only Windows knows it;"),
        ("*/_ORT_MEM_ADDR_/*", r"an address in memory;"),
        (".", r"no regular file:"),
        ("deep", r"no regular file:"),
        ("pipe", r"no regular file:"),
        ("gone.bin", r"'gone\.bin', which is not in .*: put it there"),
        ("w.bin/v.bin", r"not in .*: put it there"),
        ("x" * 5000, r"'x{77}\.\.\.', which can't be read \(File name too long\): put it beside"),
        ("loop", r"can't be read|leads out"),
        ("out", r"a link that leads out of the folder of the model:"),
        ("folder_out/secret.bin", r"a link that leads out"),
        ("absolute_out", r"a link that leads out"),
        ("null", r"a link that leads out"),
    ],
)
def test_a_location_outside_the_folder_or_of_no_file_is_refused(location: str, reason: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    stored(folder)
    (tmp_path / "secret.bin").write_bytes(W.tobytes())
    os.mkfifo(folder / "pipe")
    for link, target in {
        "out": "../secret.bin",
        "folder_out": "..",
        "absolute_out": str(tmp_path / "secret.bin"),
        "null": os.devnull,
        "loop": "loop",
    }.items():
        (folder / link).symlink_to(target)
    tensor = pointing("w", location)
    with pytest.raises(ModelError, match=rf"^m\.onnx keeps the tensor 'w' in the file .*{reason}"):
        refuse_unsafe(network(tensor), folder, "m.onnx")
    with pytest.raises(ModelError, match=rf"^the model keeps the tensor 'w' in the file .*{reason}"):
        read_tensor(tensor, folder)


@pytest.mark.parametrize("location", ["w.bin", "./w.bin", "deep/../w.bin", "deep//v.bin", "link", "folder/v.bin"])
def test_a_file_in_the_folder_is_accepted_also_through_links_that_stay_inside(location: str, tmp_path: Path) -> None:
    stored(tmp_path)
    (tmp_path / "link").symlink_to("deep/v.bin")
    (tmp_path / "folder").symlink_to("deep")
    refuse_unsafe(network(pointing("w", location)), tmp_path, "m.onnx")


def test_the_folder_itself_may_be_reached_by_a_link(tmp_path: Path) -> None:
    stored(tmp_path / "real")
    (tmp_path / "folder").symlink_to("real")
    refuse_unsafe(bare(tmp_path / "folder/m.onnx"), tmp_path / "folder", "m.onnx")


def test_two_dots_behind_a_link_are_refused_as_readers_differ_in_what_they_mean(tmp_path: Path) -> None:
    stored(tmp_path)
    (tmp_path / "deep/deeper").mkdir()
    (tmp_path / "link").symlink_to("deep/deeper")
    with pytest.raises(ModelError, match=r"has '\.\.' behind a link, so that readers differ in what it names"):
        refuse_unsafe(network(pointing("w", "link/../v.bin")), tmp_path, "m.onnx")


@pytest.mark.parametrize(
    ("dims", "entries", "reason"),
    [
        ((2048,), {"offset": -1}, r"with the offset '-1', which is no count of bytes"),
        ((2048,), {"offset": "0x0"}, r"with the offset '0x0'"),
        ((2048,), {"offset": ""}, r"with the offset ''"),
        ((2048,), {"offset": "1_0"}, r"with the offset '1_0'"),
        ((2048,), {"offset": "٣"}, r"with the offset '٣'"),
        ((2048,), {"length": " 8192"}, r"with the length ' 8192'"),
        ((2048,), {"length": "9" * 5000}, r"with the length '9{77}\.\.\.'"),
        ((2048,), {"length": 8191}, r"with 8191 bytes, its type and shape need 8192"),
        ((2048,), {"length": 8193}, r"with 8193 bytes, its type and shape need 8192"),
        ((2048,), {"offset": 1}, r"bytes 1 to 8193, and the file has 8192"),
        ((2049,), {}, r"bytes 0 to 8196, and the file has 8192"),
        ((-1,), {}, r"with a shape that no file can hold"),
        ((-(2**40), -(2**40)), {}, r"with a shape that no file can hold"),
        ((2**62, 2**62), {}, r"with a shape that no file can hold"),
    ],
)
def test_bytes_that_are_not_in_the_file_are_refused(
    dims: tuple[int, ...], entries: dict[str, object], reason: str, tmp_path: Path
) -> None:
    stored(tmp_path)
    with pytest.raises(ModelError, match=reason):
        refuse_unsafe(network(pointing("w", "w.bin", dims, **entries)), tmp_path, "m.onnx")


def test_a_shape_of_very_many_axes_is_refused_at_once(tmp_path: Path) -> None:
    stored(tmp_path)
    model = network(pointing("w", "w.bin", (2**62,) * 200_000))
    start = time.perf_counter()
    with pytest.raises(ModelError, match="with a shape that no file can hold"):
        refuse_unsafe(model, tmp_path, "m.onnx")
    assert time.perf_counter() - start < 1  # the whole product takes a minute or more


@pytest.mark.parametrize("dims", [(), (0,), (0, 2**62, 2**62), (2048,), (2, 1024)])
def test_bytes_that_are_in_the_file_are_accepted(dims: tuple[int, ...], tmp_path: Path) -> None:
    stored(tmp_path)
    refuse_unsafe(network(pointing("w", "w.bin", dims)), tmp_path, "m.onnx")


def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = stored(tmp_path)
    monkeypatch.setattr(os, "access", lambda *_: False)  # tests run as root, whom no permission stops
    with pytest.raises(ModelError, match=r"'w\.bin', which is not for you to read: change its permissions"):
        refuse_unsafe(bare(path), tmp_path, "m.onnx")


def test_locations_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    stored(tmp_path)
    tensor = pointing("w", "w.bin")
    tensor.external_data.add(key="location", value="../secret.bin")
    with pytest.raises(ModelError, match="says so in two ways"):
        refuse_unsafe(network(tensor), tmp_path, "m.onnx")


def test_a_location_that_is_not_text_is_refused(tmp_path: Path) -> None:
    content = network(pointing("w", "w.bin")).SerializeToString().replace(b"w.bin", b"\xff.bin")
    with pytest.raises(ModelError, match="which is not text;"):
        refuse_unsafe(onnx.load_from_string(content), tmp_path, "m.onnx")


@pytest.mark.parametrize("data_type", [onnx.TensorProto.STRING, onnx.TensorProto.UNDEFINED, 1234])
def test_types_that_no_file_holds_are_refused(data_type: int, tmp_path: Path) -> None:
    stored(tmp_path)
    tensor = pointing("w", "w.bin")
    tensor.data_type = data_type
    with pytest.raises(ModelError, match=f"where its type {data_type} can't be kept"):
        refuse_unsafe(network(tensor), tmp_path, "m.onnx")


def test_weights_in_files_of_a_model_from_memory_are_refused_and_the_path_asked_for() -> None:
    model = network(pointing("w", "w.bin"))
    with pytest.raises(ModelError, match=r"<memory> keeps .* 'w\.bin', and a model from memory .*: pass the path"):
        refuse_unsafe(model, None, "<memory>")
    with pytest.raises(ModelError, match="pass the path"):
        write_model(model, Path("never.onnx"))


def test_a_download_cache_of_links_is_read_and_referred_to_where_its_files_are(tmp_path: Path) -> None:
    stored(tmp_path / "blobs")
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot/m.onnx").symlink_to("../blobs/m.onnx")
    (tmp_path / "snapshot/w.bin").symlink_to("../blobs/w.bin")
    (tmp_path / "snapshot/deep").symlink_to("../blobs/deep")
    model = bare(tmp_path / "snapshot/m.onnx")
    with pytest.raises(ModelError, match="a link that leads out"):
        refuse_unsafe(model, tmp_path / "snapshot", "m.onnx")
    refuse_unsafe(model, tmp_path / "snapshot", "m.onnx", home=tmp_path / "blobs")
    tensor = model.graph.initializer[0]
    assert read_tensor(tensor, tmp_path / "snapshot", home=tmp_path / "blobs").tolist() == W.tolist()
    with pytest.raises(OutputError, match=r"refuses paths that leave the folder.*blobs, or carry"):
        write_model(model, tmp_path / "snapshot/n.onnx", source=tmp_path / "snapshot/m.onnx", weights="refer")
    write_model(model, tmp_path / "snapshot/n.onnx", source=tmp_path / "snapshot/m.onnx")
    check_is_the_network(tmp_path / "snapshot/n.onnx")
    write_model(model, tmp_path / "top.onnx", source=tmp_path / "snapshot/m.onnx", weights="refer")
    assert [t.external_data[0].value for t in bare(tmp_path / "top.onnx").graph.initializer] == [
        "blobs/w.bin",
        "blobs/deep/v.bin",
    ]
    check_is_the_network(tmp_path / "top.onnx")


PARTS = [
    "w.bin",
    "deep",
    "v.bin",
    "..",
    ".",
    "",
    "out",
    "folder_out",
    "inside",
    "secret.bin",
    "gone",
    "a\\b",
    "\0",
    "~",
]


@pytest.fixture(scope="module")
def trap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's folder with good files, and links out of it."""
    top = tmp_path_factory.mktemp("trap")
    stored(top / "model")
    stored(top / "other")
    (top / "secret.bin").write_bytes(W.tobytes())
    (top / "model/out").symlink_to("../secret.bin")
    (top / "model/folder_out").symlink_to("../other")
    (top / "model/inside").symlink_to("deep")
    return top / "model"


@given(st.lists(st.sampled_from(PARTS) | st.text(max_size=3), max_size=6), st.booleans())
@settings(max_examples=400, deadline=None)
def test_no_location_leaves_the_folder(trap: Path, parts: list[str], rooted: bool) -> None:
    location = ("/" if rooted else "") + "/".join(parts)
    model = network(pointing("w", location))
    inside = False
    if "\0" not in location:
        real = os.path.realpath(os.path.join(os.fspath(trap), location))  # noqa: PTH118 - the oracle's own way
        inside = os.path.commonpath([real, os.path.realpath(trap)]) == os.path.realpath(trap) and Path(real).is_file()
    try:
        refuse_unsafe(model, trap, "m.onnx")
    except ModelError:
        plain = all(part in ("w.bin", "deep", "v.bin", ".", "inside") for part in parts) and not rooted
        assert not (inside and plain)
    else:
        assert inside


# Reading


@pytest.mark.parametrize(
    "dtype",
    "f2 f4 f8 i1 i2 i4 i8 u1 u2 u4 u8 ? c8 c16 bfloat16 float8_e4m3fn float8_e5m2 int4 uint4".split(),
)
@pytest.mark.parametrize("count", [1, 6, 7])
def test_a_tensor_is_read_as_onnx_reads_it_in_memory(dtype: str, count: int, tmp_path: Path) -> None:
    expected = np.arange(count).astype(np.dtype(getattr(ml_dtypes, dtype, dtype))).reshape(1, count)
    tensor = onnx.numpy_helper.from_array(expected, "t")
    (tmp_path / "t.bin").write_bytes(b"before" + tensor.raw_data + b"behind")
    moved = pointing("t", "t.bin", (1, count), offset=6, length=len(tensor.raw_data))
    moved.data_type = tensor.data_type
    found = read_tensor(moved, tmp_path)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(read_tensor(tensor, None), expected)


def test_a_tensor_whose_numbers_do_not_fit_its_shape_is_damaged() -> None:
    tensor = onnx.numpy_helper.from_array(W, "w")
    tensor.raw_data = tensor.raw_data[:-1]
    with pytest.raises(ModelError, match=r"the tensor 'w' in m\.onnx is damaged .*: fetch or export the model again"):
        read_tensor(tensor, None, origin="m.onnx")


def test_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = stored(tmp_path)
    place = weights._place

    def shrink(*arguments: Any) -> object:
        found = place(*arguments)
        os.truncate(tmp_path / "w.bin", 100)
        return found

    monkeypatch.setattr(weights, "_place", shrink)
    with pytest.raises(ModelError, match=r"w\.bin was cut off while it was read"):
        read_tensor(bare(path).graph.initializer[0], tmp_path)
    (tmp_path / "w.bin").write_bytes(W.tobytes())
    monkeypatch.setattr(weights, "_place", lambda *_: vanish(place(*_)))
    with pytest.raises(ModelError, match=r"w\.bin can't be read \(No such file or directory\)"):
        read_tensor(bare(path).graph.initializer[0], tmp_path)


def vanish(place: Any) -> object:
    place.file.unlink()
    return place


# Writing


def test_a_model_without_external_data_is_one_file_of_its_own_bytes(tmp_path: Path) -> None:
    model = network(onnx.numpy_helper.from_array(W, "w"), onnx.numpy_helper.from_array(V, "v"))
    for choice in ("auto", "refer", "carry"):
        path = tmp_path / f"{choice}.onnx"
        assert write_model(model, path, weights=choice) == (path,)
        assert path.read_bytes() == model.SerializeToString(deterministic=True)
        check_is_the_network(path)


def test_beside_the_source_a_model_refers_to_the_same_locations(tmp_path: Path) -> None:
    source = stored(tmp_path)
    model = bare(source)
    before = model.SerializeToString()
    assert write_model(model, tmp_path / "n.onnx", source=source) == (tmp_path / "n.onnx",)
    assert bare(tmp_path / "n.onnx") == bare(source)
    assert model.SerializeToString() == before
    check_is_the_network(tmp_path / "n.onnx")


def test_beside_the_source_links_are_referred_to_as_such(tmp_path: Path) -> None:
    source = stored(tmp_path)
    (tmp_path / "link.bin").symlink_to("w.bin")
    model = network(pointing("w", "link.bin"))
    write_model(model, tmp_path / "n.onnx", source=source)
    assert bare(tmp_path / "n.onnx") == model


def test_above_the_source_a_model_refers_to_files_below_it(tmp_path: Path) -> None:
    source = stored(tmp_path / "a/b")
    write_model(bare(source), tmp_path / "n.onnx", source=source, weights="refer")
    found = [{entry.key: entry.value for entry in t.external_data} for t in external_tensors(bare(tmp_path / "n.onnx"))]
    assert found == [{"location": "a/b/w.bin"}, {"location": "a/b/deep/v.bin", "offset": "12", "length": "8192"}]
    check_is_the_network(tmp_path / "n.onnx")


def test_what_onnx_runtime_would_refuse_of_an_entry_is_left_out(tmp_path: Path) -> None:
    stored(tmp_path)
    model = network(
        pointing("w", "w.bin", basepath=tmp_path, foo=1, checksum="abc"), onnx.numpy_helper.from_array(V, "v")
    )
    write_model(model, tmp_path / "n.onnx", source=tmp_path / "m.onnx")
    entries = bare(tmp_path / "n.onnx").graph.initializer[0].external_data
    assert {entry.key for entry in entries} == {"location", "checksum"}
    check_is_the_network(tmp_path / "n.onnx")


def test_elsewhere_to_refer_is_refused_with_the_reason(tmp_path: Path) -> None:
    source = stored(tmp_path / "a")
    (tmp_path / "b").mkdir()
    with pytest.raises(
        OutputError,
        match=r"a/w\.bin can't be read by a model in .*b, as ONNX Runtime .*write the model to .*a, or carry",
    ):
        write_model(bare(source), tmp_path / "b/n.onnx", source=source, weights="refer")
    assert names_in(tmp_path / "b") == []


def test_elsewhere_small_weights_go_into_the_model(tmp_path: Path) -> None:
    source = stored(tmp_path / "a")
    (tmp_path / "b").mkdir()
    path = tmp_path / "b/n.onnx"
    assert write_model(bare(source), path, source=source) == (path,)
    assert names_in(tmp_path / "b") == ["n.onnx"]
    assert list(external_tensors(bare(path))) == []
    check_is_the_network(path)


def test_elsewhere_large_weights_go_into_one_file_beside_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_files, "_EMBED_BELOW", 0)
    source = stored(tmp_path / "a")
    model = bare(source)
    shared = model.graph.initializer.add()
    shared.CopyFrom(model.graph.initializer[1])
    shared.name = "v, once more"
    shared.external_data[0].value = "./deep/v.bin"
    model.graph.initializer.append(pointing("small", "w.bin", (3,), offset=4))
    (tmp_path / "b").mkdir()
    path = tmp_path / "b/n.onnx"
    assert write_model(model, path, source=source) == (path, tmp_path / "b/n.onnx.data")
    found = {t.name: {entry.key: entry.value for entry in t.external_data} for t in external_tensors(bare(path))}
    assert found == {
        "w": {"location": "n.onnx.data", "offset": "0", "length": "8192"},
        "v": {"location": "n.onnx.data", "offset": "8192", "length": "8192"},
        "v, once more": {"location": "n.onnx.data", "offset": "8192", "length": "8192"},
    }
    assert (tmp_path / "b/n.onnx.data").read_bytes() == W.tobytes() + V.tobytes()
    assert values(path) == {"w": W.tolist(), "v": V.tolist(), "v, once more": V.tolist(), "small": [1, 2, 3]}
    np.testing.assert_array_equal(run(path), (1 + W) * V)
    written = path.read_bytes(), (tmp_path / "b/n.onnx.data").read_bytes()
    write_model(model, path, source=source, overwrite=True)
    assert (path.read_bytes(), (tmp_path / "b/n.onnx.data").read_bytes()) == written


def test_what_would_make_the_model_too_large_is_not_put_into_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_files, "_PROTOBUF_LIMIT", 10_000)
    source = stored(tmp_path / "a")
    assert len(write_model(bare(source), tmp_path / "n.onnx", source=source, weights="carry")) == 2
    check_is_the_network(tmp_path / "n.onnx")


def test_where_not_all_files_can_be_referred_to_all_weights_are_carried(tmp_path: Path) -> None:
    source = stored(tmp_path)
    write_model(bare(source), tmp_path / "deep/n.onnx", source=source)
    assert list(external_tensors(bare(tmp_path / "deep/n.onnx"))) == []
    check_is_the_network(tmp_path / "deep/n.onnx")


def test_behind_a_link_model_and_data_are_put_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_files, "_EMBED_BELOW", 0)
    source = stored(tmp_path / "a")
    (tmp_path / "real").mkdir()
    (tmp_path / "n.onnx").symlink_to("real/r.onnx")
    written = write_model(bare(source), tmp_path / "n.onnx", source=source, weights="carry", overwrite=True)
    assert written == (tmp_path / "real/r.onnx", tmp_path / "real/r.onnx.data")
    check_is_the_network(tmp_path / "real/r.onnx")


def test_carried_tensors_start_where_they_can_be_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_files, "_EMBED_BELOW", 0)
    (tmp_path / "w.bin").write_bytes(bytes(range(256)) * 8192)
    sizes = [300, 1 << 18, 257, (1 << 18) + 1]
    tensors = [pointing(f"t{size}", "w.bin", (size,), offset=size) for size in sizes]
    write_model(network(*tensors), tmp_path / "n.onnx", source=tmp_path / "m.onnx", weights="carry")
    offsets = [int(tensor.external_data[1].value) for tensor in external_tensors(bare(tmp_path / "n.onnx"))]
    assert offsets == [0, 1 << 16, (1 << 16) + (1 << 20), (2 << 16) + (1 << 20)]
    loaded = onnx.load(tmp_path / "n.onnx").graph.initializer
    content = (tmp_path / "w.bin").read_bytes()
    assert [tensor.raw_data for tensor in loaded] == [content[size : 5 * size] for size in sizes]


def test_weights_in_memory_beyond_what_protobuf_holds_go_into_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_files, "_PROTOBUF_LIMIT", 10_000)
    model = network(onnx.numpy_helper.from_array(W, "w"), onnx.numpy_helper.from_array(V, "v"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.arange(3), "small"))
    model.metadata_props.add(key="k", value="v")
    before = model.SerializeToString()
    path = tmp_path / "n.onnx"
    assert write_model(model, path) == (path, tmp_path / "n.onnx.data")
    assert model.SerializeToString() == before
    assert (tmp_path / "n.onnx.data").read_bytes() == W.tobytes() + V.tobytes()
    assert [tensor.name for tensor in external_tensors(bare(path))] == ["w", "v"]
    loaded = onnx.load(path)
    for tensor in loaded.graph.initializer:
        tensor.ClearField("data_location")  # onnx.load says that the data are now where they are by default
    assert loaded == model
    np.testing.assert_array_equal(run(path), (1 + W) * V)


def test_what_protobuf_can_not_hold_without_raw_data_either_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Huge:
        def SerializeToString(self, **_: object) -> NoReturn:  # noqa: N802
            raise EncodeError("Failed to serialize proto")

    monkeypatch.setattr(model_files, "_arranged", lambda *_: (Huge(), []))
    with pytest.raises(
        OutputError, match=r"n\.onnx can't be written: even without its raw data .* 2 GB .*; choose fewer"
    ):
        write_model(network(), tmp_path / "n.onnx")
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("existing", ["n.onnx", "n.onnx.data"])
def test_nothing_that_exists_is_overwritten_unless_told(
    existing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_files, "_EMBED_BELOW", 0)
    source = stored(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / existing).write_bytes(b"mine")
    with pytest.raises(OutputError, match=rf"{existing} exists already and is left as it is"):
        write_model(bare(source), tmp_path / "b/n.onnx", source=source)
    assert names_in(tmp_path / "b") == [existing]
    assert (tmp_path / "b" / existing).read_bytes() == b"mine"
    write_model(bare(source), tmp_path / "b/n.onnx", source=source, overwrite=True)
    check_is_the_network(tmp_path / "b/n.onnx")


def test_a_folder_in_the_place_of_the_data_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_files, "_EMBED_BELOW", 0)
    source = stored(tmp_path / "a")
    (tmp_path / "n.onnx.data").mkdir()
    with pytest.raises(OutputError, match=r"n\.onnx\.data is a folder, and a file is to be written there"):
        write_model(bare(source), tmp_path / "n.onnx", source=source, weights="carry", overwrite=True)
    assert not (tmp_path / "n.onnx").exists()


@pytest.mark.parametrize("old", [None, b"old weights"])
@pytest.mark.parametrize("links", [True, False])
def test_both_files_are_written_or_none(
    old: bytes | None, links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_files, "_EMBED_BELOW", 0)
    source = stored(tmp_path / "a")
    (tmp_path / "b").mkdir()
    if old is not None:
        (tmp_path / "b/n.onnx").write_bytes(b"old model")
        (tmp_path / "b/n.onnx.data").write_bytes(old)
    move = files._move
    moved = []

    def fail_at_the_model(temporary: Path, target: Path, overwrite: bool) -> None:
        moved.append(target.name)
        if target.suffix == ".onnx":
            raise OSError(28, "No space left on device")
        move(temporary, target, overwrite)

    def no_links(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(files, "_move", fail_at_the_model)
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    with pytest.raises(OutputError, match="No space left on device"):
        write_model(bare(source), tmp_path / "b/n.onnx", source=source, overwrite=True)
    assert moved == ["n.onnx.data", "n.onnx"]  # never a model without its weights
    assert names_in(tmp_path / "b") == ([] if old is None else ["n.onnx", "n.onnx.data"])
    if old is not None:
        assert (tmp_path / "b/n.onnx.data").read_bytes() == old


def test_a_disk_without_room_for_the_scratch_folder_is_an_output_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_files, "_EMBED_BELOW", 0)
    source = stored(tmp_path / "a")

    def full(*_: object, **__: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryDirectory", full)
    with pytest.raises(OutputError, match=r"n\.onnx can't be written: No space left on device; choose another place"):
        write_model(bare(source), tmp_path / "n.onnx", source=source, weights="carry")


def test_a_model_with_its_data_can_be_replaced_by_a_part_of_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_files, "_EMBED_BELOW", 0)
    source = stored(tmp_path / "a")
    path = tmp_path / "n.onnx"
    write_model(bare(source), path, source=source, weights="carry")
    part = bare(path)
    del part.graph.initializer[0]
    write_model(part, path, source=path, weights="carry", overwrite=True)
    assert (tmp_path / "n.onnx.data").read_bytes() == V.tobytes()
    assert values(path) == {"v": V.tolist()}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("w.bin", r"w\.bin holds weights that the model needs"),
        ("w", r"w\.data holds the weights of .*m\.onnx, and would be replaced"),
        ("linked", r"linked\.data is a link"),
        ("back\\slash", r"'back\\\\slash\.data' is a path as only Windows knows it"),
    ],
)
def test_weights_that_are_in_use_are_never_replaced(
    name: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_files, "_EMBED_BELOW", 0)
    source = stored(tmp_path)
    (tmp_path / "w.data").write_bytes(W.tobytes())
    (tmp_path / "linked.data").symlink_to("elsewhere")
    model = bare(source)
    model.graph.initializer.append(pointing("u", "w.data"))
    before = names_in(tmp_path)
    with pytest.raises(OutputError, match=reason):
        write_model(model, tmp_path / name, source=source, weights="carry", overwrite=True)
    assert names_in(tmp_path) == before
    assert (tmp_path / "w.bin").read_bytes() == (tmp_path / "w.data").read_bytes() == W.tobytes()


def test_unsafe_weights_are_never_carried(tmp_path: Path) -> None:
    source = stored(tmp_path / "a")
    (tmp_path / "secret.bin").write_bytes(W.tobytes())
    with pytest.raises(ModelError, match="outside"):
        write_model(network(pointing("w", "../secret.bin")), tmp_path / "n.onnx", source=source, weights="carry")
    assert names_in(tmp_path) == sorted(["secret.bin", "a/m.onnx", "a/w.bin", "a/deep/v.bin"])


def test_an_unknown_way_to_keep_weights_is_refused_with_the_list(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"weights 'copy' is unknown: choose 'auto', 'refer' or 'carry'"):
        write_model(network(), tmp_path / "n.onnx", weights="copy")  # type: ignore[arg-type]


def test_a_relocated_model_runs_from_memory_in_the_other_folder(tmp_path: Path) -> None:
    source = stored(tmp_path / "a/b")
    model = bare(source)
    moved = relocated(model, source, tmp_path / "a")
    assert model == bare(source)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(tmp_path / "a"))
    session = onnxruntime.InferenceSession(moved.SerializeToString(), options, providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(session.run(None, {"x": np.zeros(2048, np.float32)})[0], W * V)
    with pytest.raises(OutputError, match="refuses paths that leave the folder"):
        relocated(model, source, tmp_path / "a/b/deep")


ARRAYS = st.tuples(
    st.sampled_from(["f2", "f4", "f8", "i8", "u1", "?"]),
    st.lists(st.integers(0, 30), max_size=3).map(tuple),
    st.sampled_from(["w.bin", "sub/u.bin", ""]),  # which file; none for those that the model holds itself
    st.integers(0, 9),  # bytes before it
    st.booleans(),  # whether its length is told
)


@given(
    st.lists(ARRAYS, min_size=1, max_size=5),
    st.sampled_from(["auto", "refer", "carry"]),
    st.sampled_from(["a", "", "b"]),
    st.sampled_from([0, 5000, 64 << 20]),
    st.sampled_from([0, 5000, 2**31]),
    st.randoms(use_true_random=False),
)
@settings(max_examples=80, deadline=None)
def test_a_written_model_holds_the_same_numbers(
    tmp_path_factory: pytest.TempPathFactory,
    arrays: list[tuple[str, tuple[int, ...], str, int, bool]],
    choice: Any,
    where: str,
    embed_below: int,
    limit: int,
    random: Any,
) -> None:
    top = tmp_path_factory.mktemp("trip")
    (top / "a/sub").mkdir(parents=True)
    (top / "b").mkdir()
    contents = {"w.bin": bytearray(), "sub/u.bin": bytearray()}
    model = onnx.parser.parse_model('<ir_version: 8, opset_import: ["" : 17]> g () => () {}')
    expected = []
    for number, (dtype, shape, file, gap, told) in enumerate(arrays):
        array = np.frombuffer(random.randbytes(int(np.prod(shape)) * 8), np.uint8)[: int(np.prod(shape))]
        array = array.astype(dtype).reshape(shape)
        tensor = onnx.numpy_helper.from_array(array, f"t{number}")
        model.graph.node.append(onnx.helper.make_node("Identity", [tensor.name], [f"y{number}"]))
        model.graph.output.append(onnx.helper.make_tensor_value_info(f"y{number}", tensor.data_type, shape))
        if file:
            contents[file] += bytes(gap)
            offset, length = len(contents[file]), array.nbytes
            contents[file] += tensor.raw_data
            moved = pointing(tensor.name, file, shape, offset=offset, **({"length": length} if told else {}))
            moved.data_type = tensor.data_type
            tensor = moved
        model.graph.initializer.append(tensor)
        expected.append(array)
    for file, content in contents.items():
        (top / "a" / file).write_bytes(content)
    path = top / where / "n.onnx"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_files, "_EMBED_BELOW", embed_below)
        patch.setattr(model_files, "_PROTOBUF_LIMIT", limit)
        try:
            written = write_model(model, path, source=top / "a/m.onnx", weights=choice)
        except OutputError:
            assert choice == "refer"
            assert where == "b"
            assert any(file for _, _, file, _, _ in arrays)
            return
    assert all(file.is_file() for file in written)
    reloaded = bare(path).graph.initializer
    found = [read_tensor(tensor, path.parent) for tensor in reloaded]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for array, ours, theirs in zip(expected, found, session.run(None, {}), strict=True):
        assert ours.dtype == theirs.dtype == array.dtype
        assert ours.shape == theirs.shape == array.shape
        assert ours.tobytes() == theirs.tobytes() == array.tobytes()


# Time and memory


MEASURED = """
import os, sys, time
from pathlib import Path
import numpy, onnx, onnx.numpy_helper
from onnxfeat.graph.model_files import write_model
from onnxfeat.graph.weights import read_tensor, refuse_unsafe
import measuring
def peak():
    return measuring.peak() >> 20
folder = Path(sys.argv[1])
def model_of(path):
    return onnx.load(path, load_external_data=False)
write_model(onnx.ModelProto(), folder / "warm.onnx")
model = model_of(folder / "m.onnx")
before, start = peak(), time.perf_counter()
{work}
print(peak() - before, time.perf_counter() - start)
"""


def measured(folder: Path, work: str) -> tuple[int, float]:
    """Run `work` in a process of its own; return by how many MB its peak memory grew, and its seconds."""
    code = MEASURED.replace("{work}", work)
    here = Path(__file__).parent
    command = [sys.executable, "-c", code, str(folder.absolute())]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=here)
    grown, seconds = result.stdout.split()
    return int(grown), float(seconds)


@pytest.fixture
def huge(tmp_path: Path) -> Callable[[int], Path]:
    """Make a model with so many bytes of weights, in a file with holes that takes no room on the disk."""

    def make(size: int) -> Path:
        with (tmp_path / "w.bin").open("wb") as file:
            file.truncate(size)
        part = pointing("w", "w.bin", (size // 8,), length=size // 2)
        rest = pointing("v", "w.bin", (size // 8,), offset=size // 2)
        (tmp_path / "m.onnx").write_bytes(network(part, rest, onnx.numpy_helper.from_array(W, "s")).SerializeToString())
        return tmp_path

    return make


def test_what_is_not_needed_of_3_gb_costs_neither_time_nor_memory(huge: Callable[[int], Path]) -> None:
    grown, seconds = measured(
        huge(3 << 30),
        """
refuse_unsafe(model, folder, "m.onnx")
write_model(model, folder / "all.onnx", source=folder / "m.onnx")
del model.graph.initializer[:2]
write_model(model, folder / "cut.onnx", source=folder / "m.onnx", weights="carry")
""",
    )
    assert grown <= 4
    assert seconds < 0.5  # measured: 3 ms; a copy of the weights would take seconds


def test_one_small_tensor_of_3_gb_is_read_alone(huge: Callable[[int], Path]) -> None:
    grown, seconds = measured(
        huge(3 << 30),
        """
tensor = model.graph.initializer[1]
tensor.dims[:] = [100]
assert read_tensor(tensor, folder).tolist() == [0.0] * 100
""",
    )
    assert grown <= 4
    assert seconds < 0.5


def test_300_mb_are_carried_in_blocks(huge: Callable[[int], Path]) -> None:
    folder = huge(300 << 20)
    grown, _ = measured(folder, 'write_model(model, folder / "n.onnx", source=folder / "m.onnx", weights="carry")')
    assert (folder / "n.onnx.data").stat().st_size == 300 << 20
    assert grown < 64
