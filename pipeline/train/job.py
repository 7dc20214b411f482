"""A run before anything is started: settings, data and folder, checked against each other."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.checkpoint import local, remote
from pipeline.data import digits
from pipeline.data.dataset import Dataset, open_eval, open_train
from pipeline.data.order import Mixture, Order
from pipeline.evaluation.probe import Probe
from pipeline.settings.config import DIGITS, TrainConfig
from shards.dataset import wordnet
from vit.loss import make_loss
from vit.optim import learning_rate
from vit.registry import LOSSES

CONFIG = "config.json"


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run whose settings, data and folder fit together; this is what the workers are handed."""

    config: TrainConfig
    train: Dataset
    eval: Dataset
    probes: tuple[Probe, ...] = ()

    @property
    def dir(self) -> Path:
        """Folder of the run."""
        return Path(self.config.runs_dir) / self.config.name

    @property
    def checkpoints(self) -> Path:
        """Folder of the run's checkpoints."""
        return self.dir / "checkpoints"

    @property
    def store(self) -> str:
        """The run's place in the store."""
        return f"{self.config.storage}/{self.config.name}"

    def latest(self) -> local.Checkpoint | None:
        """The newest checkpoint; fetched first where there is a store."""
        if self.config.storage:
            remote.pull(self.store, self.checkpoints)
        return local.latest(self.checkpoints)

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
    def parents(self) -> Sequence[int] | None:
        """Parent of each class in WordNet, for a loss over the tree of classes."""
        needs_tree = LOSSES[self.config.loss.name].needs_tree
        return wordnet.parents(self.train.classes) if needs_tree else None

    @property
    def num_stages(self) -> int:
        """Steps of the line, for the console: the embedded data is made first."""
        return 4 if self.config.data.dir == DIGITS else 2

    def learning_rate(self, step: int) -> float:
        """Learning rate of a step; a warm-up longer than the run is a ValueError."""
        return learning_rate(
            self.config.optim,
            step,
            self.total_steps,
            global_batch=self.config.global_batch,
            examples_per_epoch=self.train.slices.samples,
        )


def prepare(config: TrainConfig) -> Job:
    """Check a run against its data and its folder; what does not fit is a ValueError.

    Data that is not there is a FileNotFoundError. Only the embedded data is written, if it is not
    there yet.
    """
    data = config.data
    location = digits.made(data.dir, config.runs_dir)
    train = open_train(data, location)
    job = Job(
        config=with_classes(config, len(train.classes)),
        train=train,
        eval=open_eval(data, location),
        probes=Probe.open_all(config.probe),
    )
    job.learning_rate(0)  # refuses a warm-up that does not fit into the run
    make_loss(config.loss, parents=job.parents)  # refuses classes that make no tree
    if config.init_from:
        local.weights_of(config.init_from)  # refuses what is not there
    check_folder(job)
    return job


def with_classes(config: TrainConfig, num_classes: int) -> TrainConfig:
    """The config with the head's size taken from the data, or checked against it."""
    if config.model.num_classes is None:
        return config.replace({"model.num_classes": num_classes})
    if config.model.num_classes != num_classes:
        raise ValueError(
            f"model.num_classes ({config.model.num_classes}) differs from the {num_classes} "
            f"classes of the data; leave it out to take the data's"
        )
    return config


def check_folder(job: Job) -> None:
    """Refuse to go on with a run of other settings or other data."""
    recorded = job.dir / CONFIG
    if not recorded.exists():
        return
    odd = local.differences(job.config, json.loads(recorded.read_text()))
    found, fingerprint = job.latest(), job.train.fingerprint
    if found and found.fingerprint != fingerprint:
        odd.append(f"the shard set ({found.fingerprint[:12]} before, {fingerprint[:12]} now)")
    if odd:
        raise ValueError(
            f"run {job.config.name!r} in {job.dir} was started differently: {'; '.join(odd)}. "
            f"Take another --name, or go back to its settings"
        )
