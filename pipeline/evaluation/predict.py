"""Predictions of a model to every image of a split, each image once, with one crop and with many.

    split -> decoded once -> crops of every protocol -> logits, averaged over the crops -> top-5,
    confidence and loss of every image -> predictions (on disk) -> metrics

In the training loop each worker takes its share of the split; after it, and by `python -m
pipeline evaluate`, the units that are not on disk yet are shared out over all GPUs, or processes.

Shapes: B images, C crops of all protocols, K classes of the head, M labels per image (padded with
-1).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import ray
import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor

from pipeline.data.dataset import Dataset
from pipeline.data.order import RankShare
from pipeline.data.reader import SampleReader, View
from pipeline.data.stream import Block, Stream, ahead, quiet, rebatch
from pipeline.evaluation.config import CENTER, EvaluateConfig
from pipeline.evaluation.metrics import METRICS
from pipeline.evaluation.predictions import PredictionStore, protocol_predictions
from pipeline.settings.config import TrainConfig
from shards.dataset import wordnet
from vit.batch import normalise
from vit.config import LossConfig
from vit.loss import LINKS, Link, Loss, make_loss, make_targets
from vit.model import ViT
from vit.registry import LOSSES, num_views

# predictions that are kept of an image
TOP = 5
# a block of decoded crops that one task hands over: work for about half a second
TASK_BYTES = 128 << 20
# memory of the object store that the crops of one worker may fill
BUFFER_GIB = 2.0
# batches that wait for the model, decoded and on the device
PREFETCH_BATCHES = 3


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """The images, and how they are shown and judged; travels to the workers."""

    dataset: Dataset
    settings: EvaluateConfig
    columns: Tensor | None = None
    """(data's classes,) int64: output of the head for each class, -1 for none; None: the same."""

    def predictions(self, model: ViT, spans: Sequence[tuple[int, int]]) -> Iterator[Block]:
        """Predictions for the positions of the spans, a batch at a time.

        Returns:
            position (B,), labels (B, M) and for each protocol PROTOCOL/top (B, 5),
            PROTOCOL/confidence (B,) and PROTOCOL/loss (B,). Batches begin anew with each span.
        """
        device = next(model.parameters()).device
        scorer = Scorer.of(self, device)
        waiting: tuple[Block, dict[str, Tensor]] | None = None
        with torch.no_grad():  # inference mode would leave its mark on parameters that are sharded
            for batch, images, labels in self.batches(spans, device):
                with torch.autocast(device.type, torch.bfloat16, self.settings.precision == "bf16"):
                    logits = model(normalise(images.flatten(0, 1), self.settings.images))
                given = scorer(logits.float().unflatten(0, images.shape[:2]), labels)
                if waiting:  # read one batch late, so that the device never waits for the reader
                    yield fetched(*waiting)
                waiting = batch, given
            if waiting:
                yield fetched(*waiting)

    def batches(
        self, spans: Sequence[tuple[int, int]], device: torch.device
    ) -> Iterator[tuple[Block, Tensor, Tensor]]:
        """Positions with labels, crops (B, C, S, S, 3) uint8 and labels on the device."""
        settings, size = self.settings, self.settings.model.image_size
        samples = self.dataset.samples
        view = View(images=settings.images, size=size, protocols=settings.protocols)
        stream = Stream(
            reader=SampleReader(dataset=self.dataset, view=view),
            order=self.dataset.order(seed=None),
            share=RankShare(global_batch=samples, low=0, high=samples),
            task_samples=max(1, TASK_BYTES // (settings.views * size * size * 3)),
            buffer_gib=BUFFER_GIB,
        )

        def on_device(block: Block) -> tuple[Block, Tensor, Tensor]:
            images, labels = torch.from_numpy(block["images"]), torch.from_numpy(block["labels"])
            if device.type == "cuda":  # a pinned copy travels beside the computation
                images, labels = images.pin_memory(), labels.pin_memory()
            kept = {name: block[name] for name in ("position", "labels")}
            return (
                kept,
                images.to(device, non_blocking=True),
                labels.to(device, non_blocking=True),
            )

        def cut() -> Iterator[tuple[Block, Tensor, Tensor]]:
            for start, stop in spans:
                blocks = rebatch(stream.blocks(start, stop), settings.batch_images)
                yield from map(on_device, blocks)

        return ahead(cut(), PREFETCH_BATCHES)


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """Turns the logits of an image's crops into its predictions."""

    protocols: tuple[str, ...]
    average: str
    link: Link
    loss: Loss
    known: Tensor | None
    """Outputs of the head that are classes of the data; None: all."""
    numbers: Tensor | None
    """Class of the data behind each of these outputs."""
    places: Tensor | None
    """For each class of the data its place among these outputs, -1 for none."""

    @classmethod
    def of(cls, evaluator: Evaluator, device: torch.device) -> "Scorer":
        """The scorer of an evaluator, with its tables on the device."""
        known = numbers = places = None
        if evaluator.columns is not None:
            numbers = (evaluator.columns >= 0).nonzero()[:, 0]
            known = evaluator.columns[numbers].to(device)
            places = torch.full((len(evaluator.columns) + 1,), -1)  # the last stands for padding
            places[numbers] = torch.arange(len(numbers))
            numbers, places = numbers.to(device), places.to(device)
        settings = evaluator.settings
        return cls(
            protocols=settings.protocols,
            average=settings.average,
            link=LINKS[LOSSES[settings.loss.name].link],
            loss=eval_loss(
                settings.loss, evaluator.dataset.classes, device, mapped=known is not None
            ),
            known=known,
            numbers=numbers,
            places=places,
        )

    def __call__(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """(B, C, K) and labels (B, M) in the data's numbers -> the predictions of each protocol."""
        if self.known is not None:
            logits, labels = logits[..., self.known], self.places[labels]
        targets = make_targets(labels, logits.shape[-1])
        unknown = ~labels.ge(0).any(1)
        predictions = {}
        views = [num_views(name) for name in self.protocols]
        for name, crops in zip(self.protocols, logits.split(views, 1), strict=True):
            mean = average(crops, self.average, self.link)
            top = mean.topk(min(TOP, mean.shape[1])).indices
            predictions[f"{name}/confidence"] = self.link.confidence(mean).double()
            predictions[f"{name}/loss"] = (
                self.loss(mean, targets).double().masked_fill(unknown, torch.nan)
            )
            if self.numbers is not None:
                top = self.numbers[top]
            predictions[f"{name}/top"] = F.pad(top, (0, TOP - top.shape[1]), value=-2).int()
        return predictions


def average(crops: Tensor, how: str, link: Link) -> Tensor:
    """One row of logits for each image: (B, C, K) -> (B, K).

    Args:
        crops: Logits of each crop.
        how: "logits": their mean. "probabilities": the logits whose probabilities are the mean of
            the crops' probabilities, so that ranking, confidence and loss follow from one form.
        link: From logits to probabilities.
    """
    return crops.mean(1) if how == "logits" else link.mean(crops)


def eval_loss(
    config: LossConfig, classes: Sequence[str], device: torch.device, *, mapped: bool
) -> Loss:
    """The training's loss without label smoothing.

    A head that is used for other classes (`mapped`) keeps some of its outputs. These are no tree
    any more, so the loss is then softmax in place of one over the tree.
    """
    needs_tree = LOSSES[config.name].needs_tree
    if mapped and needs_tree:
        return make_loss(LossConfig())
    plain = config.replace({"label_smoothing": 0.0})
    return make_loss(plain, parents=wordnet.parents(classes) if needs_tree else None, device=device)


def fetched(block: Block, given: Mapping[str, Tensor]) -> Block:
    """The block with the predictions beside it, on the CPU."""
    return {**block, **{name: tensor.cpu().numpy() for name, tensor in given.items()}}


def evaluate_share(
    model: ViT, config: TrainConfig, dataset: Dataset, rank: int, world_size: int
) -> dict[str, float]:
    """Centre-crop metrics over a split, in the training loop; each worker takes its share."""
    settings = EvaluateConfig(
        data="",
        crops=(CENTER,),
        batch=config.micro_batch,
        precision=config.precision,
        model=config.model,
        images=config.images,
        loss=config.loss,
    )
    evaluator, samples = Evaluator(dataset=dataset, settings=settings), dataset.samples
    share = RankShare.of(rank, world_size, samples)
    # images, and for each metric the sum of its values and their number
    sums = np.zeros((1 + len(METRICS), 2))
    model.eval()
    for block in evaluator.predictions(model, [(share.low, share.high)] if share.size else []):
        predictions = protocol_predictions(block, CENTER)
        sums[0] += len(predictions.top)
        for row, metric in enumerate(METRICS.values(), start=1):
            values = np.asarray(metric.values(predictions), np.float64)
            known = values[~np.isnan(values)]
            sums[row] += known.sum(), len(known)
    keep_step(
        model, config, [RankShare.of(r, world_size, samples).size for r in range(world_size)], rank
    )
    model.train()
    totals = torch.from_numpy(sums).to(next(model.parameters()).device)
    torch.distributed.all_reduce(totals)
    (images, _), *rows = totals.tolist()
    if images != samples:
        raise RuntimeError(f"evaluated {images:.0f} images of {samples}")
    return {
        f"val/{name}": total / count
        for name, (total, count) in zip(METRICS, rows, strict=True)
        if count
    }


def keep_step(model: ViT, config: TrainConfig, sizes: Sequence[int], rank: int) -> None:
    """Run the model on nothing as often as another worker has more batches.

    The shards of a model (FSDP) are gathered by all workers together, each time that one runs it.
    """
    counts = [-(-size // config.micro_batch) for size in sizes]
    side = config.model.image_size
    device = next(model.parameters()).device
    with torch.no_grad():
        for _ in range(max(counts) - counts[rank]):
            with torch.autocast(device.type, torch.bfloat16, config.precision == "bf16"):
                model(torch.zeros(1, 3, side, side, device=device))


@ray.remote(num_returns="streaming")
def predict(
    evaluator: Evaluator, weights: Mapping[str, Tensor], spans: Sequence[tuple[int, int]]
) -> Iterator[Block]:
    """Ray task that predicts some spans, on its GPU if it has one."""
    quiet()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = ViT(evaluator.settings.model).eval()
    model.load_state_dict(weights)
    yield from evaluator.predictions(model.to(device), spans)


def predict_all(
    evaluator: Evaluator, model: ViT, parts: PredictionStore, progress: Callable[[int, int], None]
) -> Block:
    """Predictions to all images, by position; what is on disk already is not computed again.

    `progress` is called with the images done and their total.
    """
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    shares = parts.shares(gpus or evaluator.settings.workers)
    done = parts.images - sum(stop - start for share in shares for start, stop in share)
    if shares:
        # half of the cores read and decode: workers on all of them would wait for ever
        half = resources["CPU"] / (2 * len(shares))
        task = predict.options(num_gpus=1 if gpus else 0, num_cpus=min(1, half))
        put, weights = ray.put(evaluator), ray.put(model.state_dict())
        running = {task.remote(put, weights, share): None for share in shares}
        while running:
            (ready,), _ = ray.wait(list(running), num_returns=1)
            try:
                block = ray.get(next(ready))
            except StopIteration:
                del running[ready]
                continue
            parts.add(block)
            done += len(block["position"])
            progress(done, parts.images)
    return parts.read()
