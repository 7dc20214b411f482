"""The journal of a run on disk: files that are only ever appended to.

    metrics.jsonl   one line per record of numbers: kind, step, time, names and values
    system.jsonl    one line per sample of the machines, in the same form; grows without limit
    events.jsonl    one line per event: start, tags, dataset, model, register, prune, evaluation,
                    artifact, status (the end)
    refused.jsonl   one line per point or event that MLflow has refused

Each line is written in one piece, so several processes may write. A line that a crash cut off is
ignored. No secret is written to events.jsonl. A line {"kind": "rewind", "step": N} in metrics.jsonl
makes the records before it with steps above N void; `valid` leaves them out for all readers.
"""

import functools
import json
import math
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from support.files import append_line, cut_unfinished_line, read_lines
from support.redact import redacted

RECORDS, SAMPLES, EVENTS = "metrics.jsonl", "system.jsonl", "events.jsonl"
# what servers have refused: see `pipeline.tracking.refusals`
REFUSED = "refused.jsonl"
# what a record says besides its numbers
PLACE = ("kind", "step", "time")
# the subjects of events that are tags
TAG = "tag"
# kinds of records
SYSTEM, REWIND = "system", "rewind"
# samples that `read_samples` reads at most
MAX_SAMPLES = 1000
# bytes that are read from the end of a file to find its last line, at first
TAIL_BYTES = 1 << 16

Lines = list[tuple[dict, int]]
"""Lines of a file, each with its end offset."""


def read_events(run_dir: Path) -> list[dict]:
    """The events of a run, in order."""
    return [event for event, _ in read_lines(run_dir / EVENTS)]


def read_records(run_dir: Path, start: int = 0) -> Lines:
    """The valid records of a run from byte `start` on, in order."""
    return valid(read_lines(run_dir / RECORDS, start))


def valid(lines: Iterable[tuple[dict, int]]) -> Lines:
    """The lines that no later rewind makes void, without the rewinds."""
    kept, last_step = [], math.inf
    for line, end in reversed(list(lines)):
        if line["kind"] == REWIND:
            last_step = min(last_step, line["step"])
        elif line["step"] <= last_step:
            kept.append((line, end))
    return kept[::-1]


def read_samples(run_dir: Path, start: int = 0, most: int = MAX_SAMPLES) -> Lines:
    """At most `most` samples of the machines, evenly spread over system.jsonl from byte `start`."""
    path = run_dir / SAMPLES
    if not path.exists():
        return []
    samples, line, end = [], b"", start
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(start)
        for number in range(most):
            place = start + number * (size - start) // most
            if place < end:  # within the line that was read last
                continue
            if place > end + len(line):  # beyond the next line, too
                file.seek(place - 1)
                file.readline()  # the rest of a line
            line = file.readline()
            if not line.endswith(b"\n"):
                break
            end = file.tell()
            samples.append((json.loads(line), end))
    return samples


def numbers(record: Mapping[str, object]) -> dict[str, float]:
    """The numbers of a record, by name, without its place."""
    return {
        name: value
        for name, value in record.items()
        if name not in PLACE and isinstance(value, int | float)
    }


def last_line(path: Path) -> tuple[dict | None, int]:
    """The last complete line of a file and its end, read from the end; None, 0 without one."""
    if not path.exists():
        return None, 0
    with path.open("rb") as file:
        size = file.seek(0, 2)
        for block in (TAIL_BYTES << doubling for doubling in range(64)):
            start = max(0, size - block)
            file.seek(start)
            *lines, unfinished = file.read(size - start).split(b"\n")
            if len(lines) > bool(start):  # the first one may lack its beginning
                return json.loads(lines[-1]), size - len(unfinished)
            if not start:
                break
    return None, 0


def repair(run_dir: Path) -> None:
    """Cut off the lines that a killed driver left unfinished."""
    for name in (RECORDS, SAMPLES, EVENTS, REFUSED):
        cut_unfinished_line(run_dir / name, last_line(run_dir / name)[1])


def write_record(run_dir: Path, record: Mapping[str, object]) -> None:
    """Append a record of numbers and the time; a crash may lose the latest samples."""
    is_sample = record["kind"] == SYSTEM
    line = {**record, "time": time.time()}
    append_line(run_dir / (SAMPLES if is_sample else RECORDS), line, durable=not is_sample)


def rewind(run_dir: Path, step: int) -> None:
    """Make the records after a step void; no process may be recording the run."""
    repair(run_dir)
    write_record(run_dir, {"kind": REWIND, "step": step})


class EventLog:
    """The events of one run; each line is read once, although every new event is compared."""

    def __init__(self, run_dir: Path) -> None:
        self._path, self._lock = run_dir / EVENTS, threading.Lock()
        # what the events so far say: the last value of each subject
        self._end, self._last = 0, {}

    def add(self, line: Mapping[str, object]) -> None:
        """Append an event and the time, unless the events so far say the same."""
        with self._lock:
            for event in self._news():
                if event["event"] == "start":  # readers ask for the tags of a start
                    self._last = {what: v for what, v in self._last.items() if what[0] != TAG}
                self._last |= said(event)
            if not said(line).items() <= self._last.items():
                append_line(self._path, {**line, "time": time.time()})

    def _news(self) -> Iterator[dict]:
        """Events since the last call: another process may write too."""
        if self._end and (not self._path.exists() or self._path.stat().st_size < self._end):
            self._end, self._last = 0, {}  # the folder was made anew
        for event, end in read_lines(self._path, self._end):
            self._end = end
            yield event


@functools.lru_cache(maxsize=16)
def event_log(run_dir: Path) -> EventLog:
    """The one log of a run in this process."""
    return EventLog(run_dir)


def said(event: Mapping[str, object]) -> dict[tuple[str, str], str]:
    """What an event says, by its subject, without its time; a later one may say otherwise.

    Tags and the data of a context have values, which may return to an earlier one. Every other
    event is a subject of its own, and is recorded once.
    """
    if event["event"] == "tags":
        return {(TAG, name): json.dumps(value) for name, value in event["tags"].items()}
    facts = {name: value for name, value in event.items() if name != "time"}
    text = json.dumps(facts, sort_keys=True)
    if event["event"] == "dataset":
        return {("data", event["context"]): text}
    return {("event", text): ""}


def write_event(run_dir: Path, event: str, **facts: object) -> None:
    """Record an event of a run, unless that would say nothing new; see `said`.

    Paths inside the run's folder are written relative to it, because the folder may be moved.
    """
    facts = {name: within(run_dir, value) for name, value in facts.items()}
    event_log(run_dir).add({"event": event, **json.loads(json.dumps(redacted(facts)))})


def write_artifact(run_dir: Path, path: Path, folder: str = "") -> None:
    """Record that a file, or the content of a folder, belongs in a folder of the MLflow run."""
    # the version makes a changed file a new event
    write_event(run_dir, "artifact", path=path, folder=folder, version=path.stat().st_mtime_ns)


def within(run_dir: Path, value: object) -> object:
    """A path as text, relative to the run's folder if it is inside; other values unchanged."""
    if not isinstance(value, Path):
        return value
    return str(value.relative_to(run_dir) if value.is_relative_to(run_dir) else value)
