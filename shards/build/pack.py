"""From archives to shards: catalogue -> assignment -> shards. Every step can be restarted.

    sources -> units -> catalogue/part-*.parquet + spool -> plan/*.parquet -> train-00000.tar ...

Every step is a set of tasks. Each task writes its files whole or not at all, and does nothing if
they exist. To continue a killed build, run the same command again.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pyarrow import fs as pafs

from shards.build import assign, catalogue, output, report, source, writer
from shards.build.archive import RawSource, Source, located
from shards.build.catalogue import CatalogueJob, DamagedSource, Done
from shards.build.class_stats import Tally
from shards.build.config import BuildConfig
from shards.build.exclude import Excluded, chosen
from shards.build.progress import Listen, Run, serial, shown
from shards.build.report import BuildReport, Saved
from shards.build.source import Context
from shards.build.unit import Unit, UnitFiles, expected, units
from shards.build.writer import ShardJob
from shards.dataset import store
from shards.dataset.classes import class_list
from shards.dataset.format import Manifest, Shard
from support.lease import Lease

T = TypeVar("T")
SCHEME = 2  # raised whenever the same input would give other bytes
DEFAULT_VAL_FRACTION = 0.01


def build(
    sources: Sequence[str | Path],
    out: str | Path,
    config: BuildConfig,
    *,
    run: Run = serial,
    progress: Listen | None = None,
) -> BuildReport:
    """Make the shard set at `out` from the sources; files that exist are not made again.

    Raises ValueError if sources and settings do not fit, DamagedSource if a source is damaged, and
    AlreadyLocked if another process writes the set.
    """
    system, root = store.locate(out)
    locations = [str(location) for location in sources]
    raws = [source.find(location) for location in locations]
    manifest_settings = settings(config)
    fingerprint = source.fingerprint(raws)
    identity = _hash(fingerprint, json.dumps(manifest_settings, sort_keys=True))
    recognised = ()
    saved = output.finished(system, root, identity)
    if saved is not None and not store.has_folder(system, f"{root}/work"):
        return saved.report
    if saved is None:
        output.refuse_overwriting(system, root, raws)
        recognised = recognise(raws, config)
        val_split(config, any(one.has_val for one in recognised))  # refuses what does not fit
    with output.written_here(system, root) as lease, output.undone_if_damaged(system, root):
        saved = output.finished(system, root, identity)
        if saved is None:
            files = UnitFiles(system, root, _hash(fingerprint, config.source_kind, str(SCHEME)))
            made = _Build(system, root, config, identity, files, recognised, run, progress, lease)
            saved = made.saved(tuple(map(store.absolute, locations)), manifest_settings)
        lease.check()
        output.clean(system, root, keep_work=config.keep_work)
        return saved.report


def recognise(raws: Sequence[RawSource], config: BuildConfig) -> tuple[Source, ...]:
    """The sources of a build."""
    classes = class_list(config.classes) if config.classes else None
    return source.recognise(raws, Context(config.source_kind, classes))


def settings(config: BuildConfig) -> dict[str, Any]:
    """All that decides the images of a shard set besides its sources, as in manifest.json.

    Class lists and shard sets are identified by their content, so that it holds no local path.
    """
    fields = dataclasses.asdict(config) | {"scheme": SCHEME}
    del fields["keep_work"]
    if config.minival_per_class is None:  # sets of before have no such setting
        del fields["minival_per_class"]
    if config.classes:
        fields["classes"] = Path(config.classes).name
        fields["classes_sha256"] = _hash(*class_list(config.classes))
    sets = map(chosen, config.exclude)
    fields["exclude"] = [f"{one.fingerprint}:{split}" for one, splits in sets for split in splits]
    return fields


def _hash(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


@dataclasses.dataclass
class _Build:
    """A build on its way."""

    fs: pafs.FileSystem
    root: str
    config: BuildConfig
    identity: str
    files: UnitFiles
    sources: tuple[Source, ...]
    run: Run
    progress: Listen | None
    lease: Lease

    def saved(self, locations: tuple[str, ...], manifest_settings: dict[str, Any]) -> Saved:
        """Make the set, and save the report, which marks it as complete."""
        known = None
        if self.config.exclude:
            known = Excluded(self.config.exclude, self.config.exclude_distance, self.run)
        for name in ("", "catalogue", "plan", "work/spool"):
            store.make_folder(self.fs, f"{self.root}/{name}".rstrip("/"))
            store.sweep(self.fs, f"{self.root}/{name}".rstrip("/"))
        parts, done = self._catalogue(known)
        has_val = any(unit.val for unit in done)
        # of the images as well: those of a source that was damaged and replaced are others
        content = sum(unit.content for unit in done) % 2**64
        identity = _hash(self.identity, str(content))
        drawn, val_note = val_split(self.config, has_val)
        classes = class_list(self.config.classes) if self.config.classes else None
        tally = assign.assign(
            self.fs, self.root, parts, drawn, classes, identity, known, self.progress
        )
        found = report.totals(self.fs, self.root, parts)
        damage = found.faults(self.sources, tally)
        if damage and not self.config.allow_damaged_source:
            raise DamagedSource("; ".join(damage[:5]))
        splits = self._shards(tally, identity)
        self.lease.check()
        codecs = {"codecs": [json.loads(versions) for versions in sorted(found.codecs)]}
        manifest = Manifest(
            classes=tally.classes,
            splits=splits,
            settings=manifest_settings | codecs,
            source=described(self.sources, damage),
        )
        list(output.publish(self.fs, self.root, manifest))
        notes = (val_note, *(f"damaged: {fault}" for fault in damage))
        saved = Saved(
            build=self.identity,
            plan=identity,
            units=self.files.identity,
            locations=locations,
            settings=manifest.settings,
            source=manifest.source,
            manifest=manifest.sha256,
            report=report.collected(found, self.sources, tally, splits, notes),
        )
        report.write(self.fs, self.root, saved)
        return saved

    def _catalogue(self, known: Excluded | None) -> tuple[list[str], list[Done]]:
        """Catalogue all units; returns the paths of their parts, and their counts in any order."""
        config = self.config
        drawn, _ = val_split(config, any(one.has_val for one in self.sources))
        hashed = known is not None or bool(drawn.val_per_class or drawn.val_fraction)
        classes = str(class_list(config.classes)) if config.classes else ""
        decisive = self.files.identity, str(config.transcode), str(hashed), classes
        job = CatalogueJob(
            self.fs, self.root, _hash(*decisive, str(config.seed)), config.transcode,
            self.sources, config.seed, hashed, config.allow_damaged_source,
        )  # fmt: skip
        parts: list[str] = []

        def found() -> Iterator[Unit]:
            for unit in units(self.sources, self.files):
                parts.append(job.part(unit.number))
                if not config.allow_damaged_source:
                    check(unit)
                yield unit

        careful = functools.partial(catalogue.catalogue_unit, job, isolated=True)
        results = self.run(functools.partial(catalogue.catalogue_unit, job), found(), careful)
        most = expected(self.sources)

        def total() -> int:
            return max(most, len(parts))

        done = list(self._held(shown("catalogue", results, total, self.progress)))
        for info in store.listing(self.fs, f"{self.root}/catalogue"):
            if info.path not in parts and info.base_name.endswith(".parquet"):
                store.discard(self.fs, info.path)  # of an earlier build that was given up
        return parts, done

    def _held(self, results: Iterator[T]) -> Iterator[T]:
        """The results, as long as no other process has taken over."""
        for result in results:
            if self.lease.lost:
                self.lease.check()
            yield result

    def _shards(self, tally: Tally, identity: str) -> dict[str, tuple[Shard, ...]]:
        """Write all shards; returns them by split, in order."""
        job = ShardJob(
            self.fs, self.root, identity, self.config.transcode, self.sources, self.files
        )
        tasks = [
            places
            for split, count in tally.shards.items()
            for places in writer.groups(split, count, tally.bytes[split])
        ]
        results = self.run(functools.partial(writer.write_shards, job), tasks)
        written = self._held(shown("shards", results, lambda: len(tasks), self.progress))
        shards = {shard.name: shard for result in written for shard in result.shards}
        return {
            split: tuple(shards[writer.Place(split, n).name] for n in range(count))
            for split, count in tally.shards.items()
        }


def check(unit: Unit) -> None:
    """Raise DamagedSource if damage was found on the way to a unit."""
    for fault in unit.faults:
        if fault.damage:
            place = fault.archive, fault.member, fault.offset
            raise DamagedSource(located(*place, fault.reason))


def val_split(config: BuildConfig, has_val: bool) -> tuple[BuildConfig, str]:
    """The settings with the default share of val filled in if it applies, and a note about val.

    Raises ValueError if val is to be drawn and the sources have one.
    """
    if has_val and (config.val_per_class or config.val_fraction):
        raise ValueError(
            "the sources have their own val split; leave val_per_class and val_fraction unset, or "
            "draw a minival of the training images with minival_per_class"
        )
    if config.minival_per_class:
        if not has_val:
            raise ValueError(
                "minival_per_class is for sources that have a val split of their own; these have "
                "none: draw it with val_per_class"
            )
        count = config.minival_per_class
        note = f"val: as the sources have it; minival: {count} training images of each class"
        return dataclasses.replace(config, val_per_class=count), f"{note}, at most a quarter of it"
    if config.val_per_class:
        return config, f"val: {config.val_per_class} images of each class, at most a quarter of it"
    share = "of the images, by content hash"
    if config.val_fraction:
        return config, f"val: {config.val_fraction:.2%} {share} (as asked)"
    if has_val or config.val_per_class is not None or config.val_fraction is not None:
        return config, "val: as the sources have it"
    config = dataclasses.replace(config, val_fraction=DEFAULT_VAL_FRACTION)
    return config, f"val: {config.val_fraction:.2%} {share} (the sources have no val split)"


def described(sources: Sequence[Source], damage: Sequence[str]) -> tuple[dict[str, Any], ...]:
    """The sources as in manifest.json."""
    rows = [{"name": s.name, "kind": s.kind, "bytes": s.bytes} for s in sources]
    return (*rows, *({"damage": fault} for fault in damage))
