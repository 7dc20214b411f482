"""The loop that every Ray Train worker runs: batch -> loss -> step -> record.

    pipeline.data.stream -> (b, S, S, 3) uint8 on the device -> vit -> mean loss of the global batch

A worker computes its contiguous share of every global batch. Its loss is weighted so that the
average over workers, which DDP and FSDP take, is the mean over the global batch, also where the
shares differ. Whatever happens in step k depends on (settings, k) alone, so a restart replays it
exactly.
"""

import json
import math
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
from pipeline.evaluation.predict import evaluate_share
from pipeline.evaluation.probe import probe_share
from pipeline.train.checkpoint_writer import CheckpointWriter
from pipeline.train.job import Job
from pipeline.train.meter import Meter
from pipeline.train.report_queue import StopSignal
from pipeline.train.state import State
from pipeline.train.system_metrics import sampling
from support.files import write_bytes
from support.splitmix import scramble
from vit.batch import mix, normalise
from vit.loss import make_loss, make_targets
from vit.optim import set_learning_rate


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
    """What is wrong with each image that could not be read."""


def attempt(job: Job, queue: ActorHandle) -> str | None:
    """One worker's part; returns what it says of a loss that no restart would make finite.

    It stands here, and not with the driver, so that workers import nothing that only the driver
    uses, such as MLflow.
    """
    try:
        with sampling(queue, job.config.record.system_every_s):
            train(job, queue)
    except FloatingPointError as error:
        return str(error)


def train(job: Job, queue: ActorHandle) -> None:
    """Train from the latest checkpoint, or from the start, to the last step or the stop request.

    Rank 0 leaves what is to be recorded at the queue.
    """
    quiet()
    config, total = job.config, job.total_steps
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    share = RankShare.of(rank, world_size, config.global_batch)
    state = State(config, device, job.latest())
    loss_of = make_loss(config.loss, parents=job.parents, device=device)
    meter = Meter(
        images=config.global_batch,
        image_flops=3 * config.model.forward_flops,
        world_size=world_size,
        total=total,
        eval_every=config.eval_every,
    )
    writer = CheckpointWriter(job, queue, rank)
    stop_signal = StopSignal(queue) if rank == 0 else None
    preempted = False

    for batch in meter.timed(device_batches(job, share, state.step, device)):
        seed = scramble(scramble(config.seed) ^ state.step)  # of this step's global batch
        torch.manual_seed(scramble(seed ^ rank))
        rate = job.learning_rate(state.step)
        set_learning_rate(state.optimizer, rate)
        loss = torch.zeros(1, device=device)
        starts = range(0, share.size, config.micro_batch)
        for start in starts:
            part = slice(start, start + config.micro_batch)
            pixels = normalise(batch.images[part], config.images)
            targets = make_targets(batch.labels[part], config.model.num_classes)
            readable = batch.labels[part].ge(0).any(1)
            pixels, targets = mix(pixels, targets, config.mix, seed=seed, first=share.low + start)
            with state.accumulating(last=start == starts[-1]):
                with torch.autocast(device.type, torch.bfloat16, config.precision == "bf16"):
                    logits = state.forward(pixels)
                losses = loss_of(logits.float(), targets) * readable
                part_loss = losses.sum() * (world_size / config.global_batch)
                part_loss.backward()
            loss += part_loss.detach()
        norm = state.clip()
        # one message: all workers see the same loss, the same stop request and the same faults
        flags = torch.tensor([float(bool(stop_signal)), len(batch.faults)]).to(device)
        sums = torch.cat([loss, flags])
        torch.distributed.all_reduce(sums)
        loss, stop, num_bad = sums[0] / world_size, bool(sums[1]), int(sums[2])
        check_faults(state, queue, batch.faults, num_bad)
        check_finite(job, state.step, loss, norm)
        if config.audit:
            keep_keys(job, state.step, batch.keys, rank)
        state.update()

        last = state.step == total
        logs = last or state.step % config.log_every == 0
        evaluates = last or state.step % config.eval_every == 0
        probes = bool(job.probes) and (last or state.step % config.probe.every == 0)
        saves = evaluates or probes or stop or state.step % config.checkpoint_every == 0
        if logs and rank == 0:
            epoch = state.step * config.global_batch / job.train.samples
            values = {"epoch": epoch, "workers": world_size, "train/loss": loss.item(), "lr": rate}
            queue.put.remote(meter.record(state.step, {**values, "grad_norm": norm.item()}))
        if logs and not preempted:
            preempted = ray.train.get_preemption_info() is not None
            saves |= preempted  # once, before a node goes away
        if saves:
            with meter.paused(evaluates=evaluates), state.averaged():
                metrics = {}
                if evaluates:
                    metrics = evaluate_share(state.model, config, job.eval, rank, world_size)
                if probes:
                    accuracies = probe_share(state.model, config, job.probes, rank, world_size)
                    if rank == 0:
                        queue.put.remote({"kind": "probe", "step": state.step, **accuracies})
                with meter.stalled():
                    writer.save(state, metrics)
        if stop:
            break
    writer.close()


def device_batches(job: Job, share: RankShare, step: int, device: torch.device) -> Iterator[Batch]:
    """The worker's share of every step from `step` on, prefetched."""
    config = job.config
    view = View(images=config.images, size=config.model.image_size, seed=config.seed)
    stream = Stream(
        reader=SampleReader(
            dataset=job.train,
            view=view,
            verify=config.data.verify,
            skip=config.data.max_bad_samples > 0,
        ),
        order=job.order,
        share=share,
        task_samples=config.data.task_samples,
        buffer_gib=config.data.buffer_gib,
    )

    def on_device(block: Block) -> Batch:
        images, labels = (
            torch.from_numpy(array) for array in (block["images"][:, 0], block["labels"])
        )
        if device.type == "cuda":  # a pinned copy is what may travel beside the computation
            images, labels = images.pin_memory(), labels.pin_memory()
        return Batch(
            images=images.to(device, non_blocking=True),
            labels=labels.to(device, non_blocking=True),
            keys=block["key"],
            faults=[str(fault) for fault in block["fault"] if fault],
        )

    blocks = stream.blocks(step * share.size, job.total_steps * share.size)
    return ahead(map(on_device, rebatch(blocks, share.size)), config.data.prefetch_batches)


def check_faults(state: State, queue: ActorHandle, faults: list[str], num_bad: int) -> None:
    """Count images that could not be read; more than the run allows are an OSError."""
    allowed = state.config.data.max_bad_samples
    state.num_bad += num_bad
    for fault in faults:
        queue.say.remote(f"left out: {fault}")
    if state.num_bad > allowed:
        named = "; ".join(faults) or "named by another worker"
        raise OSError(
            f"{state.num_bad} images could not be read, data.max_bad_samples allows {allowed}: "
            f"{named}"
        )


def check_finite(job: Job, step: int, loss: Tensor, norm: Tensor) -> None:
    """Stop before an update by a loss or gradient that is not finite, and say from where."""
    if math.isfinite(norm.item()) and math.isfinite(loss.item()):
        return
    batch = job.config.global_batch
    rows = job.order.spans(step * batch, (step + 1) * batch).slice
    numbers = sorted(set(job.train.slices.shard[rows].tolist()))
    names = [job.train.shards[number][1].name for number in numbers]
    raise FloatingPointError(
        f"loss {loss.item()}, gradient norm {norm.item()} in step {step + 1}; nothing was updated. "
        f"Samples came from {', '.join(names[:20])}{' ...' if len(names) > 20 else ''}. Lower "
        f"optim.lr or lengthen the warm-up; the last checkpoint is untouched"
    )


def keep_keys(job: Job, step: int, keys: np.ndarray, rank: int) -> None:
    """Write the keys of a step's global batch, in order, over those of an earlier try."""
    gathered = [None] * torch.distributed.get_world_size() if rank == 0 else None
    torch.distributed.gather_object(keys.tolist(), gathered)
    if gathered:
        path = job.dir / "samples" / f"step-{step + 1:09d}.json"
        path.parent.mkdir(exist_ok=True)
        keys = [key for part in gathered for key in part]
        write_bytes(path, json.dumps(keys).encode())
