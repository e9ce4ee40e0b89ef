"""Table 5's protocol on tiny networks of the same classes; what it says where there is no GPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from npusim.errors import BadInputError
from npusim.table5 import SYSTEMS, WARM_UP, Timed, build_pipeline, require_cuda, table5_rows, time_pictures

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")


def tiny_networks(*, lcm: bool) -> dict[str, Any]:
    text = transformers.CLIPTextConfig(
        vocab_size=1000, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=77,
    )  # fmt: skip
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=16, attention_head_dim=2, norm_num_groups=4,
        time_cond_proj_dim=256 if lcm else None,
    )  # fmt: skip
    autoencoder = diffusers.AutoencoderKL(
        block_out_channels=(8,), norm_num_groups=4, sample_size=8, latent_channels=4
    )
    return {"text": transformers.CLIPTextModel(text).eval(), "unet": unet.eval(), "vae": autoencoder.eval()}


@pytest.mark.parametrize("system", [SYSTEMS[0], SYSTEMS[3]], ids=["guided", "few steps"])
def test_a_row_times_whole_pictures_with_the_steps_and_the_guidance_it_states(system: Any) -> None:
    networks = tiny_networks(lcm=not system.guided)
    asked: list[tuple[int, bool]] = []
    networks["unet"].register_forward_pre_hook(
        lambda _, given, named: asked.append((len(given[0]), named["timestep_cond"] is not None)),
        with_kwargs=True,
    )
    waits: list[int] = []
    found = time_pictures(
        build_pipeline(system, networks), system, runs=2, wait=lambda: waits.append(len(asked))
    )
    assert len(found.times_ms) == 2
    assert all(t > 0 for t in found.times_ms)
    batch = 2 if system.guided else 1
    assert set(asked) == {(batch, not system.guided)}
    evaluations = system.steps + (1 if system.guided else 0)  # PNDM evaluates its second step twice
    assert len(asked) == (WARM_UP + 2) * evaluations
    assert len(waits) == 2 * (WARM_UP + 2)


def test_ratios_are_over_the_first_row() -> None:
    timed = [Timed(system=s, times_ms=(100.0 / (i + 1),) * 3) for i, s in enumerate(SYSTEMS)]
    rows = table5_rows(timed)
    assert [row[-1] for row in rows] == ["1.0 x", "2.0 x", "3.0 x", "4.0 x", "5.0 x"]
    assert [row[3] for row in rows] == ["930", "540", "150", "90", "90"]
    assert [row[4] for row in rows] == ["1.0 x", "1.7 x", "6.2 x", "10.3 x", "10.3 x"]
    assert rows[0][5] == "100.0 ± 0.0"
    assert [row[-2:] for row in table5_rows([])] == [("-", "-")] * 5


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so_plainly() -> None:
    with pytest.raises(
        BadInputError, match=r"--device cuda: torch .* finds no CUDA GPU.*cannot be measured here"
    ):
        require_cuda()


def test_the_papers_table_5_is_printed_without_torch(tmp_path: Path) -> None:
    code = "import sys; from npusim.cli import main; main(); assert 'torch' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", code, "reproduce", "edgefusion", "--table", "5"], cwd=tmp_path, capture_output=True, text=True, check=True
    )  # fmt: skip
    assert "not measured: give --device cuda" in done.stdout
    assert "SD-v1.4" in done.stdout
