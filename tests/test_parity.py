from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from onnxfeat import FeatureExtractor, Features, belt
from onnxfeat.cli import main

pytestmark = pytest.mark.keras

ROOT = Path(__file__).parent.parent
LAYERS = ["conv2d", "max_pooling2d", "conv2d_1", "max_pooling2d_1", "conv2d_2", "max_pooling2d_2"]


@dataclass(frozen=True)
class Pair:
    """A Keras model and the ONNX file that `tools/convert.py` made of its file."""

    keras: Any
    model: Any
    onnx: Path
    conversion: dict[str, Any]


def make_pair(folder: Path, size: tuple[int, int], dense: Sequence[int]) -> Pair:
    """Build the reference network with seeded weights, save it, and convert the file in a process of its own."""
    import keras

    keras.utils.clear_session()  # layers get the names that they have in a fresh process
    keras.utils.set_random_seed(7)
    layers = keras.layers
    model = keras.Sequential([keras.Input((*size, 3))])
    for channels in (8, 16, 32):
        model.add(layers.Conv2D(channels, 3, activation="relu", bias_initializer=keras.initializers.RandomNormal()))
        model.add(layers.MaxPooling2D(2))
    model.add(layers.Flatten())
    for units in dense:
        model.add(layers.Dense(units, activation="relu"))
    model.add(layers.Dense(3, activation="softmax"))
    model.save(folder / "model.keras")
    target = folder / "model.onnx"
    result = subprocess.run(
        [sys.executable, ROOT / "tools" / "convert.py", folder / "model.keras", "-o", target, "--json"],
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
    )
    return Pair(keras, model, target, json.loads(result.stdout))


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(tmp_path_factory.mktemp("reference"), (150, 150), (1024, 512))


@pytest.fixture(scope="module")
def oblong(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(tmp_path_factory.mktemp("oblong"), (60, 90), (16,))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory, models: Path) -> tuple[Path, Path]:
    """A photograph, and a smooth picture much wider than high."""
    rows, columns = np.mgrid[0:131, 0:377]
    waves = np.stack([np.sin(columns / 9) * np.cos(rows / 5), np.sin((rows + columns) / 13), rows / 66 - 1], axis=-1)
    wide = tmp_path_factory.mktemp("pictures") / "waves.png"
    Image.fromarray((waves * 127 + 128).astype(np.uint8)).save(wide)
    return models / "pictures" / "chelsea.png", wide


def keras_maps(pair: Pair, picture: Path) -> dict[str, NDArray[np.float32]]:
    """Return the output of each layer that has spatial axes, channels last, as Keras alone gives it."""
    keras = pair.keras
    image = keras.utils.load_img(picture, target_size=pair.model.input_shape[1:3])
    batch = keras.utils.img_to_array(image)[None] / 255
    outputs = keras.Model(pair.model.inputs, [layer.output for layer in pair.model.layers]).predict(batch, verbose=0)
    return {layer.name: x for layer, x in zip(pair.model.layers, outputs, strict=True) if x.ndim == 4}


def keras_belt(activation: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the belt that the loop in F. Chollet's "Deep Learning with Python", section 5.4.1, draws."""
    _, height, width, channels = activation.shape
    display = np.zeros((height, channels * width), dtype=np.uint8)
    for channel in range(channels):
        image = activation[0, :, :, channel].copy()
        if image.max() == image.min():
            image[:] = 128
        else:
            image -= image.mean()
            image /= image.std()
            image *= 64
            image += 128
        display[:, channel * width : (channel + 1) * width] = np.clip(image, 0, 255).astype("uint8")
    return display


def drawn(pair: Pair, picture: Path, folder: Path) -> list[Path]:
    """Return the files that `onnxfeat draw` writes, in the order of their names."""
    with pytest.raises(SystemExit) as exit_info:
        main(["draw", str(pair.onnx), str(picture), "-o", str(folder), "--quiet", "--bare", "--provider", "cpu"])
    assert exit_info.value.code in (0, None)
    return sorted(folder.glob("*.png"))


def assert_parity(pair: Pair, picture: Path, folder: Path) -> Features:
    """Check names, order, shapes and belts of all layers against Keras; return the maps."""
    expected = keras_maps(pair, picture)
    features = FeatureExtractor(pair.onnx, provider="cpu")(picture)
    files = drawn(pair, picture, folder)
    assert list(expected) == list(features) == LAYERS
    assert [file.name for file in files] == [f"{number:02}-{name}.png" for number, name in enumerate(LAYERS, start=1)]
    for (name, activation), file in zip(expected.items(), files, strict=True):
        channels_first = np.moveaxis(activation, -1, 1)
        assert features[name].shape == channels_first.shape
        np.testing.assert_allclose(features[name].array, channels_first, atol=1e-5 * float(np.ptp(activation)), rtol=0)
        wanted = keras_belt(activation).astype(int)
        with Image.open(file) as image:
            assert image.mode == "P"  # the colors are in the palette, the gray levels in the pixels
            levels = np.asarray(image).astype(int)
        for belt_of_ours in (belt(features[name]).astype(int), levels):
            assert belt_of_ours.shape == wanted.shape
            assert np.abs(belt_of_ours - wanted).max() <= 1
        assert np.unique(wanted).size > 100  # a picture, not a flat field that anything would agree with
    return features


def test_the_reference_network_draws_the_belts_that_keras_draws(
    reference: Pair, pictures: tuple[Path, Path], tmp_path: Path
) -> None:
    for picture in pictures:
        features = assert_parity(reference, picture, tmp_path / picture.stem)
    shapes = [(148, 148, 8), (74, 74, 8), (72, 72, 16), (36, 36, 16), (34, 34, 32), (17, 17, 32)]
    assert [features[name].shape for name in LAYERS] == [(1, c, h, w) for h, w, c in shapes]


def test_an_oblong_network_draws_the_belts_that_keras_draws(
    oblong: Pair, pictures: tuple[Path, Path], tmp_path: Path
) -> None:
    for picture in pictures:
        features = assert_parity(oblong, picture, tmp_path / picture.stem)
    assert features["conv2d"].shape == (1, 8, 58, 88)


def test_every_layer_of_the_reference_network_is_in_the_file(reference: Pair) -> None:
    names = [layer.name for layer in reference.model.layers]
    assert names == [*LAYERS, "flatten", "dense", "dense_1", "dense_2"]
    assert [layer["name"] for layer in reference.conversion["layers"]] == [*names, "output 'dense_2'"]
    assert {layer["status"] for layer in reference.conversion["layer_map"]} == {"exact"}
    assert max(layer["error"] for layer in reference.conversion["layers"]) < 1e-5


def test_the_script_says_what_it_wants_when_called_without_a_model() -> None:
    result = subprocess.run(
        [sys.executable, ROOT / "tools" / "convert.py"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert result.stdout == ""
    assert "MODEL" in result.stderr
