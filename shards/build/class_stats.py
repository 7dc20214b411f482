"""What the assignment needs to know of all images first: classes, val draws, clashing keys."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from shards.build.bucket import heads, mixed
from shards.build.config import BuildConfig
from shards.build.key import key_hashes, stem

SPLIT_SEED = 0x5EED  # the val split does not depend on the seed of the shuffle


@dataclass
class Tally:
    """Counts of the assignment, for the report."""

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


class ClassStats:
    """Statistics of the classes over all buckets, from which the assignment follows."""

    def __init__(self, config: BuildConfig, classes: tuple[str, ...] | None) -> None:
        self.config = config
        self.classes = classes
        self.images: Counter[str] = Counter()
        self._lowest: dict[str, np.ndarray] = {}
        self._stems: list[np.ndarray] = []
        self.thresholds: dict[str, int] = {}
        self.clashing = np.zeros(0, np.uint64)
        self.listed: set[str] = set()

    def add(self, table: pa.Table) -> None:
        """Add a merged bucket."""
        if not table.num_rows:
            return
        hashes = mixed(heads(table["sha256"]), SPLIT_SEED)
        rows_of: dict[str, list[int]] = {}
        for row, wnids in enumerate(table["wnids"].to_pylist()):
            for wnid in wnids:
                rows_of.setdefault(wnid, []).append(row)
        for wnid, rows in rows_of.items():
            self.images[wnid] += len(rows)
            if self.config.val_per_class:
                lowest = np.append(self._lowest.get(wnid, np.zeros(0, np.uint64)), hashes[rows])
                self._lowest[wnid] = np.sort(lowest)[: self.config.val_per_class]
        self._stems.append(key_hashes(map(stem, table["member"].to_pylist())))

    def choose(self) -> tuple[tuple[str, ...], dict[str, int]]:
        """The classes in order, and the number of each class that has enough images."""
        stems, repeats = np.unique(np.concatenate([*self._stems, []]), return_counts=True)
        self.clashing = stems[repeats > 1]
        for wnid, lowest in self._lowest.items():
            num_val = min(len(lowest), self.images[wnid] // 2)
            self.thresholds[wnid] = int(lowest[num_val - 1]) if num_val else -1
        enough = {w for w, count in self.images.items() if count >= self.config.min_per_class}
        classes = self.classes or tuple(sorted(enough))
        self.listed = set(self.classes or self.images)
        numbers = {wnid: number for number, wnid in enumerate(classes) if wnid in enough}
        return classes, numbers
