"""The page as text: escaped, sealed, complete, equal to the summary."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest

import npusim.api as api
from npusim.errors import OutputError
from npusim.reports.compare import changes, compare_html, layer_changes, side, write_compare
from npusim.reports.headline import dram_by_category
from npusim.reports.markup import embed
from npusim.reports.page import report_html, write_report
from npusim.reports.quantization import noise_added
from npusim.reports.segments import alike, what_it_is
from npusim.reports.why import against, reasons


@pytest.fixture(scope="module")
def html(tiny: api.Profile) -> str:
    return report_html(tiny)


@pytest.fixture(scope="module")
def full(explained: Any) -> str:
    """A page with all that is optional."""
    return report_html(explained.profile, explained.verified)


def _without_plotly(html: str) -> str:
    longest = max(re.findall(r"<script>(.*?)</script>", html, re.S), key=len)
    return html.replace(longest, "")


@pytest.mark.parametrize("page", ["html", "full"])
def test_names_of_the_model_are_escaped_everywhere(
    page: str, request: pytest.FixtureRequest, hostile_names: tuple[str, str]
) -> None:
    ours = _without_plotly(request.getfixturevalue(page))
    assert not any(name in ours for name in hostile_names)
    assert "<img" not in ours
    assert ours.lower().count("</script>") == 3


def test_embedded_json_cannot_leave_its_element() -> None:
    assert "<" not in embed({"</script>": "<!--<script>"})
    assert json.loads(embed({"</script>": "<!--"})) == {"</script>": "<!--"}


def test_only_our_scripts_may_run(html: str) -> None:
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)
    assert policy
    assert "default-src 'none'" in policy[1]
    assert policy[1].count("sha256-") == 2
    assert "http" not in policy[1]


def test_the_page_refers_to_no_address(html: str) -> None:
    assert not re.findall(r'(?:src|href|action)="(?!#|data:)[^"]*"', _without_plotly(html))


def test_every_figure_of_the_summary_is_on_the_page_to_the_last_digit(html: str, tiny: api.Profile) -> None:
    shown = {
        unescape(k): unescape(v) for k, v in re.findall(r'<span data-key="([^"]*)">([^<]*)</span>', html)
    }
    for key, value in tiny.summary.items():
        if isinstance(value, int | float | str):
            assert json.loads(shown[key]) == value


def test_the_same_run_gives_the_same_page(html: str, tiny: api.Profile) -> None:
    assert report_html(tiny) == html


def test_every_section_is_there_and_reached_by_the_navigation(html: str) -> None:
    sections = re.findall(r'<section id="(\w+)"', html)
    assert sorted(re.findall(r'<a href="#(\w+)"', html)) == sorted(sections)
    assert len(sections) == 10


def test_what_is_optional_is_a_section_with_its_figures(full: str, explained: Any) -> None:
    sections = re.findall(r'<section id="(\w+)"', full)
    assert sorted(re.findall(r'<a href="#(\w+)"', full)) == sorted(sections)
    assert {"gap", "quantization"} <= set(sections)
    gap = full[full.index('<section id="gap"') : full.index('<section id="hints"')]
    values = [float(unescape(v)) for v in re.findall(r'<data value="([^"]*)"', gap)]
    summary = explained.profile.summary
    assert values[0] == summary["lower_bound_ms"]
    assert values[-2:] == [summary["levers"][0]["latency_ms"]] * 2
    assert values[-3] == summary["latency_ms"]
    assert sum(values[:-3]) == pytest.approx(summary["latency_ms"])
    for words in (
        "vector &lt;img",
        "SRAM x 2",
        "<b>9</b>",
        "does not fit",
        "needs 9 MB",
        "layers that lose most",
        "noise added",
    ):
        assert words in full


def _segment(name: str, tiles: int, latency_ms: float) -> dict[str, Any]:
    near = [
        {"tile_count": 1, "latency_ms": None, "reason": "needs 9 MB of SRAM, 6 MB are free"},
        {"tile_count": 16, "latency_ms": 2.2, "reason": "more hand-overs"},
        {"tile_count": 8, "latency_ms": 2.1, "reason": "more set-ups"},
    ]
    why = {
        "alone_ms": 2.0,
        "bound_by": "tensor engines",
        "next_best": near,
        "levers": [{"change": "2 x SRAM", "latency_ms": 1.5}],
    }
    return {"name": name, "kind": "rows", "tile_count": tiles, "latency_ms": latency_ms, "why": why}


def test_segments_with_the_same_reasons_share_a_row_and_the_heaviest_comes_first() -> None:
    html = reasons([_segment("light", 2, 1.0), _segment("a", 4, 0.9), _segment("b", 4, 0.8)])
    rows = re.findall(r"<tr>(.*?)</tr>", html)[1:]
    assert re.sub(r"<[^>]*>", "", rows[0]).startswith("a")
    assert len(rows) == 2
    assert "and 1 more like it" in rows[0]
    fewer, more, sram = (
        re.sub(r"<[^>]*>", " ", cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", rows[0])[3:]
    )
    assert "1 : does not fit" in fewer
    assert more.index("8") < more.index("16"), "the nearest tile count first"
    assert "+5.0 %" in more
    assert "more set-ups" in more
    assert "−25.0 %" in sram


def test_nothing_is_said_where_nothing_was_explained() -> None:
    assert reasons([{"name": "a", "tile_count": 1}]) == ""


def test_the_same_latency_is_no_change() -> None:
    assert "±0 %" in against(2.0, 2.0)
    assert "−0.0" not in against(1.9999999, 2.0)


def test_what_a_segment_is_says_how_its_axes_are_cut() -> None:
    assert what_it_is({"kind": "rows", "tiles": {"rows": 8}}) == "row chain, 8\u00a0along\u00a0rows"
    assert what_it_is({"kind": "attention", "tiles": {"heads": 1, "rows": 1}}) == "attention"


def test_the_bars_of_the_headline_add_up(html: str, tiny: api.Profile) -> None:
    for label in ("what holds the critical path", "what crosses the DRAM", "what the energy goes to"):
        found = re.search(rf'aria-label="{label}: [^"]*">(.*?)</div>', html)
        assert found
        assert sum(float(w) for w in re.findall(r"width:([\d.]+)%", found[1])) == pytest.approx(100, abs=0.1)
    moved = dram_by_category(tiny)
    assert sum(moved.values()) == tiny.dram_bytes
    assert moved["DMA: intermediates"] == tiny.spill_bytes


def test_noise_added_is_what_the_share_of_noise_rises_by() -> None:
    assert noise_added({"sqnr_db": 20.0, "own_noise_db": 10.0}) == pytest.approx(0.01 - 0.001)
    assert noise_added({"sqnr_db": 40.0, "own_noise_db": -3.0}) == 0.0
    assert noise_added({"sqnr_db": None, "own_noise_db": None}) == 0.0


def test_blocks_that_cost_the_same_share_a_row() -> None:
    items = [{"name": n, "layers": [n], "ms": ms} for n, ms in (("a", 1), ("b", 1), ("c", 2))]
    assert [[i["name"] for i in group] for group in alike(items)] == [["a", "b"], ["c"]]


def test_a_run_without_segments_gives_a_page(untiled: api.Profile) -> None:
    assert "No layers are scheduled together" in report_html(untiled)


def test_comparing_a_run_with_itself_finds_nothing(tiny: api.Profile) -> None:
    assert changes(tiny.summary, tiny.summary) == []
    assert layer_changes(side(tiny), side(tiny)) == []


def test_changes_are_sorted_from_worse_to_better(tiny: api.Profile, untiled: api.Profile) -> None:
    found = changes(tiny.summary, untiled.summary)
    shares = [change.share for change in found]
    assert shares == sorted(shares, reverse=True)
    spilled = next(c for c in found if c.what == "intermediates through DRAM")
    assert spilled.increase == untiled.summary["spill_bytes"] - tiny.summary["spill_bytes"] > 0


def test_two_profiles_and_their_run_directories_compare_alike(
    tiny: api.Profile, untiled: api.Profile, tmp_path: Path
) -> None:
    for name, run in (("a", tiny), ("b", untiled)):
        (tmp_path / name).mkdir()
        write_report(run, tmp_path / name / "report.html")
        (tmp_path / name / "summary.json").write_text(json.dumps(run.summary), "utf-8")
    write_compare(tmp_path / "a", tmp_path / "b", tmp_path / "c.html")
    text = (tmp_path / "c.html").read_text("utf-8")
    assert text == compare_html(side(tiny), side(untiled))
    assert "<img" not in _without_plotly(text)


def test_a_directory_without_a_run_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="holds no complete run"):
        side(tmp_path)
    (tmp_path / "summary.json").write_text("{}", "utf-8")
    (tmp_path / "report.html").write_text("<p>", "utf-8")
    with pytest.raises(OutputError, match="holds no data of a run"):
        side(tmp_path)
