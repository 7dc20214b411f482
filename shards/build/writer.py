"""Shards: row groups of the assignment -> tars and their indexes.

    write_shards(job, (Place("train", 6), Place("train", 7)))

The images of a few shards in a row are one range of bytes in the spool of each unit: one task reads
all these ranges and writes the shards. If a spool is gone, its images are made again from the
source and must have the hash in the assignment: a shard comes out the same, or not at all.
"""

import hashlib
import itertools
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shards.build.assign import PLAN
from shards.build.catalogue import Job, parquet_metadata
from shards.build.transcode import Unusable, transcode, unpacked
from shards.build.unit import UnitFiles
from shards.dataset import format, sample, store, tar
from shards.dataset.format import Shard

SHARD = {name: f"shard.{name}".encode() for name in ("plan", "bytes", "sha256")}
SHARD_FILE = re.compile(r"(train|val)-\d{5,}\.(tar|parquet)")
REQUESTS = 32  # concurrent reads of an object store
GAP = 1 << 19  # bytes that are read in vain rather than by another request
GROUP_BYTES, GROUPS = 1 << 29, 64
"""Images that one task holds, and the number of tasks below which each writes one shard."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Place:
    """The position of a shard in its set."""

    split: str
    number: int

    @property
    def name(self) -> str:
        """File name of the tar."""
        return f"{self.split}-{self.number:05d}.tar"


@dataclass(frozen=True)
class ShardJob(Job):
    """What the tasks of all shards share."""

    units: UnitFiles
    staging: str = ""
    """Folder to write to; empty for that of the set."""

    @property
    def folder(self) -> str:
        """Where the shards go."""
        return self.staging or self.root


@dataclass(frozen=True)
class Written:
    """The shards of a task."""

    shards: tuple[Shard, ...]

    @property
    def samples(self) -> int:
        """Images in them."""
        return sum(shard.samples for shard in self.shards)

    @property
    def bytes(self) -> int:
        """Bytes of the tars."""
        return sum(shard.bytes for shard in self.shards)


def groups(split: str, shards: int, size: int) -> list[tuple[Place, ...]]:
    """The places of a split with `size` bytes of images, as many in a row as one task writes."""
    per_task = max(1, min(GROUP_BYTES * shards // max(size, 1), shards // GROUPS))
    places = [Place(split, number) for number in range(shards)]
    return [tuple(places[n : n + per_task]) for n in range(0, shards, per_task)]


def write_shards(job: ShardJob, places: Sequence[Place]) -> Written:
    """Write the shards at these places of one split with their indexes, unless they exist."""
    shards = {place: finished(place, job) for place in places}
    missing = [place for place, shard in shards.items() if shard is None]
    if missing:
        rows = _assigned(job, missing)
        found = images(list(itertools.chain(*rows.values())), job)
        for place in missing:
            shards[place] = _write(job, place, rows[place], found)
    return Written(tuple(shards.values()))


def _assigned(job: ShardJob, places: Sequence[Place]) -> dict[Place, list[Row]]:
    """The rows of these shards of one split."""
    path = f"{job.root}/plan/{places[0].split}.parquet"

    def read() -> dict[Place, list[Row]]:
        with job.fs.open_input_file(path) as file:
            plan = pq.ParquetFile(file, pre_buffer=True, page_checksum_verification=True)
            if plan.schema_arrow.metadata[PLAN] != job.identity.encode():
                raise ValueError(f"{path} is of another build; remove it, and run it again")
            return {place: plan.read_row_group(place.number).to_pylist() for place in places}

    with store.reading(path):
        return store.retried(job.fs, path, read)


def _write(job: ShardJob, place: Place, rows: Sequence[Row], found: Iterator[bytes]) -> Shard:
    sha256, start = hashlib.sha256(), 0
    index: list[Row] = []
    with store.written(job.fs, f"{job.folder}/{place.name}") as out:
        for row, image in zip(rows, found, strict=False):
            sample, offset = sample_bytes(row["key"], image, tuple(row["classes"]))
            sha256.update(sample)
            out.write(sample)
            stop = start + len(sample)
            index.append(_index_row(row, start=start, stop=stop, offset=start + offset))
            start = stop
        sha256.update(tar.END)
        out.write(tar.END)
    shard = Shard(place.name, len(rows), start + len(tar.END), sha256.hexdigest())
    metadata = {
        SHARD["plan"]: job.identity,
        SHARD["bytes"]: str(shard.bytes),
        SHARD["sha256"]: shard.sha256,
    }
    table = pa.Table.from_pylist(index, format.INDEX.with_metadata(metadata))
    # The tar is renamed before the index is: if the index exists, the tar is whole.
    with store.written(job.fs, f"{job.folder}/{shard.index_name}") as file:
        pq.write_table(table, file, compression="zstd", write_page_checksum=True)
    return shard


def sample_bytes(key: str, image: bytes, classes: tuple[int, ...]) -> tuple[bytes, int]:
    """A sample as stored in a tar, and the byte in it at which the image starts."""
    pieces, size, offset = [], 0, 0
    for name, data in sample.sample_members(key, image, classes):
        if data is image:
            offset = size + tar.BLOCK
        pieces += [tar.header(name, len(data)), data, bytes(-len(data) % tar.BLOCK)]
        size += tar.BLOCK + tar.padded(len(data))
    return b"".join(pieces), offset


def finished(place: Place, job: ShardJob) -> Shard | None:
    """The shard at this place if it is written already under this assignment."""
    index = f"{job.folder}/{Shard(place.name, 0, 0, '').index_name}"
    metadata = parquet_metadata(job.fs, index, SHARD["plan"], job.identity)
    if metadata is None:
        return None
    size, sha256 = (metadata.metadata[SHARD[name]].decode() for name in ("bytes", "sha256"))
    if str(store.size_of(job.fs, f"{job.folder}/{place.name}")) != size:
        return None
    return Shard(place.name, metadata.num_rows, int(size), sha256)


def _index_row(row: Row, **span: int) -> Row:
    return {
        **{name: row[name] for name in ("key", "classes", "phash")},
        **{name: row[f"stored_{name}"] for name in ("size", "width", "height")},
        "sha256": row["stored_sha256"].hex(),
        **span,
    }


def images(rows: Sequence[Row], job: ShardJob) -> Iterator[bytes]:
    """The image bytes of rows, in order, each checked against the hash in the assignment."""
    places = sorted(range(len(rows)), key=lambda n: (rows[n]["unit"], rows[n]["spool_offset"]))
    runs = [list(run) for _, run in itertools.groupby(places, key=lambda n: rows[n]["unit"])]

    def read(run: Sequence[int]) -> Iterator[tuple[int, bytes]]:
        some = [rows[place] for place in run]
        try:
            return zip(run, _spooled(some, job), strict=True)
        except FileNotFoundError:
            return zip(run, _remade(some, job), strict=True)

    found: dict[int, bytes] = {}
    if store.is_local(job.fs):
        for run in runs:
            found.update(read(run))
    else:
        with ThreadPoolExecutor(REQUESTS) as pool:
            for some in pool.map(read, runs):
                found.update(some)
    # all is read before a shard is begun: an error of a source is none of writing
    return (_checked(row, found.pop(place)) for place, row in enumerate(rows))


def _checked(row: Row, data: bytes) -> bytes:
    if hashlib.sha256(data).digest() != row["stored_sha256"]:
        raise ValueError(
            f"{row['archive']}: {row['member']} differs from the catalogue: its source, its "
            "spool or the image libraries have changed"
        )
    return data


def _spooled(rows: Sequence[Row], job: ShardJob) -> list[bytes]:
    """Images from the spool of a unit, given rows in its order; FileNotFoundError without it."""
    path, found, first = job.spool(rows[0]["unit"]), [], 0
    with job.fs.open_input_file(path) as file:
        read = store.range_of(job.fs, file, path)
        for place, row in enumerate(rows, 1):
            stop = row["spool_offset"] + row["stored_size"]
            if place < len(rows) and rows[place]["spool_offset"] - stop <= GAP:
                continue
            start = rows[first]["spool_offset"]
            data = memoryview(read(start, stop - start))
            for one in rows[first:place]:
                offset = one["spool_offset"] - start
                found.append(data[offset : offset + one["stored_size"]])
            first = place
    return found


def _remade(rows: Sequence[Row], job: ShardJob) -> Iterator[bytes]:
    """Images of a unit from its source, whose bytes are read in their order."""
    source, unit = job.sources[rows[0]["source"]], job.units.read(rows[0]["unit"])
    made: dict[int, bytes] = {}
    order = sorted(range(len(rows)), key=lambda n: (rows[n]["path"], rows[n]["offset"]))
    for path, places in itertools.groupby(order, key=lambda n: rows[n]["path"]):
        with (
            store.reading(path or source.raw.path),
            source.open(unit.points if unit else (), path) as reader,
        ):
            for place in places:
                made[place] = _made(rows[place], reader, job)
    return (made[place] for place in range(len(rows)))


def _made(row: Row, read: tar.Read, job: ShardJob) -> bytes:
    try:
        data = unpacked(bytes(read(row["offset"], row["size"])))
        return transcode(data, job.config).jpeg or data
    except Unusable as error:
        raise ValueError(
            f"{row['archive']}: {row['member']} was usable when it was catalogued and is not now "
            f"({error}); the source has changed"
        ) from error
