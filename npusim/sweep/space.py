"""The points of a sweep: each a network, a described NPU and planning options, with a key that says what it is made of."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import prod
from pathlib import Path

from npusim import api
from npusim.errors import BadInputError, HardwareError, NpusimError
from npusim.graph import Graph
from npusim.hardware import Npu, load_npu, with_values
from npusim.scheduler.request import Request, check_request
from npusim.sweep.evaluate import Task, code_sha256
from npusim.sweep.spec import Axis, Network, Setting, Spec, Value

#: Axes that are options of `npusim profile`; every other axis sets numbers of the hardware description.
OPTIONS: Mapping[str, str] = {
    "npu": "", "tiles": "auto", "segments": "all", "precision": "w8a16", "policy": "decoupled",
}  # fmt: skip
#: Where a number is from that a sweep has changed.
SWEPT = "assumed: a value of a sweep"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedNetwork:
    """A network of a sweep: its layers, read once, and the hash of what they were read from."""

    name: str
    graph: Graph
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """An axis with its settings spelled out."""

    name: str
    keys: tuple[str, ...]
    settings: tuple[Setting, ...]

    @cached_property
    def values(self) -> tuple[Value, ...]:
        """What each setting is called: its first entry, where that tells them apart."""
        return _names(self.settings)


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One design point.

    Attributes:
        number: its place in the sweep.
        axes: axis -> value, the network among them.
        task: what a worker is given.
    """

    number: int
    network: LoadedNetwork
    axes: Mapping[str, Value]
    task: Task

    @property
    def key(self) -> str:
        """Hash of everything that the results depend on."""
        return self.task.key


def _names(settings: Sequence[Setting]) -> tuple[Value, ...]:
    firsts = tuple(s[0] for s in settings)
    if len(set(firsts)) == len(settings):
        return firsts
    return tuple(", ".join(map(str, s)) for s in settings)


@dataclass(frozen=True, kw_only=True)
class Space:
    """All points of a sweep, none of them made before it is asked for.

    Attributes:
        npus: described NPUs by the name or path that the spec uses.
        dimensions: the axes, the network not among them.
    """

    spec: Spec
    networks: tuple[LoadedNetwork, ...]
    npus: Mapping[str, Npu]
    dimensions: tuple[Dimension, ...]

    @cached_property
    def choices(self) -> int:
        """Points per network."""
        return prod(len(d.settings) for d in self.dimensions)

    @property
    def size(self) -> int:
        """Points in all."""
        return self.choices * len(self.networks)

    def __iter__(self) -> Iterator[Point]:
        """All points: networks outermost, the last axis fastest."""
        return (self.at(number) for number in range(self.size))

    def at(self, number: int) -> Point:
        """The point at a place in the sweep."""
        network, rest = divmod(number, self.choices)
        choice = []
        for dimension in reversed(self.dimensions):
            rest, index = divmod(rest, len(dimension.settings))
            choice.append(index)
        return self.point(network, choice[::-1])

    def point(self, network: int, choice: Sequence[int]) -> Point:
        """The point of a network at one position on each axis."""
        options, changes = dict(OPTIONS) | {"npu": self.spec.npu}, {}
        axes: dict[str, Value] = {"network": self.networks[network].name}
        number = network
        for dimension, index in zip(self.dimensions, choice, strict=True):
            number = number * len(dimension.settings) + index
            axes[dimension.name] = dimension.values[index]
            for key, value in zip(dimension.keys, dimension.settings[index], strict=True):
                if key in OPTIONS:
                    options[key] = str(value)
                else:
                    changes[key] = value
        npu = changed(self.npus[options.pop("npu")], changes)
        task = make_task(self.networks[network], npu, options)
        return Point(number=number, network=self.networks[network], axes=axes, task=task)

    def samples(self) -> list[Point]:
        """One point for each network, tiling rule and kinds of segments, in the middle of all other axes: what is timed first."""
        ranges = []
        for dimension in self.dimensions:
            count = len(dimension.settings)
            timed = {"tiles", "segments"} & set(dimension.keys)
            ranges.append(range(count) if timed else (count // 2,))
        return [self.point(n, c) for n in range(len(self.networks)) for c in product(*ranges)]


def make_task(network: LoadedNetwork, npu: Npu | HardwareError, options: Mapping[str, str]) -> Task:
    """What a worker is given; its key is the hash of all that the result depends on, our own code included."""
    if isinstance(npu, HardwareError):
        text, refusal = "", str(npu)
        hardware = hashlib.sha256(refusal.encode()).hexdigest()
    else:
        data = npu.model_dump(mode="json")
        text, refusal = json.dumps(data), ""
        hardware = hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
    parts = [code_sha256(), network.sha256, hardware, *(f"{k}={options[k]}" for k in sorted(options))]
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
    return Task(
        key=key, model=network.name, model_sha256=network.sha256, npu=text, npu_sha256=hardware, refusal=refusal, **options
    )  # fmt: skip


def changed(npu: Npu, changes: Mapping[str, Value]) -> Npu | HardwareError:
    """The NPU with other numbers, each of which says that it is swept; or why they contradict each other."""
    try:
        moved = with_values(npu, changes)
    except HardwareError as error:
        return error
    sources = {_source_path(p): SWEPT for p in changes if _value_at(npu, p) != _value_at(moved, p)}
    return moved.model_copy(update={"sources": {**moved.sources, **sources}}) if sources else moved


def paths_of(npu: Npu) -> Iterator[tuple[str, object]]:
    """Every settable key path with its value; one of a list of tables is named by its kind."""

    def walk(path: str, value: object) -> Iterator[tuple[str, object]]:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                yield from walk(f"{path}.{key}" if path else str(key), inner)
        elif isinstance(value, list | tuple):
            for inner in value:
                yield from walk(f"{path}.{inner['kind']}", inner)
        else:
            yield path, value

    yield from walk("", npu.model_dump(exclude={"sources", "name", "title"}))


def _value_at(npu: Npu, path: str) -> object:
    """The value at a key path."""
    found: object = npu
    for name in path.split("."):
        if isinstance(found, tuple):
            found = next(entry for entry in found if entry.kind == name)
        else:
            found = found[name] if isinstance(found, Mapping) else getattr(found, name)
    return found


def _source_path(path: str) -> str:
    """The path under which `sources` knows a number: kinds of engine do not stand in it."""
    parts = path.split(".")
    return ".".join([parts[0], parts[-1]] if parts[0] == "tensor_engine" else parts)


# ---- from a spec ----------------------------------------------------------------------------------------------------


def open_space(spec: Spec, folder: Path) -> Space:
    """Read what a spec names and check every value of every axis on its own.

    Args:
        folder: where relative paths of the spec start.

    Raises:
        BadInputError: an axis, value, network or hardware that does not exist or cannot be.
    """
    names = [spec.npu, *(str(v) for v in _settings(spec, "npu"))]
    npus = {name: load_npu(_beside(folder, name)) for name in dict.fromkeys(names)}
    _check_axes(spec, npus)
    dimensions = tuple(
        Dimension(name=n, keys=a.keys or (n,), settings=_whole(n, a, npus)) for n, a in spec.axes.items()
    )
    for dimension in dimensions:
        _check_values(dimension, npus, ends=spec.axes[dimension.name].range is not None)
    networks = tuple(load_network(network, folder) for network in spec.networks)
    twice = [n.name for i, n in enumerate(networks) if n.name in [m.name for m in networks[:i]]]
    if twice:
        raise BadInputError(f"networks: two are called '{twice[0]}'; give one of them another 'name'")
    return Space(spec=spec, networks=networks, npus=npus, dimensions=dimensions)


def _settings(spec: Spec, name: str) -> list[Value]:
    return [s[0] for s in spec.axes[name].settings(name)] if name in spec.axes else []


def _beside(folder: Path, name: str) -> str | Path:
    """A path relative to the spec's folder, if there is such a file; else the name as it is."""
    path = folder / name
    return path if path.is_file() else name


def load_network(network: Network, folder: Path) -> LoadedNetwork:
    """Read a network's layers.

    Raises:
        BadInputError: no such file or zoo network, or a model that cannot be used.
    """
    graph = api.load_graph(
        _beside(folder, network.model), shapes=network.shapes, dims=network.dims, name=network.name
    )
    origin = [
        graph.name,
        graph.model_sha256,
        {k: list(v) for k, v in network.shapes.items()},
        dict(network.dims),
    ]
    digest = hashlib.sha256(json.dumps(origin, sort_keys=True).encode()).hexdigest()
    return LoadedNetwork(name=graph.name, graph=graph, sha256=digest)


def _check_axes(spec: Spec, npus: Mapping[str, Npu]) -> None:
    """Every key exists in every NPU, and is set by one axis only."""
    owner: dict[str, str] = {}
    for name, axis in spec.axes.items():
        for key in axis.keys or (name,):
            if key in owner:
                raise BadInputError(
                    f"axes.{name}: sets '{key}', which axes.{owner[key]} sets too; keep one of them"
                )
            owner[key] = name
            if key in OPTIONS:
                continue
            for npu in npus.values():
                known = dict(paths_of(npu))
                if key not in known:
                    raise BadInputError(_unknown_key(name, key, npu, list(known)))


def _unknown_key(name: str, key: str, npu: Npu, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(key, [*OPTIONS, *known], n=2, cutoff=0.5)
    guess = f" (did you mean {' or '.join(repr(c) for c in close)}?)" if close else ""
    return (
        f"axes.{name}: '{key}' is no key of the hardware description {npu.name}{guess}; allowed are its key paths "
        f"(npusim npu show {npu.name}) and {', '.join(OPTIONS)}; networks stand in 'networks'"
    )


def _whole(name: str, axis: Axis, npus: Mapping[str, Npu]) -> tuple[Setting, ...]:
    """Settings whose numbers are whole where the hardware has whole numbers: a range is rounded, a value must be whole.

    Raises:
        BadInputError: a value that is not whole, or of the wrong kind.
    """
    settings = axis.settings(name)
    known = dict(paths_of(next(iter(npus.values()))))
    whole = [isinstance(known.get(key), int) for key in axis.keys or (name,)]
    found = []
    for setting in settings:
        parts: list[Value] = []
        for value, integral in zip(setting, whole, strict=True):
            if integral and isinstance(value, float):
                if axis.range is None and not value.is_integer():
                    raise BadInputError(
                        f"axes.{name}: has the value {value!r}; the hardware description has a whole number there"
                    )
                value = round(value)
            parts.append(value)
        found.append(tuple(parts))
    return tuple(dict.fromkeys(found))


def _check_values(dimension: Dimension, npus: Mapping[str, Npu], *, ends: bool) -> None:
    """Each value on its own makes a possible NPU or request; of a range its ends, since what is allowed has no gaps."""
    for setting in (dimension.settings[0], dimension.settings[-1]) if ends else dimension.settings:
        pairs = dict(zip(dimension.keys, setting, strict=True))
        options = {k: str(v) for k, v in pairs.items() if k in OPTIONS and k != "npu"}
        numbers = {k: v for k, v in pairs.items() if k not in OPTIONS}
        for npu in npus.values():
            try:
                _check_kinds(npu, numbers)
                check_request(with_values(npu, numbers), Request(**options))  # type: ignore[arg-type]
            except NpusimError as error:
                raise BadInputError(f"axes.{dimension.name}: {error}") from error


def _check_kinds(npu: Npu, numbers: Mapping[str, Value]) -> None:
    known = dict(paths_of(npu))
    for key, value in numbers.items():
        if isinstance(value, str) != isinstance(known[key], str):
            wanted = "a text" if isinstance(known[key], str) else "a number"
            raise BadInputError(f"'{key}' is {value!r}; {wanted} is needed")
