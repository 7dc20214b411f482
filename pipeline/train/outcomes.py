"""What came of each step, read by the host one step later, so that the device never waits for it.

step k   -> sums on the device -> copy to the host
step k+1 -> is queued -> the host reads the sums of step k: loss, norm, faults, votes
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ray.actor import ActorHandle
from torch import Tensor

from pipeline.train.control import Control
from pipeline.train.job import Job
from pipeline.train.state import State
from pipeline.train.transfer import Readback


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One step that the device was told to make."""

    step: int
    sums: Readback
    """Norm of the gradients, then sums over the workers: loss, unreadable images, votes."""
    faults: Sequence[str]
    """Descriptions of this worker's unreadable images."""
    skips: bool
    """Whether it had no update: its loss was not computed."""


class Outcomes:
    """The steps that the host has not read yet."""

    def __init__(
        self, job: Job, state: State, queue: ActorHandle, control: Control, world_size: int
    ) -> None:
        self._job, self._state, self._queue, self._control = job, state, queue, control
        self._world_size = world_size
        self._waiting: deque[Outcome] = deque()

    def add(self, step: int, sums: Tensor, faults: Sequence[str], *, skips: bool = False) -> None:
        """Take the sums of a step, which the device may still compute."""
        outcome = Outcome(step=step, sums=Readback(sums), faults=faults, skips=skips)
        self._waiting.append(outcome)

    def read(self, *, but: int = 0) -> None:
        """Read all steps but the last `but` into the interval of the state; decide what they say.

        All workers read the same numbers, and make the same decisions.

        Raises ValueError if more images were unreadable than the run allows, and FloatingPointError
        if the loss or the gradients of a step were not finite.
        """
        while len(self._waiting) > but:
            outcome = self._waiting.popleft()
            norm, loss, num_bad, *votes = outcome.sums.numbers()
            loss /= self._world_size
            self._control.decide(*votes)
            check_faults(self._state, self._queue, outcome.faults, int(num_bad))
            check_finite(self._job, outcome.step, loss, norm)
            if not outcome.skips:
                self._state.interval.add(loss, norm)


def check_faults(state: State, queue: ActorHandle, faults: Sequence[str], num_bad: int) -> None:
    """Count unreadable images; ValueError if there are more than the run allows."""
    allowed = state.config.data.max_bad_samples
    state.num_bad += num_bad
    for fault in faults:
        queue.say.remote(f"skipped: {fault}")
    if state.num_bad > allowed:
        raise ValueError(
            f"{state.num_bad} images could not be read, data.max_bad_samples allows {allowed}: "
            f"{'; '.join(faults) or 'named by another worker'}"
        )


def check_finite(job: Job, step: int, loss: float, norm: float) -> None:
    """Raise FloatingPointError, which names the shards, unless loss and gradient are finite."""
    if math.isfinite(norm) and math.isfinite(loss):
        return
    batch = job.config.global_batch
    rows = job.order.spans((step - 1) * batch, step * batch).slice
    names = [job.train.shards[n][1].name for n in np.unique(job.train.slices.shard[rows])]
    raise FloatingPointError(
        f"loss {loss}, gradient norm {norm} in step {step}; that step updated nothing. "
        f"Samples came from {', '.join(names[:20])}{' ...' if len(names) > 20 else ''}. The last "
        f"checkpoint is unchanged. The same command with --skip-steps {step}:{step} passes "
        f"over this batch, with --lr-factors {step}:0.5 it lowers the rate; to go further back: "
        f"python -m pipeline rollback {job.folder.location} --step N"
    )
