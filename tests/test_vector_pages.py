import base64
import io
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot
from numpy.typing import NDArray
from PIL import Image

from onnxfeat.drawing.colormaps import frame_table
from onnxfeat.drawing.painting import paint
from onnxfeat.drawing.scales import Scale
from onnxfeat.drawing.sharing import Shared
from onnxfeat.drawing.styles import Style
from onnxfeat.drawing.vector_pages import save_figure
from onnxfeat.errors import PictureError
from onnxfeat.records import FeatureMap, Layer

SVG = "{http://www.w3.org/2000/svg}"
HREF = "{http://www.w3.org/1999/xlink}href"


def as_map(array: NDArray[Any], name: str = "conv2d") -> FeatureMap:
    layer = Layer(name=name, kind="conv", op_type="Conv", value="v", raw_value="v", activation="Relu")
    return FeatureMap(layer=layer, array=np.array(array, dtype=np.float32))


def noise(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def _tree(path: Path) -> ElementTree.Element:
    return ElementTree.fromstring(path.read_bytes())  # noqa: S314  # we wrote it


def texts_of(path: Path) -> list[str]:
    return ["".join(text.itertext()) for text in _tree(path).iter(f"{SVG}text")]


def images_of(path: Path) -> list[Image.Image]:
    found = [image.get(HREF, "").split(",", 1)[1] for image in _tree(path).iter(f"{SVG}image")]
    return [Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB") for data in found]


def test_texts_stay_texts_and_say_what_the_painted_page_says(tmp_path: Path) -> None:
    path = tmp_path / "a.svg"
    array = noise(1, 4, 30, 40)
    array[0, 1], array[0, 2, 3, 3] = 7, np.nan
    save_figure(as_map(array), 0, path, Style(normalize="minmax", scale_over="layer"))
    texts = texts_of(path)
    assert texts[:2] == ["conv2d", "Conv and Relu, 4 channels of 30 x 40"]
    assert [text for text in texts if text.isdigit()][:4] == ["0", "1", "2", "3"]
    finite = array[np.isfinite(array)]
    for text in (f"{finite.min():.3g}", f"{finite.max():.3g}", "minmax: least to greatest value of the layer"):
        assert text in texts
    assert {"1 NaN", "1 constant"} <= set(texts)


def test_each_cell_is_a_block_of_equal_pixels_of_one_lossless_image(tmp_path: Path) -> None:
    path = tmp_path / "a.svg"
    array = np.arange(12.0).reshape(1, 1, 3, 4)
    facts = save_figure(as_map(array), 0, path, Style(normalize="minmax", arrange="channel"))
    picture = next(np.asarray(image) for image in images_of(path) if image.height > 20)
    zoom = facts["zoom"]
    blocks = picture[-3 * zoom :, : 4 * zoom].reshape(3, zoom, 4, zoom, 3)
    assert (blocks == blocks[:, :1, :, :1]).all()
    levels = np.minimum(array[0, 0] / 11 * 248, 247).astype(int)
    np.testing.assert_array_equal(blocks[:, 0, :, 0], frame_table("viridis")[levels])


@pytest.mark.parametrize("ending", ["svg", "pdf"])
@pytest.mark.parametrize(
    "style",
    [
        Style(),
        Style(arrange="grid", top=3, order="variance"),
        Style(reduce="pca"),
        Style(reduce="l2"),
        Style(frame=False),
        Style(normalize="symmetric", hidpi=True),
    ],
)
def test_the_facts_are_those_of_the_painted_page(style: Style, ending: str, tmp_path: Path) -> None:
    maps = as_map(noise(2, 5, 12, 9))
    path = tmp_path / f"a.{ending}"
    facts = save_figure(maps, 1, path, style)
    painted = dict(paint(maps, 1, style=style).facts)
    for one in (facts, painted):
        one.pop("zoom", None)  # twice as much where density is doubled
    assert facts == painted
    assert path.read_bytes().startswith(b"<?xml" if ending == "svg" else b"%PDF")


@pytest.mark.parametrize("ending", ["svg", "pdf"])
def test_the_same_maps_give_the_same_bytes_in_another_process(ending: str, tmp_path: Path) -> None:
    code = f"""
import sys
import numpy as np
from pathlib import Path
from onnxfeat.drawing.styles import Style
from onnxfeat.drawing.vector_pages import save_figure
from onnxfeat.records import FeatureMap, Layer
layer = Layer(name="conv2d", kind="conv", op_type="Conv", value="v", raw_value="v", activation="Relu")
maps = FeatureMap(layer=layer, array=np.random.default_rng(0).normal(size=(1, 4, 20, 20)).astype("f4"))
save_figure(maps, 0, Path({str(tmp_path / f"there.{ending}")!r}), Style())
"""
    with mpl.rc_context({"font.size": 30, "svg.fonttype": "path", "figure.facecolor": "red", "savefig.dpi": 300}):
        save_figure(as_map(noise(1, 4, 20, 20)), 0, tmp_path / f"here.{ending}", Style())
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (tmp_path / f"here.{ending}").read_bytes() == (tmp_path / f"there.{ending}").read_bytes()


def test_the_text_of_a_pdf_can_be_selected_and_its_image_is_lossless(tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    save_figure(as_map(noise(1, 4, 20, 20)), 0, path, Style())
    data = path.read_bytes()
    assert b"/Type0" in data  # a font of Unicode letters; outlines would have none
    assert b"/DCTDecode" not in data
    assert b"CreationDate" not in data


def test_settings_and_pyplot_stay_as_they_are(tmp_path: Path) -> None:
    before = mpl.rcParams.copy()
    backend = mpl.get_backend()
    save_figure(as_map(noise(1, 4, 20, 20)), 0, tmp_path / "a.svg", Style())
    assert dict(mpl.rcParams) == dict(before)
    assert mpl.get_backend() == backend
    assert pyplot.get_fignums() == []


@pytest.mark.parametrize("name", ["<script>&", "a$b$c", "x\x00\x1b", "größe 層", "\udcff", "n" * 500])
@pytest.mark.parametrize("ending", ["svg", "pdf"])
def test_any_name_can_be_written(name: str, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{ending}"
    save_figure(as_map(noise(1, 2, 5, 5), name), 0, path, Style())
    if ending == "svg":
        assert texts_of(path)[0][:1] == name[:1].encode("ascii", "backslashreplace").decode()[:1]


def test_pictures_share_what_was_found_before(tmp_path: Path) -> None:
    scale = Scale(method="minmax", over="batch", middle=np.array([[50.0]]), reach=np.array([[50.0]]))
    style = Style(normalize="minmax", scale_over="batch")
    facts = save_figure(as_map(noise(1, 2, 5, 5)), 0, tmp_path / "a.svg", style, shared=Shared(scale=scale))
    assert facts["scale"] == {"low": [0.0], "high": [100.0]}
    assert "100" in texts_of(tmp_path / "a.svg")


def test_other_endings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match=r"'a\.jpg' is no name of a drawing: end it with \.svg or \.pdf"):
        save_figure(as_map(noise(1, 2, 5, 5)), 0, tmp_path / "a.jpg", Style())
    assert not (tmp_path / "a.jpg").exists()
