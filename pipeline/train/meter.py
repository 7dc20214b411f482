"""How fast a worker goes: images/s, share of waiting for data, memory, share of the peak."""

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from pipeline.settings.budget import PEAK_FLOPS

T = TypeVar("T")


class Meter:
    """Rates between two records; evaluations, checkpoints and the start do not count."""

    def __init__(
        self, *, images: int, image_flops: float, world_size: int, total: int, eval_every: int
    ) -> None:
        """Of a run of `total` steps with `images` in each over all workers."""
        self._images, self._total, self._eval_every = images, total, eval_every
        self._step_flops = images * image_flops / world_size
        self._evaluations, self._evaluations_s = 0, 0.0
        self._peak = peak_flops()
        self._started = False
        self._begin()

    def _begin(self) -> None:
        self._steps, self._wait_s, self._paused_s, self._stalled_s = 0, 0.0, 0.0, 0.0
        self._since = time.perf_counter()

    def timed(self, batches: Iterator[T]) -> Iterator[T]:
        """The same batches, with the wait for each of them on the clock."""
        while True:
            before = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                return
            self._wait_s += time.perf_counter() - before
            if not self._started:
                self._started = True
                self._begin()
            self._steps += 1
            yield batch

    @contextmanager
    def paused(self, *, evaluates: bool) -> Iterator[None]:
        """Time within the block counts only in the ETA, and there if it evaluates."""
        before = time.perf_counter()
        yield
        lasted_s = time.perf_counter() - before
        self._paused_s += lasted_s
        if evaluates:
            self._evaluations += 1
            self._evaluations_s += lasted_s

    @contextmanager
    def stalled(self) -> Iterator[None]:
        """Time within the block, inside a pause, is what a checkpoint costs."""
        before = time.perf_counter()
        yield
        self._stalled_s += time.perf_counter() - before

    def record(self, step: int, values: dict[str, float]) -> dict[str, str | int | float]:
        """A record of the interval that ends with `step`; the next one begins."""
        busy_s = time.perf_counter() - self._since - self._paused_s
        rates = {
            "images_per_s": self._steps * self._images / busy_s,
            "wait": self._wait_s / busy_s,
            "stall": self._stalled_s / (busy_s + self._stalled_s),
            "memory_gib": peak_memory_bytes() / 2**30,
            "eta_s": (self._total - step) * busy_s / self._steps + self._left_to_evaluate_s(step),
        }
        if self._peak:
            rates["mfu"] = self._steps * self._step_flops / busy_s / self._peak
        self._begin()
        return {"kind": "train", "step": step, **values, **rates}

    def _left_to_evaluate_s(self, step: int) -> float:
        """Time that the evaluations after `step` will take, by the mean of those before."""
        left = -(-self._total // self._eval_every) - step // self._eval_every
        return left * self._evaluations_s / max(self._evaluations, 1)


def peak_flops() -> float | None:
    """Dense bf16 FLOP/s of this worker's GPU; None where it is not known."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return next((flops for word, flops in PEAK_FLOPS.items() if word in name), None)


def peak_memory_bytes() -> int:
    """Most memory this worker has taken: of its GPU, or of the process where there is none."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
