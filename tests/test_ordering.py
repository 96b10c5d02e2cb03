from __future__ import annotations

import time
from itertools import pairwise, permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from onnxfeat import FeatureExtractor
from onnxfeat.drawing import channel_statistics, ordering
from onnxfeat.drawing.ordering import BatchOrder, ordered_channels
from onnxfeat.drawing.styles import Dead, Order
from onnxfeat.errors import PictureError

ORDERS: tuple[Order, ...] = ("index", "magnitude", "variance", "similarity")

shapes = st.tuples(st.integers(1, 3), st.integers(1, 7), st.integers(1, 4), st.integers(1, 4))
# Few values, so that ties, dead and constant channels are frequent.
small_maps = shapes.flatmap(lambda shape: arrays(np.float32, shape, elements=st.integers(-3, 3).map(float)))


def flags(array: NDArray[Any]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which channels are constant, and which are 0 everywhere, over all pictures."""
    rows = np.moveaxis(array, 1, 0).reshape(array.shape[1], -1)
    return (rows == rows[:, :1]).all(axis=1), (rows == 0).all(axis=1)


def channels(array: NDArray[Any], order: Order) -> list[int]:
    return [int(channel) for channel in ordered_channels(array, order=order).channels]


def values_of(array: NDArray[Any], channel: int) -> NDArray[np.float64]:
    """The finite values of a channel in all pictures."""
    values = array[:, channel].astype(np.float64).ravel()
    return values[np.isfinite(values)]


def neighbor_correlation(array: NDArray[Any], order: NDArray[np.intp]) -> float:
    rows = np.moveaxis(array, 1, 0).reshape(array.shape[1], -1).astype(np.float64)
    alike = np.atleast_2d(np.corrcoef(rows))
    return float(np.mean([alike[a, b] for a, b in pairwise(order)]))


def bumps(count: int, cells: int = 40) -> NDArray[np.float32]:
    """Channels with one wide bump each, from left to right: who is next to whom is known."""
    places = np.linspace(0, cells, count)[:, None]
    maps: NDArray[np.float32] = np.exp(-0.5 * ((np.arange(cells) - places) / 5) ** 2).astype(np.float32)
    return maps[None]


@given(small_maps)
def test_magnitude_goes_by_the_mean_absolute_value(array: NDArray[np.float32]) -> None:
    means = [np.abs(values_of(array, c)).mean() for c in range(array.shape[1])]
    assert channels(array, "magnitude") == sorted(range(array.shape[1]), key=lambda c: -round(means[c], 9))


@given(small_maps)
def test_variance_goes_by_the_variance_over_all_pictures(array: NDArray[np.float32]) -> None:
    variances = [round(float(values_of(array, c).var()), 9) for c in range(array.shape[1])]
    found = [variances[c] for c in channels(array, "variance")]
    assert found == sorted(variances, reverse=True)


@pytest.mark.parametrize("order", ORDERS)
def test_channels_of_the_same_rank_keep_the_order_of_their_index(order: Order) -> None:
    one = np.array([1.0, 5.0, 2.0], dtype=np.float32)
    assert channels(np.stack([one] * 9)[None], order) == list(range(9))


@given(array=small_maps, order=st.sampled_from(ORDERS))
def test_every_channel_is_drawn_once(array: NDArray[np.float32], order: Order) -> None:
    found = ordered_channels(array, order=order)
    assert sorted(found.channels) == list(range(array.shape[1]))
    assert (found.total, found.omitted, found.beyond_top) == (array.shape[1], 0, 0)


@given(array=small_maps, order=st.sampled_from(ORDERS), top=st.integers(1, 9), dead=st.sampled_from(["last", "omit"]))
def test_no_channel_without_contrast_comes_before_one_with_contrast(
    array: NDArray[np.float32], order: Order, top: int, dead: Dead
) -> None:
    constant, dead_channels = flags(array)
    full = ordered_channels(array, order=order, dead=dead)
    without = constant[full.channels].tolist()
    assert without == sorted(without)
    if dead == "omit" and not constant.all():
        assert not any(without)
    assert (full.dead, full.constant) == (dead_channels.sum(), (constant & ~dead_channels).sum())
    assert len(full.channels) + full.omitted == full.total
    kept = [c for c in ordered_channels(array, order=order).channels if not constant[c]]
    assert full.channels[: len(kept)].tolist() == kept, "the others keep their order"
    first = ordered_channels(array, order=order, top=top, dead=dead)
    assert first.channels.tolist() == full.channels[:top].tolist()
    assert first.beyond_top == max(0, len(full.channels) - top)
    assert (first.dead, first.constant, first.omitted) == (full.dead, full.constant, full.omitted)


def test_omit_leaves_all_in_where_nothing_has_contrast() -> None:
    found = ordered_channels(np.zeros((1, 3, 2), np.float32), dead="omit")
    assert found.channels.tolist() == [0, 1, 2]
    assert (found.dead, found.constant, found.omitted) == (3, 0, 0)


@pytest.mark.parametrize("order", ["magnitude", "variance"])
def test_values_that_are_not_finite_take_no_part(order: Order) -> None:
    array = np.random.default_rng(3).normal(1000, 1, size=(2, 12, 5, 5)).astype(np.float32)
    array *= np.linspace(1, 3, 12, dtype=np.float32)[:, None, None]
    for position, value in enumerate((np.nan, np.inf, -np.inf)):
        array[:, position::3, position, position] = value
    values = [values_of(array, channel) for channel in range(12)]
    keys = [np.abs(x).mean() if order == "magnitude" else x.var() for x in values]
    expected = sorted(range(12), key=lambda channel: -keys[channel])
    assert channels(array, order) == expected


def test_a_mean_is_over_the_finite_values_alone() -> None:
    array = np.array([[[2.0, 2.0, 2.0], [np.nan, np.inf, 5.0]]], dtype=np.float32)
    assert channels(array, "magnitude") == [1, 0]


def test_a_cell_that_is_not_finite_has_no_say_in_the_similarity() -> None:
    array = bumps(12)
    clean = channels(array, "similarity")
    array[0, 5, 39] = np.nan  # far from its bump
    array[0, 6, 0] = np.inf
    assert channels(array, "similarity") == clean


@pytest.mark.parametrize("order", ["magnitude", "variance", "similarity"])
def test_a_channel_of_nothing_but_nan_comes_last(order: Order) -> None:
    array = np.array([[[np.nan, np.nan], [0.0, 1.0], [0.0, 0.0], [0.0, 3.0]]], dtype=np.float32)
    found = channels(array, order)
    # By similarity channel 2, which is 0 everywhere, has no correlation either.
    assert found == ([1, 3, 0, 2] if order == "similarity" else [3, 1, 2, 0])


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("scale", [1e-38, 1e-25, 1e25, 3e37])
def test_the_order_is_the_same_in_any_unit(order: Order, scale: float) -> None:
    array = np.random.default_rng(0).uniform(-9, 9, size=(2, 20, 4, 4)).astype(np.float32)
    assert channels(array * np.float32(scale), order) == channels(array, order)


def test_a_small_variance_around_a_large_mean_is_told_apart() -> None:
    noise = np.random.default_rng(0).integers(-8, 8, size=(1, 6, 400)) * np.arange(1, 7)[:, None] / 16
    array = (10_000 + noise).astype(np.float32)
    array[0, :, 0] = np.nan
    assert channels(array, "variance") == [5, 4, 3, 2, 1, 0]


@pytest.mark.parametrize("order", ["magnitude", "variance", "similarity"])
@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int8, np.uint8])
def test_other_types_are_ordered_like_float32(order: Order, dtype: type) -> None:
    array: NDArray[Any] = np.random.default_rng(1).integers(0, 99, size=(1, 30, 6)).astype(dtype)
    assert channels(array, order) == channels(array.astype(np.float32), order)


@settings(max_examples=30)
@given(array=small_maps, order=st.sampled_from(ORDERS), block=st.integers(1, 20))
def test_the_blocks_leave_no_trace(array: NDArray[np.float32], order: Order, block: int) -> None:
    whole = channels(array, order)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ordering, "_BLOCK", block)
        patch.setattr(channel_statistics, "_BLOCK", block)
        in_blocks = channels(array, order)
    if order == "variance":  # ties of the same variance may fall apart by rounding
        variances = [round(float(values_of(array, c).var()), 9) for c in range(array.shape[1])]
        assert [variances[c] for c in in_blocks] == [variances[c] for c in whole]
    else:
        assert in_blocks == whole


@pytest.mark.parametrize("order", ORDERS)
def test_neither_the_strides_matter_nor_is_the_array_changed(order: Order) -> None:
    array = np.random.default_rng(2).normal(size=(2, 5, 6, 9)).astype(np.float32)
    array[0, 0, 0, 0] = np.nan
    strided = np.asfortranarray(array)
    before = strided.copy()
    strided.flags.writeable = False
    assert channels(strided, order) == channels(array, order)
    np.testing.assert_array_equal(strided, before)


def test_similarity_brings_together_what_looks_alike() -> None:
    rng = np.random.default_rng(0)
    faces = rng.normal(size=(4, 8, 8))
    kinds = np.arange(40) % 4
    array = (faces[kinds] + 0.1 * rng.normal(size=(40, 8, 8))).astype(np.float32)[None]
    found = kinds[ordered_channels(array, order="similarity").channels]
    assert np.count_nonzero(np.diff(found)) == 3, "each of the four kinds is one stretch"


def test_similarity_finds_the_way_along_a_family() -> None:
    array = bumps(30)
    shuffled = np.random.default_rng(5).permutation(np.arange(1, 30))
    given_as = np.array([0, *shuffled])  # the first channel stays first, so let it be the left end
    found = given_as[ordered_channels(array[:, given_as], order="similarity").channels]
    assert found.tolist() == list(range(30))


def test_a_channel_and_its_negative_do_not_look_alike() -> None:
    one = np.random.default_rng(0).normal(size=50)
    other = np.random.default_rng(1).normal(size=50)
    array = np.stack([one, -one, other, one + 0.1 * other])[None].astype(np.float32)
    assert channels(array, "similarity")[:2] == [0, 3]


@settings(max_examples=40)
@given(seed=st.integers(0, 10_000), count=st.integers(2, 7))
def test_similarity_is_near_the_best_path_from_the_first_channel(seed: int, count: int) -> None:
    array = np.random.default_rng(seed).normal(size=(1, count, 5)).astype(np.float32)
    paths = [np.array((0, *rest)) for rest in permutations(range(1, count))]
    best = max(neighbor_correlation(array, path) for path in paths)
    worst = min(neighbor_correlation(array, path) for path in paths)
    found = neighbor_correlation(array, ordered_channels(array, order="similarity").channels)
    assert found >= worst + 0.7 * (best - worst) - 1e-3


def test_the_end_of_the_path_is_as_good_as_the_rest() -> None:
    """Who always goes on to the nearest ends among those that nobody was near to."""
    for seed in range(4):
        array = np.random.default_rng(seed).normal(size=(1, 200, 10)).astype(np.float32)
        path = ordered_channels(array, order="similarity").channels
        assert neighbor_correlation(array, path[-20:]) > 0.8 * neighbor_correlation(array, path)


@settings(max_examples=40)
@given(seed=st.integers(0, 10_000))
def test_shifting_and_scaling_a_channel_changes_nothing_of_the_similarity(seed: int) -> None:
    rng = np.random.default_rng(seed)
    array = rng.normal(size=(2, 9, 12)).astype(np.float32)
    moved = array * rng.uniform(0.5, 9, size=(9, 1)) + rng.uniform(-5, 5, size=(9, 1))
    path, path_of_moved = (ordered_channels(x, order="similarity").channels for x in (array, moved))
    # Float32 rounds the correlations, so that of two paths that are as good either may win.
    assert neighbor_correlation(array, path_of_moved) == pytest.approx(neighbor_correlation(array, path), abs=2e-2)


def test_channels_that_are_alike_but_for_rounding_keep_the_order_of_their_index() -> None:
    rng = np.random.default_rng(0)
    array = (rng.normal(size=200) * rng.uniform(0.1, 9, size=(60, 1)) + rng.normal(size=(60, 1))).astype(np.float32)
    assert channels(array[None], "similarity") == list(range(60))


def test_channels_without_contrast_come_last_by_similarity() -> None:
    array = bumps(6)
    array[0, [0, 3]] = [[0.0], [7.0]]
    assert channels(array, "similarity")[-2:] == [0, 3]


@given(array=small_maps, order=st.sampled_from(ORDERS), dead=st.sampled_from(["keep", "last", "omit"]), data=st.data())
def test_it_makes_no_difference_in_which_parts_the_pictures_come(
    array: NDArray[np.float32], order: Order, dead: Dead, data: st.DataObject
) -> None:
    whole = ordered_channels(array, order=order, dead=dead)
    cut = data.draw(st.integers(1, len(array)))
    tracker = BatchOrder(order=order, dead=dead)
    for part in (array[:cut], array[cut:]):
        if len(part):
            tracker.add(part)
    found = tracker.order()
    for name in ("total", "dead", "constant", "omitted", "beyond_top"):
        assert getattr(found, name) == getattr(whole, name)
    if order == "variance":  # ties of the same variance may fall apart by rounding
        variances = [round(float(values_of(array, c).var()), 6) for c in range(array.shape[1])]
        assert [variances[c] for c in found.channels] == [variances[c] for c in whole.channels]
    elif order != "similarity":  # likewise
        assert found.channels.tolist() == whole.channels.tolist()
    assert sorted(found.channels) == sorted(whole.channels)


def test_similarity_is_that_of_the_pictures_together() -> None:
    """Two channels that are alike in the large picture and opposite in the small one are alike by and large."""
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 90)).astype(np.float32)
    large = np.stack([one, other, one])[None]
    small = np.stack([one, one, -one])[None, :, :10]
    tracker = BatchOrder(order="similarity")
    tracker.add(large)
    tracker.add(small)
    assert tracker.order().channels.tolist() == [0, 2, 1]
    tracker = BatchOrder(order="similarity")
    for _ in range(20):
        tracker.add(small)
    tracker.add(large)
    assert tracker.order().channels.tolist() == [0, 1, 2]


def test_chosen_channels_alone_are_ordered() -> None:
    array = np.arange(6, dtype=np.float32)[:, None] * np.array([-1, 1], np.float32)
    expected: dict[Order, list[int]] = {"index": [4, 1, 5], "magnitude": [5, 4, 1], "variance": [5, 4, 1]}
    for order, channels_ in expected.items():
        tracker = BatchOrder(order=order, channels=(4, 1, -1))
        tracker.add(array[None])
        assert tracker.order().channels.tolist() == channels_


def test_a_channel_that_the_layer_has_not_is_refused() -> None:
    for wrong in ((0, 3), (-4,)):
        with pytest.raises(PictureError, match=rf"channel {wrong[-1]} was asked for, the layer has 3: pass 0 to 2"):
            BatchOrder(channels=wrong).add(bumps(3))
    with pytest.raises(PictureError, match="no channel was asked for, the layer has 3"):
        BatchOrder(channels=()).add(bumps(3))


def test_no_picture_has_no_order() -> None:
    with pytest.raises(PictureError, match="there is no picture to measure: pass one or more"):
        BatchOrder().order()


def test_neighbors_look_alike_on_a_real_model() -> None:
    extractor = FeatureExtractor("models/shapes_small.onnx", provider="cpu")
    maps = extractor("models/pictures/chelsea.png")
    compared = 0
    for feature_map in maps.values():
        constant, _ = flags(feature_map.array)
        array = feature_map.array[:, ~constant]
        if array.shape[1] < 8:
            continue
        path = ordered_channels(array, order="similarity").channels
        shuffled = np.random.default_rng(0).permutation(array.shape[1])
        assert neighbor_correlation(array, path) > neighbor_correlation(array, np.arange(array.shape[1])) + 0.2
        assert neighbor_correlation(array, path) > neighbor_correlation(array, shuffled) + 0.2
        compared += 1
    assert compared >= 3


def test_two_thousand_channels_are_compared_without_a_loop_over_pairs() -> None:
    array = np.random.default_rng(0).normal(size=(1, 2048, 7, 7)).astype(np.float32)
    start = time.perf_counter()
    ordered_channels(array, order="similarity")
    assert time.perf_counter() - start < 3  # 0.1 s; 2 million steps of Python take longer


def test_an_unknown_order_is_refused_with_the_list() -> None:
    with pytest.raises(PictureError, match="order 'size' is unknown: choose 'index', 'magnitude'"):
        ordered_channels(bumps(3), order="size")  # type: ignore[arg-type]
    with pytest.raises(PictureError, match="dead 'drop' is unknown: choose 'keep', 'last'"):
        ordered_channels(bumps(3), dead="drop")  # type: ignore[arg-type]


def test_a_top_of_none_at_all_is_refused() -> None:
    with pytest.raises(PictureError, match=r"top is 0, .*pass 1 or more"):
        ordered_channels(bumps(3), top=0)


def test_an_array_without_channels_is_refused() -> None:
    with pytest.raises(PictureError, match=r"an array of shape \(1, 0, 4\) holds no feature maps"):
        ordered_channels(np.zeros((1, 0, 4)))


def test_more_channels_than_can_be_compared_in_pairs_are_refused() -> None:
    array = np.zeros((2, 16_385, 1), np.float32)
    array[1] = 1
    with pytest.raises(PictureError, match=r"16,385 channels are too many to compare in pairs.*choose another order"):
        ordered_channels(array, order="similarity")
