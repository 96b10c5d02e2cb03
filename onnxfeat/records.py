"""Hold the facts that pass between the stages: frozen records, and arrays that can't be written to."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from onnxfeat.errors import LayerError, PictureError, nearest, quote

Kind = Literal["conv", "pool", "activation", "norm", "other"]
Provider = Literal["auto", "cpu", "cuda"]
ColorOrder = Literal["rgb", "bgr", "gray"]
Interpolation = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]

Axis = int | str | None
"""Length of one axis: a number, the name of a symbolic length, or None where nothing is known."""

DEFAULT_OPSET = 17
"""ONNX operator set version of converted files: what runtimes since 2022 know."""

CHANNELS = {"rgb": 3, "bgr": 3, "gray": 1}


def _to_json(record: Any) -> dict[str, Any]:
    """Return the fields of a record as JSON data."""
    data = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in data.items()}


def _fields_from_json(record: Any, data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a record from what `_to_json` made; what is no field of it is left out."""
    known = {field.name for field in dataclasses.fields(record)}
    return {key: tuple(value) if isinstance(value, list) else value for key, value in data.items() if key in known}


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
        return {**_to_json(self), "channels": self.channels, "is_vector": self.is_vector}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Layer:
        """Return the record that `to_json` wrote; keys that are not fields are left out."""
        return cls(**_fields_from_json(cls, data))


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """How a picture becomes the model's input: `(resized picture * scale - mean) / std`, in the input's layout.

    Attributes:
        size: Height and width in pixels to resize to; None takes the model's input size, or where that is symbolic,
            the picture's own.
        scale: Factor on the values 0..255; 1/255 gives 0..1.
        mean: Number for each channel to subtract after scaling, or one for all.
        std: Number for each channel to divide by then, or one for all; none of them 0.
        color: Order of the channels: `rgb`, `bgr` or `gray`.
        interpolation: Filter of the resize, by Pillow's names.

    Raises:
        PictureError: A value is out of range or not one of the choices.

    Example:
        >>> Preprocessing(scale=1.0, color="bgr", mean=(103.939, 116.779, 123.68)).color
        'bgr'
    """

    size: tuple[int, int] | None = None
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    color: ColorOrder = "rgb"
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        """Take plain numbers and lists as tuples; refuse what could only fail later, or give nonsense."""
        try:
            for name in ("mean", "std"):
                given = getattr(self, name)
                numbers = tuple(float(x) for x in given) if isinstance(given, list | tuple) else (float(given),)
                object.__setattr__(self, name, numbers)
            object.__setattr__(self, "scale", float(self.scale))
            if self.size is not None:
                size = (self.size, self.size) if isinstance(self.size, int) else tuple(int(x) for x in self.size)
                object.__setattr__(self, "size", size)
        except (TypeError, ValueError) as error:
            raise PictureError(
                f"size, scale, mean and std of the preprocessing must be numbers ({error}): pass others"
            ) from error
        for name, value, choices in (
            ("color", self.color, get_args(ColorOrder)),
            ("interpolation", self.interpolation, get_args(Interpolation)),
        ):
            if value not in choices:
                raise PictureError(f"{name} {value!r} is unknown: choose {quote(choices)}")
        if self.size is not None and (len(self.size) != 2 or min(self.size) < 1):
            raise PictureError(f"size {self.size} is not a height and a width in pixels: pass for instance (224, 224)")
        for name, numbers in (("mean", self.mean), ("std", self.std)):
            if len(numbers) not in (1, CHANNELS[self.color]):
                raise PictureError(
                    f"{name} has {len(numbers)} numbers, {self.color} pictures have {CHANNELS[self.color]} channels: "
                    f"pass one number, or one for each channel"
                )
        numbers = (self.scale, *self.mean, *self.std)
        if not np.isfinite(numbers).all() or self.scale == 0 or 0 in self.std:
            raise PictureError("scale, mean and std must be finite, and neither scale nor std may be 0: pass others")

    def changed(self, fields: Mapping[str, Any]) -> Preprocessing:
        """Return a copy with some fields changed.

        Raises:
            PictureError: A name is not that of a field, or its value is out of range.

        Example:
            >>> Preprocessing().changed({"scale": 1.0}).scale
            1.0
        """
        known = [field.name for field in dataclasses.fields(self)]
        unknown = [name for name in fields if name not in known]
        if unknown:
            raise PictureError(f"preprocessing has no field {unknown[0]!r}: choose {quote(known)}")
        return dataclasses.replace(self, **fields)

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON data."""
        return _to_json(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Preprocessing:
        """Return the record that `to_json` wrote; keys that are not fields are left out."""
        return cls(**_fields_from_json(cls, data))


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInput:
    """The input of a model that takes the picture.

    Attributes:
        name: Name of the graph input.
        shape: Its shape, with symbolic axes as strings.
        layout: `NCHW` or `NHWC`.
        dtype: NumPy's name of the element type, such as `float32`.
    """

    name: str
    shape: tuple[Axis, ...]
    layout: str
    dtype: str

    def axis(self, letter: str) -> int | None:
        """Return the length of the axis `N`, `C`, `H` or `W`, or None where it is symbolic."""
        length = self.shape[self.layout.index(letter)]
        return length if isinstance(length, int) and length > 0 else None

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON data."""
        return _to_json(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ModelInput:
        """Return the record that `to_json` wrote."""
        return cls(**_fields_from_json(cls, data))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FeatureMap:
    """The output of one layer for a batch of pictures.

    Attributes:
        layer: The layer that gave it.
        array: Its values, float32, shape `(N, C, *spatial)`: channels first whatever the graph's layout. Read-only.

    Example:
        >>> layer = Layer(name="conv2d", kind="conv", op_type="Conv", value="y", raw_value="y")
        >>> FeatureMap(layer=layer, array=np.zeros((1, 8, 148, 148), np.float32))
        FeatureMap('conv2d', shape=(1, 8, 148, 148))
    """

    layer: Layer
    array: NDArray[np.float32]

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
        return _to_json(self)


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
        preprocessing_source: Who said so: `caller`, `model` or `default`.
        seconds: Time of the run, preprocessing included.

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


class UnknownLayerError(LayerError, KeyError):
    """A `LayerError` that is a `KeyError` too, as every mapping promises (`in` and `get` depend on it)."""

    __str__ = LayerError.__str__


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerAgreement:
    """How far one layer of a converted model is from Keras.

    Attributes:
        name: The layer.
        error: Largest absolute difference, relative to the range (largest minus smallest value) of Keras's output.
        noise: The same figure for Keras against itself when each layer's output moves by a few units in the last place.
    """

    name: str
    error: float
    noise: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """What `convert_keras` did, and how well the result agrees with Keras.

    Attributes:
        path: The ONNX file that was written.
        layers: Agreement of every mapped layer, in order of execution.
        absent: Keras layers that the ONNX graph has no value for.
        preprocessing: What was stored in the file; None if the model does not take one picture.
        opset: ONNX operator set version of the file.
        notes: Sentences that the user should read.
        seconds: Time that it took.
    """

    path: Path
    layers: tuple[LayerAgreement, ...]
    absent: tuple[str, ...]
    preprocessing: Preprocessing | None
    opset: int
    notes: tuple[str, ...]
    seconds: float

    @property
    def worst(self) -> LayerAgreement:
        """The layer with the largest error."""
        return max(self.layers, key=lambda layer: layer.error)

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON data."""
        return {
            "path": str(self.path),
            "opset": self.opset,
            "worst": self.worst.name,
            "layers": [_to_json(layer) for layer in self.layers],
            "absent": list(self.absent),
            "preprocessing": None if self.preprocessing is None else self.preprocessing.to_json(),
            "notes": list(self.notes),
        }
