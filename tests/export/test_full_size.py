"""BK-SDM-Tiny's U-Net at full size, with seeded weights, through both ONNX targets."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from npusim.api import Profile, load_graph, profile
from npusim.calibrate import choose_scales, measure_ranges, seeded_inputs
from npusim.deployment import PLAN_FILE, SCALES_FILE, run_onnxruntime
from npusim.execute.measure import closeness
from npusim.execute.untiled import Untiled
from npusim.execute.windows import unpack
from npusim.export.registry import export
from npusim.export.source import ExportSource, open_source
from npusim.models.checkpoints import build
from npusim.scales import save_scales
from npusim.weights import open_weights

from .conftest import run_models
from .layerwise import layer_models, within_one_step

pytestmark = pytest.mark.slow


@dataclass(frozen=True, kw_only=True)
class Unet:
    """The planned network, inputs, and onnxruntime's FP32 outputs."""

    source: ExportSource
    model: Path
    inputs: Mapping[str, Any]
    reference: Mapping[str, Any]


@pytest.fixture(scope="module")
def unet(tmp_path_factory: pytest.TempPathFactory) -> Unet:
    folder = tmp_path_factory.mktemp("unet")
    model = build("bk-sdm-tiny", out=folder / "m.onnx")
    graph = load_graph(model)
    inputs = next(seeded_inputs(graph))
    found = profile(graph)
    assert isinstance(found, Profile)
    scales = choose_scales(graph, found.plan, measure_ranges(graph, open_weights(model, graph), [inputs]))
    (folder / "run").mkdir()
    plan = save_scales(folder / "run" / SCALES_FILE, scales, found.plan, method="auto", source="test")
    (folder / "run" / PLAN_FILE).write_text(plan.to_json())
    source = open_source(folder / "run", str(model))
    return Unet(source=source, model=model, inputs=inputs, reference=run_onnxruntime(model, inputs))


def test_tiled_is_within_1e_5_and_nothing_of_torch_is_left(unet: Unet, tmp_path: Path) -> None:
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
    model = onnx.load(tmp_path / "q.onnx", load_external_data=False)
    run = Untiled(unet.source.graph, unet.source.numbers, unet.inputs)
    for name, part, feeds, stored in layer_models(unet.source, run, model):
        share = within_one_step(stored, _run_part(tmp_path / "layer.onnx", part, feeds))
        assert share >= 0.999, (name, share)
    ours = unpack(unet.source.graph, run.decoded)
    np.savez(tmp_path / "q.npz", **unet.inputs)
    for python in (Path(sys.executable), reader("onnxruntime-1.18")):
        found = run_models(python, tmp_path)["q"]
        for output, reference in unet.reference.items():
            lost, expected = (closeness(v[output], reference).sqnr_db for v in (found, ours))
            assert abs(lost - expected) < 0.2, (python, lost, expected)


def _run_part(path: Path, part: Any, feeds: Mapping[str, Any]) -> Any:
    """The integers of one layer; its constants lie in the file beside the whole model."""
    onnx.save(part, path)
    try:
        return onnxruntime.InferenceSession(str(path)).run(None, dict(feeds))[0]
    finally:
        path.unlink()
