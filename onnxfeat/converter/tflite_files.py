"""Read TFLite files and write changed copies of them: constants computed, weights as floats, single operators.

A TFLite file is a flatbuffer (identifier `TFL3`): subgraphs of operators, which read and write tensors by number, and
buffers with the constants' bytes. TensorFlow ships Python classes made from its schema, whose objects (`ModelT`,
`SubGraphT`, `TensorT`, ...) are what is passed around here; they have no types, so they are `Any`.
"""

from __future__ import annotations

import copy
import functools
import importlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxfeat.converter.messages import reason_of, unreadable_told
from onnxfeat.errors import ConversionError

_IDENTIFIER = b"TFL3"
_MAIN = 0  # the subgraph that runs when nobody names another

Values = dict[int, NDArray[Any]]
"""Values of tensors by the tensors' numbers."""


def read_tflite(path: Path) -> Any:
    """Read a TFLite file; return the model object.

    Raises:
        ConversionError: The file can't be read, or is empty, damaged, or no TFLite file.
    """
    with unreadable_told(path):
        content = path.read_bytes()
    if not content:
        raise ConversionError(f"{path} is empty: write or download the TFLite file again")
    if content[4:8] != _IDENTIFIER:
        raise ConversionError(
            f"{path} is no TFLite file: it has not the identifier TFL3 behind its first 4 bytes; check that it is what "
            f"its name says"
        )
    try:
        model = _parsed(content)
        _verify_numbers(model)
    except Exception as error:  # whatever follows from an offset that leads astray
        raise ConversionError(f"{path} is damaged or cut off: write or download the TFLite file again") from error
    # TFLite verifies every offset; but it ends the process where a custom operator lacks the options that it wants.
    if not any(code.customCode for code in model.operatorCodes):
        _refuse_unloadable(content, path)
    return model


def _refuse_unloadable(content: bytes, path: Path) -> None:
    """Raise a `ConversionError` for a file that TFLite can't load."""
    try:
        interpreter_of(content)
    except ValueError as error:
        if "valid Flatbuffer" in str(error):
            raise ConversionError(f"{path} is damaged or cut off: write or download the TFLite file again") from error
        raise ConversionError(
            f"TFLite can't load {path}: {reason_of(error)}; check that it runs in TFLite, or convert the model that it "
            f"was made from"
        ) from error


def packed(model: Any) -> bytes:
    """Return a model object as the content of a TFLite file."""
    flatbuffers = importlib.import_module("flatbuffers")  # comes with TensorFlow, without types

    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(model.Pack(builder), file_identifier=_IDENTIFIER)
    return bytes(builder.Output())


def copied(model: Any) -> Any:
    """Return a copy of a model object; the constants' bytes are shared."""
    shared = {id(buffer.data): buffer.data for buffer in model.buffers}
    return copy.deepcopy(model, shared)


def main_graph(model: Any) -> Any:
    """Return the subgraph that is the model."""
    return model.subgraphs[_MAIN]


def interpreter_of(content: bytes, *, reference: bool = False) -> Any:
    """Return TFLite's interpreter for a file's content; every tensor can be read after a run.

    Args:
        content: The file.
        reference: Whether the plain kernels compute, which are written to be read, and not the optimized ones.

    Raises:
        ValueError: TFLite can't load it.
    """
    import tensorflow as tf

    kinds = tf.lite.experimental.OpResolverType
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that it will move to another package, and needs memory
        return tf.lite.Interpreter(
            model_content=content,
            experimental_op_resolver_type=kinds.BUILTIN_REF if reference else kinds.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
            experimental_preserve_all_tensors=True,
            num_threads=1,  # results must not depend on how the work was shared
        )


def computed(content: bytes, feeds: Sequence[NDArray[Any]], tensors: Sequence[int], *, reference: bool) -> Values:
    """Run a TFLite file; return values of its main subgraph's tensors.

    Args:
        content: The file.
        feeds: Its inputs, in order; they may have other lengths than the file says where TFLite can resize.
        tensors: Numbers of the wanted tensors.
        reference: Whether the plain kernels compute.

    Raises:
        ConversionError: TFLite can't run it on these inputs.
    """
    try:
        interpreter = interpreter_of(content, reference=reference)
        numbers = [detail["index"] for detail in interpreter.get_input_details()]
        for number, feed in zip(numbers, feeds, strict=True):
            interpreter.resize_tensor_input(number, feed.shape)
        interpreter.allocate_tensors()
        for number, feed in zip(numbers, feeds, strict=True):
            interpreter.set_tensor(number, feed)
        interpreter.invoke()
        return {number: interpreter.get_tensor(number) for number in tensors}
    except (ValueError, RuntimeError) as error:
        raise ConversionError(
            f"TFLite can't run the model on this machine, and so nothing can be compared: {reason_of(error)}"
        ) from error


def operator_name(model: Any, operator: Any) -> str:
    """Return an operator's name in TFLite, such as `CONV_2D`; that of a custom operator as the file writes it."""
    code = model.operatorCodes[operator.opcodeIndex]
    number = max(code.builtinCode, code.deprecatedBuiltinCode)  # the older field is one byte, the newer may be unset
    name = _names("BuiltinOperator").get(number, f"operator {number}")
    return text(code.customCode) if name == "CUSTOM" else name


def is_builtin(model: Any, operator: Any) -> bool:
    """Return whether an operator is TFLite's own."""
    return not model.operatorCodes[operator.opcodeIndex].customCode


def type_name(tensor: Any) -> str:
    """Return a tensor's element type in TFLite, such as `INT8`."""
    return _names("TensorType").get(tensor.type, f"type {tensor.type}")


@functools.cache
def _names(enumeration: str) -> dict[int, str]:
    from tensorflow.lite.python import schema_py_generated as schema

    return {value: name for name, value in vars(getattr(schema, enumeration)).items() if not name.startswith("_")}


def text(name: bytes | str | None) -> str:
    """Return a name in a TFLite file as a string."""
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else name or ""


def numbers_of(indices: Any) -> list[int]:
    """Return the numbers of an operator's or subgraph's tensors, without -1 for inputs that are left out."""
    return [int(index) for index in (indices if indices is not None else []) if index >= 0]


def constant_bytes(model: Any, tensor: Any) -> NDArray[np.uint8] | None:
    """Return the bytes of a constant, or None for a tensor that is computed."""
    data = model.buffers[tensor.buffer].data if tensor.buffer else None
    return None if data is None or not len(data) else np.asarray(data, np.uint8)


def constant_array(model: Any, tensor: Any) -> NDArray[Any] | None:
    """Return the value of a constant as stored; None for a tensor that is computed, sparse, or of another type."""
    data = constant_bytes(model, tensor)
    dtype = _DTYPES.get(type_name(tensor))
    if data is None or dtype is None or tensor.sparsity is not None:
        return None
    value: NDArray[Any] = data.view(dtype).reshape(numbers_of(tensor.shape))
    return value


_DTYPES: dict[str, Any] = {
    "FLOAT32": np.float32,
    "FLOAT16": np.float16,
    "INT8": np.int8,
    "UINT8": np.uint8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
}


def set_constant(model: Any, tensor: Any, value: NDArray[Any]) -> None:
    """Make a tensor a constant; its element type becomes that of the value."""
    from tensorflow.lite.python import schema_py_generated as schema

    buffer = schema.BufferT()
    buffer.data = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
    model.buffers.append(buffer)
    tensor.buffer = len(model.buffers) - 1
    tensor.type = getattr(schema.TensorType, value.dtype.name.upper())
    tensor.shape, tensor.shapeSignature, tensor.sparsity = list(value.shape), None, None
    if value.dtype.kind == "f":
        tensor.quantization = None


def real(values: NDArray[Any], tensor: Any) -> NDArray[np.float32]:
    """Return a tensor's values in real units: `(values - zero point) * scale`, per axis where the file says so."""
    scales, zeros = scale_of(tensor)
    if not len(scales):
        return values.astype(np.float32)
    if len(scales) > 1:
        lengths = [1] * values.ndim
        lengths[tensor.quantization.quantizedDimension] = len(scales)
        scales, zeros = scales.reshape(lengths), zeros.reshape(lengths)
    return ((values.astype(np.int64) - zeros) * scales.astype(np.float32)).astype(np.float32)


def scale_of(tensor: Any) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the scales and zero points of a quantized tensor; empty for others.

    Floating tensors have them too in files of models that were trained for quantization; there they mean nothing.
    """
    quantization = tensor.quantization
    if quantization is None or quantization.scale is None or type_name(tensor) not in QUANTIZED:
        return np.zeros(0, np.float32), np.zeros(0, np.int64)
    scales = np.asarray(quantization.scale, np.float32)
    zeros = quantization.zeroPoint
    if zeros is None or not len(zeros):
        return scales, np.zeros(len(scales), np.int64)
    return scales, np.broadcast_to(np.asarray(zeros, np.int64), scales.shape)


QUANTIZED = frozenset({"INT8", "UINT8", "INT16", "INT32"})
"""Element types whose integers may stand for real numbers."""


def compute_constants(model: Any) -> None:
    """Compute, in TFLite, what operators make of constants alone, and take these operators out.

    So float16 weights become float32 (DEQUANTIZE), and sparse ones dense (DENSIFY).

    Raises:
        ConversionError: TFLite can't compute one.
    """
    graph = main_graph(model)
    left = []
    for operator in graph.operators:
        inputs = numbers_of(operator.inputs)
        fixed = inputs and all(constant_bytes(model, graph.tensors[number]) is not None for number in inputs)
        if not fixed or operator_name(model, operator) not in ("DEQUANTIZE", "DENSIFY"):
            left.append(operator)
            continue
        for number, value in run_operator(model, operator, {}, reference=True).items():
            set_constant(model, graph.tensors[number], value)
    graph.operators = left


def with_float_weights(model: Any) -> list[Any]:
    """Replace the quantized weights of operators that compute with floats; return these operators.

    TFLite computes such an operator (a hybrid one) by quantizing its input on the fly.
    """
    graph = main_graph(model)
    hybrid = []
    for operator in graph.operators:
        inputs, outputs = numbers_of(operator.inputs), numbers_of(operator.outputs)
        if operator_name(model, operator) == "DEQUANTIZE" or not outputs:
            continue
        if type_name(graph.tensors[outputs[0]]) != "FLOAT32":
            continue
        for number in inputs:
            tensor = graph.tensors[number]
            value = constant_array(model, tensor)
            if value is not None and len(scale_of(tensor)[0]):
                set_constant(model, tensor, real(value, tensor))
                hybrid.append(operator)
    for operator in graph.operators:
        options = operator.builtinOptions
        if hasattr(options, "asymmetricQuantizeInputs"):
            options.asymmetricQuantizeInputs = False
    return hybrid


def single_operator(model: Any, operator: Any) -> tuple[bytes, list[int], list[int]]:
    """Return a TFLite file with one operator of a model, and the numbers in the model of its inputs and outputs."""
    from tensorflow.lite.python import schema_py_generated as schema

    source = main_graph(model)
    used = list(dict.fromkeys(_tensors(operator)))
    inputs = [n for n in dict.fromkeys(numbers_of(operator.inputs)) if constant_bytes(model, source.tensors[n]) is None]
    outputs = numbers_of(operator.outputs)
    single, graph = schema.ModelT(), schema.SubGraphT()
    single.version, single.operatorCodes = model.version, [model.operatorCodes[operator.opcodeIndex]]
    single.buffers = [schema.BufferT()]  # the first is empty by definition
    graph.tensors = []
    for number in used:
        tensor = copy.copy(source.tensors[number])
        if constant_bytes(model, tensor) is not None:
            single.buffers.append(model.buffers[tensor.buffer])
            tensor.buffer = len(single.buffers) - 1
        else:
            tensor.buffer = 0
        graph.tensors.append(tensor)
    place = {number: position for position, number in enumerate(used)} | {-1: -1}
    alone = copy.copy(operator)
    alone.opcodeIndex = 0
    alone.inputs = [place[int(number)] for number in operator.inputs]
    alone.outputs = [place[int(number)] for number in operator.outputs]
    graph.operators = [alone]
    graph.inputs, graph.outputs = [place[n] for n in inputs], [place[n] for n in outputs]
    single.subgraphs = [graph]
    return packed(single), inputs, outputs


def run_operator(model: Any, operator: Any, values: Mapping[int, NDArray[Any]], *, reference: bool) -> Values:
    """Run one operator of a model in TFLite; return its outputs.

    Args:
        model: The model.
        operator: One of its main subgraph.
        values: At least its inputs that are no constants.
        reference: Whether the plain kernels compute, where there are some.

    Raises:
        ConversionError: TFLite can't run it.
    """
    content, inputs, outputs = single_operator(model, operator)
    if reference:
        try:
            interpreter_of(content, reference=True)
        except ValueError:  # ELU, for instance, has none
            reference = False
    place = {number: position for position, number in enumerate(dict.fromkeys(_tensors(operator)))}
    found = computed(content, [values[n] for n in inputs], [place[n] for n in outputs], reference=reference)
    return {number: found[place[number]] for number in outputs}


def _tensors(operator: Any) -> Iterator[int]:
    yield from numbers_of(operator.inputs)
    yield from numbers_of(operator.outputs)


def _verify_numbers(model: Any) -> None:
    """Raise an error where the model names parts that are not there: TFLite looks at some of them only when it runs."""
    graph = main_graph(model)
    for operator in graph.operators:
        operator_name(model, operator)
        for number in _tensors(operator):
            graph.tensors[number]
    for number in (*numbers_of(graph.inputs), *numbers_of(graph.outputs)):
        graph.tensors[number]
    for tensor in graph.tensors:
        constant_array(model, tensor)


def _parsed(content: bytes) -> Any:
    from tensorflow.lite.python import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(content, 0)
    for buffer in model.buffers:
        if buffer.offset > 1:  # files of more than 2 GB have their constants behind the flatbuffer
            buffer.data = np.frombuffer(content, np.uint8, buffer.size, buffer.offset)
            buffer.offset = buffer.size = 0
    return model
