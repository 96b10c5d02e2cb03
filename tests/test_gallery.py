import errno
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import matplotlib as mpl
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import onnxfeat
from onnxfeat.colormaps import color_table
from onnxfeat.errors import OutputError, PictureError
from onnxfeat.gallery import save_pictures
from onnxfeat.pictures import belt, grid, grid_columns
from onnxfeat.records import FeatureMap, Features, Layer, Preprocessing, ProviderChoice

PROVIDER = ProviderChoice(asked="auto", got="CPUExecutionProvider", note="no GPU")


def as_map(name: str, array: NDArray[Any]) -> FeatureMap:
    layer = Layer(name=name, kind="conv", op_type="Conv", value="v", raw_value="v")
    return FeatureMap(layer=layer, array=np.array(array, dtype=np.float32))


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
    with pytest.raises(PictureError, match="colormap 'jet' is unknown: choose 'viridis', 'magma', 'cividis' or 'gray'"):
        save_pictures(run_of({"conv": noise(1, 2, 3, 4)}), tmp_path / "out", colormap="jet")
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
        assert image.info["Description"].startswith("3 channels of 4 x 5, belt; zscore per channel: level 128 = mean")
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
    ],
)
def test_layer_names_become_safe_file_names(tmp_path: Path, layer: str, file: str) -> None:
    record = save_pictures(run_of({layer: noise(1, 3, 4, 5)}), tmp_path / "out")
    assert names(tmp_path) == [f"out/{file}", "out/run.json"]
    assert record["pictures"][0]["layers"][0]["layer"] == layer


@pytest.mark.parametrize("letter", ["x", "é", "层", "🐈"])
def test_long_layer_names_are_shortened_and_stay_apart(tmp_path: Path, letter: str) -> None:
    save_pictures(run_of({letter * 409: noise(1, 2, 2, 2), letter * 408: noise(1, 2, 2, 2)}, letter * 300), tmp_path)
    files = names(tmp_path)
    assert len(files) == 3
    assert max(len(file.encode()) for file in files) <= 255


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


def test_a_map_that_is_no_picture_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match="layer 'speech' has shape"):
        save_pictures(run_of({"conv": noise(1, 2, 3, 4), "speech": noise(1, 2, 7)}), tmp_path / "out")
    assert names(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


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
