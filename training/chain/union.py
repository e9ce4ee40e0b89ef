"""Several variants as one: L-pps + synt is what EdgeFusion trains on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from npusim.errors import BadInputError
from npusim.training.chain.record import Record, record_id
from npusim.training.chain.step import Work, adopted, checked, fill
from npusim.training.chain.variant import Builder, Variant

NAME = "union"


@dataclass(slots=True)
class Joining:
    """Records of several parents to records of the union; the same picture with the same caption is kept once."""

    out: Path
    settings: str

    def __call__(self, items: Sequence[tuple[Path, Record, bool]]) -> list[Record]:
        """items: the parent's folder, its record, and whether its like came before."""
        return [self._record(*item) for item in items]

    def _record(self, folder: Path, record: Record, again: bool) -> Record:
        identity = record_id(NAME, self.settings, folder.name, record.id)
        made = record.model_copy(
            update={
                "id": identity,
                "parent": record.id,
                "step": NAME,
                "settings": self.settings,
                "details": {},
            }
        )
        if again:
            reason = f"{record.id} of {folder.name} has picture and caption of a record before it"
            return made.model_copy(update={"cause": "repeated", "reason": reason})
        return adopted(made, folder, self.out)


def _key(record: Record) -> int:
    """64 bits that two records share if they have the same picture and caption."""
    return int(record_id(record.sha256 or record.id, record.caption), 16)


def _repeated(parents: Sequence[Variant]) -> frozenset[int]:
    """Keys of more than one record. 8 bytes of each key are in memory meanwhile."""
    found = [
        np.fromiter((_key(record) for record in parent.kept()), np.uint64, parent.finished.kept)
        for parent in parents
    ]
    keys = np.sort(np.concatenate(found))
    return frozenset(keys[1:][keys[1:] == keys[:-1]].tolist())


def _items(parents: Sequence[Variant]) -> Iterator[tuple[Path, Record, bool]]:
    """Every parent's kept records in order, marked if the same picture and caption came before."""
    repeated, seen = _repeated(parents), set[int]()
    for parent in parents:
        for record in parent.kept():
            key = _key(record) if repeated else 0
            again = key in seen
            if key in repeated:
                seen.add(key)
            yield parent.folder, record, again


def unite(parents: Sequence[Variant], out: Path, work: Work) -> Variant:
    """The union of variants, in the order given.

    Raises:
        BadInputError: fewer than two, or one twice.
    """
    folders = [parent.folder.resolve() for parent in parents]
    if len(set(folders)) < 2 or len(set(folders)) < len(folders):
        raise BadInputError("union: needs two or more different variants; give their folders")
    if out.resolve() in folders:
        raise BadInputError(f"--out {out}: is one of the variants that are read; choose another folder")
    with Builder(out, NAME, {"of": [parent.name for parent in parents]}, parents) as builder:
        joining = Joining(out, builder.settings_digest)
        total = sum(parent.finished.kept for parent in parents)
        fill(builder, joining, _items(parents), total, Work(quiet=work.quiet))
        return checked(builder.finish())
