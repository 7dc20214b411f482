"""What the workers decide together in every step: to stop, to make way for others, to save.

rank 0: request of the driver, time since the last checkpoint   every rank: its node goes away
-> a few numbers in the one reduction of a step -> the same decision on all ranks
"""

import time

import ray.train

from pipeline.train.report_queue import RESIZE, STOP, StopSignal


class Control:
    """The decisions of one attempt."""

    def __init__(self, signal: StopSignal | None, checkpoint_minutes: float) -> None:
        """Take requests from `signal`, which rank 0 alone has."""
        self._signal = signal
        self._interval_s = 60 * checkpoint_minutes
        self._saved = time.monotonic()
        self._preempted = False
        self.stops = False
        """End with a checkpoint, now."""
        self.resizes = False
        """End with the next checkpoint, so that the run can go on with more workers."""
        self.due = False
        """Write a checkpoint: the last one is too old, or a node goes away."""

    def votes(self) -> list[float]:
        """This worker's numbers for the sum over all workers."""
        request = self._signal() if self._signal else 0
        overdue = self._signal and time.monotonic() - self._saved > self._interval_s
        leaves = not self._preempted and ray.train.get_preemption_info() is not None
        return [float(request), float(bool(overdue)), float(leaves)]

    def decide(self, request: float, overdue: float, leaving: float) -> None:
        """Take the sums of the votes, which are the same on all workers."""
        self.stops, self.resizes = request >= STOP, request >= RESIZE
        self.due = self.stops or bool(overdue) or bool(leaving)
        # one checkpoint before the node goes away is enough
        self._preempted |= bool(leaving)

    def saved(self) -> None:
        """Note that a checkpoint is being written."""
        self._saved = time.monotonic()
