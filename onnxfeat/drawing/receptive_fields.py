"""Work out which pixels each cell of a map sees, and how much it looks at each of them.

Along one axis that is a matrix of cells x pixels. It starts as the unit matrix of the picture; each step makes a row
the sum of those rows before it that the cell looks at. The numbers then count the paths from a pixel to a cell, which
is what influence looks like where weights are random: bell-shaped (W. Luo, Y. Li, R. Urtasun and R. Zemel,
"Understanding the Effective Receptive Field in Deep Convolutional Neural Networks", 2016). A number above 0 means that
the cell sees the pixel, exactly: padding has no row, so cells at the border see less.

Where maps are added or joined, a cell sees what it sees by one way or by the other: a union of rectangles, each of
which is such a pair of matrices.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxfeat.drawing.axis_steps import Taps, taps_of
from onnxfeat.errors import PictureError
from onnxfeat.registration import Registration, Step

MOST_TERMS = 8
"""Rectangles that are kept apart for a cell; more of them become the one around them."""

# Path counts are scaled to at most 1. In the deepest networks the edge of a field would vanish beside its middle.
_LEAST = np.float32(1e-30)


@dataclass(frozen=True, slots=True, eq=False)
class Term:
    """A rectangle for each cell: what it sees of the rows times what it sees of the columns.

    Attributes:
        rows: float32 (rows of the map, rows of the picture): how much a cell looks at a row; 0 where not at all.
        columns: float32 (columns of the map, columns of the picture), likewise.
    """

    rows: NDArray[np.float32]
    columns: NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class ReceptiveFields:
    """What all cells of a map see of the model's input.

    Attributes:
        terms: The rectangles; a cell sees what is in one of them.
        bounded: Whether there were more than `MOST_TERMS`, so that cells see less than is told.
    """

    terms: tuple[Term, ...]
    bounded: bool = False

    @property
    def cells(self) -> tuple[int, int]:
        """Rows and columns of the map."""
        return len(self.terms[0].rows), len(self.terms[0].columns)

    def of_cell(self, row: int, column: int) -> NDArray[np.bool_]:
        """Return which pixels of the input one cell sees, shape (rows, columns)."""
        seen = [np.outer(x.rows[row] > 0, x.columns[column] > 0) for x in self.terms]
        return np.asarray(np.logical_or.reduce(seen))

    def of_cells(self, chosen: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return which pixels of the input at least one of the chosen cells sees, shape (rows, columns).

        Args:
            chosen: Of the map's shape (rows, columns).
        """
        if not chosen.any():
            pixels = (self.terms[0].rows.shape[1], self.terms[0].columns.shape[1])
            return np.zeros(pixels, np.bool_)
        number = chosen.astype(np.float32)  # float32 has fast products, and sums of ones do not vanish
        found = [(x.rows > 0).astype(np.float32).T @ number @ (x.columns > 0).astype(np.float32) for x in self.terms]
        return np.asarray(sum(found) > 0)

    def spread(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """Return for each pixel of the input the sum of the values of all cells, times how much each looks at it.

        Args:
            values: Of the map's shape (rows, columns), finite.
        """
        exact = values.astype(np.float64)  # products of two tiny numbers are no float32
        return np.asarray(sum(x.rows.T.astype(np.float64) @ exact @ x.columns.astype(np.float64) for x in self.terms))


@functools.lru_cache(maxsize=64)  # the layers of a model, for one picture after the other
def receptive_fields(registration: Registration) -> ReceptiveFields:
    """Return what each cell of a map sees.

    Args:
        registration: Of the map (see `onnxfeat.records.FeatureMap`).

    Raises:
        PictureError: The steps contradict each other, or make a map of absurd size.

    Example:
        >>> from onnxfeat.registration import Step, Window
        >>> conv = Step((0,), Window(3, dilation=2, before=2, after=2), Window(1))
        >>> fields = receptive_fields(Registration(steps=(Step(), conv), step=1, size=(6, 1)))
        >>> fields.of_cell(0, 0)[:, 0].tolist()
        [True, False, True, False, False, False]
    """
    ((_, found),) = each_field(registration.steps, registration.size, [registration.step])
    return found


def each_field(
    steps: Sequence[Step], size: tuple[int, int], wanted: Iterable[int]
) -> Iterator[tuple[int, ReceptiveFields]]:
    """Yield what the cells of several maps see, found in one sweep from the input on.

    The time is that of the last map alone, and no field is kept behind the last step that needs it.

    Args:
        steps: From the picture to all of these maps (see `onnxfeat.registration.Skeleton`).
        size: Rows and columns of the model's input.
        wanted: Positions of the steps that give them.

    Yields:
        Each of these positions, in their order among the steps, and what the cells see there.

    Raises:
        PictureError: The steps contradict each other, or make a map of absurd size.

    Example:
        >>> from onnxfeat.registration import Window
        >>> steps = (Step(), *(Step((x,), Window(3), Window(1)) for x in range(3)))
        >>> [(step, fields.cells) for step, fields in each_field(steps, (9, 2), [3, 1])]
        [(1, (7, 2)), (3, (3, 2))]
    """
    wanted = set(wanted)
    needed = sorted(_ancestors(steps, wanted))
    last_use = {position: position for position in needed}
    last_use |= {parent: position for position in needed for parent in steps[position].parents}
    fields: dict[int, ReceptiveFields] = {}
    for position in needed:
        step = steps[position]
        fields[position] = _behind(step, [fields[parent] for parent in step.parents], size)
        if position in wanted:
            yield position, fields[position]
        for used in {position, *step.parents}:
            if last_use[used] == position:
                del fields[used]


def _behind(step: Step, parents: Sequence[ReceptiveFields], size: tuple[int, int]) -> ReceptiveFields:
    """Return what cells see behind a step, in matrices that nobody changes any more."""
    if not parents:
        rows, columns = (np.eye(length, dtype=np.float32) for length in size)
        found = ReceptiveFields((Term(rows, columns),))
    elif step.rows is None:
        found = _union(parents)
    else:
        found = _through(step, parents)
    for term in found.terms:
        term.rows.flags.writeable = term.columns.flags.writeable = False
    return found


def _ancestors(steps: Sequence[Step], wanted: Iterable[int]) -> set[int]:
    """Return some steps and all that lead to them."""
    found, todo = set(), [*wanted]
    while todo:
        position = todo.pop()
        if position not in found:
            found.add(position)
            todo += steps[position].parents
    return found


def _through(step: Step, parents: Sequence[ReceptiveFields]) -> ReceptiveFields:
    """Return what cells see behind a step that is the same for all terms of its parent."""
    before, target = parents[0], parents[-1].cells
    rows, columns = (
        taps_of(axis, length, like)
        for axis, length, like in zip((step.rows, step.columns), before.cells, target, strict=True)
    )
    # Terms share matrices, after a fork for instance: each is taken through the step once.
    known: dict[tuple[int, int], NDArray[np.float32]] = {}
    terms = []
    for term in before.terms:
        for axis, taps, matrix in ((0, rows, term.rows), (1, columns, term.columns)):
            if (axis, id(matrix)) not in known:
                known[axis, id(matrix)] = _combined(matrix, taps)
        terms.append(Term(known[0, id(term.rows)], known[1, id(term.columns)]))
    return _simplified(terms, before.bounded)


def _combined(matrix: NDArray[np.float32], taps: Taps) -> NDArray[np.float32]:
    """Return for each cell the weighted sum of the rows that it looks at; a position of -1 is padding."""
    found = np.zeros((taps.cells.shape[1], matrix.shape[1]), np.float32)
    for cells, weights in zip(taps.cells, taps.weights, strict=True):
        inside = cells >= 0
        if inside.all():
            found += matrix[cells] * weights[:, None]
        else:
            found[inside] += matrix[cells[inside]] * weights[inside, None]
    return _scaled(found)


def _scaled(matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale path counts to at most 1, in place, and let none of them vanish."""
    matrix /= max(matrix.max(initial=0), _LEAST)
    np.maximum(matrix, _LEAST, out=matrix, where=matrix > 0)
    return matrix


def _union(parents: Sequence[ReceptiveFields]) -> ReceptiveFields:
    """Return what cells see by one way or another, where maps of one size, or of one cell along an axis, meet."""
    terms = [term for parent in parents for term in parent.terms]
    lengths = (max(len(term.rows) for term in terms), max(len(term.columns) for term in terms))
    for term in terms:
        for length, wanted in zip((len(term.rows), len(term.columns)), lengths, strict=True):
            if length not in (1, wanted):
                raise PictureError(
                    f"maps of {length} and of {wanted} cells meet in the model for a picture of this size, so no cell "
                    f"has a place on it: pass a size that the model is made for, such as a multiple of 32"
                )
    terms = [Term(_repeated(term.rows, lengths[0]), _repeated(term.columns, lengths[1])) for term in terms]
    return _simplified(terms, any(parent.bounded for parent in parents))


def _repeated(matrix: NDArray[np.float32], length: int) -> NDArray[np.float32]:
    return matrix if len(matrix) == length else np.repeat(matrix, length, axis=0)


def _simplified(terms: Sequence[Term], bounded: bool) -> ReceptiveFields:
    """Leave out rectangles that lie in others, and join those that agree along one axis: the union stays the same."""
    kept: list[Term] = []
    for term in terms:
        kept = _with(kept, term)
        if len(kept) > 4 * MOST_TERMS:  # each is compared with all others
            kept, bounded = [_around(kept)], True
    if len(kept) > MOST_TERMS:
        kept, bounded = [_around(kept)], True
    return ReceptiveFields(tuple(kept), bounded)


def _around(terms: Sequence[Term]) -> Term:
    return Term(_sum([x.rows for x in terms]), _sum([x.columns for x in terms]))


def _with(kept: Sequence[Term], term: Term) -> list[Term]:
    """Return the terms with one more, as few as are needed."""
    kept = list(kept)
    position = 0
    while position < len(kept):
        other = kept[position]
        # Two rectangles for each pair of cells; one holds the other only if it does so for every pair.
        rows_in, columns_in = _is_within(term.rows, other.rows), _is_within(term.columns, other.columns)
        if rows_in and columns_in:
            return kept
        rows_around, columns_around = _is_within(other.rows, term.rows), _is_within(other.columns, term.columns)
        joined = None
        if rows_around and columns_around:
            joined = term
        elif (rows_in and rows_around) or (columns_in and columns_around):
            joined = _around([term, other])
        if joined is None:
            position += 1
        else:  # a larger one may hold what was kept before
            term, position = joined, 0
            kept.remove(other)
    return [*kept, term]


def _is_within(inner: NDArray[np.float32], outer: NDArray[np.float32]) -> bool:
    return inner is outer or not np.any((inner > 0) & (outer == 0))


def _sum(matrices: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    return _scaled(np.sum(np.stack(matrices), axis=0))
