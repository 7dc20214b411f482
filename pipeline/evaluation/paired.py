"""Two models on the same images: what each got right, from the predictions of two evaluations.

    predictions.parquet of both -> labels, top predictions -> comparison, change of every class

Images are the same if both tables have the same keys and classes in the same order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.evaluation import metrics
from pipeline.evaluation.metrics import Predictions

PREDICTIONS = "predictions.parquet"


@dataclass(frozen=True, kw_only=True)
class ClassChange:
    """How many images of a class two models got right."""

    number: int
    """Class number of the data."""
    place: int
    """Its place among the classes that have images."""
    images: int
    before: int
    after: int


@dataclass(frozen=True, kw_only=True)
class PairedTest:
    """Two models on the same images, under one crop protocol each."""

    images: int
    before: float
    """Top-1 of the first model."""
    after: float
    """Top-1 of the second one."""
    change: dict[str, float]
    """`metrics.comparison` of the two."""
    classes: Sequence[ClassChange]
    """Of all classes that have images, those that lost most images first."""

    @classmethod
    def of(cls, before: tuple[Path, str], after: tuple[Path, str]) -> "PairedTest":
        """Compare two predictions.parquet, each under a protocol.

        Raises FileNotFoundError without a table, and ValueError if they are not of the same images
        and classes.
        """
        (first_keys, first), (second_keys, second) = read(*before), read(*after)
        if not (first_keys.equals(second_keys) and np.array_equal(first.labels, second.labels)):
            raise ValueError(
                f"{before[0]} and {after[0]} are not of the same images with the same classes; "
                f"evaluate both models again on one shard set"
            )
        return cls(
            images=len(first.top),
            before=float(first.hits(1).mean()),
            after=float(second.hits(1).mean()),
            change=metrics.comparison(first, second),
            classes=class_changes(first, second),
        )


def class_changes(before: Predictions, after: Predictions) -> list[ClassChange]:
    """The change of every class that has images; those that lost most images first."""
    count = int(before.labels.max(initial=-1)) + 1
    images, first = metrics.per_class(before, count)
    _, second = metrics.per_class(after, count)
    changes = [
        ClassChange(
            number=int(number),
            place=place,
            images=int(images[number]),
            before=int(first[number]),
            after=int(second[number]),
        )
        for place, number in enumerate(np.flatnonzero(images))
    ]
    return sorted(changes, key=lambda one: one.after - one.before)


def read(path: Path, protocol: str) -> tuple[pa.ChunkedArray, Predictions]:
    """The keys of the images, and the predictions under one protocol."""
    scores = [f"{protocol}/confidence", f"{protocol}/loss"]
    columns = pq.read_table(path, columns=["key", "classes", f"{protocol}/top", *scores])
    confidence, loss = (columns[name].to_numpy() for name in scores)
    labels, top = padded(columns["classes"], -1), padded(columns[f"{protocol}/top"], -2)
    return columns["key"], Predictions(labels=labels, top=top, confidence=confidence, loss=loss)


def padded(column: pa.ChunkedArray, fill: int) -> np.ndarray:
    """Lists of class numbers as an array (n, longest list), filled up with `fill`."""
    lists = column.combine_chunks()
    lengths = pc.list_value_length(lists).to_numpy()
    array = np.full((len(lists), max(1, lengths.max(initial=0))), fill, np.int64)
    array[np.arange(array.shape[1]) < lengths[:, None]] = lists.flatten().to_numpy()
    return array
