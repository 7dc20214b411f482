"""Accuracy of a model over a split: each image once, one crop against many.

    split -> decoded once -> crops of every protocol -> logits, averaged over the crops -> hits

The mean is taken over logits. An image with several classes is a hit when any of them is predicted.

Shapes: B images, C crops, K classes, M labels per image (padded with -1).
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import ray.data
import torch
import torch.distributed
from torch import Tensor

from pipeline.checkpoint import Checkpoint
from pipeline.config import TrainConfig
from pipeline.reader import Source, View
from pipeline.stream import Block, Stream, decoded, quiet, rebatch
from shards.plan import Order, Share
from vit.batch import normalise
from vit.images import num_views
from vit.loss import make_loss, make_targets
from vit.model import ViT
from vit.weights import load_weights

CENTER = "center"
# a classifier's forward pass takes about this many crops at once
CROPS_PER_BATCH = 512


def hits(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """Whether any label is among the k highest logits: (B, K), (B, M) -> (B,) bool."""
    predicted = logits.topk(min(k, logits.shape[1])).indices
    return (predicted[:, :, None] == labels[:, None, :]).flatten(1).any(1)


def evaluate_share(
    model: ViT, config: TrainConfig, source: Source, rank: int, workers: int
) -> dict[str, float]:
    """Centre-crop metrics over a split, in the training loop: each worker takes its part of it."""
    device = next(model.parameters()).device
    samples = source.slices.samples
    share = Share.of(rank, workers, samples)
    view = View(images=config.images, size=config.model.image_size, protocols=(CENTER,))
    order = Order(counts=source.slices.count, seed=None)
    stream = Stream(
        source=source, order=order, share=share, view=view, task_samples=config.data.task_samples
    )
    loss_of = make_loss(config.loss)
    sums = torch.zeros(4, dtype=torch.float64, device=device)  # loss, top-1, top-5, images
    model.eval()
    with torch.inference_mode():
        for batch in rebatch(stream.blocks(0, share.size), config.micro_batch):
            images = torch.from_numpy(batch["images"][:, 0]).to(device)
            labels = torch.from_numpy(batch["labels"]).to(device)
            logits = model(normalise(images, config.images)).float()
            losses = loss_of(logits, make_targets(labels, logits.shape[1]))
            top1, top5 = hits(logits, labels, 1), hits(logits, labels, 5)
            count = torch.ones_like(losses)
            sums += torch.stack([column.double().sum() for column in (losses, top1, top5, count)])
    model.train()
    torch.distributed.all_reduce(sums)
    loss, top1, top5, count = sums.tolist()
    if count != samples:
        raise RuntimeError(f"evaluated {count:.0f} images of {samples}")
    return {"val/loss": loss / count, "val/top1": top1 / count, "val/top5": top5 / count}


class Classifier:
    """Ray Data actor that holds a checkpoint and scores blocks of crops."""

    def __init__(self, path: Path, config: TrainConfig, protocols: tuple[str, ...]) -> None:
        """Load the weights, on the GPU where Ray has given one."""
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = ViT(config.model).eval().to(self._device)
        load_weights(self._model, path)
        self._config, self._protocols = config, protocols

    @torch.inference_mode()
    def __call__(self, block: Block) -> Block:
        """Rows of position and, for each protocol, loss, top1 and top5 of the averaged logits."""
        images, labels = torch.from_numpy(block["images"]), torch.from_numpy(block["labels"])
        labels = labels.to(self._device)
        size = max(1, CROPS_PER_BATCH // images.shape[1])
        logits = torch.cat([self._logits(part) for part in images.split(size)])  # (B, C, K)
        targets = make_targets(labels, logits.shape[2])
        loss_of, rows, first = make_loss(self._config.loss), {}, 0
        for protocol in self._protocols:
            last = first + num_views(protocol)
            mean = logits[:, first:last].mean(1)
            rows[f"{protocol}/loss"] = loss_of(mean, targets)
            rows[f"{protocol}/top1"] = hits(mean, labels, 1)
            rows[f"{protocol}/top5"] = hits(mean, labels, 5)
            first = last
        rows = {name: column.double().cpu().numpy() for name, column in rows.items()}
        return {"position": block["position"], **rows}

    def _logits(self, images: Tensor) -> Tensor:
        """(B, C, S, S, 3) uint8 -> (B, C, K)."""
        flat = normalise(images.flatten(0, 1).to(self._device), self._config.images)
        return self._model(flat).float().unflatten(0, images.shape[:2])


def evaluate_checkpoint(
    checkpoint: Checkpoint,
    config: TrainConfig,
    source: Source,
    protocols: tuple[str, ...],
    progress: Callable[[int, int], None],
) -> dict[str, dict[str, float]]:
    """Metrics of each protocol over a split: {protocol: {images, loss, top1, top5}}.

    `progress` is called with the images done and their total. Every image is decoded once and
    counted exactly once, whatever the number of actors; anything else is a RuntimeError.
    """
    quiet()
    samples = source.slices.samples
    view = View(images=config.images, size=config.model.image_size, protocols=protocols)
    order = Order(counts=source.slices.count, seed=None)
    size = max(1, config.data.task_samples // sum(map(num_views, protocols)))
    pieces = [order.pieces(i, min(i + size, samples)) for i in range(0, samples, size)]
    gpus = int(ray.cluster_resources().get("GPU", 0))
    scores = decoded(source, pieces, view).map_batches(
        Classifier,
        fn_constructor_args=(checkpoint.path, config, protocols),
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(size=max(1, gpus)),
        num_gpus=1 if gpus else 0,
    )
    seen = np.zeros(samples, np.int64)
    sums: dict[str, float] = {}
    for block in scores.iter_batches(batch_size=None, batch_format="numpy"):
        np.add.at(seen, block.pop("position"), 1)
        for name, column in block.items():
            sums[name] = sums.get(name, 0.0) + math.fsum(column)
        progress(int(seen.sum()), samples)
    if not (seen == 1).all():
        raise RuntimeError(
            f"of {samples} images {int((seen == 0).sum())} were not evaluated and "
            f"{int((seen > 1).sum())} more than once"
        )
    return {name: means(sums, name, samples) for name in protocols}


def means(sums: Mapping[str, float], protocol: str, samples: int) -> dict[str, float]:
    """Per-image means of one protocol."""
    values = {name: sums[f"{protocol}/{name}"] / samples for name in ("loss", "top1", "top5")}
    return {"images": samples, **values}
