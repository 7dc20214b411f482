"""One search before it starts: its preset, space, rungs and data, checked against each other.

runs/NAME/search.json  study.log  tune/  trials/rung-1-00/...  best.json  report.html  mlflow.json
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.checkpoint.run_folder import SEARCH, RunFolder
from pipeline.data.digits import located
from pipeline.settings.config import TrainConfig
from shards.dataset import store
from support.redact import redacted
from tune import transfer
from tune.config import PROBE, Rung, SearchConfig
from tune.space import Space, alike
from tune.trial import Trial

# parts of a run that a trial leaves out; its number of workers is chosen for each rung
OFF = {
    **{"record.models": "none", "record.register": None, "audit": False, "crops": "center"},
    **{"min_workers": None, "worker_cpus": None, "skip_steps": [], "lr_factors": []},
    "data.select_split": None,
    "keep_checkpoints": 1,
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A search whose preset, space, rungs and data fit together; `tune.prepare` checks that."""

    preset: str
    run: TrainConfig
    """The real run that the search is for, with all its settings."""
    config: SearchConfig
    space: Space
    rungs: tuple[Rung, ...]
    samples: int
    """Images of the training split."""
    eval_samples: int
    """Images of the eval split."""
    num_classes: int
    image_bytes: float
    """Bytes of an image in the shards."""
    first: tuple[Mapping[str, object], ...] = ()
    """Samples of earlier searches, which are tried first."""

    @property
    def name(self) -> str:
        """Name of the search."""
        return self.config.name or f"{self.preset}-{self.space.name}"

    @property
    def folder(self) -> RunFolder:
        """Where the search is: a folder, or a prefix in a store with a copy on this machine."""
        return RunFolder.of(self.run.runs_dir, self.name)

    @property
    def dir(self) -> Path:
        """Folder of the search on this machine."""
        return self.folder.path

    @property
    def batch(self) -> int:
        """Global batch of the trials, unless the space sets it."""
        return self.config.global_batch or self.run.global_batch

    @property
    def trials_dir(self) -> str:
        """Folder or prefix of the trials."""
        return store.join(self.folder.place, "trials")

    def trial_folder(self, name: str) -> RunFolder:
        """Where a trial is."""
        return RunFolder.of(self.trials_dir, name)

    def trials(self, rung: int) -> int:
        """Number of trials of a rung; the confirmation comes last."""
        return self.rungs[rung].trials if rung < len(self.rungs) else 2 * self.config.seeds

    def horizon(self, rung: int) -> float:
        """Length of the trials of a rung as a share of the run; the confirmation comes last."""
        return self.rungs[min(rung, len(self.rungs) - 1)].horizon

    def preset_sample(self) -> dict[str, object]:
        """The preset as a sample, as far as the space can express it."""
        return self.space.sample_of(self.tuned(None, 1.0).flat())

    def is_preset(self, sample: Mapping[str, object]) -> bool:
        """Whether a trial of the sample would be the preset over again."""
        tried, control = (self.tuned(one, 1.0).flat() for one in (sample, None))
        return all(alike(control[name], value) for name, value in tried.items())

    def tuned(self, sample: Mapping[str, object] | None, horizon: float) -> TrainConfig:
        """The config of a trial without its name and folders; None is the preset."""
        how = {"batch": self.batch, "samples": self.samples}
        control = transfer.to_trial(self.run, horizon=horizon, **how)
        if sample is None:
            return control
        whole = control.replace({"epochs": self.run.epochs, **self.space.settings(sample)})
        lengths = transfer.in_shares(whole, self.samples)  # of its own run, also those in steps
        return lengths.replace({"epochs": whole.epochs * horizon})

    def longest(self, horizon: float) -> TrainConfig:
        """The trial that costs most: the preset, or a corner of the space."""
        size = {"model.num_classes": self.num_classes}
        trials = (self.tuned(one, horizon).replace(size) for one in (None, *self.space.corners()))
        return max(trials, key=lambda trial: trial.epochs * trial.model.forward_flops)

    def trial_config(self, trial: Trial, workers: int, device: str) -> TrainConfig:
        """The complete config of a trial."""
        config = self.tuned(trial.sample, self.horizon(trial.rung))
        steps = config.steps(self.samples)
        # evaluated at its end alone, where its schedule is complete
        often = {"log_every": max(1, min(config.log_every, steps // 50)), "eval_every": steps}
        probed = self.config.objective.startswith(PROBE)
        probe = {"probe.every": steps} if probed else {"probe.data": []}
        folders = {
            "name": trial.name,
            "runs_dir": self.trials_dir,
            "data.dir": located(config.data.dir, self.run.runs_dir),
            "model.num_classes": self.num_classes,
        }
        shares = {"workers": workers, "device": device, "seed": trial.seed}
        return config.replace({**OFF, **often, **probe, **folders, **shares})

    def carried(self, sample: Mapping[str, object]) -> dict[str, object]:
        """Settings of the real run for a sample that is the best at its length."""
        settings = self.space.settings(sample)
        return transfer.to_run(self.run, settings, settings.get("global_batch", self.batch))

    def flat(self) -> dict[str, object]:
        """Everything that defines the search, as JSON values without secrets."""
        content = {
            **{name: getattr(self, name) for name in NUMBERS},
            "first": list(self.first),
            "rungs": [str(rung) for rung in self.rungs],
            "space": self.space.flat(),
            "search": self.config.flat(),
            "run": self.run.flat(),
        }
        return redacted(json.loads(json.dumps(content)))


NUMBERS = ("preset", "samples", "eval_samples", "num_classes", "image_bytes")


def read_plan(folder: Path) -> Plan:
    """The plan of a search that was started; ValueError if the folder is not that of a search."""
    path = folder / SEARCH
    if not path.is_file():
        raise ValueError(f"{folder} is not the folder of a search: it has no {SEARCH}")
    content = json.loads(path.read_text())
    return Plan(
        **{name: content[name] for name in NUMBERS},
        first=tuple(content["first"]),
        rungs=tuple(Rung.of(text) for text in content["rungs"]),
        space=Space.of_flat(content["space"]),
        config=SearchConfig().replace(content["search"]),
        run=TrainConfig().replace(content["run"]),
    )


def resumed(old: Plan, new: Plan) -> Plan:
    """The plan of a search that goes on; ValueError if it was started with other settings.

    What may change on the way comes from the command, all else from the folder of the search.
    """
    before, now = kept(old), kept(new)
    if different := [name for name, value in now.items() if before[name] != value]:
        raise ValueError(
            f"search {old.name!r} was started with other settings: {', '.join(different)} differ; "
            f"restore them, or choose another --name"
        )
    return dataclasses.replace(old, config=new.config, run=new.run)


def kept(plan: Plan) -> dict[str, object]:
    """What a search keeps when it is resumed, by names as on the command line."""
    content, settings = plan.flat(), {}
    for part, prefix, of_part in (("search", "", plan.config), ("run", "base.", plan.run)):
        names = [name for name, metadata, _ in of_part.items() if not metadata.get("may_change")]
        settings |= {f"{prefix}{name}": content[part][name] for name in names}
    # the size of an image only tells what is read
    return settings | {name: content[name] for name in ("space", *NUMBERS) if name != "image_bytes"}


def shown(sample: Mapping[str, object] | None) -> str:
    """A sample in one line."""
    if sample is None:
        return "the preset"
    return ", ".join(f"{name} {cell(value)}" for name, value in sample.items())


def cell(value: object) -> str:
    """A value of a setting for people."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
