"""From catalogue to plan: which image goes to which place of which shard.

    catalogue parts -> buckets by content hash -> merged, filtered, split -> plan/train.parquet

The order is that of a seeded hash of each image's content, so it does not depend on how sources
were cut or in which order tasks ended, and identical images meet in one bucket. One bucket is in
memory at a time. Row group i of a plan file is shard i: a task reads its own and nothing else.
"""

import contextlib
import hashlib
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from shards import store

BUCKET_ROWS = 1 << 18
PLAN_ID = b"plan"
TAR_OVERHEAD = 2048  # two headers, the label's block, and half a block of padding on average
_SPLIT_SEED = 0x5EED  # the val split does not follow the seed of the shuffle
_NOT_IN_KEYS = re.compile(r"[^A-Za-z0-9_-]")
_LONGEST_KEY = 80  # with suffix and extension below the 100 characters of a USTAR name
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
LEFT_OUT = pa.schema(
    [
        pa.field("archive", pa.string()),
        pa.field("member", pa.string()),
        pa.field("sha256", pa.string()),
        pa.field("reason", pa.string()),
    ]
)
Known = Callable[[pa.Table], list[str]]
"""Says of each row why it is left out as lying in another set, "" where it does not."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The settings that decide what is placed where."""

    seed: int
    classes: tuple[str, ...] | None
    min_per_class: int
    small_classes: bool
    val_per_class: int
    val_fraction: float
    shard_samples: int | None
    shard_bytes: int
    val_shards: int


@dataclass
class Tally:
    """What placement did, for the report."""

    classes: tuple[str, ...] = ()
    images: dict[str, int] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)
    shards: dict[str, int] = field(default_factory=dict)
    merged: int = 0
    multi_label: int = 0
    crossing: int = 0
    excluded: int = 0
    small_split: int = 0
    other_class: int = 0
    rare_class: int = 0
    empty_classes: int = 0
    dropped_classes: int = 0


def mixed(values: np.ndarray, seed: int) -> np.ndarray:
    """Seeded 64-bit hash of 64-bit values (the finalizer of splitmix64)."""
    x = values + np.uint64((seed * 0x9E3779B97F4A7C15 + 1) % 2**64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def heads(hashes: pa.ChunkedArray) -> np.ndarray:
    """The first 8 bytes of each content hash as numbers."""
    raw = b"".join(hashes.to_pylist())
    return np.frombuffer(raw, ">u8").reshape(-1, 4)[:, 0].astype(np.uint64)


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
    tally = Tally()
    with tempfile.TemporaryDirectory(prefix="placement-") as folder:
        buckets = _scatter(system, parts, rules, Path(folder), tally)
        counts = _Counts(rules)
        merged = []
        with (
            _listed(system, f"{root}/duplicates.parquet") as duplicates,
            _listed(system, f"{root}/excluded.parquet") as excluded,
        ):
            for number, bucket in enumerate(buckets):
                table, copies = _merge(bucket.table(), tally)
                duplicates.write_table(copies)
                if known is not None and table.num_rows:
                    table, lying = _exclude(table, known)
                    tally.excluded += lying.num_rows
                    excluded.write_table(lying)
                counts.add(table)
                merged.append(_Appender(Path(folder) / f"merged-{number}.arrow"))
                merged[-1].write(table)
                merged[-1].close()
                bucket.path.unlink(missing_ok=True)
        tally.classes, numbers = counts.choose(tally)
        final = {split: _Appender(Path(folder) / f"{split}.arrow") for split in ("train", "val")}
        for bucket in merged:
            if bucket.count:
                table = _settle(bucket.table(), counts, numbers, tally)
                for split, rows in final.items():
                    rows.write(table.filter(pc.equal(table["split"], split)).select(PLAN.names))
        for split, rows in final.items():
            rows.close()
            _cut(system, root, split, rows, rules, plan_id, tally)
    return tally


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
) -> list["_Appender"]:
    """Spread usable rows over buckets by the order hash."""
    rows = sum(pq.read_metadata(path, filesystem=system).num_rows for _, path in parts)
    buckets = max(1, -(-rows // BUCKET_ROWS))
    files = [_Appender(folder / f"bucket-{number}.arrow") for number in range(buckets)]
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


def _merge(table: pa.Table, tally: Tally) -> tuple[pa.Table, pa.Table]:
    """Rows of one bucket in order, one per content with all its classes; and the other copies."""
    if not table.num_rows:
        return table, LEFT_OUT.empty_table()
    table = table.sort_by([(name, "ascending") for name in ("order", "sha256", "unit", "row")])
    hashes = table["sha256"].to_pylist()
    wnids, splits = table["wnids"].to_pylist(), table["split"].to_pylist()
    first, copies = [0], []
    for row in range(1, len(hashes)):
        kept = first[-1]
        if hashes[row] != hashes[kept]:
            first.append(row)
            continue
        copies.append((row, kept))
        wnids[kept].extend(wnid for wnid in wnids[row] if wnid not in wnids[kept])
        if splits[row] != splits[kept]:
            # An image of the val split leaves the train split, not the other way round.
            splits[kept] = "val" if "val" in (splits[row], splits[kept]) else "train"
            tally.crossing += 1
    tally.merged += len(copies)
    table = table.set_column(
        table.schema.get_field_index("wnids"), "wnids", pa.array(wnids, pa.list_(pa.string()))
    )
    table = table.set_column(table.schema.get_field_index("split"), "split", pa.array(splits))
    names = [table[name].to_pylist() for name in ("archive", "member")] if copies else []
    others = [
        {
            "archive": names[0][row],
            "member": names[1][row],
            "sha256": hashes[row].hex(),
            "reason": f"same bytes as {names[0][kept]}: {names[1][kept]}",
        }
        for row, kept in copies
    ]
    return table.take(pa.array(first)), pa.Table.from_pylist(others, LEFT_OUT)


def _exclude(table: pa.Table, known: Known) -> tuple[pa.Table, pa.Table]:
    """Rows that lie in no other set, and those that do with the reason."""
    reasons = known(table)
    lying = pa.array([bool(reason) for reason in reasons], pa.bool_())
    out = table.filter(lying)
    hashes = pa.array([value.hex() for value in out["sha256"].to_pylist()], pa.string())
    why = pa.array([reason for reason in reasons if reason], pa.string())
    columns = [out["archive"], out["member"], hashes, why]
    return table.filter(pc.invert(lying)), pa.table(columns, schema=LEFT_OUT)


class _Counts:
    """What must be known of all buckets before any image gets its place."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.images: Counter[str] = Counter()
        self._lowest: dict[str, np.ndarray] = {}
        self._stems: list[np.ndarray] = []
        self.thresholds: dict[str, int] = {}
        self.clashing = np.zeros(0, np.uint64)

    def add(self, table: pa.Table) -> None:
        """Count a merged bucket."""
        if not table.num_rows:
            return
        hashes = mixed(heads(table["sha256"]), _SPLIT_SEED)
        members: dict[str, list[int]] = {}
        for row, wnids in enumerate(table["wnids"].to_pylist()):
            for wnid in wnids:
                members.setdefault(wnid, []).append(row)
        for wnid, rows in members.items():
            self.images[wnid] += len(rows)
            if self.rules.val_per_class:
                old = self._lowest.get(wnid, np.zeros(0, np.uint64))
                joined = np.sort(np.concatenate([old, hashes[rows]]))
                self._lowest[wnid] = joined[: self.rules.val_per_class]
        self._stems.append(_stem_hashes(table["member"].to_pylist()))

    def choose(self, tally: Tally) -> tuple[tuple[str, ...], dict[str, int]]:
        """The classes in order, and the number of each class that keeps its images."""
        stems, repeats = np.unique(np.concatenate([*self._stems, []]), return_counts=True)
        self.clashing = stems[repeats > 1]
        for wnid, lowest in self._lowest.items():
            most = min(self.rules.val_per_class, self.images[wnid] // 2)
            self.thresholds[wnid] = int(lowest[most - 1]) if most else -1
        least = max(1, self.rules.min_per_class)
        enough = {wnid for wnid, count in self.images.items() if count >= least}
        classes = self.rules.classes or tuple(sorted(enough))
        numbers = {wnid: number for number, wnid in enumerate(classes) if wnid in enough}
        tally.dropped_classes = len(self.images) - len(numbers)
        tally.empty_classes = len(classes) - len(numbers)
        return classes, numbers


def stem(member: str) -> str:
    """The key that a file name gives: nothing that a tar name or WebDataset would stumble over."""
    base = member.rpartition("/")[2]
    name = base.rpartition(".")[0] or base
    return _NOT_IN_KEYS.sub("_", name)[:_LONGEST_KEY]


def _stem_hashes(members: list[str]) -> np.ndarray:
    raw = b"".join(hashlib.blake2b(stem(m).encode(), digest_size=8).digest() for m in members)
    return np.frombuffer(raw, np.uint64)


def _settle(table: pa.Table, counts: _Counts, numbers: dict[str, int], tally: Tally) -> pa.Table:
    """A merged bucket with classes, split and key of each row; rows without a class are gone."""
    wnids, splits = table["wnids"].to_pylist(), table["split"].to_pylist()
    members, hashes = table["member"].to_pylist(), table["sha256"].to_pylist()
    lots = mixed(heads(table["sha256"]), _SPLIT_SEED) if hashes else np.zeros(0, np.uint64)
    clash = np.isin(_stem_hashes(members), counts.clashing)
    keep, classes, keys = [], [], []
    for row, names in enumerate(wnids):
        found = [numbers[wnid] for wnid in names if wnid in numbers]
        keep.append(bool(found))
        classes.append(found)
        keys.append(stem(members[row]) + (f"_{hashes[row].hex()[:12]}" if clash[row] else ""))
        splits[row] = splits[row] if splits[row] == "val" else _drawn(names, int(lots[row]), counts)
        tally.multi_label += len(found) > 1
    tally.other_class += keep.count(False)
    table = table.drop_columns("split")
    for name, values, kind in (
        ("split", splits, pa.string()),
        ("classes", classes, pa.list_(pa.int32())),
        ("key", keys, pa.string()),
    ):
        table = table.append_column(name, pa.array(values, kind))
    return table.filter(pa.array(keep, pa.bool_()))


def _drawn(wnids: list[str], lot: int, counts: _Counts) -> str:
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
    rows: "_Appender",
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


class _Appender:
    """A table on local disk that grows by pieces and is read back in order."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = self.bytes = 0
        self._sink: pa.OSFile | None = None
        self._writer: pa.RecordBatchStreamWriter | None = None

    def write(self, table: pa.Table) -> None:
        """Append rows."""
        if not table.num_rows:
            return
        if self._writer is None:
            self._sink = pa.OSFile(str(self.path), "wb")
            self._writer = pa.ipc.new_stream(self._sink, table.schema)
        self._writer.write_table(table)
        self.count += table.num_rows
        self.bytes += pc.sum(table["stored_size"]).as_py()

    def close(self) -> None:
        """Finish writing."""
        if self._writer is not None and self._sink is not None:
            self._writer.close()
            self._sink.close()

    def read(self) -> "_Waiting":
        """The rows in order."""
        return _Waiting(pa.ipc.open_stream(pa.memory_map(str(self.path))))

    def table(self) -> pa.Table:
        """All rows."""
        if not self.count:
            return pa.table({})
        return pa.ipc.open_stream(pa.memory_map(str(self.path))).read_all()


class _Waiting:
    """Rows taken from a stream a given number at a time."""

    def __init__(self, batches: Iterator[pa.RecordBatch]) -> None:
        self._batches = iter(batches)
        self._held: list[pa.RecordBatch] = []

    def take(self, count: int) -> pa.Table:
        """The next count rows."""
        while sum(batch.num_rows for batch in self._held) < count:
            self._held.append(next(self._batches))
        table = pa.Table.from_batches(self._held)
        self._held = table.slice(count).to_batches()
        return table.slice(0, count)
