"""The JSON Schema of `plan.json` that docs publishes is the one that the code checks."""

from __future__ import annotations

import json
from pathlib import Path

from npusim.plan import plan_schema

PUBLISHED = Path(__file__).parents[1] / "docs" / "plan.schema.json"


def test_the_published_plan_schema_is_current() -> None:
    expected = json.dumps(plan_schema(), indent=1) + "\n"
    assert PUBLISHED.read_text("utf-8") == expected, "run: python tools/publish_schema.py"
