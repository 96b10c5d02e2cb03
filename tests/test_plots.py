import io
from collections.abc import Iterator
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import NDArray

from onnxfeat.drawing.arrangements import arrange
from onnxfeat.drawing.pictures import belt, grid, grid_columns
from onnxfeat.drawing.plots import plot
from onnxfeat.errors import PictureError
from onnxfeat.records import FeatureMap, Layer


@pytest.fixture(autouse=True)
def closed_figures() -> Iterator[None]:
    assert pyplot.get_fignums() == []
    yield
    pyplot.close("all")


def as_map(array: NDArray[Any], name: str = "conv2d", layout: str | None = None) -> FeatureMap:
    layer = Layer(name=name, kind="conv", op_type="Conv", value="v", raw_value="v", layout=layout)
    return FeatureMap(layer=layer, array=np.array(array, dtype=np.float32))


def noise(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def image_of(axes: Axes) -> AxesImage:
    (image,) = axes.get_images()
    return image


def drawn_by(figure: Figure) -> tuple[Axes, AxesImage]:
    (axes,) = figure.get_axes()
    return axes, image_of(axes)


def rendered(figure: Figure) -> NDArray[np.uint8]:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return np.asarray(pyplot.imread(io.BytesIO(file.getvalue())))


@pytest.mark.parametrize("channels", [1, 2, 8, 32])
def test_a_figure_is_20_inches_wide_and_20_over_k_high(channels: int) -> None:
    figure = plot(as_map(noise(1, channels, 7, 5)))
    assert figure.get_size_inches().tolist() == [20, 20 / channels]


def test_a_belt_is_drawn_as_in_the_reference_pipeline() -> None:
    maps = as_map(noise(1, 8, 7, 5))
    axes, image = drawn_by(plot(maps))
    assert axes.get_title() == "conv2d"
    assert axes.get_aspect() == "auto"
    assert image.get_cmap().name == "viridis"
    assert image.get_clim() == (0, 255)
    np.testing.assert_array_equal(image.get_array(), belt(maps))


def test_there_are_no_grid_lines_even_where_the_style_asks_for_them() -> None:
    with mpl.rc_context({"axes.grid": True}):
        axes, _ = drawn_by(plot(as_map(noise(1, 2, 3, 4))))
    assert not any(line.get_visible() for line in (*axes.get_xgridlines(), *axes.get_ygridlines()))


def test_gray_levels_span_the_colormap_even_where_they_are_few() -> None:
    # A constant map is mid-gray; matplotlib left to itself would stretch what it finds.
    _, image = drawn_by(plot(as_map(np.full((1, 1, 2, 2), 5.0)), cmap="gray"))
    assert image.get_clim() == (0, 255)
    assert (np.asarray(image.get_array()) == 128).all()


def test_any_colormap_of_matplotlib_can_be_chosen() -> None:
    _, image = drawn_by(plot(as_map(noise(1, 2, 3, 4)), cmap="twilight_shifted"))
    assert image.get_cmap().name == "twilight_shifted"


def test_a_picture_of_a_batch_is_chosen_by_index() -> None:
    maps = as_map(noise(3, 2, 4, 5))
    _, image = drawn_by(plot(maps, index=2))
    np.testing.assert_array_equal(image.get_array(), belt(maps, 2))


def test_a_belt_too_wide_becomes_a_grid_and_the_title_says_so() -> None:
    maps = as_map(noise(1, 12, 7, 5))
    figure = plot(maps, max_belt=59)
    axes, image = drawn_by(figure)
    columns = grid_columns(12, 7, 5)
    assert axes.get_title() == f"conv2d (12 channels in rows of {columns})"
    np.testing.assert_array_equal(image.get_array(), grid(maps, columns=columns))
    width, height = figure.get_size_inches()
    rows = -(-12 // columns)
    assert width == 20
    assert height / width == pytest.approx((rows * 7 + rows - 1) / (columns * 5 + columns - 1))
    assert drawn_by(plot(maps, max_belt=60))[0].get_title() == "conv2d"


@pytest.mark.parametrize("shape", [(1, 2048, 2, 2), (1, 4096, 3, 1), (1, 21000, 1, 1), (1, 2048, 7, 7), (1, 1, 1, 1)])
def test_figures_of_many_channels_can_be_saved(shape: tuple[int, ...]) -> None:
    assert rendered(plot(as_map(noise(*shape)))).shape[1] == 2000


def test_one_number_a_channel_is_drawn_as_a_row() -> None:
    _, image = drawn_by(plot(as_map(noise(1, 9, 1, 1))))
    assert np.asarray(image.get_array()).shape == (1, 9)


@pytest.mark.parametrize("name", ["a$b$c", "$\\frac{$", "x_1^{2", "% {}"])
def test_names_of_layers_are_no_formulas(name: str) -> None:
    figure = plot(as_map(noise(1, 2, 3, 4), name))
    assert drawn_by(figure)[0].get_title() == name
    assert rendered(figure).size > 0  # formulas are parsed, and refused, only now
    assert drawn_by(figure)[0].title.get_parse_math() is False


def test_axes_of_the_caller_are_drawn_in_and_their_figure_returned() -> None:
    mine, (left, right) = pyplot.subplots(1, 2, figsize=(6, 3))
    other = pyplot.figure()
    maps = as_map(noise(1, 8, 7, 5))
    assert plot(maps, ax=left) is mine
    np.testing.assert_array_equal(image_of(left).get_array(), belt(maps))
    assert left.get_title() == "conv2d"
    assert left.get_aspect() == "auto"
    assert right.get_images() == []
    assert right.get_title() == ""
    assert mine.get_size_inches().tolist() == [6, 3]
    assert pyplot.get_fignums() == [mine.number, other.number]
    assert pyplot.gcf() is other


def test_axes_in_a_subfigure_give_the_figure_as_a_whole() -> None:
    figure = pyplot.figure()
    part = figure.add_subfigure(figure.add_gridspec(1, 2)[0])
    assert plot(as_map(noise(1, 2, 3, 4)), ax=part.add_subplot()) is figure


def test_a_figure_without_pyplot_stays_out_of_it() -> None:
    figure = Figure()
    assert plot(as_map(noise(1, 2, 3, 4)), ax=figure.add_subplot()) is figure
    assert pyplot.get_fignums() == []


def test_one_figure_is_made_and_all_settings_stay() -> None:
    before = mpl.rcParams.copy()
    backend = mpl.get_backend()
    interactive = pyplot.isinteractive()
    figure = plot(as_map(noise(1, 2, 3, 4)))
    assert dict(mpl.rcParams) == dict(before)
    assert mpl.get_backend() == backend
    assert pyplot.isinteractive() == interactive
    assert pyplot.get_fignums() == [figure.number]


def test_maps_are_not_changed_by_plotting() -> None:
    array = noise(1, 2, 3, 4)
    maps = as_map(array)
    plot(maps)
    np.testing.assert_array_equal(maps.array, array)


def test_an_unknown_colormap_is_refused() -> None:
    with pytest.raises(PictureError, match=r"matplotlib has no colormap 'virdis': `list\(matplotlib\.colormaps\)`"):
        plot(as_map(noise(1, 2, 3, 4)), cmap="virdis")
    assert pyplot.get_fignums() == []


def test_a_picture_outside_the_batch_is_refused_without_a_figure() -> None:
    with pytest.raises(PictureError, match="picture 1 is outside the batch of 1"):
        plot(as_map(noise(1, 2, 3, 4)), index=1)
    assert pyplot.get_fignums() == []


@pytest.mark.parametrize("shape", [(1, 2, 0), (1, 2, 3, 4, 5, 6)])
def test_a_map_that_is_no_picture_is_refused_without_a_figure(shape: tuple[int, ...]) -> None:
    with pytest.raises(PictureError, match=r"layer 'conv2d' can't be drawn: its map .*; take its numbers from `array`"):
        plot(as_map(np.zeros(shape)))
    assert pyplot.get_fignums() == []


def test_few_channels_with_one_spatial_axis_are_lines_in_units_of_their_deviation() -> None:
    array = noise(2, 16, 50) * np.arange(1, 17)[:, None] + 7
    figure = plot(as_map(array, "eeg"), index=1)
    (axes,) = figure.get_axes()
    lines = axes.get_lines()
    assert axes.get_images() == []
    assert axes.get_title() == "eeg (16 channels, in units of the standard deviation of each)"
    assert [tick.get_text() for tick in axes.get_yticklabels()] == [str(channel) for channel in range(16)]
    for channel, line in enumerate(lines):
        values = array[1, channel].astype(np.float64)
        zero = axes.get_yticks()[channel]
        np.testing.assert_allclose(line.get_ydata() - zero, (values - values.mean()) / values.std(), atol=1e-4)
    assert len(lines) == 16
    assert (np.diff(axes.get_yticks()) < 0).all()  # the first channel is at the top
    assert rendered(figure).shape[1] == 2000


def test_lines_have_gaps_where_values_are_not_finite_and_are_flat_where_constant() -> None:
    array = noise(1, 3, 9)
    array[0, 0, 4] = np.inf
    array[0, 1] = 5
    array[0, 2] = np.nan
    lines = plot(as_map(array)).get_axes()[0].get_lines()
    first, second, third = (np.asarray(line.get_ydata()) for line in lines)
    assert np.nonzero(np.isnan(first))[0].tolist() == [4]
    assert len(set(second)) == 1
    assert np.isnan(third).all()


def test_many_channels_with_one_spatial_axis_are_a_strip_whose_axes_count_channels_and_cells() -> None:
    maps = as_map(noise(1, 17, 100), "speech")
    figure = plot(maps, max_belt=40)
    axes, image = drawn_by(figure)
    assert axes.get_title() == "speech (17 channels, one a row, each pixel is the mean of 3 cells)"
    np.testing.assert_array_equal(image.get_array(), arrange(maps, max_belt=40).levels)
    assert list(image.get_extent()) == [-0.5, 34 * 3 - 0.5, 16.5, -0.5]
    assert rendered(figure).shape[1] == 2000


def test_lines_too_long_to_be_seen_are_a_strip() -> None:
    axes, _ = drawn_by(plot(as_map(noise(1, 1, 41)), max_belt=40))
    assert axes.get_title() == "conv2d (1 channel, one a row, each pixel is the mean of 2 cells)"


def test_volumes_are_drawn_as_slices_and_the_title_says_which_part() -> None:
    maps = as_map(noise(1, 3, 32, 5, 6))
    axes, image = drawn_by(plot(maps))
    assert axes.get_title() == "conv2d (3 channels in rows of 1, 16 of 32 slices)"
    np.testing.assert_array_equal(image.get_array(), arrange(maps).levels)


@pytest.mark.parametrize("shape", [(1, 512, 2, 7, 7), (1, 2048, 3), (1, 1, 2, 4000, 2), (1, 70000, 2)])
def test_figures_of_narrow_pictures_can_be_saved(shape: tuple[int, ...]) -> None:
    figure = plot(as_map(np.zeros(shape)))
    assert figure.get_size_inches()[1] <= 40
    assert rendered(figure).shape[1] == 2000


def test_tokens_are_drawn_as_maps_without_those_before_them() -> None:
    array = noise(1, 4, 1 + 9)
    axes, image = drawn_by(plot(as_map(array, "blocks.0", "NTC")))
    assert axes.get_title() == "blocks.0 (first token left out)"
    np.testing.assert_array_equal(image.get_array(), belt(array[:, :, 1:].reshape(1, 4, 3, 3)))


def test_axes_that_were_removed_are_refused() -> None:
    _, axes = pyplot.subplots()
    axes.remove()
    with pytest.raises(PictureError, match="the axes belong to no figure any more: pass axes that were not removed"):
        plot(as_map(noise(1, 2, 3, 4)), ax=axes)


def test_what_is_no_feature_map_is_refused() -> None:
    with pytest.raises(PictureError, match="dict is no feature map: pass one of a layer"):
        plot({})  # type: ignore[arg-type]
