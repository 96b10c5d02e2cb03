"""Read reports in Chromium as a reader does; what they show is compared with plain NumPy and with the model itself."""

from __future__ import annotations

import base64
import io
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

import matplotlib as mpl
import numpy as np
import onnx
import onnxruntime
import pytest
from browser import AXE, Report, launched, opened, violations
from numpy.typing import NDArray
from onnx.helper import make_node, make_tensor_value_info
from PIL import Image

from onnxfeat import FeatureExtractor
from onnxfeat.errors import LayerError
from onnxfeat.layers.selection import select
from onnxfeat.preprocessing import Preprocessing
from onnxfeat.records import FeatureMap, Features, Kind, Layer, ProviderChoice
from onnxfeat.registration import Registration, Step, Window
from onnxfeat.report.pages import write_report

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parent.parent
INPUT = (24, 30)  # rows and columns of the network's input
LARGER = (31, 66)  # of a photograph that is resized to it
FINITE = 251  # the last stored level of finite values; 252 is the gap
METHODS = ("zscore", "minmax", "percentile", "symmetric", "log")
MAGENTA, CYAN = (255, 0, 255), (0, 255, 255)

Open = Callable[..., AbstractContextManager[Report]]


# What the pages are made of.


def network(*, bare: bool = False) -> onnx.ModelProto:
    """Return a network whose channel 4 never fires; with all weights 1 and no offsets where it is `bare`."""
    random = np.random.default_rng(3)
    weights = {
        "w1": random.normal(size=(6, 3, 3, 3)),
        "b1": random.normal(size=6) / 10,
        "w2": random.normal(size=(9, 6, 3, 2)),
    }
    weights["b1"][4] = -1000
    if bare:
        weights = {name: np.full(array.shape, float(name.startswith("w"))) for name, array in weights.items()}
    nodes = [
        make_node("Conv", ["x", "w1", "b1"], ["a"], name="first", pads=[1, 1, 1, 1]),
        make_node("Relu", ["a"], ["r"]),
        make_node("MaxPool", ["r"], ["p"], name="pool", kernel_shape=[2, 2], strides=[2, 2]),
        make_node("Conv", ["p", "w2"], ["y"], name="second", strides=[2, 1], dilations=[1, 2], pads=[1, 0, 0, 2]),
        make_node("GlobalAveragePool", ["y"], ["z"], name="whole"),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "network",
        [make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 3, *INPUT])],
        [make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in "rpyz"],
        [onnx.numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)


def photograph(rows: int, columns: int) -> Image.Image:
    """Return the cat in another size."""
    with Image.open(ROOT / "models/pictures/chelsea.png") as image:
        return image.convert("RGB").resize((columns, rows))


@cache
def explored() -> Features:
    """Return the network's maps of two photographs, the first of which is as large as its input."""
    extractor = FeatureExtractor(network(), layers="kind:conv,kind:pool", provider="cpu")
    return extractor([photograph(*INPUT), photograph(*LARGER)])


def layer_of(name: str, kind: Kind = "conv", **facts: Any) -> Layer:
    return Layer(**{"name": name, "kind": kind, "op_type": "Conv", "value": "v", "raw_value": "v"} | facts)


def features_of(maps: Mapping[str, NDArray[Any] | FeatureMap], **facts: Any) -> Features:
    """Return a run that nobody ran, of as many photographs as the maps have."""
    known = {
        name: x if isinstance(x, FeatureMap) else FeatureMap(layer=layer_of(name), array=x.astype(np.float32))
        for name, x in maps.items()
    }
    count = len(next(iter(known.values())).array)
    given: dict[str, Any] = {
        "maps": known,
        "pictures": tuple(f"picture_{index}.png" for index in range(count)),
        "preprocessed": (False,) * count,
        "model": "network.onnx",
        "sha256": "0" * 64,
        "provider": ProviderChoice(asked="auto", got="CPUExecutionProvider", note="no GPU"),
        "preprocessing": Preprocessing(size=INPUT),
        "preprocessing_source": "caller",
        "seconds": 0.5,
        "photographs": tuple(photograph(*INPUT) for _ in range(count)),
    }
    return Features(**given | facts)


def noise(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# What they ought to show.


def stored(report: Report, view: int = 0) -> NDArray[np.float64]:
    """Return the values that a page holds of the layer it shows, (C, rows, columns), from its picture by Pillow."""
    facts = report.layer["views"][view]
    with Image.open(io.BytesIO(report.sprite(view))) as image:
        assert image.mode == "P"
        levels = np.asarray(image)
    high, wide = facts["rows"] + 1, facts["columns"] + 1
    tiles = levels.reshape(levels.shape[0] // high, high, -1, wide).swapaxes(1, 2).reshape(-1, high, wide)
    tiles = tiles[: report.layer["channels"], :-1, :-1]
    low, top = (numbers(facts[name])[:, None, None] for name in ("low", "high"))
    values = low + tiles / FINITE * (top - low)
    for level, value in ((253, -np.inf), (254, np.inf), (255, np.nan)):
        values[tiles == level] = value
    return values


def numbers(text: str) -> NDArray[np.float64]:
    return np.frombuffer(base64.b64decode(text), "<f4").astype(np.float64)


def expected_levels(
    views: Sequence[NDArray[np.float64]],
    facts: Sequence[Mapping[str, Any]],
    method: str,
    over: str,
    percentiles: tuple[float, float] = (1.0, 99.0),
) -> list[NDArray[np.float64]]:
    """Return the level of each cell, 0 to 255, by the formulas of the brief; (C, rows, columns) for each photograph.

    Args:
        views: Values of each photograph, (C, rows, columns).
        facts: What the page holds of each: `mean` and `deviation`.
        method: The normalization.
        over: What shares a scale: a `channel` in all photographs or `alone` in each, a `layer` in each, or the `batch`.
        percentiles: Both ends for `percentile`.
    """
    if over == "batch":
        joined = np.concatenate([values.ravel() for values in views])
        middle, reach = scale_of(joined, pooled(facts, views), method, percentiles)
        return [leveled(values, middle, reach, method) for values in views]
    if over == "layer":
        pairs = list(zip(views, facts, strict=True))
        scales = [scale_of(values, pooled([fact], [values]), method, percentiles) for values, fact in pairs]
        return [leveled(values, *scale, method) for values, scale in zip(views, scales, strict=True)]
    shared = [[place] for place in range(len(views))] if over == "alone" else [list(range(len(views)))] * len(views)
    found = []
    for values, places in zip(views, shared, strict=True):
        levels = []
        for channel, own in enumerate(values):
            together = [views[place][channel : channel + 1] for place in places]
            moments = pooled([facts[place] for place in places], together, channel)
            joined = np.concatenate([x.ravel() for x in together])
            levels.append(leveled(own, *scale_of(joined, moments, method, percentiles), method))
        found.append(np.stack(levels))
    return found


def pooled(
    facts: Sequence[Mapping[str, Any]], views: Sequence[NDArray[np.float64]], channel: int | None = None
) -> tuple[float, float]:
    """Return mean and deviation of all channels, or of one, together; each counts as often as it has finite cells."""
    wanted = slice(None) if channel is None else slice(channel, channel + 1)
    means = np.concatenate([numbers(fact["mean"])[wanted] for fact in facts])
    deviations = np.concatenate([numbers(fact["deviation"])[wanted] for fact in facts])
    weights = np.concatenate([np.isfinite(values).sum(axis=(1, 2)) for values in views])
    if not weights.any():
        return 0.0, 0.0
    mean = np.average(means, weights=weights)
    return float(mean), float(np.sqrt(np.average(deviations**2 + means**2, weights=weights) - mean**2))


def scale_of(
    values: NDArray[np.float64], moments: tuple[float, float], method: str, percentiles: tuple[float, float]
) -> tuple[float, float]:
    """Return middle and reach; the reach is 0 where there is no contrast."""
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    if method == "symmetric":
        return 0.0, max(abs(low), abs(high))
    if low == high:
        return low, 0.0
    if method == "zscore":
        return moments[0], 2 * moments[1]
    if method == "percentile":
        ends = np.percentile(finite, percentiles)
        low, high = ends if ends[0] < ends[1] else (low, high)
    return (low + high) / 2, (high - low) / 2


def leveled(values: NDArray[np.float64], middle: float, reach: float, method: str) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore", divide="ignore"):
        part = (values - middle) / reach if reach else np.where(np.isnan(values), np.nan, 0.0)
        levels = part * 128 + 128
        if method == "log" and reach:
            levels = 256 * np.log1p(255 * np.maximum(0, (part + 1) / 2)) / np.log(256)
        return np.clip(np.trunc(levels), 0, 255)


def colored(levels: NDArray[np.float64], values: NDArray[np.float64], colormap: str) -> NDArray[np.uint8]:
    """Return the colors of levels, (..., 3); NaN is magenta and what is infinite cyan."""
    table = mpl.colormaps[colormap](np.arange(256), bytes=True)[:, :3]
    if colormap == "gray":  # matplotlib truncates some of its levels to the one below
        table = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    colors = np.asarray(table)[np.nan_to_num(levels).astype(int)]
    colors[np.isnan(values)] = MAGENTA
    colors[np.isinf(values)] = CYAN
    return np.asarray(colors)


@cache
def sight(name: str, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return which pixels of a photograph move each cell: (cells down, cells across, rows, columns).

    Each pixel in turn is made bright on a black photograph, which Pillow resizes in floating point, and the network
    with all weights 1 is run on it: no influence cancels out, and none is rounded away.
    """
    pictures = []
    for pixel in range(size[0] * size[1]):
        black = np.zeros(size, np.float32)
        black.flat[pixel] = 1
        resized = Image.fromarray(black).resize(INPUT[::-1], Image.Resampling.BILINEAR)
        # Weights that are 0 come out as 1e-17.
        pictures.append(np.repeat(np.where(np.asarray(resized) > 1e-6, 1, 0)[None], 3, axis=0).astype(np.float32))
    session = onnxruntime.InferenceSession(network(bare=True).SerializeToString(), providers=["CPUExecutionProvider"])
    value = {"first": "r", "pool": "p", "second": "y"}[name]
    (maps,) = session.run([value], {"x": np.stack(pictures)})
    moved = (np.asarray(maps) != 0).any(axis=1)
    return np.asarray(moved.reshape(*size, *moved.shape[1:]).transpose(2, 3, 0, 1))


def bounds(mask: NDArray[np.bool_]) -> list[int]:
    """Return top, bottom, left and right of what is true."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return [int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1]


# Fixtures.


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as running:
        yield running


@pytest.fixture
def show(browser: Browser, tmp_path: Path) -> Open:
    """Write features as a page and open it: `with show(features, normalize="log") as report`."""

    @contextmanager
    def shown(
        features: Features | Sequence[Features],
        fragment: str = "",
        *,
        options: dict[str, Any] | None = None,
        **style: Any,
    ) -> Iterator[Report]:
        path = tmp_path / "report.html"
        write_report(features, path, overwrite=True, **style)
        with opened(browser, path.as_uri() + fragment, **options or {}) as page:
            report = Report(page)
            if (options or {}).get("java_script_enabled", True):
                report.settle()
            yield report

    return shown


# Pixels.


def tiles(report: Report, photograph: int = 0) -> dict[int, NDArray[np.uint8]]:
    """Return the colors of the cells of each channel that the grid of a photograph shows, by channel."""
    facts = report.layer["views"][photograph]
    colors = report.grid(photograph)
    order = report.order()
    wide = facts["columns"] + 1
    across = colors.shape[1] // wide
    high = colors.shape[0] // -(-len(order) // across)  # what lies in one row needs no gap below
    found = {}
    for place, channel in enumerate(order):
        top, left = place // across * high, place % across * wide
        tile = colors[top : top + facts["rows"], left : left + facts["columns"]]
        assert (tile[..., 3] == 255).all()
        found[channel] = tile[..., :3]
    return found


def assert_shows(report: Report, method: str, over: str, percentiles: tuple[float, float] = (1.0, 99.0)) -> None:
    """Compare what the grids show with NumPy: a level may be off by one where rounding decides, and nowhere else."""
    facts = report.layer["views"]
    views = [stored(report, index) for index in range(len(facts))]
    for index, levels in enumerate(expected_levels(views, facts, method, over, percentiles)):
        near = [np.clip(levels + step, 0, 255) for step in (0, -1, 1)]
        wanted = np.stack([colored(each, views[index], report.chosen("colors")) for each in near])
        shown = tiles(report, index)
        assert shown
        same = np.stack([(wanted[:, channel] == colors).all(axis=-1) for channel, colors in shown.items()], axis=1)
        assert same.any(axis=0).all(), (method, over)
        assert same[0].mean() > 0.999, (method, over)


@pytest.mark.parametrize("name", ["first", "pool", "second"])
def test_the_stored_values_are_the_models_within_half_a_step(show: Open, name: str) -> None:
    array = explored()[name].array.astype(np.float64)
    with show(explored(), f"#{name}") as report:
        assert report.layer["name"] == name
        for index in range(2):
            step = np.ptp(array[index], axis=(1, 2), keepdims=True) / FINITE
            assert (np.abs(stored(report, index) - array[index]) <= step / 2 * (1 + 1e-4) + 1e-6).all()


@pytest.mark.parametrize("method", METHODS)
def test_each_normalization_over_each_scale_shows_the_levels_of_its_formula(show: Open, method: str) -> None:
    with show(explored(), "#second") as report:
        for over in ("channel", "alone", "layer", "batch"):
            report.choose(normalize=method, scale_over=over, order="index", dead="keep")
            assert_shows(report, method, over)


@pytest.mark.parametrize("method", ["zscore", "log"])
def test_a_page_begins_with_the_style_that_it_was_written_with(show: Open, method: str) -> None:
    chosen = {"normalize": method, "scale_over": "batch", "colormap": "magma", "order": "variance", "top": 4}
    with show(explored(), "#second", **chosen) as report:
        assert report.chosen("colors") == "magma"
        variance = explored()["second"].array.astype(np.float64).transpose(1, 0, 2, 3).reshape(9, -1).var(axis=1)
        assert report.order() == np.argsort(-variance)[:4].tolist()
        assert_shows(report, method, "batch")


def test_percentiles_are_those_that_the_page_was_written_with(show: Open) -> None:
    with show(explored(), "#first", normalize="percentile", percentiles=(10, 80)) as report:
        for over in ("channel", "alone", "layer", "batch"):
            report.choose(scale_over=over)
            assert_shows(report, "percentile", over, (10, 80))


def test_every_colormap_of_the_page_is_matplotlibs(show: Open) -> None:
    with show(explored(), "#second") as report:
        assert set(report.data["colormaps"]) >= {"viridis", "magma", "cividis", "gray", "coolwarm"}
        for name in report.data["colormaps"]:
            report.choose(normalize="minmax", colors=name)
            assert_shows(report, "minmax", "channel")


def test_the_channels_stand_in_the_order_that_was_chosen(show: Open) -> None:
    array = explored()["second"].array.astype(np.float64).transpose(1, 0, 2, 3).reshape(9, -1)
    with show(explored(), "#second") as report:
        assert report.order() == list(range(9))
        report.choose(order="magnitude")
        assert report.order() == np.argsort(-np.abs(array).mean(axis=1)).tolist()
        report.choose(order="variance")
        assert report.order() == np.argsort(-array.var(axis=1)).tolist()
        report.choose(top=2)
        assert report.order() == np.argsort(-array.var(axis=1))[:2].tolist()
        report.choose(top=None, order="index")
        assert report.order() == list(range(9))


def test_channels_that_look_alike_stand_side_by_side(show: Open) -> None:
    waves = np.stack([np.sin(np.arange(400) * speed).reshape(20, 20) for speed in (0.1, 0.7, 1.9)])
    array = np.concatenate([waves, np.zeros((1, 20, 20)), waves + 0.01 * noise(3, 20, 20)])[None]
    with show(features_of({"waves": array})) as report:
        report.choose(order="similarity")
        order = report.order()
    assert sorted(order) == list(range(7))
    assert order[0] == 0
    assert order[-1] == 3
    assert [{order[at] % 4, order[at + 1] % 4} for at in (0, 2, 4)] in ([{0}, {1}, {2}], [{0}, {2}, {1}])


def test_dead_channels_keep_their_place_come_last_or_are_left_out(show: Open) -> None:
    with show(explored(), "#first") as report:
        assert report.order() == [0, 1, 2, 3, 4, 5]
        report.choose(dead="last")
        assert report.order() == [0, 1, 2, 3, 5, 4]
        report.choose(dead="omit")
        assert report.order() == [0, 1, 2, 3, 5]
        assert_shows(report, "zscore", "channel")


def test_photographs_of_several_sizes_share_a_scale(show: Open) -> None:
    runs = [
        features_of({"map": 3 * noise(1, 4, 12, 9, seed=1)}, pictures=("a.png",), photographs=(photograph(48, 36),)),
        features_of({"map": noise(1, 4, 7, 15, seed=2) + 5}, pictures=("b.png",), photographs=(photograph(28, 60),)),
    ]
    with show(runs) as report:
        assert [(view["rows"], view["columns"]) for view in report.layer["views"]] == [(12, 9), (7, 15)]
        for over in ("channel", "batch"):
            for method in METHODS:
                report.choose(normalize=method, scale_over=over)
                assert_shows(report, method, over)


def test_one_photograph_may_be_there_twice(show: Open) -> None:
    once = features_of({"map": noise(1, 4, 12, 9)}, photographs=("models/pictures/chelsea.png",))
    with show([once, once]) as report:
        for index in (0, 1):
            assert report.canvas(index).is_visible()
            report.hover_cell(3, 4, photograph=index)
            assert report.told("photograph") == index


def test_pictures_tell_the_shape_of_their_own_map(show: Open) -> None:
    runs = [features_of({"map": noise(1, 4, *sides)}, pictures=(f"{sides}.png",)) for sides in ((12, 9), (7, 15))]
    with show(runs) as report:
        for index, sides in enumerate(("12 x 9", "7 x 15")):
            for picture in (report.section.locator("img.sprite").nth(index), report.canvas(index)):
                told = picture.get_attribute("alt") or picture.get_attribute("aria-label") or ""
                assert f"4 channels of {sides} for" in told
        assert "12 x 9" in report.section.locator(".facts").inner_text()
        assert "7 x 15" in report.section.locator(".facts").inner_text()


def test_nan_is_magenta_and_infinite_values_are_cyan(show: Open) -> None:
    array = noise(1, 3, 8, 8)
    array[0, 0, 2, 3], array[0, 0, 4, 5], array[0, 0, 6, 7] = np.nan, np.inf, -np.inf
    array[0, 2] = np.nan
    with show(features_of({"odd": array})) as report:
        shown = tiles(report)
        assert tuple(shown[0][2, 3]) == MAGENTA
        assert tuple(shown[0][4, 5]) == tuple(shown[0][6, 7]) == CYAN
        assert (shown[2] == MAGENTA).all()
        assert_shows(report, "zscore", "channel")
        report.hover_cell(2, 3)
        assert "NaN" in report.readout
        report.hover_cell(6, 7)
        assert "∞" in report.readout or "infin" in report.readout.lower()


# Places.


@pytest.mark.parametrize("name", ["first", "pool", "second"])
@pytest.mark.parametrize("index", [0, 1])
def test_hovering_a_cell_tells_its_value_and_what_it_sees(show: Open, name: str, index: int) -> None:
    seen = sight(name, [INPUT, LARGER][index])
    array = explored()[name].array[index]
    rows, columns = array.shape[1:]
    with show(explored(), f"#{name}/2") as report:
        for row, column in {(0, 0), (rows - 1, columns - 1), (rows // 2, columns // 3), (1, columns - 2)}:
            report.hover_cell(row, column, index)
            place = {key: report.told(key) for key in ("channel", "row", "column", "photograph")}
            assert place == {"channel": 2, "row": row, "column": column, "photograph": index}
            assert abs(report.told("value") - array[2, row, column]) <= np.ptp(array[2]) / FINITE / 2 * (1 + 1e-4)
            assert report.told("field") == bounds(seen[row, column])
            top, bottom, left, right = bounds(seen[row, column])
            assert f"rows {top} to {bottom - 1}, columns {left} to {right - 1}" in report.readout


@pytest.mark.parametrize("name", ["first", "pool", "second"])
@pytest.mark.parametrize("index", [0, 1])
def test_hovering_the_photograph_lights_the_cells_that_see_the_pixel(show: Open, name: str, index: int) -> None:
    size = [INPUT, LARGER][index]
    seen = sight(name, size)
    with show(explored(), f"#{name}/2") as report:
        for row, column in {(0, 0), (size[0] - 1, size[1] - 1), (size[0] // 2, size[1] // 3), (3, size[1] - 2)}:
            report.hover_photograph(row, column, index)
            assert sorted(map(tuple, report.told("cells"))) == list(
                zip(*np.nonzero(seen[:, :, row, column]), strict=True)
            )


def test_cells_of_the_grid_tell_the_same_and_a_click_selects_their_channel(show: Open) -> None:
    array = explored()["second"].array[1]
    seen = sight("second", LARGER)
    with show(explored(), "#second") as report:
        report.hover_tile(5, 3, 10, photograph=1)
        assert (report.told("row"), report.told("column"), report.told("photograph")) == (3, 10, 1)
        assert abs(report.told("value") - array[5, 3, 10]) <= np.ptp(array[5]) / FINITE / 2 * (1 + 1e-4)
        assert report.told("field") == bounds(seen[3, 10])
        assert "channel 5" in report.readout
        report.page.mouse.down()
        report.page.mouse.up()
        assert report.channel == 5


def test_an_array_that_came_preprocessed_has_the_fields_of_its_cells_on_an_empty_frame(show: Open) -> None:
    array = noise(1, 3, *INPUT)
    features = FeatureExtractor(network(), layers="second", provider="cpu")(array)
    with show(features) as report:
        report.hover_cell(2, 6)
        assert report.told("field") == bounds(sight("second", INPUT)[2, 6])
        assert report.stage(0, "seen").is_visible()


def test_a_cell_behind_a_gate_is_said_to_see_the_whole_picture(show: Open) -> None:
    nodes = """
        y = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w)
        mean = GlobalAveragePool (y)
        gate = Sigmoid (mean)
        gated = Mul (y, gate)
        z = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (gated, w)
    """
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17]> g (float[N,3,24,30] x, float[3,3,3,3] w) => (float[N,3,24,30] z) '
        f"{{ {nodes} }}"
    )
    model.graph.input.pop()
    model.graph.initializer.append(onnx.numpy_helper.from_array(noise(3, 3, 3, 3), "w"))
    features = FeatureExtractor(model, layers="kind:conv", provider="cpu")(photograph(*INPUT))
    with show(features) as report:
        report.hover_cell(4, 4)
        assert "whole picture" not in report.readout
        report.press("ArrowDown")
        report.hover_cell(4, 4)
        assert report.told("field") == [2, 7, 2, 7]
        assert "whole picture" in report.readout


def test_the_colors_of_the_channel_are_said_in_its_units(show: Open) -> None:
    array = explored()["second"].array.astype(np.float64)
    with show(explored(), "#second/4") as report:
        for method in METHODS:
            report.choose(normalize=method, scale_over="alone")
            for index in range(2):
                values = array[index, 4]
                wanted = {
                    "zscore": (values.mean() - 2 * values.std(), values.mean() + 2 * values.std()),
                    "symmetric": (-np.abs(values).max(), np.abs(values).max()),
                    "percentile": tuple(np.percentile(values, (1, 99))),
                }.get(method, (values.min(), values.max()))
                told = report.aside.locator(".pair").nth(index).locator(".ends span").all_text_contents()
                # Percentiles are those of stored levels.
                tolerance = np.ptp(values) / FINITE if method == "percentile" else np.abs(wanted).max() * 1e-3
                assert abs(float(told[0]) - wanted[0]) <= tolerance, method
                assert abs(float(told[2]) - wanted[1]) <= tolerance, method
            facts = report.aside.locator(".pair").nth(0).locator("[data-fact]").all_text_contents()
            values = array[0, 4]
            np.testing.assert_allclose(
                [float(x) for x in facts], [values.mean(), values.std(), values.min(), values.max()], rtol=1e-3
            )


def test_where_no_cell_belongs_to_a_place_the_page_says_why(show: Open) -> None:
    with show(features_of({"alone": noise(1, 3, 6, 6)})) as report:
        assert report.layer["why_no_place"]
        report.hover_cell(1, 1)
        assert report.told("field") is None
        assert report.layer["why_no_place"] in report.readout


def test_the_map_stays_under_the_pointer_whatever_is_told_of_it(show: Open) -> None:
    """A line more in the panel must not push the pictures down: the next move would tell another cell."""
    layer = layer_of("gated")
    registration = Registration(steps=(Step(), Step((0,), Window(3), Window(3))), step=1, size=INPUT, gated=True)
    array = noise(1, 2, INPUT[0] - 2, INPUT[1] - 2)
    features = features_of({"gated": FeatureMap(layer=layer, array=array, registration=registration), "lost": array})
    for name in ("gated", "lost"):
        with show(features, f"#{name}", options={"viewport": {"width": 1200, "height": 900}}) as report:
            stage = report.stage(0, "large")
            before = stage.bounding_box()
            rows = []
            for row in range(4):
                report.hover_cell(row, 5)
                rows.append(report.told("row"))
                assert stage.bounding_box() == before
            assert rows == [0, 1, 2, 3]


def test_the_panel_shows_the_photograph_of_the_cell_that_is_pointed_at_in_the_grid(show: Open) -> None:
    features = features_of({"map": noise(6, 4, 12, 9)})
    with show(features, options={"viewport": {"width": 1440, "height": 700}}) as report:
        for index in (5, 2):
            report.hover_tile(1, 3, 4, photograph=index)
            seen, told = (x.bounding_box() for x in (report.stage(index, "seen"), report.page.locator("output")))
            assert seen is not None
            assert told is not None
            assert told["y"] + told["height"] <= seen["y"] <= 700 - seen["height"]


def test_what_is_told_is_of_the_channel_that_is_shown(show: Open) -> None:
    array = explored()["first"].array
    with show(explored(), "#first") as report:
        report.hover_cell(4, 5)
        report.press("ArrowRight", "ArrowRight")
        assert report.channel == 2
        assert abs(report.told("value") - array[0, 2, 4, 5]) <= np.ptp(array[0, 2]) / FINITE
        assert "channel 2" in report.readout


def test_no_outline_of_the_layer_before_stays(show: Open) -> None:
    with show(explored(), "#first") as report:
        report.hover_tile(3, 2, 2)
        outline = report.page.locator(".grids .hovered").first
        assert outline.get_attribute("d")
        report.press("ArrowDown")
        assert not outline.get_attribute("d")


def test_what_no_finite_value_has_is_not_told_as_zero(show: Open) -> None:
    array = noise(1, 2, 6, 6)
    array[0, 1] = np.nan
    with show(features_of({"half": array, "none": np.full((1, 2, 6, 6), np.nan)}), "#half/1") as report:
        assert report.aside.locator("[data-fact]").all_text_contents() == ["\N{EN DASH}"] * 4
        assert report.aside.locator(".note").inner_text() == "36 NaN or infinite"
        report.page.goto(report.page.url.partition("#")[0] + "#none")
        report.wait_for("none")
        cells = report.section.locator("tbody td").all_text_contents()
        assert [x.strip() for x in cells[1:5]] == ["\N{EN DASH}"] * 4
        assert "no value is finite" in (report.canvas().get_attribute("aria-label") or "")


# Ways through the page.


def test_a_link_to_a_channel_shows_it_in_the_grid(show: Open) -> None:
    with show(features_of({"many": noise(1, 900, 12, 12)}), "#many/890") as report:
        box = report.page.locator(".grids .selected").bounding_box()
        assert box is not None
        assert 0 <= box["y"] <= report.page.viewport_size["height"] - box["height"]  # type: ignore[index]


def test_the_address_follows_the_channel_when_another_one_comes_first(show: Open) -> None:
    with show(explored(), "#second/7") as report:
        report.choose(top=2)
        assert report.channel == 0
        report.page.wait_for_url(re.compile("#second/0$"))


def test_what_was_run_can_be_linked(show: Open) -> None:
    with show(explored(), "#what-was-run") as report:
        assert report.page.get_by_role("alert").count() == 0
        report.page.get_by_role("link", name="what was run").click()
        assert report.page.get_by_role("heading", name="What was run").is_visible()


def test_of_too_many_channels_the_similarity_is_not_found_and_that_is_told(show: Open) -> None:
    with show(features_of({"many": noise(1, 5001, 2, 2), "few": noise(1, 4, 2, 2)})) as report:
        told = report.page.locator(".shown")
        report.choose(order="similarity")
        assert "too many to find the similarity" in told.inner_text()
        report.press("ArrowDown", "ArrowUp")
        assert "too many to find the similarity" in told.inner_text()
        report.choose(order="variance")
        assert "too many" not in told.inner_text()


def test_escape_takes_the_search_back(show: Open) -> None:
    with show(explored()) as report:
        report.press("/")
        report.page.keyboard.type("op:MaxPool")
        assert report.page.locator("nav li:visible").count() == 1
        report.press("Escape")
        assert report.page.locator("nav li:visible").count() == len(explored())
        assert report.page.get_by_role("searchbox").input_value() == ""


def shown_fragment(report: Report) -> str:
    report.page.wait_for_timeout(400)  # the page writes its address at most every 300 ms
    return unquote(report.page.url.partition("#")[2])


def test_an_address_opens_a_layer_and_a_channel(show: Open) -> None:
    with show(explored(), "#second/7") as report:
        assert (report.layer["name"], report.channel) == ("second", 7)
        assert report.page.locator(".message").is_hidden()
        report.page.evaluate("location.hash = '#first/3'")
        report.wait_for("first")
        assert report.channel == 3


def test_the_address_follows_what_is_chosen_and_back_leads_to_the_layer_before(show: Open) -> None:
    with show(explored(), "#first") as report:
        report.page.locator("nav a").nth(1).click()
        report.settle()
        report.press("ArrowRight", "ArrowRight")
        assert shown_fragment(report) == "pool/2"
        report.page.locator("nav a").nth(2).click()
        report.settle()
        assert shown_fragment(report) == "second"
        report.page.go_back()
        report.wait_for("pool")
        assert report.channel == 2
        report.page.go_back()
        report.wait_for("first")
        report.page.go_forward()
        report.wait_for("pool")


@pytest.mark.parametrize("fragment", ["#nothing", "#second/99", "#second/", "#%", "#first/-1", "#/", "#//3"])
def test_an_unknown_address_says_so_and_shows_a_layer(show: Open, fragment: str) -> None:
    with show(explored(), fragment) as report:
        assert report.page.locator(".message").is_visible()
        assert fragment.strip("#") in report.page.locator(".message").inner_text()
        assert report.layer["name"] in ("first", "second")


def test_the_strip_leads_to_every_layer_and_says_which_one_is_shown(show: Open) -> None:
    with show(explored()) as report:
        links = report.page.locator("nav a")
        for index, name in enumerate(explored()):
            links.nth(index).click()
            report.settle()
            assert report.layer["name"] == name
            assert report.section.locator("h2").inner_text() == name
            current = [link.get_attribute("aria-current") for link in links.all()]
            assert [x not in (None, "false") for x in current] == [x == index for x in range(len(current))]


def test_keys_move_between_layers_and_channels(show: Open) -> None:
    with show(explored(), order="magnitude") as report:
        magnitude = np.abs(explored()["first"].array.astype(np.float64)).mean(axis=(0, 2, 3))
        order = np.argsort(-magnitude, kind="stable").tolist()
        assert report.channel == order[0]
        for key, channel in {"ArrowRight": 1, "End": -1, "ArrowLeft": -2, "Home": 0}.items():
            report.press(key)
            assert report.channel == order[channel], key
        for key, name in {"ArrowDown": "pool", "ArrowUp": "first"}.items():
            report.press(key)
            assert report.layer["name"] == name
        report.press("ArrowUp", "ArrowLeft")  # nothing lies before the first
        assert (report.layer["name"], report.channel) == ("first", order[0])
        report.press("ArrowDown", "ArrowDown", "ArrowDown", "ArrowDown", "ArrowDown")
        assert report.layer["name"] == list(explored())[-1]


def test_keys_search_help_and_leave(show: Open) -> None:
    with show(explored()) as report:
        page = report.page
        page.keyboard.press("?")
        assert page.locator("dialog").is_visible()
        for key in ("↑", "Home", "/"):
            assert key in page.locator("dialog").inner_text()
        page.keyboard.press("Escape")
        assert page.locator("dialog").is_hidden()
        page.keyboard.press("/")
        field = page.locator("nav input")
        assert field.evaluate("element => element === document.activeElement")
        page.keyboard.type("?t/")
        assert field.input_value() == "?t/"
        assert page.locator("dialog").is_hidden()
        for key in ("ArrowDown", "Home", "End"):
            page.keyboard.press(key)
        assert (report.layer["name"], report.channel) == ("first", 0)
        page.keyboard.press("Escape")
        assert not field.evaluate("element => element === document.activeElement")


def test_keys_belong_to_a_list_of_choices_that_has_the_focus(show: Open) -> None:
    with show(explored()) as report:
        report.page.locator('.toolbar [name="normalize"]').focus()
        report.press("ArrowDown")
        assert report.layer["name"] == "first"
        assert report.chosen("normalize") == "minmax"
        assert_shows(report, "minmax", "channel")


# The search.

SEARCHED = (
    layer_of("conv2d", source="features.0"),
    layer_of("bn", "norm", op_type="BatchNormalization"),
    layer_of("relu", "activation", op_type="Relu"),
    layer_of("max_pooling2d", "pool", op_type="MaxPool"),
    layer_of("conv2d_1", source="features.4"),
    layer_of("up[0]", op_type="ConvTranspose", source="head/up"),
    layer_of("flatten", "other", op_type="Flatten"),
    layer_of("squeeze", "pool", op_type="GlobalAveragePool", shape=(1, 2, 1, 1), layout="NCHW"),
    layer_of("7", "pool", op_type="AveragePool", source="a+b$"),
)
TERMS = [
    *("conv2d", "conv2d*", "conv2d_?", "[br]*", "[!cm]*", "features.*", "*", "up[0]", "up[[]0]", "*up", "7", "a+b$"),
    *("op:Conv", "op:MaxPool", "op:ConvTranspose", "kind:conv", "kind:pool", "kind:activation", "kind:norm"),
    *(
        "kind:other",
        "kind:vector",
        "kind:any",
        r"re:_\d$",
        "re:^head/",
        "re:^(bn|up)",
        "re:[a-m]n$",
        r"re:\Aconv",
        r"re:d\Z",
        "re:(?P<x>pool)",
    ),
    *("0", "1", "4", "-1", "-5", "0:2", "-2:", ":-4", ":", "3:100", "2:2", "9", "-7"),
]


def found_by_search(report: Report, selection: str) -> list[str]:
    report.page.locator("nav input").fill(selection)
    places = [index for index, link in enumerate(report.page.locator("nav a").all()) if link.is_visible()]
    return [report.data["layers"][index]["name"] for index in places]


def test_the_search_finds_what_the_selection_language_chooses(show: Open) -> None:
    maps = {
        layer.name: FeatureMap(layer=layer, array=noise(1, 2, *([1, 1] if layer.is_vector else [4, 4])))
        for layer in SEARCHED
    }
    random = np.random.default_rng(0)
    mixed = [
        ",".join(random.choice(["", "!"], p=[0.7, 0.3]) + term for term in random.choice(TERMS, random.integers(2, 5)))
        for _ in range(60)
    ]
    with show(features_of(maps)) as report:
        refused = 0
        for selection in [*TERMS, *(f"!{term}" for term in TERMS), " conv2d , bn ", *mixed]:
            found = found_by_search(report, selection)
            told = report.page.locator(".found").inner_text()
            try:
                assert found == [layer.name for layer in select(SEARCHED, selection)], selection
                assert "no layer" not in told, selection
            except LayerError:
                refused += 1
                assert not found or "no layer" in told, selection
        assert 0 < refused < 60
        assert found_by_search(report, "") == [layer.name for layer in SEARCHED]


def test_the_search_takes_plain_words_and_says_what_is_wrong_with_others(show: Open) -> None:
    with show(explored()) as report:
        assert found_by_search(report, "on") == ["second"]
        for selection in (
            "nothing",
            "re:(",
            "re:[",
            "kind:dense",
            "op:",
            ",",
            "first,,",
            "!",
            "[",
            "first,nothing",
            "1e9",
        ):
            found_by_search(report, selection)
            words = report.page.locator(".found").inner_text().lower()
            assert any(x in words for x in ("no layer", "empty", "expression", "unknown")), selection


def test_arrows_and_enter_go_through_what_was_found(show: Open) -> None:
    with show(explored()) as report:
        found_by_search(report, "second")
        report.page.keyboard.press("Enter")
        report.wait_for("second")


# Readers who see it otherwise.


def pictures_shown(report: Report) -> list[dict[str, Any]]:
    """Return whether each sprite is visible, how large its picture is and how large it is shown."""
    found: list[dict[str, Any]] = report.page.locator("img.sprite").evaluate_all(
        """async (images) => Promise.all(images.map(async (image) => {
            await image.decode();
            const {width, height} = image.getBoundingClientRect();
            return {isVisible: image.checkVisibility(), natural: image.naturalWidth, width, height, alt: image.alt};
        }))"""
    )
    return found


def test_without_a_script_every_layer_is_there(show: Open) -> None:
    with show(explored(), options={"java_script_enabled": False}) as report:
        pictures = pictures_shown(report)
        assert len(pictures) == 2 * len(explored())
        for picture in pictures:
            assert picture["isVisible"]
            assert picture["natural"] > 0
            assert min(picture["width"], picture["height"]) >= 1
        for index, name in enumerate(explored()):
            rows, columns = explored()[name].shape[2:]
            for part in (name, f"{explored()[name].channels} channels", f"{rows} x {columns}", "values"):
                assert part in pictures[2 * index]["alt"]
        for hidden in (".toolbar", "aside", "nav input", "button"):
            assert not any(element.is_visible() for element in report.page.locator(hidden).all()), hidden
        assert "viridis" in report.page.locator("main").inner_text()


@pytest.mark.parametrize("keys", ["", "t", "tt"])  # as the system, light, dark
def test_on_paper_every_layer_is_there_black_on_white(show: Open, keys: str) -> None:
    with show(explored(), "#second") as report:
        # Skia writes each picture of the page as one of the file; at once, before any was shown.
        assert report.page.pdf().count(b"/Subtype /Image") >= 2 * len(explored())
        report.press(*keys)
        report.page.emulate_media(media="print")
        report.page.wait_for_timeout(200)  # for what the page does when its parts are hidden
        pictures = pictures_shown(report)
        assert len(pictures) == 2 * len(explored())
        assert all(picture["isVisible"] and picture["natural"] > 0 for picture in pictures)
        for hidden in (".toolbar", "aside", "nav input"):
            assert report.page.locator(hidden).first.is_hidden(), hidden
        text, *papers = report.page.evaluate(
            "() => [document.body, document.body, document.documentElement].map("
            "(x, at) => getComputedStyle(x)[at ? 'backgroundColor' : 'color'])"
        )
        assert sum(map(int, re.findall(r"\d+", text)[:3])) < 100, text
        assert all(paper in ("rgba(0, 0, 0, 0)", "rgb(255, 255, 255)") for paper in papers), papers
        report.page.emulate_media(media="screen")
        report.page.wait_for_timeout(200)
        assert_shows(report, "zscore", "channel")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_theme_is_the_systems_until_another_is_chosen(show: Open, scheme: str) -> None:
    with show(explored(), options={"color_scheme": scheme}) as report:
        assert (background(report) > 0.5) == (scheme == "light")
        seen = set()
        for _ in range(3):
            report.press("t")
            seen.add(background(report) > 0.5)
        assert seen == {True, False}
        assert (background(report) > 0.5) == (scheme == "light")


def background(report: Report) -> float:
    """Return how bright the page is, from 0 to 1."""
    file = report.page.screenshot(clip={"x": 2, "y": 2, "width": 4, "height": 4})
    with Image.open(io.BytesIO(file)) as image:
        return float(np.asarray(image.convert("L")).mean() / 255)


@pytest.mark.parametrize("size", [(1440, 900), (1024, 768), (400, 800)])
def test_the_page_is_as_wide_as_the_window(show: Open, size: tuple[int, int]) -> None:
    width, height = size
    with show(explored(), "#second", options={"viewport": {"width": width, "height": height}}) as report:
        assert report.page.evaluate("document.documentElement.scrollWidth") <= width
        assert_shows(report, "zscore", "channel")
        report.page.set_viewport_size({"width": 700, "height": height})
        report.page.wait_for_timeout(300)
        assert report.page.evaluate("document.documentElement.scrollWidth") <= 700
        assert_shows(report, "zscore", "channel")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_accessibility_checker_finds_nothing_serious(
    show: Open, scheme: str, request: pytest.FixtureRequest
) -> None:
    if not AXE.exists():
        reason = "needs axe-core: npm ci --prefix tests"
        if request.config.getoption("--require-browser"):
            pytest.fail(reason)
        pytest.skip(reason)
    with show(explored(), "#second/3", options={"color_scheme": scheme}) as report:
        assert violations(report.page) == []
        report.hover_cell(2, 2)
        assert violations(report.page) == []
        report.section.locator("summary").click()
        found_by_search(report, "nothing")
        assert violations(report.page) == []
        report.page.get_by_role("button", name="Keys").click()
        assert violations(report.page) == []
        report.page.keyboard.press("Escape")
        report.page.set_viewport_size({"width": 400, "height": 800})
        report.page.wait_for_timeout(300)
        assert violations(report.page) == []


def test_the_lines_that_give_a_layer_again_are_copied(show: Open) -> None:
    model, picture = ROOT / "models/shapes_small.onnx", ROOT / "models/pictures/circle.png"
    features = FeatureExtractor(model, layers="conv_1", provider="cpu")(picture)
    with show(features, facts={"model_path": str(model), "pictures": [str(picture)]}) as report:
        report.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        report.section.locator("summary").click()
        for index, (name, part) in enumerate(
            [("Copy the command", "onnxfeat draw "), ("Copy the Python lines", "import")]
        ):
            text = report.section.locator("pre").nth(index).text_content()
            assert text
            assert part in text
            assert "conv_1" in text
            report.section.get_by_role("button", name=name).click()
            report.page.wait_for_timeout(100)
            assert report.page.evaluate("navigator.clipboard.readText()") == text


# What else can be on a page.

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'quotes\" and \\back\\slashes\\n",
    "</script><script>alert(2)</script><!--",
    "{{ 7 * 7 }} {% raw %} ${7 * 7} $x$",
    "__proto__",
    "constructor",
    "data",
    "readout",
    "what-was-run",
    "卷积层",
    "שכבה \u202egnp.exe",
    "x" * 200,
    "  spaces  inside ",
    "a/7",
    "a",
    "%41",
    "%",
    "#",
    "?q=1&amp;",
    "*",
    "conv\u0000d",
    "line\nbreak",
    "🎞️",
]
LONE_SURROGATE = "\udcff"  # of file names that are no UTF-8


def test_names_of_all_kinds_are_text_and_lead_to_their_layers(show: Open) -> None:
    maps = {name: FeatureMap(layer=layer_of(name, source=name), array=noise(1, 8, 5, 6)) for name in HOSTILE}
    with show(features_of(maps)) as report:
        assert [layer["name"] for layer in report.data["layers"]] == HOSTILE
        for index, name in enumerate(HOSTILE):
            report.page.locator("nav a").nth(index).click()
            report.settle()
            assert report.layer["name"] == name
            assert report.page.locator(".message").is_hidden()
            assert report.page.evaluate("document.documentElement.scrollWidth") <= 1440, name
            # As a reader who was sent the address comes to it.
            for part, channel in (("", 0), ("/7", 7)):
                report.page.evaluate("location.hash = '#what-was-run'")
                report.page.evaluate("fragment => { location.hash = fragment; }", f"#{quote(name, safe='')}{part}")
                report.wait_for(name, channel)
        assert report.page.locator("nav img[src=x], section img[src=x]").count() == 0


def test_a_layer_whose_name_is_no_unicode_is_shown(show: Open) -> None:
    with show(features_of({"first": noise(1, 8, 5, 6), LONE_SURROGATE: noise(1, 8, 5, 6)})) as report:
        report.page.locator("nav a").nth(1).click()
        report.page.wait_for_timeout(300)
        assert report.index == 1
        assert report.canvas().is_visible()


@pytest.mark.parametrize("name", [*HOSTILE, LONE_SURROGATE])
def test_a_page_may_be_about_any_model_and_picture(show: Open, name: str) -> None:
    features = features_of({"conv": noise(1, 8, 5, 6)}, model=name, pictures=(name,))
    with show(features) as report:
        assert words(report.page.title()).startswith(words(name))
        assert words(report.page.locator("h1").inner_text()) == words(name)
        captions = report.page.locator("figcaption").all_text_contents()
        assert any(words(name) in words(caption) for caption in captions)
        assert report.page.locator("img[src=x]").count() == 0


def words(text: str) -> str:
    """Return a text as HTML shows it: spaces once, NUL left out or as U+FFFD, lone surrogates as Python writes them."""
    return " ".join(text.encode(errors="backslashreplace").decode().replace("\0", "").replace("\ufffd", "").split())


KINDS: dict[str, NDArray[np.float32]] = {
    "sound": noise(1, 5, 40),
    "volume": noise(1, 3, 4, 6, 5),
    "vector": noise(1, 10, 1, 1),
    "line": noise(1, 10),
    "column": noise(1, 3, 7, 1),
    "cell": noise(1, 1, 1, 2),
    "flat": np.full((1, 4, 6, 6), 2.5, np.float32),
    "nothing but NaN": np.full((1, 2, 5, 5), np.nan, np.float32),
    "nothing but zeros": np.zeros((1, 3, 5, 5), np.float32),
    "infinite": np.where(noise(1, 3, 6, 6) > 0, np.inf, -np.inf).astype(np.float32),
    "huge": (noise(1, 3, 6, 6) * 1e38).astype(np.float32),
    "tiny": (noise(1, 3, 6, 6) * 1e-36).astype(np.float32),
    "many": noise(1, 300, 3, 3),
}


@pytest.mark.parametrize("method", METHODS)
def test_maps_of_all_kinds_are_shown_and_tell_their_values(show: Open, method: str) -> None:
    with show(features_of(KINDS), normalize=method) as report:
        for index, (name, array) in enumerate(KINDS.items()):
            report.page.locator("nav a").nth(index).click()
            report.settle()
            assert report.layer["name"] == name
            assert report.canvas().is_visible()
            facts = report.layer["views"][0]
            if name not in ("many", "vector", "line", "volume"):
                assert_shows(report, method, "channel")
            report.hover_cell(facts["rows"] - 1, facts["columns"] - 1)
            channel = array.reshape(array.shape[1], -1)[0]
            if facts["numbers"]:
                continue  # the only tile holds the numbers of all channels
            low, high = float(numbers(facts["low"])[0]), float(numbers(facts["high"])[0])
            if np.isfinite(channel[-1]):
                assert abs(report.told("value") - channel[-1]) <= (high - low) / FINITE / 2 * (1 + 1e-4) + 1e-45, name
            else:
                assert report.aside.get_attribute("data-value") in ("NaN", "Infinity", "-Infinity")
        report.choose(scale_over="layer", order="similarity", dead="omit")
        for index in range(len(KINDS)):
            report.page.locator("nav a").nth(index).click()
            report.settle()


def test_a_number_for_each_channel_is_told_as_that_channels(show: Open) -> None:
    array = KINDS["vector"][0, :, 0, 0]
    with show(features_of({"vector": KINDS["vector"]})) as report:
        facts = report.layer["views"][0]
        assert facts["numbers"] == 10
        step = (float(numbers(facts["high"])[0]) - float(numbers(facts["low"])[0])) / FINITE
        for channel in (0, 4, 9):
            report.hover_cell(channel // facts["columns"], channel % facts["columns"])
            assert f"channel {channel}" in report.readout
            assert abs(report.told("value") - array[channel]) <= step / 2 * (1 + 1e-4)


def test_a_cell_of_a_volume_tells_its_slice(show: Open) -> None:
    array = KINDS["volume"][0]
    with show(features_of({"volume": KINDS["volume"]})) as report:
        facts = report.layer["views"][0]
        for depth, row, column in ((0, 0, 0), (1, 2, 3), (3, 5, 4)):
            # Slices lie side by side with a gap of a pixel, as many in a row as the page says.
            down, across = divmod(depth, facts["slices_across"])
            report.hover_cell(down * (6 + 1) + row, across * (5 + 1) + column)
            assert abs(report.told("value") - array[0, depth, row, column]) <= np.ptp(array[0]) / FINITE / 2 * (
                1 + 1e-4
            )
            for word in (f"slice {depth}", f"row {row}", f"column {column}"):
                assert word in report.readout


def test_tokens_are_a_square(show: Open) -> None:
    layer = layer_of("tokens", "other", op_type="Add", shape=("N", 17, 6), layout="NWC")
    array = noise(1, 6, 17)
    with show(features_of({"tokens": FeatureMap(layer=layer, array=array)})) as report:
        facts = report.layer["views"][0]
        assert facts["rows"] * facts["columns"] in (16, 17)
        report.hover_cell(facts["rows"] - 1, facts["columns"] - 1)
        assert abs(report.told("value") - array[0, 0, -1]) <= np.ptp(array[0, 0]) / FINITE / 2 * (1 + 1e-4)


def test_a_page_as_large_as_resnet50s_opens(show: Open) -> None:
    stages = [(112, 64, 1), (56, 64, 6), (56, 256, 4), (28, 128, 8), (28, 512, 5), (14, 256, 12), (14, 1024, 7)]
    stages += [(7, 512, 6), (7, 2048, 4)]
    sizes = [(side, channels) for side, channels, count in stages for _ in range(count)]
    maps = {f"layer_{index}": noise(1, channels, side, side) for index, (side, channels) in enumerate(sizes)}
    with show(features_of(maps)) as report:
        spent = []
        for _ in range(len(maps) - 1):
            begin = time.perf_counter()
            report.press("ArrowDown")
            spent.append(time.perf_counter() - begin)
        assert report.layer["name"] == list(maps)[-1]
        largest = report.page.evaluate("performance.timing.domInteractive - performance.timing.navigationStart")
        print(f"open: {largest} ms; a layer: {1000 * np.median(spent):.0f} ms, at most {1000 * max(spent):.0f} ms")  # noqa: T201  # shown by -s


def test_a_notebook_shows_the_same_page_in_a_frame(browser: Browser, tmp_path: Path) -> None:
    features = FeatureExtractor(network(), layers="first,second", provider="cpu")(photograph(*LARGER))
    path = tmp_path / "notebook.html"
    path.write_text(f"<!DOCTYPE html><title>notebook</title><main>{features._repr_html_()}</main>", encoding="utf-8")
    with opened(browser, path) as page:
        frame = page.frame_locator("iframe")
        frame.locator("nav a").nth(1).click()
        assert frame.locator("section.layer:visible h2").inner_text() == "second"
        assert frame.locator(".grids canvas").first.is_visible()
        assert frame.locator("aside").get_attribute("data-channel") == "0"
        page.keyboard.press("ArrowRight")
        assert frame.locator("aside[data-channel='1']").count() == 1
        assert page.url == path.as_uri()
