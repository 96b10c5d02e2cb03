"""Show maps in notebooks: a layer as a PNG picture, a run as HTML that needs nothing else."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass
from html import escape

import numpy as np

from onnxfeat.drawing.channel_statistics import statistics
from onnxfeat.drawing.legends import number
from onnxfeat.drawing.painting import paint
from onnxfeat.drawing.styles import Style
from onnxfeat.drawing.subjects import why_not_drawable
from onnxfeat.records import FeatureMap, Features

_MOST_CELLS = 2**22  # that a layer shows alone: some MB as PNG
_MOST_PICTURES = 12  # of a run
_CELLS_OF_EACH = 120_000  # that a layer of a run shows: noise takes about a byte for each
_MOST_BYTES = 2_200_000  # of all pictures of a run; base64 makes a third more of them
_BOX = "overflow-x:auto;margin:0.2em 0 1em 0"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shown:
    """One layer of a run, as HTML.

    Attributes:
        html: Heading and picture.
        size: Bytes of the picture.
    """

    html: str
    size: int


def png_of(feature_map: FeatureMap, *, cells: int = _MOST_CELLS) -> bytes | None:
    """Return the channels of a layer for the first picture as a PNG file; None where the map can't be drawn.

    Args:
        feature_map: Maps of the layer.
        cells: How many cells are drawn at most, if that leaves one channel: of larger layers the first channels that
            fit, and the picture says so.

    Example:
        >>> from onnxfeat.records import Layer
        >>> layer = Layer(name="conv2d", kind="conv", op_type="Conv", value="y", raw_value="y")
        >>> png_of(FeatureMap(layer=layer, array=np.zeros((1, 8, 20, 30), np.float32)))[1:4]
        b'PNG'
    """
    if why_not_drawable(feature_map):
        return None
    most = max(1, cells // math.prod(feature_map.shape[2:]))
    drawing = paint(feature_map, style=Style(top=most if most < feature_map.channels else None))
    file = io.BytesIO()
    drawing.image().save(file, format="PNG")
    return file.getvalue()


def html_of(features: Features) -> str:
    """Return a run as HTML: the facts, pictures of up to 12 layers, and a list of all layers.

    The pictures are of the first picture of the batch, of layers at equal distances from the first to the last. All
    names are escaped; there are no scripts, and nothing is loaded from elsewhere. The whole is smaller than 3 MB, apart
    from lists of thousands of layers.

    Example:
        >>> from onnxfeat import FeatureExtractor
        >>> extractor = FeatureExtractor("models/shapes_reference_layers.onnx", provider="cpu")
        >>> html = html_of(extractor("models/pictures/chelsea.png"))
        >>> html.count("<img "), html.count("<script")
        (6, 0)
    """
    drawable = [name for name, feature_map in features.items() if not why_not_drawable(feature_map)]
    places = np.unique(np.linspace(0, len(drawable) - 1, min(len(drawable), _MOST_PICTURES)).round().astype(int))
    shown: list[_Shown] = []
    for place in places:
        one = _picture(features[drawable[place]], _MOST_BYTES - sum(other.size for other in shown))
        shown += [one] if one is not None else []
    parts = [_facts(features), *(one.html for one in shown)]
    if len(shown) < len(features) or features.left_out:
        words = f"{len(shown)} of {len(features)} layers are drawn"
        parts.append(f"<p>{words}; <code>features[name]</code> draws any of them.</p>")
        parts.append(f"<details><summary>All layers</summary>{_table(features)}</details>")
    return f"<div>{''.join(parts)}</div>"


def _facts(features: Features) -> str:
    """Return what is known of the run."""
    count, preprocessing = len(features.pictures), features.preprocessing
    layers = f"{len(features)} layer{'' if len(features) == 1 else 's'}"
    some = f", the first of {count} pictures" if count > 1 else ""
    first = features.pictures[0] if features.pictures else "no picture"
    provider = features.provider.got.removesuffix("ExecutionProvider")
    size = " x ".join(str(side) for side in preprocessing.size or ()) or "the input's size"
    prepared = (
        f"preprocessing ({features.preprocessing_source}): {preprocessing.color}, {size}, times "
        f"{preprocessing.scale:.6g}, minus {_numbers(preprocessing.mean)}, divided by {_numbers(preprocessing.std)}"
    )
    if features.preprocessed and features.preprocessed[0]:
        prepared = "taken as preprocessed already"
    lines = [f"{layers} for {first}{some}", f"ran on {provider} in {features.seconds:.2f} s", prepared]
    return f"<p><b>{_text(features.model)}</b><br>{'<br>'.join(_text(line) for line in lines)}</p>"


def _picture(feature_map: FeatureMap, most_bytes: int) -> _Shown | None:
    """Return heading and picture of a layer, or None if the picture takes more bytes."""
    png = png_of(feature_map, cells=_CELLS_OF_EACH)
    if png is None or len(png) > most_bytes:
        return None
    found = statistics(feature_map.array[:1].reshape(1, 1, -1))
    span = f"values {number(found.lowest[0, 0])} to {number(found.highest[0, 0])}"
    odd = [(found.nan[0, 0], "NaN"), (found.infinite[0, 0], "infinite")]
    words = ", ".join([f"shape {feature_map.shape}", span, *(f"{count:,} {word}" for count, word in odd if count)])
    data = base64.b64encode(png).decode()
    html = (
        f"<div><b>{_text(feature_map.name)}</b> {_text(words)}</div>"
        f'<div style="{_BOX}"><img src="data:image/png;base64,{data}" style="max-width:100%;height:auto" '
        f'alt="{_text(f"{feature_map.name}: feature map, {words}")}"></div>'
    )
    return _Shown(html=html, size=len(png))


def _table(features: Features) -> str:
    rows = [
        (name, feature_map.layer.op_type, str(feature_map.shape), why_not_drawable(feature_map))
        for name, feature_map in features.items()
    ]
    rows += [(name, "", "", reason) for name, reason in features.left_out.items()]
    cells = ("".join(f"<td>{_text(cell)}</td>" for cell in row) for row in rows)
    head = "".join(f"<th>{word}</th>" for word in ("layer", "operator", "shape", "not drawn because"))
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.6g}" for value in values)


def _text(text: str) -> str:
    """Return a text as it stands in HTML: escaped, and without lone surrogates, which no page can hold."""
    # Dollar signs too: Jupyter takes what is between two of them for a formula.
    return escape(text.encode(errors="backslashreplace").decode()).replace("$", "&#36;")
