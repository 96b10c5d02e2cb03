"""Make the input that a model is tried on from a recipe: the same to the bit on any machine, for ever."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxfeat.errors import ModelError
from onnxfeat.serialization import fields_from_json, fields_to_json

_STEPS = (1, 4, 16, 64)  # cells of an octave, in elements of the input
_SHORTEST = 8  # elements of an axis that octaves stretch; shorter ones are batches and colors
_BITS = 32  # of a number of noise
_WORD = (1 << 64) - 1
_HEX = "[0-9a-f]{64}"


@dataclass(frozen=True, slots=True, kw_only=True)
class InputRecipe:
    """How to make the values that a model's input was fed with.

    Attributes:
        name: Name of the graph input.
        shape: Shape of the values, batch included.
        dtype: NumPy's name of the element type, such as `float32`.
        low: Least value; of a picture, what the preprocessing makes of level 0.
        high: Largest value; of a picture, what the preprocessing makes of level 255. Integers reach it; real numbers
            where they are rounded to it.
        seed: Number from 0 to 2^64 - 1.
        sha256: SHA-256 of the values' little-endian bytes; empty before `sealed` records it.

    Example:
        >>> recipe = InputRecipe(name="x", shape=(1, 2, 2), dtype="int64", low=0, high=9, seed=1).sealed()
        >>> recipe.values().tolist()
        [[[3, 9], [0, 7]]]
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    low: float
    high: float
    seed: int
    sha256: str = ""

    def values(self) -> NDArray[Any]:
        """Return the values, the same to the bit on any machine: nothing but integers and single roundings make them.

        They are noise of several scales, as white noise grows flat in a few pools. An octave of step s is noise whose
        cells span s elements along each axis of 8 or more (of 1 element along shorter ones): its cells, in row-major
        order, are the numbers of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators",
        2014, https://doi.org/10.1145/2714064.2660195) whose seed is the k-th number of SplitMix64 seeded with
        `seed`, of each the upper 32 bits. Octaves are of steps 1, 4, 16, 64, as long as two cells fit the longest axis.
        Each is averaged with the average of those before it, so that the coarsest counts for a half. These numbers t,
        as parts of 2^32, become `low + (high - low) * t` in float64, rounded to the type; integers
        `floor(low + (high - low + 1) * t)`; truth values `t >= 1/2`.

        Raises:
            ModelError: The bytes are not those whose SHA-256 the recipe carries.
        """
        level = _octaves(self.seed, self.shape) / 2.0**_BITS
        dtype = np.dtype(self.dtype)
        if dtype.kind == "b":
            made: NDArray[Any] = level >= 0.5
        elif dtype.kind in "iu":
            made = np.minimum(np.floor(self.low + (self.high - self.low + 1) * level), self.high).astype(dtype)
        else:
            made = (self.low + (self.high - self.low) * level).astype(dtype)
        digest = _sha256(made)
        if self.sha256 and digest != self.sha256:
            raise ModelError(
                f"the recipe for the input {self.name!r} gives values of SHA-256 {digest[:16]}..., and "
                f"{self.sha256[:16]}... is recorded: the reference was changed; convert the model again"
            )
        return made

    def sealed(self) -> InputRecipe:
        """Return the recipe with the SHA-256 of its values."""
        return dataclasses.replace(self, sha256=_sha256(dataclasses.replace(self, sha256="").values()))

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON data, sealed."""
        return fields_to_json(self if self.sha256 else self.sealed())

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> InputRecipe:
        """Return the record that `to_json` wrote.

        Raises:
            ValueError: A field holds what it can't; a `KeyError` or `TypeError` where one is missing.
        """
        recipe = cls(**fields_from_json(cls, data))
        check_shape(recipe.name, recipe.shape)
        if not isinstance(recipe.dtype, str) or np.dtype(recipe.dtype).kind not in "fiub":
            raise ValueError(f"input of {recipe.dtype!r:.80}")
        if not are_finite(recipe.low, recipe.high) or recipe.low > recipe.high:
            raise ValueError(f"input from {recipe.low!r:.80} to {recipe.high!r:.80}")
        if type(recipe.seed) is not int or not 0 <= recipe.seed <= _WORD or not re.fullmatch(_HEX, recipe.sha256):
            raise ValueError(f"seed {recipe.seed!r:.80}, sha256 {recipe.sha256!r:.80}")
        return recipe


def check_shape(name: Any, shape: Any) -> None:
    """Raise a `ValueError` unless a name is text, and a shape a tuple of lengths that arrays can have."""
    if not isinstance(name, str):
        raise ValueError(f"name {name!r:.80}")
    name.encode()  # raises where it has what no text may: half of a surrogate pair
    if not isinstance(shape, tuple) or not all(type(side) is int and 0 <= side < 1 << 40 for side in shape):
        raise ValueError(f"shape {shape!r:.80}")


def are_finite(*values: Any) -> bool:
    """Return whether these are numbers, none of them NaN or infinite."""
    return all(isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x) for x in values)


def _octaves(seed: int, shape: Sequence[int]) -> NDArray[np.float64]:
    """Return noise of several scales, numbers from 0 to 2^32; float64 holds each of them whole."""
    longest = max((side for side in shape if side >= _SHORTEST), default=0)
    steps = [step for step in _STEPS if step == 1 or 2 * step <= longest]
    level = np.zeros(tuple(shape))
    for position, (step, start) in enumerate(zip(steps, splitmix64(seed, len(steps)).tolist(), strict=True)):
        stretched = [side >= _SHORTEST for side in shape]
        cells = [-(-side // step) if wide else side for side, wide in zip(shape, stretched, strict=True)]
        octave = (splitmix64(start, math.prod(cells)) >> np.uint64(64 - _BITS)).astype(np.float64).reshape(cells)
        for axis, side in enumerate(shape):
            if stretched[axis] and step > 1:
                octave = np.repeat(octave, step, axis=axis).take(range(side), axis=axis)
        level = octave if position == 0 else (level + octave) / 2
    return level


def splitmix64(seed: int, count: int) -> NDArray[np.uint64]:
    """Return the first numbers of SplitMix64.

    Example:
        >>> splitmix64(1234567, 2).tolist()
        [6457827717110365317, 3203168211198807973]
    """
    state = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed & _WORD)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(state ^ (state >> np.uint64(31)))


def _sha256(array: NDArray[Any]) -> str:
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return hashlib.sha256(np.ascontiguousarray(little).data).hexdigest()
