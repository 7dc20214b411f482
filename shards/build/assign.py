"""From the catalogue to the assignment: which image goes to which position of which shard.

    catalogue parts -> buckets by content hash -> merged, filtered, split -> plan/train.parquet

The order is that of a seeded hash of the content of each image. So it does not depend on how
sources were cut or in which order tasks finished, and identical images meet in one bucket. One
bucket is in memory at a time. Row group i of an assignment file is shard i: the task of a shard
reads only its own row group.
"""

import dataclasses
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from shards.build import catalogue
from shards.build.bucket import Appender, heads, mixed
from shards.build.catalogue import parquet_writer
from shards.build.class_stats import SPLIT_SEED, ClassStats, Tally
from shards.build.config import BuildConfig
from shards.build.duplicate import LEFT_OUT, Known, exclude, merge
from shards.build.key import key_hashes, stem
from shards.dataset import store

BUCKET_ROWS = 1 << 17
TALLY = "tally.json"
SHARD_BYTES = 200_000_000
TAR_OVERHEAD = 1792  # two headers, the label's block, and half a block of padding on average
_COPIED = (
    *("source", "archive", "member", "path", "offset", "size", "phash"),
    *("spool_offset", "stored_size", "stored_width", "stored_height", "stored_sha256"),
)
_UNUSED = ("format", "mode", "width", "height")
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("classes", pa.list_(pa.int32())),
        ("unit", pa.int32()),
        *map(catalogue.SCHEMA.field, _COPIED),
    ]
)


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
    known: Known | None,
) -> Tally:
    """Write the assignment of every split for the catalogue parts at these paths, in unit order.

    An assignment that was written under the same identity is left as it is. `classes` fixes the
    class numbers; with None they follow from the classes of the sources.
    """
    tally = _finished(system, root, identity)
    if tally is not None:
        return tally
    tally = Tally()
    with tempfile.TemporaryDirectory(prefix="placement-") as name:
        folder = Path(name)
        buckets = _scatter(system, parts, config, folder, tally)
        stats = ClassStats(config, classes)
        merged = _merged(system, root, buckets, stats, known, tally)
        tally.classes, numbers = stats.choose()
        splits = {split: Appender(folder / f"{split}.arrow") for split in ("train", "val")}
        for bucket in merged:
            if bucket.count:
                table = _assigned(bucket.table(), stats, numbers, tally)
                for split, rows in splits.items():
                    rows.write(table.filter(pc.equal(table["split"], split)).select(SCHEMA.names))
        for split, rows in splits.items():
            rows.close()
            if rows.count:
                shards = num_shards(rows.count, rows.bytes / rows.count + TAR_OVERHEAD, config)
                if split == "val":
                    shards = min(rows.count, max(shards, config.val_shards))
                tally.images[split], tally.bytes[split] = rows.count, rows.bytes
                tally.shards[split] = shards
                _write(system, f"{root}/plan/{split}.parquet", rows, shards, identity)
    text = json.dumps({"plan": identity, "tally": dataclasses.asdict(tally)}, indent=1)
    store.write_bytes(system, f"{root}/plan/{TALLY}", text.encode())
    return tally


def _finished(system: pafs.FileSystem, root: str, identity: str) -> Tally | None:
    """Counts of a finished assignment of this identity."""
    fields = store.read_json(system, f"{root}/plan/{TALLY}")
    if fields is None or fields["plan"] != identity:
        return None
    counts = {f.name: fields["tally"][f.name] for f in dataclasses.fields(Tally)}
    return Tally(**{**counts, "classes": tuple(counts["classes"])})


def _scatter(
    system: pafs.FileSystem, parts: Sequence[str], config: BuildConfig, folder: Path, tally: Tally
) -> list[Appender]:
    """Spread usable rows over buckets by the order hash."""
    num_rows = sum(pq.read_metadata(path, filesystem=system).num_rows for path in parts)
    num_buckets = max(1, -(-num_rows // BUCKET_ROWS))
    buckets = [Appender(folder / f"bucket-{number}.arrow") for number in range(num_buckets)]
    columns = [name for name in catalogue.SCHEMA.names if name not in _UNUSED]
    for unit, path in enumerate(parts):
        table = pq.read_table(path, columns=columns, filesystem=system)
        table = table.filter(pc.equal(table["problem"], "")).drop_columns("problem")
        if not config.small_classes:
            small = pc.equal(table["split"], "small")
            tally.small_split += pc.sum(small).as_py() or 0
            table = table.filter(pc.invert(small))
        if not table.num_rows:
            continue
        order = mixed(heads(table["sha256"]), config.seed)
        table = table.append_column("unit", pa.array(np.full(len(order), unit, np.int32)))
        table = table.append_column("row", pa.array(np.arange(len(order))))
        table = table.append_column("order", pa.array(order))
        # The bucket number grows with the hash, so the buckets in sequence are in order.
        high = order >> np.uint64(32)
        chosen = (high * np.uint64(num_buckets) >> np.uint64(32)).astype(np.int64)
        for number in np.unique(chosen):
            buckets[number].write(table.filter(pa.array(chosen == number)))
    for bucket in buckets:
        bucket.close()
    return buckets


def _merged(
    system: pafs.FileSystem,
    root: str,
    buckets: Sequence[Appender],
    stats: ClassStats,
    known: Known | None,
    tally: Tally,
) -> list[Appender]:
    """Buckets in order without copies and images of other sets; those are written to lists."""
    merged = []
    with (
        parquet_writer(system, f"{root}/duplicates.parquet", LEFT_OUT) as duplicates,
        parquet_writer(system, f"{root}/excluded.parquet", LEFT_OUT) as excluded,
    ):
        for bucket in buckets:
            table, copies, crossing = merge(bucket.table())
            tally.merged += copies.num_rows
            tally.crossing += crossing
            duplicates.write_table(copies)
            if known is not None and table.num_rows:
                table, left_out = exclude(table, known)
                tally.excluded += left_out.num_rows
                excluded.write_table(left_out)
            stats.add(table)
            merged.append(Appender(bucket.path.with_suffix(".merged")))
            merged[-1].write(table)
            merged[-1].close()
            bucket.path.unlink(missing_ok=True)
    return merged


def _assigned(
    table: pa.Table, stats: ClassStats, numbers: dict[str, int], tally: Tally
) -> pa.Table:
    """A merged bucket with the classes, split and key of each row, without unclassified rows."""
    wnids, splits = table["wnids"].to_pylist(), table["split"].to_pylist()
    hashes = table["sha256"].to_pylist()
    lots = mixed(heads(table["sha256"]), SPLIT_SEED)
    keys, classes = [stem(member) for member in table["member"].to_pylist()], []
    clashes = np.isin(key_hashes(keys), stats.clashing)
    for row, names in enumerate(wnids):
        classes.append([numbers[wnid] for wnid in names if wnid in numbers])
        if not classes[-1] and any(wnid in stats.listed for wnid in names):
            tally.rare_class += 1
        elif not classes[-1]:
            tally.other_class += 1
        tally.multi_label += len(classes[-1]) > 1
        if clashes[row]:
            keys[row] += f"_{hashes[row].hex()[:12]}"
        if splits[row] != "val":
            splits[row] = _drawn_split(names, int(lots[row]), stats)
    table = table.drop_columns("split")
    table = table.append_column("split", pa.array(splits, pa.string()))
    table = table.append_column("classes", pa.array(classes, pa.list_(pa.int32())))
    table = table.append_column("key", pa.array(keys, pa.string()))
    return table.filter(pa.array([bool(labels) for labels in classes], pa.bool_()))


def _drawn_split(wnids: list[str], lot: int, stats: ClassStats) -> str:
    """Split of an image by its 64-bit content hash."""
    is_val = lot < (stats.config.val_fraction or 0) * 2**64 or any(
        lot <= stats.thresholds.get(wnid, -1) for wnid in wnids
    )
    return "val" if is_val else "train"


def num_shards(images: int, mean_bytes: float, config: BuildConfig) -> int:
    """Shards for images of this mean size in a tar."""
    return -(-images // (config.shard_samples or max(1, round(SHARD_BYTES / mean_bytes))))


def _write(system: pafs.FileSystem, path: str, rows: Appender, shards: int, identity: str) -> None:
    """Write the assignment of a split, one row group per shard."""
    schema = SCHEMA.with_metadata({b"plan": identity.encode()})
    with parquet_writer(system, path, schema, compression="zstd") as writer:
        for table in rows.tables(shard_sizes(rows.count, shards)):
            writer.write_table(table.cast(schema), row_group_size=table.num_rows)
