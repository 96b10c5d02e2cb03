"""Every form in which a Keras model comes, and every option of the conversion; Keras itself is the oracle."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from onnxfeat import Conversion, ConversionError, OutputError, Preprocessing, check, convert_keras, list_layers
from onnxfeat.metadata import read_document

pytestmark = pytest.mark.keras
Array = NDArray[Any]


@pytest.fixture(scope="module")
def keras() -> Any:
    pytest.importorskip("tensorflow")
    import keras

    yield keras
    keras.config.set_dtype_policy("float32")


def randomize(model: Any) -> Any:
    random = np.random.default_rng(3)
    for weight in model.weights:
        if "seed" not in weight.path:
            values = random.normal(0, 0.3, weight.shape)
            weight.assign(np.abs(values) + 0.5 if "variance" in weight.path else values)
    return model


def convert(model: Any, folder: Path, **options: Any) -> Conversion:
    return convert_keras(model, folder / "model.onnx", overwrite=True, **options)


def run(path: Path, feeds: dict[str, Array]) -> dict[str, Array]:
    """Run a converted file; return the outputs and the value of each mapped layer, in the framework's order of axes."""
    model = onnx.load(path)
    layer_map = [layer for layer in read_document(path).layer_map if layer.value]
    outputs = [output.name for output in model.graph.output]
    for value in dict.fromkeys(str(layer.value) for layer in layer_map):
        if value not in outputs:
            model.graph.output.append(onnx.ValueInfoProto(name=value))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, session.run(None, feeds), strict=True))
    return {**{f"output {name}": found[name] for name in outputs}, **{x.name: found[str(x.value)] for x in layer_map}}


def assert_close(value: Array, expected: Array, tolerance: float = 2e-6) -> None:
    assert value.shape == expected.shape
    assert np.abs(value - expected).max() <= tolerance * max(float(np.ptp(expected)), 1e-3)


def noise(*shape: int) -> Array:
    return np.random.default_rng(5).random(shape, dtype=np.float32)


# Subclassed models, and models without an input shape.


def subclassed(keras: Any) -> Any:
    class Block(keras.layers.Layer):  # type: ignore[misc]
        def __init__(self, filters: int, **options: Any) -> None:
            super().__init__(**options)
            self.conv = keras.layers.Conv2D(filters, 3, padding="same", name="conv")
            self.norm = keras.layers.BatchNormalization(name="norm")

        def call(self, x: Any, training: bool = False) -> Any:
            return keras.ops.relu(self.norm(self.conv(x), training=training))

    class Net(keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(name="net")
            self.blocks = [Block(4, name="first"), Block(6, name="second")]
            self.pool = keras.layers.MaxPooling2D(name="pool")
            self.dense = keras.layers.Dense(3, name="dense")

        def call(self, x: Any, training: bool = False) -> Any:
            for block in self.blocks:
                x = self.pool(block(x, training=training))
            return self.dense(keras.ops.mean(x, axis=(1, 2)))

    return Net()


def test_the_layers_of_a_subclassed_model_are_found_by_running_it(keras: Any, tmp_path: Path) -> None:
    model = subclassed(keras)
    picture = noise(2, 20, 22, 3)
    model(picture)
    conversion = convert(randomize(model), tmp_path)
    names = [layer.name for layer in conversion.layer_map]
    assert names == ["first/conv", "first/norm", "pool#1", "second/conv", "second/norm", "pool#2", "dense"]
    found = run(conversion.path, {onnx.load(conversion.path).graph.input[0].name: picture})
    expected = model.blocks[0].conv(picture).numpy()
    assert_close(found["first/conv"].transpose(0, 2, 3, 1), expected)
    assert_close(found["dense"], model(picture, training=False).numpy())


@pytest.mark.parametrize("form", ["subclassed", "sequential"])
def test_a_model_that_was_never_called_takes_the_shape_that_is_given(keras: Any, tmp_path: Path, form: str) -> None:
    model = subclassed(keras) if form == "subclassed" else keras.Sequential([keras.layers.Conv2D(2, 3)])
    with pytest.raises(ConversionError, match=r"has no input shape yet: .*--input-shape 224x224x3"):
        convert(model, tmp_path)
    conversion = convert(model, tmp_path, input_shapes=(None, 16, 18, 3))
    shape = onnx.load(conversion.path).graph.input[0].type.tensor_type.shape.dim
    assert [axis.dim_param or axis.dim_value for axis in shape] == ["N", 16, 18, 3]


def test_a_shape_that_the_model_can_not_take_is_refused(keras: Any, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=r"does not run on inputs of the shape .*check the shape"):
        convert(keras.Sequential([keras.layers.Conv2D(2, 3)]), tmp_path, input_shapes=(None, 2, 2, 3))


def test_arguments_whose_shape_is_not_known_are_named(keras: Any, tmp_path: Path) -> None:
    class Two(keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(name="two")
            self.conv, self.dense = keras.layers.Conv2D(4, 3), keras.layers.Dense(4)

        def call(self, image: Any, facts: Any) -> Any:
            return self.conv(image) + self.dense(facts)[:, None, None, :]

    model = Two()
    image, facts = noise(2, 12, 13, 3), noise(2, 5)
    model(image, facts)
    with pytest.raises(ConversionError, match=r"several arguments \(image, facts\), and the shape of 'facts' is not"):
        convert(model, tmp_path)
    conversion = convert(model, tmp_path, input_shapes={"image": (None, 12, 13, 3), "facts": (None, 5)})
    found = run(conversion.path, {"image": image, "facts": facts})
    [output] = [value for name, value in found.items() if name.startswith("output")]
    assert_close(output, model(image, facts).numpy())


@pytest.mark.parametrize("structure", ["list", "dict"])
def test_a_subclassed_model_may_take_a_structure(keras: Any, tmp_path: Path, structure: str) -> None:
    keys: tuple[Any, Any] = (0, 1) if structure == "list" else ("image", "facts")

    class Two(keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.dense = keras.layers.Conv2D(4, 3, name="conv"), keras.layers.Dense(4, name="dense")

        def call(self, x: Any) -> Any:
            return self.conv(x[keys[0]]) + self.dense(x[keys[1]])[:, None, None, :]

    model = Two()
    model(
        [noise(1, 9, 9, 3), noise(1, 5)] if structure == "list" else {"image": noise(1, 9, 9, 3), "facts": noise(1, 5)}
    )
    assert [layer.name for layer in convert(model, tmp_path).layer_map] == ["conv", "dense"]


# Element types and layouts.


@pytest.mark.parametrize("policy", ["mixed_float16", "float16", "mixed_bfloat16"])
def test_a_model_of_mixed_precision_is_converted(keras: Any, tmp_path: Path, policy: str) -> None:
    keras.config.set_dtype_policy(policy)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((20, 20, 3)),
            layers.Conv2D(8, 3, activation="relu", name="conv"),
            layers.BatchNormalization(name="norm"),
            layers.MaxPooling2D(name="pool"),
            layers.Flatten(name="flat"),
            layers.Dense(5, activation="softmax", dtype="float32", name="dense"),
        ]
    )
    keras.config.set_dtype_policy("float32")
    conversion = convert(randomize(model), tmp_path)
    assert {layer.status for layer in conversion.layer_map} == {"exact"}
    told = [note for note in conversion.notes if "compute in bfloat16, which ONNX Runtime does not" in note]
    assert len(told) == (policy == "mixed_bfloat16")
    assert [layer.compute_dtype for layer in model.layers[:2]] == [policy.removeprefix("mixed_")] * 2  # as it was
    assert check(conversion.path, provider="cpu").passed


def test_a_model_of_float64_is_refused_with_the_way_out(keras: Any, tmp_path: Path) -> None:
    keras.config.set_dtype_policy("float64")
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(2, 3)])
    keras.config.set_dtype_policy("float32")
    with pytest.raises(ConversionError, match=r"computes in float64, .*set_dtype_policy\('float32'\).*get_weights"):
        convert(model, tmp_path)


def channels_first(keras: Any, rank: int) -> Any:
    layers, first = keras.layers, {"data_format": "channels_first"}
    picture = keras.Input((4, *(9, 10, 11)[:rank]))
    x = getattr(layers, f"Conv{rank}D")(8, 3, padding="same", activation="relu", name="conv", **first)(picture)
    x = layers.BatchNormalization(axis=1, name="norm")(x)
    if rank == 2:
        x = layers.Conv2D(8, 3, groups=2, padding="same", name="grouped", **first)(x)
        x = layers.DepthwiseConv2D(3, name="depthwise", **first)(x)
        x = layers.SeparableConv2D(4, 2, name="separable", **first)(x)
    x = getattr(layers, f"Conv{rank}DTranspose")(4, 2, strides=2, name="up", **first)(x)
    x = getattr(layers, f"MaxPooling{rank}D")(name="pool", **first)(x)
    x = getattr(layers, f"AveragePooling{rank}D")(2, padding="same", name="mean", **first)(x)
    return randomize(keras.Model(picture, getattr(layers, f"GlobalMaxPooling{rank}D")(name="peak", **first)(x)))


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_model_with_its_channels_first_is_converted(keras: Any, tmp_path: Path, rank: int) -> None:
    import tensorflow as tf

    model = channels_first(keras, rank)
    before = (tf.nn.convolution, tf.nn.conv_transpose)
    conversion = convert(model, tmp_path)
    assert (tf.nn.convolution, tf.nn.conv_transpose) == before
    assert {layer.status for layer in conversion.layer_map} == {"exact"}
    layouts = {layer.name: layer.layout for layer in conversion.layer_map}
    assert layouts["conv"] == {1: "NCW", 2: "NCHW", 3: "NCDHW"}[rank]
    # The same network with its channels last, which TensorFlow can run on a CPU, is the oracle.
    array = noise(2, 4, *(9, 10, 11)[:rank])
    last = np.moveaxis(array, 1, -1)
    kernel, bias = model.get_layer("conv").get_weights()
    expected = tf.nn.relu(tf.nn.convolution(last, kernel, padding="SAME") + bias).numpy()
    found = run(conversion.path, {onnx.load(conversion.path).graph.input[0].name: array})
    assert_close(np.moveaxis(found["conv"], 1, -1), expected)


# What the file holds.


def small(keras: Any, **options: Any) -> Any:
    layers = keras.layers
    picture = keras.Input((12, 14, 3), **options)
    x = layers.Conv2D(4, 3, activation="relu", name="conv")(picture)
    x = layers.MaxPooling2D(name="pool")(x)
    x = layers.Dense(6, name="dense")(layers.Flatten(name="flat")(x))
    return randomize(keras.Model(picture, layers.Softmax(name="probabilities")(x)))


def test_the_file_says_what_it_was_made_from_and_with(keras: Any, tmp_path: Path) -> None:
    small(keras).save(tmp_path / "saved.keras")
    conversion = convert(tmp_path / "saved.keras", tmp_path, labels=["cat", "dog", "hat"])
    document = read_document(conversion.path)
    assert document.labels == ("cat", "dog", "hat")
    assert document.origin is not None
    assert document.origin.file == "saved.keras"
    assert document.origin.sha256 == hashlib.sha256((tmp_path / "saved.keras").read_bytes()).hexdigest()
    assert document.origin.framework.startswith(f"Keras {keras.__version__} on TensorFlow")
    assert {"onnxfeat", "tf2onnx", "onnx", "onnxruntime", "keras"} <= set(document.origin.tools)


def test_reference_values_are_those_that_keras_computes(keras: Any, tmp_path: Path) -> None:
    from onnxfeat.references import KEY, Reference

    model = small(keras)
    conversion = convert(model, tmp_path)
    entries = {entry.key: entry.value for entry in onnx.load(conversion.path).metadata_props}
    reference = Reference.from_text(entries[KEY], "the file")
    [recipe] = reference.inputs
    picture = recipe.values()
    assert picture.shape == (1, 12, 14, 3)
    assert picture.dtype == np.float32
    assert 0 <= picture.min() < 0.2 < 0.8 < picture.max() <= 1
    layers = {layer.name: layer for layer in reference.layers}
    assert list(layers) == ["conv", "pool", "flat", "dense", "probabilities"]
    expected = model.get_layer("conv")(picture).numpy()
    found = layers["conv"]
    assert (found.shape, found.layout) == (expected.shape, "NHWC")
    np.testing.assert_allclose(
        (found.mean, found.std, found.min, found.max),
        (expected.mean(), expected.std(), expected.min(), expected.max()),
        rtol=1e-5,
    )
    np.testing.assert_allclose(found.channel_means, expected.mean(axis=(0, 1, 2)), rtol=1e-5)
    for index, value in found.probes:
        assert abs(expected.ravel()[index] - value) <= 1e-6


@pytest.mark.parametrize(("batch", "stated"), [(None, "N"), (0, "N"), (4, 4)])
def test_the_batch_axis_is_what_was_asked_for(keras: Any, tmp_path: Path, batch: int | None, stated: object) -> None:
    conversion = convert(small(keras), tmp_path, batch=batch)
    axis = onnx.load(conversion.path).graph.input[0].type.tensor_type.shape.dim[0]
    assert (axis.dim_param or axis.dim_value) == stated


def test_a_fixed_batch_can_be_opened(keras: Any, tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input(batch_shape=(2, 12, 12, 3)), keras.layers.Conv2D(2, 3, name="conv")])
    assert onnx.load(convert(model, tmp_path).path).graph.input[0].type.tensor_type.shape.dim[0].dim_value == 2
    conversion = convert(model, tmp_path, batch=0)
    picture = noise(5, 12, 12, 3)
    found = run(conversion.path, {onnx.load(conversion.path).graph.input[0].name: picture})
    assert_close(found["conv"].transpose(0, 2, 3, 1), model.layers[0](picture).numpy())


def test_outputs_are_called_what_was_asked_for(keras: Any, tmp_path: Path) -> None:
    model = small(keras)
    two = keras.Model(model.inputs, [model.output, model.get_layer("pool").output])
    conversion = convert(two, tmp_path, output_names=["scores", "maps"])
    assert [output.name for output in onnx.load(conversion.path).graph.output] == ["scores", "maps"]
    assert {layer.name: layer.value for layer in conversion.layer_map}["probabilities"] == "scores"
    for names, message in (
        (["one"], "1 names for 2 outputs"),
        (["same", "same"], "'same' is empty, twice there"),
        (["", "x"], "'' is empty"),
        ([two.inputs[0].name, "x"], "or an input's"),
    ):
        with pytest.raises(ConversionError, match=message):
            convert(two, tmp_path, output_names=names)


def test_weights_can_be_halved_and_it_is_told_how_far_that_moves_layers(keras: Any, tmp_path: Path) -> None:
    layers = keras.layers
    model = keras.Sequential([keras.Input((12, 14, 3)), layers.Conv2D(40, 3, name="conv"), layers.Conv2D(40, 3)])
    whole = convert(randomize(model), tmp_path).path.stat().st_size
    conversion = convert(model, tmp_path, weights="float16")
    weights = [tensor for tensor in onnx.load(conversion.path).graph.initializer if len(tensor.dims) == 4]
    assert {tensor.data_type for tensor in weights} == {onnx.TensorProto.FLOAT16}
    assert conversion.path.stat().st_size < whole - 20_000
    assert 1e-5 < conversion.worst.error < 5e-3
    assert {layer.status for layer in conversion.layer_map} == {"exact"}
    assert any("the weights are rounded to float16: that moves layers by" in note for note in conversion.notes)
    assert [layer.name for layer in list_layers(conversion.path)] == [layer.name for layer in model.layers]
    assert check(conversion.path, provider="cpu").passed
    with pytest.raises(ConversionError, match="weights 'int4' are unknown: choose 'float32' or 'float16'"):
        convert(model, tmp_path, weights="int4")


def test_a_layer_that_is_flat_on_the_reference_input_is_called_ambiguous(keras: Any, tmp_path: Path) -> None:
    model = keras.Sequential(
        [keras.Input((12, 12, 3)), keras.layers.Conv2D(2, 3, activation="relu", name="dead"), keras.layers.Flatten()]
    )
    model.get_layer("dead").set_weights([np.zeros((3, 3, 3, 2), np.float32), np.full(2, -1, np.float32)])
    (dead, _) = convert(model, tmp_path).layer_map
    assert (dead.status, dead.reason.startswith("its output is the same everywhere")) == ("ambiguous", True)


# Preprocessing.


def test_a_preset_is_stored(keras: Any, tmp_path: Path) -> None:
    conversion = convert(small(keras), tmp_path, preprocessing="caffe")
    assert conversion.preprocessing == Preprocessing(
        size=(12, 14), scale=1.0, mean=(103.939, 116.779, 123.68), color="bgr", interpolation="nearest"
    )


@pytest.mark.parametrize("kind", ["Rescaling", "Normalization"])
def test_a_model_that_scales_its_input_gets_the_levels(keras: Any, tmp_path: Path, kind: str) -> None:
    layers = keras.layers
    scaling = (
        layers.Rescaling(1 / 255) if kind == "Rescaling" else layers.Normalization(mean=[100.0] * 3, variance=[9.0] * 3)
    )
    model = keras.Sequential([keras.Input((12, 12, 3)), layers.RandomFlip(), scaling, layers.Conv2D(2, 3)])
    conversion = convert(model, tmp_path)
    assert conversion.preprocessing is not None
    assert conversion.preprocessing.scale == 1
    assert [value.name for value in onnx.load(conversion.path).graph.input] == [model.inputs[0].name]  # no phantoms


def test_statistics_of_scaled_pictures_are_no_scaling(keras: Any, tmp_path: Path) -> None:
    layers = keras.layers
    scaled = layers.Normalization(mean=[0.485, 0.456, 0.406], variance=[0.052, 0.05, 0.051])
    conversion = convert(keras.Sequential([keras.Input((12, 12, 3)), scaled, layers.Conv2D(2, 3)]), tmp_path)
    assert conversion.preprocessing is not None
    assert conversion.preprocessing.scale == 1 / 255


@pytest.mark.parametrize("kind", ["division", "caffe"])
def test_scaling_without_a_layer_is_seen_too(keras: Any, tmp_path: Path, kind: str) -> None:
    picture = keras.Input((12, 12, 3))
    x = picture / 255.0 if kind == "division" else keras.applications.vgg16.preprocess_input(picture)
    conversion = convert(keras.Model(picture, keras.layers.Conv2D(2, 3)(x)), tmp_path)
    assert conversion.preprocessing is not None
    assert conversion.preprocessing.scale == 1
    assert any("its input itself: " in note and "not scaled before" in note for note in conversion.notes)


def test_the_model_is_not_overwritten_with_its_conversion(models: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.keras"
    content = (models / "shapes_small.keras").read_bytes()
    path.write_bytes(content)
    with pytest.raises(OutputError, match="is the model itself, which would be lost: choose another name"):
        convert_keras(path, path, overwrite=True)
    assert path.read_bytes() == content


def test_a_signature_is_refused_where_there_is_none(models: Path, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="signature 'serving' was asked for, which SavedModel folders alone have"):
        convert(models / "shapes_small.keras", tmp_path, signature="serving")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("place", ["activation", "kernel_regularizer"])
def test_a_lambda_that_is_no_layer_is_refused(keras: Any, tmp_path: Path, suffix: str, place: str) -> None:
    conv = keras.layers.Conv2D(2, 3, **{place: lambda x: x * 2.0})
    keras.Sequential([keras.Input((8, 8, 3)), conv]).save(tmp_path / f"code{suffix}")
    with pytest.raises(ConversionError, match=r"\(a lambda\), so it was not loaded: .*--unsafe.*--custom-objects"):
        convert(tmp_path / f"code{suffix}", tmp_path)


def test_rescaling_behind_the_first_conv_is_no_scaling_of_the_input(keras: Any, tmp_path: Path) -> None:
    layers = keras.layers
    model = keras.Sequential([keras.Input((12, 12, 3)), layers.Conv2D(2, 3), layers.Rescaling(0.1)])
    conversion = convert(model, tmp_path)
    assert conversion.preprocessing is not None
    assert conversion.preprocessing.scale == 1 / 255


def test_a_model_that_resizes_its_input_takes_pictures_of_any_size(keras: Any, tmp_path: Path) -> None:
    layers = keras.layers
    picture = keras.Input((None, None, 3))
    x = layers.Conv2D(2, 3)(layers.Rescaling(1 / 255)(layers.Resizing(32, 30, name="resizing")(picture)))
    conversion = convert(keras.Model(picture, x), tmp_path)
    assert conversion.preprocessing is not None
    assert conversion.preprocessing.size is None
    assert any("the model resizes its input itself (layer 'resizing')" in note for note in conversion.notes)


# Safety, and files that need help.


def write_layers(folder: Path) -> Path:
    path = folder / "own_layers.py"
    path.write_text(
        textwrap.dedent(
            """
            import keras

            class Doubled(keras.layers.Layer):
                def call(self, x):
                    return 2 * x

            def squared(x):
                return x * x
            """
        )
    )
    return path


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("form", ["path", "module"])
def test_custom_objects_come_from_a_module(
    keras: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, form: str
) -> None:
    path = write_layers(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    import importlib

    sys.modules.pop("own_layers", None)
    module = importlib.import_module("own_layers")
    model = keras.Sequential(
        [keras.Input((8, 8, 3)), keras.layers.Conv2D(2, 3, activation=module.squared), module.Doubled(name="doubled")]
    )
    model.save(tmp_path / f"own{suffix}")
    with pytest.raises(ConversionError, match="--custom-objects"):
        convert(tmp_path / f"own{suffix}", tmp_path)
    objects = path if form == "path" else "own_layers"
    names = [x.name for x in convert(tmp_path / f"own{suffix}", tmp_path, custom_objects=objects).layer_map]
    assert names[-1] == "doubled"


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        ("no_such_module_anywhere", r"can't be imported \(ModuleNotFoundError"),
        (Path("absent.py"), "there is no Python file absent.py"),
    ],
)
def test_custom_objects_that_are_not_there_are_refused(
    models: Path, tmp_path: Path, objects: str | Path, message: str
) -> None:
    with pytest.raises(ConversionError, match=message):
        convert(models / "shapes_small.keras", tmp_path, custom_objects=objects)


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_lambda_layer_runs_only_where_that_is_allowed(keras: Any, tmp_path: Path, suffix: str) -> None:
    inner = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Lambda(lambda x: x * 3.0, name="triple")], name="in")
    model = keras.Sequential([keras.Input((8, 8, 3)), inner, keras.layers.Conv2D(2, 3, name="conv")])
    model.save(tmp_path / f"code{suffix}")
    with pytest.raises(ConversionError, match=r"\(Lambda layer 'triple'\), so it was not loaded: .*--unsafe"):
        convert(tmp_path / f"code{suffix}", tmp_path)
    conversion = convert(tmp_path / f"code{suffix}", tmp_path, unsafe=True)
    assert [layer.name for layer in conversion.layer_map] == ["in/triple", "conv"]


def test_a_lambda_in_a_legacy_file_is_refused_whatever_keras_does(
    keras: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {"class_name": "Sequential", "config": {"layers": [{"class_name": "Lambda", "config": {"name": "trap"}}]}}
    with h5py.File(tmp_path / "old.h5", "w") as file:
        file.attrs["model_config"] = json.dumps(config)
        file.attrs["keras_version"] = "2.4.0"
    monkeypatch.setattr(keras.saving, "load_model", lambda *_, **__: pytest.fail("the file was loaded"))
    with pytest.raises(ConversionError, match="Lambda layer 'trap'"):
        convert(tmp_path / "old.h5", tmp_path)


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file", "ignore::DeprecationWarning")
def test_a_name_that_keras_3_forbids_gets_the_way_out(keras: Any, tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(2, 3, name="conv")])
    model.save(tmp_path / "old.h5")
    with h5py.File(tmp_path / "old.h5", "r+") as file:
        text = str(file.attrs["model_config"]).replace('"conv"', '"block/conv"')
        file.attrs["model_config"] = text
        file.attrs["keras_version"] = "2.9.0"
    with pytest.raises(ConversionError, match=r"written by Keras 2\.9\.0.*Keras 2 would load it: pip install tf_keras"):
        convert(tmp_path / "old.h5", tmp_path)


def of_keras_2(keras: Any, path: Path, change: Callable[[list[dict[str, Any]]], None]) -> Path:
    """Write a legacy file whose layers a function changed, as if Keras 2 had written it."""
    layers = keras.layers
    model = keras.Sequential([keras.Input((8, 8, 3)), layers.DepthwiseConv2D(3, name="depthwise"), layers.Flatten()])
    randomize(model).save(path)
    with h5py.File(path, "r+") as file:
        config = json.loads(str(file.attrs["model_config"]))
        change(config["config"]["layers"])
        file.attrs["model_config"] = json.dumps(config)
        file.attrs["keras_version"] = "2.12.0"
    return path


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file", "ignore::DeprecationWarning")
def test_depthwise_convolutions_of_keras_2_are_read(keras: Any, tmp_path: Path) -> None:
    path = of_keras_2(keras, tmp_path / "old.h5", lambda layers: layers[1]["config"].update(groups=1))
    first = convert(path, tmp_path).layer_map[0]
    assert (first.name, first.keras_class, first.kind) == ("depthwise", "DepthwiseConv2D", "conv")


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file", "ignore::DeprecationWarning")
def test_functions_of_tensorflow_in_a_keras_2_file_get_the_way_out(keras: Any, tmp_path: Path) -> None:
    function = {"class_name": "TFOpLambda", "config": {"name": "tf.nn.relu", "function": "nn.relu"}}
    path = of_keras_2(keras, tmp_path / "old.h5", lambda layers: layers.insert(2, function))
    with pytest.raises(ConversionError, match=r"Keras 3 has no 'TFOpLambda'; Keras 2 would load it: .*tf_keras"):
        convert(path, tmp_path)


def test_an_operator_that_onnx_lacks_is_told_with_the_layer(keras: Any, tmp_path: Path) -> None:
    class Inverse(keras.layers.Layer):  # type: ignore[misc]
        def call(self, x: Any) -> Any:
            return keras.ops.erfinv(x)

    picture = keras.Input((8, 8, 3))
    model = keras.Model(picture, Inverse(name="inverse")(keras.layers.Conv2D(2, 3, name="conv")(picture)))
    with pytest.raises(ConversionError, match=r"'Erfinv' \(first in layer 'inverse'\); replace the layer"):
        convert(model, tmp_path)
    assert not (tmp_path / "model.onnx").exists()


# What tf2onnx, TensorFlow or Keras get wrong or refuse.


def converted_like_keras(model: Any, folder: Path) -> None:
    """Convert a model of one input; compare its output with Keras's own on another input than the conversion did."""
    conversion = convert(randomize(model), folder)
    shape = [side or (9 if axis else 2) for axis, side in enumerate(model.inputs[0].shape)]
    array = np.random.default_rng(8).normal(size=shape).astype(np.float32)
    found = run(conversion.path, {onnx.load(conversion.path).graph.input[0].name: array})
    [output] = [value for name, value in found.items() if name.startswith("output")]
    assert_close(output, model(array, training=False).numpy())


def test_a_convolution_of_volumes_may_have_groups(keras: Any, tmp_path: Path) -> None:
    volume = keras.Input((6, 6, 6, 4))
    converted_like_keras(keras.Model(volume, keras.layers.Conv3D(6, 2, groups=2)(volume)), tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 1, "strides": 2, "padding": "same"},
        {"kernel_size": 1, "strides": 3, "padding": "same"},
        {"kernel_size": 2, "strides": 3, "padding": "valid"},
        {"kernel_size": 3, "strides": 3, "padding": "valid", "output_padding": 2},
        {"kernel_size": (1, 4), "strides": (2, 2), "padding": "same"},
    ],
)
def test_a_transposed_convolution_may_give_more_than_its_kernels_reach(
    keras: Any, tmp_path: Path, options: dict[str, Any]
) -> None:
    picture = keras.Input((5, 6, 2))
    converted_like_keras(keras.Model(picture, keras.layers.Conv2DTranspose(3, **options)(picture)), tmp_path)


def test_dilation_along_an_axis_of_any_length_is_converted(keras: Any, tmp_path: Path) -> None:
    row = keras.Input((None, 2))
    model = keras.Model(row, keras.layers.Conv1D(3, 2, dilation_rate=2, padding="same")(row))
    converted_like_keras(model, tmp_path)


@pytest.mark.parametrize("activation", ["celu", "gelu", "elu", "selu", "mish", "hard_silu"])
def test_activations_are_converted(keras: Any, tmp_path: Path, activation: str) -> None:
    picture = keras.Input((5, 6, 2))
    converted_like_keras(keras.Model(picture, keras.layers.Conv2D(3, 2, activation=activation)(picture)), tmp_path)


@pytest.mark.parametrize("name", ["my conv", "größe", "层", "it's", 'a "b"', "c#1", "back\\slash", "__", "x" * 200])
def test_any_name_that_keras_takes_is_kept(keras: Any, tmp_path: Path, name: str) -> None:
    picture = keras.Input((8, 9, 3), name=f"{name} in")
    model = keras.Model(picture, keras.layers.Conv2D(2, 3, name=name)(picture), name=f"net {name}")
    conversion = convert(model, tmp_path)
    assert [layer.name for layer in conversion.layer_map] == [name]
    assert (model.layers[-1].name, model.name) == (name, f"net {name}")
    assert onnx.load(conversion.path).graph.input[0].name == f"{name} in"
    assert [layer.name for layer in list_layers(conversion.path)] == [name]


def test_a_layer_that_turns_the_input_says_so(keras: Any, tmp_path: Path) -> None:
    picture = keras.Input((7, 4, 3))
    (permute,) = convert(keras.Model(picture, keras.layers.Permute((2, 1, 3))(picture)), tmp_path).absent
    assert permute.reason == "it passes an input of the model on, its axes in another order"


def test_a_bicubic_resize_that_tensorflow_rounds_is_refused_with_the_reason(keras: Any, tmp_path: Path) -> None:
    picture = keras.Input((10, 8, 5))
    model = keras.Model(picture, keras.layers.UpSampling2D(3, interpolation="bicubic", name="up")(picture))
    with pytest.raises(ConversionError, match=r"layer 'up' .*bicubic interpolation, .*a table of 1024.*use bilinear"):
        convert(model, tmp_path)


def test_a_resize_that_needs_a_size_gets_the_way_out(keras: Any, tmp_path: Path) -> None:
    picture = keras.Input((None, None, 3))
    model = keras.Model(picture, keras.layers.UpSampling2D(2, interpolation="bilinear", name="up")(picture))
    with pytest.raises(ConversionError, match=r"or give its inputs a size: --input-shape 224x224x3"):
        convert(model, tmp_path)
    assert [x.status for x in convert(model, tmp_path, input_shapes=(None, 8, 8, 3)).layer_map] == ["exact"]


def test_check_takes_the_input_that_the_layers_see(keras: Any, tmp_path: Path) -> None:
    unused, used = keras.Input((6, 3)), keras.Input((6, 3))
    conversion = convert(keras.Model([unused, used], keras.layers.Conv1D(2, 3, name="conv")(used)), tmp_path)
    assert check(conversion.path, provider="cpu").passed


def test_layers_that_inherit_rounding_are_compared_on_their_own_inputs(keras: Any, tmp_path: Path) -> None:
    layers = keras.layers
    picture = keras.Input((9, 8, 3))
    x = layers.Conv2D(2, 3, name="conv")(picture)
    x = layers.Rescaling(1.0, offset=1000.0, name="far")(x)  # only the last digits still tell the cells apart
    x = layers.Rescaling(1.0, offset=-1000.0, name="back")(x)
    conversion = convert(randomize(keras.Model(picture, x)), tmp_path)
    found = {layer.name: layer for layer in conversion.layers}
    assert found["conv"].local is None
    if found["back"].error > 1e-5:
        assert found["back"].local is not None
        assert found["back"].local < 1e-5


# Other backends.


@pytest.mark.parametrize("backend", ["jax", "numpy"])
def test_a_live_model_on_another_backend_is_converted(tmp_path: Path, backend: str) -> None:
    pytest.importorskip("jax")
    script = f"""
        import os
        os.environ["KERAS_BACKEND"] = {backend!r}
        import keras
        from onnxfeat import OutputError, convert_keras
        layers = keras.layers
        picture = keras.Input((16, 16, 3))
        model = keras.Model(picture, layers.Dense(3)(layers.Flatten()(layers.Conv2D(4, 3, name="conv")(picture))))
        found = convert_keras(model, "model.onnx", preprocessing="tf")
        print([layer.name for layer in found.layer_map][0], found.worst.error < 1e-5, found.notes)
        model.save("model.keras")
        print(convert_keras("model.keras", "file.onnx", preprocessing="tf").notes)
        try:
            convert_keras(model, "model.onnx")
        except OutputError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    first, second, third = done.stdout.splitlines()
    assert first.startswith("conv True")
    assert f"Keras runs on {backend} here, so the model was saved and converted with TensorFlow" in first
    assert f"Keras runs on {backend} here, so the file was converted in a process with TensorFlow" in second
    assert "exists already" in third


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_a_file_is_converted_whatever_backend_the_user_prefers(models: Path, tmp_path: Path, backend: str) -> None:
    import os

    command = [sys.executable, "-m", "onnxfeat", "convert", str(models / "shapes_small.keras"), "-o", "small.onnx"]
    environment = {**os.environ, "KERAS_BACKEND": backend}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "small.onnx\n"), done.stderr
