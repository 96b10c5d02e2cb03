import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from PIL import Image

from onnxfeat.preprocessing import Aspect, Interpolation
from onnxfeat.registration import Registration, Step, Window
from onnxfeat.report.contents import Runs
from onnxfeat.report.places import fields_of, fit_of, runs_of


def as_mask(runs: Runs, length: int) -> NDArray[np.bool_]:
    mask = np.zeros((len(runs), length), np.bool_)
    for row, ends in zip(mask, runs, strict=True):
        for start, stop in zip(ends[::2], ends[1::2], strict=True):
            assert start < stop
            row[start:stop] = True
    return mask


@settings(deadline=None)
@given(mask=hnp.arrays(np.bool_, st.tuples(st.integers(1, 8), st.integers(1, 12))))
def test_runs_are_the_mask_in_other_words(mask: NDArray[np.bool_]) -> None:
    runs = runs_of(mask)
    assert (as_mask(runs, mask.shape[1]) == mask).all()
    for ends in runs:
        assert list(ends) == sorted(set(ends))  # no two runs touch


@settings(deadline=None, max_examples=60)
@given(
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 3),
    padding=st.integers(0, 3),
    block=st.integers(1, 3),
)
def test_a_block_of_cells_sees_what_its_cells_see(
    kernel: int, stride: int, dilation: int, padding: int, block: int
) -> None:
    window = Window(kernel, stride, dilation, padding, padding)
    registration = Registration(steps=(Step(), Step((0,), window, window)), step=1, size=(20, 20))
    (rows, _), *rest = fields_of(registration, block).terms
    assert not rest
    found = as_mask(rows, 20)
    count = (20 + 2 * padding - (kernel - 1) * dilation - 1) // stride + 1
    for place in range(-(-count // block)):
        cells = range(place * block, min((place + 1) * block, count))
        seen = {cell * stride - padding + point * dilation for cell in cells for point in range(kernel)}
        assert set(np.flatnonzero(found[place]).tolist()) == {pixel for pixel in seen if 0 <= pixel < 20}


@pytest.mark.parametrize("interpolation", ["box", "bilinear", "nearest"])
@pytest.mark.parametrize("size", [(7, 7), (20, 33), (60, 10)])
@pytest.mark.parametrize("aspect", ["stretch", "crop"])
def test_a_pixel_of_the_input_is_made_of_the_pixels_that_the_fit_tells(
    size: tuple[int, int], aspect: Aspect, interpolation: Interpolation
) -> None:
    photograph = (24, 31)
    registration = Registration(steps=(), step=0, size=size, interpolation=interpolation, aspect=aspect)
    fit = fit_of(photograph, registration)
    rows = as_mask(fit.rows, photograph[0])
    assert rows.shape == (size[0], photograph[0])
    if aspect == "crop":
        return
    # Pillow itself: a photograph that is black but for one row.
    filters = {"box": Image.Resampling.BOX, "bilinear": Image.Resampling.BILINEAR, "nearest": Image.Resampling.NEAREST}
    for row in range(photograph[0]):
        levels = np.zeros(photograph, np.float32)
        levels[row] = 1
        shown = np.asarray(Image.fromarray(levels).resize(size[::-1], filters[interpolation]))
        changed = np.abs(shown).max(axis=1) > 1e-6
        assert (rows[changed, row]).all()
        if interpolation != "nearest":
            assert (rows[:, row] == changed).all()


def test_of_a_photograph_as_large_as_the_input_each_pixel_is_its_own() -> None:
    fit = fit_of((3, 2), Registration(steps=(), step=0, size=(3, 2)))
    assert fit.rows == ((0, 1), (1, 2), (2, 3))
    assert fit.columns == ((0, 1), (1, 2))


def test_a_letterbox_has_pixels_that_come_from_no_photograph() -> None:
    fit = fit_of((10, 40), Registration(steps=(), step=0, size=(20, 20), aspect="letterbox"))
    assert fit.rows[0] == ()
    assert fit.rows[10] != ()
