"""Reduce the channels of a layer to one map, or to three that are drawn as red, green and blue."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from onnxfeat.drawing.channel_statistics import Maps, array_of
from onnxfeat.drawing.scales import DEVIATIONS, Scale
from onnxfeat.drawing.styles import Reduction
from onnxfeat.errors import PictureError, quote
from onnxfeat.records import FeatureMap

_BLOCK = 2**17  # values at a time: 1 MB as float64, which fits the cache of a core
_LEAST_CELLS = 256  # at a time: each product touches a whole matrix of C x C
_LARGEST = float(np.finfo(np.float32).max)
_RESOLUTION = float(np.finfo(np.float32).eps)

_PANEL = 256  # rows: BLAS is as fast as with all

_COMPONENTS = 3  # red, green and blue
_FEW = 256  # channels: up to here LAPACK finds all eigenvectors in some milliseconds; of 2,048 in 0.7 s
_DIRECTIONS = 32  # that are searched for the three: on ResNet50 they are found in 5 steps, and in 7 with 16
_MOST_STEPS = 100
_PRECISION = 1e-9  # of the largest eigenvalue


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PcaBasis:
    """The first three principal components of a layer's channels: what red, green and blue stand for.

    Each component is a unit vector whose element of the greatest absolute value (the first of them) is positive. Where
    the maps vary along fewer than three directions by more than float32 resolves, the rest are 0.

    Attributes:
        mean: Mean of each channel, shape (C,).
        components: One component a row, shape (3, C), the one with the greatest variance first.
        explained: Share of the whole variance along each component, shape (3,).
        low: Value along each component that is drawn darkest, shape (3,): two standard deviations below the mean.
        high: Value that is drawn brightest, two above it.
        cells: How many cells it was found from: those of all pictures that are finite in every channel.
    """

    mean: NDArray[np.float64]
    components: NDArray[np.float64]
    explained: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    cells: int


class BatchPca:
    """One basis for a layer in all pictures, found while they pass.

    While there are no more cells than channels, the cells themselves are kept, as they came. Of more, only the mean and
    the scatter of the channels (the sum of the squares and products of what is off the mean) are: 8 bytes for C x C, 33
    MB for 2,048 channels.

    Example:
        >>> tracker = BatchPca()
        >>> tracker.add(np.array([[[0.0, 2.0], [5.0, 5.0]]]))  # one picture, two channels of two cells
        >>> tracker.add(np.array([[[4.0, 6.0], [5.0, 5.0]]]))
        >>> basis = tracker.basis()
        >>> basis.mean.tolist(), basis.components[0].tolist(), basis.explained.tolist()
        ([3.0, 5.0], [1.0, 0.0], [1.0, 0.0, 0.0])
    """

    def __init__(self) -> None:
        self._channels = 0
        self._kept: list[NDArray[Any]] = []  # cells that are not in the scatter yet, each (C, cells)
        self._waiting = 0  # how many they are
        self._scatter: NDArray[np.float64] | None = None
        self._mean = np.zeros(0)  # of the cells in the scatter
        self._count = 0  # of the cells in the scatter

    def add(self, maps: Maps) -> None:
        """Take the maps (N, C, *spatial) of more pictures into account.

        A cell at which any channel is NaN or infinite takes no part.

        Raises:
            PictureError: There are no maps, or they have another number of channels than those before.
        """
        array = array_of(maps)
        self._channels = self._channels or array.shape[1]
        if array.shape[1] != self._channels:
            raise PictureError(
                f"maps of {array.shape[1]} channels can't share a basis with maps of {self._channels}: pass maps of "
                f"one layer"
            )
        for picture in array:
            for _, values in _cells_of(picture):
                self._kept.append(values[:, np.isfinite(values).all(axis=0)])
                self._waiting += self._kept[-1].shape[1]
                if self._waiting > (self._channels if self._scatter is None else _LEAST_CELLS):
                    self._fold()

    def _fold(self) -> None:
        """Put the cells that are kept into the scatter.

        By T. F. Chan, G. H. Golub, R. J. LeVeque, "Updating formulae and a pairwise algorithm for computing sample
        variances", 1979: each part is squared around its own mean, so that far from 0 no digits are lost.
        """
        if self._scatter is None:
            self._scatter, self._mean = np.zeros((self._channels, self._channels)), np.zeros(self._channels)
        values = np.concatenate([*self._kept, np.zeros((self._channels, 1))], axis=1, dtype=np.float64)
        self._kept = []  # before the products need their memory
        shift = _center(values[:, :-1]) - self._mean
        count = self._count + self._waiting
        # The last column stands for the distance between the means.
        values[:, -1] = shift * math.sqrt(self._count * self._waiting / count)
        for rows in _panels(self._channels):  # what is right of the panels is the same as what is below them
            self._scatter[rows, : rows.stop] += values[rows] @ values[: rows.stop].T
        self._mean += shift * (self._waiting / count)
        self._waiting, self._count = 0, count

    def basis(self) -> PcaBasis:
        """Return the basis of all that was added.

        Raises:
            PictureError: Nothing was added.
        """
        if not self._channels:
            raise PictureError("there is no map to find the principal components of: pass one or more")
        if self._scatter is None:
            return self._basis_of_cells()
        if self._waiting:
            self._fold()
        for rows in _panels(self._channels):
            self._scatter[: rows.start, rows] = self._scatter[rows, : rows.start].T
        values, vectors = _leading(self._scatter)
        return _basis(self._mean.copy(), float(np.trace(self._scatter)), values, vectors, self._count)

    def _basis_of_cells(self) -> PcaBasis:
        """Find the components from the cells x cells products of the cells that are kept, not of the channels.

        Both have the same eigenvalues (L. Sirovich, M. Kirby, "Low-dimensional procedure for the characterization of
        human faces", 1987): an eigenvector says of how much of each cell a component is made.
        """
        cells = np.concatenate(self._kept, axis=1, dtype=np.float64)
        mean = _center(cells)
        products = cells.T @ cells
        values, parts = _leading(products)
        # Unit vectors, at right angles also where one of them is a millionth of another.
        vectors = np.linalg.qr(cells @ parts)[0]
        return _basis(mean, float(np.trace(products)), values, vectors, cells.shape[1])


def pca_basis(maps: Iterable[Maps]) -> PcaBasis:
    """Return the principal components of a layer's channels over any number of pictures.

    The channels of a cell are one sample: the components are the eigenvectors of their covariance over all cells of all
    pictures (K. Pearson, "On lines and planes of closest fit to systems of points in space", 1901). The maps are read
    one after the other, once.

    Args:
        maps: Feature maps of one layer, or arrays (N, C, *spatial).

    Raises:
        PictureError: There are no maps, or they have different numbers of channels.

    Example:
        >>> basis = pca_basis([np.array([[[0.0, 3.0, 6.0], [0.0, 4.0, 8.0]]])])
        >>> basis.components[0].round(6).tolist(), basis.explained.round(6).tolist()
        ([0.6, 0.8], [1.0, 0.0, 0.0])
    """
    tracker = BatchPca()
    for one in maps:
        tracker.add(one)
    return tracker.basis()


def reduced(feature_map: FeatureMap, method: Reduction, *, basis: PcaBasis | None = None) -> FeatureMap:
    """Make one map of all channels of a layer, or three.

    - `mean`: mean of the channels.
    - `max`: greatest value of the channels.
    - `l2`: length of the vector of channels, the root of the sum of their squares; no more than the largest float32.
    - `pca`: the first three principal components, in the units of the map.

    Where one channel is NaN, so is the result: the cell is drawn in the color of NaN. Infinite values go into `mean`,
    `max` and `l2` as such, and give NaN with `pca`.

    Args:
        feature_map: Maps of the layer, (N, C, *spatial).
        method: How.
        basis: Only for `pca`: what all pictures of a call share, from `pca_basis`; None takes that of this map.

    Returns:
        Maps of the same layer, (N, 1, *spatial), with `pca` (N, 3, *spatial).

    Raises:
        PictureError: The method is unknown, the map is empty, or the basis does not belong to it.

    Example:
        >>> from onnxfeat.records import Layer
        >>> layer = Layer(name="conv", kind="conv", op_type="Conv", value="y", raw_value="y")
        >>> two = FeatureMap(layer=layer, array=np.array([[[[3.0]], [[4.0]]]], dtype=np.float32))
        >>> [reduced(two, how).array.item() for how in ("mean", "max", "l2")]
        [3.5, 4.0, 5.0]
        >>> reduced(two, "pca").shape
        (1, 3, 1, 1)
    """
    if method not in get_args(Reduction):
        raise PictureError(f"{method!r} is no way to reduce channels: choose {quote(get_args(Reduction))}")
    flat = feature_map.array.ndim == 2  # a number for each channel
    array = array_of(feature_map.array[..., None] if flat else feature_map)
    if method == "pca":
        return dataclasses.replace(feature_map, array=_projected(array, basis or pca_basis([array])))
    if basis is not None:
        raise PictureError(f"a basis has no meaning for {method!r}: pass it with 'pca', or leave it out")
    return dataclasses.replace(feature_map, array=_by_blocks(array, 1, _FORMULAS[method]))


def rgb(maps: Maps, basis: PcaBasis) -> NDArray[np.uint8]:
    """Map the first three principal components to red, green and blue.

    The mean of all pictures of the basis is level 128, and 64 levels are one standard deviation along the component, as
    by `normalize`; so the same color means the same in all of them. NaN becomes 0 in all three.

    Args:
        maps: Feature map, or array (N, C, *spatial).
        basis: From `pca_basis`.

    Returns:
        `uint8` array (N, 3, *spatial).

    Raises:
        PictureError: There are no maps, or the basis does not belong to them.

    Example:
        >>> maps = np.array([[[0.0, 3.0, 6.0], [0.0, 4.0, 8.0]]])
        >>> rgb(maps, pca_basis([maps])).tolist()
        [[[49, 128, 206], [128, 128, 128], [128, 128, 128]]]
    """
    middle, reach = (basis.low + basis.high) / 2, (basis.high - basis.low) / 2
    scale = Scale(method="zscore", over="batch", middle=middle[None], reach=reach[None])
    return scale.levels(_projected(array_of(maps), basis))


def _mean(values: NDArray[np.float32]) -> NDArray[np.float64]:
    total: NDArray[np.float64] = values.sum(axis=0, keepdims=True, dtype=np.float64)
    return total / len(values)


def _max(values: NDArray[np.float32]) -> NDArray[np.float32]:
    greatest: NDArray[np.float32] = values.max(axis=0, keepdims=True)
    return greatest


def _l2(values: NDArray[np.float32]) -> NDArray[np.float64]:
    # In float64: the squares of 1e-25 or 1e25 are beyond float32.
    squares: NDArray[np.float64] = np.square(values, dtype=np.float64).sum(axis=0, keepdims=True)
    return np.sqrt(squares)


_FORMULAS: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {"mean": _mean, "max": _max, "l2": _l2}


def _projected(array: NDArray[Any], basis: PcaBasis) -> NDArray[np.float32]:
    """Return the maps along each component, shape (N, 3, *spatial)."""
    if len(basis.mean) != array.shape[1]:
        raise PictureError(
            f"the basis is of {len(basis.mean)} channels, the maps have {array.shape[1]}: pass the basis that "
            f"`pca_basis` found for this layer"
        )

    def project(values: NDArray[Any]) -> NDArray[np.float64]:
        along: NDArray[np.float64] = basis.components @ (values - basis.mean[:, None])
        along[:, ~np.isfinite(values).all(axis=0)] = np.nan
        return along

    return _by_blocks(array, _COMPONENTS, project)


def _by_blocks(
    array: NDArray[Any], channels: int, formula: Callable[[NDArray[Any]], NDArray[Any]]
) -> NDArray[np.float32]:
    """Return maps (N, channels, *spatial), of which a formula gives some cells at a time."""
    made = np.empty((len(array), channels, math.prod(array.shape[2:])), np.float32)
    for index, picture in enumerate(array):
        for cells, values in _cells_of(picture):
            with np.errstate(invalid="ignore"):  # inf less inf, 0 times inf
                found = formula(values)
            # What is finite stays so: the length of two times 3e38 is beyond float32.
            made[index, :, cells] = np.where(np.isinf(found), found, np.clip(found, -_LARGEST, _LARGEST))
    return made.reshape(len(array), channels, *array.shape[2:])


def _cells_of(picture: NDArray[Any]) -> Iterator[tuple[slice, NDArray[Any]]]:
    """Yield places among the cells of a picture's maps (C, *spatial), and the values there, shape (C, cells)."""
    rows = picture.reshape(len(picture), -1)
    step = max(_LEAST_CELLS, _BLOCK // len(rows))
    for start in range(0, rows.shape[1], step):
        cells = slice(start, start + step)
        yield cells, rows[:, cells]


def _center(cells: NDArray[np.float64]) -> NDArray[np.float64]:
    """Subtract from each channel its mean over the cells, shape (C, cells), in place; return the means, 0 of none."""
    mean: NDArray[np.float64] = cells.sum(axis=1) / max(cells.shape[1], 1)
    cells -= mean[:, None]
    return mean


def _panels(channels: int) -> Iterator[slice]:
    """Yield rows of a matrix of C x C, some at a time: their products need no second matrix of that size."""
    for start in range(0, channels, _PANEL):
        yield slice(start, min(start + _PANEL, channels))


def _basis(
    mean: NDArray[np.float64], whole: float, squares: NDArray[np.float64], vectors: NDArray[np.float64], count: int
) -> PcaBasis:
    """Return the basis of some directions, at most three, one a column of (C, directions).

    Args:
        mean: Mean of each channel.
        whole: Sum of the squares of what is off the mean, over all channels and cells.
        squares: Sum along each direction, the greatest first.
        vectors: The directions.
        count: Number of cells.
    """
    variances, components = np.zeros(_COMPONENTS), np.zeros((_COMPONENTS, len(mean)))
    variances[: len(squares)] = np.maximum(squares, 0) / max(count, 1)
    components[: len(squares)] = vectors.T
    whole /= max(count, 1)
    # The values themselves are no finer than float32; what varies less is rounding.
    missing = variances <= _RESOLUTION**2 * (whole + mean @ mean)
    variances[missing], components[missing] = 0, 0
    for component in components:
        sizes = np.abs(component)
        # Sizes that differ by rounding are the same: the order of the pictures has no say.
        if component[(sizes >= (1 - _RESOLUTION) * sizes.max()).argmax()] < 0:
            component *= -1
    return PcaBasis(
        mean=mean,
        components=components,
        explained=variances / whole if whole > 0 else np.zeros(_COMPONENTS),
        low=-DEVIATIONS * np.sqrt(variances),
        high=DEVIATIONS * np.sqrt(variances),
        cells=count,
    )


def _leading(symmetric: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the three greatest eigenvalues, and their eigenvectors one a column; fewer of a smaller matrix."""
    values, vectors = _all_pairs(symmetric) if len(symmetric) <= _FEW else _greatest_pairs(symmetric)
    return values[:_COMPONENTS], vectors[:, :_COMPONENTS]


def _all_pairs(symmetric: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return eigenvalues, the greatest first, and their eigenvectors one a column."""
    values, vectors = np.linalg.eigh(symmetric)
    return values[::-1], vectors[:, ::-1]


def _greatest_pairs(symmetric: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the greatest eigenvalues and their eigenvectors by iteration on a subspace.

    N. Halko, P. G. Martinsson, J. A. Tropp, "Finding structure with randomness", SIAM Review 53(2), 2011. It ends when
    the residuals of the three vanish; where they do not, as between equal eigenvalues, LAPACK finds all.
    """
    directions = np.random.default_rng(0).normal(size=(len(symmetric), _DIRECTIONS))
    for _ in range(_MOST_STEPS):
        directions = np.linalg.qr(directions)[0]
        images = symmetric @ directions
        values, turn = _all_pairs(directions.T @ images)
        vectors = (directions @ turn)[:, :_COMPONENTS]
        residuals = images @ turn[:, :_COMPONENTS] - vectors * values[:_COMPONENTS]
        if np.linalg.norm(residuals, axis=0).max() <= _PRECISION * values[0]:
            return values[:_COMPONENTS], vectors
        directions = images
    return _all_pairs(symmetric)
