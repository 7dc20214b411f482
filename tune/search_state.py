"""The state of a search: what was tried, what is next, and who is told of it.

    Ray Tune asks for a trial -> SearchState decides and keeps it -> ... -> keeps how it ended

Everything is in the trial log before it is anywhere else; the record of the parent run and the
lines on the console follow from it.
"""

import dataclasses
import json
import logging
import time
from collections.abc import Iterable

from pipeline.tracking.mlflow_sync import CURSOR
from pipeline.tracking.recorder import Recorder
from support.console import duration
from tune.config import objectives
from tune.job import SearchJob, shown
from tune.sampler import propose
from tune.trial import Task
from tune.trial_log import DONE, ENDED, FAILED, STARTED, Entry, TrialLog

log = logging.getLogger(__name__)

# seconds for MLflow to take in the parent run before the first trials are begun
PATIENCE_S = 30.0
Key = tuple[int, int]


class SearchState:
    """What the driver knows and writes: trial log, the parent's record, lines on the console."""

    def __init__(self, job: SearchJob, trial_log: TrialLog, recorder: Recorder) -> None:
        self._plan, self._ledger, self._recorder = job, trial_log, recorder
        self._record_ended()

    def unfinished(self, keys: Iterable[Key]) -> list[Key]:
        """Those that are still to be run, those that were begun first."""
        entries = self._ledger.entries
        left = [key for key in keys if key not in entries or entries[key].status not in ENDED]
        return sorted(left, key=lambda key: (key not in entries, key))

    def begin(self, key: Key, *, judged: bool) -> Task:
        """Decide what a trial is, if it was not begun before, and keep it."""
        job, (number, repeat) = self._plan, key
        entry = self._ledger.entries.get(key)
        if not entry:
            entry = self._new_entry(number, repeat)
        if entry.status != STARTED or key not in self._ledger.entries:
            entry = dataclasses.replace(entry, status=STARTED, reason="")
            self._ledger.keep(entry)
        config = job.trial_config(entry.settings, entry.name, repeat)
        return Task(
            number=number,
            repeat=repeat,
            config=config,
            total_steps=config.steps(job.samples),
            warmup=job.warmup_of(entry.settings),
            # the preset's own settings are what all others are held against
            judged=judged and number > 0,
        )

    def _new_entry(self, number: int, repeat: int) -> Entry:
        if repeat:
            first = self._ledger.entries[number, 0]
            return Entry(number=number, repeat=repeat, sample=first.sample, settings=first.settings)
        if number == 0:
            return Entry(number=0, sample=self._plan.baseline_sample(), settings={})
        known = [entry for entry in self._ledger.entries.values() if entry.number != number]
        sample = propose(number, self._plan.space, known, self._plan.config)
        return Entry(number=number, sample=sample, settings=self._plan.settings(sample))

    def end(self, key: Key, result: dict, status: str, reason: str) -> None:
        """Keep how a trial ended."""
        entry = dataclasses.replace(
            self._ledger.entries[key],
            status=status,
            reason=reason,
            values=result.get("values", {}),
            step=result.get("trained_steps", 0),
            images=result.get("images", 0),
            seconds=round(result.get("seconds", 0.0), 1),
            ended=time.time(),
        )
        self._ledger.keep(entry)
        self._record_ended()
        log.info("%s", self._line(entry))

    def best_numbers(self) -> list[int]:
        """Numbers to be run with more seeds: the best ones, and the preset's own settings."""
        objective = self._plan.config.objective[0]
        sign = 1 if objectives()[objective] else -1
        done = [e for e in self._ledger.entries.values() if e.status == DONE and not e.repeat]
        done.sort(key=lambda e: (sign * e.values[objective], -e.values["val/loss"]), reverse=True)
        numbers = [entry.number for entry in done[: self._plan.config.top]]
        return list(dict.fromkeys([*numbers, *(e.number for e in done if e.number == 0)]))

    def wait_for_parent(self) -> None:
        """Wait until MLflow has the parent run; the trials wait for it longer if it does not."""
        deadline = time.monotonic() + PATIENCE_S
        while not self._is_known() and time.monotonic() < deadline:
            time.sleep(0.1)

    def _is_known(self) -> bool:
        path = self._plan.dir / CURSOR
        servers = json.loads(path.read_text())["servers"] if path.exists() else {}
        return any(server["run_id"] for server in servers.values())

    def _record_ended(self) -> None:
        """Give the parent's record what has ended; what it has already it leaves out."""
        objective = self._plan.config.objective[0]
        ended = [e for e in self._ledger.entries.values() if e.status in ENDED]
        for count, entry in enumerate(sorted(ended, key=lambda e: e.ended), start=1):
            values = {f"trial/{name}": value for name, value in entry.values.items()}
            record = {"kind": "trial", "step": count, "trial/number": entry.number, **values}
            done = [e.values[objective] for e in ended if e.status == DONE]
            if done:
                record["best"] = (max if objectives()[objective] else min)(done)
            self._recorder.add(record)

    def _line(self, entry: Entry) -> str:
        entries = self._ledger.entries.values()
        ended = sum(e.status in (*ENDED, FAILED) for e in entries)
        scores = "  ".join(
            f"{name} {entry.values[name]:.4g}"
            for name in self._plan.config.objective
            if name in entry.values
        )
        return (
            f"{entry.name:<17}  {entry.status:<8}  {scores}  {shown(entry.sample)}  "
            f"{duration(entry.seconds)}  ({ended} ended){'  ' if entry.reason else ''}"
            f"{entry.reason.splitlines()[0] if entry.reason else ''}"
        )
