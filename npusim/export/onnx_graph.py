"""Writes an ONNX graph node by node: constants inline or streamed into one file beside the model, byte for byte the same each time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

Array = npt.NDArray[Any]

#: Constants up to this many bytes always stay in the model itself: shapes, scales, axes.
INLINE_BYTES = 1024
#: External data starts at multiples of this, so that readers can map it into memory.
ALIGNMENT_BYTES = 4096
CONTRIB = "com.microsoft"
#: Newest IR that the oldest runtime reading an operator set accepts. Source: onnx's table of releases.
_IR = {17: 8, 18: 8, 19: 9, 21: 10}


class GraphWriter:
    """An ONNX graph being written.

    Args:
        opset: version of the standard operator set.
        data: file for large constants, named as the model will refer to it; without one they stay in the model.

    Attributes:
        scope: prefix of the names of nodes, e.g. `conv_in#tile3`.
    """

    def __init__(self, *, opset: int, data: Path | None = None) -> None:
        self.opset, self.scope = opset, ""
        self._data_path = data
        self._stack = ExitStack()
        self._data: BinaryIO | None = None
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._shared: dict[tuple[Any, ...], str] = {}
        self._taken: dict[str, int] = {}

    # ---- nodes -------------------------------------------------------------------------------------------------

    def node(
        self, op: str, inputs: Sequence[str], *, domain: str = "", output: str = "", shared: bool = False, **attributes: Any
    ) -> str:  # fmt: skip
        """Append a node with one output; returns the output's name.

        Args:
            output: what to call the output (default: as the node).
            shared: whether an equal node that was written before may stand for this one.
        """
        key = (op, tuple(inputs), repr(sorted(attributes.items())))
        if shared and key in self._shared:
            return self._shared[key]
        name = self.unique(f"{self.scope}/{op}" if self.scope else op)
        result = self.unique(output) if output else name
        self._nodes.append(
            helper.make_node(op, list(inputs), [result], name=name, domain=domain, **attributes)
        )
        if shared:
            self._shared[key] = result
        return result

    def unique(self, name: str) -> str:
        """`name`, or with the next free number where it is taken."""
        count = self._taken.get(name, 0) + 1
        self._taken[name] = count
        return name if count == 1 else self.unique(f"{name}_{count}")

    # ---- constants ---------------------------------------------------------------------------------------------

    def has_constant(self, name: str) -> bool:
        """Whether a constant of this name was written."""
        return name in self._constants

    def constant(self, name: str, values: Array) -> str:
        """A named constant, written once; the caller sees to it that a name always means the same values."""
        if name not in self._constants:
            self._constants[name] = self._tensor(name, np.asarray(values, order="C"))
        return name

    def ints(self, *values: int) -> str:
        """A list of integers: a shape, axes, limits of a slice."""
        return self.constant("ints:" + ",".join(map(str, values)), np.asarray(values, dtype=np.int64))

    def scalar(self, value: float, dtype: str = "float32") -> str:
        """One number."""
        number = np.asarray(value, dtype=dtype)
        return self.constant(f"{dtype}:{number.item()!r}", number)

    def _tensor(self, name: str, values: Array) -> onnx.TensorProto:
        kind = helper.np_dtype_to_tensor_dtype(values.dtype)
        tensor = onnx.TensorProto(name=name, data_type=kind, dims=values.shape)
        if self._data_path is None or values.nbytes <= INLINE_BYTES:
            tensor.raw_data = values.tobytes()
            return tensor
        if self._data is None:
            self._data = self._stack.enter_context(self._data_path.open("wb"))
        self._data.write(b"\0" * (-self._data.tell() % ALIGNMENT_BYTES))
        fields = {"location": self._data_path.name, "offset": self._data.tell(), "length": values.nbytes}
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for field, value in fields.items():
            tensor.external_data.add(key=field, value=str(value))
        self._data.write(values.data)
        return tensor

    # ---- ends --------------------------------------------------------------------------------------------------

    def input(self, name: str, dtype: int, shape: Sequence[int]) -> str:
        """A run-time input."""
        self._inputs.append(helper.make_tensor_value_info(self.unique(name), dtype, list(shape)))
        return name

    def output(self, value: str, name: str, dtype: int, shape: Sequence[int]) -> None:
        """Make a value an output of the model, under this name (which no other value has)."""
        ends = {o.name for o in self._outputs}
        producer = next((n for n in reversed(self._nodes) if n.output[0] == value), None)
        if producer is None or value in ends:
            self._nodes.append(
                helper.make_node("Identity", [value], [name], name=self.unique(f"{name}/Identity"))
            )
        else:
            for node in self._nodes:
                renamed = [name if i == value else i for i in node.input]
                del node.input[:]
                node.input.extend(renamed)
            producer.output[0] = name
        self._outputs.append(helper.make_tensor_value_info(name, dtype, list(shape)))

    def save(self, path: Path, name: str, metadata: Mapping[str, str]) -> None:
        """Write the model; the data file is complete afterwards."""
        graph = helper.make_graph(
            self._nodes, name, self._inputs, self._outputs, list(self._constants.values())
        )
        imports = [helper.make_opsetid("", self.opset)]
        if any(node.domain == CONTRIB for node in self._nodes):
            imports.append(helper.make_opsetid(CONTRIB, 1))
        model = helper.make_model(
            graph, opset_imports=imports, producer_name="npusim", ir_version=_IR[self.opset]
        )
        helper.set_model_props(model, dict(metadata))
        self._stack.close()
        path.write_bytes(model.SerializeToString(deterministic=True))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *reason: object) -> None:
        self._stack.close()
