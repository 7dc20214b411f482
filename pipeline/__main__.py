"""Command line of the pipeline: `python -m pipeline train PRESET`, and what is done with a run.

Exit status: 0 done, 1 failed, 2 bad input, 130 interrupted. The slow imports wait until the
settings have been read and checked.
"""

import dataclasses
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from pipeline.evaluation.config import EvaluateConfig
from pipeline.settings.budget import PEAK_FLOPS, Budget
from pipeline.settings.config import DIGITS, TrainConfig
from pipeline.settings.presets import PRESETS, read_preset
from pipeline.tracking.journal import EVENTS
from support.console import open_console
from support.redact import excepthook, redact

if TYPE_CHECKING:
    from pipeline.evaluation.model import EvalModel

log = logging.getLogger("pipeline")

PRESET_FILE = "--preset-file"

# a file of published weights does not say what to evaluate it on
REQUIRED = {"data": tyro.MISSING}

USAGE = """\
usage: python -m pipeline COMMAND ...

  train PRESET [--dotted.setting value ...]    train, evaluate and record a run, or go on with one
  train --preset-file FILE [...]               the same with settings from a file, as a search finds
  evaluate CHECKPOINT --data DIR --crops ...   accuracy of a checkpoint, or of published weights
  report RUN                                   one HTML page about a run
  track sync RUN                               send MLflow what it has not got yet of a run

presets:
{presets}

python -m pipeline train PRESET --help lists every setting with its value in that preset, and
python -m pipeline evaluate CHECKPOINT --help those of an evaluation.
"""


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train, evaluate and record a run; the same command goes on with one that was interrupted."""

    config: Annotated[TrainConfig, tyro.conf.arg(name="")]
    plan: bool = False
    """Only say what the run would cost: steps, FLOPs, hours, input, storage."""
    plan_gpu: Literal[tuple(PEAK_FLOPS)] = "H100"
    """With --plan: kind of GPU; as many as there are workers."""
    plan_mfu: float = 0.4
    """With --plan: share of the GPU's peak that the training step is taken to reach."""
    verbose: bool = False
    """Show what Ray and the other libraries say."""


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Evaluate a model with one crop and with many; started again, it goes on."""

    config: Annotated[EvaluateConfig, tyro.conf.arg(name="")]
    verbose: bool = False
    """Show what Ray and the other libraries say."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write the page about a run: report.html in its folder."""

    price_per_hour: float | None = None
    """Price of one worker (one GPU) for an hour, to state what the run cost."""


def main(arguments: Sequence[str]) -> int:
    """Run a command; its exit status."""
    sys.excepthook = excepthook
    command, *rest = arguments or ["--help"]
    if command in ("-h", "--help"):
        sys.stdout.write(usage())
        return 0
    if command not in COMMANDS:
        return refuse(f"unknown command {command!r}; known: {', '.join(COMMANDS)}")
    if command == "track" and rest[:1] == ["sync"]:
        rest = rest[1:]
    elif command == "track" and rest[:1] not in ([], ["-h"], ["--help"]):
        return refuse(f"unknown command 'track {rest[0]}'; known: track sync RUN")
    if not rest or rest[0] in ("-h", "--help"):
        sys.stdout.write(usage())
        return 0 if rest else 2
    return COMMANDS[command](*rest)


def train_command(preset: str, *settings: str) -> int:
    """`train PRESET`: read and check the settings, then train."""
    path = None
    if preset == PRESET_FILE:
        path, *settings = settings or [""]
    elif preset not in PRESETS:
        return refuse(f"unknown preset {preset!r}; known: {', '.join(PRESETS)}")
    prog = f"python -m pipeline train {preset}" + (f" {path}" if path else "")
    try:
        config = PRESETS[preset]() if path is None else read_preset(Path(path))
        default = Train(config=config)
        parsed = tyro.cli(Train, args=settings, default=default, prog=prog)
    except (ValueError, OSError) as error:  # a rule between settings, or no such file
        return refuse(str(error))
    return train(parsed)


def usage() -> str:
    """The help page, with the first line of each preset's docstring."""
    width = max(map(len, PRESETS))
    lines = (
        f"  {name:<{width}}  {(p.__doc__ or '').splitlines()[0]}" for name, p in PRESETS.items()
    )
    return USAGE.format(presets="\n".join(lines))


def refuse(message: str) -> int:
    """Say what is wrong with the input; the status for it."""
    sys.stderr.write(f"error: {redact(message)}\n")
    return 2


def plan(command: Train) -> int:
    """Say what the run would cost; the exit status."""
    try:
        budget = Budget.of(absolute(command.config), gpu=command.plan_gpu, mfu=command.plan_mfu)
    except (ValueError, FileNotFoundError) as error:
        return refuse(str(error))
    sys.stdout.write(f"{budget}\n")
    return 0


def train(command: Train) -> int:
    """Carry out the command; its exit status."""
    if command.plan:
        return plan(command)
    open_console(verbose=command.verbose)
    # before Ray is imported: workers stay in this folder
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    # nodes that are just starting, or busy, need longer than Ray's minute to start their workers;
    # an elastic run must not wait long for a node that has just gone
    patience_s = "120" if command.config.min_workers else "900"
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", patience_s)
    from pipeline.train.job import prepare

    try:
        job = prepare(absolute(command.config))
    except (ValueError, FileNotFoundError) as error:
        return refuse(str(error))
    from pipeline.run import execute

    try:
        outcome = execute(job, verbose=command.verbose)
    except KeyboardInterrupt:
        log.info("interrupted; the same command goes on from the last checkpoint")
        return 130
    except (ArithmeticError, OSError, RuntimeError, ValueError) as error:
        log.error("error: %s", error, exc_info=command.verbose)
        return 1
    log.info("\n%s", outcome.table(job))
    return 0


def evaluate_command(path: str, *settings: str) -> int:
    """`evaluate CHECKPOINT`: take the settings that the checkpoint gives, evaluate, show."""
    from pipeline.evaluation.model import EvalModel

    prog = f"python -m pipeline evaluate {path}"
    try:
        eval_model = EvalModel.open(Path(path).absolute())
        default = Evaluate(config=eval_model.evaluation(**({} if eval_model.data else REQUIRED)))
        parsed = tyro.cli(Evaluate, args=settings, default=default, prog=prog)
    except (ValueError, FileNotFoundError) as error:
        return refuse(str(error))
    return evaluate(eval_model, parsed)


def evaluate(eval_model: "EvalModel", command: Evaluate) -> int:
    """Carry out the command; its exit status."""
    open_console(verbose=command.verbose)
    from pipeline.evaluation import evaluate
    from pipeline.run import Progress
    from pipeline.train.resources import ray_session

    config = command.config
    paths = {name: located(getattr(config, name)) for name in ("data", "v2", "real", "out")}
    config = dataclasses.replace(config, **paths)
    try:
        source = evaluate.open_source(config)
        folder = Path(config.out or evaluate.default_folder(eval_model, config, source))
        with ray_session(room=config.workers, verbose=command.verbose):
            result = evaluate.evaluate_model(eval_model, config, source, folder, Progress())
    except (ValueError, FileNotFoundError) as error:
        return refuse(str(error))
    except KeyboardInterrupt:
        log.info("interrupted; the same command goes on from the predictions in %s", folder)
        return 130
    log.info("\n%s\n\nresult      %s", evaluate.result_table(result), folder)
    if eval_model.run_dir and (eval_model.run_dir / EVENTS).exists():
        attach_and_send(eval_model, folder)
    return 0


def attach_and_send(eval_model: "EvalModel", folder: Path) -> None:
    """Add an evaluation to the record of the run that made the checkpoint, and send it."""
    from pipeline import run_events
    from pipeline.checkpoint.local import Checkpoint
    from pipeline.tracking import mlflow_sync

    run_events.attach(eval_model.run_dir, Checkpoint.open(eval_model.path), folder)
    try:
        mlflow_sync.sync(eval_model.run_dir)
    except mlflow_sync.AlreadySyncing:  # the run goes on, and its own thread sends
        log.info("the run itself sends the result to MLflow")


def located(path: str | None) -> str | None:
    """A path made absolute: workers run in other folders; a URI as it is."""
    return str(Path(path).absolute()) if path and "://" not in path else path


def report_command(run: str, *settings: str) -> int:
    """`report RUN`: write the page about a run."""
    parsed = tyro.cli(Report, args=settings, prog=f"python -m pipeline report {run}")
    open_console(verbose=False)
    from pipeline.report.run_page import write_report

    try:
        path = write_report(Path(run).absolute(), price_per_hour=parsed.price_per_hour)
    except (ValueError, FileNotFoundError) as error:
        return refuse(str(error))
    log.info("report      %s", path)
    return 0


def sync_command(run: str, *rest: str) -> int:
    """`track sync RUN`: send what is left of the record of a run."""
    if rest:
        return refuse(f"track sync takes one folder of a run, not also {' '.join(rest)}")
    open_console(verbose=False)
    from pipeline.tracking.mlflow_sync import sync

    try:
        return sync(Path(run).absolute())
    except (ValueError, FileNotFoundError) as error:
        return refuse(str(error))


COMMANDS = {
    "train": train_command,
    "evaluate": evaluate_command,
    "report": report_command,
    "track": sync_command,
}


def absolute(config: TrainConfig) -> TrainConfig:
    """The config with absolute paths: workers run in other folders, on other machines."""
    data = config.data
    return config.replace(
        {
            "runs_dir": located(config.runs_dir),
            "init_from": located(config.init_from),
            "data.dir": data.dir if data.dir == DIGITS else located(data.dir),
            "data.extra": tuple(map(located, data.extra)),
            "data.classes": located(data.classes),
            "probe.data": tuple(map(located, config.probe.data)),
        }
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
