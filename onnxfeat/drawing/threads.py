"""Do the same work in many places at once: NumPy and zlib let other threads run meanwhile."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_Place = TypeVar("_Place")
_Made = TypeVar("_Made")

_MOST_THREADS = 8  # each holds a picture


def in_threads(
    work: Callable[[_Place], _Made], places: Sequence[_Place], threads: int | None = None
) -> Iterator[_Made]:
    """Yield what the work makes of each place, in their order.

    Args:
        work: The work.
        places: Where it is to be done.
        threads: How many at once; None is one for each core, at most 8.

    Example:
        >>> list(in_threads(abs, [-1, 2, -3]))
        [1, 2, 3]
    """
    count = min(_MOST_THREADS, os.cpu_count() or 1) if threads is None else threads
    if count == 1 or len(places) < 2:
        yield from map(work, places)
        return
    with ThreadPoolExecutor(count) as pool:
        try:
            yield from pool.map(work, places)
        finally:
            pool.shutdown(cancel_futures=True)
