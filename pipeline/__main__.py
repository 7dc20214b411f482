"""Command line of the pipeline: `python -m pipeline train PRESET`, and the commands for runs.

Slow modules are imported only after the settings have been checked.
"""

import contextlib
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import tyro

from pipeline.evaluation.config import EvaluateConfig
from pipeline.settings.budget import PEAK_FLOPS, Budget
from pipeline.settings.config import TrainConfig
from pipeline.settings.presets import PRESETS, find_preset, read_preset
from support.command import dispatch, first_value
from support.console import Progress, open_console
from support.settings import field_docs

if TYPE_CHECKING:
    from pipeline.evaluation.model import EvalModel
    from pipeline.outcome import Outcome
    from pipeline.train.job import Job

log = logging.getLogger("pipeline")

PRESET_FILE = "--preset-file"


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train, evaluate and record a run; the same command resumes an interrupted run."""

    preset: tyro.conf.Fixed[str]
    config: TrainConfig
    plan: bool = False
    """Only show the expected cost of the run: steps, FLOPs, hours, input, storage."""
    plan_gpu: Literal[tuple(PEAK_FLOPS)] = "H100"
    """With --plan: kind of GPU; each worker has one."""
    plan_mfu: float = 0.4
    """With --plan: share of the GPU's peak that the training step is assumed to reach."""
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


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Evaluate a model with one crop and with many; the same command resumes."""

    checkpoint: tyro.conf.Fixed[str]
    config: EvaluateConfig
    verbose: bool = False
    """Show the output of Ray and of the other libraries."""

    @classmethod
    def prepare(cls, arguments: Sequence[str]) -> tuple[Self, Sequence[str], Sequence[str]]:
        """Take the defaults from the checkpoint."""
        flags = EvaluateConfig(data="")
        path, rest = first_value(arguments, flags, flags=("verbose",))
        if path:
            from pipeline.checkpoint.run_folder import fetched_model
            from pipeline.evaluation.model import EvalModel

            config = EvalModel.open(fetched_model(path)).evaluation()
            return cls(checkpoint=path, config=config), [path], rest
        if "--help" in arguments or "-h" in arguments:
            return cls(checkpoint="", config=flags), ["CHECKPOINT"], rest
        raise ValueError(
            "evaluate needs a CHECKPOINT: the folder or URI of a run or of a checkpoint, or a file "
            "of weights"
        )

    def __call__(self) -> int:
        """Evaluate, and add the result to the record of the run of the checkpoint."""
        if not self.config.data:
            raise ValueError(
                f"{self.checkpoint} does not name the data to evaluate on; give --data: "
                f"{field_docs(EvaluateConfig)['data']}"
            )
        open_console(verbose=self.verbose)
        from pipeline.checkpoint.run_folder import fetched_model
        from pipeline.evaluation import evaluate
        from pipeline.evaluation.model import EvalModel
        from pipeline.train.resources import ray_session

        config = self.config.absolute()
        eval_model = EvalModel.open(fetched_model(self.checkpoint))
        dataset = evaluate.open_dataset(config)
        folder = Path(config.out or evaluate.default_folder(eval_model, config, dataset))
        with ray_session(extra_cpus=config.workers, verbose=self.verbose):
            progress = Progress("evaluate")
            result = evaluate.evaluate_model(eval_model, config, dataset, folder, progress)
        log.info("\n%s\n\nresult      %s", evaluate.result_table(result), folder)
        if eval_model.run_dir:
            attach_and_send(eval_model, folder, self.checkpoint)
        return 0


def attach_and_send(eval_model: "EvalModel", folder: Path, location: str) -> None:
    """Add an evaluation to the record of the run at a location, and send it to MLflow."""
    from pipeline import run, run_events
    from pipeline.checkpoint.lease import leased
    from pipeline.checkpoint.local import Checkpoint
    from pipeline.checkpoint.run_folder import run_of
    from pipeline.tracking import mlflow_sync
    from pipeline.tracking.journal import EVENTS
    from support.files import AlreadyLocked

    if not (eval_model.run_dir / EVENTS).exists():
        return
    home = run_of(location) if "://" in location else None
    try:
        with leased(home) if home else contextlib.nullcontext():
            if home:  # the run may have gone on meanwhile
                home.push("evaluations")
                home.pull()
            run_events.attach(eval_model.run_dir, Checkpoint.open(eval_model.path), folder)
            mlflow_sync.sync(eval_model.run_dir)
            if home:
                home.push(*run.FILES)
    except AlreadyLocked as error:  # the driver that trains the run sends its record itself
        log.info("the record of the run is that of another process now: %s", error)


@dataclass(frozen=True, kw_only=True)
class Rollback:
    """Take a run back to an earlier checkpoint; later checkpoints are deleted."""

    run: tyro.conf.Positional[str]
    """Folder or URI of the run."""
    step: int
    """Step of the checkpoint from which the run will go on."""

    def __call__(self) -> int:
        """Delete what comes after the step."""
        open_console(verbose=False)
        from pipeline.rollback import roll_back

        checkpoint = roll_back(self.run, self.step)
        log.info("the run goes on from %s with the next train command", checkpoint.path.name)
        return 0


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write the report about a run, report.html, into its folder."""

    run: tyro.conf.Positional[str]
    """Folder or URI of the run."""
    price_per_hour: float | None = None
    """Price of one worker (one GPU) per hour, to report the cost of the run."""

    def __call__(self) -> int:
        """Write the report."""
        open_console(verbose=False)
        from pipeline.checkpoint.run_folder import fetched_run, run_of
        from pipeline.report.run_page import write_report

        path = write_report(fetched_run(self.run), price_per_hour=self.price_per_hour)
        if "://" in self.run:
            run_of(self.run).push(path.name)
        log.info("report      %s", path)
        return 0


@dataclass(frozen=True, kw_only=True)
class TrackSync:
    """Send to MLflow the part of a run's record that it does not have yet."""

    run: tyro.conf.Positional[str]
    """Folder or URI of the run."""

    def __call__(self) -> int:
        """Send it; returns 1 if a part could not be sent."""
        open_console(verbose=False)
        from pipeline.checkpoint.run_folder import fetched_run
        from pipeline.tracking.mlflow_sync import sync

        return sync(fetched_run(self.run))


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write the weights of a checkpoint for another program."""

    checkpoint: tyro.conf.Positional[str]
    """Folder or URI of a run or of a checkpoint, or a file of weights."""
    file: tyro.conf.Positional[str]
    """File to write: .safetensors (timm's names), .npz (Google's names) or .pt (quantised)."""
    layout: Literal["vit", "big_vision"] = "vit"
    """For .npz: the layout of vision_transformer and AugReg, or that of big_vision."""
    quantise: Literal["int8-static", "int8-dynamic", "int8-weight", "float8"] = "int8-static"
    """For .pt: the scheme; int8-static calibrates on images of --data."""
    data: str | None = None
    """For .pt: shard set for the calibration; by default that of the checkpoint's run."""

    def __call__(self) -> int:
        """Write the file."""
        open_console(verbose=False)
        from pipeline.checkpoint.run_folder import fetched_model
        from pipeline.evaluation.export import export

        options = {"layout": self.layout, "scheme": self.quantise, "data": self.data}
        export(fetched_model(self.checkpoint), Path(self.file), **options)
        log.info("wrote       %s", self.file)
        return 0


COMMANDS = {
    "train": Train,
    "evaluate": Evaluate,
    "rollback": Rollback,
    "report": Report,
    "export": Export,
    "track sync": TrackSync,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status; entry point of the script `vit-pipeline`."""
    return dispatch("python -m pipeline", COMMANDS, arguments)


if __name__ == "__main__":
    sys.exit(main())
