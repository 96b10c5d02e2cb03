"""Work out how much of the picture one cell of each value sees, and how far apart neighboring cells look.

The recurrence over a stack of convs and pools (receptive field r, jump j, kernel k, stride s, dilation d),

    r' = r + (k - 1) * d * j        j' = j * s

is the one of Araujo, Norris and Sim, "Computing Receptive Fields of Convolutional Neural Networks", Distill 2019.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx

from onnxfeat.graph.reading import CELL_BY_CELL, Graph, axis_order, numbers, operator

WINDOWED = frozenset(
    "Conv ConvInteger ConvTranspose FusedConv QLinearConv MaxPool AveragePool LpPool QLinearAveragePool NhwcConv "
    "NhwcFusedConv NhwcMaxPool".split()
)
"""Operators that look at a window of cells."""
_CELL_BY_CELL = CELL_BY_CELL | {"BatchNormalization"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What one cell of a value sees of the picture, for each spatial axis.

    Attributes:
        field: Side lengths in pixels; None where a cell sees the whole picture.
        jump: Pixels between what neighboring cells look at.
    """

    field: tuple[int, ...] | None
    jump: tuple[float, ...]


def sights_of(graph: Graph) -> dict[str, Sight]:
    """Return value name to what its cells see, for every value that convs, pools and cell-by-cell operators lead to.

    A value behind an operator that mixes all places (global pooling, matrix products, a Reshape) is left out, and one
    that such a value is multiplied with or added to (squeeze-and-excite) sees the whole picture: its `field` is None.
    """
    sights: dict[str, Sight] = {}
    for name in graph.inputs:
        spatial = (graph.rank(name) or 2) - 2
        if spatial > 0:
            sights[name] = Sight(field=(1,) * spatial, jump=(1.0,) * spatial)
    for node in graph.nodes:
        seen = [sights[name] for name in node.input if name in sights]
        if not seen or not node.output:
            continue
        if operator(node) in WINDOWED:
            kernel = kernel_of(graph, node)
            before = sights.get(node.input[0])
            if kernel is not None and before is not None and len(kernel) == len(before.jump):
                behind = _through_window(node, before, kernel)
                sights.update({} if behind is None else {node.output[0]: behind})
        elif operator(node) in _CELL_BY_CELL or axis_order(graph, node) is not None:
            mixing = [name for name in node.input if name in graph.producers and name not in sights]
            mixing = [name for name in mixing if not graph.is_constant(name)]
            fields = [sight.field for sight in seen if sight.field is not None]
            whole = bool(mixing) or len(fields) < len(seen) or len({len(field) for field in fields}) != 1
            field = None if whole else tuple(max(sides) for sides in zip(*fields, strict=True))
            sights[node.output[0]] = Sight(field=field, jump=seen[0].jump)
    return sights


def kernel_of(graph: Graph, node: onnx.NodeProto) -> list[int] | None:
    """Return the side lengths of a conv's or pool's kernel; None where neither attribute nor weight tells them."""
    kernel = numbers(node, "kernel_shape")
    position = 3 if node.op_type == "QLinearConv" else 1
    if kernel is None and len(node.input) > position:
        weight = graph.shape(node.input[position])
        if weight is not None and len(weight) > 2:
            sides = [side for side in weight[2:] if isinstance(side, int)]
            kernel = sides if len(sides) == len(weight) - 2 else None
    return kernel


def _through_window(node: onnx.NodeProto, before: Sight, kernel: list[int]) -> Sight | None:
    """Return what a cell behind a conv or pool sees; None where its attributes contradict each other or are absurd."""
    strides = numbers(node, "strides") or [1] * len(kernel)
    dilations = numbers(node, "dilations") or [1] * len(kernel)
    if len(strides) != len(kernel) or len(dilations) != len(kernel) or min(*strides, *dilations) < 1:
        return None
    reach = [(k - 1) * d for k, d in zip(kernel, dilations, strict=True)]
    if node.op_type == "ConvTranspose":  # its output is the finer grid: stride and reach count in output cells
        jump = tuple(j / s for j, s in zip(before.jump, strides, strict=True))
        reach = [r // s for r, s in zip(reach, strides, strict=True)]
    else:
        jump = tuple(j * s for j, s in zip(before.jump, strides, strict=True))
    field = [f + r * j for f, r, j in zip(before.field or jump, reach, before.jump, strict=True)]
    if not all(map(math.isfinite, (*jump, *field))):
        return None
    return Sight(field=None if before.field is None else tuple(map(round, field)), jump=jump)
