"""Probes: few-shot regression against an independent solution, shots as documented, kNN by hand."""

import dataclasses
import itertools
import math
import tracemalloc
from functools import partial
from types import SimpleNamespace

import numpy as np
import probe_ranks
import pytest
import torch
import torch.nn.functional as F
from processes import run_ranks

from pipeline.data.dataset import Dataset
from pipeline.data.feed import NodeFeed
from pipeline.evaluation.few_shot import draw_shots, few_shot, regression, times_targets
from pipeline.evaluation.probe import Probe, features, knn, nearest, num_parts, probe_share
from pipeline.evaluation.training_loop import evaluating
from pipeline.settings.config import ProbeConfig, TrainConfig
from pipeline.settings.presets import find_preset
from vit.model import ViT

CPU = torch.device("cpu")


def no_tick():
    """Nobody watches."""


def data(n: int, width: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, n)
    centres = np.random.default_rng(9).normal(0, 1, (classes, width))
    return centres[labels] + random.normal(0, 2, (n, width)), labels


@pytest.mark.parametrize("n", [300, 20])  # more images than features, and fewer
def test_regression_equals_an_independent_solution(n):
    x, labels = data(n, 32, 5)
    weights, mean, std = regression(x, labels, 5)
    # the ridge as more equations of an ordinary least-squares problem
    white = (x - x.mean(0)) / (np.sqrt(((x - x.mean(0)) ** 2).mean(0)) + 1e-5)
    white = np.concatenate([white, np.full((n, 1), 100.0)], axis=1)
    targets = np.where(labels[:, None] == np.arange(5), 1.0, -1.0)
    rows = np.concatenate([white, np.sqrt(1024.0) * np.eye(33)])
    goal = np.concatenate([targets, np.zeros((33, 5))])
    solution, *_ = np.linalg.lstsq(rows, goal, rcond=None)
    np.testing.assert_allclose(weights, solution, atol=1e-6)
    np.testing.assert_allclose(white @ weights[:33], white @ solution, atol=1e-6)
    np.testing.assert_allclose((mean[0], std[0]), (x.mean(0), x.std(0) + 1e-5), atol=1e-12)


def test_products_with_the_targets_need_no_targets():
    x, labels = data(50, 6, 4)
    labels[labels == 2] = 1  # a class without an image
    targets = 2.0 * (labels[:, None] == np.arange(4)) - 1
    np.testing.assert_allclose(times_targets(x, labels, 4), x.T @ targets, atol=1e-12)
    # the size of ImageNet-21k: the targets of 25 shots would be 95 GB, those of these images 9 GB
    x, labels = np.ones((50_000, 2)), np.arange(50_000) % 21_843
    tracemalloc.start()
    found = times_targets(x, labels, 21_843)
    assert tracemalloc.get_traced_memory()[1] < 100e6
    tracemalloc.stop()
    assert found[0, 0] == 2 * 3 - 50_000


def test_accuracy_is_the_share_of_test_images_that_it_gets_right():
    train, labels = data(300, 32, 5)
    test, test_labels = data(200, 32, 5, seed=1)
    found = few_shot(train, labels, test, test_labels[:, None], 5, shots=10, seed=2)
    rows = draw_shots(labels, 5, 10, 2)
    x, y = train[rows], 2.0 * np.eye(5)[labels[rows]] - 1
    mean, std = x.mean(0), x.std(0) + 1e-5
    a = np.c_[(x - mean) / std, np.full(50, 100.0)]
    w = np.linalg.solve(a.T @ a + 1024 * np.eye(33), a.T @ y)
    predicted = (np.c_[(test - mean) / std, np.full(200, 100.0)] @ w).argmax(1)
    assert found == pytest.approx((predicted == test_labels).mean(), abs=1e-6)
    assert found > 0.5


def test_shots_are_drawn_by_one_generator_through_the_classes():
    labels = np.array([1, 0, 1, 2, 0, 1, 0, 2, 2, 1])
    random = np.random.default_rng(7)
    expected = []
    for number in range(3):
        expected += random.permutation(np.flatnonzero(labels == number))[:2].tolist()
    assert draw_shots(labels, 3, 2, 7).tolist() == expected
    # written down: what NumPy's PCG64 draws for these labels and this seed
    assert draw_shots(labels, 3, 2, 7).tolist() == DRAWN
    few, many = draw_shots(labels, 3, 1, 7), draw_shots(labels, 3, 3, 7)
    assert set(few) < set(many)
    assert len(draw_shots(labels, 3, 25, 7)) == 10  # a class with fewer gives all


DRAWN = [1, 6, 9, 2, 3, 7]


def test_an_unreadable_image_is_never_drawn_and_never_right():
    train, labels = data(60, 8, 3)
    labels[::7] = -1
    assert (labels[draw_shots(labels, 3, 50, 0)] >= 0).all()
    test, test_labels = data(40, 8, 3, seed=1)
    whole = few_shot(train, labels, test, test_labels[:, None], 3, shots=5, seed=0)
    half = np.where(np.arange(40) < 20, test_labels, -1)[:, None]
    found = few_shot(train, labels, test, half, 3, shots=5, seed=0)
    first = few_shot(train, labels, test[:20], test_labels[:20, None], 3, shots=5, seed=0)
    assert found == first / 2 < whole


def test_rows_of_three_ranks_are_once_on_rank_0_and_all_ranks_act_alike(tmp_path):
    run_ranks(probe_ranks.main, str(tmp_path), count=3)
    peaks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(3)]
    whole = probe_ranks.ROWS * probe_ranks.WIDTH * 4
    # less than a copy beside what each holds, for the pieces of a round and what gloo needs
    assert whole < peaks[0] < 5 / 3 * whole
    assert max(peaks[1:]) < whole, peaks


def test_neighbours_vote_by_their_similarity():
    train = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 2.0], [-1.0, 0.0]])
    labels = torch.tensor([0, 0, 1, 1, 2])
    test = torch.tensor([[2.0, 0.1], [0.1, 1.0], [-3.0, 0.2], [1.0, 0.0]])
    given = torch.tensor([[0, -1], [2, 1], [0, -1], [1, -1]])
    settings = {"neighbours": 2, "temperature": 0.07, "device": CPU, "tick": no_tick}
    share = knn(train, labels, test, given, 3, **settings)
    assert share == 0.5  # the first two; -x is near class 2, and the last is no 1
    # cosine similarities 1 and 0.6 of two neighbours: one near outvotes two far only when cold
    train = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.6, -0.8]])
    for temperature, right in ((0.07, 1.0), (10.0, 0.0)):
        found = knn(
            *(train, torch.tensor([0, 1, 1]), torch.tensor([[1.0, 0.0]]), torch.tensor([[0]]), 2),
            **{**settings, "neighbours": 3, "temperature": temperature},
        )
        assert found == right


def test_neighbours_are_the_same_whatever_the_blocks_and_never_unreadable(monkeypatch):
    draw = torch.Generator().manual_seed(0)
    train, test = (torch.randn(n, 8, generator=draw) for n in (50, 21))
    labels = torch.randint(4, (50,), generator=draw)
    labels[[3, 20]] = -1
    cosine = F.normalize(test, dim=1) @ F.normalize(train[labels >= 0], dim=1).T
    similarity, places = cosine.topk(5)
    for blocks in ((1024, 1 << 16), (4, 7), (21, 3)):
        monkeypatch.setattr("pipeline.evaluation.probe.TEST_ROWS", blocks[0])
        monkeypatch.setattr("pipeline.evaluation.probe.TRAIN_ROWS", blocks[1])
        ticks = itertools.count()
        parts = nearest(train, labels, test, 5, CPU, partial(next, ticks))
        found, known = map(torch.cat, parts)
        torch.testing.assert_close(found, similarity)
        assert torch.equal(known, labels[labels >= 0][places])
        assert next(ticks) == math.ceil(50 / blocks[1])
    # fewer images than neighbours: the three that have a label vote, the fourth does not
    vote = torch.zeros(21, 4)
    for row in (0, 1, 2):
        vote[:, labels[row]] += (F.cosine_similarity(test, train[row : row + 1]) / 0.1).exp()
    few = knn(
        *(train[:4], labels[:4], test, vote.argmax(1)[:, None], 4),
        **{"neighbours": 9, "temperature": 0.1, "device": CPU, "tick": no_tick},
    )
    assert few == 1.0


def test_settings_of_probes_are_checked(tmp_path):
    assert ProbeConfig().data == () and Probe.open_all(ProbeConfig()) == ()
    with pytest.raises(ValueError, match=r"every \(0\)"):
        ProbeConfig(every=0)
    with pytest.raises(ValueError, match="temperature"):
        ProbeConfig(temperature=0.0)
    with pytest.raises(FileNotFoundError, match=r"manifest\.json"):
        Probe.open_all(ProbeConfig(data=(str(tmp_path),)))


@pytest.mark.ray
def test_a_model_is_probed_on_a_shard_set(digits, ray_cluster):
    config = find_preset("demo").replace(
        {"model.num_classes": 10, "model.depth": 1, "probe.data": (str(digits),)}
    )
    torch.manual_seed(0)
    model = ViT(config.model)
    probes = Probe.open_all(config.probe)
    feed = NodeFeed.alone()
    ticks = []
    found = probe_share(model, config, probes, feed, lambda: ticks.append(1), print)
    batches = sum(math.ceil(n / config.eval_batch) for n in (1437, 360))
    assert len(ticks) == batches + num_parts(config.probe, 1437) == batches + 4 * 3 + 1
    name = digits.parent.name
    assert {f"probe/{name}/{shots}shot" for shots in (1, 5, 10, 25)} < found.keys()
    seeds = [found[f"probe/{name}/5shot-seed-{seed}"] for seed in range(3)]
    assert found[f"probe/{name}/5shot"] == pytest.approx(np.mean(seeds))
    assert found[f"probe/{name}/25shot"] > found[f"probe/{name}/1shot"] > 0.1  # chance
    assert found[f"probe/{name}/knn"] > 0.5
    whole = features(model, config, probes[0].eval, feed, lambda: None, print)
    assert whole.rows.shape == (360, 128) and whole.labels.shape == (360, 1)
    assert model.training and isinstance(probes[0].eval, Dataset)
    assert dataclasses.asdict(config.probe)["seeds"] == 3


def test_of_few_images_some_workers_get_none_and_run_the_model_all_the_same():
    config = TrainConfig().replace({"micro_batch": 2, "global_batch": 8})
    model, passes = torch.nn.Conv2d(3, 1, 1), []
    model.residual_dtype = torch.float32
    model.register_forward_hook(lambda *_: passes.append(rank))
    found = []
    for rank in range(4):
        feed = SimpleNamespace(ranks=range(4), rank=rank, world_size=4)
        with evaluating(model, config, SimpleNamespace(samples=3), feed) as share:
            found += [(start, stop) for start, stop in share.batches if start < stop]
    assert found == [(0, 2), (2, 3)]
    assert passes == [2, 3]  # on a blank image
