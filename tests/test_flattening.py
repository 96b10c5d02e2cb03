from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from onnxfeat import FeatureExtractor, check, expose, list_layers
from onnxfeat.errors import LayerError, ModelError
from onnxfeat.graph.flattening import ordered
from onnxfeat.graph.reading import read_graph

RNG = np.random.default_rng(0)
PICTURE = RNG.normal(size=(1, 3, 8, 8)).astype(np.float32)


def model_of(text: str, **constants: NDArray[Any]) -> onnx.ModelProto:
    """Return a model from ONNX text; `w` is a 3 x 3 kernel from 3 to 3 channels."""
    model = onnx.parser.parse_model(text)
    weights = RNG.normal(size=(3, 3, 3, 3)).astype(np.float32)
    for name, value in {"w": weights, **constants}.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    return model


def reference(model: onnx.ModelProto, **feeds: Any) -> NDArray[Any]:
    """Return the first output of a model, by onnx's own evaluator."""
    return np.asarray(next(iter(ReferenceEvaluator(model).run(None, feeds))))


BLOCKS = """<ir_version: 10, opset_import: ["" : 18, "local" : 1]>
g (float[N,3,8,8] x) => (float[N,3,4,4] y) {
  [first] a = local.Block<alpha = 0.3>(x, w)
  b = local.Outer(a, w)
  y = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(b)
}
<domain: "local", opset_import: ["" : 18]>
Block <alpha: float = 0.1> (x, w) => (y) {
  [conv] c = Conv<pads = [1, 1, 1, 1]>(x, w)
  [act] y = LeakyRelu<alpha: float = @alpha>(c)
}
<domain: "local", opset_import: ["" : 18, "local" : 1]>
Outer (x, w) => (y) { [inner] y = local.Block(x, w) }
"""


def test_layers_inside_functions_are_found_under_the_path_of_their_calls() -> None:
    layers = list_layers(model_of(BLOCKS))
    assert [(layer.name, layer.kind) for layer in layers] == [
        ("first.conv", "conv"),
        ("Outer_0.inner.conv", "conv"),
        ("pool_0", "pool"),
    ]
    assert [layer.activation for layer in layers] == ["LeakyRelu", "LeakyRelu", None]


def test_layers_inside_functions_have_the_values_of_the_nodes_that_they_stand_for() -> None:
    model = model_of(BLOCKS)
    flat = model_of(
        """<ir_version: 10, opset_import: ["" : 18]> g (float[N,3,8,8] x) => (float[N,3,4,4] y)
        { p = Conv<pads = [1, 1, 1, 1]>(x, v) a = LeakyRelu<alpha = 0.3>(p)
          q = Conv<pads = [1, 1, 1, 1]>(a, v) b = LeakyRelu<alpha = 0.1>(q)
          y = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(b) }""",
        v=onnx.numpy_helper.to_array(model.graph.initializer[0]),
    )
    expected = dict(ReferenceEvaluator(flat).run(None, {"x": PICTURE}, intermediate=True))
    features = FeatureExtractor(model, provider="cpu")(PICTURE)
    np.testing.assert_allclose(features["first.conv"].array, expected["a"], rtol=1e-5, atol=1e-5)
    # The default of the function's attribute, 0.1, holds where the call gives none.
    np.testing.assert_allclose(features["Outer_0.inner.conv"].array, expected["b"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(features["pool_0"].array, expected["y"], rtol=1e-5, atol=1e-5)


ACTIVATION = """<ir_version: 10, opset_import: ["" : 18, "local" : 1]>
g (float[N,3,8,8] x) => (float[N,3,6,6] y) { y = local.Block(x, w) }
<domain: "local", opset_import: ["" : 18]> Act (x) => (y) { y = Relu(x) }
<domain: "local", opset_import: ["" : 18, "local" : 1]> Block (x, w) => (y) { c = Conv(x, w) y = local.Act(c) }
"""


def test_an_activation_that_is_a_function_belongs_to_the_conv_before_it() -> None:
    (layer,) = list_layers(model_of(ACTIVATION))
    assert (layer.name, layer.activation, layer.value) == ("Block_0.Conv", "Relu", "y")


def test_a_function_without_layers_in_another_operator_version_stays_one(tmp_path: Path) -> None:
    text = ACTIVATION.replace('["" : 18]> Act', '["" : 17]> Act')
    expose(model_of(text), tmp_path / "e.onnx", cut=False)
    written = onnx.load(tmp_path / "e.onnx")
    assert [function.name for function in written.functions] == ["Act"]
    assert [node.op_type for node in written.graph.node] == ["Conv", "Act"]


def test_a_model_whose_functions_hold_no_layer_is_left_as_it_is() -> None:
    model = model_of(
        """<ir_version: 8, opset_import: ["" : 17, "local" : 1]> g (float[N,3,8,8] x) => (float[N,3,6,6] y)
        { c = Conv(x, w) y = local.Act(c) }
        <domain: "local", opset_import: ["" : 17]> Act (x) => (y) { y = Relu(x) }"""
    )
    assert read_graph(model).model is model


def test_a_function_that_calls_itself_is_refused() -> None:
    model = model_of(BLOCKS.replace("{ [inner] y = local.Block(x, w) }", "{ c = Conv(x, w) y = local.Outer(c, w) }"))
    with pytest.raises(ModelError, match="the function 'Outer' in <memory> calls itself, so it never ends"):
        list_layers(model)


def test_functions_that_double_at_each_level_are_refused_at_once() -> None:
    """Forty functions, each of which calls the next one twice, stand for a million million nodes."""
    head = """<ir_version: 8, opset_import: ["" : 17, "local" : 1]> g (float[N,3,8,8] x) => (float[N,3,8,8] y)
        { y = local.F0(x, w) }"""
    functions = [
        f'<domain: "local", opset_import: ["" : 17, "local" : 1]> F{i} (x, w) => (y) '
        f"{{ a = local.F{i + 1}(x, w) y = local.F{i + 1}(a, w) }}"
        for i in range(40)
    ]
    last = '<domain: "local", opset_import: ["" : 17]> F40 (x, w) => (y) { y = Conv<pads = [1, 1, 1, 1]>(x, w) }'
    with pytest.raises(ModelError, match=r"stands for more than 500,000 nodes: no network is as large"):
        list_layers(model_of("\n".join([head, *functions, last])))


def test_many_calls_of_a_large_function_are_refused_too() -> None:
    calls = "\n".join(f"a{i + 1} = local.F(a{i}, w)" for i in range(600))
    body = "\n".join(f"b{i + 1} = Relu(b{i})" for i in range(4000))
    model = model_of(
        f"""<ir_version: 8, opset_import: ["" : 17, "local" : 1]> g (float[N,3,8,8] a0, float[3,3,3,3] w)
        => (float[N,3,8,8] a600) {{ {calls} }}
        <domain: "local", opset_import: ["" : 17]> F (x, w) => (b4000)
        {{ b0 = Conv<pads = [1, 1, 1, 1]>(x, w) {body} }}"""
    )
    with pytest.raises(ModelError, match="the functions of <memory> stand for more than 500,000 nodes"):
        list_layers(model)


def test_a_function_in_another_operator_version_is_refused_with_the_reason() -> None:
    model = model_of(BLOCKS.replace('["" : 18]>\nBlock', '["" : 13]>\nBlock'))
    with pytest.raises(
        ModelError, match="the function 'Block' in <memory> is written in version 13 of the operators of"
    ):
        list_layers(model)


def test_what_a_call_leaves_out_is_left_out_inside() -> None:
    model = model_of(
        """<ir_version: 8, opset_import: ["" : 17, "local" : 1]> g (float[N,3,8,8] x) => (float[N,3,6,6] y)
        { y = local.F(x, w) }
        <domain: "local", opset_import: ["" : 17]> F (x, w, b) => (y) { y = Conv(x, w, b) }"""
    )
    flat = model_of(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[N,3,8,8] x) => (float[N,3,6,6] y) { y = Conv(x, v) }""",
        v=onnx.numpy_helper.to_array(model.graph.initializer[0]),
    )
    (found,) = FeatureExtractor(model, provider="cpu")(PICTURE).values()
    np.testing.assert_allclose(found.array, reference(flat, x=PICTURE), rtol=1e-5, atol=1e-5)


BRANCHES = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N,3,8,8] x, bool ok) => (float[N,3,6,6] y) {
  c = Conv<pads = [1, 1, 1, 1]>(x, w)
  [choice] d = If (ok) <
    then_branch = t () => (float a) { [conv] u = Conv(c, w) a = Relu(u) },
    else_branch = e () => (float b) {
      n = Not(ok)
      b = If (n) <
        then_branch = tt () => (float p) { [conv] v = Conv(x, w) p = Tanh(v) },
        else_branch = ee () => (float q) { [conv] z = Conv(c, w) q = Sigmoid(z) }
      >
    }
  >
  y = Relu(d)
}
"""
THEN, INNER_THEN, INNER_ELSE = (
    "choice.then_branch.conv",
    "choice.else_branch.If_0.then_branch.conv",
    "choice.else_branch.If_0.else_branch.conv",
)


def branches() -> onnx.ModelProto:
    model = model_of(BRANCHES)
    for graph in (model.graph, *(x.g for x in model.graph.node[1].attribute)):
        for output in graph.output:
            output.type.tensor_type.ClearField("shape")
    return model


def test_layers_inside_branches_are_found() -> None:
    found = list_layers(branches())
    assert [layer.name for layer in found] == ["conv_0", THEN, INNER_THEN, INNER_ELSE]
    assert [layer.activation for layer in found] == [None, "Relu", "Tanh", "Sigmoid"]
    assert all(layer.layout == "NCHW" for layer in found)


@pytest.mark.parametrize("ok", [True, False])
def test_the_branch_that_is_taken_gives_its_map_and_the_others_say_why_not(ok: bool) -> None:
    model = branches()
    features = FeatureExtractor(model, provider="cpu", inputs={"ok": ok})(PICTURE)
    taken, others = (THEN, [INNER_THEN, INNER_ELSE]) if ok else (INNER_THEN, [THEN, INNER_ELSE])
    assert list(features) == ["conv_0", taken]
    assert sorted(features.left_out) == sorted(others)
    assert "was not taken" in features.left_out[others[0]]
    expected = reference(model, x=PICTURE, ok=np.array(ok))
    # y is the Relu of the branch's output.
    np.testing.assert_allclose(np.maximum(features[taken].array, 0), expected, rtol=1e-4, atol=1e-4)


def test_a_layer_of_a_branch_alone_is_exposed_with_what_the_branch_captures(tmp_path: Path) -> None:
    path, model = tmp_path / "e.onnx", branches()
    expose(model, path, layers=INNER_THEN, inputs=["ok"])
    assert [node.op_type for node in onnx.load(path).graph.node] == ["Conv", "If"]
    features = FeatureExtractor(path, provider="cpu", inputs={"ok": False})(PICTURE)
    again = FeatureExtractor(model, layers=INNER_THEN, provider="cpu", inputs={"ok": False})(PICTURE)
    np.testing.assert_array_equal(features[INNER_THEN].array, again[INNER_THEN].array)
    with pytest.raises(LayerError, match="the branch of If that holds it was not taken"):
        FeatureExtractor(path, provider="cpu", inputs={"ok": True})(PICTURE)


def test_watching_branches_changes_no_output() -> None:
    for ok in (True, False):
        found = check(branches(), PICTURE, inputs={"ok": ok}, provider="cpu")
        assert found.unchanged
        assert found.passed


def test_the_model_of_the_caller_is_not_changed_by_looking_into_it(tmp_path: Path) -> None:
    for model in (branches(), model_of(BLOCKS)):
        before = model.SerializeToString(deterministic=True)
        expose(model, tmp_path / "e.onnx", inputs=["ok"], overwrite=True)
        assert model.SerializeToString(deterministic=True) == before


LOOP = """<ir_version: 8, opset_import: ["" : 17]>
g (float[1,3,8,8] x) => (float[1,3,8,8] y) {
  c = Conv<pads = [1, 1, 1, 1]>(x, w)
  n = Constant<value_int = 3>()
  go = Constant<value = bool {1}>()
  [again] y = Loop(n, go, c) <
    body = b (int64 i, bool on, float[1,3,8,8] before) => (bool on2, float[1,3,8,8] after) {
      on2 = Identity(on) d = Conv<pads = [1, 1, 1, 1]>(before, w) after = Relu(d)
    }
  >
}
"""


def test_layers_inside_loops_are_told_to_be_unseen() -> None:
    graph = read_graph(model_of(LOOP))
    assert graph.hidden == (
        "1 conv and pool layers in the body of Loop 'again': it runs again and again, each time with other maps, so "
        "there is no one map to show",
    )
    assert [layer.name for layer in list_layers(graph)] == ["conv_0"]


def test_what_a_loop_captures_is_kept_when_it_is_cut(tmp_path: Path) -> None:
    model = model_of(LOOP)
    expose(model, tmp_path / "e.onnx", layers="kind:any", cut=True)
    session = onnxruntime.InferenceSession(tmp_path / "e.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(["y"], {"x": PICTURE})
    expected = reference(model, x=PICTURE)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_nodes_in_a_circle_are_refused() -> None:
    model = model_of(
        """<ir_version: 8, opset_import: ["" : 17]> g (float[1,3,8,8] x) => (float[1,3,6,6] y)
        { c = Conv(x, w) [one] a = Add(c, b) b = Relu(a) y = Relu(b) }"""
    )
    with pytest.raises(ModelError, match="the nodes of <memory> wait for each other in a circle, at 'one'"):
        list_layers(model)


def test_nodes_in_disorder_are_put_in_order(tmp_path: Path) -> None:
    model = model_of(
        """<ir_version: 8, opset_import: ["" : 17]> g (float[1,3,8,8] x) => (float[1,3,6,6] y)
        { y = Relu(b) b = MaxPool<kernel_shape = [1, 1]>(c) c = Conv(x, w) }"""
    )
    assert [layer.op_type for layer in list_layers(model)] == ["Conv", "MaxPool"]
    for cut in (True, False):
        expose(model, tmp_path / "e.onnx", cut=cut, overwrite=True)
        assert [node.op_type for node in onnx.load(tmp_path / "e.onnx").graph.node][:2] == ["Conv", "MaxPool"]


def test_a_value_that_two_nodes_give_is_refused() -> None:
    model = model_of(
        """<ir_version: 8, opset_import: ["" : 17]> g (float[1,3,8,8] x) => (float[1,3,6,6] y)
        { y = Conv(x, w) y = Relu(x) }"""
    )
    with pytest.raises(ModelError, match="two nodes of <memory> give the value 'y'"):
        list_layers(model)


def test_ordering_keeps_an_order_that_is_one() -> None:
    nodes = list(model_of(BRANCHES).graph.node)
    assert ordered(nodes, "m") == nodes
    assert [node.op_type for node in ordered(nodes[::-1], "m")] == [node.op_type for node in nodes]
