from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import onnx
import onnx.parser
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from onnxfeat.errors import ModelError
from onnxfeat.graph.reading import read_graph
from onnxfeat.metadata import KEY, Document, Exposed, MappedLayer, Origin, read_document
from onnxfeat.preprocessing import ColorOrder, Interpolation, Preprocessing
from onnxfeat.records import Kind, Layer, ModelInput

TEXT = """
<ir_version: 9, opset_import: ["" : 18], producer_name: "test">
g (float[N,1,4,4] x) => (float[N,2,4,4] y)
<float[2,1,1,1] w = {1, 2}> { c = Conv(x, w) y = Relu(c) }
"""


def small_model() -> onnx.ModelProto:
    return onnx.parser.parse_model(TEXT)


def with_metadata(entries: dict[str, str]) -> onnx.ModelProto:
    model = small_model()
    onnx.helper.set_model_props(model, entries)
    return model


def written(folder: Path, content: bytes) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(content)
    return path


def readable_by(read: Callable[[Path], object], path: Path) -> bool:
    """Return whether a file can be read; nothing but a `ModelError` may come, which names it and what to do."""
    try:
        read(path)
    except ModelError as error:
        assert re.search(f"{re.escape(str(path))}.*[:;] [a-z]", str(error))  # noqa: PT017  # either may happen
        return False
    return True


LAYOUTS = st.sampled_from(["NCHW", "NHWC", "NC", "NCW", None])
COUNTS = st.integers(min_value=0, max_value=10**6)
MAPPED = st.builds(
    MappedLayer,
    name=st.text(),
    keras_class=st.text(),
    kind=st.sampled_from(get_args(Kind)),
    value=st.none() | st.text(),
    layout=LAYOUTS,
    error=st.none() | st.floats(min_value=0, max_value=1),
    noise=st.none() | st.floats(min_value=0, max_value=1),
)
LAYERS = st.builds(
    Layer,
    name=st.text(),
    kind=st.sampled_from(get_args(Kind)),
    op_type=st.text(),
    value=st.text(),
    raw_value=st.text(),
    activation=st.none() | st.text(),
    shape=st.none() | st.lists(st.none() | st.text() | COUNTS, max_size=5).map(tuple),
    layout=LAYOUTS,
    dtype=st.none() | st.text(),
    reduction=st.none() | st.tuples(st.floats(min_value=0.1, max_value=64), st.just(2.0)),
    receptive_field=st.none() | st.tuples(COUNTS, COUNTS),
    source=st.none() | st.text(),
    node=st.text(),
)
INPUTS = st.builds(
    ModelInput,
    name=st.text(),
    shape=st.tuples(st.none() | st.text(), COUNTS, COUNTS, COUNTS),
    layout=st.sampled_from(["NCHW", "NHWC"]),
    dtype=st.sampled_from(["float32", "uint8"]),
)
PREPROCESSINGS = st.builds(
    Preprocessing,
    size=st.none() | st.tuples(st.integers(1, 9999), st.integers(1, 9999)),
    scale=st.floats(min_value=1e-3, max_value=10),
    mean=st.tuples(st.floats(-200, 200)),
    std=st.tuples(st.floats(0.1, 200)),
    color=st.sampled_from(get_args(ColorOrder)),
    interpolation=st.sampled_from(get_args(Interpolation)),
)
DOCUMENTS = st.builds(
    Document,
    layer_map=st.lists(MAPPED, max_size=3).map(tuple),
    preprocessing=st.none() | PREPROCESSINGS,
    exposed=st.none()
    | st.builds(Exposed, source_sha256=st.text(), input=INPUTS, layers=st.lists(LAYERS, max_size=3).map(tuple)),
)


@settings(max_examples=60)
@given(document=DOCUMENTS)
def test_a_document_survives_the_way_through_a_file_that_onnx_wrote(
    document: Document, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    onnx.save(with_metadata({"other": "text", KEY: document.to_text(), "more": "é"}), path)
    assert read_document(path) == document


@settings(max_examples=60)
@given(value=st.text(), others=st.dictionaries(st.text(), st.text(), max_size=5))
def test_the_reader_finds_what_the_parser_of_onnx_finds(
    value: str, others: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    document = Document(layer_map=(MappedLayer(name=value, keras_class="c", kind="conv", value=None, layout=None),))
    model = with_metadata({**others, KEY: document.to_text()})
    path = written(tmp_path_factory.mktemp("model"), model.SerializeToString())
    parsed = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert read_document(path).to_text() == parsed[KEY]


def test_equal_documents_give_equal_text() -> None:
    def make() -> Document:
        return Document(preprocessing=Preprocessing(scale=1.0))

    assert make().to_text() == make().to_text()


def test_the_text_is_json_with_the_schema_that_is_documented() -> None:
    exact = MappedLayer(name="a", keras_class="Conv2D", kind="conv", value="v", layout="NCHW", error=0.5, noise=0.25)
    absent = MappedLayer(name="b", keras_class="Dropout", kind="other", value=None, layout=None, reason="why")
    origin = Origin(file="m.keras", sha256="00ff", framework="Keras 3", weights="float32", tools={"onnx": "1.23"})
    data = json.loads(
        Document(
            layer_map=(exact, absent), preprocessing=Preprocessing(scale=1.0), labels=("cat", "dog"), origin=origin
        ).to_text()
    )
    assert data == {
        "schema_version": 1,
        "layer_map": [
            {
                "name": "a",
                "class": "Conv2D",
                "kind": "conv",
                "value": "v",
                "layout": "NCHW",
                "status": "exact",
                "reason": "",
                "error": 0.5,
                "noise": 0.25,
            },
            {
                "name": "b",
                "class": "Dropout",
                "kind": "other",
                "value": None,
                "layout": None,
                "status": "absent",
                "reason": "why",
                "error": None,
                "noise": None,
            },
        ],
        "preprocessing": {
            "size": None,
            "scale": 1.0,
            "mean": [0.0],
            "std": [1.0],
            "color": "rgb",
            "interpolation": "bilinear",
            "aspect": "stretch",
            "resampling": "pillow",
            "fill": 0.0,
        },
        "labels": ["cat", "dog"],
        "origin": {
            "file": "m.keras",
            "sha256": "00ff",
            "framework": "Keras 3",
            "weights": "float32",
            "tools": {"onnx": "1.23"},
        },
    }


def test_a_file_of_another_tool_has_an_empty_document(tmp_path: Path) -> None:
    path = written(tmp_path, small_model().SerializeToString())
    assert read_document(path) == Document()
    assert read_graph(path).document == Document()


def test_metadata_before_the_graph_is_found(tmp_path: Path) -> None:
    text = Document(preprocessing=Preprocessing(scale=1.0)).to_text()
    metadata = onnx.ModelProto()
    metadata.metadata_props.add(key=KEY, value=text)
    path = written(tmp_path, metadata.SerializeToString() + small_model().SerializeToString())
    assert read_document(path).to_text() == text


def test_of_two_documents_all_readers_take_the_first(tmp_path: Path) -> None:
    model = small_model()
    for scale in (1.0, 2.0):
        model.metadata_props.add(key=KEY, value=Document(preprocessing=Preprocessing(scale=scale)).to_text())
    path = written(tmp_path, model.SerializeToString())
    for document in (read_document(path), read_graph(path.read_bytes()).document, read_graph(model).document):
        assert document.preprocessing == Preprocessing(scale=1.0)


def test_a_file_cut_at_any_byte_is_a_model_error_or_a_whole_message(tmp_path: Path) -> None:
    document = Document(preprocessing=Preprocessing(scale=1.0))
    content = with_metadata({KEY: document.to_text()}).SerializeToString()
    readable = 0
    for length in range(len(content)):
        path = written(tmp_path, content[:length])
        for read in (read_document, read_graph):
            readable += readable_by(read, path)
    # Two cuts fall between the fields behind the graph (metadata, operator sets): protobuf knows no end mark.
    assert readable <= 4


def test_a_file_that_ends_within_the_graph_is_called_truncated(tmp_path: Path) -> None:
    content = small_model().SerializeToString()
    path = written(tmp_path, content[: len(content) // 2])
    with pytest.raises(ModelError, match=r"model\.onnx is truncated: it ends in the middle of the model; fetch it"):
        read_document(path)


@pytest.mark.parametrize("wire", [b"\x09" + b"\0" * 7, b"\x0d" + b"\0" * 3])  # field 1 of 8 and of 4 bytes
def test_a_number_that_ends_too_early_is_truncation(wire: bytes, tmp_path: Path) -> None:
    path = written(tmp_path, small_model().SerializeToString() + wire)
    with pytest.raises(ModelError, match="is truncated"):
        read_document(path)


@pytest.mark.parametrize("wire", [b"\x99\x06" + b"\0" * 8, b"\x9d\x06" + b"\0" * 4, b"\x98\x06\x05"])
def test_fields_that_are_unknown_yet_are_passed_over(wire: bytes, tmp_path: Path) -> None:
    path = written(tmp_path, small_model().SerializeToString() + wire)
    assert read_document(path) == Document()
    assert len(read_graph(path).nodes) == 2


@settings(max_examples=200)
@given(content=st.binary(max_size=200))
def test_random_bytes_are_a_model_error(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = written(tmp_path_factory.getbasetemp(), content)
    readable_by(read_document, path)  # a few bytes can be an empty graph
    with pytest.raises(ModelError, match=r"is not an ONNX file|is truncated|is damaged|has no nodes"):
        read_graph(path)
    with pytest.raises(ModelError, match=r"<memory> (is damaged|has no nodes)"):
        read_graph(content)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_bytes_are_read_or_a_model_error(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    document = Document(layer_map=(MappedLayer(name="a", keras_class="b", kind="conv", value="y", layout="NCHW"),))
    content = bytearray(with_metadata({KEY: document.to_text()}).SerializeToString())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = written(tmp_path_factory.getbasetemp(), bytes(content))
    for read in (read_document, read_graph):
        readable_by(read, path)


def test_a_picture_is_not_a_model(tmp_path: Path) -> None:
    path = tmp_path / "cat.png"
    Image.new("RGB", (8, 8)).save(path)
    with pytest.raises(ModelError, match=r"cat\.png is not an ONNX file: pass a model that was exported to ONNX"):
        read_document(path)


@pytest.mark.parametrize("content", [b"", onnx.ModelProto(ir_version=9).SerializeToString()])
def test_a_file_without_a_graph_is_not_a_model(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is not an ONNX file, it has no graph: pass a model"):
        read_document(written(tmp_path, content))


def test_a_folder_is_not_a_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is a folder, an ONNX file is wanted: name the \.onnx file in it"):
        read_document(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"there is no file .*gone\.onnx: check the path of the model"):
        read_document(tmp_path / "gone.onnx")


@pytest.mark.parametrize(
    ("name", "reason"), [("a" * 300, "File name too long"), ("model.onnx/inner.onnx", "Not a directory")]
)
def test_a_path_that_the_disk_refuses_is_told_with_its_reason(name: str, reason: str, tmp_path: Path) -> None:
    written(tmp_path, small_model().SerializeToString())
    with pytest.raises(ModelError, match=f"can't be read: {reason}; check that it is a file you may read"):
        read_document(tmp_path / name)


def test_newer_metadata_asks_for_a_newer_onnxfeat() -> None:
    with pytest.raises(ModelError, match=r"m\.onnx carries onnxfeat metadata of version 2, .* reads version 1: update"):
        Document.from_text('{"schema_version": 2, "layer_map": 7}', "m.onnx")


GOOD: dict[str, Any] = json.loads(
    Document(
        layer_map=(MappedLayer(name="a", keras_class="b", kind="conv", value="v", layout="NCHW"),),
        preprocessing=Preprocessing(),
        exposed=Exposed(
            source_sha256="0",
            input=ModelInput(name="x", shape=(1, 3, 8, 8), layout="NCHW", dtype="float32"),
            layers=(Layer(name="a", kind="conv", op_type="Conv", value="v", raw_value="v"),),
        ),
    ).to_text()
)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "7",
        "null",
        "{}",
        "[" * 100_000,
        json.dumps({**GOOD, "layer_map": 7}),
        json.dumps({**GOOD, "layer_map": [{"name": "a"}]}),
        json.dumps({**GOOD, "layer_map": [{**GOOD["layer_map"][0], "kind": "dense"}]}),
        json.dumps({**GOOD, "layer_map": [{**GOOD["layer_map"][0], "layout": "NHW"}]}),
        json.dumps({**GOOD, "preprocessing": {"color": "ultraviolet"}}),
        json.dumps({**GOOD, "preprocessing": {"scale": "a lot"}}),
        json.dumps({**GOOD, "preprocessing": [1]}),
        json.dumps({**GOOD, "exposed": {}}),
        json.dumps({**GOOD, "exposed": {**GOOD["exposed"], "input": {}}}),
        json.dumps({**GOOD, "exposed": {**GOOD["exposed"], "layers": [{}]}}),
        json.dumps({**GOOD, "exposed": {**GOOD["exposed"], "layers": None}}),
    ],
)
def test_damaged_metadata_is_a_model_error_that_says_so(text: str, tmp_path: Path) -> None:
    path = written(tmp_path, with_metadata({KEY: text}).SerializeToString())
    for read in (read_document, read_graph):
        with pytest.raises(ModelError, match=r"the onnxfeat metadata in .* is damaged .*: convert or expose the model"):
            read(path)


def test_keys_that_a_later_version_may_add_are_left_out() -> None:
    data = {**GOOD, "new": 1, "preprocessing": {**GOOD["preprocessing"], "gamma": 2.2}}
    assert Document.from_text(json.dumps(data), "m.onnx") == Document.from_text(json.dumps(GOOD), "m.onnx")


@pytest.mark.parametrize(
    "payload",
    [
        b"\x0a\x08onnxfeat\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01x",  # a value of 2**64 - 1 bytes
        b"\x0a\x08onnxfeat\x12\x7fx",
        b"\x08\x01",
        b"\x0a\x08onnxfeat\x12\x01\xff",  # not UTF-8
        b"\x0a" + b"\xff" * 10,  # a length that never ends
    ],
)
def test_a_broken_metadata_entry_is_a_model_error(payload: bytes, tmp_path: Path) -> None:
    entry = b"\x72" + bytes([len(payload)]) + payload
    path = written(tmp_path, small_model().SerializeToString() + entry)
    with pytest.raises(ModelError, match="is not an ONNX file"):
        read_document(path)


def test_metadata_of_other_tools_need_not_be_text(tmp_path: Path) -> None:
    entry = b"\x72\x06\x0a\x01a\x12\x01\xff"
    path = written(tmp_path, small_model().SerializeToString() + entry)
    assert read_document(path) == Document()
