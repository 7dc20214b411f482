"""The command that trains: `python -m pipeline train PRESET`."""

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import tyro

from pipeline.settings.budget import Budget
from pipeline.settings.config import TrainConfig
from pipeline.settings.presets import PRESETS, find_preset, read_preset
from support.command import first_value
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
            return cls(preset=subject[1], config=read_preset(Path(subject[1]))), subject, rest
        name, rest = first_value(arguments, TrainConfig(), flags=("plan", "verbose"))
        if name:
            return cls(preset=name, config=find_preset(name)), [name], rest
        if "--help" in arguments or "-h" in arguments:
            return cls(preset="", config=TrainConfig()), ["PRESET"], rest
        raise ValueError(
            f"train needs a PRESET, or {PRESET_FILE} FILE; presets: {', '.join(PRESETS)}"
        )

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
            sys.stdout.write(f"{Budget(config, gpu=self.plan_gpu, mfu=self.plan_mfu)}\n")
            return 0
        open_console(verbose=self.verbose)
        # before Ray is imported: workers stay in this folder
        os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
        # nodes that are booting or busy need longer than Ray's default of a minute to start their
        # workers; but an elastic run must not wait long for a node that has disappeared
        patience_s = "120" if config.min_workers else "900"
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", patience_s)
        from pipeline.train.job import prepare

        job = prepare(config)
        from pipeline.run import execute

        log.info("\n%s", result_facts(job, execute(job, verbose=self.verbose)))
        return 0


def result_facts(job: "Job", outcome: "Outcome") -> str:
    """Summary of a run: the table of its evaluation, and the paths of its results."""
    from pipeline.evaluation.evaluate import result_table
    from pipeline.tracking.mlflow_client import page_command

    images = next(iter(outcome.protocols.values()))["images"]
    facts = {
        "evaluated": f"{images:,} images of {job.config.data.eval_split}, each once",
        "trained": f"{outcome.steps:,} steps at {outcome.images_per_s:,.0f} images/s",
        "checkpoint": outcome.checkpoint,
        "MLflow page": page_command(job.dir.parent),
    }
    table = result_table({"protocols": outcome.protocols, "changes": outcome.changes})
    return f"{table}\n\n" + "\n".join(f"{name:<12}{fact}" for name, fact in facts.items())
