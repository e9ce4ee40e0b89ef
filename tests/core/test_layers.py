"""From ONNX nodes to canonical layers: every spelling gives the same layers, nothing is silently free."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest

from npusim import api
from npusim.graph import Graph
from npusim.models import zoo
from npusim.ops import macs_of

Net = Any
CONV, LINEAR, ATTENTION = 136_199_536_640, 68_753_162_240, 37_801_820_160
SPELLINGS = ("dynamo18", "legacy17")


def ops(graph: Graph) -> Counter[str]:
    return Counter(layer.op for layer in graph.layers)


def functions(graph: Graph) -> list[str]:
    return [e.function for layer in graph.layers for e in layer.epilogue]


# ---- the real U-Net, from both exporters ------------------------------------------------------------------------------


@cache
def spelled(spelling: str) -> Graph:
    return api.load_graph(zoo.graph_bytes("bk-sdm-tiny", spelling), name="bk-sdm-tiny")


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize(("op", "macs"), [("conv", CONV), ("linear", LINEAR), ("matmul", ATTENTION)])
def test_multiply_accumulates_of_bk_sdm_tiny_are_exact(spelling: str, op: str, macs: int) -> None:
    graph = spelled(spelling)
    assert sum(macs_of(graph, layer) for layer in graph.layers if layer.op == op) == macs


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_law_11_every_node_of_bk_sdm_tiny_is_modelled(spelling: str) -> None:
    coverage = spelled(spelling).coverage
    assert coverage.unmodelled == {}
    assert coverage.modelled_nodes == coverage.nodes > 0
    assert not {"unknown", "copy", "rearrange"} & set(ops(spelled(spelling)))


def test_both_exporters_give_the_same_layers() -> None:
    a, b = (spelled(s) for s in SPELLINGS)
    assert ops(a) == ops(b)
    vector = [
        Counter(f for f in functions(g) if f != "scale") for g in (a, b)
    ]  # constant factors cost nothing
    assert vector[0] == vector[1]
    shapes = [Counter((x.op, g.tensors[x.output].shape) for x in g.layers) for g in (a, b)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    ("tiles", "policy"),
    [("sram", "serial"), pytest.param("auto", "decoupled", marks=pytest.mark.slow)],
)
def test_latency_of_both_exporters_is_within_two_percent(
    unet_profile: Callable[[str, str], api.Profile], tiles: str, policy: Any
) -> None:
    legacy = api.profile(spelled("legacy17"), tiles=tiles, policy=policy)
    assert isinstance(legacy, api.Profile)
    dynamo = unet_profile(tiles, policy)
    assert legacy.summary["latency_ms"] == pytest.approx(dynamo.summary["latency_ms"], rel=0.02)
    assert legacy.summary["macs"] == dynamo.summary["macs"] == CONV + LINEAR + ATTENTION


@pytest.mark.slow
@pytest.mark.parametrize(("name", "spelling"), [(n, s) for n in zoo.names() for s in zoo.spellings(n)])
def test_law_11_every_network_of_the_zoo_is_covered(name: str, spelling: str) -> None:
    graph = api.load_graph(zoo.graph_bytes(name, spelling), name=name)
    assert graph.coverage.unmodelled == {}
    assert graph.coverage.modelled_nodes == graph.coverage.nodes
    known = zoo.card(name).macs  # of one sample
    if known is not None:
        batch = 2 if spelling.endswith("-batch2") else 1
        assert sum(macs_of(graph, layer) for layer in graph.layers) == batch * known


def test_the_dag_is_that_of_the_layers(unet: Graph) -> None:
    dag = unet.dag()
    assert set(dag.nodes) == {x.name for x in unet.layers}
    order = {x.name: i for i, x in enumerate(unet.layers)}
    assert all(order[a] < order[b] for a, b in dag.edges)
    assert all(data["layer"].name == name for name, data in dag.nodes(data=True))


# ---- decomposed operators ---------------------------------------------------------------------------------------------


def test_group_norm_and_silu_are_one_layer(net: Callable[..., Net]) -> None:
    n = net()
    graph = n.output(n.conv(n.silu(n.group_norm(n.input("x", 1, 8, 6, 6), 4)), 8)).graph()
    assert [x.op for x in graph.layers] == ["group_norm", "conv"]
    assert graph.layers[0].attributes["groups"] == 4
    assert functions(graph) == ["silu"]
    assert graph.coverage.nodes == graph.coverage.modelled_nodes == 8


def test_geglu_is_one_gated_linear_layer(net: Callable[..., Net]) -> None:
    n = net()
    graph = n.output(n.geglu(n.input("x", 1, 6, 8), 12)).graph()
    assert [x.op for x in graph.layers] == ["linear"]
    assert functions(graph) == ["geglu"]
    assert graph.tensors[graph.layers[0].output].shape == (1, 1, 6, 12)
    assert macs_of(graph, graph.layers[0]) == 6 * 8 * 24


@pytest.mark.parametrize("half_first", [True, False])
def test_gelu_is_recognised_whichever_way_its_factors_are_multiplied(
    net: Callable[..., Net], half_first: bool
) -> None:
    n = net()
    x = n.linear(n.input("x", 1, 6, 8), 8)
    shape = n.shapes[x]
    scaled = n.mul(x, n.constant(np.float32(0.5**0.5)))
    one = n.node("Add", [n.node("Erf", [scaled], shape), n.constant(np.float32(1))], shape)
    half = n.constant(np.float32(0.5))
    y = n.mul(n.mul(x, half), one) if half_first else n.mul(n.mul(one, half), x)
    assert functions(n.output(y).graph()) == ["gelu"]


def test_a_computed_scale_and_shift_join_their_layer_norm(net: Callable[..., Net]) -> None:
    n = net()
    x, scale, shift = n.input("x", 1, 6, 8), n.input("scale", 1, 1, 8), n.input("shift", 1, 1, 8)
    graph = n.output(n.add(n.mul(n.layer_norm(x), scale), shift)).graph()
    assert [x.op for x in graph.layers] == ["layer_norm"]
    assert functions(graph) == ["mul", "add"]
    assert [o.role for o in graph.layers[0].operands] == ["x", "scale", "bias", "broadcast", "broadcast"]


@pytest.mark.parametrize("own", [True, False])
def test_a_layer_norm_does_not_take_a_residual_that_it_might_overwrite(
    net: Callable[..., Net], own: bool
) -> None:
    n = net()
    x = n.linear(n.input("x", 1, 6, 8), 8)
    other = x if own else n.input("y", 1, 6, 8)
    graph = n.output(n.add(n.layer_norm(x), other)).graph()
    assert [x.op for x in graph.layers] == ["linear", "layer_norm", "elementwise"]


def test_a_group_norm_takes_activations_only(net: Callable[..., Net]) -> None:
    n = net()
    normed = n.group_norm(n.input("x", 1, 8, 6, 6), 4)
    graph = n.output(n.silu(n.add(normed, n.weight(8, 1, 1)))).graph()
    assert [x.op for x in graph.layers] == ["group_norm", "elementwise", "elementwise"]


@pytest.mark.parametrize("spelling", ["3d", "4d"])
@pytest.mark.parametrize("batch", [1, 2])
def test_attention_is_three_phases_of_one_group_in_both_spellings(
    net: Callable[..., Net], spelling: str, batch: int
) -> None:
    n = net()
    x, context = n.input("x", batch, 6, 8), n.input("context", batch, 5, 12)
    graph = n.output(n.attention(x, 2, context=context, spelled=spelling)).graph()
    assert ops(graph) == {"linear": 4, "matmul": 2, "softmax": 1}
    phases = [x for x in graph.layers if x.group]
    assert [x.op for x in phases] == ["matmul", "softmax", "matmul"]
    assert len({x.group for x in phases}) == 1
    assert graph.tensors[phases[0].output].shape == (batch, 2, 6, 5)
    assert [macs_of(graph, x) for x in phases] == [batch * 6 * 5 * 8, 0, batch * 6 * 5 * 8]
    assert phases[0].epilogue[0].function == "scale"
    assert phases[0].epilogue[0].value == pytest.approx(4**-0.5)


@pytest.mark.parametrize("function", ["add", "mul"])
def test_what_is_done_to_the_result_of_an_attention_is_a_layer_of_its_own(
    net: Callable[..., Net], function: str
) -> None:
    """A segment of scores, softmax and values has no place for another operand of the last product."""
    n = net()
    q, k, v, r = (n.input(t, 1, 6, 8) for t in "qkvr")
    scores = n.node("MatMul", [q, n.transpose(k, 0, 2, 1)], (1, 6, 6))
    out = n.node("MatMul", [n.node("Softmax", [scores], (1, 6, 6), axis=-1), v], (1, 6, 8))
    graph = n.output(getattr(n, function)(out, r)).graph()
    assert [x.op for x in graph.layers] == ["matmul", "softmax", "matmul", "elementwise"]
    assert [bool(x.group) for x in graph.layers] == [True, True, True, False]
    assert not graph.layers[2].epilogue


def test_a_linear_layer_swallows_its_bias_and_its_residual(net: Callable[..., Net]) -> None:
    n = net()
    x = n.linear(n.input("x", 1, 6, 8), 8)
    graph = n.output(n.add(n.linear(x, 8), x)).graph()
    assert [x.op for x in graph.layers] == ["linear", "linear"]
    assert [[o.role for o in x.operands] for x in graph.layers] == [
        ["x", "weight", "bias"],
        ["x", "weight", "bias", "residual"],
    ]


def test_a_concatenation_of_channels_is_read_in_parts(net: Callable[..., Net]) -> None:
    n = net()
    x = n.input("x", 1, 4, 6, 6)
    graph = n.output(n.conv(n.concat(n.conv(x, 8), n.conv(x, 12)), 4)).graph()
    assert ops(graph) == {"conv": 3}
    assert [p.size for p in graph.layers[-1].operands[0].parts] == [8, 12]


def test_a_whole_small_u_net_has_no_copies(net: Callable[..., Net]) -> None:
    for spelling in ("3d", "4d"):
        graph = net().unet(batch=2, spelled=spelling).graph()
        assert not {"copy", "rearrange", "unknown"} & set(ops(graph))
        assert graph.coverage.nodes == graph.coverage.modelled_nodes


@pytest.mark.parametrize(("groups", "expected"), [(1, 9 * 8 * 16), (4, 9 * 2 * 16), (8, 9 * 16)])
def test_macs_of_grouped_convolutions(net: Callable[..., Net], groups: int, expected: int) -> None:
    n = net()
    graph = n.output(n.conv(n.input("x", 1, 8, 5, 7), 16, groups=groups)).graph()
    assert macs_of(graph, graph.layers[0]) == 35 * expected


# ---- nothing is silently free -----------------------------------------------------------------------------------------


def test_law_11_an_operator_that_nobody_knows_is_named_and_costed_by_its_bytes(
    net: Callable[..., Net],
) -> None:
    n = net()
    x = n.linear(n.input("x", 1, 6, 8), 8)
    y = n.node("Odd", [x], n.shapes[x], name="odd_one", domain="com.example")
    found = api.profile(n.output(n.linear(y, 8)).graph(), npu="toy")
    assert isinstance(found, api.Profile)
    assert found.graph.coverage.unmodelled == {"com.example.Odd": ("odd_one",)}
    assert found.summary["coverage"]["unmodelled"] == {"com.example.Odd": ["odd_one"]}
    assert found.summary["coverage"]["nodes"] == pytest.approx(4 / 5)
    layer = next(i for i, x in enumerate(found.graph.layers) if x.op == "unknown")
    mine = found.program.commands.layer == layer
    assert (found.work.alone_ps[mine] > 0).all()
    assert int(found.program.commands.m[mine].max()) >= 6 * 8


def test_law_11_multiplications_of_an_unknown_operator_are_not_called_covered(
    net: Callable[..., Net],
) -> None:
    n = net()
    y = n.node(
        "ConvTranspose", [n.input("x", 1, 4, 8, 8), n.weight(4, 4, 3, 3)], (1, 4, 17, 17), strides=[2, 2]
    )
    found = api.profile(n.output(y).graph(), npu="toy")
    assert isinstance(found, api.Profile)
    assert found.summary["coverage"]["macs"] < 1


def test_a_model_without_a_single_layer_is_profiled_or_refused_in_a_sentence(net: Callable[..., Net]) -> None:
    n = net()
    x = n.input("x", 1, 6, 8)
    found = api.profile(n.output(n.reshape(x, 1, 48)).graph(), npu="toy")
    assert isinstance(found, api.Profile)


def test_unknown_operators_of_one_type_are_all_named(net: Callable[..., Net]) -> None:
    n = net()
    x = n.input("x", 1, 6, 8)
    for i in range(3):
        x = n.node("Odd", [x], n.shapes[x], name=f"odd{i}", domain="com.example")
    assert n.output(x).graph().coverage.unmodelled == {"com.example.Odd": ("odd0", "odd1", "odd2")}


def test_a_model_that_only_passes_its_input_on_is_profiled(net: Callable[..., Net]) -> None:
    n = net()
    found = api.profile(n.output(n.linear(n.input("x", 1, 6, 8), 8), "x").graph(), npu="toy")
    assert isinstance(found, api.Profile)
    assert found.summary["latency_ms"] > 0
