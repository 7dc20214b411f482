"""The state of a search: which trials were run, which are next, and the records about them.

    Ray Tune asks for a trial -> SearchState chooses and logs it -> ... -> logs how it ended

The trial log is written first. The record of the parent run and the console lines follow from it.
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
from tune.result import groups_of
from tune.sampler import propose
from tune.trial import Task
from tune.trial_log import DONE, ENDED, FAILED, STARTED, Entry, Key, TrialLog

log = logging.getLogger(__name__)

# seconds to wait for the parent run in MLflow before the first trials start
PATIENCE_S = 30.0


class SearchState:
    """The driver's view of a search: trial log, record of the parent run, console lines."""

    def __init__(self, job: SearchJob, trial_log: TrialLog, recorder: Recorder) -> None:
        self._job, self._log, self._recorder = job, trial_log, recorder
        self._record_ended()

    def unfinished(self, keys: Iterable[Key]) -> list[Key]:
        """The trials that have not ended; those that were started come first."""
        entries = self._log.entries
        left = [key for key in keys if key not in entries or entries[key].status not in ENDED]
        return sorted(left, key=lambda key: (key not in entries, key))

    def begin(self, key: Key, *, judged: bool) -> Task:
        """Log the start of a trial, with its earlier settings if it was started before."""
        entry = self._log.entries.get(key)
        if entry is None or entry.status != STARTED:
            entry = dataclasses.replace(entry or self._new_entry(*key), status=STARTED, reason="")
            self._log.keep(entry)
        config = self._job.trial_config(entry.settings, entry.name, entry.repeat)
        return Task(
            number=entry.number,
            repeat=entry.repeat,
            config=config,
            total_steps=config.steps(self._job.samples),
            warmup=self._job.warmup_of(entry.settings),
            # the baseline is never stopped: all other settings are compared with it
            judged=judged and entry.number > 0,
        )

    def _new_entry(self, number: int, repeat: int) -> Entry:
        job, entries = self._job, self._log.entries
        if repeat:
            first = entries[number, 0]
            return Entry(number=number, repeat=repeat, sample=first.sample, settings=first.settings)
        if number == 0:
            return Entry(number=0, sample=job.baseline_sample(), settings={})
        sample = propose(number, job.space, list(entries.values()), job.config)
        return Entry(number=number, sample=sample, settings=job.settings(sample))

    def end(self, key: Key, result: dict, status: str, reason: str) -> None:
        """Log how a trial ended."""
        entry = dataclasses.replace(
            self._log.entries[key],
            status=status,
            reason=reason,
            values=result.get("values", {}),
            step=result.get("trained_steps", 0),
            images=result.get("images", 0),
            seconds=round(result.get("seconds", 0.0), 1),
            ended=time.time(),
        )
        self._log.keep(entry)
        self._record_ended()
        log.info("%s", self._line(entry))

    def best_numbers(self) -> list[int]:
        """Trials to run with further seeds: the best ones, and the baseline."""
        firsts = [entry for entry in self._log.entries.values() if not entry.repeat]
        numbers = [group.number for group in groups_of(self._job, firsts)]
        top = numbers[: self._job.config.top]
        return top + [0] if 0 in numbers and 0 not in top else top

    def wait_for_parent(self) -> None:
        """Wait until the parent run is in MLflow; after PATIENCE_S the trials start without it."""
        deadline, path = time.monotonic() + PATIENCE_S, self._job.dir / CURSOR
        while time.monotonic() < deadline:
            servers = json.loads(path.read_text())["servers"] if path.exists() else {}
            if any(server["run_id"] for server in servers.values()):
                return
            time.sleep(0.1)

    def _record_ended(self) -> None:
        """Record the ended trials in the parent run; the recorder skips what it has already."""
        objective = self._job.config.objective[0]
        ended = [e for e in self._log.entries.values() if e.status in ENDED]
        done = [e.values[objective] for e in ended if e.status == DONE]
        best = {"best": (max if objectives()[objective] else min)(done)} if done else {}
        for count, entry in enumerate(sorted(ended, key=lambda e: e.ended), start=1):
            values = {f"trial/{name}": value for name, value in entry.values.items()}
            record = {"kind": "trial", "step": count, "trial/number": entry.number}
            self._recorder.add({**record, **values, **best})

    def _line(self, entry: Entry) -> str:
        num_ended = sum(e.status in (*ENDED, FAILED) for e in self._log.entries.values())
        scores = "  ".join(
            f"{name} {entry.values[name]:.4g}"
            for name in self._job.config.objective
            if name in entry.values
        )
        reason = f"  {entry.reason.splitlines()[0]}" if entry.reason else ""
        return (
            f"{entry.name:<17}  {entry.status:<8}  {scores}  {shown(entry.sample)}  "
            f"{duration(entry.seconds)}  ({num_ended} ended){reason}"
        )
