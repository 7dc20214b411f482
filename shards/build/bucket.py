"""Tables on local disk, and the hash that spreads rows over them: a sort in little memory.

Rows of content hash h go to bucket floor(h * buckets / 2^64). Each bucket is sorted alone, and the
buckets in sequence are then in order.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from support.splitmix import GOLDEN, MASK, scramble


def mixed(values: np.ndarray, seed: int) -> np.ndarray:
    """Seeded 64-bit hash of 64-bit values."""
    return scramble(values + np.uint64((seed * GOLDEN + 1) & MASK))


def heads(hashes: pa.ChunkedArray) -> np.ndarray:
    """The first 8 bytes of each 32-byte content hash as a big-endian number, (N,) uint64."""
    raw = b"".join(hashes.to_pylist())
    return np.frombuffer(raw, ">u8").reshape(-1, 4)[:, 0].astype(np.uint64)


class Appender:
    """A table on local disk that is written in pieces and read back in order."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = self.bytes = 0
        self._writer: pa.RecordBatchStreamWriter | None = None

    def write(self, table: pa.Table) -> None:
        """Append rows."""
        if not table.num_rows:
            return
        if self._writer is None:
            self._writer = pa.ipc.new_stream(str(self.path), table.schema)
        self._writer.write_table(table)
        self.count += table.num_rows
        self.bytes += pc.sum(table["stored_size"]).as_py()

    def close(self) -> None:
        """Finish writing."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None  # closes the file

    def table(self) -> pa.Table:
        """All rows."""
        if not self.count:
            return pa.table({})
        return pa.ipc.open_stream(pa.OSFile(str(self.path), "rb")).read_all()

    def tables(self, sizes: Iterable[int]) -> Iterator[pa.Table]:
        """The rows in order, in tables of these numbers of rows."""
        stream = pa.ipc.open_stream(pa.OSFile(str(self.path), "rb"))
        batches: list[pa.RecordBatch] = []
        for size in sizes:
            while sum(batch.num_rows for batch in batches) < size:
                batches.append(stream.read_next_batch())
            table = pa.Table.from_batches(batches)
            batches = table.slice(size).to_batches()
            yield table.slice(0, size)
