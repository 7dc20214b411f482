"""Metrics of an evaluation from the predictions for each image; NumPy only.

    Predictions (labels, top-5, confidence, loss of every image) -> accuracy with intervals, loss,
    calibration, classes, confusions, ReaL; two protocols -> what changed

An image with several classes is a hit if any of them is predicted. An image that could not be read
has no prediction: it counts as wrong, and takes no part in loss, calibration and confusions.

Shapes: n images, M labels per image (padded with -1), T ranked predictions (padded with -2), K
classes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.evaluation.intervals import bounded, normal, sign_test, tango, wilson

ECE_BINS = 15


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Predictions of one model under one crop protocol, by position in the split."""

    labels: np.ndarray
    """(n, M) int64: class numbers of each image."""
    top: np.ndarray
    """(n, T) int32: predicted class numbers, best first."""
    confidence: np.ndarray
    """(n,) float64: probability of the first prediction."""
    loss: np.ndarray
    """(n,) float64; NaN for an image that was not read, or if the model has none of its classes."""

    @property
    def answered(self) -> np.ndarray:
        """Which images have a prediction, because they could be read: (n,) bool."""
        return self.top[:, 0] >= 0

    def hits(self, k: int) -> np.ndarray:
        """Whether any label is among the first k predictions: (n,) bool."""
        return (self.top[:, :k, None] == self.labels[:, None, :]).any((1, 2))


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric of an evaluation: the mean of one value per image."""

    title: str
    values: Callable[[Predictions], np.ndarray]
    """Predictions -> (n,) numbers; NaN leaves an image out of the mean."""
    higher_is_better: bool
    is_share: bool = False
    """Whether each value is 0 or 1, which makes the mean a share of the images."""


METRICS = {
    "loss": Metric(title="loss", values=lambda p: p.loss, higher_is_better=False),
    "top1": Metric(title="top-1", values=lambda p: p.hits(1), higher_is_better=True, is_share=True),
    "top5": Metric(title="top-5", values=lambda p: p.hits(5), higher_is_better=True, is_share=True),
}
"""Add a metric here; training, evaluation, record, report and search then use it by its name."""

FIGURES = {
    "ece": "ECE",
    "mean_per_class": "mean per class",
    "head": "head",
    "middle": "middle",
    "tail": "tail",
    "top1_or_above": "top-1, ancestors count",
    "lca_height": "height of mistakes",
}
"""Figures of a protocol that are no means over its images, by their names in a result, with their
titles; some may be missing. All but `ece` are of `pipeline.evaluation.class_figures`."""


def summary(predictions: Predictions) -> dict[str, float]:
    """Each metric of one protocol with its 95 % interval: NAME, NAME_low, NAME_high.

    Shares have Wilson's interval; other means have that of a normal distribution.
    """
    figures: dict[str, float] = {"images": len(predictions.top)}
    for name, metric in METRICS.items():
        values = np.asarray(metric.values(predictions), np.float64)
        values = values[~np.isnan(values)]
        if not len(values):
            continue
        mean, low, high = normal(values)
        if metric.is_share:
            low, high = wilson(round(math.fsum(values)), len(values))
        figures |= bounded(name, mean, low, high)
    return figures | {"ece": calibration_error(predictions)}


def calibration(predictions: Predictions) -> list[tuple[int, float, float]]:
    """(images, mean confidence, accuracy) of each of 15 equal bins of confidence."""
    bins = np.ceil(predictions.confidence * ECE_BINS).astype(int).clip(1, ECE_BINS) - 1
    bins[~predictions.answered] = -1
    columns, rows = (predictions.confidence, predictions.hits(1)), []
    for number in range(ECE_BINS):
        inside = bins == number
        count = int(inside.sum())
        confidence, accuracy = (float(x[inside].mean()) if count else 0.0 for x in columns)
        rows.append((count, confidence, accuracy))
    return rows


def calibration_error(predictions: Predictions) -> float:
    """Expected calibration error (Guo et al. 2017, 15 bins): mean |confidence - accuracy|."""
    rows = calibration(predictions)
    errors = sum(count * abs(confidence - accuracy) for count, confidence, accuracy in rows)
    return errors / max(sum(count for count, _, _ in rows), 1)


def per_class(predictions: Predictions, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Images of each class, and how many of them are hits: (K,) and (K,).

    An image with several classes counts for each of them, and is a hit for the predicted one.
    """
    rows, columns = np.nonzero(predictions.labels >= 0)
    labels = predictions.labels[rows, columns]
    hits = labels[predictions.top[rows, 0] == labels]
    return np.bincount(labels, minlength=num_classes), np.bincount(hits, minlength=num_classes)


def confusions(predictions: Predictions, most: int = 20) -> list[tuple[int, int, int]]:
    """The most confused pairs: (class, prediction, images), most frequent first.

    A wrong image with several classes counts for the first of them.
    """
    wrong = predictions.answered & ~predictions.hits(1)
    pairs = np.stack([predictions.labels[wrong, 0], predictions.top[wrong, 0]], axis=1)
    pairs, counts = np.unique(pairs, axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:most]  # np.unique sorts the pairs
    return [(*pairs[i].tolist(), int(counts[i])) for i in order]


def comparison(before: Predictions, after: Predictions) -> dict[str, float]:
    """How top-1 changed from one protocol to another on the same images.

    Returns:
        gained: images that became right; lost: images that became wrong; gain: the difference in
        top-1 with Tango's paired 95 % interval; p: exact two-sided McNemar test, the probability
        of so uneven a split if both protocols were equally good.
    """
    first, second = before.hits(1), after.hits(1)
    gained, lost = int((second & ~first).sum()), int((first & ~second).sum())
    low, high = tango(gained, lost, len(first))
    return {
        "gained": gained,
        "lost": lost,
        "gain": (gained - lost) / len(first),
        "gain_low": low,
        "gain_high": high,
        "p": sign_test(min(gained, lost), gained + lost),
    }


def relabelled(predictions: Predictions, labels: Mapping[int, Sequence[int]]) -> Predictions:
    """The predictions compared with other labels, such as ReaL's; the loss is NaN.

    `labels` are class numbers by position; images that are absent or have no class are left out.
    """
    rows = np.array([i for i in range(len(predictions.top)) if labels.get(i)], np.int64)
    width = max((len(labels[i]) for i in rows), default=1)
    padded = np.full((len(rows), width), -1, np.int64)
    for padded_row, i in zip(padded, rows, strict=True):
        padded_row[: len(labels[i])] = labels[i]
    return Predictions(
        labels=padded,
        top=predictions.top[rows],
        confidence=predictions.confidence[rows],
        loss=np.full(len(rows), np.nan),
    )
