"""The catalogue: one row for every image of the sources and for every file that yields none.

    Unit (parts of a source) -> catalogue/part-00001.parquet + work/spool/00001.bin

One task reads each unit once, from its first byte to its last. It hashes, decodes, shrinks and
encodes every image, and keeps the new bytes in the spool file of the unit until their shard is
written. So every image is known before any is assigned to a shard, and none is decoded twice.
"""

import contextlib
import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
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
        ("source", pa.int32()),
        ("archive", pa.string()),
        ("member", pa.string()),
        # The original bytes: where they are, and their hash once unpacked.
        ("path", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("sha256", pa.binary(32)),
        ("wnids", pa.list_(pa.string())),
        ("split", pa.string()),
        # Why the file yields no image; empty for usable images.
        ("problem", pa.string()),
        ("format", pa.string()),
        ("mode", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("phash", pa.uint64()),
        # The bytes that go into a shard: at this byte of the spool, or (-1) the original ones.
        ("spool_offset", pa.int64()),
        ("stored_size", pa.int64()),
        ("stored_width", pa.int32()),
        ("stored_height", pa.int32()),
        ("stored_sha256", pa.binary(32)),
    ]
)
QUARANTINE = pa.schema([SCHEMA.field(n) for n in ("archive", "member", "offset", "problem")])
ROW_GROUP = 4096
IDENTITY = b"catalogue"


@dataclass(frozen=True)
class Unit:
    """The parts that one task catalogues."""

    number: int
    source: int
    fs: pafs.FileSystem
    parts: tuple[Part, ...]
    faults: tuple[archive.Fault, ...] = ()


@dataclass(frozen=True)
class Job:
    """What all tasks of a stage share."""

    fs: pafs.FileSystem
    root: str
    """Folder of the shard set."""
    identity: str
    """Hash of sources and settings; files of another identity are replaced."""
    config: TranscodeConfig

    def spool(self, number: int) -> str:
        """Path of the encoded images of a unit."""
        return f"{self.root}/work/spool/{number:05d}.bin"


@dataclass(frozen=True)
class CatalogueJob(Job):
    """What all tasks of one catalogue share."""

    hashed: bool
    """Whether perceptual hashes are needed."""

    def part(self, number: int) -> str:
        """Path of the rows of a unit."""
        return f"{self.root}/catalogue/part-{number:05d}.parquet"


@dataclass(frozen=True)
class Done:
    """Counts of a catalogued unit."""

    samples: int
    """Usable images."""
    bytes: int


def units(sources: tuple[archive.Source, ...]) -> list[Unit]:
    """The parts of the sources in order, joined until a unit is worth a task."""
    joined: list[Unit] = []
    for number, source in enumerate(sources):
        groups: list[list[Part]] = [[]]
        for part in source.parts:
            if sum(earlier.bytes for earlier in groups[-1]) >= archive.PART_BYTES:
                groups.append([])
            groups[-1].append(part)
        for group in groups:
            faults = source.faults if group is groups[0] else ()
            if group or faults:
                joined.append(Unit(len(joined), number, source.fs, tuple(group), faults))
    return joined


def catalogue_unit(job: CatalogueJob, unit: Unit) -> Done:
    """Write the rows and the spool of a unit, unless they exist."""
    done = finished(unit.number, job)
    if done is not None:
        return done
    schema = SCHEMA.with_metadata({IDENTITY: job.identity.encode()})
    counts = dict.fromkeys(("images", "bytes", "problems"), 0)
    # The spool is renamed before the rows are: if the rows exist, the spool is whole.
    with parquet_writer(job.fs, job.part(unit.number), schema, compression="zstd") as writer:
        with store.written(job.fs, job.spool(unit.number)) as spool:
            rows = _rows(unit, job, spool)
            while group := list(itertools.islice(rows, ROW_GROUP)):
                writer.write_table(pa.Table.from_pylist(group, schema))
                num_problems = sum(bool(row["problem"]) for row in group)
                counts["images"] += len(group) - num_problems
                counts["bytes"] += sum(row["size"] for row in group)
                counts["problems"] += num_problems
        writer.add_key_value_metadata({name: str(count) for name, count in counts.items()})
    return Done(counts["images"], counts["bytes"])


def finished(number: int, job: CatalogueJob) -> Done | None:
    """Counts of a unit that is catalogued already."""
    metadata = parquet_metadata(job.fs, job.part(number), IDENTITY, job.identity)
    if metadata is None or not store.exists(job.fs, job.spool(number)):
        return None
    return Done(int(metadata.metadata[b"images"]), int(metadata.metadata[b"bytes"]))


@contextlib.contextmanager
def parquet_writer(
    system: pafs.FileSystem, path: str, schema: pa.Schema, compression: str = "snappy"
) -> Iterator[pq.ParquetWriter]:
    """Writer of a Parquet file that appears at path when the block ends without an error."""
    with store.written(system, path) as file:
        with pq.ParquetWriter(file, schema, compression=compression) as writer:
            yield writer


def parquet_metadata(
    system: pafs.FileSystem, path: str, key: bytes, identity: str
) -> pq.FileMetaData | None:
    """Metadata of a Parquet file; None if no readable file stores this identity under the key."""
    try:
        metadata = pq.read_metadata(path, filesystem=system)
    except (FileNotFoundError, pa.ArrowInvalid):  # ArrowInvalid: cut short by a power failure
        return None
    return metadata if (metadata.metadata or {}).get(key) == identity.encode() else None


def _rows(unit: Unit, job: CatalogueJob, spool: pa.NativeFile) -> Iterator[dict[str, Any]]:
    """Rows of a unit; bytes that shards will need go to the spool."""
    spooled = 0
    for entry in entries(unit.fs, unit.parts, unit.faults):
        row, jpeg = _row(unit.source, entry, job)
        if jpeg is not None:
            row["spool_offset"] = spooled
            spool.write(jpeg)
            spooled += len(jpeg)
        yield row


def _row(source: int, entry: Entry, job: CatalogueJob) -> tuple[dict[str, Any], bytes | None]:
    """A catalogue row, and the bytes for the spool if there are any."""
    row: dict[str, Any] = {"source": source, "spool_offset": -1, **vars(entry)}
    original = row.pop("data")
    if entry.problem:
        return row, None
    try:
        data = unpacked(original)
        row["sha256"] = hashlib.sha256(data).digest()
        image = transcode(data, job.config, job.hashed)
    except Unusable as error:
        row["problem"] = str(error)
        return row, None
    # If the original is gzip-compressed, the unpacked bytes are not in the archive.
    jpeg = data if image.jpeg is None and data is not original else image.jpeg
    row |= {name: value for name, value in vars(image).items() if name != "jpeg"}
    row["stored_size"] = len(data if jpeg is None else jpeg)
    row["stored_sha256"] = row["sha256"] if jpeg is None else hashlib.sha256(jpeg).digest()
    return row, jpeg
