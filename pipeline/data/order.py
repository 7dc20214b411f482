"""The order of samples: one endless, seeded sequence, addressed by one integer position.

    shards -> slices (short runs of neighbouring samples) -> permutation per epoch -> spans to read

Epochs follow each other without a gap. Global batch k is the positions [k*G, (k+1)*G) for any
number of workers, and each worker takes a contiguous share of it. The number of samples consumed is
therefore enough to resume a run on any number of workers.

A slice is read as a whole, so the sequence is made of *units* of s samples, s being the length of a
full slice. Units start at the multiples of s, in every epoch: a share that starts and ends at such
multiples reads no byte that it does not need. If the share of a node is smaller than s, every node
on a unit reads all of it, s / share times the bytes: choose slices no longer than the share of a
node, best a divisor of it.

Everything here is a pure function of (slices, seed): no Ray, no torch, no files. Memory grows with
the number of slices, not with the number of images.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache

import numpy as np

from pipeline.data.epoch import Epoch, ReadSpans, permutation


@dataclass(frozen=True, kw_only=True)
class Slices:
    """Table of slices: one row per run of neighbouring samples, in shard order."""

    shard: np.ndarray
    """(S,) int32: number of the shard."""
    count: np.ndarray
    """(S,) int32: samples in the slice, at least 1."""
    start: np.ndarray
    """(S,) int64: first byte of the slice in its shard."""
    stop: np.ndarray
    """(S,) int64: byte after the slice."""

    @classmethod
    def cut(cls, extents: Sequence[tuple[np.ndarray, np.ndarray]], samples: int) -> "Slices":
        """Cut every `samples` samples; a shard is given by the start and stop bytes of each."""
        if samples < 1:
            raise ValueError(f"slice length ({samples}) must be at least 1; 1 is a full shuffle")
        if not any(len(starts) for starts, _ in extents):
            raise ValueError("no samples: the shards are empty, or the settings keep none of them")
        columns = []
        for number, (starts, stops) in enumerate(extents):
            first = np.arange(0, len(starts), samples)
            last = np.minimum(first + samples, len(starts))
            shard = np.full(len(first), number, np.int32)
            count = (last - first).astype(np.int32)
            start, stop = np.asarray(starts, np.int64), np.asarray(stops, np.int64)
            columns.append((shard, count, start[first], stop[last - 1]))
        shard, count, start, stop = map(np.concatenate, zip(*columns, strict=True))
        return cls(shard=shard, count=count, start=start, stop=stop)

    @property
    def samples(self) -> int:
        """Samples in all slices."""
        return int(self.count.sum(dtype=np.int64))


@dataclass(frozen=True, kw_only=True)
class Order:
    """The endless sequence over a slice table."""

    counts: np.ndarray
    """(S,) samples of each slice."""
    seed: int | None
    """Seed of the permutations; None keeps the order of the shards (evaluation)."""

    @cached_property
    def samples(self) -> int:
        """Samples of one epoch."""
        return int(self.counts.sum(dtype=np.int64))

    @cached_property
    def unit(self) -> int:
        """Samples of a unit: of the longest slice, or, in the order of the shards, of all."""
        return self.samples if self.seed is None else int(self.counts.max())

    def spans(self, start: int, stop: int) -> ReadSpans:
        """Spans of positions [start, stop), which may cross epochs."""
        if not 0 <= start <= stop:
            raise ValueError(f"positions [{start}, {stop}) must be ordered and not negative")
        pieces = []
        while start < stop:
            number = start // self.samples
            end = min(stop, (number + 1) * self.samples)
            pieces.append(self.epoch(number).spans(start, end))
            start = end
        return ReadSpans.joined(pieces)

    def epoch(self, number: int) -> Epoch:
        """The epoch with this number; the last one is kept, as a run goes through them in order."""
        cached = self.__dict__.get("_cached")
        if cached is None or cached.start != number * self.samples:
            cached = Epoch.drawn(self.counts, self.unit, self.seed, number)
            self.__dict__["_cached"] = cached
        return cached

    def __getstate__(self) -> dict[str, object]:
        """Drop the cached epoch when the order is pickled."""
        return {name: value for name, value in self.__dict__.items() if name != "_cached"}


# makes the pattern of a period differ from the permutation of the epoch with the same number
PATTERN = 0x5851F42D4C957F2D
# runs in a period of a mixture; each subset has a fixed number of them
PERIOD_RUNS = 1024


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """The endless sequences of several subsets, mixed by weight in runs of neighbouring positions.

    In every period of PERIOD_RUNS runs each subset has a fixed number of runs, at places drawn from
    (seed, period). It fills them from its own sequence, so a small subset starts its next epoch as
    soon as it is exhausted.
    """

    orders: tuple[Order, ...]
    rows: tuple[int, ...]
    """First row of each subset in the joint slice table."""
    weights: tuple[float, ...]
    """Share of each subset in the sequence, in any unit."""
    run: int
    """Positions in a run."""
    seed: int
    counts: tuple[int, ...] = field(init=False)
    """Runs of each subset in a period."""

    def __post_init__(self) -> None:
        """Distribute the runs of a period over the subsets by largest remainder."""
        if len(self.weights) != len(self.orders) or not all(w > 0 for w in self.weights):
            raise ValueError(
                f"weights {self.weights} must be one number above 0 for each of the "
                f"{len(self.orders)} shard sets"
            )
        exact = np.array(self.weights) / sum(self.weights) * PERIOD_RUNS
        counts = np.floor(exact).astype(int)
        rest = np.argsort(counts - exact, kind="stable")[: PERIOD_RUNS - counts.sum()]
        counts[rest] += 1
        if not counts.all():
            raise ValueError(
                f"weights {self.weights}: the smallest is below 1/{PERIOD_RUNS} of their sum"
            )
        object.__setattr__(self, "counts", tuple(counts.tolist()))

    def spans(self, start: int, stop: int) -> ReadSpans:
        """Spans of positions [start, stop)."""
        pieces = []
        while start < stop:
            number, inside = divmod(start, self.run)
            taken = min(stop - start, self.run - inside)
            subset, num_before = self._subset(number)
            first = num_before * self.run + inside
            piece = self.orders[subset].spans(first, first + taken)
            rows, positions = piece.slice + self.rows[subset], piece.position - first + start
            pieces.append(replace(piece, slice=rows, position=positions))
            start += taken
        return ReadSpans.joined(pieces)

    def _subset(self, number: int) -> tuple[int, int]:
        """Subset of a run, and the number of earlier runs of that subset."""
        period, place = divmod(number, PERIOD_RUNS)
        owners, ranks = pattern(self.counts, self.seed, period)
        subset = int(owners[place])
        return subset, period * self.counts[subset] + int(ranks[place])


@lru_cache(maxsize=4)
def pattern(counts: tuple[int, ...], seed: int, period: int) -> tuple[np.ndarray, np.ndarray]:
    """Subset of every run of a period, and its rank among that subset's runs: (PERIOD_RUNS,)."""
    drawn = permutation(PERIOD_RUNS, seed ^ PATTERN, period)
    owners = np.repeat(np.arange(len(counts)), counts)[drawn]
    ranks = np.zeros(PERIOD_RUNS, np.int64)
    for subset, count in enumerate(counts):
        ranks[owners == subset] = np.arange(count)
    return owners, ranks


@dataclass(frozen=True, kw_only=True)
class RankShare:
    """Share of one worker: the same range of every global batch."""

    global_batch: int
    """Samples of a step over all workers."""
    low: int
    """First sample of the range within a global batch."""
    high: int
    """Sample after the range."""

    @classmethod
    def of(cls, rank: int, workers: int, global_batch: int) -> "RankShare":
        """Contiguous share of worker `rank` of `workers`; ValueError if it would be empty."""
        low, high = share_bounds(rank, workers, global_batch)
        if low == high:
            raise ValueError(
                f"worker {rank} of {workers} has no samples of a global batch of {global_batch}, "
                f"which is shared in pairs; use at most {-(-global_batch // 2)} workers"
            )
        return cls(global_batch=global_batch, low=low, high=high)

    @property
    def size(self) -> int:
        """Samples of this worker in each global batch."""
        return self.high - self.low


def share_bounds(rank: int, workers: int, samples: int) -> tuple[int, int]:
    """First sample of the contiguous share of worker `rank` of `workers`, and that after its last.

    Shares start at even places, so that two neighbours that are mixed stay on one worker. Their
    sizes differ by at most two samples; where there are more workers than pairs some are empty.
    """
    if not 0 <= rank < workers:
        raise ValueError(f"rank ({rank}) must be in [0, {workers})")
    pairs = (samples + 1) // 2
    low, high = (min(2 * (pairs * r // workers), samples) for r in (rank, rank + 1))
    return low, high


def largest_share(samples: int, workers: int) -> int:
    """Samples of the worker of `share_bounds` that has most."""
    pairs = (samples + 1) // 2
    return min(2 * -(-pairs // workers), samples)
