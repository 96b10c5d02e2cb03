"""Record which pixels each cell of a map sees: the steps that lead from the picture to the map, for any picture size.

A *skeleton* holds what convs, pools and resizes do to rows and columns, and nothing else. Rows and columns never mix
in these operators, so a step tells for each of the two axes which cells before it one cell behind it looks at
(`onnxfeat.drawing.receptive_fields` works that out). As JSON a step is its parents, its operation and the numbers of
that for rows and, where they differ, for columns:

    [[]]                                        the picture, always the first step
    [[0], "window", [3, 2, 1, 1, 1, "", 0]]     a conv of 3 x 3, stride 2, padding 1
    [[1, 0]]                                    two maps added or joined by channels
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from onnxfeat.preprocessing import Aspect, Interpolation, Resampling

Same = Literal["", "upper", "lower"]
PadMode = Literal["constant", "reflect", "edge", "wrap"]
ResizeMode = Literal["nearest", "linear", "cubic"]
Coordinates = Literal["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "tf_half_pixel_for_nn"]
Nearest = Literal["round_prefer_floor", "round_prefer_ceil", "floor", "ceil", "simple"]

_MOST = 1 << 31  # no kernel, padding or position is larger; anybody may have edited the file


@dataclass(frozen=True, slots=True)
class Window:
    """A conv or pool along one axis: cell o sees the cells `o * stride + k * dilation - before` for k below `kernel`.

    Attributes:
        kernel: Cells that the kernel covers.
        stride: Cells from one place of the kernel to the next.
        dilation: Cells from one point of the kernel to the next.
        before: Padding in front.
        after: Padding behind.
        same: Where the odd cell of a padding goes that keeps length / stride: `upper` is behind, `lower` in front;
            empty where the padding is given.
        ceil: Whether a last window counts that is not full.
    """

    kernel: int
    stride: int = 1
    dilation: int = 1
    before: int = 0
    after: int = 0
    same: Same = ""
    ceil: bool = False

    @property
    def is_identity(self) -> bool:
        """Whether each cell sees the one at its own place and no other."""
        # A kernel of one cell needs no padding to keep the length.
        return self.kernel == self.stride == 1 and (bool(self.same) or self.before == self.after == 0)


@dataclass(frozen=True, slots=True)
class Spread:
    """A transposed conv along one axis: cell i is added to the cells `i * stride + k * dilation - before`.

    Attributes:
        kernel: Cells that the kernel covers.
        stride: Cells from one place of the kernel to the next.
        dilation: Cells from one point of the kernel to the next.
        before: Padding in front, which is cut off.
        after: Padding behind, which is cut off.
        extra: Cells to add behind.
        same: As for `Window`, where the result is to be `stride` times as long; empty where the padding is given.
        length: Length of the result where that is given and the padding follows; else 0.
    """

    kernel: int
    stride: int = 1
    dilation: int = 1
    before: int = 0
    after: int = 0
    extra: int = 0
    same: Same = ""
    length: int = 0

    @property
    def is_identity(self) -> bool:
        """Whether each cell sees the one at its own place and no other."""
        return self == Spread(1)


@dataclass(frozen=True, slots=True)
class Pad:
    """Cells put in front and behind, or taken away where the number is negative."""

    before: int
    after: int
    mode: PadMode = "constant"

    @property
    def is_identity(self) -> bool:
        """Whether nothing is put in or taken away."""
        return self.before == self.after == 0


@dataclass(frozen=True, slots=True)
class Slice:
    """Every `step`-th cell from `start` to before `stop`; negative numbers count from the end, as in Python."""

    start: int
    stop: int
    step: int = 1

    @property
    def is_identity(self) -> bool:
        """Whether it takes all cells."""
        return self.start == 0 and self.stop >= _MOST - 1 and self.step == 1


@dataclass(frozen=True, slots=True)
class Repeat:
    """Each cell `factor` times, as DepthToSpace spreads its channels."""

    factor: int

    @property
    def is_identity(self) -> bool:
        """Whether each cell stays as it is."""
        return self.factor == 1


@dataclass(frozen=True, slots=True)
class Resize:
    """A resize along one axis, in the words of ONNX's Resize (https://onnx.ai/onnx/operators/onnx__Resize.html).

    Attributes:
        mode: How a cell is made of those near its place.
        coordinates: Where its place is.
        nearest: Which cell is the nearest one; `simple` is the rule of Upsample and of Resize in operator set 10.
        scale: Length of the result, divided by that of the value before; where the step has a second parent, by that
            of this one.
        length: Length of the result where that is given; else 0.
    """

    mode: ResizeMode
    coordinates: Coordinates
    nearest: Nearest
    scale: float = 1.0
    length: int = 0

    @property
    def is_identity(self) -> bool:
        """Whether each cell stays as it is."""
        return self.scale == 1 and not self.length


AxisStep = Window | Spread | Pad | Slice | Repeat | Resize
"""What one step does along one axis."""

_NAMES: dict[str, type[AxisStep]] = {
    "window": Window,
    "spread": Spread,
    "pad": Pad,
    "slice": Slice,
    "repeat": Repeat,
    "resize": Resize,
}
_CHOICES: dict[str, tuple[str, ...]] = {
    "same": get_args(Same),
    "coordinates": get_args(Coordinates),
    "nearest": get_args(Nearest),
}
_MODES = {Pad: get_args(PadMode), Resize: get_args(ResizeMode)}
_POSITIVE = ("kernel", "stride", "dilation", "factor")
_COUNTS = ("extra", "length")  # at least 0


@dataclass(frozen=True, slots=True)
class Step:
    """One step from the picture to a map.

    Attributes:
        parents: Positions of the steps before it: none for the picture; several where maps are added or joined; for a
            resize to the size of another map, the latter comes second.
        rows: What it does to rows; None for the picture and where maps are added or joined.
        columns: What it does to columns.
    """

    parents: tuple[int, ...] = ()
    rows: AxisStep | None = None
    columns: AxisStep | None = None

    def to_json(self) -> list[Any]:
        """Return the step as JSON data (see the module)."""
        data: list[Any] = [list(self.parents)]
        if self.rows is not None and self.columns is not None:
            name = next(name for name, kind in _NAMES.items() if isinstance(self.rows, kind))
            axes = [self.rows] if self.rows == self.columns else [self.rows, self.columns]
            data += [name, *(_numbers_of(axis) for axis in axes)]
        return data

    @classmethod
    def from_json(cls, data: Sequence[Any]) -> Step:
        """Return the step that `to_json` wrote.

        Raises:
            ValueError: It is none.
        """
        parents, *operation = data
        if not operation:
            return cls(parents=tuple(parents))
        name, rows, *others = operation
        columns = others[0] if others else rows
        return cls(parents=tuple(parents), rows=_axis_step(name, rows), columns=_axis_step(name, columns))


@dataclass(frozen=True, slots=True)
class Place:
    """Where a layer's map comes from: the step that gives it, and whether a gate lets it see the whole picture too."""

    step: int
    gated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Skeleton:
    """The steps that lead from the picture to some layers.

    Attributes:
        steps: The steps, each behind its parents; the first is the picture.
        places: For each of the layers where its map comes from, or None where no cell of it belongs to a place.

    Example:
        >>> skeleton = Skeleton(steps=(Step(), Step((0,), Window(3), Window(3))), places=(Place(1), None))
        >>> Skeleton.from_json(skeleton.to_json()) == skeleton
        True
    """

    steps: tuple[Step, ...] = ()
    places: tuple[Place | None, ...] = ()

    def places_of(self, names: Sequence[str]) -> dict[str, Place]:
        """Return layer name to place, of the layers with these names in order, as far as they have one.

        A file that an older version exposed tells none.
        """
        return {name: place for name, place in zip(names, self.places, strict=False) if place is not None}

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON data."""
        places = [None if place is None else [place.step, int(place.gated)] for place in self.places]
        return {"steps": [step.to_json() for step in self.steps], "places": places}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Skeleton:
        """Return the record that `to_json` wrote.

        Raises:
            ValueError: It is none: a step has parents behind it, or numbers that can't be.
        """
        steps = tuple(Step.from_json(step) for step in data["steps"])
        for position, step in enumerate(steps):
            wanted = 0 if position == 0 else len(step.parents)
            known = all(type(parent) is int and 0 <= parent < position for parent in step.parents)
            if not known or len(step.parents) != wanted or (position > 0) != bool(step.parents):
                raise ValueError(f"step {position} with parents {step.parents!r:.80}")
            most = 2 if isinstance(step.rows, Resize) else 1
            if step.rows is not None and len(step.parents) > most:
                raise ValueError(f"step {position} with {len(step.parents)} parents")
        places: list[Place | None] = []
        for place in data["places"]:
            if place is None:
                places.append(None)
                continue
            step, gated = place  # raises a `ValueError` where it is no pair
            if type(step) is not int or not 0 <= step < len(steps):
                raise ValueError(f"place {step!r:.80} of {len(steps)} steps")
            places.append(Place(step, bool(gated)))
        return cls(steps=steps, places=tuple(places))


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """How the cells of a map lie on the picture it was made from.

    Attributes:
        steps: The steps from the picture to the map (see `Skeleton`), shared by all maps of a model.
        step: Position of the one that gives the map.
        size: Rows and columns of the model's input.
        aspect: How the picture was fitted to that (see `Preprocessing`).
        resampling: Whose resize it was, which decides how margins are rounded.
        interpolation: Filter of that resize.
        gated: Whether each cell also sees the whole picture, by a gate (squeeze-and-excite) or a normalization.

    Example:
        >>> steps = (Step(), Step((0,), Window(3), Window(3)))
        >>> Registration(steps=steps, step=1, size=(150, 150)).gated
        False
    """

    steps: tuple[Step, ...]
    step: int
    size: tuple[int, int]
    aspect: Aspect = "stretch"
    resampling: Resampling = "pillow"
    interpolation: Interpolation = "bilinear"
    gated: bool = False


def _numbers_of(step: AxisStep) -> list[Any]:
    values = (getattr(step, field.name) for field in dataclasses.fields(step))
    return [int(value) if isinstance(value, bool) else value for value in values]


def _axis_step(name: Any, values: Any) -> AxisStep:
    """Return what `_numbers_of` made a list of; raise a `ValueError` for numbers that can't be."""
    kind = _NAMES[name]
    fields = [field.name for field in dataclasses.fields(kind)]
    for field, value in zip(fields, values, strict=True):
        if not _is_possible(kind, field, value):
            raise ValueError(f"{field} {value!r:.80} of a {name}")
    given = dict(zip(fields, values, strict=True))
    if "ceil" in given:
        given["ceil"] = bool(given["ceil"])
    return kind(**given)


def _is_possible(kind: type[AxisStep], field: str, value: Any) -> bool:
    if field == "mode" or field in _CHOICES:
        return value in (_MODES[kind] if field == "mode" else _CHOICES[field])
    if field == "scale":
        return isinstance(value, int | float) and math.isfinite(value) and value > 0
    if type(value) is not int or abs(value) > _MOST:
        return False
    if field == "step":
        return value != 0
    return value >= 1 if field in _POSITIVE else value >= 0 or field not in _COUNTS
