"""Logistic regression of a linear probe: scikit-learn's solution, and a search of its strength."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression

from pipeline.evaluation import logistic
from pipeline.evaluation.logistic import Rows, minimum, search

CPU = torch.device("cpu")
K, D, N = 5, 16, 400

pytestmark = pytest.mark.usefixtures("one_thread")


def data(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features (N, D) that overlap, and labels (N,)."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, K, N)
    centres = np.random.default_rng(9).normal(0, 1, (K, D))
    return (2 + centres[labels] + random.normal(0, 1.5, (N, D))).astype(np.float32), labels


def rows_of(x: np.ndarray, labels: np.ndarray, unit: int = 90, held: int = 7) -> Rows:
    """The rows in units of a store, every `held`th of them held out."""
    labels = labels.reshape(len(x), -1)
    units = [
        {"features": x[p], "labels": labels[p], "position": p}
        for p in np.split(np.arange(len(x)), range(unit, len(x), unit))
    ]
    return Rows.of(units, np.arange(len(x)) % held == 0, K, CPU)


def zeros() -> torch.Tensor:
    return torch.zeros(K, D + 1, dtype=torch.float64)


def centred(head: np.ndarray) -> np.ndarray:
    """The head with the mean of the biases taken off, which no softmax shows."""
    head = head.copy()
    head[:, -1] -= head[:, -1].mean()
    return head


def reference(x, labels, strength, weights=None) -> np.ndarray:
    """The head of scikit-learn, in float64."""
    model = LogisticRegression(C=1 / strength, max_iter=20_000, tol=1e-10)
    model.fit(x.astype(np.float64), labels, weights)
    return centred(np.c_[model.coef_, model.intercept_])


@pytest.mark.parametrize("strength", [1e3, 10.0, 0.1])
def test_head_is_that_of_scikit_learn(strength):
    x, labels = data()
    head, fit = minimum(rows_of(x, labels), strength, zeros(), whole=True)
    expected = reference(x, labels, strength)
    np.testing.assert_allclose(centred(head.numpy()), expected, atol=1e-3 * np.abs(expected).max())
    assert fit.gradient <= 1e-6 and fit.iterations < logistic.ITERATIONS


def test_what_is_held_out_takes_no_part_in_the_fit():
    x, labels = data()
    kept = np.arange(N) % 7 > 0
    head, _ = minimum(rows_of(x, labels), 1.0, zeros(), whole=False)
    expected = reference(x[kept], labels[kept], 1.0)
    np.testing.assert_allclose(centred(head.numpy()), expected, atol=1e-3 * np.abs(expected).max())


def test_an_image_of_two_classes_counts_half_for_each():
    x, labels = data()
    second = np.where(np.arange(N) % 3, -1, (labels + 1) % K)
    head, _ = minimum(rows_of(x, np.c_[labels, second]), 1.0, zeros(), whole=True)
    both = second >= 0
    share = np.r_[np.where(both, 0.5, 1.0), np.full(both.sum(), 0.5)]
    expected = reference(np.r_[x, x[both]], np.r_[labels, second[both]], 1.0, share)
    np.testing.assert_allclose(centred(head.numpy()), expected, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize("chunk", [1, 37 * K, logistic.CHUNK])
def test_loss_and_gradient_are_those_of_autograd_in_chunks_of_any_size(chunk, monkeypatch):
    monkeypatch.setattr(logistic, "CHUNK", chunk)
    x, labels = data()
    head = torch.randn(K, D + 1, generator=torch.Generator().manual_seed(0)).double() / 4
    loss, gradient = rows_of(x, labels).loss(head, whole=True)
    exact = head.clone().requires_grad_()
    scores = F.linear(torch.from_numpy(x).double(), exact[:, :-1], exact[:, -1])
    expected = F.cross_entropy(scores, torch.from_numpy(labels), reduction="sum")
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(gradient, exact.grad)


def test_scores_are_those_of_the_held_out_images_alone():
    x, labels = data()
    head = torch.randn(K, D + 1, generator=torch.Generator().manual_seed(1)).double()
    top1, loss = rows_of(x, labels).held_out_scores(head)
    held = np.arange(N) % 7 == 0
    scores = x[held].astype(np.float64) @ head[:, :-1].numpy().T + head[:, -1].numpy()
    assert top1 == pytest.approx((scores.argmax(1) == labels[held]).mean())
    expected = F.cross_entropy(torch.from_numpy(scores), torch.from_numpy(labels[held]))
    assert loss == pytest.approx(expected.item(), rel=1e-5)


@pytest.fixture(scope="module")
def searched():
    """All fits of a search, and the data."""
    x, labels = data(1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    fits = list(search(rows_of(x, labels)))
    torch.set_num_threads(threads)
    return x, labels, fits


def test_the_search_begins_with_seven_strengths_and_ends_with_eight_a_decade(searched):
    *tried, last = searched[2]
    strengths = [fit.strength for fit in tried]
    expected = [1e6, 1e4, 1e2, 1.0, 1e-2, 1e-4, 1e-6]
    assert strengths[:7] == pytest.approx(expected)
    assert 11 <= len(strengths) <= 15 and len(set(strengths)) == len(strengths)
    eighths = 8 * np.log10(np.array(strengths) / last.strength)
    np.testing.assert_allclose(eighths, eighths.round(), atol=1e-6)
    assert {-1, 0, 1} <= set(eighths.round())  # those beside the best were tried


def test_the_best_held_out_accuracy_selects(searched):
    *tried, last = searched[2]
    best = max(tried, key=lambda fit: (fit.top1, -fit.loss, fit.strength))
    assert last.strength == best.strength
    assert last.head is not None and all(fit.head is None for fit in tried)


def test_the_selected_strength_is_fitted_to_all_images(searched):
    x, labels, (*_, last) = searched
    expected = reference(x, labels, last.strength)
    np.testing.assert_allclose(centred(last.head), expected, atol=1e-3 * np.abs(expected).max())


def test_features_that_are_not_finite_are_an_error():
    x, labels = data()
    x[3, 2] = np.nan
    with pytest.raises(FloatingPointError, match="strength 1.0 is nan"):
        minimum(rows_of(x, labels), 1.0, zeros(), whole=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_finds_the_same_head():
    x, labels = data()
    unit = {"features": x, "labels": labels[:, None], "position": np.arange(N)}
    rows = Rows.of([unit], np.arange(N) % 7 == 0, K, torch.device("cuda"))
    assert rows.pieces[0][0].is_cuda
    head, _ = minimum(rows, 1.0, zeros().cuda(), whole=True)
    expected, _ = minimum(rows_of(x, labels), 1.0, zeros(), whole=True)
    torch.testing.assert_close(head.cpu(), expected, rtol=1e-4, atol=1e-4)
