"""A search from a plan to its answer; the driver's side.

    plan -> Ray Tune: trials -> the best ones again with other seeds -> answer -> best.json, page

A search is its folder: gone on with, it keeps the trials that have ended, goes on with those that
were at work, and with the same run in MLflow.
"""

import dataclasses
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
from tune.config import OBJECTIVES
from tune.job import SEARCH, Plan
from tune.prepare import check_same, read_plan
from tune.report import BEST, PAGE, conclude
from tune.result import Answer
from tune.search_state import Course, Key
from tune.stopper import make_stopper
from tune.trial import Bench, Fit, TrialActor
from tune.trial_log import FAILED, TRIALS, Ledger
from tune.trial_slots import Room

log = logging.getLogger(__name__)

LOCK = "search.lock"
# memory of the process that follows a trial, mostly its imports
TRIAL_BYTES = 512 * 2**20
# deaths of a trial's driver that are answered with a new one, which goes on from its checkpoint
MAX_DEATHS = 2
# seconds for the trials of a dead driver to let go of their folders
PATIENCE_S = 30.0


def open_folder(plan: Plan, *, resume: bool) -> None:
    """Begin the folder of a search, or check that it is the one to go on with."""
    path = plan.dir / SEARCH
    if resume:
        check_same(read_plan(plan.dir), plan)
    elif path.exists():
        raise ValueError(
            f"search {plan.name!r} is in {plan.dir} already; go on with it by --resume, or take "
            f"another --name"
        )
    plan.dir.mkdir(parents=True, exist_ok=True)
    run.write_json(path, plan.flat())


def run_search(plan: Plan, *, verbose: bool = False, fit: Fit = run.fit) -> Answer:
    """Do what is left of a search, and write its answer into its folder."""
    with run.exclusive(plan.dir / LOCK):
        ledger = Ledger(plan.dir / TRIALS)
        recorder = Recorder(
            plan.dir,
            name=plan.name,
            experiment=plan.run.experiment,
            settings={**plan.run.flat(), **settings_of(plan)},
        )
        course = Course(plan, ledger, recorder)
        try:
            with ray_session(room=max(os.cpu_count(), plan.config.workers), verbose=verbose):
                run_all(plan, course, fit)
            found = conclude(plan)
        except KeyboardInterrupt:
            recorder.finish("KILLED")
            raise
        except Exception:
            recorder.finish("FAILED")
            raise
        finally:
            ledger.close()
        kept = (BEST, PAGE, TRIALS, SEARCH)
        recorder.finish("FINISHED", {plan.dir / name: "" for name in kept})
    return found


def settings_of(plan: Plan) -> dict[str, object]:
    """What MLflow shows as the parameters of the search, beside those of the run it is for."""
    config = {f"search.{k}": v for k, v in dataclasses.asdict(plan.config).items()}
    return {**config, **{f"space.{k}": str(v) for k, v in plan.space.dimensions.items()}}


def run_all(plan: Plan, course: Course, fit: Fit) -> None:
    """Run the trials of the search, then the best ones with other seeds."""
    config = plan.config
    room = Room.here(workers=config.workers, wanted=config.concurrent)
    log.info("trials   %d at the same time, %d workers each", room.trials, config.workers)
    if room.idle_gpus:
        log.info("idle     %d GPUs; --workers gives each trial more", room.idle_gpus)
    wait_until_free(plan.dir.glob(f"trials/*/{run.LOCK}"))
    course.wait_for_parent()
    bench = Bench(
        search_dir=plan.dir,
        worker_cpus=room.worker_cpus,
        search=config,
        longest_warmup=plan.longest_warmup,
        fit=fit,
    )
    first = [(number, 0) for number in range(config.trials)]
    run_trials(plan, course, bench, room, course.unfinished(first), stops=True)
    again = [
        (number, repeat) for number in course.best_numbers() for repeat in range(1, config.seeds)
    ]
    if again:
        log.info("seeds    %d runs of the best with other seeds", len(again))
    run_trials(plan, course, bench, room, course.unfinished(again), stops=False)


def run_trials(
    plan: Plan, course: Course, bench: Bench, room: Room, keys: Sequence[Key], *, stops: bool
) -> None:
    """Run trials on Ray Tune, as many at the same time as there is room for."""
    if not keys:
        return
    objective = plan.config.objective[0]
    actor = ray.tune.with_parameters(TrialActor, bench=bench)
    tuner = ray.tune.Tuner(
        # the workers are Ray Train's; this process only follows them, and takes no core from them
        ray.tune.with_resources(actor, {"memory": TRIAL_BYTES}),
        tune_config=TuneConfig(
            metric=objective,
            mode="max" if OBJECTIVES[objective] else "min",
            search_alg=Proposer(course, keys, judged=stops),
            scheduler=make_stopper(plan.config) if stops else None,
            num_samples=len(keys),
            max_concurrent_trials=room.trials,
            reuse_actors=True,
            trial_dirname_creator=name_of_trial,
        ),
        # the folder is Ray's own; each start is new to Ray, and resumed from our record
        run_config=RunConfig(
            name=f"start-{time.time_ns()}",
            storage_path=str(plan.dir / "ray"),
            failure_config=FailureConfig(max_failures=MAX_DEATHS),
            # the runs write their own
            checkpoint_config=CheckpointConfig(checkpoint_at_end=False),
            callbacks=[Clerk(course)],
            verbose=0,
        ),
    )
    tuner.fit()


class Proposer(Searcher):
    """Hands Ray Tune one trial after the other."""

    def __init__(self, course: Course, keys: Sequence[Key], *, judged: bool) -> None:
        super().__init__()
        self._course, self._left, self._judged = course, deque(keys), judged

    def __getstate__(self) -> dict:
        """Nothing: the copy that Ray Tune keeps in its folder is never read."""
        return {}

    def suggest(self, trial_id: str) -> dict[str, object] | str:  # noqa: ARG002
        """The next trial, decided when there is room for it."""
        if not self._left:
            return Searcher.FINISHED
        return {"task": self._course.begin(self._left.popleft(), judged=self._judged)}

    def set_search_properties(self, *_: object, **__: object) -> bool:
        """Take what Ray Tune tells; the plan says it already."""
        return True

    def on_trial_complete(self, *_: object, **__: object) -> None:
        """The ledger has it."""

    def save(self, checkpoint_path: str) -> None:
        """The ledger has it."""

    def restore(self, checkpoint_path: str) -> None:
        """The ledger has it."""


class Clerk(ray.tune.Callback):
    """Tells the course of the search how each trial ended."""

    def __init__(self, course: Course) -> None:
        self._course = course

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


def wait_until_free(locks: Iterable[Path]) -> None:
    """Wait until no process of an earlier driver holds the lock of a trial."""
    deadline = time.monotonic() + PATIENCE_S
    for path in locks:
        while not is_free(path):
            if time.monotonic() > deadline:
                raise ValueError(f"another process trains the run in {path.parent}; wait for it")
            time.sleep(0.2)


def is_free(path: Path) -> bool:
    """Whether nobody holds a lock."""
    try:
        with run.exclusive(path):
            return True
    except ValueError:
        return False
