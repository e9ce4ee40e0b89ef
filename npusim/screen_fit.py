"""What `npusim npu fit` prints: numbers, residuals, and what the measurements do not determine."""

from __future__ import annotations

import numpy as np
from rich.console import Console
from rich.table import Table

from npusim.fit import FitResult


def print_fit(result: FitResult) -> None:
    """Three tables: fitted numbers, targets, identifiability."""
    console = Console()
    table = Table(title="fitted numbers", title_justify="left", box=None, padding=(0, 1))
    for name, justify in (("key", "left"), ("value", "right"), ("pull of 1 %", "right"), ("", "left")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    strength = np.sqrt((result.sensitivity**2).sum(axis=0))
    for i, (path, value) in enumerate(result.values.items()):
        note = "on its bound: not determined by these targets" if path in result.at_bound else ""
        table.add_row(path, f"{value:.6g}", f"{strength[i]:.2f} tolerances", note)
    console.print(table)
    table = Table(title="targets", title_justify="left", box=None, padding=(0, 1))
    for name, justify in (
        ("run", "left"),
        ("figure", "left"),
        ("measured", "right"),
        ("model", "right"),
        ("residual", "right"),
        ("of tolerance", "right"),
        ("", "left"),
    ):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for target, modelled, residual in zip(result.targets, result.modelled, result.residuals, strict=True):
        table.add_row(
            target.run, f"{target.figure} {target.row}".strip(), f"{target.value:g}", f"{modelled:.3f}", f"{residual:+.3f}",
            f"{abs(residual) / target.tolerance:.2f}", "fitted" if target.fitted else "predicted",
        )  # fmt: skip
    console.print(table)
    console.print(f"worst target: {result.worst:.2f} of its tolerance", highlight=False)
