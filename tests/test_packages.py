"""Every folder with code is in the wheel's package list, and the package runs as a module."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import npusim

ROOT = Path(__file__).parents[1]


def test_the_package_list_names_every_package() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    found = {"npusim"}
    for top in ("npusim", "models", "scheduler", "reports", "training"):
        for init in (ROOT / top).rglob("__init__.py"):
            parts = init.parent.relative_to(ROOT).parts
            found.add(".".join(parts if parts[0] == "npusim" else ("npusim", *parts)))
    assert set(settings["packages"]) == found


def test_the_package_runs_as_a_module() -> None:
    asked = [sys.executable, "-m", "npusim"]
    shown = subprocess.run([*asked, "--version"], capture_output=True, text=True, check=True).stdout
    assert shown.split() == ["npusim", npusim.__version__]
    wrong = subprocess.run([*asked, "profile", "missing.onnx"], capture_output=True, text=True, check=False)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "missing.onnx: no such file" in wrong.stderr
