"""From a run directory to numbers; every kind of bad input is refused with a sentence."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from npusim.api import load_graph, profile
from npusim.calibrate import (
    Histogram,
    measure_ranges,
    read_inputs,
    seeded_inputs,
)
from npusim.deployment import open_deployment, quantize_directory, run_directory
from npusim.errors import BadInputError, ModelError, PlanError
from npusim.execute.run import execute
from npusim.plan import PLAN_SCHEMA, load_plan
from npusim.scales import load_scales, save_scales
from npusim.scheduler.problem import Infeasible
from npusim.weights import open_weights

from .conftest import NETWORKS, Case

Cases = Callable[[str], Case]


def run_folder(folder: Path, name: str = "self_attention", precision: str = "w8a16") -> tuple[Path, Path]:
    """A run directory (only its plan) and its model."""
    model = NETWORKS[name](folder / f"{name}.onnx")
    found = profile(model, npu="toy", precision=precision)
    assert not isinstance(found, Infeasible)
    run = folder / "run"
    run.mkdir(exist_ok=True)
    (run / "plan.json").write_text(found.plan.to_json())
    return run, model


def test_quantize_then_run_verifies_against_onnxruntime(tmp_path: Path) -> None:
    run, model = run_folder(tmp_path)
    quantize_directory(run, model)
    result = run_directory(run, model, verify=True)
    (close,) = result.closeness.values()
    assert close.sqnr_db > 40
    assert close.cosine > 0.9999
    assert {loss.name for loss in result.layers} == {x.name for x in load_graph(model).layers}
    assert result.notes == ("inputs drawn from seed 0",)


def test_run_without_scales_calibrates_first_and_says_so(tmp_path: Path) -> None:
    run, model = run_folder(tmp_path)
    result = run_directory(run, model, order="random", seed=3)
    assert any("calibrated on seeded inputs" in note for note in result.notes)
    assert not (run / "scales.npz").exists()


def test_given_inputs_are_used_and_calibration_sets_may_be_stacked(tmp_path: Path) -> None:
    run, model = run_folder(tmp_path)
    x = np.random.default_rng(1).standard_normal((3, 1, 24, 20)).astype(np.float32)
    np.savez(tmp_path / "sets.npz", x=x)
    np.savez(tmp_path / "one.npz", x=x[0])
    assert len(read_inputs(tmp_path / "sets.npz", load_graph(model))) == 3
    quantize_directory(run, model, calibration=tmp_path / "sets.npz", method="percentile")
    result = run_directory(run, model, inputs=tmp_path / "one.npz", verify=True)
    assert result.notes == ()
    assert all(c.sqnr_db > 30 for c in result.closeness.values())


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "holds no array 'x'"),
        ({"x": np.zeros((1, 24, 21))}, r"has shape \[1, 24, 21\]; \[1, 24, 20\] is needed"),
        ({"x": np.full((1, 24, 20), np.nan)}, "NaN or infinite"),
        ({"x": np.full((1, 24, 20), "a")}, "numbers are needed"),
    ],
)
def test_bad_inputs_are_refused(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    run, model = run_folder(tmp_path, precision="fp32")
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(BadInputError, match=message):
        run_directory(run, model, inputs=tmp_path / "x.npz")


def test_inputs_that_are_no_archive_are_refused(tmp_path: Path) -> None:
    run, model = run_folder(tmp_path, precision="fp32")
    for broken in (b"not an archive", b"", b"PK\x03\x04 cut off"):
        (tmp_path / "x.npz").write_bytes(broken)
        with pytest.raises(BadInputError, match=r"is no readable \.npz file"):
            run_directory(run, model, inputs=tmp_path / "x.npz")


def test_a_pickle_inside_an_archive_is_never_loaded(tmp_path: Path) -> None:
    run, model = run_folder(tmp_path, precision="fp32")
    np.savez(tmp_path / "x.npz", x=np.asarray([{"a": 1}], dtype=object))
    with pytest.raises(BadInputError, match=r"is no readable \.npz file"):
        run_directory(run, model, inputs=tmp_path / "x.npz")


def test_a_run_directory_of_another_model_is_refused(tmp_path: Path) -> None:
    run, _ = run_folder(tmp_path)
    other = NETWORKS["geglu"](tmp_path / "other.onnx")
    with pytest.raises(PlanError, match="give the model that was profiled"):
        open_deployment(run, other)


def test_a_plan_of_this_model_in_other_layers_is_refused_as_such(tmp_path: Path) -> None:
    """As an npusim that read the model otherwise would have left it."""
    run, model = run_folder(tmp_path)
    plan = load_plan(run / "plan.json")
    renamed = [layer.model_copy(update={"name": f"{layer.name}/before"}) for layer in plan.layers]
    (run / "plan.json").write_text(plan.model_copy(update={"layers": tuple(renamed)}).to_json())
    with pytest.raises(PlanError, match="into other layers than this one does; profile it again"):
        open_deployment(run, model)


def test_a_plan_whose_hardware_was_edited_is_refused(tmp_path: Path) -> None:
    run, model = run_folder(tmp_path)
    text = (run / "plan.json").read_text()
    assert '"alignment_bytes": 16' in text
    (run / "plan.json").write_text(text.replace('"alignment_bytes": 16', '"alignment_bytes": 32'))
    with pytest.raises(PlanError, match="lowers to another Program"):
        open_deployment(run, model)


def test_a_newer_plan_and_a_missing_plan_are_refused(tmp_path: Path) -> None:
    run, model = run_folder(tmp_path)
    with pytest.raises(PlanError, match="cannot be read"):
        open_deployment(tmp_path / "nowhere", model)
    text = (run / "plan.json").read_text()
    (run / "plan.json").write_text(
        text.replace(f'"schema_version": {PLAN_SCHEMA}', '"schema_version": 99', 1)
    )
    with pytest.raises(PlanError, match="schema version 99"):
        open_deployment(run, model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda plan: plan["segments"][0].update(kind="banana"), "segments.0.kind"),
        (lambda plan: plan["segments"][0].update(rows_per_tile=0), "segments.0.rows_per_tile"),
        (lambda plan: plan["segments"][0].update(layers=[]), "segments.0.layers"),
        (lambda plan: plan["segments"][0].update(layers=["nowhere"]), "cannot be lowered"),
        (lambda plan: [x.update(slots=[]) for x in plan["layers"]], "cannot be lowered"),
        (lambda plan: [x.update(pieces=None) for x in plan["layers"]], "cannot be lowered"),
    ],
)
def test_a_plan_whose_decisions_contradict_one_another_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    run, model = run_folder(tmp_path)
    plan = json.loads((run / "plan.json").read_text())
    change(plan)
    (run / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(PlanError, match=message):
        run_directory(run, model)


def test_a_floating_point_plan_needs_no_scales(tmp_path: Path) -> None:
    run, model = run_folder(tmp_path, precision="fp16")
    with pytest.raises(BadInputError, match="needs no scales"):
        quantize_directory(run, model)


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
def test_scales_that_are_not_positive_and_finite_are_refused(tmp_path: Path, bad: float) -> None:
    run, model = run_folder(tmp_path)
    deployment = quantize_directory(run, model)
    assert deployment.scales is not None
    first = sorted(deployment.scales)[0]
    plan = save_scales(
        run / "scales.npz", {**deployment.scales, first: bad}, deployment.plan, method="auto", source="test"
    )
    with pytest.raises(BadInputError, match="positive finite numbers are allowed"):
        load_scales(run / "scales.npz", plan)


def test_scales_of_another_plan_are_refused(tmp_path: Path) -> None:
    run, model = run_folder(tmp_path)
    deployment = quantize_directory(run, model)
    other = deployment.plan.model_copy(update={"program_sha256": "0" * 64})
    with pytest.raises(BadInputError, match="belongs to another plan"):
        load_scales(run / "scales.npz", other)


def test_scales_and_the_plan_that_names_them_are_written_the_same_twice(tmp_path: Path) -> None:
    run, model = run_folder(tmp_path)
    quantize_directory(run, model)
    first = [(run / name).read_bytes() for name in ("scales.npz", "plan.json")]
    quantize_directory(run, model)
    assert [(run / name).read_bytes() for name in ("scales.npz", "plan.json")] == first
    assert load_plan(run / "plan.json").scales_sha256 == hashlib.sha256(first[0]).hexdigest()


def test_scales_of_the_same_program_that_the_plan_does_not_name_are_refused(tmp_path: Path) -> None:
    """Measured again with another method, or copied from another run of the same model: not what was verified."""
    run, model = run_folder(tmp_path)
    deployment = quantize_directory(run, model)
    assert deployment.scales is not None
    save_scales(run / "scales.npz", deployment.scales, deployment.plan, method="auto", source="elsewhere")
    with pytest.raises(BadInputError, match="is not the file that the plan names"):
        run_directory(run, model)


def test_missing_inputs_are_named(cases: Cases) -> None:
    case = cases("cross_attention")
    plan, program = case.plan()
    with pytest.raises(BadInputError, match="'context' is missing"):
        execute(case.graph, plan, program, case.numbers(plan), {"x": case.inputs["x"]})
    with pytest.raises(BadInputError, match="'y' is no input"):
        execute(case.graph, plan, program, case.numbers(plan), {**case.inputs, "y": case.inputs["x"]})


def test_indices_outside_the_table_are_refused(cases: Cases) -> None:
    case = cases("embedding")
    plan, program = case.plan()
    with pytest.raises(BadInputError, match="its table has 13 rows"):
        execute(case.graph, plan, program, case.numbers(plan), {"x": np.full((2, 5), 13.0)})


# ---- calibration ---------------------------------------------------------------------------------------------------


def test_the_histogram_keeps_its_counts_when_its_range_doubles() -> None:
    seen = Histogram()
    for size in (0.1, 1.0, 3.0, 100.0):
        seen.add(np.linspace(-size, size, 1000))
    assert seen.counts.sum() == 4000
    assert seen.largest == 100.0
    assert seen.top >= 100.0


def test_ranges_follow_their_definitions() -> None:
    drawn = np.append(np.random.default_rng(0).standard_normal(200_000), 40.0)
    seen = Histogram()
    seen.add(drawn)
    assert seen.percentile(99.99) == pytest.approx(np.quantile(np.abs(drawn), 0.9999), rel=0.02)
    errors = {c: _mean_squared_error(drawn, c) for c in np.linspace(2, 40, 39)}
    best = min(errors, key=lambda c: errors[c])
    assert _mean_squared_error(drawn, seen.least_squares("int8")) <= 1.1 * errors[best] + 1e-5


def _mean_squared_error(values: np.ndarray, clip: float) -> float:
    step = clip / 127
    rounded = np.clip(np.rint(values / step), -127, 127) * step
    return float(np.square(rounded - values).mean())


def test_calibration_refuses_weights_and_inputs_that_are_not_finite(tmp_path: Path, cases: Cases) -> None:
    case = cases("geglu")
    batch = next(seeded_inputs(case.graph))
    batch["x"][0, 0, 0] = np.inf
    with pytest.raises(BadInputError, match="input 'x': 1 of 180 values"):
        measure_ranges(case.graph, case.weights, [batch])
    with pytest.raises(BadInputError, match="give at least one set"):
        measure_ranges(case.graph, case.weights, [])


def test_seeded_inputs_are_reproducible_and_cover_several_timesteps(cases: Cases) -> None:
    case = cases("geglu")
    first, again = list(seeded_inputs(case.graph, seed=5)), list(seeded_inputs(case.graph, seed=5))
    assert len(first) >= 4
    assert all(np.array_equal(a["x"], b["x"]) for a, b in zip(first, again, strict=True))


def test_seeded_timesteps_are_timesteps_and_the_guidance_embedding_is_not() -> None:
    batches = list(seeded_inputs(load_graph("edgefusion")))
    assert [batch["timestep"].tolist() for batch in batches] == [[999], [759], [499], [259]]
    for batch in batches:
        assert abs(float(batch["timestep_cond"].mean())) < 0.3
        assert 0.8 < float(batch["timestep_cond"].std()) < 1.2


# ---- weights -------------------------------------------------------------------------------------------------------


def external(folder: Path, location: str, *, offset: str = "0", data: bytes | None = None) -> Path:
    """A MatMul whose weight lies outside the file."""
    weight = helper.make_tensor(
        "w", TensorProto.FLOAT, [64, 64], np.zeros(64 * 64, np.float32).tobytes(), raw=True
    )
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset)):
        entry = weight.external_data.add()
        entry.key, entry.value = key, value
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 64])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3, 64])
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "net", [x], [y], [weight])
    path = folder / "net.onnx"
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]).SerializeToString()
    )
    if data is not None:
        (folder / "net.bin").write_bytes(data)
    return path


def weights_of(path: Path) -> np.ndarray:
    return np.asarray(open_weights(path, load_graph(path))["w"])


def test_external_data_is_read_from_beside_the_model(tmp_path: Path) -> None:
    values = np.arange(64 * 64, dtype=np.float32)
    path = external(tmp_path, "net.bin", offset="64", data=b"\0" * 64 + values.tobytes())
    np.testing.assert_array_equal(weights_of(path)[0, 0].T.ravel(), values)


@pytest.mark.parametrize(
    "location",
    ["../net.bin", "/etc/passwd", "a/../../net.bin", "..\\net.bin", "", "a\0b", "C:\\x", "\\\\host\\x"],
)
def test_external_data_outside_the_models_folder_is_refused(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "net.bin").write_bytes(b"\0" * 64 * 64 * 4)
    path = external(folder, location)
    with pytest.raises(ModelError, match="only files inside the model's folder"):
        weights_of(path)


def test_external_data_behind_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"\0" * 64 * 64 * 4)
    folder = tmp_path / "model"
    folder.mkdir()
    os.symlink(tmp_path / "secret", folder / "net.bin")
    with pytest.raises(ModelError, match="behind the link"):
        weights_of(external(folder, "net.bin"))


def test_missing_and_truncated_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is not there"):
        weights_of(external(tmp_path, "net.bin"))
    with pytest.raises(ModelError, match="the file is truncated"):
        weights_of(external(tmp_path, "net.bin", data=b"\0" * 100))
    with pytest.raises(ModelError, match="negative offset"):
        weights_of(external(tmp_path, "net.bin", offset="-8", data=b"\0" * 64 * 64 * 4))


def test_ill_shaped_weights_are_refused(tmp_path: Path) -> None:
    path = NETWORKS["geglu"](tmp_path / "net.onnx")
    graph = load_graph(path)
    model = onnx.load(path)
    name = next(t.source for t in graph.of_kind("weight") if len(t.source_shape) == 2)
    for init in model.graph.initializer:
        if init.name == name:
            init.CopyFrom(numpy_helper.from_array(np.zeros((3, 5), np.float32), name))
    onnx.save(model, path)
    with pytest.raises(ModelError, match=r"has shape \[3, 5\]"):
        open_weights(path, graph)
