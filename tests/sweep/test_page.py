"""The page: its figures from made-up points, and in a real browser a click that leads to the run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from npusim.reports.sweep import PagePoint, SweepPage, write_sweep_page
from npusim.reports.sweep_figures import (
    main_effect,
    parallel_figure,
    pareto_figure,
    sensitivity_figure,
    sram_figure,
)

HOSTILE = "<img src=x onerror=\"document.title='owned'\"></script>"
SIZES, LANES = [2**20, 2**21, 2**22, 2**23], [16, 32]


def page(**more: Any) -> SweepPage:
    """Two networks; the first is four times as slow with the smallest SRAM and twice with the fewer lanes, the other is always equal."""
    points = []
    for network, sram, lanes in product(("deep", HOSTILE), SIZES, LANES):
        slow = (
            (4.0, 1.2, 1.1, 1.0)[SIZES.index(sram)] * (2 if lanes == 16 else 1) if network == "deep" else 7.0
        )
        figures = {"latency_ms": slow, "energy_mj": 1 / slow, "dram_bytes": 1e6}
        points.append(
            PagePoint(
                key=f"{len(points):012x}",
                axes={"network": network, "sram.sram_bytes": sram, "lanes": lanes},
                figures=figures,
            )
        )
    points[3] = PagePoint(
        key=points[3].key, axes=points[3].axes, figures=points[3].figures, report="points/k/report.html"
    )
    made: dict[str, Any] = {
        "name": "s", "title": HOSTILE, "npu": "toy", "networks": ("deep", HOSTILE), "axes": {"sram.sram_bytes": SIZES, "lanes": LANES},
        "fixed": {"tiles": "sram"}, "base": {"sram.sram_bytes": 2**21, "lanes": 32}, "objectives": ("latency_ms", "sram.sram_bytes"),
        "points": tuple(points), "front": (1, 3, 5, 7, 8), "left_out": {"infeasible": (2, "too small")},
        "open_command": "npusim sweep s.toml --point ",
        "sampled": False,
    }  # fmt: skip
    return SweepPage(**made | more)


def test_the_sram_curve_takes_the_other_axes_at_the_npus_own_point_and_marks_the_knee() -> None:
    figure, note = sram_figure(page())
    assert figure is not None
    line, mark, flat = figure["data"]
    assert line["text"] == ["4 ms", "1.2 ms", "1.1 ms", "1 ms"]
    assert mark["x"] == [2.0]
    assert flat["name"].startswith("&lt;img")
    assert "Knees: deep 2 MiB (1.2 ms)." in note
    assert sram_figure(page(axes={"lanes": LANES})) == (None, "")


def test_sensitivity_is_the_ratio_of_geometric_means() -> None:
    effect = main_effect(page(), "deep", "lanes", "latency_ms")
    assert effect[16] / effect[32] == pytest.approx(2)
    figure, _ = sensitivity_figure(page())
    assert figure is not None
    deep, other = figure["data"]
    assert deep["x"] == pytest.approx([4, 2])
    assert other["x"] == pytest.approx([1, 1])


def test_every_point_is_drawn_once_in_the_front_and_along_the_axes() -> None:
    made = page()
    front = pareto_figure(made)
    assert front is not None
    keys = [key for trace in front["data"] for key in trace["customdata"]]
    assert sorted(keys) == [p.key for p in made.points]
    lines = parallel_figure(made)
    assert lines is not None
    assert sum(trace["x"].count(None) for trace in lines["data"]) == len(made.points)
    assert all(0 <= y <= 1 for trace in lines["data"] for y in trace["y"] if y is not None)


def test_a_sweep_without_points_or_axes_still_has_a_page(tmp_path: Path) -> None:
    write_sweep_page(page(points=(), front=()), tmp_path / "p.html")
    write_sweep_page(page(axes={}, fixed={}, base={}, objectives=("latency_ms",)), tmp_path / "q.html")


@pytest.fixture
def browser(open_browser: Callable[[Path], Any], tmp_path: Path) -> Iterator[Any]:
    opened = open_browser(tmp_path / "profile")
    yield opened
    opened.quit()


@pytest.mark.slow
def test_a_click_shows_a_point_and_how_to_open_it_and_names_stay_text(browser: Any, tmp_path: Path) -> None:
    write_sweep_page(page(), tmp_path / "p.html")
    browser.get((tmp_path / "p.html").as_uri())
    end = time.monotonic() + 120
    while (
        not browser.execute_script("return document.documentElement.dataset.ready") and time.monotonic() < end
    ):
        time.sleep(0.1)
    assert browser.get_log("browser") == []
    assert "owned" not in browser.title.replace(HOSTILE, "")
    drawn = browser.execute_script(
        "return [...document.querySelectorAll('.plot')].map((p) => [p.id, p.querySelectorAll('path').length])"
    )
    assert {name for name, paths in drawn if paths > 0} == {
        "pareto-plot",
        "sram-plot",
        "sensitivity-plot",
        "parallel-plot",
    }
    browser.execute_script(
        "document.getElementById('pareto-plot').emit('plotly_click', {points: [{customdata: '000000000003'}]})"
    )
    shown = browser.find_element("id", "chosen").text
    assert "npusim sweep s.toml --point 000000000003" in shown
    assert "2 MiB" in shown
    assert browser.find_element("id", "chosen-report").get_attribute("href").endswith("points/k/report.html")
    browser.execute_script("document.querySelector('button.point[data-key=\"000000000008\"]').click()")
    assert HOSTILE in browser.find_element("id", "chosen").text
    assert not browser.find_element("id", "chosen-report").is_displayed()
