"""The store: one SQLite file, one row a point, written in whole transactions; any number of sweeps share it."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from npusim.errors import OutputError
from npusim.sweep.evaluate import Cell, Outcome
from npusim.sweep.space import OPTIONS, Point

STORE = "points.sqlite"
SCHEMA = 1

_TABLES = """
create table if not exists store (schema integer not null);
create table if not exists points (key text primary key) without rowid;
create table if not exists hardware (npu_sha256 text primary key, description text not null) without rowid;
create table if not exists members (
    sweep text, number integer, key text not null, axes text not null, primary key (sweep, number)
) without rowid;
create table if not exists timings (
    key text primary key, model_sha256 text, tiles text, segments text, code_sha256 text, seconds real, processor_s real,
    finished_at real
) without rowid;
create table if not exists sweeps (sweep text primary key, spec text not null, code_sha256 text not null) without rowid;
create table if not exists owners (owner text primary key, host text not null, pid integer not null, seen real not null) without rowid;
create table if not exists claims (key text primary key, owner text not null) without rowid;
"""
#: A client that gave no sign of life for so long is taken for dead; on the same host its process is looked for.
_SILENT_S = 120.0


class Store:
    """Points that were computed, and which client is computing which.

    A row is there as a whole or not at all, and survives the death of any process. If the machine dies the last transactions may be
    missing (WAL mode, `synchronous = normal`): their points are then computed again.
    """

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.db = sqlite3.connect(path, timeout=60, isolation_level=None)
            self.db.execute("pragma journal_mode = wal")
            self.db.execute("pragma synchronous = normal")
            self.db.executescript(_TABLES)
            if self.db.execute("select schema from store").fetchone() is None:
                self.db.execute("insert into store values (?)", (SCHEMA,))
            found = self.db.execute("select schema from store").fetchone()[0]
        except (sqlite3.Error, OSError) as error:
            raise OutputError(
                f"{path}: cannot be used as a store of points ({error}); give another place with --out"
            ) from error
        if found != SCHEMA:
            raise OutputError(
                f"{path}: has schema {found}, this npusim writes {SCHEMA}; give another place with --out"
            )
        self.path = path
        self.owner = uuid.uuid4().hex
        self._columns = [row[1] for row in self.db.execute("pragma table_info(points)")]
        self._seen = 0.0

    def close(self) -> None:
        """Give back what is claimed, and close."""
        with self._writing():
            self.db.execute("delete from claims where owner = ?", (self.owner,))
            self.db.execute("delete from owners where owner = ?", (self.owner,))
        self.db.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One transaction."""
        self.db.execute("begin immediate")
        try:
            yield
        except BaseException:
            self.db.execute("rollback")
            raise
        self.db.execute("commit")

    # ---- results ----------------------------------------------------------------------------------------------------

    def has(self, key: str) -> bool:
        """Whether a point was computed."""
        return self.db.execute("select 1 from points where key = ?", (key,)).fetchone() is not None

    @property
    def empty(self) -> bool:
        """Whether no point was ever computed here."""
        return self.db.execute("select 1 from points limit 1").fetchone() is None

    def row(self, key: str) -> dict[str, Cell] | None:
        """A point's row."""
        cursor = self.db.execute("select * from points where key = ?", (key,))
        found = cursor.fetchone()
        return dict(zip((d[0] for d in cursor.description), found, strict=True)) if found else None

    def add(self, sweep: str, done: Sequence[tuple[Point, Outcome]]) -> int:
        """Keep rows, and that they are points of a sweep, in one transaction; how many of them were there already."""
        for _, outcome in done:
            self._make_columns(outcome.row or ())
        twice = 0
        with self._writing():
            for point, outcome in done:
                self.db.execute("delete from claims where key = ? and owner = ?", (point.key, self.owner))
                if outcome.row is None:
                    continue
                twice += not self._insert(outcome)
                self._member(sweep, point)
        return twice

    def _insert(self, outcome: Outcome) -> bool:
        assert outcome.row is not None
        task, row = outcome.task, outcome.row
        names = ", ".join(f'"{c}"' for c in row)
        marks = ", ".join("?" * len(row))
        added = self.db.execute(
            f"insert or ignore into points ({names}) values ({marks})", list(row.values())
        ).rowcount
        self.db.execute("insert or ignore into hardware values (?, ?)", (task.npu_sha256, task.npu))
        self.db.execute(
            "insert or ignore into timings values (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                task.key,
                task.model_sha256,
                task.tiles,
                task.segments,
                row["code_sha256"],
                outcome.seconds,
                outcome.processor_s,
                time.time(),
            ),
        )
        return bool(added)

    def join(self, sweep: str, points: Iterable[Point]) -> None:
        """Note that points which are there already belong to a sweep too."""
        with self._writing():
            for point in points:
                self._member(sweep, point)

    def _member(self, sweep: str, point: Point) -> None:
        axes = json.dumps(dict(point.axes))
        self.db.execute(
            "insert or replace into members values (?, ?, ?, ?)", (sweep, point.number, point.key, axes)
        )

    def _make_columns(self, names: Iterable[str]) -> None:
        """Columns without a type, so that whole numbers stay whole and the others keep every bit."""
        for name in names:
            if name not in self._columns:
                with self._writing():
                    there = [row[1] for row in self.db.execute("pragma table_info(points)")]
                    if name not in there:
                        self.db.execute(f'alter table points add column "{name}"')
                self._columns.append(name)

    # ---- sweeps -----------------------------------------------------------------------------------------------------

    def begin(self, sweep: str, spec: str, code: str, axes: Sequence[str]) -> None:
        """Start a sweep, or go on with it. With another spec or other code it starts afresh: its points stay, but are no longer its."""
        self._make_columns(("status", "model", "tiles", "precision", "policy", "latency_ms"))
        with self._writing():
            if self.begun(sweep) != (spec, code):
                self.db.execute("delete from members where sweep = ?", (sweep,))
            self.db.execute("insert or replace into sweeps values (?, ?, ?)", (sweep, spec, code))
            self.db.execute(f'drop view if exists "{sweep}"')
            self.db.execute(_view(sweep, [a for a in axes if a not in (*OPTIONS, "network")]))

    def begun(self, sweep: str) -> tuple[str, str] | None:
        """The spec and the code of a sweep that was started here."""
        found = self.db.execute("select spec, code_sha256 from sweeps where sweep = ?", (sweep,)).fetchone()
        return (found[0], found[1]) if found else None

    def results(self, sweep: str) -> list[tuple[dict[str, Any], dict[str, Cell]]]:
        """(axes, row) of every point of a sweep that was computed, in the order of the sweep."""
        cursor = self.db.execute(
            "select m.axes, p.* from members m join points p using (key) where m.sweep = ? order by m.number",
            (sweep,),
        )
        names = [d[0] for d in cursor.description][1:]
        return [(json.loads(axes), dict(zip(names, row, strict=True))) for axes, *row in cursor]

    def count(self, sweep: str) -> int:
        """How many points of a sweep are here."""
        found = self.db.execute(
            "select count(*) from members join points using (key) where sweep = ?", (sweep,)
        ).fetchone()
        return int(found[0])

    def members(self, sweep: str, start: str) -> list[tuple[str, int]]:
        """(key, number) of the points of a sweep whose key begins so."""
        cursor = self.db.execute(
            "select key, number from members where sweep = ? and substr(key, 1, ?) = ?",
            (sweep, len(start), start),
        )
        return [(key, number) for key, number in cursor]

    def seconds(self, task_class: tuple[str, str, str], code: str) -> float | None:
        """Mean time of points of a network under a tiling rule, by this code; None if there is none."""
        found = self.db.execute(
            "select avg(seconds) from timings where model_sha256 = ? and tiles = ? and segments = ? and code_sha256 = ?",
            (*task_class, code),
        ).fetchone()[0]
        return None if found is None else float(found)

    # ---- claims -----------------------------------------------------------------------------------------------------

    def claim(self, keys: Sequence[str]) -> set[str]:
        """Those of the keys that are now ours to compute; the others are done or another living client computes them."""
        ours = set()
        with self._writing():
            self._sign_of_life()
            for key in keys:
                if self.has(key):
                    continue
                holder = self.db.execute("select owner from claims where key = ?", (key,)).fetchone()
                if holder and holder[0] != self.owner and self._alive(holder[0]):
                    continue
                self.db.execute("insert or replace into claims values (?, ?)", (key, self.owner))
                ours.add(key)
        return ours

    def heartbeat(self) -> None:
        """Say that we live, now and then."""
        if time.time() - self._seen > _SILENT_S / 10:
            with self._writing():
                self._sign_of_life()

    def _sign_of_life(self) -> None:
        self._seen = time.time()
        row = (self.owner, socket.gethostname(), os.getpid(), self._seen)
        self.db.execute("insert or replace into owners values (?, ?, ?, ?)", row)

    def _alive(self, owner: str) -> bool:
        found = self.db.execute("select host, pid, seen from owners where owner = ?", (owner,)).fetchone()
        if found is None:
            return False
        host, pid, seen = found
        if host == socket.gethostname() and not _runs(pid):
            return False
        return bool(time.time() - seen < _SILENT_S)


def _view(sweep: str, axes: Sequence[str]) -> str:
    """A table of a sweep's points, with a column for each axis that is no column of the points already."""
    columns = ["m.number", *map(_axis_column, axes), "p.*"]
    literal = sweep.replace("'", "''")
    return (
        f'create view "{sweep}" as select {", ".join(columns)} from members m join points p using (key) '
        f"where m.sweep = '{literal}' order by m.number"
    )


def _axis_column(name: str) -> str:
    quoted = name.replace('"', '""')
    path = json.dumps(name).replace("'", "''")
    return f"json_extract(m.axes, '$.{path}') as \"{quoted}\""


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
