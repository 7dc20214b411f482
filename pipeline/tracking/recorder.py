"""The record of a run: everything that happens is on disk before it is sent anywhere.

    workers -> queue -> Recorder in the driver -> journal (metrics, system and events.jsonl)
    journal -> MlflowSync (a thread) -> MLflow

Only the driver writes, so restarted workers cannot write a record twice: a record is dropped if its
step is in the journal already. After a rewind (`journal.rewind`) its steps are recorded again.
"""

import datetime
import itertools
from collections.abc import Mapping
from pathlib import Path

from pipeline.checkpoint.checkpoints import Checkpoints
from pipeline.tracking import journal
from pipeline.tracking.journal import RECORDS, REWIND, SAMPLES, SYSTEM
from pipeline.tracking.origin import origin
from support.files import read_lines

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
        models: Checkpoints | None = None,
    ) -> None:
        """Start or continue the record in `run_dir`; in MLflow, nest it in the run of `parent`.

        `models` are the checkpoints of the run, of which events may tell: see `Sender`.
        """
        self._dir = run_dir
        journal.repair(run_dir)
        lines = list(read_lines(run_dir / RECORDS))
        self._last_steps = {record["kind"]: record["step"] for record, _ in journal.valid(lines)}
        sample, _ = journal.last_line(run_dir / SAMPLES)  # only the last: the file grows and grows
        if sample:
            self._last_steps[SYSTEM] = sample["step"]
        self._number = len(self._starts()) + 1
        self.write_event(
            "start",
            name=name,
            experiment=experiment,
            settings=settings,
            parent=str(parent) if parent else None,
            number=self._number,
            step=self._last_steps.get("train", 0),
            origin=origin_of(parent) if parent else origin(),
        )
        self._tag_changes(self._starts())
        self._tag_rewinds([line for line, _ in lines if line["kind"] == REWIND])
        # MLflow takes as long to import as PyTorch, and a command may be refused before it records
        from pipeline.tracking.mlflow_sync import MlflowSync

        self._sync = MlflowSync(run_dir, models)

    def add(self, record: Record) -> bool:
        """Record numbers; False if their step was recorded before a restart.

        Samples of the machines ("system") have no step and are numbered consecutively.
        """
        kind = record["kind"]
        last_step = self._last_steps.get(kind, -1)
        record = {"step": last_step + 1, **record}
        if record["step"] <= last_step:
            return False
        self._last_steps[kind] = record["step"]
        journal.write_record(self._dir, record)
        return True

    def _starts(self) -> list[dict]:
        return [event for event in journal.read_events(self._dir) if event["event"] == "start"]

    def _tag_changes(self, starts: list[dict]) -> None:
        """Tag the run: MLflow cannot change parameters, so it keeps those of the first start."""
        parts = [
            f"after step {later.get('step', 0):,}: {', '.join(changes)}"
            for start, later in itertools.pairwise(starts)
            if (changes := changed(start["settings"], later["settings"]))
        ]
        if parts:  # the latest first: a long tag is cut
            self.write_event("tags", tags={"changed settings": "; ".join(reversed(parts))})

    def _tag_rewinds(self, rewinds: list[dict]) -> None:
        """Tag the run: MLflow cannot delete points, so it shows the void ones too."""
        if rewinds:
            text = "; ".join(
                f"to step {line['step']:,} at {clock(line['time'])}" for line in rewinds
            )
            self.write_event("tags", tags={"rewound": text})

    def write_event(self, event: str, **facts: object) -> None:
        """Record an event; `TrackingServer.apply` lists the events and their facts."""
        journal.write_event(self._dir, event, **facts)

    def finish(
        self,
        status: str,
        artifacts: Mapping[Path, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """End the record, see `end`, and wait for MLflow, see `close`."""
        self.end(status, artifacts, tags)
        self.close()

    def end(
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
        self.write_event("status", status=status, number=self._number)

    def close(self) -> None:
        """Wait until MLflow has the record, but not for long: see `MlflowSync.finish`."""
        self._sync.finish()


def origin_of(parent: Path) -> dict[str, str]:
    """Who started the run in which others are nested: these have drivers on some node."""
    starts = (event for event in journal.read_events(parent) if event["event"] == "start")
    return next(starts, {}).get("origin", {})


def changed(before: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    """Settings with another value than before: "workers 2 -> 4"."""
    return [
        f"{name} {before[name]} -> {now[name]}"
        for name in sorted(before.keys() & now.keys())
        if before[name] != now[name]
    ]


def clock(seconds: float) -> str:
    """A point in time, in UTC."""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
