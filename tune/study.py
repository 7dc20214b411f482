"""The trials of a search as an Optuna study in a file: which were planned, begun and ended.

    study.log   Optuna's journal; optuna-dashboard study.log shows it

The driver of the search is the only writer, and each line is on the disk before anything depends on
it. With a store the file is put there whenever a trial has ended, so a search goes on without the
machine that it began on.
"""

import dataclasses
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import optuna
from optuna import distributions as kinds
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from support.files import cut_unfinished_line, read_lines
from tune.dimension import Choice, Dimension
from tune.plan import Plan
from tune.trial import DIVERGED, DONE, FAILED, RUNNING, WAITING, Outcome, Trial

optuna.logging.set_verbosity(optuna.logging.WARNING)

STUDY = "study.log"
STATES = {DONE: TrialState.COMPLETE, DIVERGED: TrialState.PRUNED, FAILED: TrialState.FAIL}


class Study:
    """The trials of one search, on disk."""

    def __init__(self, plan: Plan, study: optuna.Study) -> None:
        self._space, self._objective = plan.space, plan.config.objective
        self._preset, self._study = plan.preset_sample(), study

    @classmethod
    def open(cls, plan: Plan, folder: Path) -> Self:
        """Open or create it to go on; a line that a killed driver left incomplete is cut off."""
        path = folder / STUDY
        ends = [end for _, end in read_lines(path)]
        cut_unfinished_line(path, ends[-1] if ends else 0)
        direction = "maximize" if plan.config.sign < 0 else "minimize"
        where = {"study_name": plan.name, "storage": storage(path)}
        return cls(plan, optuna.create_study(**where, direction=direction, load_if_exists=True))

    @classmethod
    def read(cls, plan: Plan, folder: Path) -> Self:
        """Read it without a change: its driver may be at work. FileNotFoundError without one."""
        if not (folder / STUDY).exists():
            raise FileNotFoundError(f"{folder} has no {STUDY}: the search has not begun")
        return cls(plan, optuna.load_study(study_name=plan.name, storage=storage(folder / STUDY)))

    def trials(self) -> list[Trial]:
        """All trials in the order in which they were planned."""
        return [trial_of(frozen) for frozen in self._latest().values()]

    def _latest(self) -> dict[str, FrozenTrial]:
        """The last record of each trial: one that failed is recorded anew when it runs again."""
        frozen = self._study.get_trials(deepcopy=False)
        return {one.user_attrs["trial"]: one for one in frozen}

    def plan(self, trials: Sequence[Trial]) -> None:
        """Add the trials that are not in the study."""
        known = self._latest()
        for trial in trials:
            if trial.name not in known:
                self._enqueue(trial)

    def retry(self, *names: str) -> None:
        """Plan trials that have failed once more, by default all; they go on from checkpoints."""
        for trial in self.trials():
            if trial.status == FAILED and (not names or trial.name in names):
                self._enqueue(trial)

    def _enqueue(self, trial: Trial) -> None:
        facts = {name: getattr(trial, name) for name in ("rung", "place", "sample", "seed")}
        sample = trial.sample if trial.sample is not None else self._preset
        params = {name: encoded(v) for name, v in sample.items()}
        self._study.enqueue_trial(params, user_attrs={"trial": trial.name, **facts})

    def begin(self) -> Trial | None:
        """Begin the next trial that is waiting; None if there is none."""
        waiting = [one for one in self._latest().values() if one.state == TrialState.WAITING]
        if not waiting:
            return None
        first = min(waiting, key=lambda one: one.number)  # as `ask` takes them
        params = first.system_attrs["fixed_params"]
        asked = {name: distribution(self._space.dimensions[name]) for name in params}
        with warnings.catch_warnings():  # the preset may lie outside of the space
            warnings.filterwarnings("ignore", "Fixed parameter")
            self._study.ask(asked)
        return dataclasses.replace(trial_of(first), status=RUNNING)

    def end(self, name: str, outcome: Outcome) -> bool:
        """Record how a trial ended; False if that is known already."""
        frozen = self._latest()[name]
        if frozen.state != TrialState.RUNNING:
            return False
        value = outcome.values.get(self._objective) if outcome.status == DONE else None
        if value is not None and not math.isfinite(value):
            reason, value = f"{self._objective} is {value}", None
            outcome = dataclasses.replace(outcome, status=DIVERGED, reason=reason)
        trial = optuna.Trial(self._study, frozen._trial_id)  # noqa: SLF001 - one of an earlier process
        trial.set_user_attr("outcome", dataclasses.asdict(outcome))
        self._study.tell(frozen.number, value, STATES[outcome.status])
        return True


def storage(path: Path) -> JournalStorage:
    """Optuna's journal in a file."""
    return JournalStorage(JournalFileBackend(str(path)))


def trial_of(frozen: FrozenTrial) -> Trial:
    """A trial from Optuna's record of it."""
    attrs = frozen.user_attrs
    outcome = Outcome(**attrs["outcome"]) if "outcome" in attrs else None
    state = RUNNING if frozen.state == TrialState.RUNNING else WAITING
    return Trial(
        **{name: attrs[name] for name in ("rung", "place", "sample", "seed")},
        status=outcome.status if outcome and frozen.state.is_finished() else state,
        outcome=outcome,
    )


def distribution(dimension: Dimension) -> kinds.BaseDistribution:
    """A dimension as Optuna's distribution."""
    if isinstance(dimension, Choice):
        return kinds.CategoricalDistribution([*map(encoded, dimension.options)])
    if dimension.whole:
        return kinds.IntDistribution(int(dimension.low), int(dimension.high))
    return kinds.FloatDistribution(dimension.low, dimension.high, log=dimension.log)


def encoded(value: object) -> object:
    """A value as Optuna takes it: an option that is a list becomes text."""
    return json.dumps(value) if isinstance(value, list | tuple | Mapping) else value
