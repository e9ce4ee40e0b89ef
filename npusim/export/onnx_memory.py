"""The buffers of a Program with graph values in them: what a box holds is the latest values written there, cut and joined.

The mirror of `execute.memory`. A buffer is a name for a box over time, so loads and stores are slices and joins, not operators.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import NamedTuple

from npusim.errors import ExportError
from npusim.export.onnx_layers import Block
from npusim.export.onnx_numbers import Constant
from npusim.export.onnx_values import Layouts, Value
from npusim.graph import Shape4
from npusim.program import Program


class _Record(NamedTuple):
    """A box (in tensor coordinates), and a value that holds it from `inner` on."""

    offset: Shape4
    shape: Shape4
    value: Value
    inner: Shape4


class GraphMemory:
    """What every buffer holds.

    Args:
        source: the whole value of an input that nothing writes, by tensor name; None for weights.
    """

    def __init__(self, program: Program, layouts: Layouts, source: Callable[[str], Value | None]) -> None:
        self.program, self.layouts, self._source = program, layouts, source
        self._records: dict[int, list[_Record]] = {}
        self._homes: dict[str, int] = {}
        named = zip(program.tensors.name, program.tensors.kind, strict=True)
        self._weights = {name for name, kind in named if kind == "weight"}
        table, buffers = program.accesses, program.buffers
        self._buffer: list[int] = table.buffer.tolist()
        self._offset: list[Shape4] = [tuple(o) for o in table.offset.tolist()]
        self._shape: list[Shape4] = [tuple(s) for s in table.shape.tolist()]
        self._tensor = [program.tensors.name[t] for t in buffers.tensor.tolist()]
        self._held: list[Shape4] = [tuple(s) for s in buffers.shape.tolist()]

    def block(self, access: int) -> Block:
        """The box of a reading access, with what holds it."""
        buffer = self._buffer[access]
        name, offset, shape = self._tensor[buffer], self._offset[access], self._shape[access]
        return Block(name, offset, self._read(buffer, offset, shape))

    def write(self, access: int, held: Value | Constant) -> None:
        """Put a value into the box of a writing access. Constants stay what they are: a box of their tensor."""
        buffer = self._buffer[access]
        if isinstance(held, Constant):
            return
        self._put(buffer, _Record(self._offset[access], self._shape[access], held, (0, 0, 0, 0)))

    def whole(self, tensor: str, shape: Shape4) -> Value | Constant:
        """A whole tensor: from the buffer that was last written as a whole, or its source.

        Raises:
            ExportError: it never is anywhere as a whole.
        """
        if tensor in self._homes:
            return self._read(self._homes[tensor], (0, 0, 0, 0), shape)
        return self._given(tensor, (0, 0, 0, 0), shape)

    # ---- boxes -------------------------------------------------------------------------------------------------

    def _put(self, buffer: int, new: _Record) -> None:
        """Later values hide earlier ones."""
        kept: list[_Record] = []
        for old in self._records.get(buffer, ()):
            if old.offset == new.offset and old.shape == new.shape:
                continue
            kept += [_within(old, *rest) for rest in _outside(old, new.offset, new.shape)]
        self._records[buffer] = [*kept, new]
        whole = tuple(self._shape_of(buffer))
        if self._held[buffer] == whole:
            self._homes[self._tensor[buffer]] = buffer

    def _shape_of(self, buffer: int) -> Sequence[int]:
        found: list[int] = self.program.tensors.shape[self.program.buffers.tensor[buffer]].tolist()
        return found

    def _read(self, buffer: int, offset: Shape4, shape: Shape4) -> Value | Constant:
        name = self._tensor[buffer]
        records = self._records.get(buffer)
        if records is None:
            return self._given(name, offset, shape)
        met = [_within(r, *box) for r in records if (box := _common(r, offset, shape)) is not None]
        if sum(prod(r.shape) for r in met) != prod(shape):
            raise ExportError(
                f"a command reads elements of '{name}' that no command wrote; the plan is not one of npusim's"
            )
        if len(met) > 1 and sum(prod(r.shape) for r in records) == prod(self._held[buffer]):
            met = [self._collapsed(buffer, records, offset, shape)]
        return self._join(met, offset, shape, name)

    def _given(self, name: str, offset: Shape4, shape: Shape4) -> Value | Constant:
        """A box of what no command writes: an input, or a weight."""
        source = self._source(name)
        if source is not None:
            return self.layouts.slice(source, offset, shape)
        if name not in self._weights:
            raise ExportError(
                f"a command reads '{name}', which no command wrote; the plan is not one of npusim's"
            )
        return Constant(name, offset, shape)

    def _collapsed(self, buffer: int, records: list[_Record], offset: Shape4, shape: Shape4) -> _Record:
        """A buffer that is complete becomes one value, so that its readers share the join."""
        start = (
            min(r.offset[0] for r in records), min(r.offset[1] for r in records),
            min(r.offset[2] for r in records), min(r.offset[3] for r in records),
        )  # fmt: skip
        value = self._join(records, start, self._held[buffer], self._tensor[buffer])
        whole = _Record(start, self._held[buffer], value, (0, 0, 0, 0))
        self._records[buffer] = [whole]
        return _within(whole, offset, shape)

    def _join(self, records: Sequence[_Record], offset: Shape4, shape: Shape4, name: str) -> Value:
        """One value of disjoint records that fill a box, joined along one axis after the other."""
        if len(records) == 1:
            return self.layouts.slice(records[0].value, records[0].inner, records[0].shape)
        for axis in (2, 3, 1, 0):
            cuts = list(_cuts(records, axis, offset[axis], shape[axis]))
            if len(cuts) > 1:
                parts = []
                for low, high in cuts:
                    inside = [r for r in records if low <= r.offset[axis] < high]
                    parts.append(
                        self._join(inside, _at(offset, axis, low), _at(shape, axis, high - low), name)
                    )
                return self.layouts.concat(parts, axis)
        raise ExportError(
            f"the pieces of '{name}' interlock so that no row of joins puts them together; plan it with other tiles"
        )


def _at(shape: Shape4, axis: int, value: int) -> Shape4:
    found = list(shape)
    found[axis] = value
    return (found[0], found[1], found[2], found[3])


def _cuts(records: Sequence[_Record], axis: int, start: int, size: int) -> Iterator[tuple[int, int]]:
    """Ranges of an axis between positions that no record straddles."""
    spans = sorted((r.offset[axis], r.offset[axis] + r.shape[axis]) for r in records)
    low, reach = start, start
    for first, last in spans:
        if first == reach and first > low:
            yield low, first
            low = first
        reach = max(reach, last)
    yield low, start + size


def _common(record: _Record, offset: Shape4, shape: Shape4) -> tuple[Shape4, Shape4] | None:
    """The box that a record shares with another, or None."""
    low = [max(a, b) for a, b in zip(record.offset, offset, strict=True)]
    high = [min(a + n, b + m) for a, n, b, m in zip(record.offset, record.shape, offset, shape, strict=True)]
    if any(a >= b for a, b in zip(low, high, strict=True)):
        return None
    size = [b - a for a, b in zip(low, high, strict=True)]
    return (low[0], low[1], low[2], low[3]), (size[0], size[1], size[2], size[3])


def _within(record: _Record, offset: Shape4, shape: Shape4) -> _Record:
    """The part of a record in a box inside of it."""
    inner = [i + o - r for i, o, r in zip(record.inner, offset, record.offset, strict=True)]
    return _Record(offset, shape, record.value, (inner[0], inner[1], inner[2], inner[3]))


def _outside(record: _Record, offset: Shape4, shape: Shape4) -> Iterator[tuple[Shape4, Shape4]]:
    """The record's box without another: up to two boxes per axis."""
    common = _common(record, offset, shape)
    if common is None:
        yield record.offset, record.shape
        return
    low, size = record.offset, record.shape
    for axis in range(4):
        start, stop = common[0][axis], common[0][axis] + common[1][axis]
        if low[axis] < start:
            yield low, _at(size, axis, start - low[axis])
        if stop < low[axis] + size[axis]:
            yield _at(low, axis, stop), _at(size, axis, low[axis] + size[axis] - stop)
        low, size = _at(low, axis, start), _at(size, axis, stop - start)
