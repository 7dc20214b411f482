"""Quality of the features of a model in training on other data: few-shot regression and kNN.

    shard set -> squashed to a square, centre crop -> features (input of the head), on rank 0
    -> few_shot, knn

Rank 0 holds the features of all images once, in host memory, as float32; the other workers only
their share. Nothing else grows with the number of images: blocks of them are compared on the
device, and few_shot copies the images that it draws.

Shapes: n training and m test images, D width of the features, C classes, M labels per image
(padded with -1).
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor

from pipeline.data.dataset import Dataset, set_name
from pipeline.data.feed import NodeFeed
from pipeline.data.reader import without_unreadable
from pipeline.evaluation.features import FeatureReader
from pipeline.evaluation.few_shot import TEST_ROWS, few_shot
from pipeline.evaluation.gathered import Gathered
from pipeline.evaluation.share import EvalShare
from pipeline.evaluation.training_loop import evaluating, evaluation_settings
from pipeline.evaluation.unreadable import FAULT, texts
from pipeline.settings.config import ProbeConfig, TrainConfig
from vit.model import ViT

# part of the name of a metric that MLflow takes, which may have 250 characters in all
METRIC_NAME = re.compile(r"[\w.\- :]{1,200}")
# training images that test images are compared with at once
TRAIN_ROWS = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One shard set to probe the model on."""

    name: str
    train: Dataset
    eval: Dataset

    @classmethod
    def open_all(cls, config: ProbeConfig) -> "tuple[Probe, ...]":
        """The probes of a run; FileNotFoundError if a shard set is missing.

        Their folders name metrics, so they must keep MLflow's rule for these.
        """
        for name in map(set_name, config.data):
            if not METRIC_NAME.fullmatch(name):
                raise ValueError(
                    f"probe.data has a set {name!r}, which names its metrics: these may have at "
                    f"most 200 letters, digits, spaces and _ - . :, so rename the folder"
                )
        probes = tuple(
            cls(
                name=set_name(location),
                train=Dataset.open((location,), config.train_split, 32),
                eval=Dataset.open((location,), config.eval_split, 32),
            )
            for location in config.data
        )
        if len({probe.name for probe in probes}) < len(probes):
            raise ValueError(
                f"probe.data {config.data} has two sets of the same name, which names their "
                f"metrics; rename a folder"
            )
        return probes


def probe_share(
    model: ViT,
    config: TrainConfig,
    probes: Sequence[Probe],
    feed: NodeFeed,
    tick: Callable[[], None],
    say: Callable[[str], object],
) -> dict[str, float]:
    """Accuracies of all probes, on rank 0; each worker computes its share of the features.

    `tick` is called after every batch and, on all workers, after every part of what rank 0 does
    alone. `say` is called with a line about each image of the share that cannot be read: nothing is
    learnt from it, or it counts as wrong.

    Returns:
        probe/NAME/5shot (mean over the seeds), probe/NAME/5shot-seed-0, ..., probe/NAME/knn.
    """
    settings, accuracies = config.probe, {}
    device = next(model.parameters()).device
    after = partial(after_rank_0, tick, device)
    for probe in probes:
        train = features(model, config, probe.train, feed, tick, say)
        test = features(model, config, probe.eval, feed, tick, say)
        if train and test:
            found = scores(train, test, len(probe.train.classes), settings, after, device)
            accuracies |= {f"probe/{probe.name}/{name}": value for name, value in found.items()}
        else:  # on another rank than 0
            for _ in range(num_parts(settings, probe.train.samples)):
                after()
    return accuracies


def scores(
    train: "Features",
    test: "Features",
    classes: int,
    settings: ProbeConfig,
    tick: Callable[[], None],
    device: torch.device,
) -> dict[str, float]:
    """The accuracies of one probe; `tick` is called `num_parts` times."""
    accuracies = {}
    arrays = (train.rows, train.labels[:, 0], test.rows, test.labels)
    data = tuple(tensor.numpy() for tensor in arrays)
    for shots in settings.shots:
        of_seeds = []
        for seed in range(settings.seeds):
            of_seeds.append(few_shot(*data, classes, shots, seed))
            tick()
        accuracies[f"{shots}shot"] = float(np.mean(of_seeds))
        accuracies |= {f"{shots}shot-seed-{seed}": one for seed, one in enumerate(of_seeds)}
    if settings.neighbours:
        accuracies["knn"] = knn(
            *(*arrays, classes),
            neighbours=settings.neighbours,
            temperature=settings.temperature,
            device=device,
            tick=tick,
        )
    return accuracies


def num_parts(settings: ProbeConfig, train_images: int) -> int:
    """Parts of what rank 0 does alone: regressions, and blocks of training images."""
    blocks = math.ceil(train_images / TRAIN_ROWS) if settings.neighbours else 0
    return len(settings.shots) * settings.seeds + blocks


def after_rank_0(tick: Callable[[], None], device: torch.device) -> None:
    """Wait until rank 0 has done a part, and tick; so nobody takes a worker that waits for hung."""
    agreed((0,), device)
    tick()


@dataclass(frozen=True, kw_only=True)
class Features:
    """Features and labels of all images of a split, by position, in host memory."""

    rows: Tensor
    """(n, D) float32."""
    labels: Tensor
    """(n, M) int64; all -1 for an image that could not be read."""


def features(
    model: ViT,
    config: TrainConfig,
    dataset: Dataset,
    feed: NodeFeed,
    tick: Callable[[], None],
    say: Callable[[str], object],
) -> Features | None:
    """The features of a split, on rank 0 alone; ValueError on all if no image can be read."""
    # decode | resize(256) without keeping the aspect | central_crop(224)
    images = {"eval_resize": "squash", "crop_pct": 0.875, "eval_interpolation": "area"}
    settings = evaluation_settings(config).replace({f"images.{k}": v for k, v in images.items()})
    places = [
        share.positions
        for share in (
            EvalShare.of_worker(feed, rank, dataset.samples, config.eval_batch)
            for rank in range(feed.world_size)
        )
    ]
    device = next(model.parameters()).device
    found = Gathered(places, feed.rank, width=config.model.width, dtype=torch.float32)
    labels = []  # rows of labels become as wide as the widest of all workers
    with evaluating(model, config, dataset, feed) as share:
        for block in FeatureReader(dataset=dataset, settings=settings).predictions(
            model, feed, share
        ):
            found.add(torch.from_numpy(block["features"]))
            labels.append(without_unreadable(block["labels"], block[FAULT]))
            for fault in texts(block[FAULT]):
                say(f"a probe does not learn from it, or gets it wrong: {fault}")
            tick()
    width, has_labels = agreed(summary(labels), device)
    if not has_labels:
        raise ValueError(f"none of the {dataset.samples:,} images of a probe can be read")
    numbers = Gathered(places, feed.rank, width=width, dtype=torch.int64)
    for part in labels:
        numbers.add(F.pad(torch.from_numpy(part), (0, width - part.shape[1]), value=-1))
    rows, labels = found.whole(device), numbers.whole(device)
    return None if rows is None else Features(rows=rows, labels=labels)


def summary(labels: Sequence[np.ndarray]) -> tuple[int, bool]:
    """The most labels that an image has in the parts (B, M), and whether any image has one."""
    width = max((part.shape[1] for part in labels), default=1)
    return width, any((part >= 0).any() for part in labels)


def agreed(values: Sequence[int], device: torch.device) -> list[int]:
    """The largest of each value over all workers."""
    most = torch.tensor(values, dtype=torch.int64, device=device)
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
    return most.tolist()


def knn(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    classes: int,
    *,
    neighbours: int,
    temperature: float,
    device: torch.device,
    tick: Callable[[], None],
) -> float:
    """Top-1 of a weighted vote of the nearest training images (Wu et al., arXiv 1805.01978).

    The vote of a neighbour is exp(cosine similarity / temperature). Arguments are as of `few_shot`,
    but tensors; `tick` is called after every block of training images.
    """
    right = 0
    for similarity, labels, given in zip(
        *nearest(train, train_labels, test, neighbours, device, tick),
        test_labels.split(TEST_ROWS),
        strict=True,
    ):
        votes = torch.zeros(len(labels), classes, device=device)
        votes.scatter_add_(1, labels.clamp_min(0), (similarity / temperature).exp())
        right += int((votes.argmax(1)[:, None] == given.to(device)).any(1).sum())
    return right / len(test)


def nearest(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    count: int,
    device: torch.device,
    tick: Callable[[], None],
) -> tuple[list[Tensor], list[Tensor]]:
    """Cosine similarities and labels (r, count) of the nearest training images of r test images.

    Both sets are compared on the device in blocks, of which the next takes the place of the last.
    Training images without a label have a similarity of minus infinity.
    """
    tests = test.split(TEST_ROWS)
    similarities = [torch.empty(len(part), 0, device=device) for part in tests]
    labels = [torch.empty(len(part), 0, dtype=torch.int64, device=device) for part in tests]
    blocks = (train.split(TRAIN_ROWS), train_labels.split(TRAIN_ROWS))
    for rows, given in zip(*blocks, strict=True):
        rows, given = F.normalize(rows.to(device), dim=1), given.to(device)
        for number, part in enumerate(tests):
            found = F.normalize(part.to(device), dim=1) @ rows.T
            found[:, given < 0] = -torch.inf
            found, place = found.topk(min(count, len(rows)))
            found = torch.cat([similarities[number], found], dim=1)
            known = torch.cat([labels[number], given[place]], dim=1)
            similarities[number], best = found.topk(min(count, found.shape[1]))
            labels[number] = known.gather(1, best)
        tick()
    return similarities, labels
