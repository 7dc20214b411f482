"""One shard, made alone: its row group of the plan -> the tar and the index beside it.

The bytes of an image come from the spool of its unit. Where that is gone they are made again from
the archive, and must then hash to what the plan says: the same shard, or an error.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from shards import format, store, tar
from shards.format import Shard
from shards.picture import PictureConfig

SHARD = {name: f"shard.{name}".encode() for name in ("plan", "bytes", "sha256")}


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
class Work:
    """What the tasks of all shards share."""

    fs: pafs.FileSystem
    root: str
    plan: str
    sources: tuple[pafs.FileSystem, ...]
    work: str
    config: PictureConfig


def write_shard(place: Place, work: Work) -> Shard:
    """Write a shard and its index, unless they are there."""
    shard = finished(place, work)
    if shard is not None:
        return shard
    path = f"{work.root}/plan/{place.split}.parquet"
    with work.fs.open_input_file(path) as file:
        rows = pq.ParquetFile(file).read_row_group(place.number).to_pylist()
    name, hashed, offset = place.name, hashlib.sha256(), 0
    index: list[dict[str, Any]] = []
    with store.written(work.fs, f"{work.root}/{name}") as out:
        for row, image in images(rows, work):
            start, at = offset, 0
            for member, data in format.sample_members(row["key"], image, tuple(row["classes"])):
                piece = tar.header(member, len(data)) + data + bytes(-len(data) % tar.BLOCK)
                at = offset + tar.BLOCK if data is image else at
                hashed.update(piece)
                out.write(piece)
                offset += len(piece)
            index.append(_index_row(row, start, offset, at))
        hashed.update(tar.END)
        out.write(tar.END)
    shard = Shard(name, len(rows), offset + len(tar.END), hashed.hexdigest())
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


def finished(place: Place, work: Work) -> Shard | None:
    """A shard of this plan that is there already."""
    shard = Shard(place.name, 0, 0, "")
    index = f"{work.root}/{shard.index_name}"
    if not store.exists(work.fs, index):
        return None
    try:
        found = pq.read_metadata(index, filesystem=work.fs)
    except pa.ArrowInvalid:
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


def images(rows: list[dict[str, Any]], work: Work) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Rows with their image bytes, in order, each checked against the plan."""
    for row in rows:
        data = _image(row, work)
        if hashlib.sha256(data).digest() != row["stored_sha256"]:
            raise ValueError(
                f"{row['archive']}: {row['member']} is not what the catalogue saw: its bytes or the "
                "image library has changed; remove the shard set and build it again"
            )
        yield row, data


def _image(row: dict[str, Any], work: Work) -> bytes:
    if row["spool_offset"] >= 0:
        spool = f"{work.work}/spool/{row['unit']:05d}.bin"
        return read_range(work.fs, spool, row["spool_offset"], row["stored_size"])
    return read_range(work.sources[row["source"]], row["path"], row["offset"], row["size"])


def read_range(system: pafs.FileSystem, path: str, offset: int, size: int) -> bytes:
    """Bytes [offset, offset + size) of a file, all of them."""
    with system.open_input_file(path) as file:
        data = file.read_at(size, offset)
    if len(data) < size:
        raise OSError(f"{path} gave {len(data)} of {size} bytes at byte {offset}")
    return data
