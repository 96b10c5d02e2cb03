"""Laws that hold for every graph, on graphs that nobody thought of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from onnxfeat import FeatureExtractor, expose, list_layers
from onnxfeat.metadata import KEY

RNG = np.random.default_rng(0)
PICTURE = RNG.normal(size=(1, 4, 8, 8)).astype(np.float32)
UNARY = ("Relu", "Sigmoid", "Tanh", "LeakyRelu", "HardSwish", "Neg", "Softplus")


@st.composite
def graphs(draw: st.DrawFn) -> onnx.ModelProto:
    """Return a graph of up to twelve nodes over maps of 4 channels and 8 x 8 cells; any value may be used again."""
    nodes: list[onnx.NodeProto] = []
    values = ["x"]
    weights: dict[str, np.ndarray[Any, Any]] = {}
    for number in range(draw(st.integers(1, 12))):
        kinds = ["conv", "pool", "norm", "unary", "add", "mul", "bias"]
        kind = draw(st.sampled_from(kinds)) if number else "conv"  # which says what the axes of the picture are
        source = draw(st.sampled_from(values[-4:]))
        name, output = draw(st.sampled_from(["", "n", f"node{number}"])), f"v{number}"
        if kind == "conv":
            weights[f"w{number}"] = (RNG.normal(size=(4, 4, 3, 3)) / 6).astype(np.float32)
            node = onnx.helper.make_node("Conv", [source, f"w{number}"], [output], pads=[1, 1, 1, 1])
        elif kind == "pool":
            op = draw(st.sampled_from(["MaxPool", "AveragePool"]))
            node = onnx.helper.make_node(op, [source], [output], kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        elif kind == "norm":
            numbers = {"s": (0.5, 1.5), "b": (-1, 1), "m": (-1, 1), "v": (0.5, 2)}
            for letter, (low, high) in numbers.items():
                weights[f"{letter}{number}"] = RNG.uniform(low, high, 4).astype(np.float32)
            inputs = [source, *(f"{letter}{number}" for letter in numbers)]
            node = onnx.helper.make_node("BatchNormalization", inputs, [output])
            # Names of weights must not be those of values.
            weights[f"vv{number}"] = weights.pop(f"v{number}")
            node.input[4] = f"vv{number}"
        elif kind == "unary":
            node = onnx.helper.make_node(draw(st.sampled_from(UNARY)), [source], [output])
        elif kind == "bias":
            weights[f"c{number}"] = RNG.normal(size=(4, 1, 1)).astype(np.float32)
            node = onnx.helper.make_node("Add", [source, f"c{number}"], [output])
        else:
            other = draw(st.sampled_from(values[-4:]))
            node = onnx.helper.make_node(kind.capitalize(), [source, other], [output])
        node.name = name
        nodes.append(node)
        values.append(output)
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [onnx.helper.make_tensor_value_info("x", 1, ["N", 4, 8, 8])],
        [onnx.helper.make_tensor_value_info(values[-1], 1, None)],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)


with_files = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@with_files
@given(model=graphs(), cut=st.booleans())
def test_all_but_the_outputs_is_unchanged_and_exposing_again_changes_nothing(
    model: onnx.ModelProto, cut: bool, tmp_path: Path
) -> None:
    first, second = tmp_path / "1.onnx", tmp_path / "2.onnx"
    layers = expose(model, first, layers="kind:any", cut=cut, overwrite=True)
    assert expose(first, second, cut=cut, overwrite=True) == layers
    assert first.read_bytes() == second.read_bytes()
    exposed = onnx.load(first)
    assert exposed.metadata_props.pop().key == KEY
    needed = {node.output[0] for node in exposed.graph.node}
    assert cut or needed == {node.output[0] for node in model.graph.node}
    assert [node for node in model.graph.node if node.output[0] in needed] == [
        _named(n, model) for n in exposed.graph.node
    ]
    kept = {tensor.name for tensor in exposed.graph.initializer}
    assert [tensor for tensor in model.graph.initializer if tensor.name in kept] == list(exposed.graph.initializer)
    assert (exposed.graph.input, exposed.opset_import) == (model.graph.input, model.opset_import)


def _named(node: onnx.NodeProto, model: onnx.ModelProto) -> onnx.NodeProto:
    """Return a node under its first name: nodes of one name are numbered, as ONNX Runtime refuses two of one."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.name = next(x.name for x in model.graph.node if x.output[0] == node.output[0])
    return copy


@with_files
@given(graphs())
def test_every_map_is_the_value_of_the_unmodified_model(model: onnx.ModelProto) -> None:
    expected: Any = ReferenceEvaluator(model).run(None, {"x": PICTURE}, intermediate=True)
    found = FeatureExtractor(model, layers="kind:any", provider="cpu")(PICTURE)
    assert len(found) == len(model.graph.node)
    for feature_map in found.values():
        value = expected[feature_map.layer.value]
        np.testing.assert_allclose(feature_map.array, value, rtol=1e-3, atol=1e-4 * max(1, np.abs(value).max()))


@with_files
@given(graphs(), st.integers(2_100, 12_000))
def test_passes_give_the_bytes_of_one_pass(model: onnx.ModelProto, budget: int) -> None:
    whole = FeatureExtractor(model, layers="kind:any", provider="cpu")(PICTURE)
    found: dict[str, bytes] = {}
    for part in FeatureExtractor(model, layers="kind:any", provider="cpu", max_bytes=budget).stream(PICTURE):
        assert sum({x.layer.value: x.array.nbytes for x in part.values()}.values()) <= budget
        found.update((name, feature_map.array.tobytes()) for name, feature_map in part.items())
    assert found == {name: feature_map.array.tobytes() for name, feature_map in whole.items()}


@with_files
@given(graphs())
def test_a_conv_ends_where_its_own_chain_ends(model: onnx.ModelProto) -> None:
    """What lies between a conv's node and its value is read by nobody else, or by the nodes of its activation alone."""
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in dict.fromkeys(node.input):
            users.setdefault(name, []).append(node)
    makers = {node.output[0]: node for node in model.graph.node}
    for layer in list_layers(model, "kind:any"):
        if layer.kind == "conv":
            assert layer.raw_value in makers
            value = layer.raw_value
            while (
                makers[value].op_type != "Conv"
            ):  # back to the conv, through nodes of one input that nobody else reads
                value = next(name for name in makers[value].input if name in makers)
                assert len(users[value]) == 1
