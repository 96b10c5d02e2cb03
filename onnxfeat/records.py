"""Hold the facts that pass between the stages: frozen records, and arrays that can't be written to."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from onnxfeat.errors import LayerError, nearest, quote
from onnxfeat.preprocessing import Preprocessing
from onnxfeat.registration import Registration
from onnxfeat.serialization import fields_from_json, fields_to_json

Kind = Literal["conv", "pool", "activation", "norm", "other"]
Provider = Literal["auto", "cpu", "cuda"]

Weights = Literal["auto", "refer", "carry"]

Axis = int | str | None
"""Length of one axis: a number, the name of a symbolic length, or None where nothing is known."""

DEFAULT_OPSET = 17
"""ONNX operator set version of converted files: what runtimes since 2022 know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
    """How the integers of a quantized value stand for real numbers: `(integer - zero_point) * scale`.

    The rule is that of ONNX's DequantizeLinear (https://onnx.ai/onnx/operators/onnx__DequantizeLinear.html).

    Attributes:
        scale: One number for the whole value, or one for each index of `axis`.
        zero_point: The integer that stands for 0; as many as `scale`.
        axis: The axis that the numbers belong to, in the layout of the graph; None where there is one for all.

    Example:
        >>> Quantization(scale=(0.5,), zero_point=(128,)).dequantize(np.array([128, 130], np.uint8)).tolist()
        [0.0, 1.0]
    """

    scale: tuple[float, ...]
    zero_point: tuple[int, ...]
    axis: int | None = None

    def dequantize(self, integers: NDArray[Any]) -> NDArray[np.float32]:
        """Return the real numbers, float32, in the shape of `integers`."""
        scale: Any = np.float32(self.scale[0])  # a plain number is many times as fast as an array of one
        zero_point: Any = np.float32(self.zero_point[0])
        if self.axis is not None:
            shape = [1] * integers.ndim
            shape[self.axis] = -1
            scale = np.asarray(self.scale, np.float32).reshape(shape)
            zero_point = np.asarray(self.zero_point, np.int64).astype(np.float32).reshape(shape)
        values: NDArray[np.float32] = np.subtract(integers, zero_point, dtype=np.float32)  # converted on the way
        values *= scale
        return values

    def saturated(self, integers: NDArray[Any]) -> float:
        """Return the share, 0 to 1, of integers at an end of their type, where real values were cut off.

        An end that stands for 0 does not count: a ReLU that became part of the quantization ends there.
        """
        limits = np.iinfo(integers.dtype)
        count = 0
        # One zero point for all is the rule; then a pass for each end that counts is all it takes.
        slices = [integers] if self.axis is None else np.moveaxis(integers, self.axis, 0)
        for part, zero_point in zip(slices, self.zero_point, strict=True):
            for end in (limits.min, limits.max):
                count += int(np.count_nonzero(part == end)) if end != zero_point else 0
        return count / max(integers.size, 1)

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON data."""
        return fields_to_json(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Quantization:
        """Return the record that `to_json` wrote; keys that are not fields are left out."""
        return cls(**fields_from_json(cls, data))


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer of a network: a node of the graph with the normalization and activation that belong to it.

    Attributes:
        name: The framework's name of the layer where it is known, else one made from the graph. Unique in the model.
        kind: What the layer does: `conv`, `pool`, `activation`, `norm` or `other`.
        op_type: ONNX operator of the layer's node, such as `Conv`; its framework class where no single node stands
            for the layer.
        value: Name of the ONNX value that is the layer's output, after the activation.
        raw_value: Name of the ONNX value before the activation; equals `value` where there is none.
        activation: Name of the activation, such as `Relu` or `SiLU`, or None.
        shape: Shape of `value` in the layout of the graph, with symbolic axes as strings; None where unknown.
        layout: Order of the axes of `value`, such as `NCHW` or `NHWC`; `NC` where there are no spatial axes; None
            where the graph does not tell.
        dtype: Element type of `value` in ONNX's words, such as `float`; None where unknown.
        reduction: Stride against the input for each spatial axis: 4 means that neighboring cells of the map look at
            places of the picture that are 4 pixels apart. None where unknown.
        receptive_field: Side lengths in pixels of the part of the picture that one cell sees; None where it sees
            all of the picture or where it is unknown.
        source: The layer's path or class in the framework that made it, such as `Conv2D`; None where unknown.
        node: Name of the ONNX node that computes `raw_value`; empty where the node has none.
        quantization: How the integers of `value` become real numbers; None where they are no quantized numbers.
        note: What else is to be known, in words: that a Sigmoid is the gate of a SiLU, that a residual Add follows.
        unseen: Why the layer can't be extracted; empty where it can.

    Example:
        >>> layer = Layer(name="conv2d", kind="conv", op_type="Conv", value="y", raw_value="x", layout="NCHW",
        ...               shape=("N", 8, 148, 148))
        >>> layer.channels, layer.spatial, layer.is_vector
        (8, (148, 148), False)
    """

    name: str
    kind: Kind
    op_type: str
    value: str
    raw_value: str
    activation: str | None = None
    shape: tuple[Axis, ...] | None = None
    layout: str | None = None
    dtype: str | None = None
    reduction: tuple[float, ...] | None = None
    receptive_field: tuple[int, ...] | None = None
    source: str | None = None
    node: str = ""
    quantization: Quantization | None = None
    note: str = ""
    unseen: str = ""

    @property
    def channels(self) -> int | None:
        """Number of channels, or None where the graph does not tell."""
        if self.shape is None or self.layout is None or len(self.shape) != len(self.layout):
            return None
        channels = self.shape[self.layout.index("C")]
        return channels if isinstance(channels, int) else None

    @property
    def spatial(self) -> tuple[Axis, ...] | None:
        """Lengths of the spatial axes in the graph's order, or None where the graph does not tell."""
        if self.shape is None or self.layout is None or len(self.shape) != len(self.layout):
            return None
        return tuple(side for side, axis in zip(self.shape, self.layout, strict=True) if axis not in "NC")

    @property
    def is_vector(self) -> bool:
        """Whether the map is 1 x 1 or has no spatial axes: one number for each channel, nothing to see."""
        return self.spatial is not None and all(side == 1 for side in self.spatial)

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON data, with the properties that follow from its fields."""
        quantization = None if self.quantization is None else self.quantization.to_json()
        facts = {"channels": self.channels, "is_vector": self.is_vector, "quantization": quantization}
        return {**fields_to_json(self), **facts}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Layer:
        """Return the record that `to_json` wrote; keys that are not fields are left out."""
        fields = fields_from_json(cls, data)
        if fields.get("quantization") is not None:
            fields["quantization"] = Quantization.from_json(fields["quantization"])
        return cls(**fields)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInput:
    """The input of a model that takes the picture, or what else the model looks at.

    Attributes:
        name: Name of the graph input.
        shape: Its shape, with symbolic axes as strings.
        layout: Order of its axes: `NCHW`, `NHWC` or `CHW` for pictures, `NCW`, `NCDHW` and the like for others; None
            where the graph does not tell.
        dtype: NumPy's name of the element type, such as `float32`; ONNX's name of a type that NumPy does not know.
        scaling: Sentence on how the model scales the levels of a picture itself; None where it does not, as far as its
            first nodes tell (see `onnxfeat.graph.scaling`).
    """

    name: str
    shape: tuple[Axis, ...]
    layout: str | None
    dtype: str
    scaling: str | None = None

    @property
    def is_picture(self) -> bool:
        """Whether it takes pictures: channels, rows and columns, with a batch axis or without."""
        return sorted((self.layout or "").replace("N", "")) == ["C", "H", "W"]

    @property
    def is_batched(self) -> bool:
        """Whether the first axis counts samples, which can be run one by one."""
        if self.layout is not None:
            return self.layout.startswith("N")
        return bool(self.shape) and (not isinstance(self.shape[0], int) or self.shape[0] <= 1)

    @property
    def letters(self) -> str:
        """A letter for each axis: the layout; where it is unknown, `N` for the axis that counts samples, else `?`."""
        return self.layout or ("N" if self.is_batched else "").ljust(len(self.shape), "?")

    @property
    def is_open(self) -> bool:
        """Whether it leaves a length open, that of its batch apart."""
        return any(
            axis != "N" and not (isinstance(side, int) and side > 0)
            for side, axis in zip(self.shape, self.letters, strict=True)
        )

    @property
    def described(self) -> str:
        """The shape that is wanted, with letters or names for lengths that are open: `(N, 3, 224, 224)`."""
        letters = self.layout or "?" * len(self.shape)
        sides = (x if x and x != -1 else letter for x, letter in zip(self.shape, letters, strict=True))
        return f"({', '.join(str(side) for side in sides)})"

    def axis(self, letter: str) -> int | None:
        """Return the length of the axis `N`, `C`, `H` or `W`, or None where it is symbolic or there is none."""
        if self.layout is None or letter not in self.layout:
            return None
        length = self.shape[self.layout.index(letter)]
        return length if isinstance(length, int) and length > 0 else None

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON data."""
        return fields_to_json(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ModelInput:
        """Return the record that `to_json` wrote."""
        return cls(**fields_from_json(cls, data))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FeatureMap:
    """The output of one layer for a batch of pictures.

    Attributes:
        layer: The layer that gave it.
        array: Its values, float32, shape `(N, C, *spatial)`: channels first whatever the graph's layout. Read-only.
        saturated: Of a quantized value, the share (0 to 1) of integers at either end of their type; None of others.
        registration: Which part of the picture each cell sees; None where no cell belongs to a place (behind global
            pooling or a dense layer), or where nobody knows.

    Example:
        >>> layer = Layer(name="conv2d", kind="conv", op_type="Conv", value="y", raw_value="y")
        >>> FeatureMap(layer=layer, array=np.zeros((1, 8, 148, 148), np.float32))
        FeatureMap('conv2d', shape=(1, 8, 148, 148))
    """

    layer: Layer
    array: NDArray[np.float32]
    saturated: float | None = None
    registration: Registration | None = None

    def __post_init__(self) -> None:
        """Lock the record's view of the array; the caller's own array stays as it is."""
        view = self.array.view()
        view.flags.writeable = False
        object.__setattr__(self, "array", view)

    @property
    def name(self) -> str:
        """Name of the layer."""
        return self.layer.name

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of `array`: `(N, C, *spatial)`."""
        return self.array.shape

    @property
    def channels(self) -> int:
        """Number of channels."""
        return int(self.array.shape[1])

    def __repr__(self) -> str:
        """Return name and shape; the values would fill the screen."""
        return f"FeatureMap({self.name!r}, shape={self.shape})"

    def _repr_png_(self) -> bytes | None:
        """Return the picture that notebooks show; None, and so the text above, where the map can't be drawn."""
        png: bytes | None = _late("onnxfeat.drawing.notebooks").png_of(self)
        return png


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderChoice:
    """Which execution provider was asked for, and which one runs.

    Attributes:
        asked: What the caller asked for: `auto`, `cpu` or `cuda`.
        got: ONNX Runtime's name of the provider that the session really uses first.
        note: Why `auto` did not become `cuda`, or empty.
    """

    asked: Provider
    got: str
    note: str = ""

    def to_json(self) -> dict[str, str]:
        """Return the record as JSON data."""
        return fields_to_json(self)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Features(Mapping[str, FeatureMap]):
    """The feature maps of one run, by layer name in order of execution, and the facts of the run.

    Attributes:
        maps: Layer name to feature map.
        pictures: Names of the pictures of the batch, in order.
        preprocessed: For each of them, whether it arrived as a preprocessed array and was taken as it is.
        model: File name of the model, or `<memory>`.
        sha256: SHA-256 of the model file.
        provider: Which execution provider was asked for and which one ran.
        preprocessing: How the pictures were prepared.
        preprocessing_source: Who said so: `caller`, `model` or `default`, why, and what the caller changed.
        seconds: Time of the run, preprocessing included.
        layers: Names of all layers of the run in order of execution; a part that `FeatureExtractor.stream` gives holds
            the maps of some of them.
        first: Position of the first of `pictures` among all that were passed; 0 unless this is such a part.
        left_out: Name of each chosen layer that has no map, and the reason.
        photographs: The pictures as they were passed (path, PIL image or array), to draw maps over them; None for those
            that were preprocessed.

    Example:
        >>> from onnxfeat import FeatureExtractor
        >>> extractor = FeatureExtractor("models/shapes_small.onnx", layers="pool_*", provider="cpu")
        >>> features = extractor("models/pictures/chelsea.png")
        >>> list(features)
        ['pool_1', 'pool_3', 'pool_4']
        >>> features["pool_1"].shape
        (1, 16, 32, 32)
    """

    maps: Mapping[str, FeatureMap]
    pictures: tuple[str, ...]
    preprocessed: tuple[bool, ...]
    model: str
    sha256: str
    provider: ProviderChoice
    preprocessing: Preprocessing
    preprocessing_source: str
    seconds: float
    layers: tuple[str, ...] = ()
    first: int = 0
    left_out: Mapping[str, str] = field(default_factory=dict)
    photographs: tuple[Any, ...] = ()

    def __getitem__(self, name: str) -> FeatureMap:
        """Return the feature map of a layer; an unknown name is a `LayerError` that names the nearest ones."""
        try:
            return self.maps[name]
        except KeyError:
            near = nearest(name, list(self.maps)) if isinstance(name, str) else []
            hint = f"; the nearest names are {quote(near)}" if near else ""
            raise UnknownLayerError(
                f"there is no layer {name!r} among these {len(self.maps)}{hint}: `list(features)` names them all"
            ) from None

    def __iter__(self) -> Iterator[str]:
        """Iterate over the layer names in order of execution."""
        return iter(self.maps)

    def __len__(self) -> int:
        """Return the number of layers."""
        return len(self.maps)

    def __repr__(self) -> str:
        """Return the counts; the values would fill the screen."""
        return f"Features({len(self)} layers of {len(self.pictures)} pictures, model={self.model!r})"

    def _repr_html_(self) -> str:
        """Return the page that notebooks show."""
        html: str = _late("onnxfeat.report.inline").html_of(self)
        return html


def _late(module: str) -> ModuleType:
    # By name: drawing and reports are built on these records, and imports go one way. Only notebooks come here.
    return importlib.import_module(module)


class UnknownLayerError(LayerError, KeyError):
    """A `LayerError` that is a `KeyError` too, as every mapping promises (`in` and `get` depend on it)."""

    __str__ = LayerError.__str__
