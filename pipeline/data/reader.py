"""Reads samples by position: byte ranges of shards in, decoded and cropped images out.

    spans (pipeline.data.order) -> one range read each -> tar records -> decode -> view -> rows

Runs in the tasks of Ray Data, on any node with a CPU; it imports neither torch nor Ray, so that
those processes start quickly and stay small.

Shapes: n samples, C views of each, S the model's image size, M labels per sample (padded with -1).
"""

import hashlib
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TypeVar

import numpy as np

from pipeline.data.dataset import Dataset, Subset
from pipeline.data.order import ReadSpans
from shards.dataset.format import Sample, Shard, ShardSet, open_set, parse_samples
from support.splitmix import scramble
from vit.config import ImageConfig
from vit.crops import crop_views
from vit.images import decode, train_view

T = TypeVar("T")

# seconds between attempts at a read: about half a minute in all, as long as stores throttle
PAUSES_S = (0.1, 0.5, 2.0, 8.0, 20.0)
# ranges of one task that are read at the same time
READ_THREADS = 4


@dataclass(frozen=True, kw_only=True)
class View:
    """What becomes of a decoded image: an augmented view, or the crops of some protocols."""

    images: ImageConfig
    size: int
    """Side of a view in pixels: the model's image size."""
    seed: int = 0
    """Seed of the augmentation; with a sample's position it gives the same pixels anywhere."""
    protocols: tuple[str, ...] = ()
    """Crop protocols, their views one after the other; empty is the augmented training view."""

    def __call__(self, pixels: np.ndarray, position: int) -> np.ndarray:
        """Views of one image: (H, W, 3) uint8 -> (C, S, S, 3) uint8."""
        seed = scramble(scramble(self.seed) ^ position)
        if not self.protocols:
            return train_view(pixels, self.images, self.size, seed)[None]
        views = [crop_views(pixels, self.images, self.size, name, seed) for name in self.protocols]
        return np.concatenate(views)


@dataclass(frozen=True, kw_only=True)
class SampleReader:
    """Turns spans of a dataset into rows."""

    dataset: Dataset
    view: View
    verify: bool = False
    """Compare the hash of every image with the index."""
    skip: bool = False
    """Leave unreadable images blank, with their fault in the row, instead of raising."""

    def __call__(self, spans: ReadSpans) -> dict[str, np.ndarray]:
        """Rows of the spans, in their order.

        Returns:
            images (n, C, S, S, 3) uint8, labels (n, M) int64, position (n,) int64, key (n,) str
            and fault (n,) str: empty, or what is wrong with the image, which is then blank and
            without labels.
        """
        images, labels, positions, keys, faults = [], [], [], [], []
        for position, where, record in self.samples(spans):
            try:
                image, fault = self.view(decode(record.image), position), ""
            except ValueError as error:
                fault = f"sample {record.key} of {where}: {error}"
                if not self.skip:
                    raise ValueError(fault) from error
                image = None
            images.append(image)
            labels.append(() if fault else record.classes)
            positions.append(position)
            keys.append(record.key)
            faults.append(fault)
        blank = np.zeros_like(next((image for image in images if image is not None), self._blank()))
        return {
            "images": np.stack([blank if image is None else image for image in images]),
            "labels": padded(labels),
            "position": np.array(positions, np.int64),
            "key": np.array(keys),
            "fault": np.array(faults),
        }

    def samples(self, spans: ReadSpans) -> Iterator[tuple[int, str, Sample]]:
        """Every sample of the spans in order: position, name of its shard, and record."""
        rows = [int(row) for row in spans.slice]
        with ThreadPoolExecutor(READ_THREADS) as threads:
            slices = threads.map(self.slice, rows)
            for row, records, first, count, position in zip(
                rows, slices, spans.first, spans.count, spans.position, strict=True
            ):
                _, shard = self.dataset.shards[self.dataset.slices.shard[row]]
                for step in range(int(count)):
                    yield int(position) + step, shard.name, records[int(first) + step]

    def slice(self, row: int) -> list[Sample]:
        """The kept samples of a slice; anything but the expected number is an error."""
        slices, keep = self.dataset.slices, self.dataset.keep
        part, shard = self.dataset.shards[slices.shard[row]]
        start, stop = int(slices.start[row]), int(slices.stop[row])
        where = f"{part.shards.location}/{shard.name}, bytes {start} to {stop}"
        data = with_retries(lambda: read_range(part.shards, shard, start, stop), where)
        records = list(parse_samples(data, where, part.shards.manifest.label))
        if self.verify:
            check_hashes(part.shards, shard, records, where)
        if not keep.all:
            records = [record for record in records if keep.of_sample(record)]
        if len(records) != slices.count[row]:
            raise ValueError(
                f"{where}: {len(records)} samples where the index says {slices.count[row]}; "
                f"run python -m shards verify {part.shards.location}"
            )
        return [renumber(part, record) for record in records]

    def _blank(self) -> np.ndarray:
        size = self.view.size
        return np.zeros((1, size, size, 3), np.uint8)


def read_range(shards: ShardSet, shard: Shard, start: int, stop: int) -> bytes:
    """Bytes [start, stop) of a shard; fewer are an OSError."""
    with shards.fs.open_input_file(shards.path(shard)) as file:
        data = file.read_at(stop - start, start)
    if len(data) != stop - start:
        raise OSError(f"read {len(data)} bytes of {stop - start}; is the shard cut off?")
    return data


def with_retries(read: Callable[[], T], where: str) -> T:
    """What `read` returns; an OSError is tried again for a while, unless the file is not there."""
    for pause_s in PAUSES_S:
        try:
            return read()
        except FileNotFoundError:
            break
        except OSError:
            # thousands of tasks that failed together must not come back together
            time.sleep(pause_s * random.uniform(0.5, 1.5))
    try:
        return read()
    except OSError as error:
        raise type(error)(f"{where}: {error}") from error


def check_hashes(shards: ShardSet, shard: Shard, records: list[Sample], where: str) -> None:
    """Compare every image with the hash in the index; a difference is an OSError."""
    known = index_hashes(shards.location, shard)
    for record in records:
        if hashlib.sha256(record.image).hexdigest() != known[record.key]:
            raise OSError(
                f"{where}: sample {record.key} is not what the index says (SHA-256 differs); "
                f"run python -m shards verify {shards.location}"
            )


@lru_cache(maxsize=64)
def index_hashes(location: str, shard: Shard) -> dict[str, str]:
    """SHA-256 of every image of a shard, by key."""
    index = open_set(location).read_index(shard)
    return dict(zip(index["key"].to_pylist(), index["sha256"].to_pylist(), strict=True))


def renumber(part: Subset, record: Sample) -> Sample:
    """The record with its classes in the numbers of the run."""
    if part.numbers is None:
        return record
    return replace(record, classes=tuple(int(part.numbers[own]) for own in record.classes))


def padded(labels: list[tuple[int, ...]]) -> np.ndarray:
    """Class numbers of each sample, padded with -1 to the most that one has: (n, M) int64."""
    table = np.full((len(labels), max(1, *map(len, labels))), -1, np.int64)
    for row, classes in zip(table, labels, strict=True):
        row[: len(classes)] = classes
    return table
