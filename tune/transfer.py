"""The rule that carries settings between the real run and its short trials, in both directions.

    real run: epochs E, batch B  <->  trial: epochs h E, batch b

- The schedule is always complete: a trial warms up and decays to the end within its own length. A
  warm-up is carried as a number of examples (the references warm up for 41 M examples, 10,000 steps
  of 4,096, in runs of 30 and of 300 epochs alike), or as a share of the run.
- A learning rate does not depend on the length. From batch b to B it is multiplied by sqrt(B / b),
  which suits Adam, by B / b, which suits SGD, or by 1.
- All other settings are unchanged.
"""

from collections.abc import Mapping

from pipeline.settings.config import TrainConfig

POWERS = {"same": 0.0, "sqrt": 0.5, "linear": 1.0}


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


def rate_factor(rule: str, old_batch: int, new_batch: int) -> float:
    """The factor of a learning rate from one batch to another."""
    return (new_batch / old_batch) ** POWERS[rule]


def to_trial(
    run: TrainConfig, *, horizon: float, batch: int, samples: int, transfer: str, lr_rule: str
) -> TrainConfig:
    """The run as a trial: shorter, with its warm-up and learning rates carried by the rule."""
    warmup = share_of_run(run, "warmup", samples) / (horizon if transfer == "examples" else 1)
    if warmup >= 1:
        raise ValueError(
            f"optim.warmup ({run.optim.warmup:g} {run.optim.warmup_unit}) is {warmup:.2f} of a "
            f"trial of horizon {horizon:g}; set --horizon above {horizon * warmup:.2g}, or carry "
            f"it as a share of the run with --transfer fraction"
        )
    factor = rate_factor(lr_rule, run.global_batch, batch)
    rates = ("lr", "warmup_lr", "final_lr")
    settings = {
        "epochs": run.epochs * horizon,
        "global_batch": batch,
        **{f"optim.{name}": getattr(run.optim, name) * factor for name in rates},
        "optim.warmup": rounded(warmup),
        "optim.warmup_unit": "fraction",
        "optim.cooldown": rounded(share_of_run(run, "cooldown", samples)),
        "optim.cooldown_unit": "fraction",
    }
    return run.replace(settings)


def to_run(
    trial: TrainConfig,
    settings: Mapping[str, object],
    *,
    horizon: float,
    batch: int,
    samples: int,
    transfer: str,
    lr_rule: str,
) -> dict[str, object]:
    """Settings of the real run with global batch `batch`, from the settings of a trial."""
    carried = {name: value for name, value in settings.items() if name != "optim.warmup_unit"}
    if "optim.lr" in carried:
        factor = rate_factor(lr_rule, trial.global_batch, batch)
        carried["optim.lr"] = rounded(trial.optim.lr * factor)
    if "epochs" in carried:
        carried["epochs"] = rounded(trial.epochs / horizon)
    if "optim.warmup" in carried:
        share = share_of_run(trial, "warmup", samples)
        carried["optim.warmup_unit"] = transfer
        carried["optim.warmup"] = rounded(share)
        if transfer == "examples":
            carried["optim.warmup"] = float(round(share * trial.epochs * samples))
    return carried


def rounded(value: float) -> float:
    """The value, rounded to six digits."""
    return float(f"{value:.6g}")
