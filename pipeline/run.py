"""One run from settings to an evaluated, recorded checkpoint; the driver's side.

    job -> Ray: workers train -> best checkpoint -> multi-crop evaluation -> result.json

A run is its folder: started again, it goes on from the last checkpoint and the same MLflow run, and
a finished one only tells its result again.

    runs/NAME/config.json  checkpoints/  metrics.jsonl  mlflow.json  result.json
"""

import contextlib
import dataclasses
import fcntl
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import ray
import ray.train
from ray.actor import ActorHandle
from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback, WorkerGroupError
from ray.train.torch import TorchTrainer

from pipeline.checkpoint import local
from pipeline.evaluation.config import CENTER
from pipeline.evaluation.evaluate import default_folder, evaluate_model, result_table
from pipeline.evaluation.model import EvalModel
from pipeline.run_events import figures, record_circumstances, record_result
from pipeline.settings.config import TrainConfig
from pipeline.tracking.mlflow_client import page_command
from pipeline.tracking.recorder import Recorder
from pipeline.train.job import CONFIG, Job, prepare
from pipeline.train.report_queue import run_report_queue
from pipeline.train.resources import ray_session, worker_resources
from pipeline.train.worker import attempt
from support.console import duration, log_stage, record_line
from support.redact import redacted

log = logging.getLogger(__name__)

RESULT, LOCK = "result.json", "run.lock"
# MLflow's tag for how a run ended that is a trial
OUTCOME_TAG = "outcome"
OnRecord = Callable[[dict], str | None]

# seconds between two lines of progress
PROGRESS_S = 5.0
# seconds that an interrupted run has for its last checkpoint
GRACE_S = 60.0
# seconds between two looks whether an elastic run could have more workers
RESIZE_S = 30.0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a finished run reached."""

    steps: int
    images_per_s: float
    """Training rate in the last interval, over all workers."""
    checkpoint: str
    """Folder of the best checkpoint."""
    protocols: dict[str, dict[str, float]]
    """Figures of each crop protocol on the eval split."""
    changes: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    """How each protocol differs from the single centre crop."""
    evaluation: str = ""
    """Folder of the evaluation: classes, predictions, confusions."""

    @classmethod
    def read(cls, run_dir: Path) -> "Outcome | None":
        """The outcome of a run, if it is finished."""
        path = run_dir / RESULT
        return cls(**json.loads(path.read_text())) if path.exists() else None

    def write(self, run_dir: Path) -> None:
        """Keep the outcome in the folder of the run: from now on the run is finished."""
        write_json(run_dir / RESULT, dataclasses.asdict(self))

    def table(self, job: Job) -> str:
        """The table that a run ends with."""
        images = self.protocols[CENTER]["images"]
        facts = {
            "evaluated": f"{images:,} images of {job.config.data.eval_split}, each once",
            "trained": f"{self.steps:,} steps at {self.images_per_s:,.0f} images/s",
            "checkpoint": self.checkpoint,
            "MLflow page": page_command(job.dir.parent),
        }
        figures = result_table({"protocols": self.protocols, "changes": self.changes})
        return f"{figures}\n\n" + "\n".join(f"{k:<12}{v}" for k, v in facts.items())


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What differs in a run that is a trial of a search: it ends with its last evaluation."""

    search_dir: Path
    """Folder of the search, whose MLflow run is the parent."""
    worker_cpus: int
    """CPUs of a worker where there is no GPU, so that the trials of a cluster fit beside each other
    and their data."""


def fit(
    config: TrainConfig, *, on_record: OnRecord | None = None, trial: Trial | None = None
) -> Outcome | None:
    """Train, evaluate and record a run; go on with it if its folder is there.

    `on_record` is called in a thread of this process with every new record. If it returns a word
    the run stops after a checkpoint, is not evaluated, and its outcome is None; the word is its tag
    `outcome` in MLflow. A loss that is not finite is a FloatingPointError.
    """
    return execute(prepare(config), on_record=on_record, trial=trial)


def execute(
    job: Job,
    *,
    verbose: bool = False,
    on_record: OnRecord | None = None,
    trial: Trial | None = None,
) -> Outcome | None:
    """Do what is left of a run; its outcome, or None if `on_record` stopped it."""
    finished = Outcome.read(job.dir)
    if finished:
        log.info("run %r is finished; a new one needs another --name", job.config.name)
        return finished
    job.dir.mkdir(parents=True, exist_ok=True)
    with exclusive(job.dir / LOCK):
        local.clear_unfinished(job.checkpoints)
        if not (job.dir / CONFIG).exists():
            write_json(job.dir / CONFIG, redacted(job.config.flat()))
        with (
            recording(job, trial) as recorder,
            ray_session(room=job.config.workers, verbose=verbose),
        ):
            return train_and_evaluate(job, recorder, on_record, trial)


def train_and_evaluate(
    job: Job, recorder: Recorder, on_record: OnRecord | None, trial: Trial | None
) -> Outcome | None:
    """The part of a run that needs Ray."""
    record_circumstances(recorder, job)
    total, found = job.total_steps, job.latest()
    log_stage(job.num_stages - 1, job.num_stages, describe(job, found))
    rates, words = [0.0], []

    def record(item: dict) -> bool:
        if item["kind"] == "line":
            log.warning(item["text"])
            return False
        if item["kind"].startswith("system"):
            recorder.add(item)
            return False
        rates.append(item.get("images_per_s", rates[-1]))
        if not recorder.add(item):
            return False
        if line := record_line(item, total):
            log.info(line)
        if word := on_record and on_record(item):
            words.append(word)
        return bool(word)

    if not found or found.step < total:
        with run_report_queue(record) as queue:
            train_workers(job, queue, trial)
        found = job.latest()
        if found.step < total:
            recorder.finish("FINISHED", tags={OUTCOME_TAG: words[0]})
            return None
    if trial:
        return conclude(job, recorder, found, rates[-1])
    top = local.best(job.checkpoints)
    folder, result = evaluate_best(job, top)
    metrics = result["protocols"]
    recorder.add(
        {
            "kind": "final",
            "step": total,
            **figures(metrics, "final"),
        }
    )
    outcome = Outcome(
        steps=total,
        images_per_s=rates[-1],
        checkpoint=str(top.path),
        protocols=metrics,
        changes=result["changes"],
        evaluation=str(folder),
    )
    outcome.write(job.dir)
    record_result(recorder, job, top, folder, job.dir / RESULT)
    return outcome


def evaluate_best(job: Job, top: local.Checkpoint) -> tuple[Path, dict]:
    """Evaluate the best checkpoint with one crop and with many: the folder and its result."""
    config, eval_model = job.config, EvalModel.open(top.path)
    settings = eval_model.evaluation(
        crops=(config.crops,), batch=config.micro_batch, workers=config.workers
    )
    log_stage(
        job.num_stages,
        job.num_stages,
        f"evaluate {top.path.name}: {', '.join(settings.protocols)}",
    )
    folder = default_folder(eval_model, settings, job.eval)
    return folder, evaluate_model(eval_model, settings, job.eval, folder, Progress())


def conclude(job: Job, recorder: Recorder, last: local.Checkpoint, images_per_s: float) -> Outcome:
    """End a trial with the evaluation at its last step, where its schedule is complete."""
    scores = {name.removeprefix("val/"): value for name, value in last.metrics.items()}
    outcome = Outcome(
        steps=last.step,
        images_per_s=images_per_s,
        checkpoint=str(last.path),
        protocols={CENTER: scores},
    )
    outcome.write(job.dir)
    recorder.finish("FINISHED", tags={OUTCOME_TAG: "done"})
    return outcome


def train_workers(job: Job, queue: ActorHandle, trial: Trial | None) -> None:
    """Run the worker loop on Ray Train until the last step; restarted by Ray after a failure."""
    config = job.config
    each = worker_resources(config, ray.cluster_resources(), trial.worker_cpus if trial else None)
    trainer = TorchTrainer(
        partial(attempt, job, queue),
        scaling_config=ScalingConfig(
            num_workers=(config.min_workers, config.workers)
            if config.min_workers
            else config.workers,
            use_gpu="GPU" in each,
            resources_per_worker=each,
            elastic_resize_monitor_interval_s=RESIZE_S,
        ),
        # the folder is Ray's own; each start is new to Ray, and resumed from our checkpoint
        run_config=RunConfig(
            name=f"start-{time.time_ns()}",
            storage_path=str(job.dir / "ray"),
            failure_config=FailureConfig(max_failures=config.max_restarts),
            callbacks=[FailureLogger(queue)],
        ),
    )
    thread = ThreadPoolExecutor(1, "trainer")
    fitted = thread.submit(trainer.fit)
    try:
        fault = fitted.result().return_value
    except KeyboardInterrupt:
        log.info("stopping after a checkpoint; once more stops at once")
        queue.stop.remote()
        wait([fitted], timeout=GRACE_S)
        raise
    except WorkerGroupError as error:
        told = "; ".join(failures(error.worker_failures))
        raise RuntimeError(
            f"training failed: {told}. The last checkpoint is untouched: the same command goes on"
        ) from error
    finally:
        thread.shutdown(wait=False)
    if fault:
        raise FloatingPointError(fault)


class FailureLogger(UserCallback):
    """Tells the console of failures that Ray Train answers with a restart."""

    def __init__(self, queue: ActorHandle) -> None:
        """For the queue of the driver."""
        self._queue = queue

    def after_exception(self, run_context: object, worker_exceptions: dict[int, Exception]) -> None:
        """Name each worker's failure in a line."""
        for failure in failures(worker_exceptions):
            self._queue.say.remote(failure)
        self._queue.say.remote("training goes on from the last checkpoint, if restarts are left")


def failures(exceptions: Mapping[int, Exception]) -> list[str]:
    """The last line of each worker's exception, which is where Ray's tracebacks end."""
    lines = {rank: str(error).strip().splitlines() for rank, error in exceptions.items()}
    return [
        f"worker {rank} failed: {lines[rank][-1] if lines[rank] else type(error).__name__}"
        for rank, error in sorted(exceptions.items())
    ]


def describe(job: Job, found: local.Checkpoint | None) -> str:
    """One line on what is about to be trained, and from where."""
    config, samples = job.config, job.train.slices.samples
    place = f"from {found.path.name}" if found else "from the start"
    return (
        f"train    {samples:,} images, {config.model.num_classes:,} classes, "
        f"{job.total_steps:,} steps of {config.global_batch} on {config.workers} workers, {place}"
    )


@contextlib.contextmanager
def recording(job: Job, trial: Trial | None) -> Iterator[Recorder]:
    """The record of a run; closed as failed or killed if the block is left by an exception."""
    recorder = Recorder(
        job.dir,
        name=job.config.name,
        experiment=job.config.experiment,
        settings=job.config.flat(),
        parent=trial.search_dir if trial else None,
    )
    try:
        yield recorder
    except FloatingPointError:  # of a trial this is the result
        recorder.finish("FINISHED" if trial else "FAILED", tags={OUTCOME_TAG: "diverged"})
        raise
    except KeyboardInterrupt:
        recorder.finish("KILLED")
        raise
    except Exception:
        recorder.finish("FAILED")
        raise


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock of a run; a second process that wants it is a ValueError."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another process trains the run in {path.parent}; wait for it, or take another "
                f"--name"
            ) from None
        yield


class Progress:
    """A line of progress with an ETA, every few seconds."""

    def __init__(self) -> None:
        self._start = self._last = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        """Say that `done` images of `total` are done."""
        now = time.monotonic()
        if now - self._last > PROGRESS_S or done == total:
            self._last = now
            eta = duration((now - self._start) / max(done, 1) * (total - done))
            log.info("%s/%s images  eta %s", f"{done:,}", f"{total:,}", eta)


def write_json(path: Path, value: object) -> None:
    """Write a JSON file, whole or not at all."""
    aside = path.with_suffix(".tmp")
    aside.write_text(json.dumps(value, indent=1))
    aside.replace(path)
