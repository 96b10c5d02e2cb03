from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

from onnxfeat import expose, list_layers
from onnxfeat.errors import LayerError, ModelError
from onnxfeat.graph.reading import read_graph, type_name
from onnxfeat.layers.inventory import all_layers
from onnxfeat.metadata import KEY, Document, MappedLayer
from onnxfeat.records import Layer


def network(
    nodes: str,
    constants: Mapping[str, Any] | None = None,
    *,
    opset: int = 18,
    inputs: str = "float[N,3,8,8] x",
    outputs: str = "float y",
) -> onnx.ModelProto:
    """Return a model of these nodes; `w` is a 3 x 3 kernel from 3 to 4 channels."""
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : {opset}, "custom" : 1, "com.microsoft.nchwc" : 1, "com.microsoft" : 1]> '
        f"g ({inputs}) => ({outputs}) {{ {nodes} }}"
    )
    if outputs == "float y":
        model.graph.output[0].type.tensor_type.ClearField("shape")
    weights = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32)
    for name, value in {"w": weights, **(constants or {})}.items():
        if any(name in node.input for node in model.graph.node):
            array = np.asarray(value, dtype=None if isinstance(value, np.ndarray) else np.float32)
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return model


def conv_of(model: onnx.ModelProto) -> Layer:
    return next(layer for layer in all_layers(read_graph(model)) if layer.kind == "conv")


PER_CHANNEL = np.arange(1, 5, dtype=np.float32).reshape(4, 1, 1)
BN = {"s": np.ones(4, np.float32), "b": np.ones(4, np.float32)}


@pytest.mark.parametrize(
    ("nodes", "constants", "raw", "value", "activation"),
    [
        ("y = Conv(x, w)", {}, "y", "y", None),
        ("c = Conv(x, w) y = Relu(c)", {}, "c", "y", "Relu"),
        ("c = Conv(x, w) d = BatchNormalization(c, s, b, b, s) y = Relu(d)", BN, "d", "y", "Relu"),
        ("c = Conv(x, w) y = BatchNormalization(c, s, b, b, s)", BN, "y", "y", None),
        ("c = Conv(x, w) d = Add(c, k) y = Relu(d)", {"k": PER_CHANNEL}, "d", "y", "Relu"),
        ("c = Conv(x, w) d = Add(k, c) y = LeakyRelu(d)", {"k": PER_CHANNEL}, "d", "y", "LeakyRelu"),
        ("c = Conv(x, w) d = Mul(c, k) e = Sub(d, k) y = Tanh(e)", {"k": PER_CHANNEL}, "e", "y", "Tanh"),
        ("k = Constant<value_float = 2.0>() c = Conv(x, w) d = Add(c, k) y = Relu(d)", {}, "d", "y", "Relu"),
        ("k = Constant<value_int = 2>() f = Cast<to = 1>(k) c = Conv(x, w) y = Add(c, f)", {}, "y", "y", None),
        ('k = Constant<value_string = "a">() c = Conv(x, w) y = Relu(c)', {}, "c", "y", "Relu"),
        ("k = Constant<value_floats = [2.0]>() c = Conv(x, w) d = Add(c, k) y = Relu(d)", {}, "d", "y", "Relu"),
        ("k = Constant<value = float {2.0}>() c = Conv(x, w) d = Add(c, k) y = Relu(d)", {}, "d", "y", "Relu"),
        ("c = Conv(x, w) d = Identity(c) e = Cast<to = 1>(d) y = Relu(e)", {}, "e", "y", "Relu"),
        ("c = Conv(x, w) y = Identity(c)", {}, "c", "c", None),
        ("c = Conv(x, w) d = Transpose<perm = [0, 2, 3, 1]>(c) y = Relu(d)", {}, "d", "y", "Relu"),
        ("c = Conv(x, w) y = Clip(c, lo, hi)", {"lo": 0.0, "hi": 6.0}, "c", "y", "Clip"),
        ("c = Conv(x, w) y = PRelu(c, k)", {"k": PER_CHANNEL}, "c", "y", "PRelu"),
        ("c = Conv(x, w) y = HardSwish(c)", {}, "c", "y", "HardSwish"),
        ("c = Conv(x, w) y = Mish(c)", {}, "c", "y", "Mish"),
        ("c = Conv(x, w) d = Sigmoid(c) y = Mul(c, d)", {}, "c", "y", "SiLU"),
        ("c = Conv(x, w) d = Sigmoid(c) y = Mul(d, c)", {}, "c", "y", "SiLU"),
        ("c = Conv(x, w) y = Sigmoid(c)", {}, "c", "y", "Sigmoid"),
        ("c = Conv(x, w) y = Softmax<axis = 1>(c)", {}, "c", "c", None),
        # What makes a block, and so is not the conv's own:
        ("c = Conv(x, w) r = Relu(c) y = Add(c, r)", {}, "c", "c", None),
        ("c = Conv(x, w) d = Conv(x, w) e = Add(c, d) y = Relu(e)", {}, "c", "c", None),
        ("c = Conv(x, w) y = Mul(c, c)", {}, "c", "c", None),
        ("c = Conv(x, w) r = Relu(c) s = Tanh(c) y = Concat<axis = 1>(r, s)", {}, "c", "c", None),
        ("c = Conv(x, w) s = Sigmoid(c) t = Softplus(x) u = Conv(t, w) y = Mul(s, u)", {}, "c", "s", "Sigmoid"),
    ],
)
def test_a_conv_ends_with_what_belongs_to_it_and_not_behind(
    nodes: str, constants: dict[str, Any], raw: str, value: str, activation: str | None
) -> None:
    found = conv_of(network(nodes, constants))
    assert (found.raw_value, found.value, found.activation) == (raw, value, activation)


@pytest.mark.parametrize(
    ("nodes", "kind", "vector"),
    [
        ("y = MaxPool<kernel_shape = [2, 2]>(x)", "pool", False),
        ("y = AveragePool<kernel_shape = [2, 2]>(x)", "pool", False),
        ("y = LpPool<kernel_shape = [2, 2]>(x)", "pool", False),
        ("y = GlobalAveragePool(x)", "pool", True),
        ("y = GlobalMaxPool(x)", "pool", True),
        ("a = Constant<value_ints = [2, 3]>() c = Conv(x, w) y = ReduceMean(c, a)", "pool", True),
        ("c = Conv(x, w) y = ReduceMean(c, ax)", "pool", True),
        ("c = Conv(x, w) y = ReduceMean<keepdims = 0>(c, neg)", "pool", True),
        ("c = Conv(x, w) d = Transpose<perm = [0, 2, 3, 1]>(c) y = ReduceMean<keepdims = 0>(d, last)", "pool", True),
        ("c = Conv(x, w) y = ReduceMax(c, ax)", "pool", True),
        ("c = Conv(x, w) o = Identity(ax) y = ReduceMean(c, o)", "pool", None),
        ("c = Conv(x, w) m = ReduceMean(c, ax) y = Sub(c, m)", "other", False),
        ("c = Conv(x, w) d = Mul(c, c) y = ReduceMean(d, ax)", "other", True),
        ("y = MaxRoiPool<pooled_shape = [2, 2]>(x, rois)", "other", False),
        ("y = com.microsoft.NhwcMaxPool<kernel_shape = [2, 2]>(x)", "pool", False),
        ("y = com.microsoft.QuickGelu(x)", "activation", False),
        ("y = com.microsoft.FusedConv(x, w)", "conv", False),
        ("c = Conv(x, w) y = ReduceMean(c, last)", "other", False),
        ("c = Conv(x, w) y = ReduceMean(c)", "other", True),
        ("c = Conv(x, w) a = Cast<to = 7>(x) y = ReduceMean(c, a)", "other", False),
        ("y = ReduceMean(x, ax)", "other", True),
        ("y = LRN<size = 3>(x)", "norm", False),
        ("y = Relu(x)", "activation", False),
        ("y = Neg(x)", "other", False),
        ("y = custom.Conv(x)", "other", False),
    ],
)
def test_a_layer_is_of_the_kind_that_its_operator_does(nodes: str, kind: str, vector: bool | None) -> None:
    axes = {
        "rois": np.ones((1, 5), np.float32),
        "ax": np.array([2, 3]),
        "neg": np.array([-1, -2]),
        "last": np.array([1, 2]),
    }
    found = all_layers(read_graph(network(nodes, axes)))[-1]
    if nodes == "y = ReduceMean(x, ax)":  # nothing says what the axes of x are
        assert found.layout is None
    else:
        assert vector is None or found.is_vector == vector
    assert found.kind == kind


def test_a_mean_whose_axes_are_an_attribute_is_a_pool_too() -> None:
    model = network("c = Conv(x, w) y = ReduceMean<axes = [2, 3], keepdims = 0>(c)", opset=13)
    pool = all_layers(read_graph(model))[-1]
    assert (pool.kind, pool.layout, pool.channels, pool.is_vector) == ("pool", "NC", 4, True)


def test_channel_blocked_data_are_listed_but_can_not_be_seen() -> None:
    model = network(
        "c = Conv(x, w) b = com.microsoft.nchwc.ReorderInput(c) d = com.microsoft.nchwc.Conv(b, w) e = Relu(d) "
        "p = com.microsoft.nchwc.MaxPool<kernel_shape = [2, 2]>(e) r = com.microsoft.nchwc.ReorderOutput(p) y = Relu(r)"
    )
    found = {layer.value: layer for layer in list_layers(model, "kind:any")}
    assert {value: bool(layer.unseen) for value, layer in found.items()} == {
        "c": False,
        "b": True,
        "e": True,
        "p": True,
        "r": False,
        "y": False,
    }
    assert (found["p"].kind, found["c"].kind) == ("pool", "conv")
    assert found["p"].unseen == (
        "channel-blocked data (com.microsoft.nchwc): ONNX Runtime saved this file optimized for one CPU; use the "
        "original, or save it at level basic or extended"
    )


def test_a_conv_of_an_unknown_domain_is_no_conv() -> None:
    assert [layer.kind for layer in list_layers(network("y = custom.Conv(x, w)"), "kind:any")] == ["other"]


def test_only_conv_and_pool_layers_are_listed_unless_asked() -> None:
    model = network("c = Conv(x, w) r = Relu(c) p = MaxPool<kernel_shape = [2, 2]>(r) y = GlobalMaxPool(p)")
    assert [layer.op_type for layer in list_layers(model)] == ["Conv", "MaxPool", "GlobalMaxPool"]
    assert [layer.op_type for layer in list_layers(model, "kind:any")] == ["Conv", "Relu", "MaxPool", "GlobalMaxPool"]


def test_a_model_without_conv_and_pool_layers_says_what_to_ask_for() -> None:
    with pytest.raises(LayerError, match=r"none of the model's 1 layers is a conv or pool layer with a picture"):
        list_layers(network("y = Relu(x)"))


def test_constants_are_no_layers() -> None:
    model = network("k = Constant<value_float = 2.0>() y = Add(x, k)")
    assert [layer.op_type for layer in all_layers(read_graph(model))] == ["Add"]


def renamed(names: list[str]) -> list[str]:
    model = network("a = Relu(x) b = Relu(a) c = Relu(b) y = Relu(c)")
    for node, name in zip(model.graph.node, names, strict=True):
        node.name = name
    return [layer.name for layer in all_layers(read_graph(model))]


def test_unnamed_nodes_are_counted_by_kind() -> None:
    assert renamed([""] * 4) == ["activation_0", "activation_1", "activation_2", "activation_3"]


def test_equal_names_become_unique() -> None:
    assert renamed(["a", "a", "a#2", "a"]) == ["a", "a#2", "a.2", "a#3"]


def test_names_are_safe_as_file_names() -> None:
    names = renamed(["/features/0/Conv", "Conv__139:0", "..", "x" * 409])
    assert names[:2] == ["features.0.Conv", "Conv__139.0"]
    assert names[2] == "activation_2"
    assert len(names[3]) < 250
    assert all(re.fullmatch(r"[\w.#-]+", name) for name in names)


def test_a_number_is_no_name_because_a_selection_would_take_it_for_a_position() -> None:
    assert renamed(["12", "-1", "3a", ""]) == ["activation_12", "activation_-1", "3a", "activation_3"]


def dynamo(scopes: str, key: str = "pkg.torch.onnx.name_scopes") -> Layer:
    model = network("y = Relu(x)")
    model.graph.node[0].name = "node_relu"
    model.graph.node[0].metadata_props.add(key=key, value=scopes)
    return all_layers(read_graph(model))[0]


def test_the_module_path_that_torch_leaves_is_the_name() -> None:
    found = dynamo("['', 'layer1', 'layer1.0', 'layer1.0.act', 'relu']")
    assert (found.name, found.source) == ("layer1.0.act", "layer1.0.act")


@pytest.mark.parametrize(
    "scopes",
    ["", "[", "7", "['relu']", "['a', 'relu']", "{}", "{[]: 1}", "not python", "-" * 200_000 + "1", "[\0]", "x()"],
)
def test_scopes_that_are_none_leave_the_name_of_the_node(scopes: str) -> None:
    found = dynamo(scopes)
    assert (found.name, found.source) == ("node_relu", None)


def test_metadata_of_others_is_left_alone() -> None:
    assert dynamo("['a', 'b', 'c']", key="name_scopes").name == "node_relu"


def test_a_module_path_with_slashes_is_safe_as_a_file_name() -> None:
    assert dynamo("['', 'a/b, c', 'relu']").name == "a.b.c"


def mapped(value: str | None, kind: Any = "conv", *, name: str = "conv2d", layout: str | None = "NCHW") -> MappedLayer:
    return MappedLayer(name=name, keras_class="Conv2D", kind=kind, value=value, layout=layout)


def mapped_layers(model: onnx.ModelProto, *layers: MappedLayer) -> tuple[Layer, ...]:
    onnx.helper.set_model_props(model, {KEY: Document(layer_map=layers).to_text()})
    return all_layers(read_graph(model))


def test_the_layer_map_of_keras_comes_before_the_names_of_nodes() -> None:
    model = network("c = Conv(x, w) r = Relu(c) y = Transpose<perm = [0, 2, 3, 1]>(r)")
    (found,) = mapped_layers(model, mapped("r", name="block/conv2d"))
    assert (found.name, found.op_type, found.value, found.raw_value) == ("block/conv2d", "Conv", "r", "c")
    assert (found.activation, found.source, found.shape) == ("Relu", "Conv2D", ("N", 4, 6, 6))


def test_an_activation_that_is_a_keras_layer_of_its_own_is_not_taken_in() -> None:
    conv, act = mapped_layers(
        network("c = Conv(x, w) y = Relu(c)"), mapped("c"), mapped("y", "activation", name="activation")
    )
    assert (conv.value, conv.raw_value, conv.activation) == ("c", "c", None)
    assert (act.op_type, act.value, act.activation) == ("Relu", "y", None)


def test_mapped_layers_without_a_value_in_the_graph_are_left_out() -> None:
    model = network("y = Conv(x, w)")
    assert [x.name for x in mapped_layers(model, mapped(None), mapped("gone"), mapped("x"), mapped("y"))] == ["conv2d"]


def test_a_mapped_pool_keeps_the_operator_behind_its_squeeze() -> None:
    model = network("g = GlobalAveragePool(x) y = Squeeze(g, ax)", {"ax": np.array([2, 3])})
    (found,) = mapped_layers(model, mapped("y", "pool", layout="NC"))
    assert (found.op_type, found.value, found.layout) == ("GlobalAveragePool", "y", "NC")


def test_a_mapped_layer_of_two_convs_is_named_by_its_last_node() -> None:
    model = network("c = Conv(x, w) d = Conv(x, w) r = Relu(d) y = Add(c, r)")
    (found,) = mapped_layers(model, mapped("y"))
    assert (found.op_type, found.value, found.raw_value) == ("Add", "y", "y")


def test_a_mapped_layer_behind_a_change_of_shape_is_named_by_its_node() -> None:
    (found,) = mapped_layers(network("c = Conv(x, w) f = Flatten(c) y = Relu(f)"), mapped("y", layout="NC"))
    assert (found.op_type, found.raw_value) == ("Relu", "y")


def test_the_search_for_an_activation_ends_after_a_few_nodes() -> None:
    negations = " ".join(f"n{i + 1} = Neg(n{i})" for i in range(30))
    model = network(f"c = Conv(x, w) n0 = Neg(c) {negations} s = Softmax(c) f = Flatten(c) y = Flatten(n30)")
    assert (conv_of(model).value, conv_of(model).activation) == ("c", None)


def test_a_mapped_layer_without_a_conv_is_named_by_its_node() -> None:
    (found,) = mapped_layers(network("r = Relu(x) y = Add(r, r)"), mapped("y"))
    assert found.op_type == "Add"


def test_an_exposed_file_that_lost_an_output_says_so(tmp_path: Path) -> None:
    expose(network("c = Conv(x, w) y = Relu(c)"), tmp_path / "e.onnx")
    model = onnx.load(tmp_path / "e.onnx")
    model.graph.output[0].name = "other"
    with pytest.raises(ModelError, match=r"<memory> says that it exposes 'y', but has no such output: another tool"):
        list_layers(model)


def test_an_exposed_file_lists_what_it_exposes(tmp_path: Path) -> None:
    model = network("c = Conv(x, w) y = Relu(c)")
    expose(model, tmp_path / "e.onnx")
    assert list_layers(tmp_path / "e.onnx") == list_layers(model)


def test_bytes_path_text_and_parsed_model_give_the_same_layers(tmp_path: Path) -> None:
    model = network("c = Conv(x, w) y = Relu(c)")
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    expected = list_layers(model)
    assert list_layers(path) == list_layers(str(path)) == list_layers(path.read_bytes()) == expected
    assert read_graph(path).sha256 == read_graph(path.read_bytes()).sha256


def test_a_model_without_nodes_has_no_layers_to_see() -> None:
    with pytest.raises(ModelError, match=r"<memory> has no nodes, so there are no layers to see: pass a model that"):
        list_layers(onnx.ModelProto())


def test_names_that_are_not_text_are_damage() -> None:
    content = network("c = Conv(x, w) y = Relu(c)").SerializeToString().replace(b"Relu", b"\xff\xfe\xfd\xfc")
    with pytest.raises(ModelError, match=r"<memory> is damaged"):
        list_layers(content)


def external(folder: Path, location: str, content: bytes | None) -> Path:
    model = network("y = Conv(x, w)")
    tensor = model.graph.initializer[0]
    raw = tensor.raw_data
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    (folder / "weights.bin").write_bytes(raw if content is None else content)
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    return folder / "m.onnx"


def test_weights_in_another_file_are_read(tmp_path: Path) -> None:
    assert list_layers(external(tmp_path, "weights.bin", None))[0].channels == 4


@pytest.mark.parametrize("location", ["gone.bin", "../weights.bin", "/etc/hostname"])
def test_weights_that_are_not_beside_the_model_are_an_error(location: str, tmp_path: Path) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    (tmp_path / "weights.bin").write_bytes(b"secret")
    with pytest.raises(ModelError, match=r"m\.onnx keeps the tensor 'w' in the file '.*', which is"):
        list_layers(external(folder, location, None))


def test_a_damaged_constant_is_named() -> None:
    model = network("c = Conv(x, w) y = ReduceMean(c, ax)", {"ax": np.array([2, 3])})
    model.graph.initializer[1].raw_data = b"123"
    with pytest.raises(ModelError, match=r"the tensor 'ax' in <memory> is damaged .*: fetch or export the model again"):
        list_layers(model)


def test_the_declared_shapes_serve_where_inference_fails() -> None:
    model = network("y = Conv(x, w)", outputs="float[N,4,6,6] y")
    del model.opset_import[:]
    assert list_layers(model)[0].shape == ("N", 4, 6, 6)


def test_unknown_sides_stay_unknown() -> None:
    model = network("c = Conv(x, w) y = Relu(c)", inputs="float[N,3,H,W] x")
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = -1  # some exporters write this for "any"
    (found,) = list_layers(model)
    assert found.channels == 4
    assert found.shape is not None
    assert not any(isinstance(side, int) for side in found.shape[2:])


def test_a_value_of_a_custom_operator_has_no_type() -> None:
    model = network("c = custom.Blur(x) r = Relu(c) y = Conv(r, w)")
    relu = all_layers(read_graph(model))[1]
    assert (relu.dtype, relu.shape, relu.channels, relu.spatial, relu.is_vector) == (None, None, None, None, False)
    assert relu.layout == "NCHW"  # because the conv behind it wants that


def test_a_value_that_is_no_tensor_has_no_type() -> None:
    model = network("c = Conv(x, w) s = SequenceConstruct(c, c) y = SequenceAt(s, i)", {"i": np.array(0)})
    sequence = all_layers(read_graph(model))[1]
    assert (sequence.op_type, sequence.dtype, sequence.shape) == ("SequenceConstruct", None, None)


def test_large_weights_that_an_old_file_lists_as_inputs_keep_their_shape() -> None:
    model = network("y = Conv(x, v)", {"v": np.ones((500, 3, 1, 1), np.float32)})
    model.graph.input.append(onnx.helper.make_tensor_value_info("v", 1, [500, 3, 1, 1]))
    assert list_layers(model)[0].shape == ("N", 500, 8, 8)
    del model.graph.input[1]
    assert list_layers(model)[0].shape == ("N", 500, 8, 8)


def test_types_have_the_words_of_onnx() -> None:
    assert type_name(onnx.TensorProto.FLOAT16) == "float16"
    assert type_name(12345) is None


def test_nodes_that_lack_their_inputs_or_outputs_are_survived() -> None:
    model = network("c = Conv(x, w) t = Transpose<perm = [0, 2, 3, 1]>(c) y = Relu(t)")
    helper = onnx.helper.make_node
    model.graph.node.extend(
        [
            helper("Conv", [], []),
            helper("Transpose", [], ["u"], perm=[0, 1, 2, 9]),
            helper("Transpose", ["c"], ["v"], perm=[0, 1, 2, 9]),
            helper("Transpose", ["y"], []),
            helper("MaxPool", ["c"], ["p"], kernel_shape=[2, 2], strides=[2]),
            helper("ConvTranspose", ["c", "w"], ["q"], strides=[0, 0]),
            helper("Relu", ["c"], []),
            helper("Transpose", [], ["i"]),
            helper("Conv", ["i", "w"], ["o"]),
        ]
    )
    assert [layer.op_type for layer in list_layers(model)] == ["Conv", "MaxPool", "ConvTranspose", "Conv"]
    assert [layer.reduction for layer in list_layers(model)] == [(1.0, 1.0), None, None, None]


def test_an_average_of_powers_is_told_to_be_a_step_of_an_lp_pool() -> None:
    """PyTorch writes LPPool2d so; its module's output is behind the root."""
    model = network(
        "p = Pow(x, two) a = AveragePool<kernel_shape = [2, 2]>(p) m = Mul(a, four) y = Pow(m, half)",
        {"two": 2.0, "four": 4.0, "half": 0.5},
    )
    (layer,) = list_layers(model)
    assert (layer.op_type, layer.note) == ("AveragePool", "average of powers: inside an Lp pool")
    (plain,) = list_layers(network("y = AveragePool<kernel_shape = [2, 2]>(x)"))
    assert plain.note == ""
