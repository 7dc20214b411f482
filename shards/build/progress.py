"""How far a build is: one line now and then, with rate and time left."""

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """How far a build is."""

    stage: str
    done: int
    total: int
    images: int
    bytes: int


Listen = Callable[[Progress], None]


class Meter:
    """Turns progress into lines, at most one every `interval_s`, and one at the end of a stage."""

    def __init__(
        self,
        write: Callable[[str], None],
        interval_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.write, self.interval_s, self.clock = write, interval_s, clock
        self._stage = ""
        self._started = self._said = clock()

    def __call__(self, now: Progress) -> None:
        """Take word of a finished task."""
        moment = self.clock()
        if now.stage != self._stage:
            self._stage, self._started = now.stage, self._said
        if now.done < now.total and moment - self._said < self.interval_s:
            return
        self.write(self.line(now, moment))
        self._said = moment

    def line(self, now: Progress, moment: float) -> str:
        """The line for a state of affairs."""
        elapsed = max(moment - self._started, 1e-9)
        left = elapsed / max(now.done, 1) * (now.total - now.done)
        return (
            f"{now.stage:9}  {now.done:,}/{now.total:,}  {now.done / now.total:6.1%}  "
            f"{now.images:,} images  {now.images / elapsed:,.0f} img/s  "
            f"{now.bytes / elapsed / 1e6:,.0f} MB/s  eta {duration(left)}"
        )


def duration(seconds: float) -> str:
    """Hours and minutes, or minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s"
