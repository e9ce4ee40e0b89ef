"""Runs inside Vela's environment: compiles a workload and keeps in facts.json what the compiler's own output says.

Usage: run_vela.py WORKLOAD.json MODEL.onnx FOLDER (Vela does not read ONNX: the TensorFlow Lite file is written here).
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import tflite_file

HARDWARE = ("ethos-u85-1024", "Ethos_U85_SYS_DRAM_High", "Dedicated_Sram_512KB")


def rows(folder: Path, pattern: str) -> list[dict[str, str]]:
    """The rows of the one CSV file that Vela wrote under a name."""
    (found,) = folder.glob(pattern)
    with found.open(newline="") as file:
        return list(csv.DictReader(file))


def placed(layers: list[dict[str, str]], *, npu: bool) -> list[str]:
    """Operators of the file that run on the NPU, or that are left to the CPU."""
    return sorted({r["Original Operator"] for r in layers if (r["Target"] == "NPU") is npu})


def main(workload_file: str, _model: str, out: str) -> None:
    folder = Path(out)
    workload = json.loads(Path(workload_file).read_text())
    source = folder / f"{workload['name']}.tflite"
    source.write_bytes(tflite_file.write(workload))
    accelerator, system, memory = HARDWARE
    asked = [
        "--accelerator-config",
        accelerator,
        "--config",
        "Arm/vela.ini",
        "--system-config",
        system,
        "--memory-mode",
        memory,
    ]
    command = [str(Path(sys.executable).with_name("vela")), str(source), "--output-dir", out, *asked]
    ran = subprocess.run(
        [*command, "--verbose-allocation", "--verbose-performance"], capture_output=True, text=True
    )
    if ran.returncode or not any(folder.glob("*_summary_*.csv")):
        sys.exit(ran.stderr or ran.stdout or f"vela ended with status {ran.returncode}")
    (summary,) = rows(folder, "*_summary_*.csv")
    layers = rows(folder, "*_per-layer.csv")
    facts = {
        "version": metadata.version("ethos-u-vela"),
        "hardware": f"{accelerator}, {memory}",
        "costed": placed(layers, npu=True),
        "free": [],
        "left": placed(layers, npu=False),
        "macs": int(summary["nn_macs"]),
        "dram_bytes": int(summary["dram_total_bytes"]),
        "addresses": "Start Addr" in ran.stdout,
        "timeline": "Start Cycle" in ran.stdout,
    }
    (folder / "facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main(*sys.argv[1:])
