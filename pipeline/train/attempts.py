"""Runs the workers until the last step: again after a failure, and with more of them when it can.

    wait until enough workers fit -> attempt: Ray Train starts them -> they train -> end or failure
    failure -> another attempt, unless it would fail in the same way or nothing was gained for long

Every attempt is new to Ray; what it starts from is the checkpoint alone.
"""

import contextlib
import logging
import math
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial

import ray
import ray.train
from ray.actor import ActorHandle
from ray.train import (
    ControllerError,
    FailureConfig,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
    WorkerGroupError,
)
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

from pipeline.cluster.autoscaler import requested
from pipeline.train.capacity import Capacity
from pipeline.train.job import Job
from pipeline.train.nodes import View
from pipeline.train.report_queue import STOP, wait_until_flushed
from pipeline.train.watchdog import FIRST_LIMIT_S, find_stragglers
from pipeline.train.worker import attempt
from shards.build.ray_map import alive
from support.threads import beside

log = logging.getLogger(__name__)

# seconds that an interrupted run gets for its last checkpoint, and between two lines that say so
GRACE_S, COUNTDOWN_S = 300.0, 10.0
# seconds between two checks whether an elastic run can get more workers
RESIZE_S = 30.0
# the longest pause after resizes, which grows with each: they may have brought no workers
MAX_RESIZE_S = 3600.0
# a pause between attempts, so that a failure that comes at once does not come ten times at once
PAUSE_S = 1.0
# failed workers that a message names
MAX_NAMED = 8
# how much later than the watchdog a collective call of PyTorch gives up
COLLECTIVE_FACTOR = 2


def train_workers(
    job: Job, view: View, own_cpus: int | None, queue: ActorHandle, fatal: Callable[[], str]
) -> None:
    """Train to the last step, or until the workers were asked to stop.

    Args:
        job: The run.
        view: What the driver sees, with which each node compares what it sees.
        own_cpus: CPUs of a worker without a GPU; None for the default.
        queue: Where the workers put their reports.
        fatal: Returns what a worker has reported as an error that a restart cannot help, or "".

    Raises FloatingPointError if the loss is not finite, and RuntimeError after any other failure
    that another attempt would not cure.
    """
    left, step, pause_s = job.config.max_restarts, reached(job), RESIZE_S
    capacity = Capacity(job.config, own_cpus)

    def stopped() -> bool:
        return ray.get(queue.requested.remote()) >= STOP

    while True:
        ray.get(queue.begin.remote())
        if not (workers := capacity.wait(stopped)):
            return
        try:
            with (
                resizing(job, capacity, queue, pause_s),
                requested(capacity.each, capacity.missing(workers)),
            ):
                divergence = run_attempt(job, view, queue, capacity.each, workers)
        except TrainingFailedError as error:
            if timed_out(error):
                log.warning("%s; they are tried again", brief(error))
                continue
            wait_until_flushed(queue)  # among the last reports may be that of a fatal error
            reasons, before, step = describe(error, queue), step, reached(job)
            left = job.config.max_restarts if step > before else left
            pause_s = RESIZE_S
            if fatal() or not left:
                raise RuntimeError(
                    f"training failed: {fatal() or reasons}. The last checkpoint is unchanged; the "
                    f"same command resumes from it"
                ) from error
            left -= 1
            log.warning("%s; the workers start again from step %s", reasons, f"{step:,}")
            time.sleep(PAUSE_S)
            continue
        if divergence:
            raise FloatingPointError(divergence)
        step = reached(job)
        if step >= job.total_steps or stopped():
            return
        log.info("resize    going on from step %s with the workers that fit", f"{step:,}")
        pause_s = min(4 * pause_s, MAX_RESIZE_S)


def reached(job: Job) -> int:
    """Step of the newest checkpoint."""
    checkpoint = job.checkpoints.latest()
    return checkpoint.step if checkpoint else 0


def run_attempt(
    job: Job, view: View, queue: ActorHandle, each: Mapping[str, float], workers: int
) -> str | None:
    """Run so many workers once, or an elastic run with fewer if others use their resources.

    Returns the error of a loss that is not finite.

    Raises TrainingFailedError if a worker fails, and KeyboardInterrupt after the checkpoint of an
    interrupted run.
    """
    config = job.config
    longest_limit_s = int(max(60 * config.hang_minutes, FIRST_LIMIT_S))
    folder = job.dir / "ray"  # only Ray uses it
    trainer = TorchTrainer(
        partial(attempt, job, view, queue),
        # the watchdog of each worker acts first, and says more
        torch_config=TorchConfig(timeout_s=COLLECTIVE_FACTOR * longest_limit_s),
        scaling_config=ScalingConfig(
            # not the most that it may have: Ray counts on nodes that go away
            num_workers=(config.min_workers, workers) if config.min_workers else workers,
            use_gpu="GPU" in each,
            resources_per_worker=dict(each),
            # packed workers without GPUs would leave a node no CPU to read and decode
            placement_strategy="PACK" if "GPU" in each else "SPREAD",
            # Ray's own resize would lose the work since the last checkpoint; see `resizing`
            elastic_resize_monitor_interval_s=1e9,
        ),
        run_config=RunConfig(
            name=f"start-{time.time_ns()}",
            storage_path=str(folder),
            # Ray repeats nothing by itself: the next attempt counts the nodes again
            failure_config=FailureConfig(controller_failure_limit=0, max_preemption_failures=0),
        ),
    )
    thread = ThreadPoolExecutor(1, "trainer")
    result = thread.submit(trainer.fit)
    try:
        return result.result().return_value
    except KeyboardInterrupt:
        queue.ask.remote("stop")
        wait_for_checkpoint(result)
        raise
    finally:
        thread.shutdown(wait=False)  # after a second Ctrl-C nothing is waited for
        shutil.rmtree(folder, ignore_errors=True)


def timed_out(error: TrainingFailedError) -> bool:
    """Whether workers did not start in time: others have their resources, or a node is gone."""
    cause = error.controller_failure if isinstance(error, ControllerError) else None
    return isinstance(cause, WorkerGroupStartupTimeoutError)


def wait_for_checkpoint(result: Future) -> None:
    """Wait until the workers have written a checkpoint and ended; say how long that may take."""
    deadline = time.monotonic() + GRACE_S
    while (left := deadline - time.monotonic()) > 0:
        log.info(
            "stopping after a checkpoint, for %.0f s at most; press Ctrl-C again to stop at once",
            left,
        )
        if wait([result], timeout=min(left, COUNTDOWN_S)).done:
            if error := result.exception():
                log.error("the last checkpoint is an earlier one: %s", brief(error))
            return
    log.warning("no checkpoint after %.0f s; the run will resume from an earlier one", GRACE_S)


@contextlib.contextmanager
def resizing(job: Job, capacity: Capacity, queue: ActorHandle, pause_s: float) -> Iterator[None]:
    """During the block: when an elastic run can get more workers, ask for its next checkpoint.

    It can at once when nodes have come since the start, and otherwise after `pause_s`: what nodes
    have may belong to other jobs, and Ray learns of a node some seconds late.
    """
    if not job.config.min_workers:
        yield
        return
    known = alive()

    def watch(closing: threading.Event) -> None:
        started = time.monotonic()
        while not closing.wait(RESIZE_S):
            beats = ray.get(queue.beats.remote())
            now = min(beats, key=lambda beat: beat.age_s).world_size if beats else math.inf
            may = alive().keys() - known.keys() or time.monotonic() - started > pause_s
            if may and capacity.now() > now:
                queue.ask.remote("resize")
                return

    with beside(watch, "resize"):
        yield


def describe(error: TrainingFailedError, queue: ActorHandle) -> str:
    """The last line of each worker's exception, and which workers the others waited for."""
    if not isinstance(error, WorkerGroupError):
        return brief(error)
    reasons = [
        # in Ray's tracebacks the last line is the message
        f"worker {rank} failed: {brief(cause)}"
        for rank, cause in sorted(error.worker_failures.items())
    ]
    more = [f"and {len(reasons) - MAX_NAMED} others"] if reasons[MAX_NAMED:] else []
    stragglers = find_stragglers(queue)
    return "; ".join([*reasons[:MAX_NAMED], *more, *([stragglers] if stragglers else [])])


def brief(error: BaseException) -> str:
    """The last line of an error, which in Ray's tracebacks is the message."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1]
