"""The loop that every Ray Train worker runs: batch -> loss -> step -> record.

    pipeline.data.stream -> (b, S, S, 3) uint8 on the device -> vit -> mean loss of the global batch

A worker computes its contiguous share of every global batch. DDP and FSDP average the gradients
over the workers; the loss is weighted so that this average is the mean over the global batch, even
if the shares differ in size. Step k depends on (settings, k) alone, so a restart repeats it
exactly.
"""

import json
import math
import socket
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import ray.train
import ray.train.torch
import torch
import torch.distributed
from ray.actor import ActorHandle
from torch import Tensor

from pipeline.data.order import RankShare
from pipeline.data.reader import SampleReader, View
from pipeline.data.stream import Block, Stream, ahead, quiet, rebatch
from pipeline.evaluation.predict import evaluate_share, to_device
from pipeline.evaluation.probe import probe_share
from pipeline.train.checkpoint_writer import CheckpointWriter
from pipeline.train.control import Control
from pipeline.train.job import Job
from pipeline.train.meter import Meter
from pipeline.train.nodes import View
from pipeline.train.report_queue import StopSignal
from pipeline.train.start import agreed_checkpoint
from pipeline.train.state import State
from pipeline.train.system_metrics import sampling
from pipeline.train.watchdog import Watchdog, watching
from support.splitmix import scramble
from vit.batch import mix, normalise
from vit.loss import Loss, make_loss, make_targets
from vit.optim import set_learning_rate

# errors that another attempt would meet again: a missing file, a bad sample, a refused setting
FATAL = (
    *(ValueError, TypeError, LookupError, AttributeError, ImportError),
    *(FileNotFoundError, PermissionError),
)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One worker's share of a global batch, on its device."""

    images: Tensor
    """(b, S, S, 3) uint8."""
    labels: Tensor
    """(b, M) int64, padded with -1; all -1 for an image that could not be read."""
    keys: np.ndarray
    """(b,) str."""
    faults: list[str]
    """Description of each image that could not be read."""


def attempt(job: Job, view: View, queue: ActorHandle) -> str | None:
    """Run one worker; returns the error of a loss that is not finite, which no restart would cure.

    It is in this module so that workers do not import what only the driver uses, such as MLflow.
    """
    try:
        view.check()
        with (
            sampling(queue, job.config.record.system_every_s),
            watching(queue, 60 * job.config.hang_minutes) as watchdog,
        ):
            train(job, queue, watchdog)
    except FloatingPointError as error:
        return str(error)
    except FATAL as error:
        # before Ray ends the other workers, whose errors would follow from this one
        text = f"{type(error).__name__} on node {socket.gethostname()}: {error}"
        ray.get(queue.put.remote({"kind": "fatal", "text": text}))
        raise


def train(job: Job, queue: ActorHandle, watchdog: Watchdog) -> None:
    """Train from the latest checkpoint, or from the start, to the last step or the stop request.

    Rank 0 puts the records into the queue.
    """
    quiet()
    config, total = job.config, job.total_steps
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    share = RankShare.of(rank, world_size, config.global_batch)
    state = State(config, device, agreed_checkpoint(job, rank, context.get_local_rank()))
    loss_of = make_loss(config.loss, parents=job.parents, device=device)
    meter = Meter(config, total, world_size)
    writer = CheckpointWriter(job, queue, rank)
    control = Control(StopSignal(queue) if rank == 0 else None, config.checkpoint_minutes)

    for batch in meter.timed(device_batches(job, share, state.step, device)):
        watchdog.at(state.step + 1, "forward and backward")
        rate = job.learning_rate(state.step)
        skips = job.interventions.skips(state.step + 1)
        loss = norm = torch.zeros(1, device=device)
        if not skips:
            set_learning_rate(state.optimizer, rate)
            loss = backward(state, batch, share, loss_of, rank, world_size)
            norm = state.clip()
        # one reduction: all workers see the same loss, number of faults, and votes
        flags = torch.tensor([len(batch.faults), *control.votes()], device=device)
        sums = torch.cat([loss, flags])
        watchdog.at(state.step + 1, "all-reduce")
        torch.distributed.all_reduce(sums)
        loss, num_bad, *votes = sums.tolist()
        loss /= world_size
        control.decide(*votes)
        check_faults(state, queue, batch.faults, int(num_bad))
        if config.audit:
            keep_keys(job, state.step, batch.keys, rank)
        if skips:
            state.skip()
        else:
            check_finite(job, state.step, loss, norm.item())
            state.update()

        last = state.step == total
        logs = (last or state.step % config.log_every == 0) and not skips
        evaluates = last or state.step % config.eval_every == 0
        probes = bool(job.probes) and (last or state.step % config.probe.every == 0)
        saves = evaluates or probes or control.due or state.step % config.checkpoint_every == 0
        if logs and rank == 0:
            epoch = state.step * config.global_batch / job.train.samples
            values = {"epoch": epoch, "workers": world_size, "train/loss": loss, "lr": rate}
            queue.put.remote(meter.record(state.step, {**values, "grad_norm": norm.item()}))
        writer.check()
        if saves:
            with meter.paused(evaluates=evaluates), state.averaged():
                metrics = {}
                if evaluates:
                    watchdog.at(state.step, "evaluate")
                    metrics = evaluate_share(state.model, config, job.eval, rank, world_size)
                if probes:
                    watchdog.at(state.step, "probe")
                    accuracies = probe_share(state.model, config, job.probes, rank, world_size)
                    if rank == 0:
                        queue.put.remote({"kind": "probe", "step": state.step, **accuracies})
                watchdog.at(state.step, "checkpoint")
                with meter.stalled():
                    writer.save(state, metrics)
            control.saved()
            if control.resizes:
                break
        watchdog.at(state.step + 1, "data")
    writer.close()


def backward(
    state: State, batch: Batch, share: RankShare, loss_of: Loss, rank: int, world_size: int
) -> Tensor:
    """Gradients of the loss of a step, in passes of `micro_batch`; this worker's part of the loss.

    Returns the loss (1,): the mean over workers is the mean over the global batch.
    """
    config, device = state.config, batch.images.device
    seed = scramble(scramble(config.seed) ^ state.step)  # of the global batch
    torch.manual_seed(scramble(seed ^ rank))
    loss = torch.zeros(1, device=device)
    starts = range(0, share.size, config.micro_batch)
    for start in starts:
        rows = slice(start, start + config.micro_batch)
        pixels = normalise(batch.images[rows], config.images)
        targets = make_targets(batch.labels[rows], config.model.num_classes)
        readable = batch.labels[rows].ge(0).any(1)
        pixels, targets = mix(pixels, targets, config.mix, seed=seed, first=share.low + start)
        with state.accumulating(last=start == starts[-1]):
            with torch.autocast(device.type, torch.bfloat16, config.precision == "bf16"):
                logits = state.forward(pixels)
            losses = loss_of(logits.float(), targets) * readable
            micro_loss = losses.sum() * (world_size / config.global_batch)
            micro_loss.backward()
        loss += micro_loss.detach()
    return loss


def device_batches(job: Job, share: RankShare, step: int, device: torch.device) -> Iterator[Batch]:
    """The worker's batches from `step` on, prefetched."""
    config = job.config
    reader = SampleReader(
        dataset=job.train,
        view=View(images=config.images, size=config.model.image_size, seed=config.seed),
        verify=config.data.verify,
        skip=config.data.max_bad_samples > 0,
    )
    stream = Stream(
        reader=reader,
        order=job.order,
        share=share,
        task_samples=config.data.task_samples,
        buffer_gib=config.data.buffer_gib,
    )

    def on_device(block: Block) -> Batch:
        images, labels = to_device(device, block["images"][:, 0], block["labels"])
        faults = [str(fault) for fault in block["fault"] if fault]
        return Batch(images=images, labels=labels, keys=block["key"], faults=faults)

    blocks = stream.blocks(step * share.size, job.total_steps * share.size)
    return ahead(map(on_device, rebatch(blocks, share.size)), config.data.prefetch_batches)


def check_faults(state: State, queue: ActorHandle, faults: list[str], num_bad: int) -> None:
    """Count unreadable images; ValueError if there are more than the run allows."""
    allowed = state.config.data.max_bad_samples
    state.num_bad += num_bad
    for fault in faults:
        queue.say.remote(f"skipped: {fault}")
    if state.num_bad > allowed:
        raise ValueError(
            f"{state.num_bad} images could not be read, data.max_bad_samples allows {allowed}: "
            f"{'; '.join(faults) or 'named by another worker'}"
        )


def check_finite(job: Job, step: int, loss: float, norm: float) -> None:
    """Raise FloatingPointError, which names the shards, unless loss and gradient are finite."""
    if math.isfinite(norm) and math.isfinite(loss):
        return
    batch, number = job.config.global_batch, step + 1
    rows = job.order.spans(step * batch, number * batch).slice
    names = [job.train.shards[n][1].name for n in np.unique(job.train.slices.shard[rows])]
    raise FloatingPointError(
        f"loss {loss}, gradient norm {norm} in step {number}; nothing was updated. "
        f"Samples came from {', '.join(names[:20])}{' ...' if len(names) > 20 else ''}. The last "
        f"checkpoint is unchanged. The same command with --skip-steps {number}:{number} passes "
        f"over this batch, with --lr-factors {number}:0.5 it lowers the rate; to go further back: "
        f"python -m pipeline rollback {job.folder.location} --step N"
    )


def keep_keys(job: Job, step: int, keys: np.ndarray, rank: int) -> None:
    """Write the keys of a step's global batch, in order; replaces those of an earlier attempt."""
    gathered = [None] * torch.distributed.get_world_size() if rank == 0 else None
    torch.distributed.gather_object(keys.tolist(), gathered)
    if gathered:
        content = json.dumps([key for shares in gathered for key in shares])
        job.folder.write(f"samples/step-{step + 1:09d}.json", content.encode())
