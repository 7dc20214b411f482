"""Writes checkpoints in the background: training waits for a copy in memory, not for the disk."""

from concurrent.futures import Future, ThreadPoolExecutor

from ray.actor import ActorHandle
from torch import Tensor

from pipeline.checkpoint import local, remote
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
        if self._pending:
            self._pending.result()
        if metrics:
            self._queue.put.remote({"kind": "eval", "step": state.step, **metrics})
        self._pending = self._thread.submit(
            self._write, state.step, weights, optimizer_state, metrics
        )

    def close(self) -> None:
        """Wait until everything is written."""
        if self._pending:
            self._pending.result()
        self._thread.shutdown()

    def _write(
        self, step: int, weights: dict[str, Tensor], state: dict, metrics: dict[str, float]
    ) -> None:
        job = self._job
        # a resumed run does not repeat the records before its checkpoint: save them first
        wait_until_flushed(self._queue)
        path = local.save(
            job.checkpoints,
            step=step,
            samples=step * job.config.global_batch,
            model=weights,
            state=state,
            metrics=metrics,
            config=job.config,
            classes=job.train.classes,
            fingerprint=job.train.fingerprint,
        )
        local.prune(job.checkpoints, job.config.keep_checkpoints)
        if job.config.storage:
            remote.push(path, job.store)
        size = sum(file.stat().st_size for file in path.iterdir())
        self._queue.put.remote({"kind": "checkpoint", "step": step, "checkpoint_bytes": size})
