"""A whole picture: every network of a pipeline planned once, their times added up to the picosecond."""

from __future__ import annotations

import lzma
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from npusim import api
from npusim.errors import BadInputError, HardwareError, ModelError, NpusimError
from npusim.graph import Graph
from npusim.hardware import Npu, load_npu
from npusim.models import zoo
from npusim.models.pipeline import Network, Pipeline, Specification, load_pipeline
from npusim.pipeline_summary import summarize_pipeline
from npusim.pipeline_time import Event, Loads, Part, events
from npusim.program import DRAM, Program
from npusim.progress import stage
from npusim.results import Profile
from npusim.scheduler.problem import Infeasible, Policy
from npusim.units import PS_PER_S

POLICIES: tuple[Policy, ...] = ("decoupled", "serial")
_LOADS: Mapping[str, Loads] = {"resident": "never", "loaded": "once", "reloaded": "always"}
#: No graph without weights is larger.
_GRAPH_BYTES_MAX = 2**28


@dataclass(frozen=True, kw_only=True)
class PipelineProfile:
    """A planned picture.

    Attributes:
        specification: what was asked for, with what the command line changed.
        npu: the hardware.
        policy: of the planned runs.
        profiles: one per network, in order.
        weight_bytes: of each network, as its plan stores them.
    """

    specification: Specification
    npu: Npu
    policy: Policy
    profiles: tuple[Profile, ...]
    weight_bytes: tuple[int, ...]

    @property
    def pipeline(self) -> Pipeline:
        """The specification's content."""
        return self.specification.pipeline

    def parts(self, policy: Policy | None = None) -> tuple[Part, ...]:
        """Each network's times under a policy (the planned one by default)."""
        members = zip(self.pipeline.network, self.profiles, self.weight_bytes, strict=True)
        return tuple(self._part(n, p, size, policy or self.policy) for n, p, size in members)

    def _part(self, network: Network, profile: Profile, weight_bytes: int, policy: Policy) -> Part:
        launch_s = self.npu.core.launch_s if network.launch_s is None else network.launch_s
        rate = self.pipeline.load_bytes_per_s
        loads = _LOADS[network.weights]
        return Part(
            name=network.name,
            count=network.repeat if isinstance(network.repeat, int) else None,
            evaluation_ps=profile.traces[policy].makespan_ps,
            launch_ps=round(launch_s * PS_PER_S),
            load_ps=0 if loads == "never" or rate is None else round(weight_bytes / rate * PS_PER_S),
            loads=loads,
        )

    @cached_property
    def events(self) -> list[Event]:
        """Everything that takes time, in order."""
        return events(self.parts(), self.pipeline.steps)

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The figures of the pipeline's `summary.json`."""
        parts: dict[str, tuple[Part, ...]] = {policy: self.parts(policy) for policy in POLICIES}
        found = summarize_pipeline(
            self.pipeline, self.npu, self.policy, self.profiles, parts, self.weight_bytes
        )
        return found | {"checkpoint": self.specification.checkpoint}

    @property
    def latency_ms(self) -> float:
        """Of one picture, under the planned policy."""
        return float(self.summary["latency_ms"])


def profile_pipeline(
    pipeline: str | Path | Specification, *, npu: str | Path | Npu = "exynos2400", policy: Policy = "decoupled",
    changes: Mapping[str, Any] | None = None, steps: int | None = None, quiet: bool = True,
) -> PipelineProfile:  # fmt: skip
    """Plan and simulate every network of a pipeline once, and add them up to a picture.

    Args:
        pipeline: path of a specification, name of a shipped one, or one that was read.
        changes: keys of every network to replace (`tiles`, `segments`, `precision`, `pins`).
        steps: denoising steps, instead of the specification's.

    Raises:
        BadInputError: the specification is bad, or a network cannot be read or does not fit.
        HardwareError: the hardware is bad, or cannot compute in a network's precision.
    """
    given = pipeline if isinstance(pipeline, Specification) else load_pipeline(pipeline)
    asked = changed(given, changes or {}, steps)
    described = npu if isinstance(npu, Npu) else load_npu(npu)
    profiles = []
    for network in asked.pipeline.network:
        with stage(f"planning and simulating {network.name}", quiet=quiet):
            profiles.append(profile_network(asked, network, described, policy))
    return PipelineProfile(
        specification=asked,
        npu=described,
        policy=policy,
        profiles=tuple(profiles),
        weight_bytes=tuple(weight_bytes(p.program) for p in profiles),
    )


def changed(given: Specification, changes: Mapping[str, Any], steps: int | None) -> Specification:
    """The specification with some keys of every network, or the number of steps, replaced."""
    networks = tuple(n.model_copy(update=dict(changes)) for n in given.pipeline.network)
    pipeline = given.pipeline.model_copy(
        update={"network": networks} | ({"steps": steps} if steps is not None else {})
    )
    return Specification(pipeline=pipeline, where=given.where, folder=given.folder, text=given.text)


def profile_network(given: Specification, network: Network, npu: Npu, policy: Policy) -> Profile:
    """One network, planned and simulated; problems are told with its name.

    Raises:
        BadInputError, HardwareError: see `profile_pipeline`.
    """
    try:
        found = api.profile(
            network_graph(given, network), npu=npu, policy=policy, tiles=network.tiles, segments=network.segments,
            precision=network.precision, pins=network.pins,
        )  # fmt: skip
    except HardwareError:
        raise
    except NpusimError as error:
        raise BadInputError(f"{given.where}: network '{network.name}': {error}") from error
    if isinstance(found, Infeasible):
        raise BadInputError(f"{given.where}: network '{network.name}': {found.sentence()}")
    return found


def network_graph(given: Specification, network: Network) -> Graph:
    """The layers of a network, at its batch.

    Raises:
        ModelError: the file cannot be used, or fixes another batch.
        BadInputError: neither a file nor a zoo network, or one that does not ship at this batch.
    """
    if not network.model.endswith((".onnx", ".onnx.xz")):
        return _zoo_graph(network)
    path = given.folder / network.model
    source = _decompressed(path) if path.suffix == ".xz" else path
    name = path.name.removesuffix(".xz").removesuffix(".onnx")
    graph = api.load_graph(source, name=name)
    if network.batch == 1:
        return graph
    wanted = {w.name: (network.batch, *w.shape[1:]) for w in graph.inputs if len(w.shape) > 1}
    try:
        return api.load_graph(source, name=name, shapes=wanted)
    except ModelError as error:
        raise ModelError(
            f"{path}: guidance is batch2, and the model cannot take {network.batch} samples at once ({error}); "
            "export it with a symbolic batch, or set guidance to none"
        ) from error


def _zoo_graph(network: Network) -> Graph:
    spelling = zoo.batched(zoo.DEFAULT_SPELLING, network.batch)
    if network.batch > 1 and spelling not in zoo.spellings(network.model):
        able = [name for name in zoo.names() if spelling in zoo.spellings(name)]
        raise BadInputError(
            f"guidance is batch2, and the zoo has '{network.model}' at batch 1 only; at batch 2 it has {', '.join(able)}; "
            "choose one of these, give an ONNX file with a symbolic batch, or set guidance to none"
        )
    return api.load_graph(zoo.graph_bytes(network.model, spelling), name=network.model)


def _decompressed(path: Path) -> bytes:
    try:
        data = lzma.LZMADecompressor().decompress(path.read_bytes(), max_length=_GRAPH_BYTES_MAX)
    except OSError as error:
        raise ModelError(
            f"{path}: cannot be read ({error.strerror}); give the path of an ONNX file"
        ) from error
    except lzma.LZMAError as error:
        raise ModelError(f"{path}: is no xz file ({error}); give an ONNX file") from error
    return data


def weight_bytes(program: Program) -> int:
    """Bytes of a Program's weights in DRAM."""
    weights = np.asarray([kind == "weight" for kind in program.tensors.kind], dtype=bool)
    buffers = program.buffers
    return int(buffers.stored_bytes[(buffers.space == DRAM) & weights[buffers.tensor]].sum())
