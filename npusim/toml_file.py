"""A TOML file checked key by key against a pydantic model: each problem is one sentence with the key's path."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from npusim.errors import NpusimError

Model = TypeVar("Model", bound=BaseModel)


def read_text(path: Path, error: type[NpusimError]) -> str:
    """The text of a file.

    Raises:
        error: it cannot be read as UTF-8.
    """
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise error(f"{path}: cannot be read as text ({problem})") from problem


def parse_toml(text: str, *, where: str, error: type[NpusimError], docs: str) -> dict[str, Any]:
    """The tables of a TOML text.

    Raises:
        error: it is not TOML.
    """
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as problem:
        raise error(f"{where}: is not TOML ({problem}); see {docs} for the format") from problem


def checked(
    model: type[Model], data: Mapping[str, Any], *, where: str, error: type[NpusimError], docs: str
) -> Model:
    """The data as a model.

    Raises:
        error: with the path of the first offending key.
    """
    try:
        return model.model_validate(data)
    except ValidationError as problem:
        first = problem.errors()[0]
        path = ".".join(str(p) for p in first["loc"]) or "the description"
        found = first["input"]
        shown = f", found {found!r}" if isinstance(found, int | float | str | bool) else ""
        said = (
            "is not a key of the format"
            if first["type"] == "extra_forbidden"
            else first["msg"].removeprefix("Value error, ")
        )
        raise error(f"{where}: {path}: {said}{shown}; see {docs} for the format") from problem
