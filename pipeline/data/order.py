"""The order of samples: one endless, seeded sequence, addressed by one integer position.

    shards -> slices (short runs of neighbouring samples) -> permutation per epoch -> spans to read

Epochs follow each other without a gap. Global batch k is the positions [k*G, (k+1)*G) for any
number of workers, and each worker takes a contiguous share of it. The number of samples consumed is
therefore enough to resume a run on any number of workers.

Everything here is a pure function of (slices, seed): no Ray, no torch, no files. Memory grows with
the number of slices, not with the number of images.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache

import numpy as np

from support.splitmix import GOLDEN, scramble


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
class ReadSpans:
    """What to read for a range of positions: `count` samples of each slice, from `first` on."""

    slice: np.ndarray
    """(P,) int64: row in the slice table."""
    first: np.ndarray
    """(P,) int64: samples of the slice to skip."""
    count: np.ndarray
    """(P,) int64: samples to take."""
    position: np.ndarray
    """(P,) int64: position in the sequence of the first sample taken."""

    @classmethod
    def joined(cls, pieces: Sequence["ReadSpans"]) -> "ReadSpans":
        """Concatenate the spans of several ranges."""
        names = cls.__dataclass_fields__
        return cls(**{n: np.concatenate([getattr(piece, n) for piece in pieces]) for n in names})


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

    def spans(self, start: int, stop: int) -> ReadSpans:
        """Spans of positions [start, stop), which may cross epochs."""
        if not 0 <= start <= stop:
            raise ValueError(f"positions [{start}, {stop}) must be ordered and not negative")
        pieces = []
        while start < stop or not pieces:
            epoch, inside = divmod(start, self.samples)
            taken = min(stop - start, self.samples - inside)
            pieces.append(self._within(epoch, inside, inside + taken))
            start += taken
        return ReadSpans.joined(pieces)

    def _within(self, epoch: int, start: int, stop: int) -> ReadSpans:
        """Spans of positions [start, stop) of one epoch."""
        slices, ends = self._epoch(epoch)
        first = int(np.searchsorted(ends, start, side="right"))
        last = int(np.searchsorted(ends, stop, side="left")) + 1 if stop > start else first
        rows = slices[first:last]
        begin = ends[first:last] - self.counts[rows]
        low = np.maximum(begin, start)
        return ReadSpans(
            slice=rows.astype(np.int64),
            first=low - begin,
            count=np.minimum(ends[first:last], stop) - low,
            position=epoch * self.samples + low,
        )

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Slices in the order of an epoch, and the position after each, relative to the epoch."""
        cached = self.__dict__.get("_cached")
        if cached is None or cached[0] != epoch:
            num = len(self.counts)
            slices = np.arange(num) if self.seed is None else permutation(num, self.seed, epoch)
            cached = (epoch, slices, np.cumsum(self.counts[slices], dtype=np.int64))
            # one epoch is enough: a run goes through them in order
            self.__dict__["_cached"] = cached
        return cached[1], cached[2]

    def __getstate__(self) -> dict[str, object]:
        """Drop the cached epoch when the order is pickled."""
        return {name: value for name, value in self.__dict__.items() if name != "_cached"}


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
        while start < stop or not pieces:
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
    # the constant makes this differ from the permutation of the epoch with the same number
    drawn = permutation(PERIOD_RUNS, seed ^ 0x5851F42D4C957F2D, period)
    owners = np.repeat(np.arange(len(counts)), counts)[drawn]
    ranks = np.zeros(PERIOD_RUNS, np.int64)
    for subset, count in enumerate(counts):
        ranks[owners == subset] = np.arange(count)
    return owners, ranks


@lru_cache(maxsize=2)
def permutation(num: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of range(num) that depends on (seed, epoch) alone: (num,) int32 or int64.

    It sorts by a hash of every number. NumPy's own permutations may change with its version.
    """
    key = splitmix64(np.array([seed, epoch], np.uint64))
    stream = splitmix64(key[:1] ^ (key[1:] * np.uint64(0xD1342543DE82EF95)))
    keys = splitmix64(stream + np.arange(num, dtype=np.uint64))
    order = np.argsort(keys, kind="stable").astype(np.int32 if num < 2**31 else np.int64)
    order.setflags(write=False)
    return order


def splitmix64(x: np.ndarray) -> np.ndarray:
    """The output of SplitMix64 after each state x: uint64 -> uint64."""
    return scramble(x + np.uint64(GOLDEN))


@dataclass(frozen=True, kw_only=True)
class RankShare:
    """Share of one worker: the same range of every global batch. Its rows are these samples."""

    global_batch: int
    """Samples of a step over all workers."""
    low: int
    """First sample of the range within a global batch."""
    high: int
    """Sample after the range."""

    @classmethod
    def of(cls, rank: int, workers: int, global_batch: int) -> "RankShare":
        """Contiguous share of worker `rank` of `workers`.

        Shares start at even places, so that two neighbours that are mixed stay on one worker. Their
        sizes differ by at most two samples, and with many workers some are empty.
        """
        if not 0 <= rank < workers:
            raise ValueError(f"rank ({rank}) must be in [0, {workers})")
        pairs = (global_batch + 1) // 2
        low, high = (min(2 * (pairs * r // workers), global_batch) for r in (rank, rank + 1))
        return cls(global_batch=global_batch, low=low, high=high)

    @property
    def size(self) -> int:
        """Samples of this worker in each global batch."""
        return self.high - self.low

    def stretches(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """Positions [start, stop) of rows [first, last) of this worker."""
        while first < last:
            step, inside = divmod(first, self.size)
            taken = min(last - first, self.size - inside)
            start = step * self.global_batch + self.low + inside
            yield start, start + taken
            first += taken
