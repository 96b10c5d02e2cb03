"""Tell as runs of rows and columns which pixels of a photograph each cell of a map sees."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from onnxfeat.drawing.photographs import Line, lines_of
from onnxfeat.drawing.receptive_fields import receptive_fields
from onnxfeat.registration import Registration
from onnxfeat.report.contents import Fields, Runs


def fields_of(registration: Registration, photograph: tuple[int, int] | None = None, block: int = 1) -> Fields:
    """Return what each cell of a map sees, or each block of cells.

    Args:
        registration: Of the map.
        photograph: Rows and columns of the photograph that the model's input was made of; None is the input itself.
        block: Cells along each axis that are taken together.

    Raises:
        PictureError: The steps of the registration contradict each other.

    Example:
        >>> from onnxfeat.registration import Step, Window
        >>> conv = Step((0,), Window(3, before=1, after=1), Window(1))
        >>> fields = fields_of(Registration(steps=(Step(), conv), step=1, size=(4, 2)), (8, 2))
        >>> fields.terms[0]
        (((0, 5), (0, 7), (1, 8), (3, 8)), ((0, 1), (1, 2)))
    """
    found = receptive_fields(registration)
    size = photograph or registration.size
    # What leads from the input to the map does not matter here.
    rows, columns = _lines(size, replace(registration, steps=(), step=0, gated=False))
    return Fields(
        size=size,
        terms=tuple(
            (_through(_blocks(term.rows > 0, block), rows), _through(_blocks(term.columns > 0, block), columns))
            for term in found.terms
        ),
        gated=registration.gated,
        bounded=found.bounded,
    )


def runs_of(mask: NDArray[np.bool_]) -> Runs:
    """Return for each row of a mask where it is true: starts and stops of runs, in order.

    Example:
        >>> runs_of(np.array([[True, True, False, True], [False, False, False, False]]))
        ((0, 2, 3, 4), ())
    """
    framed = np.zeros((mask.shape[0], mask.shape[1] + 2), np.int8)
    framed[:, 1:-1] = mask
    rows, edges = np.nonzero(np.diff(framed, axis=1))
    ends = np.cumsum(np.bincount(rows, minlength=len(mask))).tolist()
    flat = edges.tolist()
    return tuple(tuple(flat[start:stop]) for start, stop in zip([0, *ends], ends, strict=False))


@functools.lru_cache(maxsize=8)  # all layers of a model share them
def _lines(size: tuple[int, int], registration: Registration) -> tuple[Line, Line]:
    return lines_of(size, registration)


def _blocks(matrix: NDArray[np.bool_], block: int) -> NDArray[np.bool_]:
    if block == 1:
        return matrix
    return np.logical_or.reduceat(matrix, np.arange(0, len(matrix), block), axis=0)


def _through(matrix: NDArray[np.bool_], line: Line) -> Runs:
    """Return which pixels of the photograph go into those of the input that a cell sees."""
    if line.goes is None:  # the photograph is the input
        return runs_of(matrix)
    # In groups of pixels that go into the same ones: of a large photograph there are hundreds, not thousands.
    groups = matrix.astype(np.float32) @ line.goes.T.astype(np.float32) > 0
    starts = [0, *(np.flatnonzero(np.diff(line.groups)) + 1).tolist(), len(line.groups)]
    return tuple(tuple(starts[edge] for edge in runs) for runs in runs_of(groups))
