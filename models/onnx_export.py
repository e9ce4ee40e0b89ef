"""From a torch module to ONNX: both exporters of torch, seeded weights, fp32 or fp16.

The exporters' parts are private to this module: the rest of the zoo sees only functions that take a network
and give a file, or a graph without weights.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import onnx

from npusim.errors import BadInputError, MissingExtraError
from npusim.models.architectures import Architecture, InputSpec
from npusim.models.strip import MASK_ELEMENTS_MAX, WEIGHTS_LOCATION, strip
from npusim.models.traced import traced
from npusim.models.unevaluated import unevaluated_convolutions

Exporter = Literal["dynamo", "legacy"]
Dtype = Literal["fp32", "fp16"]

OPSETS: Mapping[str, tuple[int, ...]] = {"dynamo": tuple(range(18, 24)), "legacy": tuple(range(14, 18))}
DEFAULT_OPSET: Mapping[str, int] = {"dynamo": 18, "legacy": 17}
KEPT_FOR_STRIPPING_BYTES = 4 * MASK_ELEMENTS_MAX  # larger tensors are weights: dropped before serialising
NOISE = 0.02  # our assumption: small beside a norm's unit weight
DTYPES: tuple[str, ...] = ("fp32", "fp16")


@dataclass(frozen=True, slots=True, kw_only=True)
class Spelling:
    """Which exporter writes the graph, and how.

    Raises BadInputError where an option is unknown or the exporter does not write the opset.
    """

    exporter: Exporter = "dynamo"
    opset: int = 18
    dtype: Dtype = "fp32"

    def __post_init__(self) -> None:
        if self.exporter not in OPSETS:
            raise BadInputError(f"--exporter: '{self.exporter}' is unknown; choose {' or '.join(OPSETS)}")
        if self.dtype not in DTYPES:
            raise BadInputError(f"--dtype: '{self.dtype}' is unknown; choose {' or '.join(DTYPES)}")
        allowed = OPSETS[self.exporter]
        if self.opset not in allowed:
            raise BadInputError(
                f"--opset: the {self.exporter} exporter does not write opset {self.opset}; "
                f"choose one from {allowed[0]} to {allowed[-1]}"
            )

    @property
    def name(self) -> str:
        """`dynamo18`, `legacy17`, `dynamo18-fp16`."""
        return f"{self.exporter}{self.opset}" + ("" if self.dtype == "fp32" else f"-{self.dtype}")


def spelling_of(exporter: Exporter = "dynamo", opset: int | None = None, dtype: Dtype = "fp32") -> Spelling:
    """The spelling that the command line's options mean; `opset` defaults to the exporter's usual one."""
    return Spelling(exporter=exporter, opset=opset or DEFAULT_OPSET.get(exporter, 0), dtype=dtype)


def seeded_network(
    architecture: Architecture, *, dtype: Dtype = "fp32", seed: int = 0, distinct: bool = True
) -> Any:
    """The torch module of `architecture` with weights drawn from `seed`, as if trained.

    Args:
        architecture: What to build.
        dtype: Of weights and activations.
        seed: Of torch's generator; the caller's generator is left as it was.
        distinct: Add Gaussian noise of standard deviation `NOISE` to what starts as all ones or all zeros
            (norms, some biases): exporters merge equal tensors, of which a trained network has none.
    """
    torch = require_torch()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = architecture.build()
        if distinct:
            _make_distinct(network)
    return cast(network, dtype)


def cast(network: Any, dtype: Dtype) -> Any:
    """`network` with weights and activations in `dtype`, those the libraries would keep in fp32 too."""
    return require_torch().nn.Module.to(network, _torch_dtype(dtype))


def _make_distinct(network: Any) -> None:
    torch = require_torch()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.numel() > 1 and bool((parameter == parameter.flatten()[0]).all()):
                parameter.add_(torch.randn_like(parameter), alpha=NOISE)


def placeholder_network(architecture: Architecture, *, dtype: Dtype = "fp32", seed: int = 0) -> Any:
    """The torch module of `architecture` with placeholder weights, each matrix stored as a single element.

    Its graph is that of `seeded_network`; its memory is not: this is how graphs of networks with billions of
    parameters are made. Only for architectures without buffers, whose values a graph would need.
    """
    torch = require_torch()
    with torch.device("meta"):
        network = architecture.build()
    if any(True for _ in network.buffers()):
        raise ValueError(f"{architecture.class_name} has buffers: build it with seeded_network")
    random = torch.Generator().manual_seed(seed)
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            stored = parameter.shape if parameter.ndim == 1 else (1,) * parameter.ndim
            values = torch.randn(stored, generator=random, dtype=_torch_dtype(dtype)).expand(parameter.shape)
            setattr(module, name, torch.nn.Parameter(values, requires_grad=False))
    return network


def export(network: Any, architecture: Architecture, spelling: Spelling, path: Path) -> Path:
    """Write `network` as ONNX to `path`, its weights beside it in `<path>.data` where they are external.

    Args:
        network: The torch module, as built from `architecture`, in the dtype of `spelling`.
        architecture: Names and shapes of the graph's inputs and output.
        spelling: Exporter and opset.
        path: Where the `.onnx` file goes; its folder exists.
    """
    if spelling.exporter == "dynamo":
        _dynamo_program(network, architecture, spelling).save(str(path), external_data=True)
        return path
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        raw = Path(folder) / "legacy.onnx"
        write_legacy(network, architecture, spelling, raw)
        model = onnx.load(raw)
    onnx.save_model(
        model, path, save_as_external_data=True, location=f"{path.name}.data", size_threshold=1024
    )
    return path


def stripped_graph(network: Any, architecture: Architecture, spelling: Spelling) -> onnx.ModelProto:
    """The graph of `network` without weights (see `strip`); weights never reach the disk under dynamo."""
    if spelling.exporter == "dynamo":
        return strip(_proto_without_weights(_dynamo_program(network, architecture, spelling)))
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "legacy.onnx"
        write_legacy(network, architecture, spelling, raw)
        return strip(onnx.load(raw, load_external_data=False))


def example_inputs(architecture: Architecture, dtype: Dtype) -> tuple[Any, ...]:
    """Zero tensors for the graph's inputs, in their order."""
    return tuple(_example(spec, dtype) for spec in architecture.inputs)


def require_torch() -> Any:
    """The torch package. Raises MissingExtraError where it is not installed."""
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError("torch", "models") from error
    return torch


def _torch_dtype(dtype: Dtype) -> Any:
    return require_torch().float16 if dtype == "fp16" else require_torch().float32


def _example(spec: InputSpec, dtype: Dtype) -> Any:
    torch = require_torch()
    return torch.zeros(spec.shape, dtype=torch.int64 if spec.dtype == "int64" else _torch_dtype(dtype))


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporters' warnings about their own libraries; errors still surface."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _dynamo_program(network: Any, architecture: Architecture, spelling: Spelling) -> Any:
    torch = require_torch()
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            traced(network, architecture),
            example_inputs(architecture, spelling.dtype),
            dynamo=True,
            opset_version=spelling.opset,
            input_names=[spec.name for spec in architecture.inputs],
            output_names=[architecture.output],
            verbose=False,
        )
    _drop_idle_squeezes(program.model)
    return program


def _drop_idle_squeezes(model: Any) -> None:
    """Remove each Squeeze of a dimension that is not 1: nothing to torch, an error to ONNX (see PixArt)."""
    import onnx_ir

    for node in list(model.graph):
        if node.op_type != "Squeeze" or len(node.inputs) < 2 or node.inputs[1].const_value is None:
            continue
        source, axes = node.inputs[0], node.inputs[1].const_value.numpy()
        if all(source.shape[int(axis)] != 1 for axis in axes.flatten()):
            onnx_ir.convenience.replace_all_uses_with(node.outputs[0], source)
            model.graph.remove(node, safe=True)


def write_legacy(network: Any, architecture: Architecture, spelling: Spelling, path: Path) -> None:
    """Write the legacy exporter's file: weights inside up to 2 GB, in files beside it above."""
    torch = require_torch()
    evaluation = unevaluated_convolutions() if spelling.dtype == "fp16" else nullcontext()
    with _quiet(), torch.no_grad(), evaluation:
        torch.onnx.export(
            traced(network, architecture),
            example_inputs(architecture, spelling.dtype),
            str(path),
            dynamo=False,
            opset_version=spelling.opset,
            do_constant_folding=True,
            input_names=[spec.name for spec in architecture.inputs],
            output_names=[architecture.output],
        )


def _proto_without_weights(program: Any) -> onnx.ModelProto:
    import onnx_ir

    model = program.model
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor.dtype.is_floating_point() and tensor.nbytes > KEPT_FOR_STRIPPING_BYTES:
            value.const_value = onnx_ir.ExternalTensor(
                WEIGHTS_LOCATION, 0, None, tensor.dtype, shape=tensor.shape, name=value.name
            )
    proto: onnx.ModelProto = onnx_ir.to_proto(model)
    return proto
