"""Shorter sides of the images of a shard set, from a sample of its indexes."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from shards.dataset.format import Shard, ShardSet

# indexes to read, spread over a split: some 100,000 images, in a second from an object store
SAMPLED_SHARDS = 32
THREADS = 16


@dataclass(frozen=True)
class ShorterSides:
    """Shorter sides of the images of a split."""

    pixels: np.ndarray
    """(n,) Of each sampled image, ascending."""

    @classmethod
    def sample(cls, shards: ShardSet, split: str) -> "ShorterSides":
        """Read the indexes of some shards of a split, or of all if it has few."""
        names = shards.manifest.splits[split]
        chosen = np.unique(np.linspace(0, len(names) - 1, SAMPLED_SHARDS).astype(int))

        def read(shard: Shard) -> np.ndarray:
            index = shards.read_index(shard, ["width", "height"])
            return np.minimum(*(column.to_numpy() for column in index.columns))

        with ThreadPoolExecutor(THREADS) as threads:
            parts = list(threads.map(read, [names[number] for number in chosen] if names else []))
        return cls(np.sort(np.concatenate([np.zeros(0, np.int32), *parts])))

    @property
    def median(self) -> int:
        """Half of the images are smaller than this, or of this size."""
        return self._percentile(50)

    @property
    def largest(self) -> int:
        """Side that one image in a hundred has or exceeds.

        It is the side to which images were shrunk. In a collection of originals, where many images
        are small by nature, some are far larger.
        """
        return self._percentile(99)

    def enlarged(self, side: int) -> str:
        """How many images have to be enlarged to a shorter side of `side`, and by how much."""
        smaller = self.pixels[: np.searchsorted(self.pixels, side)]
        if not len(smaller):
            return "none is enlarged"
        share, factor = len(smaller) / len(self.pixels), side / np.median(smaller)
        return f"{share:.0%} are enlarged, {factor:.2f} times in the median"

    @property
    def suited(self) -> str:
        """The sizes that suit training, in words."""
        above = "" if self.median == self.largest else f"most of them, above {self.largest} "
        return f"training above {self.median} pixels enlarges {above}nearly all"

    def __str__(self) -> str:
        """The percentiles, in words."""
        few, median, largest = self._percentile(5), self.median, self.largest
        return (
            f"shorter side {few} (5 %), {median} (median), {largest} (99 %) pixels, of "
            f"{len(self.pixels):,} images sampled"
        )

    def _percentile(self, percent: float) -> int:
        if not len(self.pixels):
            return 0
        return int(np.percentile(self.pixels, percent, method="nearest"))
