"""Runs the ONNX files of a folder in whichever onnxruntime this environment has: FOLDER [all|basic|none].

`x.onnx` is fed with `x.npz`; its outputs go to `x.out.npz`.
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime

TYPES = {
    "tensor(float)": "float32", "tensor(float16)": "float16", "tensor(int64)": "int64", "tensor(int32)": "int32",
    "tensor(bool)": "bool",
}  # fmt: skip
LEVELS = {
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "none": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
}


def run(model: Path, level: str) -> None:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = LEVELS[level]
    options.log_severity_level = 3
    options.intra_op_num_threads = 2
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    with np.load(model.with_suffix(".npz")) as arrays:
        feeds = {i.name: arrays[i.name].astype(TYPES[i.type]) for i in session.get_inputs()}
    names = [o.name for o in session.get_outputs()]
    np.savez(model.with_suffix(".out.npz"), **dict(zip(names, session.run(names, feeds), strict=True)))


if __name__ == "__main__":
    for file in sorted(Path(sys.argv[1]).glob("*.onnx")):
        run(file, *sys.argv[2:] or ["all"])
