"""Write the maps of a run as one HTML page that needs nothing else: no network, no server, no script to show them.

The page may run its own script and its own style and nothing else: their digests stand in its Content-Security-Policy
(https://www.w3.org/TR/CSP3/).
"""

from __future__ import annotations

import base64
import functools
import hashlib
import urllib.parse
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxfeat.drawing.colormaps import color_table
from onnxfeat.drawing.legends import number
from onnxfeat.drawing.styles import Style, styled
from onnxfeat.errors import PictureError, quote
from onnxfeat.files import refuse_existing, whole_file
from onnxfeat.findings import Check
from onnxfeat.records import Features
from onnxfeat.report.contents import SCHEMA_VERSION, Histogram, Page, readable
from onnxfeat.report.gathering import gather
from onnxfeat.running.planning import budget_of

if TYPE_CHECKING:
    from jinja2 import Template
    from typing_extensions import Unpack

    from onnxfeat.drawing.styles import StyleChoices

DEFAULT_SIZE = "48MB"
"""Bytes that a page may take for each photograph; that of a ResNet50 takes 14 MB."""
_FOLDER = Path(__file__).parent
_STYLE_OF_PAGES = ("normalize", "scale_over", "percentiles", "colormap", "order", "top", "dead")
_COLORMAPS = ("viridis", "magma", "cividis", "gray", "coolwarm")
_LEAST_BAR = 2.0  # percent of the height, so that a single value is seen


def write_report(
    features: Features | Iterable[Features],
    path: str | Path,
    *,
    style: Style | None = None,
    check: Check | None = None,
    max_bytes: int | str = DEFAULT_SIZE,
    overwrite: bool = False,
    progress: Callable[[str], None] | None = None,
    facts: Mapping[str, Any] | None = None,
    **choices: Unpack[StyleChoices],
) -> dict[str, Any]:
    """Write one HTML page in which the maps of a run can be explored; return what it shows, as JSON data.

    The page holds every channel of every layer with 252 levels between its least and its greatest value: a value that
    it tells is off by half a step at most. Normalization, order and colors are chosen in the browser.

    Args:
        features: The maps of one run; or an iterable of runs of one model, or of parts of them as
            `FeatureExtractor.stream` gives. Only one is in memory at a time.
        path: The file, `.html`.
        style: How the maps are shown at first, of which `normalize`, `scale_over`, `percentiles`, `colormap`, `order`,
            `top` and `dead` count; None is `Style()`.
        check: What `onnxfeat.check` found for the model; its verdict stands in the page.
        max_bytes: Bytes that the page may take for each photograph, as a number or as text such as `48MB`. Of layers
            that take too much, and of maps of more than 4 million cells, each pixel is the mean of a block of cells,
            and the page says so.
        overwrite: Whether an existing file may be replaced.
        progress: Called with a layer's name after it was seen.
        facts: What the page can't know of the run: `model_path`, `pictures`, `inputs` and `max_bytes` as they were
            passed, for the lines that give a layer again; `unchecked`, why there is no check.
        **choices: Fields of `Style` that are to be otherwise, such as `normalize="minmax"`.

    Raises:
        PictureError: There is nothing to show, the runs are of several models, or a choice is unknown or has no effect
            on pages.
        OutputError: The file exists or can't be written.

    Example:
        >>> import tempfile
        >>> from onnxfeat import FeatureExtractor
        >>> extractor = FeatureExtractor("models/shapes_reference_layers.onnx", provider="cpu")
        >>> features = extractor("models/pictures/chelsea.png")
        >>> report = write_report(features, Path(tempfile.mkdtemp()) / "report.html", normalize="symmetric")
        >>> report["layers"][0]["layer"], report["layers"][0]["dead_channels"]
        ('conv2d', 0)
    """
    style = style_of_pages(styled(style, choices))
    color_table(style.colors)  # an unknown one is refused before the work
    path, budget = Path(path), budget_of(max_bytes)
    refuse_existing(path, overwrite)
    runs = [features] if isinstance(features, Features) else features
    page = gather(runs, style=style, check=check, max_bytes=budget, progress=progress, facts=facts)
    text = render(page)
    with whole_file(path, overwrite=overwrite) as scratch:
        scratch.write_text(readable(text), encoding="utf-8", newline="\n")
    return record_of(page) | {"file": str(path), "bytes": path.stat().st_size}


def style_of_pages(style: Style) -> Style:
    """Return the style.

    Raises:
        PictureError: It has choices that pages do not know.

    Example:
        >>> style_of_pages(Style(order="variance")).order
        'variance'
    """
    others = [name for name in style.changed() if name not in _STYLE_OF_PAGES]
    if others:
        raise PictureError(
            f"{quote(others)} has no effect on a page: leave it out, pages know {quote(_STYLE_OF_PAGES)}"
        )
    return style


def render(page: Page) -> str:
    """Return a page as HTML."""
    css, script = (_text_of(name) for name in ("page.css", "page.js"))
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_digest(css)}'; script-src '{_digest(script)}'; "
        f"base-uri 'none'; form-action 'none'"
    )
    return _template().render(page=page, data=data_of(page), csp=policy, css=css, script=script)


def data_of(page: Page) -> dict[str, Any]:
    """Return what the page's script needs to know, as JSON data."""
    style = page.style
    colormaps = dict.fromkeys((*_COLORMAPS, style.colors))
    return {
        "schema_version": SCHEMA_VERSION,
        "style": {name: getattr(style, name) for name in (*_STYLE_OF_PAGES, "colors")},
        "colormaps": {name: base64.b64encode(color_table(name).tobytes()).decode() for name in colormaps},
        "photographs": [photograph.to_json() for photograph in page.photographs],
        "fields": [fields.to_json() for fields in page.fields],
        "layers": [layer.to_json() for layer in page.layers],
    }


def record_of(page: Page) -> dict[str, Any]:
    """Return what was run and what is shown, as JSON data for programs."""
    return {
        "schema_version": SCHEMA_VERSION,
        "model": {"file": page.model, "sha256": page.sha256},
        "provider": page.provider.to_json(),
        "preprocessing": {**page.preprocessing.to_json(), "source": page.preprocessing_source},
        "check": {"passed": page.passed, "verdict": list(page.verdict)},
        "versions": dict(page.versions),
        "style": {name: page.style.to_json()[name] for name in _STYLE_OF_PAGES},
        "pictures": [
            {"picture": x.name, "file": x.file, "sha256": x.sha256, "preprocessed": x.size is None}
            for x in page.photographs
        ],
        "layers": [
            {
                "layer": layer.layer.name,
                "shapes": [list(shape) for shape in layer.shapes],
                "channels": layer.channels,
                "dead_channels": round(layer.dead * layer.channels),
                "cells_per_pixel": max(view.sprite.block for view in layer.views),
                "nan_values": sum(view.statistics.nan for view in layer.views),
                "infinite_values": sum(view.statistics.infinite for view in layer.views),
            }
            for layer in page.layers
        ],
        "left_out": dict(page.left_out),
        "notes": list(page.notes),
    }


@functools.cache
def _template() -> Template:
    # Late: it takes longer than drawing a picture.
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        autoescape=True,
        loader=FileSystemLoader(_FOLDER),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, percent=percent, bars=bars, fragment=fragment, exact=exact)
    return environment.get_template("page.html")


@functools.cache
def _text_of(name: str) -> Any:
    from markupsafe import Markup

    return Markup((_FOLDER / name).read_text(encoding="utf-8"))  # noqa: S704  # our own file


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def fragment(name: str) -> str:
    """Return a name as it stands behind `#`, as `encodeURIComponent` of a page's script writes it.

    Example:
        >>> fragment("block/conv 1")
        'block%2Fconv%201'
    """
    return urllib.parse.quote(readable(name), safe="!'()*")


def exact(value: float) -> str:
    """Return a number with all its digits.

    Example:
        >>> exact(1 / 255), exact(1.0)
        ('0.00392156862745098', '1')
    """
    return repr(float(value)).removesuffix(".0")


def percent(share: float) -> str:
    """Return a share as text; what is not 0 or 1 does not become that.

    Example:
        >>> percent(0.25), percent(0.0), percent(0.0001), percent(0.9999)
        ('25 %', '0 %', '< 1 %', '> 99 %')
    """
    if 0 < share < 0.01:
        return "< 1 %"
    if 0.99 < share < 1:
        return "> 99 %"
    return f"{share:.0%}".replace("%", " %")


def bars(histogram: Histogram) -> list[tuple[float, float]]:
    """Return where the bars of a histogram begin and how high they are, in percent; those of no value are left out.

    Example:
        >>> bars(Histogram(counts=(4, 0, 1, 0), low=0.0, high=8.0))
        [(0.0, 100.0), (50.0, 25.0)]
    """
    most = max(histogram.counts, default=0)
    width = 100 / max(len(histogram.counts), 1)
    return [
        (round(place * width, 3), round(max(100 * count / most, _LEAST_BAR), 2))
        for place, count in enumerate(histogram.counts)
        if count
    ]
