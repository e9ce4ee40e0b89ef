"""Conversions between the units that appear in names: picoseconds inside the simulator, milliseconds in reports."""

from __future__ import annotations

PS_PER_S = 10**12
PS_PER_MS = 10**9
PS_PER_US = 10**6
MIB = 2**20


def ps_to_ms(time_ps: int) -> float:
    """Milliseconds of an integer number of picoseconds."""
    return time_ps / PS_PER_MS


def format_bytes(size_bytes: float) -> str:
    """A byte count as people read it: '2.62 MB' (decimal, as DRAM traffic is quoted)."""
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(size_bytes) >= limit:
            return f"{size_bytes / limit:.2f} {unit}"
    return f"{size_bytes:.0f} B"


def format_mib(size_bytes: float) -> str:
    """An SRAM size in binary mebibytes: '4.66 MiB' (as scratchpads are sized)."""
    return f"{size_bytes / MIB:.2f} MiB"
