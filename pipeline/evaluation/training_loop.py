"""Evaluation in the training loop: all workers together, with one centre crop.

split -> each worker its batches, from the feed of its node -> sums -> metrics, equal on all
"""

import contextlib
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.distributed

from pipeline.data.dataset import Dataset
from pipeline.data.feed import NodeFeed
from pipeline.evaluation.config import CENTER, EvaluateConfig
from pipeline.evaluation.forward import Forward
from pipeline.evaluation.metrics import METRICS
from pipeline.evaluation.predict import Evaluator
from pipeline.evaluation.predictions import protocol_predictions
from pipeline.evaluation.share import EvalShare
from pipeline.settings.config import TrainConfig
from vit.model import ViT


def center_crop_settings(config: TrainConfig) -> EvaluateConfig:
    """Settings of an evaluation in the training loop: the model of the run, one centre crop."""
    return EvaluateConfig(
        crops=(CENTER,),
        batch=config.eval_batch,
        precision=config.precision,
        compile=config.compile,
        model=config.model,
        images=config.images,
        loss=config.loss,
    )


def evaluate_share(
    model: ViT,
    config: TrainConfig,
    dataset: Dataset,
    feed: NodeFeed,
    tick: Callable[[], None],
    prefix: str = "val",
) -> dict[str, float]:
    """Centre-crop metrics of a split in the training loop; each worker evaluates its share.

    `tick` is called after every batch. The names of the metrics are PREFIX/top1 and so on.
    """
    evaluator = Evaluator(dataset=dataset, settings=center_crop_settings(config))
    # number of images; for each metric the sum of its values and their number
    sums = np.zeros((1 + len(METRICS), 2))
    with evaluating(model, config, dataset, feed) as share:
        for block in evaluator.predictions(model, feed, share):
            tick()
            predictions = protocol_predictions(block, CENTER)
            sums[0] += len(predictions.top)
            for row, metric in enumerate(METRICS.values(), start=1):
                values = np.asarray(metric.values(predictions), np.float64)
                values = values[~np.isnan(values)]
                sums[row] += values.sum(), len(values)
    totals = torch.from_numpy(sums).to(next(model.parameters()).device)
    torch.distributed.all_reduce(totals)
    (images, _), *rows = totals.tolist()
    if images != dataset.samples:
        raise RuntimeError(f"evaluated {images:.0f} images of {dataset.samples}")
    return {
        f"{prefix}/{name}": total / count
        for name, (total, count) in zip(METRICS, rows, strict=True)
        if count
    }


@contextlib.contextmanager
def evaluating(
    model: ViT, config: TrainConfig, dataset: Dataset, feed: NodeFeed
) -> Iterator[EvalShare]:
    """Evaluation mode for the block; gives this worker's share.

    Each forward pass of a sharded model (FSDP) gathers the shards and so needs all workers.
    A worker without images in the last step therefore runs the model on a blank one at the end.
    """
    side = config.model.image_size
    share = EvalShare.of_worker(feed, feed.rank, dataset.samples, config.eval_batch)
    forward = Forward(model, center_crop_settings(config))
    blank = torch.zeros(1, side, side, 3, dtype=torch.uint8, device=forward.device)
    model.eval()
    with torch.no_grad():
        yield share
        for start, stop in share.batches:
            if start == stop:
                forward.eager(blank)
    model.train()
