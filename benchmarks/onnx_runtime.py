"""A model in ONNX Runtime on the CPU, in float32 and in int8, for `benchmarks/native.py`."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from vit.graph import graph_of
from vit.model import ViT


class Batches(CalibrationDataReader):
    """Batches of images for ONNX Runtime's calibration."""

    def __init__(self, batches: list[np.ndarray]) -> None:
        self.left = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next batch; None after the last."""
        batch = next(self.left, None)
        return None if batch is None else {"images": batch}


def networks(
    model: ViT, folder: Path, threads: int, calibration: list[np.ndarray]
) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Name -> images to logits; graphs are written into the folder."""
    size = model.config.image_size
    plain, ready, codes = (folder / f"{name}.onnx" for name in ("plain", "ready", "codes"))
    program = torch.onnx.export(
        graph_of(model, (3, size, size)),
        dynamo=True,
        verbose=False,
        input_names=["images"],
        dynamic_shapes=({0: "batch"},),
    )
    program.save(str(plain))
    quant_pre_process(plain, ready, skip_symbolic_shape=True)
    quantize_static(
        ready,
        codes,
        Batches(calibration),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["MatMul", "Gemm"],
    )
    return {
        "ONNX Runtime float32": session(ready, threads),
        "ONNX Runtime int8": session(codes, threads),
    }


def session(path: Path, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    """A graph in ONNX Runtime, on the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    opened = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda batch: opened.run(None, {"images": batch})[0]
