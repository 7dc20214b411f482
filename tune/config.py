"""Settings of a search: rungs, space, objective, seeds of the confirmation.

    32/256   32 trials, each with a complete schedule over 1/256 of the real run
    8/64     the best of them and the preset, with new seeds
    3/16     the best of these and the preset

A rung as written is its cost in real runs. Trials are compared within a rung alone, where all of
them have ended their schedules: nothing is judged half-way, while rates differ. Nothing here
imports PyTorch or Ray.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.evaluation.metrics import METRICS
from support.settings import Rule, Settings, below, setting, suggestion

PROBE = "probe/"


@dataclass(frozen=True, kw_only=True)
class Rung:
    """Trials of one length, one of which is the preset."""

    trials: int
    horizon: float
    """Length of a trial as a share of the real run."""

    @classmethod
    def of(cls, text: str) -> "Rung":
        """A rung from TRIALS/PARTS; ValueError if it has another form."""
        match = re.fullmatch(r"(\d+)/(\d+(?:\.\d+)?)", text)
        if not match or int(match[1]) < 2 or float(match[2]) < 1:
            raise ValueError(
                f"has {text!r}, and must be TRIALS/PARTS: at least 2 trials, one of which is the "
                f"preset, at one of at least 1 parts of the run, as 8/16"
            )
        return cls(trials=int(match[1]), horizon=1 / float(match[2]))

    def __str__(self) -> str:
        return f"{self.trials}/{1 / self.horizon:.12g}"


def part(horizon: float) -> str:
    """A share of the run, as 1/16."""
    return f"1/{1 / horizon:.4g}"


def cost(rungs: Sequence[Rung], seeds: int, overhead: float = 0.0) -> float:
    """Cost in real runs of the rungs and of the confirmation, which is as long as the last one.

    `overhead` is the cost of a trial besides its training: its start and its evaluation.
    """
    numbers = [*((rung.trials, rung.horizon) for rung in rungs), (2 * seeds, rungs[-1].horizon)]
    return sum(trials * (horizon + overhead) for trials, horizon in numbers)


@dataclass(frozen=True, kw_only=True)
class SearchConfig(Settings):
    """One search: runs of one preset in rungs, each of which is shorter than the real run."""

    name: str = setting("", common=True)
    """Name of the search in MLflow, and of its folder under runs_dir; empty: PRESET-SPACE."""
    space: str = setting("warmup-lr", common=True)
    """Named space, or a JSON file of {dotted setting: range}."""
    set: tuple[str, ...] = setting((), common=True)
    """Changes of the space: optim.lr=loguniform(1e-4,1e-2), randint(1,4), choice(0.03,0.1), or a
    plain value that all trials share."""
    rungs: tuple[str, ...] = setting((), common=True)
    """Rungs, each as TRIALS/PARTS: 32/64 8/16 3/4 are 32 trials at 1/64 of the run, the best of
    them and the preset again at 1/16, and at 1/4; the fractions add up to the cost in real runs.
    Empty: as the budget allows."""
    budget: float | None = setting(None, common=True)
    """GPU-hours that the search may take; rungs and trials are chosen so that they suffice. None:
    as many as one real run, unless `rungs` are given or the space has its own."""
    objective: str = setting("val/loss", common=True)
    """What to improve: val/loss, val/top1, val/top5, or a probe, such as probe/NAME/knn."""
    seeds: int = setting(4, may_change=True, common=True)
    """Pairs of runs that confirm the answer, of the settings found and of the preset, each pair
    with a seed of its own."""
    global_batch: int | None = None
    """Global batch of the trials; None: that of the preset."""
    warm_start: tuple[str, ...] = setting((), common=True)
    """Folders of earlier searches; what was best in them is tried first."""
    workers: int | None = setting(None, may_change=True, common=True)
    """Ray Train workers of each trial; None: as many as the trials of a rung can share. They do
    not change the global batch."""
    concurrent: int | None = setting(None, may_change=True, common=True)
    """Trials that run at the same time; None: as many as the cluster can run and feed with data."""
    seed: int = 0
    """Seed of the first rung, and of the choice of its trials; each further rung has the next."""

    def rules(self) -> Iterator[Rule]:
        """Counts that are large enough, rungs that grow longer, a known objective."""
        yield from below(self, 1, "workers", "concurrent", "global_batch")
        yield from below(self, 2, "seeds")
        try:
            rungs = [Rung.of(text) for text in self.rungs]
        except ValueError as error:
            yield "rungs", str(error)
        else:
            pairs = list(zip(rungs, rungs[1:], strict=False))
            if any(b.horizon <= a.horizon for a, b in pairs):
                yield "rungs", "must grow longer from rung to rung, as 32/64 8/16 3/4"
            if any(b.trials > a.trials for a, b in pairs):
                yield "rungs", "must not have more trials than the rung before, as 32/64 8/16 3/4"
        if self.budget is not None and not self.budget > 0:
            yield "budget", "must be above 0"
        if self.budget is not None and self.rungs:
            yield "budget", "chooses the rungs, so it cannot be given along with them"
        known = objectives()
        if self.objective not in known and not self.objective.startswith(PROBE):
            yield "objective", f"is unknown; {suggestion(self.objective, known)}, {PROBE}NAME/knn"
        if "/" in self.name or self.name.startswith("."):
            yield "name", "must be a plain folder name"

    @property
    def sign(self) -> int:
        """1 if less of the objective is better, otherwise -1."""
        return -1 if objectives().get(self.objective, True) else 1


def objectives() -> dict[str, bool]:
    """The metrics of an evaluation, and whether more is better; of a probe more always is."""
    return {f"val/{name}": metric.higher_is_better for name, metric in METRICS.items()}
