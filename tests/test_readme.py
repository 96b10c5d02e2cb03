from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

import onnxfeat
from onnxfeat.cli import app, main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the shipped models, as the README's reader has."""
    (tmp_path / "models").symlink_to(ROOT / "models")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def consoles() -> list[object]:
    """Command and output of each console block, the ones that convert marked as Keras tests."""
    blocks = re.findall(r"^```console\n\$ onnxfeat (.*?)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    return [
        pytest.param(command, output, id=command.split()[0], marks=[pytest.mark.keras] * command.startswith("convert"))
        for command, output in blocks
    ]


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(("command", "output"), consoles())
def test_commands_print_what_the_readme_shows(command: str, output: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(shlex.split(command))
    assert capsys.readouterr().out == output


def test_the_python_of_the_readme_runs(folder: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 1
    names: dict[str, object] = {}
    exec(blocks[0], names)  # noqa: S102  # our own README
    features, levels = names["features"], names["levels"]
    assert isinstance(features, onnxfeat.Features)
    assert features["conv_4"].array.shape == (1, 32, 14, 14)
    assert isinstance(levels, np.ndarray)
    assert levels.shape == (14, 448)
    assert (folder / "conv_maps" / "run.json").exists()
    from matplotlib import pyplot

    pyplot.close("all")


def test_the_readme_has_exactly_two_set_up_commands_and_the_picture_is_made_by_the_first() -> None:
    commands = re.findall(r"^python3 -m venv .*$", README, re.MULTILINE)
    assert len(commands) == 2
    first_code = re.findall(r"^```sh\n(.*?)\n```", README, re.MULTILINE | re.DOTALL)[0]
    assert commands[0].endswith(first_code)


def test_every_picture_and_link_of_the_readme_is_there() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    for link in links:
        assert (ROOT / link).exists(), link


def test_the_readme_names_every_command_and_every_public_function() -> None:
    for command in app.registered_commands:
        name = command.name or (command.callback.__name__ if command.callback else "")
        assert f"| `onnxfeat {name} " in README
    functions = [name for name in onnxfeat.__all__ if name.islower() and not name.startswith("_")]
    documents = README + (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    for name in functions:
        assert f"`{name}" in documents or f"{name}(" in documents, name
