"""What is exported: a model with its weights, its classes, and images to check it on."""

import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.data.dataset import Dataset
from pipeline.data.reader import SampleReader, View
from pipeline.evaluation.config import CENTER
from pipeline.evaluation.model import CLASSES, LOSS, PREPARATION, EvalModel, preparation
from pipeline.export.config import ExportConfig
from pipeline.export.formats import FORMATS
from shards.dataset import wordnet
from vit.batch import normalise
from vit.config import ImageConfig, ViTConfig
from vit.model import ViT

log = logging.getLogger(__name__)

CLASSES_FILE = "classes.txt"  # in every folder whose classes are known
# images of a batch, and on which outputs are compared
BATCH = 16
# neither timm nor transformers resizes without antialiasing, or by OpenCV's means over areas; on
# images like photographs Pillow's bilinear filter is the nearest to both
NEAREST = {"area": "bilinear", "linear": "bilinear"}


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model to export."""

    eval_model: EvalModel
    model: ViT
    """On the CPU, for inference; without its head if that is dropped."""
    classes: tuple[str, ...] | None
    """wnids of the outputs; None if they are not known, or if the head is dropped."""
    crops: Tensor
    """(n, S, S, 3) uint8."""
    location: str | None
    """The shard set of the crops; None if they are random pixels."""

    @classmethod
    def open(cls, path: Path, config: ExportConfig) -> "Source":
        """Read a checkpoint, and images of `config.data` or of the data of its run."""
        eval_model = EvalModel.open(path, needs_head=config.head == "keep")
        crops, location = images_of(eval_model, config.data, FORMATS[config.to].images)
        classes = None
        if config.head == "drop":  # a file may have none; a model is made with one
            whole = replace(eval_model.model, num_classes=eval_model.model.num_classes or 1)
            model = eval_model.load(whole, head="drop")
            drop_head(model)
        else:
            model, classes = eval_model.load(eval_model.model), eval_model.listed_classes()
        return cls(
            eval_model=eval_model, model=model, classes=classes, crops=crops, location=location
        )

    @property
    def config(self) -> ViTConfig:
        """The settings of the model as it is exported."""
        config = self.eval_model.model
        is_whole = isinstance(self.model.head, nn.Linear)
        return config if is_whole else replace(config, num_classes=None, pre_logits=False)

    @property
    def origin(self) -> str:
        """Where the crops come from, in words."""
        split = self.eval_model.split
        return f"{self.location}, split {split}" if self.location else "random pixels"

    @property
    def images(self) -> ImageConfig:
        """How images are prepared."""
        return self.eval_model.images

    @property
    def told(self) -> ImageConfig:
        """The preparation that is nearest to it among those that other libraries have."""
        method = self.images.eval_interpolation
        return replace(self.images, eval_interpolation=NEAREST.get(method, method))

    @property
    def output(self) -> str:
        """What the model computes: logits or features."""
        return "features" if self.config.num_classes is None else "logits"

    @property
    def labels(self) -> dict[str, str]:
        """A name for each wnid, all different; empty if the classes are not known."""
        classes = self.classes or ()
        return dict(zip(classes, wordnet.names(classes), strict=True))

    @property
    def metadata(self) -> dict[str, str]:
        """What is written beside the weights, and read by EvalModel."""
        known = {PREPARATION: json.dumps(preparation(self.images))}
        if self.classes is not None:
            known[CLASSES] = json.dumps(self.classes)
        return known | {LOSS: self.eval_model.loss.name}

    def outputs(self, crops: Tensor) -> Tensor:
        """Logits or features of the model: (B, S, S, 3) uint8 -> (B, K) or (B, D) float32."""
        with torch.no_grad():
            return self.model(normalise(crops, self.images))


def drop_head(model: ViT) -> None:
    """Let a model return features, without the tanh layer, in place."""
    model.head, model.pre_logits = nn.Identity(), nn.Identity()


def images_of(eval_model: EvalModel, data: str | None, count: int) -> tuple[Tensor, str | None]:
    """Centre crops (n, S, S, 3) uint8 of the first images of the eval split, and their shard set.

    Without data, and where that of the run cannot be read, they are random pixels of a fixed seed.
    """
    size = eval_model.model.image_size
    try:
        if location := data or eval_model.data:
            return crops_of(eval_model, location, count), location
    except (OSError, ValueError) as error:
        if data:
            raise
        log.warning("the data of the run cannot be read here, so random pixels are used: %s", error)
    generator = torch.Generator().manual_seed(0)
    shape = (BATCH, size, size, 3)
    return torch.randint(256, shape, dtype=torch.uint8, generator=generator), None


def crops_of(eval_model: EvalModel, location: str, count: int) -> Tensor:
    """Centre crops (n, S, S, 3) uint8 of the first images of a shard set."""
    dataset = Dataset.open((location,), eval_model.split, slice_samples=BATCH)
    view = View(images=eval_model.images, size=eval_model.model.image_size, protocols=(CENTER,))
    rows = SampleReader(dataset=dataset, view=view)(
        dataset.order(seed=None).spans(0, min(count, dataset.samples))
    )
    return torch.from_numpy(rows["images"][:, 0].copy())
