"""What a run reads: the samples of one or several shard sets, cut into slices.

    shard sets -> indexes -> samples that are kept -> slices -> pipeline.data.order

Which samples are kept follows from each sample alone (its classes, the hash of its bytes), so a
task that reads a slice drops the same ones that were not counted here.
"""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.data.order import Mixture, Order, Slices
from pipeline.settings.config import DataConfig
from shards.dataset.format import Sample, Shard, ShardSet, open_set

# Parquet footers come one round trip each; the threads only wait for storage
INDEX_THREADS = 16


@dataclass(frozen=True, kw_only=True)
class SampleFilter:
    """Which samples take part."""

    fraction: float = 1.0
    """Share of the samples, by the hash of their bytes."""
    classes: frozenset[int] | None = None
    """Class numbers of which a sample must have one; None keeps all."""

    @property
    def all(self) -> bool:
        """Whether nothing is dropped."""
        return self.fraction >= 1 and self.classes is None

    def of_index(self, index: pa.Table) -> np.ndarray:
        """(n,) bool: which samples of a shard's index are kept."""
        kept = np.ones(len(index), bool)
        if self.fraction < 1:
            kept &= [self._drawn(digest) for digest in index["sha256"].to_pylist()]
        if self.classes is not None:
            kept &= [not self.classes.isdisjoint(own) for own in index["classes"].to_pylist()]
        return kept

    def of_sample(self, record: Sample) -> bool:
        """Whether a sample is kept; the same answer as from the index."""
        if self.classes is not None and self.classes.isdisjoint(record.classes):
            return False
        return self.fraction >= 1 or self._drawn(hashlib.sha256(record.image).hexdigest())

    def _drawn(self, digest: str) -> bool:
        return int(digest[:16], 16) < self.fraction * 2**64


@dataclass(frozen=True, kw_only=True)
class Subset:
    """One shard set of a dataset."""

    shards: ShardSet
    names: tuple[Shard, ...]
    numbers: np.ndarray | None
    """Class number in the run of each class of this set; None where they are the same."""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """The samples of a run's split, in slices; travels to the tasks that read it."""

    parts: tuple[Subset, ...]
    slices: Slices
    """Slices of all parts, their shards numbered on from part to part."""
    rows: tuple[int, ...]
    """First slice of each part, and the number of slices."""
    keep: SampleFilter
    classes: tuple[str, ...]
    """wnids, by class number."""

    @classmethod
    def open(
        cls,
        locations: Sequence[str],
        split: str,
        slice_samples: int,
        *,
        classes: Path | None = None,
        fraction: float = 1.0,
    ) -> "Dataset":
        """Read the manifests and indexes of `split`; the first set's class list is the run's."""
        sets = [open_set(location) for location in locations]
        run_classes = tuple(sets[0].manifest.classes)
        keep = SampleFilter(
            fraction=fraction, classes=class_numbers(classes, run_classes) if classes else None
        )
        parts, extents = [], []
        for shards in sets:
            part = Subset(
                shards=shards,
                names=split_of(shards, split),
                numbers=renumbered(shards, run_classes),
            )
            # a filter over classes is in the run's numbers, which other sets need not share
            if part.numbers is not None and keep.classes is not None:
                raise ValueError(
                    f"{shards.location} numbers its classes differently from {sets[0].location}: "
                    f"data.classes cannot be used with both"
                )
            with ThreadPoolExecutor(INDEX_THREADS) as threads:
                extents.append(list(threads.map(partial(read_extents, shards, keep), part.names)))
            parts.append(part)
        tables = [Slices.cut(found, slice_samples) for found in extents]
        rows = np.cumsum([0, *(len(table.count) for table in tables)])
        return cls(
            parts=tuple(parts),
            slices=Slices.joined(tables, [len(part.names) for part in parts]),
            rows=tuple(rows.tolist()),
            keep=keep,
            classes=run_classes,
        )

    @property
    def samples(self) -> int:
        """Samples of one pass."""
        return self.slices.samples

    @property
    def fingerprint(self) -> str:
        """Hash of what can be read: of the manifest, or of all manifests in turn."""
        prints = [part.shards.fingerprint for part in self.parts]
        return hashlib.sha256("".join(prints).encode()).hexdigest() if prints[1:] else prints[0]

    @cached_property
    def shards(self) -> list[tuple[Subset, Shard]]:
        """Every shard with its part, by its number in the slices."""
        return [(part, shard) for part in self.parts for shard in part.names]

    def order(
        self, seed: int | None, weights: Sequence[float] = (), run: int = 1
    ) -> Order | Mixture:
        """The sequence of samples; with weights, the parts are mixed in runs of `run` samples."""
        if not weights:
            return Order(counts=self.slices.count, seed=seed)
        spans = zip(self.rows[:-1], self.rows[1:], strict=True)
        return Mixture(
            orders=tuple(
                Order(counts=self.slices.count[first:last], seed=seed) for first, last in spans
            ),
            rows=self.rows[:-1],
            weights=tuple(weights),
            run=run,
            seed=seed,
        )


def open_train(data: DataConfig, location: str) -> Dataset:
    """What a run trains on."""
    return Dataset.open(
        (location, *data.extra),
        data.train_split,
        data.slice_samples,
        classes=Path(data.classes) if data.classes else None,
        fraction=data.fraction,
    )


def open_eval(data: DataConfig, location: str) -> Dataset:
    """What a run is evaluated on: the whole split, less classes that the run leaves out."""
    return Dataset.open(
        (location,),
        data.eval_split,
        data.slice_samples,
        classes=Path(data.classes) if data.classes else None,
    )


def split_of(shards: ShardSet, split: str) -> tuple[Shard, ...]:
    """The shards of a split."""
    splits = shards.manifest.splits
    if split not in splits:
        raise ValueError(f"{shards.location} has no split {split!r}; it has: {', '.join(splits)}")
    return tuple(splits[split])


def class_numbers(path: Path, classes: tuple[str, ...]) -> frozenset[int]:
    """Numbers of the classes that a file lists, a wnid a line."""
    listed = path.read_text().split()
    unknown = sorted(set(listed) - set(classes))
    if unknown or not listed:
        wrong = f"unknown: {', '.join(unknown[:10])}" if unknown else "it is empty"
        raise ValueError(f"data.classes {path} must list wnids of the data, one a line; {wrong}")
    return frozenset(classes.index(wnid) for wnid in listed)


def renumbered(shards: ShardSet, classes: tuple[str, ...]) -> np.ndarray | None:
    """Number among `classes` of each class of a set; None where the lists are equal."""
    if tuple(shards.manifest.classes) == classes:
        return None
    numbers = {wnid: number for number, wnid in enumerate(classes)}
    unknown = [wnid for wnid in shards.manifest.classes if wnid not in numbers]
    if unknown:
        raise ValueError(
            f"{len(unknown)} classes of {shards.location} are not among those of the first shard "
            f"set: {', '.join(unknown[:10])}; put the set with all classes first"
        )
    return np.array([numbers[wnid] for wnid in shards.manifest.classes])


def read_extents(
    shards: ShardSet, keep: SampleFilter, shard: Shard
) -> tuple[np.ndarray, np.ndarray]:
    """First byte, and byte after the last, of every kept sample of a shard."""
    index = shards.read_index(shard)
    if len(index) != shard.samples:
        raise ValueError(
            f"{shard.name}: its index has {len(index)} samples, the manifest says "
            f"{shard.samples}; run python -m shards verify {shards.location}"
        )
    starts, stops = index["start"].to_numpy(), index["stop"].to_numpy()
    if keep.all:
        return starts, stops
    kept = keep.of_index(index)
    return starts[kept], stops[kept]
