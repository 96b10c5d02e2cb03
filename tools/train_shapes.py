"""Draw a data set of circles, squares and triangles, and train two CNNs to tell them apart.

The pictures are made here, so the models need no download and carry no license but this project's.
Both networks take RGB pictures scaled by 1/255 and answer with the probabilities of `CLASSES`:

* `shapes_reference.keras`: a plain conv/pool stack (150x150, 40 MB, too large to commit).
* `shapes_small.keras`: under 1 MB (64x64), with batch normalization, separate activations, a
  depthwise convolution, a residual addition, global pooling and dropout.
"""

from __future__ import annotations

import argparse
import colorsys
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

if TYPE_CHECKING:
    import keras

CORNERS = {"circle": 180, "square": 4, "triangle": 3}  # so many, no eye tells from a circle
CLASSES = tuple(CORNERS)
SIZE = 150  # of the drawn pictures, and of the reference network's input
SUPERSAMPLE = 4
HELD_OUT_START = 3 * 10**11  # a multiple of 3, out of reach of the training's indices
HELD_OUT_COUNT = 1200
REQUIRED_ACCURACY = 0.95
GROUND_RANGE = 70.0  # at most this much brightness difference within a background ...
FIGURE_CONTRAST = 60.0  # ... and at least this much between the figure and any part of it

Pictures: TypeAlias = NDArray[np.uint8]
Floats: TypeAlias = NDArray[np.float64]
Data: TypeAlias = tuple[Pictures, NDArray[np.int64]]  # pictures, and the index of their class


def random_palette(rng: np.random.Generator) -> Floats:
    """Return two background colors and a figure color that stands out from any blend of them."""
    while True:
        hsv = rng.uniform((0.0, 0.05, 0.05), (1.0, 0.9, 1.0), size=(3, 3))
        colors = np.array([colorsys.hsv_to_rgb(*color) for color in hsv]) * 255.0
        # Brightness decides rather than hue, so that the figure is as plain to the color-blind.
        *ground, figure = colors @ np.array([0.299, 0.587, 0.114])
        dark, light = min(ground), max(ground)
        if light - dark <= GROUND_RANGE and max(dark - figure, figure - light) >= FIGURE_CONTRAST:
            return colors


def random_pattern(rng: np.random.Generator) -> Floats:
    """Return a background texture: how much of the second color each pixel holds, 0 to 1."""
    kind = ("gradient", "stripes", "checker", "noise", "blobs")[rng.integers(5)]
    if kind in ("noise", "blobs"):
        # Blobs are smooth and without edges, as none must ever pass for a circle.
        smooth = kind == "blobs"
        count = int(rng.integers(4, 9) if smooth else rng.integers(50, 151))
        cells = Image.fromarray(rng.random((count, count)).astype(np.float32))
        filtering = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
        return np.clip(np.asarray(cells.resize((SIZE, SIZE), filtering), np.float64), 0.0, 1.0)
    angle = rng.uniform(0.0, math.tau)
    axis = np.arange(SIZE, dtype=np.float64) - (SIZE - 1) / 2.0
    along: Floats = axis * math.cos(angle) + axis[:, None] * math.sin(angle)
    across: Floats = axis[:, None] * math.cos(angle) - axis * math.sin(angle)
    if kind == "gradient":
        return np.clip(0.5 + along / SIZE, 0.0, 1.0)
    period = rng.uniform(14.0, 40.0)
    shift = rng.uniform(0.0, math.tau, size=2)
    wave: Floats = np.sin(along * math.tau / period + shift[0])
    if kind == "checker":
        wave = wave * np.sin(across * math.tau / period + shift[1])
    # This slope makes the clipped wave rise within one pixel, which antialiases its edges.
    return np.clip(0.5 + wave * period / math.tau, 0.0, 1.0)


def random_figure(rng: np.random.Generator, shape: str) -> Floats:
    """Return the antialiased mask of a figure that lies wholly inside the picture, 0 to 1."""
    radius = rng.uniform(0.17, 0.40) * SIZE
    center = rng.uniform(radius + 2.0, SIZE - radius - 2.0, size=2)
    angles = rng.uniform(0.0, math.tau) + np.linspace(0.0, math.tau, CORNERS[shape], False)
    if shape == "triangle":
        angles += rng.uniform(-0.25, 0.25, size=3)  # not only equilateral ones
    points = center + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    large = Image.new("L", (SIZE * SUPERSAMPLE,) * 2)
    ImageDraw.Draw(large).polygon((points * SUPERSAMPLE).ravel().tolist(), 255)
    return np.asarray(large.reduce(SUPERSAMPLE), np.float64) / 255.0


def draw_picture(seed: int, index: int) -> Pictures:
    """Return an RGB picture of class `index % 3`, on which only these two numbers have a say."""
    rng = np.random.default_rng((seed, index))
    first, second, figure = random_palette(rng)
    background = first + (second - first) * random_pattern(rng)[..., None]
    mask = random_figure(rng, CLASSES[index % len(CLASSES)])[..., None]
    picture: Floats = background * (1.0 - mask) + figure * mask
    picture += rng.normal(0.0, rng.uniform(0.0, 10.0), picture.shape)  # the sensor's noise
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def draw_pictures(seed: int, start: int, count: int, what: str) -> Data:
    """Return the pictures from number `start` on, and their class numbers."""
    pictures = np.empty((count, SIZE, SIZE, 3), np.uint8)
    for done in range(count):
        pictures[done] = draw_picture(seed, start + done)
        show_progress(f"drawing {what} pictures: {done + 1}/{count}", last=done + 1 == count)
    return pictures, np.arange(start, start + count) % len(CLASSES)


def resized(pictures: Pictures, size: int) -> Pictures:
    """Return the pictures scaled to `size` squared pixels."""
    return np.stack([np.asarray(Image.fromarray(p).resize((size, size))) for p in pictures])


def show_progress(text: str, last: bool, milestone: bool = False) -> None:
    """Rewrite the progress line of a terminal; elsewhere print milestones and last lines only."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="\n" if last else "", file=sys.stderr, flush=True)
    elif last or milestone:
        print(text, file=sys.stderr, flush=True)


def build_reference() -> keras.Model:
    """Return the untrained reference network."""
    from keras import Input, Sequential, layers

    # Keras would give the same names, but only to the first model built in a process.
    network = [
        Input((SIZE, SIZE, 3), name="input"),
        layers.Conv2D(8, 3, activation="relu", name="conv2d"),
        layers.MaxPooling2D(2, name="max_pooling2d"),
        layers.Conv2D(16, 3, activation="relu", name="conv2d_1"),
        layers.MaxPooling2D(2, name="max_pooling2d_1"),
        layers.Conv2D(32, 3, activation="relu", name="conv2d_2"),
        layers.MaxPooling2D(2, name="max_pooling2d_2"),
        layers.Flatten(name="flatten"),
        layers.Dense(1024, "relu", name="dense"),
        layers.Dense(512, "relu", name="dense_1"),
        layers.Dense(len(CLASSES), "softmax", name="dense_2"),
    ]
    return Sequential(network, name="shapes_reference")


def build_small() -> keras.Model:
    """Return the untrained small network."""
    from keras import Input, Model, layers

    inputs = Input((64, 64, 3), name="input")
    x = layers.Conv2D(16, 3, padding="same", use_bias=False, name="conv_1")(inputs)
    # A low momentum, as the default needs more steps than these short runs have.
    x = layers.BatchNormalization(momentum=0.9, name="bn_1")(x)
    x = layers.ReLU(name="relu_1")(x)
    shortcut = x = layers.MaxPooling2D(2, name="pool_1")(x)
    x = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise_2")(x)
    x = layers.BatchNormalization(momentum=0.9, name="bn_2")(x)
    x = layers.ReLU(name="relu_2")(x)
    x = layers.Conv2D(16, 1, use_bias=False, name="pointwise_3")(x)
    x = layers.BatchNormalization(momentum=0.9, name="bn_3")(x)
    x = layers.Add(name="add_3")([shortcut, x])
    x = layers.ReLU(name="relu_3")(x)
    x = layers.AveragePooling2D(2, name="pool_3")(x)
    # Of these two, many channels died with Keras' default initializer.
    x = layers.Conv2D(32, 3, activation="relu", kernel_initializer="he_normal", name="conv_4")(x)
    x = layers.MaxPooling2D(2, name="pool_4")(x)
    x = layers.Conv2D(64, 3, activation="relu", kernel_initializer="he_normal", name="conv_5")(x)
    x = layers.GlobalAveragePooling2D(name="global_pool")(x)
    x = layers.Dropout(0.2, name="dropout")(x)
    x = layers.Dense(len(CLASSES), activation="softmax", name="predictions")(x)
    return Model(inputs, x, name="shapes_small")


def train(model: keras.Model, data: Data, epochs: int, batch: int, peak: float) -> keras.Model:
    """Train a fresh network on the pictures, and return a copy fit for saving."""
    import keras

    rng = np.random.default_rng(epochs)
    pictures, labels = resized(data[0], model.input_shape[1]), data[1]
    steps = math.ceil(len(pictures) / batch)
    # A slow start spares channels, a slow end gains the last percent.
    rise = {"warmup_target": peak, "warmup_steps": steps // 2}
    rate = keras.optimizers.schedules.CosineDecay(peak / 10, epochs * steps, **rise)
    adam = keras.optimizers.Adam(rate)
    model.compile(adam, loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    for epoch in range(1, epochs + 1):
        sums = np.zeros(2)
        for step, part in enumerate(np.array_split(rng.permutation(len(pictures)), steps), 1):
            # A turned or mirrored picture is as good as a new one, but costs no drawing.
            x = np.rot90(pictures[part], int(rng.integers(4)), axes=(1, 2))
            x = x[:, :, ::-1] if rng.integers(2) else x
            model.reset_metrics()  # not every version of train_on_batch does
            sums += model.train_on_batch(x.astype(np.float32) / 255, labels[part])
            loss, accuracy = sums / step
            text = f"{model.name}: epoch {epoch}/{epochs}, loss {loss:.4f}, accuracy {accuracy:.2%}"
            show_progress(text, step == steps and epoch == epochs, milestone=step == steps)
    # An uncompiled copy leaves behind the optimizer's state, which would triple the file.
    trained = type(model).from_config(model.get_config())
    trained.set_weights(model.get_weights())
    return trained


def evaluate(model: keras.Model, data: Data) -> tuple[float, str]:
    """Return the accuracy, and how many channels behind each ReLU are 0 on all pictures: dead."""
    import keras

    pictures, labels = resized(data[0], model.input_shape[1]), data[1]
    # A separate ReLU has no "activation", but here is named after it; dense layers make no maps.
    relus = [x for x in model.layers if "relu" in x.get_config().get("activation", x.name)]
    maps = [layer for layer in relus if layer.output.ndim == 4]
    probe = keras.Model(model.inputs, [*model.outputs, *(layer.output for layer in maps)])
    right, peaks = 0, [np.zeros(layer.output.shape[-1]) for layer in maps]
    for part in np.array_split(np.arange(len(pictures)), 24):
        answers, *found = probe.predict_on_batch(pictures[part].astype(np.float32) / 255)
        right += int(np.sum(answers.argmax(axis=1) == labels[part]))
        peaks = [np.maximum(a, b.max(axis=(0, 1, 2))) for a, b in zip(peaks, found, strict=True)]
    dead = [f"{layer.name} {sum(p <= 0)}/{len(p)}" for layer, p in zip(maps, peaks, strict=True)]
    return right / len(pictures), ", ".join(dead)


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file that appears under its name only once it is complete."""
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")  # the suffix sets the format
    try:
        write(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def parse_arguments() -> argparse.Namespace:
    """Return the checked command line."""
    parser = argparse.ArgumentParser(description="Draw shapes and train two CNNs to tell them.")
    parser.epilog = "example: python tools/train_shapes.py --output build --samples build/samples"
    add = parser.add_argument
    add("--output", type=Path, required=True, metavar="FOLDER", help="where the models go")
    add("--seed", type=int, default=7, help="of pictures and training (default: %(default)s)")
    add("--train-pictures", type=int, default=3600, help="how many (default: %(default)s)")
    add("--epochs", type=int, default=10, help="for either network (default: %(default)s)")
    add("--samples", type=Path, metavar="FOLDER", help="also write some held-out pictures here")
    add("--sample-count", type=int, default=2, help="of each class (default: %(default)s)")
    add("--overwrite", action="store_true", help="replace files that exist")
    chosen = parser.parse_args()
    if min(chosen.train_pictures, chosen.epochs, chosen.sample_count, chosen.seed + 1) < 1:
        parser.error("the seed must be at least 0, the other numbers at least 1")
    return chosen


def main() -> str | None:
    """Run the script and return what went wrong, if anything."""
    chosen = parse_arguments()
    plans = {
        chosen.output / "shapes_reference.keras": (build_reference, 16, 5e-4),
        chosen.output / "shapes_small.keras": (build_small, 32, 6e-3),
    }
    count = len(CLASSES) * chosen.sample_count if chosen.samples else 0
    samples = {chosen.samples / f"{CLASSES[i % 3]}_{i // 3}.png": i for i in range(count)}
    existing = [str(path) for path in (*plans, *samples) if path.exists()]
    if existing and not chosen.overwrite:
        return f"error: use --overwrite to replace {', '.join(existing)}"
    for path in (*plans, *samples):
        path.parent.mkdir(parents=True, exist_ok=True)
    for path, i in samples.items():
        write_whole(path, Image.fromarray(draw_picture(chosen.seed, HELD_OUT_START + i)).save)

    # Both are read when TensorFlow is imported; without oneDNN, training takes three times as long.
    os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", TF_ENABLE_ONEDNN_OPTS="1")
    import tensorflow as tf

    tf.config.experimental.enable_op_determinism()
    data = draw_pictures(chosen.seed, 0, chosen.train_pictures, "training")
    unseen = draw_pictures(chosen.seed, HELD_OUT_START, HELD_OUT_COUNT, "held-out")
    weak = []
    for path, (build, batch, rate) in plans.items():
        begin = time.monotonic()
        tf.keras.utils.set_random_seed(chosen.seed % 2**32)  # again, for the second network
        model = train(build(), data, chosen.epochs, batch, rate)
        accuracy, dead = evaluate(model, unseen)
        print(f"{model.name}: {accuracy:.2%} of {HELD_OUT_COUNT} held-out pictures right, ", end="")
        print(f"{time.monotonic() - begin:.0f} s; dead channels: {dead}", flush=True)
        if accuracy > REQUIRED_ACCURACY:
            write_whole(path, model.save)
            print(f"wrote {path}, {path.stat().st_size / 1e6:.2f} MB", flush=True)
        else:
            weak.append(f"{path} ({accuracy:.2%})")
    message = f"error: not above {REQUIRED_ACCURACY:.0%} and so not written: {', '.join(weak)}"
    return message if weak else None


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (KeyboardInterrupt, OSError) as error:
        sys.exit(f"\nerror: {str(error) or 'interrupted'}")
