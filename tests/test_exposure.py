from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.checker
import onnx.parser
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from onnxfeat import FeatureExtractor, expose, list_layers
from onnxfeat.errors import LayerError, ModelError, OutputError, PictureError
from onnxfeat.graph.reading import read_graph
from onnxfeat.layers.inventory import all_layers
from onnxfeat.metadata import KEY, Document, MappedLayer, read_document
from onnxfeat.preprocessing import Preprocessing
from onnxfeat.records import ModelInput
from onnxfeat.running.exposure import exposed_model, picture_input, with_outputs

WEIGHTS = np.random.default_rng(0).normal(size=(3, 3, 3, 3)).astype(np.float32)
PICTURE = np.random.default_rng(1).normal(size=(1, 3, 16, 16)).astype(np.float32)

STACK = """
c1 = Conv(x, w1)
r1 = Relu(c1)
p1 = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(r1)
c2 = Conv(p1, w2)
y = Relu(c2)
"""


def network(nodes: str = STACK, inputs: str = "float[1,3,16,16] x", outputs: str = "y") -> onnx.ModelProto:
    """Return a model of these nodes; `w1`, `w2` are 3 x 3 kernels from 3 to 3 channels; outputs have no shape."""
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17, "local" : 1], producer_name: "test", model_version: 3, '
        f'doc_string: "kept">\n g ({inputs}) => (float {outputs.replace(",", ", float ")}) {{ {nodes} }}'
    )
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    for name in ("w1", "w2"):
        if name in nodes:
            model.graph.initializer.append(onnx.numpy_helper.from_array(WEIGHTS, name))
    return model


def names(values: object) -> list[str]:
    return [value.name for value in values]  # type: ignore[attr-defined]


def values_of(model: onnx.ModelProto, **feeds: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Return every value of an unmodified model, by onnx's own evaluator."""
    found = ReferenceEvaluator(model).run(None, feeds, intermediate=True)
    return dict(found)


def run_in_runtime(path: Path, **feeds: NDArray[Any]) -> dict[str, NDArray[Any]]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    outputs = [output.name for output in session.get_outputs()]
    return dict(zip(outputs, session.run(outputs, feeds), strict=True))


def test_the_outputs_are_the_layers_with_their_values(tmp_path: Path) -> None:
    path = tmp_path / "e.onnx"
    layers = expose(network(), path)
    assert [layer.value for layer in layers] == ["r1", "p1", "y"]
    onnx.checker.check_model(onnx.load(path), full_check=True)
    outputs = run_in_runtime(path, x=PICTURE)
    assert list(outputs) == ["r1", "p1", "y"]
    for name, value in values_of(network(), x=PICTURE).items():
        if name in outputs:
            np.testing.assert_allclose(outputs[name], value, rtol=1e-4, atol=1e-4)


def test_cutting_leaves_out_what_the_layers_do_not_need() -> None:
    graph = read_graph(network())
    cut = exposed_model(graph, all_layers(graph)[:1])
    assert [node.op_type for node in cut.graph.node] == ["Conv", "Relu"]
    assert names(cut.graph.initializer) == ["w1"]
    assert names(cut.graph.output) == ["r1"]


def test_without_cutting_the_whole_graph_stays_and_its_outputs_come_first() -> None:
    model = network()
    graph = read_graph(model)
    whole = exposed_model(graph, all_layers(graph)[:1], cut=False)
    assert list(whole.graph.node) == list(model.graph.node)
    assert list(whole.graph.initializer) == list(model.graph.initializer)
    assert names(whole.graph.output) == ["y", "r1"]


@pytest.mark.parametrize("cut", [True, False])
def test_all_but_the_outputs_is_unchanged(cut: bool) -> None:
    model = network()
    model.graph.doc_string = "a graph"
    model.graph.metadata_props.add(key="of the graph", value="2")
    model.metadata_props.add(key="of another tool", value="1")
    graph = read_graph(model)
    exposed = exposed_model(graph, all_layers(graph), cut=cut)
    assert [entry.key for entry in exposed.metadata_props] == ["of another tool", KEY]
    del exposed.metadata_props[1]
    del exposed.graph.output[:]
    del model.graph.output[:]
    assert exposed == model


def test_exposing_again_changes_nothing(tmp_path: Path) -> None:
    first = expose(network(), tmp_path / "1.onnx")
    second = expose(tmp_path / "1.onnx", tmp_path / "2.onnx")
    assert first == second
    assert (tmp_path / "1.onnx").read_bytes() == (tmp_path / "2.onnx").read_bytes()


@pytest.mark.parametrize("cut", [True, False])
def test_the_same_model_gives_the_same_bytes(cut: bool, tmp_path: Path) -> None:
    for name in ("1.onnx", "2.onnx"):
        expose(network(), tmp_path / name, cut=cut)
    assert (tmp_path / "1.onnx").read_bytes() == (tmp_path / "2.onnx").read_bytes()


def test_the_model_of_the_caller_is_not_changed(tmp_path: Path) -> None:
    model = network()
    before = model.SerializeToString(deterministic=True)
    for cut in (True, False):
        expose(model, tmp_path / f"{cut}.onnx", cut=cut)
    assert model.SerializeToString(deterministic=True) == before


def test_a_value_that_is_an_output_already_is_one_once(tmp_path: Path) -> None:
    expose(network(), tmp_path / "e.onnx", layers="kind:conv", cut=False)
    assert names(onnx.load(tmp_path / "e.onnx").graph.output) == ["y", "r1"]


def test_a_value_of_two_layers_is_one_output() -> None:
    graph = read_graph(network())
    layers = all_layers(graph)
    values = [layer.value for layer in layers]
    assert values.count("r1") == 2  # the conv's and the activation's own
    assert names(exposed_model(graph, layers).graph.output) == list(dict.fromkeys(values))


BRANCH = """
c1 = Conv(x, w1)
r1 = Relu(c1)
n = ReduceMax<keepdims = 0>(r1)
ok = Cast<to = 9>(n)
d = If (ok) <
  then_branch = t () => (float[1,3,14,14] a) { a = Add(r1, c1) },
  else_branch = e () => (float[1,3,14,14] b) { b = If (ok) <
    then_branch = t2 () => (float[1,3,14,14] a2) { a2 = Identity(s) },
    else_branch = e2 () => (float[1,3,14,14] b2) { b2 = Neg(s) }
  > }
>
y = Conv(d, w2)
"""


def test_values_that_a_branch_captures_are_kept(tmp_path: Path) -> None:
    model = network("s = Conv(x, w2) " + BRANCH)
    expose(model, tmp_path / "e.onnx", layers="-1")
    outputs = run_in_runtime(tmp_path / "e.onnx", x=PICTURE)
    np.testing.assert_allclose(outputs["y"], values_of(model, x=PICTURE)["y"], rtol=1e-4, atol=1e-4)
    kept = onnx.load(tmp_path / "e.onnx").graph
    assert [output for node in kept.node for output in node.output] == ["s", "c1", "r1", "n", "ok", "d", "y"]


def test_values_that_a_list_of_graphs_captures_are_kept() -> None:
    model = network("s = Relu(x) u = Neg(x) y = Conv(x, w1)")
    inner = onnx.helper.make_graph([onnx.helper.make_node("Neg", ["s"], ["t"])], "inner", [], [])
    node = onnx.helper.make_node("Choose", ["y"], ["z"], domain="local", branches=[inner])
    model.graph.node.append(node)
    cut = with_outputs(read_graph(model), ["z"], cut=True).graph
    assert [kept.op_type for kept in cut.node] == ["Relu", "Conv", "Choose"]


def test_local_functions_survive(tmp_path: Path) -> None:
    function = onnx.parser.parse_function(
        '<domain: "local", opset_import: ["" : 17]> Twice (a) => (b) { b = Add(a, a) }'
    )
    model = network("t = local.Twice(x) y = Conv(t, w1)")
    model.functions.append(function)
    expose(model, tmp_path / "e.onnx")
    exposed = onnx.load(tmp_path / "e.onnx")
    assert list(exposed.functions) == [function]
    np.testing.assert_allclose(
        run_in_runtime(tmp_path / "e.onnx", x=PICTURE)["y"], values_of(model, x=PICTURE)["y"], rtol=1e-4, atol=1e-4
    )


def test_weights_that_an_old_file_lists_as_inputs_are_no_inputs(tmp_path: Path) -> None:
    model = network()
    model.ir_version = 3
    for name in ("w1", "w2"):
        model.graph.input.append(onnx.helper.make_tensor_value_info(name, 1, WEIGHTS.shape))
    expose(model, tmp_path / "e.onnx", layers="0")
    exposed = onnx.load(tmp_path / "e.onnx")
    assert names(exposed.graph.input) == ["x", "w1"]
    assert exposed.ir_version == 3
    assert picture_input(read_graph(model)).name == "x"
    assert list(run_in_runtime(tmp_path / "e.onnx", x=PICTURE)) == ["r1"]


def test_sparse_weights_and_quantization_notes_follow_their_values() -> None:
    model = network("c = Conv(x, w1) d = MatMul(c, s1) y = MatMul(d, s2)")
    for name in ("s1", "s2"):
        values = onnx.numpy_helper.from_array(np.array([1.0], np.float32), name)
        indices = onnx.numpy_helper.from_array(np.array([0], np.int64), f"{name}_at")
        model.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(values, indices, [14, 14]))
    for name in ("c", "y"):
        model.graph.quantization_annotation.add(tensor_name=name)
    cut = with_outputs(read_graph(model), ["d"], cut=True).graph
    assert [tensor.values.name for tensor in cut.sparse_initializer] == ["s1"]
    assert [note.tensor_name for note in cut.quantization_annotation] == ["c"]


def test_declared_types_of_inner_values_are_kept_where_they_still_belong() -> None:
    model = network()
    for name in ("c1", "r1", "c2"):
        model.graph.value_info.append(onnx.helper.make_tensor_value_info(name, 1, None))
    cut = with_outputs(read_graph(model), ["r1"], cut=True).graph
    assert names(cut.value_info) == ["c1"]  # r1 is an output now, c2 is gone


def test_symbolic_sides_stay_symbolic(tmp_path: Path) -> None:
    model = network(inputs="float[N,3,H,W] x")
    expose(model, tmp_path / "e.onnx", layers="0")
    (output,) = onnx.load(tmp_path / "e.onnx").graph.output
    shape = output.type.tensor_type.shape.dim
    assert [shape[0].dim_param, shape[1].dim_value] == ["N", 3]
    assert not shape[2].HasField("dim_value")
    onnx.checker.check_model(onnx.load(tmp_path / "e.onnx"), full_check=True)
    assert run_in_runtime(tmp_path / "e.onnx", x=PICTURE[:, :, :9])["r1"].shape == (1, 3, 7, 14)


def test_a_value_of_unknown_type_becomes_an_output_by_name_alone() -> None:
    graph = read_graph(network("t = local.Odd(x) y = Conv(t, w1)"))
    (output,) = with_outputs(graph, ["t"], cut=True).graph.output
    assert output == onnx.ValueInfoProto(name="t")


def test_the_file_says_where_it_comes_from_and_what_it_holds(tmp_path: Path) -> None:
    model = network("t = Transpose<perm = [0, 3, 1, 2]>(x) c = Conv(t, w1) y = Relu(c)", "uint8[N,16,16,3] x")
    source = tmp_path / "m.onnx"
    onnx.helper.set_model_props(model, {KEY: Document(preprocessing=Preprocessing(scale=1.0)).to_text()})
    onnx.save(model, source)
    layers = expose(source, tmp_path / "e.onnx")
    document = read_document(tmp_path / "e.onnx")
    assert document.preprocessing == Preprocessing(scale=1.0)
    assert document.exposed is not None
    assert document.exposed.layers == layers
    assert document.exposed.source_sha256 == read_graph(source).sha256
    assert document.exposed.input == ModelInput(name="x", shape=("N", 16, 16, 3), layout="NHWC", dtype="uint8")


def test_the_layer_map_keeps_what_is_still_in_the_file(tmp_path: Path) -> None:
    model = network()
    layer_map = tuple(
        MappedLayer(name=name, keras_class="C", kind="conv", value=value, layout="NCHW")
        for name, value in (("a", "r1"), ("b", "y"), ("c", None))
    )
    onnx.helper.set_model_props(model, {KEY: Document(layer_map=layer_map).to_text()})
    expose(model, tmp_path / "e.onnx", layers="a")
    assert read_document(tmp_path / "e.onnx").layer_map == layer_map[:1]


def test_an_existing_file_is_left_alone_unless_told_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "e.onnx"
    path.write_text("mine")
    with pytest.raises(OutputError, match=r"e\.onnx exists already"):
        expose(network(), path)
    assert path.read_text() == "mine"
    expose(network(), path, overwrite=True)
    assert read_document(path).exposed is not None


def test_a_wrong_selection_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(LayerError, match="no layer matches 'nothing'"):
        expose(network(), tmp_path / "e.onnx", layers="nothing")
    assert list(tmp_path.iterdir()) == []


def test_a_model_may_be_exposed_in_its_own_place(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(network(), path)
    layers = expose(path, path, layers="0", overwrite=True)
    assert read_document(path).exposed is not None
    assert list(run_in_runtime(path, x=PICTURE)) == [layers[0].value]


def test_an_input_that_the_layers_do_not_need_is_cut_off(tmp_path: Path) -> None:
    model = network("c = Conv(x, w1) y = Mul(c, z)", "float[1,3,16,16] x, float[1,2] z")
    model.graph.node[1].input[1] = "z"
    layers = expose(model, tmp_path / "e.onnx", layers="conv_0")
    assert names(onnx.load(tmp_path / "e.onnx").graph.input) == ["x"]
    assert list(run_in_runtime(tmp_path / "e.onnx", x=PICTURE)) == [layers[0].value]


@pytest.mark.parametrize(
    ("nodes", "inputs", "message"),
    [
        (
            "a = Conv(x, w1) b = Conv(z, w2) y = Concat<axis = 1>(a, b)",
            "float[1,3,16,16] x, float[1,3,16,16] z",
            r"<memory> wants 2 inputs \('x' float32 \(1, 3, 16, 16\), 'z' float32 \(1, 3, 16, 16\)\), of which 2 take "
            r"a picture, and one must: give the others values of their own, --input NAME=NUMBER or --input NAME=FILE",
        ),
        (
            "c = Conv(x, w1) y = Conv(c, z)",
            "float[1,3,16] x, float[3,3,4] z",
            r"wants 2 inputs \('x' float32 \(1, 3, 16\), 'z' float32 \(3, 3, 4\)\), of which 0 take a picture",
        ),
        (
            "r = RandomNormal<shape = [1, 3, 4, 4]>() y = Conv(r, w1)",
            "float[1,3,4,4] x",
            r"has no input left for the picture: leave out the value of the input that takes it",
        ),
    ],
)
def test_a_model_that_does_not_take_one_picture_is_refused(
    nodes: str, inputs: str, message: str, tmp_path: Path
) -> None:
    model = network(nodes, inputs)
    with pytest.raises(ModelError, match=message):
        FeatureExtractor(model, layers="kind:any", provider="cpu")
    expose(model, tmp_path / "e.onnx", layers="kind:any")  # whoever runs the file can say which input it is
    with pytest.raises(ModelError, match=message.replace("<memory>", ".*e.onnx")):
        FeatureExtractor(tmp_path / "e.onnx", provider="cpu")


def test_an_input_of_unknown_shape_is_taken_for_a_picture() -> None:
    model = network("y = Conv(x, w1)")
    model.graph.input[0].type.tensor_type.ClearField("shape")
    expected = ModelInput(name="x", shape=(None, None, None, None), layout="NCHW", dtype="float32")
    assert picture_input(read_graph(model)) == expected


def test_inputs_of_unknown_shape_are_told_as_such() -> None:
    model = network("a = Conv(x, w1) y = Mul(a, z)", "float[1,3,16] x, float z")
    model.graph.input[1].type.tensor_type.ClearField("shape")
    with pytest.raises(ModelError, match=r"wants 2 inputs \('x' float32 \(1, 3, 16\), 'z' float32 of unknown shape\)"):
        picture_input(read_graph(model))


def test_an_input_of_a_type_that_nobody_knows_is_refused_when_it_is_fed() -> None:
    model = network("y = Conv(x, w1)")
    model.graph.input[0].type.tensor_type.elem_type = 99
    assert picture_input(read_graph(model)).dtype == "unknown"
    with pytest.raises(PictureError, match="the input 'x' takes values of type unknown, not the numbers of a picture"):
        FeatureExtractor(model, provider="cpu")


def test_the_input_of_a_network_over_lines_has_their_axes() -> None:
    model = network("y = Conv(x, k)", "float[1,3,16] x")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((4, 3, 5), np.float32), "k"))
    assert picture_input(read_graph(model)) == ModelInput(name="x", shape=(1, 3, 16), layout="NCW", dtype="float32")


def test_the_input_that_is_no_picture_is_given_apart() -> None:
    graph = read_graph(network("c = Conv(x, w1) y = Mul(c, z)", "float[1,3,16,16] x, float[1,3,14,14] z"))
    assert picture_input(graph, given=["z"]).name == "x"
    assert picture_input(graph, given=["x"]).name == "z"


def test_an_exposed_file_gives_all_that_it_exposes_unless_told_otherwise(models: Path, tmp_path: Path) -> None:
    path = tmp_path / "relu.onnx"
    exposed = expose(models / "shapes_small.onnx", path, layers="relu_1,global_pool")
    assert [layer.name for layer in exposed] == ["relu_1", "global_pool"]
    assert list_layers(path) == exposed
    features = FeatureExtractor(path, provider="cpu")(models / "pictures/chelsea.png")
    assert {name: found.shape for name, found in features.items()} == {
        "relu_1": (1, 16, 64, 64),
        "global_pool": (1, 64),
    }


def test_nodes_of_one_name_are_numbered_as_the_runtime_refuses_them(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        net (float[N, 3, 8, 8] x) => (float[N, 3, 4, 4] z)
        { y = Relu(x)  z = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (y) }"""
    )
    for node in model.graph.node:
        node.name = "same"
    for cut in (True, False):
        path = tmp_path / f"{cut}.onnx"
        expose(model, path, layers="kind:any", cut=cut)
        onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        assert [node.name for node in onnx.load(path).graph.node] == ["same", "same#2"]
    assert [node.name for node in model.graph.node] == ["same", "same"]


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="int is no model: pass the path of an ONNX file"):
        expose(5, tmp_path / "a.onnx")  # type: ignore[arg-type]
