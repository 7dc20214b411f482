"""Writes checkpoints in the background: training waits for a copy in memory, not for the disk."""

from concurrent.futures import Future, ThreadPoolExecutor

from ray.actor import ActorHandle
from torch import Tensor

from pipeline.checkpoint import local
from pipeline.train.job import Job
from pipeline.train.report_queue import wait_until_flushed
from pipeline.train.state import State


class CheckpointWriter:
    """Writes on rank 0; the other workers only help to gather sharded tensors."""

    def __init__(self, job: Job, queue: ActorHandle, rank: int) -> None:
        """Write to the checkpoint folder of the job."""
        self._job, self._queue, self._rank = job, queue, rank
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future | None = None

    def save(self, state: State, metrics: dict[str, float]) -> None:
        """Record the evaluation, if any, and start to write a checkpoint.

        Waits for the previous checkpoint, and raises its error if it failed.
        """
        if self._rank and self._job.config.parallel == "ddp":
            return
        weights, optimizer_state = state.capture()
        if self._rank:
            return
        self._wait()
        if metrics:
            self._queue.put.remote({"kind": "eval", "step": state.step, **metrics})
        self._pending = self._thread.submit(
            self._write, state.step, weights, optimizer_state, metrics
        )

    def check(self) -> None:
        """Raise the error of a checkpoint that could not be written, as soon as it is known."""
        if self._pending and self._pending.done():
            self._wait()

    def close(self) -> None:
        """Wait until everything is written."""
        self._wait()
        self._thread.shutdown()

    def _wait(self) -> None:
        pending, self._pending = self._pending, None
        if pending:
            pending.result()

    def _write(
        self, step: int, weights: dict[str, Tensor], state: dict, metrics: dict[str, float]
    ) -> None:
        job = self._job
        # a resumed run does not repeat the records before its checkpoint: save them first
        wait_until_flushed(self._queue)
        path = local.save(
            job.checkpoints.folder,
            step=step,
            samples=step * job.config.global_batch,
            model=weights,
            state=state,
            metrics=metrics,
            config=job.config,
            classes=job.train.classes,
            fingerprint=job.train.fingerprint,
        )
        job.checkpoints.publish(path)
        job.checkpoints.prune(job.config.keep_checkpoints)
        size = sum(file.stat().st_size for file in path.iterdir())
        self._queue.put.remote({"kind": "checkpoint", "step": step, "checkpoint_bytes": size})
