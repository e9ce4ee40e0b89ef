"""From ONNX nodes to canonical, fused layers."""

from __future__ import annotations

from npusim.errors import ModelError, NpusimError
from npusim.graph import Graph
from npusim.onnx_model import OnnxModel
from npusim.passes.canonical import canonicalize
from npusim.passes.fold import fold_constants
from npusim.passes.fuse import fuse_layers
from npusim.passes.order import order_nodes
from npusim.passes.patterns import fuse_patterns
from npusim.passes.rewrite import spell_out
from npusim.passes.rewrite_standard import LATE

__all__ = ["to_layers"]


def to_layers(model: OnnxModel) -> Graph:
    """The graph of fused, canonical layers of a model.

    Raises:
        ModelError: a shape is unknown, or a node cannot be placed.
    """
    try:
        fused = spell_out(fuse_patterns(fold_constants(model)), LATE)
        return fuse_layers(canonicalize(order_nodes(fused)))
    except NpusimError:
        raise
    except (
        Exception
    ) as error:  # attributes and shapes that contradict each other in ways that no pass looks for
        raise ModelError(
            f"{model.name}: nodes contradict their operators' definitions ({type(error).__name__}: {error}); "
            "check the model with onnx.checker and export it again"
        ) from error
