"""The content of a run's folder: settings, records, sessions, checkpoints, evaluations."""

import csv
import json
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pipeline.checkpoint.local import CONFIG, MODEL, checkpoints
from pipeline.checkpoint.run_folder import CHECKPOINTS, MODELS
from pipeline.evaluation.config import RESULT
from pipeline.report import run_state
from pipeline.report.run_files import Folder, explained, read_object
from pipeline.settings.interventions import Interventions
from pipeline.settings.presets import nearest_preset
from pipeline.tracking.journal import (
    EVENTS,
    RECORDS,
    SYSTEM,
    numbers,
    read_events,
    read_samples,
    valid,
)
from shards.dataset import store
from support.files import read_lines
from support.redact import redact

EVALUATIONS = "evaluations"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One finished evaluation on disk."""

    folder: Path
    result: Mapping

    @classmethod
    def read(cls, folder: Path) -> "Evaluation":
        """Read the folder of an evaluation; ValueError names a file that is damaged."""
        result = read_object(folder / RESULT)
        if "protocols" not in result:
            raise ValueError(f"{folder / RESULT} has no protocols: it is of no evaluation")
        return cls(folder=folder, result=result)

    @cached_property
    def v2(self) -> "Evaluation | None":
        """That of ImageNet-V2 beside it, if there is one."""
        result = self.result.get("v2")
        return result and Evaluation(folder=self.folder / "v2", result=result)

    @cached_property
    def sheet(self) -> list[dict]:
        """Examples (`pipeline.evaluation.examples`); empty if there are none."""
        path = self.folder / "sheet.json"
        with explained(path):
            return json.loads(path.read_text()) if path.is_file() else []

    @cached_property
    def classes(self) -> list[dict[str, str]]:
        """Rows of classes.csv; empty if there is none."""
        path = self.folder / "classes.csv"
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        return list(csv.DictReader(text.splitlines()))


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

    def __init__(self, run_dir: Path, place: str | None = None) -> None:
        """Read a run, finished or not; `place` is the URI of which the folder is a copy, if any.

        Raises FileNotFoundError if the folder is not that of a run, or of one that has not started;
        ValueError names a file that is damaged.
        """
        self._place = place or str(run_dir)
        check_folder(run_dir, redact(self._place))
        self.dir, self.settings = run_dir, read_object(run_dir / CONFIG)
        self.result = read_object(run_dir / RESULT)
        """Of a finished run (`pipeline.outcome`); empty until then."""
        with explained(run_dir / EVENTS):
            self.events = read_events(run_dir)
        with explained(run_dir / RECORDS):
            lines = list(read_lines(run_dir / RECORDS))
        samples = read_samples(run_dir)
        # time that the run spent on steps that were taken back counts, their values do not
        times = [line["time"] for line, _ in (*lines, *samples)]
        try:
            self.sessions = sessions(self.events, times)
        except ValueError as error:
            raise ValueError(f"{run_dir}: {error}") from error
        # the driver of a run in a store has the weights of its models, which follow the store;
        # a checkpoint from which an attempt started may be gone there
        kept = checkpoints(run_dir / CHECKPOINTS)
        models = checkpoints(run_dir / MODELS, only=MODEL)
        is_copy = "://" in str(self.settings.get("runs_dir"))
        self.checkpoints = (models or kept) if is_copy else kept
        self.evaluations = self._evaluations()
        self.records = [record for record, _ in valid(lines)]
        """The valid records."""
        self.last_step = 0
        # step and time of each record
        self.times: list[tuple[int, float]] = []
        # points (step, value) by name; for system metrics (minutes since the start, value)
        self.lines: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for record in (*self.records, *(sample for sample, _ in samples)):
            if record["kind"].startswith(SYSTEM):
                x = (record["time"] - self.events[0]["time"]) / 60
            else:
                x = record["step"]
                self.last_step = max(self.last_step, x)
                self.times.append((x, record["time"]))
            for name, value in numbers(record).items():
                self.lines[name].append((x, value))

    def _evaluations(self) -> list[Evaluation]:
        """What the run reports comes first, then what was recorded last; copies lose the times."""
        folders = (path.parent for path in sorted(self.dir.glob(f"{EVALUATIONS}/*/{RESULT}")))
        times = {e["folder"]: e["time"] for e in self.events if e["event"] == "artifact"}

        def rank(item: Evaluation) -> tuple[bool, float, int]:
            recorded = times.get(f"{EVALUATIONS}/{item.folder.name}", 0.0)
            return self.reports(item), recorded, item.result["step"] or 0

        return sorted(map(Evaluation.read, folders), key=rank, reverse=True)

    def reports(self, item: Evaluation) -> bool:
        """Whether an evaluation is that of the result of the run."""
        return Path(self.result.get("evaluation", "")).name == item.folder.name

    @cached_property
    def state(self) -> str:
        """How it stands (`pipeline.report.run_state`), by the lease in its place."""
        has_driver = Folder(*store.locate(self._place)).has_driver()
        return run_state.state(self.events, is_done=bool(self.result), has_driver=has_driver)

    @property
    def preset(self) -> str:
        """The nearest preset, and how many settings differ."""
        return preset_text(*nearest_preset(self.settings))

    @property
    def images_per_s(self) -> float | None:
        """Median training rate."""
        return median_rate([rate for _, rate in self.lines.get("images_per_s", ())])

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

    def hours(self) -> float:
        """Duration of the run over all its starts."""
        return sum(session.hours for session in self.sessions)

    def worker_hours(self) -> float:
        """Duration of the run times workers."""
        return sum(session.hours * session.workers for session in self.sessions)

    def price(self, price_per_hour: float | None) -> float | None:
        """The price of a worker: this one, or else its own; None without one."""
        return price_per_hour or self.settings.get("record.price_per_hour")

    def cost(self, price_per_hour: float | None) -> float | None:
        """What its worker-hours cost, at a price or else at its own; None without one."""
        return cost(self.worker_hours(), self.price(price_per_hour))


def check_folder(run_dir: Path, place: str) -> None:
    """Raise FileNotFoundError unless a folder, known as `place`, is a run that has started."""
    has_config, has_events = ((run_dir / name).is_file() for name in (CONFIG, EVENTS))
    if has_config and not has_events:
        raise FileNotFoundError(
            f"{place} is a run that has not started: it has {CONFIG}, but no {EVENTS}, which its "
            f"driver begins when it has its cluster; try again then"
        )
    if not has_config:
        raise FileNotFoundError(
            f"{place} is not the folder of a run: it has no {CONFIG}; it is RUNS_DIR/NAME"
        )


def preset_text(name: str, changed: Sequence[str]) -> str:
    """A preset, and how many settings differ from it."""
    return name + (f" +{len(changed)}" if changed else "")


def median_rate(rates: Sequence[float]) -> float | None:
    """The rate of a run by those of its intervals; None without one."""
    return statistics.median_high(rates) if rates else None


def cost(worker_hours: float, price_per_hour: float | None) -> float | None:
    """What workers cost; None without a price."""
    return worker_hours * price_per_hour if price_per_hour else None


def sessions(events: list[dict], times: list[float]) -> list[Session]:
    """The starts of a run; an interrupted one ends with its last event or record.

    Raises ValueError if there is none.
    """
    starts = [number for number, event in enumerate(events) if event["event"] == "start"]
    if not starts:
        raise ValueError(f"{EVENTS} has no start, with which a driver begins it: it is damaged")
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
