"""The table of `peers.py`: one row per tool and workload, each cell from a tool's output or marked as read from its documentation."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peer_workloads import Workload

MESSAGE_LENGTH = 320
HEADER = (
    "tool", "workload", "outcome", "wall, CPU", "costed", "free or left to the host", "MACs", "DRAM", "addresses", "timeline",
    "numerics †",
)  # fmt: skip
NOTE = (
    "Wall, CPU: ratio to npusim's seconds, start of the process included. Free: no time and no bytes (a transpose can rightly be:"
    " its reader addresses it otherwise). MACs: ratio to those of the workload's products and convolutions. DRAM: bytes moved, each"
    " tool on its own hardware. -: nothing was printed to tell. †: read from the tool's documentation; all else is derived from"
    " what the tools wrote."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One tool on one workload; `facts` is what its driver found in the output, empty where it did not run."""

    tool: str
    version: str = ""
    workload: Workload | None = None
    outcome: str = "ran"
    wall: str = "1 x"
    cpu: str = "1 x"
    facts: dict[str, Any] = field(default_factory=dict)
    numerics: str = "no"


def message(said: str) -> str:
    """A tool's own words for why it stopped: pip's errors, or the last line that it printed."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    pip = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR:")]
    text = " ".join(pip or lines[-1:]) or "it said nothing"
    text = re.sub(r"(\S+ Requires-Python [^;]+; )+", "", text)  # pip lists every release: the last will do
    text = re.sub(r"[^\x20-\x7e]", "", text).replace("|", "/").replace(str(Path.home()), "~")
    return text if len(text) <= MESSAGE_LENGTH else text[: MESSAGE_LENGTH - 4] + " ..."


def ratio(values: Sequence[float], bases: Sequence[float]) -> str:
    """The median of the ratios of runs made in turn."""
    found = statistics.median(v / b for v, b in zip(values, bases, strict=True))
    return f"{found:.2g} x" if found < 100 else f"{found:.0f} x"


def size(count: int | None) -> str:
    """Bytes, decimal."""
    if count is None:
        return "-"
    unit = next((u for u in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if count >= u[0]), (1.0, "B"))
    return f"{count / unit[0]:.3g} {unit[1]}"


def left_out(facts: dict[str, Any]) -> str:
    """Operators that cost nothing or that the tool leaves to the host."""
    free, left = ", ".join(facts["free"]), ", ".join(facts["left"])
    return "; ".join(filter(None, (free and f"{free} (free)", left and f"{left} (host)"))) or "none"


def cells(row: Row) -> list[str]:
    """A row's cells, in the order of `HEADER`."""
    hardware = row.facts.get("hardware")
    named = f"{row.tool} {row.version}".strip() + (f" ({hardware})" if hardware else "")
    title = row.workload.title if row.workload else "all"
    if row.workload is None or not row.facts:
        time = f"{row.wall}, {row.cpu}" if row.workload else "-"
        return [named, title, row.outcome, time, *["-"] * (len(HEADER) - 5), row.numerics]
    facts = row.facts
    macs = "-" if facts["macs"] is None else f"{facts['macs'] / row.workload.macs():.3g} x"
    answers = ["yes" if facts[key] else "no" for key in ("addresses", "timeline")]
    modelled = [", ".join(facts["costed"]), left_out(facts), macs, size(facts["dram_bytes"])]
    return [named, title, row.outcome, f"{row.wall}, {row.cpu}", *modelled, *answers, row.numerics]


def table(rows: Sequence[Row], order: Sequence[Workload]) -> str:
    """A Markdown table by workload, npusim first and once, then tools that ran nothing; and what the columns mean."""
    first = {(row.tool, row.workload): row for row in reversed(rows)}
    tools = ["npusim", *dict.fromkeys(row.tool for row in rows if row.tool != "npusim")]
    places = [*order, None]
    shown = sorted(first.values(), key=lambda row: (places.index(row.workload), tools.index(row.tool)))
    lines = [HEADER, ["---"] * len(HEADER), *map(cells, shown)]
    return "\n".join(["| " + " | ".join(line) + " |" for line in lines] + ["", NOTE])
