"""Classifies a batch of files: read, decode, centre crop, forward pass, the most likely classes.

    files (B,) -> pixels (B, S, S, 3) uint8 -> logits (B, K) -> Guesses: classes, probabilities

Several threads call one classifier, each with a batch of its own. Reading, decoding, resizing and
the products of a model release the interpreter's lock, so threads fill the cores without a process
for each of them, and without copies between processes. On CPUs each thread computes a forward pass
of its own; on a GPU they take turns, and decode meanwhile.

Shapes: B files, S the image size, K classes of the head, T classes that are asked for.
"""

import contextlib
import dataclasses
import threading
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch

from pipeline.evaluation.config import EvaluateConfig
from pipeline.evaluation.forward import Forward
from pipeline.predict.files import ImageFile
from vit.images import decode, eval_view
from vit.loss import LINKS
from vit.model import ViT
from vit.registry import LOSSES

# files of a batch at most, by the kind of device
BATCH = {"cpu": 16, "cuda": 128}


class Guesses(NamedTuple):
    """The most likely classes of each file of a batch, the most likely first."""

    classes: np.ndarray
    """(B, T) int64: numbers of the head's outputs; -1 for a file that cannot be read."""
    probabilities: np.ndarray
    """(B, T) float32; NaN for a file that cannot be read."""
    faults: list[str]
    """(B,): why a file cannot be read, or ""."""

    @classmethod
    def joined(cls, parts: Sequence["Guesses"]) -> "Guesses":
        """Several batches as one."""
        classes, probabilities, faults = zip(*parts, strict=True)
        return cls(np.concatenate(classes), np.concatenate(probabilities), sum(faults, []))


class Classifier:
    """A model on its device, with the preparation of images for it; threads may share it."""

    def __init__(self, model: ViT, settings: EvaluateConfig, top: int) -> None:
        """Give the `top` most likely classes; images, loss and precision are of the settings."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if device.type == "cpu":  # rounding products to fewer bits makes CPUs no faster
            settings = dataclasses.replace(settings, precision="fp32")
        self.forward = Forward(model.to(device).eval(), settings)
        self.probabilities = LINKS[LOSSES[settings.loss.name].link].probabilities
        self.images, self.size, self.top = settings.images, model.config.image_size, top
        # on a GPU the precision is set for the whole process while a pass is started
        self.turn = threading.Lock() if device.type == "cuda" else contextlib.nullcontext()

    @property
    def batch(self) -> int:
        """Files of a batch at most."""
        return BATCH[self.forward.device.type]

    def __call__(self, files: Sequence[ImageFile]) -> Guesses:
        """Classify a batch; a file that cannot be read or decoded is a fault, not an error."""
        pixels = np.zeros((len(files), self.size, self.size, 3), np.uint8)
        faults = [self._fill(view, file) for view, file in zip(pixels, files, strict=True)]
        images = torch.from_numpy(pixels).to(self.forward.device)
        with self.turn:
            logits = self.forward.eager(images)
        classes = logits.topk(self.top, dim=1).indices
        probabilities = self.probabilities(logits).gather(1, classes)
        classes, probabilities = classes.cpu().numpy(), probabilities.cpu().numpy()
        unread = np.array(list(map(bool, faults)))
        classes[unread], probabilities[unread] = -1, np.nan
        return Guesses(classes, probabilities, faults)

    def _fill(self, view: np.ndarray, file: ImageFile) -> str:
        """Fill the view (S, S, 3) with the pixels of a file; returns what is wrong with it."""
        try:
            view[:] = eval_view(decode(file.read()), self.images, self.size)
        except (OSError, ValueError, MemoryError, cv2.error) as error:
            return " ".join(str(error).split()) or type(error).__name__
        return ""
