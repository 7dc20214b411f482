"""A run in one line, from few small reads of its folder, on a disk or in a store.

It is from a listing, config.json, events.jsonl, the end of metrics.jsonl, result.json, lease.json.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pipeline.checkpoint.local import CONFIG
from pipeline.evaluation.config import CENTER, RESULT, EvaluateConfig
from pipeline.evaluation.figure_names import rule
from pipeline.report.run_data import cost, sessions
from pipeline.report.run_files import Folder
from pipeline.report.run_state import RUNNING, state
from pipeline.settings.config import TrainConfig
from pipeline.settings.presets import nearest_preset
from pipeline.tracking.journal import EVENTS, RECORDS, valid

# bytes that are read from the end of the records, at first; then this many times as many
TAIL, GROWTH = 1 << 16, 8
# fields of a summary that are numbers, if they are known
NUMBERS = ("step", "total_steps", "images_per_s", "top1", "half_width", "hours", "worker_hours")
NUMBERS += ("price_per_hour", "changed_at")
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
    """Median training rate of the result; of an unfinished run, the rate of its last interval."""
    figure: str = ""
    """What `top1` was measured on: SPLIT/center, SPLIT/ten-logits."""
    top1: float | None = None
    """Of the result; of an unfinished run, that of the last evaluation in training."""
    half_width: float | None = None
    """Half the 95 % interval of `top1`; None if that is not recorded, as in training."""
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

    def __post_init__(self) -> None:
        """Refuse what a damaged file has in place of a number or of a name; TypeError."""
        for name in NUMBERS:
            if not isinstance(value := getattr(self, name), int | float | None):
                raise TypeError(f"{name} is {value!r}, which is no number")
        if not isinstance(self.preset, str):
            raise TypeError(f"preset is {self.preset!r}, which is no name")

    def cost(self, price_per_hour: float | None) -> float | None:
        """What its worker-hours cost, at a price or else at its own; None without one."""
        return cost(self.worker_hours, price_per_hour or self.price_per_hour)


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
    figure, top1, half_width = main_figure(settings, result, records)
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
        half_width=half_width,
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
) -> tuple[str, float | None, float | None]:
    """The top-1 of a run, of its result or else the last: what it is of, value, half interval."""
    split, average = settings.get("data.eval_split", "val"), EvaluateConfig().average
    for protocol, values in reversed(result.get("protocols", {}).items()):
        if "top1" in values:
            figure = f"{split}/{rule(protocol, values.get('views', 1), average)}"
            half = (values["top1_high"] - values["top1_low"]) / 2 if "top1_low" in values else None
            return figure, values["top1"], half
    for record in reversed(records):
        if "val/top1" in record:
            return f"{split}/{CENTER}", record["val/top1"], None
    return "", None, None
