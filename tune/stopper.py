"""Which trials are stopped for being behind, and from when on.

    rate                    short warm-up             long warm-up
     |        .                  _                          .
     |      .' '-.              | '-.                     .' '-.
     |    .'      '-.           |    'o.                .'      'o.
     |  .'           '-.        |       '-.           .'           '-.
     |.'________________'-_     |__________'-_      .'________________'-_

Whoever compares trials at the same step, while one still warms up or has just reached its peak,
finds out whose rate is lower at that moment, not who will be better. So all trials have the same
length and a complete schedule of their own, and a rung (o) lies where a trial has come half of its
own way down from the peak, and another where it has come three quarters; never before the longest
warm-up of the space is over. There all rates have fallen by the same factor, and the area under
them, which is what was learnt with, is nearly the same.

A rung says nothing until some trials have reached it, and the preset's own settings are never
stopped: all others are held against them.
"""

from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    TrialScheduler,
)

from tune.config import SearchConfig

# result key: 0 before the first rung, then a number that grows with each
RUNG = "rung"
# trials that reach a rung before one is stopped there
LEAST_SEEN = 4


def rung_of(config: SearchConfig, *, share: float, warmup: float, longest: float) -> int:
    """The rung that a trial has reached at a share of its length; 1, then `reduction`.

    ASHA's rungs lie at powers of the reduction.
    """
    way = (share - warmup) / (1 - warmup)
    second = (1 + config.rungs_from) / 2
    if share < longest or way < config.rungs_from:
        return 0
    return config.reduction if way >= second else 1


class Patience:
    """Holds a stopper back where it has seen too little, and from the preset's own settings."""

    def __init__(self, **settings: object) -> None:
        super().__init__(**settings)
        self._seen: dict[int, set[str]] = {}

    def on_trial_result(self, tune_controller: object, trial: object, result: dict) -> str:
        """Stop, or go on."""
        seen = self._seen.setdefault(result[RUNG], set())
        seen.add(trial.trial_id)
        decision = super().on_trial_result(tune_controller, trial, result)
        if not result[RUNG] or len(seen) <= LEAST_SEEN or not trial.config["task"].judged:
            return TrialScheduler.CONTINUE
        return decision


class Halving(Patience, ASHAScheduler):
    """Asynchronous successive halving."""


class Median(Patience, MedianStoppingRule):
    """Stop what is below the median of the means of the others, over their rungs."""


def make_stopper(config: SearchConfig) -> TrialScheduler:
    """The scheduler that Ray Tune asks at every evaluation; metric and mode come with the tuner."""
    if config.stopper == "asha":
        return Halving(
            time_attr=RUNG,
            grace_period=1,
            max_t=config.reduction**2,
            reduction_factor=config.reduction,
        )
    if config.stopper == "median":
        return Median(
            time_attr=RUNG,
            grace_period=1,
            min_samples_required=3,
            # it would pause trials to see others first, and a run cannot be paused
            min_time_slice=config.reduction**2,
        )
    return FIFOScheduler()
