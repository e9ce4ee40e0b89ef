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
from npusim.models.pipeline import Network, Specification, load_pipeline
from npusim.pipeline import PipelineProfile, profile_network, weight_bytes
from npusim.program import TABLE6_ROLES
from npusim.scheduler.problem import Infeasible
from npusim.table5 import RUNS, measure_table5, table5_rows
from npusim.units import ps_to_ms

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

_ASSUMPTIONS = {
    5: (
        "Table 5: one A100, 50 runs, FP16; a picture is text encoder, every step and decoder. The two rows at 25 steps are guided "
        "(batch 2); EdgeFusion takes the guidance scale as an input (LCM). Ours has the same architectures with seeded random weights.",
    ),
    6: (
        "Table 6: read as the self-attention at 64x64 (8 heads, 4096 queries and keys, head size 40). The paper's caption says cross "
        "attention, but there storing the output would cost half of storing the scores; the table says 4 %.",
    ),
    7: (
        f"Table 7: the paper does not say how many denoising steps it covers; {DENOISING_STEPS} are assumed, which is consistent with "
        "Table 6 (one step would put the scores at half of the DRAM rate that two steps imply). "
        "EdgeFusion's U-Net is computed as BK-SDM-Tiny's.",
        "Encoder and decoder are FP16, planned layer by layer (tiling is applied to the U-Net only), and predictions: nothing was fitted "
        "to them. The published cells are the two that our preset was fitted to; '-' stands where we have no published figure.",
        "The first three rows take the same steps without guidance, so that they compare networks; the last is how SD-v1.5 is used.",
    ),
}
_BOTH = (
    "Under the serial policy (Table 6's columns add up to 100 and 27), U-Net in w8a16; 'without MLT' is --tiles none, 'with MLT' "
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


@dataclass(frozen=True, kw_only=True)
class PictureRow:
    """One row of Table 7: what makes the picture and how long each network takes, all its evaluations together, in ms.

    Attributes:
        published_unet_ms: the paper's; None where we have none.
    """

    name: str
    steps: int
    guidance: str
    encoder_ms: float
    unet_ms: float
    decoder_ms: float
    launch_ms: float
    published_unet_ms: float | None

    @property
    def total_ms(self) -> float:
        """Networks and launches."""
        return self.encoder_ms + self.unet_ms + self.decoder_ms + self.launch_ms


def pictures(found: EdgeFusion) -> list[PictureRow]:
    """Table 7 as whole pictures: SD-v1.5 without MLT, EdgeFusion without and with, and SD-v1.5 as it is used."""
    npu = found.without.plan.npu
    edge, sd = load_pipeline("edgefusion.toml"), load_pipeline("sd-v1.5.toml")
    networks = [_untiled(n) for n in edge.pipeline.network]
    encoder, decoder = (profile_network(edge, n, npu, "serial") for n in (networks[0], networks[2]))

    def row(name: str, given: Specification, unet: api.Profile, published: float | None) -> PictureRow:
        profiles = (encoder, unet, decoder)
        sizes = tuple(weight_bytes(p.program) for p in profiles)
        made = PipelineProfile(
            specification=given, npu=npu, policy="serial", profiles=profiles, weight_bytes=sizes
        )
        return _picture_row(name, made, published)

    alone = sd.pipeline.network[1].model_copy(update={"guidance": "none"})
    once, guided = (
        profile_network(sd, _untiled(network), npu, "serial") for network in (alone, sd.pipeline.network[1])
    )
    return [
        row("SD-v1.5 without MLT", _as(sd, alone, DENOISING_STEPS), once, None),
        row("EdgeFusion without MLT", _as(edge, None, DENOISING_STEPS), found.without, TABLE7_UNET[0]),
        row("EdgeFusion with MLT", _as(edge, None, DENOISING_STEPS), found.tiled, TABLE7_UNET[1]),
        row("SD-v1.5 without MLT", sd, guided, None),
    ]


def _untiled(network: Network) -> Network:
    return network.model_copy(update={"tiles": "none", "segments": "none"})


def _as(given: Specification, unet: Network | None, steps: int) -> Specification:
    """The specification with another U-Net and number of steps."""
    encoder, own, decoder = given.pipeline.network
    pipeline = given.pipeline.model_copy(update={"network": (encoder, unet or own, decoder), "steps": steps})
    return Specification(pipeline=pipeline, where=given.where, folder=given.folder, text=given.text)


def _picture_row(name: str, made: PipelineProfile, published: float | None) -> PictureRow:
    steps = made.pipeline.steps
    encoder, unet, decoder = (ps_to_ms(p.evaluations(steps) * p.evaluation_ps) for p in made.parts())
    return PictureRow(
        name=name, steps=steps, guidance=made.pipeline.network[1].guidance, encoder_ms=encoder, unet_ms=unet, decoder_ms=decoder,
        launch_ms=made.summary["launch_ms"], published_unet_ms=published,
    )  # fmt: skip


def print_edgefusion(
    console: Console, *, tables: Sequence[int], device: str | None = None, runs: int = RUNS
) -> None:
    """Print the asked tables and what they rest on.

    Raises:
        MissingExtraError, BadInputError: Table 5 is to be measured, and there is no torch or no GPU.
    """
    if 5 in tables:
        _print_table5(console, device, runs)
    on_npu = [table for table in tables if table != 5]
    found = edgefusion() if on_npu else None
    if found and 6 in tables:
        _print_table6(console, *found.table6())
    if found and 7 in tables:
        _print_table7(console, pictures(found))
    console.print("assumptions", style="dim")
    sentences = [s for table in tables for s in _ASSUMPTIONS[table]]
    for sentence in (*sentences, *(_BOTH if on_npu else ())):
        console.print(f"  - {sentence}", style="dim", highlight=False)


def _print_table5(console: Console, device: str | None, runs: int) -> None:
    card, timed = measure_table5(runs) if device == "cuda" else ("not measured: give --device cuda", [])
    title = f"Table 5: ms per picture; ours: {card}" + (f", {runs} runs" if timed else "")
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1))
    for name in ("row", "steps", "guidance", "paper (A100)", "speed-up", "ours", "speed-up"):
        table.add_column(name, justify="left" if name in ("row", "guidance") else "right")
    for cells in table5_rows(timed):
        table.add_row(*cells)
    console.print(table)


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


def _print_table7(console: Console, rows: Sequence[PictureRow]) -> None:
    table = Table(
        title="Table 7: latency of one picture, ms (all steps of each network together)",
        title_justify="left",
        box=None,
        padding=(0, 1),
    )
    columns = (
        "row", "steps", "guidance", "encoder", "U-Net", "U-Net, paper", "off by", "decoder", "launches", "total",
    )  # fmt: skip
    for name in columns:
        table.add_column(name, justify="left" if name in ("row", "guidance") else "right")
    for row in rows:
        published = row.published_unet_ms
        off = f"{row.unet_ms / published - 1:+.1%}" if published else "-"
        table.add_row(
            row.name, str(row.steps), row.guidance, f"{row.encoder_ms:.1f}", f"{row.unet_ms:.1f}",
            f"{published:.1f}" if published else "-", off, f"{row.decoder_ms:.1f}", f"{row.launch_ms:.1f}", f"{row.total_ms:.1f}",
        )  # fmt: skip
    console.print(table)


def _cells(row: Row, digits: int) -> tuple[str, str, str]:
    return f"{row.published:.{digits}f}", f"{row.ours:.{digits + 1}f}", f"{row.deviation:+.{digits + 1}f}"
