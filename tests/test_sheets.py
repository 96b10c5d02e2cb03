from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from test_gallery import as_map, noise

from onnxfeat.drawing.colormaps import INFINITE, NAN, PAPER, STEPS, frame_table
from onnxfeat.drawing.scales import scale_of
from onnxfeat.drawing.sharing import Shared
from onnxfeat.drawing.sheets import Row, paint_sheet, row_of
from onnxfeat.drawing.styles import Style
from onnxfeat.errors import PictureError

LEVEL_STYLE = Style(normalize="minmax", scale_over="layer")


def row(array: NDArray[Any], style: Style = LEVEL_STYLE, *, name: str = "conv", layout: str | None = None) -> Row:
    return row_of(as_map(name, array, layout), 0, style)


def sheet(*rows: Row, style: Style = LEVEL_STYLE, title: str = "model.onnx") -> NDArray[np.uint8]:
    return paint_sheet(rows, style, title=title).pixels


def places_of(part: NDArray[np.uint8], whole: NDArray[np.uint8]) -> list[tuple[int, int]]:
    """Where a part is found in a picture."""
    height, width = part.shape
    down, across = whole.shape[0] - height + 1, whole.shape[1] - width + 1
    may_be = np.ones((down, across), bool)
    for y, x in np.random.default_rng(0).integers(0, (height, width), (60, 2)):  # some pixels first, then all
        may_be &= whole[y : y + down, x : x + across] == part[y, x]
    corners = [(y, x) for y, x in np.argwhere(may_be).tolist()]
    return [(y, x) for y, x in corners if np.array_equal(whole[y : y + height, x : x + width], part)]


def test_a_row_holds_the_channels_of_a_layer_cell_by_cell() -> None:
    array = noise(1, 5, 9, 11)
    found = row(array)
    zoom = found.facts["zoom"]
    levels = scale_of(array, "minmax", scale_over="layer").levels(array, STEPS)[0]
    for channel in levels:
        assert len(places_of(np.kron(channel, np.ones((zoom, zoom), np.uint8)), found.pixels)) == 1
    assert found.facts["channels_shown"] == 5


def test_a_row_shows_as_many_channels_as_fit_and_says_so() -> None:
    found = row(noise(1, 300, 20, 20))
    shown = found.facts["channels_shown"]
    assert 10 <= shown < 300
    assert 1400 < found.pixels.shape[1] <= 1600
    assert f"first {shown} shown" in found.words
    assert "300 channels of 20 x 20" in found.words


def test_a_row_takes_the_order_of_the_style_and_counts_all_channels() -> None:
    array = noise(1, 200, 20, 20) * 0.1
    array[0, 150] *= 100
    array[0, 40:43] = 0
    found = row(array, Style(order="variance", top=3, scale_over="layer"))
    assert found.facts["channel_order"][0] == 150
    assert found.facts["channels_shown"] == 3
    assert (found.marks["constant"], found.marks["dead"]) == (3, 3)


@pytest.mark.parametrize(
    ("shape", "layout"),
    [((1, 50, 30), "NCW"), ((1, 4, 8, 9, 9), "NCDHW"), ((1, 6, 17), "NTC"), ((1, 1000), None), ((1, 2048, 1, 1), None)],
)
def test_maps_of_any_axes_make_a_row(shape: tuple[int, ...], layout: str | None) -> None:
    found = row(noise(*shape), layout=layout)
    assert found.pixels.size
    assert (found.pixels < PAPER).any()
    assert sheet(found).shape[1] >= found.pixels.shape[1]


@pytest.mark.parametrize("style", [Style(), Style(hidpi=True), Style(zoom=2), Style(normalize="symmetric")])
def test_all_rows_are_found_on_the_sheet_in_their_order(style: Style) -> None:
    arrays = [noise(1, 4, 20, 20), noise(1, 300, 7, 7, seed=1), noise(1, 2, 50, 60, seed=2)]
    rows = [row(array, style, name=f"conv_{number}") for number, array in enumerate(arrays)]
    drawing = paint_sheet(rows, style, title="model.onnx")
    found = [places_of(one.pixels, drawing.pixels) for one in rows]
    assert [len(places) for places in found] == [1, 1, 1]
    assert found[0][0] < found[1][0] < found[2][0]
    assert len({x for ((_, x),) in found}) == 1  # all begin at one margin
    assert drawing.palette == frame_table(style.colors).tobytes()
    assert drawing.facts == {"arrangement": "sheet", "rows": 3}


def test_hidpi_doubles_the_rows() -> None:
    plain, double = (row(noise(1, 4, 20, 20), Style(zoom=3, hidpi=hidpi)) for hidpi in (False, True))
    assert double.pixels.shape[1] == 2 * plain.pixels.shape[1]
    assert double.facts["zoom"] == 2 * plain.facts["zoom"]
    once, twice = (sheet(one, style=Style(hidpi=hidpi)) for one, hidpi in ((plain, False), (double, True)))
    assert twice.shape[1] == 2 * once.shape[1]


def test_pictures_of_a_layer_stand_below_each_other_under_one_title() -> None:
    maps = as_map("conv", noise(3, 4, 20, 20))
    together = sheet(*(row_of(maps, index, LEVEL_STYLE, picture=f"{index}.png") for index in range(3)))
    apart = sheet(*(row_of(as_map(f"conv_{i}", maps.array), i, LEVEL_STYLE) for i in range(3)))
    assert together.shape[0] < apart.shape[0]


def test_what_pictures_share_is_taken() -> None:
    array = noise(2, 3, 20, 20)
    array[1, 0] = array[0, 0]
    style = Style(normalize="minmax", scale_over="batch")
    shared = Shared(scale=scale_of(array, "minmax", scale_over="batch"))
    first, second = (row_of(as_map("conv", array[index : index + 1]), 0, style, shared) for index in (0, 1))
    zoom = first.facts["zoom"]
    side = 20 * zoom
    height = first.pixels.shape[0]
    np.testing.assert_array_equal(first.pixels[height - side :, :side], second.pixels[height - side :, :side])
    assert first.ends == second.ends


def test_values_that_are_not_finite_have_their_color_and_are_counted_over_all_rows() -> None:
    array = noise(1, 3, 20, 20)
    array[0, 0, 3, 3], array[0, 1, 4, 4:6] = np.nan, np.inf
    found = row(array)
    zoom = found.facts["zoom"]
    assert (found.pixels == NAN).sum() == zoom**2
    assert (found.pixels == INFINITE).sum() == 2 * zoom**2
    assert (found.marks["nan"], found.marks["infinite"]) == (1, 2)
    whole = sheet(found, row(array, name="other"))
    assert (whole == NAN).sum() == 2 * zoom**2 + 100  # and a square of the legend


@pytest.mark.parametrize("method", ["mean", "max", "l2"])
def test_a_reduction_makes_a_row_of_one_picture_a_layer(method: Any) -> None:
    found = row(noise(1, 64, 20, 20), Style(reduce=method))
    assert found.facts["channels_shown"] == 1
    assert f"{method} of 64 channels of 20 x 20" in found.words


def test_components_have_no_place_on_a_sheet() -> None:
    with pytest.raises(PictureError, match="principal components have colors of their own, a sheet has one scale"):
        row(noise(1, 3, 4, 5), Style(reduce="pca"))


@pytest.mark.parametrize("name", ["x" * 1000, "层" * 500, "a\nb\x00\x1b[31m", "<script>alert(1)</script>", ""])
def test_names_do_not_make_a_sheet_larger(name: str) -> None:
    array = noise(1, 3, 20, 20)
    plain = sheet(row(array))
    assert sheet(row(array, name=name)).shape == plain.shape
    assert sheet(row(array), title=name).shape == plain.shape
    named = row_of(as_map("conv", array), 0, LEVEL_STYLE, picture=name)
    assert sheet(named).shape == plain.shape


def test_a_sheet_that_no_picture_can_hold_is_refused() -> None:
    one = row(noise(1, 3, 20, 20))
    with pytest.raises(PictureError, match=r"a sheet of 2,000 rows or more would have .* choose fewer layers"):
        paint_sheet([one] * 2000, LEVEL_STYLE, title="model")


def test_margins_of_a_sheet_are_paper() -> None:
    pixels = sheet(row(noise(1, 300, 20, 20)), row(noise(1, 3, 5, 2000), name="wide"))
    for edge in (pixels[:12], pixels[-12:], pixels[:, :12], pixels[:, -12:]):
        assert (edge == PAPER).all()


def test_a_sheet_of_reduced_layers_counts_the_channels_of_the_layers() -> None:
    array = noise(1, 6, 8, 9)
    array[0, 1], array[0, 4] = 0, 3
    array[0, 5, 2, 2] = np.nan
    found = row(array, Style(reduce="mean"))
    assert found.marks == {"nan": 1, "infinite": 0, "constant": 2, "dead": 1}
    assert found.facts["reduced_channels"] == 6
    assert found.facts["constant_channels"] == [1, 4]
