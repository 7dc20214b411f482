"""Ends a worker that makes no progress, and says which worker the others wait for.

    training thread -> `at(step, phase)` -> Watchdog, a thread -> heartbeats (telemetry)
                                                              -> its stack; ends the process
    driver, after a failure: heartbeats of all ranks -> `find_stragglers` -> one sentence

A worker that hangs makes all others wait in the next collective call, which gives up much
later. The watchdog ends the process in minutes, so that Ray restarts the workers from the last
checkpoint. A process that is frozen whole cannot end itself: those that wait for it end later.
"""

import contextlib
import os
import socket
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import ray
import ray.train
from ray.actor import ActorHandle

from pipeline.train.report_queue import Heartbeat, Lossy
from support.console import duration

# exit status of a process that was ended because it hung
HUNG = 86
# seconds between two heartbeats, and those after which a rank is silent if others are not
BEAT_S, SILENT_S = 10.0, 35.0
# seconds without progress that are allowed, and those for what happens the first time (compilation)
LIMIT_S, FIRST_LIMIT_S = 300.0, 1200.0
# phases in which a worker waits for all others, in the order of a step
COLLECTIVE = ("forward and backward", "all-reduce")
# a phase that may wait for a store that fails for minutes
STORING = "checkpoint"
# seconds that the last message gets to leave
FAREWELL_S = 5.0
# lines of a stack and ranks of a sentence that are shown
MAX_FRAMES, MAX_NAMED = 12, 8


class Watchdog:
    """Watches the thread that makes it; a context manager."""

    def __init__(
        self,
        *,
        rank: int,
        world_size: int,
        beat: Callable[[Heartbeat], None],
        tell: Callable[[str], None],
        beat_s: float = BEAT_S,
        limit_s: float = LIMIT_S,
        first_limit_s: float = FIRST_LIMIT_S,
    ) -> None:
        """Watch; `beat` sends a heartbeat, `tell` sends a text and waits until it has arrived."""
        self._rank, self._world_size, self._node = rank, world_size, socket.gethostname()
        self._beat, self._tell, self._beat_s = beat, tell, beat_s
        self._limit_s, self._first_limit_s = limit_s, first_limit_s
        self._watched = threading.get_ident()  # under Ray Train this is not the main thread
        self._place = (0, "start")
        self._passed: set[str] = set()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def at(self, step: int, phase: str) -> None:
        """State that the worker has made progress, and where it is now."""
        if phase != self._place[1]:
            self._passed.add(self._place[1])
        self._place = (step, phase)  # a new object each time, which `_watch` tells from the last

    def __enter__(self) -> "Watchdog":
        """Start to watch."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop watching."""
        self._closing.set()
        self._thread.join()

    def _watch(self) -> None:
        """Count time without progress in heartbeats: time in which the process is frozen is none.

        A process that is continued gets its chance.
        """
        seen, stalled_s = self._place, 0.0
        while True:
            self._beat(self._heartbeat(seen, stalled_s))
            if self._closing.wait(self._beat_s):
                return
            stalled_s = stalled_s + self._beat_s if self._place is seen else 0.0
            seen = self._place
            limit_s = self._limit_s if seen[1] in self._passed else self._first_limit_s
            if stalled_s > patience(limit_s, seen[1], self._rank, self._world_size):
                self._end(seen, stalled_s)

    def _heartbeat(self, place: tuple[int, str], stalled_s: float) -> Heartbeat:
        step, phase = place
        who = {"rank": self._rank, "world_size": self._world_size, "node": self._node}
        return Heartbeat(**who, step=step, phase=phase, stalled_s=stalled_s)

    def _end(self, place: tuple[int, str], stalled_s: float) -> None:
        """Tell where the watched thread is, and end the process."""
        frame = sys._current_frames().get(self._watched)
        stack = traceback.format_stack(frame)[-MAX_FRAMES:] if frame else ["(the thread is gone)"]
        text = (
            f"{described(self._heartbeat(place, stalled_s))} and has made no progress for "
            f"{duration(stalled_s)}; its process ends, so that training restarts. It is here:\n"
        )
        try:
            self._tell(text + "".join(stack))
        finally:
            os._exit(HUNG)  # nothing else ends a process whose threads hang


@contextlib.contextmanager
def watching(queue: ActorHandle, limit_s: float) -> Iterator[Watchdog]:
    """In a Ray Train worker: watch this thread during the block."""

    def tell(text: str) -> None:
        ray.wait([queue.say.remote(text)], timeout=FAREWELL_S)

    context = ray.train.get_context()
    who = {"rank": context.get_world_rank(), "world_size": context.get_world_size()}
    first_limit_s = max(limit_s, FIRST_LIMIT_S)
    limits = {"limit_s": limit_s, "first_limit_s": first_limit_s}
    with Watchdog(**who, **limits, beat=Lossy(queue.beat), tell=tell) as watchdog:
        yield watchdog


def patience(limit_s: float, phase: str, rank: int, world_size: int) -> float:
    """Seconds without progress after which a rank ends.

    Those who wait for others end later, so that the one they wait for speaks first; and the ranks
    do not all speak at once, because Ray ends the others a few seconds after the first.
    """
    factor = 1.3 if phase in COLLECTIVE else 2.0 if phase == STORING else 1.0
    return limit_s * (factor + 0.2 * rank / world_size)


def find_stragglers(queue: ActorHandle) -> str | None:
    """For the driver, after a failure: which workers the others wait for, if there are such."""
    return stragglers(ray.get(queue.beats.remote()))


def stragglers(beats: Sequence[Heartbeat]) -> str | None:
    """Name the ranks that are silent, or that the others wait for; None if there are none.

    The ages of the heartbeats are compared with the newest, because all grow after the end.
    """
    if not beats:
        return None
    newest = min(beats, key=lambda beat: beat.age_s)
    beats = sorted(
        (beat for beat in beats if beat.rank < newest.world_size), key=lambda beat: beat.rank
    )
    silent = [beat for beat in beats if beat.age_s - newest.age_s > SILENT_S]
    speaking = [beat for beat in beats if beat not in silent]
    behind = find_behind(speaking)
    named = [f"{described(beat)}, and silent for {duration(beat.age_s)}" for beat in silent]
    named += [described(beat) for beat in behind]
    if not named:
        return None
    others = [beat for beat in speaking if beat not in behind]
    more = [f"{len(named) - MAX_NAMED} more"] if len(named) > MAX_NAMED else []
    text = "; ".join([*named[:MAX_NAMED], *more])
    return f"{text}; {described_others(others)}" if others else text


def find_behind(beats: Sequence[Heartbeat]) -> list[Heartbeat]:
    """Those of speaking ranks that the others wait for: earlier in step, or not in the collective.

    Only ranks that stand still are compared: while all move, heartbeats are of different moments.
    """
    if not beats or min(beat.stalled_s for beat in beats) < BEAT_S:
        return []
    step = max(beat.step for beat in beats)
    phases = {beat.phase for beat in beats if beat.step == step}
    # those who wait in an earlier collective call are waited for in the last one
    last = next((phase for phase in reversed(COLLECTIVE) if phase in phases), None)
    waiting = {beat.rank for beat in beats if beat.step == step and beat.phase == last}
    return [beat for beat in beats if beat.step < step or (waiting and beat.rank not in waiting)]


def described(beat: Heartbeat) -> str:
    """Where a rank is."""
    return f"rank {beat.rank} on node {beat.node} is in step {beat.step:,}, phase {beat.phase}"


def described_others(beats: Sequence[Heartbeat]) -> str:
    """Where most of the others are."""
    phase, count = Counter(beat.phase for beat in beats).most_common(1)[0]
    if len(beats) == 1:
        return f"the other one {'waits' if phase in COLLECTIVE else 'is'} in {phase}"
    verb = "wait in" if phase in COLLECTIVE else "are in"
    if count == len(beats):
        return f"the other {count} {verb} {phase}"
    return f"of the other {len(beats)}, {count} {verb} {phase}"
