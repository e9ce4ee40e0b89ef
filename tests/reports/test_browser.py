"""The page in a real browser: Debian's chromium (`apt-get install chromium chromium-driver`), driven by selenium."""

from __future__ import annotations

import base64
import csv
import io
import json
import time
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from statistics import median
from typing import Any

import pytest

import npusim.api as api
from npusim.reports.compare import write_compare
from npusim.reports.page import write_report

pytestmark = pytest.mark.slow

READY = (
    "return document.documentElement.dataset.ready || !document.getElementById('failed').hidden && 'failed'"
)


@pytest.fixture(scope="module")
def browser(open_browser: Callable[[Path], Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    opened = open_browser(tmp_path_factory.mktemp("chromium"))
    opened.set_script_timeout(120)
    yield opened
    opened.quit()


def show(browser: Any, page: Path, seconds: float = 120) -> None:
    """Open a page and wait until it says that it is drawn."""
    browser.get("about:blank")
    browser.get_log("browser"), browser.get_log("performance")
    browser.get(page.as_uri())
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        state = browser.execute_script(READY)
        if state:
            assert state == "yes", browser.find_element("id", "failed").text
            return
        time.sleep(0.05)
    raise AssertionError(f"{page} was not drawn within {seconds} s")


def requests(browser: Any) -> set[str]:
    """Addresses asked for since the page was opened, without what is inside the page."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    return {url for url in asked if not url.startswith(("data:", "blob:"))}


@pytest.fixture(scope="module")
def report(tiny: api.Profile, pages: Path, explained: Any) -> Path:
    """The page with everything on it that a page can hold."""
    write_report(explained.profile, pages / "report.html", explained.verified)
    return pages / "report.html"


@pytest.fixture(scope="module")
def comparison(tiny: api.Profile, untiled: api.Profile, pages: Path) -> Path:
    write_compare(untiled, tiny, pages / "compare.html")
    return pages / "compare.html"


@pytest.fixture(params=["report", "comparison"])
def page(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(request.param)
    return found


def test_no_console_message_and_no_request_but_the_file(browser: Any, page: Path) -> None:
    show(browser, page)
    browser.execute_script("document.querySelectorAll('button[data-do]').forEach((b) => b.click())")
    time.sleep(0.5)
    assert browser.get_log("browser") == []
    assert requests(browser) == {page.as_uri()}


def test_hostile_names_stay_text(browser: Any, page: Path, hostile_names: tuple[str, str]) -> None:
    show(browser, page)
    browser.execute_script(
        "const t = window.npusimTimeline; t.find(arguments[0], 1); t.move(0, 1); t.suggest('<');"
        "document.querySelectorAll('.group').forEach((g) => { g.value = 'none'; g.dispatchEvent(new Event('change')); })",
        hostile_names[0],
    )
    time.sleep(0.5)
    assert browser.execute_script("return document.querySelectorAll('img').length") == 0
    assert browser.title != "owned"
    assert hostile_names[0] in browser.find_element("css selector", ".found").text


def test_sums_on_the_page_equal_the_summary(browser: Any, report: Path, tiny: api.Profile) -> None:
    show(browser, report)
    cells = browser.execute_script(
        "return [...document.querySelectorAll('tfoot [data-value]')].map((c) => c.dataset.value)"
    )
    critical, _, dram, spill, macs = cells
    assert float(critical) == tiny.summary["latency_ms"]
    assert int(macs) == tiny.summary["macs"]
    assert int(dram) == tiny.summary["dram_read_bytes"] + tiny.summary["dram_write_bytes"]
    assert int(spill) == tiny.summary["spill_bytes"]


def test_the_layer_table_sorts_filters_and_opens_blocks(browser: Any, report: Path) -> None:
    show(browser, report)
    table = browser.find_element("id", "layer-table")
    blocks = len(table.find_elements("css selector", "tbody tr"))
    table.find_element("css selector", "tbody th button").click()
    assert len(table.find_elements("css selector", "tbody tr")) > blocks
    table.find_element("css selector", ".filter").send_keys("softmax")
    assert "softmax" in table.find_element("css selector", "tr.member").text
    table.find_element("css selector", "thead th[data-key=name] button").click()
    assert (
        table.find_element("css selector", "thead th[data-key=name]").get_attribute("aria-sort")
        == "ascending"
    )


def test_the_keyboard_zooms_selects_and_resets(browser: Any, report: Path) -> None:
    show(browser, report)
    focus = browser.find_element("css selector", ".focus")
    focus.send_keys("+")
    low, high = browser.execute_script("return window.npusimTimeline.range")
    total = browser.execute_script("return window.npusimTimeline.total")
    assert high - low == pytest.approx(total / 2)
    focus.send_keys(".")
    assert "layer" in browser.find_element("css selector", ".detail").text
    focus.send_keys("\ue011")  # Home
    assert browser.execute_script("return window.npusimTimeline.range") == [0, total]


def test_hovering_tells_layer_shape_time_and_stall(browser: Any, report: Path) -> None:
    show(browser, report)
    script = """
        const t = window.npusimTimeline, run = t.runs[0], gang = run.gangs.find((g) => g.commands);
        const q = run.quantum / 1e9, i = gang.first, row = t.lanes.findIndex((l) => l.lane === gang.lanes[0]);
        t.range = [run.start[i] * q, run.end[i] * q + 1e-6];
        return t.draw().then(() => {
            const full = t.plot._fullLayout, box = t.plot.getBoundingClientRect();
            const clientX = box.left + full.xaxis._offset + full.xaxis._length / 2;
            const clientY = box.top + full.yaxis._offset + full.yaxis.d2p(row);
            t.plot.dispatchEvent(new MouseEvent('mousemove', { clientX, clientY, bubbles: true }));
            return t.tip.textContent;
        });
    """
    text = browser.execute_script(script)
    for word in ("layer", "time", "takes", "bytes", "waited for", "precision"):
        assert word in text


def test_the_rows_of_names_say_what_holds_the_critical_path_and_a_click_zooms_to_it(
    browser: Any, report: Path
) -> None:
    show(browser, report)
    script = """
        const t = window.npusimTimeline, run = t.runs[0], rows = t.lanes.filter((l) => l.path).map((l) => l.path);
        const touching = rows.every((r) => r.start.every((s, i) => s === (i ? r.end[i - 1] : 0)));
        const facts = t.laneFacts(rows[0].start[0] * run.quantum / 1e9 + 1e-9, 0);
        t.showStretch(t.lanes[1], t.total / 2);
        return [rows.map((r) => r.name), touching, rows.map((r) => r.end.at(-1) === run.makespan), facts[0], t.range, t.total];
    """
    names, touching, whole, fact, (low, high), total = browser.execute_script(script)
    assert names == ["block", "layer"]
    assert touching
    assert whole == [True, True]
    assert fact == ["block", "blocks.0"]
    assert low <= total / 2 <= high < total


def test_the_csv_button_saves_every_layer_that_passes_the_filter(
    browser: Any, report: Path, tiny: api.Profile
) -> None:
    show(browser, report)
    script = """
        const made = [], real = URL.createObjectURL;
        URL.createObjectURL = (blob) => { made.push(blob); return real(blob); };
        const filter = document.querySelector('.filter');
        document.querySelector('.csv').click();
        filter.value = 'softmax'; filter.dispatchEvent(new Event('input'));
        document.querySelector('.csv').click();
        URL.createObjectURL = real;
        return Promise.all(made.map((blob) => blob.text()));
    """
    every, filtered = (
        list(csv.DictReader(io.StringIO(t, newline=""))) for t in browser.execute_script(script)
    )
    known = {row.name: row for row in tiny.layers}
    assert {row["name"] for row in every} == known.keys()
    for row in every:
        assert int(row["dram_bytes"]) == known[row["name"]].dram_bytes
        assert float(row["critical_ms"]) == known[row["name"]].critical_ms
    assert [row["op"] for row in filtered] == ["softmax"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(browser: Any, page: Path, scheme: str) -> None:
    axe = pytest.importorskip(
        "axe_core_python", reason="axe-core-python is not installed (pip install axe-core-python)"
    )
    source = files(axe).joinpath("axe.min.js").read_text("utf-8")
    show(browser, page)
    browser.execute_script("document.documentElement.dataset.theme = arguments[0]", scheme)
    browser.execute_script(source)
    found = browser.execute_async_script("axe.run().then(arguments[0])")
    serious = [v for v in found["violations"] if v["impact"] in ("serious", "critical")]
    assert not serious, [(v["id"], [n["html"][:200] for n in v["nodes"][:3]]) for v in serious]


@pytest.mark.parametrize("width", [390, 1440])
def test_no_section_is_wider_than_the_window(browser: Any, page: Path, width: int) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        show(browser, page)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize(("commands", "most_bytes"), [(200_000, 8 * 10**6), (1_000_000, 40 * 10**6)])
def test_many_commands_open_in_few_nodes(
    browser: Any, pages: Path, tiny: api.Profile, enlarged: Callable[..., Any], commands: int, most_bytes: int
) -> None:
    page = pages / f"{commands}.html"
    write_report(enlarged(tiny, commands), page)
    assert page.stat().st_size <= most_bytes
    show(browser, page)
    assert browser.execute_script("return document.querySelectorAll('*').length") <= 15_000
    assert browser.get_log("browser") == []
    times = browser.execute_script(ZOOM)
    print(f"{commands}: {page.stat().st_size} bytes, zoom {median(times):.0f} ms")  # noqa: T201
    assert len(times) == 12


def test_printing_turns_to_light_colours_and_paper_width_and_back(browser: Any, report: Path) -> None:
    show(browser, report)
    state = "return [document.documentElement.dataset.theme ?? '', document.body.style.width]"
    browser.execute_script("document.documentElement.dataset.theme = 'dark'")
    browser.execute_script("dispatchEvent(new Event('beforeprint'))")
    assert browser.execute_script(state) == ["light", "180mm"]
    widths = browser.execute_script(
        "return [...document.querySelectorAll('.main-svg')].map((s) => s.clientWidth)"
    )
    assert max(widths) <= 180 / 25.4 * 96
    browser.execute_script("dispatchEvent(new Event('afterprint'))")
    assert browser.execute_script(state) == ["dark", ""]


def test_every_control_is_reached_by_tab_and_says_what_it_is(browser: Any, page: Path) -> None:
    show(browser, page)
    wanted = browser.execute_script(
        f"return [...document.querySelectorAll({CONTROLS!r})].filter((e) => e.checkVisibility()).length"
    )
    reached = set()
    for _ in range(wanted + 5):
        browser.switch_to.active_element.send_keys("\ue004")  # Tab
        now = browser.switch_to.active_element
        name = browser.execute_script(NAME, now)
        assert name, now.get_attribute("outerHTML")[:200]
        reached.add(now.id)
        if len(reached) == wanted:
            break
    assert len(reached) == wanted


def test_the_printed_page_is_whole(browser: Any, page: Path) -> None:
    """As a PDF of real paper: nothing cut off at the right, no section left out."""
    show(browser, page)
    printed = base64.b64decode(
        browser.execute_cdp_cmd("Page.printToPDF", {"paperWidth": 8.27, "paperHeight": 11.69})["data"]
    )
    assert printed.startswith(b"%PDF")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        browser.execute_script("dispatchEvent(new Event('beforeprint'))")
        beyond = browser.execute_script(BEYOND_PAPER)
        assert beyond == []
    finally:
        browser.execute_script("dispatchEvent(new Event('afterprint'))")
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


CONTROLS = "a[href], button, input, select, summary, [tabindex='0']"
NAME = """
    const e = arguments[0];
    return (e.getAttribute('aria-label') || e.labels?.[0]?.textContent || e.textContent || '').trim();
"""
BEYOND_PAPER = """
    const right = document.body.getBoundingClientRect().right + 1;
    return [...document.querySelectorAll('section > *, table, td, th')]
        .filter((e) => e.checkVisibility() && e.getBoundingClientRect().right > right)
        .map((e) => e.tagName + ' ' + e.closest('section')?.id + ' ' + e.textContent.slice(0, 40));
"""


ZOOM = """
    const t = window.npusimTimeline, times = [];
    const frame = () => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
    return (async () => {
        for (let i = 0; i < 12; i++) {
            const begin = performance.now();
            const [low, high] = t.range, at = low + (high - low) * 0.37;
            t.range = [at - (at - low) / 2, at + (high - at) / 2];
            await t.draw();
            await frame();
            times.push(performance.now() - begin);
        }
        return times;
    })();
"""
