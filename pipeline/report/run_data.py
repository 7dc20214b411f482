"""What the folder of a run tells: settings, records, sessions, checkpoints, evaluations."""

import csv
import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from pipeline.checkpoint.local import Checkpoint, checkpoints
from pipeline.tracking.journal import EVENTS, RECORDS, read_events
from support.files import read_lines


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One evaluation on disk."""

    folder: Path
    result: dict
    sheet: list[dict]
    """See `pipeline.evaluation.examples`; empty where there is none."""
    classes: list[dict[str, str]]
    """Rows of classes.csv."""

    @classmethod
    def read(cls, folder: Path) -> "Evaluation":
        """A finished evaluation."""
        sheet, classes = folder / "sheet.json", folder / "classes.csv"
        rows = []
        if classes.exists():
            with classes.open(newline="") as file:
                rows = list(csv.DictReader(file))
        return cls(
            folder=folder,
            result=json.loads((folder / "result.json").read_text()),
            sheet=json.loads(sheet.read_text()) if sheet.exists() else [],
            classes=rows,
        )


@dataclass(frozen=True, kw_only=True)
class Session:
    """One start of the run, until it ended or was cut short."""

    start: float
    end: float
    workers: int


@dataclass(frozen=True, kw_only=True)
class RunData:
    """All that is known of a run."""

    dir: Path
    settings: dict[str, object]
    lines: dict[str, list[tuple[float, float]]]
    """Points (step, value) by name; those of the machines (minutes since the start, value)."""
    last_step: int
    events: list[dict]
    sessions: list[Session]
    checkpoints: list[Checkpoint]
    evaluations: list[Evaluation]
    """Newest first."""

    @classmethod
    def read(cls, run_dir: Path) -> "RunData":
        """Read a run, finished or not; FileNotFoundError if the folder is not that of a run."""
        config = run_dir / "config.json"
        if not config.is_file() or not (run_dir / EVENTS).is_file():
            raise FileNotFoundError(
                f"{run_dir} is not the folder of a run: it has no config.json and {EVENTS}; it is "
                f"RUNS_DIR/NAME"
            )
        events, records = read_events(run_dir), [r for r, _ in read_lines(run_dir / RECORDS)]
        begin = events[0]["time"]
        lines: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for record in records:
            machine = record["kind"].startswith("system")
            at = (record["time"] - begin) / 60 if machine else record["step"]
            for name, value in record.items():
                if name not in ("kind", "step", "time") and isinstance(value, int | float):
                    lines[name].append((at, value))
        folders = [path.parent for path in (run_dir / "evaluations").glob("*/result.json")]
        folders.sort(key=lambda folder: (folder / "result.json").stat().st_mtime, reverse=True)
        steps = [r["step"] for r in records if not r["kind"].startswith("system")]
        return cls(
            dir=run_dir,
            settings=json.loads(config.read_text()),
            lines=dict(lines),
            last_step=max(steps, default=0),
            events=events,
            sessions=sessions(events, [record["time"] for record in records]),
            checkpoints=checkpoints(run_dir / "checkpoints"),
            evaluations=[Evaluation.read(folder) for folder in folders],
        )

    def tags(self) -> dict[str, str]:
        """The tags of the run, the newest of each."""
        tags: dict[str, str] = {}
        for event in self.events:
            tags |= event["tags"] if event["event"] == "tags" else {}
        return tags

    def status(self) -> str:
        """How the last start ended; "RUNNING" if nothing says so."""
        last = [event for event in self.events if event["event"] in ("start", "status")][-1]
        return last.get("status", "RUNNING")

    def hours(self) -> float:
        """Time that the run took, over all its starts."""
        return sum(session.end - session.start for session in self.sessions) / 3600

    def worker_hours(self) -> float:
        """The same, counted for each worker."""
        return sum((s.end - s.start) * s.workers for s in self.sessions) / 3600


def sessions(events: list[dict], times: list[float]) -> list[Session]:
    """The starts of a run; one that was cut short ends with the last thing that was recorded."""
    starts = [number for number, event in enumerate(events) if event["event"] == "start"]
    runs = []
    for number, following in zip(starts, [*starts[1:], None], strict=True):
        own, begin = events[number:following], events[number]["time"]
        end = events[following]["time"] if following else float("inf")
        # what is told after the end, such as a later evaluation, is not the run's time
        ends = [event["time"] for event in own if event["event"] == "status"][:1]
        heard = [time for time in times if begin <= time < end]
        heard += [event["time"] for event in own]
        workers = next((e["tags"]["workers"] for e in own if "workers" in e.get("tags", {})), 1)
        runs.append(Session(start=begin, end=(ends or [max(heard)])[0], workers=int(workers)))
    return runs
