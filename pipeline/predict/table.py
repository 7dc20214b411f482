"""The table of classified images: a row for each, written as they come.

    path, class1, name1, p1, class2, name2, p2, ..., error

Memory does not grow with the number of rows. The file appears when all are in it, or not at all.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv

from pipeline.predict.classifier import Guesses
from pipeline.predict.files import ImageFile
from shards.dataset import store, wordnet

# rows of a row group of Parquet, and of a piece of CSV
ROWS = 1 << 16
SUFFIXES = (".csv", ".parquet")


class Table:
    """Turns guesses into rows."""

    def __init__(self, classes: Sequence[str], top: int) -> None:
        """Name the classes of a head, by their numbers; `top` are given of each image."""
        self.wnids = pa.array(classes, pa.string())
        self.names = pa.array(wordnet.names(classes), pa.string())
        self.top = top
        kinds = {"class": pa.string(), "name": pa.string(), "p": pa.float32()}
        guesses = [
            pa.field(f"{name}{place}", kind)
            for place in range(1, top + 1)
            for name, kind in kinds.items()
        ]
        text = pa.string()
        self.schema = pa.schema([pa.field("path", text), *guesses, pa.field("error", text)])

    def rows(self, files: Sequence[ImageFile], guesses: Guesses) -> pa.RecordBatch:
        """A row for each file; the classes, or the error, are null."""
        unread = guesses.classes[:, 0] < 0
        columns = [pa.array([file.name for file in files], pa.string())]
        for place in range(self.top):
            numbers = pa.array(guesses.classes[:, place], mask=unread)
            columns += [self.wnids.take(numbers), self.names.take(numbers)]
            columns.append(pa.array(guesses.probabilities[:, place], mask=unread))
        columns.append(pa.array([fault or None for fault in guesses.faults], pa.string()))
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)


def check(location: str) -> None:
    """ValueError if a table cannot be written to a location; FileNotFoundError without folder."""
    system, path = store.locate(location)
    if not path.endswith(SUFFIXES):
        raise ValueError(f"--out {location} must end with {' or '.join(SUFFIXES)}")
    folder = path.rpartition("/")[0]
    if store.is_local(system) and not store.has_folder(system, folder):
        raise FileNotFoundError(f"--out {location}: there is no folder {folder}; make it first")


@contextlib.contextmanager
def written(location: str, schema: pa.Schema) -> Iterator[Callable[[pa.RecordBatch], None]]:
    """A function that adds rows to a table, which appears at the end of the block."""
    system, path = store.locate(location)
    pending: list[pa.RecordBatch] = []
    with store.written(system, path) as stream, writer(path, stream, schema) as file:

        def flush() -> None:
            file.write_table(pa.Table.from_batches(pending, schema).combine_chunks())
            pending.clear()

        def add(rows: pa.RecordBatch) -> None:
            pending.append(rows)
            if sum(map(len, pending)) >= ROWS:
                flush()

        yield add
        flush()


def writer(path: str, stream: pa.NativeFile, schema: pa.Schema) -> pq.ParquetWriter | csv.CSVWriter:
    """What writes the format that the path ends with."""
    if path.endswith(".parquet"):
        return pq.ParquetWriter(stream, schema)
    return csv.CSVWriter(stream, schema)
