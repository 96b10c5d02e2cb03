"""Frames of animations and videos, one by one, and runs on them."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from onnxfeat import FeatureExtractor
from onnxfeat.errors import MissingPackageError, PictureError
from onnxfeat.running.frames import Frames
from onnxfeat.running.streams import batch_of

av = pytest.importorskip("av")

RNG = np.random.default_rng(5)


def shades(count: int, size: tuple[int, int] = (40, 30)) -> list[Image.Image]:
    """Return pictures that differ in all pixels, each of one color with a square in another."""
    pictures = []
    for index in range(count):
        picture = Image.new("RGB", size, (10 + 20 * index, 60, 200 - 15 * index))
        picture.paste((255, 255, 255), (index, 5, index + 10, 15))
        pictures.append(picture)
    return pictures


def animation(path: Path, pictures: list[Image.Image], **options: Any) -> Path:
    pictures[0].save(path, save_all=True, append_images=pictures[1:], **options)
    return path


def video(path: Path, pictures: list[Image.Image], *, rate: int = 20, rotation: int = 0) -> Path:
    """Write a video by PyAV, losslessly, of the container that the name says."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264rgb", rate=rate, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = *pictures[0].size, "rgb24"
        for index, picture in enumerate(pictures):
            frame = av.VideoFrame.from_image(picture)
            frame.pts, frame.time_base = index, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    if rotation:
        path.write_bytes(turned(path.read_bytes(), rotation))
    return path


def turned(content: bytes, rotation: int) -> bytes:
    """Return an mp4 whose track header tells players to turn it (ISO/IEC 14496-12, 8.3.2: matrix at byte 40)."""
    assert rotation == 90
    at = content.index(b"tkhd") + 4 + 40
    matrix = [0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30]  # clockwise
    return content[:at] + b"".join(x.to_bytes(4, "big", signed=True) for x in matrix) + content[at + 36 :]


def pixels(image: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(image)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_the_frames_of_an_animation_come_one_by_one(tmp_path: Path, suffix: str) -> None:
    pictures = shades(5)
    options = {"lossless": True} if suffix == "webp" else {}
    path = animation(tmp_path / f"clip.{suffix}", pictures, duration=[40, 60, 80, 100, 120], **options)
    clip = Frames(path)
    assert (clip.count, clip.size, clip.is_video) == (5, (40, 30), False)
    for _ in range(2):  # any number of times
        for found, picture in zip(clip, pictures, strict=True):
            assert found.mode == "RGB"
            np.testing.assert_array_equal(pixels(found), pixels(picture))
    assert [(frame.name, frame.duration) for frame in clip.frames()] == [
        (f"clip.{suffix}[{index}]", 40 + 20 * index) for index in range(5)
    ]


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov", "avi"])
def test_the_frames_of_a_video_come_one_by_one(tmp_path: Path, suffix: str) -> None:
    pictures = shades(6)
    clip = Frames(video(tmp_path / f"clip.{suffix}", pictures))
    assert (clip.size, clip.is_video) == ((40, 30), True)
    assert clip.count in (6, None)
    for _ in range(2):
        for found, picture in zip(clip, pictures, strict=True):
            np.testing.assert_array_equal(pixels(found), pixels(picture))
    assert [(frame.name, frame.duration) for frame in clip.frames()] == [
        (f"clip.{suffix}[{i}]", 50.0) for i in range(6)
    ]


def test_a_video_of_a_phone_is_turned_upright(tmp_path: Path) -> None:
    pictures = shades(2)
    clip = Frames(video(tmp_path / "clip.mp4", pictures, rotation=90))
    assert clip.size == (30, 40)
    for found, picture in zip(clip, pictures, strict=True):
        np.testing.assert_array_equal(pixels(found), np.rot90(pixels(picture), -1))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 12), st.integers(1, 5), st.none() | st.integers(1, 14))
def test_every_so_many_frames_are_those_of_a_slice(tmp_path: Path, count: int, every: int, limit: int | None) -> None:
    path = animation(tmp_path / "clip.gif", shades(count), duration=50)
    clip = Frames(path, every=every, limit=limit)
    indices = list(range(count))[::every][:limit]
    found = list(clip.frames())
    assert clip.count == len(found) == len(indices)
    everything = list(Frames(path))
    for frame, index in zip(found, indices, strict=True):
        assert isinstance(frame.picture, Image.Image)
        np.testing.assert_array_equal(pixels(frame.picture), pixels(everything[index]))
    if count > 1:
        assert [frame.name for frame in found] == [f"clip.gif[{index}]" for index in indices]
        assert [frame.duration for frame in found] == [50 * min(every, count - index) for index in indices]


def test_what_a_frame_leaves_unchanged_and_what_is_clear_is_as_viewers_show_it(tmp_path: Path) -> None:
    first = Image.new("RGBA", (20, 10), (0, 0, 0, 0))
    first.paste((200, 0, 0, 255), (0, 0, 5, 10))
    first.putpixel((19, 9), (0, 0, 0, 100))  # else libwebp takes the animation for opaque
    second = first.copy()
    second.paste((0, 0, 200, 255), (10, 0, 15, 10))
    for suffix, options in (("gif", {"disposal": 1}), ("webp", {"lossless": True}), ("png", {})):
        path = animation(tmp_path / f"clip.{suffix}", [first, second], duration=50, **options)
        found = [pixels(image) for image in Frames(path)]
        for image in found:
            assert image[0, 2].tolist() == [200, 0, 0]
            assert image[0, 7].tolist() == [255, 255, 255]
        assert found[0][0, 12].tolist() == [255, 255, 255]
        assert found[1][0, 12].tolist() == [0, 0, 200]


def test_the_picture_of_an_animated_png_for_old_viewers_is_no_frame(tmp_path: Path) -> None:
    pictures = shades(4)
    path = animation(tmp_path / "clip.png", pictures, default_image=True, duration=50)
    clip = Frames(path)
    assert clip.count == 3
    for found, picture in zip(clip, pictures[1:], strict=True):
        np.testing.assert_array_equal(pixels(found), pixels(picture))


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "tiff"])
def test_a_still_picture_has_one_frame_which_is_itself(tmp_path: Path, models: Path, suffix: str) -> None:
    path = tmp_path / f"cat.{suffix}"
    with Image.open(models / "pictures/chelsea.png") as picture:
        picture.save(path)
    (frame,) = Frames(path).frames()
    assert frame.duration is None
    extractor = FeatureExtractor(models / "shapes_small.onnx", layers="conv_1", provider="cpu")
    whole, framed = extractor(path)["conv_1"].array, extractor(Frames(path))["conv_1"].array
    np.testing.assert_array_equal(whole, framed)


def test_the_pages_of_a_tiff_are_no_frames(tmp_path: Path) -> None:
    path = animation(tmp_path / "pages.tiff", shades(3))
    assert Frames(path).count == len(list(Frames(path))) == 1


@pytest.mark.parametrize("name", ["clip.gif", "clip.webp", "clip.mp4", "clip.avi"])
@pytest.mark.parametrize("content", [b"", b"just a text\n", bytes(1000), b"GIF89a", b"\0\0\0\x18ftypmp42"])
def test_what_is_no_animation_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(PictureError, match=re.escape(str(path))) as caught:
        list(Frames(path))
    message = str(caught.value)
    assert "\n" not in message
    assert "GIF, WebP or PNG file, or a video (.mp4" in message


@pytest.mark.parametrize("name", ["clip.gif", "clip.mp4"])
def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(PictureError, match="there is no file"):
        Frames(tmp_path / name)
    (tmp_path / name).mkdir()
    with pytest.raises(PictureError, match="is a folder"):
        Frames(tmp_path / name)


@pytest.mark.parametrize("name", ["clip.gif", "clip.png", "clip.webp", "clip.mp4"])
def test_a_truncated_file_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    noise = [Image.fromarray(RNG.integers(0, 255, (60, 80, 3), dtype=np.uint8)) for _ in range(4)]
    (video if name.endswith("mp4") else animation)(path, noise)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(PictureError, match=r"can't be read \(.+\): pass an undamaged GIF"):
        list(Frames(path))


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "mp4", "mkv"])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused_but_never_an_accident(
    tmp_path: Path, suffix: str, data: st.DataObject
) -> None:
    whole = tmp_path / f"whole.{suffix}"
    if not whole.exists():
        (video if suffix in ("mp4", "mkv") else animation)(whole, shades(3))
    content = bytearray(whole.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / f"damaged.{suffix}"
    path.write_bytes(bytes(content[: data.draw(st.integers(1, len(content)))]))
    try:
        clip = Frames(path)
        assert all(image.size == clip.size for image in clip)
    except PictureError as error:
        assert str(path) in str(error)  # noqa: PT017


@pytest.mark.parametrize("name", ["clip.gif", "clip.webp", "clip.mp4"])
def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    path = tmp_path / name
    (video if name.endswith("mp4") else animation)(path, shades(2))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40 * 30 - 1)
    with pytest.raises(PictureError, match="is too large to be decoded safely"):
        Frames(path)


def test_a_playlist_that_calls_itself_a_video_opens_no_other_file(tmp_path: Path) -> None:
    video(tmp_path / "secret.mp4", shades(2))
    path = tmp_path / "clip.mp4"
    path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{tmp_path / 'secret.mp4'}\n#EXT-X-ENDLIST\n")
    with pytest.raises(PictureError, match="can't be read"):
        Frames(path)


def test_a_video_without_pyav_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = video(tmp_path / "clip.mp4", shades(2))
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingPackageError, match=r'is a video, which needs PyAV .*pip install "onnxfeat\[video\]"'):
        Frames(path)


def test_reading_a_gif_loads_no_video_package(tmp_path: Path) -> None:
    path = animation(tmp_path / "clip.gif", shades(2))
    code = f"import sys; from onnxfeat import Frames; list(Frames({str(path)!r})); print('av' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(("choice", "value"), [("every", 0), ("limit", 0), ("limit", -3)])
def test_a_number_of_frames_below_one_is_refused(tmp_path: Path, choice: str, value: int) -> None:
    path = animation(tmp_path / "clip.gif", shades(2))
    with pytest.raises(PictureError, match=rf"{choice} is {value}, a number of frames: pass 1 or more"):
        Frames(path, **{choice: value})


def network() -> onnx.ModelProto:
    """Return a model that leaves the picture's size open."""
    text = """(float[N,3,H,W] x) => (float y) { a = Conv(x, w) b = Relu(a) y = MaxPool<kernel_shape = [2, 2]>(b) }"""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]> g {text}')
    model.graph.output[0].type.tensor_type.ClearField("shape")
    model.graph.initializer.append(onnx.numpy_helper.from_array(RNG.normal(size=(8, 3, 3, 3)).astype("f4"), "w"))
    return model


@pytest.mark.parametrize("budget", ["1GiB", "80KB"])
def test_a_stream_of_frames_gives_the_maps_of_the_pictures_each_time(tmp_path: Path, budget: str) -> None:
    pictures = shades(3)
    clip = Frames(animation(tmp_path / "clip.gif", pictures, duration=70))
    model = network()
    extractor = FeatureExtractor(model, provider="cpu", max_bytes=budget)
    expected = FeatureExtractor(model, provider="cpu")
    stream = extractor.stream(clip)
    passes = len(extractor.plan(clip).passes)
    assert passes == (1 if budget == "1GiB" else 2)
    for _ in range(2):
        parts = list(stream)
        assert len(parts) == 3 * passes
        for part in parts:
            assert part.pictures == (f"clip.gif[{part.first}]",)
            for name in part:
                np.testing.assert_array_equal(part[name].array, expected(pictures[part.first])[name].array)
    assert stream.durations == {0: 70.0, 1: 70.0, 2: 70.0}
    assert next(iter(stream)).first == 0


def test_frames_and_pictures_share_a_run(tmp_path: Path) -> None:
    clip = Frames(animation(tmp_path / "clip.gif", shades(2)))
    extractor = FeatureExtractor(network(), provider="cpu")
    names = [part.pictures[0] for part in extractor.stream([pixels(shades(1)[0]), clip])]
    assert names == ["picture_1", "clip.gif[0]", "clip.gif[1]"]
    assert extractor(clip)["conv_0"].shape[0] == 2


class Counting:
    """Pictures that are made when they are asked for, and counted."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.asked = 0

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        for index in range(self.count):
            self.asked += 1
            yield np.full((12, 10, 3), index, np.uint8)


def test_pictures_that_are_made_when_asked_for_come_one_at_a_time() -> None:
    source = Counting(50)
    parts = iter(FeatureExtractor(network(), provider="cpu").stream(source))
    next(parts)
    looked_at = source.asked
    assert looked_at == 51  # all for their shapes, then one
    next(parts)
    assert source.asked == 52


def test_a_video_is_not_decoded_to_plan_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = Frames(animation(tmp_path / "clip.gif", shades(3)))
    monkeypatch.setattr(Frames, "frames", lambda _: pytest.fail("decoded"))
    assert FeatureExtractor(network(), provider="cpu").plan(clip).sizes["conv_0"] == 8 * 28 * 38 * 4


def test_pictures_that_can_be_had_only_once_are_refused() -> None:
    extractor = FeatureExtractor(network(), provider="cpu")
    with pytest.raises(PictureError, match="an iterator, which gives them only once"):
        extractor.stream(iter([np.zeros((9, 9, 3), np.uint8)]))
    with pytest.raises(PictureError, match="no picture was passed"):
        batch_of([])
    with pytest.raises(PictureError, match="no picture was passed"):
        list(extractor.stream(Counting(0)))


def test_a_model_of_another_size_takes_frames_too(tmp_path: Path, models: Path) -> None:
    clip = Frames(animation(tmp_path / "clip.gif", shades(2)))
    extractor = FeatureExtractor(models / "shapes_small.onnx", layers="conv_1", provider="cpu")
    assert [part["conv_1"].shape for part in extractor.stream(clip)] == [(1, 16, 64, 64)] * 2
