"""One search: its preset, space and data, checked against each other.

runs/NAME/search.json  trials.jsonl  trials/trial-000/...  best.json  report.html  mlflow.json
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.settings.config import TrainConfig
from pipeline.settings.presets import find_preset
from tune import transfer
from tune.config import SearchConfig
from tune.space import Space

SEARCH = "search.json"
HORIZON = 0.25
# parts of a run that a trial leaves out; its number of workers is fixed
OFF = {
    **{"record.models": "none", "record.register": None, "probe.data": [], "audit": False},
    **{"min_workers": None, "worker_cpus": None},
}
# the fields of a job that describe the data
DATA = ("samples", "eval_samples", "num_classes", "data_dir")


@dataclass(frozen=True, kw_only=True)
class SearchJob:
    """A search whose preset, space and data fit together; `assemble` checks that they do."""

    preset: str
    changes: Mapping[str, object]
    """Settings of the real run that differ from the preset's."""
    config: SearchConfig
    space: Space
    samples: int
    """Images of the training split."""
    eval_samples: int
    """Images of the eval split."""
    num_classes: int
    data_dir: str
    """Folder of the shard set, also if the preset names the embedded data."""

    @property
    def run(self) -> TrainConfig:
        """The real run that the search is for."""
        return find_preset(self.preset).replace(self.changes)

    @property
    def dir(self) -> Path:
        """Folder of the search."""
        return Path(self.run.runs_dir) / self.name

    @property
    def name(self) -> str:
        """Name of the search."""
        return name_of(self.preset, self.config)

    @property
    def horizon(self) -> float:
        """Length of a trial as a share of the real run."""
        if self.config.horizon is not None:
            return self.config.horizon
        return 1.0 if self.config.space == "finetune" else HORIZON

    @property
    def short(self) -> TrainConfig:
        """The real run with its own settings, carried to the length of a trial."""
        run = self.run
        batch = self.config.global_batch or run.global_batch
        return transfer.to_trial(run, batch=batch, **self._transfer)

    @property
    def _transfer(self) -> dict[str, object]:
        config, samples = self.config, self.samples
        rules = {"transfer": config.transfer, "lr_rule": config.lr_rule}
        return {"horizon": self.horizon, "samples": samples, **rules}

    def warmup_of(self, settings: Mapping[str, object]) -> float:
        """The warm-up as a share of the trial."""
        return transfer.share_of_run(self.tuned(settings), "warmup", self.samples)

    @property
    def longest_warmup(self) -> float:
        """The longest warm-up of the space as a share of a trial."""
        return max(self._warmups())

    @property
    def first_rung(self) -> float:
        """Share of its length before which no trial is stopped."""
        shortest, decay = min(self._warmups()), self.config.rungs_from
        return max(self.longest_warmup, shortest + decay * (1 - shortest))

    def _warmups(self) -> list[float]:
        corners = [self.settings(corner) for corner in self.space.corners()]
        return [self.warmup_of(settings) for settings in [{}, *corners]]

    def settings(self, sample: Mapping[str, object]) -> dict[str, object]:
        """Settings of a sample, with those that follow from them."""
        settings = self.space.settings(sample)
        if self.config.decay == "product" and "optim.lr" in settings:
            optim = self.short.optim
            decay = optim.lr * optim.weight_decay / settings["optim.lr"]
            settings["optim.weight_decay"] = transfer.rounded(decay)
        return settings

    def tuned(self, settings: Mapping[str, object]) -> TrainConfig:
        """The config of a trial with these settings, without its name, folders and intervals."""
        changes = dict(settings)
        if "epochs" in changes:
            changes["epochs"] *= self.horizon
        return self.short.replace(changes)

    def baseline_sample(self) -> dict[str, object]:
        """The baseline as a sample, for those dimensions of the space that have its value."""
        flat, sample = self.short.flat(), {}
        for name, dimension in self.space.dimensions.items():
            if name in flat:
                sample[name] = flat[name] / self.horizon if name == "epochs" else flat[name]
                continue
            for level, settings in dimension.settings.items():
                if settings.items() <= flat.items():
                    sample[name] = level
        return sample

    def trial_config(self, settings: Mapping[str, object], name: str, repeat: int) -> TrainConfig:
        """The complete config of a trial."""
        config = self.tuned(settings)
        steps, evals = config.steps(self.samples), self.config.evals
        return config.replace(
            {
                "name": name,
                "runs_dir": str(self.dir / "trials"),
                "data.dir": self.data_dir,
                "model.num_classes": self.num_classes,
                "workers": self.config.workers,
                "seed": self.config.seed + repeat,
                "log_every": max(1, min(config.log_every, steps // 50)),
                "eval_every": max(1, -(-steps // evals)),
                "checkpoint_every": max(config.checkpoint_every, 1),
                "keep_checkpoints": 1,
                **OFF,
            }
        )

    def carried(self, settings: Mapping[str, object]) -> dict[str, object]:
        """The settings of a trial, carried to the real run by the transfer rule."""
        batch = settings.get("global_batch", self.run.global_batch)
        return transfer.to_run(self.tuned(settings), settings, batch=batch, **self._transfer)

    def rule(self) -> str:
        """The transfer rule in words."""
        warmup = {"examples": "number of examples", "fraction": "share of the run"}
        kept = warmup[self.config.transfer]
        trial, run = self.short.global_batch, self.run.global_batch
        rate = "the learning rate is unchanged"
        if trial != run:
            factor = transfer.rate_factor(self.config.lr_rule, trial, run)
            rate = f"the learning rate is multiplied by {factor:.3g} ({self.config.lr_rule} rule)"
        return (
            f"from {self.horizon:g} of the run at batch {trial:,} to all of it at batch {run:,}, "
            f"the warm-up keeps its {kept} (--transfer) and {rate} (--lr-rule)"
        )

    def describe(self) -> str:
        """The planned search, for the console."""
        short, config = self.short, self.config
        steps = short.steps(self.samples)
        rows = {
            "search": f"{self.name}: {config.trials} trials by {config.sampler}",
            "trial": f"{steps:,} steps of {short.global_batch:,}, {self.horizon:g} of the run",
            "objective": ", ".join(config.objective),
            "stopper": self.stopping(),
            "decay": {"alone": "weight_decay", "product": "lr x weight_decay"}[config.decay],
            "seeds": f"{config.seeds} for the best {config.top} and the baseline",
            "transfer": self.rule(),
            **self.space.dimensions,
            **self.space.shared,
        }
        width = max(map(len, rows))
        return "\n".join(f"{name:<{width}}  {text}" for name, text in rows.items())

    def stopping(self) -> str:
        """The rule of the stopper in words."""
        if self.config.stopper == "none":
            return "none, every trial runs to its end"
        return (
            f"{self.config.stopper}, after {self.config.rungs_from:.0%} of a trial's decay from "
            f"its peak rate, and not before {self.first_rung:.0%} of its length; the longest "
            f"warm-up takes {self.longest_warmup:.0%}"
        )

    def flat(self) -> dict[str, object]:
        """Everything that defines the search, as JSON values."""
        return {
            "preset": self.preset,
            "changes": dict(self.changes),
            "search": self.config.flat(),
            "space": {name: str(d) for name, d in self.space.dimensions.items()},
            **{name: getattr(self, name) for name in DATA},
        }


def name_of(preset: str, config: SearchConfig) -> str:
    """The given name of a search, by default made of preset and space."""
    return config.name or f"{preset}-{Path(config.space).stem}"


def shown(sample: Mapping[str, object]) -> str:
    """A sample in one line."""
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in sample.items()
    )
