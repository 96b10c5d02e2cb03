import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxfeat import FeatureExtractor, check
from onnxfeat.cli import main
from onnxfeat.errors import PictureError
from onnxfeat.preprocessing import ColorOrder, Interpolation, Preprocessing, Preset, adjusted, preset
from onnxfeat.records import ModelInput
from onnxfeat.running.images import choose_preprocessing, load_samples
from onnxfeat.terminal import summary

MODEL = Path(__file__).parent.parent / "models" / "shapes_small.onnx"
PICTURE = Path(__file__).parent.parent / "models" / "pictures" / "chelsea.png"
MODES = ["torch", "caffe", "tf"]


def model_input(*, channels: int | str = 3, dtype: str = "float32", scaling: str | None = None) -> ModelInput:
    return ModelInput(name="image", shape=(1, 6, 9, channels), layout="NHWC", dtype=dtype, scaling=scaling)


def noise(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.keras
@pytest.mark.parametrize("mode", MODES)
def test_a_preset_gives_what_preprocess_input_of_its_name_gives(mode: Preset) -> None:
    from keras.applications.imagenet_utils import preprocess_input

    pixels = noise(6, 9, 3)
    spec, _ = choose_preprocessing(mode, None, model_input())
    theirs = preprocess_input(pixels.astype(np.float32), mode=mode, data_format="channels_last")
    # Keras rounds to float32 after each step, we once: a unit in the last place of 255, or of 1 where that is scaled.
    ours = load_samples(pixels, model_input(), spec)[0]
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5 if mode == "caffe" else 1e-6)


@pytest.mark.keras
def test_the_preset_keras_is_load_img_over_255_and_raw_is_the_levels() -> None:
    import keras

    image = keras.utils.img_to_array(keras.utils.load_img(PICTURE, target_size=(6, 9)))
    spec, _ = choose_preprocessing("keras", None, model_input())
    np.testing.assert_array_equal(load_samples(PICTURE, model_input(), spec)[0], image / 255)
    spec, _ = choose_preprocessing({"preset": "raw", "interpolation": "nearest"}, None, model_input())
    np.testing.assert_array_equal(load_samples(PICTURE, model_input(), spec)[0], image)


STORED = Preprocessing(
    size=(6, 9), scale=2.0, mean=(7.0,), std=(3.0,), color="bgr", interpolation="lanczos", aspect="crop"
)


@pytest.mark.parametrize("name", get_args(Preset))
def test_a_preset_takes_the_place_of_the_values_and_colors_that_are_stored_and_leaves_the_resize(name: Preset) -> None:
    spec, source = choose_preprocessing(name, STORED, model_input())
    assert source == f"model, preset {name} from the caller"
    assert (spec.size, spec.aspect, spec.resampling) == ((6, 9), "crop", "pillow")
    assert spec.interpolation == ("nearest" if name == "keras" else "lanczos")
    assert spec.color == ("bgr" if name == "caffe" else "rgb")
    assert (spec.scale, spec.mean, spec.std) != (STORED.scale, STORED.mean, STORED.std)
    assert 7.0 not in spec.mean
    assert 3.0 not in spec.std


def test_single_options_go_before_those_of_the_preset() -> None:
    asked = {"preset": "keras", "interpolation": "bicubic", "scale": 1.0, "size": (3, 4)}
    spec, source = choose_preprocessing(asked, None, model_input())
    assert (spec.interpolation, spec.scale, spec.size) == ("bicubic", 1.0, (3, 4))
    assert source == "default, preset keras and interpolation and scale and size from the caller"
    assert asked == {"preset": "keras", "interpolation": "bicubic", "scale": 1.0, "size": (3, 4)}


@pytest.mark.parametrize("name", ["torch", "caffe"])
def test_the_numbers_of_a_preset_follow_the_order_of_the_channels(name: Preset) -> None:
    pixels = noise(6, 9, 3)
    orders: tuple[ColorOrder, ...] = ("rgb", "bgr")
    rgb, bgr = (
        load_samples(pixels, model_input(), adjusted(Preprocessing(), {"preset": name, "color": color}))
        for color in orders
    )
    np.testing.assert_array_equal(rgb, bgr[..., ::-1])
    assert preset(name, "rgb")["mean"] == preset(name, "bgr")["mean"][::-1]


@pytest.mark.parametrize("name", ["keras", "tf", "raw"])
@pytest.mark.parametrize("channels", [1, "C"])
def test_a_preset_of_one_number_for_all_channels_leaves_gray_pictures_gray(name: Preset, channels: int | str) -> None:
    stored = Preprocessing(color="gray")
    spec, _ = choose_preprocessing(name, stored, model_input(channels=channels))
    assert spec.color == "gray"
    assert load_samples(noise(6, 9), model_input(channels=1), spec).shape == (1, 6, 9, 1)


@pytest.mark.parametrize("name", ["torch", "caffe"])
def test_a_preset_of_three_means_is_refused_for_a_gray_model_with_the_way_out(name: Preset) -> None:
    message = (
        f"preset '{name}' has numbers for red, green and blue, the model takes gray pictures: choose 'keras', 'tf' or "
        f"'raw', or set mean and std to one number each"
    )
    with pytest.raises(PictureError, match=re.escape(message)):
        choose_preprocessing(name, None, model_input(channels=1))
    spec, _ = choose_preprocessing({"preset": name, "mean": 0.5, "std": (0.2,)}, None, model_input(channels=1))
    assert (spec.mean, spec.std, spec.color) == ((0.5,), (0.2,), "gray")


@pytest.mark.parametrize("name", get_args(Preset))
def test_a_model_of_integers_takes_the_levels_alone(name: Preset) -> None:
    target = model_input(dtype="uint8")
    if name == "raw":
        pixels = noise(6, 9, 3)
        spec, _ = choose_preprocessing(name, None, target)
        np.testing.assert_array_equal(load_samples(pixels, target, spec)[0], pixels)
        return
    with pytest.raises(PictureError, match=f"preset '{name}' gives numbers between the integers .*: choose 'raw', or"):
        choose_preprocessing(name, None, target)


@pytest.mark.parametrize("asked", ["imagenet", {"preset": "Torch"}, {"preset": ["torch"]}, {"preset": 3}])
def test_an_unknown_preset_is_refused_with_the_list(asked: Any) -> None:
    message = "preset .* is unknown: choose 'keras', 'torch', 'caffe', 'tf' or 'raw'"
    with pytest.raises(PictureError, match=message):
        choose_preprocessing(asked, None, model_input())


def test_a_model_that_scales_its_input_itself_is_fed_levels_unless_told_otherwise() -> None:
    target = model_input(scaling="the model scales its input itself: Div by 255 in node 'd'")
    spec, source = choose_preprocessing(None, None, target)
    assert (spec.scale, source) == (1.0, f"default; {target.scaling}")
    spec, source = choose_preprocessing("tf", None, target)
    assert (spec.scale, source) == (1 / 127.5, f"default; {target.scaling}, preset tf from the caller")
    assert choose_preprocessing(None, Preprocessing(scale=5.0), target)[0].scale == 5.0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"aspect": "fit"}, "aspect 'fit' is unknown: choose 'stretch', 'crop', 'pad' or 'letterbox'"),
        ({"resampling": "torch"}, "resampling 'torch' is unknown: choose 'pillow' or 'keras'"),
        (
            {"resampling": "keras", "interpolation": "box"},
            "interpolation 'box' is Pillow's alone: choose 'nearest', 'bilinear' or 'bicubic', or resampling 'pillow'",
        ),
        ({"fill": -1}, "fill -1 is not a level: pass a number from 0 to 255"),
        ({"fill": 256}, "fill 256 is not a level"),
        ({"fill": float("nan")}, "fill nan is not a level"),
        ({"fill": "gray"}, "size, scale, mean, std and fill of the preprocessing must be numbers"),
        ({"fill": 0.5}, "fill 0.5 is between two levels, and Pillow resizes whole ones: pass a whole number, or"),
    ],
)
def test_a_resize_that_can_not_be_is_refused(fields: Mapping[str, Any], message: str) -> None:
    with pytest.raises(PictureError, match=re.escape(message)):
        Preprocessing().changed(fields)


def test_what_older_files_store_is_read_with_the_resize_that_they_meant() -> None:
    data = Preprocessing(scale=1.0).to_json()
    for name in ("aspect", "resampling", "fill"):
        del data[name]
    assert Preprocessing.from_json(data) == Preprocessing(scale=1.0, aspect="stretch", resampling="pillow", fill=0)


@given(
    st.builds(
        Preprocessing,
        aspect=st.sampled_from(["stretch", "crop", "pad", "letterbox"]),
        resampling=st.just("keras"),
        interpolation=st.sampled_from(["nearest", "bilinear", "bicubic"]),
        fill=st.floats(0, 255),
    )
)
def test_the_record_survives_json(spec: Preprocessing) -> None:
    assert Preprocessing.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_extractor_and_check_take_a_preset_by_its_name() -> None:
    extractor = FeatureExtractor(MODEL, provider="cpu", preprocessing="tf")
    assert (extractor.preprocessing.scale, extractor.preprocessing.mean) == (1 / 127.5, (1.0,))
    assert check(MODEL, PICTURE, layers="conv_1", provider="cpu", preprocessing="torch").passed
    with pytest.raises(PictureError, match="preset 'vgg' is unknown"):
        check(MODEL, PICTURE, layers="conv_1", provider="cpu", preprocessing="vgg")  # type: ignore[arg-type]


def drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[dict[str, Any], str]:
    with pytest.raises(SystemExit, match="0"):
        main(["draw", str(MODEL), str(PICTURE), "-o", str(tmp_path / "maps"), "--layers", "0", "--json", *options])
    printed = capsys.readouterr()
    return json.loads(printed.out)["preprocessing"], printed.err


def test_the_command_takes_what_python_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--preprocess", "torch", "--interpolation", "bicubic", "--aspect", "letterbox", "--resampling", "keras"]
    found, said = drawn(tmp_path, capsys, *options, "--fill", "127.5")
    asked: dict[str, Any] = {
        "preset": "torch",
        "interpolation": "bicubic",
        "aspect": "letterbox",
        "resampling": "keras",
        "fill": 127.5,
    }
    expected = FeatureExtractor(MODEL, provider="cpu", preprocessing=asked)
    source = found.pop("source")
    assert Preprocessing.from_json(found) == expected.preprocessing
    assert source == expected.preprocessing_source
    assert "bicubic by Keras's resampling (letterbox with 127.5), times 0.00392157, minus 0.485,0.456,0.406" in said


@pytest.mark.parametrize("command", ["draw", "check"])
@pytest.mark.parametrize(
    ("option", "value"), [("--preprocess", "vgg"), ("--aspect", "fit"), ("--resampling", "torch"), ("--fill", "gray")]
)
def test_what_an_option_does_not_take_is_wrong_usage(
    command: str, option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([command, str(MODEL), str(PICTURE), *(["-o", "maps"] if command == "draw" else []), option, value])
    assert option in capsys.readouterr().err


def test_check_takes_the_options_of_draw(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["check", str(MODEL), str(PICTURE), "--layers", "0", "--preprocess", "raw", "--aspect", "crop", "--json"])
    assert json.loads(capsys.readouterr().out)["passed"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "rgb, the input's size bilinear, times"),
        ({"aspect": "crop"}, "bilinear (crop), times"),
        ({"aspect": "pad", "fill": 7}, "bilinear (pad with 7), times"),
        ({"resampling": "keras"}, "bilinear by Keras's resampling, times"),
    ],
)
def test_the_sentence_tells_what_differs_from_a_plain_resize(fields: dict[str, Any], words: str) -> None:
    record: dict[str, Any] = {
        "provider": {"got": "CPUExecutionProvider", "note": ""},
        "preprocessing": {**Preprocessing().changed(fields).to_json(), "source": "default"},
        "pictures": [{"picture": "a.png", "preprocessed": False, "layers": []}],
        "left_out": {},
    }
    assert words in list(summary(record))[1]


def test_a_filter_of_pillow_alone_is_not_replaced_in_silence() -> None:
    lanczos: Interpolation = "lanczos"
    with pytest.raises(PictureError, match="interpolation 'lanczos' is Pillow's alone"):
        choose_preprocessing({"resampling": "keras"}, Preprocessing(interpolation=lanczos), model_input())
