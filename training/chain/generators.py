"""Pictures from local networks: a run's own teacher or student, or any text-to-image pipeline that diffusers reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from npusim.errors import BadInputError
from npusim.training.chain.readers import finished_run
from npusim.training.chain.stream import BATCH
from npusim.training.chain.synth import Prompt, as_image
from npusim.training.sample import Contender, Studio


@dataclass(frozen=True, slots=True)
class RunGenerator:
    """A network of a run: its defects are real ones."""

    studio: Studio
    contender: Contender
    name: str

    @classmethod
    def of(cls, folder: Path, stage: str, steps: int) -> RunGenerator:
        """From a run's folder. steps: denoising steps."""
        run = finished_run(folder, stage)
        name = f"{stage} of {run.preset.name} (seed {run.seed}), {steps} steps"
        return cls(Studio(run), Contender(stage, steps), name)

    def draw(self, prompts: Sequence[Prompt]) -> list[Any]:
        """One picture per prompt. A batch is always drawn in full, so that each picture's noise depends on its number alone."""
        first = prompts[0].number // BATCH * BATCH
        captions = [""] * BATCH
        for prompt in prompts:
            captions[prompt.number - first] = prompt.text or ""
        pictures = self.studio.pictures(self.contender, captions, f"synth {first}").clamp(-1, 1).numpy()
        return [as_image(pictures[prompt.number - first]) for prompt in prompts]


@dataclass(frozen=True, slots=True)
class PipelineGenerator:
    """A text-to-image pipeline's folder, such as SDXL's."""

    pipeline: Any
    name: str
    seed: int
    steps: int | None = None
    size: int | None = None

    @classmethod
    def of(cls, folder: Path, seed: int, steps: int | None, size: int | None) -> PipelineGenerator:
        """From a local folder as `save_pretrained` writes it; never from a hub.

        Raises:
            BadInputError: diffusers cannot read a text-to-image pipeline from it.
        """
        from diffusers import AutoPipelineForText2Image

        if not (folder / "model_index.json").is_file():
            raise BadInputError(f"{folder}: holds no model_index.json, so no pipeline can be read from it")
        try:
            pipeline = AutoPipelineForText2Image.from_pretrained(
                folder, local_files_only=True, low_cpu_mem_usage=False
            )
        except Exception as error:  # the library raises many kinds here; each means the folder cannot be used
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise BadInputError(
                f"{folder}: no text-to-image pipeline can be read from it ({first})"
            ) from error
        pipeline.set_progress_bar_config(disable=True)
        return cls(pipeline.to(_device()), f"{type(pipeline).__name__} {folder.name}", seed, steps, size)

    def draw(self, prompts: Sequence[Prompt]) -> list[Any]:
        """One picture per prompt, one after the other."""
        return [self._draw(prompt) for prompt in prompts]

    def _draw(self, prompt: Prompt) -> Any:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + prompt.number)
        chosen = {"num_inference_steps": self.steps, "height": self.size, "width": self.size}
        options = {key: value for key, value in chosen.items() if value is not None}
        return self.pipeline(prompt.text, generator=generator, **options).images[0].convert("RGB")


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
