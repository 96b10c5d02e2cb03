"""Find what the pictures of a call share before the first is drawn: scale, order of channels, principal components."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from onnxfeat.drawing.channel_statistics import BatchStatistics, ChannelStatistics, statistics
from onnxfeat.drawing.ordering import BatchOrder, ChannelOrder
from onnxfeat.drawing.overlays import HeatScale, chosen_of, heat_at, scale_of_heat
from onnxfeat.drawing.reductions import BatchPca, PcaBasis, reduced
from onnxfeat.drawing.scales import BatchScale, Scale
from onnxfeat.drawing.styles import Style
from onnxfeat.drawing.subjects import subject_of, why_not_drawable
from onnxfeat.errors import PictureError
from onnxfeat.records import FeatureMap, Features


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shared:
    """What a layer has in common in all pictures of a call; None is found anew for each picture.

    Attributes:
        scale: What the colors stand for.
        order: Which channels, and in which order.
        basis: The principal components of `reduce="pca"`.
        known: What is known of what is drawn of all pictures together, for frames, which are marked the same.
        counted: What is known of the layer's own channels, which are counted where they are reduced to one.
        heat: What the colors of an overlay stand for.
    """

    scale: Scale | None = None
    order: ChannelOrder | None = None
    basis: PcaBasis | None = None
    known: ChannelStatistics | None = None
    counted: ChannelStatistics | None = None
    heat: HeatScale | None = None


ALONE = Shared()
"""A picture that shares nothing."""


class LayerTracker:
    """What pictures of a layer share, found while they pass; nothing is kept but numbers for each channel.

    Args:
        style: How the layer will be drawn.
        frames: Whether the pictures are frames, of which all are marked alike.
    """

    def __init__(self, style: Style, *, frames: bool = False) -> None:
        self._style, self._frames = style, frames
        self._scale = BatchScale(style.normalize, style.percentiles)
        self._order = BatchOrder(order=style.order, top=style.most, dead=style.dead, channels=style.channels)
        self._statistics = BatchStatistics()
        self._counted = BatchStatistics()
        self._pca = BatchPca()
        self._heat: HeatScale | None = None

    def add(self, feature_map: FeatureMap) -> None:
        """Take the maps of more pictures into account."""
        if self._style.reduce is not None and self._frames:
            self._counted.add(subject_of(feature_map).array)
        if self._style.reduce == "pca":
            self._pca.add(subject_of(feature_map).array)
            return
        if self._style.overlay:
            self._add_heat(feature_map)
            return
        shown = feature_map if self._style.reduce is None else reduced(feature_map, self._style.reduce)
        array = subject_of(shown).array
        known = statistics(array)
        self._scale.add(array, known)
        self._statistics.add(array, known)
        if self._style.reduce is None:  # what is made of all channels is one: it has no order
            self._order.add(array, known)

    def _add_heat(self, feature_map: FeatureMap) -> None:
        if feature_map.registration is None:  # it can't be laid over a photograph: there is nothing to share
            return
        channel, reduce = chosen_of(self._style, feature_map.channels)
        for index in range(len(feature_map.array)):
            scale = scale_of_heat(heat_at(feature_map, index, channel=channel, reduce=reduce))
            if scale is not None:
                self._heat = scale if self._heat is None else self._heat.joined(scale)

    def shared(self) -> Shared:
        """Return what all pictures that were added share."""
        counted = self._counted.whole() if self._style.reduce is not None and self._frames else None
        if self._style.reduce == "pca":
            return Shared(basis=self._pca.basis(), counted=counted)
        if self._style.overlay:
            return Shared(heat=self._heat)
        return Shared(
            counted=counted,
            scale=self._scale.scale(),
            order=self._order.order() if self._style.reduce is None else None,
            known=self._statistics.whole() if self._frames else None,
        )


def refuse_iterator(runs: Iterable[Features], why: str) -> None:
    """Raise a `PictureError` that says why, if runs that pass twice could be had only once."""
    if isinstance(runs, Iterator):
        raise PictureError(
            f"the runs are an iterator, which gives them only once, and {why}: pass what `FeatureExtractor.stream` "
            f"returns, or a list"
        )


def shared_by_layer(
    runs: Iterable[Features], style: Style, progress: Callable[[str], None] | None = None
) -> dict[str, Shared]:
    """Return layer name to what its pictures share in these runs, which pass once, one in memory at a time.

    Args:
        runs: The maps, or parts of them.
        style: How they will be drawn.
        progress: Called with a layer's name after it was seen.
    """
    trackers: dict[str, LayerTracker] = {}
    for run in runs:
        for name in run:
            if not why_not_drawable(run[name]):
                trackers.setdefault(name, LayerTracker(style)).add(run[name])
            if progress is not None:
                progress(name)
        del run  # its maps, before those of the next part are computed
    return {name: tracker.shared() for name, tracker in trackers.items()}
