"""The record of a run: everything that happens is on disk before anybody is told.

    workers -> queue -> Recorder in the driver -> journal (metrics.jsonl, events.jsonl)
    journal -> mirror (a thread) -> MLflow

The driver is the only writer, so workers that are restarted cannot write twice, and a record whose
step is there already is not written again.
"""

from collections.abc import Mapping
from pathlib import Path

from pipeline.tracking import journal
from pipeline.tracking.journal import EVENTS, RECORDS, read_events, write_record
from pipeline.tracking.mlflow_sync import MlflowSync
from support.files import cut_unfinished_line, read_lines

Record = Mapping[str, str | int | float]


class Recorder:
    """Writes the record of one run; opened again in the folder of a run, it continues it."""

    def __init__(
        self,
        run_dir: Path,
        *,
        name: str,
        experiment: str,
        settings: Mapping[str, object],
        parent: Path | None = None,
    ) -> None:
        """Continue or begin the record in `run_dir`; nested in the run recorded in `parent`."""
        self._dir = run_dir
        self._last: dict[str, int] = {}
        for path in (run_dir / RECORDS, run_dir / EVENTS):
            self._repair(path)
        facts = {"parent": str(parent) if parent else None, "number": self._starts() + 1}
        self.tell("start", name=name, experiment=experiment, settings=settings, **facts)
        self._mirror = MlflowSync(run_dir)

    def _repair(self, path: Path) -> None:
        """Cut off a line that a killed driver left half-written; note the steps that are there."""
        end = 0
        for line, end in read_lines(path):  # noqa: B007
            if "kind" in line:
                self._last[line["kind"]] = line["step"]
        cut_unfinished_line(path, end)

    def _starts(self) -> int:
        return sum(event["event"] == "start" for event in read_events(self._dir))

    def add(self, record: Record) -> bool:
        """Keep a record of numbers; False if its step was recorded before a restart.

        Records of the machines ("system/0") come without a step and are numbered on.
        """
        kind = record["kind"]
        if "step" not in record:
            record = {**record, "step": self._last.get(kind, -1) + 1}
        if record["step"] <= self._last.get(kind, -1):
            return False
        self._last[kind] = record["step"]
        write_record(self._dir, record)
        return True

    def tell(self, event: str, **facts: object) -> None:
        """Keep an event; `TrackingServer.tell` lists what there is."""
        journal.tell(self._dir, event, **facts)

    def artifact(self, path: Path, folder: str = "") -> None:
        """Keep that a file, or a folder's content, belongs to a folder of the run in MLflow."""
        # a file that has changed since is another event
        version = path.stat().st_mtime_ns
        self.tell("artifact", path=path, folder=folder, version=version)

    def finish(
        self,
        status: str,
        artifacts: Mapping[Path, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """End the record as FINISHED, FAILED or KILLED, with files for folders in MLflow."""
        for path, folder in (artifacts or {}).items():
            self.artifact(path, folder)
        if tags:
            self.tell("tags", tags=dict(tags))
        self.tell("status", status=status, number=self._starts())
        self._mirror.finish()
