from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from measuring import on_linux

from onnxfeat import FeatureExtractor, expose, list_layers
from onnxfeat.errors import ModelError
from onnxfeat.graph.model_files import embed_own
from onnxfeat.graph.parsing import parse_bytes, parse_file
from onnxfeat.graph.reading import read_graph
from onnxfeat.metadata import KEY

ROOT = Path(__file__).parent.parent
RNG = np.random.default_rng(0)


def model(*channels: int, kernel: int = 3) -> onnx.ModelProto:
    """Return a stack of convs with these numbers of channels, the picture's first; weights are named w0, w1, ..."""
    text = " ".join(
        f"c{i + 1} = Conv<auto_pad = 'SAME_UPPER'>(c{i}, w{i})".replace("'", '"') for i in range(len(channels) - 1)
    )
    made = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17], metadata_props: ["kept" : "yes"]> '
        f"g (float[N,{channels[0]},16,16] c0) => (float[N,{channels[-1]},16,16] c{len(channels) - 1}) {{ {text} }}"
    )
    for i, (before, after) in enumerate(pairwise(channels)):
        weights = RNG.normal(size=(after, before, kernel, kernel)).astype(np.float32) / (before * 9) ** 0.5
        made.graph.initializer.append(onnx.numpy_helper.from_array(weights, f"w{i}"))
    return made


def saved(made: onnx.ModelProto, folder: Path, name: str = "m.onnx") -> Path:
    onnx.save(made, folder / name)
    return folder / name


def is_external(tensor: onnx.TensorProto) -> bool:
    return tensor.data_location == onnx.TensorProto.EXTERNAL


def test_large_weights_stay_in_the_file_and_small_ones_are_read(tmp_path: Path) -> None:
    path = saved(model(3, 64, 64, 4), tmp_path)
    parsed, _ = parse_file(path)
    assert {x.name: is_external(x) for x in parsed.graph.initializer} == {"w0": False, "w1": True, "w2": False}
    (weights,) = [x for x in parsed.graph.initializer if is_external(x)]
    place = {entry.key: entry.value for entry in weights.external_data}
    assert place["location"] == "m.onnx"
    start, length = int(place["offset"]), int(place["length"])
    expected = next(x for x in onnx.load(path).graph.initializer if x.name == "w1").raw_data
    assert path.read_bytes()[start : start + length] == expected


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 80), min_size=2, max_size=5), st.integers(1, 3))
def test_putting_the_weights_back_gives_the_model_that_onnx_reads(
    tmp_path_factory: pytest.TempPathFactory, channels: list[int], kernel: int
) -> None:
    path = saved(model(*channels, kernel=kernel), tmp_path_factory.mktemp("m"))
    parsed, _ = parse_file(path)
    embed_own(parsed, path)
    assert parsed == onnx.load(path)


def test_exposing_writes_one_file_that_needs_no_other(tmp_path: Path) -> None:
    path = saved(model(3, 64, 64, 4), tmp_path)
    original = onnx.load(path)
    for cut in (True, False):
        for weights in ("auto", "refer", "carry"):
            written = tmp_path / f"{cut}-{weights}.onnx"
            expose(path, written, layers="kind:conv", cut=cut, weights=weights)
            exposed = onnx.load(written, load_external_data=False)
            assert list(exposed.graph.initializer) == list(original.graph.initializer)
            assert [x.value for x in exposed.metadata_props if x.key != KEY] == ["yes"]
    assert sorted(x.suffix for x in tmp_path.iterdir()) == [".onnx"] * 7


def test_the_maps_are_those_of_the_whole_model(tmp_path: Path) -> None:
    path = saved(model(3, 64, 64, 4), tmp_path)
    picture = RNG.normal(size=(1, 3, 16, 16)).astype(np.float32)
    found = FeatureExtractor(path, provider="cpu")(picture)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"c0": picture})
    np.testing.assert_allclose(found["conv_2"].array, expected, rtol=1e-5, atol=1e-5)


def test_a_file_whose_name_can_be_no_location_is_read_whole(tmp_path: Path) -> None:
    path = saved(model(3, 64, 64, 4), tmp_path, "a\\b.onnx")
    parsed, _ = parse_file(path)
    assert parsed == onnx.load(path)
    assert len(FeatureExtractor(path, provider="cpu")(np.zeros((1, 3, 16, 16), np.float32))) == 3


def test_a_link_to_a_model_is_read_like_the_model(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    path = saved(model(3, 64, 64, 4), tmp_path / "there")
    link = tmp_path / "link.onnx"
    link.symlink_to(path)
    assert list_layers(link) == list_layers(path)
    picture = np.ones((1, 3, 16, 16), np.float32)
    a, b = (FeatureExtractor(x, provider="cpu")(picture)["conv_2"].array for x in (link, path))
    np.testing.assert_array_equal(a, b)


def test_a_file_in_two_parts_that_protobuf_merges_is_one_model(tmp_path: Path) -> None:
    made = model(3, 64, 64, 4)
    more = onnx.ModelProto()
    more.graph.output.append(onnx.ValueInfoProto(name="c1"))
    path = tmp_path / "m.onnx"
    path.write_bytes(made.SerializeToString() + more.SerializeToString())
    graph = read_graph(path)
    assert graph.outputs == {"c1", "c3"}
    assert [is_external(x) for x in graph.model.graph.initializer] == [False, True, False]


@pytest.mark.parametrize("cut", range(1, 40))
def test_a_truncated_file_is_damaged_whatever_the_place(tmp_path: Path, cut: int) -> None:
    content = model(3, 64, 64, 4).SerializeToString()
    path = tmp_path / "m.onnx"
    path.write_bytes(content[: len(content) * cut // 40])
    with pytest.raises(ModelError):
        parse_bytes(path.read_bytes(), "m.onnx")
    with pytest.raises(ModelError):
        parse_file(path)


@on_linux
def test_reading_takes_memory_for_the_graph_and_not_for_the_weights(tmp_path: Path) -> None:
    """The second conv's weights are 302 MB, and the first layer does not need them."""
    made = model(3, 8, 4)
    del made.graph.initializer[1]
    made.graph.initializer.append(
        onnx.TensorProto(name="w1", data_type=1, dims=[1024 * 1024, 8, 3, 3], raw_data=bytes(4 * 1024 * 1024 * 72))
    )
    path = saved(made, tmp_path)
    code = f"""
import numpy as np
from measuring import peak
from onnxfeat import FeatureExtractor, expose, list_layers
list_layers("models/shapes_small.onnx")
FeatureExtractor("models/shapes_small.onnx", provider="cpu")
before = peak()
assert len(list_layers({str(path)!r})) == 2
FeatureExtractor({str(path)!r}, layers="0", provider="cpu")(np.zeros((1, 3, 16, 16), np.float32))
expose({str(path)!r}, {str(tmp_path / "e.onnx")!r}, layers="0")
print((peak() - before) / (1 << 20))
"""
    where = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, env=where)
    grown = run.stdout
    assert float(grown) < 60
    assert (tmp_path / "e.onnx").stat().st_size < 20_000
