"""Block removal: every key and shape of three variants, published parameter counts, copied values."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from npusim.errors import BadInputError
from npusim.training import compress, networks
from npusim.training.config import UNetSize, Variant, preset

TINY = UNetSize(channels=(8, 8, 16, 16), layers_per_block=2, cross_dim=8, heads=2, sample=8, norm_groups=4)


@pytest.fixture(scope="module")
def sd_v1() -> Any:
    with torch.device("meta"):
        return networks.build_unet(networks.unet_config(preset("sd-v1").unet))


@pytest.mark.parametrize(
    ("variant", "keys", "parameters"),
    [("base", 442, 579_384_964), ("small", 396, 482_346_884), ("tiny", 358, 323_384_964)],
)
def test_each_weight_of_a_variant_has_a_source_of_its_shape_in_sd_v1(
    sd_v1: Any, variant: Variant, keys: int, parameters: int
) -> None:
    assert sum(p.numel() for p in sd_v1.parameters()) == 859_520_964
    with torch.device("meta"):
        student = networks.build_unet(compress.student_config(sd_v1.config, variant))
    state = compress.inherit(student.state_dict(), sd_v1.state_dict(), variant)
    assert len(state) == keys == len(student.state_dict())
    assert sum(p.numel() for p in student.parameters()) == parameters


def test_tiny_takes_its_up_blocks_from_one_block_further_and_skips_the_middle_pair() -> None:
    assert (
        compress.teacher_key("up_blocks.0.resnets.1.conv1.weight", "tiny")
        == "up_blocks.1.resnets.2.conv1.weight"
    )
    assert (
        compress.teacher_key("up_blocks.2.attentions.0.norm.bias", "tiny")
        == "up_blocks.3.attentions.0.norm.bias"
    )
    assert (
        compress.teacher_key("up_blocks.1.upsamplers.0.conv.bias", "base")
        == "up_blocks.1.upsamplers.0.conv.bias"
    )
    assert (
        compress.teacher_key("down_blocks.1.resnets.0.conv1.bias", "tiny")
        == "down_blocks.1.resnets.0.conv1.bias"
    )


def test_a_compressed_student_holds_the_teachers_values() -> None:
    teacher = networks.build_unet(networks.unet_config(TINY))
    student = compress.compress(teacher, "tiny")
    expected = teacher.up_blocks[1].attentions[2].proj_in.weight
    assert torch.equal(student.up_blocks[0].attentions[1].proj_in.weight, expected)
    assert student.mid_block is None


@pytest.mark.parametrize("variant", ["base", "small", "tiny"])
def test_feature_pairs_have_equal_shapes(variant: Variant) -> None:
    from npusim.training.kd import Features

    teacher = networks.build_unet(networks.unet_config(TINY))
    student = compress.compress(teacher, variant)
    pairs = compress.feature_pairs(variant)
    seen = [
        Features(network, tuple(pair[side] for pair in pairs))
        for side, network in enumerate((teacher, student))
    ]
    for network in (teacher, student):
        network(torch.randn(1, 4, 8, 8), torch.tensor([5]), torch.randn(1, 3, 8))
    for ours, theirs in zip(seen[1].take(), seen[0].take(), strict=True):
        assert ours.shape == theirs.shape


def test_a_teacher_of_another_architecture_is_refused() -> None:
    config = networks.unet_config(TINY) | {"layers_per_block": 1}
    with pytest.raises(BadInputError, match=r"layers_per_block 1.*give a teacher of SD v1's architecture"):
        compress.student_config(config, "base")


def test_weights_that_do_not_fit_are_counted_and_named() -> None:
    teacher = networks.build_unet(networks.unet_config(TINY))
    student = networks.build_unet(compress.student_config(teacher.config, "base"))
    state = teacher.state_dict()
    del state["conv_in.bias"]
    state["conv_out.bias"] = torch.zeros(5)
    with pytest.raises(
        BadInputError, match=r"unet: 2 of \d+ weights cannot start a base student \(conv_in.bias"
    ):
        compress.inherit(student.state_dict(), state, "base", "unet")
