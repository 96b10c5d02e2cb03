import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from onnxfeat.drawing.styles import Arrange, Style
from onnxfeat.drawing.tilings import MAX_PIXELS, MAX_SIDE, MAX_SLICES, Tiling, enlarged, tiling_of

BARE = Style(frame=False)

sides = st.one_of(st.integers(1, 300), st.sampled_from([1000, 5000, 70_000, 200_000]))
spatials = st.integers(1, 3).flatmap(lambda axes: st.tuples(*[sides] * axes))
channels = st.one_of(st.integers(1, 64), st.sampled_from([512, 2048, 30_000]))
styles = st.builds(
    Style,
    arrange=st.sampled_from([None, "belt", "grid", "channel"]),
    zoom=st.sampled_from([None, 1, 3, 40]),
    hidpi=st.booleans(),
    frame=st.booleans(),
    max_belt=st.sampled_from([1, 100, 4096]),
    aspect=st.sampled_from([0.01, 1.5, 100.0]),
)


def tiled_size(plan: Tiling, spatial: tuple[int, ...], gap: int) -> tuple[int, int]:
    """Height and width in pixels of what the plan says."""
    rows = math.ceil(plan.drawn * len(plan.slices) / plan.columns)
    height = math.ceil((spatial[-2] if len(spatial) > 1 else 1) / plan.shrink[0]) * plan.zoom[0]
    width = math.ceil(spatial[-1] / plan.shrink[1]) * plan.zoom[1]
    return rows * (height + gap) - gap, plan.columns * (width + gap) - gap


@given(spatials, channels, styles)
@settings(max_examples=300, deadline=None)
def test_whatever_is_drawn_fits_a_picture(spatial: tuple[int, ...], channels: int, style: Style) -> None:
    plan = tiling_of(spatial, channels, style)
    assert 1 <= plan.drawn <= channels
    assert min(plan.zoom) >= 1
    height, width = tiled_size(plan, spatial, plan.gap)
    assert max(height, width) <= MAX_SIDE
    assert height * width <= MAX_PIXELS


@pytest.mark.parametrize("hidpi", [False, True])
@pytest.mark.parametrize("frame", [False, True])
@pytest.mark.parametrize("zoom", [None, 50, 10**12])
@pytest.mark.parametrize("spatial", [(60_000,), (4096,), (3,)])
@pytest.mark.parametrize("channels", [3, 2000, 30_000])
def test_strips_fit_a_picture_too(
    spatial: tuple[int, ...], channels: int, zoom: int | None, frame: bool, hidpi: bool
) -> None:
    plan = tiling_of(spatial, channels, Style(zoom=zoom, frame=frame, hidpi=hidpi))
    height, width = tiled_size(plan, spatial, 0)
    assert max(height, width) <= MAX_SIDE
    assert height * width <= MAX_PIXELS


@pytest.mark.parametrize("arrange", [None, "grid", "channel"])
def test_channels_that_fit_are_all_drawn_cell_by_cell(arrange: Arrange | None) -> None:
    for spatial, count in (((7, 7), 2048), ((112, 112), 64), ((1, 1), 1), ((300, 2), 5)):
        plan = tiling_of(spatial, count, Style(arrange=arrange))
        assert (plan.drawn, plan.shrink) == (count, (1, 1))
        assert "cells_per_pixel" not in plan.facts


def test_a_belt_is_chosen_up_to_its_largest_width_and_a_grid_past_it() -> None:
    for frame in (False, True):
        wide, narrow = (Style(frame=frame, max_belt=most) for most in (48, 47))
        assert tiling_of((5, 4), 12, wide).facts["arrangement"] == "belt"
        assert tiling_of((5, 4), 12, narrow).facts["arrangement"] == "grid"


def test_what_was_asked_for_is_taken() -> None:
    assert tiling_of((7, 7), 2048, Style(arrange="belt", frame=False)).columns == 2048
    grid = tiling_of((7, 7), 4, Style(arrange="grid"))
    assert (grid.facts["arrangement"], grid.columns) == ("grid", 2)
    assert tiling_of((7, 7), 1, Style(arrange="channel")).facts["arrangement"] == "channel"


@pytest.mark.parametrize("aspect", [0.5, 1.0, 1.5, 4.0])
def test_a_grid_comes_near_to_the_aspect(aspect: float) -> None:
    for spatial, count in (((14, 14), 512), ((7, 7), 2048), ((10, 30), 300)):
        style = Style(arrange="grid", aspect=aspect, frame=False)
        height, width = tiled_size(tiling_of(spatial, count, style), spatial, 1)
        assert width / height == pytest.approx(aspect, rel=0.2)


@pytest.mark.parametrize("zoom", [1, 2, 7])
def test_the_zoom_that_was_asked_for_is_taken_and_hidpi_doubles_it(zoom: int) -> None:
    for frame, spatial in itertools.product((False, True), ((5,), (5, 6), (3, 5, 6))):
        plain = tiling_of(spatial, 4, Style(zoom=zoom, frame=frame))
        double = tiling_of(spatial, 4, Style(zoom=zoom, frame=frame, hidpi=True))
        assert plain.zoom == (zoom, zoom)
        assert double.zoom == (2 * zoom, 2 * zoom)


@pytest.mark.parametrize("spatial", [(5,), (20, 30), (5, 6, 7)])
def test_without_a_zoom_cells_are_enlarged_on_a_page_and_hidpi_doubles_them(spatial: tuple[int, ...]) -> None:
    plain, double = tiling_of(spatial, 4, Style()), tiling_of(spatial, 4, Style(hidpi=True))
    assert min(plain.zoom) > 1
    assert double.zoom == (2 * plain.zoom[0], 2 * plain.zoom[1])


def test_a_picture_with_a_frame_is_about_a_screen_wide_and_one_channel_is_large() -> None:
    for spatial, count in (((20, 30), 8), ((14, 14), 64), ((7, 7), 128)):
        plan = tiling_of(spatial, count, Style())
        assert 700 < tiled_size(plan, spatial, 1)[1] <= 1600
    assert tiled_size(tiling_of((56, 56), 1, Style(arrange="channel")), (56, 56), 0) == (504, 504)


def test_a_bare_map_is_drawn_pixel_by_pixel() -> None:
    assert tiling_of((20, 30), 8, BARE).zoom == (1, 1)
    assert "zoom" not in tiling_of((20, 30), 8, BARE).facts


@given(st.integers(1, 60), st.integers(1, 40), st.integers(1, 40), st.integers(1, 3))
@settings(max_examples=60)
def test_slices_lie_in_order_through_the_whole_depth(depth: int, height: int, width: int, count: int) -> None:
    plan = tiling_of((depth, height, width), count, BARE)
    assert list(plan.slices) == sorted(set(plan.slices))
    assert len(plan.slices) == min(depth, MAX_SLICES)
    assert plan.slices[0] <= depth / len(plan.slices)
    assert plan.slices[-1] >= depth - 1 - depth / len(plan.slices)
    assert plan.columns % len(plan.slices) == 0  # all slices of a channel in one row


cell_arrays = st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5)).flatmap(
    lambda shape: arrays(np.uint8, shape)
)


@given(cell_arrays, st.integers(1, 4), st.integers(1, 4))
@settings(max_examples=80)
def test_enlarging_repeats_each_cell_and_nothing_else(cells: NDArray[np.uint8], down: int, across: int) -> None:
    expected = np.kron(cells, np.ones((1, down, across), np.uint8))
    np.testing.assert_array_equal(enlarged(cells, (down, across)), expected)


@given(st.integers(1, 3), st.integers(1, 40), st.integers(1, 3), st.integers(5, 20), st.data())
@settings(max_examples=60)
def test_a_strip_that_is_too_long_shows_the_mean_of_neighbors(
    count: int, length: int, height: int, most: int, data: st.DataObject
) -> None:
    levels = data.draw(arrays(np.uint8, (count, length)))
    plan = tiling_of((length,), count, Style(frame=False, max_belt=most))
    cells = plan.facts.get("cells_per_pixel", 1)
    assert math.ceil(length / cells) <= most
    found = plan.cells(levels)
    for place in range(found.shape[2]):
        mean = levels[:, place * cells : (place + 1) * cells].astype(float).mean(axis=1)
        assert (np.abs(found[:, 0, place] - mean) <= 0.5).all()
    assert height > 0


def test_a_channel_larger_than_a_picture_is_shrunk_by_means() -> None:
    levels = np.random.default_rng(0).integers(0, 256, (1, 3, 70_001), np.uint8)
    plan = tiling_of((3, 70_001), 1, BARE)
    assert plan.shrink == (2, 2)
    found = plan.cells(levels)
    assert found.shape == (1, 2, 35_001)
    assert abs(found[0, 0, 7] - levels[0, :2, 14:16].astype(float).mean()) <= 0.5
    assert abs(found[0, 1, 35_000] - float(levels[0, 2, 70_000])) <= 0.5
