"""Find an axis again behind a Reshape, which keeps the numbers in their order and puts them into other axes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from onnxfeat.records import Axis


def same_axis(before: Sequence[Axis], axis: int, after: Sequence[Axis]) -> tuple[int, int] | None:
    """Return the axis that is the same one behind a Reshape, as long and in the same place, and 1; None if none is.

    As many numbers before it or behind it are enough, as a Reshape changes neither their count nor their order.
    """
    fitting = [
        x
        for x in range(len(after))
        if after[x] == before[axis]
        and (_as_many(before[:axis], after[:x]) or _as_many(before[axis + 1 :], after[x + 1 :]))
    ]
    return (fitting[0], 1) if len(fitting) == 1 and before[axis] is not None else None


def widened_axis(
    before: Sequence[Axis], axis: int, after: Sequence[Axis], labels: Sequence[int | None]
) -> tuple[int, int] | None:
    """Return the axis that an axis and the next one become together, and the length of the latter; None if none does.

    So a nearest neighbor is written that repeats each row: (H, 1) to (H, 2) to 2 H; and a DepthToSpace.
    """
    length, factor = before[axis], before[axis + 1] if axis + 1 < len(before) else None
    if not isinstance(length, int) or not isinstance(factor, int) or labels[axis + 1] is not None:
        return None
    fitting = [
        x
        for x in range(len(after))
        if after[x] == length * factor
        and (_as_many(before[:axis], after[:x]) or _as_many(before[axis + 2 :], after[x + 1 :]))
    ]
    return (fitting[0], factor) if len(fitting) == 1 else None


def _as_many(some: Sequence[Axis], others: Sequence[Axis]) -> bool:
    """Return whether axes hold as many numbers as others; False where a length is unknown."""
    counts = []
    for sides in (some, others):
        lengths = [side for side in sides if isinstance(side, int)]
        names = sorted(side for side in sides if isinstance(side, str))
        if len(lengths) + len(names) < len(sides):
            return False
        counts.append((math.prod(lengths), names))
    return counts[0] == counts[1]
