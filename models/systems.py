"""The systems that EdgeFusion's Table 1 compares, each as a zoo network with its steps and guidance.

Most are the same few architectures run for another number of steps. What the table's papers do not publish is
read as the architecture they start from, and said in the notes.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """One row of the table.

    Attributes:
        name: As the paper calls it.
        network: The zoo network that its image costs are computed with.
        steps: Denoising steps per image.
        guidance: True where each step evaluates the network twice.
        published_parameters: What the table says, as written there; empty where it says nothing.
        device: The phone on which its authors measured; empty for none.
        notes: What is assumed about it.
    """

    name: str
    network: str
    steps: int
    guidance: bool
    published_parameters: str = ""
    device: str = ""
    notes: str = ""

    @property
    def evaluations_per_image(self) -> int:
        """Evaluations of the network at batch 1 that make one image."""
        return self.steps * (2 if self.guidance else 1)


SYSTEMS: tuple[System, ...] = (
    System(
        name="Choi et al. 2023",
        network="sd-v1.5",
        steps=20,
        guidance=True,
        device="Galaxy S23",
    ),
    System(
        name="SnapFusion",
        network="snapfusion-like",
        steps=8,
        guidance=True,
        published_parameters="1 B (whole)",
        device="iPhone 14 Pro",
        notes="blocks inferred",
    ),
    System(
        name="LCM, 4 steps", network="sd-v1.5-lcm", steps=4, guidance=False, published_parameters="1.3 B+"
    ),
    System(
        name="LCM, 2 steps", network="sd-v1.5-lcm", steps=2, guidance=False, published_parameters="1.3 B+"
    ),
    System(
        name="SSD-1B",
        network="ssd-1b",
        steps=25,
        guidance=True,
        published_parameters="1.3 B+",
        notes="1024x1024",
    ),
    System(
        name="PixArt-alpha", network="pixart-alpha-512", steps=20, guidance=True, published_parameters="0.6 B"
    ),
    System(
        name="PixArt-delta, 4 steps",
        network="pixart-alpha-512",
        steps=4,
        guidance=False,
        notes="PixArt-alpha's transformer, guidance distilled",
    ),
    System(
        name="PixArt-delta, 1 step",
        network="pixart-alpha-512",
        steps=1,
        guidance=False,
        notes="PixArt-alpha's transformer, guidance distilled",
    ),
    System(
        name="UFOGen",
        network="sd-v1.5",
        steps=1,
        guidance=False,
        published_parameters="0.9 B",
        notes="SD-v1.5's U-Net",
    ),
    System(name="SD-Turbo", network="sd-turbo", steps=1, guidance=False, published_parameters="0.86 B"),
    System(
        name="MobileDiffusion, 8 steps",
        network="mobilediffusion-like",
        steps=8,
        guidance=False,
        published_parameters="0.4 B",
        device="iPhone 15 Pro",
        notes="blocks inferred; guidance distilled",
    ),
    System(
        name="MobileDiffusion, 1 step",
        network="mobilediffusion-like",
        steps=1,
        guidance=False,
        published_parameters="0.4 B",
        device="iPhone 15 Pro",
        notes="blocks inferred",
    ),
    *(
        System(
            name=f"EdgeFusion, {steps} step{'s' if steps > 1 else ''}",
            network="edgefusion",
            steps=steps,
            guidance=False,
            published_parameters="0.5 B (U-Net, text encoder, decoder)",
            device="Exynos 2400",
        )
        for steps in (4, 2, 1)
    ),
)
