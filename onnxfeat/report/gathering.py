"""Gather what a page tells from the maps of a run, one part in memory at a time."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from onnxfeat.drawing.channel_statistics import ChannelStatistics, statistics
from onnxfeat.drawing.ordering import BatchOrder
from onnxfeat.drawing.overlays import why_not_laid
from onnxfeat.drawing.picture_numbers import PictureNumber, PictureNumbers
from onnxfeat.drawing.styles import Order, Style
from onnxfeat.drawing.subjects import Subject, subject_of, why_not_drawable
from onnxfeat.drawing.threads import in_threads
from onnxfeat.drawing.writing import versions
from onnxfeat.errors import PictureError
from onnxfeat.findings import Check
from onnxfeat.records import FeatureMap, Features, Layer
from onnxfeat.registration import Registration
from onnxfeat.report.contents import Fields, LayerPage, Page, Photograph, Sprite, View
from onnxfeat.report.measures import layer_statistics
from onnxfeat.report.places import Cells, fields_of
from onnxfeat.report.portraits import portrait_of
from onnxfeat.report.repetition import Run, command_of, python_of
from onnxfeat.report.sprites import block_for, png_of, sprite_of, thumbnail_of
from onnxfeat.verdicts import verdict

_OF_A_FILE = len(png_of(np.zeros((1, 1), np.uint8))) * 4 / 3  # bytes of a sprite beside its pixels
_ROOM = 0.97  # of what a page may take, as pictures of blocks pack worse: else the runs would pass once more for it
_OF_A_CHANNEL = 28  # bytes beside its pixels: extremes, mean, deviation and places in two orders, as base64


@dataclass(slots=True, kw_only=True)
class _Seen:
    """What has been seen of one layer.

    Attributes:
        layer: The layer.
        shape: Shape of its map for one photograph.
        why_no_place: Why no cell belongs to a place.
        thumbnail: PNG file.
        orders: What decides the orders of its channels.
        views: Number of a photograph to the layer for it, without its place.
        registrations: Number of a photograph to how the cells lie on it, where they have a place.
    """

    layer: Layer
    shape: tuple[int, ...]
    why_no_place: str
    thumbnail: bytes
    orders: dict[str, BatchOrder]
    views: dict[PictureNumber, View] = field(default_factory=dict)
    registrations: dict[PictureNumber, Registration] = field(default_factory=dict)

    @property
    def bytes_each(self) -> float:
        """Bytes that its sprites take in the page for each photograph, as base64."""
        return sum(len(view.sprite.png) for view in self.views.values()) * 4 / 3 / len(self.views)


def gather(
    runs: Iterable[Features],
    *,
    style: Style,
    check: Check | None = None,
    max_bytes: int,
    progress: Callable[[str], None] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Page:
    """Return all that a page tells of some runs.

    Where the page would be larger than `max_bytes` for each photograph, the runs pass again, and in the layers that
    take most each pixel is the mean of a block of cells, as large as it must be.

    Args:
        runs: The maps of one model, or parts of them as `FeatureExtractor.stream` gives.
        style: How they are shown at first.
        check: What `check` found, if it was asked.
        max_bytes: See above.
        progress: Called with a layer's name after it was seen.
        facts: What the command line knows more (see `onnxfeat.report.repetition.Run`); `unchecked`, a sentence, says
            why there is no check.

    Raises:
        PictureError: There is nothing to show, or the runs are of several models.

    Example:
        >>> from onnxfeat import FeatureExtractor
        >>> extractor = FeatureExtractor("models/shapes_reference_layers.onnx", provider="cpu")
        >>> page = gather([extractor("models/pictures/chelsea.png")], style=Style(), max_bytes=1 << 24)
        >>> [layer.layer.name for layer in page.layers][:2], page.layers[0].views[0].sprite.rows
        (['conv2d', 'max_pooling2d'], 148)
    """
    gathered = _Gathered(style=style, progress=progress)
    for run in runs:
        gathered.add(run)
        del run  # its maps, before those of the next part are computed
    while (blocks := _larger_blocks(gathered, max_bytes)) != gathered.blocks:
        if isinstance(runs, Iterator):
            raise PictureError(
                f"the page would take more than {max_bytes:,} bytes for each photograph, and the runs are an iterator, "
                f"which gives the maps only once: pass what `FeatureExtractor.stream` returns, or raise max_bytes"
            )
        gathered.blocks, numbers = blocks, PictureNumbers()
        for run in runs:
            gathered.make_coarser(run, numbers.of(run))
            del run
    return gathered.page(check, facts or {})


@dataclass(slots=True, kw_only=True)
class _Gathered:
    """What has been seen of runs, part after part.

    Attributes:
        style: How they are shown at first.
        progress: Called with a layer's name.
        blocks: Layer name to the least block of cells that is one pixel, where that is more than one.
    """

    style: Style
    progress: Callable[[str], None] | None
    blocks: dict[str, int] = field(default_factory=dict)
    numbers: PictureNumbers = field(default_factory=PictureNumbers)
    first: Features | None = None
    photographs: dict[PictureNumber, Photograph] = field(default_factory=dict)
    layers: dict[str, _Seen] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def add(self, run: Features) -> None:
        """Take the maps of a run or a part of one."""
        if self.first is None:
            self.first = replace(run, maps={}, layers=run.layers or tuple(run))
        if (run.sha256, run.layers or tuple(run)) != (self.first.sha256, self.first.layers):
            raise PictureError(
                f"the runs are of several models or selections ({self.first.model}, {run.model}), and a page shows "
                f"one: write a page for each"
            )
        numbers = self.numbers.of(run)
        for index, number in enumerate(numbers):
            if number not in self.photographs:
                self.photographs[number] = portrait_of(run, index)
        reasons = {name: why_not_drawable(feature_map) for name, feature_map in run.items()}
        self.left_out |= run.left_out
        self.left_out |= {name: reason for name, reason in reasons.items() if reason}
        places = [(name, index) for name in run if not reasons[name] for index in range(len(numbers))]

        def work(place: tuple[str, int]) -> tuple[View, ChannelStatistics, Subject]:
            return self._view(run[place[0]], place[1])

        for (name, index), (view, known, subject) in zip(places, in_threads(work, places), strict=True):
            seen = self._seen(run[name], subject, known)
            seen.views[numbers[index]] = view
            registration = run[name].registration
            if registration is not None:
                seen.registrations[numbers[index]] = registration
            for order in seen.orders.values():
                order.add(subject.array, known)
            if self.progress is not None:
                self.progress(name)

    def _view(self, feature_map: FeatureMap, index: int) -> tuple[View, ChannelStatistics, Subject]:
        """Return one layer for one photograph, without its place; what is known of its channels, and its values."""
        subject = _subject(feature_map, index)
        array, known = subject.array[0], statistics(subject.array)
        view = View(
            photograph=0,
            shape=feature_map.shape[1:],
            sprite=self._sprite(feature_map.name, subject, known),
            low=known.lowest[0],
            high=known.highest[0],
            mean=known.mean[0].astype(np.float32),
            deviation=known.deviation[0].astype(np.float32),
            constant=tuple(np.flatnonzero(known.constant[0]).tolist()),
            dead=tuple(np.flatnonzero(known.dead[0]).tolist()),
            statistics=layer_statistics(array, known, feature_map.saturated),
            fields=None,
            facts=subject.facts,
        )
        return view, known, subject

    def _sprite(self, name: str, subject: Subject, known: ChannelStatistics) -> Sprite:
        array, is_numbers = subject.array[0], "numbers" in subject.facts
        block = 1 if is_numbers else max(block_for(array.shape), self.blocks.get(name, 1))
        return sprite_of(array, known, block, numbers=is_numbers)

    def make_coarser(self, run: Features, numbers: Sequence[PictureNumber]) -> None:
        """Make the sprites of a run that passed before anew, as far as their blocks have become larger.

        Args:
            run: The run, or the part of it.
            numbers: Of its pictures.

        Raises:
            PictureError: There are others than before.
        """
        if not self.photographs.keys() >= set(numbers):
            raise PictureError(
                "the page is too large, and the runs had other pictures when they passed again: pass runs that stay "
                "the same, in a list for instance, or raise max_bytes"
            )
        places = [
            (name, index)
            for name in run
            for index, number in enumerate(numbers)
            if name in self.blocks and self.layers[name].views[number].sprite.block < self.blocks[name]
        ]

        def work(place: tuple[str, int]) -> Sprite:
            subject = _subject(run[place[0]], place[1])
            return self._sprite(place[0], subject, statistics(subject.array))

        for (name, index), sprite in zip(places, in_threads(work, places), strict=True):
            views = self.layers[name].views
            views[numbers[index]] = replace(views[numbers[index]], sprite=sprite)

    def _seen(self, feature_map: FeatureMap, subject: Subject, known: ChannelStatistics) -> _Seen:
        name = feature_map.name
        if name not in self.layers:
            wanted: set[Order] = {"magnitude", "variance", self.style.order}
            self.layers[name] = _Seen(
                layer=feature_map.layer,
                shape=feature_map.shape[1:],
                why_no_place=why_not_laid(feature_map),
                thumbnail=thumbnail_of(subject.array[0], known),
                orders={order: BatchOrder(order=order) for order in sorted(wanted - {"index"})},
            )
        return self.layers[name]

    def page(self, check: Check | None, facts: Mapping[str, Any]) -> Page:
        """Return the page of all that was added."""
        first = self.first
        if first is None or not self.layers:
            reasons = "; ".join(f"{name!r}: {reason}" for name, reason in list(self.left_out.items())[:5])
            raise PictureError(
                f"there is no map to show{f' ({reasons})' if reasons else ''}: pass the features of one or more "
                f"pictures and layers"
            )
        numbers = sorted(self.photographs)
        photographs = tuple(self.photographs[number] for number in numbers)
        run = Run(
            model=first.model,
            pictures=tuple(photograph.name for photograph in photographs),
            files=tuple(photograph.file for photograph in photographs),
            provider=first.provider.asked,
            preprocessing=first.preprocessing,
            preprocessing_source=first.preprocessing_source,
            style=self.style,
            facts=facts,
        )
        places = {name: place for place, name in enumerate(first.layers)}
        seen = [self.layers[name] for name in sorted(self.layers, key=places.__getitem__)]
        fields, at = _fields_of(seen, self.photographs)
        if check is not None:
            sentences = list(verdict(check))
        else:
            sentences = [facts["unchecked"]] if facts.get("unchecked") else []
        return Page(
            model=first.model,
            sha256=first.sha256,
            provider=first.provider,
            preprocessing=first.preprocessing,
            preprocessing_source=first.preprocessing_source,
            verdict=tuple(sentences),
            passed=None if check is None else check.passed,
            versions=versions(),
            style=self.style,
            photographs=_told_apart(photographs),
            layers=tuple(_layer_page(one, numbers, at[one.layer.name], run) for one in seen),
            left_out=self.left_out,
            fields=fields,
            notes=tuple(_notes(seen)),
        )


def _told_apart(photographs: Sequence[Photograph]) -> tuple[Photograph, ...]:
    """Return photographs with a name for each: where several have one name its path, or else a number, is added."""
    names = Counter(photograph.name for photograph in photographs)
    files = Counter(photograph.file for photograph in photographs)
    found = []
    for number, photograph in enumerate(photographs, start=1):
        name = photograph.name
        if names[name] > 1:
            is_known = photograph.file is not None and files[photograph.file] == 1
            name = f"{photograph.file}" if is_known else f"{name} ({number})"
        found.append(replace(photograph, name=name))
    return tuple(found)


def _subject(feature_map: FeatureMap, index: int) -> Subject:
    """Return a layer for one photograph, as it is drawn."""
    return subject_of(replace(feature_map, array=feature_map.array[index : index + 1]))


def _fields_of(
    layers: Sequence[_Seen], photographs: Mapping[PictureNumber, Photograph]
) -> tuple[tuple[Fields, ...], dict[str, dict[PictureNumber, int]]]:
    """Return what the cells of all layers see, each kind once; and for each layer and photograph which one it is."""
    places = [(seen, number) for seen in layers for number in seen.registrations]
    found = fields_of(
        Cells(
            registration=seen.registrations[number],
            photograph=photographs[number].size,
            block=seen.views[number].sprite.block,
        )
        for seen, number in places
    )
    each: dict[Fields, int] = {}
    at: dict[str, dict[PictureNumber, int]] = {seen.layer.name: {} for seen in layers}
    for (seen, number), fields in zip(places, found, strict=True):
        at[seen.layer.name][number] = each.setdefault(fields, len(each))
    return tuple(each), at


def _layer_page(seen: _Seen, numbers: list[PictureNumber], fields: Mapping[PictureNumber, int], run: Run) -> LayerPage:
    """Return a layer; `fields` tells for photographs where in the page stands what its cells see."""
    views = []
    for place, number in enumerate(numbers):
        if number in seen.views:
            views.append(replace(seen.views[number], photograph=place, fields=fields.get(number)))
    return LayerPage(
        layer=seen.layer,
        views=tuple(views),
        thumbnail=seen.thumbnail,
        orders={name: order.order().channels for name, order in seen.orders.items()},
        why_no_place=seen.why_no_place,
        command=command_of(seen.layer.name, run),
        python=python_of(seen.layer.name, run),
    )


def _larger_blocks(gathered: _Gathered, max_bytes: int) -> dict[str, int]:
    """Return the blocks with which a page fits a budget; those that it has if it does, or if nothing helps."""
    layers, blocks = gathered.layers, dict(gathered.blocks)
    present = {name: max(view.sprite.block for view in seen.views.values()) for name, seen in layers.items()}
    sizes = {name: seen.bytes_each for name, seen in layers.items()}
    total = sum(sizes[name] + seen.shape[0] * _OF_A_CHANNEL for name, seen in layers.items())
    wanted = dict(present)
    largest_first = [(-size, name) for name, size in sizes.items()]
    heapq.heapify(largest_first)
    goal = max_bytes if total <= max_bytes else _ROOM * max_bytes
    while total > goal and largest_first:
        negative, name = heapq.heappop(largest_first)
        sides = layers[name].shape[1:]
        if wanted[name] >= max(sides, default=1):  # one pixel a channel is the least
            continue
        wanted[name] += 1
        pixels = math.prod(-(-side // wanted[name]) / -(-side // present[name]) for side in sides)
        size = _OF_A_FILE + (sizes[name] - _OF_A_FILE) * pixels
        total += size + negative
        heapq.heappush(largest_first, (-size, name))
    return blocks | {name: block for name, block in wanted.items() if block != present[name]}


def _notes(layers: Iterable[_Seen]) -> Iterator[str]:
    """Yield in sentences what the page shows otherwise than it is."""
    coarse: dict[int, list[str]] = {}
    for seen in layers:
        block = max(view.sprite.block for view in seen.views.values())
        if block > 1:
            coarse.setdefault(block, []).append(seen.layer.name)
    for block, names in sorted(coarse.items()):
        listed = ", ".join(names)
        yield f"each pixel is the mean of {block} cells along each axis, so that the page stays small: {listed}"
