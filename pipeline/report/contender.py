"""One side of a comparison: a run with its records and evaluations, or one evaluation.

    folder or URI of a run      -> its curves, settings, costs, and the evaluations of its model
    folder of an evaluation     -> this evaluation, and if it lies in a run also the rest of that

The model of a run is the checkpoint that it reports, and until it is finished the latest that was
evaluated.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from pipeline.checkpoint.local import CONFIG
from pipeline.checkpoint.run_folder import fetched_run
from pipeline.data.dataset import set_name
from pipeline.evaluation.config import RESULT
from pipeline.evaluation.paired import PREDICTIONS
from pipeline.report.run_data import RunData
from pipeline.report.run_summary import Folder, state
from pipeline.tracking.journal import EVENTS, read_records
from shards.dataset import store
from support.redact import redact

EVALUATIONS = "evaluations"


class Measure(NamedTuple):
    """What a figure was measured on, and how: equal ones can be compared."""

    fingerprint: str
    """Of the images."""
    split: str
    protocol: str
    average: str
    """Of the crops of an image; empty with one crop."""

    def __str__(self) -> str:
        return f"{self.split}/{self.protocol}" + (f"-{self.average}" if self.average else "")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A finished evaluation under one crop protocol."""

    folder: Path
    result: Mapping
    protocol: str

    @property
    def measure(self) -> Measure:
        """What it can be compared with."""
        result, is_one = self.result, self.values["views"] == 1
        average = "" if is_one else result["average"]
        return Measure(result["fingerprint"], result["split"], self.protocol, average)

    @property
    def values(self) -> Mapping[str, float]:
        """Its metrics, with intervals."""
        return self.result["protocols"][self.protocol]

    @property
    def has_predictions(self) -> bool:
        """Whether the predictions for each image are beside the result."""
        return (self.folder / PREDICTIONS).is_file()

    @property
    def title(self) -> str:
        """What it was measured on, with the name of the shard set."""
        return f"{set_name(self.result['data'])} {self.measure}"


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A run, or one evaluation."""

    name: str
    location: str
    """As it was given, without secrets."""
    model: str
    """What `evaluate` takes for its model."""
    run: RunData | None
    """None for an evaluation that lies in no run."""
    state: str
    """How the run stands (`pipeline.report.run_summary`)."""
    records: Sequence[Mapping]
    """The valid records of the run."""
    measured: Mapping[Measure, Measured]
    """Evaluations of its model."""

    @classmethod
    def open(cls, location: str) -> "Contender":
        """Read a run or an evaluation; FileNotFoundError if the location is neither."""
        folder, run_place = fetched(location)
        is_evaluation = (folder / RESULT).is_file() and (folder / PREDICTIONS).is_file()
        run_dir = folder.parent.parent if is_evaluation else folder
        known = (run_dir / CONFIG).is_file() and (run_dir / EVENTS).is_file()
        if not known and not is_evaluation:
            raise FileNotFoundError(
                f"{redact(location)} is neither the folder of a run (with {CONFIG} and {EVENTS}) "
                f"nor that of an evaluation (with {RESULT} and {PREDICTIONS})"
            )
        results = [folder / RESULT] if is_evaluation else run_dir.glob(f"{EVALUATIONS}/*/{RESULT}")
        found = [(path.parent, json.loads(path.read_text())) for path in sorted(results)]
        run = RunData(run_dir) if known else None
        name = run.settings["name"] if run else folder.name
        return cls(
            name=f"{name}, {folder.name}" if run and is_evaluation else name,
            location=redact(location),
            model=found[0][1]["checkpoint"] if is_evaluation else redact(location),
            run=run,
            state=state_at(run, run_place or str(run_dir)) if run else "",
            records=[record for record, _ in read_records(run_dir)] if run else [],
            measured=of_model(found, reported(run_dir)),
        )


def fetched(location: str) -> tuple[Path, str]:
    """The folder of a run or an evaluation, and the URI of the run if it is in a store.

    What is in a store is copied here first.
    """
    if "://" not in location:
        return Path(location).absolute(), ""
    place, mark, options = location.partition("?")
    run, is_below, name = place.rstrip("/").rpartition(f"/{EVALUATIONS}/")
    if not is_below:
        return fetched_run(location), location
    run += mark + options
    return fetched_run(run) / EVALUATIONS / name, run


def state_at(run: RunData, place: str) -> str:
    """How a run stands: the copy of one in a store does not tell whether it has a driver."""
    has_driver = Folder(*store.locate(place)).has_driver()
    return state(run.events, is_done=(run.dir / RESULT).is_file(), has_driver=has_driver)


def reported(run_dir: Path) -> str:
    """Name of the checkpoint that a run reports; empty if it is not finished."""
    path = run_dir / RESULT
    result = json.loads(path.read_text()) if path.is_file() else {}
    return Path(result.get("checkpoint", "")).name


def of_model(found: Sequence[tuple[Path, Mapping]], name: str) -> dict[Measure, Measured]:
    """Evaluations of the checkpoint of this name, or else of the latest step, by their measure."""

    def rank(result: Mapping) -> tuple[bool, int]:
        return Path(result["checkpoint"]).name == name, result["step"] or 0

    best = max((rank(result) for _, result in found), default=None)
    kept = [each for each in found if rank(each[1]) == best]
    return {one.measure: one for folder, result in kept for one in measured(folder, result)}


def measured(folder: Path, result: Mapping) -> Iterator[Measured]:
    """An evaluation under each of its protocols, and that of ImageNet-V2 beside it."""
    for protocol in result["protocols"]:
        yield Measured(folder=folder, result=result, protocol=protocol)
    if "v2" in result:
        yield from measured(folder / "v2", result["v2"])


def opened(locations: Sequence[str]) -> list[Contender]:
    """Read all; ValueError if there are fewer than two, or one twice. Their names differ."""
    if len(locations) < 2:
        raise ValueError("compare needs two runs or more: the first is what others are compared to")
    for location in locations:
        if locations.count(location) > 1:
            raise ValueError(f"{redact(location)} is given twice")
    found = [Contender.open(location) for location in locations]
    names = [each.name for each in found]
    short = endings([each.location for each in found])
    return [
        replace(each, name=ending) if names.count(each.name) > 1 else each
        for each, ending in zip(found, short, strict=True)
    ]


def endings(locations: Sequence[str]) -> list[str]:
    """The last parts of locations that are not equal, as few as tell all of them apart."""
    parts = [location.rstrip("/").split("/") for location in locations]
    for count in range(1, max(map(len, parts))):
        found = ["/".join(each[-count:]) for each in parts]
        if len({*found}) == len(found):
            return found
    return list(locations)
