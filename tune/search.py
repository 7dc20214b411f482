"""A search from a job to its answer; the driver's side.

    job -> Ray Tune: trials -> the best ones again with other seeds -> answer -> best.json, page

A search is its folder: gone on with, it keeps the trials that have ended, goes on with those that
were at work, and with the same run in MLflow.
"""

import logging
import os
import time
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path

import ray.tune
from ray.tune import CheckpointConfig, FailureConfig, RunConfig, TuneConfig
from ray.tune.search import Searcher

from pipeline import run
from pipeline.tracking.recorder import Recorder
from pipeline.train.resources import ray_session
from support.files import AlreadyLocked, locked, write_json
from tune.config import objectives
from tune.job import SEARCH, SearchJob
from tune.prepare import check_same, read_job
from tune.report import BEST, PAGE, write_result
from tune.result import SearchResult
from tune.search_state import Key, SearchState
from tune.stopper import make_stopper
from tune.trial import Fit, TrialActor, TrialSetup
from tune.trial_log import FAILED, TRIALS, TrialLog
from tune.trial_slots import TrialSlots

log = logging.getLogger(__name__)

LOCK = "search.lock"
# memory of the process that follows a trial, mostly its imports
TRIAL_BYTES = 512 * 2**20
# deaths of a trial's driver that are answered with a new one, which goes on from its checkpoint
MAX_DEATHS = 2
# seconds for the trials of a dead driver to let go of their folders
PATIENCE_S = 30.0


def open_folder(job: SearchJob, *, resume: bool) -> None:
    """Begin the folder of a search, or check that it is the one to go on with."""
    path = job.dir / SEARCH
    if resume:
        check_same(read_job(job.dir), job)
    elif path.exists():
        raise ValueError(
            f"search {job.name!r} is in {job.dir} already; go on with it by --resume, or take "
            f"another --name"
        )
    job.dir.mkdir(parents=True, exist_ok=True)
    write_json(path, job.flat())


def run_search(job: SearchJob, *, verbose: bool = False, fit: Fit = run.fit) -> SearchResult:
    """Do what is left of a search, and write its answer into its folder."""
    with locked(job.dir / LOCK, f"another process runs the search in {job.dir}; wait for it"):
        trial_log = TrialLog(job.dir / TRIALS)
        recorder = Recorder(
            job.dir,
            name=job.name,
            experiment=job.run.experiment,
            settings={**job.run.flat(), **settings_of(job)},
        )
        state = SearchState(job, trial_log, recorder)
        try:
            with ray_session(extra_cpus=max(os.cpu_count(), job.config.workers), verbose=verbose):
                run_all(job, state, fit)
            result = write_result(job)
        except KeyboardInterrupt:
            recorder.finish("KILLED")
            raise
        except Exception:
            recorder.finish("FAILED")
            raise
        kept = (BEST, PAGE, TRIALS, SEARCH)
        recorder.finish("FINISHED", {job.dir / name: "" for name in kept})
    return result


def settings_of(job: SearchJob) -> dict[str, object]:
    """What MLflow shows as the parameters of the search, beside those of the run it is for."""
    config = {f"search.{k}": v for k, v in job.config.flat().items()}
    return {**config, **{f"space.{k}": str(v) for k, v in job.space.dimensions.items()}}


def run_all(job: SearchJob, state: SearchState, fit: Fit) -> None:
    """Run the trials of the search, then the best ones with other seeds."""
    config = job.config
    slots = TrialSlots.here(workers=config.workers, wanted=config.concurrent)
    log.info("trials   %d at the same time, %d workers each", slots.trials, config.workers)
    if slots.idle_gpus:
        log.info("idle     %d GPUs; --workers gives each trial more", slots.idle_gpus)
    wait_until_free(path.parent for path in job.dir.glob(f"trials/*/{run.LOCK}"))
    state.wait_for_parent()
    setup = TrialSetup(
        search_dir=job.dir,
        worker_cpus=slots.worker_cpus,
        search=config,
        longest_warmup=job.longest_warmup,
        fit=fit,
    )
    first = [(number, 0) for number in range(config.trials)]
    run_trials(job, state, setup, slots, state.unfinished(first), stops=True)
    again = [
        (number, repeat) for number in state.best_numbers() for repeat in range(1, config.seeds)
    ]
    if again:
        log.info("seeds    %d runs of the best with other seeds", len(again))
    run_trials(job, state, setup, slots, state.unfinished(again), stops=False)


def run_trials(
    job: SearchJob,
    state: SearchState,
    setup: TrialSetup,
    slots: TrialSlots,
    keys: Sequence[Key],
    *,
    stops: bool,
) -> None:
    """Run trials on Ray Tune, as many at the same time as there are slots for."""
    if not keys:
        return
    objective = job.config.objective[0]
    actor = ray.tune.with_parameters(TrialActor, setup=setup)
    tuner = ray.tune.Tuner(
        # the workers are Ray Train's; this process only follows them, and takes no core from them
        ray.tune.with_resources(actor, {"memory": TRIAL_BYTES}),
        tune_config=TuneConfig(
            metric=objective,
            mode="max" if objectives()[objective] else "min",
            search_alg=Proposer(state, keys, judged=stops),
            scheduler=make_stopper(job.config) if stops else None,
            num_samples=len(keys),
            max_concurrent_trials=slots.trials,
            reuse_actors=True,
            trial_dirname_creator=name_of_trial,
        ),
        # the folder is Ray's own; each start is new to Ray, and resumed from our record
        run_config=RunConfig(
            name=f"start-{time.time_ns()}",
            storage_path=str(job.dir / "ray"),
            failure_config=FailureConfig(max_failures=MAX_DEATHS),
            # the runs write their own
            checkpoint_config=CheckpointConfig(checkpoint_at_end=False),
            callbacks=[TrialCallback(state)],
            verbose=0,
        ),
    )
    tuner.fit()


class Proposer(Searcher):
    """Hands Ray Tune one trial after the other."""

    def __init__(self, state: SearchState, keys: Sequence[Key], *, judged: bool) -> None:
        super().__init__()
        self._course, self._left, self._judged = state, deque(keys), judged

    def __getstate__(self) -> dict:
        """Nothing: the copy that Ray Tune keeps in its folder is never read."""
        return {}

    def suggest(self, trial_id: str) -> dict[str, object] | str:  # noqa: ARG002
        """The next trial, decided when there are slots for it."""
        if not self._left:
            return Searcher.FINISHED
        return {"task": self._course.begin(self._left.popleft(), judged=self._judged)}

    def set_search_properties(self, *_: object, **__: object) -> bool:
        """Take what Ray Tune tells; the job says it already."""
        return True

    def on_trial_complete(self, *_: object, **__: object) -> None:
        """The trial log has it."""

    def save(self, checkpoint_path: str) -> None:
        """The trial log has it."""

    def restore(self, checkpoint_path: str) -> None:
        """The trial log has it."""


class TrialCallback(ray.tune.Callback):
    """Tells the state of the search how each trial ended."""

    def __init__(self, state: SearchState) -> None:
        self._course = state

    def __getstate__(self) -> dict:
        """Nothing: the copy that Ray Tune keeps in its folder is never read."""
        return {}

    def on_trial_complete(
        self, iteration: int, trials: list, trial: "ray.tune.experiment.Trial", **_: object
    ) -> None:
        """A trial has ended, or Tune has stopped it."""
        task, result = trial.config["task"], trial.last_result
        status = result.get("status") or "stopped"
        self._course.end((task.number, task.repeat), result, status, result.get("reason", ""))

    def on_trial_error(
        self, iteration: int, trials: list, trial: "ray.tune.experiment.Trial", **_: object
    ) -> None:
        """The process that followed a trial has died too often."""
        task, error = trial.config["task"], trial.get_pickled_error()
        reason = f"{type(error).__name__}: {error}"
        self._course.end((task.number, task.repeat), trial.last_result, FAILED, reason)


def name_of_trial(trial: "ray.tune.experiment.Trial") -> str:
    """Folder of a trial in Ray's own."""
    return trial.trial_id


def wait_until_free(folders: Iterable[Path]) -> None:
    """Wait until no process of an earlier driver trains in one of the folders."""
    deadline = time.monotonic() + PATIENCE_S
    for folder in folders:
        while True:
            try:
                with run.lock(folder):
                    break
            except AlreadyLocked:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
