"""What every family says about a network: the class that builds it, its configuration, its inputs."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
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
        parts: Children of the class that make up the network, run one after the other (an autoencoder's
            `post_quant_conv` and `decoder`); empty for the whole of it.
        revise: Changes blocks of the built module in place, where no class has them; None for most.
    """

    library: Literal["diffusers", "transformers"]
    class_name: str
    config: Mapping[str, Any] = field(repr=False)
    inputs: tuple[InputSpec, ...]
    output: str = "out_sample"
    parts: tuple[str, ...] = ()
    revise: Callable[[Any], None] | None = None

    def at_batch(self, batch: int) -> Architecture:
        """The same network for `batch` samples at once; what has one dimension (a timestep) all of them share."""
        inputs = tuple(
            replace(spec, shape=(batch, *spec.shape[1:])) if len(spec.shape) > 1 else spec
            for spec in self.inputs
        )
        return replace(self, inputs=inputs)

    def network_class(self) -> Any:
        """The Python class. Raises MissingExtraError without the `models` extra."""
        try:
            return getattr(importlib.import_module(self.library), self.class_name)
        except ImportError as error:
            raise MissingExtraError(error.name or self.library, "models") from error

    def build(self) -> Any:
        """The torch module in evaluation mode, with fresh weights on torch's current default device."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the libraries' own deprecations
            network_class = self.network_class()
            if self.library == "transformers":
                network = network_class(network_class.config_class(**self.config))
            else:
                network = network_class(**self.config)
            if self.revise is not None:
                self.revise(network)
        return network.eval()

    def parameters(self, network: Any) -> int:
        """The number of parameters of `network`, a module of this architecture, that belong to its parts."""
        modules = [getattr(network, part) for part in self.parts] or [network]
        return sum(parameter.numel() for module in modules for parameter in module.parameters())
