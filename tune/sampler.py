"""Optuna: the next sample from the earlier trials, and the importance of each dimension.

Both are pure functions of the entries. No state of a sampler is kept between two samples, so a
search that is resumed after the death of its driver samples as if it had not been interrupted.
"""

import math
import warnings
from collections.abc import Sequence

import optuna
from optuna import distributions as kinds
from optuna.trial import FrozenTrial, TrialState, create_trial

from tune.config import SearchConfig, objectives
from tune.dimension import Dimension, Range
from tune.space import Space
from tune.trial_log import DIVERGED, DONE, ENDED, FAILED, STOPPED, Entry

optuna.logging.set_verbosity(optuna.logging.WARNING)


def propose(
    number: int, space: Space, entries: Sequence[Entry], config: SearchConfig
) -> dict[str, object]:
    """The sample of a trial: from the grid, at random, or by TPE from the earlier trials."""
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
            # assume a bad value for trials that are running, so that none is sampled twice
            constant_liar=True,
            n_startup_trials=1,
        )
        params = study.ask(distributions(space)).params
    return {name: decoded(dimension, params[name]) for name, dimension in space.dimensions.items()}


def spread_point(number: int, dimensions: int, seed: int) -> list[float]:
    """The n-th point of an evenly spread sequence in the unit cube (Roberts' R-sequence).

    The seed shifts it at random. Unlike a Sobol sequence it is even for any number of points.
    """
    root = 2.0
    for _ in range(64):  # the solution of x**(d + 1) = x + 1
        root = (1 + root) ** (1 / (dimensions + 1))
    shifts = [0.5 + seed * math.sqrt(axis + 2) for axis in range(dimensions)]
    return [(shift + number / root ** (axis + 1)) % 1 for axis, shift in enumerate(shifts)]


def make_study(space: Space, entries: Sequence[Entry], config: SearchConfig) -> optuna.Study:
    """An Optuna study with the entries that lie in the space, one for each number."""
    study = optuna.create_study(
        directions=["maximize" if objectives()[name] else "minimize" for name in config.objective]
    )
    done = [entry.values for entry in entries if entry.status == DONE]
    worst = [
        (min if objectives()[name] else max)(values[name] for values in done)
        for name in config.objective
        if done
    ]
    inside = [e for e in entries if e.repeat == 0 and space.contains(e.sample)]
    trials = [as_trial(entry, space, config, worst) for entry in inside]
    study.add_trials([trial for trial in trials if trial])
    return study


def as_trial(
    entry: Entry, space: Space, config: SearchConfig, worst: Sequence[float]
) -> FrozenTrial | None:
    """An entry as an Optuna trial; None if it has nothing to learn from.

    A stopped trial counts as worse than those that went further. A diverged trial takes `worst`,
    the worst value of each objective in the completed trials; empty if there are none.
    """
    sample = {
        "params": {name: encoded(d, entry.sample[name]) for name, d in space.dimensions.items()},
        "distributions": distributions(space),
    }
    values = [entry.values.get(name) for name in config.objective]
    if entry.status not in (*ENDED, FAILED):
        return create_trial(state=TrialState.RUNNING, **sample)
    if entry.status == DONE:
        return create_trial(values=values, **sample)
    if entry.status == STOPPED and None not in values:
        step = {entry.step: values[0]}
        return create_trial(state=TrialState.PRUNED, intermediate_values=step, **sample)
    if entry.status == DIVERGED and worst:
        return create_trial(values=worst, **sample)
    return None


def importances(
    space: Space, entries: Sequence[Entry], config: SearchConfig
) -> dict[str, float] | None:
    """Share of the differences between trials that each dimension explains; the sum is 1.

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


def distributions(space: Space) -> dict[str, kinds.BaseDistribution]:
    """The space as Optuna's distributions."""
    return {name: distribution(dimension) for name, dimension in space.dimensions.items()}


def distribution(dimension: Dimension) -> kinds.BaseDistribution:
    """A dimension for Optuna; a choice is represented by its indices, as options may be lists."""
    if not isinstance(dimension, Range):
        return kinds.CategoricalDistribution(range(len(dimension.options)))
    if dimension.whole:
        return kinds.IntDistribution(int(dimension.low), int(dimension.high))
    return kinds.FloatDistribution(dimension.low, dimension.high, log=dimension.log)


def encoded(dimension: Dimension, value: object) -> object:
    """A value of a dimension as Optuna represents it."""
    return value if isinstance(dimension, Range) else dimension.options.index(value)


def decoded(dimension: Dimension, value: object) -> object:
    """A value from Optuna, rounded to six digits; the inverse of `encoded`."""
    is_range = isinstance(dimension, Range)
    return dimension.at(dimension.share(value)) if is_range else dimension.options[value]
