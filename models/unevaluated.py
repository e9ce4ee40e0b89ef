"""Recording a network in fp16 without evaluating its convolutions.

The legacy exporter runs the network once to record it. What it records does not depend on the values, and a
CPU without half-precision units takes half a minute for one fp16 convolution of a U-Net.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any


@contextmanager
def unevaluated_convolutions() -> Iterator[None]:
    """Within this context torch's slow convolution gives zeros of the right shape, in all threads."""
    import torch

    def zeros(
        tensor: Any,
        weight: Any,
        kernel_size: Sequence[int],
        bias: Any,
        stride: Sequence[int],
        padding: Sequence[int],
    ) -> Any:
        (batch, _, *sizes), channels = _shape(tensor), _shape(weight)[0]
        spatial = (
            (size + 2 * pad - taps) // step + 1
            for size, taps, step, pad in zip(sizes, kernel_size, stride, padding, strict=True)
        )
        return torch.zeros((batch, channels, *spatial), dtype=tensor.dtype)

    library = torch.library.Library("aten", "IMPL")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a kernel is replaced is the point
            library.impl("_slow_conv2d_forward", zeros, "CPU")
        yield
    finally:
        library._destroy()


def _shape(tensor: Any) -> tuple[int, ...]:
    """Plain integers: while torch records, a tensor's own `shape` holds recorded tensors."""
    shape: tuple[int, ...] = tensor.detach().numpy().shape
    return shape
