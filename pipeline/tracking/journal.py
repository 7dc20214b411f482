"""What happened to a run, on disk: two files to which lines are only ever added.

    metrics.jsonl   a line for each record of numbers: kind, step, time, names and values
    events.jsonl    a line for each start, data set, model, artifact, evaluation and end

Each line is written in one piece, so several processes may write; a line that was cut off by a
crash is no line. Nothing that is a secret gets into events.jsonl.
"""

import errno
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from support.redact import redacted

RECORDS, EVENTS = "metrics.jsonl", "events.jsonl"


def read_lines(path: Path, start: int = 0) -> Iterator[tuple[dict, int]]:
    """Complete lines of a journal from byte `start` on, each with the byte after it."""
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(start)
        for line in file:
            if not line.endswith(b"\n"):
                return
            start += len(line)
            yield json.loads(line), start


def read_events(run_dir: Path) -> list[dict]:
    """What happened to a run, in order."""
    return [event for event, _ in read_lines(run_dir / EVENTS)]


def write_line(path: Path, line: Mapping[str, object]) -> None:
    """Append a line in one piece, with the time; other processes may append to the file too.

    A disk without room for all of it is an OSError, and leaves the file as it was.
    """
    data = json.dumps({**line, "time": time.time()}).encode() + b"\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        written = os.write(descriptor, data)
        if written < len(data):
            # the next line would be appended to this piece, and neither could be read again
            os.ftruncate(descriptor, os.fstat(descriptor).st_size - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    finally:
        os.close(descriptor)


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
    write_line(run_dir / EVENTS, line)


def within(run_dir: Path, value: object) -> object:
    """A path as it is to be written; any other value as it is."""
    if not isinstance(value, Path):
        return value
    return str(value.relative_to(run_dir) if value.is_relative_to(run_dir) else value)
