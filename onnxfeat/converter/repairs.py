"""Put right what tf2onnx gets wrong: groups of 3-D convolutions, transposed ones that reach less than they give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx


def repair(model: onnx.ModelProto) -> None:
    """Repair the convolutions of a model that tf2onnx made; those that are right stay as they are."""
    shapes = {
        value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.value_info)
    }
    shapes.update({tensor.name: list(tensor.dims) for tensor in model.graph.initializer})
    for node in model.graph.node:
        if node.op_type == "Transpose" and node.input[0] in shapes:  # of large weights
            order = next((list(attribute.ints) for attribute in node.attribute if attribute.name == "perm"), [])
            if order and len(order) == len(shapes[node.input[0]]):
                shapes[node.output[0]] = [shapes[node.input[0]][axis] for axis in order]
        elif node.op_type == "Conv":
            _set_groups(node, shapes)
        elif node.op_type == "ConvTranspose":
            _pad_behind(node)


def _set_groups(node: onnx.NodeProto, shapes: Mapping[str, Sequence[int]]) -> None:
    """State how many groups a convolution has: tf2onnx does so for two axes alone."""
    source, weights = (shapes.get(name, ()) for name in node.input[:2])
    if len(source) < 2 or len(weights) < 2 or source[1] < 1 or weights[1] < 1 or source[1] % weights[1]:
        return
    groups = source[1] // weights[1]
    given = next((attribute for attribute in node.attribute if attribute.name == "group"), None)
    if given is not None:
        given.i = groups
    elif groups > 1:
        node.attribute.append(onnx.helper.make_attribute("group", groups))


def _pad_behind(node: onnx.NodeProto) -> None:
    """Turn padding below 0 into rows behind the result, where TensorFlow has them.

    Such a result is longer than its kernels reach, by less than a stride (a kernel smaller than the stride, or
    `output_padding`). tf2onnx writes negative pads, which ONNX forbids, and half of them in front.
    """
    pads = next((attribute for attribute in node.attribute if attribute.name == "pads"), None)
    if pads is None or min(pads.ints, default=0) >= 0:
        return
    rank = len(pads.ints) // 2
    totals = [pads.ints[axis] + pads.ints[axis + rank] for axis in range(rank)]
    fronts = [max(total, 0) // 2 for total in totals]
    pads.ints[:] = [*fronts, *(max(total, 0) - front for total, front in zip(totals, fronts, strict=True))]
    behind = [max(-total, 0) for total in totals]
    given = next((attribute for attribute in node.attribute if attribute.name == "output_padding"), None)
    if given is None:
        node.attribute.append(onnx.helper.make_attribute("output_padding", behind))
    else:
        given.ints[:] = behind
