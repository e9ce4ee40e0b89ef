"""Synthetic records: prompts by attribute quota, pictures by a local pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from npusim.errors import BadInputError
from npusim.training.chain import pictures
from npusim.training.chain.quota import Quota, counts_by_share, table_rows, world_rows
from npusim.training.chain.recaption import labels_of, named
from npusim.training.chain.record import Record, record_id
from npusim.training.chain.step import Work, checked, fill
from npusim.training.chain.variant import Builder, Variant, picture_name
from npusim.training.data.world import Labels, World

NAME = "synth"


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a picture is asked to show. `text` is None where the prompter failed, `failure` says why."""

    number: int
    text: str | None
    attributes: dict[str, str]
    failure: str = ""


class Asked(Protocol):
    """Attributes of each prompt, in words."""

    def attributes(self, number: int) -> dict[str, str]:
        """Of prompt `number`: a function of the seed and the number."""

    def sentence(self, number: int) -> str:
        """The plain sentence that says them."""

    def settings(self) -> dict[str, JsonValue]:
        """All that these depend on."""

    def quotas(self) -> dict[str, dict[str, int]]:
        """How often each value of each attribute is asked for."""


class Prompter(Protocol):
    """Attributes to prompts."""

    @property
    def name(self) -> str:
        """As settings and caption sources record it."""

    def prompts(self, asked: Asked, numbers: Sequence[int]) -> list[Prompt]:
        """One prompt per number, each a function of its number."""


class Generator(Protocol):
    """Prompts to pictures."""

    @property
    def name(self) -> str:
        """As settings record it."""

    def draw(self, prompts: Sequence[Prompt]) -> list[Any]:
        """One PIL picture per prompt, each a function of its number."""


@dataclass(frozen=True, slots=True)
class QuotaAsked:
    """A quota file's attributes."""

    quota: Quota
    rows: dict[str, NDArray[np.int32]]
    seed: int

    @classmethod
    def of(cls, quota: Quota, seed: int, count: int) -> QuotaAsked:
        """For `count` prompts."""
        return cls(quota, table_rows(quota, seed, count), seed)

    def attributes(self, number: int) -> dict[str, str]:
        """Of one prompt."""
        values = self.quota.attributes
        return {name: list(values[name])[int(column[number])] for name, column in self.rows.items()}

    def sentence(self, number: int) -> str:
        """The filled template."""
        return self.quota.template.format(**self.attributes(number))

    def settings(self) -> dict[str, JsonValue]:
        """As variant.json records it."""
        return {"quota": self.quota.model_dump(), "seed": self.seed}

    def quotas(self) -> dict[str, dict[str, int]]:
        """Attribute -> value -> how often."""
        count = len(next(iter(self.rows.values()), ()))
        return {name: counts_by_share(shares, count) for name, shares in self.quota.attributes.items()}


@dataclass(frozen=True, slots=True)
class WorldAsked:
    """A procedural world's attributes."""

    world: World
    labels: Labels
    seed: int

    @classmethod
    def of(cls, world: World, seed: int, count: int) -> WorldAsked:
        """For `count` prompts."""
        return cls(world, world_rows(world, seed, count), seed)

    def attributes(self, number: int) -> dict[str, str]:
        """Of one prompt."""
        return named(self.world, self.labels[number])

    def sentence(self, number: int) -> str:
        """The world's caption."""
        rng = np.random.default_rng([self.seed, number])
        return self.world.captions(self.labels[number][None], rng)[0]

    def settings(self) -> dict[str, JsonValue]:
        """As variant.json records it."""
        return {"world": self.world.name, "seed": self.seed}

    def quotas(self) -> dict[str, dict[str, int]]:
        """Attribute -> value -> how often."""
        return {
            a.name: dict(zip(a.values, np.bincount(column, minlength=len(a.values)).tolist(), strict=True))
            for a, column in zip(self.world.attributes, self.labels.T, strict=True)
        }


@dataclass(frozen=True, slots=True)
class PlainPrompter:
    """The plain sentences themselves: no model."""

    name: str = "quota"

    def prompts(self, asked: Asked, numbers: Sequence[int]) -> list[Prompt]:
        """One prompt per number."""
        return [Prompt(number, asked.sentence(number), asked.attributes(number)) for number in numbers]


@dataclass(frozen=True, slots=True)
class WorldRenderer:
    """Draws a world's pictures from their attributes: no model, no defects."""

    world: World
    seed: int

    @property
    def name(self) -> str:
        """As settings record it."""
        return f"renders of {self.world.name}"

    def draw(self, prompts: Sequence[Prompt]) -> list[Any]:
        """One PIL picture per prompt."""
        return [self._draw(prompt) for prompt in prompts]

    def _draw(self, prompt: Prompt) -> Any:
        row = labels_of(self.world, prompt.attributes)
        if row is None:
            raise BadInputError(f"--images render: {self.world.name} cannot draw {prompt.attributes}")
        rng = np.random.default_rng([self.seed, prompt.number, 1])
        return as_image(self.world.render(np.asarray([row]), rng)[0])


def as_image(values: Any) -> Any:
    """A PIL picture from [3, H, W], -1 to 1."""
    from PIL import Image

    levels = np.clip(np.rint((np.asarray(values) + 1) * 127.5), 0, 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(levels.transpose(1, 2, 0)))


@dataclass(frozen=True, slots=True)
class Synthesis:
    """Numbers to records with pictures."""

    asked: Asked
    prompter: Prompter
    generator: Generator
    out: Path
    settings: str

    def __call__(self, numbers: Sequence[int]) -> list[Record]:
        """One record per number."""
        prompts = self.prompter.prompts(self.asked, numbers)
        usable = [prompt for prompt in prompts if prompt.text]
        drawn = dict(
            zip((p.number for p in usable), self.generator.draw(usable) if usable else [], strict=True)
        )
        return [self._record(prompt, drawn.get(prompt.number)) for prompt in prompts]

    def _record(self, prompt: Prompt, picture: Any) -> Record:
        identity = record_id(NAME, self.settings, prompt.number)
        made = Record(
            id=identity,
            file="",
            caption=prompt.text or "",
            caption_source=self.prompter.name,
            step=NAME,
            settings=self.settings,
            attributes=prompt.attributes,
            details={"number": prompt.number, "prompt": prompt.text},
        )
        if picture is None:
            return made.model_copy(update={"cause": "no prompt", "reason": prompt.failure})
        name = picture_name(identity, ".png")
        digest = pictures.save(picture, self.out / name)
        size = {"width": picture.width, "height": picture.height}
        return made.model_copy(update={"file": name, "sha256": digest, **size})


def synthesise(
    asked: Asked, prompter: Prompter, generator: Generator, count: int, out: Path, work: Work
) -> Variant:
    """A variant of `count` synthetic records.

    Raises:
        BadInputError: nothing usable came out.
    """
    settings: dict[str, JsonValue] = {
        **asked.settings(),
        "count": count,
        "prompts": prompter.name,
        "images": generator.name,
    }
    with Builder(out, NAME, settings) as builder:
        function = Synthesis(asked, prompter, generator, out, builder.settings_digest)
        fill(builder, function, range(count), count, Work(quiet=work.quiet))
        return checked(builder.finish())
