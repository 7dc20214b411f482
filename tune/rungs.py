"""Rungs: how many trials run at which horizon, and what that costs.

    32/256   32 trials, each with a complete schedule over 1/256 of the real run
    8/64     the best of them and the preset, with new seeds
    3/16     the best of these and the preset

A rung as written is its cost in real runs. Trials are compared within a rung alone, where all of
them have ended their schedules: nothing is judged half-way, while rates differ.
"""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

# by how much the rungs differ in trials and in length, and trials of the last one
GROWTH, LAST = 4, 3
# parts of the run of which the budget chooses one as the length of the last rung
PARTS = (1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
# a shorter schedule than this says little about a warm-up
MIN_STEPS = 50


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

    @property
    def cost(self) -> float:
        """Cost in real runs."""
        return self.trials * self.horizon


def part(horizon: float) -> str:
    """A share of the run, as 1/16."""
    return f"1/{1 / horizon:.4g}"


def cost(rungs: Sequence[Rung], seeds: int, overhead: float = 0.0) -> float:
    """Cost in real runs of the rungs and of the confirmation, which is as long as the last one.

    `overhead` is the cost of a trial besides its training: its start and its evaluation.
    """
    trials = sum(rung.trials for rung in rungs) + 2 * seeds
    return sum(rung.cost for rung in rungs) + 2 * seeds * rungs[-1].horizon + trials * overhead


def choose_rungs(share: float, *, steps: int, seeds: int, overhead: float) -> list[Rung]:
    """The rungs with the longest trials that cost at most `share` of the real run.

    A trial has at least MIN_STEPS steps. Where that is too much, the rungs have fewer trials; where
    even the fewest are, they are taken all the same.

    Args:
        share: Most that the search may cost, in real runs.
        steps: Steps of the real run.
        seeds: Pairs of the confirmation.
        overhead: Cost of a trial besides its training, in real runs.
    """
    for trials in ((32, 24), (16, 12, 8)):
        for parts, first in itertools.product(PARTS, trials):
            rungs = ladder(first, 1 / parts)
            if rungs[0].horizon * steps < MIN_STEPS:
                break
            if cost(rungs, seeds, overhead) <= share:
                return rungs
    parts = max(1, steps // MIN_STEPS)
    last = Rung(trials=LAST, horizon=1 / max(1, parts // (GROWTH - 1)))
    return [Rung(trials=8, horizon=1 / parts), last][parts == 1 :]


def ladder(first: int, last: float) -> list[Rung]:
    """Three rungs, from the trials of the first and the length of the last."""
    trials = (first, max(LAST + 1, first // GROWTH), LAST)
    lengths = (last / GROWTH**2, last / GROWTH, last)
    return [Rung(trials=n, horizon=h) for n, h in zip(trials, lengths, strict=True)]
