"""Convert a Keras model to ONNX and find the value of each Keras layer in the result.

tf2onnx renames and folds layers, so names in its graph can't be trusted. Here nothing is looked up by name: the model
is converted with the output of every layer as an output of its own, in order, and the i-th of them is the i-th layer.
Then these outputs and the Transposes that lead to them come off again.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper

from onnxfeat.converter.keras_models import Call, TracedModel, import_keras, load_model, reason_of, trace
from onnxfeat.converter.verification import compare, refuse_disagreement
from onnxfeat.errors import ConversionError, quote
from onnxfeat.files import refuse_existing, whole_file
from onnxfeat.findings import Conversion
from onnxfeat.graph.flattening import names_used, subgraphs
from onnxfeat.graph.reading import Graph, axis_order, numbers, read_graph
from onnxfeat.metadata import Document, MappedLayer
from onnxfeat.preprocessing import CHANNELS, Preprocessing
from onnxfeat.records import DEFAULT_OPSET, ModelInput
from onnxfeat.running.exposure import picture_input, store, with_outputs


def convert_keras(
    model: Any,
    path: str | Path,
    *,
    preprocessing: Preprocessing | Mapping[str, Any] | None = None,
    opset: int = DEFAULT_OPSET,
    overwrite: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Conversion:
    """Convert a Keras model to an ONNX file that knows its Keras layers, and prove it.

    The file carries, in its metadata, which ONNX value is the output of which Keras layer, and how pictures are
    prepared. Before it is written, one seeded input runs through Keras and through ONNX Runtime, and every layer is
    compared.

    Args:
        model: Path of a `.keras` or legacy `.h5` file, or a live Keras model with an input shape.
        path: Where to write.
        preprocessing: How pictures become the model's input; None is Keras's own way (`load_img`, which resizes with
            nearest neighbor, then 1/255). A mapping such as `{"scale": 1.0}` changes single fields of that.
        opset: ONNX operator set version of the file.
        overwrite: Whether an existing file may be replaced.
        progress: Called with the name of each stage as it begins.

    Raises:
        ConversionError: The model can't be loaded or converted, or a layer differs from Keras by more than 1e-4 of its
            range and by more than Keras's own rounding noise; then no file is written.
        OutputError: `path` exists or can't be written.
        MissingPackageError: TensorFlow, tf2onnx or ONNX Runtime is not installed.

    Example:
        >>> import tempfile
        >>> target = tempfile.mkdtemp() + "/small.onnx"
        >>> conversion = convert_keras("models/shapes_small.keras", target)
        >>> conversion.worst.error < 1e-5
        True
    """
    start = time.perf_counter()
    tell = progress or (lambda _: None)
    target = Path(path)
    refuse_existing(target, overwrite)
    tell("starting TensorFlow")
    import_keras()
    if isinstance(model, str | Path):
        tell("loading the model")
        model = load_model(Path(model))
    tell("tracing the layers")
    traced = trace(model)
    spec = _preprocessing(traced, preprocessing)
    tell("converting to ONNX")
    tapped = _convert(traced, opset)
    tell("mapping the layers")
    converted, layer_map = _without_taps(tapped, traced)
    tell("comparing every layer with Keras")
    agreements = compare(converted, traced, layer_map, spec)
    refuse_disagreement(agreements)
    by_name = {agreement.name: agreement for agreement in agreements}
    measured = tuple(
        mapped
        if mapped.value is None
        else dataclasses.replace(mapped, error=by_name[mapped.name].error, noise=by_name[mapped.name].noise)
        for mapped in layer_map
    )
    taken = None if spec is None else _picture_input(converted, traced)
    store(converted, Document(layer_map=measured, preprocessing=spec, input=taken))
    tell("writing the file")
    with whole_file(target, overwrite=overwrite) as temporary:
        temporary.write_bytes(converted.SerializeToString(deterministic=True))
    return Conversion(
        path=target,
        layers=tuple(agreements),
        absent=tuple(mapped.name for mapped in layer_map if mapped.value is None),
        preprocessing=spec,
        opset=opset,
        notes=_notes(traced, spec),
        seconds=time.perf_counter() - start,
    )


def _preprocessing(traced: TracedModel, asked: Preprocessing | Mapping[str, Any] | None) -> Preprocessing | None:
    """Return what to store; None if the model does not take a picture."""
    shapes = [list(spec.shape) for spec in traced.signature]
    if len(shapes) != 1 or len(shapes[0]) != 4:
        if asked:
            raise ConversionError("the model does not take one picture, so it has no preprocessing: leave that out")
        return None
    sides = dict(zip(_input_layout(traced), shapes[0], strict=True))
    colors = [color for color, count in CHANNELS.items() if sides["C"] in (None, count)]
    if not colors:
        if asked:
            raise ConversionError(
                f"the model takes {sides['C']} channels, which no picture has, so it has no preprocessing: "
                f"leave that out"
            )
        return None
    fixed = sides["H"] is not None and sides["W"] is not None
    keras_own = Preprocessing(
        size=(sides["H"], sides["W"]) if fixed else None,
        # Scaled, all levels of a picture of integers would become 0 or 1.
        scale=1.0 if traced.signature[0].dtype.is_integer else 1 / 255,
        color="gray" if sides["C"] == 1 else "rgb",
        interpolation="nearest",  # the default of keras.utils.load_img
    )
    spec = asked if isinstance(asked, Preprocessing) else keras_own.changed(asked or {})
    if spec.color not in colors:
        raise ConversionError(
            f"color {spec.color!r} does not fit the model's {sides['C']} channels: set {quote(colors)}"
        )
    if fixed and spec.size not in (None, keras_own.size):
        raise ConversionError(
            f"size {spec.size} does not fit the model's input of {sides['H']} x {sides['W']} pixels: leave the size out"
        )
    return spec


def _input_layout(traced: TracedModel) -> str:
    """Return the layout of the picture that a model takes: that of its first layer with a picture."""
    return next((call.layout for call in traced.calls if call.layout and len(call.layout) == 4), "NHWC")


def _picture_input(model: onnx.ModelProto, traced: TracedModel) -> ModelInput:
    """Return the input of a converted model; its layout is Keras's, which the graph need not tell."""
    return dataclasses.replace(picture_input(read_graph(model)), layout=_input_layout(traced))


def _notes(traced: TracedModel, preprocessing: Preprocessing | None) -> tuple[str, ...]:
    if preprocessing is None:
        return ("the model does not take one picture, so no preprocessing is stored: feed it preprocessed arrays",)
    scaling = [call.name for call in traced.calls if call.keras_class in ("Rescaling", "Normalization")]
    if scaling and preprocessing.scale != 1:
        return (
            f"the model scales its input itself (layer {scaling[0]!r}), and pictures are scaled by "
            f"{preprocessing.scale:.6g} before: if it was trained on values 0..255, convert again with scale 1",
        )
    return ()


def _convert(traced: TracedModel, opset: int) -> onnx.ModelProto:
    """Convert the traced function; its inputs and outputs keep their order."""
    import tf2onnx

    low, high = 13, max(tf2onnx.constants.OPSET_TO_IR_VERSION)
    if not low <= opset <= high:
        raise ConversionError(
            f"opset {opset} can't be written by tf2onnx {tf2onnx.__version__}: choose {low} to {high}"
        )
    model: onnx.ModelProto
    try:
        model, _ = tf2onnx.convert.from_function(
            traced.function,
            input_signature=traced.signature,
            opset=opset,
            custom_op_handlers={"Erfc": (_convert_erfc, [])},
        )
    except Exception as error:  # tf2onnx raises whatever its handlers meet
        raise ConversionError(f"tf2onnx {tf2onnx.__version__} can't convert the model: {reason_of(error)}") from error
    # It writes what it doesn't know through, and reports success.
    unknown = sorted({node.op_type for node in model.graph.node if not onnx.defs.has(node.op_type, node.domain)})
    if unknown:
        raise ConversionError(
            f"tf2onnx {tf2onnx.__version__} can't convert the model: ONNX has no operator for TensorFlow's "
            f"{quote(unknown)}; replace the layer that uses it"
        )
    if len(model.graph.output) != len(traced.output_names) + len(traced.calls):
        raise ConversionError("tf2onnx returned another number of outputs than it was given: report it with the model")
    _restore_captured_constants(model, traced)
    for value, spec in zip(model.graph.input, traced.signature, strict=True):
        letters = ("N", "H", "W", "C") if len(spec.shape) == 4 else ("N", *(f"axis_{i}" for i in range(1, 9)))
        for axis, side, letter in zip(value.type.tensor_type.shape.dim, spec.shape, letters, strict=False):
            if side is None:  # instead of the `unk__` of tf2onnx
                axis.dim_param = letter
    return model


def _convert_erfc(graph: Any, node: Any, *_: Any) -> None:
    """Write Erfc, which Keras's GELU is made of and ONNX lacks, as 1 - Erf; called by tf2onnx."""
    source, result = node.input[0], node.output[0]
    dtype, shape = graph.get_dtype(result), graph.get_shape(result)
    graph.remove_node(node.name)
    one = graph.make_const(f"{node.name}/one", np.ones((), onnx.helper.tensor_dtype_to_np_dtype(dtype)))
    erf = graph.make_node("Erf", [source], dtypes=[dtype], shapes=[shape])
    graph.make_node("Sub", [one.output[0], erf.output[0]], outputs=[result], dtypes=[dtype], shapes=[shape])


def _restore_captured_constants(model: onnx.ModelProto, traced: TracedModel) -> None:
    """Give constants that the function captured their values back.

    tf2onnx makes inputs of them: the mean and variance of a Normalization layer would have to be fed by the user.
    """
    concrete = traced.concrete
    captured = {
        inner.name.split(":")[0]: outer
        for inner, outer in zip(concrete.graph.internal_captures, concrete.captured_inputs, strict=True)
    }
    wanted = {spec.name for spec in traced.signature}
    for value in [value for value in model.graph.input if value.name not in wanted]:
        outer = captured.get(value.name.split(":")[0])
        if outer is None or not hasattr(outer, "numpy"):
            raise ConversionError(
                f"the conversion made an input {value.name!r} that the Keras model does not have: report it with the "
                f"model"
            )
        model.graph.initializer.append(onnx.numpy_helper.from_array(outer.numpy(), name=value.name))
        model.graph.input.remove(value)


def _without_taps(tapped: onnx.ModelProto, traced: TracedModel) -> tuple[onnx.ModelProto, list[MappedLayer]]:
    """Take the layers' outputs off again; return the model and where each layer's output is in it."""
    count = len(traced.output_names)
    graph = read_graph(tapped)
    outputs = [output.name for output in tapped.graph.output]
    found = [_behind_transposes(graph, name) for name in outputs[count:]]
    converted = with_outputs(graph, outputs[:count], cut=True)
    _cancel_transposes(converted.graph)
    renamed = _name_outputs(converted.graph, traced.output_names)
    converted = with_outputs(read_graph(converted), traced.output_names, cut=True)  # without what nothing uses now
    del converted.graph.input[:]  # an input that nothing uses is an input all the same
    converted.graph.input.extend(tapped.graph.input)
    renamed.update(_renumber(converted.graph))
    kept = {name for node in converted.graph.node for name in node.output}
    layer_map = []
    for call, (value, order) in zip(traced.calls, found, strict=True):
        value = renamed.get(value, value)
        layer_map.append(
            MappedLayer(
                name=call.name,
                keras_class=call.keras_class,
                kind=call.kind,
                value=value if value in kept else None,
                layout=_layout_before(call, order),
            )
        )
    return converted, layer_map


def _behind_transposes(graph: Graph, value: str) -> tuple[str, list[int] | None]:
    """Return the value that an output is a copy of, and the axis order that leads from it to the output."""
    order: list[int] | None = None
    while (node := graph.producers.get(value)) is not None:
        step = axis_order(graph, node)
        if step is None and node.op_type != "Identity":
            break
        if step is not None:
            order = step if order is None else [step[axis] for axis in order]
        value = node.input[0]
    return value, order


def _layout_before(call: Call, order: Sequence[int] | None) -> str | None:
    """Return the layout of a value whose transpose by `order` has the layout that Keras gives."""
    if order is None or call.layout is None:
        return call.layout
    layout = [""] * len(order)
    for axis, source in enumerate(order):
        layout[source] = call.layout[axis]
    return "".join(layout)


def _cancel_transposes(graph: onnx.GraphProto) -> None:
    """Let the users of a Transpose that undoes another one read what was there before.

    tf2onnx does so itself, but not where the value between the two was an output, as that of every layer is here.
    """
    producers = {name: node for node in graph.node for name in node.output}
    captured = _captured(graph)
    instead: dict[str, str] = {}
    for node in graph.node:
        node.input[:] = [instead.get(name, name) for name in node.input]
        first = producers.get(node.input[0]) if node.op_type == "Transpose" else None
        if first is not None and first.op_type == "Transpose" and node.output[0] not in captured:
            one, other = numbers(first, "perm"), numbers(node, "perm")
            if one and other and [one[axis] for axis in other] == sorted(one):
                instead[node.output[0]] = first.input[0]


def _captured(graph: onnx.GraphProto) -> set[str]:
    """Return the values that graphs inside a node use, such as the loops of recurrent layers."""
    return {name for node in graph.node if any(subgraphs(node)) for name in names_used(node)}


def _renumber(graph: onnx.GraphProto) -> dict[str, str]:
    """Give the names that tf2onnx numbers new numbers in the order of the nodes; return old name to new.

    tf2onnx goes through sets, so that its numbers and the order of its constants change from run to run; the same model
    is to give the same bytes.
    """
    captured = _captured(graph)  # they keep their names, and the letter n keeps the others apart from them
    used = dict.fromkeys(name for node in graph.node for name in (*names_used(node), *node.output))
    numbered: dict[str, str] = {}
    for name in used:
        found = re.fullmatch(r"(.*__|Identity_)\d+(:\d+)?", name)
        if found and name not in captured:
            numbered[name] = f"{found[1]}n{len(numbered)}{found[2] or ''}"
    for position, node in enumerate(graph.node):
        node.name = re.sub(r"__\d+$", f"__n{position}", node.name)
        node.input[:] = [numbered.get(name, name) for name in node.input]
        node.output[:] = [numbered.get(name, name) for name in node.output]
    for value in (*graph.value_info, *graph.initializer):
        value.name = numbered.get(value.name, value.name)
    order = {numbered.get(name, name): position for position, name in enumerate(used)}
    graph.initializer.sort(key=lambda tensor: order[tensor.name])
    return numbered


def _name_outputs(graph: onnx.GraphProto, names: Sequence[str]) -> dict[str, str]:
    """Name a graph's outputs; return old name to new.

    A name that is taken already gives a model that `compare` can't load.
    """
    producers = {name: node for node in graph.node for name in node.output}
    fixed = _captured(graph) | {output.name for output in graph.output}
    renamed: dict[str, str] = {}
    for output, new in zip(graph.output, names, strict=True):
        old = source = output.name
        # Where a layer's output is the model's too, one of the two is a copy, by chance this or that one.
        while producers[source].op_type == "Identity":
            before = producers[source].input[0]
            if before not in producers or before in fixed or before in renamed.values():
                break
            source = before
        for node in graph.node:
            node.input[:] = [new if name == source else name for name in node.input]
            node.output[:] = [new if name == source else name for name in node.output]
        producers[new] = producers[source]
        renamed.update({old: new, source: new})
        output.name = new
    return renamed
