"""Options that several verbs share, checked with one sentence."""

from __future__ import annotations

from collections.abc import Sequence

from npusim.errors import BadInputError


def one_of(value: str, allowed: Sequence[str], option: str) -> str:
    """The value, if it is allowed.

    Raises:
        BadInputError: it is not.
    """
    if value not in allowed:
        raise BadInputError(f"{option} is '{value}'; allowed are {', '.join(allowed)}")
    return value


def parse_shapes(items: Sequence[str] | None) -> dict[str, list[int]]:
    """`NAME=1x4x64x64` items as name -> sizes.

    Raises:
        BadInputError: an item is of another form.
    """
    return dict(_parse(item, "--shape", "sample=1x4x64x64") for item in items or ())


def parse_dims(items: Sequence[str] | None) -> dict[str, int]:
    """`NAME=2` items as name -> size.

    Raises:
        BadInputError: an item is of another form.
    """
    found = {}
    for item in items or ():
        name, sizes = _parse(item, "--dim", "batch=2")
        if len(sizes) != 1:
            raise BadInputError(f"--dim is '{item}'; it takes one size, e.g. --dim batch=2")
        found[name] = sizes[0]
    return found


def _parse(item: str, option: str, example: str) -> tuple[str, list[int]]:
    name, equals, text = item.rpartition("=")
    sizes = text.split("x")
    if not equals or not name or not all(s.isdecimal() and len(s) < 10 and int(s) > 0 for s in sizes):
        raise BadInputError(
            f"{option} is '{item}'; it takes NAME=SIZES with sizes from 1, e.g. {option} {example}"
        )
    return name, [int(s) for s in sizes]
