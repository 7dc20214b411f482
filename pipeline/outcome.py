"""The result of a finished run: result.json in its folder."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from pipeline.evaluation.config import RESULT
from pipeline.report.run_data import median_rate
from pipeline.tracking.journal import read_records
from support.files import write_json


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
        return cls(**json.loads(path.read_text())) if path.exists() else None

    def write(self, run_dir: Path) -> None:
        """Write the outcome into the folder of the run, which marks the run as finished."""
        write_json(run_dir / RESULT, dataclasses.asdict(self))


def training_rate(run_dir: Path) -> float | None:
    """Images/s of the training by the record, the median of its intervals; None without one."""
    records = (record for record, _ in read_records(run_dir))
    return median_rate([each["images_per_s"] for each in records if "images_per_s" in each])
