"""Hints with numbers: what holds the latency up, and what it costs. They are read from the run, not guessed."""

from __future__ import annotations

import numpy as np

from npusim.program import DRAM
from npusim.reports.engines import engine_states
from npusim.reports.events import CATEGORY, categories
from npusim.reports.layers import LayerFigures
from npusim.reports.source import Profiled, planned_trace
from npusim.summary import intermediate_transfers
from npusim.units import PS_PER_MS, format_bytes


def hints(profile: Profiled, figures: LayerFigures) -> list[str]:
    """Sentences, the heaviest matter first as far as one order fits all."""
    found = [_critical(profile, figures), _spill(profile), _gap(profile), _slow_layers(profile, figures)]
    found += [_idle(profile), _handover(profile), _overlap(profile), *_clamped(profile)]
    return [hint for hint in found if hint]


def critical_by_category(profile: Profiled, figures: LayerFigures) -> dict[str, int]:
    """Category (a key of `theme.CATEGORIES`) -> picoseconds on the critical path; they add up to the makespan."""
    category = categories(profile.program)
    held = figures.command_critical_ps
    return {name: int(held[category == index].sum()) for name, index in CATEGORY.items()}


def _critical(profile: Profiled, figures: LayerFigures) -> str:
    held = critical_by_category(profile, figures)
    total = max(1, sum(held.values()))
    worst = sorted(held, key=lambda name: -held[name])[:3]
    shares = ", ".join(f"{name} {100 * held[name] / total:.1f} %" for name in worst if held[name])
    return f"The critical path is made of {shares}." if shares else ""


def _spill(profile: Profiled) -> str:
    spilled = int(profile.summary["spill_bytes"])
    total = int(profile.work.dram_bytes.sum())
    if not spilled:
        return "No intermediate crosses the DRAM."
    rate = profile.plan.npu.dram.dram_shared_bytes_per_s
    largest = ", ".join(f"{name} {format_bytes(size)}" for name, size in spilled_tensors(profile)[:3])
    return (
        f"{format_bytes(spilled)} of intermediates cross the DRAM: {100 * spilled / max(1, total):.1f} % of its bytes, "
        f"{spilled / rate * 1e3:.2f} ms of its bandwidth. The largest: {largest}."
    )


def spilled_tensors(profile: Profiled) -> list[tuple[str, int]]:
    """(tensor, bytes moved) of intermediates that cross the DRAM, the largest first."""
    program = profile.program
    accesses, buffers = program.accesses, program.buffers
    moved = np.where(intermediate_transfers(program), profile.work.dram_bytes, 0)
    outside = np.flatnonzero(buffers.space[accesses.buffer] == DRAM)
    totals = np.bincount(
        buffers.tensor[accesses.buffer[outside]],
        weights=moved[accesses.command[outside]],
        minlength=len(program.tensors.name),
    )
    order = np.argsort(-totals, kind="stable")
    return [(program.tensors.name[i], int(totals[i])) for i in order.tolist() if totals[i] > 0]


def _gap(profile: Profiled) -> str:
    latency, bound = float(profile.summary["latency_ms"]), float(profile.summary["lower_bound_ms"])
    if bound <= 0:
        return ""
    return (
        f"No plan on this hardware at this precision can beat {bound:.2f} ms: "
        f"this one is {latency - bound:.2f} ms ({100 * (latency / bound - 1):.1f} %) above it."
    )


def _slow_layers(profile: Profiled, figures: LayerFigures) -> str:
    slow = np.flatnonzero((figures.macs > 0) & (figures.mac_utilization < 0.1) & (figures.critical_ps > 0))
    if not len(slow):
        return ""
    worst = int(slow[np.argmax(figures.critical_ps[slow])])
    held = int(figures.critical_ps[slow].sum()) / PS_PER_MS
    return (
        f"{len(slow)} layers keep under 10 % of the multipliers busy and hold the critical path for {held:.2f} ms; "
        f"the costliest is {profile.program.layers[worst]} ({figures.critical_ps[worst] / PS_PER_MS:.2f} ms)."
    )


def _idle(profile: Profiled) -> str:
    trace = planned_trace(profile)
    states = engine_states(profile.program, trace)
    unused = [lane for lane, s in states.items() if not s["busy"]]
    if not unused:
        return ""
    npu = profile.plan.npu
    whole = sum(e.count * e.macs_per_cycle for e in npu.tensor_engine)
    rates = {f"{e.kind}{i}": e.macs_per_cycle for e in npu.tensor_engine for i in range(e.count)}
    share = 100 * sum(rates.get(lane, 0) for lane in unused) / whole
    extra = f" They hold {share:.1f} % of the multipliers." if share else ""
    return f"Never used: {', '.join(unused)}.{extra}"


def _handover(profile: Profiled) -> str:
    spent, latency = float(profile.summary["handover_ms"]), float(profile.summary["latency_ms"])
    if not spent:
        return ""
    times = int((profile.work.handover_ps > 0).sum())
    share = f"{100 * spent / latency:.1f} % of the latency"
    return f"{times:,} hand-overs between engines take {spent:.2f} ms of engine time ({share}): fewer, larger tiles cost less."


def _overlap(profile: Profiled) -> str:
    if "decoupled" not in profile.traces or "serial" not in profile.traces:
        return ""
    serial, decoupled = (profile.traces[p].makespan_ps / PS_PER_MS for p in ("serial", "decoupled"))
    return (
        f"Overlapping DMA with compute saves {serial - decoupled:.2f} ms of {serial:.2f} ms."
        if serial > decoupled
        else ""
    )


def _clamped(profile: Profiled) -> list[str]:
    return [
        f"Segment {s.name}: {s.requested} tiles were asked for, {s.tile_count} are possible."
        for s in profile.plan.segments if s.requested
    ]  # fmt: skip
