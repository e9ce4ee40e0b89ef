"""Write the graphs of networks that npusim was not made for, as torch exports them, for the reader's tests.

Run `python tools/make_foreign.py [NAME...]`. Small torch modules with seeded weights, exported, stripped of their weights and
compressed into tests/fixtures/foreign. Needs torch and onnxscript; a few seconds each.
"""

from __future__ import annotations

import argparse
import io
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from npusim.models import strip

FIXTURES = Path(__file__).parents[1] / "tests" / "fixtures" / "foreign"


class Residual(nn.Module):
    """Two convolutions with batch norms and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = (
            nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
            if stride > 1 or inputs != outputs
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """A ResNet with one block per stage."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        )
        sizes = ((64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2))
        self.stages = nn.Sequential(*(Residual(*s) for s in sizes))
        self.head = nn.Linear(512, 1000)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.stages(self.stem(image)).mean((2, 3)))


class Separable(nn.Module):
    """Inverted residual with a depthwise convolution, HardSwish and squeeze-and-excitation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = 4 * channels
        self.expand = nn.Sequential(nn.Conv2d(channels, wide, 1), nn.BatchNorm2d(wide), nn.Hardswish())
        self.depthwise = nn.Sequential(
            nn.Conv2d(wide, wide, 5, 1, 2, groups=wide), nn.BatchNorm2d(wide), nn.Hardswish()
        )
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(wide, channels, 1), nn.ReLU(), nn.Conv2d(channels, wide, 1), nn.Hardsigmoid()
        )  # fmt: skip
        self.project = nn.Sequential(nn.Conv2d(wide, channels, 1), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(self.expand(x))
        return x + self.project(y * self.gate(y))


class MobileNet(nn.Module):
    """A few inverted residuals."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, 2, 1)
        self.blocks = nn.Sequential(Separable(32), nn.Conv2d(32, 64, 3, 2, 1, groups=4), Separable(64))
        self.head = nn.Linear(64, 100)

    def forward(self, image: Tensor) -> Tensor:
        return torch.softmax(self.head(self.blocks(self.stem(image)).mean((2, 3))), -1)


def _double(inputs: int, outputs: int) -> nn.Sequential:
    parts: list[nn.Module] = []
    for size in (inputs, outputs):
        parts += [nn.Conv2d(size, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*parts)


class SegmentationUNet(nn.Module):
    """U-Net with transposed convolutions on the way up."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (32, 64, 128, 256)
        self.down = nn.ModuleList(_double(a, b) for a, b in zip((3, *sizes[:-2]), sizes[:-1], strict=True))
        self.middle = _double(128, 256)
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * s, s, 2, 2) for s in (128, 64, 32))
        self.join = nn.ModuleList(_double(2 * s, s) for s in (128, 64, 32))
        self.head = nn.Conv2d(32, 21, 1)

    def forward(self, image: Tensor) -> Tensor:
        kept = []
        x = image
        for block in self.down:
            kept.append(block(x))
            x = nn.functional.max_pool2d(kept[-1], 2)
        x = self.middle(x)
        for up, join, skip in zip(self.up, self.join, reversed(kept), strict=True):
            x = join(torch.cat([skip, up(x)], 1))
        return torch.sigmoid(self.head(x))


class VisionTransformer(nn.Module):
    """Patches, a class token, learned positions, pre-norm encoder layers."""

    def __init__(self) -> None:
        super().__init__()
        width = 192
        self.patches = nn.Conv2d(3, width, 16, 16)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, 197, width) * 0.02)
        self.layers = nn.ModuleList(Encoder(width, 3) for _ in range(2))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 1000)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patches(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x)[:, 0])


class Encoder(nn.Module):
    """Self-attention with one projection for queries, keys and values; then a feed-forward layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        x = x + self.out(y.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class SpeechEncoder(nn.Module):
    """The encoder of a Whisper-like network: two one-dimensional convolutions, fixed positions, encoder layers."""

    def __init__(self) -> None:
        super().__init__()
        width = 384
        self.conv1, self.conv2 = nn.Conv1d(80, width, 3, 1, 1), nn.Conv1d(width, width, 3, 2, 1)
        angles = torch.arange(500)[:, None] * torch.exp(-torch.arange(width // 2) * 0.05)[None]
        self.register_buffer("positions", torch.cat([angles.sin(), angles.cos()], 1))
        self.layers = nn.ModuleList(Encoder(width, 6) for _ in range(2))
        self.norm = nn.LayerNorm(width)

    def forward(self, mel: Tensor) -> Tensor:
        x = nn.functional.gelu(self.conv2(nn.functional.gelu(self.conv1(mel))))
        x = x.transpose(1, 2) + self.positions
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class SpeechDecoder(nn.Module):
    """A Whisper-like decoder layer: embedding, causal self-attention, cross-attention, logits of the same table."""

    def __init__(self) -> None:
        super().__init__()
        width = 384
        self.width, self.heads = width, 6
        self.table = nn.Embedding(5000, width)
        self.positions = nn.Parameter(torch.randn(64, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(4))
        self.linears = nn.ModuleList(nn.Linear(width, width) for _ in range(8))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def attend(self, x: Tensor, memory: Tensor, first: int, causal: bool) -> Tensor:
        q, k, v = (
            self.linears[first + i](y).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for i, y in enumerate((x, memory, memory))
        )
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return self.linears[first + 3](y.transpose(1, 2).flatten(2))

    def forward(self, tokens: Tensor, memory: Tensor) -> Tensor:
        x = self.table(tokens) + self.positions[: tokens.shape[1]]
        y = self.norms[0](x)
        x = x + self.attend(y, y, 0, True)
        x = x + self.attend(self.norms[1](x), memory, 4, False)
        x = x + self.down(nn.functional.gelu(self.up(self.norms[2](x))))
        return self.norms[3](x) @ self.table.weight.T


Maker = Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]
NETWORKS: dict[str, Maker] = {
    "resnet": lambda: (ResNet(), (torch.zeros(1, 3, 224, 224),)),
    "mobilenet": lambda: (MobileNet(), (torch.zeros(1, 3, 128, 128),)),
    "segmentation-unet": lambda: (SegmentationUNet(), (torch.zeros(1, 3, 128, 128),)),
    "vit": lambda: (VisionTransformer(), (torch.zeros(1, 3, 224, 224),)),
    "speech-encoder": lambda: (SpeechEncoder(), (torch.zeros(1, 80, 1000),)),
    "speech-decoder": lambda: (
        SpeechDecoder(),
        (torch.zeros(1, 32, dtype=torch.int64), torch.zeros(1, 500, 384)),
    ),
}


def seeded(maker: Maker) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The network in evaluation mode with seeded weights, its batch norms' statistics included; and its inputs."""
    torch.manual_seed(0)
    network, inputs = maker()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2.0)
    return network.eval(), inputs


def export(name: str, spelling: str) -> onnx.ModelProto:
    """The network's graph with weights, as the exporter `dynamo18` or `legacy17` writes it."""
    network, inputs = seeded(NETWORKS[name])
    if spelling == "dynamo18":
        program: Any = torch.onnx.export(network, inputs, dynamo=True, opset_version=18, verbose=False)
        return program.model_proto  # type: ignore[no-any-return]
    buffer = io.BytesIO()
    training = torch.onnx.TrainingMode.PRESERVE  # keeps batch norms as nodes
    torch.onnx.export(
        network, inputs, buffer, dynamo=False, opset_version=17, training=training, do_constant_folding=False
    )
    return onnx.load_model_from_string(buffer.getvalue())


def main() -> None:
    """Make the named networks, by default all, in both spellings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", choices=[[], *NETWORKS])
    FIXTURES.mkdir(parents=True, exist_ok=True)
    for name in parser.parse_args().names or NETWORKS:
        for spelling in ("dynamo18", "legacy17"):
            begin = time.monotonic()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the exporters' own
                model = strip.strip(export(name, spelling))
            path = FIXTURES / f"{name}.{spelling}.onnx.xz"
            path.write_bytes(strip.compress(model))
            seconds = time.monotonic() - begin
            print(
                f"{path.name}: {len(model.graph.node)} nodes, {path.stat().st_size:,} bytes, {seconds:.0f} s"
            )


if __name__ == "__main__":
    main()
