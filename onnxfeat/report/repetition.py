"""Say how to have a layer of a page again: as a shell command, and as Python lines."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from onnxfeat.drawing.file_names import safe_name
from onnxfeat.drawing.styles import Style
from onnxfeat.preprocessing import Preprocessing
from onnxfeat.records import Provider

_MEMORY = "<memory>"  # what `Features.model` says of a model that came from no file
_WIDEST = 100  # characters of a line of Python
_SAMPLE = re.compile(r"\[\d+\]$")  # what the name of a picture ends with that is one of several samples of an array
# What the selection language takes for something else than a name: positions, globs, and the words before a colon.
_POSITION = re.compile(r"[-\d:]+")
_MAGIC = frozenset("*?[,")
_PREFIXES = ("kind", "op", "re")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What has to be known of a run to repeat it.

    Attributes:
        model: File name of the model, or `<memory>`.
        pictures: Names of the pictures, in order.
        files: For each of them the path of its file as it was passed; None where it came from memory.
        provider: Which execution provider was asked for.
        preprocessing: How the pictures were prepared.
        preprocessing_source: Who said so, as `Features` has it; only what the caller changed is repeated.
        style: How the maps are shown, for the command; what is as by default is left out.
        facts: What `Features` does not know, all of it optional: `model_path`, path of the model; `pictures`, paths of
            all files that were passed, in order; `inputs`, name to number or path of what `inputs` of the
            `FeatureExtractor` got; `max_bytes`, its budget.
    """

    model: str
    pictures: tuple[str, ...]
    files: tuple[str | None, ...]
    provider: Provider
    preprocessing: Preprocessing
    preprocessing_source: str
    style: Style = field(default_factory=Style)
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def model_path(self) -> str | None:
        """Path of the model as far as it is known; None where it came from memory."""
        path = str(self.facts.get("model_path", self.model))
        return None if path == _MEMORY else path

    @property
    def inputs(self) -> Mapping[str, Any]:
        """Values of the inputs that do not take the picture, by name."""
        return self.facts.get("inputs") or {}

    @property
    def is_prepared_by_caller(self) -> bool:
        """Whether the caller said how pictures are prepared, all of it or some."""
        return self.preprocessing_source == "caller" or self.preprocessing_source.endswith(" from the caller")

    @property
    def sources(self) -> tuple[tuple[str, str | None], ...]:
        """Name and path of what was passed, each once: of an array of several samples there are several pictures."""
        if "pictures" in self.facts:
            return tuple((str(path), str(path)) for path in self.facts["pictures"])
        found = []
        for name, file in zip(self.pictures, self.files, strict=True):
            found.append((name if file is not None else _SAMPLE.sub("", name), file))
        return tuple(dict.fromkeys(found))


def term_of(name: str) -> str:
    r"""Return a term of the selection language that chooses a layer by its name, whatever the name is.

    A name that would mean something else there (a position, a pattern, `kind:conv`) becomes a regular expression,
    with commas and what can't be printed as escapes. That may choose layers of this framework path too.

    Example:
        >>> term_of("block_1/conv"), term_of("3"), term_of("a,b*")
        ('block_1/conv', 're:\\A3\\Z', 're:\\Aa\\x2cb\\*\\Z')
    """
    is_plain = (
        name.isprintable()
        and name == name.strip()
        and not name.startswith("!")
        and not _MAGIC & set(name)
        and not _POSITION.fullmatch(name)
        and name.partition(":")[0] not in _PREFIXES
    )
    return name if is_plain else rf"re:\A{''.join(map(_in_pattern, name))}\Z"


def command_of(layer: str, run: Run) -> str:
    """Return the shell command (POSIX) that draws a layer again, as a page shows it at first.

    Its paths are those that were passed, so it is for the folder in which the run was started. It writes into a folder
    of the layer's own, as `draw` replaces nothing.

    Args:
        layer: Name of the layer.
        run: The run.

    Returns:
        One line; empty where no command can give the layer again, as the model, a picture or the value of an input came
        from memory. A size that the caller set to None is not repeated either: no option says that.

    Example:
        >>> run = Run(model="model.onnx", pictures=("my cat.jpg",), files=("my cat.jpg",), provider="cpu",
        ...           preprocessing=Preprocessing(), preprocessing_source="default")
        >>> command_of("conv2d", run)
        "onnxfeat draw model.onnx 'my cat.jpg' -o maps/conv2d --layers conv2d --provider cpu"
    """
    files = [file for _, file in run.sources]
    inputs = [_as_option(name, value) for name, value in run.inputs.items()]
    if run.model_path is None or None in files or None in inputs:
        return ""
    words = ["onnxfeat", "draw", *(_as_argument(str(path)) for path in (run.model_path, *files))]
    words += ["-o", f"maps/{safe_name(layer)}", "--layers", term_of(layer)]
    if run.provider != "auto":
        words += ["--provider", run.provider]
    for text in inputs:
        words += ["--input", str(text)]
    if "max_bytes" in run.facts:
        words += ["--max-bytes", str(run.facts["max_bytes"])]
    if run.is_prepared_by_caller:
        words += _preparing(run.preprocessing)
    return " ".join(map(_quoted, [*words, *_showing(run.style)]))


def python_of(layer: str, run: Run) -> str:
    """Return the Python lines that give the map of a layer again.

    Args:
        layer: Name of the layer.
        run: The run.

    Returns:
        Lines that bind `features`, with several pictures a list of these, and `array`. What came from memory stands
        there as `...`, with a comment on what it was.

    Example:
        >>> run = Run(model="model.onnx", pictures=("picture_1",), files=(None,), provider="auto",
        ...           preprocessing=Preprocessing(), preprocessing_source="default")
        >>> print(python_of("conv2d", run))
        from onnxfeat import FeatureExtractor
        <BLANKLINE>
        extractor = FeatureExtractor("model.onnx", layers=["conv2d"])
        picture = ...  # the array or image that was passed as "picture_1"
        features = extractor(picture)
        array = features["conv2d"].array
    """
    names = "FeatureExtractor, Preprocessing" if run.is_prepared_by_caller else "FeatureExtractor"
    lines = [f"from onnxfeat import {names}", ""]
    if run.model_path is None:
        lines.append("model = ...  # the model that was passed, which came from no file")
    lines += _call("extractor = FeatureExtractor", _arguments(layer, run))
    name = _text(layer)
    if len(run.sources) == 1:
        ((called, file),) = run.sources
        passed = _text(file) if file is not None else "picture"
        if file is None:
            lines.append(f"picture = {_from_memory(called)}")
        return "\n".join([*lines, f"features = extractor({passed})", f"array = features[{name}].array"])
    lines.append("pictures = [")
    for called, file in run.sources:
        lines.append(f"    {_text(file)}," if file is not None else f"    {_from_memory(called, ',')}")
    lines += ["]", "features = [extractor(picture) for picture in pictures]  # they may differ in size"]
    return "\n".join([*lines, f"arrays = [found[{name}].array for found in features]"])


def _arguments(layer: str, run: Run) -> list[str]:
    """Return what the extractor is made with, as Python."""
    model = "model" if run.model_path is None else _text(run.model_path)
    arguments = [model, f"layers=[{_text(term_of(layer))}]"]
    if run.provider != "auto":
        arguments.append(f"provider={_text(run.provider)}")
    if run.is_prepared_by_caller:
        fields = dataclasses.fields(run.preprocessing)
        told = (f"{x.name}={_value(getattr(run.preprocessing, x.name))}" for x in fields)
        arguments.append(f"preprocessing=Preprocessing({', '.join(told)})")
    if run.inputs:
        told = (f"{_text(name)}: {_value(value)}" for name, value in run.inputs.items())
        arguments.append(f"inputs={{{', '.join(told)}}}")
    if "max_bytes" in run.facts:
        arguments.append(f"max_bytes={_value(run.facts['max_bytes'])}")
    return arguments


def _call(function: str, arguments: list[str]) -> list[str]:
    """Return a call on one line if it fits, else with a line for each argument."""
    line = f"{function}({', '.join(arguments)})"
    if len(line) <= _WIDEST:
        return [line]
    return [f"{function}(", *(f"    {argument}," for argument in arguments), ")"]


def _from_memory(name: str, comma: str = "") -> str:
    return f"...{comma}  # the array or image that was passed as {_text(name)}"


def _value(value: Any) -> str:
    """Return a number, a text or numbers as Python; `...` for what only the caller has."""
    if isinstance(value, float) and value - value != 0:  # NaN and the infinities have no literal
        return f"float({_text(str(value))})"
    if value is None or isinstance(value, bool | int):
        return repr(value)
    if isinstance(value, float):
        return repr(float(value))  # NumPy's float64 is one too, and says so
    if isinstance(value, tuple):
        return f"({', '.join(map(_value, value))}{',' * (len(value) == 1)})"
    return _text(str(value)) if _is_path(value) else "..."


def _text(text: str) -> str:
    """Return a text as Python, in double quotes where that needs no escape; what can't be printed is escaped."""
    literal = repr(text)
    return literal if '"' in literal or "\\'" in literal else f'"{literal[1:-1]}"'


def _is_path(value: Any) -> bool:
    return isinstance(value, str) or hasattr(value, "__fspath__")


def _as_argument(path: str) -> str:
    """Return a path that can't be taken for an option."""
    return f"./{path}" if path.startswith("-") else path


def _as_option(name: str, value: Any) -> str | None:
    """Return what `--input` takes; None where it can't take that."""
    if "=" in name or not name:
        return None
    if isinstance(value, bool | int | float):
        return f"{name}={value}"
    if not _is_path(value):
        return None
    path = str(value)
    return f"{name}={path}" if "/" in path or path.endswith(".npy") else f"{name}=./{path}"  # `1` would be a number


def _preparing(preprocessing: Preprocessing) -> list[str]:
    """Return the options that prepare pictures so, all of them, whatever the model says."""
    size = preprocessing.size
    words = [] if size is None else ["--size", f"{size[0]}x{size[1]}"]
    for name in ("scale", "fill"):
        words += [f"--{name}", repr(getattr(preprocessing, name))]
    for name in ("mean", "std"):
        words += [f"--{name}", ",".join(map(repr, getattr(preprocessing, name)))]
    for name in ("color", "interpolation", "aspect", "resampling"):
        words += [f"--{name}", getattr(preprocessing, name)]
    return words


def _showing(style: Style) -> list[str]:
    """Return the options of what a page shows at first."""
    changed = style.changed()
    if style.normalize != "percentile":
        changed.pop("percentiles", None)  # they would have no effect, and are refused
    words = []
    for name in ("normalize", "scale_over", "percentiles", "colormap", "order", "top", "dead"):
        if name in changed:
            value = changed[name]
            words += [f"--{name.replace('_', '-')}", ",".join(map(str, value)) if name == "percentiles" else str(value)]
    return words


def _in_pattern(letter: str) -> str:
    """Return a letter as a regular expression, without commas, which part terms, and without what can't be printed."""
    if letter != "," and letter.isprintable():
        return re.escape(letter)
    code = ord(letter)
    if code < 1 << 8:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 1 << 16 else f"\\U{code:08x}"


def _quoted(word: str) -> str:
    """Return a word for a shell; one with control characters or bytes that are no UTF-8 as bash and zsh write it."""
    if word.isprintable():
        return shlex.quote(word)
    letters = (
        chr(byte) if 32 <= byte < 127 and byte not in b"'\\" else f"\\x{byte:02x}"
        for byte in word.encode(errors="surrogateescape")
    )
    return f"$'{''.join(letters)}'"
