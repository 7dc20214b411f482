"""The record of a run: everything that happens is on disk before it is sent anywhere.

    workers -> queue -> Recorder in the driver -> journal (metrics.jsonl, events.jsonl)
    journal -> MlflowSync (a thread) -> MLflow

Only the driver writes, so restarted workers cannot write a record twice: a record is dropped if its
step is in the journal already.
"""

from collections.abc import Mapping
from pathlib import Path

from pipeline.tracking import journal
from pipeline.tracking.journal import EVENTS, RECORDS
from pipeline.tracking.mlflow_sync import MlflowSync
from support.files import cut_unfinished_line, read_lines

Record = Mapping[str, str | int | float]


class Recorder:
    """Writes the record of one run, and continues it if the folder of the run has one."""

    def __init__(
        self,
        run_dir: Path,
        *,
        name: str,
        experiment: str,
        settings: Mapping[str, object],
        parent: Path | None = None,
    ) -> None:
        """Start or continue the record in `run_dir`; in MLflow, nest it in the run of `parent`."""
        self._dir = run_dir
        self._last_steps: dict[str, int] = {}
        for path in (run_dir / RECORDS, run_dir / EVENTS):
            self._repair(path)
        facts = {"parent": str(parent) if parent else None, "number": self._starts() + 1}
        self.write_event("start", name=name, experiment=experiment, settings=settings, **facts)
        self._sync = MlflowSync(run_dir)

    def _repair(self, path: Path) -> None:
        """Cut off a line that a killed driver left unfinished; note the last step of each kind."""
        end = 0
        for line, end in read_lines(path):  # noqa: B007
            if "kind" in line:
                self._last_steps[line["kind"]] = line["step"]
        cut_unfinished_line(path, end)

    def _starts(self) -> int:
        return sum(event["event"] == "start" for event in journal.read_events(self._dir))

    def add(self, record: Record) -> bool:
        """Record numbers; False if their step was recorded before a restart.

        System metrics ("system/0") have no step and are numbered consecutively.
        """
        kind = record["kind"]
        last_step = self._last_steps.get(kind, -1)
        record = {"step": last_step + 1, **record}
        if record["step"] <= last_step:
            return False
        self._last_steps[kind] = record["step"]
        journal.write_record(self._dir, record)
        return True

    def write_event(self, event: str, **facts: object) -> None:
        """Record an event; `TrackingServer.apply` lists the events and their facts."""
        journal.write_event(self._dir, event, **facts)

    def finish(
        self,
        status: str,
        artifacts: Mapping[Path, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """End the record as FINISHED, FAILED or KILLED; `artifacts`: MLflow folder of each file."""
        for path, folder in (artifacts or {}).items():
            journal.write_artifact(self._dir, path, folder)
        if tags:
            self.write_event("tags", tags=dict(tags))
        self.write_event("status", status=status, number=self._starts())
        self._sync.finish()
