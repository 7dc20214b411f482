"""Few-shot linear regression on features: big_vision's `evaluators/fewshot_lsr.py`.

    features, labels -> a few images of each class -> ridge to -1 and 1 -> top-1 on the test images

The settings are those of its `configs/common_fewshot.py`: l2 = 1024, seeds 0, 1, 2, shots 1, 5, 10,
25.

Shapes: n training and m test images, D width of the features, C classes, M labels per image
(padded with -1).
"""

from itertools import pairwise

import numpy as np
import torch

# strength of the ridge, and a constant feature: its size all but exempts the bias
L2, BIAS = 2.0**10, 100.0
# test images that are classified at once
TEST_ROWS = 1024


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
    if len(x) >= x.shape[1]:
        eigenvalues, q = np.linalg.eigh(x.T @ x)
        left, right = q, q.T @ times_targets(x, labels, classes)
    else:
        eigenvalues, q = np.linalg.eigh(x @ x.T)
        left, right = x.T @ q, times_targets(q, labels, classes)
    return (left / (eigenvalues + L2)) @ right, mean, std


def times_targets(x: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """x.T @ y for rows x (n, K) and targets y (n, C), 1 of the own class and -1 elsewhere: (K, C).

    From the sums over each class: 25 images of each of 21,843 classes have 95 GB of targets.
    """
    sums = torch.zeros(classes, x.shape[1], dtype=torch.float64)
    sums.index_add_(0, torch.from_numpy(labels), torch.from_numpy(x))
    return 2 * sums.numpy().T - x.sum(0)[:, None]


def with_bias(x: np.ndarray) -> np.ndarray:
    """The features with a constant one appended: (n, D) -> (n, D + 1)."""
    return np.pad(x, ((0, 0), (0, 1)), constant_values=BIAS)
