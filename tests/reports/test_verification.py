"""A verified run leaves its figures beside the plan, and its page shows them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from npusim import api, cli
from npusim.deployment import open_deployment, run_directory
from npusim.reports.page import report_html
from npusim.reports.quantization import noise_added
from npusim.run_directory import load_summary
from npusim.verification import as_json, record, simulated


@pytest.fixture
def profiled(net: Callable[..., Any], tmp_path: Path) -> tuple[Path, Path]:
    """(run directory, model) of a small U-Net with weights."""
    model = tmp_path / "unet.onnx"
    model.write_bytes(net().unet(size=8).bytes())
    found = api.profile(model, npu="toy")
    assert isinstance(found, api.Profile)
    return found.save(tmp_path / "run"), model


def test_a_run_directory_simulated_again_gives_the_same_page(profiled: tuple[Path, Path]) -> None:
    run, model = profiled
    again = simulated(open_deployment(run, model), load_summary(run))
    assert report_html(again) == (run / "report.html").read_text("utf-8")


def test_verifying_writes_every_layer_and_puts_it_on_the_page(
    profiled: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, model = profiled
    monkeypatch.setattr("sys.argv", ["npusim", "run", str(run), "--model", str(model), "--verify"])
    cli.main()
    shown = capsys.readouterr().out
    assert f"wrote {run / 'verify.json'} and {run / 'report.html'}" in shown
    found = json.loads((run / "verify.json").read_text("utf-8"))
    plan = json.loads((run / "plan.json").read_text("utf-8"))
    assert [x["name"] for x in found["layers"]] == [x["name"] for x in plan["layers"]]
    page = (run / "report.html").read_text("utf-8")
    assert '<section id="quantization"' in page
    data = json.loads(page.split('id="report-data">')[1].split("</script>")[0])
    assert data["layers"]["sqnr_db"] == [x["sqnr_db"] for x in found["layers"]]
    (output,) = found["outputs"].values()
    assert f"SQNR {output['sqnr_db']:.1f} dB" in shown
    listed = [
        line.split()[-1]
        for line in shown.split("layers that lose most")[1].splitlines()[1:]
        if " dB " in line
    ]
    heaviest = sorted(found["layers"], key=lambda x: -noise_added(x))
    assert listed == [x["name"] for x in heaviest[: len(listed)]]
    assert listed


def test_a_run_equal_to_fp32_is_null_in_json(profiled: tuple[Path, Path]) -> None:
    run, model = profiled
    result = run_directory(run, model, verify=True)
    copies = [x for x in as_json(result)["layers"] if x["sqnr_db"] is None]
    assert all(x["own_noise_db"] is None for x in copies)
    json.dumps(as_json(result), allow_nan=False)


def test_a_verified_run_is_still_ours_to_replace(profiled: tuple[Path, Path]) -> None:
    run, model = profiled
    record(run, run_directory(run, model, verify=True))
    found = api.profile(model, npu="toy")
    assert isinstance(found, api.Profile)
    found.save(run)
    assert not (run / "verify.json").exists()
