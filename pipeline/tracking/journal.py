"""What happened to a run, on disk: two files to which lines are only ever added.

    metrics.jsonl   one line for each record of numbers: kind, step, time, names and values
    events.jsonl    one line for each start, data set, model, artifact, evaluation and end

Each line is written in one piece, so several processes may write; a line that a crash cut off does
not count. No secret is written to events.jsonl.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path

from support.files import append_line, read_lines
from support.redact import redacted

RECORDS, EVENTS = "metrics.jsonl", "events.jsonl"


def read_events(run_dir: Path) -> list[dict]:
    """What happened to a run, in order."""
    return [event for event, _ in read_lines(run_dir / EVENTS)]


def write_record(run_dir: Path, record: Mapping[str, object]) -> None:
    """Append a record of numbers with the time; samples of the machines may be lost in a crash."""
    durable = not str(record["kind"]).startswith("system")
    append_line(run_dir / RECORDS, {**record, "time": time.time()}, durable=durable)


def tell(run_dir: Path, event: str, **facts: object) -> None:
    """Write an event of a run, unless the very same one is there.

    Places in the folder of the run are written relative to it, for it may be moved.
    """
    facts = {name: within(run_dir, value) for name, value in facts.items()}
    line = {"event": event, **json.loads(json.dumps(redacted(facts)))}
    for known in read_events(run_dir):
        del known["time"]
        if known == line:
            return
    append_line(run_dir / EVENTS, {**line, "time": time.time()})


def within(run_dir: Path, value: object) -> object:
    """A path as it is to be written; any other value as it is."""
    if not isinstance(value, Path):
        return value
    return str(value.relative_to(run_dir) if value.is_relative_to(run_dir) else value)
