"""Loads encodings into AIMET's simulation of an FP32 model and runs it: MODEL ENCODINGS INPUTS.npz OUTPUTS.npz."""

import sys
import warnings

warnings.simplefilter("ignore")

import numpy as np  # noqa: E402
import onnx  # noqa: E402
from aimet_onnx.quantsim import QuantizationSimModel, load_encodings_to_sim  # noqa: E402

TYPES = {"tensor(float)": "float32", "tensor(int64)": "int64", "tensor(int32)": "int32"}


def main(model: str, encodings: str, inputs: str, outputs: str) -> None:
    simulation = QuantizationSimModel(onnx.load(model), param_type="int8", activation_type="int16")
    load_encodings_to_sim(simulation, encodings, strict=False)
    session = simulation.session
    with np.load(inputs) as arrays:
        feeds = {i.name: arrays[i.name].astype(TYPES[i.type]) for i in session.get_inputs()}
    names = [o.name for o in session.get_outputs()]
    found = session.run(names, feeds)
    enabled = sum(q.enabled for q in simulation.qc_quantize_op_dict.values())
    plain = [n.removesuffix("_updated").removesuffix("_qdq") for n in names]
    np.savez(outputs, enabled=enabled, **dict(zip(plain, found, strict=True)))


if __name__ == "__main__":
    main(*sys.argv[1:])
