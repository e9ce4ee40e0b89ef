"""Graphs without weights: initializers keep name, shape and dtype; only what shapes need stays inline.

A stripped graph is what the zoo ships. It says where its weights would be (a file that does not exist), keeps
each node's module scope for the roll-up by block, and holds no trace of the machine that exported it.
"""

from __future__ import annotations

import ast
import lzma
from collections.abc import Iterator

import onnx
import onnx.numpy_helper

WEIGHTS_LOCATION = "weights.bin"  # named by every dropped initializer; never written
INLINE_FLOATS_MAX = 32  # scalars and the unit scales of a norm over 32 groups: what gives a layer its meaning
MASK_ELEMENTS_MAX = 1 << 16  # a constant of two values up to this size is an attention mask: kept
SCOPES_KEY = "pkg.torch.onnx.name_scopes"

_INTEGERS = frozenset(
    {
        onnx.TensorProto.BOOL,
        onnx.TensorProto.INT8,
        onnx.TensorProto.INT16,
        onnx.TensorProto.INT32,
        onnx.TensorProto.INT64,
        onnx.TensorProto.UINT8,
        onnx.TensorProto.UINT16,
        onnx.TensorProto.UINT32,
        onnx.TensorProto.UINT64,
    }
)


def strip(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` without weight data, doc strings, stack traces and machine paths.

    Integers and booleans stay inline whatever their size (shape arithmetic needs them), so do floating-point
    constants of at most `INLINE_FLOATS_MAX` elements and attention masks. The result is deterministic.
    """
    stripped = onnx.ModelProto()
    stripped.CopyFrom(model)
    stripped.doc_string = ""
    del stripped.metadata_props[:]
    for graph in _graphs(stripped.graph):
        _strip_graph(graph)
    return stripped


def compress(model: onnx.ModelProto) -> bytes:
    """The protobuf of `model` in an xz container; the same bytes on every run."""
    return lzma.compress(model.SerializeToString(deterministic=True), preset=9 | lzma.PRESET_EXTREME)


def last_scope(scopes: str) -> str:
    """Shorten the exporter's list of nested module scopes to the innermost module and the operator.

    >>> last_scope("['', 'mid_block', 'mid_block.resnets.0', 'silu_1']")
    "['mid_block.resnets.0', 'silu_1']"
    """
    try:
        parsed = ast.literal_eval(scopes)
    except (ValueError, SyntaxError):
        return scopes
    return repr([str(scope) for scope in parsed][-2:])


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)
            for nested in attribute.graphs:
                yield from _graphs(nested)


def _strip_graph(graph: onnx.GraphProto) -> None:
    graph.doc_string = ""
    del graph.metadata_props[:]
    for tensor in graph.initializer:
        _strip_tensor(tensor)
    for value in (*graph.input, *graph.output, *graph.value_info):
        value.doc_string = ""
        del value.metadata_props[:]
    for node in graph.node:
        _strip_node(node)


def _strip_node(node: onnx.NodeProto) -> None:
    node.doc_string = ""
    scopes = [prop.value for prop in node.metadata_props if prop.key == SCOPES_KEY]
    del node.metadata_props[:]
    if scopes:
        node.metadata_props.add(key=SCOPES_KEY, value=last_scope(scopes[0]))
    for attribute in node.attribute:
        attribute.doc_string = ""
        if attribute.HasField("t"):
            _strip_tensor(attribute.t)


def _strip_tensor(tensor: onnx.TensorProto) -> None:
    tensor.doc_string = ""
    del tensor.metadata_props[:]
    elements = 1
    for dimension in tensor.dims:
        elements *= dimension
    if tensor.data_type in _INTEGERS or elements <= INLINE_FLOATS_MAX or _is_mask(tensor, elements):
        return
    bare = onnx.TensorProto(
        name=tensor.name,
        dims=tensor.dims,
        data_type=tensor.data_type,
        data_location=onnx.TensorProto.EXTERNAL,
    )
    bare.external_data.add(key="location", value=WEIGHTS_LOCATION)
    tensor.CopyFrom(bare)


def _is_mask(tensor: onnx.TensorProto, elements: int) -> bool:
    if elements > MASK_ELEMENTS_MAX or tensor.data_location == onnx.TensorProto.EXTERNAL:
        return False
    return len(set(onnx.numpy_helper.to_array(tensor).flatten().tolist())) == 2
