"""The dataset of a run: the samples of one or several shard sets, cut into slices.

    shard sets -> indexes -> filtered samples -> slices -> pipeline.data.order

The filter depends on each sample alone (its classes, the hash of its bytes), so a task that reads a
slice drops exactly the samples that were not counted here.
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
from shards.dataset.classes import mapping
from shards.dataset.format import Shard, ShardSet, open_set
from shards.dataset.sample import Sample

# each index costs a few round trips; the threads only wait for storage
INDEX_THREADS = 16


@dataclass(frozen=True, kw_only=True)
class SampleFilter:
    """Selects samples."""

    fraction: float = 1.0
    """Share of the samples to keep, by the hash of their bytes."""
    classes: frozenset[int] | None = None
    """A sample must have one of these class numbers; None keeps all samples."""

    def of_index(self, index: pa.Table) -> np.ndarray:
        """(n,) bool: which samples of a shard's index are kept."""
        kept = np.ones(len(index), bool)
        if self.fraction < 1:
            kept &= [self._selects(digest) for digest in index["sha256"].to_pylist()]
        if self.classes is not None:
            kept &= [not self.classes.isdisjoint(row) for row in index["classes"].to_pylist()]
        return kept

    def of_sample(self, record: Sample) -> bool:
        """Whether a sample is kept; agrees with `of_index`."""
        if self.classes is not None and self.classes.isdisjoint(record.classes):
            return False
        return self.fraction >= 1 or self._selects(hashlib.sha256(record.image).hexdigest())

    def _selects(self, digest: str) -> bool:
        return int(digest[:16], 16) < self.fraction * 2**64


@dataclass(frozen=True, kw_only=True)
class Subset:
    """One shard set of a dataset."""

    shards: ShardSet
    names: tuple[Shard, ...]
    numbers: np.ndarray | None
    """Class number in the run of each class of this set; None if the numbers are the same."""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """The samples of one split of a run, in slices; it is sent to the tasks that read it."""

    subsets: tuple[Subset, ...]
    slices: Slices
    """Slices of all subsets; their shards are numbered as in `shards`."""
    rows: tuple[int, ...]
    """First slice of each subset, and the number of slices."""
    filter: SampleFilter
    classes: tuple[str, ...]
    """wnids, by class number."""

    @classmethod
    def open(
        cls,
        locations: Sequence[str],
        split: str,
        slice_samples: int,
        *,
        classes: str | Path | None = None,
        fraction: float = 1.0,
    ) -> "Dataset":
        """Read the manifests and indexes of `split`; the first set defines the run's classes."""
        sets = [open_set(location) for location in locations]
        run_classes = tuple(sets[0].manifest.classes)
        numbers = class_numbers(Path(classes), run_classes) if classes else None
        sample_filter = SampleFilter(fraction=fraction, classes=numbers)
        subsets, extents, first_shards = [], [], [0]
        for shards in sets:
            renumbering = renumbered(shards, run_classes)
            # the filter uses the run's class numbers, from which those of the set may differ
            if renumbering is not None and numbers is not None:
                raise ValueError(
                    f"{shards.location} numbers its classes differently from {sets[0].location}: "
                    f"data.classes cannot be used with both"
                )
            names = split_of(shards, split)
            subsets.append(Subset(shards=shards, names=names, numbers=renumbering))
            with ThreadPoolExecutor(INDEX_THREADS) as threads:
                extents += threads.map(partial(read_extents, shards, sample_filter), names)
            first_shards.append(len(extents))
        slices = Slices.cut(extents, slice_samples)
        rows = np.searchsorted(slices.shard, first_shards).tolist()
        for shards, first, last in zip(sets, rows[:-1], rows[1:], strict=True):
            if first == last:
                raise ValueError(f"no samples: {shards.location} is empty, or none is selected")
        return cls(
            subsets=tuple(subsets),
            slices=slices,
            rows=tuple(rows),
            filter=sample_filter,
            classes=run_classes,
        )

    @property
    def samples(self) -> int:
        """Samples of one pass."""
        return self.slices.samples

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the shard set; of several sets, the hash of their fingerprints."""
        prints = [subset.shards.fingerprint for subset in self.subsets]
        return hashlib.sha256("".join(prints).encode()).hexdigest() if prints[1:] else prints[0]

    @cached_property
    def shards(self) -> list[tuple[Subset, Shard]]:
        """Every shard with its subset; a shard's index here is its number in the slices."""
        return [(subset, shard) for subset in self.subsets for shard in subset.names]

    def order(
        self, seed: int | None, weights: Sequence[float] = (), run: int = 1
    ) -> Order | Mixture:
        """The sequence of samples; weights mix the subsets in runs of `run` samples."""
        if not weights:
            return Order(counts=self.slices.count, seed=seed)
        counts = np.split(self.slices.count, self.rows[1:-1])
        return Mixture(
            orders=tuple(Order(counts=count, seed=seed) for count in counts),
            rows=self.rows[:-1],
            weights=tuple(weights),
            run=run,
            seed=seed,
        )


def set_name(location: str) -> str:
    """Name of a shard set: that of its folder, or of the folder above one named "shards"."""
    path = Path(location.partition("?")[0] if "://" in location else location)
    return path.parent.name if path.name == "shards" else path.name


def open_train(data: DataConfig, location: str) -> Dataset:
    """The training data of a run: the training split of all shard sets."""
    chosen = {"classes": data.classes, "fraction": data.fraction}
    return Dataset.open((location, *data.extra), data.train_split, data.slice_samples, **chosen)


def open_eval(data: DataConfig, location: str, split: str) -> Dataset:
    """Evaluation data of a run: a whole split, without classes that the run excludes."""
    return Dataset.open((location,), split, data.slice_samples, classes=data.classes)


def split_of(shards: ShardSet, split: str) -> tuple[Shard, ...]:
    """The shards of a split."""
    splits = shards.manifest.splits
    if split not in splits:
        raise ValueError(f"{shards.location} has no split {split!r}; it has: {', '.join(splits)}")
    return tuple(splits[split])


def class_numbers(path: Path, classes: tuple[str, ...]) -> frozenset[int]:
    """Numbers of the classes listed in a file, one wnid per line."""
    listed = path.read_text().split()
    unknown = sorted(set(listed) - set(classes))
    if unknown or not listed:
        wrong = f"unknown: {', '.join(unknown[:10])}" if unknown else "it is empty"
        raise ValueError(f"data.classes {path} must list wnids of the data, one per line; {wrong}")
    return frozenset(mapping(listed, classes))


def renumbered(shards: ShardSet, classes: tuple[str, ...]) -> np.ndarray | None:
    """Index in `classes` of each class of a set; None if the two lists are equal."""
    if tuple(shards.manifest.classes) == classes:
        return None
    numbers = np.array(mapping(shards.manifest.classes, classes))
    if unknown := [shards.manifest.classes[n] for n in np.flatnonzero(numbers < 0)]:
        raise ValueError(
            f"{len(unknown)} classes of {shards.location} are not among those of the first shard "
            f"set: {', '.join(unknown[:10])}; put the set with all classes first"
        )
    return numbers


def read_extents(
    shards: ShardSet, sample_filter: SampleFilter, shard: Shard
) -> tuple[np.ndarray, np.ndarray]:
    """First byte of every kept sample of a shard, and the byte after its last."""
    index = shards.read_index(shard)
    if len(index) != shard.samples:
        raise ValueError(
            f"{shard.name}: its index has {len(index)} samples, the manifest says "
            f"{shard.samples}; run python -m shards verify {shards.location}"
        )
    kept = sample_filter.of_index(index)
    return index["start"].to_numpy()[kept], index["stop"].to_numpy()[kept]
