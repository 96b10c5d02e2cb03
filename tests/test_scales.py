from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from onnxfeat.drawing import channel_statistics
from onnxfeat.drawing.channel_statistics import statistics
from onnxfeat.drawing.scales import BatchScale, normalize, scale_of
from onnxfeat.drawing.styles import Normalization, ScaleOver
from onnxfeat.errors import PictureError

METHODS: list[Normalization] = ["zscore", "minmax", "percentile", "symmetric", "log"]
OVERS: list[ScaleOver] = ["channel", "layer", "batch"]

shapes = st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 6), st.integers(1, 6))
# Integers are far from rounding, so that the law is about the formula and not about float32.
integer_maps = shapes.flatmap(lambda shape: arrays(np.int32, shape, elements=st.integers(-1000, 1000)))
any_float32 = shapes.flatmap(lambda shape: arrays(np.float32, shape, elements=st.floats(width=32)))
methods = st.sampled_from(METHODS)
overs = st.sampled_from(OVERS)


def row(*values: float) -> NDArray[np.float32]:
    """One picture of one channel, one pixel high."""
    return np.array(values, dtype=np.float32).reshape(1, 1, 1, -1)


def noise(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def reference_levels(array: NDArray[Any]) -> NDArray[np.uint8]:
    """The reference pipeline as a book would write it: a loop over channels, in float64, without regard for time."""
    levels = np.zeros(array.shape, dtype=np.uint8)
    for picture in range(array.shape[0]):
        for channel in range(array.shape[1]):
            image = array[picture, channel].astype(np.float64)
            image -= image.mean()
            if image.std() > 0:
                image /= image.std()
            image *= 64
            image += 128
            levels[picture, channel] = np.clip(image, 0, 255).astype("uint8")
    return levels


def distance(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> int:
    assert a.shape == b.shape
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def expected_levels(
    array: NDArray[Any],
    method: str,
    over: str,
    steps: int = 256,
    percentiles: tuple[float, float] = (1, 99),
) -> NDArray[np.uint8]:
    """Levels as the documentation tells them, group after group in float64."""
    levels = np.zeros(array.shape, np.uint8)
    axes = {"channel": 2, "layer": 1, "batch": 0}[over]
    for group in np.ndindex(array.shape[:axes]):
        values = array[group].astype(np.float64)
        if method == "zscore":
            low, high = values.mean() - 2 * values.std(), values.mean() + 2 * values.std()
        elif method == "percentile":
            low, high = np.percentile(values, percentiles)
        elif method == "symmetric":
            low, high = -np.abs(values).max(), np.abs(values).max()
        else:
            low, high = values.min(), values.max()
        part = np.clip((values - low) / (high - low), 0, 1)
        if method == "log":
            part = np.log1p(255 * part) / np.log(256)  # the mu-law of ITU-T G.711, mu = 255
        levels[group] = np.clip(np.floor(part * steps), 0, steps - 1)
    return levels


@pytest.mark.parametrize(
    ("shape", "scale", "shift"),
    [
        ((1, 8, 148, 148), 1.0, 0.0),
        ((1, 32, 17, 17), 0.01, 5.0),
        ((2, 3, 5, 11), 1e30, 0.0),
        ((2, 3, 11, 5), 1e-30, 0.0),
        ((1, 3, 40, 40), 1e-3, 1000.0),
        ((3, 1, 4, 4), 1e37, -2e38),
        ((1, 2048, 7, 7), 3.0, -100.0),
        ((1, 2, 1, 2), 1.0, 0.0),
    ],
)
def test_gray_levels_are_those_of_the_reference_pipeline(shape: tuple[int, ...], scale: float, shift: float) -> None:
    array = (noise(*shape).astype(np.float64) * scale + shift).astype(np.float32)
    assert distance(normalize(array), reference_levels(array)) <= 1


def test_relu_maps_with_few_bright_cells_are_those_of_the_reference_pipeline() -> None:
    array = np.maximum(noise(1, 16, 50, 50) - 2, 0)
    assert distance(normalize(array), reference_levels(array)) <= 1


def test_a_faint_spot_on_a_bright_ground_is_drawn_as_in_float64() -> None:
    # The mean lies between two neighboring float32 numbers here: rounding it would move the ground by 3 gray levels.
    array = np.full((1, 1, 100, 100), 1000, dtype=np.float32)
    array[..., 0, :10] += 0.01
    assert distance(normalize(array), reference_levels(array)) <= 1


def test_a_standard_deviation_is_64_levels() -> None:
    array = row(-2, -1, 0, 1, 2, *[-1, 1] * 7, *[0] * 5)
    assert (array.mean(), array.std()) == (0, 1)
    assert normalize(array)[0, 0, 0, :5].tolist() == [0, 64, 128, 192, 255]  # 128 + 2 * 64 is clipped


@given(integer_maps, st.sampled_from([0.25, 0.5, 1.0, 3.0, 10.0, 1e6]), st.sampled_from([-100.0, 0.0, 7.0]))
@settings(max_examples=60)
def test_normalize_ignores_scale_and_shift(array: NDArray[np.int32], scale: float, shift: float) -> None:
    moved = array.astype(np.float64) * scale + shift * scale
    assert distance(normalize(moved), normalize(array)) <= 1


@given(integer_maps)
@settings(max_examples=40)
def test_a_negative_factor_mirrors_the_gray_levels(array: NDArray[np.int32]) -> None:
    levels, mirrored = normalize(array).astype(int), normalize(-array).astype(int)
    inside = (levels > 0) & (levels < 255)
    assert (np.abs(levels + mirrored - 256)[inside] <= 1).all()


@given(any_float32)
@settings(max_examples=150)
def test_any_float32_values_give_gray_levels_and_finite_statistics(array: NDArray[np.float32]) -> None:
    levels, found = normalize(array), statistics(array)  # warnings are errors here
    assert levels.dtype == np.uint8
    assert levels.shape == array.shape
    assert np.isfinite(found.mean).all()
    assert np.isfinite(found.deviation).all()
    assert (found.deviation >= 0).all()
    assert (found.not_finite == (~np.isfinite(array)).sum(axis=(2, 3))).all()


@given(any_float32, methods, overs)
@settings(max_examples=200)
def test_brighter_is_never_less(array: NDArray[np.float32], method: Normalization, over: ScaleOver) -> None:
    levels = normalize(array, method, scale_over=over)
    for values, grays in zip(array.reshape(-1, array[0, 0].size), levels.reshape(-1, array[0, 0].size), strict=True):
        finite = np.isfinite(values)
        order = np.argsort(values[finite], kind="stable")
        assert (np.diff(grays[finite][order].astype(int)) >= 0).all()


@given(integer_maps)
@settings(max_examples=40)
def test_each_channel_of_each_picture_is_normalized_by_itself(array: NDArray[np.int32]) -> None:
    whole = normalize(array)
    for n in range(array.shape[0]):
        for c in range(array.shape[1]):
            alone = normalize(array[n : n + 1, c : c + 1])
            assert (whole[n, c] == alone[0, 0]).all()


@pytest.mark.parametrize("value", [0.0, 5.0, -1e30, 1e-30, 3.4e38, 1e-45])
def test_a_constant_channel_becomes_mid_gray(value: float) -> None:
    array = np.full((1, 2, 3, 4), value, dtype=np.float32)
    array[0, 1] = noise(3, 4)
    assert (normalize(array)[0, 0] == 128).all()
    assert statistics(array).constant.tolist() == [[True, False]]


def test_a_channel_that_differs_by_rounding_only_is_constant() -> None:
    # 0.1 summed in two orders: neighbors in float32, no contrast that a network meant.
    array = row(0.3, np.nextafter(np.float32(0.3), np.float32(1)), 0.3)
    assert normalize(array).tolist() == [[[[128, 128, 128]]]]
    assert statistics(array).constant.all()


def test_a_channel_of_denormal_numbers_is_constant() -> None:
    assert normalize(row(0, 1e-45, 3e-39)).tolist() == [[[[128, 128, 128]]]]


def test_a_faint_but_real_contrast_is_not_constant() -> None:
    array = row(1000, 1000.01)
    assert not statistics(array).constant.any()
    assert normalize(array).tolist() == [[[[64, 192]]]]


@pytest.mark.parametrize("size", [1e-30, 1e-36, 1.0, 1e30, 3.4e38])
def test_contrast_does_not_depend_on_magnitude(size: float) -> None:
    assert normalize(row(-size, size)).tolist() == [[[[64, 192]]]]


def test_one_pixel_maps_are_mid_gray() -> None:
    assert normalize(noise(2, 3, 1, 1)).tolist() == np.full((2, 3, 1, 1), 128).tolist()


def test_nan_is_black_and_infinities_are_black_and_white_beside_untouched_levels() -> None:
    levels = normalize(row(1, 3, np.nan, np.inf, -np.inf))
    assert levels.tolist() == [[[[64, 192, 0, 255, 0]]]]


def test_nan_in_one_channel_leaves_the_others_alone() -> None:
    array = noise(2, 3, 4, 5)
    clean = normalize(array)
    array[1, 2, 0, 0] = np.nan
    levels, found = normalize(array), statistics(array)
    assert (levels[0] == clean[0]).all()
    assert (levels[1, :2] == clean[1, :2]).all()
    assert levels[1, 2, 0, 0] == 0
    assert found.not_finite.tolist() == [[0, 0, 0], [0, 0, 1]]


def test_a_channel_without_any_finite_value_is_not_constant() -> None:
    array = np.full((1, 2, 1, 2), np.nan, dtype=np.float32)
    array[0, 1] = np.inf
    found = statistics(array)
    assert normalize(array).tolist() == [[[[0, 0]], [[255, 255]]]]
    assert found.constant.tolist() == [[False, False]]
    assert found.mean.tolist() == [[0, 0]]
    assert found.deviation.tolist() == [[0, 0]]


def test_a_constant_channel_with_nan_stays_mid_gray_where_it_has_values() -> None:
    assert normalize(row(7, np.nan, 7)).tolist() == [[[[128, 0, 128]]]]


def test_float64_values_beyond_float32_count_as_infinite() -> None:
    array = np.array([[[[1e300, -1e300, 1.0, 3.0]]]])
    assert normalize(array).tolist() == [[[[255, 0, 64, 192]]]]
    assert statistics(array).not_finite.tolist() == [[2]]


def test_float16_does_not_overflow() -> None:
    array = (noise(1, 2, 30, 30) * 10000).astype(np.float16)
    assert np.isfinite(array).all()
    assert distance(normalize(array), reference_levels(array)) <= 1


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int32, np.int64, np.bool_, np.float64])
def test_every_element_type_is_normalized_alike(dtype: type) -> None:
    array: NDArray[Any] = np.array([[[[0, 1, 1, 0]]]], dtype=dtype)
    assert normalize(array).tolist() == [[[[64, 192, 192, 64]]]]


@pytest.mark.parametrize("block", [1, 7, 20, 60, 10**6])
def test_maps_are_normalized_alike_in_blocks_of_any_size(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    array = noise(2, 5, 4, 5)
    array[0, 1] = 3
    array[0, 2, 1, :3] = np.nan, np.inf, -np.inf
    array[1, 4] = np.nan
    monkeypatch.setattr(channel_statistics, "_BLOCK", block)  # 20 cells a channel: parts of channels, one, three, all
    levels, found = normalize(array), statistics(array)
    finite = np.isfinite(array)
    np.testing.assert_array_equal(found.not_finite, (~finite).sum(axis=(2, 3)))
    assert np.argwhere(found.constant).tolist() == [[0, 1]]
    for n, c in np.ndindex(2, 5):
        values = array[n, c][finite[n, c]].astype(np.float64)
        assert found.mean[n, c] == pytest.approx(values.mean() if values.size else 0, abs=1e-6)
        assert found.deviation[n, c] == pytest.approx(values.std() if values.size else 0, abs=1e-6)
        expected = reference_levels(values.reshape(1, 1, -1))[0, 0] if values.size else values
        assert np.abs(levels[n, c][finite[n, c]].astype(int) - expected).max(initial=0) <= 1
    assert levels[0, 2, 1, :3].tolist() == [0, 255, 0]
    assert (levels[1, 4] == 0).all()


def test_normalize_takes_one_and_three_spatial_axes() -> None:
    array = noise(2, 3, 24)
    assert (normalize(array).reshape(2, 3, 2, 3, 4) == normalize(array.reshape(2, 3, 2, 3, 4))).all()


@pytest.mark.parametrize("over", OVERS)
@pytest.mark.parametrize("method", METHODS)
def test_levels_are_those_of_the_formula(method: Normalization, over: ScaleOver) -> None:
    array = np.exp(noise(3, 4, 9, 11)) * np.array([1, 5, 0.1, 2], np.float32)[:, None, None] - 0.3
    # The percentiles of a batch are told by a histogram, right to 0.8 % of their value: at most two levels.
    most = 2 if (method, over) == ("percentile", "batch") else 1
    assert distance(normalize(array, method, scale_over=over), expected_levels(array, method, over)) <= most


@pytest.mark.parametrize("shape", [(2, 3, 50), (2, 3, 4, 5, 6)])
@pytest.mark.parametrize("method", METHODS)
def test_every_formula_takes_one_and_three_spatial_axes(method: Normalization, shape: tuple[int, ...]) -> None:
    array = noise(*shape)
    assert distance(normalize(array, method), expected_levels(array, method, "channel")) <= 1


@given(integer_maps, overs, st.sampled_from(["minmax", "percentile", "log"]))
@settings(max_examples=100)
def test_the_hottest_value_of_a_scale_has_the_last_level_and_the_coldest_the_first(
    array: NDArray[np.int32], over: ScaleOver, method: Normalization
) -> None:
    levels = normalize(array, method, scale_over=over, percentiles=(0, 100))
    axes = {"channel": (2, 3), "layer": (1, 2, 3), "batch": (0, 1, 2, 3)}[over]
    low, high = array.min(axis=axes, keepdims=True), array.max(axis=axes, keepdims=True)
    has_contrast = np.broadcast_to(high > low, array.shape)
    assert (levels[(array == high) & has_contrast] == 255).all()
    assert (levels[(array == low) & has_contrast] == 0).all()
    assert (levels[~has_contrast] == 128).all()


@given(integer_maps, overs)
@settings(max_examples=60)
def test_the_value_farthest_from_zero_is_at_an_end_of_the_symmetric_scale(
    array: NDArray[np.int32], over: ScaleOver
) -> None:
    levels = normalize(array, "symmetric", scale_over=over)
    axes = {"channel": (2, 3), "layer": (1, 2, 3), "batch": (0, 1, 2, 3)}[over]
    farthest = np.abs(array) == np.abs(array).max(axis=axes, keepdims=True)
    assert (levels[farthest & (array > 0)] == 255).all()
    assert (levels[farthest & (array < 0)] == 0).all()


@given(integer_maps, overs)
@settings(max_examples=60)
def test_zero_is_the_middle_of_the_symmetric_scale_and_opposites_mirror(
    array: NDArray[np.int32], over: ScaleOver
) -> None:
    levels = normalize(array, "symmetric", scale_over=over).astype(int)
    mirrored = normalize(-array, "symmetric", scale_over=over).astype(int)
    assert (levels[array == 0] == 128).all()
    assert (levels[array > 0] >= 128).all()
    assert (levels[array < 0] <= 128).all()
    assert np.isin((levels + mirrored)[array != 0], (255, 256)).all()  # truncation: levels are half open


@pytest.mark.parametrize("over", ["layer", "batch"])
@pytest.mark.parametrize("method", METHODS)
def test_equal_channels_look_equal_under_the_scale_of_a_layer_and_stronger_ones_stronger(
    method: Normalization, over: ScaleOver
) -> None:
    array = np.abs(noise(1, 4, 20, 20))
    array[0, 2] = array[0, 0]
    array[0, 3] = array[0, 0] * 3
    levels = normalize(array, method, scale_over=over)
    assert (levels[0, 2] == levels[0, 0]).all()
    assert (levels[0, 3] >= levels[0, 0]).all()
    assert (levels[0, 3].astype(int) - levels[0, 0] > 20).mean() > 0.3
    alone = normalize(array, method, scale_over="channel")
    assert distance(alone[0, 3], alone[0, 0]) <= 1


@pytest.mark.parametrize("method", METHODS)
def test_a_map_in_two_pictures_looks_equal_under_the_scale_of_the_batch_only(method: Normalization) -> None:
    array = noise(2, 2, 16, 16)
    array[1, 0] = array[0, 0]
    array[1, 1] = array[0, 1] * 5 + 3  # what stands beside it differs
    together = normalize(array, method, scale_over="batch")
    apart = normalize(array, method, scale_over="layer")
    assert (together[0, 0] == together[1, 0]).all()
    assert distance(apart[0, 0], apart[1, 0]) > 10


@given(integer_maps, st.sampled_from([0.25, 3.0, 1e6]), st.sampled_from([-100.0, 0.0, 7.0]), overs)
@settings(max_examples=80)
def test_what_is_shifted_and_scaled_looks_the_same_between_its_extremes(
    array: NDArray[np.int32], factor: float, shift: float, over: ScaleOver
) -> None:
    moved = (array.astype(np.float64) + shift) * factor
    for method in ("minmax", "percentile", "log"):
        if (method, over) == ("percentile", "batch"):  # its bins are as fine as the values are large
            continue
        # The mu-law is 46 times as steep at its lower end: rounding there shows as one level more.
        assert distance(normalize(moved, method, scale_over=over), normalize(array, method, scale_over=over)) <= 1


@given(integer_maps, st.sampled_from([0.25, 3.0, 1e6]), overs)
@settings(max_examples=40)
def test_the_symmetric_scale_ignores_a_factor_and_not_a_shift(
    array: NDArray[np.int32], factor: float, over: ScaleOver
) -> None:
    levels = normalize(array, "symmetric", scale_over=over)
    assert distance(normalize(array * factor, "symmetric", scale_over=over), levels) <= 1
    assert (normalize(np.full((1, 1, 2, 2), 5.0), "symmetric", scale_over=over) == 255).all()


def test_the_logarithmic_scale_spreads_small_values_as_the_mu_law_does() -> None:
    array = row(0, 1 / 255, 3 / 255, 15 / 255, 63 / 255, 127 / 255, 1)
    # log(1 + 255 r) / log(256) is 0, 1/8, 2/8, 4/8, 6/8, 7/8 and 1.
    levels = normalize(array, "log")[0, 0, 0].astype(int)
    assert np.abs(levels - [0, 32, 64, 128, 192, 224, 255]).max() <= 1


@pytest.mark.parametrize("percentiles", [(1.0, 99.0), (5.0, 50.0), (0.0, 90.0), (25.0, 75.0)])
def test_percentiles_are_those_of_numpy(percentiles: tuple[float, float]) -> None:
    array = np.exp(noise(2, 3, 40, 50))
    for over, axes in (("channel", (2, 3)), ("layer", (1, 2, 3))):
        scale = scale_of(array, "percentile", scale_over=over, percentiles=percentiles)  # type: ignore[arg-type]
        low, high = np.percentile(array.astype(np.float64), percentiles, axis=axes)
        np.testing.assert_allclose(scale.low.reshape(low.shape), low, rtol=1e-5)
        np.testing.assert_allclose(scale.high.reshape(high.shape), high, rtol=1e-5)
    scale = scale_of(array, "percentile", scale_over="batch", percentiles=percentiles)
    np.testing.assert_allclose((scale.low.item(), scale.high.item()), np.percentile(array, percentiles), rtol=0.005)


def test_an_outlier_is_clipped_by_percentiles_and_crushes_the_rest_without_them() -> None:
    array = noise(1, 1, 100, 100)
    array[0, 0, 0, 0] = 1e6
    assert np.unique(normalize(array, "percentile")).size > 200
    assert np.unique(normalize(array, "minmax")).size == 2


def test_where_both_percentiles_are_equal_the_extremes_are_shown() -> None:
    array = np.zeros((1, 1, 100, 100), np.float32)  # a ReLU that fires at one cell
    array[0, 0, 3, 4] = 7
    for over in OVERS:
        levels = normalize(array, "percentile", scale_over=over)
        assert levels[0, 0, 3, 4] == 255
        assert (levels == 0).sum() == 9999


split_maps = st.tuples(st.integers(1, 6), st.integers(1, 4), st.integers(1, 4)).flatmap(
    lambda sides: arrays(
        np.float32,
        (sides[0], sides[1], sides[2], 3),
        elements=st.one_of(st.integers(-1000, 1000), st.sampled_from([np.nan, np.inf, -np.inf])),
    )
)


@given(split_maps, methods, st.data())
@settings(max_examples=100)
def test_the_scale_of_a_batch_is_that_of_its_parts_whatever_they_are(
    array: NDArray[np.float32], method: Normalization, data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(array) - 1)))))
    whole = scale_of(array, method, scale_over="batch")
    tracker = BatchScale(method)
    for part in data.draw(st.permutations([part for part in np.split(array, cuts) if len(part)])):
        tracker.add(part)
    found = tracker.scale()
    assert found.middle.shape == found.reach.shape == (1, 1)
    np.testing.assert_allclose(found.middle, whole.middle, rtol=1e-9, atol=1e-6)
    np.testing.assert_allclose(found.reach, whole.reach, rtol=1e-6, atol=1e-6)
    finite = array[np.isfinite(array)].astype(np.float64)
    if method == "minmax" and finite.size:
        assert (found.low.item(), found.high.item()) == (finite.min(), finite.max())
    if method == "zscore" and finite.size:
        assert found.middle.item() == pytest.approx(finite.mean(), abs=1e-4)
        assert found.reach.item() == pytest.approx(2 * finite.std(), rel=1e-6, abs=1e-4)


def test_the_scale_of_a_thousand_pictures_is_found_while_they_pass() -> None:
    array = noise(1000, 2, 3, 3) * 7 + 40
    for method in METHODS:
        tracker = BatchScale(method)
        for picture in array:
            tracker.add(picture[None])
        whole = scale_of(array, method, scale_over="batch")
        np.testing.assert_allclose(tracker.scale().low, whole.low, rtol=1e-9)
        np.testing.assert_allclose(tracker.scale().high, whole.high, rtol=1e-9)


def test_a_scale_of_no_picture_is_refused() -> None:
    for method in METHODS:
        with pytest.raises(PictureError, match="there is no picture to measure: pass one or more"):
            BatchScale(method).scale()


@pytest.mark.parametrize("over", OVERS)
@pytest.mark.parametrize("method", METHODS)
def test_a_constant_channel_is_flat(method: Normalization, over: ScaleOver) -> None:
    array = noise(2, 3, 5, 5)
    array[:, 1] = 0.3
    levels = normalize(array, method, scale_over=over)
    assert np.unique(levels[0, 1]).size == 1
    assert (levels[0, 1] == 128).all() or over != "channel" or method == "symmetric"
    assert np.unique(levels[0, 0]).size > 5


@pytest.mark.parametrize("over", OVERS)
@pytest.mark.parametrize("method", METHODS)
def test_a_map_without_any_contrast_is_mid_gray(method: Normalization, over: ScaleOver) -> None:
    assert (normalize(np.zeros((2, 3, 4, 5)), method, scale_over=over) == 128).all()


@pytest.mark.parametrize("over", OVERS)
@pytest.mark.parametrize("method", METHODS)
def test_values_that_are_not_finite_leave_the_levels_of_the_others_alone(
    method: Normalization, over: ScaleOver
) -> None:
    clean = noise(1, 1, 5, 5)
    array = np.concatenate([clean, np.full((1, 1, 1, 5), np.nan, np.float32)], axis=2)
    array[0, 0, 5] = np.nan, np.inf, -np.inf, np.nan, np.inf
    levels = normalize(array, method, scale_over=over)
    np.testing.assert_array_equal(levels[:, :, :5], normalize(clean, method, scale_over=over))
    assert levels[0, 0, 5].tolist() == [0, 255, 0, 0, 255]


@pytest.mark.parametrize("over", OVERS)
@pytest.mark.parametrize("method", METHODS)
def test_a_map_of_nothing_but_nan_has_level_0(method: Normalization, over: ScaleOver) -> None:
    scale = scale_of(np.full((1, 2, 3, 3), np.nan), method, scale_over=over)
    assert np.isfinite(scale.low).all()
    assert np.isfinite(scale.high).all()
    assert (normalize(np.full((1, 2, 3, 3), np.nan), method, scale_over=over) == 0).all()


@pytest.mark.parametrize("over", OVERS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [1e-36, 1e-30, 1e-3, 1e30, 3.4e38])
def test_every_scale_shows_values_of_any_magnitude_alike(method: Normalization, over: ScaleOver, size: float) -> None:
    values = row(-1, -0.5, 0, 0.25, 0.5, 1)
    scaled, plain = values * np.float32(size), normalize(values, method, scale_over=over)
    most = 3 if (method, over) == ("percentile", "batch") else 1  # bins begin elsewhere
    assert distance(normalize(scaled, method, scale_over=over), plain) <= most


@pytest.mark.parametrize("method", METHODS)
def test_float16_and_denormal_values_make_no_warning_and_no_false_contrast(method: Normalization) -> None:
    half = (noise(1, 2, 30, 30) * 10000).astype(np.float16)
    assert distance(normalize(half, method), expected_levels(half, method, "channel")) <= 1
    for over in OVERS:
        faint = normalize(row(0, 1e-45, 3e-39), method, scale_over=over).astype(int)
        assert np.abs(faint - 128).max() <= (128 if method == "symmetric" else 0)


@given(any_float32, methods, overs)
@settings(max_examples=150)
def test_248_levels_agree_with_256(array: NDArray[np.float32], method: Normalization, over: ScaleOver) -> None:
    scale = scale_of(array, method, scale_over=over)
    fine, coarse = scale.levels(array).astype(int), scale.levels(array, steps=248).astype(int)
    assert coarse.max() <= 247
    assert (np.abs(coarse - fine * 248 / 256) <= 1.01).all()
    assert (coarse[np.isnan(array) | (array == -np.inf)] == 0).all()
    assert (coarse[array == np.inf] == 247).all()


@pytest.mark.parametrize("steps", [2, 8, 248, 256])
@pytest.mark.parametrize("method", METHODS)
def test_any_number_of_levels_covers_equal_parts_of_the_scale(method: Normalization, steps: int) -> None:
    array = noise(1, 3, 20, 20)
    levels = scale_of(array, method).levels(array, steps)
    expected = expected_levels(array, method, "channel", steps)
    assert distance(levels, expected) <= 1
    assert (levels != expected).mean() < 0.01  # where a value lies on the border of two


@pytest.mark.parametrize("over", OVERS)
@pytest.mark.parametrize("method", METHODS)
def test_a_scale_tells_the_value_of_each_level(method: Normalization, over: ScaleOver) -> None:
    array = noise(2, 3, 10, 10) * 4 + 9
    scale = scale_of(array, method, scale_over=over)
    shape = {"channel": (2, 3), "layer": (2, 1), "batch": (1, 1)}[over]
    assert scale.middle.shape == scale.reach.shape == shape
    parts = np.arange(1, 255) / 256 + 1 / 512  # the middle of each level
    values = scale.values_at(parts)
    assert values.shape == (*shape, 254)
    shown = np.broadcast_to(values, (*np.broadcast_shapes(shape, (2, 3)), 254))
    levels = scale.levels(shown)
    assert (np.abs(levels.astype(int) - np.arange(1, 255)) <= 1).all()
    np.testing.assert_allclose(scale.values_at([0, 1])[..., 0], scale.low)
    np.testing.assert_allclose(scale.values_at([0, 1])[..., 1], scale.high)


def test_a_scale_can_be_cut_to_a_picture_and_to_channels() -> None:
    array = noise(3, 5, 4, 4)
    for over in OVERS:
        scale = scale_of(array, "minmax", scale_over=over)
        levels = scale.levels(array)
        np.testing.assert_array_equal(scale.of(1).levels(array[1:2]), levels[1:2])
        some = np.array([4, 0, 2])
        np.testing.assert_array_equal(scale.of_channels(some).levels(array[:, some]), levels[:, some])


@pytest.mark.parametrize("block", [1, 7, 20, 60, 10**6])
@pytest.mark.parametrize("over", OVERS)
@pytest.mark.parametrize("method", METHODS)
def test_every_scale_is_the_same_in_blocks_of_any_size(
    method: Normalization, over: ScaleOver, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = noise(2, 5, 4, 5)
    array[0, 1] = 3
    array[0, 2, 1, :3] = np.nan, np.inf, -np.inf
    array[1, 4] = np.nan
    expected = normalize(array, method, scale_over=over)
    monkeypatch.setattr(channel_statistics, "_BLOCK", block)
    assert distance(normalize(array, method, scale_over=over), expected) <= 1


@pytest.mark.parametrize("over", OVERS)
@pytest.mark.parametrize("method", METHODS)
def test_finding_a_scale_does_not_change_the_maps(method: Normalization, over: ScaleOver) -> None:
    array = noise(2, 3, 4, 5)
    array[0, 0, 0, 0] = np.nan
    before = array.copy()
    normalize(array, method, scale_over=over)
    np.testing.assert_array_equal(array, before)


def test_statistics_that_are_known_are_not_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    array = noise(2, 3, 4, 5)
    known = statistics(array)
    expected = [scale_of(array, method, scale_over=over) for method in METHODS for over in OVERS]
    monkeypatch.setattr("onnxfeat.drawing.scales.statistics", None)  # it can't be called
    found = [scale_of(array, method, scale_over=over, known=known) for method in METHODS for over in OVERS]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.low, other.low)
        np.testing.assert_array_equal(one.high, other.high)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "max"}, "'max' is no way to normalize: choose 'zscore', 'minmax'"),
        ({"scale_over": "all"}, "'all' is no way to normalize: choose 'channel', 'layer' or 'batch'"),
        ({"percentiles": (99, 1)}, r"percentiles are \(99, 1\), two numbers from 0 to 100 in order are wanted"),
        ({"percentiles": (0, 101)}, "two numbers from 0 to 100 in order are wanted"),
        ({"percentiles": (5,)}, "two numbers from 0 to 100 in order are wanted"),
        ({"percentiles": (float("nan"), 99)}, "two numbers from 0 to 100 in order are wanted"),
    ],
)
def test_choices_that_are_none_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(PictureError, match=message):
        normalize(noise(1, 1, 2, 2), **arguments)
