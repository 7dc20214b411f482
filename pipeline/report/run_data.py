"""The content of a run's folder: settings, records, sessions, checkpoints, evaluations."""

import csv
import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from pipeline.checkpoint.local import MODEL, checkpoints
from pipeline.checkpoint.run_folder import CHECKPOINTS, MODELS
from pipeline.settings.interventions import Interventions
from pipeline.tracking.journal import EVENTS, RECORDS, SYSTEM, read_events, read_samples, valid
from support.files import read_lines


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One finished evaluation on disk."""

    result: dict
    sheet: list[dict]
    """Examples (`pipeline.evaluation.examples`); empty if there are none."""
    classes: list[dict[str, str]]
    """Rows of classes.csv."""

    @classmethod
    def read(cls, folder: Path) -> "Evaluation":
        """Read the folder of an evaluation."""
        sheet, classes = folder / "sheet.json", folder / "classes.csv"
        lines = classes.read_text().splitlines() if classes.exists() else []
        return cls(
            result=json.loads((folder / "result.json").read_text()),
            sheet=json.loads(sheet.read_text()) if sheet.exists() else [],
            classes=list(csv.DictReader(lines)),
        )


@dataclass(frozen=True, kw_only=True)
class Session:
    """One start of the run, until it ended or was interrupted; times in seconds."""

    start: float
    end: float
    workers: int

    @property
    def hours(self) -> float:
        """Duration in hours."""
        return (self.end - self.start) / 3600


class RunData:
    """Everything that the folder of a run contains."""

    def __init__(self, run_dir: Path) -> None:
        """Read a run, finished or not; FileNotFoundError if the folder is not that of a run."""
        config = run_dir / "config.json"
        if not config.is_file() or not (run_dir / EVENTS).is_file():
            raise FileNotFoundError(
                f"{run_dir} is not the folder of a run: it has no config.json and {EVENTS}; it is "
                f"RUNS_DIR/NAME"
            )
        self.dir, self.settings = run_dir, json.loads(config.read_text())
        self.events = read_events(run_dir)
        lines, samples = list(read_lines(run_dir / RECORDS)), read_samples(run_dir)
        # time that the run spent on steps that were taken back counts, their values do not
        times = [line["time"] for line, _ in (*lines, *samples)]
        self.sessions = sessions(self.events, times)
        # the driver of a run in a store has copies of the weights alone
        copies = checkpoints(run_dir / MODELS, only=MODEL)
        self.checkpoints = checkpoints(run_dir / CHECKPOINTS) or copies
        results = (run_dir / "evaluations").glob("*/result.json")
        newest_first = sorted(results, key=lambda path: path.stat().st_mtime, reverse=True)
        self.evaluations = [Evaluation.read(path.parent) for path in newest_first]
        self.last_step = 0
        # step and time of each record
        self.times: list[tuple[int, float]] = []
        # points (step, value) by name; for system metrics (minutes since the start, value)
        self.lines: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for record, _ in (*valid(lines), *samples):
            if record["kind"].startswith(SYSTEM):
                x = (record["time"] - self.events[0]["time"]) / 60
            else:
                x = record["step"]
                self.last_step = max(self.last_step, x)
                self.times.append((x, record["time"]))
            for name, value in record.items():
                if name not in ("kind", "step", "time") and isinstance(value, int | float):
                    self.lines[name].append((x, value))

    def tags(self) -> dict[str, str]:
        """The tags of the run; the latest value of each."""
        tag_events = [event["tags"] for event in self.events if event["event"] == "tags"]
        return {name: value for tags in tag_events for name, value in tags.items()}

    def moments(self) -> dict[float, str]:
        """What changed the course of the run, in words, by step: starts, workers, interventions."""
        found: dict[float, list[str]] = defaultdict(list)
        for at in (session.start for session in self.sessions[1:]):
            found[max((step for step, time in self.times if time < at), default=0)] += ["resumed"]
        workers = self.lines.get("workers", [])
        for (step, before), (_, now) in zip(workers, workers[1:], strict=False):
            if before != now:
                found[step] += [f"{before:g} workers before, {now:g} after"]
        course = Interventions.of_flat(self.settings)
        for first, last in course.skipped:
            found[first] += [f"steps {first:,} to {last:,} skipped"]
        for step, factor in course.factors:
            found[step] += [f"learning rate times {factor:g}"]
        return {step: "; ".join(texts) for step, texts in found.items() if step <= self.last_step}

    def status(self) -> str:
        """How the last start ended; "RUNNING" if it has not."""
        last = [event for event in self.events if event["event"] in ("start", "status")][-1]
        return last.get("status", "RUNNING")

    def hours(self) -> float:
        """Duration of the run over all its starts."""
        return sum(session.hours for session in self.sessions)

    def worker_hours(self) -> float:
        """Duration of the run times workers."""
        return sum(session.hours * session.workers for session in self.sessions)


def sessions(events: list[dict], times: list[float]) -> list[Session]:
    """The starts of a run; an interrupted one ends with its last event or record."""
    starts = [number for number, event in enumerate(events) if event["event"] == "start"]
    result = []
    for first, last in zip(starts, [*starts[1:], None], strict=True):
        session_events, start = events[first:last], events[first]["time"]
        stop = events[last]["time"] if last else float("inf")
        # events after the end, such as a later evaluation, do not extend the session
        ends = [event["time"] for event in session_events if event["event"] == "status"][:1]
        seen = [time for time in times if start <= time < stop]
        seen += [event["time"] for event in session_events]
        tags = (event.get("tags", {}) for event in session_events)
        workers = next((each["workers"] for each in tags if "workers" in each), 1)
        result.append(Session(start=start, end=(ends or [max(seen)])[0], workers=int(workers)))
    return result
