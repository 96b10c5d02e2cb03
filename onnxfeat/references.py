"""Keep what a framework computed for a seeded input, so that any machine can compute it again and compare.

The reference is the value of the key `onnxfeat.reference` in an ONNX file's `metadata_props`, apart from the document
of `onnxfeat.metadata`, so that reading that one stays fast:

    {
      "schema_version": 1,
      "computed_by": "Keras 3.15.1 on TensorFlow 2.21.0",
      "inputs":  [{"name", "shape", "dtype", "low", "high", "seed", "sha256"}, ...],
      "layers":  [{"name", "shape", "layout", "mean", "std", "min", "max", "not_finite", "channel_means", "probes",
                   "noise", "error"}, ...],
      "outputs": [the same, by the names of the graph's outputs],
      "weights": {"initializer or Constant": "float:0123456789abcdef", ...}
    }

`inputs` are recipes, not data (see `onnxfeat.recipes`), and `sha256` proves that a replay feeds the same bytes.
`layers` are in order of execution; shapes and flat indices are in the framework's own order of axes, which `layout`
names where the framework tells. Statistics are those of the finite values, in float64, rounded to nine significant
digits, which keep float32 whole. `channel_means` is the base64 text of little-endian float32 numbers, one a channel;
where `layout` is null, the last axis counts as channels; past 4096 channels it is every k-th, the least k that leaves
no more. `probes` are `[flat index, value]` of up to 16 places, the first numbers of SplitMix64 with seed 0 modulo the
number of values; the value is null where it is not finite. `noise` and `error` are relative to the range of the layer:
what the converter measured as the layer's own rounding noise, and as the error of this file. `weights` are ONNX's word
for the element type and the first 16 hexadecimal digits of the SHA-256 of the array's little-endian bytes.

It is a proof against accidents: nothing is signed, so who changes a file on purpose can change its reference too.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxfeat.errors import ModelError
from onnxfeat.recipes import InputRecipe, are_finite, check_shape, splitmix64
from onnxfeat.serialization import fields_from_json, fields_to_json

KEY = "onnxfeat.reference"
SCHEMA_VERSION = 1

PROBES = 16
"""How many single values of a layer are kept."""

MOST_CHANNELS = 4096
"""How many channels have their mean kept."""

_DIGITS = 9
_BLOCK = 1 << 20  # numbers that are in memory as float64 at a time

_DAMAGED = (ValueError, ArithmeticError, KeyError, TypeError, AttributeError, RecursionError)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerReference:
    """What a framework computed for one layer, or one output, on the inputs of the recipes.

    Attributes:
        name: The framework's name of the layer; of an output, its name in the graph.
        shape: Shape in the framework's order of axes.
        layout: That order, such as `NHWC`; None where the framework does not tell.
        mean: Mean of the finite values, in the layer's own units as all that follows.
        std: Their standard deviation (population).
        min: The smallest of them.
        max: The largest of them.
        not_finite: How many values are NaN or infinite.
        channel_means: Mean of the finite values of each channel, 0 where it has none (see the module on which).
        probes: Flat index (row-major) and value of a few places; NaN where the value is not finite.
        noise: The layer's own rounding noise, relative to its range, as the converter measured it.
        error: Largest error of the converted file, relative to the range, as the converter measured it.
    """

    name: str
    shape: tuple[int, ...]
    layout: str | None
    mean: float
    std: float
    min: float
    max: float
    not_finite: int
    channel_means: tuple[float, ...]
    probes: tuple[tuple[int, float], ...]
    noise: float = 0.0
    error: float = 0.0

    @property
    def extent(self) -> float:
        """What deviations are relative to: the range, or where that is next to nothing the largest absolute value.

        A map that is flat but for the last bits has no range to speak of: below a hundredth of its level, the level
        counts, and 1 where that is 0 too.
        """
        most = max(abs(self.min), abs(self.max))
        span = self.max - self.min
        return (span if most / 100 < span < math.inf else most) or 1.0  # the range may be beyond float64

    @property
    def is_constant(self) -> bool:
        """Whether all values are the same, so that nothing tells the layer from others of its shape and level."""
        return self.min == self.max

    def deviation(self, measured: LayerReference) -> float:
        """Return how far another summary of the same layer is off, relative to `extent`.

        It is the largest absolute difference of mean, standard deviation, extremes, channel means and probes; infinite
        where shapes or the counts of values that are not finite differ.

        Example:
            >>> values = np.arange(8.0).reshape(1, 2, 2, 2)
            >>> reference = summarize("conv2d", values, "NHWC")
            >>> reference.deviation(summarize("conv2d", values + 3.5, "NHWC"))
            0.5
        """
        same_form = (self.shape, self.not_finite, len(self.channel_means)) == (
            measured.shape,
            measured.not_finite,
            len(measured.channel_means),
        )
        if not same_form or [place for place, _ in self.probes] != [place for place, _ in measured.probes]:
            return math.inf
        mine, other = _figures(self), _figures(measured)
        if not np.array_equal(np.isnan(mine), np.isnan(other)):
            return math.inf
        known = ~np.isnan(mine)
        if not known.any():
            return 0.0
        largest = float(np.abs(mine[known] / self.extent - other[known] / self.extent).max())
        return float(f"{largest:.{_DIGITS}g}")  # what the figures are rounded to

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON data."""
        means = np.asarray(self.channel_means, "<f4").tobytes()
        probes = [[place, value if math.isfinite(value) else None] for place, value in self.probes]
        return {**fields_to_json(self), "channel_means": base64.b64encode(means).decode(), "probes": probes}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LayerReference:
        """Return the record that `to_json` wrote.

        Raises:
            ValueError: A field holds what it can't; a `KeyError` or `TypeError` where one is missing.
        """
        means = np.frombuffer(base64.b64decode(data["channel_means"], validate=True), "<f4")
        probes = tuple((place, math.nan if value is None else value) for place, value in data["probes"])
        fields = fields_from_json(cls, data)
        found = cls(**{**fields, "channel_means": tuple(means.tolist()), "probes": probes})
        _check_layer(found)
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """What a framework computed for a model on seeded inputs.

    Attributes:
        computed_by: The framework and its version, such as `Keras 3.15.1 on TensorFlow 2.21.0`.
        inputs: How to make what each input was fed with.
        layers: What each layer gave, in order of execution.
        outputs: What each of the model's outputs gave, by the names of the graph's outputs.
        weights: Name of each constant array of the graph to its element type and digest (see the module).
    """

    computed_by: str
    inputs: tuple[InputRecipe, ...]
    layers: tuple[LayerReference, ...]
    outputs: tuple[LayerReference, ...]
    weights: Mapping[str, str]

    def to_text(self) -> str:
        """Return the reference as JSON text; equal references give equal text."""
        data = {
            "schema_version": SCHEMA_VERSION,
            "computed_by": self.computed_by,
            "inputs": [recipe.to_json() for recipe in self.inputs],
            "layers": [layer.to_json() for layer in self.layers],
            "outputs": [output.to_json() for output in self.outputs],
            "weights": dict(sorted(self.weights.items())),
        }
        return json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_text(cls, text: str, origin: str) -> Reference:
        """Return the reference that `to_text` wrote.

        Args:
            text: The JSON text.
            origin: Name of the file, for messages.

        Raises:
            ModelError: The text is no such reference, or of a newer version.
        """
        try:
            data = json.loads(text)
            version = data["schema_version"]
            if version != SCHEMA_VERSION:
                raise ModelError(
                    f"{origin} carries reference values of version {version!r:.20}, this onnxfeat reads version "
                    f"{SCHEMA_VERSION}: update onnxfeat, or convert the model again"
                )
            found = cls(
                computed_by=data["computed_by"],
                inputs=tuple(InputRecipe.from_json(recipe) for recipe in data["inputs"]),
                layers=tuple(LayerReference.from_json(layer) for layer in data["layers"]),
                outputs=tuple(LayerReference.from_json(output) for output in data["outputs"]),
                weights=dict(data["weights"]),
            )
            _check(found)
        except _DAMAGED as error:
            raise ModelError(
                f"the reference values in {origin} are damaged ({type(error).__name__}: {error!s:.200}): convert the "
                f"model again"
            ) from error
        return found

    def restricted(self, layers: Sequence[str], outputs: Sequence[str], weights: Sequence[str]) -> Reference:
        """Return the reference of a part of the model: of these layers, outputs and constant arrays."""
        kept_layers, kept_outputs, kept_weights = set(layers), set(outputs), set(weights)
        return dataclasses.replace(
            self,
            layers=tuple(layer for layer in self.layers if layer.name in kept_layers),
            outputs=tuple(output for output in self.outputs if output.name in kept_outputs),
            weights={name: digest for name, digest in self.weights.items() if name in kept_weights},
        )


def summarize(
    name: str, array: NDArray[Any], layout: str | None, *, noise: float = 0.0, error: float = 0.0
) -> LayerReference:
    """Return the reference of one layer's values.

    Args:
        name: The layer.
        array: Its values, real, integer or truth values, in the framework's order of axes.
        layout: That order, such as `NHWC`; None where the framework does not tell.
        noise: The layer's own rounding noise relative to its range.
        error: The error of the converted file relative to the range.

    Raises:
        ModelError: The array holds no numbers, or the layout has another number of axes.

    Example:
        >>> found = summarize("conv2d", np.arange(8.0).reshape(1, 2, 2, 2), "NHWC")
        >>> found.mean, found.min, found.max, found.channel_means
        (3.5, 0.0, 7.0, (3.0, 4.0))
    """
    if array.dtype.kind not in "fiub" or (layout is not None and len(layout) != array.ndim):
        raise ModelError(
            f"{name!r} gave {array.dtype} of shape {array.shape}, and numbers with the axes {layout or 'of any order'} "
            f"are wanted: report it with the model"
        )
    channel = -1 if layout is None or "C" not in layout else layout.index("C")
    channels_last = np.moveaxis(np.atleast_1d(array), channel, -1)
    rows = channels_last.reshape(-1, channels_last.shape[-1]) if array.size else np.zeros((0, 1))
    sums, counts, low, high = _sums(rows)
    finite = int(counts.sum())
    mean = float(sums.sum()) / finite if finite else 0.0
    means = np.divide(sums, counts, out=np.zeros_like(sums), where=counts > 0)
    stride = -(-len(means) // MOST_CHANNELS)
    with np.errstate(over="ignore"):
        kept = means[:: stride or 1].astype(np.float32)
    return LayerReference(
        name=name,
        shape=tuple(array.shape),
        layout=layout,
        mean=_rounded(mean),
        std=_rounded(math.sqrt(_squares(rows, mean) / finite) if finite else 0.0),
        min=_rounded(low if finite else 0.0),
        max=_rounded(high if finite else 0.0),
        not_finite=array.size - finite,
        channel_means=tuple(np.nan_to_num(kept).tolist()),
        probes=tuple(_probes(array)),
        noise=noise,
        error=error,
    )


def _blocks(rows: NDArray[Any]) -> list[NDArray[Any]]:
    step = max(1, _BLOCK // max(1, rows.shape[1]))
    return [rows[start : start + step] for start in range(0, len(rows), step)]


def _sums(rows: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.int64], float, float]:
    """Return sum and count of the finite values of each column, and the extremes of all."""
    sums, counts = np.zeros(rows.shape[1]), np.zeros(rows.shape[1], np.int64)
    low, high = math.inf, -math.inf
    for block in _blocks(rows):
        values = block.astype(np.float64)
        finite = np.isfinite(values)
        if finite.all():
            counts += len(values)
            low, high = min(low, float(values.min())), max(high, float(values.max()))
        else:
            counts += finite.sum(axis=0)
            low = min(low, float(values.min(initial=math.inf, where=finite)))
            high = max(high, float(values.max(initial=-math.inf, where=finite)))
            values[~finite] = 0
        sums += values.sum(axis=0)
    return sums, counts, low, high


def _squares(rows: NDArray[Any], mean: float) -> float:
    """Return the sum of the squared distances of the finite values from their mean."""
    total = 0.0
    for block in _blocks(rows):
        distances = block.astype(np.float64) - mean
        distances[~np.isfinite(distances)] = 0
        total += float(np.square(distances, out=distances).sum())
    return total


def _probes(array: NDArray[Any]) -> list[tuple[int, float]]:
    """Return some places of an array, the same for every array of its size, and the values there."""
    if not array.size:
        return []
    places = np.unique(splitmix64(0, PROBES) % np.uint64(array.size)).tolist()
    values = [float(array[np.unravel_index(place, array.shape)]) for place in places]
    return [(place, _rounded(x) if math.isfinite(x) else math.nan) for place, x in zip(places, values, strict=True)]


def _rounded(number: float) -> float:
    return float(f"{number:.{_DIGITS}g}")


def _figures(layer: LayerReference) -> NDArray[np.float64]:
    probes = [value for _, value in layer.probes]
    return np.array([layer.mean, layer.std, layer.min, layer.max, *layer.channel_means, *probes])


def _check(reference: Reference) -> None:
    """Raise a `ValueError` unless each field holds what its record says: anybody may have edited the file."""
    if not isinstance(reference.computed_by, str):
        raise ValueError(f"computed_by {reference.computed_by!r:.80}")
    for kind, names in (
        ("input", [recipe.name for recipe in reference.inputs]),
        ("layer", [layer.name for layer in reference.layers]),
        ("output", [output.name for output in reference.outputs]),
    ):
        if len(set(names)) < len(names):
            raise ValueError(f"two {kind}s of one name")
    for name, digest in reference.weights.items():
        if not isinstance(digest, str) or not re.fullmatch("[a-z0-9]+:[0-9a-f]{16}", digest):
            raise ValueError(f"digest {digest!r:.80} of {name!r:.80}")


def _check_layer(layer: LayerReference) -> None:
    check_shape(layer.name, layer.shape)
    layout = layer.layout
    if layout is not None and not (isinstance(layout, str) and len(layout) == len(set(layout)) == len(layer.shape)):
        raise ValueError(f"layout {layout!r:.80} of shape {layer.shape!r:.80}")
    if not are_finite(layer.mean, layer.std, layer.min, layer.max, layer.noise, layer.error, *layer.channel_means):
        raise ValueError(f"the figures of {layer.name!r:.80}")
    size = math.prod(layer.shape)
    if type(layer.not_finite) is not int or not 0 <= layer.not_finite <= size:
        raise ValueError(f"not_finite {layer.not_finite!r:.80}")
    if not all(
        type(place) is int and 0 <= place < size and isinstance(value, int | float) for place, value in layer.probes
    ):
        raise ValueError(f"the probes of {layer.name!r:.80}")
