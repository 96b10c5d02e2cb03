from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from onnxfeat.cli import main
from onnxfeat.errors import LayerError, ModelError, PictureError
from onnxfeat.findings import Change
from onnxfeat.running import exposure, proof
from onnxfeat.running.exposure import with_outputs
from onnxfeat.running.proof import LIMIT, change_of, check

Array = NDArray[Any]

RNG = np.random.default_rng(0)
CONSTANTS: dict[str, Array] = {
    "w": RNG.normal(size=(3, 3, 3, 3)).astype(np.float32),
    "w2": RNG.normal(size=(3, 3, 3, 3)).astype(np.float32),
    "zero": np.array(0, np.float32),
    "none": np.array([0]),
    "gain": np.array([0.7, 1.3, 2.1], np.float32).reshape(3, 1, 1),
    "shift": np.array([0.3, -0.4, 0.5], np.float32).reshape(3, 1, 1),
    "large": np.array(2.0**17, np.float32),
    "huge": np.array(1e30, np.float32),
    "step": np.array(0.05, np.float32),
    "middle": np.array(128, np.uint8),
    "words": np.array(["a", "b"], object),
    "limits": np.array([2**20], np.int64),
}
PICTURE = RNG.random((1, 3, 16, 16)).astype(np.float32)
CONV = "c = Conv<pads = [1, 1, 1, 1]>(x, w) "
# Unwatched, ONNX Runtime folds the factor and the sum into the conv; watched between them, it can't.
FOLDED = CONV + "n = Mul(c, gain) a = Add(n, shift) "
STACK = (
    CONV + "r = Relu(c) p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(r) y = Conv<pads = [1, 1, 1, 1]>(p, w2)"
)


def network(nodes: str, inputs: str = "float[1,3,16,16] x", outputs: str = "float y") -> onnx.ModelProto:
    """Return a model of these nodes, with the constants that they name; outputs have no shape."""
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 14]>\n g ({inputs}) => ({outputs}) {{ {nodes} }}'
    )
    for output in model.graph.output:
        if output.type.HasField("tensor_type"):
            output.type.tensor_type.ClearField("shape")
    for name, value in CONSTANTS.items():
        if name in nodes.replace("(", " ").replace(")", " ").replace(",", " ").split():
            model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    return model


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    onnx.save(model, folder / "model.onnx")
    np.save(folder / "picture.npy", PICTURE)
    return folder / "model.onnx"


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Call the command line; return exit code, stdout and stderr."""
    with pytest.raises(SystemExit) as exit_info:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    code = exit_info.value.code
    return (code if isinstance(code, int) else 0), captured.out, captured.err


def tamper(monkeypatch: pytest.MonkeyPatch, *, only_cut: bool = False) -> None:
    """Let exposing change a weight."""

    def dishonest(graph: Any, values: Any, *, cut: bool, shapes: bool = False) -> onnx.ModelProto:
        model = with_outputs(graph, values, cut=cut, shapes=shapes)
        if cut or not only_cut:
            for tensor in model.graph.initializer:
                if tensor.name == "w":
                    tensor.CopyFrom(onnx.numpy_helper.from_array(CONSTANTS["w"] * np.float32(1.05), "w"))
        return model

    monkeypatch.setattr(proof, "with_outputs", dishonest)
    monkeypatch.setattr(exposure, "with_outputs", dishonest)  # what the extractor runs


def strict_json(text: str) -> Any:
    """Parse JSON as other languages do: NaN and Infinity are no numbers."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


# What a check finds.


def test_a_model_that_watching_does_not_change_is_told_to_be_unchanged() -> None:
    found = check(network(STACK), PICTURE, provider="cpu")
    assert found.unchanged
    assert found.passed
    assert [change.name for change in found.outputs] == ["y"]
    assert [change.name for change in found.layers] == ["conv_0", "pool_0", "conv_1"]
    assert all(change.relative <= LIMIT and change.noise is None for change in found.layers)


def watch_between(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let exposing watch the conv's own output too, so that the last bits of what is behind it move."""
    monkeypatch.setattr(proof, "with_outputs", lambda graph, values, **how: with_outputs(graph, [*values, "c"], **how))


def test_rounding_is_told_apart_from_no_change_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    watch_between(monkeypatch)
    found = check(network(FOLDED + "y = Relu(a)"), PICTURE, provider="cpu")
    (output,) = found.outputs
    assert not found.unchanged
    assert not output.equal
    assert 0 < output.relative < LIMIT
    assert output.noise is None
    assert found.passed


def test_a_weight_that_exposing_changes_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    tamper(monkeypatch)
    found = check(network(STACK), PICTURE, provider="cpu")
    assert not found.passed
    assert not found.unchanged
    (output,) = found.outputs
    assert output.relative == pytest.approx(0.05, rel=0.5)
    assert output.noise is not None
    assert output.noise < 1e-4  # its own noise does not explain it


def test_a_weight_that_only_cutting_changes_is_found_in_the_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    tamper(monkeypatch, only_cut=True)
    found = check(network(STACK), PICTURE, provider="cpu")
    assert not found.passed
    assert found.unchanged
    assert all(change.relative > LIMIT and change.noise is not None for change in found.layers)


def test_a_value_that_amplifies_rounding_is_measured_by_its_own_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    watch_between(monkeypatch)
    found = check(network(FOLDED + "l = Mul(a, large) y = Sin(l)"), PICTURE, provider="cpu")
    (output,) = found.outputs
    assert output.relative > LIMIT
    assert output.noise is not None
    assert output.noise > LIMIT
    assert output.is_rounding(LIMIT)


@pytest.mark.parametrize(("noise", "expected"), [(None, False), (0.03, False), (0.032, True), (math.inf, True)])
def test_a_change_is_rounding_up_to_sixteen_times_its_own_noise(noise: float | None, expected: bool) -> None:
    assert Change(name="y", largest=1.0, relative=0.5, equal=False, noise=noise).is_rounding(LIMIT) is expected


@pytest.mark.parametrize(
    ("nodes", "outputs"),
    [
        ("y = ArgMax<axis = 1>(c)", "int64 y"),
        ("y = Greater(c, zero)", "bool y"),
        ("y = Identity(words) z = Relu(c)", "string y, float z"),
        ("y = Log(c)", "float y"),  # NaN where c is below 0
        ("h = Mul(c, huge) y = Mul(h, h)", "float y"),  # infinite
        ("h = Mul(c, huge) i = Mul(h, h) y = Sub(i, i)", "float y"),  # NaN everywhere
        ("y = Greater(zero, zero) z = Not(y) a = Neg(c)", "bool y, bool z, float a"),
        ("s = Shape(c) y = Gather(s, none)", "int64 y"),
        ("g = Greater(c, huge) y = NonZero(g)", "int64 y"),  # of shape 4 x 0
        ("y = SequenceConstruct(c, c)", "seq(float) y"),
        ("y = Cast<to = 10>(c)", "float16 y"),
        ("y = Cast<to = 11>(c)", "double y"),
        ("y = Identity(x)", "float y"),
    ],
)
def test_outputs_of_any_type_are_compared(
    nodes: str, outputs: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = saved(network(CONV + nodes, outputs=outputs), tmp_path)
    found = check(path, PICTURE, provider="cpu")
    assert found.unchanged
    assert found.passed
    assert [change.name for change in found.outputs] == [part.split()[-1] for part in outputs.split(", ")]
    code, text, _ = run(capsys, "check", path, tmp_path / "picture.npy", "--json", "--provider", "cpu")
    assert code == 0
    assert strict_json(text)["passed"] is True


def test_watching_in_several_passes_finds_what_watching_in_one_does() -> None:
    one = check(network(STACK), PICTURE, provider="cpu")
    told: list[str] = []
    several = check(network(STACK), PICTURE, provider="cpu", max_bytes=6500, progress=told.append)
    assert sum("layers done" in line for line in told) > 1
    assert [change.name for change in several.layers] == [change.name for change in one.layers]
    assert several.outputs == one.outputs
    assert several.passed
    assert all(change.relative <= 1e-6 for change in several.layers)


def test_the_worst_of_several_passes_is_what_counts_for_an_output(monkeypatch: pytest.MonkeyPatch) -> None:
    def dishonest_once(graph: Any, values: Any, *, cut: bool, shapes: bool = False) -> onnx.ModelProto:
        model = with_outputs(graph, values, cut=cut, shapes=shapes)
        if "r" in values:  # the first pass
            for tensor in model.graph.initializer:
                if tensor.name == "w":
                    tensor.CopyFrom(onnx.numpy_helper.from_array(CONSTANTS["w"] * np.float32(1.05), "w"))
        return model

    monkeypatch.setattr(proof, "with_outputs", dishonest_once)
    found = check(network(STACK), PICTURE, provider="cpu", max_bytes=6500)
    assert not found.outputs[0].is_rounding(LIMIT)
    # The first pass watches the first layer alone; as it is drawn, it is from an honest model.
    assert [change.is_rounding(LIMIT) for change in found.layers] == [False, True, True]


# What it is run on.


def test_a_fixed_batch_is_filled() -> None:
    found = check(network(STACK, inputs="float[4,3,16,16] x"), PICTURE, provider="cpu")
    assert found.unchanged
    assert len(found.layers) == 3


def test_without_a_picture_noise_in_the_shape_of_the_input_is_taken() -> None:
    first = check(network(STACK), provider="cpu")
    second = check(network(STACK), provider="cpu")
    assert first.passed
    assert first == second


@pytest.mark.parametrize("dtype", ["float", "uint8", "float16", "double"])
def test_noise_is_of_the_type_of_the_input(dtype: str) -> None:
    nodes = "f = Cast<to = 1>(x) " + STACK.replace("(x, w)", "(f, w)")
    found = check(network(nodes, inputs=f"{dtype}[N,3,16,16] x"), provider="cpu")
    assert found.passed


def test_where_the_sides_are_open_the_noise_has_a_size_that_the_model_takes() -> None:
    # A matrix product that wants 64 x 64 pictures, as networks with dense layers do.
    nodes = "p = AveragePool<kernel_shape = [8, 8], strides = [8, 8]>(x) f = Flatten(p) y = MatMul(f, dense)"
    model = network(nodes, inputs="float[N,3,H,W] x")
    dense = RNG.normal(size=(3 * 8 * 8, 2)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(dense, "dense"))
    assert check(model, provider="cpu").unchanged


def test_where_no_size_is_taken_the_error_says_which_were_tried() -> None:
    model = network("c = Conv(x, w) f = Flatten(c) y = MatMul(f, dense)", inputs="float[N,3,H,W] x")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((7, 2), np.float32), "dense"))
    with pytest.raises(ModelError, match="tried sides 224, 256, 320, 64, 512: pass a picture or array"):
        check(model, provider="cpu")


def test_other_inputs_get_what_is_given_them() -> None:
    model = network(STACK.replace("(x, w)", "(z, w)"), inputs="float[1,3,16,16] x, float[1,3,1,1] level")
    model.graph.node.insert(0, onnx.helper.make_node("Add", ["x", "level"], ["z"]))
    found = check(model, PICTURE, inputs={"level": 0.5}, provider="cpu")
    assert found.unchanged
    with pytest.raises(ModelError, match="level"):
        check(model, PICTURE, provider="cpu")


BRANCHES = CONV + (
    "m = ReduceMax<keepdims = 0>(c) t = Greater(m, limit) "
    "y = If(t) <then_branch = then () => (float a) { a = Conv(c, w2) }, else_branch = other () => (float b) "
    "{ b = Neg(c) }>"
)


@pytest.mark.parametrize(("limit", "compared"), [(-1e9, ["conv_0", "If_0.then_branch.Conv"]), (1e9, ["conv_0"])])
def test_layers_of_a_branch_that_is_not_taken_are_left_out_and_not_compared(limit: float, compared: list[str]) -> None:
    model = network(BRANCHES)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(limit, np.float32), "limit"))
    found = check(model, PICTURE, provider="cpu")
    assert [change.name for change in found.layers] == compared
    assert found.passed
    assert [("not taken" in why) for why in found.left_out.values()] == [True] * (2 - len(compared))


def test_a_quantized_model_is_compared_with_its_fused_kernels() -> None:
    pair = "{0}q = QuantizeLinear({0}, step, middle) {0}d = DequantizeLinear({0}q, step, middle) "
    nodes = f"{pair.format('x')} c = Conv(xd, w) r = Relu(c) {pair.format('r')} y = MaxPool<kernel_shape = [2, 2]>(rd)"
    found = check(network(nodes), PICTURE, provider="cpu")
    assert found.unchanged
    assert all(change.equal for change in found.layers)


def test_what_can_not_be_run_ends_in_an_error() -> None:
    model = network(STACK)
    with pytest.raises(LayerError, match="nothing"):
        check(model, PICTURE, layers="nothing", provider="cpu")
    with pytest.raises(PictureError):
        check(model, PICTURE[:, :2], provider="cpu")


def test_the_model_that_is_checked_is_left_alone() -> None:
    model = network(STACK)
    before = model.SerializeToString(deterministic=True)
    from_bytes = check(model.SerializeToString(), PICTURE, provider="cpu")
    found = check(model, PICTURE, provider="cpu")
    assert model.SerializeToString(deterministic=True) == before
    assert from_bytes.outputs == found.outputs


# The command line.


def test_the_command_prints_a_line_for_each_output_and_layer(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = saved(network(STACK), tmp_path)
    code, out, err = run(capsys, "check", path, tmp_path / "picture.npy", "--provider", "cpu")
    assert code == 0
    rows = [line.split() for line in out.splitlines()]
    assert rows[0][:2] == ["what", "name"]
    assert [row[:2] for row in rows[1:]] == [
        ["output", "y"],
        ["layer", "conv_0"],
        ["layer", "pool_0"],
        ["layer", "conv_1"],
    ]
    assert "the model's outputs (1) are equal to the bit, watched or not" in err
    assert "3 layers as they are drawn against the whole graph" in err


def test_the_command_ends_with_1_where_watching_changes_the_model(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(network(STACK), tmp_path)
    tamper(monkeypatch)
    code, out, err = run(capsys, "check", path, tmp_path / "picture.npy", "--provider", "cpu")
    assert code == 1
    assert "more than rounding" in err
    code, out, _ = run(capsys, "check", path, tmp_path / "picture.npy", "--provider", "cpu", "--json")
    assert code == 1
    document = strict_json(out)
    assert document["schema_version"] == 1
    assert (document["passed"], document["unchanged"]) == (False, False)
    assert document["outputs"][0]["noise"] is not None
    assert document["limit"] == LIMIT


@pytest.mark.parametrize("is_tampered", [False, True])
def test_drawing_with_check_writes_the_check_to_run_json(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_tampered: bool
) -> None:
    path = saved(network(STACK), tmp_path)
    if is_tampered:
        tamper(monkeypatch)
    arguments = ("draw", path, tmp_path / "picture.npy", "-o", tmp_path / "maps", "--provider", "cpu")
    code, _, err = run(capsys, *arguments, "--check")
    assert code == int(is_tampered)
    record = strict_json((tmp_path / "maps" / "run.json").read_text())
    assert record["check"]["passed"] is not is_tampered
    assert [change["name"] for change in record["check"]["layers"]] == ["conv_0", "pool_0", "conv_1"]
    assert ("more than rounding" in err) is is_tampered
    assert len(list((tmp_path / "maps").glob("*.png"))) == 3
    code, _, _ = run(capsys, *arguments, "--overwrite")
    assert "check" not in strict_json((tmp_path / "maps" / "run.json").read_text())


@pytest.mark.parametrize(
    "change",
    [
        Change(name="y", largest=math.inf, relative=math.inf, equal=False),
        Change(name="y", largest=math.inf, relative=math.inf, equal=False, noise=math.inf),
        Change(name="y", largest=math.inf, relative=0.1, equal=False, noise=0.2),
    ],
)
def test_what_is_infinite_is_null_in_json(change: Change) -> None:
    text = json.dumps(change.to_json(), allow_nan=False)
    assert strict_json(text)["largest"] is None


# The laws of a change.

numbers = arrays.arrays(
    st.sampled_from([np.float32, np.float64, np.float16, np.int8, np.uint8, np.int64, np.bool_]),
    arrays.array_shapes(max_dims=3, max_side=4),
)
finite = arrays.arrays(np.float64, 5, elements=st.floats(-1e6, 1e6, width=32))


@given(numbers)
def test_a_value_is_equal_to_itself(value: Array) -> None:
    change = change_of("y", value, value.copy())
    assert change == Change(name="y", largest=0.0, relative=0.0, equal=True)


@given(st.data(), numbers)
def test_a_change_is_never_below_zero_and_never_unknown(data: st.DataObject, before: Array) -> None:
    after = data.draw(arrays.arrays(before.dtype, before.shape))
    change = change_of("y", before, after)
    assert change.relative >= 0
    assert change.largest >= 0
    assert change.equal == (before.tobytes() == after.tobytes())
    strict_json(json.dumps(change.to_json(), allow_nan=False))


@given(finite, finite)
def test_the_largest_difference_is_the_same_both_ways(before: Array, after: Array) -> None:
    assert change_of("y", before, after).largest == change_of("y", after, before).largest
    assert change_of("y", before, after).largest == max(abs(a - b) for a, b in zip(before, after, strict=True))


@given(finite, finite, st.integers(-20, 20))
def test_the_relative_change_does_not_know_the_unit(before: Array, after: Array, power: int) -> None:
    scaled = change_of("y", before * 2.0**power, after * 2.0**power).relative
    if before.any():  # of nothing but zeros there is no range, and the change is in its own units
        assert scaled == pytest.approx(change_of("y", before, after).relative, rel=1e-12)


@pytest.mark.parametrize(
    ("before", "after", "largest", "relative"),
    [
        (np.array([0.0, 4.0]), np.array([1.0, 4.0]), 1.0, 0.25),
        (np.array([4.0, 4.0]), np.array([5.0, 4.0]), 1.0, 0.25),  # no range: against its size
        (np.array([0.0, 0.0]), np.array([0.5, 0.0]), 0.5, 0.5),  # no size either
        (np.array([np.nan, 0.0, 2.0]), np.array([np.nan, 1.0, 2.0]), 1.0, 0.5),
        (np.array([np.inf, 0.0, 2.0]), np.array([np.inf, 1.0, 2.0]), 1.0, 0.5),
        (np.array([np.inf, 0.0]), np.array([-np.inf, 0.0]), math.inf, math.inf),
        (np.array([np.nan, 0.0]), np.array([0.0, 0.0]), math.inf, math.inf),
        (np.array([0.0, 0.0]), np.array([np.nan, 0.0]), math.inf, math.inf),
        (np.zeros(2), np.zeros(3), math.inf, math.inf),
        (np.zeros(2), np.zeros(2, np.float32), math.inf, math.inf),
        (np.array([1.7e308, -1.7e308]), np.array([-1.7e308, -1.7e308]), math.inf, 1.0),
        (np.array([0, 200], np.uint8), np.array([200, 0], np.uint8), 200.0, 1.0),
        (np.array([True, False]), np.array([True, True]), 1.0, 1.0),
        (np.array([0.0]), np.array([-0.0]), 0.0, 0.0),
        (np.array(["a"], object), np.array(["b"], object), math.inf, math.inf),
        ([np.zeros(2)], [np.zeros(2), np.zeros(2)], math.inf, math.inf),
        ([np.zeros(2), np.array([0.0, 2.0])], [np.zeros(2), np.array([0.0, 1.0])], 1.0, 0.5),
        ([{"a": 1.0, "b": 0.5}], [{"a": 1.0, "b": 0.75}], 0.25, 0.5),
        ({"a": 1.0}, {"b": 1.0}, math.inf, math.inf),
    ],
)
def test_how_far_a_value_moved(before: Any, after: Any, largest: float, relative: float) -> None:
    change = change_of("y", before, after)
    assert (change.largest, change.relative, change.equal) == (largest, relative, False)


@pytest.mark.parametrize("make", [lambda x: x.astype(str).astype(object), lambda x: [x], lambda x: {1: x}])
def test_one_difference_in_a_long_value_is_found(make: Callable[[Array], Any]) -> None:
    before = np.arange(5000.0)
    after = before.copy()
    after[2500] += 1e-9
    assert change_of("y", make(before), make(before.copy())).equal
    assert not change_of("y", make(before), make(after)).equal
