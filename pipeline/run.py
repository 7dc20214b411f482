"""The driver of one run: from settings to an evaluated and recorded checkpoint.

    job -> Ray: workers train -> chosen checkpoint -> multi-crop evaluation -> result.json

The state of a run is its folder (`pipeline.checkpoint.run_folder`). A run that is started again, on
this machine or another, resumes from the last checkpoint and continues the same MLflow run. A
finished run only shows its result again.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial

from pipeline.checkpoint.local import CONFIG, Checkpoint
from pipeline.checkpoint.run_folder import LOCK, RunFolder
from pipeline.cluster.session import ray_session
from pipeline.evaluation.config import RESULT
from pipeline.initial_weights import fetched
from pipeline.milestones import milestones
from pipeline.outcome import FINISHED, OUTCOME_TAG, Outcome
from pipeline.report.run_page import PAGE
from pipeline.reports import OnRecord, Reports
from pipeline.run_events import record_circumstances, record_end
from pipeline.run_result import evaluate_chosen, finish, finish_trial
from pipeline.settings.config import TrainConfig
from pipeline.tracking.journal import EVENTS, RECORDS, REFUSED
from pipeline.tracking.mlflow_address import CURSOR
from pipeline.tracking.recorder import Recorder
from pipeline.train.attempts import train_workers
from pipeline.train.job import Job, check_folder, prepare
from pipeline.train.nodes import shared
from pipeline.train.report_queue import run_report_queue
from support.console import log_stage
from support.files import AlreadyLocked, locked, write_json
from support.lease import HASTY_S, PATIENT_S, Lease, LeaseLost, leased

log = logging.getLogger(__name__)

# how much of the record MLflow has, and what it has refused
SENT = (CURSOR, REFUSED)
# the record of a run; the cursor comes first, because it must not be ahead of the journal
JOURNAL = (CURSOR, RECORDS, EVENTS, REFUSED)
# the result comes last, because it says that the run is finished
FILES = (*JOURNAL, "evaluations", PAGE, RESULT)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Settings of a run that is a trial of a search, which ends with its last evaluation."""

    search: RunFolder
    """The search, whose MLflow run is the parent, and whose copy of initial weights is used."""
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
    job = prepared(config, trial.search if trial else None)
    return execute(job, on_record=on_record, trial=trial)


def prepared(config: TrainConfig, search: RunFolder | None = None) -> Job:
    """Check a run, or a trial of a search, before it starts; see `pipeline.train.job.prepare`."""
    return prepare(config, partial(fetched, runs_dir=config.runs_dir), search)


def execute(
    job: Job,
    *,
    verbose: bool = False,
    on_record: OnRecord | None = None,
    trial: Trial | None = None,
) -> Outcome | None:
    """Do what is left of a run; returns its outcome, or None if `on_record` stopped it."""
    job.dir.mkdir(parents=True, exist_ok=True)
    message = f"another process trains the run in {job.dir}; wait for it, or choose another --name"
    with locked(job.dir / LOCK, message), leased(job.folder) as lease:
        job = replace(job, owner=lease.owner)
        job.folder.pull()
        if outcome := Outcome.read(job.dir):
            log.info("run %r is finished; a new one needs another --name", job.config.name)
            publish(job, lease)
            from pipeline.tracking import mlflow_sync  # see Recorder

            with contextlib.suppress(AlreadyLocked):  # another process sends it
                mlflow_sync.sync(job.dir, job.folder.models)
            publish(job, lease, SENT)
            return outcome
        check_folder(job)  # another driver may have had the run since the first look
        for checkpoints in (job.checkpoints, job.folder.models):
            checkpoints.clear_unfinished()
        weights = job.weights and job.weights.placed(job.folder)
        job, start = replace(job, weights=weights), weights and weights.place
        with (
            ray_session(extra_cpus=job.config.workers, verbose=verbose),
            shared(job.folder.place, data=job.locations, init_from=start) as view,
            recording(job, lease, trial) as recorder,
        ):
            write_json(job.dir / CONFIG, job.config.flat())  # some may have changed
            job.folder.push(CONFIG)
            record_circumstances(recorder, job)
            own_cpus = trial.worker_cpus if trial else None
            publish_page = partial(publish, job, lease, (*JOURNAL, PAGE), HASTY_S)
            with nullcontext() if trial else milestones(job, publish_page) as note:
                reports = Reports(recorder, job.total_steps, on_record, note)
                last = train(job, reports, lease, partial(train_workers, job, view, own_cpus))
                is_complete = last.step >= job.total_steps
                # it may take an hour, in which the last checkpoint is recorded
                result = evaluate_chosen(job) if is_complete and not trial else None
            if not is_complete:
                end(recorder, job, trial, FINISHED, {OUTCOME_TAG: reports.stop_reason})
                return None
            return finish(job, recorder, *result) if result else finish_trial(job, recorder, last)


def train(job: Job, reports: Reports, lease: Lease, run_workers: Callable[..., None]) -> Checkpoint:
    """Train what is left, to the last step or until the run is stopped; the newest checkpoint."""
    last = job.checkpoints.latest()
    log_stage(job.num_stages - 1, job.num_stages, describe(job, last))
    if job.weights and not last:
        log.info("init_from   %s", job.weights.loaded)
    if last and last.step >= job.total_steps:
        return last
    flush, every_s = partial(publish, job, lease, JOURNAL), job.config.record.system_every_s

    def record(report: dict) -> str | None:
        if lease.lost:
            lease.check()
        return reports(report)

    with run_report_queue(record, flush, sample_every_s=every_s) as queue:
        run_workers(queue, lambda: reports.fatal)
    last = job.checkpoints.latest()
    if not last:
        raise RuntimeError(f"the workers have ended without a checkpoint in {job.folder.location}")
    return last


def publish(
    job: Job,
    lease: Lease,
    names: Sequence[str] = FILES,
    pauses_s: Sequence[float] = PATIENT_S,
) -> None:
    """Put files of the run where they count; LeaseLost if another driver has taken over.

    `pauses_s` are the seconds between attempts: few for what records must not wait for.
    """
    lease.check(pauses_s)
    there = (name for name in names if (job.dir / name).exists())
    job.folder.push(*there, pauses_s=pauses_s)


@contextlib.contextmanager
def publishing(job: Job, lease: Lease, names: Sequence[str]) -> Iterator[None]:
    """Publish files when the block ends; after an error, which must not be hidden, the record."""
    try:
        yield
    except BaseException:
        try:
            publish(job, lease, [name for name in names if name in (*JOURNAL, PAGE)])
        except (OSError, LeaseLost) as error:
            log.warning("the end of the record is on this machine only: %s", error)
        raise
    publish(job, lease, names)


def describe(job: Job, last: Checkpoint | None) -> str:
    """One line about the training that starts, and its first step."""
    config, samples = job.config, job.train.samples
    start = f"from {last.path.name}" if last else "from the start"
    return (
        f"train    {samples:,} images, {config.model.num_classes:,} classes, "
        f"{job.total_steps:,} steps of {config.global_batch} on {config.workers} workers, {start}"
    )


@contextlib.contextmanager
def recording(job: Job, lease: Lease, trial: Trial | None) -> Iterator[Recorder]:
    """Open the record of a run, and end it with the block.

    Its end is put where the run is before MLflow is waited for, which may be slow or away.
    """
    recorder = Recorder(
        job.dir,
        name=job.config.name,
        experiment=job.config.experiment,
        settings=job.config.flat(),
        parent=trial.search.path if trial else None,
        models=job.folder.models,
    )
    with contextlib.ExitStack() as last_first:
        last_first.enter_context(publishing(job, lease, SENT))
        last_first.callback(lambda: lease.lost or recorder.close())
        last_first.enter_context(publishing(job, lease, FILES))
        last_first.enter_context(ending(job, recorder, trial))
        yield recorder


@contextlib.contextmanager
def ending(job: Job, recorder: Recorder, trial: Trial | None) -> Iterator[None]:
    """After an exception in the block the record ends as failed or killed."""
    try:
        yield
    except FloatingPointError:  # in a trial this is a result
        status = FINISHED if trial else "FAILED"
        end(recorder, job, trial, status, {OUTCOME_TAG: "diverged"})
        raise
    except LeaseLost:  # the record is that of another driver now
        raise
    except (KeyboardInterrupt, Exception) as error:
        end(recorder, job, trial, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise


def end(
    recorder: Recorder,
    job: Job,
    trial: Trial | None,
    status: str,
    tags: Mapping[str, str] | None = None,
) -> None:
    """End the record of a run that has no result; a trial has neither models nor a page."""
    if trial:
        recorder.end(status, tags=tags)
    else:
        record_end(recorder, job, status, tags)
