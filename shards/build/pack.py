"""Archives to shards: catalogue -> plan -> shards, restartable at every step.

    sources -> units -> catalogue/part-*.parquet + spool -> plan/*.parquet -> train-00000.tar ...

Every step is a set of tasks that write one file each, whole or not at all, and that do nothing
where their file is there. A killed build is started again with the same command.
"""

import dataclasses
import functools
import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import PIL
import simplejpeg
from pyarrow import fs as pafs

from shards.build import assign, catalogue, class_stats, report, source, writer
from shards.build.archive import Source
from shards.build.config import BuildConfig
from shards.build.exclude import Excluded
from shards.build.progress import Listen, StageProgress
from shards.build.report import BuildReport
from shards.dataset import store
from shards.dataset.classes import class_list
from shards.dataset.format import MANIFEST, Manifest, Shard, open_set, write_info, write_manifest

SCHEME = 1  # raised whenever the same input would give other bytes
DEFAULT_VAL_FRACTION = 0.01
_NOT_IN_THE_BYTES = {"keep_work"}

log = logging.getLogger(__name__)
Run = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]
"""Applies a function to items and yields the results, in any order."""


def serial(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """Run tasks one after the other in this process."""
    return map(function, items)


def unheard(_: StageProgress) -> None:
    """Listen to no progress."""


def build(
    sources: Sequence[str | Path],
    out: str | Path,
    config: BuildConfig,
    *,
    run: Run = serial,
    progress: Listen | None = None,
) -> BuildReport:
    """Make the shard set at out from sources; does what is missing, nothing where all is there."""
    system, root = store.locate(out)
    locations = [str(location) for location in sources]
    told, given = settings(config), source.fingerprint(locations)
    identity = _hash(given, json.dumps(told, sort_keys=True))
    there = _finished(system, root, identity)
    if there is not None:
        return there
    for folder in (root, *(f"{root}/{name}" for name in ("catalogue", "plan", "work/spool"))):
        store.make_folder(system, folder)
        store.sweep(system, folder)
    classes = class_list(config.classes) if config.classes else None
    context = source.Context(config.source_kind, classes, system, f"{root}/work", {})
    found = source.recognise(locations, context)
    rules = _rules(config, classes, found)
    known = Excluded.load(config.exclude, config.exclude_distance, run) if config.exclude else None
    listen = progress or unheard

    job = _job(system, root, config, _hash(given, str(classes)), known is not None)
    units = catalogue.units(found)
    for _ in _heard("catalogue", catalogue.catalogue_unit, job, units, run, listen):
        pass
    parts = [(unit.number, job.part(unit.number)) for unit in units]
    tally = assign.place(system, root, parts, rules, identity, known)
    systems = tuple(one.fs for one in found)
    work = writer.ShardJob(system, root, identity, systems, job.work, config.transcode)
    splits = _shards(work, tally, run, listen)

    made = report.collected(system, root, found, [path for _, path in parts], tally, splits)
    made = dataclasses.replace(made, notes=(*made.notes, *_notes(config, rules)))
    _publish(system, root, told, found, tally, splits)
    # The report names the build that is complete: it comes last.
    report.write(system, root, identity, [store.absolute(one) for one in locations], made)
    _clean(system, root, splits, len(units), config.keep_work)
    return made


def _job(
    system: pafs.FileSystem, root: str, config: BuildConfig, given: str, hashed: bool
) -> catalogue.CatalogueJob:
    """What the tasks of the catalogue share; its identity is all that decides their bytes."""
    seen = _hash(given, str(config.transcode), config.source_kind, str(hashed), str(_versions()))
    return catalogue.CatalogueJob(system, root, f"{root}/work", seen, config.transcode, hashed)


def _versions() -> dict[str, str | int]:
    """What makes the bytes, beside the settings."""
    libraries = {"pillow": PIL.__version__, "simplejpeg": simplejpeg.__version__}
    return {**libraries, "scheme": SCHEME}


def settings(config: BuildConfig) -> dict[str, Any]:
    """All that decides the bytes of a shard set beside its sources, as manifest.json keeps it.

    Files and sets are told by their content, so that no path of this machine is in it.
    """
    fields = dataclasses.asdict(config)
    fields = {name: value for name, value in fields.items() if name not in _NOT_IN_THE_BYTES}
    if config.classes:
        fields["classes"] = Path(config.classes).name
        fields["classes_sha256"] = _hash(*class_list(config.classes))
    fields["exclude"] = [open_set(location).fingerprint for location in config.exclude]
    return fields | _versions()


def _hash(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def _finished(system: pafs.FileSystem, root: str, identity: str) -> BuildReport | None:
    """The report of this very build if it is complete; ValueError where another set lies there."""
    found = report.read(system, root)
    if found is None and store.exists(system, f"{root}/{MANIFEST}"):
        raise ValueError(f"{root} holds a shard set from elsewhere; give another --out")
    if found is not None and found.build != identity:
        raise ValueError(
            f"{root} holds a shard set of other sources or settings; give another --out, or "
            "remove it"
        )
    return None if found is None else found.report


def _heard(
    stage: str,
    function: Callable[..., Any],
    shared: Any,  # noqa: ANN401
    items: Sequence[Any],
    run: Run,
    listen: Listen,
) -> Iterator[Any]:
    """Results of tasks, with word of each one."""
    images = size = 0
    for done, result in enumerate(run(functools.partial(function, shared), items), 1):
        images, size = images + result.samples, size + result.bytes
        listen(StageProgress(stage, done, len(items), images, size))
        yield result


def _rules(
    config: BuildConfig, classes: tuple[str, ...] | None, found: Sequence[Source]
) -> class_stats.Rules:
    own = any(part.split == "val" or part.has_val for one in found for part in one.parts)
    if own and (config.val_per_class or config.val_fraction):
        raise ValueError(
            "the sources bring a val split of their own; leave val_per_class and val_fraction unset"
        )
    fraction = config.val_fraction
    if fraction is None:
        fraction = 0.0 if own or config.val_per_class is not None else DEFAULT_VAL_FRACTION
    return class_stats.Rules(
        seed=config.seed,
        classes=classes,
        min_per_class=config.min_per_class,
        small_classes=config.small_classes,
        val_per_class=config.val_per_class or 0,
        val_fraction=fraction,
        shard_samples=config.shard_samples,
        shard_bytes=assign.SHARD_BYTES,
        val_shards=config.val_shards,
    )


def _notes(config: BuildConfig, rules: class_stats.Rules) -> list[str]:
    if rules.val_per_class:
        return [f"val: {rules.val_per_class} images of each class, at most half of it"]
    if rules.val_fraction:
        why = "as asked" if config.val_fraction else "the sources bring no val split"
        return [f"val: {rules.val_fraction:.2%} of the images, by content hash ({why})"]
    return ["val: as the sources have it"]


def _shards(
    work: writer.ShardJob, tally: class_stats.Tally, run: Run, listen: Listen
) -> dict[str, tuple[Shard, ...]]:
    places = [writer.Place(s, n) for s, count in tally.shards.items() for n in range(count)]
    results = _heard("shards", writer.write_shard, work, places, run, listen)
    shards = {shard.name: shard for shard in results}
    return {
        split: tuple(shards[writer.Place(split, number).name] for number in range(count))
        for split, count in tally.shards.items()
    }


def _publish(
    system: pafs.FileSystem,
    root: str,
    told: dict[str, Any],
    found: Sequence[Source],
    tally: class_stats.Tally,
    splits: dict[str, tuple[Shard, ...]],
) -> None:
    """Write the class list and the manifest."""
    store.write_bytes(
        system, f"{root}/classes.txt", "".join(f"{c}\n" for c in tally.classes).encode()
    )
    manifest = Manifest(
        classes=tally.classes,
        splits=splits,
        settings=told,
        source=tuple({"name": s.name, "kind": s.kind, "bytes": s.bytes} for s in found),
    )
    write_info(system, root, manifest)
    write_manifest(system, root, manifest)


def _clean(
    system: pafs.FileSystem,
    root: str,
    splits: dict[str, tuple[Shard, ...]],
    units: int,
    keep_work: bool,
) -> None:
    """Remove what belongs to no finished set: the spool, and files of an abandoned plan."""
    mine = {name for shards in splits.values() for s in shards for name in (s.name, s.index_name)}
    for info in store.listing(system, root):
        if writer.SHARD_FILE.fullmatch(info.base_name) and info.base_name not in mine:
            store.discard(system, info.path)
    for info in store.listing(system, f"{root}/catalogue")[units:]:
        store.discard(system, info.path)
    for info in store.listing(system, f"{root}/plan"):
        if info.base_name not in (assign.TALLY, *(f"{split}.parquet" for split in splits)):
            store.discard(system, info.path)
    if not keep_work:
        system.delete_dir(f"{root}/work")
