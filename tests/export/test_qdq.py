"""`onnx-qdq`: onnxruntime, old and current, computes what the deployment computes, layer by layer and end to end."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from npusim.errors import BadInputError, ExportError
from npusim.execute.measure import closeness
from npusim.execute.untiled import Untiled, execute_untiled
from npusim.export.registry import export

from .conftest import NETWORKS, Case, run_models
from .layerwise import layer_models, within_one_step

OLD = "onnxruntime-1.18"
#: What the issue asks: elements of a layer within one step of the executor, and noise end to end.
SHARE, DECIBELS = 0.999, 0.2


@pytest.mark.readers
@pytest.mark.parametrize("options", [{}, {"contrib": ""}], ids=["ai.onnx", "contrib"])
@pytest.mark.parametrize(
    ("precision", "decibels"),
    [
        ("w8a16", DECIBELS),
        ("w16a16", 1.5),
        ("w8a8", 1.5),
    ],  # at 80 dB FP32 shows; with 8 bits one rounding does
)
def test_both_runtimes_lose_as_much_as_the_deployment(
    cases: Callable[..., Case],
    reader: Any,
    tmp_path: Path,
    precision: str,
    decibels: float,
    options: dict[str, str],
) -> None:
    case = cases("unet", precision=precision)
    ours = _ours(case)
    export(case.source, "onnx-qdq", tmp_path / "q.onnx", options)
    np.savez(tmp_path / "q.npz", **case.inputs)
    for python in (Path(sys.executable), reader(OLD)):
        found = run_models(python, tmp_path)["q"]
        for name, reference in case.reference.items():
            lost, expected = (closeness(v[name], reference).sqnr_db for v in (found, ours))
            assert abs(lost - expected) < decibels, (python, lost, expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_kind_of_layer_loses_as_much_as_the_deployment(
    cases: Callable[..., Case], tmp_path: Path, name: str
) -> None:
    case = cases(name)
    ours = _ours(case)
    export(case.source, "onnx-qdq", tmp_path / "q.onnx")
    onnx.checker.check_model(str(tmp_path / "q.onnx"), full_check=True)
    np.savez(tmp_path / "q.npz", **case.inputs)
    found = run_models(Path(sys.executable), tmp_path)["q"]
    for output, reference in case.reference.items():
        lost, expected = (closeness(v[output], reference).sqnr_db for v in (found, ours))
        assert abs(lost - expected) < DECIBELS, (lost, expected)


@pytest.mark.readers
@pytest.mark.parametrize("precision", ["w8a16", "w8a8", "w16a16"])
def test_on_the_same_inputs_each_layer_is_within_one_step_of_the_executor(
    cases: Callable[..., Case], reader: Any, tmp_path: Path, precision: str
) -> None:
    case = cases("unet", precision=precision)
    export(case.source, "onnx-qdq", tmp_path / "q.onnx")
    (tmp_path / "layers").mkdir()
    model = onnx.load(tmp_path / "q.onnx")
    expected = {}
    for number, (name, part, feeds, stored) in enumerate(layer_models(case.source, untiled(case), model)):
        onnx.save(part, tmp_path / "layers" / f"{number}.onnx")
        np.savez(tmp_path / "layers" / f"{number}.npz", **feeds)
        expected[str(number)] = (name, stored)
    assert len(expected) == len(case.source.graph.layers)
    for python in (Path(sys.executable), reader(OLD)):
        for number, arrays in run_models(python, tmp_path / "layers").items():
            name, stored = expected[number]
            share = within_one_step(stored, arrays["integers"])
            assert share >= SHARE, (python, name, share)


def untiled(case: Case) -> Untiled:
    """The executor, before its first layer."""
    return Untiled(case.source.graph, case.source.numbers, case.inputs)


def _ours(case: Case) -> dict[str, Any]:
    return execute_untiled(case.source.graph, case.source.numbers, case.inputs)


# ---- what is written ---------------------------------------------------------------------------------------------------


def test_w8a16_is_opset_21_with_int16_activations_int8_channels_and_int32_biases(
    cases: Callable[..., Case], tmp_path: Path
) -> None:
    export(cases("unet").source, "onnx-qdq", tmp_path / "q.onnx")
    model = onnx.load(tmp_path / "q.onnx")
    assert model.ir_version == 10
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 21)]
    constants = {i.name: i for i in model.graph.initializer}
    convolutions = [n for n in model.graph.node if n.op_type == "Conv"]
    dequantized = {n.output[0]: n for n in model.graph.node if n.op_type == "DequantizeLinear"}
    for node in convolutions:
        weight, bias = (dequantized[i] for i in node.input[1:3])
        assert constants[weight.input[0]].data_type == TensorProto.INT8
        assert list(constants[weight.input[1]].dims) == [constants[weight.input[0]].dims[0]]
        assert constants[bias.input[0]].data_type == TensorProto.INT32
        assert dequantized[node.input[0]] is not None
    zeros = {
        i
        for n in model.graph.node
        if n.op_type in ("QuantizeLinear", "DequantizeLinear")
        for i in n.input[2:]
    }
    assert all(not onnx.numpy_helper.to_array(constants[z]).any() for z in zeros)


def test_contrib_is_opset_17_with_the_operators_of_com_microsoft(
    cases: Callable[..., Case], tmp_path: Path
) -> None:
    export(cases("unet").source, "onnx-qdq", tmp_path / "q.onnx", {"contrib": ""})
    model = onnx.load(tmp_path / "q.onnx")
    assert {(o.domain, o.version) for o in model.opset_import} == {("", 17), ("com.microsoft", 1)}
    assert {n.domain for n in model.graph.node if "Linear" in n.op_type} == {"com.microsoft"}


def test_names_shapes_and_types_of_inputs_and_outputs_are_the_models(
    cases: Callable[..., Case], tmp_path: Path
) -> None:
    case = cases("unet")
    export(case.source, "onnx-qdq", tmp_path / "q.onnx")
    before, after = onnx.load(case.model).graph, onnx.load(tmp_path / "q.onnx").graph
    assert list(after.input) == list(before.input)
    assert list(after.output) == list(before.output)


def test_a_bias_that_would_overflow_widens_its_weight_scale_and_the_user_is_told(
    tmp_path: Path, net: Any
) -> None:
    """Inputs of 1e-6 make an accumulator step so small that a bias of 1000 needs more than 30 bits."""
    from npusim import api
    from npusim.deployment import PLAN_FILE, SCALES_FILE
    from npusim.execute.stages import stage_keys
    from npusim.export.source import open_source
    from npusim.scales import save_scales

    builder = net()
    x = builder.input("x", 1, 4, 6, 6)
    y = builder.node(
        "Conv", [x, builder.weight(5, 4, 1, 1), builder.constant(np.full(5, 1000, np.float32))], (1, 5, 6, 6),
        kernel_shape=[1, 1],
    )  # fmt: skip
    (tmp_path / "m.onnx").write_bytes(builder.output(y).bytes())
    found = api.profile(tmp_path / "m.onnx", npu="toy")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / PLAN_FILE).write_text(found.plan.to_json())
    scales = {"x": 1e-6 / 32767, **{k: 1001 / 32767 for x in found.graph.layers for k in stage_keys(x)}}
    plan = save_scales(tmp_path / "run" / SCALES_FILE, scales, found.plan, method="auto", source="test")
    (tmp_path / "run" / PLAN_FILE).write_text(plan.to_json())
    source = open_source(tmp_path / "run", str(tmp_path / "m.onnx"))
    _, notes = export(source, "onnx-qdq", tmp_path / "q.onnx")
    assert "5 output channels of 1 weights have wider scales" in notes[0]
    bias = next(
        i for i in onnx.load(tmp_path / "q.onnx").graph.initializer if i.data_type == TensorProto.INT32
    )
    assert np.abs(onnx.numpy_helper.to_array(bias)).max() <= 2**30


# ---- bad input -----------------------------------------------------------------------------------------------------------


def test_without_scales_nothing_is_written_and_quantize_is_named(
    cases: Callable[..., Case], tmp_path: Path
) -> None:
    from npusim.deployment import PLAN_FILE
    from npusim.export.source import open_source

    case = cases("geglu")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / PLAN_FILE).write_text(case.source.plan.to_json())
    source = open_source(tmp_path / "run", str(case.model))
    with pytest.raises(BadInputError, match=r"holds no scales\.npz.*npusim quantize"):
        export(source, "onnx-qdq", tmp_path / "q.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_a_plan_in_floating_point_has_no_scales_to_write(cases: Callable[..., Case], tmp_path: Path) -> None:
    case = cases("geglu", precision="fp32")
    for target in ("onnx-qdq", "encodings"):
        with pytest.raises(BadInputError, match="computes in fp32, which has no scales"):
            export(case.source, target, tmp_path / "q.onnx")


def test_an_option_that_the_target_does_not_have_is_refused(
    cases: Callable[..., Case], tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match="--option is 'fast'; options of the target onnx-qdq are: contrib"):
        export(cases("geglu").source, "onnx-qdq", tmp_path / "q.onnx", {"fast": ""})
