"""The EdgeFusion paper's tables, computed on the spot and set beside the published figures.

Source: EdgeFusion: On-Device Text-to-Image Generation (2024), Tables 6 and 7.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from npusim import api
from npusim.errors import BadInputError
from npusim.program import TABLE6_ROLES
from npusim.scheduler.problem import Infeasible

#: Percent of the block's time without MLT: (without MLT, with MLT).
TABLE6 = dict(
    zip(
        TABLE6_ROLES,
        (
            (0.6, 0.6),
            (6.9, 7.2),
            (19.1, 0.0),
            (18.2, 0.0),
            (11.0, 11.6),
            (18.5, 0.0),
            (19.5, 0.8),
            (5.4, 5.7),
            (0.7, 0.7),
        ),
        strict=True,
    )
)
TABLE6_LABELS = (
    "DMA load: Query, Key", "Tensor: Query x Key^T = Sin", "DMA store: Sin", "DMA load: Sin", "Vector: Softmax(Sin) = Sout",
    "DMA store: Sout", "DMA load: Sout, Value", "Tensor: Sout x Value = A", "DMA store: A",
)  # fmt: skip
#: U-Net latency in ms: without and with MLT.
TABLE7_UNET = (454.3, 200.2)
DENOISING_STEPS = 2
MODEL, NPU = "bk-sdm-tiny", "exynos2400"

_ASSUMPTIONS = (
    f"Table 7: the paper does not say how many denoising steps it covers; {DENOISING_STEPS} are assumed, which is consistent with Table 6 "
    "(one step would put the scores at half of the DRAM rate that two steps imply).",
    "Table 6: read as the self-attention at 64x64 (8 heads, 4096 queries and keys, head size 40). The paper's caption says cross "
    "attention, but there storing the output would cost half of storing the scores; the table says 4 %.",
    "Both under the serial policy (the table's columns add up to 100 and 27), precision w8a16; 'without MLT' is --tiles none, 'with MLT' "
    "is --tiles sram --segments attention, the paper's rule.",
    "Six numbers of the preset were fitted to Table 6's column without MLT, the total of its other column, and Table 7's two rows "
    "(npusim npu show exynos2400); the single cells with MLT are predictions.",
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One published figure beside ours."""

    label: str
    published: float
    ours: float

    @property
    def deviation(self) -> float:
        """Ours minus published."""
        return self.ours - self.published


@dataclass(frozen=True, kw_only=True)
class EdgeFusion:
    """Both profiles that the tables are made from: without and with model-level tiling."""

    without: api.Profile
    tiled: api.Profile

    def table6(self) -> tuple[list[Row], list[Row]]:
        """Rows without and with MLT, in percent of the block without; the last row is the total."""
        blocks = [_block(p.summary["attention"]) for p in (self.without, self.tiled)]
        base = sum(blocks[0]["rows"].values())
        columns: list[list[Row]] = []
        for i, block in enumerate(blocks):
            rows = [
                Row(label=label, published=TABLE6[role][i], ours=100 * block["rows"][role] / base)
                for label, role in zip(TABLE6_LABELS, TABLE6_ROLES, strict=True)
            ]
            total = Row(
                label="total", published=sum(r.published for r in rows), ours=sum(r.ours for r in rows)
            )
            columns.append([*rows, total])
        return columns[0], columns[1]

    def table7(self) -> list[Row]:
        """U-Net latency in ms, all denoising steps."""
        return [
            Row(label=label, published=published, ours=DENOISING_STEPS * p.summary["serial_latency_ms"])
            for label, published, p in zip(
                ("U-Net without MLT", "U-Net with MLT"), TABLE7_UNET, (self.without, self.tiled), strict=True
            )
        ]


def _block(blocks: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The first self-attention with the most queries."""
    return max(blocks, key=lambda b: (b["queries"] * b["keys"], b["queries"]))


def edgefusion(model: str = MODEL, npu: str = NPU) -> EdgeFusion:
    """Profile the U-Net both ways.

    Raises:
        BadInputError: the network does not fit the hardware.
    """
    graph = api.load_graph(model)
    made = []
    for tiles in ("none", "sram"):
        found = api.profile(graph, tiles=tiles, segments="attention", policy="serial", npu=npu)
        if isinstance(found, Infeasible):
            raise BadInputError(found.sentence())
        made.append(found)
    return EdgeFusion(without=made[0], tiled=made[1])


def print_edgefusion(console: Console, *, tables: Sequence[int]) -> None:
    """Print the asked tables and what they rest on."""
    found = edgefusion()
    if 6 in tables:
        _print_table6(console, *found.table6())
    if 7 in tables:
        _print_table7(console, found.table7())
    console.print("assumptions", style="dim")
    for sentence in _ASSUMPTIONS:
        console.print(f"  - {sentence}", style="dim", highlight=False)


def _print_table6(console: Console, without: Sequence[Row], tiled: Sequence[Row]) -> None:
    table = Table(
        title="Table 6: one attention block, percent of its time without MLT",
        title_justify="left",
        box=None,
        padding=(0, 1),
    )
    table.add_column("row")
    for name in ("paper without", "ours", "off by", "paper with", "ours", "off by"):
        table.add_column(name, justify="right")
    for a, b in zip(without, tiled, strict=True):
        table.add_row(a.label, *_cells(a, 1), *_cells(b, 1))
    console.print(table)


def _print_table7(console: Console, rows: Sequence[Row]) -> None:
    table = Table(
        title=f"Table 7: latency of {DENOISING_STEPS} denoising steps, ms",
        title_justify="left",
        box=None,
        padding=(0, 1),
    )
    for name, justify in (
        ("row", "left"),
        ("paper", "right"),
        ("ours", "right"),
        ("off by", "right"),
        ("", "right"),
    ):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for row in rows:
        table.add_row(row.label, *_cells(row, 1), f"{row.deviation / row.published:+.1%}")
    console.print(table)


def _cells(row: Row, digits: int) -> tuple[str, str, str]:
    return f"{row.published:.{digits}f}", f"{row.ours:.{digits + 1}f}", f"{row.deviation:+.{digits + 1}f}"
