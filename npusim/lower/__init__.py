"""Lowering: a plan becomes the Program that is both timed and run. One module per kind of layer, one signature."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from npusim.errors import PlanError
from npusim.graph import Graph, Layer
from npusim.lower.attention_commands import lower_attention
from npusim.lower.context import Lowering
from npusim.lower.fragments import Fragments, mark, record, repeat
from npusim.lower.product import lower_product
from npusim.lower.rows import lower_chain
from npusim.lower.signature import signature
from npusim.lower.vector import lower_group_norm, lower_rows
from npusim.ops import OPS
from npusim.plan import Plan, SegmentPlan
from npusim.program import Program

__all__ = ["lower"]

_LOWER: Mapping[str, Callable[[Lowering, Layer], None]] = {
    "product": lower_product,
    "rows": lower_rows,
    "images": lower_rows,
    "whole": lower_rows,
    "norm": lower_group_norm,
}

_LOWER_SEGMENT: Mapping[str, Callable[[Lowering, SegmentPlan, int], None]] = {
    "attention": lower_attention,
    "rows": lower_chain,
}


def lower(graph: Graph, plan: Plan, known: Fragments | None = None) -> Program:
    """The exact command stream of a plan, in serial order, with complete dependencies.

    Args:
        known: fragments of other Programs for the same NPU, to be used and added to.

    Raises:
        PlanError: the plan is not for this graph.
    """
    if {t.name for t in plan.tensors} != set(graph.tensors) or [p.name for p in plan.layers] != [
        x.name for x in graph.layers
    ]:
        raise PlanError(
            f"the plan of '{plan.model.name}' does not match this model's layers; profile the model again"
        )
    low = Lowering(graph, plan)
    known = {} if known is None else known
    segments = {s.layers[-1]: (i, s) for i, s in enumerate(plan.segments)}
    by_name = {x.name: x for x in graph.layers}
    inside = {name for s in plan.segments for name in s.layers}
    for layer in graph.layers:
        if layer.name in segments:
            index, segment = segments[layer.name]
            layers = [by_name[name] for name in segment.layers]
            _lower_unit(low, layers, (index, segment), known)
        elif layer.name not in inside:
            _lower_unit(low, [layer], None, known)
    return low.builder.build()


def _lower_unit(
    low: Lowering, layers: Sequence[Layer], segment: tuple[int, SegmentPlan] | None, known: Fragments
) -> None:
    """A layer or a segment: repeated where an equal one is known, else lowered."""
    for layer in layers:
        low.bring_inputs(layer)
    index, planned = segment if segment is not None else (-1, None)
    unit = signature(low, layers, planned)
    if unit is not None and unit.key in known:
        repeat(low, unit, known[unit.key], index)
        return
    since = mark(low)
    if planned is not None:
        _LOWER_SEGMENT[planned.kind](low, planned, index)
    else:
        _LOWER[OPS[layers[0].op].streams](low, layers[0])
    if unit is not None:
        fragment = record(low, unit, since)
        if fragment is not None:
            known[unit.key] = fragment
