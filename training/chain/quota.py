"""Attributes by quota: how often each value of each attribute is to be asked for, and the table that shows it."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from string import Formatter

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from npusim.errors import BadInputError
from npusim.training.data.world import Labels, World


class Quota(BaseModel):
    """A quota file.

    template: such as "a {style} of a {subject}"; each name in braces is an attribute.
    attributes: name -> value -> share; shares need not add up to one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    template: str
    attributes: dict[str, dict[str, float]]


def read_quota(path: Path) -> Quota:
    """A quota from TOML.

    Raises:
        BadInputError: not TOML, unknown keys, a template that names no attribute, or shares that are not positive.
    """
    try:
        quota = Quota.model_validate(tomllib.loads(path.read_text("utf-8")))
        names = {field for _, field, _, _ in Formatter().parse(quota.template) if field is not None}
    except (OSError, ValueError, ValidationError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else None
        said = f"{'.'.join(map(str, first['loc']))}: {first['msg']}" if first else str(error)
        raise BadInputError(
            f'{path}: not a quota ({said}); it needs template = "a {{style}} of a {{subject}}" and a table '
            "[attributes.style] of values and shares for each name"
        ) from error
    if names != set(quota.attributes):
        raise BadInputError(
            f"{path}: the template names {sorted(names)}, there are tables for {sorted(quota.attributes)}; name each once"
        )
    for name, shares in quota.attributes.items():
        if not shares or min(shares.values()) <= 0:
            raise BadInputError(
                f"{path}: attributes.{name}: needs values with positive shares, found {shares}"
            )
    return quota


def counts_by_share(shares: Mapping[str, float], count: int) -> dict[str, int]:
    """Whole numbers in these proportions that add up to `count` (largest remainders)."""
    total = sum(shares.values())
    exact = {value: count * share / total for value, share in shares.items()}
    whole = {value: int(share) for value, share in exact.items()}
    rest = sorted(exact, key=lambda value: whole[value] - exact[value])
    for value in rest[: count - sum(whole.values())]:
        whole[value] += 1
    return whole


def table_rows(quota: Quota, seed: int, count: int) -> dict[str, NDArray[np.int32]]:
    """Of each attribute the value's index for each of `count` prompts: [count]. Every value comes as often as its share says."""
    rng = np.random.default_rng(seed)
    rows = {}
    for name, shares in quota.attributes.items():
        wanted = list(counts_by_share(shares, count).values())
        rows[name] = rng.permutation(np.repeat(np.arange(len(wanted), dtype=np.int32), wanted))
    return rows


def world_rows(world: World, seed: int, count: int) -> Labels:
    """Labels of a world in which each value of each attribute comes equally often, to one: [count, A].

    Combinations that networks may not train on are taken apart by exchanging values between rows, which changes no count.

    Raises:
        BadInputError: so few rows cannot be arranged.
    """
    rng = np.random.default_rng(seed)
    sizes = [len(a.values) for a in world.attributes]
    columns = [rng.permutation(rng.permutation(size)[np.arange(count) % size]) for size in sizes]
    rows = np.stack(columns, axis=1).astype(np.int64)
    for _ in range(2000):
        wrong = np.flatnonzero(~world.seen(rows))
        if not len(wrong):
            return rows
        mixed = np.unique(np.concatenate([wrong, rng.integers(0, count, len(wrong) + 1)]))
        column = rng.integers(0, rows.shape[1])
        tried = rows[mixed]
        tried[:, column] = rng.permutation(tried[:, column])
        if world.seen(tried).sum() >= world.seen(rows[mixed]).sum():
            rows[mixed] = tried
    raise BadInputError(
        f"{world.name}: {count} records cannot cover every value without a withheld pair; ask for more"
    )
