from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from onnxfeat.drawing import channel_statistics
from onnxfeat.drawing.channel_statistics import ChannelStatistics, halved, not_finite, pooled, statistics
from onnxfeat.errors import PictureError
from onnxfeat.records import FeatureMap, Layer

shapes = st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 6), st.integers(1, 6))
any_float32 = shapes.flatmap(lambda shape: arrays(np.float32, shape, elements=st.floats(width=32)))
with_gaps = shapes.flatmap(
    lambda shape: arrays(
        np.float32, shape, elements=st.one_of(st.integers(-1000, 1000), st.sampled_from([np.nan, np.inf, -np.inf]))
    )
)


def row(*values: float) -> NDArray[np.float32]:
    """One picture of one channel, one pixel high."""
    return np.array(values, dtype=np.float32).reshape(1, 1, 1, -1)


def noise(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def as_in_numpy(array: NDArray[Any]) -> ChannelStatistics:
    """The same, channel after channel in float64."""
    shape = array.shape[:2]
    found = ChannelStatistics(
        mean=np.zeros(shape),
        deviation=np.zeros(shape),
        lowest=np.zeros(shape, np.float32),
        highest=np.zeros(shape, np.float32),
        constant=np.zeros(shape, np.bool_),
        nan=np.isnan(array).sum(axis=tuple(range(2, array.ndim))),
        infinite=np.isinf(array).sum(axis=tuple(range(2, array.ndim))),
    )
    for place in np.ndindex(*shape):
        values = array[place][np.isfinite(array[place])].astype(np.float64)
        if values.size:
            found.mean[place], found.deviation[place] = values.mean(), values.std()
            found.lowest[place], found.highest[place] = values.min(), values.max()
            found.constant[place] = np.ptp(values) <= max(
                4 * np.finfo(np.float32).eps * np.abs(values).max(), np.finfo(np.float32).tiny
            )
    return found


def assert_alike(found: ChannelStatistics, expected: ChannelStatistics) -> None:
    for name in ("lowest", "highest", "constant", "nan", "infinite", "not_finite", "dead"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), name)
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-6, atol=1e-4)
    np.testing.assert_allclose(found.deviation, expected.deviation, rtol=1e-5, atol=1e-4)


def test_values_that_are_not_finite_take_no_part_in_the_statistics() -> None:
    found = statistics(row(1, 3, np.nan, np.inf, -np.inf))
    assert found.mean.tolist() == [[2]]
    assert found.deviation.tolist() == [[1]]
    assert found.not_finite.tolist() == [[3]]
    assert found.not_finite.dtype == np.int64


def test_statistics_are_population_mean_and_deviation_in_the_units_of_the_map() -> None:
    array = noise(2, 3, 20, 30) * 7 + 3
    found = statistics(array)
    np.testing.assert_allclose(found.mean, array.mean(axis=(2, 3), dtype=np.float64), rtol=1e-6)
    np.testing.assert_allclose(found.deviation, array.std(axis=(2, 3), dtype=np.float64), rtol=1e-6)
    assert found.mean.dtype == found.deviation.dtype == np.float64


@given(with_gaps)
@settings(max_examples=100)
def test_statistics_are_those_of_numpy_over_the_values_that_are_finite(array: NDArray[np.float32]) -> None:
    assert_alike(statistics(array), as_in_numpy(array))


@given(any_float32)
@settings(max_examples=100)
def test_mean_and_deviation_of_any_values_lie_within_their_extremes(array: NDArray[np.float32]) -> None:
    found = statistics(array)  # warnings are errors here
    assert (found.lowest <= found.highest).all()
    slack = 1e-6 * np.maximum(np.abs(found.lowest), np.abs(found.highest)).astype(np.float64)
    assert (found.mean >= found.lowest - slack - 1e-44).all()
    assert (found.mean <= found.highest + slack + 1e-44).all()
    assert (found.deviation <= found.highest.astype(np.float64) - found.lowest + slack + 1e-44).all()


@given(with_gaps, st.sampled_from([0, 1]))
@settings(max_examples=100)
def test_statistics_of_groups_taken_together_are_those_of_the_whole(array: NDArray[np.float32], axis: int) -> None:
    found = pooled(statistics(array), array[0, 0].size, axis=axis)
    # The groups become one channel of more cells.
    whole = (
        array.reshape(len(array), 1, -1) if axis == 1 else array.transpose(1, 0, 2, 3).reshape(1, array.shape[1], -1)
    )
    assert_alike(found, as_in_numpy(whole))


def test_groups_of_different_sizes_count_by_their_values() -> None:
    small, large = row(1, 2, 3), row(*range(100))
    parts = [statistics(small), statistics(large)]
    joined = ChannelStatistics(
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in ChannelStatistics.__slots__}
    )
    found = pooled(joined, np.array([[3], [100]]), axis=0)
    assert_alike(found, as_in_numpy(np.concatenate([small, large], axis=3)))


@pytest.mark.parametrize("shape", [(2, 3, 50), (2, 3, 4, 5, 6)])
def test_maps_of_one_and_three_spatial_axes_are_measured_too(shape: tuple[int, ...]) -> None:
    assert_alike(statistics(noise(*shape)), as_in_numpy(noise(*shape)))


@pytest.mark.parametrize("block", [1, 7, 20, 60, 10**6])
def test_blocks_of_any_size_give_the_same_statistics(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    array = noise(2, 5, 4, 5)
    array[0, 1] = 0
    array[0, 2, 1, :3] = np.nan, np.inf, -np.inf
    array[1, 4] = np.nan
    monkeypatch.setattr(channel_statistics, "_BLOCK", block)
    assert_alike(statistics(array), as_in_numpy(array))


def test_extremes_reach_to_the_ends_of_float32() -> None:
    largest = float(np.finfo(np.float32).max)
    found = statistics(row(-largest, largest, 0))
    assert (found.lowest.item(), found.highest.item()) == (-largest, largest)
    assert found.mean.item() == 0
    assert found.deviation.item() == pytest.approx(largest * (2 / 3) ** 0.5)


def test_the_deviation_of_large_and_small_values_neither_overflows_nor_vanishes() -> None:
    for size in (1e-30, 1e30):
        assert statistics(row(-size, size)).deviation.item() == pytest.approx(size)
    half = np.array([[[[60000, -60000]]]], np.float16)
    assert statistics(half).deviation.item() == 60000


def test_a_channel_is_dead_that_is_0_everywhere_and_constant_that_is_something_else() -> None:
    array = noise(1, 6, 2, 2)
    array[0, 1] = 0
    array[0, 2] = -0.0
    array[0, 3] = 5
    array[0, 4:] = 0
    array[0, 4, 0, 1] = np.nan
    array[0, 5, 1, 1] = 1e-3
    found = statistics(array)
    assert found.dead.tolist() == [[False, True, True, False, False, False]]
    assert found.constant.tolist() == [[False, True, True, True, True, False]]


def test_nan_and_infinite_values_are_counted_apart() -> None:
    array = row(1, np.nan, np.inf, np.nan, -np.inf, np.nan)
    found = statistics(array)
    assert (found.nan.item(), found.infinite.item(), found.not_finite.item()) == (3, 2, 5)
    nan, infinite = not_finite(array)
    np.testing.assert_array_equal(nan, np.isnan(array))
    np.testing.assert_array_equal(infinite, np.isinf(array))


def test_half_of_a_value_is_exact_where_it_matters() -> None:
    array = np.array([3.4e38, -3.4e38, 1.1, 1e-37], np.float32)
    np.testing.assert_array_equal(halved(array), array / 2)
    assert np.isinf(halved(np.array([1e300]))).all()


def test_a_feature_map_and_its_array_have_the_same_statistics() -> None:
    array = noise(2, 3, 4, 5)
    layer = Layer(name="conv", kind="conv", op_type="Conv", value="v", raw_value="v")
    assert_alike(statistics(FeatureMap(layer=layer, array=array)), as_in_numpy(array))


@pytest.mark.parametrize("dtype", [complex, "<U3", object])
def test_what_is_no_number_is_not_measured(dtype: Any) -> None:
    with pytest.raises(PictureError, match="can't be drawn: pass a FeatureMap or an array of real numbers"):
        statistics(np.zeros((1, 1, 2, 2), dtype=dtype))
