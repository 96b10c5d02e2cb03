"""The page as a file: one, whole, small, safe, and the same each time."""

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hand_made import as_features, noise
from PIL import Image

import onnxfeat
from onnxfeat import FeatureExtractor, Features, Style, write_report
from onnxfeat.errors import OutputError, PictureError
from onnxfeat.preprocessing import Preprocessing
from onnxfeat.report.contents import Histogram
from onnxfeat.report.pages import bars, percent

FOLDER = Path(onnxfeat.__file__).parent / "report"
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</script><!--",
    "a & b 'c' \\",
    "\udcff",
    "größe 層",
    "x" * 200,
]
VOID = {"meta", "link", "img", "br", "input", "rect", "line", "path"}


class Parsed(HTMLParser):
    """What a browser finds in a page: tags with their attributes, text, the style, the scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.inside: list[str] = []
        self.text = ""
        self.contents: dict[str, list[str]] = {"style": [], "script": []}
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.inside.append(tag)
        if tag in self.contents:
            self.contents[tag].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        while self.inside and self.inside.pop() != tag:
            pass  # `option` and `li` need no end

    def handle_data(self, data: str) -> None:
        if self.inside and self.inside[-1] in self.contents:
            self.contents[self.inside[-1]][-1] += data
        else:
            self.text += data

    def of(self, tag: str, **wanted: str) -> list[dict[str, str]]:
        return [found for name, found in self.tags if name == tag and wanted.items() <= found.items()]

    @property
    def data(self) -> Any:
        (text,) = [x for x in self.contents["script"] if x.startswith("{")]
        return json.loads(text)


def written(features: Any, folder: Path, **choices: Any) -> Parsed:
    path = folder / "report.html"
    write_report(features, path, **choices)
    return Parsed(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def features(models: Path) -> Features:
    return FeatureExtractor(models / "shapes_small.onnx", provider="cpu")(models / "pictures" / "chelsea.png")


def test_style_and_script_are_small_and_hand_written() -> None:
    assert sum((FOLDER / name).stat().st_size for name in ("page.css", "page.js")) < 40_000


def test_the_policy_allows_this_style_and_this_script_and_nothing_else(features: Features, tmp_path: Path) -> None:
    page = written(features, tmp_path)
    (policy,) = [x["content"] for x in page.of("meta") if x.get("http-equiv") == "Content-Security-Policy"]
    (style,) = page.contents["style"]
    (script,) = [x for x in page.contents["script"] if not x.startswith("{")]
    digests = {
        name: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for name, text in (("style", style), ("script", script))
    }
    assert policy == (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digests['style']}'; "
        f"script-src 'sha256-{digests['script']}'; base-uri 'none'; form-action 'none'"
    )
    assert page.tags.index(("meta", {"http-equiv": "Content-Security-Policy", "content": policy})) < 5
    assert not [found for _, found in page.tags if "style" in found or any(name.startswith("on") for name in found)]


def test_a_page_refers_to_nothing_outside(features: Features, tmp_path: Path) -> None:
    page = written(features, tmp_path)
    addresses = [value for _, found in page.tags for name, value in found.items() if name in ("src", "href")]
    assert addresses
    assert all(address.startswith(("data:image/", "data:,", "#")) for address in addresses)
    assert not re.search(r"url\(|@import|https?://", "".join(page.contents["style"]))
    assert not re.search(r"https?://|eval\(|innerHTML|import\(", "".join(page.contents["script"]))


def test_every_layer_has_a_section_a_link_and_a_picture_with_an_alternative_text(
    features: Features, tmp_path: Path
) -> None:
    page = written(features, tmp_path)
    sections = page.of("section", **{"class": "layer"})
    assert [found["id"] for found in sections] == list(features)
    sprites = page.of("img", **{"class": "sprite"})
    for (name, feature_map), sprite in zip(features.items(), sprites, strict=True):
        rows, columns = feature_map.shape[2:]
        assert f"{name}: {feature_map.channels} channels of {rows} x {columns} for chelsea.png" in sprite["alt"]
        assert f"{feature_map.array.max():.3g}"[:4] in sprite["alt"]
        image = Image.open(io.BytesIO(base64.b64decode(sprite["src"].partition(",")[2])))
        image.load()
        assert int(sprite["width"]) % image.width == 0  # whole pixels


def test_the_data_tell_how_sprites_are_read(features: Features, tmp_path: Path) -> None:
    data = written(features, tmp_path).data
    assert [layer["name"] for layer in data["layers"]] == list(features)
    view = data["layers"][0]["views"][0]
    low = np.frombuffer(base64.b64decode(view["low"]), "<f4")
    array = features["conv_1"].array[0]
    assert low.tolist() == array.min(axis=(1, 2)).tolist()
    order = np.frombuffer(base64.b64decode(data["layers"][0]["orders"]["variance"]), "<u2")
    assert order.tolist() == np.argsort(-array.reshape(16, -1).var(axis=1, dtype=np.float64)).tolist()
    assert len(base64.b64decode(data["colormaps"]["viridis"])) == 768


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_no_markup(name: str, tmp_path: Path) -> None:
    features = as_features({name: noise(1, 2, 5, 5)}, pictures=(name,), model=name, left_out={name: name})
    page = written(features, tmp_path)
    shown = name.encode(errors="backslashreplace").decode()
    plain = written(as_features({"a": noise(1, 2, 5, 5)}, left_out={"b": "c"}), tmp_path, overwrite=True)
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in plain.tags]
    assert page.text.count(shown) >= 5
    assert page.data["layers"][0]["name"] == shown


def test_the_same_maps_give_the_same_bytes_whatever_the_clock_says(features: Features, tmp_path: Path) -> None:
    import dataclasses

    later = dataclasses.replace(features, seconds=99.0)
    files = [tmp_path / "a.html", tmp_path / "b.html"]
    for path, run in zip(files, (features, later), strict=True):
        write_report(run, path)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_what_was_run_stands_on_the_page(features: Features, tmp_path: Path, models: Path) -> None:
    page = written(features, tmp_path)
    photograph = hashlib.sha256((models / "pictures" / "chelsea.png").read_bytes()).hexdigest()
    for word in (features.sha256, photograph, "CPUExecutionProvider", "not checked", onnxfeat.__version__, "model"):
        assert word in page.text


def test_the_preprocessing_is_told_with_all_digits(tmp_path: Path) -> None:
    import dataclasses

    way = Preprocessing(scale=1 / 127.5, mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 1, 0.27577711))
    page = written(dataclasses.replace(as_features({"a": noise(1, 2, 5, 5)}), preprocessing=way), tmp_path)
    text = " ".join(page.text.split())
    assert (
        "(picture \N{MULTIPLICATION SIGN} 0.00784313725490196 \N{MINUS SIGN} 0.48145466, 0.4578275, 0.40821073)" in text
    )
    assert ") / 0.26862954, 1, 0.27577711" in text


def test_the_record_tells_what_is_shown(features: Features, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    record = json.loads(json.dumps(write_report(features, path, normalize="log", top=8)))
    assert record["file"] == str(path)
    assert record["bytes"] == path.stat().st_size
    assert (record["style"]["normalize"], record["style"]["top"]) == ("log", 8)
    assert [layer["layer"] for layer in record["layers"]] == list(features)


def test_an_existing_file_is_left_alone_unless_told(features: Features, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        write_report(features, path)
    assert path.read_text() == "mine"
    write_report(features, path, overwrite=True)
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_nothing_is_left_where_the_work_fails(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match="no map to show"):
        write_report(as_features({"empty": np.zeros((1, 0, 3, 3))}), tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_choices_that_pages_do_not_know_are_refused(features: Features, tmp_path: Path) -> None:
    with pytest.raises(PictureError, match=r"'zoom' has no effect on a page.*'normalize'"):
        write_report(features, tmp_path / "report.html", zoom=3)
    with pytest.raises(PictureError, match="colormap 'virids' is unknown"):
        write_report(features, tmp_path / "report.html", style=Style(colormap="virids"))


def test_a_page_of_noise_takes_about_a_byte_and_a_third_for_each_cell(tmp_path: Path) -> None:
    maps = {f"conv_{place}": noise(1, 64, 56, 56) for place in range(6)}
    path = tmp_path / "report.html"
    write_report(as_features(maps), path)
    cells = sum(array.size for array in maps.values())
    assert path.stat().st_size < cells * 1.02 * 4 / 3 + 150_000


@pytest.mark.parametrize(
    ("share", "text"), [(0, "0 %"), (1, "100 %"), (0.004, "< 1 %"), (0.996, "> 99 %"), (0.5, "50 %")]
)
def test_a_share_that_is_not_all_or_nothing_is_not_told_as_that(share: float, text: str) -> None:
    assert percent(share) == text


def test_a_single_value_can_be_seen_in_a_histogram() -> None:
    found = bars(Histogram(counts=(1000, 0, 1), low=0, high=3))
    assert found == [(0.0, 100.0), (66.667, 2.0)]
    assert bars(Histogram(counts=(), low=0, high=0)) == []
