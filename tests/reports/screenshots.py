"""Screenshots of a report's sections, for docs: `python tests/reports/screenshots.py REPORT.html FOLDER NAME=FIRST-LAST ...`.

Each NAME becomes four pictures (1440 and 390 pixels wide, light and dark) of the sections from FIRST to LAST.

Needs chromium and selenium (see `test_browser.py`) and pillow.
"""

from __future__ import annotations

import base64
import io
import shutil
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from npusim.reports.theme import CATEGORIES, KINDS, STATES

WIDTHS, SCHEMES = (1440, 390), ("light", "dark")


def open_browser() -> Any:
    """A headless chromium with a new profile."""
    webdriver: Any = import_module("selenium.webdriver")

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
    ):
        options.add_argument(flag)
    options.add_argument("--disable-component-update")
    options.add_argument("--disable-sync")
    options.add_argument("--hide-scrollbars")
    options.add_argument(f"--user-data-dir={tempfile.mkdtemp()}")
    return webdriver.Chrome(
        options=options, service=webdriver.ChromeService(shutil.which("chromedriver") or "")
    )


def show(browser: Any, page: Path, width: int, scheme: str) -> None:
    """Open the page at a width, in a colour scheme, and wait until it is drawn."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    browser.get(page.resolve().as_uri())
    while not browser.execute_script("return document.documentElement.dataset.ready"):
        time.sleep(0.1)
    time.sleep(1)


def shoot(browser: Any, first: str, last: str) -> bytes:
    """PNG of the page from the top of one element to the bottom of another."""
    script = """const [a, b] = [...arguments].map((id) => document.getElementById(id).getBoundingClientRect());
        return {x: a.left + scrollX, y: a.top + scrollY, width: a.width, height: b.bottom - a.top, scale: 1};"""
    clip = browser.execute_script(script, first, last)
    options = {"format": "png", "captureBeyondViewport": True, "clip": clip}
    return base64.b64decode(browser.execute_cdp_cmd("Page.captureScreenshot", options)["data"])


def save(png: bytes, path: Path) -> None:
    """Write a PNG with few colours: the commonest of the picture, and every one that has a meaning."""
    from PIL import Image, ImageColor

    picture = Image.open(io.BytesIO(png)).convert("RGB")
    counted = sorted(picture.getcolors(2**24), reverse=True)[:72]
    meant = [
        ImageColor.getrgb(c) for table in (CATEGORIES, STATES, KINDS) for c in table.values() if c[0] == "#"
    ]
    chosen = list(dict.fromkeys([*meant, *(colour for _, colour in counted)]))
    palette = Image.new("P", (1, 1))
    palette.putpalette([part for colour in chosen for part in colour])
    picture.quantize(palette=palette, dither=Image.Dither.NONE).save(path, optimize=True)


def main(page: Path, folder: Path, pictures: list[str]) -> None:
    """Save each picture at each width, light and dark."""
    browser = open_browser()
    for width in WIDTHS:
        for scheme in SCHEMES:
            show(browser, page, width, scheme)
            for picture in pictures:
                name, _, span = picture.partition("=")
                first, _, last = span.partition("-")
                save(shoot(browser, first, last or first), folder / f"{name}-{width}-{scheme}.png")
    browser.quit()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
