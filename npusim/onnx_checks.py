"""What a model file must satisfy before anything is done with it. Takes protobufs as they come; imports nothing of onnx."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import isfinite, prod
from pathlib import Path
from typing import Any

from npusim.errors import ModelError

#: Elements that one value may have: far above any real tensor, and few enough that a plan stays finite.
MAX_ELEMENTS = 2**33
MAX_DIM = 2**31
_EXTERNAL = 1
_LARGE_NAME = 4096


def check_file_size(path: Path, where: str) -> None:
    """Refuse what no protobuf can hold before it is read.

    Raises:
        ModelError: 2 GB or more.
    """
    size = path.stat().st_size
    if size >= MAX_DIM:
        raise ModelError(
            f"{where}: has {size} bytes, an ONNX file has at most {MAX_DIM - 1}; export it with external data"
        )


def check_graph(proto: Any, path: Path | None, where: str) -> None:
    """Names, subgraphs and external data of a parsed model.

    Raises:
        ModelError: a control character in a name, a name used twice, a subgraph, data outside the model's folder.
    """
    graph = proto.graph
    _check_once((i.name for i in graph.input), "input", where)
    _check_once((i.name for i in graph.initializer), "initializer", where)
    for node in graph.node:
        _check_name(node.name, "node", where)
        for name in (*node.input, *node.output):
            _check_name(name, "value", where)
        for attribute in node.attribute:
            if attribute.HasField("g") or len(attribute.graphs):
                raise ModelError(
                    f"{where}: node '{node.name or node.op_type}' ({node.op_type}) holds a subgraph ('{attribute.name}'); "
                    "npusim reads graphs without control flow: export the model with constant conditions"
                )
    locations: dict[str, str] = {}
    for tensor in graph.initializer:
        _check_name(tensor.name, "initializer", where)
        if tensor.data_location == _EXTERNAL:
            location = next((e.value for e in tensor.external_data if e.key == "location"), "")
            locations.setdefault(location, tensor.name)
    for location, name in locations.items():
        check_location(path.parent if path is not None else None, location, name, where)


def _check_once(names: Iterable[str], what: str, where: str) -> None:
    seen: set[str] = set()
    for name in names:
        _check_name(name, what, where)
        if name in seen:
            raise ModelError(f"{where}: {what} '{name}' stands twice; names must be unique")
        seen.add(name)


def _check_name(name: str | bytes, what: str, where: str) -> None:
    if isinstance(name, bytes):
        raise ModelError(
            f"{where}: the name {name[:40]!r} of a {what} is no text (not UTF-8); rename it and export again"
        )
    if len(name) > _LARGE_NAME:
        raise ModelError(
            f"{where}: a {what}'s name has {len(name)} characters ('{name[:40]}...'); up to {_LARGE_NAME} are allowed"
        )
    if not name.isprintable():
        shown = name.encode("unicode_escape").decode()
        raise ModelError(
            f"{where}: the name of {what} '{shown[:80]}' holds control characters; rename it and export again"
        )


def check_location(folder: Path | None, location: str, name: str, where: str) -> None:
    """Refuse external data that is not an ordinary file inside the model's folder; it need not be there.

    Raises:
        ModelError: an absolute path, `..`, a link, or a NUL.
    """
    parts = location.replace("\\", "/").split("/")
    absolute = location.startswith(("/", "\\")) or ":" in parts[0]
    if not location or "\0" in location or absolute or ".." in parts:
        raise ModelError(
            f"{where}: the data of '{name}' lies at {location[:200]!r}; only files inside the model's folder are read"
        )
    file = folder
    for part in parts if file is not None else ():
        assert file is not None
        file = file / part
        if file.is_symlink():
            raise ModelError(
                f"{where}: the data of '{name}' lies behind the link {part!r}; put the file itself beside the model"
            )


def check_tensor(tensor: Any, item_bytes: int, where: str) -> bool:
    """Whether an initializer holds data; its size is checked without copying it.

    Raises:
        ModelError: absurd dimensions, or fewer or more bytes than its shape says.
    """
    shape = tuple(tensor.dims)
    check_shape(shape, f"{where}: initializer '{tensor.name}'")
    if tensor.data_location == _EXTERNAL:
        return False
    if not tensor.HasField("raw_data"):
        fields = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")
        return any(len(getattr(tensor, field)) for field in fields) or prod(shape) == 0
    need = prod(shape) * item_bytes
    spare = tensor.ByteSize() - need
    if item_bytes and not 0 <= spare <= _LARGE_NAME:
        have = len(tensor.raw_data)
        if have != need:
            raise ModelError(
                f"{where}: initializer '{tensor.name}' has {have} bytes of data, its shape {list(shape)} needs {need}; "
                "export the model again"
            )
    return True


def check_shape(shape: tuple[int, ...], what: str) -> None:
    """Refuse sizes that no tensor has.

    Raises:
        ModelError: a negative or absurd dimension, or too many elements.
    """
    if any(d < 0 or d >= MAX_DIM for d in shape):
        raise ModelError(f"{what} has shape {list(shape)}; sizes from 0 to {MAX_DIM - 1} are allowed")
    if prod(shape) > MAX_ELEMENTS:
        raise ModelError(
            f"{what} has shape {list(shape)}, {prod(shape)} elements; up to {MAX_ELEMENTS} are allowed"
        )


def check_scales(nodes: Iterable[Any], constants: Mapping[str, Any], where: str) -> None:
    """Scales of quantization and factors of resizing must be positive numbers of a sensible size.

    Raises:
        ModelError: one is NaN, infinite, zero, negative or absurd.
    """
    for node in nodes:
        if node.op in ("QuantizeLinear", "DequantizeLinear"):
            index = 1
        elif node.op in ("Resize", "Upsample"):
            index = 1 if node.op == "Upsample" or len(node.inputs) == 2 else 2
        else:
            continue
        data = constants.get(node.inputs[index]) if len(node.inputs) > index else None
        for value in [] if data is None else data.ravel().tolist():
            if not (isfinite(value) and _SMALLEST < value < 1 / _SMALLEST):
                raise ModelError(
                    f"{where}: node '{node.name}' ({node.op}) has the scale {value}; "
                    f"numbers from {_SMALLEST} to {1 / _SMALLEST} are allowed; quantize or export the model again"
                )


_SMALLEST = 1e-30
