"""Check a shard set against its manifest and indexes, and rebuild faulty shards.

Each fault names its shard and, if it has one, its key. The checks cover the structure of each tar,
counts, hashes, contiguous members, the range of labels, repeated keys, stray files and, unless
quick, that every image decodes to the size in the index.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import fs as pafs

from shards.build import archive, report, source, writer
from shards.build.config import BuildConfig
from shards.build.key import key_hashes
from shards.build.progress import Run, serial
from shards.build.transcode import Unusable, opened
from shards.dataset import format, store, tar
from shards.dataset.format import Manifest, Shard, ShardSet

SHOWN = 100

Row = dict[str, Any]
"""A row of an index (see format.INDEX)."""
Members = dict[str, tar.Member]
"""The members of a sample by extension."""


@dataclass(frozen=True)
class Fault:
    """A deviation from the manifest, the index or the format."""

    shard: str
    key: str
    reason: str

    def __str__(self) -> str:
        """The fault in one line."""
        return ": ".join(text for text in (self.shard, self.key, self.reason) if text)


@dataclass(frozen=True)
class Verified:
    """Result of a check."""

    shards: int
    samples: int
    decoded: bool
    faults: tuple[Fault, ...]

    def __str__(self) -> str:
        """The faults, and how much was checked."""
        lines = [str(fault) for fault in self.faults[:SHOWN]]
        if len(self.faults) > SHOWN:
            lines.append(f"... {len(self.faults):,} faults in all")
        count = f"{len(self.faults):,}" if self.faults else "no"
        how = "every image decoded" if self.decoded else "images not decoded (--quick)"
        summary = f"{count} faults in {self.samples:,} samples of {self.shards:,} shards; {how}"
        return "\n".join([*lines, summary])


@dataclass(frozen=True)
class _Checked:
    """One shard."""

    name: str
    faults: tuple[Fault, ...]
    keys: np.ndarray
    """Hashes of its keys, which reveal keys that occur twice in the set."""


def verify(location: str, *, quick: bool = False, run: Run = serial) -> Verified:
    """Check the shard set at location."""
    shard_set = format.open_set(location)
    shards = shard_set.manifest.shards
    check = functools.partial(_shard, shard_set, not quick)
    checked = {result.name: result for result in run(check, shards)}
    faults = [
        Fault(info.base_name, "", "not in the manifest, but a reader of *.tar would read it")
        for info in _stray_tars(shard_set)
    ]
    faults += _timm_info_faults(shard_set)
    for shard in shards:
        faults += checked[shard.name].faults
    faults += _repeated(shard_set, [(shard, checked[shard.name].keys) for shard in shards])
    return Verified(len(shards), sum(s.samples for s in shards), not quick, tuple(faults))


def _stray_tars(shard_set: ShardSet) -> list[pafs.FileInfo]:
    """Tars in the folder that are not in the manifest."""
    names = {shard.name for shard in shard_set.manifest.shards}
    entries = store.listing(shard_set.fs, shard_set.root)
    return [e for e in entries if e.base_name.endswith(".tar") and e.base_name not in names]


def _timm_info_faults(shard_set: ShardSet) -> Iterator[Fault]:
    try:
        info = json.loads(store.read_bytes(shard_set.fs, f"{shard_set.root}/{format.TIMM_INFO}"))
        lengths = {
            name: length
            for split in info["splits"].values()
            for name, length in zip(split["filenames"], split["shard_lengths"], strict=True)
        }
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError) as error:
        yield Fault(format.TIMM_INFO, "", f"cannot be read: {type(error).__name__}")
        return
    if lengths != {shard.name: shard.samples for shard in shard_set.manifest.shards}:
        yield Fault(format.TIMM_INFO, "", "its counts differ from the manifest's")


def _repeated(shard_set: ShardSet, keys: list[tuple[Shard, np.ndarray]]) -> Iterator[Fault]:
    """Keys that occur more than once in the set, given the hashes of each shard's keys."""
    values, counts = np.unique(np.concatenate([k for _, k in keys] or [[]]), return_counts=True)
    repeated = values[counts > 1]
    for shard, hashes in keys:
        rows = np.flatnonzero(np.isin(hashes, repeated))
        if rows.size:
            names = shard_set.read_index(shard)["key"].to_pylist()
            yield from (Fault(shard.name, names[row], "a key that occurs twice") for row in rows)


def _shard(shard_set: ShardSet, decode: bool, shard: Shard) -> _Checked:
    """Check one shard; problems with its files are faults, not errors."""
    try:
        rows = shard_set.read_index(shard).to_pylist()
    except (FileNotFoundError, pa.ArrowInvalid, KeyError) as error:
        fault = Fault(shard.name, "", f"its index cannot be read: {error}")
        return _Checked(shard.name, (fault,), np.zeros(0, np.uint64))
    keys = key_hashes(row["key"] for row in rows)
    try:
        reasons = list(_shard_faults(shard_set, shard, rows, decode))
    except FileNotFoundError:
        reasons = [("", "missing")]
    return _Checked(shard.name, tuple(Fault(shard.name, *reason) for reason in reasons), keys)


def _shard_faults(
    shard_set: ShardSet, shard: Shard, rows: list[Row], decode: bool
) -> Iterator[tuple[str, str]]:
    """Keys ("" for the shard as a whole) and reasons of the faults of a shard."""
    if len(rows) != shard.samples:
        yield "", f"{len(rows)} rows in the index, {shard.samples} in the manifest"
    damage: list[tuple[str, str]] = []

    def damaged(offset: int, reason: str) -> None:
        damage.append(("", f"byte {offset}: {reason}"))

    with store.RangeReader(shard_set.fs, shard_set.path(shard)) as reader:
        if reader.size != shard.bytes:
            yield "", f"{reader.size} bytes, the manifest has {shard.bytes}"
        elif reader.sha256() != shard.sha256:
            yield "", "its SHA-256 differs from the manifest's"
        place = last = 0
        for key, members in _samples(reader, shard.name, damaged):
            last = max(member.stop for member in members.values())
            row = rows[place] if place < len(rows) else None
            if row is None or key != row["key"]:
                expected = row["key"] if row else "the end"
                yield key, f"sample {place}: the index has {expected} here"
                break
            for reason in _sample_faults(shard_set.manifest, row, members, reader, decode):
                yield key, reason
            place += 1
        else:
            yield from ((row["key"], "in the index but not in the tar") for row in rows[place:])
        if not archive.ends(reader, last, reader.size):
            yield "", "no end-of-archive marker: it was cut short"
    yield from damage


def _samples(
    reader: store.RangeReader, name: str, damaged: tar.Damage
) -> Iterator[tuple[str, Members]]:
    """Key and members of each sample."""
    for key, files in format.grouped(tar.walk(reader, 0, reader.size, name, damaged)):
        members: Members = {}
        for extension, member in files:
            if extension in members:
                damaged(member.start, f"{member.name} twice in one sample")
            members[extension] = member
        yield key, members


def _sample_faults(
    manifest: Manifest, row: Row, members: Members, read: tar.Read, decode: bool
) -> Iterator[str]:
    """Reasons of the faults of a sample, given its row of the index."""
    image = next((members[e] for e in format.IMAGE_EXTENSIONS if e in members), None)
    if image is None:
        yield f"no image, only {sorted(members)}"
        return
    texts = {e: memoryview(read(m.offset, m.size)) for e, m in members.items() if m is not image}
    try:
        classes = list(format.labels(row["key"], texts, "label", manifest.label))
    except ValueError as error:
        yield str(error)
        classes = row["classes"]
    if classes != row["classes"]:
        yield f"labels {classes}, the index has {row['classes']}"
    if max(classes) >= len(manifest.classes):
        yield f"label {max(classes)}, but there are {len(manifest.classes)} classes"
    extent = min(m.start for m in members.values()), max(m.stop for m in members.values())
    indexed = tuple(row[name] for name in ("start", "stop", "offset", "size"))
    if (*extent, image.offset, image.size) != indexed:
        yield "its byte ranges differ from the index's"
    data = read(image.offset, image.size)
    if hashlib.sha256(data).hexdigest() != row["sha256"]:
        yield "the SHA-256 of its image differs from the index's"
    if decode:
        try:
            width, height = opened(data).size
        except Unusable as error:
            yield f"does not decode: {error}"
            return
        if (width, height) != (row["width"], row["height"]):
            yield f"{width}x{height} pixels, the index has {row['width']}x{row['height']}"


def repair(location: str, result: Verified, run: Run = serial) -> Iterator[str]:
    """Rebuild the shards that have faults from the sources, and yield their names.

    Raises ValueError if the set was made by another tool or a rebuilt shard differs.
    """
    shard_set = format.open_set(location)
    saved = report.read(shard_set.fs, shard_set.root)
    if saved is None:
        raise ValueError(f"{location} was not built here, so its shards cannot be rebuilt")
    names = {fault.shard for fault in result.faults}
    faulty = {
        writer.Place(split, number): shard
        for split, shards in shard_set.manifest.splits.items()
        for number, shard in enumerate(shards)
        if shard.name in names
    }
    job = _job(shard_set, saved)
    for shard in faulty.values():
        store.discard(shard_set.fs, f"{shard_set.root}/{shard.index_name}")
    for shard in run(functools.partial(writer.write_shard, job), list(faulty)):
        if shard not in faulty.values():
            raise ValueError(
                f"the rebuilt {shard.name} differs from the manifest: the sources or the image "
                "library changed; build the set anew in another folder"
            )
        yield shard.name
    for info in _stray_tars(shard_set):
        if writer.SHARD_FILE.fullmatch(info.base_name):
            store.discard(shard_set.fs, info.path)
    format.write_info(shard_set.fs, shard_set.root, shard_set.manifest)
    shard_set.fs.delete_dir(f"{shard_set.root}/work")


def _job(shard_set: ShardSet, saved: report.Saved) -> writer.ShardJob:
    """The build's job for writing shards; unpacks compressed archives again."""
    manifest, work = shard_set.manifest, f"{shard_set.root}/work"
    names = {field.name for field in dataclasses.fields(BuildConfig)}
    fields = {name: value for name, value in manifest.settings.items() if name in names}
    config = BuildConfig(**{**fields, "exclude": tuple(fields["exclude"])})
    store.make_folder(shard_set.fs, work)
    classes = manifest.classes if config.classes else None
    context = source.Context(config.source_kind, classes, shard_set.fs, work)
    systems = tuple(s.fs for s in source.recognise(list(saved.locations), context))
    return writer.ShardJob(shard_set.fs, shard_set.root, saved.build, config.transcode, systems)
