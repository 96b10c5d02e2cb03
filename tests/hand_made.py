"""Make runs by hand, of maps that a test knows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxfeat.preprocessing import Preprocessing
from onnxfeat.records import FeatureMap, Features, Layer, ProviderChoice


def as_features(maps: Mapping[str, NDArray[Any]], **facts: Any) -> Features:
    """Return a run that nobody ran: layer name to values (N, C, *spatial), of as many pictures as the maps have."""
    count = len(next(iter(maps.values()))) if maps else 1
    given: dict[str, Any] = {
        "pictures": ("cat.png",) if count == 1 else tuple(f"{place}.png" for place in range(count)),
        "preprocessed": (False,) * count,
        "model": "net.onnx",
        "sha256": "0" * 64,
        "provider": ProviderChoice(asked="cpu", got="CPUExecutionProvider"),
        "preprocessing": Preprocessing(size=(150, 150)),
        "preprocessing_source": "model",
        "seconds": 0.5,
    }
    known = {
        name: FeatureMap(
            layer=Layer(name=name, kind="conv", op_type="Conv", value="v", raw_value="v", source=name),
            array=np.array(array, np.float32),
        )
        for name, array in maps.items()
    }
    return Features(maps=known, **given | facts)


def noise(*shape: int) -> NDArray[np.float32]:
    """Return normal noise, the same each time."""
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)
