"""How a positive quantity is spread over images or classes, in bins of equal ratio.

values of one shard after another -> Tally -> Histogram -> central: what a chart has room for
"""

import math
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
    whole: bool = False
    """Whether the quantity is whole, as are then the edges; an upper edge is in no bin."""

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

    def __init__(self, per_doubling: int, *, centred: bool = False, whole: bool = False) -> None:
        """Count in this many bins a doubling; 1 is the edge of a bin, or the centre of one.

        Bins of whole numbers have whole edges: where they are narrower than 1, there are fewer, as
        some would have no number in them and others one.
        """
        self._per_doubling, self._shift = per_doubling, 0.5 if centred else 0.0
        self._whole = whole
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

    def histogram(self, most: int | None = None) -> Histogram:
        """What was counted; neighbouring bins are joined, 2, 4, 8, ..., until there are `most`."""
        if not self._counts:
            return Histogram()
        bins = self._bins(joined := 1)
        while most and len(bins) > most:
            bins = self._bins(joined := 2 * joined)
        return Histogram(
            smallest=self._ends[0], largest=self._ends[1], bins=bins, whole=self._whole
        )

    def _bins(self, joined: int) -> tuple[tuple[float, float, int], ...]:
        """The bins, of which each joins some."""
        counts = Counter[int]()
        for number, count in self._counts.items():
            counts[number // joined] += count
        numbers = range(min(counts), max(counts) + 1)
        edges = [(self._edge(joined * n), self._edge(joined * (n + 1)), n) for n in numbers]
        return tuple((low, high, counts[n]) for low, high, n in edges if low < high)

    def _edge(self, number: int) -> float:
        edge = 2.0 ** ((number - self._shift) / self._per_doubling)
        return float(math.ceil(edge) if self._whole else edge)
