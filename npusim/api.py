"""npusim from Python: read a model, plan it, simulate it, look at the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from npusim.errors import BadInputError
from npusim.graph import Graph
from npusim.hardware import Npu, load_npu
from npusim.models import zoo
from npusim.onnx_reader import read_onnx
from npusim.passes import to_layers
from npusim.precisions import Precisions, common_precision, with_casts
from npusim.results import Comparison, Profile, SegmentResult
from npusim.scheduler.explain import LEVERS, doubled, explain
from npusim.scheduler.problem import Infeasible, Policy
from npusim.scheduler.search import Request, search_plan
from npusim.simulate import simulate
from npusim.summary import summarize
from npusim.trace import Trace
from npusim.units import ps_to_ms

__all__ = ["Comparison", "Infeasible", "Profile", "SegmentResult", "load_graph", "profile"]

#: Linux accepts no longer path.
_LONGEST_PATH = 4095


def load_graph(
    model: str | Path | bytes, *, shapes: Mapping[str, Sequence[int]] | None = None, dims: Mapping[str, int] | None = None,
    name: str = "",
) -> Graph:  # fmt: skip
    """Layers of an ONNX file (path or bytes) or of a zoo network (by name).

    Raises:
        ModelError: the file cannot be used (see `onnx_reader.read_onnx`).
        BadInputError: neither a file nor a zoo name.
    """
    if isinstance(model, bytes):
        return to_layers(read_onnx(model, name=name, shapes=shapes, dims=dims))
    path = Path(model)
    if len(str(model)) > _LONGEST_PATH:
        raise BadInputError(
            f"model: a name of {len(str(model))} characters; give the path of an ONNX file or a zoo name"
        )
    if path.is_file() or path.suffix == ".onnx" or (path.exists() and str(model) not in zoo.names()):
        return to_layers(read_onnx(path, name=name, shapes=shapes, dims=dims))
    return to_layers(
        read_onnx(zoo.graph_bytes(str(model)), name=name or str(model), shapes=shapes, dims=dims)
    )


def profile(
    model: str | Path | bytes | Graph, *, tiles: str | int = "auto", segments: str = "all",
    precision: str | Precisions = "w8a16",
    npu: str | Path | Npu = "exynos2400", policy: Policy = "decoupled", pins: Mapping[str, int] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None, dims: Mapping[str, int] | None = None, why: bool = False,
) -> Profile | Infeasible:  # fmt: skip
    """Plan and simulate a network.

    Args:
        model: path or bytes of an ONNX file, name of a zoo network, or a graph from `load_graph`.
        tiles: `none`, `sram`, `auto`, or a tile count for every segment.
        segments: kinds of layers joined: `none`, `attention`, `all`.
        precision: `w8a16`, `w8a8`, `w16a16`, `fp16`, `fp32`; or one of them for every layer by name: casts are then added where
            neighbours differ, and are layers of the profile.
        npu: preset, path of a description, or a description.
        policy: `decoupled` (one in-order queue per engine) or `serial`.
        pins: segment name -> tile count, overriding `tiles`.
        shapes, dims: sizes of symbolic inputs.
        why: also say why each segment is tiled as it is, and what more hardware would buy (`levers`; takes a few times as long).

    Returns:
        The profile, or why nothing fits.
    """
    graph = model if isinstance(model, Graph) else load_graph(model, shapes=shapes, dims=dims)
    described = npu if isinstance(npu, Npu) else load_npu(npu)
    if isinstance(precision, str):
        common: str = precision
        precisions: Precisions = {}
    else:
        common = common_precision(precision)
        graph, precisions = with_casts(graph, precision)
    request = Request(
        tiles=str(tiles),
        segments=segments,
        precision=common,
        policy=policy,
        pins=pins or {},
        precisions=precisions,
    )
    found = search_plan(graph, described, request)
    if isinstance(found, Infeasible):
        return found
    other: Policy = "serial" if policy == "decoupled" else "decoupled"
    work, planned = found.work, found.planned
    traces: dict[str, Trace] = {
        policy: found.trace,
        other: simulate(planned.program, described, other, work=work),
    }
    summary = summarize(
        graph, planned.plan, planned.program, traces, work, bounds=found.bounds, curves=found.curves
    )
    if why:
        reasons = zip(summary["segments"], explain(planned), strict=True)
        summary["segments"] = [{**segment, "why": reason} for segment, reason in reasons]
        summary["levers"] = _levers(graph, described, request)
    return Profile(
        graph=graph, plan=planned.plan, program=planned.program, traces=traces, work=work, summary=summary
    )


def _levers(graph: Graph, npu: Npu, request: Request) -> list[dict[str, float | str]]:
    """Latency of the whole network, planned anew for hardware with twice as much of something."""
    found = {lever: search_plan(graph, doubled(npu, lever), request) for lever in LEVERS}
    return [
        {"change": lever, "latency_ms": ps_to_ms(result.trace.makespan_ps)}
        for lever, result in found.items()
        if not isinstance(result, Infeasible)
    ]
