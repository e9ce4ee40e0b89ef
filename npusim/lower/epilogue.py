"""Vector functions on a finished piece, in place."""

from __future__ import annotations

from math import prod

from npusim.graph import Layer
from npusim.lower.builder import Box
from npusim.lower.context import Lowering, Ring
from npusim.lower.geometry import Band, operand_boxes
from npusim.program import ROLE, VECTOR


def apply_epilogue(
    low: Lowering, layer: Layer, rings: dict[str, Ring], out: Box, band: Band, cols: tuple[int, int] | None, tile: int,
    *, segment: int = -1,
) -> None:  # fmt: skip
    """Run each epilogue function on the piece `out` (rows of `band`, columns `cols` of the layer's output).

    A constant factor (`scale`) is part of requantization and costs nothing; a gate was applied before.
    """
    for position, epilogue in enumerate(layer.epilogue):
        if epilogue.function in ("scale", "geglu"):
            continue
        reads: list[tuple[int, Box]] = [(9, out)]
        if epilogue.operand >= 0:
            operand = layer.operands[epilogue.operand]
            chosen = cols if operand.cols > 1 else None
            boxes = list(operand_boxes(low.graph.tensors, operand, band, chosen))
            ring = rings.get(f"aux{epilogue.operand}")
            key = tuple((b.tensor, b.offset) for b in boxes)
            kind = low.graph.tensors[operand.parts[0].tensor].kind
            role = "weight" if kind == "weight" else ("spill" if kind == "intermediate" else "other")
            found = low.fetch(ring, key, boxes, low.layer_id(layer), role, segment=segment, tile=tile)
            reads += [(epilogue.operand, b) for b in found]
        low.builder.command(
            VECTOR, low.vector_gang(), layer=low.layer_id(layer), role=ROLE["other"], segment=segment, tile=tile,
            function=epilogue.function, reads=reads, writes=[(9, out)], extents=(1, prod(out.shape), 1, 1),
            attributes={"epilogue": position},
        )  # fmt: skip
