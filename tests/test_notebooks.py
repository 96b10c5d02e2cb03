import base64
import io
import re
import textwrap
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from onnxfeat.drawing.colormaps import frame_table
from onnxfeat.preprocessing import Preprocessing
from onnxfeat.records import FeatureMap, Features, Layer, ProviderChoice

HOSTILE = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "a & b $x$", "\udcff", "größe 層"]


def as_map(array: NDArray[Any], name: str = "conv2d") -> FeatureMap:
    layer = Layer(name=name, kind="conv", op_type="Conv", value="v", raw_value="v")
    return FeatureMap(layer=layer, array=np.array(array, dtype=np.float32))


def as_features(maps: dict[str, NDArray[Any]], **facts: Any) -> Features:
    given: dict[str, Any] = {"pictures": ("cat.png",), "preprocessed": (False,), "model": "net.onnx"} | facts
    return Features(
        maps={name: as_map(array, name) for name, array in maps.items()},
        sha256="0" * 64,
        provider=ProviderChoice(asked="cpu", got="CPUExecutionProvider"),
        preprocessing=Preprocessing(size=(150, 150)),
        preprocessing_source="model",
        seconds=0.5,
        **given,
    )


def noise(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


class Page(HTMLParser):
    """What a browser finds in a page: its tags, pictures and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.images: list[dict[str, str]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "img":
            self.images.append({name: value or "" for name, value in attrs})
        if tag not in ("img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def pictures(self) -> list[Image.Image]:
        start = "data:image/png;base64,"
        assert all(image["src"].startswith(start) for image in self.images)
        return [
            Image.open(io.BytesIO(base64.b64decode(image["src"].removeprefix(start), validate=True)))
            for image in self.images
        ]


def page_of(features: Features) -> Page:
    page = Page(features._repr_html_())
    assert page.open == []
    return page


def test_a_feature_map_is_shown_as_a_png_of_the_first_picture() -> None:
    array = np.zeros((2, 1, 8, 8))
    array[0, 0, 3, 3] = 1  # of the second picture all is constant
    png = as_map(array)._repr_png_()
    assert png is not None
    image = Image.open(io.BytesIO(png))
    image.load()
    assert image.format == "PNG"
    last = tuple(frame_table("viridis")[247].tolist())
    assert last in {color for _, color in image.convert("RGB").getcolors(2**16) or []}


@pytest.mark.parametrize("shape", [(1, 0, 3, 3), (1, 2, 3, 3, 3, 3)])
def test_a_map_that_cannot_be_drawn_is_shown_as_text(shape: tuple[int, ...]) -> None:
    assert as_map(np.zeros(shape))._repr_png_() is None


def test_of_a_map_of_millions_of_cells_the_first_channels_are_shown() -> None:
    png = as_map(np.zeros((1, 20, 1000, 1000)))._repr_png_()
    assert png is not None
    width, height = Image.open(io.BytesIO(png)).size
    assert 4e6 < width * height < 5e6


def test_features_are_shown_with_their_facts_and_a_picture_for_each_layer() -> None:
    maps = {"conv2d": noise(1, 4, 9, 11) + 3, "pool": noise(1, 4, 5, 5)}
    page = page_of(as_features(maps))
    assert [image.format for image in page.pictures()] == ["PNG", "PNG"]
    for word in ("net.onnx", "2 layers for cat.png", "CPU", "150 x 150", "(model)", "conv2d", "shape (1, 4, 9, 11)"):
        assert word in page.text
    low, high = maps["conv2d"].min(), maps["conv2d"].max()
    expected = f"conv2d: feature map, shape (1, 4, 9, 11), values {low:.3g} to {high:.3g}"
    assert page.images[0]["alt"] == expected
    assert "details" not in page.tags


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_no_markup_and_no_formulas(name: str) -> None:
    features = as_features({name: noise(1, 2, 5, 5), "empty": np.zeros((1, 0, 2))}, pictures=(name,), model=name)
    page = page_of(features)
    assert set(page.tags) <= {"div", "p", "b", "br", "img", "details", "summary", "table", "tr", "td", "th", "code"}
    shown = name.encode(errors="backslashreplace").decode()
    assert page.text.count(shown) >= 3
    assert page.images[0]["alt"].startswith(f"{shown}: ")
    html = features._repr_html_()
    html.encode()
    assert "$" not in html


def test_a_page_needs_nothing_else() -> None:
    html = as_features({"conv2d": noise(1, 4, 9, 11)})._repr_html_()
    assert not re.search(r"<script|<link|<iframe|https?:|url\(|@import|\son\w+=", html)


def test_a_page_of_many_large_layers_stays_small_and_lists_them_all() -> None:
    maps = {f"layer_{place}": noise(1, 64, 112, 112) for place in range(54)}
    features = as_features(maps)
    page = page_of(features)
    assert len(features._repr_html_()) < 3_000_000
    assert 0 < len(page.images) <= 12
    assert page.images[0]["alt"].startswith("layer_0: ")
    assert f"{len(page.images)} of 54 layers are drawn" in page.text
    for name in maps:
        assert name in page.text


def test_layers_of_huge_maps_leave_the_page_small() -> None:
    features = as_features({f"layer_{place}": noise(1, 2, 900, 900) for place in range(6)})
    assert len(features._repr_html_()) < 3_000_000
    assert "of 6 layers are drawn" in page_of(features).text


def test_layers_without_a_picture_are_listed_with_the_reason() -> None:
    page = page_of(as_features({"a": noise(1, 2, 5, 5), "b": np.zeros((1, 0, 2))}, left_out={"c": "it was pruned"}))
    assert len(page.images) == 1
    assert "its map of shape (1, 0, 2) is empty" in page.text
    assert "cit was pruned" in page.text


def test_values_that_are_not_finite_are_counted() -> None:
    array = noise(1, 2, 5, 5)
    array[0, 0, 0, 0], array[0, 1, 1, 1] = np.nan, np.inf
    assert "1 NaN, 1 infinite" in page_of(as_features({"a": array})).text


def test_features_without_layers_or_pictures_are_shown() -> None:
    assert "0 layers" in page_of(as_features({})).text
    assert (
        "the first of 3 pictures" in page_of(as_features({}, pictures=("a", "b", "c"), preprocessed=(True,) * 3)).text
    )


def test_notebooks_choose_these_displays() -> None:
    formatter = pytest.importorskip("IPython.core.formatters").DisplayFormatter()
    data, _ = formatter.format(as_map(noise(1, 2, 5, 5)))
    assert data["image/png"][1:4] == b"PNG"
    assert data["text/plain"] == "FeatureMap('conv2d', shape=(1, 2, 5, 5))"
    data, _ = formatter.format(as_features({"a": noise(1, 2, 5, 5)}))
    assert data["text/html"].count("<img ") == 1


IN_A_NOTEBOOK = [
    """
    %matplotlib inline
    import numpy as np
    from matplotlib import pyplot
    from onnxfeat import plot
    from onnxfeat.records import FeatureMap, Layer

    layer = Layer(name="conv2d", kind="conv", op_type="Conv", value="y", raw_value="y")
    maps = FeatureMap(layer=layer, array=np.random.default_rng(0).normal(size=(1, 8, 20, 30)).astype("f4"))
    """,
    "plot(maps)",
    "figure = plot(maps)",
    "figure",
    "for _ in range(2):\n    plot(maps)",
    "figure, (left, right) = pyplot.subplots(1, 2)\nplot(maps, ax=left)\nplot(maps, ax=right)",
    "display(plot(maps))\nprint('drawn')",
    "plot(maps)\npyplot.show()",
    "pyplot.get_fignums()",
]


def test_notebooks_show_each_figure_once() -> None:
    pytest.importorskip("ipykernel")
    client, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    cells = [nbformat.v4.new_code_cell(textwrap.dedent(source).strip()) for source in IN_A_NOTEBOOK]
    notebook = nbformat.v4.new_notebook(cells=cells)
    client.NotebookClient(notebook, kernel_name="python3", timeout=120).execute()
    pictures = [sum("image/png" in output.get("data", {}) for output in cell.outputs) for cell in notebook.cells]
    assert pictures == [0, 1, 1, 1, 2, 1, 1, 1, 0]
