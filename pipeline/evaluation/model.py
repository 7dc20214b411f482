"""The model that is evaluated: a checkpoint of ours, or weights that others published.

    folder or file -> what it says of itself, or its shapes say -> EvalModel -> ViT with weights

A checkpoint holds its settings. A published file holds tensors; its shape is read off them, how
its images were prepared off the config.json that lies beside it in a Hugging Face repository, and
its classes by the size of its head. What nobody says, the user does.
"""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pipeline.checkpoint import local
from pipeline.data import digits
from pipeline.evaluation.config import EvaluateConfig
from pipeline.settings.config import TrainConfig
from shards.dataset.classes import BUILT_IN, class_list
from vit.config import SIZES, ImageConfig, LossConfig, ViTConfig
from vit.model import ViT
from vit.npz import read_npz
from vit.weights import MODEL_FILE, load_weights, read_weights

log = logging.getLogger(__name__)

# Hugging Face's pretrained_cfg -> ours
RESIZES = {"center": "short", "squash": "squash"}
INTERPOLATIONS = ("bilinear", "bicubic")


@dataclass(frozen=True, kw_only=True)
class EvalModel:
    """A model in a file, and how it wants to be shown images."""

    path: Path
    model: ViTConfig
    images: ImageConfig
    loss: LossConfig
    precision: str
    classes: tuple[str, ...] | None
    """wnids of the head, by class number; None where the file does not say."""
    data: str | None = None
    """Shard set that it was evaluated on while it was trained."""
    split: str = "val"
    run_dir: Path | None = None
    """Folder of the run that made it."""
    step: int | None = None

    @classmethod
    def open(cls, path: Path) -> "EvalModel":
        """Describe a checkpoint, the best one of a run's folder, or a file of weights."""
        if (path / "checkpoints").is_dir():
            found = local.best(path / "checkpoints") or local.latest(path / "checkpoints")
            if not found:
                raise FileNotFoundError(f"{path} has no checkpoint yet; go on with its training")
            path = found.path
        if (path / "meta.json").is_file():
            return cls._of_run(local.Checkpoint.open(path))
        tensors, heads = read_tensors(path)
        model = shape_of(tensors, heads)
        images, beside = ImageConfig(), path.parent / "config.json"
        if path.is_dir():
            beside = path / "config.json"
        if path.suffix != ".npz" and beside.is_file():
            images, model = as_published(json.loads(beside.read_text()), images, model)
        if path.suffix == ".npz":  # JAX's gelu is the tanh form unless told otherwise
            model = dataclasses.replace(model, gelu="tanh")
        return cls(
            path=path,
            model=model,
            images=images,
            loss=LossConfig(),
            precision="fp32",
            classes=None,
        )

    @classmethod
    def _of_run(cls, found: local.Checkpoint) -> "EvalModel":
        known = TrainConfig().flat()
        config = TrainConfig().replace({k: v for k, v in found.config.items() if k in known})
        run_dir = found.path.parent.parent
        return cls(
            path=found.path,
            model=config.model,
            images=config.images,
            loss=config.loss,
            precision=config.precision,
            classes=found.classes,
            data=digits.located(config.data.dir, str(run_dir.parent)),
            split=config.data.eval_split,
            run_dir=run_dir,
            step=found.step,
        )

    def evaluation(self, **settings: object) -> EvaluateConfig:
        """The settings of an evaluation of this model, as far as the model gives them."""
        own = {"model": self.model, "images": self.images, "loss": self.loss}
        given = {"data": self.data} if self.data else {}
        return EvaluateConfig(
            **{"split": self.split, "precision": self.precision, **own, **given, **settings}
        )

    def head_classes(self, given: str | None, data_classes: tuple[str, ...]) -> tuple[str, ...]:
        """Wnids of the head's outputs: what the file says, the user says, or its size says."""
        size = self.model.num_classes
        if given == "data":
            classes = data_classes
        elif given:
            classes = class_list(given)
        elif self.classes is not None:
            return self.classes
        else:
            known = [name for name in BUILT_IN if len(class_list(name)) == size]
            if not known:
                raise ValueError(
                    f"{self.path} has a head of {size} classes and does not say which; name them "
                    f"by --classes: {', '.join(BUILT_IN)}, a file, or data"
                )
            classes = class_list(known[0])
            log.info("head      %s classes: those of %s", f"{size:,}", known[0])
        if len(classes) != size:
            raise ValueError(
                f"--classes {given} has {len(classes)} classes, the head of {self.path} {size}"
            )
        return classes

    def load(self, config: ViTConfig) -> ViT:
        """The model with its weights, on the CPU, for inference."""
        model = ViT(dataclasses.replace(config, checkpoint_blocks=False)).eval()
        load_weights(model, self.path)
        return model

    @property
    def file(self) -> Path:
        """The file with the weights."""
        return self.path / MODEL_FILE if self.path.is_dir() else self.path

    def sha256(self) -> str:
        """Hash of the file with the weights."""
        with self.file.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def read_tensors(path: Path) -> tuple[dict[str, Tensor], int | None]:
    """Weights under timm's names, and the number of heads where the file tells it."""
    if path.suffix == ".npz" and path.is_file():
        return read_npz(path)
    return read_weights(path), None


def shape_of(tensors: Mapping[str, Tensor], heads: int | None) -> ViTConfig:
    """The shape of a model from the shapes of its tensors; what is no ViT is a ValueError."""
    needed = ("patch_embed.proj.weight", "blocks.0.mlp.fc1.weight", "head.weight")
    absent = [name for name in needed if name not in tensors]
    if absent:
        raise ValueError(
            f"these are no weights of a ViT with a head: {', '.join(absent)} missing; known names "
            f"are timm's"
        )
    width, _, _, side = tensors["patch_embed.proj.weight"].shape
    depth = 1 + max(int(n.split(".")[1]) for n in tensors if n.startswith("blocks."))
    mlp_width = len(tensors["blocks.0.mlp.fc1.weight"])
    has_token, positions = "cls_token" in tensors, tensors.get("pos_embed")
    grid = 224 // side if positions is None else round((positions.shape[1] - has_token) ** 0.5)
    pool = "token" if has_token else "map" if "attn_pool.latent" in tensors else "mean"
    return ViTConfig(
        image_size=grid * side,
        patch_size=side,
        width=width,
        depth=depth,
        mlp_width=mlp_width,
        heads=heads or usual_heads(width, depth, mlp_width),
        num_classes=len(tensors["head.weight"]),
        pool=pool,
        positions="sincos2d" if positions is None else "learned",
        pre_logits="pre_logits.fc.weight" in tensors,
    )


def usual_heads(width: int, depth: int, mlp_width: int) -> int:
    """Heads of the published size of this shape; 64 channels a head for any other."""
    for size in SIZES.values():
        if size[:3] == (width, depth, mlp_width):
            return size[3]
    if width % 64:
        log.warning("no file says how many heads a model of width %d has; set --model.heads", width)
        return 1
    return width // 64


def as_published(
    published: Mapping, images: ImageConfig, model: ViTConfig
) -> tuple[ImageConfig, ViTConfig]:
    """How the images are prepared, by the config.json of a Hugging Face repository (timm's)."""
    cfg = published.get("pretrained_cfg", published)
    changes: dict[str, object] = {}
    for name in ("mean", "std"):
        if name in cfg:
            changes[name] = tuple(cfg[name])
    if "crop_pct" in cfg:
        changes["crop_pct"] = float(cfg["crop_pct"])
    if cfg.get("interpolation") in INTERPOLATIONS:
        changes["eval_interpolation"] = cfg["interpolation"]
    mode = cfg.get("crop_mode", "center")
    if mode not in RESIZES:
        raise ValueError(f"crop_mode {mode!r} in config.json is unknown; known: {list(RESIZES)}")
    changes["eval_resize"] = RESIZES[mode]
    if "input_size" in cfg:
        model = dataclasses.replace(model, image_size=int(cfg["input_size"][-1]))
    return dataclasses.replace(images, **changes), model


def head_columns(
    head: tuple[str, ...], data: tuple[str, ...]
) -> tuple[Tensor | None, tuple[str, ...]]:
    """Where the data's classes are in the head.

    Returns:
        For each class of the data the number of its output, -1 where the head has none; None if
        the two lists are the same. And the classes of the data without an output.
    """
    if head == data:
        return None, ()
    places = {wnid: number for number, wnid in enumerate(head)}
    columns = torch.tensor([places.get(wnid, -1) for wnid in data])
    missing = tuple(wnid for wnid in data if wnid not in places)
    if len(missing) == len(data):
        raise ValueError(
            f"the head's classes ({head[0]}, ...) and the data's ({data[0]}, ...) have none in "
            f"common; are both lists of WordNet ids? --classes names those of the head"
        )
    return columns, missing
