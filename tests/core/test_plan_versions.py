"""The promise on plans: every past schema loads, its committed plan stays, and the page explains each field."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from npusim import plan as plans
from npusim.errors import PlanError
from npusim.plan import PLAN_SCHEMA, UPGRADES, load_plan, parse_plan, plan_schema

ROOT = Path(__file__).parents[2]
#: Kinds that docs/hardware.md explains.
HARDWARE = {
    "Npu",
    "Core",
    "Dma",
    "Dram",
    "Energy",
    "Handover",
    "Sram",
    "TensorEfficiency",
    "TensorEngine",
    "VectorEngine",
}
COMMITTED = ROOT / "tests" / "fixtures" / "plans"


@pytest.mark.parametrize("version", range(1, PLAN_SCHEMA + 1))
def test_a_plan_of_each_schema_loads(version: int) -> None:
    """A new schema needs a step from the one before, and a plan of its own here: never change a committed one."""
    path = COMMITTED / f"schema-{version}.json"
    assert json.loads(path.read_text("utf-8"))["schema_version"] == version
    found = load_plan(path)
    assert found.schema_version == PLAN_SCHEMA
    assert found.segments
    assert parse_plan(found.to_json(), where="again") == found


def test_every_past_schema_has_a_step() -> None:
    assert set(UPGRADES) == set(range(1, PLAN_SCHEMA))


def test_a_plan_goes_through_every_step_since_its_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if two schemas had followed: the first renamed a field, the second added one."""
    newest = PLAN_SCHEMA + 2

    def back(data: dict[str, Any]) -> dict[str, Any]:
        return {("npusim_version" if k == "made_by" else k): v for k, v in data.items()}

    steps = {**UPGRADES, PLAN_SCHEMA: back, PLAN_SCHEMA + 1: lambda data: {**data, "unjoined": ["new"]}}
    monkeypatch.setattr(plans, "PLAN_SCHEMA", newest)
    monkeypatch.setattr(plans, "UPGRADES", steps)
    text = (
        (COMMITTED / f"schema-{PLAN_SCHEMA}.json").read_text("utf-8").replace('"npusim_version"', '"made_by"')
    )
    found = parse_plan(text, where="plan.json")
    assert (found.schema_version, found.unjoined) == (newest, ("new",))


@pytest.mark.parametrize("version", [0, PLAN_SCHEMA + 1, "1", None, 1.0, True])
def test_other_schema_versions_are_refused_with_what_is_read(version: Any) -> None:
    with pytest.raises(PlanError, match=r"has schema version .*; this npusim reads 1"):
        parse_plan(json.dumps({"schema_version": version}), where="plan.json")


def test_the_page_explains_every_field_and_no_other() -> None:
    schema = plan_schema()
    page = (ROOT / "docs" / "plan.md").read_text("utf-8")
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", page, re.M | re.S))
    described = {name: re.findall(r"^\| `(\w+)` \|", text, re.M) for name, text in sections.items()}
    kinds = {"Plan": schema, **schema["$defs"]}
    for name, fields in described.items():
        assert fields == list(kinds[name]["properties"]), name
    assert kinds.keys() == described.keys() | HARDWARE


def test_the_page_on_hardware_names_every_field_of_a_plans_npu() -> None:
    kinds = plan_schema()["$defs"]
    named = set(re.findall(r"`\[*(\w+)\]*`", (ROOT / "docs" / "hardware.md").read_text("utf-8")))
    assert {field for kind in HARDWARE for field in kinds[kind]["properties"]} <= named
