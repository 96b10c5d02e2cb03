"""Tell as runs of rows and columns what cells see of the model's input, and what of a photograph went into that."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxfeat.drawing.photographs import Line, lines_of
from onnxfeat.drawing.receptive_fields import receptive_fields
from onnxfeat.registration import Registration
from onnxfeat.report.contents import Fields, Fit, Runs


def fields_of(registration: Registration, block: int = 1) -> Fields:
    """Return what each cell of a map sees, or each block of cells.

    Raises:
        PictureError: The steps of the registration contradict each other.

    Example:
        >>> from onnxfeat.registration import Step, Window
        >>> conv = Step((0,), Window(3, before=1, after=1), Window(1))
        >>> fields_of(Registration(steps=(Step(), conv), step=1, size=(4, 2))).terms[0]
        (((0, 2), (0, 3), (1, 4), (2, 4)), ((0, 1), (1, 2)))
    """
    found = receptive_fields(registration)
    terms = ((_blocks(term.rows > 0, block), _blocks(term.columns > 0, block)) for term in found.terms)
    return Fields(
        size=registration.size,
        terms=tuple((runs_of(rows), runs_of(columns)) for rows, columns in terms),
        gated=registration.gated,
        bounded=found.bounded,
    )


def fit_of(photograph: tuple[int, int], registration: Registration) -> Fit:
    """Return which pixels of a photograph go into each pixel of the model's input.

    Args:
        photograph: Rows and columns of the photograph.
        registration: Of any map that was made from it.

    Example:
        >>> fit_of((6, 2), Registration(steps=(), step=0, size=(2, 2))).rows
        ((0, 4), (2, 6))
    """
    rows, columns = lines_of(photograph, registration)
    return Fit(rows=_runs_into(rows), columns=_runs_into(columns))


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


def _blocks(matrix: NDArray[np.bool_], block: int) -> NDArray[np.bool_]:
    if block == 1:
        return matrix
    return np.logical_or.reduceat(matrix, np.arange(0, len(matrix), block), axis=0)


def _runs_into(line: Line) -> Runs:
    """Return which pixels of the photograph go into each pixel of the input."""
    if line.goes is None:  # the photograph is the input
        return tuple((pixel, pixel + 1) for pixel in line.groups.tolist())
    starts = [0, *(np.flatnonzero(np.diff(line.groups)) + 1).tolist(), len(line.groups)]
    return tuple(tuple(starts[edge] for edge in runs) for runs in runs_of(line.goes.T))
