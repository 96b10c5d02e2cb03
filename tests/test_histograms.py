import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from onnxfeat.drawing.histograms import Histogram

values = arrays(
    np.float32, st.integers(1, 300), elements=st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)
)
percents = st.sampled_from([0, 1, 5, 25, 50, 75, 95, 99, 100])


def histogram_of(*arrays_: NDArray[np.float32]) -> Histogram:
    histogram = Histogram()
    for array in arrays_:
        histogram.add(array)
    return histogram


@given(values, percents)
@settings(max_examples=200)
def test_a_percentile_lies_beside_those_of_numpy(array: NDArray[np.float32], percent: float) -> None:
    # NumPy's lie between two values that are neighbors in order; ours is one of these, or between them, up to its bin.
    found = histogram_of(array).percentile(percent)
    low, high = (float(np.percentile(array, percent, method=side)) for side in ("lower", "higher"))
    slack = max(abs(low), abs(high)) / 128 + 1.2e-38  # the bin of 0 holds denormal numbers too
    assert low - slack <= found <= high + slack


@pytest.mark.parametrize("percent", [1, 10, 50, 90, 99])
@pytest.mark.parametrize("shift", [0.0, 100.0, -1e6])
def test_percentiles_of_many_values_are_right_to_half_a_percent_of_their_value(percent: float, shift: float) -> None:
    array = np.random.default_rng(0).normal(size=200_000).astype(np.float32) + np.float32(shift)
    expected = float(np.percentile(array, percent))
    assert histogram_of(array).percentile(percent) == pytest.approx(expected, rel=0.004, abs=0.004)


@given(values, st.integers(0, 300), percents)
@settings(max_examples=100)
def test_parts_in_any_order_give_what_the_whole_gives(array: NDArray[np.float32], cut: int, percent: float) -> None:
    whole = histogram_of(array).percentile(percent)
    assert histogram_of(array[cut:], array[:cut]).percentile(percent) == whole


@given(values)
@settings(max_examples=100)
def test_a_higher_percentile_is_never_less(array: NDArray[np.float32]) -> None:
    histogram = histogram_of(array)
    found = [histogram.percentile(percent) for percent in range(0, 101, 5)]
    assert (np.diff(found) >= 0).all()


@given(values, percents)
@settings(max_examples=60)
def test_values_that_are_not_finite_do_not_count(array: NDArray[np.float32], percent: float) -> None:
    odd = np.array([np.nan, np.inf, -np.inf, -np.nan], np.float32)
    assert histogram_of(array, odd, odd).percentile(percent) == histogram_of(array).percentile(percent)


def test_nothing_has_percentile_0() -> None:
    assert Histogram().percentile(50) == 0
    assert histogram_of(np.array([np.nan, np.inf], np.float32)).percentile(50) == 0


def test_opposites_mirror() -> None:
    array = np.random.default_rng(1).normal(size=10_001).astype(np.float32)
    above, below = histogram_of(array).percentile(97), histogram_of(-array).percentile(3)
    assert above == pytest.approx(-below, rel=0.008)


def test_shape_and_type_do_not_matter() -> None:
    array = np.arange(24.0).reshape(2, 3, 4)
    assert histogram_of(array.astype(np.float32)).percentile(50) == histogram_of(array.ravel()).percentile(50)  # type: ignore[arg-type]


def test_values_beyond_float32_count_as_infinite() -> None:
    histogram = Histogram()
    histogram.add(np.array([1e300, 1.0, 1.0]))  # warnings are errors here
    assert histogram.percentile(100) == pytest.approx(1, rel=0.008)


@pytest.mark.parametrize("middle", [0.0, 1000.0, -3e4, 1e30])
def test_values_far_from_0_are_told_apart_as_far_as_float32_does(middle: float) -> None:
    values = (np.random.default_rng(0).normal(size=50_000) * 0.1 * max(1, abs(middle) / 1000) + middle).astype("f4")
    histogram = Histogram()
    for part in np.array_split(values, 7):
        histogram.add(part)
    for percent in (0, 1, 37.5, 99, 100):
        assert histogram.percentile(percent) == pytest.approx(np.percentile(values.astype(float), percent), rel=1e-7)


def test_millions_of_different_values_take_no_more_memory_and_keep_their_percentiles() -> None:
    rng = np.random.default_rng(0)
    histogram, parts = Histogram(), [rng.lognormal(0, 3, 400_000).astype(np.float32) for _ in range(4)]
    for part in parts:
        histogram.add(part)
    assert len(histogram._bins) <= 1 << 17
    for percent in (1, 50, 99):
        expected = np.percentile(np.concatenate(parts).astype(float), percent)
        assert histogram.percentile(percent) == pytest.approx(expected, rel=1e-3)
