"""Hold what was found out about a run, a check or a conversion: frozen records, for people and as JSON data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from onnxfeat.metadata import MappedLayer
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


ReplayStatus = Literal["same", "off", "found", "lost", "absent"]
FileForm = Literal["as converted", "changed weights", "float16 copy", "int8 copy", "rewritten"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayedValue:
    """How a layer or output of a file compares with what the framework computed for it.

    Attributes:
        name: The layer, by the framework's name, or the output.
        status: `same`; `off` by more than is allowed; `found`, where its name is gone or means another value, and a
            value was found that is the layer's; `lost`, where none was; `absent`, where the file never had a value.
        deviation: Largest difference of the figures that are compared (see `LayerReference.deviation`), relative to the
            layer's range; infinite where shapes or the counts of NaNs differ; None where nothing was compared.
        allowed: Largest deviation that passes.
        value: The value of the graph that was compared; None where there is none.
        note: What else is to be known, in words.
    """

    name: str
    status: ReplayStatus
    deviation: float | None
    allowed: float
    value: str | None
    note: str = ""

    @property
    def failed(self) -> bool:
        """Whether the value is off or lost."""
        return self.status in ("off", "lost")

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON data, in which infinity is null."""
        finite = self.deviation is not None and np.isfinite(self.deviation)
        return {**fields_to_json(self), "deviation": self.deviation if finite else None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What replaying a file's reference found: whether it still gives what the framework computed.

    Attributes:
        computed_by: The framework that computed the reference, and its version.
        provider: Which execution provider was asked for and which one ran.
        form: What the file is, against what the converter wrote.
        layers: Each layer of the reference, in order of execution.
        outputs: Each output of the reference.
        arrays: How many constant arrays the reference has digests of.
        arrays_changed: Those that hold other numbers now, in order of the layers that use them.
        arrays_retyped: How many are of another element type now.
        arrays_gone: How many names are gone.
        first_use: The first layer that depends on an array that changed; None where there is none.
        tolerance: Deviation that passes whatever a layer's own noise is.
        factor: How much more of a layer's own noise and error passes than on CPU.
    """

    computed_by: str
    provider: ProviderChoice
    form: FileForm
    layers: tuple[ReplayedValue, ...]
    outputs: tuple[ReplayedValue, ...]
    arrays: int
    arrays_changed: tuple[str, ...]
    arrays_retyped: int
    arrays_gone: int
    first_use: str | None
    tolerance: float
    factor: float

    @property
    def passed(self) -> bool:
        """Whether no layer and no output is off or lost, and no array was tampered with."""
        return self.form != "changed weights" and not any(x.failed for x in (*self.layers, *self.outputs))

    @property
    def first_off(self) -> ReplayedValue | None:
        """The first layer that is off, in order of execution; else the first output."""
        return next((x for x in (*self.layers, *self.outputs) if x.status == "off"), None)

    @property
    def worst(self) -> ReplayedValue | None:
        """The layer or output with the largest deviation."""
        compared = [x for x in (*self.layers, *self.outputs) if x.deviation is not None]
        return max(compared, key=lambda x: x.deviation or 0.0, default=None)

    def names(self, status: ReplayStatus) -> list[str]:
        """Return the layers of a status, in order of execution."""
        return [layer.name for layer in self.layers if layer.status == status]

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON data."""
        first, worst = self.first_off, self.worst
        return {
            **fields_to_json(self),
            "provider": self.provider.to_json(),
            "passed": self.passed,
            "first_off": None if first is None else first.name,
            "worst": None if worst is None else worst.name,
            "layers": [layer.to_json() for layer in self.layers],
            "outputs": [output.to_json() for output in self.outputs],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What `check` found: whether watching a model changes it, and whether it still gives its framework's values.

    Attributes:
        model: File name of the model, or `<memory>`.
        sha256: SHA-256 of the model file.
        provider: Which execution provider was asked for and which one ran.
        outputs: How far each of the model's own outputs moves when the layers are exposed.
        layers: How far each layer, as it is drawn, is from the graph as it is written.
        left_out: Name of each chosen layer that can't be extracted, and the reason.
        limit: Largest relative change that counts as rounding.
        reference: What replaying the reference values found; None where the file carries none.
        not_watched: Why no layer was watched, where only the reference was replayed; else empty.
    """

    model: str
    sha256: str
    provider: ProviderChoice
    outputs: tuple[Change, ...]
    layers: tuple[Change, ...]
    left_out: Mapping[str, str]
    limit: float
    reference: Replay | None = None
    not_watched: str = ""

    @property
    def unchanged(self) -> bool:
        """Whether all outputs are equal to the bit."""
        return all(change.equal for change in self.outputs)

    @property
    def passed(self) -> bool:
        """Whether no output and no layer moved by more than rounding, and the reference, if any, is met."""
        watched = all(change.is_rounding(self.limit) for change in (*self.outputs, *self.layers))
        return watched and (self.reference is None or self.reference.passed)

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
            "not_watched": self.not_watched,
            "reference": None if self.reference is None else self.reference.to_json(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerAgreement:
    """How far one layer of a converted model is from Keras.

    Attributes:
        name: The layer.
        error: Largest absolute difference, relative to the range (largest minus smallest value) of Keras's output.
        noise: The same figure for Keras against itself when each layer's output moves by a few units in the last place.
        local: The error on the very inputs that the layer had in Keras, so that it inherits none; None where the error
            is so small that nobody asks.
        local_noise: How far the layer moves when those inputs, and then its output, move by a few units in the last
            place.
    """

    name: str
    error: float
    noise: float
    local: float | None = None
    local_noise: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """What `convert_keras` did, and how well the result agrees with Keras.

    Attributes:
        path: The ONNX file that was written.
        layers: Agreement of every mapped layer, in order of execution.
        layer_map: Where each layer is in the file, or why it is not.
        preprocessing: What was stored in the file; None if the model does not take one picture.
        opset: ONNX operator set version of the file.
        notes: Sentences that the user should read.
        seconds: Time that it took.
        computed_by: The framework that the layers were compared with, and its version.
    """

    path: Path
    layers: tuple[LayerAgreement, ...]
    layer_map: tuple[MappedLayer, ...]
    preprocessing: Preprocessing | None
    opset: int
    notes: tuple[str, ...]
    seconds: float
    computed_by: str

    @property
    def absent(self) -> tuple[MappedLayer, ...]:
        """The layers that the ONNX graph has no value for; the `reason` of each says why."""
        return tuple(layer for layer in self.layer_map if layer.value is None)

    @property
    def worst(self) -> LayerAgreement:
        """The layer with the largest error."""
        return max(self.layers, key=lambda layer: layer.error)

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON data."""
        return {
            "path": str(self.path),
            "opset": self.opset,
            "computed_by": self.computed_by,
            "worst": self.worst.name,
            "layers": [fields_to_json(layer) for layer in self.layers],
            "layer_map": [layer.to_json() for layer in self.layer_map],
            "preprocessing": None if self.preprocessing is None else self.preprocessing.to_json(),
            "notes": list(self.notes),
        }
