"""Put errors of other packages into a line."""

from __future__ import annotations

import re


def reason_of(error: Exception) -> str:
    """Return the first line of another package's error that tells what happened, without colors and marks."""
    text, cause = str(error).partition("Arguments received by")[0], "Exception encountered: "
    lines = [re.sub(r"\x1b\[[\d;]*m|{{.*?}}", "", line).strip() for line in text.splitlines()]
    telling = [line for line in lines if line and not line.startswith("Exception encountered when calling")]
    telling.sort(key=lambda line: not line.startswith(cause))  # Keras puts a whole configuration before it
    return telling[0].removeprefix(cause)[:300] if telling else type(error).__name__
