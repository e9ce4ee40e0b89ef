"""Curation and preference in a real browser: by keyboard, killed, resumed, undone; and what the server refuses."""

from __future__ import annotations

import json
import re
import signal
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from npusim.training.chain.make import make_from_folder
from npusim.training.chain.stats import statistics
from npusim.training.chain.variant import Variant, open_variant
from npusim.training.pages.curate import replay
from npusim.training.pages.prefer import open_study, presentation, standing

from .browser import position, press, served, until, visit
from .conftest import QUIET, scene, write_folder

pytestmark = pytest.mark.slow
ENTER, ESCAPE, LEFT, RIGHT, DOWN = "\ue007", "\ue00c", "\ue012", "\ue014", "\ue015"
HOSTILE = "<img src=x onerror=\"document.title='owned'\"> a caption"


@pytest.fixture(scope="module")
def browser(open_browser: Callable[[Path], Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    opened = open_browser(tmp_path_factory.mktemp("chromium"))
    yield opened
    opened.quit()


@pytest.fixture(scope="module")
def synt(tmp_path_factory: pytest.TempPathFactory) -> Variant:
    """24 records."""
    folder = tmp_path_factory.mktemp("synt")
    shown = {f"{i}.png": scene(i) for i in range(24)}
    rows = [{"file_name": name, "text": HOSTILE if i == 1 else f"scene {i}"} for i, name in enumerate(shown)]
    return make_from_folder(write_folder(folder / "in", shown, rows), folder / "synt", QUIET)


def faults(browser: Any) -> list[str]:
    """What the console says, apart from requests that the killed server cannot answer."""
    lost = re.compile("net::ERR_(CONNECTION|EMPTY_RESPONSE)")
    return [entry["message"] for entry in browser.get_log("browser") if not lost.search(entry["message"])]


def shown_caption(browser: Any) -> str:
    return str(browser.find_element("id", "caption").text)


def test_twenty_decisions_by_keyboard_survive_a_kill_and_make_the_curated_variant(
    browser: Any, synt: Variant, tmp_path: Path
) -> None:
    out = tmp_path / "synt-cur"
    words = ("data", "curate", synt.folder, "--out", out)
    with served(*words) as (process, address):
        visit(browser, address, 0)
        press(browser, "a", 1)
        assert shown_caption(browser) == HOSTILE
        assert browser.title == "npusim: curation"
        for done, key in enumerate("araa2a34a", start=2):
            press(browser, key, done)
        press(browser, "e", 10)
        browser.switch_to.active_element.send_keys(" on a hill a", ENTER)  # keys in the text decide nothing
        until(lambda: position(browser) == 11)
        press(browser, "e", 11)
        browser.switch_to.active_element.send_keys("not kept", ESCAPE)
        press(browser, "e", 11)
        press(browser, ENTER, 12)  # an unchanged caption is an acceptance
        press(browser, "u", 11)
        press(browser, "r", 12)
        for done in range(13, 21):
            press(browser, "a", done)
        process.send_signal(signal.SIGKILL)
        process.wait()
        browser.switch_to.active_element.send_keys("a")
        until(lambda: "has ended" in browser.find_element("id", "said").text)
    assert len(replay(out / "decisions.jsonl")) == 20
    with served(*words) as (process, address):
        visit(browser, address, 20)
        assert "20 of 24 decided: 14 accepted, 1 corrected, 5 rejected" in browser.find_element("id", "count").text  # fmt: skip
        press(browser, "u", 19)
        press(browser, "u", 18)
        press(browser, "r", 19)
        for done in range(20, 25):
            press(browser, "a", done)
        until(lambda: browser.switch_to.active_element.get_attribute("id") == "done-title")
        assert "Removed 25.0 % of 24, corrected 4.2 %." in browser.find_element("id", "done").text
        press(browser, "u", 23)
        press(browser, "a", 24)
        browser.switch_to.active_element.send_keys(ENTER)
        said, _ = process.communicate(timeout=60)
    assert "24 of 24 decided: removed 25.0%, corrected 4.2%" in said
    assert "18 kept, 6 set aside" in said
    made, parents = open_variant(out), list(synt.kept())
    outcomes = [(r.cause, r.caption) for r in made.records()]
    assert [cause for cause, _ in outcomes] == [
        None, None, "artefact", None, None, "not as the caption says", None, "poor quality", "rejected", None,
        None, "artefact", *[None] * 6, "artefact", *[None] * 5,
    ]  # fmt: skip
    assert [i for i, (_, caption) in enumerate(outcomes) if caption != parents[i].caption] == [10]
    edited = list(made.records())[10]
    assert (edited.caption, edited.caption_source) == ("scene 10 on a hill a", "person")
    assert edited.details["before"] == "scene 10"
    figures = statistics(out)
    assert (figures["removal_rate"], round(figures["edit_rate"], 4)) == (0.25, round(1 / 24, 4))
    lines = (out / "decisions.jsonl").read_text().splitlines()
    assert len([line for line in lines if "undo" in json.loads(line)]) == 4
    assert faults(browser) == []


def test_blind_tells_nothing_but_the_caption_in_another_order(
    browser: Any, synt: Variant, tmp_path: Path
) -> None:
    words = ("data", "curate", synt.folder, "--out", tmp_path / "out", "--blind", "--sample", 5, "--seed", 3)
    with served(*words) as (process, address):
        visit(browser, address, 0)
        first = shown_caption(browser)
        page = browser.execute_script("return document.body.innerText")
        assert "blind" in page
        assert "given" not in page
        assert browser.find_elements("css selector", "#facts *") == []
        source = browser.find_element("id", "picture").get_attribute("src")
        assert "/picture/0?" in source
        press(browser, "r", 1)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 0
    assert "1 of 5 decided: removed 100.0%, corrected 0.0%; run the same command to go on" in said
    with served(*words) as (process, address):
        visit(browser, address, 1)
        for done in range(2, 4):
            press(browser, "a", done)
    from typer.testing import CliRunner

    from npusim.training.cli import app

    result = CliRunner().invoke(app, [*map(str, words), "--finish"])
    assert "2 kept, 22 set aside" in result.output
    counts = Counter(r.cause for r in open_variant(tmp_path / "out").records())
    assert counts == {None: 2, "artefact": 1, "not reviewed": 2, "not in the sample": 19}
    assert [r.caption for r in open_variant(tmp_path / "out").records() if r.cause == "artefact"] == [first]


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two imagefolders of 22 captions; pictures of the first are wider than high, of the second higher than wide."""
    folder = tmp_path_factory.mktemp("sets")
    rows = [{"file_name": f"{i}.png", "text": f"a scene, number {i}"} for i in range(22)]
    sizes = ((90, 60), (60, 90))
    made = [
        write_folder(folder / name, {f"{i}.png": scene(i, *size) for i in range(22)}, rows)
        for name, size in zip(("first", "second"), sizes, strict=True)
    ]
    return made[0], made[1]


WIDE = "const p = document.getElementById(arguments[0]); return p.complete && p.naturalWidth ? p.naturalWidth > p.naturalHeight : null"


def side_of_a(browser: Any) -> str:
    """Which side shows the wider picture."""
    until(lambda: browser.execute_script(WIDE, "left-picture") is not None)
    return "left" if browser.execute_script(WIDE, "left-picture") else "right"


def test_twenty_answers_by_keyboard_survive_a_kill_and_are_counted_for_the_right_set(
    browser: Any, sets: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "study"
    keys = {"left": LEFT, "right": RIGHT}
    with served("prefer", *sets, "--out", out, "--participant", "P1") as (process, address):
        visit(browser, address, 0)
        text = browser.execute_script("return document.documentElement.outerHTML")
        assert "first" not in text
        assert "second" not in text
        for done in range(1, 21):
            side = side_of_a(browser)
            other = "left" if side == "right" else "right"
            key = DOWN if done % 5 == 0 else keys[side] if done % 3 else keys[other]
            press(browser, key, done)
        process.send_signal(signal.SIGKILL)
        process.wait()
    wanted = ["tie" if n % 5 == 0 else "a" if n % 3 else "b" for n in range(1, 21)]
    assert [answer.preferred for answer in standing(out)["P1"]] == wanted
    with served("prefer", "--out", out, "--participant", "P1") as (process, address):
        visit(browser, address, 20)
        press(browser, "u", 19)
        press(browser, DOWN, 20)
        press(browser, LEFT, 21)
        press(browser, "u", 20)
        press(browser, DOWN, 21)
        press(browser, DOWN, 22)
        browser.switch_to.active_element.send_keys(ENTER)
        said, _ = process.communicate(timeout=60)
    answers = standing(out)["P1"]
    assert [answer.preferred for answer in answers] == [*wanted[:19], "tie", "tie", "tie"]
    tally = Counter(answer.preferred for answer in answers)
    assert f"a {tally['a']}, b {tally['b']}, ties {tally['tie']}" in said
    assert sum(answer.left == "a" for answer in answers) == 11
    order = presentation(open_study(out), "P1")
    assert [(answer.pair, answer.left) for answer in answers] == order
    assert faults(browser) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("what", ["curate", "prefer"])
def test_axe_finds_nothing_serious_and_nothing_is_wider_than_a_phone(
    browser: Any, synt: Variant, sets: tuple[Path, Path], tmp_path: Path, what: str, scheme: str
) -> None:
    axe = pytest.importorskip(
        "axe_core_python", reason="axe-core-python is not installed (pip install axe-core-python)"
    )
    source = files(axe).joinpath("axe.min.js").read_text("utf-8")
    curate = ("data", "curate", synt.folder, "--out", tmp_path / "out", "--sample", 1)
    prefer = ("prefer", *sets, "--out", tmp_path / "study", "--participant", "P1", "--pairs", 1)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    try:
        with served(*(curate if what == "curate" else prefer)) as (_, address):
            visit(browser, address, 0)
            steps = {"curate": "e", "prefer": ""}[what]
            for state in ("open", "last"):
                if state == "open" and steps:
                    browser.switch_to.active_element.send_keys(steps)
                elif state == "last":
                    browser.switch_to.active_element.send_keys(ENTER if steps else LEFT)
                    until(lambda: position(browser) == 1)
                for width in (1440, 390):
                    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
                    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
                    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
                browser.execute_script(source)
                found = browser.execute_async_script("axe.run().then(arguments[0])")
                serious = [v for v in found["violations"] if v["impact"] in ("serious", "critical")]
                assert not serious, [(v["id"], [n["html"][:200] for n in v["nodes"][:3]]) for v in serious]
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def asked(
    address: str, method: str, path: str, headers: dict[str, str], body: str | None = None
) -> tuple[int, str]:
    port = int(address.split(":")[2].split("/")[0])
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    found = answer.status, answer.read().decode("utf-8", "replace")
    connection.close()
    return found


def test_the_server_answers_this_page_only(synt: Variant, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with served("data", "curate", synt.folder, "--out", out) as (_, address):
        token = address.split("#")[1]
        port = address.split(":")[2].split("/")[0]
        own = {"X-Npusim-Token": token, "Content-Type": "application/json"}
        accept = json.dumps({"do": "accept", "position": 0})
        assert asked(address, "GET", "/", {})[0] == 200
        assert token not in asked(address, "GET", "/", {})[1]
        refused: list[tuple[str, str, dict[str, str], str | None]] = [
            ("GET", "/state", {}, None),
            ("GET", "/picture/0", {}, None),
            ("GET", "/picture/0?token=wrong", {}, None),
            ("GET", "/", {"Host": "evil.example"}, None),
            ("GET", "/state", {**own, "Host": f"evil.example:{port}"}, None),
            ("GET", "/state", {**own, "Sec-Fetch-Site": "cross-site"}, None),
            ("POST", "/act", {"Content-Type": "application/json"}, accept),
            ("POST", "/act", {**own, "X-Npusim-Token": "é"}, accept),
            ("POST", "/act", {**own, "Origin": "http://evil.example"}, accept),
            ("POST", "/act", {**own, "Origin": "null"}, accept),
            ("POST", "/act?token=" + token, {"Content-Type": "application/json"}, accept),
        ]
        for method, path, headers, body in refused:
            assert asked(address, method, path, headers, body)[0] == 403, (method, path, headers)
        wrong: list[tuple[int, str, str, dict[str, str], str | None]] = [
            (400, "POST", "/act", {**own, "Content-Type": "text/plain"}, accept),
            (400, "POST", "/act", own, "not json"),
            (400, "POST", "/act", own, "[1]"),
            (400, "POST", "/act", own, json.dumps({"caption": "x" * 70_000})),
            (400, "POST", "/other", own, accept),
            (409, "POST", "/act", own, json.dumps({"do": "accept", "position": 1})),
            (409, "POST", "/act", own, json.dumps({"do": "undo", "position": 0})),
            (409, "POST", "/act", own, json.dumps({"do": "edit", "position": 0, "caption": " "})),
            (409, "POST", "/act", own, json.dumps({"do": "edit", "position": 0, "caption": 3})),
            (409, "POST", "/act", own, json.dumps({"do": "reject", "position": 0, "cause": "taste"})),
            (409, "POST", "/act", own, json.dumps({"do": "dance", "position": 0})),
            (404, "GET", "/picture/24", own, None),
            (404, "GET", "/picture/..%2F..%2Fvariant.json", own, None),
            (404, "GET", "/picture/../../variant.json", own, None),
            (404, "GET", "/variant.json", own, None),
        ]
        for status, method, path, headers, body in wrong:
            assert asked(address, method, path, headers, body)[0] == status, (method, path, body)
        assert (out / "decisions.jsonl").read_text() == ""
        status, text = asked(address, "POST", "/act", {**own, "Origin": f"http://localhost:{port}"}, accept)
        assert (status, json.loads(text)["position"]) == (200, 1)
        with socket.socket() as other, pytest.raises(OSError, match="refused"):
            other.connect(("127.0.0.2", int(port)))
