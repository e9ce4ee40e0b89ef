"""The record of a stage: one CSV row and one TensorBoard point per logged step."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from npusim.training.checkpoints import writing


class Curve:
    """Appends to `losses.csv` and TensorBoard's events; on resume, drops rows past the checkpoint."""

    def __init__(self, folder: Path, first_step: int) -> None:
        self._path = folder / "losses.csv"
        self._events = _tensorboard(folder / "tensorboard", first_step)
        folder.mkdir(parents=True, exist_ok=True)
        kept = [row for row in read_curve(self._path) if int(row["step"]) < first_step]
        self._columns = list(kept[0]) if kept else None
        with writing(self._path), self._path.open("w", newline="") as file:
            if self._columns:
                writer = csv.DictWriter(file, self._columns)
                writer.writeheader()
                writer.writerows(kept)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Record named values of one step.

        Floats are written in full, so that equal text means equal bits.
        """
        row = {"step": step, **{name: repr(value) for name, value in values.items()}}
        with writing(self._path), self._path.open("a", newline="") as file:
            if self._columns is None:
                self._columns = list(row)
                csv.DictWriter(file, self._columns).writeheader()
            csv.DictWriter(file, self._columns).writerow(row)
        if self._events is not None:
            for name, value in values.items():
                self._events.add_scalar(name, value, step)

    def close(self) -> None:
        """Close TensorBoard's record."""
        if self._events is not None:
            self._events.close()


def read_curve(path: Path) -> list[dict[str, str]]:
    """The rows of a losses.csv, none if there is no file; a last line cut short by a kill is dropped."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [row for row in csv.DictReader(file) if None not in row.values() and row["step"].isdigit()]


def _tensorboard(folder: Path, first_step: int) -> Any:
    """A SummaryWriter, or None where tensorboard is not installed (the CSV file holds the same numbers)."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=first_step)
