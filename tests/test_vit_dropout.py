"""Masks of dropout: their rate, their independence, and that they are addressed."""

import numpy as np
import pytest
import torch

from vit.dropout import Dropout, DropPath, hashed, image_keys, number_layers


def lowbias32(x):
    """The published C function, with Python's integers."""
    x ^= x >> 16
    x = x * 0x7FEB352D % 2**32
    x ^= x >> 15
    x = x * 0x846CA68B % 2**32
    return x ^ x >> 16


def layer(kind, rate, number=0):
    made = kind(rate).train()
    made.number = number
    return made


def test_the_hash_is_lowbias32():
    values = [0, 1, 2, 12345, 2**31 - 1, 2**31, 2**32 - 1]
    assert hashed(torch.tensor(values)).tolist() == [lowbias32(value) for value in values]


def test_keys_depend_on_the_seed_and_the_place_alone():
    keys = image_keys(7, 0, 1000)
    assert torch.equal(image_keys(7, 400, 100), keys[400:500])
    assert keys.dtype == torch.int64 and keys.min() >= 0 and keys.max() < 2**32
    assert len(keys.unique()) == 1000
    assert not torch.isin(image_keys(8, 0, 1000), keys).any()


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_elements_are_dropped_at_the_rate_and_the_mean_is_kept(rate):
    dropped = layer(Dropout, rate)(torch.ones(64, 50, 40), image_keys(0, 0, 64))
    assert set(dropped.unique().tolist()) == {0.0, torch.tensor(1 / (1 - rate)).item()}
    kept = (dropped > 0).double()
    # five standard deviations of the mean of independent draws: of all, of images, of elements
    for mean, count in ((kept.mean(), 64 * 2000), (kept.mean((1, 2)), 2000), (kept.mean(0), 64)):
        limit = 5 * (rate * (1 - rate) / count) ** 0.5
        assert (mean - (1 - rate)).abs().max() < limit


def test_masks_of_images_and_layers_are_independent():
    keys = image_keys(0, 0, 64)
    x = torch.ones(64, 4000)
    first, second = (layer(Dropout, 0.5, number)(x, keys) - 1 for number in (0, 1))
    between = np.corrcoef(first.numpy())  # of images
    assert np.abs(between - np.eye(64)).max() < 5.5 / 4000**0.5
    assert abs((first * second).mean().item()) < 5 / (64 * 4000) ** 0.5  # of layers
    assert abs((first[:, 1:] * first[:, :-1]).mean().item()) < 5 / (64 * 3999) ** 0.5  # neighbours


def test_an_image_has_its_mask_in_any_batch():
    dropout, x, keys = layer(Dropout, 0.3), torch.randn(8, 5, 6), image_keys(3, 10, 8)
    whole = dropout(x, keys)
    assert torch.equal(torch.cat([dropout(x[:3], keys[:3]), dropout(x[3:], keys[3:])]), whole)
    assert dropout(x[:0], keys[:0]).shape == (0, 5, 6)


def test_stochastic_depth_drops_whole_images_and_keeps_the_mean():
    out = layer(DropPath, 0.4)(torch.ones(20_000, 2, 3), image_keys(0, 0, 20_000))
    values = out[:, 0, 0]
    assert (out == values[:, None, None]).all()
    assert set(values.tolist()) == {0.0, torch.tensor(1 / 0.6).item()}
    assert values.mean().item() == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("kind", [Dropout, DropPath])
def test_evaluation_and_rate_0_change_nothing(kind):
    x = torch.randn(4, 3)
    assert layer(kind, 0.5).eval()(x, None) is x and layer(kind, 0.0)(x, None) is x


def test_what_is_dropped_is_zero_even_if_it_is_not_finite():
    out = layer(Dropout, 0.5)(torch.full((8, 100), torch.inf), image_keys(0, 0, 8))
    assert set(out.unique().tolist()) == {0.0, torch.inf}


def test_layers_are_numbered_and_a_model_without_a_rate_needs_no_keys():
    model = torch.nn.Sequential(Dropout(0.0), torch.nn.Sequential(DropPath(0.0)), Dropout(0.1))
    assert number_layers(model) and [m.number for m in (model[0], model[1][0], model[2])] == [
        0,
        1,
        2,
    ]
    assert not number_layers(model[:2])
