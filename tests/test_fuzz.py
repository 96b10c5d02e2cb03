from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fuzzing
import pytest
from fuzz_models import external_data, models

from onnxfeat import check

# 2,500 cases take 60 s on two cores. More, or others: ONNXFEAT_FUZZ_CASES=100000 ONNXFEAT_FUZZ_SEED=7.
CASES = int(os.environ.get("ONNXFEAT_FUZZ_CASES", "2500"))
SEED = int(os.environ.get("ONNXFEAT_FUZZ_SEED", str(fuzzing.SEED)))
WORKERS = 2


def run_cases(first: int, end: int, folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Run cases in processes of their own; return their reports, and what is known of those that ended a process."""
    report, log = folder / f"report-{first}", folder / f"log-{first}"
    # Not measured for coverage: that takes as long again.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_PROCESS")}
    environment["TMPDIR"] = str(folder)
    lost = []
    while first < end:
        command = [sys.executable, fuzzing.__file__, "--first", first, "--count", end - first, "--seed", SEED]
        with log.open("w") as stderr:
            result = subprocess.run([*map(str, command), "--report", report], stderr=stderr, env=environment)
        lines = [json.loads(line) for line in report.read_text().splitlines()] if report.exists() else []
        if result.returncode == 0:
            break
        last = lines[-1] if lines else {}
        assert "start" in last, f"the worker failed by itself: {log.read_text()[-4000:]}"
        lost.append(f"case {last['start']} ended the process ({result.returncode}):\n{log.read_text()[-4000:]}")
        first = last["start"] + 1
    return [line for line in lines if "end" in line], lost


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], list[str]]:
    bounds = [CASES * worker // WORKERS for worker in range(WORKERS + 1)]
    with ThreadPoolExecutor(WORKERS) as pool:
        folders = [tmp_path_factory.mktemp("fuzz") for _ in range(WORKERS)]
        found = list(pool.map(run_cases, bounds[:-1], bounds[1:], folders))
    return [report for reports, _ in found for report in reports], [case for _, lost in found for case in lost]


def test_no_damaged_file_crashes_or_hangs_the_process(outcome: tuple[list[dict[str, Any]], list[str]]) -> None:
    _, lost = outcome
    assert not lost, f"again: python tests/fuzzing.py --seed {SEED} --first CASE\n" + "\n".join(lost[:5])


def test_damaged_files_end_in_a_result_or_a_sentence_and_leave_nothing_behind(
    outcome: tuple[list[dict[str, Any]], list[str]],
) -> None:
    reports, lost = outcome
    assert len(reports) + len(lost) == CASES
    wrong = [
        f"case {report['end']}, {report['title']}: {problem}" for report in reports for problem in report["problems"]
    ]
    assert not wrong, f"{len(wrong)}; again: python tests/fuzzing.py --seed {SEED} --first CASE\n" + "\n".join(
        wrong[:5]
    )


def test_the_damage_is_neither_fatal_nor_harmless(outcome: tuple[list[dict[str, Any]], list[str]]) -> None:
    reports, _ = outcome
    succeeded = sum(report["succeeded"] for report in reports) / (3 * len(reports))
    assert 0.2 < succeeded < 0.8


@pytest.mark.parametrize("name", list(models()))
def test_the_models_are_fine_before_the_damage(name: str, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(models()[name])
    (tmp_path / "w.bin").write_bytes(external_data())
    assert check(tmp_path / "m.onnx", provider="cpu", inputs=fuzzing.inputs_of(name)).passed
