"""The answer of a search: what to use, how sure that is, and what it rests on.

    trials -> surface -> settings at the last rung's length -> pairs with the preset -> gain
                      -> settings at the length of the real run, with an interval

The trials of the rungs choose the settings; the pairs, which took no part in that, estimate what
they gain. Where zero is in the interval of the gain, the answer is to keep the preset.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from scipy import stats

from support.redact import redacted
from tune import ladder, transfer
from tune.cost import Spent
from tune.dimension import Choice, Range
from tune.plan import Plan, shown
from tune.rungs import part
from tune.surface import Surface
from tune.trial import DIVERGED, DONE, Trial

LEVEL = 0.95
"""Level of the interval of the gain."""
# rows of the table, the best first
TABLE_ROWS = 8
# a best value this close to an end of its range may have a better one beyond it
EDGE = 0.05


@dataclass(frozen=True, kw_only=True)
class Gain:
    """What the settings found gain over the preset, at the length of the last rung."""

    pairs: tuple[tuple[float, float], ...]
    """Objective of the preset and of the settings found, for each seed."""
    sign: int
    """1 if less of the objective is better, otherwise -1."""

    @property
    def differences(self) -> list[float]:
        """Improvement in each pair; positive is better."""
        return [self.sign * (preset - found) for preset, found in self.pairs]

    @property
    def mean(self) -> float:
        """Mean improvement."""
        return statistics.fmean(self.differences)

    @property
    def interval(self) -> tuple[float, float]:
        """Student's interval of the mean of paired differences, at LEVEL."""
        number = len(self.pairs)
        if number < 2:
            return -math.inf, math.inf
        error = statistics.stdev(self.differences) / math.sqrt(number)
        half = float(stats.t.ppf((1 + LEVEL) / 2, number - 1)) * error
        return self.mean - half, self.mean + half

    @property
    def is_real(self) -> bool:
        """Whether the interval is above zero."""
        return self.interval[0] > 0

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.mean:+.4g} ({LEVEL:.0%} interval {low:+.4g} to {high:+.4g})"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a search has found."""

    plan: Plan
    trials: Sequence[Trial]
    surface: Surface
    gain: Gain | None
    """None if the search found the preset itself, or if no pair was completed."""

    @property
    def objective(self) -> str:
        """The metric that the search improves."""
        return self.plan.config.objective

    @cached_property
    def found(self) -> Mapping[str, object]:
        """The best settings at the length of the last rung, as a sample: those of the pairs."""
        plan = self.plan
        return ladder.paired(plan, self.trials) or ladder.best_of(plan, self.surface)

    @cached_property
    def carried(self) -> dict[str, object]:
        """The best settings at the length of the real run, as a sample."""
        return self.surface.best(1.0)

    @property
    def keeps(self) -> bool:
        """Whether the answer is to keep the preset, also if what was found may diverge."""
        preset, found = self.diverged
        return bool(found) or not (preset or (self.gain and self.gain.is_real))

    @property
    def diverged(self) -> tuple[int, int]:
        """Numbers of the pairs in which the preset and the settings found diverged."""
        last = [trial for trial in self.trials if trial.rung == len(self.plan.rungs)]
        lost = [bool(trial.sample) for trial in last if trial.status == DIVERGED]
        return lost.count(False), lost.count(True)

    def settings(self) -> dict[str, object]:
        """Settings of the real run that differ from the preset's; none if it is kept."""
        return {} if self.keeps else self.plan.carried(self.carried)

    def sentences(self) -> tuple[str, str, str]:
        """What to use, where the optimum lies, and what this rests on."""
        return recommendation(self), region(self), basis(self)

    def table(self) -> list[list[str]]:
        """The heads, then a row for each of the settings that came furthest, and the preset."""
        sign, last = self.plan.config.sign, len(self.plan.rungs)
        done = [trial for trial in self.trials if trial.status == DONE and trial.rung < last]
        done.sort(key=lambda trial: (-trial.rung, sign * trial.value(self.objective)))
        rows: dict[str, Trial] = {}
        for trial in done:  # settings in several rungs count where they came furthest
            rows.setdefault(shown(trial.sample), trial)
        kept = [t for place, t in enumerate(rows.values()) if place < TABLE_ROWS or not t.sample]
        heads = ["rung", "of the run", *self.plan.space.dimensions, self.objective, "gain"]
        presets = {trial.rung: trial.value(self.objective) for trial in done if not trial.sample}
        return [heads, *(self._row(trial, presets.get(trial.rung)) for trial in kept)]

    def _row(self, trial: Trial, preset: float | None) -> list[str]:
        """The row of a trial; `preset` is the objective of the preset in its rung."""
        value, sample = trial.value(self.objective), trial.sample or self.plan.preset_sample()
        gain = None
        if preset is not None and trial.sample:
            gain = self.plan.config.sign * (preset - value)
        return [
            f"{trial.rung + 1}" if trial.sample else f"{trial.rung + 1}, the preset",
            part(self.plan.horizon(trial.rung)),
            *(cell(sample.get(name, "")) for name in self.plan.space.dimensions),
            f"{value:.4f}",
            "" if gain is None else f"{gain:+.4f}",
        ]

    def counts(self) -> dict[str, int]:
        """Number of trials by how they ended."""
        statuses = [trial.status for trial in self.trials]
        return {name: statuses.count(name) for name in (DONE, DIVERGED) if name in statuses}

    def preset_file(self) -> Mapping[str, object]:
        """The content of the file for `python -m pipeline train --preset-file`."""
        plan, name = self.plan, f"{self.plan.name}-{'preset' if self.keeps else 'best'}"
        settings = redacted(plan.run.replace(self.settings()).flat())
        return {
            "preset": plan.preset,
            "settings": {**settings, "name": name},
            "found": {
                "search": plan.name,
                "gain": None if self.gain is None else str(self.gain),
                "text": " ".join(self.sentences()),
            },
        }


def answer_of(plan: Plan, trials: Sequence[Trial]) -> Answer:
    """The answer from the trials of a search that has ended."""
    return Answer(
        plan=plan,
        trials=trials,
        surface=ladder.surface(plan, trials),
        gain=gain_of(plan, trials),
    )


def gain_of(plan: Plan, trials: Sequence[Trial]) -> Gain | None:
    """The gain from the pairs of which both trials were completed; None without any."""
    values = {t.place: t.value(plan.config.objective) for t in trials if t.rung == len(plan.rungs)}
    pairs = [(values.get(2 * n), values.get(2 * n + 1)) for n in range(plan.config.seeds)]
    complete = tuple(pair for pair in pairs if None not in pair)
    return Gain(pairs=complete, sign=plan.config.sign) if complete else None


def recommendation(answer: Answer) -> str:
    """Which settings to use, and what they gain."""
    gain, plan = answer.gain, answer.plan
    length = f"at {part(plan.rungs[-1].horizon)} of the run"
    tried = f"the best that the search found ({shown(answer.found)})"
    preset, found = answer.diverged
    if found:
        return (
            f"Keep the preset's settings: {length}, {tried} diverged in {found} of "
            f"{plan.config.seeds} runs."
        )
    if preset:
        return (
            f"Use {settings_text(answer)}: {length}, the preset's settings diverged in {preset} of "
            f"{plan.config.seeds} runs, and {tried} in none."
        )
    if gain is None:
        return f"Keep the preset's settings: {length}, they are the best that the search found."
    runs = f"in {len(gain.pairs)} pairs of runs that took no part in the choice"
    if answer.keeps:
        return (
            f"Keep the preset's settings: {length}, {tried} gain {gain} in {answer.objective} over "
            f"them, {runs}: "
            f"{'they are worse' if gain.interval[1] < 0 else 'that is within the noise'}."
        )
    return (
        f"Use {settings_text(answer)}: {length}, what was best there ({shown(answer.found)}) "
        f"gains {gain} in {answer.objective} over the preset's settings, {runs}."
    )


def settings_text(answer: Answer) -> str:
    """The settings of the real run that differ from the preset's, in words."""
    plan, settings = answer.plan, answer.settings()
    run, before = plan.run.replace(settings), plan.run.flat()
    words = [
        f"{name} {cell(value)}"
        for name, value in settings.items()
        if not name.startswith("optim.warmup") and before[name] != value
    ]
    if "optim.warmup" in settings:
        share = transfer.share_of_run(run, "warmup", plan.samples)
        steps = share * run.steps(plan.samples)
        words.append(f"a warm-up of {steps:,.0f} steps ({share:.1%} of the run)")
    return " and ".join([", ".join(words[:-1]), words[-1]] if words[1:] else words)


def region(answer: Answer) -> str:
    """Where the optimum of the real run lies, and what is as good."""
    surface, spans, near = answer.surface, [], answer.surface.region(1.0)
    same = []
    for name, dimension in answer.plan.space.dimensions.items():
        values = [sample[name] for sample in near]
        if isinstance(dimension, Range):
            low, high = surface.interval(name, 1.0)
            spans.append(f"{name} from {low:.3g} to {high:.3g}")
            same.append(f"{name} from {min(values):.3g} to {max(values):.3g}")
        else:
            options = [option for option in dimension.options if option in values]
            same.append(f"{name} {' or '.join(map(cell, options))}")
    where = f"Carried to the real run, the best lies at {shown(answer.carried)}"
    interval = f" (90 % interval: {', '.join(spans)})" if spans else ""
    return (
        f"{where}{interval}; as good within the noise of one run ({surface.noise:.2g} in "
        f"{answer.objective}) are settings with {' and '.join(same)}."
    )


def basis(answer: Answer) -> str:
    """How the settings were carried to the real run, and what the search cost."""
    plan, words = answer.plan, []
    for name, dimension in plan.space.dimensions.items():
        if isinstance(dimension, Range) and dimension.log and len(plan.rungs) > 1:
            slope, low, high = answer.surface.slope(name)
            words.append(f"{name} by length ** {slope:.2f} ({low:.2f} to {high:.2f})")
    moved = (
        f"By the rungs and a weak assumption, the best moves with the length of the run: "
        f"{', '.join(words)}"
    )
    if not words:
        moved = (
            f"The settings are those of the last rung, at {part(plan.rungs[-1].horizon)} of the run"
        )
    if plan.batch != plan.run.global_batch and "optim.lr" in plan.space.dimensions:
        factor = transfer.rate_factor(plan.run.optim.name, plan.batch, plan.run.global_batch)
        moved += f"; for the batch of the real run the rate is multiplied by {factor:.3g}, a rule"
    edges = " and ".join(at_edge(answer))
    warning = (
        f"; {edges} lies at the edge of its range, beyond which may be better" if edges else ""
    )
    return f"{moved}{warning}. The search cost {Spent.of(plan, answer.trials)}."


def at_edge(answer: Answer) -> list[str]:
    """Dimensions in which the best of the real run lies at an end of the range."""
    return [
        name
        for name, dimension in answer.plan.space.dimensions.items()
        if not isinstance(dimension, Choice)
        if not EDGE < dimension.share(answer.carried[name]) < 1 - EDGE
    ]


def cell(value: object) -> str:
    """A value for the table."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
