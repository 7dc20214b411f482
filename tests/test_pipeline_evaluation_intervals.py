"""Intervals: those of published examples, of hand calculations, and what they cover."""

import numpy as np
import pytest
from scipy.stats import binomtest, norm

from pipeline.evaluation.intervals import Z, mean_over_classes, sign_test, tango, wilson


@pytest.mark.parametrize("hits", [0, 1, 90, 100])
def test_interval_of_an_accuracy_is_wilsons(hits):
    low, high = wilson(hits, 100)
    scipy = binomtest(hits, 100).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((scipy.low, scipy.high), abs=1e-12)


@pytest.mark.parametrize(
    ("gained", "lost", "count", "published"),
    [
        # Fagerland, Lydersen and Laake, Statistical Analysis of Contingency Tables, 2017,
        # chapter 8: airway hyper-responsiveness (Bentur et al. 2009), and complete response
        # (Cavo et al. 2012)
        (1, 7, 21, (-0.517, -0.026)),
        (6, 16, 161, (-0.1240, -0.0054)),
    ],
)
def test_interval_of_a_paired_difference_is_that_of_published_examples(
    gained, lost, count, published
):
    digits = 3 if count == 21 else 4
    assert tuple(round(end, digits) for end in tango(gained, lost, count)) == published


@pytest.mark.parametrize("count", [1, 10, 50_000])
def test_where_nothing_or_everything_changed_the_interval_is_that_of_a_hand_calculation(count):
    end = Z**2 / (count + Z**2)
    assert tango(0, 0, count) == pytest.approx((-end, end), abs=1e-12)
    end = (count - Z**2) / (count + Z**2)
    assert tango(count, 0, count) == pytest.approx((end, 1.0), abs=1e-12)
    assert tango(0, count, count) == pytest.approx((-1.0, -end), abs=1e-12)


def test_many_images_give_the_interval_of_a_normal_distribution():
    gain, share = 300 / 50_000, 1500 / 50_000
    half = Z * np.sqrt((share - gain**2) / 50_000)
    assert tango(900, 600, 50_000) == pytest.approx((gain - half, gain + half), rel=2e-3)
    assert norm.ppf(0.975) == pytest.approx(Z, abs=1e-12)


def test_a_mean_over_classes_has_the_variance_of_stratified_sampling():
    hits, images = np.array([30, 800]), np.array([50, 1000])
    mean, low, high = mean_over_classes(hits, images)
    assert mean == pytest.approx((0.6 + 0.8) / 2)
    variance = (0.6 * 0.4 / 49 + 0.8 * 0.2 / 999) / 4
    effective = 0.7 * 0.3 / variance
    assert (low, high) == pytest.approx(wilson(0.7 * effective, effective))
    assert low < 0.7 - 1.9 * variance**0.5 and high > 0.7 + 1.8 * variance**0.5


def test_a_mean_over_classes_never_shrinks_to_a_point():
    images = np.array([10, 20, 20])
    mean, low, high = mean_over_classes(images, images)
    assert mean == 1.0 and (low, high) == wilson(45, 45)  # 9 / (1/10 + 1/20 + 1/20)
    one = np.ones(40, int)  # images of 40 classes, one each: as if of one class
    assert mean_over_classes((np.arange(40) < 30).astype(int), one)[1:] == wilson(30, 40)


def test_95_of_100_intervals_of_a_mean_over_classes_hold_it():
    random = np.random.default_rng(0)
    shares, images = random.beta(4, 1, 300), random.integers(1, 50, 300)
    found = [mean_over_classes(random.binomial(images, shares), images) for _ in range(1000)]
    held = np.mean([low < shares.mean() < high for _, low, high in found])
    assert 0.93 < held < 0.98


def test_the_sign_test_is_exact():
    assert sign_test(3, 17) == pytest.approx(binomtest(3, 17).pvalue)
    assert sign_test(0, 0) == 1.0
