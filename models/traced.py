"""The torch modules that the exporters trace: tensors in, one tensor out, the network's own scope names."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from npusim.models.architectures import Architecture


def traced(network: Any, architecture: Architecture) -> Any:
    """A view of `network` whose forward takes the graph's inputs in order and returns the one output tensor.

    The view shares the network's parameters and submodules, so that module scopes keep their names.
    """
    view = copy.copy(network)
    view.forward = (
        _chain(network, architecture.parts) if architecture.parts else _whole(network, architecture)
    )
    return view


def named_arguments(architecture: Architecture, tensors: tuple[Any, ...]) -> dict[str, Any]:
    """The arguments of the network's forward call, nested where an argument is a dictionary."""
    arguments: dict[str, Any] = {}
    for spec, tensor in zip(architecture.inputs, tensors, strict=True):
        place = arguments
        *outer, last = (spec.argument or spec.name).split(".")
        for key in outer:
            place = place.setdefault(key, {})
        place[last] = tensor
    return arguments


def _whole(network: Any, architecture: Architecture) -> Callable[..., Any]:
    call = network.forward

    def forward(*tensors: Any) -> Any:
        return call(**named_arguments(architecture, tensors), return_dict=False)[0]

    return forward


def _chain(network: Any, parts: tuple[str, ...]) -> Callable[..., Any]:
    modules = [getattr(network, part) for part in parts]

    def forward(tensor: Any) -> Any:
        for module in modules:
            tensor = module(tensor)
        return tensor

    return forward
