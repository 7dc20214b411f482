"""Losses against their formulas, and the semantic softmax against the loops it replaces."""

import math

import numpy as np
import pytest
import torch

from vit.config import LossConfig
from vit.loss import class_ancestors, make_loss, make_targets


def logits(rows=4, classes=6):
    return torch.randn(rows, classes, generator=torch.Generator().manual_seed(0)) * 3


def test_targets_take_padded_class_numbers():
    labels = torch.tensor([[0, -1], [2, 4], [-1, -1], [4, 4]])
    expected = [[1, 0, 0, 0, 0], [0, 0, 1, 0, 1], [0, 0, 0, 0, 0], [0, 0, 0, 0, 1]]
    assert make_targets(labels, 5).tolist() == expected


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_softmax_loss_is_cross_entropy(smoothing):
    x, labels = logits(), torch.tensor([3, 0, 5, 3])
    loss = make_loss(LossConfig(label_smoothing=smoothing))(x, make_targets(labels[:, None], 6))
    expected = torch.nn.functional.cross_entropy(
        x, labels, label_smoothing=smoothing, reduction="none"
    )
    torch.testing.assert_close(loss, expected)


def test_softmax_spreads_several_labels_evenly_and_ignores_rows_of_none():
    x = logits()
    targets = make_targets(torch.tensor([[1, 2], [0, -1], [-1, -1], [5, 4]]), 6)
    for smoothing in (0.0, 0.2):
        loss = make_loss(LossConfig(label_smoothing=smoothing))(x, targets)
        log_p = x.double().log_softmax(1)
        even = -(log_p[0, 1] + log_p[0, 2]) / 2
        assert loss[0].item() == pytest.approx(
            ((1 - smoothing) * even - smoothing * log_p[0].mean()).item(), rel=1e-5
        )
        assert loss[2] == 0


def test_sigmoid_loss_is_the_sum_over_classes():
    x, targets = logits(), make_targets(torch.tensor([[1, 2], [0, -1], [-1, -1], [5, 4]]), 6)
    loss = make_loss(LossConfig(name="sigmoid"))(x, targets)
    p = x.double().sigmoid()
    expected = -(targets * p.log() + (1 - targets) * (1 - p).log()).sum(1)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    assert loss.shape == (4,)


@pytest.mark.parametrize("name", ["softmax", "sigmoid"])
def test_losses_are_finite_float32_for_extreme_bfloat16_logits(name):
    x = torch.tensor([[300.0, -300.0, 0.0]], dtype=torch.bfloat16, requires_grad=True)
    loss = make_loss(LossConfig(name=name))(x, make_targets(torch.tensor([[1]]), 3))
    loss.sum().backward()
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(600.7, rel=2e-3)
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("name", ["softmax", "sigmoid"])
def test_mixed_targets_give_the_mixed_loss(name):
    x, loss = logits(1), make_loss(LossConfig(name=name))
    one, two = (make_targets(torch.tensor([[c]]), 6) for c in (1, 4))
    mixed = loss(x, 0.3 * one + 0.7 * two)
    torch.testing.assert_close(mixed, 0.3 * loss(x, one) + 0.7 * loss(x, two))


# --------------------------------------------------------------------- semantic

#       0   1          roots, and 9 alone
#      / \   \
#     2   3   4
#    / \      |
#   5   6     7
#   |
#   8
PARENTS = [-1, -1, 0, 0, 1, 2, 2, 4, 5, -1]


def alibaba_loss(x, label, smoothing):
    """The original, with its loops over levels and ancestors, for one image."""
    lists = []
    for number in range(len(PARENTS)):
        line = [number]
        while PARENTS[line[-1]] >= 0:
            line.append(PARENTS[line[-1]])
        lists.append(line)
    depths = np.array([len(line) - 1 for line in lists])
    histogram = np.bincount(depths)
    weights = [min(histogram.sum() / histogram[d:].sum(), 20.0) for d in range(len(histogram))]
    total = 0.0
    for depth in range(depths.max()):
        classes = np.flatnonzero(depths == depth)
        own = [c for c in lists[label] if depths[c] == depth]
        if len(classes) < 2 or not own:
            continue
        z = x[classes]
        log_p = z - z.max() - np.log(np.exp(z - z.max()).sum())
        target = (classes == own[0]) * (1 - smoothing) + smoothing / len(classes)
        total -= weights[depth] * (target * log_p).sum()
    return total


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_semantic_loss_equals_the_original_loops(smoothing):
    x = logits(len(PARENTS), len(PARENTS))
    labels = torch.arange(len(PARENTS))[:, None]
    config = LossConfig(name="semantic", label_smoothing=smoothing)
    loss = make_loss(config, parents=PARENTS)(x, make_targets(labels, len(PARENTS)))
    expected = [alibaba_loss(x[i].double().numpy(), i, smoothing) for i in range(len(PARENTS))]
    np.testing.assert_allclose(loss.numpy(), expected, rtol=1e-5)


def test_semantic_loss_shares_several_labels():
    x = logits(1, len(PARENTS))
    loss = make_loss(LossConfig(name="semantic", label_smoothing=0.1), parents=PARENTS)
    both = loss(x, make_targets(torch.tensor([[3, 7]]), len(PARENTS)))
    alone = [loss(x, make_targets(torch.tensor([[c]]), len(PARENTS))) for c in (3, 7)]
    torch.testing.assert_close(both, (alone[0] + alone[1]) / 2)


def test_semantic_loss_compiles_and_trains():
    loss = make_loss(LossConfig(name="semantic"), parents=PARENTS)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    x = logits(3, len(PARENTS)).requires_grad_()
    targets = make_targets(torch.tensor([[5], [9], [2]]), len(PARENTS))
    compiled(x, targets).sum().backward()
    assert x.grad.isfinite().all() and x.grad.any(1).all()
    torch.testing.assert_close(compiled(x, targets), loss(x, targets))


def test_semantic_loss_needs_a_tree():
    with pytest.raises(ValueError, match="pass parents"):
        make_loss(LossConfig(name="semantic"))
    with pytest.raises(ValueError, match="without such a tree use the softmax loss"):
        make_loss(LossConfig(name="semantic"), parents=[-1, -1, -1])
    with pytest.raises(ValueError, match=r"label_smoothing \(1.0\)"):
        LossConfig(label_smoothing=1.0)


# ---------------------------------------------------------------------- the tree of classes


def test_parents_in_a_circle_are_refused():
    with pytest.raises(ValueError, match="not a tree"):
        class_ancestors([1, 0])


def test_ancestors_stand_at_their_depth():
    table = class_ancestors(PARENTS)
    assert table.shape == (10, 4)
    assert table[8].tolist() == [0, 2, 5, 8] and table[9].tolist() == [9, -1, -1, -1]


def test_table_of_twenty_thousand_classes_is_quick():
    parents = [-1] + [(i - 1) // 3 for i in range(1, 21_843)]
    loss = make_loss(LossConfig(name="semantic"), parents=parents)
    value = loss(torch.zeros(2, 21_843), make_targets(torch.tensor([[0], [21_842]]), 21_843))
    levels = range(1, math.ceil(math.log(21_843 * 2 + 1, 3)) - 1)
    assert value.isfinite().all() and value[1] > len(levels)
