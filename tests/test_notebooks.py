import io
import re
import textwrap
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hand_made import as_features, noise
from numpy.typing import NDArray
from PIL import Image

from onnxfeat.drawing.colormaps import frame_table
from onnxfeat.records import FeatureMap, Features, Layer

HOSTILE = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "a & b $x$", "\udcff", "größe 層"]


def as_map(array: NDArray[Any], name: str = "conv2d") -> FeatureMap:
    layer = Layer(name=name, kind="conv", op_type="Conv", value="v", raw_value="v")
    return FeatureMap(layer=layer, array=np.array(array, dtype=np.float32))


class Frame(HTMLParser):
    """What a notebook finds in the display of a run: a frame with a page in it, and a line of text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: dict[str, str] = {}
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "iframe":
            self.attributes = {name: value or "" for name, value in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data

    @property
    def page(self) -> str:
        return self.attributes["srcdoc"]


def frame_of(features: Features) -> Frame:
    return Frame(features._repr_html_())


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


def test_features_are_shown_as_the_page_of_a_report() -> None:
    maps = {"conv2d": noise(1, 4, 9, 11) + 3, "pool": noise(1, 4, 5, 5)}
    frame = frame_of(as_features(maps))
    assert frame.tags == ["iframe", "p"]
    assert frame.text == "2 layers of net.onnx for cat.png"
    assert frame.page.startswith("<!DOCTYPE html>")
    assert frame.page.count('class="sprite"') >= 2
    assert "<h2>pool</h2>" in frame.page


def test_the_frame_can_not_reach_the_notebook() -> None:
    assert frame_of(as_features({"a": noise(1, 2, 5, 5)})).attributes["sandbox"] == "allow-scripts"


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_no_markup_and_no_formulas(name: str) -> None:
    features = as_features({name: noise(1, 2, 5, 5), "empty": np.zeros((1, 0, 2))}, pictures=(name,), model=name)
    frame = frame_of(features)
    assert frame.tags == ["iframe", "p"]
    shown = name.encode(errors="backslashreplace").decode()
    assert frame.text == f"2 layers of {shown} for {shown}"
    html = features._repr_html_()
    html.encode()
    assert "$" not in html[html.index("</iframe>") :]


def test_many_large_layers_stay_small_in_a_notebook() -> None:
    maps = {f"layer_{place}": noise(1, 64, 112, 112) for place in range(54)}
    html = as_features(maps)._repr_html_()
    assert len(html) < 4_000_000
    frame = Frame(html)
    assert all(f"<h2>{name}</h2>" in frame.page for name in maps)
    assert re.search(r"each pixel is the mean of \d+ cells", frame.page)


def test_of_very_many_channels_layers_from_first_to_last_are_shown() -> None:
    html = as_features({f"layer_{place}": noise(1, 2048, 7, 7) for place in range(80)})._repr_html_()
    assert len(html) < 4_000_000
    page = Frame(html).page
    assert "<h2>layer_0</h2>" in page
    assert "<h2>layer_79</h2>" in page
    assert re.search(r"\d+ of 80 layers: `write_report` writes a page of all", page)


def test_of_very_many_layers_some_from_first_to_last_are_shown() -> None:
    html = as_features({f"layer_{place}": noise(1, 2, 8, 8) for place in range(700)})._repr_html_()
    assert len(html) < 4_000_000
    page = Frame(html).page
    assert "<h2>layer_0</h2>" in page
    assert "<h2>layer_699</h2>" in page


def test_of_many_photographs_the_first_three_are_shown() -> None:
    names = tuple(f"{place}.png" for place in range(9))
    features = as_features({"a": noise(9, 4, 30, 30)}, pictures=names, preprocessed=(False,) * 9)
    frame = frame_of(features)
    assert frame.text == "1 layer of net.onnx for 0.png, 1.png, 2.png and 6 more"
    assert "the first 3 of 9 photographs" in frame.page
    assert frame.page.count('class="sprite"') >= 3
    assert "3.png" not in frame.page


@pytest.mark.parametrize("maps", [{}, {"a": np.zeros((1, 0, 2))}])
def test_what_can_not_be_shown_is_told_in_a_sentence(maps: dict[str, NDArray[Any]]) -> None:
    frame = frame_of(as_features(maps))
    assert frame.tags == ["p", "b"]
    assert "there is no map to show" in frame.text


def test_a_photograph_that_is_gone_is_told_in_a_sentence(tmp_path: Path) -> None:
    gone = tmp_path / "gone.png"
    assert "there is no file" in frame_of(as_features({"a": noise(1, 2, 5, 5)}, photographs=(gone,))).text


def test_notebooks_choose_these_displays() -> None:
    formatter = pytest.importorskip("IPython.core.formatters").DisplayFormatter()
    data, _ = formatter.format(as_map(noise(1, 2, 5, 5)))
    assert data["image/png"][1:4] == b"PNG"
    assert data["text/plain"] == "FeatureMap('conv2d', shape=(1, 2, 5, 5))"
    data, _ = formatter.format(as_features({"a": noise(1, 2, 5, 5)}))
    assert data["text/html"].startswith("<iframe ")


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
