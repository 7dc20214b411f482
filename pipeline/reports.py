"""Handling of the workers' reports on the driver: record, console and callback."""

import logging
from collections.abc import Callable, Mapping

from pipeline.evaluation.metrics import METRICS
from pipeline.tracking.journal import SYSTEM
from pipeline.tracking.recorder import Recorder
from support.console import Progress, duration

log = logging.getLogger(__name__)

OnRecord = Callable[[dict], str | None]
"""Called with every new record; if it returns a reason, the run stops after a checkpoint."""


class Reports:
    """Records the reports of the workers, shows them, and passes them to `on_record`."""

    def __init__(
        self,
        recorder: Recorder,
        total_steps: int,
        on_record: OnRecord | None,
        on_checkpoint: Callable[[], None] | None = None,
    ) -> None:
        """Take the reports of a run; `on_checkpoint` is called when it has a new checkpoint."""
        self._recorder, self._total, self._on_record = recorder, total_steps, on_record
        self._on_checkpoint = on_checkpoint
        self._progress = Progress("train", "steps", every_s=float("inf"))
        self.stop_reason: str | None = None
        """Reason to stop the run, from `on_record`."""
        self.fatal = ""
        """An error of a worker that a restart cannot help."""

    def __call__(self, report: dict) -> str | None:
        """Handle one report; returns "stop" to ask the workers to stop."""
        kind = report["kind"]
        if kind == "message":
            log.warning(report["text"])
            return None
        if kind == "fatal":
            self.fatal = self.fatal or report["text"]
            return None
        if kind == "checkpoint" and self._on_checkpoint:
            self._on_checkpoint()
        is_new = self._recorder.add(report)  # unless the step was recorded before a restart
        if not is_new or kind == SYSTEM:
            return None
        if line := record_line(report, self._total):
            log.info(line)
        if kind == "train" and report["step"] < self._total:
            self._progress(report["step"], self._total)
        self.stop_reason = (self._on_record and self._on_record(report)) or self.stop_reason
        return "stop" if self.stop_reason else None


def record_line(record: Mapping[str, str | int | float], total: int) -> str | None:
    """One aligned line for a record; None for a kind that is not shown."""
    step = record["step"]
    place = f"step {step:>{len(f'{total:,}')},}/{total:,}  {step / total:6.1%}"
    if record["kind"] == "train":
        return (
            f"{place}  loss {record['train/loss']:7.4f}  lr {record['lr']:.2e}  "
            f"{record['images_per_s']:7,.0f} img/s  wait {record['wait']:5.1%}  "
            f"mem {record['memory_gib']:5.1f} GiB  eta {duration(record['eta_s'])}"
        )
    if record["kind"] == "eval":
        shown = []
        for prefix in ("val", "select"):
            values = [
                f"{metric.title} {record[f'{prefix}/{name}']:.4f}"
                for name, metric in METRICS.items()
                if f"{prefix}/{name}" in record
            ]
            shown += [prefix, *values] if values else []
        return f"{place}  {'  '.join(shown)}"
    return None
