import io
import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from onnxfeat.errors import PictureError
from onnxfeat.picture_files import Picture
from onnxfeat.preprocessing import ColorOrder, Interpolation, Preprocessing
from onnxfeat.records import ModelInput
from onnxfeat.running.images import default_preprocessing, load_samples, name_of

KERAS_COLORS: dict[ColorOrder, str] = {"rgb": "rgb", "gray": "grayscale"}


def model_input(
    *, height: int | str = 6, width: int | str = 9, channels: int = 3, layout: str = "NHWC", dtype: str = "float32"
) -> ModelInput:
    sides = {"N": 1, "H": height, "W": width, "C": channels}
    return ModelInput(name="image", shape=tuple(sides[axis] for axis in layout), layout=layout, dtype=dtype)


def noise(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def rgb_picture() -> Image.Image:
    return Image.fromarray(noise(31, 47, 3))


def palette_with_transparency() -> Image.Image:
    image = rgb_picture().quantize(64)
    image.info["transparency"] = bytes(range(64))
    return image


PICTURES: dict[str, Callable[[], Image.Image]] = {
    "rgb": rgb_picture,
    "gray": lambda: rgb_picture().convert("L"),
    "rgba": lambda: Image.fromarray(noise(31, 47, 4)),
    "gray with alpha": lambda: Image.fromarray(noise(31, 47, 4)).convert("LA"),
    "palette": lambda: rgb_picture().quantize(64),
    "palette with transparency": palette_with_transparency,
    "bilevel": lambda: rgb_picture().convert("1"),
}


def as_16_bit_rgb_png(levels: NDArray[np.uint16]) -> bytes:
    """Pillow writes no 16-bit RGB, so here is the format itself: signature, IHDR, IDAT, IEND."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, _ = levels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def keras_values(path: Path, color: str, size: tuple[int, int] | None, interpolation: str) -> NDArray[np.float32]:
    import keras

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Pillow's about transparency
        image = keras.utils.load_img(path, color_mode=color, target_size=size, interpolation=interpolation)
    values: NDArray[np.float32] = keras.utils.img_to_array(image) / 255
    return values[None]


@pytest.mark.keras
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"])
@pytest.mark.parametrize("color", ["rgb", "gray"])
@pytest.mark.parametrize("kind", PICTURES)
def test_values_are_bit_equal_to_those_of_keras(
    tmp_path: Path, kind: str, color: ColorOrder, interpolation: Interpolation
) -> None:
    path = tmp_path / "picture.png"
    PICTURES[kind]().save(path)
    target = model_input(height=20, width=13, channels=3 if color == "rgb" else 1)
    ours = load_samples(path, target, Preprocessing(color=color, interpolation=interpolation))
    theirs = keras_values(path, KERAS_COLORS[color], (20, 13), interpolation)
    assert ours.dtype == theirs.dtype == np.float32
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.keras
@pytest.mark.parametrize("suffix", ["jpg", "gif", "bmp", "webp", "tiff"])
def test_every_file_format_is_read_as_keras_reads_it(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"picture.{suffix}"
    rgb_picture().save(path)
    target = model_input(height="h", width="w")
    np.testing.assert_array_equal(
        load_samples(path, target, Preprocessing()), keras_values(path, "rgb", None, "nearest")
    )


@pytest.mark.keras
def test_16_bit_colors_are_read_as_keras_reads_them(tmp_path: Path) -> None:
    levels = np.random.default_rng(0).integers(0, 65536, (6, 9, 3), dtype=np.uint16)
    path = tmp_path / "deep.png"
    path.write_bytes(as_16_bit_rgb_png(levels))
    ours = load_samples(path, model_input(), Preprocessing())
    np.testing.assert_array_equal(ours, keras_values(path, "rgb", None, "nearest"))
    np.testing.assert_allclose(ours[0], levels / 65535, atol=1 / 255)


def test_scaling_by_1_over_255_gives_the_same_float32_as_dividing() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    ours = load_samples(levels, model_input(height=16, width=16, channels=1), Preprocessing(color="gray"))
    np.testing.assert_array_equal(ours[0, ..., 0], levels.astype(np.float32) / np.float32(255))


@pytest.mark.parametrize("byte_order", ["<u2", ">u2"])
@pytest.mark.parametrize("color", ["rgb", "gray"])
def test_16_bit_gray_keeps_its_upper_byte_instead_of_turning_white(
    tmp_path: Path, byte_order: str, color: ColorOrder
) -> None:
    levels = np.random.default_rng(0).integers(0, 65536, (6, 9), dtype=np.uint16)
    path = tmp_path / "deep.tiff"
    mode = "I;16" if byte_order == "<u2" else "I;16B"
    Image.frombytes(mode, (9, 6), levels.astype(byte_order).tobytes()).save(path)
    target = model_input(channels=3 if color == "rgb" else 1)
    ours = load_samples(path, target, Preprocessing(color=color))[0]
    for channel in range(ours.shape[2]):
        np.testing.assert_array_equal(ours[..., channel], ((levels // 256) / 255).astype(np.float32))


@pytest.mark.parametrize("mode", ["I", "F"])
def test_32_bit_pixels_of_unknown_range_are_refused(mode: str) -> None:
    with pytest.raises(PictureError, match="has 32-bit pixels, whose range is unknown: save it with 8 or 16 bits"):
        load_samples(Image.new(mode, (9, 6)), model_input(), Preprocessing())


def test_a_picture_of_a_rare_mode_is_refused() -> None:
    with pytest.raises(PictureError, match=r"the array can't be converted to mode RGB \(.*La.*\): pass an RGB picture"):
        load_samples(Image.new("La", (9, 6)), model_input(), Preprocessing())


@pytest.mark.parametrize("color", get_args(ColorOrder))
@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_axes_are_laid_out_as_the_model_wants_them(color: ColorOrder, layout: str) -> None:
    # Height, width and channels differ, so that no two axes can be mistaken for each other.
    pixels = noise(6, 9, 3)
    target = model_input(channels=1 if color == "gray" else 3, layout=layout)
    samples = load_samples(pixels, target, Preprocessing(color=color))
    assert samples.shape == target.shape
    assert samples.flags.c_contiguous
    last = samples[0] if layout == "NHWC" else np.moveaxis(samples[0], 0, 2)
    expected = {
        "rgb": pixels,
        "bgr": pixels[..., ::-1],
        "gray": np.asarray(Image.fromarray(pixels).convert("L"))[..., None],
    }[color]
    np.testing.assert_array_equal(last, (expected / 255).astype(np.float32))


def test_mean_and_std_are_those_of_the_final_order_of_channels() -> None:
    pixels = noise(6, 9, 3)
    # Caffe's networks: blue, green, red, no scale.
    caffe = Preprocessing(scale=1.0, color="bgr", mean=(103.939, 116.779, 123.68))
    samples = load_samples(pixels, model_input(), caffe)
    np.testing.assert_allclose(samples[0, ..., 0], pixels[..., 2] - 103.939, rtol=1e-6)
    np.testing.assert_allclose(samples[0, ..., 2], pixels[..., 0] - 123.68, rtol=1e-6)
    # PyTorch's: scaled to 0..1, then mean and deviation of ImageNet.
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    samples = load_samples(pixels, model_input(layout="NCHW"), Preprocessing(mean=mean, std=std))
    for channel in range(3):
        expected = (pixels[..., channel] / 255 - mean[channel]) / std[channel]
        np.testing.assert_allclose(samples[0, channel], expected, rtol=1e-5, atol=1e-6)


def test_values_from_minus_1_to_1() -> None:
    pixels = np.array([[0, 255]], dtype=np.uint8)
    target = model_input(height=1, width=2, channels=1)
    samples = load_samples(pixels, target, Preprocessing(color="gray", scale=1 / 127.5, mean=(1.0,)))
    assert samples.ravel().tolist() == [-1, 1]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_floats_have_the_precision_that_the_model_wants(dtype: str) -> None:
    pixels = noise(6, 9, 3)
    samples = load_samples(pixels, model_input(dtype=dtype), Preprocessing())
    assert samples.dtype == np.dtype(dtype)
    np.testing.assert_allclose(samples[0], pixels / 255, rtol=float(np.finfo(dtype).eps))


def test_integers_are_rounded_and_clipped() -> None:
    pixels = noise(6, 9, 3)
    unchanged = load_samples(pixels, model_input(dtype="uint8"), Preprocessing(scale=1.0))
    assert unchanged.dtype == np.uint8
    np.testing.assert_array_equal(unchanged[0], pixels)
    centered = load_samples(pixels, model_input(dtype="int8"), Preprocessing(scale=1.0, mean=(128.0,)))
    np.testing.assert_array_equal(centered[0], pixels.astype(int) - 128)
    clipped = load_samples(pixels, model_input(dtype="int8"), Preprocessing(scale=1.0))
    np.testing.assert_array_equal(clipped[0], np.minimum(pixels, 127))
    half = load_samples(np.full((6, 9, 3), 3, dtype=np.uint8), model_input(dtype="int32"), Preprocessing(scale=0.6))
    assert (half == 2).all()


def test_by_default_floats_lie_between_0_and_1_and_integers_are_the_pixels() -> None:
    pixels = noise(6, 9, 3)
    for dtype, largest in (("float32", 1.0), ("float16", 1.0), ("uint8", 255)):
        target = model_input(dtype=dtype)
        samples = load_samples(pixels, target, default_preprocessing(target))
        np.testing.assert_allclose(samples[0] / largest, pixels / 255, atol=1e-3)


def test_by_default_one_channel_is_gray_and_three_are_rgb() -> None:
    assert default_preprocessing(model_input(channels=1)).color == "gray"
    assert default_preprocessing(model_input(channels=3)).color == "rgb"
    assert default_preprocessing(model_input(channels=-1)).color == "rgb"
    assert default_preprocessing(model_input()).size is None


def test_pictures_are_resized_to_the_input_whatever_their_shape() -> None:
    for size in ((1, 1), (500, 3), (9, 6)):
        assert load_samples(Image.new("RGB", size), model_input(), Preprocessing()).shape == (1, 6, 9, 3)


def test_a_symbolic_input_takes_the_size_asked_for_or_that_of_the_picture() -> None:
    target = model_input(height="h", width="w")
    assert load_samples(noise(7, 4, 3), target, Preprocessing()).shape == (1, 7, 4, 3)
    assert load_samples(noise(7, 4, 3), target, Preprocessing(size=(3, 5))).shape == (1, 3, 5, 3)
    only_height = model_input(height=6, width="w")
    assert load_samples(noise(7, 4, 3), only_height, Preprocessing()).shape == (1, 6, 4, 3)


@pytest.mark.parametrize("size", [(6, 8), (9, 6)])
def test_a_size_that_the_input_does_not_take_is_refused(size: tuple[int, int]) -> None:
    message = rf"size {size[0]} x {size[1]} does not fit the input 'image', which wants \(1, 6, 9, 3\): leave the size"
    with pytest.raises(PictureError, match=message):
        load_samples(noise(6, 9, 3), model_input(), Preprocessing(size=size))


def test_pil_images_and_arrays_are_not_changed() -> None:
    image = palette_with_transparency()
    before, info = image.tobytes(), dict(image.info)
    load_samples(image, model_input(), Preprocessing())
    assert (image.mode, image.size, image.tobytes(), image.info) == ("P", (47, 31), before, info)
    for array in (noise(6, 9, 3), noise(1, 6, 9, 3)):
        copy = array.copy()
        samples = load_samples(array, model_input(), Preprocessing(color="bgr"))
        np.testing.assert_array_equal(array, copy)
        assert array.flags.writeable
        assert samples.dtype == np.float32


@pytest.mark.parametrize("shape", [(6, 9), (6, 9, 1), (6, 9, 3), (6, 9, 4)])
def test_arrays_of_rank_2_and_3_are_pictures(tmp_path: Path, shape: tuple[int, ...]) -> None:
    pixels = noise(*shape)
    np.save(tmp_path / "picture.npy", pixels)
    samples = load_samples(pixels, model_input(), Preprocessing())
    visible = np.broadcast_to(pixels.reshape(6, 9, -1)[..., :3], (6, 9, 3))  # alpha is dropped, gray is repeated
    np.testing.assert_array_equal(samples[0], (visible / 255).astype(np.float32))
    np.testing.assert_array_equal(load_samples(tmp_path / "picture.npy", model_input(), Preprocessing()), samples)
    np.testing.assert_array_equal(load_samples(str(tmp_path / "picture.npy"), model_input(), Preprocessing()), samples)


def test_arrays_that_are_not_contiguous_are_pictures_too() -> None:
    pixels = noise(9, 12, 3).transpose(1, 0, 2)[::2, :, ::-1]
    samples = load_samples(pixels, model_input(), Preprocessing())
    np.testing.assert_array_equal(samples[0], (pixels / 255).astype(np.float32))


@pytest.mark.parametrize("batch", [1, 3])
def test_arrays_of_rank_4_are_taken_as_they_are(tmp_path: Path, batch: int) -> None:
    array = np.random.default_rng(0).normal(size=(batch, 3, 6, 9))
    np.save(tmp_path / "input.NPY", array)
    (tmp_path / "input.NPY.npy").rename(tmp_path / "input.NPY")
    target = model_input(layout="NCHW")
    for picture in (array, tmp_path / "input.NPY"):
        samples = load_samples(picture, target, Preprocessing(scale=7.0, size=(1, 1)))
        assert samples.dtype == np.float32
        np.testing.assert_array_equal(samples, array.astype(np.float32))


@pytest.mark.parametrize("shape", [(1, 3, 6, 9), (1, 6, 9, 1), (1, 7, 9, 3), (0, 6, 9, 3)])
def test_preprocessed_arrays_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(PictureError, match=r"has shape \(.*\), the input 'image' wants \(1, 6, 9, 3\): reshape"):
        load_samples(np.zeros(shape, dtype=np.float32), model_input(), Preprocessing())


@pytest.mark.parametrize(("dtype", "wanted"), [("float32", "uint8"), ("complex64", "float32"), ("U1", "float32")])
def test_preprocessed_arrays_of_another_type_are_refused(dtype: str, wanted: str) -> None:
    with pytest.raises(PictureError, match=f"has type .*, the input 'image' wants {wanted}: convert it"):
        load_samples(np.zeros((1, 6, 9, 3), dtype=dtype), model_input(dtype=wanted), Preprocessing())


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((6, 9, 3), dtype=np.float32),
        np.zeros((6, 9, 3), dtype=np.int64),
        np.zeros(6, dtype=np.uint8),
        np.zeros((1, 1, 6, 9, 3), dtype=np.uint8),
        None,
        [[1, 2], [3, 4]],
        b"\x89PNG",
    ],
)
def test_what_is_neither_a_picture_nor_preprocessed_is_refused(picture: Any) -> None:
    message = (
        r"has shape .* and type .*: a picture is uint8 of shape \(rows, columns, channels\), .* pass array\[None\]"
    )
    with pytest.raises(PictureError, match=message):
        load_samples(picture, model_input(), Preprocessing())


@pytest.mark.parametrize("channels", [0, 2, 5, 9])
def test_arrays_with_an_impossible_number_of_channels_are_refused(channels: int) -> None:
    with pytest.raises(PictureError, match=f"has {channels} channels on its last axis, a picture has 1, 3 or 4"):
        load_samples(np.zeros((3, 6, channels), dtype=np.uint8), model_input(), Preprocessing())


@pytest.mark.parametrize(
    "picture",
    [np.zeros((0, 9, 3), dtype=np.uint8), np.zeros((6, 0), dtype=np.uint8), Image.new("RGB", (0, 0))],
)
def test_pictures_without_pixels_are_refused(picture: Image.Image | NDArray[np.uint8]) -> None:
    for target in (model_input(), model_input(height="h", width="w")):
        with pytest.raises(PictureError, match=r"the array is \d x \d and so has no pixel: pass a picture"):
            load_samples(picture, target, Preprocessing())


@pytest.mark.parametrize(("color", "channels"), [("rgb", 1), ("gray", 3), ("rgb", 12)])
def test_an_input_of_another_number_of_channels_is_refused(color: ColorOrder, channels: int) -> None:
    has = 1 if color == "gray" else 3
    message = (
        rf"becomes {has} channels \({color}\), the input 'image' wants {channels}: .* shape \(1, 6, 9, {channels}\)"
    )
    with pytest.raises(PictureError, match=message):
        load_samples(noise(6, 9, 3), model_input(channels=channels), Preprocessing(color=color))


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(PictureError, match=re.escape(str(path))) as caught:
        load_samples(path, model_input(), Preprocessing())
    return str(caught.value).replace(str(path), "FILE")


@pytest.mark.parametrize("name", ["missing.png", "missing.npy", "no/such/folder.png"])
def test_a_missing_file_is_refused(tmp_path: Path, name: str) -> None:
    assert refusal(tmp_path / name).startswith("there is no file FILE: check the path")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path) == "FILE is a folder, a picture is wanted: name the files in it"
    (tmp_path / "a.npy").mkdir()
    assert refusal(tmp_path / "a.npy") == "FILE is a folder, a picture is wanted: name the files in it"


@pytest.mark.parametrize("name", ["pipe.png", "pipe.npy"])
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    assert refusal(tmp_path / name).startswith("FILE is a device or pipe, a picture is wanted")


def test_a_picture_that_may_not_be_read_is_refused_for_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secret.png"
    Image.new("RGB", (4, 4)).save(path)

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Image, "open", refuse)  # root may read everything
    assert refusal(path).startswith("FILE is not for you to read")


@pytest.mark.parametrize("content", [b"", b"just a text\n", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", bytes(1000)])
def test_what_is_no_picture_is_refused(tmp_path: Path, content: bytes) -> None:
    message = refusal(written(tmp_path / "a.png", content))
    assert message == "FILE is not a picture that Pillow reads: pass a PNG, JPEG, WebP or .npy file"


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp"])
@pytest.mark.parametrize("opened", [False, True])
def test_a_truncated_picture_is_refused(tmp_path: Path, suffix: str, opened: bool) -> None:
    file = tmp_path / f"a.{suffix}"
    rgb_picture().save(file)
    written(file, file.read_bytes()[: file.stat().st_size * 2 // 3])
    if not opened or suffix == "webp":
        assert "FILE can't be read (" in refusal(file)
        return
    with Image.open(file) as lazy, pytest.raises(PictureError, match="the array can't be converted to mode RGB"):
        load_samples(lazy, model_input(), Preprocessing())


def test_a_truncated_jpeg_is_called_truncated(tmp_path: Path) -> None:
    file = tmp_path / "a.jpg"
    rgb_picture().save(file)
    written(file, file.read_bytes()[: file.stat().st_size // 2])
    assert "truncated" in refusal(file)


@pytest.mark.parametrize("factor", [1.5, 3.0])
def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    # Pillow warns past its limit, and raises past twice that.
    file = tmp_path / "bomb.png"
    rgb_picture().save(file)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", int(31 * 47 / factor))
    assert refusal(file).startswith("FILE is too large to be decoded safely (")


def test_a_file_that_can_not_be_opened_is_refused_with_the_reason(tmp_path: Path) -> None:
    message = refusal(tmp_path / ("x" * 300 + ".png"))
    assert message == "FILE can't be read (File name too long): pass an undamaged PNG, JPEG, WebP or .npy file"


def npy_header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"just a text\n",
        npy_header("{'descr': '|u1', 'fortran_order': False, 'shape': (6, 9, 3)}\n"),
        npy_header("{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999999,)}\n"),
        npy_header("{'descr': '|u1', 'fortran_order': False, 'shape': (6,\n"),
        npy_header("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}\n") + b"cos\nsystem\n(S'false'\ntR.",
    ],
)
def test_a_damaged_array_file_is_refused(tmp_path: Path, content: bytes) -> None:
    message = refusal(written(tmp_path / "a.npy", content))
    assert message.startswith("FILE can't be read as an array (")
    assert message.endswith("): write it with numpy.save")


def encoded(suffix: str) -> bytes:
    file = io.BytesIO()
    if suffix == "npy":
        np.save(file, noise(6, 9, 3))
    else:
        rgb_picture().save(file, format=suffix)
    return file.getvalue()


@given(st.sampled_from(["png", "jpeg", "gif", "webp", "bmp", "npy"]), st.data())
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_damaged_file_is_read_or_refused_but_never_an_accident(
    tmp_path: Path, suffix: str, data: st.DataObject
) -> None:
    content = bytearray(encoded(suffix))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, min(len(content), 400) - 1))] = data.draw(st.integers(0, 255))
    path = written(tmp_path / f"a.{suffix}", bytes(content[: data.draw(st.integers(1, len(content)))]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Pillow's about odd metadata
        try:
            samples = load_samples(path, model_input(), Preprocessing())
        except PictureError as error:
            assert str(path) in str(error)  # noqa: PT017
        else:
            assert samples.shape == (1, 6, 9, 3)
            assert np.isfinite(samples).all()


def test_files_are_named_by_their_name_and_others_by_their_number() -> None:
    pictures: list[Picture] = ["a/b/cat.png", noise(6, 9, 3), Path("dog.JPG"), rgb_picture()]
    names = [name_of(picture, number) for number, picture in enumerate(pictures, start=1)]
    assert names == ["cat.png", "picture_2", "dog.JPG", "picture_4"]
