"""Show a run in a notebook: the page of `write_report` in a frame, as small as a notebook bears."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from html import escape

import numpy as np

from onnxfeat.drawing.styles import Style
from onnxfeat.drawing.subjects import why_not_drawable
from onnxfeat.errors import PictureError
from onnxfeat.records import Features
from onnxfeat.report.contents import readable
from onnxfeat.report.gathering import gather
from onnxfeat.report.pages import render

_MOST_BYTES = 2_000_000  # of all sprites and numbers; photographs, script and escapes make half as many again
_MOST_PHOTOGRAPHS = 3
_MOST_CHANNELS = 30_000  # of all layers: each takes 28 bytes, however coarse its picture
_MOST_LAYERS = 150  # each takes 10 kB: its section, its thumbnail, its table
_HEIGHT = 760  # pixels


def html_of(features: Features) -> str:
    """Return a run as HTML: the page of `write_report` in a frame of its own.

    The frame has the first 3 photographs; where there are very many channels, layers at equal distances from the first
    to the last; and coarse pictures of large maps. It says all of that. Its script can't reach the notebook, and
    nothing is loaded from elsewhere. The whole is smaller than 4 MB.

    Example:
        >>> from onnxfeat import FeatureExtractor
        >>> extractor = FeatureExtractor("models/shapes_reference_layers.onnx", provider="cpu")
        >>> html = html_of(extractor("models/pictures/chelsea.png"))
        >>> html.startswith("<iframe"), html.count("<script")
        (True, 0)
    """
    shown, notes = _shown(features)
    try:
        page = gather([shown], style=Style(), max_bytes=_MOST_BYTES // max(len(shown.pictures), 1))
    except PictureError as error:  # a notebook would print a traceback
        return f"<p><b>{_text(features.model)}</b>: {_text(str(error))}</p>"
    html = render(replace(page, notes=(*notes, *page.notes)))
    title = _text(f"feature maps of {features.model}")
    # Without `allow-same-origin` the page's script has no access to the notebook.
    frame = (
        f'<iframe title="{title}" sandbox="allow-scripts" width="100%" height="{_HEIGHT}" '
        f'style="border: 1px solid #8888; border-radius: 6px" srcdoc="{escape(readable(html))}"></iframe>'
    )
    # For viewers that leave out frames, as those of stored notebooks do.
    count = f"{len(features)} layer{'' if len(features) == 1 else 's'}"
    return f"{frame}<p>{_text(f'{count} of {features.model} for {_few(features.pictures)}')}</p>"


def _few(pictures: Sequence[str]) -> str:
    more = f" and {len(pictures) - _MOST_PHOTOGRAPHS:,} more" if len(pictures) > _MOST_PHOTOGRAPHS else ""
    return ", ".join(pictures[:_MOST_PHOTOGRAPHS]) + more


def _shown(features: Features) -> tuple[Features, list[str]]:
    """Return the part of a run that a notebook bears, and sentences about the rest."""
    notes = []
    count = len(features.pictures)
    maps = dict(features.maps)
    if count > _MOST_PHOTOGRAPHS:
        notes.append(f"the first {_MOST_PHOTOGRAPHS} of {count:,} photographs: `write_report` writes a page of all")
        maps = {name: replace(x, array=x.array[:_MOST_PHOTOGRAPHS]) for name, x in maps.items()}
    drawable = [name for name, feature_map in maps.items() if not why_not_drawable(feature_map)]
    number = len(drawable)
    chosen = drawable
    while len(chosen) > 1 and (
        len(chosen) > _MOST_LAYERS or sum(maps[name].channels for name in chosen) > _MOST_CHANNELS
    ):
        number = number * 3 // 4
        places = np.unique(np.linspace(0, len(drawable) - 1, max(number, 1)).round().astype(int))
        chosen = [drawable[place] for place in places]
    if len(chosen) < len(drawable):
        notes.append(f"{len(chosen)} of {len(drawable)} layers: `write_report` writes a page of all")
        maps = {name: maps[name] for name in chosen}
    shown = replace(
        features,
        maps=maps,
        pictures=features.pictures[:_MOST_PHOTOGRAPHS],
        preprocessed=features.preprocessed[:_MOST_PHOTOGRAPHS],
        photographs=features.photographs[:_MOST_PHOTOGRAPHS],
    )
    return shown, notes


def _text(text: str) -> str:
    """Return a text as it stands in HTML."""
    # Dollar signs too: Jupyter takes what is between two of them for a formula.
    return escape(readable(text)).replace("$", "&#36;")
