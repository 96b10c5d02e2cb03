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
    "colormaps": {"errors"},
    "records": {"errors"},
    "files": {"errors"},
    "selection": {"errors", "records"},
    "metadata": {"errors", "records"},
    "images": {"errors", "records"},
    "pictures": {"errors", "records"},
    "plots": {"errors", "pictures", "records"},
    "gallery": {"errors", "colormaps", "files", "pictures", "records", "__init__"},
    "graph": {"errors", "metadata", "records"},
    "layouts": {"graph"},
    "geometry": {"graph"},
    "inventory": {"errors", "geometry", "graph", "layouts", "metadata", "records", "selection"},
    "exposure": {"errors", "files", "graph", "inventory", "layouts", "metadata", "records", "selection"},
    "extractor": {"errors", "exposure", "files", "graph", "images", "inventory", "metadata", "records", "selection"},
    "converter.keras_models": {"errors", "layouts", "records"},
    "converter.verification": {
        "converter.keras_models",
        "errors",
        "exposure",
        "extractor",
        "graph",
        "metadata",
        "records",
    },
    "converter.conversion": {
        "converter.keras_models",
        "converter.verification",
        "errors",
        "exposure",
        "files",
        "graph",
        "metadata",
        "records",
    },
    "converter.__init__": {"converter.conversion"},
    "cli": {
        "__init__",
        "colormaps",
        "converter.__init__",
        "errors",
        "exposure",
        "extractor",
        "gallery",
        "graph",
        "images",
        "inventory",
        "pictures",
        "records",
    },
    "__main__": {"cli"},
}

# What each heavy package may be imported by.
HOMES = {
    "onnx": {"graph", "layouts", "geometry", "inventory", "exposure", "extractor", "converter"},
    "google": {"graph"},
    "onnxruntime": {"extractor"},
    "matplotlib": {"plots"},
    "tensorflow": {"converter"},
    "keras": {"converter"},
    "tf2onnx": {"converter"},
    "PIL": {"images", "gallery"},
    "rich": {"cli"},
    "typer": {"cli"},
}

PUBLIC = {
    "convert_keras",
    "list_layers",
    "expose",
    "FeatureExtractor",
    "normalize",
    "statistics",
    "belt",
    "grid",
    "plot",
    "save_pictures",
    "Conversion",
    "FeatureMap",
    "Features",
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
    assert order.index("errors") < order.index("extractor") < order.index("cli")


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
        module.split(".")[0]
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
    assert not {"tensorflow", "keras", "tf2onnx", "onnxruntime", "matplotlib"} & set(loaded)


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
        "normalize",
        "statistics",
        "belt",
        "grid",
        "plot",
        "save_pictures",
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
