"""Lowering: a plan becomes the Program that is both timed and run. One module per kind of layer, one signature."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from npusim.errors import PlanError
from npusim.graph import Graph, Layer
from npusim.lower.attention import lower_attention
from npusim.lower.context import Lowering
from npusim.lower.product import lower_product
from npusim.lower.rows import lower_chain
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


def lower(graph: Graph, plan: Plan) -> Program:
    """The exact command stream of a plan, in serial order, with complete dependencies.

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
    segments = {s.layers[-1]: (i, s) for i, s in enumerate(plan.segments)}
    by_name = {x.name: x for x in graph.layers}
    inside = {name for s in plan.segments for name in s.layers}
    for layer in graph.layers:
        if layer.name in segments:
            index, segment = segments[layer.name]
            for name in segment.layers:
                low.bring_inputs(by_name[name])
            _LOWER_SEGMENT[segment.kind](low, segment, index)
        elif layer.name not in inside:
            low.bring_inputs(layer)
            _LOWER[OPS[layer.op].streams](low, layer)
    return low.builder.build()
