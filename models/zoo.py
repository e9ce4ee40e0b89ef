"""The zoo: every named network's card, and its ONNX graph without weights as package data."""

from __future__ import annotations

import difflib
import lzma
from importlib.resources import files

from npusim.errors import BadInputError
from npusim.models.architectures import ARCHITECTURES, Architecture
from npusim.models.cards import CARDS, Card

__all__ = ["Card", "architecture", "batched", "card", "graph_bytes", "list_models", "names", "spellings"]

DEFAULT_SPELLING = "dynamo18"
_SUFFIX = ".onnx.xz"


def names() -> tuple[str, ...]:
    """The names of all networks, sorted."""
    return tuple(sorted(CARDS))


def card(name: str) -> Card:
    """The card of a network. Raises BadInputError for an unknown name."""
    _require_known(name)
    return CARDS[name]


def architecture(name: str) -> Architecture:
    """The class, configuration and inputs of a network. Raises BadInputError for an unknown name."""
    _require_known(name)
    return ARCHITECTURES[name]


def spellings(name: str) -> tuple[str, ...]:
    """The exporters' spellings in which a network's graph ships (`dynamo18`, `legacy17`), sorted."""
    _require_known(name)
    prefix = f"{name}."
    shipped = (entry.name for entry in files("npusim.models.graphs").iterdir())
    return tuple(
        sorted(
            file[len(prefix) : -len(_SUFFIX)]
            for file in shipped
            if file.startswith(prefix) and file.endswith(_SUFFIX)
        )
    )


def batched(spelling: str, batch: int) -> str:
    """The spelling of a graph at another batch than 1: `dynamo18-batch2`."""
    return spelling if batch == 1 else f"{spelling}-batch{batch}"


def graph_bytes(name: str, spelling: str = DEFAULT_SPELLING) -> bytes:
    """The ONNX protobuf of a network without weights: initializers keep name, shape and dtype.

    Args:
        name: One of `names()`.
        spelling: The exporter and opset that wrote the graph, one of `spellings(name)`.

    Raises:
        BadInputError: The name is unknown, or the network does not ship in that spelling.
    """
    _require_known(name)
    if spelling not in (shipped := spellings(name)):
        raise BadInputError(
            f"zoo network '{name}': spelling '{spelling}' does not ship; "
            f"it ships as {', '.join(shipped) or 'none'}; "
            f"choose one of these, or export one with: npusim models build {name}"
        )
    return lzma.decompress((files("npusim.models.graphs") / f"{name}.{spelling}{_SUFFIX}").read_bytes())


LISTING_COLUMNS = ("name", "parameters (M)", "GMAC", "inputs", "precision", "steps", "guidance", "source")


def list_models() -> tuple[tuple[str, ...], ...]:
    """One row of text per network under `LISTING_COLUMNS`, in the order of `names()`."""
    return tuple(_row(CARDS[name]) for name in names())


def _row(one: Card) -> tuple[str, ...]:
    inputs = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in one.inputs)
    return (
        one.name,
        f"{one.parameters / 1e6:,.1f}",
        "" if one.macs is None else f"{one.macs / 1e9:,.1f}",
        inputs,
        one.default_precision,
        str(one.steps),
        "yes" if one.guidance else "no",
        one.source + (" (inferred)" if one.inferred else ""),
    )


def _require_known(name: str) -> None:
    if name in CARDS:
        return
    close = difflib.get_close_matches(name.lower().replace("_", "-"), CARDS, n=3)
    guess = f" (did you mean {' or '.join(repr(match) for match in close)}?)" if close else ""
    raise BadInputError(
        f"model: no file and no zoo network is called {name!r}{guess}; the zoo has {', '.join(names())}; "
        "give one of these names or the path of an ONNX file"
    )
