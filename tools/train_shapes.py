"""Draw a circles/squares/triangles data set and train two small CNNs on it.

The pictures are made here, so that the models need no download and carry no license but this
project's own. Two Keras files are written to the output folder:

* ``shapes_reference.keras``: the plain conv/pool stack the documentation shows (150x150, ~40 MB,
  too large to commit).
* ``shapes_small.keras``: a sibling under 1 MB (64x64) with what real networks add to that:
  batch normalization, separate activations, a depthwise convolution, a residual addition,
  global pooling and dropout.

Both take RGB pictures scaled by 1/255 and answer with the probabilities of ``CLASSES``.
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
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

if TYPE_CHECKING:
    import keras

CLASSES = ("circle", "square", "triangle")
REFERENCE_SIZE = 150
SMALL_SIZE = 64
SUPERSAMPLE = 4
HELD_OUT_START = 1_000_000  # far above any training index, so the two ranges cannot meet
HELD_OUT_PICTURES = 1200
REQUIRED_ACCURACY = 0.95
BATCH = 32
BACKGROUND_RANGE = 70.0  # at most this much brightness difference within a background ...
FIGURE_CONTRAST = 60.0  # ... and at least this much between the figure and any part of it

Pictures = NDArray[np.uint8]
Labels = NDArray[np.int64]
Floats = NDArray[np.float64]


class Recipe(NamedTuple):
    """Say how one network is built and trained."""

    file_name: str
    size: int
    build: Callable[[], keras.Model]
    learning_rate: float


def random_color(rng: np.random.Generator) -> Floats:
    """Return an RGB color of any hue, from dull to vivid and from dark to light."""
    hue, saturation, value = rng.random(), rng.uniform(0.05, 0.9), rng.uniform(0.05, 1.0)
    return np.array(colorsys.hsv_to_rgb(hue, saturation, value)) * 255.0


def brightness(color: Floats) -> float:
    """Return the luma of an RGB color, 0 to 255."""
    return float(color @ np.array([0.299, 0.587, 0.114]))


def random_palette(rng: np.random.Generator) -> tuple[Floats, Floats, Floats]:
    """Return two background colors and a figure color that stands out from any blend of them."""
    first = second = random_color(rng)
    while True:
        second = random_color(rng)
        if abs(brightness(first) - brightness(second)) <= BACKGROUND_RANGE:
            break
    darkest, lightest = sorted((brightness(first), brightness(second)))
    while True:
        # Brightness rather than hue, so that the figure is as plain to the color-blind.
        figure = random_color(rng)
        shade = brightness(figure)
        if shade <= darkest - FIGURE_CONTRAST or shade >= lightest + FIGURE_CONTRAST:
            return first, second, figure


def random_pattern(rng: np.random.Generator, size: int) -> Floats:
    """Return a background texture: how much of the second color each pixel holds, 0 to 1."""
    kind = ("gradient", "stripes", "checker", "noise", "blobs")[rng.integers(5)]
    if kind == "noise":
        grain = int(rng.integers(1, 4))
        cells = rng.random((math.ceil(size / grain),) * 2)
        return cells.repeat(grain, axis=0).repeat(grain, axis=1)[:size, :size]
    if kind == "blobs":
        # Smooth and without edges: a blob must never pass for a circle.
        coarse = Image.fromarray(rng.random((int(rng.integers(4, 9)),) * 2).astype(np.float32))
        smooth = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), dtype=float)
        return np.clip(smooth, 0.0, 1.0)
    angle = rng.uniform(0.0, math.tau)
    y, x = np.mgrid[:size, :size] - (size - 1) / 2.0
    along, across = (
        x * math.cos(angle) + y * math.sin(angle),
        y * math.cos(angle) - x * math.sin(angle),
    )
    if kind == "gradient":
        return np.clip(0.5 + along / size, 0.0, 1.0)
    period = rng.uniform(14.0, 40.0)
    shift = rng.uniform(0.0, math.tau, size=2)
    wave = np.sin(along * math.tau / period + shift[0])
    if kind == "checker":
        wave = wave * np.sin(across * math.tau / period + shift[1])
    # This slope makes the clipped wave rise within one pixel, which antialiases its edges.
    return np.clip(0.5 + wave * period / math.tau, 0.0, 1.0)


def random_figure(rng: np.random.Generator, shape: str, size: int) -> Floats:
    """Return the antialiased mask of a figure that lies wholly inside the picture, 0 to 1."""
    radius = rng.uniform(0.17, 0.40) * size
    center = rng.uniform(radius + 2.0, size - radius - 2.0, size=2)
    corners = {"circle": 0, "square": 4, "triangle": 3}[shape]
    angles = rng.uniform(0.0, math.tau) + np.arange(corners) * math.tau / max(corners, 1)
    if shape == "triangle":
        angles = angles + rng.uniform(-0.25, 0.25, size=3)  # not only equilateral ones
    large = Image.new("L", (size * SUPERSAMPLE,) * 2)
    draw = ImageDraw.Draw(large)
    if shape == "circle":
        draw.ellipse([*((center - radius) * SUPERSAMPLE), *((center + radius) * SUPERSAMPLE)], 255)
    else:
        points = center + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        draw.polygon([(float(x), float(y)) for x, y in points * SUPERSAMPLE], 255)
    return np.asarray(large.reduce(SUPERSAMPLE), dtype=float) / 255.0


def draw_picture(seed: int, index: int) -> Pictures:
    """Return one picture; its class is ``CLASSES[index % 3]``.

    Args:
        seed: Seed of the whole data set.
        index: Number of the picture. Nothing but these two influences it.

    Returns:
        RGB picture of ``REFERENCE_SIZE`` squared pixels.
    """
    rng = np.random.default_rng((seed, index))
    size = REFERENCE_SIZE
    first, second, figure = random_palette(rng)
    background = first + (second - first) * random_pattern(rng, size)[..., None]
    mask = random_figure(rng, CLASSES[index % len(CLASSES)], size)[..., None]
    picture = background * (1.0 - mask) + figure * mask
    picture += rng.normal(0.0, rng.uniform(0.0, 10.0), picture.shape)  # the sensor's noise
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def draw_pictures(seed: int, start: int, count: int, what: str) -> tuple[Pictures, Labels]:
    """Return the pictures ``start`` to ``start + count - 1`` and their class numbers."""
    pictures = np.empty((count, REFERENCE_SIZE, REFERENCE_SIZE, 3), np.uint8)
    for offset in range(count):
        pictures[offset] = draw_picture(seed, start + offset)
        if offset % 100 == 99 or offset == count - 1:
            show_progress(f"drawing {what} pictures: {offset + 1}/{count}", offset == count - 1)
    return pictures, np.arange(start, start + count) % len(CLASSES)


def resized(pictures: Pictures, size: int) -> Pictures:
    """Return the pictures scaled to ``size`` squared pixels."""
    if pictures.shape[1] == size:
        return pictures
    return np.stack([np.asarray(Image.fromarray(p).resize((size, size))) for p in pictures])


def scaled(pictures: Pictures) -> NDArray[np.float32]:
    """Return pictures the way the networks take them, 0 to 1."""
    return pictures.astype(np.float32) / np.float32(255.0)


def show_progress(text: str, last: bool, milestone: bool = False) -> None:
    """Rewrite the progress line of a terminal; elsewhere print milestones and last lines only."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="\n" if last else "", file=sys.stderr, flush=True)
    elif last or milestone:
        print(text, file=sys.stderr, flush=True)


def build_reference() -> keras.Model:
    """Return the untrained reference network."""
    from keras import Input, Sequential, layers

    # Names are given, although these are Keras' own: those count on with every model built.
    return Sequential(
        [
            Input((REFERENCE_SIZE, REFERENCE_SIZE, 3), name="input"),
            layers.Conv2D(8, 3, activation="relu", name="conv2d"),
            layers.MaxPooling2D(2, name="max_pooling2d"),
            layers.Conv2D(16, 3, activation="relu", name="conv2d_1"),
            layers.MaxPooling2D(2, name="max_pooling2d_1"),
            layers.Conv2D(32, 3, activation="relu", name="conv2d_2"),
            layers.MaxPooling2D(2, name="max_pooling2d_2"),
            layers.Flatten(name="flatten"),
            layers.Dense(1024, activation="relu", name="dense"),
            layers.Dense(512, activation="relu", name="dense_1"),
            layers.Dense(len(CLASSES), activation="softmax", name="dense_2"),
        ],
        name="shapes_reference",
    )


def build_small() -> keras.Model:
    """Return the untrained small network."""
    from keras import Input, Model, layers

    def normalized(x: Any, number: int) -> Any:
        # A low momentum, as the default needs more steps than these short runs have.
        return layers.BatchNormalization(momentum=0.9, name=f"bn_{number}")(x)

    inputs = Input((SMALL_SIZE, SMALL_SIZE, 3), name="input")
    x = layers.Conv2D(16, 3, padding="same", use_bias=False, name="conv_1")(inputs)
    x = layers.ReLU(name="relu_1")(normalized(x, 1))
    shortcut = x = layers.MaxPooling2D(2, name="pool_1")(x)
    x = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise_2")(x)
    x = layers.ReLU(name="relu_2")(normalized(x, 2))
    x = layers.Conv2D(16, 1, use_bias=False, name="pointwise_3")(x)
    x = layers.Add(name="add_3")([shortcut, normalized(x, 3)])
    x = layers.ReLU(name="relu_3")(x)
    x = layers.AveragePooling2D(2, name="pool_3")(x)
    x = layers.Conv2D(32, 3, activation="relu", name="conv_4")(x)
    x = layers.MaxPooling2D(2, name="pool_4")(x)
    x = layers.Conv2D(64, 3, activation="relu", name="conv_5")(x)
    x = layers.GlobalAveragePooling2D(name="global_pool")(x)
    x = layers.Dropout(0.2, name="dropout")(x)
    outputs = layers.Dense(len(CLASSES), activation="softmax", name="predictions")(x)
    return Model(inputs, outputs, name="shapes_small")


def train(recipe: Recipe, pictures: Pictures, labels: Labels, epochs: int, seed: int) -> Any:
    """Return the recipe's network, trained on the pictures."""
    import keras

    keras.utils.set_random_seed(seed)  # here too, so that no network depends on the one before
    rng = np.random.default_rng(seed)
    model = recipe.build()
    batches = math.ceil(len(pictures) / BATCH)
    rate = keras.optimizers.schedules.CosineDecay(recipe.learning_rate, epochs * batches)
    model.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy", metrics=["accuracy"])
    for epoch in range(1, epochs + 1):
        model.reset_metrics()
        order = rng.permutation(len(pictures))
        for batch in range(batches):
            chosen = order[batch * BATCH : (batch + 1) * BATCH]
            # A turned or mirrored picture is as good as a new one, but costs no drawing.
            x = np.rot90(pictures[chosen], int(rng.integers(4)), axes=(1, 2))
            x = x[:, :, ::-1] if rng.integers(2) else x
            found = model.train_on_batch(scaled(x), labels[chosen], return_dict=True)
            text = f"{model.name}: epoch {epoch}/{epochs}, batch {batch + 1}/{batches}, "
            text += f"loss {found['loss']:.4f}, accuracy {found['accuracy']:.2%}"
            finished = batch == batches - 1
            show_progress(text, last=finished and epoch == epochs, milestone=finished)
    # An uncompiled copy leaves behind the optimizer, which would triple the file.
    trained = recipe.build()
    trained.set_weights(model.get_weights())
    return trained


def is_rectified_map(layer: keras.Layer) -> bool:
    """Tell whether a layer puts out feature maps that have just passed a ReLU."""
    import keras

    relu = getattr(layer, "activation", None) is keras.activations.relu
    return len(layer.output.shape) == 4 and (relu or isinstance(layer, keras.layers.ReLU))


def evaluate(model: keras.Model, pictures: Pictures, labels: Labels) -> tuple[float, str]:
    """Return the accuracy, and in words how many channels of each convolution stay dark.

    A channel without a positive value on any picture is dead: its feature map is blank.
    """
    import keras

    rectified = [layer for layer in model.layers if is_rectified_map(layer)]
    probe = keras.Model(model.inputs, [model.outputs[0], *(layer.output for layer in rectified)])
    right = 0
    peaks = [np.zeros(layer.output.shape[-1]) for layer in rectified]
    for start in range(0, len(pictures), BATCH):
        answers, *maps = probe.predict_on_batch(scaled(pictures[start : start + BATCH]))
        right += int(np.sum(answers.argmax(axis=1) == labels[start : start + BATCH]))
        peaks = [np.maximum(p, m.max(axis=(0, 1, 2))) for p, m in zip(peaks, maps, strict=True)]
    dead = (
        f"{layer.name} {int(np.sum(peak <= 0.0))}/{len(peak)}" for layer, peak in zip(rectified, peaks, strict=True)
    )
    return right / len(pictures), ", ".join(dead)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a file that appears under its name only once it is complete."""
    # Keras and Pillow choose the format by the suffix, so the suffix has to stay.
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        write(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def parse_arguments() -> argparse.Namespace:
    """Return the checked command line."""

    def positive(text: str) -> int:
        if (number := int(text)) < 1:
            raise ValueError
        return number

    def seed(text: str) -> int:
        if not 0 <= (number := int(text)) < 2**32:
            raise ValueError
        return number

    parser = argparse.ArgumentParser(
        description="Draw circles, squares and triangles, and train two small CNNs to tell them.",
        epilog="example: python tools/train_shapes.py --output build --samples build/samples",
    )
    add = parser.add_argument
    add("--output", type=Path, required=True, metavar="FOLDER", help="where the models go")
    add("--seed", type=seed, default=7, metavar="N", help="default: %(default)s")
    add(
        "--train-pictures",
        type=positive,
        default=3600,
        metavar="N",
        help="pictures to train on (default: %(default)s)",
    )
    add("--epochs", type=positive, default=12, metavar="N", help="default: %(default)s")
    add("--samples", type=Path, metavar="FOLDER", help="also write some held-out pictures here")
    add(
        "--sample-count",
        type=positive,
        default=2,
        metavar="N",
        help="sample pictures of each class (default: %(default)s)",
    )
    add("--overwrite", action="store_true", help="replace files that exist already")
    arguments = parser.parse_args()
    if arguments.train_pictures > HELD_OUT_START:
        parser.error(f"--train-pictures must not exceed {HELD_OUT_START}")
    return arguments


def main() -> int:
    """Run the script and return its exit code."""
    arguments = parse_arguments()
    seed = arguments.seed
    recipes = (
        Recipe("shapes_reference.keras", REFERENCE_SIZE, build_reference, 5e-4),
        Recipe("shapes_small.keras", SMALL_SIZE, build_small, 4e-3),
    )
    samples: dict[Path, int] = {}
    if arguments.samples:
        for number in range(arguments.sample_count * len(CLASSES)):
            index = HELD_OUT_START + number
            name = f"{CLASSES[index % len(CLASSES)]}_{number // len(CLASSES)}.png"
            samples[arguments.samples / name] = index
    paths = [arguments.output / recipe.file_name for recipe in recipes]
    taken = [str(path) for path in (*paths, *samples) if path.exists()]
    if taken and not arguments.overwrite:
        print(f"error: already there (see --overwrite): {', '.join(taken)}", file=sys.stderr)
        return 1
    for path in (*paths, *samples):
        path.parent.mkdir(parents=True, exist_ok=True)
    for path, index in samples.items():
        write_atomically(path, Image.fromarray(draw_picture(seed, index)).save)

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # read once, when TensorFlow is imported
    import tensorflow as tf

    tf.config.experimental.enable_op_determinism()
    pictures, labels = draw_pictures(seed, 0, arguments.train_pictures, "training")
    unseen, truth = draw_pictures(seed, HELD_OUT_START, HELD_OUT_PICTURES, "held-out")
    weak = False
    for recipe, path in zip(recipes, paths, strict=True):
        begin = time.monotonic()
        model = train(recipe, resized(pictures, recipe.size), labels, arguments.epochs, seed)
        accuracy, dead = evaluate(model, resized(unseen, recipe.size), truth)
        print(f"{model.name}: {accuracy:.2%} of {len(unseen)} held-out pictures right, ", end="")
        print(f"{time.monotonic() - begin:.0f} s; dead channels: {dead}", flush=True)
        if accuracy <= REQUIRED_ACCURACY:
            weak = True
            print(
                f"error: {path} not written, as it needs more than {REQUIRED_ACCURACY:.0%}; "
                "try more --epochs or --train-pictures",
                file=sys.stderr,
            )
        else:
            write_atomically(path, model.save)
            print(f"wrote {path}, {path.stat().st_size / 1e6:.2f} MB", flush=True)
    return 1 if weak else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("\ninterrupted")
