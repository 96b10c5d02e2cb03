from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from onnxfeat.drawing.channel_statistics import statistics
from onnxfeat.drawing.pictures import belt, grid, grid_columns, tile, untile
from onnxfeat.drawing.scales import normalize
from onnxfeat.errors import PictureError
from onnxfeat.records import FeatureMap, Layer

LAYER = Layer(name="conv2d", kind="conv", op_type="Conv", value="v", raw_value="v")

shapes = st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 6), st.integers(1, 6))
uint8_maps = shapes.flatmap(lambda shape: arrays(np.uint8, shape))


def as_map(array: NDArray[Any]) -> FeatureMap:
    return FeatureMap(layer=LAYER, array=np.array(array, dtype=np.float32))


def row(*values: float) -> NDArray[np.float32]:
    """One picture of one channel, one pixel high."""
    return np.array(values, dtype=np.float32).reshape(1, 1, 1, -1)


def noise(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


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


@given(uint8_maps, st.integers(1, 6), st.integers(0, 3))
@settings(max_examples=100)
def test_untile_is_the_inverse_of_tile(levels: NDArray[np.uint8], columns: int, gap: int) -> None:
    cells = levels[0]
    tiled = tile(cells, columns, gap)
    before = tiled.copy()
    found = untile(tiled, len(cells), columns=columns, gap=gap)
    np.testing.assert_array_equal(found, cells)
    found[:] = 1  # what was returned belongs to the caller
    np.testing.assert_array_equal(tiled, before)


@given(uint8_maps)
@settings(max_examples=40)
def test_untile_takes_a_belt_apart_without_being_told_more_than_the_number_of_channels(
    levels: NDArray[np.uint8],
) -> None:
    np.testing.assert_array_equal(untile(belt(levels), levels.shape[1]), levels[0])
    columns = grid_columns(*levels.shape[1:])
    np.testing.assert_array_equal(untile(grid(levels), levels.shape[1], columns=columns, gap=1), levels[0])


@pytest.mark.parametrize(
    ("count", "columns", "gap"),
    [
        (4, None, 0),  # 14 columns of pixels are not 4 channels
        (6, 3, 0),  # three rows and two gaps are no two rows
        (6, 2, 5),
        (100, 1, 0),
    ],
)
def test_a_picture_that_does_not_hold_these_channels_is_refused(count: int, columns: int | None, gap: int) -> None:
    tiled = grid(np.ones((1, 6, 5, 6), np.uint8), columns=2, gap=2)  # 19 x 14
    with pytest.raises(PictureError, match=f"14 x 19 pixels does not hold {count} channels.*run.json has them"):
        untile(tiled, count, columns=columns, gap=gap)


@pytest.mark.parametrize(("count", "columns", "gap"), [(0, None, 0), (2, 0, 0), (2, 1, -1)])
def test_numbers_that_make_no_grid_are_refused(count: int, columns: int | None, gap: int) -> None:
    with pytest.raises(PictureError, match=f"{count} channels, {columns} in a row, gap {gap} make no grid"):
        untile(np.ones((4, 4), np.uint8), count, columns=columns, gap=gap)


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
