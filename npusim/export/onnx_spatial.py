"""Nodes of images: convolutions and pooling of a band with pads of its own, resizing, GroupNorm whole or by partial sums, moves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
from onnx import TensorProto

from npusim.errors import ExportError
from npusim.execute.kernels_product import Spatial
from npusim.export.onnx_graph import GraphWriter
from npusim.export.onnx_values import Layouts, Value
from npusim.graph import Layer, Shape4
from npusim.lower.geometry import resize_taps


class SpatialNodes:
    """Writes nodes that know rows of an image from its columns."""

    def __init__(self, writer: GraphWriter, layouts: Layouts) -> None:
        self.writer, self.layouts = writer, layouts

    # ---- windows -----------------------------------------------------------------------------------------------

    def conv(
        self, x: Value, first_row: int, weight: str, bias: str, geometry: Spatial, groups: int, out_rows: tuple[int, int],
        shape: Shape4,
    ) -> Value:  # fmt: skip
        """A band of a convolution: pads only where the band touches the border of the image.

        Args:
            x: whole image rows from storage row `first_row` on.
            weight, bias: ONNX values; the bias may be ''.
            out_rows: (first, past the last) output image row.
            shape: of the result, [b, 1, (out rows) * out_w, n].
        """
        image, pads = self._band(x, first_row, geometry, out_rows)
        found = self.writer.node(
            "Conv", [image.name, weight, *([bias] if bias else [])], kernel_shape=list(geometry.kernel),
            strides=list(geometry.stride), dilations=list(geometry.dilation), pads=pads, group=groups,
        )  # fmt: skip
        return Value(found, shape, geometry.out_hw[1])

    def pool(
        self,
        x: Value,
        first_row: int,
        layer: Layer,
        geometry: Spatial,
        out_rows: tuple[int, int],
        shape: Shape4,
    ) -> Value:
        """A band of max or average pooling."""
        image, pads = self._band(x, first_row, geometry, out_rows)
        window: dict[str, Any] = {
            "kernel_shape": list(geometry.kernel),
            "strides": list(geometry.stride),
            "pads": pads,
        }
        if layer.attributes["function"] == "max":
            found = self.writer.node("MaxPool", [image.name], dilations=list(geometry.dilation), **window)
            return Value(found, shape, geometry.out_hw[1])
        padded = int(layer.attributes.get("count_include_pad", 0))
        beyond = any(p > given for p, given in zip(pads[2:], geometry.pads[2:], strict=True))
        if geometry.dilation != (1, 1) or (padded and beyond):
            raise ExportError(
                f"layer '{layer.name}': average pooling with dilation, or with windows beyond padding that counts, "
                "is not written; export the model again without it"
            )
        found = self.writer.node("AveragePool", [image.name], count_include_pad=padded, **window)
        return Value(found, shape, geometry.out_hw[1])

    def _band(
        self, x: Value, first_row: int, geometry: Spatial, out_rows: tuple[int, int]
    ) -> tuple[Value, list[int]]:
        """The input rows that a band needs, as an image, and the pads (top, left, bottom, right) around them."""
        in_w = geometry.in_hw[1]
        start, held = first_row // in_w, x.shape[2] // in_w
        reach = [(k - 1) * d + 1 for k, d in zip(geometry.kernel, geometry.dilation, strict=True)]
        low = out_rows[0] * geometry.stride[0] - geometry.pads[0]
        high = (out_rows[1] - 1) * geometry.stride[0] - geometry.pads[0] + reach[0]
        right = (geometry.out_hw[1] - 1) * geometry.stride[1] + reach[1] - geometry.pads[1] - in_w
        top, bottom = max(low, start), min(high, start + held)
        cols = in_w + min(0, right)
        if top >= bottom or cols <= 0:
            raise ExportError(f"'{self.writer.scope}': a band lies in padding only; plan it with fewer tiles")
        box = (x.shape[0], 1, (bottom - top) * in_w, x.shape[3])
        image = self.layouts.image(self.layouts.slice(x, (0, 0, (top - start) * in_w, 0), box), in_w)
        if cols < in_w:
            limits = [self.writer.ints(n) for n in (0, cols, 3)]
            name = self.writer.node("Slice", [image.name, *limits], shared=True)
            image = Value(name, (*box[:2], (bottom - top) * cols, box[3]), cols)
        return image, [top - low, geometry.pads[1], high - bottom, max(0, right)]

    # ---- resizing ----------------------------------------------------------------------------------------------

    def resize(
        self,
        x: Value,
        first_row: int,
        attributes: Mapping[str, Any],
        out_rows: tuple[int, int],
        shape: Shape4,
    ) -> Value:
        """A band of a resized image: Resize where it is all of it, else the rows and columns that each element reads."""
        (in_h, in_w), (out_h, out_w) = attributes["in_hw"], attributes["out_hw"]
        image = self.layouts.image(x, in_w)
        whole = out_rows == (0, out_h) and image.shape[2] == in_h * in_w
        if (
            whole and attributes.get("coordinates") != "align_corners"
        ):  # which runtimes round in their own ways
            return Value(self._resized(image, attributes, shape), shape, out_w)
        name = image.name
        for axis, low, span in ((0, first_row // in_w, out_rows), (1, 0, (0, out_w))):
            name = self._weighted_taps(name, attributes, axis, low, span)
        return Value(name, shape, out_w)

    def _resized(self, image: Value, attributes: Mapping[str, Any], shape: Shape4) -> str:
        out_h, out_w = attributes["out_hw"]
        if "scales" in attributes:
            scales = np.asarray([1, 1, *attributes["scales"]], dtype=np.float32)
            inputs = [image.name, "", self.writer.constant(f"scales:{scales.tolist()}", scales)]
        else:
            inputs = [image.name, "", "", self.writer.ints(shape[0], shape[3], out_h, out_w)]
        return self.writer.node(
            "Resize", inputs, mode=str(attributes.get("mode", "nearest")), cubic_coeff_a=float(attributes.get("cubic_a", -0.75)),
            coordinate_transformation_mode=str(attributes.get("coordinates", "asymmetric")),
            nearest_mode=str(attributes.get("nearest", "floor")),
        )  # fmt: skip

    def _weighted_taps(
        self, name: str, attributes: Mapping[str, Any], axis: int, low: int, span: tuple[int, int]
    ) -> str:
        """The positions that outputs `span` of an axis read, each times its weight, added up."""
        taps, weights = (t[span[0] : span[1]] for t in resize_taps(attributes, axis))
        total = ""
        for tap in range(taps.shape[1]):
            index = self.writer.ints(*(taps[:, tap] - low).tolist())
            picked = self.writer.node("Gather", [name, index], axis=axis + 2)
            if taps.shape[1] > 1:
                along = weights[:, tap].reshape((-1, 1) if axis == 0 else (1, -1))
                weight = self.writer.constant(f"taps:{along.shape}:{along.ravel().tolist()}", along)
                picked = self.writer.node("Mul", [picked, weight])
            total = self.writer.node("Add", [total, picked]) if total else picked
        return total

    # ---- GroupNorm ---------------------------------------------------------------------------------------------

    def ones(self, count: int, value: float = 1.0) -> str:
        """A vector of one number."""
        return self.writer.constant(f"{value}:{count}", np.full(count, value, dtype=np.float32))

    def group_norm(self, x: Value, groups: int, scale: str, bias: str, epsilon: float) -> Value:
        """The whole norm, as every exporter spells it before operator set 18: runtimes and compilers know this spelling."""
        x = x if x.width else self.layouts.image(x, 1)
        b, _, r, c = x.shape
        apart = self.layouts.reshape(x.name, (b, groups, r * c // groups))
        normed = self.writer.node(
            "InstanceNormalization", [apart, self.ones(groups), self.ones(groups, 0.0)], epsilon=epsilon
        )
        back = Value(self.layouts.reshape(normed, (b, c, r // x.width, x.width)), x.shape, x.width)
        return self._affine(back, scale, bias)

    def statistics(self, x: Value, width: int, first: int, before: str) -> Value:
        """Sums and sums of squares of columns from number `first` on, [b, 1, groups, 2] in FP64, added to those before."""
        x = self._whole_groups(x, width, first % width)
        b, _, r, c = x.shape
        groups = c // width
        apart, axes = (
            ((b, 1, groups, r * c // groups), [3]) if x.width else ((b, r, groups, c // groups), [1, 3])
        )
        wide = self.writer.node("Cast", [self.layouts.reshape(x.name, apart)], to=TensorProto.DOUBLE)
        sums = [
            self.writer.node(op, [wide, self.writer.ints(*axes)], keepdims=1)
            for op in ("ReduceSum", "ReduceSumSquare")
        ]
        found = self.writer.node("Concat", sums, axis=3)
        shape = (b, 1, groups, 2)
        return Value(self.writer.node("Add", [before, found]) if before else found, shape)

    def _whole_groups(self, x: Value, width: int, lead: int) -> Value:
        """The value with zeros for the columns that its first and last group have elsewhere."""
        b, _, r, c = x.shape
        behind = -(lead + c) % width
        if not lead and not behind:
            return x
        axis = 1 if x.width else 3
        pads = [0] * 8
        pads[axis], pads[axis + 4] = lead, behind
        padded = self.writer.node("Pad", [x.name, self.writer.ints(*pads)])
        return Value(padded, (b, 1, r, lead + c + behind), x.width)

    def normalized(
        self, x: Value, statistics: str, groups: int, count: int, scale: str, bias: str, epsilon: float
    ) -> Value:
        """A band with finished statistics; `count` elements went into each group's sums."""
        b, _, r, c = x.shape
        mean, factor = self._moments(statistics, count, epsilon)
        apart = (b, 1, groups, r * c // groups) if x.width else (b, r, groups, c // groups)
        centred = self.writer.node("Sub", [self.layouts.reshape(x.name, apart), mean])
        normed = self.writer.node("Mul", [centred, factor])
        whole = (b, c, r // x.width, x.width) if x.width else x.shape
        return self._affine(Value(self.layouts.reshape(normed, whole), x.shape, x.width), scale, bias)

    def _moments(self, statistics: str, count: int, epsilon: float) -> tuple[str, str]:
        """Mean and 1 / standard deviation of each group, [b, 1, groups, 1] FP32; written once for all bands."""

        def node(op: str, *inputs: str, **attributes: Any) -> str:
            return self.writer.node(op, inputs, shared=True, **attributes)

        def number(value: float) -> str:
            return self.writer.scalar(value, "float64")

        ints = self.writer.ints
        sums, squares = (node("Slice", statistics, ints(i), ints(i + 1), ints(3)) for i in (0, 1))
        mean = node("Div", sums, number(count))
        variance = node("Sub", node("Div", squares, number(count)), node("Mul", mean, mean))
        deviation = node("Sqrt", node("Add", node("Max", variance, number(0.0)), number(epsilon)))
        factor = node("Div", number(1.0), deviation)
        mean, factor = (node("Cast", v, to=TensorProto.FLOAT) for v in (mean, factor))
        return mean, factor

    def _affine(self, x: Value, scale: str, bias: str) -> Value:
        name = x.name
        for op, vector in (("Mul", scale), ("Add", bias)):
            if vector:
                along = self.layouts.reshape(vector, (x.shape[3], 1, 1)) if x.width else vector
                name = self.writer.node(op, [name, along])
        return Value(name, x.shape, x.width)

    # ---- moves -------------------------------------------------------------------------------------------------

    def moved(self, layer: Layer, names: Sequence[str], shape: Shape4) -> str:
        """Whole operands [b, h, r, c] rearranged, broadcast, cut or joined into a tensor of this shape."""
        attributes, reshape = layer.attributes, self.layouts.reshape
        if layer.op == "rearrange":
            apart = reshape(names[0], [size for _, size in attributes["atoms"]])
            moved = self.writer.node("Transpose", [apart], perm=list(attributes["order"]))
        elif "expand" in attributes:
            sizes = self.writer.ints(*attributes["expand"])
            moved = self.writer.node("Expand", [reshape(names[0], attributes["shape"]), sizes])
        elif "shapes" in attributes:
            parts = [reshape(n, s) for n, s in zip(names, attributes["shapes"], strict=True)]
            moved = self.writer.node("Concat", parts, axis=int(attributes["axis"]))
        else:
            axis, start, own = int(attributes["axis"]), int(attributes["start"]), attributes["shape"]
            size = prod(shape) // max(1, prod(own) // own[axis])
            limits = [self.writer.ints(n) for n in (start, start + size, axis)]
            moved = self.writer.node("Slice", [reshape(names[0], own), *limits])
        return reshape(moved, shape)
