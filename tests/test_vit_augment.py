"""Each augmentation of training views against its definition, and what a view draws."""

from itertools import permutations

import cv2
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from vit.augment import AUGMENTATIONS, blur, color_jitter, cutout, random_erasing, three_augment
from vit.config import ImageConfig
from vit.draws import Draws
from vit.train_crops import train_view

NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
SMOOTH = cv2.GaussianBlur(NOISE, (0, 0), 3)
DEIT3 = ImageConfig(train_crop="simple", three_augment=True, color_jitter=0.3)
ALL = ImageConfig(
    cutout=0.5, randaugment_layers=2, three_augment=True, color_jitter=0.3, random_erasing=1.0
)


def pil(view):
    return Image.fromarray(view)


def far(view, other):
    return np.abs(np.asarray(view).astype(int) - np.asarray(other)).max()


def test_all_that_is_off_draws_nothing_and_changes_nothing():
    draws = Draws(0)
    for augmentation in AUGMENTATIONS:
        assert augmentation(NOISE, ImageConfig(flip=False), draws) is NOISE
    assert draws.state == Draws(0).state


@pytest.mark.parametrize("augmentation", AUGMENTATIONS, ids=lambda function: function.__name__)
def test_augmentations_follow_their_seed_and_leave_their_input(augmentation):
    before, drawn = NOISE.copy(), set()
    for seed in range(40):
        out, again = (augmentation(NOISE, ALL, Draws(seed)) for _ in range(2))
        assert out.shape == NOISE.shape and out.dtype == np.uint8
        np.testing.assert_array_equal(out, again)
        drawn.add(out.tobytes())
    np.testing.assert_array_equal(NOISE, before)
    assert len(drawn) > 1


def test_three_augment_makes_a_view_grey_or_solarizes_or_blurs_it():
    views = [three_augment(SMOOTH, DEIT3, Draws(seed)) for seed in range(600)]
    grey, solarized = pil(SMOOTH).convert("L").convert("RGB"), ImageOps.solarize(pil(SMOOTH))
    counts = [sum(far(view, known) <= 1 for view in views) for known in (grey, solarized)]
    assert all(150 < count < 250 for count in counts) and 150 < 600 - sum(counts) < 250
    blurred = [view for view in views if far(view, grey) > 1 and far(view, solarized) > 1]
    assert max(far(view, SMOOTH) for view in blurred) > 2  # the strongest


@pytest.mark.parametrize("radius", [0.1, 0.3, 0.5, 1.0, 1.5, 2.0])
def test_the_blur_is_pillows(radius):
    difference = blur(NOISE, radius) - np.asarray(
        pil(NOISE).filter(ImageFilter.GaussianBlur(radius)), float
    )
    assert np.abs(difference[8:-8, 8:-8]).max() <= 3 and np.abs(difference).max() < 25
    assert abs(difference.mean()) < 0.5


def test_color_jitter_is_that_of_pillows_enhancers_in_any_order(monkeypatch):
    factors = (0.7, 1.3, 0.85)
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for number, order in enumerate(permutations(enhancers)):
        remaining = iter(factors)
        monkeypatch.setattr(Draws, "integer", lambda self, count, number=number: number)
        monkeypatch.setattr(Draws, "uniform", lambda self, *_, rest=remaining: next(rest))
        expected = pil(SMOOTH)
        for enhancer, factor in zip(order, factors, strict=True):
            expected = enhancer(expected).enhance(factor)
        assert far(color_jitter(SMOOTH, DEIT3, Draws(0)), expected) <= 2


def test_color_jitter_stays_in_its_range():
    bright = np.full((8, 8, 3), 100, np.uint8)  # only the brightness can change it
    means = [color_jitter(bright, DEIT3, Draws(seed)).mean() for seed in range(300)]
    assert 69 <= min(means) < 73 and 127 < max(means) <= 130


def test_cutout_is_alibabas_square_of_one_colour():
    config, colours = ImageConfig(cutout=0.5), set()
    for seed in range(100):
        draws = Draws(seed)
        y, x = draws.integer(64), draws.integer(64)
        out = cutout(np.zeros_like(NOISE), config, Draws(seed))
        rows, columns = np.nonzero(out.any(2))
        assert (rows.min(), rows.max()) == (max(y - 16, 0), min(y + 16, 63))
        assert (columns.min(), columns.max()) == (max(x - 16, 0), min(x + 16, 63))
        found = np.unique(out[rows, columns], axis=0)
        assert len(found) == 1
        colours.add(tuple(found[0].tolist()))
    assert len(colours) > 90


@pytest.mark.parametrize("fill", ["noise", "mean"])
def test_random_erasing_fills_a_rectangle_of_timms_sizes(fill):
    mean, std = (0.485, 0.456, 0.406), (0.1, 0.05, 0.02)
    config = ImageConfig(random_erasing=0.25, erasing_fill=fill, mean=mean, std=std)
    blank, erased, areas, aspects, pixels = np.zeros((64, 64, 3), np.uint8), 0, [], [], []
    for seed in range(2000):
        out = random_erasing(blank, config, Draws(seed))
        rows, columns = np.nonzero(out.any(2))
        if not len(rows):
            continue
        erased += 1
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert len(rows) == height * width < 64 * 64
        areas.append(len(rows) / 64**2)
        aspects.append(height / width)
        pixels.append(out[rows, columns])
    assert 430 < erased < 570
    assert 0.017 < min(areas) < 0.03 and 0.31 < max(areas) < 0.35
    assert 0.15 < np.mean(areas) < 0.19
    assert min(aspects) < 0.36 and max(aspects) > 2.8 and abs(np.log(aspects).mean()) < 0.15
    pixels = np.concatenate(pixels) / 255
    np.testing.assert_allclose(pixels.mean(0), mean, atol=0.003)
    np.testing.assert_allclose(pixels.std(0), std if fill == "noise" else 0, atol=0.002)


def test_arrays_of_normals_are_normal_and_continue_the_stream():
    draws = Draws(3)
    values = draws.normals((20_000, 3))
    assert values.shape == (20_000, 3) and abs(values.mean()) < 0.02
    assert values.std() == pytest.approx(1, abs=0.02)
    np.testing.assert_allclose(np.quantile(values, [0.0228, 0.8413]), [-2, 1], atol=0.06)
    assert abs(np.corrcoef(values.T)[0, 1]) < 0.03
    single = Draws(3)
    for _ in range(2 * values.size):
        single.bits()
    assert draws.bits() == single.bits()


def test_a_view_goes_through_all_augmentations():
    plain = ImageConfig(train_crop="squash", flip=False)
    assert (train_view(NOISE, plain, 64, 0) == NOISE).all()
    for settings in (
        dict(cutout=0.5),
        dict(randaugment_layers=2),
        dict(three_augment=True),
        dict(color_jitter=0.3),
        dict(random_erasing=1.0),
    ):
        config = plain.replace(settings)
        assert any((train_view(NOISE, config, 64, seed) != NOISE).any() for seed in range(5))
