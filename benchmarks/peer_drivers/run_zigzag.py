"""Runs inside ZigZag's environment: maps each layer of an ONNX file and keeps in facts.json what ZigZag's own output says.

Usage: run_zigzag.py WORKLOAD.json MODEL.onnx FOLDER
"""

from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import onnx
import yaml
import zigzag
from zigzag.api import get_hardware_performance_zigzag

INPUTS = Path(zigzag.__file__).parent / "inputs"
HARDWARE = "tpu_like"  #: of the descriptions in the package, one with DRAM and a mapping that suits products and convolutions


def keys(value: Any) -> set[str]:
    """Every key of a JSON value, however deep."""
    if isinstance(value, dict):
        return set(value).union(*(keys(v) for v in value.values()))
    return set().union(*(keys(v) for v in value)) if isinstance(value, list) else set()


def dram_bytes(layer: dict[str, Any], access_bytes: float) -> float:
    """Bytes that a layer moves at the outermost memory: its accesses, each as wide as the port's `bandwidth_min`."""
    operands = layer["outputs"]["memory"]["word_accesses"].values()
    return sum(sum(levels[-1].values()) for levels in operands) * access_bytes


def main(_workload: str, model: str, out: str) -> None:
    hardware, mapping = INPUTS / f"hardware/{HARDWARE}.yaml", INPUTS / f"mapping/{HARDWARE}.yaml"
    *_, layers = get_hardware_performance_zigzag(
        model, str(hardware), str(mapping), dump_folder=out, loma_show_progress_bar=False
    )
    described = [json.loads(p.read_text()) for p in sorted(Path(out).glob("*_complete.json"))]
    (port,) = yaml.safe_load(hardware.read_text())["memories"]["dram"]["ports"]
    layers = [found for found, _ in layers[0][1]]
    costed = {found.layer.name for found in layers}
    nodes = onnx.load(model, load_external_data=False).graph.node
    found_keys = keys(described)
    facts = {
        "version": metadata.version("zigzag-dse"),
        "hardware": HARDWARE,
        "costed": sorted({n.op_type for n in nodes if n.name in costed}),
        "free": sorted({n.op_type for n in nodes if n.name not in costed}),
        "left": [],
        "macs": sum(int(found.layer.total_mac_count) for found in layers),
        "dram_bytes": round(sum(dram_bytes(d, port["bandwidth_min"] / 8) for d in described)),
        "addresses": any("address" in k for k in found_keys),
        "timeline": any("start" in k for k in found_keys),
    }
    (Path(out) / "facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main(*sys.argv[1:])
