"""Open pages in the system's Chromium, and let no complaint of it pass unseen.

Nothing is downloaded here: Playwright's own browsers are not used, the page is offline, and whatever it asks for that
is not in the page itself is a complaint, as is every error and warning on its console.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Dialog, Error, Locator, Page, Request

AXE = Path(__file__).parent / "node_modules" / "axe-core" / "axe.min.js"
_HARMLESS = ("data:", "about:")


def executable() -> str | None:
    """Return the path of the Chromium that `$CHROMIUM` names, or else of the first that is installed."""
    names = [os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome"]
    return next((found for name in names if name and (found := shutil.which(name))), None)


def why_no_browser() -> str:
    """Return why no page can be opened here, with the command that changes it; empty where one can."""
    if importlib.util.find_spec("playwright") is None:
        return 'needs Playwright: pip install "onnxfeat[dev]"'
    if executable() is None:
        return "needs a browser: apt-get install chromium, or name one by the variable CHROMIUM"
    return ""


@contextmanager
def launched() -> Iterator[Browser]:
    """Yield a browser without a window.

    Playwright keeps an event loop in this thread for as long as the browser runs, so that nothing else may start one
    meanwhile (as notebooks' kernels do): keep it no longer than one module of tests.
    """
    from playwright.sync_api import sync_playwright

    arguments = ["--disable-gpu", "--disable-background-networking", "--disable-component-update", "--no-first-run"]
    # Chromium refuses to run as root in its own sandbox.
    arguments += ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable(), args=arguments)
        yield browser
        browser.close()


@contextmanager
def opened(browser: Browser, address: Path | str, **options: Any) -> Iterator[Page]:
    """Yield a page that shows a file, and raise in the end what it complained of.

    Args:
        browser: The browser.
        address: The file, or its whole address with a `#fragment`.
        options: What else `Browser.new_context` takes, such as `color_scheme` or `java_script_enabled`.

    Raises:
        AssertionError: The page wrote an error or a warning to its console, raised one, or asked for anything
            outside of itself.
    """
    complaints: list[str] = []
    context = browser.new_context(**{"viewport": {"width": 1440, "height": 900}} | options)
    context.set_offline(True)
    context.set_default_timeout(15_000)
    page = context.new_page()
    address = address.as_uri() if isinstance(address, Path) else address
    listen(page, address.partition("#")[0], complaints)
    page.goto(address)
    try:
        yield page
    finally:
        context.close()
    assert not complaints, "\n".join(complaints)


def listen(page: Page, address: str, complaints: list[str]) -> None:
    """Add to `complaints` whatever goes wrong from now on in the page that is at this address."""

    def said(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            complaints.append(f"{message.type}: {message.text}")

    def raised(error: Error) -> None:
        complaints.append(f"raised: {error}")

    def asked(request: Request) -> None:
        if not request.url.startswith(_HARMLESS) and request.url.partition("#")[0] != address:
            complaints.append(f"asked for {request.url}")

    def shown(dialog: Dialog) -> None:
        complaints.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    page.on("console", said)
    page.on("pageerror", raised)
    page.on("request", asked)
    page.on("dialog", shown)


def violations(page: Page) -> list[str]:
    """Return what axe-core finds in a page that is serious or critical: rule, impact and the first element.

    Raises:
        FileNotFoundError: axe-core is not installed.
    """
    # The page's policy forbids scripts that are added to it; evaluate goes past it, as a debugger does.
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("async () => (await axe.run()).violations")
    return [
        f"{rule['id']} ({rule['impact']}): {rule['nodes'][0]['html'][:200]} {rule['nodes'][0].get('failureSummary')}"
        for rule in found
        if rule["impact"] in ("serious", "critical")
    ]


class Report:
    """What a reader does with a report that is open, and what the report shows."""

    def __init__(self, page: Page) -> None:
        self.page = page

    @cached_property
    def data(self) -> dict[str, Any]:
        """What the page holds for its script."""
        data: dict[str, Any] = json.loads(self.page.locator('script[type="application/json"]').text_content() or "")
        return data

    @property
    def section(self) -> Locator:
        """The layer that is shown."""
        return self.page.locator("section.layer:visible")

    @property
    def index(self) -> int:
        """Its position on the page."""
        return int(self.section.get_attribute("data-index") or -1)

    @property
    def layer(self) -> dict[str, Any]:
        """What the page holds of it."""
        layer: dict[str, Any] = self.data["layers"][self.index]
        return layer

    def sprite(self, view: int = 0) -> bytes:
        """Return the picture file of its channels for one photograph."""
        source = self.section.locator("img.sprite").nth(view).get_attribute("src") or ""
        return base64.b64decode(source.removeprefix("data:image/png;base64,"))

    @property
    def aside(self) -> Locator:
        """The panel of the selected channel."""
        return self.page.locator("aside")

    def told(self, name: str) -> Any:
        """Return what a data attribute of the panel holds, as JSON."""
        text = self.aside.get_attribute(f"data-{name}")
        return None if text in (None, "") else json.loads(text)

    @property
    def channel(self) -> int:
        """The selected channel."""
        channel: int = self.told("channel")
        return channel

    @property
    def readout(self) -> str:
        """What is said of the cell or pixel that is pointed at."""
        self.page.wait_for_timeout(150)  # the page says something new every 80 ms at most
        return self.page.locator("output").inner_text()

    def settle(self) -> None:
        """Wait until the layer that was chosen is drawn."""
        self.page.wait_for_function(
            """(names) => {
                const section = document.querySelector("section.layer.current");
                return section && document.querySelector("aside").dataset.layer === names[section.dataset.index];
            }""",
            arg=[layer["name"] for layer in self.data["layers"]],
        )

    def wait_for(self, layer: str, channel: int | None = None) -> None:
        """Wait until a layer is drawn, and one of its channels selected."""
        self.page.wait_for_function(
            """([layer, channel]) => {
                const {dataset} = document.querySelector("aside");
                return dataset.layer === layer && (channel === null || Number(dataset.channel) === channel);
            }""",
            arg=[layer, channel],
        )

    def press(self, *keys: str) -> None:
        """Press keys, and wait for what they show."""
        for key in keys:
            self.page.keyboard.press(key)
        self.settle()

    def choose(self, **choices: Any) -> None:
        """Set what is in the toolbar: `choose(normalize="log", top=3)`; None empties a field."""
        for name, value in choices.items():
            control = self._control(name)
            if name == "top":
                control.fill("" if value is None else str(value))
            else:
                control.select_option(value)

    def chosen(self, name: str) -> str:
        """Return what stands in a control of the toolbar."""
        return self._control(name).input_value()

    def _control(self, name: str) -> Locator:
        return self.page.locator(f'.toolbar [name="{name}"]')

    def order(self) -> list[int]:
        """Return the channels that are shown in their order, as the arrow keys go through them."""
        self.page.locator("h1").click()  # keys belong to a field that has the focus
        found: list[int] = []
        self.press("Home")
        while not found or self.channel != found[-1]:
            found.append(self.channel)
            self.press("ArrowRight")
        self.press("Home")
        return found

    def canvas(self, photograph: int = 0) -> Locator:
        """Return the canvas that shows all channels for a photograph."""
        return self.page.locator(".grids figure").nth(photograph).locator("canvas").first

    def grid(self, photograph: int = 0) -> NDArray[np.uint8]:
        """Return the pixels of that canvas, RGBA (rows, columns, 4)."""
        return pixels_of(self.canvas(photograph))

    def stage(self, photograph: int, part: str) -> Locator:
        """Return a part of what is shown of the selected channel: the photograph (`seen`) or its cells (`large`)."""
        return self.aside.locator(".pair").nth(photograph).locator(".stage").nth(["seen", "large"].index(part))

    def hover_cell(self, row: int, column: int, photograph: int = 0) -> None:
        """Point at the middle of a cell of the selected channel."""
        facts = next(x for x in self.layer["views"] if x["photograph"] == photograph)
        point_at(self.stage(photograph, "large"), row, column, facts["rows"], facts["columns"])

    def hover_tile(self, channel: int, row: int, column: int, photograph: int = 0) -> None:
        """Point at the middle of a cell of a channel in the grid of all."""
        facts = next(x for x in self.layer["views"] if x["photograph"] == photograph)
        canvas = self.canvas(photograph)
        width, height = canvas.evaluate("({width, height}) => [width, height]")
        down, across = divmod(self.order().index(channel), width // (facts["columns"] + 1))
        top, left = down * (facts["rows"] + 1), across * (facts["columns"] + 1)
        point_at(canvas, top + row, left + column, height, width)

    def hover_photograph(self, row: int, column: int, photograph: int = 0) -> None:
        """Point at the middle of a pixel of a photograph."""
        rows, columns = self.data["photographs"][photograph]["size"]
        point_at(self.stage(photograph, "seen"), row, column, rows, columns)


def point_at(element: Locator, row: int, column: int, rows: int, columns: int) -> None:
    """Move the pointer over the middle of a cell of an element that has so many rows and columns."""
    element.scroll_into_view_if_needed()
    box = element.bounding_box()
    assert box is not None
    element.hover(position={"x": (column + 0.5) * box["width"] / columns, "y": (row + 0.5) * box["height"] / rows})


def pixels_of(canvas: Locator) -> NDArray[np.uint8]:
    """Return the pixels of a canvas, RGBA (rows, columns, 4)."""
    width, height, text = canvas.evaluate(
        """(canvas) => {
            // From a copy: Chromium complains of canvases that are read more than once, and the page never does that.
            const {width, height} = canvas;
            const copy = new OffscreenCanvas(width, height).getContext("2d", {willReadFrequently: true});
            copy.drawImage(canvas, 0, 0);
            const image = copy.getImageData(0, 0, width, height);
            let text = "";
            for (const byte of image.data) text += String.fromCharCode(byte);
            return [width, height, btoa(text)];
        }"""
    )
    return np.frombuffer(base64.b64decode(text), np.uint8).reshape(height, width, 4)
