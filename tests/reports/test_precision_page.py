"""The page of a precision search: its figures from made-up points; hostile names stay text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from npusim.reports.precision import front_figure, write_precision_page

from .conftest import BREAKOUT, HOSTILE


def point(
    number: int, name: str, latency_ms: float, predicted_db: float | None, **more: Any
) -> dict[str, Any]:
    return {
        "number": number, "name": name, "on_front": True, "paper": name == "w8a16", "precisions": {"w8a16": 3, "w8a8": 2},
        "predicted_sqnr_db": predicted_db, "latency_ms": latency_ms, "predicted_latency_ms": latency_ms * 1.01, "dram_bytes": 4_000_000,
        "energy_mj": 0.2, **more,
    }  # fmt: skip


def result(points: list[dict[str, Any]], layer: str = "conv_in") -> dict[str, Any]:
    layers = [
        {
            "name": layer,
            "op": "conv",
            "sqnr_db": {"w8a8": 31.26, "w8a16": None},
            "time_ms": {"w8a8": 0.5, "w8a16": 0.75},
        }
    ]
    return {
        "model": HOSTILE, "npu": "toy", "policy": "decoupled", "tiles": "auto", "inputs": BREAKOUT, "options": ["w8a8", "w8a16"],
        "simulated": 9, "within_2_percent": 1, "proposed": 1, "points": points, "layers": layers,
    }  # fmt: skip


def test_the_figure_shows_executed_errors_where_there_are_any_and_marks_the_papers_choice() -> None:
    points = [
        point(0, "mixed", 2.0, 50.0, measured_sqnr_db=49.0),
        point(1, "w8a16", 3.0, 40.0, measured_sqnr_db=41.0),
        point(2, "w8a8", 1.0, 20.0),
        point(3, "fp16", 4.0, None),  # equal to FP32: no finite place on the axis
    ]
    traces = {t["name"]: t for t in front_figure(points, "latency_ms", "latency (ms)", 1.0)["data"]}
    assert (traces["a precision for every layer"]["x"], traces["a precision for every layer"]["y"]) == (
        [2.0],
        [49.0],
    )
    assert (traces["the paper's choice"]["x"], traces["the paper's choice"]["y"]) == ([3.0], [41.0])
    assert traces["one precision"]["text"] == ["w8a8"]


def test_the_page_says_what_was_executed_and_names_stay_text(tmp_path: Path) -> None:
    page = tmp_path / "p.html"
    executed = {"measured_sqnr_db": 41.0, "conditioning_sqnr_db": 28.4}
    write_precision_page(result([point(0, "w8a16", 3.0, 40.0, **executed)], layer=HOSTILE), page)
    text = page.read_text("utf-8")
    assert HOSTILE not in text
    assert BREAKOUT not in text
    for shown in ("41.0 dB", "28.4 dB", "(the paper's)", "31.3", "exact"):
        assert shown in text
    assert "as executed" in text
    write_precision_page(result([point(0, "w8a16", 3.0, 40.0)]), page)
    assert "as predicted" in page.read_text("utf-8")
