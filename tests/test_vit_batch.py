"""Normalisation and mixing on the device."""

import numpy as np
import pytest
import torch

from vit.batch import mix, mixing_draws, normalise
from vit.config import ImageConfig, MixConfig

B, K, S = 8, 5, 16


def batch(count=B):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, 3, S, S, generator=generator)
    targets = torch.eye(K)[torch.arange(count) % K]
    return images, targets


@pytest.mark.parametrize(
    "mean, std",
    [
        ((0.5,) * 3, (0.5,) * 3),
        ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ((0.0,) * 3, (1.0,) * 3),
    ],
)
def test_normalisation_is_the_formula_and_channels_last(mean, std):
    images = torch.arange(256, dtype=torch.uint8).repeat(3, 1).T.reshape(1, 16, 16, 3).contiguous()
    out = normalise(images, ImageConfig(mean=mean, std=std))
    wide = images.numpy().astype(np.float64)
    expected = ((wide / 255 - mean) / std).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(out.numpy(), expected, atol=5e-7)
    assert out.shape == (1, 3, 16, 16) and out.dtype == torch.float32
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert normalise(images, ImageConfig(), torch.bfloat16).dtype == torch.bfloat16


def test_default_range_is_minus_one_to_one():
    ends = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 2, 1).expand(1, 1, 2, 3)
    assert normalise(ends, ImageConfig())[0, 0, 0].tolist() == pytest.approx([-1, 1], abs=1e-6)


def test_normalisation_compiles_without_graph_breaks():
    compiled = torch.compile(normalise, fullgraph=True, backend="aot_eager")
    images = torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8)
    torch.testing.assert_close(compiled(images, ImageConfig()), normalise(images, ImageConfig()))


def mixed_with(config, images, targets, seed, first=0):
    return mix(images, targets, mixing_draws(config, seed=seed, first=first, count=len(images)))


def test_nothing_is_drawn_without_mixing():
    assert mixing_draws(MixConfig(), seed=1, first=0, count=7) is None


def test_mixup_mixes_neighbours_and_their_targets_alike():
    images, targets = batch()
    draws = mixing_draws(MixConfig(mixup=0.4), seed=1, first=0, count=B)
    mixed, mixed_targets = mix(images, targets, draws)
    weights = draws[:, 0]
    assert (weights >= 0.5).all() and (weights[::2] == weights[1::2]).all()
    for i in range(B):
        a, partner = weights[i], i ^ 1
        torch.testing.assert_close(mixed[i], a * images[i] + (1 - a) * images[partner])
        torch.testing.assert_close(mixed_targets[i], a * targets[i] + (1 - a) * targets[partner])


def test_mixup_weights_follow_the_beta_distribution():
    stats = pytest.importorskip("scipy.stats")
    folded = mixing_draws(MixConfig(mixup=0.4), seed=1, first=0, count=40_000)[::2, 0]
    assert stats.kstest(folded, lambda a: 2 * stats.beta(0.4, 0.4).cdf(a) - 1).pvalue > 0.001


def test_cutmix_pastes_the_partners_box_and_shares_targets_by_area():
    images, targets = batch(200)
    mixed, mixed_targets = mixed_with(MixConfig(cutmix=1.0), images, targets, 2)
    shares = []
    for i in range(200):
        own, other = mixed[i] == images[i], mixed[i] == images[i ^ 1]
        assert (own | other).all()
        pasted = ~own.all(0)  # (S, S)
        rows, columns = pasted.any(1), pasted.any(0)
        assert pasted.sum() == rows.sum() * columns.sum()  # one box
        share = 1 - pasted.float().mean()
        shares.append(share.item())
        expected = share * targets[i] + (1 - share) * targets[i ^ 1]
        torch.testing.assert_close(mixed_targets[i], expected)
    assert min(shares) < 0.4 and max(shares) > 0.95


def test_both_give_each_pair_one_of_them():
    images, targets = batch(400)
    mixed, mixed_targets = mixed_with(MixConfig(mixup=5.0, cutmix=1.0), images, targets, 3)
    pasted = [bool((mixed[i] == images[i]).any()) for i in range(400)]
    assert pasted[::2] == pasted[1::2]
    assert 140 < sum(pasted) < 260
    torch.testing.assert_close(mixed_targets.sum(1), torch.ones(400))


@pytest.mark.parametrize(
    "config",
    [MixConfig(mixup=0.2), MixConfig(cutmix=1.0), MixConfig(mixup=0.2, cutmix=1.0)],
    ids=str,
)
@pytest.mark.parametrize("workers", [2, 4])
def test_any_number_of_workers_mixes_the_global_batch_alike(config, workers):
    images, targets = batch(16)
    whole, whole_targets = mixed_with(config, images, targets, 9)
    share = 16 // workers
    for rank in range(workers):
        part = slice(rank * share, (rank + 1) * share)
        mixed, mixed_targets = mixed_with(config, images[part], targets[part], 9, rank * share)
        assert torch.equal(mixed, whole[part]) and torch.equal(mixed_targets, whole_targets[part])
    assert not torch.equal(mixed_with(config, images, targets, 10)[0], whole)


def test_odd_shares_are_refused():
    with pytest.raises(ValueError, match="7 images from place 0; make the images per worker"):
        mixing_draws(MixConfig(mixup=0.2), seed=1, first=0, count=7)
    with pytest.raises(ValueError, match="4 images from place 3"):
        mixing_draws(MixConfig(mixup=0.2), seed=1, first=3, count=4)
    with pytest.raises(ValueError, match=r"mixup \(-1\)"):
        MixConfig(mixup=-1)
