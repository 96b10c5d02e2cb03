from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from onnxfeat.errors import PictureError
from onnxfeat.framing import crop_box, letterbox, pad_margins
from onnxfeat.preprocessing import KERAS_INTERPOLATIONS, Aspect, Interpolation, Preprocessing, Resampling
from onnxfeat.records import ModelInput
from onnxfeat.running.images import load_samples
from onnxfeat.running.resizing import resized

PICTURES = sorted((Path(__file__).parent.parent / "models" / "pictures").glob("*.png"))
# Larger and smaller than the pictures, wider and taller, odd: each rounds the crop and the margins otherwise.
SIZES = [(64, 64), (224, 224), (299, 200), (37, 91), (500, 333)]


def noise(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def levels_of(picture: Path, size: tuple[int, int], **fields: Any) -> NDArray[np.float32]:
    """Return the levels that a model of this input size is fed."""
    target = ModelInput(name="image", shape=(1, *size, 3), layout="NHWC", dtype="float32")
    return np.asarray(load_samples(picture, target, Preprocessing(scale=1.0, **fields))[0])


def pixels_of(picture: Path) -> NDArray[np.uint8]:
    with Image.open(picture) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.keras
@pytest.mark.parametrize("interpolation", get_args(Interpolation))
@pytest.mark.parametrize("keep_aspect_ratio", [False, True])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("picture", PICTURES, ids=lambda path: path.stem)
def test_pillow_resampling_is_that_of_load_img(
    picture: Path, size: tuple[int, int], keep_aspect_ratio: bool, interpolation: Interpolation
) -> None:
    import keras

    ours = levels_of(picture, size, interpolation=interpolation, aspect="crop" if keep_aspect_ratio else "stretch")
    theirs = keras.utils.load_img(
        picture, target_size=size, interpolation=interpolation, keep_aspect_ratio=keep_aspect_ratio
    )
    np.testing.assert_array_equal(ours, keras.utils.img_to_array(theirs))


@pytest.mark.keras
@pytest.mark.parametrize("interpolation", KERAS_INTERPOLATIONS)
@pytest.mark.parametrize("aspect", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("picture", PICTURES, ids=lambda path: path.stem)
def test_keras_resampling_is_that_of_a_resizing_layer(
    picture: Path, size: tuple[int, int], aspect: Aspect, interpolation: Interpolation
) -> None:
    import keras

    layer = keras.layers.Resizing(
        *size,
        interpolation=interpolation,
        crop_to_aspect_ratio=aspect == "crop",
        pad_to_aspect_ratio=aspect == "pad",
        fill_value=12.5,
    )
    theirs = np.asarray(layer(pixels_of(picture).astype(np.float32)))
    ours = levels_of(picture, size, interpolation=interpolation, aspect=aspect, resampling="keras", fill=12.5)
    # Copies are equal, weighted sums to float32's rounding: of 255 that is 1.5e-5 for each of up to 16 terms.
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=0 if interpolation == "nearest" else 3e-4)


@pytest.mark.keras
@pytest.mark.parametrize("interpolation", KERAS_INTERPOLATIONS)
@pytest.mark.parametrize("aspect", ["stretch", "crop", "letterbox"])
@pytest.mark.parametrize("size", SIZES)
def test_keras_resampling_is_that_of_image_dataset_from_directory(
    tmp_path: Path, size: tuple[int, int], aspect: Aspect, interpolation: Interpolation
) -> None:
    import keras

    pictures = [*PICTURES, tmp_path / "noise.png"]
    Image.fromarray(noise(71, 30, 3)).save(pictures[-1])
    for number, picture in enumerate(pictures):
        (tmp_path / f"folder/{number}").mkdir(parents=True)
        (tmp_path / f"folder/{number}/a.png").write_bytes(picture.read_bytes())
    dataset = keras.utils.image_dataset_from_directory(
        tmp_path / "folder",
        labels=None,
        image_size=size,
        interpolation=interpolation,
        batch_size=None,
        shuffle=False,
        crop_to_aspect_ratio=aspect == "crop",
        pad_to_aspect_ratio=aspect == "letterbox",
        verbose=False,
    )
    for picture, theirs in zip(pictures, dataset.as_numpy_iterator(), strict=True):
        ours = levels_of(picture, size, interpolation=interpolation, aspect=aspect, resampling="keras")
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=0 if interpolation == "nearest" else 3e-4)


@pytest.mark.keras
@pytest.mark.parametrize("interpolation", KERAS_INTERPOLATIONS)
def test_keras_resampling_is_that_of_smart_resize(interpolation: Interpolation) -> None:
    import keras

    theirs = keras.preprocessing.image.smart_resize(
        pixels_of(PICTURES[0]).astype(np.float32), (50, 120), interpolation=interpolation
    )
    ours = levels_of(PICTURES[0], (50, 120), interpolation=interpolation, aspect="crop", resampling="keras")
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=0 if interpolation == "nearest" else 3e-4)


@pytest.mark.keras
@given(
    given_sides=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    sides=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    interpolation=st.sampled_from(KERAS_INTERPOLATIONS),
    aspect=st.sampled_from(["stretch", "crop", "pad"]),
)
@settings(max_examples=60, deadline=None)
def test_pictures_of_any_size_are_resized_as_keras_does(
    given_sides: tuple[int, int], sides: tuple[int, int], interpolation: Interpolation, aspect: Aspect
) -> None:
    import keras

    pixels = noise(*given_sides, 3)
    theirs = keras.ops.image.resize(
        pixels.astype(np.float32),
        sides,
        interpolation=interpolation,
        crop_to_aspect_ratio=aspect == "crop",
        pad_to_aspect_ratio=aspect == "pad",
    )
    spec = Preprocessing(interpolation=interpolation, aspect=aspect, resampling="keras")
    ours = resized(Image.fromarray(pixels), sides, spec)
    np.testing.assert_allclose(ours, np.asarray(theirs), rtol=0, atol=0 if interpolation == "nearest" else 3e-4)


@st.composite
def specs(draw: st.DrawFn) -> Preprocessing:
    resampling = draw(st.sampled_from(get_args(Resampling)))
    choices = get_args(Interpolation) if resampling == "pillow" else KERAS_INTERPOLATIONS
    return Preprocessing(
        interpolation=draw(st.sampled_from(choices)),
        aspect=draw(st.sampled_from(get_args(Aspect))),
        resampling=resampling,
        fill=draw(st.integers(0, 255)),
    )


@given(specs(), st.integers(1, 20), st.integers(1, 20), st.sampled_from(["RGB", "L"]))
def test_a_resize_to_the_same_size_changes_nothing(spec: Preprocessing, height: int, width: int, mode: str) -> None:
    pixels = noise(height, width, 3)[..., : len(mode)]
    image = Image.fromarray(pixels[..., 0] if mode == "L" else pixels)
    same = resized(image, (height, width), spec)
    assert same.dtype == np.uint8
    np.testing.assert_array_equal(same, pixels)


@given(specs(), st.tuples(*[st.integers(1, 40)] * 4), st.integers(0, 255))
def test_a_picture_of_one_level_keeps_it_wherever_it_is_not_padded(
    spec: Preprocessing, sides: tuple[int, int, int, int], level: int
) -> None:
    height, width, tall, wide = sides
    spec = spec.changed({"fill": level})
    found = resized(Image.new("RGB", (width, height), (level,) * 3), (tall, wide), spec)
    assert found.shape == (tall, wide, 3)
    np.testing.assert_allclose(found, level, atol=1e-3)


sides = st.integers(1, 2000)


@given(
    given_sides=st.tuples(sides, sides), size=st.tuples(sides, sides), resampling=st.sampled_from(["pillow", "keras"])
)
def test_a_crop_keeps_the_aspect_the_middle_and_one_side(
    given_sides: tuple[int, int], size: tuple[int, int], resampling: Resampling
) -> None:
    top, left, height, width = crop_box(given_sides, size, resampling)
    assert 0 <= given_sides[0] - height - 2 * top <= 1
    assert 0 <= given_sides[1] - width - 2 * left <= 1
    assert height == given_sides[0] or width == given_sides[1]
    # Of the aspect ratio wanted but for less than a pixel (one that is cropped away altogether stays).
    assert height <= max(width * size[0] / size[1], 1) + size[0] / size[1] + 1e-3
    assert width <= max(height * size[1] / size[0], 1) + size[1] / size[0] + 1e-3


@given(given_sides=st.tuples(sides, sides), size=st.tuples(sides, sides))
def test_padding_gives_the_aspect_and_keeps_one_side(given_sides: tuple[int, int], size: tuple[int, int]) -> None:
    top, left = pad_margins(given_sides, size)
    height, width = given_sides[0] + 2 * top, given_sides[1] + 2 * left
    assert 0 in (top, left)
    # An odd number of rows or columns is left one short, and a part of a pixel is cut off.
    assert width * size[0] / size[1] - height < 2 + 1e-3
    assert height * size[1] / size[0] - width < 2 + 1e-3


@given(given_sides=st.tuples(sides, sides), size=st.tuples(sides, sides))
def test_a_letterbox_keeps_the_aspect_and_fills_one_side(given_sides: tuple[int, int], size: tuple[int, int]) -> None:
    top, left, height, width = letterbox(given_sides, size)
    assert top + height <= size[0]
    assert left + width <= size[1]
    assert size[0] - height <= 1 or size[1] - width <= 1  # float32 may cost one
    scale = min(size[0] / given_sides[0], size[1] / given_sides[1])
    for side, exact in ((height, given_sides[0] * scale), (width, given_sides[1] * scale)):
        assert max(exact, 1) - 1 - 1e-3 <= side <= max(exact, 1) + 1e-3


@pytest.mark.parametrize("resampling", get_args(Resampling))
def test_what_is_padded_has_the_level_of_fill_and_the_picture_is_in_the_middle(resampling: Resampling) -> None:
    image = Image.new("RGB", (8, 4), (200, 100, 50))
    for aspect in ("pad", "letterbox"):
        spec = Preprocessing(aspect=aspect, fill=7, resampling=resampling, interpolation="nearest")
        found = resized(image, (16, 16), spec)
        assert (found[:4] == 7).all()
        assert (found[12:] == 7).all()
        assert (found[4:12] == (200, 100, 50)).all()


def test_a_letterbox_blends_no_padding_into_the_picture_and_padding_first_does() -> None:
    image = Image.new("L", (10, 5), 200)
    spec = Preprocessing(color="gray", aspect="letterbox")
    assert set(np.unique(resized(image, (23, 23), spec))) == {0, 200}
    assert set(np.unique(resized(image, (23, 23), spec.changed({"aspect": "pad"})))) > {0, 200}


def test_a_fill_between_two_levels_stays_between_them() -> None:
    image = Image.new("L", (8, 4), 200)
    for interpolation in KERAS_INTERPOLATIONS:
        spec = Preprocessing(
            color="gray", aspect="letterbox", fill=127.5, resampling="keras", interpolation=interpolation
        )
        assert resized(image, (8, 8), spec)[0, 0, 0] == 127.5


def test_the_values_of_keras_are_not_rounded_and_those_of_pillow_are() -> None:
    image = Image.fromarray(np.array([[0, 255]], dtype=np.uint8))
    keras = resized(image, (1, 4), Preprocessing(color="gray", resampling="keras"))
    assert keras.ravel().tolist() == [0, 63.75, 191.25, 255]
    pillow = resized(image, (1, 4), Preprocessing(color="gray"))
    assert pillow.dtype == np.uint8
    assert pillow.ravel().tolist() == [0, 64, 191, 255]


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
def test_values_between_levels_are_scaled_as_levels_are(dtype: str) -> None:
    target = ModelInput(name="image", shape=(1, 3, 1, 4), layout="NCHW", dtype=dtype)
    pixels = np.array([[[0, 10, 20], [255, 110, 220]]], dtype=np.uint8)
    spec = Preprocessing(
        scale=0.5, mean=(1.0, 2.0, 3.0), std=(1.0, 2.0, 4.0), color="bgr", resampling="keras", interpolation="bilinear"
    )
    share = np.array([0, 0.25, 0.75, 1])
    between = pixels[0, 0] * (1 - share[:, None]) + pixels[0, 1] * share[:, None]
    expected = ((between[:, ::-1] * 0.5 - [1, 2, 3]) / [1, 2, 4]).T
    expected = expected.round().clip(0, 255) if dtype == "uint8" else expected
    found = load_samples(pixels, target, spec)
    assert found.dtype == np.dtype(dtype)
    np.testing.assert_allclose(found[0, :, 0], expected, rtol=2e-3 if dtype == "float16" else 1e-6)


def test_a_strip_that_would_be_padded_to_a_bomb_is_refused() -> None:
    strip = Image.new("L", (20000, 1))
    message = r"1 x 20000 padded to the aspect ratio is too large .* pixels, at most .*: set aspect to 'letterbox'"
    with pytest.raises(PictureError, match=message):
        resized(strip, (64, 64), Preprocessing(color="gray", aspect="pad"))
    assert resized(strip, (64, 64), Preprocessing(color="gray", aspect="letterbox")).shape == (64, 64, 1)
    assert resized(strip, (64, 64), Preprocessing(color="gray", aspect="crop")).shape == (64, 64, 1)


def test_the_picture_is_not_changed() -> None:
    pixels = noise(5, 9, 3)
    image = Image.fromarray(pixels)
    for aspect in get_args(Aspect):
        resized(image, (4, 4), Preprocessing(aspect=aspect))
        np.testing.assert_array_equal(np.asarray(image), pixels)
