"""Accuracy of a model over a split: each image once, one crop against many.

    split -> decoded once -> crops of every protocol -> logits, averaged over the crops -> hits

The mean is taken over logits. An image with several classes is a hit when any of them is predicted.
Each of W workers takes a contiguous part of the split, in the training loop and after it alike.

Shapes: B images, C crops, K classes, M labels per image (padded with -1).
"""

import math
from collections.abc import Callable, Iterator
from itertools import zip_longest
from pathlib import Path

import numpy as np
import ray
import torch
import torch.distributed
from torch import Tensor

from pipeline.config import TrainConfig
from pipeline.reader import Reader, View
from pipeline.source import Source
from pipeline.stream import Block, Stream, ahead, quiet, rebatch
from shards.plan import Share
from vit.batch import normalise
from vit.images import num_views
from vit.loss import make_loss, make_targets
from vit.model import ViT
from vit.weights import load_weights

CENTER = "center"
METRICS = ("loss", "top1", "top5")


def hits(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """Whether any label is among the k highest logits: (B, K), (B, M) -> (B,) bool."""
    predicted = logits.topk(min(k, logits.shape[1])).indices
    return (predicted[:, :, None] == labels[:, None, :]).flatten(1).any(1)


def scores(
    model: ViT, config: TrainConfig, source: Source, protocols: tuple[str, ...], share: Share
) -> Iterator[Block]:
    """Score one share of a split: blocks of position and, by protocol, loss, top1 and top5 (n,)."""
    device = next(model.parameters()).device
    loss_of = make_loss(config.loss)
    views = [num_views(name) for name in protocols]
    view = View(images=config.images, size=config.model.image_size, protocols=protocols)
    stream = Stream(
        reader=Reader(source=source, view=view),
        order=source.order(seed=None),
        share=share,
        # a task's block holds about as many crops as in training
        task_samples=max(1, config.data.task_samples // sum(views)),
    )
    batch_size = max(1, config.micro_batch // sum(views))
    batches = rebatch(stream.blocks(0, share.size), batch_size)
    for batch in ahead(batches, config.data.prefetch_batches):
        images = torch.from_numpy(batch["images"]).to(device)  # (B, C, S, S, 3)
        labels = torch.from_numpy(batch["labels"]).to(device)
        with torch.inference_mode():
            logits = model(normalise(images.flatten(0, 1), config.images)).float()
            targets = make_targets(labels, logits.shape[1])
            columns = {"position": batch["position"]}
            for name, crops in zip(
                protocols, logits.unflatten(0, images.shape[:2]).split(views, 1), strict=True
            ):
                mean = crops.mean(1)
                values = (loss_of(mean, targets), hits(mean, labels, 1), hits(mean, labels, 5))
                for metric, value in zip(METRICS, values, strict=True):
                    columns[f"{name}/{metric}"] = value.double().cpu().numpy()
        yield columns


def evaluate_share(
    model: ViT, config: TrainConfig, source: Source, rank: int, workers: int
) -> dict[str, float]:
    """Centre-crop metrics over a split, in the training loop; each worker takes its share."""
    samples = source.samples
    # equal shares, as sharded models need equal numbers of passes; what lies beyond counts nothing
    share = Share.of(rank, workers, 2 * workers * math.ceil(samples / (2 * workers)))
    sums = torch.zeros(1 + len(METRICS), dtype=torch.float64)
    model.eval()
    for block in scores(model, config, source, (CENTER,), share):
        real = block["position"] < samples
        sums[0] += real.sum()
        sums[1:] += torch.tensor([block[f"{CENTER}/{metric}"][real].sum() for metric in METRICS])
    model.train()
    sums = sums.to(next(model.parameters()).device)
    torch.distributed.all_reduce(sums)
    count, *totals = sums.tolist()
    if count != samples:
        raise RuntimeError(f"evaluated {count:.0f} images of {samples}")
    return {f"val/{metric}": total / count for metric, total in zip(METRICS, totals, strict=True)}


@ray.remote(num_returns="streaming")
def score_checkpoint(
    path: Path, config: TrainConfig, source: Source, protocols: tuple[str, ...], share: Share
) -> Iterator[Block]:
    """Ray task that scores a share with the weights of a checkpoint, on its GPU if it has one."""
    quiet()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = ViT(config.model).eval().to(device)
    load_weights(model, path)
    yield from scores(model, config, source, protocols, share)


def evaluate_checkpoint(
    path: Path,
    config: TrainConfig,
    source: Source,
    protocols: tuple[str, ...],
    progress: Callable[[int, int], None],
) -> dict[str, dict[str, float]]:
    """Metrics of each protocol over a split: {protocol: {images, loss, top1, top5}}.

    `progress` is called with the images done and their total. Every image is counted exactly once,
    whatever the number of workers; anything else is a RuntimeError.
    """
    samples = source.slices.samples
    gpus = int(ray.cluster_resources().get("GPU", 0))
    workers = gpus or config.workers
    task = score_checkpoint.options(num_gpus=1 if gpus else 0)
    parts = [
        task.remote(path, config, source, protocols, Share.of(rank, workers, samples))
        for rank in range(workers)
    ]
    seen = np.zeros(samples, np.int64)
    columns: dict[str, list[np.ndarray]] = {}
    for references in zip_longest(*parts):
        for block in ray.get([reference for reference in references if reference]):
            np.add.at(seen, block.pop("position"), 1)
            for name, column in block.items():
                columns.setdefault(name, []).append(column)
        progress(int(seen.sum()), samples)
    if not (seen == 1).all():
        raise RuntimeError(
            f"of {samples} images {int((seen == 0).sum())} were not evaluated and "
            f"{int((seen > 1).sum())} more than once"
        )
    means = {name: math.fsum(np.concatenate(parts)) / samples for name, parts in columns.items()}
    return {
        name: {"images": samples} | {metric: means[f"{name}/{metric}"] for metric in METRICS}
        for name in protocols
    }
