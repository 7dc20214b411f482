"""The order of samples: one endless, seeded sequence with one integer as its position.

    shards -> slices (short runs of neighbouring samples) -> a permutation per epoch -> spans to
    read

The sequence is epoch after epoch of all samples, without a gap between epochs. Global batch k is
the positions [k*G, (k+1)*G) whatever the number of workers, and worker r of W takes a contiguous
share of it. A run is therefore resumed, on any number of workers, from the number of samples
consumed alone.

Everything here is a pure function of (slices, seed): no Ray, no torch, no file. Memory grows with
the number of slices, never with the number of images.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from support.splitmix import GOLDEN, scramble


@dataclass(frozen=True, kw_only=True)
class Slices:
    """Table of slices: one row per run of neighbouring samples, in the order of the shards."""

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
        """Cut shards, given by first byte and last byte + 1 of each sample, every `samples`."""
        if samples < 1:
            raise ValueError(f"slice length ({samples}) must be at least 1; 1 is a full shuffle")
        shard, count, start, stop = [], [], [], []
        for number, (starts, stops) in enumerate(extents):
            first = np.arange(0, len(starts), samples)
            last = np.minimum(first + samples, len(starts))
            shard.append(np.full(len(first), number, np.int32))
            count.append((last - first).astype(np.int32))
            start.append(np.asarray(starts, np.int64)[first])
            stop.append(np.asarray(stops, np.int64)[last - 1])
        if not sum(map(len, count)):
            raise ValueError("no samples: the shards are empty, or the settings keep none of them")
        columns = (np.concatenate(column) for column in (shard, count, start, stop))
        return cls(**dict(zip(("shard", "count", "start", "stop"), columns, strict=True)))

    @classmethod
    def joined(cls, tables: Sequence["Slices"], shards: Sequence[int]) -> "Slices":
        """Tables one after the other; `shards` is the number of shards behind each."""
        first = np.cumsum([0, *shards[:-1]])
        numbers = [table.shard + int(n) for table, n in zip(tables, first, strict=True)]
        return cls(
            shard=np.concatenate(numbers).astype(np.int32),
            count=np.concatenate([table.count for table in tables]),
            start=np.concatenate([table.start for table in tables]),
            stop=np.concatenate([table.stop for table in tables]),
        )

    @property
    def samples(self) -> int:
        """Samples in all slices."""
        return int(self.count.sum(dtype=np.int64))


@dataclass(frozen=True, kw_only=True)
class ReadSpans:
    """What to read for a stretch of the sequence: `count` samples of a slice from `first` on."""

    slice: np.ndarray
    """(P,) int64: row in the slice table."""
    first: np.ndarray
    """(P,) int64: samples of the slice to pass over."""
    count: np.ndarray
    """(P,) int64: samples to take."""
    position: np.ndarray
    """(P,) int64: position of the first taken sample in the sequence."""

    @classmethod
    def joined(cls, parts: Sequence["ReadSpans"]) -> "ReadSpans":
        """The spans of several stretches, one after the other."""
        names = cls.__dataclass_fields__
        return cls(**{n: np.concatenate([getattr(part, n) for part in parts]) for n in names})


@dataclass(frozen=True, kw_only=True)
class Order:
    """The endless sequence over a slice table; without a seed, the slices as they lie."""

    counts: np.ndarray
    """(S,) samples of each slice."""
    seed: int | None
    """Seed of the permutations; None keeps the order of the shards (evaluation)."""
    samples: int = field(init=False)
    """Samples of one epoch."""

    def __post_init__(self) -> None:
        """Derive the length of an epoch."""
        object.__setattr__(self, "samples", int(self.counts.sum(dtype=np.int64)))

    def spans(self, start: int, stop: int) -> ReadSpans:
        """Spans that cover positions [start, stop), which may span epochs."""
        if not 0 <= start <= stop:
            raise ValueError(f"positions [{start}, {stop}) must be ordered and not negative")
        parts = []
        while True:
            epoch, inside = divmod(start, self.samples)
            taken = min(stop - start, self.samples - inside)
            parts.append(self._within(epoch, inside, inside + taken))
            start += taken
            if start >= stop:
                return ReadSpans.joined(parts)

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
        """Slices in the order of an epoch, and the position after each of them."""
        cached = self.__dict__.get("_cached")
        if cached is None or cached[0] != epoch:
            num = len(self.counts)
            slices = np.arange(num) if self.seed is None else permutation(num, self.seed, epoch)
            cached = (epoch, slices, np.cumsum(self.counts[slices], dtype=np.int64))
            # one epoch is kept: a run walks through them in order
            self.__dict__["_cached"] = cached
        return cached[1], cached[2]

    def __getstate__(self) -> dict[str, object]:
        """Leave the cached epoch behind when the order travels."""
        return {name: value for name, value in self.__dict__.items() if name != "_cached"}


# runs of a mixture's pattern, in which each part has its share
PERIOD_RUNS = 1024


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """The endless sequences of several parts, mixed by weight in runs of neighbouring positions.

    In every period of PERIOD_RUNS runs each part has a fixed number of runs, at places drawn from
    (seed, period); it goes through its own sequence in them, so a small part begins its next epoch
    when it is through.
    """

    orders: tuple[Order, ...]
    rows: tuple[int, ...]
    """First row of each part in the joint slice table."""
    weights: tuple[float, ...]
    """Share of each part in the sequence, in any unit."""
    run: int
    """Positions of a run."""
    seed: int
    counts: tuple[int, ...] = field(init=False)
    """Runs of each part in a period."""

    def __post_init__(self) -> None:
        """Give each part its runs, by largest remainder."""
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
        """Spans that cover positions [start, stop)."""
        parts = []
        while start < stop or not parts:
            number, inside = divmod(start, self.run)
            taken = min(stop - start, self.run - inside)
            part, earlier = self._part(number)
            first = earlier * self.run + inside
            found = self.orders[part].spans(first, first + taken)
            shifted = found.position - first + start
            parts.append(
                ReadSpans(
                    slice=found.slice + self.rows[part],
                    first=found.first,
                    count=found.count,
                    position=shifted,
                )
            )
            start += taken
        return ReadSpans.joined(parts)

    def _part(self, number: int) -> tuple[int, int]:
        """Subset of a run, and how many of its runs lie before it."""
        period, place = divmod(number, PERIOD_RUNS)
        owners, ranks = pattern(self.counts, self.seed, period)
        part = int(owners[place])
        return part, period * self.counts[part] + int(ranks[place])


@lru_cache(maxsize=4)
def pattern(counts: tuple[int, ...], seed: int, period: int) -> tuple[np.ndarray, np.ndarray]:
    """Subset of every run of a period, and its rank among that subset's runs: (PERIOD_RUNS,)."""
    # not the permutation of an epoch of the same number
    drawn = permutation(PERIOD_RUNS, seed ^ 0x5851F42D4C957F2D, period)
    owners = np.repeat(np.arange(len(counts)), counts)[drawn]
    ranks = np.zeros(PERIOD_RUNS, np.int64)
    for part in range(len(counts)):
        own = owners == part
        ranks[own] = np.arange(own.sum())
    return owners, ranks


@lru_cache(maxsize=2)
def permutation(num: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of range(num) that follows from (seed, epoch) alone: (num,) int32 or int64.

    It sorts a hash of every number, so it does not change with the version of NumPy as the
    permutations of its generators may.
    """
    key = splitmix64(np.array([seed, epoch], np.uint64))
    stream = splitmix64(key[:1] ^ (key[1:] * np.uint64(0xD1342543DE82EF95)))
    keys = splitmix64(stream + np.arange(num, dtype=np.uint64))
    order = np.argsort(keys, kind="stable")
    order = order.astype(np.int32 if num < 2**31 else np.int64)
    order.setflags(write=False)
    return order


def splitmix64(x: np.ndarray) -> np.ndarray:
    """The number after each state x of SplitMix64: uint64 -> uint64."""
    return scramble(x + np.uint64(GOLDEN))


@dataclass(frozen=True, kw_only=True)
class RankShare:
    """What one worker reads: the same stretch of every global batch, joined to one row."""

    global_batch: int
    """Samples of a step over all workers."""
    low: int
    """First sample of the stretch within a global batch."""
    high: int
    """Sample after the stretch."""

    @classmethod
    def of(cls, rank: int, workers: int, global_batch: int) -> "RankShare":
        """Contiguous share of worker `rank` of `workers`.

        Shares begin at even places, so that neighbours that are mixed with each other stay on one
        worker; they differ by two samples at most, and with many workers some are empty.
        """
        if not 0 <= rank < workers:
            raise ValueError(f"rank ({rank}) must be in [0, {workers})")
        pairs = (global_batch + 1) // 2
        low, high = (min(2 * (pairs * r // workers), global_batch) for r in (rank, rank + 1))
        return cls(global_batch=global_batch, low=low, high=high)

    @property
    def size(self) -> int:
        """Samples of this worker in each step."""
        return self.high - self.low

    def stretches(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """Positions [start, stop) behind rows [first, last) of this worker's samples."""
        while first < last:
            step, inside = divmod(first, self.size)
            taken = min(last - first, self.size - inside)
            start = step * self.global_batch + self.low + inside
            yield start, start + taken
            first += taken
