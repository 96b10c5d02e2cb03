"""Runs in several passes, of models of several inputs, and of what is no picture."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from measuring import on_linux
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from onnxfeat import FeatureExtractor, expose, save_pictures
from onnxfeat.errors import LayerError, ModelError, PictureError

RNG = np.random.default_rng(0)
ROOT = Path(__file__).parent.parent


def network(text: str, **constants: NDArray[Any]) -> onnx.ModelProto:
    """Return a model of ONNX text; its outputs have no declared shape."""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]> g {text}')
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    for name, value in constants.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    return model


def kernel(*shape: int) -> NDArray[np.float32]:
    return RNG.normal(size=shape).astype(np.float32)


def reference(model: onnx.ModelProto, **feeds: Any) -> dict[str, Any]:
    """Return all values of an unmodified model, by onnx's own evaluator."""
    return dict(ReferenceEvaluator(model).run(None, feeds, intermediate=True))


STACK = """(float[N,3,H,W] x) => (float y) {
  a = Conv<pads = [1, 1, 1, 1]>(x, w) b = Relu(a) c = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(b)
  d = Conv<pads = [1, 1, 1, 1]>(c, v) e = Sigmoid(d) y = MaxPool<kernel_shape = [3, 3]>(e)
}"""


def stack() -> onnx.ModelProto:
    return network(STACK, w=kernel(8, 3, 3, 3), v=kernel(16, 8, 3, 3))


def picture(side: int = 16) -> NDArray[np.float32]:
    return RNG.normal(size=(1, 3, side, side)).astype(np.float32)


@settings(max_examples=25, deadline=None)
@given(st.integers(17_000, 120_000), st.sampled_from(["kind:any", "kind:conv,kind:pool", "kind:any,!kind:activation"]))
def test_passes_give_the_same_bytes_as_one_pass_where_layers_are_fused(budget: int, layers: str) -> None:
    """Conv, BatchNormalization and Add are one kernel to ONNX Runtime unless somebody watches between them."""
    model = network(
        """(float[1,3,16,16] x) => (float y) {
        a = Conv<pads = [1, 1, 1, 1]>(x, w) b = BatchNormalization(a, s, t, t, s) c = Relu(b)
        d = Conv<pads = [1, 1, 1, 1]>(c, v) e = BatchNormalization(d, s, t, t, s) f = Add(e, c) g = Relu(f)
        h = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(g) y = Conv(h, v) }""",
        w=kernel(8, 3, 3, 3),
        v=kernel(8, 8, 3, 3),
        s=np.linspace(0.5, 2, 8, dtype=np.float32),
        t=np.linspace(-1, 1, 8, dtype=np.float32),
    )
    x = picture()
    whole = FeatureExtractor(model, layers=layers, provider="cpu")(x)
    found: dict[str, bytes] = {}
    for part in FeatureExtractor(model, layers=layers, provider="cpu", max_bytes=budget).stream(x):
        found.update((name, feature_map.array.tobytes()) for name, feature_map in part.items())
    assert found == {name: feature_map.array.tobytes() for name, feature_map in whole.items()}


@pytest.mark.parametrize("budget", ["20KB", "30KB", "60KB", "1MB"])
def test_passes_give_the_same_bytes_as_one_pass(budget: str) -> None:
    model, x = stack(), picture()
    whole = FeatureExtractor(model, provider="cpu")(x)
    extractor = FeatureExtractor(model, provider="cpu", max_bytes=budget)
    parts = list(extractor.stream(x))
    assert len(parts) == len(extractor.plan(x).passes)
    found = {name: feature_map for part in parts for name, feature_map in part.items()}
    assert list(found) == list(whole)
    for name in whole:
        assert found[name].array.tobytes() == whole[name].array.tobytes()
    assert all(part.layers == tuple(whole) for part in parts)


def test_a_plan_tells_the_bytes_before_anything_runs() -> None:
    extractor = FeatureExtractor(stack(), provider="cpu", max_bytes="20KB")
    plan = extractor.plan(picture())
    assert plan.sizes == {"conv_0": 8192, "pool_0": 2048, "conv_1": 4096, "pool_1": 16 * 36 * 4}
    assert plan.total == sum(x.array.nbytes for part in extractor.stream(picture()) for x in part.values())
    assert plan.passes == (("conv_0", "pool_0"), ("conv_1", "pool_1"))
    assert (plan.nodes, plan.all_nodes) == (6, 6)
    assert FeatureExtractor(stack(), layers="conv_0", provider="cpu").plan(picture()).nodes == 2


def test_the_parts_of_many_pictures_come_pass_by_pass() -> None:
    extractor = FeatureExtractor(stack(), provider="cpu", max_bytes="20KB")
    parts = [(part.first, list(part)) for part in extractor.stream([picture(), picture(), picture()])]
    first, second = ["conv_0", "pool_0"], ["conv_1", "pool_1"]
    assert parts == [(0, first), (1, first), (2, first), (0, second), (1, second), (2, second)]


def test_pictures_of_several_sizes_share_a_plan_that_fits_the_largest() -> None:
    extractor = FeatureExtractor(stack(), provider="cpu", max_bytes="20KB")
    assert len(extractor.plan([picture(8), picture(16)]).passes) == 2
    parts = list(extractor.stream([picture(8), picture(16)]))
    assert [part["conv_0"].shape[2] for part in parts if "conv_0" in part] == [8, 16]


def test_what_does_not_fit_at_once_is_refused_with_the_way_out() -> None:
    extractor = FeatureExtractor(stack(), provider="cpu", max_bytes="20KB")
    with pytest.raises(PictureError, match=r"the maps for 2 pictures take 33\.3 KB or more, .*extractor\.stream"):
        extractor([picture(), picture()])


def test_a_layer_larger_than_the_budget_is_left_out_with_the_reason(tmp_path: Path) -> None:
    extractor = FeatureExtractor(stack(), provider="cpu", max_bytes="10KB")
    run = save_pictures(extractor.stream(picture()), tmp_path / "maps")
    assert [layer["layer"] for layer in run["pictures"][0]["layers"]] == ["pool_0", "conv_1", "pool_1"]
    assert run["left_out"]["conv_0"].startswith("its maps take 8.19 KB, and as much again to be drawn, of a budget of")
    with pytest.raises(LayerError, match=r"layer 'conv_0' does not fit: its maps take 8\.19 KB, .* \(!conv_0\)"):
        FeatureExtractor(stack(), layers="0:2", provider="cpu", max_bytes="12KB")(picture())
    with pytest.raises(LayerError, match=r"none of the 1 layers fits, 'conv_0' for instance: its maps take 8\.19 KB"):
        list(FeatureExtractor(stack(), layers="conv_0", provider="cpu", max_bytes="10KB").stream(picture()))


def test_files_are_the_same_in_one_pass_and_in_many(models: Path, tmp_path: Path) -> None:
    for name, budget in (("one", "1GiB"), ("many", "600KB")):
        extractor = FeatureExtractor(models / "shapes_small.onnx", provider="cpu", max_bytes=budget)
        save_pictures(extractor.stream([models / "pictures/chelsea.png"] * 2), tmp_path / name)
    one, many = (sorted(path.rglob("*.*")) for path in (tmp_path / "one", tmp_path / "many"))
    assert len(one) == 17
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in many]


def test_a_file_that_expose_wrote_runs_in_passes_too(models: Path, tmp_path: Path) -> None:
    expose(models / "shapes_small.onnx", tmp_path / "e.onnx")
    x = models / "pictures/chelsea.png"
    whole = FeatureExtractor(tmp_path / "e.onnx", provider="cpu")(x)
    parts = list(FeatureExtractor(tmp_path / "e.onnx", provider="cpu", max_bytes="600KB").stream(x))
    assert len(parts) > 1
    for part in parts:
        for name in part:
            np.testing.assert_array_equal(part[name].array, whole[name].array)


def test_lengths_that_inference_does_not_tell_are_asked_of_the_model() -> None:
    """What NonZero gives is as long as there are numbers above 0: nobody knows before it runs."""
    model = network(
        """(float[1,2,L] x) => (float y) { c = Conv(x, w) z = Constant<value_float = -1000.0>() g = Greater(x, z)
        i = NonZero(g) f = Cast<to = 1>(i) u = Unsqueeze(f, zero) y = MaxPool<kernel_shape = [2]>(u) }""",
        w=kernel(4, 2, 3),
        zero=np.array([0]),
    )
    extractor = FeatureExtractor(model, provider="cpu")
    x = np.ones((1, 2, 50), np.float32)
    assert extractor.plan(x).sizes == {"conv_0": 4 * 48 * 4, "pool_0": 3 * 99 * 4}
    assert extractor(x)["pool_0"].shape == (1, 3, 99)


def peak(code: str) -> int:
    """Return the largest resident memory, in bytes, of a process that runs some code."""
    code += "\nfrom measuring import peak; print('peak', peak())"
    where = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, env=where
    )
    return int(found.stdout.split("peak")[-1])


@on_linux
def test_the_memory_that_drawing_takes_stays_within_the_budget(tmp_path: Path) -> None:
    """Ten layers of 25 MB each, in the memory of the plain run, the budget, and two pictures that are being drawn."""
    layers = " ".join(f"a{i + 1} = Conv<pads = [1, 1, 1, 1]>(a{i}, w)" for i in range(10))
    model = network(f"(float[1,16,640,640] a0) => (float a10) {{ {layers} }}", w=kernel(16, 16, 3, 3) / 12)
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    np.save(tmp_path / "x.npy", RNG.normal(size=(1, 16, 640, 640)).astype(np.float32))
    plain = peak(
        f"import numpy as np, onnxruntime; s = onnxruntime.InferenceSession({str(path)!r}, "
        f"providers=['CPUExecutionProvider']); s.run(None, {{'a0': np.load({str(tmp_path / 'x.npy')!r})}})"
    )
    budget = 80 * 10**6
    drawing = peak(
        "from onnxfeat import FeatureExtractor, save_pictures\n"
        f"e = FeatureExtractor({str(path)!r}, provider='cpu', max_bytes={{}})\n"
        "from onnxfeat.drawing import gallery; gallery._MOST_THREADS = 2\n"
        f"save_pictures(e.stream({str(tmp_path / 'x.npy')!r}), {str(tmp_path / 'maps')!r}, overwrite=True)".format(
            budget
        )
    )
    libraries = peak("import onnx.shape_inference, onnxruntime, PIL.Image") - peak("import numpy, onnxruntime")
    pages = 2 * 4 * 16 * 640 * 640  # levels and page of each, and what the allocator of each thread keeps
    assert drawing - plain - max(libraries, 0) <= budget + pages
    # The test can fail: all at once takes more.
    at_once = peak(
        "import numpy as np; from onnxfeat import FeatureExtractor\n"
        f"e = FeatureExtractor({str(path)!r}, provider='cpu')\n"
        f"e(np.load({str(tmp_path / 'x.npy')!r}))"
    )
    assert at_once - plain > 2 * budget


TWO_INPUTS = """(float[N,3,8,8] x, float[1] gain, int64 steps) => (float y) {
  m = Mul(x, gain) f = Cast<to = 1>(steps) p = Add(m, f) y = Conv(p, w) }"""


def two_inputs() -> onnx.ModelProto:
    model = network(TWO_INPUTS, w=kernel(4, 3, 3, 3))
    model.graph.input[2].type.tensor_type.ClearField("shape")
    model.graph.input[2].type.tensor_type.shape.SetInParent()
    return model


def test_other_inputs_take_numbers_arrays_and_files(tmp_path: Path) -> None:
    model, x = two_inputs(), picture(8)
    expected = reference(model, x=x, gain=np.array([2.5], np.float32), steps=np.array(3))["y"]
    np.save(tmp_path / "gain.npy", np.array([2.5]))
    for gain in (2.5, np.array([2.5], np.float32), tmp_path / "gain.npy", str(tmp_path / "gain.npy")):
        found = FeatureExtractor(model, provider="cpu", inputs={"gain": gain, "steps": 3})(x)
        np.testing.assert_allclose(found["conv_0"].array, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (
            {},
            r"wants 2 inputs beside the picture: 'gain' float32 \(1\), 'steps' int64 number; give each a value",
        ),
        ({"gain": 1}, r"wants 1 inputs beside the picture: 'steps' int64 number"),
        ({"gain": 1, "steps": 1, "z": 1}, r"takes no value for an input 'z': it has 'gain' or 'steps'"),
        ({"gain": [1, 2], "steps": 1}, r"the value of input 'gain' has shape \(2,\), the model wants \[1\]"),
        ({"gain": 1, "steps": 1.5}, r"the value of input 'steps' has type float64, the model wants tensor\(int64\)"),
        ({"gain": "a", "steps": 1}, r"there is no file a"),
        ({"gain": np.array(["a"]), "steps": 1}, r"the value of input 'gain' is of type <U1: give numbers"),
    ],
)
def test_what_is_missing_or_does_not_fit_is_named(inputs: dict[str, Any], message: str) -> None:
    with pytest.raises((ModelError, PictureError), match=message):
        FeatureExtractor(two_inputs(), provider="cpu", inputs=inputs)


def test_inputs_that_the_cut_model_does_not_need_may_be_given_and_left_out() -> None:
    model = network(
        "(float[N,3,8,8] x, float[1] z) => (float y) { c = Conv(x, w) y = Mul(c, z) }", w=kernel(4, 3, 3, 3)
    )
    x = picture(8)
    without = FeatureExtractor(model, layers="kind:conv", provider="cpu")(x)
    given = FeatureExtractor(model, layers="kind:conv", provider="cpu", inputs={"z": 1})(x)
    np.testing.assert_array_equal(without["conv_0"].array, given["conv_0"].array)


def test_the_picture_can_be_the_second_of_two() -> None:
    model = network(
        "(float[1,3,8,8] z, float[1,3,8,8] x) => (float y) { a = Add(x, z) y = Conv(a, w) }", w=kernel(4, 3, 3, 3)
    )
    x, z = picture(8), picture(8)
    found = FeatureExtractor(model, provider="cpu", inputs={"z": z})(x)
    np.testing.assert_allclose(found["conv_0"].array, reference(model, x=x, z=z)["y"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("text", "weights", "shape", "batchless"),
    [
        ("(float[N,2,50] x) => (float y) { y = Conv(x, w) }", (4, 2, 3), (1, 2, 50), (2, 50)),
        ("(float[N,2,L] x) => (float y) { y = Conv(x, w) }", (4, 2, 3), (1, 2, 31), (2, 31)),
        ("(float[N,1,6,7,8] x) => (float y) { y = Conv(x, w) }", (4, 1, 3, 3, 3), (1, 1, 6, 7, 8), (1, 6, 7, 8)),
        (
            "(float[N,50,2] x) => (float y) { t = Transpose<perm = [0, 2, 1]>(x) y = Conv(t, w) }",
            (4, 2, 3),
            (1, 50, 2),
            (50, 2),
        ),
    ],
)
def test_lines_and_volumes_are_extracted_from_arrays(
    text: str, weights: tuple[int, ...], shape: tuple[int, ...], batchless: tuple[int, ...], tmp_path: Path
) -> None:
    model = network(text, w=kernel(*weights))
    x = RNG.normal(size=shape).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    expected = reference(model, x=x)["y"]
    extractor = FeatureExtractor(model, provider="cpu")
    for array in (x, x.reshape(batchless), tmp_path / "x.npy", x.astype(np.float64)):
        np.testing.assert_allclose(extractor(array)["conv_0"].array, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(
        PictureError, match=r"chelsea.png can't be taken: the input 'x' wants float32 \(N, .*no\s+picture"
    ):
        extractor(ROOT / "models/pictures/chelsea.png")


def test_several_samples_of_lines_are_several_pictures() -> None:
    model = network("(float[N,2,50] x) => (float y) { y = Conv(x, w) }", w=kernel(4, 2, 3))
    x = RNG.normal(size=(3, 2, 50)).astype(np.float32)
    found = FeatureExtractor(model, provider="cpu")(x)
    np.testing.assert_allclose(found["conv_0"].array, reference(model, x=x)["y"], rtol=1e-4, atol=1e-4)
    assert found.pictures == ("picture_1[0]", "picture_1[1]", "picture_1[2]")


def test_tokens_are_given_with_their_channels_first() -> None:
    """A patch embedding, a class token put in front, and a normalization, as in a vision transformer."""
    model = network(
        """(float[N,3,16,16] x) => (float y) {
          c = Conv<strides = [4, 4]>(x, w) r = Reshape(c, flat) t = Transpose<perm = [0, 2, 1]>(r)
          k = Concat<axis = 1>(cls, t) [norm] n = LayerNormalization(k, s, b) [head] y = MatMul(n, m) }""",
        w=kernel(6, 3, 4, 4),
        flat=np.array([0, 6, -1]),
        cls=kernel(1, 1, 6),
        s=kernel(6),
        b=kernel(6),
        m=kernel(6, 5),
    )
    x = picture(16)
    expected = reference(model, x=x)
    found = FeatureExtractor(model, layers="norm,head,kind:conv", provider="cpu")(x)
    assert {name: found[name].layer.layout for name in found} == {"conv_0": "NCHW", "norm": "NTC", "head": "NTC"}
    np.testing.assert_allclose(found["norm"].array, expected["n"].transpose(0, 2, 1), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found["head"].array, expected["y"].transpose(0, 2, 1), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("element_type", ["float16", "double", "bfloat16"])
def test_maps_of_other_float_types_become_float32(element_type: str) -> None:
    number = {"float16": 10, "double": 11, "bfloat16": 16}[element_type]
    pool = "MaxPool<kernel_shape = [2, 2]>" if element_type != "bfloat16" else "Identity"
    model = network(
        f"(float[1,3,8,8] x) => (float y) "
        f"{{ c = Conv(x, w) h = Cast<to = {number}>(c) p = {pool}(h) y = Cast<to = 1>(p) }}",
        w=kernel(4, 3, 3, 3),
    )
    x = picture(8)
    name = "pool_0" if element_type != "bfloat16" else "other_1"
    layers = "kind:pool" if element_type != "bfloat16" else "op:Identity"
    (found,) = FeatureExtractor(model, layers=layers, provider="cpu")(x).values()
    assert (found.name, str(found.array.dtype), found.layer.dtype) == (name, "float32", element_type)
    np.testing.assert_allclose(found.array, reference(model, x=x)["y"], rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("element_type", ["uint8", "int8", "int32", "bool"])
def test_maps_of_whole_numbers_become_float32(element_type: str) -> None:
    number = {"uint8": 2, "int8": 3, "int32": 6, "bool": 9}[element_type]
    model = network(
        f"(float[1,3,8,8] x) => (float y) "
        f"{{ c = Conv(x, w) a = Abs(c) h = Cast<to = {number}>(a) y = Cast<to = 1>(h) }}",
        w=kernel(4, 3, 3, 3),
    )
    x = picture(8)
    found = FeatureExtractor(model, layers="op:Cast", provider="cpu")(x)
    for feature_map in found.values():
        assert feature_map.array.dtype == np.float32
        np.testing.assert_allclose(feature_map.array, reference(model, x=x)["y"], atol=1)


def test_an_input_of_bfloat16_is_fed_from_a_picture() -> None:
    model = network("(bfloat16[1,3,8,8] x) => (float y) { f = Cast<to = 1>(x) y = Conv(f, w) }", w=kernel(4, 3, 3, 3))
    x = picture(8)
    found = FeatureExtractor(model, provider="cpu")(x)
    plain = network(
        "(float[1,3,8,8] x) => (float y) { y = Conv(x, w) }", w=onnx.numpy_helper.to_array(model.graph.initializer[0])
    )
    np.testing.assert_allclose(found["conv_0"].array, reference(plain, x=x)["y"], rtol=0.05, atol=0.1)


def test_layers_whose_axes_are_unknown_are_left_out_and_the_rest_is_drawn(tmp_path: Path) -> None:
    model = network(
        "(float[1,3,8,8] x) => (float y) { c = Conv(x, w) [flat] f = Flatten(c) y = Relu(f) }", w=kernel(4, 3, 3, 3)
    )
    features = FeatureExtractor(model, layers="kind:any", provider="cpu")(picture(8))
    assert list(features) == ["conv_0"]
    assert features.left_out["flat"] == "the graph does not tell the axes of what Flatten gives"
    run = save_pictures(features, tmp_path / "maps")
    assert list(run["left_out"]) == ["flat", "activation_0"]
    assert json.loads((tmp_path / "maps/run.json").read_text())["left_out"] == run["left_out"]


def test_a_declared_shape_that_lies_does_not_mislead() -> None:
    model = network(
        "(float[1,3,8,8] x) => (float y) { c = Conv(x, w) y = MaxPool<kernel_shape = [2, 2]>(c) }", w=kernel(4, 3, 3, 3)
    )
    for value, shape in (("c", [1, 1, 1]), ("y", [])):
        model.graph.value_info.append(onnx.helper.make_tensor_value_info(value, 1, shape))
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info("y", 1, []))
    extractor = FeatureExtractor(model, provider="cpu")
    assert [layer.shape for layer in extractor.layers] == [(1, 4, 6, 6), (1, 4, 5, 5)]
    np.testing.assert_allclose(extractor(picture(8))["pool_0"].shape, (1, 4, 5, 5))


def test_no_sample_of_an_input_that_is_fed_whole_is_lost() -> None:
    """Of a generator that makes pictures of two rows of numbers, both are asked for."""
    model = network(
        """(float[2,12] x) => (float y) { r = Reshape(x, s) c = Conv(r, w) y = Relu(c) }""",
        s=np.array([2, 3, 2, 2]),
        w=kernel(4, 3, 1, 1),
    )
    x = RNG.normal(size=(2, 12)).astype(np.float32)
    found = FeatureExtractor(model, provider="cpu")(x)
    assert found.pictures == ("picture_1[0]", "picture_1[1]")
    np.testing.assert_allclose(found["conv_0"].array, reference(model, x=x)["y"], rtol=1e-4, atol=1e-4)


def test_a_conv_of_constants_is_a_layer_too() -> None:
    model = network(
        "(float[1,3,8,8] x) => (float y) { c = Conv(k, w) d = Conv(x, w) y = Add(c, d) }",
        k=picture(8),
        w=kernel(4, 3, 3, 3),
    )
    x = picture(8)
    found = FeatureExtractor(model, provider="cpu")(x)
    np.testing.assert_allclose(found["conv_0"].array, reference(model, x=x)["c"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("axes", "kernel_shape"), [("N,3,30", (3,)), ("N,3,6,7,8", (3, 3, 3))])
def test_the_kernel_tells_the_axes_where_no_shape_does(axes: str, kernel_shape: tuple[int, ...]) -> None:
    """Behind an operator that nobody's inference knows."""
    model = network(
        f"(float[{axes}] x) => (float y) {{ t = Identity(x) c = Conv(t, w) "
        f"p = MaxPool<kernel_shape = {[2] * len(kernel_shape)}>(c) y = Relu(p) }}",
        w=kernel(4, 3, *kernel_shape),
    )
    model.graph.input[0].type.tensor_type.ClearField("shape")
    layers = FeatureExtractor(model, provider="cpu").layers
    assert [len(layer.layout or "") for layer in layers] == [len(kernel_shape) + 2] * 2


def test_a_model_without_a_batch_axis_takes_a_picture(tmp_path: Path) -> None:
    """As torchvision's detectors do."""
    model = network(
        "(float[3,H,W] x) => (float y) { u = Unsqueeze(x, zero) y = Conv(u, w) }",
        zero=np.array([0]),
        w=kernel(4, 3, 3, 3),
    )
    pixels = RNG.integers(0, 256, (6, 5, 3)).astype(np.uint8)
    x = (pixels.transpose(2, 0, 1) / 255).astype(np.float32)
    expose(model, tmp_path / "e.onnx")
    for source in (model, tmp_path / "e.onnx"):
        extractor = FeatureExtractor(source, provider="cpu")
        assert extractor.input.layout == "CHW"
        for sample in (pixels, x):
            found = extractor(sample)
            np.testing.assert_allclose(found["conv_0"].array, reference(model, x=x)["y"], rtol=1e-4, atol=1e-4)
    assert extractor(pixels).preprocessed == (False,)
    assert extractor(x).preprocessed == (True,)
