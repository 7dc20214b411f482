"""A checkpoint as a model that MLflow opens and serves, without a pickle and without this package.

    MLmodel                       flavours, signature, metadata
    image_classifier.py           python_function: files of images -> classes; see that file
    artifacts/graph/model.pt2     pytorch: normalised images -> logits, for any batch size
    artifacts/images.py           decoding and cropping: the file that this project uses itself
    artifacts/classes.json        wnid and name of each class, and the link to probabilities
    artifacts/preprocessing.json  size, resizing, crop, mean and std
    checkpoint/                   the checkpoint without its training state, to fine-tune from

The weights are in it twice: in the graph, and as the checkpoint's model.safetensors.
"""

import importlib.metadata
import io
import json
import shutil
import tempfile
from pathlib import Path

import mlflow.pyfunc
import numpy as np
import pandas as pd
import simplejpeg
import torch
from mlflow.models import Model, ModelSignature
from mlflow.models.model import MLMODEL_FILE_NAME
from mlflow.types import ColSpec, Schema

import vit.images
from pipeline.checkpoint.local import CONFIG, META
from pipeline.evaluation.model import EvalModel, preparation
from pipeline.tracking.refusals import Refused
from shards.dataset import wordnet
from vit.graph import graph_of
from vit.registry import LOSSES
from vit.weights import MODEL_FILE

CODE = Path(__file__).with_name("image_classifier.py")
# what the code and what it takes along import, in the versions that made the model
LIBRARIES = ("torch", "numpy", "pandas", "pillow", "simplejpeg", "opencv-python-headless")
# classes of each image
TOP = 5
# how PyTorch says that something is short now, which is no fault of the model
SHORTAGE = ("out of memory", "allocate memory", "bad_alloc", "no space left")


def save_model(checkpoint: Path, folder: Path, flavor: Model) -> None:
    """Write a checkpoint as a folder for mlflow.pyfunc and mlflow.pytorch.

    Raises Refused if it has no graph, and OSError if it may have one later, such as on a full disk.

    The model is its computation graph (torch.export), which is tensors and JSON, and a file of
    code. MLflow's other formats are pickles, which run code when they are loaded and need this
    package; MLflow refuses to load pickles by default.
    """
    eval_model = EvalModel.open(checkpoint)
    flavor.metadata = {"preprocessing": preprocessing(eval_model), "step": eval_model.step}
    with tempfile.TemporaryDirectory() as place:
        try:
            files = artifacts(eval_model, Path(place))
        except (RuntimeError, TypeError, ValueError, AssertionError) as error:
            if any(words in str(error).lower() for words in SHORTAGE):
                raise OSError(f"{checkpoint} cannot be written as a graph now: {error}") from error
            raise Refused(f"{checkpoint} cannot be written as a graph: {error}") from error
        mlflow.pyfunc.save_model(
            str(folder),
            mlflow_model=flavor,
            python_model=str(CODE),
            artifacts={name: str(path) for name, path in files.items()},
            signature=signature(head(eval_model)["top"]),
            input_example=example(eval_model.model.image_size),
            pip_requirements=requirements(),
        )
    copy_checkpoint(checkpoint, folder / "checkpoint")
    version = str(torch.__version__)
    flavor.add_flavor("pytorch", model_data="artifacts/graph", pytorch_version=version, code=None)
    sizes = (path.stat().st_size for path in folder.rglob("*") if path.is_file())
    flavor.model_size_bytes = sum(sizes)
    flavor.save(str(folder / MLMODEL_FILE_NAME))


def artifacts(eval_model: EvalModel, folder: Path) -> dict[str, Path]:
    """Write the files that the code reads, by the names under which it asks for them."""
    files = {name: folder / f"{name}.json" for name in ("classes", "preprocessing")}
    files["classes"].write_text(json.dumps(head(eval_model)))
    files["preprocessing"].write_text(json.dumps(preprocessing(eval_model)))
    graph = folder / "graph"
    graph.mkdir()
    side = eval_model.model.image_size
    program = graph_of(eval_model.load(eval_model.model), (3, side, side))
    archive = io.BytesIO()  # on a full disk PyTorch's own writer ends the whole process
    torch.export.save(program, archive)
    (graph / "model.pt2").write_bytes(archive.getbuffer())
    return {**files, "graph": graph, "decoder": Path(vit.images.__file__)}


def head(eval_model: EvalModel) -> dict[str, object]:
    """What the outputs of the head mean."""
    classes = eval_model.head_classes(None, None)
    return {
        "link": LOSSES[eval_model.loss.name].link,
        "top": min(TOP, len(classes)),
        "classes": list(zip(classes, wordnet.names(classes), strict=True)),
    }


def preprocessing(eval_model: EvalModel) -> dict[str, object]:
    """How images are prepared, in timm's words, with the sides in pixels."""
    images, size = eval_model.images, eval_model.model.image_size
    return {"size": size, "resize_to": images.eval_side(size), **preparation(images)}


def signature(top: int) -> ModelSignature:
    """Tables that come in and go out."""
    kinds = {"class": "string", "name": "string", "p": "double"}
    guesses = [
        ColSpec(kind, f"{name}{place}")
        for place in range(1, top + 1)
        for name, kind in kinds.items()
    ]
    return ModelSignature(
        inputs=Schema([ColSpec("binary", "image")]),
        outputs=Schema([*guesses, ColSpec("string", "error")]),
    )


def example(side: int) -> pd.DataFrame:
    """An input: the JPEG of a square with a gradient of colours."""
    ramp = np.linspace(0, 255, side).astype(np.uint8)
    red, green = np.meshgrid(ramp, ramp)
    return pd.DataFrame({"image": [simplejpeg.encode_jpeg(np.dstack([red, green, red]))]})


def requirements() -> list[str]:
    """The libraries with their versions; builds of one version count as the same."""
    versions = ((name, importlib.metadata.version(name).partition("+")[0]) for name in LIBRARIES)
    return [f"{name}=={version}" for name, version in versions]


def copy_checkpoint(checkpoint: Path, folder: Path) -> None:
    """Copy a checkpoint without its training state: weights, settings, classes and metrics."""
    folder.mkdir()
    for name in (MODEL_FILE, CONFIG):
        shutil.copy(checkpoint / name, folder / name)
    meta = json.loads((checkpoint / META).read_text())
    meta["files"] = {MODEL_FILE: meta["files"][MODEL_FILE]}
    (folder / META).write_text(json.dumps(meta))
