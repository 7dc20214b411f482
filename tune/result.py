"""The result of a search: the best settings, how certain they are, how flat the optimum is.

    trials.jsonl -> one Group for each completed setting -> ranked -> SearchResult

Settings are compared by their mean over seeds. A difference does not count if it is within two
standard deviations between seeds, pooled over all settings that were run with several seeds.
Without those, the tolerance is two standard errors of a share of the eval images.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tune.config import sign_of
from tune.dimension import Range
from tune.job import SearchJob
from tune.sampler import importances
from tune.trial_log import DIVERGED, DONE, ENDED, FAILED, STOPPED, TRIALS, Entry, read_entries

# a best value this close to an end of its range may have a better one beyond it
EDGE = 0.08


@dataclass(frozen=True, kw_only=True)
class Group:
    """The completed runs of one setting, one for each seed."""

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
        """Mean and spread as text."""
        spread = self.spread(metric)
        return f"{self.mean(metric):.4f}" + (f" ± {spread:.4f}" if spread is not None else "")


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """The completed settings of a search in order, and what they show."""

    job: SearchJob
    entries: Sequence[Entry]
    groups: Sequence[Group]
    """The best first."""
    tolerance: float
    """Differences in the objective up to this size do not count."""
    tolerance_source: str
    importance: Mapping[str, float] | None

    @property
    def objective(self) -> str:
        """The metric that settings are ranked by."""
        return self.job.config.objective[0]

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics in the table."""
        return tuple(dict.fromkeys((*self.job.config.objective, "val/loss")))

    @property
    def best(self) -> Group:
        """The settings to use."""
        return self.groups[0]

    @property
    def baseline(self) -> Group | None:
        """The preset's own settings; None if they were not completed."""
        return next((group for group in self.groups if group.number == 0), None)

    @property
    def near(self) -> list[Group]:
        """Settings within the tolerance of the best."""
        sign = sign_of(self.objective)
        least = sign * self.best.mean(self.objective) - self.tolerance
        return [g for g in self.groups if sign * g.mean(self.objective) >= least]

    @property
    def front(self) -> list[Group]:
        """Settings that no other beats in all objectives (the Pareto front)."""
        return [g for g in self.groups if not any(self._beats(other, g) for other in self.groups)]

    def _beats(self, group: Group, other: Group) -> bool:
        gains = [
            sign_of(name) * (group.mean(name) - other.mean(name))
            for name in self.job.config.objective
        ]
        return min(gains) >= 0 and max(gains) > 0

    def settings(self) -> dict[str, object]:
        """Settings for the real run."""
        return self.job.carried(self.best.settings)

    def edges(self) -> list[str]:
        """Dimensions in which the best lies at an end of the range; a wider range may be better."""
        sample = self.best.sample
        return [
            name
            for name, dimension in self.job.space.dimensions.items()
            if self.best.number and name in sample and isinstance(dimension, Range)
            if not EDGE < dimension.share(sample[name]) < 1 - EDGE
        ]

    def counts(self) -> dict[str, int]:
        """Number of trials by how they ended, without the runs of further seeds."""
        statuses = [entry.status for entry in self.entries if not entry.repeat]
        return {name: statuses.count(name) for name in (*ENDED, FAILED) if name in statuses}

    @property
    def images(self) -> int:
        """Images that all trials together were trained on."""
        return sum(entry.images for entry in self.entries)

    @property
    def saved_images(self) -> int:
        """Images that the trials which were stopped or diverged were not trained on."""
        cut = [entry for entry in self.entries if entry.status in (STOPPED, DIVERGED)]
        configs = [self.job.tuned(entry.settings) for entry in cut]
        planned = sum(config.steps(self.job.samples) * config.global_batch for config in configs)
        return planned - sum(entry.images for entry in cut)

    @property
    def run_images(self) -> float:
        """Images of the real run."""
        return self.job.run.epochs * self.job.samples

    @property
    def seconds(self) -> float:
        """Total wall time of all trials."""
        return sum(entry.seconds for entry in self.entries)


def read_result(job: SearchJob) -> SearchResult:
    """Compute the result from the trial log; raises ValueError if no trial was completed."""
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
    """The completed settings, the best first; those run with all seeds come before the others.

    The best of many single runs is partly luck, so a mean over seeds is not compared with one run.
    """
    done = [entry for entry in entries if entry.status == DONE]
    groups = []
    for first in (entry for entry in done if not entry.repeat):
        number, sample, settings = first.number, first.sample, first.settings
        runs = tuple(entry.values for entry in done if entry.number == number)
        groups.append(Group(number=number, sample=sample, settings=settings, runs=runs))
    objective = job.config.objective[0]
    sign, most = sign_of(objective), max((len(group.runs) for group in groups), default=0)
    return sorted(
        groups,
        key=lambda g: (len(g.runs) == most, sign * g.mean(objective), -g.mean("val/loss")),
        reverse=True,
    )


def tolerance_of(job: SearchJob, groups: Sequence[Group]) -> tuple[float, str]:
    """The largest difference in the objective that does not count, and how it was determined."""
    objective = job.config.objective[0]
    spreads = [g.spread(objective) for g in groups if len(g.runs) > 1]
    # an accuracy is a share of the eval images, and one image is its smallest difference
    is_share = objective in ("val/top1", "val/top5")
    least = 1 / job.eval_samples if is_share else 0.0
    if spreads:
        pooled = math.sqrt(statistics.fmean(spread**2 for spread in spreads))
        return max(2 * pooled, least), "two standard deviations between seeds"
    best = groups[0].mean(objective)
    if is_share:
        error = math.sqrt(max(best * (1 - best), 1e-12) / job.eval_samples)
        source = f"two standard errors of a share of {job.eval_samples:,} images"
        return max(2 * error, least), source
    return abs(best) / 100, "one percent"
