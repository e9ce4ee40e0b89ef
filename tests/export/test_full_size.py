"""Real networks through the targets that need weights: BK-SDM-Tiny's U-Net with seeded weights, and the trained U-Net that ships."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from npusim.api import Profile, load_graph, profile
from npusim.calibrate import seeded_inputs
from npusim.deployment import run_onnxruntime
from npusim.execute.measure import closeness
from npusim.execute.untiled import Untiled
from npusim.execute.windows import unpack
from npusim.export.registry import export
from npusim.export.source import ExportSource
from npusim.models.checkpoints import build

from .conftest import deployed, run_models, run_script
from .layerwise import layer_models, within_one_step

pytestmark = pytest.mark.slow

SHIPPED = Path(__file__).parents[2] / "training" / "shipped" / "edgefusion-toy" / "unet"
#: Name -> what `npusim models build` is told: the network, its weights.
BUILT = {"bk-sdm-tiny": ("bk-sdm-tiny", "random"), "edgefusion-toy": ("custom", str(SHIPPED))}
#: Compared stage by stage: in one of its 268 layers (99.84 % within a step) SiLU's scale is finer than that of the norm before it,
#: so that a step there is two steps here.
BY_STAGE = {"edgefusion-toy"}
SHARE, DECIBELS = 0.999, 0.2


@dataclass(frozen=True, kw_only=True)
class Unet:
    """The planned network, inputs, and onnxruntime's FP32 outputs."""

    name: str
    source: ExportSource
    model: Path
    inputs: Mapping[str, Any]
    reference: Mapping[str, Any]

    def sqnr_db(self, outputs: Mapping[str, Any]) -> float:
        """Of its one output."""
        ((name, reference),) = self.reference.items()
        return closeness(outputs[name], reference).sqnr_db


@pytest.fixture(scope="module", params=BUILT)
def unet(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Unet]:
    folder = tmp_path_factory.mktemp("unet")
    name, weights = BUILT[request.param]
    model = build(name, weights=weights, out=folder / "m.onnx")
    graph = load_graph(model)
    inputs = next(seeded_inputs(graph))
    found = profile(graph)
    assert isinstance(found, Profile)
    source = deployed(folder / "run", found, model, inputs)
    reference = run_onnxruntime(model, inputs)
    yield Unet(name=request.param, source=source, model=model, inputs=inputs, reference=reference)
    shutil.rmtree(folder)  # gigabytes, which pytest would keep


@pytest.fixture(autouse=True)
def emptied(tmp_path: Path) -> Iterator[None]:
    """Gigabytes, too."""
    yield
    shutil.rmtree(tmp_path)


def test_tiled_is_within_1e_5_and_nothing_of_torch_is_left(unet: Unet, tmp_path: Path) -> None:
    assert {s.kind for s in unet.source.plan.segments} == {"attention", "rows"}
    export(unet.source, "onnx-tiled", tmp_path / "t.onnx")
    written = (tmp_path / "t.onnx").read_bytes()
    assert b"site-packages" in unet.model.read_bytes()  # what torch leaves
    assert not any(
        word in written for word in (b"site-packages", b"stack_trace", b".py", str(Path.cwd()).encode())
    )
    for output, values in run_onnxruntime(tmp_path / "t.onnx", unet.inputs).items():
        assert closeness(values, unet.reference[output]).relative_error < 1e-5


@pytest.mark.readers
def test_quantized_is_the_deployment_layer_by_layer_and_end_to_end(
    unet: Unet, reader: Any, tmp_path: Path
) -> None:
    export(unet.source, "onnx-qdq", tmp_path / "q.onnx")
    assert b"site-packages" not in (tmp_path / "q.onnx").read_bytes()
    np.savez(tmp_path / "q.npz", **unet.inputs)
    expected, ours = _write_parts(unet, tmp_path)
    assert len(expected) >= len(unet.source.graph.layers)
    for python in (Path(sys.executable), reader("onnxruntime-1.18")):
        found = run_models(python, tmp_path)
        lost = unet.sqnr_db(found.pop("q"))
        assert abs(lost - ours) < DECIBELS, (python, lost, ours)
        assert found.keys() == expected.keys()
        for number, (name, stored) in expected.items():
            share = within_one_step(stored, found[number]["integers"])
            assert share >= SHARE, (python, name, share)


def _write_parts(unet: Unet, folder: Path) -> tuple[dict[str, tuple[str, Any]], float]:
    """Layers or stages as models of their own, beside the whole whose constants they read: their names and the executor's integers;
    and the executor's SQNR end to end."""
    model = onnx.load(folder / "q.onnx", load_external_data=False)
    seen: dict[str, list[Any]] | None = {} if unet.name in BY_STAGE else None
    observe = partial(_keep, seen) if seen is not None else None
    run = Untiled(unet.source.graph, unet.source.numbers, unet.inputs, observe=observe)
    expected = {}
    for number, (name, part, feeds, stored) in enumerate(layer_models(unet.source, run, model, seen)):
        onnx.save(part, folder / f"{number}.onnx")
        np.savez(folder / f"{number}.npz", **feeds)
        expected[str(number)] = (name, stored)
    return expected, unet.sqnr_db(unpack(unet.source.graph, run.decoded))


def _keep(seen: dict[str, list[Any]], key: str, values: Any) -> None:
    seen.setdefault(key, []).append(values)


@pytest.mark.readers
@pytest.mark.parametrize(
    ("unet", "version"),
    [("bk-sdm-tiny", "2.0.0"), ("edgefusion-toy", "2.0.0"), ("edgefusion-toy", "1.0.0")],
    indirect=["unet"],
)
def test_aimet_loses_as_much_as_onnx_qdq(unet: Unet, reader: Any, tmp_path: Path, version: str) -> None:
    export(unet.source, "onnx-qdq", tmp_path / "q.onnx")
    export(unet.source, "encodings", tmp_path / "e.encodings", {"version": version})
    np.savez(tmp_path / "in.npz", **unet.inputs)
    places = (tmp_path / "e.encodings", tmp_path / "in.npz", tmp_path / "out.npz")
    run_script(reader("aimet"), "run_aimet.py", unet.model, *places)
    with np.load(tmp_path / "out.npz") as outputs:
        lost = unet.sqnr_db(outputs)
    quantized = unet.sqnr_db(run_onnxruntime(tmp_path / "q.onnx", unet.inputs))
    assert abs(lost - quantized) < DECIBELS, (lost, quantized)
