"""The answer of a search: what to use, how sure that is, and what it rests on.

    trials -> surface -> settings at the last rung's length -> pairs with the preset -> gain
                      -> settings at the length of the real run, with an interval

The trials of the rungs choose the settings; the pairs, which took no part in that, estimate what
they gain. Where zero is in the interval of the gain, the answer is to keep the preset.
"""

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from scipy import stats

from support.console import duration
from support.redact import redacted
from tune import ladder, transfer
from tune.config import cost, part
from tune.dimension import Choice, Range
from tune.plan import Plan, cell, shown
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


class Answer:
    """What a search has found, from its trials."""

    def __init__(self, plan: Plan, trials: Sequence[Trial]) -> None:
        self.plan, self.trials = plan, trials

    @property
    def objective(self) -> str:
        """The metric that the search improves."""
        return self.plan.config.objective

    @cached_property
    def surface(self) -> Surface:
        """The surface over the trials of the rungs."""
        return ladder.surface(self.plan, self.trials)

    @cached_property
    def gain(self) -> Gain | None:
        """The gain from the pairs of which both trials were completed; None without any."""
        values = {trial.place: trial.value(self.objective) for trial in self._confirming}
        pairs = [(values.get(2 * n), values.get(2 * n + 1)) for n in range(self.plan.config.seeds)]
        complete = tuple(pair for pair in pairs if None not in pair)
        return Gain(pairs=complete, sign=self.plan.config.sign) if complete else None

    @property
    def _confirming(self) -> list[Trial]:
        return [trial for trial in self.trials if trial.rung == len(self.plan.rungs)]

    @cached_property
    def found(self) -> Mapping[str, object]:
        """The best settings at the length of the last rung, as a sample: those of the pairs."""
        return ladder.found(self.plan, self.trials)

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
        lost = [bool(trial.sample) for trial in self._confirming if trial.status == DIVERGED]
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
        done = [trial for trial in ladder.ranked(self.plan, self.trials) if trial.rung < last]
        presets = {trial.rung: trial.value(self.objective) for trial in done if not trial.sample}
        furthest: dict[str, Trial] = {}
        for trial in done:  # settings in several rungs count where they came furthest
            furthest.setdefault(shown(trial.sample), trial)
        rows = [["rung", "of the run", *self.plan.space.dimensions, self.objective, "gain"]]
        for place, trial in enumerate(furthest.values()):
            if place >= TABLE_ROWS and trial.sample:
                continue
            value, sample = trial.value(self.objective), trial.sample or self.plan.preset_sample()
            gains = trial.sample and trial.rung in presets
            rows.append(
                [
                    f"{trial.rung + 1}{'' if trial.sample else ', the preset'}",
                    part(self.plan.horizon(trial.rung)),
                    *(cell(sample.get(name, "")) for name in self.plan.space.dimensions),
                    f"{value:.4f}",
                    f"{sign * (presets[trial.rung] - value):+.4f}" if gains else "",
                ]
            )
        return rows

    def counts(self) -> dict[str, int]:
        """Number of trials by how they ended."""
        return Counter(trial.status for trial in self.trials)

    def spent(self) -> dict[str, str]:
        """What the trials that have ended have cost, by what it is."""
        plan, ended = self.plan, [trial.outcome for trial in self.trials if trial.outcome]
        images = sum(one.images for one in ended)
        evaluated = plan.eval_samples * sum(one.status == DONE for one in ended)
        planned = f"real runs, of {cost(plan.rungs, plan.config.seeds):.2g} planned"
        return {
            planned: f"{images / (plan.run.epochs * plan.samples):.2g}",
            "images trained on": f"{images:,}",
            "evaluated": f"{evaluated:,}",
            "TB read": f"{(images + evaluated) * plan.image_bytes / 1e12:.2g}",
            "of workers": duration(sum(one.seconds * one.workers for one in ended)),
        }

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


def recommendation(answer: Answer) -> str:
    """Which settings to use, and what they gain."""
    gain, seeds, (preset, found) = answer.gain, answer.plan.config.seeds, answer.diverged
    tried = f"the best that the search found ({shown(answer.found)})"
    if found:
        why = f"{tried} diverged in {found} of {seeds} runs"
    elif preset:
        why = f"the preset diverged in {preset} of {seeds} runs, and {tried} in none"
    elif gain is None:
        why = "they are the best that the search found"
    else:
        why = (
            f"{tried} gains {gain} in {answer.objective} over the preset, in {len(gain.pairs)} "
            f"pairs of runs that took no part in the choice"
        )
        if answer.keeps:
            why += ": it is worse" if gain.interval[1] < 0 else ": that is within the noise"
    use = "Keep the preset's settings" if answer.keeps else f"Use {settings_text(answer)}"
    return f"{use}: at {part(answer.plan.rungs[-1].horizon)} of the run, {why}."


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
    interval = f" (90 % interval: {', '.join(spans)})" if spans else ""
    return (
        f"Carried to the real run, the best lies at {shown(answer.carried)}{interval}; as good "
        f"within the noise of one run ({surface.noise:.2g} in {answer.objective}) are settings "
        f"with {' and '.join(same)}."
    )


def basis(answer: Answer) -> str:
    """How the settings were carried to the real run, and what the search cost."""
    plan, dimensions = answer.plan, answer.plan.space.dimensions
    moving = [name for name, d in dimensions.items() if isinstance(d, Range) and d.log]
    text = f"The settings are those of the last rung, at {part(plan.rungs[-1].horizon)} of the run"
    if moving and len(plan.rungs) > 1:
        slopes = [(name, *answer.surface.slope(name)) for name in moving]
        words = ["{} by length ** {:.2f} ({:.2f} to {:.2f})".format(*slope) for slope in slopes]
        text = "By the rungs and a weak assumption, the best moves with the length of the run: "
        text += ", ".join(words)
    if plan.batch != plan.run.global_batch and "optim.lr" in dimensions:
        factor = transfer.rate_factor(plan.run.optim.name, plan.batch, plan.run.global_batch)
        text += f"; for the batch of the real run the rate is multiplied by {factor:.3g}, a rule"
    edges = [
        name
        for name, dimension in dimensions.items()
        if not isinstance(dimension, Choice)
        if not EDGE < dimension.share(answer.carried[name]) < 1 - EDGE
    ]
    if edges:
        text += f"; {' and '.join(edges)} lies at the edge of its range, beyond which may be better"
    spent = "; ".join(f"{amount} {what}" for what, amount in answer.spent().items())
    return f"{text}. The search cost {spent}."
