"""A run in one line, from few small reads of its folder, on a disk or in a store.

    listing, config.json, events.jsonl, end of metrics.jsonl, result.json, lease.json -> RunSummary

States: running (a driver has the lease), finished (it has a result), stopped (it ended on purpose
before its last step, or was rolled back), diverged, failed, interrupted (its driver is gone).
"""

import contextlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from pyarrow import fs as pafs

from pipeline.checkpoint.local import CONFIG
from pipeline.evaluation.config import CENTER, RESULT
from pipeline.report.run_data import sessions
from pipeline.settings.config import TrainConfig
from pipeline.settings.presets import nearest_preset
from pipeline.tracking.journal import EVENTS, RECORDS, valid
from shards.dataset import store
from support.lease import LEASE, LIFETIME_S, is_dead

# bytes that are read from the end of the records, at first; then this many times as many
TAIL, GROWTH = 1 << 16, 8
RUNNING, FINISHED, STOPPED, UNREADABLE = "running", "finished", "stopped", "unreadable"
DIVERGED, FAILED, INTERRUPTED = "diverged", "failed", "interrupted"
ENDS = {"FINISHED": STOPPED, "FAILED": FAILED, "KILLED": INTERRUPTED}
# what a folder can raise that is not as a run writes it
BROKEN = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError)


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """What a list shows of a run, or of a search with all its trials."""

    name: str
    state: str
    preset: str = ""
    """The nearest one."""
    changed: tuple[str, ...] = ()
    """Settings in which it differs from the preset."""
    step: int = 0
    total_steps: int | None = None
    """None if the run has not begun to train."""
    images_per_s: float | None = None
    """Training rate of the last interval."""
    figure: str = ""
    """What `top1` was measured on: SPLIT/PROTOCOL."""
    top1: float | None = None
    """Of the result; of an unfinished run, that of the last evaluation."""
    hours: float | None = None
    """Of all its starts; None for a search, whose trials run side by side."""
    worker_hours: float = 0.0
    price_per_hour: float | None = None
    """Of a worker, if the run has one."""
    trials: tuple[int, int] | None = None
    """Of a search: those that have ended, and all that are planned."""
    changed_at: float = 0.0
    """Seconds since the epoch of the last event or record."""
    problem: str = ""
    """Why the folder cannot be read."""

    def cost(self, price_per_hour: float | None) -> float | None:
        """What its worker-hours cost, at a price or else at its own; None without one."""
        price = price_per_hour or self.price_per_hour
        return price * self.worker_hours if price else None


class Folder:
    """The files of one folder: a listing, and what is read of them."""

    def __init__(self, system: pafs.FileSystem, path: str) -> None:
        self._system, self.path = system, path
        infos = store.retried(system, path, partial(store.listing, system, path))
        self.infos = {info.base_name: info for info in infos}

    @property
    def name(self) -> str:
        """Its own name."""
        return self.path.rpartition("/")[2]

    def read(self, name: str, start: int = 0) -> bytes:
        """Content of a file from a byte on, as far as the listing knows it; empty without it."""
        if name not in self.infos:
            return b""
        path, size = f"{self.path}/{name}", self.infos[name].size

        def part() -> bytes:
            with self._system.open_input_file(path) as file:
                return file.read_at(size - start, start)

        return store.retried(self._system, path, part)

    def json(self, name: str) -> dict:
        """Content of a JSON object in a file; empty if there is none."""
        with explained(name):
            value = json.loads(self.read(name) or b"{}")
        if not isinstance(value, dict):
            raise ValueError(f"{name} is no JSON object")
        return value

    def lines(self, name: str, start: int = 0) -> list[dict]:
        """The complete lines of a file that begin at byte `start` or later."""
        lines = self.read(name, start).split(b"\n")[:-1]
        with explained(name):
            return [json.loads(line) for line in lines[bool(start) :]]

    @property
    def changed_at(self) -> float:
        """When the newest of its files was written."""
        times = [info.mtime_ns / 1e9 for info in self.infos.values() if info.mtime_ns]
        return max(times, default=0.0)

    def has_driver(self) -> bool:
        """Whether a driver holds the lease, and has renewed it lately by the clock of this machine.

        A list looks once; a driver that takes over watches for as long as a lease lives.
        """
        owner = self.json(LEASE).get("owner")
        if not owner or is_dead(owner):
            return False
        return time.time() - self.infos[LEASE].mtime_ns / 1e9 < LIFETIME_S


@contextlib.contextmanager
def explained(name: str) -> Iterator[None]:
    """Name the file in an error of the block about its JSON."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name} is no JSON: {error}") from error


def run_summary(folder: Folder) -> RunSummary:
    """Read a run; one of `BROKEN` if its files are not as a run writes them."""
    if CONFIG not in folder.infos:
        if folder.has_driver():  # it waits for its cluster
            return RunSummary(name=folder.name, state=RUNNING, changed_at=folder.changed_at)
        raise ValueError(f"it has no {CONFIG}")
    settings, events = folder.json(CONFIG), folder.lines(EVENTS)
    result, records = folder.json(RESULT), last_records(folder)
    preset, changed = nearest_preset(settings)
    rates = [record["images_per_s"] for record in records if "images_per_s" in record]
    starts = sessions(events, times(folder, events, records)) if events else []
    figure, top1 = main_figure(settings, result, records)
    latest = [*(event["time"] for event in events[-1:]), *(each["time"] for each in records[-1:])]
    steps = [record["step"] for record in records]
    return RunSummary(
        name=folder.name,
        state=state(events, is_done=bool(result), has_driver=folder.has_driver()),
        preset=preset,
        changed=tuple(changed),
        step=result.get("steps", max(steps, default=0)),
        total_steps=result.get("steps") or planned_steps(settings, events),
        images_per_s=result.get("images_per_s") or next(reversed(rates), None),
        figure=figure,
        top1=top1,
        hours=sum(start.hours for start in starts),
        worker_hours=sum(start.hours * start.workers for start in starts),
        price_per_hour=settings.get("record.price_per_hour"),
        changed_at=max(latest, default=folder.changed_at),
    )


def last_records(folder: Folder) -> list[dict]:
    """The end of the valid records of a run: to the last interval and evaluation, or all."""
    size = folder.infos[RECORDS].size if RECORDS in folder.infos else 0
    length, found = TAIL, []
    while True:
        start = max(0, size - length)
        found = [line for line, _ in valid((line, 0) for line in folder.lines(RECORDS, start))]
        if not start or {"train", "eval"} <= {line["kind"] for line in found}:
            return found
        length *= GROWTH


def times(folder: Folder, events: Sequence[Mapping], records: Sequence[Mapping]) -> Iterator[float]:
    """When something was recorded, as far as `sessions` needs it.

    A start that was cut short lasted until its last record, so then all records are read.
    """
    ends = [event["event"] for event in events if event["event"] in ("start", "status")]
    was_cut = ("start", "start") in zip(ends, ends[1:], strict=False)
    yield from (line["time"] for line in (folder.lines(RECORDS) if was_cut else records))


def planned_steps(settings: Mapping, events: Sequence[Mapping]) -> int | None:
    """Steps of the whole run, by its data; None if it has not opened them yet."""
    for event in reversed(events):
        if event["event"] == "dataset" and event["context"] == "training":
            length = {name: settings[name] for name in ("epochs", "global_batch")}
            return TrainConfig().replace(length).steps(event["samples"])
    return None


def main_figure(
    settings: Mapping, result: Mapping, records: Sequence[Mapping]
) -> tuple[str, float | None]:
    """What the top-1 of a run was measured on, and the top-1: of its result, or its last one."""
    split = settings.get("data.eval_split", "val")
    for protocol, values in reversed(result.get("protocols", {}).items()):
        if "top1" in values:
            return f"{split}/{protocol}", values["top1"]
    for record in reversed(records):
        if "val/top1" in record:
            return f"{split}/{CENTER}", record["val/top1"]
    return "", None


def state(events: Sequence[Mapping], *, is_done: bool, has_driver: bool) -> str:
    """How a run stands, by its events since its last start."""
    if is_done:
        return FINISHED
    if has_driver:
        return RUNNING
    starts = [number for number, event in enumerate(events) if event["event"] == "start"]
    since = events[starts[-1] :] if starts else []
    status = next((event["status"] for event in since if event["event"] == "status"), "KILLED")
    outcomes = [event["tags"].get("outcome") for event in since if event["event"] == "tags"]
    return DIVERGED if DIVERGED in outcomes else ENDS[status]
