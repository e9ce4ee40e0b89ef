"""One module per family of networks: the class, its configuration and the inputs of one evaluation.

Nothing here imports torch or diffusers until a network is built.
"""

from __future__ import annotations

from npusim.models.architectures.network import Architecture, InputSpec

__all__ = ["Architecture", "InputSpec"]
