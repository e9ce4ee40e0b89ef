"""Screenshots of a report's sections, for docs: `python tests/reports/screenshots.py REPORT.html FOLDER [SECTION ...]`.

Needs chromium and selenium (see `test_browser.py`) and pillow, which reduces the pictures to 128 colours.
"""

from __future__ import annotations

import base64
import io
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

WIDTHS, SCHEMES = (1440, 390), ("light", "dark")


def open_browser() -> Any:
    """A headless chromium with a new profile."""
    from selenium import webdriver

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


def shoot(browser: Any, selector: str) -> bytes:
    """PNG of one element."""
    script = """const r = document.querySelector(arguments[0]).getBoundingClientRect();
        return {x: r.left + scrollX, y: r.top + scrollY, width: r.width, height: r.height, scale: 1};"""
    clip = browser.execute_script(script, selector)
    options = {"format": "png", "captureBeyondViewport": True, "clip": clip}
    return base64.b64decode(browser.execute_cdp_cmd("Page.captureScreenshot", options)["data"])


def save(png: bytes, path: Path) -> None:
    """Write a PNG with 128 colours."""
    from PIL import Image

    picture = Image.open(io.BytesIO(png)).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    picture.save(path, optimize=True)


def main(page: Path, folder: Path, sections: list[str]) -> None:
    """Save each section (or the whole page, as `page`) at each width, light and dark."""
    browser = open_browser()
    for width in WIDTHS:
        for scheme in SCHEMES:
            show(browser, page, width, scheme)
            for name in sections:
                png = shoot(browser, "body" if name == "page" else f"#{name}")
                save(png, folder / f"{name}-{width}-{scheme}.png")
    browser.quit()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:] or ["page"])
