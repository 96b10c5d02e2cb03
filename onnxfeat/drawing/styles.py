"""Hold every choice of how a feature map becomes a picture, checked in one place."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypedDict, cast, get_args

from onnxfeat.errors import PictureError, nearest, quote
from onnxfeat.serialization import fields_to_json

if TYPE_CHECKING:
    from collections.abc import Mapping

Normalization = Literal["zscore", "minmax", "percentile", "symmetric", "log"]
ScaleOver = Literal["channel", "layer", "batch"]
Arrange = Literal["belt", "grid", "channel", "sheet"]
Order = Literal["index", "magnitude", "variance", "similarity"]
Dead = Literal["keep", "last", "omit"]
Reduction = Literal["mean", "max", "l2", "pca"]

MAX_BELT = 4096
"""Width in pixels past which a belt is drawn as a grid: twice the width of a usual screen."""

_CHOICES: Mapping[str, tuple[Any, ...]] = {
    "normalize": get_args(Normalization),
    "scale_over": get_args(ScaleOver),
    "arrange": (None, *get_args(Arrange)),
    "order": get_args(Order),
    "dead": get_args(Dead),
    "reduce": (None, *get_args(Reduction)),
}
_NOT_WITH_REDUCE = ("channels", "order", "top", "dead")
_NOT_WITH_COMPONENTS = ("normalize", "percentiles", "colormap")
_NOT_WITH_OVERLAY = ("normalize", "percentiles", "arrange", "order", "top", "dead", "max_belt")
_LEAST = {"top": 1, "zoom": 1, "max_belt": 1}  # of the whole numbers


class StyleChoices(TypedDict, total=False):
    """The fields of `Style` as keyword arguments."""

    normalize: Normalization
    scale_over: ScaleOver
    percentiles: tuple[float, float]
    arrange: Arrange | None
    channels: tuple[int, ...] | None
    order: Order
    top: int | None
    dead: Dead
    reduce: Reduction | None
    overlay: bool
    colormap: str | None
    aspect: float
    zoom: int | None
    hidpi: bool
    frame: bool
    max_belt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """How a feature map becomes a picture.

    Attributes:
        normalize: What the colors stand for. `zscore`: mean and deviation, from -2 to +2 deviations (the reference);
            `minmax`: least to greatest value; `percentile`: the same without outliers; `symmetric`: 0 in the middle,
            as far to both sides as the greatest absolute value; `log`: least to greatest value, small ones spread.
        scale_over: What shares a scale: each `channel` of each picture has its own, each `layer` of each picture, or
            a layer in all pictures of the `batch`, so that they compare. An overlay has one for each picture, or for
            all with `batch`.
        percentiles: Both ends of the scale of `percentile`, in percent.
        arrange: `belt` (all channels in a row), `grid` (rows and columns), `channel` (one channel, large), or `sheet`
            (all layers on one picture); None is a belt, or a grid where that were wider than `max_belt`.
        channels: Which channels, by index; None takes all.
        order: `index`, `magnitude` (mean absolute value, greatest first), `variance` (greatest first), or
            `similarity` (channels that look alike side by side).
        top: How many channels of that order; None takes all, with `channel` the first.
        dead: What becomes of channels that are constant or 0 everywhere: they `keep` their place, come `last`, or are
            left out (`omit`). They are counted always.
        reduce: Make one picture of all channels: their `mean`, `max`, `l2` norm, or the three principal components as
            red, green and blue (`pca`); None draws the channels.
        overlay: Whether to draw the layer over the photograph, where its cells look: the mean of its channels, unless
            `reduce` or a single channel says otherwise.
        colormap: `viridis`, `magma`, `cividis`, `gray`, `coolwarm`, or any name that matplotlib knows; None is
            viridis, and coolwarm where 0 is the middle.
        aspect: Width over height that a grid comes near to.
        zoom: Pixels for a cell, along both axes; None is the most that keep a picture within a screen's width.
        hidpi: Twice the pixels for everything, for screens and prints of high density.
        frame: Whether the picture has title, channel numbers and scale; else its pixel values are the gray levels.
        max_belt: Largest width of a belt or strip in pixels.

    Raises:
        PictureError: A choice is none of these.

    Example:
        >>> Style(normalize="minmax", scale_over="layer").changed()
        {'normalize': 'minmax', 'scale_over': 'layer'}
    """

    normalize: Normalization = "zscore"
    scale_over: ScaleOver = "channel"
    percentiles: tuple[float, float] = (1.0, 99.0)
    arrange: Arrange | None = None
    channels: tuple[int, ...] | None = None
    order: Order = "index"
    top: int | None = None
    dead: Dead = "keep"
    reduce: Reduction | None = None
    overlay: bool = False
    colormap: str | None = None
    aspect: float = 1.5
    zoom: int | None = None
    hidpi: bool = False
    frame: bool = True
    max_belt: int = MAX_BELT

    def __post_init__(self) -> None:
        """Refuse what is no choice."""
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                names = [choice for choice in choices if choice is not None]
                raise PictureError(f"{name} {value!r} is unknown: choose {quote(names)}")
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < least):
                raise PictureError(f"{name} is {value!r}, and a whole number is wanted: pass {least} or more")
        check_percentiles(self.percentiles)
        if not self.aspect > 0:
            raise PictureError(f"aspect is {self.aspect}, width over height: pass a number above 0, such as 1.5")
        if self.overlay:
            self._refuse_beside("overlay", "lays one picture of a layer over the photograph", _NOT_WITH_OVERLAY)
            if self.channels is not None and (len(self.channels) != 1 or self.reduce is not None):
                raise PictureError("overlay draws one channel, or what reduce makes of all: pass one of both")
        elif self.reduce is not None:
            self._refuse_beside(f"reduce {self.reduce!r}", "makes one picture of all channels", _NOT_WITH_REDUCE)
        if self.reduce == "pca" and self.arrange == "sheet":
            raise PictureError("reduce 'pca' has colors of its own, and a sheet has one scale: leave out one of them")
        if self.reduce == "pca":
            self._refuse_beside("reduce 'pca'", "has colors and a scale of its own", _NOT_WITH_COMPONENTS)

    def _refuse_beside(self, choice: str, what: str, others: tuple[str, ...]) -> None:
        """Refuse choices that would have no effect beside another one."""
        changed = [name for name in others if getattr(self, name) != _DEFAULTS[name]]
        if changed:
            raise PictureError(f"{choice} {what}, so {quote(changed)} has no effect on it: leave it out")

    @property
    def colors(self) -> str:
        """Name of the colormap."""
        return self.colormap or ("coolwarm" if self.normalize == "symmetric" else "viridis")

    @property
    def most(self) -> int | None:
        """How many channels are drawn at most; None draws all."""
        return 1 if self.arrange == "channel" and self.top is None and self.channels is None else self.top

    @property
    def density(self) -> int:
        """Pixels for each pixel of a usual screen: 1 or 2."""
        return 2 if self.hidpi else 1

    @property
    def in_one_pass(self) -> bool:
        """Whether a picture can be drawn before the others of the call have been seen."""
        return self.scale_over != "batch" and self.reduce != "pca"

    def changed(self) -> dict[str, Any]:
        """Return the fields that are not as by default, as JSON data."""
        return {
            field.name: value
            for field, value in zip(dataclasses.fields(self), fields_to_json(self).values(), strict=True)
            if getattr(self, field.name) != field.default
        }

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON data."""
        return fields_to_json(self)


_DEFAULTS = {field.name: field.default for field in dataclasses.fields(Style)}


def check_percentiles(percentiles: tuple[float, float]) -> None:
    """Raise a `PictureError` unless these are two percentages in order."""
    values = tuple(percentiles)
    if len(values) != 2 or not 0 <= values[0] < values[1] <= 100:
        raise PictureError(f"percentiles are {values}, two numbers from 0 to 100 in order are wanted: such as (1, 99)")


def styled(style: Style | None, choices: StyleChoices) -> Style:
    """Return a style with single fields changed.

    Raises:
        PictureError: A field or its value is unknown.

    Example:
        >>> styled(Style(top=8), {"order": "variance"}).changed()
        {'order': 'variance', 'top': 8}
    """
    known = [field.name for field in dataclasses.fields(Style)]
    for name in choices:
        if name not in known:
            near = nearest(name, known)
            raise PictureError(f"there is no choice {name!r} of how to draw: {quote(near or known)}")
    fields = dict(choices)
    for name in ("channels", "percentiles"):
        if fields.get(name) is not None:
            fields[name] = tuple(cast(Any, fields[name]))
    return dataclasses.replace(style or Style(), **cast(Any, fields))
