"""One side of a comparison: a run with its records and evaluations, or one evaluation.

    folder or URI of a run      -> its curves, settings, costs, and the evaluations of its model
    folder of an evaluation     -> this evaluation, and if it lies in a run also the rest of that

The model of a run is the checkpoint that it reports, and until it is finished the latest that was
evaluated.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from pipeline.checkpoint.local import CONFIG
from pipeline.checkpoint.run_folder import fetched_run
from pipeline.data.dataset import set_name
from pipeline.evaluation.config import RESULT
from pipeline.evaluation.figure_names import rule
from pipeline.evaluation.paired import PREDICTIONS
from pipeline.report.run_data import EVALUATIONS, Evaluation, RunData
from pipeline.tracking.journal import EVENTS
from support.redact import redact

# protocols whose crops have other places in results that do not say to what they resized
CORNERS = ("five", "ten")


class Measure(NamedTuple):
    """What a figure was measured on, and how: equal ones can be compared."""

    fingerprint: str
    """Of the images."""
    split: str
    protocol: str
    rule: str
    """The protocol and, of several crops, what is averaged over them."""
    is_earlier: bool
    """Whether its crops are the corners of the whole rectangle, as five and ten were once."""

    def __str__(self) -> str:
        return f"{self.split}/{self.rule}" + (", corners as before" if self.is_earlier else "")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A finished evaluation under one crop protocol."""

    evaluation: Evaluation
    protocol: str

    @property
    def result(self) -> Mapping:
        """The content of its result.json."""
        return self.evaluation.result

    @property
    def measure(self) -> Measure:
        """What it can be compared with."""
        result = self.result
        how = rule(self.protocol, self.values["views"], result["average"])
        is_earlier = self.protocol in CORNERS and "resized" not in result
        return Measure(result["fingerprint"], result["split"], self.protocol, how, is_earlier)

    @property
    def values(self) -> Mapping[str, float]:
        """Its metrics, with intervals."""
        return self.result["protocols"][self.protocol]

    @property
    def predictions(self) -> Path:
        """The table of the predictions for each image; it may be missing."""
        return self.evaluation.folder / PREDICTIONS

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
    evaluations: Sequence[Evaluation]
    """Those that count: of a run that which it reports comes first, then the newest."""

    @classmethod
    def open(cls, location: str) -> "Contender":
        """Read a run or an evaluation.

        Raises FileNotFoundError if the location is neither, or a run that has not started;
        ValueError names a file that is damaged.
        """
        folder, place = fetched(location)
        is_evaluation = (folder / RESULT).is_file() and (folder / PREDICTIONS).is_file()
        run_dir = folder.parent.parent if is_evaluation else folder
        has_config, has_events = ((run_dir / name).is_file() for name in (CONFIG, EVENTS))
        if not has_config and not is_evaluation:
            raise FileNotFoundError(
                f"{redact(location)} is neither the folder of a run (with {CONFIG} and {EVENTS}) "
                f"nor that of an evaluation (with {RESULT} and {PREDICTIONS})"
            )
        is_run = not is_evaluation or (has_config and has_events)
        run = RunData(run_dir, place or None) if is_run else None
        name = run.settings["name"] if run else folder.name
        found = [Evaluation.read(folder)] if is_evaluation else run.evaluations
        return cls(
            name=f"{name}, {folder.name}" if run and is_evaluation else name,
            location=redact(location),
            model=found[0].result["checkpoint"] if is_evaluation else redact(location),
            run=run,
            evaluations=found if is_evaluation else of_model(run),
        )

    @cached_property
    def measured(self) -> dict[Measure, Measured]:
        """Evaluations of its model, the first of each measure."""
        found: dict[Measure, Measured] = {}
        for one in (one for each in self.evaluations for one in measured(each)):
            found.setdefault(one.measure, one)
        return found

    @property
    def passed_over(self) -> list[str]:
        """Evaluations of one model and measure with other figures than that which counts."""
        return [
            f"{self.name}: {one.measure} is that of {kept.evaluation.folder.name}, not of "
            f"{one.evaluation.folder.name}"
            for one in (one for each in self.evaluations for one in measured(each))
            if (kept := self.measured[one.measure]).values != one.values
        ]


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


def of_model(run: RunData) -> list[Evaluation]:
    """Evaluations of the checkpoint that a run reports, or else of the latest step, in order."""
    name = Path(run.result.get("checkpoint", "")).name

    def rank(item: Evaluation) -> tuple[bool, int]:
        return Path(item.result["checkpoint"]).name == name, item.result["step"] or 0

    best = max(map(rank, run.evaluations), default=None)
    return [item for item in run.evaluations if rank(item) == best]


def measured(evaluation: Evaluation) -> Iterator[Measured]:
    """An evaluation under each of its protocols, and that of ImageNet-V2 beside it."""
    for protocol in evaluation.result["protocols"]:
        yield Measured(evaluation=evaluation, protocol=protocol)
    if v2 := evaluation.v2:
        yield from measured(v2)


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
