"""The driver of one run: from settings to an evaluated and recorded checkpoint.

    job -> Ray: workers train -> best checkpoint -> multi-crop evaluation -> result.json

The state of a run is its folder. A run that is started again resumes from the last checkpoint and
continues the same MLflow run. A finished run only shows its result again.

    runs/NAME/config.json  checkpoints/  metrics.jsonl  events.jsonl  mlflow.json  result.json
"""

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping
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
from pipeline.checkpoint.local import Checkpoint
from pipeline.evaluation.config import CENTER
from pipeline.evaluation.evaluate import default_folder, evaluate_model
from pipeline.evaluation.model import EvalModel
from pipeline.outcome import Outcome
from pipeline.reports import OnRecord, Reports
from pipeline.run_events import figures, record_circumstances, record_result
from pipeline.settings.config import TrainConfig
from pipeline.tracking.recorder import Recorder
from pipeline.train.job import CONFIG, Job, prepare
from pipeline.train.report_queue import run_report_queue
from pipeline.train.resources import ray_session, worker_resources
from pipeline.train.worker import attempt
from support.console import Progress, log_stage
from support.files import locked, write_json

log = logging.getLogger(__name__)

LOCK = "run.lock"
# MLflow's tag for how a run ended: "done", "diverged", or the reason of a search to stop it
OUTCOME_TAG = "outcome"

# seconds that an interrupted run gets for its last checkpoint
GRACE_S = 60.0
# seconds between two checks whether an elastic run can get more workers
RESIZE_S = 30.0


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Settings of a run that is a trial of a search, which ends with its last evaluation."""

    search_dir: Path
    """Folder of the search, whose MLflow run is the parent."""
    worker_cpus: int
    """CPUs of a worker without a GPU, so that all concurrent trials and their data tasks fit."""


def fit(
    config: TrainConfig, *, on_record: OnRecord | None = None, trial: Trial | None = None
) -> Outcome | None:
    """Train, evaluate and record a run; resume it if its folder exists.

    `on_record` is called in a thread of this process with every new record. If it returns a reason,
    the run stops after a checkpoint, without an evaluation, and fit returns None. In MLflow the
    reason becomes the tag `outcome`. Raises FloatingPointError if the loss is not finite.
    """
    return execute(prepare(config), on_record=on_record, trial=trial)


def execute(
    job: Job,
    *,
    verbose: bool = False,
    on_record: OnRecord | None = None,
    trial: Trial | None = None,
) -> Outcome | None:
    """Do what is left of a run; returns its outcome, or None if `on_record` stopped it."""
    if outcome := Outcome.read(job.dir):
        log.info("run %r is finished; a new one needs another --name", job.config.name)
        return outcome
    job.dir.mkdir(parents=True, exist_ok=True)
    message = f"another process trains the run in {job.dir}; wait for it, or choose another --name"
    with locked(job.dir / LOCK, message):
        local.clear_unfinished(job.checkpoints)
        if not (job.dir / CONFIG).exists():
            write_json(job.dir / CONFIG, job.config.flat())
        with (
            recording(job, trial) as recorder,
            ray_session(extra_cpus=job.config.workers, verbose=verbose),
        ):
            return train_and_evaluate(job, recorder, on_record, trial)


def train_and_evaluate(
    job: Job, recorder: Recorder, on_record: OnRecord | None, trial: Trial | None
) -> Outcome | None:
    """Do what is left of a run, with Ray running."""
    record_circumstances(recorder, job)
    last = job.latest()
    log_stage(job.num_stages - 1, job.num_stages, describe(job, last))
    reports = Reports(recorder, job.total_steps, on_record)
    if not last or last.step < job.total_steps:
        with run_report_queue(reports) as queue:
            train_workers(job, queue, trial)
        last = job.latest()
        if last.step < job.total_steps:
            recorder.finish("FINISHED", tags={OUTCOME_TAG: reports.stop_reason})
            return None
    if trial:
        return finish_trial(job, recorder, last, reports.images_per_s)
    best = local.best(job.checkpoints)
    folder, result = evaluate_best(job, best)
    metrics = figures(result["protocols"], "final")
    recorder.add({"kind": "final", "step": job.total_steps, **metrics})
    outcome = Outcome(
        steps=job.total_steps,
        images_per_s=reports.images_per_s,
        checkpoint=str(best.path),
        protocols=result["protocols"],
        changes=result["changes"],
        evaluation=str(folder),
    )
    outcome.write(job.dir)
    record_result(recorder, job, best, folder)
    return outcome


def evaluate_best(job: Job, best: Checkpoint) -> tuple[Path, dict]:
    """Evaluate the best checkpoint with one crop and with many; returns the folder and result."""
    config, eval_model = job.config, EvalModel.open(best.path)
    settings = eval_model.evaluation(
        crops=(config.crops,), batch=config.micro_batch, workers=config.workers
    )
    stage = f"evaluate {best.path.name}: {', '.join(settings.protocols)}"
    log_stage(job.num_stages, job.num_stages, stage)
    folder = default_folder(eval_model, settings, job.eval)
    return folder, evaluate_model(eval_model, settings, job.eval, folder, Progress("evaluate"))


def finish_trial(job: Job, recorder: Recorder, last: Checkpoint, images_per_s: float) -> Outcome:
    """End a trial; its result is the evaluation at the last step, at the end of the schedule."""
    metrics = {name.removeprefix("val/"): value for name, value in last.metrics.items()}
    outcome = Outcome(
        steps=last.step,
        images_per_s=images_per_s,
        checkpoint=str(last.path),
        protocols={CENTER: metrics},
    )
    outcome.write(job.dir)
    recorder.finish("FINISHED", tags={OUTCOME_TAG: "done"})
    return outcome


def train_workers(job: Job, queue: ActorHandle, trial: Trial | None) -> None:
    """Run the worker loop on Ray Train until the last step; Ray restarts it after a failure."""
    config = job.config
    each = worker_resources(config, ray.cluster_resources(), trial.worker_cpus if trial else None)
    elastic = (config.min_workers, config.workers)
    trainer = TorchTrainer(
        partial(attempt, job, queue),
        scaling_config=ScalingConfig(
            num_workers=elastic if config.min_workers else config.workers,
            use_gpu="GPU" in each,
            resources_per_worker=each,
            elastic_resize_monitor_interval_s=RESIZE_S,
        ),
        # only Ray uses this folder; each start is new to Ray, and resumes from our checkpoint
        run_config=RunConfig(
            name=f"start-{time.time_ns()}",
            storage_path=str(job.dir / "ray"),
            failure_config=FailureConfig(max_failures=config.max_restarts),
            callbacks=[FailureLogger(queue)],
        ),
    )
    thread = ThreadPoolExecutor(1, "trainer")
    result = thread.submit(trainer.fit)
    try:
        divergence = result.result().return_value
    except KeyboardInterrupt:
        log.info("stopping after a checkpoint; press Ctrl-C again to stop at once")
        queue.stop.remote()
        wait([result], timeout=GRACE_S)
        raise
    except WorkerGroupError as error:
        reasons = "; ".join(failures(error.worker_failures))
        raise RuntimeError(
            f"training failed: {reasons}. The last checkpoint is unchanged; the same command "
            f"resumes from it"
        ) from error
    finally:
        thread.shutdown(wait=False)
    if divergence:
        raise FloatingPointError(divergence)


class FailureLogger(UserCallback):
    """Logs failures after which Ray Train restarts the workers."""

    def __init__(self, queue: ActorHandle) -> None:
        self._queue = queue

    def after_exception(self, run_context: object, worker_exceptions: dict[int, Exception]) -> None:
        """Log one line for each failed worker."""
        for failure in failures(worker_exceptions):
            self._queue.say.remote(failure)
        self._queue.say.remote("training resumes from the last checkpoint, if restarts are left")


def failures(exceptions: Mapping[int, Exception]) -> list[str]:
    """The last line of each worker's exception, which in Ray's tracebacks is the message."""
    return [
        f"worker {rank} failed: {(str(error).strip() or type(error).__name__).splitlines()[-1]}"
        for rank, error in sorted(exceptions.items())
    ]


def describe(job: Job, last: Checkpoint | None) -> str:
    """One line about the training that starts, and its first step."""
    config, samples = job.config, job.train.samples
    start = f"from {last.path.name}" if last else "from the start"
    return (
        f"train    {samples:,} images, {config.model.num_classes:,} classes, "
        f"{job.total_steps:,} steps of {config.global_batch} on {config.workers} workers, {start}"
    )


@contextlib.contextmanager
def recording(job: Job, trial: Trial | None) -> Iterator[Recorder]:
    """Open the record of a run; an exception in the block ends it as failed or killed."""
    recorder = Recorder(
        job.dir,
        name=job.config.name,
        experiment=job.config.experiment,
        settings=job.config.flat(),
        parent=trial.search_dir if trial else None,
    )
    try:
        yield recorder
    except FloatingPointError:  # in a trial this is a result
        recorder.finish("FINISHED" if trial else "FAILED", tags={OUTCOME_TAG: "diverged"})
        raise
    except (KeyboardInterrupt, Exception) as error:
        recorder.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
