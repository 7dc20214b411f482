"""Optuna's part: the next sample by what is known, and the importance of each dimension.

Both are pure functions of the entries so far: nothing of a sampler's state is kept between two
samples, so a search that goes on after the death of its driver samples as if nothing had happened.
"""

import math
import warnings
from collections.abc import Mapping, Sequence

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState, create_trial

from tune.config import SearchConfig, objectives
from tune.dimension import Dimension, Range
from tune.space import Space
from tune.trial_log import DIVERGED, DONE, STARTED, STOPPED, Entry

optuna.logging.set_verbosity(optuna.logging.WARNING)


def propose(
    number: int, space: Space, entries: Sequence[Entry], config: SearchConfig
) -> dict[str, object]:
    """The sample of a trial: of the grid, at random, or by TPE from what has ended."""
    if config.sampler == "grid":
        return space.grid(config.trials - 1)[number - 1]
    if config.sampler == "random" or number <= max(1, config.trials // 3):
        return space.at(spread_point(number, len(space.dimensions), config.seed))
    study = make_study(space, entries, config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.sampler = optuna.samplers.TPESampler(
            seed=config.seed * 1_000_003 + number,
            multivariate=True,
            # what is at work counts as no better than what is known: do not sample it again
            constant_liar=True,
            n_startup_trials=1,
        )
        drawn = study.ask(distributions(space)).params
    return {name: decoded(dimension, drawn[name]) for name, dimension in space.dimensions.items()}


def spread_point(number: int, dimensions: int, seed: int) -> list[float]:
    """The n-th point of an evenly spread sequence in the unit cube (Roberts' R-sequence).

    A shift that depends on the seed makes it a random one; unlike a Sobol sequence it is as even
    for any number of points.
    """
    root = 2.0
    for _ in range(64):  # the solution of x**(d + 1) = x + 1
        root = (1 + root) ** (1 / (dimensions + 1))
    shifts = [0.5 + seed * math.sqrt(axis + 2) for axis in range(dimensions)]
    return [(shift + number / root ** (axis + 1)) % 1 for axis, shift in enumerate(shifts)]


def make_study(space: Space, entries: Sequence[Entry], config: SearchConfig) -> optuna.Study:
    """What is known of the space, as Optuna sees it."""
    study = optuna.create_study(
        directions=["maximize" if objectives()[name] else "minimize" for name in config.objective]
    )
    for entry in entries:
        if entry.repeat == 0 and space.contains(entry.sample):
            trial = as_trial(entry, space, config, worst_values(entries, config))
            if trial:
                study.add_trial(trial)
    return study


def as_trial(
    entry: Entry, space: Space, config: SearchConfig, worst: Sequence[float] | None
) -> FrozenTrial | None:
    """An entry for Optuna, or None if it says nothing.

    A trial that was stopped is worse than those that went further. One that diverged is worse than
    any other: it has the worst value there is.
    """
    known = {
        "params": {name: encoded(d, entry.sample[name]) for name, d in space.dimensions.items()},
        "distributions": distributions(space),
    }
    values = [entry.values.get(name) for name in config.objective]
    if entry.status == STARTED:
        return create_trial(state=TrialState.RUNNING, **known)
    if entry.status == DONE:
        return create_trial(values=values, **known)
    if entry.status == STOPPED and None not in values:
        step = {entry.step: values[0]}
        return create_trial(state=TrialState.PRUNED, intermediate_values=step, **known)
    if entry.status == DIVERGED and worst:
        return create_trial(values=worst, **known)
    return None


def worst_values(entries: Sequence[Entry], config: SearchConfig) -> list[float] | None:
    """The worst of each objective in the trials that were completed, if there are any."""
    done = [entry for entry in entries if entry.status == DONE]
    if not done:
        return None
    return [
        (min if objectives()[name] else max)(entry.values[name] for entry in done)
        for name in config.objective
    ]


def importances(
    space: Space, entries: Sequence[Entry], config: SearchConfig
) -> dict[str, float] | None:
    """Share of the differences between trials that each dimension explains; they add up to 1.

    By fANOVA (Hutter and others, 2014), over the trials that were completed or diverged. None if
    there are fewer than four, or if all are equal.
    """
    ended = [entry for entry in entries if entry.status in (DONE, DIVERGED)]
    study = make_study(space, ended, config)
    trials = study.get_trials(deepcopy=False)
    if len(trials) < 4 or len({trial.values[0] for trial in trials}) < 2:
        return None
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=config.seed)
    shares = optuna.importance.get_param_importances(
        study, evaluator=evaluator, target=lambda trial: trial.values[0]
    )
    return {name: shares.get(name, 0.0) for name in space.dimensions}


def distributions(space: Space) -> Mapping[str, BaseDistribution]:
    """The space in Optuna's words."""
    return {name: distribution(dimension) for name, dimension in space.dimensions.items()}


def distribution(dimension: Dimension) -> BaseDistribution:
    """A dimension in Optuna's words: a choice by its place, since options may be lists."""
    if not isinstance(dimension, Range):
        return CategoricalDistribution(tuple(range(len(dimension.options))))
    if dimension.whole:
        return IntDistribution(int(dimension.low), int(dimension.high))
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log)


def encoded(dimension: Dimension, value: object) -> object:
    """A value of a dimension as Optuna holds it."""
    return value if isinstance(dimension, Range) else dimension.options.index(value)


def decoded(dimension: Dimension, value: object) -> object:
    """A value from Optuna, to six digits; the inverse of `encoded`."""
    if not isinstance(dimension, Range):
        return dimension.options[value]
    return dimension.at(dimension.share(value)) if not dimension.whole else value
