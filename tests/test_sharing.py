import weakref
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from test_gallery import as_map, noise, run_of

from onnxfeat.drawing.overlays import HeatScale
from onnxfeat.drawing.reductions import pca_basis
from onnxfeat.drawing.scales import scale_of
from onnxfeat.drawing.sharing import LayerTracker, shared_by_layer
from onnxfeat.drawing.styles import Normalization, Style
from onnxfeat.errors import PictureError
from onnxfeat.records import FeatureMap, Features
from onnxfeat.registration import Registration, Step

LAYERS = {"conv": noise(5, 4, 6, 7), "pool": noise(5, 4, 3, 3, seed=1), "dense": noise(5, 9, seed=2)}


def one_by_one() -> Iterator[Features]:
    for index in range(5):
        yield run_of({name: array[index : index + 1] for name, array in LAYERS.items()}, f"{index}.png")


@pytest.mark.parametrize("method", ["zscore", "minmax", "percentile", "symmetric", "log"])
def test_each_layer_has_the_scale_of_all_its_pictures(method: Normalization) -> None:
    shared = shared_by_layer(one_by_one(), Style(normalize=method, scale_over="batch"))
    assert list(shared) == list(LAYERS)
    for name, array in LAYERS.items():
        subject = array[:, None, None] if array.ndim == 2 else array  # a vector is one channel
        expected = scale_of(subject, method, scale_over="batch")
        found = shared[name].scale
        assert found is not None
        np.testing.assert_allclose(found.low, expected.low, rtol=1e-9)
        np.testing.assert_allclose(found.high, expected.high, rtol=1e-9)


def test_each_layer_has_one_order_for_all_its_pictures() -> None:
    array = np.zeros((2, 3, 4, 4), np.float32)
    array[0] += np.array([3, 1, 2], np.float32)[:, None, None]
    array[1] += np.array([3, 9, 2], np.float32)[:, None, None]
    runs = [run_of({"conv": array[:1]}, "a"), run_of({"conv": array[1:]}, "b")]
    shared = shared_by_layer(runs, Style(scale_over="batch", order="magnitude", top=2))
    assert shared["conv"].order is not None
    assert shared["conv"].order.channels.tolist() == [1, 0]  # means of 5, 3 and 2


@pytest.mark.parametrize("method", ["mean", "max", "l2"])
def test_what_is_made_of_all_channels_has_a_scale_and_no_order(method: Any) -> None:
    shared = shared_by_layer([run_of({"conv": LAYERS["conv"]})], Style(scale_over="batch", reduce=method))["conv"]
    values: NDArray[Any] = {
        "mean": LAYERS["conv"].mean(axis=1),
        "max": LAYERS["conv"].max(axis=1),
        "l2": np.linalg.norm(LAYERS["conv"], axis=1),
    }[method].astype(np.float64)
    assert shared.order is None
    assert shared.scale is not None
    assert shared.scale.middle.item() == pytest.approx(values.mean(), rel=1e-5, abs=1e-6)
    assert shared.scale.reach.item() == pytest.approx(2 * values.std(), rel=1e-5)


def test_principal_components_are_those_of_all_pictures() -> None:
    shared = shared_by_layer(one_by_one(), Style(reduce="pca"))
    expected = pca_basis([LAYERS["conv"]])
    found = shared["conv"].basis
    assert found is not None
    assert (shared["conv"].scale, shared["conv"].order) == (None, None)
    np.testing.assert_allclose(found.components, expected.components, atol=1e-6)
    np.testing.assert_allclose(found.high, expected.high, rtol=1e-6)


def laid_map(*cells: Any) -> FeatureMap:
    """Return a map of two channels, for a picture each of whose pixels one cell sees."""
    array = np.asarray(cells, np.float32)[:, None].repeat(2, axis=1)
    registration = Registration(steps=(Step(),), step=0, size=(array.shape[2], array.shape[3]))
    return replace(as_map("conv", array), registration=registration)


def test_overlays_share_the_greatest_heat_of_all_pictures() -> None:
    style = Style(overlay=True, scale_over="batch", channels=(-1,))
    tracker = LayerTracker(style)
    tracker.add(laid_map([[1.0, 2.0]], [[0.0, 5.0]]))
    assert tracker.shared().heat == HeatScale(5.0, signed=False)
    tracker.add(laid_map([[-7.0, np.nan]], [[np.nan, np.nan]]))
    assert tracker.shared().heat == HeatScale(7.0, signed=True)
    assert tracker.shared().scale is None


def test_overlays_of_no_finite_value_or_without_a_place_share_nothing() -> None:
    for feature_map in (laid_map([[np.nan, np.inf]]), as_map("conv", noise(1, 2, 3, 4))):
        tracker = LayerTracker(Style(overlay=True, scale_over="batch"))
        tracker.add(feature_map)
        assert tracker.shared().heat is None


def test_one_run_is_in_memory_at_a_time() -> None:
    freed = []

    def runs() -> Iterator[Features]:
        for _ in range(3):
            run = run_of({"conv": noise(1, 3, 4, 5)})
            maps = weakref.ref(run["conv"].array)
            yield run
            del run
            freed.append(maps() is None)

    shared_by_layer(runs(), Style(scale_over="batch"))
    assert freed == [True, True, True]


def test_progress_hears_each_layer_and_maps_that_can_not_be_drawn_take_no_part() -> None:
    heard: list[str] = []
    run = run_of({"conv": LAYERS["conv"], "boxes": np.zeros((5, 4, 0))})
    shared = shared_by_layer([run], Style(scale_over="batch"), heard.append)
    assert heard == ["conv", "boxes"]
    assert list(shared) == ["conv"]


def test_no_picture_has_nothing_to_share() -> None:
    assert shared_by_layer([], Style(scale_over="batch")) == {}
    with pytest.raises(PictureError, match="there is no picture"):
        LayerTracker(Style(scale_over="batch")).shared()


def test_the_maps_of_a_layer_are_not_changed() -> None:
    array = noise(1, 3, 4, 5)
    tracker = LayerTracker(Style(normalize="percentile", scale_over="batch", order="similarity"))
    tracker.add(as_map("conv", array))
    np.testing.assert_array_equal(array, noise(1, 3, 4, 5))
