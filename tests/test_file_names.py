import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxfeat.drawing.file_names import folder_names, layer_files, safe_name
from onnxfeat.preprocessing import Preprocessing
from onnxfeat.records import FeatureMap, Features, Layer, ProviderChoice

any_name = st.text(st.characters(), max_size=30)  # lone surrogates too, as in file names that are no UTF-8


def run_of(*names: str, layers: tuple[str, ...] = ()) -> Features:
    maps = {
        name: FeatureMap(
            layer=Layer(name=name, kind="conv", op_type="Conv", value="v", raw_value="v"),
            array=np.zeros((1, 1, 1, 1), np.float32),
        )
        for name in names
    }
    return Features(
        maps=maps,
        pictures=("cat.png",),
        preprocessed=(False,),
        model="model.onnx",
        sha256="0" * 64,
        provider=ProviderChoice(asked="cpu", got="CPUExecutionProvider", note=""),
        preprocessing=Preprocessing(),
        preprocessing_source="default",
        seconds=0.0,
        layers=layers,
    )


@given(any_name)
@settings(max_examples=200)
def test_a_safe_name_has_no_letter_that_means_something_to_a_file_system_or_a_shell(name: str) -> None:
    safe = safe_name(name)
    assert safe
    assert not safe.startswith(".")
    assert not safe.endswith(".")
    assert re.fullmatch(r"[\w.#\-]+", safe)
    assert len(safe.encode()) <= 120
    assert safe_name(safe) == safe


@pytest.mark.parametrize("name", ["conv2d", "卷积", "block-1.conv#2", "größe"])
def test_a_name_that_is_safe_stays(name: str) -> None:
    assert safe_name(name) == name


@given(st.lists(any_name, min_size=1, max_size=12))
@settings(max_examples=200)
def test_each_picture_has_a_folder_of_its_own_on_every_file_system(pictures: list[str]) -> None:
    folders = folder_names(pictures)
    assert len(folders) == len(pictures)
    assert len({folder.lower() for folder in folders}) == len(pictures)  # Windows and macOS know no capitals
    for folder in folders:
        assert safe_name(folder) == folder
        assert folder.lower() != "run.json"
        assert not folder.startswith("-")
        assert folder.partition(".")[0].lower() not in {"con", "prn", "aux", "nul", "com1", "lpt9"}


def test_a_folder_is_named_after_the_picture_whatever_folder_that_is_in() -> None:
    assert folder_names(["a/b/cat.tar.gz", "/cat.png", "dog"]) == ["cat.tar", "cat", "dog"]


@given(st.lists(any_name, min_size=1, max_size=12, unique=True))
@settings(max_examples=100)
def test_each_layer_has_a_file_that_sorts_in_order_of_execution(names: list[str]) -> None:
    files = layer_files(run_of(*names), "png")
    assert list(files) == names
    assert [number for number, _ in files.values()] == list(range(1, len(names) + 1))
    shown = [file for _, file in files.values()]
    assert shown == sorted(shown)
    assert all(re.fullmatch(r"\d\d-[\w.#\-]+\.png", file) for file in shown)
    assert max(len(file.encode()) for file in shown) <= 255


def test_layers_of_a_part_keep_the_numbers_that_they_have_in_the_run() -> None:
    files = layer_files(run_of("c", "a", layers=("a", "b", "c")), "webp")
    assert files == {"a": (1, "01-a.webp"), "c": (3, "03-c.webp")}


def test_hundreds_of_layers_have_numbers_of_as_many_digits() -> None:
    names = tuple(f"l{number}" for number in range(1000))
    files = layer_files(run_of("l0", "l999", layers=names), "png")
    assert files == {"l0": (1, "0001-l0.png"), "l999": (1000, "1000-l999.png")}
