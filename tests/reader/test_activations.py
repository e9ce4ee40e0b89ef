"""Activations, GELU's tanh form above all: recognised however spelled, part of the product before, and right as numbers."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from npusim import api
from npusim.graph import Graph
from npusim.scheduler.problem import Infeasible

Net = Any
TANH = (("approximate", "tanh"),)
ROOT, CUBIC = (2 / np.pi) ** 0.5, 0.044715
#: Between rounding in FP32 and the 4.7e-4 by which the two forms of GELU differ.
TOLERANCE = 1e-5


class Writer:
    """Arithmetic with scalar constants on a `Net`."""

    def __init__(self, net: Net) -> None:
        self.net = net

    def __call__(self, op: str, *operands: str | float, **attributes: Any) -> str:
        names = [o if isinstance(o, str) else self.net.constant(np.float32(o)) for o in operands]
        shape = next(self.net.shapes[o] for o in operands if isinstance(o, str))
        return str(self.net.node(op, names, shape, **attributes))

    def inner(self, x: str) -> str:
        """sqrt(2/pi) (x + 0.044715 x^3)."""
        return self("Mul", self("Add", x, self("Mul", self("Pow", x, 3.0), CUBIC)), ROOT)

    def grown(self, x: str) -> str:
        """1 + tanh(inner)."""
        return self("Add", self("Tanh", self.inner(x)), 1.0)


def _pow(w: Writer, x: str) -> str:
    return w("Mul", w("Mul", x, 0.5), w.grown(x))


def _constants_on_the_left(w: Writer, x: str) -> str:
    cube = w("Mul", CUBIC, w("Pow", x, 3.0))
    return w("Mul", 0.5, w("Mul", x, w("Add", 1.0, w("Tanh", w("Mul", ROOT, w("Add", cube, x))))))


def _products(w: Writer, x: str) -> str:
    cube = w("Mul", w("Mul", w("Mul", x, x), x), CUBIC)
    return w("Mul", w("Mul", x, w("Add", w("Tanh", w("Mul", w("Add", x, cube), ROOT)), 1.0)), 0.5)


def _cube_after_its_factor(w: Writer, x: str) -> str:
    cube = w("Mul", w("Mul", w("Mul", x, CUBIC), x), x)
    return w("Mul", w("Mul", w("Add", w("Tanh", w("Mul", w("Add", x, cube), ROOT)), 1.0), 0.5), x)


def _square_in_brackets(w: Writer, x: str) -> str:
    """tanh(x sqrt(2/pi) (1 + 0.044715 x^2))."""
    square = w("Mul", w("Mul", x, CUBIC), x)
    inner = w("Mul", w("Mul", x, ROOT), w("Add", 1.0, square))
    return w("Mul", w("Mul", 0.5, x), w("Add", 1.0, w("Tanh", inner)))


def _one_polynomial(w: Writer, x: str) -> str:
    """tanh(x (0.797885 + 0.035677 x^2)), as kernels write it."""
    inner = w("Mul", x, w("Add", w("Mul", w("Pow", x, 2.0), ROOT * CUBIC), ROOT))
    return w("Mul", x, w("Add", w("Mul", w("Tanh", inner), 0.5), 0.5))


def _quotients(w: Writer, x: str) -> str:
    inner = w("Div", w("Add", x, w("Div", w("Pow", x, 3.0), 1 / CUBIC)), 1 / ROOT)
    return w("Mul", w("Div", x, 2.0), w("Sub", w("Tanh", inner), -1.0))


def _multiplied_out(w: Writer, x: str) -> str:
    half = w("Mul", x, 0.5)
    return w("Add", half, w("Mul", w("Tanh", w.inner(x)), half))


def _sigmoid(w: Writer, x: str) -> str:
    return w("Mul", x, w("Sigmoid", w("Mul", w.inner(x), 2.0)))


def _operator(w: Writer, x: str) -> str:
    return w("Gelu", x, approximate="tanh")


def _microsoft(w: Writer, x: str) -> str:
    return w("FastGelu", x, domain="com.microsoft")


SPELLINGS: Mapping[str, Callable[[Writer, str], str]] = {
    f.__name__.strip("_"): f
    for f in (
        _pow, _constants_on_the_left, _products, _cube_after_its_factor, _square_in_brackets, _one_polynomial, _quotients,
        _multiplied_out, _sigmoid, _operator, _microsoft,
    )
}  # fmt: skip


def computed(graph: Graph, path: Path, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the planned Program computes in FP32."""
    from npusim.execute.formats import numbers_for
    from npusim.execute.run import execute
    from npusim.weights import open_weights

    found = api.profile(graph, precision="fp32", tiles="none")
    assert not isinstance(found, Infeasible), found.sentence()
    numbers = numbers_for(graph, found.plan, open_weights(path, graph))
    return execute(graph, found.plan, found.program, numbers, inputs)


def agrees_with_onnxruntime(proto: onnx.ModelProto, folder: Path) -> Graph:
    """Compare all outputs on random inputs; the graph of layers."""
    pytest.importorskip("onnxruntime")
    from npusim.deployment import run_onnxruntime

    path = folder / "model.onnx"
    onnx.save(proto, path)
    graph = api.load_graph(path)
    drawn = np.random.default_rng(5)
    inputs = {w.name: 3 * drawn.standard_normal(w.shape).astype(np.float32) for w in graph.inputs}
    ours = computed(graph, path, inputs)
    for name, wanted in run_onnxruntime(path, inputs).items():
        np.testing.assert_allclose(ours[name], wanted, rtol=0, atol=TOLERANCE)
    return graph


def epilogues(graph: Graph) -> list[tuple[str, Any]]:
    return [(e.function, e.parameters) for layer in graph.layers for e in layer.epilogue]


def written(net: Callable[..., Net], spelling: str) -> tuple[Net, Writer]:
    n = net(opset=20 if spelling == "operator" else 18)
    return n, Writer(n)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_joins_its_product_and_computes_what_onnxruntime_computes(
    net: Callable[..., Net], spelling: str, tmp_path: Path
) -> None:
    n, w = written(net, spelling)
    out = SPELLINGS[spelling](w, n.linear(n.input("x", 1, 40, 16), 24))
    graph = agrees_with_onnxruntime(n.output(out).proto(), tmp_path)
    assert [x.op for x in graph.layers] == ["linear"]
    assert epilogues(graph) == [("gelu", TANH)]
    assert graph.coverage.modelled_nodes == graph.coverage.nodes


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_gates_a_product(net: Callable[..., Net], spelling: str, tmp_path: Path) -> None:
    n, w = written(net, spelling)
    wide = n.linear(n.input("x", 1, 40, 16), 48)
    out = n.mul(n.slice(wide, 2, 0, 24), SPELLINGS[spelling](w, n.slice(wide, 2, 24, 48)))
    graph = agrees_with_onnxruntime(n.output(out).proto(), tmp_path)
    assert [x.op for x in graph.layers] == ["linear"]
    assert epilogues(graph) == [("geglu", TANH)]


def test_the_two_forms_are_told_apart(net: Callable[..., Net], tmp_path: Path) -> None:
    """So a form taken for the other one would fail the tests above."""
    n = net()
    graph = agrees_with_onnxruntime(n.output(n.gelu(n.linear(n.input("x", 1, 40, 16), 24))).proto(), tmp_path)
    assert epilogues(graph) == [("gelu", ())]
    from npusim.execute.functions import gelu

    x = np.linspace(-4, 4, 2001, dtype=np.float32)
    assert 4e-4 < np.abs(gelu(x, {}) - gelu(x, dict(TANH))).max() < 5e-4


def _erf_multiplied_out(w: Writer, x: str) -> str:
    half = w("Div", x, 2.0)
    return w("Add", w("Mul", half, w("Erf", w("Mul", x, 0.5**0.5))), half)


def _quick_gelu_by_a_quotient(w: Writer, x: str) -> str:
    return w("Mul", w("Sigmoid", w("Div", x, 0.625)), x)


def _silu_of_a_scaled_value(w: Writer, x: str) -> str:
    scaled = w("Mul", x, 2.0)
    return w("Mul", w("Sigmoid", scaled), scaled)


@pytest.mark.parametrize(
    ("spelled", "wanted"),
    [
        (_erf_multiplied_out, [("gelu", ())]),
        (_quick_gelu_by_a_quotient, [("quick_gelu", (("alpha", 1.6),))]),
        (_silu_of_a_scaled_value, [("scale", ()), ("silu", ())]),
    ],
)
def test_the_other_curves_too_are_found_whichever_way_their_factors_are_multiplied(
    net: Callable[..., Net], spelled: Callable[[Writer, str], str], wanted: list[Any], tmp_path: Path
) -> None:
    n = net()
    out = spelled(Writer(n), n.linear(n.input("x", 1, 40, 16), 24))
    graph = agrees_with_onnxruntime(n.output(out).proto(), tmp_path)
    assert [x.op for x in graph.layers] == ["linear"]
    assert epilogues(graph) == wanted


def _half_of_x_is_read_again(w: Writer, x: str) -> tuple[str, ...]:
    half = w("Mul", x, 0.5)
    return w("Mul", half, w.grown(x)), w("Sub", 1.0, half)


def _half_of_x_is_read_again_erf(w: Writer, x: str) -> tuple[str, ...]:
    half = w("Mul", x, 0.5)
    return w("Mul", half, w("Add", w("Erf", w("Div", x, 2**0.5)), 1.0)), w("Sub", 1.0, half)


def _square_is_read_again(w: Writer, x: str) -> tuple[str, ...]:
    square = w("Mul", x, x)
    inner = w("Mul", w("Add", x, w("Mul", w("Mul", square, x), CUBIC)), ROOT)
    return w("Mul", w("Mul", x, 0.5), w("Add", w("Tanh", inner), 1.0)), w("Sqrt", w("Add", square, 1.0))


def _argument_is_an_output(w: Writer, x: str) -> tuple[str, ...]:
    inner = w.inner(x)
    return w("Mul", w("Mul", x, 0.5), w("Add", w("Tanh", inner), 1.0)), inner


@pytest.mark.parametrize(
    "case",
    [_half_of_x_is_read_again, _half_of_x_is_read_again_erf, _square_is_read_again, _argument_is_an_output],
)
def test_what_others_read_too_is_still_computed(
    net: Callable[..., Net], case: Callable[[Writer, str], tuple[str, ...]], tmp_path: Path
) -> None:
    n = net()
    out = case(Writer(n), n.linear(n.input("x", 1, 40, 16), 24))
    graph = agrees_with_onnxruntime(n.output(*out).proto(), tmp_path)
    functions = [str(x.attributes.get("function")) for x in graph.layers] + [e[0] for e in epilogues(graph)]
    assert "gelu" in functions
    assert not {"tanh", "erf"} & set(functions)


def _other_coefficient(w: Writer, x: str) -> tuple[str, ...]:
    inner = w("Mul", w("Add", x, w("Mul", w("Pow", x, 3.0), 0.0455)), ROOT)
    return (w("Mul", w("Mul", x, 0.5), w("Add", w("Tanh", inner), 1.0)),)


def _other_root(w: Writer, x: str) -> tuple[str, ...]:
    inner = w("Mul", w("Add", x, w("Mul", w("Pow", x, 3.0), CUBIC)), 0.81)
    return (w("Mul", w("Mul", x, 0.5), w("Add", w("Tanh", inner), 1.0)),)


def _no_half(w: Writer, x: str) -> tuple[str, ...]:
    return (w("Mul", x, w.grown(x)),)


def _another_value_is_gated(w: Writer, x: str) -> tuple[str, ...]:
    return (w("Mul", w("Mul", w("Neg", w("Abs", x)), 0.5), w.grown(x)),)


def _a_factor_per_channel(w: Writer, x: str) -> tuple[str, ...]:
    factors = w.net.weight(24)
    inner = w("Mul", w("Add", x, w("Mul", w("Pow", x, 3.0), factors)), ROOT)
    return (w("Mul", w("Mul", x, 0.5), w("Add", w("Tanh", inner), 1.0)),)


def _the_sum_is_read_again(w: Writer, x: str) -> tuple[str, ...]:
    grown = w.grown(x)
    return w("Mul", w("Mul", x, 0.5), grown), w("Exp", grown)


@pytest.mark.parametrize(
    "case",
    [_other_coefficient, _other_root, _no_half, _another_value_is_gated, _a_factor_per_channel, _the_sum_is_read_again],
)  # fmt: skip
def test_what_only_looks_like_it_stays_as_it_is(
    net: Callable[..., Net], case: Callable[[Writer, str], tuple[str, ...]], tmp_path: Path
) -> None:
    n = net()
    out = case(Writer(n), n.linear(n.input("x", 1, 40, 16), 24))
    graph = agrees_with_onnxruntime(n.output(*out).proto(), tmp_path)
    functions = [str(x.attributes.get("function")) for x in graph.layers] + [e[0] for e in epilogues(graph)]
    assert "gelu" not in functions
    assert "tanh" in functions


# ---- what torch's exporters write -------------------------------------------------------------------------------------


def _activation(name: str) -> Any:
    import torch

    if name == "torch":
        return torch.nn.GELU("tanh")
    return pytest.importorskip("transformers.activations").ACT2FN[name]


def _exported(name: str, exporter: str, opset: int, dtype: str) -> tuple[onnx.ModelProto, Any]:
    """A linear layer and an activation as torch writes them, and the module."""
    import torch

    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(16, 24), _activation(name)).eval()
    x = torch.zeros(1, 40, 16)
    if dtype == "fp16":
        module, x = module.half(), x.half()
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters' own
        if exporter == "dynamo":
            program: Any = torch.onnx.export(module, (x,), dynamo=True, opset_version=opset, verbose=False)
            return program.model_proto, module.float()
        torch.onnx.export(module, (x,), buffer, dynamo=False, opset_version=opset)
    return onnx.load_model_from_string(buffer.getvalue()), module.float()


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.parametrize(
    ("exporter", "opset"), [("dynamo", 18), ("dynamo", 20), ("legacy", 17), ("legacy", 20)]
)
@pytest.mark.parametrize("name", ["torch", "gelu_new", "gelu_fast", "gelu_pytorch_tanh"])
def test_what_torch_exports_computes_what_torch_computes(
    name: str, exporter: str, opset: int, dtype: str, tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    proto, module = _exported(name, exporter, opset, dtype)
    path = tmp_path / "model.onnx"
    onnx.save(proto, path)
    graph = api.load_graph(path)
    assert [x.op for x in graph.layers] == ["linear"]
    assert epilogues(graph) == [("gelu", TANH)]
    window = graph.inputs[0]
    x = 3 * np.random.default_rng(5).standard_normal(window.shape).astype(np.float32)
    (ours,) = computed(graph, path, {window.name: x}).values()
    with torch.no_grad():
        wanted = module(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=TOLERANCE)
