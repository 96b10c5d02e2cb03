from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import ROOT, corpus_folder
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from onnxfeat import FeatureExtractor
from onnxfeat.cli import main

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PHOTOGRAPH = ROOT / "models/pictures/chelsea.png"
TOLERANCE = 1e-4
PACKAGES = tomllib.loads((ROOT / "tests/corpus.toml").read_text(encoding="utf-8"))["package"]
PERMISSIVE = {"MIT", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause"}
NOT_A_LAYER_BY_NAME = {"ReduceMean", "ReduceMax"}  # a global pooling by another name: onnxfeat may list it
Feed = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Entry:
    """One model of the corpus."""

    package: dict[str, Any]
    model: dict[str, Any]

    @property
    def path(self) -> Path:
        if self.package["form"] == "installed":
            return Path(onnx.__file__).parent / str(self.model["file"])
        return corpus_folder() / f"{self.package['name']}-{self.package['version']}" / str(self.model["file"])

    @property
    def options(self) -> list[str]:
        """How a picture is prepared, as options of the command line."""
        return [f"--{name}={value}" for name, value in self.model.get("picture", {}).items()]


EVERYTHING = [Entry(package, model) for package in PACKAGES for model in package["model"]]
ENTRIES = [entry for entry in EVERYTHING if entry.path.suffix == ".onnx"]
TFLITE = [entry for entry in EVERYTHING if entry.path.suffix == ".tflite"]  # see test_tflite.py
KERAS = [entry for entry in EVERYTHING if entry.path.suffix in (".keras", ".h5", ".hdf5")]
SAVED = [entry for entry in EVERYTHING if entry.path.name == "saved_model.pb"]  # see test_saved_models.py
NAMES = [f"{entry.package['name']}:{Path(entry.model['file']).stem}" for entry in ENTRIES]
every_model = pytest.mark.parametrize("entry", ENTRIES, ids=NAMES)


def picture_file(entry: Entry, folder: Path) -> Path:
    """Return the shipped photograph, or for what reads text three written lines: of a cat it gives zeros and noise."""
    if not entry.model.get("text"):
        return PHOTOGRAPH
    page = Image.new("RGB", (107, 107), "white")
    lines = "what a network\n\nsees, from its\n\nONNX file alone"
    ImageDraw.Draw(page).multiline_text((8, 15), lines, fill="black", font=ImageFont.load_default())
    page.resize((428, 428), Image.Resampling.NEAREST).save(folder / "text.png")
    return folder / "text.png"


def numbers(expression: str) -> float:
    numerator, _, denominator = expression.partition("/")
    return float(numerator) / float(denominator or 1)


def picture_of(entry: Entry, shape: list[int], file: Path) -> NDArray[np.float32]:
    """Prepare the picture with Pillow and plain NumPy, as the entry says."""
    options = entry.model["picture"]
    channels_last = shape[-1] == 3
    sides = shape[1:3] if channels_last else shape[2:4]
    height, width = (int(side) for side in options["size"].split("x")) if "size" in options else sides
    with Image.open(file) as image:
        resized = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    values = np.asarray(resized, dtype=np.float32) * numbers(options.get("scale", "1/255"))
    values = (values - numbers(options.get("mean", "0"))) / numbers(options.get("std", "1"))
    values = values[:, :, ::-1] if options.get("color") == "bgr" else values
    return np.ascontiguousarray(values[None] if channels_last else values.transpose(2, 0, 1)[None], dtype=np.float32)


def array_of(entry: Entry) -> NDArray[Any]:
    """Return noise of a fixed seed, as the entry says."""
    array = entry.model["array"]
    noise = np.random.default_rng(7).uniform(array["low"], array["high"], array["shape"])
    converted: NDArray[Any] = noise.astype(array["dtype"])
    return converted


def feed_of(entry: Entry, folder: Path) -> Feed:
    """Return all inputs of a model; the main one is the first that is neither a weight nor named in the entry."""
    graph = onnx.load(entry.path).graph
    weights = {tensor.name for tensor in graph.initializer}
    inputs = {value.name: value.type.tensor_type for value in graph.input if value.name not in weights}
    others: Feed = {}
    for name, given in entry.model.get("inputs", {}).items():
        dtype = onnx.helper.tensor_dtype_to_np_dtype(inputs.pop(name).elem_type)
        others[name] = np.array(given, dtype) if isinstance(given, int | float) else np.zeros(given, dtype)
    ((name, kind),) = inputs.items()
    shape = [axis.dim_value for axis in kind.shape.dim]
    if "array" in entry.model:
        return {name: array_of(entry), **others}
    return {name: picture_of(entry, shape, picture_file(entry, folder)), **others}


def asked_for(entry: Entry, feed: Feed, folder: Path) -> list[str]:
    """Return the arguments that give `draw` and `check` the same inputs: the picture or array, then the others."""
    others = other_inputs(entry, feed, folder)
    if "picture" in entry.model:
        return [str(picture_file(entry, folder)), *entry.options, *others]
    np.save(folder / "input.npy", next(iter(feed.values())))
    return [str(folder / "input.npy"), *others]


def other_inputs(entry: Entry, feed: Feed, folder: Path) -> list[str]:
    """Return the options that give all inputs but the main one."""
    options = []
    for number, (name, given) in enumerate(entry.model.get("inputs", {}).items()):
        file = folder / f"other-{number}.npy"
        np.save(file, feed[name])
        options.append(f"--input={name}={given if isinstance(given, int | float) else file}")
    return options


def nodes_of(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield all nodes; those of inner graphs before the node that holds them."""
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from nodes_of(attribute.g)
        yield node


def layer_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in nodes_of(model.graph) if "Conv" in node.op_type or "Pool" in node.op_type]


def branches(model: onnx.ModelProto) -> bool:
    return any(node.op_type == "If" for node in nodes_of(model.graph))


def run_plain(content: bytes, names: list[str], feed: Feed) -> dict[str, NDArray[Any]]:
    """Run a model without any optimization, with inner values as further outputs: appended bytes are merged."""
    own = {output.name for output in onnx.load_from_string(content).graph.output}
    more = onnx.ModelProto()
    more.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in own)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    providers = ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(content + more.SerializeToString(), options, providers=providers)
    known = {value.name for value in session.get_inputs()}
    results = session.run(names, {name: value for name, value in feed.items() if name in known})
    return dict(zip(names, results, strict=True))


def without_branches(model: onnx.ModelProto, feed: Feed) -> bytes:
    """Return the model with each outer If replaced by the branch that is taken for these inputs, until none is left."""
    flat = onnx.ModelProto()
    flat.CopyFrom(model)
    while True:
        chosen = next((node for node in flat.graph.node if node.op_type == "If"), None)
        if chosen is None:
            return bytes(flat.SerializeToString())
        condition = chosen.input[0]
        weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in flat.graph.initializer}
        if condition in weights:
            truth = weights[condition]
        else:
            truth = run_plain(flat.SerializeToString(), [condition], feed)[condition]
        wanted = "then_branch" if truth.item() else "else_branch"
        branch = next(attribute.g for attribute in chosen.attribute if attribute.name == wanted)
        position = list(flat.graph.node).index(chosen)
        pairs = zip(branch.output, chosen.output, strict=True)
        joined = [onnx.helper.make_node("Identity", [inner.name], [outer]) for inner, outer in pairs]
        rest = [*flat.graph.node[:position], *branch.node, *joined, *flat.graph.node[position + 1 :]]
        initializers = list(branch.initializer)
        del flat.graph.node[:]
        flat.graph.node.extend(rest)
        flat.graph.initializer.extend(initializers)


def close(found: NDArray[Any], expected: NDArray[Any]) -> bool:
    """Return whether two arrays agree within 1e-4 of the range; of a constant one, within 1e-6 of its size."""
    if found.shape != expected.shape:
        return False
    expected = expected.astype(np.float64)
    allowed = max(TOLERANCE * np.ptp(expected), 1e-6 * np.abs(expected).max(), 1e-9)
    return bool(np.abs(found - expected).max() <= allowed)


def inner_name(value: str) -> str:
    """Return the name that a value of a branch has there: onnxfeat puts the path of branches in front."""
    return re.split(r"/(?:then|else)_branch/", value)[-1]


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run the command line in this process; return stdout. Any failure is the test's."""
    with pytest.raises(SystemExit) as exit_info:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert not exit_info.value.code, f"exit code {exit_info.value.code}: {captured.err}{captured.out}"
    return captured.out


def require(entry: Entry, request: pytest.FixtureRequest) -> None:
    """Skip, or fail where the corpus is required, if a file is missing; it must be the pinned one."""
    if not entry.path.is_file() and entry.package["form"] != "installed":
        reason = f"{entry.path} is missing: python tools/fetch_corpus.py"
        (pytest.fail if request.config.getoption("--require-corpus") else pytest.skip)(reason)
    if "sha256" in entry.model:
        assert hashlib.sha256(entry.path.read_bytes()).hexdigest() == entry.model["sha256"]


@pytest.fixture
def model(entry: Entry, request: pytest.FixtureRequest) -> onnx.ModelProto:
    """Return the model as onnx parses it."""
    require(entry, request)
    return onnx.load(entry.path)


@pytest.mark.corpus
@every_model
def test_a_real_model_is_listed_with_all_its_convs_and_pools(
    entry: Entry, model: onnx.ModelProto, capsys: pytest.CaptureFixture[str]
) -> None:
    counted = Counter(node.op_type for node in layer_nodes(model))
    assert counted == entry.model["layers"]
    listed = json.loads(call(capsys, "layers", entry.path, "--json"))["layers"]
    assert counted == Counter(x["op_type"] for x in listed if x["op_type"] not in NOT_A_LAYER_BY_NAME)
    assert {layer["kind"] for layer in listed} <= {"conv", "pool"}
    assert len({layer["name"] for layer in listed}) == len(listed)


@pytest.mark.corpus
@every_model
def test_exposing_a_real_model_leaves_nodes_and_weights_as_they_were(
    entry: Entry, model: onnx.ModelProto, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "exposed.onnx"
    others = other_inputs(entry, feed_of(entry, tmp_path), tmp_path)
    layers = json.loads(call(capsys, "expose", entry.path, "-o", target, *others, "--json"))["layers"]
    exposed = onnx.load(target)
    session = onnxruntime.InferenceSession(target, providers=["CPUExecutionProvider"])
    assert {output.name for output in session.get_outputs()} == {layer["value"] for layer in layers}
    weights = {tensor.name: tensor.SerializeToString() for tensor in model.graph.initializer}
    found = {tensor.name: tensor.SerializeToString() for tensor in exposed.graph.initializer}
    assert found.items() <= weights.items()
    assert list(exposed.opset_import) == list(model.opset_import)
    if not branches(model):  # to look into a branch, its outputs must grow, and with them the If
        left = iter(unnamed(node) for node in model.graph.node)
        assert all(unnamed(node) in left for node in exposed.graph.node)  # `in` moves the iterator on: same order


def unnamed(node: onnx.NodeProto) -> bytes:
    """Return a node without its name: ONNX Runtime refuses two of one name, so onnxfeat may number them."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.ClearField("name")
    return bytes(copy.SerializeToString(deterministic=True))


@pytest.mark.corpus
@every_model
def test_a_real_model_gives_its_outputs_also_when_its_layers_are_exposed(
    entry: Entry, model: onnx.ModelProto, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    feed = feed_of(entry, tmp_path)
    target = tmp_path / "exposed.onnx"
    call(capsys, "expose", entry.path, "-o", target, "--no-cut", *other_inputs(entry, feed, tmp_path))
    session = onnxruntime.InferenceSession(target, providers=["CPUExecutionProvider"])
    names = [output.name for output in model.graph.output]
    assert [output.name for output in session.get_outputs()][: len(names)] == names
    expected = run_plain(entry.path.read_bytes(), names, feed)
    known = {value.name for value in session.get_inputs()}
    found = dict(zip(names, session.run(names, {x: feed[x] for x in feed if x in known}), strict=True))
    assert [name for name in names if not close(found[name], expected[name])] == []


@pytest.mark.corpus
@every_model
def test_a_real_model_passes_the_check(
    entry: Entry,
    model: onnx.ModelProto,  # noqa: ARG001  # skips where the corpus is absent
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    json.loads(call(capsys, "check", entry.path, *asked_for(entry, feed_of(entry, tmp_path), tmp_path), "--json"))


CONVERTED = [*KERAS, *TFLITE, *SAVED]


@pytest.mark.corpus
@pytest.mark.keras
@pytest.mark.parametrize("entry", CONVERTED, ids=[f"{entry.package['name']}:{entry.path.name}" for entry in CONVERTED])
def test_a_real_model_of_another_form_is_converted_and_passes_the_check(
    entry: Entry, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    require(entry, request)
    source = entry.path.parent if entry in SAVED else entry.path
    found = json.loads(call(capsys, "convert", source, "-o", tmp_path / "model.onnx", "--json"))
    statuses = [layer["status"] for layer in found["layer_map"]]
    assert statuses.count("exact") >= 0.95 * len(statuses)
    classes = Counter(layer["class"] for layer in found["layer_map"])
    if entry in KERAS:
        assert {name: classes[name] for name in entry.model["layers"]} == entry.model["layers"]
    call(capsys, "check", tmp_path / "model.onnx", "--json")
    assert call(capsys, "layers", tmp_path / "model.onnx")


@pytest.mark.corpus
@every_model
def test_a_real_model_is_drawn_with_one_picture_for_each_layer_that_has_one(
    entry: Entry, model: onnx.ModelProto, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    feed = feed_of(entry, tmp_path)
    folder = tmp_path / "maps"
    arguments = asked_for(entry, feed, tmp_path)
    listed = json.loads(call(capsys, "layers", entry.path, "--json"))["layers"]
    call(capsys, "draw", entry.path, *arguments, "-o", folder, "--provider", "cpu")
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    (picture,) = record["pictures"]
    drawn = {layer["layer"]: folder / layer["file"] for layer in picture["layers"]}
    assert set(folder.iterdir()) == {*drawn.values(), folder / "run.json"}
    for file in drawn.values():
        with Image.open(file) as image:
            image.verify()
    assert drawn
    nodes = layer_nodes(model)
    by_name = [layer for layer in listed if layer["op_type"] not in NOT_A_LAYER_BY_NAME]
    assert [layer["op_type"] for layer in by_name] == [node.op_type for node in nodes]
    shapes = own_shapes(model, nodes, feed)
    for layer, node in zip(by_name, nodes, strict=True):
        if layer["name"] in drawn:
            assert node.output[0] in shapes, f"{layer['name']} did not run, but was drawn"
        elif node.output[0] in shapes:
            assert set(shapes[node.output[0]][2:]) == {1}, f"{layer['name']} was not drawn, but has a picture"
        else:  # the branch that was not taken; a layer known to be 1 x 1 is not asked for in the first place
            assert layer["is_vector"] or layer["unseen"] or record["left_out"][layer["name"]]


def own_shapes(model: onnx.ModelProto, nodes: list[onnx.NodeProto], feed: Feed) -> dict[str, tuple[int, ...]]:
    """Return the shape of what each conv and pool node gives, where it runs; N, C, *spatial by definition of ONNX."""
    flat = without_branches(model, feed)
    made = {name for node in onnx.load_from_string(flat).graph.node for name in node.output}
    names = [node.output[0] for node in nodes if node.output[0] in made]
    return {name: array.shape for name, array in run_plain(flat, names, feed).items()}


@pytest.mark.corpus
@every_model
def test_the_maps_of_a_real_model_are_the_values_of_the_original_file(
    entry: Entry, model: onnx.ModelProto, tmp_path: Path
) -> None:
    feed = feed_of(entry, tmp_path)
    flat = without_branches(model, feed)
    main_input, *others = feed
    more: dict[str, Any] = {"inputs": {name: feed[name] for name in others}} if others else {}
    options = entry.model.get("picture", {})
    preprocessing: dict[str, Any] = {x: numbers(options[x]) for x in ("scale", "mean", "std") if x in options}
    preprocessing.update({"color": options["color"]} if "color" in options else {})
    if "size" in options:
        preprocessing["size"] = tuple(int(side) for side in options["size"].split("x"))
    extractor = FeatureExtractor(entry.path, provider="cpu", preprocessing=preprocessing or None, **more)
    features = extractor(feed[main_input] if "array" in entry.model else picture_file(entry, tmp_path))
    assert features
    values = {name: inner_name(feature_map.layer.value) for name, feature_map in features.items()}
    expected = run_plain(flat, list(dict.fromkeys(values.values())), feed)
    shapes = own_shapes(model, layer_nodes(model), feed)
    wrong = []
    for name, feature_map in features.items():
        layout = feature_map.layer.layout or ""
        value = expected[values[name]]
        channels_first = value.transpose([layout.index(axis) for axis in "NCTDHW" if axis in layout])
        if not close(feature_map.array, channels_first):
            wrong.append(f"{name}: {feature_map.array.shape} for {channels_first.shape}")
        # The layout is onnxfeat's word; the sizes that conv and pool nodes give in NCHW are ONNX's.
        if feature_map.layer.op_type not in NOT_A_LAYER_BY_NAME and feature_map.shape not in shapes.values():
            wrong.append(f"{name}: no conv or pool gives {feature_map.shape}")
    assert wrong == []


# The list, and the tool that fetches it


def test_the_corpus_names_only_packages_of_permissive_licenses_with_pinned_files() -> None:
    assert len({entry.model["file"] for entry in EVERYTHING}) == len(EVERYTHING)
    for package in PACKAGES:
        assert package["license"] in PERMISSIVE
        hashes = [model.get("sha256", "") for model in package["model"]]
        if package["form"] != "installed":
            assert all(re.fullmatch("[0-9a-f]{64}", sha) for sha in [package["archive_sha256"], *hashes])
        for model in package["model"]:
            if "part_of" in model:
                continue
            assert model["breaks"]
            assert ("picture" in model) != ("array" in model)


def tiny_wheel(folder: Path) -> Path:
    """Write a wheel that holds two files and one that would like to lie above the folder it is unpacked into."""
    wheel = folder / "tinynet-1.0-py3-none-any.whl"
    metadata = "Metadata-Version: 2.1\nName: tinynet\nVersion: 1.0\n"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tinynet/wanted.onnx", b"wanted")
        archive.writestr("tinynet/other.onnx", b"other")
        archive.writestr("../escaped.onnx", b"escaped")
        archive.writestr("tinynet-1.0.dist-info/METADATA", metadata)
        archive.writestr("tinynet-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("tinynet-1.0.dist-info/RECORD", "")
    return wheel


class Fetching:
    """Run the tool on a list of one tiny wheel, which pip finds in a folder: no network."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cache, self._folder = folder / "cache", folder
        self.wheel = tiny_wheel(folder)
        monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(folder))

    def __call__(self, file: str = "tinynet/wanted.onnx", **changes: str) -> subprocess.CompletedProcess[str]:
        pinned = {
            "archive_sha256": hashlib.sha256(tiny_wheel(self._folder).read_bytes()).hexdigest(),
            "sha256": hashlib.sha256(b"wanted").hexdigest(),
            "cache": str(self.cache),
            **changes,
        }
        corpus = self._folder / "corpus.toml"
        corpus.write_text(
            f'[[package]]\nname = "tinynet"\nversion = "1.0"\nform = "wheel"\n'
            f'archive_sha256 = "{pinned["archive_sha256"]}"\n'
            f'[[package.model]]\nfile = "{file}"\nsha256 = "{pinned["sha256"]}"\n',
            encoding="utf-8",
        )
        tool = [sys.executable, str(ROOT / "tools/fetch_corpus.py")]
        command = [*tool, "--corpus", str(corpus), "--cache", pinned["cache"]]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def files(self) -> list[str]:
        return sorted(str(path.relative_to(self.cache)) for path in self.cache.rglob("*") if path.is_file())


@pytest.fixture
def fetching(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fetching:
    return Fetching(tmp_path, monkeypatch)


def test_only_the_listed_files_of_a_package_are_unpacked(fetching: Fetching, tmp_path: Path) -> None:
    done = fetching()
    assert (done.returncode, done.stderr) == (0, "")
    assert "tinynet 1.0: 1 files fetched, 0 there already" in done.stdout
    assert fetching.files() == ["tinynet-1.0/tinynet/wanted.onnx"]
    assert list(tmp_path.rglob("escaped.onnx")) == []


def test_what_is_in_the_cache_is_not_fetched_again(fetching: Fetching, monkeypatch: pytest.MonkeyPatch) -> None:
    fetching()
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")  # pip would fail
    assert "1 files, there already" in fetching().stdout


def test_a_damaged_file_in_the_cache_is_fetched_again(fetching: Fetching) -> None:
    fetching()
    target = fetching.cache / "tinynet-1.0/tinynet/wanted.onnx"
    target.write_bytes(b"dama")
    assert fetching().returncode == 0
    assert target.read_bytes() == b"wanted"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"archive_sha256": "0" * 64}, "could not download"),
        ({"sha256": "0" * 64}, "the package is not the pinned one"),
        ({"file": "tinynet/absent.onnx"}, "has no file tinynet/absent.onnx"),
        ({"file": "../escaped.onnx"}, "leads out of the cache"),
        ({"file": "/escaped.onnx"}, "leads out of the cache"),
    ],
)
def test_what_is_not_the_pinned_package_stops_the_fetch(
    fetching: Fetching, changes: dict[str, str], message: str
) -> None:
    done = fetching(**changes)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not fetching.cache.exists() or fetching.files() == []


def test_the_cache_may_not_lie_inside_the_checkout(fetching: Fetching) -> None:
    done = fetching(cache=str(ROOT / "tests/corpus"))
    assert done.returncode == 2
    assert "inside the checkout" in done.stderr
    assert not (ROOT / "tests/corpus").exists()
