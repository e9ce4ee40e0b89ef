"""Laws of every Program: dependencies, addresses, accesses, multiply-accumulates and bytes, checked by replaying it.

The checker here shares no code with the builder that finds dependencies: it knows only byte addresses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest

from npusim import api, gap
from npusim.graph import Graph, Layer
from npusim.hardware import Npu, load_npu, with_values
from npusim.lower import lower
from npusim.lower.fragments import Fragments
from npusim.ops import macs_of
from npusim.program import DRAM, PRODUCT, READ, SRAM, Program
from npusim.scheduler.bounds import lower_bounds
from npusim.scheduler.planner import make_problem
from npusim.scheduler.problem import Policy

Net = Any  # the builder of tests/conftest.py
Ints = npt.NDArray[np.int64]

POLICIES: tuple[Policy, ...] = ("serial", "decoupled")

# ---- small networks -------------------------------------------------------------------------------------------------


def conv_chain(net: Net) -> Net:
    x = net.silu(net.conv(net.input("x", 1, 8, 16, 12), 16))
    return net.output(net.conv(net.conv(x, 24, stride=2), 8, 5))


def residual(net: Net) -> Net:
    x = net.conv(net.input("x", 1, 4, 12, 12), 16)
    return net.output(net.resnet(net.resnet(x, 16, 4), 24, 4))


def grouped_convolutions(net: Net) -> Net:
    x = net.conv(net.input("x", 2, 8, 9, 9), 16, groups=4)
    return net.output(net.conv(net.conv(x, 16, groups=16), 8, 1))


def concat_skip(net: Net) -> Net:
    a = net.conv(net.input("x", 1, 4, 12, 12), 16)
    b = net.conv(net.resize(net.conv(a, 24, stride=2)), 16)
    return net.output(net.resnet(net.concat(b, a), 16, 4))


def transformer_4d(net: Net) -> Net:
    x, context = net.input("x", 1, 40, 24), net.input("context", 1, 7, 20)
    return net.output(net.transformer(net.linear(x, 32), 4, context=context))


def transformer_3d_batch_2(net: Net) -> Net:
    x, context = net.input("x", 2, 33, 32), net.input("context", 2, 7, 20)
    return net.output(net.transformer(x, 4, context=context, spelled="3d"))


def gated_with_residual(net: Net) -> Net:
    x = net.linear(net.input("x", 1, 24, 32), 32)
    return net.output(net.linear(net.add(net.geglu(x, 32), x), 16))


def odd_ones(net: Net) -> Net:
    """Copies, rearrangements and an operator that nobody models."""
    x = net.linear(net.input("x", 1, 24, 32), 32)
    turned = net.transpose(x, 0, 2, 1)
    moved = net.linear(turned, 16)
    kept = net.slice(moved, 1, 5, 21)
    y = net.node("Mish", [kept], net.shapes[kept])
    return net.output(net.linear(net.concat(y, kept, axis=1), 8))


def unet_batch_2(net: Net) -> Net:
    found: Net = net.unet(batch=2)
    return found


def unet_3d(net: Net) -> Net:
    found: Net = net.unet(spelled="3d", size=10)
    return found


def equal_blocks(net: Net) -> Net:
    x = net.conv(net.input("x", 1, 4, 12, 12), 16)
    for _ in range(4):
        x = net.resnet(x, 16, 4)
    y = net.linear(net.input("y", 1, 36, 24), 32)
    for _ in range(3):
        y = net.transformer(y, 4)
    return net.output(x, y)


def long_attention(net: Net) -> Net:
    """Two attentions whose K and V exceed 16 KB: their keys are cut, the last block is smaller."""
    x = net.linear(net.input("x", 1, 150, 24), 32)
    for _ in range(2):
        x = net.add(net.attention(x, 1), x)
    return net.output(x)


NETS: tuple[Callable[[Net], Net], ...] = (
    conv_chain, residual, grouped_convolutions, concat_skip, transformer_4d, transformer_3d_batch_2,
    gated_with_residual, odd_ones, unet_batch_2, unet_3d, equal_blocks, long_attention,
)  # fmt: skip
ENOUGH = 2**22


class Case(NamedTuple):
    """A small network, the rule of its tiles, the planned policy and the SRAM's size."""

    net: str
    tiles: str
    policy: Policy
    sram_bytes: int


def _cases() -> Iterator[Any]:
    """Every combination; per network, four that differ in everything are fast."""
    fast = {
        ("none", "decoupled", 65_536),
        ("auto", "decoupled", 16_384),
        ("5", "serial", 65_536),
        ("sram", "decoupled", 16_384),
    }
    for number, (maker, *rest) in enumerate(
        product(NETS, ("none", "sram", "auto", "5"), POLICIES, (16_384, 65_536, ENOUGH))
    ):
        case = Case(maker.__name__, *rest)  # type: ignore[arg-type]
        marks = () if tuple(rest) in fast else (pytest.mark.slow,)
        yield pytest.param(case, id="-".join(map(str, (f"{number:03}", *case))), marks=marks)


def machine(sram_bytes: int, **changes: float) -> Npu:
    """The toy with another SRAM."""
    return with_values(load_npu("toy"), {"sram.sram_bytes": sram_bytes, **changes})


@pytest.fixture(scope="module")
def graph_of(net: Callable[..., Net]) -> Callable[[str], Graph]:
    """Layers of a small network by name."""
    makers = {n.__name__: n for n in NETS}
    return cache(lambda name: makers[name](net()).graph())


@pytest.fixture(scope="module", params=_cases())
def found(request: pytest.FixtureRequest, graph_of: Callable[[str], Graph]) -> api.Profile:
    """The profile of a case; all tests of one case run together."""
    case: Case = request.param
    made = api.profile(graph_of(case.net), tiles=case.tiles, policy=case.policy, npu=machine(case.sram_bytes))
    if not isinstance(made, api.Profile):
        pytest.skip("a requested count of tiles that does not fit")
    return made


# ---- where the elements of a box lie ----------------------------------------------------------------------------------


def element_starts(program: Program, buffer: int, offset: Ints, shape: Ints) -> Ints:
    """Byte address of each element of a box, from the definition of the layouts."""
    b = program.buffers
    tensor = int(b.tensor[buffer])
    size = int(program.tensors.element_bytes[tensor])
    block, padded = (int(v) for v in program.tensors.layout[tensor])
    held = b.shape[buffer]
    n, h, r, c = np.meshgrid(
        *(np.arange(o, o + s) for o, s in zip(offset - b.offset[buffer], shape, strict=True)), indexing="ij"
    )
    if block:
        blocks = -(-int(held[3]) // block)
        linear = (((n * held[1] + h) * blocks + c // block) * held[2] + r) * padded + c % block
    else:
        linear = ((n * held[1] + h) * held[2] + r) * held[3] + c
    return np.asarray(int(b.address[buffer]) + linear.ravel() * size, dtype=np.int64)


def touched(program: Program, space: int) -> Iterator[tuple[int, bool, int, Ints]]:
    """(command, whether it reads, buffer, bytes touched) of every access in a space; reads of a command come first."""
    a, b = program.accesses, program.buffers
    order = sorted(
        np.flatnonzero(b.space[a.buffer] == space).tolist(), key=lambda i: (a.command[i], a.mode[i] != READ)
    )
    for i in order:
        buffer = int(a.buffer[i])
        size = int(program.tensors.element_bytes[b.tensor[buffer]])
        starts = element_starts(program, buffer, a.offset[i], a.shape[i])
        yield int(a.command[i]), bool(a.mode[i] == READ), buffer, (starts[:, None] + np.arange(size)).ravel()


def ancestors(program: Program) -> list[int]:
    """For each command, the set of commands that it waits for, directly or not, as the bits of an integer."""
    pointers, indices = program.commands.dep_ptr.tolist(), program.commands.dep_idx.tolist()
    found: list[int] = []
    for command in range(len(program)):
        mine = 0
        for dep in indices[pointers[command] : pointers[command + 1]]:
            assert dep < command, "a dependency points forward"
            mine |= found[dep] | 1 << dep
        found.append(mine)
    return found


class Replay:
    """Runs the commands in serial order on a map of bytes, and notes what the dependencies leave open.

    Each byte knows who wrote it last, which buffer it belongs to, and which commands read it since. A write must come
    after all of them, a read after the write: then any two conflicting accesses of the Program are joined by a path.
    """

    def __init__(self, program: Program, space: int) -> None:
        self.program, self.space = program, space
        self.before = ancestors(program)
        top = int(
            (program.buffers.address + program.buffers.stored_bytes)[program.buffers.space == space].max(
                initial=0
            )
        )
        self.writer, self.holder = np.full(top, -1), np.full(top, -1)
        self.read_by = np.zeros(top, dtype=np.int64)
        self.groups: list[frozenset[int]] = [frozenset()]
        self.number = {self.groups[0]: 0}
        self.found: list[str] = []

    def run(self) -> list[str]:
        """All findings, in serial order."""
        for command, reads, buffer, where in touched(self.program, self.space):
            for other in np.unique(self.writer[where]).tolist():
                self._ordered(command, other, "touches what it wrote")
            if reads:
                self._read(command, buffer, where)
            else:
                self._write(command, buffer, where)
        return self.found

    def _ordered(self, command: int, other: int, why: str) -> None:
        if other >= 0 and other != command and not self.before[command] >> other & 1:
            self.found.append(f"{command} does not wait for {other}: {why}")

    def _read(self, command: int, buffer: int, where: Ints) -> None:
        lie = np.unique(self.holder[where]).tolist()
        if lie != [buffer] and (
            self.space == SRAM or lie != [-1]
        ):  # weights and inputs are in DRAM from the start
            self.found.append(f"{command} reads buffer {buffer} where {lie} lie")
        old, inverse = np.unique(self.read_by[where], return_inverse=True)
        self.read_by[where] = np.asarray([self._group(self.groups[g] | {command}) for g in old])[inverse]

    def _group(self, readers: frozenset[int]) -> int:
        if readers not in self.number:
            self.number[readers] = len(self.groups)
            self.groups.append(readers)
        return self.number[readers]

    def _write(self, command: int, buffer: int, where: Ints) -> None:
        for group in np.unique(self.read_by[where]).tolist():
            for reader in self.groups[group]:
                self._ordered(command, reader, "overwrites what it reads")
        self.writer[where], self.holder[where], self.read_by[where] = command, buffer, 0


def races(program: Program, space: int) -> list[str]:
    """Conflicting accesses without a dependency path, and reads of bytes that another buffer wrote last."""
    return Replay(program, space).run()


# ---- the laws ---------------------------------------------------------------------------------------------------------


def test_conflicting_accesses_are_ordered_by_dependencies_and_reads_find_their_own_data(
    found: api.Profile,
) -> None:
    program = found.program
    assert races(program, SRAM) == []
    assert races(program, DRAM) == []


def test_accesses_lie_inside_their_buffers_and_buffers_inside_the_sram(found: api.Profile) -> None:
    program = found.program
    a, b = program.accesses, program.buffers
    low, high = b.offset[a.buffer], b.offset[a.buffer] + b.shape[a.buffer]
    assert (a.offset >= low).all()
    assert (a.offset + a.shape <= high).all()
    assert (a.shape > 0).all()
    shapes = program.tensors.shape[b.tensor]
    assert (b.offset >= 0).all()
    assert (b.offset + b.shape <= shapes).all()
    inside = b.space == SRAM
    assert (b.address >= 0).all()
    assert ((b.address + b.stored_bytes)[inside] <= found.plan.npu.sram.sram_bytes).all()
    for buffer in range(len(b.tensor)):
        starts = element_starts(program, buffer, b.offset[buffer], b.shape[buffer])
        last = int(starts.max()) + int(program.tensors.element_bytes[b.tensor[buffer]])
        assert last <= b.address[buffer] + b.stored_bytes[buffer]


def in_place_pairs(found: api.Profile) -> set[tuple[str, str]]:
    """(tensor, tensor that takes its place) as the plan declares."""
    pairs = {(t.in_place_of, t.name) for t in found.plan.tensors if t.in_place_of}
    by_name = {x.name: x for x in found.graph.layers}
    for segment in found.plan.segments:
        if segment.in_place:
            pairs.add((by_name[segment.layers[0]].output, by_name[segment.layers[1]].output))
    return pairs


@pytest.mark.parametrize("policy", POLICIES)
def test_live_buffers_never_overlap_but_where_the_plan_says_in_place(found: api.Profile, policy: str) -> None:
    program, trace = found.program, found.traces[policy]
    a, b = program.accesses, program.buffers
    allowed = in_place_pairs(found)
    first, last = np.full(len(b.tensor), np.iinfo(np.int64).max), np.full(len(b.tensor), -1)
    np.minimum.at(first, a.buffer, trace.start_ps[a.command])
    np.maximum.at(last, a.buffer, trace.end_ps[a.command])
    live = np.flatnonzero((b.space == SRAM) & (last >= 0))
    low, high = b.address[live], (b.address + b.stored_bytes)[live]
    meet = (
        (low[:, None] < high)
        & (low < high[:, None])
        & (first[live][:, None] < last[live])
        & (first[live] < last[live][:, None])
    )
    names = [program.tensors.name[t] for t in b.tensor[live]]
    clashes = {
        tuple(sorted((names[i], names[j]))) for i, j in zip(*np.nonzero(np.triu(meet, 1)), strict=True)
    }
    assert clashes <= {tuple(sorted(pair)) for pair in allowed}


def test_law_1_the_program_multiplies_what_the_graph_asks_for(found: api.Profile) -> None:
    commands = found.program.commands
    for index, layer in enumerate(found.graph.layers):
        mine = commands.layer == index
        assert int((commands.macs - commands.recomputed_macs)[mine].sum()) == macs_of(found.graph, layer)
    products = commands.opcode == PRODUCT
    assert (commands.macs == commands.batch * commands.m * commands.n * commands.k * products).all()


def test_every_output_element_is_written_once_and_every_layer_reads_all_it_needs(found: api.Profile) -> None:
    """Union of the boxes a layer writes is its output: in DRAM, if anyone outside its segment reads it, each element once."""
    program = found.program
    a, b = program.accesses, program.buffers
    homes = {t.name: t.home for t in found.plan.tensors}
    mine = program.commands.layer[a.command]
    for number, layer in enumerate(found.graph.layers):
        index = program.tensors.name.index(layer.output)
        count = np.zeros(tuple(program.tensors.shape[index]), dtype=np.int64)
        space = DRAM if homes[layer.output] == "dram" and _leaves_its_segment(found, layer) else SRAM
        boxes = set()
        for i in np.flatnonzero(
            (b.tensor[a.buffer] == index) & (b.space[a.buffer] == space) & (a.mode != READ) & (mine == number)
        ):
            box = (tuple(a.offset[i]), tuple(a.shape[i]))
            if space == DRAM or box not in boxes:
                count[tuple(slice(o, o + s) for o, s in zip(*box, strict=True))] += 1
            boxes.add(box)
        assert (count == 1).all(), layer.name


def _leaves_its_segment(found: api.Profile, layer: Layer) -> bool:
    inside = next((set(s.layers) for s in found.plan.segments if layer.name in s.layers), {layer.name})
    readers = {x.name for x in found.graph.layers if layer.output in x.reads()}
    return found.graph.tensors[layer.output].kind == "output" or bool(readers - inside)


def test_segments_take_no_more_time_than_the_run_and_at_least_that_of_their_work_when_nothing_overlaps(
    found: api.Profile,
) -> None:
    segments = found.summary["segments"]
    assert sum(s["latency_ms"] for s in segments) <= found.summary["latency_ms"] * (1 + 1e-9)
    if found.plan.options.policy == "serial":
        for segment in segments:
            assert segment["latency_ms"] == pytest.approx(sum(segment["busy_ms"].values()), rel=1e-9)


def test_laws_2_and_3_bounds_hold_and_decoupled_is_never_slower(found: api.Profile) -> None:
    serial, decoupled = found.traces["serial"].makespan_ps, found.traces["decoupled"].makespan_ps
    assert decoupled <= serial
    assert decoupled / 1e9 >= found.summary["lower_bound_ms"]
    assert int(found.work.dram_bytes.sum()) >= found.summary["dram_bound_bytes"]


def test_peak_sram_is_that_of_a_byte_map(found: api.Profile) -> None:
    program, trace = found.program, found.trace
    a, b = program.accesses, program.buffers
    first, last = np.full(len(b.tensor), np.iinfo(np.int64).max), np.full(len(b.tensor), -1)
    np.minimum.at(first, a.buffer, trace.start_ps[a.command])
    np.maximum.at(last, a.buffer, trace.end_ps[a.command])
    live = np.flatnonzero((b.space == SRAM) & (last >= 0))
    peak = 0
    for time in np.unique(first[live]):
        now = live[(first[live] <= time) & (last[live] > time)]
        edges = sorted((int(b.address[i]), int(b.address[i] + b.stored_bytes[i])) for i in now)
        used = top = 0
        for low, high in edges:
            used += max(0, high - max(low, top))
            top = max(top, high)
        peak = max(peak, used)
    assert found.summary["peak_sram_bytes"] == peak


# ---- the checker is checked ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
def test_the_replay_notices_a_missing_dependency(graph_of: Callable[[str], Graph], policy: Policy) -> None:
    """Without its dependencies, nearly every command that touches shared bytes is reported."""
    made = api.profile(graph_of("transformer_4d"), tiles="sram", policy=policy, npu=machine(16_384))
    assert isinstance(made, api.Profile)
    commands = made.program.commands
    bare = replace(commands, dep_ptr=np.zeros_like(commands.dep_ptr), dep_idx=commands.dep_idx[:0])
    assert len(races(replace(made.program, commands=bare), SRAM)) > len(made.program) / 2


def test_the_replay_notices_every_single_edge_that_matters(graph_of: Callable[[str], Graph]) -> None:
    """Removing one edge is reported exactly where no other path joins its ends; at least a third are such."""
    made = api.profile(graph_of("conv_chain"), tiles="none", policy="decoupled", npu=machine(16_384))
    assert isinstance(made, api.Profile)
    commands = made.program.commands
    edges = len(commands.dep_idx)
    noticed = 0
    for edge in range(0, edges, 7):
        pointers = commands.dep_ptr - (commands.dep_ptr > edge)
        cut = replace(commands, dep_ptr=pointers, dep_idx=np.delete(commands.dep_idx, edge))
        broken = replace(made.program, commands=cut)
        noticed += bool(races(broken, SRAM) or races(broken, DRAM))
    assert noticed >= edges / 7 / 3


# ---- units of equal structure are lowered once --------------------------------------------------------------------------


def plainly(monkeypatch: pytest.MonkeyPatch, made: api.Profile) -> Program:
    """The plan's Program with every unit lowered for itself."""
    with monkeypatch.context() as patch:
        patch.setattr("npusim.lower.signature", lambda *_: None)
        return lower(made.graph, made.plan)


def test_repeating_equal_units_changes_nothing(found: api.Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a unit's commands come from its own lowering, or from those of an equal unit of this plan or of another."""
    assert plainly(monkeypatch, found).sha256() == found.plan.program_sha256
    monkeypatch.setattr("npusim.lower.fragments.SHORT", 1)
    known: Fragments = {}
    for _ in range(2):
        assert lower(found.graph, found.plan, known).sha256() == found.plan.program_sha256


@pytest.mark.slow
@pytest.mark.parametrize("model", ["bk-sdm-tiny", "sd-v1.5"])
def test_repeating_equal_units_of_a_full_size_network(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = api.profile(api.load_graph(model))
    assert isinstance(made, api.Profile)
    assert plainly(monkeypatch, made).sha256() == made.plan.program_sha256


def test_equal_units_are_repeated(graph_of: Callable[[str], Graph], monkeypatch: pytest.MonkeyPatch) -> None:
    """Far fewer units are lowered than there are."""
    monkeypatch.setattr("npusim.lower.fragments.SHORT", 1)
    graph = graph_of("equal_blocks")
    made = api.profile(graph, tiles="sram", npu=machine(16_384))
    assert isinstance(made, api.Profile)
    known: Fragments = {}
    lower(graph, made.plan, known)
    units = len(graph.layers) - 2 * len(made.plan.segments)
    assert len(known) < 0.8 * units


@pytest.mark.parametrize("tiles", ["sram", "auto"])
@pytest.mark.parametrize("policy", POLICIES)
def test_keys_are_cut_where_a_head_does_not_fit(
    graph_of: Callable[[str], Graph], tiles: str, policy: Policy
) -> None:
    """So that the laws above are tried on blocks of keys; the second attention is that of the first, under other names."""
    made = api.profile(graph_of("long_attention"), tiles=tiles, policy=policy, npu=machine(16_384))
    assert isinstance(made, api.Profile)
    attentions = [s for s in made.plan.segments if s.kind == "attention"]
    assert len(attentions) == 2
    assert all(s.tiles["keys"] > 1 and 150 % s.keys_per_tile for s in attentions)
    roomy = api.profile(graph_of("long_attention"), tiles=tiles, policy=policy, npu=machine(ENOUGH))
    assert isinstance(roomy, api.Profile)
    assert not any("keys" in s.tiles or s.keys_per_tile for s in roomy.plan.segments)


# ---- the gap ----------------------------------------------------------------------------------------------------------


def test_the_causes_of_the_gap_add_up_and_none_but_what_the_bound_counts_is_negative(
    found: api.Profile,
) -> None:
    problem = make_problem(found.graph, found.plan.npu, "w8a16", found.trace.policy)  # type: ignore[arg-type]
    bounds = lower_bounds(problem)
    for trace in found.traces.values():
        causes = gap.gap_ps(found.graph, found.plan, found.program, trace, found.work, bounds)
        assert sum(causes.values()) == trace.makespan_ps - bounds.makespan_ps
        assert all(time > 0 for cause, time in causes.items() if cause != gap.COUNTED), causes


def test_a_product_alone_waits_for_its_operands_and_for_its_store(net: Callable[..., Net]) -> None:
    """Everything in one piece: load, multiply, store, one after the other."""
    n = net()
    made = api.profile(
        n.output(n.linear(n.input("x", 1, 16, 16), 16, bias=False)).graph(), npu=machine(ENOUGH)
    )
    assert isinstance(made, api.Profile)
    load, compute, store = (made.work.alone_ps[made.program.commands.opcode == o].max() for o in (0, 2, 1))
    assert compute < min(load, store)
    assert made.summary["bound_by"] == "dram"
    causes = {c["cause"]: round(c["ms"] * 1e9) for c in made.summary["gap"]}
    assert causes[gap.TENSOR] == compute


# ---- law 2: what must cross the bus, and no more where everything fits ----------------------------------------------------


def compulsory(found: api.Profile) -> int:
    """Bytes of all weights, inputs and outputs, each once."""
    names = found.program.tensors.name
    size = {n: int(b) for n, b in zip(names, found.program.tensors.element_bytes, strict=True)}
    return sum(
        t.elements * size[t.name]
        for t in found.graph.tensors.values()
        if t.kind in ("weight", "input", "output")
    )


@pytest.mark.parametrize("name", [n.__name__ for n in NETS])
def test_law_2_where_everything_fits_only_weights_inputs_and_outputs_cross_the_bus(
    graph_of: Callable[[str], Graph], name: str
) -> None:
    """Serial: nothing is gained by loading a halo twice."""
    made = api.profile(graph_of(name), tiles="auto", policy="serial", npu=machine(ENOUGH))
    assert isinstance(made, api.Profile)
    assert int(made.work.dram_bytes.sum()) == compulsory(made)
    assert made.summary["spill_bytes"] == 0


def test_law_2_an_input_that_two_layers_read_crosses_the_bus_once(net: Callable[..., Net]) -> None:
    n = net()
    x = n.input("x", 1, 16, 16)
    made = api.profile(
        n.output(n.add(n.linear(x, 16), n.linear(x, 16))).graph(), npu=machine(ENOUGH), policy="serial"
    )
    assert isinstance(made, api.Profile)
    assert int(made.work.dram_bytes.sum()) == compulsory(made)


def test_law_2_halos_are_not_loaded_twice_where_everything_fits(net: Callable[..., Net]) -> None:
    n = net()
    made = api.profile(
        n.output(n.conv(n.input("x", 1, 8, 16, 16), 8)).graph(), npu=machine(ENOUGH), policy="decoupled"
    )
    assert isinstance(made, api.Profile)
    assert int(made.work.dram_bytes.sum()) == compulsory(made)


def sliced(n: Net) -> Net:
    """Two of 64 rows are wanted."""
    found: Net = n.output(n.slice(n.input("x", 1, 64, 32), 1, 3, 5))
    return found


def embedded(n: Net) -> Net:
    """Four of 500 table rows are wanted."""
    index = n.input("i", 1, 4, dtype=7)
    found: Net = n.output(n.linear(n.node("Gather", [n.weight(500, 16), index], (1, 4, 16)), 8))
    return found


def strided(n: Net) -> Net:
    """Every second image row is wanted; planned in bands of one row where the SRAM is small."""
    found: Net = n.output(n.conv(n.input("x", 1, 64, 32, 32), 8, 1, stride=2))
    return found


def unaligned(n: Net) -> Net:
    """No tensor is a multiple of the alignment."""
    found: Net = n.output(n.linear(n.input("x", 1, 3, 5), 3))
    return found


@pytest.mark.parametrize(
    "maker",
    [
        sliced,
        embedded,
        strided,
        unaligned,
    ],
)
@pytest.mark.parametrize("policy", POLICIES)
def test_laws_2_and_3_bounds_hold_where_little_of_a_tensor_is_needed(
    net: Callable[..., Net], maker: Callable[[Net], Net], policy: Policy
) -> None:
    made = api.profile(maker(net()).graph(), npu=machine(16_384), policy=policy)
    assert isinstance(made, api.Profile)
    assert int(made.work.dram_bytes.sum()) >= made.summary["dram_bound_bytes"]
    assert made.summary["latency_ms"] >= made.summary["lower_bound_ms"]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_gate_does_not_overwrite_the_residual_that_is_added_after_it(
    net: Callable[..., Net], policy: Policy
) -> None:
    n = net()
    x = n.input("x", 1, 24, 32)
    gated, kept = n.linear(x, 32), n.linear(x, 32)
    graph = n.output(n.linear(n.add(n.geglu(gated, 32), kept), 16)).graph()
    assert [e.function for layer in graph.layers for e in layer.epilogue] == ["geglu", "add"]
    made = api.profile(graph, npu=machine(ENOUGH), policy=policy)
    assert isinstance(made, api.Profile)
    assert races(made.program, SRAM) == []
