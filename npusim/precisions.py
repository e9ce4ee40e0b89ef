"""Precision layer by layer: element types of tensors, and casts where neighbours differ."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from npusim.dtypes import PRECISIONS
from npusim.errors import BadInputError
from npusim.graph import Graph, Layer, Operand, Part, Tensor
from npusim.ops import index_tensors

#: Layer -> name of its precision.
Precisions = Mapping[str, str]
#: What a plan says of its precision when its layers do not share one.
MIXED = "mixed"


def common_precision(precisions: Precisions) -> str:
    """The one precision of all layers, or `mixed`."""
    found = set(precisions.values())
    return found.pop() if len(found) == 1 else MIXED


def tensor_dtypes(graph: Graph, precisions: Precisions) -> dict[str, str]:
    """Element type of every tensor, as the precision of the layer that writes it says; of others, the finest that a reader wants.

    Biases of integer layers and row numbers of tables are 32 bits wide; scales and shifts of norms have the type of activations.
    """
    found: dict[str, str] = {}
    written = {x.output for x in graph.layers}
    for layer in graph.layers:
        chosen = PRECISIONS[precisions[layer.name]]
        found[layer.output] = chosen.activation
        for operand in layer.operands:
            for part in operand.parts:
                if operand.role in ("weight", "table"):
                    found[part.tensor] = chosen.weight
                elif (
                    operand.role == "bias"
                    and layer.op in ("conv", "linear")
                    and chosen.activation.startswith("int")
                ):
                    found[part.tensor] = "int32"
                elif part.tensor not in written:
                    found[part.tensor] = finest(chosen.activation, found.get(part.tensor))
    for name in graph.tensors:
        found.setdefault(name, "fp32")
    found.update(dict.fromkeys(index_tensors(graph), "int32"))
    return found


#: Activation types from coarse to fine.
_FINENESS = ("int8", "fp16", "int16", "int32", "fp32")


def finest(one: str, other: str | None) -> str:
    """The finer of two activation types."""
    return one if other is None or _FINENESS.index(one) >= _FINENESS.index(other) else other


def bound_together(graph: Graph) -> list[tuple[str, ...]]:
    """Layers that must share a precision, in execution order: those of one attention, and those that read one weight."""
    root = {x.name: x.name for x in graph.layers}

    def find(name: str) -> str:
        while root[name] != name:
            name = root[name]
        return name

    first: dict[str, str] = {}
    for layer in graph.layers:
        keys = [f"group {layer.group}"] if layer.group else []
        keys += [f"weight {t}" for t in layer.reads() if graph.tensors[t].kind == "weight"]
        for key in keys:
            root[find(layer.name)] = find(first.setdefault(key, layer.name))
    sets: dict[str, list[str]] = {}
    for layer in graph.layers:
        sets.setdefault(find(layer.name), []).append(layer.name)
    return [tuple(names) for names in sets.values()]


def check_precisions(graph: Graph, precisions: Precisions, where: str = "precision") -> None:
    """Refuse an assignment that leaves a layer out, names one that is not there, or splits what must share a precision.

    Raises:
        BadInputError: one sentence.
    """
    names = {x.name for x in graph.layers}
    for name in sorted(names - set(precisions)):
        raise BadInputError(f"{where}: layer '{name}' has none; give one to every layer, or a default")
    for name, precision in precisions.items():
        if name not in names:
            raise BadInputError(f"{where}: '{graph.name}' has no layer '{name}'; layers.csv lists its layers")
        if precision not in PRECISIONS:
            raise BadInputError(
                f"{where}: layer '{name}' has '{precision}'; allowed are {', '.join(PRECISIONS)}"
            )
    for together in bound_together(graph):
        found = {precisions[n] for n in together}
        if len(found) > 1:
            raise BadInputError(
                f"{where}: {' and '.join(sorted(found))} in '{together[0]}' and '{together[-1]}', which are one attention or share a "
                "weight; give them one precision"
            )


def with_casts(graph: Graph, precisions: Precisions) -> tuple[Graph, dict[str, str]]:
    """The network with a cast wherever a layer reads what is stored in another type than its own, and the precision of each layer.

    A cast runs just before its first reader and serves all later readers of that type. Row numbers and constants are not cast. An
    input of the model is stored in the finest type that a reader wants.

    Raises:
        BadInputError: see `check_precisions`.
    """
    check_precisions(graph, precisions)
    dtypes = tensor_dtypes(graph, precisions)
    uncast = index_tensors(graph) | {t.name for t in graph.of_kind("weight")}
    tensors, layers, full = dict(graph.tensors), list[Layer](), dict[str, str]()
    stored = {t.name: dtypes[t.name] for t in graph.of_kind("input")}
    for layer in graph.layers:
        chosen = precisions[layer.name]
        wanted = PRECISIONS[chosen].activation
        renamed: dict[str, str] = {}
        for name in dict.fromkeys(layer.reads()):
            if name in uncast or stored[name] == wanted:
                continue
            cast = renamed[name] = f"{name}:{wanted}"
            if cast not in tensors:
                tensors[cast] = Tensor(name=cast, shape=graph.tensors[name].shape, kind="intermediate")
                layers.append(_cast(name, cast, graph.tensors[name].shape[3], layer.scope))
                full[cast] = chosen
        layers.append(_reading(layer, renamed))
        stored[layer.output] = wanted
        full[layer.name] = chosen
    return replace(graph, tensors=tensors, layers=tuple(layers)), full


def _cast(tensor: str, name: str, cols: int, scope: str) -> Layer:
    x = Operand(role="x", parts=(Part(tensor, 0, cols),))
    return Layer(
        name=name, op="elementwise", operands=(x,), output=name, attributes={"function": "cast"}, scope=scope
    )


def _reading(layer: Layer, renamed: Mapping[str, str]) -> Layer:
    if not renamed:
        return layer
    operands = tuple(
        replace(o, parts=tuple(Part(renamed.get(p.tensor, p.tensor), p.start, p.size) for p in o.parts))
        for o in layer.operands
    )
    return replace(layer, operands=operands)


# ---- files -----------------------------------------------------------------------------------------------------------

FILE_SCHEMA = 1


def precisions_json(precisions: Precisions) -> str:
    """An assignment as a file holds it."""
    return json.dumps({"schema_version": FILE_SCHEMA, "layers": dict(precisions)}, indent=1) + "\n"


def read_precisions(path: Path, graph: Graph) -> dict[str, str]:
    """An assignment from a file: `{"default": "w8a16", "layers": {"conv_in": "w8a8"}}`, the default for what `layers` leaves out.

    Raises:
        BadInputError: unreadable, another schema, or see `check_precisions`.
    """
    try:
        data = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise BadInputError(
            f"{path}: is no readable JSON ({error}); 'npusim search' writes such files"
        ) from error
    if not isinstance(data, dict) or not isinstance(data.get("layers", {}), dict):
        raise BadInputError(
            f'{path}: holds no object with \'layers\'; write {{"default": "w8a16", "layers": {{...}}}}'
        )
    version = data.get("schema_version", FILE_SCHEMA)
    if version != FILE_SCHEMA:
        raise BadInputError(f"{path}: has schema version {version!r}; this npusim reads {FILE_SCHEMA}")
    given = {str(n): str(p) for n, p in data.get("layers", {}).items()}
    if "default" in data:
        given = {x.name: str(data["default"]) for x in graph.layers} | given
    check_precisions(graph, given, where=str(path))
    return given
