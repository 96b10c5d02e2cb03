"""Find what of a feature map is drawn: maps of one to three spatial axes, whatever the layer gives."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxfeat.errors import PictureError
from onnxfeat.records import FeatureMap

# A class token and registers come before the tokens of the patches: 1 in ViT, 1 + 4 in DINOv2 with registers.
_MAX_EXTRA_TOKENS = 8


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Subject:
    """What of a feature map is drawn.

    Attributes:
        array: Its values, (N, C, *spatial) with one to three spatial axes: of tokens those of a square, of vectors one
            channel with a cell for each number.
        facts: `tokens_left_out`, `depth` or `numbers` (how many channels of one number each), where they apply.
    """

    array: NDArray[np.float32]
    facts: Mapping[str, int]


def subject_of(feature_map: FeatureMap) -> Subject:
    """Return what of a feature map is drawn.

    Raises:
        PictureError: It can't be drawn.
    """
    reason = why_not_drawable(feature_map)
    if reason:
        raise PictureError(f"layer {feature_map.name!r} can't be drawn: {reason}; take its numbers from `array`")
    array, spatial = feature_map.array, feature_map.shape[2:]
    if math.prod(spatial) == 1:
        return Subject(array=array.reshape(-1, 1, 1, feature_map.channels), facts={"numbers": feature_map.channels})
    if len(spatial) == 1:
        extra = extra_tokens(spatial[0]) if "T" in (feature_map.layer.layout or "") else None
        if extra is None:
            return Subject(array=array, facts={})
        side = math.isqrt(spatial[0])
        squares = array[:, :, extra:].reshape(*array.shape[:2], side, side)
        return Subject(array=squares, facts={"tokens_left_out": extra})
    if len(spatial) == 3 and spatial[0] == 1:
        return Subject(array=array[:, :, 0], facts={"depth": 1})
    return Subject(array=array, facts={})


def subject_facts(subject: Subject) -> dict[str, int]:
    """Return number and sides of the channels that are drawn, in the words of `Arrangement.facts`."""
    spatial = subject.array.shape[2:]
    names = ("depth", "height", "width")[3 - max(len(spatial), 2) :]
    sides = dict(zip(names, spatial if len(spatial) > 1 else (1, *spatial), strict=True))
    return {"channels": subject.array.shape[1], **subject.facts, **sides}


def why_not_drawable(feature_map: FeatureMap) -> str:
    """Return the reason why a map can't be drawn, or an empty text if it can.

    Example:
        >>> from onnxfeat.records import Layer
        >>> layer = Layer(name="topk", kind="other", op_type="TopK", value="y", raw_value="y")
        >>> why_not_drawable(FeatureMap(layer=layer, array=np.zeros((1, 8, 0), np.float32)))
        'its map of shape (1, 8, 0) is empty'
    """
    shape = feature_map.shape
    if 0 in shape:
        return f"its map of shape {shape} is empty"
    if len(shape) < 2 or (len(shape) > 5 and math.prod(shape[2:]) > 1):
        return f"its map has shape {shape}, and pictures are of (N, C) and one to three spatial axes"
    return ""


def extra_tokens(count: int) -> int | None:
    """Return how many of `count` tokens come before a square number of them, 0 to 8; None if there is no square.

    The fewest that leave a square of at least 2 x 2.

    Example:
        >>> extra_tokens(196), extra_tokens(197), extra_tokens(201), extra_tokens(215)
        (0, 1, 5, None)
    """
    extra = count - math.isqrt(count) ** 2
    return extra if extra <= _MAX_EXTRA_TOKENS and count >= 4 else None
