"""BK-SDM's block removal: which blocks go, and where each of the student's weights comes from.

Source: Kim et al. 2023 (BK-SDM), section 3.1 and figure 3; parameter counts from the released model card.
Names follow diffusers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from npusim.errors import BadInputError
from npusim.training.config import Variant


def student_config(teacher: Mapping[str, Any], variant: Variant) -> dict[str, Any]:
    """The student's UNet2DConditionModel arguments from the teacher's.

    base: the second resnet/attention pair of each down block and the middle pair of each up block go.
    small: the middle block goes too. tiny: the innermost down and up blocks go too, with the sampler between.

    Raises:
        BadInputError: the teacher has not two layers per block, or blocks of other kinds than SD's.
    """
    levels = len(teacher["block_out_channels"])
    down = ("CrossAttnDownBlock2D",) * (levels - 1) + ("DownBlock2D",)
    if teacher["layers_per_block"] != 2 or tuple(teacher["down_block_types"]) != down:
        raise BadInputError(
            f"teacher U-Net: found layers_per_block {teacher['layers_per_block']} and blocks "
            f"{tuple(teacher['down_block_types'])}; "
            f"block removal is defined for 2 layers and {down}; give a teacher of SD v1's architecture"
        )
    config = {**teacher, "layers_per_block": 1}
    if variant != "base":
        config["mid_block_type"] = None
    if variant == "tiny":
        config["block_out_channels"] = tuple(teacher["block_out_channels"])[:-1]
        config["down_block_types"] = tuple(teacher["down_block_types"])[:-1]
        config["up_block_types"] = tuple(teacher["up_block_types"])[1:]
    return config


def teacher_key(key: str, variant: Variant) -> str:
    """The teacher's name of the weight that starts the student's weight `key`.

    In up blocks pair 1 comes from pair 2 (the middle one went); tiny's up block i is the teacher's i + 1.
    """
    match = re.fullmatch(r"up_blocks\.(\d+)\.(.+)", key)
    if not match:
        return key
    block, rest = int(match[1]) + (variant == "tiny"), match[2]
    return f"up_blocks.{block}." + re.sub(r"^(resnets|attentions)\.1\.", r"\1.2.", rest)


def inherit(
    student: Mapping[str, Any], teacher: Mapping[str, Any], variant: Variant, name: str = "the teacher"
) -> dict[str, Any]:
    """The student's first state: each of its weights is one of the teacher's.

    Args:
        student: state of a student network; only names and shapes are used (the meta device will do).
        teacher: the teacher's state.
        name: the file or folder that errors name.

    Raises:
        BadInputError: a weight is missing from the teacher or has another shape; all are counted, the first
            is named.
    """
    state: dict[str, Any] = {}
    wrong: list[str] = []
    for key, value in student.items():
        source = teacher_key(key, variant)
        if source not in teacher:
            wrong.append(f"{key} <- {source}: missing")
        elif teacher[source].shape != value.shape:
            wrong.append(f"{key} <- {source}: {tuple(teacher[source].shape)}, needed {tuple(value.shape)}")
        else:
            state[key] = teacher[source]
    if wrong:
        raise BadInputError(
            f"{name}: {len(wrong)} of {len(student)} weights cannot start a {variant} student ({wrong[0]}); "
            "give the U-Net that the student's configuration was derived from"
        )
    return state


def feature_pairs(variant: Variant, levels: int = 4, layers: int = 2) -> tuple[tuple[str, str], ...]:
    """(teacher module, student module) whose outputs feature distillation compares.

    base, small: every down and up block. tiny: block against block where both have one; in the innermost of
        the student's down blocks, which lost its sampler, the last attention's projection instead. No
        adapters: all shapes agree.
    """
    if variant != "tiny":
        blocks = [f"{side}_blocks.{index}" for side in ("down", "up") for index in range(levels)]
        return tuple((block, block) for block in blocks)
    inner = levels - 2
    down = [(f"down_blocks.{i}", f"down_blocks.{i}") for i in range(inner)]
    middle = (
        f"down_blocks.{inner}.attentions.{layers - 1}.proj_out",
        f"down_blocks.{inner}.attentions.0.proj_out",
    )
    up = [(f"up_blocks.{i + 1}", f"up_blocks.{i}") for i in range(levels - 1)]
    return (*down, middle, *up)


def compress(teacher: Any, variant: Variant, name: str = "the teacher") -> Any:
    """A student U-Net with the teacher's weights in every block that stays."""
    from npusim.training.networks import build_unet

    config = student_config({k: v for k, v in teacher.config.items() if not k.startswith("_")}, variant)
    student = build_unet(config)
    student.load_state_dict(inherit(student.state_dict(), teacher.state_dict(), variant, name), strict=True)
    return student
