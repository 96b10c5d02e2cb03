"""Tell as runs of rows and columns which pixels of a photograph each cell of a map sees."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from onnxfeat.drawing.photographs import Line, lines_of
from onnxfeat.drawing.receptive_fields import ReceptiveFields, each_field
from onnxfeat.registration import Registration
from onnxfeat.report.contents import Fields, Runs

_LinesOf = Callable[[tuple[int, int], Registration], tuple[Line, Line]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cells:
    """The cells of a map, or blocks of cells.

    Attributes:
        registration: Of the map.
        photograph: Rows and columns of the photograph that the model's input was made of; None is the input itself.
        block: Cells along each axis that are taken together.
    """

    registration: Registration
    photograph: tuple[int, int] | None = None
    block: int = 1


def fields_of(maps: Iterable[Cells]) -> list[Fields]:
    """Return what the cells of each of some maps see; for equal ones it is the same object.

    Maps that share their steps are found together, in the time that the last of them takes alone.

    Raises:
        PictureError: The steps of a registration contradict each other.

    Example:
        >>> from onnxfeat.registration import Step, Window
        >>> conv = Step((0,), Window(3, before=1, after=1), Window(1))
        >>> registration = Registration(steps=(Step(), conv), step=1, size=(4, 2))
        >>> [fields] = fields_of([Cells(registration=registration, photograph=(8, 2))])
        >>> fields.terms[0]
        (((0, 5), (0, 7), (1, 8), (3, 8)), ((0, 1), (1, 2)))
    """
    maps = list(maps)
    # By identity: a model of a thousand layers has as many steps, and to hash them takes long.
    groups: dict[tuple[int, tuple[int, int]], dict[int, list[int]]] = {}
    for position, cells in enumerate(maps):
        registration = cells.registration
        of_step = groups.setdefault((id(registration.steps), registration.size), {})
        of_step.setdefault(registration.step, []).append(position)
    found: dict[int, Fields] = {}
    lines = functools.cache(lines_of)
    for (_, size), of_step in groups.items():
        steps = maps[next(iter(of_step.values()))[0]].registration.steps
        for step, seen in each_field(steps, size, of_step):
            known: dict[tuple[tuple[int, int], Registration, int], Fields] = {}
            for position in of_step[step]:
                kind = _kind(maps[position])
                if kind not in known:
                    known[kind] = _on_photograph(seen, *kind, lines)
                found[position] = known[kind]
    return [found[position] for position in range(len(maps))]


def _kind(cells: Cells) -> tuple[tuple[int, int], Registration, int]:
    """Return all that matters beside what leads from the input to a map."""
    registration = replace(cells.registration, steps=(), step=0)
    return cells.photograph or registration.size, registration, cells.block


def _on_photograph(
    seen: ReceptiveFields, photograph: tuple[int, int], registration: Registration, block: int, lines: _LinesOf
) -> Fields:
    rows, columns = lines(photograph, registration)
    return Fields(
        size=photograph,
        terms=tuple(
            (_through(_blocks(term.rows > 0, block), rows), _through(_blocks(term.columns > 0, block), columns))
            for term in seen.terms
        ),
        gated=registration.gated,
        bounded=seen.bounded,
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
