import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from onnxfeat.drawing.arrangements import arrange
from onnxfeat.drawing.colormaps import INFINITE, INK, NAN, PAPER, STEPS, color_table, frame_table
from onnxfeat.drawing.legends import ends_of, legend_of
from onnxfeat.drawing.painting import Drawing, paint
from onnxfeat.drawing.scales import BatchScale, normalize, scale_of
from onnxfeat.drawing.sharing import Shared
from onnxfeat.drawing.styles import Normalization, ScaleOver, Style
from onnxfeat.errors import PictureError
from onnxfeat.records import FeatureMap, Layer

METHODS: list[Normalization] = ["zscore", "minmax", "percentile", "symmetric", "log"]
OVERS: list[ScaleOver] = ["channel", "layer", "batch"]


def as_map(array: NDArray[Any], *, name: str = "conv", layout: str | None = None) -> FeatureMap:
    layer = Layer(name=name, kind="conv", op_type="Conv", value="v", raw_value="v", layout=layout)
    return FeatureMap(layer=layer, array=np.asarray(array, dtype=np.float32))


def noise(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def positions(array: NDArray[Any], style: Style) -> NDArray[np.uint8]:
    """The positions in the palette that the values of one picture have: levels by the oracle-tested scale."""
    scale = scale_of(array, style.normalize, scale_over=style.scale_over, percentiles=style.percentiles)
    found: NDArray[np.uint8] = scale.levels(array, STEPS)[0]
    return found


def runs(is_there: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """First and last place (exclusive) of each row of places that are true."""
    steps = np.diff(np.concatenate([[False], is_there, [False]]).astype(int))
    return list(zip(np.nonzero(steps == 1)[0].tolist(), np.nonzero(steps == -1)[0].tolist(), strict=True))


def cells_in(drawing: Drawing, count: int, rows: int, columns: int) -> NDArray[np.uint8]:
    """Find the cells in a painted page by their colors alone: (count, rows, columns) in pixels.

    Letters have the colors from paper to ink; the first place with another is the corner of the first cell.
    """
    is_map = (drawing.pixels < PAPER) | (drawing.pixels >= NAN)
    top = int(np.nonzero(is_map.any(axis=1))[0][0])
    left = int(np.nonzero(is_map[top])[0][0])
    across = [start for start, end in runs(is_map[top]) if end - start == columns]
    assert across[0] == left
    down = [start for start, end in runs(is_map[:, left]) if end - start == rows]
    found = [
        drawing.pixels[y : y + rows, x : x + columns]
        for y in down
        for x in across
        if is_map[y : y + rows, x : x + columns].all()
    ]
    return np.stack(found[:count])


@pytest.mark.parametrize(
    ("shape", "style"),
    [
        ((1, 8, 20, 30), Style()),
        ((1, 8, 20, 30), Style(hidpi=True)),
        ((1, 7, 9, 11), Style(zoom=5)),
        ((1, 7, 9, 11), Style(zoom=1)),
        ((1, 30, 9, 11), Style(arrange="grid", zoom=2)),
        ((1, 30, 6, 6), Style(arrange="grid", aspect=3.0)),
        ((1, 100, 4, 4), Style(arrange="belt")),
        ((1, 6, 9, 11), Style(arrange="channel", channels=(4,))),
        ((1, 6, 9, 11), Style(channels=(4, 1, 2))),
        ((1, 3, 50, 2), Style(zoom=3, hidpi=True)),
        ((1, 3, 2, 50), Style(colormap="magma")),
    ],
)
@pytest.mark.parametrize("method", ["zscore", "minmax"])
def test_the_maps_are_found_again_in_the_page_cell_by_cell(
    shape: tuple[int, ...], style: Style, method: Normalization
) -> None:
    style = dataclasses.replace(style, normalize=method)
    array = noise(*shape)
    drawing = paint(as_map(array), style=style)
    zoom = drawing.facts.get("zoom", 1)
    chosen = list(style.channels) if style.channels is not None else list(range(shape[1]))
    expected = np.kron(positions(array, style)[chosen], np.ones((1, zoom, zoom), np.uint8))
    np.testing.assert_array_equal(cells_in(drawing, len(chosen), *expected.shape[1:]), expected)
    shown = np.asarray(drawing.image().convert("RGB"))
    np.testing.assert_array_equal(shown, frame_table(style.colors)[drawing.pixels])


@pytest.mark.parametrize("over", OVERS)
@pytest.mark.parametrize("method", ["minmax", "percentile", "log"])
def test_the_hottest_pixel_has_the_last_color_of_the_map_and_the_coldest_the_first(
    method: Normalization, over: ScaleOver
) -> None:
    array = noise(1, 3, 6, 7)
    style = Style(normalize=method, scale_over=over, percentiles=(0, 100), zoom=8)
    drawing = paint(as_map(array), style=style)
    cells = cells_in(drawing, 3, 48, 56)
    channel, y, x = np.unravel_index(array[0].argmax(), array[0].shape)
    colors = np.frombuffer(drawing.palette or b"", np.uint8).reshape(256, 3)
    hottest = cells[channel, y * 8 : y * 8 + 8, x * 8 : x * 8 + 8]
    assert (colors[hottest] == color_table("viridis")[255]).all()
    channel, y, x = np.unravel_index(array[0].argmin(), array[0].shape)
    coldest = cells[channel, y * 8 : y * 8 + 8, x * 8 : x * 8 + 8]
    assert (colors[coldest] == color_table("viridis")[0]).all()


@pytest.mark.parametrize("over", OVERS)
def test_the_hottest_of_positive_values_has_the_last_color_of_the_symmetric_scale_too(over: ScaleOver) -> None:
    array = np.abs(noise(1, 2, 6, 7)) * np.array([1, 3], np.float32)[:, None, None]
    cells = cells_in(paint(as_map(array), style=Style(normalize="symmetric", scale_over=over, zoom=4)), 2, 24, 28)
    at = array[0].argmax()
    assert cells[:, ::4, ::4].ravel()[at] == STEPS - 1
    assert cells.min() >= STEPS // 2  # the half of the other sign is not used


def test_equal_channels_look_equal_under_the_scale_of_the_layer_and_not_in_general_apart() -> None:
    array = noise(1, 3, 6, 6)
    array[0, 1] = array[0, 0]
    array[0, 2] = array[0, 0] * 4 + 1
    shared = cells_in(paint(as_map(array), style=Style(normalize="minmax", scale_over="layer", zoom=4)), 3, 24, 24)
    assert (shared[0] == shared[1]).all()
    assert not (shared[0] == shared[2]).all()
    apart = cells_in(paint(as_map(array), style=Style(normalize="minmax", zoom=4)), 3, 24, 24)
    assert np.abs(apart[0].astype(int) - apart[2]).max() <= 1


@pytest.mark.parametrize("method", METHODS)
def test_a_map_in_two_pictures_looks_equal_under_the_scale_of_the_batch_and_else_not(method: Normalization) -> None:
    array = noise(2, 2, 6, 6)
    array[1, 0] = array[0, 0]
    array[1, 1] = array[0, 1] * 6
    for over, is_equal in (("batch", True), ("layer", False)):
        style = Style(normalize=method, scale_over=over, zoom=4)  # type: ignore[arg-type]
        first, second = (cells_in(paint(as_map(array), index, style=style), 2, 24, 24) for index in (0, 1))
        assert (first[0] == second[0]).all() == is_equal


def test_a_scale_that_is_passed_is_taken() -> None:
    tracker = BatchScale("minmax")
    tracker.add(np.array([[[[0.0, 100.0]]]]))
    style = Style(normalize="minmax", scale_over="batch", zoom=8)
    drawing = paint(as_map(np.array([[[[0, 25, 50]]]])), style=style, shared=Shared(scale=tracker.scale()))
    cells = cells_in(drawing, 1, 8, 24)
    assert cells[0, 0, ::8].tolist() == [0, STEPS // 4, STEPS // 2]


def test_a_shifted_and_scaled_channel_looks_the_same() -> None:
    array = noise(1, 2, 8, 8)
    array[0, 1] = array[0, 0] * 3 - 7
    for method in ("zscore", "minmax", "percentile", "log"):
        style = Style(normalize=method, zoom=4)
        cells = cells_in(paint(as_map(array), style=style), 2, 32, 32).astype(int)
        assert np.abs(cells[0] - cells[1]).max() <= 1


@given(st.integers(1, 4), st.integers(2, 5), st.integers(1, 5), st.data())
@settings(max_examples=60, deadline=None)
def test_what_is_not_finite_has_its_color_exactly_where_it_is_and_is_counted(
    channels: int, height: int, width: int, data: st.DataObject
) -> None:
    array = noise(1, channels, height, width)
    for place in np.ndindex(array.shape):
        array[place] = data.draw(st.sampled_from([float(array[place])] * 2 + [np.nan, np.inf, -np.inf]))
    array[0, :, 0, 0] = np.arange(channels)  # the first cell begins with a color of the map
    drawing = paint(as_map(array), style=Style(zoom=8, normalize="minmax", scale_over="layer"))
    is_nan = np.kron(np.isnan(array[0]), np.ones((1, 8, 8), bool))
    is_infinite = np.kron(np.isinf(array[0]), np.ones((1, 8, 8), bool))
    if not drawing.facts["constant_channels"]:  # a stroke would lie over the cells
        cells = cells_in(drawing, channels, height * 8, width * 8)
        np.testing.assert_array_equal(cells == NAN, is_nan)
        np.testing.assert_array_equal(cells == INFINITE, is_infinite)
    assert drawing.facts["nan_values"] == np.isnan(array).sum()
    assert drawing.facts["infinite_values"] == np.isinf(array).sum()
    assert drawing.facts["not_finite_values"] == (~np.isfinite(array)).sum()


def test_nan_and_infinite_values_have_colors_that_no_map_has() -> None:
    palette = np.frombuffer(paint(as_map(noise(1, 1, 3, 3))).palette or b"", np.uint8).reshape(256, 3)
    assert palette[[NAN, INFINITE]].tolist() == [[255, 0, 255], [0, 255, 255]]
    for name in ("viridis", "magma", "cividis", "gray", "coolwarm"):
        colors = color_table(name).astype(int)
        for odd in ((255, 0, 255), (0, 255, 255)):
            assert np.abs(colors - odd).sum(axis=1).min() > 60


@pytest.mark.parametrize("hidpi", [False, True])
def test_a_constant_channel_is_flat_struck_through_and_counted(hidpi: bool) -> None:
    array = noise(1, 4, 10, 10)
    array[0, 1], array[0, 2] = 0, 7
    drawing = paint(as_map(array), style=Style(zoom=4, hidpi=hidpi))
    side = 80 if hidpi else 40
    assert drawing.facts["constant_channels"] == [1, 2]
    assert drawing.facts["dead_channels"] == [1]
    is_map = drawing.pixels < PAPER
    top = int(np.nonzero(is_map.any(axis=1))[0][0])
    left = int(np.nonzero(is_map[top])[0][0])
    gap = 4 if hidpi else 2
    cells = [drawing.pixels[top : top + side, left + k * (side + gap) :][:, :side] for k in range(4)]
    for channel, cell in enumerate(cells):
        assert (cell == INK).any() == (channel in (1, 2))
        if channel in (1, 2):
            assert set(np.unique(cell)) == {STEPS // 2, PAPER, INK}
            assert cell[-1, 0] == cell[0, -1] == INK
            assert (cell == STEPS // 2).mean() > 0.8  # still to be seen
    np.testing.assert_array_equal(cells[0], np.kron(positions(array, Style())[0], np.ones((side // 10,) * 2)))


def test_channels_without_contrast_come_last_or_are_left_out() -> None:
    array = noise(1, 4, 10, 10)
    array[0, 1] = 0
    last = paint(as_map(array), style=Style(zoom=2, dead="last"))
    assert last.facts["channel_order"] == [0, 2, 3, 1]
    omitted = paint(as_map(array), style=Style(zoom=2, dead="omit"))
    assert omitted.facts["channel_order"] == [0, 2, 3]
    assert omitted.facts["constant_channels"] == [1]
    expected = np.kron(positions(array, Style())[[0, 2, 3]], np.ones((1, 2, 2), np.uint8))
    np.testing.assert_array_equal(cells_in(omitted, 3, 20, 20), expected)
    np.testing.assert_array_equal(cells_in(last, 3, 20, 20), expected)


def test_separators_are_paper_and_as_wide_everywhere() -> None:
    drawing = paint(as_map(noise(1, 12, 6, 6)), style=Style(arrange="grid", zoom=5, normalize="minmax"))
    is_map = drawing.pixels < PAPER
    top = int(np.nonzero(is_map.any(axis=1))[0][0])
    left = int(np.nonzero(is_map[top])[0][0])
    across = [run for run in runs(is_map[top]) if run[1] - run[0] == 30]
    assert len(across) == drawing.facts["columns"]
    gaps = {after[0] - before[1] for before, after in itertools.pairwise(across)}
    assert len(gaps) == 1
    (gap,) = gaps
    between = drawing.pixels[top : top + 30, left + 30 : left + 30 + gap]
    assert between.size
    assert (between == PAPER).all()


def test_numbers_are_drawn_where_they_fit_and_never_over_data() -> None:
    array = noise(1, 12, 6, 6)
    numbered = paint(as_map(array), style=Style(zoom=5, arrange="grid"))  # 30 pixels a cell
    small = paint(as_map(array), style=Style(zoom=2, arrange="grid"))  # 12 pixels
    for drawing, is_numbered, side in ((numbered, True, 30), (small, False, 12)):
        cells = cells_in(drawing, 12, side, side)
        np.testing.assert_array_equal(
            cells, np.kron(positions(array, Style()), np.ones((1, side // 6, side // 6), np.uint8))
        )
        is_map = drawing.pixels < PAPER
        top = int(np.nonzero(is_map.any(axis=1))[0][0])
        columns = [start for start, end in runs(is_map[top]) if end - start == side]
        down = [start for start, end in runs(is_map[:, columns[0]]) if end - start == side]
        assert (len(columns), len(down)) == (4, 3)
        assert (down[1] - down[0] - side > 10) == is_numbered
        for left in columns:
            between = drawing.pixels[down[0] + side : down[1], left : left + side]
            assert (between > PAPER).any() == is_numbered


def test_numbers_are_those_of_the_channels() -> None:
    array = noise(1, 12, 6, 6)
    style = Style(zoom=5, arrange="belt", normalize="minmax", scale_over="layer")
    whole = paint(as_map(array), style=style)
    some = paint(as_map(array), style=dataclasses.replace(style, channels=(7, 3)))
    heads = []
    for drawing in (whole, some):
        is_map = drawing.pixels < PAPER
        top = int(np.nonzero(is_map.any(axis=1))[0][0])
        columns = [start for start, end in runs(is_map[top]) if end - start == 30]
        heads.append([drawing.pixels[top - 13 : top, left : left + 30].tobytes() for left in columns])
    assert heads[1] == [heads[0][7], heads[0][3]]
    assert len(set(heads[0])) == 12


def test_hidpi_doubles_every_pixel_of_the_maps() -> None:
    array = noise(1, 8, 20, 30)
    plain, double = paint(as_map(array)), paint(as_map(array), style=Style(hidpi=True))
    assert double.facts["zoom"] == 2 * plain.facts["zoom"]
    assert double.pixels.shape[1] == 2 * plain.pixels.shape[1]
    zoom = plain.facts["zoom"]
    small = cells_in(plain, 8, 20 * zoom, 30 * zoom)
    large = cells_in(double, 8, 40 * zoom, 60 * zoom)
    np.testing.assert_array_equal(large, np.kron(small, np.ones((1, 2, 2), np.uint8)))


@pytest.mark.parametrize(
    "name", ["x" * 1000, "卷积层" * 300, "a\nb\t\x00\x1b[31m", "<script>alert(1)</script>", "", " ", "caf\udce9"]
)
def test_a_name_changes_nothing_but_the_title(name: str) -> None:
    array = noise(1, 4, 20, 30)
    plain, named = paint(as_map(array)), paint(as_map(array, name=name))
    assert named.pixels.shape == plain.pixels.shape
    np.testing.assert_array_equal(named.pixels[34:], plain.pixels[34:])  # below the title
    assert named.image().size == plain.image().size


def test_one_channel_of_one_cell_makes_a_page() -> None:
    drawing = paint(as_map(noise(1, 1, 1, 1)))
    assert drawing.facts["constant_channels"] == [0]
    assert (drawing.pixels == STEPS // 2).any()
    assert min(drawing.pixels.shape) > 50


def test_2048_channels_are_all_there() -> None:
    array = noise(1, 2048, 7, 7)
    drawing = paint(as_map(array))
    zoom = drawing.facts["zoom"]
    expected = np.kron(positions(array, Style()), np.ones((1, zoom, zoom), np.uint8))
    np.testing.assert_array_equal(cells_in(drawing, 2048, 7 * zoom, 7 * zoom), expected)
    assert max(drawing.pixels.shape) <= 1700


def test_a_strip_has_a_row_for_each_channel() -> None:
    array = noise(1, 5, 30)
    drawing = paint(as_map(array, layout="NCW"), style=Style(normalize="minmax", scale_over="layer"))
    assert drawing.facts["arrangement"] == "strip"
    zoom = drawing.facts["row_height"], drawing.facts["column_width"]
    style = Style(normalize="minmax", scale_over="layer")
    expected = np.kron(positions(array, style), np.ones(zoom, np.uint8))
    np.testing.assert_array_equal(cells_in(drawing, 1, *expected.shape)[0], expected)


def test_the_slices_of_a_volume_lie_side_by_side() -> None:
    array = noise(1, 2, 4, 6, 7)
    style = Style(zoom=6)
    drawing = paint(as_map(array, layout="NCDHW"), style=style)
    assert drawing.facts["slices"] == [0, 1, 2, 3]
    expected = np.kron(positions(array, style).reshape(8, 6, 7), np.ones((1, 6, 6), np.uint8))
    np.testing.assert_array_equal(cells_in(drawing, 8, 36, 42), expected)


def test_tokens_are_drawn_as_the_square_that_they_are() -> None:
    array = noise(1, 3, 17)
    drawing = paint(as_map(array, layout="NTC"), style=Style(zoom=6, normalize="minmax"))
    square = array[:, :, 1:].reshape(1, 3, 4, 4)
    expected = np.kron(positions(square, Style(normalize="minmax")), np.ones((1, 6, 6), np.uint8))
    np.testing.assert_array_equal(cells_in(drawing, 3, 24, 24), expected)
    assert drawing.facts["tokens_left_out"] == 1


def test_a_vector_is_a_row_of_cells() -> None:
    array = np.arange(8, dtype=np.float32)
    style = Style(zoom=9, normalize="minmax")
    for shape in ((1, 8), (1, 8, 1, 1)):
        cells = cells_in(paint(as_map(array.reshape(shape)), style=style), 1, 9, 72)
        assert cells[0, 0, ::9].tolist() == np.clip(np.floor(array / 7 * STEPS), 0, STEPS - 1).tolist()


@pytest.mark.parametrize("method", ["mean", "max", "l2"])
def test_a_reduction_is_drawn_as_one_large_channel(method: Any) -> None:
    array = noise(1, 5, 8, 9)
    drawing = paint(as_map(array), style=Style(reduce=method, normalize="minmax"))
    expected = {
        "mean": array.mean(axis=1, keepdims=True),
        "max": array.max(axis=1, keepdims=True),
        "l2": np.sqrt(np.square(array).sum(axis=1, keepdims=True)),
    }[method]
    zoom = drawing.facts["zoom"]
    cells = cells_in(drawing, 1, 8 * zoom, 9 * zoom)[0, ::zoom, ::zoom]
    assert np.abs(cells.astype(int) - positions(expected, Style(normalize="minmax"))[0]).max() <= 1
    assert drawing.facts["reduced_channels"] == 5
    assert drawing.facts["channels"] == 1


def test_principal_components_are_red_green_and_blue_and_nan_is_magenta() -> None:
    array = noise(1, 6, 5, 7)
    array[0, 2, 1, 1], array[0, 3, 2, 4] = np.nan, np.inf
    bare = paint(as_map(array), style=Style(reduce="pca", frame=False, zoom=1))
    assert bare.pixels.shape == (5, 7, 3)
    assert bare.palette is None
    assert bare.pixels[1, 1].tolist() == [255, 0, 255]
    assert bare.pixels[2, 4].tolist() == [0, 255, 255]
    page = paint(as_map(array), style=Style(reduce="pca", zoom=20))
    assert page.image().mode == "RGB"
    is_colored = (page.pixels.max(axis=2) - page.pixels.min(axis=2)) > 40  # letters and paper are gray
    top, left = (int(np.nonzero(is_colored.any(axis=axis))[0][0]) for axis in (1, 0))
    enlarged = np.kron(bare.pixels, np.ones((20, 20, 1), np.uint8))
    spots = [
        (y, x)
        for y in range(top - 1, top + 2)
        for x in range(left - 1, left + 2)
        if np.array_equal(page.pixels[y : y + 100, x : x + 140], enlarged)
    ]
    assert len(spots) == 1
    assert (page.facts["nan_values"], page.facts["infinite_values"]) == (1, 1)


def test_principal_components_give_equal_colors_to_equal_cells_in_all_pictures_of_the_batch() -> None:
    array = noise(2, 6, 5, 7)
    array[1, :, 3, 3] = array[0, :, 1, 2]
    style = Style(reduce="pca", frame=False, zoom=1)
    first, second = (paint(as_map(array), index, style=style).pixels for index in (0, 1))
    assert (first[1, 2] == second[3, 3]).all()
    assert not (first == second).all()


@pytest.mark.parametrize("over", OVERS)
@pytest.mark.parametrize("method", METHODS)
def test_a_bare_picture_is_nothing_but_levels(method: Normalization, over: ScaleOver) -> None:
    array = noise(2, 3, 5, 6)
    array[0, 1] = 4
    drawing = paint(as_map(array), 1, style=Style(normalize=method, scale_over=over, frame=False))
    own = array if over == "batch" else array[1:]
    expected = np.concatenate(list(normalize(own, method, scale_over=over)[-1]), axis=1)
    np.testing.assert_array_equal(drawing.pixels, expected)
    assert drawing.palette == color_table("coolwarm" if method == "symmetric" else "viridis").tobytes()


@pytest.mark.parametrize("shape", [(1, 3, 5, 6), (1, 700, 9, 9), (1, 2048, 7, 7), (1, 40, 3, 90), (1, 9, 300, 2)])
def test_the_page_is_larger_than_its_maps_by_margins_on_all_sides(shape: tuple[int, ...]) -> None:
    for style in (Style(), Style(hidpi=True), Style(arrange="grid"), Style(arrange="belt")):
        drawing = paint(as_map(noise(*shape)), style=style)
        margin = 12 * style.density
        pixels = drawing.pixels
        for edge in (pixels[:margin], pixels[-margin:], pixels[:, :margin], pixels[:, -margin:]):
            assert (edge == PAPER).all()


def test_the_same_map_makes_the_same_picture_and_stays_as_it_is() -> None:
    array = noise(1, 4, 6, 6)
    array[0, 0, 0, 0] = np.nan
    feature_map = as_map(array)
    first, second = paint(feature_map), paint(feature_map)
    np.testing.assert_array_equal(first.pixels, second.pixels)
    assert first.facts == second.facts
    np.testing.assert_array_equal(feature_map.array, array)


def test_the_scale_in_the_facts_turns_positions_back_into_values() -> None:
    array = noise(1, 3, 8, 8) * 5 + 2
    for over in OVERS:
        drawing = paint(as_map(array), style=Style(normalize="minmax", scale_over=over, zoom=4))
        low, high = (np.array(drawing.facts["scale"][end]).reshape(-1, 1, 1) for end in ("low", "high"))
        cells = cells_in(drawing, 3, 32, 32)[:, ::4, ::4]
        values = low + (cells + 0.5) / STEPS * (high - low)
        assert (np.abs(values - array[0]) <= 0.51 * (high - low) / STEPS + 1e-4).all()


def test_a_drawing_is_a_palette_image_that_pillow_opens() -> None:
    drawing = paint(as_map(noise(1, 2, 5, 5)))
    image = drawing.image()
    assert isinstance(image, Image.Image)
    assert (image.mode, image.size) == ("P", drawing.pixels.shape[::-1])


@pytest.mark.parametrize("index", [2, -3])
def test_a_picture_outside_the_batch_is_refused(index: int) -> None:
    for style in (Style(), Style(reduce="mean"), Style(reduce="pca")):
        with pytest.raises(PictureError, match=f"picture {index} is outside the batch of 2"):
            paint(as_map(noise(2, 3, 4, 5)), index, style=style)


def test_a_channel_that_the_layer_lacks_is_refused() -> None:
    with pytest.raises(PictureError, match="channel 9 was asked for, the layer has 3"):
        paint(as_map(noise(1, 3, 4, 5)), style=Style(channels=(9,)))


@pytest.mark.parametrize("shape", [(1, 3, 0, 5), (1, 2, 2, 2, 2, 2)])
@pytest.mark.parametrize("style", [Style(), Style(frame=False), Style(reduce="pca"), Style(reduce="max")])
def test_a_map_that_is_no_picture_is_refused(shape: tuple[int, ...], style: Style) -> None:
    with pytest.raises(PictureError, match=r"layer 'conv' can't be drawn|holds no feature maps"):
        paint(as_map(np.zeros(shape)), style=style)


@pytest.mark.parametrize("method", ["mean", "max", "l2", "pca"])
def test_the_numbers_of_a_dense_layer_can_be_reduced_too(method: Any) -> None:
    # A run with --reduce goes over all layers that were chosen, whatever their axes.
    for shape in ((1, 5), (1, 5, 1, 1)):
        drawing = paint(as_map(noise(*shape)), style=Style(reduce=method))
        assert drawing.image().size[0] > 0


@pytest.mark.parametrize("reduce", ["mean", "max", "l2", "pca"])
def test_channels_without_contrast_are_counted_also_where_they_are_reduced(reduce: Any) -> None:
    array = noise(1, 6, 8, 9)
    array[0, 1], array[0, 4] = 0, 3
    array[0, 5, 2, 2] = np.nan
    facts = paint(as_map(array), style=Style(reduce=reduce)).facts
    assert (facts["constant_channels"], facts["dead_channels"]) == ([1, 4], [1])
    assert facts["nan_values"] == 1


def test_a_row_of_numbers_is_high_enough_to_be_seen_and_named_for_what_it_is() -> None:
    drawing = paint(as_map(noise(1, 500, 1, 1)))
    assert drawing.facts["numbers"] == 500
    assert drawing.facts["row_height"] == 24
    assert drawing.pixels.shape[0] > 24


def test_a_channel_without_a_finite_value_bears_no_scale() -> None:
    array = noise(1, 2, 120, 120)
    with_scale = paint(as_map(array)).pixels
    array[0, 1] = np.nan
    without = paint(as_map(array)).pixels
    # Above the second channel there are fewer letters: only its number.
    middle = with_scale.shape[1] // 2
    head = slice(58, 70)
    assert (without[head, middle:] != PAPER).sum() < (with_scale[head, middle:] != PAPER).sum() - 100


@pytest.mark.parametrize("middle", [0.0, 1e3, -1e6])
def test_the_ends_of_a_scale_are_told_apart_however_far_from_0_they_lie(middle: float) -> None:
    array = noise(1, 3, 40, 50) + np.float32(middle)
    scale = scale_of(array, "minmax")
    facts = paint(as_map(array), style=Style(normalize="minmax")).facts
    np.testing.assert_allclose(facts["scale"]["low"], scale.low[0], rtol=1e-8)
    np.testing.assert_allclose(facts["scale"]["high"], scale.high[0], rtol=1e-8)
    low, _, high = ends_of(scale_of(array, "minmax", scale_over="layer"))
    assert float(high) - float(low) == pytest.approx(np.ptp(array), rel=0.01)


def test_where_no_value_is_finite_there_is_no_bar_and_that_is_said() -> None:
    nothing = arrange(as_map(np.full((1, 3, 8, 9), np.nan)), style=Style())
    legend = legend_of(nothing, Style())
    assert (legend.ends, legend.note) == ((), "no value is finite")
    array = np.full((1, 3, 8, 9), np.nan)
    array[0, 2, 0, 0] = 1
    assert legend_of(arrange(as_map(array), style=Style()), Style()).ends


def test_numbers_of_channels_share_a_scale_and_that_is_said() -> None:
    found = arrange(as_map(noise(1, 30, 1, 1)), style=Style())
    legend = legend_of(found, Style())
    assert legend.note == "zscore: mean and standard deviation of the layer"
    assert float(legend.ends[0]) < float(legend.ends[2])
