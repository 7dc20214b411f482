"""Reports of the workers on the driver's side: into the record, onto the console, to the caller."""

import logging
from collections.abc import Callable, Mapping

from pipeline.evaluation.metrics import METRICS
from pipeline.tracking.recorder import Recorder
from support.console import Progress, duration

log = logging.getLogger(__name__)

OnRecord = Callable[[dict], str | None]
"""Called with every new record; a reason in return stops the run after a checkpoint."""


class Reports:
    """Takes what workers report: into the record, onto the console, and on to the caller."""

    def __init__(self, recorder: Recorder, total_steps: int, on_record: OnRecord | None) -> None:
        self._recorder, self._total, self._on_record = recorder, total_steps, on_record
        self._progress = Progress("train", "steps", every_s=float("inf"))
        self.images_per_s = 0.0
        """Training rate of the last interval, over all workers."""
        self.stop_reason: str | None = None
        """What `on_record` gave as the reason to stop the run."""

    def __call__(self, report: dict) -> bool:
        """Handle one report; True asks the workers to stop."""
        kind = report["kind"]
        if kind == "message":
            log.warning(report["text"])
            return False
        if kind.startswith("system"):
            self._recorder.add(report)
            return False
        self.images_per_s = report.get("images_per_s", self.images_per_s)
        if not self._recorder.add(report):  # a step that was recorded before a restart
            return False
        if line := record_line(report, self._total):
            log.info(line)
        if kind == "train" and report["step"] < self._total:
            self._progress(report["step"], self._total)
        self.stop_reason = (self._on_record and self._on_record(report)) or self.stop_reason
        return bool(self.stop_reason)


def record_line(record: Mapping[str, str | int | float], total: int) -> str | None:
    """One aligned line for a record; None for a kind that has none."""
    step = record["step"]
    place = f"step {step:>{len(f'{total:,}')},}/{total:,}  {step / total:6.1%}"
    if record["kind"] == "train":
        return (
            f"{place}  loss {record['train/loss']:7.4f}  lr {record['lr']:.2e}  "
            f"{record['images_per_s']:7,.0f} img/s  wait {record['wait']:5.1%}  "
            f"mem {record['memory_gib']:5.1f} GiB  eta {duration(record['eta_s'])}"
        )
    if record["kind"] == "eval":
        values = (
            f"{metric.title} {record[f'val/{name}']:.4f}"
            for name, metric in METRICS.items()
            if f"val/{name}" in record
        )
        return f"{place}  val  {'  '.join(values)}"
    return None
