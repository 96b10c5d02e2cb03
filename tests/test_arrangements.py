from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxfeat.drawing import arrangements, tilings
from onnxfeat.drawing.arrangements import Arrangement
from onnxfeat.drawing.captions import description, remarks
from onnxfeat.drawing.channel_statistics import statistics
from onnxfeat.drawing.pictures import belt, grid
from onnxfeat.drawing.scales import normalize
from onnxfeat.drawing.styles import Style
from onnxfeat.drawing.subjects import extra_tokens
from onnxfeat.drawing.tilings import MAX_PIXELS, MAX_SIDE
from onnxfeat.errors import PictureError
from onnxfeat.records import FeatureMap, Layer


def as_map(array: NDArray[Any], layout: str | None = None) -> FeatureMap:
    layer = Layer(name="conv", kind="conv", op_type="Conv", value="v", raw_value="v", layout=layout)
    return FeatureMap(layer=layer, array=np.array(array, dtype=np.float32))


def arrange(feature_map: FeatureMap, index: int = 0, **choices: Any) -> Arrangement:
    """Arrange without a frame."""
    return arrangements.arrange(feature_map, index, style=Style(frame=False, **choices))


def huge(*shape: int) -> FeatureMap:
    """A map of any size that takes no memory."""
    layer = Layer(name="conv", kind="conv", op_type="Conv", value="v", raw_value="v")
    return FeatureMap(layer=layer, array=np.broadcast_to(np.float32(1), shape))


def noise(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def averaged(levels: NDArray[np.uint8], down: int, across: int) -> NDArray[np.float64]:
    """Each block of down x across levels by its mean, one after the other."""
    rows, columns = -(-levels.shape[0] // down), -(-levels.shape[1] // across)
    means = np.empty((rows, columns))
    for row, column in np.ndindex(rows, columns):
        means[row, column] = levels[row * down : (row + 1) * down, column * across : (column + 1) * across].mean()
    return means


@pytest.mark.parametrize("layout", [None, "NCHW", "NHWC"])
def test_maps_with_rows_and_columns_are_belts_and_past_the_width_grids(layout: str | None) -> None:
    array = noise(2, 12, 5, 4)
    wide, narrow = arrange(as_map(array, layout), 1, max_belt=48), arrange(as_map(array, layout), 1, max_belt=47)
    np.testing.assert_array_equal(wide.levels, belt(array, 1))
    assert dict(wide.facts) == {"channels": 12, "height": 5, "width": 4, "arrangement": "belt"}
    np.testing.assert_array_equal(narrow.levels, grid(array, 1))
    assert narrow.facts["arrangement"] == "grid"


@pytest.mark.parametrize("shape", [(2, 5), (2, 5, 1), (2, 5, 1, 1), (2, 5, 1, 1, 1), (2, 5, 1, 1, 1, 1)])
def test_one_number_a_channel_becomes_one_row(shape: tuple[int, ...]) -> None:
    values = noise(*shape)
    found = arrange(as_map(values), 1)
    np.testing.assert_array_equal(found.levels, normalize(values.reshape(2, 1, 1, 5))[1, 0])
    assert (found.levels != 128).any()  # beside each other the channels have contrast
    assert dict(found.facts) == {"channels": 1, "numbers": 5, "height": 1, "width": 5, "arrangement": "belt"}


@pytest.mark.parametrize(("channels", "row_height"), [(1, 128), (3, 42), (64, 2), (65, 1), (128, 1), (500, 1)])
@pytest.mark.parametrize(("length", "column_width"), [(2, 64), (30, 4), (70, 1), (300, 1)])
def test_one_spatial_axis_gives_a_strip_of_cells_large_enough_to_be_seen(
    channels: int, row_height: int, length: int, column_width: int
) -> None:
    array = noise(2, channels, length)
    found = arrange(as_map(array, "NCW"), 1)
    thick = np.repeat(normalize(array)[1], row_height, axis=0)
    np.testing.assert_array_equal(found.levels, np.repeat(thick, column_width, axis=1))
    assert dict(found.facts) == {
        "channels": channels,
        "height": 1,
        "width": length,
        "arrangement": "strip",
        "row_height": row_height,
        "column_width": column_width,
    }


@given(st.integers(1, 200), st.integers(1, 50), st.integers(1, 3))
@settings(max_examples=60)
def test_a_strip_longer_than_the_width_shows_the_mean_of_some_cells(length: int, most: int, channels: int) -> None:
    array = noise(1, channels, length)
    found = arrange(as_map(array, "NWC"), max_belt=most)
    if length == 1:
        return  # one number a channel
    cells = found.facts.get("cells_per_pixel", 1)
    assert cells == -(-length // most)
    assert found.levels.shape[1] <= most
    rows = found.levels[:: found.facts["row_height"], :: found.facts["column_width"]]
    assert np.abs(rows - averaged(normalize(array)[0], 1, cells)).max() <= 0.5
    assert found.facts["width"] == length


def test_the_mean_of_cells_is_taken_alike_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    array = noise(1, 9, 103)
    whole = arrange(as_map(array, "NCW"), max_belt=10).levels
    monkeypatch.setattr(tilings, "_BLOCK", 250)
    np.testing.assert_array_equal(arrange(as_map(array, "NCW"), max_belt=10).levels, whole)


def test_a_constant_channel_of_a_strip_stays_mid_gray() -> None:
    assert (arrange(as_map(np.full((1, 2, 103), 5.0), "NCW"), max_belt=10).levels == 128).all()


@pytest.mark.parametrize(
    ("tokens", "extra"),
    [
        *((4, 0), (5, 1), (8, 4), (9, 0), (10, 1), (196, 0), (197, 1), (198, 2), (200, 4), (201, 5), (204, 8)),
        *((205, None), (215, None), (224, None), (225, 0), (77, None), (1370, 1), (2, None), (3, None)),
    ],
)
def test_tokens_before_a_square_are_told_apart(tokens: int, extra: int | None) -> None:
    assert extra_tokens(tokens) == extra


@pytest.mark.parametrize("extra", [0, 1, 5])
def test_tokens_are_drawn_as_a_square_map_each_without_those_before_them(extra: int) -> None:
    array = noise(2, 3, extra + 49)
    array[:, :, :extra] = 1e6  # would leave the others without contrast
    found = arrange(as_map(array, "NTC"), 1)
    squares = array[:, :, extra:].reshape(2, 3, 7, 7)
    np.testing.assert_array_equal(found.levels, belt(squares, 1))
    np.testing.assert_array_equal(found.statistics.mean, statistics(squares).mean[1:])
    assert found.facts["tokens_left_out"] == extra
    assert (found.facts["height"], found.facts["width"]) == (7, 7)


def test_tokens_without_a_square_are_a_strip() -> None:
    array = noise(1, 3, 215)
    assert arrange(as_map(array, "NTC")).facts["arrangement"] == "strip"


def test_a_square_length_that_is_no_count_of_tokens_stays_a_strip() -> None:
    assert arrange(as_map(noise(1, 3, 196), "NCW")).facts["arrangement"] == "strip"
    assert arrange(as_map(noise(1, 3, 196))).facts["arrangement"] == "strip"


def test_three_spatial_axes_give_a_row_a_channel_and_a_column_a_slice() -> None:
    array = noise(2, 3, 4, 5, 6)
    found = arrange(as_map(array, "NDHWC"), 1)
    levels = normalize(array)[1]  # each channel by its whole volume
    assert found.levels.shape == (3 * 6 - 1, 4 * 7 - 1)
    for channel, slice_ in np.ndindex(3, 4):
        cell = found.levels[channel * 6 : channel * 6 + 5, slice_ * 7 : slice_ * 7 + 6]
        np.testing.assert_array_equal(cell, levels[channel, slice_])
    assert dict(found.facts) == {
        "channels": 3,
        "depth": 4,
        "height": 5,
        "width": 6,
        "arrangement": "slices",
        "slices": [0, 1, 2, 3],
        "columns": 1,
        "gap": 1,
    }
    np.testing.assert_array_equal(found.statistics.deviation, statistics(array).deviation[1:])


def test_of_many_slices_16_are_drawn_evenly_spaced() -> None:
    array = noise(1, 2, 64, 3, 3)
    found = arrange(as_map(array))
    assert found.facts["slices"] == list(range(2, 64, 4))
    np.testing.assert_array_equal(found.levels[:3, 4:7], normalize(array)[0, 0, 6])


@given(st.integers(1, 40), st.integers(2, 40), st.integers(1, 9), st.integers(1, 9), st.integers(10, 200))
@settings(max_examples=80)
def test_slices_can_be_found_by_what_the_facts_say(
    channels: int, depth: int, height: int, width: int, max_belt: int
) -> None:
    array = noise(1, channels, depth, height, width)
    found = arrange(as_map(array), max_belt=max_belt)
    slices, columns, gap = (found.facts[key] for key in ("slices", "columns", "gap"))
    assert 1 <= len(slices) <= min(16, depth)
    assert slices == sorted(set(slices))
    assert slices[0] >= 0
    assert slices[-1] < depth
    levels = normalize(array)[0]
    for channel in range(channels):
        for number, slice_ in enumerate(slices):
            top = channel // columns * (height + gap)
            left = (channel % columns * len(slices) + number) * (width + gap)
            cell = found.levels[top : top + height, left : left + width]
            np.testing.assert_array_equal(cell, levels[channel, slice_])


def test_slices_of_many_channels_stay_within_the_width_and_height() -> None:
    found = arrange(huge(1, 512, 20, 28, 28))
    assert max(found.levels.shape) <= 4096
    assert found.facts["columns"] > 1
    assert "channels_drawn" not in found.facts


def test_a_volume_of_one_slice_is_a_map() -> None:
    array = noise(1, 3, 1, 5, 6)
    found = arrange(as_map(array))
    np.testing.assert_array_equal(found.levels, belt(array[:, :, 0]))
    assert found.facts["depth"] == 1


@pytest.mark.parametrize(
    ("shape", "drawn"),
    [
        ((1, 2_000, 1, 100_000), (MAX_PIXELS // 50_000 + 1) // 2),  # 50,000 pixels and, but for the last, a gap each
        ((1, 1_000_000, 8), MAX_SIDE),
        ((1, 10, 60_000, 1_000), 2),
        ((1, 70_000, 2, 3, 3), 70_000),
    ],
)
def test_of_an_absurd_map_the_first_channels_are_drawn_that_fit(shape: tuple[int, ...], drawn: int) -> None:
    found = arrange(huge(*shape))
    assert max(found.levels.shape) <= MAX_SIDE
    assert found.levels.size <= MAX_PIXELS
    assert found.facts["channels"] == shape[1]
    assert found.facts.get("channels_drawn", shape[1]) == drawn
    assert found.statistics.mean.shape == (1, shape[1])


def test_what_fits_exactly_is_drawn_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tilings, "MAX_SIDE", 14)  # 5 channels of 2 and 4 gaps
    array = noise(1, 21, 2, 2)
    whole, cut = arrange(as_map(array[:, :20])), arrange(as_map(array))
    assert whole.levels.shape == (11, 14)
    assert "channels_drawn" not in whole.facts
    assert cut.facts["channels_drawn"] == 20  # the 21st would make it wider
    np.testing.assert_array_equal(cut.levels, grid(array[:, :20]))


def test_a_channel_larger_than_a_picture_is_drawn_by_the_means_of_squares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tilings, "MAX_SIDE", 10)
    array = noise(1, 1, 7, 25)
    found = arrange(as_map(array))
    assert found.facts["cells_per_pixel"] == 3
    assert np.abs(found.levels - averaged(normalize(array)[0, 0], 3, 3)).max() <= 0.5
    assert (found.facts["height"], found.facts["width"]) == (7, 25)
    volume = noise(1, 1, 2, 7, 25)
    found = arrange(as_map(volume))
    (shown,) = found.facts["slices"]
    assert np.abs(found.levels - averaged(normalize(volume)[0, 0, shown], 3, 3)).max() <= 0.5


@pytest.mark.parametrize("shape", [(1, 0), (1, 3, 0), (1, 3, 0, 4), (1, 0, 2, 2)])
def test_empty_maps_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(PictureError, match=r"layer 'conv' can't be drawn: its map of shape .* is empty; take its num"):
        arrange(as_map(np.zeros(shape)))


@pytest.mark.parametrize("shape", [(3,), (1, 2, 3, 4, 5, 6)])
def test_maps_with_other_axes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(PictureError, match=r"layer 'conv' can't be drawn: its map has shape .* one to three spatial"):
        arrange(as_map(np.zeros(shape)))


def test_a_picture_outside_the_batch_is_refused() -> None:
    for shape in ((2, 3, 4), (2, 3, 4, 4), (2, 3, 4, 4, 4), (2, 3)):
        with pytest.raises(PictureError, match="picture 2 is outside the batch of 2: pass 0 to 1"):
            arrange(as_map(noise(*shape)), 2)


@pytest.mark.parametrize("max_belt", [0, -5])
def test_a_width_of_nothing_is_refused(max_belt: int) -> None:
    with pytest.raises(PictureError, match=f"max_belt is {max_belt}, and a whole number is wanted: pass 1 or more"):
        arrange(as_map(noise(1, 2, 3, 4)), max_belt=max_belt)


def test_arranging_changes_no_values() -> None:
    for shape, layout in (((1, 3, 50), "NCW"), ((1, 3, 50), "NTC"), ((1, 3, 4, 5, 6), None)):
        array = noise(*shape)
        before = array.copy()
        arrange(FeatureMap(layer=as_map(array, layout).layer, array=array), max_belt=7)
        np.testing.assert_array_equal(array, before)


def test_what_a_picture_leaves_out_is_said_in_words() -> None:
    facts = {"channels": 100_000, "channels_drawn": 2_000, "tokens_left_out": 5, "cells_per_pixel": 2}
    assert remarks({**facts, "arrangement": "grid"}) == [
        "the first 2,000 of 100,000 channels",
        "first 5 tokens left out",
        "each pixel is the mean of 2 x 2 cells",
    ]
    assert remarks({"channels": 3, "arrangement": "slices", "depth": 2, "slices": [0, 1]}) == []
    found = arrange(as_map(noise(1, 3, 32, 5, 6)))
    assert description(found.facts) == "3 channels of 32 x 5 x 6, slices, 16 of 32 slices"
