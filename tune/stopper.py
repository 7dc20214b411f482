"""Which trials are stopped for being behind, and from when on.

    accuracy                            ____ long warm-up, or a low rate: ahead in the end
       |                         __.--''
       |               ____.--:''------ short warm-up: ahead at first
       |         _.--''   _.: |
       |      .-'     _.-'  : |
       |    .'    _.-'      : first rung
       |___/__.--'__________:_|________ share of the trial
                            ^ the longest warm-up ends

Whoever compares trials while one of them still warms up finds out who warms up faster, not who will
be better. So the first rung lies behind the longest warm-up of the space by a quarter of what is
left, and every trial runs a complete schedule over its own length, all of the same length: at a
rung, all have seen the same number of images at rates that have begun to fall.
"""

from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    TrialScheduler,
)

from tune.config import SearchConfig

# result key: 0 before the first rung, then the number of evaluations from it on
RUNG = "rung"


def make_stopper(config: SearchConfig) -> TrialScheduler:
    """The scheduler that Ray Tune asks at every evaluation; metric and mode come with the tuner."""
    if config.stopper == "asha":
        return ASHAScheduler(
            time_attr=RUNG,
            grace_period=1,
            max_t=config.evals + 1,
            reduction_factor=config.reduction,
        )
    if config.stopper == "median":
        # means are taken over what came after the first rung
        return MedianStoppingRule(time_attr=RUNG, grace_period=1, min_samples_required=3)
    return FIFOScheduler()
