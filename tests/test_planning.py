from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxfeat.errors import PictureError
from onnxfeat.records import Layer, ModelInput
from onnxfeat.running.limits import physical_memory
from onnxfeat.running.planning import budget_of, bytes_of, declared_sizes, passes, readable, too_large

PICTURE = ModelInput(name="x", shape=("N", 3, 8, 8), layout="NCHW", dtype="float32")


def layer(name: str, value: str = "", **fields: object) -> Layer:
    return Layer(name=name, kind="conv", op_type="Conv", value=value or name, raw_value=name, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1000", 1000),
        ("512MB", 512 * 10**6),
        ("512 mb", 512 * 10**6),
        ("1.5GiB", 3 << 29),
        ("2K", 2000),
        ("2KiB", 2048),
        ("1tib", 1 << 40),
        (" 7B ", 7),
        (1 << 20, 1 << 20),
    ],
)
def test_a_budget_is_read_in_the_units_that_people_write(text: int | str, expected: int) -> None:
    assert budget_of(text) == expected


@pytest.mark.parametrize("text", ["", "MB", "-1", "1.2.3MB", "1PB", "nan", "0", "0.5", 0, -5, "1e9"])
def test_what_is_no_size_is_refused_with_an_example(text: int | str) -> None:
    with pytest.raises(PictureError, match="is no number of bytes: pass for instance 512MB, 2GiB or 1000000"):
        budget_of(text)


@given(st.integers(1, 10**15))
def test_what_is_readable_is_close_to_what_was_meant(size: int) -> None:
    assert abs(budget_of(readable(size).replace(" bytes", "")) - size) <= size * 0.005


def test_bytes_are_those_of_float32_and_of_wider_types_while_they_become_that() -> None:
    assert bytes_of(layer("a"), (1, 8, 4, 4)) == 512
    assert bytes_of(layer("a", dtype="uint8"), (1, 8, 4, 4)) == 512
    assert bytes_of(layer("a", dtype="double"), (1, 8, 4, 4)) == 1024
    assert bytes_of(layer("a"), ("N", 8, 4, 4)) is None
    assert bytes_of(layer("a"), None) is None


def test_an_open_batch_is_one_picture_and_other_open_lengths_are_unknown() -> None:
    known = layer("a", shape=("N", 8, 4, 4), layout="NCHW")
    half = layer("b", shape=("N", 8, "H", 4), layout="NCHW")
    assert declared_sizes([known, half], PICTURE) == {"a": 512, "b": None}
    fixed = ModelInput(name="x", shape=(4, 3, 8, 8), layout="NCHW", dtype="float32")
    assert declared_sizes([known], fixed) == {"a": 4 * 512}
    open_sides = ModelInput(name="x", shape=("N", 3, "H", "W"), layout="NCHW", dtype="float32")
    assert declared_sizes([known], open_sides) == {"a": None}


@given(st.lists(st.integers(0, 50), min_size=1, max_size=30), st.integers(100, 400))
def test_passes_keep_all_layers_in_order_within_the_budget(sizes: list[int], budget: int) -> None:
    layers = [layer(str(i)) for i in range(len(sizes))]
    groups = passes(layers, {str(i): size for i, size in enumerate(sizes)}, budget)
    assert [x for group in groups for x in group] == layers
    assert all(groups)
    for group in groups:
        members = [sizes[int(x.name)] for x in group]
        assert sum(members) + max(members) <= budget


@given(st.lists(st.integers(1, 50), min_size=2, max_size=30))
def test_no_two_neighboring_passes_could_be_one(sizes: list[int]) -> None:
    layers = [layer(str(i)) for i in range(len(sizes))]
    groups = passes(layers, {str(i): size for i, size in enumerate(sizes)}, 100)
    for one, two in pairwise(groups):
        members = [sizes[int(x.name)] for x in (*one, two[0])]
        assert sum(members) + max(members) > 100


def test_a_value_that_layers_share_is_counted_once() -> None:
    layers = [layer("conv", "v"), layer("relu", "v")]
    assert len(passes(layers, {"conv": 40, "relu": 40}, 80)) == 1


def test_a_layer_of_unknown_size_runs_alone() -> None:
    layers = [layer("a"), layer("b"), layer("c"), layer("d")]
    groups = passes(layers, {"a": 1, "b": None, "c": 1, "d": 1}, 100)
    assert [[x.name for x in group] for group in groups] == [["a"], ["b"], ["c", "d"]]


def test_a_layer_that_does_not_fit_by_itself_is_told_with_what_it_takes() -> None:
    sizes = {"small": 10, "big": 60, "unknown": None}
    assert too_large([layer(name) for name in sizes], sizes, 100) == {
        "big": "its maps take 60 bytes, and as much again to be drawn, of a budget of 100 bytes; raise max_bytes, or "
        "pass a smaller picture"
    }


def test_the_memory_of_this_machine_is_known() -> None:
    assert physical_memory() > 10**8
