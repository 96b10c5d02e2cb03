"""Measure the memory of a process, for tests that bound it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")


def peak() -> int:
    """Return the largest resident memory of this process so far, in bytes.

    Not `ru_maxrss`: that of a new process begins with what its parent had when it was made, so that in a long test run
    it tells nothing about the process.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
