"""Hold what was found out about a run, a check or a conversion: frozen records, for people and as JSON data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxfeat.preprocessing import Preprocessing
from onnxfeat.records import ProviderChoice
from onnxfeat.serialization import fields_to_json


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a run will go: which layers share a pass, and how many bytes their maps take.

    Attributes:
        passes: Names of the layers of each pass, in order of execution.
        sizes: Layer name to bytes of its maps for one picture; None where only the run will tell.
        max_bytes: The budget that the passes fit.
        nodes: Number of nodes of the graph that the layers need.
        all_nodes: Number of nodes that the graph has.
    """

    passes: tuple[tuple[str, ...], ...]
    sizes: Mapping[str, int | None]
    max_bytes: int
    nodes: int
    all_nodes: int

    @property
    def total(self) -> int:
        """Bytes of the maps of all layers of one picture whose size is known."""
        return sum(size for size in self.sizes.values() if size is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """How far one value moved between two runs.

    Attributes:
        name: The output or layer.
        largest: Largest absolute difference, in the value's own units; infinite where shapes or NaNs differ.
        relative: The same relative to the range (largest minus smallest value) of the first run, or to a hundredth of
            its largest absolute value where that is more: of a flat map nothing but rounding would be left.
        equal: Whether the two are equal to the bit.
        noise: What `relative` is when the same run is repeated with its input moved by a few units in the last place:
            the value's own rounding noise. None where it was not measured, as the value moved too little to ask.
    """

    name: str
    largest: float
    relative: float
    equal: bool
    noise: float | None = None

    def is_rounding(self, limit: float) -> bool:
        """Return whether the value moved by no more than `limit` of its range, or by what its own noise explains.

        That is 16 times the noise: it is measured by rounding at the input alone, and two ways to run a graph round
        differently at each of its nodes. What is wrong moves a value by a large part of its range.
        """
        return self.relative <= max(limit, 16 * (self.noise or 0.0))

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON data, in which infinity is null."""
        return {
            "name": self.name,
            "largest": self.largest if np.isfinite(self.largest) else None,
            "relative": self.relative if np.isfinite(self.relative) else None,
            "equal": self.equal,
            "noise": self.noise if self.noise is None or np.isfinite(self.noise) else None,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What `check` found: whether watching a model changes it.

    Attributes:
        model: File name of the model, or `<memory>`.
        sha256: SHA-256 of the model file.
        provider: Which execution provider was asked for and which one ran.
        outputs: How far each of the model's own outputs moves when the layers are exposed.
        layers: How far each layer, as it is drawn, is from the graph as it is written.
        left_out: Name of each chosen layer that can't be extracted, and the reason.
        limit: Largest relative change that counts as rounding.
    """

    model: str
    sha256: str
    provider: ProviderChoice
    outputs: tuple[Change, ...]
    layers: tuple[Change, ...]
    left_out: Mapping[str, str]
    limit: float

    @property
    def unchanged(self) -> bool:
        """Whether all outputs are equal to the bit."""
        return all(change.equal for change in self.outputs)

    @property
    def passed(self) -> bool:
        """Whether no output and no layer moved by more than rounding."""
        return all(change.is_rounding(self.limit) for change in (*self.outputs, *self.layers))

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON data."""
        return {
            "model": {"file": self.model, "sha256": self.sha256},
            "provider": self.provider.to_json(),
            "passed": self.passed,
            "unchanged": self.unchanged,
            "limit": self.limit,
            "outputs": [change.to_json() for change in self.outputs],
            "layers": [change.to_json() for change in self.layers],
            "left_out": dict(self.left_out),
        }


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
            "layers": [fields_to_json(layer) for layer in self.layers],
            "absent": list(self.absent),
            "preprocessing": None if self.preprocessing is None else self.preprocessing.to_json(),
            "notes": list(self.notes),
        }
