"""What a search has found: the best settings, how sure that is, how flat the optimum.

    trials.jsonl -> a Group for each setting that was tried -> ranked -> three sentences, a table

Settings are compared by the mean over their seeds. What counts as the same is two standard
deviations between seeds, pooled over all settings that were run with several; without such, two
standard errors of a share of the eval images.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tune.config import objectives
from tune.dimension import Range
from tune.job import SearchJob
from tune.sampler import importances
from tune.trial_log import DIVERGED, DONE, ENDED, STOPPED, TRIALS, Entry, read_entries

# rows of the table
TABLE_ROWS = 8
# a best value this close to an end of its range may have a better one beyond it
EDGE = 0.08


@dataclass(frozen=True, kw_only=True)
class Group:
    """One setting that was run to its end, with one seed or several."""

    number: int
    sample: Mapping[str, object]
    settings: Mapping[str, object]
    runs: tuple[Mapping[str, float], ...]
    """Metrics of each seed."""

    def mean(self, metric: str) -> float:
        """Mean of a metric over the seeds."""
        return statistics.fmean(values[metric] for values in self.runs)

    def spread(self, metric: str) -> float | None:
        """Standard deviation of a metric between seeds; None for a single one."""
        values = [values[metric] for values in self.runs]
        return statistics.stdev(values) if len(values) > 1 else None

    def shown(self, metric: str) -> str:
        """Mean and spread for a reader."""
        spread = self.spread(metric)
        mean = f"{self.mean(metric):.4f}"
        return mean if spread is None else f"{mean} ± {spread:.4f}"


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """What a search has found."""

    job: SearchJob
    entries: Sequence[Entry]
    groups: Sequence[Group]
    """From the best on."""
    tolerance: float
    """Difference in the objective that is not one."""
    tolerance_source: str
    importance: Mapping[str, float] | None

    @property
    def objective(self) -> str:
        """What the best is best in."""
        return self.job.config.objective[0]

    @property
    def metrics(self) -> tuple[str, ...]:
        """What is shown of each setting."""
        return tuple(dict.fromkeys((*self.job.config.objective, "val/loss")))

    @property
    def best(self) -> Group:
        """The settings to use."""
        return self.groups[0]

    @property
    def baseline(self) -> Group | None:
        """The preset's own settings."""
        return next((group for group in self.groups if group.number == 0), None)

    @property
    def near(self) -> list[Group]:
        """Settings that are as good as the best."""
        sign = 1 if objectives()[self.objective] else -1
        least = sign * self.best.mean(self.objective) - self.tolerance
        return [g for g in self.groups if sign * g.mean(self.objective) >= least]

    @property
    def front(self) -> list[Group]:
        """Settings that no other beats in all objectives."""
        return [g for g in self.groups if not any(self._beats(other, g) for other in self.groups)]

    def _beats(self, one: Group, other: Group) -> bool:
        ahead = [
            (one.mean(name) - other.mean(name)) * (1 if objectives()[name] else -1)
            for name in self.job.config.objective
        ]
        return min(ahead) >= 0 and max(ahead) > 0

    def settings(self) -> dict[str, object]:
        """Settings for the real run."""
        return self.job.carried(self.best.settings)

    def edges(self) -> list[str]:
        """Ranges at whose end the best lies, where a wider one may hold a better one."""
        found = []
        for name, dimension in self.job.space.dimensions.items():
            if isinstance(dimension, Range) and name in self.best.sample and self.best.number:
                share = dimension.share(self.best.sample[name])
                if not EDGE < share < 1 - EDGE:
                    found.append(name)
        return found

    def counts(self) -> dict[str, int]:
        """Trials by how they ended, without those of further seeds."""
        first = [entry.status for entry in self.entries if not entry.repeat]
        return {status: first.count(status) for status in (*ENDED, "failed") if status in first}

    @property
    def images(self) -> int:
        """Images that all trials were trained on."""
        return sum(entry.images for entry in self.entries)

    @property
    def saved_images(self) -> int:
        """Images that the trials which were stopped or diverged were spared."""
        left = 0
        for entry in self.entries:
            if entry.status in (STOPPED, DIVERGED):
                config = self.job.tuned(entry.settings)
                left += config.steps(self.job.samples) * config.global_batch - entry.images
        return left

    @property
    def run_images(self) -> float:
        """Images of the real run."""
        return self.job.run.epochs * self.job.samples

    @property
    def seconds(self) -> float:
        """Wall time of all trials, one after the other."""
        return sum(entry.seconds for entry in self.entries)


def read_result(job: SearchJob) -> SearchResult:
    """Work out the answer from the record of a search; without a completed trial a ValueError."""
    entries = read_entries(job.dir / TRIALS)
    groups = groups_of(job, entries)
    if not groups:
        ended = {entry.status for entry in entries} & {STOPPED, DIVERGED}
        advice = "lower the learning rates" if ended == {DIVERGED} else "look at trials.jsonl"
        raise ValueError(f"no trial of search {job.name!r} was completed; {advice}")
    tolerance, source = tolerance_of(job, groups)
    return SearchResult(
        job=job,
        entries=entries,
        groups=groups,
        tolerance=tolerance,
        tolerance_source=source,
        importance=importances(job.space, entries, job.config),
    )


def groups_of(job: SearchJob, entries: Sequence[Entry]) -> list[Group]:
    """What was completed, from the best on: those run with all seeds come before the others.

    The best of many single runs is lucky, so that a mean over seeds is never held against one run.
    """
    objective, groups = job.config.objective[0], []
    for first in entries:
        if first.repeat or first.status != DONE:
            continue
        runs = [e.values for e in entries if e.number == first.number and e.status == DONE]
        groups.append(
            Group(
                number=first.number,
                sample=first.sample,
                settings=first.settings,
                runs=tuple(runs),
            )
        )
    sign = 1 if objectives()[objective] else -1
    most = max((len(group.runs) for group in groups), default=0)
    return sorted(
        groups,
        key=lambda g: (len(g.runs) == most, sign * g.mean(objective), -g.mean("val/loss")),
        reverse=True,
    )


def tolerance_of(job: SearchJob, groups: Sequence[Group]) -> tuple[float, str]:
    """The difference that is not one, and where it comes from."""
    objective = job.config.objective[0]
    spreads = [g.spread(objective) for g in groups if len(g.runs) > 1]
    share = objective in ("val/top1", "val/top5")
    if spreads:
        pooled = math.sqrt(statistics.fmean(spread**2 for spread in spreads))
        least = 1 / job.eval_samples if share else 0.0
        return max(2 * pooled, least), "two standard deviations between seeds"
    best = groups[0].mean(objective)
    if share:
        error = math.sqrt(max(best * (1 - best), 1e-12) / job.eval_samples)
        return max(2 * error, 1 / job.eval_samples), (
            f"two standard errors of a share of {job.eval_samples:,} images"
        )
    return abs(best) / 100, "one percent"
