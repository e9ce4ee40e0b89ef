"""KD and LCM arithmetic against numbers worked out by hand, and against diffusers where it has them."""

from __future__ import annotations

import math

import pytest
import torch

from npusim.errors import BadInputError
from npusim.training import compress, lcm, networks, sample
from npusim.training.config import Schedule, UNetSize
from npusim.training.kd import kd_losses

TINY = UNetSize(channels=(8, 8, 16, 16), layers_per_block=2, cross_dim=8, heads=2, sample=8, norm_groups=4)


def test_kd_losses_equal_hand_computed_values() -> None:
    noise, student, teacher = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 0.0]), torch.tensor([2.0, 0.0])
    features = [torch.tensor([1.0, 1.0]), torch.tensor([[3.0]])]
    wanted = [torch.tensor([0.0, 2.0]), torch.tensor([[1.0]])]
    parts = kd_losses(noise, student, teacher, features, wanted)
    assert parts["task"].item() == 2.5  # (1 + 4) / 2
    assert parts["output"].item() == 2.0  # (4 + 0) / 2
    assert parts["feature"].item() == 5.0  # mean(1, 1) + mean(4): summed over layers


def test_kd_losses_are_float32_whatever_the_networks_precision() -> None:
    half = torch.ones(3, dtype=torch.bfloat16)
    assert all(v.dtype == torch.float32 for v in kd_losses(half, half, half, [half], [half]).values())


def test_the_boundary_condition_holds() -> None:
    c_skip, c_out = lcm.boundary_scalings(torch.tensor([0, 1]), 0.5, 10.0)
    assert c_skip[0].item() == 1.0
    assert c_out[0].item() == 0.0
    assert c_skip[1].item() == pytest.approx(0.25 / 100.25)
    assert c_out[1].item() == pytest.approx(10 / math.sqrt(100.25))


def test_the_solvers_grid_is_every_twentieth_time() -> None:
    alphas = networks.noise_schedule(Schedule()).alphas_cumprod
    solver = lcm.DdimSolver(alphas, 50)
    assert solver.times[:2].tolist() == [19, 39]
    assert solver.times[-1].item() == 999
    assert solver.previous_times[:3].tolist() == [0, 19, 39]


def test_a_solver_step_equals_a_hand_computed_value() -> None:
    solver = lcm.DdimSolver(torch.tensor([0.64, 0.5, 0.36, 0.25]), 2)  # times 1, 3; previous 0, 1
    x0, eps = torch.full((1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1), 3.0)
    assert solver.step(x0, eps, torch.tensor([0])).item() == pytest.approx(0.8 * 2 + 0.6 * 3)
    assert solver.step(x0, eps, torch.tensor([1])).item() == pytest.approx(math.sqrt(0.5) * 5)


def test_a_solver_step_equals_diffusers_ddim() -> None:
    scheduler = networks.noise_schedule(Schedule())
    solver = lcm.DdimSolver(scheduler.alphas_cumprod, 50)
    z, eps = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    t, index = solver.times[30], torch.tensor([30, 30])
    alpha = scheduler.alphas_cumprod[t]
    x0 = lcm.predict_x0(eps, z, alpha.sqrt().expand(2), (1 - alpha).sqrt().expand(2))
    ddim = sample.ddim_scheduler(Schedule())
    ddim.set_timesteps(50)
    assert torch.allclose(solver.step(x0, eps, index), ddim.step(eps, t, z).prev_sample, atol=1e-5)


def test_pseudo_huber_equals_a_hand_computed_value() -> None:
    value = lcm.pseudo_huber(torch.tensor([3.0, 0.0]), torch.tensor([0.0, 0.0]), 4.0)
    assert value.item() == pytest.approx(((5.0 - 4.0) + 0.0) / 2)


def test_guidance_rows_are_sines_then_cosines_of_a_thousand_w() -> None:
    rows = lcm.guidance_embedding(torch.tensor([0.0, 0.002]), 4)
    assert rows[0].tolist() == [0, 0, 1, 1]
    assert rows[1, 0].item() == pytest.approx(math.sin(2.0))
    assert rows[1, 3].item() == pytest.approx(math.cos(2.0 / 10000))


def test_the_guidance_input_changes_nothing_at_first() -> None:
    student = compress.compress(networks.build_unet(networks.unet_config(TINY)), "tiny")
    network = lcm.add_guidance_input(student, 16)
    z, t, condition = torch.randn(2, 4, 8, 8), torch.tensor([19, 999]), torch.randn(2, 3, 8)
    rows = lcm.guidance_embedding(torch.tensor([1.0, 5.0]), 16)
    with torch.no_grad():
        assert torch.equal(
            network(z, t, condition, timestep_cond=rows).sample, student(z, t, condition).sample
        )


def test_a_network_that_has_a_guidance_input_already_is_refused() -> None:
    config = networks.unet_config(TINY) | {"time_cond_proj_dim": 16}
    with pytest.raises(BadInputError, match=r"exactly time_embedding\.cond_proj\.weight may be new"):
        lcm.add_guidance_input(networks.build_unet(config), 16)


@pytest.mark.parametrize(("steps", "times"), [(4, [999, 759, 499, 259]), (2, [999, 499]), (1, [999])])
def test_few_step_times_are_the_papers(steps: int, times: list[int]) -> None:
    scheduler = sample.lcm_scheduler(Schedule())
    scheduler.set_timesteps(steps)
    assert scheduler.timesteps.tolist() == times
