import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from PIL import Image

from onnxfeat.preprocessing import Aspect, Interpolation
from onnxfeat.registration import Registration, Step, Window
from onnxfeat.report.contents import Fields, Runs
from onnxfeat.report.places import Cells, fields_of, runs_of


def as_mask(runs: Runs, length: int) -> NDArray[np.bool_]:
    mask = np.zeros((len(runs), length), np.bool_)
    for row, ends in zip(mask, runs, strict=True):
        for start, stop in zip(ends[::2], ends[1::2], strict=True):
            assert start < stop
            row[start:stop] = True
    return mask


def seen(registration: Registration, photograph: tuple[int, int] | None = None, block: int = 1) -> Fields:
    (fields,) = fields_of([Cells(registration=registration, photograph=photograph, block=block)])
    return fields


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
    (rows, _), *rest = seen(registration, block=block).terms
    assert not rest
    found = as_mask(rows, 20)
    count = (20 + 2 * padding - (kernel - 1) * dilation - 1) // stride + 1
    for place in range(-(-count // block)):
        cells = range(place * block, min((place + 1) * block, count))
        pixels = {cell * stride - padding + point * dilation for cell in cells for point in range(kernel)}
        assert set(np.flatnonzero(found[place]).tolist()) == {pixel for pixel in pixels if 0 <= pixel < 20}


@pytest.mark.parametrize("interpolation", ["box", "bilinear", "nearest"])
@pytest.mark.parametrize("size", [(7, 7), (20, 33), (60, 10)])
@pytest.mark.parametrize("aspect", ["stretch", "crop"])
def test_a_pixel_of_the_input_sees_the_pixels_of_the_photograph_that_it_is_made_of(
    size: tuple[int, int], aspect: Aspect, interpolation: Interpolation
) -> None:
    photograph = (24, 31)
    registration = Registration(steps=(Step(),), step=0, size=size, interpolation=interpolation, aspect=aspect)
    fields = seen(registration, photograph)
    assert fields.size == photograph
    rows = as_mask(fields.terms[0][0], photograph[0])
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


@pytest.mark.parametrize("photograph", [None, (3, 2)])
def test_without_a_photograph_or_with_one_as_large_as_the_input_each_pixel_is_its_own(
    photograph: tuple[int, int] | None,
) -> None:
    fields = seen(Registration(steps=(Step(),), step=0, size=(3, 2)), photograph)
    assert fields.terms == ((((0, 1), (1, 2), (2, 3)), ((0, 1), (1, 2))),)
    assert fields.size == (3, 2)


def test_a_letterbox_has_pixels_that_come_from_no_photograph() -> None:
    registration = Registration(steps=(Step(),), step=0, size=(20, 20), aspect="letterbox")
    rows = seen(registration, (10, 40)).terms[0][0]
    assert rows[0] == ()
    assert rows[10] != ()


@settings(deadline=None, max_examples=40)
@given(kernel=st.integers(1, 5), stride=st.integers(1, 3), photograph=st.integers(4, 60), side=st.integers(9, 20))
def test_a_cell_sees_the_pixels_that_change_it(kernel: int, stride: int, photograph: int, side: int) -> None:
    window = Window(kernel, stride)
    registration = Registration(steps=(Step(), Step((0,), window, window)), step=1, size=(side, side))
    rows = as_mask(seen(registration, (photograph, side)).terms[0][0], photograph)
    for pixel in range(photograph):  # Pillow's resize, and sums over the kernel
        levels = np.zeros((photograph, side), np.float32)
        levels[pixel] = 1
        if photograph != side:
            levels = np.asarray(Image.fromarray(levels).resize((side, side), Image.Resampling.BILINEAR))
        sums = [np.abs(levels[place : place + kernel, 0]).sum() for place in range(0, side - kernel + 1, stride)]
        assert (rows[:, pixel] == (np.array(sums) > 1e-6)).all()


def test_maps_that_are_found_together_see_what_they_see_alone() -> None:
    window = Window(3, 2, before=1, after=1)
    first, second = ((Step(), *(Step((at,), window, Window(kernel)) for at in range(3))) for kernel in (1, 2))
    cells = [
        Cells(
            registration=Registration(steps=steps, step=step, size=size, gated=gated),
            photograph=photograph,
            block=block,
        )
        for steps in (first, second)
        for size in ((16, 12), (9, 9))
        for step in (3, 1, 0)
        for photograph in (None, (20, 30))
        for block in (1, 2)
        for gated in (False, True)
    ]
    cells = [cells[place] for place in np.random.default_rng(0).permutation(len(cells))]
    assert fields_of(cells) == [seen(one.registration, one.photograph, one.block) for one in cells]
    assert fields_of([]) == []


def test_maps_that_see_the_same_share_it() -> None:
    registration = Registration(steps=(Step(),), step=0, size=(3, 2))
    one, other = fields_of([Cells(registration=registration, photograph=(6, 4)) for _ in range(2)])
    assert one is other


def test_the_steps_of_a_deep_model_are_not_looked_at_once_for_each_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    window = Window(3, before=1, after=1)
    steps = (Step(), *(Step((at,), window, window) for at in range(50)))
    hashed = []

    def hash_of(step: Step) -> int:
        hashed.append(step)
        return 0

    monkeypatch.setattr(Step, "__hash__", hash_of)
    fields = fields_of(Cells(registration=Registration(steps=steps, step=at, size=(8, 8))) for at in range(51))
    assert not hashed
    assert fields[50].terms == ((((0, 8),) * 8, ((0, 8),) * 8),)
