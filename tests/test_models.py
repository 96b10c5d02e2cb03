from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from onnxfeat import list_layers

LAYERS = ["conv2d", "max_pooling2d", "conv2d_1", "max_pooling2d_1", "conv2d_2", "max_pooling2d_2"]


def test_every_shipped_file_is_listed_with_its_sha_256(models: Path) -> None:
    page = (models / "README.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| `(.+?)` \|.*\| `([0-9a-f]{64})` \|$", page, re.MULTILINE))
    files = {str(path.relative_to(models)): path for path in models.rglob("*") if path.is_file()}
    del files["README.md"], files["applications.md"]
    assert listed == {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}


def test_no_shipped_file_is_large(models: Path) -> None:
    assert max(path.stat().st_size for path in models.rglob("*")) < 1_000_000


def test_the_reference_layers_bear_their_keras_names(models: Path) -> None:
    assert [layer.name for layer in list_layers(models / "shapes_reference_layers.onnx")] == LAYERS


@pytest.mark.parametrize(("name", "expected"), [("circle", 0), ("square", 1), ("triangle", 2)])
def test_the_small_classifier_tells_the_shapes(models: Path, name: str, expected: int) -> None:
    session = onnxruntime.InferenceSession(models / "shapes_small.onnx", providers=["CPUExecutionProvider"])
    with Image.open(models / f"pictures/{name}.png") as image:
        pixels = np.asarray(image.convert("RGB").resize((64, 64)), dtype=np.float32)[None] / 255
    assert session.run(None, {"input": pixels})[0].argmax() == expected
