"""The run directory of a pipeline: the picture's own files, and one run directory for each network."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from npusim.errors import OutputError
from npusim.pipeline import PipelineProfile
from npusim.pipeline_time import Event
from npusim.reports.pipeline import write_pipeline_report
from npusim.run_directory import (
    REPORT,
    SUMMARY,
    TRACE,
    check_replaceable,
    default_directory,
    dump_json,
    fill_run,
    is_pipeline_run,
    publish,
)
from npusim.units import PS_PER_US

SPECIFICATION = "pipeline.toml"
_OURS = frozenset({SPECIFICATION, SUMMARY, TRACE, REPORT})


def default_pipeline_directory(name: str) -> Path:
    """`./npusim-runs/<name>-pipeline`: a network may have the pipeline's name."""
    return default_directory(f"{name}-pipeline")


def check_pipeline_replaceable(directory: Path) -> None:
    """Refuse a folder that holds anything but a pipeline's run of ours.

    Raises:
        OutputError: a file is in the way, or the folder holds other files.
    """
    if directory.is_symlink() or not is_pipeline_run(directory):
        check_replaceable(directory)
        return
    for path in sorted(directory.iterdir()):
        if path.name in _OURS and path.is_file():
            continue
        if not path.is_dir():
            raise OutputError(
                f"{directory}: holds '{path.name}', which npusim did not write; give an empty or a new folder with --out"
            )
        check_replaceable(path)


def write_pipeline_run(profile: PipelineProfile, directory: Path, *, images: str | None = None) -> None:
    """Write all files of a picture, and those of every network's run, as a whole.

    Raises:
        MissingExtraError: pictures need kaleido.
        OutputError: the place is not ours, or cannot be written.
    """
    check_pipeline_replaceable(directory)
    publish(directory, lambda aside: _fill(profile, aside, images))


def _fill(profile: PipelineProfile, folder: Path, images: str | None) -> None:
    for network, one in zip(profile.pipeline.network, profile.profiles, strict=True):
        (folder / network.name).mkdir()
        fill_run(one, folder / network.name, images=images)
    (folder / SPECIFICATION).write_text(profile.specification.text, "utf-8")
    (folder / SUMMARY).write_text(dump_json(profile.summary), "utf-8")
    (folder / TRACE).write_text("".join(picture_trace(profile)), "utf-8")
    write_pipeline_report(profile.summary, profile.profiles, profile.events, folder / REPORT)


def picture_trace(profile: PipelineProfile) -> Iterator[str]:
    """The picture's timeline in Chrome's trace format: a slice for each load, launch and evaluation, one track per network."""
    names = [n.name for n in profile.pipeline.network]
    rows: list[dict[str, Any]] = [
        {"ph": "M", "pid": 1, "name": "process_name", "args": {"name": f"{profile.pipeline.name} on {profile.npu.name}"}},
        *({"ph": "M", "pid": 1, "tid": i, "name": "thread_name", "args": {"name": name}} for i, name in enumerate(names)),
        *(_slice(event, names[event.part]) for event in profile.events if event.end_ps > event.start_ps),
    ]  # fmt: skip
    yield '{"displayTimeUnit":"ms","traceEvents":[\n'
    yield ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
    yield "\n]}\n"


def _slice(event: Event, name: str) -> dict[str, Any]:
    called = name if event.what == "evaluation" else f"{event.what} {name}"
    return {
        "ph": "X", "pid": 1, "tid": event.part, "name": called, "cat": event.what,
        "ts": event.start_ps / PS_PER_US, "dur": (event.end_ps - event.start_ps) / PS_PER_US,
        "args": {"evaluation": event.evaluation, "start_ps": event.start_ps, "end_ps": event.end_ps},
    }  # fmt: skip
