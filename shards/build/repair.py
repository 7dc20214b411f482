"""Make faulty parts of a shard set again, as the build made them.

    repair("data/in21k", ["train-00003.tar"], run) -> "train-00003.tar"

The new files are written beside the set and compared with what the build has noted. Only if all of
them are the same are they put in place, file by file. So the set is whole afterwards, or as it was.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Collection, Iterator

from pyarrow import fs as pafs

from shards.build import assign, output, report, source, writer
from shards.build.config import BuildConfig
from shards.build.progress import Run, serial
from shards.build.report import Saved
from shards.build.unit import UnitFiles
from shards.build.writer import Place, ShardJob
from shards.dataset import format, store
from shards.dataset.format import Manifest, Shard

CHANGED = (
    "the sources or the image libraries have changed since the build ({codecs}); nothing was "
    "changed: build the set anew in another folder"
)


def repair(location: str, faulty: Collection[str], run: Run = serial) -> Iterator[str]:
    """Make the faulty files of a set again, and yield the names of those that are back in place.

    Args:
        location: Folder or URI of the set.
        faulty: Names of its shards that have a fault; the manifest and what follows from it are
            always compared.
        run: How to run the tasks.

    Raises ValueError if the set was not built here or cannot be made as it was, and
    FileNotFoundError if a source is no longer where it was; the set is then unchanged.
    """
    system, root = store.locate(location)
    saved = report.read(system, root)
    if saved is None:
        raise ValueError(
            f"{location} was not made by `python -m shards build`, so its shards cannot be made "
            "again from sources; get the faulty ones again from where they came"
        )
    with output.written_here(system, root) as lease, _staging(system, root) as staging:
        for folder in (root, f"{root}/catalogue"):
            store.sweep(system, folder)
        job = _job(system, root, saved, staging)
        manifest = _manifest(job, saved, faulty, run)
        made = _shards(job, manifest, faulty, run)
        lease.check()
        for shard in made:
            for name in (shard.name, shard.index_name):
                system.move(f"{staging}/{name}", f"{root}/{name}")
            yield shard.name
        yield from output.publish(system, root, manifest)


@contextlib.contextmanager
def _staging(system: pafs.FileSystem, root: str) -> Iterator[str]:
    """An empty folder beside the shards, which goes afterwards; a kept spool stays."""
    folder = f"{root}/work/repair"
    is_kept = store.has_folder(system, f"{root}/work/spool")

    def remove() -> None:
        with contextlib.suppress(FileNotFoundError):
            system.delete_dir(folder if is_kept else f"{root}/work")

    remove()
    store.make_folder(system, folder)
    try:
        yield folder
    finally:
        remove()


def _job(system: pafs.FileSystem, root: str, saved: Saved, staging: str) -> ShardJob:
    """The build's job, which writes to another folder."""
    fields = {field.name for field in dataclasses.fields(BuildConfig)} - {"exclude", "classes"}
    config = BuildConfig(**{n: value for n, value in saved.settings.items() if n in fields})
    try:
        raws = [source.find(location) for location in saved.locations]
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"a source of the build is gone, put it back to where it was: {error}"
        ) from error
    classes = None
    if saved.settings["classes"]:
        tally = assign.finished(system, root, saved.plan)
        classes = tally.classes if tally else None
    sources = source.recognise(raws, source.Context(config.source_kind, classes))
    files = UnitFiles(system, root, saved.units)
    return ShardJob(system, root, saved.plan, config.transcode, sources, files, staging)


def _manifest(job: ShardJob, saved: Saved, faulty: Collection[str], run: Run) -> Manifest:
    """The manifest, from the file if it is as the build wrote it, and otherwise made again."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        manifest = format.open_manifest(job.fs, job.root)
        if manifest.sha256 == saved.manifest:
            return manifest
    tally = assign.finished(job.fs, job.root, saved.plan)
    if tally is None:
        raise ValueError(f"{job.root}/plan is damaged, so the manifest cannot be made again")
    in_place = dataclasses.replace(job, staging="")
    shards: dict[Place, Shard] = {}
    missing = []
    for split, count in tally.shards.items():
        for place in (Place(split, number) for number in range(count)):
            shard = None if place.name in faulty else writer.finished(place, in_place)
            if shard is None:
                missing.append(place)
            else:
                shards[place] = shard
    shards |= dict(zip(missing, _written(job, missing, run), strict=True))
    splits = {
        split: tuple(shards[Place(split, number)] for number in range(count))
        for split, count in tally.shards.items()
    }
    manifest = Manifest(
        classes=tally.classes, splits=splits, settings=saved.settings, source=saved.source
    )
    if manifest.sha256 != saved.manifest:
        raise ValueError(
            f"the manifest of {job.root} cannot be made again: more files than it are damaged; "
            "restore it from a copy, or build the set anew in another folder"
        )
    return manifest


def _shards(job: ShardJob, manifest: Manifest, faulty: Collection[str], run: Run) -> list[Shard]:
    """Make the faulty shards in the staging folder; ValueError if one differs."""
    expected = {
        Place(split, number): shard
        for split, shards in manifest.splits.items()
        for number, shard in enumerate(shards)
        if shard.name in faulty
    }
    made = _written(job, list(expected), run)
    for shard, wanted in zip(made, expected.values(), strict=True):
        if shard != wanted:
            codecs = manifest.settings["codecs"]
            raise ValueError(f"{shard.name} would differ: {CHANGED.format(codecs=codecs)}")
    return made


def _written(job: ShardJob, places: list[Place], run: Run) -> list[Shard]:
    """The shards at these places, written to the staging folder, in this order."""
    task = functools.partial(writer.write_shards, job)
    shards = {
        shard.name: shard for result in run(task, [(p,) for p in places]) for shard in result.shards
    }
    return [shards[place.name] for place in places]
