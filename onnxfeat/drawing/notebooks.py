"""Show a layer in notebooks, as a PNG picture."""

from __future__ import annotations

import io
import math

from onnxfeat.drawing.painting import paint
from onnxfeat.drawing.styles import Style
from onnxfeat.drawing.subjects import why_not_drawable
from onnxfeat.records import FeatureMap

_MOST_CELLS = 2**22  # that a layer shows alone: some MB as PNG


def png_of(feature_map: FeatureMap) -> bytes | None:
    """Return the channels of a layer for the first picture as a PNG file; None where the map can't be drawn.

    Of layers of more than 4 million cells these are the first channels that fit, and the picture says so.

    Example:
        >>> import numpy as np
        >>> from onnxfeat.records import Layer
        >>> layer = Layer(name="conv2d", kind="conv", op_type="Conv", value="y", raw_value="y")
        >>> png_of(FeatureMap(layer=layer, array=np.zeros((1, 8, 20, 30), np.float32)))[1:4]
        b'PNG'
    """
    if why_not_drawable(feature_map):
        return None
    most = max(1, _MOST_CELLS // math.prod(feature_map.shape[2:]))
    drawing = paint(feature_map, style=Style(top=most if most < feature_map.channels else None))
    file = io.BytesIO()
    drawing.image().save(file, format="PNG")
    return file.getvalue()
