from __future__ import annotations

import dataclasses
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from onnxfeat import FeatureExtractor
from onnxfeat.drawing import reductions
from onnxfeat.drawing.color_pictures import components_note
from onnxfeat.drawing.reductions import BatchPca, PcaBasis, pca_basis, reduced, rgb
from onnxfeat.drawing.styles import Reduction
from onnxfeat.errors import PictureError
from onnxfeat.records import FeatureMap, Layer

LAYER = Layer(name="conv2d", kind="conv", op_type="Conv", value="v", raw_value="v")
LARGEST = float(np.finfo(np.float32).max)

shapes = st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 4), st.integers(1, 4))
any_maps = shapes.flatmap(lambda shape: arrays(np.float32, shape, elements=st.floats(width=32)))


def as_map(array: NDArray[Any]) -> FeatureMap:
    return FeatureMap(layer=LAYER, array=np.array(array, dtype=np.float32))


def noise(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    """Maps whose channels vary together, along some directions much more than along others."""
    rng = np.random.default_rng(seed)
    channels = shape[1]
    mixing = rng.normal(size=(channels, channels)) * 0.6 ** np.arange(channels)
    found: NDArray[np.float32] = np.einsum("cd,nd...->nc...", mixing, rng.normal(size=shape)).astype(np.float32)
    return found + rng.normal(size=(channels, *[1] * (len(shape) - 2))).astype(np.float32)


def samples(*maps: NDArray[Any]) -> NDArray[np.float64]:
    """All cells of all pictures as rows, shape (cells, C), in float64."""
    return np.concatenate([np.moveaxis(array, 1, -1).reshape(-1, array.shape[1]) for array in maps]).astype(np.float64)


def by_svd(*maps: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Mean, components and variances by the textbook."""
    rows = samples(*maps)
    mean = rows.mean(axis=0)
    _, singular, directions = np.linalg.svd(rows - mean, full_matrices=False)
    return mean, directions, singular**2 / len(rows)


def assert_same_directions(found: NDArray[np.float64], expected: NDArray[np.float64], abs: float = 1e-6) -> None:
    """Compare unit vectors, one a row, that may point either way."""
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one * np.sign(one @ other), other, atol=abs)


@given(any_maps)
def test_mean_max_and_l2_are_what_numpy_says_cell_by_cell(array: NDArray[np.float32]) -> None:
    wide = array.astype(np.float64)
    with np.errstate(invalid="ignore"):
        expected = {"mean": wide.mean(axis=1), "max": wide.max(axis=1), "l2": np.sqrt((wide**2).sum(axis=1))}
    for method, values in expected.items():
        found = reduced(as_map(array), method).array[:, 0]  # type: ignore[arg-type]
        finite = np.isfinite(values)
        assert np.isfinite(found[finite]).all(), "finite values stay finite"
        np.testing.assert_allclose(found[finite], np.minimum(values[finite], LARGEST), rtol=1e-6, atol=1e-44)
        np.testing.assert_array_equal(found[~finite], values[~finite].astype(np.float32))


def test_what_is_finite_stays_finite() -> None:
    large = as_map(np.full((1, 4, 1), LARGEST))
    for method in ("mean", "max", "l2"):
        assert reduced(large, method).array.item() == np.float32(LARGEST)
    opposite = np.full((1, 9, 2), LARGEST, np.float32)
    opposite[..., 0] *= -1
    assert np.abs(reduced(as_map(opposite), "pca").array[0, 0]).tolist() == [np.float32(LARGEST)] * 2


@pytest.mark.parametrize("shape", [(2, 5, 7), (2, 5, 3, 4), (2, 5, 2, 3, 4)])
@pytest.mark.parametrize(("method", "channels"), [("mean", 1), ("max", 1), ("l2", 1), ("pca", 3)])
def test_the_layer_and_the_spatial_axes_stay(shape: tuple[int, ...], method: Reduction, channels: int) -> None:
    feature_map = dataclasses.replace(as_map(noise(*shape)), saturated=0.25)
    before = feature_map.array.copy()
    found = reduced(feature_map, method)
    assert found.shape == (shape[0], channels, *shape[2:])
    assert (found.layer, found.saturated) == (LAYER, 0.25)
    assert found.array.dtype == np.float32
    np.testing.assert_array_equal(feature_map.array, before)


@pytest.mark.parametrize("method", ["mean", "max", "l2", "pca"])
def test_blocks_and_strides_leave_no_trace(method: Reduction) -> None:
    array = noise(2, 6, 9, 11)
    array[1, 2, 3, 4] = np.nan
    whole = reduced(as_map(array), method).array
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reductions, "_BLOCK", 1)
        patch.setattr(reductions, "_LEAST_CELLS", 7)
        in_blocks = reduced(FeatureMap(layer=LAYER, array=np.asfortranarray(array)), method).array
    np.testing.assert_allclose(in_blocks, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("channels", [3, 5, 40, 300])
@pytest.mark.parametrize("cells", [(30, 20), (4, 5)])
def test_the_components_are_those_of_the_singular_value_decomposition(channels: int, cells: tuple[int, int]) -> None:
    maps = [noise(1, channels, *cells, seed=seed) for seed in range(3)]
    mean, directions, variances = by_svd(*maps)
    basis = pca_basis(maps)
    np.testing.assert_allclose(basis.mean, mean, atol=1e-9)
    assert_same_directions(basis.components, directions[:3])
    np.testing.assert_allclose(basis.explained, variances[:3] / variances.sum(), rtol=1e-6)
    np.testing.assert_allclose(basis.high, 2 * np.sqrt(variances[:3]), rtol=1e-6)
    np.testing.assert_allclose(basis.low, -basis.high)


def test_maps_along_the_components_are_uncorrelated_with_falling_variance() -> None:
    array = noise(2, 20, 15, 16)
    along = samples(reduced(as_map(array), "pca").array)
    covariance = np.cov(along.T, bias=True)
    _, _, variances = by_svd(array)
    np.testing.assert_allclose(covariance, np.diag(variances[:3]), atol=1e-4 * variances[0])
    np.testing.assert_allclose(along.mean(axis=0), 0, atol=1e-4 * np.sqrt(variances[0]))


@pytest.mark.parametrize("channels", [6, 300])  # few: all eigenvectors; many: the subspace
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_permuting_the_channels_permutes_the_components(channels: int, seed: int) -> None:
    array = noise(1, channels, 12, 12, seed=seed)
    _, _, variances = by_svd(array)
    assume((variances[:3] > 1.1 * variances[1:4]).all())
    order = np.random.default_rng(seed).permutation(channels)
    basis, permuted = pca_basis([array]), pca_basis([array[:, order]])
    np.testing.assert_allclose(permuted.components, basis.components[:, order], atol=1e-6)
    np.testing.assert_allclose(permuted.explained, basis.explained, rtol=1e-6)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_rotating_the_channels_changes_nothing_but_signs(seed: int) -> None:
    array = noise(1, 6, 12, 12, seed=seed).astype(np.float64)
    _, _, variances = by_svd(array)
    assume((variances[:3] > 1.1 * variances[1:4]).all())
    rotation = np.linalg.qr(np.random.default_rng(seed).normal(size=(6, 6)))[0]
    rotated = np.einsum("dc,nchw->ndhw", rotation, array)
    along, along_rotated = (samples(reduced(as_map(x), "pca").array).T for x in (array, rotated))
    for one, other in zip(along, along_rotated, strict=True):
        np.testing.assert_allclose(one * np.sign(one @ other), other, atol=1e-3 * np.abs(other).max())


def test_the_sign_is_that_of_the_greatest_element() -> None:
    for seed in range(20):
        components = pca_basis([noise(1, 5, 9, 9, seed=seed)]).components
        greatest = np.abs(components).argmax(axis=1)
        assert (components[range(3), greatest] > 0).all()


def test_it_makes_no_difference_in_which_parts_the_pictures_come() -> None:
    array = noise(6, 9, 5, 7)
    whole = pca_basis([array])
    in_parts = pca_basis([array[:1], array[1:4], array[4:]])
    for name in ("mean", "components", "explained", "low", "high"):
        np.testing.assert_allclose(getattr(in_parts, name), getattr(whole, name), atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(
    channels=st.sampled_from([1, 2, 5, 30, 300]),
    cells=st.lists(st.integers(1, 400), min_size=1, max_size=6),
    seed=st.integers(0, 10_000),
)
def test_cells_that_are_kept_and_cells_in_the_scatter_give_the_same_basis(
    channels: int, cells: list[int], seed: int
) -> None:
    """Fewer cells than channels are kept; one after the other passes over to the scatter, and some are left over."""
    array = noise(1, channels, sum(cells), seed=seed)
    mean, directions, variances = by_svd(array)
    tracker = BatchPca()
    for part in np.split(array, np.cumsum(cells)[:-1], axis=2):
        tracker.add(part)
    basis = tracker.basis()
    found = min(3, channels, sum(cells) - 1)
    assume((variances[:found] > 1.1 * np.append(variances, 0)[1 : found + 1]).all())
    np.testing.assert_allclose(basis.mean, mean, atol=1e-9)
    assert_same_directions(basis.components[:found], directions[:found])
    assert not basis.components[found:].any()
    np.testing.assert_allclose(basis.high[:found], 2 * np.sqrt(variances[:found]), rtol=1e-6)
    np.testing.assert_allclose(
        basis.components @ basis.components.T, np.diag([1.0] * found + [0] * (3 - found)), atol=1e-9
    )
    assert basis.cells == sum(cells)


@pytest.mark.parametrize("channels", [40, 300, 600])
def test_a_basis_may_be_asked_for_between_the_pictures(channels: int) -> None:
    tracker, array = BatchPca(), noise(9, channels, 10, 13)
    for index in range(9):
        tracker.add(array[index : index + 1])
        basis = tracker.basis()
        mean, directions, variances = by_svd(array[: index + 1])
        np.testing.assert_allclose(basis.mean, mean, atol=1e-9)
        assert_same_directions(basis.components, directions[:3])
        np.testing.assert_allclose(basis.high, 2 * np.sqrt(variances[:3]), rtol=1e-6)


def test_maps_may_change_after_they_were_added() -> None:
    array = noise(1, 30, 3, 4)
    tracker, before = BatchPca(), pca_basis([array])
    tracker.add(array)
    array[:] = 0
    np.testing.assert_array_equal(tracker.basis().components, before.components)


def test_a_small_map_of_many_channels_needs_no_matrix_of_channels() -> None:
    """Of 20,000 x 20,000 it would need 3 GB."""
    array = noise(1, 4, 20, 20).repeat(5_000, axis=1)[..., ::3, ::3]
    tracemalloc.start()
    basis = pca_basis([array])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * array.astype(np.float64).nbytes
    assert basis.explained.sum() == pytest.approx(1, abs=0.1)


def test_signs_do_not_hang_on_rounding() -> None:
    """Elements of the same size are the greatest both: the first decides, in whatever order the pictures come."""
    for seed in range(30):
        one = np.random.default_rng(seed).normal(size=(4, 1, 5, 5))
        array = np.concatenate([one, -one, one / 3], axis=1)
        for order in (array, array[::-1]):
            assert pca_basis([picture[None] for picture in order]).components[0, 0] > 0


def test_a_tracker_gives_the_same_basis_as_all_maps_at_once() -> None:
    tracker = BatchPca()
    maps = [noise(1, 4, 5, 5, seed=seed) for seed in range(3)]
    for one in maps:
        tracker.add(as_map(one))
    np.testing.assert_array_equal(tracker.basis().components, pca_basis(maps).components)


def test_pictures_far_from_the_first_do_not_blur_the_basis() -> None:
    maps = [noise(1, 5, 8, 8, seed=1), noise(1, 5, 8, 8, seed=2) * 0.01 + 20_000]
    mean, directions, variances = by_svd(*maps)
    basis = pca_basis(maps)
    np.testing.assert_allclose(basis.mean, mean, rtol=1e-12)
    assert_same_directions(basis.components, directions[:3], abs=1e-4)
    np.testing.assert_allclose(basis.high, 2 * np.sqrt(variances[:3]), rtol=1e-4)


def test_a_small_variance_around_a_large_mean_keeps_its_digits() -> None:
    steps = np.random.default_rng(0).integers(-9, 10, size=(2, 4, 30, 30)) * np.array([8, 4, 2, 1])[:, None, None]
    array = (1000 + steps * 2.0**-13).astype(np.float32)  # exact: float32 has steps of 2 ** -14 there
    _, _, variances = by_svd(steps * 2.0**-13)
    np.testing.assert_allclose(pca_basis([array]).high, 2 * np.sqrt(variances[:3]), rtol=1e-7)


@pytest.mark.parametrize("channels", [1, 2])
def test_fewer_than_three_channels_leave_components_of_zero(channels: int) -> None:
    array = noise(1, channels, 6, 6)
    basis = pca_basis([array])
    assert basis.components.shape == (3, channels)
    assert basis.components[:channels].any(axis=1).all()
    assert not basis.components[channels:].any()
    np.testing.assert_allclose(basis.explained.sum(), 1)
    assert not reduced(as_map(array), "pca").array[:, channels:].any()
    assert (rgb(array, basis)[:, channels:] == 128).all()


@pytest.mark.parametrize("channels", [4, 400])
def test_directions_that_are_nothing_but_rounding_are_no_components(channels: int) -> None:
    one = np.random.default_rng(0).normal(size=(1, 1, 20, 20))
    array = (one * np.linspace(1, 2, channels)[:, None, None] / 3 + 0.7).astype(np.float32)
    basis = pca_basis([array])
    assert basis.explained[0] == pytest.approx(1)
    assert not basis.components[1:].any()


def test_constant_channels_have_no_component_and_become_the_middle_of_all_colors() -> None:
    array = np.full((1, 300, 5, 5), 0.1, np.float32)
    basis = pca_basis([array])
    assert not basis.components.any()
    assert not basis.explained.any()
    assert (rgb(array, basis) == 128).all()


def test_cells_that_are_not_finite_take_no_part_in_the_basis_and_are_nan() -> None:
    array = noise(2, 8, 10, 10)
    odd = array.copy()
    odd[0, 3, 2, 5], odd[1, 0, 9, 9], odd[1, 1, 0, 0] = np.nan, np.inf, -np.inf
    is_odd = np.isnan(np.where(np.isfinite(odd), odd, np.nan).sum(axis=1))
    rows = samples(array)[~is_odd.ravel()]
    basis = pca_basis([odd])
    np.testing.assert_allclose(basis.mean, rows.mean(axis=0), atol=1e-9)
    _, _, directions = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
    assert_same_directions(basis.components, directions[:3])
    along = reduced(as_map(odd), "pca", basis=basis).array
    np.testing.assert_array_equal(np.isnan(along), np.broadcast_to(is_odd[:, None], along.shape))
    colors = rgb(odd, basis)
    assert (np.moveaxis(colors, 1, -1)[is_odd] == 0).all()


def test_maps_of_nothing_but_nan_have_a_basis_of_zero() -> None:
    array = np.full((1, 4, 3, 3), np.nan, np.float32)
    basis = pca_basis([array])
    assert not basis.components.any()
    assert basis.cells == 0
    assert np.isnan(reduced(as_map(array), "pca").array).all()


@pytest.mark.parametrize("scale", [1e-38, 1e-25, 1e25, 3e37])
def test_the_basis_is_the_same_in_any_unit(scale: float) -> None:
    array = np.random.default_rng(0).uniform(-9, 9, size=(2, 8, 9, 9)).astype(np.float32)
    array *= 0.7 ** np.arange(8, dtype=np.float32)[:, None, None]
    small, large = pca_basis([array]), pca_basis([array * np.float32(scale)])
    np.testing.assert_allclose(large.components, small.components, atol=1e-5)
    np.testing.assert_allclose(large.explained, small.explained, atol=1e-5)
    levels, levels_of_large = (rgb(x, basis) for x, basis in ((array, small), (array * np.float32(scale), large)))
    assert np.abs(levels.astype(int) - levels_of_large).max() <= 1


def test_one_standard_deviation_is_sixty_four_levels_in_every_picture() -> None:
    array = noise(3, 10, 20, 20)
    basis = pca_basis([array])
    along = (samples(array) - samples(array).mean(axis=0)) @ basis.components.T
    expected = np.clip(along / along.std(axis=0) * 64 + 128, 0, 255).astype(int)
    found = samples(rgb(array, basis)).astype(int)
    assert np.abs(found - expected).max() <= 1
    np.testing.assert_array_equal(rgb(array[1:2], basis), rgb(array, basis)[1:2])


def test_the_same_values_have_the_same_color_in_all_pictures_of_a_basis() -> None:
    maps = [noise(1, 6, 8, 8, seed=seed) for seed in (1, 2)]
    maps[1][0, :, 7, 7] = maps[0][0, :, 0, 0]
    basis = pca_basis(maps)
    first, second = (rgb(one, basis) for one in maps)
    assert first[0, :, 0, 0].tolist() == second[0, :, 7, 7].tolist()


def test_three_of_many_components_are_found_without_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    eigh = np.linalg.eigh

    def watched(matrix: NDArray[np.float64]) -> Any:
        sizes.append(len(matrix))
        return eigh(matrix)

    monkeypatch.setattr(np.linalg, "eigh", watched)
    pca_basis([noise(1, 600, 30, 30)])  # as many cells as it takes for a scatter of channels
    pca_basis([noise(1, 600, 20, 20)])
    assert sizes
    assert max(sizes) < 50


def test_directions_of_nearly_the_same_variance_are_told_apart() -> None:
    """Between 300 of them a subspace does not settle in time."""
    lengths = np.linspace(1.01, 1, 300)
    array = np.concatenate([np.diag(lengths), -np.diag(lengths)], axis=1)
    order = np.random.default_rng(0).permutation(300)
    basis = pca_basis([array[None, order]])
    np.testing.assert_allclose(basis.explained, lengths[:3] ** 2 / (lengths**2).sum(), rtol=1e-9)
    np.testing.assert_allclose(basis.components, np.eye(300)[:, order][:3], atol=1e-9)


def test_directions_of_the_same_variance_are_at_right_angles() -> None:
    array = np.concatenate([np.eye(300), -np.eye(300)], axis=1)
    basis = pca_basis([array[None]])
    np.testing.assert_allclose(basis.explained, 1 / 300, rtol=1e-6)
    np.testing.assert_allclose(basis.components @ basis.components.T, np.eye(3), atol=1e-9)


def test_a_real_layer_is_explained_as_the_singular_value_decomposition_says() -> None:
    extractor = FeatureExtractor("models/shapes_small.onnx", provider="cpu")
    features = extractor(["models/pictures/chelsea.png", "models/pictures/circle.png"])
    for feature_map in features.values():
        _, _, variances = by_svd(feature_map.array)
        basis = pca_basis([feature_map.array])
        np.testing.assert_allclose(basis.explained, variances[:3] / variances.sum(), rtol=1e-5)
        along = reduced(feature_map, "pca", basis=basis).array
        np.testing.assert_allclose(samples(along).var(axis=0), variances[:3], rtol=1e-4)


def test_an_unknown_method_is_refused_with_the_list() -> None:
    with pytest.raises(PictureError, match="'median' is no way to reduce channels: choose 'mean', 'max'"):
        reduced(as_map(noise(1, 3, 2, 2)), "median")  # type: ignore[arg-type]


def test_the_legend_says_where_there_are_no_components() -> None:
    array = noise(1, 4, 3, 3)
    assert "% of the variance" in components_note(pca_basis([array]))
    array[0, 1] = np.nan
    assert components_note(pca_basis([array])) == "no cell is finite in every channel: there are no components"
    assert components_note(pca_basis([np.ones((1, 4, 3, 3))])) == "mid-gray is the mean: nothing varies"


def test_a_basis_of_another_layer_is_refused() -> None:
    basis = pca_basis([noise(1, 4, 3, 3)])
    with pytest.raises(PictureError, match="the basis is of 4 channels, the maps have 3"):
        reduced(as_map(noise(1, 3, 2, 2)), "pca", basis=basis)
    with pytest.raises(PictureError, match="the basis is of 4 channels, the maps have 3"):
        rgb(noise(1, 3, 2, 2), basis)


def test_a_basis_without_pca_is_refused() -> None:
    array = noise(1, 3, 2, 2)
    with pytest.raises(PictureError, match="a basis has no meaning for 'mean': pass it with 'pca'"):
        reduced(as_map(array), "mean", basis=pca_basis([array]))


def test_maps_of_two_layers_share_no_basis() -> None:
    with pytest.raises(PictureError, match="maps of 4 channels can't share a basis with maps of 3"):
        pca_basis([noise(1, 3, 2, 2), noise(1, 4, 2, 2)])


def test_no_maps_have_no_basis() -> None:
    with pytest.raises(PictureError, match="there is no map to find the principal components of"):
        pca_basis([])
    with pytest.raises(PictureError, match="holds no feature maps"):
        pca_basis([np.zeros((0, 3, 2, 2))])


def test_a_basis_is_frozen() -> None:
    basis = pca_basis([noise(1, 3, 2, 2)])
    assert isinstance(basis, PcaBasis)
    with pytest.raises(dataclasses.FrozenInstanceError):
        basis.mean = np.zeros(3)  # type: ignore[misc]
