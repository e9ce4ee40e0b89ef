"""Ranges of activations, measured on real weights, and the scales that follow from them.

Each stage of each layer gets a histogram of magnitudes over all calibration inputs. From it follow the largest value (`minmax`),
a quantile (`percentile`), or the clipping point with the least mean squared error (`mse`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from npusim.errors import BadInputError
from npusim.execute.formats import Numbers
from npusim.execute.stages import float_formats, stage_keys
from npusim.execute.untiled import execute_untiled
from npusim.graph import Graph
from npusim.ops import index_tensors
from npusim.plan import Plan
from npusim.precisions import Precisions, tensor_dtypes
from npusim.quantize import CHUNK_ELEMENTS, LIMITS, scale_for
from npusim.scales import read_npz
from npusim.weights import Weights

Array = npt.NDArray[Any]
Method = Literal["auto", "minmax", "percentile", "mse"]
METHODS = ("auto", "minmax", "percentile", "mse")

BINS = 2048
#: Denoising timesteps that seeded calibration inputs are spread over: the four of EdgeFusion's LCM schedule (our assumption).
TIMESTEPS = (999, 759, 499, 259)
#: Share of values that `percentile` keeps inside the range (our assumption, as usual in toolchains).
PERCENTILE = 99.99


@dataclass(slots=True)
class Histogram:
    """Magnitudes seen so far, in `BINS` equal bins up to `top`, which doubles when something larger comes."""

    top: float = 0.0
    largest: float = 0.0
    counts: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(BINS))

    def add(self, values: Array) -> None:
        """Count magnitudes; zeros are left out, since every scale represents them exactly."""
        sizes = np.abs(values).ravel()
        largest = float(sizes.max(initial=0.0))
        if not np.isfinite(largest):
            raise BadInputError(
                "calibration: a value is NaN or infinite; check the weights and the calibration inputs"
            )
        if largest == 0.0:
            return
        self._grow(largest)
        self.largest = max(self.largest, largest)
        scale = np.float32(BINS / self.top)
        for start in range(0, sizes.size, CHUNK_ELEMENTS):
            part = sizes[start : start + CHUNK_ELEMENTS]
            bins = np.minimum((part * scale).astype(np.int32), BINS - 1)
            self.counts += np.bincount(bins, minlength=BINS)
            self.counts[0] -= part.size - np.count_nonzero(part)

    def _grow(self, largest: float) -> None:
        if self.top == 0.0:
            self.top = largest
        while self.top < largest:
            self.counts = np.concatenate([self.counts.reshape(-1, 2).sum(axis=1), np.zeros(BINS // 2)])
            self.top *= 2

    def percentile(self, share: float) -> float:
        """Magnitude under which `share` percent of the nonzero values lie."""
        total = self.counts.sum()
        if not total:
            return 0.0
        position = int(np.searchsorted(np.cumsum(self.counts), total * share / 100))
        return min(self.largest, (position + 1) * self.top / BINS)

    def least_squares(self, dtype: str) -> float:
        """Clipping point with the least mean squared error: rounding noise inside, clipping outside."""
        if not self.largest:
            return 0.0
        centres = (np.arange(BINS) + 0.5) * self.top / BINS
        candidates = self.largest * np.linspace(0.05, 1.0, 96)
        errors = []
        for clip in candidates:
            step = clip / LIMITS[dtype]
            outside = centres > clip
            noise = (self.counts[~outside].sum() * step * step / 12) + (
                self.counts * outside * (centres - clip) ** 2
            ).sum()
            errors.append(noise)
        return float(candidates[int(np.argmin(errors))])


def measure_ranges(
    graph: Graph, weights: Weights, batches: Iterable[Mapping[str, Array]]
) -> dict[str, Histogram]:
    """Histograms of every stage, in FP32, over some inputs.

    Args:
        batches: one set of input arrays per evaluation.

    Raises:
        BadInputError: no inputs, bad inputs, or a value that is not finite.
    """
    found: dict[str, Histogram] = {}
    numbers = Numbers(float_formats(graph), weights)

    def observe(key: str, values: Array) -> None:
        try:
            found.setdefault(key, Histogram()).add(values)
        except BadInputError as error:
            raise BadInputError(f"'{key}': {error}") from error

    for batch in batches:
        execute_untiled(graph, numbers, batch, observe=observe)
    if not found:
        raise BadInputError("calibration: there are no inputs; give at least one set")
    return found


def choose_scales(
    graph: Graph, plan: Plan, ranges: Mapping[str, Histogram], method: Method = "auto"
) -> dict[str, float]:
    """The scale of each stage that a plan stores as integers; see `scales_of`."""
    return scales_of(graph, plan.precisions, ranges, method)


def scales_of(
    graph: Graph, precisions: Precisions, ranges: Mapping[str, Histogram], method: Method = "auto"
) -> dict[str, float]:
    """The scale of each stage that is stored as integers when layers have these precisions.

    `auto` takes the largest value for 16 bits and the least squared error for 8. Probabilities (softmax) always span [0, 1].

    Raises:
        BadInputError: the method is unknown.
    """
    if method not in METHODS:
        raise BadInputError(f"calibration: method '{method}' is unknown; choose {', '.join(METHODS)}")
    dtypes = tensor_dtypes(graph, precisions)
    kinds = {t.name: dtypes[t.name] for t in graph.of_kind("input")}
    certain: set[str] = set()
    for layer in graph.layers:
        kinds.update(dict.fromkeys(stage_keys(layer), dtypes[layer.output]))
        if layer.op == "softmax" and not layer.epilogue:
            certain.add(layer.output)
    found = {}
    for key, dtype in kinds.items():
        if dtype in ("int8", "int16"):
            largest = 1.0 if key in certain else _range(ranges[key], dtype, method)
            found[key] = scale_for(largest, dtype)
    return found


def _range(seen: Histogram, dtype: str, method: Method) -> float:
    chosen = method if method != "auto" else ("mse" if dtype == "int8" else "minmax")
    if chosen == "minmax":
        return seen.largest
    return seen.percentile(PERCENTILE) if chosen == "percentile" else seen.least_squares(dtype)


# ---- calibration inputs --------------------------------------------------------------------------------------------


def seeded_inputs(
    graph: Graph, *, seed: int = 0, timesteps: Sequence[int] = TIMESTEPS
) -> Iterator[dict[str, Array]]:
    """Inputs drawn from a seed, one set per timestep.

    Scalars and rows of timesteps are timesteps, indices are drawn from their table, masks are ones, everything else is
    standard normal (our assumption: latents are scaled so, text embeddings and LCM's guidance embedding nearly are).
    """
    drawn = np.random.default_rng(seed)
    tables = _table_rows(graph)
    for step in timesteps:
        batch: dict[str, Array] = {}
        for window in graph.inputs:
            size = int(np.prod(window.shape, dtype=np.int64))
            if window.parts[0].tensor in tables:
                batch[window.name] = drawn.integers(0, tables[window.parts[0].tensor], window.shape)
            elif "mask" in window.name:
                batch[window.name] = np.ones(window.shape, dtype=np.float32)
            elif size == 1 or ("timestep" in window.name and len(window.shape) <= 1):
                batch[window.name] = np.full(window.shape, step, dtype=np.float32)
            else:
                batch[window.name] = drawn.standard_normal(window.shape).astype(np.float32)
        yield batch


def _table_rows(graph: Graph) -> dict[str, int]:
    """Index tensor -> rows of the table that it points into."""
    indices = index_tensors(graph)
    found: dict[str, int] = {}
    for layer in graph.layers:
        for name in indices & set(layer.reads()):
            if layer.op == "gather":
                rows = graph.tensors[layer.operands[1].parts[0].tensor].shape[2]
                found[name] = min(rows, found.get(name, rows))
    return found


def read_inputs(path: Path, graph: Graph) -> list[dict[str, Array]]:
    """Input sets from an `.npz`: one array per input; a leading axis more than the model's shape holds several sets.

    Raises:
        BadInputError: unreadable, an input missing, or ill-shaped.
    """
    arrays = read_npz(path)
    sets: list[dict[str, Array]] = []
    for window in graph.inputs:
        if window.name not in arrays:
            names = ", ".join(w.name for w in graph.inputs)
            raise BadInputError(f"{path}: holds no array '{window.name}'; the model's inputs are {names}")
        values = arrays[window.name]
        several = values.shape[1:] == window.shape
        if not several and values.shape != window.shape:
            raise BadInputError(
                f"{path}: '{window.name}' has shape {list(values.shape)}; {list(window.shape)} is needed, "
                "or that with one more leading axis for several sets"
            )
        chosen = list(values) if several else [values]
        sets = sets or [{} for _ in chosen]
        if len(chosen) != len(sets):
            raise BadInputError(
                f"{path}: '{window.name}' has {len(chosen)} sets, '{graph.inputs[0].name}' has {len(sets)}; give as many of each"
            )
        for target, one in zip(sets, chosen, strict=True):
            target[window.name] = one
    return sets
