"""Lay maps over the photograph they were made from, each cell on the pixels that it sees."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxfeat.drawing.colormaps import INFINITE_COLOR, NAN_COLOR, color_table
from onnxfeat.drawing.receptive_fields import ReceptiveFields, receptive_fields
from onnxfeat.drawing.reductions import PcaBasis, pca_basis, reduced, rgb
from onnxfeat.drawing.styles import Reduction
from onnxfeat.errors import PictureError
from onnxfeat.framing import crop_box, letterbox, pad_margins
from onnxfeat.picture_files import Picture, as_image, content_of, converted, refuse_bomb
from onnxfeat.records import FeatureMap
from onnxfeat.registration import Registration

LEAST_TINT = 0.25
"""Share of the strength that every lit pixel gets, so that a receptive field is visible up to its edges."""

_ROUNDING = 1e-6  # of a pixel


@dataclass(frozen=True, slots=True, eq=False)
class Heat:
    """A map laid on the model's input, pixel by pixel.

    Attributes:
        values: Mean of the cells that see a pixel, each counted by how much it looks at it; float64 (rows, columns) of
            the input, 0 where no finite cell sees the pixel.
        lit: Whether a cell whose value is not 0 sees the pixel.
        nan: Whether a cell that is NaN sees it; such cells are left out of `values`.
        infinite: Whether an infinite cell does, likewise.
        signed: Whether cells are below 0.
        gated: Whether each cell also sees the whole picture, by a gate or a normalization.
        bounded: Whether cells see less than is lit, as their fields are no rectangles.
    """

    values: NDArray[np.float64]
    lit: NDArray[np.bool_]
    nan: NDArray[np.bool_]
    infinite: NDArray[np.bool_]
    signed: bool
    gated: bool
    bounded: bool


def heat_of(cells: NDArray[Any], registration: Registration) -> Heat:
    """Lay one channel on the model's input.

    Args:
        cells: Values of the channel, shape (rows, columns) of the map.
        registration: Of the map.

    Raises:
        PictureError: The steps of the registration make a map of another size.

    Example:
        >>> from onnxfeat.registration import Step, Window
        >>> conv = Step((0,), Window(3), Window(3))
        >>> cells = np.zeros((2, 3))
        >>> cells[0, 1] = 5
        >>> heat = heat_of(cells, Registration(steps=(Step(), conv), step=1, size=(4, 5)))
        >>> print(heat.lit.astype(int))
        [[0 1 1 1 0]
         [0 1 1 1 0]
         [0 1 1 1 0]
         [0 0 0 0 0]]
    """
    fields = _fields_of(cells.shape, registration)
    finite = np.isfinite(cells)
    known = np.where(finite, cells, 0).astype(np.float64)
    # Sums of values near the largest float32 stay far below the largest float64.
    counts = fields.spread(finite)
    values = np.divide(fields.spread(known), counts, out=np.zeros_like(counts), where=counts > 0)
    return Heat(
        values=values,
        lit=fields.of_cells(known != 0),
        nan=fields.of_cells(np.isnan(cells)),
        infinite=fields.of_cells(np.isinf(cells)),
        signed=bool((known < 0).any()),
        gated=registration.gated,
        bounded=fields.bounded,
    )


def overlay(
    feature_map: FeatureMap,
    photograph: Picture,
    index: int = 0,
    *,
    channel: int | None = None,
    reduce: Reduction = "mean",
    colormap: str | None = None,
    strength: float = 0.7,
) -> NDArray[np.uint8]:
    """Lay a channel, or a reduction of all, over the photograph that the map was made from.

    Each cell lies where it sees the photograph: stride, padding and dilation of all layers before it are taken into
    account, and so is how the photograph was fitted to the model's input. A pixel is lit if and only if a cell whose
    value is not 0 sees it; all others stay as they are. The heat of a pixel is the mean of the cells that see it, each
    counted by the number of ways from the pixel to the cell, so that a cell is brightest where it looks most; the
    greatest heat gets the last color and the whole `strength`, little heat a quarter of that.

    Args:
        feature_map: Maps from a `FeatureExtractor`, (N, C, rows, columns).
        photograph: The picture that went into the model, in any size: path, PIL image or `uint8` array.
        index: Which picture of the batch it is.
        channel: Channel to lay over it; None takes all, as `reduce` says.
        reduce: How all channels become one: `mean`, `max`, `l2`, or `pca` for three that are red, green and blue; cells
            at which all channels are 0 then light nothing.
        colormap: Name of a colormap; None takes viridis from 0 on, and for a map with values below 0 coolwarm, whose
            middle is 0.
        strength: How much of a pixel's color the greatest heat takes: above 0, up to 1.

    Returns:
        `uint8` (rows, columns, 3) of the photograph's size. Pixels that a cell sees which is NaN are magenta, those of
        infinite cells cyan.

    Raises:
        PictureError: No cell of the map belongs to a place of the picture; there is no such picture or channel; the
            photograph can't be read.

    Example:
        >>> from onnxfeat import FeatureExtractor
        >>> features = FeatureExtractor("models/shapes_small.onnx", provider="cpu")("models/pictures/chelsea.png")
        >>> overlay(features["conv_4"], "models/pictures/chelsea.png", reduce="l2").shape
        (300, 451, 3)
    """
    return lay_over(
        feature_map, photograph, index, channel=channel, reduce=reduce, colormap=colormap, strength=strength
    ).pixels


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Laid:
    """A map that was laid over a photograph.

    Attributes:
        pixels: `uint8` (rows, columns, 3) of the photograph's size.
        heat: What was laid over it, on the model's input; of principal components where any channel is not 0.
        most: Greatest absolute value of the heat, which has the last color; 0 for principal components.
        basis: The principal components; None of other reductions.
    """

    pixels: NDArray[np.uint8]
    heat: Heat
    most: float
    basis: PcaBasis | None


def lay_over(
    feature_map: FeatureMap,
    photograph: Picture,
    index: int = 0,
    *,
    channel: int | None = None,
    reduce: Reduction = "mean",
    colormap: str | None = None,
    strength: float = 0.7,
    basis: PcaBasis | None = None,
) -> Laid:
    """Do what `overlay` does, and tell what the colors stand for.

    Args:
        feature_map: See `overlay`, as for all but the last.
        photograph: The picture.
        index: Which of the batch.
        channel: Which channel; None takes all.
        reduce: How all become one.
        colormap: Name of a colormap.
        strength: How much of a pixel's color the greatest heat takes.
        basis: Principal components that other pictures share; None finds those of the batch.

    Raises:
        PictureError: See `overlay`.
    """
    registration = _registration_of(feature_map)
    if not 0 < strength <= 1:
        raise PictureError(f"strength {strength!r} is not above 0 and up to 1: pass for instance 0.7")
    for what, number, count in (("picture", index, len(feature_map.array)), ("channel", channel, feature_map.channels)):
        if number is not None and not 0 <= number < count:
            raise PictureError(f"{feature_map.name!r} has no {what} {number}: pass a number from 0 to {count - 1}")
    pixels = _pixels_of(photograph)
    rows, columns = _lines(pixels.shape[:2], registration)
    if channel is None and reduce == "pca":
        basis = basis or pca_basis([feature_map])
        heat, tint, colors = _principal(feature_map, index, registration, basis)
        most = 0.0
    else:
        array = feature_map.array[index : index + 1]
        plane = array if channel is not None else reduced(replace(feature_map, array=array), reduce).array
        heat = heat_of(plane[0, channel or 0], registration)
        tint, colors = _colored(heat, colormap)
        basis, most = None, float(np.abs(heat.values).max())
    masks = [_on_photograph(mask, rows, columns) for mask in (heat.lit, heat.infinite, heat.nan)]
    share = strength * (LEAST_TINT + (1 - LEAST_TINT) * _nearest(tint, rows, columns))
    lit = _blended(pixels, _nearest(colors, rows, columns), share, masks[0])
    for mask, color in zip(masks[1:], (INFINITE_COLOR, NAN_COLOR), strict=True):
        lit = np.where(mask[..., None], _blended(pixels, np.array(color), np.array(strength), mask), lit)
    return Laid(pixels=lit, heat=heat, most=most, basis=basis)


def why_not_laid(feature_map: FeatureMap) -> str:
    """Return the reason why a map can't be laid over a photograph, or an empty text if it can."""
    if feature_map.registration is not None:
        return ""
    if feature_map.array.ndim != 4:
        why = f"its map has the shape {feature_map.shape}, which has no rows and columns"
    elif feature_map.layer.is_vector or feature_map.shape[2:] == (1, 1):
        why = "its one cell stands for the whole picture"
    else:
        why = (
            "what leads to it mixes all places, as dense layers and attention do, or is not known; or the map was not "
            "made by a FeatureExtractor, from pictures of several sizes, or by a file that an older onnxfeat exposed"
        )
    return f"no cell of it belongs to a place of the picture: {why}"


def _registration_of(feature_map: FeatureMap) -> Registration:
    if feature_map.registration is None:
        raise PictureError(
            f"{feature_map.name!r} can't be laid over a picture, {why_not_laid(feature_map)}; choose a conv or pool "
            f"layer before that, or draw it by itself"
        )
    return feature_map.registration


def _fields_of(cells: tuple[int, ...], registration: Registration) -> ReceptiveFields:
    fields = receptive_fields(registration)
    if fields.cells != cells:
        raise PictureError(
            f"the map has {' x '.join(map(str, cells))} cells, and the model's steps make "
            f"{' x '.join(map(str, fields.cells))} of a picture of {' x '.join(map(str, registration.size))}: pass a "
            f"map as the FeatureExtractor gave it"
        )
    return fields


def _pixels_of(photograph: Picture) -> NDArray[np.uint8]:
    """Return a photograph's red, green and blue levels, shape (rows, columns, 3)."""
    name = str(photograph) if isinstance(photograph, str | Path) else "the photograph"
    content = content_of(photograph)
    if isinstance(content, np.ndarray):
        refuse_bomb(content.shape[:2], f"{name} is too large to be taken as a picture safely", "pass a smaller picture")
        content = as_image(np.asarray(content), name)
    return np.asarray(converted(content, "RGB", name))


def _colored(heat: Heat, colormap: str | None) -> tuple[NDArray[np.float64], NDArray[Any]]:
    """Return how much each pixel of the input is tinted, 0 to 1, and its color."""
    most = np.abs(heat.values).max()
    share = np.asarray(heat.values / most if most > 0 else heat.values, np.float64)
    levels = 127.5 + 127.5 * share if heat.signed else 255 * share
    table = color_table(colormap or ("coolwarm" if heat.signed else "viridis"))
    return np.asarray(np.abs(share), np.float64), table[np.round(levels).astype(np.int64)]


def _principal(
    feature_map: FeatureMap, index: int, registration: Registration, basis: PcaBasis
) -> tuple[Heat, NDArray[np.float64], NDArray[Any]]:
    """Return where channels are not 0, a tint of 1 everywhere, and the mean color of the cells that see a pixel."""
    array = feature_map.array[index]
    cells = (array != 0).any(axis=0).astype(np.float64)
    cells[np.isinf(array).any(axis=0)] = np.inf
    cells[np.isnan(array).any(axis=0)] = np.nan
    colors = rgb(array[None], basis)[0]
    levels = [heat_of(np.where(np.isfinite(cells), x, np.nan), registration).values for x in colors]
    return heat_of(cells, registration), np.ones(registration.size), np.stack(levels, axis=-1)


@dataclass(frozen=True, slots=True)
class _Line:
    """Where the pixels of a photograph lie on the model's input along one axis.

    Attributes:
        pixels: Number of pixels of the photograph.
        cells: Number of pixels of the input.
        start: Where the photograph's first pixel begins on the input.
        scale: How many pixels of the input one of the photograph covers.
    """

    pixels: int
    cells: int
    start: float
    scale: float

    @property
    def edges(self) -> NDArray[np.float64]:
        """Where each pixel of the photograph begins on the input, and where the last one ends."""
        return np.asarray(self.start + self.scale * np.arange(self.pixels + 1), np.float64)

    @property
    def nearest(self) -> NDArray[np.int64]:
        """Pixel of the input at the middle of each pixel of the photograph."""
        middle = np.floor((self.edges[:-1] + self.edges[1:]) / 2)
        return np.asarray(middle.clip(0, self.cells - 1).astype(np.int64))

    @property
    def inside(self) -> NDArray[np.bool_]:
        """Whether each pixel of the photograph is on the input at all, or was cropped away."""
        if self.scale > 1:
            return np.asarray((self.edges[1:] > 0) & (self.edges[:-1] < self.cells))
        middle = (self.edges[:-1] + self.edges[1:]) / 2
        return np.asarray((middle >= 0) & (middle < self.cells))


def _lines(given: tuple[int, ...], registration: Registration) -> tuple[_Line, _Line]:
    """Return how rows and columns of a photograph lie on the input, as it was resized (see `running.resizing`)."""
    photograph, size = (given[0], given[1]), registration.size
    corner, scales = (0.0, 0.0), [wanted / side for wanted, side in zip(size, photograph, strict=True)]
    if photograph == size:
        pass
    elif registration.aspect == "crop":
        top, left, height, width = crop_box(photograph, size, registration.resampling)
        scales = [size[0] / height, size[1] / width]
        corner = (-top * scales[0], -left * scales[1])
    elif registration.aspect == "pad":
        margins = pad_margins(photograph, size)
        sides = zip(size, photograph, margins, strict=True)
        scales = [wanted / (side + 2 * margin) for wanted, side, margin in sides]
        corner = (margins[0] * scales[0], margins[1] * scales[1])
    elif registration.aspect == "letterbox":
        top, left, height, width = letterbox(photograph, size)
        scales = [height / photograph[0], width / photograph[1]]
        corner = (top, left)
    rows, columns = (_Line(photograph[x], size[x], corner[x], scales[x]) for x in (0, 1))
    return rows, columns


def _nearest(values: NDArray[Any], rows: _Line, columns: _Line) -> NDArray[Any]:
    """Return values of the input for each pixel of the photograph, none of them mixed."""
    return np.asarray(values[rows.nearest[:, None], columns.nearest])


def _on_photograph(mask: NDArray[np.bool_], rows: _Line, columns: _Line) -> NDArray[np.bool_]:
    """Return which pixels of a photograph have pixels of the input in a mask; those cropped away have none."""
    for axis, line in enumerate((rows, columns)):
        if line.scale > 1:  # a pixel covers several: one of them is enough
            # An edge that is a whole number but for rounding is that number.
            last = min(math.ceil(line.edges[-1] - _ROUNDING), line.cells)
            starts = np.floor(line.edges[:-1] + _ROUNDING).clip(0, last - 1).astype(np.int64)
            part = np.take(mask, np.arange(last), axis=axis)
            mask = np.logical_or.reduceat(part, starts, axis=axis)
        else:
            mask = np.take(mask, line.nearest, axis=axis)
    return np.asarray(mask & rows.inside[:, None] & columns.inside)


def _blended(
    pixels: NDArray[np.uint8], colors: NDArray[Any], share: NDArray[np.float64], where: NDArray[np.bool_]
) -> NDArray[np.uint8]:
    """Return pixels of which a share is another color, where a mask says so; there each differs from what it was."""
    before = pixels[where]
    amount = (share[where] if share.ndim else share)[..., None]
    colors = colors[where] if colors.ndim > 1 else colors
    after = np.round(before + amount * (colors.astype(np.float64) - before)).astype(np.uint8)
    same = (after == before).all(axis=-1)  # a photograph may have the very color of the heat
    after[same] = np.where(before[same] < 128, before[same] + 1, before[same] - 1)
    found = pixels.copy()
    found[where] = after
    return found
