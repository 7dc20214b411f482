"""Which positions a node reads, in tasks for Ray Data.

    share -> ranges of positions, one a step -> spans -> tasks

A task is whole slices, whatever the length of a step: the rows of a block carry their positions, by
which each worker of the node finds its own. So a slice is read twice only where the ranges of two
nodes meet inside it. Everything here is a pure function: no Ray, no torch, no files.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import repeat

import numpy as np

from pipeline.data.order import Mixture, Order, RankShare, ReadSpans

Range = tuple[int, int]
"""Positions [start, stop)."""

# samples of the first tasks of a stream, which double until they have their full size: the first
# batch is then the work of all cores for a moment, not that of one core for seconds
FIRST_SAMPLES = 64


@dataclass(frozen=True, kw_only=True)
class StepRanges:
    """The positions of a share in each of the steps [first, last)."""

    share: RankShare
    first: int
    last: int
    end: int | None = None
    """The sequence ends before this position, in the middle of a step; None: it never ends."""

    def __iter__(self) -> Iterator[Range]:
        """One range for each step, empty where the sequence has ended."""
        for step in range(self.first, self.last):
            start = step * self.share.global_batch
            low, high = start + self.share.low, start + self.share.high
            yield (low, high) if self.end is None else (min(low, self.end), min(high, self.end))


def task_sizes(task_samples: int, cpus: int) -> Iterator[int]:
    """Samples of each task of a stream that `cpus` cores read: small at first, endless."""
    size = FIRST_SAMPLES
    while size < task_samples:
        yield from repeat(size, cpus)
        size *= 2
    yield from repeat(task_samples)


def read_tasks(
    order: Order | Mixture, ranges: Iterable[Range], sizes: Iterator[int]
) -> Iterator[ReadSpans]:
    """The spans of all ranges, in their order, in tasks of at least so many samples.

    Only whole spans are handed out; the last task may be smaller.
    """
    pending: ReadSpans | None = None
    size = next(sizes)
    for start, stop in ranges:
        found = order.spans(start, stop)
        pending = coalesced([pending, found] if pending else [found])
        while (cut := int(np.searchsorted(np.cumsum(pending.count), size)) + 1) < len(
            pending.count
        ):
            # never the last span, which the next range may continue
            yield part(pending, 0, cut)
            pending, size = part(pending, cut, None), next(sizes)
    if pending and len(pending.count):
        yield pending


def coalesced(pieces: Sequence[ReadSpans]) -> ReadSpans:
    """The pieces as one, where a slice that two neighbours share is a single span."""
    spans = ReadSpans.joined(pieces)
    ends, nexts = spans.first + spans.count, spans.position + spans.count
    continues = (spans.slice[1:] == spans.slice[:-1]) & (spans.first[1:] == ends[:-1])
    continues &= spans.position[1:] == nexts[:-1]
    heads = np.flatnonzero(np.append(True, ~continues)[: len(spans.count)])
    counts = np.add.reduceat(spans.count, heads) if len(heads) else spans.count
    return replace(
        spans,
        slice=spans.slice[heads],
        first=spans.first[heads],
        count=counts,
        position=spans.position[heads],
    )


def part(spans: ReadSpans, first: int, last: int | None) -> ReadSpans:
    """Spans [first, last) of `spans`."""
    return replace(spans, **{name: column[first:last] for name, column in vars(spans).items()})
