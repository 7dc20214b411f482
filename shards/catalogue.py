"""The catalogue: one row for every image of the sources and for everything that gives none.

    Unit (parts of a source) -> catalogue/part-00001.parquet + work/spool/00001.bin

Each unit is read once, by one task, from its first byte to its last. Every image is hashed,
decoded, shrunk and encoded there and then; the new bytes wait in the unit's spool file until their
shard is made. So the plan knows every image that it places, and no image is decoded twice.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from shards import archive, format, store, tar
from shards.archive import Part
from shards.picture import PictureConfig, Unusable, picture, unpacked

SCHEMA = pa.schema(
    [
        pa.field("source", pa.int32()),
        pa.field("archive", pa.string()),
        pa.field("member", pa.string()),
        # The bytes as they came: where they lie, and what they hash to once unpacked.
        pa.field("path", pa.string()),
        pa.field("offset", pa.int64()),
        pa.field("size", pa.int64()),
        pa.field("sha256", pa.binary(32)),
        pa.field("wnids", pa.list_(pa.string())),
        pa.field("split", pa.string()),
        # What is wrong with it; empty for images that can be used.
        pa.field("problem", pa.string()),
        pa.field("format", pa.string()),
        pa.field("mode", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("phash", pa.uint64()),
        # The bytes that go into a shard: in the spool, or (-1) as they came.
        pa.field("spool_offset", pa.int64()),
        pa.field("stored_size", pa.int64()),
        pa.field("stored_width", pa.int32()),
        pa.field("stored_height", pa.int32()),
        pa.field("stored_sha256", pa.binary(32)),
    ]
)
QUARANTINE = pa.schema([SCHEMA.field(n) for n in ("archive", "member", "offset", "problem")])
ROW_GROUP = 4096
LARGEST_FILE = 1 << 28
IDENTITY = b"catalogue"


@dataclass(frozen=True)
class Unit:
    """What one task catalogues."""

    number: int
    source: int
    fs: pafs.FileSystem
    parts: tuple[Part, ...]
    faults: tuple[archive.Fault, ...] = ()


@dataclass(frozen=True)
class Job:
    """What all tasks of one catalogue share."""

    fs: pafs.FileSystem
    root: str
    """Folder of the shard set."""
    work: str
    """Folder of the spool."""
    identity: str
    """Hash of sources and settings; parts of another catalogue are made anew."""
    config: PictureConfig

    def part(self, number: int) -> str:
        """Path of a unit's part of the catalogue."""
        return f"{self.root}/catalogue/part-{number:05d}.parquet"

    def spool(self, number: int) -> str:
        """Path of a unit's images."""
        return f"{self.work}/spool/{number:05d}.bin"


@dataclass(frozen=True)
class Done:
    """What came of a unit."""

    number: int
    images: int
    bytes: int
    problems: int


@dataclass
class Entry:
    """One file of a source before it is looked at."""

    archive: str
    member: str
    path: str
    offset: int
    size: int
    data: bytes = b""
    wnids: tuple[str, ...] = ()
    split: str = ""
    problem: str = ""


def units(sources: tuple[archive.Source, ...]) -> list[Unit]:
    """Parts in order, joined until a unit is worth a task."""
    found: list[Unit] = []
    for number, source in enumerate(sources):
        parts: list[Part] = []
        faults = source.faults
        for part in (*source.parts, None):
            if part is None or sum(p.bytes for p in parts) >= archive.PART_BYTES:
                if parts or faults:
                    found.append(Unit(len(found), number, source.fs, tuple(parts), faults))
                parts, faults = [], ()
            if part is not None:
                parts.append(part)
    return found


def catalogue_unit(unit: Unit, job: Job) -> Done:
    """Write a unit's part of the catalogue and its spool, unless they are there."""
    done = finished(unit.number, job)
    if done is not None:
        return done
    # The part is renamed after the spool is: where the part is, the spool is whole.
    with store.written(job.fs, job.part(unit.number)) as file:
        schema = SCHEMA.with_metadata({IDENTITY: job.identity.encode()})
        with (
            pq.ParquetWriter(file, schema, compression="zstd") as writer,
            store.written(job.fs, job.spool(unit.number)) as spool,
        ):
            table = _Rows(writer, schema)
            spooled = images = size = problems = 0
            for entry in unit_entries(unit):
                row, jpeg = _row(unit.source, entry, job.config, spooled)
                table.add(row)
                if jpeg is not None:
                    spool.write(jpeg)
                    spooled += len(jpeg)
                images, size = images + (not row["problem"]), size + entry.size
                problems += bool(row["problem"])
            table.flush()
            counts = {"images": images, "bytes": size, "problems": problems}
            writer.add_key_value_metadata({k: str(v) for k, v in counts.items()})
    return Done(unit.number, images, size, problems)


def finished(number: int, job: Job) -> Done | None:
    """What came of a unit that is done already."""
    if not store.exists(job.fs, job.part(number)):
        return None
    try:
        found = pq.read_metadata(job.part(number), filesystem=job.fs).metadata or {}
    except pa.ArrowInvalid:  # not ours, or from a disk that lost its power: made anew
        return None
    spooled = store.exists(job.fs, job.spool(number))
    if found.get(IDENTITY, b"").decode() != job.identity or not spooled:
        return None
    return Done(number, *(int(found[name]) for name in (b"images", b"bytes", b"problems")))


@dataclass
class _Rows:
    """Rows on their way into a Parquet file, one row group in memory."""

    writer: pq.ParquetWriter
    schema: pa.Schema
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        if len(self.rows) == ROW_GROUP:
            self.flush()

    def flush(self) -> None:
        if self.rows:
            self.writer.write_table(pa.Table.from_pylist(self.rows, self.schema))
            self.rows.clear()


def _row(
    source: int, entry: Entry, config: PictureConfig, spooled: int
) -> tuple[dict[str, Any], bytes | None]:
    """A catalogue row, and the bytes for the spool where there are any."""
    row: dict[str, Any] = {
        "source": source,
        "archive": entry.archive,
        "member": entry.member,
        "path": entry.path,
        "offset": entry.offset,
        "size": entry.size,
        "wnids": list(entry.wnids),
        "split": entry.split,
        "problem": entry.problem,
        "spool_offset": -1,
    }
    if entry.problem:
        return row, None
    try:
        data = unpacked(entry.data)
        row["sha256"] = hashlib.sha256(data).digest()
        found = picture(data, config)
    except Unusable as error:
        row["problem"] = str(error)
        return row, None
    # Bytes that came gzip-compressed do not lie in the archive as they are.
    jpeg = data if found.jpeg is None and data is not entry.data else found.jpeg
    row |= {
        "format": found.format,
        "mode": found.mode,
        "width": found.width,
        "height": found.height,
        "phash": found.phash,
        "spool_offset": -1 if jpeg is None else spooled,
        "stored_size": len(data if jpeg is None else jpeg),
        "stored_width": found.stored_width,
        "stored_height": found.stored_height,
        "stored_sha256": row["sha256"] if jpeg is None else hashlib.sha256(jpeg).digest(),
    }
    return row, jpeg


def unit_entries(unit: Unit) -> Iterator[Entry]:
    """Every file of a unit, in order, and every fault found on the way."""
    for fault in unit.faults:
        yield Entry(fault.archive, fault.member, "", fault.offset, 0, problem=fault.reason)
    for part in unit.parts:
        if part.layout == "folder":
            yield from _folder_entries(unit.fs, part)
        elif part.layout == "samples":
            yield from _sample_entries(unit.fs, part)
        else:
            yield from _tar_entries(unit.fs, part)


def _tar_entries(system: pafs.FileSystem, part: Part) -> Iterator[Entry]:
    faults: list[Entry] = []

    def damage(offset: int, reason: str) -> None:
        faults.append(Entry(part.archive, "", part.path, offset, 0, problem=reason))

    with store.Reader(system, part.path) as reader:
        for member in tar.walk(reader, part.start, part.stop, part.archive, damage):
            yield from faults
            faults.clear()
            if member.kind == "folder":
                continue
            entry = Entry(part.archive, member.name, part.path, member.offset, member.size)
            wnid, split = _class_of(member.name, part)
            entry.wnids, entry.split = ((wnid,) if wnid else ()), split
            _fill(entry, reader, member.kind)
            yield entry
        if part.has_end and not archive.ends(reader, part.stop):
            damage(part.stop, archive.NO_END)
    yield from faults


def _class_of(name: str, part: Part) -> tuple[str, str]:
    if part.wnid:
        return part.wnid, part.split
    if part.labels:
        return part.labels.get(name.rpartition("/")[2], ""), part.split
    wnid, split = archive.class_of_path(name)
    return wnid, part.split or split


def _fill(entry: Entry, read: tar.Read, kind: str = "file") -> None:
    """Read an entry's bytes, or say why not."""
    if kind != "file":
        entry.problem = f"a {kind}, not an image"
    elif not entry.wnids:
        entry.problem = "no class: neither a folder nor a list of labels says one"
    elif entry.size > LARGEST_FILE:
        entry.problem = f"a file of {entry.size} bytes; at most {LARGEST_FILE} are read"
    else:
        entry.data = bytes(read(entry.offset, entry.size))


def _folder_entries(system: pafs.FileSystem, part: Part) -> Iterator[Entry]:
    for info in store.listing(system, part.path):
        entry = Entry(part.archive, info.base_name, info.path, 0, info.size or 0)
        entry.wnids, entry.split = (part.wnid,), part.split
        if info.type != pafs.FileType.File:
            entry.problem = f"a {info.type.name.lower()}, not an image file"
            yield entry
            continue
        with store.Reader(system, info.path) as reader:
            _fill(entry, reader)
        yield entry


def _sample_entries(system: pafs.FileSystem, part: Part) -> Iterator[Entry]:
    """Samples of a WebDataset shard, also where members of different samples alternate."""
    samples: dict[str, dict[str, tar.Member]] = {}
    faults: list[Entry] = []

    def damage(offset: int, reason: str) -> None:
        faults.append(Entry(part.archive, "", part.path, offset, 0, problem=reason))

    with store.Reader(system, part.path) as reader:
        for member in tar.walk(reader, part.start, part.stop, part.archive, damage):
            if member.kind == "file":
                key, extension = format.split_name(member.name)
                samples.setdefault(key, {})[extension] = member
        if not archive.ends(reader, part.stop):
            damage(part.stop, archive.NO_END)
        yield from faults
        for key, members in samples.items():
            yield _sample(part, key, members, reader)


def _sample(part: Part, key: str, members: dict[str, tar.Member], read: tar.Read) -> Entry:
    images = [members[e] for e in format.IMAGE_EXTENSIONS if e in members]
    entry = Entry(part.archive, key, part.path, 0, 0, split=part.split)
    if not images:
        entry.problem = f"no image among {sorted(members)}"
        return entry
    entry.member, entry.offset, entry.size = images[0].name, images[0].offset, images[0].size
    texts = {
        extension: memoryview(read(member.offset, member.size))
        for extension, member in members.items()
        if extension in ("cls", "json") and member.size <= LARGEST_FILE
    }
    try:
        numbers = format.labels(key, texts, part.archive, part.label)
        entry.wnids = tuple(part.classes[number] for number in numbers)
    except (ValueError, IndexError) as error:
        entry.problem = str(error) or "label out of range"
        return entry
    _fill(entry, read)
    return entry
