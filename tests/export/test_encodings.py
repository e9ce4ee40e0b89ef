"""`encodings`: AIMET loads them by the names of the FP32 model and loses as much as onnx-qdq."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from npusim.deployment import run_onnxruntime
from npusim.errors import BadInputError
from npusim.execute.measure import closeness
from npusim.export.encodings import stage_values
from npusim.export.registry import export

from .conftest import Case, run_script

DECIBELS = 0.2
VERSIONS = ("2.0.0", "1.0.0")


@pytest.mark.readers
@pytest.mark.parametrize("version", VERSIONS)
def test_aimet_loads_them_and_loses_as_much_as_onnx_qdq(
    cases: Callable[..., Case], reader: Any, tmp_path: Path, version: str
) -> None:
    case = cases("unet")
    export(case.source, "onnx-qdq", tmp_path / "q.onnx")
    export(case.source, "encodings", tmp_path / "e.encodings", {"version": version})
    np.savez(tmp_path / "in.npz", **case.inputs)
    run_script(
        reader("aimet"),
        "run_aimet.py",
        case.model,
        tmp_path / "e.encodings",
        tmp_path / "in.npz",
        tmp_path / "out.npz",
    )
    quantized = run_onnxruntime(tmp_path / "q.onnx", case.inputs)
    listed = json.loads((tmp_path / "e.encodings").read_text())
    count = len(listed.get("encodings", [])) or sum(
        len(v) for k, v in listed.items() if k.endswith("_encodings")
    )
    with np.load(tmp_path / "out.npz") as found:
        assert found["enabled"] == count
        for name, reference in case.reference.items():
            lost, expected = (closeness(v[name], reference).sqnr_db for v in (found, quantized))
            assert abs(lost - expected) < DECIBELS, (lost, expected)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_name_is_one_of_the_fp32_model_and_nothing_is_lost(
    cases: Callable[..., Case], tmp_path: Path, version: str
) -> None:
    case = cases("unet")
    _, notes = export(case.source, "encodings", tmp_path / "e.encodings", {"version": version})
    graph = onnx.load(case.model).graph
    known = {v for n in graph.node for v in (*n.input, *n.output)}
    content = json.loads((tmp_path / "e.encodings").read_text())
    listed = content.get("encodings") or [*content["activation_encodings"], *content["param_encodings"]]
    names = [e["name"] for e in listed]
    assert content["version"] == version
    assert set(names) <= known
    assert len(set(names)) == len(names)
    assert notes == ()


def test_scales_of_weights_lie_along_the_dimension_of_output_channels(
    cases: Callable[..., Case], tmp_path: Path
) -> None:
    case = cases("unet")
    export(case.source, "encodings", tmp_path / "e.encodings")
    constants = {i.name: onnx.numpy_helper.to_array(i) for i in onnx.load(case.model).graph.initializer}
    listed = json.loads((tmp_path / "e.encodings").read_text())["encodings"]
    channels = [e for e in listed if isinstance(e["y_scale"], list)]
    assert {e["axis"] for e in channels} == {0, 1}  # convolutions, matrices of MatMul
    for e in channels:
        values = np.abs(constants[e["name"]])
        largest = values.max(axis=tuple(a for a in range(values.ndim) if a != e["axis"]))
        np.testing.assert_allclose(e["y_scale"], largest / 127, rtol=1e-6)


def test_stages_inside_a_layer_are_the_values_that_the_model_computes_there(
    cases: Callable[..., Case],
) -> None:
    """The executor's FP32 stages against the model's own values, made outputs and run by onnxruntime."""
    import onnxruntime

    from npusim.execute.formats import Numbers
    from npusim.execute.stages import float_formats
    from npusim.execute.untiled import execute_untiled

    case = cases("unet")
    graph = case.source.graph
    named = stage_values(graph)
    seen: dict[str, Any] = {}
    numbers = Numbers(float_formats(graph), case.source.weights)
    execute_untiled(graph, numbers, case.inputs, observe=lambda key, v: seen.setdefault(key, []).append(v))
    model = onnx.load(case.model)
    wanted = {k: v for k, v in named.items() if v and v not in case.inputs}
    known = {o.name for o in model.graph.output}
    model.graph.output.extend(
        onnx.ValueInfoProto(name=v) for v in dict.fromkeys(wanted.values()) if v not in known
    )
    session = onnxruntime.InferenceSession(model.SerializeToString())
    values = dict(zip([o.name for o in session.get_outputs()], session.run(None, case.inputs), strict=True))
    for key, name in wanted.items():
        ours = np.concatenate([v.ravel() for v in seen[key]])
        np.testing.assert_allclose(
            np.sort(ours), np.sort(values[name].ravel()), rtol=1e-3, atol=1e-4, err_msg=key
        )


def test_an_unknown_schema_version_is_refused(cases: Callable[..., Case], tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"--option version is '3'; allowed are 2\.0\.0, 1\.0\.0"):
        export(cases("unet").source, "encodings", tmp_path / "e.encodings", {"version": "3"})
    assert not list(tmp_path.iterdir())
