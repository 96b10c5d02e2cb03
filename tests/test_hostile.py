"""Files that somebody made to do harm: each ends in one sentence, or in safe names, in bounded time and memory."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import pytest
from onnx import TensorProto, helper
from PIL import Image

ESCAPES = "\x1b[2J\x1b]0;owned\x07\x9b31m\r\x08"
BAD_NAMES = {
    "up": "../../../up",
    "absolute": "/absolute",
    "windows": "C:\\Windows\\x",
    "escapes": ESCAPES,
    "newlines": "a\nb\r\nc\0d",
    "script": "<script>alert(1)</script>",
    "long": "n" * 10_000,
    "right to left": "\u202egpj.x",
    "empty": "",
    "dots": "..",
    "option": "-rf",
    "device": "NUL",
    "spaces": " \t ",
}

# Runs commands in one process of limited memory, and tells what each printed.
RUNNER = """
import contextlib, io, json, resource, sys
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]),) * 2)
from onnxfeat.cli import main
answers = []
for words in json.load(sys.stdin):
    out = io.TextIOWrapper(io.BytesIO(), "utf-8")
    err = io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace")
    code = None
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main(words)
    except SystemExit as end:
        code = end.code or 0
    for stream in (out, err):
        stream.flush()
    answers.append([code, out.buffer.getvalue().decode(), err.buffer.getvalue().decode()])
with open("/proc/self/status") as status:  # not ru_maxrss, which begins with the parent's
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
print(json.dumps([answers, peak]))
"""


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str


def run(*commands: Sequence[object], seconds: int = 90, memory: int = 6 << 30, resident: int = 2 << 30) -> list[Answer]:
    """Run commands; fail if they crash, print a traceback or control characters, or need more than they may."""
    words = json.dumps([[os.fspath(w) if isinstance(w, Path) else str(w) for w in command] for command in commands])
    result = subprocess.run(
        [sys.executable, "-c", RUNNER, str(memory)], input=words, capture_output=True, text=True, timeout=seconds
    )
    assert result.returncode == 0, result.stderr[-3000:]
    answers, peak = json.loads(result.stdout)
    assert peak * 1024 < resident, f"{peak >> 10} MB resident"
    for command, (code, out, err) in zip(commands, answers, strict=True):
        assert code in (0, 1, 2), command
        assert not re.search("Traceback|unexpected", err), f"{command}: {err[:2000]}"
        assert all(x.isprintable() or x == "\n" for x in out + err), f"{command}: {out + err!r:.2000}"
    return [Answer(*answer) for answer in answers]


def refused(answer: Answer, match: str) -> None:
    assert answer.code == 1, answer
    assert re.search(match, answer.err), answer.err[:2000]
    assert re.fullmatch("(.*\n)*onnxfeat: .{,3000}\n", answer.err), answer.err[:4000]


def parsed(text: str, **weights: Any) -> onnx.ModelProto:
    """Return a model; `weights` are its initializers."""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17, "local" : 1]> {text}')
    model.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(x), name) for name, x in weights.items())
    return model


W = np.ones((4, 3, 3, 3), np.float32)
PICTURE = "float[1,3,16,16] x"


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)).save(path)
    return path


def saved(model: onnx.ModelProto, folder: Path, name: str = "m.onnx") -> Path:
    path = folder / name
    path.write_bytes(model.SerializeToString())
    return path


def everything(model: Path, picture: Path, out: Path, *more: object) -> list[list[object]]:
    """Return each command on a model."""
    return [
        ["layers", model],
        ["layers", model, "--json", "--layers", "kind:any"],
        ["expose", model, "-o", out.with_suffix(".onnx"), *more],
        ["draw", model, picture, "-o", out, *more],
        ["check", model, picture, *more],
    ]


def left_in(folder: Path, *inputs: str) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.name not in inputs)


# Graphs that never end


@pytest.mark.parametrize(
    "nodes",
    [
        "a = Conv(b, w) b = Relu(a) y = Add(x, b)",
        "y = Conv(y, w)",
        "c = Conv(x, w) y = If<then_branch = t () => (float[N] u) { u = Identity(y) }, "
        "else_branch = e () => (float[N] v) { v = Identity(c) }>(p)",
        "y = If<then_branch = t () => (float[N] u) { a = Conv(u, w) u = Relu(a) }, "
        "else_branch = e () => (float[N] v) { v = Identity(x) }>(p)",
    ],
)
def test_a_circle_of_nodes_is_refused(nodes: str, tmp_path: Path, picture: Path) -> None:
    model = parsed(f"g ({PICTURE}) => (float[N,M,A,B] y) {{ {nodes} }}", w=W, p=np.array(True))
    for answer in run(*everything(saved(model, tmp_path), picture, tmp_path / "out")):
        refused(answer, "wait for each other in a circle")
    assert left_in(tmp_path, "m.onnx", "picture.png") == []


def chain(length: int, step: str) -> str:
    functions = [
        f'<domain: "local", opset_import: ["" : 17, "local" : 1]> f{i} (i) => (o) {{ {step.format(next=i + 1)} }}'
        for i in range(length)
    ]
    return "".join(functions)


@pytest.mark.parametrize(
    ("functions", "match"),
    [
        ('<domain: "local", opset_import: ["" : 17, "local" : 1]> f0 (i) => (o) { o = local.f0(i) }', "calls itself"),
        (chain(2, "a = Relu(i) o = local.f{next}(a)").replace("f2", "f0"), "calls itself"),
        (chain(60, "a = local.f{next}(i) o = local.f{next}(a)"), "stands for more than 500,000 nodes"),
    ],
    ids=["itself", "each other", "doubling"],
)
def test_functions_that_never_end_are_refused(functions: str, match: str, tmp_path: Path, picture: Path) -> None:
    last = '<domain: "local", opset_import: ["" : 17]> f60 (i) => (o) { o = MaxPool<kernel_shape=[1,1]>(i) }'
    model = parsed(f"g ({PICTURE}) => (float[N,M,A,B] y) {{ c = Conv(x, w) y = local.f0(c) }} {functions} {last}", w=W)
    for answer in run(*everything(saved(model, tmp_path), picture, tmp_path / "out")):
        refused(answer, match)


def nested(depth: int) -> onnx.ModelProto:
    graph = helper.make_graph([helper.make_node("Conv", ["x", "w"], ["y0"])], "g", [], [onnx.ValueInfoProto(name="y0")])
    for level in range(1, depth):
        node = helper.make_node("If", ["p"], [f"y{level}"], then_branch=graph, else_branch=graph)
        del node.attribute[0 if node.attribute[0].name == "else_branch" else 1].g.node[:]
        node.attribute[0 if node.attribute[0].name == "else_branch" else 1].g.node.add(
            op_type="Identity", input=["x"], output=[f"y{level - 1}"]
        )
        graph = helper.make_graph([node], "g", [], [onnx.ValueInfoProto(name=f"y{level}")])
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 16, 16])
    graph.input.append(value)
    graph.initializer.append(onnx.numpy_helper.from_array(W, "w"))
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(True), "p"))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_graphs_nested_as_deep_as_the_format_allows_are_seen(tmp_path: Path, picture: Path) -> None:
    answers = run(*everything(saved(nested(25), tmp_path), picture, tmp_path / "out"))
    assert [answer.code for answer in answers] == [0] * 5, answers


def test_graphs_nested_deeper_than_the_format_allows_are_refused(tmp_path: Path, picture: Path) -> None:
    # By hand, as protobuf's own serializer stops too.
    content = nested(3).graph.SerializeToString()
    for _ in range(2000):
        for number in (6, 5, 1):  # attribute.g, node.attribute, graph.node
            content = _field(number, content)
    path = tmp_path / "m.onnx"
    path.write_bytes(bytes([8, 8]) + _field(7, content))
    for answer in run(*everything(path, picture, tmp_path / "out")):
        refused(answer, "damaged and can't be parsed")


def _field(number: int, content: bytes) -> bytes:
    """Return a field of protobuf's wire format."""
    length, digits = len(content), bytearray()
    while length > 127:
        digits.append(length & 127 | 128)
        length >>= 7
    return bytes([number << 3 | 2, *digits, length]) + content


# Sizes


def open_model() -> onnx.ModelProto:
    return parsed(
        "g (float[N,3,H,W] x) => (float[N,M,A,B] y) { c = Conv(x, w) y = MaxPool<kernel_shape=[2,2]>(c) }", w=W
    )


def test_a_picture_of_a_million_rows_and_columns_is_refused(tmp_path: Path, picture: Path) -> None:
    model = saved(open_model(), tmp_path)
    fixed = saved(
        parsed("g (float[1,3,1000000,1000000] x) => (float[N,M,A,B] y) { y = Conv(x, w) }", w=W), tmp_path, "f.onnx"
    )
    batch = saved(
        parsed("g (float[1000000000,3,16,16] x) => (float[N,M,A,B] y) { y = Conv(x, w) }", w=W), tmp_path, "b.onnx"
    )
    size = ["--size", "1000000x1000000"]
    answers = run(
        ["draw", model, picture, "-o", tmp_path / "out", *size],
        ["draw", model, picture, "-o", tmp_path / "out", "--size", "30000x30000", "--max-bytes", "1GB"],
        ["check", model, picture, *size],
        *(["draw", path, picture, "-o", tmp_path / "out"] for path in (fixed, batch)),
        *(["check", path, *more] for path in (fixed, batch) for more in ((), (picture,))),
    )
    for answer in answers:
        refused(answer, "smaller|raise max_bytes")
    assert left_in(tmp_path, "m.onnx", "f.onnx", "b.onnx", "picture.png") == []


@pytest.mark.parametrize(
    ("shape", "dtype", "length"),
    [
        ((1, 3, 10**6, 10**6), "<f4", 100),
        ((10**6, 10**6, 3), "|u1", 100),
        ((1, 3, 30_000, 30_000), "<f4", None),
        ((1, 3, 30_000, 30_000), "<f8", None),
        ((30_000, 30_000, 3), "|u1", None),
        ((2**62, 2**62), "|u1", 100),
        ((0, 3, 16, 16), "<f4", 0),
        ((-1, 3, 16, 16), "<f4", 100),
        ((5,), "<f4", 20),
        ((), "<f4", 4),
    ],
)
def test_an_array_of_an_absurd_shape_is_refused(
    shape: tuple[int, ...], dtype: str, length: int | None, tmp_path: Path
) -> None:
    array = tmp_path / "a.npy"
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    with array.open("wb") as file:
        file.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
        size = int(np.prod([float(x) for x in shape])) * np.dtype(dtype).itemsize if length is None else length
        file.truncate(file.tell() + size)  # a hole: it takes no room on the disk
    model = saved(open_model(), tmp_path)
    wide = saved(parsed("g (float[N,L] x) => (float[N,M] y) { y = Relu(x) }"), tmp_path, "wide.onnx")
    several = parsed(
        "g (float[1,3,16,16] x, float[N,3,H,W] e) => (float[N,M,A,B] y) { c = Conv(x, w) y = Add(c, e) }", w=W
    )
    answers = run(
        ["draw", model, array, "-o", tmp_path / "out"],
        ["check", model, array],
        ["check", saved(several, tmp_path, "s.onnx"), "--layers", "kind:any", "--input", f"e={array}"],
    )
    for answer in answers:
        refused(answer, "")
    assert wide.exists()
    assert left_in(tmp_path, "m.onnx", "a.npy", "s.onnx", "wide.onnx") == []


ABSURD = {
    "stride": "b = ConvTranspose<strides=[1000000,1000000]>(c, v)",
    "output shape": "b = ConvTranspose<output_shape=[1000000,1000000]>(c, v)",
    "dilation": "b = ConvTranspose<dilations=[1000000,1000000]>(c, v)",
    "scales": 'b = Resize(c, "", scales)',
    "sizes": 'b = Resize(c, "", "", sizes)',
    "constant": "k = ConstantOfShape(sizes) b = Add(c, k)",
    "expand": "s = Slice(c, zero, one, axes) b = Expand(s, sizes)",
    "tile": "b = Tile(c, repeats)",
    "pads": "b = Pad(c, pads)",
    "range": "r = Range(first, last, step) q = ReduceMax<keepdims=0>(r) f = Cast<to=1>(q) b = Add(c, f)",
    "conv pads": "b = Conv<pads=[1000000,1000000,1000000,1000000]>(c, v)",
    "one hot": "i = Cast<to=7>(c) b = OneHot(i, last, two)",
}
CONSTANTS = {
    "v": np.ones((4, 4, 3, 3), np.float32),
    "scales": np.array([1, 1, 1e6, 1e6], np.float32),
    "sizes": np.array([1, 4, 10**6, 10**6]),
    "zero": np.array([0, 0]),
    "one": np.array([1, 1]),
    "axes": np.array([2, 3]),
    "repeats": np.array([1, 1, 10**5, 10**5]),
    "pads": np.array([0, 0, 10**6, 10**6, 0, 0, 10**6, 10**6]),
    "first": np.array(0),
    "last": np.array(10**13),
    "step": np.array(1),
    "two": np.array([0, 1], np.float32),
}


@pytest.mark.parametrize("kind", list(ABSURD))
def test_a_map_of_terabytes_is_refused_also_in_the_middle(kind: str, tmp_path: Path, picture: Path) -> None:
    last, operator = re.findall(r"(\w+) = (\w+)", ABSURD[kind])[-1]
    text = f"g ({PICTURE}) => (float[N,M,A,B] y) {{ c = Conv(x, w) {ABSURD[kind]} z = ReduceMax({last}) y = Relu(z) }}"
    model = saved(parsed(text, w=W, **CONSTANTS), tmp_path)
    listed, document, exposed, *ran = run(
        *everything(model, picture, tmp_path / "out"),
        ["draw", model, picture, "-o", tmp_path / "any", "--layers", "kind:any"],
        ["expose", model, "-o", tmp_path / "all.onnx", "--layers", "kind:any"],
    )
    assert (listed.code, document.code, exposed.code) == (0, 0, 0)
    refused(ran[1], "memory|budget|more than")  # it runs the whole model
    if ran[2].code:
        refused(ran[2], "memory|budget|more than")
    else:  # it is none that can be drawn
        assert f"the graph does not tell the axes of what {operator} gives" in ran[2].err
    assert ran[3].code == 0
    assert not [name for name in left_in(tmp_path) if ".onnxfeat" in name]


@pytest.mark.parametrize(
    "nodes",
    [
        "k = ConstantOfShape(n) b = ReduceMax<keepdims=0>(k) y = Add(c, b)",
        "e = Expand(one, n) b = ReduceMax<keepdims=0>(e) f = Cast<to=1>(b) y = Add(c, f)",
        "k = Mul(m, m) t = Tile(one, k) b = ReduceMax<keepdims=0>(t) f = Cast<to=1>(b) y = Add(c, f)",
        'y = Resize(c, "", "", n)',
    ],
)
def test_a_map_whose_absurd_size_the_picture_decides_is_refused(nodes: str, tmp_path: Path, picture: Path) -> None:
    text = f"""g ({PICTURE}) => (float[N,M,A,B] y) {{ c = Conv(x, w) top = ReduceMax<keepdims=0>(x)
        big = Mul(top, factor) whole = Cast<to=7>(big) m = Unsqueeze(whole, zeros)
        n = Concat<axis=0>(four, m, m) {nodes} }}"""
    constants = {"factor": np.float32(1e7), "zeros": np.array([0]), "four": np.array([1, 4]), "one": np.array([1])}
    model = saved(parsed(text, w=W, **constants), tmp_path)
    for answer in run(
        *(["draw", model, picture, "-o", tmp_path / "out", "--layers", "kind:any"],), ["check", model, picture]
    ):
        refused(answer, "")
    assert left_in(tmp_path, "m.onnx", "picture.png") == []


def test_constants_that_grow_when_they_meet_are_not_computed(tmp_path: Path) -> None:
    sides = {"a": np.ones((1, 1, 200_000, 1), np.float32), "b": np.ones((1, 1, 1, 200_000), np.float32)}
    text = f"g ({PICTURE}) => (float[N,M,A,B] y) {{ c = Conv(x, w) s = Add(a, b) t = Mul(c, s) y = Relu(t) }}"
    listed, *_ = run(["layers", saved(parsed(text, w=W, **sides), tmp_path)], resident=1 << 30)
    assert listed.code == 0


def test_constants_of_constants_of_constants_take_no_time(tmp_path: Path) -> None:
    sums = [f"s{i} = Sum({', '.join(f's{i - 1}' for _ in range(60))})" for i in range(1, 8)]
    text = f"g ({PICTURE}) => (float[N,M,A,B] y) {{ c = Conv(x, w) {' '.join(sums)} t = Mul(c, s7) y = Relu(t) }}"
    (listed,) = run(["layers", saved(parsed(text, w=W, s0=np.ones(1, np.float32)), tmp_path)], seconds=30)
    assert listed.code == 0


def test_strides_that_multiply_to_infinity_are_no_reduction(tmp_path: Path) -> None:
    pools = [
        f"p{i} = MaxPool<kernel_shape=[2,2], strides=[{2**62},{2**62}], pads=[1,1,1,1]>(p{i - 1})" for i in range(1, 30)
    ]
    model = parsed(f"g ({PICTURE}) => (float[N,M,A,B] p29) {{ p0 = Relu(x) {' '.join(pools)} }}")
    table, document = run(["layers", saved(model, tmp_path)], ["layers", saved(model, tmp_path), "--json"])
    assert (table.code, document.code) == (0, 0)
    assert json.loads(document.out)["layers"][-1]["reduction"] is None


# Names


def named(name: str) -> onnx.ModelProto:
    """Return a model in which nodes, values, the input, weights and lengths have a name."""
    model = parsed(
        "g (float[N,3,16,16] x) => (float[N,M,A,B] y) { c = Conv(x, w) p = Relu(c) y = Conv(p, v) }", w=W, v=W4
    )
    model.graph.name = model.producer_name = name
    new = {old: f"{name}{number}" if name else old for number, old in enumerate(("x", "w", "v", "c", "p", "y"))}
    for node in model.graph.node:
        node.name = name
        node.input[:] = [new[x] for x in node.input]
        node.output[:] = [new[x] for x in node.output]
        node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=repr(["", name, name, name]))
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        value.name = new[value.name]
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = name
    return model


W4 = np.ones((4, 4, 3, 3), np.float32)


@pytest.mark.parametrize("name", list(BAD_NAMES))
def test_names_in_a_model_become_safe_names_of_files(name: str, tmp_path: Path, picture: Path) -> None:
    model = saved(named(BAD_NAMES[name]), tmp_path)
    answers = run(
        ["layers", model],
        ["layers", model, "--json"],
        ["expose", model, "-o", tmp_path / "e.onnx"],
        ["layers", tmp_path / "e.onnx"],
        ["draw", model, picture, "-o", tmp_path / "out", "--layers", "kind:any"],
        ["draw", tmp_path / "e.onnx", picture, "-o", tmp_path / "again", "--json"],
        ["check", model, picture],
    )
    assert [answer.code for answer in answers[:-1]] == [0] * 6, answers
    if answers[-1].code:  # the untouched model can't be run: its nodes have one name
        refused(answers[-1], "same node name")
    assert len(json.loads(answers[1].out)["layers"]) == 2
    assert max(map(len, answers[0].out.splitlines())) < 1500
    check_files(tmp_path, {"m.onnx", "picture.png", "e.onnx", "out", "again"}, 3)


def check_files(folder: Path, known: set[str], count: int) -> None:
    """See that nothing but `known` is in a folder, that `out` has `count` pictures, and that names are harmless."""
    assert {path.name for path in folder.iterdir()} == known
    assert not (folder.parent / "up").exists()
    assert not Path("/absolute0").exists()
    files = [path.name for path in (folder / "out").iterdir()]
    assert len(files) == count + 1, files
    for file in files:
        assert re.fullmatch(r"(\d\d-[\w.#\-]+\.png|run\.json)", file), file
        assert len(file.encode()) <= 200, file
    json.loads((folder / "out/run.json").read_text())


def test_layers_whose_names_are_the_same_after_cleaning_get_files_of_their_own(tmp_path: Path, picture: Path) -> None:
    names = ["a/b", "a:b", "a b", "a\x1bb", "A.b", "a.b", "a.b#2", "x" * 300 + "1", "x" * 300 + "2", "\u202ea.b"]
    steps = [f"p{i + 1} = MaxPool<kernel_shape=[1,1]>(p{i})" for i in range(len(names))]
    model = parsed(f"g ({PICTURE}) => (float[N,M,A,B] p{len(names)}) {{ p0 = Relu(x) {' '.join(steps)} }}")
    for node, name in zip(model.graph.node[1:], names, strict=True):
        node.name = name
    listed, drawn = run(
        ["layers", saved(model, tmp_path), "--json"], ["draw", tmp_path / "m.onnx", picture, "-o", tmp_path / "out"]
    )
    found = [layer["name"] for layer in json.loads(listed.out)["layers"]]
    assert len(set(found)) == len(names)
    assert drawn.code == 0
    files = [path.name.lower() for path in (tmp_path / "out").iterdir()]
    assert len(set(files)) == len(names) + 1


@pytest.mark.parametrize("name", list(BAD_NAMES))
def test_names_in_the_metadata_become_safe_names_of_files(name: str, tmp_path: Path, picture: Path) -> None:
    run(["expose", saved(open_model(), tmp_path), "-o", tmp_path / "e.onnx"])
    model = onnx.load(tmp_path / "e.onnx")
    document = json.loads(model.metadata_props[0].value)
    for number, layer in enumerate(document["exposed"]["layers"]):
        layer.update(name=f"{BAD_NAMES[name]}{number}", op_type=BAD_NAMES[name], activation=BAD_NAMES[name])
        layer.update(source=BAD_NAMES[name], note=BAD_NAMES[name], node=BAD_NAMES[name], dtype=BAD_NAMES[name])
    model.metadata_props[0].value = json.dumps(document)
    answers = run(
        ["layers", saved(model, tmp_path)],
        ["layers", tmp_path / "m.onnx", "--json"],
        ["draw", tmp_path / "m.onnx", picture, "-o", tmp_path / "out"],
        ["draw", tmp_path / "m.onnx", picture, "-o", tmp_path / "again", "--json"],
        ["check", tmp_path / "m.onnx", picture],
        ["expose", tmp_path / "m.onnx", "-o", tmp_path / "f.onnx", "--json"],
    )
    assert [answer.code for answer in answers] == [0] * len(answers), answers
    check_files(tmp_path, {"m.onnx", "picture.png", "e.onnx", "f.onnx", "out", "again"}, 2)


def test_lone_surrogates_in_the_metadata_do_no_harm(tmp_path: Path, picture: Path) -> None:
    run(["expose", saved(open_model(), tmp_path), "-o", tmp_path / "e.onnx"])
    model = onnx.load(tmp_path / "e.onnx")
    entry = model.metadata_props[0]
    entry.value = entry.value.replace('"name":"conv_0"', '"name":"\\ud800"')
    assert "\\ud800" in entry.value
    run(*everything(saved(model, tmp_path), picture, tmp_path / "out"))


@pytest.mark.parametrize("name", ["escapes", "newlines", "script", "right to left", "spaces"])
def test_names_of_pictures_and_inputs_do_no_harm(name: str, tmp_path: Path, picture: Path) -> None:
    stem = BAD_NAMES[name].replace("\0", "").replace("/", "")
    file, array = tmp_path / f"{stem}.png", tmp_path / f"{stem}.npy"
    picture.rename(file)
    np.save(array, np.zeros((1, 3, 16, 16), np.float32))
    model = saved(open_model(), tmp_path)
    good, ready, missing, wrong = run(
        ["draw", model, file, file, "-o", tmp_path / "out"],
        ["draw", model, array, "-o", tmp_path / "ready", "--json"],
        ["draw", model, f"{file}x", "-o", tmp_path / "missing"],
        ["draw", model, file, "-o", tmp_path / "wrong", "--input", f"{BAD_NAMES[name]}=1"],
    )
    assert (good.code, ready.code) == (0, 0)
    assert all(re.fullmatch(r"[\w.\-/]+", str(x.relative_to(tmp_path))) for x in (tmp_path / "out").rglob("*"))
    refused(missing, "there is no file")
    refused(wrong, "takes no value for an input")


def test_a_name_that_is_no_text_is_refused_wherever_it_is(tmp_path: Path, picture: Path) -> None:
    other = "else_branch = e () => (float[N] v) { v = Relu(x) }"
    branch = f"b = If<then_branch = t () => (float[N] u) {{ u = Conv(x, QQQQ) }}, {other}>(p)"
    text = f"g (float[DDDD,3,16,16] x) => (float[N,M,A,B] y) {{ {branch} c = local.FFFF(b) y = Identity(c) }}"
    text += '<domain: "local", opset_import: ["" : 17]> FFFF (GGGG) => (o) { o = MaxPool<kernel_shape=[2,2]>(GGGG) }'
    content = parsed(text, QQQQ=W, p=np.array(True)).SerializeToString()
    for name in (b"QQQQ", b"FFFF", b"GGGG", b"DDDD", b"kernel_shape", b"then_branch", b"MaxPool", b"local"):
        path = tmp_path / "m.onnx"
        path.write_bytes(content.replace(name, b"\xff" * len(name)))
        run(*everything(path, picture, tmp_path / f"out {name.decode()}"))


# Pictures


def bomb(kind: str) -> bytes:
    if kind == "png":
        row = zlib.compress(bytes(1 << 20), 9)
        head = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
        chunks = [(b"IHDR", head), (b"IDAT", row), (b"IEND", b"")]
        return b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
            for name, data in chunks
        )
    if kind == "gif":
        return (
            b"GIF89a"
            + struct.pack("<HHBBB", 65535, 65535, 0x80, 0, 0)
            + bytes(6)
            + b",\0\0\0\0\xff\xff\xff\xff\0\2\2L\1\0;"
        )
    if kind == "tiff":
        tags = [
            (256, 4, 2**31),
            (257, 4, 2**31),
            (258, 3, 8),
            (259, 3, 1),
            (262, 3, 1),
            (273, 4, 8),
            (277, 3, 1),
            (278, 4, 2**31),
            (279, 4, 2**32 - 1),
        ]
        return (
            b"II*\0\x08\0\0\0"
            + struct.pack("<H", len(tags))
            + b"".join(struct.pack("<HHII", t, k, 1, v) for t, k, v in tags)
            + bytes(4)
        )
    if kind == "bmp":
        return (
            b"BM"
            + struct.pack("<IHHI", 60, 0, 0, 54)
            + struct.pack("<IiiHHIIiiII", 40, 2**31 - 1, 2**31 - 1, 1, 24, 0, 0, 0, 0, 0, 0)
        )
    if kind == "ppm":
        return b"P6 99999999 99999999 255\n\0"
    stream = io.BytesIO()
    Image.new("L", (13_400, 13_400)).save(stream, format=kind.upper())  # 180 million pixels
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["png", "gif", "tiff", "bmp", "ppm", "webp", "jpeg"])
def test_a_picture_that_would_fill_the_memory_is_refused(kind: str, tmp_path: Path) -> None:
    file = tmp_path / f"bomb.{kind}"
    if kind == "webp":
        file.write_bytes(_webp())
    else:
        file.write_bytes(bomb(kind))
    fixed = saved(parsed(f"g ({PICTURE}) => (float[N,M,A,B] y) {{ y = Conv(x, w) }}", w=W), tmp_path, "f.onnx")
    model = saved(open_model(), tmp_path)
    commands = [["draw", path, file, "-o", tmp_path / "out"] for path in (model, fixed)]
    for answer in run(*commands, ["check", model, file], ["check", fixed, file], resident=500 << 20):
        refused(answer, "too large to be decoded safely|can't be read|not a picture")
    assert left_in(tmp_path, "m.onnx", "f.onnx", file.name) == []


def _webp() -> bytes:
    """Return a lossless WebP whose header promises 16384 x 16384 pixels."""
    bits = (16383 | 16383 << 14).to_bytes(4, "little")
    data = b"/" + bits + bytes(32)
    chunk = b"VP8L" + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


# Weights in other files


def test_weights_outside_of_the_folder_are_not_read(tmp_path: Path, picture: Path) -> None:
    secret = tmp_path / "secret.bin"
    secret.write_bytes(W.tobytes())
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "link.bin").symlink_to(secret)
    (inside / "folder").symlink_to(tmp_path)
    for location in (
        str(secret),
        "../secret.bin",
        "folder/../../secret.bin",
        "link.bin",
        "folder/secret.bin",
        "",
        "/dev/zero",
        "x\0y",
    ):
        model = pointing(open_model(), location)
        for answer in run(*everything(saved(model, inside), picture, inside / "out")):
            refused(answer, "keeps the tensor 'w' in the file")
    assert left_in(inside) == ["folder", "link.bin", "m.onnx"]


def pointing(model: onnx.ModelProto, location: str) -> onnx.ModelProto:
    """Let the first weight of a model be in another file."""
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return model


def test_an_exposed_file_that_somebody_pointed_outside_is_refused(tmp_path: Path, picture: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    (tmp_path / "secret.bin").write_bytes(W.tobytes())
    run(["expose", saved(open_model(), tmp_path), "-o", inside / "e.onnx"])
    edited = saved(pointing(onnx.load(inside / "e.onnx"), "../secret.bin"), inside, "e.onnx")
    for answer in run(*everything(edited, picture, inside / "out")):
        refused(answer, "keeps the tensor 'w' in the file '../secret.bin', which is outside")


# Metadata


def exposed_with(change: Any, folder: Path) -> Path:
    """Return an exposed file after `change` was made to its document; a text is put in its place."""
    run(["expose", saved(open_model(), folder), "-o", folder / "e.onnx"])
    model = onnx.load(folder / "e.onnx")
    document = json.loads(model.metadata_props[0].value)
    changed = change(document)
    model.metadata_props[0].value = changed if isinstance(changed, str) else json.dumps(document)
    return saved(model, folder)


def layer(**fields: Any) -> Any:
    return lambda document: document["exposed"]["layers"][0].update(fields)


def picture_input(**fields: Any) -> Any:
    return lambda document: document["exposed"]["input"].update(fields)


@pytest.mark.parametrize(
    "change",
    [
        lambda _: "[" * 100_000,
        lambda _: '{"schema_version": 1, "exposed": ' + '{"a":' * 50_000,
        lambda _: "9" * 100_000,
        lambda _: '{"schema_version": 1, "layer_map": 3}',
        lambda _: json.dumps({"schema_version": ESCAPES}),
        lambda document: json.dumps({**document, "schema_version": 10**400}),
        layer(shape=[1, 2, 3, [4]]),
        layer(shape="NCHW"),
        layer(layout="NCHH"),
        layer(layout="NCXY"),
        layer(layout=4),
        layer(value=None),
        layer(value={}),
        layer(name=7),
        layer(reduction=["a", "b"]),
        layer(receptive_field=[float("inf"), 3]),
        layer(quantization={"scale": [1.0, 2.0], "zero_point": [0], "axis": 1}),
        layer(quantization={"scale": [1.0], "zero_point": [0], "axis": 9}),
        layer(quantization={"scale": [float("nan")], "zero_point": [0], "axis": None}),
        layer(quantization={"scale": [], "zero_point": [], "axis": None}),
        layer(quantization={"scale": 1.0, "zero_point": 0}),
        picture_input(shape=[1, 3]),
        picture_input(shape=None),
        picture_input(dtype=None),
        picture_input(name=3),
        lambda document: document["exposed"].update(layers=[]),
        lambda document: document["exposed"]["layers"].append(document["exposed"]["layers"][0]),
        lambda document: document.update(preprocessing={"size": [float("inf"), 1]}),
        lambda document: document.update(preprocessing={"scale": "a"}),
    ],
)
def test_metadata_that_are_none_are_refused(change: Any, tmp_path: Path, picture: Path) -> None:
    model = exposed_with(change, tmp_path)
    for answer in run(*everything(model, picture, tmp_path / "out")):
        refused(answer, "metadata")


@pytest.mark.parametrize(
    "change",
    [
        layer(quantization={"scale": [0.0] * 7, "zero_point": [0] * 7, "axis": 1}),
        layer(quantization={"scale": [0.0], "zero_point": [2**70], "axis": None}),
        layer(shape=[2**62, 2**62, 2**62, 2**62]),
        layer(shape=[1, 4, -5, 0]),
        layer(layout="NHWC", shape=[1, 2, 3]),
        layer(value="y", kind="pool", layout="NCDHW"),
        layer(reduction=[1e308, -1.0], receptive_field=[2**70, -3]),
        picture_input(shape=[10**9, 3, 10**9, 10**9]),
        picture_input(shape=[-1, -3, -16, -16]),
        picture_input(dtype="float99"),
        picture_input(dtype="object"),
        picture_input(dtype="datetime64[s]"),
        picture_input(layout=None),
        picture_input(name="\x1b[2J"),
        lambda document: document.update(preprocessing={"size": [10**400, 1]}),
        lambda document: document.update(preprocessing={"size": [10**6, 10**6]}),
        lambda document: document.update(preprocessing={"scale": 1e308, "std": 1e-300}),
    ],
)
def test_metadata_that_lie_do_no_harm(change: Any, tmp_path: Path, picture: Path) -> None:
    model = exposed_with(change, tmp_path)
    for answer in run(*everything(model, picture, tmp_path / "out")):
        assert answer.code == 0 or answer.err.startswith("onnxfeat: "), answer
    assert not [name for name in left_in(tmp_path) if ".onnxfeat" in name]


def test_a_document_of_fifty_megabytes_is_read_in_bounded_memory(tmp_path: Path, picture: Path) -> None:
    def many(document: Any) -> str:
        layers = document["exposed"]["layers"]
        document["exposed"]["layers"] = [{**x, "name": f"{n} {x['name']}"} for n in range(50_000) for x in layers]
        document["exposed"]["skeleton"]["places"] *= 50_000
        return json.dumps(document)

    model = exposed_with(many, tmp_path)
    assert model.stat().st_size > 25 << 20
    draw = ["draw", model, picture, "-o", tmp_path / "out", "--layers", "0"]
    listed, drawn = run(["layers", model], draw, seconds=120, resident=3 << 30)
    assert (listed.code, drawn.code) == (0, 0)


# Graphs


def test_a_graph_of_very_many_nodes_is_listed_in_time(tmp_path: Path) -> None:
    model = parsed(f"g ({PICTURE}) => (float[N,M,A,B] y) {{ c = Conv(x, w) }}", w=W)
    pool = helper.make_node("MaxPool", ["c"], ["p0"], kernel_shape=[1, 1])
    nodes = []
    for number in range(50_000):
        pool.input[0], pool.output[0] = ("c", "p0") if not number else (f"p{number - 1}", f"p{number}")
        copy = onnx.NodeProto()
        copy.CopyFrom(pool)
        nodes.append(copy)
    model.graph.node.extend(nodes)
    model.graph.output[0].name = "p49999"
    listed, exposed = run(
        ["layers", saved(model, tmp_path)],
        ["expose", tmp_path / "m.onnx", "-o", tmp_path / "e.onnx", "--layers", "0"],
        seconds=200,
        resident=3 << 30,
    )
    assert listed.code == 0
    assert listed.out.count("\n") == 50_002
    assert exposed.code == 0


def test_a_graph_of_very_many_outputs_is_taken_in_time(tmp_path: Path, picture: Path) -> None:
    model = parsed(f"g ({PICTURE}) => (float[N,M,A,B] y) {{ y = Conv(x, w) }}", w=W)
    model.graph.output.extend(onnx.ValueInfoProto(name=f"y{number}") for number in range(50_000))
    model.graph.node.extend(helper.make_node("Identity", ["y"], [f"y{number}"]) for number in range(50_000))
    listed, drawn = run(
        ["layers", saved(model, tmp_path)], ["draw", tmp_path / "m.onnx", picture, "-o", tmp_path / "out"], seconds=200
    )
    assert (listed.code, drawn.code) == (0, 0)


def of_one_name(count: int) -> onnx.ModelProto:
    model = parsed(f"g ({PICTURE}) => (float[N,M,A,B] p{count - 1}) {{ c = Conv(x, w) }}", w=W)
    steps = [(f"p{i - 1}" if i else "c", f"p{i}") for i in range(count)]
    model.graph.node.extend(helper.make_node("MaxPool", [a], [b], name="same", kernel_shape=[1, 1]) for a, b in steps)
    return model


def joined(count: int) -> onnx.ModelProto:
    model = parsed(f"g ({PICTURE}) => (float[N,M,A,B] y) {{ c = Conv(x, w) }}", w=W)
    names = [f"p{i}" for i in range(count)]
    model.graph.node.extend(helper.make_node("MaxPool", ["c"], [name], kernel_shape=[1, 1]) for name in names)
    model.graph.node.append(helper.make_node("Concat", names, ["y"], axis=1))
    return model


def called(count: int) -> onnx.ModelProto:
    model = of_one_name(count)
    for node in model.graph.node[1:]:
        node.op_type, node.domain = "f", "local"
        del node.attribute[:]
    pool = helper.make_node("MaxPool", ["i"], ["t"], kernel_shape=[1, 1])
    opset = [helper.make_opsetid("", 17)]
    model.functions.append(
        helper.make_function("local", "f", ["i"], ["o"], [pool, helper.make_node("Relu", ["t"], ["o"])], opset)
    )
    return model


@pytest.mark.parametrize("make", [of_one_name, joined, called])
def test_the_time_grows_with_the_graph_not_with_its_square(make: Any, tmp_path: Path) -> None:
    # With a square in it, 12,000 nodes took minutes; now they take 4 s.
    model = saved(make(12_000), tmp_path)
    answers = run(["layers", model], ["expose", model, "-o", tmp_path / "e.onnx"], seconds=60)
    assert [answer.code for answer in answers] == [0, 0]


def test_numbers_beyond_all_measure_on_the_command_line_are_refused(tmp_path: Path, picture: Path) -> None:
    model = saved(open_model(), tmp_path)
    draw = ["draw", model, picture, "-o", tmp_path / "out"]
    most, *rest = run(
        [*draw, "--max-bytes", "9" * 400],
        [*draw, "--size", "9" * 400],
        [*draw, "--size", "9" * 5000],
        [*draw, "--scale", "1e999"],
        [*draw, "--layers", "9" * 5000],
        [*draw, "--layers", "re:" + "(" * 5000],
    )
    refused(most, "is no number of bytes")
    assert [answer.code for answer in rest] == [2, 2, 1, 1, 1], rest


def test_a_pipe_that_knows_few_letters_gets_escapes(tmp_path: Path) -> None:
    model = open_model()
    model.graph.node[0].name = "\u03c3\u03c5\u03bd"
    command = [sys.executable, "-m", "onnxfeat", "layers", str(saved(model, tmp_path))]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    assert r"\u03c3\u03c5\u03bd" in result.stdout


# Loops

ENDLESS = """<ir_version: 8, opset_import: ["" : 17]> g (float[1,3,8,8] x, float[3,3,1,1] w) => (float[1,3,8,8] y) {
c = Conv(x, w) go = Constant<value = bool {1}>() %s
z = Loop(%s, go, c) <body = b (int64 i, bool on, float[1,3,8,8] p) => (bool o, float[1,3,8,8] q) { %s q = Relu(p) }>
y = MaxPool<kernel_shape = [1, 1]>(z) }"""
ROUNDS = "n = Constant<value_int = 4611686018427387904>()"


def endless(folder: Path, count: str, name: str, body: str) -> Path:
    model = onnx.parser.parse_model(ENDLESS % (count, name, body))
    onnx.save(model, folder / "m.onnx")
    np.save(folder / "x.npy", np.ones((1, 3, 8, 8), np.float32))
    return folder / "m.onnx"


@pytest.mark.parametrize(
    ("count", "name", "body"),
    [
        (ROUNDS, "n", "o = Identity(on)"),
        (ROUNDS, "n", "o = Constant<value = bool {1}>()"),
        ("", "", "o = Identity(on)"),
    ],
)
def test_a_loop_that_nothing_ends_is_refused_before_it_runs(tmp_path: Path, count: str, name: str, body: str) -> None:
    model = endless(tmp_path, count, name, body)
    weights = tmp_path / "w.npy"
    np.save(weights, np.ones((3, 3, 1, 1), np.float32))
    for command in ("draw", "check"):
        more = ["-o", tmp_path / "maps"] if command == "draw" else []
        words = [command, model, tmp_path / "x.npy", "--input", f"w={weights}", *more]
        (answer,) = run(words, seconds=60)
        assert answer.code == 1
        assert "which would never end" in answer.err
    assert run(["draw", model, tmp_path / "x.npy", "--input", f"w={weights}", "-o", tmp_path / "m", "--layers", "0"])


def test_a_loop_whose_end_is_computed_is_ended_by_ctrl_c(tmp_path: Path) -> None:
    """PyTorch writes a `while` with the largest number there is and a condition that is computed."""
    body = "s = ReduceMax<keepdims = 0>(p) least = Constant<value_float = -1.0>() o = Greater(s, least)"
    model = endless(tmp_path, ROUNDS, "n", body)
    np.save(tmp_path / "w.npy", np.ones((3, 3, 1, 1), np.float32))
    words = [sys.executable, "-m", "onnxfeat", "draw", model, tmp_path / "x.npy", "--input"]
    words += [f"w={tmp_path / 'w.npy'}", "-o", tmp_path / "maps"]
    process = subprocess.Popen(
        [str(word) for word in words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A shell that starts the tests in the background has it ignored, and processes inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=8)  # it runs
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) != 0
    finally:
        process.kill()
        process.communicate()
    assert not list(tmp_path.glob("maps/*"))
