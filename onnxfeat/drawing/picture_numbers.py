"""Number the pictures of runs, and of the parts of runs, in their order."""

from __future__ import annotations

from dataclasses import dataclass, field

from onnxfeat.records import Features

PictureNumber = tuple[int, int]
"""Number of the run, and position of the picture in it: sorted, they are in the order in which they were passed."""


@dataclass(slots=True)
class _Seen:
    """A picture that came before: its name, and the layers that came with it."""

    name: str
    layers: set[str] = field(default_factory=set)


class PictureNumbers:
    """Tell which pictures of a run are new, and which have been in an earlier part of it.

    A part belongs to the run before it if it is of the same model and layers, and its pictures are new or lack its
    layers.

    Example:
        >>> from onnxfeat import FeatureExtractor
        >>> extractor = FeatureExtractor("models/shapes_small.onnx", max_bytes="600KB", provider="cpu")
        >>> numbers = PictureNumbers()
        >>> [numbers.of(part) for part in extractor.stream("models/pictures/chelsea.png")]
        [[(0, 0)], [(0, 0)]]
        >>> [numbers.of(part) for part in extractor.stream("models/pictures/chelsea.png")]
        [[(1, 0)], [(1, 0)]]
    """

    def __init__(self) -> None:
        self._seen: dict[PictureNumber, _Seen] = {}
        self._source: tuple[str, tuple[str, ...]] | None = None
        self._run = 0

    def of(self, run: Features) -> list[PictureNumber]:
        """Return the number of each picture of the next run or part."""
        source = (run.sha256, run.layers)
        if self._seen:
            before = [self._seen.get((self._run, run.first + index)) for index in range(len(run.pictures))]
            is_part = bool(run.layers) and self._source == source
            for known, name in zip(before, run.pictures, strict=True):
                is_part &= known is None or (known.name == name and not known.layers & run.maps.keys())
            self._run += not is_part
        self._source = source
        numbers = [(self._run, run.first + index) for index in range(len(run.pictures))]
        for number, name in zip(numbers, run.pictures, strict=True):
            self._seen.setdefault(number, _Seen(name)).layers.update(run.maps)
        return numbers
