from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from onnxfeat.drawing import pictures
from onnxfeat.drawing.pictures import belt, grid, grid_columns, normalize, statistics, tile
from onnxfeat.errors import PictureError
from onnxfeat.records import FeatureMap, Layer

LAYER = Layer(name="conv2d", kind="conv", op_type="Conv", value="v", raw_value="v")

shapes = st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 6), st.integers(1, 6))
uint8_maps = shapes.flatmap(lambda shape: arrays(np.uint8, shape))
# Integers are far from rounding, so that the law is about the formula and not about float32.
integer_maps = shapes.flatmap(lambda shape: arrays(np.int32, shape, elements=st.integers(-1000, 1000)))
any_float32 = shapes.flatmap(lambda shape: arrays(np.float32, shape, elements=st.floats(width=32)))


def as_map(array: NDArray[Any]) -> FeatureMap:
    return FeatureMap(layer=LAYER, array=np.array(array, dtype=np.float32))


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


def untile_belt(tiled: NDArray[np.uint8], channels: int) -> NDArray[np.uint8]:
    return np.stack(np.split(tiled, channels, axis=1))


def untile_grid(
    tiled: NDArray[np.uint8], channels: int, height: int, width: int, columns: int, gap: int
) -> NDArray[np.uint8]:
    cells = []
    for channel in range(channels):
        top, left = channel // columns * (height + gap), channel % columns * (width + gap)
        cells.append(tiled[top : top + height, left : left + width])
    return np.stack(cells)


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


@given(any_float32)
@settings(max_examples=100)
def test_brighter_is_never_less(array: NDArray[np.float32]) -> None:
    levels = normalize(array)
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


def test_values_that_are_not_finite_take_no_part_in_the_statistics() -> None:
    found = statistics(row(1, 3, np.nan, np.inf, -np.inf))
    assert found.mean.tolist() == [[2]]
    assert found.deviation.tolist() == [[1]]
    assert found.not_finite.tolist() == [[3]]
    assert found.not_finite.dtype == np.int64


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
    monkeypatch.setattr(pictures, "_BLOCK", block)  # 20 cells a channel: parts of channels, one, three, all
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


def test_statistics_are_population_mean_and_deviation_in_the_units_of_the_map() -> None:
    array = noise(2, 3, 20, 30) * 7 + 3
    found = statistics(array)
    np.testing.assert_allclose(found.mean, array.mean(axis=(2, 3), dtype=np.float64), rtol=1e-6)
    np.testing.assert_allclose(found.deviation, array.std(axis=(2, 3), dtype=np.float64), rtol=1e-6)
    assert found.mean.dtype == found.deviation.dtype == np.float32


def test_normalize_takes_one_and_three_spatial_axes() -> None:
    array = noise(2, 3, 24)
    assert (normalize(array).reshape(2, 3, 2, 3, 4) == normalize(array.reshape(2, 3, 2, 3, 4))).all()


def test_arrays_of_the_caller_are_not_changed() -> None:
    array = noise(2, 3, 4, 5)
    array[0, 0, 0, 0] = np.nan
    before = array.copy()
    for function in (normalize, statistics, belt, grid):
        function(array)
    np.testing.assert_array_equal(array, before)
    assert array.flags.writeable
    normalized = normalize(array)
    belt(normalized)[:] = 1  # what was returned belongs to the caller
    grid(normalized[:1, :1])[:] = 1
    assert (normalized == normalize(before)).all()


def test_views_that_are_not_contiguous_are_drawn_like_their_copies() -> None:
    channels_last = noise(2, 6, 8, 3)
    view = channels_last.transpose(0, 3, 1, 2)[:, ::-1, ::2]
    assert (belt(view, 1) == belt(view.copy(), 1)).all()


def test_a_feature_map_is_read_only() -> None:
    feature_map = as_map(noise(1, 2, 3, 4))
    with pytest.raises(ValueError, match="read-only"):
        feature_map.array[0, 0, 0, 0] = 1
    with pytest.raises(AttributeError, match="array"):
        feature_map.array = np.zeros((1, 1, 1, 1), dtype=np.float32)  # type: ignore[misc]


def test_an_array_stays_writable_after_a_feature_map_was_made_of_it() -> None:
    array = noise(1, 2, 3, 4)
    feature_map = FeatureMap(layer=LAYER, array=array)
    assert array.flags.writeable
    assert not feature_map.array.flags.writeable


def test_a_feature_map_and_its_array_give_the_same_pictures() -> None:
    feature_map = as_map(noise(1, 5, 3, 4))
    assert (belt(feature_map) == belt(feature_map.array)).all()
    assert (grid(feature_map) == grid(feature_map.array)).all()


@given(uint8_maps, st.data())
@settings(max_examples=60)
def test_belts_can_be_untiled(levels: NDArray[np.uint8], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(levels) - 1))
    tiled = belt(levels, index)
    assert tiled.shape == (levels.shape[2], levels.shape[1] * levels.shape[3])
    assert (untile_belt(tiled, levels.shape[1]) == levels[index]).all()


@given(uint8_maps, st.data())
@settings(max_examples=80)
def test_grids_can_be_untiled(levels: NDArray[np.uint8], data: st.DataObject) -> None:
    _, channels, height, width = levels.shape
    index = data.draw(st.integers(0, len(levels) - 1))
    columns, gap = data.draw(st.integers(1, channels + 2)), data.draw(st.integers(0, 3))
    tiled = grid(levels, index, columns=columns, gap=gap)
    used = min(columns, channels)
    rows = -(-channels // used)
    assert tiled.shape == (rows * height + (rows - 1) * gap, used * width + (used - 1) * gap)
    assert (untile_grid(tiled, channels, height, width, used, gap) == levels[index]).all()
    assert int(tiled.sum()) == int(levels[index].sum())  # all that is not a channel has level 0


@given(uint8_maps)
@settings(max_examples=30)
def test_a_grid_of_one_row_without_gaps_is_the_belt(levels: NDArray[np.uint8]) -> None:
    assert (grid(levels, columns=levels.shape[1], gap=0) == belt(levels)).all()


def test_belt_puts_the_first_channel_left() -> None:
    array = np.stack([np.full((2, 3), level, dtype=np.uint8) for level in (10, 20, 30)])[None]
    assert belt(array).tolist() == [[10] * 3 + [20] * 3 + [30] * 3] * 2


def test_tiles_are_contiguous_so_that_a_writer_need_not_copy_them() -> None:
    for gap in (0, 1, 3):
        assert tile(np.zeros((7, 4, 5), dtype=np.uint8), 3, gap).flags.c_contiguous


def test_belt_of_floats_is_normalized() -> None:
    array = noise(1, 4, 3, 5)
    assert (untile_belt(belt(array), 4) == normalize(array)[0]).all()


def test_a_picture_of_a_batch_is_drawn_as_if_it_were_alone() -> None:
    array = noise(3, 4, 5, 6)
    for index in range(3):
        assert (belt(array, index) == belt(array[index : index + 1])).all()
    assert (belt(array, -1) == belt(array, 2)).all()


@pytest.mark.parametrize("index", [3, -4, 100])
def test_a_picture_outside_the_batch_is_refused(index: int) -> None:
    for function in (belt, grid):
        with pytest.raises(PictureError, match=f"picture {index} is outside the batch of 3: pass 0 to 2"):
            function(noise(3, 1, 2, 2), index)


@pytest.mark.parametrize("shape", [(), (3,), (4, 4), (0, 1, 2, 2), (1, 0, 2, 2), (1, 1, 0, 2), (1, 1, 2, 0)])
def test_arrays_without_maps_are_refused(shape: tuple[int, ...]) -> None:
    for function in (normalize, statistics, belt, grid):
        with pytest.raises(PictureError, match=r"holds no feature maps: pass \(N, C, H, W\).*array\[None\]"):
            function(np.zeros(shape))


@pytest.mark.parametrize("shape", [(1, 2, 3), (1, 2, 3, 4, 5)])
def test_only_two_spatial_axes_can_be_tiled(shape: tuple[int, ...]) -> None:
    for function in (belt, grid):
        with pytest.raises(PictureError, match=r"can't be tiled: pass \(N, C, H, W\)"):
            function(np.zeros(shape))


@pytest.mark.parametrize(("columns", "gap"), [(0, 1), (-1, 1), (2, -1)])
def test_impossible_grids_are_refused(columns: int, gap: int) -> None:
    with pytest.raises(PictureError, match=f"columns {columns} and gap {gap} make no grid"):
        grid(noise(1, 2, 2, 2), columns=columns, gap=gap)


@given(st.integers(1, 3000), st.integers(1, 300), st.integers(1, 300))
@settings(max_examples=100)
def test_grids_have_between_one_and_all_channels_in_a_row(channels: int, height: int, width: int) -> None:
    assert 1 <= grid_columns(channels, height, width) <= channels


@pytest.mark.parametrize(("channels", "side"), [(64, 10), (512, 14), (2048, 7)])
def test_grids_are_about_three_to_two(channels: int, side: int) -> None:
    tiled = grid(np.zeros((1, channels, side, side), dtype=np.uint8))
    assert tiled.shape[1] / tiled.shape[0] == pytest.approx(1.5, rel=0.15)


@pytest.mark.parametrize("dtype", [complex, "<U3", object])
def test_values_that_are_no_real_numbers_are_refused(dtype: Any) -> None:
    with pytest.raises(PictureError, match="can't be drawn: pass a FeatureMap or an array of real numbers"):
        belt(np.zeros((1, 1, 2, 2), dtype=dtype))
