"""What the features of a model in training are worth on other data: few-shot regression and kNN.

    shard set -> squashed to a square, centre -> features (what the head reads) -> few_shot, knn

The few-shot linear regression is big_vision's `evaluators/fewshot_lsr.py` with the settings of
`configs/common_fewshot.py`: l2 = 1024, seeds 0, 1, 2, shots 1, 5, 10, 25.

Shapes: n training and m test images, D width of the features, C classes, M labels per image
(padded with -1).
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor

from pipeline.data.dataset import Dataset
from pipeline.data.order import RankShare
from pipeline.evaluation.config import CENTER, EvaluateConfig
from pipeline.evaluation.predict import Evaluator, keep_step
from pipeline.settings.config import ProbeConfig, TrainConfig
from vit.batch import normalise
from vit.model import ViT

# big_vision's: the strength of the ridge, and a feature that makes the bias almost unregularised
L2, BIAS = 2.0**10, 100.0
# rows of test images that are compared with all training images at once
KNN_ROWS = 1024


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One shard set to probe on."""

    name: str
    train: Dataset
    eval: Dataset

    @classmethod
    def open_all(cls, config: ProbeConfig) -> "tuple[Probe, ...]":
        """The probes of a run; data that is not there is a FileNotFoundError."""
        found = []
        for location in config.data:
            path = Path(location)
            found.append(
                cls(
                    name=path.parent.name if path.name == "shards" else path.name,
                    train=Dataset.open((location,), config.train_split, 32),
                    eval=Dataset.open((location,), config.eval_split, 32),
                )
            )
        names = [probe.name for probe in found]
        if len(set(names)) < len(names):
            raise ValueError(
                f"probe.data {config.data} has two sets of one name; rename a folder: the name is "
                f"that of the metric"
            )
        return tuple(found)


def probe_share(
    model: ViT, config: TrainConfig, probes: Sequence[Probe], rank: int, world_size: int
) -> dict[str, float]:
    """Accuracies of all probes, on rank 0; each worker computes its share of the features.

    Returns:
        probe/NAME/5shot (mean over the seeds), probe/NAME/5shot-seed-0, ..., probe/NAME/knn.
    """
    settings, found = config.probe, {}
    for probe in probes:
        train, train_labels = features(model, config, probe.train, rank, world_size)
        test, test_labels = features(model, config, probe.eval, rank, world_size)
        if rank:
            continue
        prefix, classes = f"probe/{probe.name}", len(probe.train.classes)
        data = [t.double().cpu().numpy() for t in (train, test)]
        labels = [t.cpu().numpy() for t in (train_labels, test_labels)]
        for shots in settings.shots:
            scores = [
                few_shot(data[0], labels[0][:, 0], data[1], labels[1], classes, shots, seed)
                for seed in range(settings.seeds)
            ]
            found[f"{prefix}/{shots}shot"] = float(np.mean(scores))
            found |= {f"{prefix}/{shots}shot-seed-{i}": score for i, score in enumerate(scores)}
        if settings.neighbours:
            found[f"{prefix}/knn"] = knn(
                *(train, train_labels[:, 0], test, test_labels, classes),
                neighbours=settings.neighbours,
                temperature=settings.temperature,
            )
    return found


def features(
    model: ViT, config: TrainConfig, dataset: Dataset, rank: int, world_size: int
) -> tuple[Tensor, Tensor]:
    """Features (n, D) float32 and labels (n, M) of all images in order, on every worker."""
    settings = EvaluateConfig(
        data="",
        crops=(CENTER,),
        batch=config.micro_batch,
        precision=config.precision,
        model=config.model,
        # decode | resize(256) without keeping the aspect | central_crop(224)
        images=dataclasses.replace(
            config.images, eval_resize="squash", crop_pct=0.875, eval_interpolation="area"
        ),
    )
    shares = [RankShare.of(r, world_size, dataset.samples) for r in range(world_size)]
    own, device = shares[rank], next(model.parameters()).device
    rows, labels = [], []
    model.eval()
    with torch.no_grad():
        spans = [(own.low, own.high)] if own.size else []
        evaluator = Evaluator(dataset=dataset, settings=settings)
        for _, images, given in evaluator.batches(spans, device):
            with torch.autocast(device.type, torch.bfloat16, config.precision == "bf16"):
                rows.append(model.features(normalise(images[:, 0], settings.images)).float())
            labels.append(given)
        keep_step(model, config, [share.size for share in shares], rank)
    model.train()
    width = config.model.width
    return (
        gathered(rows, [share.size for share in shares], width, torch.float32, device),
        gathered(labels, [share.size for share in shares], 1, torch.int64, device),
    )


def gathered(
    parts: Sequence[Tensor],
    sizes: Sequence[int],
    width: int,
    kind: torch.dtype,
    device: torch.device,
) -> Tensor:
    """The rows of all workers, in order of the ranks; narrower ones are padded with -1."""
    widest = torch.tensor(max([width, *(part.shape[1] for part in parts)]), device=device)
    if len(sizes) > 1:
        torch.distributed.all_reduce(widest, torch.distributed.ReduceOp.MAX)
    width = int(widest)
    own = torch.full((max(sizes), width), -1, dtype=kind, device=device)
    first = 0
    for part in parts:
        own[first : first + len(part), : part.shape[1]] = part
        first += len(part)
    if len(sizes) == 1:
        return own
    everyone = [torch.empty_like(own) for _ in sizes]
    torch.distributed.all_gather(everyone, own)
    return torch.cat([rows[:size] for rows, size in zip(everyone, sizes, strict=True)])


def draw_shots(labels: np.ndarray, classes: int, shots: int, seed: int) -> np.ndarray:
    """Rows of the few training images, as big_vision draws them.

    One generator over all classes: the images of each class are permuted, in order of the classes,
    and the first `shots` of each taken; so fewer shots are a part of more shots.
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

    Args:
        train: Features (n, D); the few are drawn from them.
        train_labels: (n,).
        test: Features (m, D).
        test_labels: (m, M); a hit on any of an image's classes counts.
        classes: C.
        shots: Images of each class; a class with fewer gives all.
        seed: Of the draw.
    """
    rows = draw_shots(train_labels, classes, shots, seed)
    weights, mean, std = regression(train[rows], train_labels[rows], classes)
    scores = with_bias((test - mean) / std) @ weights
    return float((scores.argmax(1)[:, None] == test_labels).any(1).mean())


def regression(
    x: np.ndarray, labels: np.ndarray, classes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights (D + 1, C) on whitened features, and their mean and deviation (1, D).

    The smaller of the two Gram matrices is decomposed, and the ridge added to its eigenvalues.
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
    """The features and a constant one: (n, D) -> (n, D + 1)."""
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
        own = test_labels[first : first + KNN_ROWS]
        right += int((votes.argmax(1)[:, None] == own).any(1).sum())
    return right / len(test)
