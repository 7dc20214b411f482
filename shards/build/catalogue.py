"""The catalogue: one row for every image of the sources and for everything that gives none.

    Unit (parts of a source) -> catalogue/part-00001.parquet + work/spool/00001.bin

Each unit is read once, by one task, from its first byte to its last. Every image is hashed,
decoded, shrunk and encoded there and then; the new bytes wait in the unit's spool file until their
shard is made. So the plan knows every image that it places, and no image is decoded twice.
"""

import hashlib
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from shards.build import archive
from shards.build.archive import Part
from shards.build.config import TranscodeConfig
from shards.build.entry import Entry, entries
from shards.build.transcode import Unusable, transcode, unpacked
from shards.dataset import store

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
class CatalogueJob:
    """What all tasks of one catalogue share."""

    fs: pafs.FileSystem
    root: str
    """Folder of the shard set."""
    work: str
    """Folder of the spool."""
    identity: str
    """Hash of sources and settings; parts of another catalogue are made anew."""
    config: TranscodeConfig
    hashed: bool
    """Whether perceptual hashes are needed."""

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
    samples: int
    """Usable images."""
    bytes: int
    problems: int


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


def catalogue_unit(job: CatalogueJob, unit: Unit) -> Done:
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
            for entry in entries(unit.fs, unit.parts, unit.faults):
                row, jpeg = _row(unit.source, entry, job, spooled)
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


def finished(number: int, job: CatalogueJob) -> Done | None:
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
    source: int, entry: Entry, job: CatalogueJob, spooled: int
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
        found = transcode(data, job.config, job.hashed)
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
