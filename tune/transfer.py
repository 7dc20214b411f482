"""Carries the real run to the length of a trial, and the settings that were found back to it.

    real run: epochs E, batch B  <->  trial: epochs h E, batch b

- The schedule is always complete: a trial warms up and decays to the end within its own length, and
  lengths of the schedule keep their share of it.
- From batch b to B a learning rate is multiplied by (B / b) ** power, with the power of its
  optimizer. With the square root, Adam's betas and eps follow (Malladi et al., arXiv 2205.10287).
- How the best settings move with the length is measured by the rungs (`tune.surface`). `slopes` is
  what is assumed where they do not show it.
"""

from collections.abc import Mapping

from pipeline.settings.config import TrainConfig
from vit.registry import OPTIMIZERS

# d log(best warm-up as a share of the run) / d log(length of the run), and its deviation: between
# the same share (0) and the same number of examples (-1), as big_vision has it in runs of 30 and of
# 300 epochs; and the deviation of that of the rate
WARMUP_SLOPE, RATE_DEVIATION = (-0.5, 0.5), 0.2


def share_of_run(config: TrainConfig, name: str, samples: int) -> float:
    """A length of the schedule ("warmup", "cooldown") as a share of the run."""
    length, unit = getattr(config.optim, name), getattr(config.optim, f"{name}_unit")
    run = {
        "fraction": 1.0,
        "epochs": config.epochs,
        "examples": config.epochs * samples,
        "steps": config.epochs * samples / config.global_batch,
    }
    return length / run[unit]


def rate_factor(optimizer: str, old_batch: int, new_batch: int) -> float:
    """The factor of a learning rate from one batch to another."""
    return (new_batch / old_batch) ** OPTIMIZERS[optimizer].batch_power


def slopes(optimizer: str) -> dict[str, tuple[float, float]]:
    """How the best settings are assumed to move with the length of the run: mean and deviation."""
    power = OPTIMIZERS[optimizer].length_power
    rate = {} if power is None else {"optim.lr": (power, RATE_DEVIATION)}
    return {**rate, "optim.warmup": WARMUP_SLOPE}


def in_shares(run: TrainConfig, samples: int) -> TrainConfig:
    """The run with its warm-up and cooldown as shares of it."""
    shares = {f"optim.{n}": rounded(share_of_run(run, n, samples)) for n in ("warmup", "cooldown")}
    units = {"optim.warmup_unit": "fraction", "optim.cooldown_unit": "fraction"}
    return run.replace({**shares, **units})


def to_trial(run: TrainConfig, *, horizon: float, batch: int, samples: int) -> TrainConfig:
    """The run as a trial: shorter, with its schedule in shares and its rates for another batch."""
    optim, factor = run.optim, rate_factor(run.optim.name, run.global_batch, batch)
    steps = horizon * run.global_batch / batch  # of the trial, for each of the run
    settings = {
        **{"workers": 1, "min_workers": None},  # the slots of its rung give it more
        "epochs": run.epochs * horizon,
        "global_batch": batch,
        **{f"optim.{n}": getattr(optim, n) * factor for n in ("lr", "warmup_lr", "final_lr")},
        "optim.rsqrt_timescale": max(1, round(optim.rsqrt_timescale * steps)),
    }
    if optim.ema is not None:  # averages the same share of the run
        settings["optim.ema"] = 1 - min(0.9, (1 - optim.ema) / steps)
    if batch != run.global_batch and OPTIMIZERS[optim.name].batch_power == 0.5:
        ratio = batch / run.global_batch
        settings["optim.betas"] = [max(0.0, 1 - (1 - beta) * ratio) for beta in optim.betas]
        settings["optim.eps"] = optim.eps / ratio**0.5
    return in_shares(run, samples).replace(settings)


def to_run(run: TrainConfig, settings: Mapping[str, object], batch: int) -> dict[str, object]:
    """Settings for the real run, from those that were found with trials of another batch."""
    carried = dict(settings)
    optimizer = str(settings.get("optim.name", run.optim.name))
    if "optim.lr" in carried:
        target = settings.get("global_batch", run.global_batch)
        carried["optim.lr"] = rounded(carried["optim.lr"] * rate_factor(optimizer, batch, target))
    for length in carried.keys() & {"optim.warmup", "optim.cooldown"}:
        carried.setdefault(f"{length}_unit", "fraction")
    return carried


def rounded(value: float) -> float:
    """The value, rounded to six digits."""
    return float(f"{value:.6g}")
