"""Throughput: images/s, shares of time spent waiting, memory, model FLOPs used.

each worker measures itself -> rates: one small reduction a record -> what the slowest one says
"""

import resource
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed

from pipeline.settings.config import TrainConfig
from pipeline.settings.gpus import find_gpu

T = TypeVar("T")


class Meter:
    """Rates between two records, without evaluations, checkpoints and the start-up.

    After a restart the first interval begins with the attempt, not with the last record.
    """

    def __init__(self, config: TrainConfig, total_steps: int, world_size: int) -> None:
        """Measure a run of `total_steps` on `world_size` workers."""
        self._total, self._eval_every = total_steps, config.eval_every
        self._images = config.global_batch
        self._step_flops = 3 * config.model.forward_flops * self._images / world_size
        self._evaluations, self._evaluations_s = 0, 0.0
        self._peak = peak_flops(config.precision)
        self._started = False
        self._reset()

    def _reset(self) -> None:
        self._steps, self._wait_s, self._paused_s, self._stalled_s = 0, 0.0, 0.0, 0.0
        self._since = time.perf_counter()

    def timed(self, batches: Iterator[T]) -> Iterator[T]:
        """The same batches; the time spent waiting for them is measured."""
        before = time.perf_counter()
        for batch in batches:
            self._wait_s += time.perf_counter() - before
            if not self._started:
                self._started = True
                self._reset()
            self._steps += 1
            yield batch
            before = time.perf_counter()

    @contextmanager
    def paused(self, *, evaluates: bool) -> Iterator[None]:
        """Exclude the block from the rates; an evaluation counts in the ETA."""
        before = time.perf_counter()
        yield
        elapsed_s = time.perf_counter() - before
        self._paused_s += elapsed_s
        if evaluates:
            self._evaluations += 1
            self._evaluations_s += elapsed_s

    @contextmanager
    def stalled(self) -> Iterator[None]:
        """Count the block, inside a pause, as time that training waits for a checkpoint."""
        before = time.perf_counter()
        yield
        self._stalled_s += time.perf_counter() - before

    def rates(self, step: int, device: torch.device) -> dict[str, float]:
        """Rates of the interval that ends with `step`; starts the next interval.

        All workers must call it, after they have waited for the step. Waits, stalls and memory are
        the largest of all workers: one that waits for its data makes the others wait for it.
        """
        busy_s = time.perf_counter() - self._since - self._paused_s
        rates = {
            "images_per_s": self._steps * self._images / busy_s,
            "eta_s": (self._total - step) * busy_s / self._steps + self._left_to_evaluate_s(step),
        }
        if self._peak:
            rates["mfu"] = self._steps * self._step_flops / busy_s / self._peak
        own = {
            "wait": self._wait_s / busy_s,
            "stall": self._stalled_s / (busy_s + self._stalled_s),
            "memory_gib": peak_memory_bytes() / 2**30,
        }
        self._reset()
        return rates | largest(own, device)

    def _left_to_evaluate_s(self, step: int) -> float:
        """Estimated time of the evaluations after `step`: the mean of the earlier ones."""
        left = -(-self._total // self._eval_every) - step // self._eval_every
        return left * self._evaluations_s / max(self._evaluations, 1)


def largest(values: Mapping[str, float], device: torch.device) -> dict[str, float]:
    """The largest of all workers of each value; all workers must call it."""
    numbers = torch.tensor([*values.values()], dtype=torch.float64, device=device)
    torch.distributed.all_reduce(numbers, torch.distributed.ReduceOp.MAX)
    return dict(zip(values, numbers.tolist(), strict=True))


def peak_flops(precision: str) -> float | None:
    """Dense FLOP/s of this worker's GPU in bf16; None for other precisions and unknown GPUs."""
    if precision != "bf16" or not torch.cuda.is_available():
        return None
    gpu = find_gpu(torch.cuda.get_device_name())
    return gpu.bf16_flops if gpu else None


def peak_memory_bytes() -> int:
    """Peak memory of this worker: on its GPU, or of the process if there is none."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
