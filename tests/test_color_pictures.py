"""What pictures with colors of their own say, and that they are the same in every format."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from test_vector_pages import images_of, texts_of

from onnxfeat import FeatureExtractor
from onnxfeat.drawing.color_pictures import components_of, overlay_of
from onnxfeat.drawing.gallery import save_pictures
from onnxfeat.drawing.overlays import overlay
from onnxfeat.drawing.reductions import pca_basis
from onnxfeat.drawing.sharing import Shared
from onnxfeat.drawing.styles import Style
from onnxfeat.errors import PictureError
from onnxfeat.records import FeatureMap, Features, Layer


def as_map(array: NDArray[Any]) -> FeatureMap:
    layer = Layer(name="conv", kind="conv", op_type="Conv", value="v", raw_value="v")
    return FeatureMap(layer=layer, array=np.asarray(array, dtype=np.float32))


@pytest.fixture
def features(models: Path) -> Features:
    return FeatureExtractor(models / "shapes_small.onnx", layers="conv_4,conv_5", provider="cpu")(
        models / "pictures/circle.png"
    )


def test_an_overlay_says_what_is_laid_over_and_what_its_colors_stand_for(features: Features, models: Path) -> None:
    found = overlay_of(features["conv_4"], models / "pictures/circle.png", 0, Style(frame=False, channels=(4,)))
    np.testing.assert_array_equal(found.colors, overlay(features["conv_4"], models / "pictures/circle.png", channel=4))
    most = found.facts["scale"]["high"][0]
    assert found.facts["shown"] == "channel 4"
    assert 0 < most <= features["conv_4"].array[0, 4].max()  # a mean of cells is not above the greatest
    assert found.legend.ends[0] == "0"
    assert float(found.legend.ends[2]) == pytest.approx(most, rel=0.01)


def test_a_channel_counts_from_the_end_and_one_that_is_not_there_is_refused(features: Features, models: Path) -> None:
    picture = models / "pictures/circle.png"
    last = overlay_of(features["conv_4"], picture, 0, Style(frame=False, channels=(-1,)))
    np.testing.assert_array_equal(last.colors, overlay(features["conv_4"], picture, channel=31))
    for wrong in (32, -33):
        with pytest.raises(PictureError, match=f"'conv_4' has no channel {wrong}: pass a number from 0 to 31"):
            overlay_of(features["conv_4"], picture, 0, Style(channels=(wrong,)))


def test_values_below_zero_get_a_bar_that_diverges(models: Path) -> None:
    features = FeatureExtractor(models / "shapes_small.onnx", layers="conv_1", provider="cpu")(
        models / "pictures/circle.png"
    )
    found = overlay_of(features["conv_1"], models / "pictures/circle.png", 0, Style())
    low, high = found.facts["scale"]["low"][0], found.facts["scale"]["high"][0]
    assert (found.colormap, found.legend.ends[1]) == ("coolwarm", "0")
    assert low == -high < 0


@pytest.mark.parametrize("choices", [{}, {"channels": (4,)}, {"reduce": "pca"}], ids=["mean", "channel", "pca"])
def test_an_overlay_is_the_same_in_every_format(
    features: Features, models: Path, tmp_path: Path, choices: dict[str, Any]
) -> None:
    for format_ in ("png", "webp", "svg"):
        save_pictures(features, tmp_path / format_, format=format_, overlay=True, **choices)
    with Image.open(tmp_path / "png/01-conv_4.png") as png, Image.open(tmp_path / "webp/01-conv_4.webp") as webp:
        page = np.asarray(png.convert("RGB"))
        np.testing.assert_array_equal(page, np.asarray(webp.convert("RGB")))
    painted = overlay_of(features["conv_4"], models / "pictures/circle.png", 0, Style(overlay=True, **choices)).colors
    assert any(np.array_equal(np.asarray(image), painted) for image in images_of(tmp_path / "svg/01-conv_4.svg"))
    assert "conv_4" in texts_of(tmp_path / "svg/01-conv_4.svg")


def test_layers_that_have_no_place_are_left_out_of_overlays_with_the_reason(models: Path, tmp_path: Path) -> None:
    extractor = FeatureExtractor(models / "shapes_small.onnx", layers="conv_5,global_pool", provider="cpu")
    record = save_pictures(extractor(models / "pictures/circle.png"), tmp_path, overlay=True)
    assert [layer["layer"] for layer in record["pictures"][0]["layers"]] == ["conv_5"]
    assert "no cell of it belongs to a place of the picture" in record["left_out"]["global_pool"]


def test_components_of_one_basis_give_a_picture_the_same_colors_beside_any_other() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 1, 6, 5, 7)).astype(np.float32)
    basis = pca_basis([first, second])
    alone = components_of(as_map(first), 0, Style(frame=False), Shared(basis=basis)).colors
    together = components_of(as_map(np.concatenate([first, second])), 0, Style(frame=False)).colors
    np.testing.assert_array_equal(alone, together)
    assert not np.array_equal(alone, components_of(as_map(first), 0, Style(frame=False)).colors)
