"""A page served by a subprocess of the real command, in a real browser."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def served(*words: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A verb of `npusim train` that serves a page: its process and the printed address."""
    command = [sys.executable, "-m", "npusim.training.cli", *map(str, words)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith("open http://127.0.0.1:"), line + process.stdout.read()
        yield process, line.removeprefix("open ").strip()
    finally:
        process.kill()
        process.communicate()


def until(true: Callable[[], Any], seconds: float = 60) -> None:
    """Wait for a state of the page."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "the page did not get there"
        time.sleep(0.02)


def position(browser: Any) -> int:
    """How many are decided, as the page shows it; -1 before it is drawn."""
    found = browser.execute_script(
        "const d = document.documentElement.dataset; return d.ready ? d.position : -1"
    )
    return int(found)


def visit(browser: Any, address: str, expected: int) -> None:
    """Open the page and wait until so many are decided on it."""
    browser.get("about:blank")
    browser.get(address)
    until(lambda: position(browser) == expected)


def press(browser: Any, keys: str, then: int) -> None:
    """Send keys to what has the focus, and wait until so many are decided."""
    browser.switch_to.active_element.send_keys(keys)
    until(lambda: position(browser) == then)
