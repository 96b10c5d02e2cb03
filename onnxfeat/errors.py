"""Name what can go wrong, one class for each thing that the caller can do about it.

Every message says what happened, what was expected and what to do next, so that the command line can print it as it
stands.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence


class OnnxfeatError(Exception):
    """Base of all errors that onnxfeat raises on purpose."""


class ModelError(OnnxfeatError):
    """The model file can't be read, rewritten or run: use another file, or convert it again."""


class LayerError(OnnxfeatError):
    """A layer or selection names nothing in this model: choose from what `onnxfeat layers MODEL` prints."""


class PictureError(OnnxfeatError):
    """A picture can't be read, or does not fit the model's input: pass another one."""


class ProviderError(OnnxfeatError):
    """The execution provider is not to be had: install it, or choose another."""


class ConversionError(OnnxfeatError):
    """A Keras model can't be converted, or its ONNX form gives other values than Keras does."""


class OutputError(OnnxfeatError):
    """The result can't be written where it was wanted: choose another place, or allow overwriting."""


class MissingPackageError(OnnxfeatError):
    """A package that this step needs is not installed: install the extra that the message names."""


def quote(names: Sequence[str]) -> str:
    """Return names as a readable list: `'a', 'b' or 'c'`.

    Example:
        >>> quote(["auto", "cpu", "cuda"])
        "'auto', 'cpu' or 'cuda'"
    """
    quoted = [f"'{name}'" for name in names]
    if len(quoted) < 2:
        return "".join(quoted)
    return ", ".join(quoted[:-1]) + " or " + quoted[-1]


def nearest(name: str, known: Sequence[str]) -> list[str]:
    """Return the up to three names of `known` that look most like `name`, best first.

    Example:
        >>> nearest("conv2", ["conv2d", "conv2d_1", "dense"])
        ['conv2d', 'conv2d_1']
    """
    return difflib.get_close_matches(name, known, n=3, cutoff=0.4)
