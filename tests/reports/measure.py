"""What a page costs a browser: `python tests/reports/measure.py 200000 1000000` prints one line per number of commands.

Size of the file, first contentful paint and everything drawn (from the start of the navigation), DOM nodes, and the median
time of a zoom of the timeline. Needs chromium and selenium (see `test_browser.py`).
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from conftest import enlarge, profiled
from screenshots import open_browser, show
from test_browser import ZOOM

from npusim.reports.page import write_report

FIRST_PAINT = "return performance.getEntriesByName('first-contentful-paint')[0].startTime"
DRAWN = "return window.npusimDrawnMs"
NODES = "return document.querySelectorAll('*').length"


def measure(browser: Any, commands: int, folder: Path) -> str:
    """One line about a page of at least so many commands."""
    run = enlarge(profiled(tiles="auto"), commands)
    page = folder / f"{commands}.html"
    write_report(run, page)
    show(browser, page, 1440, "light")
    paint, drawn, nodes = (browser.execute_script(script) for script in (FIRST_PAINT, DRAWN, NODES))
    zoom = median(browser.execute_script(ZOOM))
    size = page.stat().st_size / 1e6
    return (
        f"{len(run.program):,} commands: {size:.2f} MB, first paint {paint / 1e3:.2f} s, all drawn {drawn / 1e3:.2f} s, "
        f"{nodes:,} DOM nodes, zoom {zoom:.0f} ms"
    )


def main(sizes: list[int]) -> None:
    """Measure each size in turn."""
    browser = open_browser()
    with tempfile.TemporaryDirectory() as folder:
        for commands in sizes:
            sys.stdout.write(measure(browser, commands, Path(folder)) + "\n")
    browser.quit()


if __name__ == "__main__":
    main([int(text) for text in sys.argv[1:]] or [200_000, 1_000_000])
