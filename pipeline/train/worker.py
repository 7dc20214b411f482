"""The loop that every Ray Train worker runs: batch -> loss -> step -> record.

    pipeline.train.batches -> (b, S, S, 3) uint8 on the device -> vit -> loss of the global batch

A worker computes its contiguous share of every global batch. DDP and FSDP average the gradients
over the workers; the loss is weighted so that this average is the mean over the global batch, even
if the shares differ in size. Step k depends on (settings, k) alone, so a restart repeats it
exactly. The host waits for the step before the one that it has queued; for that one only before a
record, an evaluation or a checkpoint.
"""

import json
import os
import socket
from collections.abc import Callable
from functools import cache, partial

import numpy as np
import ray.train
import ray.train.torch
import torch
import torch.distributed
from ray.actor import ActorHandle

from pipeline.data.feed import NodeFeed
from pipeline.data.order import RankShare
from pipeline.evaluation.probe import probe_share
from pipeline.evaluation.training_loop import evaluate_share
from pipeline.train.batches import device_batches, open_feed
from pipeline.train.checkpoint_writer import CheckpointWriter
from pipeline.train.control import Control
from pipeline.train.interval import Interval
from pipeline.train.job import Job
from pipeline.train.meter import Meter
from pipeline.train.nodes import View
from pipeline.train.outcomes import Outcomes
from pipeline.train.preemption import watching_node
from pipeline.train.report_queue import StopSignal
from pipeline.train.start import agreed_checkpoint, initial_weights
from pipeline.train.state import State
from pipeline.train.step import take_step
from pipeline.train.system_metrics import sampling
from pipeline.train.watchdog import Watchdog, watching
from vit.optim import set_learning_rate

# errors that another attempt would meet again: a missing file, a bad sample, a refused setting
FATAL = (
    *(ValueError, TypeError, LookupError, AttributeError, ImportError),
    *(FileNotFoundError, PermissionError, torch.OutOfMemoryError),
)


def attempt(job: Job, view: View, queue: ActorHandle) -> str | None:
    """Run one worker; returns the error of a loss that is not finite, which no restart would cure.

    It is in this module so that workers do not import what only the driver uses, such as MLflow.
    """
    try:
        if ray.train.get_context().get_local_rank() == 0:
            view.check()
        with (
            sampling(queue, job.config.record.system_every_s),
            watching(queue, 60 * job.config.hang_minutes) as watchdog,
            watching_node(queue) as leaves,
        ):
            train(job, queue, watchdog, leaves)
    except FloatingPointError as error:
        return str(error)
    except FATAL as error:
        # before Ray ends the other workers, whose errors would follow from this one
        ray.get(queue.put.remote({"kind": "fatal", "text": told(error)}))
        raise


def told(error: Exception) -> str:
    """An error that ends the run, where it happened, and what helps."""
    text = f"{type(error).__name__} on node {socket.gethostname()}: {error}"
    if isinstance(error, torch.OutOfMemoryError):
        text += " Resume with a smaller --micro-batch; a pass of fewer images takes less memory."
    return text


def train(job: Job, queue: ActorHandle, watchdog: Watchdog, leaves: Callable[[], bool]) -> None:
    """Train from the newest checkpoint, or from the start, to the last step or a request to end.

    Rank 0 puts the records into the queue. `leaves` says whether the node goes away.
    """
    config, total = job.config, job.total_steps
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    if config.deterministic:
        use_deterministic_kernels()
    share = RankShare.of(rank, world_size, config.global_batch)
    checkpoint = agreed_checkpoint(job, rank, context.get_local_rank())
    # decoding starts while the model is made
    feed = open_feed(config.data)
    batches = device_batches(job, feed, checkpoint.step if checkpoint else 0, device)
    nodes_workers = context.get_local_world_size()
    weights = None if checkpoint else initial_weights(job, rank, context.get_local_rank())
    start = {"weights": weights, "rows": job.weights.rows if weights else None}
    state = State(config, device, checkpoint, nodes_workers, **start, parents=job.parents)
    meter = Meter(config, total, world_size)
    writer = CheckpointWriter(job, queue, rank)
    signal = StopSignal(queue) if rank == 0 else None
    elastic = bool(config.min_workers)
    control = Control(signal, leaves, config.checkpoint_minutes, elastic=elastic)
    outcomes = Outcomes(job, state, queue, control, world_size)
    say = cache(queue.say.remote)  # an unreadable image is named once, not in every evaluation

    if weights and config.init_head != "drop":  # a head that knows the classes already
        with meter.paused(evaluates=True):
            metrics = evaluations(state, job, feed, watchdog, say)
        if rank == 0:
            queue.put.remote({"kind": "eval", "step": 0, **metrics})
        watchdog.at(1, "data")

    for batch in meter.timed(batches):
        step = state.step + 1
        rate, skips = job.learning_rate(state.step), job.interventions.skips(step)
        set_learning_rate(state.optimizer, rate)
        at, votes = partial(watchdog.at, step), control.votes()
        sums = take_step(state, batch, share, world_size, votes, at, skips=skips)
        outcomes.add(step, sums, batch.faults, skips=skips)
        if config.audit:
            keep_keys(job, step, batch.keys, rank)

        last = step == total
        records = last or step % config.log_every == 0
        evaluates = last or step % config.eval_every == 0
        probes = bool(job.probes) and (last or step % config.probe.every == 0)
        saves = evaluates or probes or step % config.checkpoint_every == 0
        try:
            outcomes.read(but=0 if records or saves else 1)
            if control.due:  # no checkpoint of a step that was not read
                saves = True
                outcomes.read()
        except FloatingPointError:
            writer.close()  # the run goes on from the checkpoint that is being written
            raise
        writer.check()
        if records and state.interval.losses:  # not if all of its steps were skipped
            rates = meter.rates(step, device)
            if rank == 0:
                epoch = step * config.global_batch / job.train.samples
                values = {"epoch": epoch, "workers": world_size, "lr": rate}
                values |= state.interval.values() | rates
                queue.put.remote({"kind": "train", "step": step, **values})
            state.interval = Interval()
        if saves:
            with meter.paused(evaluates=evaluates), state.averaged():
                metrics = evaluations(state, job, feed, watchdog, say) if evaluates else {}
                if probes:
                    tick = partial(watchdog.at, step, "probe")
                    accuracies = probe_share(state.model, config, job.probes, feed, tick, say)
                    if rank == 0:
                        queue.put.remote({"kind": "probe", "step": step, **accuracies})
                watchdog.at(step, "checkpoint")
                with meter.stalled():
                    writer.save(state, metrics)
            control.saved()
            if control.resizes:
                break
        watchdog.at(step + 1, "data")
    watchdog.at(state.step, "checkpoint")
    writer.close()


def evaluations(
    state: State, job: Job, feed: NodeFeed, watchdog: Watchdog, say: Callable[[str], object]
) -> dict[str, float]:
    """Metrics on the eval split, and on the split that selects the checkpoint, if one does."""
    tick = partial(watchdog.at, state.step, "evaluate")
    metrics = {}
    for prefix, dataset in (("val", job.eval), ("select", job.select)):
        if dataset:
            metrics |= evaluate_share(state.model, job.config, dataset, feed, tick, say, prefix)
    return metrics


def use_deterministic_kernels() -> None:
    """Have PyTorch choose only kernels that give the same bits in every run.

    An operation that has none raises RuntimeError. Call it before the GPU is used.
    """
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # or products split their sums at will
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # nothing reads such memory
    # these attentions add gradients in any order; flash attention has a deterministic kernel
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.enable_cudnn_sdp(False)
    import torch._inductor.config as inductor  # a second, which the driver does not need

    inductor.deterministic = True  # or measurements choose the kernels, and their order of sums


def keep_keys(job: Job, step: int, keys: np.ndarray, rank: int) -> None:
    """Write the keys of a step's global batch, in order; replaces those of an earlier attempt."""
    gathered = [None] * torch.distributed.get_world_size() if rank == 0 else None
    torch.distributed.gather_object(keys.tolist(), gathered)
    if gathered:
        content = json.dumps([key for shares in gathered for key in shares])
        job.folder.write(f"samples/step-{step:09d}.json", content.encode())
