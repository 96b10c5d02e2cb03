"""Compare the layout of pictures with ones that were looked at.

Only layout: that colors mean what they should is in the other tests. After a change that is meant to be seen, run
`python -m pytest tests/test_golden.py --renew-golden`, look at what changed in `tests/golden/`, and commit it.

Fonts are rendered a little differently by other versions of FreeType: a picture may differ in 2 pixels of each side,
and by more than 32 levels in 2 % of its pixels.
"""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from onnxfeat.drawing.painting import Drawing, paint
from onnxfeat.drawing.sheets import paint_sheet, row_of
from onnxfeat.drawing.styles import Style
from onnxfeat.records import FeatureMap, Layer

GOLDEN = Path(__file__).parent / "golden"
MOST_PIXELS = 2  # that a side may differ in
MOST_LEVELS, MOST_SHARE = 32, 0.02


def waves(channels: int, height: int, width: int) -> NDArray[np.float32]:
    """Maps made by a formula: rings around a place that wanders from channel to channel."""
    channel, y, x = np.ogrid[:channels, :height, :width]
    distance = np.hypot(y - height * (channel % 5) / 4, x - width * (channel % 7) / 6)
    return np.cos(distance * (0.4 + channel / 10)).astype(np.float32)[None] * (1 + np.arange(channels)[:, None, None])


def as_map(array: NDArray[np.float32], name: str, layout: str = "NCHW") -> FeatureMap:
    layer = Layer(name=name, kind="conv", op_type="Conv", value="v", raw_value="v", layout=layout, activation="Relu")
    return FeatureMap(layer=layer, array=array.astype(np.float32))


def belt() -> Drawing:
    return paint(as_map(waves(6, 24, 32), "block1/conv2d"), style=Style(normalize="minmax", scale_over="layer"))


def grid_with_marks() -> Drawing:
    array = waves(14, 10, 12)
    array[0, 3], array[0, 5] = 0, 7
    array[0, 6, 2:4, 2:9], array[0, 8, 5, 5:] = np.nan, np.inf
    style = Style(arrange="grid", zoom=4, normalize="symmetric", order="variance")
    return paint(as_map(array, "a layer with a name that is far too long for its picture"), style=style)


def sheet() -> Drawing:
    style = Style(normalize="percentile", scale_over="layer")
    maps = [as_map(waves(40, 28, 28), "conv_1"), as_map(waves(64, 7, 7), "conv_2"), as_map(waves(1, 1, 20), "dense")]
    rows = [row_of(one, 0, style, picture=picture) for one in maps for picture in ("cat.png", "dog.png")]
    return paint_sheet(rows, style, title="model.onnx", subtitle="cat.png, dog.png")


def strip() -> Drawing:
    return paint(as_map(waves(9, 1, 60)[:, :, 0], "conv1d", "NCW"), style=Style(colormap="magma"))


def components() -> Drawing:
    return paint(as_map(waves(12, 20, 24), "conv2d_3"), style=Style(reduce="pca", zoom=12))


PICTURES = {
    "belt": belt,
    "grid_with_marks": grid_with_marks,
    "sheet": sheet,
    "strip": strip,
    "components": components,
}


def rgb(image: Image.Image) -> NDArray[np.int16]:
    return np.asarray(image.convert("RGB")).astype(np.int16)


def share_that_differs(one: NDArray[np.int16], other: NDArray[np.int16]) -> float:
    """Share of the pixels that differ to be seen; 1 where the pictures are not of one size."""
    if max(abs(a - b) for a, b in zip(one.shape, other.shape, strict=True)) > MOST_PIXELS:
        return 1.0
    height, width = np.minimum(one.shape, other.shape)[:2]
    difference = np.abs(one[:height, :width] - other[:height, :width]).max(axis=2)
    return float((difference > MOST_LEVELS).mean())


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_laid_out_as_the_one_that_was_looked_at(name: str, request: pytest.FixtureRequest) -> None:
    image = PICTURES[name]().image()
    path = GOLDEN / f"{name}.png"
    if request.config.getoption("--renew-golden"):
        GOLDEN.mkdir(exist_ok=True)
        image.save(path, optimize=True)
    with Image.open(path) as golden:
        share = share_that_differs(rgb(image), rgb(golden))
    assert share <= MOST_SHARE, f"{share:.1%} of the pixels differ from {path.name}: look at it, or renew it"


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_that_is_laid_out_otherwise_is_noticed(name: str) -> None:
    pixels = rgb(PICTURES[name]().image())
    assert share_that_differs(pixels, pixels) == 0
    assert share_that_differs(pixels, np.roll(pixels, 3, axis=1)) > MOST_SHARE
    assert share_that_differs(pixels, pixels[:-3]) > MOST_SHARE
    assert share_that_differs(pixels, 255 - pixels) > MOST_SHARE


def test_every_golden_picture_has_its_test() -> None:
    assert {path.stem for path in GOLDEN.glob("*.png")} == set(PICTURES)
