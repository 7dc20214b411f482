"""Settings of a training run.

One dotted name (`optim.lr`) serves the command line, the search spaces, MLflow's parameters and the
`config.json` of a checkpoint. A setting with `may_change` may have another value when a run is
resumed. Most of these do not affect the result; `skip_steps`, `lr_factors` and
`data.max_bad_samples` do. Nothing here imports PyTorch or Ray.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Self

from pipeline.settings import interventions
from pipeline.settings.location import absolute
from support.settings import Rule, Settings, below, setting
from vit.config import ImageConfig, LossConfig, MixConfig, OptimConfig, ViTConfig
from vit.registry import num_views

DIGITS = "digits"
# images of a pass where no memory of a GPU decides: on CPUs, and in evaluations
DEFAULT_PASS = 256


@dataclass(frozen=True, kw_only=True)
class DataConfig(Settings):
    """Source of the samples, and how they are read."""

    dir: str = setting(DIGITS, may_change=True, common=True)
    """Shard set: a folder or an s3:// or gs:// prefix; "digits" is the embedded set, which is
    built on first use."""
    extra: tuple[str, ...] = setting((), may_change=True)
    """Further shard sets to train on; their classes must be a subset of those of dir."""
    weights: tuple[float, ...] = ()
    """Sampling weights of dir and of each extra set; empty weights each by its number of images."""
    classes: str | None = None
    """File of wnids, one per line: only images of these classes are used."""
    fraction: float = 1.0
    """Share of the training images to use, selected by the hash of their bytes."""
    train_split: str = "train"
    """Split to train on."""
    eval_split: str = "val"
    """Split to evaluate on."""
    select_split: str | None = None
    """Split whose top-1 selects the checkpoint that the run reports and hands on; None: last."""
    slice_samples: int = 32
    """Neighbouring samples that stay together in the shuffle and are read in one request; 1 is a
    full shuffle. It should divide the images of a batch that one node takes."""
    task_samples: int = setting(1024, may_change=True)
    """Samples that one Ray Data task reads and decodes, which should take a third of a second or
    more: Ray Data looks for finished tasks every 0.1 s."""
    buffer_gib: float = setting(32.0, may_change=True)
    """Memory in Ray's object store for the decoded samples of one node; at most half of the store
    is used."""
    decode_on: str | None = setting(None, may_change=True)
    """Label KEY=VALUE of the nodes that read and decode, such as nodes without GPUs, which send
    decoded pixels to the workers; None decodes on the node of each worker."""
    prefetch_batches: int = setting(4, may_change=True)
    """Decoded batches to keep on the device ahead of the training step."""
    max_bad_samples: int = setting(0, may_change=True)
    """Unreadable images that the run tolerates; each is logged and skipped."""
    allow_upsampling: bool = setting(False, may_change=True)
    """Train although nearly all images in the shards are smaller than model.image_size, and are
    enlarged."""
    verify: bool = setting(False, may_change=True)
    """Check the SHA-256 of every image against the index."""

    def rules(self) -> Iterator[Rule]:
        """Lengths and shares that leave something to read."""
        yield from below(self, 1, "slice_samples", "task_samples", "prefetch_batches")
        if not self.buffer_gib > 0:
            yield "buffer_gib", "must be above 0"
        if self.decode_on is not None and not all(self.decode_on.partition("=")):
            yield "decode_on", "must be a node label KEY=VALUE"
        if not 0 < self.fraction <= 1:
            yield "fraction", "must be above 0 and at most 1"
        yield from below(self, 0, "max_bad_samples")
        if self.select_split in (self.train_split, self.eval_split):
            yield "select_split", "must be apart from train_split and eval_split, such as minival"
        num_sets = 1 + len(self.extra)
        if self.weights and len(self.weights) != num_sets:
            yield "weights", f"must be {num_sets}, for data.dir and for each set in data.extra"


@dataclass(frozen=True, kw_only=True)
class ProbeConfig(Settings):
    """Probes of the features on other data during pre-training; off by default."""

    data: tuple[str, ...] = ()
    """Shard sets to probe on, each with the two splits below; empty turns the probes off."""
    train_split: str = "train"
    """Split of the few-shot images and of the nearest neighbours."""
    eval_split: str = "val"
    """Split to classify."""
    every: int = 25_000
    """Steps between two probes; the last step is always probed."""
    shots: tuple[int, ...] = (1, 5, 10, 25)
    """Images per class for the few-shot linear regression."""
    seeds: int = 3
    """Random draws of the few-shot images; the accuracy of each draw and the mean are reported."""
    neighbours: int = 20
    """Neighbours in the weighted kNN; 0 turns it off."""
    temperature: float = 0.07
    """Temperature of the weights in the kNN."""

    def rules(self) -> Iterator[Rule]:
        """Counts that are positive."""
        for name in ("every", "seeds"):
            if getattr(self, name) < 1:
                yield name, "must be at least 1; probe.data () turns the probes off"
        if min(self.shots, default=1) < 1:
            yield "shots", "must each be at least 1"
        yield from below(self, 0, "neighbours")
        if not self.temperature > 0:
            yield "temperature", "must be above 0"


@dataclass(frozen=True, kw_only=True)
class RecordConfig(Settings):
    """What is recorded of a run in addition to its metrics."""

    models: Literal["kept", "best", "none"] = "kept"
    """Checkpoints to log as MLflow models: every evaluated one, as soon as it is there and until
    the run deletes it (the newest stays); at the end the one that the run reports (the last, or
    what data.select_split selects); or none."""
    register: str | None = None
    """Name in MLflow's model registry under which the models are registered. The best version of
    all runs gets the alias "best"; MLflow resolves "latest" to the newest version."""
    system_every_s: float = 10.0
    """Seconds between two samples of GPU, CPU, memory and network of a node, longer with more than
    64 workers; 0 turns sampling off."""
    price_per_hour: float | None = None
    """Price of one worker per hour, in any currency, to report the cost of the run."""

    def rules(self) -> Iterator[Rule]:
        """No negative number, and models to register if there is a name for them."""
        yield from below(self, 0, "system_every_s", "price_per_hour")
        if self.register and self.models == "none":
            yield "register", "needs models to register; set record.models to best or kept"


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Settings):
    """One training run: pre-training, training from scratch, or fine-tuning."""

    name: str = setting("run", common=True)
    """Name of the run, of its folder under runs_dir, and in MLflow; an existing name resumes."""
    runs_dir: str = setting("runs", may_change=True, common=True)
    """Folder of all runs, which every node must see, or an s3:// or gs:// prefix. It also holds
    MLflow's SQLite file, unless MLFLOW_TRACKING_URI is set; with a prefix that file is in
    ~/.cache/vit-pipeline of the driver's machine."""
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
    """Device of each worker: auto uses GPUs if the cluster has any at the start; gpu waits for an
    autoscaler to provide them."""
    worker_cpus: int | None = setting(None, may_change=True)
    """CPUs that each worker reserves. None reserves 1 next to a GPU. Without GPUs the workers share
    half of the cluster's CPUs; the other half reads and decodes."""
    init_from: str | None = setting(None, common=True)
    """Initial weights: a run, a checkpoint, a file of timm or Hugging Face (.safetensors, .pth,
    .bin) or its folder, or Google's .npz; all also at an s3:// or gs:// address; or an MLflow
    model: models:/NAME/VERSION, models:/NAME@ALIAS, runs:/ID/PATH. None draws them by the seed."""
    init_head: Literal["drop", "keep", "map"] = "drop"
    """With init_from: start from a head of zeros, from that of the weights, or from its row of each
    class, by WordNet id (map). With keep and map the run is evaluated before its first step."""
    init_positions: Literal["bilinear", "bicubic"] = "bilinear"
    """With init_from: how position embeddings are resized, as in the ViT paper or as in timm."""
    epochs: float = setting(90.0, common=True)
    """Passes over the training split."""
    global_batch: int = setting(4096, common=True)
    """Images per optimizer step, over all workers."""
    micro_batch: int | None = setting(None, may_change=True, common=True)
    """Most images per forward and backward pass on one worker; gradients accumulate over its share,
    which is cut into passes of nearly the same size. None: as many as fit in the memory of the
    smallest GPU, and 256 on CPUs."""
    workers: int = setting(1, may_change=True, common=True)
    """Ray Train workers: one GPU each, or one CPU process each where there is no GPU."""
    min_workers: int | None = setting(None, may_change=True, common=True)
    """Continue with fewer workers, down to this number, while nodes are missing; None waits for
    all workers. The global batches stay the same."""
    precision: Literal["bf16", "fp32"] = setting("bf16", common=True)
    """Precision of matrix products and attention; parameters, norms and loss are always float32."""
    residual: Literal["fp32", "bf16"] = setting("fp32")
    """With precision bf16: type of the residual stream, which each block adds to. bf16 is faster
    and rounds every sum."""
    parallel: Literal["ddp", "fsdp", "hsdp"] = setting("ddp", may_change=True, common=True)
    """ddp: every worker holds the whole model. fsdp: it is split over all workers. hsdp: it is
    split over the workers of a node, with one copy on each node."""
    compile: bool = setting(True, may_change=True, common=True)
    """Compile the step from pixels to the loss with torch.compile."""
    cuda_graphs: bool = setting(False, may_change=True)
    """On GPUs replay the compiled step as CUDA graphs, which spares small models most of the time
    that the host takes to start kernels; needs compile, ddp, and a share that is one pass."""
    deterministic: bool = setting(False, may_change=True)
    """On GPUs use only kernels that give the same bits in every run, which are slower; on CPUs they
    always do."""
    seed: int = setting(0, common=True)
    """Seed of initialisation, order, augmentation and dropout."""
    log_every: int = setting(50, may_change=True, common=True)
    """Steps between two log lines."""
    eval_every: int = setting(5000, may_change=True, common=True)
    """Steps between two evaluations on the eval split; the last step is always evaluated."""
    checkpoint_every: int = setting(1000, may_change=True, common=True)
    """Steps between two checkpoints; every evaluation writes one too."""
    checkpoint_minutes: float = setting(15.0, may_change=True)
    """Longest time between two checkpoints, in minutes."""
    keep_checkpoints: int = setting(2, may_change=True)
    """Latest checkpoints to keep, besides the one that data.select_split selects."""
    crops: str = setting("ten", may_change=True, common=True)
    """Crop protocol of the final evaluation, reported along with the single centre crop."""
    audit: bool = setting(False, may_change=True)
    """Write the keys of every global batch to samples/ in the folder of the run, to prove which
    samples were consumed; for short runs."""
    max_restarts: int = setting(10, may_change=True)
    """Restarts of the workers, each from the last checkpoint, without a new checkpoint between
    them; after that the run fails."""
    hang_minutes: float = setting(5.0, may_change=True)
    """Minutes without progress of a worker after which the workers are restarted; 20 where it does
    something for the first time (compilation)."""
    skip_steps: tuple[str, ...] = setting((), may_change=True)
    """Steps whose batches are passed over without an update, as FIRST:LAST, both included; to get
    past batches at which the loss diverges. Only steps after the last checkpoint can be added."""
    lr_factors: tuple[str, ...] = setting((), may_change=True)
    """Changes of the learning rate during the run, as STEP:FACTOR: from that step on, the scheduled
    rate is multiplied by the factor. Only steps after the last checkpoint can be added."""

    def rules(self) -> Iterator[Rule]:
        """Positive counts, batches that can be shared and mixed, a crop protocol."""
        yield from below(self, 1, "global_batch", "micro_batch", "workers", "worker_cpus")
        yield from below(self, 1, "log_every", "eval_every", "checkpoint_every", "keep_checkpoints")
        yield from below(self, 0, "max_restarts")
        for name in ("checkpoint_minutes", "hang_minutes"):
            if not getattr(self, name) > 0:
                yield name, "must be above 0"
        yield from interventions.rules(self.skip_steps, self.lr_factors)
        batch = self.global_batch
        if not 0 < self.epochs < float("inf"):
            yield "epochs", "must be above 0"
        pairs = -(-batch // 2)
        if self.workers > pairs > 0:
            yield (
                "workers",
                f"cannot share a global_batch of {batch}, because each takes a pair of samples at "
                f"least; use at most {pairs}, or a larger global_batch",
            )
        if self.min_workers is not None and not 1 <= self.min_workers <= self.workers:
            yield "min_workers", f"must be from 1 to workers ({self.workers})"
        if self.residual == "bf16" and self.precision != "bf16":
            yield "residual", "has no effect without precision bf16"
        if self.cuda_graphs and not (self.compile and self.parallel == "ddp"):
            yield "cuda_graphs", "needs compile, and parallel ddp"
        for name in ("global_batch", "micro_batch"):
            if (getattr(self, name) or 0) % 2 and (self.mix.mixup or self.mix.cutmix):
                yield name, "must be even, because mixing pairs neighbours"
        if not self.name or "/" in self.name or self.name.startswith("."):
            yield "name", "must be a plain folder name"
        if not 1 <= len(self.experiment) <= 500:
            yield "experiment", "must have 1 to 500 characters, the limit of MLflow"
        if self.init_head == "map" and not self.init_from:
            yield "init_head", "maps the head of init_from, which is missing; give one, or drop"
        try:
            num_views(self.crops)
        except ValueError as error:
            yield "crops", f"is not a crop protocol: {error}"

    @property
    def eval_batch(self) -> int:
        """Images per forward pass of an evaluation."""
        return self.micro_batch or DEFAULT_PASS

    def steps(self, samples: int) -> int:
        """Optimizer steps of the run over a training split of `samples` images."""
        return max(1, round(self.epochs * samples / self.global_batch))

    def absolute(self) -> Self:
        """The config with absolute paths, because workers run in other folders."""
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
