"""Trace Keras models: record what each of their layers gives while the model runs, as TensorFlow graph and for real."""

from __future__ import annotations

import contextlib
import inspect
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxfeat.converter.keras_files import import_keras
from onnxfeat.converter.messages import reason_of
from onnxfeat.converter.sources import Call, InputSpec, Source, disturbed
from onnxfeat.converter.tensorflow_graphs import frozen, onnx_of
from onnxfeat.errors import ConversionError
from onnxfeat.graph.layouts import CHANNELS_FIRST, CHANNELS_LAST
from onnxfeat.records import Kind

# Public classes of keras.layers; their subclasses, custom ones too, are of the same kind.
_KINDS: dict[Kind, tuple[str, ...]] = {
    "conv": tuple(
        f"{form}{rank}D{suffix}"
        for rank in (1, 2, 3)
        for form, suffix in (("Conv", ""), ("Conv", "Transpose"), ("DepthwiseConv", ""), ("SeparableConv", ""))
    ),
    "pool": tuple(
        f"{form}Pooling{rank}D"
        for rank in (1, 2, 3)
        for form in ("Max", "Average", "GlobalMax", "GlobalAverage", "AdaptiveMax", "AdaptiveAverage")
    ),
    "activation": ("Activation", "ReLU", "LeakyReLU", "PReLU", "ELU", "Softmax"),
    "norm": ("BatchNormalization", "LayerNormalization", "GroupNormalization", "RMSNormalization", "UnitNormalization"),
}


_SCOPE = r"[A-Za-z0-9.][A-Za-z0-9_.>-]*"  # what tf.name_scope takes at the root
_TRUE_NAMES: dict[int, str] = {}  # of layers that bear another name while they are traced, by id

_ANY_SIDE = 96  # cells along an open axis, to build a model


class Record(NamedTuple):
    """One call of a leaf layer: path of the layer in the model, the layer, what it gave, and its operations.

    `span` are the first and last but one of the graph's operations while a graph is traced.
    """

    path: str
    layer: Any
    output: Any
    span: tuple[int, int]


class KerasModel(Source):
    """A Keras model whose leaf layers were found by running it once, symbolically.

    Args:
        model: A Sequential, functional or subclassed model.
        input_shapes: Shape of each input, batch first, None where any length is taken, for a model that does not know
            its inputs: a shape, a list of shapes, or a mapping of argument names to shapes.
        batch: Length of the batch axis; 0 takes any; None leaves what the model says.

    Raises:
        ConversionError: The object is not a Keras model, has no input shape yet, or can't be traced.
    """

    def __init__(self, model: Any, *, input_shapes: Any = None, batch: int | None = None) -> None:
        keras = import_keras()
        import tensorflow as tf

        if not isinstance(model, keras.Model):
            raise ConversionError(f"{type(model).__name__} is not a Keras model: pass a keras.Model or a path")
        if any(layer.compute_dtype == "float64" for layer in model._flatten_layers()):
            raise ConversionError(
                f"model {model.name!r} computes in float64, for which ONNX Runtime has no convolutions: build it again "
                f"after keras.config.set_dtype_policy('float32'), give it the weights with "
                f"set_weights(old.get_weights()), and convert that"
            )
        self.model = model
        self.name = f"model {model.name!r}"
        self.computed_by = f"Keras {keras.__version__} on TensorFlow {tf.__version__}"
        self._arguments = _arguments_of(keras, model, input_shapes)
        flat = [_with_batch(spec, batch) for spec in keras.tree.flatten(self._arguments)]
        self._wide = [layer for layer in model._flatten_layers() if layer.compute_dtype == "bfloat16"]
        if self._wide:
            flat = [_in_float32(spec) for spec in flat]
            self.notes = (
                f"{len(self._wide)} layers compute in bfloat16, which ONNX Runtime does not: converted, and compared, "
                f"in float32",
            )
        # Names of ours: TensorFlow does not take every name that Keras does.
        self._signature = [tf.TensorSpec(x.shape, x.dtype, name=f"input_{number}") for number, x in enumerate(flat)]
        calls: list[Call] = []
        names: list[str] = []
        spans: list[tuple[int, int]] = []

        if not model.built:
            self._build(tf, flat)

        def run(*tensors: Any) -> list[Any]:
            outputs, records = self._call(keras, tensors)
            names[:] = _output_names(model, [spec.name for spec in flat], len(outputs))
            calls[:] = _named_calls(keras, records)
            spans[:] = [record.span for record in records]
            return [tf.identity(tensor) for tensor in (*outputs, *_tensors(keras, records))]

        function = tf.function(run, autograph=False, jit_compile=False)
        try:
            with _inlined(tf), _computing_in_float32(keras, self._wide), _fit_for_scopes(model):
                self._concrete = function.get_concrete_function(*self._signature)
        except Exception as error:  # whatever a layer raises
            is_open = any(side is None for spec in flat for side in spec.shape[1:])
            advice = ", or give its inputs a size: --input-shape 224x224x3" if is_open else ""
            raise ConversionError(
                f"{self.name} can't be traced: {reason_of(error)}; check that it runs in Keras{advice}"
            ) from error
        self.inputs = tuple(
            InputSpec(name=x.name, shape=tuple(spec.shape), dtype=np.dtype(spec.dtype.as_numpy_dtype))
            for x, spec in zip(flat, self._signature, strict=True)
        )
        self.output_names, self.calls = tuple(names), tuple(calls)
        operations = self._concrete.graph.get_operations()
        self._layer_of = {
            operation.name: call.name
            for call, span in zip(calls, spans, strict=True)
            for operation in operations[slice(*span)]
        }

    def _build(self, tf: Any, specs: Sequence[Any]) -> None:
        """Let a model that was never called make its weights."""
        zeros = [
            tf.zeros([side or (_ANY_SIDE if axis else 1) for axis, side in enumerate(x.shape)], x.dtype) for x in specs
        ]
        try:
            self._call(import_keras(), zeros)
        except Exception as error:  # whatever a layer raises
            raise ConversionError(
                f"{self.name} does not run on inputs of the shape that was given: {reason_of(error)}; check the shape"
            ) from error

    def to_onnx(self, opset: int) -> onnx.ModelProto:
        """Return the model as ONNX, with the layers' outputs behind one more output (see `onnx_of`)."""
        import tensorflow as tf

        tensors = [tensor for tensor in self._concrete.inputs if tensor.dtype != tf.resource]
        own = tensors[: len(self.inputs)]  # behind them come what the function captured
        outputs = [tensor.name for tensor in self._concrete.outputs]
        count = len(self.output_names)
        return onnx_of(
            frozen(self._concrete),
            {tensor.name: spec.name for tensor, spec in zip(own, self.inputs, strict=True)},
            outputs[:count],
            outputs[count:],
            opset,
            self._layer_of,
        )

    def run(self, feeds: Sequence[NDArray[Any]], *, disturbed_by: int | None = None) -> list[NDArray[Any]]:
        """Run the model in Keras, op by op, without what was traced."""
        keras = import_keras()
        import tensorflow as tf

        random = np.random.default_rng(disturbed_by)

        def disturb(tensor: Any) -> Any:
            return tf.constant(disturbed(tensor.numpy(), random)) if tensor.dtype.is_floating else tensor

        change = None if disturbed_by is None else disturb
        try:
            with _channels_last_convolutions(tf), _computing_in_float32(keras, self._wide):
                outputs, records = self._call(keras, [tf.constant(feed) for feed in feeds], change)
        except Exception as error:
            raise ConversionError(
                f"Keras can't run {self.name} on this machine, and so nothing can be compared: {reason_of(error)}"
            ) from error
        return [tensor.numpy() for tensor in (*outputs, *_tensors(keras, records))]

    def _call(
        self, keras: Any, tensors: Sequence[Any], change: Callable[[Any], Any] | None = None
    ) -> tuple[list[Any], list[Record]]:
        """Run the model on its inputs, one by one; return its outputs, and path, layer and output of each leaf."""
        positional, named = keras.tree.pack_sequence_as(self._arguments, list(tensors))
        records: list[Record] = []
        with _recording(keras, records, change):
            outputs = self.model(*positional, training=False, **named)
        return keras.tree.flatten(outputs), records


def _arguments_of(keras: Any, model: Any, given: Any) -> Any:
    """Return what the model is called with, as (positional, named) arguments with a `keras.KerasTensor` each."""
    inputs = getattr(model, "inputs", None)
    if inputs and given is None:
        # A functional model wants its inputs in the structure (list, dict) that it was made with.
        structure = inputs[0] if isinstance(model, keras.Sequential) else model.input
        flat = keras.tree.flatten(structure)
        return keras.tree.pack_sequence_as(([structure], {}), [_spec(keras, x.shape, x.dtype, x.name) for x in flat])
    config = model.get_build_config() or {}
    recorded = {name.removesuffix("_shape"): shape for name, shape in (config.get("shapes_dict") or {}).items()}
    shapes = given or _open_batch(recorded or config.get("input_shape"))
    wanted = _required_arguments(model)
    if not shapes:
        raise ConversionError(
            f"model {model.name!r} has no input shape yet: call it once on data, or give the shape, "
            f"--input-shape 224x224x3 (input_shapes=(None, 224, 224, 3) in Python)"
        )
    if isinstance(shapes, Mapping) and set(shapes) <= set(inspect.signature(model.call).parameters):
        named = {name: _specs(keras, shape, name) for name, shape in shapes.items()}
        missing = [name for name in wanted if name not in named]
        # Keras gives its first argument by position: a build method may call it otherwise.
        arguments: Any = ([next(iter(named.values()))], {}) if len(named) == 1 else ([], named)
    else:
        missing = wanted[1:]
        arguments = ([_specs(keras, shapes, "input")], {})
    if missing:
        raise ConversionError(
            f"model {model.name!r} takes several arguments ({', '.join(wanted)}), and the shape of {missing[0]!r} is "
            f"not known: give all of them, --input-shape {wanted[0]}=224x224x3 --input-shape {missing[0]}=..."
        )
    return arguments


def _required_arguments(model: Any) -> list[str]:
    """Return the arguments that a model's `call` can't do without."""
    return [
        name
        for name, parameter in inspect.signature(model.call).parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and name not in ("training", "mask")
    ]


def _open_batch(shapes: Any) -> Any:
    if _is_shape(shapes):
        return (None, *shapes[1:])
    if isinstance(shapes, Mapping):
        return {name: _open_batch(shape) for name, shape in shapes.items()}
    return [_open_batch(shape) for shape in shapes] if isinstance(shapes, list | tuple) else shapes


def _is_shape(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(x is None or isinstance(x, int) for x in value)


def _specs(keras: Any, shapes: Any, name: str) -> Any:
    """Return specs in the structure in which the shapes are."""
    if _is_shape(shapes):
        return _spec(keras, shapes, None, name)
    if isinstance(shapes, Mapping):
        return {key: _specs(keras, shape, str(key)) for key, shape in shapes.items()}
    return [_specs(keras, shape, f"{name}_{number}") for number, shape in enumerate(shapes, start=1)]


def _spec(keras: Any, shape: Sequence[int | None], dtype: Any, name: str) -> Any:
    return keras.KerasTensor(tuple(shape), dtype or keras.config.floatx(), name=name)


def _with_batch(spec: Any, batch: int | None) -> Any:
    if batch is None:
        return spec
    return type(spec)((batch or None, *spec.shape[1:]), spec.dtype, name=spec.name)


def _in_float32(spec: Any) -> Any:
    return type(spec)(spec.shape, "float32", name=spec.name) if spec.dtype == "bfloat16" else spec


@contextlib.contextmanager
def _computing_in_float32(keras: Any, layers: Sequence[Any]) -> Iterator[None]:
    """Let layers compute in float32 meanwhile."""
    before = [layer.dtype_policy for layer in layers]
    for layer in layers:
        layer.dtype_policy = keras.DTypePolicy("float32")
    try:
        yield
    finally:
        for layer, policy in zip(layers, before, strict=True):
            layer.dtype_policy = policy


@contextlib.contextmanager
def _inlined(tf: Any) -> Iterator[None]:
    """Trace functions that are called in the block as if their code stood there.

    Keras compiles grouped convolutions as functions of their own (`jit_compile=True`), which tf2onnx can't look into.
    """
    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(before)


@contextlib.contextmanager
def _fit_for_scopes(model: Any) -> Iterator[None]:
    """Give layers whose names TensorFlow's scopes refuse (spaces, accents, quotes) other names meanwhile."""
    unfit = [layer for layer in model._flatten_layers() if not re.fullmatch(_SCOPE, layer.name)]
    before = [layer.name for layer in unfit]
    for number, layer in enumerate(unfit):
        _TRUE_NAMES[id(layer)] = layer.name
        layer.name = f"layer_{number}"
    try:
        yield
    finally:
        for layer, name in zip(unfit, before, strict=True):
            del _TRUE_NAMES[id(layer)]
            layer.name = name


def _true_name(layer: Any) -> str:
    name: str = layer.name
    return _TRUE_NAMES.get(id(layer), name)


@contextlib.contextmanager
def _channels_last_convolutions(tf: Any) -> Iterator[None]:
    """Compute convolutions of tensors with the channels first on turned tensors: on a CPU TensorFlow has no others."""
    originals = {name: getattr(tf.nn, name) for name in ("convolution", "conv_transpose")}

    def turning(original: Callable[..., Any]) -> Callable[..., Any]:
        def convolution(tensor: Any, kernel: Any, *args: Any, data_format: str | None = None, **kwargs: Any) -> Any:
            if data_format is None or not data_format.startswith("NC") or data_format == "NC":
                return original(tensor, kernel, *args, data_format=data_format, **kwargs)
            rank = len(data_format)
            last = [0, *range(2, rank), 1]
            first = [0, rank - 1, *range(1, rank - 1)]
            if original is originals["conv_transpose"]:  # its third argument is the shape of the result
                args = (tf.gather(args[0], last), *args[1:])
            turned = tf.transpose(tensor, last)
            return tf.transpose(original(turned, kernel, *args, data_format=f"N{data_format[2:]}C", **kwargs), first)

        return convolution

    if tf.config.list_physical_devices("GPU"):
        yield
        return
    for name, original in originals.items():
        setattr(tf.nn, name, turning(original))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(tf.nn, name, original)


def _tensors(keras: Any, records: Sequence[Record]) -> list[Any]:
    """Return the tensor that is each layer's map; of several outputs (a recurrent layer's states), the first."""
    return [keras.tree.flatten(record.output)[0] for record in records]


@contextlib.contextmanager
def _recording(keras: Any, records: list[Record], change: Callable[[Any], Any] | None) -> Iterator[None]:
    """Record path, layer and output of every leaf layer that is called in the block, after `change` if there is one.

    A leaf is a layer that calls no other layer, or calls them in a loop. Keras has no hook for this, so
    `Layer.__call__` is replaced meanwhile.
    """
    loops = (keras.layers.RNN, keras.layers.TimeDistributed)
    original: Callable[..., Any] = keras.layers.Layer.__call__
    running: list[Any] = []
    with_children: list[bool] = []

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        if running and isinstance(running[-1], loops):
            return original(layer, *args, **kwargs)
        if with_children:
            with_children[-1] = True
        running.append(layer)
        with_children.append(False)
        start = _operations()
        try:
            output = original(layer, *args, **kwargs)
        finally:
            path = "/".join(_true_name(part) for part in running[1:])
            running.pop()
            is_leaf = not with_children.pop()
        if is_leaf and running and keras.tree.flatten(output):
            output = output if change is None else keras.tree.map_structure(change, output)
            records.append(Record(path, layer, output, (start, _operations())))
        return output

    keras.layers.Layer.__call__ = call
    try:
        yield
    finally:
        keras.layers.Layer.__call__ = original


def _operations() -> int:
    """Return how many operations the graph has that is being traced; 0 where there is none."""
    import tensorflow as tf

    return 0 if tf.executing_eagerly() else int(tf.compat.v1.get_default_graph().version)


def _named_calls(keras: Any, records: list[Record]) -> list[Call]:
    totals = Counter(record.path for record in records)
    seen: Counter[str] = Counter()
    formats = [getattr(record.layer, "data_format", None) for record in records]
    last_format = next((found for found in formats if found), keras.config.image_data_format())
    calls = []
    for record in records:
        path, layer = record.path, record.layer
        seen[path] += 1
        last_format = getattr(layer, "data_format", None) or last_format
        layouts = CHANNELS_FIRST if last_format == "channels_first" else CHANNELS_LAST
        calls.append(
            Call(
                name=path if totals[path] == 1 else f"{path}#{seen[path]}",
                layer_class=type(layer).__name__,
                kind=_kind(keras, layer),
                layout=layouts.get(len(keras.tree.flatten(record.output)[0].shape)),
            )
        )
    return calls


def _kind(keras: Any, layer: Any) -> Kind:
    for kind, names in _KINDS.items():
        classes = tuple(getattr(keras.layers, name) for name in names if hasattr(keras.layers, name))
        if isinstance(layer, classes):
            return kind
    return "other"


def _output_names(model: Any, inputs: Sequence[str], count: int) -> list[str]:
    layers = getattr(model, "layers", None)
    names = list(getattr(model, "output_names", None) or ([layers[-1].name] if count == 1 and layers else []))
    # A model may pass an input on, and so have the input's name among those of its outputs.
    if len(names) != count or len({*names} - {*inputs}) != count:
        names = [f"output_{number}" for number in range(count)] if count > 1 else ["output"]
    return names
