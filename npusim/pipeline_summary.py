"""The pipeline's `summary.json`: a picture's latency, traffic and energy, and what each network has of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isqrt
from typing import Any

from npusim.hardware import Npu
from npusim.models.pipeline import Pipeline
from npusim.pipeline_time import Part, total_ps
from npusim.reports.layers import layer_figures, layer_rows
from npusim.reports.source import Profiled
from npusim.units import ps_to_ms

PIPELINE_SCHEMA = 1
#: Denoising steps that the table of steps lists, besides the pipeline's own.
TABLE_STEPS = (1, 2, 4, 25)
_TOP = 5


def summarize_pipeline(
    pipeline: Pipeline, npu: Npu, policy: str, profiles: Sequence[Profiled], parts: Mapping[str, Sequence[Part]],
    weight_bytes: Sequence[int],
) -> dict[str, Any]:  # fmt: skip
    """All figures of one picture.

    Args:
        parts: by policy; times of each network.
        weight_bytes: of each network.
    """
    planned = parts[policy]
    summaries = [p.summary for p in profiles]
    rows = [_network(pipeline, i, summaries[i], planned, weight_bytes[i], npu) for i in range(len(planned))]
    whole = total_ps(planned, pipeline.steps)
    for row, profile in zip(rows, profiles, strict=True):
        row["share"] = row["total_ps"] / whole if whole else 0.0
        row["dominated_by"] = dominated_by(profile)
    moved = _picture(summaries, planned, weight_bytes, npu, pipeline.steps)
    return {
        "schema_version": PIPELINE_SCHEMA,
        "kind": "pipeline",
        "model": pipeline.name,
        "title": pipeline.title,
        "checkpoint": pipeline.checkpoint,
        "npu": npu.name,
        "precision": ", ".join(n.precision for n in pipeline.network),
        "policy": policy,
        "steps": pipeline.steps,
        "latency_ms": ps_to_ms(whole),
        "latency_ps": whole,
        **{f"{name}_latency_ms": ps_to_ms(total_ps(timed, pipeline.steps)) for name, timed in parts.items()},
        "launch_ms": ps_to_ms(sum(p.evaluations(pipeline.steps) * p.launch_ps for p in planned)),
        "load_ms": ps_to_ms(sum(p.load_count(pipeline.steps) * p.load_ps for p in planned)),
        **moved,
        "macs": sum(row["evaluations"] * s["macs"] for row, s in zip(rows, summaries, strict=True)),
        "peak_sram_bytes": max(s["peak_sram_bytes"] for s in summaries),
        "lower_bound_ms": sum(
            row["evaluations"] * s["lower_bound_ms"] for row, s in zip(rows, summaries, strict=True)
        ),
        "networks": rows,
        "steps_table": [
            {"steps": n, "latency_ms": ps_to_ms(total_ps(planned, n)), "latency_ps": total_ps(planned, n)}
            | _picture(summaries, planned, weight_bytes, npu, n)
            for n in sorted({*TABLE_STEPS, pipeline.steps})
        ],
        "assumptions": assumptions(pipeline, npu),
    }


def _network(
    pipeline: Pipeline, index: int, summary: Mapping[str, Any], parts: Sequence[Part], weights: int, npu: Npu
) -> dict[str, Any]:
    """One network: how it is deployed, and what all its evaluations cost."""
    network, part, steps = pipeline.network[index], parts[index], pipeline.steps
    evaluations = part.evaluations(steps)
    total = part.total_ps(steps)
    return {
        "name": network.name,
        "model": network.model,
        "precision": network.precision,
        "tiles": summary["tiles"],
        "segments_kinds": summary["segments_kinds"],
        "guidance": network.guidance,
        "batch": network.batch,
        "weights": network.weights,
        "repeat": network.repeat,
        "evaluations": evaluations,
        "evaluation_ms": summary["latency_ms"],
        "evaluation_ps": part.evaluation_ps,
        "launch_ps": part.launch_ps,
        "loads": part.load_count(steps),
        "load_ps": part.load_ps,
        "total_ms": ps_to_ms(total),
        "total_ps": total,
        "bound_by": summary["bound_by"],
        "lower_bound_ms": summary["lower_bound_ms"],
        "weight_bytes": weights,
        **_moved(summary, part, weights, npu, steps),
    }


def _moved(
    summary: Mapping[str, Any], part: Part, weights: int, npu: Npu, steps: int
) -> dict[str, int | float]:
    """DRAM bytes and energy of all evaluations of a network, with those of loading its weights."""
    evaluations, loaded = part.evaluations(steps), part.load_count(steps) * weights
    return {
        "dram_read_bytes": evaluations * summary["dram_read_bytes"],
        "dram_write_bytes": evaluations * summary["dram_write_bytes"] + loaded,
        "spill_bytes": evaluations * summary["spill_bytes"],
        "load_bytes": loaded,
        "energy_mj": evaluations * summary["energy_mj"] + loaded * npu.energy.dram_pj_per_byte / 1e9,
    }


def _picture(
    summaries: Sequence[Mapping[str, Any]], parts: Sequence[Part], weights: Sequence[int], npu: Npu, steps: int
) -> dict[str, int | float]:  # fmt: skip
    """DRAM bytes and energy of a picture."""
    rows = [_moved(s, p, w, npu, steps) for s, p, w in zip(summaries, parts, weights, strict=True)]
    return {key: sum(row[key] for row in rows) for key in rows[0]}


def dominated_by(profile: Profiled) -> list[dict[str, Any]]:
    """The kinds of layers that hold the critical path longest, by operator and rows (pixels, tokens); times add up to the latency."""
    held: dict[str, float] = {}
    for row in layer_rows(profile, layer_figures(profile)):
        kind = "attention product" if row.op == "matmul" else row.op.replace("_", " ")
        name = f"{kind} over {positions(row.shape[2])}"
        held[name] = held.get(name, 0.0) + row.critical_ms
    whole = sum(held.values()) or 1.0
    most = sorted(held.items(), key=lambda item: (-item[1], item[0]))[:_TOP]
    return [{"what": name, "ms": ms, "share": ms / whole} for name, ms in most if ms]


def positions(rows: int) -> str:
    """Rows of a stored tensor as people say them: a square number of at least 64 is an image's."""
    side = isqrt(rows)
    return f"{side} x {side}" if side * side == rows and side >= 8 else f"{rows} rows"


def assumptions(pipeline: Pipeline, npu: Npu) -> list[str]:
    """What the picture's figures rest on, besides what each network's own run says."""
    own = sorted({n.name for n in pipeline.network if n.launch_s is not None})
    given = f" ({', '.join(own)}: the specification's)" if own else ""
    found = [
        f"networks run one after the other; each evaluation is submitted first, {npu.core.launch_s * 1e3:g} ms{given}",
        "tokenizing, the sampler's arithmetic between steps and the picture's way to the screen are not counted",
        "nothing was fitted to the encoder's or the decoder's time: they are predictions of the same hardware description",
    ]
    loaded = [f"{n.name} {n.weights}" for n in pipeline.network if n.weights != "resident"]
    if loaded and pipeline.load_bytes_per_s:
        found.append(
            f"weights come from storage at {pipeline.load_bytes_per_s / 1e9:g} GB/s while nothing else runs ({', '.join(loaded)})"
        )
    else:
        found.append("all weights lie in DRAM before the picture starts")
    found += [
        f"{n.name}: both halves of classifier-free guidance are one evaluation of batch 2"
        for n in pipeline.network
        if n.guidance == "batch2"
    ]
    return found
