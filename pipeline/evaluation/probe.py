"""Quality of the features of a model in training on other data: few-shot regression and kNN.

    shard set -> squashed to a square, centre crop -> features (input of the head) -> few_shot, knn

The few-shot linear regression is big_vision's `evaluators/fewshot_lsr.py` with the settings of
`configs/common_fewshot.py`: l2 = 1024, seeds 0, 1, 2, shots 1, 5, 10, 25.

Shapes: n training and m test images, D width of the features, C classes, M labels per image
(padded with -1).
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor

from pipeline.data.dataset import Dataset, set_name
from pipeline.data.feed import NodeFeed
from pipeline.evaluation.forward import Forward
from pipeline.evaluation.predict import Evaluator
from pipeline.evaluation.share import EvalShare
from pipeline.evaluation.training_loop import center_crop_settings, evaluating
from pipeline.settings.config import ProbeConfig, TrainConfig
from vit.model import ViT

# part of the name of a metric that MLflow takes, which may have 250 characters in all
METRIC_NAME = re.compile(r"[\w.\- :]{1,200}")
# big_vision's strength of the ridge, and a constant feature: its size all but exempts the bias
L2, BIAS = 2.0**10, 100.0
# test images that are compared with all training images at once
KNN_ROWS = 1024


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
) -> dict[str, float]:
    """Accuracies of all probes, on rank 0; each worker computes its share of the features.

    `tick` is called after every batch.

    Returns:
        probe/NAME/5shot (mean over the seeds), probe/NAME/5shot-seed-0, ..., probe/NAME/knn.
    """
    settings, accuracies = config.probe, {}
    for probe in probes:
        train, train_labels = features(model, config, probe.train, feed, tick)
        test, test_labels = features(model, config, probe.eval, feed, tick)
        if feed.rank:
            continue
        prefix, classes = f"probe/{probe.name}", len(probe.train.classes)
        data = (
            *(train.double().cpu().numpy(), train_labels[:, 0].cpu().numpy()),
            *(test.double().cpu().numpy(), test_labels.cpu().numpy()),
        )
        for shots in settings.shots:
            name = f"{prefix}/{shots}shot"
            scores = [few_shot(*data, classes, shots, seed) for seed in range(settings.seeds)]
            accuracies[name] = float(np.mean(scores))
            accuracies |= {f"{name}-seed-{seed}": score for seed, score in enumerate(scores)}
        if settings.neighbours:
            accuracies[f"{prefix}/knn"] = knn(
                *(train, train_labels[:, 0], test, test_labels, classes),
                neighbours=settings.neighbours,
                temperature=settings.temperature,
            )
    return accuracies


def features(
    model: ViT, config: TrainConfig, dataset: Dataset, feed: NodeFeed, tick: Callable[[], None]
) -> tuple[Tensor, Tensor]:
    """Features (n, D) float32 and labels (n, M) of all images in order, on every worker."""
    # decode | resize(256) without keeping the aspect | central_crop(224)
    images = {"eval_resize": "squash", "crop_pct": 0.875, "eval_interpolation": "area"}
    settings = center_crop_settings(config).replace({f"images.{k}": v for k, v in images.items()})
    evaluator = Evaluator(dataset=dataset, settings=settings)
    forward = Forward(model, settings, features=True)
    device = forward.device
    # rows without images give width and type to a worker without batches
    rows = [torch.empty(0, config.model.width, device=device)]
    labels = [torch.empty(0, 1, dtype=torch.int64, device=device)]
    with evaluating(model, config, dataset, feed) as share:
        for columns in evaluator.batches(feed, share, device):
            rows.append(forward(columns["images"][:, 0]))
            labels.append(columns["labels"])
            tick()
    # the workers take turns, so their rows are not in the order of the images
    taken = [
        [n for start, stop in worker.batches for n in range(start, stop)]
        for worker in (
            EvalShare.of_worker(feed, rank, dataset.samples, config.eval_batch)
            for rank in range(feed.world_size)
        )
    ]
    order = torch.tensor(np.argsort(np.concatenate(taken)), device=device)
    sizes = list(map(len, taken))
    return gathered(rows, sizes)[order], gathered(labels, sizes)[order]


def gathered(parts: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
    """The rows of all workers in the order of the ranks, padded with -1 to the widest."""
    widest = torch.tensor(max(part.shape[1] for part in parts), device=parts[0].device)
    if len(sizes) > 1:
        torch.distributed.all_reduce(widest, torch.distributed.ReduceOp.MAX)
    width = int(widest)
    padded = [F.pad(part, (0, width - part.shape[1]), value=-1) for part in parts]
    filler = parts[0].new_full((max(sizes) - sum(map(len, parts)), width), -1)
    local = torch.cat([*padded, filler])
    if len(sizes) == 1:
        return local
    gathered_rows = [torch.empty_like(local) for _ in sizes]
    torch.distributed.all_gather(gathered_rows, local)
    return torch.cat([rows[:size] for rows, size in zip(gathered_rows, sizes, strict=True)])


def draw_shots(labels: np.ndarray, classes: int, shots: int, seed: int) -> np.ndarray:
    """Rows of the training images of a few-shot run, drawn as big_vision draws them.

    One generator permutes the images of each class, class after class; the first `shots` of each
    class are taken. So fewer shots are a subset of more shots.
    """
    random = np.random.default_rng(seed)
    drawn = [random.permutation(np.where(labels == number)[0])[:shots] for number in range(classes)]
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
    """Top-1 of a linear regression to -1 and 1 on a few images of each class.

    `shots` images per class are drawn by `seed` from the features `train` (n, D), whose labels are
    (n,). The test set is `test` (m, D) with labels (m, M); any class of an image is a hit.
    """
    rows = draw_shots(train_labels, classes, shots, seed)
    weights, mean, std = regression(train[rows], train_labels[rows], classes)
    scores = with_bias((test - mean) / std) @ weights
    return float((scores.argmax(1)[:, None] == test_labels).any(1).mean())


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
) -> float:
    """Top-1 of a weighted vote of the nearest training images (Wu et al., arXiv 1805.01978).

    The vote of a neighbour is exp(cosine similarity / temperature).
    """
    train, right = F.normalize(train, dim=1), 0
    count = min(neighbours, len(train))
    for first in range(0, len(test), KNN_ROWS):
        rows = F.normalize(test[first : first + KNN_ROWS], dim=1)
        similarity, nearest = (rows @ train.T).topk(count)
        votes = torch.zeros(len(rows), classes, device=rows.device)
        votes.scatter_add_(1, train_labels[nearest], (similarity / temperature).exp())
        labels = test_labels[first : first + KNN_ROWS]
        right += int((votes.argmax(1)[:, None] == labels).any(1).sum())
    return right / len(test)
