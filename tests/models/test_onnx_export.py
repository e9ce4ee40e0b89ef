"""Exports: stripping keeps what shapes need, recording needs no evaluation, graphs are reproducible."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from npusim.models import onnx_export, strip
from npusim.models.architectures import Architecture, InputSpec


def graph_with(initializers: list[TensorProto], node: onnx.NodeProto | None = None) -> onnx.ModelProto:
    node = node or helper.make_node("Identity", ["x"], ["y"])
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node], "g", [value("x", TensorProto.FLOAT, [1])], [value("y", TensorProto.FLOAT, [1])], initializers
    )
    return helper.make_model(graph)


def stripped_initializer(values: np.ndarray) -> TensorProto:
    tensor: TensorProto = strip.strip(graph_with([numpy_helper.from_array(values, "w")])).graph.initializer[0]
    return tensor


def test_a_weight_keeps_its_name_shape_and_type_and_loses_its_data() -> None:
    tensor = stripped_initializer(np.random.default_rng(0).standard_normal((8, 16)).astype(np.float16))
    assert (tensor.name, list(tensor.dims), tensor.data_type) == ("w", [8, 16], TensorProto.FLOAT16)
    assert tensor.data_location == TensorProto.EXTERNAL
    assert not tensor.raw_data
    assert tensor.external_data[0].value == "weights.bin"


@pytest.mark.parametrize(
    "values",
    [
        np.arange(1000),
        np.ones(32, np.float32),
        np.float32(0.125).reshape(()),
        np.triu(np.full((77, 77), np.float32(-np.inf)), 1),
        np.zeros(500, bool),
    ],
    ids=["integers", "norm's unit scale", "scalar", "causal mask", "booleans"],
)
def test_what_gives_layers_their_meaning_stays_inline(values: np.ndarray) -> None:
    tensor = stripped_initializer(values)
    assert tensor.data_location == TensorProto.DEFAULT
    np.testing.assert_array_equal(numpy_helper.to_array(tensor), values)


def test_a_constant_inside_a_node_is_stripped_like_an_initializer() -> None:
    weight = numpy_helper.from_array(np.random.default_rng(0).standard_normal(1000).astype(np.float32))
    model = strip.strip(graph_with([], helper.make_node("Constant", [], ["y"], value=weight)))
    assert model.graph.node[0].attribute[0].t.data_location == TensorProto.EXTERNAL


def test_of_a_nodes_metadata_only_the_innermost_scope_survives() -> None:
    node = helper.make_node("Identity", ["x"], ["y"], doc_string='File "/home/me/x.py"')
    node.metadata_props.add(key=strip.SCOPES_KEY, value="['', 'mid_block', 'mid_block.resnets.0', 'silu_1']")
    node.metadata_props.add(key="pkg.torch.onnx.stack_trace", value='File "/home/me/x.py"')
    stripped = strip.strip(graph_with([], node)).graph.node[0]
    assert [prop.value for prop in stripped.metadata_props] == ["['mid_block.resnets.0', 'silu_1']"]
    assert not stripped.doc_string


def test_a_scope_that_is_no_list_is_left_as_it_is() -> None:
    assert strip.last_scope("not [a list") == "not [a list"


def test_compression_gives_the_same_bytes_twice() -> None:
    model = graph_with([numpy_helper.from_array(np.arange(10), "w")])
    assert strip.compress(model) == strip.compress(model)


TINY = Architecture(
    library="diffusers",
    class_name="AutoencoderTiny",
    config={
        "encoder_block_out_channels": (16,),
        "decoder_block_out_channels": (16, 16),
        "num_encoder_blocks": (1,),
        "num_decoder_blocks": (1, 1),
    },
    inputs=(InputSpec(name="latent_sample", shape=(1, 4, 8, 8)),),
    output="sample",
    parts=("decoder",),
)


def test_recording_without_evaluating_convolutions_gives_the_same_graph(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("diffusers")
    spelling = onnx_export.spelling_of("legacy", dtype="fp16")
    network = onnx_export.seeded_network(TINY, dtype="fp16")
    quick = onnx_export.stripped_graph(network, TINY, spelling)
    monkeypatch.setattr(onnx_export, "unevaluated_convolutions", nullcontext)
    assert onnx_export.stripped_graph(network, TINY, spelling) == quick


def test_convolutions_are_computed_again_after_recording() -> None:
    torch = pytest.importorskip("torch")
    from npusim.models.unevaluated import unevaluated_convolutions

    ones, kernel = torch.ones(1, 2, 4, 4, dtype=torch.float16), torch.ones(1, 2, 3, 3, dtype=torch.float16)
    with unevaluated_convolutions():
        pass
    assert torch.nn.functional.conv2d(ones, kernel).flatten()[0] == 18


def test_a_placeholder_network_has_the_graph_of_a_real_one() -> None:
    pytest.importorskip("diffusers")
    spelling = onnx_export.spelling_of("dynamo")
    real = onnx_export.stripped_graph(onnx_export.seeded_network(TINY), TINY, spelling)
    placeholder = onnx_export.stripped_graph(onnx_export.placeholder_network(TINY), TINY, spelling)
    assert placeholder.graph.node == real.graph.node
    assert [(t.name, t.dims) for t in placeholder.graph.initializer] == [
        (t.name, t.dims) for t in real.graph.initializer
    ]


def test_equal_weights_are_told_apart_so_that_exporters_do_not_merge_them() -> None:
    torch = pytest.importorskip("torch")
    network = onnx_export.seeded_network(TINY)
    shared = torch.nn.Linear(4, 4)
    torch.nn.init.zeros_(shared.bias)
    onnx_export._make_distinct(shared)
    assert len(set(shared.bias.tolist())) == 4
    assert all(len(p.flatten().unique()) > 1 for p in network.parameters() if p.numel() > 1)
