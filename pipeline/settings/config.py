"""Everything that defines a run.

One dotted name (`optim.lr`) serves the command line, the search spaces,
MLflow's parameters and the `config.json` of a checkpoint. Nothing here imports torch or Ray.
"""

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from vit.config import ImageConfig, LossConfig, MixConfig, OptimConfig, ViTConfig

DIGITS = "digits"


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the samples come from and how they are read."""

    dir: str = DIGITS
    """Shard set: a folder or an s3:// or gs:// prefix; "digits" is the embedded set, made on first
    use."""
    extra: tuple[str, ...] = ()
    """Further shard sets to train on; their classes must be among those of dir."""
    weights: tuple[float, ...] = ()
    """Share of dir and of each extra set in what is trained on; empty goes by their images."""
    classes: str | None = None
    """File of wnids, one a line: only images of these classes take part."""
    fraction: float = 1.0
    """Share of the training images that takes part, drawn by the hash of their bytes."""
    train_split: str = "train"
    """Split to train on."""
    eval_split: str = "val"
    """Split to evaluate on."""
    slice_samples: int = 32
    """Neighbouring samples that stay together in the shuffle and are read at once; 1 is a full
    shuffle."""
    task_samples: int = 1024
    """Samples that one Ray Data task reads and decodes. Ray Data looks every 0.1 s for tasks that
    are done: they should take a second or more."""
    buffer_gib: float = 4.0
    """Memory of Ray's object store that the decoded samples of one worker may fill."""
    prefetch_batches: int = 4
    """Batches that wait for the training step, decoded and on the device."""
    max_bad_samples: int = 0
    """Images that may turn out unreadable before the run stops; each is named and left out."""
    verify: bool = False
    """Compare the SHA-256 of every image that is read with the index."""

    def __post_init__(self) -> None:
        """Reject lengths below one."""
        for name in ("slice_samples", "task_samples", "prefetch_batches"):
            if getattr(self, name) < 1:
                raise ValueError(f"data.{name} ({getattr(self, name)}) must be at least 1")
        if self.buffer_gib <= 0:
            raise ValueError(f"data.buffer_gib ({self.buffer_gib}) must be above 0")
        if not 0 < self.fraction <= 1:
            raise ValueError(f"data.fraction ({self.fraction}) must be above 0 and at most 1")
        if self.max_bad_samples < 0:
            raise ValueError(f"data.max_bad_samples ({self.max_bad_samples}) must be at least 0")
        if self.weights and len(self.weights) != 1 + len(self.extra):
            raise ValueError(
                f"data.weights {self.weights} must be one for data.dir and one for each of the "
                f"{len(self.extra)} data.extra"
            )


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """What the features are worth on other data while the model is pre-trained; off by default."""

    data: tuple[str, ...] = ()
    """Shard sets to probe on, each with the two splits; empty probes nothing."""
    train_split: str = "train"
    """Split whose images are the few shots, and the neighbours."""
    eval_split: str = "val"
    """Split that is classified."""
    every: int = 25_000
    """Steps between two probes; the last step is always probed."""
    shots: tuple[int, ...] = (1, 5, 10, 25)
    """Images of each class for the few-shot linear regression."""
    seeds: int = 3
    """Draws of the shots; each is reported, and their mean."""
    neighbours: int = 20
    """Neighbours of the weighted kNN; 0 leaves it out."""
    temperature: float = 0.07
    """Temperature of the neighbours' weights."""

    def __post_init__(self) -> None:
        """Reject counts that are none."""
        if min((self.every, self.seeds, *self.shots)) < 1:
            raise ValueError(
                f"probe.every ({self.every}), probe.seeds ({self.seeds}) and probe.shots "
                f"{self.shots} must be at least 1; probe.data () turns the probes off"
            )
        if self.neighbours < 0 or self.temperature <= 0:
            raise ValueError(
                f"probe.neighbours ({self.neighbours}) must be at least 0 and probe.temperature "
                f"({self.temperature}) above 0"
            )


@dataclass(frozen=True, kw_only=True)
class RecordConfig:
    """What is recorded of a run beside its numbers."""

    models: Literal["best", "kept", "none"] = "best"
    """Checkpoints that become models in MLflow when the run ends, ready for
    mlflow.pytorch.load_model: the best one, all that are kept, or none."""
    register: str | None = None
    """Name in MLflow's model registry under which they become versions; the best one of all runs
    gets the alias "best", and MLflow reads "latest" as the newest."""
    system_every_s: float = 10.0
    """Seconds between two samples of GPU, CPU, memory and network; 0 takes none."""
    price_per_hour: float | None = None
    """Price of one worker for an hour, in any currency, to state what the run cost."""

    def __post_init__(self) -> None:
        """Reject lengths and prices below zero, and versions of nothing."""
        if self.system_every_s < 0 or (self.price_per_hour or 0) < 0:
            raise ValueError(
                f"record.system_every_s ({self.system_every_s}) and record.price_per_hour "
                f"({self.price_per_hour}) must be at least 0"
            )
        if self.register and self.models == "none":
            raise ValueError(
                f"record.register ({self.register!r}) needs models to register; set record.models "
                f"to best or kept"
            )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run: pre-training, training from scratch, or fine-tuning."""

    name: str = "run"
    """Name of the run: its folder under runs_dir and its name in MLflow; the same name resumes."""
    runs_dir: str = "runs"
    """Folder of all runs, and of the SQLite file that MLflow uses unless MLFLOW_TRACKING_URI is
    set."""
    experiment: str = "vit"
    """MLflow experiment."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ViTConfig = field(default_factory=ViTConfig)
    images: ImageConfig = field(default_factory=ImageConfig)
    mix: MixConfig = field(default_factory=MixConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    record: RecordConfig = field(default_factory=RecordConfig)
    device: Literal["auto", "gpu", "cpu"] = "auto"
    """What each worker computes on: auto takes GPUs if the cluster has any at the start; gpu waits
    for them, where an autoscaler brings them."""
    worker_cpus: int | None = None
    """CPUs that each worker reserves; None takes 1 beside a GPU, and without GPUs its part of half
    of the cluster's, so that the other half can read and decode."""
    init_from: str | None = None
    """Weights to begin with: a run (its best checkpoint), a checkpoint, a safetensors or .pth file
    of timm or Hugging Face, or Google's .npz; None initialises them by the seed."""
    init_head: Literal["drop", "keep"] = "drop"
    """Of init_from: leave the head behind and begin with a zero one, or keep it."""
    init_positions: Literal["bilinear", "bicubic"] = "bilinear"
    """Of init_from: how positions come to another image size, as the ViT paper or as timm."""
    epochs: float = 90.0
    """Passes over the training split."""
    global_batch: int = 4096
    """Images per optimizer step, over all workers."""
    micro_batch: int = 256
    """Images per forward and backward pass on one worker; the rest of its share is accumulated."""
    workers: int = 1
    """Ray Train workers: one GPU each, or one CPU process each where there is no GPU."""
    min_workers: int | None = None
    """Go on with fewer workers, down to this number, while nodes are missing; None waits for all.
    The global batches stay the same."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Arithmetic of forward and backward pass; the parameters are float32 either way."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Every worker holds the whole model (ddp), or a shard of it where it does not fit (fsdp)."""
    compile: bool = True
    """Compile the model with torch.compile."""
    seed: int = 0
    """Seed of initialisation, order, augmentation and dropout."""
    log_every: int = 50
    """Steps between two lines of the record."""
    eval_every: int = 5000
    """Steps between two evaluations on the eval split; the last step is always evaluated."""
    checkpoint_every: int = 1000
    """Steps between two checkpoints; every evaluation writes one too."""
    keep_checkpoints: int = 2
    """Latest checkpoints to keep, besides the best one."""
    crops: str = "ten"
    """Crop protocol of the final evaluation, reported beside the single centre crop."""
    storage: str | None = None
    """URI (s3://, gs://) where checkpoints are kept too: for clusters whose nodes share no disk,
    and for folders that do not outlive a node. None keeps them in the folder of the run alone."""
    audit: bool = False
    """Write the keys of every global batch to samples/ in the folder of the run, to prove what was
    consumed; for short runs."""
    max_restarts: int = 10
    """Failures of workers that are answered with a restart from the last checkpoint."""

    def __post_init__(self) -> None:
        """Reject settings that contradict each other; all at once."""
        wrong = [
            f"{name} ({getattr(self, name)}) must be at least 1"
            for name in (
                *("global_batch", "micro_batch", "workers", "log_every", "eval_every"),
                *("checkpoint_every", "keep_checkpoints"),
            )
            if getattr(self, name) < 1
        ]
        if not self.epochs > 0:
            wrong.append(f"epochs ({self.epochs}) must be above 0")
        if self.workers > self.global_batch:
            wrong.append(
                f"workers ({self.workers}) cannot share a global_batch of {self.global_batch}; "
                f"at most {self.global_batch} workers"
            )
        if self.min_workers is not None and not 1 <= self.min_workers <= self.workers:
            wrong.append(f"min_workers ({self.min_workers}) must be 1 to workers ({self.workers})")
        odd = [name for name in ("global_batch", "micro_batch") if getattr(self, name) % 2]
        if odd and (self.mix.mixup or self.mix.cutmix):
            wrong.append(f"{' and '.join(odd)} must be even, as mixing pairs neighbours")
        if not self.name or "/" in self.name or self.name.startswith("."):
            wrong.append(f"name ({self.name!r}) must be a plain folder name")
        if wrong:
            raise ValueError("; ".join(wrong))

    def flat(self) -> dict[str, object]:
        """Every setting by its dotted name; the values are JSON."""
        return dict(_flatten(self, ""))

    def replace(self, settings: Mapping[str, object]) -> "TrainConfig":
        """The same run with settings changed by dotted name; all rules apply."""
        known = self.flat()
        for name in settings:
            if name not in known:
                raise ValueError(f"unknown setting {name!r}; known: {', '.join(known)}")
        return _replace(self, settings, "")

    def steps(self, samples: int) -> int:
        """Optimizer steps of the run over a training split of `samples` images."""
        return max(1, round(self.epochs * samples / self.global_batch))


def _flatten(config: object, prefix: str) -> typing.Iterator[tuple[str, object]]:
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            yield from _flatten(value, f"{prefix}{item.name}.")
        else:
            yield f"{prefix}{item.name}", list(value) if isinstance(value, tuple) else value


def _replace(config: object, settings: Mapping[str, object], prefix: str) -> typing.Any:  # noqa: ANN401
    changes = {}
    for item in dataclasses.fields(config):
        value, name = getattr(config, item.name), f"{prefix}{item.name}"
        if dataclasses.is_dataclass(value):
            changes[item.name] = _replace(value, settings, f"{name}.")
        elif name in settings:
            new = settings[name]
            changes[item.name] = tuple(new) if isinstance(new, list) else new
    return dataclasses.replace(config, **changes)
