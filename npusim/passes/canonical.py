"""ONNX nodes become canonical layers: one handler per operator, views instead of data movement."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from npusim.errors import ModelError, NpusimError
from npusim.graph import Coverage, Graph, Tensor, Window
from npusim.onnx_checks import check_shape
from npusim.onnx_model import Node, OnnxModel
from npusim.passes.batch_norm import BATCH_NORM
from npusim.passes.builder import Builder, operand
from npusim.passes.derive import derive
from npusim.passes.elementwise import ELEMENTWISE
from npusim.passes.moves import MOVES
from npusim.passes.norms import NORMS
from npusim.passes.products import PRODUCTS
from npusim.passes.spatial import SPATIAL
from npusim.passes.view import Groups, View, default_groups, stored


def canonicalize(model: OnnxModel) -> Graph:
    """Layers of a folded, pattern-fused model; what no handler knows becomes an `unknown` layer and is named."""
    builder = Builder(model=model)
    images = _images(model)
    for name in model.inputs:
        shape = builder.shape(name)
        groups = _input_groups(len(shape), image=name in images)
        view = stored(name, shape, groups)
        builder.add_tensor(name, view.storage_shape, "input", source=name, source_shape=shape)
        builder.views[name] = view
    for node in model.nodes:
        try:
            _place(builder, node)
        except NpusimError:
            raise
        except Exception as error:  # attributes or shapes that contradict the operator's definition
            raise ModelError(
                f"{model.name}: node '{node.name}' ({node.op}) contradicts its operator's definition "
                f"({type(error).__name__}: {error}); check the model with onnx.checker and export it again"
            ) from error
    return _finish(builder)


def _place(builder: Builder, node: Node) -> None:
    for output in filter(None, node.outputs):
        check_shape(builder.shape(output), f"{builder.model.name}: value '{output}' of node '{node.name}'")
        if 0 in builder.shape(output):
            raise ModelError(
                f"{builder.model.name}: value '{output}' of node '{node.name}' ({node.op}) is empty, its shape is "
                f"{list(builder.shape(output))}; fix the input sizes with --shape or --dim"
            )
    if derive(builder, node):
        return
    handler = _HANDLERS.get(node.op)
    single = node.op == "Split" or len([o for o in node.outputs if o]) == 1
    if handler is None or not single or not handler(builder, node):
        _unknown(builder, node)


#: Operators whose first operand has channels as dimension 1 and an image after it.
_SPATIAL_OPS = frozenset(
    {*SPATIAL, "Conv", "ConvTranspose", "GroupNormalization", "InstanceNormalization", "BatchNormalization"}
)


def _images(model: OnnxModel) -> set[str]:
    """Run-time inputs that reach a spatial operator through operators that keep every dimension in its place."""
    images: set[str] = set()
    for node in reversed(model.nodes):
        spatial = node.op in _SPATIAL_OPS
        if spatial:
            images.add(node.inputs[0])
        elif node.op in ELEMENTWISE and any(o in images for o in node.outputs):
            images.update(node.inputs)
    return images & set(model.inputs)


def _input_groups(rank: int, *, image: bool) -> Groups:
    """How an input is stored: images channels last, other values of rank 4 as they are, the rest as rows."""
    if rank == 4 and not image:
        return ((0,), (1,), (2,), (3,))
    return default_groups(rank, image=image)


def _finish(builder: Builder) -> Graph:
    outputs = [builder.view(value) for value in builder.model.outputs]
    tensors = dict(builder.tensors)
    for view in outputs:
        for part in view.parts:
            if tensors[part.tensor].kind == "intermediate":
                tensors[part.tensor] = replace(tensors[part.tensor], kind="output")
    sources = {source for node in builder.model.nodes for source in node.sources}
    missed = sum(len(set(v)) for v in builder.unmodelled.values())
    coverage = Coverage(
        nodes=len(sources),
        modelled_nodes=len(sources) - missed,
        unmodelled={k: tuple(dict.fromkeys(v)) for k, v in sorted(builder.unmodelled.items())},
    )
    model = builder.model
    return Graph(
        name=model.name,
        tensors=tensors,
        layers=tuple(builder.layers),
        coverage=coverage,
        inputs=tuple(_window(name, builder.views[name]) for name in model.inputs),
        outputs=tuple(_window(name, view) for name, view in zip(model.outputs, outputs, strict=True)),
        constants=_folded(builder, tensors),
        model_sha256=model.sha256,
        opset=model.opset,
        producer=model.producer,
    )


def _window(name: str, view: View) -> Window:
    atoms = tuple((a.axis, a.size) for a in view.atoms)
    return Window(name=name, shape=view.shape, parts=view.parts, atoms=atoms, dims=view.dims)


def _folded(builder: Builder, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Data of the small constants that weights hold; large ones are in the file only."""
    weights = [t for t in tensors.values() if t.kind == "weight"]
    sources = {t.source for t in weights}
    scales = [
        t.packing.dequantize for t in weights if t.packing is not None and t.packing.dequantize is not None
    ]
    sources.update(name for scale in scales for name in scale[:2])
    norms = [t.normalization for t in weights if t.normalization is not None]
    sources.update(name for n in norms for name in (n.scale, n.shift, n.mean, n.variance))
    return {name: data for name, data in builder.model.constants.items() if name in sources}


def _unknown(builder: Builder, node: Node) -> None:
    """Costed by its bytes on the vector engine, and named in the coverage."""
    builder.unmodelled.setdefault(node.op, []).extend(node.sources)
    views = [builder.view(i) for i in node.inputs if i and 0 not in builder.shape(i)]
    if not views:
        raise ModelError(
            f"node '{node.name}' ({node.op}) has no run-time input and cannot be folded; npusim cannot place it"
        )
    for number, output in enumerate(o for o in node.outputs if o):
        shape = builder.shape(output)
        groups = default_groups(len(shape), image=len(shape) == 4)
        operands = [operand("x" if i == 0 else "whole", v) for i, v in enumerate(views)]
        builder.emit(
            node, "unknown", operands, stored("", shape, groups), suffix=node.op.lower() + (f".{number}" if number else ""),
            attributes={"onnx_op": node.op, "output": number}, value=output,
        )  # fmt: skip


_HANDLERS: Mapping[str, Callable[[Builder, Node], bool]] = {
    **MOVES,
    **SPATIAL,
    **PRODUCTS,
    **ELEMENTWISE,
    **NORMS,
    **BATCH_NORM,
}
