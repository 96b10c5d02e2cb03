import io
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from PIL import Image

from onnxfeat.drawing.channel_statistics import statistics
from onnxfeat.report.contents import Sprite
from onnxfeat.report.sprites import (
    GAP,
    MINUS_INFINITE,
    MOST_CELLS,
    NAN,
    PLUS_INFINITE,
    block_for,
    coarse,
    png_of,
    slices_across,
    sprite_of,
    thumbnail_of,
)


def indices(png: bytes) -> NDArray[np.uint8]:
    """Return the palette indices of a PNG file, as Pillow reads them."""
    image = Image.open(io.BytesIO(png))
    assert image.mode == "P"
    return np.asarray(image)


def tiles(sprite: Sprite, channels: int) -> NDArray[np.uint8]:
    """Return the levels of each channel, by the documented layout alone."""
    picture = indices(sprite.png)
    assert picture.shape == (sprite.height, sprite.width)
    found = []
    for channel in range(channels):
        top = channel // sprite.across * (sprite.rows + 1)
        left = channel % sprite.across * (sprite.columns + 1)
        found.append(picture[top : top + sprite.rows, left : left + sprite.columns])
        assert (picture[top + sprite.rows, left : left + sprite.columns + 1] == GAP).all()
        assert (picture[top : top + sprite.rows + 1, left + sprite.columns] == GAP).all()
    return np.stack(found)


def decoded(levels: NDArray[np.uint8], array: NDArray[Any]) -> NDArray[np.float64]:
    """Return the values that levels stand for, by the ends of the channels as NumPy finds them."""
    flat = array.reshape(len(array), -1).astype(np.float64)
    low, high = flat.min(axis=1)[:, None, None], flat.max(axis=1)[:, None, None]
    return np.asarray(low + levels / 251 * (high - low))


def made(array: NDArray[Any], block: int = 1, **choices: Any) -> Sprite:
    return sprite_of(array, statistics(array[None]), block, **choices)


@settings(deadline=None, max_examples=80)
@given(
    array=hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 40), st.integers(1, 12), st.integers(1, 12)),
        elements=st.floats(-1e6, 1e6, width=32),
    )
)
def test_every_value_can_be_read_from_the_sprite_to_half_a_step(array: NDArray[np.float32]) -> None:
    found = decoded(tiles(made(array), len(array)), array)
    flat = array.reshape(len(array), -1).astype(np.float64)
    step = (flat.max(axis=1) - flat.min(axis=1))[:, None, None] / 251
    rounding = np.abs(flat).max(axis=1)[:, None, None] * 1e-6
    assert (np.abs(found - array) <= step / 2 + rounding + 1e-37).all()


@settings(deadline=None, max_examples=60)
@given(
    parts=hnp.arrays(
        np.float64, st.tuples(st.integers(1, 3), st.integers(2, 6), st.integers(1, 6)), elements=st.floats(0, 1)
    ),
    low=st.sampled_from([0.0, -0.5, 0.3]),
    reach=st.sampled_from([1e-25, 1e-31, 1e-36, 1e-38, 1e-42]),
)
def test_values_of_tiny_ranges_can_be_read_to_half_a_step_too(
    parts: NDArray[np.float64], low: float, reach: float
) -> None:
    parts[:, 0, 0], parts[:, 1, 0] = 0, 1
    array = ((parts + low) * reach).astype(np.float32)
    known = statistics(array[None])
    ends = (x[0].astype(np.float64)[:, None, None] for x in (known.lowest, known.highest))  # as the page holds them
    least, greatest = ends
    found = least + tiles(sprite_of(array, known), len(array)) / 251 * (greatest - least)
    step = (greatest - least) / 251
    assert (np.abs(found - array.astype(np.float64)) <= step / 2 * (1 + 1e-4)).all()


def test_what_is_not_finite_has_levels_of_its_own_beside_the_tiniest_values() -> None:
    array = np.array([[[1e-42, np.nan, 2e-42, np.inf, -np.inf, 3e-42]]], np.float32)
    assert tiles(made(array), 1)[0, 0].tolist() == [0, NAN, 126, PLUS_INFINITE, MINUS_INFINITE, 251]


def test_the_least_and_the_greatest_value_and_a_zero_at_the_end_are_exact() -> None:
    array = np.maximum(np.random.default_rng(3).normal(size=(5, 20, 20)), 0).astype(np.float32)
    levels = tiles(made(array), 5)
    found = decoded(levels, array)
    assert (levels[array == 0] == 0).all()
    assert (found[array == 0] == 0).all()
    np.testing.assert_allclose(found.max(axis=(1, 2)), array.max(axis=(1, 2)), rtol=1e-7)


def test_what_is_not_finite_has_levels_of_its_own() -> None:
    array = np.array([[[1.0, np.nan, 2.0, np.inf, -np.inf]], [[0.0, 1.0, 2.0, 3.0, 4.0]]], np.float32)
    levels = tiles(made(array), 2)
    assert levels[0, 0].tolist() == [0, NAN, 251, PLUS_INFINITE, MINUS_INFINITE]
    assert levels[1, 0].tolist() == [0, 63, 126, 188, 251]


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, 7.0])
def test_a_channel_of_one_value_has_one_level(value: float) -> None:
    assert len(np.unique(tiles(made(np.full((2, 4, 4), value, np.float32)), 2))) == 1


def test_the_palette_shows_levels_in_viridis_the_gap_as_nothing_and_nan_in_magenta() -> None:
    array = np.array([[[0.0, 1.0, np.nan, np.inf]]], np.float32)
    image = Image.open(io.BytesIO(made(array).png)).convert("RGBA")
    colors = [image.getpixel((x, 0)) for x in range(5)]
    assert colors == [(68, 1, 84, 255), (253, 231, 36, 255), (255, 0, 255, 255), (0, 255, 255, 255), (0, 0, 0, 0)]


def test_maps_of_one_axis_are_rows_and_slices_of_volumes_lie_side_by_side_with_a_gap() -> None:
    line = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert tiles(made(line), 2).shape == (2, 1, 3)
    volume = np.random.default_rng(0).normal(size=(2, 4, 3, 5)).astype(np.float32)
    sprite = made(volume)
    assert (sprite.slices, sprite.slices_across, sprite.rows, sprite.columns) == (4, 2, 7, 11)
    found = tiles(sprite, 2)
    flat = decoded(found, volume)
    for place in range(4):
        top, left = place // 2 * 4, place % 2 * 6
        part = flat[:, top : top + 3, left : left + 5]
        assert np.abs(part - volume[:, place]).max() < 0.02
    assert (found[:, 3] == GAP).all()
    assert (found[:, :, 5] == GAP).all()


@given(st.integers(1, 200), st.integers(1, 60), st.integers(1, 60))
def test_all_slices_of_a_volume_fit_a_tile_that_is_about_square(depth: int, rows: int, columns: int) -> None:
    across = slices_across((depth, rows, columns))
    tall, wide = -(-depth // across) * (rows + 1), across * (columns + 1)
    assert 1 <= across <= depth
    assert tall <= 3 * max(wide, rows + 1)
    assert wide <= 3 * max(tall, columns + 1)


def test_numbers_are_rows_of_64_and_the_rest_of_the_last_row_is_empty() -> None:
    numbers = np.arange(100, dtype=np.float32).reshape(1, 1, 100)
    sprite = made(numbers, numbers=True)
    assert (sprite.numbers, sprite.rows, sprite.columns) == (100, 2, 64)
    levels = tiles(sprite, 1)[0].ravel()
    assert (levels[:100] == np.round(np.arange(100) / 99 * 251)).all()
    assert (levels[100:] == GAP).all()


@settings(deadline=None, max_examples=60)
@given(
    array=hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)),
        elements=st.floats(-100, 100, width=32),
    ),
    block=st.integers(1, 5),
)
def test_a_block_is_the_mean_of_its_cells(array: NDArray[np.float32], block: int) -> None:
    found = coarse(array, block)
    for row in range(found.shape[1]):
        for column in range(found.shape[2]):
            cells = array[:, row * block : (row + 1) * block, column * block : (column + 1) * block].astype(np.float64)
            np.testing.assert_allclose(found[:, row, column], cells.mean(axis=(1, 2)), rtol=1e-5, atol=1e-5)


def test_a_block_that_holds_nan_is_nan_and_the_largest_values_do_not_overflow() -> None:
    array = np.array([[[3e38, 3e38, np.nan, 1.0]]], np.float32)
    assert coarse(array, 2)[0, 0, 0] == np.float32(3e38)
    assert np.isnan(coarse(array, 2)[0, 0, 1])


@pytest.mark.parametrize(
    "shape", [(64, 112, 112), (64, 1024, 1024), (3, 5000, 10), (8, 100_000), (4, 300, 200, 200), (1 << 23, 1, 1)]
)
def test_the_block_is_the_least_that_fits(shape: tuple[int, ...]) -> None:
    def fits(block: int) -> bool:
        sides = [-(-side // block) for side in shape[1:]]
        across = slices_across(sides) if len(sides) == 3 else 1
        wide = sides[-1] * across
        tall = (sides[-2] if len(sides) > 1 else 1) * (-(-sides[0] // across) if len(sides) == 3 else 1)
        return int(np.prod(sides)) * shape[0] <= MOST_CELLS and max(wide, tall) <= 4096

    block = block_for(shape)
    assert fits(block) or all(side <= block for side in shape[1:])
    assert block == 1 or not fits(block - 1)


def rows_of(png: bytes) -> NDArray[np.uint8]:
    """Return the rows of a PNG file as they were packed, with their filters in front."""
    start, width = png.index(b"IDAT"), int.from_bytes(png[16:20], "big")
    data = zlib.decompress(png[start + 4 : start + 4 + int.from_bytes(png[start - 4 : start], "big")])
    return np.frombuffer(data, np.uint8).reshape(-1, width + 1)


def packed_size(levels: NDArray[np.uint8], rule: int) -> int:
    """Return the bytes that levels take if all rows have one filter: 0 is None, 2 is Up."""
    rows = np.diff(levels, axis=0, prepend=np.uint8(0)) if rule else levels
    packer = zlib.compressobj(1, zlib.DEFLATED, 15, 9, zlib.Z_RLE)
    return len(packer.compress(np.insert(rows, 0, rule, axis=1).tobytes()) + packer.flush())


@settings(deadline=None)
@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_the_file_is_the_same_each_time_and_rows_have_the_filters_that_the_page_reads(
    levels: NDArray[np.uint8],
) -> None:
    png = png_of(levels)
    assert png == png_of(levels)
    assert (indices(png) == levels).all()
    rows = rows_of(png)
    assert set(rows[:, 0]) <= {0, 2}
    found = np.zeros_like(levels)
    for place, row in enumerate(rows):
        found[place] = row[1:] + (found[place - 1] if row[0] == 2 and place else 0)
    assert (found == levels).all()


def test_noise_is_not_filtered_and_what_is_smooth_is() -> None:
    noise = np.clip(np.random.default_rng(0).normal(126, 30, (300, 400)), 0, 251).astype(np.uint8)
    smooth = (126 + 100 * np.sin(np.add.outer(np.arange(300) / 20, np.arange(400) / 7))).astype(np.uint8)
    for levels, rule in ((noise, 0), (smooth, 2)):
        rows = rows_of(png_of(levels))
        assert set(rows[:, 0]) == {rule}
        assert packed_size(levels, rule) < 0.97 * packed_size(levels, 2 - rule)


def test_small_maps_are_smaller_than_by_either_filter_as_their_gaps_are_not_filtered() -> None:
    rows, columns = np.indices((7, 7))
    phases = np.random.default_rng(0).uniform(0, 6, (200, 1, 1))
    array = np.sin(rows / 2 + phases) + np.cos(columns / 3 + 2 * phases)
    png = made(array.astype(np.float32)).png
    filtered = rows_of(png)
    assert (filtered[7::8, 1:] == GAP).all()
    assert not filtered[7::8, 0].any()
    size = len(png) - len(png_of(np.zeros((1, 1), np.uint8)))
    assert size < 0.95 * min(packed_size(indices(png), rule) for rule in (0, 2))


@pytest.mark.parametrize("shape", [(4, 30, 40), (4, 300, 20), (2, 1000), (2, 5, 9, 9), (1, 1, 1)])
def test_a_thumbnail_shows_the_channel_of_the_greatest_variance(shape: tuple[int, ...]) -> None:
    array = np.zeros(shape, np.float32)
    array[-1] = np.random.default_rng(0).normal(size=shape[1:])
    levels = indices(thumbnail_of(array, statistics(array[None])))
    assert max(levels.shape) <= 48
    assert len(np.unique(levels)) > 1 or array[-1].size == 1
