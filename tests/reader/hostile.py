"""Malformed and hostile model files, made on the spot; each must be refused with one sentence.

Run `python tests/reader/hostile.py FOLDER` to write them all and look at them.
"""

from __future__ import annotations

import gzip
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
Maker = Callable[[Path], bytes | None]
#: Name -> writes what it needs beside the model and returns the model's bytes (None: there is no such file).
HOSTILE: dict[str, Maker] = {}


def hostile(maker: Maker) -> Maker:
    HOSTILE[maker.__name__.strip("_")] = maker
    return maker


def value(name: str, *shape: Any, dtype: int = FLOAT) -> Any:
    return helper.make_tensor_value_info(name, dtype, shape)


def model(
    nodes: Sequence[Any],
    initializers: Sequence[Any] = (),
    *,
    inputs: Sequence[Any] | None = None,
    outputs: Sequence[Any] | None = None,
    opset: int = 18,
) -> Any:
    """A model of these nodes; by default it reads `x` [1, 4, 8, 8] and makes `y`."""
    graph = helper.make_graph(
        nodes, "hostile", inputs or [value("x", 1, 4, 8, 8)], outputs or [helper.make_tensor_value_info("y", FLOAT, None)],
        initializers,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def serialized(*arguments: Any, **options: Any) -> bytes:
    """`model(...)` as bytes."""
    return bytes(model(*arguments, **options).SerializeToString())


def node(op: str, inputs: Sequence[str], outputs: Sequence[str] = ("y",), **attributes: Any) -> Any:
    return helper.make_node(op, inputs, outputs, name=f"the_{op}", **attributes)


def constant(name: str, data: Any) -> Any:
    return numpy_helper.from_array(np.asarray(data), name)


def weight(name: str, *shape: int) -> Any:
    return constant(name, np.ones(shape, np.float32))


def one(op: str, *more: Any, opset: int = 18, **attributes: Any) -> bytes:
    """A model of one node that reads `x` and then the given constants."""
    names = [f"c{i}" for i in range(len(more))]
    held = [constant(n, d) for n, d in zip(names, more, strict=True)]
    return serialized([node(op, ["x", *names], **attributes)], held, opset=opset)


def bare_tensor(name: str, dims: Sequence[int], *, raw: bytes = b"", dtype: int = FLOAT) -> Any:
    tensor = TensorProto(name=name, data_type=dtype, raw_data=raw)
    tensor.dims.extend(dims)
    return tensor


def with_tensor(tensor: Any) -> bytes:
    return serialized([node("Add", ["x", tensor.name])], [tensor])


def external(location: str) -> bytes:
    tensor = TensorProto(name="secret", data_type=FLOAT, data_location=TensorProto.EXTERNAL)
    tensor.dims.extend([1, 4, 8, 8])
    tensor.external_data.add(key="location", value=location)
    return with_tensor(tensor)


# ---- not a model ----------------------------------------------------------------------------------------------------


@hostile
def _empty_file(folder: Path) -> bytes:
    return b""


@hostile
def _text_file(folder: Path) -> bytes:
    return b"this is not a protobuf, it is a letter\n" * 20


@hostile
def _compressed_file(folder: Path) -> bytes:
    return gzip.compress(one("Relu"))


@hostile
def _truncated_file(folder: Path) -> bytes:
    return one("Relu")[:-9]


@hostile
def _claims_two_gigabytes(folder: Path) -> bytes:
    return b"\x08\x09\x3a\xff\xff\xff\xff\x07" + b"\x00" * 64


@hostile
def _claims_more_bytes_than_numbers_go(folder: Path) -> bytes:
    return b"\x3a" + b"\xff" * 9 + b"\x01" + b"\x0a" * 64


@hostile
def _seeded_noise(folder: Path) -> bytes:
    return bytes(np.random.default_rng(0).bytes(4096))


@hostile
def _folder_instead_of_a_file(folder: Path) -> None:
    (folder / "model.onnx").mkdir()


@hostile
def _no_such_file(folder: Path) -> None:
    return None


@hostile
def _larger_than_any_protobuf(folder: Path) -> None:
    with (folder / "model.onnx").open("wb") as file:
        file.truncate(2**31 + 5)


@hostile
def _no_graph(folder: Path) -> bytes:
    return bytes(onnx.ModelProto(ir_version=9).SerializeToString())


@hostile
def _no_operator_set(folder: Path) -> bytes:
    proto = model([node("Relu", ["x"])])
    del proto.opset_import[:]
    return bytes(proto.SerializeToString())


@hostile
def _operator_set_of_the_future(folder: Path) -> bytes:
    return serialized([node("Relu", ["x"])], opset=1_000_000)


@hostile
def _negative_operator_set(folder: Path) -> bytes:
    return serialized([node("Relu", ["x"])], opset=-3)


# ---- graphs ---------------------------------------------------------------------------------------------------------


@hostile
def _cycle(folder: Path) -> bytes:
    nodes = [node("Add", ["x", "b"], ["a"]), node("Relu", ["a"], ["b"]), node("Relu", ["b"], ["y"])]
    return serialized(nodes)


@hostile
def _node_that_reads_itself(folder: Path) -> bytes:
    return serialized([node("Add", ["x", "y"])])


@hostile
def _input_that_nothing_makes(folder: Path) -> bytes:
    return serialized([node("Add", ["x", "ghost"])])


@hostile
def _output_that_nothing_makes(folder: Path) -> bytes:
    return serialized([node("Relu", ["x"], ["z"])])


@hostile
def _value_made_twice(folder: Path) -> bytes:
    return serialized([node("Relu", ["x"]), node("Tanh", ["x"])])


@hostile
def _node_that_overwrites_a_weight(folder: Path) -> bytes:
    return serialized([node("Relu", ["x"], ["w"]), node("Add", ["x", "w"])], [weight("w", 1, 4, 8, 8)])


@hostile
def _input_twice(folder: Path) -> bytes:
    return serialized([node("Relu", ["x"])], inputs=[value("x", 1, 4, 8, 8), value("x", 1, 4, 8, 9)])


@hostile
def _initializer_twice(folder: Path) -> bytes:
    return serialized([node("Add", ["x", "w"])], [weight("w", 8), weight("w", 8, 8)])


def _if(depth: int) -> Any:
    inner = [node("Identity", ["x"], [f"r{depth}"])] if depth == 0 else [_if(depth - 1)]
    branch = helper.make_graph(inner, f"b{depth}", [], [value(f"r{max(depth - 1, 0)}", 1, 4, 8, 8)])
    return node("If", ["cond"], [f"r{depth}"], then_branch=branch, else_branch=branch)


@hostile
def _nested_conditions(folder: Path) -> bytes:
    inputs = [value("x", 1, 4, 8, 8), value("cond", dtype=TensorProto.BOOL)]
    return serialized([_if(12), node("Relu", ["r12"])], inputs=inputs, outputs=[value("y", 1, 4, 8, 8)])


@hostile
def _operator_of_nobody(folder: Path) -> bytes:
    proto = model([helper.make_node("Frobnicate", ["x"], ["y"], name="the_one", domain="nobody.knows")])
    proto.opset_import.add(domain="nobody.knows", version=1)
    return bytes(proto.SerializeToString())


@hostile
def _sequence_instead_of_a_tensor(folder: Path) -> bytes:
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(FLOAT, [2]))
    return serialized([node("SequenceLength", ["x"])], inputs=[helper.make_value_info("x", kind)])


# ---- sizes ----------------------------------------------------------------------------------------------------------


def _input_of(*shape: Any) -> bytes:
    return serialized([node("Relu", ["x"])], inputs=[value("x", *shape)])


@hostile
def _negative_input_size(folder: Path) -> bytes:
    return _input_of(1, -4, 8)


@hostile
def _input_size_of_2_to_the_40(folder: Path) -> bytes:
    return _input_of(1, 2**40)


@hostile
def _input_with_too_many_elements(folder: Path) -> bytes:
    return _input_of(1, 2**30, 2**30, 2**30)


@hostile
def _empty_input(folder: Path) -> bytes:
    return _input_of(1, 0, 8)


@hostile
def _unbound_size(folder: Path) -> bytes:
    return _input_of(1, "length")


@hostile
def _negative_weight_size(folder: Path) -> bytes:
    return with_tensor(bare_tensor("w", [-8, -8]))


@hostile
def _weight_size_of_2_to_the_40(folder: Path) -> bytes:
    return with_tensor(bare_tensor("w", [2**40]))


@hostile
def _weight_sizes_whose_product_overflows(folder: Path) -> bytes:
    return with_tensor(bare_tensor("w", [2**30, 2**30, 16]))


@hostile
def _too_little_weight_data(folder: Path) -> bytes:
    return with_tensor(bare_tensor("w", [8], raw=b"\0" * 31))


@hostile
def _too_little_data_of_a_large_weight(folder: Path) -> bytes:
    return with_tensor(bare_tensor("w", [8, 1024, 8], raw=b"\0" * 31))


@hostile
def _too_much_weight_data(folder: Path) -> bytes:
    return with_tensor(bare_tensor("w", [8], raw=b"\0" * 9000))


@hostile
def _wrong_number_of_typed_elements(folder: Path) -> bytes:
    tensor = TensorProto(name="w", data_type=FLOAT, float_data=[1.0] * 7)
    tensor.dims.extend([8])
    return with_tensor(tensor)


@hostile
def _unknown_element_type(folder: Path) -> bytes:
    return with_tensor(bare_tensor("w", [8], raw=b"\0" * 32, dtype=99))


@hostile
def _constant_node_with_wrong_data(folder: Path) -> bytes:
    broken = bare_tensor("w", [8], raw=b"\0" * 5)
    return serialized([node("Constant", [], ["w"], value=broken), node("Add", ["x", "w"])])


@hostile
def _shape_whose_data_is_absent(folder: Path) -> bytes:
    tensor = TensorProto(name="s", data_type=INT64, data_location=TensorProto.EXTERNAL)
    tensor.dims.extend([2])
    tensor.external_data.add(key="location", value="weights.bin")
    return serialized([node("Reshape", ["x", "s"])], [tensor])


# ---- data outside the folder ----------------------------------------------------------------------------------------


@hostile
def _external_data_at_an_absolute_path(folder: Path) -> bytes:
    return external(str(folder.parent / "canary.bin"))


@hostile
def _external_data_above_the_folder(folder: Path) -> bytes:
    return external("../canary.bin")


@hostile
def _external_data_above_a_folder_below(folder: Path) -> bytes:
    (folder / "sub").mkdir()
    return external("sub/../../canary.bin")


@hostile
def _external_data_behind_a_link(folder: Path) -> bytes:
    os.symlink("../canary.bin", folder / "weights.bin")
    return external("weights.bin")


@hostile
def _external_data_in_a_linked_folder(folder: Path) -> bytes:
    os.symlink("..", folder / "data")
    return external("data/canary.bin")


@hostile
def _external_data_with_a_nul(folder: Path) -> bytes:
    (folder / "weights.bin").write_bytes(b"\0" * 1024)
    return external("weights.bin\0.txt")


@hostile
def _external_data_without_a_place(folder: Path) -> bytes:
    return external("")


@hostile
def _external_data_on_a_drive(folder: Path) -> bytes:
    return external("C:\\secrets\\canary.bin")


# ---- numbers --------------------------------------------------------------------------------------------------------


def _quantized(scale: float) -> bytes:
    names = ["s", "z"]
    held = [constant("s", np.float32(scale)), constant("z", np.int8(0))]
    nodes = [node("QuantizeLinear", ["x", *names], ["q"]), node("DequantizeLinear", ["q", *names])]
    return serialized(nodes, held)


@hostile
def _scale_that_is_no_number(folder: Path) -> bytes:
    return _quantized(float("nan"))


@hostile
def _infinite_scale(folder: Path) -> bytes:
    return _quantized(float("inf"))


@hostile
def _zero_scale(folder: Path) -> bytes:
    return _quantized(0.0)


@hostile
def _negative_scale(folder: Path) -> bytes:
    return _quantized(-1.0)


@hostile
def _absurdly_small_scale(folder: Path) -> bytes:
    return _quantized(1e-38)


def _resized(scale: float) -> bytes:
    held = [
        constant("roi", np.zeros(0, np.float32)),
        constant("s", np.asarray([1, 1, scale, scale], np.float32)),
    ]
    return serialized([node("Resize", ["x", "roi", "s"])], held)


@hostile
def _resizing_by_no_number(folder: Path) -> bytes:
    return _resized(float("nan"))


@hostile
def _resizing_to_an_absurd_size(folder: Path) -> bytes:
    return _resized(1e9)


# ---- names ----------------------------------------------------------------------------------------------------------


def _named(name: str) -> bytes:
    return serialized([helper.make_node("Relu", ["x"], ["a"], name=name), node("Tanh", ["a"])])


@hostile
def _name_that_clears_the_terminal(folder: Path) -> bytes:
    return _named("\x1b[2J\x1b]0;owned\x07relu")


@hostile
def _name_of_two_lines(folder: Path) -> bytes:
    return _named("relu\nnpusim: all is well")


@hostile
def _name_that_turns_text_around(folder: Path) -> bytes:
    return _named("relu\u202egnp.exe")


@hostile
def _name_of_a_megabyte(folder: Path) -> bytes:
    return _named("n" * 2**20)


@hostile
def _value_name_with_a_nul(folder: Path) -> bytes:
    return serialized([node("Relu", ["x"], ["a\0b"]), node("Tanh", ["a\0b"])])


# ---- operators against their definitions ----------------------------------------------------------------------------

_KERNEL = np.ones((6, 4, 3, 3), np.float32)
_SHAPE_CASES: dict[str, bytes] = {
    "convolution_without_stride": one("Conv", _KERNEL, strides=[0, 0]),
    "convolution_of_other_channels": one("Conv", np.ones((6, 5, 3, 3), np.float32)),
    "convolution_in_no_groups": one("Conv", _KERNEL, group=0),
    "convolution_larger_than_its_image": one("Conv", np.ones((6, 4, 11, 11), np.float32)),
    "convolution_with_too_few_pads": one("Conv", _KERNEL, pads=[1]),
    "permutation_out_of_range": one("Transpose", perm=[0, 1, 2, 7]),
    "permutation_with_repeats": one("Transpose", perm=[0, 1, 1, 3]),
    "reshape_to_another_size": one("Reshape", np.asarray([3, 7], np.int64)),
    "reshape_to_an_absurd_size": one("Reshape", np.asarray([2**40, 2**40], np.int64)),
    "expansion_to_an_absurd_size": one("Expand", np.asarray([2**20, 4, 8, 8, 2**20, 1, 1, 1], np.int64)),
    "tiles_of_an_absurd_number": one("Tile", np.asarray([2**40, 1, 1, 1], np.int64)),
    "softmax_over_a_dimension_that_is_not_there": one("Softmax", axis=99),
    "cut_in_negative_parts": one("Split", np.asarray([-1, 5], np.int64), axis=1),
    "product_of_unequal_depth": one("MatMul", np.ones((9, 3), np.float32)),
    "sum_of_unequal_shapes": one("Add", np.ones((7, 3), np.float32)),
    "shuffle_of_no_pixels": one("DepthToSpace", blocksize=0),
    "groups_that_do_not_divide": one("GroupNormalization", np.ones(3, np.float32), np.ones(3, np.float32), num_groups=3),
    "axis_that_is_a_word": one("Concat", np.ones((1, 4, 8, 8), np.float32), axis="rows"),
    "einsum_of_nonsense": one("Einsum", equation="ab->cde"),
    "padding_below_nothing": one("Pad", np.asarray([0, 0, -9, 0, 0, 0, -9, 0], np.int64)),
    "slice_of_nothing": one("Slice", np.asarray([5]), np.asarray([5]), np.asarray([2])),
}  # fmt: skip


def _constantly(data: bytes) -> Maker:
    return lambda folder: data


HOSTILE.update({name: _constantly(data) for name, data in _SHAPE_CASES.items()})


@hostile
def _range_without_a_step(folder: Path) -> bytes:
    held = [constant("a", np.int64(0)), constant("b", np.int64(9)), constant("c", np.int64(0))]
    return serialized([node("Range", ["a", "b", "c"], ["r"]), node("Add", ["x", "r"])], held)


@hostile
def _range_without_an_end(folder: Path) -> bytes:
    held = [constant("a", np.int64(0)), constant("b", np.int64(2**62)), constant("c", np.int64(1))]
    return serialized([node("Range", ["a", "b", "c"], ["r"]), node("Add", ["x", "r"])], held)


@hostile
def _constant_of_an_absurd_shape(folder: Path) -> bytes:
    held = [constant("s", np.asarray([2**31, 2**31], np.int64))]
    return serialized([node("ConstantOfShape", ["s"], ["r"]), node("Add", ["x", "r"])], held)


@hostile
def _index_out_of_range(folder: Path) -> bytes:
    held = [constant("t", np.arange(4)), constant("i", np.int64(99))]
    return serialized([node("Gather", ["t", "i"], ["r"]), node("Reshape", ["x", "r"])], held)


@hostile
def _attribute_without_a_type(folder: Path) -> bytes:
    proto = model([node("Softmax", ["x"], axis=1)])
    proto.graph.node[0].attribute[0].ClearField("type")
    return bytes(proto.SerializeToString())


def write(name: str, folder: Path) -> Path:
    """Make one hostile model in a folder of its own; returns the path to give to npusim."""
    folder.mkdir(parents=True)
    data = HOSTILE[name](folder)
    path = folder / "model.onnx"
    if data is not None:
        path.write_bytes(data)
    return path


if __name__ == "__main__":
    for each in HOSTILE:
        sys.stdout.write(f"{write(each, Path(sys.argv[1]) / each)}\n")
