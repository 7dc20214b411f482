"""The record of a search: which trials were begun, and how each ended.

    trials.jsonl: a line when a trial is begun, and one when it has ended; the last one counts

The driver of the search is the only writer, and a line is on the disk before anything rests on it.
So a search goes on after the death of its driver: what has ended is kept, what was begun goes on
from its own checkpoint with the settings it was given.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

TRIALS = "trials.jsonl"
# how a trial stands: at work, through its whole schedule, stopped for being behind, with a loss far
# above its start or not finite, or with an error that is tried again by --resume
STARTED, DONE, STOPPED, DIVERGED, FAILED = "begun", "done", "stopped", "diverged", "failed"
ENDED = (DONE, STOPPED, DIVERGED)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One trial."""

    number: int
    """Place in the search; 0 has the preset's own settings."""
    repeat: int = 0
    """0, or which further seed of this number it is."""
    sample: Mapping[str, object]
    """Value of each dimension of the space."""
    settings: Mapping[str, object]
    """What distinguishes its config from that of the preset carried to the length of a trial."""
    status: str = STARTED
    values: Mapping[str, float] = field(default_factory=dict)
    """Metrics of the last evaluation."""
    step: int = 0
    images: int = 0
    """Images that it was trained on."""
    seconds: float = 0.0
    """Wall time of its run, with the time before an interruption."""
    ended: float = 0.0
    """When it ended, in seconds since the epoch."""
    reason: str = ""

    @property
    def key(self) -> tuple[int, int]:
        """Number and repeat."""
        return self.number, self.repeat

    @property
    def name(self) -> str:
        """Its folder and its name in MLflow."""
        return f"trial-{self.number:03d}" + (f"-seed-{self.repeat}" if self.repeat else "")


class TrialLog:
    """All entries of a search, on disk."""

    def __init__(self, path: Path) -> None:
        """Open the record, or begin it; a line that a killed driver left half-written is cut."""
        self.entries: dict[tuple[int, int], Entry] = {}
        self._file = path.open("a+b")
        self._file.seek(0)
        end = 0
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            end += len(line)
            entry = Entry(**json.loads(line))
            self.entries[entry.key] = entry
        self._file.truncate(end)

    def keep(self, entry: Entry) -> None:
        """Write an entry, which replaces the earlier one of its key."""
        self._file.write(json.dumps(asdict(entry)).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.entries[entry.key] = entry

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_entries(path: Path) -> list[Entry]:
    """The entries of a record that nobody writes, in order of their keys."""
    entries: dict[tuple[int, int], Entry] = {}
    for line in path.read_bytes().splitlines(keepends=True):
        if line.endswith(b"\n"):
            entry = Entry(**json.loads(line))
            entries[entry.key] = entry
    return [entries[key] for key in sorted(entries)]
