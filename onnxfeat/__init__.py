"""See what a convolutional network sees, from its ONNX file alone.

Names are loaded when they are first used, so that `import onnxfeat` costs next to nothing: neither onnx nor ONNX
Runtime, matplotlib or TensorFlow is imported until a function needs it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxfeat.converter import convert_keras
    from onnxfeat.drawing.animations import save_animation
    from onnxfeat.drawing.channel_statistics import statistics
    from onnxfeat.drawing.gallery import save_pictures
    from onnxfeat.drawing.overlays import overlay
    from onnxfeat.drawing.pictures import belt, grid
    from onnxfeat.drawing.plots import plot
    from onnxfeat.drawing.scales import normalize
    from onnxfeat.drawing.styles import Style
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
    from onnxfeat.report.pages import write_report
    from onnxfeat.running.exposure import expose
    from onnxfeat.running.extractor import FeatureExtractor
    from onnxfeat.running.frames import Frames
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
    "running.frames": ("Frames",),
    "drawing.animations": ("save_animation",),
    "drawing.gallery": ("save_pictures",),
    "layers.inventory": ("list_layers",),
    "drawing.overlays": ("overlay",),
    "report.pages": ("write_report",),
    "drawing.pictures": ("belt", "grid"),
    "drawing.scales": ("normalize",),
    "drawing.channel_statistics": ("statistics",),
    "drawing.styles": ("Style",),
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
    "overlay",
    "plot",
    "save_pictures",
    "save_animation",
    "write_report",
    "Style",
    "Check",
    "Conversion",
    "FeatureMap",
    "Features",
    "Frames",
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
