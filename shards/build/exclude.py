"""Recognise the images of other shard sets, to leave them out (the ImageNet-1k validation set).

known = Excluded(["imagenet-1k"], distance=3, run=run);  known(table) -> reasons
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from shards.build.progress import Run
from shards.build.transcode import Unusable, opened, perceptual_hash
from shards.dataset import format, store
from shards.dataset.format import Shard, ShardSet

_ONES = np.array([byte.bit_count() for byte in range(256)], np.uint8)


@dataclass(frozen=True)
class Hashes:
    """Content and perceptual hashes of some images."""

    keys: tuple[str, ...]
    contents: np.ndarray
    """(N,) S32."""
    phashes: np.ndarray
    """(N,) uint64; 0 for an image without one."""


def shard_hashes(item: tuple[ShardSet, Shard]) -> Hashes:
    """Hashes of a shard from its index; without perceptual hashes there, from its images."""
    shard_set, shard = item
    table = shard_set.read_index(shard)
    phashes = table["phash"].to_pylist()
    if all(phash is None for phash in phashes):
        phashes = _phashes(shard_set, shard)
    return Hashes(
        tuple(f"{shard.name}: {key}" for key in table["key"].to_pylist()),
        np.array([bytes.fromhex(value) for value in table["sha256"].to_pylist()], "S32"),
        np.array([phash or 0 for phash in phashes], np.uint64),
    )


def _phashes(shard_set: ShardSet, shard: Shard) -> list[int | None]:
    data = store.read_bytes(shard_set.fs, shard_set.path(shard))
    phashes: list[int | None] = []
    for sample in format.parse_samples(data, shard.name, shard_set.manifest.label):
        try:
            phashes.append(perceptual_hash(opened(bytes(sample.image))))
        except Unusable:  # no image looks like one that cannot be decoded; its bytes still count
            phashes.append(None)
    return phashes


class Excluded:
    """Finds the catalogue rows whose images are in one of the sets; picklable and read-only."""

    def __init__(self, locations: Iterable[str], distance: int, run: Run) -> None:
        """Read the hashes of the shard sets at these locations."""
        sets = map(format.open_set, locations)
        items = [(one, shard) for one in sets for shard in one.manifest.shards]
        hashes = sorted(run(shard_hashes, items), key=lambda one: one.keys[:1])
        self.distance = distance
        self.keys = [key for one in hashes for key in one.keys]
        contents = np.concatenate([one.contents for one in hashes])
        phashes = np.concatenate([one.phashes for one in hashes])
        self._content_order = np.argsort(contents, kind="stable")
        self._contents = contents[self._content_order]
        self._hashed = np.flatnonzero(phashes)
        self._phashes = phashes[self._hashed]
        # Hashes that differ in d bits agree in at least one of d + 1 bands. Each band is a shift, a
        # mask, the sorted values, and the positions of the hashes in that order.
        self._bands = []
        edges = np.linspace(0, 64, distance + 2).astype(int)
        for low, high in itertools.pairwise(edges):
            shift, mask = np.uint64(low), np.uint64((1 << int(high - low)) - 1)
            values = (self._phashes >> shift) & mask
            order = np.argsort(values, kind="stable")
            self._bands.append((shift, mask, values[order], order))

    def __call__(self, table: pa.Table) -> list[str]:
        """Why each row is left out, "" if it is not."""
        reasons = [""] * table.num_rows
        for row, place, bits in self._near(table["phash"].fill_null(0).to_numpy()):
            reasons[row] = f"looks like {self.keys[place]} ({bits} bits of the hash differ)"
        for name in ("sha256", "stored_sha256"):
            values = np.array(table[name].to_pylist(), "S32")
            at = np.searchsorted(self._contents, values)
            at[at == len(self._contents)] = 0
            for row in np.flatnonzero(self._contents[at] == values) if len(self._contents) else ():
                reasons[row] = f"same bytes as {self.keys[self._content_order[at[row]]]}"
        return reasons

    def _near(self, phashes: np.ndarray) -> Iterator[tuple[int, int, int]]:
        """Row, number of an excluded image, and differing bits of all pairs within the distance."""
        for shift, mask, values, order in self._bands:
            wanted = (phashes >> shift) & mask
            first = np.searchsorted(values, wanted, "left")
            count = np.searchsorted(values, wanted, "right") - first
            count[phashes == 0] = 0
            rows = np.repeat(np.arange(len(phashes)), count)
            within = np.arange(len(rows)) - np.repeat(np.cumsum(count) - count, count)
            places = order[np.repeat(first, count) + within]
            differing = (phashes[rows] ^ self._phashes[places]).view(np.uint8)
            bits = _ONES[differing].reshape(-1, 8).sum(1, dtype=np.int64)
            for at in np.flatnonzero(bits <= self.distance):
                yield int(rows[at]), int(self._hashed[places[at]]), int(bits[at])
