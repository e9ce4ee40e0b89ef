"""What a sweep asks for: read from TOML, checked key by key, each error one sentence."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from npusim.errors import BadInputError

Number = int | float
Value = int | float | str
#: One value of an axis: for each of its keys what that key is set to.
Setting = tuple[Value, ...]

_FORMAT = "see docs/sweeps.md for the format"
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Range(_Section):
    """`steps` numbers from `from` to `to`, evenly spaced (`linear`) or by an equal factor (`log`)."""

    start: float = Field(alias="from", allow_inf_nan=False)
    to: float = Field(allow_inf_nan=False)
    steps: int = Field(ge=2, le=100_000, strict=True)
    scale: Literal["linear", "log"] = "linear"

    @model_validator(mode="after")
    def _rises(self) -> Range:
        if self.start >= self.to:
            raise ValueError(f"'from' is {self.start:g}, 'to' is {self.to:g}; 'from' must be the smaller")
        if self.scale == "log" and self.start <= 0:
            raise ValueError(f"'from' is {self.start:g}; a log scale starts above 0")
        return self

    def numbers(self) -> tuple[float, ...]:
        """The numbers, both ends exact."""
        spaced = (np.geomspace if self.scale == "log" else np.linspace)(self.start, self.to, self.steps)
        return tuple(float(x) for x in spaced)


class Axis(_Section):
    """One axis: its values, and which keys each value sets (by default the axis's name is the key).

    Attributes:
        keys: keys that move together.
        values: with one key one value each; with several keys a number for all of them, or a list with one for each.
        range: numbers instead of `values`.
    """

    keys: tuple[str, ...] = ()
    values: tuple[Value | tuple[Value, ...], ...] | None = None
    range: Range | None = None

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, data: Any) -> Any:
        """A list is its values; a single value is an axis of one."""
        table = (
            data
            if isinstance(data, Mapping)
            else {"values": data if isinstance(data, list | tuple) else [data]}
        )
        values = table.get("values")
        for value in values if isinstance(values, list | tuple) else ():
            _check_parts(value if isinstance(value, list | tuple) else [value])
        return table

    @model_validator(mode="after")
    def _has_values(self) -> Axis:
        if (self.values is None) == (self.range is None):
            raise ValueError("needs either 'values' or 'range'")
        if self.values is not None and not self.values:
            raise ValueError("has no values; give at least one, or leave the axis out")
        return self

    def settings(self, name: str) -> tuple[Setting, ...]:
        """What each value of the axis called `name` sets, one entry per key.

        Raises:
            BadInputError: a value with more or fewer entries than keys, or one that stands there twice.
        """
        keys = self.keys or (name,)
        raw = self.values if self.values is not None else self.range.numbers()  # type: ignore[union-attr]
        found = [v if isinstance(v, tuple) else (v,) * len(keys) for v in raw]
        for setting in found:
            if len(setting) != len(keys):
                raise BadInputError(
                    f"axes.{name}: has a value with {len(setting)} entries for {len(keys)} keys; "
                    "give one number for all of them, or a list with one for each"
                )
        seen: set[Setting] = set()
        for setting in found:
            if setting in seen:
                raise BadInputError(f"axes.{name}: has the value {', '.join(map(repr, setting))} twice")
            seen.add(setting)
        return tuple(found)


def _check_parts(parts: Sequence[Any]) -> None:
    for part in parts:
        if (
            isinstance(part, bool)
            or not isinstance(part, int | float | str)
            or (isinstance(part, float) and not isfinite(part))
        ):
            raise ValueError(f"has the value {part!r}; allowed are numbers and texts")


class Network(_Section):
    """A network: a zoo name or an ONNX file (relative to the spec), with sizes for symbolic dimensions."""

    model: str = Field(min_length=1)
    name: str = ""
    shapes: Mapping[str, tuple[Annotated[int, Field(gt=0)], ...]] = {}
    dims: Mapping[str, Annotated[int, Field(gt=0)]] = {}

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, data: Any) -> Any:
        return {"model": data} if isinstance(data, str) else data


class Search(_Section):
    """How points are chosen: all of them (`grid`), or `trials` proposals of a sampler, each run on every network.

    Attributes:
        batch: proposals made at once; with `nsga2` the population.
        objectives: columns to be made small (`-` before one: large); over several networks their geometric mean.
    """

    method: Literal["grid", "random", "tpe", "nsga2"] = "grid"
    trials: int = Field(default=200, ge=1, le=10_000_000, strict=True)
    batch: int = Field(default=20, ge=2, le=10_000, strict=True)
    seed: int = Field(default=0, ge=0, lt=2**32, strict=True)


class Spec(_Section):
    """One sweep.

    Attributes:
        name: names the folder of its page and its view in the store.
        networks: what is run at every point.
        npu: preset or TOML file that the axes change.
        objectives: columns to be made small (`-` before one: large): the Pareto front, and what a search aims at.
        axes: name -> axis.
    """

    name: str = Field(pattern=_NAME)
    title: str = ""
    networks: tuple[Network, ...] = Field(min_length=1)
    npu: str = "exynos2400"
    objectives: tuple[str, ...] = Field(default=("latency_ms", "energy_mj"), min_length=1, max_length=4)
    axes: Mapping[str, Axis] = {}
    search: Search = Search()


def load_spec(path: Path) -> Spec:
    """Read a sweep.

    Raises:
        BadInputError: no such file, not TOML, or a key that is unknown, missing or wrong.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise BadInputError(f"{path}: cannot be read ({reason}); give the path of a sweep in TOML") from error
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BadInputError(f"{path}: is not TOML ({error}); {_FORMAT}") from error
    data.setdefault("name", path.stem)
    try:
        return Spec.model_validate(data)
    except ValidationError as error:
        raise BadInputError(f"{path}: {_first(error)}; {_FORMAT}") from error


def _first(error: ValidationError) -> str:
    """The first problem: where, what, and what was found."""
    first = error.errors()[0]
    where = ".".join(str(p) for p in first["loc"] if p not in ("int", "float", "str")) or "the sweep"
    if first["type"] == "extra_forbidden":
        allowed = ", ".join(_allowed(first["loc"]))
        return f"{where}: is not a key of a sweep" + (f"; allowed here are {allowed}" if allowed else "")
    if first["type"] == "missing":
        return f"{where}: is missing"
    found = first["input"]
    shown = f", found {found!r}" if isinstance(found, int | float | str) else ""
    return f"{where}: {first['msg'].removeprefix('Value error, ')}{shown}"


def _allowed(location: tuple[int | str, ...]) -> list[str]:
    """Keys of the table that a location lies in."""
    tables: Mapping[str, type[BaseModel]] = {"networks": Network, "axes": Axis, "search": Search}
    model = tables.get(str(location[0]), Spec) if len(location) > 1 else Spec
    if "range" in location[:-1]:
        model = Range
    return [field.alias or name for name, field in model.model_fields.items()]
