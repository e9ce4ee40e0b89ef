"""ONNX's own node tests pass by the whole route, and those that do not are listed with their reasons."""

from __future__ import annotations

import pytest

from . import conformance


@pytest.mark.slow
def test_at_least_450_onnx_node_tests_pass_and_every_failure_is_listed() -> None:
    outcomes = conformance.all_outcomes()
    failed = {o.name for o in outcomes if o.reason}
    listed = {
        line.split(":")[0] for line in conformance.REPORT.read_text().splitlines() if line.startswith("test_")
    }
    assert len(outcomes) - len(failed) >= 450
    assert failed <= listed, sorted(failed - listed)
