"""What docs show is what happens: their files are written, their commands and examples run, their output compared.

Figures move with the planner: any figure stands for any figure, `...` for anything.
"""

from __future__ import annotations

import doctest
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", re.M | re.S)
FIGURE = re.compile(r"\d[\d.,]*")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: language, file name if there is one, text."""

    language: str
    name: str
    text: str


def blocks(page: str) -> list[Block]:
    text = (ROOT / "docs" / page).read_text("utf-8")
    return [Block(found[1], found[2] or "", found[3]) for found in FENCE.finditer(text)]


def matches(expected: str, found: str) -> bool:
    """Whether output is as expected, with any figure for a figure and anything for `...`."""
    pattern = re.escape(FIGURE.sub("0", expected.strip())).replace(r"\.\.\.", ".*")
    return re.fullmatch(pattern, FIGURE.sub("0", found.strip()), re.S) is not None


def commands(text: str) -> list[tuple[str, str]]:
    """(command, expected output) of a console block."""
    parts = re.split(r"^\$ (.*)\n", text, flags=re.M)[1:]
    return list(zip(parts[::2], parts[1::2], strict=True))


def run(command: str, folder: Path) -> str:
    """What a command prints; `npusim` and `pytest` are those of this checkout."""
    program, *arguments = shlex.split(command)
    ours = {
        "npusim": ["-c", "from npusim.cli import main; main()"],
        "pytest": ["-m", "pytest", "-p", "npusim.pytest_plugin", "-p", "pytest_benchmark.plugin", "--rootdir=.", "-p", "no:cacheprovider"],
    }  # fmt: skip
    inherited = {
        k: v for k, v in os.environ.items() if not k.startswith("PYTEST_XDIST")
    }  # a user has no worker
    environment = inherited | {
        "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "COLUMNS": "400", "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, *ours[program], *arguments], cwd=folder, env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("page", ["gate.md", "sweeps.md"])
def test_a_worked_example_does_what_it_says(page: str, tmp_path: Path) -> None:
    for block in blocks(page):
        if block.name:
            (tmp_path / block.name).write_text(block.text, "utf-8")
        for command, expected in commands(block.text) if block.language == "console" else ():
            found = run(command, tmp_path)
            assert matches(expected, found), f"$ {command}\n{found}\n--- expected ---\n{expected}"


class Figures(doctest.OutputChecker):
    """Compares as `matches` does."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        """Whether the example printed what the page says."""
        return matches(want, got)


@pytest.mark.slow
def test_the_examples_of_the_api_page_do_what_they_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    examples = [b.text for b in blocks("api.md") if b.language == "pycon"]
    test = doctest.DocTestParser().get_doctest("\n".join(examples), {}, "api.md", "docs/api.md", 0)
    assert len(test.examples) > 20
    shown: list[str] = []
    doctest.DocTestRunner(checker=Figures(), verbose=False).run(test, out=shown.append)
    assert not shown, "".join(shown)
