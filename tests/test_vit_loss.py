"""Losses against their formulas, and the semantic softmax against Alibaba's own code."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from vit.config import LossConfig
from vit.loss import (
    LINKS,
    class_ancestors,
    make_loss,
    make_targets,
    normalised,
    sigmoid_loss,
    softmax_loss,
)

# what Alibaba's own code made of a small tree; `source` in the file says how
ALIBABA = np.load(Path(__file__).parent / "data" / "semantic_loss.npz")


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


@pytest.mark.parametrize("smoothing", [0.1, 0.4])
def test_sigmoid_smoothing_spreads_a_share_of_the_target_over_all_classes(smoothing):
    # 3 classes with the target 1, 0, 0: each gets smoothing / 3
    x = torch.tensor([[2.0, -1.0, 0.5]])
    loss = make_loss(LossConfig(name="sigmoid", label_smoothing=smoothing))(x, torch.eye(3)[:1])
    wanted = (1 - smoothing + smoothing / 3, smoothing / 3, smoothing / 3)
    entropies = [
        -t * math.log(1 / (1 + math.exp(-z))) - (1 - t) * math.log(1 / (1 + math.exp(z)))
        for t, z in zip(wanted, x[0].tolist(), strict=True)
    ]
    assert loss.item() == pytest.approx(sum(entropies), rel=1e-6)


@pytest.mark.parametrize("function", [softmax_loss, sigmoid_loss])
def test_smoothing_is_off_by_default(function):
    x, targets = logits(), make_targets(torch.tensor([[1], [0], [2], [5]]), 6)
    torch.testing.assert_close(function(x, targets), function(x, targets, 0.0), rtol=0, atol=0)
    assert (function(x, targets) - function(x, targets, 0.1)).abs().min() > 0.01


def test_targets_are_float32_on_the_device_of_their_labels():
    targets = make_targets(torch.zeros(2, 1, dtype=torch.int64, device="meta"), 5)
    assert targets.device.type == "meta" and targets.dtype == torch.float32


def test_a_row_of_several_labels_has_the_sum_1_and_a_row_of_none_stays_0():
    rows = normalised(torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.3, 0.0, 0.7]]))
    assert rows.tolist() == torch.tensor([[0.5, 0.5, 0], [0, 0, 0], [0.3, 0, 0.7]]).tolist()


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


@pytest.mark.parametrize(
    "name, mean_of", [("softmax", lambda x: x.softmax(-1)), ("sigmoid", torch.sigmoid)]
)
def test_a_link_averages_the_probabilities_of_the_crops(name, mean_of):
    crops = torch.stack([logits(4, 6), logits(4, 6).flip(0), logits(4, 6) / 2], 1)  # (4, 3, 6)
    mean = LINKS[name].mean(crops)
    torch.testing.assert_close(mean_of(mean), mean_of(crops).mean(1))
    if name == "softmax":
        torch.testing.assert_close(mean.exp(), mean_of(crops).mean(1))
    torch.testing.assert_close(LINKS[name].confidence(mean), mean_of(crops).mean(1).amax(1))


# --------------------------------------------------------------------- semantic

#       0   1          roots, and 9 alone
#      / \   \
#     2   3   4
#    / \      |
#   5   6     7
#   |
#   8
PARENTS = [-1, -1, 0, 0, 1, 2, 2, 4, 5, -1]


@pytest.mark.parametrize("row, smoothing", [*enumerate(ALIBABA["smoothing"].tolist())])
def test_semantic_loss_is_what_alibabas_code_makes(row, smoothing):
    parents, x = ALIBABA["parents"].tolist(), torch.from_numpy(ALIBABA["logits"])
    targets = make_targets(torch.from_numpy(ALIBABA["labels"])[:, None], len(parents))
    config = LossConfig(name="semantic", label_smoothing=smoothing)
    loss = make_loss(config, parents=parents)(x, targets)
    np.testing.assert_allclose(loss.numpy(), ALIBABA["loss"][row], rtol=2e-6)


def test_levels_weigh_by_the_classes_at_or_below_them_at_most_20():
    # 69 classes: 6 roots, then 20, 30, 10, 2 and 1; the deepest level has no term
    loss = make_loss(LossConfig(name="semantic"), parents=ALIBABA["parents"].tolist())
    assert loss.weights == pytest.approx([1, 69 / 63, 69 / 43, 69 / 13, 20])


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_a_level_of_one_class_has_no_term(smoothing):
    # roots 0 and 1; 2 below 0; 3 and 4 below 2; 5 below 3
    parents, x = [-1, -1, 0, 2, 2, 3], logits(1, 6)
    config = LossConfig(name="semantic", label_smoothing=smoothing)
    loss = make_loss(config, parents=parents)(x, make_targets(torch.tensor([[5]]), 6))
    roots, twos = x[0, :2].log_softmax(0), x[0, 3:5].log_softmax(0)
    terms = [(1 - smoothing) * row[0] + smoothing * row.mean() for row in (roots, twos)]
    assert loss.item() == pytest.approx(-(terms[0] + 6 / 3 * terms[1]).item(), rel=1e-5)


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


def test_parents_in_a_circle_and_unknown_ones_are_refused():
    with pytest.raises(ValueError, match=r"not a tree: class 0 has the ancestors \[1, 2\] and 0"):
        class_ancestors([1, 2, 0])
    with pytest.raises(ValueError, match=r"not a tree: class 1 has the ancestors \[\] and 2"):
        class_ancestors([-1, 2])


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
