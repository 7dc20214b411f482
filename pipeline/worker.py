"""The loop that every Ray Train worker runs: batch -> loss -> step -> record.

    pipeline.stream -> (b, S, S, 3) uint8 on the device -> vit -> mean loss of the global batch ->
    step

A worker computes its contiguous share of every global batch. Its loss is weighted so that the
average over workers, which DDP takes, is the mean over the global batch, also where the shares
differ by one. Whatever happens in step k depends on (settings, k) alone, so a restart replays it
exactly.
"""

import math
import resource
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import ray.train
import ray.train.torch
import torch
import torch.distributed
from ray.actor import ActorHandle
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline import checkpoint
from pipeline.config import TrainConfig
from pipeline.desk import Wish
from pipeline.evaluate import evaluate_share
from pipeline.job import Job
from pipeline.reader import View
from pipeline.stream import Block, Stream, ahead, quiet, rebatch
from shards.plan import Share
from vit.batch import mix, normalise
from vit.draws import scramble
from vit.loss import make_loss, make_targets
from vit.model import ViT
from vit.optim import Ema, make_optimizer, set_learning_rate
from vit.weights import load_weights


def train(job: Job, desk: ActorHandle) -> None:
    """Train from the latest checkpoint, or from the start, to the last step or the wish to stop.

    Rank 0 leaves what is to be recorded at the desk.
    """
    quiet()
    config, total = job.config, job.total_steps
    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    share = Share.of(rank, workers, config.global_batch)

    torch.manual_seed(config.seed)
    state = State(model=ViT(config.model).to(device), config=config)
    step = state.restore(job.checkpoints)
    ddp = DistributedDataParallel(state.model, gradient_as_bucket_view=True, static_graph=True)
    forward = torch.compile(ddp) if config.compile else ddp
    loss_of = make_loss(config.loss)
    meter = Meter(images=config.global_batch, total=total)
    wish = Wish(desk) if rank == 0 else False

    for images, labels in meter.timed(device_batches(job, share, step, device)):
        seed = scramble(scramble(config.seed) ^ step)  # of this step's global batch
        torch.manual_seed(scramble(seed ^ rank))
        rate = job.learning_rate(step)
        set_learning_rate(state.optimizer, rate)
        loss, stop = sums = torch.tensor([0.0, bool(wish)], device=device)
        starts = range(0, share.size, config.micro_batch)
        for start in starts:
            part = slice(start, start + config.micro_batch)
            pixels = normalise(images[part], config.images)
            targets = make_targets(labels[part], config.model.num_classes)
            pixels, targets = mix(pixels, targets, config.mix, seed=seed, first=share.low + start)
            with nullcontext() if start == starts[-1] else ddp.no_sync():
                with torch.autocast(device.type, torch.bfloat16, config.precision == "bf16"):
                    logits = forward(pixels)
                part_loss = loss_of(logits.float(), targets).sum() * workers / config.global_batch
                part_loss.backward()
            loss += part_loss.detach()
        norm = nn.utils.clip_grad_norm_(
            state.model.parameters(), config.optim.clip_norm or math.inf
        )
        torch.distributed.all_reduce(sums)  # all workers see the same loss and the same wish
        loss /= workers
        check_finite(job, step, loss, norm)
        state.update()

        step += 1
        last = step == total
        if rank == 0 and (last or step % config.log_every == 0):
            values = {"train/loss": loss.item(), "lr": rate, "grad_norm": norm.item()}
            epoch = step * config.global_batch / job.train.slices.samples
            desk.put.remote(meter.record(step, {"epoch": epoch, **values}))
        evaluates = last or step % config.eval_every == 0
        if evaluates or stop or step % config.checkpoint_every == 0:
            with meter.paused(), state.averaged():
                metrics = {}
                if evaluates:
                    metrics = evaluate_share(state.model, config, job.eval, rank, workers)
                if rank == 0:
                    save(job, desk, step, state, metrics)
        if stop:
            return


@dataclass(kw_only=True)
class State:
    """What the steps change: weights, optimizer, and the moving average if the run keeps one."""

    model: ViT
    config: TrainConfig
    optimizer: torch.optim.Optimizer = field(init=False)
    ema: Ema | None = field(init=False)

    def __post_init__(self) -> None:
        """Make the optimizer and the average of the model."""
        optim = self.config.optim
        self.optimizer = make_optimizer(self.model, optim)
        self.ema = Ema(self.model, optim.ema) if optim.ema else None

    def update(self) -> None:
        """Apply the gradients and forget them."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema:
            self.ema.update(self.model)

    def averaged(self) -> AbstractContextManager[None]:
        """Within the block the model has the weights that are evaluated and kept."""
        return self.ema.swapped_into(self.model) if self.ema else nullcontext()

    def tensors(self) -> dict[str, object]:
        """What a checkpoint holds beside the model's weights, within `averaged`."""
        ema = {"ema": self.ema.state_dict()} if self.ema else {}
        return {"optimizer": self.optimizer.state_dict(), **ema}

    def restore(self, folder: Path) -> int:
        """Load the latest checkpoint, if there is one; return its step."""
        found = checkpoint.latest(folder)
        if not found:
            return 0
        tensors = found.state()
        load_weights(self.model, found.path)
        self.optimizer.load_state_dict(tensors["optimizer"])
        if self.ema:
            self.ema.load_state_dict(tensors["ema"])
            self.ema.swap(self.model)  # a checkpoint's model is the average
        return found.step


def device_batches(
    job: Job, share: Share, step: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """The worker's share of every step from `step` on: images (b, S, S, 3) uint8, labels (b, M)."""
    config = job.config
    stream = Stream(
        source=job.train,
        order=job.order,
        share=share,
        view=View(images=config.images, size=config.model.image_size, seed=config.seed),
        task_samples=config.data.task_samples,
    )

    def to_device(batch: Block) -> tuple[Tensor, Tensor]:
        tensors = (torch.from_numpy(batch["images"][:, 0]), torch.from_numpy(batch["labels"]))
        if device.type == "cuda":
            tensors = tuple(tensor.pin_memory() for tensor in tensors)
        return tuple(tensor.to(device, non_blocking=True) for tensor in tensors)

    blocks = stream.blocks(step * share.size, job.total_steps * share.size)
    batches = rebatch(blocks, share.size)
    return ahead(map(to_device, batches), config.data.prefetch_batches)


def save(job: Job, desk: ActorHandle, step: int, state: State, metrics: dict[str, float]) -> None:
    """Record the evaluation, if there is one, and write a checkpoint."""
    if metrics:
        desk.put.remote({"kind": "eval", "step": step, **metrics})
    path = checkpoint.save(
        job.checkpoints,
        step=step,
        samples=step * job.config.global_batch,
        model=state.model.state_dict(),
        state=state.tensors(),
        metrics=metrics,
        config=job.config,
        classes=job.train.shards.manifest.classes,
        fingerprint=job.train.shards.fingerprint,
    )
    checkpoint.prune(job.checkpoints, job.config.keep_checkpoints)
    size = sum(file.stat().st_size for file in path.iterdir())
    desk.put.remote({"kind": "checkpoint", "step": step, "checkpoint_bytes": size})


def check_finite(job: Job, step: int, loss: Tensor, norm: Tensor) -> None:
    """Stop before an update by a loss or gradient that is not finite, and say from where."""
    if math.isfinite(norm.item()) and math.isfinite(loss.item()):
        return
    batch = job.config.global_batch
    rows = job.order.pieces(step * batch, (step + 1) * batch).slice
    shards = sorted({job.train.names[n].name for n in job.train.slices.shard[rows]})
    raise FloatingPointError(
        f"loss {loss.item()}, gradient norm {norm.item()} in step {step + 1}; nothing was updated. "
        f"Samples came from {', '.join(shards[:20])}{' ...' if len(shards) > 20 else ''}. Lower "
        f"optim.lr or lengthen the warm-up; the last checkpoint is untouched"
    )


class Meter:
    """Rates between two records; evaluations, checkpoints and the start do not count."""

    def __init__(self, *, images: int, total: int) -> None:
        """Of a run of `total` steps with `images` in each, over all workers."""
        self._images, self._total = images, total
        self._started = False
        self._begin()

    def _begin(self) -> None:
        self._steps, self._wait_s, self._paused_s = 0, 0.0, 0.0
        self._since = time.perf_counter()

    def timed(self, batches: Iterator[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
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
    def paused(self) -> Iterator[None]:
        """Time within the block does not count."""
        before = time.perf_counter()
        yield
        self._paused_s += time.perf_counter() - before

    def record(self, step: int, values: dict[str, float]) -> dict[str, str | int | float]:
        """A record of the interval that ends with `step`; the next one begins."""
        busy_s = time.perf_counter() - self._since - self._paused_s
        rates = {
            "images_per_s": self._steps * self._images / busy_s,
            "wait": self._wait_s / busy_s,
            "memory_gib": peak_memory_bytes() / 2**30,
            "eta_s": (self._total - step) * busy_s / self._steps,
        }
        self._begin()
        return {"kind": "train", "step": step, **values, **rates}


def peak_memory_bytes() -> int:
    """Most memory this worker has taken: of its GPU, or of the process where there is none."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
