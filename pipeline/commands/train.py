"""The command that trains: `python -m pipeline train PRESET`."""

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

import tyro

from pipeline.settings.budget import Budget
from pipeline.settings.config import TrainConfig
from pipeline.settings.presets import PRESETS, find_preset, read_file, read_preset
from support.command import first_value, value_of
from support.console import open_console

if TYPE_CHECKING:
    from pipeline.outcome import Outcome
    from pipeline.train.job import Job

log = logging.getLogger(__name__)

PRESET_FILE = "--preset-file"


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train, evaluate and record a run; the same command resumes an interrupted run."""

    preset: tyro.conf.Fixed[str]
    config: TrainConfig
    plan: bool = False
    """Only show the expected cost of the run: steps, schedule, hours, input, storage."""
    plan_gpu: str = "H100"
    """With --plan: kind of GPU, such as H100 or H100-PCIe; each worker has one."""
    plan_mfu: float | None = None
    """With --plan: share of the GPU's peak to assume; None estimates it."""
    verbose: bool = False
    """Show the output of Ray and of the other libraries."""

    @classmethod
    def prepare(cls, arguments: Sequence[str]) -> tuple[Self, Sequence[str], Sequence[str]]:
        """Take the defaults from the preset, or preset file, that the arguments name."""
        if PRESET_FILE in arguments[:-1]:
            start = arguments.index(PRESET_FILE)
            subject = arguments[start : start + 2]
            rest = [*arguments[:start], *arguments[start + 2 :]]
            config = read_preset(Path(subject[1]), partial(cls.of_file, rest))
            return cls(preset=subject[1], config=config), subject, rest
        name, rest = first_value(arguments, TrainConfig(), flags=("plan", "verbose"))
        if name:
            return cls(preset=name, config=cls.base(name, rest)), [name], rest
        if "--help" in arguments or "-h" in arguments:
            return cls(preset="", config=TrainConfig()), ["PRESET"], rest
        raise ValueError(
            f"train needs a PRESET, or {PRESET_FILE} FILE; presets: {', '.join(PRESETS)}"
        )

    @classmethod
    def base(cls, name: str, arguments: Sequence[str]) -> TrainConfig:
        """Settings of a preset; of one without a size, for the weights of --init-from."""
        return preset_for(name, arguments)

    @classmethod
    def of_file(
        cls, arguments: Sequence[str], name: str, settings: Mapping[str, object]
    ) -> TrainConfig:
        """Settings of the preset of a preset file, which may have all settings of the model."""
        if "model.width" in settings:
            return find_preset(name)
        names = ("init_from", "runs_dir", "name")
        given = [f"--{key}={settings[key]}" for key in names if key in settings]
        return cls.base(name, [*arguments, *given])  # the first value of an option counts

    @property
    def takes_size(self) -> bool:
        """Whether the size is that of the weights."""
        name, settings = self.preset, {}
        if name not in PRESETS:
            name, settings = read_file(Path(name))
        return PRESETS[name].of_weights is not None and "model.width" not in settings

    @property
    def description(self) -> str:
        """Description of the preset, or a list of all presets."""
        if self.preset in PRESETS:
            return f"{self.__doc__}\n\n{PRESETS[self.preset]}"
        width = max(map(len, PRESETS))
        rows = "\n".join(f"  {name:<{width}}  {row.summary}" for name, row in PRESETS.items())
        return f"{self.__doc__}\n\n{PRESET_FILE} FILE uses the settings from a search.\n\n{rows}"

    def __call__(self) -> int:
        """Train, or only show the expected cost."""
        config = self.config.absolute()
        if self.plan:
            budget = Budget(config, gpu=self.plan_gpu, mfu=self.plan_mfu)
            sys.stdout.write(f"{budget}\n")
            if config.init_from:
                from pipeline.initial_weights import planned

                lines = planned(budget.config, verbose=self.verbose)
                sys.stdout.write(f"{'init_from':<10}{lines}\n")
            return 0
        open_console(verbose=self.verbose)
        # before Ray is imported: workers stay in this folder
        os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
        # nodes that are booting or busy need longer than Ray's default of a minute to start their
        # workers; but an elastic run must not wait long for a node that has disappeared
        patience_s = "120" if config.min_workers else "900"
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", patience_s)
        from pipeline.run import execute, prepared

        job = prepared(config)
        if self.verbose and job.weights:
            log.info("%s\n", "\n".join(job.weights.loaded.lines()))
        log.info("\n%s", result_facts(job, execute(job, verbose=self.verbose)))
        return 0


@dataclass(frozen=True, kw_only=True)
class TrainElsewhere(Train):
    """Training on another machine, which alone may be able to read the initial weights."""

    @classmethod
    def base(cls, name: str, arguments: Sequence[str]) -> TrainConfig:
        """Settings of a preset; one without a size gets it there."""
        return preset_for(name, arguments, read=False)


def preset_for(
    name: str, arguments: Sequence[str], prefix: str = "--", *, read: bool = True
) -> TrainConfig:
    """Settings of a preset; of one without a size, for the weights that the arguments name.

    If a run or search of it was begun with these, its size counts: they may be gone, or others by
    now. With `read` the size is read from them. The options begin with `prefix`. Raises ValueError
    if such a preset is given no weights.
    """
    config = find_preset(name)
    if not PRESETS[name].of_weights or {"-h", "--help"} & {*arguments}:
        return config
    location = value_of(arguments, f"{prefix}init-from")
    if not location:
        raise ValueError(
            f"preset {name} has the size of its weights: give {prefix}init-from, which is a run, a "
            f"checkpoint, a file of weights, or the address of one"
        )
    if not read:
        return config
    from pipeline.checkpoint.local import CONFIG
    from pipeline.checkpoint.run_folder import SEARCH
    from pipeline.initial_weights import sized

    runs_dir = value_of(arguments, f"{prefix}runs-dir") or config.runs_dir
    begun_in = CONFIG if prefix == "--" else SEARCH if "--resume" in arguments else ""
    return sized(PRESETS[name], location, runs_dir, value_of(arguments, "--name"), begun_in)


def result_facts(job: "Job", outcome: "Outcome") -> str:
    """Summary of a run: the table of its evaluation, and the paths of its results."""
    from pipeline.evaluation.evaluate import result_table
    from pipeline.tracking.mlflow_address import page_of

    images = next(iter(outcome.protocols.values()))["images"]
    rate = f" at {outcome.images_per_s:,.0f} images/s" if outcome.images_per_s else ""
    facts = {
        "evaluated": f"{images:,} images of {job.config.data.eval_split}, each once",
        "trained": f"{outcome.steps:,} steps{rate}",
        "checkpoint": outcome.checkpoint + (f" ({outcome.chosen})" if outcome.chosen else ""),
        "MLflow page": page_of(job.dir),
    }
    table = result_table({"protocols": outcome.protocols, "changes": outcome.changes})
    return f"{table}\n\n" + "\n".join(f"{name:<12}{fact}" for name, fact in facts.items())
