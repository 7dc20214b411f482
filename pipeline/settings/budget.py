"""Expected cost of a run, before it starts: steps, schedule, hours, input, storage."""

import math
from pathlib import PurePath

from pipeline.settings.config import DIGITS, TrainConfig
from pipeline.settings.gpus import GPUS, SMALLEST_WIDTH
from pipeline.settings.upsampling import compared
from shards.dataset.format import open_set
from shards.dataset.sides import ShorterSides
from support.console import duration
from support.redact import redact
from support.settings import suggestion
from vit.config import ImageConfig
from vit.registry import OPTIMIZERS, num_views

# training images, held-out images and classes of published data sets, by folder name; in21k is
# winter21, 13,153,500 images, of which 50 of each class are held out
PUBLISHED = {
    "in21k": (12_195_150, 958_350, 19_167),
    "in21k-p": (11_060_223, 522_500, 10_450),
    "in1k": (1_281_167, 50_000, 1_000),
    DIGITS: (1_437, 360, 10),
}
# crop and augmentations, image size, shorter side in the shards, images/s that one core of an AMD
# EPYC decodes and augments (2026-11); for 512 pixels scaled by the ratio of synthetic JPEGs of 512
# and of 256. The last six are those of the plain crop times a ratio: CPU time over pieces of
# scikit-learn's photographs, measured in turn in one process (2026-11-27), with 0.231, 0.376 and
# 0.582 at 224, and 0.242, 0.392 and 0.570 at 384, where RandAugment had 0.618 and 0.694. In a
# quarter of the views a rectangle was erased.
CORE_RATES = (
    ("inception crop", 224, 256, 1448),
    ("inception crop, RandAugment", 224, 256, 792),
    ("inception crop, RandAugment", 384, 256, 600),
    ("inception crop", 384, 512, 370),
    ("inception crop, RandAugment", 384, 512, 300),
    ("simple crop, 3-Augment, colour jitter", 224, 256, 334),
    ("simple crop, 3-Augment, colour jitter", 384, 512, 90),
    ("squash crop, Cutout, RandAugment", 224, 256, 544),
    ("squash crop, Cutout, RandAugment", 384, 512, 145),
    ("inception crop, random erasing", 224, 256, 843),
    ("inception crop, random erasing", 384, 512, 211),
)
# from the start of an attempt to its first step, mostly compilation: assumed, not measured
START_S = 120


class Budget:
    """Expected cost of a run on GPUs of one kind."""

    def __init__(self, config: TrainConfig, *, gpu: str, mfu: float | None = None) -> None:
        """Estimate from the data of the run, or from its published size if it is not available.

        Each worker has one GPU; `gpu` is a key of GPUS. `mfu` is the share of its peak FLOP/s that
        the training step is assumed to reach; None estimates it from published throughputs.
        Raises ValueError for another GPU or share.
        """
        if mfu is not None and not 0 < mfu <= 1:
            raise ValueError(f"plan_mfu ({mfu}) must be above 0 and at most 1")
        if gpu not in GPUS:
            raise ValueError(f"plan_gpu {gpu!r} is unknown; {suggestion(gpu, GPUS)}")
        self.gpu, self.is_assumed = GPUS[gpu], mfu is not None
        self.samples, self.eval_samples, self.num_classes, self.origin = data_size(config)
        num_classes = config.model.num_classes or self.num_classes
        config = config.replace({"model.num_classes": num_classes})
        self.config, self.steps = config, config.steps(self.samples)
        # over the whole run, for forward and backward passes
        self.images = self.steps * config.global_batch
        self.flops = 3.0 * config.model.forward_flops * self.images
        self.unknown = self._why_unknown()
        self.mfu = mfu if self.is_assumed or self.unknown else self._published_mfu()
        self.train_s = self.eval_s = self.seconds = None
        if not self.unknown:
            self.train_s = self.flops / (config.workers * self.gpu.bf16_flops * self.mfu)
            # a forward pass is a third of a training step
            self.eval_s = self.train_s * self.eval_views / (3 * self.images)
            self.seconds = self.train_s + self.eval_s + START_S

    def _why_unknown(self) -> str | None:
        """What keeps the time from being estimated."""
        if self.config.device == "cpu":
            return "the run is on CPUs, of which no speed is known here"
        if self.config.precision != "bf16":
            return f"the peaks of GPUs are known in bf16, and the run is in {self.config.precision}"
        if not self.gpu.bf16_flops:
            return f"{self.gpu.name} has no arithmetic in bf16; --precision fp32 runs there"
        if not self.is_assumed and self.config.model.width < SMALLEST_WIDTH:
            return f"no model narrower than {SMALLEST_WIDTH} was measured; --plan-mfu assumes a MFU"
        return None

    def _published_mfu(self) -> float:
        config = self.config
        share = config.global_batch / config.workers
        images = None if config.cuda_graphs else min(share, config.micro_batch or share)
        rate = self.gpu.images_per_s(config.model, compiled=config.compile, pass_images=images)
        return 3 * config.model.forward_flops * rate / self.gpu.bf16_flops

    @property
    def eval_views(self) -> int:
        """Views of held-out images in all evaluations: centre crops, at the end also the crops."""
        crops, times = self.config.crops, math.ceil(self.steps / self.config.eval_every)
        times += bool(self.config.init_from and self.config.init_head != "drop")  # before step 1
        last = num_views(crops) + (crops != "center")
        return self.eval_samples * (times + last) + select_samples(self.config) * times

    @property
    def warmup_steps(self) -> int:
        """Steps of the warm-up."""
        optim, batch = self.config.optim, self.config.global_batch
        epoch = self.samples / batch
        units = {"steps": 1, "examples": 1 / batch, "epochs": epoch, "fraction": self.steps}
        return round(optim.warmup * units[optim.warmup_unit])

    @property
    def checkpoint_bytes(self) -> int:
        """Size of one checkpoint: weights, optimizer state, and averaged weights."""
        optim = self.config.optim
        per_parameter = 4 + OPTIMIZERS[optim.name].state_bytes + (4 if optim.ema else 0)
        return self.config.model.num_parameters * per_parameter

    def __str__(self) -> str:
        """The estimates, one line each."""
        config = self.config
        num_checkpoints = config.keep_checkpoints + bool(config.data.select_split)
        rows = {
            "data": f"{self.samples:,} images, {self.num_classes:,} classes ({self.origin})",
            "pixels": compared(config),
            "steps": f"{self.steps:,} of {config.global_batch:,} images, {config.epochs:g} epochs",
            "images": f"{self.images:,}",
            "schedule": self._schedule,
            "FLOPs": f"{self.flops:.3g} for forward and backward passes",
            "time": self._time,
            "input": self._input,
            "storage": f"{num_checkpoints * self.checkpoint_bytes / 1e9:,.2f} GB for "
            f"{num_checkpoints} checkpoints of {self.checkpoint_bytes / 1e9:,.2f} GB",
        }
        return "\n".join(f"{name:<10}{text}" for name, text in rows.items())

    @property
    def _schedule(self) -> str:
        optim, warmup = self.config.optim, self.warmup_steps
        epochs = warmup * self.config.global_batch / self.samples
        end = f" to {optim.final_lr:g}" if optim.schedule in ("cosine", "linear") else ""
        cooldown = f", cooldown {optim.cooldown:g} {optim.cooldown_unit}" if optim.cooldown else ""
        return (
            f"{optim.name}, warm-up of {warmup:,} steps ({epochs:.3g} epochs) from "
            f"{optim.warmup_lr:g} to {optim.lr:g}, then {optim.schedule}{end}{cooldown}; weight "
            f"decay {optim.weight_decay:g}"
        )

    @property
    def _time(self) -> str:
        if self.unknown:
            return f"unknown: {self.unknown}; the log of a run says what is left"
        workers = self.config.workers
        source = "as assumed" if self.is_assumed else "estimated from published throughputs"
        return (
            f"{duration(self.seconds)} on {workers} x {self.gpu.name} at {self.mfu:.0%} of their "
            f"peak ({source}): training {duration(self.train_s)}, evaluations "
            f"{duration(self.eval_s)}, start {duration(START_S)}; "
            f"{workers * self.seconds / 3600:,.0f} GPU-hours, if the input keeps up"
        )

    @property
    def _input(self) -> str:
        rate, condition = core_rate(self.config)
        if not rate:
            return f"what a core decodes was not measured {condition}"
        core = f"a core decodes about {rate:,} images/s {condition}"
        if self.unknown:
            return core
        needed = self.images / self.train_s
        return f"{needed:,.0f} images/s: about {math.ceil(needed / rate):,} cores; {core}"


def select_samples(config: TrainConfig) -> int:
    """Images of the split that selects the checkpoint; 0 without, or if it cannot be read."""
    try:
        splits = open_set(config.data.dir).manifest.splits if config.data.select_split else {}
    except OSError:
        return 0
    return sum(shard.samples for shard in splits.get(config.data.select_split, ()))


def core_rate(config: TrainConfig) -> tuple[int | None, str]:
    """Images/s that one core makes, from the nearest that was measured, and what that was.

    The rate is None if nothing was measured with these augmentations.
    """
    kind, size = augmentations(config.images), config.model.image_size
    side = shorter_side(config) or (256 if size <= 256 else 512)

    def distance(row: tuple[str, int, int, int]) -> float:
        return abs(math.log(row[1] / size)) + abs(math.log(row[2] / side))

    rows = [row for row in CORE_RATES if row[0] == kind]
    if not rows:
        return None, f"with {kind}"
    _, measured_size, measured_side, rate = min(rows, key=distance)
    return rate, (
        f"(measured at {measured_size} pixels with {kind}, from shards of {measured_side} pixels)"
    )


def augmentations(images: ImageConfig) -> str:
    """The crop and the augmentations of a training image that take time, in words."""
    named = {
        "3-Augment": images.three_augment,
        "colour jitter": images.color_jitter,
        "Cutout": images.cutout,
        "RandAugment": images.randaugment_layers,
        "random erasing": images.random_erasing,
    }
    return ", ".join([f"{images.train_crop} crop", *(name for name, on in named.items() if on)])


def shorter_side(config: TrainConfig) -> int | None:
    """Median shorter side of the images of the run; None if they cannot be read from here."""
    try:
        shards = open_set(config.data.dir)
    except OSError:
        return None
    return ShorterSides.sample(shards, config.data.train_split).median or None


def data_size(config: TrainConfig) -> tuple[int, int, int, str]:
    """Training images, held-out images and classes of a run's data, and the source of these."""
    location, name = config.data.dir, PurePath(config.data.dir).name
    try:
        manifest = open_set(location).manifest
    except OSError as error:  # it does not exist, or this machine may not read it
        if name not in PUBLISHED:
            raise
        missing = isinstance(error, FileNotFoundError)
        reason = "does not exist" if missing else "cannot be read from here"
        return *PUBLISHED[name], f"as published; {redact(location)} {reason}"
    samples, held_out = (
        sum(shard.samples for shard in manifest.splits.get(split, ()))
        for split in (config.data.train_split, config.data.eval_split)
    )
    if not samples:
        raise ValueError(f"{location} has no split {config.data.train_split!r} with images")
    return samples, held_out, len(manifest.classes), f"counted in {location}"
