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
from pipeline.evaluation.unreadable import COUNTS_AS_WRONG, FAULT, texts
from pipeline.settings.config import TrainConfig
from vit.model import ViT


def evaluation_settings(config: TrainConfig, crops: str = CENTER) -> EvaluateConfig:
    """Settings to evaluate the model of a run; in the training loop, with one centre crop."""
    return EvaluateConfig(
        crops=(crops,),
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
    say: Callable[[str], object],
    prefix: str = "val",
) -> dict[str, float]:
    """Centre-crop metrics of a split in the training loop; each worker evaluates its share.

    `tick` is called after every batch, and `say` with a line about each image of the share that
    cannot be read: it counts as wrong. ValueError if none of the split can. The names of the
    metrics are PREFIX/top1 and so on.
    """
    evaluator = Evaluator(dataset=dataset, settings=evaluation_settings(config))
    # number of images, and of unreadable ones; for each metric the sum of its values, their number
    sums, faults = np.zeros((1 + len(METRICS), 2)), []
    with evaluating(model, config, dataset, feed) as share:
        for block in evaluator.predictions(model, feed, share):
            tick()
            predictions, faults = protocol_predictions(block, CENTER), texts(block[FAULT])
            for fault in faults:
                say(f"{COUNTS_AS_WRONG}: {fault}")
            sums[0] += len(predictions.top), len(faults)
            for row, metric in enumerate(METRICS.values(), start=1):
                values = np.asarray(metric.values(predictions), np.float64)
                values = values[~np.isnan(values)]
                sums[row] += values.sum(), len(values)
    totals = torch.from_numpy(sums).to(next(model.parameters()).device)
    torch.distributed.all_reduce(totals)
    (images, num_bad), *rows = totals.tolist()
    if images != dataset.samples:
        raise RuntimeError(f"evaluated {images:.0f} images of {dataset.samples}")
    if num_bad == images:
        raise ValueError(
            f"none of the {images:,.0f} images for {prefix} can be read, for example "
            f"{'; '.join(faults[:1]) or 'those named by other workers'}"
        )
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
    forward = Forward(model, evaluation_settings(config))
    blank = torch.zeros(1, side, side, 3, dtype=torch.uint8, device=forward.device)
    model.eval()
    with torch.no_grad():
        yield share
        for start, stop in share.batches:
            if start == stop:
                forward.eager(blank)
    model.train()
