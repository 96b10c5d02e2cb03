"""Animations of maps: one scale and one order for all frames, the very pixels, memory that does not grow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from measuring import on_linux
from numpy.typing import NDArray
from PIL import Image

from onnxfeat import FeatureExtractor, FeatureMap, Features, Frames, Layer, Style, save_animation
from onnxfeat.drawing.painting import paint
from onnxfeat.errors import MissingPackageError, OutputError, PictureError
from onnxfeat.preprocessing import Preprocessing
from onnxfeat.records import ProviderChoice

RNG = np.random.default_rng(3)
ROOT = Path(__file__).parent.parent
# A colormap in which colors are levels.
GRAY: Any = {"colormap": "gray", "frame": False}


def layer(name: str) -> Layer:
    return Layer(name=name, kind="conv", op_type="Conv", value=name, raw_value=name, layout="NCHW")


def part(maps: dict[str, NDArray[Any]], *, first: int = 0, layers: tuple[str, ...] = ()) -> Features:
    """Return the maps of one run or of a part of one."""
    count = len(next(iter(maps.values())))
    return Features(
        maps={name: FeatureMap(layer=layer(name), array=array.astype(np.float32)) for name, array in maps.items()},
        pictures=tuple(f"frame {first + index}" for index in range(count)),
        preprocessed=(False,) * count,
        model="m.onnx",
        sha256="0" * 64,
        provider=ProviderChoice(asked="cpu", got="CPUExecutionProvider"),
        preprocessing=Preprocessing(),
        preprocessing_source="default",
        seconds=0.0,
        layers=layers or tuple(maps),
        first=first,
    )


def clip(count: int, *shape: int, name: str = "conv") -> list[Features]:
    """Return parts of one picture each, ever larger in value."""
    return [part({name: RNG.normal(index, 1 + index, (1, *shape))}, first=index) for index in range(count)]


def frames_of(path: Path) -> list[NDArray[np.uint8]]:
    """Return the frames of a GIF or WebP as Pillow shows them."""
    found = []
    with Image.open(path) as image:
        for index in range(image.n_frames):  # type: ignore[attr-defined]
            image.seek(index)
            found.append(np.asarray(image.convert("RGB")))
    return found


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    count=st.integers(1, 5),
    channels=st.integers(1, 6),
    suffix=st.sampled_from(["gif", "webp"]),
    normalize=st.sampled_from(["zscore", "minmax", "symmetric"]),
)
def test_levels_are_those_of_all_frames_together(
    tmp_path: Path, count: int, channels: int, suffix: Any, normalize: Any
) -> None:
    runs = clip(count, channels, 5, 7)
    save_animation(runs, tmp_path, format=suffix, normalize=normalize, overwrite=True, **GRAY)
    everything = np.concatenate([run["conv"].array for run in runs]).astype(np.float64)
    low, high = {
        "zscore": (everything.mean() - 2 * everything.std(), everything.mean() + 2 * everything.std()),
        "minmax": (everything.min(), everything.max()),
        "symmetric": (-np.abs(everything).max(), np.abs(everything).max()),
    }[normalize]
    expected = np.clip(np.floor((everything - low) / (high - low) * 256), 0, 255)
    found = frames_of(tmp_path / f"01-conv.{suffix}")
    assert len(found) == count
    for picture, wanted in zip(found, expected, strict=True):
        belt = picture[..., 0].astype(int).reshape(5, channels, 7).transpose(1, 0, 2)
        assert np.abs(belt - wanted).max() <= 1  # rounding at the border of two levels


@pytest.mark.parametrize("suffix", ["gif", "webp"])
@pytest.mark.parametrize("choices", [{}, {"arrange": "grid", "hidpi": True}, {"frame": False, "zoom": 3}])
def test_frames_have_the_very_pixels_that_are_painted(tmp_path: Path, suffix: Any, choices: Any) -> None:
    runs = clip(3, 6, 8, 10)
    save_animation(runs, tmp_path, format=suffix, normalize="minmax", **choices)
    whole = FeatureMap(layer=layer("conv"), array=np.concatenate([run["conv"].array for run in runs]))
    style = Style(normalize="minmax", scale_over="batch", **choices)
    for index, found in enumerate(frames_of(tmp_path / f"01-conv.{suffix}")):
        painted = paint(whole, index, style=style)
        np.testing.assert_array_equal(found, np.asarray(painted.image().convert("RGB")))


def test_the_same_value_has_the_same_color_in_all_frames(tmp_path: Path) -> None:
    values = np.zeros((4, 1, 2, 4))
    values[:, 0, 0, 0] = [1, 5, -3, 20]
    values[:, 0, 1, 3] = 2
    save_animation(part({"conv": values}), tmp_path, frame=False)
    found = frames_of(tmp_path / "01-conv.gif")
    assert len({tuple(picture[1, 3]) for picture in found}) == 1
    assert len({tuple(picture[0, 1]) for picture in found}) == 1
    assert len({tuple(picture[0, 0]) for picture in found}) == 4


def test_channels_keep_their_places_in_the_order_of_all_frames(tmp_path: Path) -> None:
    """Frame by frame another channel is the strongest; over all it is the last."""
    strength = np.array([[9, 1, 6], [1, 9, 7], [2, 2, 8]])
    cells = np.array([[-1.0, 1.0], [1.0, -1.0]])
    runs = [part({"conv": strength[i][None, :, None, None] * cells}, first=i) for i in range(3)]
    save_animation(runs, tmp_path, order="magnitude", normalize="minmax", **GRAY)
    for index, picture in enumerate(frames_of(tmp_path / "01-conv.gif")):
        belt = picture[..., 0].astype(int).reshape(2, 3, 2)
        spans = [int(belt[:, place].max() - belt[:, place].min()) for place in range(3)]
        assert np.array_equal(np.argsort(spans, kind="stable"), np.argsort(strength[index][[2, 0, 1]], kind="stable"))
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["layers"][0]["channel_order"] == [2, 0, 1]


def test_constant_is_what_is_so_in_all_frames(tmp_path: Path) -> None:
    values = RNG.normal(size=(3, 4, 4, 4))
    values[:, 1] = 0  # dead
    values[0, 2] = 0  # at first
    values[:, 3] = np.array([1, 2, 3])[:, None, None]  # flat in each frame, another value in each
    record = save_animation([part({"conv": values[[i]]}, first=i) for i in range(3)], tmp_path, dead="omit")
    assert record["layers"][0]["constant_channels"] == [1]
    assert record["layers"][0]["dead_channels"] == [1]
    assert record["layers"][0]["channel_order"] == [0, 2, 3]


def test_the_statistics_are_those_of_all_frames_together(tmp_path: Path) -> None:
    runs = [*clip(3, 4, 6, 6), part({"conv": RNG.normal(9, 5, (3, 4, 6, 6))}, first=3)]  # also several at once
    entry = save_animation(runs, tmp_path)["layers"][0]
    everything = np.concatenate([run["conv"].array for run in runs]).astype(np.float64)
    np.testing.assert_allclose(entry["mean"], everything.mean(axis=(0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(entry["deviation"], everything.std(axis=(0, 2, 3)), rtol=1e-5)
    assert entry["frames"] == len(frames_of(tmp_path / entry["file"])) == 6


def test_the_frame_around_is_the_same_whatever_a_frame_holds(tmp_path: Path) -> None:
    values = RNG.normal(size=(4, 3, 6, 6))
    values[1, 0, 0, 0], values[2, 1], values[3, 2, 1, 1] = np.nan, 0, np.inf
    save_animation([part({"conv": values[[i]]}, first=i) for i in range(4)], tmp_path)
    found = frames_of(tmp_path / "01-conv.gif")
    assert len({picture.shape for picture in found}) == 1
    changed = np.any([picture != found[0] for picture in found], axis=(0, 3))
    rows = np.nonzero(changed.any(axis=1))[0]
    below = found[0][rows.max() + 4 :]
    assert (below != 255).any()  # there is a legend, and it never changes


def test_reductions_move_too(tmp_path: Path) -> None:
    runs = clip(3, 5, 6, 6)
    save_animation(runs, tmp_path, reduce="mean", zoom=1, normalize="minmax", **GRAY)
    means = np.array([run["conv"].array[0].mean(axis=0) for run in runs]).astype(np.float64)
    expected = np.clip(np.floor((means - means.min()) / (means.max() - means.min()) * 256), 0, 255)
    for picture, wanted in zip(frames_of(tmp_path / "01-conv.gif"), expected, strict=True):
        assert np.abs(picture[..., 0].astype(int) - wanted).max() <= 1


def test_principal_components_share_their_basis_and_need_more_colors_than_gif_has(tmp_path: Path) -> None:
    runs = clip(3, 5, 6, 6)
    save_animation(runs, tmp_path, reduce="pca", format="webp")
    assert len(frames_of(tmp_path / "01-conv.webp")) == 3
    with pytest.raises(PictureError, match="more than 256 colors, which GIF can't: choose webp or mp4"):
        save_animation(runs, tmp_path / "gif", reduce="pca")
    assert not (tmp_path / "gif").exists()


@pytest.mark.parametrize("shape", [(4, 12), (3, 4, 5, 6), (7, 1, 1)])
def test_maps_of_other_axes_move_too(tmp_path: Path, shape: tuple[int, ...]) -> None:
    record = save_animation(clip(3, *shape), tmp_path)
    assert len(frames_of(tmp_path / record["layers"][0]["file"])) == 3


def in_passes(count: int) -> list[Features]:
    """Return the parts of a run of two layers, all pictures of the first layer before the second."""
    return [
        part({name: RNG.normal(index, 1, (1, 4, 6, 6))}, first=index, layers=("a", "b"))
        for name in ("a", "b")
        for index in range(count)
    ]


def test_parts_of_several_passes_become_a_file_for_each_layer(tmp_path: Path) -> None:
    record = save_animation(in_passes(3), tmp_path)
    assert [(x["layer"], x["file"], x["frames"]) for x in record["layers"]] == [
        ("a", "01-a.gif", 3),
        ("b", "02-b.gif", 3),
    ]
    assert [x["picture"] for x in record["frames"]] == ["frame 0", "frame 1", "frame 2"]
    assert [len(frames_of(tmp_path / x["file"])) for x in record["layers"]] == [3, 3]


def test_a_sheet_shows_all_layers_in_each_frame(tmp_path: Path) -> None:
    runs = [
        part({"a": RNG.normal(i, 1, (1, 4, 6, 6)), "b": RNG.normal(0, 1 + i, (1, 70, 9, 9))}, first=i) for i in range(3)
    ]
    record = save_animation(runs, tmp_path, arrange="sheet")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.json", "sheet.gif"]
    assert {x["file"] for x in record["layers"]} == {"sheet.gif"}
    found = frames_of(tmp_path / "sheet.gif")
    assert len(found) == 3
    assert len({picture.tobytes() for picture in found}) == 3


def test_a_sheet_of_maps_that_come_in_parts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match=r"come in parts, .* raise max_bytes, choose fewer layers, or arrange"):
        save_animation(in_passes(2), tmp_path / "maps", arrange="sheet")
    assert not (tmp_path / "maps").exists()


@pytest.mark.parametrize("suffix", ["gif", "webp", "mp4"])
def test_a_clip_becomes_a_clip(tmp_path: Path, models: Path, suffix: Any) -> None:
    if suffix == "mp4":
        pytest.importorskip("av")
    shades = [Image.fromarray(RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)) for _ in range(4)]
    shades[0].save(tmp_path / "clip.gif", save_all=True, append_images=shades[1:], duration=[40, 60, 80, 100])
    source = Frames(tmp_path / "clip.gif")
    extractor = FeatureExtractor(models / "shapes_small.onnx", layers="pool_1,conv_5", provider="cpu")
    record = save_animation(extractor.stream(source), tmp_path / "maps", format=suffix)
    assert record == json.loads((tmp_path / "maps/run.json").read_text())
    assert record["frames"] == [{"picture": f"clip.gif[{i}]", "duration": 40.0 + 20 * i} for i in range(4)]
    for name in ("01-pool_1", "02-conv_5"):
        found = list(Frames(tmp_path / f"maps/{name}.{suffix}").frames())
        assert [frame.duration for frame in found] == [40, 60, 80, 100]
    again = save_animation(extractor.stream(source), tmp_path / "maps", format=suffix, overwrite=True, duration=500)
    assert {x["duration"] for x in again["frames"]} == {500.0}


def test_the_same_frames_give_the_same_bytes(tmp_path: Path) -> None:
    runs = clip(3, 4, 6, 6)
    for name in ("a", "b"):
        save_animation(runs, tmp_path / name, format="webp")
    a, b = (sorted((tmp_path / name).iterdir()) for name in ("a", "b"))
    assert [path.read_bytes() for path in a] == [path.read_bytes() for path in b]


def test_progress_tells_each_layer_when_it_was_measured_and_when_it_was_drawn(tmp_path: Path) -> None:
    told: list[str] = []
    save_animation(in_passes(3), tmp_path, progress=told.append)
    assert told == ["a"] * 3 + ["b"] * 3 + ["a"] * 3 + ["b"] * 3


def test_pictures_of_several_sizes_are_refused_with_the_way_out(tmp_path: Path) -> None:
    runs = [*clip(1, 4, 6, 6), part({"conv": np.ones((1, 4, 6, 8))}, first=1)]
    message = r"the map of 'conv' has shape \(4, 6, 8\) for frame 1, \(4, 6, 6\) for those before, .*set the size"
    with pytest.raises(PictureError, match=message):
        save_animation(runs, tmp_path / "maps")
    assert not (tmp_path / "maps").exists()


def test_what_can_not_be_drawn_is_left_out_with_the_reason(tmp_path: Path) -> None:
    runs = [part({"conv": RNG.normal(size=(1, 2, 3, 3)), "none": np.zeros((1, 2, 0, 3))}, first=i) for i in range(2)]
    record = save_animation(runs, tmp_path / "maps")
    assert [x["layer"] for x in record["layers"]] == ["conv"]
    assert "is empty" in record["left_out"]["none"]
    with pytest.raises(PictureError, match=r"there is no map to draw \('none': .* is empty\): choose other layers"):
        save_animation([part({"none": np.zeros((1, 2, 0, 3))})], tmp_path / "other")
    with pytest.raises(PictureError, match="there is no map to draw: choose other layers"):
        save_animation([], tmp_path / "other")


def test_wrong_choices_are_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_run() -> Iterator[Features]:
        pytest.fail("it ran")
        yield

    class Runs:
        def __iter__(self) -> Iterator[Features]:
            return no_run()

    with pytest.raises(PictureError, match="an iterator, which gives them only once"):
        save_animation(iter([]), tmp_path / "maps")
    with pytest.raises(PictureError, match="format 'avi' is unknown: choose 'gif', 'webp' or 'mp4'"):
        save_animation(Runs(), tmp_path / "maps", format="avi")  # type: ignore[arg-type]
    for duration in (0, -1, float("nan")):
        with pytest.raises(PictureError, match="ms for each frame: pass a number above 0"):
            save_animation(Runs(), tmp_path / "maps", duration=duration)
    with pytest.raises(PictureError, match="an overlay on the photograph can't be animated"):
        save_animation(Runs(), tmp_path / "maps", overlay=True)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingPackageError, match=r'onnxfeat\[video\]"'):
        save_animation(Runs(), tmp_path / "maps", format="mp4")
    (tmp_path / "run.json").write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        save_animation(Runs(), tmp_path)


def test_an_accident_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    class Failing:
        def __init__(self) -> None:
            self.passes = 0

        def __iter__(self) -> Iterator[Features]:
            self.passes += 1
            yield from clip(2, 4, 6, 6)
            if self.passes == 2:
                raise PictureError("the third is damaged")
            yield from clip(1, 4, 6, 6)

    for suffix in ("gif", "mp4"):
        with pytest.raises(PictureError, match="the third is damaged"):
            save_animation(Failing(), tmp_path / "maps", format=suffix)
        assert not (tmp_path / "maps").exists()


def peak(path: Path, count: int, suffix: str) -> int:
    """Return the largest memory of a process that makes an animation of so many frames."""
    code = f"""
import numpy as np
from onnxfeat import FeatureExtractor, save_animation
class Pictures:
    def __iter__(self):
        for index in range({count}):
            yield np.random.default_rng(index).integers(0, 256, (150, 150, 3), dtype=np.uint8)
stream = FeatureExtractor("models/shapes_small.onnx", layers="conv_1", provider="cpu").stream(Pictures())
save_animation(stream, {str(path)!r}, format={suffix!r}, order="similarity", normalize="percentile")
from measuring import peak; print(peak())
"""
    where = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, env=where)
    return int(done.stdout)


@on_linux
@pytest.mark.parametrize("suffix", ["gif", "webp"])
def test_memory_does_not_grow_with_the_number_of_frames(tmp_path: Path, suffix: str) -> None:
    few, many = peak(tmp_path / "few", 10, suffix), peak(tmp_path / "many", 100, suffix)
    written = sum(path.stat().st_size for path in (tmp_path / "many").iterdir())
    assert written > 6e6  # what would be in memory if the files were made there
    assert many - few < 5e6  # until it is full, the histogram of the percentiles grows
