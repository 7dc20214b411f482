"""The surface over the settings: what it recovers, and how sure it says that it is."""

import math

import numpy as np
import pytest

from tune.dimension import Choice, Range
from tune.space import Space
from tune.surface import Run, Surface

LR, WARMUP = "optim.lr", "optim.warmup"
SPACE = Space(
    name="both",
    dimensions={
        LR: Range(low=3e-4, high=1e-2, log=True),
        WARMUP: Range(low=0.005, high=0.5, log=True),
    },
)
PRESET = {LR: 1e-3, WARMUP: 0.04}
SLOPES = {LR: (-0.32, 0.2), WARMUP: (-0.5, 0.5)}
RUNGS = ((32, 1 / 256), (8, 1 / 64), (3, 1 / 16))


def best(horizon, slopes=(-0.2, -0.3)):
    """The known optimum: log rate and log warm-up."""
    return np.log([1.5e-3, 0.05]) + np.array(slopes) * math.log(horizon)


def loss(sample, horizon):
    """A quadratic whose axes are those of neither setting."""
    apart = np.log([sample[LR], sample[WARMUP]]) - best(horizon)
    return apart @ np.array([[0.03, -0.008], [-0.008, 0.015]]) @ apart


def runs_of(rungs=RUNGS, noise=0.0, seed=0):
    """Runs of a search, each block at a level of its own."""
    random, runs = np.random.default_rng(seed), []
    for block, (number, horizon) in enumerate(rungs):
        level = random.normal()
        for sample in SPACE.spread(number, seed + block):
            noisy = loss(sample, horizon) + random.normal(0, noise)
            runs.append(Run(horizon=horizon, block=block, sample=sample, loss=level + noisy))
    return runs


def fit(runs, space=SPACE, slopes=SLOPES, preset=PRESET, **settings):
    return Surface.fit(space, runs, slopes=slopes, preset=preset, **settings)


@pytest.mark.parametrize("horizon", [1 / 64, 1 / 16, 1.0])
def test_a_quadratic_without_noise_is_recovered_with_its_moving_optimum(horizon):
    surface = fit(runs_of())
    found = surface.best(horizon)
    assert np.log([found[LR], found[WARMUP]]) == pytest.approx(best(horizon), abs=1e-3)
    assert surface.slope(LR)[0] == pytest.approx(-0.2, abs=1e-3)
    samples = SPACE.spread(20, 7)
    expected = [loss(sample, horizon) for sample in samples]
    assert surface.excess(samples, horizon) == pytest.approx(np.array(expected), abs=1e-3)


def test_the_optimum_is_that_of_plain_least_squares_where_there_are_many_runs():
    runs = runs_of([(256, 1 / 16)], noise=0.003)
    x, y = np.log([[run.sample[LR], run.sample[WARMUP]] for run in runs]).T
    columns = np.stack([x**2, x * y, y**2, x, y, np.ones(len(x))], 1)
    # the same runs count: those near the optimum
    near = np.array([loss(run.sample, 1 / 16) < 0.05 for run in runs])
    (a, c, b, *gradient, _), *_ = np.linalg.lstsq(
        columns[near], np.array([run.loss for run in runs])[near]
    )
    expected = np.linalg.solve([[2 * a, c], [c, 2 * b]], -np.array(gradient))
    found = fit(runs).best(1 / 16)
    assert np.log([found[LR], found[WARMUP]]) == pytest.approx(expected, abs=0.03)


def test_the_interval_covers_the_optimum_as_often_as_it_says():
    within = []
    for seed in range(120):
        low, high = fit(runs_of(noise=0.005, seed=seed)).interval(LR, 1 / 16)
        within.append(low <= math.exp(best(1 / 16)[0]) <= high)
    assert 0.84 <= np.mean(within) <= 0.98


def test_noise_is_that_of_a_run_around_the_surface():
    noises = [fit(runs_of(noise=0.005, seed=seed)).noise for seed in range(20)]
    assert np.mean(noises) == pytest.approx(0.005, rel=0.15)


def test_with_one_horizon_the_slope_is_that_of_the_prior():
    middle, low, high = fit(runs_of([(32, 1 / 16)], noise=1e-4)).slope(LR)
    # the optimum at horizon 1 is uncertain, too, so that the two share what the runs say
    assert low < -0.32 < high and 0.2 < high - low < 2 * 1.645 * 0.2 * 1.1
    assert middle == pytest.approx(-0.32, abs=0.2)


def test_with_one_horizon_at_the_real_run_the_slope_is_the_prior_alone():
    _, low, high = fit(runs_of([(32, 1.0)], noise=1e-4)).slope(LR)
    assert (low, high) == pytest.approx((-0.32 - 1.645 * 0.2, -0.32 + 1.645 * 0.2), abs=0.06)


def test_a_run_without_a_value_for_a_dimension_is_left_out():
    runs = runs_of(noise=0.003)
    odd = Run(horizon=1 / 256, block=0, sample={LR: 1e-3}, loss=-100.0)
    assert fit([*runs, odd]).best(1.0) == fit(runs).best(1.0)


def test_the_order_of_runs_does_not_matter():
    runs = runs_of(noise=0.003)
    one, other = fit(runs), fit(runs[::-1])
    assert one.best(1.0) == other.best(1.0)
    assert one.interval(LR, 1.0) == other.interval(LR, 1.0)


def test_equal_seeds_give_equal_intervals():
    runs = runs_of(noise=0.003)
    assert fit(runs, seed=3).interval(LR, 1.0) == fit(runs, seed=3).interval(LR, 1.0)
    assert fit(runs, seed=3).interval(LR, 1.0) != fit(runs, seed=4).interval(LR, 1.0)


def test_the_best_lies_in_the_space_though_the_optimum_does_not():
    narrow = Space(name="narrow", dimensions={**SPACE.dimensions, LR: Range(low=4e-3, high=1e-2)})
    runs = [run for run in runs_of() if run.sample[LR] > 4e-3]
    surface = fit(runs, space=narrow)
    assert surface.best(1.0)[LR] == 4e-3
    low, high = surface.interval(LR, 1.0)
    assert 4e-3 <= low <= high <= 1e-2


def test_a_region_is_wider_with_more_noise_and_holds_the_best():
    quiet, loud = (fit(runs_of(noise=noise)) for noise in (0.001, 0.01))
    assert len(quiet.region(1.0)) < len(loud.region(1.0))
    assert quiet.region(1.0)[0] == quiet.best(1.0)
    assert all(SPACE.contains(sample) for sample in loud.region(1.0))


def test_one_setting_alone():
    space = Space(name="one", dimensions={LR: SPACE.dimensions[LR]})
    runs = [
        Run(horizon=1 / 16, block=0, sample={LR: rate}, loss=math.log(rate / 2e-3) ** 2)
        for rate in (5e-4, 1e-3, 3e-3, 8e-3)
    ]
    assert fit(runs, space=space).best(1 / 16)[LR] == pytest.approx(2e-3, rel=0.02)


def test_a_space_of_choices_has_its_best_option():
    rates = (0.003, 0.01, 0.03, 0.06)
    space = Space(
        name="choices",
        dimensions={
            LR: Choice(options=rates),
            "epochs": Choice(options=(10, 20)),
            "augmentation": Choice(options=("none", "light", "strong")),
        },
    )
    effect = {10: 0.2, 20: 0.0, "none": 0.3, "light": 0.0, "strong": 0.1}
    runs = [
        Run(horizon=1.0, block=0, sample=sample, loss=math.log(sample[LR] / 0.02) ** 2 / 10
            + effect[sample["epochs"]] + effect[sample["augmentation"]])
        for sample in space.spread(24, 0)
    ]  # fmt: skip
    surface = fit(runs, space=space, preset={})
    assert surface.best(1.0) == {LR: 0.03, "epochs": 20, "augmentation": "light"}
    assert set(surface.interval(LR, 1.0)) <= set(rates)


def test_too_few_runs_are_refused_in_words():
    with pytest.raises(ValueError, match="3 runs ended, .* takes at least 4: run more"):
        fit(runs_of([(3, 1 / 16)]))
    with pytest.raises(ValueError, match="0 runs ended"):
        fit([])
