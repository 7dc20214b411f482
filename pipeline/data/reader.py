"""Reads samples by position: byte ranges of shards in, decoded and cropped images out.

    spans (pipeline.data.order) -> one range read each -> tar records -> decode -> view -> rows

It runs in Ray Data tasks on any node with a CPU. It imports neither torch nor Ray, so that those
processes start quickly and stay small.

Shapes: n samples, C views of each, S the model's image size, M labels per sample (padded with -1).
"""

import hashlib
import math
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import islice
from typing import TypeVar

import numpy as np

from pipeline.data.dataset import Dataset
from pipeline.data.order import ReadSpans
from shards.dataset.format import Shard, ShardSet, open_set
from shards.dataset.sample import Sample, parse_samples
from shards.dataset.store import with_retries
from support.splitmix import scramble
from vit.config import ImageConfig
from vit.crops import crop_views
from vit.images import decode
from vit.registry import num_views
from vit.train_crops import train_view

T = TypeVar("T")

# byte ranges that one task reads concurrently, ahead of the one that it decodes
READ_THREADS = 4
# memory of the last block that nobody refers to any more, for `recycled`
UNUSED: deque[np.ndarray] = deque(maxlen=1)


@dataclass(frozen=True, kw_only=True)
class View:
    """Turns a decoded image into an augmented view, or into the crops of some protocols."""

    images: ImageConfig
    size: int
    """Side of a view in pixels: the model's image size."""
    seed: int = 0
    """Seed of the augmentation; the pixels depend only on it and the sample's position."""
    protocols: tuple[str, ...] = ()
    """Crop protocols, whose views are concatenated; empty is the augmented training view."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape (C, S, S, 3) of the views of one image."""
        views = sum(map(num_views, self.protocols)) if self.protocols else 1
        return views, self.size, self.size, 3

    def check(self) -> None:
        """Make the views of one grey image; ValueError if settings and protocols do not fit."""
        found = self(np.full((self.size + 1, self.size + 2, 3), 127, np.uint8), 0).shape
        if found != self.shape:
            raise ValueError(
                f"the views under {', '.join(self.protocols)} have the shape {found}, which must be"
                f" {self.shape}; correct their rows in vit.registry.CROPS"
            )

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
    """Check the hash of every image against the index."""
    skip: bool = False
    """Return a blank image and the fault for an unreadable image, instead of raising."""

    def __call__(self, spans: ReadSpans) -> dict[str, np.ndarray]:
        """Rows of the spans, in their order.

        Returns:
            images (n, C, S, S, 3) uint8, labels (n, M) int64, position (n,) int64, key (n,) str
            and fault (n,) str. The fault is empty, or says why the image could not be read; that
            image is blank.
        """
        images = recycled((int(spans.count.sum()), *self.view.shape))
        rows = []
        for image, (position, where, record) in zip(images, self.samples(spans), strict=True):
            fault = ""
            try:
                image[:] = self.view(decode(record.image), position)
            except ValueError as error:
                fault = f"sample {record.key} of {where}: {error}"
                if not self.skip:
                    raise ValueError(fault) from error
                image[:] = 0
            rows.append((record.classes, position, record.key, fault))
        labels, positions, keys, faults = zip(*rows, strict=True)
        return {
            "images": images,
            "labels": padded(labels),
            "position": np.array(positions, np.int64),
            "key": np.array(keys),
            "fault": np.array(faults),
        }

    def samples(self, spans: ReadSpans) -> Iterator[tuple[int, str, Sample]]:
        """Every sample of the spans in order: position, name of its shard, and record."""
        with ThreadPoolExecutor(READ_THREADS) as threads:
            reads = map(partial(threads.submit, self.slice), spans.slice.tolist())
            pending = deque(islice(reads, READ_THREADS))
            columns = (spans.slice, spans.first, spans.count, spans.position)
            for row, first, count, position in zip(*map(np.ndarray.tolist, columns), strict=True):
                records = pending.popleft().result()
                pending.extend(islice(reads, 1))
                _, shard = self.dataset.shards[self.dataset.slices.shard[row]]
                for step, record in enumerate(records[first : first + count]):
                    yield position + step, shard.name, record

    def slice(self, row: int) -> list[Sample]:
        """The filtered samples of a slice; ValueError if their number is not the expected one."""
        slices, sample_filter = self.dataset.slices, self.dataset.filter
        subset, shard = self.dataset.shards[slices.shard[row]]
        shards, numbers = subset.shards, subset.numbers
        start, stop = int(slices.start[row]), int(slices.stop[row])
        where = f"{shards.location}/{shard.name}, bytes {start} to {stop}"
        data = with_retries(lambda: read_range(shards, shard, start, stop), where)
        records = list(parse_samples(data, where, shards.manifest.label))
        if self.verify:
            check_hashes(shards, shard, records, where)
        records = [record for record in records if sample_filter.of_sample(record)]
        if len(records) != slices.count[row]:
            raise ValueError(
                f"{where}: {len(records)} samples where the index says {slices.count[row]}; "
                f"run python -m shards verify {shards.location}"
            )
        if numbers is None:
            return records
        return [replace(r, classes=tuple(int(numbers[n]) for n in r.classes)) for r in records]


def recycled(shape: tuple[int, ...]) -> np.ndarray:
    """An uninitialised uint8 array; its memory is that of an earlier one that nobody refers to.

    A block has a hundred megabytes and more, and the kernel takes as long to hand out and clear so
    much memory as the decoder takes to fill it.
    """
    size = math.prod(shape)
    memory = UNUSED.pop() if UNUSED else None
    if memory is None or memory.size < size:
        memory = np.empty(size, np.uint8)
    # any view of the array refers to `flat`, since NumPy does not look behind the memoryview
    flat = np.frombuffer(memory.data, np.uint8, size)
    weakref.finalize(flat, UNUSED.append, memory)
    return flat.reshape(shape)


def read_range(shards: ShardSet, shard: Shard, start: int, stop: int) -> memoryview:
    """Bytes [start, stop) of a shard; OSError if the shard is shorter."""
    with shards.fs.open_input_file(shards.path(shard)) as file:
        file.seek(start)
        # Arrow's memory is used again, whereas `read_at` gets new pages from the kernel every time.
        # Its bytes count as signed, and no decoder would find its marker.
        data = memoryview(file.read_buffer(stop - start)).cast("B")
    if len(data) != stop - start:
        raise OSError(f"read {len(data)} bytes of {stop - start}; is the shard cut off?")
    return data


def check_hashes(shards: ShardSet, shard: Shard, records: list[Sample], where: str) -> None:
    """Check every image against the hash in the index; OSError if one differs."""
    expected = index_hashes(shards.location, shard)
    for record in records:
        if hashlib.sha256(record.image).hexdigest() != expected[record.key]:
            raise OSError(
                f"{where}: sample {record.key} is not what the index says (SHA-256 differs); "
                f"run python -m shards verify {shards.location}"
            )


@lru_cache(maxsize=64)
def index_hashes(location: str, shard: Shard) -> dict[str, str]:
    """SHA-256 of every image of a shard, by key."""
    index = open_set(location).read_index(shard)
    return dict(zip(index["key"].to_pylist(), index["sha256"].to_pylist(), strict=True))


def padded(labels: Sequence[tuple[int, ...]]) -> np.ndarray:
    """Class numbers of each sample, padded with -1 to the largest number of them: (n, M) int64."""
    table = np.full((len(labels), max(1, *map(len, labels))), -1, np.int64)
    for row, classes in zip(table, labels, strict=True):
        row[: len(classes)] = classes
    return table


def without_unreadable(labels: np.ndarray, faults: np.ndarray) -> np.ndarray:
    """The labels (n, M), in which an image that could not be read has none (-1)."""
    return np.where(faults[:, None] == "", labels, -1)
