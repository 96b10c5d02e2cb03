from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import onnxfeat

PACKAGE = Path(onnxfeat.__file__).parent

# Which module may import which others of the package, also inside functions and for type checks.
IMPORTS: dict[str, set[str]] = {
    "errors": set(),
    "drawing.colormaps": {"errors"},
    "serialization": set(),
    "preprocessing": {"errors", "serialization"},
    "records": {"errors", "preprocessing", "registration", "serialization"},
    "files": {"errors"},
    "layers.selection": {"errors", "records"},
    "drawing.pictures": {"drawing.channel_statistics", "drawing.scales", "errors"},
    "drawing.arrangements": {
        "drawing.channel_statistics",
        "drawing.ordering",
        "drawing.pictures",
        "drawing.scales",
        "drawing.sharing",
        "drawing.styles",
        "drawing.subjects",
        "drawing.tilings",
        "records",
    },
    "drawing.plots": {"drawing.model_plots", "drawing.norms", "drawing.panels", "drawing.styles", "errors", "records"},
    "drawing.gallery": {
        "drawing.captions",
        "drawing.colormaps",
        "drawing.file_names",
        "drawing.legends",
        "drawing.overlays",
        "drawing.painting",
        "drawing.picture_numbers",
        "drawing.sharing",
        "drawing.sheets",
        "drawing.styles",
        "drawing.subjects",
        "drawing.threads",
        "drawing.vector_pages",
        "drawing.writing",
        "errors",
        "files",
        "picture_files",
        "records",
    },
    "running.planning": {"errors", "records"},
    "graph.weights": {"errors"},
    "graph.parsing": {"errors", "files", "graph.weights"},
    "graph.model_files": {"errors", "files", "graph.weights", "records"},
    "graph.flattening": {"errors"},
    "graph.inference": {"graph.flattening", "graph.weights", "records"},
    "graph.reading": {
        "errors",
        "graph.flattening",
        "graph.inference",
        "graph.model_files",
        "graph.parsing",
        "graph.weights",
        "metadata",
        "records",
    },
    "graph.layouts": {"graph.reading"},
    "graph.geometry": {"graph.reading"},
    "graph.quantization": {"graph.reading", "records"},
    "layers.formulas": {"graph.reading"},
    "layers.activations": {"graph.reading", "layers.formulas"},
    "layers.chains": {"graph.quantization", "graph.reading", "layers.activations"},
    "layers.naming": {"graph.reading"},
    "layers.remarks": {"graph.flattening", "graph.reading", "layers.activations", "layers.chains"},
    "running.runtime": {"errors", "picture_files", "records"},
    "converter.__init__": {"converter.conversion"},
    "running.maps": {"errors", "preprocessing", "records", "registration"},
    "running.limits": {"errors", "graph.inference", "graph.reading", "running.exposure", "running.planning"},
    "running.optimization": {"graph.reading", "records", "running.exposure", "running.runtime"},
    "terminal": {"drawing.captions", "errors", "findings", "records", "verdicts"},
    "options": {"preprocessing", "records"},
    "__main__": {"cli"},
    "graph.__init__": set(),
    "layers.__init__": set(),
    "running.__init__": set(),
    "drawing.__init__": set(),
    "cli": {
        "__init__",
        "converter.__init__",
        "draw_command",
        "errors",
        "graph.reading",
        "layers.inventory",
        "options",
        "records",
        "report_command",
        "running.exposure",
        "running.images",
        "running.proof",
        "terminal",
        "verdicts",
    },
    "converter.__main__": {"converter.conversion", "errors", "findings"},
    "converter.cleaning": {
        "converter.sources",
        "converter.tensorflow_graphs",
        "converter.transposes",
        "graph.flattening",
        "graph.reading",
        "metadata",
        "running.exposure",
    },
    "converter.conversion": {
        "converter.cleaning",
        "converter.half_weights",
        "converter.keras_files",
        "converter.keras_models",
        "converter.other_backends",
        "converter.preparation",
        "converter.saved_models",
        "converter.sources",
        "converter.tflite_models",
        "converter.verification",
        "errors",
        "files",
        "findings",
        "graph.reading",
        "graph.weights",
        "metadata",
        "preprocessing",
        "records",
        "references",
        "running.exposure",
    },
    "converter.graph_layers": {"converter.sources", "converter.tensor_layouts", "graph.layouts", "records"},
    "converter.half_weights": set(),
    "converter.keras_files": {"converter.messages", "errors"},
    "converter.keras_models": {
        "converter.keras_files",
        "converter.messages",
        "converter.sources",
        "converter.tensorflow_graphs",
        "errors",
        "graph.layouts",
        "records",
    },
    "converter.local_runs": {"converter.messages", "errors", "graph.flattening", "running.runtime"},
    "converter.messages": {"errors"},
    "converter.other_backends": {
        "converter.messages",
        "converter.verification",
        "errors",
        "findings",
        "graph.reading",
        "recipes",
        "references",
        "running.runtime",
    },
    "converter.saved_graphs": {"converter.messages", "errors"},
    "converter.saved_models": {
        "converter.graph_layers",
        "converter.keras_files",
        "converter.messages",
        "converter.saved_graphs",
        "converter.saved_programs",
        "converter.sources",
        "converter.tensorflow_graphs",
        "errors",
    },
    "converter.saved_programs": {"errors"},
    "converter.sources": {"records"},
    "converter.tensor_layouts": {"graph.layouts"},
    "converter.tflite_conversion": {
        "converter.messages",
        "converter.repairs",
        "converter.tensorflow_graphs",
        "converter.tflite_files",
        "errors",
    },
    "converter.tflite_files": {"converter.messages", "errors"},
    "converter.tflite_models": {
        "converter.sources",
        "converter.tflite_conversion",
        "converter.tflite_files",
        "converter.tflite_names",
        "converter.tflite_steps",
        "errors",
        "graph.layouts",
        "records",
    },
    "converter.tflite_names": set(),
    "converter.tflite_steps": {
        "converter.local_runs",
        "converter.tensorflow_graphs",
        "converter.tflite_files",
        "errors",
    },
    "converter.transposes": {"graph.flattening"},
    "findings": {"metadata", "preprocessing", "records", "serialization"},
    "graph.scaling": {"graph.reading"},
    "layers.inventory": {
        "graph.geometry",
        "graph.layouts",
        "graph.quantization",
        "graph.reading",
        "layers.activations",
        "layers.chains",
        "layers.formulas",
        "layers.naming",
        "layers.remarks",
        "layers.selection",
        "metadata",
        "records",
    },
    "metadata": {"errors", "preprocessing", "records", "registration", "serialization"},
    "recipes": {"errors", "serialization"},
    "references": {"errors", "recipes", "serialization"},
    "running.exposure": {
        "errors",
        "files",
        "graph.flattening",
        "graph.layouts",
        "graph.model_files",
        "graph.quantization",
        "graph.reading",
        "graph.scaling",
        "graph.skeletons",
        "layers.inventory",
        "metadata",
        "records",
        "references",
    },
    "running.extractor": {
        "errors",
        "files",
        "findings",
        "graph.reading",
        "graph.skeletons",
        "layers.inventory",
        "layers.selection",
        "metadata",
        "picture_files",
        "preprocessing",
        "records",
        "registration",
        "running.exposure",
        "running.frames",
        "running.images",
        "running.limits",
        "running.maps",
        "running.optimization",
        "running.planning",
        "running.runtime",
        "running.sizing",
        "running.streams",
    },
    "running.images": {"errors", "picture_files", "preprocessing", "records", "running.resizing"},
    "running.replay": {
        "errors",
        "findings",
        "graph.inference",
        "graph.quantization",
        "graph.reading",
        "graph.weights",
        "layers.chains",
        "recipes",
        "records",
        "references",
        "running.exposure",
        "running.limits",
        "running.planning",
        "running.runtime",
        "running.survivors",
    },
    "running.resizing": {"framing", "picture_files", "preprocessing", "resampling"},
    "running.sizing": {
        "graph.inference",
        "graph.reading",
        "picture_files",
        "records",
        "running.exposure",
        "running.images",
        "running.planning",
        "running.runtime",
    },
    "running.survivors": {"graph.inference", "graph.quantization", "graph.reading", "references"},
    "converter.repairs": set(),
    "converter.tensorflow_graphs": {"converter.messages", "converter.repairs", "errors"},
    "converter.verification": {
        "converter.local_runs",
        "converter.messages",
        "converter.preparation",
        "converter.sources",
        "errors",
        "findings",
        "graph.reading",
        "metadata",
        "preprocessing",
        "recipes",
        "references",
        "running.exposure",
        "running.runtime",
    },
    "running.proof": {
        "errors",
        "findings",
        "graph.reading",
        "layers.inventory",
        "picture_files",
        "preprocessing",
        "recipes",
        "records",
        "references",
        "running.exposure",
        "running.extractor",
        "running.images",
        "running.limits",
        "running.maps",
        "running.planning",
        "running.replay",
        "running.runtime",
        "running.sizing",
    },
    "converter.preparation": {
        "converter.sources",
        "errors",
        "graph.reading",
        "graph.scaling",
        "preprocessing",
        "recipes",
    },
    "draw_command": {
        "command_steps",
        "drawing.animations",
        "drawing.gallery",
        "drawing.styles",
        "drawing_options",
        "files",
        "options",
        "running.extractor",
        "running.folders",
        "running.frames",
        "terminal",
        "verdicts",
    },
    "drawing.animations": {
        "drawing.encoders",
        "drawing.file_names",
        "drawing.painting",
        "drawing.sharing",
        "drawing.sheets",
        "drawing.styles",
        "drawing.subjects",
        "drawing.writing",
        "errors",
        "files",
        "records",
    },
    "drawing.axis_steps": {"errors", "registration"},
    "drawing.channel_statistics": {"errors", "records"},
    "drawing.encoders": {"errors"},
    "drawing.file_names": {"records"},
    "drawing.histograms": set(),
    "drawing.legends": {
        "drawing.arrangements",
        "drawing.captions",
        "drawing.channel_statistics",
        "drawing.colormaps",
        "drawing.ordering",
        "drawing.scales",
        "drawing.styles",
        "records",
    },
    "drawing.lettering": set(),
    "drawing.model_plots": {
        "drawing.legends",
        "drawing.norms",
        "drawing.panels",
        "drawing.scales",
        "drawing.styles",
        "drawing.subjects",
        "errors",
        "records",
    },
    "drawing.notebooks": {"drawing.painting", "drawing.styles", "drawing.subjects", "records"},
    "drawing.ordering": {"drawing.channel_statistics", "drawing.styles", "errors"},
    "drawing.overlays": {
        "drawing.colormaps",
        "drawing.photographs",
        "drawing.receptive_fields",
        "drawing.reductions",
        "drawing.styles",
        "errors",
        "picture_files",
        "records",
        "registration",
    },
    "drawing.pages": {"drawing.colormaps", "drawing.legends", "drawing.lettering"},
    "drawing.painting": {
        "drawing.arrangements",
        "drawing.channel_facts",
        "drawing.channel_statistics",
        "drawing.color_pictures",
        "drawing.colormaps",
        "drawing.legends",
        "drawing.lettering",
        "drawing.pages",
        "drawing.pictures",
        "drawing.reductions",
        "drawing.scales",
        "drawing.sharing",
        "drawing.styles",
        "drawing.subjects",
        "drawing.tilings",
        "picture_files",
        "records",
    },
    "drawing.panels": {
        "drawing.arrangements",
        "drawing.captions",
        "drawing.cell_marks",
        "drawing.color_pictures",
        "drawing.colormaps",
        "drawing.legends",
        "drawing.norms",
        "drawing.painting",
        "drawing.pictures",
        "drawing.styles",
        "drawing.subjects",
        "drawing.tilings",
        "errors",
        "records",
    },
    "drawing.receptive_fields": {"drawing.axis_steps", "errors", "registration"},
    "drawing.reductions": {"drawing.channel_statistics", "drawing.scales", "drawing.styles", "errors", "records"},
    "drawing.scales": {"drawing.channel_statistics", "drawing.histograms", "drawing.styles", "errors"},
    "drawing.sharing": {
        "drawing.channel_statistics",
        "drawing.ordering",
        "drawing.overlays",
        "drawing.reductions",
        "drawing.scales",
        "drawing.styles",
        "drawing.subjects",
        "errors",
        "records",
    },
    "drawing.sheets": {
        "drawing.arrangements",
        "drawing.captions",
        "drawing.channel_facts",
        "drawing.colormaps",
        "drawing.legends",
        "drawing.lettering",
        "drawing.pages",
        "drawing.painting",
        "drawing.sharing",
        "drawing.styles",
        "drawing.subjects",
        "drawing.tilings",
        "errors",
        "records",
    },
    "drawing.styles": {"errors", "serialization"},
    "drawing.subjects": {"errors", "records"},
    "drawing.tilings": {"drawing.pictures", "drawing.styles"},
    "drawing.vector_pages": {
        "drawing.arrangements",
        "drawing.channel_facts",
        "drawing.color_pictures",
        "drawing.colormaps",
        "drawing.legends",
        "drawing.lettering",
        "drawing.pages",
        "drawing.painting",
        "drawing.sharing",
        "drawing.styles",
        "errors",
        "picture_files",
        "records",
    },
    "drawing.writing": {"__init__", "drawing.legends", "drawing.painting", "drawing.styles", "errors", "records"},
    "drawing_options": {"drawing.colormaps", "drawing.styles", "errors"},
    "framing": {"preprocessing"},
    "graph.axis_operations": {"graph.geometry", "graph.lengths", "graph.reading", "registration"},
    "graph.lengths": {"graph.reading"},
    "graph.reshaping": {"records"},
    "graph.skeletons": {
        "graph.axis_operations",
        "graph.flattening",
        "graph.geometry",
        "graph.lengths",
        "graph.reading",
        "graph.reshaping",
        "records",
        "registration",
    },
    "picture_files": {"errors", "files"},
    "registration": {"preprocessing"},
    "running.folders": {"errors", "running.frames"},
    "running.frames": {"errors", "picture_files"},
    "running.streams": {"errors", "picture_files", "records", "running.frames", "running.images"},
    "drawing.channel_facts": {"drawing.arrangements", "drawing.channel_statistics", "records"},
    "drawing.color_pictures": {
        "drawing.captions",
        "drawing.channel_facts",
        "drawing.channel_statistics",
        "drawing.colormaps",
        "drawing.legends",
        "drawing.overlays",
        "drawing.pictures",
        "drawing.reductions",
        "drawing.sharing",
        "drawing.styles",
        "drawing.subjects",
        "drawing.tilings",
        "picture_files",
        "records",
    },
    "drawing.cell_marks": {"drawing.arrangements"},
    "drawing.norms": {"drawing.scales", "errors"},
    "drawing.photographs": {"framing", "picture_files", "registration", "resampling"},
    "resampling": {"preprocessing"},
    "drawing.captions": set(),
    "command_steps": {
        "errors",
        "findings",
        "running.extractor",
        "running.frames",
        "running.planning",
        "running.proof",
        "terminal",
        "verdicts",
    },
    "drawing.picture_numbers": {"records"},
    "drawing.threads": set(),
    "report.__init__": set(),
    "report.contents": {"drawing.styles", "preprocessing", "records"},
    "report.gathering": {
        "drawing.channel_statistics",
        "drawing.ordering",
        "drawing.overlays",
        "drawing.picture_numbers",
        "drawing.styles",
        "drawing.subjects",
        "drawing.threads",
        "drawing.writing",
        "errors",
        "findings",
        "records",
        "registration",
        "report.contents",
        "report.measures",
        "report.places",
        "report.portraits",
        "report.repetition",
        "report.sprites",
        "verdicts",
    },
    "report.inline": {
        "drawing.styles",
        "drawing.subjects",
        "errors",
        "records",
        "report.contents",
        "report.gathering",
        "report.pages",
    },
    "report.measures": {"drawing.channel_statistics", "report.contents"},
    "report.pages": {
        "drawing.colormaps",
        "drawing.legends",
        "drawing.styles",
        "errors",
        "files",
        "findings",
        "records",
        "report.contents",
        "report.gathering",
        "running.planning",
    },
    "report.places": {"drawing.photographs", "drawing.receptive_fields", "registration", "report.contents"},
    "report.portraits": {"picture_files", "records", "report.contents"},
    "report.repetition": {"drawing.file_names", "drawing.styles", "preprocessing", "records"},
    "report.sprites": {"drawing.channel_statistics", "drawing.colormaps", "drawing.scales", "report.contents"},
    "report_command": {
        "command_steps",
        "drawing_options",
        "errors",
        "files",
        "findings",
        "options",
        "report.pages",
        "running.extractor",
        "running.folders",
        "running.planning",
        "terminal",
        "verdicts",
    },
    "verdicts": {"findings"},
}

# What each heavy package may be imported by.
HOMES = {
    "jinja2": {"report.pages"},
    "onnx": {
        "converter",
        "graph.axis_operations",
        "graph.flattening",
        "graph.geometry",
        "graph.inference",
        "graph.layouts",
        "graph.lengths",
        "graph.model_files",
        "graph.parsing",
        "graph.quantization",
        "graph.reading",
        "graph.scaling",
        "graph.skeletons",
        "graph.weights",
        "layers.activations",
        "layers.chains",
        "layers.formulas",
        "layers.inventory",
        "layers.naming",
        "layers.remarks",
        "running.exposure",
        "running.extractor",
        "running.limits",
        "running.proof",
    },
    "google": {"converter", "graph.model_files", "graph.parsing", "graph.weights"},
    "onnxruntime": {"running.runtime"},
    "matplotlib": {
        "drawing.cell_marks",
        "drawing.colormaps",
        "drawing.model_plots",
        "drawing.norms",
        "drawing.panels",
        "drawing.plots",
        "drawing.vector_pages",
    },
    "tensorflow": {"converter"},
    "keras": {"converter"},
    "tf2onnx": {"converter"},
    "PIL": {
        "drawing.encoders",
        "drawing.lettering",
        "drawing.painting",
        "drawing.writing",
        "picture_files",
        "report.portraits",
        "running.folders",
        "running.frames",
        "running.images",
        "running.resizing",
        "running.streams",
    },
    "av": {"drawing.encoders", "running.frames"},
    "rich": {"terminal"},
    "typer": {"cli", "draw_command", "drawing_options", "options", "report_command", "terminal"},
}

PUBLIC = {
    "convert_keras",
    "list_layers",
    "expose",
    "FeatureExtractor",
    "check",
    "normalize",
    "statistics",
    "belt",
    "grid",
    "overlay",
    "plot",
    "save_pictures",
    "write_report",
    "save_animation",
    "Style",
    "Check",
    "Conversion",
    "FeatureMap",
    "Features",
    "Frames",
    "Layer",
    "Preprocessing",
    "OnnxfeatError",
    "ConversionError",
    "LayerError",
    "MissingPackageError",
    "ModelError",
    "OutputError",
    "PictureError",
    "ProviderError",
    "__version__",
}


def modules() -> dict[str, Path]:
    return {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}


def imported(path: Path) -> list[str]:
    """Return the full names of all that a file imports, `a.b` for `from a import b` as well."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def own_imports(path: Path) -> set[str]:
    known = modules()
    found = set()
    for name in imported(path):
        if name.split(".")[0] != "onnxfeat":
            continue
        inner = name.removeprefix("onnxfeat.")
        while inner:
            if inner in known or f"{inner}.__init__" in known:
                break
            inner = inner.rpartition(".")[0]
        inner = inner or "__init__"
        found.add(inner if inner in known else f"{inner}.__init__")
    return found


def test_the_table_names_every_module() -> None:
    assert set(modules()) - {"__init__"} == set(IMPORTS)


@pytest.mark.parametrize("module", sorted(IMPORTS))
def test_a_module_imports_what_the_table_allows(module: str) -> None:
    assert own_imports(modules()[module]) <= IMPORTS[module]


def test_imports_go_one_way() -> None:
    order = list(TopologicalSorter(IMPORTS).static_order())
    assert order.index("errors") < order.index("running.extractor") < order.index("cli")


def test_the_front_door_imports_nothing_until_it_is_asked() -> None:
    source = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    eager = [node for node in source.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert {name for node in eager for name in [getattr(node, "module", None) or node.names[0].name]} == {
        "__future__",
        "importlib",
        "typing",
    }


@pytest.mark.parametrize("package", sorted(HOMES))
def test_a_heavy_package_has_its_homes(package: str) -> None:
    users = {
        "converter" if module.startswith("converter.") else module
        for module, path in modules().items()
        if any(name.split(".")[0] == package for name in imported(path))
    }
    assert users == HOMES[package]


def loaded_after(code: str) -> list[str]:
    heavy = ["onnx", "google.protobuf", "onnxruntime", *HOMES]
    code += f"\nimport sys; print(*sorted(name for name in {heavy} if name in sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return result.stdout.split()


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert loaded_after("import onnxfeat; dir(onnxfeat); onnxfeat.__version__") == []


def test_converting_is_not_imported_with_keras() -> None:
    loaded = loaded_after("from onnxfeat import convert_keras, FeatureExtractor, plot, save_pictures")
    assert not {"tensorflow", "keras", "tf2onnx", "onnxruntime", "matplotlib", "jinja2"} & set(loaded)


def test_the_public_names_are_these() -> None:
    assert set(onnxfeat.__all__) == PUBLIC
    assert len(onnxfeat.__all__) == len(PUBLIC)
    assert dir(onnxfeat) == sorted(PUBLIC)


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_a_public_name_can_be_had(name: str) -> None:
    assert getattr(onnxfeat, name) is not None


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'onnxfeat' has no attribute 'extract'"):
        _ = onnxfeat.extract


@pytest.mark.parametrize("name", sorted(PUBLIC - {"__version__"}))
def test_a_public_name_is_documented(name: str) -> None:
    documented = inspect.getdoc(getattr(onnxfeat, name))
    assert documented
    assert documented.splitlines()[0].endswith((".", ":")) or len(documented.splitlines()) > 1


@pytest.mark.parametrize(
    "name",
    [
        "convert_keras",
        "list_layers",
        "expose",
        "FeatureExtractor",
        "check",
        "normalize",
        "statistics",
        "belt",
        "grid",
        "plot",
        "save_pictures",
        "save_animation",
        "overlay",
        "Style",
        "Frames",
        "Preprocessing",
        "Layer",
        "FeatureMap",
        "Features",
    ],
)
def test_what_a_user_calls_has_an_example_that_runs(name: str) -> None:
    documented = inspect.getdoc(getattr(onnxfeat, name)) or ""
    assert "\nExample:\n    >>> " in documented


def test_no_module_bears_the_name_of_a_public_function() -> None:
    assert not {module.split(".")[-1] for module in modules()} & PUBLIC


@pytest.mark.parametrize("name", sorted(name for name in PUBLIC if name.endswith("Error")))
def test_every_error_can_be_caught_by_one_class(name: str) -> None:
    assert issubclass(getattr(onnxfeat, name), onnxfeat.OnnxfeatError)
