from __future__ import annotations

import re
from typing import Any

import numpy as np
import onnx
import onnx.helper
import pytest

from onnxfeat.graph.reading import read_graph
from onnxfeat.layers.inventory import all_layers, list_layers
from onnxfeat.layers.selection import select
from onnxfeat.records import Layer

Row = tuple[str, str, str, str]
"""Operator, node name, weight, and the scopes that the dynamo exporter notes."""


def chain(*rows: Row | tuple[str, str, str] | tuple[str, str], outputs: dict[int, str] | None = None) -> list[Layer]:
    """Return the layers of nodes that follow each other."""
    nodes, weights, value = [], {}, "x"
    for index, row in enumerate(rows):
        op_type, name, weight, scopes = (*row, "", "", "")[:4]
        if weight:
            weights[weight] = np.ones((4, 4, 1, 1), np.float32)
        output = (outputs or {}).get(index, f"v{index}")
        attributes: dict[str, Any] = {"kernel_shape": [1, 1]} if op_type in ("MaxPool", "AveragePool") else {}
        node = onnx.helper.make_node(op_type, [value, *([weight] if weight else [])], [output], name, **attributes)
        if scopes:
            node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=str(["", *scopes.split()]))
        nodes.append(node)
        value = output
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [onnx.helper.make_tensor_value_info("x", 1, ["N", 4, 8, 8])],
        [onnx.helper.make_tensor_value_info(value, 1, None)],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return list(all_layers(read_graph(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)]))))


def names(*rows: Row | tuple[str, str, str] | tuple[str, str]) -> list[str]:
    return [layer.name for layer in chain(*rows)]


def test_the_older_exporter_of_pytorch_repeats_the_names_of_sequentials() -> None:
    found = chain(
        ("Conv", "/features/features.0/Conv", "onnx::Conv_193"),
        ("Relu", "/features/features.2/Relu"),
        ("Conv", "/features/features.3/features.3.0/Conv", "features.3.0.weight"),
        ("MaxPool", "/features/features.4/MaxPool"),
        ("Conv", "/layer1/layer1.0/conv1/Conv", "onnx::Conv_196"),
        ("Conv", "/backbone/backbone.1/backbone.1.0/convs.1/convs.1.0/Conv", "onnx::Conv_199"),
        ("AveragePool", "/pool/AveragePool"),
    )
    paths = "features.0 features.2 features.3.0 features.4 layer1.0.conv1 backbone.1.0.convs.1.0 pool".split()
    assert [layer.name for layer in found] == paths
    assert [layer.source for layer in found] == paths


def test_paths_can_be_selected() -> None:
    found = chain(
        ("Conv", "/features/features.0/Conv", "onnx::Conv_1"),
        ("MaxPool", "/features/features.1/MaxPool"),
        ("Conv", "/0/Conv", "0.weight"),
    )
    assert [layer.name for layer in select(found, "features.*")] == ["features.0", "features.1"]
    assert [(layer.name, layer.source) for layer in select(found, "re:^0$")] == [("conv_0", "0")]


def test_a_module_that_is_called_again_is_numbered() -> None:
    assert names(
        ("Conv", "/twice/Conv", "twice.weight"),
        ("MaxPool", "/pool/MaxPool"),
        ("Conv", "/twice_1/Conv", "twice.weight"),
        ("MaxPool", "/pool_1/MaxPool"),
    ) == ["twice", "pool", "twice#2", "pool#2"]


def test_a_module_that_is_really_called_so_keeps_its_name() -> None:
    assert names(
        ("Conv", "/conv/Conv", "conv.weight"),
        ("Conv", "/conv_1/Conv", "conv_1.weight"),
        ("Conv", "/bare/Conv", "onnx::Conv_1"),
        ("Conv", "/bare_1/Conv", "onnx::Conv_2"),
        ("MaxPool", "/pool_1/MaxPool"),
    ) == ["conv", "conv_1", "bare", "bare_1", "pool_1"]


def test_weights_tell_the_module_dicts_that_are_never_called() -> None:
    assert names(
        ("Conv", "/block/q/q.0/Conv", "block.branch.q.0.weight"),
        ("AveragePool", "/block/q/q.1/AveragePool"),
        ("MaxPool", "/block/pool/MaxPool"),
        ("Conv", "/a/Conv", "heads.a.weight"),
    ) == ["block.branch.q.0", "block.branch.q.1", "block.pool", "heads.a"]


def test_functions_are_named_by_the_module_that_calls_them() -> None:
    found = chain(
        ("Conv", "/block/conv/Conv", "block.conv.weight"),
        ("MaxPool", "/block/MaxPool"),
        ("MaxPool", "/MaxPool"),
        ("MaxPool", "", "", "max_pool2d_1"),
        ("MaxPool", "", "", "block max_pool2d_2"),
    )
    assert [layer.name for layer in found] == [
        "block.conv",
        "block.MaxPool",
        "MaxPool",
        "max_pool2d_1",
        "block.max_pool2d_2",
    ]
    assert [layer.source for layer in found] == ["block.conv", "block", None, None, "block"]


def test_the_newer_exporter_notes_the_paths() -> None:
    found = chain(
        ("Conv", "node_Conv_1", "layer1.0.conv1.weight", "layer1 layer1.0 layer1.0.bn1 batch_norm_1"),
        ("Relu", "node_relu", "", "layer1 layer1.0 layer1.0.relu relu"),
        ("Conv", "node_conv2d_1", "w", "layer1 layer1.0 layer1.0.conv2 conv2d_1"),
        ("MaxPool", "node_max_pool2d", "", "pool max_pool2d"),
        ("MaxPool", "node_max_pool2d_1", "", "pool max_pool2d_1"),
    )
    assert [layer.name for layer in found] == ["layer1.0.conv1", "layer1.0.relu", "layer1.0.conv2", "pool", "pool#2"]
    assert [layer.source for layer in found] == ["layer1.0.conv1", "layer1.0.relu", "layer1.0.conv2", "pool", "pool"]


def test_the_scope_of_a_conv_counts_more_than_a_weight_that_it_shares() -> None:
    rows: Row = ("Conv", "node_conv2d", "first.weight", "second conv2d_1")
    model_layers = chain(rows)
    assert model_layers[0].name == "first"  # unless the exporter says that the node is a conv
    node = onnx.helper.make_node("Conv", ["x", "first.weight"], ["y"], "n")
    node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value="['', 'second', 'conv2d_1']")
    node.metadata_props.add(key="pkg.torch.onnx.class_hierarchy", value="['Net', 'Conv2d', 'aten.conv2d.default']")
    graph = onnx.helper.make_graph(
        [node],
        "g",
        [onnx.helper.make_tensor_value_info("x", 1, ["N", 4, 8, 8])],
        [onnx.helper.make_tensor_value_info("y", 1, None)],
        [onnx.numpy_helper.from_array(np.ones((4, 4, 1, 1), np.float32), "first.weight")],
    )
    assert list_layers(onnx.helper.make_model(graph))[0].name == "second"


def test_helpers_of_a_module_leave_it_its_name() -> None:
    assert names(
        ("Neg", "", "", "same neg"),
        ("Conv", "", "same.weight", "same conv2d"),
        ("Sigmoid", "", "", "act silu"),
        ("Abs", "", "", "act silu"),
        ("Neg", "/ps/Neg"),
        ("MaxPool", "/ps/MaxPool"),
    ) == ["same.Neg", "same", "act.Sigmoid", "act", "ps.Neg", "ps"]


def test_quantized_and_optimized_nodes_keep_their_modules() -> None:
    assert names(
        ("Conv", "fused /stem/stem.0/Conv", "onnx::Conv_1"),
        ("Conv", "/stem/stem.1/Conv_quant", "onnx::Conv_2"),
        ("Conv", "anything", "head.weight_quantized"),
    ) == ["stem.0", "stem.1", "head"]


@pytest.mark.parametrize(
    ("op_type", "node", "weight", "expected"),
    [
        ("Conv", "model/conv2d/Conv2D", "", "model.conv2d"),
        ("Conv", "StatefulPartitionedCall/model/conv2d_1/Conv2D", "", "model.conv2d_1"),
        ("Conv", "Conv__83", "model/conv2d_2/Conv2D/ReadVariableOp:0", "model.conv2d_2"),
        ("Conv", "f/bn_1/batchnorm/mul_1", "f/conv2d_19_1/convolution/merged_input:0", "f.conv2d_19_1"),
        ("Conv", "m/re_lu/Relu;m/bn/FusedBatchNormV3;m/conv1/Conv2D", "", "m.conv1"),
        ("MaxPool", "model/max_pooling2d/MaxPool", "", "model.max_pooling2d"),
        ("MaxPool", "MaxPool", "", "MaxPool"),
        ("Relu", "model/conv2d/Relu", "", "model.conv2d.Relu"),
        ("Conv", "Conv.0", "", "Conv.0"),
        ("Conv", "p2o.Conv.0", "conv2d_0.w_0", "conv2d_0"),
        ("Conv", "", "12", "conv_0"),
        ("Conv", ";/;", "", "conv_0"),
        ("Conv", "/", "", "conv_0"),
        ("Conv", "//Conv", "", "Conv"),
    ],
)
def test_names_of_other_exporters_are_cleaned(op_type: str, node: str, weight: str, expected: str) -> None:
    assert names((op_type, node, weight)) == [expected]


def test_values_of_paddle_name_their_layer() -> None:
    (pool,) = chain(("MaxPool", "MaxPool.0"), outputs={0: "pool2d_0.tmp_0"})
    assert pool.name == "pool2d_0"


HOSTILE = [
    "(" * 50,
    "[a-",
    "\\",
    "a\0b",
    "../../etc",
    "x" * 10_000,
    "." * 9,
    "/a" * 5_000 + "/Relu",
    "<script>",
    "né",
    "a\nb",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_become_safe_and_unique(name: str) -> None:
    found = names(("Relu", name), ("Relu", name), ("Conv", name, name), ("Relu", "", "", f"{name}. relu"))
    assert len(set(found)) == len(found)
    assert all(re.fullmatch(r"[\w.\-#]+", one) and len(one) < 200 and one.strip(".") for one in found)


def test_thousands_of_equal_names_take_no_time_to_tell_apart() -> None:
    found = names(*[("Relu", "same")] * 3000)
    assert (found[0], found[1], found[-1]) == ("same", "same#2", "same#3000")


def test_a_name_joined_by_tensorflow_lite_is_that_of_the_conv_whose_bias_is_added() -> None:
    """Of basic-pitch: `conv2d_5` is mentioned because it shares a constant."""
    joined = (
        "m/contours/BiasAdd;m/contours/BiasAdd;m/conv2d_5/Conv2D;m/conv2d_5/Conv2D;m/contours/Conv2D;m/contours/Conv2D;"
        "m/contours/BiasAdd/ReadVariableOp;m/contours/BiasAdd/ReadVariableOp"
    )
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]> g (float[1,3,8,8] x, float[4,3,3,3] w) => (float[1,4,6,6] y)
        { y = Conv(x, w) }"""
    )
    model.graph.node[0].name = joined
    (layer,) = list_layers(model)
    assert layer.name == "m.contours"
