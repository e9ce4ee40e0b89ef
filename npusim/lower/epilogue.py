"""Vector functions on a finished piece, in place."""

from __future__ import annotations

from math import prod

from npusim.lower.builder import Box
from npusim.lower.context import Feed
from npusim.lower.geometry import Band, operand_boxes
from npusim.program import ROLE, VECTOR


def apply_epilogue(
    feed: Feed, out: Box, band: Band, cols: tuple[int, int] | None, number: int, *, staged: Box | None = None
) -> None:
    """Run each epilogue function on the piece `out` (rows of `band`, columns `cols` of the layer's output).

    A constant factor (`scale`) is part of requantization and costs nothing; a gate was applied before. A product whose output
    overwrites its residual lies in `staged` until that residual is added.
    """
    low, layer = feed.low, feed.layer
    current = staged if staged is not None else out
    for position, epilogue in enumerate(layer.epilogue):
        if epilogue.function in ("scale", "geglu"):
            continue
        reads: list[tuple[int, Box]] = [(9, current)]
        if epilogue.operand >= 0:
            found = _second_operand(feed, epilogue.operand, band, cols, number)
            reads += [(epilogue.operand, b) for b in found]
            if layer.operands[epilogue.operand].role == "residual":
                current = out
        low.builder.command(
            VECTOR, low.vector_gang(), layer=feed.index, role=ROLE["other"], segment=feed.segment, tile=feed.tile(number),
            function=epilogue.function, reads=reads, writes=[(9, current)], extents=(1, prod(out.shape), 1, 1),
            attributes={"epilogue": position},
        )  # fmt: skip


def _second_operand(
    feed: Feed, index: int, band: Band, cols: tuple[int, int] | None, number: int
) -> tuple[Box, ...]:
    operand, tensors = feed.layer.operands[index], feed.low.graph.tensors
    chosen = cols if operand.cols > 1 else None
    boxes = list(operand_boxes(tensors, operand, band, chosen))
    kind = tensors[operand.parts[0].tensor].kind
    role = "weight" if kind == "weight" else ("spill" if kind == "intermediate" else "other")
    key = tuple((b.tensor, b.offset, b.shape) for b in boxes)
    return feed.fetch(f"aux{index}", key, boxes, role, tile=feed.tile(number))
