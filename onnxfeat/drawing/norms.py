"""Map values to colors as matplotlib does it: the norm of a scale, norms that the caller passes, and their limits."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from onnxfeat.drawing.scales import LEVELS, Scale
from onnxfeat.errors import PictureError, quote

if TYPE_CHECKING:
    from matplotlib.colors import Normalize


def norm_of(norm: str | Normalize | None) -> Normalize | None:
    """Return the norm that is meant, as `imshow` takes it: one, the name of a scale such as `log`, or none.

    Raises:
        PictureError: It is nothing of this.

    Example:
        >>> norm_name(norm_of("log"))
        'LogNorm'
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.scale import get_scale_names

    if norm is None or isinstance(norm, Normalize):
        return norm
    if not isinstance(norm, str):
        raise PictureError(
            f"norm {norm!r} is nothing that maps values to colors: pass one of matplotlib.colors, such as LogNorm()"
        )
    names = [name for name in get_scale_names() if not name.startswith("function")]  # these need functions
    if norm not in names:
        raise PictureError(
            f"norm {norm!r} is no scale of matplotlib: choose {quote(names)}, or pass LogNorm() and such"
        )
    # Its type hints know neither strings nor that it gives a Normalize.
    return cast("Normalize", ScalarMappable(cast(Any, norm)).norm)


def norm_name(norm: Normalize) -> str:
    """Return what a norm is called; matplotlib calls that of the scale `log` a LogScaleNormalize."""
    return type(norm).__name__.replace("ScaleNormalize", "Norm")


def norm_of_scale(scale: Scale, *, units: bool) -> Normalize:
    """Return what maps to colors: values in their own units by their one scale, or levels from end to end.

    Args:
        scale: A scale, of which the first channel counts.
        units: Whether values are mapped; else levels.
    """
    from matplotlib.colors import FuncNorm, Normalize

    if not units:
        return Normalize(0, LEVELS - 1)
    low, middle, high = (float(end) for end in (scale.low[0, 0], scale.middle[0, 0], scale.high[0, 0]))
    if scale.reach[0, 0] == 0:  # no contrast: in the middle, as everywhere
        aside = max(1.0, abs(middle))
        return Normalize(middle - aside, middle + aside)
    if scale.method != "log":
        return Normalize(low, high)
    # Exact at the ends of each level; below the lower end as above it, since a colorbar looks beyond its ends.
    parts = np.linspace(0, 2, 2 * LEVELS + 1)
    curve = scale.values_at(parts)[0, 0]
    parts, curve = np.append(-parts[:0:-1], parts), np.append(2 * low - curve[:0:-1], curve)
    return FuncNorm((lambda x: np.interp(x, curve, parts), lambda part: np.interp(part, parts, curve)), low, high)


def set_limits(norm: Normalize | None, images: Sequence[NDArray[Any]]) -> None:
    """Give a norm without limits those of the values of all images; left to itself it takes those of the first.

    Raises:
        PictureError: None of the values can be a limit.
    """
    if norm is None or norm.scaled() or not images:
        return
    found = [limits for values in images if (limits := _limits(norm, values)) is not None]
    if not found:
        raise PictureError(
            f"{norm_name(norm)} finds no limits among the values: pass it vmin and vmax, or choose another norm"
        )
    norm.vmin, norm.vmax = min(low for low, _ in found), max(high for _, high in found)


def _limits(norm: Normalize, values: NDArray[Any]) -> tuple[float, float] | None:
    """Return the limits that a norm finds for some values, or None where they give none."""
    alone = copy.deepcopy(norm)
    alone.autoscale_None(values)
    if np.ma.count(values) == 0 or alone.vmin is None or alone.vmax is None:
        return None
    try:
        alone.inverse(np.ones(1))
    except ValueError:  # as LogNorm's, where no value is positive
        return None
    return alone.vmin, alone.vmax
