"""Read SavedModel folders, of TensorFlow 1 and 2, Keras 2 and 3, as one frozen graph whose layers are known.

They are read by TensorFlow 1's loader, which newer files serve too: it takes what the signature needs, and never asks
for the Python objects, such as an optimizer's state, that keep `tf.saved_model.load` from loading a file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxfeat.converter.graph_layers import Scope, find_layers
from onnxfeat.converter.keras_files import import_keras
from onnxfeat.converter.messages import reason_of
from onnxfeat.converter.saved_graphs import frozen_graph, in_float32, reason_in_session, with_own_outputs, written_order
from onnxfeat.converter.saved_programs import refuse_unsafe_operators
from onnxfeat.converter.sources import InputSpec, Source, disturbed
from onnxfeat.converter.tensorflow_graphs import onnx_of
from onnxfeat.errors import ConversionError, nearest, quote

_DEFAULT = "serving_default"
_OTHERS = "the file has others, to be chosen with --signature (signature=... in Python)"


class SavedModel(Source):
    """One signature of a SavedModel, its variables frozen and its functions inlined.

    Made by `load_saved_model`.

    Args:
        name: What messages call it.
        graph_def: The frozen graph.
        inputs: Each input and the name of its tensor in the graph.
        outputs: Name of each output and of its tensor.
        layers: The layers and the names of their tensors.
        notes: Sentences that the user should read.
    """

    def __init__(
        self,
        name: str,
        graph_def: Any,
        *,
        inputs: Mapping[str, InputSpec],
        outputs: Mapping[str, str],
        layers: Sequence[Any],
        notes: Sequence[str],
    ) -> None:
        import tensorflow as tf

        self.name, self.notes = name, tuple(notes)
        self.computed_by = f"TensorFlow {tf.__version__}"
        self.inputs, self.output_names = tuple(inputs.values()), tuple(outputs)
        self.calls = tuple(layer.call for layer in layers)
        self._graph_def = graph_def
        self._fed, self._outputs = tuple(inputs), tuple(outputs.values())
        self._watched = tuple(layer.tensor for layer in layers)
        self._layer_of = {operator: layer.call.name for layer in layers for operator in layer.operators}

    def to_onnx(self, opset: int) -> onnx.ModelProto:
        """Return the model as ONNX, with the layers' outputs behind one more output (see `onnx_of`)."""
        import tensorflow as tf

        graph_def = tf.compat.v1.GraphDef()
        graph_def.CopyFrom(self._graph_def)
        names = {tensor: spec.name for tensor, spec in zip(self._fed, self.inputs, strict=True)}
        return onnx_of(graph_def, names, self._outputs, self._watched, opset, self._layer_of)

    def run(self, feeds: Sequence[NDArray[Any]], *, disturbed_by: int | None = None) -> list[NDArray[Any]]:
        """Run the frozen graph in TensorFlow, as it is."""
        import tensorflow as tf

        with tf.Graph().as_default() as graph:
            tf.import_graph_def(self._graph_def, name="")
            fetches = [graph.get_tensor_by_name(name) for name in (*self._outputs, *self._watched)]
            if disturbed_by is not None:
                count = len(self._outputs)
                fetches[count:] = [
                    _with_noise(tf, tensor, np.random.default_rng([disturbed_by, number]))
                    for number, tensor in enumerate(fetches[count:])
                ]
            fetches = [tf.identity(tensor) for tensor in fetches]  # what is fetched itself can't be given other axes
            try:
                with tf.compat.v1.Session(graph=graph, config=_oracle_config()) as session:
                    results: list[Any] = session.run(fetches, dict(zip(self._fed, feeds, strict=True)))
            except Exception as error:  # whatever a kernel raises
                raise ConversionError(
                    f"TensorFlow can't run {self.name} on this machine, and so nothing can be compared: "
                    f"{reason_in_session(error)}"
                ) from error
        return [np.asarray(result) for result in results]


def load_saved_model(folder: Path, *, signature: str | None = None, unsafe: bool = False) -> SavedModel:
    """Load a SavedModel folder, of any version of TensorFlow or Keras.

    A SavedModel is a program. Before anything of it runs, its operators are looked through: one that touches files,
    runs Python code or talks to other machines is refused.

    Args:
        folder: The folder, with `saved_model.pb` in it.
        signature: Which of the file's signatures; None is `serving_default` or the only one.
        unsafe: Whether such operators may be there, for files of people you trust.

    Raises:
        ConversionError: The folder is no SavedModel, is damaged, holds unsafe operators, or does not have this
            signature, or takes or gives what is no array of numbers.
        MissingPackageError: TensorFlow or tf2onnx is not installed.

    Example:
        >>> load_saved_model(Path("models"))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        onnxfeat.errors.ConversionError: models is no SavedModel: a folder with saved_model.pb in it was expected; ...
    """
    meta_graph = _meta_graph(folder)
    chosen, notes = _chosen_signature(folder, meta_graph, signature)
    definition = meta_graph.signature_def[chosen]
    places = written_order(meta_graph.graph_def)
    given = _in_order(definition.outputs, places)
    inputs = {info.name: _input_spec(name, info) for name, info in _in_order(definition.inputs, places).items()}
    ends = [info.name for info in given.values()]
    if not unsafe:
        refuse_unsafe_operators(folder, meta_graph, ends)
    flat, variables = frozen_graph(folder, list(meta_graph.meta_info_def.tags), list(inputs), ends)
    outputs = with_own_outputs(flat, given)
    wide = in_float32(flat)
    if wide is not None:
        flat = wide
        notes.append("the model computes in bfloat16, which ONNX Runtime does not: converted, and compared, in float32")
    import tensorflow as tf

    with tf.Graph().as_default() as graph:
        tf.import_graph_def(flat, name="")
        layers = find_layers(
            graph,
            [name.split(":")[0] for name in inputs],
            order=places,
            variables=variables,
            known=_keras_layers(folder, meta_graph),
            classes=_default_names(),
            numbered=_is_of_keras_3(meta_graph),
        )
    return SavedModel(str(folder), flat, inputs=inputs, outputs=outputs, layers=layers, notes=notes)


def is_saved_model(folder: Path) -> bool:
    """Whether a folder holds a SavedModel."""
    return any((folder / name).is_file() for name in ("saved_model.pb", "saved_model.pbtxt"))


def _meta_graph(folder: Path) -> Any:
    """Return the graph for serving that a SavedModel holds; nothing of it is run."""
    if not is_saved_model(folder):
        raise ConversionError(
            f"{folder} is no SavedModel: a folder with saved_model.pb in it was expected; check the path, or save the "
            f"model with model.export(folder) or tf.saved_model.save"
        )
    import_keras()
    from google.protobuf import message, text_format  # type: ignore[import-untyped]
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel()
    try:
        binary = folder / "saved_model.pb"
        if binary.is_file():
            saved.ParseFromString(binary.read_bytes())
        else:
            text_format.Parse((folder / "saved_model.pbtxt").read_text(encoding="utf-8"), saved)
    except (message.DecodeError, text_format.ParseError, UnicodeDecodeError, OSError) as error:
        raise ConversionError(
            f"{folder} can't be read: {reason_of(error)}; its saved_model.pb is damaged or cut short: copy or save it "
            f"again"
        ) from error
    serving = [graph for graph in saved.meta_graphs if "serve" in graph.meta_info_def.tags] or list(saved.meta_graphs)
    if not serving:
        raise ConversionError(f"{folder} holds no graph: its saved_model.pb is empty; save the model again")
    # A file for TPUs or GPUs holds a graph for them beside the plain one.
    return min(serving, key=lambda graph: len(graph.meta_info_def.tags))


def _chosen_signature(folder: Path, meta_graph: Any, asked: str | None) -> tuple[str, list[str]]:
    """Return the signature to take, and what to tell about it."""
    names = sorted(
        name
        for name, definition in meta_graph.signature_def.items()
        if not name.startswith("__") and definition.inputs and definition.outputs
    )
    if not names:
        raise ConversionError(
            f"{folder} has no signature, so it does not say what goes in and out: save it with model.export(folder), "
            f"or with tf.saved_model.save(model, folder, signatures=...)"
        )
    if asked is not None:
        if asked not in names:
            raise ConversionError(
                f"{folder} has no signature {asked!r}; nearest are {quote(nearest(asked, names) or names[:3])} of "
                f"{len(names)}"
            )
        return asked, []
    chosen = _DEFAULT if _DEFAULT in names else names[0]
    others = [name for name in names if name not in (chosen, "serve")]  # Keras writes the same as `serve` once more
    return chosen, [f"signature {chosen!r} was taken; {_OTHERS}: {', '.join(others)}"] if others else []


def _in_order(tensors: Mapping[str, Any], places: Mapping[str, int]) -> dict[str, Any]:
    """Return name to `TensorInfo` of a signature's tensors, in the order of the signature, which its map forgets."""

    def place(item: tuple[str, Any]) -> tuple[int, int]:
        operator, _, position = item[1].name.partition(":")
        return places[operator], int(position or 0)

    for name, info in tensors.items():
        if info.name.split(":")[0] not in places:
            raise ConversionError(
                f"{name!r} of the signature is no plain tensor of the graph but a sparse or composite one, or the file "
                f"is damaged: save the model with a signature of plain tensors"
            )
    return dict(sorted(tensors.items(), key=place))


def _input_spec(name: str, info: Any) -> InputSpec:
    import tensorflow as tf

    dtype = tf.dtypes.as_dtype(info.dtype)
    if not (dtype.is_floating or dtype.is_integer or dtype.is_bool):
        raise ConversionError(
            f"input {name!r} takes {dtype.name} values, such as the bytes of a file, and numbers are needed: choose "
            f"another signature, or save the model with one that takes the picture's values"
        )
    if info.tensor_shape.unknown_rank:
        raise ConversionError(
            f"input {name!r} does not say how many axes it has: save the model with a signature that does, such as "
            f"tf.TensorSpec([None, 224, 224, 3])"
        )
    shape = tuple(None if axis.size < 0 else int(axis.size) for axis in info.tensor_shape.dim)
    dtype = tf.float32 if dtype == tf.bfloat16 else dtype  # see `in_float32`
    return InputSpec(name=name, shape=shape, dtype=np.dtype(dtype.as_numpy_dtype))


def _keras_layers(folder: Path, meta_graph: Any) -> dict[Scope, str]:
    """Return path to class of the layers that Keras 2 lists in the file; empty for other files.

    Up to TensorFlow 2.4 the list is in `saved_model.pb`, later it is in `keras_metadata.pb`.
    """
    nodes = meta_graph.object_graph_def.nodes
    metadata = {
        number: node.user_object.metadata
        for number, node in enumerate(nodes)
        if node.user_object.identifier.startswith("_tf_keras_") and node.user_object.metadata
    }
    beside = folder / "keras_metadata.pb"
    if beside.is_file():
        from google.protobuf import message
        from tensorflow.python.keras.protobuf import saved_metadata_pb2

        listed = saved_metadata_pb2.SavedMetadata()
        try:
            listed.ParseFromString(beside.read_bytes())
        except (message.DecodeError, OSError) as error:
            raise ConversionError(
                f"{beside} can't be read: {reason_of(error)}; copy or save the model again, or delete that file: "
                f"layers are then named by the graph's scopes"
            ) from error
        metadata.update({node.node_id: node.metadata for node in listed.nodes if node.metadata})
    paths: dict[Scope, str] = {}
    if 0 not in metadata:
        return paths
    todo: list[tuple[int, Scope]] = [(0, ())]
    seen = set()
    while todo:
        number, path = todo.pop()
        for child in nodes[number].children:
            if child.node_id in metadata and child.node_id not in seen:
                seen.add(child.node_id)
                described = json.loads(metadata[child.node_id])
                inner = (*path, described["name"])
                paths[inner] = described["class_name"]
                todo.append((child.node_id, inner))
    return paths


def _default_names() -> dict[str, str]:
    """Return the name that Keras gives a layer by default to the layer's class: `max_pooling2d` to `MaxPooling2D`."""
    layers = import_keras().layers
    names = {}
    for name in {kind.__name__ for kind in vars(layers).values() if isinstance(kind, type)}:
        parted = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
        names[re.sub("([a-z])([A-Z])", r"\1_\2", parted).lower()] = name
    return names


def _is_of_keras_3(meta_graph: Any) -> bool:
    """Whether layers of Keras 3 are in the file: they alone, and its archive, have these attributes."""
    nodes = meta_graph.object_graph_def.nodes
    return any(child.local_name in ("_misc_assets", "_loss_ids") for node in nodes for child in node.children)


def _with_noise(tf: Any, tensor: Any, random: np.random.Generator) -> Any:
    """Let all that reads a tensor read it moved by rounding noise; return the moved tensor."""
    if not tensor.dtype.is_floating:
        return tensor
    users = [(user, place) for user in tensor.consumers() for place, used in enumerate(user.inputs) if used is tensor]
    moved = tf.numpy_function(lambda array: disturbed(array, random), [tensor], tensor.dtype)
    moved.set_shape(tensor.shape)
    for user, place in users:
        user._update_input(place, moved)
    return moved


def _oracle_config() -> Any:
    """Return how TensorFlow runs the graph: as it is, but channels last, which its CPU kernels need."""
    from tensorflow.core.protobuf import config_pb2, rewriter_config_pb2

    config = config_pb2.ConfigProto()
    options = config.graph_options.rewrite_options
    options.optimizers.append("layout")
    options.cpu_layout_conversion = rewriter_config_pb2.RewriterConfig.NCHW_TO_NHWC
    options.min_graph_nodes = -1
    return config
