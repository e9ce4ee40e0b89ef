"""Attention in blocks of keys (online softmax): what its commands compute, in every precision and order, and what notices a wrong one."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest

from npusim.api import load_graph
from npusim.calibrate import choose_scales, measure_ranges
from npusim.deployment import run_onnxruntime
from npusim.execute.formats import Numbers, numbers_for
from npusim.execute.measure import closeness
from npusim.execute.order import Order
from npusim.execute.run import execute
from npusim.execute.untiled import execute_untiled
from npusim.execute.verify import verify_program
from npusim.export.onnx_graph import GraphWriter
from npusim.export.onnx_signature import Signature
from npusim.export.onnx_tiled import OPSET, write_tiled
from npusim.graph import Graph
from npusim.hardware import load_npu, with_values
from npusim.plan import Plan
from npusim.program import Program
from npusim.scheduler.kinds import KINDS
from npusim.scheduler.planner import Planned, make_problem, plan_graph
from npusim.scheduler.request import Request
from npusim.scheduler.tiles import Tiling, find_segments
from npusim.weights import Weights, open_weights

from .conftest import Net
from .test_mutants import MUTATIONS, caught, proof

SEEDS = range(24)
#: Least decibels that integers keep of FP32, and that FP16 does.
FLOOR = {"w8a16": 55.0, "w16a16": 55.0, "w8a8": 18.0, "fp16": 45.0}


class Attention(NamedTuple):
    """A drawn attention with its weights, inputs and onnxruntime's outputs."""

    graph: Graph
    weights: Weights
    inputs: dict[str, Any]
    reference: dict[str, Any]
    tiling: Tiling
    policy: Any

    def planned(self, precision: str, tiling: Tiling | None = None) -> Planned:
        """The plan in which the attention has this tiling (default: the drawn one)."""
        npu = with_values(load_npu("toy"), {"sram.sram_bytes": 2**18})
        problem = make_problem(self.graph, npu, precision, self.policy)
        (segment,) = find_segments(self.graph, "attention")
        request = Request(precision=precision, policy=self.policy, segments="attention")
        chosen = tiling or self.tiling

        def refine(problem: Any, segment: Any, resident: Any, budget: int, option: Any) -> Any:
            return KINDS["attention"].predict(problem, segment, chosen, resident)

        found = plan_graph(problem, request, refine)
        assert isinstance(found, Planned)
        assert found.plan.segments[0].name == segment.name
        return found

    def numbers(self, plan: Plan) -> Numbers:
        """Formats by calibration on the inputs."""
        scales = None
        if plan.options.precision.startswith("w"):
            scales = choose_scales(self.graph, plan, measure_ranges(self.graph, self.weights, [self.inputs]))
        return numbers_for(self.graph, plan, self.weights, scales)


def drawn(seed: int, path: Path) -> Attention:
    """Heads in columns or on an axis of their own, a mask per key, per query or none, a factor, ragged blocks, a sum at the end."""
    random = np.random.default_rng(seed)
    batch, heads, width = (int(random.integers(1, n)) for n in (3, 4, 9))
    queries, keys = (int(random.integers(2, 30)) for _ in range(2))
    net = Net(seed)
    lengths = {"q": queries, "k": keys, "v": keys}
    if random.random() < 0.5:
        parts = [net.input(n, batch, heads, length, width) for n, length in lengths.items()]
    else:
        parts = []
        for name, length in lengths.items():
            split = np.asarray([batch, length, heads, width])
            flat = net("Reshape", net.input(name, batch, length, heads * width), net.constant(split))
            parts.append(net("Transpose", flat, perm=[0, 2, 1, 3]))
    scores = net("MatMul", parts[0], net("Transpose", parts[1], perm=[0, 1, 3, 2]))
    scores = net("Mul", scores, net.constant(np.float32(random.choice([0.4, 1.0, 3.0]))))
    mask = (None, (1, 1, 1, keys), (1, 1, queries, keys))[seed % 3]
    if mask is not None:
        scores = net("Add", scores, net.constant(random.choice([0.0, -2.0], mask).astype(np.float32)))
    out = net("MatMul", net("Softmax", scores, axis=-1), parts[2])
    out = net("Transpose", out, perm=[0, 2, 1, 3]) if random.random() < 0.5 else out
    if seed % 4 == 1:
        out = net("Add", out, net.constant(random.standard_normal(width).astype(np.float32)))
    model = net.save(path / f"{seed}.onnx", out)
    graph = load_graph(model)
    inputs = {w.name: random.standard_normal(w.shape).astype(np.float32) for w in graph.inputs}
    tiling = Tiling(
        int(random.integers(1, heads + 1)), int(random.integers(1, queries + 1)), int(random.integers(1, 3)),
        in_place=bool(random.random() < 0.7), keys=int(random.integers(1, keys)),
    )  # fmt: skip
    policy = str(random.choice(["serial", "decoupled"]))
    return Attention(
        graph, open_weights(model, graph), inputs, run_onnxruntime(model, inputs), tiling, policy
    )


@pytest.fixture(scope="module")
def attentions(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Attention]:
    folder = tmp_path_factory.mktemp("attentions")
    known: dict[int, Attention] = {}
    return lambda seed: known.get(seed) or known.setdefault(seed, drawn(seed, folder))


Attentions = Callable[[int], Attention]


@pytest.mark.parametrize("seed", SEEDS)
def test_fp32_agrees_with_onnxruntime_in_any_order(attentions: Attentions, seed: int) -> None:
    case = attentions(seed)
    found = case.planned("fp32")
    assert found.plan.segments[0].tiles["keys"] > 1
    assert not verify_program(found.program, found.plan.npu.sram.sram_bytes)
    numbers = case.numbers(found.plan)
    orders: list[tuple[Order, int]] = [("serial", 0), ("parallel", 0)] + [("random", n) for n in range(6)]
    runs = [
        execute(case.graph, found.plan, found.program, numbers, case.inputs, order=order, seed=number)
        for order, number in orders
    ]
    for output, values in runs[0].items():
        assert closeness(values, case.reference[output]).relative_error < 1e-5
        for other in runs[1:]:
            np.testing.assert_array_equal(values, other[output])


@pytest.mark.parametrize("seed", SEEDS)
def test_so_does_a_tile_with_all_keys(attentions: Attentions, seed: int) -> None:
    case = attentions(seed)
    found = case.planned("fp32", replace(case.tiling, keys=0))
    assert "keys" not in found.plan.segments[0].tiles
    outputs = execute(case.graph, found.plan, found.program, case.numbers(found.plan), case.inputs)
    for output, values in outputs.items():
        assert closeness(values, case.reference[output]).relative_error < 1e-5


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("precision", sorted(FLOOR))
def test_other_precisions_lose_no_more_than_all_keys_at_once(
    attentions: Attentions, precision: str, seed: int
) -> None:
    case = attentions(seed)
    found = case.planned(precision)
    numbers = case.numbers(found.plan)
    blocks = execute(case.graph, found.plan, found.program, numbers, case.inputs)
    whole = execute_untiled(case.graph, numbers, case.inputs)
    for output, values in blocks.items():
        mine, theirs = (closeness(v, case.reference[output]).sqnr_db for v in (values, whole[output]))
        assert mine > min(FLOOR[precision], theirs - 3)


def exported_to(path: Path, case: Attention, found: Planned) -> Path:
    """The file of the Program as an ONNX graph."""
    with GraphWriter(opset=OPSET) as writer:
        write_tiled(case.graph, found.program, case.weights, Signature({}), writer)
        writer.save(path, "tiled", {})
    return path


@pytest.mark.parametrize("seed", SEEDS)
def test_the_exported_graph_computes_the_same(attentions: Attentions, tmp_path: Path, seed: int) -> None:
    case = attentions(seed)
    found = case.planned("fp32")
    exported = run_onnxruntime(exported_to(tmp_path / "tiled.onnx", case, found), case.inputs)
    for output, values in case.reference.items():
        assert closeness(exported[output], values).relative_error < 1e-5
    tiles = {
        int(m[1])
        for n in onnx.load(tmp_path / "tiled.onnx").graph.node
        if (m := re.search(r"#tile(\d+)/", n.name))
    }
    assert tiles == set(range(found.plan.segments[0].tile_count * case.graph.inputs[0].shape[0]))


def masked(path: Path, *, guarded: bool) -> tuple[Path, Tiling]:
    """One head, 5 queries, 11 keys: minus infinity for whole blocks of some queries, and for all keys of the third."""
    net = Net(3)
    q, k, v = (net.input(n, 1, 1, length, 4) for n, length in (("q", 5), ("k", 11), ("v", 11)))
    mask = np.zeros((1, 1, 5, 11), np.float32)
    mask[..., 1, :6], mask[..., 2, :], mask[..., 3, 4:] = -np.inf, -np.inf, -np.inf
    scores = net("Add", net("MatMul", q, net("Transpose", k, perm=[0, 1, 3, 2])), net.constant(mask))
    shares = net("Softmax", scores, axis=-1)
    if guarded:
        shares = net("Where", net("IsNaN", shares), net.constant(np.float32(0)), shares)
    return net.save(path / "masked.onnx", net("MatMul", shares, v)), Tiling(1, 3, 2, in_place=True, keys=3)


@pytest.mark.parametrize("guarded", [False, True])
def test_blocks_and_rows_without_any_key(tmp_path: Path, guarded: bool) -> None:
    """Blocks in which every key of a query is masked add nothing; a query with no key at all has NaN, or zeros if guarded."""
    model, tiling = masked(tmp_path, guarded=guarded)
    graph = load_graph(model)
    random = np.random.default_rng(1)
    inputs = {w.name: random.standard_normal(w.shape).astype(np.float32) for w in graph.inputs}
    reference = run_onnxruntime(model, inputs)
    case = Attention(graph, open_weights(model, graph), inputs, reference, tiling, "decoupled")
    found = case.planned("fp32")
    outputs = execute(graph, found.plan, found.program, case.numbers(found.plan), inputs)
    exported = run_onnxruntime(exported_to(tmp_path / "tiled.onnx", case, found), inputs)
    for output, values in reference.items():
        assert np.isnan(values[..., 2, :]).all() != guarded
        assert np.isfinite(np.delete(values, 2, axis=2)).all()
        for mine in (outputs[output], exported[output]):
            np.testing.assert_allclose(mine, values, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seed", range(8))
def test_every_mutant_is_caught_or_proven_equivalent(attentions: Attentions, seed: int) -> None:
    case = attentions(seed)
    found = case.planned("fp32")
    numbers = case.numbers(found.plan)
    expected = execute(case.graph, found.plan, found.program, numbers, case.inputs)
    drawn_from = random.Random(seed)
    verdicts: Counter[str] = Counter()
    for number in range(5 * len(MUTATIONS)):
        mutant = MUTATIONS[number % len(MUTATIONS)](found.program, drawn_from)
        verdict = caught(case, found.plan, mutant, numbers, expected)  # type: ignore[arg-type]
        verdict = verdict or proof(found.program, mutant, found.plan.npu.sram.sram_bytes)
        assert verdict, f"mutant {number} of {seed} survives"
        verdicts[verdict] += 1
    assert verdicts["verifier"] > 5


def without(program: Program, step: str, drawn_from: random.Random) -> Program:
    """One command of online softmax computes what another does: a factor that is left out, a sum that is doubled."""
    commands = program.commands
    number = next(i for i, a in enumerate(program.attributes) if a.get("online") == step)
    chosen = drawn_from.choice(np.flatnonzero(commands.attributes == number).tolist())
    attributes = commands.attributes.copy()
    attributes[chosen] = next(i for i, a in enumerate(program.attributes) if a.get("online") != step)
    return replace(program, commands=replace(commands, attributes=attributes))


@pytest.mark.parametrize("step", ["softmax", "scale", "add", "divide"])
def test_a_command_that_computes_something_else_is_noticed(attentions: Attentions, step: str) -> None:
    case = attentions(0)
    found = case.planned("fp32")
    numbers = case.numbers(found.plan)
    expected = execute(case.graph, found.plan, found.program, numbers, case.inputs)
    mutant = without(found.program, step, random.Random(1))
    assert caught(case, found.plan, mutant, numbers, expected) in ("output", "executor")  # type: ignore[arg-type]
