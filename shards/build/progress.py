"""How tasks are run, and the progress of a build: a bar or lines for each stage."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from support.console import Progress


@dataclass(frozen=True)
class StageProgress:
    """Progress of one stage of a build."""

    stage: str
    done: int
    """Finished tasks out of `total`."""
    total: int
    images: int
    bytes: int


Listen = Callable[[StageProgress], None]
T = TypeVar("T")
Task = Callable[[Any], Any]
Run = Callable[..., Iterator[Any]]
"""run(function, items, careful=None): applies a function to items and yields the results, in any
order. `careful` does the same for an item whose process was killed."""


def serial(function: Task, items: Iterable[Any], careful: Task | None = None) -> Iterator[Any]:  # noqa: ARG001
    """Run tasks one after the other in this process."""
    return map(function, items)


def shown(
    stage: str,
    results: Iterable[T],
    total: Callable[[], int],
    listen: Listen | None,
    counts: Callable[[T], Any] = lambda result: result,
) -> Iterator[T]:
    """The results of tasks; reports the progress after each, by `samples` and `bytes` of counts."""
    images = size = 0
    for done, result in enumerate(results, 1):
        images, size = images + counts(result).samples, size + counts(result).bytes
        if listen is not None:
            listen(StageProgress(stage, done, total(), images, size))
        yield result


class BuildProgress:
    """Shows the progress of a build, with images and bytes per second."""

    def __init__(self) -> None:
        self._stage, self._started, self._last = "", 0.0, time.monotonic()
        self._show: Progress | None = None

    def __call__(self, now: StageProgress) -> None:
        """Show the progress after a task has finished."""
        time_s = time.monotonic()
        if now.stage != self._stage:
            self._stage, self._started = now.stage, self._last  # before its first task
            self._show = Progress(now.stage, "tasks")
        self._last = time_s
        elapsed_s = max(time_s - self._started, 1e-9)
        rates = f"{now.images / elapsed_s:,.0f} img/s  {now.bytes / elapsed_s / 1e6:,.0f} MB/s"
        self._show(now.done, now.total, f"{now.images:,} images  {rates}")
