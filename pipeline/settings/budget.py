"""Expected cost of a run, before it starts: steps, FLOPs, hours, input, storage."""

import math
from dataclasses import dataclass
from pathlib import PurePath

from pipeline.settings.config import DIGITS, TrainConfig
from shards.dataset.format import open_set
from support.console import duration
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


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Expected cost of a run on GPUs of one kind."""

    config: TrainConfig
    samples: int
    """Images of the training split."""
    num_classes: int
    origin: str
    """Source of the two numbers."""
    gpu: str
    """Kind of GPU, a key of PEAK_FLOPS; each worker has one."""
    mfu: float
    """Share of the peak FLOP/s that the training step is assumed to reach."""

    @classmethod
    def of(cls, config: TrainConfig, *, gpu: str, mfu: float) -> "Budget":
        """Budget of a run on its data, or on the published size of data that is not available."""
        if not 0 < mfu <= 1:
            raise ValueError(f"plan_mfu ({mfu}) must be above 0 and at most 1")
        samples, num_classes, origin = data_size(config)
        return cls(
            config=config.replace({"model.num_classes": config.model.num_classes or num_classes}),
            samples=samples,
            num_classes=num_classes,
            origin=origin,
            gpu=gpu,
            mfu=mfu,
        )

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return self.config.steps(self.samples)

    @property
    def images(self) -> int:
        """Images that pass through the model during the run."""
        return self.steps * self.config.global_batch

    @property
    def flops(self) -> float:
        """Floating-point operations of forward and backward passes."""
        return 3.0 * self.config.model.forward_flops * self.images

    @property
    def seconds(self) -> float:
        """Duration of the run."""
        return self.flops / (self.config.workers * PEAK_FLOPS[self.gpu] * self.mfu)

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
    except FileNotFoundError:
        if name not in PUBLISHED:
            raise
        return *PUBLISHED[name], f"as published; {location} does not exist"
    samples = sum(shard.samples for shard in manifest.splits.get(config.data.train_split, ()))
    if not samples:
        raise ValueError(f"{location} has no split {config.data.train_split!r} with images")
    return samples, len(manifest.classes), f"counted in {location}"
