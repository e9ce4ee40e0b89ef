"""Real weights: the initializers of an ONNX file, inline or in files beside it, memory-mapped until a layer needs them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from npusim.errors import ModelError
from npusim.graph import Graph, Normalization, Packing, Tensor
from npusim.onnx_file import StoredData, read_initializers

Array = npt.NDArray[Any]


class Weights:
    """The data of a graph's weight tensors, laid out as the graph stores them."""

    def __init__(self, graph: Graph, stored: Mapping[str, StoredData], where: str) -> None:
        self._graph, self._stored, self.where = graph, stored, where

    def __getitem__(self, name: str) -> Array:
        """FP32 (or integer) data of a weight tensor, [batch, heads, rows, cols].

        Raises:
            ModelError: the file does not hold it, or with another shape.
        """
        tensor = self._graph.tensors[name]
        if tensor.normalization is None:
            return packed(self._dequantized(tensor), tensor, self.where)
        return packed(self._normalized(tensor, tensor.normalization), tensor, self.where)

    def _data(self, source: str) -> Array:
        stored = self._stored.get(source)
        if stored is not None:
            return _mapped(stored, source, self.where)
        if source in self._graph.constants:
            return np.asarray(self._graph.constants[source])
        raise ModelError(
            f"{self.where}: holds no data for weight '{source}'; give the model with its weights"
        )

    def _dequantized(self, tensor: Tensor) -> Array:
        data = self._data(tensor.source)
        if tensor.packing is None or tensor.packing.dequantize is None:
            return data
        scale_name, zero_name, axis = tensor.packing.dequantize
        scale = self._data(scale_name).astype(np.float32)
        zero = self._data(zero_name).astype(np.float32) if zero_name else np.zeros_like(scale)
        if scale.ndim == 1 and data.ndim:
            along = tuple(-1 if d == axis % data.ndim else 1 for d in range(data.ndim))
            scale, zero = scale.reshape(along), zero.reshape(along)
        return np.asarray((data.astype(np.float32) - zero) * scale)

    def _normalized(self, tensor: Tensor, norm: Normalization) -> Array:
        """A constant with a batch norm folded into it, computed in FP64."""
        scale, shift, mean, variance = (
            self._data(n).astype(np.float64) for n in (norm.scale, norm.shift, norm.mean, norm.variance)
        )
        factor = scale / np.sqrt(variance + norm.epsilon)
        if norm.part == "factor":
            return np.asarray(factor)
        if norm.part == "weight":
            weight = self._dequantized(tensor).astype(np.float64)
            return np.asarray(weight * factor.reshape(-1, *(1,) * (weight.ndim - 1)))
        bias = self._data(tensor.source).astype(np.float64) if tensor.source else 0.0
        return np.asarray((bias - mean) * factor + shift)


def open_weights(path: Path, graph: Graph) -> Weights:
    """The weights of `graph` in the ONNX file at `path`, checked for presence and shape; data is read later.

    Raises:
        ModelError: no such file, not ONNX, a weight missing, ill-shaped, of an unsupported type, or outside the model's folder.
    """
    stored = read_initializers(path)
    for tensor in graph.of_kind("weight"):
        if not tensor.source:
            continue
        found = stored.get(tensor.source)
        if found is None and tensor.source not in graph.constants:
            raise ModelError(
                f"{path}: holds no data for weight '{tensor.source}'; give the model with its weights"
            )
        if found is not None and found.shape != tensor.source_shape:
            raise ModelError(
                f"{path}: weight '{tensor.source}' has shape {list(found.shape)}, the plan's model has "
                f"{list(tensor.source_shape)}; give the model that was profiled"
            )
    return Weights(graph, stored, str(path))


def packed(data: Array, tensor: Tensor, where: str) -> Array:
    """An ONNX constant as its tensor stores it; floating-point data as FP32.

    Raises:
        ModelError: the data does not have the shape that the graph knows.
    """
    packing = tensor.packing or Packing(reshape=tensor.shape, permutation=(0, 1, 2, 3), expand=tensor.shape)
    try:
        for step, numbers in packing.steps:
            data = _STEPS[step](data, numbers)
        values = np.broadcast_to(data.reshape(packing.reshape).transpose(packing.permutation), packing.expand)
    except ValueError as error:
        raise ModelError(
            f"{where}: weight '{tensor.source}' has shape {list(data.shape)}, {list(packing.reshape)} is needed; "
            "give the model that was profiled"
        ) from error
    result = values.reshape(tensor.shape)
    return result if result.dtype.kind in "iu" else np.asarray(result, dtype=np.float32)


#: What a model does to a constant before anything reads it (`Packing.steps`).
_STEPS: Mapping[str, Callable[[Array, tuple[int, ...]], Array]] = {
    "reshape": lambda data, sizes: data.reshape(sizes),
    "transpose": lambda data, order: data.transpose(order),
    "take": lambda data, n: np.take(data, n[1:], axis=n[0]),
    "slice": lambda data, n: data[(slice(None),) * n[0] + (slice(*n[1:]),)],
}


def _mapped(stored: StoredData, name: str, where: str) -> Array:
    """The data itself; external data as a read-only memory map."""
    if stored.data is not None:
        return stored.data
    assert stored.path is not None
    count = int(np.prod(stored.shape, dtype=np.int64))
    need = count * np.dtype(stored.dtype).itemsize
    try:
        size = stored.path.stat().st_size
        if stored.offset + need > size:
            raise ModelError(
                f"{where}: weight '{name}' needs bytes {stored.offset} to {stored.offset + need} of {stored.path.name}, "
                f"which has {size}; the file is truncated; export the model again"
            )
        if not count:
            return np.zeros(stored.shape, dtype=stored.dtype)
        return np.memmap(stored.path, dtype=stored.dtype, mode="r", offset=stored.offset, shape=stored.shape)
    except OSError as error:
        raise ModelError(
            f"{where}: the weights file {stored.path.name} cannot be read ({error.strerror}); put it beside the model"
        ) from error
