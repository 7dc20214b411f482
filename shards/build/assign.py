"""From the catalogue to the assignment: which image goes to which position of which shard.

    catalogue parts -> buckets by content hash -> merged, filtered, split -> plan/train.parquet

The order is that of a seeded hash of the content of each image. So it does not depend on how
sources were cut or in which order tasks finished, and identical images meet in one bucket. One
bucket is in memory at a time. Row group i of an assignment file is shard i: the task of a shard
reads only its own row group.
"""

import dataclasses
import functools
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from shards.build import catalogue
from shards.build.bucket import LEFT_OUT, Appender, heads, merge, mixed
from shards.build.catalogue import parquet_table, parquet_writer
from shards.build.class_stats import ClassStats, Tally
from shards.build.config import BuildConfig
from shards.build.exclude import Excluded
from shards.build.lookalikes import Lookalikes
from shards.build.progress import Listen, StageProgress
from shards.dataset import store

T = TypeVar("T")
BUCKET_ROWS = 1 << 16
READS = 16  # parts read at once: in an object store each takes some requests
TALLY, PLAN = "tally.json", b"plan"
SHARD_BYTES = 200_000_000
TAR_OVERHEAD = 1792  # two headers, the label's block, and half a block of padding on average
_COPIED = (
    *("source", "archive", "member", "path", "offset", "size", "phash"),
    *("spool_offset", "stored_size", "stored_width", "stored_height", "stored_sha256"),
)
_COLUMNS = [*_COPIED, "sha256", "wnids", "split", "problem"]
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("classes", pa.list_(pa.int32())),
        ("unit", pa.int32()),
        *map(catalogue.SCHEMA.field, _COPIED),
    ]
)
NEAR = pa.schema(
    [
        *((name, pa.string()) for name in ("key", "archive", "member", "val_key")),
        ("bits", pa.int32()),
    ]
)


def temporary_bytes(images: int) -> int:
    """Temporary disk that the assignment of so many images takes, from above."""
    return 150 * images  # 114 measured; long member names take more


def shard_sizes(samples: int, shards: int) -> list[int]:
    """Samples per shard, equal to within one."""
    base, more = divmod(samples, shards) if shards else (0, 0)
    return [base + (number < more) for number in range(shards)]


def assign(
    system: pafs.FileSystem,
    root: str,
    parts: Sequence[str],
    config: BuildConfig,
    classes: tuple[str, ...] | None,
    identity: str,
    known: Excluded | None,
    progress: Listen | None = None,
) -> Tally:
    """Write the assignment of every split for the catalogue parts at these paths, in unit order.

    An assignment that was written under the same identity is left as it is. `classes` fixes the
    class numbers; with None they follow from the classes of the sources.
    """
    tally = finished(system, root, identity)
    if tally is not None:
        return tally
    num_rows = sum(_read_ahead(functools.partial(_num_rows, system), parts))
    num_buckets = max(1, -(-num_rows // BUCKET_ROWS))
    with tempfile.TemporaryDirectory(prefix="assignment-") as folder:
        step = _Steps(progress, len(parts) + 3 * num_buckets + 1)
        plan = _Assignment(system, root, config, ClassStats(config, classes), Path(folder), step)
        buckets = plan.merged(plan.scattered(parts, num_buckets), known)
        plan.stats.choose(plan.tally)
        splits = plan.split(buckets)
        plan.list_lookalikes(splits["train"], splits[config.drawn_split])
        store.discard(system, f"{root}/plan/{TALLY}")  # the counts of another assignment
        for split, rows in splits.items():
            if rows.count:
                plan.write(split, rows, identity)
    text = json.dumps({"plan": identity, "tally": dataclasses.asdict(plan.tally)}, indent=1)
    store.write_bytes(system, f"{root}/plan/{TALLY}", text.encode())
    step.finish()
    return plan.tally


def finished(system: pafs.FileSystem, root: str, identity: str) -> Tally | None:
    """Counts of a finished assignment of this identity; None without one, or if it is damaged."""
    try:
        fields = store.read_json(system, f"{root}/plan/{TALLY}")
    except ValueError:
        return None
    if fields is None or fields["plan"] != identity:
        return None
    counts = {f.name: fields["tally"][f.name] for f in dataclasses.fields(Tally)}
    return Tally(**{n: tuple(v) if isinstance(v, list) else v for n, v in counts.items()})


def _read_ahead(read: Callable[[str], T], paths: Sequence[str]) -> Iterator[T]:
    """What `read` gives for each path, in order, a few of them read at once."""
    with ThreadPoolExecutor(READS) as pool:
        for start in range(0, len(paths), READS):
            yield from pool.map(read, paths[start : start + READS])


def _num_rows(system: pafs.FileSystem, path: str) -> int:
    read = functools.partial(pq.read_metadata, path, filesystem=system)
    with store.reading(path):
        return store.retried(system, path, read).num_rows


@dataclass
class _Steps:
    """Progress of the assignment: parts of the catalogue, then buckets, three times over."""

    listen: Listen | None
    total: int
    done: int = 0
    images: int = 0
    bytes: int = 0

    def __call__(self, images: int = 0, size: int = 0) -> None:
        self.done, self.images, self.bytes = self.done + 1, self.images + images, self.bytes + size
        if self.listen is not None:
            self.listen(StageProgress("plan", self.done, self.total, self.images, self.bytes))

    def finish(self) -> None:
        """Report the last step, also if there were fewer than expected."""
        self.done = self.total - 1
        self()


@dataclass
class _Assignment:
    """An assignment in the making."""

    system: pafs.FileSystem
    root: str
    config: BuildConfig
    stats: ClassStats
    folder: Path
    """Of the files that are not kept."""
    step: _Steps
    tally: Tally = field(default_factory=Tally)

    def scattered(self, parts: Sequence[str], num_buckets: int) -> list[Appender]:
        """Spread usable rows over buckets by the order hash."""
        buckets = [Appender(self.folder / f"bucket-{number}") for number in range(num_buckets)]
        read = functools.partial(parquet_table, self.system, columns=_COLUMNS)
        for unit, table in enumerate(_read_ahead(read, parts)):
            if not self.config.small_classes:
                small = pc.equal(table["split"], "small")
                usable = pc.and_(small, pc.equal(table["problem"], ""))
                self.tally.small_split += pc.sum(usable).as_py() or 0
                table = table.filter(pc.invert(small))
            seen = table["wnids"]
            table = table.filter(pc.equal(table["problem"], "")).drop_columns("problem")
            self.stats.see(seen, table["wnids"])
            if table.num_rows:
                units = pa.array(np.full(table.num_rows, unit, np.int32))
                self._scatter(table.append_column("unit", units), buckets)
            self.step(table.num_rows, pc.sum(table["stored_size"]).as_py() or 0)
        for bucket in buckets:
            bucket.close()
        return buckets

    def _scatter(self, table: pa.Table, buckets: Sequence[Appender]) -> None:
        # The bucket number grows with the hash, so the buckets in sequence are in order.
        high = mixed(heads(table["sha256"]), self.config.seed) >> np.uint64(32)
        chosen = (high * np.uint64(len(buckets)) >> np.uint64(32)).astype(np.int64)
        table = table.take(pa.array(np.argsort(chosen, kind="stable")))
        ends = np.cumsum(np.bincount(chosen, minlength=len(buckets))).tolist()
        for bucket, start, end in zip(buckets, [0, *ends[:-1]], ends, strict=True):
            bucket.write(table.slice(start, end - start))

    def merged(self, buckets: Sequence[Appender], known: Excluded | None) -> list[Appender]:
        """Buckets in order without copies and images of other sets; those are written to lists."""
        merged, excluded = [], Counter(known.none_left_out if known else {})
        with self._list("duplicates", LEFT_OUT) as copied, self._list("excluded", LEFT_OUT) as gone:
            for bucket in buckets:
                merged.append(Appender(bucket.path.with_suffix(".merged")))
                if bucket.count:
                    table, copies, crossing = merge(bucket.table(), self.config.seed)
                    self.tally.merged += copies.num_rows - crossing
                    self.tally.crossing += crossing
                    copied.write_table(copies)
                    if known is not None:
                        table, left_out, counts = known.split(table)
                        excluded.update(counts)
                        gone.write_table(left_out)
                    if table.num_rows:
                        self.stats.add(table)
                        merged[-1].write(table)
                        merged[-1].close()
                    bucket.path.unlink()
                self.step()
        self.tally.excluded = dict(excluded)
        return merged

    def _list(self, name: str, schema: pa.Schema) -> AbstractContextManager[pq.ParquetWriter]:
        return parquet_writer(self.system, f"{self.root}/{name}.parquet", schema)

    def split(self, merged: Sequence[Appender]) -> dict[str, Appender]:
        """The rows of each split, in order."""
        names = dict.fromkeys(("train", "val", self.config.drawn_split))
        splits = {split: Appender(self.folder / split) for split in names}
        first = 0
        for bucket in merged:
            if bucket.count:
                table = self.stats.assigned(bucket.table(), first, self.tally)
                for split, rows in splits.items():
                    rows.write(table.filter(pc.equal(table["split"], split)).select(SCHEMA.names))
                first += bucket.count
                bucket.path.unlink()
            self.step()
        for rows in splits.values():
            rows.close()
        return splits

    def list_lookalikes(self, train: Appender, val: Appender) -> None:
        """List the images of train that look like one of a split that was drawn, `val`."""
        is_drawn = self.config.val_per_class or self.config.val_fraction
        with self._list("near-duplicates", NEAR) as writer:
            if not (is_drawn and train.count and val.count):
                return
            drawn = pa.concat_tables(t.select(["key", "phash"]) for t in val.pieces(BUCKET_ROWS))
            lookalikes = Lookalikes(drawn["phash"], self.config.exclude_distance)
            for table in train.pieces(BUCKET_ROWS):
                places, bits = lookalikes.nearest(table["phash"])
                rows = np.flatnonzero(places >= 0)
                found = table.take(pa.array(rows)).select(NEAR.names[:3]).to_pydict()
                found["val_key"] = drawn["key"].take(pa.array(places[rows])).to_pylist()
                writer.write_table(pa.table(found | {"bits": bits[rows]}, NEAR))
                self.tally.near += len(rows)
                self.step()

    def write(self, split: str, rows: Appender, identity: str) -> None:
        """Write the assignment of a split, one row group per shard."""
        shards = num_shards(rows.count, rows.bytes / rows.count + TAR_OVERHEAD, self.config)
        if split != "train":
            shards = min(rows.count, max(shards, self.config.val_shards))
        self.tally.images[split], self.tally.bytes[split] = rows.count, rows.bytes
        self.tally.shards[split] = shards
        schema = SCHEMA.with_metadata({PLAN: identity.encode()})
        path = f"{self.root}/plan/{split}.parquet"
        with parquet_writer(self.system, path, schema, compression="zstd") as writer:
            for table in rows.tables(shard_sizes(rows.count, shards)):
                writer.write_table(table.cast(schema), row_group_size=table.num_rows)


def num_shards(images: int, mean_bytes: float, config: BuildConfig) -> int:
    """Shards for images of this mean size in a tar."""
    return -(-images // (config.shard_samples or max(1, round(SHARD_BYTES / mean_bytes))))
