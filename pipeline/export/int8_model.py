"""An 8-bit model of torchao, model.pt, for `vit.quant.load_quantised` of this project.

It is compared with the float model, from which it differs by its rounding: the tolerance is one of
the order of that, which only finds a calibration or a file that went wrong.
"""

from pathlib import Path

from pipeline.export import graph
from pipeline.export.check import Network
from pipeline.export.config import ExportConfig
from pipeline.export.source import BATCH, Source
from vit import quant
from vit.batch import normalise

FILE = "model.pt"


def write(source: Source, folder: Path, config: ExportConfig) -> None:
    """Quantise, with ranges from the images, and write; ValueError if this machine cannot."""
    scheme = f"int8-{config.scheme}"
    if reason := quant.refusal(scheme):
        raise ValueError(reason)
    if scheme == quant.STATIC and source.location is None:
        path = source.eval_model.path
        raise ValueError(f"there is no data to calibrate {path} on; give --data, or a --scheme")
    batches = [normalise(crops, source.images) for crops in source.crops.split(BATCH)]
    quant.save_quantised(folder / FILE, quant.quantise(source.model, scheme, calibration=batches))


def opened(source: Source, folder: Path, config: ExportConfig) -> Network:
    """The quantised model, not compiled: the same arithmetic, without a compiler's minutes."""
    model = quant.load_quantised(folder / FILE)
    model.compiled = False
    return lambda crops: model(normalise(crops, source.images))


def usage(source: Source, config: ExportConfig) -> str:
    """Code that opens the model with this project, in the folder of the export."""
    return f"""\
import numpy as np
import torch
from PIL import Image

from vit.quant import load_quantised

model = load_quantised("{FILE}")

{graph.image_code(source, config)}
logits = model(torch.from_numpy(images))  # compiled on the first call
{graph.name_code(source)}"""
