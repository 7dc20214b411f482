"""A search from its plan to its answer; the driver's side.

    plan -> Ray Tune: rung after rung, then the pairs that confirm -> answer -> best.json, page

The state of a search is its study. A resumed search keeps the trials that have ended, continues
those that were running, and continues the same experiment in Ray Tune and the same run in MLflow.
"""

import contextlib
import dataclasses
import logging
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from ray.tune.error import TuneError
from ray.tune.search import Searcher

from pipeline import run
from pipeline.checkpoint.run_folder import fetched_run
from pipeline.cluster.session import ray_session
from pipeline.tracking.recorder import Recorder
from pipeline.train.initial import InitialWeights
from support.console import duration
from support.files import AlreadyLocked, locked, write_json
from support.lease import Lease, leased
from tune.actor import Fit, tune_config
from tune.answer import Answer
from tune.ladder import planned, ranked
from tune.page import BEST, PAGE, write_answer
from tune.plan import SEARCH, Plan, read_plan, resumed, shown
from tune.slots import Cluster
from tune.study import STUDY, Study
from tune.trial import ENDED, FAILED, RUNNING, Outcome, Trial
from tune.tuner import DRIVERS, MAX_DEATHS, TUNE, make_tuner

log = logging.getLogger(__name__)

LOCK = "search.lock"
# seconds to wait until the trials of a dead driver release their folders
PATIENCE_S = 30.0
# trials of an earlier search that are tried first
WARM = 3


def run_search(
    plan: Plan,
    *,
    weights: InitialWeights | None = None,
    resume: bool = False,
    verbose: bool = False,
    fit: Fit = run.fit,
) -> Answer:
    """Run the trials that have not ended, and write the answer into the folder of the search.

    Initial `weights` of an address are copied there, once for all trials. Raises ValueError if
    the folder holds another search, and RuntimeError if trials have failed.
    """
    plan.dir.mkdir(parents=True, exist_ok=True)
    message = f"another process runs the search in {plan.dir}; wait for it"
    with locked(plan.dir / LOCK, message), leased(plan.folder) as lease:
        plan.folder.pull()
        plan = opened(plan, resume=resume)
        if weights:
            weights.placed(plan.folder)
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
        trials = ranked(old, Study.read(old, folder).trials())
        samples = [t.sample for t in trials if t.sample and plan.space.contains(t.sample)]
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
        # names of the trials that Ray Tune has, and that have not ended
        self._live: set[str] = set()
        # ended trials that Ray Tune does not know: it had not saved them when a driver died
        self._unknown: list[Trial] = []
        self._cluster = Cluster(plan)
        self._error: Exception | None = None
        self._deaths: Counter[str] = Counter()
        self._advance()

    def run(self, fit: Fit) -> None:
        """Run all trials on Ray Tune; RuntimeError if some have failed."""
        if not (left := self._left()):
            return
        self._cluster.slots(left[0].rung)  # an error if the cluster is too small
        wait_until_free(self.plan.trial_folder(trial.name).path for trial in left)
        ended = {t.name: t for t in self.study.trials() if t.status in ENDED}
        outcomes = {name: trial.outcome for name, trial in ended.items()}
        tuner, known = make_tuner(self.plan, outcomes, fit)
        self._live = {name for name, trial in known.items() if not trial.is_finished()}
        self._unknown = [trial for name, trial in ended.items() if name not in known]
        DRIVERS.append(self)
        try:
            tuner.fit()
        except TuneError as error:  # it has no other name for what went wrong
            self._error = self._error or RuntimeError(f"Ray Tune failed: {error}")
        finally:
            DRIVERS.remove(self)
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
        if not self._error:
            with self._guarded():
                left = self._left()
                if (facts := self._next(left)) or left:
                    return facts
        return None if self._live else Searcher.FINISHED

    def _left(self) -> list[Trial]:
        """The trials that are still to end in this start."""
        return [t for t in self.study.trials() if t.status not in (*ENDED, FAILED)]

    def _next(self, left: list[Trial]) -> dict[str, object] | None:
        """The next trial of those that are left, if one can start now."""
        if self._unknown:  # the actor knows how it ended
            return tune_config(self._unknown.pop())
        waiting = [trial for trial in left if trial.name not in self._live]
        slots = self._cluster.slots(waiting[0].rung) if waiting else None
        if not slots or len(self._live) >= slots.trials:
            return None
        # those that were running when an earlier driver died come first
        orphans = [trial for trial in waiting if trial.status == RUNNING]
        trial = orphans[0] if orphans else self.study.begin()
        self._live.add(trial.name)
        share = {name: getattr(slots, name) for name in ("workers", "worker_cpus", "device")}
        return tune_config(trial) | share

    def end(self, name: str, outcome: Outcome, *, died: bool = False) -> None:
        """Record how a trial ended, and plan what follows from it.

        If its process died, it runs again, but not for ever: Ray Tune starts a process anew only
        if it dies after its trial has started.
        """
        self._live.discard(name)
        self._deaths[name] += died
        if self._error:
            return
        with self._guarded():
            # it may be known: an earlier driver died before Ray Tune had saved it
            if self.study.end(name, outcome):
                self._tell(name, self._advance())
            if died and self._deaths[name] <= MAX_DEATHS:
                self.study.retry(name)

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """A step for Ray Tune; after an error, such as a full disk, no other is done.

        What is running then ends, and the error is raised by `run`: Ray Tune would wrap it. A study
        of which a line was cut off must not be written to before it is opened anew.
        """
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            self._error = error

    def _advance(self) -> list[Trial]:
        """Plan what follows from the trials that have ended, and record these; all trials.

        The recorder of the parent run skips what it has already.
        """
        trials, objective = self.study.trials(), self.plan.config.objective
        self.study.plan(planned(self.plan, trials))
        ended = [trial for trial in trials if trial.status in ENDED]
        for count, trial in enumerate(sorted(ended, key=lambda t: t.outcome.ended), start=1):
            value = trial.value(objective)
            values = {} if value is None else {f"trial/{objective}": value}
            facts = {"trial/rung": trial.rung + 1, "trial/horizon": self.plan.horizon(trial.rung)}
            self._recorder.add({"kind": "trial", "step": count, **facts, **values})
        return trials

    def _tell(self, name: str, trials: list[Trial]) -> None:
        """Show how a trial ended, and put the study and the record where they count."""
        (trial,) = (trial for trial in trials if trial.name == name)
        objective, outcome = self.plan.config.objective, trial.outcome
        log.info(
            "%s  %-8s  %s %.4f  %s  %s  (%d ended)%s",
            *(name, trial.status, objective, outcome.values.get(objective, float("nan"))),
            *(shown(trial.sample), duration(outcome.seconds)),
            sum(trial.status in ENDED for trial in trials),
            f"  {outcome.reason.splitlines()[0]}" if outcome.reason else "",
        )
        self._lease.check()
        files = [name for name in (STUDY, *run.JOURNAL) if (self.plan.dir / name).exists()]
        self.plan.folder.push(*files)


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
