"""A tiny network with names that try to break out, profiled on the toy machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import npusim.api as api
from npusim.cost import Work
from npusim.graph import Coverage, Graph, Layer, Operand, Part, Tensor
from npusim.program import Program
from npusim.reports.source import Profiled
from npusim.trace import Trace

HOSTILE = "<img src=x onerror=\"document.title='owned'\">"
BREAKOUT = "</script><script>document.title='owned'</script>"


def linear(name: str, x: str, cols: int, tensors: dict[str, Tensor], scope: str) -> Layer:
    """A linear layer, whose weight and output are added to `tensors`."""
    rows, inputs = tensors[x].shape[2:]
    tensors[f"{name}.weight"] = Tensor(name=f"{name}.weight", shape=(1, 1, cols, inputs), kind="weight")
    tensors[name] = Tensor(name=name, shape=(1, 1, rows, cols), kind="intermediate")
    operands = (
        Operand(role="x", parts=(Part(x, 0, inputs),)),
        Operand(role="weight", parts=(Part(f"{name}.weight", 0, inputs),)),
    )
    return Layer(name=name, op="linear", operands=operands, output=name, scope=scope)


def attention(group: str, tensors: dict[str, Tensor], *, heads: int, rows: int, cols: int) -> list[Layer]:
    """The three phases of an attention over `q`, `k` and `v`."""
    scores, probs, values = (f"{group}.{part}" for part in ("qk", "softmax", "pv"))
    for name, shape in (
        (scores, (1, heads, rows, rows)),
        (probs, (1, heads, rows, rows)),
        (values, (1, 1, rows, cols)),
    ):
        tensors[name] = Tensor(name=name, shape=shape, kind="intermediate")

    def phase(name: str, op: str, reads: list[tuple[str, str, int]], attributes: dict[str, object]) -> Layer:
        operands = tuple(Operand(role=role, parts=(Part(tensor, 0, size),)) for role, tensor, size in reads)
        return Layer(
            name=name, op=op, operands=operands, output=name, attributes=attributes, scope=group, group=group
        )

    return [
        phase(scores, "matmul", [("x", "q", cols), ("y", "k", cols)], {"heads": heads, "y_rows": "outputs"}),
        phase(probs, "softmax", [("x", scores, rows)], {}),
        phase(values, "matmul", [("x", probs, rows), ("y", "v", cols)], {"heads": heads, "y_rows": "inputs"}),
    ]


def tiny_graph() -> Graph:
    """Linear layers around one attention; the first and the last bear hostile names."""
    tensors = {"x": Tensor(name="x", shape=(1, 1, 256, 32), kind="input")}
    layers = [linear(HOSTILE, "x", 32, tensors, "blocks.0")]
    layers += [linear(name, HOSTILE, 32, tensors, f"blocks.0.{name}") for name in ("q", "k", "v")]
    layers += attention("blocks.0.attn", tensors, heads=2, rows=256, cols=32)
    layers.append(linear(BREAKOUT, "blocks.0.attn.pv", 64, tensors, "blocks.1"))
    last = tensors[BREAKOUT]
    tensors[BREAKOUT] = Tensor(name=last.name, shape=last.shape, kind="output")
    coverage = Coverage(nodes=len(layers), modelled_nodes=len(layers), unmodelled={})
    return Graph(name=HOSTILE, tensors=tensors, layers=tuple(layers), coverage=coverage)


def profiled(**options: object) -> api.Profile:
    """The tiny network on the toy machine."""
    found = api.profile(tiny_graph(), npu="toy", **options)  # type: ignore[arg-type]
    assert isinstance(found, api.Profile), found
    return found


@pytest.fixture(scope="session")
def tiny() -> api.Profile:
    return profiled(tiles="auto")


@pytest.fixture(scope="session")
def untiled() -> api.Profile:
    return profiled(tiles="none", policy="serial")


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pages")


@dataclass(frozen=True)
class Enlarged:
    """A profile whose figures are those of the original, with `copies` times its commands."""

    graph: Any
    plan: Any
    program: Program
    traces: dict[str, Trace]
    work: Work
    summary: dict[str, Any]


def _tiled(table: Any, copies: int, shifts: dict[str, int]) -> Any:
    columns = {}
    for column in fields(table):
        values = getattr(table, column.name)
        repeated = np.tile(values, (copies, 1)) if values.ndim > 1 else np.tile(values, copies)
        if column.name in shifts:
            repeated = repeated + np.repeat(np.arange(copies), len(values)) * shifts[column.name]
        columns[column.name] = repeated
    return type(table)(**columns)


def _commands(commands: Any, copies: int) -> Any:
    count = len(commands.opcode)
    bare = replace(commands, dep_ptr=np.zeros(0, dtype=np.int64), dep_idx=np.zeros(0, dtype=np.int64))
    tiled = _tiled(bare, copies, {"step": count})
    lengths = np.tile(np.diff(commands.dep_ptr), copies)
    indices = np.tile(commands.dep_idx, copies) + np.repeat(np.arange(copies), len(commands.dep_idx)) * count
    return replace(tiled, dep_ptr=np.concatenate([[0], np.cumsum(lengths)]), dep_idx=indices)


def _trace(trace: Trace, copies: int) -> Trace:
    shift = np.arange(copies) * trace.makespan_ps
    steps = np.tile(trace.bandwidth, (copies, 1))
    steps[:, 0] += np.repeat(shift, len(trace.bandwidth))
    moved = np.repeat(shift, len(trace.start_ps))
    return Trace(
        policy=trace.policy,
        start_ps=np.tile(trace.start_ps, copies) + moved,
        end_ps=np.tile(trace.end_ps, copies) + moved,
        stall=np.tile(trace.stall, copies),
        bandwidth=steps,
    )


def enlarge(profile: Profiled, commands: int) -> Enlarged:
    """The profile repeated until it has at least `commands` commands."""
    program = profile.program
    copies = -(-commands // len(program))
    larger = replace(
        program,
        commands=_commands(program.commands, copies),
        buffers=_tiled(program.buffers, copies, {}),
        accesses=_tiled(
            program.accesses, copies, {"command": len(program), "buffer": len(program.buffers.tensor)}
        ),
    )
    traces = {policy: _trace(trace, copies) for policy, trace in profile.traces.items()}
    summary = dict(profile.summary) | {"latency_ms": profile.summary["latency_ms"] * copies}
    return Enlarged(
        graph=profile.graph,
        plan=profile.plan,
        program=larger,
        traces=traces,
        work=Work(larger, profile.plan.npu),
        summary=summary,
    )


@pytest.fixture(scope="session")
def enlarged() -> Callable[[Profiled, int], Enlarged]:
    """Function that repeats a profile until it has as many commands as a test wants."""
    return enlarge


@pytest.fixture(scope="session")
def hostile_names() -> tuple[str, str]:
    """Layer names of the tiny network that try to break out of markup and of scripts."""
    return HOSTILE, BREAKOUT


@dataclass(frozen=True)
class Explained:
    """A profile whose summary has all optional keys, and a verification of it; figures are made up, names are hostile."""

    profile: api.Profile
    verified: dict[str, Any]


@pytest.fixture(scope="session")
def explained(tiny: api.Profile) -> Explained:
    summary = dict(tiny.summary)
    above = summary["latency_ms"] - summary["lower_bound_ms"]
    summary["gap"] = [{"cause": f"waiting {HOSTILE}", "ms": above - 0.25}, {"cause": "hand-over", "ms": 0.25}]
    why = {
        "bound_by": f"vector {HOSTILE}",
        "next_best": [
            {"tile_count": 9, "latency_ms": 1.0, "reason": BREAKOUT},
            {"tile_count": 1, "latency_ms": None, "reason": "needs 9 MB of SRAM, 6 MB are free"},
        ],
        "levers": [{"change": "SRAM x 2", "latency_ms": 0.5}],
    }
    summary["segments"] = [dict(s) | {"why": why} for s in summary["segments"]]
    summary["levers"] = [{"change": HOSTILE, "latency_ms": 0.25}]
    close = {"sqnr_db": 40.0, "cosine": 0.999, "max_error": 0.5, "relative_error": 0.01}
    layers = [
        {"name": name, "op": "linear", **close, "sqnr_db": None if i == 1 else 50.0 - i, "own_noise_db": None if i == 1 else 1.5}
        for i, name in enumerate(tiny.program.layers)
    ]  # fmt: skip
    verified = {
        "schema_version": 1,
        "precision": "w8a16",
        "notes": [BREAKOUT],
        "outputs": {HOSTILE: close},
        "layers": layers,
    }
    return Explained(profile=replace(tiny, summary=summary), verified=verified)
