"""The record of a search: which trials were begun, and how each ended.

    trials.jsonl: a line when a trial is begun, and one when it has ended; the last one counts

The driver of the search is the only writer, and a line is on the disk before anything rests on it.
So a search goes on after the death of its driver: what has ended is kept, what was begun goes on
from its own checkpoint with the settings it was given.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from support.files import append_line, cut_unfinished_line, read_lines

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
        """Open the log, or start it; a line that a killed driver left half-written is cut."""
        self._path = path
        self.entries, end = read_log(path)
        cut_unfinished_line(path, end)

    def keep(self, entry: Entry) -> None:
        """Write an entry, which replaces the earlier one of its key."""
        append_line(self._path, asdict(entry))
        self.entries[entry.key] = entry


def read_log(path: Path) -> tuple[dict[tuple[int, int], Entry], int]:
    """The last entry of each trial by its key, and where the last complete line ends."""
    entries, end = {}, 0
    for line, end in read_lines(path):  # noqa: B007 - the last end is returned
        entry = Entry(**line)
        entries[entry.key] = entry
    return entries, end


def read_entries(path: Path) -> list[Entry]:
    """The entries of a log that nobody writes, in order of their keys."""
    entries, _ = read_log(path)
    return [entries[key] for key in sorted(entries)]
