"""One set of inputs through the network, block by block: the error that each option of each layer makes, and what becomes of it.

Each layer is run in each option on its FP32 inputs, encoded (the executor's own kernels). Its own error is what then differs from
the layer in FP32 on the same encoded inputs; what encoding the inputs does is measured apart, operand by operand, since it is paid
only where a neighbour has another type. Errors are carried to the end of the block by running it, and from there to the output by one
run for the sum of the block's errors with random signs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from npusim.dtypes import PRECISIONS
from npusim.execute.formats import Numbers
from npusim.execute.untiled import Untiled
from npusim.execute.windows import pack, unpack
from npusim.execute.workers import INLINE, Workers
from npusim.graph import Graph, Layer
from npusim.ops import index_tensors, macs_of
from npusim.quantize import AccumulatorOverflowError, decode, encode
from npusim.sensitivity.subject import Subject, noise_share

Array = npt.NDArray[Any]
Values = dict[str, Array]

#: Elements whose squares are summed at a time.
_CHUNK = 1 << 18
#: Networks of at most this many multiply-accumulates have every layer's error carried to the output by a run of its own.
SMALL_MACS = 2_000_000_000
#: Options whose errors are carried to the output.
PROBES = ("w8a8", "w8a16", "fp16")
#: Of these, the one that stands for all from the end of a block of several layers on.
_MIDDLE = "w8a16"


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockErrors:
    """What was found in one block on one set of inputs; errors as shares of the output's power.

    Attributes:
        own: [layers, options].
        cast: (layer, tensor) -> activation type -> share when the tensor is encoded for this layer alone.
        stored: tensor that a layer writes -> activation type -> share when it is encoded for all its readers.
    """

    layers: tuple[str, ...]
    own: npt.NDArray[np.float64]
    cast: Mapping[tuple[str, str], Mapping[str, float]]
    stored: Mapping[str, Mapping[str, float]]


def probe_of(option: str, probes: Sequence[str] = PROBES) -> str:
    """The option whose error stands for this one's on its way to the output: the one of the same activation type, or the finest."""
    return next((p for p in probes if PRECISIONS[p].activation == PRECISIONS[option].activation), probes[-1])


def blocks(graph: Graph) -> list[range]:
    """Layers in blocks: one each in a small network; else about as many blocks as layers per block, cut where little is alive."""
    count = len(graph.layers)
    if sum(macs_of(graph, x) for x in graph.layers) <= SMALL_MACS:
        return [range(i, i + 1) for i in range(count)]
    wanted = round(count**0.5)
    alive = _alive_bytes(graph)
    cuts = [0]
    for number in range(1, wanted):
        middle, reach = count * number // wanted, count // wanted // 3
        near = [i for i in range(middle - reach, middle + reach + 1) if cuts[-1] < i < count]
        cuts.append(min(near, key=lambda i: (alive[i], i)))
    return [range(a, b) for a, b in zip(cuts, [*cuts[1:], count], strict=True)]


def _alive_bytes(graph: Graph) -> list[int]:
    """Elements of tensors that are made before layer i and read from it on."""
    found = [0] * (len(graph.layers) + 1)
    readers = graph.consumers()
    for index, layer in enumerate(graph.layers):
        last = max(readers[layer.output], default=index)
        for i in range(index + 1, last + 1):
            found[i] += graph.tensors[layer.output].elements
    return found


class Walk:
    """One set of inputs on its way through the network in FP32."""

    def __init__(
        self, subject: Subject, number: int, *, probes: Sequence[str] = PROBES, pool: Workers = INLINE
    ) -> None:
        self.subject, self.graph, self.pool = subject, subject.graph, pool
        self.probes = [p for p in probes if p in subject.options] or [subject.options[-1]]
        self.values: Values = pack(self.graph, subject.inputs[number], subject.exact.formats)
        self._number = number
        self._indices = index_tensors(self.graph)
        self._reference: dict[str, Array] | None = None

    def skip(self, block: range) -> None:
        """Go through a block without measuring anything."""
        self._advance(block, self._run(self._layers(block), self.values))

    def measure(self, block: range) -> BlockErrors:
        """Go through a block and measure its layers."""
        if self._reference is None:
            self._reference = self._outputs(block.start, self.values)
        layers = self._layers(block)
        inside = self._run(layers, self.values)
        known = {**self.values, **inside}
        carried = _Carried(sorted(set(inside) & self._read_after(block)), known, self.probes)
        local, signs = [], np.random.default_rng((self._number, block.start))
        for index, layer in enumerate(layers):
            found = self._local(layer, known)
            for probe, error in found.probes.items():
                arrived = self._arrived(layers[index + 1 :], layer.output, error, known, carried.ends)
                carried.add(probe, _power(error), arrived, signs.choice((-1.0, 1.0)))
            found.probes.clear()  # they are large
            local.append(found)
        to_output = self._to_output(block, known, carried.total)
        self._advance(block, inside)
        return _shares(self.subject.options, layers, local, carried.gains(to_output), self.probes)

    def _to_output(self, block: range, known: Values, totals: Mapping[str, Values]) -> dict[str, float]:
        """For each probe: share at the output per power at the block's end.

        A single layer's errors keep their direction, so each probe has a run of its own. The sum over several layers is noise to what
        follows, so one run stands for all probes.
        """
        probes = self.probes if len(block) == 1 else [_MIDDLE if _MIDDLE in self.probes else self.probes[0]]
        found = {}
        for probe in probes:
            power = sum(_power(e) for e in totals[probe].values())
            found[probe] = self._share(block, known, totals[probe]) / power if power else 0.0
        return {p: found.get(p, found[probes[0]]) for p in self.probes}

    # ---- runs ------------------------------------------------------------------------------------------------------

    def _layers(self, block: range) -> Sequence[Layer]:
        return self.graph.layers[block.start : block.stop]

    def _advance(self, block: range, made: Values) -> None:
        """Keep what later layers or the model's user read."""
        needed = {t for x in self.graph.layers[block.stop :] for t in x.reads()}
        needed |= {p.tensor for w in self.graph.outputs for p in w.parts}
        self.values = {n: v for n, v in {**self.values, **made}.items() if n in needed}

    def _run(self, layers: Sequence[Layer], values: Values) -> Values:
        """FP32 outputs of some layers."""
        made: Values = {}
        run = Untiled.resumed(self.graph, self.subject.exact, values, layers, self.pool)
        for layer in layers:
            run.layer(layer)
            made[layer.output] = run.values[layer.output]
        return made

    def _outputs(self, start: int, values: Values) -> dict[str, Array]:
        """The model's outputs, from the values before a layer on."""
        rest = self.graph.layers[start:]
        run = Untiled.resumed(self.graph, self.subject.exact, values, rest, self.pool)
        for layer in rest:
            run.layer(layer)
        return unpack(self.graph, run.decoded)

    def _single(self, layer: Layer, numbers: Numbers, stored: Values) -> Array:
        """One layer in some numbers, decoded."""
        run = Untiled.resumed(self.graph, numbers, stored, (layer,), self.pool)
        run.layer(layer)
        return decode(run.values[layer.output], numbers.formats[layer.output])

    # ---- the error of one layer ------------------------------------------------------------------------------------

    def _local(self, layer: Layer, known: Values) -> _Local:
        """Errors at a layer's output: of each option on encoded inputs, and of encoding each input."""
        read = [t for t in dict.fromkeys(layer.reads()) if self.graph.tensors[t].kind != "weight"]
        exact = {t: known[t] for t in read}
        cast: dict[tuple[str, str], dict[str, float]] = {}
        own, probes, output = list[float](), dict[str, Array](), dict[str, float]()
        references: dict[str, Array] = {}
        for option in self.subject.options:
            numbers, kind = self.subject.uniform[option], PRECISIONS[option].activation
            forms = {t: numbers.formats[t] for t in read}
            stored = {t: encode(exact[t], forms[t]) for t in read}
            if kind not in references:
                rounded = {t: decode(stored[t], forms[t]) for t in read}
                rounded.update({t: stored[t] for t in read if t in self._indices})
                references[kind] = self._single(layer, self.subject.exact, rounded)
                form, whole = numbers.formats[layer.output], known[layer.output]
                output[kind] = _power(decode(encode(whole, form), form) - whole)
                for tensor, power in self._casts(layer, exact, rounded, references[kind], known).items():
                    cast.setdefault((layer.name, tensor), {})[kind] = power
            error = self._own(layer, numbers, stored, references[kind])
            own.append(_power(error))
            if option in self.probes:
                probes[option] = error + (references[kind] - known[layer.output])
        return _Local(own, cast, output, probes)

    def _own(self, layer: Layer, numbers: Numbers, stored: Values, reference: Array) -> Array:
        """Output of a layer in an option minus FP32 on the same stored inputs; infinite where its sums do not fit."""
        try:
            return self._single(layer, numbers, stored) - reference
        except AccumulatorOverflowError:
            return np.full(reference.shape, np.inf, dtype=np.float32)

    def _casts(
        self, layer: Layer, exact: Values, rounded: Values, reference: Array, known: Values
    ) -> dict[str, float]:
        """Power at the layer's output of encoding each of its inputs alone."""
        apart = [t for t in exact if t not in self._indices]
        if len(apart) == 1:
            return {apart[0]: _power(reference - known[layer.output])}
        return {
            t: _power(self._single(layer, self.subject.exact, {**exact, t: rounded[t]}) - known[layer.output])
            for t in apart
        }

    # ---- from a layer to the output --------------------------------------------------------------------------------

    def _read_after(self, block: range) -> set[str]:
        later = {t for x in self.graph.layers[block.stop :] for t in x.reads()}
        return later | {p.tensor for w in self.graph.outputs for p in w.parts}

    def _arrived(
        self, rest: Sequence[Layer], tensor: str, error: Array, known: Values, ends: Sequence[str]
    ) -> dict[str, Array]:
        """What an error in a tensor becomes at the end of the block: only layers that depend on it are run again."""
        if not np.isfinite(error).all():
            return {}
        changed: Values = {tensor: np.asarray(known[tensor] + error, dtype=np.float32)}
        for layer in rest:
            if any(t in changed for t in layer.reads()):
                made = self._run([layer], {**{t: known[t] for t in layer.reads() if t in known}, **changed})
                changed.update(made)
        return {t: changed[t] - known[t] for t in ends if t in changed}

    def _share(self, block: range, known: Values, errors: Mapping[str, Array]) -> float:
        """Noise at the output when these errors are added at the end of a block."""
        assert self._reference is not None
        if not any(_power(e) for e in errors.values()):
            return 0.0
        values = {**known, **{t: np.asarray(known[t] + e, dtype=np.float32) for t, e in errors.items()}}
        return noise_share(self._outputs(block.stop, values), self._reference)


@dataclass(frozen=True, slots=True)
class _Local:
    """Powers at a layer's output, and the errors that are carried on."""

    own: list[float]
    cast: dict[tuple[str, str], dict[str, float]]
    output: dict[str, float]
    probes: dict[str, Array]


class _Carried:
    """Errors of a block's layers at its end: their powers, and their sums with random signs."""

    def __init__(self, ends: Sequence[str], known: Values, probes: Sequence[str]) -> None:
        self.ends = ends
        self.total = {p: {t: np.zeros(known[t].shape, np.float32) for t in ends} for p in probes}
        self._powers: dict[str, list[tuple[float, float]]] = {p: [] for p in probes}

    def add(self, probe: str, power: float, arrived: Mapping[str, Array], sign: float) -> None:
        """One layer's error: its power where it was made, and what has become of it."""
        for tensor, error in arrived.items():
            self.total[probe][tensor] += np.float32(sign) * error
        self._powers[probe].append((power, sum(_power(e) for e in arrived.values())))

    def gains(self, to_output: Mapping[str, float]) -> list[dict[str, float]]:
        """For each layer and probe: share at the output per power at the layer's output."""
        found: list[dict[str, float]] = []
        for probe, powers in self._powers.items():
            found = found or [{} for _ in powers]
            for gain, (made, left) in zip(found, powers, strict=True):
                gain[probe] = to_output[probe] * left / made if made and np.isfinite(made) else 0.0
        return found


def _power(error: Array) -> float:
    """Sum of squares; infinite where a value is no number."""
    flat = error.ravel()
    power = 0.0
    for start in range(0, flat.size, _CHUNK):
        part = flat[start : start + _CHUNK].astype(np.float64)
        power += float(part @ part)
    return power if np.isfinite(power) else float("inf")


def _shares(
    options: Sequence[str], layers: Sequence[Layer], local: Sequence[_Local], gains: Sequence[Mapping[str, float]], probes: Sequence[str]
) -> BlockErrors:  # fmt: skip
    """Errors at layers' outputs times what becomes of them."""
    own = np.zeros((len(layers), len(options)))
    cast: dict[tuple[str, str], dict[str, float]] = {}
    stored: dict[str, dict[str, float]] = {}
    for row, (found, gain) in enumerate(zip(local, gains, strict=True)):
        by_kind = {PRECISIONS[o].activation: gain[probe_of(o, probes)] for o in reversed(options)}
        stored[layers[row].output] = {k: _carried_share(p, by_kind[k]) for k, p in found.output.items()}
        own[row] = [
            _carried_share(p, gain[probe_of(o, probes)]) for p, o in zip(found.own, options, strict=True)
        ]
        for key, powers in found.cast.items():
            cast[key] = {kind: _carried_share(power, by_kind[kind]) for kind, power in powers.items()}
    return BlockErrors(layers=tuple(x.name for x in layers), own=own, cast=cast, stored=stored)


def _carried_share(power: float, gain: float) -> float:
    """Power at a layer's output as a share at the network's; an option that cannot be computed stays infinite."""
    return power * gain if np.isfinite(power) else float("inf")
