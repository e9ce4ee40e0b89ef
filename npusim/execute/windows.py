"""The model's input and output arrays, into and out of stored tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from npusim.errors import BadInputError
from npusim.execute.blocks import Array
from npusim.execute.stages import Formats
from npusim.graph import Graph, Window
from npusim.quantize import encode, require_finite


def pack(graph: Graph, inputs: Mapping[str, Array], formats: Formats) -> dict[str, Array]:
    """Stored tensors of the model's inputs.

    Raises:
        BadInputError: an input is missing, unknown, ill-shaped or not finite.
    """
    names = [w.name for w in graph.inputs]
    unknown = sorted(set(inputs) - set(names))
    if unknown:
        raise BadInputError(
            f"inputs: '{unknown[0]}' is no input of '{graph.name}'; its inputs are {', '.join(names)}"
        )
    found = {}
    for window in graph.inputs:
        if window.name not in inputs:
            raise BadInputError(
                f"inputs: '{window.name}' is missing; give an array of shape {list(window.shape)}"
            )
        values = np.asarray(inputs[window.name])
        if values.shape != window.shape:
            raise BadInputError(
                f"inputs: '{window.name}' has shape {list(values.shape)}; the plan is for {list(window.shape)}"
            )
        if values.dtype.kind not in "fiub":
            raise BadInputError(f"inputs: '{window.name}' holds {values.dtype}; numbers are needed")
        require_finite(values, f"input '{window.name}'")
        tensor = window.parts[0].tensor
        found[tensor] = encode(
            _to_storage(values.astype(np.float64), window).reshape(graph.tensors[tensor].shape),
            formats[tensor],
        )
    return found


def _to_storage(values: Array, window: Window) -> Array:
    order = [i for dim in window.dims for i in dim]
    split = values.reshape([window.atoms[i][1] for i in order])
    return split.transpose([order.index(i) for i in range(len(order))])


def unpack(graph: Graph, whole: Callable[[str], Array]) -> dict[str, Array]:
    """The model's outputs, from whole tensors in storage order (`whole(name)` gives [b, h, r, c] FP32)."""
    found = {}
    for window in graph.outputs:
        parts = [whole(p.tensor)[..., p.start : p.start + p.size] for p in window.parts]
        joined = np.concatenate(parts, axis=3) if len(parts) > 1 else parts[0]
        atoms = joined.reshape([size for _, size in window.atoms])
        order = [i for dim in window.dims for i in dim]
        found[window.name] = np.ascontiguousarray(atoms.transpose(order)).reshape(window.shape)
    return found
