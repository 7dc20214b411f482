"""Stops trials that are behind, and decides from which point on they are compared.

    rate                    short warm-up             long warm-up
     |        .                  _                          .
     |      .' '-.              | '-.                     .' '-.
     |    .'      '-.           |    'o.                .'      'o.
     |  .'           '-.        |       '-.           .'           '-.
     |.'________________'-_     |__________'-_      .'________________'-_

At the same step, one trial may still warm up while another has passed its peak. Comparing them
there shows whose rate is lower at that moment, not which one will be better. So all trials have the
same length and a complete schedule, and are compared at rungs (o): where a trial has completed half
of its decay from the peak, and where it has completed three quarters, but never before the longest
warm-up of the space is over. There all rates have fallen by the same factor, and the areas under
the rates, which determine how much was learned, are nearly equal.
"""

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from tune.config import SearchConfig

# result key: 0 before the first rung, then a number that grows with each
RUNG = "rung"
# trials that reach a rung before one is stopped there
LEAST_SEEN = 4


def rung_of(config: SearchConfig, *, share: float, warmup: float, longest: float) -> int:
    """The rung that a trial has reached at a share of its length: 0, 1 or `reduction`.

    ASHA's rungs lie at powers of the reduction.
    """
    decay = (share - warmup) / (1 - warmup)
    if share < longest or decay < config.rungs_from:
        return 0
    return config.reduction if decay >= (1 + config.rungs_from) / 2 else 1


class Patience:
    """Overrules a stopper that has seen too few trials, and for trials that are not judged."""

    def __init__(self, **settings: object) -> None:
        super().__init__(**settings)
        self._seen: dict[int, set[str]] = {}

    def on_trial_result(self, tune_controller: object, trial: object, result: dict) -> str:
        """Stop or continue."""
        seen = self._seen.setdefault(result[RUNG], set())
        seen.add(trial.trial_id)
        decision = super().on_trial_result(tune_controller, trial, result)
        if not result[RUNG] or len(seen) <= LEAST_SEEN or not trial.config["task"].judged:
            return TrialScheduler.CONTINUE
        return decision


class Halving(Patience, ASHAScheduler):
    """Asynchronous successive halving."""


class Median(Patience, MedianStoppingRule):
    """Stops trials below the median of the others' means over their rungs."""


def make_stopper(config: SearchConfig) -> TrialScheduler:
    """The scheduler that Ray Tune asks at every evaluation; metric and mode come from the tuner."""
    most = config.reduction**2
    shared = {"time_attr": RUNG, "grace_period": 1}
    if config.stopper == "asha":
        return Halving(max_t=most, reduction_factor=config.reduction, **shared)
    if config.stopper == "median":
        # a time slice would pause a trial until it has seen others, but a run cannot be paused
        return Median(min_samples_required=3, min_time_slice=most, **shared)
    return FIFOScheduler()
