"""One shard, written alone: its row group of the assignment -> the tar and its index.

The bytes of an image come from the spool of its unit. If the spool is gone, they are made again
from the archive and must have the hash in the assignment: the shard comes out the same, or not at
all.
"""

import functools
import hashlib
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from shards.build.catalogue import Job, parquet_metadata
from shards.build.transcode import Unusable, transcode, unpacked
from shards.dataset import format, store, tar
from shards.dataset.format import Shard

SHARD = {name: f"shard.{name}".encode() for name in ("plan", "bytes", "sha256")}
SHARD_FILE = re.compile(r"(train|val)-\d{5,}\.(tar|parquet)")
OPEN_FILES = 128
REQUESTS = 32  # concurrent reads of an object store
Open = Callable[[int | None, str], pa.NativeFile]
"""Opens a file of a source, given by its number, or with None a file of the shard set."""


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

    sources: tuple[pafs.FileSystem, ...]


def write_shard(job: ShardJob, place: Place) -> Shard:
    """Write a shard and its index, unless they exist."""
    shard = finished(place, job)
    if shard is not None:
        return shard
    with job.fs.open_input_file(f"{job.root}/plan/{place.split}.parquet") as file:
        rows = pq.ParquetFile(file).read_row_group(place.number).to_pylist()
    sha256, start = hashlib.sha256(), 0
    index: list[dict[str, Any]] = []
    with store.written(job.fs, f"{job.root}/{place.name}") as out:
        for row, image in zip(rows, images(rows, job), strict=True):
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
    with store.written(job.fs, f"{job.root}/{shard.index_name}") as file:
        pq.write_table(table, file, compression="zstd")
    return shard


def sample_bytes(key: str, image: bytes, classes: tuple[int, ...]) -> tuple[bytes, int]:
    """A sample as stored in a tar, and the byte in it at which the image starts."""
    pieces, size, offset = [], 0, 0
    for name, data in format.sample_members(key, image, classes):
        if data is image:
            offset = size + tar.BLOCK
        pieces += [tar.header(name, len(data)), data, bytes(-len(data) % tar.BLOCK)]
        size += tar.BLOCK + tar.padded(len(data))
    return b"".join(pieces), offset


def finished(place: Place, job: ShardJob) -> Shard | None:
    """The shard at this place if it is written already under this assignment."""
    index = f"{job.root}/{Shard(place.name, 0, 0, '').index_name}"
    metadata = parquet_metadata(job.fs, index, SHARD["plan"], job.identity)
    if metadata is None:
        return None
    size, sha256 = (metadata.metadata[SHARD[name]].decode() for name in ("bytes", "sha256"))
    if str(store.size_of(job.fs, f"{job.root}/{place.name}")) != size:
        return None
    return Shard(place.name, metadata.num_rows, int(size), sha256)


def _index_row(row: dict[str, Any], **span: int) -> dict[str, Any]:
    return {
        **{name: row[name] for name in ("key", "classes", "phash")},
        **{name: row[f"stored_{name}"] for name in ("size", "width", "height")},
        "sha256": row["stored_sha256"].hex(),
        **span,
    }


def images(rows: list[dict[str, Any]], job: ShardJob) -> Iterator[bytes]:
    """The image bytes of rows, in order, each checked against the hash in the assignment."""

    @functools.lru_cache(OPEN_FILES)  # opening a file in an object store costs a request
    def opened(source: int | None, path: str) -> pa.NativeFile:
        return (job.fs if source is None else job.sources[source]).open_input_file(path)

    fetch = functools.partial(_checked, job=job, opened=opened)
    if all(store.is_local(system) for system in (job.fs, *job.sources)):
        yield from map(fetch, rows)
        return
    with ThreadPoolExecutor(REQUESTS) as pool:
        # In windows, so that no more images than one window are in memory.
        for start in range(0, len(rows), 4 * REQUESTS):
            yield from pool.map(fetch, rows[start : start + 4 * REQUESTS])


def _checked(row: dict[str, Any], job: ShardJob, opened: Open) -> bytes:
    data = _image(row, job, opened)
    if hashlib.sha256(data).digest() != row["stored_sha256"]:
        raise ValueError(
            f"{row['archive']}: {row['member']} differs from the catalogue: its bytes or the "
            "image library changed; remove the shard set and build it again"
        )
    return data


def _image(row: dict[str, Any], job: ShardJob, opened: Open) -> bytes:
    def original() -> bytes:
        file = opened(row["source"], row["path"])
        return store.read_range(file, row["path"], row["offset"], row["size"])

    if row["spool_offset"] < 0:
        return original()
    try:
        spool = job.spool(row["unit"])
        return store.read_range(opened(None, spool), spool, row["spool_offset"], row["stored_size"])
    except FileNotFoundError:
        data = unpacked(original())
    try:
        return transcode(data, job.config).jpeg or data
    except Unusable as error:
        raise ValueError(
            f"{row['archive']}: {row['member']} was usable when it was catalogued and is not now "
            f"({error}); the archive has changed"
        ) from error
