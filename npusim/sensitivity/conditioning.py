"""What precision does to conditioning: the output with the text minus the output without it, quantized against FP32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from npusim.execute.untiled import execute_untiled
from npusim.graph import Graph
from npusim.precisions import Precisions
from npusim.sensitivity.subject import Inputs, Subject, noise_share

Array = npt.NDArray[Any]
#: Names that exporters give to a text embedding.
_TEXT = ("encoder_hidden_states", "text_emb", "prompt_emb", "context")


def text_input(graph: Graph) -> str | None:
    """The input that carries the text, if the network has one."""
    names = [w.name for w in graph.inputs if len(w.shape) >= 3]
    return next((n for t in _TEXT for n in names if t in n), None)


def without_text(
    graph: Graph, inputs: Sequence[Inputs], empty: Array | None = None
) -> list[dict[str, Array]] | None:
    """The same inputs without their text: the given embedding of an empty prompt, or zeros (our assumption). None without a text input."""
    name = text_input(graph)
    if name is None:
        return None
    return [{**one, name: np.zeros_like(one[name]) if empty is None else empty} for one in inputs]


def conditioning_share(subject: Subject, precisions: Precisions, empty: Sequence[Inputs]) -> float:
    """Noise of the difference that the text makes, as a share of that difference's power in FP32: the mean over inputs."""
    graph, numbers = subject.mixed(precisions)
    kept = subject.kept(numbers)
    shares = []
    for with_text, without, reference in zip(subject.inputs, empty, subject.references, strict=True):
        found = [execute_untiled(graph, kept, one) for one in (with_text, without)]
        exact = execute_untiled(subject.graph, subject.exact, without)
        shares.append(noise_share(_minus(*found), _minus(reference, exact)))
    return float(np.mean(shares))


def _minus(a: Mapping[str, Array], b: Mapping[str, Array]) -> dict[str, Array]:
    return {n: np.asarray(v, np.float64) - b[n] for n, v in a.items()}
