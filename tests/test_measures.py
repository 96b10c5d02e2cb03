from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from onnxfeat.drawing.channel_statistics import statistics
from onnxfeat.report.contents import LayerStatistics
from onnxfeat.report.measures import BINS, layer_statistics


def measured(array: Any) -> LayerStatistics:
    values = np.asarray(array, np.float32)
    return layer_statistics(values, statistics(values[None]))


@settings(deadline=None, max_examples=100)
@given(
    array=hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 6)),
        elements=st.one_of(st.just(0.0), st.floats(-1000, 1000, width=32), st.just(np.nan), st.just(np.inf)),
    )
)
def test_the_numbers_are_those_of_numpy(array: NDArray[np.float32]) -> None:
    found = measured(array)
    finite = array[np.isfinite(array)].astype(np.float64)
    assert found.nan == np.isnan(array).sum()
    assert found.infinite == np.isinf(array).sum()
    assert found.zeros == (array == 0).mean()
    assert sum(found.histogram.counts) == (finite != 0).sum()
    if finite.size:
        np.testing.assert_allclose(found.mean, finite.mean(), rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(found.deviation, finite.std(), rtol=1e-4, atol=1e-3)
        assert (found.lowest, found.highest) == (finite.min(), finite.max())


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 1 << 30), shift=st.floats(-5, 5), spread=st.floats(0.01, 100))
def test_the_histogram_is_that_of_numpy_but_for_values_on_the_edge_of_a_bin(
    seed: int, shift: float, spread: float
) -> None:
    array = (np.random.default_rng(seed).normal(size=(3, 20, 20)) * spread + shift).astype(np.float32)
    array[:, :4] = 0
    found = measured(array).histogram
    expected, edges = np.histogram(array[array != 0], bins=BINS, range=(found.low, found.high))
    assert (edges[0], edges[-1]) == (array.min(), array.max())
    assert np.abs(np.cumsum(found.counts) - np.cumsum(expected)).max() <= 2


@pytest.mark.parametrize("value", [0.0, 3.0, np.nan])
def test_a_layer_of_one_value_has_one_bin_or_none(value: float) -> None:
    counts = measured(np.full((2, 3, 3), value)).histogram.counts
    assert counts == ((18,) if value == 3 else ())


@pytest.mark.parametrize("scale", [1e38, 1e-38, 1e-44])
def test_the_largest_and_the_smallest_numbers_have_a_histogram(scale: float) -> None:
    array = np.array([[[-3.0, -1.0, 1.0, 3.0]]]) * scale
    with np.errstate(over="raise", invalid="raise", under="ignore"):
        assert sum(measured(array).histogram.counts) == 4


def test_the_saturated_share_is_handed_on() -> None:
    array = np.zeros((1, 2, 2), np.float32)
    assert layer_statistics(array, statistics(array[None]), 0.25).saturated == 0.25


@pytest.mark.parametrize("reach", [1e-25, 1e-31, 1e-37, 1e-41])
def test_values_of_tiny_ranges_are_spread_over_all_bins(reach: float) -> None:
    array = (np.linspace(1, 2, 6000).reshape(2, 60, 50) * reach).astype(np.float32)
    counts = np.array(measured(array).histogram.counts)
    assert len(counts) == BINS
    assert np.abs(counts - 100).max() <= 3
