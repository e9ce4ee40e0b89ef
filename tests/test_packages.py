"""Every folder with code is in the wheel's package list."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_package_list_names_every_package() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    found = {"npusim"}
    for top in ("npusim", "models", "scheduler", "reports", "training"):
        for init in (ROOT / top).rglob("__init__.py"):
            parts = init.parent.relative_to(ROOT).parts
            found.add(".".join(parts if parts[0] == "npusim" else ("npusim", *parts)))
    assert set(settings["packages"]) == found
