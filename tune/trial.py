"""One trial of a search: its place, its settings, and how it ended."""

from collections.abc import Mapping
from dataclasses import dataclass, field

# how a trial stands: to be run; running; completed; loss not finite or far above its start; ended
# by an error, and run again by --resume
WAITING, RUNNING, DONE, DIVERGED, FAILED = "waiting", "running", "done", "diverged", "failed"
# it is not run again
ENDED = (DONE, DIVERGED)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a trial ended."""

    status: str
    reason: str = ""
    values: Mapping[str, float] = field(default_factory=dict)
    """Metrics of its last records."""
    step: int = 0
    images: int = 0
    """Images that it was trained on."""
    seconds: float = 0.0
    """Wall time of its run, including the time before an interruption."""
    workers: int = 1
    ended: float = 0.0
    """When it ended, in seconds since the epoch."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run of a search."""

    rung: int
    """Index of its rung; the number of rungs for the confirmation."""
    place: int
    """Its number within the rung."""
    sample: Mapping[str, object] | None
    """Value of each dimension of the space; None for the preset."""
    seed: int
    status: str = WAITING
    outcome: Outcome | None = None

    @property
    def name(self) -> str:
        """Its folder, and its name in MLflow and in Ray Tune."""
        return f"rung-{self.rung + 1}-{self.place:02d}"

    def value(self, objective: str) -> float | None:
        """Its objective; None unless it was completed."""
        return self.outcome.values.get(objective) if self.status == DONE else None
