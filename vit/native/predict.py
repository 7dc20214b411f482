"""Classes of image files by a native back end, without PyTorch.

checkpoint, files -> classified -> (file, its classes with probabilities, or its fault)
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vit.images import decode, eval_view
from vit.native.model import NativeViT
from vit.native.preparation import CONFIG, META, class_list, normalised, read_table, settings_of

BATCH = 8


@dataclass(frozen=True)
class Guess:
    """What a model says of a file."""

    file: Path
    classes: list[tuple[str, float]]
    """The most likely first; empty if the file cannot be read."""
    fault: str = ""


def classified(
    model: NativeViT, checkpoint: Path, files: Sequence[Path], top: int
) -> Iterator[Guess]:
    """The `top` classes of each file, prepared as in an evaluation with the centre crop.

    Raises ValueError, before any file is read, if the checkpoint is not a folder that says how
    images are prepared.
    """
    config = read_table(checkpoint / CONFIG)
    settings = settings_of(config, checkpoint / CONFIG)
    names = class_list(checkpoint / META, model.description.outputs)
    sigmoid = config.get("loss.name") == "sigmoid"
    size = model.description.image_size
    for start in range(0, len(files), BATCH):
        part = files[start : start + BATCH]
        views, faults = {}, {}
        for file in part:
            try:
                views[file] = eval_view(decode(file.read_bytes()), settings, size)
            except (OSError, ValueError) as error:
                faults[file] = str(error)
        found = {}
        if views:
            shares = probabilities(
                model(normalised(np.stack([*views.values()]), settings)), sigmoid
            )
            order = np.argsort(-shares, axis=1, kind="stable")[:, :top]
            for file, row, places in zip(views, shares, order, strict=True):
                found[file] = [(names[place], float(row[place])) for place in places]
        for file in part:
            yield Guess(file, found.get(file, []), faults.get(file, ""))


def probabilities(logits: np.ndarray, sigmoid: bool) -> np.ndarray:
    """Of each class: (B, K) -> (B, K), as `vit.loss.LINKS` has them."""
    values = logits.astype(np.float64)
    if sigmoid:
        return 1 / (1 + np.exp(-values))
    powers = np.exp(values - values.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)
