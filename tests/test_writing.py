import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from test_gallery import as_map, noise, run_of

from onnxfeat.drawing import gallery
from onnxfeat.drawing.gallery import save_pictures
from onnxfeat.drawing.painting import Drawing, paint
from onnxfeat.drawing.styles import Style
from onnxfeat.drawing.writing import append_array, printable, run_text, write_picture
from onnxfeat.errors import OutputError, PictureError
from onnxfeat.records import Features

LAYERS = {"conv": noise(3, 6, 9, 11), "pool": noise(3, 6, 4, 5, seed=1), "dense": noise(3, 10, seed=2)}
PICTURES = ("a.png", "b.png", "c.png")


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rgb_of(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def saved_array(path: Path, layer: str) -> NDArray[Any]:
    if path.suffix == ".npy":
        array: NDArray[Any] = np.load(path, allow_pickle=False)
        return array
    with np.load(path, allow_pickle=False) as file:
        return np.asarray(file[layer])


def layers_of(record: dict[str, Any]) -> list[dict[str, Any]]:
    return [layer for picture in record["pictures"] for layer in picture["layers"]]


def one_by_one() -> list[Features]:
    return [run_of({name: array[i : i + 1] for name, array in LAYERS.items()}, PICTURES[i]) for i in range(3)]


# one file


@pytest.mark.parametrize("style", [Style(), Style(frame=False), Style(reduce="pca"), Style(normalize="symmetric")])
def test_png_and_webp_hold_the_same_pixels(tmp_path: Path, style: Style) -> None:
    drawing = paint(as_map("conv", noise(1, 6, 9, 11)), style=style)
    for name in ("a.png", "a.webp"):
        write_picture(drawing, tmp_path / name, title="conv", description="six channels")
    expected = np.asarray(drawing.image().convert("RGB"))
    np.testing.assert_array_equal(rgb_of(tmp_path / "a.png"), expected)
    np.testing.assert_array_equal(rgb_of(tmp_path / "a.webp"), expected)


def test_png_files_bear_title_description_and_density(tmp_path: Path) -> None:
    drawing = paint(as_map("conv", noise(1, 2, 3, 4)))
    write_picture(drawing, tmp_path / "a.png", title="卷积\x00", description="two channels", density=2)
    with Image.open(tmp_path / "a.png") as image:
        assert image.info["Title"] == "卷积\ufffd"
        assert image.info["Description"] == "two channels"
        assert image.info["dpi"] == pytest.approx((192, 192), abs=0.1)
    write_picture(drawing, tmp_path / "b.png", title="", description="")
    with Image.open(tmp_path / "b.png") as image:
        assert "dpi" not in image.info


def test_a_picture_too_large_for_webp_is_refused_with_what_to_do(tmp_path: Path) -> None:
    wide = Drawing(pixels=np.zeros((1, 16_384), np.uint8), palette=bytes(768), facts={})
    with pytest.raises(PictureError, match=r"16384 x 1 pixels is too large for WebP.*16,383 a side: choose png"):
        write_picture(wide, tmp_path / "a.webp", title="", description="")
    assert list(tmp_path.iterdir()) == []
    widest = Drawing(pixels=wide.pixels[:, 1:], palette=wide.palette, facts={})
    write_picture(widest, tmp_path / "a.webp", title="", description="")
    assert rgb_of(tmp_path / "a.webp").shape == (1, 16_383, 3)


@given(st.text(st.characters(), max_size=50))
@settings(max_examples=100)
def test_a_title_has_no_control_character_and_stays_as_long(name: str) -> None:
    found = printable(name)
    assert len(found) == len(name)
    found.encode()  # no lone surrogate
    assert not any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in found)
    assert len(printable(name * 1000)) <= 1000


# arrays


@pytest.mark.parametrize(
    "name", ["conv", "block/conv:0", "../../x", "/abs", "层", "", "a\nb", "a\x00b", "caf\udce9", "🐈" * 10_000]
)
def test_an_array_of_any_name_comes_back(tmp_path: Path, name: str) -> None:
    array = noise(1, 2, 3, 4)
    append_array(tmp_path / "maps.npz", name, array)
    append_array(tmp_path / "maps.npz", "other", array + 1)
    with np.load(tmp_path / "maps.npz", allow_pickle=False) as file:
        assert len(file.files) == 2
        np.testing.assert_array_equal(file[file.files[0]], array)
        np.testing.assert_array_equal(file["other"], array + 1)
        if name.isprintable():
            assert file.files[0] == name


def test_names_that_differ_in_control_characters_stay_apart(tmp_path: Path) -> None:
    for number, name in enumerate(("a\x00b", "a\x00c", "a\x01b", "a")):
        append_array(tmp_path / "maps.npz", name, np.array([number]))  # a name twice would be a warning, an error here
    with np.load(tmp_path / "maps.npz") as file:
        assert [file[name].item() for name in file.files] == [0, 1, 2, 3]


def test_a_view_is_written_like_its_copy(tmp_path: Path) -> None:
    array = noise(4, 6, 5, 3).transpose(0, 3, 1, 2)[1:2]
    append_array(tmp_path / "a.npz", "conv", array)
    append_array(tmp_path / "b.npz", "conv", array.copy())
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


@pytest.mark.parametrize("arrange", [None, "sheet"])
@pytest.mark.parametrize("format_", ["npy", "npz"])
def test_saved_arrays_are_the_values(tmp_path: Path, format_: Any, arrange: Any) -> None:
    array = {name: values.copy() for name, values in LAYERS.items()}
    array["conv"][0, 0, 0, :3] = np.nan, np.inf, -np.inf
    record = save_pictures(run_of(array, *PICTURES), tmp_path, save_arrays=format_, arrange=arrange)
    assert record["arrays"] == format_
    for index, picture in enumerate(record["pictures"]):
        for layer in picture["layers"]:
            values = saved_array(tmp_path / layer["array"], layer["layer"])
            assert values.dtype == np.float32
            np.testing.assert_array_equal(values, array[layer["layer"]][index : index + 1])


def test_arrays_of_one_picture_lie_beside_its_pictures(tmp_path: Path) -> None:
    one = {name: values[:1] for name, values in LAYERS.items()}
    save_pictures(run_of(one), tmp_path / "npz", save_arrays="npz")
    assert {"maps.npz", "01-conv.png", "run.json"} <= set(files_below(tmp_path / "npz"))
    save_pictures(run_of(one), tmp_path / "npy", save_arrays="npy")
    assert {"01-conv.npy", "02-pool.npy", "03-dense.npy"} <= set(files_below(tmp_path / "npy"))


# run.json

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(), max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)  # fmt: skip


@given(
    st.dictionaries(st.text(max_size=8).filter(lambda key: key != "pictures"), json_values, max_size=5),
    st.lists(st.lists(st.dictionaries(st.text(max_size=5), json_values, max_size=3), max_size=3), max_size=3),
)
@settings(max_examples=100)
def test_what_is_written_is_json_of_what_was_to_be_told(facts: dict[str, Any], layers: list[Any]) -> None:
    record = {**facts, "pictures": [{"picture": "cat.png", "layers": found, "more": 1} for found in layers]}
    assert json.loads(run_text(record).decode("utf-8")) == record


def test_run_json_has_a_line_for_each_layer(tmp_path: Path) -> None:
    save_pictures(run_of(LAYERS, *PICTURES), tmp_path)
    lines = (tmp_path / "run.json").read_text().splitlines()
    assert sum(line.lstrip().startswith('{"layer": ') for line in lines) == 9
    assert not any("NaN" in line for line in lines)


def test_numbers_that_are_no_json_are_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        run_text({"mean": float("nan")})


STYLES = [
    Style(),
    Style(frame=False, normalize="percentile", percentiles=(5, 95), scale_over="batch", colormap="magma"),
    Style(arrange="grid", order="similarity", top=4, dead="last", zoom=3, hidpi=True, aspect=2.0),
    Style(channels=(4, 0, 5), normalize="symmetric", scale_over="layer"),
    Style(reduce="pca"),
    Style(reduce="l2", normalize="log", scale_over="batch"),
    Style(arrange="sheet", normalize="minmax", scale_over="batch", order="variance", max_belt=500),
]


@pytest.mark.parametrize("style", STYLES)
def test_drawing_again_as_run_json_tells_gives_the_same_bytes(tmp_path: Path, style: Style) -> None:
    maps = {name: LAYERS[name] for name in ("conv", "pool")}
    save_pictures(run_of(maps, *PICTURES), tmp_path / "a", style=style, format="webp", save_arrays="npz")
    told = json.loads((tmp_path / "a/run.json").read_text())
    assert list(told["style"]) == list(style.to_json())
    layers = [layer["layer"] for layer in told["pictures"][0]["layers"]]
    again = run_of({name: maps[name] for name in layers}, *(picture["picture"] for picture in told["pictures"]))
    save_pictures(again, tmp_path / "b", format=told["format"], save_arrays=told["arrays"], **told["style"])
    assert files_below(tmp_path / "b") == files_below(tmp_path / "a")


# all files of a run


@pytest.mark.parametrize("style", [Style(), Style(arrange="sheet"), Style(reduce="mean")])
def test_a_scale_over_the_batch_is_that_of_all_pictures_in_run_json(tmp_path: Path, style: Style) -> None:
    record = save_pictures(one_by_one(), tmp_path, style=style, scale_over="batch", normalize="minmax")
    for name, array in LAYERS.items():
        scales = [layer["scale"] for layer in layers_of(record) if layer["layer"] == name]
        assert len(scales) == 3
        assert scales[0] == scales[1] == scales[2]
        values = array if style.reduce is None else array.mean(axis=1)
        assert scales[0]["low"] == [pytest.approx(values.min(), rel=1e-4, abs=1e-6)]
        assert scales[0]["high"] == [pytest.approx(values.max(), rel=1e-4, abs=1e-6)]
    apart = save_pictures(one_by_one(), tmp_path / "apart", scale_over="layer", normalize="minmax")
    assert len({layer["scale"]["low"][0] for layer in layers_of(apart) if layer["layer"] == "conv"}) == 3


def test_pictures_of_one_run_and_of_many_share_the_same_scale(tmp_path: Path) -> None:
    whole = save_pictures(run_of(LAYERS, *PICTURES), tmp_path / "whole", scale_over="batch")
    parts = save_pictures(one_by_one(), tmp_path / "parts", scale_over="batch")
    for one, other in zip(layers_of(whole), layers_of(parts), strict=True):
        np.testing.assert_allclose(one["scale"]["low"], other["scale"]["low"], rtol=1e-5)


@pytest.mark.parametrize("choice", [{"scale_over": "batch"}, {"reduce": "pca"}])
def test_runs_that_pass_only_once_are_refused_where_they_have_to_pass_twice(tmp_path: Path, choice: Any) -> None:
    with pytest.raises(PictureError, match="the runs are an iterator, which gives them only once"):
        save_pictures(iter(one_by_one()), tmp_path / "out", **choice)
    assert list(tmp_path.iterdir()) == []
    save_pictures(one_by_one(), tmp_path / "out", **choice)


def test_runs_pass_twice_only_where_pictures_share_something(tmp_path: Path) -> None:
    class Runs:
        passes = 0

        def __iter__(self) -> Iterator[Features]:
            Runs.passes += 1
            yield from one_by_one()

    save_pictures(Runs(), tmp_path / "once")
    assert Runs.passes == 1
    save_pictures(Runs(), tmp_path / "twice", scale_over="batch")
    assert Runs.passes == 3


def test_each_format_shows_the_same(tmp_path: Path) -> None:
    one = {name: values[:1] for name, values in LAYERS.items()}
    for format_ in ("png", "webp"):
        save_pictures(run_of(one), tmp_path / format_, format=format_)
    for name in ("01-conv", "02-pool", "03-dense"):
        png, webp = (rgb_of(tmp_path / format_ / f"{name}.{format_}") for format_ in ("png", "webp"))
        np.testing.assert_array_equal(png, webp)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"format": "gif"}, "format 'gif' is unknown: choose 'png', 'webp', 'svg' or 'pdf'"),
        ({"save_arrays": "csv"}, "save_arrays 'csv' is unknown: choose 'npy' or 'npz'"),
        ({"format": "svg", "arrange": "sheet"}, "svg is for single layers, and not for a sheet"),
        ({"colormap": "jetsam"}, "colormap 'jetsam' is unknown"),
        ({"normalise": "log"}, "there is no choice 'normalise' of how to draw: 'normalize'"),
    ],
)
def test_a_wrong_choice_is_refused_before_anything_is_written(tmp_path: Path, choices: Any, message: str) -> None:
    with pytest.raises(PictureError, match=message):
        save_pictures(run_of(LAYERS, *PICTURES), tmp_path / "out", **choices)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("style", STYLES)
def test_threads_write_the_bytes_that_one_writes(tmp_path: Path, style: Style, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = []
    for threads in (1, 8):
        monkeypatch.setattr(os, "cpu_count", lambda count=threads: count)
        heard: list[str] = []
        folder = tmp_path / str(threads)
        save_pictures(run_of(LAYERS, *PICTURES), folder, style=Style(**_fields(style)), progress=heard.append)
        files = {name: hashlib.sha256(data).hexdigest() for name, data in files_below(folder).items()}
        digests.append((files, heard))
    assert digests[0] == digests[1]


def _fields(style: Style) -> dict[str, Any]:
    """Of styles that choose channels, without these: the layers have different numbers of them."""
    return {name: getattr(style, name) for name in Style.__slots__ if name != "channels"}


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), PictureError("no"), KeyboardInterrupt()])
def test_nothing_is_left_when_writing_fails_in_the_middle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, threads: int
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: threads)
    written = []

    def fail(drawing: Drawing, path: Path, **more: Any) -> None:
        written.append(path)
        if len(written) == 5:
            raise error
        write_picture(drawing, path, **more)

    monkeypatch.setattr(gallery, "write_picture", fail)
    expected = OutputError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected):
        save_pictures(run_of(LAYERS, *PICTURES), tmp_path / "new" / "out", save_arrays="npz")
    assert len(written) >= 5
    assert list(tmp_path.iterdir()) == []


def test_what_was_there_before_is_kept_when_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_pictures(run_of(LAYERS, *PICTURES), tmp_path)
    before = files_below(tmp_path)

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gallery, "run_text", fail)
    with pytest.raises(OutputError, match="No space left on device"):
        save_pictures(run_of(LAYERS, *PICTURES), tmp_path, colormap="magma", overwrite=True)
    assert files_below(tmp_path) == before


def test_progress_hears_of_every_file_and_before_it_of_every_layer_that_was_seen(tmp_path: Path) -> None:
    heard: list[str] = []
    save_pictures(one_by_one(), tmp_path / "once", progress=heard.append)
    files = ["01-conv.png", "02-pool.png", "03-dense.png"]
    assert heard == files * 3
    heard.clear()
    save_pictures(one_by_one(), tmp_path / "twice", progress=heard.append, scale_over="batch")
    assert heard == ["conv", "pool", "dense"] * 3 + files * 3


# sheets


def test_a_sheet_is_one_file_for_all_layers_and_pictures(tmp_path: Path) -> None:
    record = save_pictures(run_of(LAYERS, *PICTURES), tmp_path, arrange="sheet")
    assert set(files_below(tmp_path)) == {"sheet.png", "run.json"}
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []
    assert record["sheet"] == "sheet.png"
    assert all("file" not in layer for layer in layers_of(record))


def height_of_sheet(folder: Path, runs: Any, **choices: Any) -> int:
    save_pictures(runs, folder, arrange="sheet", **choices)
    with Image.open(folder / "sheet.png") as image:
        return image.height


def test_a_sheet_of_hand_made_features_has_a_row_for_each_layer(tmp_path: Path) -> None:
    one = {name: values[:1] for name, values in LAYERS.items()}
    assert run_of(one).layers == ()
    alone = height_of_sheet(tmp_path / "alone", run_of({"conv": one["conv"]}))
    assert height_of_sheet(tmp_path / "all", run_of(one)) > alone + 100


def test_a_sheet_of_several_runs_has_a_row_for_each_picture(tmp_path: Path) -> None:
    array = LAYERS["conv"]
    runs = [run_of({"conv": array[index : index + 1]}, PICTURES[index]) for index in range(3)]
    whole = height_of_sheet(tmp_path / "whole", run_of({"conv": array}, *PICTURES))
    assert height_of_sheet(tmp_path / "runs", runs) == whole
    assert height_of_sheet(tmp_path / "one", runs[:1]) < whole - 200
