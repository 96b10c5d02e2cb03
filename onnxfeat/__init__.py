"""See what a convolutional network sees, from its ONNX file alone.

Names are loaded when they are first used, so that `import onnxfeat` costs next to nothing: neither onnx nor ONNX
Runtime, matplotlib or TensorFlow is imported until a function needs it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxfeat.converter import convert_keras
    from onnxfeat.drawing.gallery import save_pictures
    from onnxfeat.drawing.pictures import belt, grid, normalize, statistics
    from onnxfeat.drawing.plots import plot
    from onnxfeat.errors import (
        ConversionError,
        LayerError,
        MissingPackageError,
        ModelError,
        OnnxfeatError,
        OutputError,
        PictureError,
        ProviderError,
    )
    from onnxfeat.findings import Check, Conversion
    from onnxfeat.layers.inventory import list_layers
    from onnxfeat.preprocessing import Preprocessing
    from onnxfeat.records import FeatureMap, Features, Layer
    from onnxfeat.running.exposure import expose
    from onnxfeat.running.extractor import FeatureExtractor
    from onnxfeat.running.proof import check

__version__ = "0.1.0"

_HOMES = {
    "converter": ("convert_keras",),
    "errors": (
        "ConversionError",
        "LayerError",
        "MissingPackageError",
        "ModelError",
        "OnnxfeatError",
        "OutputError",
        "PictureError",
        "ProviderError",
    ),
    "running.exposure": ("expose",),
    "running.extractor": ("FeatureExtractor",),
    "drawing.gallery": ("save_pictures",),
    "layers.inventory": ("list_layers",),
    "drawing.pictures": ("belt", "grid", "normalize", "statistics"),
    "drawing.plots": ("plot",),
    "running.proof": ("check",),
    "findings": ("Check", "Conversion"),
    "records": ("FeatureMap", "Features", "Layer"),
    "preprocessing": ("Preprocessing",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [  # noqa: RUF022  # in the order of use
    "convert_keras",
    "list_layers",
    "expose",
    "FeatureExtractor",
    "check",
    "normalize",
    "statistics",
    "belt",
    "grid",
    "plot",
    "save_pictures",
    "Check",
    "Conversion",
    "FeatureMap",
    "Features",
    "Layer",
    "Preprocessing",
    "OnnxfeatError",
    "ConversionError",
    "LayerError",
    "MissingPackageError",
    "ModelError",
    "OutputError",
    "PictureError",
    "ProviderError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'onnxfeat' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"onnxfeat.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
