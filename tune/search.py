"""A search from a job to its result; the driver's side.

    job -> Ray Tune: trials -> the best ones again with other seeds -> result -> best.json, page

The state of a search is its folder. A resumed search keeps the trials that have ended, continues
those that were running, and continues the same run in MLflow.
"""

import logging
import operator
import os
import time
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path

import ray.tune
from ray.tune import CheckpointConfig, FailureConfig, RunConfig, TuneConfig
from ray.tune.execution.class_cache import ENV_VARS_TO_PROPAGATE
from ray.tune.experiment import Trial
from ray.tune.search import Searcher

from pipeline import run
from pipeline.cluster.autoscaler import HEAD
from pipeline.cluster.session import ray_session
from pipeline.tracking.recorder import Recorder
from support.files import AlreadyLocked, locked, write_json
from support.redact import NAMED
from tune.config import objectives
from tune.job import SEARCH, SearchJob
from tune.page import BEST, PAGE, write_result
from tune.prepare import check_same, read_job
from tune.result import SearchResult
from tune.search_state import SearchState
from tune.stopper import make_stopper
from tune.trial import Fit, TrialActor, TrialSetup
from tune.trial_log import FAILED, STOPPED, TRIALS, Key, TrialLog
from tune.trial_slots import TrialSlots

log = logging.getLogger(__name__)

# Ray Tune would send the keys of AWS in the environment of its actors, which logs and the dashboard
# show; the nodes have keys of their own
ENV_VARS_TO_PROPAGATE.difference_update(set(filter(NAMED.search, ENV_VARS_TO_PROPAGATE)))

LOCK = "search.lock"
# memory of the process that drives a trial, mostly its imports
TRIAL_BYTES = 512 * 2**20
# times that a trial's driver may die and be restarted from the last checkpoint
MAX_DEATHS = 2
# seconds to wait until the trials of a dead driver release their folders
PATIENCE_S = 30.0


def open_folder(job: SearchJob, *, resume: bool) -> None:
    """Create the folder of a search, or check that it holds the search to resume."""
    path = job.dir / SEARCH
    if resume:
        check_same(read_job(job.dir), job)
    elif path.exists():
        raise ValueError(
            f"search {job.name!r} already exists in {job.dir}; continue it with --resume, or "
            f"choose another --name"
        )
    job.dir.mkdir(parents=True, exist_ok=True)
    write_json(path, job.flat())


def run_search(job: SearchJob, *, verbose: bool = False, fit: Fit = run.fit) -> SearchResult:
    """Run the trials that have not ended, and write the result into the folder of the search."""
    with locked(job.dir / LOCK, f"another process runs the search in {job.dir}; wait for it"):
        trial_log = TrialLog(job.dir / TRIALS)
        recorder = Recorder(
            job.dir,
            name=job.name,
            experiment=job.run.experiment,
            settings={
                **job.run.flat(),
                **{f"search.{k}": v for k, v in job.config.flat().items()},
                **{f"space.{k}": str(v) for k, v in job.space.dimensions.items()},
            },
        )
        state = SearchState(job, trial_log, recorder)
        try:
            with ray_session(extra_cpus=max(os.cpu_count(), job.config.workers), verbose=verbose):
                run_all(job, state, fit)
            result = write_result(job)
        except (Exception, KeyboardInterrupt) as error:
            recorder.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            raise
        recorder.finish("FINISHED", {job.dir / name: "" for name in (BEST, PAGE, TRIALS, SEARCH)})
    return result


def run_all(job: SearchJob, state: SearchState, fit: Fit) -> None:
    """Run the trials of the search, then the best ones with other seeds."""
    config = job.config
    slots = TrialSlots.here(workers=config.workers, wanted=config.concurrent)
    log.info("trials   %d at the same time, %d workers each", slots.trials, config.workers)
    if slots.idle_gpus:
        log.info("idle     %d GPUs; --workers gives each trial more", slots.idle_gpus)
    wait_until_free(path.parent for path in job.dir.glob(f"trials/*/{run.LOCK}"))
    state.wait_for_parent()
    trial = run.Trial(search_dir=job.dir, worker_cpus=slots.worker_cpus)
    setup = TrialSetup(trial=trial, search=config, longest_warmup=job.longest_warmup, fit=fit)
    trials = [(number, 0) for number in range(config.trials)]
    run_trials(state, setup, slots, state.unfinished(trials), stops=True)
    best = state.best_numbers()
    repeats = [(number, repeat) for number in best for repeat in range(1, config.seeds)]
    if repeats:
        log.info("seeds    %d runs of the best with other seeds", len(repeats))
    run_trials(state, setup, slots, state.unfinished(repeats), stops=False)


def run_trials(
    state: SearchState, setup: TrialSetup, slots: TrialSlots, keys: Sequence[Key], *, stops: bool
) -> None:
    """Run trials on Ray Tune, as many at the same time as there are slots."""
    if not keys:
        return
    objective = setup.search.objective[0]
    actor = ray.tune.with_parameters(TrialActor, setup=setup)
    tuner = ray.tune.Tuner(
        # the workers belong to Ray Train; this process only observes them and takes no core. It is
        # on the head, which is no spot machine, and alone reaches a cluster's MLflow server
        ray.tune.with_resources(actor, {"memory": TRIAL_BYTES, HEAD: 0.001}),
        tune_config=TuneConfig(
            metric=objective,
            mode="max" if objectives()[objective] else "min",
            search_alg=Proposer(state, keys, judged=stops),
            scheduler=make_stopper(setup.search) if stops else None,
            num_samples=len(keys),
            max_concurrent_trials=slots.trials,
            reuse_actors=True,
            trial_dirname_creator=operator.attrgetter("trial_id"),
        ),
        # a folder for Ray alone: each start is new to Ray, and resumed from our trial log
        run_config=RunConfig(
            name=f"start-{time.time_ns()}",
            storage_path=str(setup.trial.search_dir / "ray"),
            failure_config=FailureConfig(max_failures=MAX_DEATHS),
            # the runs write their own
            checkpoint_config=CheckpointConfig(checkpoint_at_end=False),
            callbacks=[TrialCallback(state)],
            verbose=0,
        ),
    )
    tuner.fit()


class Stateless:
    """Pickled without its state: Ray Tune saves it in its own folder and never reads it."""

    def __getstate__(self) -> dict:
        return {}


class Proposer(Stateless, Searcher):
    """Gives Ray Tune the next trial whenever there is a slot for it."""

    def __init__(self, state: SearchState, keys: Sequence[Key], *, judged: bool) -> None:
        super().__init__()
        self._state, self._left, self._judged = state, deque(keys), judged

    def suggest(self, trial_id: str) -> dict[str, object] | str:  # noqa: ARG002
        """The next trial; its sample follows from all trials that have ended by now."""
        if not self._left:
            return Searcher.FINISHED
        return {"task": self._state.begin(self._left.popleft(), judged=self._judged)}

    def on_trial_complete(self, *_: object, **__: object) -> None:
        """Do nothing, since `TrialCallback` logs it; Ray Tune requires the method."""

    def save(self, checkpoint_path: str) -> None:
        """Do nothing, since the state is in the trial log; without it Ray Tune logs a warning."""


class TrialCallback(Stateless, ray.tune.Callback):
    """Logs how each trial ended."""

    def __init__(self, state: SearchState) -> None:
        self._state = state

    def on_trial_complete(self, *_: object, trial: Trial, **__: object) -> None:
        """Log a trial that has ended, or that Tune has stopped."""
        task, result = trial.config["task"], trial.last_result
        status = result.get("status") or STOPPED
        self._state.end((task.number, task.repeat), result, status, result.get("reason", ""))

    def on_trial_error(self, *_: object, trial: Trial, **__: object) -> None:
        """Log a trial whose driver has died too often."""
        task, error = trial.config["task"], trial.get_pickled_error()
        reason = f"{type(error).__name__}: {error}"
        self._state.end((task.number, task.repeat), trial.last_result, FAILED, reason)


def wait_until_free(folders: Iterable[Path]) -> None:
    """Wait until no process of an earlier driver trains in one of the folders."""
    deadline = time.monotonic() + PATIENCE_S
    for folder in folders:
        while True:
            try:
                with locked(folder / run.LOCK, f"another process trains the run in {folder}"):
                    break
            except AlreadyLocked:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
