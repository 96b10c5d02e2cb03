"""Lay maps over the photograph they were made from, each cell on the pixels that it sees."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxfeat.drawing.colormaps import INFINITE_COLOR, NAN_COLOR, color_table
from onnxfeat.drawing.photographs import Line, levels_of, lines_of, on_photograph
from onnxfeat.drawing.receptive_fields import ReceptiveFields, receptive_fields
from onnxfeat.drawing.reductions import PcaBasis, pca_basis, reduced, rgb
from onnxfeat.drawing.styles import Reduction, Style
from onnxfeat.errors import PictureError
from onnxfeat.picture_files import Picture
from onnxfeat.records import FeatureMap
from onnxfeat.registration import Registration

LEAST_TINT = 0.25
"""Share of the strength that every lit pixel gets, so that a receptive field is visible up to its edges."""

_BAND = 32  # rows of the photograph that are painted at a time: they fit the cache
_BITS = 16  # of a share of a color


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
        finite: Whether any cell is finite.
        gated: Whether each cell also sees the whole picture, by a gate or a normalization.
        bounded: Whether cells see less than is lit, as their fields are no rectangles.
    """

    values: NDArray[np.float64]
    lit: NDArray[np.bool_]
    nan: NDArray[np.bool_]
    infinite: NDArray[np.bool_]
    signed: bool
    finite: bool
    gated: bool
    bounded: bool


@dataclass(frozen=True, slots=True)
class HeatScale:
    """What the last color stands for.

    Attributes:
        most: Greatest absolute value of the heat.
        signed: Whether the first color is as far below 0; else it is 0.
    """

    most: float
    signed: bool

    def joined(self, other: HeatScale) -> HeatScale:
        """Return the scale that holds this one and another."""
        return HeatScale(max(self.most, other.most), self.signed or other.signed)


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
        finite=bool(finite.any()),
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
    account, and so is how the photograph was fitted to the model's input. A pixel that goes into the input is lit if
    and only if a cell whose value is not 0 sees it; all others stay as they are. Pixels that a resize skips (nearest
    neighbors, and Keras's, which does not smooth) go into nothing: they look like the pixel of the input that they lie
    on. The heat of a pixel is the mean of the cells that see it, each counted by the number of ways from the pixel to
    the cell, so that a cell is brightest where it looks most; the greatest heat gets the last color and the whole
    `strength`, little heat a quarter of that.

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
        scale: What the colors stand for; None for principal components, and where no cell is finite.
        basis: The principal components; None of other reductions.
    """

    pixels: NDArray[np.uint8]
    heat: Heat
    scale: HeatScale | None
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
    scale: HeatScale | None = None,
) -> Laid:
    """Do what `overlay` does, and tell what the colors stand for.

    Args:
        feature_map: See `overlay`, as for all but the last two.
        photograph: The picture.
        index: Which of the batch.
        channel: Which channel; None takes all.
        reduce: How all become one.
        colormap: Name of a colormap.
        strength: How much of a pixel's color the greatest heat takes.
        basis: Principal components that other pictures share; None finds those of the batch.
        scale: What the colors stand for in other pictures too; None takes the greatest heat of this one.

    Raises:
        PictureError: See `overlay`.
    """
    registration = _registration_of(feature_map)
    if not 0 < strength <= 1:
        raise PictureError(f"strength {strength!r} is not above 0 and up to 1: pass for instance 0.7")
    _refuse_beyond(feature_map, index, channel)
    pixels = levels_of(photograph)
    if channel is None and reduce == "pca":
        basis = basis or pca_basis([feature_map])
        heat, tint, colors = _principal(feature_map, index, registration, basis)
        scale = None
    else:
        basis, heat = None, heat_at(feature_map, index, channel=channel, reduce=reduce)
        scale = scale or scale_of_heat(heat)
        tint, colors = _colored(heat, scale, colormap)
    _paint(pixels, heat, strength * (LEAST_TINT + (1 - LEAST_TINT) * tint), colors, strength, registration)
    return Laid(pixels=pixels, heat=heat, scale=scale, basis=basis)


def heat_at(feature_map: FeatureMap, index: int, *, channel: int | None, reduce: Reduction) -> Heat:
    """Lay a channel, or a reduction of all, on the model's input.

    Args:
        feature_map: Maps that have a registration.
        index: Which picture of the batch.
        channel: Which channel; None takes all.
        reduce: How all become one: `mean`, `max` or `l2`.

    Raises:
        PictureError: See `overlay`.
    """
    registration = _registration_of(feature_map)
    _refuse_beyond(feature_map, index, channel)
    array = feature_map.array[index : index + 1]
    plane = array if channel is not None else reduced(replace(feature_map, array=array), reduce).array
    return heat_of(plane[0, channel or 0], registration)


def scale_of_heat(heat: Heat) -> HeatScale | None:
    """Return what the colors of one picture stand for; None where no cell is finite."""
    return HeatScale(float(np.abs(heat.values).max()), heat.signed) if heat.finite else None


def chosen_of(style: Style, channels: int) -> tuple[int | None, Reduction]:
    """Return the channel of a layer that a style lays over, None for all, and how all become one.

    Example:
        >>> chosen_of(Style(overlay=True, channels=(-1,)), 32)
        (31, 'mean')
    """
    channel = None if style.channels is None else style.channels[0]
    if channel is not None and -channels <= channel < 0:
        channel += channels
    return channel, style.reduce or "mean"


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


def _refuse_beyond(feature_map: FeatureMap, index: int, channel: int | None) -> None:
    for what, number, count in (("picture", index, len(feature_map.array)), ("channel", channel, feature_map.channels)):
        if number is not None and not 0 <= number < count:
            raise PictureError(f"{feature_map.name!r} has no {what} {number}: pass a number from 0 to {count - 1}")


def _fields_of(cells: tuple[int, ...], registration: Registration) -> ReceptiveFields:
    fields = receptive_fields(registration)
    if fields.cells != cells:
        raise PictureError(
            f"the map has {' x '.join(map(str, cells))} cells, and the model's steps make "
            f"{' x '.join(map(str, fields.cells))} of a picture of {' x '.join(map(str, registration.size))}: pass a "
            f"map as the FeatureExtractor gave it"
        )
    return fields


def _colored(
    heat: Heat, scale: HeatScale | None, colormap: str | None
) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    """Return how much each pixel of the input is tinted, 0 to 1, and its color."""
    most, signed = (scale.most, scale.signed) if scale is not None else (0.0, False)
    share = np.asarray(heat.values / most if most > 0 else heat.values, np.float64)
    levels = 127.5 + 127.5 * share if signed else 255 * share
    table = color_table(colormap or default_colormap(signed=signed))
    return np.abs(share), table[np.round(levels).astype(np.uint8)]


def default_colormap(*, signed: bool) -> str:
    """Return the name of the colormap for heat with values below 0, or from 0 on."""
    return "coolwarm" if signed else "viridis"


def _principal(
    feature_map: FeatureMap, index: int, registration: Registration, basis: PcaBasis
) -> tuple[Heat, NDArray[np.float64], NDArray[np.uint8]]:
    """Return where channels are not 0, a tint of 1 everywhere, and the mean color of the cells that see a pixel."""
    array = feature_map.array[index]
    cells = (array != 0).any(axis=0).astype(np.float64)
    cells[np.isinf(array).any(axis=0)] = np.inf
    cells[np.isnan(array).any(axis=0)] = np.nan
    colors = rgb(array[None], basis)[0]
    levels = [heat_of(np.where(np.isfinite(cells), x, np.nan), registration).values for x in colors]
    return heat_of(cells, registration), np.ones(registration.size), np.stack(levels, axis=-1).round().astype(np.uint8)


def _paint(
    pixels: NDArray[np.uint8],
    heat: Heat,
    shares: NDArray[np.float64],
    colors: NDArray[np.uint8],
    strength: float,
    registration: Registration,
) -> None:
    """Paint heat over a photograph in place, a band of rows at a time: a photograph is large.

    Args:
        pixels: Levels of the photograph, (rows, columns, 3).
        heat: The heat on the input.
        shares: How much of a pixel's color that of the heat takes, of the input's shape.
        colors: The color, (rows, columns, 3) of the input.
        strength: What the colors of NaN and infinite cells take.
        registration: Of the map.
    """
    rows, columns = lines_of((pixels.shape[0], pixels.shape[1]), registration)
    masks = [on_photograph(mask, rows, columns) for mask in (heat.lit, heat.infinite, heat.nan)]
    constants = [(np.asarray(strength), np.asarray(color, np.uint8)) for color in (INFINITE_COLOR, NAN_COLOR)]
    for top in range(0, len(pixels), _BAND):
        band = slice(top, top + _BAND)
        seen = [mask[rows.groups[band]] for mask in masks]
        if not any(mask.any() for mask in seen):
            continue
        before = pixels[band].copy()
        near = rows.nearest[band]
        paints = [(shares[near], colors[near]), *constants]
        for mask, (share, color) in zip(seen, paints, strict=True):
            if mask.any():
                where = mask.take(columns.groups, axis=1)
                after = _blended(before, share, color, columns, where)
                if where.all():
                    pixels[band] = after
                else:  # one mask for each level: NumPy takes four times as long to broadcast one over the three
                    np.copyto(pixels[band], after, where=where.repeat(3, axis=1).reshape(after.shape))


def _blended(
    before: NDArray[np.uint8],
    share: NDArray[np.float64],
    color: NDArray[np.uint8],
    columns: Line,
    where: NDArray[np.bool_],
) -> NDArray[np.uint8]:
    """Return pixels of which a share is another color; each differs from what it was where a mask says so.

    The weights are whole numbers, in units of 2 ** -16: red, green and blue of a photograph have none but these either.
    """
    whole = 1 << _BITS
    amount = np.round(share[..., None] * whole).astype(np.uint32)
    ink, kept = amount * color + np.uint32(whole // 2), np.uint32(whole) - amount
    if share.ndim:  # one for each pixel of the input, and not one for all
        ink, kept = ink.take(columns.nearest, axis=1), kept.take(columns.nearest, axis=1)
    mixed = before * kept
    mixed += ink
    mixed >>= _BITS
    after = mixed.astype(np.uint8)
    same = where.copy()  # a photograph may have the very color of the heat
    for plane in range(3):
        same &= after[..., plane] == before[..., plane]
    if same.any():
        after[same] = np.where(before[same] < 128, before[same] + 1, before[same] - 1)
    return after
