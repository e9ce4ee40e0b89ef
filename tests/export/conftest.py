"""Small planned networks as export sources, and the environments of outside readers."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from npusim import api
from npusim.calibrate import choose_scales, measure_ranges, seeded_inputs
from npusim.deployment import PLAN_FILE, SCALES_FILE, run_onnxruntime
from npusim.export.source import ExportSource, open_source
from npusim.hardware import load_npu, with_values
from npusim.scales import save_scales
from npusim.weights import open_weights

READERS = Path(sys.prefix) / "readers"
SCRIPTS = Path(__file__).parent / "readers"
Arrays = dict[str, Any]


def _execute_conftest() -> Any:
    """The executor's small networks, which live beside its tests."""
    path = Path(__file__).parents[1] / "execute" / "conftest.py"
    spec = importlib.util.spec_from_file_location("execute_networks", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


NETWORKS: Mapping[str, Callable[[Path], Path]] = _execute_conftest().NETWORKS


@dataclass(frozen=True, kw_only=True)
class Case:
    """A planned network to export, its summary, inputs for it, and onnxruntime's FP32 outputs of the original."""

    source: ExportSource
    summary: Mapping[str, Any]
    model: Path
    inputs: Arrays
    reference: Arrays


@pytest.fixture(scope="session")
def cases(tmp_path_factory: pytest.TempPathFactory, net: Any) -> Callable[..., Case]:
    """A case by network (`unet`, or one of the executor's), precision, tiles and SRAM bytes; made once."""
    made: dict[tuple[Any, ...], Case] = {}

    def case(
        name: str,
        *,
        precision: str = "w8a16",
        tiles: str = "auto",
        sram_bytes: int = 65536,
        segments: str = "all",
    ) -> Case:
        key = (name, precision, tiles, sram_bytes, segments)
        if key not in made:
            made[key] = _make(tmp_path_factory.mktemp(name), net, *key)
        return made[key]

    return case


def _make(
    folder: Path, net: Any, name: str, precision: str, tiles: str, sram_bytes: int, segments: str
) -> Case:
    if name == "unet":
        model = folder / "unet.onnx"
        model.write_bytes(net().unet().bytes())
    else:
        model = NETWORKS[name](folder / f"{name}.onnx")
    graph = api.load_graph(model)
    npu = with_values(load_npu("toy"), {"sram.sram_bytes": sram_bytes})
    found = api.profile(graph, npu=npu, precision=precision, tiles=tiles, segments=segments)
    assert isinstance(found, api.Profile), found.sentence()
    inputs = next(seeded_inputs(graph, seed=5))
    if name == "embedding":
        inputs = {"x": np.random.default_rng(7).integers(0, 13, (2, 5)).astype(np.float32)}
    source = deployed(folder / "run", found, model, inputs)
    reference = run_onnxruntime(model, inputs)
    return Case(source=source, summary=found.summary, model=model, inputs=inputs, reference=reference)


def deployed(directory: Path, found: api.Profile, model: Path, inputs: Arrays) -> ExportSource:
    """A profile as a run directory, with scales from these inputs where it needs some."""
    plan = found.plan
    directory.mkdir()
    if plan.options.precision.startswith("w"):
        ranges = measure_ranges(found.graph, open_weights(model, found.graph), [inputs])
        scales = choose_scales(found.graph, plan, ranges)
        plan = save_scales(directory / SCALES_FILE, scales, plan, method="auto", source="test")
    (directory / PLAN_FILE).write_text(plan.to_json())
    return open_source(directory, str(model))


@dataclass(frozen=True, kw_only=True)
class Timed:
    """A simulated deployment to export, and its summary."""

    source: ExportSource
    summary: Mapping[str, Any]


@pytest.fixture(scope="session", params=["pieces and attention", "row chains", "BK-SDM-Tiny"])
def timed(
    request: pytest.FixtureRequest,
    cases: Callable[..., Case],
    unet_profile: Callable[[str, str], api.Profile],
    tmp_path_factory: pytest.TempPathFactory,
) -> Timed:
    """Small networks with every kind of segment, and the full-size one as `auto` plans it."""
    if request.param == "BK-SDM-Tiny":
        found, folder = unet_profile("auto", "decoupled"), tmp_path_factory.mktemp("bk-sdm-tiny")
        (folder / PLAN_FILE).write_text(found.plan.to_json())
        made = Timed(source=open_source(folder, "bk-sdm-tiny"), summary=found.summary)
    else:
        joined = {"tiles": "4", "sram_bytes": 16384}
        tiled = joined if request.param == "row chains" else {"segments": "attention"}
        case = cases("unet", **tiled)
        made = Timed(source=case.source, summary=case.summary)
    kinds = {segment.kind for segment in made.source.plan.segments}
    assert kinds == ({"attention"} if request.param == "pieces and attention" else {"attention", "rows"})
    return made


@pytest.fixture(scope="session")
def reader() -> Callable[[str], Path]:
    """The interpreter of a reader's environment; a test that asks for one that is not built is skipped with the reason."""

    def python(name: str) -> Path:
        found = READERS / name / "bin" / "python"
        if not (READERS / name / "built").is_file():
            failed = READERS / f"{name}.failed"
            why = failed.read_text().strip().splitlines() if failed.is_file() else []
            pytest.skip(f"the environment of {name} is not there ({why[-1] if why else 'run: make readers'})")
        return found

    return python


def run_script(python: Path, script: str, *arguments: object) -> str:
    """Run one of the reader scripts; returns what it prints."""
    done = subprocess.run(
        [str(python), str(SCRIPTS / script), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def run_models(python: Path, folder: Path, level: str = "all") -> dict[str, Arrays]:
    """Outputs of every `x.onnx` in a folder, fed with `x.npz`, by onnxruntime in another environment."""
    run_script(python, "run_onnxruntime.py", folder, level)
    found = {}
    for file in sorted(folder.glob("*.out.npz")):
        with np.load(file) as arrays:
            found[file.name.removesuffix(".out.npz")] = {n: arrays[n] for n in arrays.files}
    return found


def load_json(text: str) -> Any:
    """The JSON object that a script printed last."""
    return json.loads(text.strip().splitlines()[-1])
