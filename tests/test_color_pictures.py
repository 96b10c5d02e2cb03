"""What pictures with colors of their own say, and that they are the same in every format."""

from dataclasses import replace
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
from onnxfeat.drawing.sharing import LayerTracker, Shared
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


def test_overlays_of_one_batch_share_the_greatest_heat(models: Path, tmp_path: Path) -> None:
    pictures = [models / "pictures/circle.png", models / "pictures/chelsea.png"]
    extractor = FeatureExtractor(models / "shapes_small.onnx", layers="conv_4", provider="cpu")
    runs = extractor.stream(pictures)
    alone = save_pictures(runs, tmp_path / "alone", overlay=True, scale_over="layer")
    shared = save_pictures(runs, tmp_path / "shared", overlay=True, scale_over="batch")
    own, most = (
        [picture["layers"][0]["scale"]["high"][0] for picture in record["pictures"]] for record in (alone, shared)
    )
    assert own[0] != own[1]
    assert most == [max(own)] * 2


def test_one_color_stands_for_one_heat_in_all_pictures_of_a_batch(features: Features, models: Path) -> None:
    picture, style = models / "pictures/circle.png", Style(frame=False, overlay=True, scale_over="batch", channels=(4,))
    feature_map = features["conv_4"]
    half = replace(feature_map, array=feature_map.array / np.float32(2))
    tracker = LayerTracker(style)
    for shown in (half, feature_map):
        tracker.add(shown)
    whole = overlay_of(feature_map, picture, 0, style, tracker.shared())
    np.testing.assert_array_equal(whole.colors, overlay(feature_map, picture, channel=4))
    dim = overlay_of(half, picture, 0, style, tracker.shared())
    assert dim.legend.ends == whole.legend.ends
    assert not np.array_equal(dim.colors, whole.colors)
    np.testing.assert_array_equal(overlay_of(half, picture, 0, style).colors, whole.colors)


def test_a_picture_below_zero_gives_all_of_its_batch_colors_that_diverge(features: Features, models: Path) -> None:
    picture, style = models / "pictures/circle.png", Style(overlay=True, scale_over="batch")
    feature_map = features["conv_4"]
    tracker = LayerTracker(style)
    tracker.add(replace(feature_map, array=-feature_map.array))
    tracker.add(feature_map)
    found = overlay_of(feature_map, picture, 0, style, tracker.shared())
    assert found.colormap == "coolwarm"
    assert found.legend.ends[0] == f"-{found.legend.ends[2]}"


@pytest.mark.parametrize(("value", "words"), [(np.nan, "no value of it is finite"), (0, "all values are 0")])
def test_an_overlay_without_colors_has_no_bar_and_says_why(
    features: Features, models: Path, value: float, words: str
) -> None:
    feature_map = replace(features["conv_4"], array=features["conv_4"].array * np.float32(0) + np.float32(value))
    found = overlay_of(feature_map, models / "pictures/circle.png", 0, Style(overlay=True))
    assert found.legend.ends == ()
    assert words in found.legend.note
    assert ("scale" in found.facts) == (value == 0)


def test_components_over_a_photograph_have_no_ends(features: Features, models: Path) -> None:
    found = overlay_of(features["conv_4"], models / "pictures/circle.png", 0, Style(overlay=True, reduce="pca"))
    assert found.legend.ends == ()
    assert "scale" not in found.facts


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
