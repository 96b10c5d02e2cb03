from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from onnxfeat import FeatureExtractor, Preprocessing, expose
from onnxfeat.drawing.colormaps import INFINITE_COLOR, NAN_COLOR, color_table
from onnxfeat.drawing.overlays import LEAST_TINT, heat_of, overlay
from onnxfeat.errors import ModelError, PictureError
from onnxfeat.records import FeatureMap, Features, Layer
from onnxfeat.registration import Registration, Step, Window
from onnxfeat.resampling import pillow_taps

SIZE = (14, 11)
BODY = (
    "a = Conv<pads = [1, 1, 1, 1]>(x, w3) b = Conv<dilations = [2, 2]>(a, w3)"
    "c = MaxPool<kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1>(b) y = Conv<pads = [0, 1, 1, 0]>(c, w2)"
)
CROSS = "a = Conv<pads = [2, 0, 2, 0]>(x, w51) b = Conv<pads = [0, 1, 0, 1]>(x, w13) y = Add(a, b)"
SHAPES = {"w1": (1, 3, 1, 1), "w3": (1, 3, 3, 3), "w2": (1, 1, 2, 2), "w51": (1, 3, 5, 1), "w13": (1, 3, 1, 3)}


def network(body: str = BODY, side: str = "14, 11") -> onnx.ModelProto:
    """Return a model of a picture whose weights are all positive, so that no influence cancels out."""
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 18]> g (float[N, 3, {side}] x) => (float y) {{ {body} }}'
    )
    inner = {"w3": 0}
    for node in model.graph.node:
        for name in node.input:
            if name in SHAPES and name not in {tensor.name for tensor in model.graph.initializer}:
                weights = np.full(SHAPES[name], 0.1, np.float32)
                model.graph.initializer.append(onnx.numpy_helper.from_array(weights, name))
            if name == "w3" and node.input[0] not in ("x", "t"):
                inner["w3"] += 1
                node.input[1] = "w3b"
    if inner["w3"]:
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.full((1, 1, 3, 3), 0.1, np.float32), "w3b"))
    return model


def moved_cells(model: onnx.ModelProto, size: tuple[int, int] = SIZE) -> NDArray[np.bool_]:
    """Return for each pixel (row, column) which cells of `y` move with it."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    pictures = np.eye(size[0] * size[1], dtype=np.float32).reshape(-1, 1, *size).repeat(3, axis=1)
    (maps,) = session.run(["y"], {"x": pictures})
    return np.asarray(np.asarray(maps)[:, 0] != 0).reshape(*size, *maps.shape[2:])


def extracted(model: Any, picture: Any, **choices: Any) -> FeatureMap:
    return only(FeatureExtractor(model, layers="-1", provider="cpu", **choices)(picture))


def only(features: Features) -> FeatureMap:
    (feature_map,) = features.values()
    return feature_map


def photograph(size: tuple[int, int] = SIZE, level: int = 128) -> NDArray[np.uint8]:
    return np.full((*size, 3), level, np.uint8)


def hot(feature_map: FeatureMap, row: int, column: int, value: float = 1.0) -> FeatureMap:
    array = np.zeros_like(feature_map.array)
    array[0, :, row, column] = value
    return dataclasses.replace(feature_map, array=array)


def lit(picture: NDArray[np.uint8], before: NDArray[np.uint8]) -> NDArray[np.bool_]:
    return np.asarray((picture != before).any(axis=-1))


@pytest.mark.parametrize("side", ["14, 11", "H, W"])
@pytest.mark.parametrize("body", [BODY, CROSS])
def test_one_hot_cell_lights_exactly_the_pixels_that_move_it(body: str, side: str) -> None:
    model, picture = network(body, side), photograph()
    moved = moved_cells(model)
    features = FeatureExtractor(model, layers="kind:any", provider="cpu")(picture)
    feature_map = next(x for x in features.values() if x.layer.value == "y")
    assert feature_map.shape[2:] == moved.shape[2:]
    for row, column in np.ndindex(moved.shape[2:]):
        laid = overlay(hot(feature_map, row, column), picture, channel=0)
        np.testing.assert_array_equal(lit(laid, picture), moved[:, :, row, column])


def test_the_hot_cell_is_brightest_where_it_looks_most_and_seen_up_to_the_edges() -> None:
    model, picture = network(), photograph()
    laid = overlay(hot(extracted(model, picture), 2, 2), picture, strength=1.0)
    rows, columns = np.nonzero(lit(laid, picture))
    table = color_table("viridis").astype(int)
    brightest = np.argwhere((laid == table[255]).all(axis=-1))
    assert len(brightest) >= 1
    assert np.abs(brightest - [rows.mean(), columns.mean()]).max() <= 3
    edge = picture[0, 0] + LEAST_TINT * (table[0] - picture[0, 0])  # of little heat a quarter is seen all the same
    assert np.abs(laid[rows[0], columns[0]] - edge).max() <= 25


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["viridis", "magma", "gray", "coolwarm"]), st.floats(0.01, 1))
def test_a_pixel_changes_if_and_only_if_a_cell_that_is_not_0_sees_it(seed: int, colormap: str, strength: float) -> None:
    rng = np.random.default_rng(seed)
    cells = rng.normal(size=(5, 5)) * (rng.random((5, 5)) < 0.2)
    # A photograph in the very colors of the heat.
    picture = color_table(colormap)[rng.integers(0, 256, (10, 12))]
    steps = (Step(), Step((0,), Window(3, stride=2, before=1, after=0), Window(4, stride=2)))
    registration = Registration(steps=steps, step=1, size=(10, 12))
    feature_map = made(cells, registration)
    laid = overlay(feature_map, picture, channel=0, colormap=colormap, strength=strength)
    seen = np.zeros((10, 12), bool)
    for row, column in zip(*np.nonzero(cells), strict=True):
        seen[max(2 * row - 1, 0) : 2 * row + 2, 2 * column : 2 * column + 4] = True
    np.testing.assert_array_equal(lit(laid, picture), seen)


def made(cells: NDArray[Any], registration: Registration | None) -> FeatureMap:
    layer = Layer(name="conv", kind="conv", op_type="Conv", value="y", raw_value="y", layout="NCHW")
    return FeatureMap(layer=layer, array=cells[None, None].astype(np.float32), registration=registration)


def plain(cells: NDArray[Any]) -> FeatureMap:
    """Return a map each of whose cells sees the one pixel at its place."""
    size = (cells.shape[0], cells.shape[1])
    registration = Registration(steps=(Step(),), step=0, size=size, interpolation="nearest")
    return made(cells, registration)


def test_heat_is_the_mean_of_the_cells_that_see_a_pixel_by_how_much_they_look() -> None:
    steps = (Step(), Step((0,), Window(3, before=1, after=1), Window(1)))
    cells = np.array([[3.0], [0.0], [6.0], [np.nan]])
    heat = heat_of(cells, Registration(steps=steps, step=1, size=(4, 1)))
    np.testing.assert_allclose(heat.values[:, 0], [1.5, 3, 3, 6])  # of the cells above, at and below; NaN is left out
    assert heat.nan[:, 0].tolist() == [False, False, True, True]
    assert heat.lit.all()


def test_maps_below_0_get_a_diverging_colormap_whose_middle_is_0() -> None:
    picture = photograph((1, 3))
    laid = overlay(plain(np.array([[-2.0, 0.0, 2.0]])), picture, strength=1.0)
    table = color_table("coolwarm")
    np.testing.assert_array_equal(laid[0], [table[0], picture[0, 1], table[255]])
    mild = overlay(plain(np.array([[-2.0, 0.001, 4.0]])), picture, strength=1.0)
    tint = picture[0, 1] + LEAST_TINT * (table[128].astype(float) - picture[0, 1])
    assert np.abs(mild[0, 1] - tint).max() <= 2


def test_a_map_of_zeros_lights_nothing_for_any_reduction() -> None:
    picture = photograph((3, 4), 10)
    for reduce in ("mean", "max", "l2", "pca"):
        np.testing.assert_array_equal(overlay(plain(np.zeros((3, 4))), picture, reduce=reduce), picture)


def test_nan_and_infinite_cells_have_colors_of_their_own_and_change_no_others() -> None:
    cells = np.array([[1.0, np.nan, np.inf, -np.inf, 2.0]])
    picture = photograph((1, 5))
    laid = overlay(plain(cells), picture, strength=1.0)
    np.testing.assert_array_equal(laid[0, 1], NAN_COLOR)
    np.testing.assert_array_equal(laid[0, 2:4], [INFINITE_COLOR] * 2)
    np.testing.assert_array_equal(laid[0, 4], color_table("viridis")[255])
    without = overlay(plain(np.array([[1.0, 0, 0, 0, 2.0]])), picture, strength=1.0)
    np.testing.assert_array_equal(laid[0, [0, 4]], without[0, [0, 4]])


def test_reductions_are_those_of_the_channels() -> None:
    array = np.array([[[3.0, 0.0]], [[-1.0, 4.0]]])
    base = plain(np.zeros((1, 2)))
    both = dataclasses.replace(base, array=array[None].astype(np.float32))
    picture = photograph((1, 2))
    for reduce, cells in (("mean", [[1.0, 2.0]]), ("max", [[3.0, 4.0]]), ("l2", [[np.sqrt(10), 4.0]])):
        expected = overlay(plain(np.array(cells)), picture)
        np.testing.assert_array_equal(overlay(both, picture, reduce=reduce), expected)  # type: ignore[arg-type]
    np.testing.assert_array_equal(overlay(both, picture, channel=1), overlay(plain(array[1]), picture))


def test_pca_gives_equal_cells_equal_colors_and_different_ones_others() -> None:
    rng = np.random.default_rng(3)
    array = rng.normal(size=(5, 1, 6))
    array[:, 0, 3] = array[:, 0, 1]
    base = plain(np.zeros((1, 6)))
    picture = photograph((1, 6))
    laid = overlay(dataclasses.replace(base, array=array[None].astype(np.float32)), picture, reduce="pca")
    np.testing.assert_array_equal(laid[0, 3], laid[0, 1])
    assert len({tuple(color) for color in laid[0].tolist()}) == 5
    assert lit(laid, picture).all()


def test_a_larger_photograph_gets_whole_pixels_and_a_smaller_one_loses_none() -> None:
    cells = np.zeros((4, 6))
    cells[1, 2] = 1
    feature_map = plain(cells)
    large = photograph((12, 18))
    seen = np.kron(cells, np.ones((3, 3))) > 0
    np.testing.assert_array_equal(lit(overlay(feature_map, large), large), seen)
    small = photograph((2, 2))
    np.testing.assert_array_equal(lit(overlay(feature_map, small), small), [[True, False], [False, False]])
    odd = photograph((7, 5))
    rows = ((np.arange(7) + 0.5) * 4 // 7).astype(int)
    np.testing.assert_array_equal(lit(overlay(feature_map, odd), odd).any(axis=1), rows == 1)


@pytest.mark.parametrize(
    ("aspect", "place"),
    [
        ("stretch", lambda row, column: (row // 2, column)),
        ("crop", lambda row, column: (row - 4, column)),
        ("pad", lambda row, column: (row // 2, (column + 4) // 2)),
        ("letterbox", lambda row, column: (row // 2, 2 + column // 2)),
    ],
)
def test_a_photograph_lies_on_the_input_as_it_was_fitted_to_it(
    aspect: Any, place: Callable[[int, int], tuple[int, int]]
) -> None:
    picture = photograph((16, 8))
    for pixel in np.ndindex(8, 8):
        cells = np.zeros((8, 8))
        cells[pixel] = 1
        registration = Registration(steps=(Step(),), step=0, size=(8, 8), aspect=aspect, interpolation="nearest")
        seen = lit(overlay(made(cells, registration), picture), picture)
        wanted = np.array([[place(row, column) == pixel for column in range(8)] for row in range(16)])
        np.testing.assert_array_equal(seen, wanted)


@pytest.mark.parametrize("aspect", ["stretch", "crop", "pad", "letterbox"])
@pytest.mark.parametrize("size", [(28, 40), (40, 22), (9, 20), (14, 11), (33, 7), (5, 4)])
def test_cells_that_a_pixel_of_the_photograph_moves_light_it(aspect: Any, size: tuple[int, int]) -> None:
    preprocessing = Preprocessing(scale=1.0, interpolation="nearest", resampling="keras", aspect=aspect)
    extractor = FeatureExtractor(network("y = Conv(x, w3)"), provider="cpu", preprocessing=preprocessing)
    black = np.zeros((*size, 3), np.uint8)
    feature_map = only(extractor(black))
    moving = 0
    for row, column in np.random.default_rng(0).integers(0, size, (20, 2)):
        moved = black.copy()
        moved[row, column] = 255
        cells = only(extractor(moved)).array
        if cells.any():  # it became a pixel of the input
            moving += 1
            assert lit(overlay(dataclasses.replace(feature_map, array=cells), black), black)[row, column]
    assert moving


def moved_by_photograph(extractor: FeatureExtractor, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return for each pixel of a photograph which cells move with it: (rows, columns, cells down, cells across)."""
    gray = photograph(size)
    before = only(extractor(gray)).array
    pictures = []
    for pixel in np.ndindex(size):
        for level in (0, 255):
            pictures.append(gray.copy())
            pictures[-1][pixel] = level
    moved = (only(extractor(pictures)).array != before)[:, 0]
    return np.asarray((moved[::2] | moved[1::2]).reshape(*size, *moved.shape[1:]))


@pytest.mark.parametrize("aspect", ["stretch", "crop", "pad", "letterbox"])
@pytest.mark.parametrize("size", [(17, 9), (5, 13), (10, 4)])
@pytest.mark.parametrize(
    ("resampling", "interpolation"),
    [("keras", name) for name in ("nearest", "bilinear", "bicubic")]
    + [("pillow", name) for name in ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")],
)
def test_a_photograph_of_any_size_is_lit_where_it_moves_the_cell(
    aspect: Any, size: tuple[int, int], resampling: Any, interpolation: Any
) -> None:
    preprocessing = Preprocessing(scale=1.0, interpolation=interpolation, resampling=resampling, aspect=aspect)
    extractor = FeatureExtractor(network("y = Conv(x, w1)", side="7, 6"), provider="cpu", preprocessing=preprocessing)
    moved, picture = moved_by_photograph(extractor, size), photograph(size)
    feature_map = only(extractor(picture))
    goes_in = moved.any(axis=(2, 3))
    assert goes_in.any()
    for row, column in np.ndindex(moved.shape[2:]):
        seen = lit(overlay(hot(feature_map, row, column), picture), picture)
        assert seen[moved[:, :, row, column]].all()
        if resampling == "keras":  # Pillow rounds to levels, which hides what moves a cell by little
            np.testing.assert_array_equal(seen[goes_in], moved[:, :, row, column][goes_in])


def test_pixels_that_a_resize_skips_look_like_the_pixel_that_they_lie_on() -> None:
    preprocessing = Preprocessing(interpolation="nearest", resampling="keras")
    extractor = FeatureExtractor(network("y = Conv(x, w1)", side="2, 2"), provider="cpu", preprocessing=preprocessing)
    picture = photograph((10, 8))
    assert moved_by_photograph(extractor, (10, 8)).any(axis=(2, 3)).sum() == 4
    seen = lit(overlay(hot(only(extractor(picture)), 0, 1), picture), picture)
    np.testing.assert_array_equal(seen, np.kron([[0, 1], [0, 0]], np.ones((5, 4))) > 0)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]),
    st.integers(1, 50),
    st.integers(1, 50),
    st.integers(0, 9),
)
def test_the_filters_of_pillow_reach_as_far_as_pillow_says(name: Any, length: int, wanted: int, beside: int) -> None:
    extent = max(length - 2 * beside, 1)
    start = (length - extent) // 2
    filter_ = Image.Resampling[name.upper()]
    unit = Image.fromarray(np.eye(length, dtype=np.float32))  # its column j has a 1 in row j
    resized = unit.resize((length, wanted), filter_, box=(0, start, length, start + extent))
    pixels, weights = pillow_taps(name, length, wanted, start, extent)
    looked = np.zeros((wanted, length), bool)
    for pixel, weight in zip(pixels, weights, strict=True):
        looked[np.arange(wanted)[weight != 0], pixel[weight != 0]] = True
    np.testing.assert_array_equal(looked, np.abs(np.asarray(resized)) > 1e-7)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.01, 1))
def test_colors_are_mixed_to_a_level(seed: int, strength: float) -> None:
    rng = np.random.default_rng(seed)
    cells = rng.random((40, 9)) + 0.01
    picture = rng.integers(0, 256, (40, 9, 3)).astype(np.uint8)
    laid = overlay(plain(cells), picture, strength=strength)
    cells = cells.astype(np.float32).astype(np.float64)
    share = cells / cells.max()
    color = color_table("viridis")[np.round(255 * share).astype(int)].astype(np.float64)
    expected = picture + (strength * (LEAST_TINT + (1 - LEAST_TINT) * share))[..., None] * (color - picture)
    assert np.abs(laid - expected).max() <= 1.501  # one that would stay as it was is moved by a level


def test_a_large_photograph_takes_little_more_than_itself() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (1200, 1600, 3), np.uint8)
    feature_map = plain(np.random.default_rng(1).normal(size=(30, 40)))
    overlay(feature_map, picture)
    tracemalloc.start()
    overlay(feature_map, picture)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.6 * picture.nbytes  # and a third more that Pillow holds of it at first


def test_what_was_cropped_away_stays_as_it_was() -> None:
    model = network("y = Conv(x, w3)", side="8, 8")
    picture = photograph((16, 40))
    for resampling in ("pillow", "keras"):
        preprocessing = Preprocessing(aspect="crop", resampling=resampling)
        feature_map = extracted(model, picture, preprocessing=preprocessing)
        seen = lit(overlay(feature_map, picture), picture)
        around = resampling == "pillow"  # whose filter also sees a column beside the part that it resizes
        assert seen[:, 12 - around : 28 + around].all()
        assert not seen[:, : 12 - around].any()
        assert not seen[:, 28 + around :].any()


def test_prepared_arrays_lie_on_the_photograph_as_they_are() -> None:
    model = network("y = Conv(x, w3)", side="8, 8")
    preprocessing = Preprocessing(aspect="crop")
    array = np.ones((1, 3, 8, 8), np.float32)
    feature_map = extracted(model, array, preprocessing=preprocessing)
    assert feature_map.registration is not None
    assert feature_map.registration.aspect == "stretch"
    picture = photograph((16, 40))
    assert lit(overlay(feature_map, picture), picture).all()


def test_channels_last_pictures_and_maps_are_registered_alike() -> None:
    turned = network("t = Transpose<perm = [0, 3, 1, 2]>(x) y = Conv<strides = [2, 1]>(t, w3)")
    for dim, side in zip(list(turned.graph.input[0].type.tensor_type.shape.dim)[1:], (*SIZE, 3), strict=True):
        dim.dim_value = side
    plain_map = extracted(network("y = Conv<strides = [2, 1]>(x, w3)"), photograph())
    assert extracted(turned, photograph()).registration == plain_map.registration


@pytest.mark.parametrize("kind", ["path", "image", "gray", "sixteen bits", "four channels"])
def test_photographs_are_taken_in_every_form(kind: str, tmp_path: Path) -> None:
    levels = np.arange(35, dtype=np.uint8).reshape(5, 7)
    given: Any = np.stack([levels] * 3, axis=-1)
    expected = overlay(plain(np.ones((5, 7))), given)
    if kind == "path":
        Image.fromarray(given).save(tmp_path / "photograph.png")
        given = tmp_path / "photograph.png"
    elif kind == "image":
        given = Image.fromarray(given)
    elif kind == "gray":
        given = levels
    elif kind == "sixteen bits":
        given = Image.fromarray(levels.astype(np.uint16) * 256)
    else:
        given = np.concatenate([given, np.full((5, 7, 1), 255, np.uint8)], axis=-1)
    np.testing.assert_array_equal(overlay(plain(np.ones((5, 7))), given), expected)


def test_neither_photograph_nor_map_is_changed() -> None:
    picture, feature_map = photograph((3, 4)), plain(np.arange(12.0).reshape(3, 4))
    before = feature_map.array.copy()
    overlay(feature_map, picture)
    assert (picture == 128).all()
    np.testing.assert_array_equal(feature_map.array, before)


def test_a_file_that_was_exposed_tells_the_same_without_the_onnx_package(tmp_path: Path, models: Path) -> None:
    source, picture = models / "shapes_small.onnx", models / "pictures" / "chelsea.png"
    expose(source, tmp_path / "exposed.onnx")
    features = FeatureExtractor(source, provider="cpu")(picture)
    code = f"""
import sys
sys.modules["onnx"] = None
from onnxfeat import FeatureExtractor
from onnxfeat.drawing.overlays import overlay
import numpy as np
features = FeatureExtractor({str(tmp_path / "exposed.onnx")!r}, provider="cpu")({str(picture)!r})
np.savez({str(tmp_path / "laid.npz")!r}, **{{n: overlay(x, {str(picture)!r}) for n, x in features.items()}})
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    with np.load(tmp_path / "laid.npz") as laid:
        assert set(laid) == set(features)
        for name, feature_map in features.items():
            np.testing.assert_array_equal(laid[name], overlay(feature_map, picture))


def test_a_model_of_open_size_is_registered_for_each_picture(tmp_path: Path) -> None:
    model = network(side="H, W")
    path = tmp_path / "open.onnx"
    expose(model, path, layers="kind:any")
    for size in ((20, 17), (31, 40)):
        features = FeatureExtractor(path, provider="cpu")(photograph(size))
        for feature_map in features.values():
            assert feature_map.registration is not None
            assert feature_map.registration.size == size
            picture = photograph(size)
            array = np.ones_like(feature_map.array)
            assert lit(overlay(dataclasses.replace(feature_map, array=array), picture), picture).all()


def test_exposing_once_more_keeps_what_is_known_of_places(tmp_path: Path, models: Path) -> None:
    first, second = tmp_path / "a.onnx", tmp_path / "b.onnx"
    expose(models / "shapes_small.onnx", first)
    expose(first, second)
    picture = models / "pictures" / "chelsea.png"
    a, b = (FeatureExtractor(path, provider="cpu")(picture) for path in (first, second))
    assert [x.registration for x in a.values()] == [x.registration for x in b.values()]
    assert None not in [x.registration for x in a.values()]


def test_maps_of_pictures_of_different_sizes_are_registered_only_one_by_one() -> None:
    model = network("y = Conv<strides = [4, 4]>(x, w3)", side="H, W")
    extractor = FeatureExtractor(model, provider="cpu")
    together = only(extractor([photograph((16, 16)), photograph((17, 16))]))
    assert together.registration is None
    assert only(extractor([photograph((16, 16))] * 2)).registration is not None
    with pytest.raises(PictureError, match="from pictures of several sizes"):
        overlay(together, photograph((16, 16)))


def rewritten(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Change what a file's metadata say of the layers that it exposes."""
    model = onnx.load(path)
    (entry,) = [entry for entry in model.metadata_props if entry.key == "onnxfeat"]
    document = json.loads(entry.value)
    change(document["exposed"])
    entry.value = json.dumps(document)
    onnx.save(model, path)
    return path


def test_a_file_of_an_older_version_gives_maps_that_can_not_be_laid(tmp_path: Path, models: Path) -> None:
    expose(models / "shapes_small.onnx", tmp_path / "old.onnx", layers="conv_4")
    path = rewritten(tmp_path / "old.onnx", lambda exposed: exposed.pop("skeleton"))
    feature_map = only(FeatureExtractor(path, provider="cpu")(models / "pictures" / "chelsea.png"))
    with pytest.raises(PictureError, match="a file that an older onnxfeat exposed"):
        overlay(feature_map, models / "pictures" / "chelsea.png")


@pytest.mark.parametrize(
    "change",
    [
        lambda exposed: exposed["skeleton"]["places"].append(None),
        lambda exposed: exposed["skeleton"]["places"][0].__setitem__(0, 99),
        lambda exposed: exposed["skeleton"]["steps"][1].__setitem__(1, "warp"),
        lambda exposed: exposed["skeleton"].pop("steps"),
        lambda exposed: exposed.update(skeleton=[1]),
    ],
)
def test_a_damaged_skeleton_is_refused(
    change: Callable[[dict[str, Any]], object], tmp_path: Path, models: Path
) -> None:
    expose(models / "shapes_small.onnx", tmp_path / "damaged.onnx", layers="conv_4")
    path = rewritten(tmp_path / "damaged.onnx", change)
    with pytest.raises(ModelError, match=r"metadata in .*damaged.onnx is damaged .*expose the model again"):
        FeatureExtractor(path, provider="cpu")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"index": 1}, r"'conv' has no picture 1: pass a number from 0 to 0"),
        ({"channel": 3}, r"'conv' has no channel 3: pass a number from 0 to 0"),
        ({"strength": 0}, r"strength 0 is not above 0 and up to 1: pass for instance 0.7"),
        ({"reduce": "median"}, r"'median' is no way to reduce channels"),
        ({"colormap": "nope"}, r"colormap 'nope' is unknown"),
        ({"photograph": np.zeros((3, 4))}, r"the photograph has shape \(3, 4\) and type float64"),
        ({"photograph": "nowhere.png"}, r"there is no file nowhere.png"),
    ],
)
def test_what_can_not_be_laid_is_refused(changes: dict[str, Any], message: str) -> None:
    arguments = {"photograph": photograph((3, 4)), **changes}
    with pytest.raises(PictureError, match=message):
        overlay(plain(np.ones((3, 4))), **arguments)


def test_maps_without_a_place_are_refused_and_it_is_told_why() -> None:
    with pytest.raises(PictureError, match=r"'conv' can't be laid .* mixes all places.*choose a conv or pool"):
        overlay(made(np.ones((3, 4)), None), photograph((3, 4)))
    with pytest.raises(PictureError, match=r"its one cell stands for the whole picture"):
        overlay(made(np.ones((1, 1)), None), photograph((3, 4)))
    line = made(np.ones((3, 4)), None)
    with pytest.raises(PictureError, match=r"has the shape \(1, 1, 3\), which has no rows and columns"):
        overlay(dataclasses.replace(line, array=np.ones((1, 1, 3), np.float32)), photograph((3, 4)))
    registration = Registration(steps=(Step(),), step=0, size=(9, 9))
    with pytest.raises(PictureError, match=r"3 x 4 cells, and the model's steps make 9 x 9 of a picture of 9 x 9"):
        overlay(made(np.ones((3, 4)), registration), photograph((3, 4)))
