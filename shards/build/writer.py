"""One shard, made alone: its row group of the plan -> the tar and the index beside it.

The bytes of an image come from the spool of its unit. Where that is gone they are made again from
the archive, and must then hash to what the plan says: the same shard, or an error.
"""

import functools
import hashlib
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from shards.build.config import TranscodeConfig
from shards.build.transcode import Unusable, transcode, unpacked
from shards.dataset import format, store, tar
from shards.dataset.format import Shard

SHARD = {name: f"shard.{name}".encode() for name in ("plan", "bytes", "sha256")}
SHARD_FILE = re.compile(r"(train|val)-\d{5,}\.(tar|parquet)")
OPEN_FILES = 128
REQUESTS = 32  # reads of an object store under way at once


@dataclass(frozen=True)
class Place:
    """Which shard."""

    split: str
    number: int

    @property
    def name(self) -> str:
        """File name of the tar."""
        return f"{self.split}-{self.number:05d}.tar"


@dataclass(frozen=True)
class ShardJob:
    """What the tasks of all shards share."""

    fs: pafs.FileSystem
    root: str
    plan: str
    """Hash of what the plan follows from; shards of another plan are made anew."""
    sources: tuple[pafs.FileSystem, ...]
    work: str
    config: TranscodeConfig


def write_shard(work: ShardJob, place: Place) -> Shard:
    """Write a shard and its index, unless they are there."""
    shard = finished(place, work)
    if shard is not None:
        return shard
    path = f"{work.root}/plan/{place.split}.parquet"
    with work.fs.open_input_file(path) as file:
        rows = pq.ParquetFile(file).read_row_group(place.number).to_pylist()
    hashed, offset = hashlib.sha256(), 0
    index: list[dict[str, Any]] = []
    with store.written(work.fs, f"{work.root}/{place.name}") as out:
        for row, image in zip(rows, images(rows, work), strict=True):
            sample, at = sample_bytes(row["key"], image, tuple(row["classes"]))
            hashed.update(sample)
            out.write(sample)
            index.append(_index_row(row, offset, offset + len(sample), offset + at))
            offset += len(sample)
        hashed.update(tar.END)
        out.write(tar.END)
    shard = Shard(place.name, len(rows), offset + len(tar.END), hashed.hexdigest())
    note = {
        SHARD["plan"]: work.plan,
        SHARD["bytes"]: str(shard.bytes),
        SHARD["sha256"]: shard.sha256,
    }
    table = pa.Table.from_pylist(index, format.INDEX.with_metadata(note))
    # The index is renamed after the tar is: where the index is, the tar is whole.
    with store.written(work.fs, f"{work.root}/{shard.index_name}") as file:
        pq.write_table(table, file, compression="zstd")
    return shard


def sample_bytes(key: str, image: bytes, classes: tuple[int, ...]) -> tuple[bytes, int]:
    """A sample as it lies in a tar, and where in it the image begins."""
    pieces, size, at = [], 0, 0
    for name, data in format.sample_members(key, image, classes):
        if data is image:
            at = size + tar.BLOCK
        pieces += [tar.header(name, len(data)), data, bytes(-len(data) % tar.BLOCK)]
        size += tar.BLOCK + tar.padded(len(data))
    return b"".join(pieces), at


def finished(place: Place, work: ShardJob) -> Shard | None:
    """A shard of this plan that is there already."""
    index = f"{work.root}/{Shard(place.name, 0, 0, '').index_name}"
    if not store.exists(work.fs, index):
        return None
    try:
        found = pq.read_metadata(index, filesystem=work.fs)
    except pa.ArrowInvalid:  # not ours, or from a disk that lost its power: made anew
        return None
    note = {key: (found.metadata or {}).get(name, b"").decode() for key, name in SHARD.items()}
    size = store.size_of(work.fs, f"{work.root}/{place.name}")
    if note["plan"] != work.plan or str(size) != note["bytes"]:
        return None
    return Shard(place.name, found.num_rows, int(note["bytes"]), note["sha256"])


def _index_row(row: dict[str, Any], start: int, stop: int, offset: int) -> dict[str, Any]:
    return {
        "key": row["key"],
        "start": start,
        "stop": stop,
        "offset": offset,
        "size": row["stored_size"],
        "width": row["stored_width"],
        "height": row["stored_height"],
        "classes": row["classes"],
        "sha256": row["stored_sha256"].hex(),
        "phash": row["phash"],
    }


def images(rows: list[dict[str, Any]], work: ShardJob) -> Iterator[bytes]:
    """The image bytes of rows, in order, each checked against the plan."""
    files = _Files()
    fetch = functools.partial(_checked, work=work, files=files)
    if all(store.is_local(system) for system in (work.fs, *work.sources)):
        yield from map(fetch, rows)
        return
    with ThreadPoolExecutor(REQUESTS) as pool:
        # A window at a time, so that memory holds no more than the window.
        for start in range(0, len(rows), 4 * REQUESTS):
            yield from pool.map(fetch, rows[start : start + 4 * REQUESTS])


def _checked(row: dict[str, Any], work: ShardJob, files: "_Files") -> bytes:
    data = _image(row, work, files)
    if hashlib.sha256(data).digest() != row["stored_sha256"]:
        raise ValueError(
            f"{row['archive']}: {row['member']} is not what the catalogue saw: its bytes or the "
            "image library changed; remove the shard set and build it again"
        )
    return data


def _image(row: dict[str, Any], work: ShardJob, files: "_Files") -> bytes:
    source = work.sources[row["source"]]
    if row["spool_offset"] < 0:
        return files.read(source, row["path"], row["offset"], row["size"])
    try:
        spool = f"{work.work}/spool/{row['unit']:05d}.bin"
        return files.read(work.fs, spool, row["spool_offset"], row["stored_size"])
    except FileNotFoundError:
        pass
    data = unpacked(files.read(source, row["path"], row["offset"], row["size"]))
    try:
        return transcode(data, work.config).jpeg or data
    except Unusable as error:
        raise ValueError(
            f"{row['archive']}: {row['member']} could be used when catalogued and cannot now "
            f"({error}); the archive has changed"
        ) from error


def read_range(system: pafs.FileSystem, path: str, offset: int, size: int) -> bytes:
    """Bytes [offset, offset + size) of a file."""
    return _Files().read(system, path, offset, size)


class _Files:
    """Files kept open between reads: opening one in an object store costs a request."""

    def __init__(self) -> None:
        self._open = functools.lru_cache(OPEN_FILES)(_opened)

    def read(self, system: pafs.FileSystem, path: str, offset: int, size: int) -> bytes:
        """Bytes [offset, offset + size) of a file, all of them."""
        return store.read_range(self._open(_Hashable(system), path), path, offset, size)


class _Hashable:
    """A file system as a key; Arrow's compare but do not hash."""

    def __init__(self, system: pafs.FileSystem) -> None:
        self.system = system

    def __hash__(self) -> int:
        return hash(self.system.type_name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Hashable) and self.system.equals(other.system)


def _opened(system: _Hashable, path: str) -> pa.NativeFile:
    return system.system.open_input_file(path)
