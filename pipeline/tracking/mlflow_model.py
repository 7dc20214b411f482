"""A checkpoint as a model that MLflow opens, without a pickle and without this package."""

from pathlib import Path

import mlflow.pytorch
import numpy as np
import torch
from mlflow.models import Model, ModelSignature
from mlflow.types import Schema, TensorSpec

from pipeline.evaluation.model import EvalModel


class Refused(Exception):
    """The server rejects this, now and later; or it cannot be made."""


def save_model(checkpoint: Path, folder: Path, flavor: Model) -> None:
    """Write a checkpoint as a folder for `mlflow.pytorch.load_model`; Refused if it cannot be.

    The model is written as its computation graph for any batch size (torch.export, .pt2): tensors
    and JSON. MLflow's other format is a pickle, which runs code when it is loaded and needs this
    package; MLflow refuses to load pickles by default.
    """
    eval_model = EvalModel.open(checkpoint)
    side, classes = eval_model.model.image_size, eval_model.model.num_classes
    kind = np.dtype(np.float32)
    signature = ModelSignature(
        inputs=Schema([TensorSpec(kind, (-1, 3, side, side), "images")]),
        outputs=Schema([TensorSpec(kind, (-1, classes), "logits")]),
    )
    prepared = {"mean": list(eval_model.images.mean), "std": list(eval_model.images.std)}
    flavor.metadata = {"normalise": prepared, "step": eval_model.step}
    try:
        mlflow.pytorch.save_model(
            eval_model.load(eval_model.model),
            str(folder),
            mlflow_model=flavor,
            signature=signature,
            # two images: torch.export would fix a batch size of one
            input_example=torch.zeros(2, 3, side, side),
            serialization_format="pt2",
            pip_requirements=[f"torch=={torch.__version__.partition('+')[0]}"],
        )
    except (RuntimeError, TypeError, ValueError) as error:
        raise Refused(f"{checkpoint} cannot be written as a graph: {error}") from error
