"""The plan: every decision, small, readable, deterministic. It embeds the hardware and the hashes of model and Program."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from npusim.errors import PlanError
from npusim.hardware import Npu

PLAN_SCHEMA = 2


def _engines_by_kind(data: dict[str, Any]) -> dict[str, Any]:
    """Schema 1 to 2: a layer's engines were all of one kind, its `unit`."""

    def step(layer: Any) -> Any:
        if not isinstance(layer, dict) or not isinstance(layer.get("unit"), str):
            return layer  # refused when it is validated
        rest = {k: v for k, v in layer.items() if k != "unit"}
        return {**rest, "engines": {layer["unit"]: layer.get("engines")}}

    layers = data.get("layers")
    return {**data, "layers": [*map(step, layers)]} if isinstance(layers, list) else data


#: Schema N -> a plan of it as schema N + 1. One entry per past schema, so that every older plan loads; never remove one.
UPGRADES: Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _engines_by_kind}


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Pieces(_Model):
    """How a layer streams through SRAM, on its own or inside each tile of a row chain (then `rows` are the chain's).

    `rows` and `cols` are the output rows and columns of one piece; `order` is the outer loop; `depth` is how many pieces of
    each streamed operand are in SRAM at once (2: double buffering).
    """

    rows: int = Field(gt=0)
    cols: int = Field(gt=0)
    order: Literal["rows", "cols"] = "rows"
    depth: int = Field(default=1, gt=0)


class Slots(_Model):
    """A ring of equal SRAM places for the pieces of one operand."""

    name: str
    slot_bytes: int
    addresses: tuple[int, ...]


class LayerPlan(_Model):
    """Decisions for one layer: precision, engines, pieces (None inside an attention segment), SRAM slots.

    `engines` maps kinds of engine to the numbers of those that share the layer's work, e.g. `{"GNPU": [0, 1], "SNPU": [0, 1]}`.
    `early_statistics` says of a GroupNorm that the layers which make its input take its sums; it then reads its input once.
    """

    name: str
    precision: str
    engines: Mapping[str, tuple[int, ...]]
    pieces: Pieces | None = None
    segment: str = ""
    slots: tuple[Slots, ...] = ()
    early_statistics: bool = False


class SegmentPlan(_Model):
    """Layers scheduled together: tile extents, buffering, SRAM slots.

    Attributes:
        kind: `attention` (scores, softmax, values: heads x query rows x keys), or `rows` (a chain of layers, cut by rows of the last one).
        tiles: slices per axis, e.g. `{"heads": 8, "rows": 16}`; `tile_count` is their product (per batch element).
        heads_per_tile, rows_per_tile: extent of one tile (the last may be smaller); a chain's tile has all heads.
        keys_per_tile: keys of one tile of an attention (the last may have fewer), joined by online softmax; 0: all of them.
        depth: tiles in flight.
        in_place: whether probabilities overwrite scores.
        requested: the tile count asked for, where it had to be clamped; else 0.
    """

    name: str
    kind: Literal["attention", "rows"]
    layers: tuple[str, ...] = Field(min_length=1)
    tiles: Mapping[str, int]
    tile_count: int
    heads_per_tile: int = Field(gt=0)
    rows_per_tile: int = Field(gt=0)
    keys_per_tile: int = Field(default=0, ge=0)
    depth: int = Field(gt=0)
    in_place: bool
    requested: int = 0
    slots: tuple[Slots, ...] = ()


class TensorPlan(_Model):
    """Where a tensor lives between layers, and how it lies there (`block` 0: plain; else columns per padded block).

    `in_place_of` names the tensor that it overwrites in SRAM, or is empty. `loaded` marks an input that is brought into its SRAM
    place as a whole before its first reader.
    """

    name: str
    home: Literal["sram", "dram"]
    block: int = 0
    padded: int = 0
    element_bytes: int
    address: int = 0
    size_bytes: int
    in_place_of: str = ""
    loaded: bool = False


class ModelRef(_Model):
    """What was planned: name and hash of the model file."""

    name: str
    sha256: str


class Options(_Model):
    """What the user asked for."""

    tiles: str
    segments: str
    precision: str
    policy: Literal["serial", "decoupled"]


class Plan(_Model):
    """All decisions of a deployment.

    `unjoined` names segments that could have been joined if any tiling of theirs fitted the SRAM; their layers stream one by one.
    `program_sha256` is the hash of the Program that this plan lowers to; it is checked when a plan is loaded with its model.
    `scales_sha256` is the hash of `scales.npz`, empty until the plan is quantized.
    """

    schema_version: int = PLAN_SCHEMA
    npusim_version: str
    model: ModelRef
    options: Options
    npu: Npu
    tensors: tuple[TensorPlan, ...]
    layers: tuple[LayerPlan, ...]
    segments: tuple[SegmentPlan, ...]
    unjoined: tuple[str, ...] = ()
    program_sha256: str = ""
    scales_sha256: str = ""

    @model_validator(mode="after")
    def _engines_are_there(self) -> Plan:
        vector = self.npu.vector_engine
        counts = {vector.kind: vector.count} | {e.kind: e.count for e in self.npu.tensor_engine}
        for layer in self.layers:
            mixed = len(layer.engines) > 1 and vector.kind in layer.engines
            there = all(n and set(n) <= set(range(counts.get(k, 0))) for k, n in layer.engines.items())
            if not layer.engines or mixed or not there:
                found = ", ".join(f"{k} {list(n)}" for k, n in layer.engines.items()) or "none"
                every = ", ".join(f"{k} 0 to {n - 1}" for k, n in counts.items())
                raise ValueError(
                    f"layer '{layer.name}' has engines {found}; {self.npu.name} has {every}, "
                    "and a layer runs on vector or on tensor engines"
                )
        return self

    @property
    def precisions(self) -> dict[str, str]:
        """Layer -> precision."""
        return {layer.name: layer.precision for layer in self.layers}

    def to_json(self) -> str:
        """Deterministic JSON text."""
        return json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=False) + "\n"


def parse_plan(text: str, *, where: str) -> Plan:
    """Read a plan from JSON text.

    Raises:
        PlanError: not JSON, a newer schema, a key unknown, missing or ill-typed.
    """
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise PlanError(f"{where}: is not JSON ({error}); profile the model again") from error
    if not isinstance(data, dict):
        raise PlanError(f"{where}: holds a {type(data).__name__}, not a plan; profile the model again")
    data = _upgraded(data, where)
    try:
        return Plan.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        at = "".join(f"{p}." for p in first["loc"])[:-1]
        message = first["msg"].removeprefix("Value error, ")
        raise PlanError(f"{where}: {at}{': ' if at else ''}{message}; profile the model again") from error


def _upgraded(data: dict[str, Any], where: str) -> dict[str, Any]:
    """The data in the present schema, one step per schema since its own."""
    version = data.get("schema_version")
    if type(version) is not int or not 1 <= version <= PLAN_SCHEMA:
        allowed = f"1 to {PLAN_SCHEMA}" if PLAN_SCHEMA > 1 else "1"
        raise PlanError(
            f"{where}: has schema version {version!r}; this npusim reads {allowed}; install a matching npusim or profile again"
        )
    for step in range(version, PLAN_SCHEMA):
        data = {**UPGRADES[step](data), "schema_version": step + 1}
    return data


def load_plan(path: Path) -> Plan:
    """Read `plan.json`.

    Raises:
        PlanError: unreadable, or see `parse_plan`.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(
            f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}); give a run directory written by 'npusim profile'"
        ) from error
    return parse_plan(text, where=str(path))


def plan_schema() -> dict[str, Any]:
    """JSON Schema of `plan.json`."""
    return Plan.model_json_schema()
