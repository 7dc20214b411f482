"""From archives to shards: catalogue -> assignment -> shards. Every step can be restarted.

    sources -> units -> catalogue/part-*.parquet + spool -> plan/*.parquet -> train-00000.tar ...

Every step is a set of tasks. Each task writes one file, whole or not at all, and does nothing if
its file exists. To continue a killed build, run the same command again.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import PIL
import simplejpeg
from pyarrow import fs as pafs

from shards.build import assign, catalogue, class_stats, report, source, writer
from shards.build.archive import Source
from shards.build.config import BuildConfig
from shards.build.exclude import Excluded
from shards.build.progress import Listen, Run, StageProgress, serial
from shards.build.report import BuildReport
from shards.dataset import store
from shards.dataset.classes import class_list
from shards.dataset.format import MANIFEST, Manifest, Shard, open_set, write_info, write_manifest

SCHEME = 1  # raised whenever the same input would give other bytes
DEFAULT_VAL_FRACTION = 0.01


def build(
    sources: Sequence[str | Path],
    out: str | Path,
    config: BuildConfig,
    *,
    run: Run = serial,
    progress: Listen | None = None,
) -> BuildReport:
    """Make the shard set at `out` from the sources; files that exist are not made again."""
    system, root = store.locate(out)
    locations = [str(location) for location in sources]
    manifest_settings, fingerprint = settings(config), source.fingerprint(locations)
    identity = _hash(fingerprint, json.dumps(manifest_settings, sort_keys=True))
    earlier_report = _finished(system, root, identity)
    if earlier_report is not None:
        return earlier_report
    for folder in (root, *(f"{root}/{name}" for name in ("catalogue", "plan", "work/spool"))):
        store.make_folder(system, folder)
        store.sweep(system, folder)
    work = f"{root}/work"
    classes = class_list(config.classes) if config.classes else None
    context = source.Context(config.source_kind, classes, system, work)
    recognised = source.recognise(locations, context)
    resolved, val_note = _val_split(config, recognised)
    known = Excluded(config.exclude, config.exclude_distance, run) if config.exclude else None

    hashed = known is not None
    # Only what decides the bytes of the catalogue: a build with another seed can use it again.
    decisive = str(config.transcode), config.source_kind, str(hashed), str(_versions())
    seen = _hash(_hash(fingerprint, str(classes)), *decisive)
    job = catalogue.CatalogueJob(system, root, seen, config.transcode, hashed)
    units = catalogue.units(recognised)
    task = functools.partial(catalogue.catalogue_unit, job)
    for _ in _results("catalogue", task, units, run, progress):
        pass
    parts = [job.part(unit.number) for unit in units]
    tally = assign.assign(system, root, parts, resolved, classes, identity, known)
    systems = tuple(one.fs for one in recognised)
    shard_job = writer.ShardJob(system, root, identity, config.transcode, systems)
    splits = _shards(shard_job, tally, run, progress)

    result = report.collected(system, root, recognised, parts, tally, splits, (val_note,))
    _publish(system, root, manifest_settings, recognised, tally, splits)
    saved = report.Saved(identity, tuple(map(store.absolute, locations)), result)
    report.write(system, root, saved)  # marks the build as complete, so it is written last
    _clean(system, root, splits, len(units))
    if not config.keep_work:
        system.delete_dir(work)
    return result


def _versions() -> dict[str, str | int]:
    """What decides the bytes of a shard set besides sources and settings."""
    return {"pillow": PIL.__version__, "simplejpeg": simplejpeg.__version__, "scheme": SCHEME}


def settings(config: BuildConfig) -> dict[str, Any]:
    """All that decides the bytes of a shard set besides its sources, as stored in manifest.json.

    Class lists and shard sets are identified by their content, so that it holds no local path.
    """
    fields = dataclasses.asdict(config)
    del fields["keep_work"]
    if config.classes:
        fields["classes"] = Path(config.classes).name
        fields["classes_sha256"] = _hash(*class_list(config.classes))
    fields["exclude"] = [open_set(location).fingerprint for location in config.exclude]
    return fields | _versions()


def _hash(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def _finished(system: pafs.FileSystem, root: str, identity: str) -> BuildReport | None:
    """The report of this build if it is complete; raises ValueError if another set is there."""
    saved = report.read(system, root)
    if saved is None and store.exists(system, f"{root}/{MANIFEST}"):
        raise ValueError(f"{root} holds a shard set from elsewhere; give another --out")
    if saved is not None and saved.build != identity:
        raise ValueError(
            f"{root} holds a shard set of other sources or settings; give another --out, or "
            "remove it"
        )
    return None if saved is None else saved.report


def _results(
    stage: str, task: Callable[[Any], Any], items: Sequence[Any], run: Run, listen: Listen | None
) -> Iterator[Any]:
    """Results of tasks; reports progress after each one."""
    images = size = 0
    for done, result in enumerate(run(task, items), 1):
        images, size = images + result.samples, size + result.bytes
        if listen is not None:
            listen(StageProgress(stage, done, len(items), images, size))
        yield result


def _val_split(config: BuildConfig, sources: Sequence[Source]) -> tuple[BuildConfig, str]:
    """The settings with the default share of val filled in if it applies, and a note about val."""
    has_val = any(part.split == "val" or part.has_val for one in sources for part in one.parts)
    if has_val and (config.val_per_class or config.val_fraction):
        raise ValueError(
            "the sources have their own val split; leave val_per_class and val_fraction unset"
        )
    if config.val_per_class:
        return config, f"val: {config.val_per_class} images of each class, at most half of it"
    share = "of the images, by content hash"
    if config.val_fraction:
        return config, f"val: {config.val_fraction:.2%} {share} (as asked)"
    if has_val or config.val_per_class is not None or config.val_fraction is not None:
        return config, "val: as the sources have it"
    config = dataclasses.replace(config, val_fraction=DEFAULT_VAL_FRACTION)
    return config, f"val: {config.val_fraction:.2%} {share} (the sources have no val split)"


def _shards(
    job: writer.ShardJob, tally: class_stats.Tally, run: Run, listen: Listen | None
) -> dict[str, tuple[Shard, ...]]:
    """Write all shards; returns them by split, in order."""
    places = [writer.Place(s, n) for s, count in tally.shards.items() for n in range(count)]
    task = functools.partial(writer.write_shard, job)
    shards = {shard.name: shard for shard in _results("shards", task, places, run, listen)}
    return {
        split: tuple(shards[place.name] for place in places if place.split == split)
        for split in tally.shards
    }


def _publish(
    system: pafs.FileSystem,
    root: str,
    manifest_settings: dict[str, Any],
    sources: Sequence[Source],
    tally: class_stats.Tally,
    splits: dict[str, tuple[Shard, ...]],
) -> None:
    """Write the class list and the manifest."""
    lines = "".join(f"{wnid}\n" for wnid in tally.classes)
    store.write_bytes(system, f"{root}/classes.txt", lines.encode())
    manifest = Manifest(
        classes=tally.classes,
        splits=splits,
        settings=manifest_settings,
        source=tuple({"name": s.name, "kind": s.kind, "bytes": s.bytes} for s in sources),
    )
    write_info(system, root, manifest)
    write_manifest(system, root, manifest)


def _clean(
    system: pafs.FileSystem, root: str, splits: dict[str, tuple[Shard, ...]], num_units: int
) -> None:
    """Remove shards, catalogue parts and assignments that an earlier, unfinished build left."""
    names = {name for shards in splits.values() for s in shards for name in (s.name, s.index_name)}
    for info in store.listing(system, root):
        if writer.SHARD_FILE.fullmatch(info.base_name) and info.base_name not in names:
            store.discard(system, info.path)
    for info in store.listing(system, f"{root}/catalogue")[num_units:]:
        store.discard(system, info.path)
    for info in store.listing(system, f"{root}/plan"):
        if info.base_name not in (assign.TALLY, *(f"{split}.parquet" for split in splits)):
            store.discard(system, info.path)
