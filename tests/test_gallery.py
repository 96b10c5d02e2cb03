import dataclasses
import errno
import functools
import hashlib
import json
import math
import os
import subprocess
import sys
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import matplotlib as mpl
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import onnxfeat
from onnxfeat.drawing.arrangements import arrange
from onnxfeat.drawing.colormaps import color_table
from onnxfeat.drawing.gallery import save_pictures
from onnxfeat.drawing.pictures import belt, grid, grid_columns
from onnxfeat.errors import OutputError, PictureError
from onnxfeat.preprocessing import Preprocessing
from onnxfeat.records import FeatureMap, Features, Layer, ProviderChoice

save_pictures = functools.partial(save_pictures, frame=False)  # what stands around pictures is in test_painting
PROVIDER = ProviderChoice(asked="auto", got="CPUExecutionProvider", note="no GPU")


def as_map(name: str, array: NDArray[Any], layout: str | None = None) -> FeatureMap:
    layer = Layer(name=name, kind="conv", op_type="Conv", value="v", raw_value="v", layout=layout)
    return FeatureMap(layer=layer, array=np.asarray(array, dtype=np.float32))


def run_of(arrays: Mapping[str, NDArray[Any]], *pictures: str) -> Features:
    return Features(
        maps={name: as_map(name, array) for name, array in arrays.items()},
        pictures=pictures or ("cat.png",),
        preprocessed=(False,) * max(1, len(pictures)),
        model="model.onnx",
        sha256="0" * 64,
        provider=PROVIDER,
        preprocessing=Preprocessing(size=(5, 7), mean=(0.5,)),
        preprocessing_source="caller",
        seconds=0.25,
    )


def noise(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def pixels(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        assert image.mode == "P"
        return np.asarray(image, dtype=np.uint8)


def refuse_constants(name: str) -> NoReturn:
    raise AssertionError(f"{name} is no JSON")


def read_strictly(path: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse_constants)
    return data


@pytest.mark.parametrize("name", ["viridis", "magma", "cividis"])
def test_color_tables_are_those_that_matplotlib_draws_with(name: str) -> None:
    theirs = mpl.colormaps[name](np.arange(256), bytes=True)[:, :3]
    ours = color_table(name)
    assert ours.dtype == np.uint8
    np.testing.assert_array_equal(ours, theirs)


def test_gray_shows_each_level_as_itself() -> None:
    np.testing.assert_array_equal(color_table("gray"), np.arange(256)[:, None].repeat(3, axis=1))


def test_an_unknown_colormap_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match="colormap 'jetsam' is unknown: choose 'viridis', 'magma'"):
        save_pictures(run_of({"conv": noise(1, 2, 3, 4)}), tmp_path / "out", colormap="jetsam")
    assert not (tmp_path / "out").exists()


def test_one_picture_gives_a_file_for_each_layer_and_the_record(tmp_path: Path) -> None:
    run = run_of({"conv2d": noise(1, 3, 4, 5), "max_pooling2d": noise(1, 3, 2, 2)})
    save_pictures(run, tmp_path / "new" / "out")
    assert names(tmp_path / "new" / "out") == ["01-conv2d.png", "02-max_pooling2d.png", "run.json"]
    assert list((tmp_path / "new" / "out").iterdir()) != []
    assert not list((tmp_path / "new" / "out").glob(".*"))


def test_pixel_values_are_the_belt_and_the_palette_is_the_colormap(tmp_path: Path) -> None:
    array = noise(1, 3, 4, 5)
    save_pictures(run_of({"conv": array}), tmp_path, colormap="magma")
    np.testing.assert_array_equal(pixels(tmp_path / "01-conv.png"), belt(array))
    with Image.open(tmp_path / "01-conv.png") as image:
        shown = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(shown, color_table("magma")[belt(array)])


def test_a_picture_of_few_gray_levels_keeps_them(tmp_path: Path) -> None:
    # A palette that a writer shortens to the levels in use must not renumber them.
    array = np.array([[[[1.0, 3.0]]]])
    save_pictures(run_of({"conv": array}), tmp_path)
    assert pixels(tmp_path / "01-conv.png").tolist() == [[64, 192]]


def test_png_files_say_what_they_show(tmp_path: Path) -> None:
    save_pictures(run_of({"卷积/一": noise(1, 3, 4, 5)}), tmp_path)
    with Image.open(tmp_path / "01-卷积_一.png") as image:
        assert image.info["Title"] == "卷积/一"
        assert image.info["Description"].startswith("3 channels of 4 x 5, belt; zscore: mean and standard")
        assert image.info["Software"] == "onnxfeat"


def test_a_belt_as_wide_as_allowed_stays_a_belt_and_one_wider_becomes_a_grid(tmp_path: Path) -> None:
    wide = noise(1, 12, 5, 4)
    save_pictures(run_of({"a": wide}), tmp_path / "belt", max_belt=48)
    save_pictures(run_of({"a": wide}), tmp_path / "grid", max_belt=47)
    as_belt = read_strictly(tmp_path / "belt" / "run.json")["pictures"][0]["layers"][0]
    as_grid = read_strictly(tmp_path / "grid" / "run.json")["pictures"][0]["layers"][0]
    assert as_belt["arrangement"] == "belt"
    assert not {"columns", "gap"} & set(as_belt)
    assert as_grid["arrangement"] == "grid"
    # From what the record says, the channels can be found again.
    columns, gap = as_grid["columns"], as_grid["gap"]
    assert columns == grid_columns(12, 5, 4)
    tiled = pixels(tmp_path / "grid" / "01-a.png")
    np.testing.assert_array_equal(tiled, grid(wide, columns=columns, gap=gap))
    last = pixels(tmp_path / "belt" / "01-a.png")[:, 44:48]
    top, left = 11 // columns * (5 + gap), 11 % columns * (4 + gap)
    np.testing.assert_array_equal(tiled[top : top + 5, left : left + 4], last)


def test_belts_past_4096_pixels_become_grids_by_default(tmp_path: Path) -> None:
    record = save_pictures(run_of({"fits": noise(1, 2048, 1, 2), "not": noise(1, 2048, 7, 7)}), tmp_path)
    assert [layer["arrangement"] for layer in record["pictures"][0]["layers"]] == ["belt", "grid"]
    assert pixels(tmp_path / "01-fits.png").shape == (1, 4096)
    assert pixels(tmp_path / "02-not.png").shape[1] < 4096


def test_the_record_holds_what_is_needed_to_read_and_repeat_the_run(tmp_path: Path) -> None:
    array = noise(1, 3, 4, 5)
    array[0, 1] = 7
    record = save_pictures(run_of({"conv": array}), tmp_path, colormap="cividis")
    assert read_strictly(tmp_path / "run.json") == json.loads(json.dumps(record))
    assert record["schema_version"] == 1
    assert record["model"] == {"file": "model.onnx", "sha256": "0" * 64}
    assert record["provider"] == {"asked": "auto", "got": "CPUExecutionProvider", "note": "no GPU"}
    assert record["preprocessing"]["size"] == [5, 7]
    assert record["preprocessing"]["mean"] == [0.5]
    assert record["preprocessing"]["source"] == "caller"
    assert record["colormap"] == "cividis"
    assert record["versions"]["onnxfeat"] == onnxfeat.__version__
    (picture,) = record["pictures"]
    assert picture["picture"] == "cat.png"
    (layer,) = picture["layers"]
    assert (layer["layer"], layer["file"]) == ("conv", "01-conv.png")
    assert (layer["channels"], layer["height"], layer["width"]) == (3, 4, 5)
    assert layer["constant_channels"] == [1]
    assert layer["not_finite_values"] == 0
    np.testing.assert_allclose(layer["mean"], array.mean(axis=(2, 3), dtype=np.float64)[0], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(layer["deviation"], array.std(axis=(2, 3), dtype=np.float64)[0], rtol=1e-5)


def test_gray_levels_and_record_give_back_the_values(tmp_path: Path) -> None:
    array = noise(1, 2, 6, 6) * 3 + 40
    (layer,) = save_pictures(run_of({"conv": array}), tmp_path)["pictures"][0]["layers"]
    levels = np.stack(np.split(pixels(tmp_path / "01-conv.png"), 2, axis=1)).astype(float)
    deviation, mean = np.array(layer["deviation"])[:, None, None], np.array(layer["mean"])[:, None, None]
    values = (levels - 128) / 64 * deviation + mean
    inside = (levels > 0) & (levels < 255)
    assert inside.mean() > 0.8
    assert np.abs(values - array[0])[inside].max() <= 1.01 * deviation.max() / 64


def test_values_that_are_not_finite_are_counted_and_the_record_stays_json(tmp_path: Path) -> None:
    array = noise(1, 3, 2, 2)
    array[0, 0, 0] = [np.nan, np.inf]
    array[0, 1] = np.nan
    array[0, 2] = [[3e38, -3e38], [3e38, 3e38]]
    save_pictures(run_of({"conv": array}), tmp_path)
    (layer,) = read_strictly(tmp_path / "run.json")["pictures"][0]["layers"]
    assert layer["not_finite_values"] == 6
    assert layer["constant_channels"] == []
    assert all(math.isfinite(number) for number in (*layer["mean"], *layer["deviation"]))
    assert layer["mean"][1] == layer["deviation"][1] == 0


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        save_pictures(run_of({"conv": noise(1, 3, 4, 5), "pool": noise(1, 3, 2, 2)}), tmp_path / folder)
    digests = [
        {name: hashlib.sha256((tmp_path / folder / name).read_bytes()).digest() for name in names(tmp_path / folder)}
        for folder in ("a", "b")
    ]
    assert digests[0] == digests[1]
    assert len(digests[0]) == 3


def test_time_is_not_in_the_record(tmp_path: Path) -> None:
    save_pictures(run_of({"conv": noise(1, 3, 4, 5)}), tmp_path)
    assert "seconds" not in (tmp_path / "run.json").read_text()
    assert str(tmp_path) not in (tmp_path / "run.json").read_text()


def test_several_pictures_have_a_folder_each(tmp_path: Path) -> None:
    array = noise(2, 3, 4, 5)
    record = save_pictures(run_of({"conv": array}, "cat.png", "dog.jpeg"), tmp_path)
    assert names(tmp_path) == ["cat/01-conv.png", "dog/01-conv.png", "run.json"]
    for index, picture in enumerate(record["pictures"]):
        assert picture["layers"][0]["file"] == f"{picture['folder']}/01-conv.png"
        np.testing.assert_array_equal(pixels(tmp_path / picture["layers"][0]["file"]), belt(array, index))


def test_runs_are_drawn_as_they_come(tmp_path: Path) -> None:
    arrays = [noise(1, 3, 4, 5, seed=seed) for seed in range(3)]
    alive = []

    def runs() -> Iterator[Features]:
        for number, array in enumerate(arrays):
            alive.append(number)
            assert done.count("01-conv.png") == number  # the one before is drawn before the next is asked for
            yield run_of({"conv": array}, f"{number}.png")

    done: list[str] = []
    record = save_pictures(runs(), tmp_path, progress=done.append)
    assert alive == [0, 1, 2]
    assert [picture["folder"] for picture in record["pictures"]] == ["0", "1", "2"]
    for number, array in enumerate(arrays):
        np.testing.assert_array_equal(pixels(tmp_path / str(number) / "01-conv.png"), belt(array))


@pytest.mark.parametrize(
    ("pictures", "folders"),
    [
        (["cat.png", "cat.jpg", "cat.gif"], ["cat", "cat_2", "cat_3"]),
        (["a.png", "a_2.png", "a.jpg"], ["a", "a_2", "a_3"]),
        (["a_2.png", "a.png", "a.jpg"], ["a_2", "a", "a_3"]),
        (["Cat.png", "cat.png"], ["Cat", "cat_2"]),  # one folder on Windows and macOS
        (["2.png", "1.png"], ["2", "1"]),
        (["2.moving.png", "picture 1.png"], ["2.moving", "picture_1"]),
        (["run.json", "b.png"], ["run", "b"]),
        (["run.json.png", "b.png"], ["run.json_2", "b"]),
        (["Run.JSON.png", "run.json.png"], ["Run.JSON_2", "run.json_3"]),
        (["..", "../../etc/passwd"], ["layer", "passwd"]),
        (["猫.png", "a b?.png"], ["猫", "a_b_"]),
        (["x.npy[0]", "x.npy[1]"], ["x", "x_2"]),
        (["picture_2", "picture_1"], ["picture_2", "picture_1"]),
        (
            ["CON.png", "nul", "com1.tar.gz", "LPT\u00b9", "aux_", "conv"],
            ["_CON", "_nul", "_com1.tar", "_LPT\u00b9", "aux_", "conv"],
        ),
        (["_con.png", "con.png"], ["_con", "_con_2"]),
        (["-rf.png", "--x"], ["_-rf", "_--x"]),
        (["<script>alert(1)</script>.png", "a\x00b\x1b[2J\r\n.png"], ["script_", "a_b_2J_"]),
        (["C:\\x\\y.png", "\u202egnp.exe"], ["C_x_y", "_gnp"]),
    ],
)
def test_folders_of_pictures_are_told_apart(tmp_path: Path, pictures: list[str], folders: list[str]) -> None:
    arrays = [noise(1, 3, 4, 5, seed=seed) for seed in range(len(pictures))]
    runs = [run_of({"conv": array}, name) for array, name in zip(arrays, pictures, strict=True)]
    record = save_pictures(runs, tmp_path / "out")
    assert [picture["picture"] for picture in record["pictures"]] == pictures
    assert [picture["folder"] for picture in record["pictures"]] == folders
    assert names(tmp_path / "out") == sorted(["run.json", *(f"{folder}/01-conv.png" for folder in folders)])
    for folder, array in zip(folders, arrays, strict=True):
        np.testing.assert_array_equal(pixels(tmp_path / "out" / folder / "01-conv.png"), belt(array))
    assert names(tmp_path) == [f"out/{name}" for name in names(tmp_path / "out")]


@pytest.mark.parametrize(
    ("layer", "file"),
    [
        ("block1/conv2d:0", "01-block1_conv2d_0.png"),
        ("../../etc/passwd", "01-_.._etc_passwd.png"),
        ("C:\\conv", "01-C_conv.png"),
        ("a b\n\t$(rm)", "01-a_b_rm_.png"),
        ("", "01-layer.png"),
        (".", "01-layer.png"),
        ("卷积层", "01-卷积层.png"),
        ("model#2-x.y", "01-model#2-x.y.png"),
        ("CON", "01-CON.png"),
        ("nul.txt", "01-nul.txt.png"),
        ("<script>alert('x')</script>", "01-_script_alert_x_script_.png"),
        ("\x00\x07\x1b[31m\u202e\u2028", "01-_31m_.png"),
        ("/", "01-_.png"),
        ("-rf", "01--rf.png"),
    ],
)
def test_layer_names_become_safe_file_names(tmp_path: Path, layer: str, file: str) -> None:
    record = save_pictures(run_of({layer: noise(1, 3, 4, 5)}), tmp_path / "out")
    assert names(tmp_path) == [f"out/{file}", "out/run.json"]
    assert record["pictures"][0]["layers"][0]["layer"] == layer


@pytest.mark.parametrize("letter", ["x", "é", "层", "🐈"])
def test_long_names_are_shortened_and_stay_apart(tmp_path: Path, letter: str) -> None:
    layers = {letter * 10_000: noise(2, 2, 2, 2), letter * 9_999: noise(2, 2, 2, 2)}
    record = save_pictures(run_of(layers, letter * 300, letter * 301), tmp_path)
    files = names(tmp_path)
    assert len(files) == 5
    assert max(len(part.encode()) for file in files for part in file.split("/")) <= 200
    assert [layer["layer"] for layer in record["pictures"][0]["layers"]] == list(layers)
    with Image.open(tmp_path / record["pictures"][0]["layers"][0]["file"]) as image:
        assert len(image.info["Title"]) == 1000  # run.json has the name whole


def test_names_that_are_equal_after_cleaning_stay_apart(tmp_path: Path) -> None:
    arrays = {name: noise(1, 1, 2, 2, seed=seed) for seed, name in enumerate(["a/b", "a:b", "a b", "A_B", "a_b"])}
    record = save_pictures(run_of(arrays), tmp_path)
    files = ["01-a_b.png", "02-a_b.png", "03-a_b.png", "04-A_B.png", "05-a_b.png"]
    assert names(tmp_path) == [*files, "run.json"]
    assert [layer["file"] for layer in record["pictures"][0]["layers"]] == files
    for file, array in zip(files, arrays.values(), strict=True):
        np.testing.assert_array_equal(pixels(tmp_path / file), belt(array))


@pytest.mark.parametrize("name", ["a\x00b", "\x1b]0;owned\x07", "caf\udce9", "\u009b2J"])
def test_names_with_control_characters_do_no_harm_in_texts(tmp_path: Path, name: str) -> None:
    save_pictures(run_of({name: noise(1, 2, 2, 2)}), tmp_path)
    assert read_strictly(tmp_path / "run.json")["pictures"][0]["layers"][0]["layer"] == name
    (file,) = tmp_path.glob("*.png")
    with Image.open(file) as image:
        title = image.info["Title"]
    assert len(title) == len(name)
    assert "\ufffd" in title
    assert not any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in title)


def test_hundreds_of_pictures_of_one_name_are_told_apart(tmp_path: Path) -> None:
    runs = (run_of({"conv": np.zeros((1, 1, 1, 2))}, "x.png") for _ in range(300))
    record = save_pictures(runs, tmp_path)
    assert [picture["folder"] for picture in record["pictures"]] == ["x", *(f"x_{number}" for number in range(2, 301))]


def test_a_map_of_absurd_size_is_drawn_as_far_as_a_picture_goes(tmp_path: Path) -> None:
    run = run_of({})
    layer = Layer(name="conv", kind="conv", op_type="Conv", value="v", raw_value="v")
    absurd = FeatureMap(layer=layer, array=np.broadcast_to(np.float32(1), (1, 2_000, 1, 100_000)))  # as 800 MB
    (entry,) = save_pictures(dataclasses.replace(run, maps={"conv": absurd}), tmp_path)["pictures"][0]["layers"]
    assert (entry["channels"], entry["channels_drawn"], entry["cells_per_pixel"]) == (2_000, 1790, 2)
    with pytest.warns(Image.DecompressionBombWarning):  # twice that size it would be an error
        image = Image.open(tmp_path / "01-conv.png")
    with image:
        assert max(image.size) <= 65_535
        assert image.info["Description"].startswith("2,000 channels of 1 x 100000, grid, the first 1,790 of 2,000 ch")


def test_files_sort_in_order_of_execution_past_99_layers(tmp_path: Path) -> None:
    layers = [f"conv_{number}" for number in range(101, 0, -1)]
    save_pictures(run_of({layer: noise(1, 1, 2, 2) for layer in layers}), tmp_path)
    assert [name[4:-4] for name in names(tmp_path)[:-1]] == layers


def test_names_of_pictures_that_are_no_utf8_do_no_harm(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    save_pictures([run_of({"conv": noise(1, 2, 2, 2)}, name), run_of({"conv": noise(1, 2, 2, 2)}, "b")], tmp_path)
    assert read_strictly(tmp_path / "run.json")["pictures"][0]["picture"] == name
    assert names(tmp_path) == ["b/01-conv.png", "caf_/01-conv.png", "run.json"]


def test_one_number_a_channel_is_drawn_as_a_row(tmp_path: Path) -> None:
    record = save_pictures(run_of({"gap": np.arange(4).reshape(1, 4, 1, 1)}), tmp_path)
    layer = record["pictures"][0]["layers"][0]
    assert (layer["channels"], layer["height"], layer["width"]) == (1, 1, 4)
    assert layer["mean"] == [1.5]
    row = pixels(tmp_path / "01-gap.png")
    assert row.shape == (1, 4)
    assert (np.diff(row[0].astype(int)) > 0).all()


def test_progress_hears_each_file(tmp_path: Path) -> None:
    heard: list[str] = []
    save_pictures(run_of({"a": noise(1, 2, 2, 2), "b": noise(1, 2, 2, 2)}), tmp_path, progress=heard.append)
    assert heard == ["01-a.png", "02-b.png"]


def test_a_map_that_is_no_picture_is_left_out_with_the_reason(tmp_path: Path) -> None:
    run = run_of({"boxes": np.zeros((1, 4, 0)), "conv": noise(1, 2, 3, 4), "six": np.zeros((1, 2, 2, 2, 2, 2))})
    record = save_pictures(run, tmp_path)
    assert names(tmp_path) == ["02-conv.png", "run.json"]
    assert read_strictly(tmp_path / "run.json")["left_out"] == record["left_out"]
    assert record["left_out"] == {
        "boxes": "its map of shape (1, 4, 0) is empty",
        "six": "its map has shape (1, 2, 2, 2, 2, 2), and pictures are of (N, C) and one to three spatial axes",
    }


def test_nothing_that_can_be_drawn_is_an_error_with_the_reasons_and_leaves_nothing_behind(tmp_path: Path) -> None:
    maps = {f"boxes_{number}": np.zeros((1, 4, 0)) for number in range(6)}
    run = dataclasses.replace(run_of(maps), left_out={"If_3": "it is inside an If body"})
    expected = (
        r"none of the 7 layers can be drawn \('If_3': it is inside an If body; 'boxes_0': its map of .*and 2 more"
    )
    with pytest.raises(PictureError, match=expected):
        save_pictures(run, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("layout", "shape", "arrangement", "text"),
    [
        ("NCW", (1, 4, 10_000), "strip", "4 channels of 1 x 10000, strip, each pixel is the mean of 3 cells; zscore"),
        ("NDHWC", (1, 2, 40, 3, 3), "slices", "2 channels of 40 x 3 x 3, slices, 16 of 40 slices; zscore"),
        ("NTC", (1, 6, 17), "belt", "6 channels of 4 x 4, belt, first token left out; zscore"),
    ],
)
def test_maps_of_other_axes_are_drawn_and_what_is_left_out_is_said(
    tmp_path: Path, layout: str, shape: tuple[int, ...], arrangement: str, text: str
) -> None:
    maps = {"layer": as_map("layer", noise(*shape), layout)}
    (layer,) = save_pictures(dataclasses.replace(run_of({}), maps=maps), tmp_path)["pictures"][0]["layers"]
    assert layer["arrangement"] == arrangement
    np.testing.assert_array_equal(pixels(tmp_path / "01-layer.png"), arrange(maps["layer"]).levels)
    with Image.open(tmp_path / "01-layer.png") as image:
        assert image.info["Description"].startswith(text)
    assert len(layer["mean"]) == shape[1]


def test_the_share_of_saturated_values_is_recorded_where_it_is_known(tmp_path: Path) -> None:
    maps = {
        "int8": dataclasses.replace(as_map("int8", noise(1, 2, 3, 4)), saturated=1 / 3),
        "unsaturated": dataclasses.replace(as_map("unsaturated", noise(1, 2, 3, 4)), saturated=0.0),
        "float": as_map("float", noise(1, 2, 3, 4)),
    }
    layers = save_pictures(dataclasses.replace(run_of({}), maps=maps), tmp_path)["pictures"][0]["layers"]
    assert [layer.get("saturated") for layer in layers] == [0.333333, 0.0, None]
    assert "saturated" not in layers[2]


def parts_of(arrays: Mapping[str, NDArray[Any]], pictures: list[str], passes: list[list[str]]) -> list[Features]:
    """The run of some pictures, cut into one part for each picture and each pass over some of the layers."""
    parts = []
    for layers in passes:
        for index, picture in enumerate(pictures):
            part = run_of({name: arrays[name][index : index + 1] for name in layers}, picture)
            parts.append(dataclasses.replace(part, layers=tuple(arrays), first=index))
    return parts


LAYERS = {"conv": noise(3, 3, 4, 5), "pool": noise(3, 3, 2, 2, seed=1), "conv_2": noise(3, 7, 2, 2, seed=2)}


@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1), [4, 0, 5, 1, 3, 2]])
@pytest.mark.parametrize("passes", [[["conv", "pool"], ["conv_2"]], [["conv_2"], ["pool", "conv"]]])
@pytest.mark.parametrize("pictures", [["a.png", "b.png", "c.png"], ["a.png", "a.jpg", "a.png"]])
def test_parts_of_one_run_give_the_files_of_the_whole_in_any_order(
    tmp_path: Path, pictures: list[str], passes: list[list[str]], order: slice | list[int]
) -> None:
    save_pictures(run_of(LAYERS, *pictures), tmp_path / "whole")
    parts = np.array(parts_of(LAYERS, pictures, passes), dtype=object)[order].tolist()
    save_pictures(iter(parts), tmp_path / "parts")
    assert names(tmp_path / "parts") == names(tmp_path / "whole")
    for name in names(tmp_path / "whole"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_parts_of_one_picture_lie_at_the_top(tmp_path: Path) -> None:
    arrays = {name: array[:1] for name, array in LAYERS.items()}
    record = save_pictures(iter(parts_of(arrays, ["a.png"], [["pool"], ["conv_2"], ["conv"]])), tmp_path)
    assert names(tmp_path) == ["01-conv.png", "02-pool.png", "03-conv_2.png", "run.json"]
    (picture,) = record["pictures"]
    assert [layer["layer"] for layer in picture["layers"]] == ["conv", "pool", "conv_2"]


def test_a_part_may_hold_several_pictures(tmp_path: Path) -> None:
    save_pictures(run_of(LAYERS, "a.png", "b.png", "c.png"), tmp_path / "whole")
    parts = []
    for layers in (["conv", "pool"], ["conv_2"]):
        for first, last in ((0, 2), (2, 3)):
            part = run_of({name: LAYERS[name][first:last] for name in layers}, *["a.png", "b.png", "c.png"][first:last])
            parts.append(dataclasses.replace(part, layers=tuple(LAYERS), first=first))
    save_pictures(parts, tmp_path / "parts")
    for name in names(tmp_path / "whole"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_runs_of_the_same_picture_stay_apart(tmp_path: Path) -> None:
    arrays = {name: array[:1] for name, array in LAYERS.items()}
    once = parts_of(arrays, ["a.png"], [["conv", "pool"], ["conv_2"]])
    other = [dataclasses.replace(part, sha256="1" * 64) for part in once]
    whole = [dataclasses.replace(run_of(arrays, "a.png"), layers=tuple(arrays))]
    record = save_pictures([*once, *once, *other, *whole, *whole, run_of(arrays, "a.png")], tmp_path)
    assert [picture["folder"] for picture in record["pictures"]] == ["a", "a_2", "a_3", "a_4", "a_5", "a_6"]
    assert {len(picture["layers"]) for picture in record["pictures"]} == {3}


def test_a_part_of_another_model_or_of_other_layers_begins_a_picture_of_its_own(tmp_path: Path) -> None:
    conv = dataclasses.replace(run_of({"conv": noise(1, 1, 2, 2)}, "a.png"), layers=("conv", "pool"))
    pool = dataclasses.replace(run_of({"pool": noise(1, 1, 2, 2)}, "a.png"), layers=("conv", "pool"))
    other_model = dataclasses.replace(pool, sha256="1" * 64)
    other_layers = dataclasses.replace(conv, layers=("conv", "norm"), sha256="1" * 64)
    record = save_pictures([conv, pool, other_model, other_layers], tmp_path)
    drawn = [[layer["layer"] for layer in picture["layers"]] for picture in record["pictures"]]
    assert drawn == [["conv", "pool"], ["pool"], ["conv"]]


def test_layers_that_were_left_out_are_recorded_and_keep_their_number(tmp_path: Path) -> None:
    parts = parts_of(LAYERS, ["a.png", "b.png", "c.png"], [["conv"], ["conv_2"]])
    parts[3] = dataclasses.replace(parts[3], left_out={"pool": "its type is unknown"})
    record = save_pictures(parts, tmp_path)
    assert record["left_out"] == {"pool": "its type is unknown"}
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["01-conv.png", "03-conv_2.png"]


def test_a_picture_without_maps_beside_others_needs_a_reason(tmp_path: Path) -> None:
    runs = [run_of({"conv": noise(1, 1, 2, 2)}, "a.png"), run_of({"conv": np.zeros((1, 1, 0, 2))}, "b.png")]
    record = save_pictures(runs, tmp_path)
    assert names(tmp_path) == ["a/01-conv.png", "run.json"]
    assert [len(picture["layers"]) for picture in record["pictures"]] == [1, 0]
    assert record["left_out"] == {"conv": "its map of shape (1, 1, 0, 2) is empty"}


def test_the_maps_of_a_part_are_freed_before_the_next_is_asked_for(tmp_path: Path) -> None:
    freed = []

    def parts() -> Iterator[Features]:
        for seed in range(3):
            part = run_of({"conv": noise(1, 3, 4, 5, seed=seed)}, f"{seed}.png")
            maps = weakref.ref(part["conv"].array)
            yield part
            del part
            freed.append(maps() is None)

    save_pictures(parts(), tmp_path)
    assert freed == [True, True, True]


MEMORY_OF_DRAWING = """
import dataclasses, sys
from pathlib import Path
import numpy as np
from onnxfeat.drawing.gallery import save_pictures
from measuring import peak
from test_gallery import as_map, run_of

folder, layout, *shape = sys.argv[1:]
save_pictures(run_of({"conv": np.zeros((1, 2, 3, 4))}), Path(folder, "small"))  # what is imported and kept once
array = np.empty([int(side) for side in shape], np.float32)
np.random.default_rng(0).standard_normal(out=array, dtype=np.float32)
run = dataclasses.replace(run_of({}), maps={"conv": as_map("conv", array, layout)})
before = peak()
save_pictures(run, Path(folder, "large"))
print((peak() - before) / array.nbytes)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not tell the peak this way")
@pytest.mark.parametrize(
    ("layout", "shape"),
    [
        ("NCHW", (1, 160, 500, 500)),
        ("NCHW", (1, 1, 6400, 6250)),
        ("NCW", (1, 8000, 5000)),
        ("NTC", (1, 400, 100_001)),
        ("NCDHW", (1, 10, 40, 320, 312)),
    ],
)
def test_drawing_takes_little_memory_beside_the_map(tmp_path: Path, layout: str, shape: tuple[int, ...]) -> None:
    # 160 MB of map. Levels and tiles are a quarter of it each; a copy of the map would make it more than 1.
    arguments = [str(tmp_path), layout, *(str(side) for side in shape)]
    result = subprocess.run(
        [sys.executable, "-c", MEMORY_OF_DRAWING, *arguments],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent,
    )
    assert float(result.stdout) < 0.75


def test_a_run_that_fails_later_leaves_nothing_behind(tmp_path: Path) -> None:
    def runs() -> Iterator[Features]:
        yield run_of({"conv": noise(1, 2, 3, 4)})
        raise PictureError("the second picture is damaged")

    with pytest.raises(PictureError, match="the second picture is damaged"):
        save_pictures(runs(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("runs", [[], [run_of({})], [run_of({"conv": noise(1, 1, 2, 2)}), run_of({})]])
def test_nothing_to_draw_is_refused(tmp_path: Path, runs: list[Features]) -> None:
    with pytest.raises(PictureError, match="there is no map to draw"):
        save_pictures(runs, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_run_is_kept_and_noticed_before_the_work(tmp_path: Path) -> None:
    save_pictures(run_of({"conv": noise(1, 2, 3, 4)}), tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}

    def runs() -> Iterator[Features]:
        pytest.fail("the work began although its result can't be kept")
        yield

    with pytest.raises(OutputError, match=r"run\.json exists already and is left as it is: choose another folder"):
        save_pictures(runs(), tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before


def test_a_picture_of_that_name_is_kept(tmp_path: Path) -> None:
    (tmp_path / "01-conv.png").write_text("mine")
    with pytest.raises(OutputError, match=r"01-conv\.png exists already and is left as it is"):
        save_pictures(run_of({"conv": noise(1, 2, 3, 4)}), tmp_path)
    assert names(tmp_path) == ["01-conv.png"]
    assert (tmp_path / "01-conv.png").read_text() == "mine"


def test_an_earlier_run_is_replaced_when_told_to_and_other_files_stay(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    save_pictures(run_of({"conv": noise(1, 2, 3, 4)}), tmp_path)
    array = noise(1, 5, 3, 4)
    save_pictures(run_of({"conv": array}), tmp_path, overwrite=True)
    np.testing.assert_array_equal(pixels(tmp_path / "01-conv.png"), belt(array))
    assert names(tmp_path) == ["01-conv.png", "notes.txt", "run.json"]


def test_a_file_where_the_folder_should_be_is_kept(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(OutputError, match="out is a file, and a folder is to be written there"):
        save_pictures(run_of({"conv": noise(1, 2, 3, 4)}), tmp_path / "out", overwrite=True)
    assert (tmp_path / "out").read_text() == "mine"


def test_a_full_disk_is_an_output_error_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save(*_: object, **__: object) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Image.Image, "save", save)
    with pytest.raises(OutputError, match="out can't be written: No space left on device; free some space"):
        save_pictures(run_of({"conv": noise(1, 2, 3, 4)}), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_maps_are_not_changed_by_drawing(tmp_path: Path) -> None:
    array = noise(1, 3, 4, 5)
    run = run_of({"conv": array})
    save_pictures(run, tmp_path)
    np.testing.assert_array_equal(run["conv"].array, array)
    assert run["conv"].shape == (1, 3, 4, 5)
