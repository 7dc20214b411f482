"""How a positive quantity is spread over images or classes, in bins of equal ratio.

values of one shard after another -> Tally -> Histogram -> central: what a chart has room for
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np

# share of all that a chart may leave out at either end
FAR_SHARE = 0.001


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Numbers by a quantity."""

    smallest: float = 0.0
    largest: float = 0.0
    bins: tuple[tuple[float, float, int], ...] = ()
    """Lower edge, upper edge and number; neighbours touch, the first and the last are not empty."""

    @property
    def total(self) -> int:
        """The number of all."""
        return sum(number for *_, number in self.bins)

    @property
    def central(self) -> tuple[tuple[float, float, int], ...]:
        """The bins without those at the ends that hold less than `FAR_SHARE` together."""
        sums = np.cumsum([number for *_, number in self.bins])
        few = FAR_SHARE * self.total
        first = int(np.searchsorted(sums, few, side="right"))
        last = int(np.searchsorted(sums, self.total - few, side="left"))
        return self.bins[first : last + 1]


class Tally:
    """Counts values, which may come in parts."""

    def __init__(self, per_doubling: int, *, centred: bool = False) -> None:
        """Count in this many bins a doubling; 1 is the edge of a bin, or the centre of one."""
        self._per_doubling, self._shift = per_doubling, 0.5 if centred else 0.0
        self._counts = Counter[int]()
        self._ends: list[float] = []

    def add(self, values: np.ndarray) -> None:
        """Count the positive ones of values (n,)."""
        values = values[values > 0]
        if not len(values):
            return
        numbers = np.floor(self._per_doubling * np.log2(values) + self._shift).astype(int)
        found, counts = np.unique(numbers, return_counts=True)
        self._counts.update(dict(zip(found.tolist(), counts.tolist(), strict=True)))
        ends = [*self._ends, float(values.min()), float(values.max())]
        self._ends = [min(ends), max(ends)]

    def histogram(self) -> Histogram:
        """What was counted."""
        if not self._counts:
            return Histogram()
        numbers = range(min(self._counts), max(self._counts) + 1)
        bins = tuple((self._edge(n), self._edge(n + 1), self._counts[n]) for n in numbers)
        return Histogram(smallest=self._ends[0], largest=self._ends[1], bins=bins)

    def _edge(self, number: int) -> float:
        return float(2.0 ** ((number - self._shift) / self._per_doubling))
