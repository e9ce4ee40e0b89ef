"""`onnx-qdq`: the layers with QuantizeLinear and DequantizeLinear wherever the deployment stores a piece, in our scales.

Activations are symmetric (zero point 0), one scale per tensor and stage; weights have one scale per output channel; biases are
32-bit integers in accumulator scale, with weight scales widened where a bias would not fit (`quantize.bias_floor`).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import TensorProto

from npusim.execute.formats import Numbers as StoredNumbers
from npusim.export.onnx_graph import CONTRIB, GraphWriter
from npusim.export.onnx_numbers import Arrangement, Array, Constant, boxed, constant_name
from npusim.export.onnx_values import Value
from npusim.graph import Graph, Layer
from npusim.quantize import LIMITS, Format

#: First operator set whose own QuantizeLinear knows 16 bits. Source: ONNX operator changelog.
OPSET = 21
#: Enough for 8 bits alone; current onnxruntime rejects what its own optimizer makes of INT8 at operator set 21.
OPSET_8_BITS = 19
#: With the operators of com.microsoft instead.
CONTRIB_OPSET = 17


class QuantizedNumbers:
    """Constants as integers with a DequantizeLinear, stored pieces through QuantizeLinear and DequantizeLinear.

    Attributes:
        widened: weight name -> output channels whose scale was widened so that the bias fits.
    """

    def __init__(self, graph: Graph, numbers: StoredNumbers, writer: GraphWriter, *, contrib: bool) -> None:
        self.graph, self.numbers, self.writer = graph, numbers, writer
        self.domain = CONTRIB if contrib else ""
        self.widened: dict[str, int] = {}

    def constant(self, box: Constant, arrangement: Arrangement) -> str:
        """The box as integers and their scales, or as it is where the plan keeps it in floating point."""
        form = self.numbers.formats[box.tensor]
        name = constant_name(box, arrangement, self.graph.tensors[box.tensor].shape)
        if not self.writer.has_constant(name):
            stored = self.numbers.weight(box.tensor)
            self._note_widened(box.tensor, form, stored)
            self.writer.constant(name, arrangement.apply(boxed(stored, box)))
        if not form.is_integer:
            return name if form.dtype != "fp16" else self._cast(name, TensorProto.FLOAT)
        scales = _scales(form, box)
        return self._dequantize(name, form.dtype, scales, arrangement.axis, f"{name}:float")

    def _note_widened(self, name: str, form: Format, stored: Array) -> None:
        """Without a wide bias, the largest weight of a channel is the largest integer."""
        if not isinstance(form.scale, np.ndarray) or form.dtype not in ("int8", "int16"):
            return
        small = np.abs(stored.astype(np.int32)).max(axis=(0, 1, 3)) < LIMITS[form.dtype]
        if small.any():
            count = int(np.count_nonzero(self.numbers.weights[name][0, 0, small].any(axis=1)))
            self.widened.update({name: count} if count else {})

    def stored(self, key: str, value: Value) -> Value:
        """The value rounded and saturated as the deployment stores this stage."""
        return self._rounded(self.numbers.formats[key], value, key)

    def common(self, layer: Layer, number: int, value: Value) -> Value:
        """Parts with several scales are brought to the largest of them."""
        forms = [self.numbers.formats[p.tensor] for p in layer.operands[number].parts]
        scales = {f.scale for f in forms if isinstance(f.scale, float)}
        if len(scales) < 2:
            return value
        largest = max((f for f in forms if isinstance(f.scale, float)), key=lambda f: float(f.scale or 0))
        return self._rounded(largest, value, f"{layer.name}:operand{number}")

    def _rounded(self, form: Format, value: Value, key: str) -> Value:
        if form.dtype == "fp16":
            half = self._cast(value.name, TensorProto.FLOAT16)
            return Value(self._cast(half, TensorProto.FLOAT), value.shape, value.width)
        if not form.is_integer:
            return value
        assert isinstance(form.scale, float)
        zero = self.writer.scalar(0, form.dtype)
        scale = self.writer.scalar(float(np.float32(form.scale)))
        integers = self.writer.node(
            "QuantizeLinear", [value.name, scale, zero], domain=self.domain, output=f"{key}:{form.dtype}"
        )
        name = self.writer.node("DequantizeLinear", [integers, scale, zero], domain=self.domain, output=key)
        return Value(name, value.shape, value.width)

    def _dequantize(self, name: str, dtype: str, scales: Array, axis: int, output: str) -> str:
        if scales.ndim == 0:
            inputs = [name, self.writer.scalar(float(scales)), self.writer.scalar(0, dtype)]
            return self.writer.node(
                "DequantizeLinear", inputs, domain=self.domain, shared=True, output=output
            )
        inputs = [
            name,
            self.writer.constant(f"{name}:scale", scales),
            self.writer.constant(f"zeros:{dtype}:{len(scales)}", np.zeros(len(scales), dtype=dtype)),
        ]
        return self.writer.node(
            "DequantizeLinear", inputs, domain=self.domain, shared=True, output=output, axis=axis
        )

    def _cast(self, name: str, to: int) -> str:
        return self.writer.node("Cast", [name], shared=True, to=to)


def _scales(form: Format, box: Constant) -> Array:
    """FP32 scale of a box: one number, or one per row of a matrix or per column of a bias."""
    scale = np.asarray(form.scale)
    if scale.ndim:
        (_, _, r, c), (_, _, rows, cols) = box.offset, box.shape
        scale = scale[r : r + rows, 0] if scale.shape[1] == 1 else scale[0, c : c + cols]
    found: Array = scale.astype(np.float32)
    return found


def widened_note(widened: Mapping[str, int]) -> tuple[str, ...]:
    """What the user should know of widened weight scales."""
    if not widened:
        return ()
    channels = sum(widened.values())
    return (
        f"{channels} output channels of {len(widened)} weights have wider scales than their values need, "
        f"so that their biases fit 32 bits (most in '{max(widened, key=lambda n: widened[n])}')",
    )
