"""pytest plugin: a test suite guards what its model costs on an NPU.

pytest loads it wherever npusim is installed (entry point `pytest11`), so importing it imports nothing heavy.

- `npu_profile(model, **options)` plans and simulates; the same question is answered once per session.
- `assert_dma_cost(profile)` holds DRAM bytes and latency against a committed baseline, or against limits given.
- `--npusim-update-baselines` writes the baselines instead; their diff is then part of the review.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from npusim.results import Profile

UPDATE = "--npusim-update-baselines"
NOTE = "npusim"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the flag that updates baselines, and the setting that says where they lie."""
    parser.getgroup("npusim").addoption(
        UPDATE, action="store_true", help="write the baselines of assert_dma_cost instead of checking them"
    )
    parser.addini(
        "npusim_baselines", default="npusim_baselines",
        help="folder of the baselines of assert_dma_cost, relative to the test's file",
    )  # fmt: skip


@pytest.fixture(scope="session")
def npu_profile() -> Callable[..., Profile]:
    """`npu_profile(model, **options)`: what `npusim.profile` returns, planned once per session for the same arguments.

    A model that does not fit the NPU fails the test, with the reason.
    """
    known: dict[tuple[str, str], tuple[Any, Profile]] = {}

    def profile(model: Any, **options: Any) -> Profile:
        __tracebackhide__ = True
        key = (_identity(model), repr(sorted(options.items())))
        if key not in known:
            from npusim import api

            found = api.profile(model, **options)
            if not isinstance(found, api.Profile):
                pytest.fail(f"npusim: {found.sentence()}", pytrace=False)
            known[key] = (model, found)  # the model is kept so that its id stays its own
        return known[key][1]

    return profile


def _identity(model: Any) -> str:
    if isinstance(model, bytes):
        return sha256(model).hexdigest()
    return str(model) if isinstance(model, str | Path) else str(id(model))


@pytest.fixture
def assert_dma_cost(request: pytest.FixtureRequest) -> AssertDmaCost:
    """`assert_dma_cost(profile, ...)`: fails the test if the profile costs more than allowed (see `AssertDmaCost`)."""
    return AssertDmaCost(request)


class AssertDmaCost:
    """Holds a profile's DRAM bytes and latency against a baseline or limits; made by the fixture of the same name."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._request = request
        self._used = 0

    def __call__(
        self, profile: Profile, *, baseline: str | None = None, tolerance_percent: float = 0.0,
        max_dram_bytes: int | None = None, max_latency_ms: float | None = None,
    ) -> None:  # fmt: skip
        """Fail if the profile costs more than allowed, and name who is to blame.

        Args:
            baseline: name of the baseline's file; by default the test's, unless a limit is given (then none is checked).
            tolerance_percent: by how much the baseline may be exceeded.
            max_dram_bytes: most bytes read and written.
            max_latency_ms: longest latency under the planned policy.

        Raises:
            AssertionError: it costs more, or there is no baseline yet.
            BadInputError: the baseline is of another model, NPU, precision or policy.
        """
        __tracebackhide__ = True
        from npusim.check import baseline_of, check_limits

        self._report(profile)
        current = baseline_of(profile)
        found = check_limits(current, max_dram_bytes=max_dram_bytes, max_latency_ms=max_latency_ms)
        if found:
            raise AssertionError(self._message(profile, [v.sentence() for v in found]))
        if baseline is not None or (max_dram_bytes is None and max_latency_ms is None):
            self._check_baseline(profile, current, self._path(baseline), tolerance_percent)

    def _check_baseline(
        self, profile: Profile, current: dict[str, Any], path: Path, tolerance_percent: float
    ) -> None:
        __tracebackhide__ = True
        from npusim.check import check_baseline, saving
        from npusim.files import write_aside
        from npusim.run_directory import dump_json, load_summary

        if self._request.config.getoption(UPDATE):
            write_aside(path, lambda aside: _write(aside, dump_json(current)))
            self._note(f"wrote {self._shown(path)}")
            return
        if not path.exists():
            raise AssertionError(
                f"there is no baseline {self._shown(path)}; run 'pytest {UPDATE}' once, and commit the file"
            )
        known = load_summary(path)
        found = check_baseline(current, known, tolerance_percent=tolerance_percent)
        if found:
            meant = f"if this is meant: run 'pytest {UPDATE}', and commit {self._shown(path)}"
            raise AssertionError(self._message(profile, [*(v.sentence() for v in found), meant]))
        if better := saving(current, known):
            self._note(f"{self._shown(path)}: {better}; 'pytest {UPDATE}' tightens it")

    def _path(self, baseline: str | None) -> Path:
        request = self._request
        self._used += 1
        repeated = f"-{self._used}" if self._used > 1 else ""
        name = baseline if baseline is not None else f"{request.path.stem}.{request.node.name}{repeated}"
        return (
            request.path.parent / str(request.config.getini("npusim_baselines")) / f"{_file_name(name)}.json"
        )

    def _shown(self, path: Path) -> str:
        root = self._request.config.rootpath
        return str(path.relative_to(root) if path.is_relative_to(root) else path)

    def _message(self, profile: Profile, sentences: list[str]) -> str:
        s = profile.summary
        asked = f"{s['model']} on {s['npu']}, {s['precision']}, tiles {s['tiles']}, {s['policy']}"
        return "\n  ".join((f"DMA cost of {asked}:", *sentences))

    def _report(self, profile: Profile) -> None:
        """Put the figures where pytest-benchmark and JUnit files carry them."""
        from npusim.check import cost_figures

        figures = cost_figures(profile.summary)
        self._request.node.user_properties.extend(figures.items())
        if "benchmark" in self._request.fixturenames:
            extra = getattr(self._request.getfixturevalue("benchmark"), "extra_info", None)
            if extra is not None:
                extra.update(figures)

    def _note(self, sentence: str) -> None:
        self._request.node.user_properties.append((NOTE, sentence))


def _write(path: Path, text: str) -> None:
    path.write_text(text, "utf-8")


def _file_name(name: str) -> str:
    """A name that file systems take; where something else than brackets had to go, a hash keeps names apart."""
    bare = name.replace("[", "-").replace("]", "")
    safe = re.sub(r"[^A-Za-z0-9._-]+", "_", bare)[:120]
    return safe if safe == bare else f"{safe}-{sha256(name.encode()).hexdigest()[:8]}"


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """List baselines that were written or could be tightened."""
    notes = [
        str(value)
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", "") == "call"
        for key, value in getattr(report, "user_properties", ())
        if key == NOTE
    ]
    if notes:
        terminalreporter.section("npusim: DMA cost")
        for note in notes:
            terminalreporter.write_line(note)
