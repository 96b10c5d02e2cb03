import numpy as np
import pytest
from numpy.typing import NDArray

from onnxfeat.drawing.arrangements import arrange
from onnxfeat.drawing.colormaps import INFINITE, NAN
from onnxfeat.drawing.legends import STROKE, ends_of, legend_of, marks_of, number, scale_note, words_of
from onnxfeat.drawing.scales import scale_of
from onnxfeat.drawing.styles import Normalization, ScaleOver, Style
from onnxfeat.records import FeatureMap, Layer

LAYER = Layer(name="conv", kind="conv", op_type="Conv", value="v", raw_value="v", activation="Relu")


def noise(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def words(array: NDArray[np.float32], style: Style, layer: Layer = LAYER) -> str:
    return ", ".join(words_of(layer, arrange(FeatureMap(layer=layer, array=array), style=style), style))


@pytest.mark.parametrize("over", ["layer", "batch"])
@pytest.mark.parametrize("method", ["zscore", "minmax", "percentile", "symmetric", "log"])
def test_the_ends_of_a_shared_scale_are_its_values(method: Normalization, over: ScaleOver) -> None:
    array = np.abs(noise(1, 3, 200, 200)) * 100
    low, middle, high = ends_of(scale_of(array, method, scale_over=over))
    values = array.astype(np.float64)
    expected = {
        "zscore": (values.mean() - 2 * values.std(), values.mean(), values.mean() + 2 * values.std()),
        "minmax": (values.min(), (values.min() + values.max()) / 2, values.max()),
        "percentile": (*(np.percentile(values, part) for part in (1, 99)),),
        "symmetric": (-values.max(), 0, values.max()),
        # Half of the way is where 255 r + 1 is the root of 256, 16.
        "log": (values.min(), values.min() + np.ptp(values) * 15 / 255, values.max()),
    }[method]
    found = [float(low), float(high)] if method == "percentile" else [float(low), float(middle), float(high)]
    np.testing.assert_allclose(found, expected, rtol=0.02, atol=0.01)


def test_the_ends_of_channels_that_have_their_own_are_told_in_words() -> None:
    array = noise(1, 3, 5, 5)
    assert ends_of(scale_of(array)) == ("-2 deviations", "mean", "+2 deviations")
    assert ends_of(scale_of(array, "symmetric")) == ("-greatest", "0", "+greatest")
    assert ends_of(scale_of(array, "minmax")) == ("lower end", "", "upper end")


def test_a_channel_that_is_alone_has_its_values_told() -> None:
    array = np.array([[[[0.0, 4.0]]]], np.float32)
    assert ends_of(scale_of(array, "minmax"), alone=True) == ("0", "2", "4")
    found = arrange(FeatureMap(layer=LAYER, array=noise(1, 4, 5, 5)), style=Style(channels=(2,), normalize="minmax"))
    values = noise(1, 4, 5, 5)[0, 2]
    ends = legend_of(found, Style(channels=(2,), normalize="minmax")).ends
    np.testing.assert_allclose([float(ends[0]), float(ends[2])], [values.min(), values.max()], rtol=0.01)


def test_what_is_nothing_beside_the_ends_is_told_as_0() -> None:
    array = np.array([[[[-6.0, 6.0001]]]])
    assert ends_of(scale_of(array, "minmax", scale_over="layer")) == ("-6", "0", "6")
    assert ends_of(scale_of(array * 1e-20, "minmax", scale_over="layer")) == ("-6e-20", "0", "6e-20")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (-0.0, "0"), (1.0, "1"), (0.5, "0.5"), (1234567.0, "1.23e+06"), (-3.4e38, "-3.4e+38")],
)
def test_numbers_take_few_letters(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize("over", ["channel", "layer", "batch"])
@pytest.mark.parametrize("method", ["zscore", "minmax", "percentile", "symmetric", "log"])
def test_the_note_names_the_method_and_what_shares_it(method: Normalization, over: ScaleOver) -> None:
    note = scale_note(Style(normalize=method, scale_over=over, percentiles=(2.5, 90)))
    assert note.startswith(f"{method}: ")
    assert {"channel": "each channel", "layer": "the layer", "batch": "all pictures"}[over] in note
    assert ("2.5 % to 90 %" in note) == (method == "percentile")


def test_only_what_is_there_is_marked_and_everything_is_counted() -> None:
    assert marks_of(nan=0, infinite=0, constant=0, dead=0) == ()
    assert marks_of(nan=1234, infinite=1, constant=3, dead=2) == (
        (NAN, "1,234 NaN"),
        (INFINITE, "1 infinite"),
        (STROKE, "3 constant, 2 of them 0 everywhere"),
    )
    assert marks_of(nan=0, infinite=0, constant=1, dead=0) == ((STROKE, "1 constant"),)


@pytest.mark.parametrize("style", [Style(), Style(dead="last"), Style(dead="omit"), Style(order="variance", top=3)])
def test_constant_channels_are_counted_wherever_they_went(style: Style) -> None:
    array = noise(1, 6, 5, 5)
    array[0, 1], array[0, 4] = 0, 7
    array[0, 2, 0, :2] = np.nan, np.inf
    found = arrange(FeatureMap(layer=LAYER, array=array), style=style)
    marks = dict(legend_of(found, style).marks)
    assert marks[STROKE] == "2 constant, 1 of them 0 everywhere"
    shown = 2 in found.channels
    assert (NAN in marks) == (INFINITE in marks) == shown


@pytest.mark.parametrize(
    ("style", "expected"),
    [
        (Style(), "Conv and Relu, 6 channels of 4 x 5"),
        (Style(top=2), "Conv and Relu, 6 channels of 4 x 5, 2 of them"),
        (Style(arrange="channel"), "Conv and Relu, 6 channels of 4 x 5, channel 0"),
        (Style(channels=(3,)), "Conv and Relu, 6 channels of 4 x 5, channel 3"),
        (Style(order="variance"), "Conv and Relu, 6 channels of 4 x 5, by variance, greatest first"),
        (
            Style(order="similarity", top=4),
            "Conv and Relu, 6 channels of 4 x 5, 4 of them, by similarity",
        ),
        (Style(dead="last"), "Conv and Relu, 6 channels of 4 x 5, constant ones last"),
        (Style(dead="omit"), "Conv and Relu, 6 channels of 4 x 5, 1 constant ones left out"),
    ],
)
def test_the_words_say_what_is_drawn_and_in_which_order(style: Style, expected: str) -> None:
    array = noise(1, 6, 4, 5)
    array[0, 1] = 0
    assert words(array, style) == expected


def test_nothing_is_said_of_what_did_not_happen() -> None:
    style = Style(top=9, dead="omit", order="index")
    assert words(noise(1, 6, 4, 5), style) == "Conv and Relu, 6 channels of 4 x 5"
    assert words(noise(1, 1, 4, 5), Style(order="variance")) == "Conv and Relu, 1 channel of 4 x 5"


def test_what_a_picture_can_not_hold_is_said() -> None:
    volume = Layer(name="c", kind="conv", op_type="Conv", value="v", raw_value="v", layout="NCDHW")
    assert words(noise(1, 2, 40, 3, 3), Style(), volume) == "Conv, 2 channels of 40 x 3 x 3, 16 of 40 slices"
