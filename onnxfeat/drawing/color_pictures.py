"""Make the pictures of a layer that have colors of their own: principal components, a layer over its photograph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxfeat.drawing.captions import remarks, shape_words
from onnxfeat.drawing.channel_facts import constancy_facts, rounded
from onnxfeat.drawing.channel_statistics import not_finite, statistics
from onnxfeat.drawing.colormaps import INFINITE_COLOR, NAN_COLOR
from onnxfeat.drawing.legends import Legend, counts_of, marks_of, number, operator_of
from onnxfeat.drawing.overlays import Laid, chosen_of, default_colormap, lay_over
from onnxfeat.drawing.pictures import picture_of, tile
from onnxfeat.drawing.reductions import PcaBasis, pca_basis, rgb
from onnxfeat.drawing.sharing import ALONE, Shared
from onnxfeat.drawing.styles import Style
from onnxfeat.drawing.subjects import subject_facts, subject_of
from onnxfeat.drawing.tilings import enlarged, tiling_of
from onnxfeat.picture_files import Picture
from onnxfeat.records import FeatureMap

_LARGE = 512  # pixels: what a photograph is enlarged to


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ColorPicture:
    """A picture in red, green and blue, and what is said around it.

    Attributes:
        title: First line.
        subtitle: Lines below it.
        colors: `uint8` (rows, columns, 3).
        legend: What explains the colors.
        colormap: Name of the colormap of the legend's bar.
        facts: What it shows, as JSON data.
    """

    title: str
    subtitle: str
    colors: NDArray[np.uint8]
    legend: Legend
    colormap: str
    facts: Mapping[str, Any]


def components_of(feature_map: FeatureMap, index: int, style: Style, shared: Shared = ALONE) -> ColorPicture:
    """Return the first three principal components of a layer as red, green and blue.

    Args:
        feature_map: Maps of the layer, (N, C, *spatial).
        index: Which picture of the batch.
        style: How.
        shared: The components that other pictures have too; None finds those of all of the batch.

    Raises:
        PictureError: The map can't be drawn, or `index` is outside the batch.
    """
    subject = subject_of(feature_map)
    one = picture_of(subject.array, index)
    basis = shared.basis or pca_basis([subject.array])
    plan = tiling_of(one.shape[2:], 1, replace(style, arrange="channel"))
    nan, infinite = (mask.any(axis=0) for mask in not_finite(one[0]))
    shown = []
    for plane, of_nan, of_infinite in zip(rgb(one, basis)[0], NAN_COLOR, INFINITE_COLOR, strict=True):
        colored = np.where(nan, np.uint8(of_nan), np.where(infinite, np.uint8(of_infinite), plane))
        # Turned over and back again, as the pixels between cells are level 0 and are to be white.
        shown.append(~tile(enlarged(~plan.cells(colored[None]), plan.zoom), plan.columns, plan.gap))
    found = shared.counted or statistics(one)
    facts = {
        **subject_facts(subject),
        **plan.facts,
        "arrangement": "pca",
        **_component_facts(basis),
        **constancy_facts(found),
    }
    return ColorPicture(
        title=f"{feature_map.name}: principal components of {feature_map.channels:,} channels",
        subtitle=", ".join([operator_of(feature_map.layer), shape_words(facts), *remarks(facts)]),
        colors=np.stack(shown, axis=-1),
        legend=Legend(ends=(), note=components_note(basis), marks=marks_of(**counts_of(found))),
        colormap=style.colors,
        facts=facts,
    )


def components_note(basis: PcaBasis) -> str:
    """Return in words what the colors of principal components stand for."""
    if not basis.cells:
        return "no cell is finite in every channel: there are no components"
    if not basis.explained.any():
        return "mid-gray is the mean: nothing varies"
    shares = ", ".join(f"{share:.0%}" for share in basis.explained)
    return (
        f"red, green, blue: the first three components, {shares} of the variance; mid-gray is the mean, full color "
        f"2 standard deviations"
    )


def overlay_of(
    feature_map: FeatureMap, photograph: Picture, index: int, style: Style, shared: Shared = ALONE
) -> ColorPicture:
    """Return one layer over the photograph that it was made from, as `overlays.overlay` does.

    What is laid over it is the channel that the style names, else what `style.reduce` makes of all, their mean unless
    it says otherwise.

    Args:
        feature_map: Maps of the layer, (N, C, rows, columns).
        photograph: The picture, as path, PIL image or array.
        index: Which picture of the batch it is.
        style: How.
        shared: Principal components that other pictures have too.

    Raises:
        PictureError: The layer can't be laid over a picture, or the photograph can't be read.
    """
    channel, reduce = chosen_of(style, feature_map.channels)
    laid = lay_over(
        feature_map,
        photograph,
        index,
        channel=channel,
        reduce=reduce,
        colormap=style.colormap,
        basis=shared.basis,
        scale=shared.heat,
    )
    what = f"channel {channel}" if channel is not None else f"{reduce} of {feature_map.channels:,} channels"
    ends = _ends_of(laid)
    found = statistics(feature_map.array[index : index + 1])
    colormap = style.colormap or default_colormap(signed=laid.scale is not None and laid.scale.signed)
    sides = dict(zip(("channels", "height", "width"), feature_map.shape[1:], strict=True))
    facts = {
        **sides,
        "arrangement": "overlay",
        "colormap": None if laid.basis is not None else colormap,
        "shown": what,
        **({} if laid.basis is None else _component_facts(laid.basis)),
        **({"scale": {"low": [ends[0]], "high": [ends[1]]}} if ends else {}),
        "gated": laid.heat.gated,
        **constancy_facts(found),
    }
    zoom = (style.zoom or max(1, _LARGE // max(laid.pixels.shape[:2]))) * style.density if style.frame else 1
    return ColorPicture(
        title=feature_map.name,
        subtitle=", ".join([operator_of(feature_map.layer), shape_words(sides)]),
        colors=laid.pixels.repeat(zoom, axis=0).repeat(zoom, axis=1) if zoom > 1 else laid.pixels,
        legend=Legend(
            ends=tuple(number(x) for x in (ends[0], sum(ends) / 2, ends[1])) if ends and ends[1] > 0 else (),
            note="; ".join(_notes_of(laid, what)),
            marks=marks_of(**counts_of(found)),
        ),
        colormap=colormap,
        facts=facts,
    )


def _ends_of(laid: Laid) -> tuple[float, float] | None:
    """Return the values that the first and the last color stand for; None where no color stands for one."""
    if laid.scale is None:
        return None
    return -laid.scale.most if laid.scale.signed else 0.0, laid.scale.most


def _notes_of(laid: Laid, what: str) -> list[str]:
    """Return in words what an overlay shows."""
    if not laid.heat.finite:
        return [what, "no value of it is finite"]
    if not laid.heat.lit.any():
        return [what, "all values are 0, so that nothing is lit"]
    notes = [what, "lit is what cells see that are not 0, brightest where they look most"]
    if laid.heat.gated:
        notes.append("by a gate each cell also sees the whole picture")
    if laid.heat.bounded:
        notes.append("cells see a little less than is lit")
    if laid.basis is not None:
        notes.append(components_note(laid.basis))
    return notes


def _component_facts(basis: PcaBasis) -> dict[str, list[float]]:
    return {"explained": rounded(basis.explained), "deviations": rounded(basis.high / 2)}
