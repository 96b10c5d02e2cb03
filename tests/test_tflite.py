from __future__ import annotations

import re
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from test_corpus import TFLITE, Entry, array_of, require

from onnxfeat import ConversionError, convert_keras
from onnxfeat.converter import tflite_conversion, tflite_models
from onnxfeat.converter.local_runs import run_locally
from onnxfeat.converter.tensorflow_graphs import SINK
from onnxfeat.converter.tflite_models import TFLiteModel, load_tflite
from onnxfeat.converter.tflite_names import Named, layer_names

pytestmark = pytest.mark.keras

Array = NDArray[Any]
OPSET = 17
FLOAT = ("float32", "float16")


@pytest.fixture(autouse=True)
def _without_warnings() -> Iterator[None]:
    """TFLite's interpreter and converter warn that they will move to another package."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def written(model: Any, path: Path, kind: str = "float32", inputs: str = "float32") -> Path:
    """Write a Keras model as a TFLite file.

    Args:
        model: It has one input.
        path: Where to write.
        kind: `float32`, `float16`, `dynamic` (int8 weights) or `int8` (all integers).
        inputs: Element type of inputs and outputs.
    """
    import tensorflow as tf

    random = np.random.default_rng(5)
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    if kind != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if kind == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if kind == "int8":
        shape = (1, *model.inputs[0].shape[1:])
        converter.representative_dataset = lambda: ([random.random(shape, np.float32)] for _ in range(8))
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.as_dtype(inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path.write_bytes(converter.convert())
    return path


def randomized(model: Any) -> Any:
    random = np.random.default_rng(4)
    for weight in model.weights:
        if "moving_variance" in weight.path:
            weight.assign(random.uniform(0.5, 2, weight.shape))
        elif any(name in weight.path for name in ("moving_mean", "beta", "bias", "alpha")):
            weight.assign(random.uniform(-0.3, 0.3, weight.shape))
    return model


def mixed() -> Any:
    """Return a model with a nested, shared block and one layer of many kinds."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)
    picture = keras.Input((16, 18, 3), name="picture")
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="stem")(picture)
    x = layers.BatchNormalization(name="bn")(x)
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, name="dw")(x)
    x = layers.ReLU(6.0, name="relu6")(x)
    x = layers.MaxPooling2D(name="pool")(x)
    block = keras.Sequential(
        [layers.Conv2D(16, 1, name="conv"), layers.PReLU(shared_axes=[1, 2], name="prelu")], name="block_1"
    )
    x = layers.Add(name="add")([x, block(x)])
    x = block(x)
    x = layers.Conv2DTranspose(4, 3, strides=2, activation="relu", name="up")(x)
    x = layers.UpSampling2D(interpolation="bilinear", name="larger")(x)
    x = layers.AveragePooling2D(2, name="avg")(x)
    boxes = layers.Dense(3, activation="sigmoid", name="boxes")(layers.Flatten(name="flat")(x))
    classes = layers.Dense(5, activation="softmax", name="classes")(layers.GlobalAveragePooling2D(name="gap")(x))
    return randomized(keras.Model(picture, [classes, boxes], name="net"))


@pytest.fixture(scope="module")
def mixed_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, model = tmp_path_factory.mktemp("tflite"), mixed()
    return {kind: written(model, folder / f"{kind}.tflite", kind) for kind in ("float32", "float16", "dynamic", "int8")}


def small(*layers: Any, shape: tuple[int, ...] = (12, 14, 3), name: str = "net") -> Any:
    import keras

    keras.utils.set_random_seed(1)
    picture = x = keras.Input(shape, name="picture")
    for layer in layers:
        x = layer(x)
    return randomized(keras.Model(picture, x, name=name))


def fed(source: TFLiteModel, batch: int = 1) -> list[Array]:
    random = np.random.default_rng(3)
    shapes = [[side or batch for side in spec.shape] for spec in source.inputs]
    return [
        random.uniform(size=shape).astype(spec.dtype)
        if spec.dtype.kind == "f"
        else random.integers(np.iinfo(spec.dtype).min, np.iinfo(spec.dtype).max, shape, spec.dtype, endpoint=True)
        for spec, shape in zip(source.inputs, shapes, strict=True)
    ]


def in_onnx(source: TFLiteModel, feeds: list[Array]) -> list[Array]:
    """Return each layer's output from the converted model, run by a plain session."""
    model = source.to_onnx(OPSET)
    onnx.checker.check_model(bare := without_sink(model)[0])
    names = without_sink(model)[1]
    del bare.graph.output[:]
    bare.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(names))
    session = onnxruntime.InferenceSession(bare.SerializeToString(), providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_inputs()] == [spec.name for spec in source.inputs]
    results: list[Array] = session.run(names, {s.name: feed for s, feed in zip(source.inputs, feeds, strict=True)})
    return results


def without_sink(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    (sink,) = (node for node in bare.graph.node if node.name == SINK)
    bare.graph.node.remove(sink)
    del bare.graph.output[-1]
    return bare, list(sink.input)


def in_tflite(path: Path, feeds: list[Array]) -> list[tuple[str, Array]]:
    """Return operator and output, in real units, of everything floating or quantized that TFLite computes of inputs."""
    import tensorflow as tf

    interpreter = tf.lite.Interpreter(
        str(path),
        experimental_preserve_all_tensors=True,
        experimental_op_resolver_type=tf.lite.experimental.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    details = {detail["index"]: detail for detail in interpreter.get_tensor_details()}
    computed = set()
    for detail, feed in zip(interpreter.get_input_details(), feeds, strict=True):
        interpreter.resize_tensor_input(detail["index"], feed.shape)
        computed.add(detail["index"])
    interpreter.allocate_tensors()
    for detail, feed in zip(interpreter.get_input_details(), feeds, strict=True):
        interpreter.set_tensor(detail["index"], feed)
    interpreter.invoke()
    found = []
    for operator in interpreter._get_ops_details():
        if computed.isdisjoint(operator["inputs"]):  # the conversion of a weight
            continue
        computed.update(operator["outputs"])
        first = operator["outputs"][0]
        value, (scale, zero) = interpreter.get_tensor(first), details[first]["quantization"]
        scale = 0.0 if value.dtype == np.float32 else scale
        if value.dtype == np.float32 or scale:
            found.append((operator["op_name"], (value.astype(np.float64) - zero) * scale if scale else value))
    return found


def error(value: Array, expected: Array) -> float:
    """Return the largest difference relative to the range."""
    assert value.shape == expected.shape
    return float(np.abs(value - expected).max() / (np.ptp(expected) or np.abs(expected).max() or 1))


def assert_all_as_in_tflite(path: Path, tolerance: float = 1e-5) -> TFLiteModel:
    source = load_tflite(path)
    feeds = fed(source)
    expected = in_tflite(path, feeds)
    assert [call.layer_class for call in source.calls] == [operator for operator, _ in expected]
    errors = [error(value, other) for value, (_, other) in zip(in_onnx(source, feeds), expected, strict=True)]
    named = dict(zip((call.name for call in source.calls), errors, strict=True))
    assert {name: off for name, off in named.items() if not off <= tolerance} == {}
    return source


@pytest.mark.parametrize("kind", FLOAT)
def test_every_layer_of_a_floating_file_gives_what_tflite_computes(mixed_files: dict[str, Path], kind: str) -> None:
    source = assert_all_as_in_tflite(mixed_files[kind])
    assert source.notes == ()


def test_layers_have_the_names_kinds_and_layouts_that_keras_users_know(mixed_files: dict[str, Path]) -> None:
    source = load_tflite(mixed_files["float32"])
    assert [(call.name, call.layer_class, call.kind, call.layout) for call in source.calls] == [
        ("stem", "CONV_2D", "conv", "NHWC"),
        ("bn/mul_1", "MUL", "other", "NHWC"),
        ("bn", "ADD", "other", "NHWC"),
        ("dw", "DEPTHWISE_CONV_2D", "conv", "NHWC"),
        ("pool", "MAX_POOL_2D", "pool", "NHWC"),
        ("block_1/conv#1", "CONV_2D", "conv", "NHWC"),
        ("block_1/prelu#1", "PRELU", "activation", "NHWC"),
        ("add", "ADD", "other", "NHWC"),
        ("block_1/conv#2", "CONV_2D", "conv", "NHWC"),
        ("block_1/prelu#2", "PRELU", "activation", "NHWC"),
        ("up", "TRANSPOSE_CONV", "conv", "NHWC"),
        ("larger", "RESIZE_BILINEAR", "other", "NHWC"),
        ("avg", "AVERAGE_POOL_2D", "pool", "NHWC"),
        ("flat", "RESHAPE", "other", None),
        ("boxes/MatMul", "FULLY_CONNECTED", "other", None),
        ("boxes", "LOGISTIC", "activation", None),
        ("gap", "MEAN", "pool", "NC"),
        ("classes/MatMul", "FULLY_CONNECTED", "other", None),
        ("classes", "SOFTMAX", "activation", None),
    ]


def test_inputs_and_outputs_are_those_of_the_signature(mixed_files: dict[str, Path]) -> None:
    source = load_tflite(mixed_files["float32"])
    assert [(spec.name, spec.shape, spec.dtype) for spec in source.inputs] == [
        ("picture", (None, 16, 18, 3), np.dtype("float32"))
    ]
    assert sorted(source.output_names) == ["output_0", "output_1"]
    shapes = dict(zip(source.output_names, (value.shape for value in source.run(fed(source))), strict=False))
    assert shapes == {"output_0": (1, 5), "output_1": (1, 3)}
    model = source.to_onnx(OPSET)
    assert [value.name for value in model.graph.input] == ["picture"]
    assert len(model.graph.output) == 3  # and the node that watches


def test_an_output_may_be_an_input_or_another_output(tmp_path: Path) -> None:
    import keras

    picture = keras.Input((4, 5, 3), name="picture")
    curved = keras.layers.ReLU(name="curve")(picture)
    path = written(keras.Model(picture, [curved, picture, curved]), tmp_path / "a.tflite")
    source = load_tflite(path)
    assert [spec.name for spec in source.inputs] == ["picture"]
    assert sorted(source.output_names) == ["output_0", "output_1", "output_2"]
    convert_keras(path, tmp_path / "a.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "a.onnx"), providers=["CPUExecutionProvider"])
    feed = np.random.default_rng(0).normal(size=(2, 4, 5, 3)).astype(np.float32)
    names = [output.name for output in session.get_outputs()]
    given = dict(zip(names, session.run(names, {"picture": feed}), strict=True))
    for name, expected in {"output_0": np.maximum(feed, 0), "output_1": feed, "output_2": np.maximum(feed, 0)}.items():
        np.testing.assert_array_equal(given[name], expected)


def test_a_conversion_prints_nothing(mixed_files: dict[str, Path], tmp_path: Path) -> None:
    code = "import sys; from onnxfeat import convert_keras; convert_keras(sys.argv[1], sys.argv[2])"
    arguments = [sys.executable, "-c", code, str(mixed_files["float32"]), str(tmp_path / "a.onnx")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_an_open_batch_axis_stays_open(mixed_files: dict[str, Path]) -> None:
    source = load_tflite(mixed_files["float32"])
    feeds = fed(source, batch=3)
    together = in_onnx(source, feeds)
    assert {len(value) for value in together} == {3}
    for value, reference in zip(together, source.run(feeds)[2:], strict=True):
        assert error(value, reference) <= 1e-5


def test_a_disturbed_run_is_the_same_for_the_same_seed_and_near_the_plain_one(mixed_files: dict[str, Path]) -> None:
    source = load_tflite(mixed_files["float32"])
    feeds = fed(source)
    plain, first, again, other = (source.run(feeds, disturbed_by=seed) for seed in (None, 1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(first, other, strict=True))
    assert all(0 < error(a, b) < 1e-3 for a, b in zip(first, plain, strict=True))


def test_the_conversion_of_a_file_maps_every_layer(mixed_files: dict[str, Path], tmp_path: Path) -> None:
    conversion = convert_keras(mixed_files["float32"], tmp_path / "net.onnx")
    assert [layer.name for layer in conversion.layer_map if layer.value is None] == []
    assert all(layer.error <= max(1e-5, 2 * layer.noise) for layer in conversion.layers)


# Quantized files


def test_each_quantized_layer_gives_the_integers_of_tflite_or_the_next(mixed_files: dict[str, Path]) -> None:
    path = mixed_files["int8"]
    source = load_tflite(path)
    feeds = fed(source)
    expected = [value for _, value in in_tflite(path, feeds)]
    model, watched = without_sink(source.to_onnx(OPSET))
    expected = [value.astype(np.float32) for value in expected]
    found = run_locally(model, watched, {"picture": feeds[0]}, expected, steps=True)
    for call, value, reference in zip(source.calls, found, expected, strict=True):
        steps = np.unique(np.round(reference, 6))
        step = np.diff(steps).min() if len(steps) > 1 else 1.0
        assert np.abs(value - reference).max() <= 1.01 * step, call.name
    assert any(not np.array_equal(value, reference) for value, reference in zip(found, expected, strict=True))
    for value, reference in zip(run_locally(model, watched, {"picture": feeds[0]}, expected), expected, strict=True):
        assert np.abs(value - reference).max() <= 1e-5 * np.ptp(reference)  # one step is no difference here


def test_a_quantized_value_that_is_two_steps_off_stays_off() -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[4] x) => (float[4] y) <float scale = {0.5}, int8 zero = {3}>
        { q = QuantizeLinear(x, scale, zero) y = DequantizeLinear(q, scale, zero) }
    """)
    feeds = {"x": np.array([1, 1, 1, 1], np.float32)}
    (value,) = run_locally(model, ["y"], feeds, [np.array([1, 0.5, 1.5, 2], np.float32)])
    assert value.tolist() == [1, 0.5, 1.5, 1]
    (value,) = run_locally(model, ["y"], feeds, [np.array([1, 0.5, 1.5, 2], np.float32)], steps=True)
    assert value.tolist() == [1, 1, 1, 1]


def test_an_integer_file_whose_layers_round_otherwise_is_converted(
    mixed_files: dict[str, Path], tmp_path: Path
) -> None:
    conversion = convert_keras(mixed_files["int8"], tmp_path / "net.onnx")
    assert [layer.name for layer in conversion.layer_map if layer.value is None] == []
    assert conversion.worst.error > 1e-4  # steps


def test_the_first_conv_of_a_quantized_file_is_what_numpy_makes_of_its_integers(tmp_path: Path) -> None:
    import tensorflow as tf
    from keras import layers

    path = written(small(layers.Conv2D(4, 1, activation="relu", name="conv")), tmp_path / "a.tflite", "int8", "int8")
    source = load_tflite(path)
    (picture,) = fed(source)
    interpreter = tf.lite.Interpreter(str(path))
    interpreter.allocate_tensors()
    details = {detail["index"]: detail for detail in interpreter.get_tensor_details()}
    (operator,) = (x for x in interpreter._get_ops_details() if x["op_name"] == "CONV_2D")
    integers = [interpreter.get_tensor(index) for index in operator["inputs"][1:]]
    scales = [details[index]["quantization_parameters"]["scales"] for index in operator["inputs"][1:]]
    weights = integers[0].reshape(4, 3) * scales[0][:, None].astype(np.float64)
    scale, zero = details[operator["inputs"][0]]["quantization"]
    real = (picture.astype(np.float64) - zero) * scale
    exact = np.maximum(real @ weights.T + integers[1] * scales[1].astype(np.float64), 0)
    step, _ = details[operator["outputs"][0]]["quantization"]
    exact = np.minimum(exact, 255 * step)
    (value,) = in_onnx(source, [picture])
    assert np.abs(value - exact).max() <= 0.51 * step
    assert np.ptp(value) > 20 * step


def test_inputs_and_outputs_of_an_integer_file_stay_integers_and_a_note_tells_their_scale(tmp_path: Path) -> None:
    from keras import layers

    path = written(small(layers.Conv2D(4, 3, name="conv")), tmp_path / "a.tflite", "int8", "uint8")
    source = load_tflite(path)
    assert [spec.dtype for spec in source.inputs] == [np.dtype("uint8")]
    model = source.to_onnx(OPSET)
    kinds = [model.graph.input[0].type.tensor_type.elem_type, model.graph.output[0].type.tensor_type.elem_type]
    assert kinds == [onnx.TensorProto.UINT8] * 2
    (note,) = source.notes
    assert re.fullmatch(r"input 'picture' takes integers \(UINT8\) that stand for \(value - 0\) \* 0\.0039.*", note)


def test_a_quantized_layer_that_gives_other_integers_is_refused_by_name(
    mixed_files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = tflite_conversion.onnx_of_tflite

    def tampered(*arguments: Any) -> onnx.ModelProto:
        model = original(*arguments)
        weights = next(
            tensor for tensor in model.graph.initializer if list(tensor.dims) == [1, 1, 16] or tensor.dims == [16, 1, 1]
        )
        array = onnx.numpy_helper.to_array(weights)
        weights.CopyFrom(onnx.numpy_helper.from_array((array + 20).astype(array.dtype), weights.name))
        return model

    monkeypatch.setattr(tflite_models, "onnx_of_tflite", tampered)
    with pytest.raises(ConversionError, match=r"layer 'block_1/prelu#1' \(PRELU\) differs from TFLite .* steps"):
        load_tflite(mixed_files["int8"]).to_onnx(OPSET)


def test_disturbing_a_quantized_file_moves_values_by_steps(mixed_files: dict[str, Path]) -> None:
    source = load_tflite(mixed_files["int8"])
    feeds = fed(source)
    names = [call.name for call in source.calls]
    position = 2 + names.index("stem")
    plain, moved = source.run(feeds)[position], source.run(feeds, disturbed_by=1)[position]
    step = np.diff(np.unique(np.round(plain, 6))).min()
    moves = np.abs(moved - plain) / step
    assert 0 < moves.max() < 6  # one for the layer, and what it makes of the input's
    assert np.abs(moves - np.round(moves)).max() < 0.01


def test_weights_of_eight_bits_become_floats_and_a_note_says_what_tflite_makes_of_them(tmp_path: Path) -> None:
    """The oracle is Keras with the integers of the file as weights."""
    import tensorflow as tf
    from keras import layers

    model = small(layers.Conv2D(64, 5, activation="relu", name="conv"), layers.Conv2D(32, 3, name="then"))
    path = written(model, tmp_path / "a.tflite", "dynamic")
    interpreter = tf.lite.Interpreter(str(path))
    quantized = {}
    for detail in interpreter.get_tensor_details():
        if detail["dtype"] == np.int8:
            scales = detail["quantization_parameters"]["scales"].reshape(-1, 1, 1, 1)
            integers = interpreter.get_tensor(detail["index"])
            quantized[integers.shape] = (integers * scales).transpose(1, 2, 3, 0)
    for layer, shape in ((model.get_layer("conv"), (64, 5, 5, 3)), (model.get_layer("then"), (32, 3, 3, 64))):
        layer.set_weights([quantized[shape], layer.get_weights()[1]])
    source = load_tflite(path)
    feeds = fed(source)
    conv, then = in_onnx(source, feeds)
    assert error(conv, np.asarray(model.get_layer("conv")(feeds[0]))) <= 1e-5
    assert error(then, np.asarray(model(feeds[0]))) <= 1e-5
    assert error(then, in_tflite(path, feeds)[1][1]) > 1e-4  # as TFLite quantizes on the fly
    (note,) = source.notes
    found = re.search(r"inputs of 2 layers on the fly.* by up to (\d+\.\d)% of their range", note)
    assert found
    assert 0 < float(found[1]) < 10


# What tf2onnx does not convert by itself


def activation(name: str, function: Callable[[Any], Any]) -> Any:
    from keras import layers

    class Function(layers.Layer):  # type: ignore[misc]
        def call(self, x: Any) -> Any:
            return function(x)

    return Function(name=name)


@pytest.mark.parametrize("approximate", [True, False])
def test_gelu_is_converted(tmp_path: Path, approximate: bool) -> None:
    import keras

    gelu = activation("gelu", lambda x: keras.activations.gelu(x, approximate=approximate))
    path = written(small(keras.layers.Conv2D(4, 3, name="conv"), gelu), tmp_path / "a.tflite")
    assert [call.layer_class for call in assert_all_as_in_tflite(path).calls][-1] == "GELU"


def test_relus_that_end_at_one_are_converted_alone_and_fused(tmp_path: Path) -> None:
    import keras

    clip = activation("clip", lambda x: keras.ops.clip(x, -1, 1))
    model = small(clip, keras.layers.Conv2D(4, 3, name="conv"), activation("end", lambda x: keras.ops.clip(x, -1, 1)))
    path = written(model, tmp_path / "a.tflite")
    assert_all_as_in_tflite(path)


def test_volumes_are_converted(tmp_path: Path) -> None:
    from keras import layers

    model = small(
        layers.Conv3D(4, 3, activation="relu", name="conv"),
        layers.Conv3D(3, 2, strides=2, padding="same", name="half"),
        shape=(6, 8, 9, 2),
    )
    source = assert_all_as_in_tflite(written(model, tmp_path / "a.tflite"))
    assert [call.layout for call in source.calls if call.kind == "conv"] == ["NDHWC", "NDHWC"]


@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_a_transposed_convolution_keeps_its_bias_and_activation(tmp_path: Path, kind: str) -> None:
    from keras import layers

    up = layers.Conv2DTranspose(5, 4, strides=2, padding="same", activation="relu", name="up")
    path = written(small(up), tmp_path / "a.tflite", kind, "int8")
    assert "up" in {call.name for call in assert_all_as_in_tflite(path, 1e-5 if kind == "float32" else 0.005).calls}


def test_a_transposed_convolution_with_a_kernel_below_its_stride_is_converted(tmp_path: Path) -> None:
    from keras import layers

    up = layers.Conv2DTranspose(5, 1, strides=2, padding="same", name="up")
    source = assert_all_as_in_tflite(written(small(up), tmp_path / "a.tflite"))
    assert source.run(fed(source))[0].shape == (1, 24, 28, 5)


def test_convs_of_one_axis_with_dilations_and_groups_are_converted(tmp_path: Path) -> None:
    from keras import layers

    line = small(
        layers.Conv1D(6, 3, padding="causal", activation="relu", name="causal"),
        layers.SeparableConv1D(5, 3, name="separable"),
        layers.MaxPooling1D(2, name="pool"),
        shape=(24, 4),
    )
    assert_all_as_in_tflite(written(line, tmp_path / "line.tflite"))
    wide = small(
        layers.Conv2D(6, 3, dilation_rate=2, padding="same", name="wide"),
        layers.DepthwiseConv2D(3, dilation_rate=2, name="deep"),
        layers.Conv2D(6, 3, groups=3, name="grouped"),
    )
    assert_all_as_in_tflite(written(wide, tmp_path / "wide.tflite"))


def edited(path: Path, change: Callable[[Any], None]) -> Path:
    """Write a changed copy of a TFLite file, with TensorFlow's own tools."""
    from tensorflow.lite.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model(str(path))
    change(model)
    target = path.with_name("edited.tflite")
    flatbuffer_utils.write_model(model, str(target))
    return target


def test_tensors_need_no_names_of_their_own(mixed_files: dict[str, Path]) -> None:
    def rename(model: Any) -> None:
        model.signatureDefs = None
        for tensor in model.subgraphs[0].tensors:
            tensor.name = b"same"

    source = assert_all_as_in_tflite(edited(mixed_files["float32"], rename))
    assert source.inputs[0].name == "same"
    assert len(set(source.output_names)) == 2
    names = [call.name for call in source.calls]
    assert len(set(names)) == len(names)


def test_scales_of_floating_tensors_mean_nothing(mixed_files: dict[str, Path]) -> None:
    from tensorflow.lite.python import schema_py_generated as schema

    def add_scales(model: Any) -> None:
        for tensor in model.subgraphs[0].tensors:
            if tensor.type == schema.TensorType.FLOAT32:
                tensor.quantization = schema.QuantizationParametersT()
                tensor.quantization.scale, tensor.quantization.zeroPoint = [0.5], [3]

    assert_all_as_in_tflite(edited(mixed_files["float32"], add_scales))


def test_of_several_subgraphs_the_first_is_taken_and_a_note_says_so(mixed_files: dict[str, Path]) -> None:
    import copy

    def double(model: Any) -> None:
        model.subgraphs.append(copy.deepcopy(model.subgraphs[0]))
        model.subgraphs[1].name = b"decode"

    source = assert_all_as_in_tflite(edited(mixed_files["float32"], double))
    assert source.notes == ("the file has 2 subgraphs: the first was taken, not decode",)


# Names


def names_of(*tensors: str, operator: str = "ADD") -> list[str]:
    return layer_names([Named(operator=operator, tensor=name, constants=(), source=None) for name in tensors])


def test_scopes_of_keras_2_give_layer_names_with_their_own_numbers() -> None:
    assert names_of(
        "model_1/conv2d_1/Relu;model_1/conv2d_1/BiasAdd;model_1/conv2d_1/Conv2D",
        "model_1/block_2/conv2d_2/Conv2D1",
        "model_1/bn/FusedBatchNormV3",
        "StatefulPartitionedCall/model_1/flatten/Reshape",
        operator="CONV_2D",
    ) == ["conv2d_1", "block_2/conv2d_2", "bn", "flatten"]


def test_numbers_that_keras_3_adds_are_taken_off() -> None:
    assert names_of(
        "net_1/conv2d_1_1/convolution", "net_1/conv2d_1_2/convolution", "net_1/gn_1/moments/mean", "net_1/add_1/Add"
    ) == ["conv2d_1#1", "conv2d_1#2", "gn", "add"]


def test_functions_without_a_scope_do_not_change_what_other_layers_are_called() -> None:
    assert names_of("convolution/ExpandDims1", "net_1/conv1d_1/Relu", "net_1/conv1d_1_2/Relu", "net_1/add_1/Add") == [
        "convolution",
        "conv1d",
        "conv1d_1",
        "add",
    ]


def test_operators_of_one_name_are_calls_of_a_layer_only_where_they_come_again() -> None:
    def named(*operators: str) -> list[str]:
        each = [Named(operator=name, tensor="m/conv1d/BiasAdd", constants=(), source=None) for name in operators]
        return layer_names(each)

    assert named("CONV_2D", "RESHAPE") == ["conv1d/BiasAdd", "conv1d"]
    assert named("CONV_2D", "CONV_2D") == ["conv1d#1", "conv1d#2"]
    assert named("CONV_2D", "RESHAPE", "CONV_2D", "RESHAPE") == [
        "conv1d#1/BiasAdd",
        "conv1d#1",
        "conv1d#2/BiasAdd",
        "conv1d#2",
    ]


def test_plain_names_stay_as_they_are_and_twins_are_numbered() -> None:
    assert names_of("conv2d", "add__xeno_compat__1", "conv2d_1") == ["conv2d", "add__xeno_compat__1", "conv2d_1"]
    assert names_of("Identity", "Identity_1", "StatefulPartitionedCall:0") == ["add#1", "add#2", "add#3"]


def test_a_conv_is_named_after_its_own_operation_and_weights_not_after_what_is_fused_or_shared() -> None:
    fused = Named(
        operator="DEPTHWISE_CONV_2D",
        tensor="m/bn_1/FusedBatchNormV3;m/bn_79/FusedBatchNormV3;m/dw_37/depthwise;m/dw_2/depthwise",
        constants=("m/bn_1/FusedBatchNormV3;m/dw_2/depthwise",),
        source=None,
    )
    nameless = Named(operator="FULLY_CONNECTED", tensor="Identity", constants=("m/dense/MatMul",), source=0)
    function = Named(operator="SOFTMAX", tensor="Identity_1", constants=(), source=1)
    assert layer_names([fused, nameless, function]) == ["dw_2", "dense/MatMul", "dense"]


# What is refused


def test_files_that_are_no_tflite_files_get_a_sentence_each(mixed_files: dict[str, Path], tmp_path: Path) -> None:
    content = mixed_files["float32"].read_bytes()
    cases = {
        "empty": (b"", "is empty"),
        "other": (b"PK\x03\x04 is a zip file", "is no TFLite file: it has not the identifier TFL3"),
        "cut": (content[:3000], "is damaged or cut off"),
        "noise": (content[:8] + b"\xff" * 400, "is damaged or cut off"),
    }
    for name, (wrong, message) in cases.items():
        path = tmp_path / f"{name}.tflite"
        path.write_bytes(wrong)
        with pytest.raises(ConversionError, match=message):
            load_tflite(path)
    with pytest.raises(ConversionError, match="there is no file"):
        load_tflite(tmp_path / "absent.tflite")
    with pytest.raises(ConversionError, match="can't be read"):
        load_tflite(tmp_path)


def test_a_custom_operator_is_refused_with_its_name_and_layer(mixed_files: dict[str, Path]) -> None:
    from tensorflow.lite.python import schema_py_generated as schema

    def customize(model: Any) -> None:
        operator = next(x for x in model.subgraphs[0].operators if model.operatorCodes[x.opcodeIndex].builtinCode == 17)
        code = schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.CUSTOM
        code.customCode = b"TFLite_Detection_PostProcess"
        model.operatorCodes.append(code)
        operator.opcodeIndex = len(model.operatorCodes) - 1
        operator.builtinOptions, operator.builtinOptionsType = None, 0

    with pytest.raises(ConversionError, match=r"operator TFLite_Detection_PostProcess of layer '.*pool.*' is a custom"):
        load_tflite(edited(mixed_files["float32"], customize))


def concrete(function: Callable[[Any], Any], shape: tuple[int, ...], path: Path) -> Path:
    """Write a TensorFlow function as a TFLite file."""
    import tensorflow as tf

    traced = tf.function(function, input_signature=[tf.TensorSpec(shape, tf.float32)])
    converter = tf.lite.TFLiteConverter.from_concrete_functions([traced.get_concrete_function()])
    path.write_bytes(converter.convert())
    return path


def test_an_operator_of_tensorflow_itself_is_refused(tmp_path: Path) -> None:
    import tensorflow as tf

    traced = tf.function(lambda x: tf.math.erf(x) + 1.0, input_signature=[tf.TensorSpec((2, 3), tf.float32)])
    converter = tf.lite.TFLiteConverter.from_concrete_functions([traced.get_concrete_function()])
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS, tf.lite.OpsSet.SELECT_TF_OPS]
    path = tmp_path / "flex.tflite"
    path.write_bytes(converter.convert())
    with pytest.raises(ConversionError, match=r"operator FlexErf of layer .* is TensorFlow's Erf.*: convert the model"):
        load_tflite(path)


def test_control_flow_is_refused_with_its_operator(tmp_path: Path) -> None:
    import tensorflow as tf

    def loop(x: Any) -> Any:
        return tf.while_loop(lambda y: tf.reduce_sum(y) < 100.0, lambda y: (y * 2.0 + 1.0,), (x,))[0]

    with pytest.raises(ConversionError, match=r"operator WHILE of layer .* is control flow.*convert the model that"):
        load_tflite(concrete(loop, (2, 3), tmp_path / "loop.tflite"))


def test_an_operator_that_tf2onnx_can_not_convert_is_named_with_its_layer(tmp_path: Path) -> None:
    from keras import layers

    lstm = small(layers.LSTM(3, name="memory"), shape=(6, 5))
    import tensorflow as tf

    def run(x: Any) -> Any:
        return lstm(x)

    path = concrete(run, (1, 6, 5), tmp_path / "lstm.tflite")
    operators = {x["op_name"] for x in tf.lite.Interpreter(str(path))._get_ops_details()}
    assert operators & {"UNIDIRECTIONAL_SEQUENCE_LSTM", "WHILE"}
    with pytest.raises(ConversionError, match=r"operator (UNIDIRECTIONAL_SEQUENCE_LSTM|WHILE) of layer '.*memory"):
        load_tflite(path).to_onnx(OPSET)


def test_activations_of_sixteen_bits_are_refused(tmp_path: Path) -> None:
    import tensorflow as tf
    from keras import layers

    converter = tf.lite.TFLiteConverter.from_keras_model(small(layers.Conv2D(4, 3, name="conv")))
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([np.ones((1, 12, 14, 3), np.float32)] for _ in range(2))
    converter.target_spec.supported_ops = [tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8]
    path = tmp_path / "a.tflite"
    path.write_bytes(converter.convert())
    with pytest.raises(ConversionError, match=r"is quantized to 16 bits.*: quantize to 8 bits"):
        load_tflite(path)


def test_a_wrong_opset_is_refused(mixed_files: dict[str, Path]) -> None:
    with pytest.raises(ConversionError, match="opset 99"):
        load_tflite(mixed_files["float32"]).to_onnx(99)


# Real files


@pytest.mark.corpus
@pytest.mark.parametrize("entry", TFLITE, ids=lambda entry: entry.path.stem)
def test_every_layer_of_a_real_file_gives_what_tflite_computes(entry: Entry, request: pytest.FixtureRequest) -> None:
    require(entry, request)
    source = load_tflite(entry.path)
    counted = Counter(call.layer_class for call in source.calls if call.kind in ("conv", "pool"))
    assert counted == entry.model["layers"]
    feeds = [array_of(entry)]
    hybrid = any("on the fly" in note for note in source.notes)  # then TFLite itself computes with rounded inputs
    expected = source.run(feeds)[len(source.output_names) :] if hybrid else [x for _, x in in_tflite(entry.path, feeds)]
    runs = [source.run(feeds, disturbed_by=seed)[len(source.output_names) :] for seed in range(4)]
    errors = {}
    for call, value, reference, *moved in zip(source.calls, in_onnx(source, feeds), expected, *runs, strict=True):
        noise = max(error(other, reference) for other in moved)
        errors[call.name] = error(value, reference) / max(1e-5, 2 * noise)
    assert {name: off for name, off in errors.items() if not off <= 1} == {}
