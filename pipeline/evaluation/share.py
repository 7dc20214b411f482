"""Who evaluates which positions of a split, and in which batches."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.data.feed import NodeFeed
from pipeline.data.order import RankShare
from pipeline.data.tasks import Range, StepRanges


@dataclass(frozen=True, kw_only=True)
class EvalShare:
    """What one process evaluates."""

    node: Iterable[Range]
    """Positions that its feed reads, for all processes that share it."""
    batches: Iterable[Range]
    """Positions of each batch of this process; empty ones are left out."""

    @property
    def positions(self) -> np.ndarray:
        """Positions of all batches of this process, in their order: (m,) int64."""
        empty = np.arange(0)
        return np.concatenate([empty, *(np.arange(start, stop) for start, stop in self.batches)])

    @classmethod
    def of_spans(cls, spans: Sequence[Range], batch: int) -> "EvalShare":
        """All positions of the spans; each span starts a new batch."""
        batches = [
            (first, min(first + batch, stop))
            for start, stop in spans
            for first in range(start, stop, batch)
        ]
        return cls(node=spans, batches=batches)

    @classmethod
    def of_worker(cls, feed: NodeFeed, rank: int, samples: int, batch: int) -> "EvalShare":
        """In every step, each worker takes the next batch of the split."""
        world = feed.world_size

        def ranges(first: int, last: int) -> StepRanges:
            share = RankShare(global_batch=world * batch, low=first * batch, high=last * batch)
            steps = math.ceil(samples / share.global_batch)
            return StepRanges(share=share, first=0, last=steps, end=samples)

        node = ranges(feed.ranks[0], feed.ranks[-1] + 1)
        return cls(node=node, batches=ranges(rank, rank + 1))
