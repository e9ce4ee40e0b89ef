"""The Inception network of FID, from a local file: pytorch-fid's state dict `pt_inception-2015-12-05-6726825d.pth`.

That file holds the weights of TensorFlow's `inception-2015-12-05`, on which Heusel et al. 2017 and Salimans et al. 2016 are computed,
under torchvision's names. It was chosen over NVIDIA's TorchScript file of the same weights because a state dict is read without
running what it holds, and over torchvision's own Inception because that is another network (and torchvision has no build for this
project's torch). A safetensors file with the same names is read too.

Architecture: Szegedy et al. 2016 (arXiv 1512.00567), with the three differences of TensorFlow's graph that pytorch-fid documents:
average pools do not count padding, the last block pools by maximum, and 1008 classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from npusim.errors import BadInputError

SIDE = 299
CLASSES = 1008
FEATURES = 2048
_EPS = 1e-3  # TensorFlow's batch normalisation

Size = int | tuple[int, int]


class _Conv(nn.Module):  # type: ignore[misc]  # torch's stubs are skipped, see pyproject.toml
    """Convolution without bias, batch normalisation, ReLU."""

    def __init__(self, inputs: int, outputs: int, size: Size, stride: int = 1, same: bool = True) -> None:
        super().__init__()
        height, width = (size, size) if isinstance(size, int) else size
        padding = (height // 2, width // 2) if same else 0
        self.conv = nn.Conv2d(inputs, outputs, (height, width), stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=_EPS)

    def forward(self, x: Any) -> Any:
        return functional.relu(self.bn(self.conv(x)))


def _average(x: Any) -> Any:
    return functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def _maximum(x: Any) -> Any:
    return functional.max_pool2d(x, 3, stride=1, padding=1)


def _halved(x: Any) -> Any:
    return functional.max_pool2d(x, 3, stride=2)


class _Mixed(nn.Module):  # type: ignore[misc]
    """Branches side by side, joined along channels: each a pool or nothing, then convolutions by name.

    A tuple of names at a branch's end is two convolutions of one input.
    """

    def __init__(self, convs: dict[str, _Conv], branches: tuple[tuple[Any, ...], ...]) -> None:
        super().__init__()
        for name, conv in convs.items():
            self.add_module(name, conv)
        self._branches = branches

    def forward(self, x: Any) -> Any:
        return torch.cat([self._branch(x, steps) for steps in self._branches], dim=1)

    def _branch(self, x: Any, steps: tuple[Any, ...]) -> Any:
        for step in steps:
            if callable(step):
                x = step(x)
            elif isinstance(step, tuple):
                x = torch.cat([getattr(self, name)(x) for name in step], dim=1)
            else:
                x = getattr(self, step)(x)
        return x


def _mixed_a(inputs: int, pool: int) -> _Mixed:
    convs = {
        "branch1x1": _Conv(inputs, 64, 1),
        "branch5x5_1": _Conv(inputs, 48, 1),
        "branch5x5_2": _Conv(48, 64, 5),
        "branch3x3dbl_1": _Conv(inputs, 64, 1),
        "branch3x3dbl_2": _Conv(64, 96, 3),
        "branch3x3dbl_3": _Conv(96, 96, 3),
        "branch_pool": _Conv(inputs, pool, 1),
    }
    double = ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3")
    return _Mixed(convs, (("branch1x1",), ("branch5x5_1", "branch5x5_2"), double, (_average, "branch_pool")))


def _mixed_b(inputs: int) -> _Mixed:
    convs = {
        "branch3x3": _Conv(inputs, 384, 3, 2, same=False),
        "branch3x3dbl_1": _Conv(inputs, 64, 1),
        "branch3x3dbl_2": _Conv(64, 96, 3),
        "branch3x3dbl_3": _Conv(96, 96, 3, 2, same=False),
    }
    return _Mixed(convs, (("branch3x3",), ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"), (_halved,)))


def _mixed_c(inputs: int, inner: int) -> _Mixed:
    flat, tall = (1, 7), (7, 1)
    convs = {
        "branch1x1": _Conv(inputs, 192, 1),
        "branch7x7_1": _Conv(inputs, inner, 1),
        "branch7x7_2": _Conv(inner, inner, flat),
        "branch7x7_3": _Conv(inner, 192, tall),
        "branch7x7dbl_1": _Conv(inputs, inner, 1),
        "branch7x7dbl_2": _Conv(inner, inner, tall),
        "branch7x7dbl_3": _Conv(inner, inner, flat),
        "branch7x7dbl_4": _Conv(inner, inner, tall),
        "branch7x7dbl_5": _Conv(inner, 192, flat),
        "branch_pool": _Conv(inputs, 192, 1),
    }
    single = tuple(f"branch7x7_{i}" for i in range(1, 4))
    double = tuple(f"branch7x7dbl_{i}" for i in range(1, 6))
    return _Mixed(convs, (("branch1x1",), single, double, (_average, "branch_pool")))


def _mixed_d(inputs: int) -> _Mixed:
    convs = {
        "branch3x3_1": _Conv(inputs, 192, 1),
        "branch3x3_2": _Conv(192, 320, 3, 2, same=False),
        "branch7x7x3_1": _Conv(inputs, 192, 1),
        "branch7x7x3_2": _Conv(192, 192, (1, 7)),
        "branch7x7x3_3": _Conv(192, 192, (7, 1)),
        "branch7x7x3_4": _Conv(192, 192, 3, 2, same=False),
    }
    long = tuple(f"branch7x7x3_{i}" for i in range(1, 5))
    return _Mixed(convs, (("branch3x3_1", "branch3x3_2"), long, (_halved,)))


def _mixed_e(inputs: int, pool: Any) -> _Mixed:
    flat, tall = (1, 3), (3, 1)
    convs = {
        "branch1x1": _Conv(inputs, 320, 1),
        "branch3x3_1": _Conv(inputs, 384, 1),
        "branch3x3_2a": _Conv(384, 384, flat),
        "branch3x3_2b": _Conv(384, 384, tall),
        "branch3x3dbl_1": _Conv(inputs, 448, 1),
        "branch3x3dbl_2": _Conv(448, 384, 3),
        "branch3x3dbl_3a": _Conv(384, 384, flat),
        "branch3x3dbl_3b": _Conv(384, 384, tall),
        "branch_pool": _Conv(inputs, 192, 1),
    }
    single = ("branch3x3_1", ("branch3x3_2a", "branch3x3_2b"))
    double = ("branch3x3dbl_1", "branch3x3dbl_2", ("branch3x3dbl_3a", "branch3x3dbl_3b"))
    return _Mixed(convs, (("branch1x1",), single, double, (pool, "branch_pool")))


class Inception(nn.Module):  # type: ignore[misc]
    """FID's Inception v3: 2048 pooled features and 1008 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Conv(3, 32, 3, 2, same=False)
        self.Conv2d_2a_3x3 = _Conv(32, 32, 3, same=False)
        self.Conv2d_2b_3x3 = _Conv(32, 64, 3)
        self.Conv2d_3b_1x1 = _Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = _Conv(80, 192, 3, same=False)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _mixed_a(192, 32), _mixed_a(256, 64), _mixed_a(288, 64)
        self.Mixed_6a = _mixed_b(288)
        self.Mixed_6b, self.Mixed_6c = _mixed_c(768, 128), _mixed_c(768, 160)
        self.Mixed_6d, self.Mixed_6e = _mixed_c(768, 160), _mixed_c(768, 192)
        self.Mixed_7a = _mixed_d(768)
        self.Mixed_7b, self.Mixed_7c = _mixed_e(1280, _average), _mixed_e(2048, _maximum)
        self.fc = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Any) -> Any:
        """Features [N, 2048] of pictures [N, 3, 299, 299], -1 to 1."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(_halved(x)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(_halved(x))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        return self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x))).mean(dim=(2, 3))

    def read(self, pictures: Any) -> tuple[Any, Any]:
        """Features [N, 2048] and probabilities [N, 1008] of pictures [N, 3, H, W], -1 to 1, as float64 numpy.

        Rounded to 8 bits as files are, then enlarged bilinearly (pytorch-fid). Probabilities leave the bias out, as the original
        Inception Score does.
        """
        features = []
        with torch.no_grad():
            for part in pictures.split(32):
                bytes_ = ((part.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1
                large = functional.interpolate(bytes_, (SIDE, SIDE), mode="bilinear", align_corners=False)
                features.append(self(large))
            rows = torch.cat(features)
            chances = functional.linear(rows, self.fc.weight).softmax(dim=1)
        return rows.double().numpy(), chances.double().numpy()


def load_inception(path: Path) -> Inception:
    """Read the weights.

    Raises:
        BadInputError: the file is missing, is no state dict, or is one of another network; the first difference is named.
    """
    network = Inception()
    state = _state(path)
    wanted = {k: v for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}
    for key, value in wanted.items():
        found = state.get(key)
        if found is None or tuple(found.shape) != tuple(value.shape):
            what = "is missing" if found is None else f"has shape {tuple(found.shape)}"
            raise BadInputError(
                f"--inception {path}: not FID's Inception: {key} {what}, expected {tuple(value.shape)}; give pytorch-fid's "
                "pt_inception-2015-12-05-6726825d.pth"
            )
    network.load_state_dict({k: state[k] for k in wanted}, strict=False)
    network.eval().requires_grad_(False)
    return network


def _state(path: Path) -> dict[str, Any]:
    """Tensors by name, without running anything that the file holds."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (
        Exception
    ) as error:  # pickle, zip and safetensors each raise their own kinds; each means it cannot be read
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BadInputError(
            f"--inception {path}: cannot be read as a state dict ({first}); give pytorch-fid's pt_inception-2015-12-05-6726825d.pth"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise BadInputError(
            f"--inception {path}: holds no state dict (tensors by name); give pytorch-fid's pt_inception-2015-12-05-6726825d.pth"
        )
    return state
