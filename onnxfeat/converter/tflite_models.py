"""Know a TFLite model as a source: its layers, ONNX, and what TFLite itself computes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxfeat.converter import tflite_files as files
from onnxfeat.converter.sources import DISTURBANCE, Call, InputSpec, Source, disturbed
from onnxfeat.converter.tflite_conversion import onnx_of_tflite
from onnxfeat.converter.tflite_names import Named, layer_names
from onnxfeat.converter.tflite_steps import refuse_wrong_steps
from onnxfeat.errors import ConversionError
from onnxfeat.graph.layouts import CHANNELS_LAST
from onnxfeat.records import Kind

_KINDS: dict[Kind, frozenset[str]] = {
    "conv": frozenset("CONV_2D DEPTHWISE_CONV_2D TRANSPOSE_CONV CONV_3D CONV_3D_TRANSPOSE".split()),
    "pool": frozenset("AVERAGE_POOL_2D MAX_POOL_2D L2_POOL_2D".split()),
    "activation": frozenset(
        "ELU GELU HARD_SWISH LEAKY_RELU LOGISTIC LOG_SOFTMAX PRELU RELU RELU6 RELU_0_TO_1 RELU_N1_TO_1 SOFTMAX "
        "TANH".split()
    ),
    "norm": frozenset("L2_NORMALIZATION LOCAL_RESPONSE_NORMALIZATION".split()),
}
_REDUCING = frozenset({"MEAN", "REDUCE_MAX"})  # global pooling, where they reduce the sides of a picture

# Operators whose input and output have channels last by definition, as far as they are of rank 4 or 5.
_CHANNELS_LAST = (
    _KINDS["conv"]
    | _KINDS["pool"]
    | frozenset("BATCH_TO_SPACE_ND DEPTH_TO_SPACE RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR".split())
    | frozenset("SPACE_TO_BATCH_ND SPACE_TO_DEPTH".split())
    | _KINDS["norm"]
)
# Operators whose output has its axes in the order of their input's.
_KEEPING = _KINDS["activation"] | frozenset(
    "ABS ADD CAST CEIL CONCATENATION COS DEQUANTIZE DIV EXP FLOOR LOG MAXIMUM MEAN MINIMUM MIRROR_PAD MUL NEG PAD "
    "PADV2 POW QUANTIZE REDUCE_MAX REDUCE_MIN ROUND RSQRT SELECT SELECT_V2 SIN SLICE SQRT SQUARE SQUARED_DIFFERENCE "
    "STRIDED_SLICE SUB SUM TILE".split()
)
_CONTROL_FLOW = frozenset("CALL CALL_ONCE IF STABLEHLO_WHILE WHILE".split())
_FREE_SIDE = 96  # pixels, for inputs without a fixed size
_FLOATING = frozenset({"FLOAT32", "FLOAT16", "FLOAT64"})


class TFLiteModel(Source):
    """A TFLite model whose layers are the operators of its main subgraph that give floating or quantized tensors.

    What TFLite's converter fused into an operator (bias, batch normalization, activation) is part of its layer.
    Quantized values are in real units, `(value - zero point) * scale`, except the model's own inputs and outputs, which
    keep the types that the file gives them.

    What `run` gives is computed by TFLite's optimized kernels. `disturbed_by` runs operator by operator, with the
    reference kernels where values are floating, and moves each value that these give: floating ones by up to
    `DISTURBANCE` units in the last place, quantized ones by up to one step, the least by which rounding can differ.

    In a file with dynamic range (quantized weights between floating values), TFLite quantizes what goes into these
    layers on the fly. ONNX does not, so that the reference is the same model with its weights as floats; a note says by
    how much TFLite's way moves the outputs.
    """

    def __init__(self, name: str, model: Any, notes: Sequence[str] = ()) -> None:
        import tensorflow as tf

        graph = files.main_graph(model)
        self.name = name
        self.computed_by = f"TFLite {tf.__version__}"
        self._model = model
        self._input_numbers = files.numbers_of(graph.inputs)
        self._output_numbers = files.numbers_of(graph.outputs)
        names = _signature_names(model, "inputs")
        self.inputs = tuple(
            _input_spec(name, model, number) for name, number in zip(names, self._input_numbers, strict=True)
        )
        self.output_names = _unique_names(_signature_names(model, "outputs"), names)
        self.calls, self._watched = _calls(model)
        self.notes = (*notes, *_notes(model))

    def to_onnx(self, opset: int) -> onnx.ModelProto:
        """Return the model as ONNX, with the layers' outputs behind one more output (see `onnx_of_tflite`).

        Quantized layers are proven here, one by one: each, on the integers that TFLite gives to it, gives TFLite's
        integers, or the next. (Over the whole of a deep network even that grows until a comparison says nothing.)

        Raises:
            ConversionError: It can't be converted, or a quantized layer gives other integers.
        """
        names = dict(zip(self._watched, (call.name for call in self.calls), strict=True))
        names.update(zip(self._input_numbers, (spec.name for spec in self.inputs), strict=True))
        model = onnx_of_tflite(self._model, names, self.output_names, self._watched, opset)
        tensors = [files.main_graph(self._model).tensors[number] for number in self._watched]
        if any(len(files.scale_of(tensor)[0]) for tensor in tensors):
            feeds = [_seeded(files.main_graph(self._model).tensors[number]) for number in self._input_numbers]
            references = self.run(feeds)[len(self._output_numbers) :]
            by_name = {spec.name: feed for spec, feed in zip(self.inputs, feeds, strict=True)}
            refuse_wrong_steps(
                model, self._model, [call.name for call in self.calls], self._watched, by_name, references
            )
        return model

    def run(self, feeds: Sequence[NDArray[Any]], *, disturbed_by: int | None = None) -> list[NDArray[Any]]:
        """Run the model in TFLite; return the model's outputs and then the output of each call, in order.

        Raises:
            ConversionError: TFLite can't run it on this machine.
        """
        graph = files.main_graph(self._model)
        wanted = [*self._output_numbers, *self._watched]
        if disturbed_by is None:
            values = files.computed(files.packed(self._model), feeds, wanted, reference=False)
        else:
            values = self._disturbed(feeds, np.random.default_rng(disturbed_by))
        return [
            *(values[number] for number in self._output_numbers),
            *(files.real(values[number], graph.tensors[number]) for number in self._watched),
        ]

    def _disturbed(self, feeds: Sequence[NDArray[Any]], random: np.random.Generator) -> files.Values:
        graph = files.main_graph(self._model)
        values = dict(zip(self._input_numbers, feeds, strict=True))
        watched = set(self._watched)
        for operator in graph.operators:
            # Those for integers end the process where one checks a range, as Softmax does for 1000 classes.
            floating = all(_is_floating(graph, number) for number in files.numbers_of(operator.outputs))
            for number, value in files.run_operator(self._model, operator, values, reference=floating).items():
                if files.operator_name(self._model, operator) == "RESIZE_BILINEAR" and floating:
                    value = _shifted(value, values[int(operator.inputs[0])], random)
                values[number] = _moved(value, graph.tensors[number], random) if number in watched else value
        return values


def load_tflite(path: Path) -> TFLiteModel:
    """Load a TFLite file.

    Raises:
        ConversionError: The file can't be read, is damaged or no TFLite file, or has operators that can't be converted.
    """
    model = files.read_tflite(path)
    _refuse_operators(model)
    files.compute_constants(model)
    floating = files.copied(model)
    hybrid = files.with_float_weights(floating)
    if not hybrid:
        return TFLiteModel(str(path), model)
    return TFLiteModel(str(path), floating, [_hybrid_note(model, floating, len(hybrid))])


def _seeded(tensor: Any) -> NDArray[Any]:
    """Return a random input: floating values 0 to 1, quantized ones of the whole range, other integers 0 and 1."""
    random = np.random.default_rng(0)
    given = _shape(tensor)
    shape = [side or (_FREE_SIDE if axis else 1) for axis, side in enumerate(given)]
    dtype = _dtype(tensor)
    if dtype.kind not in "iu":
        return random.uniform(size=shape).astype(dtype)
    low, high = (np.iinfo(dtype).min, np.iinfo(dtype).max) if len(files.scale_of(tensor)[0]) else (0, 1)
    return random.integers(low, high, shape, endpoint=True).astype(dtype)


def _moved(value: NDArray[Any], tensor: Any, random: np.random.Generator) -> NDArray[Any]:
    """Return values moved by the least that another way of rounding moves them."""
    if value.dtype.kind == "f":
        return disturbed(value, random)
    limits = np.iinfo(value.dtype)
    steps = random.integers(-1, 2, value.shape)
    moved = np.clip(value.astype(np.int64) + steps, limits.min, limits.max)
    # Nothing becomes 0, as it may be a divisor, nor the integer 0, which TFLite's DIV refuses too.
    kept = (moved == files.scale_of(tensor)[1][0]) | (moved == 0)
    return np.where(kept, value, moved).astype(value.dtype)


def _shifted(value: NDArray[Any], source: NDArray[Any], random: np.random.Generator) -> NDArray[Any]:
    """Return what a resizing operator gives when the places where it samples are off by a few units in the last place.

    They are computed in float32, as (y + 0.5) * scale - 0.5 by one and with a division by another.
    """
    slopes = [source.shape[axis] * float(np.abs(np.diff(source, axis=axis)).max(initial=0)) for axis in (1, 2)]
    step = DISTURBANCE * float(np.finfo(np.float32).eps) * sum(slopes)
    return (value + random.uniform(-step, step, value.shape)).astype(value.dtype)


def _calls(model: Any) -> tuple[tuple[Call, ...], list[int]]:
    """Return the layers, and the number of the tensor that is each one's output."""
    graph = files.main_graph(model)
    operators = [operator for operator in graph.operators if _is_layer(graph, operator)]
    watched = [files.numbers_of(operator.outputs)[0] for operator in operators]
    layouts: dict[int, str | None] = {}
    calls = []
    for operator, name in zip(operators, _names(model, operators), strict=True):
        layout = _layout(model, operator, layouts)
        layouts.update(dict.fromkeys(files.numbers_of(operator.outputs), layout))
        kind = _kind(model, operator, layouts)
        calls.append(Call(name=name, layer_class=files.operator_name(model, operator), kind=kind, layout=layout))
    return tuple(calls), watched


def _is_floating(graph: Any, number: int) -> bool:
    return files.type_name(graph.tensors[number]) in _FLOATING


def _is_layer(graph: Any, operator: Any) -> bool:
    outputs = files.numbers_of(operator.outputs)
    if not outputs:
        return False
    return _is_floating(graph, outputs[0]) or bool(len(files.scale_of(graph.tensors[outputs[0]])[0]))


def _names(model: Any, operators: Sequence[Any]) -> list[str]:
    graph = files.main_graph(model)
    made = {number: i for i, operator in enumerate(operators) for number in files.numbers_of(operator.outputs)}
    named = []
    for operator in operators:
        inputs = files.numbers_of(operator.inputs)
        constants = [number for number in inputs if files.constant_bytes(model, graph.tensors[number]) is not None]
        named.append(
            Named(
                operator=files.operator_name(model, operator),
                tensor=files.text(graph.tensors[files.numbers_of(operator.outputs)[0]].name),
                constants=tuple(files.text(graph.tensors[number].name) for number in constants),
                source=next((made[number] for number in inputs if number in made), None),
            )
        )
    return layer_names(named)


def _layout(model: Any, operator: Any, layouts: Mapping[int, str | None]) -> str | None:
    """Return the layout of an operator's output, given those of the tensors before it."""
    graph = files.main_graph(model)
    rank = _rank(graph.tensors[files.numbers_of(operator.outputs)[0]])
    name = files.operator_name(model, operator)
    if name in _CHANNELS_LAST:
        return CHANNELS_LAST.get(rank) if rank > 3 else None
    if name == "TRANSPOSE":
        source, order = (int(number) for number in operator.inputs[:2])
        before, perm = layouts.get(source), files.constant_array(model, graph.tensors[order])
        return None if before is None or perm is None else "".join(before[axis] for axis in perm.ravel())
    if name in _REDUCING and (before := layouts.get(int(operator.inputs[0]))) and len(before) > rank:
        gone = files.constant_array(model, graph.tensors[int(operator.inputs[1])])
        axes = set() if gone is None else {int(axis) % len(before) for axis in gone.ravel()}
        left = "".join(letter for axis, letter in enumerate(before) if axis not in axes)
        return left if len(left) == rank else None
    if name in _KEEPING:
        known = (layouts.get(number) for number in files.numbers_of(operator.inputs))
        return next((layout for layout in known if layout and len(layout) == rank), None)
    return None


def _kind(model: Any, operator: Any, layouts: Mapping[int, str | None]) -> Kind:
    graph, name = files.main_graph(model), files.operator_name(model, operator)
    for kind, operators in _KINDS.items():
        if name in operators:
            return kind
    if name in _REDUCING:
        source, axes = (int(number) for number in operator.inputs[:2])
        given, layout = files.constant_array(model, graph.tensors[axes]), layouts.get(source)
        if given is not None and layout and {layout[axis] for axis in given.ravel()} == set(layout) - {"N", "C"}:
            return "pool"
    return "other"


def _input_spec(name: str, model: Any, number: int) -> InputSpec:
    graph = files.main_graph(model)
    tensor = quantized = graph.tensors[number]
    if _is_floating(graph, number):  # a file may quantize a floating input first of all
        users = [operator for operator in graph.operators if number in files.numbers_of(operator.inputs)]
        if users and all(files.operator_name(model, operator) == "QUANTIZE" for operator in users):
            quantized = graph.tensors[files.numbers_of(users[0].outputs)[0]]
    scales, zeros = files.scale_of(quantized)
    spec = InputSpec(name=name, shape=_shape(tensor), dtype=_dtype(tensor))
    if len(scales) != 1:
        return spec
    limits, scale, zero = np.iinfo(_dtype(quantized)), float(scales[0]), int(zeros[0])
    spec = replace(spec, real_range=((limits.min - zero) * scale, (limits.max - zero) * scale))
    return spec if quantized is not tensor else replace(spec, scale=scale, zero_point=zero)


def _rank(tensor: Any) -> int:
    return 0 if tensor.shape is None else len(tensor.shape)


def _shape(tensor: Any) -> tuple[int | None, ...]:
    given = tensor.shapeSignature if tensor.shapeSignature is not None else tensor.shape
    return tuple(None if side < 0 else int(side) for side in (given if given is not None else ()))


def _dtype(tensor: Any) -> np.dtype[Any]:
    name = files.type_name(tensor)
    try:
        return np.dtype(name.lower())
    except TypeError:
        raise ConversionError(
            f"input {files.text(tensor.name)!r} of the TFLite file has elements of type {name}, which an ONNX input "
            f"can't have here: convert the model that it was made from"
        ) from None


def _signature_names(model: Any, side: str) -> list[str]:
    """Return the names of the model's `inputs` or `outputs`: those of its signature, else the tensors' own."""
    graph = files.main_graph(model)
    given: dict[int, list[str]] = defaultdict(list)  # a tensor may be several outputs, or input and output
    signature = next((found for found in model.signatureDefs or [] if found.subgraphIndex == 0), None)
    for entry in (getattr(signature, side) or []) if signature is not None else []:
        given[int(entry.tensorIndex)].append(files.text(entry.name))
    names = []
    for number in files.numbers_of(getattr(graph, side)):
        own = files.text(graph.tensors[number].name) or f"tensor_{number}"
        names.append(given[number].pop(0) if given[number] else own)
    return names


def _unique_names(names: Sequence[str], others: Sequence[str]) -> tuple[str, ...]:
    """Return names that are neither twice there nor among others."""
    unique: list[str] = []
    for name in names:
        new, count = name, 0
        while new in unique or new in others:
            count += 1
            new = f"{name}_{count}"
        unique.append(new)
    return tuple(unique)


def _notes(model: Any) -> list[str]:
    graph = files.main_graph(model)
    notes = []
    if len(model.subgraphs) > 1:
        others = [files.text(other.name) or f"subgraph {i}" for i, other in enumerate(model.subgraphs) if i]
        notes.append(f"the file has {len(model.subgraphs)} subgraphs: the first was taken, not {', '.join(others)}")
    for name, number in zip(_signature_names(model, "inputs"), files.numbers_of(graph.inputs), strict=True):
        scales, zeros = files.scale_of(graph.tensors[number])
        if len(scales):
            notes.append(
                f"input {name!r} takes integers ({files.type_name(graph.tensors[number])}) "
                f"that stand for (value - {zeros[0]}) * {scales[0]:.6g}: feed real / {scales[0]:.6g} + {zeros[0]}"
            )
    return notes


def _refuse_operators(model: Any) -> None:
    graph = files.main_graph(model)
    for operator in graph.operators:
        name = files.operator_name(model, operator)
        outputs = files.numbers_of(operator.outputs)
        layer = files.text(graph.tensors[outputs[0]].name).partition(";")[0] if outputs else name
        if name in _CONTROL_FLOW:
            raise ConversionError(
                f"operator {name} of layer {layer!r} is control flow, whose layers can't be told in a TFLite file: "
                f"convert the model that it was made from (.keras, .h5 or SavedModel)"
            )
        if name.startswith("Flex"):
            raise ConversionError(
                f"operator {name} of layer {layer!r} is TensorFlow's {name.removeprefix('Flex')}, which TFLite only "
                f"passes on: convert the model that the file was made from (.keras, .h5 or SavedModel)"
            )
        if not files.is_builtin(model, operator):
            raise ConversionError(
                f"operator {name} of layer {layer!r} is a custom one, which ONNX does not have: convert the part of "
                f"the model before it, from the model that the file was made from"
            )
    for tensor in graph.tensors:
        if files.type_name(tensor) == "INT16" and len(files.scale_of(tensor)[0]):
            raise ConversionError(
                f"tensor {files.text(tensor.name).partition(';')[0]!r} is quantized to 16 bits, which ONNX does not "
                f"have in the operator sets that tf2onnx writes: quantize to 8 bits, or convert the float model"
            )


def _hybrid_note(model: Any, floating: Any, count: int) -> str:
    """Say how far TFLite's quantization on the fly moves the outputs, for one seeded input."""
    graph = files.main_graph(model)
    feeds = [_seeded(graph.tensors[number]) for number in files.numbers_of(graph.inputs)]
    outputs = files.numbers_of(graph.outputs)
    own = files.computed(files.packed(model), feeds, outputs, reference=False)
    exact = files.computed(files.packed(floating), feeds, outputs, reference=False)
    moved = 0.0
    for number in outputs:
        extent = float(np.ptp(exact[number])) or float(np.abs(exact[number]).max()) or 1.0
        moved = max(moved, float(np.abs(own[number] - exact[number]).max()) / extent)
    return (
        f"TFLite quantizes the inputs of {count} layers on the fly, as their weights are 8-bit integers; in ONNX the "
        f"same weights are floats. That moves the outputs by up to {moved:.1%} of their range, for a random input"
    )
