from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import onnx.reference
import onnxruntime
import pytest
from numpy.typing import NDArray

from onnxfeat.cli import main
from onnxfeat.errors import ModelError
from onnxfeat.graph.weights import digests_of
from onnxfeat.metadata import Document, MappedLayer
from onnxfeat.recipes import InputRecipe
from onnxfeat.records import ModelInput, ProviderChoice
from onnxfeat.references import KEY, Reference, summarize
from onnxfeat.running import replay
from onnxfeat.running.exposure import expose, store
from onnxfeat.running.proof import check
from onnxfeat.running.replay import FACTOR_ELSEWHERE, FLOOR_ELSEWHERE
from onnxfeat.running.runtime import open_session
from onnxfeat.running.survivors import find_survivors

Array = NDArray[Any]


def weights() -> dict[str, Array]:
    """Return the weights of `NETWORK`, the same every time; the sixth channel of its first conv is dead."""
    random = np.random.default_rng(5)
    conv = random.normal(size=(6, 3, 3, 3)).astype(np.float32)
    dead = np.where(np.arange(6) == 5, -1e4, random.normal(size=6)).astype(np.float32)
    return {
        "conv/kernel": conv,
        "conv/bias": dead,
        "conv_1/kernel": random.normal(size=(6, 6, 3, 3)).astype(np.float32),
        "bn/gamma": random.uniform(0.5, 2, 6).astype(np.float32),
        "bn/beta": random.normal(size=6).astype(np.float32),
        "bn/mean": random.normal(size=6).astype(np.float32),
        "bn/variance": random.uniform(0.5, 2, 6).astype(np.float32),
        "dense/kernel": random.normal(0, 0.05, (6, 4)).astype(np.float32),
        "dense/bias": random.normal(size=4).astype(np.float32),
    }


NETWORK = """<ir_version: 8, opset_import: ["" : 17]>
network (float[N,3,16,16] picture) => (float[N,4] scores) {
    raw = Conv<pads = [1, 1, 1, 1]>(picture, "conv/kernel", "conv/bias")
    maps = Relu(raw)
    small = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(maps)
    raw_1 = Conv<pads = [1, 1, 1, 1]>(small, "conv_1/kernel")
    normed = BatchNormalization("raw_1", "bn/gamma", "bn/beta", "bn/mean", "bn/variance")
    active = Relu(normed)
    same = Identity(active)
    sum = Add(small, same)
    pooled = GlobalAveragePool(sum)
    flat = Flatten(pooled)
    product = MatMul(flat, "dense/kernel")
    biased = Add(product, "dense/bias")
    scores = Softmax(biased)
}"""

# Layer, kind, value of the network, layout there, layout in the framework.
LAYERS: list[tuple[str, Any, str | None, str | None, str | None]] = [
    ("conv", "conv", "maps", "NCHW", "NHWC"),
    ("max_pooling", "pool", "small", "NCHW", "NHWC"),
    ("conv_1", "conv", "raw_1", "NCHW", "NHWC"),
    ("bn", "norm", "normed", "NCHW", "NHWC"),
    ("activation", "activation", "active", "NCHW", "NHWC"),
    ("dropout", "other", "same", "NCHW", "NHWC"),
    ("add", "other", "sum", "NCHW", "NHWC"),
    ("pool", "pool", "flat", "NC", "NC"),
    ("noise", "other", None, None, "NC"),
    ("dense", "other", "scores", "NC", "NC"),
]
RECIPE = InputRecipe(name="picture", shape=(1, 3, 16, 16), dtype="float32", low=-1.0, high=1.0, seed=7)


def network(changed: Mapping[str, Array] | None = None, text: str = NETWORK) -> onnx.ModelProto:
    """Return the network with its weights, some of them changed."""
    model = onnx.parser.parse_model(text)
    for name, value in {**weights(), **(changed or {})}.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    return model


def values_of(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Return every value of a model as onnx's own evaluator computes it."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    names = [name for node in model.graph.node for name in node.output if name]
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    found = onnx.reference.ReferenceEvaluator(watched).run(None, dict(feeds))
    return dict(zip(names, found, strict=True))


def proven(model: onnx.ModelProto, values: Mapping[str, Array] | None = None) -> onnx.ModelProto:
    """Give a model the layer map and the reference that a converter would write."""
    values = values or values_of(model, {"picture": RECIPE.values()})
    layers = []
    for name, _, value, layout, wanted in LAYERS:
        array = np.zeros((1, 4), np.float32) if value is None else values[value]
        order = None if layout is None or wanted is None else [layout.index(axis) for axis in wanted]
        layers.append(summarize(name, array if order is None else array.transpose(order), wanted, error=1e-7))
    reference = Reference(
        computed_by="onnx's evaluator",
        inputs=(RECIPE.sealed(),),
        layers=tuple(layers),
        outputs=(summarize("scores", values["scores"], None),),
        weights=digests_of(model),
    )
    layer_map = tuple(
        MappedLayer(
            name=name,
            keras_class="Layer",
            kind=kind,
            value=value,
            layout=layout,
            reason="" if value else "it only trains",
        )
        for name, kind, value, layout, _ in LAYERS
    )
    picture = ModelInput(name="picture", shape=("N", 3, 16, 16), layout="NCHW", dtype="float32")
    store(model, Document(layer_map=layer_map, input=picture))
    entry = model.metadata_props.add()
    entry.key, entry.value = KEY, reference.to_text()
    return model


def store_reference(
    model: onnx.ModelProto,
    recipes: tuple[InputRecipe, ...],
    layers: Mapping[str, tuple[str, Array]],
    outputs: Mapping[str, Array],
) -> None:
    """Give a model a layer map and a reference: layer name to value and numbers, output name to numbers."""
    reference = Reference(
        computed_by="NumPy",
        inputs=recipes,
        layers=tuple(summarize(name, array, None) for name, (_, array) in layers.items()),
        outputs=tuple(summarize(name, array, None) for name, array in outputs.items()),
        weights=digests_of(model),
    )
    kind: Any = "conv" if "conv" in layers else "other"
    layer_map = tuple(
        MappedLayer(name=name, keras_class="Layer", kind=kind, value=value, layout="NCHW" if kind == "conv" else None)
        for name, (value, _) in layers.items()
    )
    store(model, Document(layer_map=layer_map))
    entry = model.metadata_props.add()
    entry.key, entry.value = KEY, reference.to_text()


def two_inputs() -> onnx.ModelProto:
    """Return a model of a picture and a level, whose recipes are all that tells what to feed."""
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[1,1] level, float[1,3,8,8] picture) => (float y)'
        ' { c = Conv(picture, "w") y = Mul(c, level) }'
    )
    model.graph.output[0].type.tensor_type.ClearField("shape")
    model.graph.initializer.append(onnx.numpy_helper.from_array(weights()["conv/kernel"], "w"))
    level = InputRecipe(name="level", shape=(1, 1), dtype="float32", low=1.0, high=2.0, seed=1)
    picture = InputRecipe(name="picture", shape=(1, 3, 8, 8), dtype="float32", low=0.0, high=1.0, seed=2)
    values = values_of(model, {"level": level.values(), "picture": picture.values()})
    store_reference(model, (level, picture), {"conv": ("c", values["c"])}, {"y": values["y"]})
    return model


def with_figures(model: onnx.ModelProto, layer: str, **figures: float) -> onnx.ModelProto:
    """Return a copy whose reference says another noise or error of a layer."""
    copy = copied(model)
    entry = next(entry for entry in copy.metadata_props if entry.key == KEY)
    data = json.loads(entry.value)
    next(x for x in data["layers"] if x["name"] == layer).update(figures)
    entry.value = json.dumps(data)
    return copy


def renamed(model: onnx.ModelProto, names: Mapping[str, str]) -> onnx.ModelProto:
    """Return a copy with other names for values and inputs; the metadata stay as they are."""
    copy = copied(model)
    for node in copy.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for value in (*copy.graph.input, *copy.graph.initializer):
        value.name = names.get(value.name, value.name)
    return copy


def replayed_only(model: onnx.ModelProto) -> Any:
    """Return what replaying finds, whatever watching does."""
    found = check(model, provider="cpu")
    assert found.reference is not None
    return found.reference


def replayed(model: onnx.ModelProto | Path | bytes, **how: Any) -> Any:
    found = check(model, provider="cpu", **how)
    assert found.reference is not None
    assert found.passed == found.reference.passed  # watching changes nothing in any of these
    return found.reference


def statuses(found: Any) -> dict[str, str]:
    return {layer.name: layer.status for layer in found.layers}


ALL_SAME = {name: "absent" if value is None else "same" for name, _, value, _, _ in LAYERS}


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return proven(network())


def copied(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def moved(model: onnx.ModelProto, array: str, change: Any) -> onnx.ModelProto:
    """Return a copy of a model with one array changed."""
    copy = copied(model)
    tensor = next(x for x in copy.graph.initializer if x.name == array)
    value = onnx.numpy_helper.to_array(tensor).copy()
    change(value)
    tensor.CopyFrom(onnx.numpy_helper.from_array(value, array))
    return copy


def without_reference(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = copied(model)
    kept = [entry for entry in model.metadata_props if entry.key != KEY]
    del copy.metadata_props[:]
    copy.metadata_props.extend(kept)
    return copy


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as exit_info:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    code = exit_info.value.code
    return (code if isinstance(code, int) else 0), captured.out, captured.err


# The file as it was converted.


def test_a_file_that_nobody_changed_gives_what_the_framework_gave(model: onnx.ModelProto) -> None:
    found = replayed(model)
    assert found.passed
    assert found.form == "as converted"
    assert statuses(found) == ALL_SAME
    assert [output.status for output in found.outputs] == ["same"]
    assert found.worst.deviation < 1e-6
    assert (found.arrays, found.arrays_changed, found.arrays_gone, found.arrays_retyped) == (9, (), 0, 0)
    assert {layer.name: layer.note for layer in found.layers}["noise"] == "it only trains"


def test_several_passes_find_what_one_does(model: onnx.ModelProto) -> None:
    told: list[str] = []
    found = replayed(model, max_bytes=9000, progress=told.append)
    assert sum("layers done" in line for line in told) > 2
    assert statuses(found) == ALL_SAME
    one = replayed(model)
    assert all(abs(a.deviation - b.deviation) < 1e-6 for a, b in zip(found.layers, one.layers, strict=True) if b.value)


def test_a_file_without_a_reference_is_only_watched(
    model: onnx.ModelProto, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    found = check(without_reference(model), provider="cpu")
    assert found.reference is None
    assert found.passed
    with pytest.raises(ModelError, match="carries no reference values for a tolerance"):
        check(without_reference(model), provider="cpu", tolerance=0.1)
    onnx.save(without_reference(model), tmp_path / "m.onnx")
    code, _, err = run(capsys, "check", tmp_path / "m.onnx", "--provider", "cpu")
    assert code == 0
    assert "carries no reference values" in err


def test_a_damaged_reference_is_an_error(model: onnx.ModelProto) -> None:
    copy = copied(model)
    next(entry for entry in copy.metadata_props if entry.key == KEY).value = "{}"
    with pytest.raises(ModelError, match="the reference values in <memory> are damaged"):
        check(copy, provider="cpu")


@pytest.mark.parametrize("tolerance", [0, -1.0, float("nan"), float("inf")])
def test_a_tolerance_that_is_none_is_refused(model: onnx.ModelProto, tolerance: float) -> None:
    with pytest.raises(ModelError, match="pass a number above 0"):
        check(model, provider="cpu", tolerance=tolerance)


# Weights and nodes that were changed.


@pytest.mark.parametrize(
    ("array", "layer"),
    [("conv/kernel", "conv"), ("conv_1/kernel", "conv_1"), ("bn/beta", "bn"), ("dense/bias", "dense")],
)
def test_one_weight_that_was_changed_is_told_with_the_first_layer_that_is_off(
    model: onnx.ModelProto, array: str, layer: str
) -> None:
    def change(value: Array) -> None:
        value.flat[0] += 0.01

    found = replayed(moved(model, array, change))
    assert not found.passed
    assert found.form == "changed weights"
    assert found.arrays_changed == (array,)
    assert found.first_use == layer
    assert found.first_off.name == layer
    names = [name for name, _, value, _, _ in LAYERS if value is not None]
    before = names[: names.index(layer)]
    assert [statuses(found)[name] for name in before] == ["same"] * len(before)


def test_a_changed_weight_is_told_also_where_all_names_are_others(model: onnx.ModelProto) -> None:
    inner = {name for node in model.graph.node for name in (*node.input, *node.output)}
    fixed = {value.name for value in (*model.graph.input, *model.graph.output)} | {""}
    others = {name: f"v{number}" for number, name in enumerate(sorted(inner - fixed))}
    found = replayed(renamed(model, others))
    assert (found.form, found.arrays_gone, found.arrays_changed) == ("rewritten", 0, ())
    array = next(tensor.name for tensor in model.graph.initializer if len(tensor.dims) == 4)

    def change(values: Array) -> None:
        values.flat[0] += 1e-6

    found = replayed(renamed(moved(model, array, change), others))
    assert (found.form, found.arrays_changed, found.passed) == ("changed weights", (others[array],), False)


def test_a_weight_of_a_dead_channel_is_found_although_no_value_moves(model: onnx.ModelProto) -> None:
    def change(value: Array) -> None:
        value[5] *= 2

    found = replayed(moved(model, "conv/kernel", change))
    assert statuses(found) == ALL_SAME
    assert found.first_off is None
    assert not found.passed
    assert (found.form, found.first_use) == ("changed weights", "conv")


def test_a_node_that_was_changed_is_told_apart_from_weights(
    model: onnx.ModelProto, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    copy = copied(model)
    next(node for node in copy.graph.node if node.output[0] == "active").op_type = "Sigmoid"
    found = replayed(copy)
    assert not found.passed
    assert found.form == "as converted"
    assert found.first_off.name == "activation"
    assert statuses(found)["bn"] == "same"
    onnx.save(copy, tmp_path / "m.onnx")
    code, _, err = run(capsys, "check", tmp_path / "m.onnx", "--provider", "cpu")
    assert code == 1
    assert "all 9 constant arrays are those of the conversion: the graph's nodes were changed" in err


def test_values_that_became_nan_are_told(model: onnx.ModelProto) -> None:
    def change(value: Array) -> None:
        value[0] = np.nan

    found = replayed_only(moved(model, "dense/bias", change))
    assert found.first_off.name == "dense"
    assert found.first_off.deviation == np.inf
    assert "NaN or infinite" in found.first_off.note
    assert found.first_off.to_json()["deviation"] is None


def test_noise_and_error_of_the_conversion_allow_for_twice_as_much() -> None:
    exact = network()
    values = values_of(exact, {"picture": RECIPE.values()})
    extent = float(np.ptp(values["sum"]))
    shifted = {**values, "sum": values["sum"] + np.float32(0.003 * extent)}
    assert statuses(replayed(proven(network(), shifted)))["add"] == "off"
    assert statuses(replayed(proven(network(), shifted), tolerance=0.004))["add"] == "same"
    for field in ("noise", "error"):
        for size, status in ((0.001, "off"), (0.002, "same")):
            told = with_figures(proven(network(), shifted), "add", **{field: size})
            assert statuses(replayed(told))["add"] == status


# Files that other tools made of it.


def test_a_value_that_has_another_name_is_found(model: onnx.ModelProto) -> None:
    copy = renamed(model, {"normed": "another"})
    found = replayed(copy)
    assert found.passed
    assert found.form == "rewritten"
    assert statuses(found) == {**ALL_SAME, "bn": "found"}
    assert {x.name: x.value for x in found.layers}["bn"] == "another"


def test_a_name_that_means_another_value_is_told_from_a_value_that_is_off(model: onnx.ModelProto) -> None:
    found = replayed(renamed(model, {"maps": "raw", "raw": "maps", "normed": "active", "active": "normed"}))
    assert found.passed
    by_name = {x.name: x for x in found.layers}
    for layer, value in (("conv", "raw"), ("bn", "active"), ("activation", "normed")):
        assert (by_name[layer].status, by_name[layer].value) == ("found", value)
        assert "means another value" in by_name[layer].note


def test_a_value_in_another_order_of_axes_is_found(model: onnx.ModelProto) -> None:
    copy = copied(model)
    position = next(i for i, node in enumerate(copy.graph.node) if node.output[0] == "small")
    nodes = [
        onnx.helper.make_node("Transpose", ["maps"], ["turned"], perm=[0, 2, 3, 1]),
        onnx.helper.make_node("Transpose", ["turned"], ["back"], perm=[0, 3, 1, 2]),
    ]
    for node in reversed(nodes):
        copy.graph.node.insert(position, node)
    for node in copy.graph.node:
        if node.output[0] == "maps":
            node.output[0] = "folded"
            node.op_type = "LeakyRelu"
        if node.output[0] == "turned":
            node.input[0] = "folded"
        if node.output[0] == "small":
            node.input[0] = "back"
    assert statuses(replayed(copy))["conv"] == "lost"  # of another activation, nothing is near
    for node in copy.graph.node:
        if node.output[0] == "folded":
            node.op_type = "Relu"
    found = replayed(copy)
    assert found.passed
    by_name = {x.name: x for x in found.layers}
    assert (by_name["conv"].status, by_name["conv"].value) == ("found", "folded")


def test_layers_without_values_of_their_own_are_lost(model: onnx.ModelProto) -> None:
    # By hand, what every optimizer does: the normalization becomes part of the conv before it.
    copy, own = copied(model), weights()
    scale = own["bn/gamma"] / np.sqrt(own["bn/variance"] + 1e-5)
    folded = {
        "folded/kernel": own["conv_1/kernel"] * scale[:, None, None, None],
        "folded/bias": own["bn/beta"] - own["bn/mean"] * scale,
    }
    nodes = [node for node in copy.graph.node if node.output[0] not in ("normed",)]
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    for node in copy.graph.node:
        if node.output[0] == "raw_1":
            node.output[0] = "normed"
            node.input[:] = ["small", "folded/kernel", "folded/bias"]
    kept = [x for x in copy.graph.initializer if not x.name.startswith(("bn/", "conv_1/"))]
    del copy.graph.initializer[:]
    copy.graph.initializer.extend(kept)
    copy.graph.initializer.extend(onnx.numpy_helper.from_array(x, name) for name, x in folded.items())
    found = replayed(copy)
    assert not found.passed
    assert found.form == "rewritten"
    assert found.arrays_gone == 5
    assert statuses(found) == {**ALL_SAME, "conv_1": "lost"}


def test_a_layer_that_is_the_same_everywhere_is_ambiguous() -> None:
    flat = {
        "conv_1/kernel": np.zeros((6, 6, 3, 3), np.float32),
        "bn/gamma": np.zeros(6, np.float32),
        "bn/beta": np.zeros(6, np.float32),
    }
    found = replayed(renamed(proven(network(flat)), {"raw_1": "nameless"}))
    note = {x.name: x.note for x in found.layers}["conv_1"]
    assert "ambiguous: it is the same everywhere, and" in note


def test_layers_that_are_too_near_to_be_told_apart_are_ambiguous() -> None:
    near = {
        "bn/gamma": np.full(6, 1 + 2e-6, np.float32),
        "bn/beta": np.zeros(6, np.float32),
        "bn/mean": np.zeros(6, np.float32),
        "bn/variance": np.full(6, 1 - 1e-5, np.float32),
    }
    model = proven(network(near))
    # The conv is gone: the value of the normalization is all that is left.
    copy = copied(model)
    nodes = [node for node in copy.graph.node if node.output[0] != "raw_1"]
    nodes[next(i for i, x in enumerate(nodes) if x.output[0] == "normed")] = onnx.helper.make_node(
        "Conv", ["small", "conv_1/kernel"], ["normed"], pads=[1, 1, 1, 1]
    )
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    found = replayed(copy)
    by_name = {x.name: x for x in found.layers}
    assert by_name["conv_1"].status == "found"
    assert "ambiguous: its reference is too near to that of 'bn'" in by_name["conv_1"].note


def test_of_several_values_the_nearest_is_the_layer_and_of_equal_ones_the_first() -> None:
    values = np.random.default_rng(0).normal(size=(1, 3, 4, 5)).astype(np.float32)
    wanted = {0: (summarize("a", values, "NHWC"), 0.01)}
    near = values + np.float32(1e-3)
    turned = values.transpose(0, 3, 1, 2)
    found = find_survivors(wanted, [{"far": values + 1, "near": near}, {"turned": turned, "copy": values}])
    assert (found[0].value, found[0].deviation, found[0].others) == ("turned", 0.0, 2)
    assert find_survivors(wanted, [{"far": values + 1, "small": values[:, :2]}]) == {}
    assert find_survivors(wanted, [{"mirrored": values[:, :, ::-1]}]) == {}  # of the same mean and extremes


def rewritten(tool: str, path: Path, folder: Path) -> onnx.ModelProto:
    """Return what a tool makes of a file."""
    if tool == "onnxslim":
        slim: onnx.ModelProto = pytest.importorskip("onnxslim").slim(onnx.load(path))
        return slim
    if tool == "onnxsim":
        simplified: onnx.ModelProto = pytest.importorskip("onnxsim").simplify(onnx.load(path))[0]
        return simplified
    if tool == "onnxoptimizer":
        optimized: onnx.ModelProto = pytest.importorskip("onnxoptimizer").optimize(onnx.load(path))
        return optimized
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_ENABLE_{tool.upper()}")
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "optimized.onnx")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("tool", "lost"),
    [
        ("onnxslim", {"conv_1"}),
        ("onnxsim", {"conv_1"}),
        ("onnxoptimizer", {"conv_1"}),
        ("basic", {"conv_1"}),
        ("extended", {"conv_1", "bn"}),  # FusedConv: conv, normalization and activation are one
        ("all", None),
    ],
)
def test_what_an_optimizer_left_is_told_layer_by_layer(
    tool: str, lost: set[str] | None, model: onnx.ModelProto, tmp_path: Path
) -> None:
    onnx.save(model, tmp_path / "m.onnx")
    smaller = rewritten(tool, tmp_path / "m.onnx", tmp_path)
    found = replayed(smaller)
    assert found.form == "rewritten"
    assert not found.passed
    assert [output.status for output in found.outputs] == ["same"]
    if lost is not None:  # channel-blocked data are not the same on every CPU
        assert set(found.names("lost")) == lost
    assert not found.names("off")
    # By an evaluator that knows nothing of ours: each value that is said to be a layer's has its numbers.
    if tool in ("extended", "all"):  # which it can't run
        return
    truth = values_of(model, {"picture": RECIPE.values()})
    there = values_of(smaller, {"picture": RECIPE.values()})
    value_of = {name: value for name, _, value, _, _ in LAYERS}
    for layer in found.layers:
        value = value_of[layer.name]
        if layer.value is not None and value is not None:
            assert np.allclose(there[layer.value], truth[value], rtol=1e-4, atol=1e-4), layer


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("keep_types", [True, False])
def test_a_float16_copy_is_told_and_accepted_with_the_tolerance_that_is_told(
    keep_types: bool, model: onnx.ModelProto, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    float16 = pytest.importorskip("onnxconverter_common").float16
    onnx.save(float16.convert_float_to_float16(copied(model), keep_io_types=keep_types), tmp_path / "half.onnx")
    found = replayed(tmp_path / "half.onnx")
    assert found.form == "float16 copy"
    assert not found.passed
    assert 1e-5 < found.worst.deviation < 5e-3
    code, _, err = run(capsys, "check", tmp_path / "half.onnx", "--provider", "cpu")
    assert code == 1
    told = re.search(r"a float16 copy: 9 of 9 .*: accept it with --tolerance (\S+)", err)
    assert told is not None
    code, _, err = run(capsys, "check", tmp_path / "half.onnx", "--provider", "cpu", "--tolerance", told[1])
    assert code == 0
    assert "a float16 copy: 9 of 9" in err


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["QDQ", "QOperator", "dynamic"])
def test_an_int8_copy_is_told(
    form: str, model: onnx.ModelProto, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = quantized(form, model, tmp_path)
    found = replayed(path)
    assert found.form == "int8 copy"
    assert not found.passed
    assert 1e-4 < found.worst.deviation < 0.05
    code, _, err = run(capsys, "check", path, "--provider", "cpu")
    assert code == 1
    assert "an int8 copy: " in err
    assert f"the largest deviation is {found.worst.deviation:.1e} of the range" in err
    if form == "QOperator":  # integers have other names; they are looked for all the same
        assert {layer.name: layer.value for layer in found.layers}["max_pooling"] == "small_quantized"
    loose = replayed(path, tolerance=0.05)
    assert not loose.names("off")
    assert set(loose.names("lost")) <= {"bn"}  # which is part of the conv's integers


def quantized(form: str, model: onnx.ModelProto, folder: Path) -> Path:
    tools = pytest.importorskip("onnxruntime.quantization")
    source, path = folder / "m.onnx", folder / f"{form}.onnx"
    onnx.save(model, source)
    if form == "dynamic":
        tools.quantize_dynamic(source, path, weight_type=tools.QuantType.QUInt8)
        return path

    class Samples(tools.CalibrationDataReader):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            self.left = [{"picture": RECIPE.values()}]

        def get_next(self) -> Any:
            return self.left.pop() if self.left else None

    tools.quantize_static(source, path, Samples(), quant_format=getattr(tools.QuantFormat, form))
    return path


# Exposed files: what is shipped.


@pytest.mark.parametrize("cut", [True, False])
def test_an_exposed_file_carries_its_part_of_the_reference(cut: bool, model: onnx.ModelProto, tmp_path: Path) -> None:
    expose(model, tmp_path / "exposed.onnx", layers="max_pooling", cut=cut)
    found = replayed(tmp_path / "exposed.onnx")
    assert found.passed
    expected = {name: x for name, x in ALL_SAME.items() if x == "same"}
    assert statuses(found) == (dict(list(expected.items())[:2]) if cut else expected)
    assert [output.name for output in found.outputs] == ([] if cut else ["scores"])
    assert found.arrays == (2 if cut else 9)


def test_weights_that_were_changed_before_exposing_are_found_after(model: onnx.ModelProto, tmp_path: Path) -> None:
    def change(value: Array) -> None:
        value.flat[0] += 1e-9 if value.flat[0] == 0 else value.flat[0] * 1e-6

    expose(moved(model, "conv/kernel", change), tmp_path / "exposed.onnx", layers="conv")
    found = replayed(tmp_path / "exposed.onnx")
    assert (found.form, found.arrays_changed, found.passed) == ("changed weights", ("conv/kernel",), False)


# What it is run on.


def test_a_model_of_several_inputs_needs_no_picture() -> None:
    found = check(two_inputs(), provider="cpu")
    assert found.passed
    assert found.reference is not None
    assert [layer.status for layer in found.reference.layers] == ["same"]
    assert [change.name for change in found.layers] == ["conv"]


def test_a_model_without_maps_is_replayed_all_the_same() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (int64[N,4] ids) => (float[N,4] y) { y = Cast<to = 1>(ids) }'
    )
    recipe = InputRecipe(name="ids", shape=(1, 4), dtype="int64", low=0, high=9, seed=1)
    values = recipe.values().astype(np.float32)
    store_reference(model, (recipe,), {"embedding": ("y", values)}, {"y": values})
    found = check(model, provider="cpu")
    assert found.passed
    assert found.not_watched
    assert found.reference is not None
    assert statuses(found.reference) == {"embedding": "same"}


def test_inputs_that_another_tool_added_are_an_error(model: onnx.ModelProto) -> None:
    copy = copied(model)
    copy.graph.input.append(onnx.helper.make_tensor_value_info("level", onnx.TensorProto.FLOAT, [1]))
    with pytest.raises(ModelError, match="has the inputs 'picture' or 'level', and its reference values are for 'pict"):
        check(copy, provider="cpu")


def test_an_input_that_another_tool_renamed_is_fed(model: onnx.ModelProto) -> None:
    copy = renamed(model, {"picture": "image"})
    assert statuses(replayed(copy)) == ALL_SAME


def test_inputs_larger_than_the_budget_are_refused(model: onnx.ModelProto) -> None:
    copy = copied(model)
    entry = next(entry for entry in copy.metadata_props if entry.key == KEY)
    data = json.loads(entry.value)
    data["inputs"][0]["shape"] = [2**20, 3, 16, 16]
    entry.value = json.dumps(data)
    with pytest.raises(ModelError, match=r"the inputs of the reference values .* take 6\.44 GB, of a budget of"):
        check(copy, provider="cpu", max_bytes="1GiB")


def test_another_provider_may_round_more(
    model: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def elsewhere(*arguments: Any, **how: Any) -> Any:
        session, chosen = open_session(*arguments, **how)
        return session, ProviderChoice(asked=chosen.asked, got="CUDAExecutionProvider")

    monkeypatch.setattr(replay, "open_session", elsewhere)
    found = replayed(with_figures(model, "add", noise=1e-4))
    allowed = {layer.name: layer.allowed for layer in found.layers}
    assert allowed["conv"] == FLOOR_ELSEWHERE
    assert allowed["add"] == pytest.approx(2 * FACTOR_ELSEWHERE * 1e-4)
    onnx.save(model, tmp_path / "m.onnx")
    _, _, err = run(capsys, "check", tmp_path / "m.onnx", "--provider", "cpu")
    assert "replayed on CUDA, which may round more coarsely" in err


# The command line.


def test_the_command_prints_a_line_for_each_layer_and_says_what_the_file_is(
    model: onnx.ModelProto, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    onnx.save(model, tmp_path / "m.onnx")
    code, out, err = run(capsys, "check", tmp_path / "m.onnx", "--provider", "cpu")
    assert code == 0
    rows = [line.split() for line in out.split("\n\n")[1].splitlines()]
    assert rows[0] == ["what", "name", "status", "deviation", "allowed", "where", "note"]
    assert [row[:3] for row in rows[1:]] == [
        *(["layer", name, status] for name, status in ALL_SAME.items()),
        ["output", "scores", "same"],
    ]
    assert "the file is as converted: all 9 constant arrays are those of the conversion" in err
    assert "9 layers and 1 output against onnx's evaluator: the largest deviation is" in err


def test_the_command_names_the_first_layer_that_is_off_and_ends_with_1(
    model: onnx.ModelProto, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def change(value: Array) -> None:
        value.flat[0] += 0.5

    onnx.save(moved(model, "conv_1/kernel", change), tmp_path / "m.onnx")
    code, _, err = run(capsys, "check", tmp_path / "m.onnx", "--provider", "cpu")
    assert code == 1
    assert "weights changed: 1 of 9 arrays (conv_1/kernel), first used by layer conv_1" in err
    assert re.search(r"the first layer that is off is conv_1: by \S+ of its range, where 1\.0e-05 is allowed", err)


def test_json_has_all_of_it(model: onnx.ModelProto, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def change(value: Array) -> None:
        value[0] = np.nan

    onnx.save(moved(model, "dense/bias", change), tmp_path / "m.onnx")
    code, out, _ = run(capsys, "check", tmp_path / "m.onnx", "--provider", "cpu", "--json")
    assert code == 1
    document = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    found = document["reference"]
    assert (found["passed"], found["form"], found["first_off"]) == (False, "changed weights", "dense")
    assert found["arrays_changed"] == ["dense/bias"]
    assert found["provider"]["got"] == "CPUExecutionProvider"
    assert [layer["name"] for layer in found["layers"]] == list(ALL_SAME)
    assert found["layers"][0]["status"] == "same"
    assert found["layers"][0]["deviation"] < 1e-6


def test_layers_says_which_layers_a_rewritten_file_has_lost(
    model: onnx.ModelProto, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    onnx.save(renamed(model, {"normed": "another", "raw_1": "nameless"}), tmp_path / "m.onnx")
    code, out, err = run(capsys, "layers", tmp_path / "m.onnx")
    assert code == 0
    assert "conv_1" not in out
    assert "2 layers of the Keras model are not listed" in err
    assert "(conv_1, bn): `onnxfeat check" in err
    onnx.save(model, tmp_path / "whole.onnx")
    _, _, err = run(capsys, "layers", tmp_path / "whole.onnx")
    assert "not listed" not in err


# Keras itself.


@pytest.mark.keras
def test_what_keras_computes_is_what_the_shipped_file_gives(models: Path) -> None:
    import keras

    trained = keras.saving.load_model(models / "shapes_small.keras")
    converted = onnx.load(models / "shapes_small.onnx")
    shape = (1, *trained.inputs[0].shape[1:])
    recipe = InputRecipe(name=converted.graph.input[0].name, shape=shape, dtype="float32", low=0.0, high=1.0, seed=2)
    layers = [layer for layer in trained.layers if not isinstance(layer, keras.layers.InputLayer)]
    watching = keras.Model(trained.inputs, [layer.output for layer in layers])
    given = dict(zip((layer.name for layer in layers), watching([recipe.values()]), strict=True))
    layouts = {4: "NHWC", 2: "NC"}
    reference = Reference(
        computed_by=f"Keras {keras.__version__}",
        inputs=(recipe,),
        layers=tuple(
            summarize(name, np.asarray(value), layouts[value.ndim], error=2e-6) for name, value in given.items()
        ),
        outputs=(summarize(converted.graph.output[0].name, np.asarray(trained(recipe.values())), None, error=2e-6),),
        weights=digests_of(converted),
    )
    bare = without_reference(converted)
    entry = bare.metadata_props.add()
    entry.key, entry.value = KEY, reference.to_text()
    found = replayed(bare)
    assert found.passed
    assert {"conv", "pool"} <= {name.split("_")[0] for name in found.names("same")}
    assert not found.names("off") + found.names("lost")
