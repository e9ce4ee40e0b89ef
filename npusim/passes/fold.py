"""Fold constants: evaluate shape arithmetic, drop identities, and know every shape afterwards."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from npusim.errors import ModelError, NpusimError
from npusim.onnx_model import SMALL_ELEMENTS, Array, Node, OnnxModel, Value
from npusim.onnx_reader import infer_node
from npusim.passes.rewrite import Rule, rewrite
from npusim.passes.rewrite_attention import ATTENTION
from npusim.passes.rewrite_microsoft import MICROSOFT
from npusim.passes.rewrite_products import CONTRACTIONS
from npusim.passes.rewrite_standard import STANDARD

#: Constants are computed up to this many elements: attention masks that an exporter builds at run time are among them.
FOLDED_ELEMENTS = 16 * SMALL_ELEMENTS
_CAST = {1: "float32", 6: "int32", 7: "int64", 9: "bool", 10: "float16", 11: "float64", 2: "uint8", 3: "int8"}
_IDENTITIES = frozenset({"Identity", "Dropout", "CastLike"})
_QUANTIZATION = frozenset({"QuantizeLinear", "DequantizeLinear"})
_RULES: Mapping[str, Rule] = {**ATTENTION, **MICROSOFT, **CONTRACTIONS, **STANDARD}
#: Operators that onnx defines by other operators, and does not always infer: their output has the shape of their input.
_KEEP_SHAPE = frozenset({"GroupNormalization", "Gelu", "HardSwish", "Mish", "Softplus", "Swish"})
_FLOATS = frozenset({"float", "float16", "double", "bfloat16"})


def fold_constants(model: OnnxModel) -> OnnxModel:
    """Evaluate what depends only on constants and shapes; remove nodes that do nothing.

    Raises:
        ModelError: a shape needs data that the file does not hold, or cannot be inferred.
    """
    folding = _Folding(model)
    for node in model.nodes:
        try:
            folding.visit(node)
        except NpusimError:
            raise
        except Exception as error:  # attributes or shapes that contradict the operator's definition
            raise ModelError(
                f"{model.name}: node '{node.name}' ({node.op}) contradicts its operator's definition "
                f"({type(error).__name__}: {error}); check the model with onnx.checker and export it again"
            ) from error
    return folding.model()


class _Folding:
    """What is known while the nodes are visited in order."""

    def __init__(self, model: OnnxModel) -> None:
        self._model = model
        self._values, self._constants = dict(model.values), dict(model.constants)
        self._renamed: dict[str, str] = {}
        self._kept: list[Node] = []
        self._turned: dict[str, Node] = {}
        self._read = {i for n in model.nodes for i in n.inputs} | set(model.outputs)

    def visit(self, original: Node) -> None:
        """Evaluate the node, or keep what stands for it."""
        node = _rename(_without_unread(original, self._read), self._renamed)
        if _fold_node(node, self._values, self._constants):
            return
        for part in rewrite(_RULES, node, self._values, self._constants, self._model.initializers):
            spelled = _rename(part, self._renamed)
            if spelled is not node and _fold_node(spelled, self._values, self._constants):
                continue
            _complete_shapes(spelled, self._values, self._constants, self._model.opset)
            source = self._same_as(spelled)
            if source and spelled.outputs[0] not in self._model.outputs:
                self._renamed[spelled.outputs[0]] = source
            else:
                self._kept.append(spelled)

    def _same_as(self, node: Node) -> str:
        """The value that the node's output equals, or ''."""
        if node.op == "Transpose":
            before = self._turned.get(node.inputs[0])
            self._turned[node.outputs[0]] = node
            return before.inputs[0] if before is not None and _cancel(before, node) else ""
        if (
            node.op in _QUANTIZATION
        ):  # of activations: precision is the plan's; of weights: part of reading them
            constant = node.inputs[0] in self._model.initializers or node.inputs[0] in self._constants
            return "" if constant else node.inputs[0]
        return node.inputs[0] if _is_identity(node, self._values) else ""

    def model(self) -> OnnxModel:
        """The model of what was kept and is needed."""
        outputs = self._model.outputs
        used = {i for n in self._kept for i in n.inputs} | set(outputs)
        return self._model.evolve(
            nodes=_live_nodes(self._kept, outputs),
            values=self._values,
            constants={k: v for k, v in self._constants.items() if k in used},
            initializers=self._model.initializers | self._constants.keys(),
        )


def _without_unread(node: Node, read: Container[str]) -> Node:
    """The node without outputs that nothing reads (a mask of Dropout, indices of MaxPool); at least one stays."""
    if len(node.outputs) < 2 or all(o in read for o in node.outputs):
        return node
    outputs = [o if o in read else "" for o in node.outputs]
    while len(outputs) > 1 and not outputs[-1]:
        outputs.pop()
    return replace(node, outputs=tuple(outputs)) if any(outputs) else node


def _rename(node: Node, renamed: Mapping[str, str]) -> Node:
    if not any(i in renamed for i in node.inputs):
        return node
    return replace(node, inputs=tuple(renamed.get(i, i) for i in node.inputs))


def _fold_node(node: Node, values: dict[str, Value], constants: dict[str, Array]) -> bool:
    """Evaluate the node if it can be; True if its outputs are constants now."""
    known = {i: constants[i] for i in node.inputs if i in constants}
    results: tuple[Array, ...] | None = None
    if node.op in ("Shape", "Size"):
        results = _shape_of(node, values)
    elif node.op in _EVALUATE and all(not i or _is_small(known.get(i)) for i in node.inputs):
        results = _evaluate(node, known)
    if results is None or sum(r.size for r in results if any(r.strides)) > FOLDED_ELEMENTS:
        return False
    for name, result in zip(node.outputs, results, strict=False):
        constants[name] = result
        values[name] = Value(shape=result.shape, dtype=_onnx_dtype(result))
    return True


def _is_small(data: Array | None) -> bool:
    return data is not None and data.size <= FOLDED_ELEMENTS


def _onnx_dtype(array: Array) -> str:
    return {"float32": "float", "float64": "double"}.get(array.dtype.name, array.dtype.name)


def _shape_of(node: Node, values: Mapping[str, Value]) -> tuple[Array, ...] | None:
    value = values.get(node.inputs[0])
    if value is None or value.shape is None:
        return None
    if node.op == "Size":
        return (np.asarray(int(np.prod(value.shape)), dtype=np.int64),)
    sliced = value.shape[node.attributes.get("start", 0) : node.attributes.get("end", None)]
    return (np.asarray(sliced, dtype=np.int64),)


def _evaluate(node: Node, known: Mapping[str, Array]) -> tuple[Array, ...] | None:
    arguments = [known[i] if i else None for i in node.inputs]
    try:
        with np.errstate(all="ignore"):
            result = _EVALUATE[node.op](node.attributes, *arguments)
    except (ValueError, IndexError, TypeError, OverflowError, MemoryError) as error:
        raise ModelError(
            f"node '{node.name}' ({node.op}) cannot be evaluated on its constants ({error}); export the model again"
        ) from error
    if result is None:
        return None
    return tuple(np.asarray(r) for r in result) if isinstance(result, tuple | list) else (np.asarray(result),)


#: Elements that a constant made of one number may have: it takes no memory.
_ELEMENTS = 2**31


def _limit(shape: Any, most: int = SMALL_ELEMENTS * 64) -> tuple[int, ...]:
    sizes = tuple(int(s) for s in np.asarray(shape).ravel())
    if any(s < 0 for s in sizes) or len(sizes) > 32 or np.prod(sizes, dtype=float) > most:
        raise ValueError(f"shape {list(sizes)} is not one that a constant may have")
    return sizes


def _slice(
    data: Array, starts: Array, ends: Array, axes: Array | None = None, steps: Array | None = None
) -> Array:
    index: list[slice] = [slice(None)] * data.ndim
    for i, (start, end) in enumerate(zip(starts.ravel(), ends.ravel(), strict=True)):
        axis = int(axes.ravel()[i]) if axes is not None else i
        step = int(steps.ravel()[i]) if steps is not None else 1
        stop: int | None = int(end)
        if step < 0 and int(end) < -data.shape[axis]:
            stop = None
        index[axis] = slice(int(start), stop, step)
    return data[tuple(index)]


def _axes_of(attributes: Mapping[str, Any], axes: Array | None) -> tuple[int, ...] | None:
    if axes is not None:
        return tuple(int(a) for a in np.asarray(axes).ravel())
    given = attributes.get("axes")
    return tuple(given) if given is not None else None


def _unsqueeze(attributes: Mapping[str, Any], data: Array, axes: Array | None = None) -> Array:
    return np.expand_dims(data, _axes_of(attributes, axes) or ())


def _reshape(attributes: Mapping[str, Any], data: Array, shape: Array) -> Array:
    sizes = [int(s) for s in shape.ravel()]
    if not attributes.get("allowzero", 0):
        sizes = [data.shape[i] if s == 0 else s for i, s in enumerate(sizes)]
    return data.reshape(sizes)


def _range(_: Mapping[str, Any], start: Array, limit: Array, delta: Array) -> Array:
    count = max(0, int(np.ceil((limit - start) / delta)))
    _limit([count])
    return np.arange(count) * delta + start


def _divide(_: Mapping[str, Any], a: Array, b: Array) -> Array:
    if np.issubdtype(a.dtype, np.integer):
        return (np.trunc(a / b)).astype(a.dtype)
    return a / b


def _constant(attributes: Mapping[str, Any]) -> Array | None:
    for key in ("value", "value_int", "value_float", "value_ints", "value_floats"):
        if key in attributes:
            data = attributes[key]
            if isinstance(data, np.ndarray):
                return data
            return np.asarray(data, dtype=np.float32 if "float" in key else np.int64)
    return None


def _split(attributes: Mapping[str, Any], data: Array, sizes: Array | None = None) -> list[Array] | None:
    if sizes is None:
        return None
    return list(np.split(data, np.cumsum(sizes)[:-1], axis=attributes.get("axis", 0)))


#: What shape arithmetic uses: (attributes, *inputs) -> output or outputs; None where it does not apply.
_EVALUATE: Mapping[str, Callable[..., Any]] = {
    "Constant": _constant,
    "ConstantOfShape": lambda a, s: np.broadcast_to(
        np.asarray(a.get("value", np.zeros(1, np.float32))).ravel()[0], _limit(s, _ELEMENTS)
    ),
    "Gather": lambda a, x, i: np.take(x, i.astype(np.int64), axis=a.get("axis", 0)),
    "Concat": lambda a, *xs: np.concatenate(xs, axis=a["axis"]),
    "Slice": lambda a, x, *r: _slice(x, *(r or (np.asarray(a["starts"]), np.asarray(a["ends"])))),
    "Unsqueeze": _unsqueeze,
    "Squeeze": lambda a, x, axes=None: np.squeeze(x, _axes_of(a, axes)),
    "Reshape": _reshape,
    "Transpose": lambda a, x: np.transpose(x, a.get("perm")),
    "Expand": lambda a, x, s: np.broadcast_to(x, np.broadcast_shapes(x.shape, _limit(s))),
    "Range": _range,
    "Cast": lambda a, x: x.astype(_CAST[a["to"]]) if a["to"] in _CAST else None,
    "Split": _split,
    "Identity": lambda a, x: x,
    "Add": lambda a, x, y: x + y,
    "Sub": lambda a, x, y: x - y,
    "Mul": lambda a, x, y: x * y,
    "Div": _divide,
    "Mod": lambda a, x, y: np.fmod(x, y) if a.get("fmod") else np.mod(x, y),
    "Pow": lambda a, x, y: np.power(x, y).astype(x.dtype),
    "Min": lambda a, *xs: np.minimum.reduce(xs),
    "Max": lambda a, *xs: np.maximum.reduce(xs),
    "Neg": lambda a, x: -x,
    "Abs": lambda a, x: np.abs(x),
    "Floor": lambda a, x: np.floor(x),
    "Ceil": lambda a, x: np.ceil(x),
    "Sqrt": lambda a, x: np.sqrt(x),
    "Exp": lambda a, x: np.exp(x),
    "Not": lambda a, x: np.logical_not(x),
    "And": lambda a, x, y: np.logical_and(x, y),
    "Or": lambda a, x, y: np.logical_or(x, y),
    "Equal": lambda a, x, y: np.equal(x, y),
    "Greater": lambda a, x, y: np.greater(x, y),
    "GreaterOrEqual": lambda a, x, y: np.greater_equal(x, y),
    "Less": lambda a, x, y: np.less(x, y),
    "LessOrEqual": lambda a, x, y: np.less_equal(x, y),
    "Where": lambda a, c, x, y: np.where(c, x, y),
    "ReduceProd": lambda a, x, axes=None: np.prod(
        x, axis=_axes_of(a, axes), keepdims=bool(a.get("keepdims", 1))
    ),
    "Trilu": lambda a, x, k=0: (np.triu if a.get("upper", 1) else np.tril)(x, int(k)),
    "CumSum": lambda a, x, axis: (
        None if a.get("reverse") or a.get("exclusive") else np.cumsum(x, axis=int(axis))
    ),
}


def _complete_shapes(
    node: Node, values: dict[str, Value], constants: Mapping[str, Array], opset: int
) -> None:
    """Infer the node's output shapes where whole-model inference could not."""
    unknown = [o for o in node.outputs if o and (o not in values or values[o].shape is None)]
    if not unknown:
        return
    inputs = [_as_float(values.get(i, Value(shape=None, dtype=""))) for i in node.inputs]
    data = {i: _as_float32(constants[i]) for i in node.inputs if i in constants}
    for name, value in zip(node.outputs, infer_node(node, inputs, data, opset), strict=True):
        if value.shape is not None:
            values[name] = value
    missing = [o for o in unknown if o not in values or values[o].shape is None]
    if missing == [node.outputs[0]] and node.op in _KEEP_SHAPE and inputs[0].shape is not None:
        values[missing[0]] = inputs[0]
    elif missing:
        raise ModelError(_unknown_shape_message(node, missing[0], values, constants))


def _as_float(value: Value) -> Value:
    """One floating-point type for all: casts between them are gone, and operators ask for equal types."""
    return replace(value, dtype="float") if value.dtype in _FLOATS else value


def _as_float32(data: Array) -> Array:
    return data.astype(np.float32) if data.dtype.kind == "f" and data.dtype != np.float32 else data


def _unknown_shape_message(
    node: Node, output: str, values: Mapping[str, Value], constants: Mapping[str, Array]
) -> str:
    absent = [
        i for i in node.inputs[1:] if i and i not in constants and i in values and values[i].dtype == "int64"
    ]
    if absent:
        return (
            f"node '{node.name}' ({node.op}): the shape of '{output}' depends on '{absent[0]}', whose data is not in the file; "
            "keep small integer constants inline when stripping weights"
        )
    return (
        f"node '{node.name}' ({node.op}): the shape of '{output}' cannot be inferred; "
        "fix the input sizes with --shape or --dim"
    )


def _cancel(first: Node, second: Node) -> bool:
    """Whether the second transpose undoes the first."""
    one, two = first.attributes.get("perm"), second.attributes.get("perm")
    if one is None or two is None:
        return one is two
    return [one[i] for i in two] == sorted(one)


def _is_identity(node: Node, values: Mapping[str, Value]) -> bool:
    if node.op in _IDENTITIES:
        return True
    source, result = (
        values.get(node.inputs[0]) if node.inputs and node.inputs[0] else None,
        values.get(node.outputs[0]),
    )
    if source is None or result is None:
        return False
    if node.op == "Cast":  # between float types: a matter of precision, which the plan decides
        return source.dtype in _FLOATS and result.dtype in _FLOATS
    return node.op in ("Reshape", "Expand") and source.shape == result.shape


def _live_nodes(nodes: list[Node], outputs: tuple[str, ...]) -> tuple[Node, ...]:
    wanted, live = set(outputs), []
    for node in reversed(nodes):
        if any(o in wanted for o in node.outputs):
            wanted.update(node.inputs)
            live.append(node)
    return tuple(reversed(live))
