"""Damage small models and pictures, put each to public functions and commands, and tell what went wrong.

A case is a number: the same number and seed make the same damage, whatever ran before. `tests/test_fuzz.py` runs the
cases in processes of their own, as the runtime and the decoders are native code that may crash. One case by itself,
with its files kept:

    python tests/fuzzing.py --first 1234 --keep FOLDER
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import hashlib
import io
import json
import os
import random
import re
import resource
import shutil
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import onnx
from fuzz_models import external_data, models, pictures
from google.protobuf.message import Message  # type: ignore[import-untyped]

from onnxfeat import FeatureExtractor, OnnxfeatError, check, expose, list_layers, save_pictures
from onnxfeat.cli import main
from onnxfeat.records import Weights

SEED = 1
SECONDS = 30  # that one case may take; the slowest takes 2 on an idle machine
MEMORY = 6 << 30  # bytes of address space; no small model needs a tenth of it

_NUMBERS = (0, 1, 2, 3, 7, -1, -2, 255, 65536, 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1, -(2**63))
_FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-45, 1e38, float("nan"), float("inf"), float("-inf"))
_NAMES = (
    "",
    "x",
    "../../up",
    "/abs",
    "C:\\x",
    "\x1b[2J\x07",
    "a\nb\r\0c",
    "<script>",
    "n" * 10_000,
    "\u202e",
    "-1",
    "é\x9b",
)
_SELECTIONS = (None, None, None, "kind:any", "0", "-1", "kind:conv", "op:*Pool", "re:.*", "*,!0")
_JUNK: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    1e308,
    float("nan"),
    float("inf"),
    2**70,
    "",
    "N",
    "NCHW",
    "\ud800",
    "\x1b[0m",
    [],
    {},
    [[]],
    "x" * 5000,
)
Damage = Callable[[random.Random, bytes], bytes]


def damage_bytes(chance: random.Random, content: bytes) -> bytes:
    """Return content with some bytes flipped, cut out, put in, or set to what lengths and varints stumble over."""
    data = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 2, 4, 16))):
        # The head holds what matters of a picture; of a model the whole does.
        at = chance.randrange(max(1, min(len(data), chance.choice((64, len(data) or 1, len(data) or 1)))))
        count = chance.choice((1, 2, 8, 64))
        kind = chance.randrange(8)
        if kind == 0:
            del data[at:]
        elif kind == 1:
            del data[at : at + count]
        elif kind == 2:
            data[at:at] = chance.randbytes(count)
        elif kind == 3:
            data[at:at] = data[at : at + count]
        elif kind == 4:
            data[at : at + 1] = _varint(chance.choice(_NUMBERS))
        elif kind == 5:
            data[at : at + count] = bytes([chance.choice((0, 127, 128, 255))]) * len(data[at : at + count])
        else:
            data[at : at + 1] = bytes([chance.randrange(256)])
    return bytes(data)


def _varint(number: int) -> bytes:
    number &= 2**64 - 1
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


def damage_structure(chance: random.Random, content: bytes) -> bytes:
    """Return a model that still parses, with fields of its messages changed, dropped, doubled and mixed up."""
    model = onnx.load_from_string(content)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        messages = list(_messages(model))
        names = [name for message in messages if isinstance(message, onnx.NodeProto) for name in message.output]
        kind = chance.choice([type(message) for message in messages])
        message = chance.choice([message for message in messages if type(message) is kind])
        _change(chance, message, names)
    return bytes(model.SerializeToString())


def _messages(message: Message) -> Iterator[Message]:
    yield message
    for _, content in message.ListFields():
        if isinstance(content, Message):
            yield from _messages(content)
        elif not isinstance(content, int | float | str | bytes) and len(content) and isinstance(content[0], Message):
            for inner in content:
                yield from _messages(inner)


def _change(chance: random.Random, message: Message, names: list[str]) -> None:
    """Change one field of a message; mostly one that is set."""
    present = [field for field, _ in message.ListFields()]
    field = chance.choice(present if present and chance.random() < 0.9 else message.DESCRIPTOR.fields)
    content = getattr(message, field.name)
    if isinstance(content, int | float | str | bytes):
        with contextlib.suppress(ValueError):  # a number that the field can't hold
            setattr(message, field.name, _other(chance, content, names))
    elif isinstance(content, Message):
        message.ClearField(field.name)
    elif not len(content) or chance.random() < 0.2:
        _add(chance, content, names)
    else:
        _rearrange(chance, content, names)


def _other(chance: random.Random, content: Any, names: list[str]) -> Any:
    if isinstance(content, str):
        return chance.choice((*names, *_NAMES, content + "'", "Conv", "Relu", "MaxPool", "Add", "If", "QuantizeLinear"))
    if isinstance(content, bytes):
        return damage_bytes(chance, content[:4096])
    return chance.choice(_FLOATS if isinstance(content, float) else (*_NUMBERS, *range(1, 25)))


def _add(chance: random.Random, content: Any, names: list[str]) -> None:
    if hasattr(content, "add"):
        content.add()
        return
    for value in (chance.choice(_NUMBERS[:12]), chance.choice((*names, *_NAMES)), b"\0"):
        with contextlib.suppress(TypeError, ValueError):
            content.append(value)
            return


def _rearrange(chance: random.Random, content: Any, names: list[str]) -> None:
    at, kind = chance.randrange(len(content)), chance.randrange(5)
    items = list(content)
    if kind == 0:
        del content[at]
    elif kind == 1:
        content.append(items[at])
    elif kind == 2:
        chance.shuffle(items)
        del content[:]
        content.extend(items)
    elif kind == 3:
        del content[at:]
    elif not isinstance(items[at], Message):
        with contextlib.suppress(ValueError):
            content[at] = _other(chance, items[at], names)


def damage_document(chance: random.Random, content: bytes) -> bytes:
    """Return a model with onnxfeat's own metadata changed; one that has none gets some junk under its key."""
    model = onnx.load_from_string(content)
    entries = [entry for entry in model.metadata_props if entry.key == "onnxfeat"]
    entry = entries[0] if entries else model.metadata_props.add(key="onnxfeat", value='{"schema_version": 1}')
    text = entry.value
    for _ in range(chance.choice((1, 1, 2, 4))):
        document = json.loads(text)
        places = list(_places(document))
        if not places:  # all was taken away
            break
        holder, key = chance.choice(places)
        if chance.random() < 0.2:
            del holder[key]
        elif chance.random() < 0.1:
            holder[key] = "DEEP"
        else:
            found = chance.choice((*_JUNK, *(other[inner] for other, inner in places)))
            holder[key] = json.loads(json.dumps(found))  # a copy, as it may hold the place that it goes to
        text = json.dumps(document)
    entry.value = text.replace('"DEEP"', "[" * 5000 + "]" * 5000)
    return bytes(model.SerializeToString())


def _places(document: Any) -> Iterator[tuple[Any, Any]]:
    keys = list(document) if isinstance(document, dict) else range(len(document) if isinstance(document, list) else 0)
    for key in keys:
        yield document, key
        yield from _places(document[key])


def inputs_of(name: str) -> dict[str, Any]:
    """Return what a model takes beside the picture."""
    inputs: dict[str, dict[str, Any]] = {"branches": {"up": True}, "open": {"extra": 2.0}}
    return inputs.get(name.split()[-1], {})


class Case:
    """One damaged model and picture in a folder, and what was found wrong with how they are taken."""

    def __init__(self, number: int, seed: int, folder: Path) -> None:
        self.chance = random.Random(f"{seed} {number}")  # noqa: S311  # chance that can be repeated is what is wanted
        self.folder = folder
        self.problems: list[str] = []
        self.model, self.picture = folder / "model.onnx", folder / self.chance.choice(list(pictures()))
        self.name = self.chance.choice(list(models()))
        picture, model = pictures()[self.picture.name], models()[self.name]
        if self.chance.random() < 0.25:
            damage: Damage = damage_bytes
            picture = damage(self.chance, picture)
        else:
            damage = self.chance.choice((damage_bytes, damage_structure, damage_structure, damage_document))
            model = damage(self.chance, model)
        self.title = f"{damage.__name__} of {self.name} on {self.picture.name}"
        self.model.write_bytes(model)
        self.picture.write_bytes(picture)
        (folder / "w.bin").write_bytes(external_data())
        self.layers = self.chance.choice(_SELECTIONS)
        self.inputs = inputs_of(self.name)
        self.succeeded = 0
        self.before = self._files()

    def run(self) -> None:
        """Put the case to one function and two commands."""
        functions = (self._list, self._expose, self._extract, self._stream, self._check)
        commands = (self._layers_command, self._expose_command, self._draw_command, self._check_command)
        for action in (self.chance.choice(functions), *self.chance.sample(commands, 2)):
            action()
            self._look_at_files(action.__name__)

    def _list(self) -> None:
        self._try(lambda: list_layers(self.model, self.layers))

    def _expose(self) -> None:
        cut, weights = self.chance.random() < 0.8, self.chance.choice(get_args(Weights))
        out = self.folder / "out.onnx"
        self._try(lambda: expose(self.model, out, layers=self.layers, cut=cut, weights=weights, inputs=self.inputs))

    def _extractor(self, **options: Any) -> FeatureExtractor:
        return FeatureExtractor(self.model, layers=self.layers, provider="cpu", inputs=self.inputs, **options)

    def _extract(self) -> None:
        content = self.model.read_bytes()
        model = self.chance.choice((self.model, content))
        self._try(lambda: FeatureExtractor(model, layers=self.layers, provider="cpu", inputs=self.inputs)(self.picture))

    def _stream(self) -> None:
        budget = self.chance.choice((20_000, "100KB", 1 << 30))
        self._try(lambda: save_pictures(self._extractor(max_bytes=budget).stream(self.picture), self.folder / "out"))

    def _check(self) -> None:
        picture = self.chance.choice((None, self.picture))
        self._try(lambda: check(self.model, picture, layers=self.layers, provider="cpu", inputs=self.inputs).to_json())

    def _layers_command(self) -> None:
        self._command("layers", self.model, *self.chance.choice(((), ("--json",))))

    def _expose_command(self) -> None:
        more = self.chance.choice(((), ("--no-cut",), ("--weights", "carry"), ("--json",)))
        self._command("expose", self.model, "-o", self.folder / "out.onnx", *self._inputs(), *more)

    def _draw_command(self) -> None:
        more = self.chance.choice(((), ("--max-bytes", "60KB"), ("--check",), ("--json",), ("--size", "16x16")))
        self._command("draw", self.model, self.picture, "-o", self.folder / "out", *self._inputs(), *more)

    def _check_command(self) -> None:
        self._command("check", self.model, *self.chance.choice(((), (self.picture,))), *self._inputs())

    def _inputs(self) -> list[str]:
        return [part for name, value in self.inputs.items() for part in ("--input", f"{name}={value}")]

    def _try(self, function: Callable[[], Any]) -> None:
        try:
            function()
            self.succeeded += 1
        except OnnxfeatError as error:
            if not str(error) or "Error(" in str(error):
                self.problems.append(f"the error says little: {error!r}")
        except Exception:
            self.problems.append(traceback.format_exc())

    def _command(self, *arguments: object) -> None:
        """Run the command line; look at what it prints and at its exit code."""
        words = [str(word) for word in arguments]
        if self.layers is not None:
            words += ["--layers", self.layers]
        out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", errors) for errors in ("strict", "backslashreplace"))
        code: object = None
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                main([*words])
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            self.problems.append(f"{words}: {traceback.format_exc()}")
            return
        said, printed = (_bytes_of(stream).decode() for stream in (err, out))
        self.succeeded += code == 0
        wrong = [] if code in (0, 1) else [f"exit code {code}"]
        wrong += [f"{word!r} on stderr" for word in ("unexpected", "Traceback", "Warning: ") if word in said]
        is_checked = words[0] == "check" or "--check" in words  # it ends with a verdict, of several lines
        if code == 1 and not (said if is_checked else re.search(r"^onnxfeat: \S.*\n\Z", said, re.MULTILINE)):
            wrong.append("no sentence")
        if any(not x.isprintable() and x != "\n" for x in said + printed):
            wrong.append("control characters")
        if "--json" in words and code == 0:
            json.loads(printed)
        if wrong:
            self.problems.append(f"{words}: {', '.join(wrong)}\n{said}{self._why(words) if code == 1 else ''}")

    def _why(self, words: list[str]) -> str:
        """Run a command again for its traceback."""
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                main([*words, "--debug"])
        except (Exception, SystemExit):
            return traceback.format_exc()
        return ""

    def _files(self) -> dict[str, str]:
        return {
            str(path.relative_to(self.folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(self.folder.rglob("*"))
            if path.is_file()
        }

    def _look_at_files(self, action: str) -> None:
        """See that inputs are as they were, and that there is a whole output or none; take it away."""
        after = self._files()
        if any(after.get(name) != digest for name, digest in self.before.items()):
            self.problems.append(f"{action}: an input file was changed or deleted")
        new = set(after) - set(self.before)
        whole = {"out.onnx", "out.onnx.data"} if "out.onnx" in new else {name for name in new if name[:4] == "out/"}
        if new - whole or (whole and "out.onnx" not in whole and "out/run.json" not in whole):
            self.problems.append(f"{action}: left {sorted(new)}")
        folders = [path for path in self.folder.iterdir() if path.is_dir()]
        if folders and not new:
            self.problems.append(f"{action}: left the folder {folders[0].name}")
        for folder in folders:
            shutil.rmtree(folder)
        for name in ("out.onnx", "out.onnx.data"):
            (self.folder / name).unlink(missing_ok=True)


def _bytes_of(stream: io.TextIOWrapper) -> bytes:
    stream.flush()
    content: bytes = stream.buffer.getvalue()  # type: ignore[attr-defined]
    return content


def run(numbers: range, seed: int, report: Path, keep: Path | None = None) -> None:
    """Run cases; write one JSON line before and one after each, so that a crash is known by what is missing."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    os.environ["COLUMNS"] = "200"
    with report.open("a", encoding="utf-8") as lines:
        for number in numbers:
            lines.write(json.dumps({"start": number}) + "\n")
            lines.flush()
            faulthandler.dump_traceback_later(SECONDS, exit=True)  # a thread of its own, also while native code runs
            folder = Path(tempfile.mkdtemp(dir=keep))
            said = os.fstat(2).st_size
            case = Case(number, seed, folder)
            case.run()
            # Native code does not go through sys.stderr; libtiff can't be kept silent.
            if os.fstat(2).st_size != said and case.picture.suffix != ".tif":
                case.problems.append("native code wrote to stderr")
            faulthandler.cancel_dump_traceback_later()
            if keep is None:
                shutil.rmtree(folder)
            outcome = {"title": case.title, "succeeded": case.succeeded, "problems": case.problems}
            lines.write(json.dumps({"end": number, **outcome}) + "\n")
            lines.flush()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, required=True, help="number of the first case")
    parser.add_argument("--count", type=int, default=1, help="how many cases")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--report", type=Path, default=Path("/dev/stdout"), help="where to write one JSON line a case")
    parser.add_argument("--keep", type=Path, help="existing folder that keeps the files of each case")
    given = parser.parse_args()
    run(range(given.first, given.first + given.count), given.seed, given.report, given.keep)
