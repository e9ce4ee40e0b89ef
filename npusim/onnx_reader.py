"""Read an ONNX model into plain data. The only module that imports `onnx`.

Weights are never read here: an initializer keeps its name, shape and type, and its data only if it is small and inline
(shapes and scalars). External data files may be absent.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper, shape_inference

from npusim.errors import MissingWeightsError, ModelError
from npusim.onnx_checks import (
    MAX_DIM,
    check_file_size,
    check_graph,
    check_location,
    check_scales,
    check_shape,
    check_tensor,
)

#: Constants up to this many elements are kept as data; larger ones are weights and stay on disk.
SMALL_ELEMENTS = 2048
_STANDARD_DOMAINS = ("", "ai.onnx")

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """A tensor of the ONNX graph: its shape (None where unknown) and numpy type name."""

    shape: tuple[int, ...] | None
    dtype: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One ONNX node.

    Attributes:
        op: operator type; other domains are prefixed (`com.microsoft.Gelu`).
        name: as in the file, or `<op>_<index>`.
        inputs, outputs: value names, '' where omitted.
        attributes: python values; tensors as numpy arrays.
        scope: module path from the exporter, or ''.
        sources: names of the original nodes it stands for (more than one once patterns are fused).
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    scope: str = ""
    sources: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxModel:
    """An ONNX graph as data.

    Attributes:
        nodes: in topological order.
        values: shape and type of every value that is known.
        constants: data of small constants, by name.
        initializers: names of values that hold weights or constants.
        inputs, outputs: names of the graph's run-time inputs and outputs.
    """

    name: str
    nodes: tuple[Node, ...]
    values: Mapping[str, Value]
    constants: Mapping[str, Array]
    initializers: frozenset[str]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    opset: int
    producer: str
    sha256: str

    def evolve(self, **changes: Any) -> OnnxModel:
        """A copy with some fields replaced."""
        return replace(self, **changes)


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
    data = _load_bytes(source, where)
    given = name or (source.stem if isinstance(source, Path) else "model")
    proto = _parse(data, where)
    try:
        check_graph(proto, source if isinstance(source, Path) else None, where)
        if isinstance(source, Path):
            _load_small_external(proto.graph, source, where)
        _bind_inputs(proto, shapes or {}, dims or {}, where)
        return _to_model(_infer(proto, where), given, hashlib.sha256(data).hexdigest(), where)
    except ModelError:
        raise
    except Exception as error:  # fields of the wrong kind, which protobuf lets through
        raise ModelError(
            f"{where}: is malformed ({type(error).__name__}: {error}); export the model again"
        ) from error


def _load_bytes(source: Path | bytes, where: str) -> bytes:
    if isinstance(source, bytes):
        data = source
    else:
        if not source.exists():
            raise ModelError(
                f"{where}: no such file; give the path of an .onnx file or a name from 'npusim models list'"
            )
        if source.is_dir():
            raise ModelError(f"{where}: is a folder; give the path of an .onnx file inside it")
        try:
            check_file_size(source, where)
            data = source.read_bytes()
        except OSError as error:
            raise ModelError(f"{where}: cannot be read ({error.strerror}); check its permissions") from error
    if not data:
        raise ModelError(f"{where}: is empty (0 bytes); export the model again")
    return data


def _parse(data: bytes, where: str) -> onnx.ModelProto:
    try:
        proto = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf raises several unrelated types
        raise ModelError(
            f"{where}: is not an ONNX file, or is truncated ({len(data)} bytes do not parse as an ONNX protobuf); "
            "export the model again"
        ) from error
    if not proto.graph.node and not proto.graph.output:
        raise ModelError(f"{where}: holds no graph (no nodes, no outputs); is it really an ONNX model?")
    if not proto.opset_import:
        raise ModelError(
            f"{where}: does not say which operator set it uses (opset_import is empty); export it again"
        )
    newest = onnx.defs.onnx_opset_version()
    for used in proto.opset_import:
        if used.domain in _STANDARD_DOMAINS and not 1 <= used.version <= newest:
            raise ModelError(
                f"{where}: uses operator set {used.version}; 1 to {newest} are known; export it for one of these"
            )
    return proto


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
    _lift_constants(graph)
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
        opset=max((o.version for o in proto.opset_import if o.domain in _STANDARD_DOMAINS), default=0),
        producer=f"{proto.producer_name} {proto.producer_version}".strip(),
        sha256=sha256,
    )


def _lift_constants(graph: Any) -> None:
    """Constant nodes that hold a tensor (the legacy exporter's weights) become initializers, in place."""
    kept = []
    for node in graph.node:
        value = next((a.t for a in node.attribute if a.name == "value"), None)
        if node.op_type == "Constant" and value is not None and node.output:
            lifted = graph.initializer.add()
            lifted.CopyFrom(value)
            lifted.name = node.output[0]
        else:
            kept.append(node)
    if len(kept) != len(graph.node):
        del graph.node[:]
        graph.node.extend(kept)


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
        held = check_tensor(init, _item_bytes(init.data_type), where)
        values[init.name] = Value(shape=shape, dtype=_dtype_name(init.data_type))
        if held and prod(shape) <= SMALL_ELEMENTS:
            constants[init.name] = _to_array(init, where)
    return values, constants


def _item_bytes(data_type: int) -> int:
    """Bytes of an element of a tensor type; 0 where elements are packed or of no fixed size."""
    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(data_type)
    except (KeyError, ValueError):
        return 0
    packed = "INT4" in onnx.TensorProto.DataType.Name(data_type) or dtype.kind in "OSU"
    return (
        0
        if packed or dtype.itemsize == 0 or ("4" in dtype.name[-2:] and dtype.itemsize == 1)
        else dtype.itemsize
    )


def _to_array(init: Any, where: str) -> Array:
    try:
        return np.asarray(numpy_helper.to_array(init))
    except Exception as error:  # wrong raw-data length, unknown type ...
        raise ModelError(
            f"{where}: the data of initializer '{init.name}' does not match its shape {list(init.dims)}; export the model again"
        ) from error


def _read_nodes(graph: Any, where: str) -> Iterable[Node]:
    seen: set[str] = set()
    for i, node in enumerate(graph.node):
        prefix = "" if node.domain in _STANDARD_DOMAINS else f"{node.domain}."
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
            check_tensor(value, _item_bytes(value.data_type), where)
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


# ---- weights: only when a plan is run on real numbers ---------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredData:
    """Where the data of an initializer is: in memory, or at `offset` bytes of a file beside the model."""

    shape: tuple[int, ...]
    dtype: str
    data: Array | None = None
    path: Path | None = None
    offset: int = 0


def read_initializers(path: Path) -> Mapping[str, StoredData]:
    """Every initializer and constant of a model: inline data as arrays, external data as a place in a checked file.

    Raises:
        ModelError: not an ONNX file; external data outside the model's folder, behind a link, absent or of no numpy type.
    """
    where = str(path)
    proto = _parse(_load_bytes(path, where), where)
    _lift_constants(proto.graph)
    return {i.name: _stored_data(i, path, where) for i in proto.graph.initializer}


def _load_small_external(graph: Any, model: Path, where: str) -> None:
    """Bring small constants (positions, shapes) from the file beside the model into the graph, in place, if it is there."""
    for init in graph.initializer:
        if init.data_location != onnx.TensorProto.EXTERNAL or prod(init.dims) > SMALL_ELEMENTS:
            continue
        try:
            stored = _stored_data(init, model, where)
        except MissingWeightsError:
            continue
        assert stored.path is not None
        count = prod(stored.shape)
        with stored.path.open("rb") as file:
            file.seek(stored.offset)
            data = file.read(count * np.dtype(stored.dtype).itemsize)
        if len(data) == count * np.dtype(stored.dtype).itemsize:
            init.ClearField("external_data")
            init.data_location = onnx.TensorProto.DEFAULT
            init.raw_data = data


def _stored_data(init: Any, model: Path, where: str) -> StoredData:
    shape = tuple(init.dims)
    if init.data_location != onnx.TensorProto.EXTERNAL:
        data = _to_array(init, where)
        return StoredData(shape=shape, dtype=data.dtype.name, data=data)
    fields = {entry.key: entry.value for entry in init.external_data}
    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(init.data_type)
        offset = int(fields.get("offset", 0))
    except (KeyError, ValueError) as error:
        raise ModelError(
            f"{where}: the external data of '{init.name}' has an unknown type or offset; export the model again"
        ) from error
    if offset < 0 or any(d < 0 for d in shape):
        raise ModelError(
            f"{where}: the external data of '{init.name}' has a negative offset or size; export the model again"
        )
    return StoredData(
        shape=shape,
        dtype=dtype.name,
        path=_beside(model, fields.get("location", ""), init.name, where),
        offset=offset,
    )


def _beside(model: Path, location: str, name: str, where: str) -> Path:
    """The external data file, which must be an ordinary file inside the model's folder, reached without links."""
    check_location(model.parent, location, name, where)
    file = model.parent.joinpath(*location.replace("\\", "/").split("/"))
    if not file.is_file():
        raise MissingWeightsError(
            f"{where}: the weights file {location!r} is not there; put it beside the model"
        )
    return file
