"""Say what a model must offer to be converted, whatever framework wrote it."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxfeat.records import Kind

DISTURBANCE = 4
"""Units in the last place by which each layer's output moves when rounding noise is measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSpec:
    """One input of a model.

    Attributes:
        name: Its name, which the ONNX file keeps.
        shape: Lengths of its axes, batch first; None where any length is taken.
        dtype: Its element type.
        scale: Real size of one step of an input of integers that stand for real numbers; None of others.
        zero_point: The integer that stands for 0 there.
        real_range: Least and largest real number that a quantized input takes; None of others.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: np.dtype[Any]
    scale: float | None = None
    zero_point: int = 0
    real_range: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of one leaf layer while a model runs.

    Attributes:
        name: The layer's name; its path in a nested model; with `#1`, `#2` where the layer is called more than once.
        layer_class: Its class in Keras, or the operator of a file that holds no classes.
        kind: What it does.
        layout: Order of the axes of its output in the framework, such as `NHWC`; None where it does not tell.
    """

    name: str
    layer_class: str
    kind: Kind
    layout: str | None


class Source(abc.ABC):
    """A model with the output of every leaf layer at hand: as ONNX, and as the framework itself computes it.

    Attributes:
        name: What messages call it.
        computed_by: The framework and its version.
        inputs: Its inputs, in order.
        output_names: Names of its outputs, in order.
        calls: Its leaf layers, in the order of execution.
        notes: Sentences that the user should read.
    """

    name: str
    computed_by: str
    inputs: tuple[InputSpec, ...]
    output_names: tuple[str, ...]
    calls: tuple[Call, ...]
    notes: tuple[str, ...] = ()

    @abc.abstractmethod
    def to_onnx(self, opset: int) -> onnx.ModelProto:
        """Return the model as ONNX; its outputs are the model's own and then the output of each call, in order.

        Raises:
            ConversionError: It can't be converted.
        """

    @abc.abstractmethod
    def run(self, feeds: Sequence[NDArray[Any]], *, disturbed_by: int | None = None) -> list[NDArray[Any]]:
        """Run the model in its framework; return the model's outputs and then the output of each call, in order.

        With a seed in `disturbed_by`, rounding noise is added to what each layer gives before the next one gets it,
        about what another order of summation does (see `disturbed`).

        Raises:
            ConversionError: The framework can't run it on this machine.
        """


def disturbed(array: NDArray[Any], random: np.random.Generator) -> NDArray[Any]:
    """Return floating values moved by up to `DISTURBANCE` units in the last place; none changes its sign.

    The unit is that of the value, or of the array's root mean square where that is larger: a sum of products rounds as
    its terms do, also where they cancel out. Exact zeros come from ReLU and padding, which do not round. What moves
    across 0 would become NaN in a logarithm behind.

    Example:
        >>> random = np.random.default_rng(0)
        >>> moved = disturbed(np.ones(3, np.float32), random)
        >>> bool(np.abs(moved - 1).max() <= DISTURBANCE * np.finfo(np.float32).eps)
        True
    """
    steps = random.integers(-DISTURBANCE, DISTURBANCE + 1, array.shape)
    with np.errstate(all="ignore"):
        finite = np.isfinite(array)
        level = np.sqrt(np.mean(np.square(array, dtype=np.float64), where=finite)) if finite.any() else 0.0
        own = np.spacing(np.abs(array))
        unit = np.maximum(
            own, np.minimum(np.spacing(np.asarray(level, array.dtype)), np.abs(array) / (2 * DISTURBANCE))
        )
        return np.where(finite & (array != 0), array + steps * unit, array).astype(array.dtype)
