"""One search before it starts: its preset, space, rungs and data, checked against each other.

runs/NAME/search.json  study.log  tune/  trials/rung-1-00/...  best.json  report.html  mlflow.json
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.checkpoint.run_folder import RunFolder
from pipeline.data.digits import located
from pipeline.settings.budget import START_S, Budget, data_size
from pipeline.settings.config import TrainConfig
from shards.dataset import store
from shards.dataset.format import open_set
from support.redact import redacted
from tune import transfer
from tune.config import PROBE, SearchConfig
from tune.rungs import Rung, choose_rungs, cost
from tune.space import Space, alike, make_space
from tune.trial import Trial

SEARCH = "search.json"
# parts of a run that a trial leaves out; its number of workers is chosen for each rung
OFF = {
    **{"record.models": "none", "record.register": None, "audit": False, "crops": "center"},
    **{"min_workers": None, "worker_cpus": None, "skip_steps": [], "lr_factors": []},
    "keep_checkpoints": 1,
}
# bytes of an image in shards of 256 pixels, where they cannot be read: those of ImageNet-1k
IMAGE_BYTES = 25_700


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A search whose preset, space, rungs and data fit together; `make_plan` checks that."""

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

    def horizon(self, rung: int) -> float:
        """Length of the trials of a rung as a share of the run; the confirmation comes last."""
        return self.rungs[min(rung, len(self.rungs) - 1)].horizon

    def control(self, horizon: float) -> TrainConfig:
        """The preset as a trial."""
        return transfer.to_trial(self.run, horizon=horizon, batch=self.batch, samples=self.samples)

    def preset_sample(self) -> dict[str, object]:
        """The preset as a sample, as far as the space can express it."""
        return self.space.sample_of(self.control(1.0).flat())

    def is_preset(self, sample: Mapping[str, object]) -> bool:
        """Whether a trial of the sample would be the preset over again."""
        tried, control = (self.tuned(one, 1.0).flat() for one in (sample, None))
        return all(alike(control[name], value) for name, value in tried.items())

    def tuned(self, sample: Mapping[str, object] | None, horizon: float) -> TrainConfig:
        """The config of a trial without its name and folders; None is the preset."""
        control = self.control(horizon)
        if sample is None:
            return control
        settings = self.space.settings(sample)
        whole = control.replace({"epochs": self.run.epochs, **settings})
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
            "runs_dir": store.join(self.folder.place, "trials"),
            "data.dir": located(config.data.dir, self.run.runs_dir),
            "model.num_classes": self.num_classes,
        }
        shares = {"workers": workers, "device": device, "seed": trial.seed}
        return config.replace({**OFF, **often, **probe, **folders, **shares})

    def carried(self, sample: Mapping[str, object]) -> dict[str, object]:
        """Settings of the real run for a sample that is the best at its length."""
        settings = self.space.settings(sample)
        return transfer.to_run(self.run, settings, settings.get("global_batch", self.batch))

    @property
    def cost(self) -> float:
        """Cost of all trials in real runs, without evaluations."""
        return cost(self.rungs, self.config.seeds)

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


def make_plan(
    preset: str,
    base: TrainConfig,
    config: SearchConfig,
    *,
    gpu: str = "H100",
    mfu: float | None = None,
) -> Plan:
    """Plan a search; ValueError or OSError if preset, space, rungs and data do not fit.

    Without the data, the published size of its set counts. A budget in hours is in hours of a kind
    of GPU, at a share of its peak, as for `pipeline train --plan`.
    """
    run = base.absolute()
    samples, eval_samples, num_classes, _ = data_size(run)
    # the ranges are around the preset at the batch of the trials
    batch = config.global_batch or run.global_batch
    control = transfer.to_trial(run, horizon=1.0, batch=batch, samples=samples)
    plan = Plan(
        preset=preset,
        run=run,
        config=config,
        space=make_space(config.space, config.set, control, samples),
        rungs=(),
        samples=samples,
        eval_samples=eval_samples,
        num_classes=num_classes,
        image_bytes=bytes_of_image(run),
    )
    if config.objective.startswith(PROBE) and not run.probe.data:
        raise ValueError(
            f"objective ({config.objective}) is a probe, and probe.data names no shard set; set "
            f"--base.probe.data"
        )
    rungs = [Rung.of(text) for text in config.rungs or plan.space.rungs]
    if config.budget is not None or not rungs:
        rungs = rungs_within(plan, Budget(plan.longest(1.0), gpu=gpu, mfu=mfu))
    control = plan.preset_sample()
    known = plan.space.contains(control) and plan.is_preset(control)
    most = plan.space.size + (not known)  # with the preset
    rungs = [dataclasses.replace(rung, trials=int(min(rung.trials, most))) for rung in rungs]
    plan = dataclasses.replace(plan, rungs=tuple(rungs))
    check(plan)
    return plan


def rungs_within(plan: Plan, real: Budget) -> list[Rung]:
    """Rungs that the budget of the search allows; without one, they cost as much as the real run.

    `real` is the cost of the longest trial at the length of the real run. Raises ValueError if
    there is a budget, and the speed of the run is unknown or it is too small.
    """
    budget = plan.config.budget
    if budget is not None and real.unknown:
        raise ValueError(f"budget: {real.unknown}; choose the --rungs instead")
    overhead = evaluation_share(real) if real.unknown else trial_s(real) / real.train_s - 1
    overhead += 0.5 / real.steps  # a trial has a whole number of steps
    share = 1.0 if budget is None else 3600 * budget / real.train_s
    rungs = choose_rungs(share, steps=real.steps, seeds=plan.config.seeds, overhead=overhead)
    if budget is not None and (least := cost(rungs, plan.config.seeds, overhead)) > share:
        hours = math.ceil(least * real.train_s / 36) / 100
        raise ValueError(
            f"budget ({budget:g}): the shortest and fewest trials, {' '.join(map(str, rungs))}, "
            f"take {hours:g} GPU-hours; give it --budget {hours:g} at least"
        )
    return rungs


def trial_s(trial: Budget) -> float:
    """Seconds of a trial on one GPU: training, one evaluation at its end, and the start."""
    return trial.train_s * (1 + evaluation_share(trial)) + START_S


def evaluation_share(trial: Budget) -> float:
    """An evaluation in trainings; a forward pass is a third of a training step."""
    return trial.eval_samples / (3 * trial.images)


def bytes_of_image(run: TrainConfig) -> float:
    """Bytes of a training image in the shards, or IMAGE_BYTES if they cannot be read from here."""
    try:
        shards = open_set(run.data.dir).manifest.splits.get(run.data.train_split, ())
    except OSError:
        return IMAGE_BYTES
    return sum(shard.bytes for shard in shards) / max(1, sum(shard.samples for shard in shards))


def check(plan: Plan) -> None:
    """Raise ValueError if a trial, or the real run with what may be found, has invalid settings."""
    for horizon in {rung.horizon for rung in plan.rungs}:
        for sample in [None, *plan.space.corners()]:
            where = f"space {plan.space.name!r} at {shown(sample)}, {horizon:.3g} of the run"
            try:
                plan.tuned(sample, horizon).replace({"workers": plan.config.workers or 1})
                plan.run.replace(plan.carried(sample or {}))
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error


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
    before, now = old.flat(), new.flat()
    different = [
        f"{part}{name}"
        for part, settings in (("", new.config), ("base.", new.run))
        for name, metadata, _ in settings.items()
        if not metadata.get("may_change")
        for key in ["search" if not part else "run"]
        if before[key].get(name) != now[key][name]
    ]
    different += [name for name in (*NUMBERS, "space") if before[name] != now[name]]
    if different:
        raise ValueError(
            f"search {old.name!r} was started with other settings: {', '.join(different)} differ; "
            f"restore them, or choose another --name"
        )
    return dataclasses.replace(old, config=new.config, run=new.run)


def shown(sample: Mapping[str, object] | None) -> str:
    """A sample in one line."""
    if sample is None:
        return "the preset"
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in sample.items()
    )
