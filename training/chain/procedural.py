"""Where a chain begins without anyone's pictures: a toy world as a crawler might find it, with the faults that the chain removes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import JsonValue

from npusim.training.chain import pictures
from npusim.training.chain.make import NAME
from npusim.training.chain.recaption import named
from npusim.training.chain.record import Record, record_id
from npusim.training.chain.step import Work, checked, fill
from npusim.training.chain.stream import BATCH
from npusim.training.chain.synth import as_image
from npusim.training.chain.variant import Builder, Variant, picture_name
from npusim.training.data.world import World
from npusim.training.grid.crawl import crawl, to_floats


@dataclass(frozen=True, slots=True)
class Crawling:
    """Numbers to records: copies, small pictures, subjects off the centre, wrong and short captions (`grid.crawl`).

    A block of records is a function of the seed and its number; copies repeat pictures of their own block.
    """

    world: World
    seed: int
    out: Path
    settings: str

    def __call__(self, numbers: Sequence[int]) -> list[Record]:
        """One record per number; all of one block."""
        block, first = divmod(numbers[0], BATCH)
        found = crawl(self.world, np.random.default_rng([self.seed, block]), BATCH)
        records = []
        for row, number in enumerate(numbers, start=first):
            step = self.world.resolution // int(found.short_side[row])
            picture = as_image(to_floats(found.wide[row, :, ::step, ::step]))
            attributes = named(self.world, found.labels[row].tolist())
            details: dict[str, JsonValue] = {"number": number}
            if found.parent[row] != row:
                details["copy_of"] = block * BATCH + int(found.parent[row])
            identity = record_id(NAME, self.settings, number)
            name = picture_name(identity, ".png")
            records.append(
                Record(
                    id=identity,
                    file=name,
                    sha256=pictures.save(picture, self.out / name),
                    width=picture.width,
                    height=picture.height,
                    caption=found.captions[row],
                    caption_source=f"crawl of {self.world.name}",
                    step=NAME,
                    settings=self.settings,
                    attributes=attributes,
                    details=details,
                )
            )
        return records


def make_from_world(world: World, count: int, seed: int, out: Path, work: Work) -> Variant:
    """The first variant of a toy world."""
    settings: dict[str, JsonValue] = {"world": world.name, "count": count, "seed": seed}
    with Builder(out, NAME, settings) as builder:
        crawling = Crawling(world, seed, out, builder.settings_digest)
        fill(builder, crawling, range(count), count, work)
        return checked(builder.finish())
