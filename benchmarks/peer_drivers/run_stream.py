"""Runs inside Stream's environment: has an ONNX file allocated and keeps in facts.json what Stream's own output says.

Usage: run_stream.py WORKLOAD.json MODEL.onnx FOLDER
"""

from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import onnx
import stream
import yaml
from stream.api import evaluate_mapping

HARDWARE = (
    "fusemax"  #: of the descriptions in the package, one made for attention: an array, a vector core and DRAM
)


def main(_workload: str, model: str, out: str) -> None:
    hardware = Path(stream.__file__).parent / f"inputs/examples/hardware/{HARDWARE}.yaml"
    evaluate_mapping(str(hardware), model, out)
    listed: list[dict[str, Any]] = []
    for file in Path(out).glob("group_*/core_cost_lut.yaml"):
        listed += yaml.safe_load(file.read_text())["nodes"]
    parts = tuple(str(node["node"]) for node in listed)  # a softmax is four nodes: NAME_max, NAME_exp, ...
    nodes = onnx.load(model, load_external_data=False).graph.node
    costed = [n for n in nodes if any(part.startswith(n.name) for part in parts)]
    reports = [*Path(out).glob("group_*/**/*.yaml"), *Path(out).glob("group_*/**/*.json")]
    facts = {
        "version": metadata.version("stream-dse"),
        "hardware": HARDWARE,
        "costed": sorted({n.op_type for n in costed}),
        "free": sorted({n.op_type for n in nodes} - {n.op_type for n in costed}),
        "left": [],
        "macs": None,
        "dram_bytes": None,
        "addresses": any("address" in p.read_text() for p in reports),
        "timeline": any(Path(out).glob("group_*/allocation/traces/*_trace.json")),
    }
    (Path(out) / "facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main(*sys.argv[1:])
