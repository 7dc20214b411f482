"""Checkpoints of small models for tests of exports, and the command that exports them."""

from pathlib import Path

import numpy as np
import torch
from archives import synthetic_image
from checkpoints import CONFIG, write
from random_models import random_model

from pipeline.__main__ import main
from pipeline.data.digits import CLASSES
from vit.batch import normalise
from vit.images import eval_view
from vit.model import ViT

SHAPE = {
    "model.image_size": 32,
    "model.patch_size": 8,
    "model.width": 16,
    "model.depth": 2,
    "model.mlp_width": 32,
    "model.heads": 2,
    "model.num_classes": 10,
    "model.pool": "token",
}


def made_run(folder: Path, **changes) -> tuple[Path, ViT]:
    """The folder of a run with one checkpoint, of random weights, and its model.

    `changes` are settings, with __ for the dot of their names, and what `checkpoints.write` takes.
    """
    about = {name: changes.pop(name) for name in ("metrics", "classes") if name in changes}
    settings = {name.replace("__", "."): value for name, value in changes.items()}
    config = CONFIG.replace({**SHAPE, "data.dir": str(folder / "no-data"), **settings})
    model = random_model(config.model)
    about = {"classes": CLASSES, **about}
    state = model.state_dict()
    write(folder / "run" / "checkpoints", 7, config=config, model=state, **about)
    return folder / "run", model


def export(checkpoint: Path, out: Path | str, *flags: str) -> int:
    """The exit status of the command."""
    return main(["export", str(checkpoint), "--out", str(out), *flags])


def photographs(count: int = 5) -> list[np.ndarray]:
    """Images of different shapes: (H, W, 3) uint8."""
    return [np.asarray(synthetic_image(i, 90 + 7 * i, 70 + 11 * i)) for i in range(count)]


def crops_of(pixels: list[np.ndarray], model: ViT, images: object) -> torch.Tensor:
    """Their crops for evaluation (B, S, S, 3) uint8."""
    size = model.config.image_size
    return torch.from_numpy(np.stack([eval_view(each, images, size) for each in pixels]))


def logits_of(model: ViT, crops: torch.Tensor, images: object) -> torch.Tensor:
    """What this project computes."""
    with torch.no_grad():
        return model(normalise(crops, images))
