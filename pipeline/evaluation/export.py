"""Weights of a checkpoint as files for other programs.

.safetensors  timm's parameter names, as timm loads them; metadata states the rest
.npz          Google's JAX code: vision_transformer and AugReg, or big_vision
.pt           a quantised model, for `vit.quant.load_quantised`
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from pipeline.data.dataset import Dataset
from pipeline.data.reader import SampleReader, View
from pipeline.evaluation.config import CENTER
from pipeline.evaluation.model import EvalModel, preparation
from vit.batch import normalise
from vit.weights import save_weights

# images that int8-static measures the ranges of activations on, and images per batch
CALIBRATION_IMAGES, BATCH = 128, 16


def export(
    path: Path, file: Path, *, head: str, layout: str, scheme: str, data: str | None
) -> None:
    """Write the weights of a checkpoint to `file`; ValueError if its suffix is not a known format.

    `path` is the folder of a run or of a checkpoint, or a file of weights. `head`, for
    .safetensors, is "keep" or "drop", and `layout`, for .npz, "vit" or "big_vision". For .pt,
    `scheme` is how to quantise and `data` the shard set to calibrate on; None takes that of the
    run.
    """
    eval_model = EvalModel.open(path)
    if file.suffix == ".safetensors":
        model, stated = eval_model.load(eval_model.model), preparation(eval_model.images)
        save_weights(file, model, "timm", head, stated)
    elif head != "keep":
        raise ValueError(f"--head {head} is for .safetensors; a {file.suffix} file keeps its head")
    elif file.suffix == ".npz":
        save_weights(file, eval_model.load(eval_model.model), f"npz-{layout}")
    elif file.suffix == ".pt":
        export_quantised(eval_model, file, scheme, data or eval_model.data)
    else:
        raise ValueError(f"{file} must end with .safetensors, .npz or .pt")


def export_quantised(eval_model: EvalModel, file: Path, scheme: str, data: str | None) -> None:
    """Write a quantised model."""
    try:
        from vit import quant
    except ModuleNotFoundError as error:
        raise ValueError(
            f"quantising needs {error.name}; install it with: pip install 'vit-pretraining[quant]'"
        ) from error
    if reason := quant.refusal(scheme):
        raise ValueError(reason)
    if not data:
        raise ValueError(f"{eval_model.path} does not name data to calibrate on; give --data")
    images = list(calibration_images(eval_model, data))
    model = eval_model.load(eval_model.model)
    quant.save_quantised(file, quant.quantise(model, scheme, calibration=images))


def calibration_images(eval_model: EvalModel, data: str) -> Iterator[Tensor]:
    """Normalised centre crops (B, 3, S, S) of the first images of the eval split."""
    dataset = Dataset.open((data,), eval_model.split, slice_samples=BATCH)
    view = View(images=eval_model.images, size=eval_model.model.image_size, protocols=(CENTER,))
    read = SampleReader(dataset=dataset, view=view)
    order, count = dataset.order(seed=None), min(CALIBRATION_IMAGES, dataset.samples)
    for first in range(0, count, BATCH):
        crops = read(order.spans(first, min(first + BATCH, count)))["images"][:, 0]
        yield normalise(torch.from_numpy(crops), eval_model.images)
