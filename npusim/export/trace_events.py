"""`trace`: the simulated run as Chrome Trace JSON or as Perfetto's protobuf, by the ending of the file's name."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Mapping
from pathlib import Path

from npusim.chrome_trace import chrome_trace
from npusim.errors import BadInputError
from npusim.export.perfetto_trace import perfetto_trace
from npusim.export.registry import Exporter
from npusim.export.source import ExportSource


def _json(source: ExportSource) -> bytes:
    pieces = chrome_trace(source.graph, source.program, source.trace, name=_name(source))
    return "".join(pieces).encode()


def _gzipped(source: ExportSource) -> bytes:
    return gzip.compress(_json(source), mtime=0)


def _perfetto(source: ExportSource) -> bytes:
    return perfetto_trace(source.graph, source.program, source.trace, name=_name(source))


def _name(source: ExportSource) -> str:
    return f"{source.plan.model.name} on {source.plan.npu.name}"


FORMATS: Mapping[str, Callable[[ExportSource], bytes]] = {
    ".json.gz": _gzipped, ".json": _json, ".pftrace": _perfetto, ".perfetto-trace": _perfetto,
}  # fmt: skip


def write(source: ExportSource, path: Path, options: Mapping[str, str]) -> tuple[str, ...]:
    """Write the run under the planned policy.

    Raises:
        BadInputError: the name ends in nothing known.
        MissingExtraError: Perfetto's protobuf is wanted without the package `perfetto`.
    """
    encode = next((f for ending, f in FORMATS.items() if path.name.endswith(ending)), None)
    if encode is None:
        raise BadInputError(
            f"--out is '{path.name}'; the target trace writes names that end in {', '.join(FORMATS)}"
        )
    path.write_bytes(encode(source))
    return ()


EXPORTER = Exporter(
    title="the simulated timeline: Chrome Trace JSON (.json.gz, .json) or Perfetto protobuf (.pftrace)",
    suffix=".trace.json.gz",
    carries="every command on every engine with layer, role, tile and stall reason; SRAM bytes and DRAM bandwidth over time",
    loses="dependencies and boxes; .pftrace rounds times down to nanoseconds",
    write=write,
)
