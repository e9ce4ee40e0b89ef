"""Read an ONNX model into plain data. Only this module and `onnx_file` import `onnx`.

Weights are never read here: an initializer keeps its name, shape and type, and its data only if it is small and inline
(shapes and scalars). External data files may be absent.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from heapq import heappop, heappush
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper, shape_inference

from npusim.errors import ModelError
from npusim.onnx_checks import MAX_DIM, check_graph, check_scales, check_shape, check_tensor
from npusim.onnx_file import (
    STANDARD_DOMAINS,
    item_bytes,
    lift_constants,
    load_bytes,
    load_small_external,
    parse,
    to_array,
)
from npusim.onnx_model import SMALL_ELEMENTS, Array, Node, OnnxModel, Value


def read_onnx(
    source: Path | bytes,
    *,
    name: str = "",
    shapes: Mapping[str, Sequence[int]] | None = None,
    dims: Mapping[str, int] | None = None,
) -> OnnxModel:
    """Read a model without its weights and infer every shape that the file alone determines.

    Args:
        source: path of an `.onnx` file, or the file's bytes.
        name: what to call the model (default: the file's stem).
        shapes: input name -> shape, for inputs whose dimensions are symbolic.
        dims: symbolic dimension name -> size; unbound ones named like a batch become 1.

    Raises:
        ModelError: not a file, not ONNX, empty, truncated, a dimension is unbound or absurd, no opset.
    """
    where = str(source) if isinstance(source, Path) else (name or "model")
    data = load_bytes(source, where)
    given = name or (source.stem if isinstance(source, Path) else "model")
    proto = parse(data, where)
    try:
        check_graph(proto, source if isinstance(source, Path) else None, where)
        if isinstance(source, Path):
            load_small_external(proto.graph, source, where)
        _bind_inputs(proto, shapes or {}, dims or {}, where)
        return _to_model(_infer(proto, where), given, hashlib.sha256(data).hexdigest(), where)
    except ModelError:
        raise
    except Exception as error:  # fields of the wrong kind, which protobuf lets through
        raise ModelError(
            f"{where}: is malformed ({type(error).__name__}: {error}); export the model again"
        ) from error


def _bind_inputs(
    proto: onnx.ModelProto, shapes: Mapping[str, Sequence[int]], dims: Mapping[str, int], where: str
) -> None:
    """Write the given sizes into the graph inputs, in place; all other value shapes are re-inferred."""
    initializers = {i.name for i in proto.graph.initializer}
    inputs = {i.name: i for i in proto.graph.input if i.name not in initializers}
    for given in shapes:
        if given not in inputs:
            raise ModelError(
                f"{where}: --shape names '{given}', which is no input; inputs are: {', '.join(inputs) or 'none'}"
            )
    symbols = {d.dim_param for i in inputs.values() for d in i.type.tensor_type.shape.dim if d.dim_param}
    for given in dims:
        if given not in symbols:
            known = ", ".join(sorted(symbols)) or "none"
            raise ModelError(
                f"{where}: --dim names '{given}', which is no symbolic dimension; there are: {known}"
            )
    for value in inputs.values():
        _bind_one(value, shapes.get(value.name), dims, where)
    if symbols or shapes:
        del proto.graph.value_info[:]
        for output in proto.graph.output:
            output.type.tensor_type.ClearField("shape")


def _bind_one(value: Any, shape: Sequence[int] | None, dims: Mapping[str, int], where: str) -> None:
    declared = value.type.tensor_type.shape.dim
    if shape is not None:
        if len(declared) not in (0, len(shape)):
            raise ModelError(
                f"{where}: --shape gives input '{value.name}' {len(shape)} dimensions, the model has {len(declared)}"
            )
        if not declared:
            for _ in shape:
                declared.add()
    for i, dim in enumerate(declared):
        if shape is not None:
            if dim.dim_value and dim.dim_value != shape[i]:
                raise ModelError(
                    f"{where}: --shape gives input '{value.name}' size {shape[i]} in axis {i}, the model fixes it at {dim.dim_value}"
                )
            dim.dim_value = shape[i]
        elif dim.dim_param and dim.dim_param in dims:
            dim.dim_value = dims[dim.dim_param]
        elif not dim.HasField("dim_value") and _is_batch(dim.dim_param, i):
            dim.dim_value = 1
        if not dim.HasField("dim_value"):
            label = f"'{dim.dim_param}'" if dim.dim_param else f"in axis {i}"
            raise ModelError(
                f"{where}: input '{value.name}' has an unbound dimension {label}; "
                f"give it with --dim {dim.dim_param or 'NAME'}=SIZE or --shape {value.name}=1x..."
            )
        if not 0 < dim.dim_value < MAX_DIM:
            raise ModelError(
                f"{where}: input '{value.name}' has size {dim.dim_value} in axis {i}; sizes from 1 to {MAX_DIM - 1} are allowed"
            )


def _is_batch(symbol: str, axis: int) -> bool:
    return axis == 0 and (not symbol or "batch" in symbol.lower() or symbol.lower() in {"n", "b", "bs"})


def _infer(proto: onnx.ModelProto, where: str) -> onnx.ModelProto:
    try:
        return shape_inference.infer_shapes(proto, data_prop=True)
    except Exception as error:  # onnx raises its own and protobuf's types
        first = str(error).strip().splitlines()[0][:200]
        raise ModelError(
            f"{where}: shapes contradict each other ({first}); export the model again"
        ) from error


def _to_model(proto: onnx.ModelProto, name: str, sha256: str, where: str) -> OnnxModel:
    graph = proto.graph
    lift_constants(graph)
    values, constants = _read_initializers(graph, where)
    initializers = frozenset(i.name for i in graph.initializer)
    for info in (*graph.input, *graph.value_info, *graph.output):
        if info.name not in initializers:
            value = values[info.name] = _read_value(info)
            if value.shape is not None:
                check_shape(value.shape, f"{where}: value '{info.name}'")
    available = {*initializers, *(i.name for i in graph.input), ""}
    nodes = _sorted_nodes(tuple(_read_nodes(graph, where)), available, where)
    check_scales(nodes, constants, where)
    _check_outputs(graph, available, where)
    return OnnxModel(
        name=name,
        nodes=nodes,
        values=values,
        constants=constants,
        initializers=initializers,
        inputs=tuple(i.name for i in graph.input if i.name not in initializers),
        outputs=tuple(o.name for o in graph.output),
        opset=max((o.version for o in proto.opset_import if o.domain in STANDARD_DOMAINS), default=0),
        producer=f"{proto.producer_name} {proto.producer_version}".strip(),
        sha256=sha256,
    )


def _check_outputs(graph: Any, available: set[str], where: str) -> None:
    known = available.union(*(node.output for node in graph.node))
    for output in graph.output:
        if not output.name or output.name not in known:
            raise ModelError(
                f"{where}: output '{output.name}' is made by no node and is no input; export the model again"
            )


def _read_value(info: Any) -> Value:
    tensor = info.type.tensor_type
    shape: tuple[int, ...] | None = None
    if tensor.HasField("shape") and all(d.HasField("dim_value") for d in tensor.shape.dim):
        shape = tuple(d.dim_value for d in tensor.shape.dim)
    return Value(shape=shape, dtype=_dtype_name(tensor.elem_type))


def _dtype_name(elem_type: int) -> str:
    try:
        return onnx.TensorProto.DataType.Name(elem_type).lower() if elem_type else ""
    except ValueError as error:
        raise ModelError(
            f"the model has a tensor of element type {elem_type}, which ONNX does not know; export it again"
        ) from error


def _read_initializers(graph: Any, where: str) -> tuple[dict[str, Value], dict[str, Array]]:
    values: dict[str, Value] = {}
    constants: dict[str, Array] = {}
    for init in graph.initializer:
        shape = tuple(init.dims)
        held = check_tensor(init, item_bytes(init.data_type), where)
        values[init.name] = Value(shape=shape, dtype=_dtype_name(init.data_type))
        if held and prod(shape) <= SMALL_ELEMENTS:
            constants[init.name] = to_array(init, where)
    return values, constants


def _read_nodes(graph: Any, where: str) -> Iterable[Node]:
    seen: set[str] = set()
    for i, node in enumerate(graph.node):
        prefix = "" if node.domain in STANDARD_DOMAINS else f"{node.domain}."
        name = node.name or f"{node.op_type}_{i}"
        while name in seen:
            name = f"{name}#{i}"
        seen.add(name)
        yield Node(
            op=prefix + node.op_type,
            name=name,
            inputs=tuple(node.input),
            outputs=tuple(node.output),
            attributes={a.name: _read_attribute(a, name, where) for a in node.attribute},
            scope=_scope(node),
            sources=(name,),
        )


def _read_attribute(attribute: Any, node: str, where: str) -> Any:
    try:
        value = onnx.helper.get_attribute_value(attribute)
        if attribute.type == onnx.AttributeProto.TENSOR:
            check_tensor(value, item_bytes(value.data_type), where)
            return numpy_helper.to_array(value)
    except ModelError:
        raise
    except Exception as error:  # no type, an unknown type, data that does not fit its shape
        raise ModelError(
            f"{where}: attribute '{attribute.name}' of node '{node}' cannot be read; export the model again"
        ) from error
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(v.decode("utf-8", "replace") if isinstance(v, bytes) else v for v in value)
    return value


def _scope(node: Any) -> str:
    """Module path: dynamo leaves it in metadata, the legacy exporter in the node's name."""
    for prop in node.metadata_props:
        if prop.key == "pkg.torch.onnx.name_scopes":
            try:
                scopes = [s for s in ast.literal_eval(prop.value) if s]
            except (ValueError, SyntaxError):
                return ""
            return str(scopes[-2]) if len(scopes) > 1 else (str(scopes[0]) if scopes else "")
    if node.name.startswith("/"):
        return ".".join(node.name.strip("/").split("/")[:-1])
    return ""


def _sorted_nodes(nodes: tuple[Node, ...], available: set[str], where: str) -> tuple[Node, ...]:
    """The nodes in file order where that is topological, else the earliest legal order.

    Raises:
        ModelError: a value is produced twice, read but never produced, or the graph has a cycle.
    """
    producer: dict[str, Node] = {}
    for node in nodes:
        for output in filter(None, node.outputs):
            if output in producer or (output in available):
                raise ModelError(
                    f"{where}: value '{output}' is produced twice (again by node '{node.name}'); names must be unique"
                )
            producer[output] = node
    needs = [{i for i in node.inputs if i not in available} for node in nodes]
    readers: dict[str, list[int]] = {}
    for position, needed in enumerate(needs):
        for name in needed:
            readers.setdefault(name, []).append(position)
    missing = [len(needed) for needed in needs]
    ready = [i for i, count in enumerate(missing) if not count]  # ascending: a heap
    ordered: list[Node] = []
    done = set(available)
    while ready:
        node = nodes[heappop(ready)]
        ordered.append(node)
        for output in filter(None, node.outputs):
            done.add(output)
            for reader in readers.get(output, ()):
                missing[reader] -= 1
                if not missing[reader]:
                    heappush(ready, reader)
    if len(ordered) < len(nodes):
        blocked = [node for node, count in zip(nodes, missing, strict=True) if count]
        _raise_unsortable(blocked, producer, done, where)
    return tuple(ordered)


def _raise_unsortable(blocked: list[Node], producer: Mapping[str, Node], done: set[str], where: str) -> None:
    for node in blocked:
        missing = [i for i in node.inputs if i not in done and i not in producer]
        if missing:
            raise ModelError(
                f"{where}: node '{node.name}' reads '{missing[0]}', which nothing produces; export the model again"
            )
    raise ModelError(
        f"{where}: the graph has a cycle through node '{blocked[0].name}'; ONNX graphs must be acyclic"
    )


def infer_node(node: Node, inputs: Sequence[Value], data: Mapping[str, Array], opset: int) -> list[Value]:
    """Output shapes of one standard node, given its input shapes and the data of constant inputs.

    Returns:
        One value per output; shapes are None where inference cannot tell.
    """
    if "." in node.op:
        return [Value(shape=None, dtype="") for _ in node.outputs]
    proto = onnx.helper.make_node(node.op, list(node.inputs), list(node.outputs), node.name)
    for key, value in node.attributes.items():
        if isinstance(value, np.ndarray):
            proto.attribute.append(onnx.helper.make_attribute(key, numpy_helper.from_array(value)))
        else:
            proto.attribute.append(onnx.helper.make_attribute(key, value))
    types = {
        name: onnx.helper.make_tensor_type_proto(onnx.TensorProto.DataType.Value(v.dtype.upper()), v.shape)
        for name, v in zip(node.inputs, inputs, strict=True)
        if name and v.dtype
    }
    try:
        schema = onnx.defs.get_schema(node.op, opset, "")
        found = shape_inference.infer_node_outputs(
            schema,
            proto,
            types,
            {k: numpy_helper.from_array(np.asarray(v), k) for k, v in data.items()},
            opset_imports=[onnx.helper.make_opsetid("", opset)],
        )
    except Exception:  # a shape that onnx cannot infer is not an error here: the caller falls back or reports
        return [Value(shape=None, dtype="") for _ in node.outputs]
    return [_value_of_type(found.get(name)) for name in node.outputs]


def _value_of_type(type_proto: Any) -> Value:
    if type_proto is None:
        return Value(shape=None, dtype="")
    return _read_value(onnx.ValueInfoProto(name="x", type=type_proto))
