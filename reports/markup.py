"""Small pieces of HTML. Every text that is not ours goes through `html.escape`, every embedded JSON through `embed`."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

SCRIPTS = ("decode.js", "windows.js", "path.js", "timeline.js", "interact.js", "tables.js", "page.js")


def embed(value: Any) -> str:
    """JSON that can stand inside a script element: it holds no `<`."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def number(value: float, text: str) -> str:
    """A figure as people read it, with its full value beside it for whoever looks (and for tests)."""
    return f'<data value="{escape(repr(value))}" title="{escape(repr(value))}">{escape(text)}</data>'


def path_name(name: str) -> str:
    """A module path that may break after its dots."""
    return escape(name).replace(".", ".<wbr>")


def card(label: str, figure: str, note: str = "") -> str:
    """One figure of the headline; `figure` and `note` are HTML."""
    extra = f'<dd class="note">{note}</dd>' if note else ""
    return f'<div><dt>{escape(label)}</dt><dd class="figure">{figure}</dd>{extra}</div>'


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a bar: what it is (plain text), its share of the bar, its colour."""

    name: str
    share: float
    colour: str


def bar(parts: Iterable[Part], label: str, *, mark: float | None = None) -> str:
    """A bar made of parts, with a mark at a share of its length; read aloud as a sentence."""
    drawn = list(parts)
    pieces = "".join(
        f'<i style="width:{100 * p.share:.3f}%;background:{p.colour}" title="{escape(p.name)}"></i>'
        for p in drawn
    )
    if mark is not None and 0 <= mark <= 1:
        pieces += f'<b style="left:{100 * mark:.3f}%"></b>'
    spoken = f"{label}: {'; '.join(p.name for p in drawn)}"
    return f'<div class="bar" role="img" aria-label="{escape(spoken)}">{pieces}</div>'


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    label: str,
    numbers: int = 1,
    text: Sequence[int] = (),
    wrapped: Sequence[int] = (),
) -> str:
    """A table in a box that scrolls sideways. Cells are HTML.

    Args:
        head: column titles, plain text.
        label: what the table shows, for those who cannot see it.
        numbers: columns from this one on are set right, but for those in `text`.
        wrapped: columns of long text, broken into lines.
    """
    classes = [
        _cell_class(number=i >= numbers and i not in text, wrapped=i in wrapped) for i in range(len(head))
    ]
    titles = "".join(f'<th scope="col"{c}>{escape(h)}</th>' for h, c in zip(head, classes, strict=True))
    lines = []
    for row in rows:
        cells = "".join(f"<td{c}>{cell}</td>" for cell, c in zip(row[1:], classes[1:], strict=True))
        lines.append(f'<tr><th scope="row" class="wrap">{row[0]}</th>{cells}</tr>')
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}"><table>'
        f"<thead><tr>{titles}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _cell_class(*, number: bool, wrapped: bool) -> str:
    return ' class="number"' if number else ' class="lines"' if wrapped else ""


def named(group: Sequence[Mapping[str, Any]], note: str) -> str:
    """HTML: the first's name, a note on what it is, and the names of those like it."""
    first = path_name(group[0]["name"]) + (f'<br><span class="quiet">{escape(note)}</span>' if note else "")
    if len(group) == 1:
        return first
    others = "".join(f"<li>{path_name(item['name'])}</li>" for item in group[1:])
    return f'{first}<details class="like"><summary>and {len(group) - 1} more like it</summary><ul>{others}</ul></details>'


def section(name: str, title: str, body: str) -> str:
    """One section of the page."""
    return f'<section id="{name}" aria-labelledby="{name}-title"><h2 id="{name}-title">{escape(title)}</h2>{body}</section>'


def plot(name: str, label: str) -> str:
    """The place of a figure that the page draws."""
    return f'<div class="plot" id="{name}" role="group" aria-label="{escape(label)}"></div>'


def resource(name: str) -> str:
    """Text of a file beside this module."""
    return files("npusim.reports").joinpath(name).read_text("utf-8")


def plotly_script() -> str:
    """plotly.js, from the plotly package, which is found but not imported (that takes half a second)."""
    spec = find_spec("plotly")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            "the report embeds plotly.js, and plotly is not installed; pip install plotly"
        )
    return Path(spec.submodule_search_locations[0], "package_data", "plotly.min.js").read_text("utf-8")


def assemble(values: Mapping[str, str]) -> str:
    """The page: `page.html` with our scripts, styles and `values` filled in; only these scripts may run in it."""
    return fill("page.html", SCRIPTS, values)


def fill(
    template: str, scripts: Sequence[str], values: Mapping[str, str], styles: Sequence[str] = ("page.css",)
) -> str:
    """A page of ours: plotly, scripts, styles and `values` filled into its template; only these scripts may run in it."""
    script, css = ("\n".join(map(resource, names)) for names in (scripts, styles))
    parts = dict(values) | {"css": css, "plotly": plotly_script(), "script": script}
    parts["hashes"] = " ".join(f"'sha256-{_digest(parts[name])}'" for name in ("plotly", "script"))
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], resource(template))


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
