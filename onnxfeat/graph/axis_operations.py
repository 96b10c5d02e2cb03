"""Tell what a node does along rows and columns: its attributes and constant inputs as steps of a skeleton."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast, get_args

import onnx

from onnxfeat.graph.geometry import kernel_of
from onnxfeat.graph.lengths import Entry, Length, entries_of
from onnxfeat.graph.reading import Graph, number, numbers, operator
from onnxfeat.registration import (
    AxisStep,
    Coordinates,
    Nearest,
    Pad,
    PadMode,
    Repeat,
    Resize,
    ResizeMode,
    Same,
    Slice,
    Spread,
    Window,
)

FAR = 1 << 31
"""Farther than any axis is long: ONNX writes "to the end" as the largest number there is."""
_SAME: dict[str, Same] = {"SAME_UPPER": "upper", "SAME_LOWER": "lower"}


def text(node: onnx.NodeProto, name: str, default: str) -> str:
    """Return a node's attribute that is text, or `default` where it is not set."""
    return next((entry.s.decode(errors="replace") for entry in node.attribute if entry.name == name), default)


def window_steps(graph: Graph, node: onnx.NodeProto) -> tuple[AxisStep, ...] | None:
    """Return what a conv or pool does along each spatial axis, in the order of the axes; None where nothing tells."""
    kernel = kernel_of(graph, node)
    if kernel is None:
        return None
    axes = len(kernel)
    strides, dilations = numbers(node, "strides") or [1] * axes, numbers(node, "dilations") or [1] * axes
    rule = text(node, "auto_pad", "NOTSET")
    pads = (numbers(node, "pads") if rule == "NOTSET" else None) or [0] * (2 * axes)
    if not len(strides) == len(dilations) == len(pads) // 2 == axes or min(*kernel, *strides, *dilations) < 1:
        return None
    ceil = bool(number(node, "ceil_mode", 0))
    same = _SAME.get(rule, "")
    if same and max(dilations) > 1 and "Pool" in node.op_type:
        return None  # ONNX Runtime pads as if there were no dilation, which is not what ONNX says
    return tuple(
        Window(
            kernel[i],
            stride=strides[i],
            dilation=dilations[i],
            before=pads[i],
            after=pads[axes + i],
            same=same,
            ceil=ceil and not same,
        )
        for i in range(axes)
    )


def spread_steps(graph: Graph, node: onnx.NodeProto) -> tuple[AxisStep, ...] | None:
    """Return what a transposed conv does along each spatial axis; None where nothing tells."""
    windows = window_steps(graph, node)
    if windows is None:
        return None
    extra = numbers(node, "output_padding") or [0] * len(windows)
    lengths = numbers(node, "output_shape") or [0] * len(windows)
    if not len(extra) == len(windows) == len(lengths) or min(*extra, *lengths) < 0:
        return None
    return tuple(
        Spread(x.kernel, x.stride, x.dilation, x.before, x.after, extra=extra[i], same=x.same, length=lengths[i])
        for i, x in enumerate(cast(tuple[Window, ...], windows))
    )


def pad_steps(graph: Graph, node: onnx.NodeProto, rank: int) -> dict[int, AxisStep] | None:
    """Return what a Pad does to each axis that it changes; None where nothing tells."""
    pads = numbers(node, "pads") or numbers(node, "paddings") or _given(graph, node, 1)
    chosen = _given(graph, node, 3) if len(node.input) > 3 and node.input[3] else list(range(rank))
    mode = text(node, "mode", "constant")
    if pads is None or chosen is None or len(pads) != 2 * len(chosen) or mode not in get_args(PadMode):
        return None
    sides = zip(chosen, pads[: len(chosen)], pads[len(chosen) :], strict=True)
    return {axis % rank: Pad(before, after, cast(PadMode, mode)) for axis, before, after in sides if before or after}


def slice_steps(graph: Graph, node: onnx.NodeProto, rank: int) -> dict[int, AxisStep | None] | None:
    """Return what a Slice does to each axis that it names, None where a picture tells; None in all for unknown axes."""
    if len(node.input) > 1:
        starts, stops = _given(graph, node, 1), _given(graph, node, 2)
        count = len(starts or stops or ())
        axes = _given(graph, node, 3) if len(node.input) > 3 and node.input[3] else list(range(count))
        steps = _given(graph, node, 4) if len(node.input) > 4 and node.input[4] else [1] * len(axes or ())
    else:
        starts, stops = numbers(node, "starts"), numbers(node, "ends")
        axes, steps = numbers(node, "axes") or list(range(len(starts or ()))), [1] * len(starts or ())
    if not axes:
        return None
    found: dict[int, AxisStep | None] = dict.fromkeys(axis % rank for axis in axes)
    known = [x for x in (starts, stops, steps) if x is not None and len(x) == len(axes)]
    if len(known) == 3:
        for axis, start, stop, step in zip(axes, *known, strict=True):
            found[axis % rank] = Slice(_near(start), _near(stop), _near(step)) if step else None
    return found


def block_steps(node: onnx.NodeProto) -> tuple[AxisStep, AxisStep] | None:
    """Return what SpaceToDepth or DepthToSpace does to rows and columns; None where its attribute makes no sense."""
    size = number(node, "blocksize", 0)
    if size < 1:
        return None
    step: AxisStep = Repeat(size) if operator(node) == "DepthToSpace" else Window(size, stride=size)
    return step, step


def resize_steps(
    graph: Graph, node: onnx.NodeProto, rank: int
) -> dict[int, tuple[Resize, Length | None] | None] | None:
    """Return what a Resize or Upsample does to each axis that it names, None for an axis where nothing tells.

    Beside the step stands the length that the result takes over, where that is another value's. None in all where
    nothing tells, or where it antialiases, crops or keeps the aspect ratio.
    """
    mode, targets = text(node, "mode", "nearest"), _targets(graph, node)
    is_old = operator(node) == "Upsample" or len(node.input) == 2  # Resize of operator set 10
    coordinates = "asymmetric" if is_old else text(node, "coordinate_transformation_mode", "half_pixel")
    nearest = "simple" if is_old else text(node, "nearest_mode", "round_prefer_floor")
    known = mode in get_args(ResizeMode) and coordinates in get_args(Coordinates) and nearest in get_args(Nearest)
    special = number(node, "antialias", 0) or number(node, "exclude_outside", 0)
    if targets is None or not known or special or text(node, "keep_aspect_ratio_policy", "stretch") != "stretch":
        return None
    is_scale, entries = targets
    axes = numbers(node, "axes") or list(range(rank))
    if len(axes) != len(entries):
        return None
    before, after = graph.shape(node.input[0]), graph.shape(node.output[0])
    found: dict[int, tuple[Resize, Length | None] | None] = dict.fromkeys(axis % rank for axis in axes)
    for axis, entry in zip((axis % rank for axis in axes), entries, strict=True):
        sides = [None if shape is None or len(shape) != rank else shape[axis] for shape in (before, after)]
        if isinstance(sides[0], int) and isinstance(sides[1], int) and not (is_scale and isinstance(entry, float)):
            entry, is_length = float(sides[1]), True
        else:
            is_length = not is_scale
        if isinstance(entry, Length) and not is_length:  # a scale that depends on the picture
            continue
        rules = (cast(ResizeMode, mode), cast(Coordinates, coordinates), cast(Nearest, nearest))
        if isinstance(entry, Length) and entry.factor > 0:
            found[axis] = Resize(*rules, scale=entry.factor), entry
        elif isinstance(entry, float) and entry > 0:
            length = int(entry) if is_length else 0
            found[axis] = Resize(*rules, scale=1.0 if length else entry, length=length), None
    return found


def _targets(graph: Graph, node: onnx.NodeProto) -> tuple[bool, list[Entry]] | None:
    """Return whether scales tell how far to resize, and these, or else the lengths; None where neither is there."""
    scales = next((list(entry.floats) for entry in node.attribute if entry.name == "scales"), None)  # Upsample-7
    if scales is not None:
        return True, [float(x) for x in scales]
    rank = graph.rank(node.input[0]) or 4
    for position, is_scale in ((3, False), (2 if len(node.input) > 2 else 1, True)):
        if len(node.input) > position and node.input[position]:
            entries = entries_of(graph, node.input[position])
            if entries != []:  # an empty list stands for "not given" in operator set 11
                return is_scale, [None] * rank if entries is None else entries
    return None


def _given(graph: Graph, node: onnx.NodeProto, position: int) -> list[int] | None:
    """Return an input that is a list of whole numbers; None where it is missing or depends on the picture."""
    entries: Sequence[Entry] | None = None
    if len(node.input) > position and node.input[position]:
        entries = entries_of(graph, node.input[position])
    found = [int(x) for x in entries or () if isinstance(x, float)]
    return None if entries is None or len(found) < len(entries) else found


def _near(position: int) -> int:
    return min(max(position, -FAR), FAR)
