"""Decide which tests can run here, and refuse a run in which none of the required ones did."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Generator
from pathlib import Path

import matplotlib as mpl
import pytest
from browser import why_no_browser

ROOT = Path(__file__).parent.parent

mpl.use("Agg")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--require-keras", action="store_true", help="fail if no test marked `keras` ran")
    parser.addoption("--applications", action="store_true", help="run the tests marked `applications`: an hour")
    parser.addoption("--require-corpus", action="store_true", help="fail where a model of the corpus is missing")
    parser.addoption("--require-browser", action="store_true", help="fail if no test marked `browser` ran")
    parser.addoption("--renew-golden", action="store_true", help="draw the pictures in tests/golden anew")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--applications"):
        asked = [item for item in items if item.get_closest_marker("applications")]
        config.hook.pytest_deselected(items=asked)
        items[:] = [item for item in items if item not in asked]
    without_keras = importlib.util.find_spec("tensorflow") is None
    browser_missing = why_no_browser()
    for item in items:
        if item.name == "onnxfeat.converter.conversion.convert_keras":  # its docstring example converts a model
            item.add_marker("keras")
        if without_keras and item.get_closest_marker("keras"):
            item.add_marker(pytest.mark.skip(reason='needs TensorFlow: pip install "onnxfeat[keras]"'))
        if browser_missing and item.get_closest_marker("browser"):
            item.add_marker(pytest.mark.skip(reason=browser_missing))
        if item.get_closest_marker("gpu") and not Path("/dev/nvidiactl").exists():
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if call.when == "call" and report.passed:
        passed = item.config.stash.setdefault(_PASSED, set())
        passed.update(marker.name for marker in item.iter_markers())
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    for marker in ("keras", "corpus", "browser"):
        if session.config.getoption(f"--require-{marker}") and marker not in session.config.stash.get(_PASSED, set()):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


_PASSED = pytest.StashKey[set[str]]()  # the markers of which at least one test passed


def corpus_folder() -> Path:
    """Return the folder that `tools/fetch_corpus.py` puts the real models into."""
    return Path(os.environ.get("ONNXFEAT_CORPUS") or Path.home() / ".cache" / "onnxfeat" / "corpus")


@pytest.fixture(autouse=True)
def _examples_run_in_the_repository(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run docstring examples where the shipped models are, whatever folder pytest was started in."""
    if isinstance(request.node, pytest.DoctestItem):
        monkeypatch.chdir(ROOT)


@pytest.fixture(scope="session")
def models() -> Path:
    """Folder of the shipped models and photographs."""
    return ROOT / "models"
