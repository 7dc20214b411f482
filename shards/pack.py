"""Archives to shards: catalogue -> plan -> shards, restartable at every step.

    sources -> units -> catalogue/part-*.parquet + spool -> plan/*.parquet -> train-00000.tar ...

Every step is a set of tasks that write one file each, whole or not at all, and that do nothing
where their file is there. A killed build is started again with the same command.
"""

import dataclasses
import functools
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL
import pyarrow.compute as pc
import pyarrow.parquet as pq
import simplejpeg
from pyarrow import fs as pafs

from shards import catalogue, placement, store, writer
from shards.archive import Kind, Source
from shards.format import MANIFEST, Manifest, Shard, write_manifest
from shards.picture import PictureConfig
from shards.report import BuildReport, Quarantined
from shards.source import recognise

REPORT = "report.json"
QUARANTINE = "quarantine.parquet"
SCHEME = 1  # raised whenever the same input would give other bytes
Run = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]
"""Applies a function to items and yields the results, in any order."""


@dataclass(frozen=True)
class Progress:
    """How far a build is."""

    stage: str
    done: int
    total: int
    images: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class BuildConfig(PictureConfig):
    """How archives become shards."""

    classes: str | None = None
    """Class list that fixes the class numbers: a file with one WordNet id per line, or the name of
    a built-in list; None takes the classes of the sources, sorted."""
    min_per_class: int = 1
    """Leave out classes with fewer images than this."""
    small_classes: bool = False
    """Also take imagenet21k_small_classes of the processed archive."""
    val_per_class: int | None = None
    """Images of each class that go to the val split, at most half of it, drawn by content hash."""
    val_fraction: float | None = None
    """Share of images that goes to the val split, drawn by content hash. With neither this nor
    val_per_class: the sources' own val split, or 0.01 where they have none."""
    exclude: tuple[str, ...] = ()
    """Shard sets whose images are left out, by content and by near-identical look."""
    exclude_distance: int = 3
    """Bits of 63 in which the perceptual hash of an excluded image may differ, 0 to 7."""
    shard_samples: int | None = None
    """Images per shard; None makes shards of about 200 MB."""
    val_shards: int = 1
    """Val shards, at least."""
    seed: int = 0
    """Seed of the order of images over shards."""
    source_kind: Kind = "auto"
    """What the sources are; auto recognises each one."""
    keep_work: bool = False
    """Keep the spool and the laid-out archives beside the shards."""

    def __post_init__(self) -> None:
        """Reject settings that contradict each other."""
        super().__post_init__()
        for name, least in (("min_per_class", 1), ("val_shards", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} ({getattr(self, name)}) must be at least {least}")
        if self.shard_samples is not None and self.shard_samples < 1:
            raise ValueError(f"shard_samples ({self.shard_samples}) must be at least 1")
        if self.val_per_class is not None and self.val_fraction is not None:
            raise ValueError("val_per_class and val_fraction are two ways to draw val; give one")
        if self.val_per_class is not None and self.val_per_class < 0:
            raise ValueError(f"val_per_class ({self.val_per_class}) must be at least 0")
        if self.val_fraction is not None and not 0 <= self.val_fraction < 1:
            raise ValueError(f"val_fraction ({self.val_fraction}) must be in [0, 1)")
        if not 0 <= self.exclude_distance <= 7:
            raise ValueError(f"exclude_distance ({self.exclude_distance}) must be 0 to 7")

    @property
    def picture(self) -> PictureConfig:
        """The settings that decide the bytes of each image."""
        names = [field.name for field in dataclasses.fields(PictureConfig)]
        return PictureConfig(**{name: getattr(self, name) for name in names})


SHARD_BYTES = 200_000_000
_NOT_IN_THE_BYTES = {"keep_work"}


def serial(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """Run tasks one after the other in this process."""
    return map(function, items)


def build(
    sources: Sequence[str | Path],
    out: str | Path,
    config: BuildConfig,
    *,
    run: Run = serial,
    progress: Callable[[Progress], None] | None = None,
) -> BuildReport:
    """Make the shard set at out from sources; does what is missing, nothing where all is there."""
    system, root = store.locate(out)
    found = recognise([str(source) for source in sources], config.source_kind)
    identity = _identity(found, config)
    report = _finished(system, root, identity)
    if report is not None:
        return report
    for folder in (root, f"{root}/catalogue", f"{root}/work", f"{root}/work/spool"):
        store.make_folder(system, folder)
        store.sweep(system, folder)
    job = catalogue.Job(
        system, root, f"{root}/work", _hash(_described(found), repr(config.picture)), config.picture
    )
    units = catalogue.units(found)
    done = _catalogue(units, job, run, progress)
    rules = _rules(config, found)
    parts = [(unit.number, job.part(unit.number)) for unit in units]
    tally = placement.place(system, root, parts, rules, identity)
    splits = _shards(job, found, identity, tally, run, progress)
    report = _report(system, root, job, found, units, done, tally, splits)
    manifest = Manifest(
        classes=tally.classes,
        splits=splits,
        settings=_settings(config),
        source=tuple({"name": s.name, "kind": s.kind, "bytes": s.bytes} for s in found),
    )
    write_manifest(system, root, manifest)
    # The report names the build that is complete: it comes last.
    text = json.dumps({"build": identity, "report": json.loads(report.to_json())}, indent=1)
    store.write_bytes(system, f"{root}/{REPORT}", text.encode())
    if not config.keep_work:
        system.delete_dir(f"{root}/work")
    return report


def _settings(config: BuildConfig) -> dict[str, Any]:
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in _NOT_IN_THE_BYTES}
    return settings | {
        "scheme": SCHEME,
        "pillow": PIL.__version__,
        "simplejpeg": getattr(simplejpeg, "__version__", ""),
    }


def _hash(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def _described(found: Sequence[Source]) -> str:
    return json.dumps(
        [
            [
                s.name,
                s.kind,
                s.bytes,
                s.modified_ns,
                [[p.archive, p.start, p.stop] for p in s.parts],
            ]
            for s in found
        ]
    )


def _identity(found: Sequence[Source], config: BuildConfig) -> str:
    return _hash(_described(found), json.dumps(_settings(config), sort_keys=True, default=str))


def _finished(system: pafs.FileSystem, root: str, identity: str) -> BuildReport | None:
    """The report of this very build if it is complete; ValueError where another set lies there."""
    if not store.exists(system, f"{root}/{REPORT}"):
        if store.exists(system, f"{root}/{MANIFEST}"):
            raise ValueError(f"{root} holds a shard set from elsewhere; give another --out")
        return None
    fields = json.loads(store.read_bytes(system, f"{root}/{REPORT}"))
    if fields["build"] != identity:
        raise ValueError(
            f"{root} holds a shard set of other sources or settings; give another --out or remove it"
        )
    return BuildReport.from_json(json.dumps(fields["report"]))


def _catalogue(
    units: Sequence[catalogue.Unit],
    job: catalogue.Job,
    run: Run,
    progress: Callable[[Progress], None] | None,
) -> list[catalogue.Done]:
    done: list[catalogue.Done] = []
    images = size = 0
    for result in run(functools.partial(catalogue.catalogue_unit, job=job), units):
        done.append(result)
        images, size = images + result.images, size + result.bytes
        if progress is not None:
            progress(Progress("catalogue", len(done), len(units), images, size))
    return done


def _rules(config: BuildConfig, found: Sequence[Source]) -> placement.Rules:
    own = any(part.split == "val" for source in found for part in source.parts)
    drawn = config.val_per_class or config.val_fraction
    if own and drawn:
        raise ValueError(
            "the sources bring a val split of their own; leave val_per_class and val_fraction unset"
        )
    fraction = config.val_fraction
    if fraction is None:
        fraction = 0.01 if config.val_per_class is None and not own else 0.0
    return placement.Rules(
        seed=config.seed,
        classes=None,
        min_per_class=config.min_per_class,
        small_classes=config.small_classes,
        val_per_class=config.val_per_class or 0,
        val_fraction=fraction,
        shard_samples=config.shard_samples,
        shard_bytes=SHARD_BYTES,
        val_shards=config.val_shards,
    )


def _shards(
    job: catalogue.Job,
    found: Sequence[Source],
    identity: str,
    tally: placement.Tally,
    run: Run,
    progress: Callable[[Progress], None] | None,
) -> dict[str, tuple[Shard, ...]]:
    work = writer.Work(
        job.fs, job.root, identity, tuple(source.fs for source in found), job.work, job.config
    )
    places = [writer.Place(s, n) for s, count in tally.shards.items() for n in range(count)]
    shards: dict[str, Shard] = {}
    images = size = 0
    for shard in run(functools.partial(writer.write_shard, work=work), places):
        shards[shard.name] = shard
        images, size = images + shard.samples, size + shard.bytes
        if progress is not None:
            progress(Progress("shards", len(shards), len(places), images, size))
    return {
        split: tuple(shards[writer.Place(split, number).name] for number in range(count))
        for split, count in tally.shards.items()
    }


def _report(
    system: pafs.FileSystem,
    root: str,
    job: catalogue.Job,
    found: Sequence[Source],
    units: Sequence[catalogue.Unit],
    done: Sequence[catalogue.Done],
    tally: placement.Tally,
    splits: dict[str, tuple[Shard, ...]],
) -> BuildReport:
    first: list[Quarantined] = []
    reasons: Counter[str] = Counter()
    with (
        store.written(system, f"{root}/{QUARANTINE}") as file,
        pq.ParquetWriter(file, catalogue.QUARANTINE) as list_,
    ):
        for unit in units:
            names = catalogue.QUARANTINE.names
            table = pq.read_table(job.part(unit.number), columns=names, filesystem=system)
            table = table.filter(pc.not_equal(table["problem"], ""))
            list_.write_table(table.cast(catalogue.QUARANTINE))
            for row in table.to_pylist():
                reasons[re.sub(r"\d+", "N", row["problem"].partition(":")[0])] += 1
                if len(first) < 100:
                    first.append(Quarantined(row["archive"], row["member"], row["problem"]))
    problems = sum(unit.problems for unit in done)
    return BuildReport(
        sources=tuple(f"{source.name}: {source.kind}" for source in found),
        classes=len(tally.classes),
        images=tally.images,
        shards=tally.shards,
        bytes={split: sum(shard.bytes for shard in shards) for split, shards in splits.items()},
        files=problems + sum(unit.images for unit in done),
        quarantined_count=problems,
        quarantined=tuple(first),
        reasons=dict(reasons.most_common()),
        duplicates=tally.merged,
        multi_label=tally.multi_label,
        crossing=tally.crossing,
        excluded=tally.excluded,
        left_out={"class not taken": tally.other_class} if tally.other_class else {},
    )
