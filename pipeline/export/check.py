"""The check of an export: its own library opens it, and gives the outputs of this project."""

import importlib
import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from pipeline.export.formats import Format
from pipeline.export.source import BATCH, Source, drop_head
from vit.batch import normalise
from vit.model import ViT
from vit.weights import config_of, load_weights

Network = Callable[[Tensor], Tensor]
"""Crops (B, S, S, 3) uint8 -> logits (B, K) or features (B, D)."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How the outputs of an export differ from this project's."""

    images: int
    origin: str
    """Where the images come from."""
    reader: str
    """What opened the files."""
    difference: float
    """Largest difference of two outputs."""
    tolerance: float
    """Largest difference that is accepted."""
    same_top1: int | None
    """Images with the same first class; None for features."""

    @property
    def holds(self) -> bool:
        """Whether the difference is within the tolerance; NaN is not."""
        return self.difference <= self.tolerance

    def __str__(self) -> str:
        text = (
            f"{self.images} images ({self.origin}) in {self.reader}: largest difference"
            f" {self.difference:.1e}, tolerance {self.tolerance:.1e}"
        )
        same = self.same_top1
        return text if same is None else f"{text}; top-1 equal {same}/{self.images}"


def agreement(source: Source, network: Network, reader: str, share: float) -> Agreement:
    """Compare a network with the model; the tolerance is a `share` of the largest output.

    The first image is a batch of its own, and the others are one, so that a batch size that is
    fixed in a graph is found.
    """
    crops = source.crops[:BATCH]
    ours = source.outputs(crops)
    with torch.no_grad():
        theirs = torch.cat([network(part) for part in (crops[:1], crops[1:]) if len(part)])
    if theirs.shape != ours.shape:
        shapes = f"outputs {tuple(theirs.shape)} instead of {tuple(ours.shape)}"
        raise RuntimeError(f"{reader} opens the export and gives {shapes}")
    has_classes = source.config.num_classes is not None
    return Agreement(
        images=len(crops),
        origin=source.origin,
        reader=reader,
        difference=float((theirs - ours).abs().max()),
        tolerance=share * float(ours.abs().max()),
        same_top1=int((theirs.argmax(1) == ours.argmax(1)).sum()) if has_classes else None,
    )


def obstacle(row: Format) -> str | None:
    """The reason why the library of a format cannot be used here; None if it can."""
    try:
        importlib.import_module(row.library)
    except (ImportError, RuntimeError) as error:  # the latter if torchvision does not fit torch
        if isinstance(error, ModuleNotFoundError) and error.name == row.package:
            return f"{row.package} is not installed"
        return f"{row.package} cannot be imported here ({error})"
    return None


def versioned(package: str) -> str:
    """A library with its version."""
    return f"{package} {importlib.metadata.version(package)}"


def read_back(source: Source, path: Path) -> Network:
    """A file or folder of weights in this project's own model, with the settings that it states."""
    config = config_of(path)
    model = ViT(replace(config, num_classes=config.num_classes or 1)).eval()
    load_weights(model, path, head="drop" if config.num_classes is None else "keep")
    if source.config.num_classes is None:
        drop_head(model)
    return lambda crops: model(normalise(crops, source.images))
