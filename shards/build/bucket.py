"""Rows of the catalogue on local disk, in buckets of their order hash: a sort in little memory.

Rows of hash h go to bucket floor(h * buckets / 2^64). Each bucket is sorted alone, and the buckets
in sequence are then in order. Images with the same bytes meet in one bucket and are merged there.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from support.splitmix import GOLDEN, MASK, scramble

BATCH_ROWS = 1024
LEFT_OUT = pa.schema([(name, pa.string()) for name in ("archive", "member", "sha256", "reason")])


def mixed(values: np.ndarray, seed: int) -> np.ndarray:
    """Seeded 64-bit hash of 64-bit values."""
    return scramble(values + np.uint64((seed * GOLDEN + 1) & MASK))


def heads(hashes: pa.ChunkedArray) -> np.ndarray:
    """The first 8 bytes of each 32-byte content hash as a big-endian number, (N,) uint64."""
    return _words(hashes)[:, 0].astype(np.uint64)


def _words(hashes: pa.ChunkedArray) -> np.ndarray:
    return np.frombuffer(b"".join(hashes.to_pylist()), ">u8").reshape(-1, 4)


class Appender:
    """A table on local disk that is written in pieces and read back in order."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = self.bytes = 0
        self._waiting: list[pa.Table] = []
        self._rows_waiting = 0
        self._writer: pa.RecordBatchStreamWriter | None = None

    def write(self, table: pa.Table) -> None:
        """Append rows."""
        if not table.num_rows:
            return
        self.count += table.num_rows
        self.bytes += pc.sum(table["stored_size"]).as_py()
        # Small pieces are joined: each batch of a file takes a kilobyte for itself.
        self._waiting.append(table)
        self._rows_waiting += table.num_rows
        if self._rows_waiting >= BATCH_ROWS:
            self._flush()

    def _flush(self) -> None:
        table = pa.concat_tables(self._waiting).combine_chunks()
        self._waiting, self._rows_waiting = [], 0
        if self._writer is None:
            options = pa.ipc.IpcWriteOptions(compression="zstd")
            self._writer = pa.ipc.new_stream(str(self.path), table.schema, options=options)
        self._writer.write_table(table)

    def close(self) -> None:
        """Finish writing."""
        if self._waiting:
            self._flush()
        if self._writer is not None:
            self._writer.close()
            self._writer = None  # closes the file

    def table(self) -> pa.Table:
        """All rows; there must be some."""
        return pa.Table.from_batches(self._batches())

    def tables(self, sizes: Iterable[int]) -> Iterator[pa.Table]:
        """The rows in order, in tables of these numbers of rows."""
        stream, batches = self._batches(), []
        for size in sizes:
            while sum(batch.num_rows for batch in batches) < size:
                batches.append(next(stream))
            table = pa.Table.from_batches(batches)
            batches = table.slice(size).to_batches()
            yield table.slice(0, size)

    def pieces(self, most: int) -> Iterator[pa.Table]:
        """The rows in order, in tables of at most so many rows."""
        starts = range(0, self.count, most)
        return self.tables(min(most, self.count - start) for start in starts)

    def _batches(self) -> Iterator[pa.RecordBatch]:
        with pa.OSFile(str(self.path), "rb") as file:
            yield from pa.ipc.open_stream(file)


def left_out(table: pa.Table, rows: Sequence[int], reasons: Sequence[str]) -> pa.Table:
    """The list of images that are left out, each with its reason."""
    table = table.take(pa.array(rows, pa.int64()))
    hashes = pa.array([value.hex() for value in table["sha256"].to_pylist()], pa.string())
    columns = [table["archive"], table["member"], hashes, pa.array(reasons, pa.string())]
    return pa.table(columns, schema=LEFT_OUT)


def merge(table: pa.Table, seed: int) -> tuple[pa.Table, pa.Table, int]:
    """The rows in order without copies, the list of the copies, and how many of them val has.

    Copies in train become one row with all their classes: ImageNet-21k has many images both under
    a class and under its parent class. A val split that the sources have stays as it is, copies
    within it included; what it holds leaves the train split.
    """
    table = table.append_column("order", pa.array(mixed(heads(table["sha256"]), seed)))
    # The last three only tell copies apart, by their place in the sources.
    columns = ("order", "sha256", "source", "path", "offset")
    table = table.sort_by([(name, "ascending") for name in columns]).drop_columns("order")
    words = _words(table["sha256"])
    starts = np.flatnonzero(np.append(True, (words[1:] != words[:-1]).any(1)))
    sizes = np.diff(np.append(starts, len(words)))
    wnids, splits, archives, members = (
        table[name].to_pylist() for name in ("wnids", "split", "archive", "member")
    )
    copies: list[int] = []
    reasons, crossing = [], 0
    for start, size in zip(starts[sizes > 1].tolist(), sizes[sizes > 1].tolist(), strict=True):
        rows = range(start, start + size)
        val = [row for row in rows if splits[row] == "val"]
        train = [row for row in rows if splits[row] != "val"]
        first, others = (val[0], train) if val else (train[0], train[1:])
        place = "the val image " if val else ""
        reasons += [f"same bytes as {place}{archives[first]}: {members[first]}"] * len(others)
        copies += others
        if val:
            crossing += len(others)
        else:
            wnids[first] = list(dict.fromkeys(wnid for row in rows for wnid in wnids[row]))
    column = table.schema.get_field_index("wnids")
    merged = table.set_column(column, "wnids", pa.array(wnids, pa.list_(pa.string())))
    kept = np.delete(np.arange(len(wnids)), copies)
    return merged.take(pa.array(kept)), left_out(table, copies, reasons), crossing
