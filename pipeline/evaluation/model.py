"""The model to evaluate: a checkpoint of a run, or published weights.

    folder or file -> its settings, or the shapes of its tensors -> EvalModel -> ViT with weights

A checkpoint holds its settings. A published file holds only tensors: the shape of the model follows
from theirs, the classes from the size of the head, and the preparation of images from the
config.json (timm) or preprocessor_config.json (transformers) beside it, from the metadata of an
export, or else from the dialect of its names. An export states its classes and its loss too. Flags
give whatever the files do not state.
"""

import dataclasses
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from pipeline.checkpoint import local
from pipeline.checkpoint.run_folder import CHECKPOINTS
from pipeline.data import digits
from pipeline.evaluation.config import EvaluateConfig, LinearProbeConfig
from pipeline.settings.config import DataConfig, TrainConfig
from shards.dataset.classes import BUILT_IN, class_list, mapping
from support.files import sha256
from support.settings import type_hints
from vit.config import ImageConfig, LossConfig, ViTConfig
from vit.config_json import parsed
from vit.dialects import DIALECTS
from vit.model import ViT
from vit.weights import CONFIG_FILE, MODEL_FILE, load_weights, open_weights, weights_file

log = logging.getLogger(__name__)

PREPROCESSOR_FILE = "preprocessor_config.json"  # of transformers
# in the metadata of an export: preparation of images, wnids, name of the loss
PREPARATION, CLASSES, LOSS = "pretrained_cfg", "classes", "loss"
# crop_mode in Hugging Face's pretrained_cfg -> eval_resize
RESIZES = {"center": "short", "squash": "squash"}
INTERPOLATIONS = get_args(type_hints(ImageConfig)["eval_interpolation"])
RESAMPLES = {2: "bilinear", 3: "bicubic"}  # numbers in transformers' files, which are Pillow's


@dataclass(frozen=True, kw_only=True)
class EvalModel:
    """A model in a file, and how its images are prepared."""

    path: Path
    model: ViTConfig
    images: ImageConfig
    loss: LossConfig
    precision: str
    classes: tuple[str, ...] | None
    """wnids of the head, by class number; None if the file does not list them."""
    data: str | None = None
    """Shard set that it was trained on, and evaluated on during training."""
    training: DataConfig | None = None
    """Which of its images it was trained on; None for a file."""
    fingerprint: str | None = None
    """Fingerprint of all images that it was trained on, as of a Dataset; None for a file."""
    is_probe: bool = False
    """Whether it is a linear probe: the body of another checkpoint with a head of its own."""
    split: str = "val"
    run_dir: Path | None = None
    """Folder of the run that made it; None for a file, and for a copy of a checkpoint."""
    step: int | None = None

    @classmethod
    def open(cls, path: Path, *, needs_head: bool = True) -> "EvalModel":
        """Describe a checkpoint, that which a run reports, or a file of weights.

        Raises ValueError if a file has no head, unless `needs_head` is false.
        """
        if (path / "checkpoints").is_dir():
            checkpoint = local.chosen(local.checkpoints(path / "checkpoints"))
            if not checkpoint:
                raise FileNotFoundError(f"{path} has no checkpoint yet; resume its training")
            return cls._of_run(checkpoint)
        if (path / local.META).is_file():
            return cls._of_run(local.Checkpoint.open(path, only=MODEL_FILE))
        weights = open_weights(path)
        model, images = weights.config, ImageConfig(**DIALECTS[weights.dialect].images)
        if needs_head and model.num_classes is None:
            raise ValueError(
                f"{path} has no head, so it gives no classes: python -m pipeline probe fits one, "
                f"and export --head drop needs none"
            )
        if path.suffix != ".npz":
            for name, applied in ((CONFIG_FILE, as_published), (PREPROCESSOR_FILE, as_processed)):
                if (file := weights.path.parent / name).is_file():
                    images, model = applied(parsed(file.read_text(), file), images, model)
        export = weights.metadata if PREPARATION in weights.metadata else {}
        if export:
            settings = parsed(export[PREPARATION], weights.path)
            images, model = as_published(settings, images, model)
        return cls(
            path=path,
            model=model,
            images=images,
            loss=LossConfig(name=export.get(LOSS, LossConfig().name)),
            precision="tf32",
            classes=tuple(json.loads(export.get(CLASSES, "[]"))) or None,
        )

    @classmethod
    def _of_run(cls, checkpoint: local.Checkpoint) -> "EvalModel":
        defaults = TrainConfig()
        names = defaults.flat()  # settings of other versions are ignored
        config = defaults.replace({k: v for k, v in checkpoint.config.items() if k in names})
        runs_dir, run_dir = config.runs_dir, None
        if checkpoint.path.parent.name == CHECKPOINTS:  # elsewhere it is a copy
            run_dir = checkpoint.path.parent.parent
            # the folder of the runs may have been moved; a prefix in a store stays
            runs_dir = runs_dir if "://" in runs_dir else str(run_dir.parent)
        return cls(
            path=checkpoint.path,
            model=config.model,
            images=config.images,
            loss=config.loss,
            precision=config.precision,
            classes=checkpoint.classes,
            data=digits.located(config.data.dir, runs_dir),
            training=config.data,
            fingerprint=checkpoint.fingerprint,
            is_probe="global_batch" not in checkpoint.config,
            split=config.data.eval_split,
            run_dir=run_dir,
            step=checkpoint.step,
        )

    def evaluation(self, **settings: object) -> EvaluateConfig:
        """Settings to evaluate this model; `settings` override those that the model gives."""
        return EvaluateConfig(**{**self._defaults, "loss": self.loss, **settings})

    def probe(self) -> LinearProbeConfig:
        """Settings to fit a new head to the features of this model."""
        return LinearProbeConfig(**self._defaults)

    @property
    def _defaults(self) -> dict[str, object]:
        return {
            "data": self.data or "",
            "split": self.split,
            "precision": self.precision,
            "model": self.model,
            "images": self.images,
        }

    def head_classes(
        self, given: str | None, data_classes: tuple[str, ...] | None
    ) -> tuple[str, ...]:
        """Wnids of the head's outputs, from `given` (--classes), the file, or the head's size.

        Without classes of data, there is no data.
        """
        size = self.model.num_classes
        lists = ", ".join((*BUILT_IN, "or a file of WordNet ids"))
        if given == "data" and data_classes is None:
            raise ValueError(f"--classes data needs the data of an evaluation; give {lists}")
        if given:
            classes = data_classes if given == "data" else class_list(given)
            if len(classes) != size:
                raise ValueError(
                    f"--classes {given} has {len(classes)} classes, but the head of {self.path} "
                    f"has {size}"
                )
            return classes
        if (listed := self.listed_classes()) is not None:
            return listed
        raise ValueError(
            f"{self.path} has a head of {size} classes and does not list them; give --classes: "
            + (lists if data_classes is None else f"{', '.join(BUILT_IN)}, a file, or data")
        )

    def listed_classes(self) -> tuple[str, ...] | None:
        """Wnids of the head's outputs, from the file or the head's size; None if unknown."""
        if self.classes is not None:
            return self.classes
        for name in BUILT_IN:
            if len(class_list(name)) == self.model.num_classes:
                log.info("head        %s classes: those of %s", f"{len(class_list(name)):,}", name)
                return class_list(name)
        return None

    def load(self, config: ViTConfig, *, head: str = "keep") -> ViT:
        """The model with its weights, on the CPU, for inference; `head` is as in `load_weights`."""
        model = ViT(dataclasses.replace(config, checkpoint_blocks=False)).eval()
        load_weights(model, self.path, head=head)
        return model

    def sha256(self) -> str:
        """Hash of the file with the weights."""
        return sha256(weights_file(self.path))


def preparation(images: ImageConfig) -> dict[str, object]:
    """The preparation of images for evaluation in timm's words, as `as_published` reads them."""
    modes = {ours: theirs for theirs, ours in RESIZES.items()}
    return {
        "mean": list(images.mean),
        "std": list(images.std),
        "crop_pct": images.crop_pct,
        "crop_mode": modes[images.eval_resize],
        "interpolation": images.eval_interpolation,
    }


def as_published(
    published: Mapping, images: ImageConfig, model: ViTConfig
) -> tuple[ImageConfig, ViTConfig]:
    """Preparation of images and image size from the config.json of a Hugging Face repository.

    What it does not state stays. Raises ValueError if it lists other classes than the head has.
    """
    labels = published.get("id2label")
    if None not in (labels, model.num_classes) and len(labels) != model.num_classes:
        raise ValueError(
            f"config.json lists {len(labels)} classes, but the head beside it has"
            f" {model.num_classes}; they are not of the same model"
        )
    cfg = published.get("pretrained_cfg", published)
    changes: dict[str, object] = {n: tuple(cfg[n]) for n in ("mean", "std") if n in cfg}
    if "crop_pct" in cfg:
        changes["crop_pct"] = float(cfg["crop_pct"])
    if cfg.get("interpolation") in INTERPOLATIONS:
        changes["eval_interpolation"] = cfg["interpolation"]
    if "crop_pct" in cfg or "crop_mode" in cfg:
        mode = cfg.get("crop_mode", "center")
        if mode not in RESIZES:
            known = list(RESIZES)
            raise ValueError(f"crop_mode {mode!r} in config.json is unknown; known: {known}")
        changes["eval_resize"] = RESIZES[mode]
    if "input_size" in cfg:
        model = dataclasses.replace(model, image_size=int(cfg["input_size"][-1]))
    return dataclasses.replace(images, **changes), model


def as_processed(
    settings: Mapping, images: ImageConfig, model: ViTConfig
) -> tuple[ImageConfig, ViTConfig]:
    """Preparation of images and image size from the preprocessor_config.json of transformers.

    Its size is a number or {height, width}, to which images are squashed, or {shortest_edge}. A
    number is the shortest edge, too, if a crop follows.
    """
    changes: dict[str, object] = {}
    for ours, theirs, off in (("mean", "image_mean", 0.0), ("std", "image_std", 1.0)):
        if not settings.get("do_normalize", True):
            changes[ours] = (off,) * 3
        elif theirs in settings:
            changes[ours] = tuple(settings[theirs])
    if settings.get("resample") in RESAMPLES:
        changes["eval_interpolation"] = RESAMPLES[settings["resample"]]
    size, crop = settings.get("size"), settings.get("crop_size")
    crops = settings.get("do_center_crop", False) and crop is not None
    if size is not None:
        side, resized = side_of(crop if crops else size), side_of(size)
        short = "shortest_edge" in size if isinstance(size, Mapping) else crops
        changes["eval_resize"] = "short" if short else "squash"
        changes["crop_pct"] = side / resized
        model = dataclasses.replace(model, image_size=side)
    return dataclasses.replace(images, **changes), model


def side_of(size: int | Mapping[str, int]) -> int:
    """The side of a square in a file of transformers; ValueError if it is not square."""
    sides = set(size.values()) if isinstance(size, Mapping) else {size}
    if len(sides) != 1:
        raise ValueError(f"size {dict(size)} in {PREPROCESSOR_FILE} is not square")
    return int(sides.pop())


def head_columns(
    head: tuple[str, ...], data: tuple[str, ...]
) -> tuple[Tensor | None, tuple[str, ...]]:
    """The output of the head for each class of the data.

    Returns:
        The number of the output of each class, -1 if the head lacks the class, or None if the two
        lists are equal; and the classes of the data that the head lacks.
    """
    if head == data:
        return None, ()
    columns = mapping(data, head)
    missing = tuple(wnid for wnid, column in zip(data, columns, strict=True) if column < 0)
    if len(missing) == len(data):
        raise ValueError(
            f"the head's classes ({head[0]}, ...) and the data's ({data[0]}, ...) have none in "
            f"common; are both lists of WordNet ids? --classes names those of the head"
        )
    return torch.tensor(columns), missing
