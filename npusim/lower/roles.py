"""Why the commands of a layer exist: the rows of Table 6 for attention, spills and weights for everything else."""

from __future__ import annotations

from dataclasses import dataclass

from npusim.graph import Graph, Layer


@dataclass(frozen=True, slots=True)
class Roles:
    """Role names of a layer's loads (of its streamed and its second operand), computation and stores."""

    load: str
    load_second: str
    compute: str
    store: str


_ATTENTION = {
    "scores": Roles("load_qk", "load_qk", "qk", "store_scores"),
    "softmax": Roles("load_scores", "load_scores", "softmax", "store_probs"),
    "values": Roles("load_probs_v", "load_probs_v", "pv", "store_out"),
}


def roles_of(graph: Graph, layer: Layer) -> Roles:
    """The roles of a layer's commands, by what the layer is."""
    if layer.group:
        if layer.op == "softmax":
            return _ATTENTION["softmax"]
        return _ATTENTION["scores" if layer.attributes["y_rows"] == "outputs" else "values"]
    first = graph.tensors[layer.operands[0].parts[0].tensor]
    load = "spill" if first.kind == "intermediate" else "other"
    second = "weight" if layer.op in ("conv", "linear") else load
    store = "spill" if graph.tensors[layer.output].kind == "intermediate" else "other"
    return Roles(load, second, "other", store)
