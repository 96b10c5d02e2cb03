"""Every architecture of keras.applications: one of each family here, the others where they are asked for.

`python -m pytest -m applications --applications` converts all of them at their default size, which takes an hour;
`tools/applications.py` writes the table models/applications.md.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

import pytest
from conftest import ROOT

pytestmark = pytest.mark.keras

# One of each family; the side of its input in pixels, where it takes a smaller one than its default, which is faster.
FAMILIES = {
    "ConvNeXtTiny": 64,
    "DenseNet121": 64,
    "EfficientNetB0": 96,
    "EfficientNetV2B0": 96,
    "InceptionResNetV2": 75,
    "InceptionV3": 75,
    "MobileNet": 96,
    "MobileNetV2": 96,
    "MobileNetV3Small": 96,
    "NASNetMobile": None,
    "ResNet50": 64,
    "ResNet50V2": 64,
    "VGG16": 32,
    "Xception": 71,
}

TABLE = re.findall(r"^\| ([A-Z]\w+) \|", (ROOT / "models/applications.md").read_text("utf-8"), re.MULTILINE)


def converted(name: str, side: int | None) -> dict[str, Any]:
    """Convert in a process of its own, so that its memory is free again."""
    command = [sys.executable, str(ROOT / "tools/applications.py"), name, "--json", "--no-plain"]
    done = subprocess.run(
        [*command, *([] if side is None else ["--side", str(side)])], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def assert_proven(row: dict[str, Any]) -> None:
    assert set(row["over"]) <= set(row["vague"])
    assert len(row["vague"]) <= 0.01 * row["layers"]
    assert row["exact"] >= 0.9 * row["layers"]
    reasons = {"it passes an input of the model on", "its padding became part of the layer behind it"}
    assert set(row["absent_for"]) <= reasons


@pytest.mark.parametrize("name", FAMILIES)
def test_every_layer_of_one_of_each_family_is_keras_own(name: str) -> None:
    assert_proven(converted(name, FAMILIES[name]))


@pytest.mark.applications
@pytest.mark.parametrize("name", TABLE)
def test_every_layer_of_each_architecture_is_keras_own(name: str) -> None:
    assert_proven(converted(name, None))


def test_the_table_names_every_architecture() -> None:
    import keras

    known = [name for name, thing in vars(keras.applications).items() if name[0].isupper() and callable(thing)]
    assert sorted(TABLE) == sorted(known)
