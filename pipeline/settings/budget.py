"""Expected cost of a run, before it starts: steps, FLOPs, hours, input, storage."""

import math
from pathlib import PurePath

from pipeline.settings.config import DIGITS, TrainConfig
from pipeline.settings.upsampling import compared
from shards.dataset.format import open_set
from support.console import duration
from support.redact import redact
from vit.registry import OPTIMIZERS

# dense bf16 FLOP/s by a word in the device's name; from NVIDIA's data sheets, without sparsity
PEAK_FLOPS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
    "V100": 125e12,
}
# training images and classes of published data sets, by folder name
PUBLISHED = {"in21k": (13_153_500, 19_167), "in1k": (1_281_167, 1_000), DIGITS: (1_437, 10)}
# images/s that one core reads, decodes and crops, if the shorter sides in the shards are 256
IMAGES_PER_CORE = 1_000


class Budget:
    """Expected cost of a run on GPUs of one kind."""

    def __init__(self, config: TrainConfig, *, gpu: str, mfu: float) -> None:
        """Estimate from the data of the run, or from its published size if it is not available.

        Each worker has one GPU; `gpu` is a key of PEAK_FLOPS. `mfu` is the share of its peak FLOP/s
        that the training step is assumed to reach.
        """
        if not 0 < mfu <= 1:
            raise ValueError(f"plan_mfu ({mfu}) must be above 0 and at most 1")
        self.gpu, self.mfu = gpu, mfu
        self.samples, self.num_classes, self.origin = data_size(config)
        num_classes = config.model.num_classes or self.num_classes
        config = config.replace({"model.num_classes": num_classes})
        self.config, self.steps = config, config.steps(self.samples)
        # over the whole run, for forward and backward passes
        self.images = self.steps * config.global_batch
        self.flops = 3.0 * config.model.forward_flops * self.images
        self.seconds = self.flops / (config.workers * PEAK_FLOPS[gpu] * mfu)

    @property
    def checkpoint_bytes(self) -> int:
        """Size of one checkpoint: weights, optimizer state, and averaged weights."""
        optim = self.config.optim
        per_parameter = 4 + OPTIMIZERS[optim.name].state_bytes + (4 if optim.ema else 0)
        return self.config.model.num_parameters * per_parameter

    def __str__(self) -> str:
        """The estimates, one line each."""
        config, num_checkpoints = self.config, self.config.keep_checkpoints + 1
        images_per_s = self.images / self.seconds
        num_cores = math.ceil(images_per_s / IMAGES_PER_CORE)
        rows = {
            "data": f"{self.samples:,} images, {self.num_classes:,} classes ({self.origin})",
            "pixels": compared(config),
            "steps": f"{self.steps:,} of {config.global_batch:,} images, {config.epochs:g} epochs",
            "images": f"{self.images:,}",
            "FLOPs": f"{self.flops:.3g} for forward and backward passes",
            "time": f"{duration(self.seconds)} on {config.workers} x {self.gpu} at "
            f"{self.mfu:.0%} of their peak; {config.workers * self.seconds / 3600:,.0f} GPU-hours",
            "input": f"{images_per_s:,.0f} images/s: about {num_cores:,} cores at "
            f"{IMAGES_PER_CORE:,} images/s each",
            "storage": f"{num_checkpoints * self.checkpoint_bytes / 1e9:,.2f} GB for "
            f"{num_checkpoints} checkpoints of {self.checkpoint_bytes / 1e9:,.2f} GB",
        }
        return "\n".join(f"{name:<10}{text}" for name, text in rows.items())


def data_size(config: TrainConfig) -> tuple[int, int, str]:
    """Number of training images and of classes in a run's data, and the source of the numbers."""
    location, name = config.data.dir, PurePath(config.data.dir).name
    try:
        manifest = open_set(location).manifest
    except OSError as error:  # it does not exist, or this machine may not read it
        if name not in PUBLISHED:
            raise
        missing = isinstance(error, FileNotFoundError)
        reason = "does not exist" if missing else "cannot be read from here"
        return *PUBLISHED[name], f"as published; {redact(location)} {reason}"
    samples = sum(shard.samples for shard in manifest.splits.get(config.data.train_split, ()))
    if not samples:
        raise ValueError(f"{location} has no split {config.data.train_split!r} with images")
    return samples, len(manifest.classes), f"counted in {location}"
