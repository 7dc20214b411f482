"""What a search will cost, before it starts, and what it has cost."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.settings.budget import START_S, Budget
from support.console import duration, table
from tune.plan import Plan
from tune.rungs import part
from tune.trial import DONE, Trial


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost of some trials of one length."""

    label: str
    trials: int
    horizon: float
    steps: int
    """Steps of a trial."""
    images: int
    """Images that all trials train on."""
    evaluated: int
    """Images that all trials evaluate."""
    gpu_hours: float | None
    """None if the speed is unknown."""

    def row(self, image_bytes: float) -> list[str]:
        """The row of the table for the console."""
        hours = "unknown" if self.gpu_hours is None else f"{self.gpu_hours:,.1f}"
        read = f"{(self.images + self.evaluated) * image_bytes / 1e12:.3g}"
        return [self.label, f"{self.trials}", part(self.horizon), f"{self.steps:,}",
                f"{self.images:,}", f"{self.evaluated:,}", hours, read]  # fmt: skip


def trial_s(trial: Budget) -> float:
    """Seconds of a trial on one GPU: training, one evaluation at its end, and the start."""
    return trial.train_s * (1 + evaluation_share(trial)) + START_S


def evaluation_share(trial: Budget) -> float:
    """An evaluation in trainings; a forward pass is a third of a training step."""
    return trial.eval_samples / (3 * trial.images)


def planned(plan: Plan, *, gpu: str, mfu: float | None) -> list[Cost]:
    """Cost of each rung and of the confirmation at most, on GPUs as in `pipeline train --plan`."""
    parts = [(f"rung {n}", rung.trials, rung.horizon) for n, rung in enumerate(plan.rungs, start=1)]
    parts.append(("confirmation", 2 * plan.config.seeds, plan.rungs[-1].horizon))
    costs = []
    for label, trials, horizon in parts:
        budget = Budget(plan.longest(horizon), gpu=gpu, mfu=mfu)
        costs.append(
            Cost(
                label=label,
                trials=trials,
                horizon=horizon,
                steps=budget.steps,
                images=trials * budget.images,
                evaluated=trials * plan.eval_samples,
                gpu_hours=None if budget.unknown else trials * trial_s(budget) / 3600,
            )
        )
    return costs


def described(plan: Plan, *, gpu: str, mfu: float | None) -> str:
    """The planned search and its cost, for the console."""
    costs = planned(plan, gpu=gpu, mfu=mfu)
    heads = ["", "trials", "of the run", "steps", "images", "evaluated", "GPU-hours", "TB read"]
    real = Budget(plan.run.replace({"workers": 1, "min_workers": None}), gpu=gpu, mfu=mfu)
    hours = [one.gpu_hours for one in costs]
    trained = sum(one.images for one in costs)
    total = f"{trained / real.images:.2g} real runs"
    if None not in hours and not real.unknown:
        whole = real.seconds / 3600
        total += f" in images; {sum(hours):,.0f} GPU-hours on {real.gpu.name}, of {whole:,.0f} of "
        total += f"the real run ({sum(hours) / whole:.0%}), with evaluations and starts"
    read = (trained + sum(one.evaluated for one in costs)) * plan.image_bytes
    facts = {
        "search": f"{plan.name}, for {plan.config.objective}",
        "space": "; ".join(f"{name} {one}" for name, one in plan.space.dimensions.items()),
        **({"shared": str(dict(plan.space.shared))} if plan.space.shared else {}),
        "cost": f"{total}; {read / 1e12:.3g} TB read",
    }
    rows = [heads, *(one.row(plan.image_bytes) for one in costs)]
    lines = [f"{name:<10}{text}" for name, text in facts.items()]
    return "\n".join([*lines, "", table(rows)])


def spent(plan: Plan, trials: Sequence[Trial]) -> str:
    """What the trials have cost, in words."""
    ended = [trial.outcome for trial in trials if trial.outcome]
    images = sum(one.images for one in ended)
    evaluated = plan.eval_samples * sum(one.status == DONE for one in ended)
    share = images / (plan.run.epochs * plan.samples)
    hours = sum(one.seconds * one.workers for one in ended)
    return (
        f"{share:.2g} real runs ({images:,} images trained on and {evaluated:,} evaluated, "
        f"{(images + evaluated) * plan.image_bytes / 1e12:.2g} TB read, {duration(hours)} of "
        f"workers)"
    )
