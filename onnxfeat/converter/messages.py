"""Put errors of other packages into a line, and keep their greetings from the user."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from onnxfeat.errors import ConversionError


def reason_of(error: Exception) -> str:
    """Return the first line of another package's error that tells what happened, without colors and marks."""
    text, cause = str(error).partition("Arguments received by")[0], "Exception encountered: "
    lines = [re.sub(r"\x1b\[[\d;]*m|{{.*?}}", "", line).strip() for line in text.splitlines()]
    telling = [line for line in lines if line and not line.startswith("Exception encountered when calling")]
    telling.sort(key=lambda line: not line.startswith(cause))  # Keras puts a whole configuration before it
    return telling[0].removeprefix(cause)[:300] if telling else type(error).__name__


@contextlib.contextmanager
def unreadable_told(path: Path) -> Iterator[None]:
    """Raise a `ConversionError` in place of what the operating system says while a model file is read."""
    try:
        yield
    except FileNotFoundError:
        raise ConversionError(f"there is no file {path}: check the path of the model") from None
    except OSError as error:
        raise ConversionError(
            f"{path} can't be read: {error.strerror}; check that it is a file you may read"
        ) from error


@contextlib.contextmanager
def without_greetings() -> Iterator[None]:
    """Keep what TensorFlow's C++ code writes to stderr while it starts from the user: no setting keeps it quiet."""
    if sys.stderr is None:  # the caller closed it, and its number may be another file's by now
        yield
        return
    sys.stderr.flush()
    before, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(nowhere)
