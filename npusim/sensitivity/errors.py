"""The errors of all layers and options together: what an assignment loses, and which layer loses most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite, log10

import numpy as np
import numpy.typing as npt

from npusim.dtypes import PRECISIONS
from npusim.graph import Graph
from npusim.precisions import Precisions
from npusim.sensitivity.walk import BlockErrors


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """Noise at the network's output as a share of the signal's power, the mean over the inputs it was measured on.

    Attributes:
        layers, options: rows and columns of `own`.
        own: [layers, options] of running one layer in an option, everything else in FP32, its inputs being stored in its type already.
        cast: (layer, tensor) -> activation type -> of storing the tensor in that type for this layer. Readers of one tensor share
            its error, so their shares are scaled to add up to what storing it for all of them does.
        second_order: how much faster than the sum of its parts large noise grows, fitted on the noisiest uniform precision:
            share = sum x (1 + second_order x sum).
    """

    layers: tuple[str, ...]
    options: tuple[str, ...]
    own: npt.NDArray[np.float64]
    cast: Mapping[tuple[str, str], Mapping[str, float]]
    second_order: float = 0.0


def sqnr_db(share: float) -> float:
    """Signal to quantization noise ratio of a share of noise."""
    return -10 * log10(share) if share > 0 else inf


def averaged(options: Sequence[str], sets: Sequence[Sequence[BlockErrors]]) -> Sensitivity:
    """The mean over sets of inputs; each has the same blocks."""
    layers = tuple(name for block in sets[0] for name in block.layers)
    own = np.mean([np.concatenate([b.own for b in blocks]) for blocks in sets], axis=0)
    cast: dict[tuple[str, str], dict[str, float]] = {}
    for blocks in sets:
        for block in blocks:
            for key, shares in block.cast.items():
                target = cast.setdefault(key, dict.fromkeys(shares, 0.0))
                for kind, share in shares.items():
                    target[kind] += share / len(sets)
    _share_between_readers(cast, sets)
    return Sensitivity(layers=layers, options=tuple(options), own=own, cast=cast)


def _share_between_readers(
    cast: dict[tuple[str, str], dict[str, float]], sets: Sequence[Sequence[BlockErrors]]
) -> None:
    """Scale what the readers of one tensor lose so that it adds up to what they lose together."""
    readers: dict[str, list[dict[str, float]]] = {}
    for (_, tensor), shares in cast.items():
        readers.setdefault(tensor, []).append(shares)
    together: dict[str, dict[str, float]] = {}
    for blocks in sets:
        for block in blocks:
            for tensor, by_kind in block.stored.items():
                target = together.setdefault(tensor, dict.fromkeys(by_kind, 0.0))
                for kind, share in by_kind.items():
                    target[kind] += share / len(sets)
    for tensor, each in readers.items():
        if len(each) < 2:
            continue
        for kind, share in together.get(tensor, {}).items():
            apart = sum(s[kind] for s in each)
            for s in each if apart > 0 and isfinite(apart) and isfinite(share) else ():
                s[kind] *= share / apart


def cast_edges(graph: Graph) -> dict[tuple[str, str], str | None]:
    """(layer, tensor that it reads) -> the layer that writes it, or None for an input of the model."""
    made = {x.output: x.name for x in graph.layers}
    return {
        (layer.name, t): made.get(t)
        for layer in graph.layers
        for t in dict.fromkeys(layer.reads())
        if graph.tensors[t].kind != "weight"
    }


def predicted_share(graph: Graph, found: Sensitivity, precisions: Precisions) -> float:
    """Noise of an assignment: see `summed_share`, with what large noise adds."""
    total = summed_share(graph, found, precisions)
    return total * (1 + found.second_order * total)


def fitted_second_order(summed: float, measured: float) -> float:
    """`Sensitivity.second_order` of one assignment whose noise was measured; never below 0."""
    return max(0.0, (measured / summed - 1) / summed) if 0 < summed < inf else 0.0


def summed_share(graph: Graph, found: Sensitivity, precisions: Precisions) -> float:
    """Powers add. A cast counts where the writer stores another type, and for inputs of the model."""
    row = {name: i for i, name in enumerate(found.layers)}
    column = {name: i for i, name in enumerate(found.options)}
    total = sum(float(found.own[row[n], column[precisions[n]]]) for n in found.layers)
    for (layer, tensor), writer in cast_edges(graph).items():
        kind = PRECISIONS[precisions[layer]].activation
        if (layer, tensor) in found.cast and (
            writer is None or PRECISIONS[precisions[writer]].activation != kind
        ):
            total += found.cast[layer, tensor].get(kind, 0.0)
    return total


def ranked(found: Sensitivity, option: str) -> list[tuple[str, float]]:
    """(layer, share) by what running it alone in an option loses, its inputs' encoding included; the worst first."""
    column = found.options.index(option)
    kind = PRECISIONS[option].activation
    extra: dict[str, float] = {}
    for (layer, _), shares in found.cast.items():
        extra[layer] = extra.get(layer, 0.0) + shares.get(kind, 0.0)
    rows = [(n, float(found.own[i, column]) + extra.get(n, 0.0)) for i, n in enumerate(found.layers)]
    return sorted(rows, key=lambda r: -(r[1] if isfinite(r[1]) else inf))
