"""The described NPU: read from TOML, checked key by key, each number with its source."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from npusim.dtypes import PAIRS
from npusim.errors import HardwareError
from npusim.toml_file import checked, parse_toml, read_text

PositiveInt = Annotated[int, Field(gt=0, le=2**53, strict=True)]
PositiveFloat = Annotated[float, Field(gt=0, le=1e18, allow_inf_nan=False, strict=True)]
NonNegativeFloat = Annotated[float, Field(ge=0, le=1e18, allow_inf_nan=False, strict=True)]
Share = Annotated[float, Field(gt=0, le=1, strict=True)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class Core(_Section):
    """Clock of the compute engines (Hz) and cost of submitting one network (s)."""

    clock_hz: PositiveInt
    launch_s: NonNegativeFloat


class TensorEngine(_Section):
    """`count` equal multiplier arrays of `array_rows` x `array_cols` x `array_depth` multipliers."""

    kind: str
    count: PositiveInt
    macs_per_cycle: PositiveInt
    array_rows: PositiveInt
    array_cols: PositiveInt
    array_depth: PositiveInt
    accumulator_bits: PositiveInt

    @model_validator(mode="after")
    def _array_is_the_peak(self) -> TensorEngine:
        product = self.array_rows * self.array_cols * self.array_depth
        if product != self.macs_per_cycle:
            raise ValueError(
                f"array_rows x array_cols x array_depth is {product}, macs_per_cycle says {self.macs_per_cycle}"
            )
        return self


class TensorEfficiency(_Section):
    """Sustained share of the peak: products of weights and activations, products of two activations."""

    weights: Share
    activations: Share


class VectorEngine(_Section):
    """`count` equal vector units of `lanes` lanes, one lane operation per lane and cycle."""

    kind: str
    count: PositiveInt
    lanes: PositiveInt
    working_dtype: str
    efficiency: Share


class Sram(_Section):
    """The shared scratchpad."""

    sram_bytes: PositiveInt
    alignment_bytes: PositiveInt
    bandwidth_bytes_per_s: PositiveInt
    read_ports: PositiveInt
    write_ports: PositiveInt


class Dma(_Section):
    """Channels between DRAM and SRAM: set-up per transfer, rate limit per channel, overhead per contiguous run."""

    channels: Annotated[int, Field(gt=0, le=64)]
    setup_s: NonNegativeFloat
    channel_bytes_per_s: PositiveInt
    run_overhead_bytes: NonNegativeFloat


class Dram(_Section):
    """Bandwidth that all channels share (usable), and the theoretical peak."""

    dram_shared_bytes_per_s: PositiveInt
    dram_peak_bytes_per_s: PositiveInt


class Handover(_Section):
    """Cost, to a consumer, of an operand in SRAM that a different kind of compute engine wrote."""

    handover_s: NonNegativeFloat


class Energy(_Section):
    """Energy per multiply-accumulate of each operand pair, per lane operation, per byte moved."""

    mac_pj: Mapping[str, NonNegativeFloat]
    vector_operation_pj: NonNegativeFloat
    sram_pj_per_byte: NonNegativeFloat
    dram_pj_per_byte: NonNegativeFloat


class Npu(_Section):
    """One described NPU. Units stand in the keys; `sources` maps key paths (or prefixes) to where the number is from."""

    name: str
    title: str
    core: Core
    tensor_engine: tuple[TensorEngine, ...] = Field(min_length=1)
    tensor_rates: Mapping[str, Annotated[float, Field(gt=0, le=16, strict=True)]]
    tensor_efficiency: TensorEfficiency
    vector_engine: VectorEngine
    vector_lane_operations: Mapping[str, PositiveFloat]
    sram: Sram
    dma: Dma
    dram: Dram
    handover: Handover
    energy: Energy
    sources: Mapping[str, str]

    @model_validator(mode="after")
    def _complete(self) -> Npu:
        for table, where in ((self.tensor_rates, "tensor_rates"), (self.energy.mac_pj, "energy.mac_pj")):
            unknown = sorted(set(table) - set(PAIRS))
            if unknown:
                raise ValueError(f"{where} has '{unknown[0]}'; pairs are {', '.join(PAIRS)}")
        if "default" not in self.vector_lane_operations:
            raise ValueError("vector_lane_operations needs 'default', for functions that it does not list")
        kinds = [*(e.kind for e in self.tensor_engine), self.vector_engine.kind, "dma"]
        for kind in kinds:
            if kinds.count(kind) > 1 or not kind or kind[-1].isdigit():
                raise ValueError(
                    f"kinds of engine need different names that end in no digit; found {', '.join(kinds)}"
                )
        for path, _ in self.numbers():
            if not self.source_of(path):
                raise ValueError(f"sources does not say where '{path}' is from")
        return self

    def numbers(self) -> Iterator[tuple[str, float]]:
        """Every number with its key path, e.g. `('dma.setup_s', 1e-06)`; lists of tables share one path."""
        yield from _leaves("", self.model_dump(exclude={"sources"}))

    def source_of(self, path: str) -> str | None:
        """Where the number at `path` is from: its own entry, or that of the nearest enclosing table."""
        while path:
            if path in self.sources:
                return self.sources[path]
            path = path.rpartition(".")[0]
        return None


def _leaves(path: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(f"{path}.{key}" if path else key, inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _leaves(path, inner)
    elif isinstance(value, int | float):
        yield path, value


_FORMAT = "docs/hardware.md"


def preset_names() -> tuple[str, ...]:
    """Names of the shipped hardware descriptions, sorted."""
    folder = resources.files("npusim.presets")
    return tuple(
        sorted(
            f.name.removesuffix(".toml")
            for f in folder.iterdir()
            if f.name.endswith(".toml") and not f.name.endswith(".targets.toml")
        )
    )


def load_npu(name_or_path: str | Path) -> Npu:
    """Read a preset by name, or a TOML file by path.

    Raises:
        HardwareError: no such preset or file, not TOML, a key unknown, missing, ill-typed or out of range.
    """
    if isinstance(name_or_path, str) and name_or_path in preset_names():
        text = resources.files("npusim.presets").joinpath(f"{name_or_path}.toml").read_text("utf-8")
        return parse_npu(text, where=name_or_path)
    path = Path(name_or_path)
    if not path.is_file():
        raise HardwareError(
            f"{name_or_path}: no such hardware; give a preset ({', '.join(preset_names())}) or the path of a TOML file"
        )
    text = read_text(path, HardwareError)
    return parse_npu(text, where=str(path))


def parse_npu(text: str, *, where: str) -> Npu:
    """Check a hardware description given as TOML text.

    Raises:
        HardwareError: with the path of the first offending key.
    """
    data = parse_toml(text, where=where, error=HardwareError, docs=_FORMAT)
    return npu_from_dict(data, where=where)


def npu_from_dict(data: Mapping[str, Any], *, where: str) -> Npu:
    """Check a hardware description given as nested dictionaries (a plan embeds one)."""
    return checked(Npu, data, where=where, error=HardwareError, docs=_FORMAT)


def with_values(npu: Npu, changes: Mapping[str, Any]) -> Npu:
    """The same NPU with some values replaced, by key path (`dram.dram_shared_bytes_per_s`, `tensor_engine.GNPU.count`).

    Raises:
        HardwareError: a path names no value of the description.
    """
    data = npu.model_dump()
    for path, value in changes.items():
        table, key = _table_of(data, path), path.rpartition(".")[2]
        if table is None or isinstance(table.get(key), dict | list | tuple | None):
            raise HardwareError(
                f"{npu.name}: '{path}' names no number of the hardware description; see 'npusim npu show {npu.name}'"
            )
        table[key] = type(table[key])(value) if isinstance(table[key], int) else value
    return npu_from_dict(data, where=npu.name)


def _table_of(data: Any, path: str) -> dict[str, Any] | None:
    """The table that holds a key; one of a list of tables is named by its kind."""
    for name in path.split(".")[:-1]:
        if isinstance(data, list | tuple):
            data = next((entry for entry in data if entry.get("kind") == name), None)
        else:
            data = data.get(name) if isinstance(data, dict) else None
    return data if isinstance(data, dict) else None
