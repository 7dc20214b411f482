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
    labels, costs = [*(f"rung {n + 1}" for n, _ in enumerate(plan.rungs)), "confirmation"], []
    for rung, label in enumerate(labels):
        trials, horizon = plan.trials(rung), plan.horizon(rung)
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


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What the trials of a search have cost."""

    images: int
    """Images that they trained on."""
    evaluated: int
    real_runs: float
    terabytes: float
    worker_s: float
    """Seconds of all workers."""

    @classmethod
    def of(cls, plan: Plan, trials: Sequence[Trial]) -> "Spent":
        """The cost of the trials that have ended."""
        ended = [trial.outcome for trial in trials if trial.outcome]
        images = sum(one.images for one in ended)
        evaluated = plan.eval_samples * sum(one.status == DONE for one in ended)
        return cls(
            images=images,
            evaluated=evaluated,
            real_runs=images / (plan.run.epochs * plan.samples),
            terabytes=(images + evaluated) * plan.image_bytes / 1e12,
            worker_s=sum(one.seconds * one.workers for one in ended),
        )

    def __str__(self) -> str:
        return (
            f"{self.real_runs:.2g} real runs ({self.images:,} images trained on and "
            f"{self.evaluated:,} evaluated, {self.terabytes:.2g} TB read, "
            f"{duration(self.worker_s)} of workers)"
        )
