from __future__ import annotations

import hashlib
import json
import math
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from onnxfeat.errors import ModelError
from onnxfeat.recipes import InputRecipe, splitmix64
from onnxfeat.references import MOST_CHANNELS, PROBES, LayerReference, Reference, summarize

Array = NDArray[Any]
WORD = 2**64


def recipe(**fields: Any) -> InputRecipe:
    known: dict[str, Any] = {"name": "x", "shape": (1, 20, 9, 3), "dtype": "float32", "low": -1.0, "high": 1.0}
    return InputRecipe(**{**known, "seed": 3, **fields})


def mixed(seed: int, position: int) -> int:
    """Return a number of SplitMix64 as its authors define it, in Python's integers."""
    state = (seed + (position + 1) * 0x9E3779B97F4A7C15) % WORD
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB % WORD
    return state ^ (state >> 31)


def written_out(seed: int, shape: tuple[int, ...]) -> list[float]:
    """Return the numbers t of a recipe, 0 to 1, element by element from the words of its documentation."""
    longest = max((side for side in shape if side >= 8), default=0)
    steps = [step for step in (1, 4, 16, 64) if step == 1 or 2 * step <= longest]
    found = []
    for place in np.ndindex(*shape):
        level = 0.0
        for k, step in enumerate(steps):
            cell, start = 0, mixed(seed, k)
            for index, side in zip(place, shape, strict=True):
                span = step if side >= 8 else 1
                cell = cell * math.ceil(side / span) + index // span
            number = mixed(start, cell) >> 32
            level = number if k == 0 else (level + number) / 2
        found.append(level / 2**32)
    return found


# Recipes.


def test_splitmix64_gives_the_numbers_that_others_publish() -> None:
    # https://rosettacode.org/wiki/Pseudo-random_numbers/Splitmix64
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert splitmix64(1234567, 4).tolist() == published


@settings(max_examples=30, deadline=None)
@given(st.integers(0, WORD - 1), st.lists(st.integers(1, 40), min_size=1, max_size=3).map(tuple))
def test_a_recipe_gives_what_its_documentation_says(seed: int, shape: tuple[int, ...]) -> None:
    values = recipe(seed=seed, shape=shape, dtype="float64", low=0.0, high=1.0).values()
    assert values.reshape(-1).tolist() == written_out(seed, shape)


@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [("float32", -2.5, 3.25), ("float16", 0.0, 255.0), ("uint8", 0, 255), ("int64", -3, 3), ("float64", 5.0, 5.0)],
)
def test_values_are_of_the_type_and_between_the_ends(dtype: str, low: float, high: float) -> None:
    values = recipe(dtype=dtype, low=low, high=high, shape=(1, 64, 64, 3)).values()
    assert values.dtype == dtype
    assert values.shape == (1, 64, 64, 3)
    assert low <= values.min() <= values.max() <= high
    assert values.max() - values.min() >= 0.8 * (high - low)


def test_integers_reach_both_ends() -> None:
    assert set(recipe(dtype="int32", low=-1, high=2, shape=(400,)).values().tolist()) == {-1, 0, 1, 2}


def test_truth_values_are_both() -> None:
    assert set(recipe(dtype="bool", shape=(64,)).values().tolist()) == {False, True}


def test_what_a_recipe_gives_today_it_gives_for_ever() -> None:
    # Not a law but a promise: files that are out there carry recipes.
    numbers = [2 * t - 1 for t in written_out(3, (1, 20, 9, 3))]
    digest = hashlib.sha256(struct.pack(f"<{len(numbers)}f", *numbers)).hexdigest()
    assert digest == "cff22ded6130fef5e41336bd133bad291a12f50b35748003a0a318707c3ab033"
    assert recipe().sealed().sha256 == digest


def test_another_seed_gives_other_values() -> None:
    assert not np.array_equal(recipe(seed=1).values(), recipe(seed=2).values())


def test_the_noise_keeps_its_contrast_when_it_is_pooled() -> None:
    values = recipe(shape=(1, 64, 64, 1), low=0.0, high=1.0).values()
    pooled = values.reshape(8, 8, 8, 8).mean(axis=(1, 3))
    assert pooled.std() > 0.1  # of white noise it is 0.29 / 8 = 0.036


def test_a_sealed_recipe_refuses_to_give_other_values() -> None:
    sealed = recipe().sealed()
    assert np.array_equal(sealed.values(), recipe().values())
    changed = recipe(sha256=sealed.sha256, seed=4)
    with pytest.raises(ModelError, match=r"'x' gives values of SHA-256 .* the reference was changed; convert"):
        changed.values()


# Summaries.

finite = st.floats(-1e3, 1e3, width=32)
maps = arrays.arrays(np.float32, arrays.array_shapes(min_dims=4, max_dims=4, max_side=6), elements=finite)


@given(maps, st.sampled_from(["NHWC", "NCHW"]))
def test_a_summary_is_what_numpy_says(values: Array, layout: str) -> None:
    found = summarize("a", values, layout)
    exact = values.astype(np.float64)
    others = tuple(axis for axis, letter in enumerate(layout) if letter != "C")
    assert found.shape == values.shape
    assert found.min == pytest.approx(exact.min(), rel=1e-8)
    assert found.max == pytest.approx(exact.max(), rel=1e-8)
    assert found.mean == pytest.approx(exact.mean(), rel=1e-6, abs=1e-9)
    assert found.std == pytest.approx(exact.std(), rel=1e-6, abs=1e-9)
    assert found.not_finite == 0
    assert np.allclose(found.channel_means, exact.mean(axis=others), rtol=1e-5, atol=1e-5)
    assert len(found.probes) <= min(PROBES, values.size)
    assert all(value == pytest.approx(exact.ravel()[place], rel=1e-8) for place, value in found.probes)


@given(maps)
def test_a_layer_does_not_deviate_from_itself_whatever_its_units(values: Array) -> None:
    one = summarize("a", values, "NHWC")
    assert one.deviation(one) == 0
    assert one.deviation(summarize("a", values.copy(), "NHWC")) == 0
    scaled = [summarize("a", x * np.float32(4), "NHWC") for x in (values, values[:, ::-1])]
    plain = summarize("a", values[:, ::-1], "NHWC")
    if values.any():
        assert scaled[0].deviation(scaled[1]) == pytest.approx(one.deviation(plain), rel=1e-4, abs=1e-6)


def test_blocks_of_a_large_map_sum_up_to_the_whole() -> None:
    values = np.random.default_rng(0).normal(size=(1, 300, 300, 13)).astype(np.float32)  # more than one block
    found = summarize("a", values, "NHWC")
    assert found.mean == pytest.approx(values.mean(dtype=np.float64), rel=1e-6)
    assert found.std == pytest.approx(values.std(dtype=np.float64), rel=1e-8)
    assert np.allclose(found.channel_means, values.mean(axis=(0, 1, 2), dtype=np.float64), rtol=1e-6, atol=1e-9)


def test_without_a_layout_the_last_axis_counts_as_channels() -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert summarize("a", values, None).channel_means == (1.5, 2.5, 3.5)
    assert summarize("a", np.array(2.0, np.float32), None).channel_means == (2.0,)


def test_values_that_are_not_finite_are_counted_and_left_out() -> None:
    values = np.array([[1, np.nan], [3, np.inf], [5, -np.inf]], np.float32)
    found = summarize("a", values, None)
    assert (found.not_finite, found.mean, found.min, found.max) == (3, 3.0, 1.0, 5.0)
    assert found.channel_means == (3.0, 0.0)
    assert found.std == pytest.approx(math.sqrt(8 / 3))
    nothing = summarize("a", np.full((2, 2), np.nan, np.float32), None)
    assert (nothing.not_finite, nothing.mean, nothing.std, nothing.min, nothing.max) == (4, 0.0, 0.0, 0.0, 0.0)
    assert nothing.deviation(nothing) == 0
    assert found.deviation(summarize("a", np.nan_to_num(values), None)) == math.inf


def test_an_empty_map_has_a_summary() -> None:
    found = summarize("a", np.zeros((1, 0, 4), np.float32), None)
    assert (found.shape, found.mean, found.probes) == ((1, 0, 4), 0.0, ())


def test_many_channels_are_thinned_out() -> None:
    values = np.arange(3 * MOST_CHANNELS, dtype=np.float32)[None]
    found = summarize("a", values, "NC")
    assert found.channel_means == tuple(range(0, 3 * MOST_CHANNELS, 3))
    one_more = summarize("a", np.zeros((1, MOST_CHANNELS + 1), np.float32), "NC")
    assert len(one_more.channel_means) <= MOST_CHANNELS


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x + np.float32(0.5),
        lambda x: x * np.float32(1.1),
        lambda x: x[..., ::-1],
        lambda x: x[:, ::-1],
        lambda x: np.where(np.arange(x.shape[-1]) == 2, np.float32(0), x),
    ],
)
def test_what_is_another_map_deviates(change: Any) -> None:
    values = np.random.default_rng(1).normal(size=(1, 8, 8, 4)).astype(np.float32)
    changed = np.ascontiguousarray(change(values))
    assert summarize("a", values, "NHWC").deviation(summarize("a", changed, "NHWC")) > 1e-3


def test_another_shape_deviates_without_bound() -> None:
    one, other = (summarize("a", np.zeros(shape, np.float32), None) for shape in ((1, 4), (4, 1)))
    assert one.deviation(other) == math.inf


@pytest.mark.parametrize(("level", "moved", "expected"), [(0.0, 0.25, 0.25), (50.0, 50.5, 0.01), (-50.0, -50.5, 0.01)])
def test_a_constant_map_is_measured_by_its_level(level: float, moved: float, expected: float) -> None:
    one, other = (summarize("a", np.full((1, 4), x, np.float32), None) for x in (level, moved))
    assert one.is_constant
    assert one.deviation(other) == pytest.approx(expected)


def test_what_is_no_map_is_refused() -> None:
    with pytest.raises(ModelError, match="'a' gave <U1 of shape"):
        summarize("a", np.array(["x"]), None)
    with pytest.raises(ModelError, match="numbers with the axes NHWC are wanted"):
        summarize("a", np.zeros((1, 2)), "NHWC")


# The text.


def reference() -> Reference:
    values = np.random.default_rng(2).normal(size=(1, 4, 4, 3)).astype(np.float32)
    values[0, 0, 0] = np.nan
    return Reference(
        computed_by="NumPy",
        inputs=(recipe().sealed(),),
        layers=(
            summarize("b", values, "NHWC", noise=1e-6, error=2e-7),
            summarize("a/\N{GREEK SMALL LETTER ALPHA}", values[..., 0], None),
        ),
        outputs=(summarize("y", values[0, 0], None),),
        weights={"w": "float:0123456789abcdef", "v": "int64:0123456789abcdef"},
    )


def same(one: LayerReference, other: LayerReference) -> bool:
    """Return whether two are equal, where NaN equals NaN."""
    return repr(one) == repr(other)


def test_a_reference_survives_its_text() -> None:
    text = reference().to_text()
    found = Reference.from_text(text, "m.onnx")
    assert found.to_text() == text == reference().to_text()
    assert (found.inputs, dict(found.weights), found.computed_by) == (
        reference().inputs,
        dict(reference().weights),
        "NumPy",
    )
    assert all(same(a, b) for a, b in zip(found.layers, reference().layers, strict=True))
    assert [layer.name for layer in found.layers] == ["b", "a/\N{GREEK SMALL LETTER ALPHA}"]  # in order of execution
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_a_recipe_is_sealed_when_it_is_written() -> None:
    text = Reference(computed_by="", inputs=(recipe(),), layers=(), outputs=(), weights={}).to_text()
    assert Reference.from_text(text, "m.onnx").inputs == (recipe().sealed(),)


def test_a_reference_of_a_newer_version_says_so() -> None:
    text = reference().to_text().replace('"schema_version":1', '"schema_version":2')
    with pytest.raises(ModelError, match=r"m\.onnx carries reference values of version 2, this onnxfeat reads"):
        Reference.from_text(text, "m.onnx")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("computed_by",), 3),
        (("inputs", 0, "dtype"), "complex64"),
        (("inputs", 0, "dtype"), "nothing"),
        (("inputs", 0, "dtype"), ["f4"]),
        (("inputs", 0, "low"), None),
        (("inputs", 0, "low"), 2),
        (("inputs", 0, "seed"), -1),
        (("inputs", 0, "seed"), 1.5),
        (("inputs", 0, "sha256"), ""),
        (("inputs", 0, "shape"), [1, -2]),
        (("inputs", 0, "shape"), "1x2"),
        (("inputs", 0, "name"), "\ud800"),
        (("layers", 0, "shape"), [1, 2**50, 1, 1]),
        (("layers", 0, "layout"), "NHW"),
        (("layers", 0, "layout"), "NNHW"),
        (("layers", 0, "mean"), "0"),
        (("layers", 0, "max"), 1e400),
        (("layers", 0, "noise"), None),
        (("layers", 0, "not_finite"), 1000),
        (("layers", 0, "channel_means"), "!"),
        (("layers", 0, "channel_means"), "AADAfw=="),
        (("layers", 0, "channel_means"), "AAA="),
        (("layers", 0, "probes"), [[48, 1.0]]),
        (("layers", 0, "probes"), [[0, "1"]]),
        (("layers", 1, "name"), "b"),
        (("layers", 1), None),
        (("weights", "w"), "float:xyz"),
        (("weights", "w"), 4),
        (("weights",), 4),
        (("outputs",), None),
    ],
)
def test_a_damaged_reference_is_refused(path: tuple[Any, ...], value: Any) -> None:
    data = json.loads(reference().to_text())
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(ModelError, match=r"the reference values in m\.onnx are damaged .*: convert the model again"):
        Reference.from_text(json.dumps(data), "m.onnx")


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"schema_version":1}', "{" * 10_000])
def test_what_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(ModelError, match="damaged"):
        Reference.from_text(text, "m.onnx")


def test_a_part_of_a_model_keeps_its_part_of_the_reference() -> None:
    part = reference().restricted(["b"], [], ["v", "gone"])
    assert [layer.name for layer in part.layers] == ["b"]
    assert part.outputs == ()
    assert dict(part.weights) == {"v": "int64:0123456789abcdef"}
    assert part.inputs == reference().inputs
