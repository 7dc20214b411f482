"""What the workers decide together in every step: to stop, to make way for others, to save.

rank 0: request of the driver, time since the last checkpoint   first of a node: it goes away
-> a few numbers in the one reduction of a step -> the same decision on all ranks
"""

import time
from collections.abc import Callable

from pipeline.train.report_queue import RESIZE, STOP, StopSignal


class Control:
    """The decisions of one attempt."""

    def __init__(
        self,
        signal: StopSignal | None,
        leaves: Callable[[], bool],
        checkpoint_minutes: float,
        *,
        elastic: bool = False,
    ) -> None:
        """Decide.

        Args:
            signal: Requests of the driver, which rank 0 alone has.
            leaves: Whether this worker's node goes away.
            checkpoint_minutes: Time between two checkpoints.
            elastic: Whether the run can go on without a node that goes away.
        """
        self._signal, self._leaves, self._elastic = signal, leaves, elastic
        self._interval_s = 60 * checkpoint_minutes
        self._saved = time.monotonic()
        self._preempted = False
        self.stops = False
        """End with a checkpoint, now."""
        self.resizes = False
        """End with the next checkpoint, so that the run can go on with other workers."""
        self.due = False
        """Write a checkpoint: the last one is too old, or a node goes away."""

    def votes(self) -> list[float]:
        """This worker's numbers for the sum over all workers."""
        request = self._signal() if self._signal else 0
        overdue = self._signal and time.monotonic() - self._saved > self._interval_s
        leaves = not self._preempted and self._leaves()
        return [float(request), float(bool(overdue)), float(leaves)]

    def decide(self, request: float, overdue: float, leaving: float) -> None:
        """Take the sums of the votes, which are the same on all workers."""
        leaves = bool(leaving)
        # one checkpoint before the node goes away is enough
        self._preempted |= leaves
        self.stops = request >= STOP
        self.resizes = request >= RESIZE or (self._preempted and self._elastic)
        self.due |= self.stops or bool(overdue) or leaves

    def saved(self) -> None:
        """Note that a checkpoint is being written; nothing is due until other votes are counted."""
        self._saved = time.monotonic()
        self.due = False
