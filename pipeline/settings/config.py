"""Everything that defines a run.

One dotted name (`optim.lr`) serves the command line, the search spaces, MLflow's parameters and the
`config.json` of a checkpoint. A setting that says `may_change` does not change what a run computes:
the run can be resumed with another value of it. Nothing here imports PyTorch or Ray.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from support.settings import Rule, Settings, setting
from vit.config import ImageConfig, LossConfig, MixConfig, OptimConfig, ViTConfig
from vit.registry import num_views

DIGITS = "digits"


@dataclass(frozen=True, kw_only=True)
class DataConfig(Settings):
    """Where the samples come from and how they are read."""

    dir: str = setting(DIGITS, may_change=True, common=True)
    """Shard set: a folder or an s3:// or gs:// prefix; "digits" is the embedded set, made on first
    use."""
    extra: tuple[str, ...] = setting((), may_change=True)
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
    task_samples: int = setting(1024, may_change=True)
    """Samples that one Ray Data task reads and decodes. Ray Data looks every 0.1 s for tasks that
    are done: they should take a second or more."""
    buffer_gib: float = setting(4.0, may_change=True)
    """Memory of Ray's object store that the decoded samples of one worker may fill."""
    prefetch_batches: int = setting(4, may_change=True)
    """Batches that wait for the training step, decoded and on the device."""
    max_bad_samples: int = setting(0, may_change=True)
    """Images that may turn out unreadable before the run stops; each is named and left out."""
    verify: bool = setting(False, may_change=True)
    """Compare the SHA-256 of every image that is read with the index."""

    def rules(self) -> Iterator[Rule]:
        """Lengths and shares that leave something to read."""
        for name in ("slice_samples", "task_samples", "prefetch_batches"):
            if getattr(self, name) < 1:
                yield name, "must be at least 1"
        if not self.buffer_gib > 0:
            yield "buffer_gib", "must be above 0"
        if not 0 < self.fraction <= 1:
            yield "fraction", "must be above 0 and at most 1"
        if self.max_bad_samples < 0:
            yield "max_bad_samples", "must be at least 0"
        if self.weights and len(self.weights) != 1 + len(self.extra):
            yield (
                "weights",
                f"must be one for data.dir and one for each of the {len(self.extra)} data.extra",
            )


@dataclass(frozen=True, kw_only=True)
class ProbeConfig(Settings):
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

    def rules(self) -> Iterator[Rule]:
        """Counts that are positive."""
        for name in ("every", "seeds"):
            if getattr(self, name) < 1:
                yield name, "must be at least 1; probe.data () turns the probes off"
        if min(self.shots, default=1) < 1:
            yield "shots", "must each be at least 1"
        if self.neighbours < 0:
            yield "neighbours", "must be at least 0"
        if not self.temperature > 0:
            yield "temperature", "must be above 0"


@dataclass(frozen=True, kw_only=True)
class RecordConfig(Settings):
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

    def rules(self) -> Iterator[Rule]:
        """Lengths and prices from 0 on, and models where they are registered."""
        if self.system_every_s < 0:
            yield "system_every_s", "must be at least 0"
        if (self.price_per_hour or 0) < 0:
            yield "price_per_hour", "must be at least 0"
        if self.register and self.models == "none":
            yield "register", "needs models to register; set record.models to best or kept"


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Settings):
    """One training run: pre-training, training from scratch, or fine-tuning."""

    name: str = setting("run", common=True)
    """Name of the run: its folder under runs_dir and its name in MLflow; the same name resumes."""
    runs_dir: str = setting("runs", may_change=True, common=True)
    """Folder of all runs, and of the SQLite file that MLflow uses unless MLFLOW_TRACKING_URI is
    set."""
    experiment: str = setting("vit", may_change=True)
    """MLflow experiment."""
    data: DataConfig = setting(DataConfig)
    model: ViTConfig = setting(ViTConfig)
    images: ImageConfig = setting(ImageConfig)
    mix: MixConfig = setting(MixConfig)
    loss: LossConfig = setting(LossConfig)
    optim: OptimConfig = setting(OptimConfig)
    probe: ProbeConfig = setting(ProbeConfig, may_change=True)
    record: RecordConfig = setting(RecordConfig, may_change=True)
    device: Literal["auto", "gpu", "cpu"] = setting("auto", may_change=True, common=True)
    """What each worker computes on: auto takes GPUs if the cluster has any at the start; gpu waits
    for them, where an autoscaler brings them."""
    worker_cpus: int | None = setting(None, may_change=True)
    """CPUs that each worker reserves; None takes 1 beside a GPU, and without GPUs its part of half
    of the cluster's, so that the other half can read and decode."""
    init_from: str | None = setting(None, common=True)
    """Weights to begin with: a run (its best checkpoint), a checkpoint, a safetensors or .pth file
    of timm or Hugging Face, or Google's .npz; None initialises them by the seed."""
    init_head: Literal["drop", "keep"] = "drop"
    """Of init_from: leave the head behind and begin with a zero one, or keep it."""
    init_positions: Literal["bilinear", "bicubic"] = "bilinear"
    """Of init_from: how positions come to another image size, as the ViT paper or as timm."""
    epochs: float = setting(90.0, common=True)
    """Passes over the training split."""
    global_batch: int = setting(4096, common=True)
    """Images per optimizer step, over all workers."""
    micro_batch: int = setting(256, may_change=True, common=True)
    """Images per forward and backward pass on one worker; the rest of its share is accumulated."""
    workers: int = setting(1, may_change=True, common=True)
    """Ray Train workers: one GPU each, or one CPU process each where there is no GPU."""
    min_workers: int | None = setting(None, may_change=True, common=True)
    """Go on with fewer workers, down to this number, while nodes are missing; None waits for all.
    The global batches stay the same."""
    precision: Literal["bf16", "fp32"] = setting("bf16", common=True)
    """Arithmetic of forward and backward pass; the parameters are float32 either way."""
    parallel: Literal["ddp", "fsdp"] = setting("ddp", may_change=True, common=True)
    """Every worker holds the whole model (ddp), or a shard of it where it does not fit (fsdp)."""
    compile: bool = setting(True, may_change=True, common=True)
    """Compile the model with torch.compile."""
    seed: int = setting(0, common=True)
    """Seed of initialisation, order, augmentation and dropout."""
    log_every: int = setting(50, may_change=True, common=True)
    """Steps between two lines of the record."""
    eval_every: int = setting(5000, may_change=True, common=True)
    """Steps between two evaluations on the eval split; the last step is always evaluated."""
    checkpoint_every: int = setting(1000, may_change=True, common=True)
    """Steps between two checkpoints; every evaluation writes one too."""
    keep_checkpoints: int = setting(2, may_change=True)
    """Latest checkpoints to keep, besides the best one."""
    crops: str = setting("ten", may_change=True, common=True)
    """Crop protocol of the final evaluation, reported beside the single centre crop."""
    storage: str | None = setting(None, may_change=True, common=True)
    """URI (s3://, gs://) where checkpoints are kept too: for clusters whose nodes share no disk,
    and for folders that do not outlive a node. None keeps them in the folder of the run alone."""
    audit: bool = setting(False, may_change=True)
    """Write the keys of every global batch to samples/ in the folder of the run, to prove what was
    consumed; for short runs."""
    max_restarts: int = setting(10, may_change=True)
    """Failures of workers that are answered with a restart from the last checkpoint."""

    def rules(self) -> Iterator[Rule]:
        """Counts that are positive, batches that can be shared and mixed, a crop protocol."""
        for name in (
            *("global_batch", "micro_batch", "workers", "log_every", "eval_every"),
            *("checkpoint_every", "keep_checkpoints"),
        ):
            if getattr(self, name) < 1:
                yield name, "must be at least 1"
        if not 0 < self.epochs < float("inf"):
            yield "epochs", "must be above 0"
        if self.max_restarts < 0:
            yield "max_restarts", "must be at least 0"
        if self.worker_cpus is not None and self.worker_cpus < 1:
            yield "worker_cpus", "must be at least 1, or none"
        if self.workers > self.global_batch > 0:
            yield (
                "workers",
                f"cannot share a global_batch of {self.global_batch}; at most "
                f"{self.global_batch} workers can",
            )
        if self.min_workers is not None and not 1 <= self.min_workers <= self.workers:
            yield "min_workers", f"must be from 1 to workers ({self.workers})"
        for name in ("global_batch", "micro_batch"):
            if getattr(self, name) % 2 and (self.mix.mixup or self.mix.cutmix):
                yield name, "must be even, because mixing pairs neighbours"
        if not self.name or "/" in self.name or self.name.startswith("."):
            yield "name", "must be a plain folder name"
        try:
            num_views(self.crops)
        except ValueError as error:
            yield "crops", f"is not a crop protocol: {error}"

    def steps(self, samples: int) -> int:
        """Optimizer steps of the run over a training split of `samples` images."""
        return max(1, round(self.epochs * samples / self.global_batch))

    def absolute(self) -> Self:
        """The config with absolute paths: workers run in other folders, on other machines."""
        data = self.data
        return self.replace(
            {
                "runs_dir": absolute(self.runs_dir),
                "init_from": absolute(self.init_from),
                "data.dir": data.dir if data.dir == DIGITS else absolute(data.dir),
                "data.extra": tuple(map(absolute, data.extra)),
                "data.classes": absolute(data.classes),
                "probe.data": tuple(map(absolute, self.probe.data)),
            }
        )


def absolute(path: str | None) -> str | None:
    """A path made absolute; a URI as it is."""
    return str(Path(path).absolute()) if path and "://" not in path else path
