"""The figures of a run as PNG or SVG files (extra `images`: kaleido drives a Chromium or Chrome of this machine)."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from npusim.errors import BadInputError, MissingExtraError, OutputError
from npusim.reports.page import figure, figures
from npusim.reports.source import Profiled
from npusim.reports.theme import Figure

FORMATS = ("png", "svg")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
WIDTH = 1200


def write_images(profile: Profiled, folder: str | Path, kind: str) -> list[Path]:
    """Write every figure of a run into a folder (made if needed); equal tile-count curves are one picture.

    Args:
        kind: `png` or `svg`.

    Raises:
        BadInputError: another kind.
        MissingExtraError: kaleido is not installed.
        OutputError: no browser, or the browser failed.
    """
    check_images(kind)
    import plotly.io

    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    chosen = distinct(figures(profile))
    paths = [place / f"{file_name(name)}.{kind}" for name in chosen]
    drawn = [figure(_on_paper(description)) for description in chosen.values()]
    try:
        plotly.io.write_images(fig=drawn, file=paths, format=kind, width=WIDTH)
    except Exception as error:  # kaleido and its browser raise types of their own
        raise OutputError(
            f"{place}: the browser could not draw the figures ({str(error).splitlines()[0][:200]})"
        ) from error
    return paths


def check_images(kind: str) -> None:
    """Refuse what cannot be drawn here, before anything is computed (see `write_images`)."""
    if kind not in FORMATS:
        raise BadInputError(f"pictures are {' or '.join(FORMATS)}, not '{kind}'")
    if find_spec("kaleido") is None:
        raise MissingExtraError("kaleido", "images")
    if not any(shutil.which(name) for name in BROWSERS):
        raise OutputError(
            "pictures need a Chromium or Chrome on the PATH, and there is none; install one (apt-get install chromium)"
        )


def distinct(described: Mapping[str, Figure]) -> dict[str, Figure]:
    """Figures that differ, under the first name of each."""
    seen: dict[str, str] = {}
    for name, description in described.items():
        seen.setdefault(repr(description), name)
    return {name: described[name] for name in seen.values()}


def file_name(name: str) -> str:
    """A figure's name as a file's: letters, digits, dots, dashes and underscores."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:120] or "figure"


def _on_paper(description: Figure) -> Figure:
    """The figure on white: what has no page behind it needs a background."""
    return description | {"layout": description["layout"] | {"paper_bgcolor": "#fff", "plot_bgcolor": "#fff"}}
