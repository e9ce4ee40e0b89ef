"""The card of each network: where it is from, how large it is, and how it is meant to run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from npusim.models.architectures import ARCHITECTURES


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What a reader needs to know about a network before profiling it.

    Attributes:
        name: The zoo name.
        title: One line for tables.
        source: The publication or checkpoint whose configuration this is.
        parameters: Number of parameters, exact for the architecture as built.
        macs: Multiply-accumulates of convolutions, linear layers and attention products for one evaluation at
            batch 1, exact; None where it has not been counted.
        default_precision: The precision that the network is deployed in by default (`w8a16`, `fp16`).
        steps: Evaluations per image along the sampling schedule; 1 for encoders and decoders.
        guidance: True where each step evaluates the network twice (classifier-free guidance).
        inferred: True where the publication does not fix the architecture in full.
        notes: What else a reader must know; what was inferred, and from what.
    """

    name: str
    title: str
    source: str
    parameters: int
    macs: int | None
    default_precision: str = "w8a16"
    steps: int = 1
    guidance: bool = False
    inferred: bool = False
    notes: str = ""

    @property
    def inputs(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Graph inputs as (name, shape) at batch 1."""
        return tuple((spec.name, spec.shape) for spec in ARCHITECTURES[self.name].inputs)

    @property
    def evaluations_per_image(self) -> int:
        """Evaluations of the network at batch 1 that make one image."""
        return self.steps * (2 if self.guidance else 1)


_NETWORKS = (
    Card(
        name="sd-v1.5",
        title="Stable Diffusion v1.4/v1.5 U-Net",
        source="LDM, arXiv:2112.10752; the published configuration",
        parameters=859_520_964,
        macs=401_636_720_640,
        steps=25,
        guidance=True,
        notes="25 steps as in EdgeFusion's Table 5",
    ),
    Card(
        name="sd-v1.5-lcm",
        title="Stable Diffusion v1.5 U-Net with LCM's time condition",
        source="LCM, arXiv:2310.04378",
        parameters=859_602_884,
        macs=401_636_802_560,
        steps=4,
        guidance=False,
        notes="the guidance scale is an input, so each step is one evaluation; also published at 2 steps",
    ),
    Card(
        name="bk-sdm-base",
        title="BK-SDM-Base U-Net",
        source="BK-SDM, arXiv:2305.15798",
        parameters=579_384_964,
        macs=261_496_995_840,
        steps=25,
        guidance=True,
    ),
    Card(
        name="bk-sdm-small",
        title="BK-SDM-Small U-Net",
        source="BK-SDM, arXiv:2305.15798",
        parameters=482_346_884,
        macs=255_447_203_840,
        steps=25,
        guidance=True,
    ),
    Card(
        name="bk-sdm-tiny",
        title="BK-SDM-Tiny U-Net",
        source="BK-SDM, arXiv:2305.15798",
        parameters=323_384_964,
        macs=242_754_519_040,
        steps=25,
        guidance=True,
        notes="25 steps as in EdgeFusion's Table 5",
    ),
    Card(
        name="edgefusion",
        title="EdgeFusion U-Net (BK-SDM-Tiny with LCM's time condition)",
        source="EdgeFusion, 2024; LCM, arXiv:2310.04378",
        parameters=323_466_884,
        macs=242_754_600_960,
        steps=2,
        guidance=False,
        notes="published at 1, 2 and 4 steps; 2 is our reading of the paper's Table 7",
    ),
    Card(
        name="sd-turbo",
        title="SD-Turbo U-Net (Stable Diffusion 2.1 architecture)",
        source="ADD, arXiv:2311.17042; the published configuration",
        parameters=865_910_724,
        macs=402_128_732_160,
        steps=1,
        guidance=False,
    ),
    Card(
        name="sdxl",
        title="Stable Diffusion XL U-Net, 1024x1024",
        source="SDXL, arXiv:2307.01952; the published configuration",
        parameters=2_567_463_684,
        macs=3_380_618_199_040,
        steps=50,
        guidance=True,
        notes="50 steps is the default of its published pipeline",
    ),
    Card(
        name="ssd-1b",
        title="SSD-1B U-Net, 1024x1024",
        source="SSD-1B, arXiv:2401.02677",
        parameters=1_331_334_404,
        macs=2_103_880_908_800,
        steps=25,
        guidance=True,
        inferred=True,
        notes="blocks from memory of the published configuration; its size agrees with the published 1.3 B",
    ),
    Card(
        name="pixart-alpha-512",
        title="PixArt-alpha transformer, 512x512",
        source="PixArt-alpha, arXiv:2310.00426; the published configuration",
        parameters=610_856_096,
        macs=617_992_962_048,
        steps=20,
        guidance=True,
        notes="120 text tokens, none masked",
    ),
    Card(
        name="pixart-alpha-1024",
        title="PixArt-alpha transformer, 1024x1024",
        source="PixArt-alpha, arXiv:2310.00426; the published configuration",
        parameters=611_349_152,
        macs=3_254_761_783_296,
        steps=20,
        guidance=True,
        notes="120 text tokens, none masked; with the resolution and aspect ratio conditions",
    ),
    Card(
        name="snapfusion-like",
        title="SnapFusion-like U-Net",
        source="SnapFusion, arXiv:2306.00980",
        parameters=846_789_764,
        macs=304_808_099_840,
        steps=8,
        guidance=True,
        inferred=True,
        notes="SD-v1.5 without attention at 64x64; the paper does not list every block; its U-Net has 848 M",
    ),
    Card(
        name="mobilediffusion-like",
        title="MobileDiffusion-like U-Net",
        source="MobileDiffusion, arXiv:2311.16567",
        parameters=381_255_236,
        macs=174_739_324_928,
        steps=1,
        guidance=False,
        inferred=True,
        notes="depths inferred from the published 0.4 B; softmax attention; also published at 8 steps",
    ),
    Card(
        name="sd-vae-decoder",
        title="Stable Diffusion image decoder, 512x512",
        source="LDM, arXiv:2112.10752; the published configuration",
        parameters=49_490_199,
        macs=1_257_259_466_752,
        default_precision="fp16",
        notes="with post_quant_conv; FP16 as EdgeFusion deploys it",
    ),
    Card(
        name="sd-vae-encoder",
        title="Stable Diffusion image encoder, 512x512",
        source="LDM, arXiv:2112.10752; the published configuration",
        parameters=34_163_664,
        macs=558_329_233_408,
        default_precision="fp16",
        notes="with quant_conv; gives mean and log-variance",
    ),
    Card(
        name="taesd-decoder",
        title="TAESD image decoder, 512x512",
        source="madebyollin/taesd; diffusers' AutoencoderTiny",
        parameters=1_222_531,
        macs=70_675_070_976,
        default_precision="fp16",
    ),
    Card(
        name="clip-text-encoder",
        title="CLIP ViT-L/14 text encoder, 77 tokens",
        source="CLIP, arXiv:2103.00020; the text encoder of Stable Diffusion 1",
        parameters=123_060_480,
        macs=6_649_251_840,
        default_precision="fp16",
        notes="gives the last hidden state; FP16 as EdgeFusion deploys it",
    ),
)

CARDS: Mapping[str, Card] = {card.name: card for card in sorted(_NETWORKS, key=lambda card: card.name)}
