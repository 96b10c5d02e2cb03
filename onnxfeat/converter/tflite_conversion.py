"""Convert a TFLite model to ONNX with tf2onnx, many inner tensors watched.

tf2onnx reads a TFLite file, but not every one: it keys tensors by names, which need not be unique; it forgets the bias
of a transposed convolution; it takes scales for a quantization also where they mean nothing. So it gets a copy in which
these things are told apart. One custom operator at the end, `SINK`, reads all watched tensors: tf2onnx's time grows
with the number of outputs, and what an operator reads it dequantizes by itself.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxfeat.converter import tflite_files as files
from onnxfeat.converter.messages import reason_of, without_greetings
from onnxfeat.converter.repairs import repair
from onnxfeat.converter.tensorflow_graphs import SINK, refuse_opset, refuse_phantoms
from onnxfeat.errors import ConversionError

# They push a DequantizeLinear behind what follows, so that the value of the layer before it is no longer there.
_NOT_USED = ("optimize_transpose", "remove_identity", "q_dq_optimizer")


def onnx_of_tflite(
    model: Any, names: Mapping[int, str], reserved: Sequence[str], watched: Sequence[int], opset: int
) -> onnx.ModelProto:
    """Convert a TFLite model to ONNX.

    Args:
        model: The model, with floating or quantized weights and without constants to compute; it is not changed.
        names: Names for tensors by number, inputs among them.
        reserved: Names that no other tensor may have: those that the outputs will get.
        watched: Numbers of the tensors that are wanted beside the model's outputs.
        opset: ONNX operator set version.

    Returns:
        The ONNX model. Its outputs are the model's and then that of the node `SINK`, whose inputs are the watched
        tensors in order, in real units.

    Raises:
        ConversionError: tf2onnx can't convert the model.
    """
    refuse_opset(opset)
    prepared = _prepared(model, names, reserved, watched)
    graph = files.main_graph(prepared)
    outputs = [files.text(graph.tensors[number].name) for number in files.numbers_of(files.main_graph(model).outputs)]
    inputs = [files.text(graph.tensors[number].name) for number in files.numbers_of(graph.inputs)]
    converted = _converted(files.packed(prepared), list(dict.fromkeys(outputs)), opset)
    _refuse_unknown(converted, graph, prepared)
    refuse_phantoms(converted, inputs)
    repair(converted)
    return _with_outputs(converted, outputs)


def _prepared(model: Any, names: Mapping[int, str], reserved: Sequence[str], watched: Sequence[int]) -> Any:
    """Return a copy of a model that tf2onnx reads rightly, with the operator `SINK` at its end."""
    prepared = files.copied(model)
    del prepared.subgraphs[1:]
    prepared.signatureDefs = prepared.metadata = None
    graph = files.main_graph(prepared)
    _name_tensors(graph, names, reserved)
    used = {number for operator in graph.operators for number in files.numbers_of(operator.inputs)}
    for number, tensor in enumerate(graph.tensors):
        if number not in used:  # such as sparse weights, which it can't read
            tensor.buffer = 0
    for tensor in graph.tensors:
        _clean_quantization(prepared, tensor)
    graph.operators = [piece for operator in graph.operators for piece in _pieces(prepared, graph, operator)]
    _add_sink(prepared, graph, watched)
    return prepared


def _name_tensors(graph: Any, names: Mapping[int, str], reserved: Sequence[str]) -> None:
    """Give every tensor a name of its own; those of inputs are kept as they are, as users feed them."""
    first = files.numbers_of(graph.inputs)
    taken = {SINK, *reserved} - {names.get(number, "") for number in first}
    for number in [*first, *(number for number in range(len(graph.tensors)) if number not in first)]:
        tensor = graph.tensors[number]
        name = names.get(number) or files.text(tensor.name).partition(";")[0] or f"tensor_{number}"
        unique, count = name, 1
        while unique in taken:
            count += 1
            unique = f"{name}__{count}"
        # tf2onnx puts these behind names of its own.
        taken.update(unique + end for end in ("", "_dequant", "_prequant", "_quantize"))
        tensor.name = unique.encode()


def _clean_quantization(model: Any, tensor: Any) -> None:
    """Leave scales only where integers stand for real numbers: tf2onnx looks at nothing else."""
    scales, zeros = files.scale_of(tensor)
    constant = files.constant_bytes(model, tensor) is not None
    if not len(scales) or (files.type_name(tensor) == "INT32" and not constant):
        tensor.quantization = None
        return
    tensor.quantization = copy.copy(tensor.quantization)
    tensor.quantization.zeroPoint = np.asarray(zeros, np.int64)
    tensor.quantization.min = tensor.quantization.max = None


def _pieces(model: Any, graph: Any, operator: Any) -> list[Any]:
    """Return the operators to write in place of one."""
    from tensorflow.lite.python import schema_py_generated as schema

    builtin, functions = schema.BuiltinOperator, schema.ActivationFunctionType
    if files.operator_name(model, operator) == "TRANSPOSE_CONV" and len(files.numbers_of(operator.inputs)) == 4:
        first, then = _split(model, graph, operator, builtin.ADD)  # tf2onnx forgets the bias
        then.inputs.append(int(first.inputs[3]))
        first.inputs = list(first.inputs[:3])
        then.builtinOptions, then.builtinOptionsType = schema.AddOptionsT(), schema.BuiltinOptions.AddOptions
        then.builtinOptions.fusedActivationFunction = first.builtinOptions.fusedActivationFunction
        first.builtinOptions.fusedActivationFunction = functions.NONE
        return [first, *_pieces(model, graph, then)]
    if getattr(operator.builtinOptions, "fusedActivationFunction", None) == functions.RELU_N1_TO_1:
        first, then = _split(model, graph, operator, builtin.RELU_N1_TO_1)  # the one that tf2onnx can't take apart
        first.builtinOptions.fusedActivationFunction = functions.NONE
        return [first, then]
    return [operator]


def _split(model: Any, graph: Any, operator: Any, code: int) -> tuple[Any, Any]:
    """Return an operator that gives a new, floating tensor, and one that reads it and gives the result."""
    from tensorflow.lite.python import schema_py_generated as schema

    (result,) = files.numbers_of(operator.outputs)
    between = copy.copy(graph.tensors[result])
    between.name = graph.tensors[result].name + f"/{len(graph.tensors)}".encode()
    between.quantization, between.type, between.buffer = None, schema.TensorType.FLOAT32, 0
    graph.tensors.append(between)
    first, then = copy.copy(operator), schema.OperatorT()
    first.builtinOptions = copy.copy(operator.builtinOptions)
    first.outputs = [len(graph.tensors) - 1]
    then.inputs, then.outputs = [len(graph.tensors) - 1], [result]
    then.opcodeIndex = _code(model, code)
    return first, then


def _code(model: Any, builtin: int, custom: str | None = None) -> int:
    """Add an operator to those that the file uses; return its position."""
    from tensorflow.lite.python import schema_py_generated as schema

    code = schema.OperatorCodeT()
    code.builtinCode = builtin
    code.deprecatedBuiltinCode = min(builtin, schema.BuiltinOperator.PLACEHOLDER_FOR_GREATER_OP_CODES)
    code.customCode = custom and custom.encode()
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1


def _add_sink(model: Any, graph: Any, watched: Sequence[int]) -> None:
    from tensorflow.lite.python import schema_py_generated as schema

    end, sink = schema.TensorT(), schema.OperatorT()
    end.name, end.shape, end.type = SINK.encode(), [1], schema.TensorType.FLOAT32
    graph.tensors.append(end)
    sink.inputs, sink.outputs = list(watched), [len(graph.tensors) - 1]
    sink.opcodeIndex = _code(model, schema.BuiltinOperator.CUSTOM, SINK)
    graph.operators.append(sink)


def _converted(content: bytes, outputs: list[str], opset: int) -> onnx.ModelProto:
    import tf2onnx
    from tf2onnx import optimizer

    handlers: dict[str, Any] = {f"TFL_{SINK}": (_leave, []), "TFL_GELU": (_convert_gelu, [])}
    handlers |= {name: (_convert_clip, []) for name in _LIMITS}
    with tempfile.TemporaryDirectory() as folder, _silent("tf2onnx"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it asks TFLite for shapes, which says that it will move to another package
        path = Path(folder) / "prepared.tflite"
        path.write_bytes(content)
        try:
            with without_greetings():  # TFLite tells how it would run the model that tf2onnx asks it about
                graph = tf2onnx.tfonnx.process_tf_graph(
                    None, tflite_path=str(path), opset=opset, output_names=[*outputs, SINK], custom_op_handlers=handlers
                )
            kinds = {name: kind for name, kind in optimizer._get_optimizers().items() if name not in _NOT_USED}
            graph = optimizer.optimize_graph(graph, catch_errors=False, optimizers=kinds)
            model: onnx.ModelProto = graph.make_model("converted by onnxfeat")
        except Exception as error:  # tf2onnx raises whatever its handlers meet
            raise ConversionError(
                f"tf2onnx {tf2onnx.__version__} can't convert the model: {reason_of(error)}; convert the model that "
                f"the TFLite file was made from instead"
            ) from error
        return model


@contextlib.contextmanager
def _silent(logger: str) -> Iterator[None]:
    """Keep a package from logging what is raised, or expected, in the block."""
    before = logging.getLogger(logger).level
    logging.getLogger(logger).setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logging.getLogger(logger).setLevel(before)


def _refuse_unknown(model: onnx.ModelProto, graph: Any, prepared: Any) -> None:
    """Raise a `ConversionError` for operators that ONNX does not have: tf2onnx writes what it can't convert through."""
    import tf2onnx

    layers = {}
    for operator in graph.operators:
        for number in files.numbers_of(operator.outputs):
            layers[files.text(graph.tensors[number].name)] = files.operator_name(prepared, operator)
    for node in model.graph.node:
        if node.op_type == f"TFL_{SINK}" or onnx.defs.has(node.op_type, node.domain):
            continue
        name = next(
            (layer for layer in sorted(layers, key=len, reverse=True) if node.name.startswith(layer)), node.name
        )
        raise ConversionError(
            f"tf2onnx {tf2onnx.__version__} can't convert operator {layers.get(name, node.op_type)} of layer {name!r}: "
            f"it left {node.op_type}, which ONNX does not have; convert the model that the TFLite file was made from "
            f"instead, or replace the layer"
        )


def _with_outputs(model: onnx.ModelProto, outputs: Sequence[str]) -> onnx.ModelProto:
    """Give the model its outputs in order, and the sink its name."""
    (sink,) = (node for node in model.graph.node if node.op_type == f"TFL_{SINK}")
    for copied in [node for node in model.graph.node if sink.output[0] in node.input]:  # tf2onnx puts an Identity there
        model.graph.node.remove(copied)
    sink.name, sink.output[0] = SINK, SINK
    given = {value.name: value for value in model.graph.input}  # tf2onnx leaves out an input that is an output
    known = given | {value.name: value for value in model.graph.output}
    del model.graph.output[:]
    for position, name in enumerate(outputs):
        value = onnx.ValueInfoProto()
        value.CopyFrom(known[name])
        if name in given or name in outputs[:position]:
            value.name = f"{name}__output_{position}"
            model.graph.node.append(onnx.helper.make_node("Identity", [name], [value.name], name=value.name))
        model.graph.output.append(value)
    model.graph.output.append(known[SINK])
    return model


def _leave(*_: Any) -> None:
    """Leave a node as it is; called by tf2onnx."""


_LIMITS = {"TFL_RELU_N1_TO_1": (-1.0, 1.0), "TFL_RELU_0_TO_1": (0.0, 1.0)}


def _convert_clip(graph: Any, node: Any, *_: Any) -> None:
    """Write a ReLU that ends at 1, which tf2onnx does not know in TFLite, as Clip; called by tf2onnx."""
    pieces = _Pieces(graph, node)
    low, high = _LIMITS[node.type]
    pieces.end("Clip", pieces.source, pieces.number(low), pieces.number(high))


def _convert_gelu(graph: Any, node: Any, *_: Any) -> None:
    """Write GELU, x * (1 + g(x)) / 2, which tf2onnx does not know in TFLite; called by tf2onnx.

    g(x) is erf(x / sqrt(2)), or tanh(sqrt(2 / pi) * (x + 0.044715 x^3)) where the file asks for the approximation.
    """
    pieces = _Pieces(graph, node)
    x, number = pieces.source, pieces.number
    if node.get_attr_value("approximate"):
        cube = pieces.add("Mul", pieces.add("Mul", x, x), x)
        inner = pieces.add("Add", x, pieces.add("Mul", cube, number(0.044715)))
        function = pieces.add("Tanh", pieces.add("Mul", inner, number((2 / np.pi) ** 0.5)))
    else:
        function = pieces.add("Erf", pieces.add("Mul", x, number(0.5**0.5)))
    pieces.end("Mul", pieces.add("Mul", x, number(0.5)), pieces.add("Add", function, number(1.0)))


class _Pieces:
    """The nodes that replace one node of a tf2onnx graph.

    Attributes:
        source: What the node reads.
    """

    def __init__(self, graph: Any, node: Any) -> None:
        self.source: str = node.input[0]
        self._graph, self._name, self._result = graph, node.name, node.output[0]
        self._kinds = {"dtypes": [graph.get_dtype(self._result)], "shapes": [graph.get_shape(self._result)]}
        graph.remove_node(node.name)

    def number(self, value: float) -> str:
        """Add a constant; return its name."""
        from tf2onnx import utils

        return str(self._graph.make_const(utils.make_name(self._name), np.array(value, np.float32)).output[0])

    def add(self, operator: str, *inputs: str) -> str:
        """Add a node; return the name of its output."""
        return str(self._graph.make_node(operator, list(inputs), **self._kinds).output[0])

    def end(self, operator: str, *inputs: str) -> None:
        """Add the node that gives the result."""
        self._graph.make_node(operator, list(inputs), outputs=[self._result], name=self._name, **self._kinds)
