from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from test_corpus import EVERYTHING, SAVED, Entry, array_of, require

from onnxfeat import ConversionError, convert_keras, list_layers
from onnxfeat.converter.saved_models import SavedModel, load_saved_model
from onnxfeat.converter.tensorflow_graphs import SINK

pytestmark = pytest.mark.keras

Array = NDArray[Any]
CLOSE = 1e-5  # of a layer's range


@pytest.fixture(scope="module")
def keras() -> Any:
    import keras

    return keras


@pytest.fixture(scope="module")
def tf() -> Any:
    import tensorflow

    return tensorflow


@pytest.fixture(autouse=True)
def _default_names_begin_anew(request: pytest.FixtureRequest) -> None:
    if "keras" in request.fixturenames:
        request.getfixturevalue("keras").backend.clear_session()


def noise(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def with_random_weights(model: Any) -> Any:
    random = np.random.default_rng(1)
    for variable in model.weights:
        if variable.dtype.startswith("float"):
            values = random.normal(0, 0.4, variable.shape)
            variable.assign(np.abs(values) + 0.5 if "variance" in variable.path else values)
    return model


def exported(model: Any, folder: Path) -> Path:
    model.export(folder, verbose=False)
    return folder


def saved(tf: Any, module: Any, folder: Path, **signatures: Any) -> Path:
    """Save a `tf.Module`; signatures are its functions, by name."""
    chosen = signatures or {"serving_default": module.__call__}
    concrete = {name: function.get_concrete_function() for name, function in chosen.items()}
    tf.saved_model.save(module, str(folder), signatures=concrete)
    return folder


def module_of(tf: Any, function: Callable[..., Any], *specs: Any) -> Any:
    """Return a `tf.Module` that computes a function of inputs of these shapes (or `tf.TensorSpec`s), x0, x1, ..."""
    taken = [
        spec if isinstance(spec, tf.TensorSpec) else tf.TensorSpec(spec, tf.float32, name=f"x{number}")
        for number, spec in enumerate(specs)
    ]
    module = tf.Module()
    module.__call__ = tf.function(function, input_signature=taken)
    return module


def names(model: SavedModel) -> list[str]:
    return [call.name for call in model.calls]


def relative_error(value: Array, expected: Array) -> float:
    assert value.shape == expected.shape
    extent = float(np.ptp(expected)) or 1.0
    return float(np.abs(value.astype(np.float64) - expected).max()) / extent


def by_onnx(model: SavedModel, feeds: Sequence[Array]) -> dict[str, Array]:
    """Convert, run in ONNX Runtime, and return what each output and each layer gives, in TensorFlow's axes."""
    converted = model.to_onnx(17)
    graph = converted.graph
    watched: list[str] = []
    for sink in [node for node in graph.node if node.name == SINK]:
        watched = list(sink.input)
        for node in [node for node in graph.node if node is sink or set(node.input) & set(sink.output)]:
            graph.node.remove(node)
        del graph.output[-1]
    outputs = [output.name for output in graph.output]
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(watched) if name not in outputs)
    session = onnxruntime.InferenceSession(converted.SerializeToString(), providers=["CPUExecutionProvider"])
    given = session.run([*outputs, *watched], {spec.name: x for spec, x in zip(model.inputs, feeds, strict=True)})
    return dict(zip([*model.output_names, *names(model)], given, strict=True))


def by_tensorflow(model: SavedModel, feeds: Sequence[Array], **options: Any) -> dict[str, Array]:
    return dict(zip([*model.output_names, *names(model)], model.run(feeds, **options), strict=True))


def layers_of_keras(keras: Any, model: Any, feeds: Array) -> dict[str, Array]:
    """Return what Keras itself gives for each layer, by the layer's name."""
    layers = [layer for layer in model.layers if not isinstance(layer, keras.layers.InputLayer)]
    values = keras.Model(model.inputs, [layer.output for layer in layers])([feeds], training=False)
    return {layer.name: np.asarray(value) for layer, value in zip(layers, values, strict=True)}


def assert_close(found: dict[str, Array], expected: dict[str, Array]) -> None:
    errors = {name: relative_error(found[name], value) for name, value in expected.items()}
    assert {name: error for name, error in errors.items() if not error <= CLOSE} == {}


# Keras 3


def test_layers_of_a_keras_3_export_bear_their_names_and_give_what_keras_gives(keras: Any, tmp_path: Path) -> None:
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((24, 24, 3)),
            layers.Rescaling(1 / 255),
            layers.Conv2D(4, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(5, 3),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.MaxPooling2D(),
            layers.DepthwiseConv2D(3, padding="same"),
            layers.LeakyReLU(),
            layers.UpSampling2D(),
            layers.SeparableConv2D(4, 3),
            layers.Conv2DTranspose(3, 2, strides=2),
            layers.GlobalAveragePooling2D(),
            layers.Dense(3, activation="softmax"),
        ]
    )
    picture = np.random.default_rng(0).integers(0, 256, (2, 24, 24, 3)).astype(np.float32)
    expected = layers_of_keras(keras, with_random_weights(model), picture)
    loaded = load_saved_model(exported(model, tmp_path / "model"))
    assert names(loaded) == list(expected)
    assert [call.layer_class for call in loaded.calls] == [type(layer).__name__ for layer in model.layers]
    kinds = "other conv pool conv norm activation pool conv activation other conv conv pool other".split()
    assert [call.kind for call in loaded.calls] == kinds
    assert [call.layout for call in loaded.calls] == ["NHWC"] * 12 + ["NC"] * 2
    assert loaded.inputs[0].shape == (None, 24, 24, 3)
    assert loaded.computed_by.startswith("TensorFlow ")
    assert_close(by_tensorflow(loaded, [picture]), expected)
    assert_close(by_onnx(loaded, [picture]), expected)


def test_a_second_export_of_the_same_model_has_the_same_names(keras: Any, tmp_path: Path) -> None:
    layers = keras.layers
    model = keras.Sequential(
        [keras.Input((16, 16, 3)), layers.Conv2D(2, 3), layers.ReLU(), layers.Conv2D(2, 3), layers.ReLU()]
    )
    first = load_saved_model(exported(model, tmp_path / "first"))
    second = load_saved_model(exported(model, tmp_path / "second"))
    assert names(first) == names(second) == ["conv2d", "re_lu", "conv2d_1", "re_lu_1"]


def test_a_keras_3_export_without_weights_has_its_names_too(keras: Any, tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.MaxPooling2D(), keras.layers.ReLU()])
    assert names(load_saved_model(exported(model, tmp_path / "model"))) == ["max_pooling2d", "re_lu"]


def subclassed(keras: Any, *parts: Any) -> Any:
    """Return a subclassed model that calls these layers, one after the other; Keras names their weights after it."""

    class Net(keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.parts = list(parts)

        def call(self, x: Any) -> Any:
            for part in self.parts:
                x = part(x)
            return x

    return Net()


def test_the_scope_of_a_small_model_is_no_layer(keras: Any, tmp_path: Path) -> None:
    layers, volume = keras.layers, keras.Input((4, 5, 3, 3))
    models = {
        "sequential": keras.Sequential([keras.Input((6, 6, 3)), layers.Flatten(name="flat"), layers.ELU(name="elu")]),
        "one": keras.Model(volume, layers.MaxPooling3D(2, name="halve")(volume)),
        "subclassed": subclassed(
            keras,
            layers.AveragePooling1D(2, name="pool"),
            layers.LeakyReLU(name="curve"),
            layers.Conv1D(2, 3, name="conv"),
        ),
        "nested": keras.Sequential(
            [keras.Input((8, 8, 3)), keras.Sequential([layers.ZeroPadding2D(name="pad")], name="inner")]
        ),
        "bare": keras.Model(volume, keras.ops.relu(volume)),
    }
    models["subclassed"](noise(2, 8, 3))
    found = {name: names(load_saved_model(exported(model, tmp_path / name))) for name, model in models.items()}
    assert found == {
        "sequential": ["flat", "elu"],
        "one": ["halve"],
        "subclassed": ["pool", "curve", "conv"],
        "nested": ["inner/pad"],
        "bare": ["Relu"],
    }


def test_scopes_that_functions_open_inside_a_layer_are_no_layers(keras: Any, tf: Any, tmp_path: Path) -> None:
    class Centered(keras.layers.Layer):  # type: ignore[misc]
        def call(self, x: Any) -> Any:
            for _ in range(2):  # scopes `moments` and `moments_1`
                mean, variance = tf.nn.moments(x, [1, 2], keepdims=True)
                x = (x - mean) / tf.sqrt(variance + 1)
            return x

    inside = [keras.layers.ReLU(name="curve"), Centered(name="centered"), keras.layers.Conv2D(2, 1, name="conv")]
    model = keras.Sequential([keras.Input((6, 6, 3)), *inside])
    picture = noise(2, 6, 6, 3)
    loaded = load_saved_model(exported(with_random_weights(model), tmp_path / "model"))
    assert names(loaded) == ["curve", "centered", "conv"]
    expected = layers_of_keras(keras, model, picture)
    assert_close(by_onnx(loaded, [picture]), expected)


@pytest.mark.parametrize("form", ["sequential", "subclassed", "module"])
def test_a_keras_3_model_that_tensorflow_saved_has_its_weights_and_names(
    keras: Any, tf: Any, tmp_path: Path, form: str
) -> None:
    layers = [
        keras.layers.Conv2D(3, 3, name="conv_1"),
        keras.layers.BatchNormalization(name="norm"),
        keras.layers.MaxPooling2D(2, name="pool"),
    ]
    model = subclassed(keras, *layers) if form == "subclassed" else keras.Sequential(layers)
    picture = noise(2, 8, 8, 3)
    model(picture)
    with_random_weights(model)
    if form == "module":
        module = module_of(tf, lambda x0: {"y": model(x0)}, [None, 8, 8, 3])
        module.model = model
        saved(tf, module, tmp_path / "model")
    else:
        tf.saved_model.save(model, str(tmp_path / "model"))
    loaded = load_saved_model(tmp_path / "model")
    assert names(loaded) == ["conv_1", "norm", "pool"]
    expected = {"conv_1": np.asarray(layers[0](picture)), "pool": np.asarray(model(picture, training=False))}
    assert_close(by_tensorflow(loaded, [picture]), expected)
    assert_close(by_onnx(loaded, [picture]), expected)


def test_a_model_that_computes_in_bfloat16_is_converted_in_float32_and_a_note_says_so(
    keras: Any, tmp_path: Path
) -> None:
    def model(policy: str) -> Any:
        layers = [
            keras.layers.Conv2D(4, 3, activation="relu", name="conv", dtype=policy),
            keras.layers.GroupNormalization(2, name="norm", dtype=policy),
            keras.layers.Dense(3, name="dense", dtype=policy),
        ]
        return with_random_weights(keras.Sequential([keras.Input((8, 8, 3)), *layers]))

    picture = noise(2, 8, 8, 3)
    expected = layers_of_keras(keras, model("float32"), picture)
    loaded = load_saved_model(exported(model("mixed_bfloat16"), tmp_path / "model"))
    assert len(loaded.notes) == 1
    assert "bfloat16, which ONNX Runtime does not: converted, and compared, in float32" in loaded.notes[0]
    assert names(loaded) == ["conv", "norm", "dense"]
    assert_close(by_tensorflow(loaded, [picture]), expected)
    assert_close(by_onnx(loaded, [picture]), expected)
    conversion = convert_keras(tmp_path / "model", tmp_path / "model.onnx")
    assert loaded.notes[0] in conversion.notes


def test_weights_and_inputs_of_bfloat16_become_float32(keras: Any, tmp_path: Path) -> None:
    inputs = keras.Input((5,), dtype="bfloat16", name="numbers")
    model = with_random_weights(keras.Model(inputs, keras.layers.Dense(3, name="dense", dtype="bfloat16")(inputs)))
    kernel, bias = (np.asarray(keras.ops.cast(weight, "float32")) for weight in model.weights)
    loaded = load_saved_model(exported(model, tmp_path / "model"))
    assert [spec.dtype for spec in loaded.inputs] == [np.dtype("float32")]
    numbers = noise(2, 5)
    assert_close(by_onnx(loaded, [numbers]), {"dense": numbers @ kernel + bias})


def test_nested_and_shared_layers_have_paths_and_numbers(keras: Any, tmp_path: Path) -> None:
    layers = keras.layers
    block = keras.Sequential(
        [keras.Input((8, 8, 4)), layers.Conv2D(4, 3, name="conv"), layers.BatchNormalization(name="norm")],
        name="block_1",
    )
    pools = keras.Sequential([keras.Input((6, 6, 4)), layers.AveragePooling2D(2), layers.MaxPooling2D()], name="pools")
    shared = layers.Conv2D(4, 3, padding="same", name="shared")
    pool = layers.MaxPooling2D(2, padding="same", name="halve")
    x = keras.Input((16, 16, 3))
    first = shared(pool(layers.Conv2D(4, 3, padding="same", name="stem")(x)))
    last = pool(shared(pools(block(first))))
    model = with_random_weights(keras.Model(x, last))
    picture = noise(2, 16, 16, 3)
    loaded = load_saved_model(exported(model, tmp_path / "model"))
    assert names(loaded) == [
        "stem",
        "halve#1",
        "shared#1",
        "block_1/conv",
        "block_1/norm",
        "pools/average_pooling2d",
        "pools/max_pooling2d",
        "shared#2",
        "halve#2",
    ]
    expected = {
        "shared#1": np.asarray(keras.Model(x, first)(picture)),
        "block_1/norm": np.asarray(block(keras.Model(x, first)(picture), training=False)),
        "halve#2": np.asarray(model(picture, training=False)),
        "output_0": np.asarray(model(picture, training=False)),
    }
    assert_close(by_tensorflow(loaded, [picture]), expected)
    assert_close(by_onnx(loaded, [picture]), expected)


def test_a_subclassed_model_shows_its_layers_and_the_functions_that_it_calls(
    keras: Any, tf: Any, tmp_path: Path
) -> None:
    class Block(keras.layers.Layer):  # type: ignore[misc]
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.conv = keras.layers.Conv2D(4, 3, padding="same", name="conv")
            self.norm = keras.layers.BatchNormalization(name="norm")

        def call(self, x: Any) -> Any:
            return tf.nn.relu(self.norm(self.conv(x)) + x)

    class Net(keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.one, self.two = keras.layers.Conv2D(4, 3, name="stem"), Block(name="one"), Block(name="two")

        def call(self, x: Any) -> Any:
            return self.two(self.one(tf.nn.relu(self.stem(x))))

    model = Net()
    picture = noise(1, 12, 12, 3)
    model(picture)
    with_random_weights(model)
    loaded = load_saved_model(exported(model, tmp_path / "model"))
    assert names(loaded) == "stem Relu one/conv one/norm one/Relu two/conv two/norm two/Relu".split()
    assert {call.name: call.kind for call in loaded.calls}["two/norm"] == "norm"
    after = model.one(tf.nn.relu(model.stem(picture)))
    expected = {"one/Relu": np.asarray(after), "two/conv": np.asarray(model.two.conv(after))}
    feeds = [np.concatenate([picture, picture])] if loaded.inputs[0].shape[0] is None else [picture]
    found = by_onnx(loaded, feeds)
    assert_close({name: value[:1] for name, value in found.items()}, expected)


def test_several_inputs_and_outputs_keep_their_names(keras: Any, tmp_path: Path) -> None:
    layers = keras.layers
    picture, numbers = keras.Input((8, 8, 3), name="picture"), keras.Input((4,), name="numbers")
    pooled = layers.GlobalMaxPooling2D(name="pool")(layers.Conv2D(3, 3, name="conv")(picture))
    both = layers.Concatenate(name="both")([pooled, numbers])
    outputs = {"second": layers.Dense(2, name="b")(both), "first": layers.Dense(3, name="a")(both)}
    model = with_random_weights(keras.Model([picture, numbers], outputs))
    loaded = load_saved_model(exported(model, tmp_path / "model"))
    feeds = {"picture": noise(2, 8, 8, 3), "numbers": noise(2, 4)}
    assert {spec.name for spec in loaded.inputs} == set(feeds)
    assert set(loaded.output_names) == {"first", "second"}
    in_order = [feeds[spec.name] for spec in loaded.inputs]
    expected = {name: np.asarray(value) for name, value in model([feeds["picture"], feeds["numbers"]]).items()}
    assert_close(by_tensorflow(loaded, in_order), expected)
    assert_close(by_onnx(loaded, in_order), expected)


def test_channels_first_models_run_and_keep_their_axes(keras: Any, tmp_path: Path) -> None:
    layers = keras.layers
    options = {"data_format": "channels_first"}
    model = keras.Sequential(
        [
            keras.Input((3, 16, 16)),
            layers.Conv2D(4, 3, activation="relu", **options),
            layers.BatchNormalization(axis=1),
            layers.MaxPooling2D(**options),
            layers.DepthwiseConv2D(3, **options),
        ]
    )
    with_random_weights(model)
    loaded = load_saved_model(exported(model, tmp_path / "model"))
    assert [call.layout for call in loaded.calls] == ["NCHW"] * 4
    picture = noise(2, 3, 16, 16)
    found = by_tensorflow(loaded, [picture])
    # The same weights with the channels last are another model, which every kernel knows.
    kernel, bias = (np.asarray(weight) for weight in model.layers[0].weights)
    twin = keras.layers.Conv2D(4, 3, activation="relu")
    twin.build((None, 16, 16, 3))
    twin.set_weights([kernel, bias])
    last = np.asarray(twin(picture.transpose(0, 2, 3, 1))).transpose(0, 3, 1, 2)
    assert_close(found, {"conv2d": last})
    assert_close(by_onnx(loaded, [picture]), found)


def test_channels_first_models_run_without_kernels_for_them(tf: Any, tmp_path: Path) -> None:
    kernel = noise(3, 3, 3, 2)

    def call(x0: Any) -> Any:
        x = tf.nn.conv2d(x0, kernel, 1, "SAME", data_format="NCHW")
        return {"y": tf.nn.max_pool2d(x, 2, 2, "VALID", data_format="NCHW")}

    folder, file = saved(tf, module_of(tf, call, [None, 3, 8, 8]), tmp_path / "model"), str(tmp_path / "result.npy")
    code = (
        "import pathlib, sys, numpy as np; from onnxfeat.converter.saved_models import load_saved_model; "
        "model = load_saved_model(pathlib.Path(sys.argv[1])); "
        "np.save(sys.argv[2], model.run([np.ones((1, 3, 8, 8), np.float32)])[0])"
    )
    # oneDNN, which TensorFlow uses on some processors alone, is what knows such convolutions and pools.
    plain = {**os.environ, "TF_ENABLE_ONEDNN_OPTS": "0"}
    subprocess.run([sys.executable, "-c", code, str(folder), file], env=plain, check=True)
    conv = tf.nn.conv2d(np.ones((1, 8, 8, 3), np.float32), kernel, 1, "SAME").numpy()
    expected = conv.reshape(1, 4, 2, 4, 2, 2).max((2, 4)).transpose(0, 3, 1, 2)
    assert relative_error(np.load(file), expected) < CLOSE


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "SimpleRNN"])
def test_recurrent_layers_are_layers(keras: Any, tmp_path: Path, cell: str) -> None:
    layer = getattr(keras.layers, cell)(3, return_sequences=True, name="cells")
    model = keras.Sequential([keras.Input((10, 4)), keras.layers.Conv1D(4, 3, name="conv"), layer])
    sound = noise(2, 10, 4)
    expected = layers_of_keras(keras, with_random_weights(model), sound)
    loaded = load_saved_model(exported(model, tmp_path / "model"))
    assert names(loaded) == ["conv", "cells"]
    assert_close(by_tensorflow(loaded, [sound]), expected)
    assert convert_keras(tmp_path / "model", tmp_path / "model.onnx").worst.error < CLOSE


def test_functions_compiled_apart_are_written_out(keras: Any, tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((8, 8, 4)), keras.layers.Conv2D(4, 3, groups=2, name="grouped")])
    picture = noise(2, 8, 8, 4)
    expected = {"grouped": np.asarray(with_random_weights(model)(picture))}
    loaded = load_saved_model(exported(model, tmp_path / "model"))
    assert_close(by_onnx(loaded, [picture]), expected)


# Keras 2, of which only the graphs and lists can be had here: they are written by hand, as it writes them.


def keras_2_like(tf: Any) -> Any:
    """Return a module whose graph has the scopes of a functional model of Keras 2: stem, pool, shared twice, nested."""
    module = tf.Module()
    module.stem = tf.Variable(noise(3, 3, 3, 4), name="stem/kernel")
    module.shared = tf.Variable(noise(3, 3, 4, 4, seed=1), name="shared/kernel")
    module.bias = tf.Variable(noise(4, seed=2), name="shared/bias")
    module.inner = tf.Variable(noise(1, 1, 4, 2, seed=3), name="conv2d/kernel")

    def shared(x: Any) -> Any:
        with tf.name_scope("model/shared/"):
            return tf.nn.bias_add(tf.nn.conv2d(x, module.shared, 1, "SAME", name="Conv2D"), module.bias, name="BiasAdd")

    def call(image: Any) -> Any:
        with tf.name_scope("model/stem/"):
            x = tf.nn.relu(tf.nn.conv2d(image, module.stem, 1, "SAME", name="Conv2D"), name="Relu")
        with tf.name_scope("model/max_pooling2d/"):
            x = tf.nn.max_pool2d(x, 2, 2, "VALID", name="MaxPool")
        x = shared(shared(x))
        with tf.name_scope("model/block/conv2d/"):
            x = tf.nn.conv2d(x, module.inner, 1, "SAME", name="Conv2D")
        with tf.name_scope("model/block/re_lu/"):
            x = tf.nn.relu(x, name="Relu")
        return {"re_lu": x}

    module.__call__ = tf.function(call, input_signature=[tf.TensorSpec([None, 8, 8, 3], tf.float32, name="image")])
    return module


KERAS_2_NAMES = ["stem", "max_pooling2d", "shared#1", "shared#2", "block/conv2d", "block/re_lu"]


def expected_of_keras_2_like(tf: Any, module: Any, image: Array) -> dict[str, Array]:
    values = {"stem": tf.nn.relu(tf.nn.conv2d(image, module.stem, 1, "SAME"))}
    values["max_pooling2d"] = tf.nn.max_pool2d(values["stem"], 2, 2, "VALID")
    values["shared#1"] = tf.nn.conv2d(values["max_pooling2d"], module.shared, 1, "SAME") + module.bias
    values["shared#2"] = tf.nn.conv2d(values["shared#1"], module.shared, 1, "SAME") + module.bias
    values["block/conv2d"] = tf.nn.conv2d(values["shared#2"], module.inner, 1, "SAME")
    values["block/re_lu"] = tf.nn.relu(values["block/conv2d"])
    return {name: value.numpy() for name, value in values.items()}


def test_scopes_of_keras_2_name_the_layers_and_both_calls_of_a_shared_one(tf: Any, tmp_path: Path) -> None:
    module = keras_2_like(tf)
    loaded = load_saved_model(saved(tf, module, tmp_path / "model"))
    assert names(loaded) == KERAS_2_NAMES
    assert [call.layer_class for call in loaded.calls] == [
        "Conv2D",
        "MaxPooling2D",
        "Conv2D",
        "Conv2D",
        "Conv2D",
        "ReLU",
    ]
    image = noise(2, 8, 8, 3, seed=9)
    expected = expected_of_keras_2_like(tf, module, image)
    assert_close(by_tensorflow(loaded, [image]), expected)
    assert_close(by_onnx(loaded, [image]), expected)


def list_of_keras_2(folder: Path, beside: bool) -> None:
    """Add Keras 2's list of layers to a file: in `keras_metadata.pb`, or in `saved_model.pb` as up to 2.4."""
    from tensorflow.core.protobuf import saved_model_pb2
    from tensorflow.python.keras.protobuf import saved_metadata_pb2

    proto = saved_model_pb2.SavedModel()
    proto.ParseFromString((folder / "saved_model.pb").read_bytes())
    objects = proto.meta_graphs[0].object_graph_def.nodes
    metadata = saved_metadata_pb2.SavedMetadata()

    def describe(number: int, path: str, name: str, kind: str, identifier: str) -> None:
        text = json.dumps({"name": name, "class_name": kind})
        objects[number].user_object.identifier = identifier
        if beside:
            metadata.nodes.add(node_id=number, node_path=path, identifier=identifier, metadata=text)
        else:
            objects[number].user_object.metadata = text

    def add(parent: int, place: int, name: str, kind: str) -> int:
        number = len(objects)
        objects.add()
        for key in (f"layer-{place}", f"layer_with_weights-{place}"):  # Keras lists a layer under several keys
            objects[parent].children.add(node_id=number, local_name=key)
        describe(number, f"root.layer-{place}", name, kind, "_tf_keras_layer")
        return number

    describe(0, "root", "model", "Functional", "_tf_keras_network")
    for place, (name, kind) in enumerate(
        {"stem": "Conv2D", "max_pooling2d": "MyPool", "shared": "Conv2D", "block": "Sequential"}.items()
    ):
        number = add(0, place, name, kind)
    add(number, 0, "conv2d", "Conv2D")
    add(number, 1, "re_lu", "Swish6")
    (folder / "saved_model.pb").write_bytes(proto.SerializeToString())
    if beside:
        (folder / "keras_metadata.pb").write_bytes(metadata.SerializeToString())


@pytest.mark.parametrize("beside", [True, False])
def test_the_list_of_layers_that_keras_2_writes_tells_their_classes(tf: Any, tmp_path: Path, beside: bool) -> None:
    folder = saved(tf, keras_2_like(tf), tmp_path / "model")
    list_of_keras_2(folder, beside)
    loaded = load_saved_model(folder)
    assert names(loaded) == KERAS_2_NAMES
    classes = {call.name: call.layer_class for call in loaded.calls}
    assert (classes["max_pooling2d"], classes["block/re_lu"]) == ("MyPool", "Swish6")


def test_a_damaged_list_of_layers_is_an_error_that_says_how_to_go_on(tf: Any, tmp_path: Path) -> None:
    folder = saved(tf, keras_2_like(tf), tmp_path / "model")
    (folder / "keras_metadata.pb").write_bytes(b"\xff" * 50)
    with pytest.raises(ConversionError, match=r"keras_metadata.pb can't be read: .* or delete that file"):
        load_saved_model(folder)


# TensorFlow alone


def test_a_graph_without_scopes_has_a_layer_for_each_conv_pool_and_activation(tf: Any, tmp_path: Path) -> None:
    first, second = noise(3, 3, 3, 4), noise(1, 1, 4, 2, seed=1)

    def call(x0: Any) -> Any:
        x = tf.nn.max_pool2d(tf.nn.relu(tf.nn.conv2d(x0, first, 1, "SAME")), 2, 2, "VALID")
        return {"mean": tf.reduce_mean(tf.sigmoid(tf.nn.conv2d(x * 2, second, 1, "SAME")), [1, 2])}

    loaded = load_saved_model(saved(tf, module_of(tf, call, [None, 8, 8, 3]), tmp_path / "model"))
    assert names(loaded) == ["Conv2D", "Relu", "MaxPool2d", "Conv2D_1", "Sigmoid", "Mean"]
    assert [call.kind for call in loaded.calls] == ["conv", "activation", "pool", "conv", "activation", "pool"]
    assert loaded.calls[2].layer_class == "MaxPool"
    picture = noise(2, 8, 8, 3, seed=2)
    relu = np.maximum(tf.nn.conv2d(picture, first, 1, "SAME").numpy(), 0)
    expected = {"Relu": relu, "MaxPool2d": relu.reshape(2, 4, 2, 4, 2, 4).max((2, 4))}
    assert_close(by_tensorflow(loaded, [picture]), expected)
    assert_close(by_onnx(loaded, [picture]), expected)


@pytest.mark.parametrize("resource", [True, False])
def test_a_file_of_tensorflow_1_is_read(tf: Any, tmp_path: Path, resource: bool) -> None:
    v1, folder = tf.compat.v1, tmp_path / "model"
    with tf.Graph().as_default(), v1.Session() as session:
        image = v1.placeholder(tf.float32, [None, 8, 8, 3], name="image")

        def conv(x: Any, channels: int, name: str) -> Any:
            with v1.variable_scope(name, reuse=v1.AUTO_REUSE, use_resource=resource):
                kernel = v1.get_variable("weights", [3, 3, channels, 4])
                return tf.nn.relu(tf.nn.conv2d(x, kernel, 1, "SAME"))

        with v1.variable_scope("net"):
            x = conv(image, 3, "conv1")
            with tf.name_scope("pool1"):
                x = tf.nn.max_pool2d(x, 2, 2, "VALID")
            x = conv(conv(x, 4, "conv2"), 4, "conv2")
        session.run(v1.global_variables_initializer())
        v1.saved_model.simple_save(session, str(folder), {"picture": image}, {"map": x})
        picture = noise(2, 8, 8, 3)
        expected = {"map": session.run(x, {image: picture})}
    loaded = load_saved_model(folder)
    assert names(loaded) == ["conv1", "pool1", "conv2#1", "conv2#2"]
    assert loaded.inputs[0].name == "picture"
    expected["conv2#2"] = expected["map"]
    assert_close(by_tensorflow(loaded, [picture]), expected)
    assert_close(by_onnx(loaded, [picture]), expected)


def test_scopes_of_a_graph_of_constants_are_layers(tf: Any, tmp_path: Path) -> None:
    def call(x0: Any) -> Any:
        for number in range(2):
            with tf.name_scope(f"net/block{number}/conv/"):
                x0 = tf.nn.relu(tf.nn.conv2d(x0, noise(3, 3, 3, 3, seed=number), 1, "SAME"))
            with tf.name_scope(f"net/block{number}/pool/"):
                x0 = tf.nn.max_pool2d(x0, 2, 2, "VALID")
        return {"y": x0}

    loaded = load_saved_model(saved(tf, module_of(tf, call, [None, 8, 8, 3]), tmp_path / "model"))
    assert names(loaded) == ["block0/conv", "block0/pool", "block1/conv", "block1/pool"]


def test_an_input_that_nothing_reads_is_an_input(tf: Any, tmp_path: Path) -> None:
    module = module_of(tf, lambda x0, x1: {"y": tf.nn.relu(x0)}, [None, 4], [None, 2])  # noqa: ARG005
    loaded = load_saved_model(saved(tf, module, tmp_path / "model"))
    assert [spec.name for spec in loaded.inputs] == ["x0", "x1"]
    assert_close(by_tensorflow(loaded, [noise(2, 4), noise(2, 2)]), {"y": np.maximum(noise(2, 4), 0)})


def test_an_input_that_nothing_reads_is_an_input_in_a_file_of_tensorflow_1_too(tf: Any, tmp_path: Path) -> None:
    v1, folder = tf.compat.v1, tmp_path / "model"
    with tf.Graph().as_default(), v1.Session() as session:
        x, unread = v1.placeholder(tf.float32, [None, 4]), v1.placeholder(tf.float32, [None, 2])
        v1.saved_model.simple_save(session, str(folder), {"x": x, "unread": unread}, {"y": tf.nn.relu(x)})
    loaded = load_saved_model(folder)
    assert [spec.name for spec in loaded.inputs] == ["x", "unread"]
    assert_close(by_tensorflow(loaded, [noise(2, 4), noise(2, 2)]), {"y": np.maximum(noise(2, 4), 0)})


def test_two_outputs_of_one_tensor_are_two_outputs(tf: Any, tmp_path: Path) -> None:
    def call(x0: Any) -> Any:
        y = tf.nn.relu(x0)
        return {"one": y, "same": y, "input": x0}

    loaded = load_saved_model(saved(tf, module_of(tf, call, [None, 4]), tmp_path / "model"))
    x, y = noise(2, 4), np.maximum(noise(2, 4), 0)
    assert_close(by_tensorflow(loaded, [x]), {"one": y, "same": y, "input": x})
    assert_close(by_onnx(loaded, [x]), {"one": y, "same": y, "input": x})


def test_loops_and_branches_stay(tf: Any, tmp_path: Path) -> None:
    def call(x0: Any) -> Any:
        for _ in tf.range(3):
            x0 = x0 * 2
        return {"y": tf.cond(tf.reduce_sum(x0) > 0, lambda: x0 + 1, lambda: x0 - 1)}

    loaded = load_saved_model(saved(tf, module_of(tf, call, [None, 4]), tmp_path / "model"))
    for x in (np.ones((2, 4), np.float32), -np.ones((2, 4), np.float32)):
        assert_close(by_onnx(loaded, [x]), {"y": 8 * x + np.sign(x)})


# Rounding noise


def test_noise_is_small_and_repeats_with_its_seed(tf: Any, tmp_path: Path) -> None:
    loaded = load_saved_model(saved(tf, keras_2_like(tf), tmp_path / "model"))
    image = noise(2, 8, 8, 3, seed=9)
    plain = by_tensorflow(loaded, [image])
    one, again = (by_tensorflow(loaded, [image], disturbed_by=1) for _ in range(2))
    other = by_tensorflow(loaded, [image], disturbed_by=2)
    for name in names(loaded):
        np.testing.assert_array_equal(one[name], again[name])
        assert 0 < relative_error(one[name], plain[name]) < 1e-5, name
        assert not np.array_equal(one[name], other[name]), name


def test_a_layer_reads_what_the_layer_before_it_gave_with_its_noise(tf: Any, tmp_path: Path) -> None:
    loaded = load_saved_model(saved(tf, keras_2_like(tf), tmp_path / "model"))
    image = noise(2, 8, 8, 3, seed=9)
    moved = by_tensorflow(loaded, [image], disturbed_by=1)
    pooled = moved["stem"].reshape(2, 4, 2, 4, 2, 4).max((2, 4))
    level = np.sqrt(np.mean(np.square(pooled)))
    steps = np.abs(moved["max_pooling2d"] - pooled) / np.spacing(np.maximum(pooled, level))
    assert 0 < steps.max() <= 8  # its own noise and none of the layer's before: that is in `pooled`
    assert_close({"re_lu": moved["re_lu"]}, {"re_lu": moved["block/re_lu"]})
    np.testing.assert_array_equal(moved["re_lu"], moved["block/re_lu"])


# Signatures


def with_two_signatures(tf: Any, folder: Path, *chosen: str) -> Path:
    module = tf.Module()
    spec = [tf.TensorSpec([None, 4], tf.float32, name="x")]
    module.one = tf.function(lambda x: {"y": tf.nn.relu(x)}, input_signature=spec)
    module.two = tf.function(lambda x: {"z": tf.nn.sigmoid(x)}, input_signature=spec)
    return saved(tf, module, folder, **{chosen[0]: module.one, chosen[1]: module.two})


def test_of_several_signatures_the_default_is_taken_and_said(tf: Any, tmp_path: Path) -> None:
    loaded = load_saved_model(with_two_signatures(tf, tmp_path / "model", "alone", "serving_default"))
    assert loaded.output_names == ("z",)
    (note,) = loaded.notes
    assert note.startswith("signature 'serving_default' was taken; the file has others")
    assert "--signature" in note
    assert note.endswith(": alone")


def test_a_signature_can_be_chosen(tf: Any, tmp_path: Path) -> None:
    folder = with_two_signatures(tf, tmp_path / "model", "classify", "predict")
    assert load_saved_model(folder).output_names == ("y",)
    loaded = load_saved_model(folder, signature="predict")
    assert (loaded.output_names, names(loaded), loaded.notes) == (("z",), ["Sigmoid"], ())
    with pytest.raises(ConversionError, match=r"has no signature 'predikt'; nearest are 'predict' of 2"):
        load_saved_model(folder, signature="predikt")


def test_a_file_without_signatures_is_an_error(tf: Any, tmp_path: Path) -> None:
    tf.saved_model.save(tf.Module(), str(tmp_path / "model"))
    with pytest.raises(ConversionError, match=r"has no signature, .*: save it with model\.export"):
        load_saved_model(tmp_path / "model")


@pytest.mark.parametrize(
    ("shape", "dtype", "why"),
    [([None], "string", "takes string values"), (None, "float32", "does not say how many axes it has")],
)
def test_an_input_that_is_no_array_of_numbers_is_an_error(
    tf: Any, tmp_path: Path, shape: Any, dtype: str, why: str
) -> None:
    module = module_of(tf, lambda x: {"y": tf.shape(x)}, tf.TensorSpec(shape, tf.as_dtype(dtype), name="x"))
    with pytest.raises(ConversionError, match=f"input 'x' {why}"):
        load_saved_model(saved(tf, module, tmp_path / "model"))


# What can't be converted


def test_models_whose_runs_differ_are_refused(tf: Any, tmp_path: Path) -> None:
    counter = tf.Variable(0.0)

    def count(x0: Any) -> Any:
        counter.assign_add(1.0)
        return {"y": x0 + counter}

    module = module_of(tf, count, [None, 4])
    module.counter = counter
    with pytest.raises(ConversionError, match=r"AssignAddVariableOp .* changes a variable while it runs"):
        load_saved_model(saved(tf, module, tmp_path / "counting"))
    module = module_of(tf, lambda x0: {"y": x0 + tf.random.uniform([4])}, [None, 4])
    with pytest.raises(ConversionError, match=r"RandomUniform .* draws random numbers"):
        load_saved_model(saved(tf, module, tmp_path / "random"))


def test_tables_are_refused(tf: Any, tmp_path: Path) -> None:
    pairs = tf.lookup.KeyValueTensorInitializer(tf.constant([1, 2], tf.int64), tf.constant([1.0, 2.0]))
    table = tf.lookup.StaticHashTable(pairs, 0.0)
    module = module_of(tf, lambda x: {"y": table.lookup(x)}, tf.TensorSpec([None], tf.int64, name="x"))
    module.table = table
    with pytest.raises(ConversionError, match=r"LookupTableFindV2 .* looks values up in a table"):
        load_saved_model(saved(tf, module, tmp_path / "model"))


def test_operators_without_a_twin_in_onnx_are_named(tf: Any, tmp_path: Path) -> None:
    module = module_of(tf, lambda x0: {"y": tf.math.igamma(x0, x0)}, [None, 4])
    with pytest.raises(ConversionError, match="ONNX has no operator for TensorFlow's 'Igamma'"):
        load_saved_model(saved(tf, module, tmp_path / "model")).to_onnx(17)


def test_an_operator_without_a_twin_in_onnx_is_named_with_its_layer(keras: Any, tf: Any, tmp_path: Path) -> None:
    class Odd(keras.layers.Layer):  # type: ignore[misc]
        def call(self, x: Any) -> Any:
            return tf.math.igamma(tf.abs(x), tf.abs(x) + 1)

    model = keras.Sequential([keras.Input((4,)), keras.layers.ReLU(), Odd(name="odd"), keras.layers.ReLU()])
    with pytest.raises(ConversionError, match=r"'Igamma' \(first in layer 'odd'\); replace the layer"):
        load_saved_model(exported(model, tmp_path / "model")).to_onnx(17)


# Safety


UNSAFE: dict[str, Callable[[Any, str, Any], Any]] = {
    "WriteFile": lambda tf, file, x: [tf.io.write_file(file, "was here"), x][1],
    "ReadFile": lambda tf, file, x: x + tf.cast(tf.strings.length(tf.io.read_file(file)), tf.float32),
    "PrintV2": lambda tf, file, x: [tf.print(x, output_stream=f"file://{file}"), x][1],
    "PyFunc": lambda tf, _, x: tf.ensure_shape(tf.numpy_function(lambda a: a, [x], tf.float32), [None, 4]),
    "EagerPyFunc": lambda tf, _, x: tf.ensure_shape(tf.py_function(lambda a: a, [x], tf.float32), [None, 4]),
    "MatchingFiles": lambda tf, file, x: x + tf.cast(tf.size(tf.io.matching_files(file)), tf.float32),
    "SaveV2": lambda tf, file, x: [
        tf.raw_ops.SaveV2(prefix=file, tensor_names=["x"], shape_and_slices=[""], tensors=[x]),
        x,
    ][1],
    r"\w+Dataset": lambda tf, file, x: x + tf.cast(tf.data.TextLineDataset(file).cardinality(), tf.float32),
}


@pytest.mark.parametrize("operator", UNSAFE)
@pytest.mark.parametrize("in_a_loop", [False, True])
def test_a_model_that_reaches_beyond_its_numbers_is_refused_before_it_runs(
    tf: Any, tmp_path: Path, operator: str, in_a_loop: bool
) -> None:
    file = tmp_path / "victim"

    def call(x0: Any) -> Any:
        x = x0
        if in_a_loop:
            for _ in tf.range(2):
                x = tf.ensure_shape(UNSAFE[operator](tf, str(file), x), [None, 4])
        else:
            x = UNSAFE[operator](tf, str(file), x)
        return {"y": tf.nn.relu(x)}

    folder = saved(tf, module_of(tf, call, [None, 4]), tmp_path / "model")
    with pytest.raises(ConversionError, match=rf"would run the operator {operator} .*--unsafe \(unsafe=True"):
        load_saved_model(folder)
    assert not list(tmp_path.glob("victim*"))


def test_an_initializer_that_writes_files_is_refused_before_it_runs(tf: Any, tmp_path: Path) -> None:
    v1, folder, file = tf.compat.v1, tmp_path / "model", tmp_path / "victim"
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None, 4])
        v1.saved_model.simple_save(
            session, str(folder), {"x": x}, {"y": tf.nn.relu(x)}, legacy_init_op=tf.io.write_file(str(file), "was here")
        )
    with pytest.raises(ConversionError, match="would run the operator WriteFile"):
        load_saved_model(folder)
    assert not file.exists()
    load_saved_model(folder, unsafe=True)
    assert file.read_text() == "was here"  # so the check is what kept it from being written


def test_a_loader_that_writes_files_is_refused_before_it_runs(tf: Any, tmp_path: Path) -> None:
    from tensorflow.core.protobuf import saved_model_pb2

    folder = saved(tf, keras_2_like(tf), tmp_path / "model")
    proto = saved_model_pb2.SavedModel()
    proto.ParseFromString((folder / "saved_model.pb").read_bytes())
    graph = proto.meta_graphs[0]
    graph.saver_def.restore_op_name = graph.saver_def.save_tensor_name.split(":")[0]  # loading would save
    (folder / "saved_model.pb").write_bytes(proto.SerializeToString())
    with pytest.raises(ConversionError, match="while its variables are loaded"):
        load_saved_model(folder)


# Damage


def cut(path: Path, length: int) -> None:
    path.write_bytes(path.read_bytes()[:length])


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut short": (lambda folder: cut(folder / "saved_model.pb", 2000), "can't be read: .*damaged or cut short"),
    "empty": (lambda folder: cut(folder / "saved_model.pb", 0), "holds no graph: its saved_model.pb is empty"),
    "no protobuf": (lambda folder: (folder / "saved_model.pb").write_bytes(b"\xff" * 99), "can't be read: .*damaged"),
    "no graph file": (lambda folder: (folder / "saved_model.pb").unlink(), "is no SavedModel: a folder with"),
    "no variables": (
        lambda folder: shutil.rmtree(folder / "variables"),
        "can't load .*not a valid checkpoint.*check that the folder is whole",
    ),
    "index cut": (lambda folder: cut(folder / "variables/variables.index", 20), "can't load .*too short"),
    "weights cut": (
        lambda folder: cut(folder / "variables/variables.data-00000-of-00001", 100),
        "can't load .*check that the folder is whole",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_folder_is_a_sentence(tf: Any, tmp_path: Path, damage: str) -> None:
    folder = saved(tf, keras_2_like(tf), tmp_path / "model")
    do, message = DAMAGE[damage]
    do(folder)
    with pytest.raises(ConversionError, match=message) as caught:
        load_saved_model(folder)
    assert str(folder) in str(caught.value)


def test_operators_of_another_package_are_named(tf: Any, tmp_path: Path) -> None:
    folder = saved(tf, module_of(tf, lambda x0: {"y": tf.nn.relu(x0)}, [None, 4]), tmp_path / "model")
    content = (folder / "saved_model.pb").read_bytes()
    assert content.count(b"\x04Relu") > 0
    (folder / "saved_model.pb").write_bytes(content.replace(b"\x04Relu", b"\x04Rulo"))
    with pytest.raises(ConversionError, match=r"Op type not registered 'Rulo'.* operators of another package"):
        load_saved_model(folder)


# Through the front door


def test_a_folder_is_converted_like_any_model(keras: Any, tmp_path: Path) -> None:
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((16, 16, 3)),
            layers.Conv2D(4, 3, activation="relu"),
            layers.BatchNormalization(),
            layers.MaxPooling2D(),
            layers.Conv2D(4, 3),
            layers.GlobalAveragePooling2D(),
        ]
    )
    folder = exported(with_random_weights(model), tmp_path / "model")
    conversion = convert_keras(folder, tmp_path / "model.onnx")
    assert conversion.worst.error < CLOSE
    found = [layer.name for layer in list_layers(tmp_path / "model.onnx", "kind:conv,kind:pool")]
    assert found == ["conv2d", "max_pooling2d", "conv2d_1", "global_average_pooling2d"]


# Real files


@pytest.mark.corpus
@pytest.mark.parametrize("entry", SAVED, ids=[entry.package["name"] for entry in SAVED])
def test_a_real_saved_model_gives_what_its_authors_own_onnx_file_gives(
    entry: Entry, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder = entry.path.parent
    twin = next(x for x in EVERYTHING if x.path == folder.with_suffix(".onnx"))
    parts = [x for x in EVERYTHING if "part_of" in x.model and folder in x.path.parents]
    for needed in (entry, twin, *parts):
        require(needed, request)
    sound = array_of(entry)
    session = onnxruntime.InferenceSession(twin.path, providers=["CPUExecutionProvider"])
    fed = session.get_inputs()[0].name
    loaded = load_saved_model(folder)
    # Their file calls its outputs after the tensors of the signature: StatefulPartitionedCall:0, :1, :2.
    tensors = [f"StatefulPartitionedCall:{number}" for number in range(len(loaded.output_names))]
    theirs = dict(zip(loaded.output_names, session.run(tensors, {fed: sound}), strict=True))
    assert sum(call.kind == "conv" for call in loaded.calls) == entry.model["layers"]["Conv2D"]
    for found in (by_tensorflow(loaded, [sound]), by_onnx(loaded, [sound])):
        assert max(relative_error(found[name], value) for name, value in theirs.items()) < CLOSE
    conversion = convert_keras(folder, tmp_path / "model.onnx")
    assert all(layer.error <= max(CLOSE, 2 * layer.noise) for layer in conversion.layers)
