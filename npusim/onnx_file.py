"""ONNX files: their protobuf, and the data of their initializers, inline or in files beside the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from npusim.errors import MissingWeightsError, ModelError
from npusim.onnx_checks import check_file_size, check_location
from npusim.onnx_model import SMALL_ELEMENTS, Array

STANDARD_DOMAINS = ("", "ai.onnx")


def load_bytes(source: Path | bytes, where: str) -> bytes:
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


def parse(data: bytes, where: str) -> onnx.ModelProto:
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
        if used.domain in STANDARD_DOMAINS and not 1 <= used.version <= newest:
            raise ModelError(
                f"{where}: uses operator set {used.version}; 1 to {newest} are known; export it for one of these"
            )
    return proto


def lift_constants(graph: Any) -> None:
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


def item_bytes(data_type: int) -> int:
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


def to_array(init: Any, where: str) -> Array:
    try:
        return np.asarray(numpy_helper.to_array(init))
    except Exception as error:  # wrong raw-data length, unknown type ...
        raise ModelError(
            f"{where}: the data of initializer '{init.name}' does not match its shape {list(init.dims)}; export the model again"
        ) from error


# ---- the data of weights: only when a plan is run on real numbers ----------------------------------------------------


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
    proto = parse(load_bytes(path, where), where)
    lift_constants(proto.graph)
    return {i.name: _stored_data(i, path, where) for i in proto.graph.initializer}


def load_small_external(graph: Any, model: Path, where: str) -> None:
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
        data = to_array(init, where)
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
