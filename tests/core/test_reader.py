"""Reading ONNX: sizes of symbolic inputs, absent weights, order of nodes, and every kind of broken file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from npusim import api
from npusim.errors import ModelError
from npusim.onnx_reader import read_onnx

Net = Any


def small(net: Callable[..., Net]) -> Net:
    n = net()
    return n.output(n.linear(n.silu(n.linear(n.input("x", 1, 4, 8), 16)), 8))


def symbolic(net: Callable[..., Net], *shape: int | str) -> Net:
    """A convolution over an image whose sizes are symbols."""
    n = net()
    x = n.input("x", *shape)
    weight = n.weight(8, 4, 3, 3)
    return n.output(n.node("Conv", [x, weight], (None,) * 4, kernel_shape=[3, 3], pads=[1] * 4))


# ---- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", ["batch", "batch_size", "N", "bs", "B"])
def test_a_batch_that_nobody_gives_is_one(net: Callable[..., Net], batch: str) -> None:
    graph = symbolic(net, batch, 4, 6, 5).graph()
    assert graph.tensors["x"].shape == (1, 1, 30, 4)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"dims": {"h": 6, "w": 5}}, (1, 1, 30, 4)),
        ({"dims": {"h": 6, "w": 5, "batch": 3}}, (3, 1, 30, 4)),
        ({"shapes": {"x": (2, 4, 3, 7)}}, (2, 1, 21, 4)),
    ],
)
def test_symbolic_sizes_are_bound_by_dims_or_shapes(
    net: Callable[..., Net], options: Any, expected: Any
) -> None:
    graph = symbolic(net, "batch", 4, "h", "w").graph(**options)
    assert graph.tensors["x"].shape == expected
    assert graph.tensors[graph.layers[0].output].shape == (*expected[:3], 8)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"dims": {"w": 5}}, "unbound dimension 'h'"),
        (
            {"dims": {"h": 5, "w": 5, "depth": 3}},
            "names 'depth', which is no symbolic dimension; there are: batch, h, w",
        ),
        ({"shapes": {"y": (1, 4, 2, 2)}}, "names 'y', which is no input; inputs are: x"),
        ({"shapes": {"x": (1, 4, 2)}}, "3 dimensions, the model has 4"),
        ({"shapes": {"x": (1, 5, 2, 2)}}, "size 5 in axis 1, the model fixes it at 4"),
        ({"shapes": {"x": (1, 4, 0, 2)}}, "size 0 in axis 2"),
        ({"dims": {"h": 2**31, "w": 1}}, "sizes from 1 to"),
    ],
)
def test_sizes_that_do_not_fit_the_model_are_refused(
    net: Callable[..., Net], options: Any, says: str
) -> None:
    with pytest.raises(ModelError) as caught:
        symbolic(net, "batch", 4, "h", "w").graph(**options)
    assert says in str(caught.value)


def test_shape_arithmetic_is_folded(net: Callable[..., Net]) -> None:
    """Shape - Gather - Mul - Concat - Reshape, as exporters write flatten(), leaves no layer behind."""
    n = net()
    x = n.conv(n.input("x", 1, 4, 6, 5), 8)
    shape = n.node("Shape", [x], (4,))
    sizes = [n.node("Gather", [shape, n.constant(np.asarray([i], dtype=np.int64))], (1,)) for i in range(4)]
    rows = n.mul(sizes[2], sizes[3])
    target = n.concat(sizes[0], sizes[1], rows, axis=0)
    flat = n.node("Reshape", [x, target], (1, 8, 30))
    graph = n.output(n.linear(n.transpose(flat, 0, 2, 1), 16)).graph()
    assert [layer.op for layer in graph.layers] == ["conv", "linear"]
    assert graph.tensors[graph.layers[-1].output].shape == (1, 1, 30, 16)


# ---- files ------------------------------------------------------------------------------------------------------------


def test_weights_in_an_absent_file_are_not_missed(net: Callable[..., Net], tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save_model(
        small(net).proto(), str(path), save_as_external_data=True, location="net.data", size_threshold=0
    )
    (tmp_path / "net.data").unlink()
    graph, whole = api.load_graph(path), small(net).graph()
    assert [(x.op, x.output) for x in graph.layers] == [(x.op, x.output) for x in whole.layers]
    assert graph.name == "net"


def test_nodes_may_stand_in_any_order(net: Callable[..., Net]) -> None:
    n = net().unet()
    expected = n.graph()
    n.nodes.reverse()
    turned = n.graph()
    assert {x.name: x.op for x in turned.layers} == {x.name: x.op for x in expected.layers}
    done: set[str] = {t.name for t in turned.tensors.values() if t.kind in ("input", "weight")}
    for layer in turned.layers:
        assert set(layer.reads()) <= done
        done.add(layer.output)


def cyclic(n: Net) -> None:
    n.nodes[0].input[0] = n.outputs[0].name


def dangling(n: Net) -> None:
    n.nodes[0].input[0] = "nowhere"


def duplicate(n: Net) -> None:
    n.nodes[1].output[0] = n.nodes[0].output[0]


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (cyclic, "the graph has a cycle through node"),
        (dangling, "reads 'nowhere', which nothing produces"),
        (duplicate, "is produced twice"),
    ],
)
def test_a_graph_that_is_none_is_refused(
    net: Callable[..., Net], spoil: Callable[[Net], None], says: str
) -> None:
    n = small(net)
    spoil(n)
    with pytest.raises(ModelError, match=says):
        n.graph()


def test_a_model_without_an_operator_set_is_refused(net: Callable[..., Net]) -> None:
    proto = small(net).proto()
    del proto.opset_import[:]
    with pytest.raises(ModelError, match="opset_import is empty"):
        api.load_graph(proto.SerializeToString())


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is empty \\(0 bytes\\)"),
        (b"not a protobuf at all", "is not an ONNX file"),
        (b"\x00" * 64, "is not an ONNX file"),
        (b"\x08\x08", "holds no graph"),
    ],
)
def test_bytes_that_are_no_model_are_refused(data: bytes, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        read_onnx(data)


def test_a_truncated_file_is_refused_wherever_it_ends(net: Callable[..., Net]) -> None:
    """A cut file either does not parse, or something in it is missing: never a traceback, never a smaller network."""
    data = small(net).bytes()
    whole = len(small(net).graph().layers)
    for length in range(1, len(data) - 1, 41):
        try:
            graph = api.load_graph(data[:length])
        except ModelError:
            continue
        assert len(graph.layers) == whole


def test_a_folder_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is a folder"):
        read_onnx(tmp_path)
    with pytest.raises(ModelError, match="no such file"):
        read_onnx(tmp_path / "net.onnx")


def test_the_data_of_a_constant_must_match_its_shape(net: Callable[..., Net]) -> None:
    n = small(net)
    n.initializers[0].raw_data = n.initializers[0].raw_data[:-3]
    with pytest.raises(ModelError, match="does not match its shape"):
        n.graph()


# ---- what the file says of itself -------------------------------------------------------------------------------------


def test_a_graph_knows_its_file(net: Callable[..., Net]) -> None:
    n = small(net)
    graph = n.graph(name="mine")
    assert (graph.name, graph.opset, graph.producer) == ("mine", 18, "tests")
    assert len(graph.model_sha256) == 64
    n.nodes[0].name = "renamed"
    assert n.graph().model_sha256 != graph.model_sha256


def test_inputs_and_outputs_keep_their_names_and_shapes(net: Callable[..., Net]) -> None:
    graph = net().unet(batch=2).graph()
    assert [(w.name, w.shape) for w in graph.inputs] == [("sample", (2, 4, 8, 8)), ("context", (2, 5, 12))]
    assert [w.shape for w in graph.outputs] == [(2, 4, 8, 8)]
