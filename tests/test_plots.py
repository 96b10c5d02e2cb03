import io
from collections.abc import Iterator
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import colors, pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import NDArray

from onnxfeat.drawing.arrangements import arrange
from onnxfeat.drawing.pictures import belt, grid, grid_columns
from onnxfeat.drawing.plots import plot
from onnxfeat.drawing.styles import Style
from onnxfeat.errors import PictureError
from onnxfeat.preprocessing import Preprocessing
from onnxfeat.records import FeatureMap, Features, Layer, ProviderChoice


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
    np.testing.assert_array_equal(image.get_array(), arrange(maps, style=Style(frame=False, max_belt=40)).levels)
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
        plot({})  # type: ignore[call-overload]


def as_features(maps: dict[str, NDArray[Any]], **facts: Any) -> Features:
    return Features(
        maps={name: as_map(array, name) for name, array in maps.items()},
        pictures=("cat.png",),
        preprocessed=(False,),
        model="net.onnx",
        sha256="0" * 64,
        provider=ProviderChoice(asked="cpu", got="CPUExecutionProvider"),
        preprocessing=Preprocessing(),
        preprocessing_source="default",
        seconds=0.5,
        **facts,
    )


def colors_in(figure: Figure) -> set[tuple[int, ...]]:
    """Colors of more than a few pixels: the edges of letters have many."""
    pixels = np.round(rendered(figure)[..., :3] * 255).astype(int).reshape(-1, 3)
    found, counts = np.unique(pixels, axis=0, return_counts=True)
    return {tuple(color) for color in found[counts > 3].tolist()}


@pytest.mark.parametrize("cmap", ["viridis", "gray_r", colors.ListedColormap(["white", "blue", "#ff8000"])])
@pytest.mark.parametrize("normalize", ["zscore", "minmax", "percentile", "symmetric", "log"])
@pytest.mark.parametrize("scale_over", ["channel", "layer"])
def test_the_hottest_pixel_of_a_rendered_figure_has_the_last_color(cmap: Any, normalize: Any, scale_over: Any) -> None:
    array = np.abs(noise(1, 3, 9, 11)) / 10
    array[0, 1, 4, 5] = 50
    figure = plot(as_map(array), cmap=cmap, normalize=normalize, scale_over=scale_over)
    axes = figure.axes[0]
    figure.canvas.draw()
    column, row = axes.transData.transform((11 + 5, 4))
    canvas = np.asarray(figure.canvas.buffer_rgba())  # type: ignore[attr-defined]
    shown = canvas[round(len(canvas) - row), round(column), :3]
    last = mpl.colormaps[cmap](1.0)[:3] if isinstance(cmap, str) else (1, 128 / 255, 0)
    np.testing.assert_allclose(shown, 255 * np.array(last), atol=1)


def test_no_pixel_is_blurred() -> None:
    # The finest pattern there is, at less than two dots for a cell: matplotlib left to itself would smooth it.
    array = np.zeros((1, 2, 401, 401))
    array[0, :, ::2, ::2] = 1
    with mpl.rc_context({"axes.edgecolor": "white"}):
        found = colors_in(plot(as_map(array), cmap=colors.ListedColormap(["#ff0000", "#00ff00"]), frame=False))
    assert found == {(255, 0, 0), (0, 255, 0), (255, 255, 255)}


def test_the_mean_stays_where_several_pixels_share_a_dot() -> None:
    # 3,000 columns on 1,550 dots: nearest neighbors would show one of the two values on each dot, in a wrong pattern.
    array = np.tile([0.0, 1.0], 1500).reshape(1, 1, 1, -1).repeat(40, axis=2)
    figure = plot(as_map(array), cmap="gray", normalize="minmax")
    pixels = rendered(figure)
    middle = pixels[pixels.shape[0] // 2, 400:1600, 0]
    assert ((middle > 0.2) & (middle < 0.8)).mean() > 0.5
    assert abs(middle.mean() - 0.5) < 0.1


def test_values_that_are_not_finite_have_colors_of_their_own_and_are_counted() -> None:
    array = noise(1, 2, 5, 5)
    array[0, 0, 1, 1], array[0, 1, 2, 2], array[0, 1, 3, 3] = np.nan, np.inf, -np.inf
    mine = mpl.colormaps["gray"].copy()
    before = mine.copy()
    for norm in (None, colors.Normalize(-1, 1)):
        figure = plot(as_map(array), cmap=mine, norm=norm)
        assert figure.axes[0].get_title() == "conv2d (1 NaN in magenta, 2 infinite in cyan)"
        assert {(255, 0, 255), (0, 255, 255)} <= colors_in(figure)
        assert not {(255, 0, 255), (0, 255, 255)} & colors_in(plot(as_map(noise(1, 2, 5, 5)), cmap=mine, norm=norm))
    assert mine == before


def test_constant_channels_are_counted_in_the_title() -> None:
    array = noise(1, 3, 5, 5)
    array[0, 0], array[0, 2] = 0, 7
    assert plot(as_map(array)).axes[0].get_title() == "conv2d (2 constant, 1 of them 0 everywhere)"


def test_one_scale_for_the_layer_gives_a_colorbar_in_its_own_units() -> None:
    array = noise(1, 3, 9, 11) * 40 + 5
    figure, axes = pyplot.subplots()
    plot(as_map(array), ax=axes, normalize="minmax", scale_over="layer")
    image = image_of(axes)
    np.testing.assert_array_equal(image.get_array(), array[0].transpose(1, 0, 2).reshape(9, -1))
    bar = figure.colorbar(image)
    assert bar.ax.get_ylim() == pytest.approx((array.min(), array.max()))


def test_one_scale_for_all_pictures_is_that_of_all_of_them() -> None:
    array = noise(2, 3, 5, 5)
    array[1] *= 10
    image = image_of(plot(as_map(array), normalize="minmax", scale_over="batch").axes[0])
    assert image.get_clim() == pytest.approx((array.min(), array.max()))
    np.testing.assert_array_equal(image.get_array(), array[0].transpose(1, 0, 2).reshape(5, -1))


def test_the_colorbar_of_log_spreads_small_values_as_the_levels_do() -> None:
    array = np.abs(noise(1, 1, 20, 20)) ** 3 + 2
    image = image_of(plot(as_map(array), normalize="log", scale_over="layer").axes[0])
    part = (array - array.min()) / (array.max() - array.min())
    expected = np.log1p(255 * part) / np.log(256)  # ITU-T G.711
    np.testing.assert_allclose(np.asarray(image.norm(array.ravel())), expected.ravel(), atol=2e-3)


def test_a_norm_is_applied_to_the_values_themselves() -> None:
    array = np.abs(noise(1, 3, 9, 11)) + 1e-3
    norm = colors.LogNorm()
    figure = plot(as_map(array), norm=norm)
    axes, bar = figure.axes
    image = image_of(axes)
    assert image.norm is norm
    assert image.get_clim() == pytest.approx((array.min(), array.max()))
    assert bar.get_ylim() == pytest.approx((array.min(), array.max()))
    assert bar.get_yscale() == "log"
    np.testing.assert_array_equal(image.get_array(), array[0].transpose(1, 0, 2).reshape(9, -1))


@pytest.mark.parametrize(
    "norm",
    [colors.TwoSlopeNorm(0), colors.SymLogNorm(0.1), colors.CenteredNorm(), colors.BoundaryNorm([-1, 0, 1], 256)],
)
def test_any_norm_of_matplotlib_can_be_passed(norm: colors.Normalize) -> None:
    figure = plot(as_map(noise(1, 3, 9, 11)), norm=norm, cmap="RdBu")
    assert image_of(figure.axes[0]).norm is norm
    assert rendered(figure).size > 0


def test_values_that_a_norm_leaves_out_are_not_called_nan() -> None:
    array = noise(1, 2, 9, 9)  # LogNorm draws no negative ones
    figure = plot(as_map(array), norm=colors.LogNorm())
    assert figure.axes[0].get_title() == "conv2d"
    assert (255, 0, 255) not in colors_in(figure)


def test_a_norm_without_limits_among_the_values_is_refused() -> None:
    with pytest.raises(PictureError, match="LogNorm finds no limits among the values: pass it vmin and vmax"):
        plot(as_map(np.zeros((1, 2, 3, 4))), norm=colors.LogNorm())
    assert pyplot.get_fignums() == []


def test_raw_values_of_grids_strips_and_volumes_lie_where_their_levels_do() -> None:
    norm = colors.Normalize()
    for shape in [(1, 7, 5, 6), (1, 20, 31), (1, 3, 20, 5, 6)]:
        maps = as_map(noise(*shape))
        levels = np.asarray(image_of(plot(maps, max_belt=30, normalize="minmax").axes[0]).get_array(), np.float64)
        image = image_of(plot(maps, max_belt=30, norm=norm).axes[0])
        drawn: Any = np.ma.asarray(image.get_array())
        values, is_cell = drawn.data, ~np.ma.getmaskarray(drawn)
        assert values.shape == levels.shape
        assert is_cell.mean() > 0.5
        whole = maps.array[0].reshape(shape[1], -1)
        if len(shape) == 3:  # each pixel is the mean of two cells, and the last of one
            pairs = np.append(whole, np.full((shape[1], 1), np.nan), axis=1).reshape(shape[1], -1, 2)
            whole = np.nanmean(pairs, axis=2)
        assert set(np.round(values[is_cell], 4)) <= set(np.round(whole.ravel(), 4).astype(np.float32))


def test_one_channel_is_drawn_large_with_its_values() -> None:
    array = noise(1, 8, 9, 11)
    figure = plot(as_map(array), channel=7, normalize="minmax")
    axes, bar = figure.axes
    assert axes.get_title() == "conv2d (channel 7)"
    assert axes.get_aspect() == 1
    assert max(figure.get_size_inches()) == 8
    np.testing.assert_array_equal(image_of(axes).get_array(), array[0, 7])
    assert bar.get_ylim() == pytest.approx((array[0, 7].min(), array[0, 7].max()))


@pytest.mark.parametrize(("channel", "words"), [(8, "channel 8 was asked for, the layer has 8"), ("a", "whole number")])
def test_a_channel_that_is_not_there_is_refused(channel: Any, words: str) -> None:
    with pytest.raises(PictureError, match=words):
        plot(as_map(noise(1, 8, 3, 4)), channel=channel)
    assert pyplot.get_fignums() == []


def test_channels_come_in_the_order_that_was_asked_for_as_many_as_were_asked_for() -> None:
    array = noise(1, 4, 5, 5) * np.array([1, 4, 2, 3]).reshape(1, 4, 1, 1)
    figure = plot(as_map(array), order="variance", top=2)
    axes, image = drawn_by(figure)
    assert axes.get_title() == "conv2d (2 of them, by variance, greatest first)"
    np.testing.assert_array_equal(image.get_array(), belt(array[:, [1, 3]]))
    assert figure.get_size_inches().tolist() == [20, 10]


@pytest.mark.parametrize(("method", "formula"), [("mean", np.mean), ("max", np.max), ("l2", np.linalg.norm)])
def test_a_reduction_is_drawn_as_one_picture_in_its_own_units(method: Any, formula: Any) -> None:
    array = noise(1, 6, 9, 11)
    figure = plot(as_map(array), reduce=method)
    axes, _ = figure.axes
    assert axes.get_title() == f"conv2d: {method} of 6 channels"
    np.testing.assert_allclose(np.asarray(image_of(axes).get_array()), formula(array[0], axis=0), rtol=1e-5, atol=1e-6)


def test_principal_components_are_red_green_and_blue() -> None:
    figure = plot(as_map(noise(1, 6, 9, 11)), reduce="pca")
    axes, image = drawn_by(figure)
    assert np.asarray(image.get_array()).shape == (9, 11, 3)
    assert axes.get_title().startswith("conv2d: principal components of 6 channels (")
    with pytest.raises(PictureError, match="leave cmap and norm out"):
        plot(as_map(noise(1, 6, 9, 11)), reduce="pca", cmap="gray")


def test_new_figures_say_what_their_colors_stand_for() -> None:
    maps = as_map(noise(1, 8, 7, 5))
    assert plot(maps).axes[0].get_title(loc="right").startswith("-2 deviations to +2 deviations (zscore: ")
    low = plot(as_map(noise(1, 30, 7, 5)), normalize="minmax", scale_over="layer").axes
    assert len(low) == 1  # there is no room for a colorbar
    array = noise(1, 30, 7, 5)
    assert low[0].get_title(loc="right").startswith(f"{array.min():.3g} to {array.max():.3g} (minmax: ")
    named = plot(as_map(noise(1, 8, 7, 5), "n" * 200)).axes[0]
    assert named.get_title(loc="right") == ""  # it would lie on the name
    assert named.get_xlabel().startswith("-2 deviations")


def test_pictures_without_a_frame_have_no_text() -> None:
    axes = plot(as_map(noise(1, 8, 7, 5)), frame=False).axes[0]
    assert axes.get_title() == axes.get_title(loc="right") == ""
    assert not axes.axison


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"cmap": "gray", "colormap": "magma"}, "two words for one thing"),
        ({"norm": colors.Normalize(), "scale_over": "layer"}, "norm says what the colors stand for, and so does"),
        ({"norm": "lgo"}, "norm 'lgo' is no scale of matplotlib: choose 'asinh', 'linear', 'log', 'logit' or 'symlog'"),
        ({"norm": 5}, "norm 5 is nothing that maps values to colors"),
        ({"channel": 1, "reduce": "mean"}, "channel draws one channel"),
        ({"overlay": True}, "no photograph"),
        ({"ordr": "index"}, "there is no choice 'ordr'"),
    ],
)
def test_choices_that_contradict_each_other_are_refused(choices: dict[str, Any], words: str) -> None:
    with pytest.raises(PictureError, match=words):
        plot(as_map(noise(1, 2, 3, 4)), **choices)
    assert pyplot.get_fignums() == []


def test_a_style_is_taken_whole_and_single_choices_change_it() -> None:
    maps = as_map(noise(1, 8, 7, 5))
    image = image_of(plot(maps, style=Style(normalize="minmax", colormap="magma", top=3), top=2).axes[0])
    assert image.get_cmap().name == "magma"
    np.testing.assert_array_equal(
        image.get_array(), arrange(maps, style=Style(frame=False, normalize="minmax", top=2)).levels
    )


@pytest.mark.parametrize("ending", ["png", "svg", "pdf", "webp"])
@pytest.mark.parametrize("choices", [{}, {"scale_over": "layer"}, {"reduce": "pca"}, {"norm": colors.Normalize()}])
def test_figures_can_be_saved_in_all_formats(ending: str, choices: dict[str, Any]) -> None:
    array = noise(1, 6, 9, 11)
    array[0, 0, 0, 0] = np.nan
    for figure in (plot(as_map(array), **choices), plot(as_features({"a": array}), **choices)):
        file = io.BytesIO()
        figure.savefig(file, format=ending)
        starts = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF", "webp": b"RIFF"}
        assert file.getvalue().startswith(starts[ending])


def test_settings_stay_whatever_is_drawn() -> None:
    before = mpl.rcParams.copy()
    maps = as_map(noise(1, 6, 9, 11))
    plot(maps, channel=2)
    plot(maps, norm=colors.CenteredNorm())
    plot(as_features({"a": noise(1, 6, 9, 11)}))
    assert dict(mpl.rcParams) == dict(before)


def test_axes_of_the_caller_get_no_other_axes_beside_them() -> None:
    mine, axes = pyplot.subplots()
    other, _ = pyplot.subplots()
    box = axes.get_position().bounds
    assert plot(as_map(noise(1, 8, 7, 5)), ax=axes, scale_over="layer", norm=None) is mine
    assert mine.axes == [axes]
    assert axes.get_position().bounds == box
    assert pyplot.gcf() is other
    assert pyplot.get_fignums() == [mine.number, other.number]


def test_a_model_is_drawn_with_the_name_of_every_layer() -> None:
    names = ["conv2d", "max$pool$", "features.0.<b>"]
    features = as_features({name: noise(1, 70, 4 + place, 5) for place, name in enumerate(names)})
    figure = plot(features)
    assert [axes.get_title(loc="left") for axes in figure.axes[:3]] == names
    *numbers, words = [text.get_text() for text in figure.axes[0].texts]
    assert words == "Conv, 70 channels of 4 x 5, 64 of them"
    assert numbers == [str(channel) for channel in range(64)]
    assert figure.texts[0].get_text() == "net.onnx, cat.png"
    np.testing.assert_array_equal(
        image_of(figure.axes[0]).get_array(),
        arrange(features["conv2d"], style=Style(frame=False, arrange="grid", top=64, aspect=1)).levels,
    )
    assert rendered(figure).shape[1] == 2000
    assert [tick.get_text() for tick in figure.axes[3].get_xticklabels()] == ["-2 deviations", "mean", "+2 deviations"]


def test_a_model_is_drawn_row_by_row_if_belts_are_asked_for() -> None:
    features = as_features({"a": noise(1, 30, 5, 5), "b": noise(1, 3, 5, 5)})
    first, second, *_ = plot(features, arrange="belt", normalize="minmax", scale_over="layer").axes
    assert np.asarray(image_of(first).get_array()).shape == (5, 100)  # the first 20 channels
    assert np.asarray(image_of(second).get_array()).shape == (5, 15)
    array = features["b"].array
    assert second.texts[-1].get_text().endswith(f"{array.min():.3g} to {array.max():.3g}")
    assert first.get_position().y0 > second.get_position().y1


def test_one_norm_serves_all_layers_with_the_limits_of_all() -> None:
    small, large = np.abs(noise(1, 3, 5, 5)) + 1, np.abs(noise(1, 3, 5, 5)) * 1000 + 2
    norm = colors.LogNorm()
    figure = plot(as_features({"dead": np.zeros((1, 3, 5, 5)), "small": small, "large": large}), norm=norm)
    assert (norm.vmin, norm.vmax) == pytest.approx((small.min(), large.max()))
    assert figure.axes[3].get_xlim() == pytest.approx((small.min(), large.max()))


def test_layers_that_cannot_be_drawn_are_named_in_the_figure() -> None:
    features = as_features({"a": noise(1, 3, 5, 5), "topk": np.zeros((1, 3, 0))}, left_out={"gone": "it was pruned"})
    words = " ".join(text.get_text() for text in plot(features).texts).replace("\n", " ")
    assert "Not drawn ('gone': it was pruned; 'topk': its map of shape (1, 3, 0) is empty)" in words
    with pytest.raises(PictureError, match=r"there is no layer to draw \('topk': its map of shape"):
        plot(as_features({"topk": np.zeros((1, 3, 0))}))


def test_a_model_is_not_drawn_in_axes() -> None:
    figure, axes = pyplot.subplots()
    with pytest.raises(PictureError, match="a whole model has a figure of its own"):
        plot(as_features({"a": noise(1, 3, 5, 5)}), ax=axes)  # type: ignore[call-overload]
    assert len(axes.images) == 0
    assert pyplot.get_fignums() == [figure.number]


def test_models_of_many_layers_fit_what_can_be_saved() -> None:
    figure = plot(as_features({f"layer_{place}": noise(1, 2, 3, 3) for place in range(150)}))
    assert figure.get_figheight() * figure.dpi < 2**16
    assert rendered(figure).shape[1] == 2000


def numbers_in(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts if text.get_text().isdigit()]


def strokes_in(axes: Axes) -> set[tuple[float, ...]]:
    """Lines that are neither upright nor level, as left, bottom, right, top."""
    found: set[tuple[float, ...]] = set()
    for collection in axes.collections:
        for (left, bottom), (right, top) in collection.get_segments():  # type: ignore[attr-defined]
            if left != right and top != bottom:
                found.add((left, bottom, right, top))
    return found


@pytest.mark.parametrize("scale_over", ["channel", "layer"])
def test_constant_channels_are_struck_through_from_corner_to_corner(scale_over: Any) -> None:
    array = noise(1, 6, 10, 8)
    array[0, 1], array[0, 4] = 0, 7
    belted = plot(as_map(array), scale_over=scale_over).axes[0]
    assert strokes_in(belted) == {(7.5, 9.5, 15.5, -0.5), (31.5, 9.5, 39.5, -0.5)}
    gridded = plot(as_map(array), arrange="grid", aspect=1.2, scale_over=scale_over).axes[0]
    columns = grid_columns(6, 10, 8, 1.2)
    corners = {(place % columns * 9 - 0.5, place // columns * 11 + 9.5) for place in (1, 4)}
    assert {stroke[:2] for stroke in strokes_in(gridded)} == corners
    assert strokes_in(plot(as_features({"a": array})).axes[0])
    assert not strokes_in(plot(as_map(noise(1, 6, 10, 8))).axes[0])


def test_strokes_are_seen_on_any_color() -> None:
    maps = as_map(np.zeros((1, 1, 30, 30)))
    for color in ("#202124", "#ffffff", "#808080"):
        pixels = rendered(plot(maps, cmap=colors.ListedColormap([color]), arrange="belt"))
        inner = np.round(pixels[890:1090, 925:1125, :3] * 255).reshape(-1, 3)
        other = np.abs(inner - 255 * np.array(colors.to_rgb(color))).max(axis=1) > 60
        assert other.sum() > 100


def test_each_channel_bears_its_number_in_its_own_corner() -> None:
    array = noise(1, 12, 10, 8) * 2.0 ** np.arange(12).reshape(1, 12, 1, 1)
    axes = plot(as_map(array), order="variance", top=5, arrange="grid").axes[0]
    assert numbers_in(axes) == ["11", "10", "9", "8", "7"]
    columns = grid_columns(5, 10, 8)
    for place, text in enumerate(text for text in axes.texts if text.get_text().isdigit()):
        x, y = text.get_position()
        assert (int((x + 0.5) // 9), int((y + 0.5) // 11)) == (place % columns, place // columns)
        box = text.get_window_extent().transformed(axes.transData.inverted())
        assert box.x1 < place % columns * 9 + 8


def test_numbers_that_do_not_fit_are_in_the_title_if_the_order_is_another() -> None:
    array = noise(1, 100, 6, 6)
    few = plot(as_map(array), channels=(40, *range(60, 99))).axes[0]
    assert numbers_in(few)[:2] == ["40", "60"]
    whole = plot(as_map(array)).axes[0]
    assert (numbers_in(whole), whole.get_title()) == ([], "conv2d")
    figure, axes = pyplot.subplots(1, 2, figsize=(30, 3))
    plot(as_map(array), channels=(17, 30, *range(5, 15), *range(40, 93)), ax=axes[0])
    assert numbers_in(axes[0]) == [str(channel) for channel in (17, 30, *range(5, 15), *range(40, 93))]
    figure.set_size_inches(4, 3)
    plot(as_map(array), channels=(*range(17, 30), 5), ax=axes[1])
    assert numbers_in(axes[1]) == []
    assert "channels 17, 18" in axes[1].get_title().replace("\n", " ")


def test_belts_are_parted_by_lines_between_the_channels_and_keep_their_limits() -> None:
    axes = plot(as_map(noise(1, 8, 7, 5))).axes[0]
    (lines,) = axes.collections
    ends = [segment.tolist() for segment in lines.get_segments()]  # type: ignore[attr-defined]
    assert ends == [[[5 * k - 0.5, -0.5], [5 * k - 0.5, 6.5]] for k in range(1, 8)]
    assert (axes.get_xlim(), axes.get_ylim()) == ((-0.5, 39.5), (6.5, -0.5))
    without = plot(as_map(noise(1, 8, 7, 5)), frame=False).axes[0]
    assert (list(without.collections), list(without.texts)) == ([], [])


def test_strips_name_the_channels_of_their_rows() -> None:
    array = noise(1, 30, 40) * 2.0 ** np.arange(30).reshape(1, 30, 1)
    axes = plot(as_map(array), order="variance").axes[0]
    found = dict(zip(axes.get_yticks(), (tick.get_text() for tick in axes.get_yticklabels()), strict=True))
    assert found == {row: str(29 - row) for row in range(30)}


def test_slices_of_a_volume_bear_the_number_of_their_channel_once() -> None:
    assert numbers_in(plot(as_map(noise(1, 3, 5, 6, 6))).axes[0]) == ["0", "1", "2"]


@pytest.mark.parametrize("layers", [2, 3, 5])
@pytest.mark.parametrize("name", ["conv_4", "features.0.very.long.name.of.a.layer/conv", "WWWWWWWWWWWWWWWW", "|" * 99])
def test_titles_are_no_wider_than_the_axes_of_the_caller(layers: int, name: str) -> None:
    array = noise(1, 8, 7, 5)
    array[0, 2] = 0
    figure, some = pyplot.subplots(1, layers, figsize=(9, 4))
    for axes in some:
        plot(as_map(array, name), ax=axes, order="variance", arrange="grid")
        box = axes.title.get_window_extent()
        assert box.width <= axes.bbox.width
        assert axes.get_title().startswith(name[:4])
    assert rendered(figure).size > 0


def test_titles_that_are_set_afterwards_replace_all_that_was_written() -> None:
    _, axes = pyplot.subplots(figsize=(2, 2))
    plot(as_map(np.zeros((1, 3, 5, 5)), "a name that takes two lines"), ax=axes)
    axes.set_title("mine")
    assert axes.get_title() == "mine"
    assert axes.title.get_fontsize() == 12


@pytest.mark.parametrize("scale", ["linear", "log", "symlog", "asinh", "logit"])
def test_norms_are_taken_by_name_as_in_imshow(scale: str) -> None:
    array = np.random.default_rng(0).uniform(0.1, 0.9, (1, 3, 9, 11))
    figure = plot(as_map(array), norm=scale)
    image = image_of(figure.axes[0])
    _, other = pyplot.subplots()
    oracle = other.imshow(np.asarray(image.get_array()), norm=scale)
    values = np.linspace(0.2, 0.8, 7)
    np.testing.assert_allclose(np.asarray(image.norm(values)), np.asarray(oracle.norm(values)), rtol=1e-6)
    assert figure.axes[0].get_title(loc="right").startswith("the values by ") or figure.axes[0].get_xlabel()
    whole = plot(as_features({"a": array, "b": array * 0.5}), norm=scale)
    assert image_of(whole.axes[0]).norm is image_of(whole.axes[1]).norm


def test_an_array_of_axes_is_refused() -> None:
    figure, some = pyplot.subplots(2, 2)
    with pytest.raises(PictureError, match=r"ax is of type ndarray, one axes is wanted: .* pass `axes\[0\]`"):
        plot(as_map(noise(1, 2, 3, 4)), ax=some)
    assert pyplot.get_fignums() == [figure.number]
