"""Transposes out of the way: the same numbers, fewer nodes, and each watched value where it is said to be."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.checker
import onnx.parser
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from onnxfeat.converter.transposes import View, without_transposes

Array = NDArray[Any]
INITIALIZERS: dict[str, Array] = {
    "channel": np.arange(1, 4, dtype=np.float32),
    "row": np.arange(1, 6, dtype=np.float32).reshape(5, 1),
    "scalar": np.array(2, np.float32),
    "whole": np.arange(60, dtype=np.float32).reshape(1, 4, 5, 3) / 60,
    "three": np.array([3, 0, 1, 2], np.int64),
    "pads": np.array([0, 1, 0, 0, 0, 2, 1, 0], np.int64),
    "starts": np.array([1, 0], np.int64),
    "ends": np.array([9, 2], np.int64),
    "axes": np.array([1, 3], np.int64),
    "spatial": np.array([1, 2], np.int64),
    "last": np.array([3], np.int64),
    "first": np.array([0], np.int64),
    "one": np.array([1], np.int64),
    "scales": np.array([1, 2, 3, 1], np.float32),
    "kernel": np.arange(54, dtype=np.float32).reshape(2, 3, 3, 3) / 54,
    "split": np.array([1, 2], np.int64),
    "low": np.array(-0.5, np.float32),
    "high": np.array(0.5, np.float32),
}


def model_of(body: str, outputs: str, opset: int = 17) -> onnx.ModelProto:
    """Return a model whose input `x` (1, 3, 4, 5) is turned to channels last as `t`, as tf2onnx does behind a conv."""
    text = f"""
    <ir_version: 8, opset_import: ["" : {opset}]>
    g (float[1,3,4,5] x, float[1,4,5,3] plain, float[1,1,1,3] gate) => ({outputs}) {{
        t = Transpose <perm = [0, 2, 3, 1]> (x)
        {body}
    }}
    """
    model = onnx.parser.parse_model(text)
    used = {name for node in model.graph.node for name in node.input}
    for name, array in INITIALIZERS.items():
        if name in used:
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return model


def feeds() -> dict[str, Array]:
    random = np.random.default_rng(0)
    shapes = {"x": (1, 3, 4, 5), "plain": (1, 4, 5, 3), "gate": (1, 1, 1, 3)}
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def values_of(model: onnx.ModelProto, names: list[str]) -> dict[str, Array]:
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    found: Any = ReferenceEvaluator(watched).run(None, feeds())
    return dict(zip(names, found, strict=True))


def assert_same(model: onnx.ModelProto, plain: tuple[str, ...] = ()) -> onnx.ModelProto:
    """Check every value of a model against what its view stands for; return the model without Transposes."""
    before = model.SerializeToString()
    names = [name for node in model.graph.node for name in node.output]
    smaller, views = without_transposes(model, names, plain)
    assert model.SerializeToString() == before
    expected = values_of(model, names)
    made = {name for node in smaller.graph.node for name in node.output}
    known = made | {value.name for value in (*smaller.graph.input, *smaller.graph.initializer)}
    assert {view.value for view in views} <= known
    inner = [view.value for view in views if view.value in made]
    found = {**feeds(), **values_of(smaller, list(dict.fromkeys(inner)))}
    found.update({tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in smaller.graph.initializer})
    for name, view in zip(names, views, strict=True):
        value = found[view.value]
        turned = value if view.order is None else value.transpose(view.order)
        np.testing.assert_array_equal(turned, expected[name], err_msg=name)
    outputs = [output.name for output in model.graph.output]
    after = values_of(smaller, outputs)
    for name in outputs:
        np.testing.assert_array_equal(after[name], expected[name])
    return smaller


def transposes(model: onnx.ModelProto) -> int:
    return sum(node.op_type == "Transpose" for node in model.graph.node)


BACK = "y = Transpose <perm = [0, 3, 1, 2]> (b)"


@pytest.mark.parametrize(
    "body",
    [
        "b = Relu(t)",
        "a = Identity(t) b = Identity(a)",
        "b = Add(t, channel)",
        "b = Mul(channel, t)",
        "b = Sub(t, row)",
        "b = Div(t, scalar)",
        "b = Add(whole, t)",
        "b = PRelu(t, channel)",
        "b = Clip(t, low, high)",
        "a = Sigmoid(t) b = Mul(t, a)",
        "b = Concat <axis = 3> (t, t)",
        "b = Concat <axis = -1> (t, whole)",
        "b = Softmax <axis = -1> (t)",
        "b = Pad(t, pads)",
        "b = Slice(t, starts, ends, axes)",
        "b = ReduceMean <axes = [1, 2]> (t)",
        "a = Unsqueeze(t, first) b = Squeeze(a, first)",
        "b = ReduceMax <axes = [-1], keepdims = 1> (t)",
        "b = ReduceSum <keepdims = 1> (t, spatial)",
        'b = Resize <mode = "nearest"> (t, , scales)',
        "a, b = Split <axis = 3> (t, split)",
        "a = Unsqueeze(t, one) c = Relu(a) b = Squeeze(c, one)",
        "a = Cast <to = 7> (t) b = Cast <to = 1> (a)",
        "a = Greater(t, scalar) b = Where(a, t, scalar)",
        "a = Add(t, gate) b = Mul(a, gate)",
    ],
)
def test_what_stands_between_two_transposes_is_computed_without_them(body: str) -> None:
    smaller = assert_same(model_of(f"{body} {BACK}", "float[N,C,H,W] y"))
    left = transposes(smaller)
    assert left == body.count("gate") // 2  # the small gate is turned, once, instead of the picture


@pytest.mark.parametrize(
    "body",
    [
        "y = Relu(t)",  # the output itself is channels last
        "y = Reshape(t, three)",
        "b = MatMul(t, mat) y = Relu(b)",
        "b = Flatten(t) y = Relu(b)",
        "y = ReduceMean <axes = [1, 2], keepdims = 0> (t)",
        "y = ReduceMean <axes = [1], keepdims = 0> (t)",
        "s = Shape(t) y = Cast <to = 1> (s)",
        "a = Add(t, plain) y = Relu(a)",
        "y = LogSoftmax <axis = 1> (t)",
        "a = Relu(t) y = InstanceNormalization(x, channel, channel) z = Add(a, plain)",
    ],
)
def test_where_an_operator_needs_the_axes_in_order_it_gets_them(body: str) -> None:
    body = body.replace("mat", "eye")
    model = model_of(body, "float y")
    if "eye" in body:
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.eye(3, 2, dtype=np.float32), "eye"))
    if "three" in body:
        shape = next(tensor for tensor in model.graph.initializer if tensor.name == "three")
        shape.CopyFrom(onnx.numpy_helper.from_array(np.array([2, 30], np.int64), "three"))
    assert_same(model)


def test_a_global_mean_needs_no_transpose_at_all() -> None:
    smaller = assert_same(model_of("y = ReduceMean <axes = [1, 2], keepdims = 0> (t)", "float[N,C] y"))
    assert [node.op_type for node in smaller.graph.node] == ["ReduceMean"]


def test_a_transpose_that_two_need_is_written_once() -> None:
    smaller = assert_same(model_of("a = Flatten(t) b = Flatten <axis = 2> (t) y = Add(a, a) z = Add(b, b)", "float y"))
    assert transposes(smaller) == 1


def test_values_that_a_graph_inside_a_node_reads_keep_name_and_order() -> None:
    body = """
        a = Relu(t)
        c = ReduceMax <keepdims = 0> (a)
        k = Greater(c, scalar)
        y = If (k) <
            then_branch = yes () => (float[1,4,5,3] p) { p = Identity(a) },
            else_branch = no () => (float[1,4,5,3] q) { q = Neg(a) }
        >
    """
    assert_same(model_of(body, "float[1,4,5,3] y"))


def test_a_plain_value_keeps_the_order_of_its_axes() -> None:
    model = model_of(f"a = Relu(t) b = Neg(a) {BACK}", "float[N,C,H,W] y")
    _, [turned] = without_transposes(model, ["a"])
    assert turned.order == (0, 2, 3, 1)
    smaller, [kept] = without_transposes(model, ["a"], ["a"])
    assert kept == View("a")
    assert_same(model, plain=("a",))
    assert transposes(smaller) == 2


def test_what_tf2onnx_does_to_weights_is_done_beforehand() -> None:
    body = "w = Reshape(kernel, three) v = Transpose <perm = [0, 3, 1, 2]> (w) y = Conv(x, v)"
    model = model_of(body, "float[N,C,H,W] y")
    shape = next(tensor for tensor in model.graph.initializer if tensor.name == "three")
    shape.CopyFrom(onnx.numpy_helper.from_array(np.array([2, 3, 3, 3], np.int64), "three"))
    smaller = assert_same(model)
    assert [node.op_type for node in smaller.graph.node] == ["Conv"]
    onnx.checker.check_model(smaller)


_UNARY = ("Relu", "Neg", "Sigmoid", "Identity", "Abs")
_STEPS = st.one_of(
    st.tuples(st.sampled_from(_UNARY), st.just(())),
    st.tuples(st.just("Transpose"), st.permutations([0, 1, 2, 3]).map(tuple)),
    st.tuples(st.sampled_from(("Add", "Mul", "Concat")), st.integers(0, 3)),
    st.tuples(st.just("ReduceMean"), st.lists(st.integers(-4, 3), min_size=1, max_size=2)),
    st.tuples(st.just("Softmax"), st.integers(-4, 3)),
)


@settings(max_examples=150, deadline=None)
@given(steps=st.lists(_STEPS, min_size=1, max_size=8), picks=st.lists(st.integers(0, 99), min_size=16, max_size=16))
def test_any_graph_of_these_gives_the_same_values(steps: list[tuple[str, Any]], picks: list[int]) -> None:
    values = ["t"]
    shapes: dict[str, tuple[int, ...]] = {"t": (1, 4, 5, 3)}
    lines = []
    chosen = iter(picks)
    for number, (op_type, detail) in enumerate(steps):
        source = values[next(chosen) % len(values)]
        rank4, name = shapes[source], f"v{number}"
        if op_type == "Transpose":
            lines.append(f"{name} = Transpose <perm = {list(detail)}> ({source})")
            shapes[name] = tuple(rank4[axis] for axis in detail)
        elif op_type in ("Add", "Mul", "Concat"):
            fitting = [value for value in values if shapes[value] == rank4]
            other = fitting[next(chosen) % len(fitting)]
            attribute = f"<axis = {detail}>" if op_type == "Concat" else ""
            lines.append(f"{name} = {op_type} {attribute} ({source}, {other})")
            sides = (side * 2 if op_type == "Concat" and axis == detail else side for axis, side in enumerate(rank4))
            shapes[name] = tuple(sides)
        elif op_type == "ReduceMean":
            axes = sorted({axis % 4 for axis in detail})
            lines.append(f"{name} = ReduceMean <axes = {axes}> ({source})")
            shapes[name] = tuple(1 if axis in axes else side for axis, side in enumerate(rank4))
        else:
            attribute = f"<axis = {detail}>" if op_type == "Softmax" else ""
            lines.append(f"{name} = {op_type} {attribute} ({source})")
            shapes[name] = rank4
        values.append(name)
    model = model_of("\n".join(lines), f"float {values[-1]}")
    names = values[1:]
    smaller, views = without_transposes(model, names)
    expected, made = values_of(model, names), {name for node in smaller.graph.node for name in node.output}
    found = {**feeds(), **values_of(smaller, [name for name in dict.fromkeys(x.value for x in views) if name in made])}
    for name, view in zip(names, views, strict=True):
        value = found[view.value]
        np.testing.assert_allclose(
            value if view.order is None else value.transpose(view.order), expected[name], rtol=1e-5, atol=1e-6
        )
    assert transposes(smaller) <= len(steps) + 1
