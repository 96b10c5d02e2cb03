import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxfeat.drawing.colormaps import INFINITE, INK, NAN, PAPER, STEPS
from onnxfeat.drawing.legends import STROKE, Legend
from onnxfeat.drawing.lettering import line
from onnxfeat.drawing.pages import MARGIN, Block, Page, inked, scale_bar, stroke

BAR = Legend(ends=("-2", "0", "2"), note="minmax: least to greatest value of the layer")
MARKED = Legend(
    ends=("-2", "0", "2"),
    note="minmax: least to greatest value of the layer",
    marks=((NAN, "3 NaN"), (INFINITE, "1 infinite"), (STROKE, "2 constant")),
)
legends = st.sampled_from([None, BAR, MARKED, Legend(ends=(), note="a note " * 30, marks=MARKED.marks)])


def page_of(title: str = "conv2d", subtitle: str = "Conv, 8 channels", legend: Legend | None = BAR) -> Page:
    return Page(title=title, subtitle=subtitle, legend=legend)


@given(
    st.text(max_size=80),
    st.text(max_size=200),
    legends,
    st.integers(1, 2),
    st.integers(1, 500),
    st.integers(1, 900),
)
@settings(max_examples=150, deadline=None)
def test_a_page_has_room_for_its_picture_and_nothing_else_there(
    title: str, subtitle: str, legend: Legend | None, density: int, height: int, width: int
) -> None:
    page, top, left = Page(title=title, subtitle=subtitle, legend=legend, density=density).around(height, width)
    spot = page[top : top + height, left : left + width]
    assert spot.shape == (height, width)
    assert (spot == PAPER).all()
    margin = MARGIN * density
    for edge in (page[:margin], page[-margin:], page[:, :margin], page[:, -margin:]):
        assert (edge == PAPER).all()


def test_the_title_stands_above_the_picture_and_the_legend_below() -> None:
    page, top, _ = page_of().around(50, 600)
    title = inked(line("conv2d", 17))
    np.testing.assert_array_equal(page[12 : 12 + title.shape[0], 12 : 12 + title.shape[1]], title)
    assert (page[: top + 50] >= PAPER).all()  # no color of the map above the legend
    colors = page[top + 50 :]
    assert (colors.min(), (colors[colors < PAPER]).max()) == (0, STEPS - 1)


@pytest.mark.parametrize("title", ["x" * 1000, "层" * 1000, "a\nb\x00\x1b[31mc", "<script>alert(1)</script>", "", " "])
def test_a_page_does_not_grow_with_its_title(title: str) -> None:
    plain, top, left = page_of().around(40, 500)
    page, other_top, other_left = page_of(title).around(40, 500)
    assert page.shape == plain.shape
    assert (top, left) == (other_top, other_left)
    assert (page == PAPER)[:, -MARGIN:].all()


def test_a_long_subtitle_takes_more_lines() -> None:
    short, top, _ = page_of(subtitle="one").around(40, 500)
    long, lower, _ = page_of(subtitle="some words more " * 20).around(40, 500)
    assert lower > top
    assert long.shape[0] - short.shape[0] == lower - top


def test_density_doubles_margins_and_the_place_of_the_picture() -> None:
    page, top, left = Page(title="conv", subtitle="", legend=BAR).around(100, 600)
    double, lower, right = Page(title="conv", subtitle="", legend=BAR, density=2).around(200, 1200)
    assert double.shape[1] == 2 * page.shape[1]
    assert right == 2 * left
    assert abs(lower - 2 * top) <= 2  # lines of text round
    assert abs(double.shape[0] - 2 * page.shape[0]) <= 4


def test_the_scale_runs_from_the_first_color_to_the_last() -> None:
    block = scale_bar(("0", "", "1"), 1)
    colors = block.parts[0][2]
    assert (colors == colors[0]).all()
    row = colors[0].astype(int)
    assert (row[0], row[-1]) == (0, STEPS - 1)
    assert np.isin(np.diff(row), (0, 1, 2)).all()
    double = scale_bar(("0", "", "1"), 2).parts[0][2][0].astype(int)
    assert set(double) == set(range(STEPS))


def test_the_ends_of_the_scale_are_written_below_it() -> None:
    bar = scale_bar(("-2.5", "0", "2.5"), 1)
    _, left, low = bar.parts[1]
    np.testing.assert_array_equal(low > PAPER, inked(line("-2.5", 12), 0.72) > PAPER)
    assert left == 0
    _, right, high = bar.parts[3]
    assert right + high.shape[1] == bar.parts[0][2].shape[1]


def test_each_mark_has_its_color_in_the_legend() -> None:
    page, top, _ = page_of(legend=MARKED).around(30, 600)
    below = page[top + 30 :]
    assert (below == NAN).sum() == (below == INFINITE).sum() == 10 * 10
    bare, top, _ = page_of().around(30, 600)
    assert not np.isin(bare[top + 30 :], (NAN, INFINITE)).any()
    assert page.shape[0] > bare.shape[0]


def test_marks_that_do_not_fit_a_line_begin_another() -> None:
    marks = tuple((NAN, f"{number:,} of something that has many words") for number in range(8))
    legend = Legend(ends=(), note="", marks=marks)
    page, top, _ = page_of(legend=legend).around(10, 400)
    assert (page[top:] == NAN).sum() == 8 * 100
    assert (page[:, -MARGIN:] == PAPER).all()


def test_ink_is_drawn_from_paper_to_ink() -> None:
    assert inked(np.array([[0, 255]], np.uint8)).tolist() == [[PAPER, INK]]
    shades = inked(np.arange(256, dtype=np.uint8)[None])[0].astype(int)
    assert (np.diff(shades) >= 0).all()
    assert inked(np.array([[255]], np.uint8), 0.5).item() == (PAPER + INK) // 2


@pytest.mark.parametrize(("height", "width"), [(3, 3), (20, 20), (10, 60), (60, 10), (1, 5), (5, 1), (1, 1)])
def test_a_stroke_goes_from_corner_to_corner_and_is_dark_within_light(height: int, width: int) -> None:
    cells = np.full((2, height, width), 124, np.uint8)
    stroke(cells, 1)
    assert (cells[0] == cells[1]).all()
    assert cells[0, -1, 0] == INK
    assert cells[0, 0, -1] == INK
    if min(height, width) >= 10:
        assert cells[0, 0, 0] == 124  # it leaves the channel to be seen
        assert PAPER in cells


def test_a_block_that_is_wider_than_the_page_is_cut() -> None:
    page = np.full((5, 5), PAPER, np.uint8)
    Block(height=3, parts=((0, 3, np.full((3, 9), INK, np.uint8)), (4, 9, np.full((9, 9), INK, np.uint8)))).draw(
        page, 1, 0
    )
    assert (page == INK).sum() == 3 * 2


def test_blocks_are_put_below_each_other() -> None:
    first, second = (Block(height=2, parts=((0, 0, np.full((2, 2), color, np.uint8)),)) for color in (1, 2))
    page = np.zeros((5, 3), np.uint8)
    first.below(second.moved(1, 1)).draw(page, 0, 0)
    assert page.tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 0], [0, 2, 2], [0, 2, 2]]
