"""What a page tells, before any of it is HTML."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hand_made import as_features, noise
from PIL import Image

from onnxfeat import FeatureExtractor, Style, check
from onnxfeat.drawing.receptive_fields import each_field
from onnxfeat.errors import PictureError
from onnxfeat.records import Features
from onnxfeat.report.contents import Page
from onnxfeat.report.gathering import gather

LARGE = 1 << 26


def page_of(*runs: Features, **choices: Any) -> Page:
    given: dict[str, Any] = {"style": Style(), "max_bytes": LARGE}
    return gather(runs, **(given | choices))


@pytest.fixture(scope="module")
def extractor(models: Path) -> FeatureExtractor:
    return FeatureExtractor(models / "shapes_small.onnx", provider="cpu")


def test_channels_have_the_numbers_that_numpy_finds() -> None:
    array = np.maximum(noise(1, 6, 9, 7), 0)
    array[0, 2] = 0
    array[0, 4] = 3
    view = page_of(as_features({"conv": array})).layers[0].views[0]
    np.testing.assert_allclose(view.mean, array[0].mean(axis=(1, 2)), rtol=1e-5)
    np.testing.assert_allclose(view.deviation, array[0].std(axis=(1, 2)), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(view.low, array[0].min(axis=(1, 2)))
    np.testing.assert_array_equal(view.high, array[0].max(axis=(1, 2)))
    assert (view.constant, view.dead) == ((2, 4), (2,))
    assert view.statistics.zeros == (array == 0).mean()


def test_a_channel_is_dead_in_the_strip_if_it_is_for_every_photograph() -> None:
    array = np.abs(noise(2, 4, 5, 5)) + 0.1
    array[0, :2] = 0
    array[1, 1:3] = 0
    layer = page_of(as_features({"conv": array})).layers[0]
    assert [view.dead for view in layer.views] == [(0, 1), (1, 2)]
    assert layer.dead == 0.25


def test_orders_are_those_of_all_photographs_together() -> None:
    array = noise(2, 5, 6, 6) * np.array([1, 5, 2, 4, 3])[:, None, None]
    array[1] *= np.array([9, 1, 1, 1, 1])[:, None, None]
    layer = page_of(as_features({"conv": array}), style=Style(order="similarity")).layers[0]
    together = array.transpose(1, 0, 2, 3).reshape(5, -1).astype(np.float64)
    assert layer.orders["magnitude"].tolist() == np.argsort(-np.abs(together).mean(axis=1)).tolist()
    assert layer.orders["variance"].tolist() == np.argsort(-together.var(axis=1)).tolist()
    assert sorted(layer.orders["similarity"].tolist()) == [0, 1, 2, 3, 4]


def test_a_stream_in_parts_and_a_run_at_once_give_the_same_page(models: Path, extractor: FeatureExtractor) -> None:
    pictures: list[Path | Image.Image] = [
        models / "pictures" / "chelsea.png",
        Image.new("RGB", (90, 70), (200, 30, 90)),
    ]
    small = FeatureExtractor(models / "shapes_small.onnx", provider="cpu", max_bytes="600KB")
    stream = small.stream(pictures)
    assert len(list(stream)) > 2
    pages = [page_of(extractor(pictures)), page_of(*stream), page_of(*(extractor(x) for x in pictures))]
    for other in pages[1:]:
        assert [layer.layer.name for layer in other.layers] == [layer.layer.name for layer in pages[0].layers]
        assert [layer.to_json() for layer in other.layers] == [layer.to_json() for layer in pages[0].layers]
        assert [layer.views[1].sprite.png for layer in other.layers] == [
            layer.views[1].sprite.png for layer in pages[0].layers
        ]
        assert [x.size for x in other.photographs] == [(300, 451), (70, 90)]


def test_photographs_are_told_with_file_digest_and_size(models: Path, extractor: FeatureExtractor) -> None:
    import hashlib

    path = models / "pictures" / "chelsea.png"
    large = np.zeros((1500, 3000, 3), np.uint8)
    found = page_of(extractor([path, large])).photographs
    assert (found[0].file, found[0].size) == (str(path), (300, 451))
    assert found[0].sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (found[1].file, found[1].sha256, found[1].size) == (None, None, (1500, 3000))
    shown = Image.open(io.BytesIO(found[1].picture))
    assert (shown.format, shown.size) == ("JPEG", (960, 480))


def test_photographs_of_one_name_are_told_apart(extractor: FeatureExtractor, tmp_path: Path) -> None:
    files = [tmp_path / "a" / "cat.png", tmp_path / "b" / "cat.png", tmp_path / "dog.png"]
    for file in files:
        file.parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 30), (90, 20, 200)).save(file)
    found = page_of(extractor([files[0], files[1], files[2], files[2]])).photographs
    assert [x.name for x in found] == [str(files[0]), str(files[1]), "dog.png (3)", "dog.png (4)"]


def test_a_small_photograph_is_shown_without_loss(extractor: FeatureExtractor) -> None:
    levels = np.random.default_rng(0).integers(0, 256, (32, 40, 3), dtype=np.uint8)
    shown = Image.open(io.BytesIO(page_of(extractor(levels)).photographs[0].picture))
    assert (np.asarray(shown) == levels).all()


def test_an_array_that_was_preprocessed_has_no_photograph_but_fields(extractor: FeatureExtractor) -> None:
    page = page_of(extractor(np.zeros((1, 64, 64, 3), np.float32)))
    assert (page.photographs[0].size, page.photographs[0].picture) == (None, b"")
    view = page.layers[0].views[0]
    assert view.fields is not None
    assert page.fields[view.fields].size == (64, 64)


def test_layers_without_places_say_why() -> None:
    layer = page_of(as_features({"conv": noise(1, 3, 4, 4)})).layers[0]
    assert layer.views[0].fields is None
    assert "no cell of it belongs to a place" in layer.why_no_place


def test_what_cells_see_is_told_once(models: Path, extractor: FeatureExtractor) -> None:
    page = page_of(extractor([models / "pictures" / "chelsea.png"] * 2))
    assert len(page.fields) == len(set(page.fields)) < len(page.layers)  # two layers of stride 1 see the same


def test_a_page_that_would_be_too_large_has_blocks_of_cells_and_says_so() -> None:
    maps = {"large": noise(1, 16, 200, 200), "small": noise(1, 16, 10, 10)}
    whole = page_of(as_features(maps))
    assert [layer.views[0].sprite.block for layer in whole.layers] == [1, 1]
    page = page_of(as_features(maps), max_bytes=200_000)
    large, small = (layer.views[0].sprite for layer in page.layers)
    assert large.block > 1
    assert small.block == 1
    assert sum(len(x.png) for x in (large, small)) * 4 / 3 <= 200_000
    (note,) = page.notes
    assert f"mean of {large.block} cells" in note
    assert note.endswith(": large")


class Passing(list[Features]):
    """Runs that count how often they pass."""

    passes = 0

    def __iter__(self) -> Iterator[Features]:
        self.passes += 1
        return super().__iter__()


def test_coarse_pictures_leave_all_that_was_measured_as_it_was() -> None:
    maps = {f"conv{place}": noise(2, 8, 40 + place, 30) for place in range(12)}
    runs = Passing([as_features(maps)])
    page = gather(runs, style=Style(), max_bytes=40_000)
    assert 2 <= runs.passes <= 4
    for layer in page.layers:
        assert {view.sprite.block for view in layer.views} != {1}
        for index, view in enumerate(layer.views):
            array = maps[layer.layer.name][index]
            np.testing.assert_array_equal(view.high, array.max(axis=(1, 2)))
            assert view.sprite.rows == -(-array.shape[1] // view.sprite.block)
            assert view.statistics.finite == array.size
    whole = page_of(as_features(maps))
    for layer, other in zip(page.layers, whole.layers, strict=True):
        assert layer.thumbnail == other.thumbnail
        assert {name: order.tolist() for name, order in layer.orders.items()} == {
            name: order.tolist() for name, order in other.orders.items()
        }


def test_a_page_of_many_layers_fits_its_budget_though_each_file_has_a_palette() -> None:
    runs = Passing([as_features({f"conv{place}": noise(1, 4, 24, 24) for place in range(200)})])
    page = gather(runs, style=Style(), max_bytes=350_000)
    sizes = [len(layer.views[0].sprite.png) * 4 / 3 for layer in page.layers]
    assert 250_000 < sum(sizes) <= 350_000
    assert runs.passes <= 4


def test_runs_that_have_other_pictures_when_they_pass_again_are_refused() -> None:
    class Changing(Passing):
        def __iter__(self) -> Iterator[Features]:
            super().__iter__()
            yield as_features({"conv": noise(self.passes, 16, 50, 50)})

    with pytest.raises(PictureError, match=r"other pictures when they passed again: pass runs that stay the same"):
        gather(Changing(), style=Style(), max_bytes=1000)


def test_blocks_of_cells_have_fields_of_their_own(models: Path, extractor: FeatureExtractor) -> None:
    features = extractor(models / "pictures" / "chelsea.png")
    page = page_of(features, max_bytes=60_000)
    assert any(layer.views[0].sprite.block > 1 for layer in page.layers)
    for layer in page.layers:
        (view,) = layer.views
        if view.fields is not None:
            rows, columns = page.fields[view.fields].terms[0]
            assert (len(rows), len(columns)) == (view.sprite.rows, view.sprite.columns)


def test_what_the_cells_of_all_layers_see_is_found_in_one_sweep(
    models: Path, extractor: FeatureExtractor, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweeps = []

    def counted(*given: Any) -> Any:
        sweeps.append(given)
        return each_field(*given)

    monkeypatch.setattr("onnxfeat.report.places.each_field", counted)
    features = extractor([models / "pictures" / "chelsea.png", np.zeros((40, 90, 3), np.uint8)])
    page = page_of(features)
    assert len(sweeps) == 1
    assert all(view.fields is not None for layer in page.layers for view in layer.views)


def test_what_no_block_makes_small_enough_is_shown_all_the_same() -> None:
    page = page_of(as_features({"conv": noise(1, 50, 6, 6)}), max_bytes=10)
    assert page.layers[0].views[0].sprite.rows == 1


def test_an_iterator_passes_once_and_is_refused_only_if_it_had_to_pass_twice() -> None:
    def runs() -> Iterator[Features]:
        yield as_features({"conv": noise(1, 16, 50, 50)})

    assert gather(runs(), style=Style(), max_bytes=LARGE).layers
    with pytest.raises(PictureError, match=r"the runs are an iterator.*raise max_bytes"):
        gather(runs(), style=Style(), max_bytes=1000)


def test_runs_of_several_models_are_refused() -> None:
    maps = {"conv": noise(1, 2, 4, 4)}
    with pytest.raises(PictureError, match=r"several models or selections \(net.onnx, other.onnx\)"):
        page_of(as_features(maps), as_features(maps, sha256="1" * 64, model="other.onnx"))


def test_layers_that_can_not_be_shown_are_left_out_with_the_reason() -> None:
    page = page_of(as_features({"empty": np.zeros((1, 4, 0)), "conv": noise(1, 2, 4, 4)}, left_out={"x": "too large"}))
    assert [layer.layer.name for layer in page.layers] == ["conv"]
    assert page.left_out == {"x": "too large", "empty": "its map of shape (1, 4, 0) is empty"}
    with pytest.raises(PictureError, match=r"no map to show \('empty'.*is empty\)"):
        page_of(as_features({"empty": np.zeros((1, 4, 0))}))


@pytest.mark.parametrize(
    ("shape", "tile"),
    [((1, 3, 50), (1, 50)), ((1, 3, 4, 5, 6), (11, 13)), ((1, 100), (2, 64)), ((1, 100, 1, 1), (2, 64))],
)
def test_maps_of_other_axes_have_tiles_too(shape: tuple[int, ...], tile: tuple[int, int]) -> None:
    layer = page_of(as_features({"layer": noise(*shape)})).layers[0]
    sprite = layer.views[0].sprite
    assert (sprite.rows, sprite.columns) == tile
    assert layer.shapes == (shape[1:],)


def test_the_verdict_of_a_check_is_on_the_page(models: Path, extractor: FeatureExtractor) -> None:
    features = extractor(models / "pictures" / "chelsea.png")
    page = page_of(features, check=check(models / "shapes_small.onnx", provider="cpu"))
    assert page.passed is True
    assert any("rounding" in sentence for sentence in page.verdict)
    assert page_of(features).passed is None
    assert page_of(features, facts={"unchecked": "no time"}).verdict == ("no time",)


def test_every_name_of_a_layer_is_called_once_a_picture(extractor: FeatureExtractor) -> None:
    seen: list[str] = []
    page_of(extractor([np.zeros((8, 8, 3), np.uint8)] * 2), progress=seen.append)
    assert sorted(seen) == sorted([layer.name for layer in extractor.layers] * 2)
