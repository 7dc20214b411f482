"""A search before anything is started: preset, space and data, checked against each other.

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
# what a run does beside training, and a trial does not; workers are as many as asked for
OFF = {
    **{"record.models": "none", "record.register": None, "probe.data": [], "audit": False},
    **{"storage": None, "min_workers": None, "worker_cpus": None},
}
# what the job knows of the data
DATA = ("samples", "eval_samples", "num_classes", "data_dir")


@dataclass(frozen=True, kw_only=True)
class SearchJob:
    """A search whose preset, space and data fit together."""

    preset: str
    changes: Mapping[str, object]
    """Settings of the real run that are not the preset's."""
    config: SearchConfig
    space: Space
    samples: int
    """Images of the training split."""
    eval_samples: int
    """Images of the eval split."""
    num_classes: int
    data_dir: str
    """The shard set itself, also where the preset names the embedded one."""

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
        return horizon_of(self.config)

    @property
    def short(self) -> TrainConfig:
        """The real run with its own settings as a trial."""
        return shortened(self.run, self.config, self.samples)

    def warmup_of(self, settings: Mapping[str, object]) -> float:
        """Share of a trial that its warm-up takes."""
        return transfer.share_of_run(self.tuned(settings), "warmup", self.samples)

    @property
    def longest_warmup(self) -> float:
        """Share of a trial that the longest warm-up of the space takes."""
        return max(self._warmups())

    @property
    def first_rung(self) -> float:
        """Share of a trial before which none at all is stopped."""
        shortest, way = min(self._warmups()), self.config.rungs_from
        return max(self.longest_warmup, shortest + way * (1 - shortest))

    def _warmups(self) -> list[float]:
        settings = [self.settings(corner) for corner in self.space.corners()]
        return [self.warmup_of(one) for one in [{}, *settings]]

    def settings(self, sample: Mapping[str, object]) -> dict[str, object]:
        """Settings of a sample, with those that follow from them."""
        settings = self.space.settings(sample)
        if self.config.decay == "product" and "optim.lr" in settings:
            optim = self.short.optim
            decay = optim.lr * optim.weight_decay / settings["optim.lr"]
            settings["optim.weight_decay"] = transfer.rounded(decay)
        return settings

    def tuned(self, settings: Mapping[str, object]) -> TrainConfig:
        """The config of a trial with these settings, as far as they decide what it reaches."""
        changes = dict(settings)
        if "epochs" in changes:
            changes["epochs"] *= self.horizon
        return self.short.replace(changes)

    def baseline_sample(self) -> dict[str, object]:
        """The preset's own settings as a sample, as far as the space has a value for them."""
        flat, sample = self.short.flat(), {}
        for name, dimension in self.space.dimensions.items():
            if name in flat:
                sample[name] = flat[name] / (self.horizon if name == "epochs" else 1)
                continue
            for level, settings in dimension.settings.items():
                if all(flat[setting] == value for setting, value in settings.items()):
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
        """The same settings for the real run, by the transfer rule."""
        return transfer.to_run(
            self.tuned(settings),
            settings,
            horizon=self.horizon,
            batch=settings.get("global_batch", self.run.global_batch),
            samples=self.samples,
            transfer=self.config.transfer,
            lr_rule=self.config.lr_rule,
        )

    def rule(self) -> str:
        """The transfer rule in words."""
        warmup = {
            "examples": "the warm-up keeps its number of examples",
            "fraction": "the warm-up keeps its share of the run",
        }[self.config.transfer]
        trial, run = self.short.global_batch, self.run.global_batch
        factor = transfer.rate_factor(self.config.lr_rule, trial, run)
        rate = "the learning rate stays as it is"
        if trial != run:
            rate = f"the learning rate is multiplied by {factor:.3g} ({self.config.lr_rule} rule)"
        return (
            f"from {self.horizon:g} of the run at batch {trial:,} to all of it at batch {run:,}, "
            f"{warmup} (--transfer) and {rate} (--lr-rule)"
        )

    def describe(self) -> str:
        """What will be done, for the console."""
        short, config = self.short, self.config
        steps = short.steps(self.samples)
        rows = [
            ["search", f"{self.name}: {config.trials} trials by {config.sampler}"],
            ["trial", f"{steps:,} steps of {short.global_batch:,}, {self.horizon:g} of the run"],
            ["objective", ", ".join(config.objective)],
            ["stopper", self.stopping()],
            ["decay", {"alone": "weight_decay", "product": "lr x weight_decay"}[config.decay]],
            ["seeds", f"{config.seeds} for the best {config.top} and the preset's own settings"],
            ["transfer", self.rule()],
            *([name, str(dimension)] for name, dimension in self.space.dimensions.items()),
            *([name, str(value)] for name, value in self.space.shared.items()),
        ]
        width = max(len(row[0]) for row in rows)
        return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)

    def stopping(self) -> str:
        """The rule of the stopper in words."""
        if self.config.stopper == "none":
            return "none, every trial is run to its end"
        return (
            f"{self.config.stopper}, from {self.config.rungs_from:.0%} of a trial's own way down "
            f"from its peak on, none before {self.first_rung:.0%} of its length; the longest "
            f"warm-up takes {self.longest_warmup:.0%}"
        )

    def flat(self) -> dict[str, object]:
        """Everything that defines the search; the values are JSON."""
        return {
            "preset": self.preset,
            "changes": dict(self.changes),
            "search": self.config.flat(),
            "space": {name: str(d) for name, d in self.space.dimensions.items()},
            **{name: getattr(self, name) for name in DATA},
        }


def name_of(preset: str, config: SearchConfig) -> str:
    """Name of a search, given or made of preset and space."""
    return config.name or f"{preset}-{Path(config.space).stem}"


def horizon_of(config: SearchConfig) -> float:
    """Length of a trial, given or that of the space."""
    if config.horizon is not None:
        return config.horizon
    return 1.0 if config.space == "finetune" else HORIZON


def shortened(run: TrainConfig, config: SearchConfig, samples: int) -> TrainConfig:
    """A run with its own settings as a trial."""
    return transfer.to_trial(
        run,
        horizon=horizon_of(config),
        batch=config.global_batch or run.global_batch,
        samples=samples,
        transfer=config.transfer,
        lr_rule=config.lr_rule,
    )


def shown(sample: Mapping[str, object]) -> str:
    """A sample in one line."""
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in sample.items()
    )
