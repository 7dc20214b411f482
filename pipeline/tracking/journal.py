"""The journal of a run on disk: two files that are only ever appended to.

    metrics.jsonl   one line per record of numbers: kind, step, time, names and values
    events.jsonl    one line per start, data set, model, artifact, evaluation and end

Each line is written in one piece, so several processes may write. A line that a crash cut off is
ignored. No secret is written to events.jsonl.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path

from support.files import append_line, read_lines
from support.redact import redacted

RECORDS, EVENTS = "metrics.jsonl", "events.jsonl"


def read_events(run_dir: Path) -> list[dict]:
    """The events of a run, in order."""
    return [event for event, _ in read_lines(run_dir / EVENTS)]


def write_record(run_dir: Path, record: Mapping[str, object]) -> None:
    """Append a record of numbers and the time; a crash may lose the latest system metrics."""
    durable = not str(record["kind"]).startswith("system")
    append_line(run_dir / RECORDS, {**record, "time": time.time()}, durable=durable)


def write_event(run_dir: Path, event: str, **facts: object) -> None:
    """Record an event of a run, unless the same event is recorded already.

    Paths inside the run's folder are written relative to it, because the folder may be moved.
    """
    facts = {name: within(run_dir, value) for name, value in facts.items()}
    line = {"event": event, **json.loads(json.dumps(redacted(facts)))}
    recorded = [{k: v for k, v in e.items() if k != "time"} for e in read_events(run_dir)]
    if line not in recorded:
        append_line(run_dir / EVENTS, {**line, "time": time.time()})


def write_artifact(run_dir: Path, path: Path, folder: str = "") -> None:
    """Record that a file, or the content of a folder, belongs in a folder of the MLflow run."""
    # the version makes a changed file a new event
    write_event(run_dir, "artifact", path=path, folder=folder, version=path.stat().st_mtime_ns)


def within(run_dir: Path, value: object) -> object:
    """A path as text, relative to the run's folder if it is inside; other values unchanged."""
    if not isinstance(value, Path):
        return value
    return str(value.relative_to(run_dir) if value.is_relative_to(run_dir) else value)
