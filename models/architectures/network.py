"""What every family says about a network: the class that builds it, its configuration, its inputs."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from npusim.errors import MissingExtraError

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSpec:
    """One graph input of one evaluation.

    Attributes:
        name: The name in the ONNX graph.
        shape: All dimensions, batch included.
        dtype: `float` follows the precision of the export; integers stay as they are.
        argument: Dotted place in the forward call (`added_cond_kwargs.time_ids`); the name by default.
    """

    name: str
    shape: Shape
    dtype: Literal["float", "int64"] = "float"
    argument: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A network as a class of diffusers or transformers with exact arguments.

    Attributes:
        library: The package that holds the class.
        class_name: The class, as a checkpoint's `_class_name` or `architectures` spells it.
        config: The arguments that differ from the class's defaults.
        inputs: Graph inputs, in the order of the forward call.
        output: The name of the one graph output.
        part: Which part of the class is the network (`decoder`, `encoder` of an autoencoder; `hidden_state`
            of a text encoder); empty for the whole of it.
    """

    library: Literal["diffusers", "transformers"]
    class_name: str
    config: Mapping[str, Any] = field(repr=False)
    inputs: tuple[InputSpec, ...]
    output: str = "out_sample"
    part: Literal["", "decoder", "encoder", "hidden_state"] = ""

    def network_class(self) -> Any:
        """The Python class. Raises MissingExtraError without the `models` extra."""
        try:
            return getattr(importlib.import_module(self.library), self.class_name)
        except ImportError as error:
            raise MissingExtraError(error.name or self.library, "models") from error

    def build(self, overrides: Mapping[str, Any] | None = None) -> Any:
        """The torch module in evaluation mode, with fresh weights on torch's current default device.

        Args:
            overrides: Arguments that replace those of `config`, as a checkpoint's own configuration does.
        """
        arguments = {**self.config, **(overrides or {})}
        network_class = self.network_class()
        if self.library == "transformers":
            config = network_class.config_class(**arguments)
            return network_class(config).eval()
        return network_class(**arguments).eval()
