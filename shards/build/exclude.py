"""Images of another shard set, so that a build can leave them out (the ImageNet-1k validation set).

known = Excluded.load(["imagenet-1k"], distance=3, run=run);  known(table) -> reasons
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from shards.build.transcode import Unusable, opened, perceptual_hash
from shards.dataset import format
from shards.dataset.format import Shard, ShardSet

_ONES = np.array([bin(byte).count("1") for byte in range(256)], np.uint8)


@dataclass(frozen=True)
class Hashes:
    """Content and perceptual hashes of some images."""

    keys: tuple[str, ...]
    contents: np.ndarray
    """(N,) S32."""
    phashes: np.ndarray
    """(N,) uint64; 0 where an image has none."""


def shard_hashes(item: tuple[ShardSet, Shard]) -> Hashes:
    """Hashes of a shard, from its index where they are there, else from its images."""
    given, shard = item
    table = given.read_index(shard)
    phashes = table["phash"].to_pylist()
    if all(look is None for look in phashes):
        phashes = _phashes(given, shard)
    return Hashes(
        tuple(f"{shard.name}: {key}" for key in table["key"].to_pylist()),
        np.array([bytes.fromhex(value) for value in table["sha256"].to_pylist()], "S32"),
        np.array([look or 0 for look in phashes], np.uint64),
    )


def _phashes(given: ShardSet, shard: Shard) -> list[int | None]:
    with given.fs.open_input_file(given.path(shard)) as file:
        data = file.read()
    found: list[int | None] = []
    for record in format.parse_samples(data, shard.name, given.manifest.label):
        try:
            found.append(perceptual_hash(opened(bytes(record.image))))
        except Unusable:  # cannot be shown, so nothing phashes like it; its bytes still count
            found.append(None)
    return found


class Excluded:
    """Tells of rows of a catalogue whether they lie in one of the sets; picklable and read only."""

    def __init__(self, hashes: Sequence[Hashes], distance: int) -> None:
        self.distance = distance
        self.keys = [key for one in hashes for key in one.keys]
        contents = np.concatenate([one.contents for one in hashes])
        phashes = np.concatenate([one.phashes for one in hashes])
        self._content_order = np.argsort(contents, kind="stable")
        self._contents = contents[self._content_order]
        self._shown = np.flatnonzero(phashes)
        self._phashes = phashes[self._shown]
        # Hashes that differ in d bits agree in at least one of d + 1 bands.
        edges = np.linspace(0, 64, distance + 2).astype(int)
        self._bands = [
            (np.uint64(low), np.uint64((1 << (high - low)) - 1))
            for low, high in zip(edges[:-1], edges[1:], strict=True)
        ]
        self._tables = []
        for shift, mask in self._bands:
            values = (self._phashes >> shift) & mask
            order = np.argsort(values, kind="stable")
            self._tables.append((values[order], order))

    @classmethod
    def load(
        cls,
        locations: Iterable[str],
        distance: int,
        run: Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]],
    ) -> "Excluded":
        """Read the hashes of shard sets."""
        items = []
        for location in locations:
            given = format.open_set(location)
            items += [(given, s) for shards in given.manifest.splits.values() for s in shards]
        return cls(sorted(run(shard_hashes, items), key=lambda one: one.keys[:1]), distance)

    def __call__(self, table: pa.Table) -> list[str]:
        """Why each row is left out, "" where it is not."""
        reasons = [""] * table.num_rows
        for row, place, bits in self._near(table["phash"].fill_null(0).to_numpy()):
            reasons[row] = f"phashes like {self.keys[place]} ({bits} bits differ)"
        for name in ("sha256", "stored_sha256"):
            values = np.array(table[name].to_pylist(), "S32")
            at = np.searchsorted(self._contents, values)
            at[at == len(self._contents)] = 0
            for row in np.flatnonzero(self._contents[at] == values) if len(self._contents) else ():
                reasons[row] = f"same bytes as {self.keys[self._content_order[at[row]]]}"
        return reasons

    def _near(self, phashes: np.ndarray) -> Iterator[tuple[int, int, int]]:
        """Row, number of an excluded image and differing bits, of all pairs within the distance."""
        for (shift, mask), (values, order) in zip(self._bands, self._tables, strict=True):
            wanted = (phashes >> shift) & mask
            first = np.searchsorted(values, wanted, "left")
            count = np.searchsorted(values, wanted, "right") - first
            count[phashes == 0] = 0
            rows = np.repeat(np.arange(len(phashes)), count)
            within = np.arange(len(rows)) - np.repeat(np.cumsum(count) - count, count)
            places = order[np.repeat(first, count) + within]
            bits = popcount(phashes[rows] ^ self._phashes[places])
            for at in np.flatnonzero(bits <= self.distance):
                yield int(rows[at]), int(self._shown[places[at]]), int(bits[at])


def popcount(values: np.ndarray) -> np.ndarray:
    """Set bits of each 64-bit value."""
    return _ONES[values.astype("<u8").view(np.uint8)].reshape(-1, 8).sum(1, dtype=np.int64)
