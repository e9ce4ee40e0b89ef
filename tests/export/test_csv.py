"""`csv`: polars reads the tables, and their sums are the run's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from npusim.export.registry import export

from .conftest import Timed, load_json, run_script


@pytest.mark.readers
def test_polars_reads_both_tables_with_the_sums_of_the_run(timed: Timed, reader: Any, tmp_path: Path) -> None:
    source, summary = timed.source, timed.summary
    files, _ = export(source, "csv", tmp_path / "t.csv")
    assert [f.name for f in files] == ["t.commands.csv", "t.layers.csv"]
    found = load_json(run_script(reader("polars"), "run_polars.py", *files))
    commands, layers = (found[str(f)] for f in files)
    assert commands["rows"] == len(source.program)
    assert layers["rows"] == len(source.graph.layers)
    assert commands["sums"]["macs"] == int(source.program.commands.macs.sum()) == layers["sums"]["macs"]
    assert commands["sums"]["dram_bytes"] == int(source.work.dram_bytes.sum()) == layers["sums"]["dram_bytes"]
    assert commands["sums"]["end_ps"] == int(source.trace.end_ps.sum())
    assert layers["sums"]["macs"] == summary["macs"]
    assert layers["sums"]["dram_bytes"] == summary["dram_read_bytes"] + summary["dram_write_bytes"]
    assert layers["sums"]["spill_bytes"] == summary["spill_bytes"]
    assert layers["sums"]["critical_ms"] == pytest.approx(summary["latency_ms"])
    assert all(commands["types"][n] == "Int64" for n in ("tile", "start_ps", "m", "dependencies"))
