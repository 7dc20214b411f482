"""Writes checkpoints in the background: training waits for a copy in memory, not for the disk.

    training thread: State.capture -> Snapshot    a thread: files of each worker -> rank 0 commits

A replicated model is written by rank 0 alone. Of a sharded one every worker writes its shards; the
workers meet in the background before rank 0 makes the checkpoint visible.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from ray.actor import ActorHandle

from pipeline.checkpoint.agreement import Agreement
from pipeline.checkpoint.draft import Draft, Files
from pipeline.checkpoint.sharded import Snapshot
from pipeline.train.job import Job
from pipeline.train.report_queue import wait_until_flushed
from pipeline.train.state import State
from support.lease import check_owner


class CheckpointWriter:
    """The writer of one worker; all workers must make one."""

    def __init__(self, job: Job, queue: ActorHandle, rank: int) -> None:
        """Write the checkpoints of the job; rank 0 puts the records about them into the queue."""
        self._job, self._queue, self._rank = job, queue, rank
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future | None = None
        self._agreement = None if job.config.parallel == "ddp" else Agreement()

    def save(self, state: State, metrics: Mapping[str, float]) -> None:
        """Record the evaluation, if any, and start to write a checkpoint.

        Waits for the previous checkpoint, and raises its error if it failed.
        """
        if self._rank and not self._agreement:
            return
        self._wait()  # its copies in memory are used again
        snapshot = state.capture()
        if metrics and self._rank == 0:
            self._queue.put.remote({"kind": "eval", "step": state.step, **metrics})
        self._pending = self._thread.submit(self._write, state.step, snapshot, metrics)

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

    def _write(self, step: int, snapshot: Snapshot, metrics: Mapping[str, float]) -> None:
        draft = Draft(checkpoints=self._job.checkpoints, step=step)
        if self._rank == 0:
            # a resumed run does not repeat the records before its checkpoint: save them first
            wait_until_flushed(self._queue)
        self._together(draft.begin if self._rank == 0 else None)
        files: Files = {}
        keep = not self._agreement  # a part of a checkpoint is no use to the next attempt
        for part in self._together(lambda: draft.add(snapshot.write, keep=keep)):
            files |= part
        if self._rank:
            return
        job = self._job
        check_owner(job.folder, job.owner)  # a driver that was believed dead may have lost the run
        checkpoint = draft.commit(
            files,
            provenance=job.provenance,
            samples=step * job.config.global_batch,
            metrics=metrics,
            config=job.config,
            classes=job.train.classes,
            fingerprint=job.train.fingerprint,
        )
        try:
            job.checkpoints.prune(job.config.keep_checkpoints)
        except OSError as error:  # the next one prunes again
            self._queue.say.remote(f"old checkpoints could not be deleted: {error}")
        size = sum(size for size, _ in checkpoint.files.values())
        self._queue.put.remote({"kind": "checkpoint", "step": step, "checkpoint_bytes": size})

    def _together(self, action: Callable[[], object] | None) -> list[object]:
        """What the action returns on each worker that writes; OSError if it fails on any."""
        if not self._agreement:
            return [action() if action else None]
        return self._agreement.results(action)
