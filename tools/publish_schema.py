"""Write docs/plan.schema.json: `python tools/publish_schema.py`."""

from __future__ import annotations

import json
from pathlib import Path

from npusim.plan import plan_schema

if __name__ == "__main__":
    target = Path(__file__).parents[1] / "docs" / "plan.schema.json"
    target.write_text(json.dumps(plan_schema(), indent=1) + "\n", "utf-8")
    print(f"wrote {target}")
