"""Animations written frame by frame, read back by Pillow and PyAV."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from measuring import on_linux
from numpy.typing import NDArray
from PIL import Image

from onnxfeat.drawing.encoders import check_format, encoder
from onnxfeat.errors import MissingPackageError, PictureError

av = pytest.importorskip("av")

RNG = np.random.default_rng(11)
PALETTE = bytes(RNG.integers(0, 256, 768, dtype=np.uint8))


def levels(*shape: int) -> Image.Image:
    """Return a palette picture of noise."""
    image = Image.fromarray(RNG.integers(0, 256, shape, dtype=np.uint8))
    image.putpalette(PALETTE)
    return image


def colors(image: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(image.convert("RGB"))


def write(path: Path, pictures: list[Image.Image], durations: list[float], *, loop: bool = True) -> Path:
    with encoder(path, loop=loop) as file:
        for picture, duration in zip(pictures, durations, strict=True):
            file.add(picture, duration)
    return path


def read(path: Path) -> tuple[list[NDArray[np.uint8]], list[float], int | None]:
    """Return frames, durations in ms and number of loops, as Pillow finds them."""
    frames, durations = [], []
    with Image.open(path) as image:
        loop = image.info.get("loop")
        for index in range(image.n_frames):  # type: ignore[attr-defined]
            image.seek(index)
            image.load()
            frames.append(colors(image))
            durations.append(float(image.info["duration"]))
    return frames, durations, loop


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    suffix=st.sampled_from(["gif", "webp"]),
    shape=st.tuples(st.integers(1, 40), st.integers(1, 600)),
    count=st.integers(2, 5),
    used=st.integers(1, 256),
)
def test_frames_read_back_are_those_that_were_written(
    tmp_path: Path, suffix: str, shape: tuple[int, int], count: int, used: int
) -> None:
    pictures = []
    for _ in range(count):  # also of few of the colors, which an encoder may want to sort anew
        image = Image.fromarray(RNG.integers(0, used, shape, dtype=np.uint8))
        image.putpalette(PALETTE)
        pictures.append(image)
    path = tmp_path / f"clip.{suffix}"
    path.unlink(missing_ok=True)
    frames, durations, loop = read(write(path, pictures, [40 + 20 * i for i in range(count)]))
    assert len(frames) == count
    for found, picture in zip(frames, pictures, strict=True):
        np.testing.assert_array_equal(found, colors(picture))
    assert durations == [40 + 20 * i for i in range(count)]
    assert loop == 0


@pytest.mark.parametrize("suffix", ["gif", "webp"])
def test_equal_frames_stay_frames(tmp_path: Path, suffix: str) -> None:
    still = levels(20, 30)
    frames, durations, _ = read(write(tmp_path / f"clip.{suffix}", [still] * 4, [50] * 4))
    assert len(frames) == 4
    assert durations == [50] * 4


@pytest.mark.parametrize("suffix", ["gif", "webp"])
def test_an_animation_that_ends_says_so(tmp_path: Path, suffix: str) -> None:
    *_, loop = read(write(tmp_path / f"clip.{suffix}", [levels(9, 9), levels(9, 9)], [50, 50], loop=False))
    assert loop == (1 if suffix == "webp" else None)  # a GIF that says nothing is shown once


def test_a_gif_of_changing_palettes_keeps_the_colors(tmp_path: Path) -> None:
    pictures = [levels(12, 15) for _ in range(3)]
    pictures[1].putpalette(PALETTE[::-1])
    frames, *_ = read(write(tmp_path / "clip.gif", pictures, [50] * 3))
    for found, picture in zip(frames, pictures, strict=True):
        np.testing.assert_array_equal(found, colors(picture))


@given(st.lists(st.floats(20, 500), min_size=1, max_size=30))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rounded_times_do_not_drift(tmp_path: Path, durations: list[float]) -> None:
    for suffix, unit in (("gif", 10), ("webp", 1)):
        path = tmp_path / f"clip.{suffix}"
        path.unlink(missing_ok=True)
        _, found, _ = read(write(path, [levels(2, 2) for _ in range(len(durations) + 1)], [*durations, 30]))
        assert np.all(np.abs(np.cumsum(found) - np.cumsum([*durations, 30])) <= unit / 2 + 1e-6)


def test_a_gif_never_hurries_past_what_browsers_show(tmp_path: Path) -> None:
    _, found, _ = read(write(tmp_path / "clip.gif", [levels(2, 2) for _ in range(5)], [1.0] * 5))
    assert found == [20] * 5
    (tmp_path / "clip.gif").unlink()
    _, found, _ = read(write(tmp_path / "clip.gif", [levels(2, 2) for _ in range(6)], [1.0] * 5 + [495.0]))
    assert found == [20] * 5 + [400]  # what was too long is made up for


@pytest.mark.parametrize("shape", [(33, 77), (30, 40), (1, 1)])
def test_a_video_has_the_colors_size_and_times(tmp_path: Path, shape: tuple[int, int]) -> None:
    pictures = [Image.fromarray(np.full((*shape, 3), 40 * i + 20, np.uint8)) for i in range(4)]
    path = write(tmp_path / "clip.mp4", pictures, [40, 100, 60, 200])
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.pix_fmt == "yuv444p"
        found = list(container.decode(stream))
        assert float(stream.duration * stream.time_base) == pytest.approx(0.4)
    assert [frame.time for frame in found] == pytest.approx([0, 0.04, 0.14, 0.2])
    for frame, picture in zip(found, pictures, strict=True):
        np.testing.assert_allclose(frame.to_ndarray(format="rgb24").astype(int), colors(picture), atol=2)


def test_a_video_of_moving_maps_is_right_to_a_level_or_so(tmp_path: Path) -> None:
    rows, columns = np.mgrid[:64, :512]
    waves = [np.sin((columns + 4 * i) / 9) * np.cos(rows / 7) for i in range(6)]
    pictures = [Image.fromarray(np.uint8(128 + 120 * wave)) for wave in waves]
    for picture in pictures:
        picture.putpalette(bytes(x for level in range(256) for x in (level, 255 - level, 128)))
    path = write(tmp_path / "clip.mp4", pictures, [40] * 6)
    with av.open(str(path)) as container:
        for frame, picture in zip(container.decode(video=0), pictures, strict=True):
            off = np.abs(frame.to_ndarray(format="rgb24").astype(int) - colors(picture))
            assert off.mean() < 1.5
            assert off.max() < 20


@pytest.mark.parametrize("suffix", ["gif", "webp", "mp4"])
def test_frames_of_two_sizes_are_refused(tmp_path: Path, suffix: str) -> None:
    message = rf"a frame of clip\.{suffix} is 9 x 8, the first was 9 x 7: pass pictures of one size"
    with pytest.raises(PictureError, match=message):
        write(tmp_path / f"clip.{suffix}", [levels(7, 9), levels(8, 9)], [50, 50])


@pytest.mark.parametrize(("suffix", "side"), [("webp", 16_384), ("mp4", 16_385)])
def test_a_side_that_the_format_does_not_hold_is_refused(tmp_path: Path, suffix: str, side: int) -> None:
    with pytest.raises(PictureError, match=re.escape(f"would be {side} x 2, a side of this format has at most")):
        write(tmp_path / f"clip.{suffix}", [levels(2, side)], [50])
    write(tmp_path / f"fits.{suffix}", [levels(2, side - 1)], [50])


def test_a_gif_of_more_than_256_colors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match="more than 256 colors, which GIF can't: choose webp or mp4"):
        write(tmp_path / "clip.gif", [Image.new("RGB", (4, 4))], [50])


def test_a_format_is_checked_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PictureError, match="format 'avi' is unknown: choose 'gif', 'webp' or 'mp4'"):
        check_format("avi")
    check_format("mp4")
    monkeypatch.setattr(av, "codecs_available", {"gif"})
    with pytest.raises(MissingPackageError, match="built without libx264"):
        check_format("mp4")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingPackageError, match=r'pip install "onnxfeat\[video\]"'):
        check_format("mp4")
    check_format("gif")


def grown(path: Path, count: int) -> int:
    """Return by how many bytes a process grows while it writes that many frames of 150 KB after the first ten."""
    code = f"""
from pathlib import Path
import numpy as np
from PIL import Image
from measuring import peak
from onnxfeat.drawing.encoders import encoder
def frames(count):
    for index in range(count):
        yield Image.fromarray(np.random.default_rng(index).integers(0, 256, (150, 1000), dtype=np.uint8)).convert("P")
with encoder(Path({str(path)!r})) as file:
    for image in frames(10):
        file.add(image, 40)
    before = peak()
    for image in frames({count}):
        file.add(image, 40)
print(peak() - before)
"""
    where = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    return int(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=where).stdout
    )


@on_linux
@pytest.mark.parametrize("suffix", ["gif", "webp", "mp4"])
def test_memory_does_not_grow_with_the_number_of_frames(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"clip.{suffix}"
    growth = grown(path, 150)
    assert path.stat().st_size > 15e6  # what would be in memory if the file were made there
    assert growth < 5e6
