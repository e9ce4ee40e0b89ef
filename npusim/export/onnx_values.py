"""Boxes of stored tensors as values of an ONNX graph: seen as rows or as images, sliced, joined. Layout only, no arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from npusim.export.onnx_graph import GraphWriter
from npusim.graph import Shape4, Window

Offset4 = Shape4


@dataclass(frozen=True, slots=True)
class Value:
    """A box of a stored tensor, [batch, heads, rows, cols], as an ONNX value.

    Attributes:
        name: the ONNX value.
        shape: of the box.
        width: 0: the ONNX value has the shape of the box. Else it is an image [batch, cols, rows / width, width].
    """

    name: str
    shape: Shape4
    width: int = 0


class Layouts:
    """Turns values into the form that an operator wants. Equal moves of equal values are written once."""

    def __init__(self, writer: GraphWriter) -> None:
        self.writer = writer

    def rows(self, value: Value) -> Value:
        """The value in the shape of its box."""
        if not value.width:
            return value
        b, _, r, c = value.shape
        turned = self._move("Transpose", value.name, perm=[0, 2, 3, 1])
        return Value(self.reshape(turned, (b, 1, r, c)), value.shape)

    def image(self, value: Value, width: int) -> Value:
        """The value as images of this width."""
        b, _, r, c = value.shape
        if value.width == width:
            return value
        if value.width:
            return Value(self.reshape(value.name, (b, c, r // width, width)), value.shape, width)
        apart = self.reshape(value.name, (b, r // width, width, c))
        return Value(self._move("Transpose", apart, perm=[0, 3, 1, 2]), value.shape, width)

    def like(self, value: Value, other: Value) -> Value:
        """The value in the form of another one that it meets element by element (or broadcast)."""
        if not other.width:
            return self.rows(value)
        return self.image(value, other.width if value.shape[2] > 1 else 1)

    def heads(self, value: Value, heads: int) -> Value:
        """Heads on their own axis: [b, 1, r, heads x w] becomes [b, heads, r, w]."""
        value = self.rows(value)
        b, own, r, c = value.shape
        if own == heads:
            return value
        apart = self.reshape(value.name, (b, r, heads, c // heads))
        return Value(self._move("Transpose", apart, perm=[0, 2, 1, 3]), (b, heads, r, c // heads))

    def merged(self, value: Value, shape: Shape4) -> Value:
        """[b, heads, r, w] as an output stores it: as it is, or with the heads side by side in the columns."""
        if value.shape == shape:
            return value
        turned = self._move("Transpose", value.name, perm=[0, 2, 1, 3])
        return Value(self.reshape(turned, shape), shape)

    def slice(self, value: Value, offset: Offset4, shape: Shape4) -> Value:
        """A box of the value; `offset` counts from the value's own first element."""
        if shape == value.shape:
            return value
        width = value.width
        if width and (offset[2] % width or shape[2] % width):
            return self.slice(self.rows(value), offset, shape)
        places = {0: (0, 1), 3: (1, 1), 2: (2, width)} if width else {axis: (axis, 1) for axis in range(4)}
        cut = [
            (place, offset[axis] // unit, (offset[axis] + shape[axis]) // unit)
            for axis, (place, unit) in places.items()
            if shape[axis] != value.shape[axis]
        ]
        axes, starts, ends = (self.writer.ints(*column) for column in zip(*cut, strict=True))
        found = self.writer.node("Slice", [value.name, starts, ends, axes], shared=True)
        return Value(found, shape, width)

    def concat(self, values: Sequence[Value], axis: int) -> Value:
        """Boxes joined along a storage axis."""
        if len(values) == 1:
            return values[0]
        width = values[0].width
        if not all(v.width == width for v in values) or (width and axis == 1):
            values, width = [self.rows(v) for v in values], 0
        shape = list(values[0].shape)
        shape[axis] = sum(v.shape[axis] for v in values)
        place = {0: 0, 3: 1, 2: 2}[axis] if width else axis
        found = self.writer.node("Concat", [v.name for v in values], shared=True, axis=place)
        return Value(found, (shape[0], shape[1], shape[2], shape[3]), width)

    def columns(self, values: Sequence[Value]) -> Value:
        """Parts of an operand side by side; a part with one row stands beside every row."""
        rows = max(v.shape[2] for v in values)
        return self.concat([self._repeated(v, rows) for v in values], 3)

    def _repeated(self, value: Value, rows: int) -> Value:
        if value.shape[2] == rows:
            return value
        b, h, _, c = value.shape
        found = self.writer.node(
            "Expand", [self.rows(value).name, self.writer.ints(b, h, rows, c)], shared=True
        )
        return Value(found, (b, h, rows, c))

    def reshape(self, name: str, shape: Sequence[int]) -> str:
        """An ONNX value in another shape."""
        return self._move("Reshape", name, self.writer.ints(*shape))

    def _move(self, op: str, *inputs: str, **attributes: Any) -> str:
        return self.writer.node(op, inputs, shared=True, **attributes)

    # ---- the model's inputs and outputs ------------------------------------------------------------------------

    def pack(self, name: str, window: Window, shape: Shape4) -> Value:
        """A model input as a stored tensor of this shape."""
        width = image_width(window)
        if width:
            image = (shape[0], shape[3], shape[2] // width, width)
            return Value(name if window.shape == image else self.reshape(name, image), shape, width)
        order = [i for dim in window.dims for i in dim]
        back = [order.index(i) for i in range(len(order))]
        if back != sorted(back):
            name = self.reshape(name, [window.atoms[i][1] for i in order])
            name = self._move("Transpose", name, perm=back)
        elif window.shape == shape:
            return Value(name, shape)
        return Value(self.reshape(name, shape), shape)

    def unpack(self, value: Value, window: Window) -> str:
        """A model output from its stored tensor."""
        width = image_width(window)
        if width:
            image = self.image(value, width)
            same = window.shape == (image.shape[0], image.shape[3], image.shape[2] // width, width)
            return image.name if same else self.reshape(image.name, window.shape)
        value = self.rows(value)
        order = [i for dim in window.dims for i in dim]
        if order == sorted(order):
            return value.name if value.shape == window.shape else self.reshape(value.name, window.shape)
        apart = self.reshape(value.name, [size for _, size in window.atoms])
        return self.reshape(self._move("Transpose", apart, perm=order), window.shape)


def image_width(window: Window) -> int:
    """Width of an input or output that is stored as images, channels last; 0 where it is stored in another way."""
    if len(window.shape) not in (3, 4):
        return 0
    batch, channels, *spatial = window.shape
    stored = [(0, batch), *((2, size) for size in spatial), (3, channels)]
    if list(window.atoms) != [atom for atom in stored if atom[1] != 1]:
        return 0
    numbers = iter(range(len(stored)))
    first, *rows, last = [(next(numbers),) if size != 1 else () for _, size in stored]
    if (first, last, *rows) != window.dims:
        return 0
    return int(prod(spatial[1:]))
