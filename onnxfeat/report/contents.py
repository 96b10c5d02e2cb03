"""Hold what a report tells, before any of it is HTML: records that can be tested by themselves."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxfeat.drawing.styles import Style
from onnxfeat.preprocessing import Preprocessing
from onnxfeat.records import Layer, ProviderChoice

SCHEMA_VERSION = 1
"""Version of the data in a page."""

Runs = tuple[tuple[int, ...], ...]
"""For each row or column of a map, which rows or columns of the photograph: `(start, stop, start, stop, ...)`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fields:
    """Which pixels of a photograph each cell of a map sees.

    Attributes:
        size: Rows and columns of the photograph; where there is none, of the model's input.
        terms: Rectangles: for each of them what a row of the map sees of the rows, and a column of the columns. A cell
            sees what is in any of them.
        gated: Whether each cell also sees the whole picture, by a gate or a normalization.
        bounded: Whether cells see less than is told.
    """

    size: tuple[int, int]
    terms: tuple[tuple[Runs, Runs], ...]
    gated: bool = False
    bounded: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON data."""
        terms = [{"rows": rows, "columns": columns} for rows, columns in self.terms]
        return {"size": self.size, "terms": terms, "gated": self.gated, "bounded": self.bounded}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sprite:
    """All channels of a layer for one photograph as one palette PNG picture, a pixel for each cell.

    Channel c is the tile in row `c // across` and column `c % across`. A tile has `rows` x `columns` pixels, and one
    more behind each row and below each column that is transparent. Pixels are levels (see `onnxfeat.report.sprites`).

    Attributes:
        png: The file.
        across: Tiles in a row.
        down: Rows of tiles.
        rows: Rows of a tile.
        columns: Columns of a tile.
        slices: Slices of a volume, which lie side by side in a tile, first slice top left, with a gap of a pixel
            between them; 1 of other maps.
        slices_across: Slices in a row.
        block: Cells along each spatial axis whose mean is one pixel; 1 where each cell is one.
        zoom: Times that a cell is enlarged where there is no script.
        numbers: How many channels of one number each the only tile holds, row after row; 0 of other maps.
    """

    png: bytes
    across: int
    down: int
    rows: int
    columns: int
    slices: int
    slices_across: int
    block: int
    zoom: int
    numbers: int = 0

    @property
    def width(self) -> int:
        """Width of the picture in pixels."""
        return self.across * (self.columns + 1)

    @property
    def height(self) -> int:
        """Height of the picture in pixels."""
        return self.down * (self.rows + 1)

    @property
    def source(self) -> str:
        """The file as a `data:` address."""
        return _address("image/png", self.png)

    def to_json(self) -> dict[str, int]:
        """Return how the picture is to be read, as JSON data."""
        names = ("across", "rows", "columns", "slices", "slices_across", "block", "numbers")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """How the values of a layer are spread, without those that are exactly 0.

    Attributes:
        counts: Number of values in each of equally wide bins; empty where there is no finite value but 0.
        low: Lower end of the first bin.
        high: Upper end of the last bin, which belongs to it.
    """

    counts: tuple[int, ...]
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerStatistics:
    """What is known of all values of a layer for one photograph, in its own units.

    Attributes:
        finite: Number of values that are finite.
        mean: Mean of these.
        deviation: Their population standard deviation.
        lowest: Least finite value; 0 where there is none.
        highest: Greatest finite value; 0 where there is none.
        zeros: Share of values that are exactly 0, from 0 to 1.
        nan: Number of values that are NaN.
        infinite: Number of values that are infinite.
        saturated: Share of values at an end of a quantized type, from 0 to 1; None of layers that are not quantized.
        histogram: How they are spread.
    """

    finite: int
    mean: float
    deviation: float
    lowest: float
    highest: float
    zeros: float
    nan: int
    infinite: int
    saturated: float | None
    histogram: Histogram


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class View:
    """One layer for one photograph.

    Attributes:
        photograph: Position of the photograph in the page.
        shape: Shape of the map, `(C, *spatial)`.
        sprite: All channels.
        low: Least finite value of each channel, what level 0 of the sprite stands for; float32 (C,).
        high: Greatest finite value of each channel, what the last finite level stands for; float32 (C,).
        mean: Mean of each channel, float32 (C,).
        deviation: Standard deviation of each channel, float32 (C,).
        constant: Channels without contrast, in order, those that are 0 everywhere among them.
        dead: Channels that are 0 everywhere, in order.
        statistics: Of all values together.
        fields: Position of what its cells see in the page's `fields`; None where no cell belongs to a place.
        facts: What of the map is not shown as it is: `tokens_left_out`, `numbers`, `depth`.
    """

    photograph: int
    shape: tuple[int, ...]
    sprite: Sprite
    low: NDArray[np.float32]
    high: NDArray[np.float32]
    mean: NDArray[np.float32]
    deviation: NDArray[np.float32]
    constant: tuple[int, ...]
    dead: tuple[int, ...]
    statistics: LayerStatistics
    fields: int | None
    facts: Mapping[str, int] = field(default_factory=dict)

    @property
    def channels(self) -> int:
        """Number of channels that are drawn."""
        return len(self.low)

    def to_json(self) -> dict[str, Any]:
        """Return what a script needs to know, as JSON data; the sprite stands in the page as a picture."""
        numbers = {name: packed(getattr(self, name), np.float32) for name in ("low", "high", "mean", "deviation")}
        return {
            "photograph": self.photograph,
            **self.sprite.to_json(),
            **numbers,
            "dead": self.dead,
            "fields": self.fields,
        }


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerPage:
    """One layer for all photographs.

    Attributes:
        layer: The layer.
        views: One for each photograph that has a map.
        thumbnail: PNG file of the channel with the greatest variance.
        orders: Order to the channels in it: `magnitude`, `variance`, and `similarity` where that was asked for.
        why_no_place: Why no cell belongs to a place of the photograph; empty where cells do.
        command: Shell command that draws the same layer.
        python: Python lines that give the same map.
    """

    layer: Layer
    views: tuple[View, ...]
    thumbnail: bytes
    orders: Mapping[str, NDArray[np.intp]]
    why_no_place: str
    command: str
    python: str

    @property
    def channels(self) -> int:
        """Number of channels that are drawn."""
        return self.views[0].channels

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of its maps, each once: several where the model takes photographs of any size."""
        return tuple(dict.fromkeys(view.shape for view in self.views))

    @property
    def dead(self) -> float:
        """Share of channels that are 0 everywhere for all photographs, from 0 to 1."""
        always = set(self.views[0].dead).intersection(*(view.dead for view in self.views))
        return len(always) / self.channels

    @property
    def thumbnail_source(self) -> str:
        """The thumbnail as a `data:` address."""
        return _address("image/png", self.thumbnail)

    def to_json(self) -> dict[str, Any]:
        """Return what a script needs to know, as JSON data."""
        layer = self.layer
        index = np.uint16 if self.channels <= 1 << 16 else np.uint32
        return {
            "name": readable(layer.name),
            "kind": layer.kind,
            "op_type": layer.op_type,
            "source": None if layer.source is None else readable(layer.source),
            "is_vector": layer.is_vector,
            "channels": self.channels,
            "orders": {name: packed(order, index) for name, order in self.orders.items()},
            "views": [view.to_json() for view in self.views],
            "why_no_place": self.why_no_place,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Photograph:
    """A picture that went into the model, as the page shows it.

    Attributes:
        name: Its name.
        file: Path of its file as it was passed; None where it came from memory.
        sha256: SHA-256 of that file.
        size: Rows and columns of the picture as it was passed; None of arrays that were preprocessed already.
        picture: PNG or JPEG file of it, as large as a page needs; empty where `size` is None.
    """

    name: str
    file: str | None
    sha256: str | None
    size: tuple[int, int] | None
    picture: bytes

    @property
    def source(self) -> str:
        """The picture as a `data:` address."""
        return _address("image/png" if self.picture.startswith(b"\x89PNG") else "image/jpeg", self.picture)

    def to_json(self) -> dict[str, Any]:
        """Return what a script needs to know, as JSON data."""
        return {"name": readable(self.name), "size": self.size}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Page:
    """All that one page tells.

    Attributes:
        model: File name of the model.
        sha256: SHA-256 of it.
        provider: Which execution provider was asked for, and which one ran.
        preprocessing: How the photographs were prepared.
        preprocessing_source: Who said so.
        verdict: What `check` found, in sentences; empty where nothing was checked.
        passed: Whether the check found nothing but rounding; None where nothing was checked.
        versions: Package to version.
        style: How the maps are shown at first.
        photographs: The pictures, in order.
        layers: The layers, in order of execution.
        left_out: Name of each layer that is not shown, and the reason.
        fields: What cells see, each kind once.
        notes: What else a reader should know, in sentences.
    """

    model: str
    sha256: str
    provider: ProviderChoice
    preprocessing: Preprocessing
    preprocessing_source: str
    verdict: tuple[str, ...]
    passed: bool | None
    versions: Mapping[str, str]
    style: Style
    photographs: tuple[Photograph, ...]
    layers: tuple[LayerPage, ...]
    left_out: Mapping[str, str]
    fields: tuple[Fields, ...]
    notes: tuple[str, ...] = ()


def readable(text: str) -> str:
    r"""Return a text as a page can hold it: lone surrogates, which file names may have, as escapes.

    Example:
        >>> print(readable("cat\udcff.png"))
        cat\udcff.png
    """
    return text.encode(errors="backslashreplace").decode()


def packed(numbers: NDArray[Any], dtype: type[np.generic]) -> str:
    """Return numbers as base64 text of little-endian bytes, which a script reads as a typed array.

    Example:
        >>> packed(np.array([1.0]), np.float32)
        'AACAPw=='
    """
    little = np.ascontiguousarray(numbers, np.dtype(dtype).newbyteorder("<"))
    return base64.b64encode(little.tobytes()).decode()


def _address(kind: str, file: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(file).decode()}"
