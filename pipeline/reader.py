"""Reads samples by position: byte ranges of shards in, decoded and cropped images out.

    pieces (shards.plan) -> one range read each -> tar records -> decode -> view -> rows

Runs in the tasks of Ray Data, on any node with a CPU; it imports neither torch nor Ray, so that
those processes start quickly and stay small.

Shapes: n samples, C views of each, S the model's image size, M labels per sample (padded with -1).
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from shards.format import Record, Shard, ShardSet, open_set, parse_records
from shards.plan import Pieces, Slices
from vit.config import ImageConfig
from vit.draws import scramble
from vit.images import crop_views, decode, train_view

# Parquet footers come one round trip each; the threads only wait for storage
INDEX_THREADS = 16


@dataclass(frozen=True, kw_only=True)
class Source:
    """One split of a shard set, cut into slices; travels to the tasks that read it."""

    shards: ShardSet
    names: tuple[Shard, ...]
    slices: Slices

    @classmethod
    def open(cls, location: str, split: str, slice_samples: int) -> "Source":
        """Read the manifest and every shard's index of `split` at `location`."""
        shards = open_set(location)
        if split not in shards.manifest.splits:
            known = ", ".join(shards.manifest.splits)
            raise ValueError(f"{location} has no split {split!r}; it has: {known}")
        names = tuple(shards.manifest.splits[split])

        def extents(shard: Shard) -> tuple[np.ndarray, np.ndarray]:
            index = shards.read_index(shard)
            if len(index) != shard.samples:
                raise ValueError(
                    f"{shard.name}: its index has {len(index)} samples, the manifest says "
                    f"{shard.samples}; run python -m shards verify {location}"
                )
            return index["start"].to_numpy(), index["stop"].to_numpy()

        with ThreadPoolExecutor(INDEX_THREADS) as threads:
            slices = Slices.cut(list(threads.map(extents, names)), slice_samples)
        return cls(shards=shards, names=names, slices=slices)

    def read(self, pieces: Pieces) -> Iterator[tuple[int, Record]]:
        """Every sample of the pieces with its position, in order; a short read is an OSError."""
        for row, first, count, position in zip(
            pieces.slice, pieces.first, pieces.count, pieces.position, strict=True
        ):
            records = self._records(int(row))
            for step in range(int(count)):
                yield int(position) + step, records[int(first) + step]

    def _records(self, row: int) -> list[Record]:
        slices, shard = self.slices, self.names[self.slices.shard[row]]
        start, stop = int(slices.start[row]), int(slices.stop[row])
        where = f"{self.shards.location}/{shard.name}, bytes {start} to {stop}"
        with self.shards.fs.open_input_file(self.shards.path(shard)) as file:
            data = file.read_at(stop - start, start)
        if len(data) != stop - start:
            raise OSError(
                f"{where}: read {len(data)} bytes of {stop - start}; is the shard cut off?"
            )
        records = list(parse_records(data, where, self.shards.manifest.label))
        if len(records) != slices.count[row]:
            raise ValueError(
                f"{where}: {len(records)} samples where the index says {slices.count[row]}; "
                f"run python -m shards verify {self.shards.location}"
            )
        return records


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
        if not self.protocols:
            seed = scramble(scramble(self.seed) ^ position)
            return train_view(pixels, self.images, self.size, seed)[None]
        views = [crop_views(pixels, self.images, self.size, name) for name in self.protocols]
        return np.concatenate(views)


def load(source: Source, pieces: Pieces, view: View) -> dict[str, np.ndarray]:
    """Rows of the pieces: images (n, C, S, S, 3) uint8, labels (n, M) and position (n,) int64."""
    images, labels, positions = [], [], []
    for position, record in source.read(pieces):
        try:
            pixels = decode(record.image)
        except ValueError as error:
            raise ValueError(f"sample {record.key} at position {position}: {error}") from error
        images.append(view(pixels, position))
        labels.append(record.classes)
        positions.append(position)
    padded = np.full((len(labels), max(map(len, labels))), -1, np.int64)
    for row, classes in zip(padded, labels, strict=True):
        row[: len(classes)] = classes
    return {"images": np.stack(images), "labels": padded, "position": np.array(positions)}
