"""A point of a sweep as a full run directory: planned and simulated again, and compared with what the store holds."""

from __future__ import annotations

import re
from pathlib import Path

from npusim.errors import BadInputError
from npusim.run_directory import dump_json, write_run
from npusim.scheduler.problem import Infeasible
from npusim.sweep.evaluate import profile, summary_of
from npusim.sweep.run import Sweep

#: Characters of a key that name a point.
SHORT = 12
FOLDER = "points"


def directory_of(sweep: Sweep, key: str) -> Path:
    """Where a point's run directory is, once it was opened."""
    return sweep.folder / FOLDER / key[:SHORT]


def open_point(sweep: Sweep, start: str) -> Path:
    """Write the run directory of the point whose key begins so.

    Raises:
        BadInputError: no or several points, one that does not fit its hardware, or one that this npusim computes otherwise.
    """
    key, number = _find(sweep, start)
    point = sweep.space.at(number) if number < sweep.space.size else None
    row = sweep.store.row(key)
    if point is None or point.key != key or row is None:
        raise BadInputError(
            f"--point {start}: was computed from another spec, model, hardware or npusim; run the sweep again, then open its points"
        )
    found = profile(point.network.graph, point.task)
    if isinstance(found, Infeasible):
        raise BadInputError(f"--point {start}: {found.sentence()}")
    if dump_json(dict(found.summary)) != dump_json(summary_of(row, list(found.summary))):
        raise BadInputError(
            f"--point {start}: what the store holds is not what this machine computes; take another --out and run the sweep again"
        )
    directory = directory_of(sweep, key)
    write_run(found, directory)
    return directory


def _find(sweep: Sweep, start: str) -> tuple[str, int]:
    found = sweep.store.members(sweep.name, start) if re.fullmatch("[0-9a-f]{4,32}", start) else []
    keys = sorted({key for key, _ in found})
    if len(keys) != 1:
        what = "no point" if not keys else f"{len(keys)} points"
        raise BadInputError(
            f"--point {start}: {what} of sweep '{sweep.name}' has a key that begins so; give at least 4 of its characters "
            f"as the page shows them (they are in {sweep.store.path} too)"
        )
    return found[0]
