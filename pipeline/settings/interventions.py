"""Changes to the course of a run at named steps: batches passed over, another learning rate.

Steps are numbered as in the log: step 1 is the first update. Both settings keep a run exact: it can
still be stopped anywhere, and a run that has them from the start takes the same course.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from support.settings import Rule

RANGE = re.compile(r"(\d+):(\d+)")
FACTOR = re.compile(r"(\d+):(\d+\.?\d*(?:[eE]-?\d+)?)")


@dataclass(frozen=True, kw_only=True)
class Interventions:
    """Deviations from the schedule of a run."""

    skipped: tuple[tuple[int, int], ...]
    """First and last step of each range without an update."""
    factors: tuple[tuple[int, float], ...]
    """Step, and the factor of the learning rate from it on; sorted by step."""

    @classmethod
    def of(cls, skip_steps: Sequence[str], lr_factors: Sequence[str]) -> Self:
        """Parse the settings of these names, which must keep their rules."""
        ranges = (RANGE.fullmatch(text).groups() for text in skip_steps)
        factors = (FACTOR.fullmatch(text).groups() for text in lr_factors)
        return cls(
            skipped=tuple(sorted((int(first), int(last)) for first, last in ranges)),
            factors=tuple(sorted((int(step), float(factor)) for step, factor in factors)),
        )

    @classmethod
    def of_flat(cls, settings: Mapping[str, object]) -> Self:
        """The same from the settings of a checkpoint, by dotted name."""
        return cls.of(settings.get("skip_steps", ()), settings.get("lr_factors", ()))

    def skips(self, step: int) -> bool:
        """Whether a step has no update."""
        return any(first <= step <= last for first, last in self.skipped)

    def factor(self, step: int) -> float:
        """Factor of the learning rate in a step: that of the latest change."""
        past = [factor for start, factor in self.factors if start <= step]
        return past[-1] if past else 1.0

    def until(self, step: int) -> Self:
        """The part that affects the steps up to this one."""
        skipped = tuple((a, min(b, step)) for a, b in self.skipped if a <= step)
        return type(self)(
            skipped=skipped, factors=tuple(change for change in self.factors if change[0] <= step)
        )


def rules(skip_steps: Sequence[str], lr_factors: Sequence[str]) -> Iterator[Rule]:
    """The rules of the two settings that they break."""
    for text in skip_steps:
        match = RANGE.fullmatch(text)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            yield "skip_steps", "must be ranges FIRST:LAST of steps from 1 on, such as 1200:1230"
    for text in lr_factors:
        match = FACTOR.fullmatch(text)
        if not match or int(match[1]) < 1:
            yield "lr_factors", "must be STEP:FACTOR with a step from 1 on, such as 1200:0.5"
