from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from onnxfeat import (
    Conversion,
    ConversionError,
    FeatureExtractor,
    MissingPackageError,
    OutputError,
    PictureError,
    Preprocessing,
    convert_keras,
    expose,
    list_layers,
)
from onnxfeat.converter import cleaning, tensorflow_graphs
from onnxfeat.converter import conversion as conversion_module
from onnxfeat.converter.keras_models import KerasModel
from onnxfeat.converter.verification import expected_of, is_undecided, refuse_disagreement, with_more_noise
from onnxfeat.findings import LayerAgreement

pytestmark = pytest.mark.keras

Array = NDArray[Any]
Build = Callable[[Any], Any]


@pytest.fixture(scope="session")
def keras() -> Any:
    import keras

    return keras


@dataclass(frozen=True)
class Converted:
    """A Keras model, and what became of it."""

    model: Any
    path: Path
    conversion: Conversion

    @property
    def document(self) -> dict[str, Any]:
        """What the file says about itself."""
        entries = {entry.key: entry.value for entry in onnx.load(self.path).metadata_props}
        document: dict[str, Any] = json.loads(entries["onnxfeat"])
        return document

    @property
    def names(self) -> list[str]:
        return [layer["name"] for layer in self.document["layer_map"]]

    def values(self, feeds: list[Array]) -> dict[str, Array]:
        """Return the value of each layer of the map from a plain session, in Keras's order of axes."""
        model = onnx.load(self.path)
        mapped = [layer for layer in self.document["layer_map"] if layer["value"] is not None]
        declared = {output.name for output in model.graph.output}
        for value in dict.fromkeys(layer["value"] for layer in mapped):
            if value not in declared:
                model.graph.output.append(onnx.ValueInfoProto(name=value))
        results = run(model, [layer["value"] for layer in mapped], feeds)
        return {
            layer["name"]: channels_last(value, layer["layout"]) for layer, value in zip(mapped, results, strict=True)
        }

    def outputs(self, feeds: list[Array]) -> list[Array]:
        return run(onnx.load(self.path), None, feeds)


def run(model: onnx.ModelProto, names: list[str] | None, feeds: list[Array]) -> list[Array]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    inputs = [value.name for value in session.get_inputs()]
    results: list[Array] = session.run(names, dict(zip(inputs, feeds, strict=True)))
    return results


def channels_last(value: Array, layout: str | None) -> Array:
    if layout is None:
        return value
    assert len(layout) == value.ndim
    spatial = [axis for axis in "DHW" if axis in layout]
    return value.transpose([layout.index(axis) for axis in ("N", *spatial, "C")])


def randomize(model: Any, seed: int = 3) -> Any:
    """Give every weight a seeded value, the statistics of normalizations too: fresh ones would hide them."""
    random = np.random.default_rng(seed)
    for weight in model.weights:
        if "seed" in weight.path:
            continue
        values = random.normal(0, 0.3, weight.shape)
        weight.assign(np.abs(values) + 0.5 if "variance" in weight.path else values)
    return model


def feeds_for(model: Any, batch: int = 2, side: int = 11) -> list[Array]:
    random = np.random.default_rng(5)
    feeds: list[Array] = []
    for tensor in model.inputs:
        shape = [n or (side if axis else batch) for axis, n in enumerate(tensor.shape)]
        whole = np.issubdtype(tensor.dtype, np.integer)
        feeds.append((random.integers(0, 9, shape) if whole else random.uniform(0, 1, shape)).astype(tensor.dtype))
    return feeds


def in_keras(model: Any, feeds: list[Array]) -> Any:
    return model.predict(feeds[0] if len(feeds) == 1 else feeds, verbose=0)


def convert(model: Any, folder: Path, **options: Any) -> Converted:
    path = folder / "model.onnx"
    return Converted(model, path, convert_keras(model, path, **options))


def assert_close(value: Array, expected: Array) -> None:
    assert value.shape == expected.shape
    extent = np.ptp(expected) or 1
    np.testing.assert_allclose(value, expected, atol=1e-5 * float(extent), rtol=0)


# Each model: what it is called, how it is built, the leaf layers in the order of execution.


def sequential(keras: Any) -> Any:
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((20, 24, 3)),
            layers.Conv2D(4, 3, activation="relu", name="conv"),
            layers.MaxPooling2D(name="pool"),
            layers.Flatten(name="flat"),
            layers.Dense(5, activation="softmax", name="probabilities"),
        ]
    )


def residual(keras: Any) -> Any:
    layers = keras.layers
    picture = keras.Input((12, 14, 3), name="picture")
    stem = layers.Conv2D(4, 3, padding="same", use_bias=False, name="stem")(picture)
    x = layers.BatchNormalization(name="bn")(stem)
    x = layers.ReLU(name="relu")(x)
    x = layers.Conv2D(4, 3, padding="same", name="conv")(x)
    x = layers.BatchNormalization(name="bn_2")(x)
    x = layers.Add(name="add")([stem, x])
    x = layers.Activation("relu", name="relu_2")(x)
    x = layers.GlobalAveragePooling2D(name="mean")(x)
    return keras.Model(picture, layers.Dense(3, name="scores")(x))


def convs(keras: Any) -> Any:
    layers = keras.layers
    picture = x = keras.Input((21, 25, 3))
    for layer in (
        layers.SeparableConv2D(6, 3, activation="relu", name="separable"),
        layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2, name="depthwise"),
        layers.Conv2DTranspose(4, 3, strides=2, padding="same", name="transposed_same"),
        layers.Conv2DTranspose(4, 2, padding="valid", name="transposed_valid"),
        layers.Conv2D(4, 3, strides=2, padding="same", name="strided"),
        layers.Conv2D(4, 3, dilation_rate=2, name="dilated"),
        layers.Conv2D(4, (1, 5), groups=2, activation="tanh", name="grouped"),
        layers.AveragePooling2D(3, 2, padding="same", name="mean"),
        layers.MaxPooling2D((3, 2), (2, 1), padding="valid", name="max"),
    ):
        x = layer(x)
    return keras.Model(picture, x)


ACTIVATIONS = "swish gelu relu6 leaky_relu elu selu hard_swish mish tanh softplus sigmoid".split()


def activations(keras: Any) -> Any:
    layers = keras.layers
    picture = x = keras.Input((9, 8, 3))
    for name in ACTIVATIONS:
        x = layers.Conv2D(4, 3, padding="same", activation=name, name=f"conv_{name}")(x)
    for layer in (
        layers.Activation("swish", name="swish"),
        layers.Activation("gelu", name="gelu"),
        layers.ReLU(6.0, name="relu6"),
        layers.LeakyReLU(name="leaky"),
        layers.PReLU(name="prelu"),
    ):
        x = layer(x)
    return keras.Model(picture, x)


def global_pools(keras: Any) -> Any:
    layers = keras.layers
    picture = keras.Input((9, 8, 3))
    x = layers.Conv2D(4, 3, name="conv")(picture)
    x = layers.GlobalMaxPooling2D(keepdims=True, name="max_kept")(x)
    x = layers.Conv2D(5, 1, name="one_by_one")(x)
    x = layers.UpSampling2D(4, name="up")(x)
    x = layers.GlobalAveragePooling2D(keepdims=True, name="mean_kept")(x)
    x = layers.GlobalMaxPooling2D(name="max")(x)
    return keras.Model(picture, x)


def augmented(keras: Any) -> Any:
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((12, 14, 3)),
            layers.Conv2D(4, 3, name="conv"),
            layers.RandomFlip(name="flip"),
            layers.RandomRotation(0.3, name="rotation"),
            layers.RandomContrast(0.5, name="contrast"),
            layers.GaussianNoise(0.5, name="noise"),
            layers.Dropout(0.5, name="drop"),
            layers.SpatialDropout2D(0.5, name="drop_channels"),
            layers.MaxPooling2D(name="pool"),
        ]
    )


def scaling(keras: Any) -> Any:
    layers = keras.layers
    picture = keras.Input((9, 8, 3))
    x = layers.Rescaling(1 / 127.5, offset=-1, name="rescale")(picture)
    # Constants of one shape, which tf2onnx makes inputs of.
    x = layers.Normalization(mean=[0.4, 0.5, 0.6], variance=[0.1, 0.2, 0.3], name="standardize")(x)
    x = layers.Normalization(mean=[0.7, 0.1, 0.2], variance=[0.3, 0.1, 0.4], name="again")(x)
    return keras.Model(picture, layers.Conv2D(4, 3, name="conv")(x))


def squeeze_and_excite(keras: Any) -> Any:
    layers = keras.layers
    picture = keras.Input((9, 8, 3))
    x = layers.Conv2D(8, 3, activation="swish", name="conv")(picture)
    gate = layers.GlobalAveragePooling2D(name="squeeze")(x)
    gate = layers.Reshape((1, 1, 8), name="reshape")(gate)
    gate = layers.Conv2D(2, 1, activation="relu", name="reduce")(gate)
    gate = layers.Conv2D(8, 1, activation="sigmoid", name="expand")(gate)
    return keras.Model(picture, layers.Multiply(name="excite")([x, gate]))


def symbolic(keras: Any) -> Any:
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((None, None, 3)),
            layers.Conv2D(4, 3, activation="relu", name="conv"),
            layers.MaxPooling2D(name="pool"),
            layers.GlobalAveragePooling2D(name="mean"),
        ]
    )


def up_and_down(keras: Any) -> Any:
    layers = keras.layers
    picture = keras.Input((12, 16, 1))
    x = layers.Conv2D(4, 3, padding="same", name="conv")(picture)
    y = layers.AveragePooling2D(2, name="down")(x)
    y = layers.UpSampling2D(2, interpolation="bilinear", name="up")(y)
    x = layers.Concatenate(name="both")([x, y])
    return keras.Model(picture, layers.Cropping2D(((1, 0), (2, 3)), name="crop")(x))


def cube(keras: Any) -> Any:
    layers = keras.layers
    picture = keras.Input((4, 4, 4))  # no axis can be told from another by its length
    x = layers.Conv2D(4, 3, padding="same", name="conv")(picture)
    x = layers.BatchNormalization(name="bn")(x)
    x = layers.Activation("relu", name="relu")(x)
    return keras.Model(picture, layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x))


def norms(keras: Any) -> Any:
    layers = keras.layers
    picture = x = keras.Input((6, 7, 4))
    for layer in (
        layers.Conv2D(4, 3, name="conv"),
        layers.GroupNormalization(2, name="group"),
        layers.LayerNormalization(name="layer"),
        layers.UnitNormalization(name="unit"),
    ):
        x = layer(x)
    return keras.Model(picture, x)


def one_axis(keras: Any) -> Any:
    layers = keras.layers
    words = keras.Input((17,), dtype="int32")
    x = layers.Embedding(9, 5, name="embed")(words)
    x = layers.Conv1D(4, 3, activation="relu", name="conv")(x)
    x = layers.MaxPooling1D(name="pool")(x)
    return keras.Model(words, layers.LSTM(3, name="lstm")(x))


def three_axes(keras: Any) -> Any:
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((7, 8, 9, 2)),
            layers.Conv3D(3, 3, activation="relu", name="conv"),
            layers.MaxPooling3D(name="pool"),
        ]
    )


def levels(keras: Any) -> Any:
    layers = keras.layers
    picture = keras.Input((9, 8, 3), dtype="uint8")
    x = layers.Rescaling(1 / 255, name="rescale")(picture)
    return keras.Model(picture, layers.Conv2D(4, 3, name="conv")(x))


def two_pictures(keras: Any) -> Any:
    batch_of_two = keras.Input(batch_shape=(2, 9, 8, 3))
    return keras.Model(batch_of_two, keras.layers.Conv2D(4, 3, name="conv")(batch_of_two))


ZOO: dict[Build, str] = {
    sequential: "conv pool flat probabilities",
    residual: "stem bn relu conv bn_2 add relu_2 mean scores",
    convs: "separable depthwise transposed_same transposed_valid strided dilated grouped mean max",
    activations: " ".join(f"conv_{name}" for name in ACTIVATIONS) + " swish gelu relu6 leaky prelu",
    global_pools: "conv max_kept one_by_one up mean_kept max",
    augmented: "conv flip rotation contrast noise drop drop_channels pool",
    scaling: "rescale standardize again conv",
    squeeze_and_excite: "conv squeeze reshape reduce expand excite",
    symbolic: "conv pool mean",
    up_and_down: "conv down up both crop",
    cube: "conv bn relu depthwise",
    norms: "conv group layer unit",
    one_axis: "embed conv pool lstm",
    three_axes: "conv pool",
    levels: "rescale conv",
    two_pictures: "conv",
}


@pytest.fixture(scope="module", params=ZOO, ids=lambda build: build.__name__)
def zoo(request: pytest.FixtureRequest, keras: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Converted, str]:
    model = randomize(request.param(keras))
    return convert(model, tmp_path_factory.mktemp("zoo")), ZOO[request.param]


def test_every_layer_has_its_keras_name_and_value(keras: Any, zoo: tuple[Converted, str]) -> None:
    converted, names = zoo
    feeds = feeds_for(converted.model)
    layers = [converted.model.get_layer(name) for name in names.split()]
    expected = keras.Model(converted.model.inputs, [layer.output for layer in layers]).predict(feeds, verbose=0)
    expected = [expected] if len(layers) == 1 else expected
    values = converted.values(feeds)
    assert list(values) == converted.names == names.split()
    assert converted.conversion.absent == ()
    for layer, value in zip(layers, expected, strict=True):
        assert_close(values[layer.name], value)


def test_inputs_and_outputs_are_those_of_the_keras_model(zoo: tuple[Converted, str]) -> None:
    converted, _ = zoo
    graph = onnx.load(converted.path).graph
    (value,) = graph.input
    (tensor,) = converted.model.inputs
    assert value.name == tensor.name
    sides = [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
    assert sides == [side or letter for side, letter in zip(tensor.shape, "NHW??", strict=False)]
    (output,) = graph.output
    assert output.name == converted.model.layers[-1].name
    feeds = feeds_for(converted.model)
    assert_close(converted.outputs(feeds)[0], in_keras(converted.model, feeds))
    onnx.checker.check_model(onnx.load(converted.path), full_check=True)


def test_the_record_agrees_with_the_file(zoo: tuple[Converted, str]) -> None:
    converted, names = zoo
    record, mapped = converted.conversion, converted.document["layer_map"]
    assert record.path == converted.path
    output = f"output {converted.model.layers[-1].name!r}"
    assert [layer.name for layer in record.layers] == [*names.split(), output]
    assert [(layer.error, layer.noise) for layer in record.layers[:-1]] == [(x["error"], x["noise"]) for x in mapped]
    assert [layer["class"] for layer in mapped] == [type(converted.model.get_layer(n)).__name__ for n in names.split()]
    assert {layer["status"] for layer in mapped} == {"exact"}
    assert record.worst.error < 1e-5
    assert record.seconds > 0


def converted_once(build: Build) -> Any:
    @pytest.fixture(scope="module")
    def fixture(keras: Any, tmp_path_factory: pytest.TempPathFactory) -> Converted:
        return convert(randomize(build(keras)), tmp_path_factory.mktemp(build.__name__))

    return fixture


def path_names(keras: Any) -> Any:
    layers = keras.layers
    inner = keras.Sequential(
        [keras.Input((6, 7, 4)), layers.Conv2D(4, 3, padding="same", activation="relu", name="conv")], name="inner"
    )
    start = keras.Input((6, 7, 4))
    block = keras.Model(start, layers.MaxPooling2D(1, name="pool")(inner(start)), name="block")
    picture = keras.Input((8, 9, 3))
    return keras.Model(picture, block(block(layers.Conv2D(4, 3, name="conv")(picture))))


nested = converted_once(path_names)


def test_layers_of_a_nested_model_have_paths_and_numbers(keras: Any, nested: Converted) -> None:
    assert nested.names == ["conv", "block/inner/conv#1", "block/pool#1", "block/inner/conv#2", "block/pool#2"]
    block = nested.model.get_layer("block")
    inner = block.get_layer("inner")
    feeds = feeds_for(nested.model)
    stem = nested.model.get_layer("conv")(feeds[0])
    first, second = inner(stem), inner(block(stem))
    values = nested.values(feeds)
    for name, expected in {
        "conv": stem,
        "block/inner/conv#1": first,
        "block/pool#1": block.get_layer("pool")(first),
        "block/inner/conv#2": second,
        "block/pool#2": block(block(stem)),
    }.items():
        assert_close(values[name], keras.ops.convert_to_numpy(expected))


def test_a_layer_that_is_called_twice_is_listed_twice(keras: Any, tmp_path: Path) -> None:
    conv = keras.layers.Conv2D(3, 3, padding="same", name="conv")
    picture = keras.Input((7, 9, 3))
    converted = convert(randomize(keras.Model(picture, conv(conv(picture)))), tmp_path)
    feeds = feeds_for(converted.model)
    values = converted.values(feeds)
    assert list(values) == ["conv#1", "conv#2"]
    first = conv(feeds[0])
    assert_close(values["conv#1"], keras.ops.convert_to_numpy(first))
    assert_close(values["conv#2"], keras.ops.convert_to_numpy(conv(first)))


def test_exposed_layers_have_the_values_of_keras(keras: Any, tmp_path: Path) -> None:
    converted = convert(randomize(residual(keras)), tmp_path)
    exposed = expose(converted.path, tmp_path / "exposed.onnx", layers="kind:conv,kind:norm,kind:activation")
    feeds = feeds_for(converted.model)
    results = run(onnx.load(tmp_path / "exposed.onnx"), [layer.value for layer in exposed], feeds)
    assert [layer.name for layer in exposed] == ["stem", "bn", "relu", "conv", "bn_2", "relu_2"]
    for layer, value in zip(exposed, results, strict=True):
        expected = keras.Model(converted.model.inputs, converted.model.get_layer(layer.name).output).predict(
            feeds, verbose=0
        )
        assert_close(channels_last(value, layer.layout), expected)


def test_conv_and_pool_layers_of_every_class_are_listed_by_default(keras: Any, tmp_path: Path) -> None:
    converted = convert(randomize(convs(keras)), tmp_path)
    listed = list_layers(converted.path)
    assert [layer.name for layer in listed] == ZOO[convs].split()
    assert [layer.kind for layer in listed] == ["conv"] * 7 + ["pool"] * 2
    classes = [type(converted.model.get_layer(layer.name)).__name__ for layer in listed]
    assert [layer.source for layer in listed] == classes


def test_a_conv_subclass_of_the_user_is_a_conv(keras: Any, tmp_path: Path) -> None:
    class Sharp(keras.layers.Conv2D):  # type: ignore[misc]
        pass

    converted = convert(keras.Sequential([keras.Input((7, 8, 3)), Sharp(2, 3, name="sharp")]), tmp_path)
    (layer,) = list_layers(converted.path)
    assert (layer.name, layer.kind, layer.source) == ("sharp", "conv", "Sharp")


def test_layers_that_a_layer_calls_in_a_loop_are_not_listed_apart(keras: Any, tmp_path: Path) -> None:
    layers = keras.layers
    film = keras.Input((3, 6, 5, 1))
    x = layers.TimeDistributed(layers.Conv2D(2, 3, name="conv"), name="each_frame")(film)
    x = layers.TimeDistributed(layers.Flatten(name="flat"), name="flatten")(x)
    x = layers.SimpleRNN(3, name="recurrent")(x)
    converted = convert(randomize(keras.Model(film, x)), tmp_path)
    assert converted.names == ["each_frame", "flatten", "recurrent"]
    feeds = feeds_for(converted.model)
    assert_close(converted.outputs(feeds)[0], in_keras(converted.model, feeds))


def test_a_subclassed_block_inside_a_functional_model_is_looked_into(keras: Any, tmp_path: Path) -> None:
    class Block(keras.layers.Layer):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(name="block")
            self.conv = keras.layers.Conv2D(2, 3, name="conv")

        def call(self, x: Any) -> Any:
            return keras.ops.relu(self.conv(x))

    picture = keras.Input((7, 8, 3))
    model = keras.Model(picture, keras.layers.MaxPooling2D(name="pool")(Block()(picture)))
    assert convert(model, tmp_path).names == ["block/conv", "pool"]


def several(keras: Any) -> Any:
    layers = keras.layers
    left, right = keras.Input((9, 8, 3), name="left"), keras.Input((9, 8, 1), name="right")
    both = layers.Concatenate(name="both")(
        [layers.Conv2D(4, 3, name="conv_left")(left), layers.Conv2D(4, 3, name="conv_right")(right)]
    )
    return keras.Model(
        [left, right], [layers.Conv2D(2, 1, name="map")(both), layers.GlobalMaxPooling2D(name="top")(both)]
    )


several_inputs = converted_once(several)


def test_axes_without_a_length_have_names(keras: Any, tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((None, 3)), keras.layers.Conv1D(2, 3, name="conv")])
    (value,) = onnx.load(convert(model, tmp_path).path).graph.input
    assert [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim] == ["N", "axis_1", 3]


def test_several_inputs_and_outputs_keep_name_order_and_value(keras: Any, several_inputs: Converted) -> None:
    graph = onnx.load(several_inputs.path).graph
    assert [value.name for value in graph.input] == ["left", "right"]
    assert [value.name for value in graph.output] == ["map", "top"] == several_inputs.model.output_names
    feeds = feeds_for(several_inputs.model)
    for value, expected in zip(several_inputs.outputs(feeds), in_keras(several_inputs.model, feeds), strict=True):
        assert_close(value, expected)
    values = several_inputs.values(feeds)
    for name in ("conv_left", "conv_right", "both", "map", "top"):
        output = several_inputs.model.get_layer(name).output
        assert_close(values[name], keras.Model(several_inputs.model.inputs, output).predict(feeds, verbose=0))


def test_a_model_without_one_picture_has_no_preprocessing(several_inputs: Converted, tmp_path: Path) -> None:
    assert "preprocessing" not in several_inputs.document
    for asked in ({"scale": 1.0}, Preprocessing()):
        with pytest.raises(ConversionError, match=r"does not take one picture, so it has no preprocessing: leave that"):
            convert_keras(several_inputs.model, tmp_path / "model.onnx", preprocessing=asked)
    assert list(tmp_path.iterdir()) == []


def test_inputs_and_outputs_in_dictionaries_are_converted(keras: Any, tmp_path: Path) -> None:
    layers = keras.layers
    inputs = {"zebra": keras.Input((9, 8, 3), name="zebra"), "ape": keras.Input((4,), name="ape")}
    pooled = layers.GlobalAveragePooling2D(name="mean")(layers.Conv2D(4, 3, name="conv")(inputs["zebra"]))
    model = randomize(keras.Model(inputs, {"sum": layers.Add(name="add")([pooled, inputs["ape"]]), "mean": pooled}))
    converted = convert(model, tmp_path)
    graph = onnx.load(converted.path).graph
    names = [value.name for value in graph.input]
    assert sorted(names) == ["ape", "zebra"]
    by_name = dict(zip((tensor.name for tensor in model.inputs), feeds_for(model), strict=True))
    results = run(onnx.load(converted.path), ["add", "mean"], [by_name[name] for name in names])
    expected = model.predict(by_name, verbose=0)
    assert_close(results[0], expected["sum"])
    assert_close(results[1], expected["mean"])


def test_an_input_that_nothing_uses_is_still_an_input(keras: Any, tmp_path: Path) -> None:
    used, unused = keras.Input((9, 8, 3), name="used"), keras.Input((5,), name="unused")
    converted = convert(keras.Model([used, unused], keras.layers.Conv2D(2, 3, name="conv")(used)), tmp_path)
    assert [value.name for value in onnx.load(converted.path).graph.input] == ["used", "unused"]


def test_outputs_that_keras_gives_one_name_are_numbered(keras: Any, tmp_path: Path) -> None:
    picture = keras.Input((9, 8, 3), name="picture")
    x = keras.layers.Conv2D(2, 3, name="conv")(picture)
    for number, outputs in enumerate(([x, x], [x, picture])):  # ONNX has one namespace for inputs and outputs
        folder = tmp_path / str(number)
        folder.mkdir()
        converted = convert(keras.Model(picture, outputs), folder)
        assert [value.name for value in onnx.load(converted.path).graph.output] == ["output_0", "output_1"]
        feeds = feeds_for(converted.model)
        for value, expected in zip(converted.outputs(feeds), in_keras(converted.model, feeds), strict=True):
            assert_close(value, expected)


def test_a_layer_that_only_passes_the_input_on_is_absent(keras: Any, tmp_path: Path) -> None:
    layers = keras.layers
    model = keras.Sequential(
        [keras.Input((9, 8, 3)), layers.Dropout(0.5, name="drop"), layers.Conv2D(2, 3, name="conv")]
    )
    converted = convert(model, tmp_path)
    assert [(x.name, x.reason) for x in converted.conversion.absent] == [("drop", "it passes an input of the model on")]
    assert [(x["name"], x["status"], x["value"] is None) for x in converted.document["layer_map"]] == [
        ("drop", "absent", True),
        ("conv", "exact", False),
    ]
    assert [layer.name for layer in list_layers(converted.path, "kind:any")] == ["conv"]


def test_padding_that_became_part_of_a_conv_is_absent(keras: Any, tmp_path: Path) -> None:
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((9, 8, 3)),
            layers.ReLU(name="relu"),
            layers.ZeroPadding2D(name="pad"),
            layers.Conv2D(2, 3, name="conv"),
        ]
    )
    converted = convert(randomize(model), tmp_path)
    (absent,) = converted.conversion.absent
    assert (absent.name, absent.reason) == ("pad", "its padding became part of the layer behind it")
    feeds = feeds_for(model)
    assert_close(converted.values(feeds)["conv"], in_keras(model, feeds))


def test_a_second_conversion_in_the_process_names_its_own_layers(keras: Any, tmp_path: Path) -> None:
    names = []
    for number in range(2):
        model = keras.Sequential(
            [keras.Input((9, 8, 3)), keras.layers.Conv2D(2, 3), keras.layers.Conv2D(2, 3), keras.layers.MaxPooling2D()]
        )
        folder = tmp_path / str(number)
        folder.mkdir()
        converted = convert(randomize(model, seed=number), folder)
        again = convert(model, folder, overwrite=True)
        assert converted.names == again.names == [layer.name for layer in model.layers]
        names += converted.names
        feeds = feeds_for(model)
        expected = keras.Model(model.inputs, [layer.output for layer in model.layers]).predict(feeds, verbose=0)
        for value, wanted in zip(again.values(feeds).values(), expected, strict=True):
            assert_close(value, wanted)
    assert len(set(names)) == 6  # Keras numbers on, so the second model's names are new ones


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_saved_model_with_optimizer_state_is_converted(keras: Any, tmp_path: Path, suffix: str) -> None:
    model = sequential(keras)
    model.compile("adam", "mse")
    feeds = feeds_for(model)
    model.fit(feeds[0], np.zeros((2, 5)), verbose=0)
    path = tmp_path / f"saved{suffix}"
    model.save(path)
    before = path.read_bytes()
    convert_keras(str(path), tmp_path / "model.onnx")
    assert path.read_bytes() == before
    assert_close(run(onnx.load(tmp_path / "model.onnx"), None, feeds)[0], in_keras(model, feeds))


def test_preprocessing_is_that_of_keras_by_default(keras: Any, tmp_path: Path) -> None:
    stored = convert(sequential(keras), tmp_path).document["preprocessing"]
    assert stored == {
        "size": [20, 24],
        "scale": 1 / 255,
        "mean": [0.0],
        "std": [1.0],
        "color": "rgb",
        "interpolation": "nearest",
        "aspect": "stretch",
        "resampling": "pillow",
        "fill": 0.0,
    }


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (symbolic, {"size": None}),
        (up_and_down, {"color": "gray"}),
        (levels, {"scale": 1.0}),  # scaled by 1/255, a picture of integers would be black
    ],
)
def test_preprocessing_follows_from_the_input(
    keras: Any, tmp_path: Path, build: Build, expected: dict[str, Any]
) -> None:
    stored = convert(build(keras), tmp_path).document["preprocessing"]
    assert {key: stored[key] for key in expected} == expected


def test_a_picture_of_integers_reaches_the_model_as_keras_gives_it(keras: Any, tmp_path: Path) -> None:
    converted = convert(randomize(levels(keras)), tmp_path)
    picture = np.random.default_rng(1).integers(0, 256, (9, 8, 3)).astype(np.uint8)
    features = FeatureExtractor(converted.path, provider="cpu")(picture)
    expected = converted.model.predict(picture[None], verbose=0)
    assert_close(np.moveaxis(features["conv"].array, 1, -1), expected)


def test_preprocessing_can_be_changed_in_part_or_in_whole(keras: Any, tmp_path: Path) -> None:
    model = sequential(keras)
    changed = convert(model, tmp_path, preprocessing={"scale": 1.0, "color": "bgr", "mean": (103.9, 116.8, 123.7)})
    stored = changed.document["preprocessing"]
    assert (stored["scale"], stored["color"], stored["mean"]) == (1.0, "bgr", [103.9, 116.8, 123.7])
    assert (stored["interpolation"], stored["size"]) == ("nearest", [20, 24])  # what was not named stays Keras's
    whole = Preprocessing(interpolation="bicubic")
    replaced = convert(model, tmp_path, preprocessing=whole, overwrite=True)
    assert replaced.document["preprocessing"]["interpolation"] == "bicubic"
    assert replaced.conversion.preprocessing == whole


@pytest.mark.parametrize("asked", [{"size": (24, 20)}, Preprocessing(size=(24, 20))])
def test_a_size_that_does_not_fit_the_input_is_refused(keras: Any, tmp_path: Path, asked: Any) -> None:
    with pytest.raises(ConversionError, match=r"size \(24, 20\) does not fit the model's input of 20 x 24 pixels"):
        convert(sequential(keras), tmp_path, preprocessing=asked)
    assert list(tmp_path.iterdir()) == []


def test_a_size_can_be_given_to_a_model_of_any_size(keras: Any, tmp_path: Path) -> None:
    stored = convert(symbolic(keras), tmp_path, preprocessing={"size": (24, 20)}).document["preprocessing"]
    assert stored["size"] == [24, 20]


def test_an_unknown_field_of_preprocessing_is_refused(keras: Any, tmp_path: Path) -> None:
    with pytest.raises(PictureError, match="preprocessing has no field 'scales'"):
        convert(sequential(keras), tmp_path, preprocessing={"scales": 1.0})
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_scales_by_itself_is_not_scaled_twice(keras: Any, tmp_path: Path) -> None:
    converted = convert(scaling(keras), tmp_path)
    (note,) = converted.conversion.notes
    assert note == "the model scales its input itself (layer 'rescale'), so pictures are not scaled before"
    assert converted.conversion.preprocessing is not None
    assert converted.conversion.preprocessing.scale == 1


def test_a_model_that_would_be_scaled_twice_gives_a_note(keras: Any, tmp_path: Path) -> None:
    (note,) = convert(scaling(keras), tmp_path, preprocessing="keras").conversion.notes
    assert note.startswith("the model scales its input itself (layer 'rescale'), and pictures are scaled by 0.0039")


def test_what_was_assumed_of_the_pictures_is_told(keras: Any, tmp_path: Path) -> None:
    (note,) = convert(sequential(keras), tmp_path).conversion.notes
    assert "does not say how its pictures were prepared, so Keras's default is stored (nearest, 1/255)" in note
    assert convert(sequential(keras), tmp_path, preprocessing="keras", overwrite=True).conversion.notes == ()


@pytest.mark.parametrize("opset", [13, 18])
def test_the_file_has_the_opset_that_was_asked_for(keras: Any, tmp_path: Path, opset: int) -> None:
    layers = keras.layers
    model = keras.Sequential(
        [keras.Input((9, 8, 3)), layers.Conv2D(4, 3, activation="gelu"), layers.GlobalAveragePooling2D()]
    )
    converted = convert(randomize(model), tmp_path, opset=opset)
    versions = {entry.domain: entry.version for entry in onnx.load(converted.path).opset_import}
    assert versions[""] == opset == converted.conversion.opset
    feeds = feeds_for(converted.model)
    assert_close(converted.outputs(feeds)[0], in_keras(converted.model, feeds))


def test_every_stage_is_told(keras: Any, tmp_path: Path) -> None:
    sequential(keras).save(tmp_path / "saved.keras")
    stages: list[str] = []
    convert_keras(tmp_path / "saved.keras", tmp_path / "model.onnx", progress=stages.append)
    assert stages == [
        "starting TensorFlow",
        "loading the model and tracing its layers",
        "converting to ONNX",
        "mapping the layers",
        "computing every layer in Keras, and its rounding noise",
        "comparing every layer",
        "writing the file",
        "loading and running the file",
    ]


# What is off is refused.


@pytest.fixture
def after_conversion(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Any]], None]:
    """Let a function change the converted model and its layer map before they are compared with Keras."""
    original = cleaning.without_watchers

    def install(change: Callable[..., Any]) -> None:
        monkeypatch.setattr(conversion_module, "without_watchers", lambda *arguments: change(*original(*arguments)))

    return install


Install = Callable[[Callable[..., Any]], None]


def double_weights_of(model: onnx.ModelProto, value: str) -> None:
    node = next(node for node in model.graph.node if node.op_type == "Conv" and value in node.output)
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == node.input[1])
    weight.CopyFrom(onnx.numpy_helper.from_array(2 * onnx.numpy_helper.to_array(weight), weight.name))


def three_convs(keras: Any) -> Any:
    conv = keras.layers.Conv2D
    return randomize(
        keras.Sequential(
            [keras.Input((9, 9, 2)), *(conv(2, 3, padding="same", name=name) for name in ("first", "second", "third"))]
        )
    )


def test_a_wrong_weight_is_refused_with_the_first_layer_that_is_off(
    keras: Any, tmp_path: Path, after_conversion: Install
) -> None:
    def change(model: onnx.ModelProto, layer_map: Any) -> Any:
        double_weights_of(model, layer_map[1].value)
        return model, layer_map

    after_conversion(change)
    message = (
        r"3 of 4 layers differ from Keras .*, first 'second': off by \d\.\de[-+]\d\d of its range.*no file was written"
    )
    with pytest.raises(ConversionError, match=message):
        convert(three_convs(keras), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_was_there_outlives_a_failed_conversion(
    keras: Any, tmp_path: Path, after_conversion: Install
) -> None:
    def change(model: onnx.ModelProto, layer_map: Any) -> Any:
        double_weights_of(model, layer_map[0].value)
        return model, layer_map

    after_conversion(change)
    (tmp_path / "model.onnx").write_bytes(b"of yesterday")
    with pytest.raises(ConversionError, match="differ from Keras"):
        convert(three_convs(keras), tmp_path, overwrite=True)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"of yesterday"]


def test_a_layer_that_is_mapped_to_another_ones_value_is_refused(
    keras: Any, tmp_path: Path, after_conversion: Install
) -> None:
    def change(model: onnx.ModelProto, layer_map: Any) -> Any:
        first, second, third = layer_map
        return model, [first, replace(second, value=first.value), third]

    after_conversion(change)
    with pytest.raises(ConversionError, match=r"1 of 4 layers differ from Keras .*, first 'second'"):
        convert(three_convs(keras), tmp_path)


def test_a_layout_that_is_not_so_is_refused(keras: Any, tmp_path: Path, after_conversion: Install) -> None:
    def change(model: onnx.ModelProto, layer_map: Any) -> Any:
        return model, [replace(layer, layout="NCWH") for layer in layer_map]  # square maps: the shape stays the same

    after_conversion(change)
    with pytest.raises(ConversionError, match=r"3 of 4 layers differ from Keras .*, first 'first'"):
        convert(three_convs(keras), tmp_path)


def test_a_value_of_another_shape_is_refused(keras: Any, tmp_path: Path, after_conversion: Install) -> None:
    def change(model: onnx.ModelProto, layer_map: Any) -> Any:
        return model, [replace(layer, layout=None) for layer in layer_map]

    after_conversion(change)
    with pytest.raises(ConversionError, match="first 'first': off by nan"):
        convert(three_convs(keras), tmp_path)


def test_values_that_are_nan_in_onnx_alone_are_refused(keras: Any, tmp_path: Path, after_conversion: Install) -> None:
    def change(model: onnx.ModelProto, layer_map: Any) -> Any:
        for tensor in model.graph.initializer:
            array = onnx.numpy_helper.to_array(tensor)
            if array.ndim == 4:
                tensor.CopyFrom(onnx.numpy_helper.from_array(np.full_like(array, np.nan), tensor.name))
        return model, layer_map

    after_conversion(change)
    with pytest.raises(ConversionError, match="4 of 4 layers differ from Keras"):
        convert(three_convs(keras), tmp_path)


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_a_model_whose_own_values_are_not_finite_is_converted(keras: Any, tmp_path: Path, number: float) -> None:
    model = three_convs(keras)
    bias = model.get_layer("second").bias
    bias.assign([number, 0.0])  # one channel of the second layer, and all of the third
    converted = convert(model, tmp_path)
    values = converted.values(feeds_for(model))
    assert np.isfinite(values["first"]).all()
    assert all(layer.error < 1e-5 for layer in converted.conversion.layers)
    assert converted.conversion.layers[1].noise > 0  # that of the channel that is finite
    assert not np.isfinite(values["second"][..., 0]).any()
    assert np.isfinite(values["second"][..., 1]).all()


def test_an_output_of_whole_numbers_must_be_equal(keras: Any, tmp_path: Path, after_conversion: Install) -> None:
    class Sign(keras.layers.Layer):  # type: ignore[misc]
        def call(self, x: Any) -> Any:
            return keras.ops.cast(x > 0, "int32")

    conv = keras.layers.Conv2D(2, 3, name="conv")
    model = randomize(keras.Sequential([keras.Input((9, 9, 2)), conv, Sign(name="sign")]))
    assert convert(model, tmp_path).conversion.layers[-1].error == 0

    def change(converted: onnx.ModelProto, layer_map: Any) -> Any:
        for tensor in converted.graph.initializer:
            array = onnx.numpy_helper.to_array(tensor)
            if array.ndim == 4:
                tensor.CopyFrom(onnx.numpy_helper.from_array(-array, tensor.name))
        return converted, layer_map

    after_conversion(change)
    with pytest.raises(ConversionError, match=r"3 of 3 layers differ from Keras .*, first 'conv'"):
        convert(model, tmp_path, overwrite=True)


@pytest.mark.parametrize(
    ("error", "noise", "is_off"),
    [
        (9e-6, 0.0, False),
        (2e-5, 1e-6, True),
        (2e-4, 1.1e-4, False),  # Keras itself is no closer to Keras
        (2e-4, 0.9e-4, True),
        (float("nan"), 0.0, True),
        (float("nan"), float("inf"), True),
    ],
)
def test_a_layer_may_be_off_by_the_tolerance_or_by_its_own_noise(error: float, noise: float, is_off: bool) -> None:
    agreements = [LayerAgreement(name="fine", error=0.0, noise=0.0), LayerAgreement(name="x", error=error, noise=noise)]
    if is_off:
        with pytest.raises(ConversionError, match="1 of 2 layers differ from Keras 3, first 'x'"):
            refuse_disagreement(agreements, "Keras 3")
    else:
        refuse_disagreement(agreements, "Keras 3")


@pytest.mark.parametrize(
    ("error", "noise", "local", "expected"),
    [
        (1.3, 0.5, 1e-7, True),  # a few runs more may show noise enough
        (0.9, 0.5, 1e-7, False),  # not off
        (0.05, 0.02, 1e-7, True),
        (1.3, 0.5, 1e-2, False),  # wrong by itself
        (1e-3, 1e-5, 1e-7, False),  # noise that few runs tell well
    ],
)
def test_only_layers_of_wild_noise_are_decided_by_more_runs(
    error: float, noise: float, local: float, expected: bool
) -> None:
    found = LayerAgreement(name="x", error=error, noise=noise, local=local, local_noise=1e-7)
    assert is_undecided([LayerAgreement(name="fine", error=0.0, noise=0.0), found]) is expected


def test_more_runs_never_show_less_noise(keras: Any) -> None:
    source = KerasModel(randomize(sequential(keras)))
    expected = expected_of(source, None)
    more = with_more_noise(source, expected)
    assert all(after >= before for before, after in zip(expected.noise, more.noise, strict=True))
    assert any(after > before for before, after in zip(expected.noise, more.noise, strict=True))


def test_rounding_noise_grows_with_what_a_layer_amplifies(keras: Any, tmp_path: Path) -> None:
    layers = keras.layers
    picture = keras.Input((9, 8, 3))
    x = layers.Conv2D(2, 3, name="conv")(picture)
    x = layers.Rescaling(1.0, offset=1000.0, name="far")(x)  # only the last digits still tell the cells apart
    x = layers.Rescaling(1.0, offset=-1000.0, name="back")(x)
    conversion = convert(randomize(keras.Model(picture, x)), tmp_path).conversion
    noise = {layer.name: layer.noise for layer in conversion.layers}
    assert 0 < noise["conv"] < 1e-5
    assert noise["back"] > 20 * noise["conv"]


# Models and files that can't be converted.


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    """A place to write to, which must still be empty at the end."""
    folder = tmp_path / "out"
    folder.mkdir()
    yield folder / "model.onnx"
    assert list(folder.iterdir()) == []


def test_a_missing_file_is_refused(tmp_path: Path, target: Path) -> None:
    with pytest.raises(ConversionError, match=r"there is no file .*absent\.keras: check the path of the model"):
        convert_keras(tmp_path / "absent.keras", target)


def test_a_folder_that_is_no_saved_model_is_refused(tmp_path: Path, target: Path) -> None:
    with pytest.raises(ConversionError, match=r"no SavedModel"):
        convert_keras(tmp_path, target)


def test_a_file_with_another_ending_is_refused(models: Path, target: Path) -> None:
    with pytest.raises(
        ConversionError, match=r"shapes_small\.onnx is no \.keras, \.h5, \.hdf5 or \.tflite file and no SavedModel"
    ):
        convert_keras(models / "shapes_small.onnx", target)


@pytest.mark.parametrize("name", ["noise.keras", "noise.h5"])
def test_a_file_that_is_no_keras_model_is_refused(tmp_path: Path, target: Path, name: str) -> None:
    (tmp_path / name).write_bytes(np.random.default_rng(0).bytes(5000))
    with pytest.raises(ConversionError, match=rf"{name} is not what its name says, or empty: save the model again"):
        convert_keras(tmp_path / name, target)


def test_a_truncated_file_is_refused(tmp_path: Path, models: Path, target: Path) -> None:
    content = (models / "shapes_small.keras").read_bytes()
    (tmp_path / "half.keras").write_bytes(content[: len(content) // 2])
    with pytest.raises(ConversionError, match=r"half\.keras is damaged, .*: save the model again"):
        convert_keras(tmp_path / "half.keras", target)


def test_a_file_of_weights_alone_is_refused(keras: Any, tmp_path: Path, target: Path) -> None:
    sequential(keras).save_weights(tmp_path / "only.weights.h5")
    with pytest.raises(ConversionError, match=r"holds weights alone, .*load_weights\('only\.weights\.h5'\)"):
        convert_keras(tmp_path / "only.weights.h5", target)


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_code_in_a_file_is_not_run(keras: Any, tmp_path: Path, target: Path, suffix: str) -> None:
    trace = tmp_path / "was_here"
    text = str(trace)
    trap = keras.layers.Lambda(lambda x: (open(text, "w").close(), x)[1], output_shape=(4,))  # type: ignore[func-returns-value]  # noqa: PTH123
    model = keras.Sequential([keras.Input((4,)), trap])
    model.save(tmp_path / f"trap{suffix}")
    trace.unlink(missing_ok=True)
    with pytest.raises(
        ConversionError, match=r"holds code that would run .*\(Lambda layer '.*'\).*not loaded: .*--unsafe"
    ):
        convert_keras(tmp_path / f"trap{suffix}", target)
    assert not trace.exists()


def test_a_layer_that_keras_does_not_know_is_refused_in_a_file_and_taken_alive(
    keras: Any, tmp_path: Path, target: Path
) -> None:
    class Doubled(keras.layers.Layer):  # type: ignore[misc]
        def call(self, x: Any) -> Any:
            return 2 * x

    layers = keras.layers
    model = keras.Sequential([keras.Input((9, 8, 3)), Doubled(name="doubled"), layers.Conv2D(2, 3, name="conv")])
    model.save(tmp_path / "custom.keras")
    with pytest.raises(
        ConversionError, match=r"layers of its own \(Doubled\).*--custom-objects layers\.py, or pass a live"
    ):
        convert_keras(tmp_path / "custom.keras", target)
    assert convert(model, tmp_path).names == ["doubled", "conv"]


@pytest.mark.parametrize("thing", [None, 7, b"model"])
def test_what_is_no_model_is_refused(target: Path, thing: object) -> None:
    with pytest.raises(ConversionError, match=f"{type(thing).__name__} is not a Keras model: pass a keras.Model or a"):
        convert_keras(thing, target)


def test_a_model_without_an_input_shape_is_refused(keras: Any, target: Path) -> None:
    with pytest.raises(ConversionError, match=r"model 'shapeless' has no input shape yet: .*--input-shape"):
        convert_keras(keras.Sequential([keras.layers.Conv2D(2, 3)], name="shapeless"), target)


def failing(keras: Any, error: Callable[[], Exception | None]) -> Any:
    """Return a model that was built well, and whose layer raises what `error` gives from then on."""

    class Fragile(keras.layers.Layer):  # type: ignore[misc]
        armed = False

        def call(self, x: Any) -> Any:
            found = error() if self.armed else None
            if found is not None:
                raise found
            return x * 1

    model = keras.Sequential([keras.Input((9, 8, 3)), Fragile(name="fragile")], name="frail")
    model.get_layer("fragile").armed = True
    return model


@pytest.mark.parametrize(
    ("error", "reason"), [(ValueError("the filter is\ntoo large"), "the filter is"), (ValueError(), "Value")]
)
def test_a_model_that_does_not_run_is_refused(keras: Any, target: Path, error: Exception, reason: str) -> None:
    with pytest.raises(ConversionError, match=f"model 'frail' can't be traced: {reason}.*check that it runs in Keras"):
        convert_keras(failing(keras, lambda: error), target)


def test_a_model_that_this_machine_can_not_run_is_refused(keras: Any, target: Path) -> None:
    import tensorflow as tf

    error = RuntimeError("{{function_node x}} \x1b[1mno such kernel\x1b[0m\nhere")
    model = failing(keras, lambda: error if tf.executing_eagerly() else None)
    with pytest.raises(
        ConversionError, match=r"Keras can't run model 'frail' on this machine.*compared: no such kernel$"
    ):
        convert_keras(model, target)


def test_an_operation_that_onnx_does_not_have_is_named(keras: Any, target: Path) -> None:
    picture = keras.Input((9, 8, 3))
    with pytest.raises(
        ConversionError, match=r"can't convert the model: ONNX has no operator for .*'Erfinv'.*; replace"
    ):
        convert_keras(keras.Model(picture, keras.ops.erfinv(picture)), target)


@pytest.mark.parametrize("opset", [12, 99])
def test_an_opset_that_tf2onnx_can_not_write_is_refused(keras: Any, target: Path, opset: int) -> None:
    with pytest.raises(ConversionError, match=rf"opset {opset} can't be written by tf2onnx [\d.]+: choose 13 to \d\d"):
        convert_keras(sequential(keras), target, opset=opset)


def test_an_existing_file_is_kept(keras: Any, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"mine")
    stages: list[str] = []
    with pytest.raises(OutputError, match=r"model\.onnx exists already and is left as it is"):
        convert(sequential(keras), tmp_path, progress=stages.append)
    assert stages == []  # before the work, not after minutes of it
    assert (tmp_path / "model.onnx").read_bytes() == b"mine"
    converted = convert(sequential(keras), tmp_path, overwrite=True)
    assert converted.names == ["conv", "pool", "flat", "probabilities"]
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_a_folder_that_is_not_there_is_refused_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="does not exist: make it first"):
        convert_keras(tmp_path / "absent.keras", tmp_path / "nowhere" / "model.onnx")


@pytest.mark.parametrize(("package", "name"), [("tensorflow", "TensorFlow"), ("tf2onnx", "tf2onnx")])
def test_a_missing_package_is_an_instruction(
    keras: Any, target: Path, monkeypatch: pytest.MonkeyPatch, package: str, name: str
) -> None:
    model = sequential(keras)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError, match=rf'converting needs {name} \(.*\): pip install "onnxfeat\[keras\]"'):
        convert_keras(model, target)


@pytest.fixture
def after_tf2onnx(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[onnx.ModelProto], None]], None]:
    """Let a function change, or fail, what tf2onnx gives."""
    original = tensorflow_graphs.optimized

    def install(change: Callable[[onnx.ModelProto], None]) -> None:
        def optimized(make_graph: Any) -> onnx.ModelProto:
            model = original(make_graph)
            change(model)
            return model

        monkeypatch.setattr(tensorflow_graphs, "optimized", optimized)

    return install


def test_a_failure_of_tf2onnx_is_told(keras: Any, target: Path, after_tf2onnx: Install) -> None:
    def change(_: onnx.ModelProto) -> None:
        raise AssertionError

    after_tf2onnx(change)
    with pytest.raises(ConversionError, match=r"tf2onnx [\d.]+ can't convert the model: AssertionError"):
        convert_keras(sequential(keras), target)


def test_a_lost_output_is_an_error(keras: Any, target: Path, after_tf2onnx: Install) -> None:
    after_tf2onnx(lambda model: model.graph.output.pop())
    with pytest.raises(ConversionError, match="another number of outputs than it was given: report it"):
        convert_keras(sequential(keras), target)


def test_an_input_without_a_value_is_an_error(keras: Any, target: Path, after_tf2onnx: Install) -> None:
    phantom = onnx.helper.make_tensor_value_info("phantom", onnx.TensorProto.FLOAT, [3])
    after_tf2onnx(lambda model: model.graph.input.append(phantom))
    with pytest.raises(ConversionError, match="made an input 'phantom' that the model does not have: report it"):
        convert_keras(sequential(keras), target)


def test_a_model_that_onnx_runtime_can_not_load_is_an_error(
    keras: Any, target: Path, after_conversion: Install
) -> None:
    def change(model: onnx.ModelProto, layer_map: Any) -> Any:
        model.graph.node[-1].input[0] = "nowhere"
        return model, layer_map

    after_conversion(change)
    with pytest.raises(ConversionError, match=r"the conversion gave a model that does not load: .*nowhere"):
        convert_keras(sequential(keras), target)


def test_a_model_that_onnx_runtime_can_not_run_is_an_error(keras: Any, target: Path, after_conversion: Install) -> None:
    def change(model: onnx.ModelProto, layer_map: Any) -> Any:
        model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 21
        return model, layer_map

    after_conversion(change)
    with pytest.raises(ConversionError, match=r"gave a model that ONNX Runtime can't run: .*dimension"):
        convert_keras(sequential(keras), target)


@pytest.mark.parametrize("fails", [False, True])
def test_model_and_keras_are_left_as_they_were(keras: Any, tmp_path: Path, fails: bool) -> None:
    import tensorflow as tf

    model = randomize(
        keras.Sequential(
            [
                keras.Input((9, 8, 3)),
                keras.layers.RandomFlip(),
                keras.layers.Conv2D(2, 3, name="conv"),
                keras.layers.BatchNormalization(name="bn"),
                keras.layers.Dropout(0.5),
            ]
        )
    )
    model.compile("adam", "mse")
    before = [weight.numpy() for weight in model.weights]
    config, call = model.get_config(), keras.layers.Layer.__call__
    if fails:
        call_of_conv = model.get_layer("conv").call
        model.get_layer("conv").call = lambda *_, **__: 1 / 0
        with pytest.raises(ConversionError, match="can't be traced: division by zero"):
            convert(model, tmp_path)
        model.get_layer("conv").call = call_of_conv
    else:
        convert(model, tmp_path)
    assert keras.layers.Layer.__call__ is call
    assert not tf.config.functions_run_eagerly()
    assert model.get_config() == config
    assert model.optimizer is not None
    for weight, old in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight.numpy(), old)


def test_the_same_model_gives_the_same_bytes(models: Path, tmp_path: Path) -> None:
    for name in ("one.onnx", "two.onnx"):  # in processes of their own, whose sets are in another order
        files = [str(models / "shapes_small.keras"), "-o", str(tmp_path / name)]
        subprocess.run([sys.executable, "-m", "onnxfeat", "convert", *files, "-q"], check=True, capture_output=True)
    one, two = (onnx.load(tmp_path / name) for name in ("one.onnx", "two.onnx"))
    assert one.graph == two.graph


def test_no_transpose_is_left_that_another_one_undoes(models: Path) -> None:
    graph = onnx.load(models / "shapes_small.onnx").graph
    transposes = [node for node in graph.node if node.op_type == "Transpose"]
    assert [node.input[0] for node in transposes] == ["input"]


def test_a_color_that_does_not_fit_the_input_is_refused(keras: Any, tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((9, 8, 3)), keras.layers.Conv2D(2, 3)])
    with pytest.raises(ConversionError, match=r"color 'gray' does not fit the model's 3 channels: set 'rgb' or 'bgr'"):
        convert_keras(model, tmp_path / "a.onnx", preprocessing={"color": "gray"})
    assert list(tmp_path.iterdir()) == []


def test_a_model_of_four_channels_takes_no_picture_and_says_so(keras: Any, tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((9, 8, 4)), keras.layers.Conv2D(2, 3, name="conv")])
    converted = convert(model, tmp_path)
    assert converted.conversion.preprocessing is None
    assert converted.conversion.to_json()["preprocessing"] is None
    assert "feed it preprocessed arrays" in converted.conversion.notes[0]
    features = FeatureExtractor(converted.path, provider="cpu")(np.zeros((1, 9, 8, 4), np.float32))
    assert features["conv"].shape == (1, 2, 7, 6)
    with pytest.raises(ConversionError, match="takes 4 channels, which no picture has"):
        convert_keras(model, tmp_path / "b.onnx", preprocessing={"scale": 1.0})


@pytest.mark.parametrize("name", ["empty.keras", "empty.h5"])
def test_an_empty_file_is_refused_as_such(tmp_path: Path, target: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(ConversionError, match="is not what its name says, or empty"):
        convert_keras(tmp_path / name, target)


def test_an_unreadable_file_is_refused(tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secret.keras"
    path.touch()

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # root may read everything
    with pytest.raises(ConversionError, match="keras can't be read: Permission denied"):
        convert_keras(path, target)


def test_a_missing_runtime_is_told_before_the_work(keras: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingPackageError, match="converting needs ONNX Runtime to compare the result: pip install"):
        convert_keras(sequential(keras), tmp_path / "a.onnx")
