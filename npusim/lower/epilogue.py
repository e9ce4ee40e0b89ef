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
    *, segment: int = -1, staged: Box | None = None,
) -> None:  # fmt: skip
    """Run each epilogue function on the piece `out` (rows of `band`, columns `cols` of the layer's output).

    A constant factor (`scale`) is part of requantization and costs nothing; a gate was applied before. A product whose output
    overwrites its residual lies in `staged` until that residual is added.
    """
    current = staged if staged is not None else out
    for position, epilogue in enumerate(layer.epilogue):
        if epilogue.function in ("scale", "geglu"):
            continue
        reads: list[tuple[int, Box]] = [(9, current)]
        if epilogue.operand >= 0:
            found = _second_operand(low, layer, rings, epilogue.operand, band, cols, segment, tile)
            reads += [(epilogue.operand, b) for b in found]
            if layer.operands[epilogue.operand].role == "residual":
                current = out
        low.builder.command(
            VECTOR, low.vector_gang(), layer=low.layer_id(layer), role=ROLE["other"], segment=segment, tile=tile,
            function=epilogue.function, reads=reads, writes=[(9, current)], extents=(1, prod(out.shape), 1, 1),
            attributes={"epilogue": position},
        )  # fmt: skip


def _second_operand(
    low: Lowering,
    layer: Layer,
    rings: dict[str, Ring],
    index: int,
    band: Band,
    cols: tuple[int, int] | None,
    segment: int,
    tile: int,
) -> tuple[Box, ...]:
    operand = layer.operands[index]
    chosen = cols if operand.cols > 1 else None
    boxes = list(operand_boxes(low.graph.tensors, operand, band, chosen))
    kind = low.graph.tensors[operand.parts[0].tensor].kind
    role = "weight" if kind == "weight" else ("spill" if kind == "intermediate" else "other")
    key = tuple((b.tensor, b.offset, b.shape) for b in boxes)
    return low.fetch(
        rings.get(f"aux{index}"), key, boxes, low.layer_id(layer), role, segment=segment, tile=tile
    )
