"""Boxes: which part of each operand a piece of the output needs. Shared by planning (sizes) and lowering (boxes)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from npusim.graph import Graph, Layer, Operand, Shape4, Tensor


class Band(NamedTuple):
    """Output rows `[r0, r1)` of heads `[h0, h1)` of batch element `b`."""

    b: int
    h0: int
    h1: int
    r0: int
    r1: int


class TensorBox(NamedTuple):
    """A box of a tensor, in its coordinates."""

    tensor: str
    offset: Shape4
    shape: Shape4


def row_unit(layer: Layer) -> int:
    """Rows that belong together in a cut: one image row for spatial layers, else one."""
    if "out_hw" in layer.attributes:
        return int(layer.attributes["out_hw"][1])
    return 1


def bands(out: Shape4, rows: int) -> list[Band]:
    """The output cut into bands of at most `rows` rows; whole heads are joined where several fit into `rows`."""
    batch, heads, total, _ = out
    if rows >= total and heads > 1:
        joined = max(1, min(heads, rows // total))
        return [
            Band(b, h, min(h + joined, heads), 0, total)
            for b in range(batch)
            for h in range(0, heads, joined)
        ]
    return [
        Band(b, h, h + 1, r, min(r + rows, total))
        for b in range(batch)
        for h in range(heads)
        for r in range(0, total, rows)
    ]


def band_count(out: Shape4, rows: int) -> int:
    """Number of bands that `bands` would make."""
    batch, heads, total, _ = out
    if rows >= total and heads > 1:
        return batch * -(-heads // max(1, min(heads, rows // total)))
    return batch * heads * -(-total // rows)


def widest_bands(out: Shape4, rows: int) -> list[Band]:
    """A few bands among which the one that reads most input rows is: the first, one inside, the last of a head."""
    _, heads, total, _ = out
    joined = max(1, min(heads, rows // total))
    starts = dict.fromkeys((0, min(rows, max(0, total - rows)), max(0, -(-total // rows) - 1) * rows))
    return [Band(0, 0, joined, r, min(r + rows, total)) for r in starts]


def input_rows(layer: Layer, r0: int, r1: int) -> tuple[int, int]:
    """Input rows that output rows `[r0, r1)` need: the same, or a band with halo for spatial layers."""
    return rows_reader(layer)(r0, r1)


def rows_reader(layer: Layer) -> Callable[[int, int], tuple[int, int]]:
    """`input_rows` of one layer, for many bands."""
    if "out_hw" not in layer.attributes:
        return lambda r0, r1: (r0, r1)
    in_h, in_w = (int(v) for v in layer.attributes["in_hw"])
    out_w = int(layer.attributes["out_hw"][1])
    lines = _resize_lines(layer) if layer.op == "resize" else _window_lines(layer)

    def read(r0: int, r1: int) -> tuple[int, int]:
        low, high = lines(r0 // out_w, -(-r1 // out_w) - 1)
        return min(max(0, low), in_h - 1) * in_w, min(in_h, max(high, 1)) * in_w

    return read


def _resize_lines(layer: Layer) -> Callable[[int, int], tuple[int, int]]:
    taps = resize_taps(layer.attributes, 0)[0]

    def lines(first: int, last: int) -> tuple[int, int]:
        chosen = taps[first : last + 1]
        return int(chosen.min()), int(chosen.max()) + 1

    return lines


def _window_lines(layer: Layer) -> Callable[[int, int], tuple[int, int]]:
    stride, top = int(layer.attributes["stride"][0]), int(layer.attributes["pads"][0])
    reach = (int(layer.attributes["kernel"][0]) - 1) * int(layer.attributes.get("dilation", (1, 1))[0])
    return lambda first, last: (first * stride - top, last * stride - top + reach + 1)


def resize_taps(
    attributes: Mapping[str, Any], axis: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Input positions [out, taps] that each output position of an axis (0 height, 1 width) reads, and their weights.

    Source: ONNX operator Resize (modes nearest, linear, cubic; its coordinate and rounding modes).
    """
    size, count = int(attributes["in_hw"][axis]), int(attributes["out_hw"][axis])
    scale = float(attributes.get("scales", (count / size,) * 2)[axis])
    at = _coordinates(str(attributes.get("coordinates", "asymmetric")), size, count, scale)
    mode = str(attributes.get("mode", "nearest"))
    if mode == "nearest":
        taps = _ROUND[str(attributes.get("nearest", "floor"))](at)[:, None]
        weights = np.ones_like(taps)
    else:
        low = np.floor(at)
        rest = (at - low)[:, None]
        steps = np.arange(2) if mode == "linear" else np.arange(-1, 3)
        taps = low[:, None] + steps
        distance = np.abs(rest - steps)
        weights = (
            1 - distance if mode == "linear" else _cubic(distance, float(attributes.get("cubic_a", -0.75)))
        )
    return np.clip(taps, 0, size - 1).astype(np.int64), weights.astype(np.float32)


def _coordinates(mode: str, size: int, count: int, scale: float) -> npt.NDArray[np.float64]:
    """Where each output position lies in the input."""
    out = np.arange(count, dtype=np.float64)
    if mode == "align_corners":
        length = scale * size
        return out * ((size - 1) / (length - 1)) if length != 1 else out * 0
    if mode == "asymmetric":
        return out / scale
    if mode == "pytorch_half_pixel" and count == 1:
        return out * 0
    shift = 0.0
    if mode == "half_pixel_symmetric":
        shift = size / 2 * (1 - count / (scale * size))
    return shift + (out + 0.5) / scale - 0.5


def _cubic(distance: npt.NDArray[np.float64], a: float) -> npt.NDArray[np.float64]:
    """Keys' cubic kernel."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))


_ROUND: Mapping[str, Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]] = {
    "floor": np.floor,
    "ceil": np.ceil,
    "round_prefer_floor": lambda at: np.ceil(at - 0.5),
    "round_prefer_ceil": lambda at: np.floor(at + 0.5),
}


def operand_boxes(
    tensors: Mapping[str, Tensor], operand: Operand, band: Band, cols: tuple[int, int] | None = None
) -> Iterator[TensorBox]:
    """Boxes of an operand for a band of *its own* rows and heads; `cols` counts across its parts (default: all)."""
    low, high = cols if cols is not None else (0, operand.cols)
    position = 0
    for part in operand.parts:
        start, stop = max(low, position), min(high, position + part.size)
        if start < stop:
            shape = tensors[part.tensor].shape
            b0, bn = (band.b, 1) if shape[0] > 1 else (0, 1)
            h0, hn = (band.h0, band.h1 - band.h0) if shape[1] > 1 else (0, 1)
            r0, rn = (band.r0, band.r1 - band.r0) if shape[2] > 1 else (0, 1)
            yield TensorBox(
                part.tensor, (b0, h0, r0, part.start + start - position), (bn, hn, rn, stop - start)
            )
        position += part.size


@dataclass(frozen=True, slots=True)
class HeadCols:
    """Where the matrix of one head lies in an operand of an attention product: in the columns, or on the heads axis."""

    in_cols: bool
    width: int

    def band(self, b: int, h0: int, h1: int, r0: int, r1: int) -> Band:
        """The band of rows of heads `[h0, h1)`."""
        return Band(b, 0, 1, r0, r1) if self.in_cols else Band(b, h0, h1, r0, r1)

    def cols(self, h0: int, h1: int) -> tuple[int, int] | None:
        """The columns of heads `[h0, h1)`."""
        return (h0 * self.width, h1 * self.width) if self.in_cols else None


def head_cols(graph: Graph, layer: Layer, operand: Operand) -> HeadCols:
    """How an operand (or the output) of an attention product stores its heads."""
    return head_cols_of(
        graph.tensors[operand.parts[0].tensor].shape, int(layer.attributes["heads"]), operand.cols
    )


def head_cols_of(shape: Shape4, heads: int, cols: int) -> HeadCols:
    """The same from a shape."""
    in_cols = shape[1] == 1 and heads > 1
    return HeadCols(in_cols, cols // heads if in_cols else cols)
