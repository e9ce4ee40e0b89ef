"""What a worker does: profile one point, and give its figures as one flat row."""

from __future__ import annotations

import hashlib
import json
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import npusim
from npusim import api
from npusim.errors import BadInputError, NpusimError
from npusim.garbage import uncollected_cycles
from npusim.graph import Graph
from npusim.hardware import npu_from_dict
from npusim.scheduler.problem import Infeasible

#: A cell of a row. What is a table or list in `summary.json` is JSON text here.
Cell = int | float | str | None
Row = Mapping[str, Cell]

#: What a point came to. A point that `crashed` is not stored, so that it is tried again.
DONE, INFEASIBLE, REFUSED = "done", "infeasible", "refused"

#: Packages whose source decides what a point comes to.
_DECIDING = ("npusim", "npusim.passes", "npusim.lower", "npusim.presets", "npusim.scheduler")
#: Modules among them that only ask, print or write; a module that is new counts until it is named here.
_APART = ("cli", "screen", "progress", "files", "check", "pytest_plugin", "run_directory", "chrome_trace", "verification", "zoo_compare",
          "reproduce", "fit", "garbage", "calibrate", "deployment", "results")  # fmt: skip
_JSON_STARTS = ('"', "[", "{")


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One point as a worker is given it, the network's layers apart.

    Attributes:
        key: hash of all that the result depends on.
        model_sha256: hash of what the layers were read from, with the sizes given.
        npu: the hardware description as JSON.
        refusal: why there is no such hardware, if there is none.
    """

    key: str
    model: str
    model_sha256: str
    npu: str
    npu_sha256: str
    refusal: str
    tiles: str
    segments: str
    precision: str
    policy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a task: its row, or the error of ours that it met; how long it took, and how long it had a processor."""

    task: Task
    row: Row | None
    error: str = ""
    seconds: float = 0.0
    processor_s: float = 0.0


@cache
def code_sha256() -> str:
    """Hash of the source that decides what a point comes to: results of other code are never taken for ours."""
    digest = hashlib.sha256(npusim.__version__.encode())
    for package in _DECIDING:
        for entry in sorted(files(package).iterdir(), key=lambda e: e.name):
            if entry.name.endswith((".py", ".toml")) and not (
                package == "npusim" and entry.name.startswith(_APART)
            ):
                digest.update(f"{package}/{entry.name}\n".encode() + entry.read_bytes())
    return digest.hexdigest()[:32]


def version() -> tuple[str, str]:
    """This process's npusim: version, and hash of its code."""
    return npusim.__version__, code_sha256()


def check_version(client: tuple[str, str]) -> None:
    """Refuse to work for a client with another npusim.

    Raises:
        BadInputError: versions or code differ.
    """
    if client != version():
        mine, theirs = (f"{number} ({code[:8]})" for number, code in (version(), client))
        raise BadInputError(
            f"a worker has npusim {mine}, this is npusim {theirs}; install the same npusim on every worker and start them again"
        )


def evaluate_batch(client: tuple[str, str], graph: Graph, tasks: Sequence[Task]) -> list[Outcome]:
    """Rows of some points of one network. An error of ours in one point leaves the others alone."""
    check_version(client)
    with uncollected_cycles():
        return [_outcome(graph, task) for task in tasks]


def _outcome(graph: Graph, task: Task) -> Outcome:
    began, used = time.perf_counter(), time.thread_time()
    row, told = None, ""
    try:
        row = evaluate(graph, task)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        told = f"{type(error).__name__}: {error} ({where.name}, line {where.lineno} of {where.filename})"
    seconds, processor_s = time.perf_counter() - began, time.thread_time() - used
    return Outcome(task=task, row=row, error=told, seconds=seconds, processor_s=processor_s)


def evaluate(graph: Graph, task: Task) -> Row:
    """The row of one point: what it is, then the keys of `summary.json`."""
    try:
        found = profile(graph, task)
    except NpusimError as error:
        return identity(task, REFUSED, str(error))
    if isinstance(found, Infeasible):
        return identity(task, INFEASIBLE, found.sentence())
    return {**identity(task, DONE, ""), **flat(found.summary)}


def profile(graph: Graph, task: Task) -> api.Profile | Infeasible:
    """The point as a single run makes it.

    Raises:
        NpusimError: the hardware contradicts itself, or cannot do what is asked for.
    """
    if task.refusal:
        raise BadInputError(task.refusal)
    npu = npu_from_dict(json.loads(task.npu), where="the point's hardware")
    return api.profile(
        graph, npu=npu, tiles=task.tiles, segments=task.segments, precision=task.precision, policy=task.policy  # type: ignore[arg-type]
    )  # fmt: skip


def identity(task: Task, status: str, reason: str) -> dict[str, Cell]:
    """The columns that say what a row is of."""
    return {
        "key": task.key, "status": status, "reason": reason, "model_sha256": task.model_sha256, "npu_sha256": task.npu_sha256,
        "npusim_version": npusim.__version__, "code_sha256": code_sha256(), "model": task.model, "tiles": task.tiles,
        "segments_kinds": task.segments, "precision": task.precision, "policy": task.policy,
    }  # fmt: skip


def flat(summary: Mapping[str, Any]) -> dict[str, Cell]:
    """A summary as cells."""
    return {key: _cell(value) for key, value in summary.items()}


def _cell(value: Any) -> Cell:
    nested = isinstance(value, dict | list) or (isinstance(value, str) and value.startswith(_JSON_STARTS))
    return json.dumps(value, allow_nan=False, separators=(",", ":")) if nested else value


def summary_of(row: Row, keys: Sequence[str]) -> dict[str, Any]:
    """The summary that `flat` made cells of."""
    return {key: _value(row[key]) for key in keys}


def _value(cell: Cell) -> Any:
    return json.loads(cell) if isinstance(cell, str) and cell.startswith(_JSON_STARTS) else cell
