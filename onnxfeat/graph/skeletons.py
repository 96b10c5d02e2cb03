"""Follow rows and columns of the picture through a graph: which steps lead to the map of each layer.

A value is *local* if each of its cells belongs to a place of the picture: then it is known which of its axes are the
picture's rows and columns, and the step that gives them. What convs, pools and cell-by-cell operators make of local
values is local. An operator that mixes all places (global pooling, attention), or that is not known here, ends it. A
value that is the same in all places and is multiplied with a local one (a gate) does not: each cell keeps its place,
but sees the whole picture too, which is noted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import onnx

from onnxfeat.graph.axis_operations import (
    FAR,
    block_steps,
    pad_steps,
    resize_steps,
    slice_steps,
    spread_steps,
    window_steps,
)
from onnxfeat.graph.flattening import names_used
from onnxfeat.graph.geometry import WINDOWED
from onnxfeat.graph.lengths import Length, entries_of
from onnxfeat.graph.reading import CELL_BY_CELL, Graph, axis_order, number, numbers, operator, reduced_axes
from onnxfeat.graph.reshaping import same_axis, widened_axis
from onnxfeat.records import Axis, Layer, ModelInput
from onnxfeat.registration import AxisStep, Pad, Place, Repeat, Resize, Skeleton, Slice, Step

_ROWS, _COLUMNS = 0, 1

_CHANNELS_LAST = frozenset("NhwcConv NhwcFusedConv NhwcMaxPool".split())
_ONLY_SHAPE = frozenset("Shape Size".split())  # give the same for all pictures of one size
_NORMALIZING = frozenset("InstanceNormalization GroupNormalization GroupNorm MeanVarianceNormalization".split())
_LAYER_NORMS = frozenset("LayerNormalization RMSNormalization SimplifiedLayerNormalization".split())
_REDUCING = frozenset(
    "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum "
    "ReduceSumSquare".split()
)
_EVERYWHERE_THE_SAME = (CELL_BY_CELL - {"Concat", "Pad", "Slice"}) | frozenset("Resize Upsample Expand Tile".split())
# Cells in one place only, although `CELL_BY_CELL` does not list them.
_IN_PLACE = frozenset("And BatchNormalization LRN Or Softsign Xor Sin Cos Mod BitShift IsNaN IsInf".split())


@dataclass(frozen=True, slots=True)
class _Local:
    """A value each of whose cells has a place: the step that gives it; rows (0) and columns (1) among its axes."""

    step: int
    axes: tuple[int | None, ...]
    gated: bool = False

    def at(self, steps: Mapping[int, AxisStep]) -> dict[int, AxisStep]:
        """Return by rows and columns what is done to this value's axes, those of other meaning left out."""
        return {label: steps[axis] for axis, label in enumerate(self.axes) if label is not None and axis in steps}


def skeleton_of(graph: Graph, target: ModelInput | None, layers: Sequence[Layer]) -> Skeleton:
    """Return the steps that lead from the picture to each layer.

    Args:
        graph: The model.
        target: The input that takes the picture; None where nothing tells, then no layer has a place.
        layers: The layers; the places of the skeleton are theirs, in order.

    Example:
        >>> from onnxfeat.graph.reading import read_graph
        >>> from onnxfeat.layers.inventory import list_layers
        >>> graph = read_graph("models/shapes_reference_layers.onnx")
        >>> skeleton = skeleton_of(graph, graph.document.exposed.input, list_layers(graph)[:2])
        >>> [step.to_json() for step in skeleton.steps]
        [[[]], [[0], 'window', [3, 1, 1, 0, 0, '', 0]], [[1], 'window', [2, 2, 1, 0, 0, '', 0]]]
    """
    if target is None or not target.is_picture:
        return Skeleton(places=(None,) * len(layers))
    tracer = _Tracer(graph, target)
    places = [_place(tracer.locals.get(layer.value), layer.layout) for layer in layers]
    return _pruned(tracer.steps, places)


def _place(found: _Local | None, layout: str | None) -> Place | None:
    """Return where a layer's map comes from, if its layout agrees on which axes are rows and columns."""
    if found is None or layout is None or len(layout) != len(found.axes):
        return None
    letters: dict[int | None, str] = {_ROWS: "H", _COLUMNS: "W"}
    agrees = all(letters.get(label) == (x if x in "HW" else None) for label, x in zip(found.axes, layout, strict=True))
    return Place(found.step, found.gated) if agrees else None


def _pruned(steps: Sequence[Step], places: Sequence[Place | None]) -> Skeleton:
    """Leave the steps that the places need, and number them anew."""
    wanted = {place.step for place in places if place is not None}
    for position in range(len(steps) - 1, -1, -1):
        if position in wanted:
            wanted.update(steps[position].parents)
    new = {position: number for number, position in enumerate(sorted(wanted))}
    kept = tuple(replace(steps[x], parents=tuple(new[parent] for parent in steps[x].parents)) for x in sorted(wanted))
    moved = tuple(None if place is None else replace(place, step=new[place.step]) for place in places)
    return Skeleton(steps=kept, places=moved)


class _Tracer:
    """What is known of each value of a graph, worked out node by node.

    Attributes:
        steps: The steps so far; equal ones are shared.
        locals: Value name to what is known of it, for the local ones.
        mixed: Values that the picture tells, but whose cells have no place.
        flat: Those of them that are the same in all places.
    """

    def __init__(self, graph: Graph, target: ModelInput) -> None:
        self.graph = graph
        self.opset = next((x.version for x in graph.model.opset_import if x.domain in ("", "ai.onnx")), 1)
        labels = {"H": _ROWS, "W": _COLUMNS}
        self.steps = [Step()]
        self._positions = {self.steps[0]: 0}
        self.locals = {target.name: _Local(0, tuple(labels.get(letter) for letter in target.layout or ""))}
        self._lengths: dict[tuple[int, int], int] = {}
        self._learn_lengths(target.name)
        self.mixed: set[str] = set()
        self.flat: set[str] = set()
        for node in graph.nodes:
            self._follow(node)

    def _follow(self, node: onnx.NodeProto) -> None:
        used = list(names_used(node))
        if operator(node) in _ONLY_SHAPE or not any(name in self.locals or name in self.mixed for name in used):
            return
        has_branches = len(used) > len([name for name in node.input if name])
        outputs = [name for name in node.output if name]
        is_damaged = not node.input or not node.output  # nothing of it can be computed
        found = None if has_branches or is_damaged else self._behind(node)
        # A second output is a mask or positions; only those of a Split are maps too.
        maps = outputs if operator(node) == "Split" else outputs[:1]
        if found is not None:
            self.locals.update(dict.fromkeys(maps, found))
            for name in maps:
                self._learn_lengths(name)
            self.mixed.update(outputs[len(maps) :])
            return
        self.mixed.update(outputs)
        told = [name for name in used if name in self.locals or name in self.mixed]
        if operator(node) in _EVERYWHERE_THE_SAME and all(self._is_flat(name) for name in told):
            self.flat.update(outputs)

    def _is_flat(self, name: str) -> bool:
        """Return whether a mixed value is the same in all places: one cell, or made of one."""
        shape = self.graph.shape(name)
        one = shape is not None and len(shape) > 2 and sum(side != 1 for side in shape[1:]) <= 1
        return name in self.mixed and (name in self.flat or one)

    def _behind(self, node: onnx.NodeProto) -> _Local | None:
        """Return what is known behind a node that reads a local or mixed value; None where its cells have no place."""
        op_type = operator(node)
        if op_type in CELL_BY_CELL | _IN_PLACE and op_type not in _HANDLERS:
            return self._cell_by_cell(node, node.input)
        handler = _HANDLERS.get(op_type)
        # A Concat may start with a constant, a QLinearConcat does with a scale.
        names = node.input if op_type in _JOINING else node.input[:1]
        data = next((self.locals[name] for name in names if name in self.locals), None)
        found = None if handler is None or data is None else handler(self, node, data)
        # Weights, slopes and the like that the picture tells are a gate.
        others = any(name in self.locals or name in self.mixed for name in node.input[1:])
        return replace(found, gated=True) if found is not None and others and op_type not in _JOINING else found

    def _stepped(
        self, data: _Local, steps: Mapping[int, AxisStep], neutral: AxisStep, parents: tuple[int, ...] = ()
    ) -> int:
        """Return the position of a step behind a value: what is done to rows (0) and columns (1), or is neutral."""
        rows, columns = steps.get(_ROWS, neutral), steps.get(_COLUMNS, neutral)
        if rows.is_identity and columns.is_identity and not parents:
            return data.step
        return self._added(Step((data.step, *parents), rows, columns))

    def _added(self, step: Step) -> int:
        if step not in self._positions:
            self._positions[step] = len(self.steps)
            self.steps.append(step)
        return self._positions[step]

    def _joined(self, values: Sequence[_Local]) -> int:
        """Return the position of the union of values."""
        parents = tuple(dict.fromkeys(value.step for value in values))
        return parents[0] if len(parents) == 1 else self._added(Step(parents))

    def _cell_by_cell(self, node: onnx.NodeProto, names: Iterable[str]) -> _Local | None:
        """Follow an operator on the cells of one place; operands of lower rank are aligned at the last axis."""
        names = [name for name in names if name]
        values = [self.locals[name] for name in names if name in self.locals]
        if not values:
            return None
        rank = max([len(value.axes) for value in values] + [self.graph.rank(name) or 0 for name in names])
        axes = {(None,) * (rank - len(value.axes)) + value.axes for value in values}
        if len(axes) > 1 or self.graph.rank(node.output[0]) not in (None, rank):
            return None
        (order,) = axes
        gates = [name for name in names if name in self.mixed]
        if not all(self._is_gate(name, order) for name in gates):
            return None
        return _Local(self._joined(values), order, bool(gates) or any(value.gated for value in values))

    def _is_gate(self, name: str, axes: Sequence[int | None]) -> bool:
        """Return whether a mixed value is the same along rows and columns."""
        shape = self.graph.shape(name)
        if name in self.flat:
            return True
        if shape is None:
            return False
        offset = len(axes) - len(shape)
        return all(axis < offset or shape[axis - offset] == 1 for axis, label in enumerate(axes) if label is not None)

    def concat(self, node: onnx.NodeProto, data: _Local) -> _Local | None:
        """Follow a Concat of channels."""
        axis = number(node, "axis", 1) % len(data.axes)
        names = node.input[2::3] if operator(node) == "QLinearConcat" else node.input
        if data.axes[axis] is not None:
            return None
        return self._cell_by_cell(node, names)

    def window(self, node: onnx.NodeProto, data: _Local) -> _Local | None:
        """Follow a conv or pool; the sum that a fused conv adds is one more way to see."""
        last = operator(node) in _CHANNELS_LAST or bool(number(node, "channels_last", 0))
        is_spread = operator(node) == "ConvTranspose"
        steps = (spread_steps if is_spread else window_steps)(self.graph, node)
        spatial = (1, 2) if last else (2, 3)
        if steps is None or len(steps) != 2 or not _are_spatial(data.axes, spatial):
            return None
        by_label = data.at(dict(zip(spatial, steps, strict=True)))
        found = replace(data, step=self._stepped(data, by_label, steps[0]))
        added = node.input[3] if operator(node) in ("FusedConv", "NhwcFusedConv") and len(node.input) > 3 else ""
        if added in self.mixed:
            return None
        other = self.locals.get(added)
        if other is None:
            return found
        return replace(found, step=self._joined([found, other]), gated=found.gated or other.gated)

    def blocks(self, node: onnx.NodeProto, data: _Local) -> _Local | None:
        """Follow SpaceToDepth or DepthToSpace."""
        steps = block_steps(node)
        if steps is None or not _are_spatial(data.axes, (2, 3)):
            return None
        return replace(data, step=self._stepped(data, {_ROWS: steps[0], _COLUMNS: steps[1]}, steps[0]))

    def pad(self, node: onnx.NodeProto, data: _Local) -> _Local | None:
        """Follow a Pad of rows and columns; padded channels are blind."""
        steps = pad_steps(self.graph, node, len(data.axes))
        if steps is None:
            return None
        return replace(data, step=self._stepped(data, data.at(steps), _NO_PAD))

    def slice(self, node: onnx.NodeProto, data: _Local) -> _Local | None:
        """Follow a Slice."""
        steps = slice_steps(self.graph, node, len(data.axes))
        if steps is None or any(
            steps.get(axis, _NO_SLICE) is None for axis, x in enumerate(data.axes) if x is not None
        ):
            return None
        known = {axis: step for axis, step in steps.items() if step is not None}
        return replace(data, step=self._stepped(data, data.at(known), _NO_SLICE))

    def resize(self, node: onnx.NodeProto, data: _Local) -> _Local | None:
        """Follow a Resize or Upsample, also one to the size of another local value."""
        steps = resize_steps(self.graph, node, len(data.axes))
        if steps is None:
            return None
        by_label: dict[int, AxisStep] = {}
        likes: set[int | None] = set()
        for axis, label in enumerate(data.axes):
            if label is None or axis not in steps:
                continue
            found = steps[axis]
            if found is None:
                return None
            by_label[label] = found[0]
            if found[1] is None:
                likes.add(None)
                continue
            like = self.locals.get(found[1].value)
            if like is None or found[1].axis >= len(like.axes) or like.axes[found[1].axis] != label:
                return None
            likes.add(like.step)
        if len(likes) != 1:  # to the sizes of two values, or none: no exporter does so
            return data if not likes else None
        like_step = likes.pop()
        parents = () if like_step in (None, data.step) else (like_step,)
        neutral = next(iter(by_label.values()))
        if isinstance(neutral, Resize):
            neutral = replace(neutral, scale=1.0, length=0)
        return replace(data, step=self._stepped(data, by_label, neutral, tuple(x for x in parents if x is not None)))

    def reorder(self, node: onnx.NodeProto, data: _Local) -> _Local | None:
        """Follow a Transpose, or a Reshape that leaves rows and columns as they are."""
        order = axis_order(self.graph, node)
        if order is not None:
            return (
                replace(data, axes=tuple(data.axes[axis] for axis in order)) if len(order) == len(data.axes) else None
            )
        if operator(node) != "Reshape":
            return None
        before, after = self._reshaped(node, data)
        axes: list[int | None] = [None] * len(after)
        repeats: dict[int, AxisStep] = {}
        for axis, label in enumerate(data.axes):
            if label is not None:
                found = same_axis(before, axis, after) or widened_axis(before, axis, after, data.axes)
                if found is None or axes[found[0]] is not None:
                    return None
                axes[found[0]], repeats[label] = label, Repeat(found[1])
        return _Local(self._stepped(data, repeats, Repeat(1)), tuple(axes), data.gated)

    def _reshaped(self, node: onnx.NodeProto, data: _Local) -> tuple[list[Axis], list[Axis]]:
        """Return the shapes before and behind a Reshape, with names for the numbers of rows and columns that are open.

        All values of one step have as many of these, whichever of them the Reshape asks for its shape. Exporters
        compute the shape so that inference does not know it: what the nodes say is enough then.
        """
        shape, target = self.graph.shape(node.input[0]), self.graph.shape(node.output[0])
        ranks = {name: len(value.axes) for name, value in self.locals.items()}
        entries = entries_of(self.graph, node.input[1], ranks=ranks) or [] if len(node.input) > 1 else []
        if shape is not None and len(shape) != len(data.axes):
            return [None] * len(data.axes), []
        before: list[Axis] = [*shape] if shape is not None else [None] * len(data.axes)
        after: list[Axis] = [*target] if target is not None else [None] * len(entries)
        for axis, label in enumerate(data.axes):
            if label is not None and not isinstance(before[axis], int):
                before[axis] = self._length(data.step, label)
        for position, entry in enumerate(entries if len(entries) == len(after) else []):
            if isinstance(after[position], int):
                continue
            if isinstance(entry, float):
                after[position] = int(entry) if entry > 0 else after[position]
            elif isinstance(entry, Length) and entry.factor == 1 and entry.value in self.locals:
                asked = self.locals[entry.value]
                label = asked.axes[entry.axis] if entry.axis < len(asked.axes) else None
                if asked.step == data.step and label is not None:
                    after[position] = self._length(data.step, label)
        return before, after

    def _length(self, step: int, label: int) -> Axis:
        """Return the number of rows or columns of the values of a step, or a name for it where it is open."""
        return self._lengths.get((step, label), "rows" if label == _ROWS else "columns")

    def _learn_lengths(self, name: str) -> None:
        """Note the numbers of rows and columns of a local value: all values of its step have as many."""
        found, shape = self.locals[name], self.graph.shape(name)
        for label, side in zip(found.axes, shape or (), strict=False):
            if label is not None and isinstance(side, int):
                self._lengths[found.step, label] = side

    def tile(self, node: onnx.NodeProto, data: _Local) -> _Local | None:
        """Follow a Tile or Expand of axes other than rows and columns."""
        before, after = self.graph.shape(node.input[0]), self.graph.shape(node.output[0])
        if before is None or after is None or len(before) != len(data.axes) or len(after) < len(before):
            return None
        new = (None,) * (len(after) - len(before))  # Expand may put axes in front
        kept = [axis for axis, label in enumerate((*new, *data.axes)) if label is not None]
        same = all(isinstance(after[axis], int) and after[axis] == before[axis - len(new)] for axis in kept)
        return replace(data, axes=(*new, *data.axes)) if same else None

    def reduce(self, node: onnx.NodeProto, data: _Local) -> _Local | None:
        """Follow a reduction over axes other than rows and columns."""
        axes = [number(node, "axis", 0)] if operator(node) in ("ArgMax", "ArgMin") else reduced_axes(self.graph, node)
        return None if not axes else _without(data, axes, keep=bool(number(node, "keepdims", 1)))

    def squeeze(self, node: onnx.NodeProto, data: _Local) -> _Local | None:
        """Follow a Squeeze of axes other than rows and columns."""
        axes = self._axes(node)
        return None if axes is None else _without(data, axes, keep=False)

    def unsqueeze(self, node: onnx.NodeProto, data: _Local) -> _Local | None:
        """Follow an Unsqueeze."""
        axes = self._axes(node)
        if axes is None:
            return None
        rank = len(data.axes) + len(axes)
        new = {axis % rank for axis in axes}
        if len(new) != len(axes):
            return None
        old = iter(data.axes)
        return replace(data, axes=tuple(None if axis in new else next(old) for axis in range(rank)))

    def _axes(self, node: onnx.NodeProto) -> list[int] | None:
        axes = numbers(node, "axes")
        if axes is None and len(node.input) > 1:  # an input since opset 13
            entries = entries_of(self.graph, node.input[1]) or []
            axes = [int(x) for x in entries if isinstance(x, float)] or None
        return axes

    def split(self, node: onnx.NodeProto, data: _Local) -> _Local | None:
        """Follow a Split of channels."""
        return data if data.axes[number(node, "axis", 0) % len(data.axes)] is None else None

    def gather(self, node: onnx.NodeProto, data: _Local) -> _Local | None:
        """Follow a Gather of channels."""
        axis, rank = number(node, "axis", 0) % len(data.axes), self.graph.rank(node.input[1])
        if data.axes[axis] is not None or rank is None or node.input[1] in self.locals:
            return None
        return replace(data, axes=data.axes[:axis] + (None,) * rank + data.axes[axis + 1 :])

    def softmax(self, node: onnx.NodeProto, data: _Local) -> _Local | None:
        """Follow a Softmax over channels; before operator set 13 it takes all axes from its own on together."""
        axis = number(node, "axis", -1 if self.opset >= 13 else 1) % len(data.axes)
        over = data.axes[axis : axis + 1] if self.opset >= 13 else data.axes[axis:]
        return None if any(label is not None for label in over) else data

    def layer_norm(self, node: onnx.NodeProto, data: _Local) -> _Local | None:
        """Follow a normalization over the last axes; over rows and columns too it looks at the whole picture."""
        over = data.axes[number(node, "axis", -1) % len(data.axes) :]
        return replace(data, gated=data.gated or any(label is not None for label in over))

    def norm(self, node: onnx.NodeProto, data: _Local) -> _Local | None:
        """Follow a normalization with mean and deviation of the whole picture."""
        del node
        return replace(data, gated=True)

    def product(self, node: onnx.NodeProto, data: _Local) -> _Local | None:
        """Follow a product of the channels, on the last axis, with a matrix of weights."""
        position = 3 if operator(node) == "QLinearMatMul" else 1
        weights = node.input[position]
        blind = weights not in self.locals and weights not in self.mixed
        return (
            data if blind and data.axes[-1] is None and self.graph.rank(weights) == 2 and len(data.axes) > 2 else None
        )


_NO_PAD, _NO_SLICE = Pad(0, 0), Slice(0, FAR)


def _are_spatial(axes: Sequence[int | None], spatial: tuple[int, int]) -> bool:
    """Return whether rows and columns are on these axes, in either order."""
    return len(axes) == 4 and {axis for axis, label in enumerate(axes) if label is not None} == set(spatial)


def _without(data: _Local, axes: Sequence[int], *, keep: bool) -> _Local | None:
    gone = {axis % len(data.axes) for axis in axes}
    if any(data.axes[axis] is not None for axis in gone):
        return None
    return data if keep else replace(data, axes=tuple(x for axis, x in enumerate(data.axes) if axis not in gone))


_Handler = Callable[[_Tracer, onnx.NodeProto, _Local], _Local | None]

_HANDLERS: dict[str, _Handler] = {
    **dict.fromkeys(WINDOWED, _Tracer.window),
    **dict.fromkeys(("SpaceToDepth", "DepthToSpace"), _Tracer.blocks),
    **dict.fromkeys(("Concat", "QLinearConcat"), _Tracer.concat),
    "Pad": _Tracer.pad,
    "Slice": _Tracer.slice,
    **dict.fromkeys(("Resize", "Upsample"), _Tracer.resize),
    **dict.fromkeys(("Transpose", "Reshape"), _Tracer.reorder),
    **dict.fromkeys(("Tile", "Expand"), _Tracer.tile),
    **dict.fromkeys((*_REDUCING, "ArgMax", "ArgMin"), _Tracer.reduce),
    "Squeeze": _Tracer.squeeze,
    "Unsqueeze": _Tracer.unsqueeze,
    "Split": _Tracer.split,
    "Gather": _Tracer.gather,
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), _Tracer.softmax),
    **dict.fromkeys(_LAYER_NORMS, _Tracer.layer_norm),
    **dict.fromkeys(_NORMALIZING, _Tracer.norm),
    **dict.fromkeys(("MatMul", "MatMulInteger", "QLinearMatMul"), _Tracer.product),
}
_JOINING = frozenset("Concat QLinearConcat FusedConv NhwcFusedConv".split())  # of several maps, none of them a gate
