"""The result of a finished run: result.json in its folder.

It is written before it is recorded, for it is a part of the record. A run is finished when its
record says so: one that was killed between the two records the result again.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from pipeline.evaluation.config import RESULT
from pipeline.report.run_data import median_rate
from pipeline.tracking.journal import read_events, read_records
from support.files import write_json

# MLflow's tag for how a run ended, and its value after a result; others are "diverged", or the
# reason of a search to stop it
OUTCOME_TAG, DONE = "outcome", "done"
FINISHED = "FINISHED"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of a finished run."""

    steps: int
    images_per_s: float | None
    """Median training rate of all intervals that were recorded, over all workers."""
    checkpoint: str
    """Folder of the checkpoint that was evaluated and that the run hands on."""
    protocols: dict[str, dict[str, float]]
    """Metrics of each crop protocol on the eval split."""
    changes: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    """Difference of each protocol to the single centre crop."""
    evaluation: str = ""
    """Folder of the evaluation: classes, predictions, confusions."""
    chosen: str = ""
    """Why it is this checkpoint, in words: the last step, or the split that selected it."""

    @classmethod
    def read(cls, run_dir: Path) -> "Outcome | None":
        """The outcome of a run; None if it is not finished."""
        path = run_dir / RESULT
        if not path.exists() or not is_recorded(run_dir):
            return None
        return cls(**json.loads(path.read_text()))

    def write(self, run_dir: Path) -> None:
        """Write the outcome into the folder of the run, before it is recorded."""
        write_json(run_dir / RESULT, dataclasses.asdict(self))


def is_recorded(run_dir: Path) -> bool:
    """Whether the record of a run has ended as finished, after its last start."""
    status = None
    for event in read_events(run_dir):
        if event["event"] in ("start", "status"):
            status = event.get("status")
    return status == FINISHED


def training_rate(run_dir: Path) -> float | None:
    """Images/s of the training by the record, the median of its intervals; None without one."""
    records = (record for record, _ in read_records(run_dir))
    return median_rate([each["images_per_s"] for each in records if "images_per_s" in each])
