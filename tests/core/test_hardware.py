"""Hardware descriptions: presets load, every number has a source, and anything odd is refused with its key's path."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from npusim.errors import HardwareError
from npusim.hardware import load_npu, npu_from_dict, parse_npu, preset_names, with_values


def text_of(name: str) -> str:
    return resources.files("npusim.presets").joinpath(f"{name}.toml").read_text("utf-8")


def numbers_in(table: Any, path: str = "") -> set[str]:
    """Key paths of all numbers of a TOML document."""
    if isinstance(table, Mapping):
        return {
            p for key, value in table.items() for p in numbers_in(value, f"{path}.{key}" if path else key)
        }
    if isinstance(table, list):
        return {p for value in table for p in numbers_in(value, path)}
    return {path} if isinstance(table, int | float) else set()


def changed(path: str, value: Any, name: str = "toy") -> dict[str, Any]:
    """The preset as a dictionary with one entry replaced (or removed, where the value is ...)."""
    data = tomllib.loads(text_of(name))
    *tables, key = path.split(".")
    table: Any = data
    for step in tables:
        table = table[int(step)] if step.isdigit() else table[step]
    if value is ...:
        del table[key]
    else:
        table[key] = value
    return data


@pytest.mark.parametrize("name", preset_names())
def test_presets_load_and_are_called_as_their_file(name: str) -> None:
    assert load_npu(name).name == name


def test_the_two_presets_of_this_issue_are_there() -> None:
    assert {"exynos2400", "toy"} <= set(preset_names())


@pytest.mark.parametrize("name", preset_names())
def test_every_number_of_a_preset_says_where_it_is_from(name: str) -> None:
    npu = load_npu(name)
    assert numbers_in(tomllib.loads(text_of(name))) == {path for path, _ in npu.numbers()}
    for path, _ in npu.numbers():
        source = npu.source_of(path)
        assert source is not None
        assert source.split(":")[0].split(";")[0] in {
            "published",
            "secondary",
            "derived",
            "assumed",
            "fitted",
        } or source.startswith(("derived for", "assumed for")), path


def test_at_most_seven_numbers_are_fitted_and_each_is_in_the_description_of_the_fit() -> None:
    npu = load_npu("exynos2400")
    fitted = {path for path, source in npu.sources.items() if source.startswith("fitted")}
    assert 0 < len(fitted) <= 7
    fit = tomllib.loads(text_of("exynos2400.targets"))
    assert fitted == {p["path"] for p in fit["parameter"]}


def test_the_published_peak_of_the_exynos_2400_is_its_arrays_times_its_clock() -> None:
    """41.6 TOPS = 2 operations x 17,408 multipliers x 1.196 GHz."""
    npu = load_npu("exynos2400")
    multipliers = sum(e.count * e.macs_per_cycle for e in npu.tensor_engine)
    assert multipliers == 17_408
    assert 2 * multipliers * npu.core.clock_hz / 1e12 == pytest.approx(41.6, abs=0.05)


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("sram.sram_kib", 64, "sram.sram_kib"),
        ("surprise", 1, "surprise"),
        ("core.clock_hz", "fast", "core.clock_hz"),
        ("core.clock_hz", 0, "core.clock_hz"),
        ("core.clock_hz", -5, "core.clock_hz"),
        ("core.clock_hz", 1.5, "core.clock_hz"),
        ("core.clock_hz", float("nan"), "core.clock_hz"),
        ("dma.setup_s", -1e-6, "dma.setup_s"),
        ("dma.setup_s", float("inf"), "dma.setup_s"),
        ("dma.channels", 0, "dma.channels"),
        ("tensor_efficiency.weights", 1.01, "tensor_efficiency.weights"),
        ("sram.sram_bytes", ..., "sram.sram_bytes"),
        ("dram", ..., "dram"),
        ("tensor_engine", [], "tensor_engine"),
        (
            "tensor_engine.0.array_rows",
            8,
            "array_rows x array_cols x array_depth is 128, macs_per_cycle says 64",
        ),
        ("tensor_rates.int4xint4", 1.0, "tensor_rates has 'int4xint4'"),
        ("energy.mac_pj.int3xint3", 1.0, "energy.mac_pj has 'int3xint3'"),
        ("vector_lane_operations.default", ..., "vector_lane_operations needs 'default'"),
        ("sources.dma", ..., "sources does not say where 'dma.channels' is from"),
    ],
)
def test_a_description_that_is_wrong_is_refused_with_the_path_of_its_key(
    path: str, value: Any, says: str
) -> None:
    with pytest.raises(HardwareError) as caught:
        npu_from_dict(changed(path, value), where="mine.toml")
    message = str(caught.value)
    assert message.startswith("mine.toml: ")
    assert says in message
    assert "docs/hardware.md" in message


@pytest.mark.parametrize("value", ["1000000000", True])
def test_text_and_truth_values_are_not_numbers(value: Any) -> None:
    with pytest.raises(HardwareError):
        npu_from_dict(changed("core.clock_hz", value), where="mine.toml")


def test_an_empty_source_is_no_source() -> None:
    with pytest.raises(HardwareError):
        npu_from_dict(changed("sources.dma", ""), where="mine.toml")


def test_two_kinds_of_engine_need_two_names() -> None:
    with pytest.raises(HardwareError):
        npu_from_dict(changed("tensor_engine.1.kind", "GNPU", "exynos2400"), where="mine.toml")


def test_text_that_is_no_toml_is_refused() -> None:
    with pytest.raises(HardwareError, match=r"mine\.toml: is not TOML"):
        parse_npu("clock = = 3", where="mine.toml")


def test_a_file_by_path_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text_of("toy").replace('name = "toy"', 'name = "mine"'), "utf-8")
    assert load_npu(str(path)).name == "mine"


@pytest.mark.parametrize("name", ["exynos", "missing.toml", "."])
def test_an_unknown_name_lists_the_presets(name: str) -> None:
    with pytest.raises(HardwareError, match=r"no such hardware.*exynos2400.*toy"):
        load_npu(name)


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(HardwareError, match="cannot be read as text"):
        load_npu(path)


def test_numbers_are_replaced_by_path_and_checked_again() -> None:
    npu = with_values(load_npu("toy"), {"dram.dram_shared_bytes_per_s": 2e9, "dma.setup_s": 0.5})
    assert (npu.dram.dram_shared_bytes_per_s, npu.dma.setup_s) == (2_000_000_000, 0.5)
    for path, value in (("dram.speed", 1), ("nothing", 1), ("core", 1), ("sram.sram_bytes", 0)):
        with pytest.raises(HardwareError):
            with_values(npu, {path: value})


def test_nothing_is_hard_wired_to_one_machine() -> None:
    """The presets differ in every section that the cost model reads."""
    a, b = load_npu("exynos2400"), load_npu("toy")
    for section in (
        "core",
        "tensor_engine",
        "vector_engine",
        "sram",
        "dma",
        "dram",
        "handover",
        "tensor_efficiency",
    ):
        assert getattr(a, section) != getattr(b, section)
