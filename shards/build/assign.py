"""From catalogue to plan: which image goes to which place of which shard.

    catalogue parts -> buckets by content hash -> merged, filtered, split -> plan/train.parquet

The order is that of a seeded hash of each image's content, so it does not depend on how sources
were cut or in which order tasks ended, and identical images meet in one bucket. One bucket is in
memory at a time. Row group i of a plan file is shard i: a task reads its own and nothing else.
"""

import contextlib
import dataclasses
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from shards.build.bucket import Appender, heads, mixed
from shards.build.class_stats import SPLIT_SEED, ClassStats, Rules, Tally
from shards.build.duplicate import LEFT_OUT, Known, exclude, merge
from shards.build.key import stem, stem_hashes
from shards.dataset import store

BUCKET_ROWS = 1 << 17
PLAN_ID = b"plan"
TALLY = "tally.json"
SHARD_BYTES = 200_000_000
TAR_OVERHEAD = 1792  # two headers, the label's block, and half a block of padding on average
READ = (
    "source archive member path offset size sha256 wnids split phash spool_offset stored_size "
    "stored_width stored_height stored_sha256"
).split()
PLAN = pa.schema(
    [
        pa.field("key", pa.string()),
        pa.field("classes", pa.list_(pa.int32())),
        pa.field("unit", pa.int32()),
        pa.field("source", pa.int32()),
        pa.field("archive", pa.string()),
        pa.field("member", pa.string()),
        pa.field("path", pa.string()),
        pa.field("offset", pa.int64()),
        pa.field("size", pa.int64()),
        pa.field("phash", pa.uint64()),
        pa.field("spool_offset", pa.int64()),
        pa.field("stored_size", pa.int64()),
        pa.field("stored_width", pa.int32()),
        pa.field("stored_height", pa.int32()),
        pa.field("stored_sha256", pa.binary(32)),
    ]
)


def shard_sizes(samples: int, shards: int) -> list[int]:
    """Samples per shard, equal to within one."""
    base, more = divmod(samples, shards) if shards else (0, 0)
    return [base + (number < more) for number in range(shards)]


def place(
    system: pafs.FileSystem,
    root: str,
    parts: Sequence[tuple[int, str]],
    rules: Rules,
    plan_id: str,
    known: Known | None = None,
) -> Tally:
    """Write the plan of every split for the catalogue parts given by number and path."""
    done = _done(system, root, plan_id)
    if done is not None:
        return done
    tally = Tally()
    with tempfile.TemporaryDirectory(prefix="placement-") as name:
        folder = Path(name)
        buckets = _scatter(system, parts, rules, folder, tally)
        counts = ClassStats(rules)
        merged = _merged(system, root, buckets, counts, known, tally)
        tally.classes, numbers = counts.choose(tally)
        final = {split: Appender(folder / f"{split}.arrow") for split in ("train", "val")}
        for bucket in merged:
            if bucket.count:
                table = _settle(bucket.table(), counts, numbers, tally)
                for split, rows in final.items():
                    rows.write(table.filter(pc.equal(table["split"], split)).select(PLAN.names))
        for split, rows in final.items():
            rows.close()
            _cut(system, root, split, rows, rules, plan_id, tally)
    text = json.dumps({"plan": plan_id, "tally": dataclasses.asdict(tally)}, indent=1)
    store.write_bytes(system, f"{root}/plan/{TALLY}", text.encode())
    return tally


def _done(system: pafs.FileSystem, root: str, plan_id: str) -> Tally | None:
    """What placement did, where it is done already."""
    if not store.exists(system, f"{root}/plan/{TALLY}"):
        return None
    fields = json.loads(store.read_bytes(system, f"{root}/plan/{TALLY}"))
    if fields["plan"] != plan_id:
        return None
    return Tally(**{**fields["tally"], "classes": tuple(fields["tally"]["classes"])})


def _merged(
    system: pafs.FileSystem,
    root: str,
    buckets: Sequence[Appender],
    counts: ClassStats,
    known: Known | None,
    tally: Tally,
) -> list[Appender]:
    """Buckets in order, without copies and without images of other sets, which are listed."""
    found = []
    with (
        _listed(system, f"{root}/duplicates.parquet") as duplicates,
        _listed(system, f"{root}/excluded.parquet") as excluded,
    ):
        for bucket in buckets:
            table, copies, crossing = merge(bucket.table())
            tally.merged += copies.num_rows
            tally.crossing += crossing
            duplicates.write_table(copies)
            if known is not None and table.num_rows:
                table, lying = exclude(table, known)
                tally.excluded += lying.num_rows
                excluded.write_table(lying)
            counts.add(table)
            found.append(Appender(bucket.path.with_suffix(".merged")))
            found[-1].write(table)
            found[-1].close()
            bucket.path.unlink(missing_ok=True)
    return found


@contextlib.contextmanager
def _listed(system: pafs.FileSystem, path: str) -> Iterator[pq.ParquetWriter]:
    """A list of files that were left out, written as they are found."""
    with store.written(system, path) as file, pq.ParquetWriter(file, LEFT_OUT) as writer:
        yield writer


def _scatter(
    system: pafs.FileSystem,
    parts: Sequence[tuple[int, str]],
    rules: Rules,
    folder: Path,
    tally: Tally,
) -> list[Appender]:
    """Spread usable rows over buckets by the order hash."""
    rows = sum(pq.read_metadata(path, filesystem=system).num_rows for _, path in parts)
    buckets = max(1, -(-rows // BUCKET_ROWS))
    files = [Appender(folder / f"bucket-{number}.arrow") for number in range(buckets)]
    for unit, path in parts:
        table = pq.read_table(path, columns=[*READ, "problem"], filesystem=system)
        table = table.filter(pc.equal(table["problem"], "")).drop_columns("problem")
        if not rules.small_classes:
            small = pc.equal(table["split"], "small")
            tally.small_split += pc.sum(small).as_py() or 0
            table = table.filter(pc.invert(small))
        if not table.num_rows:
            continue
        order = mixed(heads(table["sha256"]), rules.seed)
        table = table.append_column("unit", pa.array(np.full(len(order), unit, np.int32)))
        table = table.append_column("row", pa.array(np.arange(len(order), dtype=np.int64)))
        table = table.append_column("order", pa.array(order))
        # The bucket number grows with the hash, so buckets one after the other are in order.
        chosen = ((order >> np.uint64(32)) * np.uint64(buckets) >> np.uint64(32)).astype(np.int64)
        for number in np.unique(chosen):
            files[number].write(table.filter(pa.array(chosen == number)))
    for file in files:
        file.close()
    return files


def _settle(table: pa.Table, counts: ClassStats, numbers: dict[str, int], tally: Tally) -> pa.Table:
    """A merged bucket with classes, split and key of each row; rows without a class are gone."""
    wnids, splits = table["wnids"].to_pylist(), table["split"].to_pylist()
    members, hashes = table["member"].to_pylist(), table["sha256"].to_pylist()
    lots = mixed(heads(table["sha256"]), SPLIT_SEED) if hashes else np.zeros(0, np.uint64)
    clash = np.isin(stem_hashes(members), counts.clashing)
    keep, classes, keys = [], [], []
    for row, names in enumerate(wnids):
        found = [numbers[wnid] for wnid in names if wnid in numbers]
        keep.append(bool(found))
        if not found and any(wnid in counts.listed for wnid in names):
            tally.rare_class += 1
        elif not found:
            tally.other_class += 1
        classes.append(found)
        keys.append(stem(members[row]) + (f"_{hashes[row].hex()[:12]}" if clash[row] else ""))
        splits[row] = splits[row] if splits[row] == "val" else _drawn(names, int(lots[row]), counts)
        tally.multi_label += len(found) > 1
    table = table.drop_columns("split")
    for name, values, kind in (
        ("split", splits, pa.string()),
        ("classes", classes, pa.list_(pa.int32())),
        ("key", keys, pa.string()),
    ):
        table = table.append_column(name, pa.array(values, kind))
    return table.filter(pa.array(keep, pa.bool_()))


def _drawn(wnids: list[str], lot: int, counts: ClassStats) -> str:
    """Split of an image by its content hash."""
    if lot < counts.rules.val_fraction * 2**64:
        return "val"
    if counts.thresholds and any(lot <= counts.thresholds.get(wnid, -1) for wnid in wnids):
        return "val"
    return "train"


def _cut(
    system: pafs.FileSystem,
    root: str,
    split: str,
    rows: Appender,
    rules: Rules,
    plan_id: str,
    tally: Tally,
) -> None:
    """Write a split's plan, one row group per shard."""
    if not rows.count:
        return
    per_shard = rules.shard_samples
    if per_shard is None:
        mean = rows.bytes / rows.count + TAR_OVERHEAD
        per_shard = max(1, round(rules.shard_bytes / mean))
    shards = -(-rows.count // per_shard)
    if split == "val":
        shards = min(rows.count, max(shards, rules.val_shards))
    tally.images[split], tally.bytes[split], tally.shards[split] = rows.count, rows.bytes, shards
    schema = PLAN.with_metadata({PLAN_ID: plan_id.encode()})
    store.make_folder(system, f"{root}/plan")
    with (
        store.written(system, f"{root}/plan/{split}.parquet") as file,
        pq.ParquetWriter(file, schema, compression="zstd") as writer,
    ):
        waiting = rows.read()
        for size in shard_sizes(rows.count, shards):
            writer.write_table(waiting.take(size).cast(schema), row_group_size=size)
