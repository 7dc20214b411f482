"""The catalogue: one row for every image of the sources and for every file that yields none.

    Unit (parts of a source) -> catalogue/part-00001.parquet + work/spool/00001.bin

One task reads each unit once, from its first byte to its last. It hashes, decodes, shrinks and
encodes every image, and keeps the new bytes in the spool file of the unit until their shard is
written. So every image is known before any is assigned to a shard, and none is decoded twice. The
spool is in the order of the shards: what a shard needs of it is one range of bytes.
"""

import contextlib
import functools
import hashlib
import json
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from shards.build.archive import Source, located
from shards.build.bucket import heads, mixed
from shards.build.config import TranscodeConfig
from shards.build.entry import Entry, entries
from shards.build.transcode import Transcoded, Unusable, codecs, transcode, unpacked
from shards.build.unit import Unit
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
        # Whether that means that images may be missing without a name.
        ("damage", pa.bool_()),
        ("format", pa.string()),
        ("mode", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("phash", pa.uint64()),
        # The bytes that go into a shard, and their byte in the spool.
        ("spool_offset", pa.int64()),
        ("stored_size", pa.int64()),
        ("stored_width", pa.int32()),
        ("stored_height", pa.int32()),
        ("stored_sha256", pa.binary(32)),
    ]
)
QUARANTINE = pa.schema([SCHEMA.field(n) for n in ("archive", "member", "offset", "problem")])
IDENTITY, CODECS = b"catalogue", b"codecs"
DONE = ("images", "bytes", "val", "content")


@dataclass(frozen=True)
class Job:
    """What all tasks of a stage share."""

    fs: pafs.FileSystem
    root: str
    """Folder of the shard set."""
    identity: str
    """Hash of sources and settings; files of another identity are replaced."""
    config: TranscodeConfig
    sources: tuple[Source, ...]

    def spool(self, number: int) -> str:
        """Path of the encoded images of a unit."""
        return f"{self.root}/work/spool/{number:05d}.bin"


@dataclass(frozen=True)
class CatalogueJob(Job):
    """What all tasks of one catalogue share."""

    seed: int
    """Of the order of the images over the shards."""
    hashed: bool
    """Whether perceptual hashes are needed."""
    allow_damage: bool
    """Whether faults of a source are recorded, and do not raise DamagedSource."""

    def part(self, number: int) -> str:
        """Path of the rows of a unit."""
        return f"{self.root}/catalogue/part-{number:05d}.parquet"


@dataclass(frozen=True)
class Done:
    """Counts of a catalogued unit."""

    samples: int
    """Usable images."""
    bytes: int
    val: int
    """Images that the sources have in a val split."""
    content: int
    """Sum of the heads of the content hashes of its images, modulo 2^64."""


class DamagedSource(ValueError):
    """A source is damaged: images may be missing from it without a name."""

    def __init__(self, faults: str) -> None:
        super().__init__(
            f"{faults}. Images may be missing from this source, and class numbers would be wrong: "
            "get it again and run the same command, or build what can be read with "
            "--allow-damaged-source"
        )
        self.faults = faults

    def __reduce__(self) -> tuple:
        return DamagedSource, (self.faults,)


def catalogue_unit(job: CatalogueJob, unit: Unit, *, isolated: bool = False) -> Done:
    """Write the rows and the spool of a unit, unless they exist; raises DamagedSource.

    With `isolated` another process decodes the images, and one that kills it is quarantined.
    """
    done = finished(unit, job)
    if done is not None:
        return done
    rows, images = [], []
    with IsolatedDecoder() if isolated else contextlib.nullcontext(transcode) as decode:
        for entry in entries(job.sources[unit.source], unit):
            if entry.damage and not job.allow_damage:
                place = entry.archive, entry.member, entry.offset
                raise DamagedSource(located(*place, entry.problem))
            row, jpeg = _row(unit.source, entry, job, decode)
            rows.append(row)
            images.append(jpeg)
    table = pa.Table.from_pylist(rows, SCHEMA)
    usable, others = _in_order(table, job.seed)
    sizes = np.array([len(images[place]) for place in usable], np.int64)
    with store.written(job.fs, job.spool(unit.number)) as spool:
        for place in usable:
            spool.write(images[place])
    offsets = SCHEMA.get_field_index("spool_offset")
    first = table.take(usable).set_column(offsets, "spool_offset", [np.cumsum(sizes) - sizes])
    table = pa.concat_tables([first, table.take(others)])
    counts = {
        "images": len(usable),
        "val": pc.sum(pc.equal(first["split"], "val")).as_py() or 0,
        "bytes": pc.sum(table["size"]).as_py() or 0,
        "damage": pc.sum(table["damage"]).as_py() or 0,
        "content": int(heads(first["sha256"]).sum(dtype=np.uint64)) if len(first) else 0,
        "spool": int(sizes.sum()),
    }
    metadata = {IDENTITY: job.identity + unit.digest, CODECS: json.dumps(codecs())}
    schema = SCHEMA.with_metadata(metadata | {name: str(n) for name, n in counts.items()})
    # The spool is renamed before the rows are: if the rows exist, the spool is whole.
    with parquet_writer(job.fs, job.part(unit.number), schema, compression="zstd") as writer:
        writer.write_table(table.cast(schema))
    return Done(*(counts[name] for name in DONE))


def finished(unit: Unit, job: CatalogueJob) -> Done | None:
    """Counts of a unit that is catalogued already; one with damage is read again."""
    metadata = parquet_metadata(job.fs, job.part(unit.number), IDENTITY, job.identity + unit.digest)
    if metadata is None or int(metadata.metadata[b"damage"]):
        return None
    if store.size_of(job.fs, job.spool(unit.number)) != int(metadata.metadata[b"spool"]):
        return None
    return Done(*(int(metadata.metadata[name.encode()]) for name in DONE))


def _in_order(table: pa.Table, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows of usable images in the order of the shards, and the other rows."""
    is_usable = pc.equal(table["problem"], "").to_numpy()
    usable = np.flatnonzero(is_usable)
    order = mixed(heads(table["sha256"].take(usable)), seed)
    return usable[np.argsort(order, kind="stable")], np.flatnonzero(~is_usable)


class IsolatedDecoder(contextlib.AbstractContextManager):
    """Decodes images in another process, which a broken one may kill."""

    def __enter__(self) -> "IsolatedDecoder":
        self._process = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        return self

    def __call__(self, data: bytes, config: TranscodeConfig, hashed: bool) -> Transcoded:
        """As `transcode`; Unusable if the process dies."""
        try:
            return self._process.submit(transcode, data, config, hashed).result()
        except BrokenProcessPool:
            self.__enter__()
            raise Unusable("decoding it killed the process: a crash, or no memory") from None

    def __exit__(self, *_: object) -> None:
        self._process.shutdown()


@contextlib.contextmanager
def parquet_writer(
    system: pafs.FileSystem, path: str, schema: pa.Schema, compression: str = "snappy"
) -> Iterator[pq.ParquetWriter]:
    """Writer of a Parquet file that appears at path when the block ends without an error."""
    with store.written(system, path) as file:
        with pq.ParquetWriter(
            file, schema, compression=compression, write_page_checksum=True
        ) as writer:
            yield writer


def parquet_table(system: pafs.FileSystem, path: str, columns: list[str]) -> pa.Table:
    """Columns of a Parquet file; StorageError if it cannot be read."""

    def read() -> pa.Table:
        with system.open_input_file(path) as file:
            return pq.read_table(file, columns=columns, page_checksum_verification=True)

    with store.reading(path):
        return store.retried(system, path, read)


def parquet_metadata(
    system: pafs.FileSystem, path: str, key: bytes, identity: str
) -> pq.FileMetaData | None:
    """Metadata of a Parquet file; None if no readable file stores this identity under the key."""
    try:
        read = functools.partial(pq.read_metadata, path, filesystem=system)
        metadata = store.retried(system, path, read)
    except (OSError, pa.ArrowInvalid):  # not there, or damaged by a power failure
        return None
    return metadata if (metadata.metadata or {}).get(key) == identity.encode() else None


def _row(
    source: int, entry: Entry, job: CatalogueJob, decode: Callable[..., Transcoded]
) -> tuple[dict[str, Any], bytes]:
    """A catalogue row, and the bytes for the spool; none if the entry yields no image."""
    row: dict[str, Any] = {"source": source, **vars(entry)}
    original = row.pop("data")
    if entry.problem:
        return row, b""
    try:
        data = unpacked(original)
        row["sha256"] = hashlib.sha256(data).digest()
        image = decode(data, job.config, job.hashed)
    except Unusable as error:
        row["problem"] = str(error)
        return row, b""
    jpeg = image.jpeg or data
    row |= {name: value for name, value in vars(image).items() if name != "jpeg"}
    row |= {"stored_size": len(jpeg), "stored_sha256": hashlib.sha256(jpeg).digest()}
    return row, jpeg
