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
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from ray.tune.error import TuneError
from ray.tune.search import Searcher

from pipeline import run
from pipeline.checkpoint.run_folder import fetched_run
from pipeline.cluster.session import ray_session
from pipeline.tracking.mlflow_sync import CURSOR
from pipeline.tracking.recorder import Recorder
from support.console import duration
from support.files import AlreadyLocked, locked, write_json
from support.lease import Lease, leased
from tune.actor import Fit, Setup, tune_config
from tune.answer import Answer
from tune.ladder import planned
from tune.page import BEST, PAGE, write_answer
from tune.plan import SEARCH, Plan, read_plan, resumed, shown
from tune.slots import Cluster, Slots
from tune.study import STUDY, Study
from tune.trial import DONE, ENDED, FAILED, RUNNING, Outcome, Trial
from tune.tuner import DRIVERS, MAX_DEATHS, TUNE, make_tuner

log = logging.getLogger(__name__)
T = TypeVar("T")

LOCK = "search.lock"
# seconds to wait until the trials of a dead driver release their folders, and until the parent run
# is in MLflow
PATIENCE_S = 30.0
# the share of a trial that is only shown to Ray Tune
KNOWN = Slots(trials=1, workers=1, worker_cpus=1, device="cpu")
# trials of an earlier search that are tried first
WARM = 3


def run_search(
    plan: Plan, *, resume: bool = False, verbose: bool = False, fit: Fit = run.fit
) -> Answer:
    """Run the trials that have not ended, and write the answer into the folder of the search.

    Raises ValueError if the folder holds another search, and RuntimeError if trials have failed.
    """
    plan.dir.mkdir(parents=True, exist_ok=True)
    message = f"another process runs the search in {plan.dir}; wait for it"
    with locked(plan.dir / LOCK, message), leased(plan.folder) as lease:
        plan.folder.pull()
        plan = opened(plan, resume=resume)
        with recording(plan) as recorder:
            search = Search(plan, recorder, lease)
            with ray_session(extra_cpus=os.cpu_count() or 1, verbose=verbose):
                search.run(fit)
            answer = write_answer(plan, search.study.trials(), plan.dir)
            files = (BEST, PAGE, STUDY, SEARCH)
            recorder.finish("FINISHED", {plan.dir / name: "" for name in files})
            plan.folder.push(*run.JOURNAL, *files, TUNE)
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
        last = [t for t in Study.read(old, folder).trials() if t.status == DONE and t.sample]
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

    def __init__(self, plan: Plan, recorder: Recorder, lease: Lease) -> None:
        self.plan, self._recorder, self._lease = plan, recorder, lease
        self.study = Study.open(plan, plan.dir)
        self.study.retry()
        self.study.plan(planned(plan, self.study.trials()))
        # names of the trials that Ray Tune has, and that have not ended
        self._live: set[str] = set()
        # ended trials that Ray Tune does not know: it had not saved them when a driver died
        self._unknown: list[Trial] = []
        self._cluster = Cluster(plan)
        self._error: Exception | None = None
        self._deaths: Counter[str] = Counter()
        self._record_ended(self.study.trials())

    def run(self, fit: Fit) -> None:
        """Run all trials on Ray Tune; RuntimeError if some have failed."""
        if not (left := self._left()):
            return
        self._cluster.slots(left[0].rung)  # an error if the cluster is too small
        wait_until_free(self.plan.trial_folder(trial.name).path for trial in left)
        self._wait_for_parent()
        ended = {t.name: t for t in self.study.trials() if t.status in ENDED}
        outcomes = {name: trial.outcome for name, trial in ended.items()}
        tuner, known = make_tuner(Setup(plan=self.plan, ended=outcomes, fit=fit))
        self._live = {name for name, trial in known.items() if not trial.is_finished()}
        self._unknown = [trial for name, trial in ended.items() if name not in known]
        DRIVERS[str(self.plan.dir)] = self
        try:
            tuner.fit()
        except TuneError as error:  # it has no other name for what went wrong
            self._error = self._error or RuntimeError(f"Ray Tune failed: {error}")
        finally:
            del DRIVERS[str(self.plan.dir)]
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

    def propose(self) -> dict[str, object] | str | None:
        """The next trial for Ray Tune; None while none can start, FINISHED after the last."""
        left = self._guarded(self._left) or []
        if facts := self._guarded(self._next, left):
            return facts
        waits = self._live or (left and not self._error)
        return None if waits else Searcher.FINISHED

    def _left(self) -> list[Trial]:
        """The trials that are still to end in this start."""
        return [t for t in self.study.trials() if t.status not in (*ENDED, FAILED)]

    def _next(self, left: Sequence[Trial]) -> dict[str, object] | None:
        """The next trial of those that are left, if one can start now."""
        if self._unknown:  # the actor knows how it ended
            return tune_config(self._unknown.pop(), KNOWN)
        waiting = [trial for trial in left if trial.name not in self._live]
        if not waiting:
            return None
        slots = self._cluster.slots(waiting[0].rung)
        if not slots or len(self._live) >= slots.trials:
            return None
        # those that were running when an earlier driver died come first
        orphans = [trial for trial in waiting if trial.status == RUNNING]
        trial = orphans[0] if orphans else self.study.begin()
        self._live.add(trial.name)
        return tune_config(trial, slots)

    def end(self, name: str, outcome: Outcome) -> None:
        """Record how a trial ended, and plan what follows from it."""
        self._live.discard(name)
        self._guarded(self._end, name, outcome)

    def die(self, name: str, outcome: Outcome) -> None:
        """Record that the process of a trial has died; it runs again, but not for ever.

        Ray Tune starts a process anew only if it dies after its trial has started.
        """
        self.end(name, outcome)
        self._deaths[name] += 1
        if self._deaths[name] <= MAX_DEATHS:
            self._guarded(self.study.retry, name)

    def _end(self, name: str, outcome: Outcome) -> None:
        if not self.study.end(name, outcome):
            return  # it was known: an earlier driver died before Ray Tune had saved it
        trials = self.study.trials()
        self.study.plan(planned(self.plan, trials))
        self._record_ended(trials)
        (trial,) = (trial for trial in trials if trial.name == name)
        value = outcome.values.get(self.plan.config.objective, float("nan"))
        reason = f"  {outcome.reason.splitlines()[0]}" if outcome.reason else ""
        text = "%s  %-8s  %s %.4f  %s  %s  (%d ended)%s"
        ended = sum(trial.status in ENDED for trial in trials)
        log.info(text, name, outcome.status, self.plan.config.objective, value, shown(trial.sample),
                 duration(outcome.seconds), ended, reason)  # fmt: skip
        self._lease.check()
        self.plan.folder.push(
            *(name for name in (STUDY, *run.JOURNAL) if (self.plan.dir / name).exists())
        )

    def _guarded(self, step: Callable[..., T], *arguments: object) -> T | None:
        """Do a step for Ray Tune; after an error, such as a full disk, no other is done.

        What is running then ends, and the error is raised by `run`: Ray Tune would wrap it. A study
        of which a line was cut off must not be written to before it is opened anew.
        """
        if self._error:
            return None
        try:
            return step(*arguments)
        except (OSError, ValueError, RuntimeError) as error:
            self._error = error
            return None

    def _record_ended(self, trials: Sequence[Trial]) -> None:
        """Record the ended trials in the parent run; the recorder skips what it has already."""
        ended = [trial for trial in trials if trial.status in ENDED]
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


def wait_until_free(folders: Iterable[Path]) -> None:
    """Wait until no process of an earlier driver trains in one of the folders."""
    deadline = time.monotonic() + PATIENCE_S
    for folder in folders:
        while (folder / run.LOCK).exists():
            try:
                with locked(folder / run.LOCK, f"another process trains the run in {folder}"):
                    break
            except AlreadyLocked:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
