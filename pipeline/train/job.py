"""A run before it starts: settings, data and folder, checked against each other."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipeline.checkpoint import local
from pipeline.checkpoint.checkpoints import Checkpoints
from pipeline.checkpoint.local import CONFIG, Checkpoint
from pipeline.checkpoint.run_folder import RunFolder, fetched_model
from pipeline.data import digits
from pipeline.data.dataset import Dataset, open_eval, open_train
from pipeline.data.order import Mixture, Order
from pipeline.data.reader import View
from pipeline.evaluation.predict import view_of
from pipeline.evaluation.probe import Probe
from pipeline.evaluation.training_loop import evaluation_settings
from pipeline.settings.config import DIGITS, TrainConfig
from pipeline.settings.interventions import Interventions
from pipeline.settings.location import is_address
from pipeline.settings.upsampling import check_sides
from pipeline.train.initial import InitialWeights
from pipeline.train.initial_copy import InitialCopy
from shards.dataset import wordnet
from vit.loss import make_loss
from vit.optim import learning_rate
from vit.registry import LOSSES


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run whose settings, data and folder are consistent; it is sent to the workers."""

    config: TrainConfig
    train: Dataset
    eval: Dataset
    select: Dataset | None = None
    """The split that selects the checkpoint, if one does."""
    probes: tuple[Probe, ...] = ()
    provenance: Mapping[str, object] = field(default_factory=local.provenance)
    """Versions and commit of the driver's code."""
    owner: Mapping[str, object] = field(default_factory=dict)
    """The driver that has the lease of the run; empty before it has."""
    weights: InitialWeights | None = None
    """The initial weights; None without, or if the run has a checkpoint."""

    @property
    def folder(self) -> RunFolder:
        """Where the run is."""
        return RunFolder.of(self.config.runs_dir, self.config.name)

    @property
    def dir(self) -> Path:
        """Folder of the run on this node: the run itself, or a copy of it."""
        return self.folder.path

    @property
    def checkpoints(self) -> Checkpoints:
        """The checkpoints of the run."""
        return self.folder.checkpoints

    @property
    def locations(self) -> list[str]:
        """Locations of all shard sets of the run."""
        data = self.config.data
        location = digits.located(data.dir, self.config.runs_dir)
        return [location, *data.extra, *self.config.probe.data]

    @property
    def order(self) -> Order | Mixture:
        """The sequence of training samples."""
        data = self.config.data
        return self.train.order(self.config.seed, data.weights, run=data.slice_samples)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.config.steps(self.train.slices.samples)

    @property
    def interventions(self) -> Interventions:
        """Steps without an update, and changes of the learning rate."""
        return Interventions.of(self.config.skip_steps, self.config.lr_factors)

    @property
    def parents(self) -> Sequence[int] | None:
        """Parent of each class in WordNet, if the loss needs the tree of classes."""
        needs_tree = LOSSES[self.config.loss.name].needs_tree
        return wordnet.parents(self.train.classes) if needs_tree else None

    @property
    def num_stages(self) -> int:
        """Number of stages on the console: the embedded data takes two to build."""
        return 4 if self.config.data.dir == DIGITS else 2

    def learning_rate(self, step: int) -> float:
        """Learning rate of the update after `step` others; ValueError for too long a warm-up."""
        scheduled = learning_rate(
            self.config.optim,
            step,
            self.total_steps,
            global_batch=self.config.global_batch,
            examples_per_epoch=self.train.slices.samples,
        )
        return scheduled * self.interventions.factor(step + 1)


def prepare(
    config: TrainConfig,
    fetch: Callable[[str], Path] = fetched_model,
    search: RunFolder | None = None,
) -> Job:
    """Check a run against its data and its folder; the embedded data is built if it is missing.

    `fetch` gives a path on this machine for a location of initial weights, unless a copy of them is
    in the folder of the run, or of the `search` of which it is a trial. Raises ValueError if
    settings, data, folder and initial weights do not fit together, and FileNotFoundError if data or
    weights are missing.
    """
    data = config.data
    location = digits.made(data.dir, config.runs_dir)
    train = open_train(data, location)
    job = Job(
        config=with_classes(config, len(train.classes)),
        train=train,
        eval=open_eval(data, location, data.eval_split),
        select=open_eval(data, location, data.select_split) if data.select_split else None,
        probes=Probe.open_all(config.probe),
    )
    for subset in job.train.subsets:
        check_sides(job.config, subset.shards, data.train_split)
    for split in filter(None, (data.eval_split, data.select_split)):
        for subset in job.eval.subsets:
            check_sides(job.config, subset.shards, split)
    # each of these raises an error that would otherwise come up only in the workers, or at the end
    View(images=job.config.images, size=job.config.model.image_size).check()
    view_of(evaluation_settings(job.config, config.crops)).check()
    job.learning_rate(0)
    make_loss(config.loss, parents=job.parents)
    checkpoint = check_folder(job)
    if config.init_from and not checkpoint:
        # the checkpoint that another run reports may be another one tomorrow: name it once
        address = config.init_from if is_address(config.init_from) else None
        copy = InitialCopy.find(search or job.folder, address) if address else None
        path = copy.path if copy else fetch(config.init_from)
        weights = InitialWeights.of(path, job.config, train.classes)
        job = replace(job, weights=replace(weights, address=address, copy=copy))
    return job


def with_classes(config: TrainConfig, num_classes: int) -> TrainConfig:
    """The config with the size of the head from the data; ValueError if it has another size."""
    if config.model.num_classes not in (None, num_classes):
        raise ValueError(
            f"model.num_classes ({config.model.num_classes}) differs from the {num_classes} "
            f"classes of the data; leave it out to use that number"
        )
    return config.replace({"model.num_classes": num_classes})


def check_folder(job: Job) -> Checkpoint | None:
    """The newest checkpoint; ValueError if the folder holds a run with other settings or data."""
    config_json, checkpoint = job.folder.read(CONFIG), job.checkpoints.latest()
    changes = []
    if config_json:
        changes += local.differences(job.config, json.loads(config_json))
    if checkpoint:
        # the folder may have lost its config.json, or have that of another run
        changes += local.differences(job.config, checkpoint.config)
        now = job.train.fingerprint
        if checkpoint.fingerprint != now:
            changes.append(f"the shard set ({checkpoint.fingerprint[:12]} before, {now[:12]} now)")
    if changes:
        raise ValueError(
            f"run {job.config.name!r} in {job.folder.location} was started differently: "
            f"{'; '.join(dict.fromkeys(changes))}. Take another --name, or go back to its settings"
        )
    if checkpoint:
        check_interventions(job, checkpoint)
    return checkpoint


def check_interventions(job: Job, checkpoint: Checkpoint) -> None:
    """Raise ValueError if steps are to be changed that the run has taken already."""
    step = checkpoint.step
    if job.interventions.until(step) != Interventions.of_flat(checkpoint.config).until(step):
        raise ValueError(
            f"skip_steps {job.config.skip_steps} and lr_factors {job.config.lr_factors} change "
            f"steps up to {step:,}, which run {job.config.name!r} has taken already; name later "
            f"steps, or go back first: python -m pipeline rollback {job.folder.location} --step N"
        )
