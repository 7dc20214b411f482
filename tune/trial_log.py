"""The log of a search: which trials were started, and how each ended.

    trials.jsonl: one line when a trial starts and one when it ends; the last line of a trial counts

The driver of the search is the only writer, and each line is on the disk before anything depends on
it. If the driver dies, the search is resumed from here: trials that have ended are not run again,
and a trial that was running continues from its own checkpoint with the settings it had.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from support.files import append_line, cut_unfinished_line, read_lines

Key = tuple[int, int]
"""Number and repeat of a trial."""

TRIALS = "trials.jsonl"
# status of a trial: running; completed; stopped early for being behind; loss not finite or far
# above its start; ended by an error, and run again by --resume
STARTED, DONE, STOPPED, DIVERGED, FAILED = "started", "done", "stopped", "diverged", "failed"
# a trial with any other status is still to be run; older logs have "begun" for "started"
ENDED = (DONE, STOPPED, DIVERGED)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One trial."""

    number: int
    """Place in the search; 0 is the baseline, the preset's own settings."""
    repeat: int = 0
    """0, or the index of a further seed of this number."""
    sample: Mapping[str, object]
    """Value of each dimension of the space."""
    settings: Mapping[str, object]
    """Settings in which it differs from the preset carried to the length of a trial."""
    status: str = STARTED
    values: Mapping[str, float] = field(default_factory=dict)
    """Metrics of the last evaluation."""
    step: int = 0
    images: int = 0
    """Images that it was trained on."""
    seconds: float = 0.0
    """Wall time of its run, including the time before an interruption."""
    ended: float = 0.0
    """When it ended, in seconds since the epoch."""
    reason: str = ""

    @property
    def key(self) -> Key:
        """Number and repeat."""
        return self.number, self.repeat

    @property
    def name(self) -> str:
        """Its folder and its name in MLflow."""
        return f"trial-{self.number:03d}" + (f"-seed-{self.repeat}" if self.repeat else "")


class TrialLog:
    """All entries of a search, on disk."""

    def __init__(self, path: Path) -> None:
        """Open or create the log; a line that a killed driver left incomplete is cut off."""
        self._path = path
        self.entries, end = read_log(path)
        cut_unfinished_line(path, end)

    def keep(self, entry: Entry) -> None:
        """Write an entry, which replaces the earlier one of its key."""
        append_line(self._path, asdict(entry))
        self.entries[entry.key] = entry


def read_log(path: Path) -> tuple[dict[Key, Entry], int]:
    """The last entry of each trial by its key, and the byte after the last complete line."""
    lines = list(read_lines(path))
    entries = [Entry(**line) for line, _ in lines]
    return {entry.key: entry for entry in entries}, lines[-1][1] if lines else 0


def read_entries(path: Path) -> list[Entry]:
    """The entries of a log that no process writes to, sorted by key."""
    return [entry for _, entry in sorted(read_log(path)[0].items())]
