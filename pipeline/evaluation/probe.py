"""Quality of the features of a model in training on other data: few-shot regression and kNN.

    shard set -> squashed to a square, centre crop -> features (input of the head), on rank 0
    -> few_shot, knn

Rank 0 holds the features of all images once, in host memory, as float32; the other workers only
their share. Nothing else grows with the number of images: blocks of them are compared on the
device, and few_shot copies the images that it draws.

The few-shot linear regression is big_vision's `evaluators/fewshot_lsr.py` with the settings of
`configs/common_fewshot.py`: l2 = 1024, seeds 0, 1, 2, shots 1, 5, 10, 25.

Shapes: n training and m test images, D width of the features, C classes, M labels per image
(padded with -1).
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor

from pipeline.data.dataset import Dataset, set_name
from pipeline.data.feed import NodeFeed
from pipeline.data.reader import without_unreadable
from pipeline.evaluation.features import FeatureReader
from pipeline.evaluation.gathered import Gathered
from pipeline.evaluation.share import EvalShare
from pipeline.evaluation.training_loop import evaluating, evaluation_settings
from pipeline.evaluation.unreadable import FAULT, texts
from pipeline.settings.config import ProbeConfig, TrainConfig
from vit.model import ViT

# part of the name of a metric that MLflow takes, which may have 250 characters in all
METRIC_NAME = re.compile(r"[\w.\- :]{1,200}")
# big_vision's strength of the ridge, and a constant feature: its size all but exempts the bias
L2, BIAS = 2.0**10, 100.0
# test images that are classified at once, and training images that they are compared with at once
TEST_ROWS, TRAIN_ROWS = 1024, 1 << 16


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

    `tick` is called after every batch, and `say` with a line about each image of the share that
    cannot be read: nothing is learnt from it, or it counts as wrong.

    Returns:
        probe/NAME/5shot (mean over the seeds), probe/NAME/5shot-seed-0, ..., probe/NAME/knn.
    """
    settings, accuracies = config.probe, {}
    for probe in probes:
        train = features(model, config, probe.train, feed, tick, say)
        test = features(model, config, probe.eval, feed, tick, say)
        if not train or not test:  # on another rank than 0
            continue
        prefix, classes = f"probe/{probe.name}", len(probe.train.classes)
        arrays = (train.rows, train.labels[:, 0], test.rows, test.labels)
        data = tuple(tensor.numpy() for tensor in arrays)
        for shots in settings.shots:
            name = f"{prefix}/{shots}shot"
            scores = [few_shot(*data, classes, shots, seed) for seed in range(settings.seeds)]
            accuracies[name] = float(np.mean(scores))
            accuracies |= {f"{name}-seed-{seed}": score for seed, score in enumerate(scores)}
        if settings.neighbours:
            accuracies[f"{prefix}/knn"] = knn(
                *(*arrays, classes),
                neighbours=settings.neighbours,
                temperature=settings.temperature,
                device=next(model.parameters()).device,
            )
    return accuracies


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
    """The features of a split, on rank 0 alone; ValueError there if no image can be read."""
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
    width = widest(labels, device)
    numbers = Gathered(places, feed.rank, width=width, dtype=torch.int64)
    for part in labels:
        numbers.add(F.pad(torch.from_numpy(part), (0, width - part.shape[1]), value=-1))
    rows, labels = found.whole(device), numbers.whole(device)
    if rows is None:
        return None
    if (labels < 0).all():
        raise ValueError(f"none of the {len(labels):,} images of a probe can be read")
    return Features(rows=rows, labels=labels)


def widest(labels: Sequence[np.ndarray], device: torch.device) -> int:
    """The most labels that an image has in the parts (B, M) of any worker."""
    most = torch.tensor(max((part.shape[1] for part in labels), default=1), device=device)
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
    return int(most)


def draw_shots(labels: np.ndarray, classes: int, shots: int, seed: int) -> np.ndarray:
    """Rows of the training images of a few-shot run, drawn as big_vision draws them.

    One generator permutes the images of each class, class after class; the first `shots` of each
    class are taken. So fewer shots are a subset of more shots. A label of -1 is no class.
    """
    random = np.random.default_rng(seed)
    order = np.argsort(labels, kind="stable")
    ends = np.searchsorted(labels[order], np.arange(classes + 1))
    drawn = [random.permutation(order[low:high])[:shots] for low, high in pairwise(ends)]
    return np.concatenate(drawn)


def few_shot(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    classes: int,
    shots: int,
    seed: int,
) -> float:
    """Top-1 of a linear regression to -1 and 1 on a few images of each class, in float64.

    `shots` images per class are drawn by `seed` from the features `train` (n, D), whose labels are
    (n,). The test set is `test` (m, D) with labels (m, M); any class of an image is a hit.
    """
    rows = draw_shots(train_labels, classes, shots, seed)
    weights, mean, std = regression(train[rows].astype(np.float64), train_labels[rows], classes)
    right = 0
    for first in range(0, len(test), TEST_ROWS):
        part = slice(first, first + TEST_ROWS)
        scores = with_bias((test[part] - mean) / std) @ weights
        right += int((scores.argmax(1)[:, None] == test_labels[part]).any(1).sum())
    return right / len(test)


def regression(
    x: np.ndarray, labels: np.ndarray, classes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights (D + 1, C) for whitened features, and their mean and deviation (1, D).

    Decomposes the smaller of the two Gram matrices and adds the ridge to its eigenvalues.
    """
    mean, std = x.mean(0, keepdims=True), x.std(0, keepdims=True) + 1e-5
    x = with_bias((x - mean) / std)
    y = 2.0 * (labels[:, None] == np.arange(classes)) - 1.0
    if len(x) >= x.shape[1]:
        eigenvalues, q = np.linalg.eigh(x.T @ x)
        left, right = q, q.T @ (x.T @ y)
    else:
        eigenvalues, q = np.linalg.eigh(x @ x.T)
        left, right = x.T @ q, q.T @ y
    return (left / (eigenvalues + L2)) @ right, mean, std


def with_bias(x: np.ndarray) -> np.ndarray:
    """The features with a constant one appended: (n, D) -> (n, D + 1)."""
    return np.pad(x, ((0, 0), (0, 1)), constant_values=BIAS)


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
) -> float:
    """Top-1 of a weighted vote of the nearest training images (Wu et al., arXiv 1805.01978).

    The vote of a neighbour is exp(cosine similarity / temperature). Arguments are as of `few_shot`,
    but tensors.
    """
    right = 0
    for similarity, labels, given in zip(
        *nearest(train, train_labels, test, neighbours, device),
        test_labels.split(TEST_ROWS),
        strict=True,
    ):
        votes = torch.zeros(len(labels), classes, device=device)
        votes.scatter_add_(1, labels.clamp_min(0), (similarity / temperature).exp())
        right += int((votes.argmax(1)[:, None] == given.to(device)).any(1).sum())
    return right / len(test)


def nearest(
    train: Tensor, train_labels: Tensor, test: Tensor, count: int, device: torch.device
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
    return similarities, labels
