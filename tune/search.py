"""A search from its plan to its answer; the driver's side.

    plan -> Ray Tune: rung after rung, then the pairs that confirm -> answer -> best.json, page

The state of a search is its study. A resumed search keeps the trials that have ended, continues
those that were running, and continues the same experiment in Ray Tune and the same run in MLflow.
"""

import contextlib
import dataclasses
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import ray.tune
from ray.tune import CheckpointConfig, ExperimentAnalysis, FailureConfig, RunConfig, TuneConfig
from ray.tune.error import TuneError
from ray.tune.execution.class_cache import ENV_VARS_TO_PROPAGATE
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.logger import JsonLoggerCallback
from ray.tune.search import Searcher
from ray.tune.search.search_generator import SearchGenerator

from pipeline import run
from pipeline.checkpoint.run_folder import fetched_run
from pipeline.cluster.autoscaler import HEAD
from pipeline.cluster.session import ray_session
from pipeline.tracking.journal import EVENTS, RECORDS
from pipeline.tracking.mlflow_sync import CURSOR
from pipeline.tracking.recorder import Recorder
from support.console import duration
from support.files import AlreadyLocked, locked, write_json
from support.lease import leased
from support.redact import NAMED
from tune.actor import Fit, Setup, TrialActor, slots_of, tune_config
from tune.answer import Answer
from tune.ladder import planned
from tune.page import BEST, PAGE, write_answer
from tune.plan import SEARCH, Plan, read_plan, resumed, shown
from tune.slots import Slots
from tune.study import STUDY, Study
from tune.trial import DONE, ENDED, FAILED, RUNNING, Outcome, Trial

log = logging.getLogger(__name__)

# Ray Tune would send the keys of AWS in the environment of its actors, which logs and the dashboard
# show; the nodes have keys of their own
ENV_VARS_TO_PROPAGATE.difference_update(set(filter(NAMED.search, ENV_VARS_TO_PROPAGATE)))

LOCK, TUNE = "search.lock", "tune"
# memory of the process that drives a trial, mostly its imports
TRIAL_BYTES = 512 * 2**20
# times that a trial's driver may die and be restarted from the last checkpoint
MAX_DEATHS = 2
# seconds to wait until the trials of a dead driver release their folders, and until the parent run
# is in MLflow
PATIENCE_S = 30.0
# seconds for which the resources of the cluster are taken to be the same
LOOK_S = 30.0
# trials of an earlier search that are tried first
WARM = 3
# the record of a search; the cursor comes first, because it must not be ahead of the journal
JOURNAL = (CURSOR, RECORDS, EVENTS)


def run_search(
    plan: Plan, *, resume: bool = False, verbose: bool = False, fit: Fit = run.fit
) -> Answer:
    """Run the trials that have not ended, and write the answer into the folder of the search.

    Raises ValueError if the folder holds another search, and RuntimeError if trials have failed.
    """
    plan.dir.mkdir(parents=True, exist_ok=True)
    message = f"another process runs the search in {plan.dir}; wait for it"
    with locked(plan.dir / LOCK, message), leased(plan.folder):
        plan.folder.pull()
        plan = opened(plan, resume=resume)
        with recording(plan) as recorder:
            search = Search(plan, recorder)
            with ray_session(extra_cpus=os.cpu_count() or 1, verbose=verbose):
                search.run(fit)
            answer = write_answer(plan, search.study.trials())
            files = (BEST, PAGE, STUDY, SEARCH)
            recorder.finish("FINISHED", {plan.dir / name: "" for name in files})
            plan.folder.push(*JOURNAL, *files, TUNE)
    return answer


def opened(plan: Plan, *, resume: bool) -> Plan:
    """The plan of a new search, or of the one in its folder, which is to be continued."""
    if (plan.dir / SEARCH).exists():
        if not resume:
            raise ValueError(
                f"search {plan.name!r} already exists in {plan.folder.location}; continue it with "
                f"--resume, or choose another --name"
            )
        return resumed(read_plan(plan.dir), plan)
    if resume:
        raise ValueError(f"there is no search {plan.name!r} in {plan.folder.location} to resume")
    plan = dataclasses.replace(plan, first=tuple(warm_samples(plan)))
    write_json(plan.dir / SEARCH, plan.flat())
    plan.folder.push(SEARCH)
    return plan


def warm_samples(plan: Plan) -> Iterator[dict[str, object]]:
    """The best samples of the earlier searches, as far as the space of this one contains them."""
    for location in plan.config.warm_start:
        folder = fetched_run(location)
        old = read_plan(folder)
        last = [t for t in Study(old, folder).trials() if t.status == DONE and t.sample]
        last.sort(key=lambda t: (-t.rung, old.config.sign * t.value(old.config.objective)))
        samples = [trial.sample for trial in last if plan.space.contains(trial.sample)]
        log.info("warm      %d trials of %s are in the space", len(samples), location)
        yield from [dict(s) for n, s in enumerate(samples) if s not in samples[:n]][:WARM]


@contextlib.contextmanager
def recording(plan: Plan) -> Iterator[Recorder]:
    """The record of the search; an exception in the block ends it as failed or killed."""
    settings = {
        **plan.run.flat(),
        **{f"search.{name}": value for name, value in plan.config.flat().items()},
        **{f"space.{name}": str(value) for name, value in plan.space.dimensions.items()},
        "search.rungs": " ".join(map(str, plan.rungs)),
    }
    experiment = plan.run.experiment
    recorder = Recorder(plan.dir, name=plan.name, experiment=experiment, settings=settings)
    try:
        yield recorder
    except (Exception, KeyboardInterrupt) as error:
        recorder.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise


class Search:
    """The driver's view of a search: its study, its record, and what is running now."""

    def __init__(self, plan: Plan, recorder: Recorder) -> None:
        self.plan, self._recorder = plan, recorder
        self.study = Study(plan, plan.dir)
        self.study.retry_failed()
        self.study.plan(planned(plan, self.study.trials()))
        self.live: set[str] = set()
        """Names of the trials that Ray Tune has, and that have not ended."""
        # ended after Ray Tune last saved its experiment, before an earlier driver died
        self._unknown: list[Trial] = []
        self._slots: dict[int, tuple[float, Slots]] = {}
        self._error: Exception | None = None
        self._record_ended()

    def run(self, fit: Fit) -> None:
        """Run all trials on Ray Tune; RuntimeError if some have failed."""
        left = [t for t in self.study.trials() if t.status not in ENDED]
        if not left:
            return
        self._slots_of(left[0].rung)  # an error if the cluster is too small
        wait_until_free(path.parent for path in self.plan.dir.glob(f"trials/*/{run.LOCK}"))
        self._wait_for_parent()
        IN_PROGRESS[str(self.plan.dir)] = self
        try:
            self._tuner(fit).fit()
        except TuneError as error:  # it has no other name for what went wrong
            self._error = self._error or RuntimeError(f"Ray Tune failed: {error}")
        finally:
            del IN_PROGRESS[str(self.plan.dir)]
        if self._error:
            raise self._error
        trials = self.study.trials()
        if failed := [trial for trial in trials if trial.status == FAILED]:
            reason = failed[0].outcome.reason.splitlines()[0]
            raise RuntimeError(
                f"{len(failed)} trials failed, {failed[0].name} with: {reason}. --resume runs them "
                f"again from their last checkpoints"
            )
        if left := [trial.name for trial in trials if trial.status not in ENDED]:
            raise RuntimeError(f"Ray Tune ended before {', '.join(left)}; --resume runs them")

    def _tuner(self, fit: Fit) -> ray.tune.Tuner:
        """A new experiment of Ray Tune, or the one of an earlier start."""
        ended = {t.name: t.outcome for t in self.study.trials() if t.status in ENDED}
        actor = ray.tune.with_resources(
            ray.tune.with_parameters(TrialActor, setup=Setup(plan=self.plan, ended=ended, fit=fit)),
            # the workers belong to Ray Train; this process only follows them and takes no core. It
            # is on the head, which is no spot machine, and alone reaches a cluster's MLflow server
            {"memory": TRIAL_BYTES, HEAD: 0.001},
        )
        path, config = self.plan.dir / TUNE, self.plan.config
        if ray.tune.Tuner.can_restore(path):
            known = {t.config["trial"]: t for t in ExperimentAnalysis(path).trials}
            self.live = {name for name, trial in known.items() if not trial.is_finished()}
            self._unknown = [
                t for t in self.study.trials() if t.name in ended.keys() - known.keys()
            ]
            return ray.tune.Tuner.restore(str(path), actor, resume_unfinished=True)
        mode = "min" if config.sign > 0 else "max"
        proposer = Proposer(str(self.plan.dir), metric=config.objective, mode=mode)
        return ray.tune.Tuner(
            actor,
            tune_config=TuneConfig(
                metric=config.objective,
                mode=mode,
                search_alg=Proposals(proposer),
                num_samples=-1,
                reuse_actors=True,
                trial_dirname_creator=folder_of,
            ),
            run_config=RunConfig(
                name=TUNE,
                storage_path=str(self.plan.dir),
                failure_config=FailureConfig(max_failures=MAX_DEATHS),
                # the runs write their own
                checkpoint_config=CheckpointConfig(checkpoint_at_end=False),
                callbacks=[JsonLoggerCallback(), TrialCallback(str(self.plan.dir))],
                verbose=0,
            ),
        )

    def propose(self) -> dict[str, object] | str | None:
        """The next trial for Ray Tune; None while none can start, FINISHED after the last."""
        if self._unknown:  # the actor knows how it ended
            return tune_config(self._unknown.pop())
        left = [t for t in self.study.trials() if t.status not in (*ENDED, FAILED)]
        waiting = [t for t in left if t.name not in self.live]
        if not waiting:
            return None if self.live else Searcher.FINISHED
        if len(self.live) >= self._slots_of(waiting[0].rung).trials:
            return None
        # those that were running when an earlier driver died come first
        orphans = [trial for trial in waiting if trial.status == RUNNING]
        trial = orphans[0] if orphans else self.study.begin()
        self.live.add(trial.name)
        return tune_config(trial)

    def end(self, name: str, outcome: Outcome) -> None:
        """Record how a trial ended, and plan what follows from it."""
        if not self.study.end(name, outcome):
            return
        self.study.plan(planned(self.plan, self.study.trials()))
        self._record_ended()
        trials = self.study.trials()
        ended = sum(trial.status in ENDED for trial in trials)
        (trial,) = (trial for trial in trials if trial.name == name)
        value = outcome.values.get(self.plan.config.objective, float("nan"))
        reason = f"  {outcome.reason.splitlines()[0]}" if outcome.reason else ""
        text = "%s  %-8s  %s %.4f  %s  %s  (%d of %d)%s"
        log.info(text, name, outcome.status, self.plan.config.objective, value, shown(trial.sample),
                 duration(outcome.seconds), ended, self._total, reason)  # fmt: skip
        self.plan.folder.push(
            *(name for name in (STUDY, *JOURNAL) if (self.plan.dir / name).exists())
        )

    def guarded(self, step: Callable[..., object], *arguments: object) -> object:
        """Do a step for Ray Tune; after an error, such as a full disk, no other is done.

        What is running then ends, and the error is raised by `run`: Ray Tune would wrap it. A study
        of which a line was cut off must not be written to before it is opened anew.
        """
        if not self._error:
            try:
                return step(*arguments)
            except (OSError, ValueError, RuntimeError) as error:
                self._error = error
        return None if self.live else Searcher.FINISHED

    @property
    def _total(self) -> int:
        return sum(rung.trials for rung in self.plan.rungs) + 2 * self.plan.config.seeds

    def _slots_of(self, rung: int) -> Slots:
        """The slots of a rung; the cluster is looked at again after LOOK_S, as it may grow."""
        looked, slots = self._slots.get(rung, (-LOOK_S, None))
        if time.monotonic() - looked >= LOOK_S or slots is None:
            found = slots_of(self.plan, rung)
            if found != slots:
                log.info(
                    "rung %d    at 1/%g of the run: %d trials at the same time, each on %d x %s",
                    *(rung + 1, 1 / self.plan.horizon(rung)),
                    *(found.trials, found.workers, found.device),
                )
            slots = found
            self._slots[rung] = time.monotonic(), slots
        return slots

    def _record_ended(self) -> None:
        """Record the ended trials in the parent run; the recorder skips what it has already."""
        ended = [trial for trial in self.study.trials() if trial.status in ENDED]
        for count, trial in enumerate(sorted(ended, key=lambda t: t.outcome.ended), start=1):
            objective = self.plan.config.objective
            value = trial.value(objective)
            values = {} if value is None else {f"trial/{objective}": value}
            facts = {"trial/rung": trial.rung + 1, "trial/horizon": self.plan.horizon(trial.rung)}
            self._recorder.add({"kind": "trial", "step": count, **facts, **values})

    def _wait_for_parent(self) -> None:
        """Wait until the parent run is in MLflow; after PATIENCE_S the trials start without it."""
        deadline, path = time.monotonic() + PATIENCE_S, self.plan.dir / CURSOR
        while time.monotonic() < deadline:
            servers = json.loads(path.read_text())["servers"] if path.exists() else {}
            if any(server["run_id"] for server in servers.values()):
                return
            time.sleep(0.1)


IN_PROGRESS: dict[str, Search] = {}
"""The searches of this process by folder: Ray Tune makes its callbacks anew when it restores."""


class Proposer(Searcher):
    """Gives Ray Tune the next trial of the search in a folder; its state is the study."""

    def __init__(self, folder: str, *, metric: str, mode: str) -> None:
        super().__init__(metric=metric, mode=mode)
        self._folder = folder

    def suggest(self, trial_id: str) -> dict[str, object] | str | None:  # noqa: ARG002
        """The next trial."""
        search = IN_PROGRESS[self._folder]
        return search.guarded(search.propose)

    def on_trial_complete(self, *_: object, **__: object) -> None:
        """Do nothing, since `TrialCallback` records it; Ray Tune requires the method."""

    def save_to_dir(self, *_: object, **__: object) -> None:
        """Do nothing, since the state is in the study."""

    def restore_from_dir(self, *_: object, **__: object) -> None:
        """Do nothing, since the state is in the study."""


class Proposals(SearchGenerator):
    """Ray Tune's wrapper of the proposer; an experiment that had ended goes on with new trials."""

    def set_state(self, state: dict[str, object]) -> None:
        """Take up the state of an earlier start."""
        super().set_state({**state, "finished": False})


class TrialCallback(ray.tune.Callback):
    """Records how each trial ended."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def on_trial_complete(self, *_: object, trial: TuneTrial, **__: object) -> None:
        """Record a trial that has ended."""
        names = {field.name for field in dataclasses.fields(Outcome)}
        outcome = Outcome(**{k: v for k, v in trial.last_result.items() if k in names})
        self._end(trial, outcome)

    def on_trial_error(self, *_: object, trial: TuneTrial, **__: object) -> None:
        """Record a trial whose driver has died again and again."""
        lines = str(trial.get_pickled_error() or "its driver died").strip().splitlines()
        self._end(trial, Outcome(status=FAILED, reason=lines[-1], ended=time.time()))

    def _end(self, trial: TuneTrial, outcome: Outcome) -> None:
        search = IN_PROGRESS[self._folder]
        search.live.discard(trial.config["trial"])
        search.guarded(search.end, trial.config["trial"], outcome)


def folder_of(trial: TuneTrial) -> str:
    """Name of the folder of a trial in Ray Tune's experiment."""
    return f"{trial.config['trial']}-{trial.trial_id}"


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
